//! The error of a change of identity.

use std::fmt;
use std::io;

use nix::errno::Errno;

use super::errno::DisplayErrno;

/// An error from changing identity, or from reading it. Nothing is changed when it is returned.
///
/// "Nothing is changed" holds for the calling thread. In process scope, other threads have the ids
/// that they had, but those that were changed and rolled back have lost their parent-death signal.
///
/// It converts into an [`io::Error`] with a matching kind, such as `PermissionDenied`,
/// `InvalidInput` or `WouldBlock`. [`into_os_error`](Error::into_os_error) returns one with an
/// error number instead.
///
/// # Examples
/// ```
/// use privilege_guard::{Error, GroupGuard, PermissionDeniedReason};
///
/// match GroupGuard::assume(1004) {
///     Ok(guard) => guard.run(|| println!("group 1004")),
///     Err(Error::NotPermitted { reason: PermissionDeniedReason::MissingSetgid, .. }) => {
///         println!("run me with CAP_SETGID")
///     }
///     Err(error) => eprintln!("{error}"),
/// }
/// let error = std::io::Error::from(GroupGuard::assume(u32::MAX).unwrap_err());
/// assert_eq!(error.kind(), std::io::ErrorKind::InvalidInput);
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A change to `(gid_t)-1`, which the kernel reads as "leave unchanged".
    #[error(
        "group 4294967295 is (gid_t)-1, which the kernel reads as \"leave unchanged\"; \
         leave the id out of the change instead"
    )]
    InvalidGid,

    /// A change to `(uid_t)-1`, which the kernel reads as "leave unchanged".
    #[error(
        "user 4294967295 is (uid_t)-1, which the kernel reads as \"leave unchanged\"; \
         leave the id out of the change instead"
    )]
    InvalidUid,

    /// More supplementary groups than a process can have (`NGROUPS_MAX`).
    #[error("more than 65536 supplementary groups are requested, and Linux allows no more")]
    TooManyGroups,

    /// A requested group has no mapping in this user namespace.
    #[error(
        "cannot change to {requested} (ids now: {ids}): a group is not mapped in this user \
         namespace; \
         /proc/self/gid_map lists the mapped ids"
    )]
    UnmappedGid {
        /// The change.
        requested: String,
        /// The calling thread's ids.
        ids: String,
    },

    /// A requested user has no mapping in this user namespace.
    #[error(
        "cannot change to {requested} (ids now: {ids}): a user is not mapped in this user \
         namespace; \
         /proc/self/uid_map lists the mapped ids"
    )]
    UnmappedUid {
        /// The change.
        requested: String,
        /// The calling thread's ids.
        ids: String,
    },

    /// The kernel refused the change.
    #[error("cannot change to {requested} (ids now: {ids}): {reason}")]
    NotPermitted {
        /// The change.
        requested: String,
        /// The calling thread's ids.
        ids: String,
        /// The missing privilege.
        reason: PermissionDeniedReason,
    },

    /// The change could be made but not undone, so it was not made.
    #[error("will not change to {requested} (ids now: {ids}): {reason}")]
    Irreversible {
        /// The change.
        requested: String,
        /// The calling thread's ids.
        ids: String,
        /// The part that could not be restored.
        reason: IrreversibleReason,
    },

    /// A system call failed for a reason other than permission, or reported success without effect.
    #[error(
        "cannot change to {requested} (ids now: {ids}): {call}: {}",
        DisplayErrno(os_error)
    )]
    SyscallFailed {
        /// The system call.
        call: &'static str,
        /// The change.
        requested: String,
        /// The calling thread's ids.
        ids: String,
        /// The kernel's error, or an error without a number if the result was faked.
        os_error: io::Error,
    },

    /// A system call that only reads was refused, or its result cannot be true.
    #[error(
        "{call}: {}; nothing is changed without its result, so a seccomp filter must allow this \
         call",
        DisplayErrno(os_error)
    )]
    ReadFailed {
        /// The system call.
        call: &'static str,
        /// The kernel's error, or an error without a number if the result was faked.
        os_error: io::Error,
    },

    /// Another thread holds a guard that conflicts with the requested one.
    #[error(
        "{conflict}; try again when that has ended, set a timeout with .wait(Duration), \
         or use thread guards everywhere, which never conflict"
    )]
    Busy {
        /// The guard that conflicts.
        conflict: ConflictingGuard,
    },

    /// A process guard was requested on a thread that holds a thread guard.
    #[error(
        "this thread holds a thread guard, and a process guard cannot be restored inside it; \
         use a thread guard here too"
    )]
    ProcessGuardInThreadGuard,

    /// The guard is not the innermost one: guards created after it are active.
    #[error("guards that were created after this one are still active; end those first")]
    NotInnermost,

    /// The thread is ending. Its guards have been restored, and new ones would not be.
    #[error("this thread is ending, and a guard created now would not be restored")]
    ThreadEnding,

    /// The threads of the process could not be read from `/proc`.
    #[error(
        "the threads of this process cannot be read: {}; /proc must be mounted and readable",
        DisplayErrno(os_error)
    )]
    ThreadsUnreadable {
        /// The error.
        os_error: io::Error,
    },

    /// Another thread could not follow the change, or would not be restored exactly. Usually its
    /// ids or capabilities differ from the calling thread's.
    #[error(
        "cannot change to {requested} in the whole process: thread {thread_id} ({name}) {finding}; \
         use a thread guard"
    )]
    ThreadDiffers {
        /// The change.
        requested: String,
        /// The other thread's id (`gettid(2)`).
        thread_id: u32,
        /// The other thread's name.
        name: String,
        /// The reason why the thread cannot follow or be restored.
        finding: String,
    },

    /// libc skipped another thread. The change was rolled back.
    ///
    /// libc cannot reach a thread if the signal queue is full (`RLIMIT_SIGPENDING`), if a seccomp
    /// filter refuses `tgkill` or fakes the change, or if the thread was started by a raw `clone`.
    #[error(
        "cannot change to {requested} in the whole process: libc left thread {thread_id} ({name}) \
         unchanged (is the signal queue full, or does a seccomp filter interfere?); use a thread \
         guard"
    )]
    ThreadNotChanged {
        /// The change.
        requested: String,
        /// The other thread's id (`gettid(2)`).
        thread_id: u32,
        /// The other thread's name.
        name: String,
    },

    /// Exactly one id of each kind is required, and the guard's change requests two or none.
    #[error(
        "the guard's change is {requested}; it must name exactly one id, as an assume function does"
    )]
    NotOneId {
        /// The guard's change.
        requested: String,
    },
}

/// The reason why the kernel refused a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum PermissionDeniedReason {
    /// CAP_SETGID is required, and it is neither effective nor permitted.
    MissingSetgid,
    /// CAP_SETGID is in the permitted set but not in the effective one. The library does not raise
    /// it for a change.
    SetgidNotEffective,
    /// CAP_SETUID is required, and it is neither effective nor permitted.
    MissingSetuid,
    /// CAP_SETUID is in the permitted set but not in the effective one. The library does not raise
    /// it for a change.
    SetuidNotEffective,
    /// `setgroups` is denied in this user namespace (`user_namespaces(7)`).
    SetgroupsDenied,
    /// The capability is effective, or could not be read, and the call was refused all the same.
    FilteredOrLsm,
}

impl fmt::Display for PermissionDeniedReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::MissingSetgid => {
                "this requires CAP_SETGID; run as root, give the program the capability \
                 (setcap cap_setgid+ep), or run it in a user namespace \
                 (unshare --user --map-root-user --map-auto)"
            }
            Self::SetgidNotEffective => {
                "CAP_SETGID is in the permitted set but not in the effective one; raise it first"
            }
            Self::MissingSetuid => {
                "this requires CAP_SETUID; run as root, give the program the capability \
                 (setcap cap_setuid+ep), or run it in a user namespace \
                 (unshare --user --map-root-user --map-auto)"
            }
            Self::SetuidNotEffective => {
                "CAP_SETUID is in the permitted set but not in the effective one; raise it first"
            }
            Self::SetgroupsDenied => {
                "setgroups is denied in this user namespace; one with mapped subordinate ids \
                 allows it (unshare --user --map-root-user --map-auto)"
            }
            Self::FilteredOrLsm => {
                "refused although the required capability is effective; \
                 a seccomp filter or a security module must allow it"
            }
        })
    }
}

/// The reason why a change could not be undone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum IrreversibleReason {
    /// One of the group ids could be restored only with CAP_SETGID, which is not effective.
    SetgidRequired,
    /// One of the user ids could be restored only with CAP_SETUID, which is not effective.
    SetuidRequired,
    /// Capabilities of the effective, permitted, inheritable or ambient set would be lost.
    CapabilitiesLost,
    /// The ambient set must be cleared under the change, and a securebit forbids raising it again.
    AmbientSetLost,
    /// An id or group reads as 65534 and might have no mapping, so no call can name it.
    Unmapped,
}

impl fmt::Display for IrreversibleReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::SetgidRequired => {
                "one of these ids could not be restored without CAP_SETGID; assume_effective \
                 leaves \
                 the other ids alone, and PermanentDrop drops them permanently"
            }
            Self::SetuidRequired => {
                "one of these ids could not be restored without CAP_SETUID in the effective set; \
                 assume_effective leaves the other ids alone, and PermanentDrop drops them \
                 permanently"
            }
            Self::CapabilitiesLost => {
                "the kernel would clear capability sets that could not be restored \
                 (it does so when the last user id that is 0 changes); assume_effective keeps \
                 one at 0"
            }
            Self::AmbientSetLost => {
                "the ambient capability set must be cleared while the guard is active, and \
                 SECBIT_NO_CAP_AMBIENT_RAISE \
                 forbids raising it again; clear the ambient set first, or use assume_effective"
            }
            Self::Unmapped => {
                "an id or group to be restored reads as 65534 and might have no mapping in this \
                 user \
                 namespace; map it there (/proc/self/gid_map, /proc/self/uid_map)"
            }
        })
    }
}

/// The guard that conflicts with the requested one.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ConflictingGuard {
    /// A thread holds a process guard, which conflicts with all guards of other threads.
    ProcessGuard {
        /// The thread's id (`gettid(2)`). In a forked child it is a thread of the parent.
        thread_id: u32,
        /// Its name, or `None` if `/proc` shows no such thread, as in a forked child.
        name: Option<String>,
    },
    /// Threads that hold thread guards or are emitting an event. Both block process guards on other
    /// threads.
    ThreadGuards {
        /// The number of threads.
        threads: u32,
    },
}

impl fmt::Display for ConflictingGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ProcessGuard {
                thread_id,
                name: Some(name),
            } => {
                write!(f, "thread {thread_id} ({name}) holds a process guard")
            }
            Self::ProcessGuard {
                thread_id,
                name: None,
            } => write!(
                f,
                "thread {thread_id}, which is not in this process, holds a process guard \
                 (after a fork, guards of the parent's other threads stay active)"
            ),
            Self::ThreadGuards { threads: 1 } => f.write_str("another thread holds a thread guard"),
            Self::ThreadGuards { threads } => write!(f, "{threads} threads hold thread guards"),
        }
    }
}

impl Error {
    pub(crate) fn threads_unreadable(os_error: io::Error) -> Self {
        Error::ThreadsUnreadable { os_error }
    }

    pub(crate) fn read_failed(call: &'static str, os_error: impl Into<io::Error>) -> Self {
        Error::ReadFailed {
            call,
            os_error: os_error.into(),
        }
    }

    /// Returns the error number for a caller that answers with one, such as a FUSE server.
    ///
    /// - EPERM for [`NotPermitted`](Error::NotPermitted), [`Irreversible`](Error::Irreversible) and
    ///   [`ThreadDiffers`](Error::ThreadDiffers)
    /// - EINVAL for reserved or unmapped ids and for too many groups
    /// - EAGAIN for [`Busy`](Error::Busy)
    /// - EIO for a faked call and for [`ThreadNotChanged`](Error::ThreadNotChanged)
    /// - `None` for misuse of a guard and for [`ThreadEnding`](Error::ThreadEnding)
    /// - the kernel's own number otherwise
    ///
    /// # Examples
    /// ```
    /// let error = privilege_guard::GroupGuard::assume(u32::MAX).unwrap_err();
    /// assert_eq!(error.raw_os_error(), Some(22)); // EINVAL
    /// ```
    pub fn raw_os_error(&self) -> Option<i32> {
        let errno = match self {
            Error::NotPermitted { .. }
            | Error::Irreversible { .. }
            | Error::ThreadDiffers { .. } => Errno::EPERM,
            Error::InvalidGid | Error::InvalidUid | Error::TooManyGroups => Errno::EINVAL,
            Error::UnmappedGid { .. } | Error::UnmappedUid { .. } => Errno::EINVAL,
            Error::Busy { .. } => Errno::EAGAIN,
            Error::ThreadNotChanged { .. } => Errno::EIO,
            Error::SyscallFailed { os_error, .. }
            | Error::ReadFailed { os_error, .. }
            | Error::ThreadsUnreadable { os_error } => {
                return Some(os_error.raw_os_error().unwrap_or(Errno::EIO as i32));
            }
            Error::ProcessGuardInThreadGuard
            | Error::NotInnermost
            | Error::ThreadEnding
            | Error::NotOneId { .. } => return None,
        };
        Some(errno as i32)
    }

    /// Converts into an [`io::Error`] with an error number, without the message.
    ///
    /// The number is that of [`raw_os_error`](Error::raw_os_error), or EINVAL.
    ///
    /// # Examples
    /// ```
    /// let error = privilege_guard::GroupGuard::assume(u32::MAX).unwrap_err().into_os_error();
    /// assert_eq!(error.raw_os_error(), Some(22)); // EINVAL
    /// ```
    pub fn into_os_error(self) -> io::Error {
        io::Error::from_raw_os_error(self.raw_os_error().unwrap_or(Errno::EINVAL as i32))
    }

    pub(super) fn kind(&self) -> io::ErrorKind {
        match self {
            Error::SyscallFailed { os_error, .. } | Error::ReadFailed { os_error, .. } => {
                os_error.kind()
            }
            Error::ThreadsUnreadable { .. }
            | Error::ThreadEnding
            | Error::ThreadNotChanged { .. } => io::ErrorKind::Other,
            Error::Busy { .. } => io::ErrorKind::WouldBlock,
            Error::NotPermitted { .. }
            | Error::Irreversible { .. }
            | Error::ThreadDiffers { .. } => io::ErrorKind::PermissionDenied,
            _ => io::ErrorKind::InvalidInput,
        }
    }
}

impl From<Error> for io::Error {
    fn from(error: Error) -> Self {
        io::Error::new(error.kind(), error)
    }
}

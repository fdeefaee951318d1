//! What can go wrong, in words for the person who has to do something about it.

use std::fmt;
use std::io;

use nix::errno::Errno;

use crate::change::GroupChange;
use crate::ids::GroupIds;

/// Why a change was refused, or could not be undone; each variant says in which state that leaves the process.
///
/// Where [`drop_permanently`](crate::GroupGuard::drop_permanently) returns it, "nothing changed" means that the guard has been undone, as by a drop.
///
/// Converts into [`io::Error`]: `PermissionDenied`, `InvalidInput`, `NotFound` and `WouldBlock` where they fit.
///
/// # Examples
/// ```
/// use privilege_guard::{Denial, Error, GroupGuard};
///
/// match GroupGuard::assume(1004) {
///     Ok(guard) => guard.restore()?,
///     Err(Error::NotPermitted { reason: Denial::NoCapability, .. }) => println!("run me with CAP_SETGID"),
///     Err(error) => eprintln!("{error}"),
/// }
/// let error = std::io::Error::from(GroupGuard::assume(u32::MAX).unwrap_err());
/// assert_eq!(error.kind(), std::io::ErrorKind::InvalidInput);
/// # Ok::<(), Error>(())
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A change to `(gid_t)-1`, which the kernel would take as "leave alone". Nothing changed.
    #[error("group 4294967295 is (gid_t)-1, which the kernel reads as \"leave alone\"; leave the id out of the change instead")]
    InvalidGid,

    /// A text that is not a group ID. Nothing changed.
    #[error("{text:?} is not a group ID: decimal digits are, from 0 to 4294967294; for the name of a group use Gid::from_group_name")]
    NotAGid {
        /// The text.
        text: String,
    },

    /// No group has this name. Nothing changed.
    #[error("no group is named {name:?}; `getent group` lists those there are, and a number is read with \"1004\".parse()")]
    UnknownGroup {
        /// The name that was looked up.
        name: String,
    },

    /// The database of groups or of users could not be asked. Nothing changed.
    #[error("{name:?} could not be looked up: {}", Os(source))]
    Lookup {
        /// The name that was looked up.
        name: String,
        /// What the system said.
        source: io::Error,
    },

    /// More supplementary groups than a process may have (`NGROUPS_MAX`). Nothing changed.
    #[error("more than 65536 supplementary groups are asked for, and Linux allows no more")]
    TooManyGroups,

    /// An id or group of the change has no mapping in this user namespace. Nothing changed.
    #[error("cannot change to {asked} (ids now: {ids}): not mapped in this user namespace; /proc/self/gid_map lists what is")]
    NoMapping {
        /// The change.
        asked: GroupChange,
        /// The calling thread's ids.
        ids: GroupIds,
    },

    /// The kernel refused the change. Nothing changed.
    #[error("cannot change to {asked} (ids now: {ids}): {reason}")]
    NotPermitted {
        /// The change.
        asked: GroupChange,
        /// The calling thread's ids.
        ids: GroupIds,
        /// What is missing.
        reason: Denial,
    },

    /// The change could be made but not undone, so it was not made. Nothing changed.
    #[error("will not change to {asked} (ids now: {ids}): {reason}")]
    Irreversible {
        /// The change.
        asked: GroupChange,
        /// The calling thread's ids.
        ids: GroupIds,
        /// What could not be put back.
        reason: NoReturn,
    },

    /// A system call failed for another reason than permission, or said that it was done and was not. Nothing changed, or it was undone.
    #[error("cannot change to {asked} (ids now: {ids}): {call}: {}", Os(source))]
    Call {
        /// The system call.
        call: &'static str,
        /// The change.
        asked: GroupChange,
        /// The calling thread's ids.
        ids: GroupIds,
        /// What the kernel said.
        source: io::Error,
    },

    /// A call that only reads was refused, or its answer cannot be true. Nothing changed, or it was undone.
    #[error("{call}: {}; nothing is changed without its answer, so a seccomp filter must allow this call", Os(source))]
    Unreadable {
        /// The system call.
        call: &'static str,
        /// What the kernel said.
        source: io::Error,
    },

    /// A guard ended and could not be undone. **The process is still under the wrong group: end it.**
    #[error("cannot go back to {original}: {call}: {}; the process is under the wrong group and has to end", Os(source))]
    NotRestored {
        /// The ids before the guard.
        original: GroupIds,
        /// The system call.
        call: &'static str,
        /// What the kernel said.
        source: io::Error,
    },

    /// A guard of another thread is in the way. Nothing changed.
    #[error(
        "{holder}; try again when that has ended, give .wait(Duration), or use thread guards everywhere, which never exclude each other"
    )]
    Busy {
        /// Who is in the way.
        holder: Holder,
    },

    /// A process guard was asked for by a thread that has a thread guard. Nothing changed.
    #[error("this thread has a thread guard, and a process guard cannot be undone inside it; use a thread guard here too")]
    InsideThreadGuard,

    /// The guard has living guards inside it: its ids do not count now. From `restore` and `run`, its undoing waits for theirs; else nothing changed.
    #[error("guards that were made after this one are still alive, or could not be undone; end those first, last made first")]
    InnerGuardAlive,

    /// The thread is ending: its guards have been undone, and new ones would not be. Nothing changed.
    #[error("this thread is ending, and a guard made now would not be undone")]
    ThreadEnding,

    /// What the threads of the process are could not be read. Nothing changed.
    #[error("the threads of this process cannot be read: {source}; /proc has to be mounted, and readable")]
    Proc {
        /// What was wrong with it.
        source: io::Error,
    },

    /// A permanent drop was asked for while another guard is alive, on this thread or another, which would be undone into it.
    /// Nothing changed.
    #[error("a guard is alive, on this thread or another, and would still be undone after a permanent drop; end it first")]
    GuardsAlive,

    /// Several threads hold CAP_SETGID, or would have it again after an exec, and no call takes a capability from another thread.
    /// Nothing changed.
    #[error(
        "{threads} threads, and CAP_SETGID within reach of some: no call takes a capability from another thread; drop before threads are \
         started, or with PermanentDrop::user from user 0 to another, with plain securebits and nothing inheritable"
    )]
    SeveralThreads {
        /// How many threads the process has.
        threads: usize,
    },

    /// Of a permanent drop (for a guard see [`Denial`]): CAP_SETGID is held, but not in the effective set. It cannot be used, and would still be
    /// held after the drop. Nothing changed.
    #[error("CAP_SETGID is held but not effective, and would be kept; raise it into the effective set first, or give it up")]
    NotEffective,

    /// The drop is to another user, and CAP_SETUID is not effective. Nothing changed.
    #[error("cannot become user {user}: this needs CAP_SETUID in the effective set of every thread; run as root, or leave the user out")]
    NoSetuid {
        /// The user that was asked for.
        user: u32,
    },

    /// User 0 stays within reach, so CAP_SETGID has to leave the bounding set, and CAP_SETPCAP is not effective. Nothing changed.
    #[error(
        "user 0 stays within reach, and an exec as user 0 would give CAP_SETGID back: to take it from the bounding set needs CAP_SETPCAP; \
         run with it, or drop to another user too (PermanentDrop::user)"
    )]
    NoSetpcap,

    /// Of a permanent drop (for a guard see [`Denial`]): `setgroups` is denied in this user namespace, so the supplementary groups cannot be given
    /// up. Nothing changed.
    #[error("setgroups is denied in this user namespace (/proc/self/setgroups), so supplementary groups cannot be given up")]
    SetgroupsDenied,

    /// A kernel thread in this process, of an io_uring or of vhost, keeps the identity that it was made under. Nothing changed.
    #[error(
        "thread {thread_id} is a kernel thread of an io_uring (or of vhost), which keeps its groups; close that first, and make it after the drop"
    )]
    IoUring {
        /// The thread's id.
        thread_id: u32,
    },

    /// A user ID that is `(uid_t)-1`. Nothing changed.
    #[error("user 4294967295 is (uid_t)-1, which the kernel reads as \"leave alone\"")]
    InvalidUid,

    /// The user of a permanent drop has no mapping in this user namespace. Nothing changed.
    #[error("cannot become user {user}: not mapped in this user namespace; /proc/self/uid_map lists what is")]
    NoUserMapping {
        /// The user that was asked for.
        user: u32,
    },

    /// No user has this name. Nothing changed.
    #[error("no user is named {name:?}; `getent passwd` lists those there are")]
    UnknownAccount {
        /// The name that was looked up.
        name: String,
    },

    /// A permanent drop could not be finished, or does not hold. **The state is neither the old nor the new one: end the process.**
    #[error("the permanent drop does not hold: {finding}; end the process")]
    StillPrivileged {
        /// What was found.
        finding: String,
    },

    /// One group was needed, and the guard's change names two or none. Nothing changed.
    #[error("the guard's change names {asked}: one group has to be named, as GroupGuard::assume does")]
    Ambiguous {
        /// The change.
        asked: GroupChange,
    },
}

/// What was missing for a change that the kernel refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Denial {
    /// CAP_SETGID is neither effective nor permitted, and the change needs it.
    NoCapability,
    /// CAP_SETGID is in the permitted set but not in the effective one; this library raises none.
    NotEffective,
    /// `setgroups` is denied in this user namespace (`user_namespaces(7)`).
    SetgroupsDenied,
    /// CAP_SETGID is effective, or cannot be asked for, and the call was refused all the same.
    Sandbox,
}

impl fmt::Display for Denial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Denial::NoCapability => {
                "this needs CAP_SETGID; run as root, give the program the capability (setcap cap_setgid+ep), \
                 or run it in a user namespace (unshare --user --map-root-user --map-auto)"
            }
            Denial::NotEffective => "CAP_SETGID is in the permitted set but not in the effective one; raise it first",
            Denial::SetgroupsDenied => {
                "setgroups is denied in this user namespace; one made with mapped subordinate ids allows it \
                 (unshare --user --map-root-user --map-auto)"
            }
            Denial::Sandbox => "refused although CAP_SETGID is effective; a seccomp filter or a security module has to allow it",
        })
    }
}

/// Why a change could not be undone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum NoReturn {
    /// One of the ids could be taken back only with CAP_SETGID, which is not in the effective set.
    WouldBeLost,
    /// An id or group shows as 65534 and may be one without a mapping, which no call can name.
    Unmapped,
}

impl fmt::Display for NoReturn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            NoReturn::WouldBeLost => {
                "one of these ids could not be taken back without CAP_SETGID; assume_effective leaves the others alone, \
                 and PermanentDrop gives them up for good"
            }
            NoReturn::Unmapped => {
                "an id or group to be put back shows as 65534 and may have no mapping in this user namespace; \
                 map it there (/proc/self/gid_map)"
            }
        })
    }
}

/// Whose guard is in the way of another thread's.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Holder {
    /// A thread with a process guard, which excludes all guards of other threads.
    ProcessGuard {
        /// The thread's id (`gettid(2)`).
        thread_id: u32,
        /// Its name; `None` where `/proc` does not show such a thread, as in a forked child.
        name: Option<String>,
    },
    /// Threads with thread guards, or that are just telling a subscriber of an event: both exclude process guards of other threads.
    ThreadGuards {
        /// How many threads.
        threads: u32,
    },
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Holder::ProcessGuard { thread_id, name: Some(name) } => write!(f, "thread {thread_id} ({name}) has a process guard"),
            Holder::ProcessGuard { thread_id, name: None } => {
                write!(
                    f,
                    "thread {thread_id}, which this process does not show, has a process guard (after a fork those of other threads count as alive)"
                )
            }
            Holder::ThreadGuards { threads: 1 } => f.write_str("another thread has a thread guard"),
            Holder::ThreadGuards { threads } => write!(f, "{threads} threads have thread guards"),
        }
    }
}

impl Error {
    pub(crate) fn unreadable(call: &'static str, source: impl Into<io::Error>) -> Self {
        Error::Unreadable { call, source: source.into() }
    }
}

impl From<Error> for io::Error {
    fn from(error: Error) -> Self {
        use io::ErrorKind::*;
        let kind = match &error {
            Error::InvalidGid | Error::NotAGid { .. } | Error::TooManyGroups | Error::NoMapping { .. } => InvalidInput,
            Error::Ambiguous { .. } | Error::InsideThreadGuard | Error::InnerGuardAlive => InvalidInput,
            Error::InvalidUid | Error::NoUserMapping { .. } | Error::GuardsAlive => InvalidInput,
            Error::UnknownGroup { .. } | Error::UnknownAccount { .. } => NotFound,
            Error::SeveralThreads { .. } | Error::NotEffective | Error::NoSetuid { .. } | Error::NoSetpcap => PermissionDenied,
            Error::SetgroupsDenied | Error::IoUring { .. } | Error::StillPrivileged { .. } => PermissionDenied,
            Error::NotPermitted { .. } | Error::Irreversible { .. } => PermissionDenied,
            Error::Busy { .. } => WouldBlock,
            Error::Lookup { source, .. }
            | Error::Call { source, .. }
            | Error::Unreadable { source, .. }
            | Error::NotRestored { source, .. } => source.kind(),
            Error::ThreadEnding | Error::Proc { .. } => Other,
        };
        io::Error::new(kind, error)
    }
}

/// What the system said, in words.
struct Os<'a>(&'a io::Error);

impl fmt::Display for Os<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.raw_os_error() {
            Some(code) => write!(f, "{}", Errno::from_raw(code)),
            None => self.0.fmt(f),
        }
    }
}

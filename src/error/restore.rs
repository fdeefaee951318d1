//! The error of `restore`.

use std::{fmt, io};

use super::change::Error;
use super::errno::DisplayErrno;
use crate::ids::{Gid, GroupIds, Uid, UserIds};

/// An error from [`Guard::restore`](crate::Guard::restore).
///
/// It deliberately does not implement [`std::error::Error`]: `?` must not propagate it like an
/// error that changed nothing, because the program would continue under the wrong identity. After
/// [`Refused`](RestoreError::Refused), end the process.
///
/// # Examples
/// ```
/// use privilege_guard::{GroupGuard, GroupIds};
///
/// let guard = GroupGuard::assume_effective(GroupIds::current()?.real)?;
/// if let Err(error) = guard.restore() {
///     eprintln!("{error}");
///     std::process::exit(1);
/// }
/// # Ok::<(), privilege_guard::Error>(())
/// ```
///
/// Propagating it with `?` does not compile:
/// ```compile_fail
/// fn work() -> Result<(), Box<dyn std::error::Error>> {
///     let guard = privilege_guard::GroupGuard::assume(1004)?;
///     guard.restore()?;
///     Ok(())
/// }
/// ```
#[derive(Debug)]
#[non_exhaustive]
pub enum RestoreError {
    /// The restore was refused. **The process is still under the wrong identity: end it.**
    ///
    /// The guard stays active and is never restored. If an outer guard is dropped afterwards, the
    /// process aborts.
    Refused {
        /// The part that could not be restored.
        what: Unrestored,
        /// The step that failed: a system call, or the verification of all threads.
        call: &'static str,
        /// The kernel's answer.
        os_error: io::Error,
        /// The required capability, if it was effective before and is not any more.
        lost_capability: Option<&'static str>,
    },

    /// Guards created after this one are active. The restore is deferred until they end, or never
    /// happens if the restore of one of them was refused.
    NotInnermost,

    /// The thread is ending, and the guard has been restored.
    ThreadEnding,
}

impl RestoreError {
    /// Returns the kernel's error number, if a system call failed.
    pub fn raw_os_error(&self) -> Option<i32> {
        match self {
            Self::Refused { os_error, .. } => os_error.raw_os_error(),
            Self::NotInnermost | Self::ThreadEnding => None,
        }
    }
}

impl fmt::Display for RestoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused {
                what,
                call,
                os_error,
                lost_capability,
            } => {
                write!(
                    f,
                    "cannot restore {what}: {call}: {}",
                    DisplayErrno(os_error)
                )?;
                if let Some(capability) = lost_capability {
                    write!(
                        f,
                        "; {capability} is not effective any more (did the program change its user \
                         while the guard was active? end the guards in reverse order)"
                    )?;
                }
                f.write_str("; the process is under the wrong identity and must end")
            }
            Self::NotInnermost => Error::NotInnermost.fmt(f),
            Self::ThreadEnding => {
                f.write_str("this thread is ending, and the guard has been restored")
            }
        }
    }
}

/// The part of an identity that could not be restored, with its original value.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Unrestored {
    /// The group ids.
    GroupIds(GroupIds),
    /// The user ids.
    UserIds(UserIds),
    /// The filesystem group id. The other group ids are restored.
    FilesystemGid(Gid),
    /// The filesystem user id. The other user ids are restored.
    FilesystemUid(Uid),
    /// The supplementary groups.
    SupplementaryGroups,
    /// The capability sets.
    Capabilities,
    /// The parent-death signal.
    ParentDeathSignal,
    /// The identity of another thread, which libc skipped or which could not be read.
    OtherThread {
        /// The thread's id (`gettid(2)`), or 0 if the threads could not be read.
        thread_id: u32,
    },
}

impl fmt::Display for Unrestored {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::GroupIds(ids) => write!(f, "the group ids ({ids})"),
            Self::UserIds(ids) => write!(f, "the user ids ({ids})"),
            Self::FilesystemGid(id) => write!(f, "the filesystem group id ({id})"),
            Self::FilesystemUid(id) => write!(f, "the filesystem user id ({id})"),
            Self::SupplementaryGroups => f.write_str("the supplementary groups"),
            Self::Capabilities => f.write_str("the capability sets"),
            Self::ParentDeathSignal => f.write_str("the parent-death signal"),
            Self::OtherThread { thread_id: 0 } => f.write_str("the identity of other threads"),
            Self::OtherThread { thread_id } => write!(f, "the identity of thread {thread_id}"),
        }
    }
}

//! The error of a permanent drop.

use std::io;

use super::change::Error;

/// An error from a permanent drop. Unless it is [`StillPrivileged`](DropError::StillPrivileged),
/// nothing is changed.
///
/// If [`drop_permanently`](crate::Guard::drop_permanently) returns it, the guard has been restored,
/// as by a drop.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DropError {
    /// A part of the drop failed as a change does.
    #[error(transparent)]
    Change(#[from] Error),

    /// A guard is active, on this thread or another. Its restore would undo the drop.
    #[error(
        "a guard is active, on this thread or another, and its restore would undo the drop; end \
         it first"
    )]
    GuardsActive,

    /// Some threads hold CAP_SETGID or could regain it, which no other thread can prevent.
    #[error(
        "the process has {threads} threads, and some hold or could regain CAP_SETGID, which \
         cannot be \
         removed from another thread; drop privileges before starting threads, or drop to another user \
         too, from user 0 with default securebits and an empty inheritable set"
    )]
    Multithreaded {
        /// The number of threads.
        threads: usize,
    },

    /// Another thread's ids or groups differ from the calling thread's, and a rollback would not
    /// restore them.
    #[error(
        "thread {thread_id} ({name}) has {finding} than the calling thread, and a failed drop would \
         not restore them; give all threads the same identity first, or drop before starting threads"
    )]
    ThreadDiffers {
        /// The other thread's id (`gettid(2)`).
        thread_id: u32,
        /// The other thread's name.
        name: String,
        /// The difference.
        finding: &'static str,
    },

    /// CAP_SETGID is held but not effective. It cannot be used, and would still be held after the
    /// drop.
    #[error(
        "CAP_SETGID is held but not effective, and would be kept; raise it into the effective \
         set first, or drop it"
    )]
    SetgidNotEffective,

    /// The drop is to another user, and CAP_SETUID is not effective on every thread.
    #[error(
        "cannot become user {user}: this requires CAP_SETUID in the effective set of every thread; \
         run as root, or leave the user out"
    )]
    MissingSetuid {
        /// The requested user.
        user: u32,
    },

    /// User 0 stays reachable, so CAP_SETGID must leave the bounding set, and CAP_SETPCAP is not
    /// effective.
    #[error(
        "user 0 stays reachable, and an exec as user 0 would regain CAP_SETGID: removing it from \
         the \
         bounding set requires CAP_SETPCAP; run with it, or drop to another user too"
    )]
    MissingSetpcap,

    /// `setgroups` is denied in this user namespace, so the supplementary groups cannot be dropped.
    #[error(
        "setgroups is denied in this user namespace (/proc/self/setgroups), so supplementary \
         groups \
         cannot be dropped"
    )]
    SetgroupsDenied,

    /// A kernel thread in this process, of an io_uring or of vhost, keeps the identity under which
    /// it was created.
    #[error(
        "thread {thread_id} is a kernel thread of an io_uring (or of vhost), which keeps its \
         groups; \
         close it first, and create it after the drop"
    )]
    KernelWorker {
        /// The thread's id.
        thread_id: u32,
    },

    /// The requested user has no mapping in this user namespace.
    #[error(
        "cannot become user {user}: not mapped in this user namespace; /proc/self/uid_map lists \
         the \
         mapped ids"
    )]
    UnmappedUid {
        /// The requested user.
        user: u32,
    },

    /// The drop could not be completed, or does not hold. **The process has neither its old nor its
    /// new identity: end it.**
    #[error("the permanent drop does not hold: {finding}; end the process")]
    StillPrivileged {
        /// The finding.
        finding: String,
    },
}

impl From<DropError> for io::Error {
    fn from(error: DropError) -> Self {
        let kind = match &error {
            DropError::Change(error) => error.kind(),
            DropError::GuardsActive | DropError::UnmappedUid { .. } => io::ErrorKind::InvalidInput,
            _ => io::ErrorKind::PermissionDenied,
        };
        io::Error::new(kind, error)
    }
}

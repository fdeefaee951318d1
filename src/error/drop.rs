//! The error of a permanent drop.

use std::fmt;
use std::io;
use std::path::PathBuf;

use rustix::thread::CapabilitySet;

use super::change::Error;
use super::errno::DisplayErrno;
use crate::capabilities::CapabilityNames;

/// An error from a permanent drop. Unless it is [`StillPrivileged`](DropError::StillPrivileged),
/// nothing is changed.
///
/// "Nothing is changed" covers the ids, supplementary groups, capability sets, root and working
/// directory of every thread. If a guard's `drop_permanently` returns such an error, the guard has
/// been dropped: its identity is restored, or the restore is deferred if inner guards are active.
///
/// It converts into [`io::Error`] with a kind that fits, for example `PermissionDenied`.
///
/// # Examples
/// ```
/// use privilege_guard::{DropError, Identity, PermanentDrop};
///
/// let daemon = PermanentDrop::to(&Identity::new(997, 997)).chroot("/no/such/directory");
/// match daemon.apply() {
///     Err(DropError::Chroot { directory, os_error }) => eprintln!("{}: {os_error}", directory.display()),
///     Err(error) => eprintln!("{error}"), // as an ordinary user
///     Ok(report) => eprintln!("{report}"),
/// }
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DropError {
    /// The drop failed with an error that a change of identity can also return.
    #[error(transparent)]
    Change(#[from] Error),

    /// A guard is active, on this thread or another. Its restore would undo the drop.
    #[error(
        "a guard is active, on this thread or another, and its restore would undo the drop; end \
         it first"
    )]
    GuardsActive,

    /// Some threads hold CAP_SETGID or could regain it, or hold capabilities that a drop to another
    /// user removes. No call removes them from another thread.
    #[error(
        "the process has {threads} threads, and some hold or could regain CAP_SETGID (or, in a \
         drop to \
         another user, any capability), which cannot be removed from another thread; drop privileges \
         before starting threads, or drop to another user too, from user 0 with default securebits and \
         an empty inheritable set"
    )]
    Multithreaded {
        /// The number of threads.
        threads: usize,
    },

    /// CAP_SETGID is held but not effective. It cannot be used, and would still be held after the
    /// drop.
    #[error(
        "CAP_SETGID is held but not effective, so the groups cannot be set; raise it into the \
         effective \
         set first, or drop it"
    )]
    SetgidNotEffective,

    /// The drop is to another user, and at least one thread lacks CAP_SETUID in its effective set.
    #[error(
        "cannot become user {user}: this requires CAP_SETUID in the effective set of every thread; \
         run as root, or leave the user out"
    )]
    MissingSetuid {
        /// The requested user.
        user: u32,
    },

    /// CAP_SETGID must leave the bounding set, because user 0 or CAP_SETPCAP stays available. This
    /// requires CAP_SETPCAP in the effective set.
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

    /// The process has other supplementary groups, and no CAP_SETGID to set those that are
    /// requested.
    #[error(
        "the supplementary groups are {current}, and {requested} are requested: setting them \
         requires \
         CAP_SETGID; start the program with those groups, run it as root, or accept the present ones \
         with .accept_supplementary()"
    )]
    SupplementaryDiffer {
        /// The requested groups.
        requested: String,
        /// The groups of the first thread that has others.
        current: String,
    },

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

    /// `no_new_privs` is requested, and another thread does not have it. Each thread sets its own.
    #[error(
        "no_new_privs is requested, and a call can set it on the calling thread only: thread \
         {thread_id} \
         ({name}) does not have it; drop privileges before starting threads, or set it \
         (PR_SET_NO_NEW_PRIVS) before starting them"
    )]
    NoNewPrivs {
        /// The other thread's id (`gettid(2)`).
        thread_id: u32,
        /// The other thread's name.
        name: String,
    },

    /// Some of the capabilities to keep cannot be kept.
    #[error("cannot keep {}: {reason}", CapabilityNames(*capabilities))]
    CannotKeep {
        /// Those that cannot be kept.
        capabilities: CapabilitySet,
        /// The reason.
        reason: CannotKeepReason,
    },

    /// The directory cannot become the root: there is none, it is no directory, or it may not be
    /// entered.
    #[error(
        "cannot change the root to {directory:?}: {}; name a directory that exists and that the \
         process may enter",
        DisplayErrno(os_error)
    )]
    Chroot {
        /// The requested root.
        directory: PathBuf,
        /// The kernel's answer.
        os_error: io::Error,
    },

    /// A new root is requested, and CAP_SYS_CHROOT is not effective.
    #[error(
        "cannot change the root to {directory:?}: this requires CAP_SYS_CHROOT in the effective \
         set; \
         run as root, or leave the root out"
    )]
    MissingSysChroot {
        /// The requested root.
        directory: PathBuf,
    },

    /// Another thread has a root or a working directory of its own, and would keep it.
    #[error(
        "cannot change the root to {directory:?}: thread {thread_id} ({name}) has a root or \
         working \
         directory of its own (after unshare(CLONE_FS)), and would keep it; drop privileges before \
         starting that thread"
    )]
    ThreadRoot {
        /// The requested root.
        directory: PathBuf,
        /// The other thread's id (`gettid(2)`).
        thread_id: u32,
        /// The other thread's name.
        name: String,
    },

    /// The drop could not be completed, or does not hold. **The process has neither its old nor its
    /// new identity: end it.**
    #[error("the permanent drop does not hold: {finding}; end the process")]
    StillPrivileged {
        /// The finding.
        finding: String,
    },
}

/// The reason why capabilities cannot be kept over a permanent drop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum CannotKeepReason {
    /// With them a process can regain other ids, capabilities or files, or leave its root.
    LeadBack,
    /// The drop is to no other user than 0, so all capabilities but CAP_SETGID stay anyway.
    NoOtherUser,
    /// The process has other threads, and a call changes the sets of the calling one only.
    Multithreaded,
    /// They are not in the effective set, and this library raises none.
    NotEffective,
}

impl fmt::Display for CannotKeepReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::LeadBack => {
                "a process can regain ids, capabilities, files or its root with it; do what \
                 requires it \
                 before the drop, and keep the descriptors"
            }
            Self::NoOtherUser => {
                "the drop is to no user other than 0, so capabilities other than CAP_SETGID stay; \
                 drop to another user too, or name none"
            }
            Self::Multithreaded => {
                "the process has other threads, which would lose it: no call gives capabilities to \
                 another thread; drop privileges before starting threads"
            }
            Self::NotEffective => {
                "it is not in the effective set; raise it first, or run the program with it"
            }
        })
    }
}

impl From<DropError> for io::Error {
    fn from(error: DropError) -> Self {
        let kind = match &error {
            DropError::Change(error) => error.kind(),
            DropError::Chroot { os_error, .. } => os_error.kind(),
            DropError::GuardsActive | DropError::UnmappedUid { .. } => io::ErrorKind::InvalidInput,
            DropError::CannotKeep { reason, .. } if *reason != CannotKeepReason::NotEffective => {
                io::ErrorKind::InvalidInput
            }
            _ => io::ErrorKind::PermissionDenied,
        };
        io::Error::new(kind, error)
    }
}

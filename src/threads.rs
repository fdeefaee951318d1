//! The audit: what the kernel says of every thread.

use std::fmt;

use procfs::process::{Process, Status};
use rustix::thread::CapabilitySet;

use crate::error::Error;
use crate::ids::{Gid, GroupIds};

/// What one thread of this process is at the moment it was read, as `/proc/self/task/<tid>/status` shows it (`proc(5)`).
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ThreadIds {
    /// The thread's id (`gettid(2)`).
    pub thread_id: u32,
    /// Its name, of at most 15 bytes.
    pub name: String,
    /// Its group IDs.
    pub ids: GroupIds,
    /// Its supplementary groups.
    pub supplementary: Vec<Gid>,
    /// Whether CAP_SETGID is in its permitted, inheritable or ambient set: held, though maybe not effective.
    pub holds_setgid: bool,
    /// Whether it is a kernel thread of an io_uring (`iou-*`), which keeps the identity it was made under and which no call changes.
    pub is_io_uring: bool,
}

impl fmt::Display for ThreadIds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ThreadIds { thread_id, name, ids, supplementary, .. } = self;
        write!(f, "thread {thread_id} ({name}): {ids}, {} supplementary groups", supplementary.len())?;
        f.write_str(if self.holds_setgid { ", holds CAP_SETGID" } else { "" })?;
        f.write_str(if self.is_io_uring { ", of an io_uring" } else { "" })
    }
}

/// Reads every thread of this process; threads that start or end meanwhile may be missing.
///
/// # Errors
/// [`Error::Proc`] where `/proc` is not there or cannot be read.
///
/// # Examples
/// ```
/// for thread in privilege_guard::threads()? {
///     println!("{thread}");
/// }
/// # Ok::<(), privilege_guard::Error>(())
/// ```
pub fn threads() -> Result<Vec<ThreadIds>, Error> {
    Ok(statuses()?.into_iter().map(ThreadIds::from).collect())
}

pub(crate) fn statuses() -> Result<Vec<Status>, Error> {
    let unreadable = |error| Error::Proc { source: std::io::Error::other(error) };
    let tasks = Process::myself().and_then(|process| process.tasks()).map_err(unreadable)?;
    // A thread that ended since it was listed is none any more.
    let statuses = tasks.map(|task| task.and_then(|task| task.status())).filter(|status| !matches!(status, Err(error) if has_ended(error)));
    let statuses = statuses.collect::<Result<Vec<_>, _>>().map_err(unreadable)?;
    Ok(statuses)
}

fn has_ended(error: &procfs::ProcError) -> bool {
    match error {
        procfs::ProcError::NotFound(_) => true,
        // ESRCH: the file was opened before the thread ended.
        procfs::ProcError::Io(error, _) => error.raw_os_error() == Some(3),
        _ => false,
    }
}

pub(crate) fn holds_setgid(status: &Status) -> bool {
    (status.capprm | status.capinh | status.capamb.unwrap_or(0)) & CapabilitySet::SETGID.bits() != 0
}

pub(crate) fn is_io_uring(status: &Status) -> bool {
    status.name.starts_with("iou-")
}

impl From<Status> for ThreadIds {
    fn from(status: Status) -> Self {
        ThreadIds {
            thread_id: status.pid.unsigned_abs(),
            ids: GroupIds {
                real: status.rgid.into(),
                effective: status.egid.into(),
                saved: status.sgid.into(),
                filesystem: status.fgid.into(),
            },
            supplementary: status.groups.iter().copied().map(Gid::from).collect(),
            holds_setgid: holds_setgid(&status),
            is_io_uring: is_io_uring(&status),
            name: status.name,
        }
    }
}

//! The audit: what the kernel says of every thread.

use std::{fmt, fs, io};

use procfs::process::{Process, Stat, Status};
use procfs::{FromBufRead, FromRead, ProcError};
use rustix::thread::CapabilitySet;

use crate::error::Error;
use crate::ids::{Gid, GroupIds};

/// What one thread of this process is at the moment it was read, as `/proc/self/task/<tid>/status` shows it (`proc(5)`).
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ThreadIds {
    /// The thread's id (`gettid(2)`).
    pub thread_id: u32,
    /// Its name, of at most 15 bytes; what is not UTF-8 is replaced.
    pub name: String,
    /// Its group IDs.
    pub ids: GroupIds,
    /// Its supplementary groups.
    pub supplementary: Vec<Gid>,
    /// Whether CAP_SETGID is in its permitted, inheritable or ambient set: held, though maybe not effective.
    pub holds_setgid: bool,
    /// Whether it is a kernel thread of an io_uring (`iou-sqp-*`, `iou-wrk-*`), which keeps the identity it was made under and which no call changes.
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

/// Reads every thread of this process, the calling one first; threads that start or end meanwhile may be missing.
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
    Ok(all()?.into_iter().map(ThreadIds::from).collect())
}

/// What the kernel says of one thread.
#[derive(Debug)]
pub(crate) struct Seen {
    pub(crate) status: Status,
    pub(crate) name: String,
    pub(crate) is_io_uring: bool,
}

/// Of a thread that the kernel made for an io_uring (include/linux/sched.h). Its name is no sign: it gets that later, and any thread may have it.
const PF_IO_WORKER: u32 = 0x10;

/// Every thread of this process, the calling one first.
pub(crate) fn all() -> Result<Vec<Seen>, Error> {
    let unreadable = |error| Error::Proc { source: io::Error::other(error) };
    let tasks = Process::myself().and_then(|process| process.tasks()).map_err(unreadable)?;
    // A thread that has ended is none any more, also the main thread, which is shown until the process ends.
    let is_over = |seen: &Result<Seen, ProcError>| match seen {
        Ok(seen) => seen.status.state.starts_with(['Z', 'X']),
        Err(error) => has_ended(error),
    };
    let seen = tasks.map(|task| task.and_then(|task| see(task.tid))).filter(|seen| !is_over(seen));
    let mut seen = seen.collect::<Result<Vec<_>, _>>().map_err(unreadable)?;
    let caller = rustix::thread::gettid().as_raw_nonzero().get();
    match seen.iter().position(|seen| seen.status.pid == caller) {
        Some(index) => seen.swap(0, index),
        // Threads of another process, or under other numbers: a /proc of another pid namespace.
        None => {
            return Err(Error::Proc {
                source: io::Error::other("/proc does not show the calling thread (that of another pid namespace?)"),
            });
        }
    }
    Ok(seen)
}

fn see(thread: i32) -> Result<Seen, ProcError> {
    // As bytes: these files show the name, which may be of any.
    let read = |file| fs::read(format!("/proc/self/task/{thread}/{file}")).map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    let status = Status::from_buf_read(read("status")?.as_bytes())?;
    let flags = Stat::from_read(read("stat")?.as_bytes())?.flags;
    Ok(Seen { name: thread_name(status.pid.unsigned_abs())?, status, is_io_uring: flags & PF_IO_WORKER != 0 })
}

/// A name is cut after 15 bytes, also within a letter.
pub(crate) fn thread_name(thread: u32) -> io::Result<String> {
    let name = fs::read(format!("/proc/self/task/{thread}/comm"))?;
    Ok(String::from_utf8_lossy(&name).trim_end_matches('\n').to_owned())
}

fn has_ended(error: &ProcError) -> bool {
    match error {
        ProcError::NotFound(_) => true,
        // ESRCH: the file was opened before the thread ended.
        ProcError::Io(error, _) => error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(3),
        _ => false,
    }
}

pub(crate) fn holds_setgid(status: &Status) -> bool {
    (status.capprm | status.capinh | status.capamb.unwrap_or(0)) & CapabilitySet::SETGID.bits() != 0
}

impl From<Seen> for ThreadIds {
    fn from(Seen { status, name, is_io_uring }: Seen) -> Self {
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
            is_io_uring,
            name,
        }
    }
}

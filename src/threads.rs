//! The audit: what the kernel says of every thread.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::os::unix::fs::DirEntryExt;
use std::{fmt, fs, io};

use nix::errno::Errno;
use nix::sys::statfs::{PROC_SUPER_MAGIC, statfs};
use nix::unistd;
use procfs::process::{Stat, Status};
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
    /// Whether it is a kernel thread that was put into this process, for an io_uring (`iou-sqp-*`, `iou-wrk-*`) or, since Linux 6.4, for vhost:
    /// it keeps the identity that it was made under, and no call changes it.
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

/// Reads every thread of this process, the calling one first; only threads that start or end meanwhile may be missing.
///
/// # Errors
/// [`Error::Proc`] where `/proc` is not there or cannot be read, or where threads start and end faster than it can be.
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

/// Of a thread that the kernel put into the process: PF_IO_WORKER (0x10) or PF_USER_WORKER (0x4000, include/linux/sched.h). Its name is no
/// sign: it gets that later, and any thread may have it.
const KERNEL_THREAD: u32 = 0x4010;

/// How often the threads are listed before they come and go too fast.
const TRIES: u32 = 1000;

/// Every thread of this process, the calling one first.
///
/// All that there were at one moment had been read by then. What a thread is it hands on to those that it starts: so none is missed by being
/// started, and gone again, in between.
pub(crate) fn all() -> Result<Vec<Seen>, Error> {
    let unreadable = |source| Error::Proc { source };
    if statfs("/proc/thread-self").map_err(|errno| unreadable(errno.into()))?.filesystem_type() != PROC_SUPER_MAGIC {
        return Err(unreadable(io::Error::other("what is mounted there is no procfs")));
    }
    let mut read = HashMap::new();
    for _ in 0..TRIES {
        let Some(listed) = list().map_err(unreadable)? else { continue };
        let is_known = listed.iter().all(|thread| read.contains_key(thread));
        read.retain(|thread, _| listed.contains(thread));
        if is_known {
            return caller_first(read.into_values().collect()).map_err(unreadable);
        }
        for thread in listed {
            if let Entry::Vacant(unread) = read.entry(thread) {
                match see(&unread.key().0) {
                    Ok(seen) => _ = unread.insert(seen),
                    Err(error) if has_ended(&error) => {}
                    Err(error) => return Err(unreadable(io::Error::other(error))),
                }
            }
        }
    }
    Err(unreadable(io::Error::other(format!("threads started or ended each of the {TRIES} times that they were listed"))))
}

/// The id of a thread and the number of its folder's inode, which another thread of this id does not have.
type Listed = (String, u64);

/// All threads that there were at some moment; `None` where one may be missing. The kernel goes on in its list by position, and skips a thread
/// where one before it ends.
fn list() -> io::Result<Option<Vec<Listed>>> {
    let listed =
        fs::read_dir("/proc/self/task")?.map(|entry| entry.map(|entry| (entry.file_name().to_string_lossy().into_owned(), entry.ino())));
    let listed = listed.collect::<io::Result<Vec<_>>>()?;
    let now = status("/proc/thread-self/status").map_err(io::Error::other)?;
    if now.pid != caller() {
        return Err(io::Error::other("/proc shows the calling thread under another number (that of another pid namespace?)"));
    }
    // Those that are still there were there when they were counted; as many as were counted are all that there were.
    let still_there = listed.iter().filter(|(thread, _)| fs::exists(folder(thread)).unwrap_or(false));
    let is_complete = still_there.count() as u64 >= now.threads;
    Ok(is_complete.then_some(listed))
}

fn caller_first(mut threads: Vec<Seen>) -> io::Result<Vec<Seen>> {
    // The main thread is shown after its end, until that of the process.
    threads.retain(|thread| !thread.status.state.starts_with(['Z', 'X']));
    threads.sort_unstable_by_key(|thread| (thread.status.pid != caller(), thread.status.pid));
    match threads.first() {
        Some(first) if first.status.pid == caller() => Ok(threads),
        _ => Err(io::Error::other("/proc does not show the calling thread")),
    }
}

fn caller() -> i32 {
    unistd::gettid().as_raw()
}

fn folder(thread: &str) -> String {
    format!("/proc/self/task/{thread}")
}

fn see(thread: &str) -> Result<Seen, ProcError> {
    let folder = folder(thread);
    let flags = Stat::from_read(read(&format!("{folder}/stat"))?.as_bytes())?.flags;
    Ok(Seen { status: status(&format!("{folder}/status"))?, name: name_in(&folder)?, is_io_uring: flags & KERNEL_THREAD != 0 })
}

fn status(path: &str) -> Result<Status, ProcError> {
    Status::from_buf_read(read(path)?.as_bytes())
}

/// As bytes: these files show the name, which may be of any.
fn read(path: &str) -> io::Result<String> {
    Ok(String::from_utf8_lossy(&fs::read(path)?).into_owned())
}

pub(crate) fn thread_name(thread: u32) -> io::Result<String> {
    name_in(&folder(&thread.to_string()))
}

/// A name is cut after 15 bytes, also within a letter.
fn name_in(folder: &str) -> io::Result<String> {
    Ok(read(&format!("{folder}/comm"))?.trim_end_matches('\n').to_owned())
}

fn has_ended(error: &ProcError) -> bool {
    match error {
        ProcError::NotFound(_) => true,
        // ESRCH: the file was opened before the thread ended.
        ProcError::Io(error, _) => error.raw_os_error() == Some(Errno::ESRCH as i32),
        _ => false,
    }
}

impl Seen {
    /// The supplementary groups.
    pub(crate) fn groups(&self) -> Vec<Gid> {
        self.status.groups.iter().copied().map(Gid::from).collect()
    }
}

pub(crate) fn holds_setgid(status: &Status) -> bool {
    (status.capprm | status.capinh | status.capamb.unwrap_or(0)) & CapabilitySet::SETGID.bits() != 0
}

impl From<Seen> for ThreadIds {
    fn from(seen: Seen) -> Self {
        let supplementary = seen.groups();
        let Seen { status, name, is_io_uring } = seen;
        ThreadIds {
            thread_id: status.pid.unsigned_abs(),
            ids: GroupIds {
                real: status.rgid.into(),
                effective: status.egid.into(),
                saved: status.sgid.into(),
                filesystem: status.fgid.into(),
            },
            supplementary,
            holds_setgid: holds_setgid(&status),
            is_io_uring,
            name,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_not_there_has_ended() {
        for (errno, over) in [(Errno::ENOENT, true), (Errno::ESRCH, true), (Errno::EIO, false), (Errno::EACCES, false)] {
            assert_eq!(has_ended(&io::Error::from(errno).into()), over, "{errno}");
        }
        assert!(!has_ended(&ProcError::Other("a status without a Gid".into())));
    }
}

//! The threads of this process, as `/proc/self/task` shows them (`proc(5)`).

use std::cell::RefCell;
use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};
use std::{fmt, io};

use nix::errno::Errno;
use procfs::process::{Stat, Status};
use procfs::{FromBufRead, FromRead, ProcError};
use rustix::fs::{AtFlags, Mode, OFlags, PROC_SUPER_MAGIC, RawDir, SeekFrom};
use rustix::thread::CapabilitySet;

use crate::error::Error;
use crate::ids::{Gid, GroupIds, Ids, Uid, UserIds};

/// The identity of one thread at the moment it was read (`/proc/self/task/<tid>/status`).
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ThreadIds {
    /// The thread's id (`gettid(2)`).
    pub thread_id: u32,
    /// Its name, at most 15 bytes long. Bytes that are not UTF-8 are replaced.
    pub name: String,
    /// Its user IDs.
    pub user_ids: UserIds,
    /// Its group IDs.
    pub group_ids: GroupIds,
    /// Its supplementary groups.
    pub supplementary: Vec<Gid>,
    /// Its effective capabilities, which it can use.
    pub effective: CapabilitySet,
    /// Its permitted capabilities, which it can make effective.
    pub permitted: CapabilitySet,
    /// Its inheritable capabilities.
    pub inheritable: CapabilitySet,
    /// Its ambient capabilities, which a program that it executes is given.
    pub ambient: CapabilitySet,
    /// Its bounding set, which limits what an executed program is given.
    pub bounding: CapabilitySet,
    /// Whether it is a kernel thread in this process: of an io_uring (`iou-sqp-*`, `iou-wrk-*`) or,
    /// since Linux 6.4, of vhost. No call changes its identity.
    pub is_kernel_worker: bool,
    /// Whether it has `no_new_privs`.
    pub no_new_privs: bool,
}

impl ThreadIds {
    /// Returns whether one of these capabilities is held: permitted, inheritable or ambient.
    pub fn holds(&self, capabilities: CapabilitySet) -> bool {
        (self.permitted | self.inheritable | self.ambient).intersects(capabilities)
    }
}

impl fmt::Display for ThreadIds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ThreadIds {
            thread_id,
            name,
            user_ids,
            group_ids,
            supplementary,
            ..
        } = self;
        write!(
            f,
            "thread {thread_id} ({name}): user ids {user_ids}; group ids {group_ids}; "
        )?;
        write!(f, "{} supplementary groups", supplementary.len())?;
        for (capability, text) in [
            (CapabilitySet::SETUID, "; holds CAP_SETUID"),
            (CapabilitySet::SETGID, "; holds CAP_SETGID"),
        ] {
            f.write_str(if self.holds(capability) { text } else { "" })?;
        }
        f.write_str(if self.is_kernel_worker {
            "; a kernel worker"
        } else {
            ""
        })
    }
}

/// Reads every thread of this process, the calling thread first.
///
/// Threads that are ending are left out: they run no more code of the process.
///
/// # Errors
/// - [`Error::ThreadsUnreadable`] if `/proc` cannot be read, or if threads start and end faster than
///   they can be read.
///
/// # Examples
/// ```
/// for thread in privilege_guard::threads()? {
///     println!("{thread}");
/// }
/// # Ok::<(), privilege_guard::Error>(())
/// ```
pub fn threads() -> Result<Vec<ThreadIds>, Error> {
    let unreadable = |os_error| Error::ThreadsUnreadable { os_error };
    TaskDir::open()
        .and_then(|tasks| tasks.read_all())
        .map_err(unreadable)
}

/// Flags of a thread that the kernel put into the process: PF_IO_WORKER and, since Linux 6.4,
/// PF_USER_WORKER (include/linux/sched.h). Its name is no sign: any thread can have it.
const PF_KERNEL_WORKER: u32 = 0x10 | 0x4000;

/// A thread that is ending and will not return to user space.
const PF_EXITING: u32 = 0x4;

/// How often the threads are listed before this gives up.
const MAX_ATTEMPTS: u32 = 1000;

/// How long a thread may show other ids than expected, since libc skips threads that are ending.
const EXITING_THREAD_TIMEOUT: Duration = Duration::from_secs(1);

/// How long to look for a moment at which all threads can be listed.
const LISTING_TIMEOUT: Duration = Duration::from_secs(10);

/// A directory entry: the thread's id, and the number of its inode, which no other thread with this
/// id has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct ThreadKey {
    thread_id: u32,
    inode: u64,
}

/// What every thread must be.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Expected<'a> {
    pub(crate) user_ids: Option<UserIds>,
    pub(crate) group_ids: Option<GroupIds>,
    /// Sorted, as the kernel keeps them.
    pub(crate) groups: Option<&'a [Gid]>,
    /// The effective ids tell of all: one call set them, and it moved them.
    pub(crate) effective_suffices: bool,
}

/// A thread that is not as expected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mismatch {
    pub(crate) thread_id: u32,
    pub(crate) name: String,
    pub(crate) finding: &'static str,
}

/// One thread that could be read, or not.
enum Looked<T> {
    Found(T),
    /// It has ended, or is ending.
    Gone,
}

/// `/proc/self/task`, opened once. It stays readable after a `chroot`, and if descriptors are used up.
#[derive(Debug)]
pub(crate) struct TaskDir {
    directory: OwnedFd,
    device: u64,
    /// The process that it shows: not that of a forked child.
    process: u32,
    /// Closed to open a file if all descriptors are used up.
    spare: RefCell<Option<OwnedFd>>,
    entries: RefCell<Vec<MaybeUninit<u8>>>,
}

impl TaskDir {
    pub(crate) fn open() -> io::Result<Self> {
        Self::open_at(rustix::fs::CWD, "/proc/self/task")
    }

    /// Opens the directory of the calling process, a forked child of the one that this shows.
    ///
    /// The path leads out of a `chroot` that was entered meanwhile.
    pub(crate) fn of_forked_child(&self) -> io::Result<Self> {
        self.spare.take();
        Self::open_at(self.directory.as_fd(), "../../self/task")
    }

    fn open_at(base: BorrowedFd<'_>, path: &str) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = rustix::fs::openat(base, path, flags, Mode::empty())?;
        expect_procfs(&directory)?;
        let device = rustix::fs::fstat(&directory)?.st_dev;
        let process = std::process::id();
        #[allow(
            clippy::useless_conversion,
            reason = "not 64 bits wide on every target"
        )]
        let device = device.into();
        Ok(TaskDir {
            directory,
            device,
            process,
            spare: RefCell::default(),
            entries: RefCell::default(),
        })
    }

    /// Returns whether this shows the threads of the calling process: not in a forked child.
    pub(crate) fn is_of_this_process(&self) -> bool {
        self.process == std::process::id()
    }

    /// Returns the open directory, for the other files of a thread.
    pub(super) fn directory(&self) -> BorrowedFd<'_> {
        self.directory.as_fd()
    }

    /// Reserves a descriptor, for files that have to be read although all are used up by then.
    pub(crate) fn reserve(&self) {
        self.spare.replace(self.directory.try_clone().ok());
    }

    /// Returns the number of threads, ending ones included (`st_nlink`; proc_task_getattr in
    /// fs/proc/base.c).
    pub(crate) fn count(&self) -> io::Result<u64> {
        #[allow(
            clippy::useless_conversion,
            reason = "not 64 bits wide on every target"
        )]
        let links: u64 = rustix::fs::fstat(&self.directory)?.st_nlink.into();
        Ok(links.saturating_sub(2))
    }

    /// Returns the first thread that is not as expected, and stays so for [`EXITING_THREAD_TIMEOUT`].
    ///
    /// The cost with one thread is one system call.
    pub(crate) fn find_mismatch(&self, expected: &Expected<'_>) -> io::Result<Option<Mismatch>> {
        let started = Instant::now();
        let mut settled = HashSet::new();
        loop {
            if self.count()? == 1 {
                return Ok(None);
            }
            let listed = self.list()?;
            let count = self.count()?;
            let (mut existing, mut mismatch, mut has_ended_some) = (0, None, false);
            for &key in &listed {
                let exists = if settled.contains(&key) {
                    self.exists(key)?
                } else {
                    match self.compare(key, expected)? {
                        Looked::Found(None) => settled.insert(key),
                        Looked::Found(Some(found)) => {
                            mismatch.get_or_insert(found);
                            true
                        }
                        // It might have started a thread that is not in this list.
                        Looked::Gone => {
                            has_ended_some = settled.insert(key);
                            self.exists(key)?
                        }
                    }
                };
                existing += u64::from(exists);
            }
            // The kernel goes through its list by position, and skips a thread if one before it
            // ends. As many as were counted, and are still there, are all that there were.
            let is_complete = existing >= count && !has_ended_some;
            let timeout = if mismatch.is_some() {
                EXITING_THREAD_TIMEOUT
            } else {
                LISTING_TIMEOUT
            };
            match mismatch {
                None if is_complete => return Ok(None),
                _ if started.elapsed() < timeout => std::thread::sleep(Duration::from_micros(50)),
                Some(mismatch) => return Ok(Some(mismatch)),
                None => return Err(too_fast()),
            }
        }
    }

    fn compare(
        &self,
        key: ThreadKey,
        expected: &Expected<'_>,
    ) -> io::Result<Looked<Option<Mismatch>>> {
        let finding = if expected.effective_suffices {
            match self.owner(key)? {
                Looked::Gone => return Ok(Looked::Gone),
                Looked::Found((uid, gid)) => {
                    let user = expected.user_ids.is_some_and(|ids| ids.effective != uid);
                    let group = expected.group_ids.is_some_and(|ids| ids.effective != gid);
                    first_finding(user, group, false)
                }
            }
        } else {
            match self.status(key)? {
                Looked::Gone => return Ok(Looked::Gone),
                Looked::Found(status) => {
                    let user = expected
                        .user_ids
                        .is_some_and(|ids| differ(user_ids(&status), ids));
                    let group = expected
                        .group_ids
                        .is_some_and(|ids| differ(group_ids(&status), ids));
                    let groups = expected
                        .groups
                        .is_some_and(|groups| !has_groups(&status, groups));
                    first_finding(user, group, groups)
                }
            }
        };
        let Some(finding) = finding else {
            return Ok(Looked::Found(None));
        };
        match self.flags(key)? {
            None => Ok(Looked::Gone),
            Some(flags) if flags & PF_KERNEL_WORKER != 0 => Ok(Looked::Found(None)),
            Some(_) => {
                let name = self.name(key.thread_id).unwrap_or_default();
                Ok(Looked::Found(Some(Mismatch {
                    thread_id: key.thread_id,
                    name,
                    finding,
                })))
            }
        }
    }

    /// Reads every thread, the calling one first, without those that are ending.
    ///
    /// The result covers every thread that existed at the last listing. A thread inherits its
    /// credentials, so one that started and ended in between cannot have hidden different ones.
    pub(crate) fn read_all(&self) -> io::Result<Vec<ThreadIds>> {
        let mut read = HashMap::new();
        for _ in 0..MAX_ATTEMPTS {
            let listed = self.list()?;
            let count = self.count()?;
            let mut existing = 0;
            for &key in &listed {
                existing += u64::from(self.exists(key)?);
            }
            if existing < count {
                continue;
            }
            let is_known = listed.iter().all(|key| read.contains_key(key));
            read.retain(|key, _| listed.contains(key));
            if is_known {
                return caller_first(read.into_values().flatten().collect());
            }
            for key in listed {
                if let Entry::Vacant(unread) = read.entry(key) {
                    if let Looked::Found(thread) = self.read_thread(key)? {
                        unread.insert(Some(thread));
                    } else if self.exists(key)? {
                        // It stays listed for a while, as an ended main thread does.
                        unread.insert(None);
                    }
                }
            }
        }
        Err(too_fast())
    }

    fn read_thread(&self, key: ThreadKey) -> io::Result<Looked<ThreadIds>> {
        let Some(flags) = self.flags(key)? else {
            return Ok(Looked::Gone);
        };
        let Looked::Found(status) = self.status(key)? else {
            return Ok(Looked::Gone);
        };
        let name = match self.name(key.thread_id) {
            Err(error) if has_exited(&error) => return Ok(Looked::Gone),
            name => name?,
        };
        let set = CapabilitySet::from_bits_retain;
        Ok(Looked::Found(ThreadIds {
            thread_id: key.thread_id,
            name,
            user_ids: user_ids(&status),
            group_ids: group_ids(&status),
            supplementary: status.groups.iter().copied().map(Gid::from).collect(),
            effective: set(status.capeff),
            permitted: set(status.capprm),
            inheritable: set(status.capinh),
            ambient: set(status.capamb.unwrap_or(0)),
            // A kernel that does not show it might have it all.
            bounding: set(status.capbnd.unwrap_or(u64::MAX)),
            is_kernel_worker: flags & PF_KERNEL_WORKER != 0,
            no_new_privs: status.nonewprivs == Some(1),
        }))
    }

    fn list(&self) -> io::Result<Vec<ThreadKey>> {
        const BYTES: usize = 32 * 1024;

        rustix::fs::seek(&self.directory, SeekFrom::Start(0))?;
        let mut buffer = self.entries.borrow_mut();
        buffer.resize(BYTES, MaybeUninit::uninit());
        let mut directory = RawDir::new(self.directory.as_fd(), &mut buffer[..]);
        let mut listed = Vec::new();
        while let Some(entry) = directory.next() {
            let entry = entry?;
            if let Ok(thread_id) = entry.file_name().to_string_lossy().parse() {
                listed.push(ThreadKey {
                    thread_id,
                    inode: entry.ino(),
                });
            }
        }
        Ok(listed)
    }

    /// Returns the effective ids of a thread: the owner of its directory, dumpable or not
    /// (task_dump_owner in fs/proc/base.c).
    fn owner(&self, key: ThreadKey) -> io::Result<Looked<(Uid, Gid)>> {
        let name = key.thread_id.to_string();
        match rustix::fs::statat(&self.directory, name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(error) if has_exited(&error.into()) => Ok(Looked::Gone),
            Err(error) => Err(error.into()),
            #[allow(
                clippy::useless_conversion,
                reason = "not 64 bits wide on every target"
            )]
            Ok(stat) => {
                let (device, inode): (u64, u64) = (stat.st_dev.into(), stat.st_ino.into());
                if device != self.device {
                    return Err(io::Error::other(
                        "something is mounted over a thread's directory",
                    ));
                }
                if inode != key.inode {
                    return Ok(Looked::Gone);
                }
                Ok(Looked::Found((
                    Uid::from_raw(stat.st_uid),
                    Gid::from_raw(stat.st_gid),
                )))
            }
        }
    }

    fn exists(&self, key: ThreadKey) -> io::Result<bool> {
        Ok(matches!(self.owner(key)?, Looked::Found(_)))
    }

    fn status(&self, key: ThreadKey) -> io::Result<Looked<Status>> {
        let text = match self.read(key.thread_id, "status") {
            Err(error) if has_exited(&error) => return Ok(Looked::Gone),
            text => text?,
        };
        let status = Status::from_buf_read(text.as_bytes()).map_err(parse_error)?;
        if status.pid.unsigned_abs() != key.thread_id {
            return Err(io::Error::other(
                "/proc shows a thread under another thread's number",
            ));
        }
        Ok(if status.state.starts_with(['Z', 'X']) {
            Looked::Gone
        } else {
            Looked::Found(status)
        })
    }

    /// Returns the flags of a thread, or `None` if it has ended or is ending.
    fn flags(&self, key: ThreadKey) -> io::Result<Option<u32>> {
        let text = match self.read(key.thread_id, "stat") {
            Err(error) if has_exited(&error) => return Ok(None),
            text => text?,
        };
        let stat = Stat::from_read(text.as_bytes()).map_err(parse_error)?;
        let is_ending = stat.flags & PF_EXITING != 0 || ['Z', 'X'].contains(&stat.state);
        Ok(Some(stat.flags).filter(|_| !is_ending))
    }

    fn name(&self, thread_id: u32) -> io::Result<String> {
        Ok(self
            .read(thread_id, "comm")?
            .trim_end_matches('\n')
            .to_owned())
    }

    /// Reads a file. A thread's name may be any bytes, and two of these files show it.
    fn read(&self, thread_id: u32, file: &str) -> io::Result<String> {
        let path = format!("{thread_id}/{file}");
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let open = || rustix::fs::openat(&self.directory, &*path, flags, Mode::empty());
        let mut borrowed_spare = false;
        let file = match open() {
            Err(rustix::io::Errno::MFILE | rustix::io::Errno::NFILE) => {
                borrowed_spare = self.spare.take().is_some();
                open()
            }
            opened => opened,
        }?;
        // Not a file that was mounted there.
        expect_procfs(&file)?;
        let mut text = Vec::new();
        let mut file = std::fs::File::from(file);
        io::Read::read_to_end(&mut file, &mut text)?;
        drop(file);
        if borrowed_spare {
            self.reserve();
        }
        Ok(String::from_utf8_lossy(&text).into_owned())
    }
}

/// The filesystem id is not compared: the calls for all threads make it the effective one, and the
/// calling thread may have another one.
fn differ<I: Copy + Eq>(shown: Ids<I>, expected: Ids<I>) -> bool {
    let [real, effective, saved, _] = expected.to_array();
    [shown.real, shown.effective, shown.saved] != [real, effective, saved]
}

fn first_finding(user: bool, group: bool, groups: bool) -> Option<&'static str> {
    let findings = [
        (user, "has other user ids"),
        (group, "has other group ids"),
        (groups, "has other supplementary groups"),
    ];
    findings
        .into_iter()
        .find_map(|(is_so, finding)| is_so.then_some(finding))
}

fn has_groups(status: &Status, sorted: &[Gid]) -> bool {
    // The kernel shows them sorted.
    status.groups.len() == sorted.len()
        && status
            .groups
            .iter()
            .zip(sorted)
            .all(|(&shown, gid)| Gid::from_raw(shown) == *gid)
}

fn user_ids(status: &Status) -> UserIds {
    let ids = Ids {
        real: status.ruid,
        effective: status.euid,
        saved: status.suid,
        filesystem: status.fuid,
    };
    ids.map(Uid::from_raw)
}

fn group_ids(status: &Status) -> GroupIds {
    let ids = Ids {
        real: status.rgid,
        effective: status.egid,
        saved: status.sgid,
        filesystem: status.fgid,
    };
    ids.map(Gid::from_raw)
}

fn caller_first(mut threads: Vec<ThreadIds>) -> io::Result<Vec<ThreadIds>> {
    let caller = current_tid();
    threads.sort_unstable_by_key(|thread| (thread.thread_id != caller, thread.thread_id));
    match threads.first() {
        Some(first) if first.thread_id == caller => Ok(threads),
        _ => Err(io::Error::other(
            "/proc does not show the calling thread (is it that of another pid namespace?)",
        )),
    }
}

/// Returns the calling thread's id. It is not cached: a forked child has another one.
pub(crate) fn current_tid() -> u32 {
    nix::unistd::gettid().as_raw().unsigned_abs()
}

/// Returns the name of a thread of this process.
pub(crate) fn thread_name(thread_id: u32) -> Option<String> {
    TaskDir::open().and_then(|tasks| tasks.name(thread_id)).ok()
}

fn expect_procfs(file: &OwnedFd) -> io::Result<()> {
    #[allow(clippy::unnecessary_cast, reason = "not the same type on every target")]
    let is_procfs = rustix::fs::fstatfs(file)?.f_type as u64 == PROC_SUPER_MAGIC as u64;
    if is_procfs {
        Ok(())
    } else {
        Err(io::Error::other(
            "the file system mounted there is no procfs",
        ))
    }
}

pub(super) fn has_exited(error: &io::Error) -> bool {
    // ESRCH: the file was opened before the thread ended.
    let errno = error.raw_os_error();
    errno == Some(Errno::ENOENT as i32) || errno == Some(Errno::ESRCH as i32)
}

fn parse_error(error: ProcError) -> io::Error {
    io::Error::other(error)
}

pub(super) fn too_fast() -> io::Error {
    io::Error::other("threads start and end faster than they can be read")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_missing_thread_has_exited() {
        for (errno, exited) in [
            (Errno::ENOENT, true),
            (Errno::ESRCH, true),
            (Errno::EIO, false),
            (Errno::EACCES, false),
        ] {
            assert_eq!(has_exited(&io::Error::from(errno)), exited, "{errno}");
        }
    }

    #[test]
    fn the_calling_thread_comes_first() {
        let threads = TaskDir::open().unwrap().read_all().unwrap();
        assert_eq!(threads[0].thread_id, current_tid());
    }
}

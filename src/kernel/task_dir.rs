//! `/proc/self/task`: the list of threads, and the contents of their files (`proc(5)`).

use std::cell::RefCell;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::string::FromUtf8Error;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use rustix::fs::{AtFlags, Mode, OFlags, PROC_SUPER_MAGIC, RawDir, SeekFrom};
use rustix::path::DecInt;

use super::status::{Stat, Status};
use crate::ids::{Gid, Uid};

const PATH: &str = "/proc/self/task";

/// Flags of a thread that the kernel put into the process: PF_IO_WORKER and, since Linux 6.4,
/// PF_USER_WORKER (include/linux/sched.h). Its name is no sign: any thread can have it.
const PF_KERNEL_WORKER: u32 = 0x10 | 0x4000;

/// A thread that is ending and will not return to user space.
const PF_EXITING: u32 = 0x4;

/// How long to wait for a descriptor if all are used up.
const DESCRIPTOR_TIMEOUT: Duration = Duration::from_secs(1);

/// A directory entry: the thread's id, and the number of its inode, which no other thread with this
/// id has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct ThreadKey {
    pub(super) thread_id: u32,
    inode: u64,
}

/// One thread that could be read, or not.
pub(super) enum ThreadRead<T> {
    Found(T),
    /// It has ended, or is ending.
    Gone,
}

/// `/proc/self/task`, opened once. It stays readable after a `chroot`, and if descriptors are used
/// up.
#[derive(Debug)]
pub(crate) struct TaskDir {
    directory: OwnedFd,
    device: u64,
    /// The process that it shows: not that of a forked child.
    process: u32,
    /// A reserved descriptor: closed to open a file if all descriptors are used up.
    spare: RefCell<Option<OwnedFd>>,
    entries: RefCell<Vec<MaybeUninit<u8>>>,
}

impl TaskDir {
    pub(crate) fn open() -> io::Result<Self> {
        let tasks = Self::open_at(rustix::fs::CWD, PATH)?;
        tasks.spare.replace(Some(tasks.directory.try_clone()?));
        Ok(tasks)
    }

    /// In a forked child of the process that this shows, opens the directory of the child.
    ///
    /// The path leads out of a `chroot` that was entered meanwhile. It begins at the parent's
    /// directory, which is gone if the parent has ended.
    pub(crate) fn reopen_in_forked_child(&self) -> io::Result<Option<Self>> {
        if self.process == std::process::id() {
            return Ok(None);
        }
        // All descriptors might be used up. The child's directory reserves none.
        self.spare.take();
        Self::open_at(self.directory.as_fd(), "../../self/task")
            .or_else(|_| Self::open_at(rustix::fs::CWD, PATH))
            .map(Some)
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
        let tasks = TaskDir {
            directory,
            device,
            process,
            spare: RefCell::default(),
            entries: RefCell::default(),
        };
        // Not the directory of another process, mounted there.
        let path = DecInt::new(current_tid());
        rustix::fs::statat(&tasks.directory, path, AtFlags::SYMLINK_NOFOLLOW)?;
        Ok(tasks)
    }

    /// Returns the open directory, for the other files of a thread.
    pub(super) fn directory(&self) -> BorrowedFd<'_> {
        self.directory.as_fd()
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

    pub(super) fn list(&self) -> io::Result<Vec<ThreadKey>> {
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
    pub(super) fn owner(&self, key: ThreadKey) -> io::Result<ThreadRead<(Uid, Gid)>> {
        let name = DecInt::new(key.thread_id);
        match rustix::fs::statat(&self.directory, name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(error) if has_exited(&error.into()) => Ok(ThreadRead::Gone),
            Err(error) => Err(error.into()),
            #[allow(
                clippy::useless_conversion,
                reason = "not 64 bits wide on every target"
            )]
            Ok(stat) => {
                let (device, inode): (u64, u64) = (stat.st_dev.into(), stat.st_ino.into());
                if device != self.device {
                    return Err(mounted_over());
                }
                if inode != key.inode {
                    return Ok(ThreadRead::Gone);
                }
                Ok(ThreadRead::Found((
                    Uid::from_raw(stat.st_uid),
                    Gid::from_raw(stat.st_gid),
                )))
            }
        }
    }

    pub(super) fn exists(&self, key: ThreadKey) -> io::Result<bool> {
        Ok(matches!(self.owner(key)?, ThreadRead::Found(_)))
    }

    pub(super) fn status(&self, key: ThreadKey) -> io::Result<ThreadRead<Status>> {
        let text = match self.read(key.thread_id, "status") {
            Err(error) if has_exited(&error) => return Ok(ThreadRead::Gone),
            text => text?,
        };
        let status: Status = text.parse()?;
        if status.thread_id != key.thread_id {
            return Err(other_thread_shown());
        }
        Ok(if status.has_ended {
            ThreadRead::Gone
        } else {
            ThreadRead::Found(status)
        })
    }

    /// Returns the flags of a thread, or `None` if it has ended or is ending.
    pub(super) fn flags(&self, key: ThreadKey) -> io::Result<Option<u32>> {
        let text = match self.read(key.thread_id, "stat") {
            Err(error) if has_exited(&error) => return Ok(None),
            text => text?,
        };
        let stat: Stat = text.parse()?;
        if stat.thread_id != key.thread_id {
            return Err(other_thread_shown());
        }
        let is_ending = stat.flags & PF_EXITING != 0 || stat.has_ended;
        Ok(Some(stat.flags).filter(|_| !is_ending))
    }

    pub(super) fn name(&self, thread_id: u32) -> io::Result<String> {
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
        let started = Instant::now();
        let mut borrowed_spare = false;
        let file = loop {
            match open() {
                Err(rustix::io::Errno::MFILE | rustix::io::Errno::NFILE)
                    if started.elapsed() < DESCRIPTOR_TIMEOUT =>
                {
                    // Another thread might take the descriptor first.
                    if self.spare.take().is_some() {
                        borrowed_spare = true;
                    } else {
                        std::thread::sleep(Duration::from_micros(50));
                    }
                }
                opened => break opened?,
            }
        };
        // Not a file that was mounted there.
        expect_procfs(&file)?;
        let text = read_record(&file)?;
        drop(file);
        if borrowed_spare {
            self.spare.replace(self.directory.try_clone().ok());
        }
        let replaced =
            |error: FromUtf8Error| String::from_utf8_lossy(error.as_bytes()).into_owned();
        Ok(String::from_utf8(text).unwrap_or_else(replaced))
    }
}

/// Returns the calling thread's id. It is not cached: a forked child has another one.
pub(crate) fn current_tid() -> u32 {
    nix::unistd::gettid().as_raw().unsigned_abs()
}

/// Reads a file that the kernel writes as one record: a read that does not fill the buffer has read
/// it to its end (`seq_read_iter` in fs/seq_file.c).
fn read_record(file: &OwnedFd) -> io::Result<Vec<u8>> {
    let mut text = vec![0; 4096];
    let mut length = 0;
    loop {
        length += rustix::io::retry_on_intr(|| rustix::io::read(file, &mut text[length..]))?;
        if length < text.len() {
            text.truncate(length);
            return Ok(text);
        }
        text.resize(2 * length, 0);
    }
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

pub(super) fn mounted_over() -> io::Error {
    io::Error::other("something is mounted over a thread's directory")
}

fn other_thread_shown() -> io::Error {
    io::Error::other("/proc shows a thread under another thread's number")
}

pub(super) fn too_fast() -> io::Error {
    io::Error::other("threads start and end faster than they can be read")
}

/// Whether a thread with these flags was put into the process by the kernel.
pub(super) fn is_kernel_worker(flags: u32) -> bool {
    flags & PF_KERNEL_WORKER != 0
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
}

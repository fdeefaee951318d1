//! Root and working directories: those of the calling thread, and those that `/proc` shows of
//! others.
//!
//! The functions that change them are in [`set`](super::set).

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, Mode, OFlags, StatxFlags};

use super::task_dir::{TaskDir, current_tid, has_exited, too_fast};

/// Opens a directory to go to. No permission to list it is needed.
fn open_directory(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, Mode::empty())?)
}

/// A thread that keeps a root or a working directory of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Outsider {
    pub(crate) thread_id: u32,
    pub(crate) name: String,
}

/// How often the threads are listed before this gives up.
const MAX_ATTEMPTS: u32 = 1000;

/// Returns a thread whose root is not `root`, or whose working directory is not
/// `working_directory`.
///
/// A thread does not share them after `unshare(CLONE_FS)`.
fn find_outsider(
    tasks: &TaskDir,
    root: BorrowedFd<'_>,
    working_directory: BorrowedFd<'_>,
) -> io::Result<Option<Outsider>> {
    let expected = [Place::of(root)?, Place::of(working_directory)?];
    for _ in 0..MAX_ATTEMPTS {
        let threads = tasks.read_all()?;
        let mut has_ended_some = false;
        for thread in &threads {
            match directories(tasks, thread.thread_id) {
                // It might have started a thread that is not in this list.
                Err(error) if has_exited(&error) => has_ended_some = true,
                found => {
                    if found? != expected {
                        let (thread_id, name) = (thread.thread_id, thread.name.clone());
                        return Ok(Some(Outsider { thread_id, name }));
                    }
                }
            }
        }
        if !has_ended_some {
            return Ok(None);
        }
    }
    Err(too_fast())
}

/// A place in the tree of mounts: the same directory, mounted in two places, can show two trees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    device: (u32, u32),
    inode: u64,
    /// Zero before Linux 5.8.
    mount: u64,
}

impl Place {
    fn of(directory: BorrowedFd<'_>) -> io::Result<Self> {
        Place::at(directory, "", AtFlags::EMPTY_PATH)
    }

    fn at(directory: BorrowedFd<'_>, path: &str, flags: AtFlags) -> io::Result<Self> {
        let wanted = StatxFlags::INO | StatxFlags::MNT_ID;
        let found = rustix::fs::statx(directory, path, flags, wanted)?;
        let has_mount = found.stx_mask & StatxFlags::MNT_ID.bits() != 0;
        Ok(Place {
            device: (found.stx_dev_major, found.stx_dev_minor),
            inode: found.stx_ino,
            mount: if has_mount { found.stx_mnt_id } else { 0 },
        })
    }
}

/// The root and the working directory of a thread. A process may follow these links of its own
/// threads, dumpable or not (__ptrace_may_access in kernel/ptrace.c).
fn directories(tasks: &TaskDir, thread_id: u32) -> io::Result<[Place; 2]> {
    let follow = |link| {
        let path = format!("{thread_id}/{link}");
        Place::at(tasks.directory(), &path, AtFlags::empty())
    };
    Ok([follow("root")?, follow("cwd")?])
}

/// The three directories that a change of root needs, open.
#[derive(Debug)]
pub(crate) struct Directories {
    pub(crate) new_root: OwnedFd,
    pub(crate) old_root: OwnedFd,
    pub(crate) old_working_directory: OwnedFd,
}

impl Directories {
    pub(crate) fn open(new_root: &Path) -> io::Result<Self> {
        Ok(Directories {
            new_root: open_directory(new_root)?,
            old_root: open_directory(Path::new("/"))?,
            old_working_directory: open_directory(Path::new("."))?,
        })
    }

    /// Returns a thread that does not share the root and the working directory of the calling one.
    pub(crate) fn find_outsider_before(&self, tasks: &TaskDir) -> io::Result<Option<Outsider>> {
        find_outsider(
            tasks,
            self.old_root.as_fd(),
            self.old_working_directory.as_fd(),
        )
    }

    /// Returns a thread that has not got the new root, which is the working directory too.
    pub(crate) fn find_outsider(&self, tasks: &TaskDir) -> io::Result<Option<Outsider>> {
        find_outsider(tasks, self.new_root.as_fd(), self.new_root.as_fd())
    }

    /// Returns whether the calling thread has the old root and the old working directory.
    pub(crate) fn is_caller_in_old_ones(&self, tasks: &TaskDir) -> io::Result<bool> {
        let (root, working_directory) = (&self.old_root, &self.old_working_directory);
        let old = [
            Place::of(root.as_fd())?,
            Place::of(working_directory.as_fd())?,
        ];
        Ok(directories(tasks, current_tid())? == old)
    }
}

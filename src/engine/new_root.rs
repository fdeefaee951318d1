//! The change of the root directory in a permanent drop, and its rollback.

use std::io;
use std::os::fd::AsFd;
use std::path::Path;

use nix::errno::Errno;

use crate::error::DropError;
use crate::error::{Error, no_effect_error};
use crate::kernel::root::{Directories, Outsider};
use crate::kernel::set;
use crate::kernel::task_dir::{TaskDir, current_tid};

/// A change of the root directory, not made yet, half made, or made.
#[derive(Debug)]
pub(super) struct NewRoot<'a> {
    path: &'a Path,
    directories: Directories,
    has_moved: bool,
    has_new_root: bool,
}

impl<'a> NewRoot<'a> {
    /// Opens and checks everything. Nothing is changed.
    pub(super) fn prepare(path: &'a Path, tasks: &TaskDir) -> Result<Self, DropError> {
        let failed = |os_error| chroot_error(path, os_error);
        let directories = Directories::open(path).map_err(failed)?;
        let root = NewRoot {
            path,
            directories,
            has_moved: false,
            has_new_root: false,
        };
        if tasks.count().map_err(Error::threads_unreadable)? > 1 {
            let outsider = root.directories.find_outsider_before(tasks);
            root.refuse_outsider(outsider.map_err(Error::threads_unreadable)?)?;
        }
        // The rollback has to be able to go back there.
        let working_directory = root.directories.old_working_directory.as_fd();
        set::change_directory(working_directory).map_err(|errno| failed(errno.into()))?;
        Ok(root)
    }

    /// Makes the directory the root and the working directory of every thread, and verifies that.
    pub(super) fn enter(&mut self, tasks: &TaskDir) -> Result<(), DropError> {
        let failed = |path, errno: Errno| chroot_error(path, errno.into());
        // The directory that was opened, whatever the path leads to now.
        set::change_directory(self.directories.new_root.as_fd())
            .map_err(|errno| failed(self.path, errno))?;
        self.has_moved = true;
        set::change_root_to_working_directory().map_err(|errno| failed(self.path, errno))?;
        self.has_new_root = true;
        let outsider = self
            .directories
            .find_outsider(tasks)
            .map_err(Error::threads_unreadable)?;
        self.refuse_outsider(outsider)
    }

    /// Sets root and working directory back, as far as they were changed, and verifies that.
    pub(super) fn leave(&self, tasks: &TaskDir) -> io::Result<()> {
        let old = &self.directories;
        if self.has_new_root {
            set::change_directory(old.old_root.as_fd())?;
            set::change_root_to_working_directory()?;
        }
        if self.has_moved {
            set::change_directory(old.old_working_directory.as_fd())?;
            if !old.is_caller_in_old_ones(tasks)? {
                return Err(no_effect_error());
            }
        }
        Ok(())
    }

    fn refuse_outsider(&self, outsider: Option<Outsider>) -> Result<(), DropError> {
        match outsider {
            None => Ok(()),
            Some(outsider) if outsider.thread_id == current_tid() => {
                Err(chroot_error(self.path, no_effect_error()))
            }
            Some(Outsider { thread_id, name }) => Err(DropError::ThreadRoot {
                directory: self.path.to_owned(),
                thread_id,
                name,
            }),
        }
    }
}

fn chroot_error(path: &Path, os_error: io::Error) -> DropError {
    DropError::Chroot {
        directory: path.to_owned(),
        os_error,
    }
}

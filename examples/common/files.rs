//! The files that show what a user or a group may.

use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use super::Outcome;

/// A folder that all may enter: what is refused in it is refused by the files.
pub fn folder(owner: u32) -> Outcome<tempfile::TempDir> {
    let folder = tempfile::Builder::new()
        .prefix("privilege-guard-")
        .tempdir()?;
    fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o755))?;
    chown(folder.path(), Some(owner), None)?;
    Ok(folder)
}

/// A folder in which every user may make files.
pub fn open_folder() -> Outcome<tempfile::TempDir> {
    let folder = tempfile::Builder::new()
        .prefix("privilege-guard-")
        .tempdir()?;
    fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o777))?;
    Ok(folder)
}

/// A file of this user and group.
pub fn file(
    path: PathBuf,
    (user, group): (u32, u32),
    mode: u32,
    content: &str,
) -> Outcome<PathBuf> {
    fs::write(&path, content)?;
    fs::set_permissions(&path, PermissionsExt::from_mode(mode))?;
    chown(&path, Some(user), Some(group))?;
    Ok(path)
}

/// The group of a file that is made now.
pub fn group_of_new_file() -> Outcome<u32> {
    Ok(tempfile::tempfile()?.metadata()?.gid())
}

/// The owner of a file that is made now.
pub fn owner_of_new_file() -> Outcome<u32> {
    Ok(tempfile::tempfile()?.metadata()?.uid())
}

/// Whether the calling thread can open and read it.
pub fn may_read(path: &Path) -> io::Result<bool> {
    permitted(fs::read(path))
}

/// Whether the calling thread can open it for writing.
pub fn may_write(path: &Path) -> io::Result<bool> {
    permitted(fs::OpenOptions::new().append(true).open(path))
}

fn permitted<T>(opened: io::Result<T>) -> io::Result<bool> {
    match opened {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == ErrorKind::PermissionDenied => Ok(false),
        Err(error) => Err(error),
    }
}

//! The system calls. No file here knows what a guard is.

pub(crate) mod accounts;
pub(crate) mod mismatch;
pub(crate) mod namespace;
pub(crate) mod read;
pub(crate) mod root;
pub(crate) mod set;
pub(crate) mod signals;
mod status;
pub(crate) mod task_dir;
pub(crate) mod threads;

use nix::errno::Errno;

fn errno(error: rustix::io::Errno) -> Errno {
    Errno::from_raw(error.raw_os_error())
}

fn rustix_gid(gid: crate::ids::Gid) -> rustix::process::Gid {
    rustix::process::Gid::from_raw_unchecked(gid.as_raw())
}

fn rustix_uid(uid: crate::ids::Uid) -> rustix::process::Uid {
    rustix::process::Uid::from_raw_unchecked(uid.as_raw())
}

//! Every system call that changes credentials or related thread state. No other module makes one.
//!
//! No call is trusted to have had an effect: a seccomp filter can fake success. The callers read
//! back what they set.

use std::os::fd::BorrowedFd;

use nix::errno::Errno;
use nix::unistd;
use rustix::process::Signal;
use rustix::thread::{CapabilitySet, CapabilitySets};

use super::{errno, rustix_gid, rustix_uid};
use crate::ids::{Gid, Id, Uid};
use crate::plan::SetResArgs;
use crate::scope::ScopeKind;

/// The calls that set ids of one kind.
pub(crate) trait SetIds: Id {
    const SETRES: &'static str;
    const SETFS: &'static str;

    /// `setresgid(2)` or `setresuid(2)`: sets all three or none. The filesystem id then is the
    /// effective one.
    fn set_ids(scope: ScopeKind, ids: SetResArgs<Self>) -> Result<(), Errno>;

    /// `setfsgid(2)` or `setfsuid(2)`, of the calling thread. It reports no failure, and returns
    /// the previous id.
    fn set_filesystem_id(id: Self) -> Self;

    /// `setgid(2)` or `setuid(2)` of the calling thread.
    fn set_id_on_thread(id: Self) -> Result<(), Errno>;
}

impl SetIds for Gid {
    const SETRES: &'static str = "setresgid";
    const SETFS: &'static str = "setfsgid";

    fn set_ids(scope: ScopeKind, ids: SetResArgs<Gid>) -> Result<(), Errno> {
        match scope {
            ScopeKind::Process => {
                let raw =
                    |id: Option<Gid>| unistd::Gid::from_raw(id.unwrap_or(Gid::UNCHANGED).as_raw());
                unistd::setresgid(raw(ids.real), raw(ids.effective), raw(ids.saved))
            }
            ScopeKind::Thread => {
                let raw = |id: Option<Gid>| id.map(rustix_gid);
                rustix::thread::set_thread_res_gid(
                    raw(ids.real),
                    raw(ids.effective),
                    raw(ids.saved),
                )
                .map_err(errno)
            }
        }
    }

    fn set_filesystem_id(id: Gid) -> Gid {
        Gid::from_raw(unistd::setfsgid(unistd::Gid::from_raw(id.as_raw())).as_raw())
    }

    fn set_id_on_thread(id: Gid) -> Result<(), Errno> {
        rustix::thread::set_thread_gid(rustix_gid(id)).map_err(errno)
    }
}

impl SetIds for Uid {
    const SETRES: &'static str = "setresuid";
    const SETFS: &'static str = "setfsuid";

    fn set_ids(scope: ScopeKind, ids: SetResArgs<Uid>) -> Result<(), Errno> {
        match scope {
            ScopeKind::Process => {
                let raw =
                    |id: Option<Uid>| unistd::Uid::from_raw(id.unwrap_or(Uid::UNCHANGED).as_raw());
                unistd::setresuid(raw(ids.real), raw(ids.effective), raw(ids.saved))
            }
            ScopeKind::Thread => {
                let raw = |id: Option<Uid>| id.map(rustix_uid);
                rustix::thread::set_thread_res_uid(
                    raw(ids.real),
                    raw(ids.effective),
                    raw(ids.saved),
                )
                .map_err(errno)
            }
        }
    }

    fn set_filesystem_id(id: Uid) -> Uid {
        Uid::from_raw(unistd::setfsuid(unistd::Uid::from_raw(id.as_raw())).as_raw())
    }

    fn set_id_on_thread(id: Uid) -> Result<(), Errno> {
        rustix::thread::set_thread_uid(rustix_uid(id)).map_err(errno)
    }
}

/// `setgroups(2)`.
pub(crate) fn set_groups(scope: ScopeKind, groups: &[Gid]) -> Result<(), Errno> {
    match scope {
        ScopeKind::Process => {
            let groups: Vec<_> = groups
                .iter()
                .map(|gid| unistd::Gid::from_raw(gid.as_raw()))
                .collect();
            unistd::setgroups(&groups)
        }
        ScopeKind::Thread => {
            let groups: Vec<_> = groups.iter().copied().map(rustix_gid).collect();
            rustix::thread::set_thread_groups(&groups).map_err(errno)
        }
    }
}

/// `prctl(PR_SET_PDEATHSIG)`, of the calling thread in either scope.
pub(crate) fn set_parent_death_signal(signal: Signal) -> Result<(), Errno> {
    rustix::process::set_parent_process_death_signal(Some(signal)).map_err(errno)
}

/// `capset(2)` of the calling thread.
pub(crate) fn set_capabilities(sets: CapabilitySets) -> Result<(), Errno> {
    rustix::thread::set_capabilities(None, sets).map_err(errno)
}

/// `prctl(PR_CAP_AMBIENT_CLEAR_ALL)` of the calling thread.
pub(crate) fn clear_ambient() -> Result<(), Errno> {
    rustix::thread::clear_ambient_capability_set().map_err(errno)
}

/// `prctl(PR_CAP_AMBIENT_RAISE)` of the calling thread, for each capability of the set.
pub(crate) fn raise_ambient(set: CapabilitySet) -> Result<(), Errno> {
    set.iter().try_for_each(|capability| {
        rustix::thread::configure_capability_in_ambient_set(capability, true).map_err(errno)
    })
}

/// `prctl(PR_CAPBSET_DROP)` of the calling thread.
pub(crate) fn drop_from_bounding_set(capability: CapabilitySet) -> Result<(), Errno> {
    rustix::thread::remove_capability_from_bounding_set(capability).map_err(errno)
}

/// `prctl(PR_SET_NO_NEW_PRIVS)` of the calling thread.
pub(crate) fn set_no_new_privs() -> Result<(), Errno> {
    rustix::thread::set_no_new_privs(true).map_err(errno)
}

/// `prctl(PR_SET_KEEPCAPS)` of the calling thread: whether leaving user 0 leaves the permitted set.
pub(crate) fn set_keep_capabilities(keep: bool) -> Result<(), Errno> {
    rustix::thread::set_keep_capabilities(keep).map_err(errno)
}

/// `fchdir(2)` of the calling thread and of those that share its directories (`CLONE_FS`).
pub(crate) fn change_directory(directory: BorrowedFd<'_>) -> Result<(), Errno> {
    rustix::process::fchdir(directory).map_err(errno)
}

/// `chroot(2)` to the working directory, of the same threads.
pub(crate) fn change_root_to_working_directory() -> Result<(), Errno> {
    rustix::process::chroot(c".").map_err(errno)
}

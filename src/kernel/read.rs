//! The system calls that read the calling thread's credentials and related state.

use nix::errno::Errno;
use nix::unistd;
use rustix::process::Signal;
use rustix::thread::{CapabilitiesSecureBits, CapabilitySet, CapabilitySets};

use super::errno;
use super::set::SetIds;
use crate::error::{Error, no_effect_error};
use crate::ids::{Gid, GroupIds, Ids, Uid, UserIds};

/// The calls that read ids of one kind.
pub(crate) trait ReadIds: SetIds {
    const GETRES: &'static str;

    /// `getresgid(2)` or `getresuid(2)`.
    fn read_res() -> Result<[Self; 3], Errno>;

    /// `getegid(2)` or `geteuid(2)`: the cheapest to read. If the call is refused, this returns an
    /// id that no thread has.
    fn read_effective() -> Self;
}

impl ReadIds for Gid {
    const GETRES: &'static str = "getresgid";

    fn read_res() -> Result<[Gid; 3], Errno> {
        let ids = unistd::getresgid()?;
        Ok([ids.real, ids.effective, ids.saved].map(|id| Gid::from_raw(id.as_raw())))
    }

    fn read_effective() -> Gid {
        Gid::from_raw(unistd::getegid().as_raw())
    }
}

impl ReadIds for Uid {
    const GETRES: &'static str = "getresuid";

    fn read_res() -> Result<[Uid; 3], Errno> {
        let ids = unistd::getresuid()?;
        Ok([ids.real, ids.effective, ids.saved].map(|id| Uid::from_raw(id.as_raw())))
    }

    fn read_effective() -> Uid {
        Uid::from_raw(unistd::geteuid().as_raw())
    }
}

impl GroupIds {
    /// Reads the calling thread's ids (`getresgid(2)`, and `setfsgid(-1)`, which changes nothing).
    ///
    /// # Errors
    /// - [`Error::ReadFailed`] if one of the calls is refused, for example by a seccomp filter.
    #[doc(alias = "getresgid")]
    #[doc(alias = "getgid")]
    #[doc(alias = "getegid")]
    pub fn current() -> Result<Self, Error> {
        current_ids()
    }
}

impl UserIds {
    /// Reads the calling thread's ids (`getresuid(2)`, and `setfsuid(-1)`, which changes nothing).
    ///
    /// # Errors
    /// - [`Error::ReadFailed`] if one of the calls is refused, for example by a seccomp filter.
    #[doc(alias = "getresuid")]
    #[doc(alias = "getuid")]
    #[doc(alias = "geteuid")]
    pub fn current() -> Result<Self, Error> {
        current_ids()
    }
}

pub(crate) fn current_ids<I: ReadIds>() -> Result<Ids<I>, Error> {
    let [real, effective, saved] =
        I::read_res().map_err(|errno| Error::read_failed(I::GETRES, errno))?;
    if [real, effective, saved].contains(&I::UNCHANGED) {
        return Err(Error::read_failed(I::GETRES, no_effect_error()));
    }
    Ok(Ids {
        real,
        effective,
        saved,
        filesystem: read_filesystem_id()?,
    })
}

pub(crate) fn read_filesystem_id<I: SetIds>() -> Result<I, Error> {
    let id = I::set_filesystem_id(I::UNCHANGED);
    if id == I::UNCHANGED {
        Err(Error::read_failed(I::SETFS, Errno::last()))
    } else {
        Ok(id)
    }
}

/// Reads the calling thread's supplementary groups (`getgroups(2)`).
///
/// # Errors
/// - [`Error::ReadFailed`] if the call is refused.
///
/// # Examples
/// ```
/// let groups = privilege_guard::supplementary_groups()?;
/// println!("{} supplementary groups", groups.len());
/// # Ok::<(), privilege_guard::Error>(())
/// ```
#[doc(alias = "getgroups")]
pub fn supplementary_groups() -> Result<Vec<Gid>, Error> {
    // Not by libc, whose wrapper in nix reads /proc/sys/kernel/ngroups_max each time.
    let groups = rustix::process::getgroups()
        .map_err(|error| Error::read_failed("getgroups", errno(error)))?;
    Ok(groups
        .into_iter()
        .map(|gid| Gid::from_raw(gid.as_raw()))
        .collect())
}

pub(crate) fn read_parent_death_signal() -> Result<Option<Signal>, Error> {
    rustix::process::parent_process_death_signal()
        .map_err(|error| Error::read_failed("prctl(PR_GET_PDEATHSIG)", errno(error)))
}

/// `capget(2)` of the calling thread.
pub(crate) fn read_capabilities() -> Result<CapabilitySets, Error> {
    rustix::thread::capabilities(None).map_err(|error| Error::read_failed("capget", errno(error)))
}

/// The ambient set of the calling thread, whose other sets are these.
///
/// It holds no capability that is not both permitted and inheritable (`capabilities(7)`), so it
/// costs no call if there is none.
pub(crate) fn read_ambient(sets: CapabilitySets) -> Result<CapabilitySet, Error> {
    let mut ambient = CapabilitySet::empty();
    for capability in (sets.permitted & sets.inheritable).iter() {
        let is_in = rustix::thread::capability_is_in_ambient_set(capability)
            .map_err(|error| Error::read_failed("prctl(PR_CAP_AMBIENT)", errno(error)))?;
        ambient.set(capability, is_in);
    }
    Ok(ambient)
}

pub(crate) fn is_in_bounding_set(capability: CapabilitySet) -> Result<bool, Error> {
    rustix::thread::capability_is_in_bounding_set(capability)
        .map_err(|error| Error::read_failed("prctl(PR_CAPBSET_READ)", errno(error)))
}

pub(crate) fn has_no_new_privs() -> Result<bool, Error> {
    rustix::thread::no_new_privs()
        .map_err(|error| Error::read_failed("prctl(PR_GET_NO_NEW_PRIVS)", errno(error)))
}

/// Whether leaving user 0 would leave the permitted set (`PR_GET_KEEPCAPS`).
pub(crate) fn keeps_capabilities() -> Result<bool, Error> {
    rustix::thread::get_keep_capabilities()
        .map_err(|error| Error::read_failed("prctl(PR_GET_KEEPCAPS)", errno(error)))
}

pub(crate) fn read_securebits() -> Result<CapabilitiesSecureBits, Error> {
    rustix::thread::capabilities_secure_bits()
        .map_err(|error| Error::read_failed("prctl(PR_GET_SECUREBITS)", errno(error)))
}

/// Whether the calling thread has CAP_SETGID in its effective set.
pub(crate) fn has_effective_setgid() -> Result<bool, Error> {
    Ok(read_capabilities()?
        .effective
        .contains(CapabilitySet::SETGID))
}

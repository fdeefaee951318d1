//! The two scopes, and every call that sets something: nothing outside this file changes the kernel's mind.
//!
//! No setting call is taken on trust: a seccomp filter can say "done" without doing. The callers read back what they set, with the reading
//! calls at the end of this file.

use std::io;

use nix::errno::Errno;
use nix::unistd;
use rustix::process::Signal;
use rustix::thread::{CapabilitySet, CapabilitySets};

use crate::error::Error;
use crate::ids::Gid;
use crate::plan::ResGid;

/// Which threads a guard changes: [`Process`] or [`Thread`].
///
/// Sealed: there are these two.
///
/// # Examples
/// ```
/// use privilege_guard::{GroupGuard, Process, Scope, Thread};
///
/// fn end<S: Scope>(guard: GroupGuard<S>) {
///     drop(guard);
/// }
/// end::<Process>(GroupGuard::assume(privilege_guard::GroupIds::current()?.effective)?);
/// end::<Thread>(GroupGuard::assume_on_thread(privilege_guard::GroupIds::current()?.effective)?);
/// # Ok::<(), privilege_guard::Error>(())
/// ```
pub trait Scope: sealed::Sealed {}

/// All threads of the process, through libc (`setresgid(3)` there interrupts and waits for each one, `nptl(7)`).
///
/// # Warning
/// Calls of other threads that are never restarted, such as `poll`, return `EINTR`. Every thread must be allowed what the calling one is: where one
/// may set the ids and another may not (its own seccomp filter, its own capabilities), glibc aborts the process; threads that it cannot send a signal to
/// (`RLIMIT_SIGPENDING`, raw `clone`), it leaves out. Use [`Thread`] there.
#[derive(Debug)]
pub enum Process {}

/// The calling thread only, by raw system calls; its cost does not grow with the number of threads.
#[derive(Debug)]
pub enum Thread {}

impl Scope for Process {}
impl Scope for Thread {}

/// `Scope` as a value, for what is decided at run time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Process,
    Thread,
}

mod sealed {
    pub trait Sealed {
        #[allow(private_interfaces)]
        const KIND: super::Kind;
    }

    impl Sealed for super::Process {
        #[allow(private_interfaces)]
        const KIND: super::Kind = super::Kind::Process;
    }

    impl Sealed for super::Thread {
        #[allow(private_interfaces)]
        const KIND: super::Kind = super::Kind::Thread;
    }
}

impl Kind {
    /// `setresgid(2)`: all or none of the three; the filesystem id then is the effective one.
    pub(crate) fn set_ids(self, ids: ResGid) -> Result<(), Errno> {
        match self {
            Kind::Process => {
                let raw = |gid: Option<Gid>| unistd::Gid::from_raw(gid.unwrap_or(Gid::UNCHANGED).as_raw());
                unistd::setresgid(raw(ids.real), raw(ids.effective), raw(ids.saved))
            }
            Kind::Thread => {
                let raw = |gid: Option<Gid>| gid.map(rustix_gid);
                rustix::thread::set_thread_res_gid(raw(ids.real), raw(ids.effective), raw(ids.saved)).map_err(errno)
            }
        }
    }

    /// `setgroups(2)`.
    pub(crate) fn set_groups(self, groups: &[Gid]) -> Result<(), Errno> {
        match self {
            Kind::Process => {
                let groups: Vec<_> = groups.iter().map(|gid| unistd::Gid::from_raw(gid.as_raw())).collect();
                unistd::setgroups(&groups)
            }
            Kind::Thread => {
                let groups: Vec<_> = groups.iter().copied().map(rustix_gid).collect();
                rustix::thread::set_thread_groups(&groups).map_err(errno)
            }
        }
    }
}

/// `setfsgid(2)`, of the calling thread in either scope. It reports no failure; what it answers is the id before.
pub(crate) fn set_filesystem_id(gid: Gid) -> Gid {
    Gid::from_raw(unistd::setfsgid(unistd::Gid::from_raw(gid.as_raw())).as_raw())
}

/// `prctl(PR_SET_PDEATHSIG)`, of the calling thread in either scope.
pub(crate) fn set_parent_death_signal(signal: Signal) -> Result<(), Errno> {
    rustix::process::set_parent_process_death_signal(Some(signal)).map_err(errno)
}

/// `setgid(2)` of the calling thread.
pub(crate) fn set_thread_gid(gid: Gid) -> Result<(), Errno> {
    rustix::thread::set_thread_gid(rustix_gid(gid)).map_err(errno)
}

/// `setresuid(3)` of the whole process; the filesystem user id follows.
pub(crate) fn set_user_ids(user: u32) -> Result<(), Errno> {
    let user = unistd::Uid::from_raw(user);
    unistd::setresuid(user, user, user)
}

/// `capset(2)` of the calling thread.
pub(crate) fn set_capabilities(sets: CapabilitySets) -> Result<(), Errno> {
    rustix::thread::set_capabilities(None, sets).map_err(errno)
}

/// `prctl(PR_CAPBSET_DROP)` of the calling thread.
pub(crate) fn drop_from_bounding_set(capability: CapabilitySet) -> Result<(), Errno> {
    rustix::thread::remove_capability_from_bounding_set(capability).map_err(errno)
}

/// `prctl(PR_SET_NO_NEW_PRIVS)` of the calling thread.
pub(crate) fn set_no_new_privs() -> Result<(), Errno> {
    rustix::thread::set_no_new_privs(true).map_err(errno)
}

pub(crate) fn read_ids() -> Result<(Gid, Gid, Gid), Error> {
    let ids = unistd::getresgid().map_err(|errno| Error::unreadable("getresgid", errno))?;
    let [real, effective, saved] = [ids.real, ids.effective, ids.saved].map(|gid| Gid::from_raw(gid.as_raw()));
    if [real, effective, saved].contains(&Gid::UNCHANGED) {
        return Err(Error::unreadable("getresgid", not_done()));
    }
    Ok((real, effective, saved))
}

/// Of the four, the cheapest to read. Where the call is refused, this is no id that anything is.
pub(crate) fn read_effective_id() -> Gid {
    Gid::from_raw(unistd::getegid().as_raw())
}

pub(crate) fn read_filesystem_id() -> Result<Gid, Error> {
    let gid = set_filesystem_id(Gid::UNCHANGED);
    if gid == Gid::UNCHANGED { Err(Error::unreadable("setfsgid", Errno::last())) } else { Ok(gid) }
}

pub(crate) fn read_groups() -> Result<Vec<Gid>, Error> {
    let groups = unistd::getgroups().map_err(|errno| Error::unreadable("getgroups", errno))?;
    Ok(groups.into_iter().map(|gid| Gid::from_raw(gid.as_raw())).collect())
}

pub(crate) fn read_parent_death_signal() -> Result<Option<Signal>, Error> {
    rustix::process::parent_process_death_signal().map_err(|error| Error::unreadable("prctl(PR_GET_PDEATHSIG)", errno(error)))
}

/// `capget(2)` of the calling thread.
pub(crate) fn read_capabilities() -> Result<CapabilitySets, Error> {
    rustix::thread::capabilities(None).map_err(|error| Error::unreadable("capget", errno(error)))
}

pub(crate) fn read_user_ids() -> Result<[u32; 3], Error> {
    let ids = unistd::getresuid().map_err(|errno| Error::unreadable("getresuid", errno))?;
    Ok([ids.real, ids.effective, ids.saved].map(unistd::Uid::as_raw))
}

pub(crate) fn is_in_bounding_set(capability: CapabilitySet) -> Result<bool, Error> {
    rustix::thread::capability_is_in_bounding_set(capability).map_err(|error| Error::unreadable("prctl(PR_CAPBSET_READ)", errno(error)))
}

pub(crate) fn has_no_new_privs() -> Result<bool, Error> {
    rustix::thread::no_new_privs().map_err(|error| Error::unreadable("prctl(PR_GET_NO_NEW_PRIVS)", errno(error)))
}

/// Whether no securebit of the calling thread is set.
pub(crate) fn has_plain_securebits() -> Result<bool, Error> {
    let bits = rustix::thread::capabilities_secure_bits();
    bits.map(|bits| bits.is_empty()).map_err(|error| Error::unreadable("prctl(PR_GET_SECUREBITS)", errno(error)))
}

/// Whether the calling thread has CAP_SETGID in its effective set.
pub(crate) fn may_use_setgid() -> Result<bool, Error> {
    Ok(read_capabilities()?.effective.contains(CapabilitySet::SETGID))
}

/// In the place of what the kernel said: a call answered with success, and what it sets reads otherwise.
pub(crate) fn not_done() -> io::Error {
    io::Error::other("it answered with success, and nothing was done (a seccomp filter?)")
}

fn rustix_gid(gid: Gid) -> rustix::process::Gid {
    rustix::process::Gid::from_raw_unchecked(gid.as_raw())
}

fn errno(error: rustix::io::Errno) -> Errno {
    Errno::from_raw(error.raw_os_error())
}

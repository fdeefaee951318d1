//! The steps of a change: each sets one thing and reads it back.

use std::io;

use nix::errno::Errno;
use rustix::process::Signal;
use rustix::thread::{CapabilitySet, CapabilitySets};

use crate::error::{Error, no_effect_error};
use crate::identity::sorted;
use crate::ids::{Gid, Ids};
use crate::kernel::read::{self, ReadIds, current_ids};
use crate::kernel::set;
use crate::plan::SetResArgs;
use crate::scope::ScopeKind;

/// A system call that failed, or had no effect.
#[derive(Debug)]
pub(crate) struct StepError {
    pub(crate) call: &'static str,
    pub(crate) os_error: io::Error,
}

impl StepError {
    fn new(call: &'static str, os_error: impl Into<io::Error>) -> Self {
        StepError {
            call,
            os_error: os_error.into(),
        }
    }

    pub(crate) fn errno(&self) -> Option<Errno> {
        self.os_error.raw_os_error().map(Errno::from_raw)
    }
}

impl From<Error> for StepError {
    fn from(error: Error) -> Self {
        match error {
            Error::ReadFailed { call, os_error } => StepError { call, os_error },
            error => StepError::new("read", io::Error::other(error)),
        }
    }
}

fn failed<E: Into<io::Error>>(call: &'static str) -> impl Fn(E) -> StepError {
    move |error| StepError::new(call, error)
}

fn unless(is_as_expected: bool, call: &'static str) -> Result<(), StepError> {
    if is_as_expected {
        Ok(())
    } else {
        Err(StepError::new(call, no_effect_error()))
    }
}

/// Sets ids of one kind without reading them back.
pub(crate) fn set_ids<I: ReadIds>(scope: ScopeKind, args: SetResArgs<I>) -> Result<(), StepError> {
    I::set_ids(scope, args).map_err(failed(I::SETRES))
}

/// Verifies the ids after they were set from `before`.
///
/// `setresgid` and `setresuid` set all three ids or none. If the effective id had to move, it is
/// enough to check that one, and it is the cheapest to read.
pub(crate) fn verify_ids<I: ReadIds>(expected: Ids<I>, before: Ids<I>) -> Result<(), StepError> {
    let suffices = effective_id_suffices(expected, before);
    if suffices && I::read_effective() == expected.effective {
        return Ok(());
    }
    let now = current_ids::<I>()?;
    let only_filesystem_differs = expected.filesystem != now.filesystem
        && Ids {
            filesystem: expected.filesystem,
            ..now
        } == expected;
    let call = if only_filesystem_differs {
        I::SETFS
    } else {
        I::SETRES
    };
    unless(now == expected, call)
}

/// Returns whether the effective id tells that a call moved all ids from `before` to `expected`.
///
/// Ids that were not read might have been the expected ones.
pub(crate) fn effective_id_suffices<I: ReadIds>(expected: Ids<I>, before: Ids<I>) -> bool {
    before.were_read()
        && expected.effective != before.effective
        && expected.filesystem == expected.effective
}

/// Sets the filesystem id of the calling thread. [`verify_ids`] must follow: the call reports
/// nothing.
pub(crate) fn set_filesystem_id<I: ReadIds>(id: I) {
    I::set_filesystem_id(id);
}

/// Sets the supplementary groups without reading them back.
pub(crate) fn set_groups(scope: ScopeKind, groups: &[Gid]) -> Result<(), StepError> {
    set::set_groups(scope, groups).map_err(failed("setgroups"))
}

pub(crate) fn verify_groups(expected: &[Gid]) -> Result<(), StepError> {
    let now = read::supplementary_groups()?;
    unless(sorted(&now) == sorted(expected), "setgroups")
}

/// Sets the capability sets of the calling thread and reads them back.
pub(crate) fn set_capabilities(sets: CapabilitySets) -> Result<(), StepError> {
    set::set_capabilities(sets).map_err(failed("capset"))?;
    let now = read::read_capabilities()?;
    unless(now == sets, "capset")
}

/// Clears the ambient set of the calling thread and reads it back.
pub(crate) fn clear_ambient() -> Result<(), StepError> {
    const CALL: &str = "prctl(PR_CAP_AMBIENT_CLEAR_ALL)";

    set::clear_ambient().map_err(failed(CALL))?;
    verify_ambient(CapabilitySet::empty(), CALL)
}

/// Raises these capabilities in the ambient set of the calling thread, which has no others, and
/// reads it back.
pub(crate) fn raise_ambient(ambient: CapabilitySet) -> Result<(), StepError> {
    const CALL: &str = "prctl(PR_CAP_AMBIENT_RAISE)";

    if ambient.is_empty() {
        return Ok(());
    }
    set::raise_ambient(ambient).map_err(failed(CALL))?;
    let sets = read::read_capabilities()?;
    unless(read::read_ambient(sets)?.contains(ambient), CALL)
}

fn verify_ambient(expected: CapabilitySet, call: &'static str) -> Result<(), StepError> {
    let sets = read::read_capabilities()?;
    let now = read::read_ambient(sets)?;
    unless(now == expected, call)
}

/// The calling thread's parent-death signal (`PR_SET_PDEATHSIG`), and the process that it is of.
///
/// The kernel clears it at every change of an effective or filesystem id (commit_creds in
/// kernel/cred.c).
#[derive(Clone, Copy, Debug)]
pub(crate) struct ParentDeathSignal(Option<(Signal, u32)>);

impl ParentDeathSignal {
    pub(crate) const NONE: ParentDeathSignal = ParentDeathSignal(None);

    pub(crate) fn read() -> Result<Self, Error> {
        let signal = read::read_parent_death_signal()?;
        Ok(ParentDeathSignal(
            signal.map(|signal| (signal, std::process::id())),
        ))
    }

    /// The signal to restore: none in a forked child, which would be sent it at the death of a
    /// parent that is not its own.
    fn in_this_process(self) -> Option<Signal> {
        self.0
            .filter(|&(_, process)| process == std::process::id())
            .map(|(signal, _)| signal)
    }

    /// Sets the signal to its current value, to find out whether setting it is allowed.
    pub(crate) fn probe(self) -> Result<(), StepError> {
        let Some(signal) = self.in_this_process() else {
            return Ok(());
        };
        set::set_parent_death_signal(signal).map_err(failed(SET_SIGNAL))
    }

    pub(crate) fn restore(self) -> Result<(), StepError> {
        let Some(signal) = self.in_this_process() else {
            return Ok(());
        };
        set::set_parent_death_signal(signal).map_err(failed(SET_SIGNAL))?;
        let now = read::read_parent_death_signal()?;
        unless(now == Some(signal), SET_SIGNAL)
    }
}

const SET_SIGNAL: &str = "prctl(PR_SET_PDEATHSIG)";

//! A guard of either scope, for tests that choose at run time.

use privilege_guard::{
    Error, Gid, GroupChange, GroupGuard, GroupIds, Process, RestoreError, Thread,
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    Process,
    Thread,
}

pub const SCOPES: [Scope; 2] = [Scope::Process, Scope::Thread];

#[derive(Debug)]
pub enum Guard {
    Process(GroupGuard<Process>),
    Thread(GroupGuard<Thread>),
}

impl Scope {
    pub fn assume(self, change: GroupChange) -> Result<Guard, Error> {
        match self {
            Scope::Process => change.assume().map(Guard::Process),
            Scope::Thread => change.assume_on_thread().map(Guard::Thread),
        }
    }

    /// As an event says it.
    pub fn name(self) -> &'static str {
        match self {
            Scope::Process => "process",
            Scope::Thread => "thread",
        }
    }
}

impl Guard {
    pub fn original(&self) -> GroupIds {
        match self {
            Guard::Process(guard) => guard.original(),
            Guard::Thread(guard) => guard.original(),
        }
    }

    pub fn restore(self) -> Result<(), RestoreError> {
        match self {
            Guard::Process(guard) => guard.restore(),
            Guard::Thread(guard) => guard.restore(),
        }
    }

    pub fn run<T>(self, f: impl FnOnce() -> T) -> T {
        match self {
            Guard::Process(guard) => guard.run(f),
            Guard::Thread(guard) => guard.run(f),
        }
    }

    pub fn switch_to(&mut self, group: impl Into<Gid>) -> Result<(), Error> {
        match self {
            Guard::Process(guard) => guard.switch_to(group),
            Guard::Thread(guard) => guard.switch_to(group),
        }
    }
}

/// The change to what is named; nothing is, where all are `None`.
pub fn change(
    real: Option<u32>,
    effective: Option<u32>,
    supplementary: Option<&[u32]>,
) -> GroupChange {
    let change = real.into_iter().fold(GroupChange::new(), GroupChange::real);
    let change = effective.into_iter().fold(change, GroupChange::effective);
    supplementary.into_iter().fold(change, |change, groups| {
        change.supplementary(groups.iter().copied())
    })
}

/// The library's ids as the kernel's numbers.
pub fn raw(ids: GroupIds) -> [u32; 4] {
    [ids.real, ids.effective, ids.saved, ids.filesystem].map(Gid::as_raw)
}

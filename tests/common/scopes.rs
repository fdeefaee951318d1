//! Both scopes through the same cases.

use privilege_guard::{Error, GroupChange, GroupGuard, GroupIds, Process, Thread};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum In {
    Process,
    Thread,
}

pub const BOTH_SCOPES: [In; 2] = [In::Process, In::Thread];

impl In {
    pub fn assume(self, change: GroupChange) -> Result<Guard, Error> {
        match self {
            In::Process => change.assume().map(Guard::Process),
            In::Thread => change.assume_on_thread().map(Guard::Thread),
        }
    }

    /// As the event says it.
    pub fn name(self) -> &'static str {
        match self {
            In::Process => "process",
            In::Thread => "thread",
        }
    }
}

#[derive(Debug)]
pub enum Guard {
    Process(GroupGuard<Process>),
    Thread(GroupGuard<Thread>),
}

impl Guard {
    pub fn original(&self) -> GroupIds {
        match self {
            Guard::Process(guard) => guard.original(),
            Guard::Thread(guard) => guard.original(),
        }
    }

    pub fn restore(self) -> Result<(), Error> {
        match self {
            Guard::Process(guard) => guard.restore(),
            Guard::Thread(guard) => guard.restore(),
        }
    }

    pub fn run<T>(self, f: impl FnOnce() -> T) -> Result<T, Error> {
        match self {
            Guard::Process(guard) => guard.run(f),
            Guard::Thread(guard) => guard.run(f),
        }
    }
}

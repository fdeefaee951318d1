//! The tests of the library: one module for each subject, each with a list of its cases.
//!
//! To add a case, write a function in a module and a line in that module's `CASES`.
//! To add a module, name it twice here.

mod audit;
mod common;
mod diagnostics;
mod environments;
mod events;
mod exact;
mod examples;
mod exclusion;
mod faults;
mod identities;
mod limits;
mod model;
mod nesting;
mod permanent;
mod permanent_daemon;
mod porting;
mod readme;
mod refusals;
mod semantics;
mod syscalls;
mod traceability;
mod undoing;
mod users;
mod walk;

const MODULES: [&[common::Case]; 23] = [
    audit::CASES,
    diagnostics::CASES,
    environments::CASES,
    events::CASES,
    exact::CASES,
    examples::CASES,
    exclusion::CASES,
    faults::CASES,
    identities::CASES,
    limits::CASES,
    model::CASES,
    nesting::CASES,
    permanent::CASES,
    permanent_daemon::CASES,
    porting::CASES,
    readme::CASES,
    refusals::CASES,
    semantics::CASES,
    syscalls::CASES,
    traceability::CASES,
    undoing::CASES,
    users::CASES,
    walk::CASES,
];

fn main() -> std::process::ExitCode {
    common::main(MODULES.concat())
}

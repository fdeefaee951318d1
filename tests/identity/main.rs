//! The tests of the library: one module for each subject, each with a list of its cases.
//!
//! To add a case, write a function in a module and a line in that module's `CASES`.
//! To add a module, name it twice here.

mod all_threads;
mod attacked_guards;
mod attacked_threads;
mod audit;
mod common;
mod diagnostics;
mod environments;
mod events;
mod exact;
mod examples;
mod examples_of_users;
mod exclusion;
mod faults;
mod growth;
mod identities;
mod inherited;
#[path = "../../src/plan/kernel_model.rs"]
mod kernel_model;
#[path = "../../src/plan/kernel_search.rs"]
mod kernel_search;
mod limits;
mod model;
mod nesting;
mod own_code;
mod permanent;
mod permanent_daemon;
mod porting;
mod readme;
mod refusals;
mod semantics;
mod syscalls;
mod traceability;
mod undoing;
mod user_model;
mod user_warnings;
mod users;
mod walk;

const MODULES: [&[common::Case]; 32] = [
    all_threads::CASES,
    attacked_threads::CASES,
    attacked_guards::CASES,
    audit::CASES,
    diagnostics::CASES,
    environments::CASES,
    events::CASES,
    exact::CASES,
    examples::CASES,
    examples_of_users::CASES,
    exclusion::CASES,
    faults::CASES,
    growth::CASES,
    identities::CASES,
    inherited::CASES,
    limits::CASES,
    model::CASES,
    nesting::CASES,
    own_code::CASES,
    permanent::CASES,
    permanent_daemon::CASES,
    porting::CASES,
    readme::CASES,
    refusals::CASES,
    semantics::CASES,
    syscalls::CASES,
    traceability::CASES,
    undoing::CASES,
    user_model::CASES,
    user_warnings::CASES,
    users::CASES,
    walk::CASES,
];

fn main() -> std::process::ExitCode {
    common::main(MODULES.concat())
}

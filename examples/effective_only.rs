//! The tutorial's "Changing Only Effective GID", `os.setregid(-1, 1002)`: permission checks use the group, and the real one stays.
//! With `--user` the same for a user, as `os.setreuid(-1, 1000)`.
//!
//! `cargo run --example effective_only [GROUP | -- --user USER]`

mod common;

use common::files::{group_of_new_file, owner_of_new_file};
use common::kernel::{Identity, Status};
use common::{Outcome, Target, verify};
use privilege_guard::{GroupGuard, UserGuard};

fn main() -> std::process::ExitCode {
    common::run(|| match common::user_or_group_or(1002)? {
        Target::Group(group) => as_group(group),
        Target::User(user) => as_user(user),
    })
}

fn as_group(group: u32) -> Outcome {
    let before = Identity::read()?;
    println!("Before: {before}");

    let guard = GroupGuard::assume_effective(group)?;
    println!("Changed effective group to {group}");
    let inside = Identity::read()?;
    verify("effective group", inside.effective, group)?;
    verify("group of a new file", group_of_new_file()?, group)?;
    verify("real group, as before", inside.real, before.real)?;

    guard.restore().map_err(|error| error.to_string())?;
    println!("Changed back");
    verify("identity", Identity::read()?, before)
}

/// The user whose id it is gains no power over this process: signals are permitted by the real and the saved id.
fn as_user(user: u32) -> Outcome {
    let before = Status::read()?;
    println!("Before: {before}");

    let guard = UserGuard::assume_effective(user)?;
    println!("Changed effective user to {user}");
    let inside = Status::read()?;
    verify("effective user", inside.users[1], user)?;
    verify("owner of a new file", owner_of_new_file()?, user)?;
    verify("real user, as before", inside.users[0], before.users[0])?;
    println!(
        "  effective capabilities: {:x}",
        inside.effective_capabilities
    );

    guard.restore().map_err(|error| error.to_string())?;
    println!("Changed back");
    // With all capability sets: the kernel clears the effective one when user 0 is left.
    verify("identity", Status::read()?, before)
}

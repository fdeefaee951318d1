//! The tutorial's "Temporary Privilege Change": works as another group for a moment and comes back exactly, also where the work panics.
//! With `--user` it works as another user.
//!
//! `cargo run --example temporary_change [GROUP | -- --user USER]`

mod common;

use std::os::unix::fs::MetadataExt;

use common::files::{self, group_of_new_file, owner_of_new_file};
use common::kernel::{Identity, Status, group_of_child, user_of_child};
use common::{Outcome, Target, verify};
use privilege_guard::{GroupGuard, UserGuard};

fn main() -> std::process::ExitCode {
    common::run(|| match common::user_or_group_or(1004)? {
        Target::Group(group) => as_group(group),
        Target::User(user) => as_user(user),
    })
}

fn as_group(group: u32) -> Outcome {
    let before = Identity::read()?;
    println!("Before: {before}");
    let folder = tempfile::tempdir()?;
    let report = folder.path().join("report");

    {
        let _guard = GroupGuard::assume(group)?;
        println!("Working as group {group}");
        std::fs::write(&report, "written as another group")?;
        verify("group of a child process", group_of_child()?, group)?;
    }
    println!("Back");
    verify("identity", Identity::read()?, before.clone())?;
    verify(
        "group of the file that was written",
        report.metadata()?.gid(),
        group,
    )?;
    verify(
        "group of a new file",
        group_of_new_file()?,
        before.effective,
    )?;

    println!("The same with a panic, on purpose");
    let panicked = std::panic::catch_unwind(|| -> Outcome {
        let _guard = GroupGuard::assume(group)?;
        verify("effective group", Identity::read()?.effective, group)?;
        panic!("on purpose");
    });
    verify("panicked", panicked.is_err(), true)?;
    verify("identity", Identity::read()?, before)
}

fn as_user(user: u32) -> Outcome {
    let before = Status::read()?;
    println!("Before: {before}");
    // Unlike a group, another user without capabilities may not write into a folder of this one.
    let folder = files::open_folder()?;
    let report = folder.path().join("report");

    {
        let _guard = UserGuard::assume_effective(user)?;
        println!("Working as user {user}");
        std::fs::write(&report, "written as another user")?;
        verify("user of a child process", user_of_child()?, user)?;
    }
    println!("Back");
    verify("identity", Status::read()?, before.clone())?;
    verify(
        "owner of the file that was written",
        report.metadata()?.uid(),
        user,
    )?;
    verify("owner of a new file", owner_of_new_file()?, before.users[1])?;

    println!("The same with a panic, on purpose");
    let panicked = std::panic::catch_unwind(|| -> Outcome {
        let _guard = UserGuard::assume_effective(user)?;
        verify("effective user", Status::read()?.users[1], user)?;
        panic!("on purpose");
    });
    verify("panicked", panicked.is_err(), true)?;
    verify("identity", Status::read()?, before)
}

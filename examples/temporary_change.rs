//! The tutorial's "Temporary Privilege Change": works as another group for a moment and comes back exactly, also where the work panics.
//!
//! `cargo run --example temporary_change [group]`

mod common;

use std::os::unix::fs::MetadataExt;

use common::files::group_of_new_file;
use common::kernel::{Identity, group_of_child};
use common::verify;
use privilege_guard::GroupGuard;

fn main() -> std::process::ExitCode {
    common::run(|| {
        let group = common::group_or(1004)?;
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
        let panicked = std::panic::catch_unwind(|| -> common::Outcome {
            let _guard = GroupGuard::assume(group)?;
            verify("effective group", Identity::read()?.effective, group)?;
            panic!("on purpose");
        });
        verify("panicked", panicked.is_err(), true)?;
        verify("identity", Identity::read()?, before)
    })
}

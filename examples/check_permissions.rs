//! Checking group permissions: which files may group 1005 open? Asked so that the group decides, and not root.
//!
//! Run as root: `cargo build --examples && sudo target/debug/examples/check_permissions`.

mod common;

use std::path::Path;
use std::process::ExitCode;
use std::thread;

use common::files::{self, may_read};
use common::kernel::Status;
use common::{Outcome, verify};
use privilege_guard::{GroupChange, GroupGuard};
use rustix::thread::CapabilitySet;

const GROUP: u32 = 1005;
const OTHER_GROUP: u32 = 1006;
/// Owns the files.
const OWNER: u32 = 1000;
/// Owns nothing.
const ORDINARY_USER: u32 = 1234;

fn main() -> ExitCode {
    common::run_as_root(
        &[0, GROUP, OTHER_GROUP, OWNER, ORDINARY_USER],
        check_permissions,
    )
}

fn check_permissions() -> Outcome {
    let before = Status::read()?;
    let folder = files::folder(0)?;
    let file = |name, group| {
        files::file(
            folder.path().join(name),
            (OWNER, group),
            0o440,
            "Test content",
        )
    };
    let (of_group, of_other) = (file("of-1005", GROUP)?, file("of-1006", OTHER_GROUP)?);

    println!("The tutorial's check, as root under group {GROUP}:");
    for file in [&of_group, &of_other] {
        let opens = GroupGuard::assume(GROUP)?.run(|| may_read(file))?;
        verify(format_args!("{} opens", name(file)), opens, true)?;
    }
    println!("It says nothing of the group: root's CAP_DAC_OVERRIDE opens both.");

    println!(
        "The group's own rights, on a thread of user {ORDINARY_USER} without that capability:"
    );
    for (group, file, may) in [
        (GROUP, &of_group, true),
        (GROUP, &of_other, false),
        (OTHER_GROUP, &of_group, false),
        (OTHER_GROUP, &of_other, true),
    ] {
        verify(
            format_args!("group {group} may open {}", name(file)),
            group_may_read(group, file)?,
            may,
        )?;
    }
    verify(
        "this thread is what it was, with all its capabilities",
        Status::read()? == before,
        true,
    )
}

/// Whether members of the group may read the file, as members and in no other way.
fn group_may_read(group: u32, file: &Path) -> Outcome<bool> {
    // On a thread of its own, so that nothing has to be given back; and so the guard is one of the thread.
    let asked = thread::scope(|scope| {
        let thread = scope.spawn(|| {
            give_up_roots_rights()?;
            // Supplementary groups open files too.
            let as_member = GroupChange::both(group)
                .no_supplementary()
                .assume_on_thread()?;
            Ok(as_member.run(|| may_read(file))?)
        });
        thread.join()
    });
    asked.unwrap_or_else(|_| Err("the thread that asks has panicked".into()))
}

/// For the calling thread: what passes every check of permissions, and the user, who may own the file.
fn give_up_roots_rights() -> Outcome {
    let passes_checks = CapabilitySet::DAC_OVERRIDE | CapabilitySet::DAC_READ_SEARCH;
    let mut sets = rustix::thread::capabilities(None)?;
    sets.effective.remove(passes_checks);
    rustix::thread::set_capabilities(None, sets)?;
    // With plain securebits this alone would take them too.
    nix::unistd::setfsuid(ORDINARY_USER.into());

    let now = Status::read()?;
    if now.users[3] != ORDINARY_USER || now.effective_capabilities & passes_checks.bits() != 0 {
        return Err(format!("root's rights are not given up: {now:?}").into());
    }
    Ok(())
}

fn name(file: &Path) -> std::borrow::Cow<'_, str> {
    file.file_name().unwrap_or_default().to_string_lossy()
}

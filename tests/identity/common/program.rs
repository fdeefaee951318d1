//! What this binary does in place of other programs, so that the tests need none.

use std::fs::File;
use std::io::copy;
use std::os::fd::AsFd;
use std::process::Command;

use super::kernel;

const ROLE: &str = "PRIVILEGE_GUARD_PROGRAM";

/// A program that copies its stdin to its stdout.
pub fn copies() -> Command {
    in_role("copies")
}

/// A program that prints `/proc/self/status`.
pub fn shows_status() -> Command {
    in_role("shows_status")
}

/// Prints its `/proc/self/status`; then tries to be user 0, and to set its groups, and prints how each call ended.
pub const TRIES_TO_RETURN: &str = "tries_to_return";

/// A copy of this binary, which another user may execute too, in this role.
pub fn copy_in_role(copy: &std::path::Path, role: &str) -> Command {
    let mut program = Command::new(copy);
    program.env(ROLE, role);
    program
}

/// A program that tries to set its user ids to 0, and prints `/proc/self/status`.
pub fn returns_to_user_0() -> Command {
    in_role("returns_to_user_0")
}

/// Not by its path: only the one who built it might be able to enter the directory.
fn in_role(role: &str) -> Command {
    let mut program = Command::new("/proc/self/exe");
    program.env(ROLE, role);
    program
}

/// Plays the role that this process was started for, if any, and exits.
pub fn run_if_asked() {
    super::attack::run_if_child();
    let Ok(role) = std::env::var(ROLE) else {
        return;
    };
    if role == "returns_to_user_0" {
        _ = super::kernel::raw_setresuid(Some(0), Some(0), Some(0));
    }
    let done = match role.as_str() {
        "copies" => copy(
            &mut unbuffered(std::io::stdin()),
            &mut unbuffered(std::io::stdout()),
        ),
        "shows_status" | "returns_to_user_0" => show_status(),
        TRIES_TO_RETURN => {
            let shown = show_status();
            for (name, result) in [
                (
                    "setresuid",
                    kernel::raw_setresuid(Some(0), Some(0), Some(0)),
                ),
                (
                    "setresgid",
                    kernel::raw_setresgid(Some(0), Some(0), Some(0)),
                ),
                ("setgroups", kernel::raw_setgroups(&[])),
            ] {
                println!("{name}: {result:?}");
            }
            shown
        }
        _ => panic!("no program of this binary: {role}"),
    };
    done.expect("a copy");
    std::process::exit(0);
}

fn show_status() -> std::io::Result<u64> {
    copy(
        &mut File::open("/proc/self/status").expect("status"),
        &mut std::io::stdout(),
    )
}

/// std's stdout keeps what is not a whole line.
fn unbuffered(stream: impl AsFd) -> File {
    stream
        .as_fd()
        .try_clone_to_owned()
        .expect("another descriptor")
        .into()
}

//! Runs a command as somebody else, as `setpriv(1)` and `su(1)` do: with their user, group and supplementary groups, and without
//! capabilities.
//!
//! ```text
//! sudo target/debug/examples/run_as alice -- id
//! sudo target/debug/examples/run_as alice:staff -- touch /tmp/hers
//! ```
//!
//! It passes the command's exit status on. Its own errors are 125; as in a shell, 126 is a command that cannot be executed, 127 one that
//! does not exist, and 128 more than the number of a signal that ended it.

use std::ffi::OsString;
use std::io::ErrorKind;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitCode, ExitStatus};

use clap::Parser;
use privilege_guard::{CapabilitySet, Identity, IdentityGuard};
use rustix::thread::{capabilities, set_capabilities};

/// Runs a command with another user, group and supplementary groups, and without capabilities.
#[derive(Parser)]
struct Arguments {
    /// Whom to run it as: a user with its account's groups ("alice", "1000"), or a user and a group without supplementary groups
    /// ("alice:staff", "1000:1000").
    #[arg(value_name = "USER[:GROUP]")]
    identity: Identity,
    /// The command and its arguments.
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

const OWN_ERROR: u8 = 125;
const CANNOT_EXECUTE: u8 = 126;
const NOT_FOUND: u8 = 127;

fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(usage) => {
            _ = usage.print();
            let is_help = !usage.use_stderr();
            return ExitCode::from(if is_help { 0 } else { OWN_ERROR });
        }
    };
    let (program, rest) = arguments.command.split_first().expect("required by clap");
    let fail = |code, error: &dyn std::fmt::Display| {
        eprintln!("run_as: {error}");
        ExitCode::from(code)
    };

    // An exec keeps the inheritable set, which the guard has no reason to change.
    if let Err(error) = clear_inheritable() {
        return fail(OWN_ERROR, &error);
    }
    let guard = match IdentityGuard::assume_real_and_effective_on_thread(&arguments.identity) {
        Ok(guard) => guard,
        Err(error) => return fail(OWN_ERROR, &error),
    };
    // Only the start is under the guard: under its real user id this process, too, is open to signals of that user.
    let started = guard.run(|| Command::new(program).args(rest).spawn());
    let ended = match started {
        Ok(mut child) => child.wait(),
        Err(error) => {
            let code = match error.kind() {
                ErrorKind::NotFound => NOT_FOUND,
                _ => CANNOT_EXECUTE,
            };
            return fail(
                code,
                &format_args!("{}: {error}", program.to_string_lossy()),
            );
        }
    };
    match ended {
        Ok(status) => ExitCode::from(exit_code(status)),
        Err(error) => fail(OWN_ERROR, &error),
    }
}

fn clear_inheritable() -> rustix::io::Result<()> {
    let mut sets = capabilities(None)?;
    if sets.inheritable.is_empty() {
        return Ok(());
    }
    sets.inheritable = CapabilitySet::empty();
    set_capabilities(None, sets)
}

fn exit_code(status: ExitStatus) -> u8 {
    let code = status
        .code()
        .or_else(|| status.signal().map(|signal| 128 + signal));
    code.and_then(|code| u8::try_from(code).ok())
        .unwrap_or(OWN_ERROR)
}

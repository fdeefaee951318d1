//! What the examples share: their argument, what they verify, and what they do where the privilege is missing.

#![allow(dead_code, reason = "each example uses a part of it")]

use std::error::Error;
use std::fmt;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use privilege_guard::Gid;

pub type Outcome<T = ()> = Result<T, Box<dyn Error>>;

/// Makes a user namespace in which the caller has every capability over its subordinate ids (`subgid(5)`).
const NAMESPACE: &[&str] = &["unshare", "--user", "--map-root-user", "--map-auto"];

/// Says to the program that it is the second run, which is not to start a third.
const SECOND_RUN: &str = "PRIVILEGE_GUARD_SECOND_RUN";

/// Runs the example. Exit code 0: all was done and verified; 1: something does not hold; 2: the privilege is missing.
pub fn run(example: impl FnOnce() -> Outcome) -> ExitCode {
    let before = Identity::read();
    let Err(error) = example() else { return ExitCode::SUCCESS };
    eprintln!("{error}");

    use privilege_guard::Error::{Irreversible, NotPermitted};
    if !matches!(error.downcast_ref(), Some(NotPermitted { .. } | Irreversible { .. })) {
        return ExitCode::FAILURE;
    }
    let unchanged = before.and_then(|before| verify("identity, unchanged by the refusal", Identity::read()?, before));
    if let Err(error) = unchanged {
        eprintln!("{error}");
        return ExitCode::FAILURE;
    }
    run_in_user_namespace().unwrap_or_else(|why_not| {
        eprintln!("{why_not}");
        ExitCode::from(2)
    })
}

/// Replaces this process by a second run where that has the privilege; returns only where it cannot, with how else to run it.
fn run_in_user_namespace() -> Outcome<ExitCode> {
    let program = std::env::current_exe()?;
    let shown = program.display();
    let how = format!(
        "\nThis example needs CAP_SETGID. Run it as root, or give it the capability, or make a user namespace:\n  \
         sudo {shown}\n  \
         sudo setcap cap_setgid+ep {shown} && {shown}\n  \
         {} {shown}",
        NAMESPACE.join(" ")
    );
    let unshare = || {
        let mut command = Command::new(NAMESPACE[0]);
        command.args(&NAMESPACE[1..]);
        command
    };
    if std::env::var_os(SECOND_RUN).is_some() {
        return Err(how.into());
    }
    let possible = unshare().arg("true").output().map_err(|error| format!("{how}\n{}: {error}", NAMESPACE[0]))?;
    if !possible.status.success() {
        return Err(format!("{how}\nThe last one does not work here: {}", String::from_utf8_lossy(&possible.stderr).trim_end()).into());
    }
    println!("\nThis process has no CAP_SETGID. Running again where it has, in a user namespace:\n  {} {shown}\n", NAMESPACE.join(" "));
    Err(unshare().arg(&program).args(std::env::args_os().skip(1)).env(SECOND_RUN, "1").exec().into())
}

/// The group to change to: the first argument, a number or a name; else the tutorial's.
pub fn group_or(default: u32) -> Outcome<Gid> {
    Ok(match std::env::args().nth(1) {
        None => Gid::from(default),
        Some(number) if number.starts_with(|first: char| first.is_ascii_digit()) => number.parse()?,
        Some(name) => Gid::from_group_name(&name)?,
    })
}

/// Prints that it is so, or fails.
pub fn verify<T: PartialEq + fmt::Display>(what: &str, found: T, expected: T) -> Outcome {
    if found != expected {
        return Err(format!("does not hold: {what}: {found}, expected {expected}").into());
    }
    println!("  verified: {what}: {found}");
    Ok(())
}

/// What the kernel says of the calling thread, asked without the library.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    pub real: Gid,
    pub effective: Gid,
    pub saved: Gid,
    pub filesystem: Gid,
    pub supplementary: Vec<Gid>,
}

impl Identity {
    pub fn read() -> Outcome<Self> {
        let status = std::fs::read_to_string("/proc/thread-self/status")?;
        let numbers = |field: &str| -> Outcome<Vec<Gid>> {
            let line = status.lines().find_map(|line| line.strip_prefix(field)).ok_or(field)?;
            Ok(line.split_whitespace().map(str::parse).collect::<Result<_, _>>()?)
        };
        let ids = numbers("Gid:")?;
        let [real, effective, saved, filesystem] = ids[..] else { return Err("not four ids".into()) };
        Ok(Identity { real, effective, saved, filesystem, supplementary: numbers("Groups:")? })
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Identity { real, effective, saved, filesystem, supplementary } = self;
        let supplementary: Vec<u32> = supplementary.iter().map(|gid| gid.as_raw()).collect();
        write!(f, "real {real}, effective {effective}, saved {saved}, filesystem {filesystem}, supplementary {supplementary:?}")
    }
}

/// The group of a file that is made now.
pub fn group_of_new_file() -> Outcome<Gid> {
    Ok(tempfile::tempfile()?.metadata()?.gid().into())
}

/// The effective group of a process that is started now.
pub fn group_of_child() -> Outcome<Gid> {
    let output = Command::new("id").arg("-g").output()?;
    Ok(String::from_utf8(output.stdout)?.trim_end().parse()?)
}

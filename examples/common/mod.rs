//! What the examples share: how they run, verify and end. What they ask the kernel, without the library, is in `kernel` and `files`.

#![allow(dead_code, reason = "each example uses a part of it")]

pub mod files;
pub mod game;
pub mod http;
pub mod kernel;

use std::error::Error;
use std::fmt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode};

use kernel::Status;
use privilege_guard::{Gid, Uid};

pub type Outcome<T = ()> = Result<T, Box<dyn Error + Send + Sync>>;

/// What the example was to show cannot be shown here; nothing is wrong.
#[derive(Debug)]
pub struct CannotRun(pub String);

impl fmt::Display for CannotRun {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Error for CannotRun {}

/// 0: all was done and verified; 1: something does not hold; 2: it cannot be shown here, as where the privilege is missing.
pub fn exit_code(outcome: Outcome) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::from(if error.is::<CannotRun>() { 2 } else { 1 })
        }
    }
}

/// Runs the example; where it is refused for want of privilege, once more in a user namespace.
pub fn run(example: impl FnOnce() -> Outcome) -> ExitCode {
    if kernel::is_child_that_shows_its_ids() {
        return ExitCode::SUCCESS;
    }
    let run = || {
        let before = Status::read()?;
        let Err(refusal) = run_to_the_end(example) else {
            return Ok(());
        };
        let Some(missing) = refusal.downcast_ref().and_then(missing_privilege) else {
            return Err(refusal);
        };
        eprintln!("{refusal}");
        verify(
            "identity, unchanged by the refusal",
            Status::read()?,
            before,
        )?;
        run_in_user_namespace(missing)
    };
    exit_code(run())
}

/// What the run would have needed, if it was refused for want of a privilege.
fn missing_privilege(error: &privilege_guard::Error) -> Option<&'static str> {
    use privilege_guard::Error::{Irreversible, NotPermitted, UnmappedGid, UnmappedUid};
    match error {
        UnmappedGid { .. } => Some("a user namespace that maps the group"),
        UnmappedUid { .. } => Some("a user namespace that maps the user"),
        NotPermitted { .. } | Irreversible { .. } => {
            let is_of_users = error.to_string().contains(CAP_SETUID);
            Some(if is_of_users { CAP_SETUID } else { CAP_SETGID })
        }
        _ => None,
    }
}

/// Runs an example that needs root, over these user and group ids; where they are missing, in a user namespace.
pub fn run_as_root(ids: &[u32], example: impl FnOnce() -> Outcome) -> ExitCode {
    exit_code(kernel::missing(ids).and_then(|missing| match missing {
        None => run_to_the_end(example),
        Some(missing) => run_in_user_namespace(&missing),
    }))
}

fn run_to_the_end(example: impl FnOnce() -> Outcome) -> Outcome {
    example().inspect(|()| println!("all verified"))
}

const CAP_SETGID: &str = "CAP_SETGID";
const CAP_SETUID: &str = "CAP_SETUID";

/// Says to the program that it is the second run, which is not to start a third.
const SECOND_RUN: &str = "PRIVILEGE_GUARD_SECOND_RUN";

/// Replaces this process by a second run; returns only where that cannot be done, with how else to run it.
fn run_in_user_namespace(missing: &str) -> Outcome {
    /// In there the caller has every capability over its subordinate ids.
    const UNSHARE: [&str; 4] = ["unshare", "--user", "--map-root-user", "--map-auto"];
    let unshare = || {
        let mut command = Command::new(UNSHARE[0]);
        command.args(&UNSHARE[1..]);
        command
    };
    let program = std::env::current_exe()?;
    let shown = quoted(&program);
    let again = format!("{} {shown}", UNSHARE.join(" "));
    let with_capability = if [CAP_SETGID, CAP_SETUID].contains(&missing) {
        let capability = missing.to_lowercase();
        format!("  sudo setcap {capability}+ep {shown} && {shown}\n")
    } else {
        String::new()
    };
    let how = format!(
        "this needs {missing}. One of these has it:\n  sudo {shown}\n{with_capability}  {again}\n\
         The last one needs subordinate ids (a line with your name in /etc/subuid and /etc/subgid) and the package uidmap."
    );
    if std::env::var_os(SECOND_RUN).is_some() {
        return Err(CannotRun(how).into());
    }
    let why_not = match unshare().arg("true").output() {
        Ok(possible) if possible.status.success() => None,
        Ok(refused) => Some(
            String::from_utf8_lossy(&refused.stderr)
                .trim_end()
                .to_owned(),
        ),
        Err(error) => Some(format!("{}: {error}", UNSHARE[0])),
    };
    if let Some(why_not) = why_not {
        return Err(CannotRun(format!("{how} It does not work here: {why_not}")).into());
    }
    println!("this needs {missing}; running again in a user namespace:\n  {again}");
    Err(unshare()
        .arg(&program)
        .args(std::env::args_os().skip(1))
        .env(SECOND_RUN, "1")
        .exec()
        .into())
}

/// The path as a shell takes it.
fn quoted(path: &Path) -> String {
    let path = path.display().to_string();
    let is_plain = |letter: char| letter.is_ascii_alphanumeric() || "/._-+,:@%".contains(letter);
    if path.chars().all(is_plain) {
        path
    } else {
        format!("'{}'", path.replace('\'', r"'\''"))
    }
}

/// Prints that it is so, or fails.
pub fn verify<T: PartialEq + fmt::Display>(
    what: impl fmt::Display,
    found: T,
    expected: T,
) -> Outcome {
    if found != expected {
        return Err(format!("does not hold: {what}: {found}, expected {expected}").into());
    }
    println!("  verified: {what}: {found}");
    Ok(())
}

/// The group to change to: the first argument, a number or a name; else the tutorial's.
pub fn group_or(default: u32) -> Outcome<u32> {
    let group = match std::env::args().nth(1) {
        None => Gid::from(default),
        Some(number) if is_number(&number) => number.parse()?,
        Some(name) => Gid::from_group_name(&name)?,
    };
    Ok(group.as_raw())
}

/// Whom to change to.
pub enum Target {
    Group(u32),
    User(u32),
}

/// The user of `--user USER`, a number or a name; without it, the group as [`group_or`] has it.
pub fn user_or_group_or(default: u32) -> Outcome<Target> {
    let mut arguments = std::env::args().skip(1);
    if arguments.next().as_deref() != Some("--user") {
        return group_or(default).map(Target::Group);
    }
    let user = match arguments.next() {
        None => return Err("--user needs the number or the name of a user".into()),
        Some(number) if is_number(&number) => number.parse()?,
        Some(name) => Uid::from_user_name(&name)?,
    };
    Ok(Target::User(user.as_raw()))
}

fn is_number(text: &str) -> bool {
    text.starts_with(|first: char| first.is_ascii_digit())
}

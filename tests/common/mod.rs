//! The harness: group identity belongs to the process, so each case runs in a process of its own (this binary, started again).
//!
//! A case that the run has no privilege for is reported as ignored, with the reason; it never counts as passed.
//! `PRIVILEGE_GUARD_TESTS=root|user|userns` declares what the run has; a run that is not so fails.

#![allow(dead_code, reason = "each test binary uses a part of it")]

pub mod attack;
pub mod fault;
pub mod guard;
pub mod kernel;
pub mod ring;
pub mod sandbox;
pub mod sibling;
pub mod subscriber;

use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use libtest_mimic::{Arguments, Completion, Failed, Trial};

/// Names the case that this process is to run.
pub const CASE: &str = "PRIVILEGE_GUARD_CASE";

/// What a case may take before it is taken for hung, and killed.
const LONGEST: Duration = Duration::from_secs(300);
const LONGEST_OF_LONG: Duration = Duration::from_secs(4 * 3600);

/// The exit code of a case that ignores itself.
const IGNORED: i32 = 77;

/// What a case needs; where it is not there, the case is ignored and says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Needs {
    /// Nothing: it holds for everybody.
    Nothing,
    /// CAP_SETGID over the group ids 0 to 9999, and `setgroups` allowed: root, or a user namespace with mapped subordinate ids.
    Setgid,
    /// Root outside any user namespace, with [`kernel::ROOT_CAPABILITIES`]: other users, file capabilities, new namespaces with any map.
    Root,
    /// No CAP_SETGID: an ordinary user.
    NoSetgid,
    /// As `Setgid`, and time: only where it is asked for, with `--ignored` or `--include-ignored`.
    Long,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Environment {
    Root,
    User,
    Userns,
}

/// What this run has, asked of the kernel.
pub fn environment() -> Environment {
    let setgid = kernel::capabilities().effective & kernel::CAP_SETGID != 0;
    match (setgid, kernel::maps_all_ids()) {
        (true, true) => Environment::Root,
        (true, false) => Environment::Userns,
        (false, _) => Environment::User,
    }
}

fn missing(needs: Needs) -> Option<String> {
    let mapped = (0..10_000).all(kernel::is_mapped);
    let needs = if needs == Needs::Long { Needs::Setgid } else { needs };
    match (needs, environment()) {
        (Needs::Nothing, _) | (Needs::Setgid, Environment::Root) | (Needs::NoSetgid, Environment::User) => None,
        (Needs::Root, Environment::Root) if kernel::capabilities().effective & kernel::ROOT_CAPABILITIES == kernel::ROOT_CAPABILITIES => {
            None
        }
        (Needs::Setgid, Environment::Userns) if mapped && !kernel::setgroups_denied() => None,
        (Needs::Setgid, Environment::Userns) => {
            Some("needs mapped group ids and setgroups (unshare --user --map-root-user --map-auto)".into())
        }
        (Needs::Setgid, Environment::User) => Some("needs CAP_SETGID".into()),
        (Needs::Root, _) => Some("needs root with its capabilities, outside any user namespace".into()),
        (Needs::NoSetgid, _) => Some("for ordinary users: this run has CAP_SETGID".into()),
        (Needs::Long, _) => unreachable!("as Setgid"),
    }
}

pub struct Case {
    pub name: &'static str,
    pub needs: Needs,
    pub run: fn(),
}

/// `cases![needs: function, ...]`
#[macro_export]
macro_rules! cases {
    ($($needs:ident: $function:ident),* $(,)?) => {
        &[$($crate::common::Case { name: stringify!($function), needs: $crate::common::Needs::$needs, run: $function }),*]
    };
}

/// The `main` of a test binary.
pub fn main(cases: &'static [Case]) -> ExitCode {
    attack::run_if_child();
    if let Ok(name) = std::env::var(CASE) {
        // Children of the case are not to run it again.
        // SAFETY: there is no other thread yet.
        unsafe { std::env::remove_var(CASE) };
        let case = cases.iter().find(|case| case.name == name).expect("a case of this name");
        (case.run)();
        return ExitCode::SUCCESS;
    }
    if let Err(lie) = declared_as_is() {
        eprintln!("{lie}");
        return ExitCode::FAILURE;
    }
    // nextest asks for a list, and takes what ends well for passed: what cannot be run has to be ignored there.
    let listing = std::env::args().any(|argument| argument == "--list");
    let trials = cases.iter().map(|case| {
        Trial::ignorable_test(case.name, move || match missing(case.needs) {
            Some(reason) => Ok(Completion::ignored_with(reason)),
            None => run_alone(case),
        })
        .with_ignored_flag(case.needs == Needs::Long || listing && missing(case.needs).is_some())
    });
    libtest_mimic::run(&Arguments::from_args(), trials.collect()).exit_code()
}

fn declared_as_is() -> Result<(), String> {
    let is = match environment() {
        Environment::Root => "root",
        Environment::User => "user",
        Environment::Userns => "userns",
    };
    match std::env::var("PRIVILEGE_GUARD_TESTS") {
        Ok(declared) if declared != is => Err(format!("PRIVILEGE_GUARD_TESTS={declared} declares what is not so: this run is {is}")),
        _ => Ok(()),
    }
}

/// Runs the case in a process of its own. What it prints is shown where it fails; lines that begin with `= ` always.
fn run_alone(case: &Case) -> Result<Completion, Failed> {
    let name = case.name;
    let longest = if case.needs == Needs::Long { LONGEST_OF_LONG } else { LONGEST };
    let output = tempfile::tempfile().map_err(|error| error.to_string())?;
    let copy = || output.try_clone().map(Stdio::from).map_err(|error| error.to_string());
    let mut child = Command::new(std::env::current_exe().map_err(|error| error.to_string())?)
        .env(CASE, name)
        .env("RUST_BACKTRACE", "0")
        .stdin(Stdio::null())
        .stdout(copy()?)
        .stderr(copy()?)
        .spawn()
        .map_err(|error| error.to_string())?;
    let started = Instant::now();
    let status = loop {
        match child.try_wait().map_err(|error| error.to_string())? {
            Some(status) => break status.to_string(),
            None if started.elapsed() > longest => {
                _ = child.kill();
                _ = child.wait();
                break format!("killed after {longest:?}");
            }
            None => std::thread::sleep(Duration::from_millis(2)),
        }
    };
    let printed = read_all(output);
    for line in printed.lines().filter(|line| line.starts_with("= ")) {
        println!("{name}: {}", &line[2..]);
    }
    match status.as_str() {
        "exit status: 0" => Ok(Completion::Completed),
        status if status == format!("exit status: {IGNORED}") => Ok(Completion::ignored_with(printed.lines().last().unwrap_or_default())),
        _ => Err(format!("{status}\n{printed}").into()),
    }
}

/// Of a case that finds out on its way that the machine cannot do what it needs: it is reported as ignored.
pub fn ignore(reason: &str) -> ! {
    println!("{reason}");
    std::process::exit(IGNORED)
}

fn read_all(mut file: std::fs::File) -> String {
    use std::io::{Read, Seek};
    let mut text = Vec::new();
    file.rewind().expect("a temporary file");
    file.read_to_end(&mut text).expect("a temporary file");
    String::from_utf8_lossy(&text).into_owned()
}

//! The harness: group identity belongs to the process, so each case runs in a process of its own (this binary, started again).
//!
//! A case is reported as ignored, with the reason, if the run lacks what it needs: a privilege, a program, a feature of the machine.
//! It then counts as neither passed nor failed.
//! `PRIVILEGE_GUARD_TESTS=root|user|userns` declares what the run has; a run that is not so fails.

pub mod attack;
pub mod calls;
pub mod fault;
pub mod guard;
pub mod kernel;
pub mod needs;
pub mod program;
pub mod ring;
pub mod sandbox;
pub mod second_copy;
pub mod sibling;
pub mod subscriber;

use std::os::unix::fs::PermissionsExt;
use std::process::{Command, ExitCode, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use libtest_mimic::{Arguments, Completion, Failed, Trial};

pub use needs::{Environment, Needs, environment};

/// Names the case that this process is to run.
pub const CASE: &str = "PRIVILEGE_GUARD_CASE";

/// What a case may take before it is taken for hung, and killed.
const LONGEST: Duration = Duration::from_secs(300);
const LONGEST_OF_LONG: Duration = Duration::from_secs(4 * 3600);

/// The exit code of a case that ignores itself.
const IGNORED: i32 = 77;

/// One case: what it needs and what it does.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    /// With the name of this binary before it, as `module_path!` has it.
    pub path: &'static str,
    pub needs: Needs,
    /// What else it needs; each returns what is missing.
    pub also: &'static [fn() -> Option<String>],
    pub run: fn(),
}

impl Case {
    /// As it is printed, and as `cargo test` takes it: `module::function`.
    pub fn name(&self) -> &'static str {
        self.path.split_once("::").expect("a case in a module").1
    }

    fn missing(&self) -> Option<String> {
        needs::missing(self.needs).or_else(|| self.also.iter().find_map(|missing| missing()))
    }
}

/// `cases![Setgid: function, Root + strace: another, ...]`: a variant of [`Needs`], and functions of [`needs`].
#[macro_export]
macro_rules! cases {
    ($($needs:ident $(+ $also:ident)*: $function:ident),* $(,)?) => {
        &[$($crate::common::Case {
            path: concat!(module_path!(), "::", stringify!($function)),
            needs: $crate::common::Needs::$needs,
            also: &[$($crate::common::needs::$also),*],
            run: $function,
        }),*]
    };
}

/// The `main` of the test binary.
pub fn main(cases: Vec<Case>) -> ExitCode {
    program::run_if_asked();
    if let Ok(name) = std::env::var(CASE) {
        // Children of the case are not to run it again.
        // SAFETY: there is no other thread yet.
        unsafe { std::env::remove_var(CASE) };
        let case = cases
            .iter()
            .find(|case| case.name() == name)
            .expect("a case of this name");
        RUNNING.set(case.name()).expect("one case");
        (case.run)();
        return ExitCode::SUCCESS;
    }
    if let Err(lie) = declared_as_is() {
        eprintln!("{lie}");
        return ExitCode::FAILURE;
    }
    // nextest asks for a list, and takes what ends well for passed: what cannot be run has to be ignored there.
    let listing = std::env::args().any(|argument| argument == "--list");
    let trials = cases.into_iter().map(|case| {
        Trial::ignorable_test(case.name(), move || match case.missing() {
            Some(reason) => Ok(Completion::ignored_with(reason)),
            None => run_alone(&case),
        })
        .with_ignored_flag(case.needs == Needs::Long || listing && case.missing().is_some())
    });
    libtest_mimic::run(&Arguments::from_args(), trials.collect()).exit_code()
}

static RUNNING: OnceLock<&str> = OnceLock::new();

/// The name of the case that this process runs.
pub fn running() -> &'static str {
    RUNNING.get().expect("a process that runs a case")
}

fn declared_as_is() -> Result<(), String> {
    let is = match environment() {
        Environment::Root => "root",
        Environment::User => "user",
        Environment::Userns => "userns",
    };
    match std::env::var("PRIVILEGE_GUARD_TESTS") {
        Ok(declared) if declared != is => Err(format!(
            "PRIVILEGE_GUARD_TESTS={declared} declares what is not so: this run is {is}"
        )),
        _ => Ok(()),
    }
}

/// Runs the case in a process of its own. What it prints is shown where it fails; lines that begin with `= ` always.
fn run_alone(case: &Case) -> Result<Completion, Failed> {
    let name = case.name();
    let longest = if case.needs == Needs::Long {
        LONGEST_OF_LONG
    } else {
        LONGEST
    };
    let failed = |error: std::io::Error| Failed::from(error.to_string());
    let output = tempfile::tempfile().map_err(failed)?;
    let copy = || output.try_clone().map(Stdio::from).map_err(failed);
    // What a case cannot remove, because it has given up the privilege or has aborted, goes with this directory.
    let folder = tempfile::Builder::new()
        .prefix("privilege-guard-")
        .tempdir()
        .map_err(failed)?;
    std::fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o1777)).map_err(failed)?;
    let child = Command::new(std::env::current_exe().map_err(failed)?)
        .env(CASE, name)
        .env("RUST_BACKTRACE", "0")
        .env("TMPDIR", folder.path())
        .stdin(Stdio::null())
        .stdout(copy()?)
        .stderr(copy()?)
        .spawn();
    let mut child = match child {
        Ok(child) => child,
        Err(error) => {
            return too_few_processes(&error.to_string()).map_or(Err(failed(error)), |reason| {
                Ok(Completion::ignored_with(reason))
            });
        }
    };
    let started = Instant::now();
    let status = loop {
        match child.try_wait().map_err(failed)? {
            Some(status) => break status.to_string(),
            None if started.elapsed() > longest => {
                _ = child.kill();
                _ = child.wait();
                break format!("killed after {longest:?}");
            }
            None => std::thread::sleep(Duration::from_millis(2)),
        }
    };
    folder
        .close()
        .map_err(|error| format!("left behind by the case: {error}"))?;
    let printed = read_all(output);
    for line in printed.lines().filter(|line| line.starts_with("= ")) {
        println!("{name}: {}", &line[2..]);
    }
    match status.as_str() {
        "exit status: 0" => Ok(Completion::Completed),
        status if status == format!("exit status: {IGNORED}") => Ok(Completion::ignored_with(
            printed.lines().last().unwrap_or_default(),
        )),
        _ => match too_few_processes(&printed) {
            Some(reason) => Ok(Completion::ignored_with(reason)),
            None => Err(format!("{status}\n{printed}").into()),
        },
    }
}

/// Where a low limit is set on the processes of this user (RLIMIT_NPROC, setrlimit(2)) and one could not be started: why.
fn too_few_processes(printed: &str) -> Option<String> {
    /// Fewer than any system allows by default.
    const LOW: u64 = 1000;
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nproc)
        .current
        .filter(|&limit| limit < LOW)?;
    let line = printed.lines().find(|line| line.contains(NO_PROCESS))?;
    Some(format!(
        "this user may have {limit} processes and threads, and the case needs another one: {}",
        line.trim()
    ))
}

/// EAGAIN, as an error of std shows it.
const NO_PROCESS: &str = "Resource temporarily unavailable";

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

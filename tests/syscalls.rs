//! Promise 9: which system calls a guard makes, one by one, as strace sees them.

mod common;

use std::process::{Command, ExitCode, Stdio};

use common::kernel;
use libtest_mimic::{Arguments, Completion, Failed, Trial};
use privilege_guard::{GroupChange, GroupGuard};

/// Names what the traced process is to do.
const TRACED: &str = "PRIVILEGE_GUARD_TRACED";

struct Work {
    name: &'static str,
    /// Does what comes first, then the work itself between two marks.
    run: fn(),
    calls: &'static str,
}

/// Each setting call is read back: a seccomp filter can answer "done" without doing.
const WORKS: &[Work] = &[
    Work {
        name: "thread_guard",
        run: || warm_then(|| drop(GroupGuard::assume_on_thread(1004).unwrap())),
        calls: "getresgid setfsgid prctl setresgid getegid setresgid getegid",
    },
    Work {
        name: "process_guard",
        run: || warm_then(|| drop(GroupGuard::assume(1004).unwrap())),
        calls: "gettid getresgid setfsgid prctl setresgid getegid setresgid getegid",
    },
    Work {
        name: "effective_group_only",
        run: || warm_then(|| drop(GroupGuard::assume_effective(1004).unwrap())),
        calls: "gettid getresgid setfsgid prctl setresgid getegid setresgid getegid",
    },
    Work {
        name: "the_group_that_it_is_already",
        run: || {
            let own = kernel::ids()[1];
            warm_then(|| drop(GroupGuard::assume_on_thread(own).unwrap()));
        },
        // Nothing moved, so the effective id does not tell: all four are read.
        calls: "getresgid setfsgid prctl setresgid getresgid setfsgid setresgid getresgid setfsgid",
    },
    Work { name: "nothing_named", run: || warm_then(|| drop(GroupChange::new().assume_on_thread().unwrap())), calls: "getresgid setfsgid" },
    Work {
        name: "with_a_parent_death_signal",
        run: || {
            kernel::set_death_signal(libc::SIGTERM);
            warm_then(|| drop(GroupGuard::assume_on_thread(1004).unwrap()));
        },
        // The kernel clears it at each change; getpid tells a forked child, whose parent is another.
        calls: "getresgid setfsgid prctl getpid getpid prctl setresgid getegid getpid prctl prctl setresgid getegid getpid prctl prctl",
    },
    Work {
        name: "switch_to_another_group",
        run: || {
            let mut guard = GroupGuard::assume_on_thread(1004).unwrap();
            marked(|| guard.switch_to(1005).unwrap());
        },
        calls: "setresgid getegid",
    },
    Work {
        name: "switch_to_the_same_group",
        run: || {
            let mut guard = GroupGuard::assume_on_thread(1004).unwrap();
            marked(|| guard.switch_to(1004).unwrap());
        },
        calls: "",
    },
];

fn main() -> ExitCode {
    if let Ok(name) = std::env::var(TRACED) {
        (WORKS.iter().find(|work| work.name == name).expect("a work of this name").run)();
        return ExitCode::SUCCESS;
    }
    let missing = missing();
    let trials = WORKS.iter().map(|work| {
        Trial::ignorable_test(work.name, move || match missing {
            Some(reason) => Ok(Completion::ignored_with(reason)),
            None => compare(work).map(|()| Completion::Completed),
        })
    });
    libtest_mimic::run(&Arguments::from_args(), trials.collect()).exit_code()
}

fn missing() -> Option<&'static str> {
    if kernel::capabilities().effective & kernel::CAP_SETGID == 0 {
        return Some("needs CAP_SETGID");
    }
    let mut strace = Command::new("strace");
    strace.args(["-o", "/dev/null", "true"]).stdout(Stdio::null()).stderr(Stdio::null());
    match strace.status() {
        Ok(status) if status.success() => None,
        Ok(_) => Some("strace may not trace here"),
        Err(_) => Some("needs strace"),
    }
}

fn compare(work: &Work) -> Result<(), Failed> {
    let calls = traced(work.name)?.join(" ");
    println!("{}: {}", work.name, if calls.is_empty() { "no call" } else { &calls });
    if calls == work.calls { Ok(()) } else { Err(format!("expected {}, made {calls}", work.calls).into()) }
}

/// The names of the calls between the marks; what the allocator asks for is left out.
fn traced(name: &str) -> Result<Vec<String>, Failed> {
    let log = tempfile::NamedTempFile::new()?;
    let status = Command::new("strace").arg("-o").arg(log.path()).arg(std::env::current_exe()?).env(TRACED, name).status()?;
    if !status.success() {
        return Err(format!("the traced process: {status}").into());
    }
    let log = std::fs::read_to_string(log.path())?;
    let names = log.lines().filter_map(|line| line.split_once('(').map(|(name, _)| name));
    let mut parts = names.collect::<Vec<_>>().split(|name| *name == MARK).map(<[_]>::to_vec).collect::<Vec<_>>();
    if parts.len() != 3 {
        return Err(format!("{} marks", parts.len() - 1).into());
    }
    Ok(parts.swap_remove(1).into_iter().filter(|name| !["brk", "mmap", "munmap"].contains(name)).map(String::from).collect())
}

const MARK: &str = "sched_yield";

fn marked(work: impl FnOnce()) {
    std::thread::yield_now();
    work();
    std::thread::yield_now();
}

fn warm_then(work: impl Fn()) {
    work();
    marked(work);
}

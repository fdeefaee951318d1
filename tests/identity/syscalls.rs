//! Promise 9: which system calls a guard makes, one by one, as strace sees them.

use std::process::Command;

use crate::cases;
use crate::common::{self, Case, kernel};
use privilege_guard::{GroupChange, GroupGuard};

pub const CASES: &[Case] = cases![
    Setgid + strace: thread_guard,
    Setgid + strace: process_guard,
    Setgid + strace: effective_group_only,
    Setgid + strace: the_group_that_it_is_already,
    Setgid + strace: nothing_named,
    Setgid + strace: with_a_parent_death_signal,
    Setgid + strace: switch_to_another_group,
    Setgid + strace: switch_to_the_same_group,
    Setgid + strace: with_supplementary_groups,
    Setgid + strace: without_supplementary_groups_in_the_process,
    Root + strace: over_group_65534,
    Setgid + strace: inside_a_guard_of_the_worker,
];

/// Tells this process that it is the traced one.
const TRACED: &str = "PRIVILEGE_GUARD_TRACED";

/// It opens /proc/self/task, and counts the threads before the change, after it, and after the restore.
/// `getpid` tells a forked child, whose threads that directory does not show.
const PROCESS_GUARD: &str = "gettid openat fstatfs fstat getpid getresgid setfsgid prctl fstat \
                             setresgid getegid fstat setresgid getegid getpid fstat close";

// Each setting call is read back: a seccomp filter can answer "done" without doing.

fn thread_guard() {
    makes(
        "getresgid setfsgid prctl setresgid getegid setresgid getegid",
        || warm_then(|| drop(GroupGuard::assume_on_thread(1004).unwrap())),
    );
}

fn process_guard() {
    makes(PROCESS_GUARD, || {
        warm_then(|| drop(GroupGuard::assume(1004).unwrap()))
    });
}

fn effective_group_only() {
    makes(PROCESS_GUARD, || {
        warm_then(|| drop(GroupGuard::assume_effective(1004).unwrap()))
    });
}

fn the_group_that_it_is_already() {
    // Nothing moved, so the effective id does not tell: all four are read.
    makes(
        "getresgid setfsgid prctl setresgid getresgid setfsgid setresgid getresgid setfsgid",
        || {
            let own = kernel::ids()[1];
            warm_then(|| drop(GroupGuard::assume_on_thread(own).unwrap()));
        },
    );
}

fn nothing_named() {
    makes("getresgid setfsgid", || {
        warm_then(|| drop(GroupChange::new().assume_on_thread().unwrap()))
    });
}

fn with_a_parent_death_signal() {
    // The kernel clears it at each change; getpid tells a forked child, whose parent is another.
    makes(
        "getresgid setfsgid prctl getpid getpid prctl setresgid getegid getpid prctl prctl setresgid getegid getpid prctl prctl",
        || {
            kernel::set_death_signal(libc::SIGTERM);
            warm_then(|| drop(GroupGuard::assume_on_thread(1004).unwrap()));
        },
    );
}

fn switch_to_another_group() {
    makes("setresgid getegid", || {
        let mut guard = GroupGuard::assume_on_thread(1004).unwrap();
        marked(|| guard.switch_to(1005).unwrap());
    });
}

fn switch_to_the_same_group() {
    makes("", || {
        let mut guard = GroupGuard::assume_on_thread(1004).unwrap();
        marked(|| guard.switch_to(1004).unwrap());
    });
}

fn with_supplementary_groups() {
    // The groups by getgroups alone, once for their number: libc's sysconf would open ngroups_max.
    makes(
        "getresgid setfsgid getgroups getgroups prctl setgroups getgroups getgroups setresgid getegid \
         setresgid getegid setgroups getgroups getgroups",
        || {
            kernel::start_from([3; 4], &[7, 8]);
            let change = GroupChange::both(1004).supplementary([1005]);
            warm_then(|| drop(change.clone().assume_on_thread().unwrap()));
        },
    );
}

fn without_supplementary_groups_in_the_process() {
    // The last of them closes the descriptor that is kept for the check after the restore.
    makes(
        "gettid openat fstatfs fstat getpid getresgid setfsgid getgroups getgroups prctl fstat \
         setgroups getgroups getgroups setresgid getegid fstat setresgid getegid setgroups getgroups getgroups \
         getpid fstat close close",
        || {
            kernel::start_from([3; 4], &[7, 8]);
            let change = GroupChange::both(1004).no_supplementary();
            warm_then(|| drop(change.clone().assume().unwrap()));
        },
    );
}

fn over_group_65534() {
    // The map tells whether 65534 is that group, and is read before the change only.
    makes(
        "getresgid setfsgid openat statx read read read close prctl setresgid getegid setresgid getegid",
        || {
            kernel::start_from([65534; 4], &[]);
            warm_then(|| drop(GroupGuard::assume_on_thread(1004).unwrap()));
        },
    );
}

fn inside_a_guard_of_the_worker() {
    // As without the outer guard: the groups are set once for all requests.
    makes(
        "getresgid setfsgid prctl setresgid getegid setresgid getegid",
        || {
            kernel::start_from([3; 4], &[7, 8]);
            let worker = GroupChange::new().no_supplementary();
            let _worker = worker.assume_on_thread().unwrap();
            warm_then(|| {
                let request = GroupGuard::assume_effective_on_thread(1004).unwrap();
                drop(request);
            });
        },
    );
}

/// Asserts that the work makes these calls between the two marks.
fn makes(calls: &str, work: fn()) {
    if std::env::var_os(TRACED).is_some() {
        return work();
    }
    let made = traced().join(" ");
    println!("= {}", if made.is_empty() { "no call" } else { &made });
    assert_eq!(made, calls);
}

/// The names of the calls between the marks; the allocator's calls are left out, and the `fcntl` by which a debug build
/// of the standard library checks a descriptor before it closes it.
fn traced() -> Vec<String> {
    let log = tempfile::NamedTempFile::new().unwrap();
    let mut strace = Command::new("strace");
    strace
        .arg("-o")
        .arg(log.path())
        .arg(std::env::current_exe().unwrap())
        .env(common::CASE, common::running())
        .env(TRACED, "");
    let status = strace.status().unwrap();
    assert!(status.success(), "the traced process: {status}");
    let log = std::fs::read_to_string(log.path()).unwrap();
    let names = log
        .lines()
        .filter_map(|line| line.split_once('(').map(|(name, _)| name));
    let mut parts = names
        .collect::<Vec<_>>()
        .split(|name| *name == MARK)
        .map(<[_]>::to_vec)
        .collect::<Vec<_>>();
    assert_eq!(parts.len(), 3, "two marks");
    parts
        .swap_remove(1)
        .into_iter()
        .filter(|name| !["brk", "mmap", "munmap", "fcntl"].contains(name))
        .map(String::from)
        .collect()
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

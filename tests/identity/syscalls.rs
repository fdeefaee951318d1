//! Promise 9: which system calls a guard makes, one by one, as strace sees them.

use std::process::Command;

use crate::cases;
use crate::common::sibling::Sibling;
use crate::common::{self, Case, kernel};
use privilege_guard::{
    GroupChange, GroupGuard, Identity, IdentityChange, IdentityGuard, UserGuard,
};

pub const CASES: &[Case] = cases![
    Nothing: the_page_names_cases,
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
    Setgid + strace: user_guard_on_a_thread,
    Setgid + strace: user_guard_of_real_and_effective_on_a_thread,
    Setgid + strace: user_guard_in_the_process,
    Setgid + strace: user_guard_with_another_thread,
    Setgid + strace: switch_to_another_user,
    Setgid + strace: switch_to_the_same_user,
    Setgid + strace: user_guard_with_a_parent_death_signal,
    Setgid + strace: user_guard_of_a_reduced_effective_set,
    Setgid + strace: user_guard_up_to_user_0,
    Setgid + strace: identity_guard_that_keeps_groups,
    Setgid + strace: identity_guard_on_a_thread,
    Setgid + strace: identity_guard_of_real_and_effective_on_a_thread,
    Setgid + strace: identity_guard_in_the_process,
    Setgid + strace: identity_guard_with_another_thread,
    Setgid + strace: switch_to_another_identity,
    Setgid + strace: switch_to_an_identity_with_the_same_groups,
    Setgid + strace: switch_to_the_same_identity,
];

/// Tells this process that it is the traced one.
const TRACED: &str = "PRIVILEGE_GUARD_TRACED";

/// It opens /proc/self/task, and counts the threads before the change, after it, and after the restore.
/// `getpid` tells a forked child, whose threads that directory does not show.
const PROCESS_GUARD: &str = "gettid openat fstatfs fstat getpid gettid newfstatat getresgid setfsgid prctl fstat \
                             setresgid getegid fstat setresgid getegid getpid fstat close close";

/// The capability sets and the securebits are read too, and at the end whether the sets are what they were.
const USER_GUARD_ON_A_THREAD: &str =
    "getresuid setfsuid capget prctl prctl setresuid geteuid setresuid geteuid capget";

const IDENTITY_GUARD_ON_A_THREAD: &str = "getresuid setfsuid getresgid setfsgid capget prctl getgroups getgroups prctl \
                                          setgroups getgroups getgroups setresgid getegid setresuid geteuid \
                                          setresuid geteuid setresgid getegid setgroups getgroups getgroups capget";

/// The `status` of the other thread.
const FILES_BEFORE: usize = 1;

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
    makes(
        "gettid openat fstatfs fstat getpid gettid newfstatat getresgid setfsgid getgroups getgroups prctl fstat \
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

fn user_guard_on_a_thread() {
    makes(USER_GUARD_ON_A_THREAD, || {
        warm_then(|| drop(UserGuard::assume_effective_on_thread(1000).unwrap()))
    });
}

fn user_guard_of_real_and_effective_on_a_thread() {
    makes(USER_GUARD_ON_A_THREAD, || {
        warm_then(|| drop(UserGuard::assume_real_and_effective_on_thread(1000).unwrap()))
    });
}

fn user_guard_in_the_process() {
    makes(
        "gettid openat fstatfs fstat getpid gettid newfstatat getresuid setfsuid capget prctl prctl fstat setresuid geteuid fstat \
         setresuid geteuid capget getpid fstat close close",
        || warm_then(|| drop(UserGuard::assume_effective(1000).unwrap())),
    );
}

fn user_guard_with_another_thread() {
    makes_with_another_thread(
        "tgkill setresuid tgkill setresuid",
        1 + FILES_BEFORE,
        || {
            let _other = Sibling::start();
            warm_then(|| drop(UserGuard::assume_effective(1000).unwrap()));
        },
    );
}

fn switch_to_another_user() {
    makes("setresuid geteuid capget setresuid geteuid", || {
        let mut guard = UserGuard::assume_effective_on_thread(1000).unwrap();
        marked(|| guard.switch_to(1001).unwrap());
    });
}

fn switch_to_the_same_user() {
    makes("", || {
        let mut guard = UserGuard::assume_effective_on_thread(1000).unwrap();
        marked(|| guard.switch_to(1000).unwrap());
    });
}

fn user_guard_with_a_parent_death_signal() {
    makes(
        "getresuid setfsuid capget prctl prctl getpid getpid prctl setresuid geteuid getpid prctl prctl \
         setresuid geteuid capget getpid prctl prctl",
        || {
            kernel::set_death_signal(libc::SIGTERM);
            warm_then(|| drop(UserGuard::assume_effective_on_thread(1000).unwrap()));
        },
    );
}

/// Root with fewer capabilities in use than held: coming back to user 0 raises them all for a moment, so signals are blocked.
fn user_guard_of_a_reduced_effective_set() {
    makes(
        "getresuid setfsuid capget prctl prctl rt_sigprocmask rt_sigprocmask rt_sigprocmask capget capset capget setresuid geteuid \
         rt_sigprocmask setresuid geteuid capget capset capget rt_sigprocmask",
        || {
            kernel::lower_capabilities(1);
            warm_then(|| drop(UserGuard::assume_effective_on_thread(1000).unwrap()));
        },
    );
}

/// A set-user-ID program of root, which lives as its user.
fn user_guard_up_to_user_0() {
    makes(USER_GUARD_ON_A_THREAD, || {
        kernel::raw_setresuid(Some(1000), Some(1000), Some(0)).unwrap();
        warm_then(|| drop(UserGuard::assume_effective_on_thread(0).unwrap()));
    });
}

fn client() -> Identity {
    Identity::new(1000, 1001).supplementary([1010])
}

fn next_client() -> Identity {
    Identity::new(1002, 1003).supplementary([1012])
}

fn identity_guard_that_keeps_groups() {
    makes(
        "getresuid setfsuid getresgid setfsgid capget prctl prctl setresgid getegid setresuid geteuid \
         setresuid geteuid setresgid getegid capget",
        || {
            let client = client();
            warm_then(|| {
                let change = IdentityChange::effective(&client).keep_supplementary();
                drop(change.assume_on_thread().unwrap());
            });
        },
    );
}

fn identity_guard_on_a_thread() {
    makes(IDENTITY_GUARD_ON_A_THREAD, || {
        let client = client();
        warm_then(|| drop(IdentityGuard::assume_effective_on_thread(&client).unwrap()));
    });
}

fn identity_guard_of_real_and_effective_on_a_thread() {
    makes(IDENTITY_GUARD_ON_A_THREAD, || {
        let client = client();
        warm_then(|| drop(IdentityGuard::assume_real_and_effective_on_thread(&client).unwrap()));
    });
}

fn identity_guard_in_the_process() {
    makes(
        "gettid openat fstatfs fstat getpid gettid newfstatat getresuid setfsuid getresgid setfsgid capget prctl getgroups getgroups prctl fstat \
         setgroups getgroups getgroups setresgid getegid setresuid geteuid fstat \
         setresuid geteuid setresgid getegid setgroups getgroups getgroups capget getpid fstat close close",
        || {
            let client = client();
            warm_then(|| drop(IdentityGuard::assume_effective(&client).unwrap()));
        },
    );
}

fn identity_guard_with_another_thread() {
    makes_with_another_thread(
        "tgkill setgroups tgkill setresgid tgkill setresuid \
         tgkill setresuid tgkill setresgid tgkill setgroups",
        1 + FILES_BEFORE + 2,
        || {
            let client = client();
            let _other = Sibling::start();
            warm_then(|| drop(IdentityGuard::assume_effective(&client).unwrap()));
        },
    );
}

fn switch_to_another_identity() {
    makes(
        "setresuid geteuid capget setgroups getgroups getgroups setresgid getegid setresuid geteuid",
        || {
            let (client, next) = (client(), next_client());
            let mut guard = IdentityGuard::assume_effective_on_thread(&client).unwrap();
            marked(|| guard.switch_to(&next).unwrap());
        },
    );
}

fn switch_to_an_identity_with_the_same_groups() {
    makes("setresuid geteuid capget setresuid geteuid", || {
        let client = client();
        let next = Identity::new(1002, 1001).supplementary([1010]);
        let mut guard = IdentityGuard::assume_effective_on_thread(&client).unwrap();
        marked(|| guard.switch_to(&next).unwrap());
    });
}

fn switch_to_the_same_identity() {
    makes("", || {
        let client = client();
        let mut guard = IdentityGuard::assume_effective_on_thread(&client).unwrap();
        marked(|| guard.switch_to(&client.clone()).unwrap());
    });
}

/// Asserts that the work makes these calls between the two marks.
fn makes(calls: &str, work: fn()) {
    if std::env::var_os(TRACED).is_some() {
        return work();
    }
    let made = traced().join(" ");
    println!("= {}", if made.is_empty() { "no call" } else { &made });
    assert_eq!(made, calls);
    if let Some(listed) = listed_in_page(common::running()) {
        assert_eq!(listed, calls, "docs/performance.md");
    }
}

/// The calls in the row of docs/performance.md that names this case in a comment. `prctl(...)` stands there for `prctl`.
fn listed_in_page(case: &str) -> Option<String> {
    let page = include_str!("../../docs/performance.md");
    let mark = format!("<!-- {case} -->");
    let (_, cell) = page.lines().find_map(|line| line.split_once(&mark))?;
    let calls = cell.split('`').skip(1).step_by(2);
    let names = calls.map(|call| call.split('(').next().unwrap_or_default());
    Some(names.collect::<Vec<_>>().join(" "))
}

fn the_page_names_cases() {
    let page = include_str!("../../docs/performance.md");
    let cases: Vec<&str> = page
        .split("<!-- syscalls::")
        .skip(1)
        .filter_map(|rest| rest.split_once(" -->"))
        .map(|(case, _)| case)
        .collect();
    for case in &cases {
        assert!(
            CASES
                .iter()
                .any(|known| known.name() == format!("syscalls::{case}")),
            "{case} is in docs/performance.md, and no case"
        );
    }
    assert!(cases.len() >= 16, "{cases:?}");
}

/// Asserts which of the calls change something (a signal makes the other thread follow), and how many files are opened: how many calls
/// read a file depends on its length.
fn makes_with_another_thread(changing: &str, opened: usize, work: fn()) {
    if std::env::var_os(TRACED).is_some() {
        return work();
    }
    let all = traced();
    let changes =
        |name: &&str| ["tgkill", "setgroups", "setresgid", "setresuid", "capset"].contains(name);
    let names = || all.iter().map(String::as_str);
    let made = names().filter(changes).collect::<Vec<_>>().join(" ");
    let files = names().filter(|&name| name == "openat").count();
    println!("= {made}; {files} files opened, {} calls", all.len());
    assert_eq!((made.as_str(), files), (changing, opened));
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

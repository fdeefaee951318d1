//! All threads means all threads: which ones a process guard or a permanent drop finds skipped or
//! different, and that threads which come, go or end are none of these.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{self, Sender};
use std::time::{Duration, Instant};

use crate::cases;
use crate::common::Case;
use crate::common::calls;
use crate::common::kernel::{self, Identity as GroupIdentity};
use crate::common::sandbox::{self, Answer};
use crate::limits::raw_thread;
use privilege_guard::{
    DropError, Error, GroupChange, GroupGuard, Identity, IdentityGuard, PermanentDrop, Process,
    RestoreError, Unrestored, UserGuard, threads,
};

pub const CASES: &[Case] = cases![
    Setgid: a_thread_that_fakes_a_call_at_the_beginning,
    Setgid: a_thread_that_fakes_a_call_at_the_end,
    Root: a_thread_that_fakes_a_call_of_a_user_or_identity_guard,
    Setgid: a_full_signal_queue_at_the_end_of_a_guard_of_groups,
    Setgid: a_thread_of_a_raw_clone_at_the_end,
    Setgid: threads_that_cannot_be_read_are_not_taken_for_changed,
    Setgid: a_thread_that_differs_keeps_its_identity_under_a_refused_change,
    Setgid: a_thread_that_differs_keeps_its_identity_under_a_refused_drop,
    Setgid: a_drop_after_the_join_of_a_thread_with_its_own_file_table,
    Root: a_drop_in_a_chroot_that_only_root_may_search,
    Root: a_mount_over_a_threads_directory,
    Setgid: an_ended_main_thread_is_no_finding,
    Setgid: a_storm_of_threads_is_no_finding,
];

const START: [u32; 4] = [3; 4];
const GROUPS: [u32; 2] = [7, 8];

fn start() {
    kernel::start_from(START, &GROUPS);
}

type Work = Box<dyn FnOnce() + Send>;

/// Another thread, which does what it is sent.
pub(crate) struct Worker {
    pub(crate) thread: i32,
    send: Sender<Work>,
}

impl Worker {
    pub(crate) fn start() -> Self {
        let (send, received) = mpsc::channel::<Work>();
        std::thread::spawn(move || received.into_iter().for_each(|work| work()));
        let mut worker = Worker { thread: 0, send };
        worker.thread = worker.does(kernel::gettid);
        worker
    }

    pub(crate) fn does<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        let (tell, told) = mpsc::channel();
        let work = move || tell.send(work()).expect("somebody waits");
        self.send.send(Box::new(work)).expect("the thread lives");
        told.recv().expect("an answer")
    }

    /// From now on its calls of this kind report success without effect.
    pub(crate) fn fakes(&self, call: libc::c_long) {
        self.does(move || sandbox::answer(call, &[], Answer::SuccessWithoutDoing));
    }
}

/// The error names the thread that was left out, and every thread is what it was.
#[track_caller]
fn is_rolled_back<G: std::fmt::Debug>(other: i32, assume: impl FnOnce() -> Result<G, Error>) {
    let before = kernel::all_threads();
    let error = assume().expect_err("a thread is left out");
    let is_named = |thread_id: u32| thread_id == other.unsigned_abs();
    assert!(
        matches!(error, Error::ThreadNotChanged { thread_id, .. } if is_named(thread_id)),
        "{error}"
    );
    assert_eq!(kernel::all_threads(), before);
}

/// The restore reports the thread that it did not reach.
#[track_caller]
pub(crate) fn is_reported(other: i32, restored: Result<(), RestoreError>) {
    let expected = Unrestored::OtherThread {
        thread_id: other.unsigned_abs(),
    };
    let error = restored.expect_err("a thread is left behind");
    assert!(
        matches!(&error, RestoreError::Refused { what, .. } if *what == expected),
        "{error}"
    );
}

/// The calls of a group guard, and changes that make them.
fn faked() -> Vec<(libc::c_long, GroupChange)> {
    vec![
        (calls::SYS_setresgid, GroupChange::both(1004)),
        (calls::SYS_setresgid, GroupChange::new().effective(1004)),
        (calls::SYS_setresgid, GroupChange::new().real(1004)),
        (
            calls::SYS_setresgid,
            GroupChange::both(1004).no_supplementary(),
        ),
        (
            calls::SYS_setgroups,
            GroupChange::both(1004).no_supplementary(),
        ),
        (
            calls::SYS_setgroups,
            GroupChange::both(1004).supplementary([7, 9]),
        ),
        (
            calls::SYS_setgroups,
            GroupChange::new().supplementary([2001]),
        ),
    ]
}

fn a_thread_that_fakes_a_call_at_the_beginning() {
    for (call, change) in faked() {
        kernel::passes_in_child(|| {
            start();
            let (first, other) = (Worker::start(), Worker::start());
            other.fakes(call);
            is_rolled_back(other.thread, || change.assume());
            drop(first);
        });
    }
}

fn a_thread_that_fakes_a_call_at_the_end() {
    for (call, change) in faked() {
        kernel::passes_in_child(|| {
            start();
            let (first, other) = (Worker::start(), Worker::start());
            let guard = change.clone().assume().unwrap();
            other.fakes(call);
            is_reported(other.thread, guard.restore());
            drop(first);
        });
        let line = kernel::aborts(|| {
            start();
            let other = Worker::start();
            let guard = change.assume().unwrap();
            other.fakes(call);
            drop(guard);
        });
        assert!(
            line.contains("cannot restore the identity of thread"),
            "{line}"
        );
    }
}

fn a_thread_that_fakes_a_call_of_a_user_or_identity_guard() {
    let client = || Identity::new(1000, 1000).supplementary([1001]);
    kernel::passes_in_child(|| {
        let other = Worker::start();
        other.fakes(calls::SYS_setresuid);
        is_rolled_back(other.thread, || UserGuard::assume_effective(1000));
        is_rolled_back(other.thread, || IdentityGuard::assume_effective(&client()));
    });
    for call in [calls::SYS_setresgid, calls::SYS_setgroups] {
        kernel::passes_in_child(|| {
            let other = Worker::start();
            other.fakes(call);
            is_rolled_back(other.thread, || IdentityGuard::assume_effective(&client()));
        });
    }
    kernel::passes_in_child(|| {
        let other = Worker::start();
        let guard = UserGuard::assume_effective(1000).unwrap();
        other.fakes(calls::SYS_setresuid);
        is_reported(other.thread, guard.restore());
    });
    for call in [calls::SYS_setresgid, calls::SYS_setgroups] {
        kernel::passes_in_child(|| {
            let other = Worker::start();
            let guard = IdentityGuard::assume_effective(&client()).unwrap();
            other.fakes(call);
            is_reported(other.thread, guard.restore());
        });
    }
    // The user that it keeps may not set the group, and glibc aborts where one thread may not (L37).
    kernel::aborts(|| {
        let other = Worker::start();
        let guard = IdentityGuard::assume_effective(&client()).unwrap();
        other.fakes(calls::SYS_setresuid);
        _ = guard.restore();
    });
}

/// The ids alone are in `limits`.
fn a_full_signal_queue_at_the_end_of_a_guard_of_groups() {
    for change in [
        GroupChange::new().no_supplementary(),
        GroupChange::both(1004).no_supplementary(),
    ] {
        kernel::passes_in_child(|| {
            start();
            let other = Worker::start();
            let guard = change.assume().unwrap();
            let none = libc::rlimit {
                rlim_cur: 0,
                rlim_max: 0,
            };
            assert_eq!(
                // SAFETY: a valid pointer.
                unsafe { libc::setrlimit(libc::RLIMIT_SIGPENDING, &raw const none) },
                0
            );
            is_reported(other.thread, guard.restore());
        });
    }
}

fn a_thread_of_a_raw_clone_at_the_end() {
    for change in [
        GroupChange::both(1004),
        GroupChange::new().real(1004),
        GroupChange::both(1004).no_supplementary(),
    ] {
        kernel::passes_in_child(|| {
            start();
            let guard = change.assume().unwrap();
            let other = raw_thread();
            is_reported(other, guard.restore());
        });
    }
}

#[cfg(target_pointer_width = "64")]
const STAT: libc::c_long = libc::SYS_newfstatat;
#[cfg(not(target_pointer_width = "64"))]
const STAT: libc::c_long = libc::SYS_fstatat64;

/// What reads the other threads is refused, while one of them fakes the call: no success.
fn threads_that_cannot_be_read_are_not_taken_for_changed() {
    let of_all = [
        libc::SYS_openat,
        libc::SYS_getdents64,
        libc::SYS_fstat,
        libc::SYS_fstatfs,
        STAT,
        libc::SYS_read,
    ];
    let ids = GroupChange::both(1004);
    let both = GroupChange::both(1004).no_supplementary();
    let mut judged = 0;
    for read in of_all {
        // The ids alone are read by stat.
        let reads_files = [libc::SYS_openat, libc::SYS_fstatfs, libc::SYS_read].contains(&read);
        let changes = match read {
            STAT => vec![&ids],
            _ if reads_files => vec![&both],
            _ => vec![&ids, &both],
        };
        for change in changes {
            for errno in [libc::EPERM, libc::EIO] {
                kernel::passes_in_child(|| {
                    start();
                    let other = Worker::start();
                    other.fakes(calls::SYS_setresgid);
                    sandbox::answer(read, &[], Answer::Errno(errno));
                    let error = change.clone().assume().unwrap_err();
                    let is_expected = match &error {
                        Error::ThreadsUnreadable { os_error } => {
                            os_error.raw_os_error() == Some(errno)
                        }
                        _ => false,
                    };
                    assert!(is_expected, "{error}");
                    assert_eq!(kernel::ids_by_calls(), START);
                });
                kernel::passes_in_child(|| {
                    start();
                    let other = Worker::start();
                    let guard = change.clone().assume().unwrap();
                    other.fakes(calls::SYS_setresgid);
                    sandbox::answer(read, &[], Answer::Errno(errno));
                    let error = guard.restore().unwrap_err();
                    let expected = Unrestored::OtherThread { thread_id: 0 };
                    assert!(
                        matches!(&error, RestoreError::Refused { what, .. } if *what == expected),
                        "{error}"
                    );
                    assert_eq!(error.raw_os_error(), Some(errno));
                });
                judged += 2;
            }
        }
    }
    println!("= {judged} refused reads of threads, no success");
}

/// The error names the other thread, and every thread is what it was, its death signal included.
fn is_refused_beside(become_other: fn(), faked: Option<libc::c_long>, change: impl Fn() -> Error) {
    kernel::passes_in_child(|| {
        start();
        let other = Worker::start();
        other.does(move || {
            become_other();
            kernel::set_death_signal(libc::SIGUSR1);
        });
        if let Some(call) = faked {
            // A change that this fails would be rolled back on all threads.
            sandbox::answer(call, &[], Answer::SuccessWithoutDoing);
        }
        let before = kernel::all_threads();
        let error = change();
        assert_eq!(kernel::all_threads(), before, "{error}");
        assert!(
            matches!(&error, Error::ThreadDiffers { thread_id, .. }
                if *thread_id == other.thread.unsigned_abs()),
            "{error}"
        );
        assert_eq!(other.does(kernel::death_signal), libc::SIGUSR1);
    });
}

/// Whatever call of this thread fails, the change is refused before it is made on any thread.
fn a_thread_that_differs_keeps_its_identity_under_a_refused_change() {
    let ids = || GroupChange::both(1004);
    let groups = || GroupChange::new().supplementary([2001]);
    let both = || GroupChange::both(1004).no_supplementary();
    // A change of the group ids alone compares the effective one only (P1.5, L7).
    /// What the other thread becomes, and changes that see it.
    type Other<'a> = (fn(), &'a [GroupChange]);
    let others: [Other; 4] = [
        (
            || kernel::start_from([3, 9, 3, 9], &GROUPS),
            &[ids(), both()],
        ),
        (|| kernel::start_from([9; 4], &GROUPS), &[ids(), both()]),
        (|| kernel::start_from([9, 3, 9, 3], &GROUPS), &[both()]),
        (|| kernel::start_from(START, &[9, 10]), &[groups(), both()]),
    ];
    let mut refused = 0;
    for (become_other, changes) in others {
        for change in changes {
            for call in [None, Some(calls::SYS_setresgid), Some(calls::SYS_setgroups)] {
                is_refused_beside(become_other, call, || change.clone().assume().unwrap_err());
                refused += 1;
            }
        }
    }
    println!("= {refused} changes refused beside a thread that differs, which is what it was");
}

/// A drop that fails halfway, or is refused beforehand, gives no other thread this thread's identity.
fn a_thread_that_differs_keeps_its_identity_under_a_refused_drop() {
    let others: [(fn(), &str); 4] = [
        (|| kernel::start_from(START, &[9, 10]), "groups"),
        (|| kernel::start_from([3, 9, 3, 9], &GROUPS), "group ids"),
        (|| kernel::start_from([9, 3, 9, 3], &GROUPS), "group ids"),
        (
            || {
                kernel::start_from(START, &GROUPS);
                kernel::raw_setresuid(None, None, Some(1234)).unwrap();
            },
            "user ids",
        ),
    ];
    for (become_other, finding) in others {
        for call in [
            None,
            Some(calls::SYS_setgroups),
            Some(calls::SYS_setresgid),
            Some(calls::SYS_setresuid),
        ] {
            is_refused_beside(become_other, call, || {
                let drop = PermanentDrop::to_group(33).user(1234);
                let error = drop.apply().expect_err("a thread differs");
                assert!(error.to_string().contains(finding), "{error}");
                match error {
                    DropError::Change(error) => error,
                    error => panic!("{error}"),
                }
            });
        }
    }
    // Threads that are the same are rolled back to what they were.
    kernel::passes_in_child(|| {
        start();
        let _other = Worker::start();
        let before = kernel::all_threads();
        sandbox::answer_on_all_threads(calls::SYS_setresuid, &[], Answer::Errno(libc::EPERM));
        let error = PermanentDrop::to_group(33).user(1234).apply().unwrap_err();
        assert!(matches!(error, DropError::Change(_)), "{error}");
        for (now, before) in kernel::all_threads().iter().zip(before) {
            assert_eq!(now.identity, before.identity);
        }
    });
}

/// `join` returns once the thread is gone for libc, and the kernel still lists it while it closes files.
fn a_drop_after_the_join_of_a_thread_with_its_own_file_table() {
    const ATTEMPTS: usize = 60;
    for attempt in 0..ATTEMPTS {
        kernel::passes_in_child(|| {
            start();
            let thread = std::thread::spawn(|| {
                // SAFETY: a flag only.
                assert_eq!(unsafe { libc::unshare(libc::CLONE_FILES) }, 0);
                // Descriptors to close, which takes a while.
                let files: Vec<_> = (0..200)
                    .map_while(|_| std::fs::File::open("/proc/self/status").ok())
                    .collect();
                std::mem::forget(files);
            });
            thread.join().unwrap();
            let report = PermanentDrop::to_group(33).apply();
            let report = report.unwrap_or_else(|error| panic!("attempt {attempt}: {error}"));
            assert_eq!(report.threads, 1);
            assert_eq!(kernel::ids(), [33; 4]);
        });
    }
    println!("= {ATTEMPTS} drops right after a join, 0 refused");
}

/// A new root directory that has /proc, and that only its owner, root, may search.
fn enter_private_root() {
    let root = tempfile::tempdir().unwrap().keep();
    let proc = root.join("proc");
    std::fs::create_dir(&proc).unwrap();
    kernel::own_mounts();
    kernel::mount("proc", proc.to_str().unwrap(), "proc", 0);
    std::fs::set_permissions(&root, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
    std::os::unix::fs::chroot(&root).unwrap();
    std::env::set_current_dir("/").unwrap();
}

fn a_drop_in_a_chroot_that_only_root_may_search() {
    for others in [0, 2] {
        kernel::passes_in_child(|| {
            start();
            enter_private_root();
            let _others: Vec<_> = (0..others).map(|_| Worker::start()).collect();
            let report = PermanentDrop::to_group(33).user(1234).apply().unwrap();
            assert_eq!(report.threads, others + 1);
            // The path is closed to the new identity.
            assert!(std::fs::read("/proc/self/status").is_err());
            assert_eq!(kernel::ids_by_calls(), [33; 4]);
        });
    }
}

/// A status that says what the check wants to hear, in a file system mounted over a thread's directory.
fn forge(thread: i32, become_other: impl FnOnce(&str) -> String) {
    let directory = format!("/proc/self/task/{thread}");
    let files = ["status", "stat", "comm"].map(|file| {
        (
            file,
            std::fs::read_to_string(format!("{directory}/{file}")).unwrap(),
        )
    });
    kernel::mount("none", &directory, "tmpfs", 0);
    let mut become_other = Some(become_other);
    for (file, text) in files {
        let text = match become_other.take_if(|_| file == "status") {
            Some(become_other) => become_other(&text),
            None => text,
        };
        std::fs::write(format!("{directory}/{file}"), text).unwrap();
    }
    // The owner shows the effective ids.
    std::os::unix::fs::chown(&directory, Some(0), Some(1004)).unwrap();
}

fn a_mount_over_a_threads_directory() {
    let forged = |status: &str| {
        status
            .replace("Gid:\t3\t3\t3\t3", "Gid:\t1004\t1004\t3\t1004")
            .replace("Groups:\t7 8", "Groups:\t")
    };
    for change in [
        GroupChange::both(1004),
        GroupChange::both(1004).no_supplementary(),
        GroupChange::new().real(1004),
    ] {
        // It hides a thread that fakes the calls, so Ok would be false.
        kernel::passes_in_child(|| {
            start();
            kernel::own_mounts();
            let other = Worker::start();
            other.fakes(calls::SYS_setresgid);
            forge(other.thread, forged);
            let error = change.clone().assume().unwrap_err();
            assert!(
                matches!(
                    error,
                    Error::ThreadsUnreadable { .. } | Error::ThreadDiffers { .. }
                ),
                "{error}"
            );
            assert_eq!(kernel::ids_by_calls(), START);
            assert!(matches!(threads(), Err(Error::ThreadsUnreadable { .. })));
        });
        // Mounted under the guard: the restore is not verified, which is an error.
        kernel::passes_in_child(|| {
            start();
            kernel::own_mounts();
            let other = Worker::start();
            let guard: GroupGuard<Process> = change.assume().unwrap();
            other.fakes(calls::SYS_setresgid);
            forge(other.thread, str::to_owned);
            let error = guard.restore().unwrap_err();
            let expected = Unrestored::OtherThread { thread_id: 0 };
            assert!(
                matches!(&error, RestoreError::Refused { what, .. } if *what == expected),
                "{error}"
            );
        });
    }
    let is_not_ok = |f: fn()| {
        kernel::passes_in_child(|| {
            start();
            kernel::own_mounts();
            let other = Worker::start();
            other.fakes(calls::SYS_setresgid);
            forge(other.thread, |status| {
                status.replace("Gid:\t3\t3\t3\t3", "Gid:\t33\t33\t33\t33")
            });
            f();
        });
    };
    is_not_ok(|| {
        PermanentDrop::to_group(33).user(1234).apply().unwrap_err();
    });
    // The directory of another thread, bound there: a procfs, but of another thread.
    kernel::passes_in_child(|| {
        start();
        kernel::own_mounts();
        let (first, other) = (Worker::start(), Worker::start());
        other.fakes(calls::SYS_setresgid);
        let [source, target] =
            [first.thread, other.thread].map(|thread| format!("/proc/self/task/{thread}"));
        kernel::mount(&source, &target, "none", libc::MS_BIND);
        for change in [
            GroupChange::both(1004),
            GroupChange::both(1004).no_supplementary(),
        ] {
            change.assume().unwrap_err();
            assert_eq!(kernel::ids_by_calls(), START);
        }
        PermanentDrop::to_group(33).user(1234).apply().unwrap_err();
    });
}

/// The main thread has ended, and stays listed with its old ids until the process ends.
fn an_ended_main_thread_is_no_finding() {
    let code = kernel::in_child(|| {
        start();
        let main = kernel::gettid();
        std::thread::spawn(move || {
            let status = format!("/proc/self/task/{main}/status");
            while !std::fs::read_to_string(&status)
                .unwrap()
                .contains("State:\tZ")
            {
                std::thread::yield_now();
            }
            for change in [
                GroupChange::both(1004),
                GroupChange::both(1004).no_supplementary(),
            ] {
                change.assume().unwrap().restore().unwrap();
            }
            assert_eq!(kernel::identity().ids, START);
            let report = PermanentDrop::to_group(33).user(1234).apply().unwrap();
            assert_eq!(report.threads, 1);
            // SAFETY: it does not return.
            unsafe { libc::_exit(42) }
        });
        // SAFETY: this thread alone ends.
        unsafe { libc::syscall(libc::SYS_exit, 0) };
        unreachable!("this thread has ended")
    });
    assert_eq!(code.code(), Some(42));
}

fn a_storm_of_threads_is_no_finding() {
    const LASTS: Duration = Duration::from_secs(9);
    start();
    let stop = Arc::new(AtomicBool::new(false));
    let starts = Arc::new(AtomicUsize::new(0));
    let makers: Vec<_> = (0..3usize)
        .map(|maker| {
            let (stop, starts) = (Arc::clone(&stop), Arc::clone(&starts));
            std::thread::spawn(move || {
                let mut running = std::collections::VecDeque::new();
                while !stop.load(Ordering::Relaxed) {
                    let thread = std::thread::spawn(move || {
                        if maker == 1 {
                            // Ends more slowly, with files of its own.
                            // SAFETY: a flag only.
                            unsafe { libc::unshare(libc::CLONE_FILES) };
                        }
                    });
                    starts.fetch_add(1, Ordering::Relaxed);
                    match maker {
                        // Nobody waits for it.
                        2 => drop(thread),
                        _ => running.push_back(thread),
                    }
                    if running.len() > 3 * maker {
                        running.pop_front().unwrap().join().unwrap();
                    }
                    if maker == 2 {
                        std::thread::sleep(Duration::from_micros(200));
                    }
                }
                running
                    .into_iter()
                    .for_each(|thread| thread.join().unwrap());
            })
        })
        .collect();
    let began = Instant::now();
    let mut guards = 0;
    while began.elapsed() < LASTS {
        for change in [
            GroupChange::both(1004),
            GroupChange::new().real(1004),
            GroupChange::both(1004).no_supplementary(),
        ] {
            let mut guard = change
                .assume()
                .unwrap_or_else(|error| panic!("guard {guards}: {error}"));
            if guards % 2 == 0 {
                guard.switch_to(1005).unwrap();
            }
            guard
                .restore()
                .unwrap_or_else(|error| panic!("guard {guards}: {error}"));
            guards += 1;
        }
        assert!(!threads().unwrap().is_empty());
    }
    stop.store(true, Ordering::Relaxed);
    makers.into_iter().for_each(|maker| maker.join().unwrap());
    let (starts, seconds) = (starts.load(Ordering::Relaxed), began.elapsed().as_secs());
    println!(
        "= {starts} threads started beside {guards} process guards in {seconds} s, 0 false alarms"
    );
    assert!(starts >= 2000 && guards > 0 && seconds >= 8);
    let expected = GroupIdentity {
        ids: START,
        groups: GROUPS.to_vec(),
    };
    assert_eq!(kernel::identity(), expected);
}

//! Promise 6: one process-wide identity at a time, no hang, and no event of a fork or a child process in which a group leaks.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Barrier};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::cases;
use crate::common::Case;
use crate::common::guard::{SCOPES, Scope};
use crate::common::kernel::{self, Identity, Ids, Watched};
use crate::common::program;
use crate::common::sibling::Sibling;
use privilege_guard::{ConflictingGuard, Error, GroupChange, GroupGuard};

pub const CASES: &[Case] = cases![
    Setgid: eight_threads_with_process_guards,
    Setgid: eight_threads_with_thread_guards,
    Setgid: eight_threads_with_both_that_wait,
    Setgid: eight_threads_with_both_that_try_again,
    Nothing: eight_threads_of_an_ordinary_user,
    Setgid: busy_names_the_thread_with_a_process_guard,
    Setgid: busy_names_a_thread_whose_name_the_kernel_cut_in_a_letter,
    Setgid: busy_names_the_thread_in_a_forked_child_too,
    Setgid: busy_counts_the_threads_with_thread_guards,
    Setgid: a_refused_change_is_in_nobodys_way,
    Setgid: waiting_takes_about_as_long_as_said,
    Setgid: waiting_ends_when_the_other_guard_does,
    Setgid: a_child_forked_under_another_threads_guard_is_refused_at_once,
    Setgid: a_child_forked_under_its_own_guard_comes_back_as_its_parent_does,
    Setgid: a_child_forked_under_both_comes_back_and_stays_apart,
    Setgid: forks_in_the_midst_of_guards_never_hang,
    Setgid: commands_of_other_threads_never_have_the_group_of_a_thread_guard,
    Setgid: commands_of_all_threads_have_the_group_of_a_process_guard,
    Setgid: threads_come_and_go_under_process_guards,
    Setgid: guards_dropped_at_the_end_of_a_thread_free_the_others,
];

const LONG_ENOUGH: Duration = Duration::from_secs(120);

/// What a kernel would say under a guard of both ids.
fn inside(start: Ids, gid: u32) -> Ids {
    [gid, gid, start[2], gid]
}

#[derive(Clone, Copy)]
enum When {
    Waits,
    TriesAgain,
}

/// How often a thread was refused until it had its guards.
fn many_guards(start: &Identity, scope: Scope, when: When, gid: u32, rounds: usize) -> usize {
    let watched = Watched::this_thread();
    let groups = vec![gid + 1000, gid + 2000];
    let mut refusals = 0;
    for round in 0..rounds {
        let change = if round % 8 == 0 {
            GroupChange::both(gid).supplementary(groups.clone())
        } else {
            GroupChange::both(gid)
        };
        let change = if matches!(when, When::Waits) {
            change.wait(LONG_ENOUGH)
        } else {
            change
        };
        let guard = loop {
            match scope.assume(change.clone()) {
                Ok(guard) => break guard,
                Err(Error::Busy { .. }) if matches!(when, When::TriesAgain) => refusals += 1,
                Err(error) => panic!("{error}"),
            }
            std::thread::yield_now();
        };
        for reading in 0..3 {
            let expected = Identity {
                ids: inside(start.ids, gid),
                groups: if round % 8 == 0 {
                    groups.clone()
                } else {
                    start.groups.clone()
                },
            };
            assert_eq!(
                watched.identity(),
                expected,
                "{scope:?} {gid}, round {round}, reading {reading}"
            );
            std::thread::yield_now();
        }
        drop(guard);
        // Another thread's process guard may have begun.
        if scope == Scope::Thread && matches!(when, When::Waits) && round % 16 == 0 {
            std::thread::sleep(Duration::from_micros(100));
        }
    }
    refusals
}

fn eight_threads(scopes: [Scope; 8], when: When, rounds: usize) {
    kernel::start_from([1, 2, 3, 2], &[7, 8]);
    let start = kernel::identity();
    let sibling = Sibling::start();
    let barrier = Arc::new(Barrier::new(8));
    let threads: Vec<JoinHandle<usize>> = scopes
        .into_iter()
        .zip(1001..)
        .map(|(scope, gid)| {
            let (start, barrier) = (start.clone(), Arc::clone(&barrier));
            std::thread::spawn(move || {
                barrier.wait();
                many_guards(&start, scope, when, gid, rounds)
            })
        })
        .collect();
    let refusals: usize = threads
        .into_iter()
        .map(|thread| thread.join().unwrap())
        .sum();
    assert_eq!(kernel::identity(), start);
    assert_eq!(sibling.identity(), start);
    GroupGuard::assume(1009).unwrap().restore().unwrap();
    println!(
        "= {} guards of 8 threads, {refusals} times busy, 0 wrong",
        8 * rounds
    );
}

fn eight_threads_with_process_guards() {
    eight_threads([Scope::Process; 8], When::TriesAgain, 200);
    eight_threads([Scope::Process; 8], When::Waits, 100);
}

fn eight_threads_with_thread_guards() {
    eight_threads([Scope::Thread; 8], When::TriesAgain, 2_000);
}

const MIXED: [Scope; 8] = {
    use Scope::{Process as P, Thread as T};
    [P, T, P, T, T, P, T, P]
};

fn eight_threads_with_both_that_wait() {
    eight_threads(MIXED, When::Waits, 150);
}

fn eight_threads_with_both_that_try_again() {
    eight_threads(MIXED, When::TriesAgain, 150);
}

fn eight_threads_of_an_ordinary_user() {
    let start = kernel::identity();
    let own = start.ids[0];
    let threads: Vec<_> = MIXED
        .into_iter()
        .map(|scope| {
            std::thread::spawn(move || {
                for _ in 0..200 {
                    scope
                        .assume(GroupChange::new().effective(own).wait(LONG_ENOUGH))
                        .unwrap()
                        .restore()
                        .unwrap();
                }
            })
        })
        .collect();
    threads
        .into_iter()
        .for_each(|thread| thread.join().unwrap());
    assert_eq!(kernel::identity(), start);
}

/// A thread that has a guard until it is told to end it.
struct Holding {
    thread: i32,
    inside: Identity,
    end: Sender<()>,
    ended: Receiver<()>,
    handle: JoinHandle<()>,
}

impl Holding {
    fn start(name: &str, scope: Scope, gid: u32) -> Self {
        let (tell, told) = mpsc::channel();
        let (end, until) = mpsc::channel();
        let (tell_end, ended) = mpsc::channel();
        let builder = std::thread::Builder::new().name(name.into());
        let run = move || {
            let guard = scope.assume(GroupChange::both(gid)).unwrap();
            tell.send((kernel::gettid(), kernel::identity())).unwrap();
            until.recv().unwrap();
            drop(guard);
            tell_end.send(()).unwrap();
            // The thread lives on, without a guard.
            _ = until.recv();
        };
        let handle = builder.spawn(run).unwrap();
        let (thread, inside) = told.recv().unwrap();
        Holding {
            thread,
            inside,
            end,
            ended,
            handle,
        }
    }

    fn end(self) {
        self.end.send(()).unwrap();
        self.ended.recv().unwrap();
        drop(self.end);
        self.handle.join().unwrap();
    }
}

fn holder_seen_by(scope: Scope) -> Option<ConflictingGuard> {
    let before = kernel::identity();
    let outcome = scope.assume(GroupChange::both(1009));
    match outcome {
        Ok(guard) => {
            assert_eq!(kernel::ids(), inside(before.ids, 1009));
            guard.restore().unwrap();
            None
        }
        Err(Error::Busy { conflict }) => {
            assert_eq!(kernel::identity(), before);
            Some(conflict)
        }
        Err(error) => panic!("{error}"),
    }
}

fn busy_names_the_thread_with_a_process_guard() {
    let start = kernel::identity();
    // A name of at most 15 bytes is what the kernel keeps.
    for (name, kept) in [
        ("spooler", "spooler"),
        ("a much too long name", "a much too long"),
        ("with) (signs: \\", "with) (signs: \\"),
        ("", ""),
    ] {
        let holding = Holding::start(name, Scope::Process, 1001);
        let expected = ConflictingGuard::ProcessGuard {
            thread_id: holding.thread as u32,
            name: Some(kept.into()),
        };
        for scope in SCOPES {
            assert_eq!(holder_seen_by(scope).as_ref(), Some(&expected));
        }
        let message = GroupGuard::assume(1009).unwrap_err().to_string();
        assert!(
            message.starts_with(&format!(
                "thread {} ({kept}) holds a process guard; ",
                holding.thread
            )),
            "{message}"
        );
        let error = std::io::Error::from(GroupGuard::assume(1009).unwrap_err());
        assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock);
        holding.end();
        assert_eq!(kernel::identity(), start);
        assert_eq!(holder_seen_by(Scope::Process), None);
    }
}

fn busy_names_a_thread_whose_name_the_kernel_cut_in_a_letter() {
    let holding = Holding::start(
        "\u{fc}\u{fc}\u{fc}\u{fc}\u{fc}\u{fc}\u{fc}\u{fc}",
        Scope::Process,
        1001,
    );
    let name = "\u{fc}\u{fc}\u{fc}\u{fc}\u{fc}\u{fc}\u{fc}\u{fffd}";
    let expected = ConflictingGuard::ProcessGuard {
        thread_id: holding.thread as u32,
        name: Some(name.into()),
    };
    assert_eq!(holder_seen_by(Scope::Process), Some(expected));
    holding.end();
}

/// The thread that forks has another id there.
fn busy_names_the_thread_in_a_forked_child_too() {
    GroupGuard::assume(1001).unwrap().restore().unwrap();
    in_child(|| {
        let this = kernel::gettid() as u32;
        let _guard = GroupGuard::assume(1001).unwrap();
        let seen = std::thread::spawn(|| holder_seen_by(Scope::Process))
            .join()
            .unwrap();
        let Some(ConflictingGuard::ProcessGuard {
            thread_id,
            name: Some(_),
        }) = seen
        else {
            panic!("{seen:?}")
        };
        assert_eq!(thread_id, this);
    });
}

fn busy_counts_the_threads_with_thread_guards() {
    let start = kernel::identity();
    let first = Holding::start("first", Scope::Thread, 1001);
    assert_eq!(
        holder_seen_by(Scope::Process),
        Some(ConflictingGuard::ThreadGuards { threads: 1 })
    );
    assert_eq!(holder_seen_by(Scope::Thread), None);
    let message = GroupGuard::assume(1009).unwrap_err().to_string();
    assert!(
        message.starts_with("another thread holds a thread guard; "),
        "{message}"
    );

    let second = Holding::start("second", Scope::Thread, 1002);
    assert_eq!(
        holder_seen_by(Scope::Process),
        Some(ConflictingGuard::ThreadGuards { threads: 2 })
    );
    let message = GroupGuard::assume(1009).unwrap_err().to_string();
    assert!(
        message.starts_with("2 threads hold thread guards; "),
        "{message}"
    );
    // A second guard of the same thread is none of another's.
    let own = GroupGuard::assume_on_thread(1003).unwrap();
    drop(GroupGuard::assume_on_thread(1004).unwrap());
    assert_eq!(kernel::ids(), inside(start.ids, 1003));
    assert_eq!(kernel::identity_of(first.thread), first.inside);
    drop(own);

    first.end();
    assert_eq!(
        holder_seen_by(Scope::Process),
        Some(ConflictingGuard::ThreadGuards { threads: 1 })
    );
    second.end();
    assert_eq!(holder_seen_by(Scope::Process), None);
    assert_eq!(kernel::identity(), start);
}

fn a_refused_change_is_in_nobodys_way() {
    in_child(|| {
        kernel::start_from([1, 2, 2, 2], &[7, 8]);
        // All of it: glibc aborts where one thread may set the ids and another may not.
        kernel::give_up_capabilities(kernel::CAP_SETGID);
        let start = kernel::identity();
        for scope in SCOPES {
            let (tell, told) = mpsc::channel();
            let (end, ended) = mpsc::channel::<()>();
            let refused = std::thread::spawn(move || {
                for change in [
                    GroupChange::both(1001),
                    GroupChange::both(u32::MAX),
                    GroupChange::new().supplementary([2001]),
                ] {
                    assert!(matches!(
                        scope.assume(change),
                        Err(Error::NotPermitted { .. } | Error::InvalidGid)
                    ));
                }
                assert!(matches!(
                    scope
                        .assume(GroupChange::both(1))
                        .map(|mut guard| guard.switch_to(1001)),
                    Ok(Err(_))
                ));
                tell.send(()).unwrap();
                _ = ended.recv();
            });
            told.recv().unwrap();
            for scope in SCOPES {
                scope
                    .assume(GroupChange::both(1))
                    .unwrap()
                    .restore()
                    .unwrap();
                assert_eq!(kernel::identity(), start);
            }
            drop(end);
            refused.join().unwrap();
        }
    });
}

fn waiting_takes_about_as_long_as_said() {
    for (holder, asked) in [
        (Scope::Process, Scope::Process),
        (Scope::Process, Scope::Thread),
        (Scope::Thread, Scope::Process),
    ] {
        let holding = Holding::start("holder", holder, 1001);
        let before = kernel::identity();
        for wait in [0, 1, 30, 300].map(Duration::from_millis) {
            let started = Instant::now();
            assert!(matches!(
                asked.assume(GroupChange::both(1002).wait(wait)),
                Err(Error::Busy { .. })
            ));
            let took = started.elapsed();
            // The rest is what a loaded machine may add.
            assert!(
                took >= wait && took < wait + Duration::from_secs(5),
                "{wait:?} took {took:?}"
            );
            assert_eq!(kernel::identity(), before);
        }
        holding.end();
    }
}

fn waiting_ends_when_the_other_guard_does() {
    let start = kernel::identity();
    for (holder, asked) in [
        (Scope::Process, Scope::Process),
        (Scope::Process, Scope::Thread),
        (Scope::Thread, Scope::Process),
    ] {
        for wait in [LONG_ENOUGH, Duration::MAX] {
            let holding = Holding::start("holder", holder, 1001);
            let started = Instant::now();
            let later = std::thread::spawn(move || {
                std::thread::sleep(Duration::from_millis(150));
                holding.end();
            });
            let guard = asked.assume(GroupChange::both(1002).wait(wait)).unwrap();
            let took = started.elapsed();
            assert!(
                took >= Duration::from_millis(150) && took < Duration::from_secs(30),
                "{took:?}"
            );
            // What it puts back was read after the other one had ended.
            assert_eq!(kernel::ids(), inside(start.ids, 1002));
            guard.restore().unwrap();
            assert_eq!(kernel::identity(), start);
            later.join().unwrap();
        }
    }
}

/// In a forked child: nothing that a lock of a thread that is not there could block. A hang ends it by SIGALRM.
fn in_child(f: impl FnOnce()) {
    let status = kernel::in_child(|| {
        // SAFETY: a number; the signal ends the process.
        unsafe { libc::alarm(60) };
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(f));
        // SAFETY: it does not return, and runs no destructor of the parent's.
        unsafe { libc::_exit(i32::from(outcome.is_err())) }
    });
    assert!(status.success(), "{status}");
}

fn a_child_forked_under_another_threads_guard_is_refused_at_once() {
    let start = kernel::identity();

    let holding = Holding::start("holder", Scope::Process, 1001);
    let inherited = kernel::identity();
    assert_eq!(inherited.ids, inside(start.ids, 1001));
    in_child(|| {
        let started = Instant::now();
        let gone = ConflictingGuard::ProcessGuard {
            thread_id: holding.thread as u32,
            name: None,
        };
        for scope in SCOPES {
            assert_eq!(holder_seen_by(scope).as_ref(), Some(&gone));
        }
        let message = GroupGuard::assume(1009).unwrap_err().to_string();
        assert!(
            message.contains("after a fork, guards of the parent's other threads stay active"),
            "{message}"
        );
        assert!(started.elapsed() < Duration::from_secs(5));
        let wait = Duration::from_millis(50);
        assert!(matches!(
            GroupChange::both(1009).wait(wait).assume(),
            Err(Error::Busy { .. })
        ));
        assert_eq!(kernel::identity(), inherited);
    });
    holding.end();
    assert_eq!(kernel::identity(), start);

    let holding = Holding::start("holder", Scope::Thread, 1001);
    in_child(|| {
        assert_eq!(
            holder_seen_by(Scope::Process),
            Some(ConflictingGuard::ThreadGuards { threads: 1 })
        );
        assert_eq!(holder_seen_by(Scope::Thread), None);
        assert_eq!(kernel::identity(), start);
    });
    holding.end();

    // And none that ended before is in the way.
    in_child(|| {
        for scope in SCOPES {
            assert_eq!(holder_seen_by(scope), None);
        }
    });
}

fn a_child_forked_under_its_own_guard_comes_back_as_its_parent_does() {
    kernel::start_from([1, 2, 3, 4], &[7, 8]);
    let start = kernel::identity();
    let sibling = Sibling::start();
    for scope in SCOPES {
        for child_first in [true, false] {
            let change = GroupChange::both(1001).supplementary([2001]);
            let mut outer = Some(scope.assume(change).unwrap());
            let outer_inside = kernel::identity();
            let mut inner = Some(
                Scope::Thread
                    .assume(GroupChange::new().effective(1002))
                    .unwrap(),
            );
            let inner_inside = kernel::identity();
            in_child(|| {
                if child_first {
                    drop(inner.take());
                    assert_eq!(kernel::identity(), outer_inside);
                }
                drop(outer.take());
                drop(inner.take());
                assert_eq!(kernel::identity(), start);
                for scope in SCOPES {
                    assert_eq!(holder_seen_by(scope), None);
                }
                // Nor is there anything of the parent's in the way of another thread.
                let other = std::thread::spawn(|| SCOPES.map(holder_seen_by));
                assert_eq!(other.join().unwrap(), [None, None]);
            });
            // Nothing of that is the parent's.
            assert_eq!(kernel::identity(), inner_inside);
            inner.unwrap().restore().unwrap();
            assert_eq!(kernel::identity(), outer_inside);
            outer.unwrap().restore().unwrap();
            assert_eq!(kernel::identity(), start);
            assert_eq!(holder_seen_by(Scope::Process), None);
        }
    }
    assert_eq!(
        sibling.identity(),
        Identity {
            ids: [1, 2, 3, 2],
            ..start
        }
    );
}

fn a_child_forked_under_both_comes_back_and_stays_apart() {
    let start = kernel::identity();
    let holding = Holding::start("holder", Scope::Thread, 1001);
    let mut own = Some(GroupGuard::assume_on_thread(1002).unwrap());
    in_child(|| {
        own.take().unwrap().restore().unwrap();
        assert_eq!(kernel::identity(), start);
        assert_eq!(holder_seen_by(Scope::Thread), None);
        assert_eq!(
            holder_seen_by(Scope::Process),
            Some(ConflictingGuard::ThreadGuards { threads: 1 })
        );
    });
    own.unwrap().restore().unwrap();
    holding.end();
    assert_eq!(kernel::identity(), start);
    assert_eq!(holder_seen_by(Scope::Process), None);
}

fn forks_in_the_midst_of_guards_never_hang() {
    let start = kernel::identity();
    let stop = Arc::new(AtomicBool::new(false));
    let threads: Vec<_> = [Scope::Process, Scope::Thread, Scope::Process]
        .into_iter()
        .zip(1001..)
        .map(|(scope, gid)| {
            let stop = Arc::clone(&stop);
            std::thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    _ = scope.assume(GroupChange::both(gid)).map(drop);
                    std::thread::sleep(Duration::from_micros(300));
                }
            })
        })
        .collect();
    let (mut served, mut refused) = (0, 0);
    for _ in 0..300 {
        // SAFETY: the child makes guards and nothing else, and ends.
        let child = unsafe { libc::fork() };
        if child == 0 {
            // SAFETY: numbers only; it does not return.
            unsafe { libc::alarm(60) };
            let before = kernel::getresgid();
            let outcome = GroupGuard::assume(1009);
            let code = match &outcome {
                Ok(_) if kernel::getresgid() == [1009, 1009, before[2]] => 10,
                Err(Error::Busy { .. }) => 11,
                _ => 12,
            };
            drop(outcome);
            let back = kernel::getresgid() == before;
            // SAFETY: it does not return.
            unsafe { libc::_exit(if back { code } else { 13 }) };
        }
        let mut status = 0;
        // SAFETY: a valid pointer.
        assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
        match (libc::WIFEXITED(status), libc::WEXITSTATUS(status)) {
            (true, 10) => served += 1,
            (true, 11) => refused += 1,
            _ => panic!("a child ended with status {status:#x}"),
        }
    }
    stop.store(true, Ordering::Relaxed);
    threads
        .into_iter()
        .for_each(|thread| thread.join().unwrap());
    assert_eq!(kernel::identity(), start);
    println!(
        "= 300 forks under guards that come and go: {served} children had a guard, {refused} were refused, 0 hung"
    );
}

/// What a command says that it is.
fn of_a_command() -> Ids {
    let output = program::shows_status().output().unwrap();
    assert!(output.status.success());
    let status = String::from_utf8(output.stdout).unwrap();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("Gid:"))
        .unwrap();
    let ids: Vec<u32> = line
        .split_whitespace()
        .map(|id| id.parse().unwrap())
        .collect();
    ids.try_into().unwrap()
}

fn commands_of_other_threads_never_have_the_group_of_a_thread_guard() {
    let start = kernel::identity();
    let [real, effective, ..] = start.ids;
    let sibling = Sibling::start();
    let stop = Arc::new(AtomicBool::new(false));
    let guards = Arc::new(AtomicUsize::new(0));
    let busy: Vec<_> = (1001..1004)
        .map(|gid| {
            let (stop, guards) = (Arc::clone(&stop), Arc::clone(&guards));
            std::thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    let mut guard = GroupGuard::assume_on_thread(gid).unwrap();
                    guard.switch_to(gid + 100).unwrap();
                    guards.fetch_add(1, Ordering::Relaxed);
                }
            })
        })
        .collect();
    let holding = Holding::start("holder", Scope::Thread, 1005);
    for _ in 0..100 {
        assert_eq!(of_a_command(), [real, effective, effective, effective]);
        assert_eq!(sibling.identity(), start);
        assert_eq!(kernel::identity_of(holding.thread), holding.inside);
    }
    stop.store(true, Ordering::Relaxed);
    busy.into_iter().for_each(|thread| thread.join().unwrap());
    holding.end();
    // A command of the thread itself has it.
    let of_its_own = std::thread::spawn(|| {
        GroupGuard::assume_on_thread(1006)
            .unwrap()
            .run(of_a_command)
    });
    assert_eq!(of_its_own.join().unwrap(), [1006; 4]);
    assert_eq!(kernel::identity(), start);
    println!(
        "= 100 commands beside {} thread guards, 0 wrong",
        guards.load(Ordering::Relaxed)
    );
}

fn commands_of_all_threads_have_the_group_of_a_process_guard() {
    let start = kernel::identity();
    let [real, effective, ..] = start.ids;
    let holding = Holding::start("holder", Scope::Process, 1001);
    assert_eq!(of_a_command(), [1001; 4]);
    assert_eq!(std::thread::spawn(of_a_command).join().unwrap(), [1001; 4]);
    holding.end();
    assert_eq!(of_a_command(), [real, effective, effective, effective]);
}

fn threads_come_and_go_under_process_guards() {
    kernel::start_from([1, 2, 3, 2], &[7, 8]);
    let start = kernel::identity();
    let under = Identity {
        ids: inside(start.ids, 1001),
        groups: vec![2001],
    };
    // Between the two setting calls of a guard.
    let groups_only = Identity {
        groups: vec![2001],
        ..start.clone()
    };
    let stop = Arc::new(AtomicBool::new(false));
    let guards = {
        let stop = Arc::clone(&stop);
        std::thread::spawn(move || {
            let mut guards = 0;
            while !stop.load(Ordering::Relaxed) {
                let change = GroupChange::both(1001)
                    .supplementary([2001])
                    .wait(LONG_ENOUGH);
                let sum = change.assume().unwrap().run(|| 1 + 1);
                guards += sum / 2;
            }
            guards
        })
    };
    let makers: Vec<_> = (0..2)
        .map(|_| {
            let (start, under, groups_only) = (start.clone(), under.clone(), groups_only.clone());
            std::thread::spawn(move || {
                let mut lasting = vec![];
                for round in 0..300 {
                    let known = [start.clone(), under.clone(), groups_only.clone()];
                    let thread = std::thread::spawn(move || {
                        let now = kernel::identity();
                        assert!(known.contains(&now), "{now:?}");
                    });
                    thread.join().unwrap();
                    if round % 30 == 0 {
                        lasting.push(Sibling::start());
                    }
                }
                lasting
            })
        })
        .collect();
    let lasting: Vec<Sibling> = makers
        .into_iter()
        .flat_map(|maker| maker.join().unwrap())
        .collect();
    stop.store(true, Ordering::Relaxed);
    let guards = guards.join().unwrap();
    // A thread that was made at any moment of a change has been brought back with the others.
    for sibling in &lasting {
        assert_eq!(sibling.identity(), start);
    }
    assert_eq!(kernel::identity(), start);
    assert!(guards > 0);
    println!("= 600 threads made and ended beside {guards} process guards, 0 wrong");
}

fn guards_dropped_at_the_end_of_a_thread_free_the_others() {
    let start = kernel::identity();
    let sibling = Sibling::start();
    for scope in SCOPES {
        let leaks = GroupChange::both(1001).wait(LONG_ENOUGH);
        let leaks = std::thread::spawn(move || std::mem::forget(scope.assume(leaks).unwrap()));
        // Before or after the other one, and never with it.
        let waits = std::thread::spawn(|| {
            let guard = GroupChange::both(1002).wait(LONG_ENOUGH).assume().unwrap();
            let now = kernel::ids();
            guard.restore().unwrap();
            now
        });
        assert_eq!(waits.join().unwrap(), inside(start.ids, 1002));
        leaks.join().unwrap();
        assert_eq!(sibling.identity(), start);
        assert_eq!(holder_seen_by(Scope::Process), None);
    }
}

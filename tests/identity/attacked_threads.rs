//! What an attacker found in process scope, one case for each defect: guards that looked as if they
//! had changed nothing, forked children, switches that other threads cannot follow, and used-up
//! descriptors.

use std::fmt::Debug;
use std::fs::File;
use std::path::Path;
use std::time::Duration;

use crate::all_threads::{Worker, is_reported};
use crate::cases;
use crate::common::Case;
use crate::common::calls;
use crate::common::kernel::{self, Identity as GroupIdentity};
use crate::common::sandbox::{self, Answer};
use privilege_guard::{
    Error, GroupChange, GroupGuard, Identity, IdentityGuard, RestoreError, Unrestored, UserGuard,
};

pub const CASES: &[Case] = cases![
    Root: a_switch_to_the_original_user_still_verifies_the_users,
    Setgid: a_switch_to_the_original_group_still_verifies_the_groups,
    Root: ids_that_the_caller_has_already_are_compared,
    Setgid: groups_that_the_caller_has_already_are_compared,
    Setgid: an_empty_guard_verifies_what_it_has_absorbed,
    Root: a_guard_of_the_own_user_verifies_what_it_has_absorbed,
    Setgid: a_child_whose_parent_has_ended_ends_the_guard,
    Root: a_child_whose_parent_has_ended_ends_a_guard_of_a_user,
    Setgid: a_child_of_a_parent_with_threads_switches,
    Setgid: a_switch_in_a_child_sees_the_childs_threads,
    Root: a_switch_that_another_thread_cannot_follow_is_refused,
    Root: a_switch_that_takes_capabilities_from_another_thread_is_refused,
    Root: a_switch_away_from_home_that_another_thread_cannot_follow_is_refused,
    Root: a_user_guard_that_absorbed_a_real_group_compares_all_ids,
    Root: a_user_guard_that_absorbed_a_group_guard_switches_beside_a_thread,
    Root: clients_are_served_in_turn_beside_a_thread,
    Root: a_switch_of_the_group_that_another_thread_cannot_follow_is_refused,
    Setgid: used_up_descriptors_do_not_prevent_the_end_of_absorbed_guards,
    Setgid: used_up_descriptors_do_not_prevent_the_end_after_the_main_thread,
    Setgid: used_up_descriptors_do_not_prevent_the_end_in_a_forked_child,
];

const START: [u32; 4] = [3; 4];
const GROUPS: [u32; 2] = [7, 8];

fn start() {
    kernel::start_from(START, &GROUPS);
}

fn is_restored() {
    let expected = GroupIdentity {
        ids: START,
        groups: GROUPS.to_vec(),
    };
    for thread in kernel::all_threads() {
        assert_eq!(thread.identity, expected);
    }
}

fn users_of(thread: i32) -> [u32; 4] {
    let threads = kernel::all_threads();
    let found = threads.iter().find(|found| found.thread == thread);
    found.expect("a thread").privileges.users
}

/// The error names the other thread as one that differs, and every thread is what it was.
#[track_caller]
fn is_refused<G: Debug>(other: &Worker, change: impl FnOnce() -> Result<G, Error>) {
    let before = kernel::all_threads();
    let error = change().expect_err("a thread differs");
    assert_eq!(kernel::all_threads(), before, "{error}");
    assert!(
        matches!(&error, Error::ThreadDiffers { thread_id, .. }
            if *thread_id == other.thread.unsigned_abs()),
        "{error}"
    );
}

fn is_abort_for_thread(line: &str) {
    assert!(
        line.contains("cannot restore the identity of thread"),
        "{line}"
    );
}

// ---- A switch to the original ids

fn a_switch_to_the_original_user_still_verifies_the_users() {
    // The switch leaves no user to restore. The other thread is at 1000 all the same.
    kernel::passes_in_child(|| {
        let other = Worker::start();
        let mut guard = UserGuard::assume_effective(1000).unwrap();
        guard.switch_to(0).unwrap();
        other.does(|| kernel::raw_setresuid(None, Some(1000), None).unwrap());
        assert_eq!(users_of(other.thread), [0, 1000, 0, 1000]);
        is_reported(other.thread, guard.restore());
    });
    kernel::passes_in_child(|| {
        let other = Worker::start();
        let client = Identity::new(1000, 1000).supplementary([7]);
        let mut guard = IdentityGuard::assume_effective(&client).unwrap();
        let home = Identity::new(0, 1000).supplementary([7]);
        guard.switch_to(&home).unwrap();
        // Without the capability, glibc would abort for the groups.
        other.does(|| kernel::raw_setresuid(None, None, Some(5)).unwrap());
        is_reported(other.thread, guard.restore());
    });
    // It cannot come back, so that the failed switch cannot be rolled back either: no success.
    is_abort_for_thread(&kernel::aborts(|| {
        let other = Worker::start();
        let mut guard = UserGuard::assume_effective(1000).unwrap();
        other.fakes(calls::SYS_setresuid);
        _ = guard.switch_to(0);
    }));
    // It does not leave again: the switch is rolled back.
    kernel::passes_in_child(|| {
        let other = Worker::start();
        let mut guard = UserGuard::assume_effective(1000).unwrap();
        guard.switch_to(0).unwrap();
        other.fakes(calls::SYS_setresuid);
        let before = kernel::all_threads();
        let error = guard.switch_to(1000).unwrap_err();
        assert!(matches!(error, Error::ThreadNotChanged { .. }), "{error}");
        assert_eq!(kernel::all_threads(), before);
        guard.restore().unwrap();
        assert_eq!(kernel::all_threads(), before);
    });
}

fn a_switch_to_the_original_group_still_verifies_the_groups() {
    kernel::passes_in_child(|| {
        start();
        let other = Worker::start();
        let mut guard = GroupGuard::assume_effective(1004).unwrap();
        guard.switch_to(START[1]).unwrap();
        is_restored();
        other.does(|| kernel::raw_setresgid(None, Some(1004), None).unwrap());
        other.fakes(calls::SYS_setresgid);
        is_reported(other.thread, guard.restore());
    });
    is_abort_for_thread(&kernel::aborts(|| {
        start();
        let other = Worker::start();
        let mut guard = GroupGuard::assume_effective(1004).unwrap();
        guard.switch_to(1005).unwrap();
        other.fakes(calls::SYS_setresgid);
        _ = guard.switch_to(START[1]);
    }));
}

// ---- Parts that the calling thread has already

fn ids_that_the_caller_has_already_are_compared() {
    kernel::passes_in_child(|| {
        let other = Worker::start();
        other.does(|| kernel::raw_setresuid(None, Some(1000), None).unwrap());
        is_refused(&other, || UserGuard::assume_effective(0));
    });
    // Real ids are no effective ids.
    kernel::passes_in_child(|| {
        let other = Worker::start();
        other.does(|| kernel::raw_setresuid(Some(1000), None, None).unwrap());
        is_refused(&other, || UserGuard::assume_real_and_effective(0));
        is_refused(&other, || UserGuard::assume_effective(0));
    });
    let own = || Identity::new(1000, 1000).supplementary(GROUPS);
    kernel::passes_in_child(|| {
        kernel::raw_setgroups(&GROUPS).unwrap();
        let other = Worker::start();
        other.does(|| kernel::raw_setgroups(&[666]).unwrap());
        is_refused(&other, || IdentityGuard::assume_effective(&own()));
        is_refused(&other, || IdentityGuard::assume_real_and_effective(&own()));
    });
    kernel::passes_in_child(|| {
        kernel::raw_setgroups(&GROUPS).unwrap();
        let other = Worker::start();
        other.does(|| kernel::raw_setresgid(Some(9), None, None).unwrap());
        let own = Identity::new(0, 0).supplementary(GROUPS);
        is_refused(&other, || IdentityGuard::assume_real_and_effective(&own));
    });
    // A thread that could set the groups, but is not the user.
    kernel::passes_in_child(|| {
        let other = Worker::start();
        other.does(|| {
            kernel::set_securebits(NO_SETUID_FIXUP);
            kernel::raw_setresuid(None, Some(1000), None).unwrap();
        });
        let own_user = Identity::new(0, 1000).supplementary([5]);
        is_refused(&other, || IdentityGuard::assume_effective(&own_user));
    });
}

fn groups_that_the_caller_has_already_are_compared() {
    let differs = || kernel::raw_setgroups(&[9]).unwrap();
    for may_set_groups in [true, false] {
        kernel::passes_in_child(|| {
            start();
            let other = Worker::start();
            other.does(differs);
            if !may_set_groups {
                kernel::give_up_capabilities(kernel::CAP_SETGID);
                other.does(|| kernel::give_up_capabilities(kernel::CAP_SETGID));
            }
            is_refused(&other, || GroupChange::new().supplementary(GROUPS).assume());
        });
    }
    kernel::passes_in_child(|| {
        start();
        let other = Worker::start();
        other.does(|| kernel::raw_setresgid(None, Some(9), None).unwrap());
        is_refused(&other, || GroupGuard::assume_effective(START[1]));
    });
}

// ---- Guards that have absorbed others

fn an_empty_guard_verifies_what_it_has_absorbed() {
    type Ways = [(libc::c_long, fn() -> GroupChange); 3];
    let outer: Ways = [
        (calls::SYS_setresgid, || GroupChange::both(1004)),
        (calls::SYS_setresgid, || GroupChange::new().effective(1004)),
        (calls::SYS_setgroups, || {
            GroupChange::new().supplementary([2001])
        }),
    ];
    for (call, change) in outer {
        kernel::passes_in_child(|| {
            start();
            let other = Worker::start();
            let outer = change().assume().unwrap();
            let inner = GroupChange::new().assume().unwrap();
            drop(outer);
            other.fakes(call);
            is_reported(other.thread, inner.restore());
            assert_ne!(
                kernel::identity_of(other.thread),
                kernel::identity(),
                "the report is true"
            );
        });
        // Nobody fakes: all is restored.
        kernel::passes_in_child(|| {
            start();
            let _other = Worker::start();
            let outer = change().assume().unwrap();
            let inner = GroupChange::new().assume().unwrap();
            drop(outer);
            inner.restore().unwrap();
            is_restored();
        });
        is_abort_for_thread(&kernel::aborts(|| {
            start();
            let other = Worker::start();
            let outer = change().assume().unwrap();
            let inner = GroupChange::new().assume().unwrap();
            drop(outer);
            other.fakes(call);
            drop(inner);
        }));
    }
}

fn a_guard_of_the_own_user_verifies_what_it_has_absorbed() {
    kernel::passes_in_child(|| {
        start();
        let other = Worker::start();
        let outer = GroupGuard::assume(1004).unwrap();
        let inner = UserGuard::assume_effective(0).unwrap();
        drop(outer);
        other.fakes(calls::SYS_setresgid);
        is_reported(other.thread, inner.restore());
        assert_eq!(kernel::ids(), START);
    });
}

// ---- Forked children

/// Runs `f` in a forked child with a guard of its parent, which has ended and is gone from `/proc`.
fn passes_after_the_parent<G>(
    threads: usize,
    assume: impl FnOnce() -> G,
    f: impl FnOnce(G),
) -> std::process::ExitStatus {
    assert_eq!(
        // SAFETY: numbers only.
        unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) },
        0
    );
    let parent = kernel::fork(|| {
        start();
        let _others: Vec<_> = (0..threads).map(|_| Worker::start()).collect();
        let mut guard = Some(assume());
        let parent = format!("/proc/{}", std::process::id());
        kernel::fork(|| {
            while Path::new(&parent).exists() {
                std::thread::sleep(Duration::from_millis(1));
            }
            f(guard.take().expect("the guard"));
            0
        });
        // Without the end of the guard.
        // SAFETY: it does not return.
        unsafe { libc::_exit(0) }
    });
    assert!(kernel::wait(parent).success());
    let mut status = 0;
    // SAFETY: a valid pointer.
    let orphan = unsafe { libc::waitpid(-1, &raw mut status, 0) };
    assert!(orphan > 0 && orphan != parent);
    std::os::unix::process::ExitStatusExt::from_raw(status)
}

fn a_child_whose_parent_has_ended_ends_the_guard() {
    let changes = || {
        [
            GroupChange::new().effective(1004),
            GroupChange::both(1004),
            GroupChange::both(1004).supplementary([2001]),
        ]
    };
    for change in changes() {
        for threads in [0, 2] {
            let ended = passes_after_the_parent(
                threads,
                || change.clone().assume().unwrap(),
                |guard| {
                    drop(guard);
                    is_restored();
                },
            );
            assert!(ended.success(), "{ended}");
            let ended = passes_after_the_parent(
                threads,
                || change.clone().assume().unwrap(),
                |mut guard| {
                    let _other = Worker::start();
                    guard.switch_to(1005).unwrap();
                    for thread in kernel::all_threads() {
                        assert_eq!(thread.identity.ids[1], 1005);
                    }
                    guard.restore().unwrap();
                    is_restored();
                },
            );
            assert!(ended.success(), "{ended}");
            // The child's threads are verified, with nothing left of its parent.
            let ended = passes_after_the_parent(
                threads,
                || change.clone().assume().unwrap(),
                |guard| {
                    let other = Worker::start();
                    other.fakes(calls::SYS_setresgid);
                    is_reported(other.thread, guard.restore());
                },
            );
            assert!(ended.success(), "{ended}");
        }
    }
}

fn a_child_whose_parent_has_ended_ends_a_guard_of_a_user() {
    let client = Identity::new(1000, 1000).supplementary([1001]);
    let ended = passes_after_the_parent(
        1,
        || IdentityGuard::assume_effective(&client).unwrap(),
        |guard| {
            drop(guard);
            is_restored();
            assert_eq!(users_of(kernel::gettid()), [0; 4]);
        },
    );
    assert!(ended.success(), "{ended}");
}

fn a_child_of_a_parent_with_threads_switches() {
    start();
    let other = Worker::start();
    let mut guard = GroupGuard::assume_effective(1004).unwrap();
    kernel::passes_in_child(|| {
        guard.switch_to(1005).unwrap();
        assert_eq!(kernel::all_threads().len(), 1);
        assert_eq!(kernel::ids(), [3, 1005, 3, 1005]);
    });
    // The parent has switched nothing.
    for thread in [kernel::gettid(), other.thread] {
        assert_eq!(kernel::identity_of(thread).ids, [3, 1004, 3, 1004]);
    }
    let mut guard = Some(guard);
    kernel::passes_in_child(|| {
        let mut guard = guard.take().unwrap();
        guard.switch_to(1005).unwrap();
        guard.restore().unwrap();
        is_restored();
    });
    guard.take().unwrap().restore().unwrap();
    is_restored();
}

fn a_switch_in_a_child_sees_the_childs_threads() {
    for threads in [0, 1] {
        kernel::passes_in_child(|| {
            start();
            let _others: Vec<_> = (0..threads).map(|_| Worker::start()).collect();
            let mut guard = GroupGuard::assume_effective(1004).unwrap();
            // It fakes this switch only, so that the rollback reaches it.
            kernel::passes_in_child(|| {
                let other = Worker::start();
                other.does(|| {
                    let to_next = &[(1, 1005)];
                    sandbox::answer(calls::SYS_setresgid, to_next, Answer::SuccessWithoutDoing);
                });
                let before = kernel::all_threads();
                assert_eq!(before.len(), 2);
                let error = guard.switch_to(1005).unwrap_err();
                assert!(
                    matches!(error, Error::ThreadNotChanged { thread_id, .. }
                        if thread_id == other.thread.unsigned_abs()),
                    "{error}"
                );
                assert_eq!(kernel::all_threads(), before);
            });
            // It fakes every call: no success either.
            is_abort_for_thread(&kernel::aborts(|| {
                let other = Worker::start();
                other.fakes(calls::SYS_setresgid);
                _ = guard.switch_to(1005);
            }));
        });
    }
}

// ---- Switches that another thread cannot follow

/// Leaving or taking on user 0 changes no capability set (`capabilities(7)`).
const NO_SETUID_FIXUP: libc::c_ulong = 1 << 2;

/// With all capabilities, which changes of users leave alone.
fn become_1000(saved: u32) {
    kernel::set_securebits(NO_SETUID_FIXUP);
    kernel::raw_setresuid(Some(1000), Some(1000), Some(saved)).unwrap();
}

fn a_switch_that_another_thread_cannot_follow_is_refused() {
    let of_other = || {
        become_1000(2000);
        kernel::give_up_capabilities(kernel::CAP_SETUID);
    };
    // 2000 is its saved id.
    is_refused_in_a_switch(|| become_1000(2000), of_other, 2000, 3000);
}

fn a_switch_that_takes_capabilities_from_another_thread_is_refused() {
    let of_other = || {
        become_1000(1000);
        kernel::set_securebits(0);
    };
    is_refused_in_a_switch(|| become_1000(1000), of_other, 2000, 0);
}

/// The guard was at the process's own user before the switch.
fn a_switch_away_from_home_that_another_thread_cannot_follow_is_refused() {
    let lacks_setuid = || kernel::give_up_capabilities(kernel::CAP_SETUID);
    is_refused_in_a_switch(|| (), lacks_setuid, 0, 1000);
    // Its effective set would be raised.
    is_refused_in_a_switch(|| (), || kernel::lower_capabilities(1), 0, 1000);
    kernel::passes_in_child(|| {
        start();
        let other = Worker::start();
        other.does(|| kernel::give_up_capabilities(kernel::CAP_SETGID));
        let before = kernel::all_threads();
        let client = Identity::new(1000, 1000).supplementary([9]);
        is_refused(&other, || IdentityGuard::assume_effective(&client));
        let own = Identity::new(0, START[1]).supplementary(GROUPS);
        let mut guard = IdentityGuard::assume_effective(&own).unwrap();
        is_refused(&other, || guard.switch_to(&client));
        guard.restore().unwrap();
        assert_eq!(kernel::all_threads(), before);
    });
}

/// `next` is refused at the beginning, and as a switch from `first`, which is served.
fn is_refused_in_a_switch(own: fn(), of_other: fn(), first: u32, next: u32) {
    kernel::passes_in_child(|| {
        let other = Worker::start();
        own();
        other.does(of_other);
        let before = kernel::all_threads();
        is_refused(&other, || UserGuard::assume_effective(next));
        let mut guard = UserGuard::assume_effective(first).unwrap();
        is_refused(&other, || guard.switch_to(next));
        guard.restore().unwrap();
        assert_eq!(kernel::all_threads(), before);
    });
}

/// The guard of users has not read the group ids, so one of them does not tell of the others.
fn a_user_guard_that_absorbed_a_real_group_compares_all_ids() {
    for of_other in [false, true] {
        kernel::passes_in_child(|| {
            start();
            let other = Worker::start();
            let outer = GroupChange::new().real(1004).assume().unwrap();
            let inner = UserGuard::assume_effective(0).unwrap();
            drop(outer);
            match of_other {
                true => other.fakes(calls::SYS_setresgid),
                false => sandbox::answer(calls::SYS_setresgid, &[], Answer::SuccessWithoutDoing),
            }
            let error = inner.restore().unwrap_err();
            let is_named = match &error {
                RestoreError::Refused { what, .. } => match what {
                    Unrestored::OtherThread { thread_id } => {
                        *thread_id == other.thread.unsigned_abs()
                    }
                    what => !of_other && matches!(what, Unrestored::GroupIds(_)),
                },
                _ => false,
            };
            assert!(is_named, "{error}");
        });
    }
}

/// It has not read the group ids, and has nothing to compare them with until it ends.
fn a_user_guard_that_absorbed_a_group_guard_switches_beside_a_thread() {
    kernel::passes_in_child(|| {
        start();
        let other = Worker::start();
        let before = kernel::all_threads();
        let outer = GroupChange::both(1004).no_supplementary().assume().unwrap();
        let mut inner = UserGuard::assume_effective(0).unwrap();
        drop(outer);
        inner.switch_to(1000).unwrap();
        for thread in kernel::all_threads() {
            assert_eq!(thread.privileges.users, [0, 1000, 0, 1000]);
            assert_eq!(thread.identity.ids, [1004, 1004, 3, 1004]);
        }
        // Refused halfway, and rolled back to user 1000.
        let to_2000 = &[(1, 2000)];
        let refusal = Answer::Errno(libc::EPERM);
        sandbox::answer_on_all_threads(calls::SYS_setresuid, to_2000, refusal);
        let refused = inner.switch_to(2000).unwrap_err();
        assert!(matches!(refused, Error::NotPermitted { .. }), "{refused}");
        assert_eq!(users_of(other.thread), [0, 1000, 0, 1000]);
        inner.restore().unwrap();
        let without_flag = |mut threads: Vec<kernel::ThreadState>| {
            for thread in &mut threads {
                thread.privileges.no_new_privs = false;
            }
            threads
        };
        assert_eq!(without_flag(kernel::all_threads()), without_flag(before));
    });
}

/// Inside, the other thread has no capability in use, but it will have when it is outside.
fn clients_are_served_in_turn_beside_a_thread() {
    kernel::passes_in_child(|| {
        start();
        let other = Worker::start();
        let before = kernel::all_threads();
        let client = |id: u32| Identity::new(id, id).supplementary([id + 1]);
        let mut guard = IdentityGuard::assume_effective(&client(1000)).unwrap();
        for id in [2000, 3000, 0, 1000] {
            guard.switch_to(&client(id)).unwrap();
            assert_eq!(users_of(other.thread), [0, id, 0, id]);
            for thread in kernel::all_threads() {
                assert_eq!(thread.identity.ids, [3, id, 3, id]);
                assert_eq!(thread.identity.groups, [id + 1]);
            }
        }
        guard.restore().unwrap();
        assert_eq!(kernel::all_threads(), before);
    });
}

fn a_switch_of_the_group_that_another_thread_cannot_follow_is_refused() {
    kernel::passes_in_child(|| {
        start();
        let other = Worker::start();
        become_1000(1000);
        other.does(|| become_1000(1000));
        // The group and the groups are there already, so that nothing sets them.
        let [own, ids, groups] = [(3, [7, 8]), (9, [7, 8]), (3, [7, 9])]
            .map(|(group, groups)| Identity::new(2000, group).supplementary(groups));
        let mut guard = IdentityGuard::assume_effective(&own).unwrap();
        other.does(|| kernel::lower_capabilities(kernel::CAP_SETGID));
        is_refused(&other, || guard.switch_to(&ids));
        is_refused(&other, || guard.switch_to(&groups));
        guard.restore().unwrap();
        is_restored();
        assert_eq!(users_of(other.thread), [1000; 4]);
    });
}

// ---- Used-up descriptors

/// Opens files until no descriptor is left.
fn use_up_descriptors() -> Vec<File> {
    let few = libc::rlimit {
        rlim_cur: 64,
        rlim_max: 64,
    };
    assert_eq!(
        // SAFETY: a valid pointer.
        unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const few) },
        0
    );
    let files: Vec<_> = std::iter::from_fn(|| File::open("/dev/null").ok()).collect();
    assert!(!files.is_empty());
    files
}

fn used_up_descriptors_do_not_prevent_the_end_of_absorbed_guards() {
    let with_groups = || GroupChange::both(1004).supplementary([7]);
    let effective = || GroupChange::new().effective(1005);
    let nested = [
        [with_groups(), GroupChange::both(1005)],
        [with_groups(), effective()],
        [with_groups(), GroupChange::new()],
        [GroupChange::both(1005), with_groups()],
        [GroupChange::new(), with_groups()],
    ];
    for [outer, inner] in nested {
        kernel::passes_in_child(|| {
            start();
            let _other = Worker::start();
            let outer = outer.assume().unwrap();
            let inner = inner.assume().unwrap();
            drop(outer);
            let files = use_up_descriptors();
            drop(inner);
            drop(files);
            is_restored();
        });
    }
}

fn used_up_descriptors_do_not_prevent_the_end_after_the_main_thread() {
    let code = kernel::in_child(|| {
        start();
        let main = kernel::gettid();
        let (tell, told) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let other = Worker::start();
            // The owner of a thread's directory tells of the effective group: no file is opened.
            let guard = GroupGuard::assume_effective(1004).unwrap();
            tell.send(()).unwrap();
            let stat = format!("/proc/self/task/{main}/stat");
            while !std::fs::read_to_string(&stat).unwrap().contains(") Z ") {
                std::thread::yield_now();
            }
            let files = use_up_descriptors();
            drop(guard);
            drop(files);
            for thread in [kernel::gettid(), other.thread] {
                assert_eq!(kernel::identity_of(thread).ids, START);
            }
            // SAFETY: it does not return.
            unsafe { libc::_exit(42) }
        });
        told.recv().unwrap();
        // SAFETY: this thread alone ends.
        unsafe { libc::syscall(libc::SYS_exit, 0) };
        unreachable!("this thread has ended")
    });
    assert_eq!(code.code(), Some(42));
}

/// The one that was reserved is enough to see that the child has one thread.
fn used_up_descriptors_do_not_prevent_the_end_in_a_forked_child() {
    kernel::passes_in_child(|| {
        start();
        let guard = std::cell::Cell::new(Some(GroupGuard::assume(1004).unwrap()));
        kernel::passes_in_child(|| {
            let files = use_up_descriptors();
            drop(guard.take());
            drop(files);
            is_restored();
        });
        guard.take().unwrap().restore().unwrap();
        is_restored();
    });
}

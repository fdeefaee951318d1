//! Guards of the user ids and the capability sets, judged by what the kernel shows.

use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::cases;
use crate::common::kernel::{self, CAP_SETUID, Capabilities, Privileges, State};
use crate::common::sandbox::{self, Answer};
use crate::common::sibling::Sibling;
use crate::common::{Case, calls, subscriber};
use nix::errno::Errno;
use privilege_guard::{
    Error, GroupGuard, IrreversibleReason, RestoreError, Thread, Unrestored, UserChange, UserGuard,
    UserIds,
};

pub const CASES: &[Case] = cases![
    Root: walk,
    Root: every_thread_follows_and_is_restored,
    Root: a_thread_that_differs_is_refused,
    Root: users_and_groups_nest_in_any_order,
    Root: switching_goes_through_the_original_user,
    Root: a_switch_keeps_the_ambient_set_for_the_restore,
    Root: an_effective_user_cannot_signal_the_process,
    Root: a_thread_that_libc_skips_is_found,
    Root: each_call_of_a_change_refused_or_faked,
    Root: each_call_of_a_restore_refused_or_faked,
    Root + user_namespace: an_unmapped_id_that_would_have_to_be_restored,
    Root: errno_is_preserved,
];

/// All that a guard of users must restore.
fn everything() -> (State, Privileges) {
    let threads = kernel::all_threads();
    (kernel::state(), threads[0].privileges.clone())
}

#[derive(Clone, Copy, Debug)]
enum Profile {
    Root,
    /// CAP_SETUID is not effective, other capabilities are.
    ReducedRoot,
    /// CAP_SETUID and CAP_SETGID are effective, as by file capabilities.
    FileCapabilities,
    /// The same, and ambient.
    Ambient,
    /// CAP_SETUID is permitted only.
    PermittedOnly,
    None,
}

const PROFILES: [Profile; 6] = [
    Profile::Root,
    Profile::ReducedRoot,
    Profile::FileCapabilities,
    Profile::Ambient,
    Profile::PermittedOnly,
    Profile::None,
];

const SECUREBITS: [libc::c_ulong; 3] = [0, 1 << 4, 1 << 2]; // none, keep-caps, no-setuid-fixup

/// Puts a forked child into this state, without the kernel's fix-ups in between.
fn enter(profile: Profile, securebits: libc::c_ulong, ids: [u32; 4]) {
    let all = kernel::capabilities().permitted;
    let some = CAP_SETUID | kernel::CAP_SETGID;
    // SAFETY: numbers only.
    assert_eq!(unsafe { libc::prctl(libc::PR_SET_SECUREBITS, 1 << 2) }, 0);
    kernel::raw_setresuid(Some(ids[0]), Some(ids[1]), Some(ids[2])).expect("setresuid");
    // SAFETY: numbers only.
    unsafe { libc::syscall(libc::SYS_setfsuid, ids[3]) };
    let sets = |effective, permitted, inheritable| Capabilities {
        effective,
        permitted,
        inheritable,
    };
    assert_eq!(
        // SAFETY: numbers only.
        unsafe { libc::prctl(libc::PR_SET_SECUREBITS, securebits) },
        0
    );
    match profile {
        Profile::Root => {}
        Profile::ReducedRoot => kernel::set_capabilities(sets(all & !CAP_SETUID, all, 0)),
        Profile::FileCapabilities => kernel::set_capabilities(sets(some, some, 0)),
        Profile::Ambient => {
            kernel::set_capabilities(sets(some, some, CAP_SETUID));
            assert_eq!(
                // SAFETY: numbers only.
                unsafe { libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_RAISE, 7, 0, 0) },
                0
            );
        }
        Profile::PermittedOnly => kernel::set_capabilities(sets(0, some, 0)),
        Profile::None => kernel::set_capabilities(sets(0, 0, 0)),
    }
    kernel::set_death_signal(libc::SIGTERM);
}

fn change(real: Option<u32>, effective: Option<u32>) -> UserChange {
    let change = real.into_iter().fold(UserChange::new(), UserChange::real);
    effective.into_iter().fold(change, UserChange::effective)
}

/// Every start state and target: served exactly, or refused unchanged.
fn walk() {
    let triples = (0..27u32).map(|n| [n / 9, n / 3 % 3, n % 3]);
    let starts: Vec<[u32; 4]> = triples
        .flat_map(|[r, e, s]| [[r, e, s, e], [r, e, s, (e + 1) % 3]])
        .collect();
    let (mut served, mut refused, mut states) = ([0; PROFILES.len()], 0, 0);
    for (index, profile) in PROFILES.into_iter().enumerate() {
        for securebits in SECUREBITS {
            for &ids in &starts {
                // The counts come back as the child's exit status: no state has more than 24 cases.
                let status = kernel::in_child(|| {
                    enter(profile, securebits, ids);
                    i32::try_from(judge(ids)).expect("a small number")
                });
                let code = status.code().filter(|&code| code <= 24);
                let here = code
                    .unwrap_or_else(|| panic!("{profile:?}, {securebits:#x}, {ids:?}: {status}"));
                served[index] += here;
                refused += 24 - here;
                states += 24;
            }
        }
    }
    println!(
        "= {states} states: {} served, {refused} refused, 0 violations",
        served.iter().sum::<i32>()
    );
    assert_eq!(states, 6 * 3 * 54 * 24);
    assert!(served.iter().all(|&count| count > 0), "{served:?}");
    assert!(refused > 0);
}

/// Judges each change from this state, and returns how many were served.
fn judge(ids: [u32; 4]) -> usize {
    let before = everything();
    assert_eq!(before.1.users, ids);
    let mut served = 0;
    for target in [0, 1, 2, 9] {
        for (real, effective) in [
            (None, Some(target)),
            (Some(target), Some(target)),
            (Some(target), None),
        ] {
            for on_thread in [true, false] {
                let inside = || {
                    let now = everything().1.users;
                    assert_eq!(now[0], real.unwrap_or(ids[0]));
                    assert_eq!(now[1], effective.unwrap_or(ids[1]));
                    assert_eq!(now[3], now[1], "the filesystem id follows");
                    let is_same = real.is_none() || real == Some(ids[0]);
                    assert!(
                        is_same || everything().1.capabilities[4] == 0,
                        "no ambient set under another real user"
                    );
                };
                let outcome = match on_thread {
                    true => change(real, effective)
                        .assume_on_thread()
                        .map(|guard| guard.run(inside)),
                    false => change(real, effective)
                        .assume()
                        .map(|guard| guard.run(inside)),
                };
                served += usize::from(outcome.is_ok());
                assert_eq!(
                    everything(),
                    before,
                    "{real:?}, {effective:?}, thread {on_thread}: {outcome:?}"
                );
            }
        }
    }
    served
}

fn every_thread_follows_and_is_restored() {
    let before = everything();
    let other = Sibling::start();
    let other_before = kernel::all_threads();
    UserGuard::assume_effective(1000).unwrap().run(|| {
        for thread in kernel::all_threads() {
            assert_eq!(thread.privileges.users, [0, 1000, 0, 1000]);
        }
    });
    assert_eq!(kernel::all_threads(), other_before);
    let error = UserGuard::assume_real_and_effective(1000).unwrap_err();
    assert!(matches!(error, Error::ThreadDiffers { .. }), "{error}");
    assert!(error.to_string().contains("real user id"), "{error}");
    UserGuard::assume_real_and_effective_on_thread(1000)
        .unwrap()
        .run(|| {
            assert_eq!(kernel::all_threads()[1..], other_before[1..]);
        });
    drop(other);
    UserGuard::assume_real_and_effective(1000).unwrap().run(|| {
        assert_eq!(everything().1.users, [1000, 1000, 0, 1000]);
    });
    assert_eq!(everything(), before);
}

fn a_thread_that_differs_is_refused() {
    let prepare: [fn(); 3] = [
        || kernel::give_up_capabilities(CAP_SETUID),
        || kernel::raw_setresuid(Some(1), Some(0), Some(0)).unwrap(),
        || {
            let all = kernel::capabilities();
            kernel::set_capabilities(Capabilities {
                effective: all.permitted & !1,
                ..all
            });
        },
    ];
    for prepare in prepare {
        kernel::passes_in_child(|| {
            let other = Sibling::start_after(prepare);
            let before = kernel::all_threads();
            let error = UserGuard::assume_effective(1000).unwrap_err();
            let is_other = |id: u32| id == other.thread().unsigned_abs();
            assert!(
                matches!(error, Error::ThreadDiffers { thread_id, .. } if is_other(thread_id)),
                "{error}"
            );
            assert_eq!(kernel::all_threads(), before);
        });
    }
}

fn users_and_groups_nest_in_any_order() {
    kernel::set_death_signal(libc::SIGTERM);
    let before = everything();
    for first in [0, 1, 2] {
        let mut guards: Vec<Box<dyn std::any::Any>> = vec![
            Box::new(GroupGuard::assume_on_thread(1004).unwrap()),
            Box::new(UserGuard::assume_effective_on_thread(1000).unwrap()),
            Box::new(UserGuard::assume_effective_on_thread(0).unwrap()),
        ];
        drop(guards.remove(first));
        drop(guards);
        assert_eq!(everything(), before);
    }
    let caught = catch_unwind(AssertUnwindSafe(|| {
        let _user = UserGuard::assume_effective_on_thread(1000).unwrap();
        panic!("inside");
    }));
    assert!(caught.is_err());
    assert_eq!(everything(), before);
    std::thread::spawn(|| std::mem::forget(UserGuard::assume_effective_on_thread(1000).unwrap()))
        .join()
        .unwrap();
    assert_eq!(everything(), before);
    // Without privilege the group could not be changed and restored under the user.
    UserGuard::assume_effective_on_thread(1000)
        .unwrap()
        .run(|| {
            assert!(matches!(
                GroupGuard::assume_on_thread(1004),
                Err(Error::NotPermitted { .. })
            ));
        });
    assert_eq!(everything(), before);
}

fn switching_goes_through_the_original_user() {
    let before = everything();
    let mut guard = UserGuard::assume_effective_on_thread(1000).unwrap();
    for user in [1001, 1001, 0, 1002] {
        guard.switch_to(user).unwrap();
        assert_eq!(everything().1.users, [0, user, 0, user]);
    }
    assert!(matches!(guard.switch_to(u32::MAX), Err(Error::InvalidUid)));
    assert_eq!(
        guard.original(),
        UserIds {
            real: 0.into(),
            effective: 0.into(),
            saved: 0.into(),
            filesystem: 0.into()
        }
    );
    drop(guard);
    assert_eq!(everything(), before);
    kernel::raw_setresuid(Some(1), Some(2), Some(3)).unwrap();
    let error = UserGuard::assume_real_and_effective(1).unwrap_err();
    assert!(
        matches!(
            error,
            Error::Irreversible {
                reason: IrreversibleReason::SetuidRequired,
                ..
            }
        ),
        "{error}"
    );
    assert_eq!(everything().1.users, [1, 2, 3, 2]);
}

/// The first change clears the ambient set, and the restore after the last one has to raise it.
fn a_switch_keeps_the_ambient_set_for_the_restore() {
    for targets in [[2, 0, 2], [2, 9, 0], [9, 2, 9], [9, 0, 2]] {
        kernel::passes_in_child(|| {
            let all = kernel::capabilities().permitted;
            kernel::raw_setresuid(Some(0), Some(2), Some(0)).unwrap();
            kernel::set_capabilities(Capabilities {
                effective: all,
                permitted: all,
                inheritable: 1,
            });
            // SAFETY: numbers only.
            let raised =
                unsafe { libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_RAISE, 0, 0, 0) };
            assert_eq!(raised, 0);
            let before = everything();
            assert_eq!(before.1.capabilities[4], 1);
            let [first, second, third] = targets;
            let mut guard = UserGuard::assume_real_and_effective_on_thread(first).unwrap();
            for target in [second, third] {
                guard.switch_to(target).unwrap();
                let users = everything().1.users;
                assert_eq!(users[..2], [target; 2]);
                assert!(target == 0 || everything().1.capabilities[4] == 0);
            }
            drop(guard);
            assert_eq!(everything(), before, "{targets:?}");
        });
    }
}

/// A process of the client, which tries to signal this one.
fn an_effective_user_cannot_signal_the_process() {
    let this = i32::try_from(std::process::id()).unwrap();
    let may_signal = move || {
        let status = kernel::in_child(|| {
            kernel::raw_setresuid(Some(1000), Some(1000), Some(1000)).unwrap();
            // SAFETY: numbers only; signal 0 only checks the permission.
            i32::from(unsafe { libc::kill(this, 0) } == 0)
        });
        status.code() == Some(1)
    };
    let started = |real: bool| {
        let (ask, asked) = std::sync::mpsc::channel::<()>();
        let (tell, told) = std::sync::mpsc::channel();
        // Forked before the guard: a child of it would be under it.
        let helper = std::thread::spawn(move || {
            asked.recv().unwrap();
            tell.send(may_signal()).unwrap();
        });
        let guard = match real {
            true => UserGuard::assume_real_and_effective_on_thread(1000).unwrap(),
            false => UserGuard::assume_effective_on_thread(1000).unwrap(),
        };
        ask.send(()).unwrap();
        let answer = told.recv().unwrap();
        drop(guard);
        helper.join().unwrap();
        answer
    };
    assert!(!started(false));
    assert!(started(true));
}

/// libc reaches no other thread if `tgkill` is refused, and reports success.
fn a_thread_that_libc_skips_is_found() {
    let refuse = || sandbox::refuse(libc::SYS_tgkill, &[]);
    kernel::passes_in_child(|| {
        let other = Sibling::start();
        let other_id = other.thread().unsigned_abs();
        refuse();
        let before = kernel::all_threads();
        let error = UserGuard::assume_effective(1000).unwrap_err();
        assert!(
            matches!(error, Error::ThreadNotChanged { thread_id, .. } if thread_id == other_id),
            "{error}"
        );
        assert_eq!(kernel::all_threads(), before);
    });
    kernel::passes_in_child(|| {
        let other = Sibling::start();
        let expected = Unrestored::OtherThread {
            thread_id: other.thread().unsigned_abs(),
        };
        let guard = UserGuard::assume_effective(1000).unwrap();
        refuse();
        let error = guard.restore().unwrap_err();
        assert!(
            matches!(&error, RestoreError::Refused { what, .. } if *what == expected),
            "{error}"
        );
    });
}

/// A start whose restore makes every call: the filesystem id is odd, and CAP_CHOWN is ambient.
fn start_with_everything_to_restore() -> (State, Privileges) {
    let all = kernel::capabilities().permitted;
    kernel::raw_setresuid(Some(0), Some(2), Some(0)).unwrap();
    kernel::set_capabilities(Capabilities {
        effective: all,
        permitted: all,
        inheritable: 1,
    });
    // SAFETY: numbers only.
    let made = unsafe {
        libc::syscall(calls::SYS_setfsuid, 9);
        libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_RAISE, 0, 0, 0)
    };
    assert_eq!(made, 0);
    kernel::set_death_signal(libc::SIGTERM);
    everything()
}

type Filtered = (libc::c_long, &'static [(u8, u32)]);

const SET_SIGNAL: Filtered = (libc::SYS_prctl, &[(0, libc::PR_SET_PDEATHSIG as u32)]);
const REFUSED_AND_FAKED: [Answer; 2] = [Answer::Errno(libc::EPERM), Answer::SuccessWithoutDoing];

fn to_user_0() -> Result<UserGuard<Thread>, Error> {
    UserGuard::assume_effective_on_thread(0)
}

fn to_user_9() -> Result<UserGuard<Thread>, Error> {
    UserGuard::assume_real_and_effective_on_thread(9)
}

/// What the filter itself sets is not part of the state.
fn ignoring_no_new_privs(mut state: (State, Privileges)) -> (State, Privileges) {
    state.1.no_new_privs = false;
    state
}

fn each_call_of_a_change_refused_or_faked() {
    type Begin = fn() -> Result<UserGuard<Thread>, Error>;
    const CLEAR: &[(u8, u32)] = &[
        (0, libc::PR_CAP_AMBIENT as u32),
        (1, libc::PR_CAP_AMBIENT_CLEAR_ALL as u32),
    ];
    let rows: [(Begin, Filtered); 5] = [
        (to_user_9, (calls::SYS_setresuid, &[(1, 9)])),
        (to_user_9, (libc::SYS_prctl, CLEAR)),
        (to_user_0, (calls::SYS_setresuid, &[(1, 0)])),
        (to_user_0, (libc::SYS_capset, &[])),
        (to_user_0, SET_SIGNAL),
    ];
    for (begin, (call, arguments)) in rows {
        for answer in REFUSED_AND_FAKED {
            // A faked answer of these is noticed only when it matters: when the restore makes them.
            let is_probed = [libc::SYS_capset, SET_SIGNAL.0].contains(&call) && arguments != CLEAR;
            if is_probed && answer == Answer::SuccessWithoutDoing {
                continue;
            }
            kernel::passes_in_child(|| {
                let before = ignoring_no_new_privs(start_with_everything_to_restore());
                sandbox::answer(call, arguments, answer);
                let error = begin().unwrap_err();
                let now = ignoring_no_new_privs(everything());
                assert_eq!(now, before, "{arguments:?}, {answer:?}: {error}");
            });
        }
    }
}

fn each_call_of_a_restore_refused_or_faked() {
    type Begin = fn() -> Result<UserGuard<Thread>, Error>;
    const RAISE: &[(u8, u32)] = &[
        (0, libc::PR_CAP_AMBIENT as u32),
        (1, libc::PR_CAP_AMBIENT_RAISE as u32),
    ];
    let rows: [(Begin, Filtered, &str); 5] = [
        (to_user_0, (calls::SYS_setresuid, &[(1, 2)]), "setresuid"),
        (to_user_0, (calls::SYS_setfsuid, &[(0, 9)]), "setfsuid"),
        (to_user_0, (libc::SYS_capset, &[]), "capset"),
        (
            to_user_9,
            (libc::SYS_prctl, RAISE),
            "prctl(PR_CAP_AMBIENT_RAISE)",
        ),
        (to_user_9, SET_SIGNAL, "prctl(PR_SET_PDEATHSIG)"),
    ];
    for (begin, (filtered, arguments), expected) in rows {
        for answer in REFUSED_AND_FAKED {
            kernel::passes_in_child(|| {
                let before = ignoring_no_new_privs(start_with_everything_to_restore());
                let guard = begin().unwrap();
                sandbox::answer(filtered, arguments, answer);
                let error = guard.restore().unwrap_err();
                assert!(
                    matches!(error, RestoreError::Refused { call, .. } if call == expected),
                    "{error:?}"
                );
                assert_ne!(ignoring_no_new_privs(everything()), before, "{error}");
            });
            let line = kernel::aborts(|| {
                start_with_everything_to_restore();
                let guard = begin().unwrap();
                sandbox::answer(filtered, arguments, answer);
                drop(guard);
            });
            assert!(line.contains(expected), "{line}");
        }
    }
}

/// No call could set it again: in this namespace, only user 0 is mapped.
fn an_unmapped_id_that_would_have_to_be_restored() {
    // If the saved id reads as the real one, the saved id would seem to keep it.
    for saved in [1000, 0] {
        kernel::passes_in_child(|| {
            kernel::raw_setresuid(Some(1000), Some(0), Some(saved)).unwrap();
            kernel::enter_user_namespace();
            std::fs::write("/proc/self/uid_map", "0 0 1").unwrap();
            let before = everything();
            let shown = if saved == 0 { 0 } else { 65534 };
            assert_eq!(before.1.users, [65534, 0, shown, 0]);
            for begun in [
                UserGuard::assume_real_and_effective_on_thread(0).map(drop),
                UserGuard::assume_real_and_effective(0).map(drop),
            ] {
                let error = begun.unwrap_err();
                assert!(
                    matches!(
                        error,
                        Error::Irreversible {
                            reason: IrreversibleReason::Unmapped,
                            ..
                        }
                    ),
                    "{error}"
                );
                assert_eq!(everything(), before);
            }
        });
    }
}

/// The end of a guard sets `errno` in two cases: a subscriber does, or libc does when a call fails.
fn errno_is_preserved() {
    const BEFORE: i32 = 71;
    const OF_THE_FUNCTION: i32 = 72;
    kernel::passes_in_child(|| {
        let guard = UserGuard::assume_effective(1000).unwrap();
        sandbox::refuse(calls::SYS_setresuid, &[]);
        Errno::set_raw(BEFORE);
        let restored = guard.restore();
        assert_eq!(Errno::last_raw(), BEFORE);
        assert!(restored.is_err());
    });
    subscriber::listen_and(|| Errno::set_raw(libc::EIO));
    let guard = UserGuard::assume_effective_on_thread(1000).unwrap();
    Errno::set_raw(BEFORE);
    drop(guard);
    assert_eq!(Errno::last_raw(), BEFORE);
    let guard = UserGuard::assume_effective_on_thread(1000).unwrap();
    Errno::set_raw(BEFORE);
    guard.restore().unwrap();
    assert_eq!(Errno::last_raw(), BEFORE);
    let guard = UserGuard::assume_effective_on_thread(1000).unwrap();
    Errno::set_raw(BEFORE);
    guard.run(|| Errno::set_raw(OF_THE_FUNCTION));
    assert_eq!(Errno::last_raw(), OF_THE_FUNCTION);
    assert_eq!(subscriber::told().len(), 3);
}

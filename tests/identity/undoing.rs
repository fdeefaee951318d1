//! Promises 3 and 4: a change that fails half-way is undone, and an undoing that fails is never survived by accident.
//!
//! Seccomp filters make the kernel refuse one call, or answer it with success without doing it.

use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;

use crate::cases;
use crate::common::Case;
use crate::common::calls;
use crate::common::guard::{Guard, SCOPES, Scope};
use crate::common::kernel;
use crate::common::sandbox::{self, Answer};
use privilege_guard::{
    ConflictingGuard, Error, GroupChange, GroupGuard, RestoreError, Unrestored, UserGuard,
};

pub const CASES: &[Case] = cases![
    Setgid: the_second_half_refused_undoes_the_first,
    Setgid: a_refused_rollback_aborts,
    Setgid: a_restore_that_the_kernel_refuses_is_told,
    Setgid: a_drop_that_the_kernel_refuses_aborts_after_one_line,
    Root: the_line_names_a_capability_that_the_program_has_lost,
    Setgid: a_change_that_is_answered_but_not_made_is_undone,
    Setgid: the_second_half_answered_but_not_made_undoes_the_first,
    Setgid: groups_that_cannot_be_read_back_are_undone,
    Setgid: a_death_signal_that_cannot_be_set_refuses_the_change,
    Setgid: a_death_signal_that_is_answered_but_not_set_aborts,
    Setgid: ids_that_cannot_be_read_refuse_the_change,
    Setgid: what_cannot_be_read_inside_fails_the_restore,
    Setgid: after_a_failed_restore_the_guard_counts_as_alive,
    Setgid: a_failed_restore_stops_the_guards_around_it,
    Setgid: a_failed_restore_is_not_tried_again_when_the_thread_ends,
    Setgid: a_failed_restore_is_not_tried_again_at_exit,
    Setgid: an_inner_undoing_that_waited_and_is_refused_is_told,
    Setgid: a_panic_does_not_hide_a_refused_undoing,
    Setgid: a_leaked_guard_that_cannot_be_undone_aborts_when_its_thread_ends,
    Nothing: everybody_is_told_and_aborted,
    Nothing: a_full_pipe_as_stderr_does_not_hold_the_abort_up,
    Nothing: a_full_socket_as_stderr_does_not_hold_the_abort_up,
    Nothing: a_full_terminal_as_stderr_does_not_hold_the_abort_up,
    Nothing: a_pipe_without_reader_as_stderr_does_not_hold_the_abort_up,
    Nothing: a_closed_stderr_does_not_hold_the_abort_up,
    Nothing: a_stderr_that_another_thread_holds_does_not_hold_the_abort_up,
    Nothing: a_signal_handler_does_not_run_before_the_abort,
];

/// From where the cases start: all ids differ, the filesystem id is odd, two groups, a death signal.
const START: [u32; 4] = [1001, 1002, 1003, 1009];
const GROUPS: [u32; 2] = [1010, 1011];

fn start() -> kernel::State {
    kernel::start_from(START, &GROUPS);
    kernel::set_death_signal(libc::SIGTERM);
    kernel::state()
}

/// All that a guard can change: one group, where the start has two, so that a filter can tell the calls apart.
fn change() -> GroupChange {
    GroupChange::both(1004).supplementary([1020])
}

/// What a filter is to catch.
#[derive(Clone, Copy, Debug)]
struct Filtered {
    call: libc::c_long,
    arguments: &'static [(u8, u32)],
}

const SET_IDS: Filtered = Filtered {
    call: calls::SYS_setresgid,
    arguments: &[(0, 1004)],
};
const SET_GROUPS: Filtered = Filtered {
    call: calls::SYS_setgroups,
    arguments: &[(0, 1)],
};
const RESTORE_IDS: Filtered = Filtered {
    call: calls::SYS_setresgid,
    arguments: &[(0, START[0])],
};
const RESTORE_GROUPS: Filtered = Filtered {
    call: calls::SYS_setgroups,
    arguments: &[(0, 2)],
};
const RESTORE_FILESYSTEM_ID: Filtered = Filtered {
    call: calls::SYS_setfsgid,
    arguments: &[(0, START[3])],
};
const SET_SIGNAL: Filtered = Filtered {
    call: libc::SYS_prctl,
    arguments: &[(0, libc::PR_SET_PDEATHSIG as u32)],
};
const READ_SIGNAL: Filtered = Filtered {
    call: libc::SYS_prctl,
    arguments: &[(0, libc::PR_GET_PDEATHSIG as u32)],
};
const READ_IDS: Filtered = Filtered {
    call: calls::SYS_getresgid,
    arguments: &[],
};
const READ_FILESYSTEM_ID: Filtered = Filtered {
    call: calls::SYS_setfsgid,
    arguments: &[(0, u32::MAX)],
};
const READ_GROUPS: Filtered = Filtered {
    call: calls::SYS_getgroups,
    arguments: &[],
};

impl Filtered {
    /// On all threads alike, as process scope needs it.
    fn answers(self, answer: Answer) {
        sandbox::answer_on_all_threads(self.call, self.arguments, answer);
    }
}

const REFUSED: Answer = Answer::Errno(libc::EPERM);
const NOT_DONE: Answer = Answer::SuccessWithoutDoing;

/// The steps of an undoing, and the call that the error names.
const UNDOING: [(Filtered, &str); 4] = [
    (RESTORE_IDS, "setresgid"),
    (RESTORE_FILESYSTEM_ID, "setfsgid"),
    (SET_SIGNAL, "prctl(PR_SET_PDEATHSIG)"),
    (RESTORE_GROUPS, "setgroups"),
];

/// Every step of an undoing, in each scope, with each answer; each in a child of its own, in which a guard is alive.
fn at_every_step_of_an_undoing(judge: impl Fn(Guard, Scope, Answer, Filtered, &str)) {
    for scope in SCOPES {
        for (filtered, call) in UNDOING {
            for answer in [REFUSED, NOT_DONE] {
                kernel::passes_in_child(|| {
                    start();
                    let guard = scope.assume(change()).unwrap();
                    filtered.answers(answer);
                    judge(guard, scope, answer, filtered, call);
                });
            }
        }
    }
}

fn is_not_restored(error: &RestoreError, expected: &str) {
    match error {
        RestoreError::Refused { what, call, .. } => {
            assert_eq!(*call, expected);
            if let Unrestored::GroupIds(original) = what {
                assert_eq!(crate::common::guard::raw(*original), START);
            }
        }
        other => panic!("{other:?}"),
    }
    let message = error.to_string();
    let what = match expected {
        "setresgid" => "the group ids (real 1001, effective 1002, saved 1003, filesystem 1009)",
        "setgroups" => "the supplementary groups",
        "setfsgid" => "the filesystem group id (1009)",
        _ => "the parent-death signal",
    };
    for word in [expected, what, "must end"] {
        assert!(message.contains(word), "{message}");
    }
}

fn the_second_half_refused_undoes_the_first() {
    for scope in SCOPES {
        kernel::passes_in_child(|| {
            let before = start();
            SET_IDS.answers(REFUSED);
            let error = scope.assume(change()).unwrap_err();
            assert!(matches!(error, Error::NotPermitted { .. }), "{error:?}");
            assert_eq!(kernel::state(), before);
            scope
                .assume(GroupChange::both(1005).supplementary([1020]))
                .expect("a thread that can go on")
                .restore()
                .unwrap();
            assert_eq!(kernel::state(), before);
        });
    }
}

fn a_refused_rollback_aborts() {
    for scope in SCOPES {
        for answer in [REFUSED, NOT_DONE] {
            let line = kernel::aborts(|| {
                start();
                SET_IDS.answers(REFUSED);
                RESTORE_GROUPS.answers(answer);
                _ = scope.assume(change());
            });
            is_one_line(&line, &["setgroups", "cannot restore"]);
        }
    }
}

#[track_caller]
fn is_one_line(text: &str, words: &[&str]) {
    assert!(
        text.ends_with('\n') && text.lines().count() == 1 && text.starts_with("privilege-guard: "),
        "{text:?}"
    );
    for word in words {
        assert!(text.contains(word), "{word:?} is not in {text:?}");
    }
}

fn a_restore_that_the_kernel_refuses_is_told() {
    at_every_step_of_an_undoing(|guard, _, _, _, call| {
        is_not_restored(&guard.restore().unwrap_err(), call)
    });
    // The error is not about a state that does not exist.
    at_every_step_of_an_undoing(|guard, _, _, filtered, _| {
        let restored = guard.restore();
        if filtered.call != libc::SYS_prctl {
            let identity = kernel::identity();
            assert_ne!(
                (identity.ids, identity.groups),
                (START, GROUPS.to_vec()),
                "{restored:?}"
            );
        }
    });
}

fn a_drop_that_the_kernel_refuses_aborts_after_one_line() {
    for scope in SCOPES {
        for (filtered, call) in UNDOING {
            for (answer, reason) in [
                (REFUSED, "Operation not permitted"),
                (NOT_DONE, "without effect"),
            ] {
                let line = kernel::aborts(|| {
                    start();
                    let guard = scope.assume(change()).unwrap();
                    filtered.answers(answer);
                    drop(guard);
                });
                // setfsgid reports no failure: it is found out by reading.
                let reason = if filtered.call == calls::SYS_setfsgid {
                    "without effect"
                } else {
                    reason
                };
                is_one_line(&line, &[call, reason, "aborting"]);
                let names_ids = line.contains(
                    "the group ids (real 1001, effective 1002, saved 1003, filesystem 1009)",
                );
                assert_eq!(names_ids, call == "setresgid", "{line}");
            }
        }
    }
}

/// The program leaves user 0 under a guard, and with it the capability that the guard needs.
fn the_line_names_a_capability_that_the_program_has_lost() {
    let leaves_user_0 = || kernel::raw_setresuid(Some(1234), Some(1234), Some(1234)).unwrap();
    let changes = [
        (GroupChange::both(1004), "the group ids (real 1001,"),
        (
            GroupChange::new().supplementary([1020]),
            "the supplementary groups",
        ),
        (
            GroupChange::new().effective(1001),
            "the filesystem group id (1009)",
        ),
    ];
    for scope in SCOPES {
        for (change, what) in &changes {
            let assume = || {
                // The effective id can be restored without the capability, and the filesystem id cannot.
                start();
                kernel::start_from([1001, 1002, 1002, 1009], &GROUPS);
                scope.assume(change.clone()).unwrap()
            };
            let words = [
                what,
                "CAP_SETGID is not effective any more",
                "change its user",
            ];
            let line = kernel::aborts(|| {
                let guard = assume();
                leaves_user_0();
                drop(guard);
            });
            is_one_line(&line, &words);
            kernel::passes_in_child(|| {
                let guard = assume();
                leaves_user_0();
                let error = guard.restore().unwrap_err();
                assert!(
                    matches!(
                        &error,
                        RestoreError::Refused {
                            lost_capability: Some("CAP_SETGID"),
                            ..
                        }
                    ),
                    "{error}"
                );
                for word in words {
                    assert!(error.to_string().contains(word), "{error}");
                }
            });
            // Refused for another reason.
            let line = kernel::aborts(|| {
                let guard = assume();
                RESTORE_FILESYSTEM_ID.answers(NOT_DONE);
                RESTORE_GROUPS.answers(REFUSED);
                sandbox::answer_on_all_threads(calls::SYS_setresgid, &[], REFUSED);
                drop(guard);
            });
            assert!(!line.contains("CAP_SETGID"), "{line}");
        }
    }
    // As two guards of one pattern that end in the wrong order.
    let line = kernel::aborts(|| {
        start();
        let group = GroupGuard::assume_on_thread(1004).unwrap();
        leaves_user_0();
        let _ends_first = group;
    });
    is_one_line(&line, &["the group ids", "CAP_SETGID"]);
    // The same of users.
    let line = kernel::aborts(|| {
        let guard = UserGuard::assume_effective_on_thread(1000).unwrap();
        leaves_user_0_for_good();
        drop(guard);
    });
    is_one_line(
        &line,
        &["the user ids", "CAP_SETUID is not effective any more"],
    );
}

/// Under a guard of the effective user, whose original user could be reached otherwise.
fn leaves_user_0_for_good() {
    kernel::raw_setresuid(Some(1000), Some(1000), Some(1000)).unwrap();
}

fn a_change_that_is_answered_but_not_made_is_undone() {
    for scope in SCOPES {
        for (filtered, call_made) in [(SET_IDS, "setresgid"), (SET_GROUPS, "setgroups")] {
            kernel::passes_in_child(|| {
                let before = start();
                filtered.answers(NOT_DONE);
                for change in [change(), change().effective(1005)] {
                    match scope.assume(change.clone()).unwrap_err() {
                        Error::SyscallFailed {
                            call, requested, ..
                        } => assert_eq!((call, requested), (call_made, change.to_string())),
                        other => panic!("{other:?}"),
                    }
                    assert_eq!(kernel::state(), before);
                }
            });
        }
    }
}

fn the_second_half_answered_but_not_made_undoes_the_first() {
    for scope in SCOPES {
        kernel::passes_in_child(|| {
            // Also where the change leaves the filesystem id where it is, so that this does not tell.
            kernel::start_from([1001, 1002, 1003, 1002], &GROUPS);
            let before = kernel::state();
            SET_IDS.answers(NOT_DONE);
            let error = scope
                .assume(GroupChange::new().real(1004).supplementary([1020]))
                .unwrap_err();
            assert!(
                matches!(
                    error,
                    Error::SyscallFailed {
                        call: "setresgid",
                        ..
                    }
                ),
                "{error:?}"
            );
            assert_eq!(kernel::state(), before);
        });
    }
}

/// They are set then, and only the reading of one group is refused, not of two.
fn groups_that_cannot_be_read_back_are_undone() {
    for scope in SCOPES {
        kernel::passes_in_child(|| {
            let before = start();
            sandbox::refuse(calls::SYS_getgroups, &[(0, 1)]);
            let error = scope.assume(change()).unwrap_err();
            assert!(
                matches!(
                    error,
                    Error::SyscallFailed {
                        call: "getgroups",
                        ..
                    }
                ),
                "{error:?}"
            );
            assert_eq!(kernel::state(), before);
        });
    }
}

fn a_death_signal_that_cannot_be_set_refuses_the_change() {
    for scope in SCOPES {
        kernel::passes_in_child(|| {
            let before = start();
            SET_SIGNAL.answers(REFUSED);
            let error = scope.assume(change()).unwrap_err();
            assert!(
                matches!(
                    error,
                    Error::SyscallFailed {
                        call: "prctl(PR_SET_PDEATHSIG)",
                        ..
                    }
                ),
                "{error:?}"
            );
            assert_eq!(kernel::state(), before);
            scope
                .assume(GroupChange::new().no_supplementary())
                .expect("a change that clears no signal")
                .restore()
                .unwrap();
            assert_eq!(kernel::state(), before);
        });
    }
}

/// The kernel has cleared the signal by then, and it cannot be put back.
fn a_death_signal_that_is_answered_but_not_set_aborts() {
    for scope in SCOPES {
        let line = kernel::aborts(|| {
            start();
            SET_SIGNAL.answers(NOT_DONE);
            _ = scope.assume(change());
        });
        is_one_line(&line, &["prctl(PR_SET_PDEATHSIG)", "without effect"]);
    }
}

fn ids_that_cannot_be_read_refuse_the_change() {
    for scope in SCOPES {
        for (filtered, name) in [
            (READ_IDS, "getresgid"),
            (READ_FILESYSTEM_ID, "setfsgid"),
            (READ_SIGNAL, "prctl(PR_GET_PDEATHSIG)"),
            (READ_GROUPS, "getgroups"),
        ] {
            kernel::passes_in_child(|| {
                let before = start();
                filtered.answers(REFUSED);
                match scope.assume(change()).unwrap_err() {
                    Error::ReadFailed { call, os_error } => {
                        assert_eq!((call, os_error.raw_os_error()), (name, Some(libc::EPERM)));
                    }
                    other => panic!("{other:?}"),
                }
                assert_eq!(kernel::identity(), before.identity);
            });
        }
        // Which capabilities there are matters where only they lead back.
        kernel::passes_in_child(|| {
            let before = start();
            sandbox::refuse(libc::SYS_capget, &[]);
            let error = scope.assume(GroupChange::both(1001)).unwrap_err();
            assert!(
                matches!(error, Error::ReadFailed { call: "capget", .. }),
                "{error:?}"
            );
            assert_eq!(kernel::state(), before);
        });
    }
}

fn what_cannot_be_read_inside_fails_the_restore() {
    for scope in SCOPES {
        for filtered in [READ_IDS, READ_FILESYSTEM_ID, READ_SIGNAL, READ_GROUPS] {
            kernel::passes_in_child(|| {
                start();
                let guard = scope.assume(change()).unwrap();
                filtered.answers(REFUSED);
                let error = guard.restore().unwrap_err();
                assert!(matches!(error, RestoreError::Refused { .. }), "{error:?}");
            });
        }
    }
}

/// A guard whose undoing was refused; the ids are those inside it.
fn failed(scope: Scope) {
    start();
    let guard = scope.assume(change()).unwrap();
    RESTORE_IDS.answers(REFUSED);
    is_not_restored(&guard.restore().unwrap_err(), "setresgid");
    assert_eq!(kernel::getresgid()[..2], [1004, 1004]);
}

fn after_a_failed_restore_the_guard_counts_as_alive() {
    for scope in SCOPES {
        kernel::passes_in_child(|| {
            failed(scope);
            let process = std::thread::spawn(|| GroupGuard::assume(1005).map(drop))
                .join()
                .unwrap();
            match (scope, process) {
                (
                    Scope::Process,
                    Err(Error::Busy {
                        conflict: ConflictingGuard::ProcessGuard { thread_id, .. },
                    }),
                ) => {
                    assert_eq!(thread_id, kernel::gettid().unsigned_abs());
                }
                (
                    Scope::Thread,
                    Err(Error::Busy {
                        conflict: ConflictingGuard::ThreadGuards { threads: 1 },
                    }),
                ) => {}
                (_, other) => panic!("{other:?}"),
            }
            let thread = std::thread::spawn(|| GroupGuard::assume_on_thread(1005).map(drop))
                .join()
                .unwrap();
            assert_eq!(thread.is_ok(), scope == Scope::Thread, "{thread:?}");
            assert_eq!(kernel::getresgid()[..2], [1004, 1004]);
        });
    }
}

fn a_failed_restore_stops_the_guards_around_it() {
    for scope in SCOPES {
        let inner_fails = || {
            kernel::start_from([1001; 4], &[]);
            let outer = scope.assume(GroupChange::both(1004)).unwrap();
            let inner = scope.assume(GroupChange::both(1005)).unwrap();
            sandbox::refuse(calls::SYS_setresgid, &[(0, 1004)]);
            assert!(matches!(inner.restore(), Err(RestoreError::Refused { .. })));
            outer
        };
        let line = kernel::aborts(|| drop(inner_fails()));
        is_one_line(&line, &[]);
        kernel::passes_in_child(|| {
            // Its own way back is open, and not taken: it would skip the one that failed.
            let restored = inner_fails().restore();
            assert!(
                matches!(restored, Err(RestoreError::NotInnermost)),
                "{restored:?}"
            );
            assert_eq!(kernel::getresgid()[..2], [1005, 1005]);
        });
        kernel::passes_in_child(|| {
            let outer = std::cell::Cell::new(Some(inner_fails()));
            kernel::aborts(|| {
                outer
                    .take()
                    .into_iter()
                    .for_each(|outer| outer.run(|| unreachable!("called")))
            });
            std::mem::forget(outer);
            assert_eq!(kernel::getresgid()[..2], [1005, 1005]);
        });
    }
}

/// Tried again it would be refused again, and abort.
fn a_failed_restore_is_not_tried_again_when_the_thread_ends() {
    for scope in SCOPES {
        kernel::passes_in_child(|| {
            start();
            std::thread::spawn(move || failed(scope)).join().unwrap();
        });
    }
}

fn a_failed_restore_is_not_tried_again_at_exit() {
    for scope in SCOPES {
        let ended = kernel::in_child(|| {
            failed(scope);
            7
        });
        assert_eq!(ended.code(), Some(7), "{ended}");
    }
}

fn an_inner_undoing_that_waited_and_is_refused_is_told() {
    for scope in SCOPES {
        kernel::passes_in_child(|| {
            start();
            let outer = scope.assume(change()).unwrap();
            let inner = scope.assume(GroupChange::both(1005)).unwrap();
            RESTORE_IDS.answers(REFUSED);
            drop(outer);
            assert_eq!(kernel::getresgid()[0], 1005);
            is_not_restored(&inner.restore().unwrap_err(), "setresgid");
        });
    }
}

fn a_panic_does_not_hide_a_refused_undoing() {
    for scope in SCOPES {
        let text = kernel::aborts(|| {
            start();
            let guard = scope.assume(change()).unwrap();
            RESTORE_IDS.answers(REFUSED);
            _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                guard.run(|| panic!("in the guard"))
            }));
        });
        let last = text.lines().last().unwrap();
        assert!(
            text.contains("in the guard") && last.starts_with("privilege-guard: cannot restore"),
            "{text}"
        );
    }
}

fn a_leaked_guard_that_cannot_be_undone_aborts_when_its_thread_ends() {
    for scope in SCOPES {
        let line = kernel::aborts(|| {
            start();
            let leaks = move || {
                std::mem::forget(scope.assume(change()).unwrap());
                RESTORE_IDS.answers(REFUSED);
            };
            _ = std::thread::spawn(leaks).join();
        });
        is_one_line(&line, &["setresgid"]);
    }
}

/// A guard for the own group, which needs no privilege, and whose undoing is refused: that sets the saved id too.
fn own_guard_that_cannot_be_undone(scope: Scope) -> Guard {
    let own = kernel::getresgid()[0];
    let guard = scope.assume(GroupChange::both(own)).unwrap();
    sandbox::refuse(calls::SYS_setresgid, &[(0, own), (1, own), (2, own)]);
    guard
}

fn everybody_is_told_and_aborted() {
    for scope in SCOPES {
        kernel::passes_in_child(|| {
            let error = own_guard_that_cannot_be_undone(scope)
                .restore()
                .unwrap_err();
            assert!(
                matches!(
                    error,
                    RestoreError::Refused {
                        call: "setresgid",
                        ..
                    }
                ),
                "{error:?}"
            );
        });
        kernel::aborts(|| _ = own_guard_that_cannot_be_undone(scope).run(|| 7));
        let line = kernel::aborts(|| drop(own_guard_that_cannot_be_undone(scope)));
        is_one_line(&line, &["setresgid", "Operation not permitted", "aborting"]);
    }
    println!(
        "= {} undoings refused to everybody, judged",
        3 * SCOPES.len()
    );
}

/// Asserts that a drop aborts, whatever `prepare` does with stderr.
fn drop_aborts(prepare: impl Fn()) {
    for scope in SCOPES {
        kernel::aborts(|| {
            let guard = own_guard_that_cannot_be_undone(scope);
            prepare();
            drop(guard);
        });
    }
}

fn as_stderr(end: impl AsFd) {
    rustix::stdio::dup2_stderr(end).expect("dup2");
}

fn pipe() -> [OwnedFd; 2] {
    let mut ends = [0; 2];
    // SAFETY: a valid pointer; the descriptors are new.
    unsafe {
        assert_eq!(libc::pipe(ends.as_mut_ptr()), 0);
        ends.map(|end| OwnedFd::from_raw_fd(end))
    }
}

/// Master and terminal.
fn terminal() -> [OwnedFd; 2] {
    let mut ends = [0; 2];
    let [master, terminal] = &mut ends;
    let none = std::ptr::null_mut::<u8>();
    // SAFETY: valid pointers; the descriptors are new.
    unsafe {
        assert_eq!(
            libc::openpty(master, terminal, none.cast(), none.cast(), none.cast()),
            0
        );
        ends.map(|end| OwnedFd::from_raw_fd(end))
    }
}

fn set_nonblocking(end: &OwnedFd, nonblocking: bool) {
    assert_eq!(
        // SAFETY: numbers only.
        unsafe {
            libc::fcntl(
                end.as_raw_fd(),
                libc::F_SETFL,
                if nonblocking { libc::O_NONBLOCK } else { 0 },
            )
        },
        0
    );
}

/// Writes until no byte fits; from then on a write blocks.
fn fill(end: OwnedFd) -> OwnedFd {
    set_nonblocking(&end, true);
    let mut file = std::fs::File::from(end);
    for size in [4096, 1] {
        while file.write(&vec![b'.'; size]).is_ok() {}
    }
    let end = OwnedFd::from(file);
    set_nonblocking(&end, false);
    end
}

fn a_full_pipe_as_stderr_does_not_hold_the_abort_up() {
    drop_aborts(|| {
        let [reader, writer] = pipe();
        as_stderr(fill(writer));
        std::mem::forget(reader);
    });
}

fn a_full_socket_as_stderr_does_not_hold_the_abort_up() {
    drop_aborts(|| {
        let (reader, writer) = UnixStream::pair().unwrap();
        as_stderr(fill(writer.into()));
        std::mem::forget(reader);
    });
}

/// Also where it takes some bytes, as poll says then, but maybe not all.
fn a_full_terminal_as_stderr_does_not_hold_the_abort_up() {
    for read in [0, 1, 300, 5000] {
        drop_aborts(|| {
            let [master, terminal] = terminal();
            as_stderr(fill(terminal));
            if read > 0 {
                rustix::io::read(&master, &mut vec![0; read]).unwrap();
            }
            std::mem::forget(master);
        });
    }
}

fn a_pipe_without_reader_as_stderr_does_not_hold_the_abort_up() {
    drop_aborts(|| {
        let [reader, writer] = pipe();
        as_stderr(writer);
        drop(reader);
    });
}

fn a_closed_stderr_does_not_hold_the_abort_up() {
    // SAFETY: nothing in this process owns the descriptor.
    drop_aborts(|| assert_eq!(unsafe { libc::close(2) }, 0));
}

fn a_stderr_that_another_thread_holds_does_not_hold_the_abort_up() {
    drop_aborts(|| {
        let (locked, is_locked) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let _held = std::io::stderr().lock();
            locked.send(()).unwrap();
            loop {
                std::thread::park();
            }
        });
        is_locked.recv().unwrap();
    });
}

extern "C" fn handle(_: i32) {
    // SAFETY: async-signal-safe.
    unsafe { libc::_exit(0) };
}

/// A handler of SIGPIPE would run as the wrong group, and here end the process with success.
fn a_signal_handler_does_not_run_before_the_abort() {
    kernel::aborts(|| {
        let guard = own_guard_that_cannot_be_undone(Scope::Process);
        let (reader, writer) = std::os::unix::net::UnixStream::pair().unwrap();
        // SAFETY: the handler does nothing that a signal handler may not do.
        unsafe { libc::signal(libc::SIGPIPE, handle as *const () as libc::sighandler_t) };
        rustix::stdio::dup2_stderr(&writer).unwrap();
        drop(reader);
        drop(guard);
    });
}

//! Promise 1: what a guard puts back is exactly what was.

use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::panic::{AssertUnwindSafe, catch_unwind, panic_any};
use std::process::Command;
use std::sync::Barrier;

use crate::cases;
use crate::common::calls;
use crate::common::guard::{Guard, SCOPES, Scope};
use crate::common::kernel::{self, State};
use crate::common::sandbox;
use crate::common::sibling::Sibling;
use crate::common::{self, Case};
use privilege_guard::{Error, Gid, GroupChange, GroupGuard, GroupIds};

pub const CASES: &[Case] = cases![
    Setgid: files_have_the_group_inside_and_not_after,
    Setgid: every_change_sets_what_it_names,
    Setgid: a_panic_ends_the_guard,
    Setgid: a_panic_in_run_ends_the_guard,
    Setgid: the_parent_death_signal_is_put_back,
    Setgid: a_forked_child_has_no_parent_death_signal,
    Setgid: an_odd_filesystem_id_is_put_back,
    Setgid: supplementary_groups_are_put_back,
    Root: as_many_groups_as_there_can_be_are_put_back,
    Setgid: supplementary_groups_alone_leave_the_ids,
    Setgid: a_process_guard_changes_every_other_thread,
    Setgid: a_thread_guard_changes_no_other_thread,
    Nothing: nothing_named_sets_nothing,
    Nothing: the_own_group_is_taken_on_exactly,
    NoSetgid: an_ordinary_user_is_served_exactly,
    Root: a_set_group_id_program_lends_its_group_and_takes_it_back,
    Nothing: a_guard_shows_what_it_puts_back,
];

fn files_have_the_group_inside_and_not_after() {
    let before = kernel::identity();
    for scope in SCOPES {
        let guard = scope.assume(GroupChange::both(1004)).unwrap();
        assert_eq!(kernel::ids(), [1004, 1004, before.ids[2], 1004]);
        assert_eq!(kernel::group_of_new_file(), 1004);
        drop(guard);
        assert_eq!(kernel::identity(), before);
        assert_eq!(kernel::group_of_new_file(), before.ids[1]);
    }
}

fn every_change_sets_what_it_names() {
    kernel::start_from([1001, 1002, 1003, 1002], &[1010]);
    let before = kernel::identity();
    let inside = |guard| {
        let ids = kernel::ids();
        drop(guard);
        assert_eq!(kernel::identity(), before);
        [ids[0], ids[1], ids[3]]
    };
    assert_eq!(
        inside(GroupGuard::assume(1004).unwrap()),
        [1004, 1004, 1004]
    );
    assert_eq!(
        inside(GroupGuard::assume_effective(1004).unwrap()),
        [1001, 1004, 1004]
    );
    assert_eq!(
        inside(GroupGuard::assume_real(1004).unwrap()),
        [1004, 1002, 1002]
    );
    assert_eq!(
        inside(
            GroupChange::new()
                .real(1004)
                .effective(1005)
                .assume()
                .unwrap()
        ),
        [1004, 1005, 1005]
    );
}

fn a_panic_ends_the_guard() {
    kernel::start_from([1001, 1002, 1003, 1009], &[1010]);
    let before = kernel::identity();
    for scope in SCOPES {
        let panic = catch_unwind(|| {
            let _guard = scope
                .assume(GroupChange::both(1004).no_supplementary())
                .unwrap();
            assert_eq!(kernel::group_of_new_file(), 1004);
            panic_any(7);
        });
        assert_eq!(panic.unwrap_err().downcast_ref(), Some(&7));
        assert_eq!(kernel::identity(), before);
    }
}

fn a_panic_in_run_ends_the_guard() {
    let before = kernel::identity();
    for scope in SCOPES {
        let guard = scope.assume(GroupChange::both(1004)).unwrap();
        let panic = catch_unwind(AssertUnwindSafe(|| {
            guard.run(|| {
                assert_eq!(kernel::group_of_new_file(), 1004);
                panic_any(7);
            })
        }));
        assert_eq!(panic.unwrap_err().downcast_ref(), Some(&7));
        assert_eq!(kernel::identity(), before);
        assert_eq!(
            scope
                .assume(GroupChange::both(1004))
                .unwrap()
                .run(kernel::group_of_new_file),
            1004
        );
        assert_eq!(kernel::identity(), before);
    }
}

/// The last two are real-time signals.
const DEATH_SIGNALS: [i32; 4] = [libc::SIGTERM, libc::SIGUSR1, 34, 64];

fn the_parent_death_signal_is_put_back() {
    for scope in SCOPES {
        for signal in DEATH_SIGNALS {
            kernel::set_death_signal(signal);
            let before = kernel::state();
            let outer = scope.assume(GroupChange::both(1004)).unwrap();
            assert_eq!(kernel::death_signal(), signal);
            let inner = scope.assume(GroupChange::new().effective(1005)).unwrap();
            assert_eq!(kernel::death_signal(), signal);
            drop(inner);
            assert_eq!(kernel::death_signal(), signal);
            drop(outer);
            assert_eq!(kernel::state(), before);
        }
        kernel::set_death_signal(0);
        drop(scope.assume(GroupChange::both(1004)).unwrap());
        assert_eq!(kernel::death_signal(), 0);
    }
}

fn a_forked_child_has_no_parent_death_signal() {
    kernel::set_death_signal(libc::SIGTERM);
    let before = kernel::state();
    for scope in SCOPES {
        let mut guard = Some(scope.assume(GroupChange::both(1004)).unwrap());
        kernel::passes_in_child(|| {
            let in_child = State {
                death_signal: 0,
                ..before.clone()
            };
            assert_eq!(kernel::death_signal(), 0);
            drop(guard.take());
            assert_eq!(kernel::state(), in_child);
        });
        assert_eq!(kernel::death_signal(), libc::SIGTERM);
        drop(guard);
        assert_eq!(kernel::state(), before);
    }
}

fn an_odd_filesystem_id_is_put_back() {
    for filesystem in [1001, 1003, 1009] {
        kernel::start_from([1001, 1002, 1003, filesystem], &[]);
        for scope in SCOPES {
            // 1002 is the effective group already: the filesystem id alone moves.
            for change in [
                GroupChange::both(1004),
                GroupChange::new().effective(1002),
                GroupChange::new().real(1004),
            ] {
                let before = kernel::identity();
                let guard = scope.assume(change).unwrap();
                assert_eq!(kernel::group_of_new_file(), kernel::getresgid()[1]);
                drop(guard);
                assert_eq!(kernel::identity(), before);
                assert_eq!(kernel::group_of_new_file(), filesystem);
            }
        }
    }
}

fn supplementary_groups_are_put_back() {
    // 32 is what many interfaces hold in place; a group may be there twice.
    for groups in [
        vec![],
        vec![7],
        vec![5, 5, 6],
        (2000..2032).collect(),
        (2000..2033).collect(),
        (2000..2100).collect::<Vec<_>>(),
    ] {
        kernel::start_from([1001, 1002, 1003, 1002], &groups);
        let before = kernel::identity();
        assert_eq!(before.groups, groups);
        for scope in SCOPES {
            for asked in [
                vec![],
                vec![1005, 1004],
                groups.clone(),
                (3000..3050).collect::<Vec<_>>(),
            ] {
                let guard = scope
                    .assume(GroupChange::both(1004).supplementary(asked.clone()))
                    .unwrap();
                let mut inside = asked;
                inside.sort_unstable();
                assert_eq!(kernel::identity().groups, inside);
                drop(guard);
                assert_eq!(kernel::identity(), before);
            }
            let guard = scope
                .assume(GroupChange::both(1004).no_supplementary())
                .unwrap();
            assert_eq!(kernel::identity().groups, [0u32; 0]);
            drop(guard);
            assert_eq!(kernel::identity(), before);
        }
    }
}

fn as_many_groups_as_there_can_be_are_put_back() {
    const MOST: u32 = 65_536;
    let groups: Vec<u32> = (100_000..100_000 + MOST).collect();
    kernel::start_from([1001; 4], &groups);
    let before = kernel::identity();
    assert_eq!(before.groups, groups);
    for scope in SCOPES {
        let guard = scope
            .assume(GroupChange::new().supplementary(200_000..200_000 + MOST))
            .unwrap();
        assert_eq!(
            kernel::identity().groups,
            (200_000..200_000 + MOST).collect::<Vec<_>>()
        );
        drop(guard);
        assert_eq!(kernel::identity(), before);
    }
}

fn supplementary_groups_alone_leave_the_ids() {
    kernel::start_from([1001, 1002, 1003, 1009], &[1010]);
    kernel::set_death_signal(libc::SIGTERM);
    let before = kernel::state();
    for scope in SCOPES {
        let guard = scope
            .assume(GroupChange::new().supplementary([1004]))
            .unwrap();
        assert_eq!(kernel::identity().groups, [1004]);
        assert_eq!(
            (kernel::ids(), kernel::death_signal()),
            (before.identity.ids, libc::SIGTERM)
        );
        drop(guard);
        assert_eq!(kernel::state(), before);
    }
}

/// Another thread that first does `prepare`; what it was before, inside and after the guard.
fn seen_by_another_thread(
    scope: Scope,
    change: GroupChange,
    prepare: impl FnOnce() + Send,
) -> [kernel::Identity; 3] {
    let step = Barrier::new(2);
    std::thread::scope(|threads| {
        let other = threads.spawn(|| {
            prepare();
            let before = kernel::identity();
            step.wait();
            step.wait();
            let inside = kernel::identity();
            step.wait();
            step.wait();
            [before, inside, kernel::identity()]
        });
        step.wait();
        let guard = scope.assume(change).unwrap();
        step.wait();
        step.wait();
        drop(guard);
        step.wait();
        other.join().unwrap()
    })
}

fn a_process_guard_changes_every_other_thread() {
    kernel::start_from([1001, 1002, 1003, 1009], &[1010]);
    let before = kernel::identity();

    let change = GroupChange::both(1004).supplementary([1011]);
    let [_, inside, after] = seen_by_another_thread(Scope::Process, change.clone(), || ());
    assert_eq!(
        (inside.ids, inside.groups),
        ([1004, 1004, 1003, 1004], vec![1011])
    );
    // Its filesystem id was 1009 too, and is not put back: no call sets it from outside.
    assert_eq!(
        (after.ids, after.groups),
        ([1001, 1002, 1003, 1002], vec![1010])
    );
    assert_eq!(kernel::identity(), before);

    for (ids, groups) in [
        ([1001, 1022, 1003, 1022], [1010]),
        ([1021, 1002, 1003, 1002], [1010]),
        ([1001, 1002, 1023, 1002], [1010]),
        ([1001, 1002, 1003, 1002], [1030]),
    ] {
        let other = Sibling::start_after(move || kernel::start_from(ids, &groups));
        let error = change.clone().assume().unwrap_err();
        let other_thread = other.thread().unsigned_abs();
        assert!(
            matches!(error, Error::ThreadDiffers { thread_id, .. } if thread_id == other_thread),
            "{error}"
        );
        assert_eq!(
            (other.identity().ids, other.identity().groups),
            (ids, groups.to_vec())
        );
        assert_eq!(kernel::identity(), before);
    }

    // Groups that the change does not name stay each thread's own.
    let [_, inside, after] =
        seen_by_another_thread(Scope::Process, GroupChange::both(1004), || {
            kernel::raw_setgroups(&[1030]).unwrap()
        });
    assert_eq!((inside.groups, after.groups), (vec![1030], vec![1030]));
}

fn a_thread_guard_changes_no_other_thread() {
    kernel::start_from([1001, 1002, 1003, 1009], &[1010]);
    let here = kernel::identity();
    let change = GroupChange::both(1004).supplementary([1011]);
    let [before, inside, after] = seen_by_another_thread(Scope::Thread, change, || ());
    assert_eq!(before, here);
    assert_eq!([inside, after], [here.clone(), here]);
}

fn nothing_named_sets_nothing() {
    kernel::set_death_signal(libc::SIGTERM);
    for call in [
        calls::SYS_setresgid,
        calls::SYS_setregid,
        calls::SYS_setgid,
        calls::SYS_setgroups,
        libc::SYS_capset,
    ] {
        sandbox::refuse(call, &[]);
    }
    let before = kernel::state();
    for scope in SCOPES {
        let guard = scope.assume(GroupChange::new()).unwrap();
        assert_eq!(kernel::state(), before);
        guard.restore().unwrap();
        assert_eq!(kernel::state(), before);
    }
}

/// What everybody may: each change in each scope, judged by the kernel. Returns how many.
fn own_group_exactly() -> usize {
    kernel::set_death_signal(libc::SIGTERM);
    let before = kernel::state();
    let ids = GroupIds::current().unwrap();
    let groups = before.identity.groups.iter().copied().map(Gid::from);
    let mut changes = vec![
        GroupChange::new(),
        GroupChange::both(ids.real),
        GroupChange::new().effective(ids.real),
        GroupChange::new().real(ids.effective),
        GroupChange::new().effective(ids.saved),
        GroupChange::new().real(ids.effective).effective(ids.real),
    ];
    if !kernel::setgroups_denied() {
        changes.push(GroupChange::both(ids.effective).supplementary(groups));
    }
    for scope in SCOPES {
        for change in &changes {
            let outer = scope.assume(change.clone()).unwrap();
            let inner = scope
                .assume(GroupChange::new().effective(ids.real))
                .unwrap();
            assert_eq!(kernel::state(), before, "{change}");
            assert_eq!(kernel::group_of_new_file(), ids.effective.as_raw());
            drop(inner);
            outer.restore().unwrap();
            assert_eq!(kernel::state(), before, "{change}");
        }
    }
    changes.len() * SCOPES.len()
}

fn the_own_group_is_taken_on_exactly() {
    println!("= {} changes to own groups, exact", own_group_exactly());
}

fn an_ordinary_user_is_served_exactly() {
    let mut contexts = vec!["as it is"];
    let plain = own_group_exactly();
    // Its group is then 0, the only one mapped, and its supplementary groups are 65534.
    if kernel::passes_in_own_namespace(|| {
        assert_ne!(kernel::capabilities().effective & kernel::CAP_SETGID, 0);
        let before = kernel::identity();
        for scope in SCOPES {
            for change in [
                GroupChange::both(0),
                GroupChange::new().effective(0),
                GroupChange::new().real(0),
            ] {
                let guard = scope.assume(change).unwrap();
                assert_eq!(kernel::identity(), before);
                guard.restore().unwrap();
                assert_eq!(kernel::identity(), before);
            }
        }
    }) {
        contexts.push("in a user namespace of its own");
    }
    println!(
        "= an ordinary user, {}: {} changes exact",
        contexts.join(" and "),
        plain + 6 * (contexts.len() - 1)
    );
}

const USER: u32 = 1234;
const FILE_GROUP: u32 = 2222;

/// The first process installs this program with the set-group-ID bit; the second is that program, run by an ordinary user.
fn a_set_group_id_program_lends_its_group_and_takes_it_back() {
    if kernel::getresgid() == [USER, FILE_GROUP, FILE_GROUP] {
        return in_the_set_group_id_program();
    }
    let folder = tempfile::tempdir().unwrap();
    std::fs::set_permissions(&folder, PermissionsExt::from_mode(0o755)).unwrap();
    let program = folder.path().join("set-group-id");
    std::fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    chown(&program, None, Some(FILE_GROUP)).unwrap();
    std::fs::set_permissions(&program, PermissionsExt::from_mode(0o2755)).unwrap();
    let mut child = Command::new(&program);
    child
        .env(common::CASE, common::running())
        .env("TMPDIR", "/tmp");
    kernel::passes_in_child(|| {
        kernel::become_user(USER, USER);
        panic!("{}", child.exec());
    });
}

fn in_the_set_group_id_program() {
    let before = kernel::state();
    assert_eq!(
        before.identity.ids,
        [USER, FILE_GROUP, FILE_GROUP, FILE_GROUP]
    );
    assert_eq!(kernel::capabilities().permitted, 0);
    for scope in SCOPES {
        for (change, inside) in [
            // Its own group given up for a while; setregid(1234, 1234) would have lost it.
            (GroupChange::both(USER), [USER, USER, FILE_GROUP, USER]),
            (
                GroupChange::new().effective(USER),
                [USER, USER, FILE_GROUP, USER],
            ),
            // The file's group taken on as the real one too: the saved id keeps the way back.
            (
                GroupChange::both(FILE_GROUP),
                [FILE_GROUP, FILE_GROUP, USER, FILE_GROUP],
            ),
            (
                GroupChange::new().real(FILE_GROUP),
                [FILE_GROUP, FILE_GROUP, USER, FILE_GROUP],
            ),
            (
                GroupChange::new().real(FILE_GROUP).effective(USER),
                [FILE_GROUP, USER, FILE_GROUP, USER],
            ),
        ] {
            let guard = scope.assume(change.clone()).unwrap();
            assert_eq!(kernel::ids(), inside, "{change}");
            assert_eq!(kernel::group_of_new_file(), inside[1]);
            drop(guard);
            assert_eq!(kernel::state(), before, "{change}");
        }
    }
}

fn a_guard_shows_what_it_puts_back() {
    let [real, effective, saved, filesystem] = kernel::ids();
    let ids = format!(
        "Ids {{ real: Gid({real}), effective: Gid({effective}), saved: Gid({saved}), filesystem: Gid({filesystem}) }}"
    );
    for scope in SCOPES {
        let guard = match scope.assume(GroupChange::new()).unwrap() {
            Guard::Process(guard) => format!("{guard:?}"),
            Guard::Thread(guard) => format!("{guard:?}"),
        };
        assert_eq!(
            guard,
            format!("GroupGuard {{ scope: {scope:?}, original: {ids}, .. }}")
        );
    }
}

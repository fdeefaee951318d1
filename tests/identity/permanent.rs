//! Promise 8: for good, until exec; or refused with nothing changed.

use crate::cases;
use crate::common::attack::{Siblings, ways_back};
use crate::common::calls;
use crate::common::kernel::{
    self, CAP_SETGID, CAP_SETPCAP, CAP_SETUID, Capabilities, Namespace, SUBORDINATE,
};
use crate::common::ring;
use crate::common::sandbox::{self, Answer};
use crate::common::sibling::Sibling;
use crate::common::{self, Case};
use privilege_guard::{
    DropError, DropReport, Error, GroupChange, GroupGuard, LookupError, PermanentDrop, Uid,
};

pub const CASES: &[Case] = cases![
    Setgid: root_with_one_thread_keeps_its_user,
    Setgid: a_guard_becomes_permanent,
    Setgid: supplementary_groups_are_those_asked_for,
    Setgid: to_another_user,
    Root: to_an_account,
    Setgid: with_keep_caps,
    Setgid: with_no_setuid_fixup,
    Setgid: with_inheritable_and_ambient_capability,
    Root: with_a_file_given_capability,
    Setgid: several_threads_leave_root,
    Root: a_set_group_id_program_with_threads,
    Nothing: an_ordinary_process_gives_up_nothing,
    Setgid: other_threads_holding_the_capability_are_in_the_way,
    Setgid: a_capability_that_is_not_effective_is_in_the_way,
    Setgid: another_user_needs_setuid,
    Setgid: a_user_0_that_stays_needs_setpcap,
    Setgid: a_setuid_capability_that_stays_needs_setpcap,
    Setgid: another_guard_of_this_thread_is_in_the_way,
    Setgid: another_guard_of_another_thread_is_in_the_way,
    Setgid: a_change_of_two_groups_or_none_is_ambiguous,
    Setgid: values_that_mean_leave_alone_are_refused,
    Nothing: other_supplementary_groups_need_the_capability,
    Root: denied_setgroups_is_in_the_way,
    Root: a_real_user_namespace_is_served,
    Root: no_mapping_is_in_the_way_also_where_the_old_groups_have_none,
    Setgid: a_setpcap_that_stays_loses_the_bounding_set,
    Root: no_proc_is_in_the_way,
    Setgid + io_uring: a_kernel_thread_of_an_io_uring_is_in_the_way,
    Setgid: each_step_refused_or_faked,
    Setgid: what_cannot_be_read_back_is_not_done,
    Setgid: capabilities_that_cannot_be_set_are_in_the_way_where_some_are_taken,
    Setgid: a_first_step_that_fails_is_undone_without_the_capability_too,
    Setgid: a_thread_that_keeps_what_leads_back_is_found,
    Setgid: own_securebits_that_keep_it_are_in_the_way,
    Setgid: no_new_privs_is_set,
    Setgid: no_new_privs_that_was_set_before_is_reported,
    Setgid: the_death_signal_survives,
    Setgid: the_report_is_one_line_for_a_log,
];

#[track_caller]
fn refused<T: std::fmt::Debug>(drop: impl FnOnce() -> Result<T, DropError>) -> DropError {
    let before = kernel::all_threads();
    let error = drop().expect_err("refused");
    assert_eq!(kernel::all_threads(), before, "{error}");
    error
}

/// What the kernel must say of this process after a drop to group 33, and what an attacker must not get.
#[track_caller]
fn holds(report: &DropReport, groups: &[u32], siblings: &Siblings) {
    let threads = kernel::all_threads();
    for thread in &threads {
        assert_eq!(
            thread.identity,
            kernel::Identity {
                ids: [33; 4],
                groups: groups.to_vec()
            }
        );
    }
    assert_eq!(report.threads, threads.len());
    assert!(report.regain_attempts_refused > 0);
    let old = [0, 7, 8, 9];
    assert_eq!(siblings.ways_back(&old), Vec::<String>::new());
    assert_eq!(ways_back(&old), Vec::<String>::new());
}

const ALONE: fn() -> Siblings = || Siblings::start(0);

/// A start with four different ids, all of them old afterwards.
fn start() {
    kernel::start_from([0, 7, 8, 9], &[0, 7, 8]);
}

fn root_with_one_thread_keeps_its_user() {
    start();
    let report = PermanentDrop::to_group(33).apply().unwrap();
    assert!(report.removed_from_bounding_set && report.other_capabilities);
    holds(&report, &[], &ALONE());
}

fn a_guard_becomes_permanent() {
    start();
    let report = GroupGuard::assume(33).unwrap().drop_permanently().unwrap();
    holds(&report, &[], &ALONE());
}

fn supplementary_groups_are_those_asked_for() {
    start();
    let named = GroupChange::both(33)
        .supplementary([1005, 1004])
        .assume()
        .unwrap();
    holds(&named.drop_permanently().unwrap(), &[1004, 1005], &ALONE());
}

fn to_another_user() {
    start();
    let report = PermanentDrop::to_group(33)
        .user(1234)
        .supplementary([1004])
        .apply()
        .unwrap();
    assert_eq!(report.user, Some(Uid::from_raw(1234)));
    holds(&report, &[1004], &ALONE());
}

fn to_an_account() {
    let (uid, gid) = ("33", "33");
    assert!(
        std::fs::read_to_string("/etc/passwd")
            .unwrap()
            .contains(&format!("www-data:x:{uid}:{gid}:"))
    );
    start();
    let report = PermanentDrop::to_account("www-data")
        .unwrap()
        .apply()
        .unwrap();
    assert_eq!(report.user, Some(Uid::from_raw(33)));
    holds(&report, &[33], &ALONE());
}

/// As user 1234, with these capabilities (a mask) only.
fn start_as_user_with(capabilities: u64) {
    start();
    kernel::become_user_with(capabilities);
}

fn with_keep_caps() {
    start();
    kernel::keep_capabilities();
    let report = PermanentDrop::to_group(33).user(1234).apply().unwrap();
    assert!(!report.other_capabilities);
    assert_eq!(kernel::capabilities().permitted, 0);
    holds(&report, &[], &ALONE());
}

fn no_setuid_fixup() {
    const SECBIT_NO_SETUID_FIXUP: libc::c_ulong = 1 << 2;
    assert_eq!(
        // SAFETY: numbers only.
        unsafe { libc::prctl(libc::PR_SET_SECUREBITS, SECBIT_NO_SETUID_FIXUP) },
        0
    );
}

fn with_no_setuid_fixup() {
    start();
    no_setuid_fixup();
    let report = PermanentDrop::to_group(33).user(1234).apply().unwrap();
    holds(&report, &[], &ALONE());
}

fn inherit_setgid() {
    let sets = kernel::capabilities();
    kernel::set_capabilities(Capabilities {
        inheritable: sets.inheritable | CAP_SETGID,
        ..sets
    });
}

fn with_inheritable_and_ambient_capability() {
    start();
    inherit_setgid();
    assert_eq!(
        // SAFETY: numbers only.
        unsafe {
            libc::prctl(
                libc::PR_CAP_AMBIENT,
                libc::PR_CAP_AMBIENT_RAISE,
                CAP_SETGID.trailing_zeros(),
                0,
                0,
            )
        },
        0
    );
    let [_, _, _, _, ambient] = kernel::all_threads()[0].privileges.capabilities;
    assert_eq!(ambient, CAP_SETGID);
    let report = PermanentDrop::to_group(33).apply().unwrap();
    holds(&report, &[], &ALONE());
}

/// Runs this binary again as `user`, from a copy to which `prepare` gives something, with the same case.
fn run_copy(prepare: impl FnOnce(&std::path::Path), user: (u32, u32)) -> std::process::ExitStatus {
    let folder = tempfile::tempdir().unwrap();
    std::os::unix::fs::chown(folder.path(), None, Some(user.1)).unwrap();
    std::fs::set_permissions(
        folder.path(),
        std::os::unix::fs::PermissionsExt::from_mode(0o755),
    )
    .unwrap();
    let copy = folder.path().join("copy");
    std::fs::copy("/proc/self/exe", &copy).unwrap();
    std::fs::set_permissions(&copy, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    prepare(&copy);
    kernel::in_child(|| {
        kernel::become_user(user.0, user.1);
        // SAFETY: there is no other thread.
        unsafe { std::env::set_var(common::CASE, common::running()) };
        let error =
            std::os::unix::process::CommandExt::exec(&mut std::process::Command::new(&copy));
        panic!("{error}");
    })
}

fn with_a_file_given_capability() {
    if std::env::var("INSIDE").is_ok() {
        assert_eq!(kernel::capabilities().effective, CAP_SETGID);
        start();
        let report = PermanentDrop::to_group(33).apply().unwrap();
        for thread in kernel::all_threads() {
            assert_eq!(thread.identity.ids, [33; 4]);
            assert!(!thread.privileges.hold(u64::MAX), "{thread:?}");
        }
        assert!(!report.removed_from_bounding_set && !report.other_capabilities);
        // An exec of this file gives what the file gives, as documented; so no executed child here.
        assert_eq!(
            kernel::in_child(|| i32::from(!Siblings::start(1).ways_back(&[0, 7, 8, 9]).is_empty()))
                .code(),
            Some(0)
        );
        return;
    }
    // SAFETY: there is no other thread.
    unsafe { std::env::set_var("INSIDE", "1") };
    let status = run_copy(
        |copy| kernel::give_file_capabilities(copy, CAP_SETGID),
        (1234, 1234),
    );
    assert!(status.success(), "{status}");
}

fn several_threads_leave_root() {
    start();
    kernel::start_from([0; 4], &[0, 7]);
    let siblings = Siblings::start(4);
    let report = PermanentDrop::to_group(33)
        .user(1234)
        .supplementary([1004])
        .apply()
        .unwrap();
    assert_eq!(report.threads, 5);
    holds(&report, &[1004], &siblings);
}

fn a_set_group_id_program_with_threads() {
    if std::env::var("INSIDE").is_ok() {
        assert_eq!(kernel::ids(), [33, 7, 7, 7]);
        let siblings = Siblings::start(3);
        let report = GroupGuard::assume(33).unwrap().drop_permanently().unwrap();
        assert!(report.supplementary_unchanged);
        for thread in kernel::all_threads() {
            assert_eq!(thread.identity.ids, [33; 4]);
        }
        assert_eq!(siblings.ways_back(&[7, 0]), Vec::<String>::new());
        return;
    }
    // SAFETY: there is no other thread.
    unsafe { std::env::set_var("INSIDE", "1") };
    let set_group_id = |copy: &std::path::Path| {
        std::os::unix::fs::chown(copy, None, Some(7)).unwrap();
        std::fs::set_permissions(copy, std::os::unix::fs::PermissionsExt::from_mode(0o2755))
            .unwrap();
    };
    let status = run_copy(set_group_id, (1234, 33));
    assert!(status.success(), "{status}");
}

fn an_ordinary_process_gives_up_nothing() {
    kernel::give_up_capabilities(CAP_SETGID | CAP_SETUID);
    let before = kernel::identity();
    let own = before.ids[0];
    match PermanentDrop::to_group(own).apply() {
        Ok(report) => {
            assert!(report.supplementary_unchanged);
            let kept: Vec<u32> = report
                .supplementary
                .iter()
                .map(|gid| gid.as_raw())
                .collect();
            assert_eq!(kept, before.groups);
        }
        // User 0 without CAP_SETGID gets it back by an exec, unless CAP_SETPCAP can prevent that.
        Err(error) => assert!(matches!(error, DropError::MissingSetpcap), "{error}"),
    }
    assert_eq!(kernel::identity().ids, [own; 4]);
}

fn other_threads_holding_the_capability_are_in_the_way() {
    // The filesystem id of other threads comes back as their effective one.
    kernel::start_from([0, 7, 8, 7], &[0, 7, 8]);
    let siblings = Siblings::start(2);
    for drop in [
        PermanentDrop::to_group(33),
        PermanentDrop::to_group(33).user(0),
    ] {
        assert!(matches!(
            refused(|| drop.apply()),
            DropError::Multithreaded { threads: 3 }
        ));
    }
    assert!(matches!(
        refused(|| GroupGuard::assume(33)?.drop_permanently()),
        DropError::Multithreaded { threads: 3 }
    ));
    // Leaving user 0 would not clear the inheritable set of a thread that starts now.
    inherit_setgid();
    let inheriting = Sibling::start();
    assert!(matches!(
        refused(|| PermanentDrop::to_group(33).user(1234).apply()),
        DropError::Multithreaded { threads: 4 }
    ));
    drop(inheriting);
    // That of the calling thread is emptied.
    let report = PermanentDrop::to_group(33).user(1234).apply().unwrap();
    holds(&report, &[], &siblings);
}

fn a_capability_that_is_not_effective_is_in_the_way() {
    start();
    let sets = kernel::capabilities();
    kernel::set_capabilities(Capabilities {
        effective: sets.effective & !CAP_SETGID,
        ..sets
    });
    assert!(matches!(
        refused(|| PermanentDrop::to_group(7).apply()),
        DropError::SetgidNotEffective
    ));
}

fn another_user_needs_setuid() {
    start();
    kernel::give_up_capabilities(CAP_SETUID);
    assert!(matches!(
        refused(|| PermanentDrop::to_group(33).user(1234).apply()),
        DropError::MissingSetuid { user: 1234 }
    ));
    let report = PermanentDrop::to_group(33).user(0).apply().unwrap();
    holds(&report, &[], &ALONE());
}

fn a_user_0_that_stays_needs_setpcap() {
    start();
    kernel::give_up_capabilities(CAP_SETPCAP);
    assert!(matches!(
        refused(|| PermanentDrop::to_group(33).apply()),
        DropError::MissingSetpcap
    ));
    assert!(matches!(
        refused(|| GroupGuard::assume(33)?.drop_permanently()),
        DropError::MissingSetpcap
    ));
    let report = PermanentDrop::to_group(33).user(1234).apply().unwrap();
    holds(&report, &[], &ALONE());
}

fn a_setuid_capability_that_stays_needs_setpcap() {
    start_as_user_with(CAP_SETGID | CAP_SETUID);
    // It could become user 0, and have everything again after an exec.
    assert!(matches!(
        refused(|| PermanentDrop::to_group(33).apply()),
        DropError::MissingSetpcap
    ));
    let report = PermanentDrop::to_group(33).user(1235).apply().unwrap();
    holds(&report, &[], &ALONE());
}

fn another_guard_of_this_thread_is_in_the_way() {
    start();
    let outer = GroupGuard::assume(1004).unwrap();
    assert!(matches!(
        refused(|| PermanentDrop::to_group(33).apply()),
        DropError::GuardsActive
    ));
    assert!(matches!(
        refused(|| GroupGuard::assume(33)?.drop_permanently()),
        DropError::GuardsActive
    ));
    let inner = GroupGuard::assume_on_thread(1005).unwrap();
    assert!(matches!(
        refused(|| PermanentDrop::to_group(33).apply()),
        DropError::GuardsActive
    ));
    // Refused, and undone once the inner guard is.
    assert!(matches!(
        outer.drop_permanently(),
        Err(DropError::GuardsActive)
    ));
    assert_eq!(kernel::ids()[1], 1005);
    drop(inner);
    assert_eq!(kernel::ids(), [0, 7, 8, 9]);
}

fn another_guard_of_another_thread_is_in_the_way() {
    kernel::start_from([0; 4], &[]);
    for take in [
        || drop(GroupGuard::assume_on_thread(1004).map(std::mem::forget)),
        || drop(GroupGuard::assume(1004).map(std::mem::forget)),
    ] {
        let (done, wait) = std::sync::mpsc::channel::<()>();
        let (ready, taken) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            take();
            ready.send(()).unwrap();
            _ = wait.recv();
        });
        taken.recv().unwrap();
        assert!(matches!(
            refused(|| PermanentDrop::to_group(33).user(1234).apply()),
            DropError::GuardsActive
        ));
        drop(done);
        thread.join().unwrap();
        assert_eq!(kernel::ids(), [0; 4]);
    }
}

fn a_change_of_two_groups_or_none_is_ambiguous() {
    start();
    let two = || GroupChange::new().real(33).effective(34).assume();
    assert!(matches!(
        refused(|| two()?.drop_permanently()),
        DropError::Change(Error::NotOneId { .. })
    ));
    let none = || GroupChange::new().no_supplementary().assume();
    assert!(matches!(
        refused(|| none()?.drop_permanently()),
        DropError::Change(Error::NotOneId { .. })
    ));
    let report = GroupGuard::assume_effective(33)
        .unwrap()
        .drop_permanently()
        .unwrap();
    holds(&report, &[], &ALONE());
}

fn values_that_mean_leave_alone_are_refused() {
    assert!(matches!(
        refused(|| PermanentDrop::to_group(u32::MAX).apply()),
        DropError::Change(Error::InvalidGid)
    ));
    assert!(matches!(
        refused(|| PermanentDrop::to_group(33).user(u32::MAX).apply()),
        DropError::Change(Error::InvalidUid)
    ));
    assert!(matches!(
        refused(|| PermanentDrop::to_group(33)
            .supplementary([u32::MAX])
            .apply()),
        DropError::Change(Error::InvalidGid)
    ));
    assert!(matches!(
        refused(|| PermanentDrop::to_group(33).supplementary(0..65537).apply()),
        DropError::Change(Error::TooManyGroups)
    ));
    assert!(matches!(
        PermanentDrop::to_account("no-such-account"),
        Err(LookupError::UnknownUser { .. })
    ));
}

fn other_supplementary_groups_need_the_capability() {
    kernel::give_up_capabilities(CAP_SETGID | CAP_SETUID);
    let kernel::Identity {
        ids: [own, ..],
        mut groups,
    } = kernel::identity();
    groups.push(1004);
    let error = refused(|| PermanentDrop::to_group(own).supplementary(groups).apply());
    assert!(
        matches!(error, DropError::SupplementaryDiffer { .. })
            && error.to_string().contains(".accept_supplementary()"),
        "{error}"
    );
}

fn denied_setgroups_is_in_the_way() {
    kernel::passes_in(
        Namespace {
            denies_setgroups: true,
            ..SUBORDINATE
        },
        || {
            kernel::raw_setresgid(Some(0), Some(7), Some(8)).unwrap();
            assert!(matches!(
                refused(|| PermanentDrop::to_group(33).apply()),
                DropError::SetgroupsDenied
            ));
            assert!(matches!(
                refused(|| GroupGuard::assume(33)?.drop_permanently()),
                DropError::SetgroupsDenied
            ));
        },
    );
}

fn a_real_user_namespace_is_served() {
    kernel::passes_in(SUBORDINATE, || {
        start();
        let report = PermanentDrop::to_group(33)
            .user(1234)
            .supplementary([1004])
            .apply()
            .unwrap();
        holds(&report, &[1004], &ALONE());
    });
}

/// Old groups without a mapping show as 65534, and could not be put back: so nothing may fail after they are gone.
fn no_mapping_is_in_the_way_also_where_the_old_groups_have_none() {
    kernel::passes_in(
        Namespace {
            ids: [0; 4],
            groups: &[50, 60],
            ..SUBORDINATE
        },
        || {
            assert_eq!(
                kernel::identity(),
                kernel::Identity {
                    ids: [65534; 4],
                    groups: vec![65534; 2]
                }
            );
            for drop in [
                PermanentDrop::to_group(70_000),
                PermanentDrop::to_group(33).supplementary([70_000]),
            ] {
                assert!(matches!(
                    refused(|| drop.apply()),
                    DropError::Change(Error::UnmappedGid { .. })
                ));
            }
            let error = refused(|| PermanentDrop::to_group(33).user(70_000).apply());
            assert!(
                matches!(error, DropError::UnmappedUid { user: 70_000 }),
                "{error}"
            );
            sandbox::refuse(calls::SYS_setresuid, &[]);
            assert!(matches!(
                PermanentDrop::to_group(33).user(1234).apply(),
                Err(DropError::StillPrivileged { .. })
            ));
        },
    );
}

/// CAP_SETPCAP makes inheritable what the bounding set has; a file that allows that would give it back.
fn a_setpcap_that_stays_loses_the_bounding_set() {
    start_as_user_with(CAP_SETGID | CAP_SETPCAP);
    let report = PermanentDrop::to_group(33).apply().unwrap();
    assert!(report.removed_from_bounding_set);
    holds(&report, &[], &ALONE());
}

fn no_proc_is_in_the_way() {
    let guard = GroupGuard::assume(33).unwrap();
    kernel::hide("/proc");
    assert!(matches!(
        guard.drop_permanently(),
        Err(DropError::Change(Error::ThreadsUnreadable { .. }))
    ));
    let before = (kernel::getresgid(), kernel::capabilities());
    assert!(matches!(
        GroupGuard::assume(33),
        Err(Error::ThreadsUnreadable { .. })
    ));
    assert!(matches!(
        PermanentDrop::to_group(33).apply(),
        Err(DropError::Change(Error::ThreadsUnreadable { .. }))
    ));
    assert_eq!((kernel::getresgid(), kernel::capabilities()), before);
}

fn a_kernel_thread_of_an_io_uring_is_in_the_way() {
    start();
    let ring = ring::idle().unwrap();
    assert!(matches!(
        refused(|| PermanentDrop::to_group(33).apply()),
        DropError::KernelWorker { .. }
    ));
    assert!(matches!(
        refused(|| PermanentDrop::to_group(33).user(1234).apply()),
        DropError::KernelWorker { .. }
    ));
    drop(ring);
}

/// Each setting call in turn refused, and answered with success without being made: an error or an abort, and never `Ok`; where the
/// call was refused before the point of no return, nothing is changed.
fn each_step_refused_or_faked() {
    let mut rows = 0;
    for threads in [0, 2] {
        for (call, arguments, undoable) in [
            (calls::SYS_setgroups, &[][..], true),
            (calls::SYS_setresgid, &[(0, 33)], true),
            (calls::SYS_setresuid, &[], true),
            (libc::SYS_prctl, &[(0, libc::PR_CAPBSET_DROP as u32)], true),
            (libc::SYS_capset, &[], true),
            (
                libc::SYS_prctl,
                &[(0, libc::PR_SET_NO_NEW_PRIVS as u32)],
                false,
            ),
            // What the proof tries: a filter that claims success there is not to be believed either.
            (calls::SYS_setresgid, &[(0, 7)], false),
            (calls::SYS_setgid, &[], false),
            (calls::SYS_setfsgid, &[(0, 7)], false),
        ] {
            for answer in [
                Answer::Errno(libc::EPERM),
                Answer::Errno(libc::ENOMEM),
                Answer::SuccessWithoutDoing,
            ] {
                // The steps of each road: user 0 kept, another user with capabilities kept, several threads.
                let roads: &[(Option<u32>, bool)] = if threads == 0 {
                    &[(None, false), (Some(1234), true)]
                } else {
                    &[(Some(1234), false)]
                };
                for &(user, keeps) in roads {
                    rows += 1;
                    let status = kernel::in_child(|| {
                        // The filesystem id of other threads comes back as their effective one.
                        let filesystem = if threads == 0 { 9 } else { 7 };
                        kernel::start_from([0, 7, 8, filesystem], &[0, 7, 8]);
                        if keeps {
                            kernel::keep_capabilities();
                        }
                        let siblings = Siblings::start(threads);
                        // A filter needs no_new_privs or CAP_SYS_ADMIN, and seccompiler sets the former unless told otherwise.
                        sandbox::answer_on_all_threads(call, arguments, answer);
                        let before = kernel::all_threads();
                        let asked = PermanentDrop::to_group(33).no_new_privs();
                        let asked = user.map_or(asked.clone(), |user| asked.user(user));
                        match asked.apply() {
                            Ok(_) => {
                                // Only where the filter is not in the way of anything: then it holds.
                                let by_calls = siblings.ways_back(&[0, 7, 8, 9]);
                                let honest = answer != Answer::SuccessWithoutDoing;
                                if honest {
                                    i32::from(!by_calls.is_empty())
                                } else {
                                    10
                                }
                            }
                            Err(DropError::StillPrivileged { .. }) => 20,
                            Err(error) => {
                                assert!(undoable, "{error}");
                                assert_eq!(kernel::all_threads(), before, "{error}");
                                30
                            }
                        }
                    });
                    let row = format!(
                        "call {call} {arguments:?}, {answer:?}, user {user:?}, {threads} other threads: {status}"
                    );
                    use std::os::unix::process::ExitStatusExt;
                    let aborted = status.signal() == Some(libc::SIGABRT);
                    println!("{row}");
                    assert!(
                        aborted || matches!(status.code(), Some(0 | 10 | 20 | 30)),
                        "{row}"
                    );
                    // Success without doing is an Ok only where the drop has no use for the call: the kernel is asked below.
                    if status.code() == Some(10) {
                        let unused = (call == calls::SYS_setresuid && user.is_none())
                            || (call == libc::SYS_prctl
                                && arguments[0].1 == libc::PR_CAPBSET_DROP as u32
                                && user.is_some())
                            || (call == libc::SYS_capset && threads > 0)
                            || (call == libc::SYS_prctl
                                && arguments[0].1 == libc::PR_SET_NO_NEW_PRIVS as u32);
                        assert!(unused, "{row}");
                    }
                }
            }
        }
    }
    println!("= {rows} rows, 0 false successes");
}

/// After a step that cannot be undone it would be too late to find that out.
fn what_cannot_be_read_back_is_not_done() {
    let read_by: [(libc::c_long, Option<libc::c_int>); 3] = [
        (calls::SYS_getresuid, None),
        (libc::SYS_prctl, Some(libc::PR_CAPBSET_READ)),
        (libc::SYS_prctl, Some(libc::PR_GET_NO_NEW_PRIVS)),
    ];
    for (call, option) in read_by {
        kernel::passes_in_child(|| {
            start();
            let arguments: Vec<_> = option.iter().map(|&option| (0, option as u32)).collect();
            sandbox::refuse(call, &arguments);
            for drop in [
                PermanentDrop::to_group(33).user(1234),
                PermanentDrop::to_group(33).no_new_privs(),
            ] {
                let error = refused(|| drop.apply());
                assert!(
                    matches!(error, DropError::Change(Error::ReadFailed { .. })),
                    "{error}"
                );
            }
        });
    }
}

fn capabilities_that_cannot_be_set_are_in_the_way_where_some_are_taken() {
    start();
    sandbox::refuse(libc::SYS_capset, &[]);
    for drop in [
        PermanentDrop::to_group(33),
        PermanentDrop::to_group(33).user(1234),
    ] {
        let error = refused(|| drop.apply());
        assert!(
            matches!(
                error,
                DropError::Change(Error::SyscallFailed { call: "capset", .. })
            ),
            "{error}"
        );
    }
    // Leaving user 0 takes those of several threads.
    let siblings = Siblings::start(2);
    holds(
        &PermanentDrop::to_group(33).user(1234).apply().unwrap(),
        &[],
        &siblings,
    );
}

fn a_first_step_that_fails_is_undone_without_the_capability_too() {
    for answer in [Answer::Errno(libc::ENOMEM), Answer::SuccessWithoutDoing] {
        kernel::passes_in_child(|| {
            kernel::start_from([33, 7, 7, 7], &[]);
            kernel::raw_setresuid(Some(1234), Some(1234), Some(1234)).unwrap();
            sandbox::answer(calls::SYS_setresgid, &[(0, 33), (1, 33), (2, 33)], answer);
            let error = refused(|| PermanentDrop::to_group(33).apply());
            assert!(
                matches!(
                    error,
                    DropError::Change(Error::SyscallFailed {
                        call: "setresgid",
                        ..
                    })
                ),
                "{error}"
            );
        });
    }
}

/// The securebits of another thread cannot be read beforehand: what it keeps by them is.
fn a_thread_that_keeps_what_leads_back_is_found() {
    for (of_all, found) in [
        (CAP_SETGID | CAP_SETUID, "holds CAP_SETGID"),
        (CAP_SETUID, "given CAP_SETGID by an exec"),
    ] {
        kernel::passes_in_child(move || {
            start();
            let take = move || {
                let sets = kernel::capabilities();
                kernel::set_capabilities(Capabilities {
                    permitted: of_all,
                    effective: of_all,
                    ..sets
                });
            };
            let _keeper = Sibling::start_after(move || {
                take();
                kernel::keep_capabilities();
            });
            take();
            // The 7 can be had without CAP_SETGID.
            let error = PermanentDrop::to_group(7).user(1234).apply().unwrap_err();
            assert!(
                matches!(&error, DropError::StillPrivileged { finding } if finding.contains(found)),
                "{error}"
            );
        });
    }
}

/// Leaving user 0 would take nothing from these threads.
fn own_securebits_that_keep_it_are_in_the_way() {
    start();
    no_setuid_fixup();
    let _siblings = Siblings::start(2);
    assert!(matches!(
        refused(|| PermanentDrop::to_group(33).user(1234).apply()),
        DropError::Multithreaded { threads: 3 }
    ));
}

fn no_new_privs_is_set() {
    start();
    let report = PermanentDrop::to_group(33).no_new_privs().apply().unwrap();
    assert!(report.no_new_privs);
    assert!(kernel::all_threads()[0].privileges.no_new_privs);
}

fn no_new_privs_that_was_set_before_is_reported() {
    start();
    assert!(!PermanentDrop::to_group(33).apply().unwrap().no_new_privs);
    kernel::set_no_new_privs();
    assert!(PermanentDrop::to_group(33).apply().unwrap().no_new_privs);
}

fn the_death_signal_survives() {
    start();
    kernel::set_death_signal(libc::SIGRTMIN() + 3);
    PermanentDrop::to_group(33).user(1234).apply().unwrap();
    assert_eq!(kernel::death_signal(), libc::SIGRTMIN() + 3);
}

fn the_report_is_one_line_for_a_log() {
    start();
    let report = PermanentDrop::to_group(33)
        .user(1234)
        .supplementary([1004, 1005])
        .no_new_privs()
        .apply()
        .unwrap();
    assert_eq!(
        report.to_string(),
        "permanently group 33, user 1234; supplementary groups: 1004 1005; threads verified: 1; attempts to regain refused: 33; capabilities: none; no_new_privs"
    );
}

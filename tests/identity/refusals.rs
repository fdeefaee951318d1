//! Promise 2 and bad input: what is refused, for which reason, in which words; and that nothing has changed.

use std::error::Error as StdError;
use std::io::{self, ErrorKind};

use crate::cases;
use crate::common::Case;
use crate::common::calls;
use crate::common::guard::SCOPES;
use crate::common::kernel::{self, Namespace};
use crate::common::sandbox;
use privilege_guard::{
    Error, Gid, GroupChange, GroupGuard, GroupIds, IrreversibleReason, LookupError,
    PermissionDeniedReason,
};

pub const CASES: &[Case] = cases![
    Nothing: leave_alone_is_no_group,
    Nothing: texts_that_are_no_group_ids,
    Nothing: a_name_that_no_group_has,
    Nothing: more_groups_than_linux_allows,
    NoSetgid: an_ordinary_user_may_not,
    Setgid: without_cap_setgid,
    Setgid: cap_setgid_held_but_not_effective,
    Setgid: a_filter_refuses_the_ids,
    Setgid: a_filter_refuses_the_groups,
    Setgid: a_filter_answers_another_errno,
    Setgid: an_id_that_would_be_lost,
    Setgid: an_odd_filesystem_id_that_would_be_lost,
    Root: an_id_without_mapping,
    Root: a_group_without_mapping,
    Root: setgroups_denied_in_the_namespace,
    NoSetgid + user_namespace: setgroups_denied_in_the_namespace_of_an_ordinary_user,
    Root: an_unmapped_id_to_be_put_back,
    Root: an_unmapped_group_to_be_put_back,
    Root: an_unmapped_id_that_is_not_touched_is_no_reason,
    Root: group_65534_is_a_group_where_all_are_mapped,
    Root: an_unreadable_gid_map,
    Nothing: errors_pass_through_the_question_mark,
    Root: a_mapped_65534_taken_on_without_cap_setgid_is_irreversible,
    Root: no_groups_asked_for_where_there_are_none_and_setgroups_is_denied,
];

/// The error in both scopes (which must be the same in words), where nothing has changed.
fn refused(change: GroupChange) -> Error {
    let before = kernel::state();
    let [process, thread] = SCOPES.map(|scope| {
        let error = scope.assume(change.clone()).expect_err("a refusal");
        assert_eq!(kernel::state(), before, "{error}");
        error
    });
    assert_eq!(process.to_string(), thread.to_string());
    process
}

/// Asserts that the message says all this, and what kind of `io::Error` it becomes.
#[track_caller]
fn says<E>(error: E, kind: ErrorKind, words: &[&str])
where
    E: StdError + Send + Sync + 'static,
    io::Error: From<E>,
{
    let message = error.to_string();
    for word in words {
        assert!(message.contains(word), "{word:?} is not in {message:?}");
    }
    let error = io::Error::from(error);
    assert_eq!(error.kind(), kind, "{message}");
    assert_eq!(error.to_string(), message);
    assert!(
        error.get_ref().is_some_and(|inner| inner.is::<E>()),
        "{message}"
    );
}

#[track_caller]
fn says_denied(change: GroupChange, expected: PermissionDeniedReason, words: &[&str]) {
    let ids = kernel::ids();
    let error = refused(change.clone());
    match &error {
        Error::NotPermitted {
            requested,
            ids: told,
            reason,
        } => {
            assert_eq!((requested, *reason), (&change.to_string(), expected));
            let [real, effective, saved, filesystem] = ids.map(Gid::from);
            assert_eq!(
                *told,
                GroupIds {
                    real,
                    effective,
                    saved,
                    filesystem
                }
                .to_string()
            );
        }
        other => panic!("{other:?}"),
    }
    let ids = format!(
        "real {}, effective {}, saved {}, filesystem {}",
        ids[0], ids[1], ids[2], ids[3]
    );
    says(
        error,
        ErrorKind::PermissionDenied,
        &[words, &[&change.to_string(), &ids]].concat(),
    );
}

#[track_caller]
fn says_irreversible(change: GroupChange, expected: IrreversibleReason, words: &[&str]) {
    let error = refused(change.clone());
    match &error {
        Error::Irreversible {
            requested, reason, ..
        } => assert_eq!((requested, *reason), (&change.to_string(), expected)),
        other => panic!("{other:?}"),
    }
    says(
        error,
        ErrorKind::PermissionDenied,
        &[words, &[&change.to_string()]].concat(),
    );
}

fn leave_alone_is_no_group() {
    kernel::set_death_signal(libc::SIGTERM);
    for change in [
        GroupChange::both(u32::MAX),
        GroupChange::new().real(u32::MAX),
        GroupChange::new().effective(u32::MAX),
        GroupChange::both(kernel::ids()[0]).effective(u32::MAX),
        GroupChange::new().supplementary([u32::MAX]),
        GroupChange::both(kernel::ids()[0]).supplementary([1, 2, u32::MAX]),
    ] {
        let error = refused(change);
        assert!(matches!(error, Error::InvalidGid), "{error:?}");
        says(
            error,
            ErrorKind::InvalidInput,
            &["4294967295", "(gid_t)-1", "leave the id out"],
        );
    }
    let before = kernel::state();
    assert!(matches!(
        GroupGuard::assume(u32::MAX),
        Err(Error::InvalidGid)
    ));
    assert!(matches!(
        GroupGuard::assume_effective(u32::MAX),
        Err(Error::InvalidGid)
    ));
    assert!(matches!(
        GroupGuard::assume_real(u32::MAX),
        Err(Error::InvalidGid)
    ));
    assert!(matches!(
        GroupGuard::assume_on_thread(u32::MAX),
        Err(Error::InvalidGid)
    ));
    assert_eq!(kernel::state(), before);
}

fn texts_that_are_no_group_ids() {
    for text in [
        "",
        "-1",
        "+1004",
        "4294967295",
        "4294967296",
        "18446744073709551616",
        "1004 ",
        "0x3ec",
        "1e3",
        "root",
        "\u{661}",
    ] {
        let error = text.parse::<Gid>().unwrap_err();
        assert!(
            matches!(&error, LookupError::ParseGid { text: told } if told == text),
            "{error:?}"
        );
        says(
            error,
            ErrorKind::InvalidInput,
            &[&format!("{text:?}"), "decimal digits", "from_group_name"],
        );
    }
    assert_eq!(
        "4294967294".parse::<Gid>().unwrap(),
        Gid::from_raw(4_294_967_294)
    );
}

fn a_name_that_no_group_has() {
    // A number is not a name, and nor is what a C string cannot hold.
    for name in ["no-such-group", "1004", "", "-1"] {
        let error = Gid::from_group_name(name).unwrap_err();
        assert!(
            matches!(&error, LookupError::UnknownGroup { name: told } if told == name),
            "{error:?}"
        );
        says(
            error,
            ErrorKind::NotFound,
            &[&format!("{name:?}"), "getent group"],
        );
    }
    assert!(Gid::from_group_name("ro\0ot").is_err());
    assert_eq!(Gid::from_group_name("root").unwrap().as_raw(), 0);
}

fn more_groups_than_linux_allows() {
    for change in [GroupChange::new(), GroupChange::both(kernel::ids()[0])] {
        let error = refused(change.supplementary(0..65_537));
        assert!(matches!(error, Error::TooManyGroups), "{error:?}");
        says(
            error,
            ErrorKind::InvalidInput,
            &["more than 65536 supplementary groups"],
        );
    }
}

/// What only CAP_SETGID allows, from ids that are all the same.
fn privileged_changes() -> [GroupChange; 6] {
    [
        GroupChange::both(4711),
        GroupChange::new().effective(4711),
        GroupChange::new().real(4711),
        GroupChange::new().real(kernel::ids()[0]).effective(4711),
        GroupChange::new().supplementary([4711]),
        GroupChange::both(kernel::ids()[0]).supplementary([4711]),
    ]
}

fn an_ordinary_user_may_not() {
    kernel::set_death_signal(libc::SIGTERM);
    for change in privileged_changes() {
        says_denied(
            change,
            PermissionDeniedReason::MissingSetgid,
            &["CAP_SETGID", "setcap cap_setgid+ep", "unshare --user"],
        );
    }
    println!(
        "= {} changes refused to an ordinary user, nothing changed",
        privileged_changes().len() * SCOPES.len()
    );
}

fn without_cap_setgid() {
    kernel::start_from([1001; 4], &[1010]);
    kernel::give_up_capabilities(kernel::CAP_SETGID);
    kernel::set_death_signal(libc::SIGTERM);
    for change in privileged_changes() {
        says_denied(
            change,
            PermissionDeniedReason::MissingSetgid,
            &["CAP_SETGID", "setcap cap_setgid+ep", "unshare --user"],
        );
    }
    for scope in SCOPES {
        let own = GroupChange::both(1001).supplementary([1010]);
        scope
            .assume(own)
            .expect("the groups that are there already need no privilege")
            .restore()
            .unwrap();
    }
}

fn cap_setgid_held_but_not_effective() {
    kernel::start_from([1001; 4], &[1010]);
    kernel::lower_capabilities(kernel::CAP_SETGID);
    kernel::set_death_signal(libc::SIGTERM);
    for change in privileged_changes() {
        says_denied(
            change,
            PermissionDeniedReason::SetgidNotEffective,
            &["CAP_SETGID", "permitted set but not in the effective one"],
        );
    }
    kernel::raise_capabilities(kernel::CAP_SETGID);
    GroupGuard::assume(4711).unwrap().restore().unwrap();
}

fn a_filter_refuses_the_ids() {
    kernel::start_from([1001; 4], &[1010]);
    kernel::set_death_signal(libc::SIGTERM);
    sandbox::refuse(calls::SYS_setresgid, &[]);
    for change in [
        GroupChange::both(4711),
        GroupChange::new().effective(4711),
        GroupChange::both(4711).supplementary([4711]),
    ] {
        says_denied(
            change,
            PermissionDeniedReason::FilteredOrLsm,
            &["although the required capability is effective", "seccomp"],
        );
    }
}

fn a_filter_refuses_the_groups() {
    kernel::start_from([1001; 4], &[1010]);
    kernel::set_death_signal(libc::SIGTERM);
    sandbox::refuse(calls::SYS_setgroups, &[]);
    for change in [
        GroupChange::new().no_supplementary(),
        GroupChange::both(4711).supplementary([4711]),
    ] {
        says_denied(
            change,
            PermissionDeniedReason::FilteredOrLsm,
            &["although the required capability is effective", "seccomp"],
        );
    }
}

fn a_filter_answers_another_errno() {
    kernel::start_from([1001; 4], &[1010]);
    kernel::set_death_signal(libc::SIGTERM);
    sandbox::answer(
        calls::SYS_setresgid,
        &[],
        sandbox::Answer::Errno(libc::ENOSYS),
    );
    sandbox::answer(
        calls::SYS_setgroups,
        &[],
        sandbox::Answer::Errno(libc::ENOMEM),
    );
    for (change, call_made, errno, kind) in [
        (
            GroupChange::both(4711),
            "setresgid",
            libc::ENOSYS,
            ErrorKind::Unsupported,
        ),
        (
            GroupChange::both(4711).no_supplementary(),
            "setgroups",
            libc::ENOMEM,
            ErrorKind::OutOfMemory,
        ),
    ] {
        let error = refused(change.clone());
        match &error {
            Error::SyscallFailed {
                call,
                requested,
                os_error,
                ..
            } => {
                assert_eq!(
                    (*call, requested, os_error.raw_os_error()),
                    (call_made, &change.to_string(), Some(errno))
                );
            }
            other => panic!("{other:?}"),
        }
        // Its text is in the message already.
        assert!(error.source().is_none());
        assert_eq!(error.raw_os_error(), Some(errno));
        says(
            error,
            kind,
            &[
                call_made,
                &change.to_string(),
                "real 1001, effective 1001, saved 1001, filesystem 1001",
            ],
        );
    }
}

/// Three ids that differ: naming one of them for another place loses one, and no fourth place keeps it.
fn an_id_that_would_be_lost() {
    kernel::start_from([1001, 1002, 1003, 1002], &[1010]);
    kernel::give_up_capabilities(kernel::CAP_SETGID);
    kernel::set_death_signal(libc::SIGTERM);
    for change in [
        GroupChange::both(1001),
        GroupChange::both(1003),
        GroupChange::both(1002),
    ] {
        let ids = "real 1001, effective 1002, saved 1003, filesystem 1002";
        says_irreversible(
            change,
            IrreversibleReason::SetgidRequired,
            &[
                ids,
                "without CAP_SETGID",
                "assume_effective",
                "PermanentDrop",
            ],
        );
    }
    for scope in SCOPES {
        let swapped = GroupChange::new().real(1002).effective(1001);
        scope
            .assume(swapped)
            .expect("all three stay in reach")
            .restore()
            .unwrap();
    }
}

fn an_odd_filesystem_id_that_would_be_lost() {
    kernel::start_from([1001, 1001, 1001, 1009], &[]);
    kernel::give_up_capabilities(kernel::CAP_SETGID);
    for change in [
        GroupChange::both(1001),
        GroupChange::new().effective(1001),
        GroupChange::new().real(1001),
    ] {
        says_irreversible(
            change,
            IrreversibleReason::SetgidRequired,
            &["filesystem 1009"],
        );
    }
}

/// Groups 0 to 9 and 100, as 0 to 9 and 100.
const PART: Namespace = Namespace {
    ids: [1, 2, 3, 2],
    groups: &[4, 5],
    uid_map: kernel::ALL_IDS,
    gid_map: "0 0 10\n100 100 1\n",
    denies_setgroups: false,
};

fn an_id_without_mapping() {
    kernel::passes_in(PART, || {
        kernel::set_death_signal(libc::SIGTERM);
        for change in [
            GroupChange::both(1004),
            GroupChange::new().effective(10),
            GroupChange::new().real(101),
            GroupChange::new().real(6).effective(65534),
            GroupChange::both(1004).supplementary([6]),
        ] {
            let error = refused(change.clone());
            assert!(
                matches!(&error, Error::UnmappedGid { requested, .. } if *requested == change.to_string()),
                "{error:?}"
            );
            let ids = "real 1, effective 2, saved 3, filesystem 2";
            says(
                error,
                ErrorKind::InvalidInput,
                &[
                    &change.to_string(),
                    ids,
                    "not mapped in this user namespace",
                    "/proc/self/gid_map",
                ],
            );
        }
        GroupGuard::assume(100).unwrap().restore().unwrap();
    });
}

fn a_group_without_mapping() {
    kernel::passes_in(PART, || {
        for change in [
            GroupChange::new().supplementary([1004]),
            GroupChange::both(6).supplementary([7, 65534]),
        ] {
            let error = refused(change.clone());
            assert!(
                matches!(&error, Error::UnmappedGid { requested, .. } if *requested == change.to_string()),
                "{error:?}"
            );
            says(
                error,
                ErrorKind::InvalidInput,
                &[&change.to_string(), "not mapped"],
            );
        }
        GroupChange::both(6)
            .supplementary([7, 100])
            .assume()
            .unwrap()
            .restore()
            .unwrap();
        assert_eq!(kernel::identity().groups, [4, 5]);
    });
}

fn setgroups_denied_in_the_namespace() {
    kernel::passes_in(
        Namespace {
            denies_setgroups: true,
            ..PART
        },
        || {
            for change in [
                GroupChange::new().no_supplementary(),
                GroupChange::both(6).supplementary([7]),
            ] {
                says_denied(
                    change,
                    PermissionDeniedReason::SetgroupsDenied,
                    &["setgroups is denied in this user namespace", "--map-auto"],
                );
            }
            GroupGuard::assume(6).unwrap().restore().unwrap();
        },
    );
}

fn setgroups_denied_in_the_namespace_of_an_ordinary_user() {
    let ran = kernel::passes_in_own_namespace(|| {
        // One more than there are: the same list would not need the call.
        let mut groups = kernel::identity().groups;
        groups.push(0);
        let change = GroupChange::both(0).supplementary(groups.clone());
        if groups.contains(&65534) {
            says_irreversible(change, IrreversibleReason::Unmapped, &["65534"]);
        } else {
            says_denied(
                change,
                PermissionDeniedReason::SetgroupsDenied,
                &["setgroups is denied in this user namespace"],
            );
        }
        let error = refused(GroupChange::both(1004));
        assert!(matches!(error, Error::UnmappedGid { .. }), "{error:?}");
    });
    println!(
        "= {}",
        if ran {
            "refused in a user namespace of its own"
        } else {
            "no user namespace can be made here"
        }
    );
}

fn an_unmapped_id_to_be_put_back() {
    let words = ["65534", "might have no mapping", "/proc/self/gid_map"];
    for (ids, changes) in [
        (
            [1000, 2, 2, 2],
            [GroupChange::both(3), GroupChange::new().real(3)],
        ),
        (
            [2, 1000, 2, 1000],
            [GroupChange::both(3), GroupChange::new().effective(3)],
        ),
        (
            [2, 2, 2, 1000],
            [GroupChange::new().real(3), GroupChange::new().effective(2)],
        ),
        (
            [1000; 4],
            [GroupChange::both(3), GroupChange::new().effective(3)],
        ),
    ] {
        kernel::passes_in(Namespace { ids, ..PART }, || {
            kernel::set_death_signal(libc::SIGTERM);
            for change in changes {
                says_irreversible(change, IrreversibleReason::Unmapped, &words);
            }
        });
    }
    // Also where the number is mapped: what is unmapped shows as just that.
    let all_but_one = Namespace {
        ids: [65535, 2, 2, 2],
        gid_map: "0 0 65535\n65536 65536 4294901759\n",
        ..PART
    };
    kernel::passes_in(all_but_one, || {
        assert_eq!(kernel::ids()[0], 65534);
        says_irreversible(GroupChange::both(3), IrreversibleReason::Unmapped, &words);
    });
}

fn an_unmapped_group_to_be_put_back() {
    kernel::passes_in(
        Namespace {
            groups: &[4, 1000],
            ..PART
        },
        || {
            for change in [
                GroupChange::new().no_supplementary(),
                GroupChange::both(6).supplementary([7]),
            ] {
                says_irreversible(
                    change,
                    IrreversibleReason::Unmapped,
                    &["65534", "might have no mapping"],
                );
            }
            GroupGuard::assume(6)
                .expect("groups that stay are no reason")
                .restore()
                .unwrap();
            assert_eq!(kernel::identity().groups, [4, 65534]);
        },
    );
}

fn an_unmapped_id_that_is_not_touched_is_no_reason() {
    for (ids, change, inside) in [
        (
            [1000, 2, 2, 2],
            GroupChange::new().effective(3),
            [65534, 3, 2, 3],
        ),
        ([1, 2, 1000, 2], GroupChange::both(3), [3, 3, 65534, 3]),
        (
            [1, 2, 1000, 2],
            GroupChange::new().real(3),
            [3, 2, 65534, 2],
        ),
        (
            [1000, 2, 1000, 2],
            GroupChange::new().effective(3),
            [65534, 3, 65534, 3],
        ),
    ] {
        kernel::passes_in(Namespace { ids, ..PART }, || {
            let before = kernel::identity();
            for scope in SCOPES {
                let guard = scope.assume(change.clone()).unwrap();
                assert_eq!(kernel::ids(), inside, "{change}");
                guard.restore().unwrap();
                assert_eq!(kernel::identity(), before);
            }
        });
    }
}

fn group_65534_is_a_group_where_all_are_mapped() {
    fn is_served() {
        kernel::start_from([65534; 4], &[65534]);
        let before = kernel::identity();
        for scope in SCOPES {
            for change in [
                GroupChange::both(3),
                GroupChange::new().effective(3).supplementary([7]),
                GroupChange::new().real(3),
            ] {
                let guard = scope.assume(change).unwrap();
                assert_ne!(kernel::identity(), before);
                guard.restore().unwrap();
                assert_eq!(kernel::identity(), before);
            }
        }
        kernel::start_from([3; 4], &[]);
        let guard = GroupGuard::assume(65534).unwrap();
        assert_eq!(kernel::group_of_new_file(), 65534);
        guard.restore().unwrap();
        assert_eq!(kernel::ids(), [3; 4]);
    }
    kernel::passes_in_child(is_served);
    for whole in ["0 0 4294967295\n", "0 0 65536\n65536 65536 4294901759\n"] {
        kernel::passes_in(
            Namespace {
                gid_map: whole,
                ..PART
            },
            is_served,
        );
    }
}

/// Only a map that was read and is partial hides ids. Without `/proc` a process guard is refused.
fn an_unreadable_gid_map() {
    kernel::passes_in_child(|| {
        kernel::start_from([65534, 3, 3, 3], &[]);
        kernel::hide("/proc");
        assert!(std::fs::read_to_string("/proc/self/gid_map").is_err());
        let error = GroupGuard::assume(4).unwrap_err();
        assert!(
            matches!(error, Error::ThreadsUnreadable { .. }),
            "{error:?}"
        );
        for _ in 0..2 {
            let guard = GroupGuard::assume_on_thread(4).unwrap();
            assert_eq!(kernel::ids_by_calls(), [4, 4, 3, 4]);
            guard.restore().unwrap();
            assert_eq!(kernel::ids_by_calls(), [65534, 3, 3, 3]);

            let guard = GroupChange::new().effective(4).assume_on_thread().unwrap();
            assert_eq!(kernel::ids_by_calls(), [65534, 4, 3, 4]);
            guard.restore().unwrap();
            assert_eq!(kernel::ids_by_calls(), [65534, 3, 3, 3]);
        }
    });
}

fn errors_pass_through_the_question_mark() {
    fn into_io() -> io::Result<()> {
        drop(GroupGuard::assume(u32::MAX)?);
        Ok(())
    }
    fn into_box() -> Result<(), Box<dyn StdError + Send + Sync>> {
        drop(GroupGuard::assume("-1".parse::<Gid>()?)?);
        Ok(())
    }
    assert_eq!(into_io().unwrap_err().kind(), ErrorKind::InvalidInput);
    let error = into_box().unwrap_err();
    assert!(
        matches!(error.downcast_ref(), Some(LookupError::ParseGid { text }) if text == "-1"),
        "{error:?}"
    );
}

/// The map has 65534, as that of most containers has, but is not whole.
fn a_mapped_65534_taken_on_without_cap_setgid_is_irreversible() {
    let container = Namespace {
        ids: [1000, 1000, 65534, 1000],
        groups: &[],
        gid_map: "0 0 65536\n",
        ..PART
    };
    kernel::passes_in(container, || {
        kernel::give_up_capabilities(kernel::CAP_SETGID);
        let before = kernel::identity();
        for scope in SCOPES {
            let error = scope
                .assume(GroupChange::both(65534))
                .map(|guard| guard.restore())
                .unwrap_err();
            assert!(matches!(error, Error::Irreversible { .. }), "{error:?}");
            assert_eq!(kernel::identity(), before);
            // Here nothing is lost.
            scope
                .assume(GroupChange::new().real(65534))
                .unwrap()
                .restore()
                .unwrap();
            assert_eq!(kernel::identity(), before);
        }
    });
}

/// The change asks for what is there already; "whatever can be undone is served".
fn no_groups_asked_for_where_there_are_none_and_setgroups_is_denied() {
    let denied = Namespace {
        groups: &[],
        denies_setgroups: true,
        ..PART
    };
    kernel::passes_in(denied, || {
        for scope in SCOPES {
            scope
                .assume(GroupChange::both(4).no_supplementary())
                .unwrap()
                .restore()
                .unwrap();
        }
    });
}

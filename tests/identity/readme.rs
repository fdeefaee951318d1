//! README.md: the table that compares hand-written code, the table of calls, the numbers and the commands.
//!
//! docs/traceability.md maps the rows to these cases.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use crate::cases;
use crate::common::Case;
use crate::common::calls;
use crate::common::kernel::{self, CAP_SETGID, Ids};
use crate::common::sandbox::{self, Answer};
use privilege_guard::{
    Error, Gid, GroupChange, GroupGuard, GroupIds, Identity, IdentityGuard, PermanentDrop,
    UserGuard,
};

pub const CASES: &[Case] = cases![
    Setgid: where_the_work_fails_or_panics,
    Setgid: the_saved_id,
    Setgid: the_filesystem_id,
    Setgid: the_parent_death_signal,
    Setgid: a_set_group_id_program,
    Nothing: the_group_that_means_leave_alone,
    Setgid: a_filter_that_only_says_done,
    Setgid: a_way_back_that_is_refused,
    Setgid: what_cannot_be_undone,
    Setgid: a_number_that_has_no_name,
    Nothing: the_calls_in_the_table_compile,
    Nothing: the_numbers_and_the_commands_are_so,
];

const README: &str = include_str!("../../README.md");

fn by_hand(work: impl FnOnce() -> Result<(), i32>) -> Result<(), i32> {
    let [real, effective, _] = kernel::getresgid();
    kernel::raw_setregid(Some(1004), Some(1004))?;
    work()?;
    kernel::raw_setregid(Some(real), Some(effective))
}

/// The ids that are left by hand, and that are left by a guard; each in a process of its own.
#[track_caller]
fn left(
    start: impl Fn(),
    work: impl Fn() -> Result<(), i32>,
    by_hand_leaves: Ids,
    guard_leaves: Ids,
) {
    kernel::passes_in_child(|| {
        start();
        _ = catch_unwind(AssertUnwindSafe(|| by_hand(&work)));
        assert_eq!(kernel::ids(), by_hand_leaves, "by hand");
    });
    kernel::passes_in_child(|| {
        start();
        _ = catch_unwind(AssertUnwindSafe(|| {
            GroupGuard::assume(1004).unwrap().run(&work).unwrap()
        }));
        assert_eq!(kernel::ids(), guard_leaves, "with a guard");
    });
}

fn is_group_1004() -> Result<(), i32> {
    assert_eq!(kernel::ids()[..2], [1004, 1004]);
    Ok(())
}

/// `work` fails or panics
fn where_the_work_fails_or_panics() {
    let start = || kernel::start_from([3; 4], &[]);
    let fails = || is_group_1004().and(Err(libc::EIO));
    left(start, fails, [1004; 4], [3; 4]);
    let panics = || {
        is_group_1004()?;
        panic!("on purpose");
    };
    left(start, panics, [1004; 4], [3; 4]);
}

/// the saved set-group-ID was another
fn the_saved_id() {
    left(
        || kernel::start_from([3, 3, 5, 3], &[]),
        is_group_1004,
        [3; 4],
        [3, 3, 5, 3],
    );
}

/// the filesystem group ID was another
fn the_filesystem_id() {
    left(
        || kernel::start_from([3, 3, 3, 7], &[]),
        is_group_1004,
        [3; 4],
        [3, 3, 3, 7],
    );
}

/// a parent-death signal was set (`PR_SET_PDEATHSIG`)
fn the_parent_death_signal() {
    kernel::set_death_signal(libc::SIGUSR1);
    GroupGuard::assume(1004)
        .unwrap()
        .run(is_group_1004)
        .unwrap();
    assert_eq!(kernel::death_signal(), libc::SIGUSR1);
    by_hand(is_group_1004).unwrap();
    assert_eq!(kernel::death_signal(), 0);
}

/// a set-group-ID program of group 1004, without privilege
fn a_set_group_id_program() {
    let start = || {
        kernel::start_from([3, 1004, 1004, 1004], &[]);
        kernel::give_up_capabilities(CAP_SETGID);
    };
    left(start, is_group_1004, [1004; 4], [3, 1004, 1004, 1004]);
    start();
    assert_eq!(by_hand(is_group_1004), Err(libc::EPERM));
}

/// the group is computed, and is `(gid_t)-1`
fn the_group_that_means_leave_alone() {
    let before = kernel::identity();
    let [real, effective, _] = kernel::getresgid();
    kernel::raw_setregid(Some(u32::MAX), Some(u32::MAX)).unwrap();
    assert_eq!(kernel::getresgid()[..2], [real, effective]);
    assert!(matches!(
        GroupGuard::assume(u32::MAX),
        Err(Error::InvalidGid)
    ));
    assert_eq!(kernel::identity(), before);
}

/// a seccomp filter answers success and does nothing
fn a_filter_that_only_says_done() {
    for call in [calls::SYS_setregid, calls::SYS_setresgid] {
        sandbox::answer(call, &[], Answer::SuccessWithoutDoing);
    }
    let before = kernel::ids();
    let is_as_before = || {
        assert_eq!(kernel::ids(), before);
        Ok(())
    };
    by_hand(is_as_before).unwrap();
    assert!(matches!(
        GroupGuard::assume(1004),
        Err(Error::SyscallFailed { .. })
    ));
}

/// the kernel refuses the way back
fn a_way_back_that_is_refused() {
    kernel::start_from([3; 4], &[]);
    for call in [calls::SYS_setregid, calls::SYS_setresgid] {
        sandbox::refuse(call, &[(1, 3)]);
    }
    kernel::passes_in_child(|| {
        assert_eq!(by_hand(is_group_1004), Err(libc::EPERM));
        is_group_1004().unwrap();
    });
    let line = kernel::aborts(|| drop(GroupGuard::assume(1004).unwrap()));
    assert!(
        line.contains("cannot restore the group ids (real 3, effective 3"),
        "{line}"
    );
    kernel::aborts(|| _ = GroupGuard::assume(1004).unwrap().run(is_group_1004));
}

fn what_cannot_be_undone() {
    kernel::start_from([3, 4, 5, 4], &[]);
    kernel::give_up_capabilities(CAP_SETGID);
    assert!(matches!(
        GroupGuard::assume(4),
        Err(Error::Irreversible { .. })
    ));
    assert_eq!(kernel::ids(), [3, 4, 5, 4]);
    kernel::raw_setregid(Some(4), Some(4)).expect("os.setregid makes it");
    assert_eq!(kernel::raw_setregid(Some(3), Some(4)), Err(libc::EPERM));
}

fn a_number_that_has_no_name() {
    let named = |gid: &u32| {
        nix::unistd::Group::from_gid((*gid).into())
            .expect("the database")
            .is_some()
    };
    let nameless = (9000..10_000)
        .find(|gid| !named(gid))
        .expect("a number without a name");
    let before = kernel::ids();
    GroupGuard::assume(nameless)
        .unwrap()
        .run(|| assert_eq!(kernel::ids()[1], nameless));
    assert_eq!(kernel::ids(), before);
}

/// Every call of the table, as it stands there.
#[allow(unused, reason = "it is compiled, and never run")]
fn which_call(
    group: Gid,
    groups: Vec<Gid>,
    [one, other, user]: [u32; 3],
    longest: Duration,
    client: Identity,
    work: fn(),
) -> Result<(), Box<dyn std::error::Error>> {
    GroupGuard::assume_on_thread(group)?.run(work);
    let _guard = GroupGuard::assume_on_thread(group)?;
    let _guard = GroupGuard::assume(group)?;
    GroupGuard::assume_effective(group)?;
    GroupChange::new().real(one).effective(other).assume()?;
    GroupChange::both(group)
        .supplementary(groups)
        .assume_on_thread()?;
    UserGuard::assume_effective_on_thread(user)?;
    IdentityGuard::assume_effective_on_thread(&client)?.run(work);
    IdentityGuard::assume_real_and_effective_on_thread(&client)?;
    let mut guard = GroupGuard::assume_on_thread(group)?;
    guard.switch_to(group)?;
    let found = (
        Gid::from_group_name("www-data")?,
        Identity::of_account("alice")?,
    );
    GroupChange::both(group).wait(longest).assume()?;
    privilege_guard::threads()?;
    PermanentDrop::to_account("www-data")?.apply()?;
    GroupGuard::assume(GroupIds::current()?.real)?.drop_permanently()?;
    Ok(())
}

/// The rows that have an id `C` and a number are those of the table of calls.
fn the_calls_in_the_table_compile() {
    let without_spaces = |text: &str| text.split_whitespace().collect::<String>();
    let this = without_spaces(include_str!("readme.rs"));
    let rows = README
        .lines()
        .filter(|line| line.starts_with("| ") && line.contains("<!-- C"));
    let cells = rows.filter_map(|row| {
        row.trim_end_matches(" |")
            .rsplit(" | ")
            .next()?
            .strip_prefix('`')
    });
    let calls: Vec<&str> = cells
        .flat_map(|cell| cell.trim_end_matches('`').split("`, `"))
        .collect();
    assert!((12..=16).contains(&calls.len()), "{calls:?}");
    for call in calls {
        assert!(
            this.contains(&without_spaces(call)),
            "{call} is in README.md, and not in tests/readme.rs"
        );
    }
}

fn the_numbers_and_the_commands_are_so() {
    for rest in README.split("Rust 1.").skip(1) {
        let minor: String = rest.chars().take_while(char::is_ascii_digit).collect();
        assert_eq!(
            format!("1.{minor}"),
            env!("CARGO_PKG_RUST_VERSION"),
            "the Rust version in README.md"
        );
    }
    assert!(include_str!("../../src/lib.rs").contains("\n#![forbid(unsafe_code)]\n"));
    // .ci/run runs what stands there.
    assert!(README.contains("\n```sh\ncargo run --example temporary_change\ncargo test\n```\n"));
    assert_eq!(README.matches("```sh").count(), 1);
}

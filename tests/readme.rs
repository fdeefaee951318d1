//! What README.md says, beside hand-written code and of itself.

mod common;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::time::Duration;

use common::kernel::{self, CAP_SETGID, Ids};
use common::sandbox::{self, Answer};
use privilege_guard::{Error, Gid, GroupChange, GroupGuard, GroupIds, PermanentDrop};

fn main() -> std::process::ExitCode {
    common::main(cases![
        Setgid: where_the_work_panics,
        Setgid: the_saved_and_the_filesystem_id,
        Setgid: the_parent_death_signal,
        Setgid: a_set_group_id_program,
        Nothing: the_group_that_means_leave_alone,
        Setgid: a_filter_that_only_says_done,
        Setgid: a_way_back_that_is_refused,
        Setgid: what_cannot_be_undone,
        Nothing: the_calls_in_the_table_compile,
        Nothing: the_numbers_and_the_commands_are_so,
        Nothing: the_tests_that_the_pages_name_are_there,
    ])
}

const README: &str = include_str!("../README.md");

fn by_hand(work: impl FnOnce()) -> Result<(), i32> {
    let [real, effective, _] = kernel::getresgid();
    kernel::raw_setregid(Some(1004), Some(1004))?;
    work();
    kernel::raw_setregid(Some(real), Some(effective))
}

/// The ids that are left by hand, and that are left by a guard; each in a process of its own.
#[track_caller]
fn left(start: impl Fn(), work: impl Fn(), by_hand_leaves: Ids, guard_leaves: Ids) {
    kernel::passes_in_child(|| {
        start();
        _ = catch_unwind(AssertUnwindSafe(|| by_hand(&work)));
        assert_eq!(kernel::ids(), by_hand_leaves, "by hand");
    });
    kernel::passes_in_child(|| {
        start();
        _ = catch_unwind(AssertUnwindSafe(|| GroupGuard::assume(1004).unwrap().run(&work).unwrap()));
        assert_eq!(kernel::ids(), guard_leaves, "with a guard");
    });
}

fn is_group_1004() {
    assert_eq!(kernel::ids()[..2], [1004, 1004]);
}

fn where_the_work_panics() {
    let start = || kernel::start_from([3; 4], &[]);
    let work = || {
        is_group_1004();
        panic!("on purpose");
    };
    left(start, work, [1004; 4], [3; 4]);
}

fn the_saved_and_the_filesystem_id() {
    left(|| kernel::start_from([3, 3, 5, 3], &[]), is_group_1004, [3; 4], [3, 3, 5, 3]);
    left(|| kernel::start_from([3, 3, 3, 7], &[]), is_group_1004, [3; 4], [3, 3, 3, 7]);
}

fn the_parent_death_signal() {
    kernel::set_death_signal(libc::SIGUSR1);
    GroupGuard::assume(1004).unwrap().run(is_group_1004).unwrap();
    assert_eq!(kernel::death_signal(), libc::SIGUSR1);
    by_hand(is_group_1004).unwrap();
    assert_eq!(kernel::death_signal(), 0);
}

fn a_set_group_id_program() {
    let start = || {
        kernel::start_from([3, 1004, 1004, 1004], &[]);
        kernel::give_up_capabilities(CAP_SETGID);
    };
    left(start, is_group_1004, [1004; 4], [3, 1004, 1004, 1004]);
    start();
    assert_eq!(by_hand(is_group_1004), Err(libc::EPERM));
}

fn the_group_that_means_leave_alone() {
    let before = kernel::identity();
    assert_eq!(kernel::raw_setregid(Some(u32::MAX), Some(u32::MAX)), Ok(()));
    assert!(matches!(GroupGuard::assume(u32::MAX), Err(Error::InvalidGid)));
    assert_eq!(kernel::identity(), before);
}

fn a_filter_that_only_says_done() {
    for call in [libc::SYS_setregid, libc::SYS_setresgid] {
        sandbox::answer(call, &[], Answer::SuccessWithoutDoing);
    }
    let before = kernel::ids();
    by_hand(|| assert_eq!(kernel::ids(), before)).unwrap();
    assert!(matches!(GroupGuard::assume(1004), Err(Error::Call { .. })));
}

fn a_way_back_that_is_refused() {
    kernel::start_from([3; 4], &[]);
    for call in [libc::SYS_setregid, libc::SYS_setresgid] {
        sandbox::refuse(call, &[(1, 3)]);
    }
    kernel::passes_in_child(|| {
        assert_eq!(by_hand(is_group_1004), Err(libc::EPERM));
        is_group_1004();
    });
    let line = kernel::aborts(|| drop(GroupGuard::assume(1004).unwrap()));
    assert!(line.contains("cannot go back to real 3, effective 3"), "{line}");
    assert!(matches!(GroupGuard::assume(1004).unwrap().run(is_group_1004), Err(Error::NotRestored { .. })));
}

fn what_cannot_be_undone() {
    kernel::start_from([3, 4, 5, 4], &[]);
    kernel::give_up_capabilities(CAP_SETGID);
    assert!(matches!(GroupGuard::assume(4), Err(Error::Irreversible { .. })));
    assert_eq!(kernel::ids(), [3, 4, 5, 4]);
    kernel::raw_setregid(Some(4), Some(4)).expect("os.setregid makes it");
    assert_eq!(kernel::raw_setregid(Some(3), Some(4)), Err(libc::EPERM));
}

/// Every call of the table, as it stands there.
#[allow(unused, reason = "it is compiled, and never run")]
fn which_call(group: Gid, groups: Vec<Gid>, [one, other, user]: [u32; 3], longest: Duration, work: fn()) -> Result<(), Error> {
    GroupGuard::assume_on_thread(group)?.run(work)?;
    let _guard = GroupGuard::assume_on_thread(group)?;
    let _guard = GroupGuard::assume(group)?;
    GroupGuard::assume_effective(group)?;
    GroupChange::new().effective(group).assume_on_thread()?;
    GroupGuard::assume_real(group)?;
    GroupChange::new().real(one).effective(other).assume()?;
    GroupChange::both(group).no_supplementary().assume_on_thread()?;
    GroupChange::both(group).supplementary(groups).assume_on_thread()?;
    let mut guard = GroupGuard::assume_on_thread(group)?;
    guard.switch_to(group)?;
    guard.restore()?;
    GroupChange::both(group).wait(longest).assume()?;
    let found = (Gid::from_group_name("www-data")?, "1004".parse::<Gid>()?);
    privilege_guard::threads()?;
    PermanentDrop::to_account("www-data")?.apply()?;
    PermanentDrop::to_group(group).user(user).no_new_privs().apply()?;
    GroupGuard::assume(GroupIds::current()?.real)?.drop_permanently()?;
    Ok(())
}

fn the_calls_in_the_table_compile() {
    let this = include_str!("readme.rs");
    let (_, table) = README.split_once("## Which call do I need?").expect("the table");
    let (table, _) = table.split_once("\n## ").expect("its end");
    let calls: Vec<&str> = table.lines().filter_map(|row| row.trim_end_matches(" |").rsplit(" | ").next()?.strip_prefix('`')).collect();
    let calls: Vec<&str> = calls.iter().flat_map(|cell| cell.trim_end_matches('`').split("`, `")).collect();
    assert!(calls.len() >= 18, "{calls:?}");
    for call in calls {
        assert!(this.contains(call), "{call} is in README.md, and not in tests/readme.rs");
    }
}

fn the_numbers_and_the_commands_are_so() {
    assert!(README.contains(concat!("\n- Needs Rust ", env!("CARGO_PKG_RUST_VERSION"), ". `#![forbid(unsafe_code)]`.\n")));
    assert!(include_str!("../src/lib.rs").contains("\n#![forbid(unsafe_code)]\n"));
    // .ci/run runs what stands there.
    assert!(README.contains("\n```sh\ncargo run --example temporary_change\ncargo test\n```\n"));
    assert_eq!(README.matches("```sh").count(), 1);
}

fn the_tests_that_the_pages_name_are_there() {
    let file = |path: &str| std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path));
    let Ok(security) = file("docs/security.md") else { common::ignore("needs the folder that it was built from") };
    let in_backticks = |page: &str| page.split('`').skip(1).step_by(2).map(String::from).collect::<Vec<_>>();

    let is_word = |text: &str| text.chars().all(|letter| letter.is_ascii_lowercase() || letter.is_ascii_digit() || letter == '_');
    let named = in_backticks(&security);
    let named: Vec<_> =
        named.iter().filter_map(|name| name.split_once("::").filter(|(file, case)| is_word(file) && is_word(case))).collect();
    assert!(named.len() > 60, "{named:?}");
    for (test, case) in named {
        let text = file(&format!("tests/{test}.rs")).expect(test);
        assert!(text.contains(&format!(": {case},")) || text.contains(&format!("name: \"{case}\"")), "{test}::{case} is no case");
    }

    let listed = in_backticks(&file("docs/testing.md").unwrap());
    for entry in std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        assert!(!name.ends_with(".rs") || listed.contains(&format!("tests/{name}")), "{name} is not in docs/testing.md");
    }
}

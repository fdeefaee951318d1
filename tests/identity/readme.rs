//! What README.md says, beside hand-written code and of itself.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::time::Duration;

use crate::cases;
use crate::common::calls;
use crate::common::kernel::{self, CAP_SETGID, Ids};
use crate::common::sandbox::{self, Answer};
use crate::common::{self, Case};
use privilege_guard::{Error, Gid, GroupChange, GroupGuard, GroupIds, PermanentDrop};

pub const CASES: &[Case] = cases![
    Nothing: every_row_has_a_case,
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
    Nothing: the_tests_that_the_pages_name_are_there,
    Nothing: every_limit_names_a_test,
    Nothing: every_line_is_shown_by_a_test,
];

const README: &str = include_str!("../../README.md");

/// The text under this heading of README.md.
fn section(heading: &str) -> &'static str {
    let (_, rest) = README.split_once(&format!("\n## {heading}\n")).expect(heading);
    rest.split("\n## ").next().expect("a text")
}

fn every_row_has_a_case() {
    let rows = section("Beside hand-written code").lines().filter_map(|line| line.strip_prefix("| ")?.split(" | ").next());
    let rows: Vec<&str> = rows.filter(|&cell| cell != "where").collect();
    assert_eq!(rows.len(), 8);
    let this = include_str!("readme.rs");
    for row in rows {
        assert_eq!(this.matches(&format!("\n/// {row}\nfn ")).count(), 1, "{row}");
    }
}

fn by_hand(work: impl FnOnce() -> Result<(), i32>) -> Result<(), i32> {
    let [real, effective, _] = kernel::getresgid();
    kernel::raw_setregid(Some(1004), Some(1004))?;
    work()?;
    kernel::raw_setregid(Some(real), Some(effective))
}

/// The ids that are left by hand, and that are left by a guard; each in a process of its own.
#[track_caller]
fn left(start: impl Fn(), work: impl Fn() -> Result<(), i32>, by_hand_leaves: Ids, guard_leaves: Ids) {
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
    left(|| kernel::start_from([3, 3, 5, 3], &[]), is_group_1004, [3; 4], [3, 3, 5, 3]);
}

/// the filesystem group ID was another
fn the_filesystem_id() {
    left(|| kernel::start_from([3, 3, 3, 7], &[]), is_group_1004, [3; 4], [3, 3, 3, 7]);
}

/// a parent-death signal was set (`PR_SET_PDEATHSIG`)
fn the_parent_death_signal() {
    kernel::set_death_signal(libc::SIGUSR1);
    GroupGuard::assume(1004).unwrap().run(is_group_1004).unwrap().unwrap();
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
    assert!(matches!(GroupGuard::assume(u32::MAX), Err(Error::InvalidGid)));
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
    assert!(matches!(GroupGuard::assume(1004), Err(Error::Call { .. })));
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

fn a_number_that_has_no_name() {
    let named = |gid: &u32| nix::unistd::Group::from_gid((*gid).into()).expect("the database").is_some();
    let nameless = (9000..10_000).find(|gid| !named(gid)).expect("a number without a name");
    let before = kernel::ids();
    GroupGuard::assume(nameless).unwrap().run(|| assert_eq!(kernel::ids()[1], nameless)).unwrap();
    assert_eq!(kernel::ids(), before);
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
    let table = section("Which call do I need?");
    let calls: Vec<&str> = table.lines().filter_map(|row| row.trim_end_matches(" |").rsplit(" | ").next()?.strip_prefix('`')).collect();
    let calls: Vec<&str> = calls.iter().flat_map(|cell| cell.trim_end_matches('`').split("`, `")).collect();
    assert!(calls.len() >= 18, "{calls:?}");
    for call in calls {
        assert!(this.contains(call), "{call} is in README.md, and not in tests/readme.rs");
    }
}

fn the_numbers_and_the_commands_are_so() {
    assert!(README.contains(concat!("\n- Needs Rust ", env!("CARGO_PKG_RUST_VERSION"), ". `#![forbid(unsafe_code)]`.\n")));
    assert!(include_str!("../../src/lib.rs").contains("\n#![forbid(unsafe_code)]\n"));
    // .ci/run runs what stands there.
    assert!(README.contains("\n```sh\ncargo run --example temporary_change\ncargo test\n```\n"));
    assert_eq!(README.matches("```sh").count(), 1);
}

fn file(path: &str) -> Option<String> {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).ok()
}

fn security() -> String {
    file("docs/security.md").unwrap_or_else(|| common::ignore("needs the folder that it was built from"))
}

fn in_backticks(page: &str) -> impl Iterator<Item = &str> {
    page.split('`').skip(1).step_by(2)
}

/// The tests that a text names: file and case.
fn named_in(page: &str) -> Vec<(&str, &str)> {
    let is_word = |text: &str| text.chars().all(|letter| letter.is_ascii_lowercase() || letter.is_ascii_digit() || letter == '_');
    in_backticks(page).filter_map(|name| name.split_once("::").filter(|(file, case)| is_word(file) && is_word(case))).collect()
}

/// `compile` is a binary of its own, and its programs are named like cases.
fn is_there((module, case): (&str, &str)) {
    let name = format!("{module}::{case}");
    let is_case = crate::MODULES.iter().flat_map(|cases| cases.iter()).any(|case| case.name() == name);
    let compiled = || module == "compile" && file("tests/compile.rs").expect("tests/compile.rs").contains(&format!("(\"{case}\", "));
    assert!(is_case || compiled(), "{name} is no case");
}

fn the_tests_that_the_pages_name_are_there() {
    let security = security();
    let named = named_in(&security);
    assert!(named.len() > 90, "{named:?}");
    named.into_iter().for_each(is_there);
}

fn items(list: &str) -> Vec<&str> {
    list.split("\n- ").skip(1).collect()
}

fn every_limit_names_a_test() {
    let security = security();
    let (_, limits) = security.split_once("\n## What it does not do\n").expect("the limits");
    let limits = items(limits.split("\n[").next().expect("the list"));
    assert!(limits.len() > 15, "{limits:?}");
    for limit in &limits {
        assert!(!named_in(limit).is_empty(), "{limit}");
    }
    // And no case shows a limit that is not one.
    for case in crate::limits::CASES {
        let (module, function) = case.name().split_once("::").expect("a module");
        assert!(named_in(&security).contains(&(module, function)), "{} is not in docs/security.md", case.name());
    }
}

/// Which tests show the lines of these lists, by how they begin.
const SHOWN: [(&str, &[(&str, &str)]); 2] = [
    (
        "Coming from Python's `os.setregid`",
        &[
            ("`-1` is an id", "`exact::every_change_sets_what_it_names`"),
            ("The change ends", "`porting::never_taken_back`, `porting::changed_and_changed_back`"),
            ("A change that could not", "`readme::what_cannot_be_undone`"),
            (
                "`PermissionError`",
                "`refusals::without_cap_setgid`, `compile::group_of_another_integer`, `compile::group_out_of_range`, `compile::negative_group`, \
                 `refusals::texts_that_are_no_group_ids`",
            ),
            ("As in Python", "`readme::a_number_that_has_no_name`"),
        ],
    ),
    (
        "Scope and limits",
        &[
            ("Linux only.", "`porting::user_stays_0`"),
            (
                "A process guard changes",
                "`exact::a_process_guard_changes_every_other_thread`, `exclusion::busy_names_the_thread_with_a_process_guard`, \
                 `exclusion::busy_counts_the_threads_with_thread_guards`",
            ),
            (
                "A process that is started",
                "`limits::a_process_started_under_a_guard_keeps_the_group`, `limits::a_thread_started_under_a_thread_guard_keeps_the_group`",
            ),
            ("A file that is opened", "`limits::an_open_descriptor_stays_open`"),
            ("`let _ =", "`diagnostics::a_named_guard_lives_and_an_unnamed_one_does_not`, `compile::ended_at_once`"),
            ("A leaked guard", "`nesting::a_leaked_guard_counts_as_alive`, `nesting::leaked_guards_are_undone_at_the_end_of_their_thread`"),
            (
                "Code that sets ids",
                "`limits::ids_set_behind_its_back_are_not_seen`, `limits::a_guard_in_a_signal_handler_aborts`, \
                 `limits::a_guard_in_pre_exec_has_ended_in_the_program`",
            ),
            ("Tells of itself", "`events::the_end_of_a_guard_is_told_as_the_original_group`, `events::nested_guards_are_not_told`"),
            ("Needs Rust", "`readme::the_numbers_and_the_commands_are_so`"),
        ],
    ),
];

fn every_line_is_shown_by_a_test() {
    security();
    for (heading, shown) in SHOWN {
        let lines = items(section(heading));
        assert_eq!(lines.len(), shown.len(), "{heading}");
        for (line, (begins, tests)) in lines.iter().zip(shown) {
            assert!(line.starts_with(begins), "{line}");
            assert!(!named_in(tests).is_empty());
            named_in(tests).into_iter().for_each(is_there);
        }
    }
}

//! Each message that docs/guide.md quotes, beside the same one made now. A comment before the quote has its id.

use crate::cases;
use crate::common::calls;
use crate::common::kernel::{self, CAP_SETGID, Namespace};
use crate::common::sandbox;
use crate::common::sibling::Sibling;
use crate::common::{self, Case};
use privilege_guard::{DropError, Gid, GroupChange, GroupGuard, PermanentDrop, RestoreError};

pub const CASES: &[Case] = cases![
    Nothing: every_quote_is_compared,
    Nothing + group_1004: no_privilege,
    Nothing: a_wrong_name,
    Nothing: what_the_compiler_says,
    Nothing: a_named_guard_lives_and_an_unnamed_one_does_not,
    Nothing: another_thread_has_a_guard,
    Nothing: a_process_guard_inside_a_thread_guard,
    Setgid: a_drop_with_other_threads,
    Setgid: a_drop_under_tokio,
    Nothing: a_leaked_guard,
    Nothing: the_group_that_means_leave_alone,
    Nothing + user_namespace: a_group_that_is_not_mapped,
    Root: an_id_that_could_not_be_put_back,
    Setgid: a_way_back_that_is_refused,
];

const GUIDE: &str = include_str!("../../docs/guide.md");

/// The message that follows this id in the guide.
fn quote(id: &str) -> &'static str {
    let (_, rest) = GUIDE
        .split_once(&format!("\n<!-- {id} -->\n```text\n"))
        .expect(id);
    rest.split_once("```").expect("its end").0
}

/// Broken into lines anyhow, with a placeholder for the ids of this run and of its threads.
fn normal(text: &str) -> String {
    let mut before = "";
    let words = text.split_whitespace().map(|word| {
        let id = ["thread", "real", "effective", "saved", "filesystem"].contains(&before);
        before = word.trim_start_matches('(');
        let rest = word.trim_start_matches(|c: char| c.is_ascii_digit());
        if id && rest != word {
            format!("N{rest}")
        } else {
            word.to_owned()
        }
    });
    words.collect::<Vec<_>>().join(" ")
}

#[track_caller]
fn says(id: &str, message: impl std::fmt::Display) {
    let message = message.to_string();
    assert_eq!(normal(&message), normal(quote(id)), "{message}");
}

/// Each line of the quote is one of the compiler's.
#[track_caller]
fn compiler_says(id: &str, said: &str) {
    for line in quote(id).lines() {
        assert!(
            said.lines().any(|said| said.trim() == line.trim()),
            "{line}"
        );
    }
}

fn every_quote_is_compared() {
    let this: String = include_str!("diagnostics.rs").split_whitespace().collect();
    let ids = GUIDE
        .split("\n<!-- E")
        .skip(1)
        .map(|rest| format!("E{}", rest.split_once(" -->").expect("its end").0));
    let ids: Vec<String> = ids.collect();
    assert!(ids.len() >= 13, "{ids:?}");
    for id in ids {
        quote(&id);
        assert_eq!(this.matches(&format!("says(\"{id}\",")).count(), 1, "{id}");
    }
}

fn no_privilege() {
    kernel::give_up_capabilities(CAP_SETGID);
    says("E1", GroupGuard::assume(1004).unwrap_err());
}

fn a_wrong_name() {
    says("E2", Gid::from_group_name("wwwdata").unwrap_err());
}

fn what_the_compiler_says() {
    let unnamed = include_str!("../compile/unnamed_guard_is_warned_of.stderr");
    compiler_says("E3", unnamed);
    assert!(unnamed.contains("help: use `let _ = ...` to ignore the resulting value"));
    compiler_says("E4", include_str!("../compile/ended_at_once.stderr"));
    compiler_says("E5", include_str!("../compile/held_across_an_await.stderr"));
}

fn a_named_guard_lives_and_an_unnamed_one_does_not() {
    let outer = GroupChange::new().assume().unwrap();
    let _named = GroupChange::new().assume().unwrap();
    assert!(matches!(outer.restore(), Err(RestoreError::NotInnermost)));
    drop(_named);
    let outer = GroupChange::new().assume().unwrap();
    let _ = GroupChange::new().assume().unwrap();
    outer.restore().unwrap();
}

fn another_thread_has_a_guard() {
    let (tell, told) = std::sync::mpsc::channel();
    let (end, ended) = std::sync::mpsc::channel::<()>();
    let other = std::thread::Builder::new()
        .name("reports".into())
        .spawn(move || {
            let _guard = GroupChange::new().assume().unwrap();
            tell.send(()).unwrap();
            // Also where the sender is dropped.
            _ = ended.recv();
        });
    told.recv().unwrap();
    says("E6", GroupChange::new().assume().unwrap_err());
    drop(end);
    other.unwrap().join().unwrap();
    GroupChange::new().assume().unwrap().restore().unwrap();
}

fn a_process_guard_inside_a_thread_guard() {
    let _guard = GroupChange::new().assume_on_thread().unwrap();
    says("E7", GroupChange::new().assume().unwrap_err());
    GroupChange::new()
        .assume_on_thread()
        .unwrap()
        .restore()
        .unwrap();
}

fn a_drop_with_other_threads() {
    let _other = Sibling::start();
    says("E8", PermanentDrop::to_group(1004).apply().unwrap_err());
}

/// What `#[tokio::main]` makes of an `async fn main`.
fn a_drop_under_tokio() {
    let runtime = || {
        tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .build()
            .unwrap()
    };
    let drop = || PermanentDrop::to_group(1004).apply();
    kernel::passes_in_child(|| {
        let inside = runtime().block_on(async { drop() });
        assert!(
            matches!(inside, Err(DropError::Multithreaded { threads: 2.. })),
            "{inside:?}"
        );
    });
    drop().unwrap();
    let of_a_worker =
        runtime().block_on(async { tokio::spawn(async { kernel::ids() }).await.unwrap() });
    assert_eq!(of_a_worker, [1004; 4]);
}

fn a_leaked_guard() {
    let outer = GroupChange::new().assume().unwrap();
    std::mem::forget(GroupChange::new().assume().unwrap());
    says("E9", outer.restore().unwrap_err());
}

fn the_group_that_means_leave_alone() {
    says("E10", GroupGuard::assume(u32::MAX).unwrap_err());
}

fn a_group_that_is_not_mapped() {
    let ran = kernel::passes_in_own_namespace(|| {
        says("E11", GroupGuard::assume(1004).unwrap_err());
    });
    if !ran {
        common::ignore("no user namespace can be made here");
    }
}

fn an_id_that_could_not_be_put_back() {
    let namespace = Namespace {
        ids: [1000; 4],
        groups: &[],
        gid_map: "0 0 1000\n1001 1001 9000\n",
        ..kernel::SUBORDINATE
    };
    kernel::passes_in(namespace, || {
        says("E12", GroupGuard::assume(1004).unwrap_err());
    });
}

fn a_way_back_that_is_refused() {
    kernel::start_from([3; 4], &[]);
    sandbox::refuse(calls::SYS_setresgid, &[(1, 3)]);
    says(
        "E13",
        kernel::aborts(|| drop(GroupGuard::assume(1004).unwrap())),
    );
}

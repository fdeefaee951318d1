//! Promises 3, 4 and 8 where the kernel refuses a call halfway: each setting call, each time it is made, in both scopes, fails, or
//! answers with success without doing anything. Nothing changed, or the exact state asked for, or an end that says so.

use std::collections::BTreeMap;
use std::os::unix::process::ExitStatusExt;

use crate::cases;
use crate::common::Case;
use crate::common::attack::{Siblings, ways_back};
use crate::common::calls;
use crate::common::fault::{Call, Ended, Fault, First, Window, supervise};
use crate::common::guard::{Guard, SCOPES, Scope};
use crate::common::kernel::{self, CAP_SETGID, Identity, Ids, ThreadState};
use crate::common::sandbox::Answer;
use privilege_guard::{DropError, DropReport, Error, GroupChange, PermanentDrop, RestoreError};

pub const CASES: &[Case] = cases![
    Setgid: with_the_capability,
    Setgid: of_a_set_group_id_program,
    NoSetgid: of_an_ordinary_user,
];

const CALLS: [Call; 17] = [
    Call {
        name: "setresgid",
        number: calls::SYS_setresgid,
        first: First::Any,
    },
    Call {
        name: "setgroups",
        number: calls::SYS_setgroups,
        first: First::Any,
    },
    Call {
        name: "setfsgid",
        number: calls::SYS_setfsgid,
        first: First::IsNot(u32::MAX),
    },
    READING,
    Call {
        name: "PR_SET_PDEATHSIG",
        number: libc::SYS_prctl,
        first: First::Is(libc::PR_SET_PDEATHSIG as u32),
    },
    Call {
        name: "setgid",
        number: calls::SYS_setgid,
        first: First::Any,
    },
    Call {
        name: "setresuid",
        number: calls::SYS_setresuid,
        first: First::Any,
    },
    Call {
        name: "capset",
        number: libc::SYS_capset,
        first: First::Any,
    },
    Call {
        name: "PR_CAPBSET_DROP",
        number: libc::SYS_prctl,
        first: First::Is(libc::PR_CAPBSET_DROP as u32),
    },
    Call {
        name: "PR_SET_NO_NEW_PRIVS",
        number: libc::SYS_prctl,
        first: First::Is(libc::PR_SET_NO_NEW_PRIVS as u32),
    },
    reads("openat", libc::SYS_openat),
    reads("getdents64", libc::SYS_getdents64),
    reads("stat", STAT_OF_A_THREAD),
    reads("fstat", libc::SYS_fstat),
    reads("fstatfs", libc::SYS_fstatfs),
    reads("lseek", libc::SYS_lseek),
    reads("read", libc::SYS_read),
];

/// What the check of all threads makes: /proc/self/task is opened, listed and counted; of each thread
/// the directory is looked at, or files are opened and read.
const OF_THREADS: [&str; 7] = [
    "openat",
    "getdents64",
    "stat",
    "fstat",
    "fstatfs",
    "lseek",
    "read",
];

/// What reads the map of a user namespace, which a guard does over 65534, and a drop always. Without the
/// map, the kernel decides.
const OF_A_MAP: [&str; 2] = ["openat", "read"];

/// Whether an id is the one that stands for those without a mapping.
fn has_overflow(identity: &Identity) -> bool {
    identity.ids.contains(&65534)
}

#[cfg(target_pointer_width = "64")]
const STAT_OF_A_THREAD: libc::c_long = libc::SYS_newfstatat;
#[cfg(not(target_pointer_width = "64"))]
const STAT_OF_A_THREAD: libc::c_long = libc::SYS_fstatat64;

const fn reads(name: &'static str, number: libc::c_long) -> Call {
    Call {
        name,
        number,
        first: First::Any,
    }
}

/// Reading calls set nothing, so they are refused, and not faked. Which error refuses one of the many
/// reads of threads makes no difference.
fn is_tried(call: &str, answer: &str) -> bool {
    if OF_THREADS.contains(&call) {
        answer == "EPERM"
    } else {
        !(call == READING.name && answer == "not done")
    }
}

/// It sets nothing, so success without doing would be a made-up answer to a question, which nobody could know from the true one.
const READING: Call = Call {
    name: "setfsgid(-1)",
    number: calls::SYS_setfsgid,
    first: First::Is(u32::MAX),
};

const ANSWERS: [(&str, Answer); 5] = [
    ("EPERM", Answer::Errno(libc::EPERM)),
    ("EINVAL", Answer::Errno(libc::EINVAL)),
    ("ENOMEM", Answer::Errno(libc::ENOMEM)),
    ("EAGAIN", Answer::Errno(libc::EAGAIN)),
    ("not done", Answer::SuccessWithoutDoing),
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operation {
    Assume,
    Nested,
    SwitchTo,
    Restore,
    Run,
    Drop,
    /// Of the inner guard, which undoes the outer one that was dropped before.
    DropOfBoth,
    DropPermanently,
    Apply {
        user: Option<u32>,
        keeps_capabilities: bool,
    },
}

const OF_GUARDS: [Operation; 7] = [
    Operation::Assume,
    Operation::Nested,
    Operation::SwitchTo,
    Operation::Restore,
    Operation::Run,
    Operation::Drop,
    Operation::DropOfBoth,
];

const KEEPING_THE_USER: [Operation; 2] = [
    Operation::DropPermanently,
    Operation::Apply {
        user: None,
        keeps_capabilities: false,
    },
];

const TO_ANOTHER_USER: Operation = Operation::Apply {
    user: Some(1234),
    keeps_capabilities: false,
};

/// Where the operations begin, and what the kernel has to say in between.
#[derive(Clone)]
struct Setting {
    enter: fn(),
    start: Identity,
    assumed: GroupChange,
    inside: Identity,
    switched_to: u32,
    switched: Ids,
    nested: GroupChange,
    inside_nested: Identity,
    /// What a guard's `drop_permanently` and an `apply` of `forever` lead to.
    permanent: Identity,
    forever: PermanentDrop,
    applied: Identity,
}

fn identity(ids: Ids, groups: &[u32]) -> Identity {
    Identity {
        ids,
        groups: groups.to_vec(),
    }
}

/// All calls are made: the filesystem id is an odd one, there are supplementary groups and a parent-death signal.
fn with_the_capability() {
    let setting = Setting {
        enter: || (),
        start: identity([0, 7, 8, 9], &[0, 7, 8]),
        assumed: GroupChange::both(1004).supplementary([1005]),
        inside: identity([1004, 1004, 8, 1004], &[1005]),
        switched_to: 1006,
        switched: [1006, 1006, 8, 1006],
        nested: GroupChange::both(1007).no_supplementary(),
        inside_nested: identity([1007, 1007, 8, 1007], &[]),
        permanent: identity([1004; 4], &[1005]),
        forever: PermanentDrop::to_group(33)
            .supplementary([1004])
            .no_new_privs(),
        applied: identity([33; 4], &[1004]),
    };
    let mut table = Table::default();
    table.walk_guards(&setting);
    let another_user_with_capabilities = Operation::Apply {
        user: Some(1234),
        keeps_capabilities: true,
    };
    for operation in KEEPING_THE_USER
        .into_iter()
        .chain([TO_ANOTHER_USER, another_user_with_capabilities])
    {
        table.walk(&Row {
            setting: &setting,
            siblings: 0,
            scope: Scope::Process,
            operation,
        });
    }
    // The one road with several threads that hold the capability. They have no_new_privs already.
    let flagged = Setting {
        enter: kernel::set_no_new_privs,
        ..setting.clone()
    };
    table.walk(&Row {
        setting: &flagged,
        siblings: 2,
        scope: Scope::Process,
        operation: TO_ANOTHER_USER,
    });
    let by_guards = [
        "setresgid",
        "setgroups",
        "setfsgid",
        "setfsgid(-1)",
        "PR_SET_PDEATHSIG",
    ];
    table.finish(&by_guards, &CALLS.map(|call| call.name));
}

/// No capability; the group can be lent because the saved id keeps it.
fn of_a_set_group_id_program() {
    let setting = Setting {
        enter: || {
            kernel::raw_setresuid(Some(1234), Some(1234), Some(1234)).expect("setresuid");
            kernel::set_no_new_privs();
        },
        start: identity([33, 7, 7, 33], &[1004]),
        assumed: GroupChange::both(7),
        inside: identity([7, 7, 33, 7], &[1004]),
        switched_to: 33,
        switched: [33, 33, 7, 33],
        nested: GroupChange::both(33),
        inside_nested: identity([33, 33, 7, 33], &[1004]),
        permanent: identity([7; 4], &[1004]),
        forever: PermanentDrop::to_group(33).no_new_privs(),
        applied: identity([33; 4], &[1004]),
    };
    // Where the switch is what moves the saved id away.
    let other_way = Setting {
        assumed: GroupChange::both(33),
        inside: identity([33, 33, 7, 33], &[1004]),
        switched_to: 7,
        switched: [7, 7, 33, 7],
        ..setting.clone()
    };
    let mut table = Table::default();
    table.walk_guards(&setting);
    for siblings in [0, 2] {
        for scope in SCOPES {
            table.walk(&Row {
                setting: &other_way,
                siblings,
                scope,
                operation: Operation::SwitchTo,
            });
        }
        for operation in KEEPING_THE_USER {
            table.walk(&Row {
                setting: &setting,
                siblings,
                scope: Scope::Process,
                operation,
            });
        }
    }
    let by_guards = ["setresgid", "setfsgid", "setfsgid(-1)", "PR_SET_PDEATHSIG"];
    let by_drops = ["setgid", "setgroups", "capset", "PR_SET_NO_NEW_PRIVS"];
    let in_process = [&by_guards[..], &by_drops, &OF_THREADS].concat();
    table.finish(&by_guards, &in_process);
}

/// Own ids only: what changes is nothing, but a refused call must still be an error, and the death signal stay.
fn of_an_ordinary_user() {
    let own = kernel::identity();
    let [group, ..] = own.ids;
    let own = Identity {
        ids: [group; 4],
        ..own
    };
    let setting = Setting {
        enter: kernel::set_no_new_privs,
        start: own.clone(),
        assumed: GroupChange::both(group),
        inside: own.clone(),
        switched_to: group,
        switched: own.ids,
        nested: GroupChange::both(group),
        inside_nested: own.clone(),
        permanent: own.clone(),
        forever: PermanentDrop::to_group(group),
        applied: own,
    };
    let mut table = Table::default();
    table.walk_guards(&setting);
    let by_guards = ["setresgid", "setfsgid(-1)", "PR_SET_PDEATHSIG"];
    let in_process = [&by_guards[..], &OF_THREADS].concat();
    if has_overflow(&setting.start) {
        table.finish(&[&by_guards[..], &OF_A_MAP].concat(), &in_process);
    } else {
        table.finish(&by_guards, &in_process);
    }
}

/// How a row may end. There is no fifth way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    /// An error, and nothing is changed.
    Unchanged,
    /// What was asked for.
    Exact,
    /// An abort, where undoing was refused or a way back was found.
    Abort,
    /// `NotRestored`, `StillPrivileged`.
    Told,
}

#[derive(Default)]
struct Table {
    rows: BTreeMap<(usize, &'static str, usize), [usize; 4]>,
    wrong: Vec<String>,
}

impl Table {
    /// Each call that the operation makes, each time that it makes it, with each answer.
    /// Every operation of guards, in both scopes, alone and with other threads.
    fn walk_guards(&mut self, setting: &Setting) {
        for siblings in [0, 2] {
            for scope in SCOPES {
                for operation in OF_GUARDS {
                    self.walk(&Row {
                        setting,
                        siblings,
                        scope,
                        operation,
                    });
                }
            }
        }
    }

    fn walk(&mut self, row: &Row) {
        for (place, &call) in CALLS.iter().enumerate() {
            let unfaulted = supervise(call, None, |window| row.run(window));
            assert_eq!(
                row.outcome(call, &unfaulted, None),
                Ok(Outcome::Exact),
                "{row} without a fault: {unfaulted:?}"
            );
            for nth in 1..=unfaulted.calls {
                for (answer_place, (answer_name, answer)) in ANSWERS.into_iter().enumerate() {
                    if !is_tried(call.name, answer_name) {
                        continue;
                    }
                    for and_later in [false, true] {
                        let fault = Fault {
                            answer,
                            nth,
                            and_later,
                        };
                        let ended = supervise(call, Some(fault), |window| row.run(window));
                        let later = if and_later { " and later" } else { "" };
                        let name = format!(
                            "{row}, {} {nth} of {}{later}: {answer_name}",
                            call.name, unfaulted.calls
                        );
                        match row.outcome(call, &ended, Some(fault)) {
                            Ok(outcome) => {
                                println!("{name}: {outcome:?}");
                                self.rows
                                    .entry((place, row.scope(), answer_place))
                                    .or_default()[outcome as usize] += 1;
                            }
                            Err(wrong) => self
                                .wrong
                                .push(format!("{name}: {wrong}\n{}{}", ended.status, ended.stderr)),
                        }
                    }
                }
            }
        }
    }

    fn finish(self, on_thread: &[&str], in_process: &[&str]) {
        let mut total = self.wrong.len();
        for (&(call, scope, answer), [unchanged, exact, abort, told]) in &self.rows {
            total += unchanged + exact + abort + told;
            let (call, answer) = (CALLS[call].name, ANSWERS[answer].0);
            println!(
                "= {call:<19} {scope:<7} {answer:<8} unchanged {unchanged:>3}, exact {exact:>3}, abort {abort:>3}, told {told:>3}"
            );
        }
        println!("= {total} rows, {} wrong", self.wrong.len());
        assert!(self.wrong.is_empty(), "{}", self.wrong.join("\n"));
        for (scope, names) in [("thread", on_thread), ("process", in_process)] {
            for (answer, (answer_name, _)) in ANSWERS.iter().enumerate() {
                for (call, Call { name, .. }) in CALLS.iter().enumerate() {
                    let expected = names.contains(name) && is_tried(name, answer_name);
                    assert_eq!(
                        self.rows.contains_key(&(call, scope, answer)),
                        expected,
                        "{name} {scope} {answer_name}"
                    );
                }
            }
        }
    }
}

struct Row<'a> {
    setting: &'a Setting,
    siblings: usize,
    scope: Scope,
    operation: Operation,
}

impl std::fmt::Display for Row<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{:?}, {}, {} other threads",
            self.operation,
            self.scope(),
            self.siblings
        )
    }
}

impl Row<'_> {
    fn scope(&self) -> &'static str {
        match self.scope {
            Scope::Process => "process",
            Scope::Thread => "thread",
        }
    }

    /// In the supervised process: walks the operation, and returns what the kernel says it came to.
    fn run(&self, window: &Window) -> String {
        let setting = self.setting;
        let siblings = self.start();
        let start = State::now();
        assert_eq!(start.threads[0].identity, setting.start);
        let after = |identity: &Identity| start.with(self.scope, identity);

        let assume = |change: &GroupChange| {
            self.scope
                .assume(change.clone())
                .expect("there is no fault yet")
        };
        let verdict = match self.operation {
            Operation::Assume => {
                let made = window.during(|| self.scope.assume(setting.assumed.clone()));
                all_or_nothing(made, &start, &after(&setting.inside))
            }
            Operation::Nested => {
                let outer = assume(&setting.assumed);
                let made = window.during(|| self.scope.assume(setting.nested.clone()));
                let verdict = all_or_nothing(
                    made,
                    &after(&setting.inside),
                    &after(&setting.inside_nested),
                );
                std::mem::forget(outer);
                verdict
            }
            Operation::SwitchTo => {
                let mut guard = assume(&setting.assumed);
                let made = window.during(|| guard.switch_to(setting.switched_to));
                let switched = identity(setting.switched, &setting.inside.groups);
                let verdict = all_or_nothing(made, &after(&setting.inside), &after(&switched));
                std::mem::forget(guard);
                verdict
            }
            Operation::Restore => {
                let guard = assume(&setting.assumed);
                put_back(window.during(|| guard.restore()), &start)
            }
            Operation::Run => {
                let guard = assume(&setting.assumed);
                window.during(|| guard.run(|| ()));
                put_back(Ok(()), &start)
            }
            Operation::Drop => {
                let guard = assume(&setting.assumed);
                window.during(|| drop(guard));
                put_back(Ok(()), &start)
            }
            Operation::DropOfBoth => {
                let outer = assume(&setting.assumed);
                let inner = assume(&setting.nested);
                drop(outer);
                window.during(|| drop(inner));
                put_back(Ok(()), &start)
            }
            Operation::DropPermanently => {
                let Guard::Process(guard) = assume(&setting.assumed) else {
                    unreachable!("of a process")
                };
                let made = window.during(|| guard.drop_permanently());
                for_good(
                    made,
                    &start,
                    &start.with(Scope::Process, &setting.permanent),
                    &siblings,
                    None,
                )
            }
            Operation::Apply { user, .. } => {
                let asked = setting.forever.clone();
                let asked = user.into_iter().fold(asked, PermanentDrop::user);
                let made = window.during(|| asked.apply());
                for_good(
                    made,
                    &start,
                    &start.with(Scope::Process, &setting.applied),
                    &siblings,
                    user,
                )
            }
        };
        verdict.map_or_else(|wrong| wrong, |outcome| format!("{outcome:?}"))
    }

    fn start(&self) -> Siblings {
        let Identity {
            ids: [real, effective, saved, filesystem],
            ref groups,
        } = self.setting.start;
        if kernel::capabilities().effective & CAP_SETGID != 0 {
            // The filesystem id of other threads comes back as their effective one.
            kernel::start_from([real, effective, saved, effective], groups);
        }
        (self.setting.enter)();
        if matches!(
            self.operation,
            Operation::Apply {
                keeps_capabilities: true,
                ..
            }
        ) {
            kernel::keep_capabilities();
        }
        let siblings = Siblings::start(self.siblings);
        assert!(kernel::raw_setfsgid(filesystem));
        kernel::set_death_signal(libc::SIGUSR1);
        siblings
    }

    /// What a row came to, or why that is none of the outcomes that there may be.
    fn outcome(&self, call: Call, ended: &Ended, fault: Option<Fault>) -> Result<Outcome, String> {
        if fault.is_some() && ended.faults == 0 {
            return Err("the fault did not come up".into());
        }
        if ended.status.signal() == Some(libc::SIGABRT) {
            let lied = fault.is_some_and(|fault| fault.answer == Answer::SuccessWithoutDoing);
            return self
                .may_abort(call, &ended.stderr, ended.faults, lied)
                .map(|()| Outcome::Abort);
        }
        let verdict = ended.verdict.as_deref().unwrap_or("died");
        let all = [
            Outcome::Unchanged,
            Outcome::Exact,
            Outcome::Abort,
            Outcome::Told,
        ];
        let outcome = all
            .into_iter()
            .find(|outcome| format!("{outcome:?}") == verdict)
            .ok_or(verdict)?;
        // What was not read was not checked. Without these reads the drop is decided by the kernel, and
        // a file is read without its size.
        let is_of_drop = matches!(
            self.operation,
            Operation::DropPermanently | Operation::Apply { .. }
        );
        let reads_a_map =
            (is_of_drop || has_overflow(&self.setting.start)) && OF_A_MAP.contains(&call.name);
        let may_be_ignored = reads_a_map || call.name == "lseek";
        if outcome == Outcome::Exact
            && fault.is_some()
            && OF_THREADS.contains(&call.name)
            && !may_be_ignored
        {
            return Err("a refused read was ignored".into());
        }
        // Of a drop these are the first steps that cannot be undone: a failure of theirs can.
        let is_first = ["setresuid", "PR_CAPBSET_DROP"].contains(&call.name);
        if outcome == Outcome::Told && is_first {
            Err("told, where all could be undone".into())
        } else {
            Ok(outcome)
        }
    }

    fn may_abort(&self, call: Call, stderr: &str, faults: usize, lied: bool) -> Result<(), String> {
        let words = stderr
            .strip_prefix("privilege-guard: ")
            .and_then(|words| words.strip_suffix("; aborting\n"));
        let words = words.ok_or("abort not by the library")?;
        let found_a_way = words.starts_with("the permanent drop does not hold: ")
            && words.contains(" might have regained ");
        let allowed = match self.operation {
            // To undo is what was asked for.
            Operation::Drop | Operation::DropOfBoth | Operation::Run => {
                words.starts_with("cannot restore ")
            }
            // The caller is told, and decides.
            Operation::Restore => false,
            // A try to get back worked, by what the kernel says; or may have, where it does not say.
            Operation::DropPermanently | Operation::Apply { .. } if found_a_way => {
                lied || call.name == READING.name
            }
            // One fault for the change, another for undoing it.
            _ => faults > 1 && words.starts_with("cannot restore "),
        };
        if allowed {
            Ok(())
        } else {
            Err("abort without need".into())
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct State {
    threads: Vec<ThreadState>,
    death_signal: i32,
}

impl State {
    fn now() -> Self {
        State {
            threads: kernel::all_threads(),
            death_signal: kernel::death_signal(),
        }
    }

    /// What becomes of this state when a change in this scope makes the calling thread this.
    fn with(&self, scope: Scope, identity: &Identity) -> Self {
        let mut state = self.clone();
        let (caller, others) = state.threads.split_first_mut().expect("a thread");
        caller.identity = identity.clone();
        if scope == Scope::Process {
            let [real, effective, saved, _] = identity.ids;
            for other in others {
                other.identity = Identity {
                    ids: [real, effective, saved, effective],
                    groups: identity.groups.clone(),
                };
            }
        }
        state
    }
}

/// `change` or `before`, and as `Result` says. The guards live on, in what was returned or not at all, and are not undone here.
fn all_or_nothing<T>(
    made: Result<T, Error>,
    before: &State,
    after: &State,
) -> Result<Outcome, String> {
    let now = State::now();
    let (outcome, expected) = match &made {
        Ok(_) => (Outcome::Exact, after),
        Err(_) => (Outcome::Unchanged, before),
    };
    let said = made.as_ref().err().map_or("Ok".into(), Error::to_string);
    std::mem::forget(made);
    expect(outcome, &said, &now, expected)
}

fn put_back(ended: Result<(), RestoreError>, original: &State) -> Result<Outcome, String> {
    match ended {
        Ok(()) => expect(Outcome::Exact, "Ok", &State::now(), original),
        Err(RestoreError::Refused { .. }) => Ok(Outcome::Told),
        Err(error) => Err(format!("an error of another operation: {error}")),
    }
}

fn expect(outcome: Outcome, said: &str, now: &State, expected: &State) -> Result<Outcome, String> {
    if now == expected {
        Ok(outcome)
    } else {
        Err(format!(
            "{said}\n    now      {now:?}\n    expected {expected:?}\n"
        ))
    }
}

fn for_good(
    made: Result<DropReport, DropError>,
    start: &State,
    after: &State,
    siblings: &Siblings,
    user: Option<u32>,
) -> Result<Outcome, String> {
    let now = State::now();
    match made {
        Ok(report) => {
            let now = ignoring_privileges(&now);
            expect(
                Outcome::Exact,
                &report.to_string(),
                &now,
                &ignoring_privileges(after),
            )?;
            let wrong = kernel::all_threads().into_iter().find(|thread| {
                let privileges = &thread.privileges;
                privileges.hold(CAP_SETGID)
                    || user.is_some_and(|user| privileges.users != [user; 4])
            });
            if let Some(wrong) = wrong {
                return Err(format!("{report}: {wrong:?}"));
            }
            if report.no_new_privs && !kernel::all_threads()[0].privileges.no_new_privs {
                return Err(format!("{report}: no_new_privs is not set"));
            }
            let old: Vec<u32> = start.threads[0]
                .identity
                .ids
                .into_iter()
                .filter(|&gid| gid != report.group.as_raw())
                .collect();
            let ways = [siblings.ways_back(&old), ways_back(&old)].concat();
            if ways.is_empty() {
                Ok(Outcome::Exact)
            } else {
                Err(format!("{report}: {ways:?}"))
            }
        }
        // Only where something is gone that no call gives back.
        Err(DropError::StillPrivileged { finding }) => {
            let [before, now] = [start, &now].map(|state| &state.threads[0].privileges);
            let is_gone = before != now || !before.hold(CAP_SETGID);
            if is_gone {
                Ok(Outcome::Told)
            } else {
                Err(format!("StillPrivileged without need: {finding}"))
            }
        }
        Err(error) => expect(Outcome::Unchanged, &error.to_string(), &now, start),
    }
}

fn ignoring_privileges(state: &State) -> State {
    let mut state = state.clone();
    let none = kernel::Privileges {
        users: [0; 4],
        capabilities: [0; 5],
        no_new_privs: false,
    };
    state
        .threads
        .iter_mut()
        .for_each(|thread| thread.privileges = none.clone());
    state
}

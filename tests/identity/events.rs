//! Promise 7: no event is told as the group.

use std::os::unix::fs::MetadataExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use crate::cases;
use crate::common::guard::{Guard, SCOPES, Scope};
use crate::common::kernel;
use crate::common::sandbox;
use crate::common::subscriber::{
    Told, asked, listen, listen_and, listen_and_when_asked, told, told_once,
};
use crate::common::{self, Case};
use privilege_guard::{
    DropError, DropReport, Error, GroupChange, GroupGuard, GroupIds, PermanentDrop,
};
use tracing::Level;

pub const CASES: &[Case] = cases![
    Setgid: the_end_of_a_guard_is_told_as_the_original_group,
    Nothing: everybody_is_told_of_the_end_of_a_guard,
    Setgid: nested_guards_are_not_told,
    Setgid: no_subscriber_is_asked_as_the_group,
    Setgid: guards_dropped_out_of_order_are_told_once_after_the_last,
    Setgid: a_leaked_guard_is_told_after_its_thread_has_undone_it,
    Setgid: a_guard_that_a_panic_ends_is_told,
    Setgid: switching_is_not_told,
    Nothing: every_refusal_is_told_once,
    Nothing: a_refusal_inside_a_guard_is_not_told,
    Nothing: a_refusal_under_another_threads_process_guard_is_not_told,
    Nothing: a_refusal_beside_another_threads_thread_guard_is_told,
    Setgid: the_file_that_a_subscriber_opens_has_the_original_group,
    Setgid: a_subscriber_may_use_guards,
    Setgid: a_subscriber_that_leaks_a_guard_when_it_is_asked_is_not_told_as_its_group,
    Nothing: no_process_guard_begins_while_an_event_is_told,
    Setgid: a_subscriber_that_panics_leaves_the_thread_usable,
    Nothing: a_subscriber_whose_guard_is_refused_ends,
    Nothing: a_subscriber_that_uses_a_guard_on_a_refusal_is_told_once,
    Setgid: a_permanent_drop_is_told_once_as_the_new_group,
    Setgid: a_refused_permanent_drop_is_told_as_the_original_group,
    Setgid: a_guard_whose_drop_is_refused_is_told_as_what_it_was,
];

const START: [u32; 4] = [1001, 1002, 1003, 1009];

/// For cases that hold for everybody: another group where that can be taken on, else the own one.
fn group() -> u32 {
    if common::environment() == common::Environment::Root {
        1004
    } else {
        kernel::getresgid()[0]
    }
}

const ENDS: [fn(Guard); 3] = [
    drop,
    |guard| guard.restore().unwrap(),
    |guard| guard.run(|| ()),
];

fn is_end(told: &Told, scope: Scope, asked: &str) {
    assert_eq!(
        (told.target.as_str(), told.level),
        ("privilege_guard", Level::DEBUG)
    );
    assert_eq!(
        (told.field("scope"), told.field("requested")),
        (scope.name(), asked)
    );
    assert!(!told.field("elapsed").is_empty() && !told.field("message").is_empty());
}

fn the_end_of_a_guard_is_told_as_the_original_group() {
    listen();
    for scope in SCOPES {
        for ends in ENDS {
            kernel::start_from(START, &[1010]);
            let before = kernel::identity();
            let begun = Instant::now();
            let guard = scope
                .assume(GroupChange::both(1004).no_supplementary())
                .unwrap();
            std::thread::sleep(Duration::from_millis(20));
            assert!(told().is_empty());
            ends(guard);
            let at_most = begun.elapsed().as_secs_f64();

            let told = told_once();
            is_end(
                &told,
                scope,
                "real and effective group 1004, no supplementary groups",
            );
            assert_eq!(told.identity, before);
            assert_eq!(
                told.field("original"),
                "real 1001, effective 1002, saved 1003, filesystem 1009"
            );
            let elapsed = told.field("elapsed");
            let (number, unit) = elapsed
                .strip_suffix("ms")
                .map_or((elapsed.trim_end_matches('s'), 1.0), |number| {
                    (number, 1e-3)
                });
            let seconds = number.parse::<f64>().unwrap() * unit;
            assert!((0.02..=at_most).contains(&seconds), "{elapsed}");
        }
    }
}

fn everybody_is_told_of_the_end_of_a_guard() {
    listen();
    let before = kernel::identity();
    let own = GroupIds::current().unwrap();
    for scope in SCOPES {
        let outer = scope.assume(GroupChange::both(own.real)).unwrap();
        drop(scope.assume(GroupChange::new()).unwrap());
        assert!(told().is_empty());
        drop(outer);
        let told = told_once();
        is_end(
            &told,
            scope,
            &format!("real and effective group {}", own.real),
        );
        assert_eq!(told.field("original"), own.to_string());
        assert_eq!(told.identity, before);
    }
}

fn nested_guards_are_not_told() {
    listen();
    kernel::start_from(START, &[]);
    for outer_scope in SCOPES {
        let outer = outer_scope.assume(GroupChange::both(1004)).unwrap();
        for _ in 0..3 {
            drop(GroupGuard::assume_on_thread(1005).unwrap());
        }
        if outer_scope == Scope::Process {
            drop(GroupGuard::assume(1005).unwrap());
        }
        assert!(told().is_empty());
        drop(outer);
        let told = told_once();
        is_end(&told, outer_scope, "real and effective group 1004");
        assert_eq!(told.identity.ids, START);
    }
}

fn no_subscriber_is_asked_as_the_group() {
    listen();
    let before = kernel::identity();
    for scope in SCOPES {
        let outer = scope.assume(GroupChange::both(1004)).unwrap();
        let mut inner = GroupGuard::assume_on_thread(1005).unwrap();
        inner.switch_to(1006).unwrap();
        assert!(GroupGuard::assume_on_thread(u32::MAX).is_err());
        drop((inner, outer));
        let asked = asked();
        assert!(
            !asked.is_empty() && asked.iter().all(|identity| *identity == before),
            "{asked:?}"
        );
    }
}

fn guards_dropped_out_of_order_are_told_once_after_the_last() {
    listen();
    kernel::start_from(START, &[]);
    for scope in SCOPES {
        let guards: Vec<_> = [1004, 1005, 1006]
            .into_iter()
            .map(|gid| scope.assume(GroupChange::both(gid)).unwrap())
            .collect();
        for guard in guards {
            assert!(told().is_empty());
            assert_eq!(kernel::ids()[1], 1006);
            drop(guard);
        }
        let told = told_once();
        is_end(&told, scope, "real and effective group 1004");
        assert_eq!(told.identity.ids, START);
    }
}

fn a_leaked_guard_is_told_after_its_thread_has_undone_it() {
    listen();
    for scope in SCOPES {
        kernel::start_from(START, &[]);
        std::thread::spawn(move || {
            std::mem::forget(scope.assume(GroupChange::both(1004)).unwrap());
            assert!(told().is_empty());
        })
        .join()
        .unwrap();
        let told = told_once();
        is_end(&told, scope, "real and effective group 1004");
        assert_eq!(told.identity.ids, START);
    }
}

fn a_guard_that_a_panic_ends_is_told() {
    listen();
    let before = kernel::identity();
    for scope in SCOPES {
        let guard = scope.assume(GroupChange::both(1004)).unwrap();
        catch_unwind(AssertUnwindSafe(|| guard.run(|| panic!("in the guard")))).unwrap_err();
        let told = told_once();
        is_end(&told, scope, "real and effective group 1004");
        assert_eq!(told.identity, before);
    }
}

fn switching_is_not_told() {
    listen();
    let mut guard = GroupGuard::assume_on_thread(1004).unwrap();
    guard.switch_to(1005).unwrap();
    assert!(matches!(guard.switch_to(u32::MAX), Err(Error::InvalidGid)));
    assert!(told().is_empty());
    drop(guard);
    told_once();
}

fn every_refusal_is_told_once() {
    listen();
    let before = kernel::identity();
    kernel::give_up_capabilities(kernel::CAP_SETGID);
    for scope in SCOPES {
        for change in [
            GroupChange::both(u32::MAX),
            GroupChange::new().supplementary(0..65_537),
            GroupChange::both(4711),
            GroupChange::new().supplementary([4711]),
        ] {
            let error = scope.assume(change.clone()).unwrap_err();
            let told = told_once();
            assert_eq!(
                (told.target.as_str(), told.level),
                ("privilege_guard", Level::WARN)
            );
            assert_eq!(told.field("scope"), scope.name());
            assert_eq!(told.field("requested"), change.to_string());
            assert_eq!(told.field("error"), error.to_string());
            assert_eq!(told.identity, before);
        }
    }
}

fn a_refusal_inside_a_guard_is_not_told() {
    listen();
    for scope in SCOPES {
        let guard = scope.assume(GroupChange::both(group())).unwrap();
        assert!(GroupGuard::assume(u32::MAX).is_err());
        assert!(GroupGuard::assume_on_thread(u32::MAX).is_err());
        if scope == Scope::Thread {
            assert!(matches!(
                GroupGuard::assume(group()),
                Err(Error::ProcessGuardInThreadGuard)
            ));
        }
        assert!(told().is_empty());
        drop(guard);
        told_once();
    }
}

/// Runs `f` while another thread has a guard of this scope.
fn beside_a_guard(scope: Scope, f: impl FnOnce()) {
    let (begun, has_begun) = mpsc::channel();
    let (end, ends) = mpsc::channel::<()>();
    let other = std::thread::spawn(move || {
        let _guard = scope.assume(GroupChange::both(group())).unwrap();
        begun.send(()).unwrap();
        ends.recv().unwrap();
    });
    has_begun.recv().unwrap();
    f();
    end.send(()).unwrap();
    other.join().unwrap();
}

fn a_refusal_under_another_threads_process_guard_is_not_told() {
    listen();
    beside_a_guard(Scope::Process, || {
        _ = asked();
        for scope in SCOPES {
            assert!(matches!(
                scope.assume(GroupChange::both(group())),
                Err(Error::Busy { .. })
            ));
            assert!(matches!(
                scope.assume(GroupChange::both(u32::MAX)),
                Err(Error::InvalidGid)
            ));
        }
        assert_eq!(kernel::ids()[1], group());
        assert!(told().is_empty() && asked().is_empty());
    });
    let told = told_once();
    is_end(
        &told,
        Scope::Process,
        &format!("real and effective group {}", group()),
    );
}

/// That one changes no thread but its own.
fn a_refusal_beside_another_threads_thread_guard_is_told() {
    listen();
    let before = kernel::identity();
    beside_a_guard(Scope::Thread, || {
        assert!(matches!(
            GroupGuard::assume(group()),
            Err(Error::Busy { .. })
        ));
        let told = told_once();
        assert_eq!(told.field("scope"), "process");
        assert_eq!(told.identity, before);
    });
}

fn log_file() -> std::path::PathBuf {
    std::env::temp_dir().join(format!("privilege-guard-events-{}", std::process::id()))
}

fn the_file_that_a_subscriber_opens_has_the_original_group() {
    fn is_group_of_log_file(group: u32) {
        let created = std::fs::metadata(log_file()).unwrap().gid();
        std::fs::remove_file(log_file()).unwrap();
        assert_eq!(created, group);
    }
    listen_and(|| drop(std::fs::File::create_new(log_file()).unwrap()));
    kernel::start_from(START, &[]);
    for scope in SCOPES {
        let outer = scope.assume(GroupChange::both(1004)).unwrap();
        drop(scope.assume(GroupChange::both(1005)).unwrap());
        assert!(scope.assume(GroupChange::both(u32::MAX)).is_err());
        assert!(!log_file().exists());
        drop(outer);
        is_group_of_log_file(START[3]);

        assert!(scope.assume(GroupChange::both(u32::MAX)).is_err());
        is_group_of_log_file(START[3]);
    }
}

fn a_subscriber_that_leaks_a_guard_when_it_is_asked_is_not_told_as_its_group() {
    listen_and_when_asked(|| {
        static LEAKED: AtomicUsize = AtomicUsize::new(0);
        if LEAKED.fetch_add(1, Ordering::Relaxed) == 0 {
            std::mem::forget(GroupGuard::assume_on_thread(1004).unwrap());
        }
    });
    let before = kernel::ids();
    std::thread::spawn(|| drop(GroupGuard::assume_on_thread(1005).unwrap()))
        .join()
        .unwrap();
    let told = told();
    assert!(
        told.iter().all(|told| told.identity.ids == before),
        "{told:?}"
    );
}

fn a_subscriber_may_use_guards() {
    listen_and(|| {
        let before = kernel::identity();
        for scope in SCOPES {
            assert!(scope.assume(GroupChange::both(u32::MAX)).is_err());
            let guard = scope.assume(GroupChange::both(1007)).unwrap();
            assert_eq!(kernel::group_of_new_file(), 1007);
            let mut inner = GroupGuard::assume_on_thread(1008).unwrap();
            inner.switch_to(1007).unwrap();
            drop(inner);
            guard.restore().unwrap();
            assert_eq!(kernel::identity(), before);
        }
    });
    // Other threads' process guards move an odd filesystem id.
    kernel::start_from([1001, 1002, 1003, 1002], &[1010]);
    let before = kernel::identity();
    for scope in SCOPES {
        drop(scope.assume(GroupChange::both(1004)).unwrap());
        let told = told_once();
        is_end(&told, scope, "real and effective group 1004");
        assert_eq!(kernel::identity(), before);
        // Nothing is left taken: no other thread's guard is refused.
        std::thread::spawn(|| GroupGuard::assume(1004).unwrap().restore().unwrap())
            .join()
            .unwrap();
        told_once();
    }
}

/// Else it would be told as the group of another thread's guard.
fn no_process_guard_begins_while_an_event_is_told() {
    static TOLD_TIMES: AtomicUsize = AtomicUsize::new(0);
    listen_and(|| {
        if TOLD_TIMES.fetch_add(1, Ordering::Relaxed) == 0 {
            assert!(GroupGuard::assume(u32::MAX).is_err());
            let other = std::thread::spawn(|| GroupGuard::assume(group()).map(drop))
                .join()
                .unwrap();
            assert!(matches!(other, Err(Error::Busy { .. })), "{other:?}");
        }
    });
    for scope in SCOPES {
        TOLD_TIMES.store(0, Ordering::Relaxed);
        scope
            .assume(GroupChange::both(group()))
            .unwrap()
            .restore()
            .unwrap();
        assert!(TOLD_TIMES.load(Ordering::Relaxed) > 0);
        // Afterwards it may.
        std::thread::spawn(|| GroupGuard::assume(group()).unwrap().restore().unwrap())
            .join()
            .unwrap();
    }
}

fn a_subscriber_that_panics_leaves_the_thread_usable() {
    listen_and(|| panic!("in the subscriber"));
    kernel::start_from(START, &[]);
    for scope in SCOPES {
        for ends in ENDS {
            let guard = scope.assume(GroupChange::both(1004)).unwrap();
            // The panic does not pass through the guard's end, which has gone well.
            ends(guard);
            let told = told_once();
            assert_eq!((told.identity.ids, kernel::ids()), (START, START));
        }
        assert!(scope.assume(GroupChange::both(u32::MAX)).is_err());
        // As a leaked guard's end, where a panic could not be caught by anybody.
        std::thread::spawn(move || {
            std::mem::forget(scope.assume(GroupChange::both(1004)).unwrap())
        })
        .join()
        .unwrap();
        assert_eq!(told().len(), 2);

        let guard = std::thread::spawn(|| {
            std::mem::forget(GroupGuard::assume(1004).expect("nothing is left taken"))
        });
        guard.join().unwrap();
        told_once();
        assert_eq!(kernel::ids()[..3], START[..3]);
        kernel::start_from(START, &[]);
    }
}

/// A refusal inside the event of a refusal is not told: it would be without end.
fn a_subscriber_whose_guard_is_refused_ends() {
    listen_and(|| assert!(GroupGuard::assume(u32::MAX).is_err()));
    for scope in SCOPES {
        assert!(scope.assume(GroupChange::both(u32::MAX)).is_err());
        assert_eq!(told().len(), 1);
    }
}

/// The subscriber's own guard is told, to the subscriber that is telling the refusal.
fn a_subscriber_that_uses_a_guard_on_a_refusal_is_told_once() {
    listen_and(|| {
        GroupGuard::assume_on_thread(kernel::getresgid()[0])
            .unwrap()
            .restore()
            .unwrap()
    });
    for scope in SCOPES {
        assert!(scope.assume(GroupChange::both(u32::MAX)).is_err());
        assert_eq!(told().len(), 1);
    }
}

fn a_permanent_drop_is_told_once_as_the_new_group() {
    listen();
    let drops: [fn() -> Result<DropReport, DropError>; 2] = [
        || PermanentDrop::to_group(33).apply(),
        || GroupGuard::assume(33)?.drop_permanently(),
    ];
    for drop in drops {
        kernel::passes_in_child(|| {
            let report = drop().unwrap();
            let told = told_once();
            assert_eq!(
                (told.target.as_str(), told.level),
                ("privilege_guard", Level::INFO)
            );
            assert_eq!(told.field("report"), report.to_string());
            assert_eq!(
                told.identity,
                kernel::Identity {
                    ids: [33; 4],
                    groups: vec![]
                }
            );
        });
    }
}

fn a_refused_permanent_drop_is_told_as_the_original_group() {
    listen();
    let before = kernel::identity();
    let (_alive, wait) = mpsc::channel::<()>();
    let _other = std::thread::spawn(move || _ = wait.recv());
    let is_refusal = |told: &Told| {
        assert_eq!(
            (told.target.as_str(), told.level),
            ("privilege_guard", Level::WARN)
        );
        assert!(
            told.field("requested").starts_with("permanently ")
                && told.field("error").contains("CAP_SETGID"),
            "{told:?}"
        );
        assert_eq!(told.identity, before);
    };
    PermanentDrop::to_group(33).apply().unwrap_err();
    is_refusal(&told_once());
    GroupGuard::assume(33)
        .unwrap()
        .drop_permanently()
        .unwrap_err();
    let [end, refusal] = &told()[..] else {
        panic!("the end of the guard, and the refusal")
    };
    is_end(end, Scope::Process, "real and effective group 33");
    assert_eq!(end.identity, before);
    is_refusal(refusal);
}

fn a_guard_whose_drop_is_refused_is_told_as_what_it_was() {
    listen();
    let before = kernel::identity();
    let refused = |change: GroupChange, asked: &str| {
        change.assume().unwrap().drop_permanently().unwrap_err();
        let [end, refusal] = &told()[..] else {
            panic!("the end of the guard, and the refusal")
        };
        is_end(end, Scope::Process, asked);
        assert_eq!(
            (refusal.level, refusal.field("requested")),
            (Level::WARN, format!("permanently {asked}").as_str())
        );
        assert_eq!((&end.identity, &refusal.identity), (&before, &before));
    };
    refused(
        GroupChange::both(33).real(34),
        "real group 34, effective group 33",
    );
    // After the groups are changed, and back.
    sandbox::refuse(libc::SYS_prctl, &[(0, libc::PR_CAPBSET_DROP as u32)]);
    refused(GroupChange::new().effective(33), "effective group 33");
}

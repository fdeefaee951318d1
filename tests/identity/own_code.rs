//! The program's own code around guards: it reads `errno`, converts ids, iterates over groups, and
//! subscribes to events. None of it may meet a guard halfway.

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use nix::errno::Errno;

use crate::cases;
use crate::common::Case;
use crate::common::guard::{Guard, SCOPES};
use crate::common::kernel;
use crate::common::subscriber::{asked, listen_and, listen_and_when_asked, told, told_once};
use privilege_guard::{
    DropError, DropReport, Error, Gid, GroupChange, GroupGuard, GroupIds, Identity, IdentityGuard,
    PermanentDrop, Uid, UserChange, UserGuard,
};

pub const CASES: &[Case] = cases![
    Nothing: errno_after_a_guard_of_the_own_group,
    Setgid: errno_after_a_guard,
    Root: errno_after_a_guard_of_users,
    Setgid: errno_beside_a_subscriber_that_changes_it,
    Setgid: a_conversion_may_use_guards_in_a_switch,
    Root: a_conversion_may_use_guards_in_a_switch_of_users,
    Setgid: a_conversion_that_keeps_a_guard_makes_the_switch_an_error,
    Setgid: a_conversion_that_panics_leaves_the_guard_usable,
    Setgid: every_conversion_may_use_guards,
    Setgid: no_process_guard_begins_while_a_subscriber_is_consulted,
    Setgid: a_subscriber_is_consulted_as_the_original_group,
    Setgid: a_subscriber_that_panics_while_the_thread_unwinds,
    Setgid: a_subscriber_that_panics_when_it_is_consulted,
    Setgid: a_subscriber_that_panics_after_a_drop_leaves_the_report,
];

const START: [u32; 4] = [3; 4];
const LONG_ENOUGH: Duration = Duration::from_secs(60);

/// What the work under a guard failed with.
const OF_THE_WORK: i32 = libc::EDQUOT;

/// `errno` after `end`, which begins with another one.
fn errno_after(end: impl FnOnce()) -> i32 {
    Errno::set_raw(OF_THE_WORK);
    end();
    Errno::last_raw()
}

/// `drop` and `restore` keep `errno`, and `run` leaves what the function left.
#[track_caller]
fn keeps_errno<G>(assume: impl Fn() -> G, restore: fn(G), run: fn(G, fn())) {
    let guard = assume();
    assert_eq!(errno_after(|| drop(guard)), OF_THE_WORK, "drop");
    let guard = assume();
    assert_eq!(errno_after(|| restore(guard)), OF_THE_WORK, "restore");
    let guard = assume();
    let errno = errno_after(|| run(guard, || Errno::set_raw(libc::ENOTEMPTY)));
    assert_eq!(errno, libc::ENOTEMPTY, "run");
    // The restore of an outer guard that was dropped first follows the inner one's.
    let outer = assume();
    let inner = assume();
    assert_eq!(errno_after(|| drop(outer)), OF_THE_WORK, "deferred");
    assert_eq!(errno_after(|| drop(inner)), OF_THE_WORK, "both");
}

fn keeps_errno_after(change: &GroupChange) {
    for scope in SCOPES {
        keeps_errno(
            || scope.assume(change.clone()).unwrap(),
            |guard: Guard| guard.restore().unwrap(),
            |guard, f| guard.run(f),
        );
    }
}

fn errno_after_a_guard_of_the_own_group() {
    let own = GroupIds::current().unwrap().real;
    keeps_errno_after(&GroupChange::both(own));
    keeps_errno_after(&GroupChange::new());
}

fn errno_after_a_guard() {
    kernel::start_from(START, &[7, 8]);
    kernel::set_death_signal(libc::SIGUSR1);
    for change in [
        GroupChange::both(1004),
        GroupChange::both(1004).no_supplementary(),
        GroupChange::new().supplementary([2001, 2002]),
        GroupChange::new().effective(1004),
    ] {
        keeps_errno_after(&change);
    }
    // Other threads are read from /proc, where one that has ended is an error.
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                std::thread::spawn(|| ()).join().unwrap();
            }
        });
        let _stops = StopOnDrop(&stop);
        for _ in 0..20 {
            keeps_errno_after(&GroupChange::both(1004).no_supplementary());
        }
    });
}

struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn errno_after_a_guard_of_users() {
    let client = Identity::new(1000, 1000).supplementary([1001]);
    keeps_errno(
        || UserGuard::assume_effective_on_thread(1000).unwrap(),
        |guard| guard.restore().unwrap(),
        |guard, f| guard.run(f),
    );
    keeps_errno(
        || UserGuard::assume_effective(1000).unwrap(),
        |guard| guard.restore().unwrap(),
        |guard, f| guard.run(f),
    );
    keeps_errno(
        || IdentityGuard::assume_effective_on_thread(&client).unwrap(),
        |guard| guard.restore().unwrap(),
        |guard, f| guard.run(f),
    );
    keeps_errno(
        || IdentityGuard::assume_effective(&client).unwrap(),
        |guard| guard.restore().unwrap(),
        |guard, f| guard.run(f),
    );
}

fn errno_beside_a_subscriber_that_changes_it() {
    kernel::start_from(START, &[7, 8]);
    let by_events = || {
        listen_and(|| Errno::set_raw(libc::EXDEV));
    };
    let by_enabled = || {
        listen_and_when_asked(|| Errno::set_raw(libc::EXDEV));
    };
    for subscribe in [by_events, by_enabled] {
        kernel::passes_in_child(|| {
            subscribe();
            keeps_errno_after(&GroupChange::both(1004));
            keeps_errno_after(&GroupChange::both(1004).no_supplementary());
            assert!(!told().is_empty() && !asked().is_empty());
        });
    }
}

/// A number whose conversion runs code of the program.
struct Converted<F: FnOnce()>(u32, F);

impl<F: FnOnce()> From<Converted<F>> for Gid {
    fn from(Converted(number, f): Converted<F>) -> Gid {
        f();
        Gid::from(number)
    }
}

impl<F: FnOnce()> From<Converted<F>> for Uid {
    fn from(Converted(number, f): Converted<F>) -> Uid {
        f();
        Uid::from(number)
    }
}

/// Takes a guard and ends it.
fn uses_a_guard() {
    let before = kernel::ids();
    let guard = GroupGuard::assume_on_thread(1007).unwrap();
    assert_eq!(kernel::ids()[1], 1007);
    drop(guard);
    assert_eq!(kernel::ids(), before);
}

fn a_conversion_may_use_guards_in_a_switch() {
    kernel::start_from(START, &[]);
    for scope in SCOPES {
        let mut guard = scope.assume(GroupChange::both(1004)).unwrap();
        guard.switch_to(Converted(1005, uses_a_guard)).unwrap();
        assert_eq!(kernel::ids(), [1005, 1005, 3, 1005]);

        // It ends the inner guard, so that this one is the innermost.
        let inner = GroupGuard::assume_on_thread(1006).unwrap();
        guard.switch_to(Converted(1008, || drop(inner))).unwrap();
        assert_eq!(kernel::ids(), [1008, 1008, 3, 1008]);

        // It ends an outer one, whose restore is deferred.
        let mut inner = GroupGuard::assume_on_thread(1006).unwrap();
        inner.switch_to(Converted(1009, || drop(guard))).unwrap();
        assert_eq!(kernel::ids(), [1009, 1009, 3, 1009]);
        inner.restore().unwrap();
        assert_eq!(kernel::ids(), START);
    }
}

fn a_conversion_may_use_guards_in_a_switch_of_users() {
    let user = || kernel::all_threads()[0].privileges.users[1];
    let mut guard = UserGuard::assume_effective_on_thread(1000).unwrap();
    let uses_guards = || {
        let own = GroupIds::current().unwrap().real;
        drop(GroupGuard::assume_on_thread(own).unwrap());
        drop(UserGuard::assume_effective_on_thread(0).unwrap());
    };
    guard.switch_to(Converted(1001, uses_guards)).unwrap();
    assert_eq!(user(), 1001);
    guard.restore().unwrap();
    assert_eq!(user(), 0);
}

fn a_conversion_that_keeps_a_guard_makes_the_switch_an_error() {
    kernel::start_from(START, &[]);
    for scope in SCOPES {
        let kept = RefCell::new(None);
        let mut guard = scope.assume(GroupChange::both(1004)).unwrap();
        let keep = || _ = kept.replace(Some(GroupGuard::assume_on_thread(1006).unwrap()));
        let error = guard.switch_to(Converted(1005, keep)).unwrap_err();
        assert!(matches!(error, Error::NotInnermost), "{error}");
        assert_eq!(kernel::ids()[1], 1006);
        drop(kept.take());
        assert_eq!(kernel::ids()[1], 1004);
        guard.restore().unwrap();
        assert_eq!(kernel::ids(), START);
    }
}

fn a_conversion_that_panics_leaves_the_guard_usable() {
    kernel::start_from(START, &[]);
    for scope in SCOPES {
        let mut guard = scope.assume(GroupChange::both(1004)).unwrap();
        let switch = || guard.switch_to(Converted(1005, || panic!("in the conversion")));
        catch_unwind(AssertUnwindSafe(switch)).unwrap_err();
        assert_eq!(kernel::ids()[1], 1004);
        guard.switch_to(1005).unwrap();
        assert_eq!(kernel::ids()[1], 1005);
        guard.restore().unwrap();
        assert_eq!(kernel::ids(), START);
    }
}

/// Every other function that runs code of its caller.
fn every_conversion_may_use_guards() {
    kernel::start_from(START, &[]);
    let group = || Converted(1004, uses_a_guard);
    let groups = || {
        std::iter::once_with(|| {
            uses_a_guard();
            group()
        })
    };
    let user = || Converted(0, uses_a_guard);
    let is_group = || assert_eq!(kernel::ids()[..2], [1004; 2]);

    GroupGuard::assume(group()).unwrap().run(is_group);
    GroupGuard::assume_on_thread(group()).unwrap().run(is_group);
    let is_effective = || assert_eq!(kernel::ids()[1], 1004);
    GroupGuard::assume_effective(group())
        .unwrap()
        .run(is_effective);
    GroupGuard::assume_effective_on_thread(group())
        .unwrap()
        .run(is_effective);
    GroupGuard::assume_real(group())
        .unwrap()
        .run(|| assert_eq!(kernel::ids()[0], 1004));
    let change = || {
        GroupChange::both(group())
            .real(group())
            .effective(group())
            .supplementary(groups())
    };
    for scope in SCOPES {
        scope.assume(change()).unwrap().run(|| {
            is_group();
            assert_eq!(kernel::identity().groups, [1004]);
            uses_a_guard();
        });
    }
    let change = || UserChange::both(user()).real(user()).effective(user());
    change().assume().unwrap().run(uses_a_guard);
    change().assume_on_thread().unwrap().run(uses_a_guard);
    drop(UserGuard::assume_effective(user()).unwrap());
    drop(UserGuard::assume_effective_on_thread(user()).unwrap());
    drop(UserGuard::assume_real_and_effective(user()).unwrap());
    drop(UserGuard::assume_real_and_effective_on_thread(user()).unwrap());
    let identity = Identity::new(user(), group()).supplementary(groups());
    let mut guard = IdentityGuard::assume_effective_on_thread(&identity).unwrap();
    guard
        .switch_to(&Identity::new(user(), Converted(1005, uses_a_guard)))
        .unwrap();
    guard.restore().unwrap();
    assert_eq!(kernel::ids(), START);
    PermanentDrop::to_group(group())
        .user(user())
        .supplementary(groups())
        .apply()
        .unwrap();
    assert_eq!(kernel::ids(), [1004; 4]);
}

fn is_main_thread() -> bool {
    kernel::gettid().unsigned_abs() == std::process::id()
}

fn no_process_guard_begins_while_a_subscriber_is_consulted() {
    static CONSULTED: AtomicUsize = AtomicUsize::new(0);
    kernel::start_from(START, &[]);
    listen_and_when_asked(|| {
        if !is_main_thread() {
            return;
        }
        CONSULTED.fetch_add(1, Ordering::Relaxed);
        let other = std::thread::spawn(|| GroupGuard::assume(1004).map(drop));
        let other = other.join().unwrap();
        assert!(matches!(other, Err(Error::Busy { .. })), "{other:?}");
    });
    for scope in SCOPES {
        let before = CONSULTED.load(Ordering::Relaxed);
        drop(scope.assume(GroupChange::both(1004)).unwrap());
        assert!(scope.assume(GroupChange::both(u32::MAX)).is_err());
        assert!(CONSULTED.load(Ordering::Relaxed) > before);
        // A panic in there would be caught, and the guard's end would not be told.
        assert!(
            told()
                .iter()
                .any(|told| told.level == tracing::Level::DEBUG)
        );
    }
    assert!(asked().iter().all(|identity| identity.ids == START));
}

/// The same by a race, looking at the effective group while the subscriber is consulted.
fn a_subscriber_is_consulted_as_the_original_group() {
    static WRONG: AtomicUsize = AtomicUsize::new(0);
    static CONSULTED: AtomicUsize = AtomicUsize::new(0);
    kernel::start_from(START, &[]);
    listen_and_when_asked(|| {
        for _ in 0..20 {
            let [_, effective, _] = kernel::getresgid();
            WRONG.fetch_add(usize::from(effective != START[1]), Ordering::Relaxed);
            std::thread::yield_now();
        }
        CONSULTED.fetch_add(1, Ordering::Relaxed);
    });
    let stop = AtomicBool::new(false);
    let mut guards = 0;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                // Refused beside process guards, and consults the subscriber otherwise.
                _ = GroupGuard::assume_on_thread(1005);
                _ = GroupGuard::assume_on_thread(u32::MAX);
                std::thread::sleep(Duration::from_micros(300));
            }
        });
        let _stops = StopOnDrop(&stop);
        for _ in 0..60 {
            let change = GroupChange::both(1004).wait(LONG_ENOUGH);
            change.assume().unwrap().restore().unwrap();
            guards += 1;
        }
    });
    let (consulted, wrong) = (
        CONSULTED.load(Ordering::Relaxed),
        WRONG.load(Ordering::Relaxed),
    );
    println!("= consulted {consulted} times beside {guards} process guards, {wrong} times wrong");
    assert!(consulted > 60 && wrong == 0);
}

fn a_subscriber_that_panics_while_the_thread_unwinds() {
    kernel::start_from(START, &[]);
    for scope in SCOPES {
        for how in [
            |guard: Guard| {
                let _guard = guard;
                panic!("the work")
            },
            |guard: Guard| guard.run(|| panic!("the work")),
        ] {
            kernel::passes_in_child(|| {
                listen_and(|| panic!("in the subscriber"));
                let guard = scope.assume(GroupChange::both(1004)).unwrap();
                let payload = catch_unwind(AssertUnwindSafe(|| how(guard))).unwrap_err();
                assert_eq!(payload.downcast_ref(), Some(&"the work"));
                assert_eq!(told_once().identity.ids, START);
                assert_eq!(kernel::ids(), START);
                // Nothing is left taken.
                let other = std::thread::spawn(|| GroupGuard::assume(1004).unwrap().restore());
                other.join().unwrap().unwrap();
            });
        }
    }
}

fn a_subscriber_that_panics_when_it_is_consulted() {
    kernel::start_from(START, &[]);
    listen_and_when_asked(|| panic!("in the subscriber"));
    for scope in SCOPES {
        let guard = scope.assume(GroupChange::both(1004)).unwrap();
        assert_eq!(kernel::ids()[1], 1004);
        guard.restore().unwrap();
        assert!(matches!(
            scope.assume(GroupChange::both(u32::MAX)),
            Err(Error::InvalidGid)
        ));
        assert_eq!(kernel::ids(), START);
    }
    let other = std::thread::spawn(|| GroupGuard::assume(1004).unwrap().restore());
    other.join().unwrap().unwrap();
    assert!(!asked().is_empty());
}

fn a_subscriber_that_panics_after_a_drop_leaves_the_report() {
    let drops: [fn() -> Result<DropReport, DropError>; 2] = [
        || PermanentDrop::to_group(33).apply(),
        || GroupGuard::assume(33)?.drop_permanently(),
    ];
    for drop in drops {
        kernel::passes_in_child(|| {
            listen_and(|| panic!("in the subscriber"));
            let report = drop().unwrap();
            assert_eq!(report.group, Gid::from(33));
            assert_eq!(told_once().field("report"), report.to_string());
            assert_eq!(kernel::ids(), [33; 4]);
        });
    }
}

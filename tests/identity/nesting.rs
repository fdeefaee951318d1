//! Promise 5: the innermost living guard decides, in whatever order guards end.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use crate::cases;
use crate::common::Case;
use crate::common::calls;
use crate::common::guard::{self, Guard, SCOPES, Scope, raw};
use crate::common::kernel::{self, Identity, Ids};
use crate::common::sandbox;
use crate::common::sibling::Sibling;
use privilege_guard::{Error, GroupChange, GroupGuard, RestoreError};

pub const CASES: &[Case] = cases![
    Setgid: three_guards_end_in_every_order,
    Setgid: four_guards_end_in_every_order,
    Nothing: guards_of_an_ordinary_user_nest,
    Setgid: an_outer_guard_that_is_restored_or_run_waits,
    Setgid: a_process_guard_inside_a_thread_guard_is_refused,
    Setgid: guards_in_boxes_vectors_and_fields_end_in_their_order,
    Setgid: a_panic_ends_guards_in_the_order_of_unwinding,
    Setgid: a_guard_in_a_thread_local_that_goes_first_is_dropped,
    Setgid: a_guard_in_a_thread_local_that_goes_last_has_been_undone,
    Setgid: no_guard_begins_when_the_thread_ends,
    Setgid: leaked_guards_are_undone_at_the_end_of_their_thread,
    Setgid: a_leaked_guard_counts_as_alive,
    Setgid: a_thread_that_was_joined_has_undone_its_leaked_guards,
    Setgid: a_scoped_thread_undoes_its_leaked_guards,
    Setgid: a_guard_leaked_on_the_main_thread_is_undone_at_its_return,
    Setgid: a_guard_leaked_on_the_main_thread_is_undone_at_exit,
    Setgid: switching_sets_the_ids_that_the_change_named,
    Setgid: switching_to_the_same_group_makes_no_call,
    Setgid: only_the_innermost_guard_switches,
    Setgid: switching_needs_one_named_group,
    Setgid: a_refused_switch_leaves_the_ids,
    Setgid: without_cap_setgid_every_start_switches_within_its_ids,
];

const LAYERS: [(Option<u32>, Option<u32>); 4] = [
    (Some(1001), Some(1001)),
    (None, Some(1002)),
    (Some(1003), None),
    (Some(1004), Some(1005)),
];

fn change((real, effective): (Option<u32>, Option<u32>)) -> GroupChange {
    guard::change(real, effective, None)
}

fn orders(of: usize) -> Vec<Vec<usize>> {
    let mut orders = vec![vec![]];
    for next in 0..of {
        orders = orders
            .iter()
            .flat_map(|order: &Vec<usize>| {
                (0..=order.len()).map(move |at| inserted(order, at, next))
            })
            .collect();
    }
    orders
}

fn inserted(order: &[usize], at: usize, next: usize) -> Vec<usize> {
    let mut order = order.to_vec();
    order.insert(at, next);
    order
}

/// Process guards outside, thread guards inside, from none to all of each.
fn legal_scopes(of: usize) -> Vec<Vec<Scope>> {
    (0..=of)
        .map(|outside| {
            (0..of)
                .map(|layer| {
                    if layer < outside {
                        Scope::Process
                    } else {
                        Scope::Thread
                    }
                })
                .collect()
        })
        .collect()
}

#[derive(Clone, Copy, Debug)]
enum Ending {
    Drop,
    Restore,
    Run,
}

impl Ending {
    /// Ends the guard and checks what it says, where it is the innermost living one or not.
    fn end(self, guard: Guard, innermost: bool) {
        match self {
            Ending::Drop => drop(guard),
            Ending::Restore => match guard.restore() {
                Ok(()) => assert!(innermost),
                Err(RestoreError::NotInnermost) => assert!(!innermost),
                Err(error) => panic!("{error}"),
            },
            Ending::Run => {
                let called = Cell::new(false);
                let run = AssertUnwindSafe(|| guard.run(|| called.set(true)));
                assert_eq!(
                    (catch_unwind(run).is_ok(), called.get()),
                    (innermost, innermost)
                );
            }
        }
    }
}

fn three_guards_end_in_every_order() {
    let sequences = every_order(
        3,
        &[[0, 0, 0, 0], [1, 2, 3, 4], [5, 5, 6, 1001]],
        &orders(3),
    );
    assert_eq!(sequences, 3 * 3 * 4 * 6 * 6 * 4);
}

fn four_guards_end_in_every_order() {
    let sequences = every_order(4, &[[1, 2, 3, 4]], &[vec![0, 1, 2, 3], vec![3, 1, 0, 2]]);
    assert_eq!(sequences, 3 * 5 * 2 * 24 * 5);
}

fn every_order(depth: usize, starts: &[Ids], layers: &[Vec<usize>]) -> usize {
    let mut sequences = 0;
    for &start in starts {
        kernel::start_from(start, &[7, 8]);
        let sibling = Sibling::start();
        for ending in [Ending::Drop, Ending::Restore, Ending::Run] {
            for scopes in legal_scopes(depth) {
                for layers in layers {
                    for ends in orders(depth) {
                        // Which layer names supplementary groups, and none.
                        for with_groups in 0..=depth {
                            one_order(&sibling, &scopes, layers, &ends, with_groups, ending);
                            sequences += 1;
                        }
                    }
                }
            }
        }
    }
    println!("= {sequences} sequences of {depth} guards, 0 wrong");
    sequences
}

fn one_order(
    sibling: &Sibling,
    scopes: &[Scope],
    layers: &[usize],
    ends: &[usize],
    with_groups: usize,
    ending: Ending,
) {
    let told = || {
        format!(
            "{scopes:?} of {layers:?}, groups by {with_groups}, ended in the order {ends:?} by {ending:?}"
        )
    };
    let start = kernel::identity();
    // A process guard that has ended leaves it the filesystem id that goes with the effective one.
    let sibling_after = match scopes[0] {
        Scope::Process => Identity {
            ids: [start.ids[0], start.ids[1], start.ids[2], start.ids[1]],
            ..start.clone()
        },
        Scope::Thread => sibling.identity(),
    };

    // What the kernel says inside each guard: of this thread, and of the other one as the last process guard left it.
    let mut inside: Vec<Identity> = vec![];
    let mut guards: Vec<Option<Guard>> = vec![];
    for (depth, (&scope, &layer)) in scopes.iter().zip(layers).enumerate() {
        let before = inside.last().unwrap_or(&start).clone();
        let (real, effective) = LAYERS[layer];
        let groups = if depth == with_groups {
            vec![2001, 2002]
        } else {
            before.groups.clone()
        };
        let change = if depth == with_groups {
            change(LAYERS[layer]).supplementary(groups.clone())
        } else {
            change(LAYERS[layer])
        };
        let guard = scope.assume(change).unwrap();
        assert_eq!(raw(guard.original()), before.ids, "{}", told());
        let now = kernel::identity();
        let effective = effective.unwrap_or(before.ids[1]);
        assert_eq!(
            [now.ids[0], now.ids[1], now.ids[3]],
            [real.unwrap_or(before.ids[0]), effective, effective],
            "{}",
            told()
        );
        assert_eq!(now.groups, groups, "{}", told());
        if scope == Scope::Process {
            assert_eq!(sibling.identity(), now, "{}", told());
        }
        inside.push(now);
        guards.push(Some(guard));
    }

    for &ended in ends {
        let guard = guards[ended].take().unwrap();
        ending.end(guard, guards[ended..].iter().all(Option::is_none));
        let living = guards.iter().rposition(Option::is_some);
        assert_eq!(
            &kernel::identity(),
            living.map_or(&start, |layer| &inside[layer]),
            "{}, after {ended}",
            told()
        );
        // A process guard that waits still stands.
        let standing = living.and_then(|living| {
            (0..=living)
                .rev()
                .find(|&layer| scopes[layer] == Scope::Process)
        });
        assert_eq!(
            sibling.identity(),
            standing.map_or(sibling_after.clone(), |layer| inside[layer].clone()),
            "{}, after {ended}",
            told()
        );
    }
}

fn guards_of_an_ordinary_user_nest() {
    let start = kernel::identity();
    let [real, effective, ..] = start.ids;
    for scopes in legal_scopes(3) {
        for ends in orders(3) {
            let mut guards: Vec<Option<Guard>> = vec![];
            for (&scope, change) in scopes.iter().zip([
                GroupChange::both(real),
                GroupChange::new()
                    .effective(effective)
                    .supplementary(start.groups.clone()),
                GroupChange::new(),
            ]) {
                guards.push(Some(scope.assume(change).unwrap()));
            }
            for ended in ends {
                let guard = guards[ended].take().unwrap();
                Ending::Restore.end(guard, guards[ended..].iter().all(Option::is_none));
            }
            assert_eq!(kernel::identity(), start);
        }
    }
}

fn an_outer_guard_that_is_restored_or_run_waits() {
    let start = kernel::identity();
    for scope in SCOPES {
        let outer = scope.assume(GroupChange::both(1001)).unwrap();
        let middle = Scope::Thread.assume(GroupChange::both(1002)).unwrap();
        let inner = Scope::Thread.assume(GroupChange::both(1003)).unwrap();
        let inside = kernel::identity();

        assert!(catch_unwind(AssertUnwindSafe(|| outer.run(|| unreachable!("called")))).is_err());
        assert_eq!(kernel::identity(), inside);
        assert!(matches!(middle.restore(), Err(RestoreError::NotInnermost)));
        assert_eq!(kernel::identity(), inside);
        // Two undoings wait for it: they happen now, and at once.
        inner.restore().unwrap();
        assert_eq!(kernel::identity(), start);
        // And are forgotten: nothing is left that would be in the way.
        Scope::Process
            .assume(GroupChange::both(1004))
            .unwrap()
            .restore()
            .unwrap();
        assert_eq!(kernel::identity(), start);
    }
}

fn a_process_guard_inside_a_thread_guard_is_refused() {
    let start = kernel::identity();
    let refused = |change: GroupChange| {
        assert!(matches!(
            change.assume(),
            Err(Error::ProcessGuardInThreadGuard)
        ))
    };

    let thread = GroupGuard::assume_on_thread(1001).unwrap();
    let inside = kernel::identity();
    refused(GroupChange::both(1002));
    // At once, since waiting would not help.
    let asked = Instant::now();
    refused(GroupChange::new().wait(Duration::from_secs(30)));
    assert!(asked.elapsed() < Duration::from_secs(10));
    assert_eq!(kernel::identity(), inside);
    drop(thread);

    // Also where a process guard is around both, and where it waits only for the thread guard.
    let process = GroupGuard::assume(1003).unwrap();
    let between = kernel::identity();
    let thread = GroupGuard::assume_on_thread(1001).unwrap();
    refused(GroupChange::both(1002));
    drop(thread);
    GroupGuard::assume(1002).unwrap().restore().unwrap();
    assert_eq!(kernel::identity(), between);
    let thread = GroupGuard::assume_on_thread(1001).unwrap();
    let inside = kernel::identity();
    drop(process);
    assert_eq!(kernel::identity(), inside);
    refused(GroupChange::both(1002));
    drop(thread);
    assert_eq!(kernel::identity(), start);
    GroupGuard::assume(1002).unwrap().restore().unwrap();
}

thread_local! {
    /// What the kernel said each time a `Probe` was dropped.
    static SEEN: RefCell<Vec<Ids>> = const { RefCell::new(vec![]) };
}

struct Probe;

impl Drop for Probe {
    fn drop(&mut self) {
        SEEN.with_borrow_mut(|seen| seen.push(kernel::ids()));
    }
}

fn seen() -> Vec<Ids> {
    SEEN.take()
}

fn guards_in_boxes_vectors_and_fields_end_in_their_order() {
    struct OuterFirst {
        _outer: Guard,
        _between: Probe,
        _inner: Guard,
        _last: Probe,
    }
    struct InnerFirst {
        _inner: Guard,
        _between: Probe,
        _outer: Guard,
        _last: Probe,
    }

    let start = kernel::identity();
    for scope in SCOPES {
        let two = || {
            let outer = scope.assume(GroupChange::both(1001)).unwrap();
            let outer_ids = kernel::ids();
            let inner = scope.assume(GroupChange::both(1002)).unwrap();
            ((outer, outer_ids), (inner, kernel::ids()))
        };

        let ((outer, _), (inner, inner_ids)) = two();
        drop(OuterFirst {
            _outer: outer,
            _between: Probe,
            _inner: inner,
            _last: Probe,
        });
        assert_eq!(seen(), [inner_ids, start.ids]);

        let ((outer, outer_ids), (inner, _)) = two();
        drop(InnerFirst {
            _inner: inner,
            _between: Probe,
            _outer: outer,
            _last: Probe,
        });
        assert_eq!(seen(), [outer_ids, start.ids]);

        // Elements of a Vec and an array are dropped first to last, so outermost first.
        let ((outer, _), (inner, inner_ids)) = two();
        drop(vec![(outer, Probe), (inner, Probe)]);
        assert_eq!(seen(), [inner_ids, start.ids]);

        let ((outer, _), (inner, inner_ids)) = two();
        drop([(Box::new(outer), Probe), (Box::new(inner), Probe)]);
        assert_eq!(seen(), [inner_ids, start.ids]);

        let ((outer, outer_ids), (inner, _)) = two();
        let mut kept = vec![outer, inner];
        drop(kept.pop());
        assert_eq!(kernel::ids(), outer_ids);
        kept.clear();
        assert_eq!(kernel::identity(), start);

        let ((outer, _), (inner, inner_ids)) = two();
        let shared = Rc::new(outer);
        let again = Rc::clone(&shared);
        drop(shared);
        let mut by_name = HashMap::from([("inner", inner)]);
        drop(again);
        assert_eq!(kernel::ids(), inner_ids);
        by_name.remove("inner");
        assert_eq!(kernel::identity(), start);

        let unnamed: Box<dyn std::any::Any> =
            Box::new(scope.assume(GroupChange::both(1001)).unwrap());
        drop(unnamed);
        assert_eq!(kernel::identity(), start);
    }
}

fn a_panic_ends_guards_in_the_order_of_unwinding() {
    std::panic::set_hook(Box::new(|_| ()));
    let start = kernel::identity();
    for scope in SCOPES {
        let outcome = catch_unwind(|| {
            let _last = Probe;
            let _outer = scope.assume(GroupChange::both(1001)).unwrap();
            let _between = Probe;
            let inner = scope
                .assume(GroupChange::both(1002).no_supplementary())
                .unwrap();
            inner.run(|| panic!("inside"));
        });
        assert_eq!(outcome.unwrap_err().downcast_ref(), Some(&"inside"));
        let [_, _, saved, _] = start.ids;
        assert_eq!(seen(), [[1001, 1001, saved, 1001], start.ids]);
        assert_eq!(kernel::identity(), start);
    }
}

/// What a thread-local's destructor saw and did.
static WITNESS: Mutex<Vec<(&str, Ids)>> = Mutex::new(vec![]);

fn witness(what: &'static str) {
    WITNESS.lock().unwrap().push((what, kernel::ids()));
}

fn witnessed() -> Vec<(&'static str, Ids)> {
    std::mem::take(&mut WITNESS.lock().unwrap())
}

/// Keeps guards in a thread-local, and ends them in its destructor.
#[derive(Default)]
struct Keeper {
    dropped: Vec<Guard>,
    restored: Vec<Guard>,
    run: Vec<Guard>,
    switched: Vec<Guard>,
}

impl Drop for Keeper {
    fn drop(&mut self) {
        witness("kept");
        self.dropped.clear();
        witness("dropped");
        for guard in self.restored.drain(..) {
            witness(
                if matches!(guard.restore(), Err(RestoreError::ThreadEnding)) {
                    "not restored"
                } else {
                    "restored"
                },
            );
        }
        for guard in self.run.drain(..) {
            witness(
                if catch_unwind(AssertUnwindSafe(|| guard.run(|| witness("run")))).is_err() {
                    "not run"
                } else {
                    "was run"
                },
            );
        }
        for mut guard in self.switched.drain(..) {
            witness(
                if matches!(guard.switch_to(1009), Err(Error::ThreadEnding)) {
                    "not switched"
                } else {
                    "switched"
                },
            );
        }
        for scope in SCOPES {
            match scope.assume(GroupChange::both(1008)) {
                Ok(_guard) => witness("another"),
                Err(Error::ThreadEnding) => witness("no other"),
                Err(_) => witness("another error"),
            }
        }
    }
}

thread_local! {
    static KEEPER: RefCell<Keeper> = RefCell::default();
}

fn a_guard_in_a_thread_local_that_goes_first_is_dropped() {
    for scope in SCOPES {
        let start = kernel::identity();
        let inside = std::thread::spawn(move || {
            // The library's thread-local is used first here, and so goes last.
            let outer = scope.assume(GroupChange::both(1001)).unwrap();
            let outer_ids = kernel::ids();
            let inner = scope.assume(GroupChange::both(1002)).unwrap();
            KEEPER.with_borrow_mut(|keeper| keeper.dropped.extend([outer, inner]));
            (outer_ids, kernel::ids())
        });
        let (_, inner_ids) = inside.join().unwrap();
        let expected = [
            ("kept", inner_ids),
            ("dropped", start.ids),
            ("another", [1008, 1008, start.ids[2], 1008]),
        ];
        assert_eq!(
            witnessed(),
            [expected[0], expected[1], expected[2], expected[2]]
        );
        assert_eq!(kernel::identity(), start);
    }
}

fn a_guard_in_a_thread_local_that_goes_last_has_been_undone() {
    for scope in SCOPES {
        let start = kernel::identity();
        let thread = std::thread::spawn(move || {
            KEEPER.with_borrow(|_| ());
            let mut guard = |gid| scope.assume(GroupChange::both(gid)).unwrap();
            let [first, second, third, fourth] = [1001, 1002, 1003, 1004].map(&mut guard);
            KEEPER.with_borrow_mut(|keeper| {
                keeper.dropped.push(first);
                keeper.restored.push(second);
                keeper.run.push(third);
                keeper.switched.push(fourth);
            });
            kernel::ids()
        });
        assert_eq!(thread.join().unwrap(), [1004, 1004, start.ids[2], 1004]);
        let expected = [
            "kept",
            "dropped",
            "not restored",
            "not run",
            "not switched",
            "no other",
            "no other",
        ];
        assert_eq!(witnessed(), expected.map(|what| (what, start.ids)));
        assert_eq!(kernel::identity(), start);
    }
}

fn no_guard_begins_when_the_thread_ends() {
    let start = kernel::identity();
    let thread = std::thread::spawn(|| {
        KEEPER.with_borrow(|_| ());
        GroupGuard::assume(1001).unwrap().restore().unwrap();
    });
    thread.join().unwrap();
    assert_eq!(
        witnessed(),
        ["kept", "dropped", "no other", "no other"].map(|what| (what, start.ids))
    );
    // What was refused there is in nobody's way.
    GroupGuard::assume(1001).unwrap().restore().unwrap();
}

/// What the kernel says of a thread after all its later thread-locals have gone.
struct Last;

impl Drop for Last {
    fn drop(&mut self) {
        witness("last");
    }
}

thread_local! {
    static LAST: Last = const { Last };
}

fn leaked_guards_are_undone_at_the_end_of_their_thread() {
    for scopes in legal_scopes(3) {
        let start = kernel::identity();
        let sibling = Sibling::start();
        let leaked = scopes.clone();
        let thread = std::thread::spawn(move || {
            LAST.with(|_| ());
            for (layer, scope) in leaked.into_iter().enumerate() {
                let change = change(LAYERS[layer]).supplementary([2001 + layer as u32]);
                std::mem::forget(scope.assume(change).unwrap());
            }
            kernel::identity()
        });
        let inside = thread.join().unwrap();
        assert_eq!(
            inside,
            Identity {
                ids: [1003, 1002, start.ids[2], 1002],
                groups: vec![2003]
            }
        );
        assert_eq!(witnessed(), [("last", start.ids)], "{scopes:?}");
        assert_eq!(kernel::identity(), start, "{scopes:?}");
        assert_eq!(sibling.identity(), start, "{scopes:?}");
        // Nor is it in the way of anybody any more.
        GroupGuard::assume(1001).unwrap().restore().unwrap();
    }
}

fn a_leaked_guard_counts_as_alive() {
    for scope in SCOPES {
        let start = kernel::identity();
        let thread = std::thread::spawn(move || {
            LAST.with(|_| ());
            let outer = scope.assume(GroupChange::both(1001)).unwrap();
            let middle = scope.assume(GroupChange::both(1002)).unwrap();
            std::mem::forget(scope.assume(GroupChange::both(1003)).unwrap());
            let inside = kernel::identity();
            assert!(matches!(middle.restore(), Err(RestoreError::NotInnermost)));
            drop(outer);
            assert_eq!(kernel::identity(), inside);
            scope
                .assume(GroupChange::both(1004))
                .unwrap()
                .restore()
                .unwrap();
            assert_eq!(kernel::identity(), inside);
        });
        thread.join().unwrap();
        assert_eq!(witnessed(), [("last", start.ids)]);
        assert_eq!(kernel::identity(), start);
    }
}

fn a_thread_that_was_joined_has_undone_its_leaked_guards() {
    let start = kernel::identity();
    let sibling = Sibling::start();
    for _ in 0..300 {
        std::thread::spawn(|| std::mem::forget(GroupGuard::assume(1001).unwrap()))
            .join()
            .unwrap();
        assert_eq!(kernel::ids(), start.ids);
        assert_eq!(sibling.identity(), start);
        std::thread::scope(|scope| {
            scope
                .spawn(|| std::mem::forget(GroupGuard::assume(1001).unwrap()))
                .join()
                .unwrap();
            assert_eq!(kernel::ids(), start.ids);
        });
    }
}

/// The end of the scope itself may come before that of the thread, so this waits.
fn a_scoped_thread_undoes_its_leaked_guards() {
    let start = kernel::identity();
    let mut later = 0;
    for _ in 0..100 {
        std::thread::scope(|scope| {
            scope.spawn(|| std::mem::forget(GroupGuard::assume(1001).unwrap()));
        });
        let ended = Instant::now();
        later += usize::from(kernel::ids() != start.ids);
        while kernel::ids() != start.ids {
            assert!(
                ended.elapsed() < Duration::from_secs(20),
                "{:?}",
                kernel::ids()
            );
        }
        GroupChange::both(1002)
            .wait(Duration::from_secs(20))
            .assume()
            .unwrap()
            .restore()
            .unwrap();
        assert_eq!(kernel::identity(), start);
    }
    println!("= undone after the end of the scope in {later} of 100");
}

/// For `atexit` handlers, which come after the thread-locals.
static START: Mutex<Option<Identity>> = Mutex::new(None);

extern "C" fn exit_unless_back() {
    let start = START.lock().unwrap().take().expect("a start");
    if kernel::identity() != start {
        // SAFETY: it does not return.
        unsafe { libc::_exit(3) };
    }
}

fn leak_on_this_thread() {
    let start = kernel::identity();
    // SAFETY: the function lives as long as the program.
    assert_eq!(unsafe { libc::atexit(exit_unless_back) }, 0);
    std::mem::forget(GroupGuard::assume(1001).unwrap());
    std::mem::forget(
        GroupChange::both(1002)
            .no_supplementary()
            .assume_on_thread()
            .unwrap(),
    );
    assert_ne!(kernel::identity(), start);
    *START.lock().unwrap() = Some(start);
}

fn a_guard_leaked_on_the_main_thread_is_undone_at_its_return() {
    kernel::start_from([1, 2, 3, 4], &[7, 8]);
    leak_on_this_thread();
}

fn a_guard_leaked_on_the_main_thread_is_undone_at_exit() {
    kernel::start_from([1, 2, 3, 4], &[7, 8]);
    kernel::passes_in_child(leak_on_this_thread);
    // The check can fail: nothing is undone at the end of a process that is not told to exit.
    let status = kernel::in_child(|| {
        leak_on_this_thread();
        exit_unless_back();
        0
    });
    assert_eq!(status.code(), Some(3), "{status}");
}

type Named = fn(u32) -> GroupChange;
const NAMED: [(&str, Named); 3] = [
    ("both", |gid| GroupChange::both(gid)),
    ("real", |gid| GroupChange::new().real(gid)),
    ("effective", |gid| GroupChange::new().effective(gid)),
];

/// The real and effective ids that a change to this group asks for.
fn asked_for(named: &str, gid: u32, start: Ids) -> [u32; 2] {
    match named {
        "both" => [gid, gid],
        "real" => [gid, start[1]],
        _ => [start[0], gid],
    }
}

fn switching_sets_the_ids_that_the_change_named() {
    kernel::start_from([1, 2, 3, 4], &[7, 8]);
    let start = kernel::identity();
    let sibling = Sibling::start();
    for scope in SCOPES {
        let sibling_start = sibling.identity();
        for (named, change) in NAMED {
            for groups in [vec![7, 8], vec![2001]] {
                let change = if groups == start.groups {
                    change(1001)
                } else {
                    change(1001).supplementary(groups.clone())
                };
                let mut guard = scope.assume(change).unwrap();
                for gid in [1002, 1003, 1003, 1, 2, 3, 4, 1001, 0] {
                    guard.switch_to(gid).unwrap();
                    let now = kernel::identity();
                    let [real, effective] = asked_for(named, gid, start.ids);
                    assert_eq!(
                        [now.ids[0], now.ids[1], now.ids[3]],
                        [real, effective, effective],
                        "{named} {gid}"
                    );
                    assert_eq!(now.groups, groups);
                    assert_eq!(raw(guard.original()), start.ids);
                    match scope {
                        Scope::Process => assert_eq!(sibling.identity(), now),
                        Scope::Thread => assert_eq!(sibling.identity(), sibling_start),
                    }
                }
                // One nested in it puts back what was switched to.
                let switched = kernel::identity();
                Scope::Thread
                    .assume(GroupChange::both(1005))
                    .unwrap()
                    .restore()
                    .unwrap();
                assert_eq!(kernel::identity(), switched);
                drop(guard);
                assert_eq!(kernel::identity(), start, "{scope:?} {named}");
            }
        }
        if scope == Scope::Process {
            assert_eq!(
                sibling.identity(),
                Identity {
                    ids: [1, 2, 3, 2],
                    ..start.clone()
                }
            );
        }
    }
}

fn switching_to_the_same_group_makes_no_call() {
    for scope in SCOPES {
        let status = kernel::in_child(|| {
            let mut guard = scope.assume(GroupChange::both(1001)).unwrap();
            guard.switch_to(1002).unwrap();
            let inside = kernel::identity();
            sandbox::refuse(calls::SYS_setresgid, &[]);
            sandbox::refuse(calls::SYS_setregid, &[]);
            sandbox::refuse(calls::SYS_setfsgid, &[(0, 1002)]);
            sandbox::refuse(libc::SYS_prctl, &[(0, libc::PR_SET_PDEATHSIG as u32)]);
            guard.switch_to(1002).unwrap();
            assert!(matches!(
                guard.switch_to(1003),
                Err(Error::NotPermitted { .. })
            ));
            assert_eq!(kernel::identity(), inside);
            guard.switch_to(1002).unwrap();
            // It can no more be undone.
            unsafe_exit(0)
        });
        assert!(status.success(), "{status}");
    }
}

fn unsafe_exit(code: i32) -> ! {
    // SAFETY: it does not return, and runs no destructor.
    unsafe { libc::_exit(code) }
}

fn only_the_innermost_guard_switches() {
    let start = kernel::identity();
    for scopes in legal_scopes(2) {
        let mut outer = scopes[0].assume(GroupChange::both(1001)).unwrap();
        let mut inner = scopes[1].assume(GroupChange::both(1002)).unwrap();
        let inside = kernel::identity();
        for gid in [1003, 1001, 1002] {
            assert!(matches!(outer.switch_to(gid), Err(Error::NotInnermost)));
            assert_eq!(kernel::identity(), inside);
        }
        inner.switch_to(1003).unwrap();
        drop(inner);
        assert_eq!(kernel::ids(), [1001, 1001, start.ids[2], 1001]);
        outer.switch_to(1004).unwrap();
        assert_eq!(kernel::ids(), [1004, 1004, start.ids[2], 1004]);

        // And where the outer one waits for the one that is switched.
        let mut inner = scopes[1].assume(GroupChange::both(1002)).unwrap();
        drop(outer);
        inner.switch_to(1005).unwrap();
        assert_eq!(kernel::ids(), [1005, 1005, start.ids[2], 1005]);
        drop(inner);
        assert_eq!(kernel::identity(), start);
    }
}

fn switching_needs_one_named_group() {
    let start = kernel::identity();
    for scope in SCOPES {
        for change in [
            GroupChange::new(),
            GroupChange::new().supplementary([2001]),
            GroupChange::new().real(1001).effective(1002),
            GroupChange::both(1001).real(1002).no_supplementary(),
        ] {
            let mut guard = scope.assume(change.clone()).unwrap();
            let inside = kernel::identity();
            for gid in [1001, 1002, 1003] {
                match guard.switch_to(gid) {
                    Err(Error::NotOneId { requested }) => assert_eq!(requested, change.to_string()),
                    other => panic!("{other:?}"),
                }
                assert_eq!(kernel::identity(), inside);
            }
            drop(guard);
            assert_eq!(kernel::identity(), start);
        }
    }
}

fn a_refused_switch_leaves_the_ids() {
    kernel::start_from([1, 2, 3, 4], &[7, 8]);
    let start = kernel::identity();
    for scope in SCOPES {
        for (_, change) in NAMED {
            let mut guard = scope.assume(change(1001)).unwrap();
            guard.switch_to(1002).unwrap();
            let inside = kernel::identity();
            assert!(matches!(guard.switch_to(u32::MAX), Err(Error::InvalidGid)));
            assert_eq!(kernel::identity(), inside);
            guard.switch_to(1003).unwrap();
            drop(guard);
            assert_eq!(kernel::identity(), start);
        }
    }
    // Without CAP_SETGID, on one of the ids that a set-group-ID program has.
    for scope in SCOPES {
        kernel::passes_in_child(|| {
            kernel::start_from([1, 2, 2, 2], &[]);
            let start = kernel::identity();
            kernel::give_up_capabilities(kernel::CAP_SETGID);
            let mut guard = scope.assume(GroupChange::new().effective(1)).unwrap();
            let inside = kernel::identity();
            assert!(matches!(
                guard.switch_to(1001),
                Err(Error::NotPermitted { .. })
            ));
            assert_eq!(kernel::identity(), inside);
            guard.switch_to(2).unwrap();
            assert_eq!(kernel::identity(), start);
            guard.switch_to(1).unwrap();
            drop(guard);
            assert_eq!(kernel::identity(), start);
        });
    }
}

/// Whether a thread without CAP_SETGID may go there and come back, worked out from what it may set: each id to one of the three it has.
fn comes_back(start: Ids, [real, effective]: [u32; 2]) -> bool {
    let [r, e, s, f] = start;
    let has = |gid: u32| [r, e, s].contains(&gid);
    let kept_by = |saved: u32| {
        [r, e, s]
            .iter()
            .all(|gid| [real, effective, saved].contains(gid))
    };
    has(real) && has(effective) && has(f) && [r, e, s].into_iter().any(kept_by)
}

fn without_cap_setgid_every_start_switches_within_its_ids() {
    let mut starts = 0;
    let targets = [1, 2, 3, 1009];
    for [r, e, s] in (0..27).map(|n| [n % 3 + 1, n / 3 % 3 + 1, n / 9 + 1]) {
        for f in [e, 1, 2, 3] {
            let start = [r, e, s, f];
            kernel::passes_in_child(|| {
                kernel::start_from(start, &[7, 8]);
                kernel::give_up_capabilities(kernel::CAP_SETGID);
                let start_identity = kernel::identity();
                for scope in SCOPES {
                    for (named, change) in NAMED {
                        for first in targets {
                            let told = || format!("{start:?}, {scope:?}, {named} {first}");
                            let outcome = scope.assume(change(first));
                            assert_eq!(
                                outcome.is_ok(),
                                comes_back(start, asked_for(named, first, start)),
                                "{}: {outcome:?}",
                                told()
                            );
                            let Ok(mut guard) = outcome else {
                                assert_eq!(kernel::identity(), start_identity, "{}", told());
                                continue;
                            };
                            let mut now_at = first;
                            for next in targets.into_iter().chain([first]) {
                                let before = kernel::identity();
                                let outcome = guard.switch_to(next);
                                let served = next == now_at
                                    || comes_back(start, asked_for(named, next, start));
                                assert_eq!(
                                    outcome.is_ok(),
                                    served,
                                    "{} to {next}: {outcome:?}",
                                    told()
                                );
                                let now = kernel::identity();
                                if served {
                                    now_at = next;
                                    let [real, effective] = asked_for(named, next, start);
                                    assert_eq!(
                                        [now.ids[0], now.ids[1], now.ids[3]],
                                        [real, effective, effective],
                                        "{} to {next}",
                                        told()
                                    );
                                } else {
                                    assert_eq!(now, before, "{} to {next}", told());
                                }
                            }
                            drop(guard);
                            assert_eq!(kernel::identity(), start_identity, "{}", told());
                        }
                    }
                }
            });
            starts += 1;
        }
    }
    println!("= {starts} start states without CAP_SETGID, 0 wrong");
}

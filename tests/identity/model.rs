//! Promises 1, 2, 5 and 6 together: random sequences, against a model of a few lines, judged by the kernel after each step.
//!
//! `PRIVILEGE_GUARD_SEQUENCES` gives the number of sequences of the long run, `PRIVILEGE_GUARD_SEED` (a number) its seed.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};

use crate::cases;
use crate::common::Case;
use crate::common::guard::{self, Guard, SCOPES, Scope, raw};
use crate::common::kernel::{self, Identity, Ids, Watched};
use privilege_guard::{ConflictingGuard, Error, GroupChange, RestoreError};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestError, TestRng, TestRunner};

pub const CASES: &[Case] = cases![
    Setgid: sequences_with_cap_setgid,
    Setgid: sequences_without_cap_setgid,
    NoSetgid: sequences_of_an_ordinary_user,
    Long: many_sequences_with_cap_setgid,
    Long: many_sequences_without_cap_setgid,
];

#[derive(Clone, Debug)]
enum Op {
    Assume(Change),
    /// Which of the guards at hand, and the group.
    Switch(usize, u32),
    End(usize, Ending),
    /// Inside `run`, which ends with some guards made there still alive.
    Run(usize, Vec<Op>),
    /// The sequence, and then a panic, which drops the guards made there.
    Panic(Vec<Op>),
    /// The sequence on a thread of its own.
    Thread(Vec<Op>),
    /// The sequence in a forked child, which then drops all guards that it can reach.
    Fork(Vec<Op>),
}

#[derive(Clone, Copy, Debug)]
enum Ending {
    Drop,
    Restore,
    Leak,
}

#[derive(Clone, Debug)]
struct Change {
    scope: Scope,
    real: Option<u32>,
    effective: Option<u32>,
    groups: Option<Vec<u32>>,
}

impl Change {
    fn asked(&self) -> GroupChange {
        guard::change(self.real, self.effective, self.groups.as_deref())
    }
}

#[derive(Clone, Debug)]
struct Start {
    ids: Ids,
    groups: Vec<u32>,
    cap: bool,
}

// ---- The model ----

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Refusal {
    InvalidGid,
    BusyProcessGuard,
    BusyThreadGuards,
    InsideThreadGuard,
    NotPermitted,
    Irreversible,
    Ambiguous,
    InnerGuardAlive,
}

#[derive(Clone, Debug)]
struct Frame {
    key: usize,
    change: Change,
    before: Identity,
    ended: bool,
}

#[derive(Debug)]
struct Thread {
    /// `None` in a forked child for threads of the parent, whose guards count as alive all the same.
    kernel: Option<Watched>,
    now: Identity,
    frames: Vec<Frame>,
}

/// The thread that acts is the last one; each other one waits for the one after it.
#[derive(Debug)]
struct Model {
    threads: Vec<Thread>,
    cap: bool,
    next_key: usize,
}

impl Model {
    fn acting(&mut self) -> &mut Thread {
        self.threads.last_mut().expect("a thread")
    }

    /// The three ids inside, the saved one being where an original that would be lost is kept.
    fn inside(&self, from: Ids, change: &Change) -> Result<[u32; 3], Refusal> {
        let [r, e, s, f] = from;
        let (real, effective) = (change.real.unwrap_or(r), change.effective.unwrap_or(e));
        let mut lost = vec![r, e, s];
        lost.retain(|gid| ![real, effective].contains(gid));
        lost.dedup();
        let saved = if lost.len() == 1 { lost[0] } else { s };
        let has = |gid: u32| [r, e, s].contains(&gid);
        match self.cap {
            false if !has(real) || !has(effective) => Err(Refusal::NotPermitted),
            false if lost.len() > 1 || !has(f) => Err(Refusal::Irreversible),
            _ => Ok([real, effective, saved]),
        }
    }

    fn may_begin(&self, scope: Scope) -> Result<(), Refusal> {
        let (own, others) = self.threads.split_last().expect("a thread");
        let has = |thread: &Thread, scope| {
            thread
                .frames
                .iter()
                .any(|frame| frame.change.scope == scope)
        };
        match scope {
            Scope::Process if has(own, Scope::Thread) => Err(Refusal::InsideThreadGuard),
            _ if !own.frames.is_empty() => Ok(()),
            _ if others.iter().any(|other| has(other, Scope::Process)) => {
                Err(Refusal::BusyProcessGuard)
            }
            Scope::Process if others.iter().any(|other| has(other, Scope::Thread)) => {
                Err(Refusal::BusyThreadGuards)
            }
            _ => Ok(()),
        }
    }

    fn assume(&mut self, change: &Change) -> Result<usize, Refusal> {
        let named = change
            .real
            .iter()
            .chain(&change.effective)
            .chain(change.groups.iter().flatten());
        if named.into_iter().any(|&gid| gid == u32::MAX) {
            return Err(Refusal::InvalidGid);
        }
        self.may_begin(change.scope)?;
        let before = self.acting().now.clone();
        let ids = match (change.real, change.effective) {
            (None, None) => None,
            _ => Some(self.inside(before.ids, change)?),
        };
        let groups = change.groups.clone().map(sorted);
        if !self.cap
            && groups
                .as_ref()
                .is_some_and(|groups| groups != &before.groups)
        {
            return Err(Refusal::NotPermitted);
        }
        self.set(change.scope, ids.map(|[r, e, s]| [r, e, s, e]), groups);
        self.next_key += 1;
        let key = self.next_key;
        self.acting().frames.push(Frame {
            key,
            change: change.clone(),
            before,
            ended: false,
        });
        Ok(key)
    }

    fn set(&mut self, scope: Scope, ids: Option<Ids>, groups: Option<Vec<u32>>) {
        let acting = self.threads.len() - 1;
        for (index, thread) in self
            .threads
            .iter_mut()
            .enumerate()
            .filter(|(index, _)| *index == acting || scope == Scope::Process)
        {
            if let Some([r, e, s, f]) = ids {
                thread.now.ids = [r, e, s, if index == acting { f } else { e }];
            }
            if let Some(groups) = &groups {
                thread.now.groups.clone_from(groups);
            }
        }
    }

    fn is_innermost(&mut self, key: usize) -> bool {
        self.acting()
            .frames
            .last()
            .is_some_and(|frame| frame.key == key)
    }

    fn switch(&mut self, key: usize, to: u32) -> Result<(), Refusal> {
        if !self.is_innermost(key) {
            return Err(Refusal::InnerGuardAlive);
        }
        let frame = self.acting().frames.last().expect("the innermost").clone();
        let Change {
            scope,
            real,
            effective,
            ..
        } = frame.change;
        let mut named = [real, effective].into_iter().flatten();
        let now = match (to, named.next(), named.next()) {
            (u32::MAX, ..) => return Err(Refusal::InvalidGid),
            (_, None, _) => return Err(Refusal::Ambiguous),
            (_, Some(one), Some(other)) if one != other => return Err(Refusal::Ambiguous),
            (_, Some(now), _) => now,
        };
        if to == now {
            return Ok(());
        }
        let change = Change {
            real: real.and(Some(to)),
            effective: effective.and(Some(to)),
            ..frame.change
        };
        let [r, e, s] = self.inside(frame.before.ids, &change)?;
        self.set(scope, Some([r, e, s, e]), None);
        self.acting()
            .frames
            .last_mut()
            .expect("the innermost")
            .change = change;
        Ok(())
    }

    /// Returns whether it was the innermost one, so that it was undone.
    fn end(&mut self, key: usize) -> bool {
        let innermost = self.is_innermost(key);
        self.acting()
            .frames
            .iter_mut()
            .filter(|frame| frame.key == key)
            .for_each(|frame| frame.ended = true);
        while self.acting().frames.last().is_some_and(|frame| frame.ended) {
            let frame = self.acting().frames.pop().expect("the last one");
            let Change {
                scope,
                real,
                effective,
                groups,
            } = frame.change;
            let ids = real.or(effective).map(|_| frame.before.ids);
            self.set(scope, ids, groups.map(|_| frame.before.groups));
        }
        innermost
    }
}

fn sorted(mut groups: Vec<u32>) -> Vec<u32> {
    groups.sort_unstable();
    groups
}

// ---- The same on the library and the kernel ----

type Held = Vec<(usize, Guard)>;

/// The panic of `Op::Panic`, told apart from a failed check.
struct Deliberate;

impl Model {
    fn check(&self, after: &dyn std::fmt::Debug) {
        shared().steps.fetch_add(1, Ordering::Relaxed);
        for (index, thread) in self.threads.iter().enumerate() {
            if let Some(kernel) = &thread.kernel {
                assert_eq!(
                    kernel.identity(),
                    thread.now,
                    "thread {index} after {after:?}, in {self:#?}"
                );
            }
        }
    }

    fn run(&mut self, ops: &[Op], held: &mut Held) {
        for op in ops {
            self.step(op, held);
            self.check(op);
        }
    }

    fn step(&mut self, op: &Op, held: &mut Held) {
        let pick = |which: usize, held: &Held| (!held.is_empty()).then(|| which % held.len());
        match op {
            Op::Assume(change) => {
                let before = self.acting().now.ids;
                let expected = self.assume(change);
                let outcome = change.scope.assume(change.asked());
                assert_eq!(
                    outcome.as_ref().map(drop).map_err(refusal),
                    expected.map(drop),
                    "{change:?} in {self:#?}"
                );
                if let (Ok(key), Ok(guard)) = (expected, outcome) {
                    assert_eq!(raw(guard.original()), before);
                    held.push((key, guard));
                }
            }
            Op::Switch(which, to) => {
                let Some(at) = pick(*which, held) else { return };
                let (key, guard) = &mut held[at];
                let expected = self.switch(*key, *to);
                assert_eq!(
                    guard.switch_to(*to).as_ref().map(drop).map_err(refusal),
                    expected,
                    "{op:?} in {self:#?}"
                );
            }
            Op::End(which, ending) => {
                let Some(at) = pick(*which, held) else { return };
                let (key, guard) = held.remove(at);
                self.finish(key, guard, *ending);
            }
            Op::Run(which, ops) => {
                let Some(at) = pick(*which, held) else { return };
                let (key, guard) = held.remove(at);
                self.run_inside(key, guard, ops);
            }
            Op::Panic(ops) => {
                let keys = Cell::new(vec![]);
                let outcome = catch_unwind(AssertUnwindSafe(|| {
                    let mut own = vec![];
                    self.run(ops, &mut own);
                    keys.set(own.iter().map(|(key, _)| *key).collect());
                    resume_unwind(Box::new(Deliberate));
                }));
                outcome.unwrap_or_else(|panic| {
                    if panic.is::<Deliberate>() {
                    } else {
                        resume_unwind(panic)
                    }
                });
                keys.into_inner()
                    .into_iter()
                    .for_each(|key| _ = self.end(key));
            }
            Op::Thread(ops) => self.on_a_thread(ops),
            Op::Fork(ops) => {
                let status = kernel::in_child(|| {
                    hang_is_a_failure();
                    let (_, others) = self.threads.split_last_mut().expect("a thread");
                    others.iter_mut().for_each(|other| other.kernel = None);
                    self.acting().kernel = Some(Watched::this_thread());
                    let outcome = catch_unwind(AssertUnwindSafe(|| {
                        self.check(op);
                        let mut own = vec![];
                        self.run(ops, &mut own);
                        self.end_all(held);
                        self.end_all(&mut own);
                    }));
                    // SAFETY: it does not return: what is above on the stack is the parent's.
                    unsafe { libc::_exit(i32::from(outcome.is_err())) }
                });
                assert!(status.success(), "{op:?}: {status}");
            }
        }
    }

    fn finish(&mut self, key: usize, guard: Guard, ending: Ending) {
        match ending {
            Ending::Leak => std::mem::forget(guard),
            Ending::Drop => {
                self.end(key);
                drop(guard);
            }
            Ending::Restore => {
                let is_restored = self.end(key);
                match guard.restore() {
                    Ok(()) => assert!(is_restored),
                    Err(RestoreError::NotInnermost) => assert!(!is_restored),
                    Err(error) => panic!("{error}"),
                }
            }
        }
    }

    fn run_inside(&mut self, key: usize, guard: Guard, ops: &[Op]) {
        let innermost = self.is_innermost(key);
        let mut left = None;
        let run = AssertUnwindSafe(|| {
            guard.run(|| {
                assert!(innermost, "an outer guard's function was called");
                let mut own = vec![];
                self.run(ops, &mut own);
                left = Some(own.iter().map(|(key, _)| *key).collect::<Vec<_>>());
                // What is returned is dropped where the guard could not be undone yet.
                own
            })
        });
        let outcome = if innermost {
            Ok(run())
        } else {
            catch_unwind(run)
        };
        assert_eq!((outcome.is_ok(), left.is_some()), (innermost, innermost));
        self.end(key);
        left.into_iter().flatten().for_each(|key| _ = self.end(key));
    }

    fn end_all(&mut self, held: &mut Held) {
        for (key, guard) in held.drain(..) {
            self.finish(key, guard, Ending::Drop);
            self.check(&Ending::Drop);
        }
    }

    fn on_a_thread(&mut self, ops: &[Op]) {
        let now = self.acting().now.clone();
        self.threads.push(Thread {
            kernel: None,
            now,
            frames: vec![],
        });
        let joined = std::thread::scope(|scope| {
            let run = || {
                self.acting().kernel = Some(Watched::this_thread());
                let mut held = vec![];
                self.run(ops, &mut held);
                self.end_all(&mut held);
            };
            scope.spawn(run).join()
        });
        joined.unwrap_or_else(|panic| resume_unwind(panic));
        self.acting().kernel = None;
        // What was leaked there.
        let leaked: Vec<_> = self.acting().frames.iter().map(|frame| frame.key).collect();
        leaked.into_iter().for_each(|key| _ = self.end(key));
        self.threads.pop();
        self.check(&"the end of a thread");
    }
}

fn refusal(error: &Error) -> Refusal {
    match error {
        Error::InvalidGid => Refusal::InvalidGid,
        Error::Busy {
            conflict: ConflictingGuard::ProcessGuard { .. },
        } => Refusal::BusyProcessGuard,
        Error::Busy {
            conflict: ConflictingGuard::ThreadGuards { .. },
        } => Refusal::BusyThreadGuards,
        Error::ProcessGuardInThreadGuard => Refusal::InsideThreadGuard,
        Error::NotPermitted { .. } => Refusal::NotPermitted,
        Error::Irreversible { .. } => Refusal::Irreversible,
        Error::NotOneId { .. } => Refusal::Ambiguous,
        Error::NotInnermost => Refusal::InnerGuardAlive,
        error => panic!("{error}"),
    }
}

fn hang_is_a_failure() {
    // SAFETY: a number; the signal ends the process.
    unsafe { libc::alarm(60) };
}

// ---- Sequences ----

fn group() -> impl Strategy<Value = u32> {
    prop_oneof![40 => 1..4u32, 8 => Just(0), 4 => Just(1004), 1 => Just(u32::MAX)]
}

fn change() -> impl Strategy<Value = Change> {
    let named = prop_oneof![
        6 => group().prop_map(|gid| (Some(gid), Some(gid))),
        3 => group().prop_map(|gid| (None, Some(gid))),
        3 => group().prop_map(|gid| (Some(gid), None)),
        2 => (group(), group()).prop_map(|(real, effective)| (Some(real), Some(effective))),
        1 => Just((None, None)),
    ];
    let groups = prop_oneof![4 => Just(None), 1 => Just(Some(vec![])), 2 => vec(7..10u32, 0..4).prop_map(Some)];
    (prop::sample::select(&SCOPES[..]), named, groups).prop_map(
        |(scope, (real, effective), groups)| Change {
            scope,
            real,
            effective,
            groups,
        },
    )
}

fn ops(longest: usize, depth: u32) -> BoxedStrategy<Vec<Op>> {
    let ending =
        prop_oneof![3 => Just(Ending::Drop), 2 => Just(Ending::Restore), 1 => Just(Ending::Leak)];
    let assume = change().prop_map(Op::Assume);
    let switch = (any::<usize>(), group()).prop_map(|(which, gid)| Op::Switch(which, gid));
    let end = (any::<usize>(), ending).prop_map(|(which, ending)| Op::End(which, ending));
    if depth == 0 {
        return vec(prop_oneof![5 => assume, 2 => switch, 3 => end], 0..longest).boxed();
    }
    let inner = || ops(longest / 2, depth - 1);
    let run = (any::<usize>(), inner()).prop_map(|(which, ops)| Op::Run(which, ops));
    let op = prop_oneof![
        10 => assume,
        4 => switch,
        6 => end,
        2 => run,
        1 => inner().prop_map(Op::Panic),
        2 => inner().prop_map(Op::Thread),
        1 => inner().prop_map(Op::Fork),
    ];
    vec(op, 0..longest).boxed()
}

fn start(cap: bool) -> impl Strategy<Value = Start> {
    let ids = [1..4u32, 1..4u32, 1..4u32].prop_flat_map(|[r, e, s]| {
        let filesystem = prop_oneof![6 => Just(e), 1 => Just(r), 1 => Just(s), 1 => Just(1005)];
        filesystem.prop_map(move |f| [r, e, s, f])
    });
    (ids, vec(7..10u32, 0..3)).prop_map(move |(ids, groups)| Start {
        ids,
        groups: sorted(groups),
        cap,
    })
}

fn sequences_with_cap_setgid() {
    compare(2_000, FIXED_SEED, start(true));
}

fn sequences_without_cap_setgid() {
    compare(2_000, FIXED_SEED, start(false));
}

fn sequences_of_an_ordinary_user() {
    let Identity { ids, groups } = kernel::identity();
    compare(
        1_000,
        FIXED_SEED,
        Just(Start {
            ids,
            groups,
            cap: false,
        }),
    );
}

fn many_sequences_with_cap_setgid() {
    compare(sequences_of_long_run(), seed_of_long_run(), start(true));
}

fn many_sequences_without_cap_setgid() {
    compare(sequences_of_long_run(), seed_of_long_run(), start(false));
}

/// Of the normal run, which says the same each time.
const FIXED_SEED: u64 = 1004;

fn sequences_of_long_run() -> u32 {
    std::env::var("PRIVILEGE_GUARD_SEQUENCES")
        .map_or(100_000, |number| number.parse().expect("a number"))
}

fn seed_of_long_run() -> u64 {
    let by_clock = || {
        std::time::SystemTime::UNIX_EPOCH
            .elapsed()
            .expect("a clock")
            .as_nanos() as u64
    };
    std::env::var("PRIVILEGE_GUARD_SEED")
        .map_or_else(|_| by_clock(), |number| number.parse().expect("a number"))
}

fn compare(sequences: u32, seed: u64, start: impl Strategy<Value = Start>) {
    // Before any fork.
    shared();
    std::panic::set_hook(Box::new(|panic| report_failure(&panic.to_string())));
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let config = Config {
        cases: sequences,
        failure_persistence: None,
        max_shrink_iters: 3_000,
        ..Config::default()
    };
    let mut runner =
        TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &bytes));
    let outcome = runner.run(&(start, ops(16, 2)), |(start, ops)| {
        let status = kernel::in_child(|| in_a_process_of_its_own(&start, &ops));
        if status.success() {
            Ok(())
        } else {
            Err(TestCaseError::fail(format!("{status}: {}", take_failure())))
        }
    });
    match outcome {
        Ok(()) => println!(
            "= {sequences} sequences, {} steps, 0 wrong (seed {seed})",
            shared().steps.load(Ordering::Relaxed)
        ),
        Err(TestError::Fail(reason, (start, ops))) => {
            println!("seed {seed}: {start:#?}\n{ops:#?}\n{reason}");
            std::process::exit(1)
        }
        Err(error) => {
            println!("seed {seed}: {error}");
            std::process::exit(1)
        }
    }
}

fn in_a_process_of_its_own(start: &Start, ops: &[Op]) -> i32 {
    hang_is_a_failure();
    if kernel::capabilities().effective & kernel::CAP_SETGID != 0 {
        kernel::start_from(start.ids, &start.groups);
    }
    if !start.cap {
        kernel::give_up_capabilities(kernel::CAP_SETGID);
    }
    let now = kernel::identity();
    let first = Thread {
        kernel: Some(Watched::this_thread()),
        now: now.clone(),
        frames: vec![],
    };
    let mut model = Model {
        threads: vec![first],
        cap: start.cap,
        next_key: 0,
    };
    model.on_a_thread(ops);
    // Not as the model has it, but as it was.
    let after = kernel::identity();
    let [r, e, s, f] = now.ids;
    assert!(
        after.ids == now.ids || after.ids == [r, e, s, e],
        "{after:?} where {f} was the filesystem id"
    );
    assert_eq!(after.groups, now.groups);
    0
}

// ---- What a child tells its parent, in memory that they share ----

struct Shared {
    steps: AtomicUsize,
    length: AtomicUsize,
    text: [AtomicU8; 1 << 16],
}

fn shared() -> &'static Shared {
    static SHARED: OnceLock<&Shared> = OnceLock::new();
    SHARED.get_or_init(|| {
        let (access, kind) = (
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED | libc::MAP_ANONYMOUS,
        );
        // SAFETY: new memory of this size, which stays; zero is a value of every field.
        unsafe {
            let memory = libc::mmap(
                std::ptr::null_mut(),
                size_of::<Shared>(),
                access,
                kind,
                -1,
                0,
            );
            assert_ne!(memory, libc::MAP_FAILED);
            &*memory.cast::<Shared>()
        }
    })
}

/// The first failure counts: those after it follow from it.
fn report_failure(text: &str) {
    let length = text.len().min(shared().text.len());
    if shared()
        .length
        .compare_exchange(0, length, Ordering::Relaxed, Ordering::Relaxed)
        .is_ok()
    {
        shared()
            .text
            .iter()
            .zip(text.bytes())
            .for_each(|(to, byte)| to.store(byte, Ordering::Relaxed));
    }
}

fn take_failure() -> String {
    let length = shared().length.swap(0, Ordering::Relaxed);
    let bytes: Vec<u8> = shared().text[..length]
        .iter()
        .map(|byte| byte.load(Ordering::Relaxed))
        .collect();
    String::from_utf8_lossy(&bytes).into_owned()
}

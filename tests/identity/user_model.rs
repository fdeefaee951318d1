//! The model of the kernel that the planner's unit tests use, compared with the running kernel.
//!
//! Each transition is one raw system call on a thread that was put into the start state. The result
//! of the call and the whole state afterwards must be those of the model. So the planner's unit tests,
//! which execute its plans on the model, say something about the kernel.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::cases;
use crate::common::{Case, kernel};
use crate::kernel_model::{CAP_DAC_OVERRIDE, CAP_SETGID, CAP_SETPCAP, CAP_SETUID, Call, Cred};

pub const CASES: &[Case] = cases![
    Root: every_transition_of_the_small_domain_is_that_of_the_kernel,
    Root: random_transitions_are_those_of_the_kernel,
    Root + user_namespace: transitions_in_a_user_namespace_with_user_0_are_those_of_the_kernel,
    Root + user_namespace: transitions_in_a_user_namespace_without_user_0_are_those_of_the_kernel,
];

const CAP_NET_RAW: u64 = 1 << 13;
/// One of the capabilities that `setfsuid` moves, in the second word of `capset`.
const CAP_MAC_OVERRIDE: u64 = 1 << 32;

/// An id that the user namespaces of these tests do not map. It reads as 65534.
const UNMAPPED: u32 = 70_000;
const OVERFLOW: u32 = 65_534;

const FOREIGN: u32 = 9;

/// The model does not have it: it changes none of these calls.
const NOROOT: u64 = 1 << 0;
const NO_SETUID_FIXUP: u64 = 1 << 2;
const KEEP_CAPS: u64 = 1 << 4;
const NO_CAP_AMBIENT_RAISE: u64 = 1 << 6;

// ---- The kernel ----

fn syscall(number: libc::c_long, arguments: [u64; 4]) -> Result<u64, i32> {
    let [a, b, c, d] = arguments;
    // SAFETY: used with numbers, and with pointers to what the call reads and writes.
    match unsafe { libc::syscall(number, a, b, c, d, 0) } {
        -1 => Err(std::io::Error::last_os_error()
            .raw_os_error()
            .expect("an errno")),
        result => Ok(result as u64),
    }
}

fn prctl(option: libc::c_int, arguments: [u64; 2]) -> Result<u64, i32> {
    syscall(
        libc::SYS_prctl,
        [option as u64, arguments[0], arguments[1], 0],
    )
}

fn id(id: Option<u32>) -> u64 {
    u64::from(id.unwrap_or(u32::MAX))
}

fn number(capability: u64) -> u64 {
    u64::from(capability.trailing_zeros())
}

/// `_LINUX_CAPABILITY_VERSION_3`, and the calling thread.
const HEADER: [u32; 2] = [0x2008_0522, 0];

fn capget() -> [u64; 3] {
    let mut data = [0_u32; 6];
    let arguments = [HEADER.as_ptr() as u64, data.as_mut_ptr() as u64, 0, 0];
    syscall(libc::SYS_capget, arguments).expect("capget");
    [0, 1, 2].map(|set| u64::from(data[set]) | u64::from(data[set + 3]) << 32)
}

fn capset([effective, permitted, inheritable]: [u64; 3]) -> Result<u64, i32> {
    let low = [effective, permitted, inheritable].map(|set| set as u32);
    let high = [effective, permitted, inheritable].map(|set| (set >> 32) as u32);
    let data = [low, high].concat();
    syscall(
        libc::SYS_capset,
        [HEADER.as_ptr() as u64, data.as_ptr() as u64, 0, 0],
    )
}

/// Makes the call on the calling thread.
fn make(call: Call) -> Result<(), i32> {
    let ambient = |operation: libc::c_int, capability| {
        prctl(libc::PR_CAP_AMBIENT, [operation as u64, capability])
    };
    let result = match call {
        Call::SetResUid(uid, euid, suid) => {
            syscall(libc::SYS_setresuid, [id(uid), id(euid), id(suid), 0])
        }
        Call::SetFsUid(fsuid) => syscall(libc::SYS_setfsuid, [id(Some(fsuid)), 0, 0, 0]),
        Call::CapSet {
            effective,
            permitted,
            inheritable,
        } => capset([effective, permitted, inheritable]),
        Call::AmbientRaise(capability) => ambient(libc::PR_CAP_AMBIENT_RAISE, number(capability)),
        Call::AmbientLower(capability) => ambient(libc::PR_CAP_AMBIENT_LOWER, number(capability)),
        Call::AmbientClearAll => ambient(libc::PR_CAP_AMBIENT_CLEAR_ALL, 0),
        Call::SetKeepCaps(keep_caps) => prctl(libc::PR_SET_KEEPCAPS, [u64::from(keep_caps), 0]),
    };
    result.map(drop)
}

/// What can be read of a thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Seen {
    /// Real, effective, saved, filesystem.
    ids: [u32; 4],
    /// Effective, permitted, inheritable.
    sets: [u64; 3],
    ambient: u64,
    securebits: u64,
}

/// The calling thread as the kernel shows it.
fn seen() -> Seen {
    let mut ids = [0_u32; 3];
    let pointers = [0, 1, 2].map(|index| (&raw mut ids[index]) as u64);
    syscall(
        libc::SYS_getresuid,
        [pointers[0], pointers[1], pointers[2], 0],
    )
    .expect("getresuid");
    let filesystem = syscall(libc::SYS_setfsuid, [id(None), 0, 0, 0]).expect("setfsuid") as u32;
    let is_ambient = |capability: &u64| {
        let is_set = [libc::PR_CAP_AMBIENT_IS_SET as u64, number(*capability)];
        prctl(libc::PR_CAP_AMBIENT, is_set) == Ok(1)
    };
    let sets = capget();
    // An ambient capability is both permitted and inheritable (`capabilities(7)`).
    let may_be_ambient = |capability: &u64| (sets[1] | sets[2]) & capability != 0;
    let ambient = CAPABILITIES.into_iter().filter(may_be_ambient);
    Seen {
        ids: [ids[0], ids[1], ids[2], filesystem],
        sets,
        ambient: ambient.filter(is_ambient).sum(),
        securebits: prctl(libc::PR_GET_SECUREBITS, [0; 2]).expect("PR_GET_SECUREBITS"),
    }
}

/// A thread in this state as the kernel should show it.
fn shown(cred: &Cred, is_noroot: bool) -> Seen {
    let read = |id: u32| if id == UNMAPPED { OVERFLOW } else { id };
    Seen {
        ids: [cred.uid, cred.euid, cred.suid, cred.fsuid].map(read),
        sets: [cred.cap_effective, cred.cap_permitted, cred.cap_inheritable],
        ambient: cred.cap_ambient,
        securebits: securebits(cred) | if is_noroot { NOROOT } else { 0 },
    }
}

fn securebits(cred: &Cred) -> u64 {
    let bit = |is_set: bool, bit| if is_set { bit } else { 0 };
    bit(cred.no_setuid_fixup, NO_SETUID_FIXUP)
        | bit(cred.keep_caps, KEEP_CAPS)
        | bit(cred.no_cap_ambient_raise, NO_CAP_AMBIENT_RAISE)
}

/// Puts the calling thread into this state. It must have all capabilities of the state and
/// CAP_SETUID and CAP_SETPCAP, and no securebit. An id without a mapping must be there already.
fn set_up(cred: &Cred, is_noroot: bool) {
    prctl(libc::PR_SET_SECUREBITS, [NO_SETUID_FIXUP, 0]).expect("PR_SET_SECUREBITS");
    for capability in CAPABILITIES
        .into_iter()
        .filter(|bit| cred.cap_bset & bit == 0)
    {
        prctl(libc::PR_CAPBSET_DROP, [number(capability), 0]).expect("PR_CAPBSET_DROP");
    }
    let named = |id: u32| Some(id).filter(|&id| id != UNMAPPED);
    let ids = Call::SetResUid(named(cred.uid), named(cred.euid), named(cred.suid));
    make(ids).expect("setresuid");
    make(Call::SetFsUid(cred.fsuid)).expect("setfsuid");
    let permitted = cred.cap_permitted | CAP_SETPCAP;
    // An inheritable capability may be outside the bounding set only if it was inheritable before.
    capset([permitted, permitted, cred.cap_inheritable]).expect("capset");
    for capability in CAPABILITIES
        .into_iter()
        .filter(|bit| cred.cap_ambient & bit != 0)
    {
        make(Call::AmbientRaise(capability)).expect("PR_CAP_AMBIENT_RAISE");
    }
    let expected = shown(cred, is_noroot);
    prctl(libc::PR_SET_SECUREBITS, [expected.securebits, 0]).expect("PR_SET_SECUREBITS");
    capset([cred.cap_effective, cred.cap_permitted, cred.cap_inheritable]).expect("capset");
    assert_eq!(seen(), expected, "the start state");
}

/// The capabilities of these tests.
const CAPABILITIES: [u64; 6] = [
    CAP_DAC_OVERRIDE,
    CAP_SETGID,
    CAP_SETUID,
    CAP_SETPCAP,
    CAP_NET_RAW,
    CAP_MAC_OVERRIDE,
];

// ---- The comparison ----

/// How many transitions were compared, and those that differ.
#[derive(Default)]
struct Tally {
    transitions: usize,
    differences: Vec<String>,
}

impl Tally {
    fn add(&mut self, other: Tally) {
        self.transitions += other.transitions;
        self.differences.extend(other.differences);
    }

    /// Prints the totals, and fails if a transition differs.
    fn report(self, domain: &str, transitions: usize) {
        let Tally {
            transitions: compared,
            differences,
        } = self;
        for difference in differences.iter().take(20) {
            println!("{difference}");
        }
        println!(
            "= {domain}: {compared} transitions, {} differ",
            differences.len()
        );
        assert_eq!((compared, differences.len()), (transitions, 0));
    }
}

/// Makes one call on the calling thread, which is in this state. Returns the state afterwards if it is
/// that of the model.
fn compare(cred: &Cred, call: Call, is_noroot: bool, tally: &mut Tally) -> Option<Cred> {
    let expected = cred.call(call);
    let result = make(call);
    let after = expected.unwrap_or(*cred);
    let (seen, shown) = (seen(), shown(&after, is_noroot));
    tally.transitions += 1;
    if result == expected.map(drop) && seen == shown {
        return Some(after);
    }
    tally.differences.push(format!(
        "{call:?} from {cred:?}: the kernel {result:?}, {seen:?}; the model {expected:?}, {shown:?}"
    ));
    None
}

fn on_a_thread(f: impl FnOnce() + Send) {
    std::thread::scope(|scope| {
        std::thread::Builder::new()
            .stack_size(1 << 16)
            .spawn_scoped(scope, f)
            .expect("a thread");
    });
}

/// Runs `f` on two threads, and adds up what it returns.
fn on_two_threads(f: impl Fn() -> Tally + Sync) -> Tally {
    std::thread::scope(|scope| {
        let other = scope.spawn(&f);
        let mut tally = f();
        tally.add(other.join().expect("a tally"));
        tally
    })
}

// ---- The small domain ----

/// Where one capability is: effective, permitted, inheritable and ambient.
fn give(cred: &mut Cred, capability: u64, sets: [bool; 3]) {
    let [effective, permitted, ambient] = sets.map(|is_in| if is_in { capability } else { 0 });
    cred.cap_effective |= effective;
    cred.cap_permitted |= permitted;
    cred.cap_inheritable |= ambient;
    cred.cap_ambient |= ambient;
}

const ABSENT: [bool; 3] = [false, false, false];
const PERMITTED: [bool; 3] = [false, true, false];
const PERMITTED_AND_AMBIENT: [bool; 3] = [false, true, true];
const EFFECTIVE: [bool; 3] = [true, true, false];
const EFFECTIVE_AND_AMBIENT: [bool; 3] = [true, true, true];

/// All start states but for the ids.
fn small_domain(unmapped: &'static [u32]) -> Vec<Cred> {
    let securebits = [
        Cred::default(),
        Cred {
            keep_caps: true,
            ..Cred::default()
        },
        Cred {
            no_setuid_fixup: true,
            ..Cred::default()
        },
        Cred {
            keep_caps: true,
            no_cap_ambient_raise: true,
            ..Cred::default()
        },
    ];
    let mut all = Vec::new();
    for securebits in securebits {
        for setuid in [
            ABSENT,
            PERMITTED,
            PERMITTED_AND_AMBIENT,
            EFFECTIVE,
            EFFECTIVE_AND_AMBIENT,
        ] {
            for filesystem in [ABSENT, PERMITTED, EFFECTIVE_AND_AMBIENT] {
                let mut cred = Cred {
                    unmapped,
                    cap_bset: bounding_set(),
                    ..securebits
                };
                give(&mut cred, CAP_SETUID, setuid);
                give(&mut cred, CAP_DAC_OVERRIDE, filesystem);
                all.push(cred);
            }
        }
    }
    all
}

fn bounding_set() -> u64 {
    let is_in = |capability: &u64| prctl(libc::PR_CAPBSET_READ, [number(*capability), 0]) == Ok(1);
    CAPABILITIES.into_iter().filter(is_in).sum()
}

/// The calls of the small domain.
fn small_calls(cred: &Cred, ids: &[u32]) -> Vec<Call> {
    let choices: Vec<Option<u32>> = ids.iter().copied().map(Some).chain([None]).collect();
    let mut calls: Vec<Call> = ids.iter().copied().map(Call::SetFsUid).collect();
    for &uid in &choices {
        for &euid in &choices {
            calls.extend(choices.iter().map(|&suid| Call::SetResUid(uid, euid, suid)));
        }
    }
    let sets = [
        0,
        CAP_SETUID,
        CAP_DAC_OVERRIDE,
        CAP_SETUID | CAP_DAC_OVERRIDE,
    ];
    for effective in sets {
        for permitted in sets {
            let inheritable = cred.cap_inheritable;
            calls.push(Call::CapSet {
                effective,
                permitted,
                inheritable,
            });
        }
        let Cred {
            cap_effective,
            cap_permitted: permitted,
            ..
        } = *cred;
        calls.push(Call::CapSet {
            effective: cap_effective,
            permitted,
            inheritable: effective,
        });
    }
    for capability in [CAP_SETUID, CAP_DAC_OVERRIDE] {
        calls.extend([
            Call::AmbientRaise(capability),
            Call::AmbientLower(capability),
        ]);
    }
    calls.extend([
        Call::AmbientClearAll,
        Call::SetKeepCaps(true),
        Call::SetKeepCaps(false),
    ]);
    calls
}

/// The calls of each start state that were not made yet, the next one last.
///
/// A thread goes on from the state that a call led to, because a new thread for each call would take
/// most of the time.
struct Untried {
    starts: Vec<Cred>,
    calls: HashMap<u64, Vec<Call>>,
}

impl Untried {
    fn new() -> Self {
        let ids = [0, 1, 2, FOREIGN];
        let mut starts = Vec::new();
        for cred in small_domain(&[]) {
            starts.extend((0..108).map(|index| Cred {
                uid: ids[index / 36],
                euid: ids[index / 12 % 3],
                suid: ids[index / 4 % 3],
                fsuid: ids[index % 4],
                ..cred
            }));
        }
        let mut calls: HashMap<u64, Vec<Call>> = starts
            .iter()
            .map(|start| (key(start), Vec::new()))
            .collect();
        assert_eq!(calls.len(), starts.len());
        for start in &starts {
            let mut all = small_calls(start, &ids);
            // First those that change nothing, then those that can be followed by others.
            all.sort_by_cached_key(|&call| match start.call(call) {
                Ok(after) if after != *start => {
                    let is_lost = after.cap_permitted != start.cap_permitted
                        || after.cap_ambient != start.cap_ambient;
                    Reverse(
                        1 + usize::from(is_lost) + usize::from(!calls.contains_key(&key(&after))),
                    )
                }
                _ => Reverse(0),
            });
            calls.insert(key(start), all);
        }
        Untried { starts, calls }
    }

    /// A state with calls that were not made.
    fn start(&mut self) -> Option<Cred> {
        while let Some(&start) = self.starts.last() {
            if !self.calls[&key(&start)].is_empty() {
                return Some(start);
            }
            self.starts.pop();
        }
        None
    }

    fn call(&mut self, cred: &Cred) -> Option<Call> {
        self.calls.get_mut(&key(cred))?.pop()
    }
}

/// A number for each state of the small domain: hashing the whole state takes long.
fn key(cred: &Cred) -> u64 {
    let ids = [cred.uid, cred.euid, cred.suid, cred.fsuid].map(|id| (u64::from(id), 4));
    let sets = [
        cred.cap_effective,
        cred.cap_permitted,
        cred.cap_inheritable,
        cred.cap_ambient,
    ];
    // Of these capabilities no bit is above the one of CAP_SETUID.
    let sets = sets.map(|set| (set, 8));
    let bits = [
        cred.no_setuid_fixup,
        cred.keep_caps,
        cred.no_cap_ambient_raise,
    ];
    let bits = bits.map(|bit| (u64::from(bit), 1));
    let parts = [ids.as_slice(), &sets, &bits].concat();
    parts
        .into_iter()
        .fold(0, |key, (part, width)| key << width | part)
}

/// Brings the calling thread from one start state to another, if a few calls do. They are compared
/// too, but not counted.
fn go(from: Cred, to: Cred, tally: &mut Tally) -> Option<Cred> {
    let sets = |effective| Call::CapSet {
        effective,
        permitted: to.cap_permitted,
        inheritable: to.cap_inheritable,
    };
    let calls = [
        sets(to.cap_permitted),
        Call::SetKeepCaps(to.keep_caps),
        Call::SetResUid(Some(to.uid), Some(to.euid), Some(to.suid)),
        sets(to.cap_permitted),
        Call::SetFsUid(to.fsuid),
        Call::AmbientRaise(CAP_SETUID),
        Call::AmbientRaise(CAP_DAC_OVERRIDE),
        sets(to.cap_effective),
    ];
    let calls = calls.into_iter().filter(|call| match call {
        Call::AmbientRaise(capability) => to.cap_ambient & capability != 0,
        _ => true,
    });
    let arrives = calls.clone().try_fold(from, |cred, call| cred.call(call)) == Ok(to);
    let mut way = Tally::default();
    let end = arrives.then(|| {
        let mut calls = calls;
        calls.try_fold(from, |cred, call| compare(&cred, call, false, &mut way))
    });
    tally.differences.extend(way.differences);
    end.flatten()
}

fn every_transition_of_the_small_domain_is_that_of_the_kernel() {
    let untried = Mutex::new(Untried::new());
    let lock = || untried.lock().expect("the calls");
    let tally = on_two_threads(|| {
        let mut tally = Tally::default();
        loop {
            let Some(start) = lock().start() else {
                return tally;
            };
            on_a_thread(|| {
                set_up(&start, false);
                let mut cred = start;
                loop {
                    // Not in the `match`, which would hold the lock.
                    let call = lock().call(&cred);
                    let after = match call {
                        Some(call) => compare(&cred, call, false, &mut tally),
                        None => {
                            let next = lock().start();
                            next.and_then(|next| go(cred, next, &mut tally))
                        }
                    };
                    match after {
                        Some(after) => cred = after,
                        None => break,
                    }
                }
            });
        }
    });
    // Of each state 125 calls of setresuid, 4 of setfsuid, 20 of capset, 7 of prctl.
    tally.report("the small domain", 60 * 108 * 156);
}

// ---- Random walks ----

/// xorshift64*.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % bound
    }

    fn of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len())]
    }

    fn chance(&mut self) -> bool {
        self.below(2) == 0
    }

    fn subset(&mut self, set: u64) -> u64 {
        CAPABILITIES
            .into_iter()
            .filter(|bit| set & bit != 0 && self.chance())
            .sum()
    }

    /// A state with these ids, and with these ids without a mapping.
    fn cred(&mut self, ids: &[u32], unmapped: &'static [u32], all: u64) -> Cred {
        let [uid, euid, suid] = [0; 3].map(|_| self.of(ids));
        // No call sets the filesystem id to an id without a mapping.
        let odd = self.of(ids);
        let fsuid = if odd == UNMAPPED || self.chance() {
            euid
        } else {
            odd
        };
        let cap_bset = if self.chance() { all } else { self.subset(all) };
        let cap_permitted = self.subset(all);
        let cap_inheritable = self.subset(cap_bset);
        Cred {
            uid,
            euid,
            suid,
            fsuid,
            cap_effective: self.subset(cap_permitted),
            cap_permitted,
            cap_inheritable,
            cap_ambient: self.subset(cap_permitted & cap_inheritable),
            cap_bset,
            no_setuid_fixup: self.below(4) == 0,
            keep_caps: self.chance(),
            no_cap_ambient_raise: self.below(4) == 0,
            unmapped,
        }
    }

    fn call(&mut self, cred: &Cred, ids: &[u32]) -> Call {
        let mut id = || {
            if self.below(3) == 0 {
                None
            } else {
                Some(self.of(ids))
            }
        };
        let named = [id(), id(), id()];
        match self.below(12) {
            0..5 => Call::SetResUid(named[0], named[1], named[2]),
            5..7 => Call::SetFsUid(self.of(ids)),
            7 => Call::CapSet {
                effective: self.subset(cred.cap_permitted),
                permitted: cred.cap_permitted,
                inheritable: cred.cap_inheritable,
            },
            8 => {
                let permitted = self.subset(u64::MAX) | cred.cap_permitted & CAP_SETUID;
                Call::CapSet {
                    effective: self.subset(permitted),
                    permitted,
                    inheritable: self.subset(u64::MAX),
                }
            }
            9 => Call::AmbientRaise(self.of(&CAPABILITIES)),
            10 if self.chance() => Call::AmbientLower(self.of(&CAPABILITIES)),
            10 => Call::AmbientClearAll,
            _ => Call::SetKeepCaps(self.chance()),
        }
    }
}

const STEPS: usize = 24;

/// Walks from random states with these ids, [`STEPS`] calls each. The calls also name ids without a
/// mapping.
fn walk(domain: &str, seed: u64, walks: usize, ids: &[u32], unmapped: &'static [u32]) {
    let named = [ids, unmapped].concat();
    let all = bounding_set();
    let next = AtomicUsize::new(0);
    let tally = on_two_threads(|| {
        let mut tally = Tally::default();
        loop {
            let walk = next.fetch_add(1, Ordering::Relaxed);
            if walk >= walks {
                return tally;
            }
            on_a_thread(|| {
                let mut random = Random(seed ^ (walk as u64 + 1) << 20);
                // The first numbers of seeds that differ little are alike.
                (0..8).for_each(|_| _ = random.below(2));
                let start = random.cred(ids, unmapped, all);
                let is_noroot = random.below(4) == 0;
                set_up(&start, is_noroot);
                let mut cred = start;
                for step in 0..STEPS {
                    let call = random.call(&cred, &named);
                    match compare(&cred, call, is_noroot, &mut tally) {
                        Some(after) => cred = after,
                        None => {
                            let difference = tally.differences.last_mut().expect("a difference");
                            *difference += &format!(" (walk {walk}, step {step})");
                            break;
                        }
                    }
                }
            });
        }
    });
    tally.report(&format!("{domain}, seed {seed:#x}"), walks * STEPS);
}

fn random_transitions_are_those_of_the_kernel() {
    let ids = [0, 1, 2, 3, FOREIGN, u32::MAX - 1];
    walk("random", 0x9e37_79b9_7f4a_7c15, 5_000, &ids, &[]);
}

// ---- User namespaces ----

/// Runs `f` in a forked child in a new user namespace with this map, as a user without a mapping.
fn in_user_namespace(uid_map: &str, f: impl FnOnce()) {
    let (mut inside, mut outside) = UnixStream::pair().expect("a pair of sockets");
    let map = uid_map.to_owned();
    // The child that maps is the parent of the one that is mapped.
    kernel::passes_in_child(|| {
        // SAFETY: this process has one thread.
        match unsafe { libc::fork() } {
            0 => {
                kernel::enter_user_namespace();
                inside.write_all(&[0]).expect("a socket");
                inside.read_exact(&mut [0]).expect("a socket");
                let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(f));
                std::process::exit(i32::from(result.is_err()));
            }
            child => {
                outside.read_exact(&mut [0]).expect("a socket");
                std::fs::write(format!("/proc/{child}/uid_map"), map).expect("uid_map");
                outside.write_all(&[0]).expect("a socket");
                let mut status = 0;
                // SAFETY: a valid pointer.
                assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
                assert_eq!(status, 0);
            }
        }
    });
}

fn transitions_in_a_user_namespace_with_user_0_are_those_of_the_kernel() {
    in_user_namespace("0 100000 10000", || {
        let ids = [0, 1, 2, FOREIGN, UNMAPPED];
        let seed = 0x0123_4567_89ab_cdef;
        walk("user 0 mapped", seed, 2_500, &ids, &[UNMAPPED]);
    });
}

fn transitions_in_a_user_namespace_without_user_0_are_those_of_the_kernel() {
    in_user_namespace("1 100001 9999", || {
        let ids = [1, 2, FOREIGN, UNMAPPED];
        let seed = 0xfedc_ba98_7654_3210;
        walk("user 0 not mapped", seed, 2_500, &ids, &[0, UNMAPPED]);
    });
}

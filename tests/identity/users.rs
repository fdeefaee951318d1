//! Guards of the user ids and the capability sets, judged by what the kernel shows.

use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::cases;
use crate::common::kernel::{self, CAP_SETUID, Capabilities, Privileges, State};
use crate::common::sandbox::{self, Answer};
use crate::common::sibling::Sibling;
use crate::common::{Case, calls, subscriber};
use crate::kernel_model::{CAP_DAC_OVERRIDE, Call, Cred};
use crate::kernel_search::{Config, DOMAIN, FOREIGN, Fixup, Profile as Possession, Search};
use nix::errno::Errno;
use privilege_guard::{
    Error, GroupGuard, IrreversibleReason, RestoreError, Thread, Unrestored, UserChange, UserGuard,
    UserIds,
};

pub const CASES: &[Case] = cases![
    Root: walk,
    Root: walk_beside_another_thread,
    Root: every_thread_follows_and_is_restored,
    Root: a_thread_that_differs_is_refused,
    Root: users_and_groups_nest_in_any_order,
    Root: switching_goes_through_the_original_user,
    Root: a_switch_keeps_the_ambient_set_for_the_restore,
    Root: an_effective_user_cannot_signal_the_process,
    Root: a_thread_that_libc_skips_is_found,
    Root: each_call_of_a_change_refused_or_faked,
    Root: each_call_of_a_restore_refused_or_faked,
    Root + user_namespace: an_unmapped_id_that_would_have_to_be_restored,
    Root: errno_is_preserved,
];

/// All that a guard of users must restore.
fn everything() -> (State, Privileges) {
    let threads = kernel::all_threads();
    (kernel::state(), threads[0].privileges.clone())
}

// ---- The walk

#[derive(Clone, Copy, Debug)]
enum Profile {
    Root,
    /// CAP_SETUID is not effective, other capabilities are.
    ReducedRoot,
    /// CAP_SETUID and CAP_SETGID are effective, as by file capabilities.
    FileCapabilities,
    /// The same, only permitted.
    PermittedOnly,
    /// The same, effective and CAP_SETUID ambient.
    Ambient,
    None,
}

const PROFILES: [Profile; 6] = [
    Profile::Root,
    Profile::ReducedRoot,
    Profile::FileCapabilities,
    Profile::PermittedOnly,
    Profile::Ambient,
    Profile::None,
];

const NOROOT: libc::c_ulong = 1 << 0;
const NO_SETUID_FIXUP: libc::c_ulong = 1 << 2;
const KEEP_CAPS: libc::c_ulong = 1 << 4;
const SECUREBITS: [libc::c_ulong; 4] = [0, KEEP_CAPS, NO_SETUID_FIXUP, NOROOT];

/// User 0, two users that start states have, one that none has, and -1.
const TARGETS: [u32; 5] = [0, 1, 2, FOREIGN, u32::MAX];

/// A thread's start state.
#[derive(Clone, Copy, Debug)]
struct Start {
    profile: Profile,
    securebits: libc::c_ulong,
    ids: [u32; 4],
}

/// All real, effective and saved ids among three users, the filesystem id equal to the effective one
/// or odd.
fn all_ids() -> Vec<[u32; 4]> {
    let triples = (0..27u32).map(|n| [n / 9, n / 3 % 3, n % 3]);
    triples
        .flat_map(|[r, e, s]| [[r, e, s, e], [r, e, s, (e + 1) % 3]])
        .collect()
}

fn all_starts() -> Vec<Start> {
    let mut all = Vec::new();
    for profile in PROFILES {
        for securebits in SECUREBITS {
            all.extend(all_ids().into_iter().map(|ids| Start {
                profile,
                securebits,
                ids,
            }));
        }
    }
    all
}

fn securebits() -> libc::c_ulong {
    // SAFETY: no pointers.
    let bits = unsafe { libc::prctl(libc::PR_GET_SECUREBITS) };
    bits.try_into().expect("PR_GET_SECUREBITS")
}

/// What only the calling thread can read: its securebits, death signal and blocked signals.
fn own_state() -> (libc::c_ulong, i32, u64) {
    let mut blocked = 0u64;
    // SAFETY: a valid pointer to as many bytes as the last argument says.
    let read = unsafe {
        let (no_set, set) = (std::ptr::null::<u64>(), &raw mut blocked);
        libc::syscall(libc::SYS_rt_sigprocmask, libc::SIG_BLOCK, no_set, set, 8)
    };
    assert_eq!(read, 0);
    (securebits(), kernel::death_signal(), blocked)
}

/// Puts the calling thread of a forked child into this state, without the kernel's fix-ups on the way.
fn enter(start: Start) {
    let all = kernel::capabilities().permitted;
    let some = CAP_SETUID | kernel::CAP_SETGID;
    let [real, effective, saved, filesystem] = start.ids;
    kernel::set_securebits(NO_SETUID_FIXUP);
    kernel::raw_setresuid(Some(real), Some(effective), Some(saved)).expect("setresuid");
    // SAFETY: numbers only.
    unsafe { libc::syscall(libc::SYS_setfsuid, filesystem) };
    kernel::set_securebits(start.securebits);
    let sets = |effective, permitted, inheritable| Capabilities {
        effective,
        permitted,
        inheritable,
    };
    match start.profile {
        Profile::Root => {}
        Profile::ReducedRoot => kernel::set_capabilities(sets(all & !CAP_SETUID, all, 0)),
        Profile::FileCapabilities => kernel::set_capabilities(sets(some, some, 0)),
        Profile::PermittedOnly => kernel::set_capabilities(sets(0, some, 0)),
        Profile::Ambient => {
            kernel::set_capabilities(sets(some, some, CAP_SETUID));
            // SAFETY: numbers only.
            let raised =
                unsafe { libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_RAISE, 7, 0, 0) };
            assert_eq!(raised, 0);
        }
        Profile::None => kernel::set_capabilities(sets(0, 0, 0)),
    }
    kernel::set_death_signal(libc::SIGTERM);
}

/// A thread, and what `/proc` showed of it in its start state.
struct Watched {
    status: kernel::Watched,
    before: String,
    start: Cred,
}

impl Watched {
    fn new(status: kernel::Watched, start: Start) -> Self {
        let before = status.credentials();
        let cred = cred(&before, start.securebits);
        assert_eq!([cred.uid, cred.euid, cred.suid, cred.fsuid], start.ids);
        Watched {
            status,
            before,
            start: cred,
        }
    }

    fn assert_restored(&self) {
        assert_eq!(self.status.credentials(), self.before);
    }

    /// Asserts that the change was made, by one `setresuid` with any saved id.
    fn assert_changed(&self, requested: Requested, clears_ambient: bool) {
        let now = self.status.credentials();
        let seen = Cred {
            no_setuid_fixup: self.start.no_setuid_fixup,
            keep_caps: self.start.keep_caps,
            ..cred(&now, 0)
        };
        let mut expected = self.start;
        if !requested.is_nothing(&self.start) {
            let [real, effective] = requested.target(&self.start);
            let call = Call::SetResUid(Some(real), Some(effective), Some(seen.suid));
            expected = self.start.call(call).expect("a call that was made");
            if clears_ambient && real != self.start.uid {
                expected.cap_ambient = 0;
            }
        }
        assert_eq!(seen, expected, "inside");
        let others = |credentials: &str| -> Vec<String> {
            let lines = credentials.lines().map(str::to_owned);
            lines
                .filter(|line| !line.starts_with("Uid") && !line.starts_with("Cap"))
                .collect()
        };
        assert_eq!(others(&now), others(&self.before), "inside");
    }
}

/// The state that these lines of `status` show. It does not have the securebits.
fn cred(credentials: &str, securebits: libc::c_ulong) -> Cred {
    let field = |name: &str| {
        let fields = credentials.lines();
        let mut fields = fields.filter_map(|line| line.strip_prefix(name)?.strip_prefix(":\t"));
        fields.next().expect("a field of status")
    };
    let mut ids = field("Uid")
        .split('\t')
        .map(|id| id.parse().expect("an id"));
    let mut id = || ids.next().expect("four ids");
    let set = |name| u64::from_str_radix(field(name), 16).expect("a mask");
    Cred {
        uid: id(),
        euid: id(),
        suid: id(),
        fsuid: id(),
        cap_effective: set("CapEff"),
        cap_permitted: set("CapPrm"),
        cap_inheritable: set("CapInh"),
        cap_ambient: set("CapAmb"),
        cap_bset: set("CapBnd"),
        no_setuid_fixup: securebits & NO_SETUID_FIXUP != 0,
        keep_caps: securebits & KEEP_CAPS != 0,
        ..Cred::default()
    }
}

#[derive(Clone, Copy, Debug)]
struct Requested {
    real: Option<u32>,
    effective: Option<u32>,
}

impl Requested {
    fn all() -> Vec<Self> {
        let of = |target| {
            [
                (None, Some(target)),
                (Some(target), None),
                (Some(target), Some(target)),
            ]
        };
        let all = TARGETS.into_iter().flat_map(of);
        all.map(|(real, effective)| Requested { real, effective })
            .collect()
    }

    fn change(self) -> UserChange {
        let change = self
            .real
            .into_iter()
            .fold(UserChange::new(), UserChange::real);
        self.effective
            .into_iter()
            .fold(change, UserChange::effective)
    }

    /// The real and the effective id that the change leads to.
    fn target(self, start: &Cred) -> [u32; 2] {
        [
            self.real.unwrap_or(start.uid),
            self.effective.unwrap_or(start.euid),
        ]
    }

    fn is_nothing(self, start: &Cred) -> bool {
        self.target(start) == [start.uid, start.euid] && start.fsuid == start.euid
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Served,
    InvalidUid,
    NotPermitted,
    Irreversible,
    ThreadDiffers,
    Other,
}

fn outcome(result: &Result<(), Error>) -> Outcome {
    match result {
        Ok(()) => Outcome::Served,
        Err(Error::InvalidUid) => Outcome::InvalidUid,
        Err(Error::NotPermitted { .. }) => Outcome::NotPermitted,
        Err(Error::Irreversible { .. }) => Outcome::Irreversible,
        Err(Error::ThreadDiffers { .. }) => Outcome::ThreadDiffers,
        Err(_) => Outcome::Other,
    }
}

/// What the search over all sequences of calls answers for a thread like this.
fn search(start: &Cred) -> &'static Search {
    let profile = |capability: u64| match (
        start.cap_permitted & capability != 0,
        start.cap_effective & capability != 0,
    ) {
        (false, _) => Possession::Absent,
        (true, false) => Possession::Permitted,
        (true, true) => Possession::Effective,
    };
    Search::of(Config {
        setuid: profile(CAP_SETUID),
        filesystem: profile(CAP_DAC_OVERRIDE),
        fixup: match (start.no_setuid_fixup, start.keep_caps) {
            (true, _) => Fixup::Never,
            (false, true) => Fixup::KeepCaps,
            (false, false) => Fixup::Always,
        },
    })
}

/// What must happen, by the search and the model of the kernel.
fn expected(start: &Cred, other: Option<&Cred>, requested: Requested) -> Outcome {
    let named = [requested.real, requested.effective];
    let mut named = named.into_iter().flatten();
    if named.clone().any(|id| id == u32::MAX) {
        return Outcome::InvalidUid;
    }
    let ids = [start.uid, start.euid, start.suid, start.fsuid];
    if !search(start).can_restore(ids, requested.target(start)) {
        let is_held = |id: u32| ids[..3].contains(&id);
        let may_apply = start.cap_effective & CAP_SETUID != 0 || named.all(is_held);
        return match may_apply {
            true => Outcome::Irreversible,
            false => Outcome::NotPermitted,
        };
    }
    match other {
        Some(other) if !can_follow(start, other, requested) => Outcome::ThreadDiffers,
        _ => Outcome::Served,
    }
}

/// Whether some saved id makes a change that libc can make and take back on the other thread, whatever
/// the securebits of that thread are.
fn can_follow(start: &Cred, other: &Cred, requested: Requested) -> bool {
    if requested.is_nothing(start) {
        return true;
    }
    let [real, effective] = requested.target(start);
    if real != start.uid {
        return false;
    }
    let possible = [(false, false), (false, true), (true, false)];
    DOMAIN.into_iter().any(|saved| {
        let apply = Call::SetResUid(requested.real, Some(effective), Some(saved));
        let restore = Call::SetResUid(Some(start.uid), Some(start.euid), Some(start.suid));
        let of_caller = start.call(apply);
        of_caller.is_ok_and(|inside| inside.cap_permitted == start.cap_permitted)
            && possible.into_iter().all(|(no_setuid_fixup, keep_caps)| {
                let other = Cred {
                    no_setuid_fixup,
                    keep_caps,
                    ..*other
                };
                let restored = other.call(apply).and_then(|inside| inside.call(restore));
                restored == Ok(other)
            })
    })
}

/// Makes each change from the start state that the calling thread is in, and returns how many were
/// served. A panic is a violation.
fn judge(caller: &Watched, other: Option<&Watched>) -> i32 {
    let before = own_state();
    let mut served = 0;
    let scopes: &[bool] = if other.is_some() {
        &[false]
    } else {
        &[false, true]
    };
    for requested in Requested::all() {
        let expected = expected(&caller.start, other.map(|other| &other.start), requested);
        for &on_thread in scopes {
            let inside = || {
                caller.assert_changed(requested, true);
                if let Some(other) = other {
                    other.assert_changed(requested, false);
                }
                assert_eq!(own_state(), before);
            };
            let change = requested.change();
            let result = match on_thread {
                true => change.assume_on_thread().map(|guard| guard.run(inside)),
                false => change.assume().map(|guard| guard.run(inside)),
            };
            assert_eq!(outcome(&result), expected, "{requested:?}: {result:?}");
            caller.assert_restored();
            if let Some(other) = other {
                other.assert_restored();
            }
            assert_eq!(own_state(), before);
            served += i32::from(result.is_ok());
        }
    }
    served
}

/// Runs `judge` in a forked child for each start state, in two processes, and prints the totals.
/// Each returns the number of served changes, of `changes`. A panic or an abort is a violation.
fn judge_all<T: std::fmt::Debug + Copy>(starts: &[T], changes: usize, judge: impl Fn(T) -> i32) {
    const WORKERS: usize = 2;
    let answers = kernel::answers_of_children(WORKERS, |worker| {
        let (mut served, mut violations) = (0, 0);
        for &start in starts.iter().skip(worker).step_by(WORKERS) {
            let status = kernel::in_child(|| judge(start));
            match status.code().and_then(|code| usize::try_from(code).ok()) {
                Some(count) if count <= changes => served += count,
                _ => {
                    violations += 1;
                    println!("{start:?}: {status}");
                }
            }
        }
        format!("{served} {violations}")
    });
    let counts = answers.iter().map(|answer| {
        let (served, violations) = answer.split_once(' ').expect("two numbers");
        let number = |text: &str| text.parse::<usize>().expect("a number");
        (number(served), number(violations))
    });
    let (served, violations) = counts.fold((0, 0), |total, count| {
        (total.0 + count.0, total.1 + count.1)
    });
    let total = starts.len() * changes;
    let refused = total - served;
    println!("= {total} changes: {served} served, {refused} refused, {violations} violations");
    assert_eq!(violations, 0);
    assert!(served > 0 && refused > 0);
}

/// Every start state and target: served exactly if the search finds a way back, or refused unchanged.
fn walk() {
    let starts = all_starts();
    find_all_answers(&starts);
    // Profiles, securebits, ids, filesystem id; targets, which ids, scopes.
    assert_eq!(starts.len(), 6 * 4 * 27 * 2);
    let changes = 5 * 3 * 2;
    judge_all(&starts, changes, |start| {
        enter(start);
        judge(&Watched::new(kernel::Watched::this_thread(), start), None)
    });
}

/// As [`walk`], in process scope beside another thread with the same ids, and any capabilities and
/// securebits.
///
/// A normal run leaves out the start states that differ from another one only by swapping users 1 and
/// 2, and some combinations of securebits. `PRIVILEGE_GUARD_ALL_PAIRS=1` includes them.
fn walk_beside_another_thread() {
    let is_all = std::env::var_os("PRIVILEGE_GUARD_ALL_PAIRS").is_some();
    let is_first_of_swapped = |start: Start| {
        let [real, effective, saved, _] = start.ids;
        [real, effective, saved].into_iter().find(|&id| id != 0) != Some(2)
    };
    let mut pairs = Vec::new();
    // SECBIT_NOROOT changes nothing here, as the walk without another thread shows.
    let starts = all_starts().into_iter();
    for start in starts.filter(|start| start.securebits != NOROOT) {
        let [real, effective, saved, filesystem] = start.ids;
        for profile in PROFILES {
            for securebits in [0, KEEP_CAPS, NO_SETUID_FIXUP] {
                let is_usual = match (start.securebits, securebits) {
                    (0, 0) | (NO_SETUID_FIXUP, NO_SETUID_FIXUP) => true,
                    (0, NO_SETUID_FIXUP) | (NO_SETUID_FIXUP | KEEP_CAPS, 0) => {
                        filesystem == effective
                    }
                    _ => false,
                };
                if is_all || is_usual && is_first_of_swapped(start) {
                    let other = Start {
                        profile,
                        securebits,
                        ids: [real, effective, saved, effective],
                    };
                    pairs.push((start, other));
                }
            }
        }
    }
    // Profiles of both; securebits of both with the filesystem id of the caller; its other ids.
    let expected = if is_all {
        6 * 6 * (3 * 3 * 2) * 27
    } else {
        6 * 6 * (2 * 2 + 3) * 14
    };
    assert_eq!(pairs.len(), expected);
    find_all_answers(&all_starts());
    // Targets, which ids.
    judge_all(&pairs, 5 * 3, |(start, other)| {
        let sibling = Sibling::start_after(move || enter(other));
        let status = kernel::Watched::thread(sibling.thread());
        enter(start);
        let caller = Watched::new(kernel::Watched::this_thread(), start);
        judge(&caller, Some(&Watched::new(status, other)))
    });
}

/// Makes the searches before any fork, so that each is made once.
fn find_all_answers(starts: &[Start]) {
    let children = starts.iter().filter(|start| start.ids == [0; 4]);
    for &start in children {
        let credentials = kernel::answer_of_child(|| {
            enter(start);
            kernel::Watched::this_thread().credentials()
        });
        search(&cred(&credentials.expect("credentials"), start.securebits));
    }
}

fn every_thread_follows_and_is_restored() {
    let before = everything();
    let other = Sibling::start();
    let other_before = kernel::all_threads();
    UserGuard::assume_effective(1000).unwrap().run(|| {
        for thread in kernel::all_threads() {
            assert_eq!(thread.privileges.users, [0, 1000, 0, 1000]);
        }
    });
    assert_eq!(kernel::all_threads(), other_before);
    let error = UserGuard::assume_real_and_effective(1000).unwrap_err();
    assert!(matches!(error, Error::ThreadDiffers { .. }), "{error}");
    assert!(error.to_string().contains("real user id"), "{error}");
    UserGuard::assume_real_and_effective_on_thread(1000)
        .unwrap()
        .run(|| {
            assert_eq!(kernel::all_threads()[1..], other_before[1..]);
        });
    drop(other);
    UserGuard::assume_real_and_effective(1000).unwrap().run(|| {
        assert_eq!(everything().1.users, [1000, 1000, 0, 1000]);
    });
    assert_eq!(everything(), before);
}

fn a_thread_that_differs_is_refused() {
    let prepare: [fn(); 4] = [
        || kernel::give_up_capabilities(CAP_SETUID),
        || kernel::raw_setresuid(Some(1), Some(0), Some(0)).unwrap(),
        // SAFETY: numbers only.
        || assert_eq!(unsafe { libc::syscall(libc::SYS_setfsuid, 1) }, 0),
        || {
            let all = kernel::capabilities();
            kernel::set_capabilities(Capabilities {
                effective: all.permitted & !1,
                ..all
            });
        },
    ];
    for prepare in prepare {
        kernel::passes_in_child(|| {
            let other = Sibling::start_after(prepare);
            let before = kernel::all_threads();
            let error = UserGuard::assume_effective(1000).unwrap_err();
            let is_other = |id: u32| id == other.thread().unsigned_abs();
            assert!(
                matches!(error, Error::ThreadDiffers { thread_id, .. } if is_other(thread_id)),
                "{error}"
            );
            assert_eq!(kernel::all_threads(), before);
        });
    }
}

fn users_and_groups_nest_in_any_order() {
    kernel::set_death_signal(libc::SIGTERM);
    let before = everything();
    for first in [0, 1, 2] {
        let mut guards: Vec<Box<dyn std::any::Any>> = vec![
            Box::new(GroupGuard::assume_on_thread(1004).unwrap()),
            Box::new(UserGuard::assume_effective_on_thread(1000).unwrap()),
            Box::new(UserGuard::assume_effective_on_thread(0).unwrap()),
        ];
        drop(guards.remove(first));
        drop(guards);
        assert_eq!(everything(), before);
    }
    let caught = catch_unwind(AssertUnwindSafe(|| {
        let _user = UserGuard::assume_effective_on_thread(1000).unwrap();
        panic!("inside");
    }));
    assert!(caught.is_err());
    assert_eq!(everything(), before);
    std::thread::spawn(|| std::mem::forget(UserGuard::assume_effective_on_thread(1000).unwrap()))
        .join()
        .unwrap();
    assert_eq!(everything(), before);
    // Without privilege the group could not be changed and restored under the user.
    UserGuard::assume_effective_on_thread(1000)
        .unwrap()
        .run(|| {
            assert!(matches!(
                GroupGuard::assume_on_thread(1004),
                Err(Error::NotPermitted { .. })
            ));
        });
    assert_eq!(everything(), before);
}

fn switching_goes_through_the_original_user() {
    let before = everything();
    let mut guard = UserGuard::assume_effective_on_thread(1000).unwrap();
    for user in [1001, 1001, 0, 1002] {
        guard.switch_to(user).unwrap();
        assert_eq!(everything().1.users, [0, user, 0, user]);
    }
    assert!(matches!(guard.switch_to(u32::MAX), Err(Error::InvalidUid)));
    assert_eq!(
        guard.original(),
        UserIds {
            real: 0.into(),
            effective: 0.into(),
            saved: 0.into(),
            filesystem: 0.into()
        }
    );
    drop(guard);
    assert_eq!(everything(), before);
    kernel::raw_setresuid(Some(1), Some(2), Some(3)).unwrap();
    let error = UserGuard::assume_real_and_effective(1).unwrap_err();
    assert!(
        matches!(
            error,
            Error::Irreversible {
                reason: IrreversibleReason::SetuidRequired,
                ..
            }
        ),
        "{error}"
    );
    assert_eq!(everything().1.users, [1, 2, 3, 2]);
}

/// The first change clears the ambient set, and the restore after the last one has to raise it.
fn a_switch_keeps_the_ambient_set_for_the_restore() {
    for targets in [[2, 0, 2], [2, 9, 0], [9, 2, 9], [9, 0, 2]] {
        kernel::passes_in_child(|| {
            let all = kernel::capabilities().permitted;
            kernel::raw_setresuid(Some(0), Some(2), Some(0)).unwrap();
            kernel::set_capabilities(Capabilities {
                effective: all,
                permitted: all,
                inheritable: 1,
            });
            assert!(kernel::raise_ambient(1));
            let before = everything();
            assert_eq!(before.1.capabilities[4], 1);
            let [first, second, third] = targets;
            let mut guard = UserGuard::assume_real_and_effective_on_thread(first).unwrap();
            for target in [second, third] {
                guard.switch_to(target).unwrap();
                let users = everything().1.users;
                assert_eq!(users[..2], [target; 2]);
                assert!(target == 0 || everything().1.capabilities[4] == 0);
            }
            drop(guard);
            assert_eq!(everything(), before, "{targets:?}");
        });
    }
}

/// A process of the client, which tries to signal this one.
fn an_effective_user_cannot_signal_the_process() {
    let this = i32::try_from(std::process::id()).unwrap();
    let may_signal = move || {
        let status = kernel::in_child(|| {
            kernel::raw_setresuid(Some(1000), Some(1000), Some(1000)).unwrap();
            // SAFETY: numbers only; signal 0 only checks the permission.
            i32::from(unsafe { libc::kill(this, 0) } == 0)
        });
        status.code() == Some(1)
    };
    let started = |real: bool| {
        let (ask, asked) = std::sync::mpsc::channel::<()>();
        let (tell, told) = std::sync::mpsc::channel();
        // Forked before the guard: a child of it would be under it.
        let helper = std::thread::spawn(move || {
            asked.recv().unwrap();
            tell.send(may_signal()).unwrap();
        });
        let guard = match real {
            true => UserGuard::assume_real_and_effective_on_thread(1000).unwrap(),
            false => UserGuard::assume_effective_on_thread(1000).unwrap(),
        };
        ask.send(()).unwrap();
        let answer = told.recv().unwrap();
        drop(guard);
        helper.join().unwrap();
        answer
    };
    assert!(!started(false));
    assert!(started(true));
}

/// libc reaches no other thread if `tgkill` is refused, and reports success.
fn a_thread_that_libc_skips_is_found() {
    let refuse = || sandbox::refuse(libc::SYS_tgkill, &[]);
    kernel::passes_in_child(|| {
        let other = Sibling::start();
        let other_id = other.thread().unsigned_abs();
        refuse();
        let before = kernel::all_threads();
        let error = UserGuard::assume_effective(1000).unwrap_err();
        assert!(
            matches!(error, Error::ThreadNotChanged { thread_id, .. } if thread_id == other_id),
            "{error}"
        );
        assert_eq!(kernel::all_threads(), before);
    });
    kernel::passes_in_child(|| {
        let other = Sibling::start();
        let expected = Unrestored::OtherThread {
            thread_id: other.thread().unsigned_abs(),
        };
        let guard = UserGuard::assume_effective(1000).unwrap();
        refuse();
        let error = guard.restore().unwrap_err();
        assert!(
            matches!(&error, RestoreError::Refused { what, .. } if *what == expected),
            "{error}"
        );
    });
}

/// A start whose restore makes every call: the filesystem id is odd, and CAP_CHOWN is ambient.
fn start_with_everything_to_restore() -> (State, Privileges) {
    let all = kernel::capabilities().permitted;
    kernel::raw_setresuid(Some(0), Some(2), Some(0)).unwrap();
    kernel::set_capabilities(Capabilities {
        effective: all,
        permitted: all,
        inheritable: 1,
    });
    assert!(kernel::raw_setfsuid(9));
    assert!(kernel::raise_ambient(1));
    kernel::set_death_signal(libc::SIGTERM);
    everything()
}

type Filtered = (libc::c_long, &'static [(u8, u32)]);

const SET_SIGNAL: Filtered = (libc::SYS_prctl, &[(0, libc::PR_SET_PDEATHSIG as u32)]);
const REFUSED_AND_FAKED: [Answer; 2] = [Answer::Errno(libc::EPERM), Answer::SuccessWithoutDoing];

fn to_user_0() -> Result<UserGuard<Thread>, Error> {
    UserGuard::assume_effective_on_thread(0)
}

fn to_user_9() -> Result<UserGuard<Thread>, Error> {
    UserGuard::assume_real_and_effective_on_thread(9)
}

/// What the filter itself sets is not part of the state.
fn ignoring_no_new_privs(mut state: (State, Privileges)) -> (State, Privileges) {
    state.1.no_new_privs = false;
    state
}

fn each_call_of_a_change_refused_or_faked() {
    type Begin = fn() -> Result<UserGuard<Thread>, Error>;
    const CLEAR: &[(u8, u32)] = &[
        (0, libc::PR_CAP_AMBIENT as u32),
        (1, libc::PR_CAP_AMBIENT_CLEAR_ALL as u32),
    ];
    let rows: [(Begin, Filtered); 5] = [
        (to_user_9, (calls::SYS_setresuid, &[(1, 9)])),
        (to_user_9, (libc::SYS_prctl, CLEAR)),
        (to_user_0, (calls::SYS_setresuid, &[(1, 0)])),
        (to_user_0, (libc::SYS_capset, &[])),
        (to_user_0, SET_SIGNAL),
    ];
    for (begin, (call, arguments)) in rows {
        for answer in REFUSED_AND_FAKED {
            // A faked answer of these is noticed only when it matters: when the restore makes them.
            let is_probed = [libc::SYS_capset, SET_SIGNAL.0].contains(&call) && arguments != CLEAR;
            if is_probed && answer == Answer::SuccessWithoutDoing {
                continue;
            }
            kernel::passes_in_child(|| {
                let before = ignoring_no_new_privs(start_with_everything_to_restore());
                sandbox::answer(call, arguments, answer);
                let error = begin().unwrap_err();
                let now = ignoring_no_new_privs(everything());
                assert_eq!(now, before, "{arguments:?}, {answer:?}: {error}");
            });
        }
    }
}

fn each_call_of_a_restore_refused_or_faked() {
    type Begin = fn() -> Result<UserGuard<Thread>, Error>;
    const RAISE: &[(u8, u32)] = &[
        (0, libc::PR_CAP_AMBIENT as u32),
        (1, libc::PR_CAP_AMBIENT_RAISE as u32),
    ];
    let rows: [(Begin, Filtered, &str); 5] = [
        (to_user_0, (calls::SYS_setresuid, &[(1, 2)]), "setresuid"),
        (to_user_0, (calls::SYS_setfsuid, &[(0, 9)]), "setfsuid"),
        (to_user_0, (libc::SYS_capset, &[]), "capset"),
        (
            to_user_9,
            (libc::SYS_prctl, RAISE),
            "prctl(PR_CAP_AMBIENT_RAISE)",
        ),
        (to_user_9, SET_SIGNAL, "prctl(PR_SET_PDEATHSIG)"),
    ];
    for (begin, (filtered, arguments), expected) in rows {
        for answer in REFUSED_AND_FAKED {
            kernel::passes_in_child(|| {
                let before = ignoring_no_new_privs(start_with_everything_to_restore());
                let guard = begin().unwrap();
                sandbox::answer(filtered, arguments, answer);
                let error = guard.restore().unwrap_err();
                assert!(
                    matches!(error, RestoreError::Refused { call, .. } if call == expected),
                    "{error:?}"
                );
                assert_ne!(ignoring_no_new_privs(everything()), before, "{error}");
            });
            let line = kernel::aborts(|| {
                start_with_everything_to_restore();
                let guard = begin().unwrap();
                sandbox::answer(filtered, arguments, answer);
                drop(guard);
            });
            assert!(line.contains(expected), "{line}");
        }
    }
}

/// No call could set it again: in this namespace, only user 0 is mapped.
fn an_unmapped_id_that_would_have_to_be_restored() {
    // If the saved id reads as the real one, the saved id would seem to keep it.
    for saved in [1000, 0] {
        kernel::passes_in_child(|| {
            kernel::raw_setresuid(Some(1000), Some(0), Some(saved)).unwrap();
            kernel::enter_user_namespace();
            std::fs::write("/proc/self/uid_map", "0 0 1").unwrap();
            let before = everything();
            let shown = if saved == 0 { 0 } else { 65534 };
            assert_eq!(before.1.users, [65534, 0, shown, 0]);
            for begun in [
                UserGuard::assume_real_and_effective_on_thread(0).map(drop),
                UserGuard::assume_real_and_effective(0).map(drop),
            ] {
                let error = begun.unwrap_err();
                assert!(
                    matches!(
                        error,
                        Error::Irreversible {
                            reason: IrreversibleReason::Unmapped,
                            ..
                        }
                    ),
                    "{error}"
                );
                assert_eq!(everything(), before);
            }
        });
    }
}

/// The end of a guard sets `errno` in two cases: a subscriber does, or libc does when a call fails.
fn errno_is_preserved() {
    const BEFORE: i32 = 71;
    const OF_THE_FUNCTION: i32 = 72;
    kernel::passes_in_child(|| {
        let guard = UserGuard::assume_effective(1000).unwrap();
        sandbox::refuse(calls::SYS_setresuid, &[]);
        Errno::set_raw(BEFORE);
        let restored = guard.restore();
        assert_eq!(Errno::last_raw(), BEFORE);
        assert!(restored.is_err());
    });
    subscriber::listen_and(|| Errno::set_raw(libc::EIO));
    let guard = UserGuard::assume_effective_on_thread(1000).unwrap();
    Errno::set_raw(BEFORE);
    drop(guard);
    assert_eq!(Errno::last_raw(), BEFORE);
    let guard = UserGuard::assume_effective_on_thread(1000).unwrap();
    Errno::set_raw(BEFORE);
    guard.restore().unwrap();
    assert_eq!(Errno::last_raw(), BEFORE);
    let guard = UserGuard::assume_effective_on_thread(1000).unwrap();
    Errno::set_raw(BEFORE);
    guard.run(|| Errno::set_raw(OF_THE_FUNCTION));
    assert_eq!(Errno::last_raw(), OF_THE_FUNCTION);
    assert_eq!(subscriber::told().len(), 3);
}

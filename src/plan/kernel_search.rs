//! What "can be restored" means: a search over all sequences of calls on the model of the kernel.
//!
//! The rules of the search, beside those of the kernel:
//!
//! - `capset` makes a capability effective only if it was effective at the start. (The kernel makes
//!   more effective when the effective id becomes 0. The search may use those.)
//! - CAP_SETUID is used only if it was effective at the start. There is one exception: if a single
//!   call restores the real, effective and saved ids, and the kernel makes CAP_SETUID effective in
//!   that call, `setfsuid` may use it.
//! - No call changes the securebits.
//!
//! Two reductions keep the graph small. No call adds to the permitted set, so a sequence that takes
//! from it never returns and is cut off. The ambient set can be raised again at any time while the
//! permitted set is intact, so it matters only if raising is forbidden; then a sequence that
//! changes it is cut off too.

#![allow(dead_code, reason = "shared with the tests")]

use std::sync::OnceLock;

use super::kernel_model::{CAP_DAC_OVERRIDE, CAP_SETGID, CAP_SETUID, Call, Cred};

/// User 0, two users, and one that no thread of the domain has as real, effective or saved id.
pub(super) const DOMAIN: [u32; 4] = [0, 1, 2, FOREIGN];
pub(super) const FOREIGN: u32 = 9;

/// All ids of a thread in the domain: real, effective, saved, filesystem.
const ID_STATES: usize = 4 * 4 * 4 * 4;

/// The capabilities of the search: the one that matters, and one that `setfsuid` moves.
const SEARCHED: u64 = CAP_SETUID | CAP_DAC_OVERRIDE;

/// In which sets of the start a capability is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Profile {
    Absent,
    Permitted,
    Effective,
}

/// The effect on the sets when the ids leave or reach user 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fixup {
    Always,
    /// SECBIT_KEEP_CAPS.
    KeepCaps,
    /// SECBIT_KEEP_CAPS, and an ambient set that cannot be raised again.
    KeepCapsFixedAmbient,
    /// SECBIT_NO_SETUID_FIXUP, or user 0 is not mapped.
    Never,
}

/// Everything but the ids that the answers depend on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Config {
    pub(super) setuid: Profile,
    pub(super) filesystem: Profile,
    pub(super) fixup: Fixup,
}

/// The answers for one [`Config`].
pub(super) struct Search {
    /// The effective sets that a thread can have, of the searched capabilities.
    effective_sets: Vec<u64>,
    /// The thread at the start, but for its ids.
    start: Cred,
    /// The fewest calls from one node to another; `NO_WAY` if there is none. Empty once the answers
    /// are there.
    distances: Vec<u8>,
    /// By the ids of the start and the requested ids: see [`can_restore`](Self::can_restore) and
    /// [`fewest_calls`](Self::fewest_calls).
    answers: Vec<(bool, Option<u8>)>,
}

const NO_WAY: u8 = u8::MAX;

impl Search {
    /// The search for this configuration, which is done once.
    pub(super) fn of(config: Config) -> &'static Search {
        static ALL: [OnceLock<Search>; 36] = [const { OnceLock::new() }; 36];
        ALL[config.index()].get_or_init(|| Search::new(config))
    }

    fn new(config: Config) -> Search {
        let start = config.start();
        let permitted = start.cap_permitted & SEARCHED;
        let effective_sets: Vec<u64> = [0, CAP_SETUID, CAP_DAC_OVERRIDE, SEARCHED]
            .into_iter()
            .filter(|set| set & !permitted == 0)
            .collect();
        let mut search = Search {
            effective_sets,
            start,
            distances: Vec::new(),
            answers: Vec::new(),
        };
        let next: Vec<NodeSet> = (0..search.nodes()).map(|node| search.next(node)).collect();
        search.distances = (0..search.nodes())
            .flat_map(|node| distances(&next, node))
            .collect();
        for start in (0..ID_STATES).map(ids) {
            for requested in (0..16).map(|index| [DOMAIN[index / 4], DOMAIN[index % 4]]) {
                search.answers.push(search.answer(start, requested));
            }
        }
        search.distances = Vec::new();
        search
    }

    /// Whether a change to these real and effective ids can be restored, after any calls to make
    /// it.
    pub(super) fn can_restore(&self, start: [u32; 4], requested: [u32; 2]) -> bool {
        self.answers[ids_index(start) * 16 + ids_index(requested)].0
    }

    /// The fewest calls that restore a change which was made by one `setresuid`, over all saved
    /// ids.
    pub(super) fn fewest_calls(&self, start: [u32; 4], requested: [u32; 2]) -> Option<u8> {
        self.answers[ids_index(start) * 16 + ids_index(requested)].1
    }

    fn answer(&self, start: [u32; 4], [real, effective]: [u32; 2]) -> (bool, Option<u8>) {
        let sets = self.effective_sets.len();
        let start = self.at(start);
        let origin = self.node(&start);
        let is_way = |calls: &u8| *calls != NO_WAY;
        let can_restore = DOMAIN.into_iter().any(|saved| {
            let first = ids_index([real, effective, saved, effective]) * sets;
            (first..first + sets).any(|inside| {
                is_way(&self.distance(origin, inside))
                    && is_way(&self.restore_distance(inside, origin))
            })
        });
        let after_one_call = DOMAIN.into_iter().filter_map(|saved| {
            start
                .call(Call::SetResUid(Some(real), Some(effective), Some(saved)))
                .ok()
        });
        let inside = after_one_call.filter(|inside| self.is_intact(inside));
        let restores = inside.map(|inside| self.restore_distance(self.node(&inside), origin));
        (can_restore, restores.filter(is_way).min())
    }

    /// The start with these ids.
    fn at(&self, ids: [u32; 4]) -> Cred {
        let [uid, euid, suid, fsuid] = ids;
        Cred {
            uid,
            euid,
            suid,
            fsuid,
            ..self.start
        }
    }

    fn nodes(&self) -> usize {
        ID_STATES * self.effective_sets.len()
    }

    fn node(&self, cred: &Cred) -> usize {
        let effective = cred.cap_effective & SEARCHED;
        let set = self.effective_sets.iter().position(|&set| set == effective);
        ids_index([cred.uid, cred.euid, cred.suid, cred.fsuid]) * self.effective_sets.len()
            + set.expect("a subset of the permitted set")
    }

    fn cred(&self, node: usize) -> Cred {
        let sets = self.effective_sets.len();
        Cred {
            cap_effective: self.effective_sets[node % sets],
            ..self.at(ids(node / sets))
        }
    }

    fn distance(&self, from: usize, to: usize) -> u8 {
        self.distances[from * self.nodes() + to]
    }

    /// Whether nothing is lost that no call brings back.
    fn is_intact(&self, cred: &Cred) -> bool {
        (cred.cap_permitted, cred.cap_ambient) == (self.start.cap_permitted, self.start.cap_ambient)
    }

    /// The nodes to which one call leads.
    fn next(&self, node: usize) -> NodeSet {
        let cred = self.cred(node);
        let may_use_setuid = self.start.cap_effective & CAP_SETUID != 0;
        let mut next = vec![0; self.nodes().div_ceil(64)];
        for &call in calls() {
            if !may_use_setuid && names_new_id(&cred, call) {
                continue;
            }
            if let Some(after) = cred.call(call).ok().filter(|after| self.is_intact(after)) {
                insert(&mut next, self.node(&after));
            }
        }
        for &effective in &self.effective_sets {
            if effective & !(cred.cap_effective | self.start.cap_effective) == 0 {
                let Cred {
                    cap_permitted: permitted,
                    cap_inheritable: inheritable,
                    ..
                } = cred;
                let after = cred.call(Call::CapSet {
                    effective,
                    permitted,
                    inheritable,
                });
                insert(
                    &mut next,
                    self.node(&after.expect("a subset of the permitted set")),
                );
            }
        }
        next
    }

    /// As [`distance`](Self::distance), with the exception for `setfsuid`.
    fn restore_distance(&self, inside: usize, origin: usize) -> u8 {
        let by_rules = self.distance(inside, origin);
        let start = self.cred(origin);
        let back = Call::SetResUid(Some(start.uid), Some(start.euid), Some(start.suid));
        let cred = self.cred(inside);
        if names_new_id(&cred, back) || cred.cap_effective & CAP_SETUID != 0 {
            return by_rules;
        }
        let after = cred
            .call(back)
            .map(|cred| cred.call(Call::SetFsUid(start.fsuid)));
        let Ok(Ok(after)) = after else {
            return by_rules;
        };
        if after.fsuid != start.fsuid || !self.is_intact(&after) {
            return by_rules;
        }
        // One more call sets the effective set, as far as the start had it.
        by_rules.min(if self.node(&after) == origin { 2 } else { 3 })
    }
}

impl Config {
    /// Its number among the 36.
    pub(super) fn index(self) -> usize {
        (self.setuid as usize * 3 + self.filesystem as usize) * 4 + self.fixup as usize
    }

    fn start(self) -> Cred {
        let of = |profile: Profile, capability: u64| match profile {
            Profile::Absent => (0, 0),
            Profile::Permitted => (0, capability),
            Profile::Effective => (capability, capability),
        };
        let (setuid, filesystem) = (
            of(self.setuid, CAP_SETUID),
            of(self.filesystem, CAP_DAC_OVERRIDE),
        );
        // The ambient set, if it matters, holds a capability that does nothing here.
        let fixed_ambient = self.fixup == Fixup::KeepCapsFixedAmbient;
        let ambient = if fixed_ambient { CAP_SETGID } else { 0 };
        Cred {
            cap_effective: setuid.0 | filesystem.0,
            cap_permitted: setuid.1 | filesystem.1 | ambient,
            cap_inheritable: ambient,
            cap_ambient: ambient,
            cap_bset: u64::MAX,
            no_setuid_fixup: self.fixup == Fixup::Never,
            keep_caps: matches!(self.fixup, Fixup::KeepCaps | Fixup::KeepCapsFixedAmbient),
            no_cap_ambient_raise: fixed_ambient,
            ..Cred::default()
        }
    }
}

/// Every `setresuid` and `setfsuid` of the domain.
fn calls() -> &'static [Call] {
    static CALLS: OnceLock<Vec<Call>> = OnceLock::new();
    CALLS.get_or_init(|| {
        let choices: Vec<Option<u32>> = DOMAIN.into_iter().map(Some).chain([None]).collect();
        let mut calls: Vec<Call> = DOMAIN.into_iter().map(Call::SetFsUid).collect();
        for &uid in &choices {
            for &euid in &choices {
                calls.extend(choices.iter().map(|&suid| Call::SetResUid(uid, euid, suid)));
            }
        }
        calls
    })
}

/// Whether the call requires CAP_SETUID.
pub(super) fn names_new_id(cred: &Cred, call: Call) -> bool {
    let three = [cred.uid, cred.euid, cred.suid];
    match call {
        Call::SetResUid(uid, euid, suid) => [uid, euid, suid]
            .iter()
            .flatten()
            .any(|id| !three.contains(id)),
        Call::SetFsUid(fsuid) => !three.contains(&fsuid) && fsuid != cred.fsuid,
        _ => false,
    }
}

fn ids_index<const N: usize>(ids: [u32; N]) -> usize {
    let position = |id| {
        DOMAIN
            .iter()
            .position(|&other| other == id)
            .expect("an id of the domain")
    };
    ids.into_iter()
        .fold(0, |index, id| index * 4 + position(id))
}

fn ids(index: usize) -> [u32; 4] {
    [index / 64, index / 16 % 4, index / 4 % 4, index % 4].map(|position| DOMAIN[position])
}

type NodeSet = Vec<u64>;

fn insert(set: &mut NodeSet, node: usize) {
    set[node / 64] |= 1 << (node % 64);
}

/// The fewest calls from this node to each, by breadth-first search.
// Loops over indices, because those are fast without optimization.
fn distances(next: &[NodeSet], from: usize) -> Vec<u8> {
    let words = next[from].len();
    let mut distances = vec![NO_WAY; next.len()];
    let mut seen = vec![0; words];
    insert(&mut seen, from);
    distances[from] = 0;
    let mut frontier = vec![from];
    let mut calls = 0;
    while !frontier.is_empty() {
        calls += 1;
        let mut found: NodeSet = vec![0; words];
        for node in frontier.drain(..) {
            let next: &[u64] = &next[node];
            for word in 0..words {
                found[word] |= next[word];
            }
        }
        for word in 0..words {
            let mut new = found[word] & !seen[word];
            seen[word] |= new;
            while new != 0 {
                let node = word * 64 + new.trailing_zeros() as usize;
                distances[node] = calls;
                frontier.push(node);
                new &= new - 1;
            }
        }
    }
    distances
}

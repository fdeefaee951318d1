//! The verification of a permanent drop: what every thread has, and attempts to regain what is
//! gone.

use std::collections::BTreeSet;
use std::io;
use std::time::{Duration, Instant};

use rustix::thread::{CapabilitySet, CapabilitySets};

use super::abort;
use super::target::{Target, has_groups};
use crate::capabilities::CapabilityNames;
use crate::error::DropError;
use crate::ids::{Gid, GroupIds, Uid, UserIds};
use crate::kernel::read::{self, ReadIds};
use crate::kernel::set;
use crate::kernel::task_dir::TaskDir;
use crate::kernel::threads::ThreadIds;
use crate::plan::SetResArgs;
use crate::scope::ScopeKind;

/// How long to wait for threads that libc skips because they are ending.
const EXITING_THREAD_TIMEOUT: Duration = Duration::from_millis(200);

/// What every thread must be after a drop.
#[derive(Clone, Copy, Debug)]
pub(super) struct Requirements<'a> {
    pub(super) target: &'a Target,
    /// The supplementary groups, if they were set.
    pub(super) groups: Option<&'a [Gid]>,
}

impl Requirements<'_> {
    /// Reads every thread, and returns the first violation that lasts.
    pub(super) fn verify(self, tasks: &TaskDir) -> Result<Vec<ThreadIds>, String> {
        let deadline = Instant::now() + EXITING_THREAD_TIMEOUT;
        loop {
            let threads = tasks
                .read_all()
                .map_err(|error: io::Error| format!("the threads cannot be read: {error}"))?;
            match self.first_violation(&threads) {
                None => return Ok(threads),
                Some(violation) if Instant::now() > deadline => return Err(violation),
                Some(_) => std::thread::sleep(Duration::from_millis(1)),
            }
        }
    }

    /// Returns what is wrong with one of these threads.
    fn first_violation(self, threads: &[ThreadIds]) -> Option<String> {
        let found = threads.iter().find_map(|thread| {
            let violation = self.violation(thread)?;
            Some((thread, violation))
        });
        found.map(
            |(
                ThreadIds {
                    thread_id, name, ..
                },
                violation,
            )| { format!("thread {thread_id} ({name}) {violation}") },
        )
    }

    fn violation(self, thread: &ThreadIds) -> Option<String> {
        let Requirements { target, groups } = self;
        let kept = target.keep;
        let sets = [thread.effective, thread.permitted];
        let has_others = sets != [kept; 2] || !(thread.inheritable | thread.ambient).is_empty();
        let violations = [
            (thread.is_kernel_worker, "is a kernel worker"),
            (
                target
                    .group
                    .is_some_and(|gid| thread.group_ids != GroupIds::all(gid)),
                "has another group id",
            ),
            (
                groups.is_some_and(|groups| !has_groups(thread, groups)),
                "has other supplementary groups",
            ),
            (thread.holds(CapabilitySet::SETGID), "holds CAP_SETGID"),
            (
                target
                    .user
                    .is_some_and(|user| thread.user_ids != UserIds::all(user)),
                "has another user id",
            ),
            (
                has_setgid_after_exec(thread),
                "would be given CAP_SETGID by an exec",
            ),
            (
                target.no_new_privs && !thread.no_new_privs,
                "has no no_new_privs",
            ),
        ];
        let violation = violations.into_iter().find(|(is_so, _)| *is_so);
        match violation {
            Some((_, violation)) => Some(violation.into()),
            None if target.is_to_other_user() && has_others => {
                let held = thread.permitted | thread.inheritable | thread.effective;
                let (held, kept) = (CapabilityNames(held), CapabilityNames(kept));
                Some(format!("holds {held} and should hold {kept}"))
            }
            None => None,
        }
    }
}

/// Whether an exec of an ordinary program, by itself or after a call, gives CAP_SETGID to this
/// thread.
fn has_setgid_after_exec(thread: &ThreadIds) -> bool {
    let [real, effective, saved, _] = thread.user_ids.to_array();
    let leads_to_it = CapabilitySet::SETUID | CapabilitySet::SETPCAP;
    thread.bounding.contains(CapabilitySet::SETGID)
        && ([real, effective, saved].contains(&Uid::ROOT)
            || thread.permitted.intersects(leads_to_it))
}

/// The ids and groups before a drop, which no call may set again.
#[derive(Clone, Debug)]
pub(super) struct OldIdentity {
    pub(super) groups: BTreeSet<Gid>,
    pub(super) users: BTreeSet<Uid>,
    pub(super) supplementary: Vec<Gid>,
}

impl OldIdentity {
    /// Those that one of the threads has.
    pub(super) fn of(threads: &[ThreadIds], supplementary: Vec<Gid>) -> Self {
        let threads = || threads.iter();
        OldIdentity {
            groups: threads()
                .flat_map(|thread| thread.group_ids.to_array())
                .collect(),
            users: threads()
                .flat_map(|thread| thread.user_ids.to_array())
                .collect(),
            supplementary,
        }
    }
}

/// Tries every call that could regain what is gone, on the calling thread, and returns how many
/// were refused: all.
///
/// An attempt that succeeds has already regained the privilege, so the process aborts.
pub(super) fn assert_cannot_regain(target: &Target, old: &OldIdentity) -> usize {
    let mut attempts = Attempts { refused: 0 };
    if let Some(group) = target.group {
        for &gid in old.groups.iter().filter(|&&gid| gid != group) {
            attempts.ids("group", gid, group, "setgid");
            let is_refused = set::set_groups(ScopeKind::Thread, &[gid]).is_err();
            attempts.expect("setgroups", is_refused, || format!("group {gid}"));
        }
    }
    let original = || "the original groups".into();
    let is_refused = set::set_groups(ScopeKind::Thread, &old.supplementary).is_err();
    attempts.expect("setgroups", is_refused, original);
    let mut raised = vec![CapabilitySet::SETGID];
    if let Some(user) = target.user.filter(|_| target.is_to_other_user()) {
        for &uid in old.users.iter().filter(|&&uid| uid != user) {
            attempts.ids("user", uid, user, "setuid");
        }
        raised.extend([CapabilitySet::SETUID, CapabilitySet::SETPCAP]);
    }
    for capability in raised {
        attempts.capability(capability);
    }
    attempts.refused
}

struct Attempts {
    refused: usize,
}

impl Attempts {
    fn expect(&mut self, call: &str, is_refused: bool, what: impl FnOnce() -> String) {
        if !is_refused {
            let finding = format!("{call} might have regained {}", what());
            abort::abort_with(&DropError::StillPrivileged { finding });
        }
        self.refused += 1;
    }

    /// Tries the calls that set one id to `old`, of a thread whose ids are all `now`.
    fn ids<I: ReadIds>(&mut self, noun: &str, old: I, now: I, set_id: &str) {
        let what = || format!("{noun} {old}");
        let some = Some(old);
        for [real, effective, saved] in [[some, None, None], [None, some, None], [None, None, some]]
        {
            let args = SetResArgs {
                real,
                effective,
                saved,
            };
            let is_refused = I::set_ids(ScopeKind::Thread, args).is_err();
            self.expect(I::SETRES, is_refused, what);
        }
        self.expect(set_id, I::set_id_on_thread(old).is_err(), what);
        // It returns the previous id, or -1 if a filter refuses it. Any other result was faked.
        let is_plausible = [now, I::UNCHANGED].contains(&I::set_filesystem_id(old));
        let is_unchanged = read::read_filesystem_id::<I>().is_ok_and(|id| id == now);
        self.expect(I::SETFS, is_plausible && is_unchanged, what);
    }

    /// Tries to add a capability to the permitted and the effective set.
    fn capability(&mut self, capability: CapabilitySet) {
        let what = || CapabilityNames(capability).to_string();
        let is_refused = read::read_capabilities().is_ok_and(|sets| {
            set::set_capabilities(CapabilitySets {
                effective: sets.effective | capability,
                permitted: sets.permitted | capability,
                inheritable: sets.inheritable,
            })
            .is_err()
        });
        self.expect("capset", is_refused, what);
    }
}

//! The permanent drop: its steps, the verification of every thread, and the attempts to regain.

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use rustix::thread::{CapabilitySet, CapabilitySets};

use super::applied::Applied;
use super::regain::assert_cannot_regain;
use super::stack::Restore;
use super::steps;
use crate::change::{Change, RequestedIds};
use crate::error::{DropError, Error, PermissionDeniedReason, no_effect_error};
use crate::identity::sorted;
use crate::ids::{Gid, GroupIds, Id, Uid};
use crate::kernel::mismatch::differ;
use crate::kernel::namespace;
use crate::kernel::read::{self, ReadIds};
use crate::kernel::set::{self, SetIds};
use crate::kernel::task_dir::TaskDir;
use crate::kernel::threads::ThreadIds;
use crate::plan::SetResArgs;
use crate::plan::groups::GroupPlan;
use crate::plan::permanent::{
    Blocker, DropPlan, DropRequest, ProcessState, ThreadPrivileges, plan_drop,
};
use crate::scope::ScopeKind;

/// The requested permanent identity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Target {
    pub(crate) group: Gid,
    pub(crate) user: Option<Uid>,
    pub(crate) supplementary: Option<Arc<[Gid]>>,
    pub(crate) no_new_privs: bool,
}

/// The facts verified after a drop.
#[derive(Clone, Debug)]
pub(crate) struct Verified {
    pub(crate) supplementary: Vec<Gid>,
    pub(crate) supplementary_unchanged: bool,
    pub(crate) threads: usize,
    pub(crate) regain_attempts_refused: usize,
    pub(crate) removed_from_bounding_set: bool,
    pub(crate) no_new_privs: bool,
    pub(crate) other_capabilities: bool,
}

impl Target {
    pub(crate) fn validate(&self) -> Result<(), Error> {
        let user = self.user.map(RequestedIds::both).unwrap_or_default();
        Change {
            user,
            ..self.change()
        }
        .validate()
    }

    /// The requested change of the groups.
    fn change(&self) -> Change {
        let group = RequestedIds::both(self.group);
        Change {
            group,
            supplementary: self.supplementary.clone(),
            ..Change::default()
        }
    }

    fn blocked(&self, blocker: Blocker, ids: GroupIds, threads: usize) -> DropError {
        match blocker {
            Blocker::KernelWorker(thread_id) => DropError::KernelWorker { thread_id },
            Blocker::SetgidNotEffective => DropError::SetgidNotEffective,
            Blocker::MissingSetuid => DropError::MissingSetuid {
                user: self.user.unwrap_or(Uid::UNCHANGED).as_raw(),
            },
            Blocker::MissingSetpcap => DropError::MissingSetpcap,
            Blocker::Multithreaded => DropError::Multithreaded { threads },
            Blocker::SetgroupsDenied => DropError::SetgroupsDenied,
            Blocker::SupplementaryDiffer => DropError::Change(Error::NotPermitted {
                requested: self.change().to_string(),
                ids: ids.to_string(),
                reason: PermissionDeniedReason::NoCapability,
            }),
        }
    }
}

/// How a drop failed.
#[derive(Debug)]
pub(crate) enum DropFailure {
    /// All changes so far can be restored.
    Reversible(DropError),
    /// The process has neither its old nor its new identity.
    Irreversible(DropError),
}

impl<E: Into<DropError>> From<E> for DropFailure {
    fn from(error: E) -> Self {
        DropFailure::Reversible(error.into())
    }
}

/// Performs the drop, on the change of a guard. If it fails and can be restored, the guard's
/// restore does that.
pub(crate) fn execute(applied: &mut Applied, target: &Target) -> Result<Verified, DropFailure> {
    let own_change = applied.change.clone();
    execute_steps(applied, target).inspect_err(|_| applied.change = own_change)
}

fn execute_steps(applied: &mut Applied, target: &Target) -> Result<Verified, DropFailure> {
    // Before the change: afterwards a directory on the path might not be open to the new identity.
    let unreadable = |os_error| Error::ThreadsUnreadable { os_error };
    let tasks = TaskDir::open().map_err(unreadable)?;
    let threads = tasks.read_all().map_err(unreadable)?;
    let privileges: Vec<_> = threads
        .iter()
        .map(|thread| ThreadPrivileges::new(thread, target.user))
        .collect();
    let changes_supplementary = target
        .supplementary
        .as_ref()
        .is_some_and(|wanted| threads.iter().any(|thread| !groups_match(thread, wanted)));
    let process = ProcessState {
        default_securebits: read::read_securebits()?.is_empty(),
        setgroups_denied: namespace::setgroups_is_denied(),
    };
    let request = DropRequest {
        user: target.user,
        changes_supplementary,
    };
    let original_ids = applied.original.group_ids;
    let plan = plan_drop(&privileges, process, request)
        .map_err(|blocker| target.blocked(blocker, original_ids, threads.len()))?;
    check_same_identity(target, plan, &threads)?;

    let original_groups = read::supplementary_groups()?;
    let target_groups: Option<Arc<[Gid]>> = plan
        .sets_groups
        .then(|| target.supplementary.clone().unwrap_or_default());
    // Check everything that can be checked before changing any state.
    if let Some(user) = target
        .user
        .filter(|&user| !namespace::are_mapped([user].into_iter()))
    {
        return Err(DropError::UnmappedUid {
            user: user.as_raw(),
        }
        .into());
    }
    let new_groups = target_groups
        .iter()
        .flat_map(|groups| groups.iter().copied());
    if !namespace::are_mapped(new_groups.chain([target.group])) {
        let (requested, ids) = (target.change().to_string(), original_ids.to_string());
        return Err(Error::UnmappedGid { requested, ids }.into());
    }
    let syscall_failed = |call, os_error| {
        let (requested, ids) = (target.change().to_string(), original_ids.to_string());
        DropError::Change(Error::SyscallFailed {
            call,
            requested,
            ids,
            os_error,
        })
    };
    if !plan.capabilities_to_drop.is_empty() {
        // Set the sets to their current values, to find out whether setting them is allowed.
        set::set_capabilities(read::read_capabilities()?)
            .map_err(|errno| syscall_failed("capset", errno.into()))?;
    }
    // The steps below read these after they take effect, when nothing can be restored.
    Uid::read_res().map_err(|errno| Error::read_failed(Uid::GETRES, errno))?;
    read::is_in_bounding_set(CapabilitySet::SETGID)?;
    read::has_no_new_privs()?;

    // Without CAP_SETGID nothing can be restored, nor can an id without a mapping.
    let originals = original_ids.to_array();
    let hides_unmapped =
        namespace::may_hide_unmapped(originals.into_iter().chain(original_groups.clone()));
    let is_reversible = plan.sets_groups && !hides_unmapped;
    if let Err(error) =
        applied.set_permanent_group(target.group, target_groups.clone(), hides_unmapped)
    {
        let is_restored = is_reversible || applied.restore().is_ok();
        return Err(if is_restored {
            error.into()
        } else {
            irreversible(error.to_string())
        });
    }

    let mut is_reversible = is_reversible;
    let fail = |is_reversible, call, os_error: io::Error| match is_reversible {
        true => DropFailure::Reversible(syscall_failed(call, os_error)),
        false => irreversible(format!("{call}: {os_error}")),
    };
    // After a step takes effect, or if its effect cannot be read, the drop is no longer reversible.
    let mut run_step =
        |call, set: Result<(), Errno>, took_effect: &dyn Fn() -> Result<bool, Error>| {
            set.map_err(|errno| fail(is_reversible, call, errno.into()))?;
            let took_effect =
                took_effect().map_err(|error| irreversible(format!("{call}: {error}")))?;
            is_reversible &= !took_effect;
            if took_effect {
                Ok(())
            } else {
                Err(fail(is_reversible, call, no_effect_error()))
            }
        };
    if plan.drop_from_bounding_set {
        let is_out = || read::is_in_bounding_set(CapabilitySet::SETGID).map(|is_in| !is_in);
        let dropped = set::drop_from_bounding_set(CapabilitySet::SETGID);
        run_step("prctl(PR_CAPBSET_DROP)", dropped, &is_out)?;
    }
    if let Some(user) = target.user {
        let is_set = || Ok(Uid::read_res().is_ok_and(|ids| ids == [user; 3]));
        run_step(
            "setresuid",
            Uid::set_ids(ScopeKind::Process, SetResArgs::all(user)),
            &is_set,
        )?;
    }
    if !plan.capabilities_to_drop.is_empty() {
        // Leaving user 0 might have removed them.
        let sets = read::read_capabilities().map_err(|error| irreversible(error.to_string()))?;
        let fewer = remove_capabilities(sets, plan.capabilities_to_drop);
        if fewer != sets {
            run_step("capset", set::set_capabilities(fewer), &|| {
                Ok(read::read_capabilities()? == fewer)
            })?;
        }
    }
    // The last step: nothing can clear this flag.
    if target.no_new_privs {
        run_step(
            "prctl(PR_SET_NO_NEW_PRIVS)",
            set::set_no_new_privs(),
            &read::has_no_new_privs,
        )?;
    }
    let restored = applied.signal.restore();
    restored.map_err(|error| fail(is_reversible, error.call, error.os_error))?;

    let threads =
        verify_all_threads(&tasks, target, plan, target_groups.as_deref()).map_err(irreversible)?;
    Ok(Verified {
        supplementary: union_of_groups(&threads),
        supplementary_unchanged: !plan.sets_groups,
        threads: threads.len(),
        regain_attempts_refused: assert_cannot_regain(target.group, originals, &original_groups),
        removed_from_bounding_set: plan.drop_from_bounding_set,
        no_new_privs: threads[0].no_new_privs,
        other_capabilities: threads[0].holds(CapabilitySet::all()),
    })
}

impl Applied {
    /// Sets all ids to the group, and the supplementary groups if they are given.
    ///
    /// As long as the original ids can be restored, the restore of the change does it.
    fn set_permanent_group(
        &mut self,
        group: Gid,
        supplementary: Option<Arc<[Gid]>>,
        hides_unmapped: bool,
    ) -> Result<(), Error> {
        let ids = RequestedIds::both(group);
        self.change = Change {
            group: ids,
            supplementary: supplementary.clone(),
            ..Change::default()
        };
        if let Some(groups) = supplementary {
            let before = read::supplementary_groups()?;
            steps::set_groups(self.scope, &groups).map_err(|error| self.change_error(error))?;
            self.original_groups.get_or_insert(before);
            steps::verify_groups(&groups).map_err(|error| self.change_error(error))?;
        }
        if self.group_plan.is_none() {
            self.signal = steps::ParentDeathSignal::read()?;
        }
        self.signal
            .probe()
            .map_err(|error| self.change_error(error))?;
        let before = self.current().group_ids;
        let apply = SetResArgs::all(group);
        steps::set_ids(self.scope, apply).map_err(|error| self.change_error(error))?;
        let is_mapped = |gid| !(hides_unmapped && gid == Gid::OVERFLOW);
        let restore = SetResArgs::restoring(self.original.group_ids, is_mapped);
        let inside = GroupIds::all(group);
        self.group_plan = Some(GroupPlan {
            apply,
            inside,
            restore,
        });
        steps::verify_ids(inside, before).map_err(|error| self.change_error(error))?;
        self.signal
            .restore()
            .map_err(|error| self.change_error(error))
    }
}

impl ThreadPrivileges {
    fn new(thread: &ThreadIds, user: Option<Uid>) -> Self {
        let [real, effective, saved, _] = thread.user_ids.to_array();
        let users = [real, effective, saved];
        ThreadPrivileges {
            thread_id: thread.thread_id,
            is_kernel_worker: thread.is_kernel_worker,
            holds_setgid: thread.holds(CapabilitySet::SETGID),
            setgid_effective: thread.effective.contains(CapabilitySet::SETGID),
            setgid_inheritable: thread.inheritable.contains(CapabilitySet::SETGID),
            setgid_in_bounding_set: thread.bounding.contains(CapabilitySet::SETGID),
            setuid_effective: thread.effective.contains(CapabilitySet::SETUID),
            setuid_permitted: thread.permitted.contains(CapabilitySet::SETUID),
            setpcap_effective: thread.effective.contains(CapabilitySet::SETPCAP),
            setpcap_permitted: thread.permitted.contains(CapabilitySet::SETPCAP),
            has_uid_0: users.contains(&Uid::ROOT),
            has_requested_uid: user.is_some_and(|user| users.contains(&user)),
        }
    }

    /// Returns whether an exec of an ordinary program, by itself or after a call, gives CAP_SETGID
    /// to this thread.
    fn has_setgid_after_exec(&self) -> bool {
        let user_0_reachable = self.has_uid_0 || self.setuid_permitted;
        self.setgid_in_bounding_set && (user_0_reachable || self.setpcap_permitted)
    }
}

fn irreversible(finding: String) -> DropFailure {
    DropFailure::Irreversible(DropError::StillPrivileged { finding })
}

fn groups_match(thread: &ThreadIds, expected: &[Gid]) -> bool {
    sorted(&thread.supplementary) == sorted(expected)
}

/// Returns the supplementary groups of these threads together, each once.
fn union_of_groups(threads: &[ThreadIds]) -> Vec<Gid> {
    let groups = threads
        .iter()
        .flat_map(|thread| thread.supplementary.iter().copied());
    groups.collect::<BTreeSet<_>>().into_iter().collect()
}

/// The ambient set holds no capability that is not in these sets.
fn remove_capabilities(mut sets: CapabilitySets, capabilities: CapabilitySet) -> CapabilitySets {
    sets.effective.remove(capabilities);
    sets.permitted.remove(capabilities);
    sets.inheritable.remove(capabilities);
    sets
}

/// Refuses a drop whose rollback would give other threads the calling thread's identity, of which
/// the first of these is.
fn check_same_identity(
    target: &Target,
    plan: DropPlan,
    threads: &[ThreadIds],
) -> Result<(), DropError> {
    let (caller, others) = (&threads[0], &threads[1..]);
    for thread in others {
        let differences = [
            (
                target.user.is_some() && differ(thread.user_ids, caller.user_ids),
                "other user ids",
            ),
            (
                differ(thread.group_ids, caller.group_ids),
                "other group ids",
            ),
            (
                plan.sets_groups && !groups_match(thread, &caller.supplementary),
                "other supplementary groups",
            ),
        ];
        if let Some((_, finding)) = differences.iter().find(|(is_so, _)| *is_so) {
            return Err(DropError::ThreadDiffers {
                thread_id: thread.thread_id,
                name: thread.name.clone(),
                finding,
            });
        }
    }
    Ok(())
}

/// How long to wait for threads that libc skips because they are ending.
const EXITING_THREAD_TIMEOUT: Duration = Duration::from_millis(200);

/// Reads every thread, and returns the first violation that lasts.
fn verify_all_threads(
    tasks: &TaskDir,
    target: &Target,
    plan: DropPlan,
    groups: Option<&[Gid]>,
) -> Result<Vec<ThreadIds>, String> {
    let deadline = Instant::now() + EXITING_THREAD_TIMEOUT;
    loop {
        let threads = tasks
            .read_all()
            .map_err(|os_error| Error::ThreadsUnreadable { os_error }.to_string())?;
        match first_violation(&threads, target, plan, groups) {
            None => return Ok(threads),
            Some(violation) if Instant::now() > deadline => return Err(violation),
            Some(_) => std::thread::sleep(Duration::from_millis(1)),
        }
    }
}

/// Returns the first defect of one of these threads. The calling thread comes first.
fn first_violation(
    threads: &[ThreadIds],
    target: &Target,
    plan: DropPlan,
    groups: Option<&[Gid]>,
) -> Option<String> {
    for thread in threads {
        let has_user = |user| thread.user_ids.to_array() == [user; 4];
        let violations = [
            (thread.is_kernel_worker, "is a kernel worker"),
            (
                thread.group_ids != GroupIds::all(target.group),
                "has another group id",
            ),
            (
                groups.is_some_and(|groups| !groups_match(thread, groups)),
                "has other supplementary groups",
            ),
            (thread.holds(CapabilitySet::SETGID), "holds CAP_SETGID"),
            (
                target.user.is_some_and(|user| !has_user(user)),
                "has another user id",
            ),
            (
                ThreadPrivileges::new(thread, target.user).has_setgid_after_exec(),
                "would be given CAP_SETGID by an exec",
            ),
        ];
        if let Some((_, violation)) = violations.iter().find(|(is_so, _)| *is_so) {
            return Some(format!(
                "thread {} ({}) {violation}",
                thread.thread_id, thread.name
            ));
        }
    }
    let held = threads[0].permitted | threads[0].inheritable;
    let kept = held & plan.capabilities_to_drop;
    (!kept.is_empty()).then(|| format!("the calling thread still holds {kept:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::Ids;

    /// A thread after a drop to group 33 and user 1234.
    fn dropped() -> ThreadIds {
        ThreadIds {
            group_ids: Ids::all(Gid::from_raw(33)),
            user_ids: Ids::all(Uid::from_raw(1234)),
            supplementary: [4, 33].map(Gid::from).to_vec(),
            effective: CapabilitySet::empty(),
            permitted: CapabilitySet::empty(),
            inheritable: CapabilitySet::empty(),
            ambient: CapabilitySet::empty(),
            bounding: CapabilitySet::all(),
            thread_id: 7,
            name: "other".into(),
            is_kernel_worker: false,
            no_new_privs: false,
        }
    }

    fn changed(change: fn(&mut ThreadIds)) -> ThreadIds {
        let mut thread = dropped();
        change(&mut thread);
        thread
    }

    fn target(user: Option<u32>) -> Target {
        let user = user.map(Uid::from_raw);
        Target {
            group: Gid::from_raw(33),
            user,
            supplementary: None,
            no_new_privs: false,
        }
    }

    const PLAN: DropPlan = DropPlan {
        sets_groups: true,
        drop_from_bounding_set: false,
        capabilities_to_drop: CapabilitySet::SETGID
            .union(CapabilitySet::SETUID)
            .union(CapabilitySet::SETPCAP),
    };

    #[test]
    fn finds_each_violation_on_any_thread() {
        let groups = [33, 4].map(Gid::from);
        let found = |threads: &[ThreadIds]| {
            first_violation(threads, &target(Some(1234)), PLAN, Some(&groups))
        };
        assert_eq!(found(&[dropped(), dropped()]), None);
        // Other capabilities may be held, and groups that were not set may differ.
        let chown = changed(|thread| {
            (thread.permitted, thread.inheritable) = (CapabilitySet::CHOWN, CapabilitySet::CHOWN);
        });
        assert_eq!(found(&[chown]), None);
        let other_groups = changed(|thread| thread.supplementary = vec![Gid::from_raw(5)]);
        assert_eq!(
            first_violation(&[other_groups], &target(Some(1234)), PLAN, None),
            None
        );

        type Violation = (fn(&mut ThreadIds), &'static str);
        let anywhere: [Violation; 16] = [
            (
                |thread| thread.group_ids.real = Gid::from_raw(7),
                "another group id",
            ),
            (
                |thread| thread.group_ids.effective = Gid::from_raw(7),
                "another group id",
            ),
            (
                |thread| thread.group_ids.saved = Gid::from_raw(7),
                "another group id",
            ),
            (
                |thread| thread.group_ids.filesystem = Gid::from_raw(7),
                "another group id",
            ),
            (
                |thread| thread.supplementary = vec![Gid::from_raw(33)],
                "other supplementary groups",
            ),
            (
                |thread| thread.supplementary.push(Gid::from_raw(5)),
                "other supplementary groups",
            ),
            (
                |thread| thread.permitted = CapabilitySet::SETGID,
                "holds CAP_SETGID",
            ),
            (
                |thread| thread.inheritable = CapabilitySet::SETGID,
                "holds CAP_SETGID",
            ),
            (
                |thread| thread.ambient = CapabilitySet::SETGID,
                "holds CAP_SETGID",
            ),
            (
                |thread| {
                    (thread.permitted, thread.ambient) =
                        (CapabilitySet::SETGID, CapabilitySet::SETGID)
                },
                "holds CAP_SETGID",
            ),
            (|thread| thread.user_ids.real = Uid::ROOT, "another user id"),
            (
                |thread| thread.user_ids.effective = Uid::ROOT,
                "another user id",
            ),
            (
                |thread| thread.user_ids.saved = Uid::ROOT,
                "another user id",
            ),
            (
                |thread| thread.user_ids.filesystem = Uid::ROOT,
                "another user id",
            ),
            (
                |thread| thread.permitted = CapabilitySet::SETUID,
                "given CAP_SETGID by an exec",
            ),
            (
                |thread| thread.permitted = CapabilitySet::SETPCAP,
                "given CAP_SETGID by an exec",
            ),
        ];
        for (change, wrong) in anywhere {
            for threads in [[changed(change), dropped()], [dropped(), changed(change)]] {
                let violation = found(&threads).expect(wrong);
                assert!(
                    violation.starts_with("thread 7 (other)") && violation.contains(wrong),
                    "{violation}"
                );
            }
        }
        assert!(found(&[changed(|thread| thread.is_kernel_worker = true)]).is_some());
        // User 0, which stays.
        let user_0 = [changed(|thread| thread.user_ids = Ids::all(Uid::ROOT))];
        let violation = first_violation(&user_0, &target(None), PLAN, Some(&groups));
        assert!(violation.is_some_and(|violation| violation.contains("by an exec")));
        let kept: [fn(&mut ThreadIds); 2] = [
            |thread| {
                thread.permitted = CapabilitySet::SETUID;
                thread.bounding.remove(CapabilitySet::SETGID);
            },
            |thread| {
                thread.inheritable = CapabilitySet::SETPCAP;
                thread.bounding.remove(CapabilitySet::SETGID);
            },
        ];
        for change in kept {
            assert!(found(&[changed(change)]).is_some_and(|found| found.contains("still holds")));
        }
    }

    #[test]
    fn a_report_names_each_group_once() {
        let threads = [
            changed(|thread| thread.supplementary = [33, 4, 4].map(Gid::from).to_vec()),
            changed(|thread| thread.supplementary = [5, 33].map(Gid::from).to_vec()),
        ];
        assert_eq!(union_of_groups(&threads), [4, 5, 33].map(Gid::from));
    }
}

//! The permanent drop: its steps, and their rollback as long as there is one.

use std::io;
use std::sync::Arc;

use rustix::thread::{CapabilitySet, CapabilitySets};

use super::abort;
use super::applied::{Applied, Parts};
use super::drop_plan;
use super::new_root::NewRoot;
use super::stack::Restore;
use super::steps;
use super::target::Target;
use super::verify::{OldIdentity, Requirements, assert_cannot_regain};
use crate::error::DropError;
use crate::error::{Error, no_effect_error};
use crate::ids::{Gid, GroupIds, Id, Uid, UserIds};
use crate::kernel::namespace;
use crate::kernel::read::{self, ReadIds};
use crate::kernel::set::{self, SetIds};
use crate::kernel::task_dir::TaskDir;
use crate::kernel::threads::ThreadIds;
use crate::plan::SetResArgs;
use crate::plan::groups::GroupPlan;
use crate::plan::permanent::{CapabilityStep, DropPlan};
use crate::scope::ScopeKind;

/// What was verified after a drop.
#[derive(Clone, Debug)]
pub(crate) struct Verified {
    pub(crate) group: Gid,
    pub(crate) supplementary: Vec<Gid>,
    pub(crate) supplementary_unchanged: bool,
    pub(crate) threads: usize,
    pub(crate) regain_attempts_refused: usize,
    pub(crate) removed_from_bounding_set: bool,
    pub(crate) no_new_privs: bool,
    pub(crate) other_capabilities: bool,
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

fn irreversible(finding: String) -> DropFailure {
    DropFailure::Irreversible(DropError::StillPrivileged { finding })
}

/// Performs the drop, on the change of a guard. If it fails and can be restored, the guard's
/// restore does that.
pub(crate) fn execute(applied: &mut Applied, target: &Target) -> Result<Verified, DropFailure> {
    let own_change = applied.change.clone();
    execute_steps(applied, target).inspect_err(|_| applied.change = own_change)
}

fn execute_steps(applied: &mut Applied, target: &Target) -> Result<Verified, DropFailure> {
    if applied.user_plan.is_some() {
        // From the original state: under another effective user the capabilities are not usable.
        applied
            .restore_in_place()
            .map_err(|error| irreversible(error.to_string()))?;
    }
    // Opened before the change: there might be no /proc in the new root.
    let tasks = TaskDir::open().map_err(Error::threads_unreadable)?;
    if applied.tasks.is_none() {
        // Its restore, too, verifies all threads.
        applied.tasks = Some(TaskDir::open().map_err(Error::threads_unreadable)?);
    }
    let threads = tasks.read_all().map_err(Error::threads_unreadable)?;
    let plan = drop_plan::plan(target, &threads)?;
    let groups = plan.sets_groups.then(|| target.wanted_groups());

    let mut steps = Steps::prepare(applied, target, plan, &tasks, &threads)?;
    if let Err(failure) = steps.make(groups.clone()) {
        return Err(steps.roll_back(failure));
    }
    let mut old = steps.old;
    let requirements = Requirements {
        target,
        groups: groups.as_deref(),
    };
    let threads = requirements.verify(&tasks).map_err(irreversible)?;
    if applied.original.kinds.groups {
        old.groups.extend(applied.original.group_ids.to_array());
    }
    if let Some((original, _)) = applied.absorbed.as_ref().and_then(|outer| outer.group_ids) {
        old.groups.extend(original.to_array());
    }
    let supplementary = threads
        .iter()
        .flat_map(|thread| thread.supplementary.iter());
    Ok(Verified {
        group: threads[0].group_ids.effective,
        supplementary: unique(supplementary.copied()),
        supplementary_unchanged: !plan.sets_groups,
        threads: threads.len(),
        regain_attempts_refused: assert_cannot_regain(target, &old),
        removed_from_bounding_set: plan.drop_from_bounding_set,
        no_new_privs: threads.iter().all(|thread| thread.no_new_privs),
        other_capabilities: threads[0].holds(CapabilitySet::all().difference(target.keep)),
    })
}

/// Each of these groups once, sorted.
fn unique(groups: impl Iterator<Item = Gid>) -> Vec<Gid> {
    let mut groups: Vec<Gid> = groups.collect();
    groups.sort_unstable();
    groups.dedup();
    groups
}

/// The steps of one drop, and how far they have come.
struct Steps<'a> {
    applied: &'a mut Applied,
    target: &'a Target,
    plan: DropPlan,
    tasks: &'a TaskDir,
    threads: &'a [ThreadIds],
    old: OldIdentity,
    hides_unmapped: bool,
    /// Everything so far can be restored.
    is_reversible: bool,
    root: Option<NewRoot<'a>>,
    has_set_keep_caps: bool,
}

impl<'a> Steps<'a> {
    /// Checks everything that can be checked before changing any state.
    fn prepare(
        applied: &'a mut Applied,
        target: &'a Target,
        plan: DropPlan,
        tasks: &'a TaskDir,
        threads: &'a [ThreadIds],
    ) -> Result<Self, DropError> {
        let current_groups = read::supplementary_groups()?;
        let original_groups = applied.original_groups.clone().unwrap_or(current_groups);
        if applied.group_plan.is_none() {
            applied.signal = steps::ParentDeathSignal::read()?;
        }
        let probed = applied.signal.probe();
        probed.map_err(|error| target.syscall_failed(threads, error.call, error.os_error))?;
        if plan.capabilities != CapabilityStep::Nothing {
            // Set the sets to their current values, to find out whether setting them is allowed.
            set::set_capabilities(read::read_capabilities()?)
                .map_err(|errno| target.syscall_failed(threads, "capset", errno.into()))?;
        }
        // The steps read these after they take effect, when nothing can be restored.
        Uid::read_res().map_err(|errno| Error::read_failed(Uid::GETRES, errno))?;
        read::is_in_bounding_set(CapabilitySet::SETGID)?;
        read::has_no_new_privs()?;
        read::keeps_capabilities()?;

        let groups = applied
            .original
            .kinds
            .groups
            .then_some(applied.original.group_ids);
        let ids = groups.into_iter().flat_map(|ids| ids.to_array());
        let hides_unmapped = namespace::may_hide_unmapped(ids.chain(original_groups.clone()));
        let root = match &target.chroot {
            Some(path) => Some(NewRoot::prepare(path, tasks)?),
            None => None,
        };
        Ok(Steps {
            applied,
            target,
            plan,
            tasks,
            threads,
            old: OldIdentity::of(threads, original_groups),
            hides_unmapped,
            is_reversible: true,
            root,
            has_set_keep_caps: false,
        })
    }

    fn make(&mut self, groups: Option<Arc<[Gid]>>) -> Result<(), DropFailure> {
        if let Some(root) = &mut self.root {
            root.enter(self.tasks)?;
        }
        self.set_groups(groups)?;
        if self.plan.drop_from_bounding_set {
            let dropped = set::drop_from_bounding_set(CapabilitySet::SETGID);
            self.finish_step("prctl(PR_CAPBSET_DROP)", dropped, || {
                read::is_in_bounding_set(CapabilitySet::SETGID).map(|is_in| !is_in)
            })?;
        }
        if let Some(user) = self.target.user {
            self.set_user(user)?;
        }
        self.set_capabilities()?;
        // The last step: nothing can clear this flag.
        if self.target.no_new_privs {
            let set = set::set_no_new_privs();
            self.finish_step("prctl(PR_SET_NO_NEW_PRIVS)", set, read::has_no_new_privs)?;
        }
        let restored = self.applied.signal.restore();
        restored.map_err(|error| self.failed(error.call, error.os_error))
    }

    /// Sets the groups on all threads. Without CAP_SETGID nothing can be restored, nor can an id
    /// without a mapping.
    fn set_groups(&mut self, supplementary: Option<Arc<[Gid]>>) -> Result<(), DropFailure> {
        let Some(group) = self.target.group else {
            return Ok(());
        };
        let wanted = GroupIds::all(group);
        let sets_ids = self.threads.iter().any(|thread| thread.group_ids != wanted);
        let sets_groups = supplementary.is_some();
        if !sets_ids && !sets_groups {
            return Ok(());
        }
        self.is_reversible = sets_groups && !self.hides_unmapped;
        let set = self
            .applied
            .set_permanent_group(group, supplementary, self.hides_unmapped);
        let Err(error) = set else { return Ok(()) };
        let is_restored = self.is_reversible || self.applied.restore().is_ok();
        Err(match is_restored {
            true => error.into(),
            false => irreversible(error.to_string()),
        })
    }

    fn set_user(&mut self, user: Uid) -> Result<(), DropFailure> {
        const KEEP_CAPS: &str = "prctl(PR_SET_KEEPCAPS)";

        let wanted = UserIds::all(user);
        if self.threads.iter().all(|thread| thread.user_ids == wanted) {
            return Ok(());
        }
        let keeps = || read::keeps_capabilities();
        let sets_keep_caps = self.plan.keeps_over_setresuid
            && !keeps().map_err(|error| self.unreadable("prctl(PR_GET_KEEPCAPS)", &error))?;
        if sets_keep_caps {
            set::set_keep_capabilities(true)
                .map_err(|errno| self.failed(KEEP_CAPS, errno.into()))?;
            self.has_set_keep_caps = true;
            if !keeps().is_ok_and(|keeps| keeps) {
                return Err(self.failed(KEEP_CAPS, no_effect_error()));
            }
        }
        let set = Uid::set_ids(ScopeKind::Process, SetResArgs::all(user));
        self.finish_step(Uid::SETRES, set, || {
            Ok(Uid::read_res().is_ok_and(|ids| ids == [user; 3]))
        })?;
        if self.has_set_keep_caps {
            let set = set::set_keep_capabilities(false);
            self.finish_step(KEEP_CAPS, set, || keeps().map(|keeps| !keeps))?;
        }
        Ok(())
    }

    fn set_capabilities(&mut self) -> Result<(), DropFailure> {
        if self.plan.capabilities == CapabilityStep::Nothing {
            return Ok(());
        }
        // Setting the user might have removed them.
        let sets = read::read_capabilities().map_err(|error| self.unreadable("capget", &error))?;
        let wanted = match self.plan.capabilities {
            // The ambient set holds no capability that is not permitted and inheritable.
            CapabilityStep::Exactly(kept) => CapabilitySets {
                effective: kept,
                permitted: kept,
                inheritable: CapabilitySet::empty(),
            },
            _ => CapabilitySets {
                effective: sets.effective.difference(CapabilitySet::SETGID),
                permitted: sets.permitted.difference(CapabilitySet::SETGID),
                inheritable: sets.inheritable.difference(CapabilitySet::SETGID),
            },
        };
        if wanted == sets {
            return Ok(());
        }
        let set = set::set_capabilities(wanted);
        self.finish_step("capset", set, || Ok(read::read_capabilities()? == wanted))
    }

    /// After a step takes effect, or if its effect cannot be read, the drop is no longer
    /// reversible.
    fn finish_step(
        &mut self,
        call: &'static str,
        set: Result<(), nix::errno::Errno>,
        took_effect: impl FnOnce() -> Result<bool, Error>,
    ) -> Result<(), DropFailure> {
        set.map_err(|errno| self.failed(call, errno.into()))?;
        let took_effect =
            took_effect().map_err(|error| irreversible(format!("{call}: {error}")))?;
        self.is_reversible &= !took_effect;
        match took_effect {
            true => Ok(()),
            false => Err(self.failed(call, no_effect_error())),
        }
    }

    fn failed(&self, call: &'static str, os_error: io::Error) -> DropFailure {
        match self.is_reversible {
            true => self
                .target
                .syscall_failed(self.threads, call, os_error)
                .into(),
            false => irreversible(format!("{call}: {os_error}")),
        }
    }

    fn unreadable(&self, call: &'static str, error: &Error) -> DropFailure {
        self.failed(call, io::Error::other(error.to_string()))
    }

    /// Restores what the guard does not, if everything can be restored. A refused rollback aborts.
    fn roll_back(self, failure: DropFailure) -> DropFailure {
        if matches!(failure, DropFailure::Irreversible(_)) {
            return failure;
        }
        if self.has_set_keep_caps {
            let is_cleared = set::set_keep_capabilities(false).is_ok()
                && matches!(read::keeps_capabilities(), Ok(false));
            if !is_cleared {
                abort::abort_with(&"cannot restore PR_SET_KEEPCAPS");
            }
        }
        if let Some(root) = &self.root {
            // The groups first: they might decide whether the old directories can be entered.
            let restored = self.applied.restore_in_place();
            restored.unwrap_or_else(|error| abort::abort_with(&error));
            root.leave(self.tasks).unwrap_or_else(|error| {
                abort::abort_with(&format_args!("cannot restore the root directory: {error}"))
            });
        }
        failure
    }
}

impl Applied {
    /// Restores the original state, and keeps the frame of the guard.
    fn restore_in_place(&mut self) -> Result<(), crate::error::RestoreError> {
        self.restore()?;
        (self.group_plan, self.user_plan, self.original_groups) = (None, None, None);
        self.changed = Parts::default();
        Ok(())
    }

    /// Sets all ids to the group, and the supplementary groups if they are given.
    ///
    /// As long as the original ids can be restored, the restore of the change does it.
    fn set_permanent_group(
        &mut self,
        group: Gid,
        supplementary: Option<Arc<[Gid]>>,
        hides_unmapped: bool,
    ) -> Result<(), Error> {
        self.change = Target {
            supplementary: supplementary.clone(),
            ..Target::new(Some(group), None)
        }
        .change();
        self.changed.group_ids = true;
        self.changed.supplementary |= supplementary.is_some();
        if let Some(groups) = supplementary {
            let before = read::supplementary_groups()?;
            steps::set_groups(self.scope, &groups).map_err(|error| self.change_error(error))?;
            self.original_groups.get_or_insert(before);
            steps::verify_groups(&groups).map_err(|error| self.change_error(error))?;
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_names_each_group_once() {
        let groups = [33, 4, 4, 5, 33].map(Gid::from);
        assert_eq!(unique(groups.into_iter()), [4, 5, 33].map(Gid::from));
    }
}

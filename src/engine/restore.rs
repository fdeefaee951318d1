//! The restore of a change, in the reverse order of its steps.

use std::time::Instant;

use nix::errno::Errno;

use super::applied::{Absorbed, Applied, Originals};
use super::stack::Restore;
use super::steps::{self, StepError};
use super::{event, reasons};
use crate::error::{RestoreError, Unrestored};
use crate::identity::sorted;
use crate::ids::{Gid, GroupIds, Uid};
use crate::kernel::mismatch::Mismatch;
use crate::kernel::read;
use crate::kernel::set::SetIds;
use crate::kernel::signals::SignalsBlocked;
use crate::plan::SetResArgs;
use crate::plan::identity::Order;
use crate::plan::users::UserPlan;
use crate::scope::ScopeKind;

impl Restore for Applied {
    fn scope(&self) -> ScopeKind {
        self.scope
    }

    fn wants_event(&self) -> bool {
        self.started_at().is_some()
    }

    fn emit_event(&self) {
        let elapsed = self
            .started_at()
            .map(|started| started.elapsed())
            .unwrap_or_default();
        let (change, original) = match &self.absorbed {
            Some(absorbed) => (&absorbed.change, &absorbed.original),
            None => (&self.change, &self.original),
        };
        event::ended(self.scope, change, original, elapsed);
    }

    fn restore(&self) -> Result<(), RestoreError> {
        self.restore_to(self.absorbed.as_deref())
    }

    fn absorb(&mut self, outer: Self) -> Result<(), Self> {
        // Do not merge user changes: their capability sets do not follow from the ids alone.
        if self.user_plan.is_some() || outer.user_plan.is_some() {
            return Err(outer);
        }
        self.changed = self.changed.union(outer.changed);
        self.tasks = self.tasks.take().or(outer.tasks);
        let mut absorbed = Absorbed {
            group_ids: outer
                .group_plan
                .map(|plan| (outer.original.group_ids, plan.restore)),
            change: outer.change,
            original: outer.original,
            supplementary: outer.original_groups,
            signal: outer.signal,
            started_at: outer.started_at,
        };
        if let Some(outermost) = outer.absorbed {
            absorbed = outermost.around(absorbed);
        }
        if let Some(inner) = self.absorbed.take() {
            absorbed = absorbed.around(*inner);
        }
        self.absorbed = Some(Box::new(absorbed));
        Ok(())
    }
}

impl Absorbed {
    /// Merges with `inner`, which was changed after this.
    fn around(self, inner: Self) -> Self {
        let (group_ids, signal) = match (self.group_ids, inner.group_ids) {
            (Some((original, outer)), Some((_, inner))) => {
                (Some((original, outer.or(inner))), self.signal)
            }
            (Some(outer), None) => (Some(outer), self.signal),
            (None, group_ids) => (group_ids, inner.signal),
        };
        Absorbed {
            group_ids,
            signal,
            supplementary: self.supplementary.or(inner.supplementary),
            ..self
        }
    }
}

impl Applied {
    fn started_at(&self) -> Option<Instant> {
        match &self.absorbed {
            Some(absorbed) => absorbed.started_at,
            None => self.started_at,
        }
    }

    /// Restores the identity before this change, or before the changes that it has absorbed.
    pub(super) fn restore_to(&self, absorbed: Option<&Absorbed>) -> Result<(), RestoreError> {
        // No handler may run with capabilities that the thread did not have.
        let raises = self
            .user_plan
            .is_some_and(|plan| plan.restore.raises_effective);
        let blocked = raises.then(SignalsBlocked::new);
        let restored = self.restore_steps(absorbed);
        if restored.is_err() {
            // The process must end, and may still have these capabilities.
            std::mem::forget(blocked);
        }
        restored
    }

    fn restore_steps(&self, absorbed: Option<&Absorbed>) -> Result<(), RestoreError> {
        match self.order {
            Order::GroupsFirst => {
                self.restore_users()?;
                if absorbed.is_some() {
                    // Its groups might need a capability that this change does not.
                    self.restore_capabilities()?;
                }
                self.restore_groups(absorbed)?;
                self.restore_supplementary(absorbed)?;
            }
            Order::UserFirst => {
                self.restore_groups(absorbed)?;
                self.restore_supplementary(absorbed)?;
                self.restore_users()?;
            }
        }
        // After all ids: each change of a user id might change the sets again.
        self.restore_capabilities()?;
        let outer = absorbed.filter(|absorbed| absorbed.group_ids.is_some());
        let signal = outer.map_or(self.signal, |absorbed| absorbed.signal);
        signal
            .restore()
            .map_err(restore_error(Unrestored::ParentDeathSignal))?;
        self.check_restored_threads(absorbed)
    }

    fn restore_groups(&self, absorbed: Option<&Absorbed>) -> Result<(), RestoreError> {
        let outer = absorbed.and_then(|absorbed| absorbed.group_ids);
        let (original, restore) = match (outer, &self.group_plan) {
            (None, None) => return Ok(()),
            (None, Some(plan)) => (self.original.group_ids, plan.restore),
            (Some(outer), None) => outer,
            (Some((original, outer)), Some(plan)) => (original, outer.or(plan.restore)),
        };
        let filesystem_id = Unrestored::FilesystemGid(original.filesystem);
        self.restore_group_ids(original, restore)
            .map_err(restore_ids_error(
                filesystem_id,
                Unrestored::GroupIds(original),
            ))
    }

    pub(super) fn restore_group_ids(
        &self,
        original: GroupIds,
        restore: SetResArgs<Gid>,
    ) -> Result<(), StepError> {
        let inside = self.current().group_ids;
        steps::set_ids(self.scope, restore)?;
        if original.filesystem != original.effective {
            steps::set_filesystem_id(original.filesystem);
        }
        steps::verify_ids(original, inside)
    }

    fn restore_supplementary(&self, absorbed: Option<&Absorbed>) -> Result<(), RestoreError> {
        let Some(groups) = self.groups_before(absorbed) else {
            return Ok(());
        };
        self.restore_groups_list(groups)
            .map_err(restore_error(Unrestored::SupplementaryGroups))
    }

    pub(super) fn restore_groups_list(&self, groups: &[Gid]) -> Result<(), StepError> {
        steps::set_groups(self.scope, groups)?;
        steps::verify_groups(groups)
    }

    fn groups_before<'a>(&'a self, absorbed: Option<&'a Absorbed>) -> Option<&'a [Gid]> {
        let outer = absorbed.and_then(|absorbed| absorbed.supplementary.as_deref());
        outer.or(self.original_groups.as_deref())
    }

    fn restore_users(&self) -> Result<(), RestoreError> {
        let Some(plan) = &self.user_plan else {
            return Ok(());
        };
        let original = self.original.user_ids;
        let filesystem_id = Unrestored::FilesystemUid(original.filesystem);
        self.restore_user_ids(plan).map_err(restore_ids_error(
            filesystem_id,
            Unrestored::UserIds(original),
        ))
    }

    /// Restores the user ids, and leaves the capability sets as the kernel then has them.
    pub(super) fn restore_user_ids(&self, plan: &UserPlan) -> Result<(), StepError> {
        let restore = &plan.restore;
        if restore.capset_before_ids {
            steps::set_capabilities(restore.sets)?;
        }
        if let Some(ids) = restore.ids {
            steps::set_ids(self.scope, ids)?;
        }
        if restore.capset_before_filesystem {
            steps::set_capabilities(restore.sets)?;
        }
        restore
            .filesystem
            .into_iter()
            .for_each(steps::set_filesystem_id);
        steps::verify_ids(self.original.user_ids, plan.inside.ids)
    }

    fn restore_capabilities(&self) -> Result<(), RestoreError> {
        let Some(plan) = &self.user_plan else {
            return Ok(());
        };
        self.restore_capability_sets(plan)
            .map_err(restore_error(Unrestored::Capabilities))
    }

    pub(super) fn restore_capability_sets(&self, plan: &UserPlan) -> Result<(), StepError> {
        let restore = &plan.restore;
        if read::read_capabilities()? != restore.sets {
            steps::set_capabilities(restore.sets)?;
        }
        steps::raise_ambient(restore.ambient)
    }

    fn check_restored_threads(&self, absorbed: Option<&Absorbed>) -> Result<(), RestoreError> {
        let Some(tasks) = &self.tasks else {
            return Ok(());
        };
        let groups = self.groups_before(absorbed).map(sorted);
        let outer_ids = absorbed.and_then(|absorbed| absorbed.group_ids);
        let original = Originals {
            group_ids: outer_ids.map_or(self.original.group_ids, |(original, _)| original),
            ..self.original
        };
        let expected = self.expected(original, self.current(), groups.as_deref());
        let found = tasks.reopen_in_forked_child().and_then(|of_child| {
            let tasks = of_child.as_ref().unwrap_or(tasks);
            tasks.find_mismatch(&expected)
        });
        let (thread_id, os_error) = match found {
            Ok(None) => return Ok(()),
            Ok(Some(Mismatch { thread_id, .. })) => (thread_id, crate::error::no_effect_error()),
            Err(error) => (0, error),
        };
        let what = Unrestored::OtherThread { thread_id };
        Err(RestoreError::Refused {
            what,
            call: "verification of all threads",
            os_error,
            lost_capability: None,
        })
    }
}

fn restore_ids_error(
    filesystem_id: Unrestored,
    all_ids: Unrestored,
) -> impl FnOnce(StepError) -> RestoreError {
    |error| {
        let what = match sets_filesystem_id(&error) {
            true => filesystem_id,
            false => all_ids,
        };
        restore_error(what)(error)
    }
}

fn sets_filesystem_id(error: &StepError) -> bool {
    [Gid::SETFS, Uid::SETFS].contains(&error.call)
}

fn restore_error(what: Unrestored) -> impl FnOnce(StepError) -> RestoreError {
    move |error| {
        // The calls that set a filesystem id report no error.
        let is_refused = sets_filesystem_id(&error) || error.errno() == Some(Errno::EPERM);
        let lost_capability = is_refused
            .then(|| reasons::lost_capability(&what))
            .flatten();
        RestoreError::Refused {
            what,
            call: error.call,
            os_error: error.os_error,
            lost_capability,
        }
    }
}

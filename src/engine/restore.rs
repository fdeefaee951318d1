//! The restore of a change, in the reverse order of its steps.

use nix::errno::Errno;

use super::applied::Applied;
use super::stack::Restore;
use super::steps::{self, StepError};
use super::{event, reasons};
use crate::error::{RestoreError, Unrestored};
use crate::identity::sorted;
use crate::ids::{Gid, Uid};
use crate::kernel::mismatch::Mismatch;
use crate::kernel::read;
use crate::kernel::set::SetIds;
use crate::kernel::signals::SignalsBlocked;
use crate::plan::identity::Order;
use crate::plan::users::UserPlan;
use crate::scope::ScopeKind;

impl Restore for Applied {
    fn scope(&self) -> ScopeKind {
        self.scope
    }

    fn wants_event(&self) -> bool {
        self.started_at.is_some()
    }

    fn emit_event(&self) {
        let elapsed = self
            .started_at
            .map(|started| started.elapsed())
            .unwrap_or_default();
        let change = self.outermost_change.as_ref().unwrap_or(&self.change);
        event::ended(self.scope, change, &self.original, elapsed);
    }

    fn restore(&self) -> Result<(), RestoreError> {
        // No handler may run with capabilities that the thread did not have.
        let raises = self
            .user_plan
            .is_some_and(|plan| plan.restore.raises_effective);
        let _blocked = raises.then(SignalsBlocked::new);
        match self.order {
            Order::GroupsFirst => {
                self.restore_users()?;
                self.restore_groups()?;
                self.restore_supplementary()?;
            }
            Order::UserFirst => {
                self.restore_groups()?;
                self.restore_supplementary()?;
                self.restore_users()?;
            }
        }
        // After all ids: each change of a user id might change the sets again.
        self.restore_capabilities()?;
        self.signal
            .restore()
            .map_err(refused(Unrestored::ParentDeathSignal))?;
        self.check_restored_threads()
    }

    fn absorb(&mut self, outer: Self) -> Result<(), Self> {
        // Do not merge user changes: their capability sets do not follow from the ids alone.
        if self.user_plan.is_some() || outer.user_plan.is_some() {
            return Err(outer);
        }
        if let Some(mut plan) = outer.group_plan {
            self.original.group_ids = outer.original.group_ids;
            if let Some(inner) = self.group_plan {
                plan.inside = inner.inside;
                plan.restore.real = plan.restore.real.or(inner.restore.real);
                plan.restore.effective = plan.restore.effective.or(inner.restore.effective);
                plan.restore.saved = plan.restore.saved.or(inner.restore.saved);
            }
            self.group_plan = Some(plan);
            self.signal = outer.signal;
        }
        self.original_groups = outer.original_groups.or(self.original_groups.take());
        self.changed = self.changed.union(outer.changed);
        self.tasks = self.tasks.take().or(outer.tasks);
        self.started_at = outer.started_at;
        self.outermost_change = Some(outer.outermost_change.unwrap_or(outer.change));
        Ok(())
    }
}

impl Applied {
    fn restore_groups(&self) -> Result<(), RestoreError> {
        let Some(plan) = &self.group_plan else {
            return Ok(());
        };
        let original = self.original.group_ids;
        let odd_filesystem_id =
            (original.filesystem != original.effective).then_some(original.filesystem);
        steps::set_ids(self.scope, plan.restore)
            .and_then(|()| {
                odd_filesystem_id
                    .into_iter()
                    .for_each(steps::set_filesystem_id);
                steps::verify_ids(original, plan.inside)
            })
            .map_err(|error| {
                let is_filesystem_id = error.call == Gid::SETFS;
                refused(match is_filesystem_id {
                    true => Unrestored::FilesystemGid(original.filesystem),
                    false => Unrestored::GroupIds(original),
                })(error)
            })
    }

    fn restore_supplementary(&self) -> Result<(), RestoreError> {
        let Some(groups) = &self.original_groups else {
            return Ok(());
        };
        steps::set_groups(self.scope, groups)
            .and_then(|()| steps::verify_groups(groups))
            .map_err(refused(Unrestored::SupplementaryGroups))
    }

    fn restore_users(&self) -> Result<(), RestoreError> {
        let Some(plan) = &self.user_plan else {
            return Ok(());
        };
        let original = self.original.user_ids;
        self.restore_user_ids(plan).map_err(|error| {
            let is_filesystem_id = error.call == Uid::SETFS;
            refused(match is_filesystem_id {
                true => Unrestored::FilesystemUid(original.filesystem),
                false => Unrestored::UserIds(original),
            })(error)
        })
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
            .map_err(refused(Unrestored::Capabilities))
    }

    pub(super) fn restore_capability_sets(&self, plan: &UserPlan) -> Result<(), StepError> {
        let restore = &plan.restore;
        if read::read_capabilities()? != restore.sets {
            steps::set_capabilities(restore.sets)?;
        }
        steps::raise_ambient(restore.ambient)
    }

    fn check_restored_threads(&self) -> Result<(), RestoreError> {
        let Some(tasks) = &self.tasks else {
            return Ok(());
        };
        let groups = self.original_groups.as_deref().map(sorted);
        let expected = self.expected(self.original, self.current(), groups.as_deref());
        let found = match tasks.is_of_this_process() {
            true => tasks.find_mismatch(&expected),
            false => tasks
                .of_forked_child()
                .and_then(|tasks| tasks.find_mismatch(&expected)),
        };
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

fn refused(what: Unrestored) -> impl FnOnce(StepError) -> RestoreError {
    move |error| {
        // The calls that set a filesystem id report no error.
        let sets_filesystem_id = [Gid::SETFS, Uid::SETFS].contains(&error.call);
        let is_refused = sets_filesystem_id || error.errno() == Some(Errno::EPERM);
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

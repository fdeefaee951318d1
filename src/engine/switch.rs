//! Switching an active guard directly to another identity.

use rustix::thread::CapabilitySet;

use super::abort;
use super::applied::{Applied, Plan};
use super::steps::{self, ParentDeathSignal, StepError};
use crate::change::Change;
use crate::error::Error;
use crate::identity::sorted;
use crate::ids::GroupIds;
use crate::kernel::read;
use crate::kernel::signals::SignalsBlocked;
use crate::plan::SetResArgs;
use crate::plan::identity::Order;
use crate::plan::users::UserPlan;

impl Applied {
    /// Switches to `next`, which requests the same kinds of id as the present change.
    ///
    /// If this fails, the identity is what it was.
    pub(crate) fn switch(&mut self, next: Change) -> Result<(), Error> {
        if next == self.change {
            return Ok(());
        }
        let before = std::mem::replace(&mut self.change, next);
        let switched = self.switch_from(&before);
        if switched.is_err() {
            self.change = before;
        }
        switched
    }

    fn switch_from(&mut self, before: &Change) -> Result<(), Error> {
        if let Some(tasks) = &self.tasks {
            let of_child = tasks.reopen_in_forked_child();
            if let Some(of_child) = of_child.map_err(Error::threads_unreadable)? {
                self.tasks = Some(of_child);
            }
        }
        let mut next = self.plan_switch(before)?;
        let previous = Plan {
            groups: self.group_plan,
            users: self.user_plan,
            supplementary: self.original_groups.clone(),
            order: self.order,
        };
        let passes_original = self.passes_original(&next, before);
        let may_need_others =
            || passes_original || self.user_plan.is_none() || self.changes_groups(&next, before);
        if self.tasks.is_some() && may_need_others() {
            self.check_other_threads_in_switch(&next, passes_original)?;
        }
        if self.group_plan.is_none() && self.user_plan.is_none() {
            // The guard had no ids to change so far.
            self.signal = ParentDeathSignal::read()?;
        }
        self.probe(&next)?;
        // No handler may run with capabilities that the thread did not have.
        let raises = |plan: &UserPlan| plan.restore.raises_effective;
        let _blocked = self
            .user_plan
            .as_ref()
            .is_some_and(raises)
            .then(SignalsBlocked::new);
        let mut is_changed = false;
        let switched = self
            .apply_switch(&mut next, before, passes_original, &mut is_changed)
            .map_err(|error| self.change_error(error))
            .and_then(|()| self.check_all_threads());
        let Err(error) = switched else { return Ok(()) };
        if is_changed {
            self.roll_back(before.clone(), previous);
        }
        Err(error)
    }

    /// Plans from the original identity, to which the guard must be able to return.
    fn plan_switch(&self, before: &Change) -> Result<Plan, Error> {
        // The groups to restore stay the original ones, if others were set before.
        let supplementary = match &self.original_groups {
            // Back to the original user and groups, which might not be allowed to set them.
            Some(groups)
                if self.order == Order::UserFirst
                    && sorted(self.change.supplementary.as_deref().unwrap_or_default())
                        == sorted(groups)
                    && self.plan_users()?.is_none() =>
            {
                None
            }
            Some(groups) => Some(groups.clone()),
            None if sets_groups(&self.change, before) => Some(read::supplementary_groups()?),
            None => None,
        };
        self.plan(supplementary)
    }

    fn group_ids(&self, next: &Plan) -> GroupIds {
        next.groups
            .map_or(self.original.group_ids, |plan| plan.inside)
    }

    fn changes_groups(&self, next: &Plan, before: &Change) -> bool {
        sets_groups(&self.change, before) || self.group_ids(next) != self.current().group_ids
    }

    /// Whether the switch passes through the original user.
    ///
    /// Groups can be set only under the user, original or changed, for which CAP_SETGID is
    /// effective.
    fn passes_original(&self, next: &Plan, before: &Change) -> bool {
        let Some(present) = &self.user_plan else {
            return false;
        };
        let user_ids = next
            .users
            .map_or(self.original.user_ids, |plan| plan.inside.ids);
        user_ids != present.inside.ids
            || self.changes_groups(next, before)
                && self.order == Order::GroupsFirst
                && !present.inside.effective.contains(CapabilitySet::SETGID)
    }

    fn apply_switch(
        &mut self,
        next: &mut Plan,
        before: &Change,
        passes_original: bool,
        is_changed: &mut bool,
    ) -> Result<(), StepError> {
        let group_ids = self.group_ids(next);
        let mut sets_groups = sets_groups(&self.change, before);
        if let Some(plan) = self.user_plan.filter(|_| passes_original) {
            *is_changed = true;
            if self.order == Order::UserFirst && next.order == Order::GroupsFirst {
                // CAP_SETGID is effective only under the changed user.
                self.leave_groups()?;
                sets_groups = next.supplementary.is_some();
            }
            self.restore_user_ids(&plan)?;
            // The next plan starts from the original state, capability sets included.
            self.restore_capability_sets(&plan)?;
            self.user_plan = None;
        }
        // A rollback must undo the steps in the order of the next plan.
        self.order = next.order;
        if next.order == Order::UserFirst {
            self.apply_next_user(next, is_changed)?;
        }
        if sets_groups {
            let wanted = self.change.supplementary.clone().unwrap_or_default();
            self.changed.supplementary = true;
            steps::set_groups(self.scope, &wanted)?;
            *is_changed = true;
            self.original_groups = next.supplementary.take().or(self.original_groups.take());
            steps::verify_groups(&wanted)?;
        }
        let now = self.current();
        if group_ids != now.group_ids {
            let (real, saved) = (group_ids.real, group_ids.saved);
            let args = SetResArgs {
                real: Some(real).filter(|&real| real != now.group_ids.real),
                effective: Some(group_ids.effective),
                saved: Some(saved).filter(|&saved| saved != now.group_ids.saved),
            };
            self.changed.group_ids = true;
            steps::set_ids(self.scope, args)?;
            *is_changed = true;
            self.group_plan = next.groups.or(self.group_plan);
            steps::verify_ids(group_ids, now.group_ids)?;
        }
        if next.order == Order::GroupsFirst {
            self.apply_next_user(next, is_changed)?;
        }
        self.signal.restore()
    }

    /// Restores the original groups, under the changed user.
    fn leave_groups(&mut self) -> Result<(), StepError> {
        if let Some(plan) = self.group_plan {
            self.restore_group_ids(self.original.group_ids, plan.restore)?;
            self.group_plan = None;
        }
        if let Some(groups) = &self.original_groups {
            self.restore_groups_list(groups)?;
            self.original_groups = None;
        }
        Ok(())
    }

    fn apply_next_user(&mut self, next: &Plan, is_changed: &mut bool) -> Result<(), StepError> {
        if self.user_plan.is_some() {
            return Ok(());
        }
        *is_changed |= next.users.is_some();
        self.apply_users(next.users)
    }

    /// Returns to the identity before a failed switch, through the original one, or aborts.
    fn roll_back(&mut self, before: Change, previous: Plan) {
        self.restore_to(None)
            .unwrap_or_else(|error| abort::abort_with(&error));
        (self.group_plan, self.user_plan, self.original_groups) = (None, None, None);
        self.change = before;
        self.apply_plan(previous)
            .unwrap_or_else(|error| abort::abort_with(&error));
    }
}

fn sets_groups(next: &Change, before: &Change) -> bool {
    match (&next.supplementary, &before.supplementary) {
        (Some(next), Some(before)) => sorted(next) != sorted(before),
        _ => false,
    }
}

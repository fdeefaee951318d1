//! The other threads of the process, before and after a change in process scope.

use std::time::Duration;

use rustix::thread::CapabilitySet;

use super::applied::{Applied, Originals, Plan, uid_map};
use super::{reasons, steps};
use crate::error::Error;
use crate::identity::sorted;
use crate::ids::Gid;
use crate::kernel::mismatch::{EXITING_THREAD_TIMEOUT, Expected, Mismatch};
use crate::plan;
use crate::plan::groups::SetgidRequired;
use crate::plan::identity::GroupNeeds;
use crate::plan::users::OtherThread;

impl Applied {
    /// Returns an error if another thread could not follow the change or would not be restored.
    pub(super) fn check_other_threads(&self, plan: &Plan) -> Result<(), Error> {
        let check = |other: &OtherThread| self.check_other_thread(plan, other);
        let groups = plan.supplementary.as_deref();
        self.expect_other_threads(&Expected {
            // The check compares them.
            user_ids: None,
            group_ids: plan.groups.map(|_| self.original.group_ids),
            groups,
            // A single call changes every thread or none.
            effective_suffices: plan.users.is_none() && groups.is_none(),
            check: plan.users.is_some().then_some(&check),
            timeout: Duration::ZERO,
        })
    }

    /// Returns an error if another thread could not follow a switch from the changed user.
    ///
    /// If the switch passes through the original user, each call is made under that user or under
    /// the next one.
    pub(super) fn check_other_threads_in_switch(
        &self,
        plan: &Plan,
        passes_original: bool,
    ) -> Result<(), Error> {
        let (Some(state), Some(present)) = (&self.original_user, &self.user_plan) else {
            return Ok(());
        };
        let check = |other: &OtherThread| match passes_original {
            true => other
                .after_restore(present, uid_map(state))
                .map_err(reasons::other_thread)?
                .iter()
                .try_for_each(|other| self.check_other_thread(plan, other)),
            false => match other.effective.contains(CapabilitySet::SETGID) {
                true => Ok(()),
                false => Err(reasons::LACKS_SETGID),
            },
        };
        self.expect_other_threads(&Expected {
            user_ids: None,
            group_ids: None,
            groups: None,
            effective_suffices: false,
            check: Some(&check),
            timeout: Duration::ZERO,
        })
    }

    fn expect_other_threads(&self, expected: &Expected<'_>) -> Result<(), Error> {
        let Some(tasks) = &self.tasks else {
            return Ok(());
        };
        let Expected {
            group_ids,
            groups,
            check,
            ..
        } = expected;
        if group_ids.is_none() && groups.is_none() && check.is_none() {
            return Ok(());
        }
        let found = tasks.find_mismatch(expected);
        match found.map_err(|os_error| Error::ThreadsUnreadable { os_error })? {
            None => Ok(()),
            Some(Mismatch {
                thread_id,
                name,
                finding,
            }) => Err(Error::ThreadDiffers {
                requested: self.change.to_string(),
                thread_id,
                name,
                finding: finding.into(),
            }),
        }
    }

    /// Checks that another thread can make each step of a plan, and is restored by it.
    fn check_other_thread(&self, plan: &Plan, other: &OtherThread) -> Result<(), &'static str> {
        let (Some(users), Some(state)) = (&plan.users, &self.original_user) else {
            return Ok(());
        };
        let map = uid_map(state);
        plan::users::check_other_thread(state, users, other, map).map_err(reasons::other_thread)?;
        let ids = match plan.groups {
            Some(_) => SetgidRequired::ToApply,
            None => SetgidRequired::Never,
        };
        let needs = GroupNeeds {
            ids,
            sets_groups: plan.supplementary.is_some(),
        };
        match plan::identity::other_thread_can_follow(plan.order, Some(users), needs, other, map) {
            true => Ok(()),
            false => Err(reasons::LACKS_SETGID),
        }
    }

    /// Verifies that libc changed every thread.
    pub(super) fn check_all_threads(&self) -> Result<(), Error> {
        let Some(tasks) = &self.tasks else {
            return Ok(());
        };
        let inside = self.current();
        let wanted = self.change.supplementary.as_deref().map(sorted);
        let found = tasks.find_mismatch(&self.expected(inside, self.original, wanted.as_deref()));
        match found.map_err(|os_error| Error::ThreadsUnreadable { os_error })? {
            None => {
                if !self
                    .expected(self.original, inside, wanted.as_deref())
                    .effective_suffices
                {
                    // Reserve a descriptor: the restore must read files even if all descriptors are
                    // in use.
                    tasks.reserve();
                }
                Ok(())
            }
            Some(Mismatch {
                thread_id, name, ..
            }) => Err(Error::ThreadNotChanged {
                requested: self.change.to_string(),
                thread_id,
                name,
            }),
        }
    }

    /// The identity of every thread after the ids were set from `before` to `ids`.
    pub(super) fn expected<'a>(
        &self,
        ids: Originals,
        before: Originals,
        groups: Option<&'a [Gid]>,
    ) -> Expected<'a> {
        let groups = groups.filter(|_| self.original_groups.is_some());
        let effective_suffices = groups.is_none()
            && match (&self.user_plan, &self.group_plan) {
                (Some(_), None) => steps::effective_id_suffices(ids.user_ids, before.user_ids),
                (None, Some(_)) => steps::effective_id_suffices(ids.group_ids, before.group_ids),
                _ => false,
            };
        Expected {
            user_ids: self.user_plan.map(|_| ids.user_ids),
            group_ids: self.group_plan.map(|_| ids.group_ids),
            groups,
            effective_suffices,
            check: None,
            timeout: EXITING_THREAD_TIMEOUT,
        }
    }
}

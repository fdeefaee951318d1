//! The other threads of the process, before and after a change in process scope.

use super::applied::{Applied, Originals, Plan, uid_map};
use super::{reasons, steps};
use crate::error::Error;
use crate::identity::sorted;
use crate::ids::Gid;
use crate::kernel::mismatch::{Expected, Mismatch};
use crate::kernel::threads::ThreadIds;
use crate::plan;
use crate::plan::groups::SetgidRequired;
use crate::plan::identity::GroupNeeds;
use crate::plan::user_state::UserState;
use crate::plan::users::{OtherThread, UserPlan};

impl Applied {
    /// Returns an error if another thread could not follow the change or would not be restored.
    pub(super) fn check_other_threads(&self, plan: &Plan) -> Result<(), Error> {
        let Some(tasks) = &self.tasks else {
            return Ok(());
        };
        if plan.groups.is_none() && plan.users.is_none() && plan.supplementary.is_none() {
            return Ok(());
        }
        let unreadable = |os_error| Error::ThreadsUnreadable { os_error };
        if tasks.count().map_err(unreadable)? == 1 {
            return Ok(());
        }
        if let (Some(users), Some(state)) = (&plan.users, &self.original_user) {
            for thread in tasks.read_all().map_err(unreadable)?.into_iter().skip(1) {
                self.check_other_thread(state, users, plan, &thread)
                    .map_err(|finding| {
                        let requested = self.change.to_string();
                        let (thread_id, name, finding) =
                            (thread.thread_id, thread.name, finding.into());
                        Error::ThreadDiffers {
                            requested,
                            thread_id,
                            name,
                            finding,
                        }
                    })?;
            }
        }
        if plan.groups.is_none() && plan.supplementary.is_none() {
            return Ok(());
        }
        let groups = plan.supplementary.as_deref();
        let expected = Expected {
            // Compared above, if they change.
            user_ids: None,
            group_ids: plan.groups.map(|_| self.original.group_ids),
            groups,
            // A single call changes every thread or none.
            effective_suffices: plan.users.is_none() && groups.is_none(),
        };
        match tasks.find_mismatch(&expected).map_err(unreadable)? {
            None => Ok(()),
            Some(Mismatch {
                thread_id,
                name,
                finding,
            }) => Err(Error::ThreadDiffers {
                requested: self.change.to_string(),
                thread_id,
                name,
                finding: format!("{finding} than the calling thread"),
            }),
        }
    }

    /// Checks one other thread. The error describes the mismatch.
    fn check_other_thread(
        &self,
        state: &UserState,
        users: &UserPlan,
        plan: &Plan,
        thread: &ThreadIds,
    ) -> Result<(), &'static str> {
        if thread.is_kernel_worker {
            return Ok(());
        }
        let other = OtherThread {
            ids: thread.user_ids,
            effective: thread.effective,
            permitted: thread.permitted,
            ambient: thread.ambient,
        };
        let map = uid_map(state);
        plan::users::check_other_thread(state, users, &other, map)
            .map_err(reasons::other_thread)?;
        let ids = match plan.groups {
            Some(_) => SetgidRequired::ToApply,
            None => SetgidRequired::Never,
        };
        let needs = GroupNeeds {
            ids,
            sets_groups: plan.supplementary.is_some(),
        };
        match plan::identity::other_thread_can_follow(plan.order, Some(users), needs, &other, map) {
            true => Ok(()),
            false => Err("lacks CAP_SETGID in its effective set"),
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
        }
    }
}

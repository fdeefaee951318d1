//! The other threads of the process, before and after a change in process scope.

use std::time::Duration;

use rustix::thread::CapabilitySet;

use super::applied::{Applied, Originals, Parts, Plan};
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
        if self.tasks.is_none() {
            return Ok(());
        }
        let check = |other: &OtherThread| self.check_other_thread(plan, other);
        let requested = Parts::of(&self.change);
        // Those that are there already, if they are not set.
        let groups = match &plan.supplementary {
            None => self.change.supplementary.as_deref(),
            original => original.as_deref(),
        };
        let groups = groups.map(sorted);
        self.expect_other_threads(&Expected {
            effective_suffices: plan.users.is_none()
                && requested.effective_suffices(self.original, self.planned(plan)),
            check: plan.users.is_some().then_some(&check),
            timeout: Duration::ZERO,
            ..requested.expected(self.original, groups.as_deref())
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
        if self.user_plan.is_none() && plan.users.is_none() {
            return Ok(());
        }
        let check = |other: &OtherThread| match (&self.user_plan, passes_original) {
            (None, _) => self.check_other_thread(plan, other),
            (Some(present), true) => other
                .after_restore(present, self.uid_map())
                .map_err(reasons::other_thread)?
                .iter()
                .try_for_each(|other| self.check_other_thread(plan, other)),
            (Some(_), false) => match other.effective.contains(CapabilitySet::SETGID) {
                true => Ok(()),
                false => Err(reasons::LACKS_SETGID),
            },
        };
        self.expect_other_threads(&Expected {
            check: Some(&check),
            timeout: Duration::ZERO,
            ..Parts::default().expected(self.original, None)
        })
    }

    fn expect_other_threads(&self, expected: &Expected<'_>) -> Result<(), Error> {
        match self.find_mismatch(expected)? {
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

    fn find_mismatch(&self, expected: &Expected<'_>) -> Result<Option<Mismatch>, Error> {
        match &self.tasks {
            None => Ok(None),
            Some(tasks) => tasks
                .find_mismatch(expected)
                .map_err(Error::threads_unreadable),
        }
    }

    /// Checks that another thread can make each step of a plan, and is restored by it.
    fn check_other_thread(&self, plan: &Plan, other: &OtherThread) -> Result<(), &'static str> {
        let (Some(users), Some(state)) = (&plan.users, &self.original_user) else {
            return Ok(());
        };
        let map = self.uid_map();
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
        if self.tasks.is_none() {
            return Ok(());
        }
        let wanted = self.change.supplementary.as_deref().map(sorted);
        let expected = self.expected(self.current(), self.original, wanted.as_deref());
        match self.find_mismatch(&expected)? {
            None => Ok(()),
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
        Expected {
            effective_suffices: self.changed.effective_suffices(ids, before),
            ..self.changed.expected(ids, groups)
        }
    }
}

impl Parts {
    /// These parts of an identity. All ids are compared.
    fn expected<'a>(self, ids: Originals, groups: Option<&'a [Gid]>) -> Expected<'a> {
        Expected {
            // A guard of one kind that absorbed another has not read the ids of the other kind.
            user_ids: Some(ids.user_ids).filter(|ids| self.user_ids && ids.were_read()),
            group_ids: Some(ids.group_ids).filter(|ids| self.group_ids && ids.were_read()),
            groups: groups.filter(|_| self.supplementary),
            effective_suffices: false,
            check: None,
            timeout: EXITING_THREAD_TIMEOUT,
        }
    }

    /// Whether the effective id of a thread tells of all: only ids of one kind were set, from
    /// `before` to `ids`, and the effective one moved.
    fn effective_suffices(self, ids: Originals, before: Originals) -> bool {
        match self {
            Parts {
                supplementary: true,
                ..
            } => false,
            Parts {
                user_ids: true,
                group_ids: false,
                ..
            } => steps::effective_id_suffices(ids.user_ids, before.user_ids),
            Parts {
                user_ids: false,
                group_ids: true,
                ..
            } => steps::effective_id_suffices(ids.group_ids, before.group_ids),
            _ => false,
        }
    }
}

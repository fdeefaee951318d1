//! A change of identity: its plan, its checks, its application and its errors.

use std::fmt;
use std::time::Instant;

use nix::errno::Errno;
use scopeguard::ScopeGuard;

use super::abort;
use super::reasons::{self, Refusal};
use super::stack::Restore;
use super::steps::{self, ParentDeathSignal, StepError};
use crate::change::Change;
use crate::error::{Error, IrreversibleReason};
use crate::identity::sorted;
use crate::ids::{Gid, GroupIds, Id, Ids, Uid, UserIds};
use crate::kernel::namespace;
use crate::kernel::read::{self, current_ids};
use crate::kernel::signals;
use crate::kernel::task_dir::TaskDir;
use crate::plan;
use crate::plan::SetResArgs;
use crate::plan::groups::{GroupPlan, SetgidRequired};
use crate::plan::identity::{GroupNeeds, Order};
use crate::plan::user_state::{UidMap, UserState};
use crate::plan::users::UserPlan;
use crate::scope::ScopeKind;

/// The kinds of ids that a guard reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Kinds {
    pub(crate) users: bool,
    pub(crate) groups: bool,
}

/// The calling thread's ids. Those of a kind that was not read are `-1`, which no thread has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Originals {
    pub(crate) kinds: Kinds,
    pub(crate) user_ids: UserIds,
    pub(crate) group_ids: GroupIds,
}

impl fmt::Display for Originals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kinds {
            Kinds { users: false, .. } => self.group_ids.fmt(f),
            Kinds { groups: false, .. } => self.user_ids.fmt(f),
            _ => write!(f, "user: {}; group: {}", self.user_ids, self.group_ids),
        }
    }
}

/// Whether ids that were read might be others, which have no mapping in the user namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct MayHideUnmapped {
    users: bool,
    groups: bool,
}

/// Parts of an identity.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Parts {
    pub(super) user_ids: bool,
    pub(super) group_ids: bool,
    pub(super) supplementary: bool,
}

impl Parts {
    pub(super) fn of(change: &Change) -> Self {
        Parts {
            user_ids: !change.user.is_empty(),
            group_ids: !change.group.is_empty(),
            supplementary: change.supplementary.is_some(),
        }
    }

    pub(super) fn union(self, other: Self) -> Self {
        Parts {
            user_ids: self.user_ids || other.user_ids,
            group_ids: self.group_ids || other.group_ids,
            supplementary: self.supplementary || other.supplementary,
        }
    }
}

/// A change that was made, with all that restoring it requires.
#[derive(Debug)]
pub(crate) struct Applied {
    pub(super) scope: ScopeKind,
    pub(super) change: Change,
    /// The guards around this one that have ended.
    pub(super) absorbed: Option<Box<Absorbed>>,
    pub(super) original: Originals,
    /// The capability sets and securebits too, if the change requests a user.
    pub(super) original_user: Option<UserState>,
    /// Whether original ids might have no mapping. Decided once: a switch or a restore needs no
    /// file.
    pub(super) may_hide_unmapped: MayHideUnmapped,
    pub(super) order: Order,
    pub(super) group_plan: Option<GroupPlan>,
    pub(super) user_plan: Option<UserPlan>,
    /// The supplementary groups before they were set.
    pub(super) original_groups: Option<Vec<Gid>>,
    pub(super) signal: ParentDeathSignal,
    /// In process scope.
    pub(super) tasks: Option<TaskDir>,
    /// The parts that calls have set, by this guard or one that it has absorbed. Other threads are
    /// compared with the calling one in these.
    pub(super) changed: Parts,
    /// `None` if no subscriber is interested in the end.
    pub(super) started_at: Option<Instant>,
}

/// What ended guards around an active one leave to be restored with it: groups only.
#[derive(Debug)]
pub(super) struct Absorbed {
    /// The outermost change and its original ids, for the event.
    pub(super) change: Change,
    pub(super) original: Originals,
    /// The original group ids, and the call that restores them from those inside the guard.
    pub(super) group_ids: Option<(GroupIds, SetResArgs<Gid>)>,
    pub(super) supplementary: Option<Vec<Gid>>,
    pub(super) signal: ParentDeathSignal,
    pub(super) started_at: Option<Instant>,
}

/// The decisions for one change.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) groups: Option<GroupPlan>,
    pub(super) users: Option<UserPlan>,
    /// The original supplementary groups, if the change sets supplementary groups.
    pub(super) supplementary: Option<Vec<Gid>>,
    pub(super) order: Order,
}

impl Applied {
    pub(crate) fn apply(
        scope: ScopeKind,
        change: Change,
        kinds: Kinds,
        wants_event: bool,
    ) -> Result<Self, Error> {
        let started_at = wants_event.then(Instant::now);
        // Open the directory before the change: a chroot or used-up descriptors under the guard
        // must not prevent the verification of the restore.
        let tasks = match scope {
            ScopeKind::Process if !change.is_empty() => {
                Some(TaskDir::open().map_err(Error::threads_unreadable)?)
            }
            _ => None,
        };
        let original = Originals {
            kinds,
            user_ids: if kinds.users {
                current_ids()?
            } else {
                Ids::all(Uid::UNCHANGED)
            },
            group_ids: if kinds.groups {
                current_ids()?
            } else {
                Ids::all(Gid::UNCHANGED)
            },
        };
        let original_user = match change.user.is_empty() {
            true => None,
            false => Some(read_user_state(original.user_ids)?),
        };
        let may_hide_unmapped = MayHideUnmapped {
            users: namespace::may_hide_unmapped(original.user_ids.to_array().into_iter()),
            groups: namespace::may_hide_unmapped(original.group_ids.to_array().into_iter()),
        };
        let mut pending = Applied {
            may_hide_unmapped,
            scope,
            changed: Parts::default(),
            change,
            absorbed: None,
            original,
            original_user,
            order: Order::GroupsFirst,
            group_plan: None,
            user_plan: None,
            original_groups: None,
            signal: ParentDeathSignal::NONE,
            tasks,
            started_at,
        };

        // Check everything that can be checked before changing any state, so that these failures
        // need no rollback.
        let plan = pending.plan(pending.groups_to_restore()?)?;
        if plan.groups.is_some() || plan.users.is_some() {
            pending.signal = ParentDeathSignal::read()?;
        }
        pending.check_other_threads(&plan)?;
        pending.probe(&plan)?;

        let mut pending = scopeguard::guard(pending, |pending| {
            pending
                .restore()
                .unwrap_or_else(|error| abort::abort_with(&error));
        });
        pending.apply_plan(plan)?;
        Ok(ScopeGuard::into_inner(pending))
    }

    pub(crate) fn change(&self) -> &Change {
        &self.change
    }

    pub(crate) fn original(&self) -> Originals {
        self.original
    }

    // ---- Planning

    /// `supplementary`: the original groups, if the change sets supplementary groups.
    pub(super) fn plan(&self, supplementary: Option<Vec<Gid>>) -> Result<Plan, Error> {
        let users = self.plan_users()?;
        let (groups, required) = match self.change.group.is_empty() {
            true => (None, SetgidRequired::Never),
            false => {
                let (plan, required) = self.plan_groups()?;
                (Some(plan), required)
            }
        };
        let order = match (&users, &self.original_user) {
            (users, Some(state)) => {
                let needs = GroupNeeds {
                    ids: required,
                    sets_groups: supplementary.is_some(),
                };
                plan::identity::order(state, users.as_ref(), needs)
                    .map_err(|refusal| self.refusal_error(reasons::order_refusal(refusal)))?
            }
            _ if required == SetgidRequired::ToRestore && !read::has_effective_setgid()? => {
                return Err(self.irreversible_error(IrreversibleReason::SetgidRequired));
            }
            _ => Order::GroupsFirst,
        };
        Ok(Plan {
            groups,
            users,
            supplementary,
            order,
        })
    }

    /// If user 0 is not mapped, no id is 0 and none can become 0, so nothing depends on it.
    pub(super) fn uid_map(&self) -> UidMap {
        UidMap {
            has_zero: true,
            may_hide_unmapped: self.may_hide_unmapped.users,
        }
    }

    fn plan_groups(&self) -> Result<(GroupPlan, SetgidRequired), Error> {
        let ids = self.original.group_ids;
        plan::groups::plan(ids, self.change.group, self.may_hide_unmapped.groups)
            .map_err(|_| self.irreversible_error(IrreversibleReason::Unmapped))
    }

    pub(super) fn plan_users(&self) -> Result<Option<UserPlan>, Error> {
        let Some(state) = &self.original_user else {
            return Ok(None);
        };
        plan::users::plan(state, self.change.user, self.uid_map())
            .map_err(|refusal| self.refusal_error(reasons::user_refusal(refusal)))
    }

    /// Returns the supplementary groups to restore, or `None` if the change sets none.
    fn groups_to_restore(&self) -> Result<Option<Vec<Gid>>, Error> {
        let Some(wanted) = &self.change.supplementary else {
            return Ok(None);
        };
        let groups = read::supplementary_groups()?;
        if namespace::may_hide_unmapped(groups.iter().copied()) {
            return Err(self.irreversible_error(IrreversibleReason::Unmapped));
        }
        // An identity change skips groups that are already set. A group change sets them again,
        // unless `setgroups` would be refused.
        let skips = || {
            let is_refused = namespace::setgroups_is_denied() || !read::has_effective_setgid()?;
            Ok::<_, Error>(!self.change.user.is_empty() || is_refused)
        };
        if sorted(wanted) == sorted(&groups) && skips()? {
            return Ok(None);
        }
        Ok(Some(groups))
    }

    // ---- Applying

    /// Sets the parent-death signal and the capability sets to their current values, to find out
    /// whether setting them is allowed.
    pub(super) fn probe(&self, plan: &Plan) -> Result<(), Error> {
        self.signal
            .probe()
            .map_err(|error| self.change_error(error))?;
        if plan
            .users
            .is_some_and(|users| users.restore.raises_effective)
        {
            signals::probe().map_err(|os_error| {
                let call = "rt_sigprocmask";
                self.change_error(StepError { call, os_error })
            })?;
        }
        match plan.users.filter(|users| users.restore.sets_capabilities()) {
            None => Ok(()),
            Some(_) => {
                // A switch is probed under the changed user, whose effective set must not be
                // raised.
                let probed = steps::set_capabilities(read::read_capabilities()?);
                probed.map_err(|error| self.change_error(error))
            }
        }
    }

    pub(super) fn apply_plan(&mut self, plan: Plan) -> Result<(), Error> {
        self.order = plan.order;
        let applied = match plan.order {
            Order::GroupsFirst => self
                .apply_supplementary(plan.supplementary)
                .and_then(|()| self.apply_groups(plan.groups))
                .and_then(|()| self.apply_users(plan.users)),
            Order::UserFirst => self
                .apply_users(plan.users)
                .and_then(|()| self.apply_supplementary(plan.supplementary))
                .and_then(|()| self.apply_groups(plan.groups)),
        };
        applied
            .and_then(|()| self.signal.restore())
            .map_err(|error| self.change_error(error))?;
        self.check_all_threads()
    }

    fn apply_supplementary(&mut self, original: Option<Vec<Gid>>) -> Result<(), StepError> {
        let (Some(wanted), Some(original)) = (&self.change.supplementary, original) else {
            return Ok(());
        };
        self.changed.supplementary = true;
        steps::set_groups(self.scope, wanted)?;
        self.original_groups = Some(original);
        steps::verify_groups(wanted)
    }

    fn apply_groups(&mut self, plan: Option<GroupPlan>) -> Result<(), StepError> {
        let Some(plan) = plan else { return Ok(()) };
        if plan.inside == self.original.group_ids && !self.change.user.is_empty() {
            // An identity whose group is the process's own already.
            return Ok(());
        }
        self.changed.group_ids = true;
        steps::set_ids(self.scope, plan.apply)?;
        self.group_plan = Some(plan);
        steps::verify_ids(plan.inside, self.original.group_ids)
    }

    pub(super) fn apply_users(&mut self, plan: Option<UserPlan>) -> Result<(), StepError> {
        let Some(plan) = plan else { return Ok(()) };
        self.changed.user_ids = true;
        steps::set_ids(self.scope, plan.apply)?;
        self.user_plan = Some(plan);
        steps::verify_ids(plan.inside.ids, self.original.user_ids)?;
        if plan.clear_ambient {
            steps::clear_ambient()
        } else {
            Ok(())
        }
    }

    // ---- Errors

    /// The ids of the kinds that the guard reads, as they are now.
    pub(super) fn current(&self) -> Originals {
        self.inside(self.user_plan, self.group_plan)
    }

    /// The ids after this plan is applied.
    pub(super) fn planned(&self, plan: &Plan) -> Originals {
        self.inside(plan.users, plan.groups)
    }

    fn inside(&self, users: Option<UserPlan>, groups: Option<GroupPlan>) -> Originals {
        let Originals {
            user_ids,
            group_ids,
            ..
        } = self.original;
        Originals {
            user_ids: users.map_or(user_ids, |plan| plan.inside.ids),
            group_ids: groups.map_or(group_ids, |plan| plan.inside),
            ..self.original
        }
    }

    pub(super) fn change_error(&self, error: StepError) -> Error {
        let (requested, ids) = (self.change.to_string(), self.current().to_string());
        let is_user_call = error.call == "setresuid";
        let changes_ids = is_user_call || ["setresgid", "setgroups"].contains(&error.call);
        match error.errno().filter(|_| changes_ids) {
            Some(Errno::EPERM) => Error::NotPermitted {
                requested,
                ids,
                reason: reasons::permission_denied(error.call),
            },
            Some(Errno::EINVAL) if is_user_call => Error::UnmappedUid { requested, ids },
            Some(Errno::EINVAL) => Error::UnmappedGid { requested, ids },
            _ => {
                let StepError { call, os_error } = error;
                Error::SyscallFailed {
                    call,
                    requested,
                    ids,
                    os_error,
                }
            }
        }
    }

    fn refusal_error(&self, refusal: Refusal) -> Error {
        match refusal {
            Refusal::Irreversible(reason) => self.irreversible_error(reason),
            Refusal::NotPermitted(reason) => {
                let (requested, ids) = (self.change.to_string(), self.original.to_string());
                Error::NotPermitted {
                    requested,
                    ids,
                    reason,
                }
            }
        }
    }

    fn irreversible_error(&self, reason: IrreversibleReason) -> Error {
        let (requested, ids) = (self.change.to_string(), self.original.to_string());
        Error::Irreversible {
            requested,
            ids,
            reason,
        }
    }
}

fn read_user_state(ids: UserIds) -> Result<UserState, Error> {
    let sets = read::read_capabilities()?;
    Ok(UserState {
        ids,
        effective: sets.effective,
        permitted: sets.permitted,
        inheritable: sets.inheritable,
        ambient: read::read_ambient(sets)?,
        securebits: read::read_securebits()?,
    })
}

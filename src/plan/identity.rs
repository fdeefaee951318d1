//! The order of the steps if the user and the groups change together.
//!
//! Each call that changes groups must be made while CAP_SETGID is effective, and a change of the user
//! can add it to the effective set or take it away.

use rustix::thread::CapabilitySet;

use super::groups::SetgidRequired;
use super::users::{OtherThread, UidMap, UserPlan, UserState};

/// Which of the two is applied first. It is restored last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// From root to another user: CAP_SETGID is effective only outside.
    GroupsFirst,
    /// From another user up to user 0: CAP_SETGID is effective only inside.
    UserFirst,
}

/// Why the groups cannot be changed together with the user. Nothing has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OrderRefusal {
    /// Changing the groups requires CAP_SETGID. It is effective neither under the original user nor
    /// under the requested one.
    SetgidRequiredToApply,
    /// Restoring the groups requires CAP_SETGID.
    SetgidRequiredToRestore,
}

/// What the change of the groups requires.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct GroupNeeds {
    /// For the group ids.
    pub(crate) ids: SetgidRequired,
    /// `setgroups` is called, to apply the change and to restore it.
    pub(crate) sets_groups: bool,
}

/// Decides which is changed first, the groups or the user.
pub(crate) fn order(
    state: &UserState,
    user: Option<&UserPlan>,
    groups: GroupNeeds,
) -> Result<Order, OrderRefusal> {
    if !groups.require_setgid() {
        return Ok(Order::GroupsFirst);
    }
    let has_setgid = |effective: CapabilitySet| effective.contains(CapabilitySet::SETGID);
    let outside = has_setgid(state.effective);
    let returned = user.map_or(outside, |plan| has_setgid(plan.restore.returned.effective));
    let inside = user.map_or(outside, |plan| has_setgid(plan.inside.effective));
    match (outside, returned, inside) {
        (true, true, _) => Ok(Order::GroupsFirst),
        (_, _, true) => Ok(Order::UserFirst),
        (false, _, false) if groups.require_setgid_to_apply() => {
            Err(OrderRefusal::SetgidRequiredToApply)
        }
        _ => Err(OrderRefusal::SetgidRequiredToRestore),
    }
}

/// Whether another thread has CAP_SETGID effective when libc changes its groups, in process scope.
///
/// The thread has passed [`check_other_thread`](super::users::check_other_thread). If the kernel
/// refused it what it allows the calling thread, libc would abort the process.
pub(crate) fn other_thread_can_follow(
    order: Order,
    user: Option<&UserPlan>,
    groups: GroupNeeds,
    other: &OtherThread,
    map: UidMap,
) -> bool {
    let effective = match (order, user) {
        (Order::UserFirst, Some(plan)) => other.effective_inside(plan, map),
        _ => other.effective,
    };
    !groups.require_setgid() || effective.contains(CapabilitySet::SETGID)
}

impl GroupNeeds {
    fn require_setgid(self) -> bool {
        self.sets_groups || self.ids != SetgidRequired::Never
    }

    fn require_setgid_to_apply(self) -> bool {
        self.sets_groups || self.ids == SetgidRequired::ToApply
    }
}

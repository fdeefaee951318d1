//! The order of the steps if the user and the groups change together.
//!
//! Each call that changes groups must be made while CAP_SETGID is effective, and a change of the
//! user can add it to the effective set or take it away.

use rustix::thread::CapabilitySet;

use super::groups::SetgidRequired;
use super::user_state::{UidMap, UserState};
use super::users::{OtherThread, UserPlan};

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

/// The privileges that the change of the groups requires.
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

#[cfg(test)]
mod tests {
    use super::super::users::plan;
    use super::*;
    use crate::change::RequestedIds;
    use crate::ids::{Uid, UserIds};
    use rustix::thread::CapabilitiesSecureBits;

    const MAP: UidMap = UidMap {
        has_zero: true,
        may_hide_unmapped: false,
    };
    const BOOLS: [bool; 2] = [false, true];

    fn all_needs() -> Vec<GroupNeeds> {
        let ids = [
            SetgidRequired::Never,
            SetgidRequired::ToApply,
            SetgidRequired::ToRestore,
        ];
        let needs = ids.into_iter().flat_map(|ids| {
            BOOLS
                .into_iter()
                .map(move |sets_groups| GroupNeeds { ids, sets_groups })
        });
        needs.collect()
    }

    /// Where CAP_SETGID is effective.
    #[derive(Clone, Copy, Debug)]
    struct Setgid {
        outside: bool,
        inside: bool,
        returned: bool,
    }

    /// A state and a plan with CAP_SETGID effective there; the order depends on nothing else.
    fn user_change(setgid: Setgid) -> (UserState, UserPlan) {
        let root = state([0; 4], CapabilitySet::SETUID, CapabilitySet::SETUID);
        let plan = plan(&root, effective(1), MAP).unwrap().unwrap();
        let with = |state: UserState, has_setgid: bool| {
            let setgid = if has_setgid {
                CapabilitySet::SETGID
            } else {
                CapabilitySet::empty()
            };
            UserState {
                effective: state.effective | setgid,
                ..state
            }
        };
        let mut changed = plan;
        changed.inside = with(plan.inside, setgid.inside);
        changed.restore.returned = with(plan.restore.returned, setgid.returned);
        (with(root, setgid.outside), changed)
    }

    fn state(ids: [u32; 4], effective: CapabilitySet, permitted: CapabilitySet) -> UserState {
        let [real, effective_id, saved, filesystem] = ids.map(Uid::from_raw);
        UserState {
            ids: UserIds {
                real,
                effective: effective_id,
                saved,
                filesystem,
            },
            effective,
            permitted,
            inheritable: CapabilitySet::empty(),
            ambient: CapabilitySet::empty(),
            securebits: CapabilitiesSecureBits::empty(),
        }
    }

    fn effective(uid: u32) -> RequestedIds<Uid> {
        RequestedIds {
            real: None,
            effective: Some(Uid::from_raw(uid)),
        }
    }

    /// Whether each call that changes groups is made with CAP_SETGID, if it requires that.
    ///
    /// Under the original user, the capability must have been effective at the start.
    fn works(order: Order, setgid: Setgid, needs: GroupNeeds) -> bool {
        let to_apply = needs.sets_groups || needs.ids == SetgidRequired::ToApply;
        let to_restore = needs.sets_groups || needs.ids != SetgidRequired::Never;
        let (applying, restoring) = match order {
            Order::GroupsFirst => (setgid.outside, setgid.outside && setgid.returned),
            Order::UserFirst => (setgid.inside, setgid.inside),
        };
        (applying || !to_apply) && (restoring || !to_restore)
    }

    #[test]
    fn finds_an_order_if_there_is_one() {
        let mut inputs = 0;
        for outside in BOOLS {
            for inside in BOOLS {
                for returned in BOOLS {
                    let setgid = Setgid {
                        outside,
                        inside,
                        returned,
                    };
                    let (state, plan) = user_change(setgid);
                    for needs in all_needs() {
                        inputs += 1;
                        let first = works(Order::GroupsFirst, setgid, needs);
                        let last = works(Order::UserFirst, setgid, needs);
                        match order(&state, Some(&plan), needs) {
                            Ok(Order::GroupsFirst) => assert!(first, "{setgid:?}, {needs:?}"),
                            Ok(Order::UserFirst) => {
                                assert!(last && !first, "{setgid:?}, {needs:?}");
                            }
                            Err(refusal) => {
                                assert!(!first && !last, "{setgid:?}, {needs:?}");
                                let to_apply =
                                    needs.sets_groups || needs.ids == SetgidRequired::ToApply;
                                let can_apply = outside || inside || !to_apply;
                                let restore = OrderRefusal::SetgidRequiredToRestore;
                                assert_eq!(refusal == restore, can_apply, "{setgid:?}, {needs:?}");
                            }
                        }
                    }
                }
            }
        }
        assert_eq!(inputs, 8 * 6);
    }

    #[test]
    fn without_a_change_of_the_user_setgid_must_be_effective() {
        for has_setgid in BOOLS {
            let setgid = Setgid {
                outside: has_setgid,
                inside: has_setgid,
                returned: has_setgid,
            };
            let (state, _) = user_change(setgid);
            for needs in all_needs() {
                let expected = match needs {
                    _ if has_setgid => Ok(Order::GroupsFirst),
                    GroupNeeds {
                        ids: SetgidRequired::Never,
                        sets_groups: false,
                    } => Ok(Order::GroupsFirst),
                    GroupNeeds {
                        ids: SetgidRequired::ToRestore,
                        sets_groups: false,
                    } => Err(OrderRefusal::SetgidRequiredToRestore),
                    _ => Err(OrderRefusal::SetgidRequiredToApply),
                };
                assert_eq!(order(&state, None, needs), expected, "{needs:?}");
            }
        }
    }

    /// If the groups could be changed first but not restored last, they can be changed inside. So
    /// no order that is not mirrored would serve more.
    #[test]
    fn setgid_that_is_effective_outside_is_effective_again_or_inside() {
        let setgid = CapabilitySet::SETGID;
        let securebits = [
            CapabilitiesSecureBits::empty(),
            CapabilitiesSecureBits::KEEP_CAPS,
            CapabilitiesSecureBits::NO_SETUID_FIXUP,
        ];
        let choices = [None, Some(0), Some(1), Some(3)].map(|id| id.map(Uid::from_raw));
        let mut states = Vec::new();
        for ids in (0..81).map(|index| [index / 27, index / 9 % 3, index / 3 % 3, index % 3]) {
            for permitted in [setgid, setgid | CapabilitySet::SETUID] {
                for effective in [setgid, permitted] {
                    let state = state(ids, effective, permitted);
                    states.extend(securebits.map(|securebits| UserState {
                        securebits,
                        ..state
                    }));
                }
            }
        }
        let (mut mirrored, mut only_inside) = (0, 0);
        for state in states {
            for requested in choices
                .into_iter()
                .flat_map(|real| choices.map(move |effective| RequestedIds { real, effective }))
            {
                let Ok(Some(plan)) = plan(&state, requested, MAP) else {
                    continue;
                };
                if plan.restore.returned.effective.contains(setgid) {
                    mirrored += 1;
                } else {
                    assert!(
                        plan.inside.effective.contains(setgid),
                        "{state:?}, {requested:?}"
                    );
                    only_inside += 1;
                }
            }
        }
        assert_eq!((mirrored, only_inside), (4_705, 536));
    }

    #[test]
    fn root_changes_the_groups_first_and_a_dropped_program_the_user() {
        let all = CapabilitySet::SETUID | CapabilitySet::SETGID;
        let none = CapabilitySet::empty();
        let needs = GroupNeeds {
            ids: SetgidRequired::ToApply,
            sets_groups: true,
        };
        let other = |state: &UserState| OtherThread {
            ids: state.ids,
            effective: state.effective,
            permitted: state.permitted,
            ambient: state.ambient,
        };

        let root = state([0; 4], all, all);
        let plan_down = plan(&root, effective(1), MAP).unwrap().unwrap();
        assert_eq!(
            order(&root, Some(&plan_down), needs),
            Ok(Order::GroupsFirst)
        );
        let follows = |order, plan: &UserPlan, state: &UserState| {
            other_thread_can_follow(order, Some(plan), needs, &other(state), MAP)
        };
        assert!(follows(Order::GroupsFirst, &plan_down, &root));
        let without_setgid = state([0; 4], CapabilitySet::SETUID, all);
        assert!(!follows(Order::GroupsFirst, &plan_down, &without_setgid));

        let dropped = state([1, 1, 0, 1], none, all);
        let plan_up = plan(&dropped, effective(0), MAP).unwrap().unwrap();
        assert_eq!(order(&dropped, Some(&plan_up), needs), Ok(Order::UserFirst));
        // Under NO_SETUID_FIXUP another thread would be user 0 without CAP_SETGID.
        assert!(!follows(Order::UserFirst, &plan_up, &dropped));
        let nothing = GroupNeeds {
            ids: SetgidRequired::Never,
            sets_groups: false,
        };
        assert!(other_thread_can_follow(
            Order::UserFirst,
            Some(&plan_up),
            nothing,
            &other(&dropped),
            MAP
        ));

        // With file capabilities, from one user to another: effective everywhere.
        let user = state([1; 4], all, all);
        let plan_across = plan(&user, effective(2), MAP).unwrap().unwrap();
        assert_eq!(
            order(&user, Some(&plan_across), needs),
            Ok(Order::GroupsFirst)
        );
    }
}

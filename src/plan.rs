//! The pure part: which ids to set for a change, which to set to undo it, and whether the way back stays open.
//!
//! The kernel lets a thread without CAP_SETGID set each id only to one that its real, effective or saved id has now
//! (`setresgid(2)`, kernel/sys.c). So a change can be undone without it exactly if the three ids, taken as a set, stay
//! the same set; the saved id is the place to keep the one that would be lost.

use crate::ids::{Gid, GroupIds};

/// The ids that a change names; `None` is left alone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Named {
    pub(crate) real: Option<Gid>,
    pub(crate) effective: Option<Gid>,
}

impl Named {
    pub(crate) fn both(gid: Gid) -> Self {
        Named { real: Some(gid), effective: Some(gid) }
    }

    pub(crate) fn is_empty(self) -> bool {
        self == Named::default()
    }

    /// The one group that the change names, where it names just one.
    pub(crate) fn group(self) -> Option<Gid> {
        match (self.real, self.effective) {
            (Some(real), Some(effective)) => (real == effective).then_some(real),
            (one, other) => one.or(other),
        }
    }

    /// The same ids, named for another group.
    pub(crate) fn with_group(self, gid: Gid) -> Self {
        Named { real: self.real.and(Some(gid)), effective: self.effective.and(Some(gid)) }
    }
}

/// The arguments of one `setresgid`; `None` leaves that id alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ResGid {
    pub(crate) real: Option<Gid>,
    pub(crate) effective: Option<Gid>,
    pub(crate) saved: Option<Gid>,
}

impl ResGid {
    /// Back to these, except what no call can name.
    pub(crate) fn back_to(ids: GroupIds, nameable: impl Fn(Gid) -> bool) -> Self {
        let [real, effective, saved] = [ids.real, ids.effective, ids.saved].map(|gid| Some(gid).filter(|&gid| nameable(gid)));
        ResGid { real, effective, saved }
    }
}

/// What CAP_SETGID is needed for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Needs {
    /// For nothing: the way in and the way back are both open without it.
    Nothing,
    /// For the way in. Nobody need ask whether it is there: if it is not, the kernel refuses the change,
    /// and a change that it made shows that the way back is open too, as long as no filter tells the two apart.
    Entering,
    /// Only for the way back: it has to be asked for before the change.
    Returning,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Plan {
    pub(crate) set: ResGid,
    /// The four ids afterwards.
    pub(crate) inside: GroupIds,
    /// Puts the first three back; the filesystem id then follows the effective one, and has a call of its own where it was another.
    pub(crate) undo: ResGid,
}

/// An id that would have to be put back shows as 65534 and may be any id without a mapping: no call can name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Unnameable;

/// Plans the change of the ids that `named` names, of which there is at least one, and says what it needs.
///
/// `opaque`: the user namespace does not map all ids, so that an id that shows as 65534 may really be another.
pub(crate) fn plan(ids: GroupIds, named: Named, opaque: bool) -> Result<(Plan, Needs), Unnameable> {
    let nameable = |gid: Gid| !(opaque && gid == Gid::OVERFLOW);

    // Every change of the real or effective id also sets the effective id to something, and the filesystem id with it.
    if named.real.is_some() && !nameable(ids.real) || !nameable(ids.effective) || !nameable(ids.filesystem) {
        return Err(Unnameable);
    }

    let real = named.real.unwrap_or(ids.real);
    let effective = named.effective.unwrap_or(ids.effective);
    let originals = [ids.real, ids.effective, ids.saved];
    let keeps_all = |saved: Gid| originals.iter().all(|&gid| !nameable(gid) || [real, effective, saved].contains(&gid));

    // The saved id stays where it can; else it keeps the one id that would be lost.
    let parked = || originals.into_iter().find(|&gid| nameable(gid) && nameable(ids.saved) && keeps_all(gid));
    let saved = if keeps_all(ids.saved) { ids.saved } else { parked().unwrap_or(ids.saved) };

    // An id that shows as one of the three may be another one, without a mapping; then the kernel will say so.
    let held = |gid: Gid| originals.contains(&gid);
    let may_enter_freely = named.real.is_none_or(held) && named.effective.is_none_or(held);
    let returns_freely = keeps_all(saved) && held(ids.filesystem);
    let needs = match (may_enter_freely, returns_freely) {
        (false, _) => Needs::Entering,
        (true, false) => Needs::Returning,
        (true, true) => Needs::Nothing,
    };

    let plan = Plan {
        // The effective id is always given: only then does the kernel move a filesystem id that differs from it.
        set: ResGid { real: named.real, effective: Some(effective), saved: (saved != ids.saved).then_some(saved) },
        inside: GroupIds { real, effective, saved, filesystem: effective },
        undo: ResGid::back_to(ids, nameable),
    };
    Ok((plan, needs))
}

#[cfg(test)]
mod tests {
    use std::collections::{HashMap, HashSet};

    use super::*;

    const OUTSIDE: u32 = 9;

    /// What the kernel does: `setresgid` on the four ids, `None` where it answers EPERM.
    fn setresgid(ids: GroupIds, to: ResGid, cap: bool) -> Option<GroupIds> {
        let held = |to: Option<Gid>| to.is_none_or(|gid| [ids.real, ids.effective, ids.saved].contains(&gid));
        let allowed = cap || held(to.real) && held(to.effective) && held(to.saved);
        if !allowed {
            return None;
        }
        let same = |to: Option<Gid>, now: Gid| to.is_none_or(|gid| gid == now);
        if same(to.real, ids.real) && same(to.effective, ids.effective) && same(to.effective, ids.filesystem) && same(to.saved, ids.saved) {
            return Some(ids);
        }
        let effective = to.effective.unwrap_or(ids.effective);
        Some(GroupIds { real: to.real.unwrap_or(ids.real), effective, saved: to.saved.unwrap_or(ids.saved), filesystem: effective })
    }

    fn setfsgid(ids: GroupIds, gid: Gid, cap: bool) -> GroupIds {
        let held = [ids.real, ids.effective, ids.saved, ids.filesystem].contains(&gid);
        if cap || held { GroupIds { filesystem: gid, ..ids } } else { ids }
    }

    /// The states that allowed calls lead to, from any one of the domain.
    struct Reach {
        cap: bool,
        memo: HashMap<GroupIds, HashSet<GroupIds>>,
    }

    impl Reach {
        /// Every state that some sequence of allowed calls leads to.
        fn from(&mut self, start: GroupIds) -> &HashSet<GroupIds> {
            self.memo.entry(start).or_insert_with(|| {
                let choices: Vec<Option<Gid>> = domain().into_iter().map(Some).chain([None]).collect();
                let mut seen = HashSet::from([start]);
                let mut todo = vec![start];
                while let Some(ids) = todo.pop() {
                    let mut found: Vec<GroupIds> = domain().into_iter().map(|gid| setfsgid(ids, gid, self.cap)).collect();
                    for &real in &choices {
                        for &effective in &choices {
                            for &saved in &choices {
                                found.extend(setresgid(ids, ResGid { real, effective, saved }, self.cap));
                            }
                        }
                    }
                    todo.extend(found.into_iter().filter(|&next| seen.insert(next)));
                }
                seen
            })
        }

        /// The definition: some state that the change asks for is reached from the start, and the start from there.
        fn serves(&mut self, ids: GroupIds, named: Named) -> bool {
            let asked_for = |inside: &GroupIds| {
                inside.real == named.real.unwrap_or(ids.real)
                    && inside.effective == named.effective.unwrap_or(ids.effective)
                    && inside.filesystem == inside.effective
            };
            let candidates: Vec<GroupIds> = self.from(ids).iter().copied().filter(asked_for).collect();
            candidates.into_iter().any(|inside| self.from(inside).contains(&ids))
        }
    }

    fn domain() -> Vec<Gid> {
        [0, 1, 2, OUTSIDE].map(Gid::from).to_vec()
    }

    fn all_ids() -> Vec<GroupIds> {
        let mut all = Vec::new();
        for real in 0..3 {
            for effective in 0..3 {
                for saved in 0..3 {
                    for filesystem in domain() {
                        all.push(GroupIds { real: real.into(), effective: effective.into(), saved: saved.into(), filesystem });
                    }
                }
            }
        }
        all
    }

    fn all_changes() -> Vec<Named> {
        let choices: Vec<Option<Gid>> = domain().into_iter().map(Some).chain([None]).collect();
        let mut all = Vec::new();
        for &real in &choices {
            for &effective in &choices {
                all.push(Named { real, effective });
            }
        }
        all.retain(|named| !named.is_empty());
        all
    }

    #[test]
    fn serves_exactly_what_can_be_undone_over_the_whole_domain() {
        let (mut served, mut refused) = (0, 0);
        for cap in [false, true] {
            let mut reach = Reach { cap, memo: HashMap::new() };
            for ids in all_ids() {
                for named in all_changes() {
                    let (plan, needs) = plan(ids, named, false).unwrap();
                    let serves = cap || needs == Needs::Nothing;
                    assert_eq!(serves, reach.serves(ids, named), "{ids}, {named:?}, CAP_SETGID {cap}");
                    if !serves {
                        refused += 1;
                        continue;
                    }
                    served += 1;
                    let inside = setresgid(ids, plan.set, cap).expect("the way in is open");
                    assert_eq!(inside, plan.inside, "{ids}, {named:?}, CAP_SETGID {cap}");
                    let undone = setresgid(inside, plan.undo, cap).expect("the way back is open");
                    assert_eq!(setfsgid(undone, ids.filesystem, cap), ids, "{ids}, {named:?}, CAP_SETGID {cap}");
                }
            }
        }
        assert_eq!(served + refused, 27 * 4 * 24 * 2);
        assert!(served > 2592 && refused > 0, "{served} served, {refused} refused");
    }

    /// `Entering` is left to the kernel: it must refuse without CAP_SETGID, or the plan would have to ask.
    #[test]
    fn the_kernel_refuses_whatever_is_left_to_it() {
        for ids in all_ids() {
            for named in all_changes() {
                let (plan, needs) = plan(ids, named, false).unwrap();
                assert_eq!(needs == Needs::Entering, setresgid(ids, plan.set, false).is_none(), "{ids}, {named:?}");
            }
        }
    }

    #[test]
    fn an_id_that_may_have_no_mapping_is_never_put_back() {
        let domain = [0, 1, 65534].map(Gid::from);
        for real in domain {
            for effective in domain {
                for saved in domain {
                    for filesystem in domain {
                        let ids = GroupIds { real, effective, saved, filesystem };
                        for to in domain {
                            for named in
                                [Named::both(to), Named { real: Some(to), effective: None }, Named { real: None, effective: Some(to) }]
                            {
                                let lost = |gid: Gid, touched: bool| touched && gid == Gid::OVERFLOW;
                                let refused = lost(real, named.real.is_some()) || lost(effective, true) || lost(filesystem, true);
                                match plan(ids, named, true) {
                                    Err(Unnameable) => assert!(refused, "{ids}, {named:?}"),
                                    Ok((plan, needs)) => {
                                        assert!(!refused, "{ids}, {named:?}");
                                        // Whichever ids those that show as 65534 are, the kernel must refuse what is left to it.
                                        let all_shown = [named.real, named.effective]
                                            .into_iter()
                                            .flatten()
                                            .all(|gid| [real, effective, saved].contains(&gid));
                                        assert!(!(all_shown && needs == Needs::Entering), "{ids}, {named:?}");
                                        let named_again = [plan.undo.real, plan.undo.effective, plan.undo.saved];
                                        assert!(!named_again.contains(&Some(Gid::OVERFLOW)), "{ids}, {named:?}");
                                        // An id that is left alone on the way back must have been left alone on the way in.
                                        assert!(plan.undo.saved.is_some() || plan.set.saved.is_none(), "{ids}, {named:?}");
                                        assert!(plan.undo.real.is_some() || plan.set.real.is_none(), "{ids}, {named:?}");
                                    }
                                }
                            }
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn the_saved_id_is_left_alone_wherever_that_is_enough() {
        for ids in all_ids() {
            for named in all_changes() {
                let (plan, _) = plan(ids, named, false).unwrap();
                let kept = [plan.inside.real, plan.inside.effective, ids.saved];
                let enough = [ids.real, ids.effective, ids.saved].iter().all(|gid| kept.contains(gid));
                assert!(!enough || plan.set.saved.is_none(), "{ids}, {named:?}");
            }
        }
    }
}

//! Group ids: which to set for a change, which to set to restore it, and what that requires.
//!
//! The kernel lets a thread without CAP_SETGID set each id only to one of its real, effective and
//! saved ids (`setresgid(2)`, kernel/sys.c). So a change can be restored without it exactly if the
//! three ids, taken as a set, stay the same set. The saved id is the place for the one that would
//! otherwise be lost.

use crate::change::RequestedIds;
use crate::ids::{Gid, GroupIds, Id};
use crate::plan::SetResArgs;

/// When a change of the group ids requires CAP_SETGID.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SetgidRequired {
    /// Never: the ids can be applied and restored without it.
    Never,
    /// To apply the change. No check is needed: without the capability the kernel refuses the
    /// change, and if the change succeeds, the restore will too (unless a seccomp filter treats the
    /// two calls differently).
    ToApply,
    /// Only to restore: the capability must be checked before the change.
    ToRestore,
}

/// The calls for one change of the group ids.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct GroupPlan {
    pub(crate) apply: SetResArgs<Gid>,
    /// The four ids after `apply`.
    pub(crate) inside: GroupIds,
    /// Restores the first three ids. The filesystem id then follows the effective one. If it was
    /// another one, it needs a call of its own.
    pub(crate) restore: SetResArgs<Gid>,
}

/// An id that would have to be restored reads as the overflow gid and might be any id without a
/// mapping: no call can name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct UnmappedId;

/// Plans a change of the ids, of which at least one is requested, and returns what it requires.
///
/// `may_hide_unmapped`: the user namespace does not map all ids, so an id that reads as the
/// overflow gid might be another one.
pub(crate) fn plan(
    ids: GroupIds,
    requested: RequestedIds<Gid>,
    may_hide_unmapped: bool,
) -> Result<(GroupPlan, SetgidRequired), UnmappedId> {
    let is_mapped = |gid: Gid| !(may_hide_unmapped && gid == Gid::OVERFLOW);

    // Each change of the real or effective id also sets the effective id, and moves the filesystem
    // id.
    let changes_real = requested.real.is_some();
    if changes_real && !is_mapped(ids.real)
        || !is_mapped(ids.effective)
        || !is_mapped(ids.filesystem)
    {
        return Err(UnmappedId);
    }

    let real = requested.real.unwrap_or(ids.real);
    let effective = requested.effective.unwrap_or(ids.effective);
    let original_set = [ids.real, ids.effective, ids.saved];
    let keeps_all = |saved: Gid| {
        original_set
            .iter()
            .all(|&gid| !is_mapped(gid) || [real, effective, saved].contains(&gid))
    };

    // The saved id stays if nothing is lost. Otherwise it keeps the one id that would be lost.
    let displaced = || {
        original_set
            .into_iter()
            .find(|&gid| is_mapped(gid) && is_mapped(ids.saved) && keeps_all(gid))
    };
    let saved = if keeps_all(ids.saved) {
        ids.saved
    } else {
        displaced().unwrap_or(ids.saved)
    };

    // An id that reads as one of the three might be another one, without a mapping. Then the kernel
    // refuses it.
    let is_current = |gid: Gid| original_set.contains(&gid);
    let can_apply_unprivileged =
        requested.real.is_none_or(is_current) && requested.effective.is_none_or(is_current);
    let can_restore_unprivileged = keeps_all(saved) && is_current(ids.filesystem);
    let required = match (can_apply_unprivileged, can_restore_unprivileged) {
        (false, _) => SetgidRequired::ToApply,
        (true, false) => SetgidRequired::ToRestore,
        (true, true) => SetgidRequired::Never,
    };

    let plan = GroupPlan {
        // The effective id is always given: only then does the kernel move a filesystem id that
        // differs from it.
        apply: SetResArgs {
            real: requested.real,
            effective: Some(effective),
            saved: (saved != ids.saved).then_some(saved),
        },
        inside: GroupIds {
            real,
            effective,
            saved,
            filesystem: effective,
        },
        restore: SetResArgs::restoring(ids, is_mapped),
    };
    Ok((plan, required))
}

#[cfg(test)]
mod tests {
    use std::collections::{HashMap, HashSet};

    use super::*;

    const OUTSIDE: u32 = 9;

    /// The effect of `setresgid` on the four ids, `None` where it answers EPERM.
    fn setresgid(ids: GroupIds, to: SetResArgs<Gid>, cap: bool) -> Option<GroupIds> {
        let held = |to: Option<Gid>| {
            to.is_none_or(|gid| [ids.real, ids.effective, ids.saved].contains(&gid))
        };
        let allowed = cap || held(to.real) && held(to.effective) && held(to.saved);
        if !allowed {
            return None;
        }
        let same = |to: Option<Gid>, now: Gid| to.is_none_or(|gid| gid == now);
        if same(to.real, ids.real)
            && same(to.effective, ids.effective)
            && same(to.effective, ids.filesystem)
            && same(to.saved, ids.saved)
        {
            return Some(ids);
        }
        let effective = to.effective.unwrap_or(ids.effective);
        Some(GroupIds {
            real: to.real.unwrap_or(ids.real),
            effective,
            saved: to.saved.unwrap_or(ids.saved),
            filesystem: effective,
        })
    }

    fn setfsgid(ids: GroupIds, gid: Gid, cap: bool) -> GroupIds {
        let held = [ids.real, ids.effective, ids.saved, ids.filesystem].contains(&gid);
        if cap || held {
            GroupIds {
                filesystem: gid,
                ..ids
            }
        } else {
            ids
        }
    }

    /// The states that allowed calls lead to, from any one of the domain.
    struct ReachableStates {
        cap: bool,
        memo: HashMap<GroupIds, HashSet<GroupIds>>,
    }

    impl ReachableStates {
        /// Every state that some sequence of allowed calls leads to.
        fn from(&mut self, start: GroupIds) -> &HashSet<GroupIds> {
            self.memo.entry(start).or_insert_with(|| {
                let choices: Vec<Option<Gid>> =
                    domain().into_iter().map(Some).chain([None]).collect();
                let mut seen = HashSet::from([start]);
                let mut todo = vec![start];
                while let Some(ids) = todo.pop() {
                    let mut found: Vec<GroupIds> = domain()
                        .into_iter()
                        .map(|gid| setfsgid(ids, gid, self.cap))
                        .collect();
                    for &real in &choices {
                        for &effective in &choices {
                            for &saved in &choices {
                                found.extend(setresgid(
                                    ids,
                                    SetResArgs {
                                        real,
                                        effective,
                                        saved,
                                    },
                                    self.cap,
                                ));
                            }
                        }
                    }
                    todo.extend(found.into_iter().filter(|&next| seen.insert(next)));
                }
                seen
            })
        }

        /// The definition: some state that the change asks for is reached from the start, and the
        /// start from there.
        fn can_round_trip(&mut self, ids: GroupIds, requested: RequestedIds<Gid>) -> bool {
            let is_requested = |inside: &GroupIds| {
                inside.real == requested.real.unwrap_or(ids.real)
                    && inside.effective == requested.effective.unwrap_or(ids.effective)
                    && inside.filesystem == inside.effective
            };
            let candidates: Vec<GroupIds> = self
                .from(ids)
                .iter()
                .copied()
                .filter(is_requested)
                .collect();
            candidates
                .into_iter()
                .any(|inside| self.from(inside).contains(&ids))
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
                        all.push(GroupIds {
                            real: real.into(),
                            effective: effective.into(),
                            saved: saved.into(),
                            filesystem,
                        });
                    }
                }
            }
        }
        all
    }

    fn all_changes() -> Vec<RequestedIds<Gid>> {
        let choices: Vec<Option<Gid>> = domain().into_iter().map(Some).chain([None]).collect();
        let mut all = Vec::new();
        for &real in &choices {
            for &effective in &choices {
                all.push(RequestedIds { real, effective });
            }
        }
        all.retain(|requested| !requested.is_empty());
        all
    }

    #[test]
    fn serves_exactly_the_changes_that_can_be_restored() {
        let (mut served, mut refused) = (0, 0);
        for cap in [false, true] {
            let mut reach = ReachableStates {
                cap,
                memo: HashMap::new(),
            };
            for ids in all_ids() {
                for requested in all_changes() {
                    let (plan, required) = plan(ids, requested, false).unwrap();
                    let serves = cap || required == SetgidRequired::Never;
                    assert_eq!(
                        serves,
                        reach.can_round_trip(ids, requested),
                        "{ids}, {requested:?}, CAP_SETGID {cap}"
                    );
                    if !serves {
                        refused += 1;
                        continue;
                    }
                    served += 1;
                    let inside = setresgid(ids, plan.apply, cap).expect("the change is possible");
                    assert_eq!(
                        inside, plan.inside,
                        "{ids}, {requested:?}, CAP_SETGID {cap}"
                    );
                    let undone =
                        setresgid(inside, plan.restore, cap).expect("the restore is possible");
                    assert_eq!(
                        setfsgid(undone, ids.filesystem, cap),
                        ids,
                        "{ids}, {requested:?}, CAP_SETGID {cap}"
                    );
                }
            }
        }
        assert_eq!(served + refused, 27 * 4 * 24 * 2);
        assert!(
            served > 2592 && refused > 0,
            "{served} served, {refused} refused"
        );
    }

    /// `ToApply` is left to the kernel: it must refuse without CAP_SETGID, or the plan would have
    /// to ask.
    #[test]
    fn the_kernel_refuses_each_change_that_it_has_to_check() {
        for ids in all_ids() {
            for requested in all_changes() {
                let (plan, required) = plan(ids, requested, false).unwrap();
                assert_eq!(
                    required == SetgidRequired::ToApply,
                    setresgid(ids, plan.apply, false).is_none(),
                    "{ids}, {requested:?}"
                );
            }
        }
    }

    #[test]
    fn never_restores_an_id_that_might_be_unmapped() {
        let domain = [0, 1, 65534].map(Gid::from);
        for real in domain {
            for effective in domain {
                for saved in domain {
                    for filesystem in domain {
                        let ids = GroupIds {
                            real,
                            effective,
                            saved,
                            filesystem,
                        };
                        for to in domain {
                            for requested in [
                                RequestedIds::both(to),
                                RequestedIds {
                                    real: Some(to),
                                    effective: None,
                                },
                                RequestedIds {
                                    real: None,
                                    effective: Some(to),
                                },
                            ] {
                                let lost =
                                    |gid: Gid, touched: bool| touched && gid == Gid::OVERFLOW;
                                let refused = lost(real, requested.real.is_some())
                                    || lost(effective, true)
                                    || lost(filesystem, true);
                                match plan(ids, requested, true) {
                                    Err(UnmappedId) => assert!(refused, "{ids}, {requested:?}"),
                                    Ok((plan, required)) => {
                                        assert!(!refused, "{ids}, {requested:?}");
                                        // Whichever ids those that show as 65534 are, the kernel
                                        // must refuse what is left to it.
                                        let all_shown = [requested.real, requested.effective]
                                            .into_iter()
                                            .flatten()
                                            .all(|gid| [real, effective, saved].contains(&gid));
                                        assert!(
                                            !(all_shown && required == SetgidRequired::ToApply),
                                            "{ids}, {requested:?}"
                                        );
                                        let named_again = [
                                            plan.restore.real,
                                            plan.restore.effective,
                                            plan.restore.saved,
                                        ];
                                        assert!(
                                            !named_again.contains(&Some(Gid::OVERFLOW)),
                                            "{ids}, {requested:?}"
                                        );
                                        // An id that is left alone on the way back must have been
                                        // left alone on the way in.
                                        assert!(
                                            plan.restore.saved.is_some()
                                                || plan.apply.saved.is_none(),
                                            "{ids}, {requested:?}"
                                        );
                                        assert!(
                                            plan.restore.real.is_some()
                                                || plan.apply.real.is_none(),
                                            "{ids}, {requested:?}"
                                        );
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
    fn leaves_the_saved_id_alone_if_nothing_is_lost() {
        for ids in all_ids() {
            for requested in all_changes() {
                let (plan, _) = plan(ids, requested, false).unwrap();
                let kept = [plan.inside.real, plan.inside.effective, ids.saved];
                let enough = [ids.real, ids.effective, ids.saved]
                    .iter()
                    .all(|gid| kept.contains(gid));
                assert!(
                    !enough || plan.apply.saved.is_none(),
                    "{ids}, {requested:?}"
                );
            }
        }
    }
}

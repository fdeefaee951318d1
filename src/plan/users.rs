//! User ids: which to set for a change, how to restore them with the capability sets, and what that
//! requires.
//!
//! `setresuid(2)` and `setfsuid(2)` also rewrite capability sets when an id leaves or reaches user
//! 0 (`cap_task_fix_setuid`, security/commoncap.c). So a plan predicts the whole state after each
//! of its calls, and a change is refused unless the predicted end is exactly the start. Three rules
//! decide what can be restored:
//!
//! - Without CAP_SETUID, each id can only be set to one of the real, effective and saved ids. The
//!   saved id is the place for the one that would otherwise be lost.
//! - If one of the three ids is 0, one must stay 0. Otherwise the kernel clears the permitted set,
//!   and nothing brings it back. For the same reason, a thread that has no id 0 must not take one.
//! - The effective set can be restored by `capset(2)`, and the ambient set by `prctl(2)`, as long
//!   as the permitted set is intact.

use rustix::thread::{CapabilitiesSecureBits, CapabilitySet, CapabilitySets};

use super::SetResArgs;
use super::user_state::{UidMap, UserState};
use crate::change::RequestedIds;
use crate::ids::{Uid, UserIds};

/// The calls for one change of the user ids.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct UserPlan {
    pub(crate) apply: SetResArgs<Uid>,
    /// The ambient set must be cleared after `apply`. A change that keeps 0 in the saved id keeps
    /// the ambient set, and a program executed under the changed real id would have those
    /// capabilities.
    pub(crate) clear_ambient: bool,
    /// The state after `apply`, and after clearing the ambient set if that is part of the plan.
    pub(crate) inside: UserState,
    pub(crate) restore: RestorePlan,
}

/// The calls that restore user ids and capability sets, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RestorePlan {
    /// First set `sets`, because setting the ids requires CAP_SETUID.
    pub(crate) capset_before_ids: bool,
    /// `None` if the real, effective and saved ids have not changed.
    pub(crate) ids: Option<SetResArgs<Uid>>,
    /// Set `sets` between the ids and the filesystem id, which requires CAP_SETUID.
    pub(crate) capset_before_filesystem: bool,
    /// The filesystem id, if it does not follow the effective one.
    pub(crate) filesystem: Option<Uid>,
    /// Set `sets` after all ids, because the effective set differs.
    pub(crate) capset_last: bool,
    /// The ambient capabilities to raise again, after everything else.
    pub(crate) ambient: CapabilitySet,
    /// The sets at the start, for each `capset`.
    pub(crate) sets: CapabilitySets,
    /// The state once all four ids are restored, before the last `capset`.
    pub(crate) returned: UserState,
    /// Setting the ids requires CAP_SETUID: at least one is not a current id.
    pub(crate) requires_setuid: bool,
    /// The kernel makes capabilities effective that were not effective at the start. Signals must
    /// be blocked until the last `capset`.
    pub(crate) raises_effective: bool,
}

impl RestorePlan {
    /// Whether one of the calls is `capset`.
    pub(crate) fn sets_capabilities(&self) -> bool {
        self.capset_before_ids || self.capset_before_filesystem || self.capset_last
    }
}

/// Why a change of user ids is refused. Nothing has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum UserRefusal {
    /// A requested id is not one of the current ids, and CAP_SETUID is not effective.
    SetuidRequiredToApply,
    /// This id could not be restored, because CAP_SETUID is not effective.
    SetuidRequiredToRestore { lost: Uid },
    /// The kernel would clear the permitted set when the last id leaves user 0.
    PermittedWouldBeLost,
    /// The ambient set would be cleared, and SECBIT_NO_CAP_AMBIENT_RAISE forbids raising it again.
    AmbientWouldBeLost,
    /// An id that would have to be restored reads as the overflow uid and might have no mapping.
    Unmapped,
}

/// Another thread of the process, in process scope. Its securebits cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct OtherThread {
    pub(crate) ids: UserIds,
    pub(crate) effective: CapabilitySet,
    pub(crate) permitted: CapabilitySet,
    pub(crate) ambient: CapabilitySet,
}

/// Why another thread cannot follow a change and come back exactly.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OtherThreadRefusal {
    /// The real id would change. With other threads that is never done.
    RealIdWouldChange,
    /// Its real, effective or saved id is not the calling thread's.
    IdsDiffer,
    /// Its filesystem id is not its effective id, and would not be restored.
    FilesystemIdDiffers,
    /// It may not apply or restore the ids. libc would abort the process.
    SetuidNotEffective,
    /// Its effective set would not be restored, at least under some securebits.
    EffectiveWouldChange,
    /// Its permitted set would be cleared, at least under some securebits.
    PermittedWouldBeLost,
    /// Its ambient set would be cleared, at least under some securebits.
    AmbientWouldBeLost,
}

/// Plans a change of the user ids. Returns `None` if nothing has to be done.
pub(crate) fn plan(
    state: &UserState,
    requested: RequestedIds<Uid>,
    map: UidMap,
) -> Result<Option<UserPlan>, UserRefusal> {
    let ids = state.ids;
    if requested.real.is_none() && requested.effective.is_none() {
        return Ok(None);
    }
    // Each change of the real or effective id also sets the effective and the filesystem id.
    let touches_unmapped = requested.real.is_some() && !map.can_name(ids.real)
        || !map.can_name(ids.effective)
        || !map.can_name(ids.filesystem);
    if touches_unmapped {
        return Err(UserRefusal::Unmapped);
    }
    let real = requested.real.unwrap_or(ids.real);
    let effective = requested.effective.unwrap_or(ids.effective);
    if (real, effective, effective) == (ids.real, ids.effective, ids.filesystem) {
        return Ok(None);
    }

    let saved = state.saved_id_inside(real, effective, map);
    let apply = SetResArgs {
        real: requested.real,
        // The effective id is always given: only then does the kernel move a filesystem id that
        // differs from it.
        effective: Some(effective),
        saved: (saved != ids.saved).then_some(saved),
    };
    let mut inside = state
        .after_setresuid(apply, map)
        .ok_or(UserRefusal::SetuidRequiredToApply)?;
    let clear_ambient = real != ids.real && !inside.ambient.is_empty();
    if clear_ambient {
        inside.ambient = CapabilitySet::empty();
    }
    let restore = restore(&inside, state, map)?;
    if restore.requires_setuid && !state.has_setuid() {
        return Err(UserRefusal::SetuidRequiredToRestore {
            lost: lost_id(&inside, state, map),
        });
    }
    Ok(Some(UserPlan {
        apply,
        clear_ambient,
        inside,
        restore,
    }))
}

/// Checks that another thread can follow the caller's plan and come back exactly.
///
/// libc makes only `apply` and the `ids` of the restore on other threads. Their securebits are
/// unknown, so the result must be exact under all of them.
pub(crate) fn check_other_thread(
    caller: &UserState,
    plan: &UserPlan,
    other: &OtherThread,
    map: UidMap,
) -> Result<(), OtherThreadRefusal> {
    if plan.inside.ids.real != caller.ids.real {
        return Err(OtherThreadRefusal::RealIdWouldChange);
    }
    if other.ids.three() != caller.ids.three() {
        return Err(OtherThreadRefusal::IdsDiffer);
    }
    if other.ids.filesystem != other.ids.effective {
        return Err(OtherThreadRefusal::FilesystemIdDiffers);
    }
    for start in other.possible_states() {
        let inside = start.after_setresuid(plan.apply, map);
        let end = inside.and_then(|inside| match plan.restore.ids {
            Some(args) => inside.after_setresuid(args, map),
            None => Some(inside),
        });
        // A cleared permitted set also takes CAP_SETUID for the restore, so it is named first.
        if inside.is_some_and(|inside| inside.permitted != start.permitted) {
            return Err(OtherThreadRefusal::PermittedWouldBeLost);
        }
        let end = end.ok_or(OtherThreadRefusal::SetuidNotEffective)?;
        if end.permitted != start.permitted {
            return Err(OtherThreadRefusal::PermittedWouldBeLost);
        }
        if end.ambient != start.ambient {
            return Err(OtherThreadRefusal::AmbientWouldBeLost);
        }
        if end.effective != start.effective {
            return Err(OtherThreadRefusal::EffectiveWouldChange);
        }
    }
    Ok(())
}

fn restore(now: &UserState, original: &UserState, map: UidMap) -> Result<RestorePlan, UserRefusal> {
    let target = original.ids;
    let requires_setuid_for = |lost: Uid| move || UserRefusal::SetuidRequiredToRestore { lost };
    let mut state = *now;
    let mut raises_effective = false;

    let args = SetResArgs::restoring(target, |uid| map.can_name(uid));
    let requires_setuid = !now.holds_all(args);
    let capset_before_ids = requires_setuid && !now.has_setuid();
    if capset_before_ids {
        state = state
            .after_capset(original)
            .filter(UserState::has_setuid)
            .ok_or_else(|| now.why_not_capset(original, lost_id(now, original, map)))?;
    }

    // A filesystem id that equals the effective one is set with the three ids: `setfsuid(0)` would
    // also raise capabilities.
    let follows = target.filesystem == target.effective;
    let ids = (now.ids.three() != target.three()
        || follows && now.ids.filesystem != target.filesystem)
        .then_some(args);
    if let Some(args) = ids {
        state = state
            .after_setresuid(args, map)
            .ok_or_else(requires_setuid_for(target.effective))?;
        raises_effective |= !original.effective.contains(state.effective);
    }

    let filesystem = (state.ids.filesystem != target.filesystem).then_some(target.filesystem);
    let mut capset_before_filesystem = false;
    if let Some(uid) = filesystem {
        if !state.holds(uid) && !state.has_setuid() {
            capset_before_filesystem = true;
            state = state
                .after_capset(original)
                .filter(UserState::has_setuid)
                .ok_or_else(|| state.why_not_capset(original, uid))?;
        }
        state = state
            .after_setfsuid(uid, map)
            .ok_or_else(requires_setuid_for(uid))?;
        raises_effective |= !original.effective.contains(state.effective);
    }
    let returned = state;

    let capset_last = state.effective != original.effective;
    if capset_last {
        state = state
            .after_capset(original)
            .ok_or(UserRefusal::PermittedWouldBeLost)?;
    }
    let ambient = original.ambient.difference(state.ambient);
    if !ambient.is_empty() {
        state = state
            .after_raising(ambient)
            .ok_or(UserRefusal::AmbientWouldBeLost)?;
    }

    let end = UserState {
        securebits: original.securebits,
        ..state
    };
    if end.ids != original.ids {
        return Err(UserRefusal::Unmapped);
    }
    if end != *original {
        return Err(UserRefusal::PermittedWouldBeLost);
    }
    Ok(RestorePlan {
        capset_before_ids,
        ids,
        capset_before_filesystem,
        filesystem,
        capset_last,
        ambient,
        sets: CapabilitySets {
            effective: original.effective,
            permitted: original.permitted,
            inheritable: original.inheritable,
        },
        returned,
        requires_setuid,
        raises_effective,
    })
}

/// An id of `original` that a thread in the state `now` cannot set without CAP_SETUID.
fn lost_id(now: &UserState, original: &UserState, map: UidMap) -> Uid {
    let lost = |uid: &Uid| map.can_name(*uid) && !now.holds(*uid);
    original
        .ids
        .three()
        .into_iter()
        .find(lost)
        .unwrap_or(original.ids.filesystem)
}

impl UserState {
    /// Chooses the saved id beside these real and effective ids.
    fn saved_id_inside(&self, real: Uid, effective: Uid, map: UidMap) -> Uid {
        let original = self.ids.three();
        let current = self.ids.saved;
        if !map.can_name(current) {
            return current;
        }
        let keeps_all = |saved: Uid| {
            let inside = [real, effective, saved];
            original
                .iter()
                .all(|uid| !map.can_name(*uid) || inside.contains(uid))
        };
        // It stays if nothing is lost. Otherwise it keeps the one id that would be lost.
        if let Some(saved) = [current, self.ids.real, self.ids.effective]
            .into_iter()
            .find(|&uid| keeps_all(uid))
        {
            return saved;
        }
        // Of several ids, it keeps 0: the permitted set depends on it.
        let loses_zero =
            original.contains(&Uid::ROOT) && real != Uid::ROOT && effective != Uid::ROOT;
        if loses_zero && self.has_fixup(map) {
            Uid::ROOT
        } else {
            current
        }
    }

    /// Why `capset` does not make CAP_SETUID effective to set this id.
    fn why_not_capset(&self, original: &UserState, lost: Uid) -> UserRefusal {
        if self.permitted == original.permitted {
            UserRefusal::SetuidRequiredToRestore { lost }
        } else {
            UserRefusal::PermittedWouldBeLost
        }
    }
}

impl OtherThread {
    /// The thread after libc has restored its ids, under all securebits under which `apply` leads
    /// to its present state.
    pub(crate) fn after_restore(
        &self,
        plan: &UserPlan,
        map: UidMap,
    ) -> Result<Vec<OtherThread>, OtherThreadRefusal> {
        if self.ids.filesystem != self.ids.effective {
            return Err(OtherThreadRefusal::FilesystemIdDiffers);
        }
        let restored = self.possible_states().filter_map(|inside| {
            let restored = match plan.restore.ids {
                Some(args) => inside.after_setresuid(args, map)?,
                None => inside,
            };
            (restored.after_setresuid(plan.apply, map)? == inside).then_some(OtherThread {
                ids: restored.ids,
                effective: restored.effective,
                permitted: restored.permitted,
                ambient: restored.ambient,
            })
        });
        let restored: Vec<_> = restored.collect();
        if restored.is_empty() {
            // It has changed since.
            return Err(OtherThreadRefusal::EffectiveWouldChange);
        }
        Ok(restored)
    }

    /// The capabilities that are effective after `apply` under all securebits.
    pub(crate) fn effective_inside(&self, plan: &UserPlan, map: UidMap) -> CapabilitySet {
        self.possible_states()
            .map(|start| start.after_setresuid(plan.apply, map))
            .map(|inside| inside.map_or(CapabilitySet::empty(), |inside| inside.effective))
            .fold(CapabilitySet::all(), CapabilitySet::intersection)
    }

    /// The thread under each combination of the securebits that matter.
    fn possible_states(&self) -> impl Iterator<Item = UserState> {
        let bits = [
            CapabilitiesSecureBits::empty(),
            CapabilitiesSecureBits::NO_SETUID_FIXUP,
            CapabilitiesSecureBits::KEEP_CAPS,
        ];
        // With NO_SETUID_FIXUP, KEEP_CAPS has no effect.
        let OtherThread {
            ids,
            effective,
            permitted,
            ambient,
        } = *self;
        bits.into_iter().map(move |securebits| UserState {
            ids,
            effective,
            permitted,
            inheritable: ambient,
            ambient,
            securebits,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::iter::once;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::super::kernel_model::{CAP_DAC_OVERRIDE, CAP_SETGID, CAP_SETUID, Call, Cred};
    use super::super::kernel_search::{
        Config, DOMAIN, FOREIGN, Fixup, Profile, Search, names_new_id,
    };
    use super::*;
    use crate::ids::Id;

    const WHOLE_MAP: UidMap = UidMap {
        has_zero: true,
        may_hide_unmapped: false,
    };
    const NO_ZERO: UidMap = UidMap {
        has_zero: false,
        may_hide_unmapped: false,
    };

    /// The number that is read for an id without a mapping in the user namespace.
    const OVERFLOW: u32 = 65534;
    const HIDDEN: [u32; 2] = [70_001, 70_002];

    /// Where one capability is: effective, permitted, inheritable, ambient.
    type Sets = [bool; 4];

    /// Absent; permitted; effective; ambient as well. With and without being inheritable.
    const SETS: [Sets; 8] = [
        [false, false, false, false],
        [false, false, true, false],
        [false, true, false, false],
        [false, true, true, false],
        [false, true, true, true],
        [true, true, false, false],
        [true, true, true, false],
        [true, true, true, true],
    ];

    /// Those of `SETS` that a capability has no other use for: inheritable only if ambient.
    const PLAIN_SETS: [Sets; 5] = [SETS[0], SETS[2], SETS[4], SETS[5], SETS[7]];

    fn give(cred: &mut Cred, capability: u64, sets: Sets) {
        let of = |is_in: bool| if is_in { capability } else { 0 };
        cred.cap_effective |= of(sets[0]);
        cred.cap_permitted |= of(sets[1]);
        cred.cap_inheritable |= of(sets[2]);
        cred.cap_ambient |= of(sets[3]);
    }

    /// Each combination of the securebits that matter.
    fn securebits() -> impl Iterator<Item = Cred> {
        (0..8).map(|bits| Cred {
            no_setuid_fixup: bits & 1 != 0,
            keep_caps: bits & 2 != 0,
            no_cap_ambient_raise: bits & 4 != 0,
            cap_bset: u64::MAX,
            ..Cred::default()
        })
    }

    /// Those of `securebits` that differ: with NO_SETUID_FIXUP, KEEP_CAPS has no effect.
    fn different_securebits() -> impl Iterator<Item = Cred> {
        securebits().filter(|bits| !bits.no_setuid_fixup || bits.keep_caps)
    }

    /// Threads with each of these combinations, and user 0.
    fn threads(
        securebits: impl Iterator<Item = Cred>,
        setuid: &[Sets],
        filesystem: &[Sets],
        setgid: &[Sets],
    ) -> Vec<Cred> {
        let mut all = Vec::new();
        for securebits in securebits {
            for &setuid in setuid {
                for &filesystem in filesystem {
                    for &setgid in setgid {
                        let mut cred = securebits;
                        give(&mut cred, CAP_SETUID, setuid);
                        give(&mut cred, CAP_DAC_OVERRIDE, filesystem);
                        give(&mut cred, CAP_SETGID, setgid);
                        all.push(cred);
                    }
                }
            }
        }
        all
    }

    fn with_ids(cred: &Cred, [uid, euid, suid, fsuid]: [u32; 4]) -> Cred {
        Cred {
            uid,
            euid,
            suid,
            fsuid,
            ..*cred
        }
    }

    fn ids_of(cred: &Cred) -> [u32; 4] {
        [cred.uid, cred.euid, cred.suid, cred.fsuid]
    }

    fn state(cred: &Cred) -> UserState {
        let [real, effective, saved, filesystem] = ids_of(cred).map(Uid::from_raw);
        let bit = |is_set: bool, bit| {
            if is_set {
                bit
            } else {
                CapabilitiesSecureBits::empty()
            }
        };
        UserState {
            ids: UserIds {
                real,
                effective,
                saved,
                filesystem,
            },
            effective: CapabilitySet::from_bits_retain(cred.cap_effective),
            permitted: CapabilitySet::from_bits_retain(cred.cap_permitted),
            inheritable: CapabilitySet::from_bits_retain(cred.cap_inheritable),
            ambient: CapabilitySet::from_bits_retain(cred.cap_ambient),
            securebits: bit(
                cred.no_setuid_fixup,
                CapabilitiesSecureBits::NO_SETUID_FIXUP,
            ) | bit(cred.keep_caps, CapabilitiesSecureBits::KEEP_CAPS)
                | bit(
                    cred.no_cap_ambient_raise,
                    CapabilitiesSecureBits::NO_CAP_AMBIENT_RAISE,
                ),
        }
    }

    fn requested(real: Option<u32>, effective: Option<u32>) -> RequestedIds<Uid> {
        RequestedIds {
            real: real.map(Uid::from_raw),
            effective: effective.map(Uid::from_raw),
        }
    }

    /// The real and the effective id that the change leads to.
    fn target(cred: &Cred, requested: RequestedIds<Uid>) -> [u32; 2] {
        let raw = |uid: Option<Uid>, now: u32| uid.map_or(now, Uid::as_raw);
        [
            raw(requested.real, cred.uid),
            raw(requested.effective, cred.euid),
        ]
    }

    fn setresuid(args: SetResArgs<Uid>) -> Call {
        let [uid, euid, suid] =
            [args.real, args.effective, args.saved].map(|id| id.map(Uid::as_raw));
        Call::SetResUid(uid, euid, suid)
    }

    fn capset(sets: CapabilitySets) -> Call {
        Call::CapSet {
            effective: sets.effective.bits(),
            permitted: sets.permitted.bits(),
            inheritable: sets.inheritable.bits(),
        }
    }

    /// Makes the calls that apply the plan.
    fn apply(cred: &Cred, plan: &UserPlan) -> Cred {
        let applied = cred.call(setresuid(plan.apply)).expect("setresuid");
        if plan.clear_ambient {
            applied.call(Call::AmbientClearAll).unwrap()
        } else {
            applied
        }
    }

    /// Makes the calls of the restore, checks what the plan says of them, and counts them without
    /// those for the ambient set.
    fn execute(inside: &Cred, original: &Cred, plan: &RestorePlan) -> (Cred, u8) {
        execute_read_as(inside, original, plan, |id| id)
    }

    /// As [`execute`], if the thread reads its ids as another value.
    fn execute_read_as(
        inside: &Cred,
        original: &Cred,
        plan: &RestorePlan,
        read: impl Fn(u32) -> u32,
    ) -> (Cred, u8) {
        let mut cred = *inside;
        let mut calls = 0;
        let mut raised = 0;
        let mut call = |cred: &mut Cred, call| {
            *cred = cred.call(call).expect("a call of the restore");
            calls += 1;
            raised |= cred.cap_effective & !original.cap_effective;
        };
        if plan.capset_before_ids {
            call(&mut cred, capset(plan.sets));
        }
        if let Some(args) = plan.ids {
            assert_eq!(names_new_id(&cred, setresuid(args)), plan.requires_setuid);
            call(&mut cred, setresuid(args));
        }
        if plan.capset_before_filesystem {
            call(&mut cred, capset(plan.sets));
        }
        if let Some(uid) = plan.filesystem {
            call(&mut cred, Call::SetFsUid(uid.as_raw()));
        }
        assert_eq!(
            state(&with_ids(&cred, ids_of(&cred).map(read))),
            plan.returned
        );
        assert_eq!(ids_of(&cred), ids_of(original));
        if plan.capset_last {
            call(&mut cred, capset(plan.sets));
        }
        assert_eq!(raised != 0, plan.raises_effective);
        assert!(original.cap_ambient != 0 || plan.ambient.is_empty());
        for capability in plan.ambient.iter().filter(|_| !plan.ambient.is_empty()) {
            cred = cred
                .call(Call::AmbientRaise(capability.bits()))
                .expect("PR_CAP_AMBIENT_RAISE");
        }
        (cred, calls)
    }

    /// The configuration of the search that answers for this thread.
    fn config(cred: &Cred, map: UidMap) -> Config {
        let profile = |capability: u64| match (
            cred.cap_permitted & capability != 0,
            cred.cap_effective & capability != 0,
        ) {
            (false, _) => Profile::Absent,
            (true, false) => Profile::Permitted,
            (true, true) => Profile::Effective,
        };
        let fixup = match (cred.no_setuid_fixup || !map.has_zero, cred.keep_caps) {
            (true, _) => Fixup::Never,
            (false, false) => Fixup::Always,
            (false, true) if cred.no_cap_ambient_raise && cred.cap_ambient != 0 => {
                Fixup::KeepCapsFixedAmbient
            }
            (false, true) => Fixup::KeepCaps,
        };
        Config {
            setuid: profile(CAP_SETUID),
            filesystem: profile(CAP_DAC_OVERRIDE),
            fixup,
        }
    }

    /// A changed real id with a non-empty ambient set inside is not allowed: it has to be cleared.
    fn must_keep_ambient(cred: &Cred, requested: RequestedIds<Uid>) -> bool {
        cred.cap_ambient != 0 && cred.no_cap_ambient_raise && target(cred, requested)[0] != cred.uid
    }

    /// Whether the change has nothing to do, as the rules say.
    fn is_nothing(cred: &Cred, requested: RequestedIds<Uid>) -> bool {
        target(cred, requested) == [cred.uid, cred.euid] && cred.fsuid == cred.euid
    }

    /// Plans the change for this thread. If it is served, makes all calls on the model, and
    /// requires that they end exactly at the start. Returns the number of calls of the restore.
    fn serve(
        cred: &Cred,
        requested: RequestedIds<Uid>,
        map: UidMap,
    ) -> Result<Option<u8>, UserRefusal> {
        let Some(plan) = plan(&state(cred), requested, map)? else {
            assert!(is_nothing(cred, requested));
            return Ok(None);
        };
        let inside = apply(cred, &plan);
        assert_eq!(state(&inside), plan.inside);
        let [real, effective] = target(cred, requested);
        assert_eq!(
            [inside.uid, inside.euid, inside.fsuid],
            [real, effective, effective]
        );
        assert!(inside.cap_ambient == 0 || real == cred.uid);
        let (end, calls) = execute(&inside, cred, &plan.restore);
        assert_eq!(end, *cred, "{requested:?}: {plan:?}");
        Ok(Some(calls))
    }

    fn choices() -> impl Iterator<Item = Option<u32>> + Clone {
        DOMAIN.into_iter().map(Some).chain(once(None))
    }

    fn all_changes() -> Vec<RequestedIds<Uid>> {
        let pairs = choices().flat_map(|real| choices().map(move |effective| (real, effective)));
        let some = pairs.filter(|&(real, effective)| real.is_some() || effective.is_some());
        some.map(|(real, effective)| requested(real, effective))
            .collect()
    }

    /// The real, effective and saved id among three users, the filesystem id among four.
    fn all_ids() -> Vec<[u32; 4]> {
        let three = (0..27).map(|index| [index / 9, index / 3 % 3, index % 3]);
        three
            .flat_map(|[r, e, s]| DOMAIN.map(|f| [r, e, s, f]))
            .collect()
    }

    /// Runs the checks of each item on two threads, and adds up what they count.
    fn in_parallel<T: Sync, const N: usize>(
        items: &[T],
        check: impl Fn(&T) -> [usize; N] + Sync,
    ) -> [usize; N] {
        let next = AtomicUsize::new(0);
        let work = || {
            let mut total = [0; N];
            while let Some(item) = items.get(next.fetch_add(1, Ordering::Relaxed)) {
                total
                    .iter_mut()
                    .zip(check(item))
                    .for_each(|(total, count)| *total += count);
            }
            total
        };
        std::thread::scope(|scope| {
            let other = scope.spawn(work);
            let counts = work();
            let other = other.join().unwrap();
            std::array::from_fn(|index| counts[index] + other[index])
        })
    }

    /// The ids of a thread and a change, for every way in which they can be equal, 0 apart.
    fn all_patterns() -> Vec<([u32; 4], RequestedIds<Uid>)> {
        // Each value is 0, or one of the values before it, or the next new one.
        fn extend(values: &mut Vec<u32>, length: usize, all: &mut Vec<Vec<u32>>) {
            if values.len() == length {
                all.push(values.clone());
                return;
            }
            let new = values.iter().max().map_or(1, |max| max + 1);
            for value in 0..=new {
                values.push(value);
                extend(values, length, all);
                values.pop();
            }
        }
        let of_length = |length| {
            let mut all = Vec::new();
            extend(&mut Vec::new(), length, &mut all);
            all
        };
        let ids = |values: &[u32]| [values[0], values[1], values[2], values[3]];
        let mut all = Vec::new();
        for values in of_length(5) {
            all.push((ids(&values), requested(Some(values[4]), None)));
            all.push((ids(&values), requested(None, Some(values[4]))));
        }
        for values in of_length(6) {
            all.push((ids(&values), requested(Some(values[4]), Some(values[5]))));
        }
        all
    }

    /// Whether the search finds that the change cannot be restored if users are merged in some way.
    ///
    /// Merging users only makes more possible: an id that is current stays current, and 0 stays
    /// apart. So a change that cannot be restored then cannot be restored at all.
    fn is_refused_if_merged(ids: [u32; 4], [real, effective]: [u32; 2], search: &Search) -> bool {
        let users = *ids.iter().chain([&real, &effective]).max().unwrap();
        (0..3_usize.pow(users)).any(|merging| {
            let merged = |id: u32| match id.checked_sub(1) {
                None => 0,
                Some(user) => DOMAIN[1 + merging / 3_usize.pow(user) % 3],
            };
            !search.can_restore(ids.map(merged), [real, effective].map(merged))
        })
    }

    #[test]
    fn serves_exactly_the_changes_that_the_search_can_restore() {
        let changes = all_changes();
        let starts = threads(securebits(), &PLAIN_SETS, &PLAIN_SETS, &SETS[..1]);
        let [pairs, nothing, served, refused] = in_parallel(&starts, |base| {
            let mut counts = [0; 4];
            let search = Search::of(config(base, WHOLE_MAP));
            for ids in all_ids() {
                let cred = with_ids(base, ids);
                for &requested in &changes {
                    let to = target(&cred, requested);
                    let can_restore =
                        search.can_restore(ids, to) && !must_keep_ambient(&cred, requested);
                    let result = serve(&cred, requested, WHOLE_MAP);
                    assert_eq!(
                        result.is_ok(),
                        can_restore,
                        "{cred:?}, {requested:?}: {result:?}"
                    );
                    if let Ok(Some(calls)) = result {
                        let fewest = search.fewest_calls(ids, to);
                        assert_eq!(Some(calls), fewest, "{cred:?}, {requested:?}");
                        assert!((1..=4).contains(&calls));
                    }
                    counts[0] += 1;
                    counts[match result {
                        Ok(None) => 1,
                        Ok(Some(_)) => 2,
                        Err(_) => 3,
                    }] += 1;
                }
            }
            counts
        });
        assert_eq!(pairs, 8 * 5 * 5 * 108 * 24);
        assert_eq!((nothing, served, refused), (16_200, 192_860, 309_340));
    }

    #[test]
    fn restores_every_pattern_of_ids_exactly_or_refuses_it_for_a_reason() {
        let setgid = [SETS[0], SETS[3], SETS[7]];
        let bases = threads(different_securebits(), &PLAIN_SETS, &PLAIN_SETS, &setgid);
        let patterns = all_patterns();
        let counts = in_parallel(&patterns, |&(ids, requested)| {
            let mut counts = [0; 4];
            let mut impossible = [None; 36];
            let [real, effective] = target(&with_ids(&bases[0], ids), requested);
            for base in &bases {
                let cred = with_ids(base, ids);
                let result = serve(&cred, requested, WHOLE_MAP);
                counts[0] += 1;
                counts[match result {
                    Ok(None) => 1,
                    Ok(Some(_)) => 2,
                    Err(_) => 3,
                }] += 1;
                if result.is_err() && !must_keep_ambient(&cred, requested) {
                    let config = config(&cred, WHOLE_MAP);
                    let is_impossible = *impossible[config.index()].get_or_insert_with(|| {
                        is_refused_if_merged(ids, [real, effective], Search::of(config))
                    });
                    assert!(is_impossible, "{cred:?}, {requested:?}: {result:?}");
                }
            }
            counts
        });
        // 203 is the number of partitions of six things (0 and five ids), 877 that of seven.
        assert_eq!(patterns.len(), 203 + 203 + 877);
        assert_eq!(counts[0], patterns.len() * 6 * 5 * 5 * 3);
        assert_eq!(counts[1..], [20_250, 205_392, 351_708]);
    }

    #[test]
    fn without_user_0_in_the_map_capabilities_do_not_change() {
        let (mut served, mut refused) = (0, 0);
        for base in threads(securebits(), &PLAIN_SETS, &SETS[..1], &SETS[..1]) {
            let base = Cred {
                unmapped: &[0],
                ..base
            };
            let search = Search::of(config(&base, NO_ZERO));
            for (ids, requested) in all_patterns() {
                let cred = with_ids(&base, ids);
                let to = target(&cred, requested);
                if ids
                    .iter()
                    .chain(&to)
                    .any(|id| *id == 0 || !DOMAIN.contains(id))
                {
                    continue;
                }
                let can_restore =
                    search.can_restore(ids, to) && !must_keep_ambient(&cred, requested);
                let result = serve(&cred, requested, NO_ZERO);
                assert_eq!(
                    result.is_ok(),
                    can_restore,
                    "{cred:?}, {requested:?}: {result:?}"
                );
                if can_restore {
                    served += 1
                } else {
                    refused += 1
                }
            }
        }
        assert_eq!((served, refused), (2_080, 480));
    }

    /// What [`never_restores_an_id_that_might_have_no_mapping`] counts: served, nothing to do,
    /// refused by the planner, refused by the kernel.
    type Outcomes = [usize; 4];

    #[test]
    fn never_restores_an_id_that_might_have_no_mapping() {
        // The overflow uid itself may be mapped or not, and so may user 0.
        let maps: [&[u32]; 4] = [
            &[HIDDEN[0], HIDDEN[1]],
            &[HIDDEN[0], HIDDEN[1], 0],
            &[HIDDEN[0], HIDDEN[1], OVERFLOW],
            &[HIDDEN[0], HIDDEN[1], OVERFLOW, 0],
        ];
        let values = [0, 1, 2, OVERFLOW, HIDDEN[0], HIDDEN[1]];
        let choices = [None, Some(0), Some(1), Some(3), Some(OVERFLOW)];
        let mut counts: Outcomes = [0; 4];
        for unmapped in maps {
            for base in threads(
                securebits().take(1),
                &[SETS[0], SETS[2], SETS[5]],
                &SETS[..1],
                &SETS[..1],
            ) {
                let base = Cred { unmapped, ..base };
                for index in 0..6_usize.pow(4) {
                    let ids = [index / 216, index / 36 % 6, index / 6 % 6, index % 6];
                    let ids = ids.map(|value| values[value]);
                    // A thread can have an id without a mapping, but it never reads as itself.
                    if ids
                        .iter()
                        .any(|id| unmapped.contains(id) && !HIDDEN.contains(id))
                    {
                        continue;
                    }
                    for real in choices {
                        for effective in choices {
                            let cred = with_ids(&base, ids);
                            counts[serve_with_hidden_ids(&cred, requested(real, effective))] += 1;
                        }
                    }
                }
            }
        }
        assert_eq!(counts, [7_173, 9_306, 191_460, 2_211]);
    }

    /// Returns the index of the outcome.
    fn serve_with_hidden_ids(cred: &Cred, requested: RequestedIds<Uid>) -> usize {
        let map = UidMap {
            has_zero: !cred.unmapped.contains(&0),
            may_hide_unmapped: true,
        };
        let shown = |id: u32| if HIDDEN.contains(&id) { OVERFLOW } else { id };
        let read = state(&with_ids(cred, ids_of(cred).map(shown)));
        let by_request: Vec<Uid> = [requested.real, requested.effective]
            .into_iter()
            .flatten()
            .collect();
        let plan = match plan(&read, requested, map) {
            Ok(Some(plan)) => plan,
            Ok(None) => {
                assert!(by_request.is_empty() || is_nothing(cred, requested));
                return 1;
            }
            Err(reason) => {
                let is_unmapped = read.ids.effective == Uid::OVERFLOW
                    || read.ids.filesystem == Uid::OVERFLOW
                    || requested.real.is_some() && read.ids.real == Uid::OVERFLOW;
                assert_eq!(reason == UserRefusal::Unmapped, is_unmapped);
                return 2;
            }
        };
        let named = [plan.apply.real, plan.apply.effective, plan.apply.saved];
        let mut named = named.into_iter().flatten();
        assert!(named.all(|uid| uid != Uid::OVERFLOW || by_request.contains(&uid)));
        let Ok(inside) = cred.call(setresuid(plan.apply)) else {
            // Only an id of the request can be the reason.
            let may_be_unmapped =
                |uid: &Uid| *uid == Uid::OVERFLOW || cred.unmapped.contains(&uid.as_raw());
            assert!(by_request.iter().any(may_be_unmapped));
            return 3;
        };
        let (end, _) = execute_read_as(&inside, cred, &plan.restore, shown);
        assert_eq!(end, *cred, "{requested:?}: {plan:?}");
        0
    }

    fn ids_with_odd_or_equal_filesystem_id() -> impl Iterator<Item = [u32; 4]> {
        all_ids()
            .into_iter()
            .filter(|ids| ids[3] == ids[1] || ids[3] == FOREIGN)
    }

    fn other_thread(cred: &Cred) -> OtherThread {
        let UserState {
            ids,
            effective,
            permitted,
            ambient,
            ..
        } = state(cred);
        OtherThread {
            ids,
            effective,
            permitted,
            ambient,
        }
    }

    /// Whether the calls of libc restore another thread exactly, whatever its securebits are.
    fn follows(other: &Cred, plan: &UserPlan) -> bool {
        securebits().all(|bits| {
            let start = Cred {
                no_setuid_fixup: bits.no_setuid_fixup,
                keep_caps: bits.keep_caps,
                no_cap_ambient_raise: bits.no_cap_ambient_raise,
                ..*other
            };
            let inside = start.call(setresuid(plan.apply));
            let end = inside.and_then(|inside| {
                plan.restore
                    .ids
                    .map_or(Ok(inside), |args| inside.call(setresuid(args)))
            });
            end == Ok(start)
        })
    }

    #[test]
    fn another_thread_can_follow_if_it_is_restored_under_all_securebits() {
        let some = [SETS[0], SETS[2], SETS[5]];
        let callers = threads(different_securebits(), &some, &some, &SETS[..1]);
        let others = threads(securebits().take(1), &PLAIN_SETS, &PLAIN_SETS, &SETS[..1]);
        let counts = in_parallel(&callers, |caller| {
            let mut counts = [0; 2];
            for ids in ids_with_odd_or_equal_filesystem_id() {
                let caller = state(&with_ids(caller, ids));
                for effective in DOMAIN {
                    let requested = requested(None, Some(effective));
                    let Ok(Some(plan)) = plan(&caller, requested, WHOLE_MAP) else {
                        continue;
                    };
                    for other in &others {
                        let other = with_ids(other, [ids[0], ids[1], ids[2], ids[1]]);
                        let result =
                            check_other_thread(&caller, &plan, &other_thread(&other), WHOLE_MAP);
                        let follows = follows(&other, &plan);
                        assert_eq!(result.is_ok(), follows, "{plan:?}, {other:?}: {result:?}");
                        counts[usize::from(!follows)] += 1;
                        if follows {
                            is_known_inside(&other_thread(&other), &plan);
                        }
                    }
                }
            }
            counts
        });
        assert_eq!(counts, [51_102, 55_548]);
    }

    /// From the state inside, a switch knows what the thread will be outside.
    fn is_known_inside(other: &OtherThread, plan: &UserPlan) {
        for start in other.possible_states() {
            let inside = start.after_setresuid(plan.apply, WHOLE_MAP).unwrap();
            let inside = OtherThread {
                ids: inside.ids,
                effective: inside.effective,
                permitted: inside.permitted,
                ambient: inside.ambient,
            };
            let restored = inside.after_restore(plan, WHOLE_MAP).unwrap();
            assert!(
                restored.contains(other),
                "{plan:?}, {other:?}: {restored:?}"
            );
        }
    }

    #[test]
    fn another_thread_must_have_the_ids_of_the_calling_one() {
        let mut root = Cred {
            cap_bset: u64::MAX,
            ..Cred::default()
        };
        give(&mut root, CAP_SETUID, SETS[5]);
        let caller = state(&root);
        let check = |requested, ids| {
            let plan = plan(&caller, requested, WHOLE_MAP).unwrap().unwrap();
            check_other_thread(
                &caller,
                &plan,
                &other_thread(&with_ids(&root, ids)),
                WHOLE_MAP,
            )
        };
        let effective = requested(None, Some(1));
        assert_eq!(check(effective, [0, 0, 0, 0]), Ok(()));
        for ids in [[1, 0, 0, 0], [0, 1, 0, 1], [0, 0, 1, 0]] {
            assert_eq!(check(effective, ids), Err(OtherThreadRefusal::IdsDiffer));
        }
        let odd = check(effective, [0, 0, 0, 1]);
        assert_eq!(odd, Err(OtherThreadRefusal::FilesystemIdDiffers));
        let both = check(requested(Some(1), Some(1)), [0, 0, 0, 0]);
        assert_eq!(both, Err(OtherThreadRefusal::RealIdWouldChange));
    }

    #[test]
    fn a_refusal_names_what_is_missing() {
        let cred = |ids, setuid: Sets, keep_caps, no_cap_ambient_raise| {
            let mut cred = Cred {
                keep_caps,
                no_cap_ambient_raise,
                ..Cred::default()
            };
            give(&mut cred, CAP_SETUID, setuid);
            with_ids(&cred, ids)
        };
        let refused = |cred: Cred, real, effective| {
            plan(&state(&cred), requested(real, effective), WHOLE_MAP).unwrap_err()
        };
        let [none, permitted, effective, ambient] = [SETS[0], SETS[2], SETS[5], SETS[7]];

        // An ordinary user, and root without the effective capability.
        for cred in [
            cred([1; 4], none, false, false),
            cred([0; 4], permitted, false, false),
        ] {
            assert_eq!(
                refused(cred, None, Some(2)),
                UserRefusal::SetuidRequiredToApply
            );
        }
        // A set-user-ID program of user 2 that was started by user 1.
        let program = cred([1, 2, 2, 2], none, false, false);
        let lost = UserRefusal::SetuidRequiredToRestore {
            lost: Uid::from_raw(2),
        };
        assert_eq!(
            refused(cred([1, 2, 3, 2], none, false, false), Some(1), Some(1)),
            lost
        );
        assert_eq!(
            plan(&state(&program), requested(None, Some(1)), WHOLE_MAP).map(|_| ()),
            Ok(())
        );
        let odd = cred([1, 1, 1, 2], permitted, false, false);
        assert_eq!(refused(odd, None, Some(1)), lost);

        // A program with file capabilities, to user 0 and back.
        let with_caps = cred([1; 4], effective, false, false);
        assert_eq!(
            refused(with_caps, None, Some(0)),
            UserRefusal::PermittedWouldBeLost
        );
        // The same with SECBIT_KEEP_CAPS, and with ambient capabilities that cannot be raised
        // again.
        let keeps = cred([1; 4], effective, true, false);
        assert_eq!(
            plan(&state(&keeps), requested(None, Some(0)), WHOLE_MAP).map(|_| ()),
            Ok(())
        );
        let fixed = cred([1; 4], ambient, true, true);
        assert_eq!(
            refused(fixed, None, Some(0)),
            UserRefusal::AmbientWouldBeLost
        );
        let root = cred([0; 4], ambient, false, true);
        assert_eq!(
            refused(root, Some(1), Some(1)),
            UserRefusal::AmbientWouldBeLost
        );
    }
}

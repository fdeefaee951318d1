//! User ids: which to set for a change, how to restore them with the capability sets, and what that
//! requires.
//!
//! `setresuid(2)` and `setfsuid(2)` also rewrite capability sets when an id leaves or reaches user 0
//! (`cap_task_fix_setuid`, security/commoncap.c). So a plan predicts the whole state after each of
//! its calls, and a change is refused unless the predicted end is exactly the start. Three rules
//! decide what can be restored:
//!
//! - Without CAP_SETUID, each id can only be set to one of the real, effective and saved ids. The
//!   saved id is the place for the one that would otherwise be lost.
//! - If one of the three ids is 0, one must stay 0. Otherwise the kernel clears the permitted set,
//!   and nothing brings it back. For the same reason, a thread that has no id 0 must not take one.
//! - The effective set can be restored by `capset(2)`, and the ambient set by `prctl(2)`, as long as
//!   the permitted set is intact.

use rustix::thread::{CapabilitiesSecureBits, CapabilitySet, CapabilitySets};

use super::SetResArgs;
use crate::change::RequestedIds;
use crate::ids::{Id, Uid, UserIds};

/// The capabilities that `setfsuid` moves (`CAP_FS_SET`, include/linux/capability.h).
const FILESYSTEM_CAPABILITIES: CapabilitySet = CapabilitySet::from_bits_retain(0x1_0800_021f);

/// What decides, for one thread, what a change of user ids does and whether it can be restored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct UserState {
    pub(crate) ids: UserIds,
    pub(crate) effective: CapabilitySet,
    pub(crate) permitted: CapabilitySet,
    pub(crate) inheritable: CapabilitySet,
    pub(crate) ambient: CapabilitySet,
    /// Only NO_SETUID_FIXUP, KEEP_CAPS and NO_CAP_AMBIENT_RAISE matter here.
    pub(crate) securebits: CapabilitiesSecureBits,
}

/// What the user namespace's map of user ids says (`user_namespaces(7)`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct UidMap {
    /// User 0 is mapped. If not, the kernel never changes capabilities with the ids.
    pub(crate) has_zero: bool,
    /// Some ids have no mapping, so an id that reads as the overflow uid might be any of them.
    pub(crate) may_hide_unmapped: bool,
}

/// The calls for one change of the user ids.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct UserPlan {
    pub(crate) apply: SetResArgs<Uid>,
    /// The ambient set must be cleared after `apply`. A change that keeps 0 in the saved id keeps the
    /// ambient set, and a program executed under the changed real id would have those capabilities.
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
    /// The kernel makes capabilities effective that were not effective at the start. Signals must be
    /// blocked until the last `capset`.
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

impl UserIds {
    fn three(self) -> [Uid; 3] {
        [self.real, self.effective, self.saved]
    }
}

impl UidMap {
    /// Whether a call can name this id, which was read.
    fn can_name(self, uid: Uid) -> bool {
        !(self.may_hide_unmapped && uid == Uid::OVERFLOW)
    }
}

impl UserState {
    fn holds(&self, uid: Uid) -> bool {
        self.ids.three().contains(&uid)
    }

    fn holds_all(&self, args: SetResArgs<Uid>) -> bool {
        [args.real, args.effective, args.saved]
            .into_iter()
            .flatten()
            .all(|uid| self.holds(uid))
    }

    fn has_setuid(&self) -> bool {
        self.effective.contains(CapabilitySet::SETUID)
    }

    /// Whether the kernel changes capability sets with the user ids of this thread.
    fn has_fixup(&self, map: UidMap) -> bool {
        map.has_zero
            && !self
                .securebits
                .contains(CapabilitiesSecureBits::NO_SETUID_FIXUP)
    }

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

    /// `setresuid(2)`; `None` if the kernel answers EPERM.
    fn after_setresuid(mut self, args: SetResArgs<Uid>, map: UidMap) -> Option<UserState> {
        if !self.holds_all(args) && !self.has_setuid() {
            return None;
        }
        let before = self.ids;
        let effective = args.effective.unwrap_or(before.effective);
        self.ids = UserIds {
            real: args.real.unwrap_or(before.real),
            effective,
            saved: args.saved.unwrap_or(before.saved),
            filesystem: effective,
        };
        let leaves_filesystem_id =
            args.effective.is_none() || args.effective == Some(before.filesystem);
        if self.ids.three() == before.three() && leaves_filesystem_id {
            self.ids.filesystem = before.filesystem;
            return Some(self);
        }
        if !self.has_fixup(map) {
            return Some(self);
        }

        // cap_emulate_setxuid in security/commoncap.c.
        let had_root = before.three().contains(&Uid::ROOT);
        if had_root && !self.holds(Uid::ROOT) {
            if !self.securebits.contains(CapabilitiesSecureBits::KEEP_CAPS) {
                self.permitted = CapabilitySet::empty();
                self.effective = CapabilitySet::empty();
            }
            self.ambient = CapabilitySet::empty();
        }
        match (
            before.effective == Uid::ROOT,
            self.ids.effective == Uid::ROOT,
        ) {
            (true, false) => self.effective = CapabilitySet::empty(),
            (false, true) => self.effective = self.permitted,
            _ => {}
        }
        Some(self)
    }

    /// `setfsuid(2)`; `None` if the kernel ignores it.
    fn after_setfsuid(mut self, uid: Uid, map: UidMap) -> Option<UserState> {
        let before = self.ids.filesystem;
        if !self.holds(uid) && before != uid && !self.has_setuid() {
            return None;
        }
        self.ids.filesystem = uid;
        if self.has_fixup(map) {
            match (before == Uid::ROOT, uid == Uid::ROOT) {
                (true, false) => self.effective.remove(FILESYSTEM_CAPABILITIES),
                (false, true) => self.effective |= self.permitted & FILESYSTEM_CAPABILITIES,
                _ => {}
            }
        }
        Some(self)
    }

    /// `capset(2)` of the original sets; `None` if more than the effective set differs.
    fn after_capset(mut self, original: &UserState) -> Option<UserState> {
        if (self.permitted, self.inheritable) != (original.permitted, original.inheritable) {
            return None;
        }
        self.effective = original.effective;
        Some(self)
    }

    /// `PR_CAP_AMBIENT_RAISE` of each capability; `None` if it is forbidden.
    fn after_raising(mut self, ambient: CapabilitySet) -> Option<UserState> {
        let raisable = self.permitted & self.inheritable;
        let forbidden = self
            .securebits
            .contains(CapabilitiesSecureBits::NO_CAP_AMBIENT_RAISE);
        if forbidden || !raisable.contains(ambient) {
            return None;
        }
        self.ambient |= ambient;
        Some(self)
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

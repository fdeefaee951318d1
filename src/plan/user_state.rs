//! The effect of each call on user ids and capability sets.
//!
//! It is `cap_task_fix_setuid` in security/commoncap.c, without the namespaces, as a pure function.

use rustix::thread::{CapabilitiesSecureBits, CapabilitySet};

use super::SetResArgs;
use crate::ids::{Id, Uid, UserIds};

/// The capabilities that `setfsuid` moves (`CAP_FS_SET`, include/linux/capability.h).
const FILESYSTEM_CAPABILITIES: CapabilitySet = CapabilitySet::from_bits_retain(0x1_0800_021f);

/// The state of a thread that decides the effect of a change of user ids and of its restore.
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

/// The facts about the user namespace's map of user ids (`user_namespaces(7)`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct UidMap {
    /// User 0 is mapped. If not, the kernel never changes capabilities with the ids.
    pub(crate) has_zero: bool,
    /// Some ids have no mapping, so an id that reads as the overflow uid might be any of them.
    pub(crate) may_hide_unmapped: bool,
}

impl UserIds {
    pub(super) fn three(self) -> [Uid; 3] {
        [self.real, self.effective, self.saved]
    }
}

impl UidMap {
    /// Whether a call can name this id, which was read.
    pub(super) fn can_name(self, uid: Uid) -> bool {
        !(self.may_hide_unmapped && uid == Uid::OVERFLOW)
    }
}

impl UserState {
    pub(super) fn holds(&self, uid: Uid) -> bool {
        self.ids.three().contains(&uid)
    }

    pub(super) fn holds_all(&self, args: SetResArgs<Uid>) -> bool {
        [args.real, args.effective, args.saved]
            .into_iter()
            .flatten()
            .all(|uid| self.holds(uid))
    }

    pub(super) fn has_setuid(&self) -> bool {
        self.effective.contains(CapabilitySet::SETUID)
    }

    /// Whether the kernel changes capability sets with the user ids of this thread.
    pub(super) fn has_fixup(&self, map: UidMap) -> bool {
        map.has_zero
            && !self
                .securebits
                .contains(CapabilitiesSecureBits::NO_SETUID_FIXUP)
    }

    /// `setresuid(2)`; `None` if the kernel answers EPERM.
    pub(super) fn after_setresuid(
        mut self,
        args: SetResArgs<Uid>,
        map: UidMap,
    ) -> Option<UserState> {
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
    pub(super) fn after_setfsuid(mut self, uid: Uid, map: UidMap) -> Option<UserState> {
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
    pub(super) fn after_capset(mut self, original: &UserState) -> Option<UserState> {
        if (self.permitted, self.inheritable) != (original.permitted, original.inheritable) {
            return None;
        }
        self.effective = original.effective;
        Some(self)
    }

    /// `PR_CAP_AMBIENT_RAISE` of each capability; `None` if it is forbidden.
    pub(super) fn after_raising(mut self, ambient: CapabilitySet) -> Option<UserState> {
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
}

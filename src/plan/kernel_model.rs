//! A model of the kernel for tests: what the calls do to the user ids and capability sets of a
//! thread.
//!
//! Written from kernel/sys.c, security/commoncap.c and kernel/capability.c of Linux 6.18, and not
//! from the planner. `tests/identity/user_model.rs` compares it with the running kernel.

#![allow(dead_code, unreachable_pub, reason = "shared with the tests")]

pub const CAP_DAC_OVERRIDE: u64 = 1 << 1;
pub const CAP_SETGID: u64 = 1 << 6;
pub const CAP_SETUID: u64 = 1 << 7;
pub const CAP_SETPCAP: u64 = 1 << 8;

/// CAP_FS_SET (include/linux/capability.h).
const CAP_FS_SET: u64 = 0x1_0800_021f;

const EPERM: i32 = 1;
const EINVAL: i32 = 22;

/// `struct cred`, as far as it matters here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Cred {
    pub uid: u32,
    pub euid: u32,
    pub suid: u32,
    pub fsuid: u32,
    pub cap_effective: u64,
    pub cap_permitted: u64,
    pub cap_inheritable: u64,
    pub cap_ambient: u64,
    pub cap_bset: u64,
    /// SECBIT_NO_SETUID_FIXUP, SECBIT_KEEP_CAPS, SECBIT_NO_CAP_AMBIENT_RAISE.
    pub no_setuid_fixup: bool,
    pub keep_caps: bool,
    pub no_cap_ambient_raise: bool,
    /// Ids without a mapping in the user namespace: calls that name them fail.
    pub unmapped: &'static [u32],
}

/// A system call. `None` is -1, which leaves that id unchanged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Call {
    SetResUid(Option<u32>, Option<u32>, Option<u32>),
    SetFsUid(u32),
    CapSet {
        effective: u64,
        permitted: u64,
        inheritable: u64,
    },
    /// `PR_CAP_AMBIENT_RAISE` and `PR_CAP_AMBIENT_LOWER` of one capability,
    /// `PR_CAP_AMBIENT_CLEAR_ALL`.
    AmbientRaise(u64),
    AmbientLower(u64),
    AmbientClearAll,
    /// `PR_SET_KEEPCAPS`.
    SetKeepCaps(bool),
}

impl Cred {
    /// Makes the call, or returns the errno. `setfsuid` never fails: it changes nothing instead.
    pub fn call(&self, call: Call) -> Result<Cred, i32> {
        match call {
            Call::SetResUid(uid, euid, suid) => self.setresuid(uid, euid, suid),
            Call::SetFsUid(fsuid) => Ok(self.setfsuid(fsuid)),
            Call::CapSet {
                effective,
                permitted,
                inheritable,
            } => self.capset(effective, permitted, inheritable),
            Call::AmbientRaise(capability) => {
                let raisable = self.cap_permitted & self.cap_inheritable & capability != 0;
                if !raisable || self.no_cap_ambient_raise {
                    return Err(EPERM);
                }
                Ok(Cred {
                    cap_ambient: self.cap_ambient | capability,
                    ..*self
                })
            }
            Call::AmbientLower(capability) => Ok(Cred {
                cap_ambient: self.cap_ambient & !capability,
                ..*self
            }),
            Call::AmbientClearAll => Ok(Cred {
                cap_ambient: 0,
                ..*self
            }),
            Call::SetKeepCaps(keep_caps) => Ok(Cred { keep_caps, ..*self }),
        }
    }

    fn setresuid(
        &self,
        uid: Option<u32>,
        euid: Option<u32>,
        suid: Option<u32>,
    ) -> Result<Cred, i32> {
        let named = [uid, euid, suid];
        if named.iter().flatten().any(|id| self.unmapped.contains(id)) {
            return Err(EINVAL);
        }
        let unchanged = uid.is_none_or(|uid| uid == self.uid)
            && euid.is_none_or(|euid| euid == self.euid && euid == self.fsuid)
            && suid.is_none_or(|suid| suid == self.suid);
        if unchanged {
            return Ok(*self);
        }
        let is_new = |id: &u32| *id != self.uid && *id != self.euid && *id != self.suid;
        if named.iter().flatten().any(is_new) && !self.capable(CAP_SETUID) {
            return Err(EPERM);
        }
        let mut new = *self;
        if let Some(uid) = uid {
            new.uid = uid;
        }
        if let Some(euid) = euid {
            new.euid = euid;
        }
        if let Some(suid) = suid {
            new.suid = suid;
        }
        new.fsuid = new.euid;
        if !self.no_setuid_fixup {
            new.cap_emulate_setxuid(self);
        }
        Ok(new)
    }

    fn cap_emulate_setxuid(&mut self, old: &Cred) {
        // No id is equal to the INVALID_UID that an unmapped 0 is.
        let root_uid = if self.unmapped.contains(&0) {
            None
        } else {
            Some(0)
        };
        let is_root = |id: u32| Some(id) == root_uid;
        if (is_root(old.uid) || is_root(old.euid) || is_root(old.suid))
            && (!is_root(self.uid) && !is_root(self.euid) && !is_root(self.suid))
        {
            if !self.keep_caps {
                self.cap_permitted = 0;
                self.cap_effective = 0;
            }
            self.cap_ambient = 0;
        }
        if is_root(old.euid) && !is_root(self.euid) {
            self.cap_effective = 0;
        }
        if !is_root(old.euid) && is_root(self.euid) {
            self.cap_effective = self.cap_permitted;
        }
    }

    fn setfsuid(&self, fsuid: u32) -> Cred {
        if self.unmapped.contains(&fsuid) {
            return *self;
        }
        let is_current = [self.uid, self.euid, self.suid, self.fsuid].contains(&fsuid);
        if !is_current && !self.capable(CAP_SETUID) || fsuid == self.fsuid {
            return *self;
        }
        let mut new = Cred { fsuid, ..*self };
        if !self.no_setuid_fixup && !self.unmapped.contains(&0) {
            if self.fsuid == 0 && fsuid != 0 {
                new.cap_effective &= !CAP_FS_SET;
            }
            if self.fsuid != 0 && fsuid == 0 {
                new.cap_effective |= CAP_FS_SET & self.cap_permitted;
            }
        }
        new
    }

    fn capset(&self, effective: u64, permitted: u64, inheritable: u64) -> Result<Cred, i32> {
        let is_subset = |a: u64, b: u64| a & !b == 0;
        let inheritable_is_capped = !self.capable(CAP_SETPCAP);
        if inheritable_is_capped
            && !is_subset(inheritable, self.cap_inheritable | self.cap_permitted)
            || !is_subset(inheritable, self.cap_inheritable | self.cap_bset)
            || !is_subset(permitted, self.cap_permitted)
            || !is_subset(effective, permitted)
        {
            return Err(EPERM);
        }
        Ok(Cred {
            cap_effective: effective,
            cap_permitted: permitted,
            cap_inheritable: inheritable,
            cap_ambient: self.cap_ambient & permitted & inheritable,
            ..*self
        })
    }

    fn capable(&self, capability: u64) -> bool {
        self.cap_effective & capability != 0
    }
}

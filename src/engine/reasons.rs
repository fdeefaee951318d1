//! Reasons for errors: the missing privilege, or the id or set that would be lost.

use rustix::thread::CapabilitySet;

use crate::error::{IrreversibleReason, PermissionDeniedReason, Unrestored};
use crate::kernel::{namespace, read};
use crate::plan::identity::OrderRefusal;
use crate::plan::users::{OtherThreadRefusal, UserRefusal};

/// A reason for a refused plan: not permitted, or not reversible.
pub(super) enum Refusal {
    NotPermitted(PermissionDeniedReason),
    Irreversible(IrreversibleReason),
}

pub(super) fn user_refusal(refusal: UserRefusal) -> Refusal {
    Refusal::Irreversible(match refusal {
        UserRefusal::SetuidRequiredToApply => {
            return Refusal::NotPermitted(permission_denied("setresuid"));
        }
        UserRefusal::SetuidRequiredToRestore { .. } => IrreversibleReason::SetuidRequired,
        UserRefusal::PermittedWouldBeLost => IrreversibleReason::CapabilitiesLost,
        UserRefusal::AmbientWouldBeLost => IrreversibleReason::AmbientSetLost,
        UserRefusal::Unmapped => IrreversibleReason::Unmapped,
    })
}

pub(super) fn order_refusal(refusal: OrderRefusal) -> Refusal {
    match refusal {
        OrderRefusal::SetgidRequiredToApply => {
            Refusal::NotPermitted(permission_denied("setresgid"))
        }
        OrderRefusal::SetgidRequiredToRestore => {
            Refusal::Irreversible(IrreversibleReason::SetgidRequired)
        }
    }
}

/// The finding about another thread that cannot change its groups.
pub(super) const LACKS_SETGID: &str = "lacks CAP_SETGID in its effective set";

/// Describes the defect of another thread, which libc would change too.
pub(super) fn other_thread(refusal: OtherThreadRefusal) -> &'static str {
    match refusal {
        OtherThreadRefusal::RealIdWouldChange => {
            "might have securebits, which cannot be read, and the real user id would change"
        }
        OtherThreadRefusal::IdsDiffer => "has other user ids than the calling thread",
        OtherThreadRefusal::FilesystemIdDiffers => {
            "has a filesystem user id that would not be restored"
        }
        OtherThreadRefusal::SetuidNotEffective => "lacks CAP_SETUID in its effective set",
        OtherThreadRefusal::EffectiveWouldChange => {
            "has an effective capability set that would not be restored"
        }
        OtherThreadRefusal::PermittedWouldBeLost => "would lose its permitted capability set",
        OtherThreadRefusal::AmbientWouldBeLost => "would lose its ambient capability set",
    }
}

/// Returns why the kernel refused this call with EPERM.
pub(super) fn permission_denied(call: &str) -> PermissionDeniedReason {
    let Ok(sets) = read::read_capabilities() else {
        return PermissionDeniedReason::FilteredOrLsm;
    };
    let is_user_call = call == "setresuid";
    let required = if is_user_call {
        CapabilitySet::SETUID
    } else {
        CapabilitySet::SETGID
    };
    let in_sets = (
        sets.effective.contains(required),
        sets.permitted.contains(required),
    );
    match (in_sets, is_user_call) {
        ((true, _), _) if call == "setgroups" && namespace::setgroups_is_denied() => {
            PermissionDeniedReason::SetgroupsDenied
        }
        ((true, _), _) => PermissionDeniedReason::FilteredOrLsm,
        ((false, true), false) => PermissionDeniedReason::SetgidNotEffective,
        ((false, false), false) => PermissionDeniedReason::MissingSetgid,
        ((false, true), true) => PermissionDeniedReason::SetuidNotEffective,
        ((false, false), true) => PermissionDeniedReason::MissingSetuid,
    }
}

/// Returns the capability that the restore requires, if it is not effective now.
pub(super) fn lost_capability(what: &Unrestored) -> Option<&'static str> {
    let (required, name) = match what {
        Unrestored::GroupIds(_)
        | Unrestored::FilesystemGid(_)
        | Unrestored::SupplementaryGroups => (CapabilitySet::SETGID, "CAP_SETGID"),
        Unrestored::UserIds(_) | Unrestored::FilesystemUid(_) => {
            (CapabilitySet::SETUID, "CAP_SETUID")
        }
        _ => return None,
    };
    let sets = read::read_capabilities().ok()?;
    (!sets.effective.contains(required)).then_some(name)
}

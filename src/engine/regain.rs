//! The attempts to regain what a permanent drop gave up.

use std::collections::BTreeSet;

use super::abort;
use crate::error::DropError;
use crate::ids::{Gid, Id};
use crate::kernel::read;
use crate::kernel::set::{self, SetIds};
use crate::plan::SetResArgs;
use crate::scope::ScopeKind;

/// Tries every call that could regain a group, on the calling thread, and returns how many were
/// refused: all.
///
/// An attempt that succeeds has already regained the privilege, so the process aborts.
pub(super) fn assert_cannot_regain(
    group: Gid,
    original_ids: [Gid; 4],
    original_groups: &[Gid],
) -> usize {
    let mut refused = 0;
    let mut expect_refusal = |call: &str, gid: Option<Gid>, is_refused: bool| {
        if !is_refused {
            let group = gid.map_or("the original groups".into(), |gid| format!("group {gid}"));
            let finding = format!("{call} might have regained {group}");
            abort::abort_with(&DropError::StillPrivileged { finding });
        }
        refused += 1;
    };
    let others: BTreeSet<Gid> = original_ids
        .into_iter()
        .filter(|&gid| gid != group)
        .collect();
    for gid in others {
        for (real, effective, saved) in [
            (Some(gid), None, None),
            (None, Some(gid), None),
            (None, None, Some(gid)),
        ] {
            let args = SetResArgs {
                real,
                effective,
                saved,
            };
            expect_refusal(
                "setresgid",
                Some(gid),
                Gid::set_ids(ScopeKind::Thread, args).is_err(),
            );
        }
        expect_refusal("setgid", Some(gid), Gid::set_id_on_thread(gid).is_err());
        // It returns the previous id, or -1 if a filter refuses it. Any other result was faked.
        let plausible_result = [group, Gid::UNCHANGED].contains(&Gid::set_filesystem_id(gid));
        let is_unchanged = read::read_filesystem_id::<Gid>().is_ok_and(|now| now == group);
        expect_refusal("setfsgid", Some(gid), plausible_result && is_unchanged);
        expect_refusal(
            "setgroups",
            Some(gid),
            set::set_groups(ScopeKind::Thread, &[gid]).is_err(),
        );
    }
    expect_refusal(
        "setgroups",
        None,
        set::set_groups(ScopeKind::Thread, original_groups).is_err(),
    );
    refused
}

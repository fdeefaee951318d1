//! Collects the facts for the plan of a permanent drop, and refuses what has none.

use super::target::{Target, describe_ids, has_groups};
use crate::error::DropError;
use crate::error::Error;
use crate::ids::Uid;
use crate::kernel::mismatch::{differ, first_finding};
use crate::kernel::namespace;
use crate::kernel::read;
use crate::kernel::threads::ThreadIds;
use crate::plan::permanent::{DropPlan, ProcessState, ThreadPrivileges, plan_drop};

/// Decides on the steps, or refuses, from what the threads have.
pub(super) fn plan(target: &Target, threads: &[ThreadIds]) -> Result<DropPlan, DropError> {
    let privileges: Vec<_> = threads
        .iter()
        .map(|thread| ThreadPrivileges::new(thread, target))
        .collect();
    let process = ProcessState {
        default_securebits: read::read_securebits()?.is_empty(),
        setgroups_denied: namespace::setgroups_is_denied(),
    };
    let plan = plan_drop(&privileges, process, target.request(threads))
        .map_err(|blocker| target.blocked(blocker, threads))?;
    check_mapped(target, plan, &threads[0])?;
    check_other_threads(target, plan, threads)?;
    Ok(plan)
}

fn check_mapped(target: &Target, plan: DropPlan, caller: &ThreadIds) -> Result<(), DropError> {
    if let Some(user) = target.user {
        if !namespace::are_mapped([user].into_iter()) {
            let user = user.as_raw();
            return Err(DropError::UnmappedUid { user });
        }
    }
    let groups = target.wanted_groups();
    let groups = groups.iter().copied().filter(|_| plan.sets_groups);
    if namespace::are_mapped(groups.chain(target.group)) {
        return Ok(());
    }
    let (requested, ids) = (target.change().to_string(), describe_ids(caller));
    Err(Error::UnmappedGid { requested, ids }.into())
}

/// Refuses if a rollback, which gives every thread the calling one's groups, would change a thread.
fn check_other_threads(
    target: &Target,
    plan: DropPlan,
    threads: &[ThreadIds],
) -> Result<(), Error> {
    let (caller, others) = (&threads[0], &threads[1..]);
    // The rollback makes their filesystem id the effective one, as each change in process scope
    // does.
    let difference = |thread: &ThreadIds| {
        first_finding(
            target.user.is_some() && differ(thread.user_ids, caller.user_ids),
            target.group.is_some() && differ(thread.group_ids, caller.group_ids),
            plan.sets_groups && !has_groups(thread, &caller.supplementary),
        )
    };
    let differs = others
        .iter()
        .find_map(|thread| Some((thread, difference(thread)?)));
    match differs {
        None => Ok(()),
        Some((thread, finding)) => Err(Error::ThreadDiffers {
            requested: target.change().to_string(),
            thread_id: thread.thread_id,
            name: thread.name.clone(),
            finding: finding.into(),
        }),
    }
}

impl ThreadPrivileges {
    fn new(thread: &ThreadIds, target: &Target) -> Self {
        let [real, effective, saved, _] = thread.user_ids.to_array();
        let users = [real, effective, saved];
        let [real, effective, saved, _] = thread.group_ids.to_array();
        let groups = [real, effective, saved];
        ThreadPrivileges {
            thread_id: thread.thread_id,
            is_kernel_worker: thread.is_kernel_worker,
            effective: thread.effective,
            permitted: thread.permitted,
            inheritable: thread.inheritable | thread.ambient,
            bounding: thread.bounding,
            has_uid_0: users.contains(&Uid::ROOT),
            has_requested_uid: target.user.is_some_and(|user| users.contains(&user)),
            has_requested_gid: target.group.is_none_or(|group| groups.contains(&group)),
            no_new_privs: thread.no_new_privs,
        }
    }
}

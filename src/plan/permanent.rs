//! The permanent drop: which steps it takes, or what makes it impossible.

use rustix::thread::CapabilitySet;

use crate::capabilities::LEAD_BACK;
use crate::ids::Uid;

/// The privileges of one thread that decide whether it could regain what a drop removes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ThreadPrivileges {
    pub(crate) thread_id: u32,
    pub(crate) is_kernel_worker: bool,
    pub(crate) effective: CapabilitySet,
    pub(crate) permitted: CapabilitySet,
    pub(crate) inheritable: CapabilitySet,
    /// A program executed as user 0 is given these.
    pub(crate) bounding: CapabilitySet,
    /// The real, effective or saved user id is 0.
    pub(crate) has_uid_0: bool,
    /// The requested user is one of those three.
    pub(crate) has_requested_uid: bool,
    /// The requested group is the real, effective or saved group id.
    pub(crate) has_requested_gid: bool,
    pub(crate) no_new_privs: bool,
}

impl ThreadPrivileges {
    /// The ambient set holds no capability that is not in these sets.
    fn held(&self) -> CapabilitySet {
        self.permitted | self.inheritable
    }

    fn holds_setgid(&self) -> bool {
        self.held().contains(CapabilitySet::SETGID)
    }

    fn setgid_effective(&self) -> bool {
        self.effective.contains(CapabilitySet::SETGID)
    }
}

/// The requested supplementary groups, compared with those that the threads have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RequestedGroups {
    /// The drop names a list. The default is none, where they can be set.
    pub(crate) are_named: bool,
    /// Some thread has others.
    pub(crate) differ: bool,
    /// Others are accepted where they cannot be set.
    pub(crate) accepts_others: bool,
}

/// The request, as far as it decides the plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DropRequest {
    pub(crate) user: Option<Uid>,
    /// `None` leaves the group ids and the supplementary groups alone.
    pub(crate) groups: Option<RequestedGroups>,
    pub(crate) keep: CapabilitySet,
    pub(crate) no_new_privs: bool,
    pub(crate) chroot: bool,
}

impl DropRequest {
    fn is_to_other_user(&self) -> bool {
        self.user.is_some_and(|user| user != Uid::ROOT)
    }
}

/// The state of the process besides its threads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ProcessState {
    /// No securebit of the calling thread is set: leaving user 0 clears all sets but the
    /// inheritable one.
    pub(crate) default_securebits: bool,
    pub(crate) setgroups_denied: bool,
}

/// What becomes of the capability sets of the calling thread, after the user is set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CapabilityStep {
    /// Setting the user is enough, or nothing is held.
    Nothing,
    /// CAP_SETGID leaves all sets.
    RemoveSetgid,
    /// The effective and the permitted set become these, and the other two empty.
    Exactly(CapabilitySet),
}

/// The steps of a drop that is permanent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DropPlan {
    /// Set the supplementary groups: CAP_SETGID is effective.
    pub(crate) sets_groups: bool,
    /// Remove CAP_SETGID from the bounding set: user 0 stays reachable, and would be given it by an
    /// exec.
    pub(crate) drop_from_bounding_set: bool,
    /// Leaving user 0 would clear capabilities that are kept.
    pub(crate) keeps_over_setresuid: bool,
    pub(crate) capabilities: CapabilityStep,
}

/// Why capabilities cannot be kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum KeepBlocker {
    LeadBack,
    NoOtherUser,
    Multithreaded,
    NotEffective,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Blocker {
    KernelWorker(u32),
    Keep(CapabilitySet, KeepBlocker),
    MissingSysChroot,
    /// This thread does not have it, and only it can set it.
    NoNewPrivs(u32),
    SetgidNotEffective,
    MissingSetuid,
    MissingSetpcap,
    Multithreaded,
    /// This thread cannot make the calls that another one can.
    SetgidNotEffectiveOn(u32),
    SetgroupsDenied,
    SupplementaryDiffer,
}

/// Plans the drop, or returns the first reason it is impossible, in the order of the checks below.
/// `threads[0]` is the calling thread.
pub(crate) fn plan_drop(
    threads: &[ThreadPrivileges],
    process: ProcessState,
    request: DropRequest,
) -> Result<DropPlan, Blocker> {
    let caller = threads[0];
    let others = &threads[1..];
    let to_other_user = request.is_to_other_user();

    if let Some(worker) = threads.iter().find(|thread| thread.is_kernel_worker) {
        return Err(Blocker::KernelWorker(worker.thread_id));
    }
    check_kept(&caller, others, request)?;
    if request.chroot && !caller.effective.contains(CapabilitySet::SYS_CHROOT) {
        return Err(Blocker::MissingSysChroot);
    }
    if let Some(other) = others.iter().find(|thread| !thread.no_new_privs) {
        if request.no_new_privs {
            return Err(Blocker::NoNewPrivs(other.thread_id));
        }
    }
    if !to_other_user && caller.holds_setgid() && !caller.setgid_effective() {
        return Err(Blocker::SetgidNotEffective);
    }
    let may_set_user = |thread: &ThreadPrivileges| {
        thread.effective.contains(CapabilitySet::SETUID) || thread.has_requested_uid
    };
    if request.user.is_some() && !threads.iter().all(may_set_user) {
        return Err(Blocker::MissingSetuid);
    }

    // No call removes a capability from another thread, but leaving user 0 clears all sets but the
    // inheritable one.
    let loses_all = |thread: &ThreadPrivileges| {
        let leaves_user_0 = to_other_user && thread.has_uid_0 && process.default_securebits;
        thread.held().is_empty() || leaves_user_0 && thread.inheritable.is_empty()
    };
    let is_left_behind = |thread: &ThreadPrivileges| match to_other_user {
        true => !loses_all(thread),
        false => thread.holds_setgid() || caller.holds_setgid(),
    };
    if others.iter().any(is_left_behind) {
        return Err(Blocker::Multithreaded);
    }
    let sets_groups = plan_groups(threads, process, request)?;
    let drop_from_bounding_set = !to_other_user && plan_bounding_set(threads, request)?;

    let capabilities = match to_other_user {
        true if loses_all(&caller) && !others.is_empty() => CapabilityStep::Nothing,
        // Also if leaving user 0 is enough, so that a refused `capset` is found before it is too
        // late.
        true if !caller.held().is_empty() => CapabilityStep::Exactly(request.keep),
        false if caller.holds_setgid() => CapabilityStep::RemoveSetgid,
        _ => CapabilityStep::Nothing,
    };
    Ok(DropPlan {
        sets_groups,
        drop_from_bounding_set,
        keeps_over_setresuid: !request.keep.is_empty() && caller.has_uid_0,
        capabilities,
    })
}

fn check_kept(
    caller: &ThreadPrivileges,
    others: &[ThreadPrivileges],
    request: DropRequest,
) -> Result<(), Blocker> {
    let keep = request.keep;
    let not_effective = keep.difference(caller.effective);
    let findings = [
        (keep & LEAD_BACK, KeepBlocker::LeadBack),
        (
            keep & unless(request.is_to_other_user()),
            KeepBlocker::NoOtherUser,
        ),
        (keep & unless(others.is_empty()), KeepBlocker::Multithreaded),
        (not_effective, KeepBlocker::NotEffective),
    ];
    match findings.into_iter().find(|(found, _)| !found.is_empty()) {
        Some((found, blocker)) => Err(Blocker::Keep(found, blocker)),
        None => Ok(()),
    }
}

fn unless(is_so: bool) -> CapabilitySet {
    match is_so {
        true => CapabilitySet::empty(),
        false => CapabilitySet::from_bits_retain(u64::MAX),
    }
}

/// Returns whether the supplementary groups are set.
fn plan_groups(
    threads: &[ThreadPrivileges],
    process: ProcessState,
    request: DropRequest,
) -> Result<bool, Blocker> {
    let Some(groups) = request.groups else {
        return Ok(false);
    };
    let all_effective = threads.iter().all(ThreadPrivileges::setgid_effective);
    if all_effective {
        return match process.setgroups_denied {
            true => Err(Blocker::SetgroupsDenied),
            false => Ok(true),
        };
    }
    if threads.iter().any(ThreadPrivileges::holds_setgid) {
        // libc aborts the process if one thread may make a call that another may not.
        let needs_setgid = groups.differ || !threads[0].has_requested_gid;
        let is_mixed = threads.iter().any(ThreadPrivileges::setgid_effective);
        let lacks_it = threads.iter().find(|thread| !thread.setgid_effective());
        return match lacks_it.filter(|_| needs_setgid && is_mixed) {
            Some(thread) => Err(Blocker::SetgidNotEffectiveOn(thread.thread_id)),
            None if groups.differ => Err(Blocker::SetgidNotEffective),
            None => Ok(false),
        };
    }
    if groups.are_named && groups.differ && !groups.accepts_others {
        return Err(Blocker::SupplementaryDiffer);
    }
    Ok(false)
}

/// Returns whether CAP_SETGID has to leave the bounding set, of a process whose user stays or is 0.
fn plan_bounding_set(threads: &[ThreadPrivileges], request: DropRequest) -> Result<bool, Blocker> {
    // An exec as user 0 gives all capabilities of the bounding set, and CAP_SETPCAP makes one
    // inheritable.
    let leads_back = CapabilitySet::SETUID | CapabilitySet::SETPCAP;
    let regains = |thread: &ThreadPrivileges| {
        let is_user_0 = request.user.is_some() || thread.has_uid_0;
        thread.bounding.contains(CapabilitySet::SETGID)
            && (is_user_0 || thread.permitted.intersects(leads_back))
    };
    match (threads.iter().any(regains), threads.len()) {
        (false, _) => Ok(false),
        (true, 2..) => Err(Blocker::Multithreaded),
        (true, _) if !threads[0].effective.contains(CapabilitySet::SETPCAP) => {
            Err(Blocker::MissingSetpcap)
        }
        (true, _) => Ok(true),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SETGID: CapabilitySet = CapabilitySet::SETGID;
    const SETUID: CapabilitySet = CapabilitySet::SETUID;
    const SETPCAP: CapabilitySet = CapabilitySet::SETPCAP;
    /// Stands for all that do not lead back to ids.
    const OTHER: CapabilitySet = CapabilitySet::NET_BIND_SERVICE;
    const NONE: CapabilitySet = CapabilitySet::empty();
    const USER: Uid = Uid::from_raw(1000);

    /// What a kernel keeps of a thread, as far as it matters here.
    #[derive(Clone, Copy, Debug)]
    struct Model {
        user_0: bool,
        effective: CapabilitySet,
        permitted: CapabilitySet,
        inheritable: CapabilitySet,
        bounding: bool,
    }

    impl Model {
        /// Every state: the sets of four capabilities, where the effective one is within the
        /// permitted one.
        fn all() -> Vec<Model> {
            let state = |bits: u32| {
                let has = |bit: u32, capability| match bits >> bit & 1 {
                    1 => capability,
                    _ => NONE,
                };
                let effective = has(0, SETGID) | has(1, SETUID) | has(2, SETPCAP) | has(8, OTHER);
                Model {
                    user_0: bits >> 5 & 1 == 1,
                    effective,
                    permitted: effective | has(3, SETGID) | has(4, SETUID),
                    inheritable: has(6, SETGID) | has(9, OTHER),
                    bounding: bits >> 7 & 1 == 1,
                }
            };
            (0..1 << 10).map(state).collect()
        }

        fn facts(self) -> ThreadPrivileges {
            ThreadPrivileges {
                thread_id: 7,
                is_kernel_worker: false,
                effective: self.effective,
                permitted: self.permitted,
                inheritable: self.inheritable,
                bounding: if self.bounding { SETGID } else { NONE },
                has_uid_0: self.user_0,
                has_requested_uid: false,
                has_requested_gid: false,
                no_new_privs: false,
            }
        }

        /// `setresuid` of all three ids (cap_emulate_setxuid in security/commoncap.c); with
        /// securebits that keep as much as can be kept.
        fn set_user(&mut self, user: Uid, default_securebits: bool, keep_caps: bool) {
            if self.user_0 && user != Uid::ROOT && default_securebits {
                self.effective = NONE;
                if !keep_caps {
                    self.permitted = NONE;
                }
            }
            self.user_0 = user == Uid::ROOT;
        }

        /// Whether CAP_SETGID can be had again by calls and by an exec of an ordinary program.
        fn can_regain(mut self) -> bool {
            self.user_0 |= self.permitted.contains(SETUID);
            let from_bounding_set = self.user_0 || self.permitted.contains(SETPCAP);
            (self.permitted | self.inheritable).contains(SETGID)
                || from_bounding_set && self.bounding
        }
    }

    /// Makes the steps of a plan, and returns whether some thread then has what it may not have.
    fn leads_back(threads: &[Model], plan: DropPlan, request: DropRequest, default: bool) -> bool {
        threads.iter().enumerate().any(|(index, &thread)| {
            let (mut thread, is_caller) = (thread, index == 0);
            thread.bounding &= !(plan.drop_from_bounding_set && is_caller);
            if let Some(user) = request.user {
                thread.set_user(user, default, plan.keeps_over_setresuid && is_caller);
            }
            match plan.capabilities {
                CapabilityStep::RemoveSetgid if is_caller => {
                    for set in [
                        &mut thread.effective,
                        &mut thread.permitted,
                        &mut thread.inheritable,
                    ] {
                        set.remove(SETGID);
                    }
                }
                CapabilityStep::Exactly(sets) if is_caller => {
                    assert!(
                        thread.permitted.contains(sets),
                        "a capability that is not there"
                    );
                    (thread.effective, thread.permitted) = (sets, sets);
                    thread.inheritable = NONE;
                }
                _ => {}
            }
            let kept = if is_caller { request.keep } else { NONE };
            match request.is_to_other_user() {
                true => {
                    let sets = (thread.effective, thread.permitted, thread.inheritable);
                    thread.user_0 || sets != (kept, kept, NONE)
                }
                false => thread.can_regain(),
            }
        })
    }

    const NO_GROUPS_DIFFER: RequestedGroups = RequestedGroups {
        are_named: false,
        differ: false,
        accepts_others: false,
    };
    const PLAIN: ProcessState = ProcessState {
        default_securebits: true,
        setgroups_denied: false,
    };
    const REQUEST: DropRequest = DropRequest {
        user: None,
        groups: Some(NO_GROUPS_DIFFER),
        keep: NONE,
        no_new_privs: false,
        chroot: false,
    };

    /// Plans, and checks that the plan leaves nothing that leads back, or that the refusal is
    /// needed. Returns whether the drop is served.
    fn check(
        models: &[Model],
        facts: &[ThreadPrivileges],
        process: ProcessState,
        request: DropRequest,
    ) -> bool {
        let case = || format!("{facts:?}, {process:?}, {request:?}");
        let caller = facts[0];
        let default = process.default_securebits;
        let back = |plan| leads_back(models, plan, request, default);
        let held = facts.iter().any(ThreadPrivileges::holds_setgid);
        let all_effective = facts.iter().all(ThreadPrivileges::setgid_effective);
        let differ = request.groups.is_some_and(|groups| groups.differ);
        let named = request.groups.is_some_and(|groups| groups.are_named);
        let accepts = request.groups.is_some_and(|groups| groups.accepts_others);
        let cannot_set_user = |thread: &ThreadPrivileges| {
            !thread.effective.contains(SETUID) && !thread.has_requested_uid
        };
        // The most that can be taken from the calling thread, and nothing from the others.
        let most = DropPlan {
            sets_groups: false,
            drop_from_bounding_set: false,
            keeps_over_setresuid: !request.keep.is_empty(),
            capabilities: match request.is_to_other_user() {
                true => CapabilityStep::Exactly(request.keep),
                false => CapabilityStep::RemoveSetgid,
            },
        };
        let blocker = match plan_drop(facts, process, request) {
            Ok(plan) => {
                assert!(!back(plan), "{}: {plan:?}", case());
                // Every step is one that the kernel lets this process make.
                let may_drop = caller.effective.contains(SETPCAP);
                assert!(!plan.drop_from_bounding_set || may_drop, "{}", case());
                let may_set = all_effective && !process.setgroups_denied;
                assert!(!plan.sets_groups || may_set, "{}", case());
                let user_stays = request.user.is_none();
                assert!(
                    user_stays || !facts.iter().any(cannot_set_user),
                    "{}",
                    case()
                );
                // Groups that are not set are those requested, or accepted, or the process's own by
                // default.
                let own = !held && (!named || accepts);
                let set = request.groups.is_none() || plan.sets_groups;
                assert!(set || !differ || own, "{}", case());
                // The bounding set is left alone if that is enough.
                let without = DropPlan {
                    drop_from_bounding_set: false,
                    ..plan
                };
                assert!(!plan.drop_from_bounding_set || back(without), "{}", case());
                return true;
            }
            Err(blocker) => blocker,
        };
        let keep = request.keep;
        let needed = match blocker {
            Blocker::Keep(found, KeepBlocker::LeadBack) => {
                keep.contains(found) && LEAD_BACK.contains(found)
            }
            Blocker::Keep(_, KeepBlocker::NoOtherUser) => !request.is_to_other_user(),
            Blocker::Keep(_, KeepBlocker::Multithreaded) => facts.len() > 1,
            Blocker::Keep(found, KeepBlocker::NotEffective) => {
                (found & caller.effective).is_empty()
            }
            Blocker::SetgidNotEffective => {
                held && !all_effective && (differ || !request.is_to_other_user())
            }
            Blocker::SetgidNotEffectiveOn(_) => {
                !all_effective && facts.iter().any(ThreadPrivileges::setgid_effective)
            }
            Blocker::MissingSetuid => request.user.is_some() && facts.iter().any(cannot_set_user),
            Blocker::SetgroupsDenied => all_effective && process.setgroups_denied,
            Blocker::SupplementaryDiffer => !held && differ && named && !accepts,
            Blocker::MissingSetpcap => {
                !caller.effective.contains(SETPCAP) && facts.len() == 1 && back(most)
            }
            // Some thread would keep something, or cannot make the calls that all have to make.
            Blocker::Multithreaded => {
                facts.len() > 1 && (back(most) || !request.is_to_other_user() && held)
            }
            Blocker::KernelWorker(_) | Blocker::NoNewPrivs(_) | Blocker::MissingSysChroot => false,
        };
        assert!(needed, "{}: {blocker:?}", case());
        false
    }

    fn bools() -> [bool; 2] {
        [false, true]
    }

    #[test]
    fn no_plan_for_one_thread_leads_back_and_no_refusal_is_without_need() {
        let mut all_groups = vec![None];
        for bits in 0..8 {
            let [are_named, differ, accepts_others] = [1, 2, 4].map(|bit| bits & bit != 0);
            all_groups.push(Some(RequestedGroups {
                are_named,
                differ,
                accepts_others,
            }));
        }
        let (mut served, mut refused) = (0u32, 0u32);
        for model in Model::all() {
            for (user, keep) in [
                (None, NONE),
                (Some(Uid::ROOT), NONE),
                (Some(USER), NONE),
                (Some(USER), OTHER),
                (Some(USER), SETUID),
                (None, OTHER),
            ] {
                for &groups in &all_groups {
                    for bits in 0..16 {
                        let process = ProcessState {
                            default_securebits: bits & 1 != 0,
                            setgroups_denied: bits & 2 != 0,
                        };
                        let request = DropRequest {
                            user,
                            groups,
                            keep,
                            ..REQUEST
                        };
                        let facts = ThreadPrivileges {
                            has_requested_uid: bits & 4 != 0,
                            has_requested_gid: bits & 8 != 0,
                            ..model.facts()
                        };
                        match check(&[model], &[facts], process, request) {
                            true => served += 1,
                            false => refused += 1,
                        }
                    }
                }
            }
        }
        assert_eq!(served + refused, 1024 * 6 * 9 * 16);
        assert!(served > 100_000 && refused > 100_000, "{served}, {refused}");
    }

    #[test]
    fn no_plan_for_two_threads_leads_back_and_no_refusal_is_without_need() {
        let (mut served, mut refused) = (0u32, 0u32);
        let all = Model::all();
        // The groups differ or not: that is decided by CAP_SETGID alone, whatever else is held.
        let without_others = &all[..256];
        for user in [None, Some(Uid::ROOT), Some(USER)] {
            for default_securebits in bools() {
                for differ in bools() {
                    let process = ProcessState {
                        default_securebits,
                        ..PLAIN
                    };
                    let groups = Some(RequestedGroups {
                        differ,
                        ..NO_GROUPS_DIFFER
                    });
                    let request = DropRequest {
                        user,
                        groups,
                        ..REQUEST
                    };
                    let states = if differ { without_others } else { &all };
                    for &one in states {
                        for &other in states {
                            match check(
                                &[one, other],
                                &[one.facts(), other.facts()],
                                process,
                                request,
                            ) {
                                true => served += 1,
                                false => refused += 1,
                            }
                        }
                    }
                }
            }
        }
        assert_eq!(served + refused, 3 * 2 * (1024 * 1024 + 256 * 256));
        assert!(served > 10_000 && refused > 100_000, "{served}, {refused}");
    }

    const ORDINARY: ThreadPrivileges = ThreadPrivileges {
        thread_id: 7,
        is_kernel_worker: false,
        effective: NONE,
        permitted: NONE,
        inheritable: NONE,
        bounding: SETGID,
        has_uid_0: false,
        has_requested_uid: false,
        has_requested_gid: false,
        no_new_privs: false,
    };

    fn root() -> ThreadPrivileges {
        let every = SETGID | SETUID | SETPCAP | OTHER | CapabilitySet::SYS_CHROOT;
        ThreadPrivileges {
            effective: every,
            permitted: every,
            has_uid_0: true,
            ..ORDINARY
        }
    }

    #[test]
    fn the_rows_that_must_be_served_are() {
        let to_user = DropRequest {
            user: Some(USER),
            ..REQUEST
        };
        let kept = ProcessState {
            default_securebits: false,
            ..PLAIN
        };
        let denied = ProcessState {
            setgroups_denied: true,
            ..PLAIN
        };
        let with_setgid = ThreadPrivileges {
            effective: SETGID,
            permitted: SETGID,
            ..ORDINARY
        };
        let inheriting = |thread| ThreadPrivileges {
            inheritable: SETGID,
            ..thread
        };
        // A set-user-ID program of root that has become its user for a while, and a container's
        // leftovers.
        let paused = ThreadPrivileges {
            effective: NONE,
            has_requested_uid: true,
            ..root()
        };
        let is_account = ThreadPrivileges {
            has_requested_uid: true,
            ..inheriting(ORDINARY)
        };
        let guard = DropRequest {
            groups: None,
            ..to_user
        };
        for (threads, process, request) in [
            (vec![root()], kept, to_user),
            (vec![root()], PLAIN, REQUEST),
            (vec![inheriting(root())], PLAIN, to_user),
            (vec![with_setgid], PLAIN, REQUEST),
            (vec![inheriting(with_setgid)], PLAIN, REQUEST),
            (vec![root(); 3], PLAIN, to_user),
            (vec![ORDINARY; 3], PLAIN, REQUEST),
            (vec![ORDINARY], denied, REQUEST),
            (vec![paused; 3], PLAIN, guard),
            (vec![paused; 3], PLAIN, to_user),
            (vec![is_account], PLAIN, to_user),
            (
                vec![root()],
                PLAIN,
                DropRequest {
                    keep: OTHER,
                    chroot: true,
                    ..to_user
                },
            ),
        ] {
            assert!(
                plan_drop(&threads, process, request).is_ok(),
                "{threads:?}, {process:?}, {request:?}"
            );
        }
    }

    #[test]
    fn facts_of_their_own_are_in_the_way() {
        let worker = ThreadPrivileges {
            is_kernel_worker: true,
            thread_id: 8,
            ..ORDINARY
        };
        let found = plan_drop(&[ORDINARY, worker], PLAIN, REQUEST);
        assert_eq!(found, Err(Blocker::KernelWorker(8)));

        let chroot = DropRequest {
            chroot: true,
            ..REQUEST
        };
        assert_eq!(
            plan_drop(&[ORDINARY], PLAIN, chroot),
            Err(Blocker::MissingSysChroot)
        );
        assert!(plan_drop(&[root()], PLAIN, chroot).is_ok());

        // Only the calling thread is given the flag.
        let flag = DropRequest {
            no_new_privs: true,
            ..REQUEST
        };
        let flagged = ThreadPrivileges {
            no_new_privs: true,
            ..ORDINARY
        };
        assert!(plan_drop(&[ORDINARY], PLAIN, flag).is_ok());
        assert!(plan_drop(&[ORDINARY, flagged], PLAIN, flag).is_ok());
        assert!(plan_drop(&[ORDINARY, ORDINARY], PLAIN, REQUEST).is_ok());
        let other = ThreadPrivileges {
            thread_id: 9,
            ..ORDINARY
        };
        for threads in [vec![ORDINARY, other], vec![flagged, flagged, other]] {
            assert_eq!(
                plan_drop(&threads, PLAIN, flag),
                Err(Blocker::NoNewPrivs(9))
            );
        }

        // libc would abort where one thread may and the other may not.
        let to_user = DropRequest {
            user: Some(USER),
            ..REQUEST
        };
        let lowered = ThreadPrivileges {
            effective: SETUID,
            thread_id: 9,
            ..root()
        };
        let mixed = plan_drop(&[root(), lowered], PLAIN, to_user);
        assert_eq!(mixed, Err(Blocker::SetgidNotEffectiveOn(9)));

        let keep = |keep, threads: &[ThreadPrivileges], user| {
            plan_drop(
                threads,
                PLAIN,
                DropRequest {
                    keep,
                    user,
                    ..REQUEST
                },
            )
        };
        let in_vain = |capabilities, blocker| Err(Blocker::Keep(capabilities, blocker));
        assert_eq!(
            keep(SETUID | OTHER, &[root()], Some(USER)),
            in_vain(SETUID, KeepBlocker::LeadBack)
        );
        assert_eq!(
            keep(OTHER, &[root()], None),
            in_vain(OTHER, KeepBlocker::NoOtherUser)
        );
        assert_eq!(
            keep(OTHER, &[root()], Some(Uid::ROOT)),
            in_vain(OTHER, KeepBlocker::NoOtherUser)
        );
        assert_eq!(
            keep(OTHER, &[root(); 2], Some(USER)),
            in_vain(OTHER, KeepBlocker::Multithreaded)
        );
        let kill = CapabilitySet::KILL;
        assert_eq!(
            keep(OTHER | kill, &[root()], Some(USER)),
            in_vain(kill, KeepBlocker::NotEffective)
        );
    }
}

//! The permanent drop: its steps, or the reason why it is impossible.

use rustix::thread::CapabilitySet;

use crate::ids::Uid;

/// The privileges of one thread that decide whether it could regain CAP_SETGID.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct ThreadPrivileges {
    pub(crate) thread_id: u32,
    pub(crate) is_kernel_worker: bool,
    /// CAP_SETGID in the permitted, inheritable or ambient set.
    pub(crate) holds_setgid: bool,
    /// CAP_SETGID in the effective set.
    pub(crate) setgid_effective: bool,
    pub(crate) setgid_inheritable: bool,
    /// CAP_SETGID in the bounding set: a program executed as user 0 is given it.
    pub(crate) setgid_in_bounding_set: bool,
    pub(crate) setuid_effective: bool,
    /// CAP_SETUID in the permitted set: the thread can become user 0.
    pub(crate) setuid_permitted: bool,
    pub(crate) setpcap_effective: bool,
    /// CAP_SETPCAP in the permitted set: a capability of the bounding set can be made inheritable,
    /// for a file that allows it.
    pub(crate) setpcap_permitted: bool,
    /// The real, effective or saved user id is 0.
    pub(crate) has_uid_0: bool,
    /// The requested user is one of those three.
    pub(crate) has_requested_uid: bool,
}

/// The request, as far as it decides the plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DropRequest {
    pub(crate) user: Option<Uid>,
    /// Supplementary groups are requested, and some thread has others.
    pub(crate) changes_supplementary: bool,
}

/// The state of the process besides its threads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ProcessState {
    /// No securebit of the calling thread is set: leaving user 0 clears all sets but the
    /// inheritable one.
    pub(crate) default_securebits: bool,
    pub(crate) setgroups_denied: bool,
}

/// The steps of a drop that is permanent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DropPlan {
    /// Set the supplementary groups: CAP_SETGID is held.
    pub(crate) sets_groups: bool,
    /// Remove CAP_SETGID from the bounding set: user 0 stays reachable, and would be given it by an
    /// exec.
    pub(crate) drop_from_bounding_set: bool,
    /// Remove these from all sets of the only thread.
    pub(crate) capabilities_to_drop: CapabilitySet,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Blocker {
    KernelWorker(u32),
    SetgidNotEffective,
    MissingSetuid,
    MissingSetpcap,
    Multithreaded,
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
    let several = threads.len() > 1;
    let any = |fact: fn(&ThreadPrivileges) -> bool| threads.iter().any(fact);
    let all = |fact: fn(&ThreadPrivileges) -> bool| threads.iter().all(fact);

    if let Some(worker) = threads.iter().find(|thread| thread.is_kernel_worker) {
        return Err(Blocker::KernelWorker(worker.thread_id));
    }
    if caller.holds_setgid && !caller.setgid_effective {
        return Err(Blocker::SetgidNotEffective);
    }
    if request.user.is_some() && !all(|thread| thread.setuid_effective || thread.has_requested_uid)
    {
        return Err(Blocker::MissingSetuid);
    }

    // No call removes a capability from another thread, but leaving user 0 clears all sets but the
    // inheritable one.
    let to_other_user = request.user.is_some_and(|user| user != Uid::ROOT);
    let leaves_user_0 =
        |thread: &ThreadPrivileges| process.default_securebits && to_other_user && thread.has_uid_0;
    let held = any(|thread| thread.holds_setgid);
    let loses_setgid = |thread: &ThreadPrivileges| {
        leaves_user_0(thread) && thread.setgid_effective && !thread.setgid_inheritable
    };
    if held && several && !threads.iter().all(loses_setgid) {
        return Err(Blocker::Multithreaded);
    }
    if held && process.setgroups_denied {
        return Err(Blocker::SetgroupsDenied);
    }
    if !held && request.changes_supplementary {
        return Err(Blocker::SupplementaryDiffer);
    }

    // An exec as user 0 gives all capabilities of the bounding set, and CAP_SETPCAP makes one
    // inheritable.
    let drops_others = !several && to_other_user;
    let drop_from_bounding_set = threads.iter().any(|thread| {
        let is_user_0 = request
            .user
            .map_or(thread.has_uid_0, |user| user == Uid::ROOT);
        let keeps = (thread.setuid_permitted || thread.setpcap_permitted)
            && !drops_others
            && !leaves_user_0(thread);
        thread.setgid_in_bounding_set && (is_user_0 || keeps)
    });
    if drop_from_bounding_set && several {
        return Err(Blocker::Multithreaded);
    }
    if drop_from_bounding_set && !caller.setpcap_effective {
        return Err(Blocker::MissingSetpcap);
    }

    let mut capabilities_to_drop = CapabilitySet::empty();
    capabilities_to_drop.set(CapabilitySet::SETGID, !several && caller.holds_setgid);
    capabilities_to_drop.set(
        CapabilitySet::SETUID,
        drops_others && caller.setuid_permitted,
    );
    capabilities_to_drop.set(
        CapabilitySet::SETPCAP,
        drops_others && caller.setpcap_permitted,
    );
    Ok(DropPlan {
        sets_groups: held,
        drop_from_bounding_set,
        capabilities_to_drop,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SETGID: u8 = 1;
    const SETUID: u8 = 2;
    const SETPCAP: u8 = 4;

    /// The state of a thread in the kernel, as far as it matters here.
    #[derive(Clone, Copy, Debug)]
    struct Model {
        user_0: bool,
        effective: u8,
        permitted: u8,
        inheritable: u8,
        bounding: bool,
    }

    impl Model {
        /// Every state: the sets of three capabilities, where the effective one is within the
        /// permitted one.
        fn all() -> Vec<Model> {
            let mut all = Vec::new();
            for bits in 0..1u32 << 8 {
                let has =
                    |bit: u32, capability: u8| if bits >> bit & 1 == 1 { capability } else { 0 };
                let effective = has(0, SETGID) | has(1, SETUID) | has(2, SETPCAP);
                let permitted = effective | has(3, SETGID) | has(4, SETUID);
                all.push(Model {
                    user_0: bits >> 5 & 1 == 1,
                    effective,
                    permitted,
                    inheritable: has(6, SETGID),
                    bounding: bits >> 7 == 1,
                });
            }
            all
        }

        fn facts(self) -> ThreadPrivileges {
            ThreadPrivileges {
                holds_setgid: (self.permitted | self.inheritable) & SETGID != 0,
                setgid_effective: self.effective & SETGID != 0,
                setgid_inheritable: self.inheritable & SETGID != 0,
                setgid_in_bounding_set: self.bounding,
                setuid_effective: self.effective & SETUID != 0,
                setuid_permitted: self.permitted & SETUID != 0,
                setpcap_effective: self.effective & SETPCAP != 0,
                setpcap_permitted: self.permitted & SETPCAP != 0,
                has_uid_0: self.user_0,
                ..ThreadPrivileges::default()
            }
        }

        /// `setresuid` of all three ids (cap_emulate_setxuid in security/commoncap.c); with
        /// securebits that keep as much as can be kept.
        fn set_user(&mut self, user: u32, default_securebits: bool) {
            if self.user_0 && user != 0 && default_securebits {
                (self.effective, self.permitted) = (0, 0);
            }
            self.user_0 = user == 0;
        }

        /// Whether CAP_SETGID can be had again by calls and by an exec of an ordinary program.
        fn can_regain(mut self) -> bool {
            self.user_0 |= self.permitted & SETUID != 0;
            let from_bounding_set = self.user_0 || self.permitted & SETPCAP != 0;
            let after_exec = if from_bounding_set && self.bounding {
                SETGID
            } else {
                0
            };
            (self.permitted | self.inheritable | after_exec) & SETGID != 0
        }
    }

    fn simulate(
        mut threads: Vec<Model>,
        plan: DropPlan,
        request: DropRequest,
        default_securebits: bool,
    ) -> Vec<Model> {
        for (index, thread) in threads.iter_mut().enumerate() {
            thread.bounding &= !(plan.drop_from_bounding_set && index == 0);
            if let Some(user) = request.user {
                thread.set_user(user.as_raw(), default_securebits);
            }
            if index == 0 {
                let capabilities_to_drop = |capability: CapabilitySet, bit: u8| {
                    if plan.capabilities_to_drop.contains(capability) {
                        bit
                    } else {
                        0
                    }
                };
                let taken = capabilities_to_drop(CapabilitySet::SETGID, SETGID)
                    | capabilities_to_drop(CapabilitySet::SETUID, SETUID)
                    | capabilities_to_drop(CapabilitySet::SETPCAP, SETPCAP);
                thread.effective &= !taken;
                thread.permitted &= !taken;
                thread.inheritable &= !taken;
            }
        }
        threads
    }

    fn each_case(mut check: impl FnMut(Vec<Model>, ProcessState, DropRequest)) {
        let all = Model::all();
        for user in [None, Some(Uid::ROOT), Some(Uid::from_raw(1000))] {
            for default_securebits in [false, true] {
                for setgroups_denied in [false, true] {
                    for changes_supplementary in [false, true] {
                        let process = ProcessState {
                            default_securebits,
                            setgroups_denied,
                        };
                        let request = DropRequest {
                            user,
                            changes_supplementary,
                        };
                        for &one in &all {
                            check(vec![one], process, request);
                            for &other in &all {
                                check(vec![one, other], process, request);
                            }
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn no_plan_leaves_a_way_back_and_no_refusal_is_without_need() {
        let (mut served, mut refused) = (0u32, 0u32);
        each_case(|threads, process, request| {
            let facts: Vec<ThreadPrivileges> =
                threads.iter().map(|thread| thread.facts()).collect();
            let case = || format!("{threads:?}, {process:?}, {request:?}");
            let caller = threads[0];
            let held = facts.iter().any(|thread| thread.holds_setgid);
            let back = |plan: DropPlan| {
                simulate(threads.clone(), plan, request, process.default_securebits)
                    .into_iter()
                    .any(Model::can_regain)
            };
            let nothing = DropPlan {
                sets_groups: held,
                drop_from_bounding_set: false,
                capabilities_to_drop: CapabilitySet::empty(),
            };
            let capabilities_to_drop_all = DropPlan {
                capabilities_to_drop: CapabilitySet::SETGID
                    | CapabilitySet::SETUID
                    | CapabilitySet::SETPCAP,
                ..nothing
            };
            match plan_drop(&facts, process, request) {
                Ok(plan) => {
                    served += 1;
                    assert!(!back(plan), "{}: {plan:?}", case());
                    // Every step is one that the kernel lets this process make.
                    assert!(
                        !plan.drop_from_bounding_set || caller.effective & SETPCAP != 0,
                        "{}",
                        case()
                    );
                    assert!(
                        !plan.sets_groups
                            || threads.iter().all(|thread| thread.effective & SETGID != 0),
                        "{}",
                        case()
                    );
                    assert!(
                        request.user.is_none()
                            || threads.iter().all(|thread| thread.effective & SETUID != 0),
                        "{}",
                        case()
                    );
                    // Nothing is taken that is not there, and CAP_SETGID alone where the user
                    // stays.
                    let has = |set: u8, capability: u8| set & capability != 0;
                    let taken = [
                        (CapabilitySet::SETGID, SETGID),
                        (CapabilitySet::SETUID, SETUID),
                        (CapabilitySet::SETPCAP, SETPCAP),
                    ];
                    for (capability, bit) in taken
                        .into_iter()
                        .filter(|&(capability, _)| plan.capabilities_to_drop.contains(capability))
                    {
                        assert!(
                            has(caller.permitted | caller.inheritable, bit) && threads.len() == 1,
                            "{}",
                            case()
                        );
                        assert!(
                            capability == CapabilitySet::SETGID
                                || request.user == Some(Uid::from_raw(1000)),
                            "{}",
                            case()
                        );
                    }
                    // The bounding set is left alone where that is enough.
                    assert!(
                        !plan.drop_from_bounding_set
                            || back(DropPlan {
                                drop_from_bounding_set: false,
                                ..plan
                            }),
                        "{}",
                        case()
                    );
                    assert!(
                        !(held && process.setgroups_denied
                            || !held && request.changes_supplementary),
                        "{}",
                        case()
                    );
                }
                Err(blocker) => {
                    refused += 1;
                    let needed = match blocker {
                        Blocker::SetgidNotEffective => {
                            (caller.permitted | caller.inheritable) & SETGID != 0
                                && caller.effective & SETGID == 0
                        }
                        Blocker::MissingSetuid => {
                            request.user.is_some()
                                && threads.iter().any(|thread| thread.effective & SETUID == 0)
                        }
                        Blocker::SetgroupsDenied => held && process.setgroups_denied,
                        Blocker::SupplementaryDiffer => !held && request.changes_supplementary,
                        Blocker::MissingSetpcap => {
                            caller.effective & SETPCAP == 0
                                && threads.len() == 1
                                && back(if request.user == Some(Uid::from_raw(1000)) {
                                    capabilities_to_drop_all
                                } else {
                                    nothing
                                })
                        }
                        // Some thread would keep a way back, or cannot make the calls that all have
                        // to make.
                        Blocker::Multithreaded => {
                            threads.len() > 1
                                && (back(nothing)
                                    || held
                                        && threads
                                            .iter()
                                            .any(|thread| thread.effective & SETGID == 0))
                        }
                        Blocker::KernelWorker(_) => false,
                    };
                    assert!(needed, "{}: {blocker:?}", case());
                }
            }
        });
        assert_eq!(served + refused, 3 * 2 * 2 * 2 * (256 + 256 * 256));
        assert!(
            served > 3_000 && refused > 10_000,
            "{served} served, {refused} refused"
        );
    }

    #[test]
    fn the_rows_that_must_be_served_are() {
        let plain = ProcessState {
            default_securebits: true,
            setgroups_denied: false,
        };
        let kept = ProcessState {
            default_securebits: false,
            ..plain
        };
        let request = |user: Option<u32>| DropRequest {
            user: user.map(Uid::from_raw),
            changes_supplementary: false,
        };
        let every = SETGID | SETUID | SETPCAP;
        let root = Model {
            user_0: true,
            effective: every,
            permitted: every,
            inheritable: 0,
            bounding: true,
        };
        let ordinary = Model {
            user_0: false,
            effective: 0,
            permitted: 0,
            ..root
        };
        let file_given = Model {
            effective: SETGID,
            permitted: SETGID,
            ..ordinary
        };
        for (threads, process, user) in [
            (vec![root], kept, Some(33)),
            (vec![root], plain, None),
            (
                vec![Model {
                    inheritable: SETGID,
                    ..root
                }],
                plain,
                Some(33),
            ),
            (vec![file_given], plain, None),
            (
                vec![Model {
                    inheritable: SETGID,
                    ..file_given
                }],
                plain,
                None,
            ),
            (vec![root; 3], plain, Some(33)),
            (vec![ordinary; 3], plain, None),
            (
                vec![ordinary],
                ProcessState {
                    setgroups_denied: true,
                    ..plain
                },
                None,
            ),
        ] {
            let facts: Vec<ThreadPrivileges> =
                threads.iter().map(|thread| thread.facts()).collect();
            assert!(
                plan_drop(&facts, process, request(user)).is_ok(),
                "{threads:?}, {process:?}, {user:?}"
            );
        }
    }

    #[test]
    fn a_kernel_thread_of_an_io_uring_is_in_the_way_of_every_plan() {
        let ring = ThreadPrivileges {
            thread_id: 7,
            is_kernel_worker: true,
            ..ThreadPrivileges::default()
        };
        let process = ProcessState {
            default_securebits: true,
            setgroups_denied: false,
        };
        let found = plan_drop(
            &[ThreadPrivileges::default(), ring],
            process,
            DropRequest {
                user: None,
                changes_supplementary: false,
            },
        );
        assert_eq!(found, Err(Blocker::KernelWorker(7)));
    }
}

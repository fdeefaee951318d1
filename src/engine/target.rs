//! The request of a permanent drop, and what stands in its way.

use std::path::PathBuf;
use std::sync::Arc;

use rustix::thread::CapabilitySet;

use super::reasons::LACKS_SETGID;
use crate::change::{Change, RequestedIds};
use crate::error::Error;
use crate::error::{CannotKeepReason, DropError};
use crate::identity::{GroupList, sorted};
use crate::ids::{Gid, Uid};
use crate::kernel::threads::ThreadIds;
use crate::plan::permanent::{Blocker, DropRequest, KeepBlocker, RequestedGroups};

/// The requested permanent identity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Target {
    /// `None` leaves the group ids and the supplementary groups alone.
    pub(crate) group: Option<Gid>,
    pub(crate) user: Option<Uid>,
    pub(crate) supplementary: Option<Arc<[Gid]>>,
    pub(crate) accepts_supplementary: bool,
    pub(crate) keep: CapabilitySet,
    pub(crate) chroot: Option<PathBuf>,
    pub(crate) no_new_privs: bool,
}

impl Target {
    pub(crate) fn new(group: Option<Gid>, user: Option<Uid>) -> Self {
        Target {
            group,
            user,
            supplementary: None,
            accepts_supplementary: false,
            keep: CapabilitySet::empty(),
            chroot: None,
            no_new_privs: false,
        }
    }

    pub(crate) fn validate(&self) -> Result<(), Error> {
        self.change().validate()
    }

    /// The requested change of the ids.
    pub(crate) fn change(&self) -> Change {
        Change {
            user: self.user.map(RequestedIds::both).unwrap_or_default(),
            group: self.group.map(RequestedIds::both).unwrap_or_default(),
            supplementary: self.supplementary.clone(),
            ..Change::default()
        }
    }

    /// All capabilities go but those that are kept.
    pub(super) fn is_to_other_user(&self) -> bool {
        self.user.is_some_and(|user| user != Uid::ROOT)
    }

    /// The supplementary groups to have, where they can be set.
    pub(super) fn wanted_groups(&self) -> Arc<[Gid]> {
        self.supplementary.clone().unwrap_or_default()
    }

    /// The facts of the request, compared with what the threads have.
    pub(super) fn request(&self, threads: &[ThreadIds]) -> DropRequest {
        let groups = self.group.map(|_| RequestedGroups {
            are_named: self.supplementary.is_some(),
            differ: self.thread_with_other_groups(threads).is_some(),
            accepts_others: self.accepts_supplementary,
        });
        DropRequest {
            user: self.user,
            groups,
            keep: self.keep,
            no_new_privs: self.no_new_privs,
            chroot: self.chroot.is_some(),
        }
    }

    fn thread_with_other_groups<'a>(&self, threads: &'a [ThreadIds]) -> Option<&'a ThreadIds> {
        let wanted = self.wanted_groups();
        threads.iter().find(|thread| !has_groups(thread, &wanted))
    }

    pub(super) fn syscall_failed(
        &self,
        threads: &[ThreadIds],
        call: &'static str,
        os_error: std::io::Error,
    ) -> DropError {
        let (requested, ids) = (self.change().to_string(), describe_ids(&threads[0]));
        DropError::Change(Error::SyscallFailed {
            call,
            requested,
            ids,
            os_error,
        })
    }

    /// The error for a drop that has no plan.
    pub(super) fn blocked(&self, blocker: Blocker, threads: &[ThreadIds]) -> DropError {
        let name_of = |thread_id| {
            let mut threads = threads.iter();
            let thread = threads.find(|thread| thread.thread_id == thread_id);
            thread.map(|thread| thread.name.clone()).unwrap_or_default()
        };
        match blocker {
            Blocker::KernelWorker(thread_id) => DropError::KernelWorker { thread_id },
            Blocker::Keep(capabilities, blocker) => DropError::CannotKeep {
                capabilities,
                reason: match blocker {
                    KeepBlocker::LeadBack => CannotKeepReason::LeadBack,
                    KeepBlocker::NoOtherUser => CannotKeepReason::NoOtherUser,
                    KeepBlocker::Multithreaded => CannotKeepReason::Multithreaded,
                    KeepBlocker::NotEffective => CannotKeepReason::NotEffective,
                },
            },
            Blocker::MissingSysChroot => DropError::MissingSysChroot {
                directory: self.chroot.clone().unwrap_or_default(),
            },
            Blocker::NoNewPrivs(thread_id) => DropError::NoNewPrivs {
                thread_id,
                name: name_of(thread_id),
            },
            Blocker::SetgidNotEffective => DropError::SetgidNotEffective,
            Blocker::MissingSetuid => DropError::MissingSetuid {
                user: self.user.unwrap_or(Uid::ROOT).as_raw(),
            },
            Blocker::MissingSetpcap => DropError::MissingSetpcap,
            Blocker::Multithreaded => DropError::Multithreaded {
                threads: threads.len(),
            },
            Blocker::SetgidNotEffectiveOn(thread_id) => DropError::Change(Error::ThreadDiffers {
                requested: self.change().to_string(),
                thread_id,
                name: name_of(thread_id),
                finding: LACKS_SETGID.into(),
            }),
            Blocker::SetgroupsDenied => DropError::SetgroupsDenied,
            Blocker::SupplementaryDiffer => {
                let differing = self
                    .thread_with_other_groups(threads)
                    .unwrap_or(&threads[0]);
                DropError::SupplementaryDiffer {
                    requested: list(&self.wanted_groups()),
                    current: list(&differing.supplementary),
                }
            }
        }
    }
}

/// Shows the ids as an error does.
pub(super) fn describe_ids(thread: &ThreadIds) -> String {
    format!("user: {}; group: {}", thread.user_ids, thread.group_ids)
}

pub(super) fn has_groups(thread: &ThreadIds, expected: &[Gid]) -> bool {
    sorted(&thread.supplementary) == sorted(expected)
}

fn list(groups: &[Gid]) -> String {
    match groups {
        [] => "none".into(),
        groups => GroupList(groups).to_string(),
    }
}

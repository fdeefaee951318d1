//! The permanent drop of privileges.

use std::fmt;

use crate::change::Change;
use crate::engine::event;
use crate::engine::permanent::{self, DropFailure, Target, Verified};
use crate::error::{DropError, Error, LookupError};
use crate::guard::{GroupGuard, emit_unless_changed, with_stack};
use crate::identity::{Identity, collect_bounded};
use crate::ids::{Gid, Uid};
use crate::scope::Process;

/// A permanent drop of the privileges of the whole process, until it executes a program that is
/// given others.
///
/// It corresponds to the sequence of `setgroups(3)`, `setresgid(3)`, `setresuid(3)` and `capset(2)`
/// that daemons write by hand, but checks first that the drop can be permanent, and verifies
/// afterwards that it is.
///
/// # Examples
/// ```no_run
/// use privilege_guard::PermanentDrop;
///
/// // A root daemon, after it has bound its port and opened its log.
/// let report = PermanentDrop::to_account("www-data")?.no_new_privs().apply()?;
/// eprintln!("{report}");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use = "nothing is dropped until `apply`"]
pub struct PermanentDrop {
    target: Target,
}

impl PermanentDrop {
    /// Drops to this group, without supplementary groups unless they are given. The user stays.
    ///
    /// # Examples
    /// ```
    /// use privilege_guard::{DropError, Error, PermanentDrop};
    ///
    /// let reserved = PermanentDrop::to_group(u32::MAX);
    /// assert!(matches!(reserved.apply(), Err(DropError::Change(Error::InvalidGid))));
    /// ```
    pub fn to_group(group: impl Into<Gid>) -> Self {
        let group = group.into();
        PermanentDrop {
            target: Target {
                group,
                user: None,
                supplementary: None,
                no_new_privs: false,
            },
        }
    }

    /// Drops to the user, group and supplementary groups of this account, which are looked up here.
    ///
    /// # Errors
    /// - [`LookupError::UnknownUser`] if no user has the name.
    /// - [`LookupError::Lookup`] if a database cannot be read.
    ///
    /// # Examples
    /// ```
    /// use privilege_guard::{LookupError, PermanentDrop};
    ///
    /// assert!(PermanentDrop::to_account("root").is_ok());
    /// let error = PermanentDrop::to_account("no-such-user");
    /// assert!(matches!(error, Err(LookupError::UnknownUser { .. })));
    /// ```
    pub fn to_account(name: &str) -> Result<Self, LookupError> {
        Identity::of_account(name).map(|identity| Self::to(&identity))
    }

    /// Drops to the user, group and supplementary groups of this identity.
    ///
    /// # Examples
    /// ```no_run
    /// use privilege_guard::PermanentDrop;
    ///
    /// PermanentDrop::to(&"997:997".parse()?).apply()?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn to(identity: &Identity) -> Self {
        let mut drop = Self::to_group(identity.group()).user(identity.user());
        drop.target.supplementary = Some(identity.shared_groups());
        drop
    }

    /// Drops to this user too: real, effective, saved and filesystem user id.
    ///
    /// If the process has one thread and the user is not 0, CAP_SETUID and CAP_SETPCAP are removed
    /// with CAP_SETGID: they would lead back.
    ///
    /// # Examples
    /// ```
    /// # use privilege_guard::PermanentDrop;
    /// assert_eq!(PermanentDrop::to_group(33).user(34).to_string(), "permanently group 33, user 34");
    /// ```
    pub fn user(mut self, user: impl Into<Uid>) -> Self {
        self.target.user = Some(user.into());
        self
    }

    /// Sets the supplementary groups to have afterwards. The default is none.
    ///
    /// A process without CAP_SETGID cannot change them, and keeps its own by default.
    ///
    /// # Examples
    /// ```no_run
    /// # use privilege_guard::{Gid, PermanentDrop};
    /// let report = PermanentDrop::to_group(33).supplementary([1004, 1005]).apply()?;
    /// assert!(report.supplementary_unchanged || report.supplementary == [1004, 1005].map(Gid::from));
    /// # Ok::<(), privilege_guard::DropError>(())
    /// ```
    pub fn supplementary<I>(mut self, groups: I) -> Self
    where
        I: IntoIterator,
        I::Item: Into<Gid>,
    {
        self.target.supplementary = Some(collect_bounded(groups));
        self
    }

    /// Sets `PR_SET_NO_NEW_PRIVS` too, for the calling thread and its child processes: no program
    /// that they execute is given privileges.
    ///
    /// It does not set the flag of other threads, so call it before threads are started.
    ///
    /// # Examples
    /// ```no_run
    /// # use privilege_guard::PermanentDrop;
    /// assert!(PermanentDrop::to_group(33).no_new_privs().apply()?.no_new_privs);
    /// # Ok::<(), privilege_guard::DropError>(())
    /// ```
    pub fn no_new_privs(mut self) -> Self {
        self.target.no_new_privs = true;
        self
    }

    /// Performs the drop on all threads and verifies it.
    ///
    /// After `Ok`, on every thread the four group ids are the group, the supplementary groups are
    /// those requested (if no thread held CAP_SETGID, unchanged:
    /// [`DropReport::supplementary_unchanged`]), and no thread holds CAP_SETGID. The calling thread
    /// tried `setresgid`, `setgid`, `setfsgid` and `setgroups` with each other id that it had, and
    /// was refused.
    ///
    /// # Privileges
    /// None, to drop the group of a set-group-ID program. Otherwise CAP_SETGID in the effective
    /// set; CAP_SETUID for another user; CAP_SETPCAP if CAP_SETGID must leave the bounding set too,
    /// because user 0 stays reachable or CAP_SETPCAP itself stays.
    ///
    /// # Errors
    /// See [`DropError`]. Nothing is changed, or the change was rolled back, except after
    /// [`DropError::StillPrivileged`]: the drop failed after the point of no return, and the caller
    /// must exit. If an attempt to regain a group succeeds, the process aborts.
    ///
    /// # Examples
    /// ```no_run
    /// use privilege_guard::{DropError, PermanentDrop};
    ///
    /// match PermanentDrop::to_group(1004).user(1004).supplementary([1005]).apply() {
    ///     Ok(report) => eprintln!("{report}"),
    ///     Err(error @ DropError::StillPrivileged { .. }) => {
    ///         eprintln!("{error}");
    ///         std::process::abort()
    ///     }
    ///     Err(error) => return Err(error), // nothing is changed
    /// }
    /// # Ok::<(), DropError>(())
    /// ```
    #[doc(alias = "setgroups")]
    #[doc(alias = "initgroups")]
    pub fn apply(self) -> Result<DropReport, DropError> {
        let guard = self
            .target
            .validate()
            .and_then(|()| GroupGuard::<Process>::begin_without_event(Change::default(), false));
        let result = match guard {
            Ok(guard) => make_permanent(guard, &self.target),
            Err(Error::Busy { .. } | Error::ProcessGuardInThreadGuard) => {
                Err(DropError::GuardsActive)
            }
            Err(error) => Err(error.into()),
        };
        emit_drop_event(&self, &result);
        result
    }
}

impl fmt::Display for PermanentDrop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "permanently group {}", self.target.group)?;
        self.target
            .user
            .map_or(Ok(()), |user| write!(f, ", user {user}"))
    }
}

impl GroupGuard<Process> {
    /// Drops the original group permanently, on all threads. The guard's group becomes the only
    /// one.
    ///
    /// The supplementary groups are those that the guard's change named, or none. Otherwise this is
    /// like [`PermanentDrop::apply`], which also drops to another user.
    ///
    /// # Privileges
    /// As for [`PermanentDrop::apply`].
    ///
    /// # Errors
    /// As for [`PermanentDrop::apply`], and [`Error::NotOneId`] if the guard's change named two
    /// groups or none. The guard is consumed and restored, except after
    /// [`DropError::StillPrivileged`].
    ///
    /// # Examples
    /// ```no_run
    /// use privilege_guard::{GroupGuard, GroupIds};
    ///
    /// // A set-group-ID program drops its group and keeps that of its user.
    /// let own = GroupIds::current()?.real;
    /// let report = GroupGuard::assume(own)?.drop_permanently()?;
    /// eprintln!("{report}");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn drop_permanently(self) -> Result<DropReport, DropError> {
        let change = with_stack(|stack| stack.sole().map(|applied| applied.change().clone()));
        let change = match change {
            None => return Err(Error::ThreadEnding.into()),
            Some(None) => return Err(DropError::GuardsActive),
            Some(Some(change)) => change,
        };
        let result = match change.group.single() {
            Some(group) => {
                let supplementary = change.supplementary.clone();
                make_permanent(
                    self,
                    &Target {
                        group,
                        user: None,
                        supplementary,
                        no_new_privs: false,
                    },
                )
            }
            None => {
                drop(self);
                Err(Error::NotOneId {
                    requested: change.to_string(),
                }
                .into())
            }
        };
        emit_drop_event(&format_args!("permanently {change}"), &result);
        result
    }
}

fn make_permanent(guard: GroupGuard<Process>, target: &Target) -> Result<DropReport, DropError> {
    let key = guard.key;
    let result = with_stack(|stack| {
        let applied = stack.sole().ok_or(DropError::GuardsActive)?;
        let result = permanent::execute(applied, target);
        match &result {
            Ok(_) => stack.commit(key),
            Err(DropFailure::Irreversible(_)) => stack.mark_failed(key),
            Err(DropFailure::Reversible(_)) => {}
        }
        result
    });
    match result.unwrap_or(Err(DropFailure::Reversible(Error::ThreadEnding.into()))) {
        // Nothing is left to restore.
        Ok(verified) => Ok(DropReport::new(target, verified)),
        Err(DropFailure::Reversible(error)) => {
            drop(guard);
            Err(error)
        }
        Err(DropFailure::Irreversible(error)) => {
            std::mem::forget(guard);
            Err(error)
        }
    }
}

fn emit_drop_event(requested: &dyn fmt::Display, result: &Result<DropReport, DropError>) {
    emit_unless_changed(|| match result {
        Ok(report) => event::dropped(report),
        Err(error) => event::drop_refused(requested, error),
    });
}

/// The verified result of a permanent drop. `Display` writes one line for a log.
///
/// # Examples
/// ```no_run
/// let report = privilege_guard::PermanentDrop::to_group(33).apply()?;
/// if report.other_capabilities {
///     eprintln!("more privileged than necessary: {report}");
/// }
/// # Ok::<(), privilege_guard::DropError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct DropReport {
    /// All four group ids of every thread.
    pub group: Gid,
    /// The user that the drop named, if it named one.
    pub user: Option<Uid>,
    /// The supplementary groups of the process now.
    pub supplementary: Vec<Gid>,
    /// Whether those are the process's own, unchanged because no thread held CAP_SETGID.
    pub supplementary_unchanged: bool,
    /// The number of threads that were verified.
    pub threads: usize,
    /// The number of attempts to regain a privilege, all refused.
    pub regain_attempts_refused: usize,
    /// Whether CAP_SETGID was removed from the bounding set too.
    pub removed_from_bounding_set: bool,
    /// Whether the calling thread has `no_new_privs`.
    pub no_new_privs: bool,
    /// Whether the calling thread holds other capabilities, which might give it much power.
    pub other_capabilities: bool,
}

impl DropReport {
    fn new(target: &Target, verified: Verified) -> Self {
        DropReport {
            group: target.group,
            user: target.user,
            supplementary: verified.supplementary,
            supplementary_unchanged: verified.supplementary_unchanged,
            threads: verified.threads,
            regain_attempts_refused: verified.regain_attempts_refused,
            removed_from_bounding_set: verified.removed_from_bounding_set,
            no_new_privs: verified.no_new_privs,
            other_capabilities: verified.other_capabilities,
        }
    }
}

impl fmt::Display for DropReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "permanently group {}", self.group)?;
        self.user
            .map_or(Ok(()), |user| write!(f, ", user {user}"))?;
        f.write_str("; supplementary groups")?;
        f.write_str(if self.supplementary_unchanged {
            " unchanged:"
        } else {
            ":"
        })?;
        match &self.supplementary[..] {
            [] => f.write_str(" none")?,
            groups => groups.iter().try_for_each(|group| write!(f, " {group}"))?,
        }
        let DropReport {
            threads,
            regain_attempts_refused,
            ..
        } = self;
        write!(
            f,
            "; threads verified: {threads}; attempts to regain refused: {regain_attempts_refused}"
        )?;
        f.write_str("; no CAP_SETGID")?;
        f.write_str(if self.removed_from_bounding_set {
            ", nor in the bounding set"
        } else {
            ""
        })?;
        f.write_str(if self.other_capabilities {
            ", other capabilities kept"
        } else {
            ""
        })?;
        f.write_str(if self.no_new_privs {
            "; no_new_privs"
        } else {
            ""
        })
    }
}

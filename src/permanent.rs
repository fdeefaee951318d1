//! The permanent drop of privileges.

use std::fmt;
use std::path::{Path, PathBuf};

use rustix::thread::CapabilitySet;

use crate::capabilities::CapabilityNames;
use crate::change::Change;
use crate::engine::event;
use crate::engine::permanent::{self, DropFailure, Verified};
use crate::engine::target::Target;
use crate::error::DropError;
use crate::error::Error;
use crate::error::LookupError;
use crate::guard::{GroupGuard, Guard, GuardKind, IdentityGuard, UserGuard};
use crate::guard::{emit_unless_changed, with_stack};
use crate::identity::{Identity, collect_bounded};
use crate::ids::{Gid, Uid};
use crate::scope::Process;

/// A permanent drop of the group, and optionally the user, of the whole process.
///
/// It lasts until the process executes a program that grants privileges.
///
/// It corresponds to the sequence of `chroot(2)`, `setgroups(3)`, `setresgid(3)`, `setresuid(3)`
/// and `capset(2)` that daemons write by hand, but checks first that the drop can be permanent, and
/// verifies afterwards that it is.
///
/// A program that is already what it asks for, for example because a service manager has started it
/// as its account, gets `Ok` too.
///
/// # Examples
/// ```no_run
/// use privilege_guard::{CapabilitySet, Identity, PermanentDrop};
///
/// // A root daemon, after it has opened its log and given its state to the account.
/// let account = Identity::of_account("www-data")?;
/// std::os::unix::fs::chown("/var/lib/daemon", Some(account.user().as_raw()), None)?;
/// let report = PermanentDrop::to(&account)
///     .chroot("/srv/www")
///     .keep_capabilities(CapabilitySet::NET_BIND_SERVICE)
///     .no_new_privs()
///     .apply()?;
/// eprintln!("{report}");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use = "nothing is dropped until `apply`"]
pub struct PermanentDrop {
    target: Target,
}

impl PermanentDrop {
    /// Creates a drop to this group, by default without supplementary groups. The user is
    /// unchanged.
    ///
    /// # Examples
    /// ```
    /// use privilege_guard::{DropError, Error, PermanentDrop};
    ///
    /// let reserved = PermanentDrop::to_group(u32::MAX);
    /// assert!(matches!(reserved.apply(), Err(DropError::Change(Error::InvalidGid))));
    /// ```
    pub fn to_group(group: impl Into<Gid>) -> Self {
        PermanentDrop {
            target: Target::new(Some(group.into()), None),
        }
    }

    /// Creates a drop to an account's user, group and supplementary groups.
    ///
    /// The account is looked up immediately.
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

    /// Creates a drop to the user, group and supplementary groups of this identity.
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
    /// If the user is not 0, all capabilities are removed from the effective, permitted,
    /// inheritable and ambient set, except those of [`keep_capabilities`](Self::keep_capabilities).
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
    /// A process in which no thread holds CAP_SETGID cannot change them. If no groups were
    /// requested, it keeps its current ones. If other groups were requested, the drop is refused,
    /// unless [`accept_supplementary`](Self::accept_supplementary) was called.
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

    /// Accepts other supplementary groups than those requested, if no thread holds CAP_SETGID.
    ///
    /// It is meant for a program that a service manager starts as its account, with groups of the
    /// service manager's choice. [`DropReport::supplementary`] has them. A process that holds
    /// CAP_SETGID sets the requested groups all the same.
    ///
    /// # Examples
    /// ```no_run
    /// # use privilege_guard::PermanentDrop;
    /// let report = PermanentDrop::to_account("www-data")?.accept_supplementary().apply()?;
    /// if report.supplementary_unchanged {
    ///     eprintln!("started with the groups {:?}", report.supplementary);
    /// }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn accept_supplementary(mut self) -> Self {
        self.target.accepts_supplementary = true;
        self
    }

    /// Keeps these capabilities. Afterwards they are exactly the effective and the permitted set.
    ///
    /// The inheritable and the ambient set become empty, so an executed program is not given them.
    /// The drop must be to a user other than 0, and the process must have no other threads. The
    /// capabilities must be in the effective set before.
    ///
    /// Those that lead back are refused: CHOWN, DAC_OVERRIDE, DAC_READ_SEARCH, FOWNER, FSETID,
    /// MKNOD, SETGID, SETUID, SETPCAP, SETFCAP, SYS_ADMIN, SYS_CHROOT, SYS_MODULE, SYS_PTRACE,
    /// SYS_RAWIO, MAC_ADMIN, MAC_OVERRIDE, BPF and CHECKPOINT_RESTORE.
    ///
    /// # Examples
    /// ```no_run
    /// use privilege_guard::{CapabilitySet, PermanentDrop};
    ///
    /// PermanentDrop::to_account("www-data")?
    ///     .keep_capabilities(CapabilitySet::NET_BIND_SERVICE)
    ///     .apply()?;
    /// let socket = std::net::TcpListener::bind("0.0.0.0:80")?; // as www-data
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[doc(alias = "PR_SET_KEEPCAPS")]
    #[doc(alias = "capset")]
    pub fn keep_capabilities(mut self, capabilities: CapabilitySet) -> Self {
        self.target.keep = capabilities;
        self
    }

    /// Makes this directory the root and the working directory of every thread.
    ///
    /// The directory is opened and checked before anything changes. `/proc` must be readable before
    /// the drop, and is not needed in the new root.
    ///
    /// # Privileges
    /// CAP_SYS_CHROOT in the effective set.
    ///
    /// # Warning
    /// Open descriptors of directories outside still lead out (`openat(2)`): close them first. So
    /// does CAP_SYS_CHROOT, which the process keeps if the drop is to no user other than 0.
    ///
    /// # Examples
    /// ```no_run
    /// # use privilege_guard::PermanentDrop;
    /// // The account is looked up in the old root.
    /// PermanentDrop::to_account("www-data")?.chroot("/var/empty").apply()?;
    /// assert_eq!(std::env::current_dir()?.to_str(), Some("/"));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn chroot(mut self, directory: impl AsRef<Path>) -> Self {
        self.target.chroot = Some(directory.as_ref().to_owned());
        self
    }

    /// Sets `PR_SET_NO_NEW_PRIVS` too: no program that the process executes is given privileges.
    ///
    /// `prctl(2)` sets the flag on the calling thread only. If there are other threads, the drop is
    /// refused, unless all of them have the flag already.
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
    /// those requested (if no thread held CAP_SETGID, those that the process had:
    /// [`DropReport::supplementary_unchanged`]), and CAP_SETGID is gone. If a user other than 0 was
    /// given, the four user ids are the user, and no capabilities are left in the effective,
    /// permitted, inheritable and ambient set but those that are kept.
    ///
    /// The calling thread tried `setresgid`, `setgid`, `setfsgid` and `setgroups` with each other
    /// group id that a thread had, `setresuid`, `setuid` and `setfsuid` likewise (if a user other
    /// than 0 was given), and `capset` with CAP_SETGID. Each attempt was refused.
    ///
    /// No descriptor is left open.
    ///
    /// # Privileges
    /// None, to drop the rights of a set-user-ID or set-group-ID program, or if the process is
    /// already the account. Otherwise CAP_SETGID in the effective set; CAP_SETUID for another user;
    /// CAP_SYS_CHROOT for another root; CAP_SETPCAP if CAP_SETGID must leave the bounding set too,
    /// because user 0 stays reachable or CAP_SETPCAP itself stays.
    ///
    /// # Errors
    /// Nothing is changed, or the change was rolled back, except after
    /// [`DropError::StillPrivileged`]. If the rollback is refused, or if an attempt to regain
    /// something succeeds, the process aborts.
    ///
    /// - [`DropError::StillPrivileged`] if the drop failed after the point of no return, or does
    ///   not hold: end the process.
    /// - [`DropError::GuardsActive`] if a guard is active, on any thread.
    /// - [`DropError::Multithreaded`] if other threads would keep what the drop removes.
    /// - [`DropError::SetgidNotEffective`], [`DropError::MissingSetuid`],
    ///   [`DropError::MissingSysChroot`], [`DropError::MissingSetpcap`] if a privilege is missing.
    /// - [`DropError::SupplementaryDiffer`], [`DropError::SetgroupsDenied`] if the supplementary
    ///   groups cannot be set.
    /// - [`DropError::CannotKeep`] if capabilities lead back or cannot be kept.
    /// - [`DropError::Chroot`], [`DropError::ThreadRoot`] if the root cannot be changed.
    /// - [`DropError::NoNewPrivs`] if another thread does not have that flag.
    /// - [`DropError::KernelWorker`] if a kernel thread is in the process.
    /// - [`DropError::UnmappedUid`] if the user is not mapped in the user namespace.
    /// - [`DropError::Change`] if a step fails as a change does, or if `/proc` cannot be read.
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
        let Target { group, user, .. } = &self.target;
        fmt_ids(f, *group, *user)?;
        match &self.target.chroot {
            Some(directory) => write!(f, ", root {directory:?}"),
            None => Ok(()),
        }
    }
}

fn fmt_ids(f: &mut fmt::Formatter<'_>, group: Option<Gid>, user: Option<Uid>) -> fmt::Result {
    match (group, user) {
        (Some(group), None) => write!(f, "permanently group {group}"),
        (Some(group), Some(user)) => write!(f, "permanently group {group}, user {user}"),
        (None, Some(user)) => write!(f, "permanently user {user}"),
        (None, None) => f.write_str("permanently nothing"),
    }
}

impl GroupGuard<Process> {
    /// Drops the original group permanently, on all threads. The guard's group becomes the only
    /// one.
    ///
    /// The supplementary groups are those that the guard's change requested, or none. Otherwise
    /// this is like [`PermanentDrop::apply`], which also drops to another user.
    ///
    /// # Privileges
    /// As for [`PermanentDrop::apply`].
    ///
    /// # Errors
    /// As for [`PermanentDrop::apply`], and [`Error::NotOneId`] if the guard's change named two
    /// groups or none. The guard is dropped, except after [`DropError::StillPrivileged`]: its
    /// restore is deferred if inner guards are active.
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
        drop_guard(self, |change| {
            let group = change.group.single()?;
            Some(Target::new(Some(group), None))
        })
    }
}

impl UserGuard<Process> {
    /// Drops the original user permanently, on all threads. The guard's user becomes the only one.
    ///
    /// Group ids and supplementary groups are left alone. If the user is not 0, all capabilities
    /// are removed. Otherwise this is like [`PermanentDrop::apply`].
    ///
    /// # Privileges
    /// None, in a set-user-ID program that drops to its real user.
    /// Otherwise as for [`PermanentDrop::apply`].
    ///
    /// # Warning
    /// A process that was started as root keeps root's groups. Use [`PermanentDrop::to`] there.
    ///
    /// # Errors
    /// As for [`PermanentDrop::apply`], and [`Error::NotOneId`] if the guard's change named two
    /// users or none. The guard is dropped, except after [`DropError::StillPrivileged`]: its
    /// restore is deferred if inner guards are active.
    ///
    /// # Examples
    /// ```no_run
    /// use privilege_guard::{UserGuard, UserIds};
    ///
    /// // A set-user-ID program drops its owner's rights and keeps those of its user.
    /// let own = UserIds::current()?.real;
    /// let report = UserGuard::assume_effective(own)?.drop_permanently()?;
    /// eprintln!("{report}");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn drop_permanently(self) -> Result<DropReport, DropError> {
        drop_guard(self, |change| {
            let user = change.user.single()?;
            Some(Target::new(None, Some(user)))
        })
    }
}

impl IdentityGuard<Process> {
    /// Drops the original identity permanently, on all threads. The guard's becomes the only one.
    ///
    /// The supplementary groups are the identity's, or none if the guard's change keeps the
    /// process's. Otherwise this is like [`PermanentDrop::apply`].
    ///
    /// # Privileges
    /// As for [`PermanentDrop::apply`].
    ///
    /// # Errors
    /// As for [`PermanentDrop::apply`]. The guard is dropped, except after
    /// [`DropError::StillPrivileged`]: its restore is deferred if inner guards are active.
    ///
    /// # Examples
    /// ```no_run
    /// use privilege_guard::{Identity, IdentityGuard};
    ///
    /// let account = Identity::of_account("www-data")?;
    /// let guard = IdentityGuard::assume_effective(&account)?;
    /// let settings = std::fs::read("/etc/daemon/settings")?; // as the account
    /// eprintln!("{}", guard.drop_permanently()?);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn drop_permanently(self) -> Result<DropReport, DropError> {
        drop_guard(self, |change| {
            let (group, user) = (change.group.single()?, change.user.single()?);
            Some(Target::new(Some(group), Some(user)))
        })
    }
}

/// `target` makes the target of the guard's change, if that names one id of each kind.
fn drop_guard<K: GuardKind>(
    guard: Guard<K, Process>,
    target: impl FnOnce(&Change) -> Option<Target>,
) -> Result<DropReport, DropError> {
    let change = with_stack(|stack| stack.sole().map(|applied| applied.change().clone()));
    let change = match change {
        None => return Err(Error::ThreadEnding.into()),
        Some(None) => return Err(DropError::GuardsActive),
        Some(Some(change)) => change,
    };
    let result = match target(&change) {
        Some(target) => {
            let supplementary = change.supplementary.clone();
            let target = Target {
                supplementary,
                ..target
            };
            make_permanent(guard, &target)
        }
        None => {
            drop(guard);
            let requested = change.to_string();
            Err(Error::NotOneId { requested }.into())
        }
    };
    emit_drop_event(&format_args!("permanently {change}"), &result);
    result
}

fn make_permanent<K: GuardKind>(
    guard: Guard<K, Process>,
    target: &Target,
) -> Result<DropReport, DropError> {
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
    let level = match result {
        Ok(_) => event::DROPPED,
        Err(_) => event::REFUSED,
    };
    emit_unless_changed(level, || match result {
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
    /// All four group ids of every thread, or the effective one if the drop left the groups alone.
    pub group: Gid,
    /// Whether the group ids are the process's own, left alone by the drop of a user guard.
    pub group_unchanged: bool,
    /// All four user ids of every thread, if the drop named a user.
    pub user: Option<Uid>,
    /// The supplementary groups of the process now.
    pub supplementary: Vec<Gid>,
    /// Whether the supplementary groups were left unchanged: because no thread held CAP_SETGID, or
    /// because a user guard was dropped permanently.
    pub supplementary_unchanged: bool,
    /// The new root directory, as it was named.
    pub root: Option<PathBuf>,
    /// The number of threads that were verified.
    pub threads: usize,
    /// The number of attempts to regain a privilege, all refused.
    pub regain_attempts_refused: usize,
    /// Whether CAP_SETGID was removed from the bounding set too.
    pub removed_from_bounding_set: bool,
    /// Whether every thread has `no_new_privs`.
    pub no_new_privs: bool,
    /// The capabilities that the drop was told to keep.
    pub kept_capabilities: CapabilitySet,
    /// Whether the calling thread holds other capabilities, which might give it much power. It
    /// holds none after a drop to a user other than 0.
    pub other_capabilities: bool,
}

impl DropReport {
    fn new(target: &Target, verified: Verified) -> Self {
        DropReport {
            group: verified.group,
            group_unchanged: target.group.is_none(),
            user: target.user,
            supplementary: verified.supplementary,
            supplementary_unchanged: verified.supplementary_unchanged,
            root: target.chroot.clone(),
            threads: verified.threads,
            regain_attempts_refused: verified.regain_attempts_refused,
            removed_from_bounding_set: verified.removed_from_bounding_set,
            no_new_privs: verified.no_new_privs,
            kept_capabilities: target.keep,
            other_capabilities: verified.other_capabilities,
        }
    }
}

impl fmt::Display for DropReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let changed_group = (!self.group_unchanged).then_some(self.group);
        fmt_ids(f, changed_group, self.user)?;
        if self.group_unchanged {
            write!(f, "; group unchanged: {}", self.group)?;
        }
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
        if let Some(root) = &self.root {
            // As a literal: a path may hold a newline.
            write!(f, "; root {root:?}")?;
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
        if self.user.is_some_and(|user| user != Uid::ROOT) {
            write!(
                f,
                "; capabilities: {}",
                CapabilityNames(self.kept_capabilities)
            )?;
        } else {
            f.write_str("; no CAP_SETGID")?;
        }
        for (is_so, text) in [
            (self.removed_from_bounding_set, ", nor in the bounding set"),
            (self.other_capabilities, ", other capabilities kept"),
            (self.no_new_privs, "; no_new_privs"),
        ] {
            f.write_str(if is_so { text } else { "" })?;
        }
        Ok(())
    }
}

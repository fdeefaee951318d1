//! The permanent drop: the pure choice of a road, the steps along it, and the proof at its end.

use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::unistd;
use rustix::thread::{CapabilitySet, CapabilitySets};

use crate::change::{Applied, GroupChange, few_groups, sorted};
use crate::error::{Denial, Error};
use crate::guard::GroupGuard;
use crate::ids::{Gid, supplementary_groups};
use crate::namespace::{self, nameable};
use crate::plan::ResGid;
use crate::scope::{self, Kind, not_done};
use crate::stack::Undo;
use crate::threads::{Seen, holds_setgid};
use crate::{last_words, threads};

/// A drop of the group privileges of the whole process for good, until it executes a program that gives it others.
///
/// Corresponds to the sequence of `setgroups(3)`, `setresgid(3)`, `setresuid(3)`, `capset(2)` that daemons write by hand, with the question
/// whether it can hold asked before, and the answer proved after.
///
/// # Examples
/// ```no_run
/// use privilege_guard::PermanentDrop;
///
/// // A root daemon, after it has bound its port and opened its log.
/// let report = PermanentDrop::to_account("www-data")?.no_new_privs().apply()?;
/// eprintln!("{report}");
/// # Ok::<(), privilege_guard::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use = "nothing is dropped until `apply`"]
pub struct PermanentDrop {
    group: Gid,
    user: Option<u32>,
    supplementary: Option<Vec<Gid>>,
    no_new_privs: bool,
}

impl PermanentDrop {
    /// To this group, without supplementary ones unless they are named; the user stays.
    ///
    /// # Examples
    /// ```
    /// use privilege_guard::{Error, PermanentDrop};
    ///
    /// let for_nobody = PermanentDrop::to_group(u32::MAX);
    /// assert!(matches!(for_nobody.apply(), Err(Error::InvalidGid)));
    /// ```
    pub fn to_group(group: impl Into<Gid>) -> Self {
        PermanentDrop { group: group.into(), user: None, supplementary: None, no_new_privs: false }
    }

    /// To the user, the group and the supplementary groups of this account (`getpwnam_r(3)`, `getgrouplist(3)`), all looked up here.
    ///
    /// # Errors
    /// [`Error::UnknownAccount`] where no user has the name, [`Error::Lookup`] where the database could not be asked.
    ///
    /// # Examples
    /// ```
    /// use privilege_guard::{Error, PermanentDrop};
    ///
    /// assert!(PermanentDrop::to_account("root").is_ok());
    /// assert!(matches!(PermanentDrop::to_account("no-such-user"), Err(Error::UnknownAccount { .. })));
    /// # Ok::<(), Error>(())
    /// ```
    pub fn to_account(name: &str) -> Result<Self, Error> {
        let lookup = |errno: Errno| Error::Lookup { name: name.into(), source: errno.into() };
        let unknown = || Error::UnknownAccount { name: name.into() };
        let account = unistd::User::from_name(name).map_err(lookup)?.ok_or_else(unknown)?;
        let name = std::ffi::CString::new(name).map_err(|_| unknown())?;
        let groups = unistd::getgrouplist(&name, account.gid).map_err(lookup)?;
        let group = |gid: unistd::Gid| Gid::from_raw(gid.as_raw());
        let drop = Self::to_group(group(account.gid)).user(account.uid.as_raw());
        Ok(drop.supplementary(groups.into_iter().map(group)))
    }

    /// Also to this user: real, effective, saved and filesystem user id. Where the process has one thread and the user is not 0, CAP_SETUID and
    /// CAP_SETPCAP go with CAP_SETGID: they would lead back.
    ///
    /// # Examples
    /// ```
    /// # use privilege_guard::PermanentDrop;
    /// assert_eq!(PermanentDrop::to_group(33).user(34).to_string(), "group 33 for good, user 34");
    /// ```
    pub fn user(mut self, user: u32) -> Self {
        self.user = Some(user);
        self
    }

    /// The supplementary groups to have afterwards; by default, none. A process without CAP_SETGID cannot change them, and keeps its own by default.
    ///
    /// # Examples
    /// ```no_run
    /// # use privilege_guard::{Gid, PermanentDrop};
    /// let report = PermanentDrop::to_group(33).supplementary([1004, 1005]).apply()?;
    /// assert!(report.kept_groups || report.supplementary == [1004, 1005].map(Gid::from));
    /// # Ok::<(), privilege_guard::Error>(())
    /// ```
    pub fn supplementary<I>(mut self, groups: I) -> Self
    where
        I: IntoIterator,
        I::Item: Into<Gid>,
    {
        self.supplementary = Some(few_groups(groups));
        self
    }

    /// Also sets `PR_SET_NO_NEW_PRIVS`, for the calling thread and what it starts: no program that it executes gives it anything.
    ///
    /// # Examples
    /// ```no_run
    /// # use privilege_guard::PermanentDrop;
    /// assert!(PermanentDrop::to_group(33).no_new_privs().apply()?.no_new_privs);
    /// # Ok::<(), privilege_guard::Error>(())
    /// ```
    pub fn no_new_privs(mut self) -> Self {
        self.no_new_privs = true;
        self
    }

    /// Drops, on all threads, and proves it; or refuses.
    ///
    /// After `Ok`, on every thread the four ids are the group, the supplementary groups are those asked for (where no thread held CAP_SETGID, those
    /// it had: [`DropReport::kept_groups`]), and no thread holds CAP_SETGID; the calling thread tried `setresgid`, `setgid`, `setfsgid` and
    /// `setgroups` with every other id that it had, and was refused.
    ///
    /// # Privileges
    /// None, to give up the group of a set-group-ID program. Else CAP_SETGID in the effective set; CAP_SETUID for another user; CAP_SETPCAP where
    /// CAP_SETGID has to leave the bounding set too: where user 0 stays within reach (an exec as user 0 would give it back), or CAP_SETPCAP itself
    /// stays (it could make it inheritable).
    ///
    /// # Errors
    /// Refused before anything changed: [`Error::GuardsAlive`], [`Error::SeveralThreads`], [`Error::NotEffective`], [`Error::NoSetuid`],
    /// [`Error::NoSetpcap`], [`Error::SetgroupsDenied`], [`Error::IoUring`], [`Error::Proc`], [`Error::InvalidGid`], [`Error::InvalidUid`],
    /// [`Error::TooManyGroups`], [`Error::NoMapping`], [`Error::NoUserMapping`], [`Error::ThreadEnding`]. Refused on the way and undone: [`Error::NotPermitted`],
    /// [`Error::Call`], [`Error::Unreadable`]. Found when it was too late to undo: [`Error::StillPrivileged`]; end the process. Where a try to get back succeeds, the
    /// process aborts.
    ///
    /// # Examples
    /// ```no_run
    /// use privilege_guard::{Error, PermanentDrop};
    ///
    /// match PermanentDrop::to_group(1004).user(1004).supplementary([1005]).apply() {
    ///     Ok(report) => eprintln!("{report}"),
    ///     Err(error @ Error::StillPrivileged { .. }) => {
    ///         eprintln!("{error}");
    ///         std::process::abort()
    ///     }
    ///     Err(error) => return Err(error), // nothing has changed
    /// }
    /// # Ok::<(), Error>(())
    /// ```
    pub fn apply(self) -> Result<DropReport, Error> {
        GroupGuard::apply_permanent(&self)
    }

    pub(crate) fn of_guard(group: Gid, supplementary: Option<Vec<Gid>>) -> Self {
        PermanentDrop { supplementary, ..Self::to_group(group) }
    }

    pub(crate) fn check(&self) -> Result<(), Error> {
        self.change().check()?;
        if self.user == Some(u32::MAX) { Err(Error::InvalidUid) } else { Ok(()) }
    }

    /// What it asks for of the groups.
    fn change(&self) -> GroupChange {
        GroupChange { supplementary: self.supplementary.clone(), ..GroupChange::both(self.group) }
    }
}

impl fmt::Display for PermanentDrop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "group {} for good", self.group)?;
        self.user.map_or(Ok(()), |user| write!(f, ", user {user}"))
    }
}

/// What a permanent drop has checked, and what it has kept; one line for the log.
///
/// # Examples
/// ```no_run
/// let report = privilege_guard::PermanentDrop::to_group(33).apply()?;
/// if report.other_capabilities {
///     eprintln!("more privileged than it needs to be: {report}");
/// }
/// # Ok::<(), privilege_guard::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct DropReport {
    /// The group that all four ids of every thread are.
    pub group: Gid,
    /// The user that the drop was to, where it named one.
    pub user: Option<u32>,
    /// The supplementary groups of the process now.
    pub supplementary: Vec<Gid>,
    /// Whether those are the process's own, kept because there was no CAP_SETGID to change them with.
    pub kept_groups: bool,
    /// How many threads were read back.
    pub threads: usize,
    /// How many tries to get back were made, and refused.
    pub refused_tries: usize,
    /// Whether CAP_SETGID was taken from the bounding set too.
    pub bounding_set: bool,
    /// Whether the calling thread has `no_new_privs`.
    pub no_new_privs: bool,
    /// Whether the calling thread holds other capabilities, with which it may be able to do much.
    pub other_capabilities: bool,
}

impl fmt::Display for DropReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "group {} for good", self.group)?;
        self.user.map_or(Ok(()), |user| write!(f, ", user {user}"))?;
        f.write_str(if self.kept_groups { "; supplementary groups kept:" } else { "; supplementary groups:" })?;
        match &self.supplementary[..] {
            [] => f.write_str(" none")?,
            groups => groups.iter().try_for_each(|group| write!(f, " {group}"))?,
        }
        write!(f, "; threads checked: {}; tries to get back refused: {}; no CAP_SETGID", self.threads, self.refused_tries)?;
        f.write_str(if self.bounding_set { ", nor in the bounding set" } else { "" })?;
        f.write_str(if self.other_capabilities { ", other capabilities kept" } else { "" })?;
        f.write_str(if self.no_new_privs { "; no_new_privs" } else { "" })
    }
}

/// What decides of the road, of one thread.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Facts {
    thread_id: u32,
    is_io_uring: bool,
    /// CAP_SETGID in the permitted, inheritable or ambient set.
    holds_setgid: bool,
    /// In the effective set.
    may_setgid: bool,
    inherits_setgid: bool,
    /// In the bounding set: an exec as user 0 gives it.
    bounding_setgid: bool,
    may_setuid: bool,
    /// CAP_SETUID in the permitted set: user 0 can be had.
    permits_setuid: bool,
    may_setpcap: bool,
    /// CAP_SETPCAP in the permitted set: what the bounding set has can be made inheritable, for a file that allows that.
    permits_setpcap: bool,
    /// Of the real, effective and saved user id, one is 0.
    has_user_0: bool,
    /// The user asked for is one of those three.
    has_user_asked: bool,
}

/// What is asked for, as far as it decides of the road.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Wish {
    user: Option<u32>,
    /// Supplementary groups were named, and some thread has others.
    other_groups: bool,
}

/// What the process has, besides its threads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Surroundings {
    /// No securebit of the calling thread is set: leaving user 0 takes all capabilities but the inheritable ones.
    plain_securebits: bool,
    denies_setgroups: bool,
}

/// The steps that lead to a drop that lasts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Road {
    /// Sets the supplementary groups: CAP_SETGID is there.
    sets_groups: bool,
    /// Takes CAP_SETGID from the bounding set: user 0 stays within reach, and would have it again after an exec.
    bounding_set: bool,
    /// Takes these from all sets of the one thread.
    takes: CapabilitySet,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Obstacle {
    IoUring(u32),
    NotEffective,
    NoSetuid,
    NoSetpcap,
    SeveralThreads,
    SetgroupsDenied,
    OtherGroups,
}

/// Chooses the road, or says why there is none: what stands in the way first, in the order of the checks here. `threads[0]` is the calling one.
fn choose(threads: &[Facts], surroundings: Surroundings, wish: Wish) -> Result<Road, Obstacle> {
    let caller = threads[0];
    let several = threads.len() > 1;
    let any = |fact: fn(&Facts) -> bool| threads.iter().any(fact);
    let all = |fact: fn(&Facts) -> bool| threads.iter().all(fact);

    if let Some(ring) = threads.iter().find(|thread| thread.is_io_uring) {
        return Err(Obstacle::IoUring(ring.thread_id));
    }
    if caller.holds_setgid && !caller.may_setgid {
        return Err(Obstacle::NotEffective);
    }
    if wish.user.is_some() && !all(|thread| thread.may_setuid || thread.has_user_asked) {
        return Err(Obstacle::NoSetuid);
    }

    // No call takes a capability from another thread, but leaving user 0 does (all but the inheritable ones).
    let to_other_user = wish.user.is_some_and(|user| user != 0);
    let leaves_user_0 = |thread: &Facts| surroundings.plain_securebits && to_other_user && thread.has_user_0;
    let held = any(|thread| thread.holds_setgid);
    let loses_setgid = |thread: &Facts| leaves_user_0(thread) && thread.may_setgid && !thread.inherits_setgid;
    if held && several && !threads.iter().all(loses_setgid) {
        return Err(Obstacle::SeveralThreads);
    }
    if held && surroundings.denies_setgroups {
        return Err(Obstacle::SetgroupsDenied);
    }
    if !held && wish.other_groups {
        return Err(Obstacle::OtherGroups);
    }

    // An exec as user 0 gives whatever is in the bounding set, and CAP_SETPCAP makes it inheritable.
    let takes_others = !several && to_other_user;
    let bounding_set = threads.iter().any(|thread| {
        let is_user_0 = wish.user.map_or(thread.has_user_0, |user| user == 0);
        let keeps = (thread.permits_setuid || thread.permits_setpcap) && !takes_others && !leaves_user_0(thread);
        thread.bounding_setgid && (is_user_0 || keeps)
    });
    if bounding_set && several {
        return Err(Obstacle::SeveralThreads);
    }
    if bounding_set && !caller.may_setpcap {
        return Err(Obstacle::NoSetpcap);
    }

    let mut takes = CapabilitySet::empty();
    takes.set(CapabilitySet::SETGID, !several && caller.holds_setgid);
    takes.set(CapabilitySet::SETUID, takes_others && caller.permits_setuid);
    takes.set(CapabilitySet::SETPCAP, takes_others && caller.permits_setpcap);
    Ok(Road { sets_groups: held, bounding_set, takes })
}

/// How a drop failed.
#[derive(Debug)]
pub(crate) enum Failed {
    /// What was changed so far can be undone.
    Undoable(Error),
    /// The process is neither what it was nor what it should be.
    TooLate(Error),
}

impl From<Error> for Failed {
    fn from(error: Error) -> Self {
        Failed::Undoable(error)
    }
}

/// Makes the drop out of a guard's change. Where it fails and can be undone, the change is the guard's own again.
pub(crate) fn make(applied: &mut Applied, asked: &PermanentDrop) -> Result<DropReport, Failed> {
    let own = applied.change.clone();
    make_of(applied, asked).inspect_err(|_| applied.change = own)
}

fn make_of(applied: &mut Applied, asked: &PermanentDrop) -> Result<DropReport, Failed> {
    let threads = threads::all()?;
    let facts: Vec<Facts> = threads.iter().map(|thread| Facts::new(thread, asked.user)).collect();
    let other_groups = asked.supplementary.as_ref().is_some_and(|wanted| threads.iter().any(|thread| !has_groups(thread, wanted)));
    let surroundings = Surroundings { plain_securebits: scope::has_plain_securebits()?, denies_setgroups: namespace::denies_setgroups() };
    let wish = Wish { user: asked.user, other_groups };
    let road = choose(&facts, surroundings, wish).map_err(|obstacle| asked.error(obstacle, applied, &facts))?;

    let old_ids = applied.original;
    let old_groups = supplementary_groups()?;
    let new_groups = road.sets_groups.then(|| asked.supplementary.clone().unwrap_or_default());
    // What can be found out is found out before anything changes: not everything that shows as 65534 can be put back.
    if let Some(user) = asked.user.filter(|&user| !namespace::maps_user(user)) {
        return Err(Error::NoUserMapping { user }.into());
    }
    if !namespace::maps_groups(new_groups.iter().flatten().copied().chain([asked.group])) {
        return Err(Error::NoMapping { asked: asked.change(), ids: old_ids }.into());
    }
    let failed = |call, source| Error::Call { call, asked: asked.change(), ids: old_ids, source };
    if !road.takes.is_empty() {
        // To what they are already: whether they may be set at all.
        scope::set_capabilities(scope::read_capabilities()?).map_err(|errno| failed("capset", errno.into()))?;
    }
    // What the steps below will read back, each after it is done and cannot be undone.
    scope::read_user_ids()?;
    scope::is_in_bounding_set(CapabilitySet::SETGID)?;
    scope::has_no_new_privs()?;
    // Without CAP_SETGID there is none, nor to what no call can name.
    let old = [old_ids.real, old_ids.effective, old_ids.saved, old_ids.filesystem];
    let has_way_back = road.sets_groups && old.iter().chain(&old_groups).all(|&gid| nameable(gid));
    if let Err(error) = applied.take_on_for_good(asked.group, new_groups.clone()) {
        // There may be no way back from there.
        let undoable = has_way_back || applied.undo().is_ok();
        return Err(if undoable { error.into() } else { too_late(error.to_string()) });
    }

    let mut undoable = has_way_back;
    let fail = |undoable, call, source: io::Error| {
        if undoable { Failed::Undoable(failed(call, source)) } else { too_late(format!("{call}: {source}")) }
    };
    // A step that was made is not undone; nor is one of which that cannot be read.
    let mut step = |call, set: Result<(), Errno>, is_made: &dyn Fn() -> Result<bool, Error>| {
        set.map_err(|errno| fail(undoable, call, errno.into()))?;
        let is_made = is_made().map_err(|error| too_late(format!("{call}: {error}")))?;
        undoable &= !is_made;
        if is_made { Ok(()) } else { Err(fail(undoable, call, not_done())) }
    };
    if road.bounding_set {
        let is_out = || scope::is_in_bounding_set(CapabilitySet::SETGID).map(|is_in| !is_in);
        step("prctl(PR_CAPBSET_DROP)", scope::drop_from_bounding_set(CapabilitySet::SETGID), &is_out)?;
    }
    if let Some(user) = asked.user {
        step("setresuid", scope::set_user_ids(user), &|| Ok(scope::read_user_ids()? == [user; 3]))?;
    }
    if !road.takes.is_empty() {
        // Leaving user 0 may have taken them.
        let sets = scope::read_capabilities().map_err(|error| too_late(error.to_string()))?;
        let fewer = without(sets, road.takes);
        if fewer != sets {
            step("capset", scope::set_capabilities(fewer), &|| Ok(scope::read_capabilities()? == fewer))?;
        }
    }
    // Last: nothing takes it back.
    if asked.no_new_privs {
        step("prctl(PR_SET_NO_NEW_PRIVS)", scope::set_no_new_privs(), &scope::has_no_new_privs)?;
    }
    applied.set_signal_again().map_err(|source| fail(undoable, "prctl(PR_SET_PDEATHSIG)", source))?;

    let threads = prove(asked, road, new_groups.as_deref()).map_err(too_late)?;
    Ok(DropReport {
        group: asked.group,
        user: asked.user,
        supplementary: groups_of(&threads),
        kept_groups: !road.sets_groups,
        threads: threads.len(),
        refused_tries: try_to_get_back(asked.group, old, &old_groups),
        bounding_set: road.bounding_set,
        no_new_privs: threads[0].status.nonewprivs == Some(1),
        other_capabilities: [threads[0].status.capprm, threads[0].status.capinh] != [0, 0],
    })
}

impl PermanentDrop {
    fn error(&self, obstacle: Obstacle, applied: &Applied, threads: &[Facts]) -> Error {
        match obstacle {
            Obstacle::IoUring(thread_id) => Error::IoUring { thread_id },
            Obstacle::NotEffective => Error::NotEffective,
            Obstacle::NoSetuid => Error::NoSetuid { user: self.user.unwrap_or(u32::MAX) },
            Obstacle::NoSetpcap => Error::NoSetpcap,
            Obstacle::SeveralThreads => Error::SeveralThreads { threads: threads.len() },
            Obstacle::SetgroupsDenied => Error::SetgroupsDenied,
            Obstacle::OtherGroups => Error::NotPermitted { asked: self.change(), ids: applied.original, reason: Denial::NoCapability },
        }
    }
}

impl Facts {
    /// Whether an exec of an ordinary program, by itself or after a call, gives CAP_SETGID to this thread.
    fn has_setgid_after_exec(&self) -> bool {
        self.bounding_setgid && (self.has_user_0 || self.permits_setuid || self.permits_setpcap)
    }

    fn new(thread: &Seen, user: Option<u32>) -> Self {
        let status = &thread.status;
        let users = [status.ruid, status.euid, status.suid];
        let has = |mask: u64, capability: CapabilitySet| mask & capability.bits() != 0;
        Facts {
            thread_id: status.pid.unsigned_abs(),
            is_io_uring: thread.is_io_uring,
            holds_setgid: holds_setgid(status),
            may_setgid: has(status.capeff, CapabilitySet::SETGID),
            inherits_setgid: has(status.capinh, CapabilitySet::SETGID),
            // A kernel that does not show the bounding set may have it all.
            bounding_setgid: has(status.capbnd.unwrap_or(u64::MAX), CapabilitySet::SETGID),
            may_setuid: has(status.capeff, CapabilitySet::SETUID),
            permits_setuid: has(status.capprm, CapabilitySet::SETUID),
            may_setpcap: has(status.capeff, CapabilitySet::SETPCAP),
            permits_setpcap: has(status.capprm, CapabilitySet::SETPCAP),
            has_user_0: users.contains(&0),
            has_user_asked: user.is_some_and(|user| users.contains(&user)),
        }
    }
}

fn too_late(finding: String) -> Failed {
    Failed::TooLate(Error::StillPrivileged { finding })
}

fn has_groups(thread: &Seen, expected: &[Gid]) -> bool {
    sorted(&thread.groups()) == sorted(expected)
}

/// The supplementary groups of these threads together, each of them once.
fn groups_of(threads: &[Seen]) -> Vec<Gid> {
    threads.iter().flat_map(Seen::groups).collect::<BTreeSet<_>>().into_iter().collect()
}

/// The ambient set has no capability that these do not have.
fn without(mut sets: CapabilitySets, capabilities: CapabilitySet) -> CapabilitySets {
    sets.effective.remove(capabilities);
    sets.permitted.remove(capabilities);
    sets.inheritable.remove(capabilities);
    sets
}

/// What a thread that is ending, which libc passes over, may take to be gone.
const PATIENCE: Duration = Duration::from_millis(200);

/// Reads every thread; or says what is still not so for good.
fn prove(asked: &PermanentDrop, road: Road, groups: Option<&[Gid]>) -> Result<Vec<Seen>, String> {
    let until = Instant::now() + PATIENCE;
    loop {
        let threads = threads::all().map_err(|error| error.to_string())?;
        match finding(&threads, asked, road, groups) {
            None => return Ok(threads),
            Some(finding) if Instant::now() > until => return Err(finding),
            Some(_) => std::thread::sleep(Duration::from_millis(1)),
        }
    }
}

/// What is not so, of all that must now be so for good on each of these threads, of which the first is the calling one.
fn finding(threads: &[Seen], asked: &PermanentDrop, road: Road, groups: Option<&[Gid]>) -> Option<String> {
    for thread in threads {
        let status = &thread.status;
        let is_wrong = [
            (thread.is_io_uring, "belongs to an io_uring"),
            ([status.rgid, status.egid, status.sgid, status.fgid] != [asked.group.as_raw(); 4], "has another group id"),
            (groups.is_some_and(|groups| !has_groups(thread, groups)), "has other supplementary groups"),
            (holds_setgid(status), "holds CAP_SETGID"),
            (asked.user.is_some_and(|user| [status.ruid, status.euid, status.suid, status.fuid] != [user; 4]), "has another user id"),
            (Facts::new(thread, asked.user).has_setgid_after_exec(), "would have CAP_SETGID again after an exec"),
        ];
        if let Some((_, wrong)) = is_wrong.iter().find(|(is, _)| *is) {
            return Some(format!("thread {} ({}) {wrong}", status.pid, thread.name));
        }
    }
    let [permitted, inheritable] = [threads[0].status.capprm, threads[0].status.capinh].map(CapabilitySet::from_bits_retain);
    let holds_one = permitted.intersects(road.takes) || inheritable.intersects(road.takes);
    holds_one.then(|| format!("the calling thread holds one of {:?}", road.takes))
}

/// Tries every way back that the kernel has, on the calling thread, and returns how many were refused: all.
///
/// A way that is open has been gone when it is found; so the process ends.
fn try_to_get_back(group: Gid, old_ids: [Gid; 4], old_groups: &[Gid]) -> usize {
    let mut refused = 0;
    let mut expect_refusal = |call: &str, gid: Option<Gid>, is_refused: bool| {
        if !is_refused {
            let group = gid.map_or("the old groups".into(), |gid| gid.to_string());
            last_words::abort(&Error::StillPrivileged { finding: format!("{call} may have given {group} back") });
        }
        refused += 1;
    };
    let old_ids: BTreeSet<Gid> = old_ids.into_iter().filter(|&gid| gid != group).collect();
    for gid in old_ids {
        for (real, effective, saved) in [(Some(gid), None, None), (None, Some(gid), None), (None, None, Some(gid))] {
            expect_refusal("setresgid", Some(gid), Kind::Thread.set_ids(ResGid { real, effective, saved }).is_err());
        }
        expect_refusal("setgid", Some(gid), scope::set_thread_gid(gid).is_err());
        // Answers the id before, or -1 where a filter refuses it; an answer that is neither was made up.
        let honest = [group, Gid::UNCHANGED].contains(&scope::set_filesystem_id(gid));
        expect_refusal("setfsgid", Some(gid), honest && scope::read_filesystem_id().is_ok_and(|now| now == group));
        expect_refusal("setgroups", Some(gid), Kind::Thread.set_groups(&[gid]).is_err());
    }
    expect_refusal("setgroups", None, Kind::Thread.set_groups(old_groups).is_err());
    refused
}

#[cfg(test)]
mod tests {
    use super::*;

    const SETGID: u8 = 1;
    const SETUID: u8 = 2;
    const SETPCAP: u8 = 4;

    /// What a kernel keeps of a thread, as far as it matters here.
    #[derive(Clone, Copy, Debug)]
    struct Model {
        user_0: bool,
        effective: u8,
        permitted: u8,
        inheritable: u8,
        bounding: bool,
    }

    impl Model {
        /// Every state: the sets of three capabilities, where the effective one is within the permitted one.
        fn all() -> Vec<Model> {
            let mut all = Vec::new();
            for bits in 0..1u32 << 8 {
                let has = |bit: u32, capability: u8| if bits >> bit & 1 == 1 { capability } else { 0 };
                let effective = has(0, SETGID) | has(1, SETUID) | has(2, SETPCAP);
                let permitted = effective | has(3, SETGID) | has(4, SETUID);
                all.push(Model { user_0: bits >> 5 & 1 == 1, effective, permitted, inheritable: has(6, SETGID), bounding: bits >> 7 == 1 });
            }
            all
        }

        fn facts(self) -> Facts {
            Facts {
                holds_setgid: (self.permitted | self.inheritable) & SETGID != 0,
                may_setgid: self.effective & SETGID != 0,
                inherits_setgid: self.inheritable & SETGID != 0,
                bounding_setgid: self.bounding,
                may_setuid: self.effective & SETUID != 0,
                permits_setuid: self.permitted & SETUID != 0,
                may_setpcap: self.effective & SETPCAP != 0,
                permits_setpcap: self.permitted & SETPCAP != 0,
                has_user_0: self.user_0,
                ..Facts::default()
            }
        }

        /// `setresuid` of all three ids (cap_emulate_setxuid in security/commoncap.c); with securebits that keep as much as can be kept.
        fn set_user(&mut self, user: u32, plain_securebits: bool) {
            if self.user_0 && user != 0 && plain_securebits {
                (self.effective, self.permitted) = (0, 0);
            }
            self.user_0 = user == 0;
        }

        /// Whether CAP_SETGID can be had again by calls and by an exec of an ordinary program.
        fn can_get_back(mut self) -> bool {
            self.user_0 |= self.permitted & SETUID != 0;
            let from_bounding_set = self.user_0 || self.permitted & SETPCAP != 0;
            let after_exec = if from_bounding_set && self.bounding { SETGID } else { 0 };
            (self.permitted | self.inheritable | after_exec) & SETGID != 0
        }
    }

    fn walk(mut threads: Vec<Model>, road: Road, wish: Wish, plain_securebits: bool) -> Vec<Model> {
        for (index, thread) in threads.iter_mut().enumerate() {
            thread.bounding &= !(road.bounding_set && index == 0);
            if let Some(user) = wish.user {
                thread.set_user(user, plain_securebits);
            }
            if index == 0 {
                let takes = |capability: CapabilitySet, bit: u8| if road.takes.contains(capability) { bit } else { 0 };
                let taken =
                    takes(CapabilitySet::SETGID, SETGID) | takes(CapabilitySet::SETUID, SETUID) | takes(CapabilitySet::SETPCAP, SETPCAP);
                thread.effective &= !taken;
                thread.permitted &= !taken;
                thread.inheritable &= !taken;
            }
        }
        threads
    }

    fn each_case(mut check: impl FnMut(Vec<Model>, Surroundings, Wish)) {
        let all = Model::all();
        for user in [None, Some(0), Some(1000)] {
            for plain_securebits in [false, true] {
                for denies_setgroups in [false, true] {
                    for other_groups in [false, true] {
                        let surroundings = Surroundings { plain_securebits, denies_setgroups };
                        let wish = Wish { user, other_groups };
                        for &one in &all {
                            check(vec![one], surroundings, wish);
                            for &other in &all {
                                check(vec![one, other], surroundings, wish);
                            }
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn no_road_leaves_a_way_back_and_no_refusal_is_without_need() {
        let (mut served, mut refused) = (0u32, 0u32);
        each_case(|threads, surroundings, wish| {
            let facts: Vec<Facts> = threads.iter().map(|thread| thread.facts()).collect();
            let case = || format!("{threads:?}, {surroundings:?}, {wish:?}");
            let caller = threads[0];
            let held = facts.iter().any(|thread| thread.holds_setgid);
            let back = |road: Road| walk(threads.clone(), road, wish, surroundings.plain_securebits).into_iter().any(Model::can_get_back);
            let nothing = Road { sets_groups: held, bounding_set: false, takes: CapabilitySet::empty() };
            let takes_all = Road { takes: CapabilitySet::SETGID | CapabilitySet::SETUID | CapabilitySet::SETPCAP, ..nothing };
            match choose(&facts, surroundings, wish) {
                Ok(road) => {
                    served += 1;
                    assert!(!back(road), "{}: {road:?}", case());
                    // Every step is one that the kernel lets this process make.
                    assert!(!road.bounding_set || caller.effective & SETPCAP != 0, "{}", case());
                    assert!(!road.sets_groups || threads.iter().all(|thread| thread.effective & SETGID != 0), "{}", case());
                    assert!(wish.user.is_none() || threads.iter().all(|thread| thread.effective & SETUID != 0), "{}", case());
                    // Nothing is taken that is not there, and CAP_SETGID alone where the user stays.
                    let has = |set: u8, capability: u8| set & capability != 0;
                    let taken = [(CapabilitySet::SETGID, SETGID), (CapabilitySet::SETUID, SETUID), (CapabilitySet::SETPCAP, SETPCAP)];
                    for (capability, bit) in taken.into_iter().filter(|&(capability, _)| road.takes.contains(capability)) {
                        assert!(has(caller.permitted | caller.inheritable, bit) && threads.len() == 1, "{}", case());
                        assert!(capability == CapabilitySet::SETGID || wish.user == Some(1000), "{}", case());
                    }
                    // The bounding set is left alone where that is enough.
                    assert!(!road.bounding_set || back(Road { bounding_set: false, ..road }), "{}", case());
                    assert!(!(held && surroundings.denies_setgroups || !held && wish.other_groups), "{}", case());
                }
                Err(obstacle) => {
                    refused += 1;
                    let needed = match obstacle {
                        Obstacle::NotEffective => (caller.permitted | caller.inheritable) & SETGID != 0 && caller.effective & SETGID == 0,
                        Obstacle::NoSetuid => wish.user.is_some() && threads.iter().any(|thread| thread.effective & SETUID == 0),
                        Obstacle::SetgroupsDenied => held && surroundings.denies_setgroups,
                        Obstacle::OtherGroups => !held && wish.other_groups,
                        Obstacle::NoSetpcap => {
                            caller.effective & SETPCAP == 0
                                && threads.len() == 1
                                && back(if wish.user == Some(1000) { takes_all } else { nothing })
                        }
                        // Some thread would keep a way back, or cannot make the calls that all have to make.
                        Obstacle::SeveralThreads => {
                            threads.len() > 1 && (back(nothing) || held && threads.iter().any(|thread| thread.effective & SETGID == 0))
                        }
                        Obstacle::IoUring(_) => false,
                    };
                    assert!(needed, "{}: {obstacle:?}", case());
                }
            }
        });
        assert_eq!(served + refused, 3 * 2 * 2 * 2 * (256 + 256 * 256));
        assert!(served > 3_000 && refused > 10_000, "{served} served, {refused} refused");
    }

    #[test]
    fn the_rows_that_must_be_served_are() {
        let plain = Surroundings { plain_securebits: true, denies_setgroups: false };
        let kept = Surroundings { plain_securebits: false, ..plain };
        let wish = |user| Wish { user, other_groups: false };
        let every = SETGID | SETUID | SETPCAP;
        let root = Model { user_0: true, effective: every, permitted: every, inheritable: 0, bounding: true };
        let ordinary = Model { user_0: false, effective: 0, permitted: 0, ..root };
        let file_given = Model { effective: SETGID, permitted: SETGID, ..ordinary };
        for (threads, surroundings, user) in [
            (vec![root], kept, Some(33)),
            (vec![root], plain, None),
            (vec![Model { inheritable: SETGID, ..root }], plain, Some(33)),
            (vec![file_given], plain, None),
            (vec![Model { inheritable: SETGID, ..file_given }], plain, None),
            (vec![root; 3], plain, Some(33)),
            (vec![ordinary; 3], plain, None),
            (vec![ordinary], Surroundings { denies_setgroups: true, ..plain }, None),
        ] {
            let facts: Vec<Facts> = threads.iter().map(|thread| thread.facts()).collect();
            assert!(choose(&facts, surroundings, wish(user)).is_ok(), "{threads:?}, {surroundings:?}, {user:?}");
        }
    }

    /// A thread after a drop to group 33 and user 1234, but for what `changes` says of it in the words of /proc.
    fn seen(changes: &[(&str, &str)]) -> Seen {
        let mut fields = vec![("Uid", "1234 1234 1234 1234"), ("Gid", "33 33 33 33"), ("Groups", "4 33")];
        fields.extend(["CapInh", "CapPrm", "CapEff", "CapAmb"].map(|set| (set, "0000000000000000")));
        fields.extend([("CapBnd", "000001ffffffffff"), ("Pid", "7")]);
        fields.extend(changes);
        let own = std::fs::read_to_string("/proc/thread-self/status").unwrap();
        let line = |line: &str| {
            let name = line.split(':').next().unwrap();
            let field = fields.iter().rev().find(|(field, _)| *field == name);
            field.map_or(line.to_owned(), |(_, value)| format!("{name}:\t{}", value.replace(' ', "\t"))) + "\n"
        };
        let status: String = own.lines().map(line).collect();
        let status = procfs::FromBufRead::from_buf_read(status.as_bytes()).unwrap();
        Seen { status, name: "other".into(), is_io_uring: false }
    }

    #[test]
    fn the_proof_finds_whatever_is_not_so_on_any_thread() {
        let asked = PermanentDrop::to_group(33).user(1234);
        let takes = CapabilitySet::SETGID | CapabilitySet::SETUID | CapabilitySet::SETPCAP;
        let road = Road { sets_groups: true, bounding_set: false, takes };
        let groups = [33, 4].map(Gid::from);
        let found = |threads: &[Seen]| finding(threads, &asked, road, Some(&groups));
        assert_eq!(found(&[seen(&[]), seen(&[])]), None);
        // What is not taken may be there, and groups that were not set.
        assert_eq!(found(&[seen(&[("CapPrm", "1"), ("CapInh", "1")])]), None);
        assert_eq!(finding(&[seen(&[("Groups", "5")])], &asked, road, None), None);

        let (setgid, setuid, setpcap, no_setgid) = ("40", "80", "100", "1ffffffffbf");
        let anywhere: [(&[(&str, &str)], &str); 18] = [
            (&[("Gid", "7 33 33 33")], "another group id"),
            (&[("Gid", "33 7 33 33")], "another group id"),
            (&[("Gid", "33 33 7 33")], "another group id"),
            (&[("Gid", "33 33 33 7")], "another group id"),
            (&[("Groups", "33")], "other supplementary groups"),
            (&[("Groups", "4 5 33")], "other supplementary groups"),
            (&[("CapPrm", setgid)], "holds CAP_SETGID"),
            (&[("CapInh", setgid)], "holds CAP_SETGID"),
            (&[("CapAmb", setgid)], "holds CAP_SETGID"),
            (&[("CapPrm", setgid), ("CapInh", setgid)], "holds CAP_SETGID"),
            (&[("CapInh", setgid), ("CapAmb", setgid)], "holds CAP_SETGID"),
            (&[("CapPrm", setgid), ("CapInh", setgid), ("CapAmb", setgid)], "holds CAP_SETGID"),
            (&[("Uid", "0 1234 1234 1234"), ("CapBnd", no_setgid)], "another user id"),
            (&[("Uid", "1234 0 1234 1234"), ("CapBnd", no_setgid)], "another user id"),
            (&[("Uid", "1234 1234 0 1234"), ("CapBnd", no_setgid)], "another user id"),
            (&[("Uid", "1234 1234 1234 0"), ("CapBnd", no_setgid)], "another user id"),
            (&[("CapPrm", setuid)], "CAP_SETGID again after an exec"),
            (&[("CapPrm", setpcap)], "CAP_SETGID again after an exec"),
        ];
        for (changes, wrong) in anywhere {
            for threads in [[seen(changes), seen(&[])], [seen(&[]), seen(changes)]] {
                assert!(found(&threads).is_some_and(|found| found.starts_with("thread 7 (other)") && found.contains(wrong)), "{changes:?}");
            }
        }
        assert!(found(&[Seen { is_io_uring: true, ..seen(&[]) }]).is_some());
        // As user 0, which stays.
        let stays = PermanentDrop::to_group(33);
        let user_0 = [seen(&[("Uid", "0 0 0 0")])];
        assert!(finding(&user_0, &stays, road, Some(&groups)).is_some_and(|found| found.contains("after an exec")));
        for changes in [[("CapPrm", setuid), ("CapBnd", no_setgid)], [("CapInh", setpcap), ("CapBnd", no_setgid)]] {
            assert!(found(&[seen(&changes)]).is_some_and(|found| found.contains("holds one of")), "{changes:?}");
        }
    }

    #[test]
    fn a_report_names_each_group_of_any_thread_once() {
        let threads = [seen(&[("Groups", "33 4 4")]), seen(&[("Groups", "5 33")])];
        assert_eq!(groups_of(&threads), [4, 5, 33].map(Gid::from));
    }

    #[test]
    fn a_kernel_thread_of_an_io_uring_is_in_the_way_of_every_road() {
        let ring = Facts { thread_id: 7, is_io_uring: true, ..Facts::default() };
        let surroundings = Surroundings { plain_securebits: true, denies_setgroups: false };
        let found = choose(&[Facts::default(), ring], surroundings, Wish { user: None, other_groups: false });
        assert_eq!(found, Err(Obstacle::IoUring(7)));
    }
}

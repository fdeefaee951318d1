//! A change of the group: what is asked for, and the making and undoing of it.

use std::fmt;
use std::io;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use rustix::process::Signal;
use scopeguard::ScopeGuard;

use crate::error::{Denial, Error, NoReturn};
use crate::guard::GroupGuard;
use crate::ids::{Gid, GroupIds, supplementary_groups};
use crate::namespace::{self, nameable};
use crate::plan::{Named, Needs, Plan, ResGid, plan};
use crate::scope::{self, Kind, Process, Thread, not_done};
use crate::stack::Undo;
use crate::{event, last_words};

/// The most supplementary groups that Linux takes (`NGROUPS_MAX`, include/uapi/linux/limits.h).
const MOST_GROUPS: usize = 65536;

/// What a guard is to change: the real group, the effective group, the supplementary groups, in any combination.
///
/// What is not named is left alone. Nothing named changes nothing, as `os.setregid(-1, -1)` does.
///
/// # Examples
/// ```
/// use privilege_guard::GroupChange;
///
/// let spool = GroupChange::both(1004).no_supplementary();
/// assert_eq!(spool.to_string(), "real and effective group 1004, no supplementary groups");
/// match spool.assume() {
///     Ok(guard) => guard.restore()?,
///     Err(error) => println!("{error}"), // as an ordinary user: what is missing
/// }
/// # Ok::<(), privilege_guard::Error>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[must_use = "a change does nothing until it is assumed"]
pub struct GroupChange {
    pub(crate) named: Named,
    pub(crate) supplementary: Option<Vec<Gid>>,
    pub(crate) wait: Duration,
}

impl GroupChange {
    /// Names nothing yet.
    ///
    /// # Examples
    /// ```
    /// # use privilege_guard::{GroupChange, GroupIds};
    /// let before = GroupIds::current()?;
    /// GroupChange::new().assume()?.run(|| assert_eq!(GroupIds::current().ok(), Some(before)))?;
    /// # Ok::<(), privilege_guard::Error>(())
    /// ```
    pub fn new() -> Self {
        Self::default()
    }

    /// Names the real and the effective group, as `os.setregid(g, g)`.
    pub fn both(group: impl Into<Gid>) -> Self {
        GroupChange { named: Named::both(group.into()), ..Self::default() }
    }

    /// Names the real group, as `os.setregid(g, -1)`.
    ///
    /// # Examples
    /// ```
    /// # use privilege_guard::GroupChange;
    /// let two = GroupChange::new().real(1004).effective(1005);
    /// assert_eq!(two.to_string(), "real group 1004, effective group 1005");
    /// ```
    pub fn real(mut self, group: impl Into<Gid>) -> Self {
        self.named.real = Some(group.into());
        self
    }

    /// Names the effective group, as `os.setregid(-1, g)`.
    ///
    /// # Examples
    /// ```
    /// # use privilege_guard::{GroupChange, GroupIds};
    /// // Allowed to everybody, here on one thread: what the real group is.
    /// let _guard = GroupChange::new().effective(GroupIds::current()?.real).assume_on_thread()?;
    /// # Ok::<(), privilege_guard::Error>(())
    /// ```
    pub fn effective(mut self, group: impl Into<Gid>) -> Self {
        self.named.effective = Some(group.into());
        self
    }

    /// Names the supplementary groups, in place of all that there are (`setgroups(2)`).
    ///
    /// # Examples
    /// ```
    /// # use privilege_guard::{Gid, GroupChange};
    /// let numbers = GroupChange::both(1004).supplementary([4, 1005]);
    /// let names = GroupChange::both(1004).supplementary([Gid::from_group_name("root")?]);
    /// # assert_eq!(numbers.to_string(), "real and effective group 1004, supplementary groups 4, 1005");
    /// # assert_eq!(names.to_string(), "real and effective group 1004, supplementary groups 0");
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

    /// Names the supplementary groups: none.
    ///
    /// # Examples
    /// ```
    /// # use privilege_guard::GroupChange;
    /// assert_eq!(GroupChange::new().no_supplementary().to_string(), "no supplementary groups");
    /// ```
    pub fn no_supplementary(self) -> Self {
        self.supplementary::<[Gid; 0]>([])
    }

    /// Where a guard of another thread is in the way, asks again for this long before that is [`Error::Busy`]. By default, not at all.
    ///
    /// Nobody queues: where other threads always have guards that are in the way, a process guard may wait in vain.
    ///
    /// # Examples
    /// ```no_run
    /// use privilege_guard::GroupChange;
    /// use std::time::Duration;
    ///
    /// GroupChange::both(1004).wait(Duration::from_secs(1)).assume()?.run(|| println!("no other thread has a guard"))?;
    /// # Ok::<(), privilege_guard::Error>(())
    /// ```
    pub fn wait(mut self, longest: Duration) -> Self {
        self.wait = longest;
        self
    }

    /// Makes the change in the whole process (`setresgid(3)` and `setgroups(3)` of libc).
    ///
    /// # Privileges
    /// CAP_SETGID in the effective set: for supplementary groups, for any group that is not the thread's real, effective or saved one, and for what
    /// could not be undone without it ([`Error::Irreversible`]).
    ///
    /// # Errors
    /// [`Error::InvalidGid`], [`Error::TooManyGroups`], [`Error::NoMapping`] for what nobody may ask for; [`Error::NotPermitted`],
    /// [`Error::Irreversible`], [`Error::Call`], [`Error::Unreadable`] for what this process may not; [`Error::Busy`],
    /// [`Error::InsideThreadGuard`], [`Error::ThreadEnding`] for what may not be now. Nothing changed, or it was undone; where undoing
    /// half a change is refused, the process aborts.
    ///
    /// # Examples
    /// ```no_run
    /// use privilege_guard::GroupChange;
    ///
    /// let _guard = GroupChange::new().effective(1004).no_supplementary().assume()?;
    /// std::fs::write("/srv/spool/1004/report", "as group 1004, and as no other")?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn assume(self) -> Result<GroupGuard<Process>, Error> {
        GroupGuard::begin(self)
    }

    /// Makes the change on the calling thread only (the system calls `setresgid(2)` and `setgroups(2)`); else as [`assume`](Self::assume).
    ///
    /// # Privileges
    /// As for [`assume`](Self::assume).
    ///
    /// # Errors
    /// As for [`assume`](Self::assume), without [`Error::InsideThreadGuard`].
    ///
    /// # Examples
    /// ```no_run
    /// use privilege_guard::GroupChange;
    ///
    /// let as_client = GroupChange::both(1004).supplementary([1005, 1006]);
    /// let content = as_client.assume_on_thread()?.run(|| std::fs::read("/srv/shared/file"))??;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn assume_on_thread(self) -> Result<GroupGuard<Thread>, Error> {
        GroupGuard::begin(self)
    }

    pub(crate) fn check(&self) -> Result<(), Error> {
        let groups = self.supplementary.as_deref().unwrap_or_default();
        if groups.len() > MOST_GROUPS {
            return Err(Error::TooManyGroups);
        }
        let named = [self.named.real, self.named.effective].into_iter().flatten();
        named.chain(groups.iter().copied()).try_for_each(Gid::check)
    }
}

/// As many of them as it takes to see that they are too many.
pub(crate) fn few_groups<I>(groups: I) -> Vec<Gid>
where
    I: IntoIterator,
    I::Item: Into<Gid>,
{
    groups.into_iter().take(MOST_GROUPS + 1).map(Into::into).collect()
}

impl fmt::Display for GroupChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        /// Enough to recognise a list by.
        const SHOWN: usize = 8;

        let Named { real, effective } = self.named;
        match (real, effective) {
            (Some(real), Some(effective)) if real == effective => write!(f, "real and effective group {real}")?,
            (Some(real), Some(effective)) => write!(f, "real group {real}, effective group {effective}")?,
            (Some(real), None) => write!(f, "real group {real}")?,
            (None, Some(effective)) => write!(f, "effective group {effective}")?,
            (None, None) if self.supplementary.is_none() => return f.write_str("nothing"),
            (None, None) => {}
        }
        let Some(groups) = &self.supplementary else { return Ok(()) };
        let comma = if self.named.is_empty() { "" } else { ", " };
        if groups.is_empty() {
            return write!(f, "{comma}no supplementary groups");
        }
        write!(f, "{comma}supplementary groups ")?;
        for (index, group) in groups.iter().take(SHOWN).enumerate() {
            write!(f, "{}{group}", if index == 0 { "" } else { ", " })?;
        }
        match groups.len().saturating_sub(SHOWN) {
            0 => Ok(()),
            more => write!(f, " and {more} more"),
        }
    }
}

/// A change that was made, with what it takes to undo it.
#[derive(Debug)]
pub(crate) struct Applied {
    pub(crate) scope: Kind,
    pub(crate) change: GroupChange,
    pub(crate) original: GroupIds,
    /// `None` where no id was set.
    made: Option<Plan>,
    /// What the supplementary groups were; `None` where they were not set.
    groups: Option<Vec<Gid>>,
    signal: DeathSignal,
    /// `None` where nobody listens.
    pub(crate) since: Option<Instant>,
}

impl Applied {
    /// `awaited`: somebody wants to be told when it ends, and how long it took.
    pub(crate) fn apply(scope: Kind, change: GroupChange, awaited: bool) -> Result<Self, Error> {
        let original = GroupIds::current()?;
        let since = awaited.then(Instant::now);
        let nothing_yet = Applied { scope, change, original, made: None, groups: None, signal: DeathSignal::NONE, since };

        // Everything that can be found out is found out first, while there is nothing to undo.
        let plan = nothing_yet.plan()?;
        let groups = nothing_yet.groups_to_put_back()?;
        let signal = if plan.is_some() { DeathSignal::read()? } else { DeathSignal::NONE };
        // What it is already: whether it may be set at all.
        signal.set().map_err(|errno| nothing_yet.call("prctl(PR_SET_PDEATHSIG)", errno.into()))?;

        let mut half = scopeguard::guard(Applied { signal, ..nothing_yet }, |half| {
            half.undo().unwrap_or_else(|error| last_words::abort(&error));
        });
        if groups.is_some() {
            half.set_groups()?;
            half.groups = groups;
            half.confirm_groups()?;
        }
        if let Some(plan) = plan {
            half.scope.set_ids(plan.set).map_err(|errno| half.refusal("setresgid", errno))?;
            half.made = Some(plan);
            half.confirm_ids(&plan, original)?;
        }
        Ok(ScopeGuard::into_inner(half))
    }

    /// Sets the ids that the change named to another group, with one setting call, or none where it is that group already.
    pub(crate) fn switch(&mut self, group: Gid) -> Result<(), Error> {
        group.check()?;
        let (Some(from), Some(now)) = (self.change.named.group(), self.made) else {
            return Err(Error::Ambiguous { asked: self.change.clone() });
        };
        if group == from {
            return Ok(());
        }
        let before = self.change.named;
        self.change.named = before.with_group(group);
        let switched = self.switch_ids(&now);
        match switched {
            Ok(plan) => self.made = Some(plan),
            Err(_) => self.change.named = before,
        }
        switched.map(drop)
    }

    fn switch_ids(&self, now: &Plan) -> Result<Plan, Error> {
        let next = self.plan_ids()?;
        let saved = Some(next.inside.saved).filter(|&saved| saved != now.inside.saved);
        self.scope.set_ids(ResGid { saved, ..next.set }).map_err(|errno| self.refusal("setresgid", errno))?;
        self.confirm_ids(&next, now.inside).inspect_err(|_| {
            let back = ResGid { saved: saved.and(Some(now.inside.saved)), ..now.set };
            let undone = self.scope.set_ids(back).map_err(io::Error::from);
            let undone = undone.and_then(|()| self.signal.set_and_confirm());
            let undone = undone.and_then(|()| reads_as(now.inside, next.inside));
            undone.unwrap_or_else(|source| last_words::abort(&self.not_restored("setresgid", source)));
        })?;
        Ok(next)
    }

    /// Sets all that a permanent drop sets of the groups: all ids, and the supplementary groups where they are given.
    ///
    /// Nothing asks for a way back; but as long as there is one, undoing the change undoes this too.
    pub(crate) fn take_on_for_good(&mut self, group: Gid, supplementary: Option<Vec<Gid>>) -> Result<(), Error> {
        self.change = GroupChange { supplementary, ..GroupChange::both(group) };
        if self.change.supplementary.is_some() {
            let before = supplementary_groups()?;
            self.set_groups()?;
            self.groups.get_or_insert(before);
            self.confirm_groups()?;
        }
        if self.made.is_none() {
            self.signal = DeathSignal::read()?;
        }
        self.signal.set().map_err(|errno| self.call("prctl(PR_SET_PDEATHSIG)", errno.into()))?;
        let before = self.ids_now();
        let all = ResGid { real: Some(group), effective: Some(group), saved: Some(group) };
        self.scope.set_ids(all).map_err(|errno| self.refusal("setresgid", errno))?;
        let inside = GroupIds { real: group, effective: group, saved: group, filesystem: group };
        let undo = ResGid::back_to(self.original, nameable);
        let plan = Plan { set: all, inside, undo };
        self.made = Some(plan);
        self.confirm_ids(&plan, before)
    }

    pub(crate) fn set_signal_again(&self) -> io::Result<()> {
        self.signal.set_and_confirm()
    }

    fn plan(&self) -> Result<Option<Plan>, Error> {
        if self.change.named.is_empty() { Ok(None) } else { self.plan_ids().map(Some) }
    }

    fn plan_ids(&self) -> Result<Plan, Error> {
        let ids = self.original;
        let opaque = [ids.real, ids.effective, ids.saved, ids.filesystem].into_iter().any(|gid| !nameable(gid));
        let (plan, needs) = plan(ids, self.change.named, opaque).map_err(|_| self.irreversible(NoReturn::Unmapped))?;
        if needs == Needs::Returning && !scope::may_use_setgid()? {
            return Err(self.irreversible(NoReturn::WouldBeLost));
        }
        Ok(plan)
    }

    /// The supplementary groups, where they have to be set.
    fn groups_to_put_back(&self) -> Result<Option<Vec<Gid>>, Error> {
        let Some(wanted) = &self.change.supplementary else { return Ok(None) };
        let groups = supplementary_groups()?;
        if groups.iter().any(|&gid| !nameable(gid)) {
            return Err(self.irreversible(NoReturn::Unmapped));
        }
        // The call may be refused even where it has nothing to change.
        let already = sorted(wanted) == sorted(&groups) && (namespace::denies_setgroups() || !scope::may_use_setgid()?);
        Ok((!already).then_some(groups))
    }

    fn set_groups(&self) -> Result<(), Error> {
        let wanted = self.change.supplementary.as_deref().unwrap_or_default();
        self.scope.set_groups(wanted).map_err(|errno| self.refusal("setgroups", errno))
    }

    fn confirm_groups(&self) -> Result<(), Error> {
        let wanted = self.change.supplementary.as_deref().unwrap_or_default();
        groups_read_as(wanted).map_err(|source| self.call("setgroups", source))
    }

    fn confirm_ids(&self, plan: &Plan, before: GroupIds) -> Result<(), Error> {
        let refused = |call, source| Error::Call { call, asked: self.change.clone(), ids: before, source };
        reads_as(plan.inside, before).map_err(|source| refused("setresgid", source))?;
        self.signal.set_and_confirm().map_err(|source| refused("prctl(PR_SET_PDEATHSIG)", source))
    }

    fn refusal(&self, call: &'static str, errno: Errno) -> Error {
        let (asked, ids) = (self.change.clone(), self.ids_now());
        match errno {
            Errno::EPERM => Error::NotPermitted { asked, ids, reason: denial(call) },
            Errno::EINVAL => Error::NoMapping { asked, ids },
            errno => self.call(call, errno.into()),
        }
    }

    fn call(&self, call: &'static str, source: io::Error) -> Error {
        Error::Call { call, asked: self.change.clone(), ids: self.ids_now(), source }
    }

    fn irreversible(&self, reason: NoReturn) -> Error {
        Error::Irreversible { asked: self.change.clone(), ids: self.ids_now(), reason }
    }

    fn not_restored(&self, call: &'static str, source: io::Error) -> Error {
        Error::NotRestored { original: self.original, call, source }
    }

    fn ids_now(&self) -> GroupIds {
        self.made.map_or(self.original, |plan| plan.inside)
    }
}

impl Undo for Applied {
    fn scope(&self) -> Kind {
        self.scope
    }

    fn is_awaited(&self) -> bool {
        self.since.is_some()
    }

    fn tell(&self) {
        event::ended(self);
    }

    /// In reverse: the ids, what hangs on them, the supplementary groups.
    fn undo(&self) -> Result<(), Error> {
        if let Some(plan) = &self.made {
            let refused = |source: io::Error| self.not_restored("setresgid", source);
            self.scope.set_ids(plan.undo).map_err(|errno| refused(errno.into()))?;
            if self.original.filesystem != self.original.effective {
                scope::set_filesystem_id(self.original.filesystem);
            }
            reads_as(self.original, plan.inside).map_err(refused)?;
            self.signal.set_and_confirm().map_err(|source| self.not_restored("prctl(PR_SET_PDEATHSIG)", source))?;
        }
        if let Some(groups) = &self.groups {
            let refused = |source: io::Error| self.not_restored("setgroups", source);
            if groups.iter().any(|&gid| !nameable(gid)) {
                return Err(refused(Errno::EINVAL.into()));
            }
            self.scope.set_groups(groups).map_err(|errno| refused(errno.into()))?;
            groups_read_as(groups).map_err(refused)?;
        }
        Ok(())
    }
}

/// Reads back what a `setresgid` should have done.
///
/// It sets all or nothing, so where it had to move the effective id, that one tells of all, and is the cheapest to read.
fn reads_as(expected: GroupIds, before: GroupIds) -> io::Result<()> {
    let tells = expected.effective != before.effective && expected.filesystem == expected.effective;
    if (tells && scope::read_effective_id() == expected.effective) || GroupIds::current()? == expected { Ok(()) } else { Err(not_done()) }
}

fn groups_read_as(expected: &[Gid]) -> io::Result<()> {
    if sorted(&scope::read_groups()?) == sorted(expected) { Ok(()) } else { Err(not_done()) }
}

/// The kernel keeps the list sorted.
pub(crate) fn sorted(groups: &[Gid]) -> Vec<Gid> {
    let mut groups = groups.to_vec();
    groups.sort_unstable();
    groups
}

fn denial(call: &str) -> Denial {
    let Ok(sets) = scope::read_capabilities() else { return Denial::Sandbox };
    let setgid = rustix::thread::CapabilitySet::SETGID;
    match (sets.effective.contains(setgid), sets.permitted.contains(setgid)) {
        (true, _) if call == "setgroups" && namespace::denies_setgroups() => Denial::SetgroupsDenied,
        (true, _) => Denial::Sandbox,
        (false, true) => Denial::NotEffective,
        (false, false) => Denial::NoCapability,
    }
}

/// The calling thread's parent-death signal (`PR_SET_PDEATHSIG`), which the kernel clears at every change of the effective or
/// filesystem group (commit_creds in kernel/cred.c).
#[derive(Clone, Copy, Debug)]
struct DeathSignal(Option<(Signal, u32)>);

impl DeathSignal {
    const NONE: DeathSignal = DeathSignal(None);

    fn read() -> Result<Self, Error> {
        Ok(DeathSignal(scope::read_parent_death_signal()?.map(|signal| (signal, std::process::id()))))
    }

    /// What has to be there: nothing in a forked child, which would be told of the death of a parent that is not its own.
    fn here(self) -> Option<Signal> {
        self.0.filter(|&(_, process)| process == std::process::id()).map(|(signal, _)| signal)
    }

    fn set(self) -> Result<(), Errno> {
        self.here().map_or(Ok(()), scope::set_parent_death_signal)
    }

    fn set_and_confirm(self) -> io::Result<()> {
        let Some(signal) = self.here() else { return Ok(()) };
        scope::set_parent_death_signal(signal)?;
        if scope::read_parent_death_signal()? == Some(signal) { Ok(()) } else { Err(not_done()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_says_what_it_asks_for() {
        for (change, words) in [
            (GroupChange::new(), "nothing"),
            (GroupChange::new().real(3), "real group 3"),
            (GroupChange::both(3).effective(4), "real group 3, effective group 4"),
            (GroupChange::new().no_supplementary(), "no supplementary groups"),
            (GroupChange::new().effective(4).supplementary([1, 2]), "effective group 4, supplementary groups 1, 2"),
            (GroupChange::new().supplementary(1..=10), "supplementary groups 1, 2, 3, 4, 5, 6, 7, 8 and 2 more"),
        ] {
            assert_eq!(change.to_string(), words);
        }
    }

    #[test]
    fn what_nobody_may_ask_for_is_refused() {
        for change in [
            GroupChange::both(u32::MAX),
            GroupChange::new().real(u32::MAX),
            GroupChange::new().effective(u32::MAX),
            GroupChange::both(1).supplementary([1, u32::MAX]),
        ] {
            assert!(matches!(change.check(), Err(Error::InvalidGid)), "{change}");
        }
        assert!(GroupChange::new().supplementary(0..65536).check().is_ok());
        assert!(matches!(GroupChange::new().supplementary(0..65537).check(), Err(Error::TooManyGroups)));
        assert!(matches!(GroupChange::new().supplementary(0..).check(), Err(Error::TooManyGroups)));
    }
}

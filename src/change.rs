//! The requested changes: values and their builders.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::error::Error;
use crate::identity::{GroupList, Identity, NGROUPS_MAX, collect_bounded};
use crate::ids::{Gid, Id, Uid};

/// The real and the effective id of one kind that a change requests. `None` is left unchanged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RequestedIds<I> {
    pub(crate) real: Option<I>,
    pub(crate) effective: Option<I>,
}

impl<I> Default for RequestedIds<I> {
    fn default() -> Self {
        RequestedIds {
            real: None,
            effective: None,
        }
    }
}

impl<I: Id> RequestedIds<I> {
    pub(crate) fn both(id: I) -> Self {
        RequestedIds {
            real: Some(id),
            effective: Some(id),
        }
    }

    pub(crate) fn effective(id: I) -> Self {
        RequestedIds {
            real: None,
            effective: Some(id),
        }
    }

    pub(crate) fn is_empty(self) -> bool {
        self.real.is_none() && self.effective.is_none()
    }

    /// The one id that is requested, if exactly one is.
    pub(crate) fn single(self) -> Option<I> {
        match (self.real, self.effective) {
            (Some(real), Some(effective)) => (real == effective).then_some(real),
            (one, other) => one.or(other),
        }
    }

    /// The same kinds of id, set to another one.
    pub(crate) fn with(self, id: I) -> Self {
        RequestedIds {
            real: self.real.and(Some(id)),
            effective: self.effective.and(Some(id)),
        }
    }

    fn contains(self, id: I) -> bool {
        self.real == Some(id) || self.effective == Some(id)
    }
}

/// A change of identity, of any kind: the request that all builders make and all guards carry out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Change {
    pub(crate) user: RequestedIds<Uid>,
    pub(crate) group: RequestedIds<Gid>,
    pub(crate) supplementary: Option<Arc<[Gid]>>,
    pub(crate) wait: Duration,
}

impl Change {
    pub(crate) fn is_empty(&self) -> bool {
        self.user.is_empty() && self.group.is_empty() && self.supplementary.is_none()
    }

    /// Returns an error for a request that no thread can make.
    pub(crate) fn validate(&self) -> Result<(), Error> {
        let groups = self.supplementary.as_deref().unwrap_or_default();
        if self.user.contains(Uid::UNCHANGED) {
            return Err(Error::InvalidUid);
        }
        if groups.len() > NGROUPS_MAX {
            return Err(Error::TooManyGroups);
        }
        if self.group.contains(Gid::UNCHANGED) || groups.contains(&Gid::UNCHANGED) {
            return Err(Error::InvalidGid);
        }
        Ok(())
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_empty() {
            return f.write_str("nothing");
        }
        let mut separator = "";
        let mut item = |f: &mut fmt::Formatter<'_>, text: fmt::Arguments<'_>| {
            write!(f, "{separator}{text}")?;
            separator = ", ";
            Ok(())
        };
        fmt_ids(f, &mut item, "user", self.user)?;
        fmt_ids(f, &mut item, "group", self.group)?;
        match self.supplementary.as_deref() {
            None => Ok(()),
            Some([]) => item(f, format_args!("no supplementary groups")),
            Some(groups) => item(
                f,
                format_args!("supplementary groups {}", GroupList(groups)),
            ),
        }
    }
}

fn fmt_ids<I: Id>(
    f: &mut fmt::Formatter<'_>,
    item: &mut impl FnMut(&mut fmt::Formatter<'_>, fmt::Arguments<'_>) -> fmt::Result,
    noun: &str,
    RequestedIds { real, effective }: RequestedIds<I>,
) -> fmt::Result {
    match (real, effective) {
        (Some(real), Some(effective)) if real == effective => {
            return item(f, format_args!("real and effective {noun} {real}"));
        }
        _ => {}
    }
    real.map_or(Ok(()), |id| item(f, format_args!("real {noun} {id}")))?;
    effective.map_or(Ok(()), |id| item(f, format_args!("effective {noun} {id}")))
}

/// A change of the real group, the effective group and the supplementary groups, in any
/// combination.
///
/// Ids that are not set are left unchanged. An empty change does nothing, like `os.setregid(-1,
/// -1)`.
///
/// # Examples
/// ```
/// use privilege_guard::GroupChange;
///
/// let spool = GroupChange::both(1004).no_supplementary();
/// assert_eq!(spool.to_string(), "real and effective group 1004, no supplementary groups");
/// match spool.assume() {
///     Ok(guard) => guard.run(|| println!("group 1004")),
///     Err(error) => println!("{error}"), // as an ordinary user: which privilege is missing
/// }
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[must_use = "a change does nothing until it is assumed"]
pub struct GroupChange {
    pub(crate) change: Change,
}

impl GroupChange {
    /// Creates a change that changes nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Creates a change of the real and the effective group, like `os.setregid(g, g)`.
    #[doc(alias = "setregid")]
    pub fn both(group: impl Into<Gid>) -> Self {
        let group = RequestedIds::both(group.into());
        GroupChange {
            change: Change {
                group,
                ..Change::default()
            },
        }
    }

    /// Sets the real group, like `os.setregid(g, -1)`.
    ///
    /// # Examples
    /// ```
    /// # use privilege_guard::GroupChange;
    /// let two = GroupChange::new().real(1004).effective(1005);
    /// assert_eq!(two.to_string(), "real group 1004, effective group 1005");
    /// ```
    pub fn real(mut self, group: impl Into<Gid>) -> Self {
        self.change.group.real = Some(group.into());
        self
    }

    /// Sets the effective group, like `os.setregid(-1, g)`.
    ///
    /// # Examples
    /// ```
    /// # use privilege_guard::{GroupChange, GroupIds};
    /// // Every process may set its effective group to its real group.
    /// let _guard = GroupChange::new().effective(GroupIds::current()?.real).assume_on_thread()?;
    /// # Ok::<(), privilege_guard::Error>(())
    /// ```
    #[doc(alias = "setegid")]
    pub fn effective(mut self, group: impl Into<Gid>) -> Self {
        self.change.group.effective = Some(group.into());
        self
    }

    /// Sets the supplementary groups, replacing all current ones (`setgroups(2)`).
    ///
    /// # Examples
    /// ```
    /// # use privilege_guard::{Gid, GroupChange};
    /// let numbers = GroupChange::both(1004).supplementary([4, 1005]);
    /// let names = GroupChange::both(1004).supplementary([Gid::from_group_name("root")?]);
    /// # assert_eq!(numbers.to_string(), "real and effective group 1004, supplementary groups 4, 1005");
    /// # assert_eq!(names.to_string(), "real and effective group 1004, supplementary groups 0");
    /// # Ok::<(), privilege_guard::LookupError>(())
    /// ```
    #[doc(alias = "setgroups")]
    pub fn supplementary<I>(mut self, groups: I) -> Self
    where
        I: IntoIterator,
        I::Item: Into<Gid>,
    {
        self.change.supplementary = Some(collect_bounded(groups));
        self
    }

    /// Removes all supplementary groups.
    ///
    /// # Examples
    /// ```
    /// # use privilege_guard::GroupChange;
    /// assert_eq!(GroupChange::new().no_supplementary().to_string(), "no supplementary groups");
    /// ```
    pub fn no_supplementary(self) -> Self {
        self.supplementary::<[Gid; 0]>([])
    }

    /// Sets how long to retry if another thread's guard conflicts, before returning
    /// [`Error::Busy`].
    ///
    /// The default is zero: no retry. Waiting is not fair: if other threads always hold conflicting
    /// guards, a process guard might never be granted.
    ///
    /// # Examples
    /// ```no_run
    /// use privilege_guard::GroupChange;
    /// use std::time::Duration;
    ///
    /// let change = GroupChange::both(1004).wait(Duration::from_secs(1));
    /// change.assume()?.run(|| println!("no other thread holds a guard"));
    /// # Ok::<(), privilege_guard::Error>(())
    /// ```
    pub fn wait(mut self, timeout: Duration) -> Self {
        self.change.wait = timeout;
        self
    }
}

/// A change of the real and the effective user, in any combination.
///
/// Ids that are not set are left unchanged. The capability sets follow the kernel's rules for user
/// 0 (`capabilities(7)`), and the guard restores them exactly.
///
/// # Examples
/// ```
/// use privilege_guard::UserChange;
///
/// assert_eq!(UserChange::new().effective(1000).to_string(), "effective user 1000");
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[must_use = "a change does nothing until it is assumed"]
pub struct UserChange {
    pub(crate) change: Change,
}

impl UserChange {
    /// Creates a change that changes nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Creates a change of the real and the effective user, like `os.setreuid(u, u)`.
    ///
    /// See the warning at
    /// [`UserGuard::assume_real_and_effective`](crate::UserGuard::assume_real_and_effective).
    #[doc(alias = "setreuid")]
    pub fn both(user: impl Into<Uid>) -> Self {
        let user = RequestedIds::both(user.into());
        UserChange {
            change: Change {
                user,
                ..Change::default()
            },
        }
    }

    /// Sets the real user, like `os.setreuid(u, -1)`.
    pub fn real(mut self, user: impl Into<Uid>) -> Self {
        self.change.user.real = Some(user.into());
        self
    }

    /// Sets the effective user, like `os.setreuid(-1, u)`.
    #[doc(alias = "seteuid")]
    pub fn effective(mut self, user: impl Into<Uid>) -> Self {
        self.change.user.effective = Some(user.into());
        self
    }

    /// Sets how long to retry if another thread's guard conflicts; see [`GroupChange::wait`].
    pub fn wait(mut self, timeout: Duration) -> Self {
        self.change.wait = timeout;
        self
    }
}

/// A change to an [`Identity`]: user, group and supplementary groups together.
///
/// # Examples
/// ```
/// use privilege_guard::{Identity, IdentityChange};
///
/// let client = Identity::new(1000, 1000);
/// let change = IdentityChange::effective(&client).keep_supplementary();
/// assert_eq!(change.to_string(), "effective user 1000, effective group 1000");
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use = "a change does nothing until it is assumed"]
pub struct IdentityChange {
    pub(crate) change: Change,
}

impl IdentityChange {
    /// Creates a change of the effective user and group, and of the supplementary groups.
    pub fn effective(identity: &Identity) -> Self {
        Self::to(
            identity,
            RequestedIds::effective(identity.user()),
            RequestedIds::effective(identity.group()),
        )
    }

    /// Creates a change of the real and effective user and group, and of the supplementary groups.
    ///
    /// See the warning at
    /// [`UserGuard::assume_real_and_effective`](crate::UserGuard::assume_real_and_effective).
    pub fn both(identity: &Identity) -> Self {
        Self::to(
            identity,
            RequestedIds::both(identity.user()),
            RequestedIds::both(identity.group()),
        )
    }

    fn to(identity: &Identity, user: RequestedIds<Uid>, group: RequestedIds<Gid>) -> Self {
        let supplementary = Some(identity.shared_groups());
        IdentityChange {
            change: Change {
                user,
                group,
                supplementary,
                wait: Duration::ZERO,
            },
        }
    }

    /// Leaves the process's own supplementary groups unchanged.
    pub fn keep_supplementary(mut self) -> Self {
        self.change.supplementary = None;
        self
    }

    /// Sets how long to retry if another thread's guard conflicts; see [`GroupChange::wait`].
    pub fn wait(mut self, timeout: Duration) -> Self {
        self.change.wait = timeout;
        self
    }
}

macro_rules! display_change {
    ($($name:ident),*) => {
        $(impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.change.fmt(f)
            }
        })*
    };
}

display_change!(GroupChange, UserChange, IdentityChange);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_displays_its_requests() {
        for (change, words) in [
            (GroupChange::new(), "nothing"),
            (GroupChange::new().real(3), "real group 3"),
            (
                GroupChange::both(3).effective(4),
                "real group 3, effective group 4",
            ),
            (
                GroupChange::new().no_supplementary(),
                "no supplementary groups",
            ),
            (
                GroupChange::new().effective(4).supplementary([1, 2]),
                "effective group 4, supplementary groups 1, 2",
            ),
            (
                GroupChange::new().supplementary(1..=10),
                "supplementary groups 1, 2, 3, 4, 5, 6, 7, 8 and 2 more",
            ),
        ] {
            assert_eq!(change.to_string(), words);
        }
        let client = Identity::new(5, 6).supplementary([7]);
        let words = "real and effective user 5, real and effective group 6, supplementary groups 7";
        assert_eq!(IdentityChange::both(&client).to_string(), words);
        assert_eq!(UserChange::new().real(5).to_string(), "real user 5");
    }

    #[test]
    fn impossible_requests_are_errors() {
        for change in [
            GroupChange::both(u32::MAX),
            GroupChange::new().real(u32::MAX),
            GroupChange::new().effective(u32::MAX),
            GroupChange::both(1).supplementary([1, u32::MAX]),
        ] {
            assert!(
                matches!(change.change.validate(), Err(Error::InvalidGid)),
                "{change}"
            );
        }
        let validate = |change: GroupChange| change.change.validate();
        assert!(validate(GroupChange::new().supplementary(0..65536)).is_ok());
        assert!(matches!(
            validate(GroupChange::new().supplementary(0..65537)),
            Err(Error::TooManyGroups)
        ));
        assert!(matches!(
            validate(GroupChange::new().supplementary(0..)),
            Err(Error::TooManyGroups)
        ));
        let user = UserChange::new().effective(u32::MAX).change;
        assert!(matches!(user.validate(), Err(Error::InvalidUid)));
    }
}

//! A user, a group and supplementary groups as one value.

use std::fmt;
use std::sync::Arc;

use crate::ids::{Gid, Uid};

/// An identity: a user, a group and supplementary groups.
///
/// Create identities before guards: the functions that look names up read files and call into NSS
/// modules, which must not happen under another identity.
///
/// `FromStr` accepts a user (`"alice"`, or `"1000"` if an account has this ID), whose group and
/// supplementary groups are then the account's, or a user and a group (`"alice:staff"`,
/// `"1000:1000"`, `"alice:1000"`), without supplementary groups.
/// The string is split at the first `:`. A field of digits only is a number, never a name.
///
/// # Examples
/// ```
/// use privilege_guard::Identity;
///
/// let client = Identity::new(1000, 1000).supplementary([27, 100]);
/// assert_eq!(client.to_string(), "user 1000, group 1000, supplementary groups 27, 100");
///
/// let daemon: Identity = "997:995".parse()?;
/// assert_eq!(daemon, Identity::new(997, 995));
///
/// let root = Identity::of_account("root")?;
/// assert_eq!(root.user().as_raw(), 0);
/// # Ok::<(), privilege_guard::LookupError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Identity {
    user: Uid,
    group: Gid,
    // Shared, so that a guard that changes no groups allocates nothing.
    supplementary: Arc<[Gid]>,
}

impl Identity {
    /// Creates an identity without supplementary groups.
    pub fn new(user: impl Into<Uid>, group: impl Into<Gid>) -> Self {
        Identity {
            user: user.into(),
            group: group.into(),
            supplementary: Arc::default(),
        }
    }

    /// Sets the supplementary groups.
    #[must_use]
    pub fn supplementary<I>(mut self, groups: I) -> Self
    where
        I: IntoIterator,
        I::Item: Into<Gid>,
    {
        self.supplementary = collect_bounded(groups);
        self
    }

    /// Returns the user.
    pub fn user(&self) -> Uid {
        self.user
    }

    /// Returns the group.
    pub fn group(&self) -> Gid {
        self.group
    }

    /// Returns the supplementary groups, in the order in which they were given.
    pub fn supplementary_groups(&self) -> &[Gid] {
        &self.supplementary
    }

    pub(crate) fn shared_groups(&self) -> Arc<[Gid]> {
        Arc::clone(&self.supplementary)
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "user {}, group {}, ", self.user, self.group)?;
        match &self.supplementary[..] {
            [] => f.write_str("no supplementary groups"),
            groups => write!(f, "supplementary groups {}", GroupList(groups)),
        }
    }
}

/// The most supplementary groups that Linux accepts (`NGROUPS_MAX`, include/uapi/linux/limits.h).
pub(crate) const NGROUPS_MAX: usize = 65536;

/// Collects at most `NGROUPS_MAX + 1` groups: enough to detect an oversized list without draining
/// an unbounded iterator.
pub(crate) fn collect_bounded<I>(groups: I) -> Arc<[Gid]>
where
    I: IntoIterator,
    I::Item: Into<Gid>,
{
    groups
        .into_iter()
        .take(NGROUPS_MAX + 1)
        .map(Into::into)
        .collect()
}

/// Returns the groups in the order in which the kernel keeps them.
pub(crate) fn sorted(groups: &[Gid]) -> Vec<Gid> {
    let mut groups = groups.to_vec();
    groups.sort_unstable();
    groups
}

/// The beginning of a list of groups, enough to recognise it.
pub(crate) struct GroupList<'a>(pub(crate) &'a [Gid]);

impl fmt::Display for GroupList<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const MAX_DISPLAYED: usize = 8;

        for (index, group) in self.0.iter().take(MAX_DISPLAYED).enumerate() {
            write!(f, "{}{group}", if index == 0 { "" } else { ", " })?;
        }
        match self.0.len().saturating_sub(MAX_DISPLAYED) {
            0 => Ok(()),
            more => write!(f, " and {more} more"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn displays_for_people() {
        let many = Identity::new(1, 2).supplementary(1..=10);
        assert_eq!(
            many.to_string(),
            "user 1, group 2, supplementary groups 1, 2, 3, 4, 5, 6, 7, 8 and 2 more"
        );
        assert_eq!(
            Identity::new(1, 2).to_string(),
            "user 1, group 2, no supplementary groups"
        );
    }
}

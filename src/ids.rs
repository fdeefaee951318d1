//! The kernel's words: a group ID, and the four that every thread has.

use std::fmt;
use std::str::FromStr;

use nix::unistd;

use crate::error::Error;
use crate::scope;

/// A group ID (`gid_t`), also one that no group has; not checked for a mapping in the user namespace until the kernel is asked.
///
/// `u32` converts into it, so a number can be written bare where one is asked for. `(gid_t)-1`, which is [`u32::MAX`],
/// means "leave alone" to the kernel; it can be held here, but a change to it is [`Error::InvalidGid`].
///
/// # Examples
/// ```
/// use privilege_guard::Gid;
///
/// let spool: Gid = "1004".parse()?;
/// assert_eq!(spool, Gid::from(1004));
/// assert_eq!(Gid::from_group_name("root")?, Gid::from_raw(0));
/// assert!("-1".parse::<Gid>().is_err());
/// # Ok::<(), privilege_guard::Error>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Gid(u32);

impl Gid {
    /// The value that the setting calls read as "leave alone".
    pub(crate) const UNCHANGED: Gid = Gid(u32::MAX);

    /// What the kernel shows for an id that has no mapping in the user namespace (`kernel.overflowgid`, by default).
    pub(crate) const OVERFLOW: Gid = Gid(65534);

    /// Whether it can be set at all.
    pub(crate) fn check(self) -> Result<(), Error> {
        if self == Gid::UNCHANGED { Err(Error::InvalidGid) } else { Ok(()) }
    }

    /// The group ID with this number.
    ///
    /// # Examples
    /// ```
    /// # use privilege_guard::Gid;
    /// const SPOOL: Gid = Gid::from_raw(1004);
    /// assert_eq!(SPOOL.as_raw(), 1004);
    /// ```
    pub const fn from_raw(raw: u32) -> Self {
        Gid(raw)
    }

    /// The number.
    pub const fn as_raw(self) -> u32 {
        self.0
    }

    /// The group ID of the group with this name, from the system's group database (`getgrnam_r(3)`); numbers are not names.
    ///
    /// # Errors
    /// [`Error::UnknownGroup`] where no group has the name, [`Error::Lookup`] where the database could not be asked.
    ///
    /// # Examples
    /// ```
    /// # use privilege_guard::{Error, Gid};
    /// assert_eq!(Gid::from_group_name("root")?.as_raw(), 0);
    /// assert!(matches!(Gid::from_group_name("no-such-group"), Err(Error::UnknownGroup { .. })));
    /// # Ok::<(), Error>(())
    /// ```
    pub fn from_group_name(name: &str) -> Result<Self, Error> {
        match unistd::Group::from_name(name) {
            Ok(Some(group)) => Ok(Gid(group.gid.as_raw())),
            Ok(None) => Err(Error::UnknownGroup { name: name.into() }),
            Err(errno) => Err(Error::Lookup { name: name.into(), source: errno.into() }),
        }
    }
}

// From no other integer: a second one would make bare literals ambiguous.
impl From<u32> for Gid {
    fn from(raw: u32) -> Self {
        Gid(raw)
    }
}

#[cfg(feature = "nix")]
impl From<unistd::Gid> for Gid {
    fn from(gid: unistd::Gid) -> Self {
        Gid(gid.as_raw())
    }
}

#[cfg(feature = "nix")]
impl From<Gid> for unistd::Gid {
    fn from(gid: Gid) -> Self {
        unistd::Gid::from_raw(gid.0)
    }
}

/// Decimal digits only: no sign, no space, and not [`u32::MAX`]; else [`Error::NotAGid`].
impl FromStr for Gid {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        match text.parse() {
            Ok(raw) if digits && raw != u32::MAX => Ok(Gid(raw)),
            _ => Err(Error::NotAGid { text: text.into() }),
        }
    }
}

impl fmt::Display for Gid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for Gid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Gid({})", self.0)
    }
}

/// The four group IDs of a thread, as the kernel keeps them (`credentials(7)`); the supplementary groups stand beside them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct GroupIds {
    /// The real group ID: whose process it is.
    pub real: Gid,
    /// The effective group ID: what `setegid` sets, and what other processes are told; the filesystem group ID follows it.
    pub effective: Gid,
    /// The saved set-group-ID: what the effective group may be set back to.
    pub saved: Gid,
    /// The filesystem group ID: what permission checks and the group of new files go by.
    pub filesystem: Gid,
}

impl GroupIds {
    /// Reads the calling thread's ids (`getresgid(2)`, and `setfsgid(-1)`, which changes nothing).
    ///
    /// # Errors
    /// [`Error::Unreadable`] where one of the calls is refused, as by a seccomp filter.
    ///
    /// # Examples
    /// ```
    /// let ids = privilege_guard::GroupIds::current()?;
    /// println!("started as group {} for group {}", ids.effective, ids.real);
    /// # Ok::<(), privilege_guard::Error>(())
    /// ```
    pub fn current() -> Result<Self, Error> {
        let (real, effective, saved) = scope::read_ids()?;
        Ok(GroupIds { real, effective, saved, filesystem: scope::read_filesystem_id()? })
    }
}

impl fmt::Display for GroupIds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let GroupIds { real, effective, saved, filesystem } = self;
        write!(f, "real {real}, effective {effective}, saved {saved}, filesystem {filesystem}")
    }
}

/// Reads the calling thread's supplementary groups (`getgroups(2)`).
///
/// # Errors
/// [`Error::Unreadable`] where the call is refused.
///
/// # Examples
/// ```
/// let groups = privilege_guard::supplementary_groups()?;
/// println!("{} supplementary groups", groups.len());
/// # Ok::<(), privilege_guard::Error>(())
/// ```
pub fn supplementary_groups() -> Result<Vec<Gid>, Error> {
    scope::read_groups()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_decimal_numbers_in_range_are_read() {
        for (text, gid) in [("0", 0), ("1004", 1004), ("0007", 7), ("4294967294", u32::MAX - 1)] {
            assert_eq!(text.parse::<Gid>().unwrap(), Gid(gid), "{text}");
        }
        for text in ["", "-1", "+1", "-0", " 1", "1 ", "0x10", "1.0", "adm", "4294967295", "4294967296", "99999999999999999999", "١"] {
            assert!(matches!(text.parse::<Gid>(), Err(Error::NotAGid { .. })), "{text}");
        }
    }

    #[test]
    fn bare_literals_are_group_ids() {
        fn take(gid: impl Into<Gid>) -> Gid {
            gid.into()
        }
        assert_eq!(take(1004).as_raw(), 1004);
    }

    #[cfg(feature = "nix")]
    #[test]
    fn nix_ids_convert_both_ways() {
        let theirs = unistd::Gid::from_raw(7);
        assert_eq!(unistd::Gid::from(Gid::from(theirs)), theirs);
    }
}

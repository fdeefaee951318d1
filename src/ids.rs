//! Group and user ids, as values.

use std::fmt;

/// The common parts of group and user ids.
pub(crate) trait Id: Copy + Eq + Ord + fmt::Display + fmt::Debug + 'static {
    /// The value that the calls which set ids read as "leave unchanged": `(gid_t)-1`, `(uid_t)-1`.
    const UNCHANGED: Self;

    /// The number that the kernel shows for an id that has no mapping in the user namespace
    /// (the default of `kernel.overflowgid` and `kernel.overflowuid`).
    const OVERFLOW: Self;

    fn raw(self) -> u32;
}

macro_rules! id {
    ($(#[$docs:meta])* $name:ident, $noun:literal) => {
        $(#[$docs])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(u32);

        impl $name {
            #[doc = concat!("Returns the ", $noun, " ID with this number.")]
            pub const fn from_raw(raw: u32) -> Self {
                $name(raw)
            }

            /// Returns the number.
            pub const fn as_raw(self) -> u32 {
                self.0
            }
        }

        impl Id for $name {
            const UNCHANGED: Self = $name(u32::MAX);
            const OVERFLOW: Self = $name(65534);

            fn raw(self) -> u32 {
                self.0
            }
        }

        // From no other integer type: a second one would make bare literals ambiguous.
        impl From<u32> for $name {
            fn from(raw: u32) -> Self {
                $name(raw)
            }
        }

        #[cfg(feature = "nix")]
        impl From<nix::unistd::$name> for $name {
            fn from(id: nix::unistd::$name) -> Self {
                $name(id.as_raw())
            }
        }

        #[cfg(feature = "nix")]
        impl From<$name> for nix::unistd::$name {
            fn from(id: $name) -> Self {
                nix::unistd::$name::from_raw(id.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self.0)
            }
        }
    };
}

id! {
    /// A group ID (`gid_t`). It need not belong to a named group.
    ///
    /// `u32` converts into it, so functions that take a group accept a bare number. `(gid_t)-1`,
    /// which is [`u32::MAX`], means "leave unchanged" to the kernel. A `Gid` can hold it, but a
    /// change to it returns [`Error::InvalidGid`](crate::Error::InvalidGid). The kernel checks
    /// whether the ID is mapped in the user namespace when it is used.
    ///
    /// # Examples
    /// ```
    /// use privilege_guard::{Gid, LookupError};
    ///
    /// const SPOOL: Gid = Gid::from_raw(1004);
    /// assert_eq!("1004".parse::<Gid>()?, SPOOL);
    /// assert_eq!(Gid::from_group_name("root")?.as_raw(), 0);
    /// assert!("-1".parse::<Gid>().is_err());
    /// # Ok::<(), LookupError>(())
    /// ```
    Gid, "group"
}

id! {
    /// A user ID (`uid_t`). It need not belong to a named user.
    ///
    /// `u32` converts into it, so functions that take a user accept a bare number. `(uid_t)-1`,
    /// which is [`u32::MAX`], means "leave unchanged" to the kernel. A `Uid` can hold it, but a
    /// change to it returns [`Error::InvalidUid`](crate::Error::InvalidUid).
    ///
    /// # Examples
    /// ```
    /// use privilege_guard::{LookupError, Uid};
    ///
    /// assert_eq!("1000".parse::<Uid>()?, Uid::from_raw(1000));
    /// assert_eq!(Uid::from_user_name("root")?.as_raw(), 0);
    /// # Ok::<(), LookupError>(())
    /// ```
    Uid, "user"
}

impl Uid {
    /// User 0 of the user namespace, whose effective user id carries capabilities.
    pub(crate) const ROOT: Uid = Uid(0);
}

/// The four ids of one kind that a thread has (`credentials(7)`): see [`GroupIds`] and [`UserIds`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ids<I> {
    /// The real ID: the owner of the process.
    pub real: I,
    /// The effective ID: the one that `setegid` and `seteuid` set. The filesystem ID follows it.
    pub effective: I,
    /// The saved set-group-ID or set-user-ID: an ID that the effective one may be set back to.
    pub saved: I,
    /// The filesystem ID: decides permission checks on files, and the owner of new ones.
    pub filesystem: I,
}

/// The four group IDs of a thread. The supplementary groups are separate.
///
/// # Examples
/// ```
/// let ids = privilege_guard::GroupIds::current()?;
/// println!("started as group {} for group {}", ids.effective, ids.real);
/// # Ok::<(), privilege_guard::Error>(())
/// ```
pub type GroupIds = Ids<Gid>;

/// The four user IDs of a thread.
///
/// # Examples
/// ```
/// let ids = privilege_guard::UserIds::current()?;
/// println!("started as user {} for user {}", ids.effective, ids.real);
/// # Ok::<(), privilege_guard::Error>(())
/// ```
pub type UserIds = Ids<Uid>;

impl<I: Copy> Ids<I> {
    pub(crate) fn all(id: I) -> Self {
        Ids {
            real: id,
            effective: id,
            saved: id,
            filesystem: id,
        }
    }

    pub(crate) fn to_array(self) -> [I; 4] {
        [self.real, self.effective, self.saved, self.filesystem]
    }

    /// Returns whether these ids were read: no thread has the id `-1`, which stands for the others.
    pub(crate) fn were_read(self) -> bool
    where
        I: Id,
    {
        self.effective != I::UNCHANGED
    }

    pub(crate) fn map<J>(self, f: impl Fn(I) -> J) -> Ids<J> {
        Ids {
            real: f(self.real),
            effective: f(self.effective),
            saved: f(self.saved),
            filesystem: f(self.filesystem),
        }
    }
}

impl<I: fmt::Display> fmt::Display for Ids<I> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Ids {
            real,
            effective,
            saved,
            filesystem,
        } = self;
        write!(
            f,
            "real {real}, effective {effective}, saved {saved}, filesystem {filesystem}"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bare_literals_convert() {
        fn take(gid: impl Into<Gid>, uid: impl Into<Uid>) -> (Gid, Uid) {
            (gid.into(), uid.into())
        }
        assert_eq!(take(1004, 1000), (Gid(1004), Uid(1000)));
    }

    #[cfg(feature = "nix")]
    #[test]
    fn nix_ids_convert_both_ways() {
        let (gid, uid) = (nix::unistd::Gid::from_raw(7), nix::unistd::Uid::from_raw(8));
        assert_eq!(nix::unistd::Gid::from(Gid::from(gid)), gid);
        assert_eq!(nix::unistd::Uid::from(Uid::from(uid)), uid);
    }
}

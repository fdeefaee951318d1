//! Look-ups in the system's databases of users and groups, the only place that reads them.

use std::ffi::CString;
use std::str::FromStr;

use nix::errno::Errno;
use nix::unistd;

use crate::identity::Identity;
use crate::ids::{Gid, Uid};
use crate::lookup_error::LookupError;
use crate::parse::{Field, parse_fields};

fn failed(name: &str, errno: Errno) -> LookupError {
    LookupError::Lookup {
        name: name.into(),
        os_error: errno.into(),
    }
}

fn user(name: &str) -> Result<unistd::User, LookupError> {
    let found = unistd::User::from_name(name).map_err(|errno| failed(name, errno))?;
    found.ok_or_else(|| LookupError::UnknownUser { name: name.into() })
}

impl Gid {
    /// Looks up the group with this name (`getgrnam_r(3)`). Numbers are not names.
    ///
    /// # Errors
    /// - [`LookupError::UnknownGroup`] if no group has the name.
    /// - [`LookupError::Lookup`] if the database cannot be read.
    ///
    /// # Examples
    /// ```
    /// # use privilege_guard::{Gid, LookupError};
    /// assert_eq!(Gid::from_group_name("root")?.as_raw(), 0);
    /// let error = Gid::from_group_name("no-such-group");
    /// assert!(matches!(error, Err(LookupError::UnknownGroup { .. })));
    /// # Ok::<(), LookupError>(())
    /// ```
    #[doc(alias = "getgrnam")]
    pub fn from_group_name(name: &str) -> Result<Self, LookupError> {
        let found = unistd::Group::from_name(name).map_err(|errno| failed(name, errno))?;
        let group = found.ok_or_else(|| LookupError::UnknownGroup { name: name.into() })?;
        Ok(Gid::from_raw(group.gid.as_raw()))
    }
}

impl Uid {
    /// Looks up the user with this name (`getpwnam_r(3)`). Numbers are not names.
    ///
    /// # Errors
    /// - [`LookupError::UnknownUser`] if no user has the name.
    /// - [`LookupError::Lookup`] if the database cannot be read.
    ///
    /// # Examples
    /// ```
    /// # use privilege_guard::{LookupError, Uid};
    /// assert_eq!(Uid::from_user_name("root")?.as_raw(), 0);
    /// # Ok::<(), LookupError>(())
    /// ```
    #[doc(alias = "getpwnam")]
    pub fn from_user_name(name: &str) -> Result<Self, LookupError> {
        user(name).map(|user| Uid::from_raw(user.uid.as_raw()))
    }
}

impl Identity {
    /// Looks up the user, group and supplementary groups of this account
    /// (`getpwnam_r(3)`, `getgrouplist(3)`).
    ///
    /// # Errors
    /// - [`LookupError::UnknownUser`] if no user has the name.
    /// - [`LookupError::Lookup`] if a database cannot be read.
    ///
    /// # Examples
    /// ```
    /// # use privilege_guard::{Identity, LookupError};
    /// assert_eq!(Identity::of_account("root")?.user().as_raw(), 0);
    /// let error = Identity::of_account("no-such-user");
    /// assert!(matches!(error, Err(LookupError::UnknownUser { .. })));
    /// # Ok::<(), LookupError>(())
    /// ```
    #[doc(alias = "initgroups")]
    #[doc(alias = "getgrouplist")]
    pub fn of_account(name: &str) -> Result<Self, LookupError> {
        of_user(&user(name)?)
    }
}

fn of_user(user: &unistd::User) -> Result<Identity, LookupError> {
    let unknown = || LookupError::UnknownUser {
        name: user.name.clone(),
    };
    let name = CString::new(user.name.as_bytes()).map_err(|_| unknown())?;
    let groups =
        unistd::getgrouplist(&name, user.gid).map_err(|errno| failed(&user.name, errno))?;
    Ok(Identity::new(user.uid.as_raw(), user.gid.as_raw())
        .supplementary(groups.into_iter().map(unistd::Gid::as_raw)))
}

/// Looks names up. Returns [`LookupError::ParseIdentity`] for a string in no accepted form, and the
/// errors of [`Identity::of_account`].
impl FromStr for Identity {
    type Err = LookupError;

    fn from_str(text: &str) -> Result<Self, LookupError> {
        match parse_fields(text)? {
            (Field::Name(name), None) => Identity::of_account(name),
            (Field::Number(uid), None) => {
                let found = unistd::User::from_uid(unistd::Uid::from_raw(uid));
                let found = found.map_err(|errno| failed(text, errno))?;
                of_user(&found.ok_or(LookupError::UnknownUid { uid })?)
            }
            (user, Some(group)) => {
                let user = match user {
                    Field::Number(uid) => Uid::from_raw(uid),
                    Field::Name(name) => Uid::from_user_name(name)?,
                };
                let group = match group {
                    Field::Number(gid) => Gid::from_raw(gid),
                    Field::Name(name) => Gid::from_group_name(name)?,
                };
                Ok(Identity::new(user, group))
            }
        }
    }
}

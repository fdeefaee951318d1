//! The error of parsing and of looking names up.

use std::io;

use crate::error::DisplayErrno;

/// An error from parsing an id or identity, or from looking a name up. Nothing is changed.
///
/// # Examples
/// ```
/// use privilege_guard::{Identity, LookupError};
///
/// let error = "alice:staff:admins".parse::<Identity>().unwrap_err();
/// assert!(matches!(error, LookupError::ParseIdentity { .. }));
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LookupError {
    /// The string is not a group ID.
    #[error(
        "{text:?} is not a group ID: decimal digits from 0 to 4294967294 are accepted; \
         for the name of a group use Gid::from_group_name"
    )]
    ParseGid {
        /// The string.
        text: String,
    },

    /// The string is not a user ID.
    #[error(
        "{text:?} is not a user ID: decimal digits from 0 to 4294967294 are accepted; \
         for the name of a user use Uid::from_user_name"
    )]
    ParseUid {
        /// The string.
        text: String,
    },

    /// The string is not an identity.
    #[error(
        "{text:?} is not an identity: {problem}; accepted are a user (\"alice\", \"1000\") with its \
         account's groups, or a user and a group (\"alice:staff\", \"1000:1000\") without \
         supplementary groups"
    )]
    ParseIdentity {
        /// The string.
        text: String,
        /// What is wrong with it.
        problem: &'static str,
    },

    /// No group has this name.
    #[error(
        "no group is named {name:?}; `getent group` lists the groups, and a number is parsed \
         with \"1004\".parse()"
    )]
    UnknownGroup {
        /// The name.
        name: String,
    },

    /// No user has this name.
    #[error("no user is named {name:?}; `getent passwd` lists the users")]
    UnknownUser {
        /// The name.
        name: String,
    },

    /// No account has this user ID, so its groups are unknown.
    #[error(
        "no account has the user ID {uid}, so its group is unknown; name a group too (\"{uid}:GROUP\")"
    )]
    UnknownUid {
        /// The user ID.
        uid: u32,
    },

    /// The database of groups or users could not be read.
    #[error("{name:?} could not be looked up: {}", DisplayErrno(os_error))]
    Lookup {
        /// The name or number that was looked up.
        name: String,
        /// The system's answer.
        os_error: io::Error,
    },
}

impl From<LookupError> for io::Error {
    fn from(error: LookupError) -> Self {
        let kind = match &error {
            LookupError::ParseGid { .. }
            | LookupError::ParseUid { .. }
            | LookupError::ParseIdentity { .. } => io::ErrorKind::InvalidInput,
            LookupError::UnknownGroup { .. }
            | LookupError::UnknownUser { .. }
            | LookupError::UnknownUid { .. } => io::ErrorKind::NotFound,
            LookupError::Lookup { os_error, .. } => os_error.kind(),
        };
        io::Error::new(kind, error)
    }
}

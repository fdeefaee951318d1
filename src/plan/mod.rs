//! Pure decisions: which calls make a change, which restore it, and whether the restore is
//! possible.
//!
//! No file here makes a system call. Each decision is tested over every input that differs.

pub(crate) mod groups;
pub(crate) mod identity;
#[cfg(test)]
mod kernel_model;
#[cfg(test)]
mod kernel_search;
pub(crate) mod permanent;
pub(crate) mod user_state;
pub(crate) mod users;

use crate::ids::{Id, Ids};

/// The arguments of one `setresgid` or `setresuid`. `None` leaves that id unchanged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SetResArgs<I> {
    pub(crate) real: Option<I>,
    pub(crate) effective: Option<I>,
    pub(crate) saved: Option<I>,
}

impl<I: Id> SetResArgs<I> {
    pub(crate) fn all(id: I) -> Self {
        SetResArgs {
            real: Some(id),
            effective: Some(id),
            saved: Some(id),
        }
    }

    /// These ids, and those of `other` that are left unchanged.
    pub(crate) fn or(self, other: Self) -> Self {
        SetResArgs {
            real: self.real.or(other.real),
            effective: self.effective.or(other.effective),
            saved: self.saved.or(other.saved),
        }
    }

    /// Restores these ids, except those that no call can name.
    pub(crate) fn restoring(ids: Ids<I>, is_mapped: impl Fn(I) -> bool) -> Self {
        let mapped = |id: I| Some(id).filter(|&id| is_mapped(id));
        SetResArgs {
            real: mapped(ids.real),
            effective: mapped(ids.effective),
            saved: mapped(ids.saved),
        }
    }
}

//! Errors, one type for each operation. Each message names the failure, the ids, and a remedy.

mod change;
mod drop;
mod errno;
mod lookup;
mod restore;

pub use change::{ConflictingGuard, Error, IrreversibleReason, PermissionDeniedReason};
pub use drop::{CannotKeepReason, DropError};
pub(crate) use errno::no_effect_error;
pub use lookup::LookupError;
pub use restore::{RestoreError, Unrestored};

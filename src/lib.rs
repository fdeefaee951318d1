// Here the pages are modules; of two definitions of a link the first one counts.
//! [guide]: docs::guide
//! [semantics]: docs::semantics
//! [security]: docs::security
//! [porting]: docs::porting
//! [performance]: docs::performance
//! [testing]: docs::testing
//!
#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]
#![warn(unreachable_pub)]

#[cfg(not(target_os = "linux"))]
compile_error!("privilege-guard supports Linux only: it relies on Linux's system calls and /proc");

mod change;
mod engine;
mod error;
mod guard;
mod identity;
mod ids;
mod kernel;
mod parse;
mod permanent;
mod plan;
mod scope;

/// The pages of `docs/`, as they are in the repository. Their pictures follow them: there are no other files beside these pages.
#[cfg(any(doc, doctest))]
pub mod docs {
    #[doc = include_str!("../docs/guide.md")]
    pub mod guide {}
    #[doc = include_str!("../docs/semantics.md")]
    #[doc = concat!("\n<div>\n", include_str!("../docs/states.svg"), "</div>")]
    pub mod semantics {}
    #[doc = include_str!("../docs/security.md")]
    pub mod security {}
    #[doc = include_str!("../docs/porting.md")]
    pub mod porting {}
    #[doc = include_str!("../docs/performance.md")]
    #[doc = concat!("\n<div>\n", include_str!("../docs/cost-against-threads.svg"), "\n</div>")]
    pub mod performance {}
    #[doc = include_str!("../docs/testing.md")]
    pub mod testing {}
}

pub use change::{GroupChange, IdentityChange, UserChange};
pub use error::{
    ConflictingGuard, DropError, Error, IrreversibleReason, LookupError, PermissionDeniedReason,
    RestoreError, Unrestored,
};
pub use guard::{GroupGuard, Guard, GuardKind, IdentityGuard, UserGuard};
pub use identity::Identity;
pub use ids::{Gid, GroupIds, Ids, Uid, UserIds};
pub use kernel::read::supplementary_groups;
pub use kernel::threads::{ThreadIds, threads};
pub use permanent::{DropReport, PermanentDrop};
pub use rustix::thread::CapabilitySet;
pub use scope::{Process, Scope, Thread};

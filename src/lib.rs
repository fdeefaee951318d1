//! Temporary and permanent changes of group, user or whole identity, for Linux.
//!
//! A guard changes the ids of the whole process or of the calling thread. When it is dropped, it
//! restores the calling thread's ids exactly; [`Process`] describes the other threads. A change
//! that could not be undone is refused before anything changes.
//!
//! ```no_run
//! use privilege_guard::{GroupGuard, Identity, IdentityGuard, PermanentDrop};
//!
//! {
//!     // The real and effective group of the whole process.
//!     let _guard = GroupGuard::assume(1004)?;
//!     std::fs::write("report", "written as group 1004")?;
//! }
//! // Here the ids are exactly what they were.
//!
//! // A client's user, group and supplementary groups, on this thread only.
//! let client = Identity::of_account("alice")?;
//! IdentityGuard::assume_effective_on_thread(&client)?.run(|| std::fs::read("mail"))?;
//!
//! // Permanent, on every thread, and verified.
//! PermanentDrop::to_account("www-data")?.apply()?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Choosing a scope
//!
//! In a multithreaded program, use thread guards ([`Thread`], the functions `..._on_thread`). They
//! change no other thread, and thread guards on different threads never conflict with each other.
//!
//! Process guards ([`Process`]) change every thread and verify each one. Use them if the program is
//! single-threaded or if every thread must change. They need a readable `/proc`.
//!
//! # Errors and aborts
//!
//! - [`Error`] means that nothing has changed, or that the change was rolled back.
//! - A dropped guard and [`Guard::run`] abort the process if the kernel refuses the restore.
//! - [`Guard::restore`] returns a [`RestoreError`] instead.
//! - A permanent drop that fails returns a [`DropError`]. After [`DropError::StillPrivileged`], end
//!   the process.
//! - A failed look-up of a name or parse of an id returns a [`LookupError`].
//!
//! # Limits
//!
//! The library is not a sandbox. It protects against mistakes in the program and failures of its
//! environment, but not against hostile code in the same process. Processes, threads and open files
//! that are created while a guard is active keep the changed identity after it ends. Guards are not
//! for signal handlers or `pre_exec`. The [security](docs::security) page lists all promises and
//! limits.
//!
//! # Pages
//!
//! - [Guide](docs::guide): recipes and troubleshooting
//! - [Semantics](docs::semantics): the ids and the calls of the kernel
//! - [Security](docs::security): promises and limits
//! - [Porting](docs::porting): from other code
//! - [Performance](docs::performance): the cost of a guard
//! - [Testing](docs::testing): how the promises are tested

#![forbid(unsafe_code)]
#![warn(unreachable_pub)]

#[cfg(not(target_os = "linux"))]
compile_error!("privilege-guard supports Linux only: it relies on Linux's system calls and /proc");

mod capabilities;
mod change;
mod engine;
mod error;
mod guard;
mod identity;
mod ids;
mod kernel;
#[cfg(test)]
mod layers;
mod parse;
mod permanent;
mod plan;
mod scope;

/// The pages of `docs/`. Their pictures are included, because rustdoc copies no other files.
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

/// The code blocks of README.md, which are tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
pub struct ReadmeDoctests;

pub use change::{GroupChange, IdentityChange, UserChange};
pub use error::{
    CannotKeepReason, ConflictingGuard, DropError, Error, IrreversibleReason, LookupError,
    PermissionDeniedReason, RestoreError, Unrestored,
};
pub use guard::{GroupGuard, Guard, GuardKind, IdentityGuard, UserGuard};
pub use identity::Identity;
pub use ids::{Gid, GroupIds, Ids, Uid, UserIds};
pub use kernel::read::supplementary_groups;
pub use kernel::threads::{ThreadIds, threads};
pub use permanent::{DropReport, PermanentDrop};
pub use rustix::thread::CapabilitySet;
pub use scope::{Process, Scope, Thread};

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

mod change;
mod error;
mod event;
mod guard;
mod ids;
mod last_words;
mod namespace;
mod permanent;
mod plan;
mod scope;
mod stack;
mod threads;

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

pub use change::GroupChange;
pub use error::{Denial, Error, Holder, NoReturn};
pub use guard::GroupGuard;
pub use ids::{Gid, GroupIds, supplementary_groups};
pub use permanent::{DropReport, PermanentDrop};
pub use scope::{Process, Scope, Thread};
pub use threads::{ThreadIds, threads};

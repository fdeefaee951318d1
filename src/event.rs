//! What the log is told, and when: never while the group is another one, as far as the library can know.
//!
//! A subscriber may open its file on the first event, and would create it as that group.

use std::fmt::Display;

use tracing::Level;

use crate::change::{Applied, GroupChange};
use crate::error::Error;
use crate::permanent::DropReport;
use crate::scope::Kind;

const TARGET: &str = "privilege_guard";

/// Whether the end of a guard would be told to anybody; may run a subscriber's code.
pub(crate) fn is_awaited() -> bool {
    tracing::enabled!(target: TARGET, Level::DEBUG)
}

/// The outermost guard of this thread has ended.
pub(crate) fn ended(applied: &Applied) {
    let elapsed = applied.since.map(|since| since.elapsed()).unwrap_or_default();
    tracing::debug!(
        target: TARGET,
        scope = name(applied.scope),
        asked = %applied.change,
        original = %applied.original,
        ?elapsed,
        "group assumed and put back"
    );
}

/// A change was refused, and nothing has changed.
pub(crate) fn refused(scope: Kind, asked: &GroupChange, error: &Error) {
    tracing::warn!(target: TARGET, scope = name(scope), %asked, %error, "group not assumed");
}

/// The group is another one from now on, and no other will be.
pub(crate) fn dropped(report: &DropReport) {
    tracing::info!(target: TARGET, %report, "group privileges dropped for good");
}

/// A permanent drop was refused, or does not hold; the error says in which state that leaves the process.
pub(crate) fn drop_refused(asked: &dyn Display, error: &Error) {
    tracing::warn!(target: TARGET, %asked, %error, "group privileges not dropped");
}

fn name(scope: Kind) -> &'static str {
    match scope {
        Kind::Process => "process",
        Kind::Thread => "thread",
    }
}

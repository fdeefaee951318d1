//! `tracing` events. Never emitted, and no subscriber consulted, while the identity is changed.
//!
//! A subscriber might open its log file on the first event, and would create it under that
//! identity. The functions here take values, and are called only while [`GuardStack::begin_event`]
//! holds process guards of other threads off.
//!
//! [`GuardStack::begin_event`]: super::stack::GuardStack::begin_event

use std::fmt::Display;
use std::time::Duration;

use tracing::Level;
use tracing::level_filters::LevelFilter;

use crate::scope::ScopeKind;

const TARGET: &str = "privilege_guard";

/// The levels of the events.
pub(crate) const ENDED: LevelFilter = LevelFilter::DEBUG;
pub(crate) const REFUSED: LevelFilter = LevelFilter::WARN;
pub(crate) const DROPPED: LevelFilter = LevelFilter::INFO;

/// Returns whether any subscriber could be interested in events of a level. Runs no code of one.
pub(crate) fn has_listener(level: LevelFilter) -> bool {
    LevelFilter::current() >= level
}

/// Returns whether a subscriber is interested in the end of a guard. May run its code.
pub(crate) fn is_enabled() -> bool {
    tracing::enabled!(target: TARGET, Level::DEBUG)
}

/// The outermost guard of this thread has ended.
pub(crate) fn ended(
    scope: ScopeKind,
    requested: &dyn Display,
    original: &dyn Display,
    elapsed: Duration,
) {
    let scope = scope.as_str();
    tracing::debug!(target: TARGET, scope, %requested, %original, ?elapsed, "identity restored");
}

/// A change was refused, and nothing is changed.
pub(crate) fn refused(scope: ScopeKind, requested: &dyn Display, error: &dyn Display) {
    let scope = scope.as_str();
    tracing::warn!(target: TARGET, scope, %requested, %error, "identity not changed");
}

/// The identity has changed permanently.
pub(crate) fn dropped(report: &dyn Display) {
    tracing::info!(target: TARGET, %report, "privileges dropped permanently");
}

/// A permanent drop was refused or does not hold. The error names the state of the process.
pub(crate) fn drop_refused(requested: &dyn Display, error: &dyn Display) {
    tracing::warn!(target: TARGET, %requested, %error, "privileges not dropped");
}

//! The mechanism: making, verifying and restoring changes, whatever they change.

pub(crate) mod abort;
pub(crate) mod applied;
pub(crate) mod event;
pub(crate) mod exclusion;
mod other_threads;
pub(crate) mod permanent;
mod reasons;
mod regain;
mod restore;
pub(crate) mod stack;
pub(crate) mod steps;
mod switch;

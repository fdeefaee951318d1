//! The mechanism: making, verifying and restoring changes, whatever they change.

pub(crate) mod abort;
pub(crate) mod applied;
mod drop_plan;
pub(crate) mod event;
pub(crate) mod exclusion;
mod new_root;
mod other_threads;
pub(crate) mod permanent;
mod reasons;
mod restore;
pub(crate) mod stack;
pub(crate) mod steps;
mod switch;
pub(crate) mod target;
mod verify;

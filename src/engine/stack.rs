//! The active guards of one thread, innermost last.
//!
//! A frame is anything that can be restored: this file does not know about ids.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use super::{abort, exclusion};
use crate::error::{Error, RestoreError};
use crate::scope::ScopeKind;

/// An applied change that the stack can restore.
pub(crate) trait Restore: Sized {
    fn scope(&self) -> ScopeKind;
    /// Restores the state before the change, exactly.
    fn restore(&self) -> Result<(), RestoreError>;
    /// Merges the restore of `outer`, whose guard has ended, into this one. Returns `outer` if that
    /// is impossible.
    fn absorb(&mut self, outer: Self) -> Result<(), Self>;
    /// Whether a subscriber is interested in the end.
    fn wants_event(&self) -> bool;
    fn emit_event(&self);
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum GuardState {
    Active,
    /// Its guard has ended, but inner guards are active: its restore is deferred until they end.
    PendingRestore,
    /// Its restore was refused. It is never tried again, and blocks everything below it.
    RestoreFailed,
}

#[derive(Debug)]
struct Frame<R> {
    key: u64,
    state: GuardState,
    change: R,
}

#[derive(Debug)]
pub(crate) struct GuardStack<R: Restore> {
    frames: Vec<Frame<R>>,
    /// Ascending, so that the keys of the frames are sorted.
    next_key: u64,
    /// Whether a restore was refused before.
    has_failed: bool,
    /// The claim of this thread, by [`exclusion`].
    claim: Option<ScopeKind>,
    /// A subscriber is handling an event or being consulted. Until it returns, the claim is kept,
    /// so that no process guard of another thread can begin. The subscriber's own guards emit no
    /// events.
    emitting: bool,
}

/// How the end of a guard went, if nothing was refused.
#[derive(Debug)]
pub(crate) enum EndOutcome {
    Restored,
    /// Inner guards are active. The restore follows theirs.
    Deferred,
    /// The restore of an inner guard was refused before, so this one can never be restored.
    Blocked,
}

impl<R: Restore> GuardStack<R> {
    pub(crate) const fn new() -> Self {
        GuardStack {
            frames: Vec::new(),
            next_key: 0,
            has_failed: false,
            claim: None,
            emitting: false,
        }
    }

    fn is_idle(&self) -> bool {
        self.frames.is_empty() && !self.emitting
    }

    /// Makes a change with `apply`, if this thread may, and returns the key of its frame.
    pub(crate) fn begin(
        &mut self,
        scope: ScopeKind,
        wait: Duration,
        apply: impl FnOnce() -> Result<R, Error>,
    ) -> Result<u64, Error> {
        self.claim(scope, wait)?;
        // Before the change: nothing between it and the push may fail.
        self.frames.reserve(1);
        match apply() {
            Ok(change) => {
                let key = self.next_key;
                self.next_key += 1;
                self.frames.push(Frame {
                    key,
                    state: GuardState::Active,
                    change,
                });
                Ok(key)
            }
            Err(error) => {
                self.release_if_idle();
                Err(error)
            }
        }
    }

    /// Ends the guard with this key. If it is the innermost one, this restores it and the pending
    /// ones below it.
    ///
    /// Returns the change if it was the outermost one and an event is due. The caller must then
    /// emit the event and call [`finish_event`](Self::finish_event).
    pub(crate) fn end(&mut self, key: u64) -> Result<(EndOutcome, Option<R>), RestoreError> {
        let Ok(index) = self.frames.binary_search_by_key(&key, |frame| frame.key) else {
            return Ok((EndOutcome::Restored, None));
        };
        self.frames[index].state = GuardState::PendingRestore;
        let has_failed = |frame: &Frame<R>| frame.state == GuardState::RestoreFailed;
        if self.has_failed && self.frames[index..].iter().any(has_failed) {
            return Ok((EndOutcome::Blocked, None));
        }
        if index + 1 < self.frames.len() {
            self.merge_pending(index);
            return Ok((EndOutcome::Deferred, None));
        }
        self.unwind().map(|event| (EndOutcome::Restored, event))
    }

    /// Merges a pending frame, and the pending ones below it, into the next inner frame, so that a
    /// chain of overlapping guards does not grow the stack.
    fn merge_pending(&mut self, mut index: usize) {
        /// The maximum number of frames that a merge may move: removing a frame moves those above
        /// it.
        const MAX_MOVED: usize = 16;

        while self.frames.len() - index <= MAX_MOVED
            && self.frames[index].state == GuardState::PendingRestore
            && self.frames[index].change.scope() == self.frames[index + 1].change.scope()
        {
            let Frame { key, state, change } = self.frames.remove(index);
            if let Err(change) = self.frames[index].change.absorb(change) {
                return self.frames.insert(index, Frame { key, state, change });
            }
            if index == 0 {
                return;
            }
            index -= 1;
        }
    }

    fn unwind(&mut self) -> Result<Option<R>, RestoreError> {
        let is_pending = |frame: &&mut Frame<R>| frame.state == GuardState::PendingRestore;
        while let Some(frame) = self.frames.last_mut().filter(is_pending) {
            if let Err(error) = frame.change.restore() {
                frame.state = GuardState::RestoreFailed;
                self.has_failed = true;
                return Err(error);
            }
            let wants_event = frame.change.wants_event();
            let is_outermost = self.frames.len() == 1 && !self.emitting;
            if is_outermost && wants_event {
                self.emitting = true;
                if self.claim == Some(ScopeKind::Process) {
                    // The other threads may change their identity now, but not the process its.
                    exclusion::downgrade();
                    self.claim = Some(ScopeKind::Thread);
                }
                return Ok(self.frames.pop().map(|frame| frame.change));
            }
            // Dropped in place, not moved.
            self.frames.truncate(self.frames.len() - 1);
        }
        self.release_if_idle();
        Ok(None)
    }

    /// Claims the right to emit an event or to consult a subscriber, which conflicts with process
    /// guards. If this returns true, the caller must call [`finish_event`](Self::finish_event).
    pub(crate) fn begin_event(&mut self, wait: Duration) -> bool {
        let may = self.is_idle() && self.claim(ScopeKind::Thread, wait).is_ok();
        self.emitting |= may;
        may
    }

    pub(crate) fn finish_event(&mut self) {
        self.emitting = false;
        self.release_if_idle();
    }

    /// Returns the change of the guard with this key, if that is the innermost one.
    pub(crate) fn innermost(&mut self, key: u64) -> Option<&mut R> {
        self.frames
            .last_mut()
            .filter(|frame| frame.key == key)
            .map(|frame| &mut frame.change)
    }

    /// Returns the change of the only guard, or `None` if there are others. A process guard
    /// excludes guards of other threads.
    pub(crate) fn sole(&mut self) -> Option<&mut R> {
        match &mut self.frames[..] {
            [frame] => Some(&mut frame.change),
            _ => None,
        }
    }

    /// Removes the guard with this key without restoring it: its change has become permanent.
    pub(crate) fn commit(&mut self, key: u64) {
        self.frames.retain(|frame| frame.key != key);
        self.release_if_idle();
    }

    /// Marks the guard with this key as failed, as after a refused restore: it is never restored.
    pub(crate) fn mark_failed(&mut self, key: u64) {
        for frame in self.frames.iter_mut().filter(|frame| frame.key == key) {
            frame.state = GuardState::RestoreFailed;
            self.has_failed = true;
        }
    }

    fn claim(&mut self, scope: ScopeKind, wait: Duration) -> Result<(), Error> {
        // Process guards are below thread guards, so checking the innermost one is enough.
        let innermost = self.frames.last().map(|frame| frame.change.scope());
        match (self.claim, scope) {
            (_, ScopeKind::Process) if innermost == Some(ScopeKind::Thread) => {
                return Err(Error::ProcessGuardInThreadGuard);
            }
            (Some(ScopeKind::Process), _) | (Some(ScopeKind::Thread), ScopeKind::Thread) => {
                return Ok(());
            }
            (Some(ScopeKind::Thread) | None, _) => {}
        }
        exclusion::claim(scope, self.claim, wait)?;
        self.claim = Some(scope);
        Ok(())
    }

    fn release_if_idle(&mut self) {
        if self.is_idle() {
            self.claim.take().into_iter().for_each(exclusion::release);
        }
    }
}

/// The thread ends: leaked guards are restored as by a drop, unless a restore was refused before.
impl<R: Restore> Drop for GuardStack<R> {
    fn drop(&mut self) {
        for frame in self
            .frames
            .iter_mut()
            .filter(|frame| frame.state == GuardState::Active)
        {
            frame.state = GuardState::PendingRestore;
        }
        match self.unwind() {
            Ok(None) => {}
            Ok(Some(ended)) => {
                // A subscriber that panics here would abort a healthy process.
                _ = catch_unwind(AssertUnwindSafe(|| ended.emit_event())).map_err(std::mem::forget);
                self.finish_event();
            }
            Err(error) => abort::abort_with(&error),
        }
    }
}

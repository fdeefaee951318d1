//! The living guards of one thread, innermost last, and which thread may change what.
//!
//! Nothing here is about groups: a frame is whatever can be undone.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::error::{Error, Holder};
use crate::last_words;
use crate::scope::Kind;
use crate::threads::thread_name;

/// What a frame holds: a change that was made, and how to undo it.
pub(crate) trait Undo {
    fn scope(&self) -> Kind;
    /// Undoes the change, exactly, or says why it could not.
    fn undo(&self) -> Result<(), Error>;
    /// Whether somebody wants to be told that it ended.
    fn is_awaited(&self) -> bool;
    /// Tells them.
    fn tell(&self);
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Living,
    /// Its guard is gone, but inner guards are not: its undoing waits for theirs.
    Ended,
    /// Its undoing was refused. Never tried again, and in the way of everything below.
    Failed,
}

#[derive(Debug)]
struct Frame<U> {
    key: u64,
    state: State,
    undo: U,
}

#[derive(Debug)]
pub(crate) struct Stack<U: Undo> {
    frames: Vec<Frame<U>>,
    next_key: u64,
    /// What this thread has of [`HELD`].
    hold: Option<Kind>,
    /// A subscriber is being told something: its own guards are not told of. The hold is kept meanwhile, so that no
    /// other thread's process guard can begin.
    telling: bool,
}

/// How a guard's end went, where nothing was refused.
#[derive(Debug)]
pub(crate) enum End {
    Undone,
    /// Inner guards are alive; it will be undone after them.
    Waits,
    /// The undoing of an inner guard was refused before; this one never can be undone.
    Stuck,
}

impl<U: Undo> Stack<U> {
    pub(crate) const fn new() -> Self {
        Stack { frames: Vec::new(), next_key: 0, hold: None, telling: false }
    }

    /// Whether this thread is under no guard, and tells nobody of one.
    pub(crate) fn is_idle(&self) -> bool {
        self.frames.is_empty() && !self.telling
    }

    /// Makes a change with `apply` where this thread may, and remembers it under the key that is returned.
    pub(crate) fn begin(&mut self, scope: Kind, wait: Duration, apply: impl FnOnce() -> Result<U, Error>) -> Result<u64, Error> {
        self.acquire(scope, wait)?;
        // Before the change: nothing between it and the push may fail.
        self.frames.reserve(1);
        match apply() {
            Ok(undo) => {
                let key = self.next_key;
                self.next_key += 1;
                self.frames.push(Frame { key, state: State::Living, undo });
                Ok(key)
            }
            Err(error) => {
                self.release();
                Err(error)
            }
        }
    }

    /// Ends the guard with this key: undoes it, and the ended ones around it, if it is the innermost; else that waits.
    ///
    /// Returns `U` where it was the outermost one and its end is awaited: [`Undo::tell`] and [`Stack::told`] have to follow.
    pub(crate) fn end(&mut self, key: u64) -> Result<(End, Option<U>), Error> {
        let Some(index) = self.frames.iter().rposition(|frame| frame.key == key) else { return Ok((End::Undone, None)) };
        self.frames[index].state = State::Ended;
        if self.frames[index..].iter().any(|inner| inner.state == State::Failed) {
            return Ok((End::Stuck, None));
        }
        if index + 1 < self.frames.len() {
            return Ok((End::Waits, None));
        }
        self.unwind().map(|awaited| (End::Undone, awaited))
    }

    fn unwind(&mut self) -> Result<Option<U>, Error> {
        while let Some(frame) = self.frames.last_mut().filter(|frame| frame.state == State::Ended) {
            if let Err(error) = frame.undo.undo() {
                frame.state = State::Failed;
                return Err(error);
            }
            let awaited = frame.undo.is_awaited();
            // Else nobody was asked, unless the subscriber took and kept a guard when it was.
            let outermost = self.frames.len() == 1 && !self.telling;
            if outermost && awaited {
                self.telling = true;
                return Ok(self.frames.pop().map(|frame| frame.undo));
            }
            // Dropped where it is, not moved out.
            self.frames.truncate(self.frames.len() - 1);
        }
        self.release();
        Ok(None)
    }

    /// Whether something else may be told now, while no process guard is alive; then [`Stack::told`] has to follow.
    pub(crate) fn begin_telling(&mut self) -> bool {
        let may = self.is_idle() && self.acquire(Kind::Thread, Duration::ZERO).is_ok();
        self.telling |= may;
        may
    }

    /// What was to be told has been.
    pub(crate) fn told(&mut self) {
        self.telling = false;
        self.release();
    }

    /// The change of the guard with this key, which must be the innermost one.
    pub(crate) fn innermost(&mut self, key: u64) -> Result<&mut U, Error> {
        match self.frames.last_mut() {
            Some(frame) if frame.key == key => Ok(&mut frame.undo),
            _ => Err(Error::InnerGuardAlive),
        }
    }

    /// The change of the one guard there is; `None` where there are others. A process guard keeps out those of other threads.
    pub(crate) fn only(&mut self) -> Option<&mut U> {
        match &mut self.frames[..] {
            [frame] => Some(&mut frame.undo),
            _ => None,
        }
    }

    /// Forgets the guard with this key, which has become permanent.
    pub(crate) fn forget(&mut self, key: u64) {
        self.frames.retain(|frame| frame.key != key);
        self.release();
    }

    /// The guard with this key can neither be undone nor go on: like an undoing that was refused.
    pub(crate) fn mark_failed(&mut self, key: u64) {
        for frame in self.frames.iter_mut().filter(|frame| frame.key == key) {
            frame.state = State::Failed;
        }
    }

    fn acquire(&mut self, scope: Kind, wait: Duration) -> Result<(), Error> {
        match (self.hold, scope) {
            (Some(Kind::Process), Kind::Process) if self.frames.iter().any(|frame| frame.undo.scope() == Kind::Thread) => {
                return Err(Error::InsideThreadGuard);
            }
            (Some(Kind::Process), _) | (Some(Kind::Thread), Kind::Thread) => return Ok(()),
            (Some(Kind::Thread), Kind::Process) if !self.frames.is_empty() => return Err(Error::InsideThreadGuard),
            (Some(Kind::Thread) | None, _) => {}
        }
        let taken = match scope {
            Kind::Process => {
                // Not remembered: it is another one in a forked child.
                let thread_id = nix::unistd::gettid().as_raw().unsigned_abs();
                let mine = u64::from(self.hold == Some(Kind::Thread));
                HELD.take(wait, |held| (held == mine).then_some(PROCESS + u64::from(thread_id)))
            }
            Kind::Thread => HELD.take(wait, |held| (held & PROCESS == 0).then_some(held + 1)),
        };
        taken.map_err(|held| Error::Busy { holder: holder(held) })?;
        self.hold = Some(scope);
        Ok(())
    }

    /// Gives back what this thread has of [`HELD`], where nothing needs it any more.
    fn release(&mut self) {
        if self.is_idle() {
            match self.hold.take() {
                Some(Kind::Process) => HELD.0.store(0, Ordering::Release),
                Some(Kind::Thread) => _ = HELD.0.fetch_sub(1, Ordering::Release),
                None => {}
            }
        }
    }
}

/// The thread ends: what was leaked is undone like a drop, up to an undoing that was refused before.
impl<U: Undo> Drop for Stack<U> {
    fn drop(&mut self) {
        for frame in self.frames.iter_mut().filter(|frame| frame.state == State::Living) {
            frame.state = State::Ended;
        }
        match self.unwind() {
            Ok(None) => {}
            Ok(Some(awaited)) => {
                // A subscriber that panics here would abort a process in which all is well.
                _ = catch_unwind(AssertUnwindSafe(|| awaited.tell()));
                self.told();
            }
            Err(error) => last_words::abort(&error),
        }
    }
}

/// The one thing that threads share: who may change the group. Not a lock: nobody queues, and what a thread cannot have
/// now it is refused, so there is nothing to deadlock on, to poison, or to inherit locked over a fork.
///
/// Zero; or how many threads have thread guards; or [`PROCESS`] with the id of the thread that has process guards.
static HELD: Held = Held(AtomicU64::new(0));

const PROCESS: u64 = 1 << 63;

/// Between two tries of a thread that waits.
const PAUSE: Duration = Duration::from_micros(200);

#[derive(Debug)]
struct Held(AtomicU64);

impl Held {
    /// Moves to what `next` makes of the present value, asking again until `wait` is over; else returns that value.
    fn take(&self, wait: Duration, next: impl Fn(u64) -> Option<u64>) -> Result<u64, u64> {
        let attempt = || self.0.fetch_update(Ordering::Acquire, Ordering::Relaxed, &next);
        if wait.is_zero() {
            return attempt();
        }
        let deadline = Instant::now().checked_add(wait);
        loop {
            match attempt() {
                Err(held) if deadline.is_some_and(|deadline| Instant::now() >= deadline) => return Err(held),
                Err(_) => std::thread::sleep(PAUSE),
                taken => return taken,
            }
        }
    }
}

/// Whether a process guard is alive, on any thread.
pub(crate) fn process_guard_lives() -> bool {
    HELD.0.load(Ordering::Acquire) & PROCESS != 0
}

fn holder(held: u64) -> Holder {
    if held & PROCESS == 0 {
        return Holder::ThreadGuards { threads: u32::try_from(held).unwrap_or(u32::MAX) };
    }
    let thread_id = u32::try_from(held & !PROCESS).unwrap_or_default();
    Holder::ProcessGuard { thread_id, name: thread_name(thread_id).ok() }
}

//! The guard: a change of the group that lasts as long as it lives.

use std::cell::RefCell;
use std::fmt;
use std::marker::PhantomData;
use std::mem::ManuallyDrop;

use crate::change::{Applied, GroupChange};
use crate::error::Error;
use crate::ids::{Gid, GroupIds};
use crate::permanent::{DropReport, Failed, PermanentDrop};
use crate::scope::{Process, Scope, Thread};
use crate::stack::{self, End, Stack, Undo};
use crate::{event, last_words, permanent};

/// Another group, until this is dropped: then the calling thread's ids, and all that was changed with them, are exactly what they were,
/// as long as the kernel allows it; where it does not, the process is aborted rather than left under the wrong group.
///
/// Corresponds to `os.setregid` of Python and the call that takes it back, with the saved set-group-ID, filesystem group ID, supplementary
/// groups and parent-death signal, on every way out of the scope. A panic runs the same undoing.
///
/// Guards nest. The innermost living guard decides what the group is: one that is dropped while guards made after it live has its
/// undoing wait for theirs. A leaked guard lives until its thread ends and is undone then.
///
/// Neither `Send` nor `Sync`: it belongs to the thread whose ids it keeps, and a task that holds it across an `.await` cannot be spawned.
///
/// # Warning
/// `let _ = GroupGuard::assume(g)?;` ends the guard at once: name it, or use [`run`](Self::run).
///
/// # Examples
/// ```no_run
/// use privilege_guard::GroupGuard;
///
/// {
///     let _guard = GroupGuard::assume(1004)?;
///     std::fs::write("report", "owned by group 1004")?;
/// } // exactly what it was
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// Held across an `.await`, it does not compile:
/// ```compile_fail
/// # fn spawn<F: std::future::Future + Send>(_: F) {}
/// # async fn reply() {}
/// spawn(async {
///     let guard = privilege_guard::GroupGuard::assume_on_thread(1004);
///     reply().await;
///     drop(guard);
/// });
/// ```
/// Ended before that, it does:
/// ```
/// # fn spawn<F: std::future::Future + Send>(_: F) {}
/// # async fn reply() {}
/// spawn(async {
///     let guard = privilege_guard::GroupGuard::assume_on_thread(1004);
///     drop(guard);
///     reply().await;
/// });
/// ```
#[must_use = "the group is put back when the guard is dropped: name it (`let _guard = ...`), or use `run`"]
pub struct GroupGuard<S: Scope = Process> {
    key: u64,
    original: GroupIds,
    // Not Send: the frame that belongs to it is in this thread's stack.
    scope: PhantomData<(*const (), S)>,
}

impl GroupGuard<Process> {
    /// Makes this group the real and effective group of the whole process, as `os.setregid(g, g)`.
    ///
    /// Short for [`GroupChange::both`]`(group).`[`assume`](GroupChange::assume)`()`.
    ///
    /// # Privileges
    /// As for [`GroupChange::assume`].
    ///
    /// # Errors
    /// As for [`GroupChange::assume`].
    ///
    /// # Examples
    /// ```
    /// use privilege_guard::{Error, GroupGuard, GroupIds};
    ///
    /// let before = GroupIds::current()?;
    /// match GroupGuard::assume(1004) {
    ///     Ok(guard) => guard.restore()?,
    ///     Err(error) => println!("{error}"), // as an ordinary user: what is missing
    /// }
    /// assert_eq!(GroupIds::current()?, before);
    /// # Ok::<(), Error>(())
    /// ```
    pub fn assume(group: impl Into<Gid>) -> Result<Self, Error> {
        GroupChange::both(group).assume()
    }

    /// Makes this group the effective group of the whole process, as `os.setregid(-1, g)`.
    ///
    /// A child that is executed meanwhile still has the original real group; so a set-group-ID program prefers this to [`assume`](Self::assume).
    ///
    /// # Privileges
    /// As for [`GroupChange::assume`].
    ///
    /// # Errors
    /// As for [`GroupChange::assume`].
    ///
    /// # Examples
    /// ```
    /// use privilege_guard::{Error, GroupGuard, GroupIds};
    ///
    /// // Allowed to everybody: the effective group to what the real group is.
    /// let ids = GroupIds::current()?;
    /// GroupGuard::assume_effective(ids.real)?.run(|| println!("as group {}", ids.real))?;
    /// # Ok::<(), Error>(())
    /// ```
    pub fn assume_effective(group: impl Into<Gid>) -> Result<Self, Error> {
        GroupChange::new().effective(group).assume()
    }

    /// Makes this group the real group of the whole process, as `os.setregid(g, -1)`.
    ///
    /// # Privileges
    /// As for [`GroupChange::assume`].
    ///
    /// # Errors
    /// As for [`GroupChange::assume`].
    ///
    /// # Examples
    /// ```
    /// use privilege_guard::{Error, GroupGuard, GroupIds};
    ///
    /// let ids = GroupIds::current()?;
    /// let guard = GroupGuard::assume_real(ids.effective)?;
    /// assert_eq!(guard.original(), ids);
    /// # Ok::<(), Error>(())
    /// ```
    pub fn assume_real(group: impl Into<Gid>) -> Result<Self, Error> {
        GroupChange::new().real(group).assume()
    }

    /// Gives the original group up for good, on all threads: what the guard assumed becomes the only group there is.
    ///
    /// The group is the one that the guard's change named; the supplementary groups are those that it named, or none. Else as
    /// [`PermanentDrop::apply`], which also drops to another user.
    ///
    /// # Privileges
    /// As for [`PermanentDrop::apply`].
    ///
    /// # Errors
    /// [`Error::Ambiguous`] where the guard's change named two groups or none, and what [`PermanentDrop::apply`] refuses. The guard is consumed:
    /// it is undone as by a drop, except after [`Error::StillPrivileged`], which comes too late for that; end the process then.
    ///
    /// # Examples
    /// ```no_run
    /// use privilege_guard::GroupGuard;
    ///
    /// // A set-group-ID program gives its group up, and is what its user is.
    /// let own = privilege_guard::GroupIds::current()?.real;
    /// let report = GroupGuard::assume(own)?.drop_permanently()?;
    /// eprintln!("{report}");
    /// # Ok::<(), privilege_guard::Error>(())
    /// ```
    pub fn drop_permanently(self) -> Result<DropReport, Error> {
        let change = with_stack(|stack| Ok(stack.only().ok_or(Error::GuardsAlive)?.change.clone()))?;
        let made = match change.named.group() {
            Some(group) => self.make_permanent(&PermanentDrop::of_guard(group, change.supplementary.clone())),
            None => {
                drop(self);
                Err(Error::Ambiguous { asked: change.clone() })
            }
        };
        tell_of_drop(&format_args!("{change} for good"), &made);
        made
    }

    pub(crate) fn apply_permanent(asked: &PermanentDrop) -> Result<DropReport, Error> {
        let guard = asked.check().and_then(|()| Self::begin_untold(&GroupChange::new(), false));
        let made = guard.and_then(|guard| guard.make_permanent(asked)).map_err(|error| match error {
            Error::Busy { .. } | Error::InsideThreadGuard => Error::GuardsAlive,
            error => error,
        });
        tell_of_drop(asked, &made);
        made
    }

    fn make_permanent(self, asked: &PermanentDrop) -> Result<DropReport, Error> {
        let made = with_stack(|stack| {
            let made = permanent::make(stack.only().ok_or(Error::GuardsAlive)?, asked);
            match &made {
                Ok(_) => stack.forget(self.key),
                Err(Failed::TooLate(_)) => stack.mark_failed(self.key),
                Err(Failed::Undoable(_)) => {}
            }
            Ok(made)
        })?;
        match made {
            // There is nothing left to undo.
            Ok(report) => Ok(report),
            Err(Failed::Undoable(error)) => {
                drop(self);
                Err(error)
            }
            Err(Failed::TooLate(error)) => {
                std::mem::forget(self);
                Err(error)
            }
        }
    }
}

impl GroupGuard<Thread> {
    /// Makes this group the real and effective group of the calling thread only (`setresgid(2)`).
    ///
    /// Short for [`GroupChange::both`]`(group).`[`assume_on_thread`](GroupChange::assume_on_thread)`()`. What a server wants that serves
    /// each request as another group: its threads never meet, and other threads never change.
    ///
    /// # Privileges
    /// As for [`GroupChange::assume`].
    ///
    /// # Warning
    /// A thread or process started meanwhile has the group, and keeps it: also the threads of a pool that is started on first use.
    ///
    /// # Errors
    /// As for [`GroupChange::assume_on_thread`].
    ///
    /// # Examples
    /// ```no_run
    /// use privilege_guard::GroupGuard;
    ///
    /// std::thread::spawn(|| -> std::io::Result<()> {
    ///     let _guard = GroupGuard::assume_on_thread(1004)?;
    ///     std::fs::write("reply", "this thread is in group 1004, and the others are not")
    /// });
    /// ```
    pub fn assume_on_thread(group: impl Into<Gid>) -> Result<Self, Error> {
        GroupChange::both(group).assume_on_thread()
    }
}

impl<S: Scope> GroupGuard<S> {
    pub(crate) fn begin(change: GroupChange) -> Result<Self, Error> {
        // Outside the stack's borrow, and never as another group: a subscriber may be asked.
        let awaited = is_unchanged() && event::is_awaited();
        let begun = Self::begin_untold(&change, awaited);
        if let Err(error) = &begun {
            tell_if_unchanged(|| event::refused(S::KIND, &change, error));
        }
        begun
    }

    fn begin_untold(change: &GroupChange, awaited: bool) -> Result<Self, Error> {
        change.check()?;
        with_stack(|stack| {
            let key = stack.begin(S::KIND, change.wait, || Applied::apply(S::KIND, change.clone(), awaited))?;
            let original = stack.innermost(key)?.original;
            Ok(GroupGuard { key, original, scope: PhantomData })
        })
    }

    /// The calling thread's ids before this guard, which it puts back.
    ///
    /// # Examples
    /// ```
    /// use privilege_guard::{Error, GroupChange, GroupIds};
    ///
    /// let before = GroupIds::current()?;
    /// let guard = GroupChange::new().assume()?;
    /// assert_eq!(guard.original(), before);
    /// # Ok::<(), Error>(())
    /// ```
    pub fn original(&self) -> GroupIds {
        self.original
    }

    /// Ends the guard as a drop does, and says whether that was possible.
    ///
    /// # Errors
    /// [`Error::NotRestored`] where the kernel refuses: the process is still under the wrong group, so end it. The guard counts as alive from
    /// then on, is never undone, and dropping a guard that was made before it aborts. [`Error::InnerGuardAlive`] where guards made after this
    /// one are alive: nothing changed, and the undoing waits for theirs. [`Error::ThreadEnding`] where it has been undone, at the end of the thread.
    ///
    /// # Examples
    /// ```
    /// use privilege_guard::{GroupGuard, GroupIds};
    ///
    /// let guard = GroupGuard::assume_effective(GroupIds::current()?.real)?;
    /// if let Err(error) = guard.restore() {
    ///     eprintln!("{error}");
    ///     std::process::exit(1);
    /// }
    /// # Ok::<(), privilege_guard::Error>(())
    /// ```
    pub fn restore(self) -> Result<(), Error> {
        let guard = ManuallyDrop::new(self);
        match end(guard.key)? {
            End::Undone => Ok(()),
            End::Waits | End::Stuck => Err(Error::InnerGuardAlive),
        }
    }

    /// Runs `f` as the group and ends the guard, which so cannot be leaked or dropped too early.
    ///
    /// If `f` panics, the guard is dropped while unwinding.
    ///
    /// # Errors
    /// As for [`restore`](Self::restore), in place of what `f` returned. Where guards made after this one are alive, `f` is not called.
    ///
    /// # Examples
    /// ```
    /// use privilege_guard::{GroupGuard, GroupIds};
    ///
    /// let own = GroupIds::current()?.real;
    /// let sum = GroupGuard::assume_effective(own)?.run(|| 1 + 1)?;
    /// assert_eq!(sum, 2);
    /// # Ok::<(), privilege_guard::Error>(())
    /// ```
    pub fn run<T>(self, f: impl FnOnce() -> T) -> Result<T, Error> {
        if let Err(error) = with_stack(|stack| stack.innermost(self.key).map(drop)) {
            // Not a drop, which would abort where the undoing of an inner guard was refused.
            _ = self.restore();
            return Err(error);
        }
        let value = f();
        self.restore().map(|()| value)
    }

    /// Goes straight to another group, with one setting call; to the group that it is already, with none. What the guard puts back stays the same.
    ///
    /// Sets the ids that the guard's change named, and nothing else: supplementary groups stay what the guard made them. Clients that have some of
    /// their own need a guard each.
    ///
    /// # Privileges
    /// As for the guard itself.
    ///
    /// # Errors
    /// [`Error::Ambiguous`] where the change named two groups or none, [`Error::InnerGuardAlive`] on any guard but the innermost,
    /// [`Error::ThreadEnding`] on one that has been undone; [`Error::InvalidGid`], [`Error::NoMapping`], [`Error::NotPermitted`],
    /// [`Error::Irreversible`], [`Error::Call`], [`Error::Unreadable`] as for [`GroupChange::assume`]. The group stays what it was; where a change
    /// that half succeeded cannot be undone, the process aborts.
    ///
    /// # Examples
    /// ```no_run
    /// use privilege_guard::GroupGuard;
    ///
    /// let mut guard = GroupGuard::assume_on_thread(1004)?;
    /// for client in [1004, 1005, 1006] {
    ///     guard.switch_to(client)?;
    ///     std::fs::write(format!("reply.{client}"), "owned by the client's group")?;
    /// }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn switch_to(&mut self, group: impl Into<Gid>) -> Result<(), Error> {
        with_stack(|stack| stack.innermost(self.key)?.switch(group.into()))
    }
}

impl<S: Scope> Drop for GroupGuard<S> {
    fn drop(&mut self) {
        match end(self.key) {
            Ok(End::Undone | End::Waits) => {}
            // After the thread's stack has gone there is nothing left to undo: it was undone then.
            Err(Error::ThreadEnding) => {}
            Ok(End::Stuck) => last_words::abort(&"a guard inside this one could not be undone, so the process is under the wrong group"),
            Err(error) => last_words::abort(&error),
        }
    }
}

impl<S: Scope> fmt::Debug for GroupGuard<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GroupGuard").field("scope", &S::KIND).field("original", &self.original).finish_non_exhaustive()
    }
}

thread_local! {
    static STACK: RefCell<Stack<Applied>> = const { RefCell::new(Stack::new()) };
}

fn with_stack<T>(f: impl FnOnce(&mut Stack<Applied>) -> Result<T, Error>) -> Result<T, Error> {
    STACK.try_with(|stack| f(&mut stack.borrow_mut())).unwrap_or(Err(Error::ThreadEnding))
}

/// Ends a guard, and tells of it.
fn end(key: u64) -> Result<End, Error> {
    let (end, awaited) = with_stack(|stack| stack.end(key))?;
    if let Some(applied) = awaited {
        telling(|| applied.tell());
    }
    Ok(end)
}

/// Tells something, after the stack has begun to; ends that also where the subscriber panics.
fn telling(tell: impl FnOnce()) {
    scopeguard::defer! {
        _ = with_stack(|stack| {
            stack.told();
            Ok(())
        });
    }
    tell();
}

fn tell_if_unchanged(tell: impl FnOnce()) {
    if with_stack(|stack| Ok(stack.begin_telling())).unwrap_or(false) {
        telling(tell);
    }
}

/// Whether this thread is under no guard of its own, nor of another thread's.
fn is_unchanged() -> bool {
    with_stack(|stack| Ok(stack.is_idle())).unwrap_or(false) && !stack::process_guard_lives()
}

fn tell_of_drop(asked: &dyn fmt::Display, made: &Result<DropReport, Error>) {
    tell_if_unchanged(|| match made {
        Ok(report) => event::dropped(report),
        Err(error) => event::drop_refused(asked, error),
    });
}

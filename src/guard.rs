//! Guards: changes of identity that last until they are dropped.

use std::cell::RefCell;
use std::fmt;
use std::marker::PhantomData;
use std::mem::ManuallyDrop;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use tracing::level_filters::LevelFilter;

use crate::change::{Change, GroupChange, IdentityChange, UserChange};
use crate::engine::applied::{Applied, Kinds, Originals};
use crate::engine::stack::{EndOutcome, GuardStack, Restore};
use crate::engine::{abort, event};
use crate::error::{Error, RestoreError};
use crate::identity::Identity;
use crate::ids::{Gid, GroupIds, Uid, UserIds};
use crate::scope::{Process, Scope, Thread};

/// An RAII guard that changes identity and restores it when dropped.
///
/// See [`GroupGuard`], [`UserGuard`] and [`IdentityGuard`], for the kinds of ids. The scope `S` is
/// the whole [`Process`] or the calling [`Thread`].
///
/// However the scope is exited, including by a panic, the guard restores the calling thread's ids
/// of the changed kinds, the supplementary groups that it changed, the parent-death signal and (for
/// users) the capability sets. `errno` is left as it was. If the kernel refuses the restore, the
/// process aborts rather than continue under the wrong identity.
///
/// Guards nest, of all kinds mixed. The innermost active guard determines the identity. If a guard
/// is dropped while guards created after it are active, its restore is deferred until they end. A
/// leaked guard remains active until its thread ends, and is then restored.
///
/// A guard is neither `Send` nor `Sync`: it belongs to the thread that created it. A task that
/// holds one across an `.await` cannot be spawned.
///
/// # Warning
/// `let _ = GroupGuard::assume(g)?;` ends the guard at once. Name it, or use [`run`](Self::run).
///
/// # Examples
/// A spawned task cannot hold a guard across an `.await`, so this does not compile:
/// ```compile_fail
/// # fn spawn<F: std::future::Future + Send>(_: F) {}
/// # async fn reply() {}
/// spawn(async {
///     let guard = privilege_guard::GroupGuard::assume_on_thread(1004);
///     reply().await;
///     drop(guard);
/// });
/// ```
/// If the guard is dropped before the `.await`, it compiles:
/// ```
/// # fn spawn<F: std::future::Future + Send>(_: F) {}
/// # async fn reply() {}
/// spawn(async {
///     let guard = privilege_guard::GroupGuard::assume_on_thread(1004);
///     drop(guard);
///     reply().await;
/// });
/// ```
#[must_use = "the identity is restored when the guard is dropped: name it (`let _guard = ...`), \
         or use `run`"]
pub struct Guard<K: GuardKind, S: Scope = Process> {
    pub(crate) key: u64,
    original: K::Original,
    // Not Send: its frame is in this thread's stack.
    scope: PhantomData<(*const (), S)>,
}

/// A guard that changes the group ids and, if requested, the supplementary groups.
///
/// It corresponds to Python's `os.setregid` and the call that restores the ids, but also restores
/// the saved and the filesystem id.
///
/// # Examples
/// ```no_run
/// use privilege_guard::GroupGuard;
///
/// {
///     let _guard = GroupGuard::assume(1004)?;
///     std::fs::write("report", "owned by group 1004")?;
/// } // The group ids are exactly what they were.
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub type GroupGuard<S = Process> = Guard<Gid, S>;

/// A guard that changes the user ids, and restores them with the capability sets.
///
/// # Examples
/// ```no_run
/// use privilege_guard::UserGuard;
///
/// let guard = UserGuard::assume_effective_on_thread(1000)?;
/// guard.run(|| std::fs::write("report", "owned by user 1000"))?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub type UserGuard<S = Process> = Guard<Uid, S>;

/// A guard that changes user, group and supplementary groups together.
///
/// # Examples
/// ```no_run
/// use privilege_guard::{Identity, IdentityGuard};
///
/// let client = Identity::of_account("alice")?;
/// let guard = IdentityGuard::assume_effective_on_thread(&client)?;
/// guard.run(|| std::fs::write("report", "alice's"))?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub type IdentityGuard<S = Process> = Guard<Identity, S>;

/// The kind of ids that a guard changes: [`Gid`], [`Uid`] or [`Identity`] (both).
///
/// This trait is sealed.
pub trait GuardKind: sealed::Sealed {
    /// The ids that [`Guard::original`] returns.
    type Original: Copy + fmt::Debug;

    #[doc(hidden)]
    const GUARD_NAME: &'static str;

    #[doc(hidden)]
    #[allow(private_interfaces)]
    const KINDS: Kinds;

    #[doc(hidden)]
    #[allow(private_interfaces)]
    fn select(originals: Originals) -> Self::Original;
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for super::Gid {}
    impl Sealed for super::Uid {}
    impl Sealed for super::Identity {}
}

macro_rules! guard_kind {
    ($kind:ty, $name:literal, $original:ty, $kinds:expr, $select:expr) => {
        impl GuardKind for $kind {
            type Original = $original;
            const GUARD_NAME: &'static str = $name;
            #[allow(private_interfaces)]
            const KINDS: Kinds = $kinds;
            #[allow(private_interfaces)]
            fn select(originals: Originals) -> $original {
                $select(originals)
            }
        }
    };
}

guard_kind!(
    Gid,
    "GroupGuard",
    GroupIds,
    Kinds {
        users: false,
        groups: true
    },
    |from: Originals| from.group_ids
);
guard_kind!(
    Uid,
    "UserGuard",
    UserIds,
    Kinds {
        users: true,
        groups: false
    },
    |from: Originals| from.user_ids
);
guard_kind!(
    Identity,
    "IdentityGuard",
    (UserIds, GroupIds),
    Kinds {
        users: true,
        groups: true
    },
    |from: Originals| (from.user_ids, from.group_ids)
);

/// The functions that begin a guard, of one kind of change.
macro_rules! assume {
    ($change:ident, $kind:ty, $calls:literal) => {
        impl $change {
            #[doc = concat!("Makes the change in the whole process (", $calls, ").")]
            ///
            /// # Privileges
            /// CAP_SETGID in the effective set: for supplementary groups, for a group that is not
            /// the thread's real, effective or saved one, and for a change that could not be
            /// restored without it. CAP_SETUID likewise for users.
            ///
            /// # Errors
            /// Nothing is changed, or the change was rolled back. If the rollback is refused, the
            /// process aborts.
            ///
            /// - [`Error::InvalidGid`], [`Error::InvalidUid`] if an id is `-1`.
            /// - [`Error::TooManyGroups`] if there are more than 65536 supplementary groups.
            /// - [`Error::UnmappedGid`], [`Error::UnmappedUid`] if an id is not mapped in the user
            ///   namespace.
            /// - [`Error::NotPermitted`] if the kernel refuses the change.
            /// - [`Error::Irreversible`] if the change could not be undone.
            /// - [`Error::Busy`] if another thread holds a conflicting guard.
            /// - [`Error::ProcessGuardInThreadGuard`] if this thread holds a thread guard.
            /// - [`Error::ThreadDiffers`] if another thread could not follow the change or be
            ///   restored.
            /// - [`Error::ThreadNotChanged`] if libc skips a thread.
            /// - [`Error::ThreadsUnreadable`] if `/proc` cannot be read.
            /// - [`Error::SyscallFailed`], [`Error::ReadFailed`] if a call fails or is faked.
            /// - [`Error::ThreadEnding`] if the thread is running its destructors.
            pub fn assume(self) -> Result<Guard<$kind, Process>, Error> {
                Guard::begin(self.change)
            }

            #[doc = concat!("Makes the change on the calling thread only (", $calls, ", by raw calls).")]
            ///
            /// # Privileges
            /// As for [`assume`](Self::assume).
            ///
            /// # Errors
            /// As for [`assume`](Self::assume), except [`Error::ProcessGuardInThreadGuard`],
            /// [`Error::ThreadDiffers`], [`Error::ThreadNotChanged`] and
            /// [`Error::ThreadsUnreadable`], which only process guards return.
            pub fn assume_on_thread(self) -> Result<Guard<$kind, Thread>, Error> {
                Guard::begin(self.change)
            }
        }
    };
}

assume!(GroupChange, Gid, "`setresgid(2)`, `setgroups(2)`");
assume!(UserChange, Uid, "`setresuid(2)`");
assume!(
    IdentityChange,
    Identity,
    "`setgroups(2)`, `setresgid(2)`, `setresuid(2)`"
);

impl GroupGuard<Process> {
    /// Changes the real and effective group of the whole process, like `os.setregid(g, g)`.
    ///
    /// # Privileges
    /// As for [`GroupChange::assume`].
    ///
    /// # Errors
    /// As for [`GroupChange::assume`].
    ///
    /// # Examples
    /// ```
    /// use privilege_guard::{GroupGuard, GroupIds};
    ///
    /// let before = GroupIds::current()?;
    /// match GroupGuard::assume(1004) {
    ///     Ok(guard) => guard.run(|| println!("group 1004")),
    ///     Err(error) => println!("{error}"), // as an ordinary user: which privilege is missing
    /// }
    /// assert_eq!(GroupIds::current()?, before);
    /// # Ok::<(), privilege_guard::Error>(())
    /// ```
    #[doc(alias = "setregid")]
    #[doc(alias = "setresgid")]
    pub fn assume(group: impl Into<Gid>) -> Result<Self, Error> {
        GroupChange::both(group).assume()
    }

    /// Changes the effective group of the whole process, like `os.setregid(-1, g)`.
    ///
    /// Child processes keep the original real group, so set-group-ID programs should prefer this
    /// over [`assume`](Self::assume).
    ///
    /// # Privileges
    /// As for [`GroupChange::assume`].
    ///
    /// # Errors
    /// As for [`GroupChange::assume`].
    ///
    /// # Examples
    /// ```
    /// use privilege_guard::{GroupGuard, GroupIds};
    ///
    /// // Every process may set its effective group to its real group.
    /// let ids = GroupIds::current()?;
    /// GroupGuard::assume_effective(ids.real)?.run(|| println!("group {}", ids.real));
    /// # Ok::<(), privilege_guard::Error>(())
    /// ```
    #[doc(alias = "setegid")]
    pub fn assume_effective(group: impl Into<Gid>) -> Result<Self, Error> {
        GroupChange::new().effective(group).assume()
    }

    /// Changes the real group of the whole process, like `os.setregid(g, -1)`.
    ///
    /// # Privileges
    /// As for [`GroupChange::assume`].
    ///
    /// # Errors
    /// As for [`GroupChange::assume`].
    ///
    /// # Examples
    /// ```
    /// use privilege_guard::{GroupGuard, GroupIds};
    ///
    /// let ids = GroupIds::current()?;
    /// let guard = GroupGuard::assume_real(ids.effective)?;
    /// assert_eq!(guard.original(), ids);
    /// # Ok::<(), privilege_guard::Error>(())
    /// ```
    pub fn assume_real(group: impl Into<Gid>) -> Result<Self, Error> {
        GroupChange::new().real(group).assume()
    }
}

impl GroupGuard<Thread> {
    /// Changes the real and effective group of the calling thread only.
    ///
    /// Intended for servers that handle each request as a different group: thread guards on
    /// different threads never conflict with each other, and no other thread is affected.
    ///
    /// # Privileges
    /// As for [`GroupChange::assume`].
    ///
    /// # Warning
    /// Threads and child processes that are started while the guard is active keep the group,
    /// including the threads of a pool that is started on first use.
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
    ///     std::fs::write("reply", "only this thread has group 1004")
    /// });
    /// ```
    pub fn assume_on_thread(group: impl Into<Gid>) -> Result<Self, Error> {
        GroupChange::both(group).assume_on_thread()
    }

    /// Changes the effective group of the calling thread only, as file servers do
    /// (`setresgid(-1, g, -1)`).
    ///
    /// # Privileges
    /// As for [`GroupChange::assume`].
    ///
    /// # Errors
    /// As for [`GroupChange::assume_on_thread`].
    ///
    /// # Examples
    /// ```
    /// use privilege_guard::{GroupGuard, GroupIds};
    ///
    /// let own = GroupIds::current()?.real;
    /// let sum = GroupGuard::assume_effective_on_thread(own)?.run(|| 1 + 1);
    /// assert_eq!(sum, 2);
    /// # Ok::<(), privilege_guard::Error>(())
    /// ```
    pub fn assume_effective_on_thread(group: impl Into<Gid>) -> Result<Self, Error> {
        GroupChange::new().effective(group).assume_on_thread()
    }
}

impl UserGuard<Process> {
    /// Changes the effective user of the whole process, like `os.setreuid(-1, u)`.
    ///
    /// The client whose user id is assumed gains no power over the process: it cannot signal or
    /// trace it.
    ///
    /// # Privileges
    /// As for [`UserChange::assume`].
    ///
    /// # Warning
    /// A program that is executed under the guard keeps the original real user and can return to
    /// it. A forked child that executes nothing also keeps the saved user. `access(2)` and
    /// credentials sent over sockets use the real user.
    ///
    /// # Errors
    /// As for [`UserChange::assume`].
    ///
    /// # Examples
    /// ```
    /// use privilege_guard::{UserGuard, UserIds};
    ///
    /// // Every process may set its effective user to its real user.
    /// let own = UserIds::current()?.real;
    /// UserGuard::assume_effective(own)?.run(|| println!("user {own}"));
    /// # Ok::<(), privilege_guard::Error>(())
    /// ```
    #[doc(alias = "seteuid")]
    #[doc(alias = "setresuid")]
    pub fn assume_effective(user: impl Into<Uid>) -> Result<Self, Error> {
        UserChange::new().effective(user).assume()
    }

    /// Changes the real and effective user of the whole process, like `os.setreuid(u, u)`.
    ///
    /// In a multithreaded process, this returns [`Error::ThreadDiffers`] if the real user would
    /// change, because the securebits of other threads cannot be read.
    ///
    /// # Privileges
    /// As for [`UserChange::assume`].
    ///
    /// # Warning
    /// While a user's id is the real or the saved one, that user may send signals to the process,
    /// SIGKILL included, and fill its signal queue. Prefer
    /// [`assume_effective`](Self::assume_effective), except to run a program.
    ///
    /// If the user is over its limit of processes (`RLIMIT_NPROC`), `fork` and `exec` fail with
    /// EAGAIN while the guard is active.
    ///
    /// # Errors
    /// As for [`UserChange::assume`].
    #[doc(alias = "setreuid")]
    pub fn assume_real_and_effective(user: impl Into<Uid>) -> Result<Self, Error> {
        UserChange::both(user).assume()
    }
}

impl UserGuard<Thread> {
    /// Changes the effective user of the calling thread only, as file servers do
    /// (`setresuid(-1, u, -1)`).
    ///
    /// # Privileges
    /// As for [`UserChange::assume`].
    ///
    /// # Warning
    /// See [`assume_effective`](UserGuard::assume_effective).
    ///
    /// # Errors
    /// As for [`UserChange::assume_on_thread`].
    ///
    /// # Examples
    /// ```
    /// use privilege_guard::{UserGuard, UserIds};
    ///
    /// let own = UserIds::current()?.real;
    /// let sum = UserGuard::assume_effective_on_thread(own)?.run(|| 1 + 1);
    /// assert_eq!(sum, 2);
    /// # Ok::<(), privilege_guard::Error>(())
    /// ```
    pub fn assume_effective_on_thread(user: impl Into<Uid>) -> Result<Self, Error> {
        UserChange::new().effective(user).assume_on_thread()
    }

    /// Changes the real and effective user of the calling thread only.
    ///
    /// # Privileges
    /// As for [`UserChange::assume`].
    ///
    /// # Warning
    /// See [`assume_real_and_effective`](UserGuard::assume_real_and_effective). A signal that kills
    /// one thread kills the process.
    ///
    /// # Errors
    /// As for [`UserChange::assume_on_thread`].
    pub fn assume_real_and_effective_on_thread(user: impl Into<Uid>) -> Result<Self, Error> {
        UserChange::both(user).assume_on_thread()
    }
}

impl IdentityGuard<Process> {
    /// Changes the effective user and group and the supplementary groups of the whole process.
    ///
    /// # Privileges
    /// As for [`IdentityChange::assume`].
    ///
    /// # Warning
    /// See [`UserGuard::assume_effective`].
    ///
    /// # Errors
    /// As for [`IdentityChange::assume`].
    pub fn assume_effective(identity: &Identity) -> Result<Self, Error> {
        IdentityChange::effective(identity).assume()
    }

    /// Changes the real and effective user and group and the supplementary groups of the whole
    /// process.
    ///
    /// # Privileges
    /// As for [`IdentityChange::assume`].
    ///
    /// # Warning
    /// See [`UserGuard::assume_real_and_effective`].
    ///
    /// # Errors
    /// As for [`IdentityChange::assume`].
    pub fn assume_real_and_effective(identity: &Identity) -> Result<Self, Error> {
        IdentityChange::both(identity).assume()
    }
}

impl IdentityGuard<Thread> {
    /// Changes the effective user and group and the supplementary groups of the calling thread
    /// only.
    ///
    /// Intended for file servers that serve each request as its client.
    ///
    /// # Privileges
    /// As for [`IdentityChange::assume`].
    ///
    /// # Warning
    /// See [`UserGuard::assume_effective`].
    ///
    /// # Errors
    /// As for [`IdentityChange::assume_on_thread`].
    pub fn assume_effective_on_thread(identity: &Identity) -> Result<Self, Error> {
        IdentityChange::effective(identity).assume_on_thread()
    }

    /// Changes the real and effective user and group and the supplementary groups of the calling
    /// thread only.
    ///
    /// A program that is executed under this guard has exactly the identity's ids and groups.
    /// Unless the identity's user is 0, or the program's file grants privileges, its effective,
    /// permitted and ambient sets are empty and it cannot regain the original identity. The
    /// inheritable set is kept; it has an effect only on files with inheritable capabilities.
    ///
    /// # Privileges
    /// As for [`IdentityChange::assume`].
    ///
    /// # Warning
    /// See [`UserGuard::assume_real_and_effective`].
    ///
    /// # Errors
    /// As for [`IdentityChange::assume_on_thread`].
    pub fn assume_real_and_effective_on_thread(identity: &Identity) -> Result<Self, Error> {
        IdentityChange::both(identity).assume_on_thread()
    }
}

impl<S: Scope> GroupGuard<S> {
    /// Switches directly to another group with a single `setresgid` call.
    ///
    /// Switching to the current group makes no call. Only the requested ids change. Supplementary
    /// groups are left unchanged. It still restores the original ids.
    ///
    /// # Privileges
    /// As for the guard itself.
    ///
    /// # Errors
    /// The group stays what it was. If a partial change cannot be rolled back, the process
    /// aborts.
    ///
    /// - [`Error::NotOneId`] if the guard's change named two groups or none.
    /// - [`Error::NotInnermost`] if guards created after this one are active.
    /// - [`Error::ThreadEnding`] if the thread is running its destructors.
    /// - Otherwise as for [`GroupChange::assume`].
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
        // Before the stack is borrowed: the conversion is the program's code.
        let group = group.into();
        self.switch(|change| {
            GroupChange::both(group).change.validate()?;
            let one_id = || Error::NotOneId {
                requested: change.to_string(),
            };
            change.group.single().ok_or_else(one_id)?;
            Ok(Change {
                group: change.group.with(group),
                ..change.clone()
            })
        })
    }
}

impl<S: Scope> UserGuard<S> {
    /// Switches to another user, through the original one.
    ///
    /// Switching to the current user makes no call. The guard still restores the original ids.
    ///
    /// # Privileges
    /// As for the guard itself.
    ///
    /// # Errors
    /// As for [`GroupGuard::switch_to`]: the user stays what it was.
    pub fn switch_to(&mut self, user: impl Into<Uid>) -> Result<(), Error> {
        let user = user.into();
        self.switch(|change| {
            UserChange::both(user).change.validate()?;
            let one_id = || Error::NotOneId {
                requested: change.to_string(),
            };
            change.user.single().ok_or_else(one_id)?;
            Ok(Change {
                user: change.user.with(user),
                ..change.clone()
            })
        })
    }
}

impl<S: Scope> IdentityGuard<S> {
    /// Switches to another identity, through the original user.
    ///
    /// It usually makes four calls that change ids or groups, and fewer if parts are equal.
    /// Capability sets, an unusual filesystem id and the parent-death signal require further calls.
    /// Switching to the same identity makes no call. The guard still restores the original
    /// identity.
    ///
    /// # Privileges
    /// As for the guard itself.
    ///
    /// # Errors
    /// As for [`GroupGuard::switch_to`]: the identity stays what it was.
    ///
    /// # Examples
    /// ```no_run
    /// use privilege_guard::{Identity, IdentityGuard};
    ///
    /// let clients = [Identity::of_account("alice")?, Identity::of_account("bob")?];
    /// let mut guard = IdentityGuard::assume_effective_on_thread(&clients[0])?;
    /// for client in &clients {
    ///     guard.switch_to(client)?;
    ///     std::fs::write(format!("reply.{}", client.user()), "owned by the client")?;
    /// }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn switch_to(&mut self, identity: &Identity) -> Result<(), Error> {
        self.switch(|change| {
            IdentityChange::both(identity).change.validate()?;
            Ok(Change {
                user: change.user.with(identity.user()),
                group: change.group.with(identity.group()),
                supplementary: change
                    .supplementary
                    .as_ref()
                    .map(|_| identity.shared_groups()),
                wait: change.wait,
            })
        })
    }
}

impl<K: GuardKind, S: Scope> Guard<K, S> {
    fn begin(change: Change) -> Result<Self, Error> {
        let mut waiting = change.clone();
        let wants_event = wants_event(&mut waiting.wait);
        let begun = Self::begin_without_event(waiting, wants_event);
        if let Err(error) = &begun {
            emit_unless_changed(event::REFUSED, || event::refused(S::KIND, &change, error));
        }
        begun
    }

    pub(crate) fn begin_without_event(change: Change, wants_event: bool) -> Result<Self, Error> {
        change.validate()?;
        with_stack(|stack| {
            let wait = change.wait;
            let mut originals = None;
            let key = stack.begin(S::KIND, wait, || {
                let applied = Applied::apply(S::KIND, change, K::KINDS, wants_event)?;
                originals = Some(applied.original());
                Ok(applied)
            })?;
            let original = K::select(originals.ok_or(Error::NotInnermost)?);
            Ok(Guard {
                key,
                original,
                scope: PhantomData,
            })
        })
        .unwrap_or(Err(Error::ThreadEnding))
    }

    /// Returns the calling thread's ids before this guard, which it restores.
    ///
    /// # Examples
    /// ```
    /// use privilege_guard::{GroupChange, GroupIds};
    ///
    /// let before = GroupIds::current()?;
    /// let guard = GroupChange::new().assume()?;
    /// assert_eq!(guard.original(), before);
    /// # Ok::<(), privilege_guard::Error>(())
    /// ```
    pub fn original(&self) -> K::Original {
        self.original
    }

    /// Restores the original identity, and returns an error if the kernel refuses.
    ///
    /// This is the only function that returns such an error. `drop` and [`run`](Self::run) abort.
    /// `errno` is left as it was.
    ///
    /// # Errors
    /// - [`RestoreError::Refused`] if the kernel refuses. The process is under the wrong identity:
    ///   end it.
    /// - [`RestoreError::NotInnermost`] if guards created after this one are active. The restore is
    ///   deferred until they end. If the restore of one of them was refused, this guard is never
    ///   restored.
    /// - [`RestoreError::ThreadEnding`] if the thread is running its destructors. The guard has
    ///   been restored.
    pub fn restore(self) -> Result<(), RestoreError> {
        let _errno = ErrnoPreserved::new();
        let guard = ManuallyDrop::new(self);
        match end(guard.key)? {
            EndOutcome::Restored => Ok(()),
            EndOutcome::Deferred | EndOutcome::Blocked => Err(RestoreError::NotInnermost),
        }
    }

    /// Runs `f` under the changed identity, then restores the original one.
    ///
    /// Because this consumes the guard, it cannot be leaked or dropped early. If `f` panics, the
    /// guard is dropped during unwinding. If the kernel refuses the restore, the process aborts, so
    /// that a loop that logs errors cannot continue under the wrong identity. `errno` is left as
    /// `f` left it.
    ///
    /// # Panics
    /// Panics if guards created after this one are active, or if the thread is running its
    /// destructors. `f` is not called.
    ///
    /// # Examples
    /// ```
    /// use privilege_guard::{GroupGuard, GroupIds};
    ///
    /// let own = GroupIds::current()?.real;
    /// let sum = GroupGuard::assume_effective(own)?.run(|| 1 + 1);
    /// assert_eq!(sum, 2);
    /// # Ok::<(), privilege_guard::Error>(())
    /// ```
    pub fn run<T>(self, f: impl FnOnce() -> T) -> T {
        let is_innermost = with_stack(|stack| stack.innermost(self.key).is_some());
        assert!(
            is_innermost == Some(true),
            "`run` on a guard that is not the innermost active one"
        );
        f()
    }

    fn switch(&mut self, next: impl FnOnce(&Change) -> Result<Change, Error>) -> Result<(), Error> {
        with_stack(|stack| {
            let applied = stack.innermost(self.key).ok_or(Error::NotInnermost)?;
            let next = next(applied.change())?;
            applied.switch(next)
        })
        .unwrap_or(Err(Error::ThreadEnding))
    }
}

impl<K: GuardKind, S: Scope> Drop for Guard<K, S> {
    fn drop(&mut self) {
        let _errno = ErrnoPreserved::new();
        match end(self.key) {
            Ok(EndOutcome::Restored | EndOutcome::Deferred) => {}
            // The thread's stack has been dropped, which restored the guard.
            Err(RestoreError::ThreadEnding) => {}
            Ok(EndOutcome::Blocked) => abort::abort_with(
                &"a guard inside this one was not restored, so the identity is wrong",
            ),
            Err(error) => abort::abort_with(&error),
        }
    }
}

impl<K: GuardKind, S: Scope> fmt::Debug for Guard<K, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct(K::GUARD_NAME)
            .field("scope", &S::KIND)
            .field("original", &self.original)
            .finish_non_exhaustive()
    }
}

thread_local! {
    static STACK: RefCell<GuardStack<Applied>> = const { RefCell::new(GuardStack::new()) };
}

/// Calls `f` with the stack of this thread, or returns `None` if the thread is ending.
///
/// No code of the program may run in `f`: it might use a guard.
pub(crate) fn with_stack<T>(f: impl FnOnce(&mut GuardStack<Applied>) -> T) -> Option<T> {
    STACK.try_with(|stack| f(&mut stack.borrow_mut())).ok()
}

/// Ends a guard, and emits its event if one is due.
fn end(key: u64) -> Result<EndOutcome, RestoreError> {
    let ended = with_stack(|stack| stack.end(key)).unwrap_or(Err(RestoreError::ThreadEnding));
    let (outcome, ended) = ended?;
    if let Some(applied) = ended {
        emit_then_finish(|| applied.emit_event());
    }
    Ok(outcome)
}

/// Calls the subscriber, after [`GuardStack::begin_event`].
///
/// Its panic is caught: it could abort a process that is unwinding, or hide the result of a drop.
fn emit_then_finish<T>(emit: impl FnOnce() -> T) -> Option<T> {
    let emitted = catch_unwind(AssertUnwindSafe(emit));
    with_stack(GuardStack::finish_event);
    // The payload's destructor is the subscriber's code too, and might panic.
    emitted.map_err(std::mem::forget).ok()
}

/// Emits an event, unless a guard is active on this thread or a process guard on another one.
pub(crate) fn emit_unless_changed(level: LevelFilter, emit: impl FnOnce()) {
    let begin = |stack: &mut GuardStack<Applied>| stack.begin_event(Duration::ZERO);
    if event::has_listener(level) && with_stack(begin) == Some(true) {
        emit_then_finish(emit);
    }
}

/// Returns whether a subscriber is interested in the end of a guard that begins now.
///
/// It is consulted after a conflicting guard has ended, which takes part of the time to wait.
fn wants_event(wait: &mut Duration) -> bool {
    if !event::has_listener(event::ENDED) {
        return false;
    }
    let started = Instant::now();
    let may_consult = with_stack(|stack| stack.begin_event(*wait)) == Some(true);
    *wait = wait.saturating_sub(started.elapsed());
    may_consult && emit_then_finish(event::is_enabled) == Some(true)
}

/// Sets `errno` back when it is dropped, for code that reads it after a guard has ended.
struct ErrnoPreserved(i32);

impl ErrnoPreserved {
    fn new() -> Self {
        ErrnoPreserved(Errno::last_raw())
    }
}

impl Drop for ErrnoPreserved {
    fn drop(&mut self) {
        Errno::set_raw(self.0);
    }
}

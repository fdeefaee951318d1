//! The two scopes of a guard, as types.

/// Which threads a guard changes: [`Process`] or [`Thread`].
///
/// This trait is sealed: no other type implements it.
///
/// # Examples
/// ```
/// use privilege_guard::{GroupGuard, GroupIds, Process, Scope, Thread};
///
/// fn end<S: Scope>(guard: GroupGuard<S>) {
///     drop(guard);
/// }
/// end::<Process>(GroupGuard::assume_effective(GroupIds::current()?.effective)?);
/// end::<Thread>(GroupGuard::assume_effective_on_thread(GroupIds::current()?.effective)?);
/// # Ok::<(), privilege_guard::Error>(())
/// ```
pub trait Scope: sealed::Sealed {}

/// All threads of the process, through libc (`nptl(7)`).
///
/// When a guard ends, every other thread gets the calling thread's real, effective and saved ids.
/// The parent-death signals of other threads are lost.
///
/// After each change and each restore, every thread is checked in `/proc/self/task`.
/// Threads that libc skips without an error (for example if the signal queue is full) are detected.
///
/// # Warning
/// libc interrupts every other thread with a signal. Their system calls that are never restarted,
/// such as `poll`, return `EINTR`. If the kernel refuses the call on one thread but not on another
/// (because their seccomp filters or capabilities differ), glibc aborts the process. Use [`Thread`]
/// in programs whose threads differ.
#[derive(Debug)]
pub enum Process {}

/// The calling thread only, by raw system calls. The cost does not grow with the number of threads.
#[derive(Debug)]
pub enum Thread {}

impl Scope for Process {}
impl Scope for Thread {}

/// A [`Scope`] as a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ScopeKind {
    Process,
    Thread,
}

impl ScopeKind {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            ScopeKind::Process => "process",
            ScopeKind::Thread => "thread",
        }
    }
}

mod sealed {
    use super::ScopeKind;

    pub trait Sealed {
        #[allow(private_interfaces)]
        const KIND: ScopeKind;
    }

    impl Sealed for super::Process {
        #[allow(private_interfaces)]
        const KIND: ScopeKind = ScopeKind::Process;
    }

    impl Sealed for super::Thread {
        #[allow(private_interfaces)]
        const KIND: ScopeKind = ScopeKind::Thread;
    }
}

//! The limits that docs/security.md lists: that they are so. docs/traceability.md maps each one to its cases.

use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::cases;
use crate::common::calls;
use crate::common::fault::{self, Call, First};
use crate::common::guard::{SCOPES, Scope};
use crate::common::kernel::{self, CAP_SETGID, Ids};
use crate::common::program;
use crate::common::ring::{self, Personality, Ring, Waits};
use crate::common::sandbox::{self, Answer};
use crate::common::second_copy;
use crate::common::sibling::Sibling;
use crate::common::subscriber;
use crate::common::{self, Case};
use privilege_guard::{
    ConflictingGuard, DropError, Error, GroupChange, GroupGuard, PermanentDrop, RestoreError,
    Unrestored, UserGuard,
};

pub const CASES: &[Case] = cases![
    Root: a_chroot_of_user_0_can_be_left,
    Setgid: an_open_descriptor_stays_open,
    Setgid: a_process_started_under_a_guard_keeps_the_group,
    Setgid: a_thread_started_under_a_thread_guard_keeps_the_group,
    Setgid: exit_handlers_on_another_thread_run_as_the_group,
    Setgid: the_death_signals_of_other_threads_are_lost,
    Setgid: a_kept_group_is_given_to_all,
    Setgid: a_full_signal_queue_leaves_threads_out,
    Setgid: a_refused_tgkill_leaves_threads_out,
    Setgid: a_thread_that_libc_does_not_know_is_left_out,
    Setgid: a_thread_that_libc_passes_over_may_end_during_a_drop,
    Setgid: a_filter_on_another_thread_that_says_done,
    Setgid: a_process_guard_waits_for_every_thread,
    Setgid: a_made_up_reading_is_put_back,
    Setgid: the_dumpable_flag_stays_cleared,
    Setgid + io_uring: the_thread_of_an_io_uring_keeps_its_group,
    Setgid + io_uring: a_registered_personality_keeps_its_group,
    Setgid + io_uring: a_request_that_waits_may_keep_its_group,
    Setgid + io_uring: a_ring_from_before_a_fork_acts_as_the_parent,
    Setgid: a_process_started_before_a_drop_stays_what_it_was,
    Setgid: a_guard_in_pre_exec_has_ended_in_the_program,
    Nothing: a_guard_in_pre_exec_is_busy_for_good,
    Nothing: a_guard_in_a_signal_handler_aborts,
    Setgid: a_handler_that_forks_during_a_change_misleads_its_child,
    Setgid: a_parent_that_dies_during_a_change_is_not_reported,
    Setgid: a_child_that_is_process_1_too_gets_the_death_signal,
    Setgid: a_scope_returns_before_a_leaked_guard_is_undone,
    Setgid: ids_set_behind_its_back_are_not_seen,
    Setgid: a_user_namespace_entered_under_a_guard_is_not_seen,
    Nothing: two_copies_do_not_see_each_other,
    Nothing: a_forked_child_has_the_guards_of_other_threads_for_good,
    Nothing: a_forked_child_has_the_events_of_other_threads_for_good,
    Nothing: a_subscriber_that_waits_for_a_process_guard_waits_in_vain,
    Setgid: a_guard_leaked_by_a_late_destructor_is_not_undone,
    Setgid: a_guard_leaked_by_a_raw_exit_is_not_undone,
    Setgid: the_programs_handler_runs_before_an_abort,
    Setgid: a_child_with_both_ids_is_not_secure,
    Setgid: glibc_aborts_where_one_thread_may_not,
    Setgid: a_filter_that_does_not_refuse_a_try_ends_the_process,
    Root: an_executed_file_gives_what_it_gives,
    Root: a_thread_started_inside_has_other_capabilities,
    Setgid: closed_descriptors_refuse_the_restore,
];

const LONG_ENOUGH: Duration = Duration::from_secs(60);
const START: Ids = [3; 4];
const UNDER: Ids = [1004, 1004, 3, 1004];

fn start() {
    kernel::start_from(START, &[]);
}

/// Another thread, which does what it is asked to.
struct Worker {
    ask: Sender<Box<dyn FnOnce() + Send>>,
    _thread: JoinHandle<()>,
}

impl Worker {
    fn start() -> Self {
        let (ask, asked) = channel::<Box<dyn FnOnce() + Send>>();
        // Until the asker is gone.
        Worker {
            ask,
            _thread: std::thread::spawn(move || asked.into_iter().for_each(|work| work())),
        }
    }

    fn does<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        let (tell, told) = channel();
        self.ask
            .send(Box::new(move || tell.send(work()).expect("somebody waits")))
            .expect("the thread lives");
        told.recv().expect("an answer")
    }

    /// Takes a guard and keeps it until the sender that is returned is gone.
    fn holds(&self, scope: Scope, change: GroupChange) -> Sender<()> {
        let (tell, told) = channel();
        let (end, ended): (_, Receiver<()>) = channel();
        let work = move || {
            // Another one's may be about to end.
            let _guard = scope.assume(change.wait(LONG_ENOUGH)).unwrap();
            tell.send(()).unwrap();
            _ = ended.recv();
        };
        self.ask.send(Box::new(work)).expect("the thread lives");
        told.recv().expect("a guard");
        end
    }
}

fn an_open_descriptor_stays_open() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "of group 1004").unwrap();
    chown(file.path(), None, Some(1004)).unwrap();
    std::fs::set_permissions(file.path(), PermissionsExt::from_mode(0o640)).unwrap();
    start();
    kernel::become_user_with(CAP_SETGID);
    let open = || std::fs::File::open(file.path());
    let is_closed = || {
        assert_eq!(
            open().unwrap_err().kind(),
            std::io::ErrorKind::PermissionDenied
        )
    };

    is_closed();
    for scope in SCOPES {
        let mut opened = scope
            .assume(GroupChange::both(1004))
            .unwrap()
            .run(open)
            .unwrap();
        is_closed();
        let mut text = String::new();
        opened.read_to_string(&mut text).unwrap();
        assert_eq!(text, "of group 1004");
    }
    // And after a permanent drop.
    let opened = GroupGuard::assume(1004).unwrap().run(open).unwrap();
    PermanentDrop::to_group(3).apply().unwrap();
    is_closed();
    assert!(std::io::read_to_string(opened).unwrap().contains("1004"));
}

/// User 1234, with CAP_SETGID and no other capability.
/// A program that has begun, and waits for the end of its stdin.
fn spawn() -> Child {
    let mut child = program::copies()
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    // What it says, it says after the exec.
    child.stdin.as_ref().unwrap().write_all(&[0]).unwrap();
    child.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
    child
}

fn a_process_started_under_a_guard_keeps_the_group() {
    start();
    let worker = Worker::start();
    for scope in SCOPES {
        let guard = scope.assume(GroupChange::both(1004)).unwrap();
        let mut children = vec![spawn()];
        if scope == Scope::Process {
            children.push(worker.does(spawn));
        }
        guard.restore().unwrap();
        assert_eq!(kernel::ids(), START);
        for mut child in children {
            // The saved id is set by the exec.
            assert_eq!(kernel::identity_of_process(child.id()).ids, [1004; 4]);
            drop(child.stdin.take());
            assert!(child.wait().unwrap().success());
        }
    }
}

fn a_thread_started_under_a_thread_guard_keeps_the_group() {
    start();
    let started = |scope: Scope| {
        scope
            .assume(GroupChange::both(1004))
            .unwrap()
            .run(Sibling::start)
    };
    let under_a_thread_guard = started(Scope::Thread);
    assert_eq!(
        (kernel::ids(), under_a_thread_guard.identity().ids),
        (START, UNDER)
    );
    drop(under_a_thread_guard);
    // The end of a process guard changes all threads.
    assert_eq!(started(Scope::Process).identity().ids, START);
}

extern "C" fn exits_with_the_group() {
    let [_, effective, _] = kernel::getresgid();
    // SAFETY: it does not return.
    unsafe { libc::_exit(if effective == 1004 { 104 } else { 3 }) }
}

fn exit_handlers_on_another_thread_run_as_the_group() {
    let code = |guard_exits: bool| {
        let ended = kernel::in_child(|| {
            start();
            // SAFETY: the handler does nothing that it may not do.
            assert_eq!(unsafe { libc::atexit(exits_with_the_group) }, 0);
            std::mem::forget(GroupGuard::assume(1004).unwrap());
            if guard_exits {
                return 0;
            }
            std::thread::spawn(|| std::process::exit(0)).join().unwrap();
            unreachable!("the process ends");
        });
        ended.code()
    };
    assert_eq!(code(false), Some(104));
    // The thread that has the guard undoes it first.
    assert_eq!(code(true), Some(3));
}

fn the_death_signals_of_other_threads_are_lost() {
    start();
    let worker = Worker::start();
    let signal_after = |scope: Scope| {
        kernel::set_death_signal(libc::SIGUSR1);
        worker.does(|| kernel::set_death_signal(libc::SIGUSR2));
        scope
            .assume(GroupChange::both(1004))
            .unwrap()
            .restore()
            .unwrap();
        assert_eq!(kernel::death_signal(), libc::SIGUSR1);
        worker.does(kernel::death_signal)
    };
    assert_eq!(signal_after(Scope::Process), 0);
    assert_eq!(signal_after(Scope::Thread), libc::SIGUSR2);
}

fn a_kept_group_is_given_to_all() {
    start();
    let guard = GroupGuard::assume_on_thread(1004).unwrap();
    let kept = Worker::start();
    guard.restore().unwrap();
    assert_eq!((kernel::ids(), kept.does(kernel::ids)), (START, UNDER));

    kept.does(|| {
        assert!(matches!(
            GroupGuard::assume(1005),
            Err(Error::ThreadDiffers { .. })
        ))
    });
    assert!(matches!(
        GroupGuard::assume(1005),
        Err(Error::ThreadDiffers { .. })
    ));
    assert_eq!((kernel::ids(), kept.does(kernel::ids)), (START, UNDER));
}

/// libc skips the thread that `unreached` starts and returns. A process guard and a permanent drop notice it.
fn is_left_out<T>(unreached: impl Fn() -> (i32, T)) {
    kernel::passes_in_child(|| {
        start();
        let (other, _lives) = unreached();
        for change in [
            GroupChange::both(1004),
            GroupChange::new().real(1004),
            GroupChange::both(1004).no_supplementary(),
        ] {
            let error = change.assume().unwrap_err();
            let is_named = |thread_id: u32| thread_id == other.unsigned_abs();
            assert!(
                matches!(error, Error::ThreadNotChanged { thread_id, .. } if is_named(thread_id)),
                "{error}"
            );
            assert_eq!(error.raw_os_error(), Some(libc::EIO));
            assert_eq!(
                (kernel::ids(), kernel::identity_of(other).ids),
                (START, START)
            );
        }
        GroupGuard::assume_on_thread(1004)
            .unwrap()
            .restore()
            .unwrap();
    });
    let is_noticed = |drop: Result<privilege_guard::DropReport, DropError>| {
        let error = drop.unwrap_err();
        assert!(
            matches!(error, DropError::StillPrivileged { .. }),
            "{error}"
        );
    };
    kernel::passes_in_child(|| {
        start();
        let _lives = unreached();
        is_noticed(PermanentDrop::to_group(33).user(1234).apply());
    });
    kernel::passes_in_child(|| {
        kernel::start_from([3, 50, 50, 50], &[]);
        kernel::become_user_with(CAP_SETGID);
        kernel::give_up_capabilities(CAP_SETGID);
        let _lives = unreached();
        is_noticed(PermanentDrop::to_group(3).apply());
    });
}

/// libc no longer reaches a thread when the guard ends: the restore fails, or the process aborts.
fn is_left_behind(unreaches: fn()) {
    is_reported(unreaches);
    let line = kernel::aborts(|| {
        start();
        let _other = Sibling::start();
        let guard = GroupGuard::assume(1004).unwrap();
        unreaches();
        drop(guard);
    });
    assert!(
        line.contains("cannot restore the identity of thread"),
        "{line}"
    );
}

fn is_reported(unreaches: fn()) {
    kernel::passes_in_child(|| {
        start();
        let other = Sibling::start();
        let guard = GroupGuard::assume(1004).unwrap();
        unreaches();
        let error = guard.restore().unwrap_err();
        let expected = Unrestored::OtherThread {
            thread_id: other.thread().unsigned_abs(),
        };
        assert!(
            matches!(&error, RestoreError::Refused { what, .. } if *what == expected),
            "{error}"
        );
        assert_eq!((kernel::ids(), other.identity().ids), (START, UNDER));
    });
}

fn before_and_after(unreaches: fn()) {
    is_left_out(|| {
        let other = Sibling::start();
        unreaches();
        (other.thread(), other)
    });
    is_left_behind(unreaches);
}

fn a_full_signal_queue_leaves_threads_out() {
    before_and_after(|| {
        let none = libc::rlimit {
            rlim_cur: 0,
            rlim_max: 0,
        };
        assert_eq!(
            // SAFETY: a valid pointer.
            unsafe { libc::setrlimit(libc::RLIMIT_SIGPENDING, &raw const none) },
            0
        );
    });
}

fn a_refused_tgkill_leaves_threads_out() {
    let refuse = || sandbox::refuse(libc::SYS_tgkill, &[]);
    is_left_out(|| {
        let other = Sibling::start();
        refuse();
        (other.thread(), other)
    });
    // A drop cannot abort by a signal that the filter refuses, and the process ends by another one.
    is_reported(refuse);
}

/// `clone(2)` with a new stack, which is never freed, and the calling thread's thread-local data. Returns the id of what it starts.
fn raw_clone(flags: i32, runs: extern "C" fn(*mut libc::c_void) -> i32) -> i32 {
    let stack = Box::leak(vec![0u128; 4096].into_boxed_slice())
        .as_mut_ptr_range()
        .end;
    // SAFETY: the end of a stack that is large enough for what these do; they use no thread-local data while the calling thread does.
    let id = unsafe { libc::clone(runs, stack.cast(), flags, std::ptr::null_mut()) };
    assert!(id > 0, "{}", std::io::Error::last_os_error());
    id
}

extern "C" fn waits_for_good(_: *mut libc::c_void) -> i32 {
    loop {
        // SAFETY: no pointers.
        unsafe { libc::syscall(libc::SYS_ppoll, 0, 0, 0, 0, 0) };
    }
}

/// A thread that libc has not started.
pub(crate) fn raw_thread() -> i32 {
    raw_clone(OF_THIS_PROCESS, waits_for_good)
}

const OF_THIS_PROCESS: i32 = libc::CLONE_VM
    | libc::CLONE_FS
    | libc::CLONE_FILES
    | libc::CLONE_SIGHAND
    | libc::CLONE_THREAD
    | libc::CLONE_SYSVSEM;

fn a_thread_that_libc_does_not_know_is_left_out() {
    is_left_out(|| (raw_thread(), ()));
    kernel::aborts(|| {
        start();
        GroupGuard::assume(1004).unwrap().run(raw_thread);
    });
}

/// As those that libc passes over because they are ending.
fn a_thread_that_libc_passes_over_may_end_during_a_drop() {
    extern "C" fn ends_soon(_: *mut libc::c_void) -> i32 {
        // SAFETY: numbers only.
        unsafe { libc::usleep(20_000) };
        OVER.store(true, Ordering::SeqCst);
        0
    }
    start();
    raw_clone(OF_THIS_PROCESS, ends_soon);
    let report = PermanentDrop::to_group(33).user(1234).apply().unwrap();
    assert_eq!((OVER.load(Ordering::SeqCst), report.threads), (true, 1));
}

fn a_filter_on_another_thread_that_says_done() {
    is_left_out(|| {
        let other = Sibling::start_after(|| {
            sandbox::answer(calls::SYS_setresgid, &[], Answer::SuccessWithoutDoing)
        });
        (other.thread(), other)
    });
}

static STARTED: AtomicBool = AtomicBool::new(false);
static GO_ON: AtomicBool = AtomicBool::new(false);
static OVER: AtomicBool = AtomicBool::new(false);

/// Goes on for a while after it may.
extern "C" fn takes_its_time(_: *mut libc::c_void) -> i32 {
    STARTED.store(true, Ordering::SeqCst);
    while !GO_ON.load(Ordering::SeqCst) {
        std::hint::spin_loop();
    }
    // SAFETY: numbers only.
    unsafe { libc::usleep(200_000) };
    OVER.store(true, Ordering::SeqCst);
    0
}

/// Also libc's own signals, which its functions leave out.
fn blocks_every_signal_for_a_while() {
    let change = |how: i32| {
        let (all, none) = (u64::MAX, std::ptr::null_mut::<u64>());
        assert_eq!(
            // SAFETY: a valid pointer, and the size of what it points to.
            unsafe {
                libc::syscall(
                    libc::SYS_rt_sigprocmask,
                    how,
                    &raw const all,
                    none,
                    size_of_val(&all),
                )
            },
            0
        );
    };
    change(libc::SIG_BLOCK);
    takes_its_time(std::ptr::null_mut());
    change(libc::SIG_UNBLOCK);
}

fn waits_in_vfork_for_a_while() {
    raw_clone(
        libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD,
        takes_its_time,
    );
}

fn a_process_guard_waits_for_every_thread() {
    for held_up in [blocks_every_signal_for_a_while, waits_in_vfork_for_a_while] {
        kernel::passes_in_child(|| {
            start();
            let other = std::thread::spawn(held_up);
            while !STARTED.load(Ordering::SeqCst) {
                std::thread::yield_now();
            }
            GroupGuard::assume_on_thread(1004)
                .unwrap()
                .restore()
                .unwrap();
            assert!(!OVER.load(Ordering::SeqCst));
            GO_ON.store(true, Ordering::SeqCst);
            let guard = GroupGuard::assume(1004).unwrap();
            assert!(OVER.load(Ordering::SeqCst));
            guard.restore().unwrap();
            other.join().unwrap();
        });
    }
}

fn a_made_up_reading_is_put_back() {
    for scope in SCOPES {
        kernel::passes_in_child(|| {
            kernel::start_from(START, &[7, 8]);
            sandbox::answer(calls::SYS_getgroups, &[], Answer::SuccessWithoutDoing);
            scope
                .assume(GroupChange::both(1004).no_supplementary())
                .unwrap()
                .restore()
                .unwrap();
            assert_eq!(
                kernel::identity(),
                kernel::Identity {
                    ids: START,
                    groups: vec![]
                }
            );
        });
        kernel::passes_in_child(|| {
            start();
            // The call that sets nothing, and so tells what it is.
            sandbox::answer(
                calls::SYS_setfsgid,
                &[(0, u32::MAX)],
                Answer::SuccessWithoutDoing,
            );
            let guard = scope.assume(GroupChange::both(1004)).unwrap();
            assert_eq!(common::guard::raw(guard.original()), [3, 3, 3, 0]);
            guard.restore().unwrap();
            assert_eq!(kernel::ids(), [3, 3, 3, 0]);
        });
    }
}

fn the_dumpable_flag_stays_cleared() {
    // SAFETY: numbers only.
    let dumpable = || unsafe { libc::prctl(libc::PR_GET_DUMPABLE) };
    // SAFETY: numbers only.
    let set_dumpable = || assert_eq!(unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 1) }, 0);
    let owner = || std::fs::metadata("/proc/self/status").unwrap().uid();
    start();
    kernel::become_user_with(CAP_SETGID);
    let cleared: i32 = std::fs::read_to_string("/proc/sys/fs/suid_dumpable")
        .unwrap()
        .trim()
        .parse()
        .unwrap();
    if cleared == 1 {
        common::ignore("fs.suid_dumpable is 1 here");
    }
    for scope in SCOPES {
        set_dumpable();
        assert_eq!((dumpable(), owner()), (1, 1234));
        // Nothing is dumped that the group could not read.
        scope
            .assume(GroupChange::new().no_supplementary())
            .unwrap()
            .restore()
            .unwrap();
        assert_eq!((dumpable(), owner()), (1, 1234));
        scope
            .assume(GroupChange::both(1004))
            .unwrap()
            .restore()
            .unwrap();
        assert_eq!((dumpable(), owner()), (cleared, 0));
    }
    set_dumpable();
    assert_eq!((dumpable(), owner()), (1, 1234));
}

fn the_thread_of_an_io_uring_keeps_its_group() {
    start();
    let guard = GroupGuard::assume(1004).unwrap();
    let ring = ring::idle().unwrap();
    guard.restore().unwrap();
    let polls = kernel::all_threads()
        .into_iter()
        .find(|thread| kernel::is_io_worker(thread.thread))
        .unwrap();
    assert_eq!((kernel::ids(), polls.identity.ids), (START, UNDER));
    GroupGuard::assume(1005).unwrap().restore().unwrap();
    assert_eq!(kernel::identity_of(polls.thread).ids, UNDER);
    drop(ring);
}

fn a_registered_personality_keeps_its_group() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    start();
    let mut ring = Ring::new();
    let of = |name: &str| std::fs::metadata(path(name)).unwrap().gid();
    let own = ring.register_personality();
    let guard = GroupGuard::assume(1004).unwrap();
    let assumed = ring.register_personality();
    ring.make_file(&path("inside"), own);
    ring.make_file(&path("inside, without"), Personality::NONE);
    guard.restore().unwrap();
    ring.make_file(&path("after"), assumed);
    ring.make_file(&path("after, without"), Personality::NONE);
    assert_eq!(
        ["inside", "inside, without", "after", "after, without"].map(of),
        [3, 1004, 1004, 3]
    );

    let kept = kernel::answer_of_child(|| {
        PermanentDrop::to_group(33).apply().unwrap();
        ring.make_file(&path("dropped"), assumed);
        of("dropped").to_string()
    });
    assert_eq!(kept.unwrap(), "1004");
}

fn a_request_that_waits_may_keep_its_group() {
    let folder = tempfile::tempdir().unwrap();
    drop(Ring::new()); // or the case is ignored here, where no child of it can be
    let made = |waits: Waits, drops: bool| {
        let path = folder.path().join(format!("{waits:?}, {drops}"));
        kernel::passes_in_child(|| {
            start();
            let (reader, mut writer) = UnixStream::pair().unwrap();
            let reader = OwnedFd::from(reader);
            let mut ring = Ring::new();
            GroupGuard::assume(1004)
                .unwrap()
                .run(|| ring.make_file_after(&reader, &path, waits));
            if drops {
                // Only where there is a kernel thread.
                let dropped = PermanentDrop::to_group(33).apply();
                assert_eq!(
                    matches!(dropped, Err(DropError::KernelWorker { .. })),
                    waits == Waits::HandedOver,
                    "{dropped:?}"
                );
                assert_eq!(dropped.is_ok(), waits != Waits::HandedOver, "{dropped:?}");
            }
            assert!(!path.exists());
            writer.write_all(&[0]).unwrap();
            ring.is_done_after();
        });
        std::fs::metadata(path).unwrap().gid()
    };
    for keeps in [Waits::HandedOver, Waits::Drained] {
        assert_eq!(
            [made(keeps, false), made(keeps, true)],
            [1004, 1004],
            "{keeps:?}"
        );
    }
    assert_eq!(
        [made(Waits::Linked, false), made(Waits::Linked, true)],
        [3, 33]
    );
}

fn a_ring_from_before_a_fork_acts_as_the_parent() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file");
    start();
    let mut ring = Ring::polled();
    // The parent's thread reads the parent's memory.
    let request = ring.open(&path, Personality::NONE);
    kernel::passes_in_child(|| {
        PermanentDrop::to_group(33).apply().unwrap();
        assert_eq!(kernel::group_of_new_file(), 33);
        ring.make(request);
    });
    assert_eq!(std::fs::metadata(path).unwrap().gid(), 3);
    let refused = PermanentDrop::to_group(33).apply();
    assert!(
        matches!(refused, Err(DropError::KernelWorker { .. })),
        "{refused:?}"
    );
}

fn a_process_started_before_a_drop_stays_what_it_was() {
    start();
    let mut child = spawn();
    let before = kernel::identity_of_process(child.id());
    PermanentDrop::to_group(33).apply().unwrap();
    assert_eq!((kernel::ids(), before.ids), ([33; 4], START));
    assert_eq!(kernel::identity_of_process(child.id()), before);
    drop(child.stdin.take());
    assert!(child.wait().unwrap().success());
}

/// What the program says that it is, after `in_child` has run in the forked child.
fn status_after(
    in_child: impl FnMut() -> std::io::Result<()> + Send + Sync + 'static,
) -> std::io::Result<String> {
    let mut command = program::shows_status();
    // SAFETY: no other thread holds a lock that it could wait for.
    unsafe { command.pre_exec(in_child) };
    let output = command.output()?;
    let text = String::from_utf8(output.stdout).unwrap();
    Ok(text
        .lines()
        .find_map(|line| line.strip_prefix("Gid:\t"))
        .unwrap()
        .to_owned())
}

fn a_guard_in_pre_exec_has_ended_in_the_program() {
    start();
    let named = || {
        let _guard = GroupGuard::assume(1004)?;
        Ok(())
    };
    assert_eq!(status_after(named).unwrap(), "3\t3\t3\t3");
    // And one that has not ended is one no more.
    let leaked = || {
        std::mem::forget(GroupGuard::assume(1004)?);
        Ok(())
    };
    assert_eq!(status_after(leaked).unwrap(), "1004\t1004\t1004\t1004");
}

fn a_guard_in_pre_exec_is_busy_for_good() {
    let worker = Worker::start();
    let holding = worker.holds(Scope::Process, GroupChange::new());
    let own_group = || {
        let busy = GroupChange::new().wait(Duration::from_millis(20)).assume();
        assert!(matches!(busy, Err(Error::Busy { .. })), "{busy:?}");
        Err(std::io::Error::from_raw_os_error(libc::EAGAIN))
    };
    assert_eq!(
        status_after(own_group).unwrap_err().raw_os_error(),
        Some(libc::EAGAIN)
    );
    drop(holding);
}

extern "C" fn takes_a_guard(_: i32) {
    _ = GroupChange::new().assume_on_thread();
}

fn a_guard_in_a_signal_handler_aborts() {
    let text = kernel::aborts(|| {
        let worker = Worker::start();
        let _holding = worker.holds(Scope::Process, GroupChange::new());
        // SAFETY: what the handler may not do is what this is about. The numbers are a signal and a time.
        unsafe {
            libc::signal(
                libc::SIGALRM,
                takes_a_guard as *const () as libc::sighandler_t,
            );
            libc::alarm(1);
        }
        // The signal comes while it waits: inside the library.
        _ = GroupChange::new().wait(LONG_ENOUGH).assume();
    });
    assert!(text.contains("already borrowed"), "{text}");
}

/// The process that the handler has forked, in the process that it forked from.
static FORKED: AtomicI32 = AtomicI32::new(-1);

extern "C" fn forks(_: i32) {
    // SAFETY: the case sees to it that the signal comes where no lock is held.
    FORKED.store(unsafe { libc::fork() }, Ordering::SeqCst);
}

fn a_handler_that_forks_during_a_change_misleads_its_child() {
    const CANNOT_GO_BACK: i32 = 40;
    const HAS_THE_SIGNAL: i32 = 41;
    // Before the guard's end sets the signal again, and before it reads that back.
    for (option, misled) in [
        (libc::PR_SET_PDEATHSIG, HAS_THE_SIGNAL),
        (libc::PR_GET_PDEATHSIG, CANNOT_GO_BACK),
    ] {
        kernel::passes_in_child(|| {
            start();
            kernel::set_death_signal(libc::SIGTERM);
            let guard = GroupGuard::assume_on_thread(1004).unwrap();
            // SAFETY: what the handler does is what this is about.
            unsafe { libc::signal(libc::SIGUSR1, forks as *const () as libc::sighandler_t) };
            let (process, thread) = (std::process::id(), kernel::gettid());
            let call = Call {
                name: "prctl",
                number: libc::SYS_prctl,
                first: First::Is(option as u32),
            };
            fault::before_each(call, move || {
                if FORKED.load(Ordering::SeqCst) == -1 {
                    // SAFETY: numbers only.
                    unsafe { libc::syscall(libc::SYS_tgkill, process, thread, libc::SIGUSR1) };
                }
                while FORKED.load(Ordering::SeqCst) == -1 {
                    std::thread::yield_now();
                }
            });
            let ended = guard.restore();
            let child = FORKED.load(Ordering::SeqCst);
            if child == 0 {
                let code = match ended {
                    Err(RestoreError::Refused { .. }) if kernel::ids_by_calls() == START => {
                        CANNOT_GO_BACK
                    }
                    Ok(()) if kernel::death_signal() == libc::SIGTERM => HAS_THE_SIGNAL,
                    _ => 42,
                };
                // SAFETY: it does not return.
                unsafe { libc::_exit(code) }
            }
            ended.unwrap();
            assert_eq!(
                (kernel::ids(), kernel::death_signal()),
                (START, libc::SIGTERM)
            );
            let mut status = 0;
            // SAFETY: a valid pointer.
            assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
            assert_eq!(ExitStatus::from_raw(status).code(), Some(misled));
        });
    }
}

/// Whether a process whose parent dies while it is as `when` says lives on; it has SIGTERM as parent-death signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum When {
    /// After the kernel has cleared the signal, and before it is set again.
    DuringTheChange,
    UnderTheGuard,
}

fn survives_its_parent(when: When) -> bool {
    let (mut asker, told) = UnixStream::pair().unwrap();
    // The parent, which ends when it is told to.
    let parent = kernel::in_child(|| {
        let (mut dies, die) = UnixStream::pair().unwrap();
        // SAFETY: this process has one thread.
        if unsafe { libc::fork() } != 0 {
            drop(die);
            dies.read_exact(&mut [0]).unwrap();
            // SAFETY: it does not return.
            unsafe { libc::_exit(0) }
        }
        drop(dies);
        outlive(when, die, &told);
        0
    });
    assert!(parent.success());
    drop(told);
    let mut said = String::new();
    asker.read_to_string(&mut said).unwrap();
    assert!(["", "alive"].contains(&&*said), "{said}");
    said == "alive"
}

fn outlive(when: When, mut die: UnixStream, mut told: &UnixStream) {
    // SAFETY: no arguments.
    let parent = || unsafe { libc::getppid() };
    let first = parent();
    let mut parent_dies = move || {
        if parent() == first {
            die.write_all(&[0]).unwrap();
            while parent() == first {
                std::thread::yield_now();
            }
        }
    };
    kernel::set_death_signal(libc::SIGTERM);
    if when == When::UnderTheGuard {
        let _guard = GroupGuard::assume_on_thread(1004).unwrap();
        parent_dies();
    } else {
        let call = Call {
            name: "prctl",
            number: libc::SYS_prctl,
            first: First::Is(libc::PR_SET_PDEATHSIG as u32),
        };
        let this = kernel::gettid();
        fault::before_each(call, move || {
            if kernel::identity_of(this).ids[1] == 1004 {
                parent_dies();
            }
        });
        let guard = GroupGuard::assume_on_thread(1004).unwrap();
        assert_ne!(parent(), first);
        guard.restore().unwrap();
    }
    assert_eq!(kernel::state().death_signal, libc::SIGTERM);
    told.write_all(b"alive").unwrap();
}

fn a_parent_that_dies_during_a_change_is_not_reported() {
    start();
    assert!(survives_its_parent(When::DuringTheChange));
    assert!(!survives_its_parent(When::UnderTheGuard));
}

fn a_child_that_is_process_1_too_gets_the_death_signal() {
    let new_processes = || {
        assert_eq!(
            // SAFETY: a flag only.
            unsafe { libc::unshare(libc::CLONE_NEWPID) },
            0,
            "{}",
            std::io::Error::last_os_error()
        )
    };
    let child_of_process_1 = |is_one_too: bool| {
        let answer = kernel::answer_of_child(|| {
            new_processes();
            let answer = kernel::answer_of_child(|| {
                start();
                kernel::set_death_signal(libc::SIGTERM);
                let guard = GroupGuard::assume_on_thread(1004).unwrap();
                if is_one_too {
                    new_processes();
                }
                let answer = kernel::answer_of_child(|| {
                    assert_eq!(kernel::death_signal(), 0);
                    guard.restore().unwrap();
                    format!(
                        "process {}, signal {}",
                        std::process::id(),
                        kernel::death_signal()
                    )
                });
                answer.unwrap()
            });
            answer.unwrap()
        });
        answer.unwrap()
    };
    assert_eq!(child_of_process_1(false), "process 2, signal 0");
    assert_eq!(child_of_process_1(true), "process 1, signal 15");
}

/// At the end of its thread, says that it has come, and waits.
struct Late(Sender<()>, Receiver<()>);

impl Drop for Late {
    fn drop(&mut self) {
        self.0.send(()).expect("somebody waits");
        _ = self.1.recv();
    }
}

thread_local! {
    static LATE: std::cell::RefCell<Option<Late>> = const { std::cell::RefCell::new(None) };
}

fn a_scope_returns_before_a_leaked_guard_is_undone() {
    start();
    let (tell, told) = channel();
    let (go_on, wait) = channel();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            std::mem::forget(GroupGuard::assume(1004).unwrap());
            // Made later, it goes first.
            LATE.set(Some(Late(tell, wait)));
        });
    });
    told.recv().unwrap();
    assert_eq!(kernel::ids(), UNDER);
    assert!(matches!(GroupGuard::assume(1005), Err(Error::Busy { .. })));
    drop(go_on);
    GroupChange::both(1005)
        .wait(LONG_ENOUGH)
        .assume()
        .unwrap()
        .restore()
        .unwrap();
    assert_eq!(kernel::ids(), START);
}

fn ids_set_behind_its_back_are_not_seen() {
    for scope in SCOPES {
        kernel::start_from(START, &[7]);
        let mut guard = scope.assume(GroupChange::both(1004)).unwrap();
        kernel::raw_setresgid(Some(5), Some(5), Some(5)).unwrap();
        kernel::raw_setgroups(&[8]).unwrap();
        guard.switch_to(1004).unwrap();
        assert_eq!(kernel::ids(), [5; 4]);
        guard.restore().unwrap();
        // What the guard set is put back, and nothing else.
        assert_eq!(
            kernel::identity(),
            kernel::Identity {
                ids: START,
                groups: vec![8]
            }
        );
    }
}

fn a_user_namespace_entered_under_a_guard_is_not_seen() {
    let folder = tempfile::tempdir().unwrap();
    for scope in SCOPES {
        start();
        let file = folder.path().join(format!("{scope:?}"));
        let group = kernel::answer_of_child(|| {
            let guard = scope.assume(GroupChange::both(1004)).unwrap();
            kernel::enter_user_namespace();
            std::fs::write("/proc/self/setgroups", "deny").unwrap();
            std::fs::write("/proc/self/gid_map", "3 1004 1").unwrap();
            // Its 3 is another one now.
            guard.restore().unwrap();
            std::fs::write(&file, "").unwrap();
            kernel::ids()[1].to_string()
        });
        assert_eq!(group.unwrap(), "3");
        assert_eq!(std::fs::metadata(&file).unwrap().gid(), 1004);
        // Where no group has the number, the kernel refuses.
        let line = kernel::aborts(|| {
            let guard = scope.assume(GroupChange::both(1004)).unwrap();
            kernel::enter_user_namespace();
            drop(guard);
        });
        assert!(line.contains("EINVAL"), "{line}");
    }
}

fn two_copies_do_not_see_each_other() {
    let path = std::ffi::CString::new(second_copy::build().to_str().unwrap()).unwrap();
    // SAFETY: valid strings; the function has this type (tests/identity/second_copy/lib.rs).
    let second_copy: extern "C" fn() -> i32 = unsafe {
        let copy = libc::dlopen(path.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL);
        assert!(
            !copy.is_null(),
            "{path:?}: {:?}",
            std::ffi::CStr::from_ptr(libc::dlerror())
        );
        let function = libc::dlsym(copy, c"privilege_guard_second_copy".as_ptr());
        assert!(!function.is_null());
        std::mem::transmute(function)
    };
    for scope in SCOPES {
        let worker = Worker::start();
        let holding = worker.holds(scope, GroupChange::new());
        assert!(matches!(
            GroupChange::new().assume(),
            Err(Error::Busy { .. })
        ));
        assert_eq!(second_copy(), 0);
        drop(holding);
    }
}

fn a_forked_child_has_the_guards_of_other_threads_for_good() {
    let own = kernel::getresgid()[1];
    for scope in SCOPES {
        let worker = Worker::start();
        let holding = worker.holds(scope, GroupChange::new());
        let (mut parent, mut child) = UnixStream::pair().unwrap();
        let forked = std::thread::spawn(move || {
            kernel::in_child(|| {
                child.write_all(&[0]).unwrap();
                child.read_exact(&mut [0]).unwrap();
                let is_alive = |error| match error {
                    Err(Error::Busy {
                        conflict: ConflictingGuard::ProcessGuard { .. },
                    }) => scope == Scope::Process,
                    Err(Error::Busy {
                        conflict: ConflictingGuard::ThreadGuards { threads: 1 },
                    }) => scope == Scope::Thread,
                    _ => false,
                };
                assert!(is_alive(GroupChange::new().assume().map(drop)));
                assert_eq!(
                    GroupChange::new().assume_on_thread().is_ok(),
                    scope == Scope::Thread
                );
                assert!(matches!(
                    PermanentDrop::to_group(own).apply(),
                    Err(DropError::GuardsActive)
                ));
                // SAFETY: it does not return, and runs no destructor of the parent's.
                unsafe { libc::_exit(0) }
            })
        });
        parent.read_exact(&mut [0]).unwrap();
        // In the parent it ends.
        drop(holding);
        GroupChange::new()
            .wait(LONG_ENOUGH)
            .assume()
            .unwrap()
            .restore()
            .unwrap();
        parent.write_all(&[0]).unwrap();
        assert!(forked.join().unwrap().success());
    }
}

/// Until it is false, a thread that is told an event waits there.
static TELLING: AtomicBool = AtomicBool::new(true);

fn a_forked_child_has_the_events_of_other_threads_for_good() {
    let own = kernel::getresgid()[1];
    subscriber::listen_and(|| {
        STARTED.store(true, Ordering::SeqCst);
        while TELLING.load(Ordering::SeqCst) {
            std::thread::yield_now();
        }
    });
    let told = std::thread::spawn(|| {
        GroupChange::new()
            .assume_on_thread()
            .unwrap()
            .restore()
            .unwrap()
    });
    while !STARTED.load(Ordering::SeqCst) {
        std::thread::yield_now();
    }
    let (mut parent, mut child) = UnixStream::pair().unwrap();
    let forked = std::thread::spawn(move || {
        kernel::in_child(|| {
            TELLING.store(false, Ordering::SeqCst);
            child.write_all(&[0]).unwrap();
            child.read_exact(&mut [0]).unwrap();
            let busy = GroupChange::new().assume();
            assert!(
                matches!(
                    busy,
                    Err(Error::Busy {
                        conflict: ConflictingGuard::ThreadGuards { threads: 1 }
                    })
                ),
                "{busy:?}"
            );
            GroupChange::new()
                .assume_on_thread()
                .unwrap()
                .restore()
                .unwrap();
            assert!(matches!(
                PermanentDrop::to_group(own).apply(),
                Err(DropError::GuardsActive)
            ));
            // SAFETY: it does not return.
            unsafe { libc::_exit(0) }
        })
    });
    parent.read_exact(&mut [0]).unwrap();
    TELLING.store(false, Ordering::SeqCst);
    told.join().unwrap();
    parent.write_all(&[0]).unwrap();
    assert!(forked.join().unwrap().success());
    // In the parent it ends.
    GroupChange::new().assume().unwrap().restore().unwrap();
}

static WAITED: AtomicI32 = AtomicI32::new(0);

fn a_subscriber_that_waits_for_a_process_guard_waits_in_vain() {
    subscriber::listen_and(|| {
        // The other thread's refusal is told too.
        if WAITED.fetch_add(1, Ordering::SeqCst) == 0 {
            let other = std::thread::spawn(|| {
                GroupChange::new()
                    .wait(Duration::from_millis(100))
                    .assume()
                    .map(drop)
            });
            let busy = other.join().unwrap();
            assert!(
                matches!(
                    busy,
                    Err(Error::Busy {
                        conflict: ConflictingGuard::ThreadGuards { threads: 1 }
                    })
                ),
                "{busy:?}"
            );
        }
    });
    GroupChange::new()
        .assume_on_thread()
        .unwrap()
        .restore()
        .unwrap();
    assert_eq!(WAITED.load(Ordering::SeqCst), 2);
    std::thread::spawn(|| GroupChange::new().assume().unwrap().restore().unwrap())
        .join()
        .unwrap();
}

/// Which scope the destructor is to use.
static LATE_SCOPE: AtomicI32 = AtomicI32::new(0);
static REFUSED: AtomicBool = AtomicBool::new(false);

extern "C" fn leaks_a_guard(_: *mut libc::c_void) {
    let scope = SCOPES[LATE_SCOPE.load(Ordering::Relaxed) as usize];
    match scope.assume(GroupChange::both(1004)) {
        Ok(guard) => std::mem::forget(guard),
        Err(error) => REFUSED.store(matches!(error, Error::ThreadEnding), Ordering::Relaxed),
    }
}

/// Runs `before` on a thread at whose end a C library's destructor leaks a guard.
fn ends_with_a_leak(before: fn()) {
    let leaks = move || {
        let mut key = 0;
        // SAFETY: a valid pointer, and a value that is never read.
        unsafe {
            assert_eq!(
                libc::pthread_key_create(&raw mut key, Some(leaks_a_guard)),
                0
            );
            assert_eq!(libc::pthread_setspecific(key, std::ptr::dangling()), 0);
        }
        before();
    };
    std::thread::spawn(leaks).join().unwrap();
}

fn a_guard_leaked_by_a_late_destructor_is_not_undone() {
    for (index, scope) in (0..).zip(SCOPES) {
        LATE_SCOPE.store(index, Ordering::Relaxed);
        kernel::passes_in_child(|| {
            start();
            ends_with_a_leak(|| ());
            assert_eq!(
                kernel::ids(),
                if scope == Scope::Process {
                    UNDER
                } else {
                    START
                }
            );
            assert!(matches!(GroupGuard::assume(1005), Err(Error::Busy { .. })));
        });
        // A thread that has had a guard gets no more there.
        kernel::passes_in_child(|| {
            start();
            ends_with_a_leak(|| GroupGuard::assume(1004).unwrap().restore().unwrap());
            assert!(REFUSED.load(Ordering::Relaxed));
            assert_eq!(kernel::ids(), START);
            GroupGuard::assume(1005).unwrap().restore().unwrap();
        });
    }
}

fn a_guard_leaked_by_a_raw_exit_is_not_undone() {
    for scope in SCOPES {
        kernel::passes_in_child(|| {
            start();
            let (tell, told) = channel();
            // Not joined: Rust does not learn of this end.
            std::thread::spawn(move || {
                std::mem::forget(scope.assume(GroupChange::both(1004)).unwrap());
                tell.send(kernel::gettid()).unwrap();
                // SAFETY: it does not return, and nobody else has anything of this thread's.
                unsafe { libc::syscall(libc::SYS_exit, 0) };
            });
            let gone = format!("/proc/self/task/{}", told.recv().unwrap());
            while std::fs::exists(&gone).unwrap() {
                std::thread::yield_now();
            }
            assert_eq!(
                kernel::ids(),
                if scope == Scope::Process {
                    UNDER
                } else {
                    START
                }
            );
            let busy = GroupChange::both(1005)
                .wait(Duration::from_millis(20))
                .assume();
            assert!(matches!(busy, Err(Error::Busy { .. })), "{busy:?}");
        });
    }
}

static HANDLED: AtomicBool = AtomicBool::new(false);
static WENT_ON: AtomicBool = AtomicBool::new(false);

extern "C" fn handles_the_abort(_: i32) {
    HANDLED.store(true, Ordering::SeqCst);
    while !WENT_ON.load(Ordering::SeqCst) {
        std::thread::yield_now();
    }
    rustix::io::write(
        rustix::stdio::stderr(),
        if kernel::ids_by_calls() == UNDER {
            b"handled\n"
        } else {
            b"another\n"
        },
    )
    .unwrap();
}

fn the_programs_handler_runs_before_an_abort() {
    start();
    let text = kernel::aborts(|| {
        let guard = GroupGuard::assume_on_thread(1004).unwrap();
        sandbox::refuse(calls::SYS_setresgid, &[(1, 3)]);
        // SAFETY: the handler does nothing that a signal handler may not do.
        unsafe {
            libc::signal(
                libc::SIGABRT,
                handles_the_abort as *const () as libc::sighandler_t,
            )
        };
        std::thread::spawn(|| {
            while !HANDLED.load(Ordering::SeqCst) {
                std::thread::yield_now();
            }
            rustix::io::write(rustix::stdio::stderr(), b"went on\n").unwrap();
            WENT_ON.store(true, Ordering::SeqCst);
        });
        drop(guard);
    });
    let (line, rest) = text.split_once('\n').unwrap();
    assert!(
        line.starts_with("privilege-guard: cannot restore"),
        "{text}"
    );
    assert_eq!(rest, "went on\nhandled\n");
}

/// What the loader asks (`AT_SECURE`, getauxval(3)).
const ASKED: &str = "PRIVILEGE_GUARD_IS_SECURE";

fn a_child_with_both_ids_is_not_secure() {
    if std::env::var_os(ASKED).is_some() {
        // SAFETY: a number.
        let secure = unsafe { libc::getauxval(libc::AT_SECURE) };
        std::process::exit(40 + i32::from(secure != 0));
    }
    let is_secure = || {
        let mut child = Command::new("/proc/self/exe");
        child.env(common::CASE, common::running()).env(ASKED, "");
        match child.status().unwrap().code() {
            Some(40) => false,
            Some(41) => true,
            other => panic!("{other:?}"),
        }
    };
    // A set-group-ID program of group 50, before and after it has become its user.
    kernel::start_from([3, 50, 50, 50], &[]);
    kernel::give_up_capabilities(CAP_SETGID);
    assert!(is_secure());
    assert!(!GroupGuard::assume(50).unwrap().run(is_secure));
    let _user = GroupGuard::assume_effective(3).unwrap();
    assert!(!is_secure());
    assert!(!GroupGuard::assume(50).unwrap().run(is_secure));
    assert!(GroupGuard::assume_effective(50).unwrap().run(is_secure));
}

fn glibc_aborts_where_one_thread_may_not() {
    let ways: [fn(); 2] = [
        || sandbox::refuse(calls::SYS_setresgid, &[]),
        || kernel::give_up_capabilities(CAP_SETGID),
    ];
    for may_not in ways {
        let text = kernel::aborts(|| {
            start();
            let _other = Sibling::start_after(may_not);
            _ = GroupGuard::assume(1004);
        });
        // Not this library: that says why.
        assert!(!text.contains("privilege-guard: "), "{text}");
        kernel::passes_in_child(|| {
            start();
            let _other = Sibling::start_after(may_not);
            GroupGuard::assume_on_thread(1004)
                .unwrap()
                .restore()
                .unwrap();
        });
    }
}

fn a_filter_that_does_not_refuse_a_try_ends_the_process() {
    let drop_under = |filter: fn()| {
        kernel::in_child(|| {
            start();
            filter();
            i32::from(PermanentDrop::to_group(33).apply().is_err())
        })
    };
    assert!(drop_under(|| ()).success());
    // One that refuses it does what the kernel does.
    assert!(drop_under(|| sandbox::refuse(calls::SYS_setresgid, &[(0, 3)])).success());
    let killed = drop_under(|| sandbox::kill_for(calls::SYS_setresgid, &[(0, 3)]));
    assert_eq!(killed.signal(), Some(libc::SIGSYS), "{killed}");
    let aborted = drop_under(|| {
        sandbox::answer(calls::SYS_setresgid, &[(0, 3)], Answer::SuccessWithoutDoing)
    });
    assert_eq!(aborted.signal(), Some(libc::SIGABRT), "{aborted}");
}

/// Asks an executed copy of this program to report its effective group by its exit code.
const GROUP: &str = "PRIVILEGE_GUARD_GROUP";

fn an_executed_file_gives_what_it_gives() {
    if std::env::var_os(GROUP).is_some() {
        std::process::exit(kernel::getresgid()[1] as i32);
    }
    let folder = tempfile::tempdir().unwrap();
    std::fs::set_permissions(&folder, PermissionsExt::from_mode(0o755)).unwrap();
    let program = folder.path().join("set-group-id");
    std::fs::copy("/proc/self/exe", &program).unwrap();
    chown(&program, None, Some(50)).unwrap();
    std::fs::set_permissions(&program, PermissionsExt::from_mode(0o2755)).unwrap();
    let group_after = |drop: PermanentDrop| {
        kernel::in_child(|| {
            start();
            drop.apply().unwrap();
            executed(&program)
        })
    };
    let to_33 = || PermanentDrop::to_group(33).user(1234);
    assert_eq!(group_after(to_33()).code(), Some(50));
    assert_eq!(group_after(to_33().no_new_privs()).code(), Some(33));
    // A call cannot set the flag of another thread, so that a program which this one executes would get the group.
    let by_another = kernel::in_child(|| {
        start();
        let worker = Worker::start();
        let refused = to_33().no_new_privs().apply();
        assert!(
            matches!(refused, Err(DropError::NoNewPrivs { .. })),
            "{refused:?}"
        );
        to_33().apply().unwrap();
        kernel::set_no_new_privs();
        assert_eq!(executed(&program), 33);
        worker.does(move || executed(&program))
    });
    assert_eq!(by_another.code(), Some(50));
}

/// As which group the program runs.
fn executed(program: &Path) -> i32 {
    let mut child = Command::new(program);
    child
        .env(common::CASE, common::running())
        .env(GROUP, "")
        .env("TMPDIR", "/tmp");
    child.status().unwrap().code().unwrap()
}

/// By a second `chroot`, with the working directory outside; and by a descriptor of a directory outside, whoever has it.
fn a_chroot_of_user_0_can_be_left() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("below")).unwrap();
    let outside = std::fs::File::open("/usr").unwrap();
    let sees_outside = || {
        let flags = rustix::fs::OFlags::PATH;
        rustix::fs::openat(&outside, "bin", flags, rustix::fs::Mode::empty()).is_ok()
    };
    let escapes = || {
        rustix::process::chroot("below").is_ok()
            && std::env::set_current_dir("../../../../../../../../..").is_ok()
            && Path::new("usr").exists()
    };
    kernel::passes_in_child(|| {
        start();
        PermanentDrop::to_group(33).chroot(&folder).apply().unwrap();
        assert!(sees_outside() && escapes());
    });
    kernel::passes_in_child(|| {
        start();
        let drop = PermanentDrop::to_group(33).user(1234).chroot(&folder);
        drop.apply().unwrap();
        assert!(sees_outside() && !escapes());
    });
}

fn a_thread_started_inside_has_other_capabilities() {
    kernel::passes_in_child(|| {
        kernel::lower_capabilities(!(1 << 7 | 1 << 6));
        let before = kernel::capabilities();
        let guard = UserGuard::assume_effective(1000).unwrap();
        let inside = Sibling::start();
        guard.restore().unwrap();
        assert_eq!(kernel::capabilities(), before);
        let thread = inside.thread();
        let threads = kernel::all_threads();
        let other = threads.iter().find(|other| other.thread == thread);
        let other = &other.expect("it is alive").privileges;
        assert_eq!(other.users, [0; 4]);
        assert_eq!(other.capabilities[2], before.permitted);
        assert_ne!(other.capabilities[2], before.effective);
    });
}

fn closed_descriptors_refuse_the_restore() {
    let line = kernel::aborts(|| {
        let guard = GroupGuard::assume(1004).unwrap();
        // SAFETY: what is closed belongs to the library and to the runner, which is not needed here.
        assert_eq!(unsafe { libc::close_range(3, libc::c_uint::MAX, 0) }, 0);
        drop(guard);
    });
    assert!(line.contains("EBADF"), "{line}");
}

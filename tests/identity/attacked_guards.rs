//! What attackers found: a case, and counterparts, for each defect.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::panic::{AssertUnwindSafe, catch_unwind, panic_any};
use std::sync::atomic::{AtomicI32, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tracing::Level;
use tracing::level_filters::LevelFilter;

use crate::cases;
use crate::common::Case;
use crate::common::guard::{Guard, SCOPES};
use crate::common::kernel::{self, CAP_SETGID, CAP_SETUID, Capabilities, Privileges, State};
use crate::common::sandbox::{self, Answer};
use crate::common::subscriber::{listen, listen_and, listen_up_to, told, told_once};
use privilege_guard::{
    Error, Gid, GroupChange, GroupGuard, Identity, IdentityChange, IdentityGuard, PermanentDrop,
    RestoreError, UserGuard,
};

pub const CASES: &[Case] = cases![
    Root: a_switch_leaves_the_groups_before_the_user,
    Root + user_namespace: a_failed_switch_to_a_user_first_identity_leaves_the_identity,
    Root: a_guard_of_the_own_user_that_switches_keeps_the_death_signal,
    Setgid: a_switch_after_an_absorbed_guard_leaves_its_real_group,
    Root: a_user_guard_that_absorbed_a_group_guard_switches_the_user_only,
    Root + user_namespace: a_failed_switch_after_an_absorbed_guard_leaves_everything,
    Root: an_absorbed_group_is_restored_after_a_switch_up_to_user_0,
    Root: no_handler_runs_with_raised_capabilities_after_a_failed_restore,
    Root: a_switch_over_65534_needs_no_descriptor,
    Root + user_namespace: a_switch_over_an_unmapped_user_needs_no_descriptor,
    Root + user_namespace: a_switch_over_an_unmapped_group_needs_no_descriptor,
    Root: a_subscriber_up_to_a_level_is_told_of_each_event_of_that_level,
    Root: a_subscribers_payload_that_panics_aborts_nothing,
    Setgid: a_guard_that_waited_is_told,
    Setgid: thread_guards_are_served_while_the_end_of_a_process_guard_is_told,
    Root: signals_that_cannot_be_blocked_refuse_the_change,
];

/// The capability for the group comes back only with the user's capability sets.
fn an_absorbed_group_is_restored_after_a_switch_up_to_user_0() {
    kernel::passes_in_child(|| {
        kernel::start_from([10, 11, 12, 11], &[]);
        kernel::keep_capabilities();
        kernel::raw_setresuid(Some(1000), Some(1000), Some(0)).unwrap();
        kernel::set_capabilities(Capabilities {
            effective: CAP_SETUID | CAP_SETGID,
            permitted: CAP_SETUID | CAP_SETGID | 1,
            inheritable: 0,
        });
        let before = everything();
        let outer = GroupChange::both(2005).assume_on_thread().unwrap();
        let own = Identity::new(1000, 2005);
        let own = IdentityChange::effective(&own).keep_supplementary();
        let mut inner = own.assume_on_thread().unwrap();
        drop(outer);
        inner.switch_to(&Identity::new(0, 2005)).unwrap();
        inner.restore().unwrap();
        assert_eq!(everything(), before);
    });
}

fn everything() -> (State, Privileges) {
    let thread = kernel::gettid();
    let threads = kernel::all_threads();
    let own = threads.into_iter().find(|state| state.thread == thread);
    (kernel::state(), own.unwrap().privileges)
}

fn user_ids() -> [u32; 4] {
    everything().1.users
}

/// A set-user-ID program of root: the user's ids, saved user 0, with these capabilities.
fn set_user_id_program(groups: [u32; 4], supplementary: &[u32], effective: u64) {
    kernel::start_from(groups, supplementary);
    kernel::raw_setresuid(Some(1001), Some(1001), Some(0)).unwrap();
    kernel::set_capabilities(Capabilities {
        effective,
        permitted: CAP_SETUID | CAP_SETGID,
        inheritable: 0,
    });
    kernel::set_death_signal(libc::SIGTERM);
}

const IN_NAMESPACE: kernel::Namespace<'_> = kernel::Namespace {
    ids: [0; 4],
    groups: &[],
    uid_map: "0 0 5000",
    gid_map: "0 0 5000",
    denies_setgroups: false,
};
const UNMAPPED: u32 = 70_000;

/// CAP_SETGID is effective as user 0 only, so the original groups cannot be set as the original user.
fn a_switch_leaves_the_groups_before_the_user() {
    let (there, back) = (Identity::new(0, 2009), Identity::new(1001, 2002));
    let both: fn(&Identity) -> IdentityChange = IdentityChange::both;
    for (make, saved, is_served) in [
        (both, 2002, true),
        // No room for the real group, which is then lost.
        (both, 2003, false),
        (IdentityChange::effective, 2002, true),
        (IdentityChange::effective, 2003, true),
    ] {
        kernel::passes_in_child(|| {
            set_user_id_program([2001, 2002, saved, 2002], &[], CAP_SETUID);
            let before = everything();
            let change = make(&there).keep_supplementary();
            let mut guard = change.assume_on_thread().unwrap();
            let inside = everything();
            assert_eq!((inside.1.users[1], inside.0.identity.ids[1]), (0, 2009));
            let switched = guard.switch_to(&back);
            let now = everything();
            if is_served {
                switched.unwrap();
                assert_eq!((now.1.users[1], now.0.identity.ids[1]), (1001, 2002));
            } else {
                let error = switched.unwrap_err();
                assert!(matches!(error, Error::Irreversible { .. }), "{error:?}");
                assert_eq!(now, inside);
            }
            drop(guard);
            assert_eq!(everything(), before);
        });
    }
}

fn a_failed_switch_to_a_user_first_identity_leaves_the_identity() {
    let targets = [
        Identity::new(0, UNMAPPED).supplementary([2300]),
        Identity::new(0, 2003).supplementary([UNMAPPED]),
    ];
    for target in targets {
        kernel::passes_in(IN_NAMESPACE, || {
            set_user_id_program([2001; 4], &[2100], CAP_SETUID | CAP_SETGID);
            let before = everything();
            let first = Identity::new(1002, 2002).supplementary([2200]);
            let mut guard = IdentityGuard::assume_effective_on_thread(&first).unwrap();
            let inside = everything();
            let error = guard.switch_to(&target).unwrap_err();
            assert!(matches!(error, Error::UnmappedGid { .. }), "{error:?}");
            assert_eq!(everything(), inside);
            drop(guard);
            assert_eq!(everything(), before);
        });
    }
}

fn a_guard_of_the_own_user_that_switches_keeps_the_death_signal() {
    for user in [0, 1234] {
        kernel::passes_in_child(|| {
            if user != 0 {
                kernel::become_user_with(CAP_SETUID | CAP_SETGID);
            }
            kernel::set_death_signal(libc::SIGTERM);
            let before = everything();
            let mut guard = UserGuard::assume_effective_on_thread(user).unwrap();
            guard.switch_to(1002).unwrap();
            assert_eq!(user_ids()[1], 1002);
            assert_eq!(kernel::death_signal(), libc::SIGTERM);
            guard.restore().unwrap();
            assert_eq!(everything(), before);
        });
    }
}

fn a_switch_after_an_absorbed_guard_leaves_its_real_group() {
    kernel::start_from([3; 4], &[]);
    kernel::set_death_signal(libc::SIGTERM);
    let before = everything();
    for scope in SCOPES {
        let outer = scope.assume(GroupChange::both(2005)).unwrap();
        let mut inner = scope.assume(GroupChange::new().effective(2006)).unwrap();
        drop(outer);
        assert_eq!(kernel::ids(), [2005, 2006, 3, 2006]);
        inner.switch_to(2007).unwrap();
        assert_eq!(kernel::ids(), [2005, 2007, 3, 2007]);
        drop(inner);
        assert_eq!(everything(), before);
    }
}

fn a_user_guard_that_absorbed_a_group_guard_switches_the_user_only() {
    kernel::set_death_signal(libc::SIGTERM);
    let before = everything();
    let outer = GroupGuard::assume_on_thread(1004).unwrap();
    let mut inner = UserGuard::assume_effective_on_thread(0).unwrap();
    drop(outer);
    let groups = kernel::identity();
    assert_eq!(groups.ids[..2], [1004; 2]);
    inner.switch_to(1000).unwrap();
    assert_eq!((user_ids()[1], kernel::identity()), (1000, groups));
    drop(inner);
    assert_eq!(everything(), before);
}

fn a_failed_switch_after_an_absorbed_guard_leaves_everything() {
    let outers = [
        GroupChange::new().effective(2005),
        GroupChange::both(2005),
        GroupChange::new().supplementary([2100]),
        GroupChange::both(2005).supplementary([2100]),
    ];
    let client = Identity::new(0, 2006).supplementary([2200]);
    for outer in &outers {
        for keeps in [false, true] {
            kernel::passes_in(IN_NAMESPACE, || {
                kernel::start_from([0; 4], &[2050, 2051]);
                kernel::set_death_signal(libc::SIGTERM);
                let before = everything();
                let outer = outer.clone().assume_on_thread().unwrap();
                let change = IdentityChange::effective(&client);
                let change = if keeps {
                    change.keep_supplementary()
                } else {
                    change
                };
                let mut inner = change.assume_on_thread().unwrap();
                drop(outer);
                let inside = everything();
                let target = Identity::new(UNMAPPED, 2007).supplementary([2300]);
                let error = inner.switch_to(&target).unwrap_err();
                assert!(matches!(error, Error::UnmappedUid { .. }), "{error:?}");
                assert_eq!(everything(), inside);
                inner.restore().unwrap();
                assert_eq!(everything(), before);
            });
        }
    }
}

/// All capabilities that a handler has seen, and one bit that it ran.
static SEEN: AtomicU64 = AtomicU64::new(0);
const RAN: u64 = 1 << 63;

extern "C" fn look_at_capabilities(_: i32) {
    let effective = kernel::capabilities().effective;
    SEEN.fetch_or(effective | RAN, Ordering::SeqCst);
    _ = rustix::io::write(rustix::stdio::stderr(), b"the handler ran\n");
}

/// From now on each `capset` of the calling thread is refused, after the thread has been sent SIGUSR1.
fn refuse_capset_after_a_signal(listener: &mpsc::Sender<i32>) {
    let instruction = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
    let mut filter = [
        instruction(0x20, 0, 0, 0),
        instruction(0x15, 0, 1, libc::SYS_capset as u32),
        instruction(6, 0, 0, libc::SECCOMP_RET_USER_NOTIF),
        instruction(6, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog {
        len: 4,
        filter: filter.as_mut_ptr(),
    };
    kernel::set_no_new_privs();
    // SAFETY: the program lives longer than the call, which copies it.
    let descriptor = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            libc::SECCOMP_FILTER_FLAG_NEW_LISTENER,
            &raw const program,
        )
    };
    assert!(descriptor >= 0, "{}", std::io::Error::last_os_error());
    listener.send(descriptor as i32).unwrap();
}

/// A thread that answers for [`refuse_capset_after_a_signal`].
fn start_supervisor() -> mpsc::Sender<i32> {
    let (listener, listeners) = mpsc::channel::<i32>();
    let process = std::process::id() as i32;
    let thread = kernel::gettid();
    std::thread::spawn(move || {
        let Ok(descriptor) = listeners.recv() else {
            return;
        };
        // SECCOMP_IOCTL_NOTIF_RECV and _SEND
        let (receive, send) = (0xc050_2100_u32, 0xc018_2101_u32);
        loop {
            // SAFETY: all zero is what the kernel asks for, and the pointers are valid.
            unsafe {
                let mut asked: libc::seccomp_notif = std::mem::zeroed();
                if libc::ioctl(descriptor, receive as _, &raw mut asked) != 0 {
                    return;
                }
                libc::syscall(libc::SYS_tgkill, process, thread, libc::SIGUSR1);
                let mut answer: libc::seccomp_notif_resp = std::mem::zeroed();
                answer.id = asked.id;
                answer.error = -libc::EPERM;
                libc::ioctl(descriptor, send as _, &raw mut answer);
            }
        }
    });
    listener
}

/// User 0 has all permitted capabilities effective until the `capset` of the restore, which is refused.
fn no_handler_runs_with_raised_capabilities_after_a_failed_restore() {
    let guard = || {
        let handler = look_at_capabilities as *const () as usize;
        // SAFETY: the handler is a function of this signature.
        unsafe { libc::signal(libc::SIGUSR1, handler) };
        let supervisor = start_supervisor();
        kernel::lower_capabilities(!(CAP_SETUID | CAP_SETGID));
        let guard = UserGuard::assume_effective_on_thread(1001).unwrap();
        refuse_capset_after_a_signal(&supervisor);
        guard
    };
    let ends: [fn(UserGuard<privilege_guard::Thread>); 2] = [drop, |guard| guard.run(|| ())];
    for end in ends {
        let line = kernel::aborts(|| end(guard()));
        assert!(
            line.contains("capset") && !line.contains("the handler ran"),
            "{line}"
        );
    }
    let status = kernel::in_child(|| {
        let error = guard().restore().unwrap_err();
        assert!(matches!(error, RestoreError::Refused { .. }), "{error:?}");
        std::thread::sleep(Duration::from_millis(20));
        let seen = SEEN.load(Ordering::SeqCst);
        assert_eq!(seen & !RAN & !(CAP_SETUID | CAP_SETGID), 0, "{seen:x}");
        // Only so does it say something.
        assert_ne!(kernel::capabilities().effective, CAP_SETUID | CAP_SETGID);
        0
    });
    assert!(status.success() && status.signal().is_none(), "{status}");
}

/// What `f` does while no descriptor can be made.
fn without_descriptors<T>(f: impl FnOnce() -> T) -> T {
    let limit = getrlimit(Resource::Nofile);
    let none = Rlimit {
        current: Some(0),
        ..limit
    };
    setrlimit(Resource::Nofile, none).unwrap();
    let returned = f();
    setrlimit(Resource::Nofile, limit).unwrap();
    returned
}

/// The counterpart of the next two, where 65534 is a user of its own: it passed before the fix too.
fn a_switch_over_65534_needs_no_descriptor() {
    kernel::start_from([65534, 0, 0, 0], &[]);
    kernel::raw_setresuid(Some(65534), Some(0), Some(0)).unwrap();
    switches_users_without_descriptors();
}

fn a_switch_over_an_unmapped_user_needs_no_descriptor() {
    let (mut inside, mut outside) = UnixStream::pair().unwrap();
    let process = kernel::fork(|| {
        kernel::raw_setresuid(Some(UNMAPPED), Some(0), Some(0)).unwrap();
        kernel::enter_user_namespace();
        inside.write_all(&[0]).unwrap();
        inside.read_exact(&mut [0]).unwrap();
        switches_users_without_descriptors();
        0
    });
    outside.read_exact(&mut [0]).unwrap();
    for file in ["uid_map", "gid_map"] {
        std::fs::write(format!("/proc/{process}/{file}"), IN_NAMESPACE.uid_map).unwrap();
    }
    outside.write_all(&[0]).unwrap();
    assert!(kernel::wait(process).success());
}

/// The real user reads as 65534.
fn switches_users_without_descriptors() {
    kernel::set_death_signal(libc::SIGTERM);
    let before = everything();
    assert_eq!(before.1.users, [65534, 0, 0, 0]);
    let mut guard = UserGuard::assume_effective_on_thread(5).unwrap();
    without_descriptors(|| guard.switch_to(6)).unwrap();
    assert_eq!(user_ids(), [65534, 6, 0, 6]);
    without_descriptors(|| guard.restore()).unwrap();
    assert_eq!(everything(), before);

    let client = Identity::new(5, 5);
    let mut guard = IdentityGuard::assume_effective_on_thread(&client).unwrap();
    without_descriptors(|| guard.switch_to(&Identity::new(6, 6))).unwrap();
    assert_eq!((user_ids()[1], kernel::ids()[1]), (6, 6));
    without_descriptors(|| drop(guard));
    assert_eq!(everything(), before);
}

fn a_switch_over_an_unmapped_group_needs_no_descriptor() {
    let namespace = kernel::Namespace {
        ids: [UNMAPPED, 0, 0, 0],
        ..IN_NAMESPACE
    };
    kernel::passes_in(namespace, || {
        kernel::set_death_signal(libc::SIGTERM);
        let before = everything();
        assert_eq!(before.0.identity.ids, [65534, 0, 0, 0]);
        let mut guard = GroupGuard::assume_effective_on_thread(5).unwrap();
        without_descriptors(|| guard.switch_to(6)).unwrap();
        assert_eq!(kernel::ids(), [65534, 6, 0, 6]);
        without_descriptors(|| guard.restore()).unwrap();
        assert_eq!(everything(), before);
    });
}

fn a_subscriber_up_to_a_level_is_told_of_each_event_of_that_level() {
    let levels = [
        (LevelFilter::TRACE, [Level::WARN, Level::INFO].as_slice()),
        (LevelFilter::DEBUG, &[Level::WARN, Level::INFO]),
        (LevelFilter::INFO, &[Level::WARN, Level::INFO]),
        (LevelFilter::WARN, &[Level::WARN]),
        (LevelFilter::ERROR, &[]),
    ];
    for (level, expected) in levels {
        kernel::passes_in_child(|| {
            listen_up_to(level);
            assert!(GroupGuard::assume(u32::MAX).is_err());
            PermanentDrop::to_group(1004).user(1004).apply().unwrap();
            let told: Vec<_> = told().into_iter().map(|told| told.level).collect();
            assert_eq!(told, expected, "{level}");
        });
    }
}

struct PanicsWhenDropped;

impl Drop for PanicsWhenDropped {
    fn drop(&mut self) {
        panic!("the payload's destructor");
    }
}

fn a_subscribers_payload_that_panics_aborts_nothing() {
    let subscribe = || listen_and(|| panic_any(PanicsWhenDropped));
    for scope in SCOPES {
        let guard = move || scope.assume(GroupChange::both(1004)).unwrap();
        let ways: [fn(Guard); 3] = [
            |guard| guard.restore().unwrap(),
            drop,
            |guard| {
                let work = move || {
                    let _guard = guard;
                    panic!("the work")
                };
                let payload = catch_unwind(AssertUnwindSafe(work)).unwrap_err();
                assert_eq!(payload.downcast_ref(), Some(&"the work"));
            },
        ];
        for way in ways {
            kernel::passes_in_child(|| {
                let before = everything();
                subscribe();
                way(guard());
                assert_eq!(told_once().level, Level::DEBUG);
                assert_eq!(everything(), before);
                // Nothing is left taken.
                let other = std::thread::spawn(move || guard().restore().is_ok());
                assert!(other.join().unwrap());
            });
        }
        kernel::passes_in_child(|| {
            subscribe();
            let leaks = move || std::mem::forget(guard());
            std::thread::spawn(leaks).join().unwrap();
            assert_eq!(told_once().level, Level::DEBUG);
        });
    }
    kernel::passes_in_child(|| {
        subscribe();
        let report = PermanentDrop::to_group(1004).user(1004).apply().unwrap();
        assert_eq!(report.group, Gid::from(1004));
        assert_eq!(told_once().level, Level::INFO);
    });
}

const LONG_ENOUGH: Duration = Duration::from_secs(5);

fn a_guard_that_waited_is_told() {
    kernel::start_from([3; 4], &[]);
    listen();
    for scope in SCOPES {
        let (tell, begun) = mpsc::channel();
        let other = std::thread::spawn(move || {
            let guard = GroupGuard::assume(1005).unwrap();
            tell.send(()).unwrap();
            std::thread::sleep(Duration::from_millis(200));
            drop(guard);
        });
        begun.recv().unwrap();
        let change = GroupChange::both(1004).wait(LONG_ENOUGH);
        let guard = scope.assume(change).unwrap();
        other.join().unwrap();
        drop(guard);
        let mut requested: Vec<_> = told()
            .iter()
            .map(|told| (told.level, told.field("requested").to_owned()))
            .collect();
        requested.sort_by(|a, b| a.1.cmp(&b.1));
        let expected =
            [1004, 1005].map(|group| (Level::DEBUG, format!("real and effective group {group}")));
        assert_eq!(requested, expected, "{}", scope.name());
    }
}

/// A subscriber of the thread that has ended its guard.
fn thread_guards_are_served_while_the_end_of_a_process_guard_is_told() {
    static MAIN: AtomicI32 = AtomicI32::new(0);
    static SERVED: AtomicUsize = AtomicUsize::new(0);
    kernel::start_from([3; 4], &[]);
    MAIN.store(kernel::gettid(), Ordering::SeqCst);
    listen_and(|| {
        if kernel::gettid() != MAIN.load(Ordering::SeqCst) {
            return;
        }
        let other = std::thread::spawn(|| {
            let inside = GroupGuard::assume_on_thread(1005).map(|guard| guard.run(kernel::ids));
            assert_eq!(inside.unwrap(), [1005, 1005, 3, 1005]);
            assert_eq!(kernel::ids(), [3; 4]);
            // The process may not change meanwhile.
            assert!(matches!(GroupGuard::assume(1006), Err(Error::Busy { .. })));
        });
        other.join().unwrap();
        SERVED.fetch_add(1, Ordering::SeqCst);
    });
    for (index, scope) in SCOPES.into_iter().enumerate() {
        drop(scope.assume(GroupChange::both(1004)).unwrap());
        // A panic in there is caught.
        assert_eq!(SERVED.load(Ordering::SeqCst), index + 1, "{}", scope.name());
        assert_eq!(kernel::ids(), [3; 4]);
    }
    // Nothing is left taken.
    let other = std::thread::spawn(|| GroupGuard::assume(1004).unwrap().restore());
    other.join().unwrap().unwrap();
}

/// The restore raises capabilities until its end, and no handler may run meanwhile.
fn signals_that_cannot_be_blocked_refuse_the_change() {
    let answers = [
        Answer::Errno(libc::EPERM),
        Answer::Errno(libc::EINVAL),
        Answer::SuccessWithoutDoing,
    ];
    let client = Identity::new(1000, 1000).supplementary([1010]);
    let changes: [&dyn Fn() -> Result<(), Error>; 3] = [
        &|| UserGuard::assume_effective_on_thread(1000).map(drop),
        &|| IdentityGuard::assume_effective_on_thread(&client).map(drop),
        &|| IdentityGuard::assume_real_and_effective_on_thread(&client).map(drop),
    ];
    let start = || {
        kernel::lower_capabilities(kernel::CAP_SETPCAP);
        kernel::set_no_new_privs();
        kernel::set_death_signal(libc::SIGTERM);
        everything()
    };
    for answer in answers {
        for change in changes {
            kernel::passes_in_child(|| {
                let before = start();
                sandbox::answer(libc::SYS_rt_sigprocmask, &[], answer);
                let error = change().unwrap_err();
                assert!(error.to_string().contains("rt_sigprocmask"), "{error}");
                assert_eq!(everything(), before);
            });
        }
        kernel::passes_in_child(|| {
            start();
            let mut guard = IdentityGuard::assume_effective_on_thread(&client).unwrap();
            let inside = everything();
            sandbox::answer(libc::SYS_rt_sigprocmask, &[], answer);
            guard.switch_to(&Identity::new(1001, 1001)).unwrap_err();
            assert_eq!(everything(), inside);
            std::mem::forget(guard);
        });
    }
}

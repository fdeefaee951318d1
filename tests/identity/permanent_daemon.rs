//! Promise 8 for daemons: users and their capabilities, kept capabilities, a new root, programs that are the account already, and
//! the drops of user and identity guards. The judge is the kernel: `/proc` and raw calls.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};

use rustix::thread::CapabilitySet;

use crate::cases;
use crate::common::attack::{Old, Siblings, all_ways_back, ways_back_without_exec};
use crate::common::calls;
use crate::common::kernel::{self, CAP_SETGID, CAP_SETUID, Capabilities, ThreadState};
use crate::common::sandbox::{self, Answer};
use crate::common::sibling::Sibling;
use crate::common::{self, Case};
use privilege_guard::{
    CannotKeepReason, DropError, DropReport, Error, Gid, GroupGuard, Identity, IdentityGuard,
    LookupError, PermanentDrop, UserGuard,
};

pub const CASES: &[Case] = cases![
    Root: the_attackers_list_gets_nothing_back,
    Root: refused_rows_change_nothing,
    Root: each_step_refused_or_faked,
    Setgid: capabilities_that_lead_back_are_not_kept,
    Root: a_kept_capability_binds_a_low_port,
    Root: a_new_root_needs_no_proc,
    Root: a_thread_with_a_root_of_its_own_is_refused,
    Root: the_same_directory_mounted_twice_is_not_the_same_root,
    Root: already_the_account,
    NoSetgid: an_ordinary_user_is_the_account_already,
    Setgid: a_user_guard_leaves_the_groups_alone,
    Setgid: an_identity_guard_becomes_permanent,
    Setgid: set_user_id_programs_give_up_without_privilege,
    Setgid: other_threads_without_no_new_privs_are_in_the_way,
    Setgid: other_threads_with_other_groups_are_in_the_way,
    Nothing: a_user_by_number_needs_a_group,
    Root: the_state_is_given_to_the_account_before,
    Root: the_report_names_what_is_kept,
    Root: root_to_another_user_under_tokio,
    Root: a_fresh_session_keyring_hides_the_old_one,
];

const CAP_NET_BIND_SERVICE: u64 = 1 << 10;
const CAP_SYS_CHROOT: u64 = 1 << 18;
const KEPT: CapabilitySet = CapabilitySet::NET_BIND_SERVICE;

/// User 1234, group 33, supplementary group 1004.
fn account() -> Identity {
    Identity::new(1234, 33).supplementary([1004])
}

fn root() {
    kernel::start_from([0, 7, 8, 7], &[0, 7, 8]);
}

/// The account's groups; user ids as a set-user-ID program of this user has them, run by user 1234.
fn set_user_id(owner: u32) {
    kernel::start_from([33; 4], &[1004]);
    kernel::raw_setresuid(Some(1234), Some(owner), Some(owner)).unwrap();
}

fn set_user_id_root() {
    set_user_id(0);
}

fn set_user_id_root_as_its_user() {
    set_user_id(0);
    kernel::raw_setresuid(None, Some(1234), None).unwrap();
}

fn set_user_id_other() {
    set_user_id(5);
    assert_eq!(kernel::capabilities().permitted, 0);
}

fn inherit(mask: u64) {
    let sets = kernel::capabilities();
    kernel::set_capabilities(Capabilities {
        inheritable: sets.inheritable | mask,
        ..sets
    });
}

/// As a service manager starts it, with this capability in all sets.
fn account_with_ambient(mask: u64) {
    kernel::start_from([33; 4], &[1004]);
    kernel::become_user_with(mask);
    inherit(mask);
    assert!(kernel::raise_ambient(mask));
}

/// A read-only picture of the file system with `/proc`, in a mount namespace of this process: nothing in it can be removed.
fn bound_root() -> PathBuf {
    let path = std::env::temp_dir().join("root");
    if !path.exists() {
        std::fs::create_dir(&path).unwrap();
    }
    let shown = path.to_str().unwrap();
    kernel::own_mounts();
    kernel::mount("/", shown, "none", libc::MS_BIND);
    let read_only = libc::MS_BIND | libc::MS_REMOUNT | libc::MS_RDONLY;
    kernel::mount("none", shown, "none", read_only);
    kernel::mount(
        "/proc",
        &format!("{shown}/proc"),
        "none",
        libc::MS_BIND | libc::MS_REC,
    );
    path
}

/// What the kernel must say of every thread after a drop to the account.
#[track_caller]
fn is_account(threads: &[ThreadState], kept: u64, groups: Option<&[u32]>) {
    for thread in threads {
        let privileges = &thread.privileges;
        assert_eq!(privileges.users, [1234; 4]);
        let [inheritable, permitted, effective, _, ambient] = privileges.capabilities;
        assert_eq!(
            [inheritable, permitted, effective, ambient],
            [0, kept, kept, 0]
        );
        if let Some(groups) = groups {
            let groups = groups.to_vec();
            assert_eq!(
                thread.identity,
                kernel::Identity {
                    ids: [33; 4],
                    groups
                }
            );
        }
    }
}

type Drop = fn() -> Result<DropReport, DropError>;

struct Row {
    name: &'static str,
    start: fn(),
    drop: Drop,
    kept: u64,
    /// The groups may be had again: the drop leaves them alone.
    keeps_groups: bool,
}

const fn row(name: &'static str, start: fn(), drop: Drop) -> Row {
    Row {
        name,
        start,
        drop,
        kept: 0,
        keeps_groups: false,
    }
}

fn to_account() -> Result<DropReport, DropError> {
    PermanentDrop::to(&account()).apply()
}

fn keeping() -> Result<DropReport, DropError> {
    PermanentDrop::to(&account())
        .keep_capabilities(KEPT)
        .apply()
}

const BOUND: &str = "BOUND_ROOT";

fn root_with_bound_root() {
    root();
    let path = bound_root();
    // SAFETY: there is no other thread.
    unsafe { std::env::set_var(BOUND, path) };
}

fn with_chroot() -> Result<DropReport, DropError> {
    let root = std::env::var_os(BOUND).unwrap();
    PermanentDrop::to(&account()).chroot(root).apply()
}

fn with_all() -> Result<DropReport, DropError> {
    let root = std::env::var_os(BOUND).unwrap();
    PermanentDrop::to(&account())
        .chroot(root)
        .keep_capabilities(KEPT)
        .no_new_privs()
        .apply()
}

fn by_identity_guard() -> Result<DropReport, DropError> {
    IdentityGuard::assume_effective(&account())?.drop_permanently()
}

fn by_user_guard() -> Result<DropReport, DropError> {
    UserGuard::assume_effective(1234)?.drop_permanently()
}

/// With one thread.
const ALONE: [Row; 8] = [
    Row {
        kept: CAP_NET_BIND_SERVICE,
        ..row("root, a kept capability", root, keeping)
    },
    Row {
        kept: CAP_NET_BIND_SERVICE,
        ..row("root, everything", root_with_bound_root, with_all)
    },
    row(
        "keep-caps",
        || {
            root();
            kernel::keep_capabilities();
        },
        to_account,
    ),
    row(
        "no setuid fixup",
        || {
            root();
            // SAFETY: numbers only.
            assert_eq!(unsafe { libc::prctl(libc::PR_SET_SECUREBITS, 1 << 2) }, 0);
        },
        to_account,
    ),
    row(
        "inheritable and ambient",
        || {
            root();
            inherit(kernel::capabilities().permitted);
            assert!(kernel::raise_ambient(
                CAP_SETUID | CAP_SETGID | CAP_NET_BIND_SERVICE
            ));
        },
        to_account,
    ),
    row(
        "another user with capabilities",
        || {
            kernel::start_from([0, 7, 8, 7], &[0, 7, 8]);
            kernel::keep_capabilities();
            kernel::raw_setresuid(Some(5), Some(5), Some(5)).unwrap();
            kernel::raise_capabilities(u64::MAX);
        },
        to_account,
    ),
    row(
        "the account with ambient capabilities",
        || account_with_ambient(CAP_NET_BIND_SERVICE | CAP_SETUID),
        to_account,
    ),
    Row {
        kept: CAP_NET_BIND_SERVICE,
        ..row(
            "the account, one of its ambient capabilities",
            || account_with_ambient(CAP_NET_BIND_SERVICE | CAP_SETUID),
            keeping,
        )
    },
];

/// Also with other threads.
const WITH_THREADS: [Row; 11] = [
    row("root", root, to_account),
    row("root, a new root", root_with_bound_root, with_chroot),
    row("root, identity guard", root, by_identity_guard),
    Row {
        keeps_groups: true,
        ..row("root, user guard", root, by_user_guard)
    },
    row("set-user-ID root", set_user_id_root, to_account),
    row(
        "set-user-ID root, as its user",
        set_user_id_root_as_its_user,
        to_account,
    ),
    Row {
        keeps_groups: true,
        ..row(
            "set-user-ID root, user guard",
            set_user_id_root,
            by_user_guard,
        )
    },
    row(
        "set-user-ID root, identity guard",
        set_user_id_root,
        by_identity_guard,
    ),
    row("set-user-ID of another user", set_user_id_other, to_account),
    Row {
        keeps_groups: true,
        ..row(
            "set-user-ID of another user, user guard",
            set_user_id_other,
            by_user_guard,
        )
    },
    row(
        "the account",
        || {
            kernel::start_from([33; 4], &[1004]);
            kernel::become_user_with(0);
        },
        to_account,
    ),
];

fn the_attackers_list_gets_nothing_back() {
    let mut count = 0;
    let with_threads = || WITH_THREADS.iter();
    let alone = ALONE.iter().chain(with_threads()).map(|row| (row, 0));
    for (row, siblings) in alone.chain(with_threads().map(|row| (row, 3))) {
        println!("{}, {siblings} other threads", row.name);
        kernel::passes_in_child(|| {
            (row.start)();
            let siblings = Siblings::start(siblings);
            let (descriptors, before) = (kernel::descriptors(), kernel::all_threads());
            let report = (row.drop)().unwrap_or_else(|error| panic!("{}: {error}", row.name));
            assert_eq!(kernel::descriptors(), descriptors);
            let threads = kernel::all_threads();
            assert_eq!(report.threads, threads.len());
            assert!(report.regain_attempts_refused > 0);
            let groups = [1004];
            is_account(&threads, row.kept, (!row.keeps_groups).then_some(&groups));
            if report.root.is_some() {
                for thread in &threads {
                    let [root, working_directory] = thread.directories;
                    assert_eq!(root, working_directory);
                    assert_ne!(root, before[0].directories[0]);
                }
            }
            let old = Old {
                groups: if row.keeps_groups {
                    vec![]
                } else {
                    vec![0, 7, 8]
                },
                users: Some(vec![0, 5]),
                kept: row.kept,
            };
            assert_eq!(siblings.all_ways_back(&old), Vec::<String>::new());
            assert_eq!(all_ways_back(&old), Vec::<String>::new());
        });
        count += 1;
    }
    println!("= {count} rows, 0 ways back");
}

/// All that a refused drop has to leave alone.
fn everything() -> (Vec<ThreadState>, Vec<(u32, PathBuf)>, PathBuf, i32, i32) {
    // SAFETY: numbers only.
    let securebits = unsafe { libc::prctl(libc::PR_GET_SECUREBITS) };
    let place = std::env::current_dir().unwrap();
    (
        kernel::all_threads(),
        kernel::descriptors(),
        place,
        securebits,
        kernel::death_signal(),
    )
}

#[track_caller]
fn refused(drop: impl FnOnce() -> Result<DropReport, DropError>) -> DropError {
    let before = everything();
    let error = drop().expect_err("refused");
    assert_eq!(everything(), before, "{error}");
    error
}

fn refused_rows_change_nothing() {
    type Refused = (&'static str, fn(), PermanentDrop, fn(&DropError) -> bool);
    let folder = std::env::temp_dir().join("folder");
    std::fs::create_dir(&folder).unwrap();
    let file = std::env::temp_dir().join("file");
    std::fs::write(&file, "").unwrap();
    let closed = std::env::temp_dir().join("closed");
    std::fs::create_dir(&closed).unwrap();
    std::os::unix::fs::chown(&closed, Some(5), Some(5)).unwrap();
    std::fs::set_permissions(&closed, PermissionsExt::from_mode(0o700)).unwrap();
    let to = || PermanentDrop::to(&account());
    let rows: Vec<Refused> = vec![
        (
            "no such directory",
            root,
            to().chroot(folder.join("none")),
            |error| matches!(error, DropError::Chroot { os_error, .. } if os_error.raw_os_error() == Some(libc::ENOENT)),
        ),
        (
            "not a directory",
            root,
            to().chroot(&file),
            |error| matches!(error, DropError::Chroot { os_error, .. } if os_error.raw_os_error() == Some(libc::ENOTDIR)),
        ),
        (
            "a zero byte",
            root,
            to().chroot("a\0b"),
            |error| matches!(error, DropError::Chroot { os_error, .. } if os_error.raw_os_error() == Some(libc::EINVAL)),
        ),
        (
            "a directory that may not be entered",
            || {
                root();
                let sets = CAP_SETGID | CAP_SETUID | CAP_SYS_CHROOT;
                kernel::set_capabilities(Capabilities {
                    effective: sets,
                    permitted: sets,
                    inheritable: 0,
                });
            },
            to().chroot(&closed),
            |error| matches!(error, DropError::Chroot { os_error, .. } if os_error.raw_os_error() == Some(libc::EACCES)),
        ),
        (
            "without CAP_SYS_CHROOT",
            || {
                root();
                kernel::lower_capabilities(CAP_SYS_CHROOT);
            },
            to().chroot(&folder),
            |error| matches!(error, DropError::MissingSysChroot { .. }),
        ),
        (
            "chroot refused",
            || {
                root();
                sandbox::refuse(libc::SYS_chroot, &[]);
            },
            to().chroot(&folder),
            |error| matches!(error, DropError::Chroot { os_error, .. } if os_error.raw_os_error() == Some(libc::EPERM)),
        ),
        (
            "setresuid refused",
            || {
                root();
                sandbox::refuse(calls::SYS_setresuid, &[(0, 1234)]);
            },
            to().chroot(&folder).keep_capabilities(KEPT),
            |error| {
                matches!(
                    error,
                    DropError::Change(Error::SyscallFailed {
                        call: "setresuid",
                        ..
                    })
                )
            },
        ),
        (
            "setresgid refused",
            || {
                root();
                sandbox::refuse(calls::SYS_setresgid, &[(0, 33)]);
            },
            to().chroot(&folder),
            |error| matches!(error, DropError::Change(Error::NotPermitted { .. })),
        ),
        (
            "keep-caps locked",
            || {
                root();
                // SAFETY: numbers only.
                assert_eq!(unsafe { libc::prctl(libc::PR_SET_SECUREBITS, 1 << 5) }, 0);
            },
            to().keep_capabilities(KEPT),
            |error| {
                matches!(
                    error,
                    DropError::Change(Error::SyscallFailed {
                        call: "prctl(PR_SET_KEEPCAPS)",
                        ..
                    })
                )
            },
        ),
        (
            "no other user",
            root,
            PermanentDrop::to_group(33).keep_capabilities(KEPT),
            |error| {
                matches!(
                    error,
                    DropError::CannotKeep {
                        reason: CannotKeepReason::NoOtherUser,
                        ..
                    }
                )
            },
        ),
        (
            "user 0",
            root,
            PermanentDrop::to_group(33).user(0).keep_capabilities(KEPT),
            |error| {
                matches!(
                    error,
                    DropError::CannotKeep {
                        reason: CannotKeepReason::NoOtherUser,
                        ..
                    }
                )
            },
        ),
        (
            "a capability that is not effective",
            || {
                root();
                kernel::lower_capabilities(CAP_NET_BIND_SERVICE);
            },
            to().keep_capabilities(KEPT),
            |error| {
                matches!(
                    error,
                    DropError::CannotKeep {
                        reason: CannotKeepReason::NotEffective,
                        ..
                    }
                )
            },
        ),
        (
            "no CAP_SETUID",
            || {
                root();
                kernel::lower_capabilities(CAP_SETUID);
            },
            to().chroot(&folder),
            |error| matches!(error, DropError::MissingSetuid { user: 1234 }),
        ),
        (
            "other groups, and CAP_SETGID paused",
            || {
                set_user_id_root_as_its_user();
            },
            PermanentDrop::to(&account().supplementary([1005])).accept_supplementary(),
            |error| matches!(error, DropError::SetgidNotEffective),
        ),
        (
            "other groups",
            || {
                kernel::start_from([33; 4], &[1005]);
                kernel::become_user_with(0);
            },
            to(),
            |error| {
                matches!(error, DropError::SupplementaryDiffer { .. })
                    && error.to_string().contains(".accept_supplementary()")
            },
        ),
        (
            "capset refused",
            || {
                root();
                sandbox::refuse(libc::SYS_capset, &[]);
            },
            to().chroot(&folder),
            |error| {
                matches!(
                    error,
                    DropError::Change(Error::SyscallFailed { call: "capset", .. })
                )
            },
        ),
    ];
    let count = rows.len();
    for (name, start, drop, is_right) in rows {
        kernel::passes_in_child(|| {
            std::env::set_current_dir("/usr").unwrap();
            start();
            kernel::set_death_signal(libc::SIGUSR1);
            let error = refused(|| drop.clone().apply());
            assert!(is_right(&error), "{name}: {error:?}");
            assert!(std::io::Error::from(error).to_string().len() > 20);
        });
    }
    println!("= {count} rows, nothing changed");
}

/// Each call that a drop makes, refused or faked: an error with nothing changed, an error that says that the process has to end, or
/// an abort. `Ok` only where the kernel says that all is so.
fn each_step_refused_or_faked() {
    let filters: [(libc::c_long, &[(u8, u32)]); 19] = [
        (libc::SYS_chroot, &[]),
        (libc::SYS_fchdir, &[]),
        (calls::SYS_setgroups, &[]),
        (calls::SYS_setresgid, &[(0, 33)]),
        (
            libc::SYS_prctl,
            &[(0, libc::PR_SET_KEEPCAPS as u32), (1, 1)],
        ),
        (
            libc::SYS_prctl,
            &[(0, libc::PR_SET_KEEPCAPS as u32), (1, 0)],
        ),
        (libc::SYS_prctl, &[(0, libc::PR_GET_KEEPCAPS as u32)]),
        (calls::SYS_setresuid, &[(0, 1234)]),
        (libc::SYS_capset, &[]),
        (libc::SYS_prctl, &[(0, libc::PR_SET_NO_NEW_PRIVS as u32)]),
        (libc::SYS_prctl, &[(0, libc::PR_SET_PDEATHSIG as u32)]),
        // Of the attempts.
        (calls::SYS_setresuid, &[(0, 0)]),
        (calls::SYS_setresuid, &[(1, 0)]),
        (calls::SYS_setresuid, &[(2, 0)]),
        (calls::SYS_setuid, &[]),
        (calls::SYS_setfsuid, &[(0, 0)]),
        (calls::SYS_setresgid, &[(0, 7)]),
        (calls::SYS_setgid, &[]),
        (calls::SYS_setfsgid, &[(0, 7)]),
    ];
    let everything_asked = || {
        let drop = PermanentDrop::to(&account()).chroot(std::env::var_os(BOUND).unwrap());
        drop.keep_capabilities(KEPT).no_new_privs()
    };
    let with_threads = || PermanentDrop::to(&account()).chroot(std::env::var_os(BOUND).unwrap());
    let mut ended = [0; 4];
    for (call, arguments) in filters {
        for answer in [
            Answer::Errno(libc::EPERM),
            Answer::Errno(libc::ENOMEM),
            Answer::SuccessWithoutDoing,
        ] {
            for threads in [0, 2] {
                let status = kernel::in_child(|| {
                    root_with_bound_root();
                    std::env::set_current_dir("/usr").unwrap();
                    kernel::set_death_signal(libc::SIGUSR1);
                    let siblings = Siblings::start(threads);
                    sandbox::answer_on_all_threads(call, arguments, answer);
                    let before = everything();
                    let kept = if threads == 0 {
                        CAP_NET_BIND_SERVICE
                    } else {
                        0
                    };
                    let drop = if threads == 0 {
                        everything_asked()
                    } else {
                        with_threads()
                    };
                    match drop.apply() {
                        Ok(_) => {
                            let now = kernel::all_threads();
                            is_account(&now, kept, Some(&[1004]));
                            let is_inside = |thread: &ThreadState| {
                                thread.directories != before.0[0].directories
                                    && thread.directories[0] == thread.directories[1]
                            };
                            assert!(now.iter().all(is_inside));
                            assert!(threads > 0 || now[0].privileges.no_new_privs);
                            if answer != Answer::SuccessWithoutDoing {
                                let users = Some(vec![0]);
                                let old = Old {
                                    groups: vec![0, 7, 8],
                                    users,
                                    kept,
                                };
                                assert_eq!(siblings.all_ways_back(&old), Vec::<String>::new());
                                assert_eq!(all_ways_back(&old), Vec::<String>::new());
                            }
                            0
                        }
                        Err(DropError::StillPrivileged { .. }) => 2,
                        Err(error) => {
                            assert_eq!(everything(), before, "{error}");
                            1
                        }
                    }
                });
                let outcome = match (status.code(), status.signal()) {
                    (Some(code @ 0..=2), _) => code as usize,
                    (None, Some(libc::SIGABRT)) => 3,
                    _ => panic!("call {call} {arguments:?}, {answer:?}, {threads}: {status}"),
                };
                println!(
                    "call {call} {arguments:?}, {answer:?}, {threads} other threads: {outcome}"
                );
                ended[outcome] += 1;
            }
        }
    }
    let [exact, unchanged, told, aborted] = ended;
    assert!(exact > 10 && unchanged > 20, "{ended:?}");
    println!(
        "= exact {exact}, unchanged {unchanged}, told {told}, aborted {aborted}; 0 false successes"
    );
}

fn capabilities_that_lead_back_are_not_kept() {
    const BITS: [u32; 19] = [
        0, 1, 2, 3, 4, 27, 6, 7, 8, 31, 21, 18, 16, 19, 17, 33, 32, 39, 40,
    ];
    let names = "CAP_CHOWN, CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, CAP_FOWNER, CAP_FSETID";
    for bit in BITS {
        let one = CapabilitySet::from_bits_retain(1 << bit);
        for keep in [one, one | KEPT] {
            let drop = PermanentDrop::to(&account()).keep_capabilities(keep);
            match refused(|| drop.apply()) {
                DropError::CannotKeep {
                    capabilities,
                    reason,
                } => {
                    assert_eq!((capabilities, reason), (one, CannotKeepReason::LeadBack));
                }
                error => panic!("{error}"),
            }
        }
    }
    let drop =
        PermanentDrop::to(&account()).keep_capabilities(CapabilitySet::from_bits_retain(0x1f));
    let error = refused(|| drop.apply()).to_string();
    assert!(error.contains(names), "{error}");
    let _other = Sibling::start();
    let drop = PermanentDrop::to(&account()).keep_capabilities(KEPT);
    let error = refused(|| drop.apply());
    assert!(
        matches!(
            error,
            DropError::CannotKeep {
                reason: CannotKeepReason::Multithreaded,
                ..
            }
        ),
        "{error}"
    );
}

fn a_kept_capability_binds_a_low_port() {
    let low = "/proc/sys/net/ipv4/ip_unprivileged_port_start";
    if std::fs::read_to_string(low).is_ok_and(|first| first.trim() != "1024") {
        common::ignore("needs ports that an ordinary user may not bind");
    }
    let binds = || (600..1024).any(|port| std::net::TcpListener::bind(("127.0.0.1", port)).is_ok());
    kernel::passes_in_child(|| {
        root();
        let report = keeping().unwrap();
        assert_eq!(report.kept_capabilities, KEPT);
        assert!(!report.other_capabilities);
        assert!(binds());
    });
    kernel::passes_in_child(|| {
        root();
        to_account().unwrap();
        assert!(!binds());
    });
}

/// The judge is a process outside.
fn a_new_root_needs_no_proc() {
    use std::io::{Read, Write};
    // Nobody but root may enter it: the drop does not need to, once it is there.
    let folder = std::env::temp_dir().join("empty");
    std::fs::create_dir(&folder).unwrap();
    std::fs::set_permissions(&folder, PermissionsExt::from_mode(0o700)).unwrap();
    for threads in [0, 2] {
        let (mut inside, mut outside) = std::os::unix::net::UnixStream::pair().unwrap();
        let child = kernel::fork(|| {
            root();
            let siblings = Siblings::start(threads);
            inside.write_all(&[0]).unwrap();
            inside.read_exact(&mut [0]).unwrap();
            let report = PermanentDrop::to(&account())
                .chroot(&folder)
                .apply()
                .unwrap();
            assert_eq!(report.root.as_deref(), Some(folder.as_path()));
            inside.write_all(&[0]).unwrap();
            inside.read_exact(&mut [0]).unwrap();
            assert!(!Path::new("/proc").exists() && !Path::new("/usr").exists());
            let old = Old {
                groups: vec![0, 7, 8],
                users: Some(vec![0]),
                kept: 0,
            };
            assert_eq!(siblings.all_ways_back(&old), Vec::<String>::new());
            assert_eq!(ways_back_without_exec(&old), Vec::<String>::new());
            // Later guards of this thread need no /proc either.
            GroupGuard::assume_on_thread(33).unwrap().restore().unwrap();
            0
        });
        let process = child.unsigned_abs();
        outside.read_exact(&mut [0]).unwrap();
        let descriptors = kernel::descriptors_of(process);
        outside.write_all(&[0]).unwrap();
        outside.read_exact(&mut [0]).unwrap();
        assert_eq!(kernel::descriptors_of(process), descriptors);
        let after = kernel::all_threads_of(process);
        assert_eq!(after.len(), threads + 1);
        is_account(&after, 0, Some(&[1004]));
        let place = kernel::place(folder.to_str().unwrap());
        assert!(after.iter().all(|thread| thread.directories == [place; 2]));
        outside.write_all(&[0]).unwrap();
        assert!(kernel::wait(child).success());
    }
}

fn unshare_directories() {
    // SAFETY: a flag only.
    assert_eq!(unsafe { libc::unshare(libc::CLONE_FS) }, 0);
}

fn a_thread_with_a_root_of_its_own_is_refused() {
    let folder = std::env::temp_dir().join("folder");
    std::fs::create_dir(&folder).unwrap();
    let elsewhere = || {
        unshare_directories();
        std::env::set_current_dir("/proc").unwrap();
    };
    // In the same directories it can be found only after the change, which is rolled back.
    for unshare in [elsewhere, unshare_directories] {
        let folder = folder.clone();
        kernel::passes_in_child(move || {
            root();
            std::env::set_current_dir("/usr").unwrap();
            let other = Sibling::start_after(unshare);
            let drop = PermanentDrop::to(&account()).chroot(&folder);
            let error = refused(|| drop.clone().apply());
            let id = other.thread().unsigned_abs();
            assert!(
                matches!(&error, DropError::ThreadRoot { thread_id, .. } if *thread_id == id),
                "{error}"
            );
            std::mem::drop(other);
            drop.apply().unwrap();
        });
    }
}

/// A call of `chroot` that is faked, to the root itself mounted somewhere else, without what is mounted below it.
fn the_same_directory_mounted_twice_is_not_the_same_root() {
    root_with_bound_root();
    std::env::set_current_dir("/").unwrap();
    sandbox::answer(libc::SYS_chroot, &[], Answer::SuccessWithoutDoing);
    let error = refused(with_chroot);
    assert!(matches!(error, DropError::Chroot { .. }), "{error}");
}

fn already_the_account() {
    let start = |groups: &[u32]| {
        kernel::start_from([33; 4], groups);
        kernel::become_user_with(0);
    };
    kernel::passes_in_child(|| {
        start(&[1004]);
        let report = to_account().unwrap();
        assert!(report.supplementary_unchanged);
        assert_eq!(report.supplementary, [Gid::from_raw(1004)]);
    });
    let accepting = || PermanentDrop::to(&account()).accept_supplementary().apply();
    kernel::passes_in_child(|| {
        start(&[50, 60]);
        let _others = Siblings::start(2);
        let report = accepting().unwrap();
        assert!(report.supplementary_unchanged);
        assert_eq!(report.supplementary, [50, 60].map(Gid::from));
        is_account(&kernel::all_threads(), 0, Some(&[50, 60]));
    });
    // Started as root it has the account's.
    kernel::passes_in_child(|| {
        root();
        let report = accepting().unwrap();
        assert!(!report.supplementary_unchanged);
        is_account(&kernel::all_threads(), 0, Some(&[1004]));
    });
    // With CAP_SETGID of a service manager too.
    kernel::passes_in_child(|| {
        kernel::start_from([33; 4], &[50]);
        kernel::become_user_with(CAP_SETGID);
        accepting().unwrap();
        is_account(&kernel::all_threads(), 0, Some(&[1004]));
    });
    // What a container left in the inheritable set is lowered, and the groups are the account's already.
    kernel::passes_in_child(|| {
        kernel::start_from([33; 4], &[1004]);
        inherit(CAP_SETGID | CAP_NET_BIND_SERVICE);
        kernel::raw_setresuid(Some(1234), Some(1234), Some(1234)).unwrap();
        assert_ne!(kernel::capabilities().inheritable, 0);
        to_account().unwrap();
        is_account(&kernel::all_threads(), 0, Some(&[1004]));
    });
}

fn an_ordinary_user_is_the_account_already() {
    let own = kernel::all_threads().remove(0);
    let (user, group) = (own.privileges.users[0], own.identity.ids[0]);
    let identity = Identity::new(user, group).supplementary(own.identity.groups.clone());
    let report = PermanentDrop::to(&identity).no_new_privs().apply().unwrap();
    assert!(report.supplementary_unchanged && report.no_new_privs);
    assert_eq!(kernel::all_threads()[0].identity, own.identity);
    let others = identity.supplementary([1004]);
    let error = refused(|| PermanentDrop::to(&others).apply());
    assert!(
        matches!(error, DropError::SupplementaryDiffer { .. }),
        "{error}"
    );
    let report = PermanentDrop::to(&others)
        .accept_supplementary()
        .apply()
        .unwrap();
    assert_eq!(report.supplementary.len(), own.identity.groups.len());
}

fn a_user_guard_leaves_the_groups_alone() {
    root();
    let before = kernel::identity();
    let report = by_user_guard().unwrap();
    assert!(report.group_unchanged && report.supplementary_unchanged);
    assert_eq!(report.group.as_raw(), before.ids[1]);
    assert!(
        report
            .to_string()
            .starts_with("permanently user 1234; group unchanged: 7; "),
        "{report}"
    );
    assert_eq!(kernel::identity(), before);
    is_account(&kernel::all_threads(), 0, None);
}

fn an_identity_guard_becomes_permanent() {
    kernel::passes_in_child(|| {
        root();
        let report = by_identity_guard().unwrap();
        assert_eq!(report.group.as_raw(), 33);
        is_account(&kernel::all_threads(), 0, Some(&[1004]));
    });
    // Refused: the guard has been restored.
    kernel::passes_in_child(|| {
        root();
        let _other = Sibling::start_after(|| inherit(CAP_SETUID));
        let error = refused(by_identity_guard);
        assert!(
            matches!(error, DropError::Multithreaded { threads: 2 }),
            "{error}"
        );
        let error = refused(by_user_guard);
        assert!(
            matches!(error, DropError::Multithreaded { threads: 2 }),
            "{error}"
        );
    });
    kernel::passes_in_child(|| {
        root();
        let _outer = GroupGuard::assume(1004).unwrap();
        let error = refused(by_identity_guard);
        assert!(matches!(error, DropError::GuardsActive), "{error}");
    });
    kernel::passes_in_child(|| {
        root();
        let two = || {
            privilege_guard::UserChange::new()
                .real(0)
                .effective(1234)
                .assume()
        };
        let error = refused(|| two()?.drop_permanently());
        assert!(
            matches!(error, DropError::Change(Error::NotOneId { .. })),
            "{error}"
        );
    });
}

fn set_user_id_programs_give_up_without_privilege() {
    for (start, old) in [
        (set_user_id_root as fn(), 0),
        (set_user_id_root_as_its_user, 0),
        (set_user_id_other, 5),
    ] {
        for drop in [to_account as Drop, by_user_guard, by_identity_guard] {
            kernel::passes_in_child(|| {
                start();
                drop().unwrap();
                is_account(&kernel::all_threads(), 0, Some(&[1004]));
                assert_eq!(
                    kernel::raw_setresuid(None, Some(old), None),
                    Err(libc::EPERM)
                );
            });
        }
    }
}

fn other_threads_without_no_new_privs_are_in_the_way() {
    let flagged = || PermanentDrop::to(&account()).no_new_privs().apply();
    root();
    let other = Sibling::start();
    match refused(flagged) {
        DropError::NoNewPrivs { thread_id, .. } => {
            assert_eq!(thread_id, other.thread().unsigned_abs())
        }
        error => panic!("{error}"),
    }
    drop(other);
    // The calling one may lack it.
    let _other = Sibling::start_after(kernel::set_no_new_privs);
    let report = flagged().unwrap();
    assert!(report.no_new_privs);
    let all = kernel::all_threads();
    assert!(all.len() == 2 && all.iter().all(|thread| thread.privileges.no_new_privs));
}

fn other_threads_with_other_groups_are_in_the_way() {
    let differ: [fn(); 2] = [
        || kernel::raw_setresgid(None, None, Some(50)).unwrap(),
        || kernel::raw_setgroups(&[50]).unwrap(),
    ];
    for differ in differ {
        kernel::passes_in_child(move || {
            root();
            let _other = Sibling::start_after(differ);
            let error = refused(to_account);
            assert!(
                matches!(error, DropError::Change(Error::ThreadDiffers { .. })),
                "{error}"
            );
        });
    }
}

fn a_user_by_number_needs_a_group() {
    let unknown = "4000000000".parse::<Identity>();
    assert!(
        matches!(unknown, Err(LookupError::UnknownUid { uid: 4_000_000_000 })),
        "{unknown:?}"
    );
    let daemon: Identity = "997:998".parse().unwrap();
    assert_eq!(
        PermanentDrop::to(&daemon).to_string(),
        "permanently group 998, user 997"
    );
    assert!(daemon.supplementary_groups().is_empty());
}

fn the_state_is_given_to_the_account_before() {
    use std::os::unix::fs::MetadataExt;
    let folder = std::env::temp_dir().join("state");
    std::fs::create_dir(&folder).unwrap();
    let (user, group) = (account().user().as_raw(), account().group().as_raw());
    std::os::unix::fs::chown(&folder, Some(user), Some(group)).unwrap();
    to_account().unwrap();
    std::fs::write(folder.join("file"), "").unwrap();
    let file = std::fs::metadata(folder.join("file")).unwrap();
    assert_eq!((file.uid(), file.gid()), (1234, 33));
}

fn the_report_names_what_is_kept() {
    root_with_bound_root();
    let report = with_all().unwrap();
    let (root, line) = (std::env::var(BOUND).unwrap(), report.to_string());
    assert_eq!(
        line,
        format!(
            "permanently group 33, user 1234; supplementary groups: 1004; root {root:?}; threads verified: 1; \
             attempts to regain refused: 27; capabilities: CAP_NET_BIND_SERVICE; no_new_privs"
        )
    );
}

/// The threads of the runtime exist already. Only the group of it cannot be dropped so.
fn root_to_another_user_under_tokio() {
    root();
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime = runtime.worker_threads(2).build().unwrap();
    let error = refused(|| runtime.block_on(async { PermanentDrop::to_group(33).apply() }));
    assert!(matches!(error, DropError::Multithreaded { .. }), "{error}");
    let report = runtime.block_on(async { to_account() }).unwrap();
    assert!(report.threads > 2);
    is_account(&kernel::all_threads(), 0, Some(&[1004]));
}

fn keyctl(operation: libc::c_long, keyring: libc::c_long, name: &std::ffi::CStr) -> i64 {
    // SAFETY: valid C strings, and numbers.
    unsafe {
        #[allow(
            clippy::unnecessary_cast,
            reason = "c_long has 32 bits on some targets"
        )]
        let result = libc::syscall(
            libc::SYS_keyctl,
            operation,
            keyring,
            c"user".as_ptr(),
            name.as_ptr(),
            0,
        ) as i64;
        result
    }
}

fn a_fresh_session_keyring_hides_the_old_one() {
    const SESSION: libc::c_long = -3;
    const JOIN_SESSION: libc::c_long = 1;
    const SEARCH: libc::c_long = 10;
    let join = || keyctl(JOIN_SESSION, 0, c"");
    if join() < 0 {
        common::ignore("needs keyrings, which this kernel or sandbox has not");
    }
    let name = c"privilege-guard-test";
    // SAFETY: valid C strings, and a length.
    let added = unsafe {
        libc::syscall(
            libc::SYS_add_key,
            c"user".as_ptr(),
            name.as_ptr(),
            c"secret".as_ptr(),
            6,
            SESSION,
        )
    };
    assert!(added > 0, "{}", std::io::Error::last_os_error());
    let finds = || keyctl(SEARCH, SESSION, name) > 0;
    assert!(finds());
    // A drop leaves the keyring, and with it the possession of its keys.
    kernel::passes_in_child(|| {
        to_account().unwrap();
        assert!(finds());
    });
    kernel::passes_in_child(|| {
        assert!(join() > 0);
        to_account().unwrap();
        assert!(!finds());
    });
}

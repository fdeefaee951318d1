//! The semantics page's tables of the ids and of the calls: the kernel asked, from every start state of three ids.
//!
//! docs/traceability.md maps each row of the tables to a case.

use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::channel;
use std::time::Duration;

use crate::cases;
use crate::common::Case;
use crate::common::calls;
use crate::common::kernel::{self, CAP_SETGID, Ids};
use privilege_guard::GroupGuard;

pub const CASES: &[Case] = cases![
    Setgid: setresgid,
    Setgid: setregid,
    Setgid: setgid,
    Setgid: setfsgid,
    Setgid: setgroups,
    Root: setgroups_where_it_is_denied,
    Setgid: real_id,
    Setgid: effective_id,
    Setgid: saved_id,
    Setgid: filesystem_id,
    Setgid: supplementary_groups,
    Setgid: a_poll_of_another_thread_is_interrupted,
];

const VALUES: [u32; 3] = [3, 4, 5];
const OTHER: u32 = 9;
const ASKED: [Option<u32>; 5] = [None, Some(3), Some(4), Some(5), Some(OTHER)];

/// Real, effective and saved id of three values, the filesystem id of four.
fn starts() -> impl Iterator<Item = Ids> {
    let all = (0..3 * 3 * 3 * 4).map(|n| [n % 3, n / 3 % 3, n / 9 % 3, n / 27]);
    all.map(|[real, effective, saved, filesystem]| {
        [
            VALUES[real],
            VALUES[effective],
            VALUES[saved],
            [3, 4, 5, OTHER][filesystem],
        ]
    })
}

/// Whether this id may be set: with CAP_SETGID any, without it these.
type May<'a> = &'a dyn Fn(u32, &[u32]) -> bool;

/// From every start, with CAP_SETGID and without, the kernel makes what `model` says, or refuses where that is `None`.
fn walk<A: Copy + std::fmt::Debug>(
    asked: &[A],
    call: fn(A) -> Result<(), i32>,
    model: fn(A, Ids, May) -> Option<Ids>,
) {
    let [mut made, mut refused] = [0, 0];
    // SAFETY: numbers only.
    let [dumpable, set_dumpable] = [
        || unsafe { libc::prctl(libc::PR_GET_DUMPABLE) },
        || unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 1) },
    ];
    let cleared: i32 = std::fs::read_to_string("/proc/sys/fs/suid_dumpable")
        .unwrap()
        .trim()
        .parse()
        .unwrap();
    for start in starts() {
        for &asked in asked {
            for privileged in [true, false] {
                kernel::raw_setresgid(Some(start[0]), Some(start[1]), Some(start[2])).unwrap();
                assert!(kernel::raw_setfsgid(start[3]));
                assert_eq!(set_dumpable(), 0);
                kernel::set_death_signal(libc::SIGUSR1);
                if !privileged {
                    kernel::lower_capabilities(CAP_SETGID);
                }
                let expected = model(asked, start, &|id, may: &[u32]| {
                    privileged || may.contains(&id)
                });
                let outcome = call(asked);
                let now = kernel::ids_by_calls();
                let what = format!("{asked:?} from {start:?}, CAP_SETGID: {privileged}");
                assert_eq!(
                    outcome,
                    if expected.is_some() {
                        Ok(())
                    } else {
                        Err(libc::EPERM)
                    },
                    "{what}"
                );
                assert_eq!(now, expected.unwrap_or(start), "{what}");
                let moved = [now[1], now[3]] != [start[1], start[3]];
                assert_eq!(
                    kernel::death_signal(),
                    if moved { 0 } else { libc::SIGUSR1 },
                    "{what}"
                );
                assert_eq!(dumpable(), if moved { cleared } else { 1 }, "{what}");
                kernel::raise_capabilities(CAP_SETGID);
                *if expected.is_some() {
                    &mut made
                } else {
                    &mut refused
                } += 1;
            }
        }
    }
    println!("= {made} calls made, {refused} refused, each as the page says");
}

fn triples() -> Vec<[Option<u32>; 3]> {
    (0..125)
        .map(|n| [n % 5, n / 5 % 5, n / 25].map(|index| ASKED[index]))
        .collect()
}

fn pairs() -> Vec<[Option<u32>; 2]> {
    (0..25)
        .map(|n| [n % 5, n / 5].map(|index| ASKED[index]))
        .collect()
}

/// `setresgid(r, e, s)`
fn setresgid() {
    walk(
        &triples(),
        |[real, effective, saved]| kernel::raw_setresgid(real, effective, saved),
        |asked, [real, effective, saved, filesystem], may| {
            if !asked
                .into_iter()
                .flatten()
                .all(|id| may(id, &[real, effective, saved]))
            {
                return None;
            }
            let [r, e, s] = [
                asked[0].unwrap_or(real),
                asked[1].unwrap_or(effective),
                asked[2].unwrap_or(saved),
            ];
            let nothing =
                [r, e, s] == [real, effective, saved] && asked[1].is_none_or(|e| e == filesystem);
            Some([r, e, s, if nothing { filesystem } else { e }])
        },
    );
}

/// `setregid(r, e)`
fn setregid() {
    walk(
        &pairs(),
        |[real, effective]| kernel::raw_setregid(real, effective),
        |[r, e], [real, effective, saved, _], may| {
            if !r.is_none_or(|r| may(r, &[real, effective]))
                || !e.is_none_or(|e| may(e, &[real, effective, saved]))
            {
                return None;
            }
            let overwritten = r.is_some() || e.is_some_and(|e| e != real);
            let [r, e] = [r.unwrap_or(real), e.unwrap_or(effective)];
            Some([r, e, if overwritten { e } else { saved }, e])
        },
    );
}

/// `setgid(g)`
fn setgid() {
    walk(
        &[3, 4, 5, OTHER],
        kernel::raw_setgid,
        |g, [real, _, saved, _], may| match (may(g, &[]), may(g, &[real, saved])) {
            (true, _) => Some([g; 4]),
            (false, true) => Some([real, g, saved, g]),
            (false, false) => None,
        },
    );
}

/// `setfsgid(g)`
fn setfsgid() {
    let call = |g: u32| {
        let before = kernel::filesystem_id();
        // SAFETY: a number.
        let answer = unsafe { libc::syscall(calls::SYS_setfsgid, g) };
        assert_eq!(answer as u32, before);
        Ok(())
    };
    walk(&[3, 4, 5, OTHER, 6], call, |g, start, may| {
        let [real, effective, saved, filesystem] = start;
        Some([
            real,
            effective,
            saved,
            if may(g, &start) { g } else { filesystem },
        ])
    });
}

/// `setgroups(list)`
fn setgroups() {
    kernel::raw_setgroups(&[9, 3, 5, 3]).unwrap();
    assert_eq!(kernel::identity().groups, [3, 3, 5, 9]);
    kernel::give_up_capabilities(CAP_SETGID);
    for list in [&[3, 3, 5, 9][..], &[3], &[]] {
        assert_eq!(kernel::raw_setgroups(list), Err(libc::EPERM));
    }
}

fn setgroups_where_it_is_denied() {
    let namespace = kernel::Namespace {
        ids: [0; 4],
        groups: &[],
        uid_map: kernel::ALL_IDS,
        gid_map: "0 0 10000",
        denies_setgroups: true,
    };
    kernel::passes_in(namespace, || {
        assert_ne!(kernel::capabilities().effective & CAP_SETGID, 0);
        assert_eq!(kernel::raw_setgroups(&[]), Err(libc::EPERM));
        kernel::raw_setresgid(Some(3), Some(3), Some(3)).unwrap();
    });
}

/// What an ordinary user may do, and what others see of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Seen {
    /// A file that only group 1004 may read, by `access(2)`, and by `open(2)`.
    may_access: bool,
    may_open: bool,
    /// A System V message queue that its owner and group 1004 may read.
    may_read_queue: bool,
    /// The groups of what it makes.
    new_file: u32,
    new_queue: u32,
    /// `SO_PEERCRED` of what it connects (unix(7)).
    peer: u32,
}

fn seen(ids: Ids, groups: &[u32]) -> Seen {
    let file = tempfile::NamedTempFile::new().unwrap();
    chown(file.path(), None, Some(1004)).unwrap();
    std::fs::set_permissions(file.path(), PermissionsExt::from_mode(0o040)).unwrap();
    let path = std::ffi::CString::new(file.path().to_str().unwrap()).unwrap();
    let queue = new_queue(0o440);
    let mut about = about_queue(queue).unwrap();
    about.msg_perm.gid = 1004;
    assert_eq!(
        // SAFETY: a number, and a valid pointer.
        unsafe { libc::msgctl(queue, libc::IPC_SET, &raw mut about) },
        0
    );

    let (mut tell, told) = UnixStream::pair().unwrap();
    kernel::passes_in_child(|| {
        kernel::start_from(ids, groups);
        kernel::raw_setresuid(Some(1234), Some(1234), Some(1234)).unwrap();
        assert_eq!(kernel::capabilities().permitted, 0);
        // SAFETY: a valid string.
        let may_access = unsafe { libc::access(path.as_ptr(), libc::R_OK) } == 0;
        let flags = [
            may_access,
            std::fs::File::open(file.path()).is_ok(),
            about_queue(queue).is_some(),
        ];
        let own = new_queue(0o600);
        let numbers = [
            kernel::group_of_new_file(),
            about_queue(own).unwrap().msg_perm.gid,
            peer_group(),
        ];
        remove_queue(own);
        tell.write_all(&flags.map(u8::from)).unwrap();
        tell.write_all(&numbers.map(u32::to_ne_bytes).concat())
            .unwrap();
    });
    remove_queue(queue);
    let mut said = [0; 15];
    (&told).read_exact(&mut said).unwrap();
    let [access, open, read, numbers @ ..] = said;
    let number = |index: usize| {
        u32::from_ne_bytes(
            numbers[4 * index..4 * index + 4]
                .try_into()
                .expect("four bytes"),
        )
    };
    Seen {
        may_access: access == 1,
        may_open: open == 1,
        may_read_queue: read == 1,
        new_file: number(0),
        new_queue: number(1),
        peer: number(2),
    }
}

fn new_queue(mode: i32) -> i32 {
    // SAFETY: numbers only.
    let queue = unsafe { libc::msgget(libc::IPC_PRIVATE, mode) };
    assert!(queue >= 0, "{}", std::io::Error::last_os_error());
    queue
}

/// Where it may be read.
fn about_queue(queue: i32) -> Option<libc::msqid_ds> {
    // SAFETY: numbers only, which zeros are.
    let mut about = unsafe { std::mem::zeroed() };
    // SAFETY: a number, and a valid pointer.
    let told = unsafe { libc::msgctl(queue, libc::IPC_STAT, &raw mut about) };
    (told == 0).then_some(about)
}

fn remove_queue(queue: i32) {
    // SAFETY: numbers only.
    unsafe { libc::msgctl(queue, libc::IPC_RMID, std::ptr::null_mut()) };
}

fn peer_group() -> u32 {
    let (one, _other) = UnixStream::pair().unwrap();
    let mut peer = libc::ucred {
        pid: 0,
        uid: 0,
        gid: 0,
    };
    let mut length = size_of_val(&peer) as libc::socklen_t;
    // SAFETY: valid pointers, and the length of what the first points to.
    let asked = unsafe {
        libc::getsockopt(
            one.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut peer).cast(),
            &raw mut length,
        )
    };
    assert_eq!(asked, 0);
    peer.gid
}

/// Of a user whose ids are all 3.
const OF_3: Seen = Seen {
    may_access: false,
    may_open: false,
    may_read_queue: false,
    new_file: 3,
    new_queue: 3,
    peer: 3,
};

/// real
fn real_id() {
    assert_eq!(seen([3; 4], &[]), OF_3);
    assert_eq!(
        seen([1004, 3, 3, 3], &[]),
        Seen {
            may_access: true,
            ..OF_3
        }
    );
}

/// effective
fn effective_id() {
    assert_eq!(
        seen([3, 1004, 3, 3], &[]),
        Seen {
            new_queue: 1004,
            peer: 1004,
            ..OF_3
        }
    );
}

/// saved set-group-ID
fn saved_id() {
    assert_eq!(seen([3, 3, 1004, 3], &[]), OF_3);
    kernel::start_from([3, 3, 1004, 3], &[]);
    kernel::give_up_capabilities(CAP_SETGID);
    kernel::raw_setresgid(None, Some(1004), None).unwrap();
}

/// filesystem
fn filesystem_id() {
    assert_eq!(
        seen([3, 3, 3, 1004], &[]),
        Seen {
            may_open: true,
            may_read_queue: true,
            new_file: 1004,
            ..OF_3
        }
    );
}

/// supplementary groups
fn supplementary_groups() {
    assert_eq!(
        seen([3; 4], &[5, 1004]),
        Seen {
            may_access: true,
            may_open: true,
            may_read_queue: true,
            ..OF_3
        }
    );
}

fn a_poll_of_another_thread_is_interrupted() {
    let (tell, told) = channel();
    std::thread::spawn(move || {
        loop {
            // SAFETY: no descriptors, and a time.
            let polled = unsafe { libc::poll(std::ptr::null_mut(), 0, 60_000) };
            tell.send((polled, std::io::Error::last_os_error().raw_os_error()))
                .unwrap();
        }
    });
    let is_interrupted = |change: fn()| {
        // It may not have come to its poll yet.
        (0..50).find_map(|_| {
            change();
            told.recv_timeout(Duration::from_millis(10)).ok()
        })
    };
    assert_eq!(
        is_interrupted(|| GroupGuard::assume_on_thread(1004)
            .unwrap()
            .restore()
            .unwrap()),
        None
    );
    assert_eq!(
        is_interrupted(|| GroupGuard::assume(1004).unwrap().restore().unwrap()),
        Some((-1, Some(libc::EINTR)))
    );
}

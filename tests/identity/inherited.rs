//! Limits of what children inherit, and of what the kernel keeps beside the ids. docs/security.md lists them.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::sync::mpsc;

use crate::cases;
use crate::common::guard::SCOPES;
use crate::common::kernel;
use crate::common::program;
use crate::common::{self, Case};
use privilege_guard::{
    ConflictingGuard, Error, GroupChange, GroupGuard, IdentityGuard, PermanentDrop,
};

pub const CASES: &[Case] = cases![
    Root: a_command_with_a_user_has_no_supplementary_groups,
    Root: a_grandchild_with_a_recycled_process_id_gets_the_death_signal,
    Nothing: busy_in_a_forked_child_names_a_thread_of_the_parent,
    Root: keyrings_stay,
];

const START: [u32; 4] = [3; 4];

/// The numbers of a field of `/proc/self/status`, as a program shows it.
fn field(status: &[u8], name: &str) -> Vec<u32> {
    let status = String::from_utf8_lossy(status);
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    let numbers = line.expect(name).split_whitespace();
    numbers.map(|number| number.parse().unwrap()).collect()
}

fn a_command_with_a_user_has_no_supplementary_groups() {
    kernel::start_from(START, &[7, 8]);
    for scope in SCOPES {
        let guard = scope
            .assume(GroupChange::both(1004).supplementary([2001, 2002]))
            .unwrap();
        let shown = |user: Option<u32>| {
            let mut command = program::shows_status();
            user.into_iter().for_each(|user| _ = command.uid(user));
            let output = command.output().unwrap();
            assert!(output.status.success());
            (
                field(&output.stdout, "Gid:"),
                field(&output.stdout, "Groups:"),
            )
        };
        // std calls setgroups(0) before setuid, if no groups are given.
        assert_eq!(shown(None), (vec![1004; 4], vec![2001, 2002]));
        assert_eq!(shown(Some(1234)), (vec![1004; 4], vec![]));
        // The child alone: this thread keeps its groups.
        assert_eq!(kernel::identity().groups, [2001, 2002]);
        guard.restore().unwrap();
        assert_eq!(kernel::identity().groups, [7, 8]);
    }
    // A guard of an identity sets the groups and the user, and the program has them.
    let identity = privilege_guard::Identity::new(1234, 1004).supplementary([2001, 2002]);
    let guard = IdentityGuard::assume_real_and_effective_on_thread(&identity).unwrap();
    let output = program::shows_status().output().unwrap();
    guard.restore().unwrap();
    assert_eq!(field(&output.stdout, "Uid:"), [1234; 4]);
    assert_eq!(field(&output.stdout, "Groups:"), [2001, 2002]);
}

/// Forks, and the child has this process id.
fn fork_as(process: u32) -> std::io::Result<libc::pid_t> {
    let ids = [process as libc::pid_t];
    // struct clone_args of clone3(2): eleven numbers of 64 bits, the same on every target.
    let mut arguments = [0_u64; 11];
    arguments[4] = libc::SIGCHLD as u64;
    arguments[8] = ids.as_ptr() as usize as u64;
    arguments[9] = 1;
    // SAFETY: a copy of this process, as by fork; the pointers are valid.
    let child = unsafe {
        libc::syscall(
            libc::SYS_clone3,
            arguments.as_ptr(),
            size_of_val(&arguments),
        )
    };
    if child < 0 {
        return Err(std::io::Error::last_os_error());
    }
    Ok(child as libc::pid_t)
}

fn fork() -> libc::pid_t {
    // SAFETY: this process has one thread.
    let child = unsafe { libc::fork() };
    assert!(child >= 0, "{}", std::io::Error::last_os_error());
    child
}

fn wait_for(child: libc::pid_t) {
    // SAFETY: no pointer that is used.
    assert_eq!(
        // SAFETY: as above.
        unsafe { libc::waitpid(child, std::ptr::null_mut(), 0) },
        child
    );
}

fn exit(code: i32) -> ! {
    // SAFETY: it does not return.
    unsafe { libc::_exit(code) }
}

/// The guard tells a forked child by its process id.
fn a_grandchild_with_a_recycled_process_id_gets_the_death_signal() {
    let signal_of_grandchild = |is_recycled: bool| {
        let (mut answer, mut tell) = UnixStream::pair().unwrap();
        let process = fork();
        if process == 0 {
            let process = std::process::id();
            kernel::start_from(START, &[]);
            kernel::set_death_signal(libc::SIGUSR1);
            let guard = GroupGuard::assume_on_thread(1004).unwrap();
            if fork() != 0 {
                exit(0);
            }
            // SAFETY: numbers only; no signal is sent.
            while unsafe { libc::kill(process as i32, 0) } == 0 {
                std::thread::yield_now();
            }
            let grandchild = match is_recycled {
                true => fork_as(process),
                false => Ok(fork()),
            };
            match grandchild {
                Ok(0) => {
                    assert_eq!(std::process::id() == process, is_recycled);
                    drop(guard);
                    assert_eq!(kernel::ids(), START);
                    tell.write_all(kernel::death_signal().to_string().as_bytes())
                        .unwrap();
                    exit(0);
                }
                Ok(grandchild) => wait_for(grandchild),
                Err(error) => tell.write_all(format!("{error}").as_bytes()).unwrap(),
            }
            exit(0);
        }
        drop(tell);
        wait_for(process);
        let mut text = String::new();
        answer.read_to_string(&mut text).unwrap();
        text.parse::<i32>().unwrap_or_else(|_| {
            common::ignore(&format!("needs clone3 with a chosen process id: {text}"))
        })
    };
    assert_eq!(signal_of_grandchild(false), 0);
    assert_eq!(signal_of_grandchild(true), libc::SIGUSR1);
}

fn busy_in_a_forked_child_names_a_thread_of_the_parent() {
    let own = kernel::getresgid()[0];
    let (begun, has_begun) = mpsc::channel();
    let (end, ends) = mpsc::channel::<()>();
    let other = std::thread::spawn(move || {
        let _guard = GroupGuard::assume(own).unwrap();
        begun.send(kernel::gettid().unsigned_abs()).unwrap();
        _ = ends.recv();
    });
    let holder = has_begun.recv().unwrap();
    kernel::passes_in_child(|| {
        let error = GroupGuard::assume_on_thread(own).unwrap_err();
        let Error::Busy {
            conflict: ConflictingGuard::ProcessGuard { thread_id, name },
        } = &error
        else {
            panic!("{error}")
        };
        assert_eq!((*thread_id, name.as_deref()), (holder, None));
        // SAFETY: numbers only; no signal is sent.
        let is_here = unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), holder, 0) } == 0;
        assert!(!is_here);
        assert!(
            error.to_string().contains("is not in this process"),
            "{error}"
        );
    });
    drop(end);
    other.join().unwrap();
}

const JOIN_SESSION_KEYRING: libc::c_long = 1;
const GET_KEYRING_ID: libc::c_long = 0;
const READ: libc::c_long = 11;
const SESSION: libc::c_long = -3;

/// The serial of the session keyring (`keyctl_get_keyring_ID(3)`).
fn session_keyring() -> libc::c_long {
    // SAFETY: numbers only.
    let serial = unsafe { libc::syscall(libc::SYS_keyctl, GET_KEYRING_ID, SESSION, 0) };
    assert!(serial > 0, "{}", std::io::Error::last_os_error());
    serial
}

/// The session keyring is neither that of the assumed user nor gone, and its keys can still be read.
fn keyrings_stay() {
    // SAFETY: numbers only; no name is given.
    let joined = unsafe { libc::syscall(libc::SYS_keyctl, JOIN_SESSION_KEYRING, 0) };
    if joined < 0 {
        let error = std::io::Error::last_os_error();
        common::ignore(&format!("needs keyrings: {error}"));
    }
    let secret = b"of user 0";
    // SAFETY: valid C strings, and a pointer with its length.
    let key = unsafe {
        libc::syscall(
            libc::SYS_add_key,
            c"user".as_ptr(),
            c"privilege-guard".as_ptr(),
            secret.as_ptr(),
            secret.len(),
            SESSION,
        )
    };
    assert!(key > 0, "{}", std::io::Error::last_os_error());
    let is_readable = || {
        let mut text = [0u8; 32];
        // SAFETY: a pointer with its length.
        let length =
            unsafe { libc::syscall(libc::SYS_keyctl, READ, key, text.as_mut_ptr(), text.len()) };
        length == secret.len() as libc::c_long && text.starts_with(secret)
    };
    let before = session_keyring();
    let client = privilege_guard::Identity::new(1234, 1004);
    for guard in [
        IdentityGuard::assume_effective_on_thread,
        IdentityGuard::assume_real_and_effective_on_thread,
    ] {
        let guard = guard(&client).unwrap();
        assert!(session_keyring() == before && is_readable());
        guard.restore().unwrap();
        assert!(session_keyring() == before && is_readable());
    }
    PermanentDrop::to(&client).apply().unwrap();
    assert!(session_keyring() == before && is_readable());
    // What to do before a drop: a fresh one, which has none of the keys.
    // SAFETY: numbers only; no name is given.
    assert!(unsafe { libc::syscall(libc::SYS_keyctl, JOIN_SESSION_KEYRING, 0) } > 0);
    assert!(session_keyring() != before && !is_readable());
}

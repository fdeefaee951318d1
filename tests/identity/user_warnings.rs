//! The warnings in the documentation of user guards: what a client can do to the process, and what
//! does not follow the effective user.

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::Stdio;

use rustix::fs::{Access, AtFlags, CWD, accessat};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::cases;
use crate::common::{Case, kernel, program};
use privilege_guard::UserChange;

pub const CASES: &[Case] = cases![
    Root: a_client_can_signal_if_its_id_is_the_real_or_saved_one,
    Root: a_user_at_its_limit_of_processes_cannot_fork_or_exec,
    Root: own_files_in_proc_belong_to_root_inside,
    Root: access_uses_the_real_user,
    Root: socket_credentials_are_of_the_real_user,
    Root: an_executed_program_can_return_to_the_real_user,
];

const CLIENT: u32 = 1000;

fn effective() -> UserChange {
    UserChange::new().effective(CLIENT)
}

fn both() -> UserChange {
    UserChange::both(CLIENT)
}

/// Runs `f` under the change, in process scope and in thread scope.
fn in_both_scopes(change: &UserChange, mut f: impl FnMut()) {
    let result = change.clone().assume().map(|guard| guard.run(&mut f));
    result.expect("a process guard");
    let result = change.clone().assume_on_thread().map(|guard| guard.run(f));
    result.expect("a thread guard");
}

/// A process of the client, started before any guard.
struct Client {
    socket: UnixStream,
    process: i32,
}

impl Client {
    fn start() -> Self {
        let (ours, mut theirs) = UnixStream::pair().expect("a pair of sockets");
        let server = i32::try_from(std::process::id()).expect("a process id");
        // SAFETY: this process has one thread.
        let process = unsafe { libc::fork() };
        assert_ne!(process, -1);
        if process == 0 {
            drop(ours);
            kernel::raw_setresuid(Some(CLIENT), Some(CLIENT), Some(CLIENT)).expect("setresuid");
            // Until the server is gone, or has closed its end.
            while theirs.read_exact(&mut [0]).is_ok() {
                // SAFETY: numbers only. By default SIGURG is ignored.
                let is_sent = unsafe { libc::kill(server, libc::SIGURG) } == 0;
                let is_refused =
                    || std::io::Error::last_os_error().kind() == ErrorKind::PermissionDenied;
                assert!(is_sent || is_refused());
                theirs.write_all(&[u8::from(is_sent)]).expect("a socket");
            }
            std::process::exit(0);
        }
        Client {
            socket: ours,
            process,
        }
    }

    /// Whether it can signal the server.
    fn can_signal(&mut self) -> bool {
        let mut answer = [0];
        self.socket.write_all(&answer).expect("a socket");
        self.socket.read_exact(&mut answer).expect("an answer");
        answer == [1]
    }
}

fn a_client_can_signal_if_its_id_is_the_real_or_saved_one() {
    let mut client = Client::start();
    assert!(!client.can_signal());
    in_both_scopes(&effective(), || assert!(!client.can_signal()));
    in_both_scopes(&UserChange::new().real(CLIENT), || {
        assert!(client.can_signal());
    });
    in_both_scopes(&both(), || assert!(client.can_signal()));
    assert!(!client.can_signal());
    // Without a guard the client's id is only the effective one. The guard keeps it as the saved one.
    kernel::raw_setresuid(None, Some(CLIENT), None).expect("setresuid");
    assert!(!client.can_signal());
    in_both_scopes(&UserChange::new().effective(0), || {
        assert_eq!(kernel::all_threads()[0].privileges.users, [0, 0, CLIENT, 0]);
        assert!(client.can_signal());
    });
    assert!(!client.can_signal());
}

impl Drop for Client {
    fn drop(&mut self) {
        _ = self.socket.shutdown(std::net::Shutdown::Both);
        // SAFETY: no pointer is used.
        unsafe { libc::waitpid(self.process, std::ptr::null_mut(), 0) };
    }
}

/// The errno of `fork`, or 0.
fn fork_error() -> i32 {
    // SAFETY: the child does nothing but end.
    match unsafe { libc::fork() } {
        // SAFETY: a number.
        0 => unsafe { libc::_exit(0) },
        -1 => std::io::Error::last_os_error().raw_os_error().unwrap(),
        child => {
            // SAFETY: no pointer is used.
            let ended = unsafe { libc::waitpid(child, std::ptr::null_mut(), 0) };
            assert_eq!(ended, child);
            0
        }
    }
}

/// The errno of an `exec` in a forked child under this change, or 0.
fn exec_error(change: &UserChange) -> i32 {
    let status = kernel::in_child(|| {
        let guard = change.clone().assume().expect("a guard");
        let error = program::copies().stdin(Stdio::null()).exec();
        drop(guard);
        error.raw_os_error().expect("an errno")
    });
    status.code().expect("an exit code")
}

/// `RLIMIT_NPROC` counts the processes of the real user (`setrlimit(2)`).
fn a_user_at_its_limit_of_processes_cannot_fork_or_exec() {
    // One process of the client, which has answered and so is of that user, and a limit below that.
    let mut client = Client::start();
    assert!(!client.can_signal());
    let limit = Rlimit {
        current: Some(0),
        ..getrlimit(Resource::Nproc)
    };
    setrlimit(Resource::Nproc, limit).expect("setrlimit");
    in_both_scopes(&effective(), || assert_eq!(fork_error(), 0));
    in_both_scopes(&both(), || assert_eq!(fork_error(), libc::EAGAIN));
    assert_eq!(fork_error(), 0);
    assert_eq!(exec_error(&effective()), 0);
    assert_eq!(exec_error(&both()), libc::EAGAIN);
}

/// The change of an id clears the dumpable flag (`PR_SET_DUMPABLE`, `prctl(2)`).
fn own_files_in_proc_belong_to_root_inside() {
    const PRIVATE: &str = "/proc/self/environ";
    let open = || File::open(PRIVATE).map(drop).map_err(|error| error.kind());
    let set_dumpable = || {
        // SAFETY: numbers only.
        assert_eq!(unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 1) }, 0);
    };
    set_dumpable();
    for change in [effective(), both()] {
        in_both_scopes(&change, || {
            assert_eq!(std::fs::metadata(PRIVATE).unwrap().uid(), 0);
            assert_eq!(open(), Err(ErrorKind::PermissionDenied));
            assert!(File::open("/proc/self/status").is_ok());
        });
        assert_eq!(open(), Ok(()));
    }
    // Afterwards only root can open them again: the flag stays cleared.
    kernel::become_user_with(kernel::CAP_SETUID);
    set_dumpable();
    assert_eq!(open(), Ok(()));
    effective().assume_on_thread().unwrap().run(|| ());
    assert_eq!(open(), Err(ErrorKind::PermissionDenied));
}

/// `access(2)` checks the real user, as a set-user-ID program needs it.
fn access_uses_the_real_user() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::set_permissions(directory.path(), PermissionsExt::from_mode(0o755)).unwrap();
    let path = directory.path().join("private");
    std::fs::write(&path, "").unwrap();
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).unwrap();
    let access = |flags| accessat(CWD, &path, Access::READ_OK, flags).is_ok();
    in_both_scopes(&effective(), || {
        assert_eq!(
            File::open(&path).unwrap_err().kind(),
            ErrorKind::PermissionDenied
        );
        assert!(access(AtFlags::empty()));
        assert!(!access(AtFlags::EACCESS));
    });
    in_both_scopes(&both(), || {
        assert!(!access(AtFlags::empty()));
        assert!(!access(AtFlags::EACCESS));
    });
}

/// The user that the kernel names as the sender of a message (`SCM_CREDENTIALS`, `unix(7)`).
fn sender() -> u32 {
    use std::os::fd::AsRawFd;
    let (mut ours, theirs) = UnixStream::pair().expect("a pair of sockets");
    let socket = theirs.as_raw_fd();
    let is_on: libc::c_int = 1;
    let mut byte = 0u8;
    let mut data = libc::iovec {
        iov_base: (&raw mut byte).cast(),
        iov_len: 1,
    };
    // As large as `struct cmsghdr` with `struct ucred`, and as aligned.
    let mut control = [0u64; 8];
    // SAFETY: all fields may be 0.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &raw mut data;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = size_of_val(&control) as _;
    // SAFETY: pointers to values that live until the end, with their sizes.
    unsafe {
        let (level, size) = (libc::SOL_SOCKET, size_of_val(&is_on) as libc::socklen_t);
        let value = (&raw const is_on).cast();
        let set = libc::setsockopt(socket, level, libc::SO_PASSCRED, value, size);
        assert_eq!(set, 0);
        ours.write_all(&[0]).expect("a socket");
        assert_eq!(libc::recvmsg(socket, &raw mut message, 0), 1);
        let header = libc::CMSG_FIRSTHDR(&raw const message);
        assert!(!header.is_null());
        assert_eq!((*header).cmsg_type, libc::SCM_CREDENTIALS);
        let credentials: *const libc::ucred = libc::CMSG_DATA(header).cast();
        credentials.read_unaligned().uid
    }
}

fn socket_credentials_are_of_the_real_user() {
    in_both_scopes(&effective(), || assert_eq!(sender(), 0));
    in_both_scopes(&both(), || assert_eq!(sender(), CLIENT));
}

fn an_executed_program_can_return_to_the_real_user() {
    let executed = || -> Vec<String> {
        let output = program::returns_to_user_0().output().expect("a program");
        let text = String::from_utf8(output.stdout).expect("text");
        let lines = text
            .lines()
            .filter(|line| line.starts_with("Uid:") || line.starts_with("CapEff:"));
        lines.map(str::to_owned).collect()
    };
    let root = executed();
    assert_eq!(root[0], "Uid:\t0\t0\t0\t0");
    in_both_scopes(&effective(), || assert_eq!(executed(), root));
    let client = [
        format!("Uid:\t{CLIENT}\t{CLIENT}\t{CLIENT}\t{CLIENT}"),
        "CapEff:\t0000000000000000".into(),
    ];
    in_both_scopes(&both(), || assert_eq!(executed(), client));
}

//! What the kernel says, and does, asked without the library.

use std::ffi::CString;
use std::fs::read_to_string;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::ExitStatus;

use super::calls;

pub const CAP_SETGID: u64 = 1 << 6;
pub const CAP_SETUID: u64 = 1 << 7;
pub const CAP_SETPCAP: u64 = 1 << 8;

/// Real, effective, saved, filesystem.
pub type Ids = [u32; 4];

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    pub ids: Ids,
    pub groups: Vec<u32>,
}

/// The calling thread's ids and supplementary groups, from `/proc/thread-self/status`.
pub fn identity() -> Identity {
    identity_in("/proc/thread-self/status")
}

pub fn ids() -> Ids {
    identity().ids
}

/// Of the thread with this id, in this process.
pub fn identity_of(thread: i32) -> Identity {
    identity_in(&format!("/proc/self/task/{thread}/status"))
}

/// Of the main thread of another process.
pub fn identity_of_process(process: u32) -> Identity {
    identity_in(&format!("/proc/{process}/status"))
}

fn identity_in(path: &str) -> Identity {
    // A thread's name may be any bytes.
    identity_from(&String::from_utf8_lossy(&std::fs::read(path).expect(path)))
}

/// A thread of this process, to be looked at often.
#[derive(Debug)]
pub struct Watched {
    status: std::fs::File,
}

impl Watched {
    /// The calling thread.
    pub fn this_thread() -> Self {
        Watched {
            status: std::fs::File::open("/proc/thread-self/status").expect("status"),
        }
    }

    /// A thread of this process.
    pub fn thread(thread: i32) -> Self {
        let path = format!("/proc/self/task/{thread}/status");
        Watched {
            status: std::fs::File::open(path).expect("status"),
        }
    }

    pub fn identity(&self) -> Identity {
        identity_from(&self.text())
    }

    /// The lines about ids, groups, signals that are ignored or handled, capabilities and
    /// `no_new_privs`.
    pub fn credentials(&self) -> String {
        let text = self.text();
        let between = |from: &str, to: &str| {
            let start = text.find(from).expect("a field of status");
            let length = text[start..].find(to).expect("a field of status");
            &text[start..start + length]
        };
        // The order is that of proc_pid_status (fs/proc/array.c).
        [
            between("\nUid:", "\nFDSize:"),
            between("\nGroups:", "\nNStgid:"),
            between("\nSigIgn:", "\nSeccomp:"),
        ]
        .concat()
    }

    fn text(&self) -> String {
        use std::os::unix::fs::FileExt;
        let mut text = [0; 4096];
        let length = self.status.read_at(&mut text, 0).expect("status");
        String::from_utf8_lossy(&text[..length]).into_owned()
    }
}

fn identity_from(status: &str) -> Identity {
    let numbers = |field: &str| -> Vec<u32> {
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix(field))
            .expect("a field of status");
        line.split_whitespace()
            .map(|number| number.parse().expect("a number"))
            .collect()
    };
    Identity {
        ids: numbers("Gid:").try_into().expect("four ids"),
        groups: numbers("Groups:"),
    }
}

/// Whether the kernel made this thread for an io_uring (`PF_IO_WORKER`, include/linux/sched.h; the flags of `stat`).
pub fn is_io_worker(thread: i32) -> bool {
    const PF_IO_WORKER: u32 = 0x10;
    let stat = std::fs::read(format!("/proc/self/task/{thread}/stat")).expect("stat");
    let stat = String::from_utf8_lossy(&stat);
    // The name before it may hold anything, also parentheses.
    let (_, fields) = stat.rsplit_once(") ").expect("a name");
    let flags: u32 = fields
        .split(' ')
        .nth(6)
        .expect("flags")
        .parse()
        .expect("a number");
    flags & PF_IO_WORKER != 0
}

/// By `getresgid(2)`, without libc's wrapper.
pub fn getresgid() -> [u32; 3] {
    let mut ids = [0u32; 3];
    let [real, effective, saved] = &mut ids;
    // SAFETY: three valid pointers.
    let result = unsafe { libc::syscall(calls::SYS_getresgid, real, effective, saved) };
    assert_eq!(result, 0);
    ids
}

pub fn gettid() -> i32 {
    // SAFETY: no arguments.
    unsafe { libc::syscall(libc::SYS_gettid) as i32 }
}

fn call(number: libc::c_long, arguments: [libc::c_long; 3]) -> Result<libc::c_long, i32> {
    let [a, b, c] = arguments;
    // SAFETY: used for calls whose arguments are numbers only.
    match unsafe { libc::syscall(number, a, b, c) } {
        -1 => Err(std::io::Error::last_os_error().raw_os_error().unwrap_or(0)),
        result => Ok(result),
    }
}

const LEAVE: u32 = u32::MAX;

fn arg(id: Option<u32>) -> libc::c_long {
    libc::c_long::from(id.unwrap_or(LEAVE) as i32)
}

/// The raw calls, on the calling thread only; the error is the errno.
pub fn raw_setresgid(
    real: Option<u32>,
    effective: Option<u32>,
    saved: Option<u32>,
) -> Result<(), i32> {
    call(
        calls::SYS_setresgid,
        [arg(real), arg(effective), arg(saved)],
    )
    .map(drop)
}

pub fn raw_setregid(real: Option<u32>, effective: Option<u32>) -> Result<(), i32> {
    call(calls::SYS_setregid, [arg(real), arg(effective), 0]).map(drop)
}

pub fn raw_setgid(gid: u32) -> Result<(), i32> {
    call(calls::SYS_setgid, [arg(Some(gid)), 0, 0]).map(drop)
}

pub fn raw_setresuid(
    real: Option<u32>,
    effective: Option<u32>,
    saved: Option<u32>,
) -> Result<(), i32> {
    call(
        calls::SYS_setresuid,
        [arg(real), arg(effective), arg(saved)],
    )
    .map(drop)
}

pub fn raw_setreuid(real: Option<u32>, effective: Option<u32>) -> Result<(), i32> {
    call(calls::SYS_setreuid, [arg(real), arg(effective), 0]).map(drop)
}

pub fn raw_setuid(uid: u32) -> Result<(), i32> {
    call(calls::SYS_setuid, [arg(Some(uid)), 0, 0]).map(drop)
}

/// Whether it took effect; the call itself does not say.
pub fn raw_setfsuid(uid: u32) -> bool {
    _ = call(calls::SYS_setfsuid, [arg(Some(uid)), 0, 0]);
    call(calls::SYS_setfsuid, [arg(None), 0, 0]).expect("setfsuid") as u32 == uid
}

/// Whether it took effect; the call itself does not say.
pub fn raw_setfsgid(gid: u32) -> bool {
    _ = call(calls::SYS_setfsgid, [arg(Some(gid)), 0, 0]);
    filesystem_id() == gid
}

pub fn raw_setgroups(groups: &[u32]) -> Result<(), i32> {
    // SAFETY: the pointer and the length are those of a slice.
    match unsafe { libc::syscall(calls::SYS_setgroups, groups.len(), groups.as_ptr()) } {
        -1 => Err(std::io::Error::last_os_error().raw_os_error().unwrap_or(0)),
        _ => Ok(()),
    }
}

/// Puts the calling thread into this state; needs CAP_SETGID.
pub fn start_from(ids: Ids, groups: &[u32]) {
    raw_setgroups(groups).expect("setgroups");
    raw_setresgid(Some(ids[0]), Some(ids[1]), Some(ids[2])).expect("setresgid");
    assert!(raw_setfsgid(ids[3]), "setfsgid");
    assert_eq!(identity().ids, ids);
}

/// Real, effective, saved, filesystem, without `/proc`.
pub fn ids_by_calls() -> Ids {
    let [real, effective, saved] = getresgid();
    [real, effective, saved, filesystem_id()]
}

/// The calling thread's filesystem id, without `/proc`.
pub fn filesystem_id() -> u32 {
    call(calls::SYS_setfsgid, [arg(None), 0, 0]).expect("setfsgid") as u32
}

/// All that a guard promises to put back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    pub identity: Identity,
    pub death_signal: i32,
}

/// The calling thread's.
pub fn state() -> State {
    State {
        identity: identity(),
        death_signal: death_signal(),
    }
}

/// All that a refused change must leave alone, of one thread.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ThreadState {
    pub thread: i32,
    pub identity: Identity,
    pub privileges: Privileges,
    /// The inode and the mount of the root, and of the working directory.
    pub directories: [(u64, u64); 2],
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Privileges {
    /// Real, effective, saved, filesystem.
    pub users: [u32; 4],
    /// Inheritable, permitted, effective, bounding, ambient.
    pub capabilities: [u64; 5],
    pub no_new_privs: bool,
}

impl Privileges {
    /// Whether some of these capabilities (a mask) are held: inheritable, permitted or ambient.
    pub fn hold(&self, mask: u64) -> bool {
        let [inheritable, permitted, _, _, ambient] = self.capabilities;
        (inheritable | permitted | ambient) & mask != 0
    }
}

/// Every thread of this process, the main one first.
pub fn all_threads() -> Vec<ThreadState> {
    all_threads_of(std::process::id())
}

/// Every thread of a process, the main one first.
pub fn all_threads_of(process: u32) -> Vec<ThreadState> {
    let folder = format!("/proc/{process}/task");
    let tasks = std::fs::read_dir(&folder).expect("/proc");
    let name = |task: std::io::Result<std::fs::DirEntry>| {
        task.expect("an entry")
            .file_name()
            .into_string()
            .expect("a number")
    };
    let mut threads: Vec<i32> = tasks
        .map(|task| name(task).parse().expect("a thread id"))
        .collect();
    threads.sort_unstable_by_key(|&thread| (thread.unsigned_abs() != process, thread));
    let state = |thread| {
        let task = format!("{folder}/{thread}");
        ThreadState {
            thread,
            identity: identity_in(&format!("{task}/status")),
            privileges: privileges_in(&format!("{task}/status")),
            directories: ["root", "cwd"].map(|link| place(&format!("{task}/{link}"))),
        }
    };
    threads.into_iter().map(state).collect()
}

/// The inode and the mount of a directory.
pub fn place(path: &str) -> (u64, u64) {
    use rustix::fs::{AtFlags, CWD, StatxFlags, statx};
    let found = statx(
        CWD,
        path,
        AtFlags::empty(),
        StatxFlags::INO | StatxFlags::MNT_ID,
    );
    let found = found.expect(path);
    (found.stx_ino, found.stx_mnt_id)
}

/// The open descriptors of this process, and what each is of.
pub fn descriptors() -> Vec<(u32, std::path::PathBuf)> {
    descriptors_of(std::process::id())
}

pub fn descriptors_of(process: u32) -> Vec<(u32, std::path::PathBuf)> {
    let folder = format!("/proc/{process}/fd");
    let number = |entry: std::io::Result<std::fs::DirEntry>| {
        let name = entry.expect("an entry").file_name();
        name.to_str().expect("a number").parse().expect("a number")
    };
    let numbers: Vec<u32> = std::fs::read_dir(&folder)
        .expect("/proc")
        .map(number)
        .collect();
    // That of this reading is closed by now.
    let of = |number| {
        Some((
            number,
            std::fs::read_link(format!("{folder}/{number}")).ok()?,
        ))
    };
    let mut open: Vec<_> = numbers.into_iter().filter_map(of).collect();
    open.sort();
    open
}

fn privileges_in(path: &str) -> Privileges {
    let status = std::fs::read(path).expect("status");
    let status = String::from_utf8_lossy(&status);
    let field = |name: &str| {
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(":\t"));
        line.unwrap_or_else(|| panic!("no {name} in status"))
    };
    let users: Vec<u32> = field("Uid")
        .split_whitespace()
        .map(|user| user.parse().expect("a number"))
        .collect();
    Privileges {
        users: users.try_into().expect("four ids"),
        capabilities: ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"]
            .map(|set| u64::from_str_radix(field(set), 16).expect("a mask")),
        no_new_privs: field("NoNewPrivs") == "1",
    }
}

pub fn death_signal() -> i32 {
    let mut signal = 0i32;
    assert_eq!(
        // SAFETY: a valid pointer.
        unsafe { libc::prctl(libc::PR_GET_PDEATHSIG, &raw mut signal) },
        0
    );
    signal
}

pub fn set_death_signal(signal: i32) {
    // SAFETY: numbers only.
    assert_eq!(unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, signal) }, 0);
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capabilities {
    pub effective: u64,
    pub permitted: u64,
    pub inheritable: u64,
}

/// Of the calling thread.
pub fn capabilities() -> Capabilities {
    let sets = rustix::thread::capabilities(None).expect("capget");
    Capabilities {
        effective: sets.effective.bits(),
        permitted: sets.permitted.bits(),
        inheritable: sets.inheritable.bits(),
    }
}

/// CAP_CHOWN, CAP_DAC_OVERRIDE, CAP_FOWNER, CAP_SETGID, CAP_SETUID, CAP_SETPCAP, CAP_SYS_ADMIN, CAP_SETFCAP.
pub const ROOT_CAPABILITIES: u64 =
    1 | 1 << 1 | 1 << 3 | CAP_SETGID | CAP_SETUID | CAP_SETPCAP | 1 << 21 | 1 << 31;

/// Of the calling thread.
pub fn set_capabilities(sets: Capabilities) {
    use rustix::thread::{CapabilitySet, CapabilitySets};
    let [effective, permitted, inheritable] =
        [sets.effective, sets.permitted, sets.inheritable].map(CapabilitySet::from_bits_retain);
    rustix::thread::set_capabilities(
        None,
        CapabilitySets {
            effective,
            permitted,
            inheritable,
        },
    )
    .expect("capset");
}

/// Takes capabilities (a mask) from the calling thread's permitted and effective sets.
pub fn give_up_capabilities(mask: u64) {
    let sets = capabilities();
    set_capabilities(Capabilities {
        effective: sets.effective & !mask,
        permitted: sets.permitted & !mask,
        inheritable: sets.inheritable & !mask,
    });
}

/// Takes capabilities (a mask) from the calling thread's effective set only: held, but not in use.
pub fn lower_capabilities(mask: u64) {
    let sets = capabilities();
    set_capabilities(Capabilities {
        effective: sets.effective & !mask,
        ..sets
    });
}

/// Puts capabilities (a mask) of the permitted set into the effective one.
pub fn raise_capabilities(mask: u64) {
    let sets = capabilities();
    set_capabilities(Capabilities {
        effective: sets.effective | sets.permitted & mask,
        ..sets
    });
}

/// Raises capabilities (a mask), which have to be permitted and inheritable, in the calling thread's ambient set.
pub fn raise_ambient(mask: u64) -> bool {
    let raise = |bit: u32| {
        // SAFETY: numbers only.
        unsafe { libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_RAISE, bit, 0, 0) == 0 }
    };
    (0..64).filter(|bit| mask >> bit & 1 == 1).all(raise)
}

/// Of the calling thread.
pub fn set_securebits(bits: libc::c_ulong) {
    // SAFETY: numbers only.
    assert_eq!(unsafe { libc::prctl(libc::PR_SET_SECUREBITS, bits) }, 0);
}

/// `PR_SET_KEEPCAPS`, of the calling thread: leaving user 0 leaves it its permitted capabilities.
pub fn keep_capabilities() {
    // SAFETY: numbers only.
    assert_eq!(unsafe { libc::prctl(libc::PR_SET_KEEPCAPS, 1) }, 0);
}

/// `PR_SET_NO_NEW_PRIVS`, of the calling thread.
pub fn set_no_new_privs() {
    assert_eq!(
        // SAFETY: numbers only.
        unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) },
        0
    );
}

/// Makes the calling thread user 1234's, with these capabilities (a mask) and no others; the groups stay. Needs root.
pub fn become_user_with(capabilities: u64) {
    keep_capabilities();
    raw_setresuid(Some(1234), Some(1234), Some(1234)).expect("setresuid");
    set_capabilities(Capabilities {
        effective: capabilities,
        permitted: capabilities,
        inheritable: 0,
    });
}

/// Makes the calling thread an ordinary user's, with no capability: all user ids, all group ids, no supplementary groups. Needs root.
pub fn become_user(uid: u32, gid: u32) {
    start_from([gid; 4], &[]);
    raw_setresuid(Some(uid), Some(uid), Some(uid)).expect("setresuid");
    assert_eq!(capabilities().permitted, 0);
}

pub fn maps_all_ids() -> bool {
    let map = read_to_string("/proc/self/gid_map").expect("gid_map");
    map.split_whitespace().collect::<Vec<_>>() == ["0", "0", "4294967295"]
}

pub fn is_mapped(gid: u32) -> bool {
    are_mapped(gid..gid + 1)
}

/// Whether all of these group ids are.
pub fn are_mapped(mut gids: std::ops::Range<u32>) -> bool {
    let map = read_to_string("/proc/self/gid_map").expect("gid_map");
    let ranges = map.lines().map(|line| {
        let numbers: Vec<u64> = line
            .split_whitespace()
            .map(|number| number.parse().expect("a number"))
            .collect();
        numbers[0]..numbers[0] + numbers[2]
    });
    let ranges: Vec<_> = ranges.collect();
    gids.all(|gid| ranges.iter().any(|range| range.contains(&u64::from(gid))))
}

pub fn setgroups_denied() -> bool {
    read_to_string("/proc/self/setgroups").is_ok_and(|text| text.trim() == "deny")
}

/// The group of a file that the calling thread makes now, in a folder that all may write to.
pub fn group_of_new_file() -> u32 {
    use std::os::unix::fs::MetadataExt;
    let path = std::env::temp_dir().join(format!(
        "privilege-guard-{}-{}",
        std::process::id(),
        gettid()
    ));
    let file = std::fs::File::create(&path).expect("a new file");
    let group = file.metadata().expect("its metadata").gid();
    std::fs::remove_file(path).expect("removed");
    group
}

/// Runs `f` in a forked child. It ends with `f`'s exit code, or 101 where `f` panics.
pub fn in_child(f: impl FnOnce() -> i32) -> ExitStatus {
    wait(fork(f))
}

/// Returns the child's id.
pub fn fork(f: impl FnOnce() -> i32) -> i32 {
    // SAFETY: a case's process has one thread when it forks, or the child does nothing that a lock of another thread could block.
    match unsafe { libc::fork() } {
        -1 => panic!("fork: {}", std::io::Error::last_os_error()),
        0 => {
            let code = std::panic::catch_unwind(std::panic::AssertUnwindSafe(f)).unwrap_or(101);
            std::process::exit(code)
        }
        child => child,
    }
}

pub fn wait(child: i32) -> ExitStatus {
    let mut status = 0;
    // SAFETY: a valid pointer.
    assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
    let status = ExitStatus::from_raw(status);
    if status.code() == Some(super::IGNORED) {
        // The child has said why.
        std::process::exit(super::IGNORED);
    }
    status
}

/// By SIGKILL: a process that aborts may have blocked all other signals.
fn kill_if_it_hangs(child: i32) {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};
    let child = Pid::from_raw(child).expect("a process");
    let process = pidfd_open(child, PidfdFlags::empty()).expect("pidfd_open");
    let longest = Timespec {
        tv_sec: 20,
        tv_nsec: 0,
    };
    if poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&longest)).expect("poll") == 0 {
        kill_process(child, Signal::KILL).expect("kill");
    }
}

/// What is mounted from now on, this process alone sees, and what it starts. Needs root.
pub fn own_mounts() {
    assert_eq!(
        // SAFETY: a flag only.
        unsafe { libc::unshare(libc::CLONE_NEWNS) },
        0,
        "{}",
        std::io::Error::last_os_error()
    );
    mount("none", "/", "none", libc::MS_REC | libc::MS_PRIVATE);
}

pub fn mount(source: &str, target: &str, kind: &str, flags: libc::c_ulong) {
    let [source, target, kind] =
        [source, target, kind].map(|text| CString::new(text).expect("no zero byte"));
    // SAFETY: valid C strings.
    let result = unsafe {
        libc::mount(
            source.as_ptr(),
            target.as_ptr(),
            kind.as_ptr(),
            flags,
            std::ptr::null(),
        )
    };
    assert_eq!(result, 0, "mount: {}", std::io::Error::last_os_error());
}

/// Puts an empty folder there, for this process only. Needs root.
pub fn hide(folder: &str) {
    own_mounts();
    mount("none", folder, "tmpfs", 0);
}

/// Gives a file capabilities (a mask), permitted and effective, as `setcap` does (`struct vfs_cap_data`, revision 2). Needs root.
pub fn give_file_capabilities(file: &Path, mask: u64) {
    let data = [0x0200_0001, mask as u32, 0, (mask >> 32) as u32, 0]
        .map(u32::to_le_bytes)
        .concat();
    let file = CString::new(file.as_os_str().as_encoded_bytes()).expect("a path");
    // SAFETY: valid C strings, and a pointer with its length.
    let result = unsafe {
        libc::setxattr(
            file.as_ptr(),
            c"security.capability".as_ptr(),
            data.as_ptr().cast(),
            data.len(),
            0,
        )
    };
    assert_eq!(result, 0, "setxattr: {}", std::io::Error::last_os_error());
}

/// What `f` returns in a forked child; or how that ended, where it did not return.
pub fn answer_of_child(f: impl FnOnce() -> String) -> Result<String, ExitStatus> {
    use std::io::{Read, Seek, Write};
    let mut answer = tempfile::tempfile().expect("a temporary file");
    let status = in_child(|| {
        (&answer)
            .write_all(f().as_bytes())
            .expect("a temporary file");
        0
    });
    let mut text = String::new();
    answer.rewind().expect("a temporary file");
    answer.read_to_string(&mut text).expect("a temporary file");
    if status.success() {
        Ok(text)
    } else {
        Err(status)
    }
}

/// Runs `f` with the numbers below `count` in forked children at the same time, and returns what each
/// wrote. A panic fails the case.
pub fn answers_of_children(count: usize, f: impl Fn(usize) -> String) -> Vec<String> {
    use std::io::{Read, Seek, Write};
    let start = |number| {
        let answer = tempfile::tempfile().expect("a temporary file");
        let child = fork(|| {
            (&answer)
                .write_all(f(number).as_bytes())
                .expect("a temporary file");
            0
        });
        (child, answer)
    };
    let children: Vec<_> = (0..count).map(start).collect();
    let end = |(child, mut answer): (i32, std::fs::File)| {
        let status = wait(child);
        assert!(status.success(), "in a forked child: {status}");
        let mut text = String::new();
        answer.rewind().expect("a temporary file");
        answer.read_to_string(&mut text).expect("a temporary file");
        text
    };
    children.into_iter().map(end).collect()
}

/// Runs `f` in a forked child, where a panic fails the case.
pub fn passes_in_child(f: impl FnOnce()) {
    let status = in_child(|| {
        f();
        0
    });
    assert!(status.success(), "in a forked child: {status}");
}

/// A user namespace for a forked child (`user_namespaces(7)`), as its parent sets it up.
#[derive(Clone, Copy, Debug)]
pub struct Namespace<'a> {
    /// The child's group ids before it enters, as they are outside.
    pub ids: Ids,
    pub groups: &'a [u32],
    pub uid_map: &'a str,
    pub gid_map: &'a str,
    pub denies_setgroups: bool,
}

pub const ALL_IDS: &str = "0 0 4294967295";

/// As an ordinary user makes it, over subordinate ids.
pub const SUBORDINATE: Namespace = Namespace {
    ids: [100_000; 4],
    groups: &[100_004],
    uid_map: "0 100000 10000",
    gid_map: "0 100000 10000",
    denies_setgroups: false,
};

/// Runs `f` in a forked child in this namespace, as user 0 with every capability there; a panic fails the case. Needs root.
pub fn passes_in(namespace: Namespace, f: impl FnOnce()) {
    use std::io::{Read, Write};
    if let Some(error) = why_no_user_namespace() {
        super::ignore(&format!(
            "needs a user namespace, and none can be made here: {error}"
        ));
    }
    let (mut inside, mut outside) =
        std::os::unix::net::UnixStream::pair().expect("a pair of sockets");
    let mapper = fork(|| {
        let mut child = [0; 4];
        outside.read_exact(&mut child).expect("the child's id");
        let write = |file: &str, text: &str| {
            let path = format!("/proc/{}/{file}", u32::from_ne_bytes(child));
            std::fs::write(&path, text).expect(&path);
        };
        write(
            "setgroups",
            if namespace.denies_setgroups {
                "deny"
            } else {
                "allow"
            },
        );
        write("uid_map", namespace.uid_map);
        write("gid_map", namespace.gid_map);
        outside.write_all(&[0]).expect("a socket");
        0
    });
    passes_in_child(|| {
        start_from(namespace.ids, namespace.groups);
        enter_user_namespace();
        inside
            .write_all(&std::process::id().to_ne_bytes())
            .expect("a socket");
        inside.read_exact(&mut [0]).expect("the maps");
        raw_setresuid(Some(0), Some(0), Some(0)).expect("user 0");
        f();
    });
    assert!(wait(mapper).success());
}

/// A new one, without maps. Of a process with one thread only.
pub fn enter_user_namespace() {
    assert_eq!(
        // SAFETY: numbers only.
        unsafe { libc::unshare(libc::CLONE_NEWUSER) },
        0,
        "{}",
        std::io::Error::last_os_error()
    );
}

/// Why this process can make none, if it cannot. Also for a process of several threads.
pub fn why_no_user_namespace() -> Option<std::io::Error> {
    // SAFETY: the child makes two system calls, neither of which takes a lock.
    let child = unsafe {
        match libc::fork() {
            0 if libc::unshare(libc::CLONE_NEWUSER) == 0 => libc::_exit(0),
            0 => libc::_exit(*libc::__errno_location()),
            child => child,
        }
    };
    if child < 0 {
        return Some(std::io::Error::last_os_error());
    }
    let errno = wait(child).code().expect("an exit code");
    (errno != 0).then(|| std::io::Error::from_raw_os_error(errno))
}

/// Runs `f` in a forked child in a user namespace that anybody may make: it maps the own user and group, to 0, and denies `setgroups`.
/// False where the system allows no such namespaces.
pub fn passes_in_own_namespace(f: impl FnOnce()) -> bool {
    let allowed = why_no_user_namespace().is_none();
    if allowed {
        // SAFETY: no arguments.
        let user = unsafe { libc::geteuid() };
        let group = getresgid()[1];
        passes_in_child(|| {
            enter_user_namespace();
            std::fs::write("/proc/self/setgroups", "deny").expect("setgroups");
            std::fs::write("/proc/self/uid_map", format!("0 {user} 1")).expect("uid_map");
            std::fs::write("/proc/self/gid_map", format!("0 {group} 1")).expect("gid_map");
            f();
        });
    }
    allowed
}

/// Asserts that `f` aborts its process, and returns what it wrote to stderr.
pub fn aborts(f: impl FnOnce()) -> String {
    use std::io::{Read, Seek};
    let mut stderr = tempfile::tempfile().expect("a temporary file");
    let child = fork(|| {
        rustix::stdio::dup2_stderr(&stderr).expect("dup2");
        f();
        0
    });
    kill_if_it_hangs(child);
    let status = wait(child);
    let mut text = String::new();
    stderr.rewind().expect("rewind");
    stderr.read_to_string(&mut text).expect("text");
    assert_eq!(status.signal(), Some(libc::SIGABRT), "{status}: {text}");
    text
}

//! What these examples have besides the library: what they need to run, and what they ask of the kernel.

#![allow(dead_code, reason = "each example uses a part of it")]

pub mod http;

use std::collections::BTreeSet;
use std::error::Error;
use std::fmt;
use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use rustix::thread::CapabilitySet;

pub type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

/// What the example was to show cannot be shown here; nothing is wrong. Exit code 2.
#[derive(Debug)]
pub struct CannotRun(pub String);

impl fmt::Display for CannotRun {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Error for CannotRun {}

/// Exit code 0 where all that is verified holds, 1 where it does not, 2 where that could not be found out here.
pub fn run(example: impl FnOnce() -> Result<()>) -> ExitCode {
    match example() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::from(if error.is::<CannotRun>() { 2 } else { 1 })
        }
    }
}

/// Runs an example that needs root, over these user and group ids; for another user, in a user namespace where that can be made.
pub fn run_as_root(ids: &[u32], example: impl FnOnce() -> Result<()>) -> ExitCode {
    match missing(ids) {
        Ok(None) => run(|| example().inspect(|()| println!("all verified"))),
        Ok(Some(missing)) => run(|| Err(run_in_user_namespace(&missing))),
        Err(error) => run(|| Err(error)),
    }
}

/// What it would need besides, to be root over these ids.
pub fn missing(ids: &[u32]) -> Result<Option<String>> {
    let needed = CapabilitySet::SETGID | CapabilitySet::SETUID | CapabilitySet::CHOWN;
    if !rustix::thread::capabilities(None)?.effective.contains(needed) {
        return Ok(Some("CAP_SETGID, CAP_SETUID and CAP_CHOWN".into()));
    }
    for map in ["/proc/self/uid_map", "/proc/self/gid_map"] {
        let text = fs::read_to_string(map)?;
        if let Some(id) = ids.iter().find(|&&id| !maps(&text, id)) {
            return Ok(Some(format!("id {id}, which {map} does not map")));
        }
    }
    let denied = fs::read_to_string("/proc/self/setgroups").is_ok_and(|text| text.trim() == "deny");
    Ok(denied.then(|| "setgroups, which is denied in this user namespace (/proc/self/setgroups)".into()))
}

fn maps(map: &str, id: u32) -> bool {
    map.lines().any(|line| {
        let numbers: Vec<u64> = line.split_whitespace().filter_map(|number| number.parse().ok()).collect();
        matches!(numbers[..], [first, _, count] if (first..first + count).contains(&u64::from(id)))
    })
}

/// Tells that it runs again in there.
const INSIDE: &str = "PRIVILEGE_GUARD_EXAMPLE_INSIDE";

/// Returns only where that cannot be done.
fn run_in_user_namespace(missing: &str) -> Box<dyn Error + Send + Sync> {
    const UNSHARE: [&str; 4] = ["unshare", "--user", "--map-root-user", "--map-auto"];
    let unshare = || {
        let mut command = Command::new(UNSHARE[0]);
        command.args(&UNSHARE[1..]);
        command
    };
    let this = match std::env::current_exe() {
        Ok(this) => this,
        Err(error) => return error.into(),
    };
    let again = format!("{} {}", UNSHARE.join(" "), this.display());
    let can = std::env::var_os(INSIDE).is_none() && unshare().arg("true").output().is_ok_and(|output| output.status.success());
    if can {
        println!("this needs {missing}; running again in a user namespace: {again}");
        return unshare().arg(&this).args(std::env::args_os().skip(1)).env(INSIDE, "1").exec().into();
    }
    CannotRun(format!(
        "this needs {missing}.\nRun it as root:   sudo {}\nor as yourself:   {again}\n\
         The latter needs subordinate ids (a line with your name in /etc/subuid and /etc/subgid) and the package uidmap.",
        this.display()
    ))
    .into()
}

/// Says what was asked of the kernel, and holds; where it does not, that is the error.
pub fn verify(holds: bool, what: impl fmt::Display) -> Result<()> {
    if !holds {
        return Err(format!("NOT SO: {what}").into());
    }
    println!("verified: {what}");
    Ok(())
}

/// What the kernel says of a thread (`proc_pid_status(5)`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// Real, effective, saved, filesystem.
    pub users: [u32; 4],
    pub groups: [u32; 4],
    pub supplementary: Vec<u32>,
    pub effective_capabilities: u64,
    /// Permitted, inheritable or ambient.
    pub held_capabilities: u64,
    pub no_new_privs: bool,
}

pub fn status(path: impl AsRef<Path>) -> Result<Status> {
    let text = fs::read_to_string(path)?;
    let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)).ok_or(format!("no {name} in status"));
    let numbers =
        |name: &str| -> Result<Vec<u32>> { Ok(field(name)?.split_whitespace().map(str::parse).collect::<std::result::Result<_, _>>()?) };
    let four = |name: &str| -> Result<[u32; 4]> { Ok(numbers(name)?.try_into().map_err(|_| format!("not four ids: {name}"))?) };
    let mask = |name: &str| -> Result<u64> { Ok(u64::from_str_radix(field(name)?.trim(), 16)?) };
    Ok(Status {
        users: four("Uid:")?,
        groups: four("Gid:")?,
        supplementary: numbers("Groups:")?,
        effective_capabilities: mask("CapEff:")?,
        held_capabilities: mask("CapPrm:")? | mask("CapInh:")? | mask("CapAmb:")?,
        no_new_privs: numbers("NoNewPrivs:")? == [1],
    })
}

/// Of the calling thread.
pub fn own_status() -> Result<Status> {
    status("/proc/thread-self/status")
}

/// Of every thread of a process.
pub fn statuses(process: u32) -> Result<Vec<Status>> {
    fs::read_dir(format!("/proc/{process}/task"))?.map(|thread| status(thread?.path().join("status"))).collect()
}

/// Whether the file can be opened and read by the calling thread.
pub fn may_read(path: &Path) -> io::Result<bool> {
    permitted(fs::read(path))
}

/// Whether the file can be opened for writing by the calling thread.
pub fn may_write(path: &Path) -> io::Result<bool> {
    permitted(fs::OpenOptions::new().append(true).open(path))
}

fn permitted<T>(opened: io::Result<T>) -> io::Result<bool> {
    match opened {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == ErrorKind::PermissionDenied => Ok(false),
        Err(error) => Err(error),
    }
}

/// A folder for an example, which all may enter: what is refused in it is refused by the files.
pub fn folder(owner: u32) -> Result<tempfile::TempDir> {
    let folder = tempfile::Builder::new().prefix("privilege-guard-").tempdir()?;
    fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o755))?;
    chown(folder.path(), Some(owner), None)?;
    Ok(folder)
}

/// A file of this user and group.
pub fn file(path: PathBuf, (user, group): (u32, u32), mode: u32, content: &str) -> Result<PathBuf> {
    fs::write(&path, content)?;
    fs::set_permissions(&path, PermissionsExt::from_mode(mode))?;
    chown(&path, Some(user), Some(group))?;
    Ok(path)
}

/// What came of calls that need the privilege that was given up.
#[derive(Clone, Debug, Default)]
pub struct Tries {
    pub refused: usize,
    /// The others: those that worked, or that something between here and the kernel says have worked.
    pub answered: Vec<String>,
}

impl Tries {
    fn add(&mut self, call: String, refused: bool) {
        if refused { self.refused += 1 } else { self.answered.push(call) }
    }
}

impl fmt::Display for Tries {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} raw calls to get back, refused", self.refused)?;
        if self.answered.is_empty() { Ok(()) } else { write!(f, "; answered with success: {}", self.answered.join(", ")) }
    }
}

/// Tries to take these groups back, by raw calls on the calling thread, then to be user 0, then to have CAP_SETGID.
pub fn try_to_get_back(groups: impl IntoIterator<Item = u32>) -> Result<Tries> {
    let now = own_status()?.groups[3];
    let mut tries = Tries::default();
    for group in groups.into_iter().collect::<BTreeSet<_>>() {
        let id = libc::c_long::from(group);
        for (name, number, arguments) in [
            ("setresgid", libc::SYS_setresgid, [id; 3]),
            ("setresgid of the saved id", libc::SYS_setresgid, [-1, -1, id]),
            ("setregid", libc::SYS_setregid, [id, id, 0]),
            ("setgid", libc::SYS_setgid, [id, 0, 0]),
        ] {
            tries.add(format!("{name}, group {group}"), call(number, arguments).is_err());
        }
        // It answers the id before, whether it sets the other or not.
        let before = call(libc::SYS_setfsgid, [id, 0, 0]);
        let refused = before.is_err() || before.is_ok_and(|before| before == libc::c_long::from(now)) && own_status()?.groups[3] == now;
        tries.add(format!("setfsgid, group {group}"), refused);
        let list = [rustix::process::Gid::from_raw(group)];
        tries.add(format!("setgroups, group {group}"), rustix::thread::set_thread_groups(&list).is_err());
    }
    tries.add("setgroups, none".into(), rustix::thread::set_thread_groups(&[]).is_err());
    tries.add("setresuid, user 0".into(), call(libc::SYS_setresuid, [0; 3]).is_err());
    tries.add("setuid, user 0".into(), call(libc::SYS_setuid, [0; 3]).is_err());
    let mut sets = rustix::thread::capabilities(None)?;
    sets.permitted |= CapabilitySet::SETGID;
    sets.effective |= CapabilitySet::SETGID;
    tries.add("capset, CAP_SETGID".into(), rustix::thread::set_capabilities(None, sets).is_err());
    // No way back, but refused to who has nothing: an answer of success is made up.
    let dropped = rustix::thread::remove_capability_from_bounding_set(CapabilitySet::SETGID);
    tries.add("prctl(PR_CAPBSET_DROP), CAP_SETGID".into(), dropped.is_err());
    Ok(tries)
}

fn call(number: libc::c_long, arguments: [libc::c_long; 3]) -> io::Result<libc::c_long> {
    let [a, b, c] = arguments;
    // SAFETY: used for calls whose arguments are numbers only.
    match unsafe { libc::syscall(number, a, b, c) } {
        -1 => Err(io::Error::last_os_error()),
        result => Ok(result),
    }
}

//! What the kernel says of a thread, and lets it do.

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::io;
use std::path::Path;
use std::process::Command;

use rustix::thread::CapabilitySet;

use super::{Outcome, verify};

/// The groups of a thread.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    pub real: u32,
    pub effective: u32,
    pub saved: u32,
    pub filesystem: u32,
    pub supplementary: Vec<u32>,
}

impl Identity {
    /// The calling thread's.
    pub fn read() -> Outcome<Self> {
        Ok(Status::read()?.groups)
    }

    /// This group and no other.
    pub fn only(group: u32) -> Self {
        Identity {
            real: group,
            effective: group,
            saved: group,
            filesystem: group,
            supplementary: vec![],
        }
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Identity {
            real,
            effective,
            saved,
            filesystem,
            supplementary,
        } = self;
        write!(
            f,
            "real {real}, effective {effective}, saved {saved}, filesystem {filesystem}, supplementary {supplementary:?}"
        )
    }
}

/// Its users, groups and capabilities (`proc_pid_status(5)`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    pub groups: Identity,
    /// Real, effective, saved, filesystem.
    pub users: [u32; 4],
    pub effective_capabilities: u64,
    /// Permitted, inheritable, ambient.
    pub other_capabilities: [u64; 3],
    pub no_new_privs: bool,
}

impl Status {
    /// The calling thread's.
    pub fn read() -> Outcome<Self> {
        Status::read_from("/proc/thread-self/status".as_ref())
    }

    /// Those of every thread of a process.
    pub fn read_all(process: u32) -> Outcome<Vec<Self>> {
        let tasks = format!("/proc/{process}/task");
        let threads =
            fs::read_dir(&tasks).map_err(|error| format!("cannot read {tasks}: {error}"))?;
        threads
            .map(|thread| Status::read_from(&thread?.path().join("status")))
            .collect()
    }

    fn read_from(path: &Path) -> Outcome<Self> {
        let text = read(path)?;
        let field = |name: &str| {
            text.lines()
                .find_map(|line| line.strip_prefix(name))
                .ok_or(format!("no {name} in status"))
        };
        let numbers = |name: &str| -> Outcome<Vec<u32>> {
            Ok(field(name)?
                .split_whitespace()
                .map(str::parse)
                .collect::<Result<_, _>>()?)
        };
        let four = |name: &str| -> Outcome<[u32; 4]> {
            Ok(numbers(name)?
                .try_into()
                .map_err(|_| format!("not four ids: {name}"))?)
        };
        let mask =
            |name: &str| -> Outcome<u64> { Ok(u64::from_str_radix(field(name)?.trim(), 16)?) };
        let [real, effective, saved, filesystem] = four("Gid:")?;
        Ok(Status {
            groups: Identity {
                real,
                effective,
                saved,
                filesystem,
                supplementary: numbers("Groups:")?,
            },
            users: four("Uid:")?,
            effective_capabilities: mask("CapEff:")?,
            other_capabilities: [mask("CapPrm:")?, mask("CapInh:")?, mask("CapAmb:")?],
            no_new_privs: numbers("NoNewPrivs:")? == [1],
        })
    }

    /// Permitted, inheritable or ambient.
    pub fn held_capabilities(&self) -> u64 {
        self.other_capabilities
            .iter()
            .fold(0, |held, set| held | set)
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [real, effective, saved, filesystem] = self.users;
        let [permitted, inheritable, ambient] = self.other_capabilities;
        write!(
            f,
            "user real {real}, effective {effective}, saved {saved}, filesystem {filesystem}; \
             group {}; capabilities effective {:x}, permitted {permitted:x}, \
             inheritable {inheritable:x}, ambient {ambient:x}",
            self.groups, self.effective_capabilities
        )
    }
}

/// Asks a child process, which is this program again, to print its effective ids.
const SHOW_IDS: &str = "PRIVILEGE_GUARD_SHOW_IDS";

/// The effective user and group of a process that is started now.
fn ids_of_child() -> Outcome<(u32, u32)> {
    let program = "/proc/self/exe";
    let output = Command::new(program)
        .env(SHOW_IDS, "")
        .output()
        .map_err(|error| format!("cannot start {program}: {error}"))?;
    let printed = String::from_utf8(output.stdout)?;
    let (user, group) = printed
        .trim_end()
        .split_once(' ')
        .ok_or_else(|| format!("not two ids: {printed:?}"))?;
    Ok((user.parse()?, group.parse()?))
}

/// The effective user of a process that is started now.
pub fn user_of_child() -> Outcome<u32> {
    ids_of_child().map(|(user, _)| user)
}

/// The effective group of a process that is started now.
pub fn group_of_child() -> Outcome<u32> {
    ids_of_child().map(|(_, group)| group)
}

/// Prints the effective ids if this process is the child of [`user_of_child`] or [`group_of_child`].
pub fn is_child_that_shows_its_ids() -> bool {
    let asked = std::env::var_os(SHOW_IDS).is_some();
    if asked {
        let (user, group) = (rustix::process::geteuid(), rustix::process::getegid());
        println!("{} {}", user.as_raw(), group.as_raw());
    }
    asked
}

/// Reads a file, and says in the error which one could not be read.
fn read(path: impl AsRef<Path>) -> Outcome<String> {
    let path = path.as_ref();
    Ok(fs::read_to_string(path)
        .map_err(|error| format!("cannot read {}: {error}", path.display()))?)
}

/// What this process would need besides, to be root over these ids.
pub fn missing(ids: &[u32]) -> Outcome<Option<String>> {
    let needed = CapabilitySet::SETGID | CapabilitySet::SETUID | CapabilitySet::CHOWN;
    if !rustix::thread::capabilities(None)?
        .effective
        .contains(needed)
    {
        return Ok(Some("CAP_SETGID, CAP_SETUID and CAP_CHOWN".into()));
    }
    for map in ["/proc/self/uid_map", "/proc/self/gid_map"] {
        let text = read(map)?;
        if let Some(id) = ids.iter().find(|&&id| !maps(&text, id)) {
            return Ok(Some(format!("id {id}, which {map} does not map")));
        }
    }
    let denied = fs::read_to_string("/proc/self/setgroups").is_ok_and(|text| text.trim() == "deny");
    Ok(denied
        .then(|| "setgroups, which is denied in this user namespace (/proc/self/setgroups)".into()))
}

/// Whether the user ids of this process are those of another user namespace.
pub fn is_in_user_namespace() -> Outcome<bool> {
    let map = read("/proc/self/uid_map")?;
    Ok(map.split_whitespace().collect::<Vec<_>>() != ["0", "0", "4294967295"])
}

fn maps(map: &str, id: u32) -> bool {
    map.lines().any(|line| {
        let numbers: Vec<u64> = line
            .split_whitespace()
            .filter_map(|number| number.parse().ok())
            .collect();
        matches!(numbers[..], [first, _, count] if (first..first + count).contains(&u64::from(id)))
    })
}

/// What came of calls that need the privilege that was given up.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tries {
    refused: usize,
    /// The others: those that worked, or that something between here and the kernel says have worked.
    answered: Vec<String>,
}

impl Tries {
    pub fn all_refused(&self) -> bool {
        self.answered.is_empty()
    }

    pub fn verify_all_refused(&self) -> Outcome {
        verify(
            "tries to get back",
            self,
            &Tries {
                answered: vec![],
                ..self.clone()
            },
        )
    }

    fn add(&mut self, call: String, refused: bool) {
        if refused {
            self.refused += 1
        } else {
            self.answered.push(call)
        }
    }
}

impl fmt::Display for Tries {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} raw calls refused", self.refused)?;
        if self.all_refused() {
            Ok(())
        } else {
            write!(f, "; answered with success: {}", self.answered.join(", "))
        }
    }
}

/// Tries to take these groups back, by raw calls on the calling thread, then to be user 0, then to have CAP_SETGID.
pub fn try_to_get_back(groups: impl IntoIterator<Item = u32>) -> Outcome<Tries> {
    // Not from /proc, which is not there in every root.
    let filesystem_id = || call(calls::SYS_setfsgid, [-1, 0, 0]).map(|id| id as u32);
    let now = filesystem_id()?;
    let mut tries = Tries::default();
    for group in groups.into_iter().collect::<BTreeSet<_>>() {
        let id = group as libc::c_long;
        for (name, number, arguments) in [
            ("setresgid", calls::SYS_setresgid, [id; 3]),
            (
                "setresgid of the saved id",
                calls::SYS_setresgid,
                [-1, -1, id],
            ),
            ("setregid", calls::SYS_setregid, [id, id, 0]),
            ("setgid", calls::SYS_setgid, [id, 0, 0]),
        ] {
            tries.add(
                format!("{name}, group {group}"),
                call(number, arguments).is_err(),
            );
        }
        // It answers the id before, whether it sets the other or not.
        let before = call(calls::SYS_setfsgid, [id, 0, 0]);
        let refused = before.is_err()
            || before.is_ok_and(|before| before as u32 == now) && filesystem_id()? == now;
        tries.add(format!("setfsgid, group {group}"), refused);
        let list = [rustix::process::Gid::from_raw(group)];
        tries.add(
            format!("setgroups, group {group}"),
            rustix::thread::set_thread_groups(&list).is_err(),
        );
    }
    tries.add(
        "setgroups, none".into(),
        rustix::thread::set_thread_groups(&[]).is_err(),
    );
    tries.add(
        "setresuid, user 0".into(),
        call(calls::SYS_setresuid, [0; 3]).is_err(),
    );
    tries.add(
        "setuid, user 0".into(),
        call(calls::SYS_setuid, [0; 3]).is_err(),
    );
    let mut sets = rustix::thread::capabilities(None)?;
    sets.permitted |= CapabilitySet::SETGID;
    sets.effective |= CapabilitySet::SETGID;
    tries.add(
        "capset, CAP_SETGID".into(),
        rustix::thread::set_capabilities(None, sets).is_err(),
    );
    // No way back, but refused to who has nothing: an answer of success is made up.
    let dropped = rustix::thread::remove_capability_from_bounding_set(CapabilitySet::SETGID);
    tries.add(
        "prctl(PR_CAPBSET_DROP), CAP_SETGID".into(),
        dropped.is_err(),
    );
    Ok(tries)
}

/// The calls that take 32-bit ids: on 32-bit x86 and ARM, those with the plain names take 16-bit ones.
mod calls {
    #[cfg(not(any(target_arch = "x86", target_arch = "arm")))]
    pub use libc::{
        SYS_setfsgid, SYS_setgid, SYS_setregid, SYS_setresgid, SYS_setresuid, SYS_setuid,
    };
    #[cfg(any(target_arch = "x86", target_arch = "arm"))]
    pub use libc::{
        SYS_setfsgid32 as SYS_setfsgid, SYS_setgid32 as SYS_setgid, SYS_setregid32 as SYS_setregid,
        SYS_setresgid32 as SYS_setresgid, SYS_setresuid32 as SYS_setresuid,
        SYS_setuid32 as SYS_setuid,
    };
}

fn call(number: libc::c_long, arguments: [libc::c_long; 3]) -> io::Result<libc::c_long> {
    let [a, b, c] = arguments;
    // SAFETY: used for calls whose arguments are numbers only.
    match unsafe { libc::syscall(number, a, b, c) } {
        -1 => Err(io::Error::last_os_error()),
        result => Ok(result),
    }
}

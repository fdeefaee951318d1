//! Every way back to an old identity that a process has by its own powers.

use std::process::Command;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

use super::kernel::{self, CAP_SETGID, Capabilities};

/// Asks an executed child to try these ids, and to report by its exit code.
const CHILD: &str = "PRIVILEGE_GUARD_ATTACK";

/// What nobody may get again.
#[derive(Clone, Debug, Default)]
pub struct Old {
    pub groups: Vec<u32>,
    /// After a drop to another user: the old users, all capabilities but those kept (a mask), and the old root.
    pub users: Option<Vec<u32>>,
    pub kept: u64,
}

impl Old {
    pub fn groups(groups: &[u32]) -> Self {
        Old {
            groups: groups.to_vec(),
            ..Old::default()
        }
    }

    fn encoded(&self) -> String {
        let list = |ids: &[u32]| ids.iter().map(u32::to_string).collect::<Vec<_>>().join(",");
        let users = self.users.as_deref().map_or("-".into(), list);
        format!("{};{users}", list(&self.groups))
    }

    /// What is kept, a program that is executed is not given.
    fn decoded(text: &str) -> Self {
        let (groups, users) = text.split_once(';').expect("two lists");
        let list = |ids: &str| -> Vec<u32> {
            let ids = ids.split(',').filter(|id| !id.is_empty());
            ids.map(|id| id.parse().expect("an id")).collect()
        };
        Old {
            groups: list(groups),
            users: (users != "-").then(|| list(users)),
            kept: 0,
        }
    }
}

/// Where this process is the executed child, tries and exits.
pub fn run_if_child() {
    let Ok(old) = std::env::var(CHILD) else {
        return;
    };
    let ways = on_this_thread(&Old::decoded(&old));
    for way in &ways {
        eprintln!("in an executed child: {way}");
    }
    std::process::exit(i32::from(!ways.is_empty()));
}

/// The ways to these groups that worked, tried on the calling thread, in a forked child and in an executed one.
pub fn ways_back(old: &[u32]) -> Vec<String> {
    all_ways_back(&Old::groups(old))
}

/// The ways that worked, tried on the calling thread, in a forked child and in an executed one.
pub fn all_ways_back(old: &Old) -> Vec<String> {
    let mut ways = ways_back_without_exec(old);
    let child = Command::new("/proc/self/exe")
        .env(CHILD, old.encoded())
        .status()
        .expect("this binary again");
    if !child.success() {
        ways.push("in an executed child".into());
    }
    ways
}

/// The same without `/proc`.
pub fn ways_back_without_exec(old: &Old) -> Vec<String> {
    let mut ways = on_this_thread(old);
    if !kernel::in_child(|| i32::from(!on_this_thread(old).is_empty())).success() {
        ways.push("in a forked child".into());
    }
    if !kernel::in_child(|| i32::from(maps_old_id(old))).success() {
        ways.push("by a user namespace of its own".into());
    }
    ways
}

fn on_this_thread(old: &Old) -> Vec<String> {
    let mut ways = by_calls(old, "");
    // Raising what is permitted, and asking for what is not.
    let held = kernel::capabilities();
    try_capabilities(Capabilities {
        effective: held.permitted,
        ..held
    });
    try_capabilities(Capabilities {
        effective: held.permitted | CAP_SETGID,
        permitted: held.permitted | CAP_SETGID,
        ..held
    });
    ways.extend(by_calls(old, "after raising capabilities: "));
    _ = kernel::raw_setresuid(Some(0), Some(0), Some(0));
    let held = kernel::capabilities();
    try_capabilities(Capabilities {
        effective: held.permitted,
        ..held
    });
    ways.extend(by_calls(old, "after becoming user 0: "));
    ways
}

fn by_calls(old: &Old, before: &str) -> Vec<String> {
    let mut ways = by_group_calls(&old.groups);
    if let Some(users) = &old.users {
        ways.extend(by_user_calls(users));
        ways.extend(by_capability_calls(old.kept));
        // SAFETY: a valid C string.
        if unsafe { libc::chroot(c"/".as_ptr()) } == 0 {
            ways.push("chroot".into());
        }
    }
    ways.into_iter()
        .map(|way| format!("{before}{way}"))
        .collect()
}

fn by_user_calls(old: &[u32]) -> Vec<String> {
    by_id_calls(
        "u",
        old,
        kernel::raw_setresuid,
        kernel::raw_setreuid,
        kernel::raw_setuid,
        kernel::raw_setfsuid,
    )
}

type SetThree = fn(Option<u32>, Option<u32>, Option<u32>) -> Result<(), i32>;

/// The calls of one kind of id, which is the letter in their names.
fn by_id_calls(
    kind: &str,
    old: &[u32],
    set_three: SetThree,
    set_two: fn(Option<u32>, Option<u32>) -> Result<(), i32>,
    set: fn(u32) -> Result<(), i32>,
    set_filesystem: fn(u32) -> bool,
) -> Vec<String> {
    let mut ways = Vec::new();
    let mut tried = |what: String, worked: bool| ways.extend(worked.then_some(what));
    for &id in old {
        let some = Some(id);
        for (real, effective, saved) in [
            (some, None, None),
            (None, some, None),
            (None, None, some),
            (some, some, some),
        ] {
            tried(
                format!("setres{kind}id({real:?}, {effective:?}, {saved:?})"),
                set_three(real, effective, saved).is_ok(),
            );
        }
        for (real, effective) in [(some, None), (None, some), (some, some)] {
            tried(
                format!("setre{kind}id({real:?}, {effective:?})"),
                set_two(real, effective).is_ok(),
            );
        }
        tried(format!("set{kind}id({id})"), set(id).is_ok());
        tried(format!("setfs{kind}id({id})"), set_filesystem(id));
    }
    ways
}

/// Tries to put each capability that is not kept into each set, and looks at the sets.
fn by_capability_calls(kept: u64) -> Vec<String> {
    let mut ways = Vec::new();
    for bit in (0..64).filter(|bit| kept >> bit & 1 == 0) {
        let (held, bit) = (kernel::capabilities(), 1u64 << bit);
        try_capabilities(Capabilities {
            effective: held.effective | bit,
            permitted: held.permitted | bit,
            ..held
        });
        try_capabilities(Capabilities {
            inheritable: held.inheritable | bit,
            ..held
        });
        if kernel::raise_ambient(bit) {
            ways.push(format!("ambient capability {bit:#x}"));
        }
    }
    let held = kernel::capabilities();
    let others = (held.effective | held.permitted | held.inheritable) & !kept;
    if others != 0 {
        ways.push(format!("capabilities {others:#x}"));
    }
    ways
}

fn by_group_calls(old: &[u32]) -> Vec<String> {
    let mut ways = by_id_calls(
        "g",
        old,
        kernel::raw_setresgid,
        kernel::raw_setregid,
        kernel::raw_setgid,
        kernel::raw_setfsgid,
    );
    let mut tried = |what: String, worked: bool| ways.extend(worked.then_some(what));
    for &id in old {
        tried(
            format!("setgroups([{id}])"),
            kernel::raw_setgroups(&[id]).is_ok(),
        );
    }
    tried("setgroups([])".into(), kernel::raw_setgroups(&[]).is_ok());
    ways
}

fn try_capabilities(sets: Capabilities) {
    use rustix::thread::{CapabilitySet, CapabilitySets};
    let [effective, permitted, inheritable] =
        [sets.effective, sets.permitted, sets.inheritable].map(CapabilitySet::from_bits_retain);
    _ = rustix::thread::set_capabilities(
        None,
        CapabilitySets {
            effective,
            permitted,
            inheritable,
        },
    );
}

/// Whether an old id can be mapped, and so had, in a new user namespace.
fn maps_old_id(old: &Old) -> bool {
    // SAFETY: a flag only, in a process of one thread.
    if unsafe { libc::unshare(libc::CLONE_NEWUSER) } != 0 {
        return false;
    }
    _ = std::fs::write("/proc/self/setgroups", "deny");
    let maps = |file: &str, ids: &[u32]| {
        let map = |id: &u32| std::fs::write(file, format!("{id} {id} 1")).is_ok();
        ids.iter().any(map)
    };
    maps("/proc/self/gid_map", &old.groups)
        || maps(
            "/proc/self/uid_map",
            old.users.as_deref().unwrap_or_default(),
        )
}

/// Threads that live through a drop, and then attack too.
pub struct Siblings(Vec<Sibling>);

struct Sibling {
    ask: Sender<Old>,
    answers: Receiver<Vec<String>>,
    _thread: JoinHandle<()>,
}

impl Siblings {
    pub fn start(number: usize) -> Self {
        let threads = (0..number).map(|_| {
            let (ask, asked) = channel::<Old>();
            let (answer, answers) = channel();
            let thread = std::thread::spawn(move || {
                // Until the asker is gone.
                for old in asked {
                    answer.send(on_this_thread(&old)).expect("somebody listens");
                }
            });
            Sibling {
                ask,
                answers,
                _thread: thread,
            }
        });
        Siblings(threads.collect())
    }

    pub fn ways_back(&self, old: &[u32]) -> Vec<String> {
        self.all_ways_back(&Old::groups(old))
    }

    pub fn all_ways_back(&self, old: &Old) -> Vec<String> {
        let attack = |sibling: &Sibling| {
            sibling.ask.send(old.clone()).expect("the thread lives");
            sibling.answers.recv().expect("it answers")
        };
        self.0.iter().flat_map(attack).collect()
    }
}

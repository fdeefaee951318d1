//! Every way back to an old group that a process has by its own powers.

use std::process::Command;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

use super::kernel::{self, CAP_SETGID, Capabilities};

/// Asks an executed child to try these ids, and to report by its exit code.
const CHILD: &str = "PRIVILEGE_GUARD_ATTACK";

/// Where this process is the executed child, tries and exits.
pub fn run_if_child() {
    let Ok(ids) = std::env::var(CHILD) else {
        return;
    };
    let old: Vec<u32> = ids
        .split(',')
        .map(|id| id.parse().expect("an id"))
        .collect();
    let ways = on_this_thread(&old);
    for way in &ways {
        eprintln!("in an executed child: {way}");
    }
    std::process::exit(i32::from(!ways.is_empty()));
}

/// The ways that worked, tried on the calling thread, in a forked child and in an executed one.
pub fn ways_back(old: &[u32]) -> Vec<String> {
    let mut ways = on_this_thread(old);
    if !kernel::in_child(|| i32::from(!on_this_thread(old).is_empty())).success() {
        ways.push("in a forked child".into());
    }
    if !kernel::in_child(|| i32::from(maps_old_id(old))).success() {
        ways.push("by a user namespace of its own".into());
    }
    let ids: Vec<String> = old.iter().map(u32::to_string).collect();
    let child = Command::new("/proc/self/exe")
        .env(CHILD, ids.join(","))
        .status()
        .expect("this binary again");
    if !child.success() {
        ways.push("in an executed child".into());
    }
    ways
}

fn on_this_thread(old: &[u32]) -> Vec<String> {
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

fn by_calls(old: &[u32], before: &str) -> Vec<String> {
    let mut ways = Vec::new();
    let mut tried =
        |what: String, worked: bool| ways.extend(worked.then(|| format!("{before}{what}")));
    for &id in old {
        let some = Some(id);
        for (real, effective, saved) in [
            (some, None, None),
            (None, some, None),
            (None, None, some),
            (some, some, some),
        ] {
            tried(
                format!("setresgid({real:?}, {effective:?}, {saved:?})"),
                kernel::raw_setresgid(real, effective, saved).is_ok(),
            );
        }
        for (real, effective) in [(some, None), (None, some), (some, some)] {
            tried(
                format!("setregid({real:?}, {effective:?})"),
                kernel::raw_setregid(real, effective).is_ok(),
            );
        }
        tried(format!("setgid({id})"), kernel::raw_setgid(id).is_ok());
        tried(format!("setfsgid({id})"), kernel::raw_setfsgid(id));
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
fn maps_old_id(old: &[u32]) -> bool {
    // SAFETY: a flag only, in a process of one thread.
    if unsafe { libc::unshare(libc::CLONE_NEWUSER) } != 0 {
        return false;
    }
    _ = std::fs::write("/proc/self/setgroups", "deny");
    old.iter()
        .any(|id| std::fs::write("/proc/self/gid_map", format!("{id} {id} 1")).is_ok())
}

/// Threads that live through a drop, and then attack too.
pub struct Siblings(Vec<Sibling>);

struct Sibling {
    ask: Sender<Vec<u32>>,
    answers: Receiver<Vec<String>>,
    _thread: JoinHandle<()>,
}

impl Siblings {
    pub fn start(number: usize) -> Self {
        let threads = (0..number).map(|_| {
            let (ask, asked) = channel::<Vec<u32>>();
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
        let attack = |sibling: &Sibling| {
            sibling.ask.send(old.to_vec()).expect("the thread lives");
            sibling.answers.recv().expect("it answers")
        };
        self.0.iter().flat_map(attack).collect()
    }
}

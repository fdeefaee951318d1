//! What is measured.

use std::fmt;
use std::hint::black_box;
use std::sync::Arc;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use privilege_guard::{
    GroupChange, GroupGuard, Identity, IdentityChange, IdentityGuard, UserGuard,
};

use crate::raw;

pub const GROUP: u32 = 1004;
pub const USER: u32 = 1000;
/// The supplementary groups of a client, and those of the next one.
const GROUPS: [[u32; 2]; 2] = [[1010, 1011], [1012, 1013]];
const LEAVE: u32 = u32::MAX;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    ThreadGuard,
    ProcessGuard,
    SwitchToAnother,
    SwitchToTheSame,
    GroupsInTheGuard,
    UserGuardOnAThread,
    UserGuardInTheProcess,
    SwitchToAnotherUser,
    SwitchToTheSameUser,
    IdentityGuardKeepingGroups,
    IdentityGuard,
    SwitchToAnotherIdentity,
    SwitchToTheSameIdentity,
    FiveRawCalls,
    SevenRawCalls,
    RawPair,
    FileServerPair,
    LibcPair,
    GroupsByRawCalls,
    RawUserPair,
    TenRawCalls,
    LibcUserPair,
    FourRawCalls,
    SixRawCalls,
    EndAndBeginByHand,
    TwoThreadsGuards,
    TwoThreadsFiveRawCalls,
}

impl Work {
    /// Does it this many times, and says how long that took.
    pub fn time(self, times: u64) -> Duration {
        match self {
            Work::ThreadGuard => timed(times, |_| {
                drop(black_box(
                    GroupGuard::assume_on_thread(GROUP).expect("a guard"),
                ))
            }),
            Work::ProcessGuard => timed(times, |_| {
                drop(black_box(GroupGuard::assume(GROUP).expect("a guard")))
            }),
            Work::SwitchToAnother => {
                let mut guard = GroupGuard::assume_on_thread(GROUP).expect("a guard");
                timed(times, |turn| {
                    guard
                        .switch_to(GROUP + 1 + turn as u32 % 2)
                        .expect("a switch")
                })
            }
            Work::SwitchToTheSame => {
                let mut guard = GroupGuard::assume_on_thread(GROUP).expect("a guard");
                timed(times, |_| {
                    guard.switch_to(black_box(GROUP)).expect("a switch")
                })
            }
            Work::GroupsInTheGuard => {
                let change = GroupChange::both(GROUP).supplementary(GROUPS[0]);
                timed(times, |_| {
                    drop(black_box(
                        change.clone().assume_on_thread().expect("a guard"),
                    ))
                })
            }
            Work::UserGuardOnAThread => timed(times, |_| {
                drop(black_box(
                    UserGuard::assume_effective_on_thread(USER).expect("a guard"),
                ))
            }),
            Work::UserGuardInTheProcess => timed(times, |_| {
                drop(black_box(
                    UserGuard::assume_effective(USER).expect("a guard"),
                ))
            }),
            Work::SwitchToAnotherUser => {
                let mut guard = UserGuard::assume_effective_on_thread(USER).expect("a guard");
                timed(times, |turn| {
                    guard
                        .switch_to(USER + 1 + turn as u32 % 2)
                        .expect("a switch")
                })
            }
            Work::SwitchToTheSameUser => {
                let mut guard = UserGuard::assume_effective_on_thread(USER).expect("a guard");
                timed(times, |_| {
                    guard.switch_to(black_box(USER)).expect("a switch")
                })
            }
            Work::IdentityGuardKeepingGroups => {
                let client = client(0);
                timed(times, |_| {
                    let change = IdentityChange::effective(&client).keep_supplementary();
                    drop(black_box(change.assume_on_thread().expect("a guard")))
                })
            }
            Work::IdentityGuard => {
                let client = client(0);
                timed(times, |_| {
                    let guard = IdentityGuard::assume_effective_on_thread(&client);
                    drop(black_box(guard.expect("a guard")))
                })
            }
            Work::SwitchToAnotherIdentity => {
                let clients = [client(0), client(1)];
                let guard = IdentityGuard::assume_effective_on_thread(&clients[1]);
                let mut guard = guard.expect("a guard");
                timed(times, |turn| {
                    guard
                        .switch_to(&clients[turn as usize % 2])
                        .expect("a switch")
                })
            }
            Work::SwitchToTheSameIdentity => {
                let client = client(0);
                let guard = IdentityGuard::assume_effective_on_thread(&client);
                let mut guard = guard.expect("a guard");
                timed(times, |_| {
                    guard.switch_to(black_box(&client)).expect("a switch")
                })
            }
            Work::GroupsByRawCalls => timed(times, |_| {
                raw::setgroups(&GROUPS[0]);
                raw::setresgid(GROUP, GROUP, LEAVE);
                raw::setresgid(0, 0, 0);
                raw::setgroups(&[]);
            }),
            Work::RawUserPair => timed(times, |_| {
                raw::setresuid(LEAVE, USER, LEAVE);
                raw::setresuid(LEAVE, 0, LEAVE);
            }),
            Work::TenRawCalls => timed(times, |_| raw::ten_calls(USER)),
            Work::LibcUserPair => timed(times, |_| {
                raw::libc_setresuid(LEAVE, USER, LEAVE);
                raw::libc_setresuid(LEAVE, 0, LEAVE);
            }),
            Work::FourRawCalls => timed(times, |_| {
                raw::become_client(USER, GROUP, None);
                raw::become_root(None);
            }),
            Work::SixRawCalls => timed(times, |_| {
                raw::become_client(USER, GROUP, Some(&GROUPS[0]));
                raw::become_root(Some(&[]));
            }),
            Work::EndAndBeginByHand => {
                let begin = |turn: u64| {
                    let next = turn as u32 % 2;
                    raw::become_client(USER + next, GROUP + next, Some(&GROUPS[next as usize]));
                };
                begin(1);
                let time = timed(times, |turn| {
                    raw::become_root(Some(&[]));
                    begin(turn);
                });
                raw::become_root(Some(&[]));
                time
            }
            Work::FiveRawCalls => timed(times, |_| raw::five_calls(GROUP)),
            Work::SevenRawCalls => timed(times, |_| raw::seven_calls(GROUP)),
            Work::RawPair => timed(times, |_| {
                raw::setresgid(GROUP, GROUP, LEAVE);
                raw::setresgid(0, 0, 0);
            }),
            Work::FileServerPair => timed(times, |_| {
                raw::setresgid(LEAVE, GROUP, LEAVE);
                raw::setresgid(LEAVE, 0, LEAVE);
            }),
            Work::LibcPair => timed(times, |_| {
                raw::libc_setresgid(GROUP, GROUP, LEAVE);
                raw::libc_setresgid(0, 0, 0);
            }),
            Work::TwoThreadsGuards => at_once(Work::ThreadGuard, times),
            Work::TwoThreadsFiveRawCalls => at_once(Work::FiveRawCalls, times),
        }
    }

    /// How many fit into a batch that is short beside what disturbs it.
    pub fn batch(self, other_threads: usize) -> u64 {
        match self {
            Work::ProcessGuard | Work::UserGuardInTheProcess if other_threads > 0 => 2,
            Work::TwoThreadsGuards | Work::TwoThreadsFiveRawCalls => 400,
            _ => 64,
        }
    }
}

impl fmt::Display for Work {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Work::ThreadGuard => "thread guard",
            Work::ProcessGuard => "process guard",
            Work::SwitchToAnother => "switch_to a new group",
            Work::SwitchToTheSame => "switch_to the same group",
            Work::GroupsInTheGuard => "thread guard with supplementary groups",
            Work::UserGuardOnAThread => "user guard on a thread",
            Work::UserGuardInTheProcess => "user guard in the process",
            Work::SwitchToAnotherUser => "switch_to a new user",
            Work::SwitchToTheSameUser => "switch_to the same user",
            Work::IdentityGuardKeepingGroups => "identity guard, groups kept",
            Work::IdentityGuard => "identity guard",
            Work::SwitchToAnotherIdentity => "switch_to a new identity",
            Work::SwitchToTheSameIdentity => "switch_to the same identity",
            Work::GroupsByRawCalls => "its four raw setting calls",
            Work::RawUserPair => "setresuid(-1, u, -1) pair",
            Work::TenRawCalls => "all ten raw calls",
            Work::LibcUserPair => "libc's setresuid pair",
            Work::FourRawCalls => "file servers' four raw calls",
            Work::SixRawCalls => "file servers' six raw calls",
            Work::EndAndBeginByHand => "end and begin by hand, six calls",
            Work::FiveRawCalls => "the five raw calls",
            Work::SevenRawCalls => "all seven raw calls",
            Work::RawPair => "raw setresgid pair",
            Work::FileServerPair => "setresgid(-1, g, -1) pair",
            Work::LibcPair => "libc's setresgid pair",
            Work::TwoThreadsGuards => "thread guards of two threads",
            Work::TwoThreadsFiveRawCalls => "five raw calls of two threads",
        })
    }
}

fn client(number: u32) -> Identity {
    Identity::new(USER + number, GROUP + number).supplementary(GROUPS[number as usize])
}

fn timed(times: u64, mut work: impl FnMut(u64)) -> Duration {
    let start = Instant::now();
    for turn in 0..times {
        work(turn);
    }
    start.elapsed()
}

/// On two threads at once; what one of them takes.
fn at_once(work: Work, times: u64) -> Duration {
    let together = Barrier::new(2);
    let one = || {
        work.time(1); // warm
        together.wait();
        work.time(times)
    };
    std::thread::scope(|scope| {
        let other = scope.spawn(one);
        let mine = one();
        (mine + other.join().expect("the other thread")) / 2
    })
}

/// Threads that do nothing until this is dropped.
pub struct Sleepers {
    threads: Vec<JoinHandle<()>>,
    over: Arc<AtomicBool>,
}

impl Sleepers {
    pub fn start(count: usize) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let sleep = |over: Arc<AtomicBool>| {
            move || {
                while !over.load(Ordering::Acquire) {
                    std::thread::park();
                }
            }
        };
        let threads = (0..count)
            .map(|_| std::thread::spawn(sleep(Arc::clone(&over))))
            .collect();
        Sleepers { threads, over }
    }
}

impl Drop for Sleepers {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Release);
        for thread in self.threads.drain(..) {
            thread.thread().unpark();
            thread.join().expect("a sleeper");
        }
    }
}

//! What is measured.

use std::fmt;
use std::hint::black_box;
use std::sync::Arc;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use privilege_guard::{GroupChange, GroupGuard};

use crate::raw;

pub const GROUP: u32 = 1004;
const LEAVE: u32 = u32::MAX;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    ThreadGuard,
    ProcessGuard,
    GuardWithGroups,
    SwitchToAnother,
    SwitchToTheSame,
    FiveRawCalls,
    SevenRawCalls,
    RawPair,
    RawCallsWithGroups,
    FileServerPair,
    LibcPair,
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
            Work::GuardWithGroups => {
                let change = GroupChange::both(GROUP).supplementary([GROUP]);
                timed(times, |_| {
                    drop(black_box(
                        change.clone().assume_on_thread().expect("a guard"),
                    ))
                })
            }
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
            Work::FiveRawCalls => timed(times, |_| raw::five_calls(GROUP)),
            Work::SevenRawCalls => timed(times, |_| raw::seven_calls(GROUP)),
            Work::RawPair => timed(times, |_| {
                raw::setresgid(GROUP, GROUP, LEAVE);
                raw::setresgid(0, 0, 0);
            }),
            Work::RawCallsWithGroups => timed(times, |_| raw::calls_with_groups(GROUP)),
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
            Work::ProcessGuard if other_threads > 0 => 2,
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
            Work::GuardWithGroups => "guard with groups",
            Work::SwitchToAnother => "switch_to a new group",
            Work::SwitchToTheSame => "switch_to the same group",
            Work::FiveRawCalls => "the five raw calls",
            Work::SevenRawCalls => "all seven raw calls",
            Work::RawPair => "raw setresgid pair",
            Work::RawCallsWithGroups => "raw calls with groups",
            Work::FileServerPair => "setresgid(-1, g, -1) pair",
            Work::LibcPair => "libc's setresgid pair",
            Work::TwoThreadsGuards => "thread guards of two threads",
            Work::TwoThreadsFiveRawCalls => "five raw calls of two threads",
        })
    }
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

//! What a guard costs must not grow with the guards before it: in memory, and in the work of its end.

use std::time::Duration;

use crate::cases;
use crate::common::Case;
use crate::common::guard::Scope;
use crate::common::kernel;
use privilege_guard::{GroupChange, GroupGuard};

pub const CASES: &[Case] = cases![
    Setgid: guards_taken_hand_over_hand_do_not_pile_up,
    Setgid: process_guards_taken_hand_over_hand_do_not_pile_up,
    Setgid: guards_of_groups_taken_hand_over_hand_do_not_pile_up,
    Setgid: nested_guards_cost_the_same_each,
    Setgid: guards_that_end_in_the_order_made_cost_the_same_each,
];

const START: [u32; 4] = [3, 4, 5, 6];

/// The resident memory of this process, in bytes.
fn memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .expect("VmRSS");
    let kilobytes: u64 = line.trim().trim_end_matches(" kB").parse().unwrap();
    kilobytes * 1024
}

/// Each guard begins before the one before it ends.
fn hand_over_hand(steps: u32, scope: Scope, change: impl Fn(u32) -> GroupChange) {
    /// A frame per step would be more than 100 bytes each.
    const MOST_PER_STEP: u64 = 10;
    const SLACK: u64 = 256 * 1024;

    kernel::start_from(START, &[7, 8]);
    let before = kernel::identity();
    let assume = |step| scope.assume(change(step)).unwrap();
    let mut guard = assume(0);
    let mut take = |from, to| {
        for step in from..to {
            let next = assume(step);
            guard = next;
        }
    };
    take(1, 1000);
    let warm = memory();
    take(1000, steps);
    let grown = memory().saturating_sub(warm);
    let [_, effective, ..] = kernel::ids();
    assert_eq!(effective, 1004 + (steps - 1) % 2);
    println!("= {steps} steps: {grown} bytes more");
    assert!(
        grown <= u64::from(steps) * MOST_PER_STEP / 10 + SLACK,
        "{grown} bytes more after {steps} steps"
    );
    drop(guard);
    assert_eq!(kernel::identity(), before);
}

fn guards_taken_hand_over_hand_do_not_pile_up() {
    hand_over_hand(200_000, Scope::Thread, |step| {
        GroupChange::both(1004 + step % 2)
    });
}

fn process_guards_taken_hand_over_hand_do_not_pile_up() {
    hand_over_hand(50_000, Scope::Process, |step| {
        GroupChange::both(1004 + step % 2)
    });
}

fn guards_of_groups_taken_hand_over_hand_do_not_pile_up() {
    hand_over_hand(50_000, Scope::Thread, |step| {
        GroupChange::new()
            .effective(1004 + step % 2)
            .supplementary([step % 3])
    });
}

/// The time that this thread has been running.
fn running() -> Duration {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    assert_eq!(
        // SAFETY: a valid pointer.
        unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) },
        0
    );
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

fn nested(depth: u32, end: fn(Vec<GroupGuard<privilege_guard::Thread>>)) -> Duration {
    let before = running();
    let guards = (0..depth)
        .map(|step| GroupGuard::assume_on_thread(1004 + step % 2).unwrap())
        .collect();
    end(guards);
    let took = running() - before;
    assert_eq!(kernel::ids_by_calls(), START);
    took
}

/// Four times as many guards are four times the work, and 16 times if each looks at those before it.
fn grows_linearly(end: fn(Vec<GroupGuard<privilege_guard::Thread>>)) {
    const TIMES_MORE: u32 = 4;
    const MOST: f64 = 9.0;

    kernel::start_from(START, &[]);
    nested(5_000, end);
    // The quickest of several: other processes only slow it down.
    let quickest = |depth| (0..5).map(|_| nested(depth, end)).min().expect("a time");
    let (few, many) = (quickest(5_000), quickest(5_000 * TIMES_MORE));
    let ratio = many.as_secs_f64() / few.as_secs_f64();
    println!("= 20000 nested guards take {ratio:.1} times as long as 5000");
    assert!(ratio < MOST, "{few:?}, {many:?}");
}

fn nested_guards_cost_the_same_each() {
    grows_linearly(|mut guards| while guards.pop().is_some() {});
}

fn guards_that_end_in_the_order_made_cost_the_same_each() {
    grows_linearly(drop);
}

//! Heap allocations per guard, once the first one has been made.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::contest::Line;
use crate::work::Work;

#[global_allocator]
static HEAP: Counting = Counting(AtomicU64::new(0));

struct Counting(AtomicU64);

// SAFETY: the system's allocator, with a count beside it. `realloc` and `alloc_zeroed` come down to `alloc`.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        self.0.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise, and `alloc` is the system's.
        unsafe { System.dealloc(pointer, layout) }
    }
}

pub fn lines() -> impl Iterator<Item = Line> {
    const TIMES: u64 = 1000;
    // What changes no supplementary groups has no reason to allocate.
    [
        (Work::ThreadGuard, Some(0.0)),
        (Work::ProcessGuard, Some(0.0)),
        (Work::SwitchToAnother, Some(0.0)),
        (Work::UserGuardOnAThread, Some(0.0)),
        (Work::UserGuardInTheProcess, Some(0.0)),
        (Work::SwitchToAnotherUser, Some(0.0)),
        (Work::IdentityGuardKeepingGroups, Some(0.0)),
        (Work::IdentityGuard, None),
        (Work::SwitchToAnotherIdentity, None),
    ]
    .into_iter()
    .map(|(work, goal)| {
        let count = |times| {
            let before = HEAP.0.load(Ordering::Relaxed);
            work.time(times);
            HEAP.0.load(Ordering::Relaxed) - before
        };
        // The first is not warm, and what is made before and after the many is made for the one too.
        count(1);
        let once = count(1);
        let allocations = count(TIMES + 1) - once;
        Line {
            name: format!("heap allocations per {work}, once warm"),
            measured: allocations as f64 / TIMES as f64,
            goal,
            detail: format!("{allocations:>9} in {TIMES}"),
        }
    })
}

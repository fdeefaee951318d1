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
    [Work::ThreadGuard, Work::ProcessGuard, Work::SwitchToAnother]
        .into_iter()
        .map(|work| {
            work.time(1);
            let before = HEAP.0.load(Ordering::Relaxed);
            work.time(TIMES);
            let allocations = HEAP.0.load(Ordering::Relaxed) - before;
            Line {
                name: format!("heap allocations per {work}, once warm"),
                measured: allocations as f64 / TIMES as f64,
                goal: Some(0.0),
                detail: format!("{allocations:>9} in {TIMES}"),
            }
        })
}

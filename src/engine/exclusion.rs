//! The exclusion between threads: the only state that they share.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use crate::error::{ConflictingGuard, Error};
use crate::kernel::{task_dir, threads};
use crate::scope::ScopeKind;

/// Zero, the number of threads that hold thread guards or emit an event, or [`PROCESS_GUARD_BIT`]
/// with the id of the thread that holds process guards.
///
/// This is not a lock: no thread queues, and a claim that conflicts is refused. So there is nothing
/// to deadlock on, to poison, or to inherit locked over a fork. Thread ids and numbers of threads
/// are below 2^22 (PID_MAX_LIMIT, include/linux/threads.h).
static EXCLUSION: AtomicU32 = AtomicU32::new(0);

const PROCESS_GUARD_BIT: u32 = 1 << 31;

/// The interval between two attempts of a thread that waits.
const RETRY_INTERVAL: Duration = Duration::from_micros(200);

/// Claims the scope for the calling thread, which holds `held` now.
pub(crate) fn claim(
    scope: ScopeKind,
    held: Option<ScopeKind>,
    wait: Duration,
) -> Result<(), Error> {
    let claimed = match scope {
        ScopeKind::Process => {
            let thread_id = task_dir::current_tid();
            let own = u32::from(held == Some(ScopeKind::Thread));
            retry(wait, |value| {
                (value == own).then_some(PROCESS_GUARD_BIT | thread_id)
            })
        }
        ScopeKind::Thread => retry(wait, |value| {
            (value & PROCESS_GUARD_BIT == 0).then_some(value + 1)
        }),
    };
    claimed.map(drop).map_err(|value| Error::Busy {
        conflict: decode_conflict(value),
    })
}

/// Releases a claim.
pub(crate) fn release(scope: ScopeKind) {
    match scope {
        ScopeKind::Process => EXCLUSION.store(0, Ordering::Release),
        ScopeKind::Thread => _ = EXCLUSION.fetch_sub(1, Ordering::Release),
    }
}

/// Replaces the claim of process scope, which the calling thread holds, with one of thread scope.
pub(crate) fn downgrade() {
    EXCLUSION.store(1, Ordering::Release);
}

/// Replaces the value with `next(value)`. While that is `None`, retries until `wait` is over, and
/// then returns the conflicting value.
fn retry(wait: Duration, next: impl Fn(u32) -> Option<u32>) -> Result<u32, u32> {
    let attempt = || EXCLUSION.fetch_update(Ordering::Acquire, Ordering::Relaxed, &next);
    if wait.is_zero() {
        return attempt();
    }
    let deadline = Instant::now().checked_add(wait);
    loop {
        match attempt() {
            Err(value) if deadline.is_some_and(|deadline| Instant::now() >= deadline) => {
                return Err(value);
            }
            Err(_) => std::thread::sleep(RETRY_INTERVAL),
            claimed => return claimed,
        }
    }
}

fn decode_conflict(value: u32) -> ConflictingGuard {
    if value & PROCESS_GUARD_BIT == 0 {
        return ConflictingGuard::ThreadGuards { threads: value };
    }
    let thread_id = value & !PROCESS_GUARD_BIT;
    ConflictingGuard::ProcessGuard {
        thread_id,
        name: threads::thread_name(thread_id),
    }
}

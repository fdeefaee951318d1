//! Groups and tokio: what compiles, what does not, and what the compiler cannot catch.
//!
//! ```text
//! sudo target/debug/examples/tokio_groups
//! ```
//!
//! Every group that is printed is what the kernel says of the thread (`/proc/thread-self/status`).
//! Exit code: 2 without CAP_SETGID, 101 where something is not as it is told here.

use std::process::ExitCode;
use std::sync::{Arc, Barrier};
use std::time::Duration;

use privilege_guard::{Error, GroupGuard};
use tokio::runtime::{Builder, Runtime};
use tokio::task::{LocalSet, spawn_blocking, spawn_local, yield_now};

const GROUP: u32 = 2001;
const POOL: usize = 3;

fn main() -> ExitCode {
    if let Err(error) = GroupGuard::assume_on_thread(GROUP).and_then(GroupGuard::restore) {
        eprintln!("tokio_groups: {error}\ntokio_groups: run it as root: sudo {}", std::env::args().next().unwrap_or_default());
        return ExitCode::from(2);
    }
    let shown = between_awaits()
        .and_then(|()| inside_spawn_blocking())
        .and_then(|()| held_in_block_on())
        .and_then(|()| held_in_a_local_set())
        .and_then(|()| a_pool_started_under_a_guard());
    match shown {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("tokio_groups: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Compiles: the guard has ended before the task may go on as another thread's.
fn between_awaits() -> Result<(), Error> {
    let own = group_of_this_thread();
    let runtime = several_threads();
    let task = runtime.spawn(async {
        yield_now().await;
        let inside = GroupGuard::assume_on_thread(GROUP)?.run(group_of_this_thread)?;
        yield_now().await;
        Ok::<_, Error>((inside, group_of_this_thread()))
    });
    let (inside, after) = runtime.block_on(task).expect("the task")?;
    println!("a task, between two awaits: group {inside}; after the next await: {after}");
    assert_eq!((inside, after), (GROUP, own));

    // Does not compile:
    //
    //     runtime.spawn(async {
    //         let guard = GroupGuard::assume_on_thread(GROUP);
    //         yield_now().await;
    //         drop(guard);
    //     });
    //
    // error: future cannot be sent between threads safely
    //   = help: within `{async block}`, the trait `Send` is not implemented for `*const ()`
    //
    // At the await the worker thread would go on with another task, as this one's group; and this task could go on upon
    // another thread, which is not in the group.
    Ok(())
}

/// The way for work that waits for files: one thread, from beginning to end.
fn inside_spawn_blocking() -> Result<(), Error> {
    let own = group_of_this_thread();
    let runtime = several_threads();
    let (inside, after) = runtime.block_on(async {
        let work = || GroupGuard::assume_on_thread(GROUP)?.run(group_of_this_thread);
        let inside = spawn_blocking(work).await.expect("the work")?;
        Ok::<_, Error>((inside, spawn_blocking(group_of_this_thread).await.expect("the work")))
    })?;
    println!("spawn_blocking, under a guard of its own: group {inside}; the next one: {after}");
    assert_eq!((inside, after), (GROUP, own));
    Ok(())
}

/// Compiles, since `block_on` asks for no `Send`. Its own future stays on this thread; what else this thread runs meanwhile
/// is up to the runtime: nothing with several threads, every task with one.
fn held_in_block_on() -> Result<(), Error> {
    let own = group_of_this_thread();
    let held = |runtime: Runtime| {
        runtime.block_on(async {
            let guard = GroupGuard::assume_on_thread(GROUP)?;
            let other = tokio::spawn(async { group_of_this_thread() }).await.expect("the other task");
            guard.restore().map(|()| other)
        })
    };
    let (several, one) = (held(several_threads())?, held(one_thread())?);
    println!("block_on, a guard held across an await: another task ran as group {several} on its own thread, as {one} on the same");
    assert_eq!((several, one), (own, GROUP));
    Ok(())
}

/// Compiles, since local tasks need no `Send`: and the other local tasks run as the group of one that waits.
fn held_in_a_local_set() -> Result<(), Error> {
    let own = group_of_this_thread();
    let (wrong, right) = LocalSet::new().block_on(&one_thread(), async {
        let holder = spawn_local(async {
            let guard = GroupGuard::assume_on_thread(GROUP)?;
            yield_now().await; // here the guard is in the way of everybody else
            guard.restore()
        });
        let other = spawn_local(async { group_of_this_thread() });
        let wrong = other.await.expect("the other task");
        holder.await.expect("the holder")?;

        // `run` takes no future, so nobody can await inside.
        let holder = spawn_local(async {
            GroupGuard::assume_on_thread(GROUP)?.run(group_of_this_thread)?;
            yield_now().await;
            Ok::<_, Error>(())
        });
        let right = spawn_local(async { group_of_this_thread() }).await.expect("the other task");
        holder.await.expect("the holder").map(|()| (wrong, right))
    })?;
    println!("LocalSet, a guard held across an await: another local task ran as group {wrong}; with `run`: {right}");
    assert_eq!((wrong, right), (GROUP, own));
    Ok(())
}

/// A thread inherits the group of the one that starts it, for good: tokio starts the threads of the blocking pool when they are first needed.
fn a_pool_started_under_a_guard() -> Result<(), Error> {
    let own = group_of_this_thread();
    let runtime = with_pool_of(1);
    let guard = GroupGuard::assume_on_thread(GROUP)?;
    let first = runtime.spawn_blocking(group_of_this_thread);
    guard.restore()?;
    runtime.block_on(first).expect("the work");
    let later = runtime.block_on(runtime.spawn_blocking(group_of_this_thread)).expect("the work");

    // Best call nothing under a guard that may start a thread. Where that cannot be helped, all of the pool is started before,
    // and none of it ends.
    let runtime = with_pool_of(POOL);
    let together = Arc::new(Barrier::new(POOL));
    let start = |_| {
        let together = Arc::clone(&together);
        runtime.spawn_blocking(move || together.wait())
    };
    for started in (0..POOL).map(start).collect::<Vec<_>>() {
        runtime.block_on(started).expect("a thread of the pool");
    }
    let guard = GroupGuard::assume_on_thread(GROUP)?;
    let work = runtime.spawn_blocking(group_of_this_thread);
    guard.restore()?;
    let warm = runtime.block_on(work).expect("the work");
    println!("a blocking pool first used under a guard works as group {later} ever after; one that was started before: {warm}");
    assert_eq!((later, warm), (GROUP, own));
    Ok(())
}

fn several_threads() -> Runtime {
    Builder::new_multi_thread().worker_threads(2).build().expect("a runtime")
}

fn one_thread() -> Runtime {
    Builder::new_current_thread().build().expect("a runtime")
}

fn with_pool_of(threads: usize) -> Runtime {
    Builder::new_current_thread().max_blocking_threads(threads).thread_keep_alive(Duration::MAX).build().expect("a runtime")
}

/// Its effective group, as the kernel says.
fn group_of_this_thread() -> u32 {
    let status = std::fs::read_to_string("/proc/thread-self/status").expect("/proc");
    let ids = status.lines().find_map(|line| line.strip_prefix("Gid:")).expect("the line of the group ids");
    ids.split_whitespace().nth(1).and_then(|effective| effective.parse().ok()).expect("the second of four")
}

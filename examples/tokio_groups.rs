//! Groups and tokio: what compiles, what does not, and what the compiler cannot catch.
//!
//! ```text
//! sudo target/debug/examples/tokio_groups
//! ```
//!
//! Every group that is verified is what the kernel says of the thread.

mod common;

use std::process::ExitCode;
use std::sync::{Arc, Barrier};
use std::time::Duration;

use common::kernel::Identity;
use common::{Outcome, verify};
use privilege_guard::{Error, GroupGuard};
use tokio::runtime::{Builder, Runtime};
use tokio::task::{LocalSet, spawn_blocking, spawn_local, yield_now};

const GROUP: u32 = 2001;
const POOL: usize = 3;

fn main() -> ExitCode {
    common::run(|| {
        between_awaits()?;
        inside_spawn_blocking()?;
        held_in_block_on()?;
        held_in_a_local_set()?;
        a_pool_started_under_a_guard()
    })
}

/// Compiles: the guard has ended before the task may go on as another thread's.
fn between_awaits() -> Outcome {
    let own = group_of_this_thread();
    let runtime = several_threads();
    let task = runtime.spawn(async {
        yield_now().await;
        let inside = GroupGuard::assume_on_thread(GROUP)?.run(group_of_this_thread);
        yield_now().await;
        Ok::<_, Error>((inside, group_of_this_thread()))
    });
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
    let (inside, after) = runtime.block_on(task).expect("the task")?;
    verify("group of a task, between two awaits", inside, GROUP)?;
    verify("group of a task, after the next await", after, own)
}

/// The way for work that waits for files: one thread, from beginning to end.
fn inside_spawn_blocking() -> Outcome {
    let own = group_of_this_thread();
    let runtime = several_threads();
    let (inside, after) = runtime.block_on(async {
        let work =
            || GroupGuard::assume_on_thread(GROUP).map(|guard| guard.run(group_of_this_thread));
        let inside = spawn_blocking(work).await.expect("the work")?;
        Ok::<_, Error>((
            inside,
            spawn_blocking(group_of_this_thread)
                .await
                .expect("the work"),
        ))
    })?;
    verify(
        "group in spawn_blocking, under a guard of its own",
        inside,
        GROUP,
    )?;
    verify("group in the next spawn_blocking", after, own)
}

/// Compiles, since `block_on` asks for no `Send`. Its own future stays on this thread; what else this thread runs meanwhile
/// is up to the runtime: nothing with several threads, every task with one.
fn held_in_block_on() -> Outcome {
    let own = group_of_this_thread();
    let held = |runtime: Runtime| {
        runtime.block_on(async {
            let guard = GroupGuard::assume_on_thread(GROUP)?;
            let other = tokio::spawn(async { group_of_this_thread() })
                .await
                .expect("the other task");
            drop(guard);
            Ok::<_, Error>(other)
        })
    };
    let (several, one) = (held(several_threads())?, held(one_thread())?);
    verify(
        "block_on, a guard held across an await: group of another task, on its own thread",
        several,
        own,
    )?;
    verify(
        "block_on, a guard held across an await: group of another task, on the same thread",
        one,
        GROUP,
    )
}

/// Compiles, since local tasks need no `Send`: and the other local tasks run as the group of one that waits.
fn held_in_a_local_set() -> Outcome {
    let own = group_of_this_thread();
    let (wrong, right) = LocalSet::new().block_on(&one_thread(), async {
        let holder = spawn_local(async {
            let guard = GroupGuard::assume_on_thread(GROUP)?;
            yield_now().await; // here the guard is in the way of everybody else
            drop(guard);
            Ok::<_, Error>(())
        });
        let other = spawn_local(async { group_of_this_thread() });
        let wrong = other.await.expect("the other task");
        holder.await.expect("the holder")?;

        // `run` takes no future, so nobody can await inside.
        let holder = spawn_local(async {
            GroupGuard::assume_on_thread(GROUP)?.run(group_of_this_thread);
            yield_now().await;
            Ok::<_, Error>(())
        });
        let right = spawn_local(async { group_of_this_thread() })
            .await
            .expect("the other task");
        holder.await.expect("the holder").map(|()| (wrong, right))
    })?;
    verify(
        "LocalSet, a guard held across an await: group of another task",
        wrong,
        GROUP,
    )?;
    verify("LocalSet, work in `run`: group of another task", right, own)
}

/// A thread inherits the group of the one that starts it, for good: tokio starts the threads of the blocking pool when they are first needed.
fn a_pool_started_under_a_guard() -> Outcome {
    let own = group_of_this_thread();
    let runtime = with_pool_of(1);
    let guard = GroupGuard::assume_on_thread(GROUP)?;
    let first = runtime.spawn_blocking(group_of_this_thread);
    drop(guard);
    runtime.block_on(first).expect("the work");
    let later = runtime
        .block_on(runtime.spawn_blocking(group_of_this_thread))
        .expect("the work");

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
    drop(guard);
    let warm = runtime.block_on(work).expect("the work");
    verify(
        "group of a blocking pool that was first used under a guard, ever after",
        later,
        GROUP,
    )?;
    verify(
        "group of a blocking pool that was started before",
        warm,
        own,
    )
}

fn several_threads() -> Runtime {
    Builder::new_multi_thread()
        .worker_threads(2)
        .build()
        .expect("a runtime")
}

fn one_thread() -> Runtime {
    Builder::new_current_thread().build().expect("a runtime")
}

fn with_pool_of(threads: usize) -> Runtime {
    Builder::new_current_thread()
        .max_blocking_threads(threads)
        .thread_keep_alive(Duration::MAX)
        .build()
        .expect("a runtime")
}

fn group_of_this_thread() -> u32 {
    Identity::read().expect("/proc").effective
}

//! What a guard costs beside the calls that it cannot do without, measured in one run, in small batches that take turns.
//!
//! Ends with a table of the ratios beside their goals, and draws docs/cost-against-threads.svg. Needs root.

mod chart;
mod contest;
mod heap;
mod raw;
mod work;

use std::time::Duration;

use contest::{Contest, Effort};
use criterion::Criterion;
use privilege_guard::{GroupGuard, UserGuard};
use work::{Sleepers, Work};

fn main() {
    let missing = UserGuard::assume_effective_on_thread(work::USER)
        .map(drop)
        .and(GroupGuard::assume_on_thread(work::GROUP).map(drop));
    if let Err(error) = missing {
        println!("no table without CAP_SETGID and CAP_SETUID, as root has them: {error}");
        return;
    }
    // Those that the calls written by hand go back to.
    raw::setgroups(&[]);
    // `cargo test --benches` only asks whether it runs.
    let effort = if std::env::args().any(|argument| argument == "--bench") {
        Effort::Measure
    } else {
        Effort::Try
    };
    let mut estimates = Criterion::default()
        .configure_from_args()
        .without_plots()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_millis(600));

    // `cargo bench --bench ratios -- "user guard"` measures those alone, and draws nothing.
    let only = std::env::args()
        .skip(1)
        .find(|argument| !argument.starts_with('-'));
    let is_wanted = |name: &str| only.as_deref().is_none_or(|only| name.contains(only));

    let mut lines = Vec::new();
    for contest in contests() {
        if !is_wanted(&contest.to_string()) {
            continue;
        }
        let _sleepers = Sleepers::start(contest.other_threads);
        contest.estimate(&mut estimates);
        lines.push(contest.hold(effort));
    }
    estimates.final_summary();
    lines.extend(heap::lines().filter(|line| is_wanted(&line.name)));
    let points = only.is_none().then(|| chart::measure(effort));

    println!("\nRatios, medians over batches that take turns:");
    for line in lines {
        println!("{line}");
    }
    if let Some(points) = points.filter(|_| effort == Effort::Measure) {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/cost-against-threads.svg");
        chart::draw(path, &points).unwrap_or_else(|error| eprintln!("{path}: {error}"));
        println!("{path} is drawn anew");
    }
}

fn contests() -> Vec<Contest> {
    let per_thread = |ours, theirs, goal| Contest {
        ours,
        theirs,
        goal,
        other_threads: 0,
    };
    let among = |ours, theirs, other_threads, goal| Contest {
        ours,
        theirs,
        goal,
        other_threads,
    };
    use Work::*;
    vec![
        per_thread(ThreadGuard, SevenRawCalls, Some(1.06)),
        per_thread(ThreadGuard, FiveRawCalls, None),
        per_thread(ThreadGuard, RawPair, None),
        per_thread(SwitchToAnother, FileServerPair, Some(0.60)),
        per_thread(SwitchToTheSame, FileServerPair, Some(0.05)),
        per_thread(GroupsInTheGuard, GroupsByRawCalls, Some(1.45)),
        per_thread(UserGuardOnAThread, RawUserPair, Some(1.60)),
        per_thread(UserGuardOnAThread, TenRawCalls, None),
        per_thread(SwitchToAnotherUser, RawUserPair, None),
        per_thread(SwitchToTheSameUser, RawUserPair, Some(0.05)),
        per_thread(IdentityGuardKeepingGroups, FourRawCalls, Some(1.45)),
        per_thread(IdentityGuard, SixRawCalls, Some(1.40)),
        per_thread(SwitchToAnotherIdentity, EndAndBeginByHand, Some(0.85)),
        per_thread(SwitchToTheSameIdentity, EndAndBeginByHand, Some(0.05)),
        among(ProcessGuard, LibcPair, 0, None),
        among(ProcessGuard, LibcPair, 8, Some(1.35)),
        among(ProcessGuard, LibcPair, 64, Some(1.35)),
        among(UserGuardInTheProcess, LibcUserPair, 0, None),
        among(UserGuardInTheProcess, LibcUserPair, 8, Some(2.50)),
        among(UserGuardInTheProcess, LibcUserPair, 64, Some(2.50)),
        per_thread(TwoThreadsGuards, ThreadGuard, None),
        per_thread(TwoThreadsFiveRawCalls, FiveRawCalls, None),
    ]
}

//! What a guard costs beside the calls that it cannot do without, measured in one run, in small batches that take turns.
//!
//! Ends with a table of the ratios beside their goals, and draws docs/cost-against-threads.svg. Needs CAP_SETGID.

mod chart;
mod contest;
mod heap;
mod raw;
mod work;

use std::time::Duration;

use contest::{Contest, Effort};
use criterion::Criterion;
use privilege_guard::GroupGuard;
use work::{Sleepers, Work};

fn main() {
    if let Err(error) = GroupGuard::assume_on_thread(work::GROUP).map(drop) {
        println!("no table without CAP_SETGID, as root has it: {error}");
        return;
    }
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

    let mut lines = Vec::new();
    for contest in contests() {
        let _sleepers = Sleepers::start(contest.other_threads);
        contest.estimate(&mut estimates);
        lines.push(contest.hold(effort));
    }
    estimates.final_summary();
    lines.extend(heap::lines());
    let points = chart::measure(effort);

    println!("\nRatios, medians over batches that take turns:");
    for line in lines {
        println!("{line}");
    }
    if effort == Effort::Measure {
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
    let among = |other_threads, goal| Contest {
        ours: Work::ProcessGuard,
        theirs: Work::LibcPair,
        goal,
        other_threads,
    };
    vec![
        per_thread(Work::ThreadGuard, Work::FiveRawCalls, Some(1.10)),
        per_thread(Work::ThreadGuard, Work::SevenRawCalls, None),
        per_thread(Work::ThreadGuard, Work::RawPair, None),
        per_thread(Work::GuardWithGroups, Work::RawCallsWithGroups, Some(1.45)),
        per_thread(Work::SwitchToAnother, Work::FileServerPair, Some(0.60)),
        per_thread(Work::SwitchToTheSame, Work::FileServerPair, Some(0.05)),
        among(0, None),
        among(8, Some(1.05)),
        among(64, Some(1.05)),
        per_thread(Work::TwoThreadsGuards, Work::ThreadGuard, None),
        per_thread(Work::TwoThreadsFiveRawCalls, Work::FiveRawCalls, None),
    ]
}

//! Two kinds of work side by side.

use std::fmt;
use std::time::{Duration, Instant};

use criterion::Criterion;

use crate::work::Work;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effort {
    Try,
    Measure,
}

impl Effort {
    /// For how long the two take turns.
    fn longest(self) -> Duration {
        match self {
            Effort::Try => Duration::ZERO,
            Effort::Measure => Duration::from_secs(3),
        }
    }
}

pub struct Contest {
    pub ours: Work,
    pub theirs: Work,
    pub goal: Option<f64>,
    pub other_threads: usize,
}

impl Contest {
    /// Criterion's estimates of both, for comparison over time; the ratio is not made of these, which are minutes apart.
    pub fn estimate(&self, criterion: &mut Criterion) {
        let mut group = criterion.benchmark_group(self.to_string());
        for work in [self.ours, self.theirs] {
            group.bench_function(work.to_string(), |bencher| {
                bencher.iter_custom(|times| work.time(times))
            });
        }
    }

    /// Batches of both take turns, so that what else the machine does disturbs both alike.
    pub fn hold(&self, effort: Effort) -> Line {
        let batch = self.ours.batch(self.other_threads);
        let [mut ours, mut theirs, mut ratios] = [const { Vec::new() }; 3];
        let start = Instant::now();
        while ratios.is_empty() || start.elapsed() < effort.longest() {
            // Neither is always the first.
            let (mine, other) = if ratios.len() % 2 == 0 {
                let mine = self.ours.time(batch);
                (mine, self.theirs.time(batch))
            } else {
                let other = self.theirs.time(batch);
                (self.ours.time(batch), other)
            };
            ours.push(nanoseconds(mine, batch));
            theirs.push(nanoseconds(other, batch));
            ratios.push(mine.as_secs_f64() / other.as_secs_f64());
        }
        let detail = format!("{:>9.0} ns / {:>7.0} ns", median(ours), median(theirs));
        Line {
            name: self.to_string(),
            measured: median(ratios),
            goal: self.goal,
            detail,
        }
    }
}

impl fmt::Display for Contest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} : {}", self.ours, self.theirs)?;
        if matches!(self.ours, Work::ProcessGuard | Work::UserGuardInTheProcess) {
            write!(f, ", {} other threads", self.other_threads)
        } else {
            Ok(())
        }
    }
}

/// A line of the table.
pub struct Line {
    pub name: String,
    pub measured: f64,
    pub goal: Option<f64>,
    pub detail: String,
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "  {:<64} {:>6.3}", self.name, self.measured)?;
        match self.goal {
            Some(goal) if self.measured <= goal => write!(f, "  goal {goal:.2}  met    ")?,
            Some(goal) => write!(f, "  goal {goal:.2}  NOT MET")?,
            None => write!(f, "                    ")?,
        }
        write!(f, "  {}", self.detail)
    }
}

pub fn nanoseconds(time: Duration, times: u64) -> f64 {
    time.as_secs_f64() * 1e9 / times as f64
}

pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

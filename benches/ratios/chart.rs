//! The picture: cost against the number of threads.

use std::error::Error;

use plotters::prelude::*;

use crate::contest::{Effort, median, nanoseconds};
use crate::work::{Sleepers, Work};

const SHOWN: [Work; 4] = [
    Work::LibcPair,
    Work::ProcessGuard,
    Work::FiveRawCalls,
    Work::ThreadGuard,
];

/// Microseconds of each of [`SHOWN`] beside so many other threads.
pub struct Point {
    other_threads: usize,
    costs: [f64; SHOWN.len()],
}

pub fn measure(effort: Effort) -> Vec<Point> {
    let (counts, rounds): (&[usize], _) = match effort {
        Effort::Try => (&[0, 1], 1),
        Effort::Measure => (&[0, 1, 2, 4, 8, 16, 24, 32, 48, 64], 100),
    };
    let point = |&other_threads: &usize| {
        let _sleepers = Sleepers::start(other_threads);
        let mut costs = [const { Vec::new() }; SHOWN.len()];
        for _ in 0..rounds {
            for (costs, work) in costs.iter_mut().zip(SHOWN) {
                costs.push(nanoseconds(work.time(4), 4) / 1000.0);
            }
        }
        Point {
            other_threads,
            costs: costs.map(median),
        }
    };
    counts.iter().map(point).collect()
}

pub fn draw(path: &str, points: &[Point]) -> Result<(), Box<dyn Error>> {
    let most_threads = points
        .iter()
        .map(|point| point.other_threads)
        .max()
        .unwrap_or(1);
    let highest = points
        .iter()
        .flat_map(|point| point.costs)
        .fold(1.0, f64::max);

    let area = SVGBackend::new(path, (760, 440)).into_drawing_area();
    area.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&area)
        .margin(12)
        .caption(
            "Cost of one change of the group and back",
            ("sans-serif", 18),
        )
        .x_label_area_size(44)
        .y_label_area_size(64)
        .build_cartesian_2d(0..most_threads, (0.3..highest * 2.0).log_scale())?;
    chart
        .configure_mesh()
        .x_desc("other threads of the process, asleep")
        .y_desc("microseconds")
        .label_style(("sans-serif", 15))
        .axis_desc_style(("sans-serif", 15))
        .y_label_formatter(&|cost| {
            if *cost < 1.0 {
                format!("{cost:.1}")
            } else {
                format!("{cost:.0}")
            }
        })
        .light_line_style(TRANSPARENT)
        .bold_line_style(BLACK.mix(0.1))
        .draw()?;
    for (index, work) in SHOWN.into_iter().enumerate() {
        // The library's in colour upon what it is measured against.
        let style = match work {
            Work::ProcessGuard => RGBColor(0xc0, 0x39, 0x2b).stroke_width(2),
            Work::ThreadGuard => RGBColor(0x1f, 0x61, 0x8d).stroke_width(2),
            Work::LibcPair => RGBColor(0xf0, 0xc8, 0xc0).stroke_width(7),
            _ => RGBColor(0xc0, 0xd8, 0xe8).stroke_width(7),
        };
        let line = points
            .iter()
            .map(|point| (point.other_threads, point.costs[index]));
        chart
            .draw_series(LineSeries::new(line, style))?
            .label(work.to_string())
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], style));
    }
    chart
        .configure_series_labels()
        .label_font(("sans-serif", 15))
        .position(SeriesLabelPosition::MiddleRight)
        .background_style(WHITE)
        .border_style(BLACK.mix(0.2))
        .draw()?;
    area.present()?;
    Ok(())
}

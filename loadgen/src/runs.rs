//! Several runs of one load: where their figures lie.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::Serialize;

use crate::plot;
use crate::report::{Report, count};

/// Several runs of one load.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Runs<'r> {
    /// Figures over the runs, by their names.
    figures: BTreeMap<&'static str, Spread>,
    /// The runs, in order.
    runs: &'r [Report],
}

/// Where a figure of several runs lies.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    pub(crate) min: f64,
    pub(crate) max: f64,
}

impl Spread {
    /// Of any number of values; all 0 of none.
    pub(crate) fn of(mut values: Vec<f64>) -> Spread {
        values.sort_by(f64::total_cmp);
        let at = |at: usize| values.get(at).copied().unwrap_or(0.0);
        let last = values.len().saturating_sub(1);
        Spread { median: (at(values.len() / 2) + at(last / 2)) / 2.0, min: at(0), max: at(last) }
    }
}

impl<'r> Runs<'r> {
    pub(crate) fn of(runs: &'r [Report]) -> Runs<'r> {
        type Figure = (&'static str, fn(&Report) -> f64);
        let figures: [Figure; 5] = [
            ("throughput_records_per_s", |run| run.throughput_records_per_s),
            ("p50_us", |run| run.latency_us.p50 as f64),
            ("p99_us", |run| run.latency_us.p99 as f64),
            ("p99_9_us", |run| run.latency_us.p99_9 as f64),
            ("core_us_per_record", |run| run.core_us_per_record),
        ];
        let spread = |(name, of): Figure| (name, Spread::of(runs.iter().map(of).collect()));
        Runs { figures: figures.into_iter().map(spread).collect(), runs }
    }

    /// The table for the terminal.
    pub(crate) fn table(&self) -> String {
        let mut out = format!("\n{} runs: median (least to most)\n", self.runs.len());
        for (name, Spread { median, min, max }) in &self.figures {
            let show = |value: f64| match *name {
                "throughput_records_per_s" => format!("{}/s", count(value)),
                "core_us_per_record" => format!("{value:.2}"),
                _ => plot::duration(value),
            };
            _ = writeln!(out, "{name:<26} {} ({} to {})", show(*median), show(*min), show(*max));
        }
        out
    }
}

//! `loadgen sweep`: latency over throughput, from nearly nothing to as much as the cluster takes, each rate on a cluster of its own.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use serde::Serialize;

use crate::html;
use crate::plot;
use crate::quick::{self, QuickError, QuickPlan};
use crate::report::{Report, count};

/// Parts of what the closed loop gives, in percent: close to it the curve bends.
const PARTS: [u32; 8] = [10, 25, 40, 55, 70, 80, 90, 100];

/// What `loadgen sweep` was asked for.
#[derive(Clone, Debug)]
pub(crate) struct SweepPlan {
    /// Everything but the rate.
    pub(crate) load: QuickPlan,
    /// The rates; none: parts of what the closed loop gives.
    pub(crate) rates: Vec<u32>,
    pub(crate) json: Option<PathBuf>,
    pub(crate) html: Option<PathBuf>,
}

/// A rate and what it gave.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Point {
    pub(crate) rate_per_s: u32,
    /// Whether as much was sent as was due: if not, latencies are of another load.
    pub(crate) is_schedule_kept: bool,
    pub(crate) report: Report,
}

/// All rates, from low to high.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Sweep {
    /// Records a second of the closed loop, if it was asked.
    pub(crate) closed_loop_per_s: Option<f64>,
    pub(crate) points: Vec<Point>,
}

/// Measures each rate. Returns whether every audit was clean.
///
/// # Errors
/// [`QuickError`] of a run that could not be made.
pub(crate) fn run(plan: &SweepPlan, stop: &Arc<AtomicBool>) -> Result<bool, QuickError> {
    let trial = |per_s: Option<u32>| {
        let load = plan.load.at_rate(per_s);
        quick::trial(&load, stop).map(|trial| trial.report)
    };
    let mut sweep = Sweep { closed_loop_per_s: None, points: Vec::new() };
    let mut rates = plan.rates.clone();
    if rates.is_empty() {
        let closed = trial(None)?.throughput_records_per_s;
        println!("closed loop: {} records/s", count(closed));
        sweep.closed_loop_per_s = Some(closed);
        rates = PARTS.map(|part| (closed * f64::from(part) / 100.0).max(1.0) as u32).to_vec();
    }
    rates.sort_unstable();
    for rate_per_s in rates {
        let report = trial(Some(rate_per_s))?;
        let is_schedule_kept = report.open_loop.is_some_and(|open| open.is_schedule_kept);
        let point = Point { rate_per_s, is_schedule_kept, report };
        println!("{}", line(&point));
        sweep.points.push(point);
    }
    let write = |path: &Option<PathBuf>, text: &dyn Fn() -> Vec<u8>| match path {
        Some(path) => {
            fs::write(path, text()).map_err(|source| QuickError::File { path: path.clone(), source })
        }
        None => Ok(()),
    };
    write(&plan.json, &|| serde_json::to_vec_pretty(&sweep).expect("a result serializes"))?;
    write(&plan.html, &|| html::sweep_page(&sweep).into_bytes())?;
    Ok(sweep.points.iter().all(|point| point.report.is_clean()))
}

fn line(point: &Point) -> String {
    let latency = &point.report.latency_us;
    let time = |us: u64| plot::duration(us as f64);
    format!(
        "{:>12} records/s  p50 {:>8}  p99 {:>8}  p99.9 {:>8}  max {:>8}  {:.2} core-us a record{}{}",
        count(point.rate_per_s.into()),
        time(latency.p50),
        time(latency.p99),
        time(latency.p99_9),
        time(latency.max),
        point.report.core_us_per_record,
        if point.is_schedule_kept { "" } else { "  NOT KEPT: of another load" },
        if point.report.is_clean() { "" } else { "  AUDIT NOT CLEAN" }
    )
}

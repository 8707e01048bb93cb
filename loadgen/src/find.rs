//! `loadgen find`: the highest rate at which an objective holds, each rate on a cluster of its own, with an audit.

use std::fs;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use serde::Serialize;

use crate::plot;
use crate::quick::{self, QuickError, QuickPlan};
use crate::report::{Latency, Report, count};

/// Attempts of a rate: a machine that was busy with something else for a moment decides nothing.
const ATTEMPTS: u32 = 2;
/// Rates that are tried at most, whatever they answer.
const RATES_MAX: u32 = 40;
/// Below this there is nothing to be found.
const RATE_MIN: u32 = 10;

/// A percentile, and how long it may be.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
pub(crate) struct Objective {
    pub(crate) percentile: Percentile,
    pub(crate) limit_us: u64,
}

/// What of the latencies the objective is about.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Percentile {
    P50,
    P90,
    P99,
    P99_9,
    P99_99,
    Max,
}

const PERCENTILES: [(&str, Percentile); 6] = [
    ("p50", Percentile::P50),
    ("p90", Percentile::P90),
    ("p99", Percentile::P99),
    ("p99.9", Percentile::P99_9),
    ("p99.99", Percentile::P99_99),
    ("max", Percentile::Max),
];

impl FromStr for Objective {
    type Err = String;

    fn from_str(text: &str) -> Result<Objective, String> {
        let problem = || {
            format!(
                "{text} is no objective: write PERCENTILE=TIME, such as p99=5ms, with p50, p90, p99, p99.9, p99.99 or max"
            )
        };
        let (name, limit) = text.split_once('=').ok_or_else(problem)?;
        let (_, percentile) =
            *PERCENTILES.iter().find(|(known, _)| *known == name.trim()).ok_or_else(problem)?;
        let limit = crate::duration(limit.trim())?;
        let limit_us = u64::try_from(limit.as_micros()).unwrap_or(u64::MAX);
        if limit_us == 0 {
            return Err(format!("{text}: nothing takes no time; give a limit of 1us at least"));
        }
        Ok(Objective { percentile, limit_us })
    }
}

impl Objective {
    fn value(self, latency: &Latency) -> u64 {
        match self.percentile {
            Percentile::P50 => latency.p50,
            Percentile::P90 => latency.p90,
            Percentile::P99 => latency.p99,
            Percentile::P99_9 => latency.p99_9,
            Percentile::P99_99 => latency.p99_99,
            Percentile::Max => latency.max,
        }
    }

    fn name(self) -> &'static str {
        PERCENTILES.iter().find(|(_, percentile)| *percentile == self.percentile).map_or("", |(name, _)| name)
    }

    /// Whether a run kept it: in time, as many as were due, and none failed.
    fn is_kept(self, report: &Report) -> bool {
        let is_kept = report.open_loop.is_some_and(|open| open.is_schedule_kept);
        let failed = report.failed_records + report.mix.failed_reads();
        is_kept && failed == 0 && self.value(&report.latency_us) <= self.limit_us
    }
}

/// What `loadgen find` was asked for.
#[derive(Clone, Debug)]
pub(crate) struct FindPlan {
    /// Everything but the rate.
    pub(crate) load: QuickPlan,
    pub(crate) objective: Objective,
    /// The first rate tried.
    pub(crate) from: u32,
    /// The rate is right to this part of it.
    pub(crate) precision: f64,
    pub(crate) json: Option<PathBuf>,
}

/// A run at a rate.
#[derive(Clone, Debug, Serialize)]
struct Trial {
    rate_per_s: u32,
    is_kept: bool,
    report: Report,
}

/// What was found.
#[derive(Clone, Debug, Serialize)]
struct Found {
    objective: Objective,
    /// Highest rate that kept it; null when none did.
    rate_per_s: Option<u32>,
    /// Latencies at that rate, from when records were due.
    latency_us: Option<Latency>,
    trials: Vec<Trial>,
}

/// Searches. Returns whether a rate was found, and every audit was clean.
///
/// # Errors
/// [`QuickError`] of a run that could not be made.
pub(crate) fn run(plan: &FindPlan, stop: &Arc<AtomicBool>) -> Result<bool, QuickError> {
    let objective = plan.objective;
    let mut trials: Vec<Trial> = Vec::new();
    let mut is_clean = true;
    let best = search(plan.from, plan.precision, |rate| {
        for attempt in 1..=ATTEMPTS {
            let load = plan.load.at_rate(Some(rate));
            let report = quick::trial(&load, stop)?.report;
            is_clean &= report.is_clean();
            let is_kept = objective.is_kept(&report) && report.is_clean();
            println!("{}", line(objective, rate, is_kept, &report));
            trials.push(Trial { rate_per_s: rate, is_kept, report });
            if is_kept {
                return Ok::<_, QuickError>(true);
            }
            if attempt < ATTEMPTS {
                println!("{:>12} records/s  once more", count(rate.into()));
            }
        }
        Ok(false)
    })?;
    let latency =
        best.and_then(|best| trials.iter().rev().find(|trial| trial.rate_per_s == best && trial.is_kept));
    let found = Found {
        objective,
        rate_per_s: best,
        latency_us: latency.map(|trial| trial.report.latency_us),
        trials,
    };
    println!("{}", verdict(&found));
    if let Some(path) = &plan.json {
        let text = serde_json::to_vec_pretty(&found).expect("a result serializes");
        fs::write(path, text).map_err(|source| QuickError::File { path: path.clone(), source })?;
    }
    Ok(best.is_some() && is_clean)
}

fn line(objective: Objective, rate: u32, is_kept: bool, report: &Report) -> String {
    let value = plot::duration(objective.value(&report.latency_us) as f64);
    let schedule = report.open_loop.is_some_and(|open| open.is_schedule_kept);
    format!(
        "{:>12} records/s  {} {value:>8}  {}{}{}  {:.2} core-us a record",
        count(rate.into()),
        objective.name(),
        if is_kept { "kept" } else { "NOT KEPT" },
        if schedule { "" } else { ", behind its schedule" },
        if report.is_clean() { "" } else { ", AUDIT NOT CLEAN" },
        report.core_us_per_record
    )
}

fn verdict(found: &Found) -> String {
    let limit = plot::duration(found.objective.limit_us as f64);
    let name = found.objective.name();
    match (found.rate_per_s, found.latency_us) {
        (Some(rate), Some(latency)) => format!(
            "highest rate with {name} of at most {limit}: {} records/s (p50 {}, p99 {}, p99.9 {})",
            count(rate.into()),
            plot::duration(latency.p50 as f64),
            plot::duration(latency.p99 as f64),
            plot::duration(latency.p99_9 as f64)
        ),
        _ => format!("no rate from {RATE_MIN} records/s on keeps {name} below {limit} here"),
    }
}

/// The highest rate that is kept, right to a part of `precision`: doubled while it is kept, halved while it is not, and
/// then in between.
fn search<E>(
    from: u32,
    precision: f64,
    mut is_kept: impl FnMut(u32) -> Result<bool, E>,
) -> Result<Option<u32>, E> {
    let (mut good, mut bad): (Option<u32>, Option<u32>) = (None, None);
    let mut rate = from;
    for _ in 0..RATES_MAX {
        if is_kept(rate)? {
            good = Some(rate);
        } else {
            bad = Some(rate);
        }
        rate = match (good, bad) {
            (Some(good), None) => good.saturating_mul(2),
            (None, Some(bad)) if bad > RATE_MIN => (bad / 2).max(RATE_MIN),
            (Some(good), Some(bad)) if f64::from(bad) > f64::from(good) * (1.0 + precision) => {
                // Between them by factors: an error is a part of the rate.
                let middle = (f64::from(good) * f64::from(bad)).sqrt().round() as u32;
                if middle == good || middle == bad { break } else { middle }
            }
            _ => break,
        };
    }
    Ok(good)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(from: u32, limit: u32) -> (Option<u32>, Vec<u32>) {
        let mut tried = Vec::new();
        let best = search(from, 0.05, |rate| {
            tried.push(rate);
            Ok::<_, ()>(rate <= limit)
        });
        (best.unwrap(), tried)
    }

    #[test]
    fn the_highest_rate_is_found_from_below_and_from_above() {
        for limit in [10, 999, 10_000, 73_456, 2_000_000] {
            for from in [10, 1_000, 10_000, 5_000_000] {
                let (best, tried) = found(from, limit);
                let best = best.unwrap();
                assert!(
                    best <= limit && f64::from(limit) <= f64::from(best) * 1.06 + 1.0,
                    "{from} {limit}: {best}"
                );
                assert!(tried.len() < 30, "{tried:?}");
            }
        }
        assert_eq!(found(1000, 3).0, None);
    }

    #[test]
    fn objectives_are_read_and_refused_with_what_is_right() {
        let objective: Objective = "p99.9=250ms".parse().unwrap();
        assert_eq!(objective, Objective { percentile: Percentile::P99_9, limit_us: 250_000 });
        for text in ["p98=5ms", "p99", "p99=5", "p99=0ms", "=5ms"] {
            assert!(text.parse::<Objective>().is_err(), "{text}");
        }
        assert!("p98=5ms".parse::<Objective>().unwrap_err().contains("p99=5ms"));
    }
}

//! Clusters with one to thousands of active groups: what the number of groups costs.
//!
//! Each size has the same records in flight in all, [`CLIENTS`] times [`IN_FLIGHT`], in proportion over its groups: 32,768
//! in the one, 4,096 in each of eight, 8 in each of 4,096. With as many for each group at every size a single group would have to
//! saturate the machine by itself, and 512 of these have two million in flight: the ratios would be those of the load, and latencies of seconds.
//! The total saturates the machine at any size, so that a ratio says what groups cost and nothing else.

use std::path::Path;

use iroh_raft_bench::bridges::Failure;
use iroh_raft_bench::reports::{ReportError, median, number};
use serde_json::{Value, json};

use crate::loads::{ABOUT, about};
use crate::{Args, Figures};

const KEY: &str = "groups";
const SIZES: [u32; 5] = [1, 8, 64, 512, 4096];
/// What the others are compared with.
const COMPARED_WITH: u32 = 8;
const CLIENTS: u32 = 8;
/// Of each client; the load generator spreads them evenly over the groups.
const IN_FLIGHT: u32 = 4096;
/// Long enough for thousands of leaders to be spread over the nodes.
const WARMUP: &str = "5s";

/// What is taken from a report, under which key.
const TAKEN: [(&str, &str); 4] = [
    ("records_per_s", "/throughput_records_per_s"),
    ("p99_us", "/latency_us/p99"),
    ("core_us_per_record", "/core_us_per_record"),
    // Moved leaders are no failure here, but said: thousands of groups are still being spread.
    ("leader_changes", "/leader_changes"),
];
/// Throughput beside that of eight groups in the same round.
const RATIO: &str = "vs_8_groups";

pub(crate) fn keys() -> Vec<&'static str> {
    ABOUT.into_iter().chain([KEY]).collect()
}

pub(crate) fn measure(args: &Args, folder: &Path) -> Result<Figures, Failure> {
    let (clients, in_flight) = (CLIENTS.to_string(), IN_FLIGHT.to_string());
    let mut rounds = Vec::new();
    for _ in 0..args.runs {
        // All sizes in turns: what the machine does meanwhile happens to each of them.
        let mut round = Vec::new();
        for size in SIZES {
            let groups = size.to_string();
            let load =
                ["--groups", &groups, "--clients", &clients, "--in-flight", &in_flight, "--warmup", WARMUP];
            round.push(args.load(folder, &load)?);
        }
        rounds.push(round);
    }
    let figures = figures_of(&rounds)?;
    for size in SIZES {
        println!("{size} groups: {}", figures[KEY][size.to_string()]);
    }
    Ok(figures)
}

/// What rounds give, each with a report for each size: medians, of the ratios as well.
fn figures_of(rounds: &[Vec<Value>]) -> Result<Figures, ReportError> {
    let no_rounds = || ReportError::NeverSteady { load: KEY.to_owned() };
    let compared_with = SIZES.iter().position(|size| *size == COMPARED_WITH).ok_or_else(no_rounds)?;
    let mut sizes = Figures::new();
    for (at, size) in SIZES.iter().enumerate() {
        let load = format!("{size} groups");
        let of_rounds = |taken: &dyn Fn(&[Value]) -> Result<f64, ReportError>| {
            let values: Vec<f64> = rounds.iter().map(|round| taken(round)).collect::<Result<_, _>>()?;
            median(values).ok_or_else(no_rounds)
        };
        let mut figures = Figures::new();
        for (key, place) in TAKEN {
            figures.insert(key.to_owned(), json!(of_rounds(&|round| number(&round[at], &load, place))?));
        }
        figures.insert("in_flight_per_group".to_owned(), json!(CLIENTS * IN_FLIGHT / size));
        let per_s = |round: &[Value], at: usize| number(&round[at], &load, TAKEN[0].1);
        let ratio = of_rounds(&|round| Ok(per_s(round, at)? / per_s(round, compared_with)?))?;
        figures.insert(RATIO.to_owned(), json!(ratio));
        sizes.insert(size.to_string(), Value::Object(figures));
    }
    let mut figures = rounds.first().and_then(|round| round.first()).map(about).ok_or_else(no_rounds)?;
    figures.insert(KEY.to_owned(), Value::Object(sizes));
    Ok(figures)
}

#[cfg(test)]
mod tests {
    use super::*;

    const REPORT: &str = include_str!("report.json");

    fn round(per_s: [f64; 5]) -> Vec<Value> {
        let report: Value = serde_json::from_str(REPORT).unwrap();
        let of_size = |per_s: f64| {
            let mut report = report.clone();
            report["throughput_records_per_s"] = json!(per_s);
            report
        };
        per_s.into_iter().map(of_size).collect()
    }

    #[test]
    fn ratios_are_medians_over_the_rounds_and_not_ratios_of_medians() {
        // The machine was half as fast in the second round, and 512 groups lost half in the third.
        let rounds = [
            round([800.0, 1000.0, 900.0, 800.0, 100.0]),
            round([400.0, 500.0, 450.0, 400.0, 50.0]),
            round([800.0, 1000.0, 900.0, 400.0, 100.0]),
        ];
        let figures = figures_of(&rounds).unwrap();
        let of = |size: &str, key: &str| figures[KEY][size][key].as_f64().unwrap();
        assert_eq!((of("8", RATIO), of("512", RATIO), of("4096", RATIO)), (1.0, 0.8, 0.1));
        assert_eq!((of("8", "records_per_s"), of("512", "records_per_s")), (1000.0, 400.0));
        let report: Value = serde_json::from_str(REPORT).unwrap();
        assert_eq!(of("64", "p99_us"), report["latency_us"]["p99"].as_f64().unwrap());
        assert_eq!(of("64", "core_us_per_record"), report["core_us_per_record"].as_f64().unwrap());
        assert_eq!(figures[KEY].as_object().unwrap().len(), SIZES.len());
        assert_eq!(figures["machine"], report["machine"]);
        let promised: Vec<&str> = keys();
        assert!(
            figures.keys().all(|key| promised.contains(&key.as_str())) && figures.len() == promised.len()
        );
    }

    #[test]
    fn a_round_without_a_figure_is_an_error_and_so_are_no_rounds() {
        let mut broken = round([1.0; 5]);
        broken[3]["latency_us"] = json!(null);
        assert!(matches!(figures_of(&[round([1.0; 5]), broken]), Err(ReportError::NoFigure { .. })));
        assert!(figures_of(&[]).is_err());
    }
}

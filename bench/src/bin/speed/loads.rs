//! Loads of clusters, each with its clean audit.

use std::path::Path;

use iroh_raft_bench::bridges::Failure;
use iroh_raft_bench::reports::{self, ReportError};
use serde_json::{Value, json};

use crate::{Args, Figures};

/// What every report says of where it was measured.
pub(crate) const ABOUT: [&str; 2] = ["machine", "versions"];

/// One load, and what is taken from its report.
struct Load {
    name: &'static str,
    args: &'static [&'static str],
    /// Keys of the result, and where their values are in the report.
    figures: &'static [(&'static str, &'static str)],
}

const NETWORKED: [Load; 4] = [
    Load {
        name: "64 B records",
        args: &["--in-flight", "4096"],
        figures: &[
            ("small_records_per_s", "/throughput_records_per_s"),
            ("small_core_us_per_record", "/core_us_per_record"),
            ("small_p99_us", "/latency_us/p99"),
        ],
    },
    Load {
        name: "1 KiB records",
        // With more the slowest follower falls so far behind that it is fed from the disk, which costs the others.
        args: &["--record-bytes", "1024", "--in-flight", "256", "--duration", "30s", "--warmup", "5s"],
        figures: &[("kib_records_per_s", "/throughput_records_per_s"), ("kib_p99_us", "/latency_us/p99")],
    },
    Load {
        name: "one client, one record in flight",
        args: &["--clients", "1", "--in-flight", "1"],
        figures: &[("one_client_p50_us", "/latency_us/p50"), ("one_client_p99_9_us", "/latency_us/p99_9")],
    },
    Load {
        name: "open loop, 50,000 records/s",
        args: &["--rate", "50000"],
        figures: &[
            ("open_50k_p99_us", "/latency_us/p99"),
            ("open_50k_p99_9_us", "/latency_us/p99_9"),
            ("open_50k_is_kept", "/open_loop/is_schedule_kept"),
        ],
    },
];

const EMBEDDED: [Load; 1] = [Load {
    name: "embedded clients",
    args: &["--embedded", "--clients", "4", "--in-flight", "8192"],
    figures: &[
        ("embedded_records_per_s", "/throughput_records_per_s"),
        ("embedded_core_us_per_record", "/core_us_per_record"),
    ],
}];

pub(crate) fn networked_keys() -> Vec<&'static str> {
    keys(&NETWORKED)
}

pub(crate) fn networked(args: &Args, folder: &Path) -> Result<Figures, Failure> {
    measure(&NETWORKED, args, folder)
}

pub(crate) fn embedded_keys() -> Vec<&'static str> {
    keys(&EMBEDDED)
}

pub(crate) fn embedded(args: &Args, folder: &Path) -> Result<Figures, Failure> {
    measure(&EMBEDDED, args, folder)
}

fn keys(loads: &[Load]) -> Vec<&'static str> {
    loads.iter().flat_map(|load| load.figures).map(|(key, _)| *key).chain(ABOUT).collect()
}

/// Runs each load several times.
fn measure(loads: &[Load], args: &Args, folder: &Path) -> Result<Figures, Failure> {
    let mut figures = Figures::new();
    for load in loads {
        let mut reports = Vec::new();
        for _ in 0..args.runs {
            reports.push(reports::steady(load.name, || args.load(folder, load.args))?);
        }
        let found = figures_of(load, &reports)?;
        for (key, at) in load.figures {
            let values: Vec<_> = reports.iter().filter_map(|report| report.pointer(at)).collect();
            println!("{}: {key} {} of {values:?}", load.name, found[*key]);
        }
        figures.extend(found);
    }
    Ok(figures)
}

/// What the reports of a load give.
fn figures_of(load: &Load, reports: &[Value]) -> Result<Figures, ReportError> {
    let first = reports.first().ok_or_else(|| ReportError::NeverSteady { load: load.name.to_owned() })?;
    let mut figures = about(first);
    for (key, at) in load.figures {
        figures.insert((*key).to_owned(), reports::together(reports, load.name, at)?);
    }
    Ok(figures)
}

/// What a report says of where it was measured.
pub(crate) fn about(report: &Value) -> Figures {
    ABOUT.iter().map(|key| ((*key).to_owned(), report.get(key).cloned().unwrap_or(json!(null)))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What `loadgen quick` wrote, of the open loop: the one report that has every figure.
    const REPORT: &str = include_str!("report.json");

    #[test]
    fn a_report_of_the_load_generator_has_the_figures_of_every_load() {
        let report: Value = serde_json::from_str(REPORT).unwrap();
        for load in NETWORKED.iter().chain(&EMBEDDED) {
            let figures = figures_of(load, &[report.clone(), report.clone()]).unwrap();
            assert_eq!(figures.len(), load.figures.len() + ABOUT.len(), "{}", load.name);
            assert!(figures.values().all(|figure| !figure.is_null()), "{figures:?}");
        }
        let open = figures_of(&NETWORKED[3], std::slice::from_ref(&report)).unwrap();
        assert_eq!(open["open_50k_p99_us"].as_f64(), report["latency_us"]["p99"].as_f64());
        assert_eq!(open["open_50k_is_kept"], report["open_loop"]["is_schedule_kept"]);
    }

    #[test]
    fn without_a_steady_run_there_is_no_figure() {
        assert!(matches!(figures_of(&NETWORKED[0], &[]), Err(ReportError::NeverSteady { .. })));
    }
}

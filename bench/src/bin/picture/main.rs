//! Throughput against latency, ours and the peers', as one SVG: what `cargo xtask bench picture` runs.
//!
//! Ours is measured by the load generator with more and more in flight, in turns, each run with a clean audit. Both
//! cores in memory come from one run of their comparison. The other peers' points are constants (`peers.rs`): what a
//! picture needs of them cannot be run here.
#![forbid(unsafe_code)]

mod drawing;
mod peers;
mod scale;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use clap::Parser;
use iroh_raft_bench::bridges::Failure;
use iroh_raft_bench::reports::{self, ReportError};
use serde_json::{Value, json};

use crate::drawing::{Picture, Point, Series, draw};

/// Clients of each load, and what each of them has in flight.
const CLIENTS: u64 = 8;
const IN_FLIGHT: [u64; 7] = [1, 4, 16, 64, 256, 1024, 4096];
/// Clients of the comparison in memory, each with one request in flight.
const MEMORY_CLIENTS: [u64; 3] = [1, 64, 4096];

/// Measures throughput against latency, and draws it.
#[derive(Parser, Debug)]
struct Args {
    /// The load generator, built for release.
    #[arg(long)]
    loadgen: PathBuf,
    /// The comparison of cores, built for release.
    #[arg(long)]
    core: PathBuf,
    /// Runs of each load: an odd number has a median.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..))]
    runs: u16,
    /// File to draw the picture into.
    #[arg(long)]
    svg: PathBuf,
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<(), Failure> {
    let folder = tempfile::tempdir()?;
    let mut loads = IN_FLIGHT.map(|in_flight| (in_flight, Vec::new()));
    for _ in 0..args.runs {
        for (in_flight, reports) in &mut loads {
            let name = format!("{CLIENTS} x {in_flight} in flight");
            reports.push(reports::steady(&name, || load(args, folder.path(), *in_flight))?);
        }
    }
    let path = folder.path().join("core.json");
    let cores = reports::run(Command::new(&args.core).arg("--json").arg(&path), &path)?;
    let picture = picture(&loads, &cores)?;
    std::fs::write(&args.svg, draw(&picture))?;
    Ok(())
}

fn load(args: &Args, folder: &Path, in_flight: u64) -> Result<Value, ReportError> {
    let path = folder.join("load.json");
    let mut command = Command::new(&args.loadgen);
    command.args(["quick", "--clients", &CLIENTS.to_string(), "--in-flight", &in_flight.to_string()]);
    reports::run(command.args(["--warmup", "2s", "--duration", "5s", "--json"]).arg(&path), &path)
}

/// What is drawn of the reports of each load, and of that of the comparison.
fn picture(loads: &[(u64, Vec<Value>)], cores: &Value) -> Result<Picture, ReportError> {
    let mut points = Vec::new();
    for (in_flight, reports) in loads {
        let point = networked(*in_flight, reports)?;
        println!(
            "{:>6} in flight: {:>9.0} records/s, p50 {:.0} us, p99 {:.0} us",
            point.in_flight,
            point.records_per_s,
            point.p50_us,
            point.p99_us.unwrap_or_default()
        );
        points.push(point);
    }
    let ours = Series {
        name: "iroh-raft".to_owned(),
        promise: "three processes, encrypted QUIC, fsync on a quorum before each answer; audited".to_owned(),
        points,
        is_labelled: true,
    };
    let in_memory = "no network, no disk, empty records; mean instead of median";
    let core = memory("iroh-raft's core", in_memory, cores, "ours_per_s")?;
    let openraft = memory("openraft 0.10 alpha", in_memory, cores, "openraft_per_s")?;
    let machine = loads.iter().flat_map(|(_, reports)| reports).next().map(|report| &report["machine"]);
    let machine = machine.cloned().unwrap_or(json!(null));
    Ok(Picture {
        title: "Throughput against latency".to_owned(),
        about: vec![format!(
            "records of 64 B; nodes and clients together on {} cores ({}), Linux {}",
            machine["cores"],
            machine["cpu"].as_str().unwrap_or("unknown"),
            machine["kernel"].as_str().unwrap_or("unknown"),
        )],
        series: std::iter::once(ours).chain(peers::series()).chain([core, openraft]).collect(),
        notes: vec!["etcd and NATS: measured earlier on this kind of machine, with as many cores".to_owned()],
    })
}

/// One point of ours: medians of its runs.
fn networked(in_flight: u64, reports: &[Value]) -> Result<Point, ReportError> {
    let load = format!("{CLIENTS} x {in_flight} in flight");
    let median = |at: &str| {
        let values = reports.iter().map(|report| reports::number(report, &load, at));
        let median = reports::median(values.collect::<Result<_, _>>()?);
        median.ok_or_else(|| ReportError::NoFigure { load: load.clone(), at: at.to_owned() })
    };
    Ok(Point {
        in_flight: CLIENTS * in_flight,
        records_per_s: median("/throughput_records_per_s")?,
        p50_us: median("/latency_us/p50")?,
        p99_us: Some(median("/latency_us/p99")?),
    })
}

/// What is known of a core in memory: how much it does. Its mean latency follows from that and from what is in flight
/// (Little's law).
fn memory(name: &str, promise: &str, cores: &Value, key: &str) -> Result<Series, ReportError> {
    let point = |in_flight: u64| {
        let records_per_s = reports::number(cores, "the cores", &format!("/{in_flight}/{key}"))?;
        let p50_us = in_flight as f64 * 1e6 / records_per_s;
        Ok(Point { in_flight, records_per_s, p50_us, p99_us: None })
    };
    Ok(Series {
        name: format!("{name}, in memory"),
        promise: promise.to_owned(),
        points: MEMORY_CLIENTS.into_iter().map(point).collect::<Result<_, _>>()?,
        is_labelled: false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(per_s: f64, p50: u64) -> Value {
        json!({
            "throughput_records_per_s": per_s,
            "latency_us": { "p50": p50, "p99": 2 * p50 },
            "machine": { "cores": 2, "cpu": "A & B", "kernel": "6.18" },
        })
    }

    fn cores() -> Value {
        let line = |per_s: f64| json!({ "ours_per_s": 4.0 * per_s, "openraft_per_s": per_s });
        json!({ "1": line(20e3), "64": line(800e3), "4096": line(1.6e6) })
    }

    #[test]
    fn reports_become_points_and_points_a_picture() {
        let loads =
            [(1, vec![report(5e3, 1500)]), (64, vec![report(3e5, 9), report(1e5, 4000), report(2e5, 3000)])];
        let picture = picture(&loads, &cores()).unwrap();
        let point =
            |in_flight, records_per_s, p50_us, p99_us| Point { in_flight, records_per_s, p50_us, p99_us };
        let ours = [point(8, 5e3, 1500.0, Some(3000.0)), point(512, 2e5, 3000.0, Some(6000.0))];
        assert_eq!(picture.series[0].points, ours);
        let names: Vec<&str> = picture.series.iter().map(|series| series.name.as_str()).collect();
        let peers = ["etcd 3.4.23", "NATS JetStream 2.9.10"];
        assert_eq!(names[1..3], peers);
        assert_eq!(names[3..], ["iroh-raft's core, in memory", "openraft 0.10 alpha, in memory"]);
        assert_eq!(picture.series[4].points[1], point(64, 8e5, 80.0, None));
        let svg = draw(&picture);
        assert!(svg.contains("2 cores (A &amp; B), Linux 6.18"), "{svg}");
        assert!(svg.contains("NO fsync"));
    }

    #[test]
    fn a_load_without_runs_or_a_figure_is_an_error_and_no_point() {
        assert!(matches!(picture(&[(1, vec![])], &cores()), Err(ReportError::NoFigure { .. })));
        assert!(matches!(picture(&[(1, vec![json!({})])], &cores()), Err(ReportError::NoFigure { .. })));
        assert!(matches!(
            picture(&[(1, vec![report(1.0, 1)])], &json!({})),
            Err(ReportError::NoFigure { .. })
        ));
    }

    #[test]
    fn what_peers_were_given_in_flight_grows_and_their_tails_are_longer_than_their_medians() {
        for series in peers::series() {
            assert!(
                series.points.windows(2).all(|pair| pair[0].in_flight < pair[1].in_flight),
                "{}",
                series.name
            );
            assert!(series.points.iter().all(|point| point.p99_us > Some(point.p50_us)), "{}", series.name);
        }
    }
}

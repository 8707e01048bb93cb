//! The figures of the whole engine, as one JSON object: what `cargo xtask bench speed` runs.
//!
//! The load generator gives those of clusters, as medians of several runs with a clean audit each; the comparison gives
//! the core beside openraft; the bridge beside a bare iroh stream is measured here, in turns.
#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;

use clap::{Parser, ValueEnum};
use iroh_raft_bench::bridges::{Bare, Failure, Pair};
use iroh_raft_core::MessageKind;
use serde_json::{Map, Value, json};

/// Batches of one measurement of the stream: 256 MiB.
const STREAM_BATCHES: usize = 4096;
/// Rounds of the stream, ours and bare in turns.
const STREAM_ROUNDS: usize = 5;
/// Small messages of one measurement, and the pause between two.
const SMALL: usize = 2000;
const SMALL_PAUSE: Duration = Duration::from_millis(1);

/// Measures the whole engine.
#[derive(Parser, Debug)]
struct Args {
    /// The load generator, built for release.
    #[arg(long)]
    loadgen: PathBuf,
    /// The comparison of cores, built for release.
    #[arg(long)]
    core: PathBuf,
    /// Runs of each load: an odd number has a median.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..))]
    runs: u16,
    /// Measures only this part.
    #[arg(long)]
    only: Option<Part>,
    /// File to write the figures to, as one JSON object.
    #[arg(long)]
    json: PathBuf,
}

/// What is measured together.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum Part {
    /// Clusters under load.
    Loads,
    /// The bridge beside a bare iroh stream, and small messages.
    Bridge,
    /// The core beside openraft.
    Core,
}

/// One load, and what is taken from its report.
struct Load {
    name: &'static str,
    args: &'static [&'static str],
    /// Keys of the result, and where their values are in the report.
    figures: &'static [(&'static str, &'static str)],
}

const LOADS: [Load; 5] = [
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
        args: &["--record-bytes", "1024", "--in-flight", "512", "--duration", "30s", "--warmup", "5s"],
        figures: &[("kib_records_per_s", "/throughput_records_per_s"), ("kib_p99_us", "/latency_us/p99")],
    },
    Load {
        name: "embedded clients",
        args: &["--embedded", "--clients", "4", "--in-flight", "8192"],
        figures: &[
            ("embedded_records_per_s", "/throughput_records_per_s"),
            ("embedded_core_us_per_record", "/core_us_per_record"),
        ],
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
    let mut figures = Map::new();
    let is_due = |part| args.only.is_none_or(|only| only == part);
    for load in LOADS.iter().filter(|_| is_due(Part::Loads)) {
        measure(args, load, folder.path(), &mut figures)?;
    }
    if is_due(Part::Bridge) {
        bridge(&mut figures)?;
    }
    if is_due(Part::Core) {
        let path = folder.path().join("core.json");
        let core = report(Command::new(&args.core).arg("--json").arg(&path), &path)?;
        let mut ratios = Map::new();
        for clients in ["1", "64", "4096"] {
            let ratio = core[clients]["ratio"].as_f64().ok_or("the comparison of cores gives no ratio")?;
            ratios.insert(clients.to_owned(), json!(ratio));
        }
        figures.insert("core_vs_openraft".into(), Value::Object(ratios));
        figures.insert("core_and_openraft".into(), core);
    }
    std::fs::write(&args.json, format!("{:#}\n", Value::Object(figures)))?;
    Ok(())
}

/// Runs a load several times.
fn measure(args: &Args, load: &Load, folder: &Path, figures: &mut Map<String, Value>) -> Result<(), Failure> {
    let path = folder.join("load.json");
    let mut reports = Vec::new();
    for _ in 0..args.runs {
        let mut command = Command::new(&args.loadgen);
        command.arg("quick").args(load.args).arg("--json").arg(&path);
        let report = report(&mut command, &path)?;
        if report["leader_changes"] != json!(0) {
            println!("{}: left out a run in which leaders changed", load.name);
            continue;
        }
        reports.push(report);
    }
    if reports.is_empty() {
        return Err(format!("{}: leaders changed in every run", load.name).into());
    }
    for (key, at) in load.figures {
        let values: Vec<&Value> = reports.iter().filter_map(|report| report.pointer(at)).collect();
        let numbers: Vec<f64> = values.iter().filter_map(|value| value.as_f64()).collect();
        let flags: Vec<bool> = values.iter().filter_map(|value| value.as_bool()).collect();
        let value = if numbers.len() == reports.len() {
            json!(median(numbers))
        } else if flags.len() == reports.len() {
            json!(flags.iter().all(|flag| *flag))
        } else {
            return Err(format!("the load generator reports no {at} of {}", load.name).into());
        };
        println!("{}: {key} {value} of {values:?}", load.name);
        figures.insert((*key).to_owned(), value);
    }
    for key in ["machine", "versions"] {
        figures.insert(key.to_owned(), reports[0][key].clone());
    }
    Ok(())
}

/// Runs a program that ends well only when its figures are good, and reads them.
fn report(command: &mut Command, path: &Path) -> Result<Value, Failure> {
    let output = command.output().map_err(|error| format!("cannot start {command:?}: {error}"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        return Err(format!("{command:?} failed: {}\n{said}", output.status).into());
    }
    Ok(serde_json::from_slice(&std::fs::read(path)?)?)
}

/// The bridge beside a bare stream, and small messages beside full lanes.
fn bridge(figures: &mut Map<String, Value>) -> Result<(), Failure> {
    let (mut pair, mut bare) = (Pair::start()?, Bare::start()?);
    let mut ratios = Vec::new();
    for _ in 0..STREAM_ROUNDS {
        let (ours, limit) = (pair.stream(STREAM_BATCHES)?, bare.stream(STREAM_BATCHES)?);
        ratios.push(limit.as_secs_f64() / ours.as_secs_f64());
    }
    drop(bare);
    println!("bridge beside a bare stream: {ratios:.2?}");
    figures.insert("bridge_vs_bare_iroh".into(), json!(median(ratios)));
    for (key, kind, is_saturated) in [
        ("vote_p99_us", MessageKind::RequestVote, false),
        ("heartbeat_p99_us", MessageKind::Heartbeat, false),
        ("heartbeat_p99_us_under_load", MessageKind::Heartbeat, true),
        ("vote_p99_us_under_load", MessageKind::RequestVote, true),
    ] {
        let mut found = pair.latencies(kind, SMALL, SMALL_PAUSE, is_saturated)?;
        found.sort_unstable();
        let us = |percent: usize| found[found.len() * percent / 100].as_secs_f64() * 1e6;
        println!("{key}: {:.0}, p50 {:.0}", us(99), us(50));
        let p99_us = us(99);
        figures.insert(key.to_owned(), json!(p99_us));
    }
    pair.stop()?;
    Ok(())
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

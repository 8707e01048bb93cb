//! The figures of the whole engine, as one JSON object: what `cargo xtask bench speed` runs.
//!
//! The load generator gives those of clusters, as medians of several runs with a clean audit each; the comparison gives
//! the core beside openraft; the bridge beside a bare iroh stream is measured here, in turns. A part says which figures
//! it gives ([`PARTS`]), and is an error when it does not.
#![forbid(unsafe_code)]

mod allocations;
mod bridge;
mod core;
mod groups;
mod loads;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use clap::{Parser, ValueEnum};
use iroh_raft_bench::bridges::Failure;
use iroh_raft_bench::reports;
use serde_json::{Map, Value};

/// Figures by their keys.
type Figures = Map<String, Value>;

/// Measures the whole engine.
#[derive(Parser, Debug)]
struct Args {
    /// The load generator, built for release.
    #[arg(long)]
    loadgen: PathBuf,
    /// The comparison of cores, built for release.
    #[arg(long)]
    core: PathBuf,
    /// The count of allocations, built for release.
    #[arg(long)]
    allocations: PathBuf,
    /// Runs of each load: an odd number has a median.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..))]
    runs: u16,
    /// Measures only this part; may be given several times.
    #[arg(long)]
    only: Vec<Part>,
    /// File to write the figures to, as one JSON object.
    #[arg(long)]
    json: PathBuf,
}

impl Args {
    /// Runs the load generator once; it fails when its audit is not clean.
    fn load(&self, folder: &Path, args: &[&str]) -> Result<Value, reports::ReportError> {
        let path = folder.join("load.json");
        let mut command = Command::new(&self.loadgen);
        reports::run(command.arg("quick").args(args).arg("--json").arg(&path), &path)
    }
}

/// What is measured together.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum Part {
    /// Clusters under load, their clients on the network.
    Loads,
    /// Clusters under load, their clients in the nodes' processes.
    Embedded,
    /// Clusters with one to thousands of active groups.
    Groups,
    /// The bridge beside a bare iroh stream, and small messages.
    Bridge,
    /// The core beside openraft.
    Core,
    /// What a record costs in allocations.
    Allocations,
}

/// How a part is measured, and which keys the result has then. The folder is for reports.
struct Measured {
    part: Part,
    keys: fn() -> Vec<&'static str>,
    measure: fn(&Args, &Path) -> Result<Figures, Failure>,
}

const PARTS: [Measured; 6] = [
    Measured { part: Part::Loads, keys: loads::networked_keys, measure: loads::networked },
    Measured { part: Part::Embedded, keys: loads::embedded_keys, measure: loads::embedded },
    Measured { part: Part::Groups, keys: groups::keys, measure: groups::measure },
    Measured { part: Part::Bridge, keys: bridge::keys, measure: bridge::measure },
    Measured { part: Part::Core, keys: core::keys, measure: core::measure },
    Measured { part: Part::Allocations, keys: allocations::keys, measure: allocations::measure },
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
    let mut figures = Figures::new();
    for part in PARTS.iter().filter(|part| args.only.is_empty() || args.only.contains(&part.part)) {
        let measured = (part.measure)(args, folder.path())?;
        check(part, &measured)?;
        figures.extend(measured);
    }
    std::fs::write(&args.json, format!("{:#}\n", Value::Object(figures)))?;
    Ok(())
}

/// A figure that a part promises and did not give is an error, and so is one that it does not promise.
fn check(part: &Measured, figures: &Figures) -> Result<(), Failure> {
    let keys = (part.keys)();
    let missing = keys.iter().copied().filter(|key| !figures.contains_key(*key));
    let unknown = figures.keys().map(String::as_str).filter(|key| !keys.contains(key));
    match missing.chain(unknown).next() {
        None => Ok(()),
        Some(key) => {
            Err(format!("{:?}: {key} is promised and missing, or the other way round", part.part).into())
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::json;

    use super::*;

    /// What others read out of the result: only ever added to.
    const PROMISED: [&str; 15] = [
        "small_records_per_s",
        "small_core_us_per_record",
        "kib_records_per_s",
        "embedded_records_per_s",
        "one_client_p50_us",
        "one_client_p99_9_us",
        "open_50k_p99_us",
        "open_50k_p99_9_us",
        "core_vs_openraft",
        "bridge_vs_bare_iroh",
        "vote_p99_us_under_load",
        "allocations_per_record",
        "groups",
        "machine",
        "versions",
    ];

    #[test]
    fn the_parts_together_give_every_figure_that_is_promised() {
        let given: BTreeSet<&str> = PARTS.iter().flat_map(|part| (part.keys)()).collect();
        let missing: Vec<_> = PROMISED.iter().filter(|key| !given.contains(*key)).collect();
        assert!(missing.is_empty(), "no part gives {missing:?}");
    }

    #[test]
    fn every_part_that_can_be_asked_for_is_measured_once_and_no_figure_comes_from_two() {
        for part in Part::value_variants() {
            assert_eq!(PARTS.iter().filter(|measured| measured.part == *part).count(), 1, "{part:?}");
        }
        // What a run was measured on is said by each part that runs a load.
        let about = |key: &&str| !loads::ABOUT.contains(key);
        let keys: Vec<&str> = PARTS.iter().flat_map(|part| (part.keys)()).filter(about).collect();
        assert_eq!(keys.iter().collect::<BTreeSet<_>>().len(), keys.len(), "{keys:?}");
    }

    #[test]
    fn a_part_that_gives_less_or_more_than_it_promises_is_an_error() {
        let part = Measured { part: Part::Core, keys: || vec!["a", "b"], measure: |_, _| Ok(Figures::new()) };
        let figures =
            |keys: &[&str]| keys.iter().map(|key| ((*key).to_owned(), json!(1))).collect::<Figures>();
        assert!(check(&part, &figures(&["a", "b"])).is_ok());
        assert!(check(&part, &figures(&["a"])).is_err());
        assert!(check(&part, &figures(&["a", "b", "c"])).is_err());
    }
}

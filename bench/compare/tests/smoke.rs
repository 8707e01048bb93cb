//! Every line of the comparison, as small as it can be: it ends well, reads back what it wrote, gives
//! every figure, and gives the same hash again.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

/// Figures that others rely on.
const FIGURES: [&str; 18] = [
    "depth1_vs_bare",
    "depth1_vs_direct",
    "groups64_vs_1",
    "groups512_vs_1",
    "records_64b_per_s",
    "bytes_64k_per_s",
    "burst_records_64b_per_s",
    "burst_bytes_64k_per_s",
    "moving_p99_9_vs_quiet",
    "moving_p99_9_us",
    "write_amplification",
    "write_amplification_1k_128",
    "reading_vs_alone",
    "reopen_16mb_ms",
    "vs_raft_engine",
    "machine",
    "versions",
    "hash",
];

fn smoke(folder: &Path) -> Value {
    let json = folder.join("figures.json");
    let output = Command::new(env!("CARGO_BIN_EXE_storage"))
        .args(["--smoke", "--folder"])
        .arg(folder)
        .arg("--json")
        .arg(&json)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_str(&fs::read_to_string(json).unwrap()).unwrap()
}

#[test]
fn every_line_runs_and_gives_the_same_hash_again() {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let figures = smoke(folder.path());
    for name in FIGURES {
        assert!(!figures[name].is_null(), "no {name} in {figures:#}");
    }
    for (line, ratio) in figures["vs_raft_engine"].as_object().unwrap() {
        assert!(ratio.as_f64().is_some_and(|ratio| ratio > 0.0), "{line} has ratio {ratio}");
    }
    assert_eq!(smoke(folder.path())["hash"], figures["hash"]);
}

#[test]
fn a_line_that_does_not_exist_is_refused() {
    let output = Command::new(env!("CARGO_BIN_EXE_storage")).args(["--line", "depth2"]).output().unwrap();
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("depth1, groups"));
}

#[test]
fn the_core_is_compared_at_every_number_of_clients() {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let json = folder.path().join("figures.json");
    let output = Command::new(env!("CARGO_BIN_EXE_core"))
        .args(["--rounds", "1", "--round-ms", "1", "--json"])
        .arg(&json)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let figures: Value = serde_json::from_str(&fs::read_to_string(json).unwrap()).unwrap();
    for clients in ["1", "64", "4096"] {
        let ratio = figures[clients]["ratio"].as_f64();
        assert!(ratio.is_some_and(|ratio| ratio > 0.0), "no ratio for {clients} clients in {figures:#}");
    }
}

//! Loads that are more than appends: reads of records, followers and sessions, on clusters of their own.

use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

const PROGRAM: &str = env!("CARGO_BIN_EXE_loadgen");

/// A few records, so that a slow machine keeps up.
const SHORT: [&str; 10] =
    ["--duration", "1s", "--warmup", "200ms", "--groups", "4", "--clients", "2", "--in-flight", "16"];

fn quick(folder: &Path, args: &[&str]) -> Output {
    let mut command = Command::new(PROGRAM);
    command.arg("quick").args(SHORT).args(args);
    command.arg("--data-dir").arg(folder.join("data")).arg("--json").arg(folder.join("report.json"));
    command.output().unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// The report of a run that ended well, and what it said.
fn report(args: &[&str]) -> (Value, String) {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let output = quick(folder.path(), args);
    let said = said(&output);
    assert!(output.status.success(), "{said}");
    let report: Value =
        serde_json::from_slice(&std::fs::read(folder.path().join("report.json")).unwrap()).unwrap();
    let acked = report["acked_records"].as_u64().unwrap();
    assert_eq!(report["audit"]["checked"].as_u64(), Some(3 * acked), "{report:#}");
    (report, said)
}

fn number(report: &Value, at: &str) -> u64 {
    report.pointer(at).and_then(Value::as_u64).unwrap_or_else(|| panic!("{at}: {report:#}"))
}

/// Right ones, and nothing else.
fn assert_reads(report: &Value, at_least: u64) {
    let of = |name: &str| number(report, &format!("/mix/reads/{name}"));
    assert_eq!((of("wrong"), of("missing"), of("failed")), (0, 0, 0), "{report:#}");
    assert!(of("right") >= of("measured_reads") && of("measured_reads") >= at_least, "{report:#}");
    assert!(of("latency_us/p50") > 0 && of("latency_us/max") >= of("latency_us/p99"), "{report:#}");
}

/// All that was acknowledged, so often, once and in order.
fn assert_tails(report: &Value, tails: u64) {
    let of = |name: &str| number(report, &format!("/mix/tails/{name}"));
    let faults = [of("gaps"), of("out_of_order"), of("wrong"), of("undelivered"), of("untimed")];
    assert_eq!(faults, [0; 5], "{report:#}");
    let acked = number(report, "/acked_records");
    assert_eq!(number(report, "/unknown_records"), 0, "{report:#}");
    assert_eq!(of("delivered"), tails * acked, "each had every record: {report:#}");
    assert!(of("measured_delivered") > 0 && of("latency_us/p50") > 0, "{report:#}");
    assert!(report["mix"]["tails"]["caught_up_ms"].is_u64(), "{report:#}");
}

#[test]
fn a_closed_loop_of_appends_and_reads_is_followed() {
    let (report, said) = report(&["--reads", "0.4", "--tails", "2", "--client-threads", "2"]);
    assert_reads(&report, 10);
    assert_tails(&report, 2);
    assert_eq!(number(&report, "/mix/tails/followers"), 8);
    let (reads, records) = (number(&report, "/mix/reads/right"), number(&report, "/acked_records"));
    let share = reads as f64 / (reads + records) as f64;
    // The first window of each client is appended: there is nothing to be read.
    assert!((0.25..0.45).contains(&share), "{share}: {report:#}");
    assert_eq!(report["config"]["mix"]["read_kind"], "leader");
    assert!(report["mix"]["reads"]["service_us"].is_null());
    // Second by second, too, and in words.
    let slices = report["slices"].as_array().unwrap();
    assert!(slices.iter().any(|slice| slice["reads_per_s"].as_f64() > Some(0.0)), "{report:#}");
    assert!(slices.iter().any(|slice| slice["delivered_per_s"].as_f64() > Some(0.0)), "{report:#}");
    for words in ["  reads ", "  delivered ", "\nreads  ", "\ntails  "] {
        assert!(said.contains(words), "{words:?}: {said}");
    }
}

#[test]
fn an_open_loop_reads_from_all_replicas_and_in_sessions() {
    let args = ["--rate", "400", "--reads", "0.5", "--read-kind", "local", "--tails", "1", "--sessions"];
    let (report, _) = report(&args);
    assert_reads(&report, 10);
    assert_tails(&report, 1);
    // The schedule is of both: so many are due with those of the warm-up.
    let requests = number(&report, "/mix/reads/right") + number(&report, "/acked_records");
    assert!(requests <= 480 + 1, "{report:#}");
    assert!(number(&report, "/mix/reads/service_us/p50") > 0, "{report:#}");
    assert_eq!(number(&report, "/mix/sessions"), 8);
    assert_eq!(report["config"]["mix"]["is_in_sessions"], true);
}

/// All nodes are killed on the way: what the sessions had under way is asked for again, and is done once.
#[test]
fn sessions_leave_nothing_unknown_when_nodes_are_killed() {
    let load = ["--duration", "4s", "--idle-timeout", "2s", "--fault", "kill@500ms+500ms:all"];
    let mix = ["--sessions", "--tails", "1", "--reads", "0.1", "--read-kind", "local"];
    let (report, _) = report(&[&load[..], &mix].concat());
    assert!(number(&report, "/faults/0/unavailable_ms") >= 500, "{report:#}");
    assert_eq!((number(&report, "/unknown_records"), number(&report, "/failed_records")), (0, 0));
    for at in ["/mix/reads/wrong", "/mix/reads/missing", "/mix/tails/gaps", "/mix/tails/wrong"] {
        assert_eq!(number(&report, at), 0, "{report:#}");
    }
    assert_eq!(number(&report, "/mix/tails/delivered"), number(&report, "/acked_records"), "{report:#}");
}

/// Reads and deliveries of an open loop count from when they were due, as appends do: a stall of all nodes shows.
#[test]
fn a_stall_shows_in_the_reads_and_deliveries_of_an_open_loop() {
    let load = ["--duration", "4s", "--rate", "300", "--in-flight", "8", "--idle-timeout", "5s"];
    let mix = ["--reads", "0.5", "--tails", "1", "--fault", "stop@1s+1100ms:all"];
    let (report, _) = report(&[&load[..], &mix].concat());
    assert_reads(&report, 10);
    // A second of four: a quarter of what was due waited, up to as long as it lasted.
    for what in ["reads", "tails"] {
        let latency_us = |name: &str| number(&report, &format!("/mix/{what}/latency_us/{name}"));
        assert!(latency_us("max") >= 900_000, "{report:#}");
        assert!(latency_us("p99") >= 800_000, "{report:#}");
        assert!(latency_us("p90") >= 300_000, "{report:#}");
    }
}

#[test]
fn the_named_mixture_is_one_and_stands_in_files_too() {
    let (report, _) = report(&["--workload", "mixed"]);
    assert_reads(&report, 1);
    assert_eq!(number(&report, "/config/mix/tails"), 1);
    let folder = tempfile::tempdir().unwrap();
    let (file, page) = (folder.path().join("load.toml"), folder.path().join("page.html"));
    std::fs::write(&file, "reads = 0.3\nread-kind = \"local\"\ntails = 1\nsessions = true\n").unwrap();
    let (file, page) = (file.to_str().unwrap(), page.to_str().unwrap());
    let (report, _) = self::report(&["--workload", file, "--html", page]);
    assert_reads(&report, 1);
    assert_tails(&report, 1);
    assert_eq!(number(&report, "/mix/sessions"), 8);
    let page = std::fs::read_to_string(page).unwrap();
    for name in [">appended</text>", ">read</text>", ">delivered</text>"] {
        assert_eq!(page.matches(name).count(), 2, "{name}: over percentiles and over time");
    }
}

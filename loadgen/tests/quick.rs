//! `loadgen quick` from its start to the audit, as short as it can be, in each kind of load.

use std::path::Path;
use std::process::Command;

use serde_json::Value;

const PROGRAM: &str = env!("CARGO_BIN_EXE_loadgen");

/// As short as it can be.
const SHORT: [&str; 6] = ["--duration", "500ms", "--warmup", "100ms", "--groups", "4"];

/// The report of a short run that ended well.
fn report(args: &[&str]) -> Value {
    report_of(&[&SHORT, args].concat())
}

/// The report of a run that ended well.
fn report_of(args: &[&str]) -> Value {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let json = folder.path().join("report.json");
    let output = Command::new(PROGRAM)
        .arg("quick")
        .args(args)
        .arg("--data-dir")
        .arg(folder.path().join("data"))
        .arg("--json")
        .arg(&json)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let report: Value = serde_json::from_slice(&std::fs::read(json).unwrap()).unwrap();
    let (acked, measured) = (&report["acked_records"], &report["measured_records"]);
    assert!(measured.as_u64() > Some(0) && acked.as_u64() >= measured.as_u64(), "{report:#}");
    // Each of the three replicas was read to its end after all nodes were killed.
    assert_eq!(report["audit"]["checked"].as_u64(), acked.as_u64().map(|acked| 3 * acked));
    report
}

#[test]
fn clients_on_the_network_are_audited() {
    let report = report(&["--clients", "2", "--in-flight", "16"]);
    assert!(report["open_loop"].is_null());
    assert!(report["client_core_us_per_record"].as_f64() > Some(0.0));
}

#[test]
fn a_schedule_is_a_part_of_the_report() {
    let report = report(&["--clients", "2", "--in-flight", "64", "--rate", "400"]);
    assert_eq!(report["open_loop"]["rate_per_s"], 400);
    // So many are due with those of the warm-up, and no more are sent, however fast they are answered.
    assert!(report["acked_records"].as_u64() <= Some(240), "{report:#}");
}

/// Far more than the clients' windows let through: what was not sent in time is said, and so is what nodes refused.
#[test]
fn a_schedule_that_was_not_kept_is_said() {
    let report = report(&["--clients", "2", "--in-flight", "16", "--rate", "5000000"]);
    assert_eq!(report["open_loop"]["is_schedule_kept"], false);
    assert!(report["open_loop"]["late_records"].as_u64() > Some(0), "{report:#}");
    assert!(report["busy_requests"].is_u64(), "{report:#}");
}

#[test]
fn clients_in_the_nodes_processes_are_audited() {
    let report = report(&["--embedded", "--clients", "2", "--in-flight", "64"]);
    assert_eq!(report["config"]["is_embedded"], true);
    assert!(report["client_core_us_per_record"].is_null());
}

/// All nodes stand still for a second and a little: a gap is told in whole milliseconds. In the open loop every record that was due meanwhile waits, and the percentiles say so;
/// the closed loop sends nothing meanwhile, and its percentiles hide what happened.
#[test]
fn a_stall_shows_in_the_open_loop_and_hides_in_the_closed_one() {
    let load = ["--groups", "1", "--clients", "1", "--warmup", "1s", "--duration", "6s"];
    // Nobody's connection counts as lost meanwhile.
    let fault = ["--fault", "stop@2s+1100ms:all", "--idle-timeout", "5s"];
    let closed = report_of(&[&load[..], &fault, &["--in-flight", "8"]].concat());
    // As few in flight: what is due meanwhile cannot be sent, and waits all the same.
    let open = report_of(&[&load[..], &fault, &["--in-flight", "8", "--rate", "300"]].concat());
    let percentile = |report: &Value, name| report["latency_us"][name].as_u64().unwrap();
    for report in [&closed, &open] {
        assert!(report["faults"][0]["unavailable_ms"].as_u64() >= Some(1000), "{report}");
    }
    // A second of six: a sixth of what was due waited, up to as long as it lasted.
    assert!(percentile(&open, "max") >= 900_000, "{open}");
    assert!(percentile(&open, "p99_9") >= 900_000, "{open}");
    assert!(percentile(&open, "p99") >= 800_000, "{open}");
    assert!(percentile(&open, "p90") >= 300_000, "{open}");
    // Eight records of thousands, and those may have no answer at all if another leads when all go on.
    assert!(percentile(&closed, "p99") < 500_000, "{closed}");
    // From when they were sent it looks well in the open loop, too.
    assert!(open["open_loop"]["service_us"]["p99"].as_u64().is_some_and(|us| us < 500_000), "{open}");
}

/// Nodes that stand still at the end of the measured time say nothing, but what they have done so far counts.
#[test]
fn what_stopped_nodes_have_done_counts() {
    let load =
        ["--groups", "1", "--clients", "1", "--in-flight", "8", "--warmup", "100ms", "--duration", "1s"];
    let report = report_of(&[&load[..], &["--fault", "stop@700ms+500ms:all"]].concat());
    for counter in ["flushes", "turns", "requests", "peer_frames"] {
        assert!(report[counter].as_u64() > Some(0), "{counter}: {report}");
    }
}

/// Nothing reaches the disk of the node that leads the only group: another one leads, and nothing acknowledged is lost.
#[test]
fn a_disk_that_stands_still_costs_a_leader_and_no_record() {
    let load =
        ["--groups", "1", "--clients", "1", "--in-flight", "8", "--warmup", "500ms", "--duration", "4s"];
    let report = report_of(&[&load[..], &["--fault", "disk-stall@500ms+3s"]].concat());
    assert_eq!(report["faults"][0]["kind"], "disk_stall", "{report}");
    assert!(report["leader_changes"].as_u64() > Some(0), "{report}");
    // The others are a quorum meanwhile, first without the leader's disk and then without the leader.
    let unavailable_ms = report["faults"][0]["unavailable_ms"].as_u64();
    assert!(unavailable_ms.is_some_and(|ms| ms < 3000), "another one took over meanwhile: {report}");
}

/// The node that leads the only group is cut off from the others; clients reach all. Another one leads, and what was acknowledged stays.
#[test]
fn a_partition_costs_a_leader_and_no_record() {
    let load =
        ["--groups", "1", "--clients", "1", "--in-flight", "8", "--warmup", "500ms", "--duration", "4s"];
    let report = report_of(&[&load[..], &["--fault", "partition@500ms+2s"]].concat());
    assert_eq!(report["faults"][0]["kind"], "partition", "{report}");
    assert!(report["leader_changes"].as_u64() > Some(0), "{report}");
}

/// A named node loses its disk, and a new one takes its place.
#[test]
fn a_wiped_node_has_a_successor_and_no_record_is_lost() {
    let load = ["--groups", "2", "--clients", "1", "--warmup", "100ms", "--duration", "2s"];
    let report = report_of(&[&load[..], &["--fault", "wipe@100ms:2"]].concat());
    assert_eq!((&report["replaced"][0]["old"], &report["replaced"][0]["new"]), (&2.into(), &4.into()));
    assert_eq!(report["faults"][0]["kind"], "wipe", "{report}");
}

#[test]
fn several_runs_are_told_together_and_compared() {
    let folder = tempfile::tempdir().unwrap();
    let run = |name: &str, args: &[&str]| {
        let path = folder.path().join(name);
        let mut command = Command::new(PROGRAM);
        command.args(["quick", "--repeat", "2", "--duration", "300ms", "--warmup", "100ms", "--groups", "2"]);
        assert!(command.args(args).arg("--json").arg(&path).status().unwrap().success());
        path
    };
    let (a, b) = (run("a.json", &[]), run("b.json", &["--clients", "2"]));
    let runs: Value = serde_json::from_slice(&std::fs::read(&a).unwrap()).unwrap();
    let figure = &runs["figures"]["throughput_records_per_s"];
    assert_eq!(runs["runs"].as_array().unwrap().len(), 2);
    assert!(
        figure["min"].as_f64() <= figure["median"].as_f64()
            && figure["median"].as_f64() <= figure["max"].as_f64()
    );
    let compare = |a: &Path, b: &Path| Command::new(PROGRAM).arg("compare").args([a, b]).output().unwrap();
    let same = compare(&a, &a);
    assert!(same.status.success() && String::from_utf8(same.stdout).unwrap().contains("too few runs"));
    let other = compare(&a, &b);
    assert_eq!(other.status.code(), Some(2));
    assert!(String::from_utf8(other.stderr).unwrap().contains("clients is 8 and 2"));
}

#[test]
fn the_highest_rate_is_found() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("found.json");
    let mut command = Command::new(PROGRAM);
    command.args(["find", "--slo", "p50=2s", "--from", "100", "--precision", "100", "--warmup", "100ms"]);
    // So few in flight that a low rate is the highest: the search ends soon.
    command.args(["--groups", "1", "--clients", "1", "--in-flight", "1", "--trial", "500ms", "--json"]);
    let output = command.arg(&path).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let found: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    let rate = found["rate_per_s"].as_u64().unwrap();
    let trials = found["trials"].as_array().unwrap();
    assert!(trials.iter().any(|trial| trial["rate_per_s"] == rate && trial["is_kept"] == true), "{rate}");
    assert!(
        trials.iter().any(|trial| trial["rate_per_s"].as_u64() > Some(rate) && trial["is_kept"] == false),
        "{rate}"
    );
    assert!(String::from_utf8(output.stdout).unwrap().contains("highest rate with p50"));
}

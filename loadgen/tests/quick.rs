//! `loadgen quick` from its start to the audit, as short as it can be, in each kind of load.

use std::process::Command;

use serde_json::Value;

/// The report of a run that ended well.
fn report(args: &[&str]) -> Value {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let json = folder.path().join("report.json");
    let output = Command::new(env!("CARGO_BIN_EXE_loadgen"))
        .args(["quick", "--duration", "500ms", "--warmup", "100ms", "--groups", "4"])
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

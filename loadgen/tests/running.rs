//! A cluster that runs already: load on it, and audits of what it and others have acknowledged.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use serde_json::Value;

const PROGRAM: &str = env!("CARGO_BIN_EXE_loadgen");

/// A short run whose nodes and acknowledgements stay.
fn leave(folder: &Path) {
    let mut command = Command::new(PROGRAM);
    command.args(["quick", "--duration", "300ms", "--warmup", "100ms", "--groups", "3", "--clients", "2"]);
    command.args(["--record-bytes", "16-400", "--skew", "zipf:1", "--rate", "2000", "--arrivals", "poisson"]);
    command.arg("--data-dir").arg(folder.join("data")).arg("--ack-log").arg(folder.join("acks"));
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", said(&output));
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// The nodes that were left, running; they end with this.
struct Nodes(Vec<Child>);

impl Nodes {
    /// Starts them, and writes their cluster file.
    fn start(folder: &Path) -> Nodes {
        let mut lines = String::new();
        let mut nodes = Vec::new();
        for number in 1..=3_u64 {
            let config = folder.join(format!("data/node-{number}/config.json"));
            // Its own key and address stand with the others.
            let other = json(&folder.join(format!("data/node-{}/config.json", number % 3 + 1)));
            let own = other["peers"].as_array().unwrap().iter().find(|peer| peer["node"] == number).unwrap();
            let (key, address) = (own["endpoint"].as_str().unwrap(), own["address"].as_str().unwrap());
            lines += &format!("node {number} = {key}@{address}\n");
            lines += &format!("cluster = {}\n", other["cluster"].as_str().unwrap());
            let mut command = Command::new(PROGRAM);
            command.arg("node").arg("--config").arg(config).stdin(Stdio::piped()).stdout(Stdio::piped());
            nodes.push(command.stderr(Stdio::null()).spawn().unwrap());
        }
        // One that has none of the groups, and is away.
        let first = json(&folder.join("data/node-1/config.json"));
        lines += &format!("node 4 = {}@127.0.0.1:9\n", first["clients"][0].as_str().unwrap());
        fs::write(folder.join("cluster"), lines).unwrap();
        for node in &mut nodes {
            let mut line = String::new();
            BufReader::new(node.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
            assert!(line.contains("ready"), "{line}");
        }
        Nodes(nodes)
    }
}

impl Drop for Nodes {
    fn drop(&mut self) {
        for node in &mut self.0 {
            _ = node.kill();
            _ = node.wait();
        }
    }
}

#[test]
fn what_was_acknowledged_is_audited_later_from_the_nodes_that_were_left() {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    leave(folder.path());
    // Also where it was moved to meanwhile.
    let (acks, moved) = (folder.path().join("acks"), folder.path().join("moved"));
    fs::rename(folder.path().join("data"), &moved).unwrap();
    let audit = |acks: &Path| {
        Command::new(PROGRAM).arg("audit").arg(acks).arg("--data-dir").arg(&moved).output().unwrap()
    };
    let clean = audit(&acks);
    assert!(clean.status.success() && said(&clean).contains("CLEAN"), "{}", said(&clean));

    // Somebody was told that other records stand in the place of these.
    let mut log = json(&acks);
    let group = &mut log["ledger"]["groups"][0];
    let run = &group["acked"][0];
    let (client, count) = (run["client"].as_u64().unwrap() as usize, run["count"].as_u64().unwrap());
    let sequence = group["sent"][client].as_u64().unwrap();
    group["acked"][0]["sequence"] = sequence.into();
    group["sent"][client] = (sequence + count).into();
    let wrong = folder.path().join("wrong");
    fs::write(&wrong, log.to_string()).unwrap();
    let lost = audit(&wrong);
    assert_eq!(lost.status.code(), Some(1), "{}", said(&lost));
    assert!(said(&lost).contains(&format!(" {} lost", 3 * count)), "{}", said(&lost));

    log["cluster"] = "another".into();
    fs::write(&wrong, log.to_string()).unwrap();
    let other = audit(&wrong);
    assert_eq!(other.status.code(), Some(1));
    assert!(said(&other).contains("of the cluster another"), "{}", said(&other));
}

/// Clusters with the settings of a node's file and with those that are proposed, under a load each, and the figures side by side.
#[test]
fn proposed_settings_are_tried_beside_those_that_are() {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let file = folder.path().join("node.toml");
    fs::write(&file, "[shards]\ncount = 2\n[storage]\nmove_bytes = \"8MiB\"\n").unwrap();
    // The daemon is built beside the load generator, which it calls.
    let mut tune = Command::new(Path::new(PROGRAM).with_file_name("iroh-raft"));
    tune.args(["tune", "--workload", "latency", "--try", "--runs", "1", "--duration", "300ms", "--config"]);
    let output = tune.arg(&file).output().unwrap();
    let said = said(&output);
    assert!(output.status.success(), "{said}");
    assert!(said.contains("compared: shards.count"), "{said}");
    assert!(said.contains("1 of 1, now: ") && said.contains("1 of 1, proposed: "), "{said}");
    assert!(said.contains("throughput") && said.contains("too few runs"), "{said}");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing is left but the node's file");
}

#[test]
fn a_running_cluster_is_driven_and_audited_beside_what_others_wrote() {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    leave(folder.path());
    let _nodes = Nodes::start(folder.path());
    let access = |command: &mut Command| {
        command.arg("--cluster").arg(folder.path().join("cluster"));
        command.arg("--key").arg(folder.path().join("data/client.key")).output().unwrap()
    };
    let (report, acks) = (folder.path().join("report.json"), folder.path().join("second"));
    let mut run = Command::new(PROGRAM);
    run.args(["run", "--duration", "300ms", "--warmup", "100ms", "--clients", "2", "--in-flight", "8"]);
    run.args(["--group", "1,3", "--json"]).arg(&report).arg("--ack-log").arg(&acks);
    let output = access(&mut run);
    assert!(output.status.success(), "{}", said(&output));
    let report = json(&report);
    assert_eq!(report["config"]["groups"], 2);
    let acked = report["acked_records"].as_u64().unwrap();
    assert!(acked > 0 && report["audit"]["checked"].as_u64() == Some(3 * acked), "{report}");
    // That of the first run is still there, under the other's records.
    for acks in [&acks, &folder.path().join("acks")] {
        let mut audit = Command::new(PROGRAM);
        let output = access(audit.arg("audit").arg(acks));
        let is_first = acks.ends_with("acks");
        // The first one had the cluster for itself, and says so: what others wrote is not its own.
        assert_eq!(output.status.success(), !is_first, "{}", said(&output));
        assert!(said(&output).contains(" 0 lost"), "{}", said(&output));
    }
    // A mixture of its own, beside all that: followers begin where the groups end, and skip what is not theirs.
    let mixed = folder.path().join("mixed.json");
    let mut run = Command::new(PROGRAM);
    run.args(["run", "--duration", "300ms", "--warmup", "100ms", "--clients", "2", "--in-flight", "8"]);
    run.args(["--reads", "0.3", "--read-kind", "local", "--tails", "1", "--sessions"]);
    let output = access(run.arg("--json").arg(&mixed));
    assert!(output.status.success(), "{}", said(&output));
    let mixed = json(&mixed);
    let (reads, tails) = (&mixed["mix"]["reads"], &mixed["mix"]["tails"]);
    assert!(reads["right"].as_u64() > Some(0) && reads["wrong"] == 0 && reads["missing"] == 0, "{mixed}");
    assert!(tails["followers"] == 3 && tails["delivered"] == mixed["acked_records"], "{mixed}");
    assert!(mixed["mix"]["sessions"] == 6 && mixed["unknown_records"] == 0, "{mixed}");
    let output = access(Command::new(PROGRAM).args(["run", "--group", "9"]));
    assert_eq!(output.status.code(), Some(1));
    assert!(said(&output).contains("no group 9; it has 1, 2, 3"), "{}", said(&output));
}

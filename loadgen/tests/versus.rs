//! `loadgen versus` with real servers, as short as it can be. Needs the feature `rivals` and the programs `etcd` and
//! `nats-server`; without them it fails and says so.

use std::fs;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

const PROGRAM: &str = env!("CARGO_BIN_EXE_loadgen");
const SHORT: [&str; 7] = ["versus", "--duration", "500ms", "--warmup", "100ms", "--groups", "2"];
/// Time for servers to start or to be gone.
const DEADLINE: Duration = Duration::from_secs(60);

#[test]
fn each_rival_answers_every_record_of_the_same_load() {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let (json, svg) = (folder.path().join("versus.json"), folder.path().join("versus.svg"));
    let output = Command::new(PROGRAM)
        .args(SHORT)
        .args(["--load", "64x2x16", "--load", "1024x1x1", "--json"])
        .arg(&json)
        .arg("--svg")
        .arg(&svg)
        .output()
        .unwrap();
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(!out.contains("not installed"), "this test needs both rivals: {out}");
    assert!(output.status.success(), "{out}\n{err}");
    let outcome: Value = serde_json::from_slice(&fs::read(&json).unwrap()).unwrap();
    let rows = outcome["rows"].as_array().unwrap();
    let names: Vec<&str> = rows.iter().map(|row| row["system"]["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["iroh-raft", "etcd", "NATS JetStream"].repeat(2));
    for row in rows {
        let run = &row["runs"][0];
        assert!(run["records_per_s"].as_f64() > Some(0.0) && run["latency_us"]["max"].as_u64() > Some(0));
        assert_eq!((&run["failed_records"], &run["unknown_records"]), (&0.into(), &0.into()), "{row:#}");
    }
    assert!(fs::read_to_string(&svg).unwrap().ends_with("</svg>\n"));
}

#[test]
fn no_server_outlives_its_load_generator() {
    for signal in [Signal::INT, Signal::KILL] {
        let mut loadgen = Command::new(PROGRAM)
            .args(["versus", "--rivals", "etcd", "--duration", "3s", "--warmup", "100ms"])
            .args(["--load", "64x1x1", "--groups", "1"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let servers = wait_for_servers(&mut loadgen);
        kill_process(Pid::from_child(&loadgen), signal).unwrap();
        wait_until("the load generator ends", || loadgen.try_wait().unwrap().is_some());
        wait_until("its servers end", || !servers.iter().any(|pid| is_etcd(&status(*pid))));
    }
}

/// The servers, once all three run. Ours comes before them.
fn wait_for_servers(loadgen: &mut Child) -> Vec<u32> {
    let parent = format!("PPid:\t{}\n", loadgen.id());
    let mut servers = Vec::new();
    wait_until("three servers run: is etcd installed?", || {
        assert_eq!(loadgen.try_wait().unwrap(), None, "it ended before its servers were seen");
        let processes = fs::read_dir("/proc").unwrap().flatten();
        let pids = processes.filter_map(|process| process.file_name().to_str()?.parse().ok());
        let is_server = |pid: &u32| {
            let status = status(*pid);
            status.contains(&parent) && is_etcd(&status)
        };
        servers = pids.filter(is_server).collect();
        servers.len() == 3
    });
    servers
}

/// What the kernel says of a process; nothing if there is none.
fn status(pid: u32) -> String {
    fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default()
}

/// Whether it is a server that runs: one that nobody has waited for yet is gone all the same.
fn is_etcd(status: &str) -> bool {
    status.contains("Name:\tetcd\n") && !status.contains("State:\tZ")
}

fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let until = Instant::now() + DEADLINE;
    while !is_so() {
        assert!(Instant::now() < until, "not within {DEADLINE:?}: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

//! The program as its users have it: processes, files and signals.

use std::collections::BTreeMap;
use std::io::Write;
use std::net::UdpSocket;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

#[cfg(feature = "metrics-page")]
#[path = "daemon/metrics_page.rs"]
mod metrics_page;

const PROGRAM: &str = env!("CARGO_BIN_EXE_iroh-raft");
/// For what takes a second or two on a machine that does nothing else.
const PATIENCE: Duration = Duration::from_secs(60);

/// Nodes of one cluster on this machine; what still runs at the end is killed.
struct Cluster {
    folder: tempfile::TempDir,
    nodes: Vec<Option<Child>>,
    /// What a node is told beside its file.
    settings: Vec<(u64, String)>,
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for child in self.nodes.iter_mut().flatten() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Cluster {
    fn new() -> Cluster {
        Cluster { folder: tempfile::tempdir().unwrap(), nodes: Vec::new(), settings: Vec::new() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A command in the folder of the cluster.
    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(PROGRAM);
        command.args(args).current_dir(self.folder.path()).env_clear();
        command
    }

    fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    /// What a command says that has to succeed.
    fn said(&self, args: &[&str]) -> String {
        let output = self.run(args);
        let [out, err] = [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap());
        assert!(output.status.success(), "{args:?}: {}\n{out}{err}", output.status);
        out
    }

    fn objects(&self, args: &[&str]) -> Vec<Value> {
        let args: Vec<&str> = args.iter().copied().chain(["--json"]).collect();
        self.said(&args).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// Sets up one node more.
    fn init(&mut self, port: u16) -> u64 {
        let node = self.nodes.len() as u64 + 1;
        let (number, dir, address) = (node.to_string(), format!("n{node}"), format!("127.0.0.1:{port}"));
        let args = ["init", "--node", &number, "--dir", &dir, "--address", &address, "--preset", "testing"];
        // The name of the cluster is needed once.
        let named: Vec<&str> = args.into_iter().chain(["--cluster", "orders"]).collect();
        self.said(if node == 1 { &named } else { &args });
        self.nodes.push(None);
        node
    }

    fn start(&mut self, node: u64) {
        let log =
            std::fs::OpenOptions::new().create(true).append(true).open(self.path(&format!("n{node}.log")));
        let log = log.unwrap();
        let config = format!("n{node}/node.toml");
        // One that comes in later begins no groups: it joins those there are.
        let groups = if node <= 3 { "groups.count=2" } else { "groups.count=0" };
        let mut command = self.command(&["start", "--config", &config, "--set", groups]);
        for (_, setting) in self.settings.iter().filter(|(of, _)| *of == node) {
            command.args(["--set", setting]);
        }
        let child = command.stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap();
        self.nodes[node as usize - 1] = Some(child);
    }

    fn signal(&self, node: u64, signal: Signal) {
        let child = self.nodes[node as usize - 1].as_ref().unwrap();
        kill_process(Pid::from_raw(child.id() as i32).unwrap(), signal).unwrap();
    }

    fn kill(&mut self, node: u64) {
        let mut child = self.nodes[node as usize - 1].take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    fn log(&self, node: u64) -> String {
        std::fs::read_to_string(self.path(&format!("n{node}.log"))).unwrap()
    }

    /// Asks until an answer is as it should be.
    fn until<T>(&self, what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
        let began = Instant::now();
        loop {
            if let Some(found) = ask() {
                return found;
            }
            if began.elapsed() > PATIENCE {
                let logs: Vec<String> = (1..=self.nodes.len() as u64).map(|node| self.log(node)).collect();
                panic!("never: {what}\n{}\n{}", self.all_status(), logs.join("\n---\n"));
            }
        }
    }

    fn all_status(&self) -> String {
        let output = self.run(&["status"]);
        String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
    }

    /// The overview, and whether everything is well.
    fn status(&self) -> (Vec<Value>, bool) {
        let output = self.run(&["status", "--json"]);
        let lines = String::from_utf8(output.stdout).unwrap();
        let objects = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        (objects, output.status.success())
    }

    fn leader(&self, group: u64) -> Option<u64> {
        let (objects, _) = self.status();
        objects.iter().find(|object| object["group"] == group)?["leader"].as_u64()
    }
}

/// Ports that nobody has now; they are taken only when a node starts.
fn free_ports<const N: usize>() -> [u16; N] {
    let sockets = [(); N].map(|()| UdpSocket::bind("127.0.0.1:0").unwrap());
    sockets.map(|socket| socket.local_addr().unwrap().port())
}

fn three() -> Cluster {
    three_with(Vec::new())
}

fn three_with(settings: Vec<(u64, String)>) -> Cluster {
    let mut cluster = Cluster::new();
    cluster.settings = settings;
    for port in free_ports::<3>() {
        cluster.init(port);
    }
    cluster.said(&["client-key"]);
    (1..=3).for_each(|node| cluster.start(node));
    cluster.until("all is well", || cluster.status().1.then_some(()));
    cluster
}

#[test]
fn a_cluster_is_set_up_used_and_survives_the_death_of_each_node_in_turn() {
    let mut cluster = three();
    assert_eq!(cluster.said(&["append", "1", "a", "b"]), "offsets 0 to 1\n");
    let mut appended = vec!["a".to_owned(), "b".to_owned()];
    for node in 1..=3 {
        cluster.kill(node);
        // The truth throughout: this node is away, and the groups have another leader as soon as there is one.
        cluster.until("the others lead", || {
            let (objects, is_well) = cluster.status();
            let away = objects.iter().find(|object| object["node"] == node).unwrap();
            assert!(!is_well && away["problem"].is_string(), "{away}");
            let groups: Vec<&Value> = objects.iter().filter(|object| object["group"].is_u64()).collect();
            let is_led = |group: &&Value| group["leader"].as_u64().is_some_and(|leader| leader != node);
            (groups.len() == 2 && groups.iter().all(is_led)).then_some(())
        });
        let record = format!("without {node}");
        cluster.said(&["append", "1", &record]);
        appended.push(record);
        cluster.start(node);
        cluster.until("all is well", || cluster.status().1.then_some(()));
    }
    let count = appended.len().to_string();
    let read: Vec<String> = cluster
        .objects(&["tail", "1", "--from", "0", "--count", &count])
        .iter()
        .map(|record| record["text"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(read, appended);
    // Each replica has them all, and says so.
    for node in ["1", "2", "3"] {
        let read = cluster.until("it has caught up", || {
            let read = cluster.run(&["read", "1", "--node", node]);
            let lines = String::from_utf8(read.stdout).unwrap();
            (lines.lines().count() == appended.len()).then_some(lines)
        });
        assert!(read.starts_with("0\ta\n1\tb\n2\twithout 1\n"), "{read}");
    }
    for node in 1..=3 {
        cluster.signal(node, Signal::TERM);
        let status = cluster.nodes[node as usize - 1].as_mut().unwrap().wait().unwrap();
        assert!(status.success(), "{status}: {}", cluster.log(node));
        assert!(cluster.log(node).contains(&format!("node {node} has stopped")));
        cluster.nodes[node as usize - 1] = None;
    }
    let none = cluster.run(&["--deadline", "1s", "status"]);
    assert_eq!(none.status.code(), Some(2));
    let error = String::from_utf8(none.stderr).unwrap();
    assert!(error.contains("no node could be reached") && error.contains("1 at 127.0.0.1"), "{error}");
    assert!(cluster.said(&["check", "n1/data"]).contains("sound"));
    assert!(cluster.said(&["dump", "n1/data", "--group", "1"]).contains("without 2"));
}

#[test]
fn groups_members_and_leaders_change_by_command() {
    let mut cluster = three();
    cluster.said(&["group", "create", "7", "--voters", "1,2"]);
    let group = cluster.until("group 7 is led", || {
        let found = cluster.run(&["group", "describe", "7", "--json"]);
        let lines = String::from_utf8(found.stdout).unwrap();
        let group: Value = serde_json::from_str(lines.lines().next()?).unwrap();
        (group["leader"].is_u64() && group["replicas"] == 2).then_some(group)
    });
    assert_eq!(group["voters"], serde_json::json!([1, 2]));
    let mut append = cluster.command(&["append", "7"]);
    let mut append = append.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    append.stdin.take().unwrap().write_all(b"one\ntwo\nthree\n").unwrap();
    let out = append.wait_with_output().unwrap();
    assert!(out.status.success() && String::from_utf8(out.stdout).unwrap().contains('2'));

    // A node that comes in: listed in the file, made known by a signal, then a member.
    let node = cluster.init(free_ports::<1>()[0]);
    (1..=3).for_each(|node| cluster.signal(node, Signal::HUP));
    cluster.start(node);
    cluster.until("node 4 is a learner", || {
        cluster.run(&["member", "add", "7", "4"]).status.success().then_some(())
    });
    let members = cluster.until("node 4 votes", || {
        let output = cluster.run(&["member", "promote", "7", "4", "--json"]);
        output.status.success().then(|| serde_json::from_slice::<Value>(&output.stdout).unwrap())
    });
    assert_eq!(members["voters"], serde_json::json!([1, 2, 4]));
    let led = cluster.until("node 4 leads", || {
        let output = cluster.run(&["leader", "transfer", "7", "--to", "4", "--json"]);
        output.status.success().then(|| serde_json::from_slice::<Value>(&output.stdout).unwrap())
    });
    assert_eq!(led["leader"], 4);
    cluster.until("it is seen to", || (cluster.leader(7) == Some(4)).then_some(()));
    let refused = cluster.run(&["leader", "transfer", "7", "--to", "3"]);
    let error = String::from_utf8(refused.stderr).unwrap();
    assert!(error.contains("node 3 has no replica"), "{error}");
    assert_eq!(cluster.objects(&["member", "remove", "7", "1"])[0]["voters"], serde_json::json!([2, 4]));

    let refused = cluster.run(&["group", "remove", "7"]);
    assert!(String::from_utf8(refused.stderr).unwrap().contains("say --yes"));
    cluster.said(&["group", "remove", "7", "--yes"]);
    cluster.until("group 7 is gone", || {
        let (objects, _) = cluster.status();
        (!objects.iter().any(|object| object["group"] == 7)).then_some(())
    });
    let gone = cluster.run(&["append", "7", "x"]);
    let error = String::from_utf8(gone.stderr).unwrap();
    assert!(!gone.status.success() && error.contains("group"), "{error}");
}

#[test]
fn a_cluster_for_trying_things_out_is_one_command() {
    let folder = tempfile::tempdir().unwrap();
    let port = free_ports::<1>()[0].min(65_000).to_string();
    let mut command = Command::new(PROGRAM);
    command.args(["dev", "--port", &port, "--groups", "1"]).current_dir(folder.path()).stdout(Stdio::piped());
    let mut dev = command.stderr(Stdio::null()).spawn().unwrap();
    let dir = folder.path().join("iroh-raft-dev");
    let ask = |args: &[&str]| {
        let mut command = Command::new(PROGRAM);
        command.arg("--cluster-file").arg(dir.join("cluster")).arg("--key").arg(dir.join("client.key"));
        command.args(args).output().unwrap()
    };
    let began = Instant::now();
    while !ask(&["--deadline", "2s", "status"]).status.success() {
        assert!(began.elapsed() < PATIENCE && dev.try_wait().unwrap().is_none(), "it never came up");
    }
    assert_eq!(ask(&["append", "1", "hello"]).stdout, b"offset 0\n");
    kill_process(Pid::from_raw(dev.id() as i32).unwrap(), Signal::INT).unwrap();
    let output = dev.wait_with_output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{said}");
    assert_eq!(said.matches("has stopped").count(), 3, "{said}");
}

#[test]
fn what_cannot_be_set_up_is_refused_with_the_remedy_and_leaves_nothing() {
    let mut cluster = Cluster::new();
    let refused = |cluster: &Cluster, args: &[&str], says: &str| {
        let output = cluster.run(args);
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{args:?}: {error}");
        assert!(error.contains(says) && error.lines().count() == 1, "{args:?}: {error}");
    };
    let init = |node, dir, address| ["init", "--node", node, "--dir", dir, "--address", address];
    refused(&cluster, &init("0", "n", "127.0.0.1:1"), "nodes count from 1");
    refused(&cluster, &init("1", "n", "0.0.0.0:1"), "could not reach it");
    refused(&cluster, &init("1", "n", "127.0.0.1:1"), "no line `cluster = NAME`");
    cluster.init(4701);
    refused(&cluster, &init("1", "n1", "127.0.0.1:1"), "is there already");
    refused(&cluster, &init("1", "other", "127.0.0.1:1"), "has node 1 already");
    let set =
        |setting| init("2", "n2", "127.0.0.1:2").into_iter().chain(["--set", setting]).collect::<Vec<_>>();
    refused(&cluster, &set("shards.cnt=2"), "did you mean shards.count?");
    refused(&cluster, &set("shards.count=none"), "not a whole number");
    assert!(!Path::new(&cluster.path("n2")).exists());
    refused(&cluster, &["client-key", "--rights", "write"], "append, read and manage");
    refused(&cluster, &["status"], "client-key");
    refused(&cluster, &["--cluster-file", "none", "status"], "cannot be read");
    refused(&cluster, &["start", "--config", "none.toml"], "iroh-raft init");
    refused(&cluster, &["config", "check"], "node.id: missing");
    let explained = cluster.said(&["config", "explain", "--config", "n1/node.toml"]);
    assert!(explained.contains("shards.count") && explained.contains("n1/node.toml:"), "{explained}");
    assert!(cluster.said(&["completions", "bash"]).contains("iroh-raft"));
}

/// The level of each finding of `doctor`, in a shell that does something first.
fn doctor(cluster: &Cluster, before: &str, args: &[&str]) -> BTreeMap<String, String> {
    let mut command = Command::new("sh");
    command.args(["-c", &format!("{before} exec \"$0\" doctor --json \"$@\""), PROGRAM]).args(args);
    let output = command.current_dir(cluster.folder.path()).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let findings: BTreeMap<String, String> = text
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap())
        .map(|finding| {
            let level = finding["level"].as_str().unwrap().to_owned();
            if level == "bad" || level == "note" {
                for key in ["right", "cost", "mend"] {
                    assert!(finding[key].as_str().is_some_and(|text| !text.is_empty()), "{finding}");
                }
            }
            (finding["name"].as_str().unwrap().to_owned(), level)
        })
        .collect();
    assert!(findings.len() > 20, "{text}{}", String::from_utf8_lossy(&output.stderr));
    let is_bad = findings.values().any(|level| level == "bad");
    assert_eq!(output.status.code(), Some(i32::from(is_bad)), "{text}");
    findings
}

#[test]
fn doctor_finds_what_is_planted_and_praises_what_is_well() {
    let mut cluster = Cluster::new();
    cluster.init(free_ports::<1>()[0]);
    let config = ["--config", "n1/node.toml"];
    let sound = doctor(&cluster, "", &config);
    let bad: Vec<_> = sound.iter().filter(|(_, level)| *level == "bad").collect();
    assert!(bad.is_empty(), "{bad:?}");

    let taken = UdpSocket::bind("127.0.0.1:0").unwrap();
    let bind = format!("node.bind={}", taken.local_addr().unwrap());
    let planted = |before: &str, setting: &str| {
        let args: Vec<&str> = config.into_iter().chain(["--set", setting]).collect();
        doctor(&cluster, before, &args)
    };
    let none = "node.log=info";
    for (before, setting, name) in [
        ("ulimit -l 64;", none, "lockable memory"),
        ("ulimit -n 60;", none, "open files"),
        ("", "node.data_dir=/dev/shm/iroh-raft", "file system"),
        ("", "storage.free_bytes_min=1000TiB", "free space"),
        ("", "storage.journal_cache_bytes=1000TiB", "memory"),
        ("", "shards.count=1000", "CPUs"),
        ("", "bridge.cpus=4095", "pinning"),
        ("", &bind, "address"),
        ("chmod 644 n1/node.key;", none, "key"),
        ("", "shards.cont=1", "configuration"),
        ("rm cluster;", none, "configuration"),
    ] {
        let findings = planted(before, setting);
        assert_eq!(findings[name], "bad", "{before} {setting}: {findings:?}");
    }
}

#[test]
fn doctor_asks_the_nodes_that_run_what_time_it_is() {
    let mut cluster = three();
    let skew = |cluster: &Cluster| {
        let output = cluster.run(&["doctor", "--config", "n1/node.toml", "--json"]);
        let text = String::from_utf8(output.stdout).unwrap();
        let findings = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        let skews: Vec<_> = findings.filter(|finding| finding["name"] == "clock skew").collect();
        assert_eq!(skews.len(), 1, "{text}");
        let said = |key: &str| skews[0][key].as_str().unwrap().to_owned();
        (said("level"), said("found"))
    };
    // They are on one machine.
    let (level, found) = skew(&cluster);
    assert_eq!(level, "good", "{found}");
    for node in 1..=3 {
        assert!(found.contains(&format!("node {node} ")), "{found}");
    }
    assert!(!found.contains("does not answer"), "{found}");
    cluster.kill(3);
    let (level, found) = skew(&cluster);
    assert_eq!(level, "good", "{found}");
    assert!(found.contains("node 3 does not answer"), "{found}");
    (1..=2).for_each(|node| cluster.kill(node));
    let (level, found) = skew(&cluster);
    assert_eq!(level, "unknown", "{found}");
}

#[test]
fn what_doctor_measures_is_what_the_node_uses() {
    let mut cluster = Cluster::new();
    cluster.init(free_ports::<1>()[0]);
    let bench = ["doctor", "--bench", "--config", "n1/node.toml", "--set", "storage.backend=auto"];
    let measure = |cluster: &Cluster| {
        let args: Vec<&str> = bench.into_iter().chain(["--json"]).collect();
        let output = cluster.run(&args);
        let text = String::from_utf8(output.stdout).unwrap();
        let findings: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let measured =
            findings.into_iter().filter(|finding| finding["name"].as_str().unwrap().starts_with("bench: "));
        let measured: BTreeMap<String, String> = measured
            .map(|finding| {
                assert_eq!(finding["level"], "good", "{finding}");
                let text = |key: &str| finding[key].as_str().unwrap().to_owned();
                (text("name"), text("found"))
            })
            .collect();
        assert_eq!(measured.len(), 6, "{text}{}", String::from_utf8_lossy(&output.stderr));
        measured["bench: backend"].split("; kept").next().unwrap().to_owned()
    };
    // Before the first start, and again: the last one counts, to the microsecond.
    measure(&cluster);
    let calibration = measure(&cluster);
    cluster.settings = vec![(1, "storage.backend=auto".to_owned())];
    cluster.start(1);
    cluster.until("the node says how it writes", || {
        let log = cluster.log(1);
        log.contains("files are written by calibration").then_some(log)
    });
    let log = cluster.log(1);
    assert!(log.contains(&calibration), "{calibration}\n{log}");
    assert!(!log.contains("calibrated"), "it did not measure by itself: {log}");

    let refused = cluster.run(&bench);
    let why = String::from_utf8(refused.stderr).unwrap();
    assert_eq!(refused.status.code(), Some(2), "{why}");
    assert!(why.contains("is in use by another process"), "{why}");
    let refused = cluster.run(&["doctor", "--bench"]);
    assert_eq!(refused.status.code(), Some(2));
    let why = String::from_utf8(refused.stderr).unwrap();
    assert!(why.contains("--bench needs the file of a node"), "{why}");
}

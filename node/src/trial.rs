//! `iroh-raft tune --try`: clusters of three nodes on this machine with a node's settings as they are and as they are proposed, in turns,
//! under the load generator.

use std::fs;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use iroh_raft::Preset;
use serde_json::{Value, json};
use tokio::signal::unix::{SignalKind, signal};

use crate::cli::Workload;
use crate::config::settings::{NodeConfig, PRESETS, SETTINGS};
use crate::local::Folder;
use crate::say::Failure;
use crate::tune::Proposal;

const NODES: u64 = 3;
/// Time for the groups of a new cluster to have leaders.
const READY_DEADLINE: Duration = Duration::from_secs(60);
/// Time for a load beyond that which it measures: its warm-up, and the audit.
const LOAD_DEADLINE: Duration = Duration::from_secs(300);
/// Pause before it is looked again.
const LOOK: Duration = Duration::from_millis(200);

/// Settings that a trial does not take over: a node's own, and those that mean these CPUs or this cluster. Three nodes share the
/// machine; on the same CPUs they would measure each other.
const LEFT_OUT: [&str; 9] = [
    "node.",
    "metrics.",
    "groups.count",
    "groups.voters",
    "shards.pinning",
    "shards.placed",
    "bridge.cpus",
    "raft.priorities",
    "storage.free_bytes_min",
];

/// How a trial is made.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    pub(crate) workload: Workload,
    /// Runs with each of the two.
    pub(crate) runs: u32,
    /// Of each run, measured; a warm-up comes before.
    pub(crate) duration: Duration,
}

/// The load of a workload: groups, and what the load generator is told.
fn load(workload: Workload) -> (u32, &'static [&'static str]) {
    match workload {
        Workload::Throughput => (8, &["--in-flight", "2048"]),
        Workload::LargeRecords => (8, &["--record-bytes", "16384", "--in-flight", "64"]),
        Workload::ManyGroups => (512, &["--in-flight", "4096", "--warmup", "5s"]),
        Workload::Latency => (8, &["--clients", "1", "--in-flight", "1"]),
    }
}

/// Whether a trial takes a setting over.
fn is_tried(key: &str) -> bool {
    !LEFT_OUT.iter().any(|left| key == *left || (left.ends_with('.') && key.starts_with(left)))
}

/// Measures the settings as they are and as they are proposed, and compares. `disk` is a folder on the disk to measure.
pub(crate) fn run(
    plan: Plan,
    present: &NodeConfig,
    proposals: &[Proposal],
    disk: &Path,
) -> Result<ExitCode, Failure> {
    let program = std::env::current_exe()
        .map_err(Failure::io("this program's own file is not found"))?
        .with_file_name("loadgen");
    if !program.exists() {
        let build = "cargo build --release -p iroh-raft-loadgen";
        return Err(Failure::Refused(format!("--try needs {}: build it with `{build}`", program.display())));
    }
    let (tried, left): (Vec<_>, Vec<_>) = proposals.iter().partition(|proposal| is_tried(proposal.key));
    let keys = |of: &[&Proposal]| of.iter().map(|proposal| proposal.key).collect::<Vec<_>>().join(", ");
    if tried.is_empty() {
        let why = "three nodes share this machine, so a trial does not take them over";
        return Err(Failure::Refused(match &left[..] {
            [] => "--try has nothing to compare: no setting should be another one".into(),
            left => format!("--try has nothing to compare: {why} ({})", keys(left)),
        }));
    }
    let mut proposed = present.clone();
    for Proposal { key, proposed: value, .. } in &tried {
        if let Some(setting) = SETTINGS.iter().find(|setting| setting.key == *key) {
            (setting.field.write)(&mut proposed, value).map_err(Failure::Refused)?;
        }
    }
    out!("compared: {}", keys(&tried));
    if !left.is_empty() {
        out!("left out, for three nodes share this machine: {}", keys(&left));
    }
    let stop = stop_by_signal()?;
    let folder = tempfile::Builder::new().prefix("iroh-raft-trial-").tempdir_in(disk);
    let folder = folder.map_err(Failure::io(format!("no folder can be made in {}", disk.display())))?;
    let mut results = [("now", present, Vec::new()), ("proposed", &proposed, Vec::new())];
    for round in 1..=plan.runs {
        // In turns: what the machine does meanwhile happens to both.
        for (name, config, runs) in &mut results {
            let cluster = Folder::new(&folder.path().join(format!("{name}-{round}")));
            let result = measure(plan, config, &cluster, &program, &stop)?;
            let figure = |at: &str| result.pointer(at).and_then(Value::as_f64).unwrap_or_default();
            let (rate, p99_us) = (figure("/throughput_records_per_s"), figure("/latency_us/p99"));
            out!("{round} of {}, {name}: {rate:.0} records/s, p99 {:.2} ms", plan.runs, p99_us / 1000.0);
            runs.push(result);
            // A disk that fills up is measured otherwise; what fails to go now goes with the folder.
            let _ = fs::remove_dir_all(cluster.path());
        }
    }
    let mut files = Vec::new();
    for (name, _, runs) in &results {
        let file = folder.path().join(format!("{name}.json"));
        fs::write(&file, json!({ "runs": runs }).to_string())
            .map_err(Failure::io(format!("{} cannot be written", file.display())))?;
        files.push(file);
    }
    let status = Command::new(&program).arg("compare").args(&files).status();
    let status = status.map_err(Failure::io("the load generator cannot be run"))?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// One run on a cluster of its own.
fn measure(
    plan: Plan,
    config: &NodeConfig,
    cluster: &Folder,
    program: &Path,
    stop: &AtomicBool,
) -> Result<Value, Failure> {
    let (groups, load) = load(plan.workload);
    let mut settings = settings_of(config);
    settings.push(("groups.count".to_owned(), groups.to_string()));
    let (preset, _) = PRESETS[0];
    cluster.set_up(("trial", preset), &free_addresses()?, &settings)?;
    let mut nodes = cluster.start(NODES, true)?;
    let until = Instant::now() + READY_DEADLINE;
    while !is_ready(cluster)? {
        if let Some(node) = nodes.ended() {
            return Err(Failure::Refused(format!("node {node} ended: {}", cluster.log_end(node))));
        }
        if Instant::now() >= until {
            let seconds = READY_DEADLINE.as_secs();
            return Err(Failure::Refused(format!(
                "no group leads within {seconds} s; node 1 says: {}",
                cluster.log_end(1)
            )));
        }
        wait_a_little(stop)?;
    }
    let file = cluster.path().join("result.json");
    let mut command = Command::new(program);
    command.arg("run").arg("--cluster").arg(cluster.cluster_file()).arg("--key").arg(cluster.key());
    command.arg("--json").arg(&file).arg("--duration").arg(format!("{}ms", plan.duration.as_millis()));
    // Progress of each run is of no interest; why it failed is.
    let log = cluster.path().join("load.log");
    let said = fs::File::create(&log).map_err(Failure::io(format!("{} cannot be written", log.display())))?;
    command.args(load).stdin(Stdio::null()).stdout(Stdio::null()).stderr(said);
    let spawned = command.spawn().map_err(Failure::io("the load generator cannot be run"))?;
    let mut generator = Running(spawned);
    let until = Instant::now() + plan.duration + LOAD_DEADLINE;
    let status = loop {
        let ended = generator.0.try_wait().map_err(Failure::io("the load generator is lost"))?;
        if let Some(status) = ended {
            break status;
        }
        if Instant::now() >= until {
            return Err(Failure::Refused("the load generator does not end; it was killed".into()));
        }
        wait_a_little(stop)?;
    };
    if !status.success() {
        let said = fs::read_to_string(&log).unwrap_or_default();
        let last = said.lines().last().unwrap_or("it does not say why");
        return Err(Failure::Refused(format!("the load generator failed: {last}")));
    }
    let text = fs::read(&file).map_err(Failure::io(format!("{} cannot be read", file.display())))?;
    serde_json::from_slice(&text).map_err(|error| Failure::Refused(format!("{}: {error}", file.display())))
}

/// A process that is killed with this.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What SIGINT and SIGTERM set from now on: nodes and folders of a trial do not outlive it.
fn stop_by_signal() -> Result<Arc<AtomicBool>, Failure> {
    let stop = Arc::new(AtomicBool::new(false));
    let set = stop.clone();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(Failure::io("cannot start a runtime"))?;
    let on = |kind| {
        let _entered = runtime.enter();
        signal(kind).map_err(Failure::io("cannot wait for signals"))
    };
    let (mut int, mut term) = (on(SignalKind::interrupt())?, on(SignalKind::terminate())?);
    let wait = move || {
        runtime.block_on(async {
            tokio::select! { _ = int.recv() => {}, _ = term.recv() => {} }
        });
        set.store(true, Ordering::Relaxed);
    };
    let thread = std::thread::Builder::new().name("signals".into()).spawn(wait);
    thread.map_err(Failure::io("cannot start a thread"))?;
    Ok(stop)
}

fn wait_a_little(stop: &AtomicBool) -> Result<(), Failure> {
    std::thread::sleep(LOOK);
    match stop.load(Ordering::Relaxed) {
        true => Err(Failure::Refused("interrupted".into())),
        false => Ok(()),
    }
}

/// The settings that a trial takes over, where they are not the default.
fn settings_of(config: &NodeConfig) -> Vec<(String, String)> {
    let default = NodeConfig::new(Preset::Production);
    let tried = SETTINGS.iter().filter(|setting| is_tried(setting.key));
    tried
        .map(|setting| (setting.key, (setting.field.read)(config), (setting.field.read)(&default)))
        .filter(|(_, value, default)| value != default)
        .map(|(key, value, _)| (key.to_owned(), value))
        .collect()
}

/// Whether all nodes are there and all groups have leaders.
fn is_ready(cluster: &Folder) -> Result<bool, Failure> {
    let own = std::env::current_exe().map_err(Failure::io("this program's own file is not found"))?;
    let mut command = Command::new(own);
    command.arg("--cluster-file").arg(cluster.cluster_file()).arg("--key").arg(cluster.key()).arg("status");
    let status = command.stdout(Stdio::null()).stderr(Stdio::null()).status();
    status.map(|status| status.success()).map_err(Failure::io("this program cannot be run"))
}

/// UDP addresses on loopback that are free now; all are held until the last is found, so that they differ.
fn free_addresses() -> Result<Vec<SocketAddr>, Failure> {
    let bind = || UdpSocket::bind((Ipv4Addr::LOCALHOST, 0));
    let sockets: io::Result<Vec<UdpSocket>> = (0..NODES).map(|_| bind()).collect();
    let addresses = sockets.and_then(|sockets| sockets.iter().map(UdpSocket::local_addr).collect());
    addresses.map_err(Failure::io("no free UDP port"))
}

/// A folder on the disk of a node: where its data is, or will be.
pub(crate) fn disk_of(config: &NodeConfig) -> PathBuf {
    let data = Path::new(".").join(&config.engine.data_dir);
    // Not in the data folder itself, in which a node knows everything by name.
    data.ancestors().skip(1).find(|folder| folder.is_dir()).unwrap_or(Path::new(".")).to_path_buf()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trial_takes_over_what_can_be_compared_on_one_machine() {
        let mut config = NodeConfig::new(Preset::Production);
        for (key, value) in
            [("shards.count", "2"), ("storage.move_bytes", "32MiB"), ("bridge.cpus", "1"), ("node.id", "7")]
        {
            let setting = SETTINGS.iter().find(|setting| setting.key == key).unwrap();
            (setting.field.write)(&mut config, value).unwrap();
        }
        let keys: Vec<String> = settings_of(&config).into_iter().map(|(key, _)| key).collect();
        assert_eq!(keys, ["shards.count", "storage.move_bytes"]);
        for left in LEFT_OUT {
            assert!(SETTINGS.iter().any(|setting| setting.key.starts_with(left)), "{left}");
        }
    }
}

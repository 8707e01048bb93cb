//! The load generator of iroh-raft.
//!
//! `loadgen quick` starts a cluster of its own, drives it with networked clients, and then audits
//! it: it kills every node, starts them again, and reads every acknowledged record back from every
//! replica. It exits with 0 only when all of them are there, once and in place.
//!
//! `loadgen find` searches the highest rate at which an objective holds, `loadgen compare` says whether one series of runs is
//! worse than another.
//!
//! `loadgen idle` starts one with many groups, leaves it alone, and says what that costs.
//!
//! `loadgen reads` asks state machines, linearizably and by lease, and counts stale answers.
//!
//! `loadgen snapshot` brings a large state machine to a new node while others write.
//!
//! It never looks into the engine while it measures: clients speak the client protocol, nodes are
//! processes.
#![forbid(unsafe_code)]

mod audit;
mod cluster;
mod compare;
mod driver;
mod fault;
mod find;
mod hdr;
mod html;
mod idle;
mod ledger;
mod machine;
mod node;
mod plot;
mod quick;
mod readback;
mod reads;
mod record;
mod recorder;
mod report;
mod schedule;
mod snapshot;
mod sweep;
mod watch;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use iroh_raft::storage::BackendChoice;
use tracing_subscriber::EnvFilter;

use cluster::ClusterPlan;
use fault::{Fault, Signal, Whom};
use find::{FindPlan, Objective};
use idle::IdlePlan;
use quick::{Files, QuickError, QuickPlan};
use reads::ReadsPlan;
use record::RECORD_BYTES_MIN;
use snapshot::{Side, SnapshotPlan};
use sweep::SweepPlan;

/// Largest record that the nodes take by default, in bytes.
const RECORD_BYTES_MAX: usize = 1 << 20;
/// What a shell expects of a program that Ctrl-C ended.
const EXIT_INTERRUPTED: u8 = 130;

#[derive(Parser, Debug)]
#[command(
    name = "loadgen",
    version,
    about = "Load generator for iroh-raft, with an audit of every acknowledged record"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Start nodes on loopback, drive them, kill them, and read every acknowledged record back.
    Quick(Quick),
    /// Search the highest rate at which an objective holds, such as p99=5ms.
    Find(Find),
    /// Measure latency over throughput, from nearly nothing to as much as the cluster takes.
    Sweep(SweepArgs),
    /// Compare two results of `quick --json`; ends with status 1 if the second is worse by more than chance and tolerance.
    Compare(Compare),
    /// Start nodes with many groups that nobody uses: what they cost, and how soon one answers.
    Idle(Idle),
    /// Start nodes with state machines and ask them, linearizably and by lease; no answer may be stale.
    Reads(Reads),
    /// Start nodes, fill a state machine, and bring it to a new node by a snapshot, under load.
    Snapshot(Snapshot),
    /// Run one node; started by the others.
    #[command(hide = true)]
    Node {
        #[arg(long)]
        config: PathBuf,
    },
}

#[derive(Args, Debug)]
struct Quick {
    /// Nodes, each a process of its own.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=15))]
    nodes: u16,
    /// Shards of each node.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=256))]
    shards: u16,
    /// Threads of each node's bridge to the network.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=64))]
    bridge_threads: u16,
    /// Raft groups, each on all nodes.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    groups: u32,
    /// Bytes of a record, at least 16: client, group and sequence are in it.
    #[arg(long, default_value_t = 64, value_parser = record_bytes)]
    record_bytes: usize,
    /// Closed-loop clients.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    clients: u32,
    /// Records each client keeps in flight, spread over the groups.
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    in_flight: u32,
    /// Threads for the clients; those of one thread share its connections.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=256))]
    client_threads: u32,
    /// Clients in the processes of the nodes, each for the groups that its node leads: no network between them. `--clients`
    /// and `--in-flight` are then those of each node.
    #[arg(long, conflicts_with_all = ["client_threads", "rate", "faults", "replace_nodes"])]
    embedded: bool,
    /// Open loop: records a second that are due, whatever became of those before; latency counts from when they were
    /// due. Without it a record is sent as another one is answered.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=100_000_000))]
    rate: Option<u32>,
    /// Measured time, such as 10s or 500ms.
    #[arg(long, default_value = "10s", value_parser = duration)]
    duration: Duration,
    /// Time before it that is not measured.
    #[arg(long, default_value = "2s", value_parser = duration)]
    warmup: Duration,
    /// Runs, each on a cluster of its own; several give medians and their spread.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100), conflicts_with = "data_dir")]
    repeat: u32,
    /// How the nodes' files are written: through the page cache (buffered), past it (direct), or as each node finds best
    /// at its first start (auto).
    #[arg(long, default_value = "auto")]
    backend: BackendChoice,
    /// New or empty folder for the nodes' data, on a disk; it stays. Default: a temporary one that
    /// is removed when the audit is clean.
    #[arg(long)]
    data_dir: Option<PathBuf>,
    /// File for the results as one JSON object.
    #[arg(long)]
    json: Option<PathBuf>,
    /// File for the latencies, second by second, as an interval log of HdrHistogram.
    #[arg(long, conflicts_with = "embedded")]
    hdr_log: Option<PathBuf>,
    /// File for the latencies over percentiles, as HdrHistogram's tools draw them.
    #[arg(long)]
    hgrm: Option<PathBuf>,
    /// File for a page with pictures, which needs nothing else.
    #[arg(long)]
    html: Option<PathBuf>,
    /// A fault on the way, as `KIND@TIME[+LENGTH][:WHOM]` from the start of the measured time: kill@5s (SIGKILL to the node that
    /// leads most groups, started again after two seconds), stop@2s+500ms:all (SIGSTOP), kill@1s:3 (node 3). May be given several times.
    #[arg(long = "fault", value_name = "FAULT")]
    faults: Vec<Fault>,
    /// How long a connection of the clients may be without a sign of life before it counts as lost, and what was under way on it
    /// as unknown. Default: the client's own, 600ms.
    #[arg(long, value_parser = duration)]
    idle_timeout: Option<Duration>,
    /// How many nodes are replaced, in turn: SIGKILL, the disk removed, and a new node with a new key takes its place
    /// in every group. Begins with the measured time; the next one follows when the new one has caught up.
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=100))]
    replace_nodes: u32,
}

#[derive(Args, Debug)]
struct Find {
    /// A percentile of the latency and how long it may be: p50, p90, p99, p99.9, p99.99 or max.
    #[arg(long)]
    slo: Objective,
    /// The first rate that is tried, in records a second.
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(10..=100_000_000))]
    from: u32,
    /// The rate is right to so many percent.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=100))]
    precision: u32,
    /// Measured time of each rate.
    #[arg(long, default_value = "10s", value_parser = duration)]
    trial: Duration,
    #[command(flatten)]
    load: Quick,
}

impl Find {
    fn plan(self) -> Result<FindPlan, String> {
        let (objective, from, precision) = (self.slo, self.from, f64::from(self.precision) / 100.0);
        let trial = self.trial;
        let files = [&self.load.hdr_log, &self.load.hgrm, &self.load.html];
        if files.into_iter().any(Option::is_some) {
            return Err("find writes --json alone: leave out --hdr-log, --hgrm and --html".into());
        }
        if self.load.rate.is_some()
            || self.load.embedded
            || self.load.repeat > 1
            || self.load.data_dir.is_some()
        {
            return Err("find chooses the rate, on the network, in folders of its own: leave out --rate, --embedded, --repeat and --data-dir".into());
        }
        let json = self.load.json.clone();
        let load = Quick { duration: trial, ..self.load }.plan()?;
        Ok(FindPlan { load, objective, from, precision, json })
    }
}

#[derive(Args, Debug)]
struct SweepArgs {
    /// Rates, in records a second; default: parts of what the closed loop gives.
    #[arg(long, value_delimiter = ',', value_parser = clap::value_parser!(u32).range(1..=100_000_000))]
    rates: Vec<u32>,
    #[command(flatten)]
    load: Quick,
}

impl SweepArgs {
    fn plan(self) -> Result<SweepPlan, String> {
        if self.load.rate.is_some()
            || self.load.embedded
            || self.load.repeat > 1
            || self.load.data_dir.is_some()
        {
            return Err("sweep chooses the rates, on the network, in folders of its own: leave out --rate, --embedded, --repeat and --data-dir".into());
        }
        if self.load.hdr_log.is_some() || self.load.hgrm.is_some() {
            return Err("sweep writes --json and --html: leave out --hdr-log and --hgrm".into());
        }
        let (json, html) = (self.load.json.clone(), self.load.html.clone());
        Ok(SweepPlan { load: self.load.plan()?, rates: self.rates, json, html })
    }
}

#[derive(Args, Debug)]
struct Compare {
    /// The first file; with `quick --repeat 4` or more it can be told what chance does.
    a: PathBuf,
    /// The second one.
    b: PathBuf,
    /// A difference of up to so many percent is none.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(0..=1000))]
    tolerance: u32,
    /// Compares runs of different settings, too: that is then what is compared.
    #[arg(long)]
    any_config: bool,
    /// Prints JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Args, Debug)]
struct Idle {
    /// Nodes, each a process of its own.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=15))]
    nodes: u16,
    /// Shards of each node.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=256))]
    shards: u16,
    /// Raft groups, each on all nodes.
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(2..=1_000_000))]
    groups: u32,
    /// Measured time, such as 10s or 500ms.
    #[arg(long, default_value = "20s", value_parser = duration)]
    duration: Duration,
    /// New or empty folder for the nodes' data, on a disk; it stays. Default: a temporary one.
    #[arg(long)]
    data_dir: Option<PathBuf>,
    /// File for the results as one JSON object.
    #[arg(long)]
    json: Option<PathBuf>,
}

#[derive(Args, Debug)]
struct Reads {
    /// Nodes, each a process of its own.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=15))]
    nodes: u16,
    /// Shards of each node.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=256))]
    shards: u16,
    /// Raft groups, each on all nodes.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    groups: u32,
    /// Questions in flight, spread over the groups.
    #[arg(long, default_value_t = 4096, value_parser = clap::value_parser!(u32).range(1..=16_384))]
    in_flight: u32,
    /// Time for each of the three measurements, such as 10s or 500ms.
    #[arg(long, default_value = "10s", value_parser = duration)]
    duration: Duration,
    /// New or empty folder for the nodes' data, on a disk; it stays. Default: a temporary one.
    #[arg(long)]
    data_dir: Option<PathBuf>,
    /// File for the results as one JSON object.
    #[arg(long)]
    json: Option<PathBuf>,
}

#[derive(Args, Debug)]
struct Snapshot {
    /// Size of the state in MiB. Each of the four nodes has it in memory, and more than twice on the disk.
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u64).range(8..=65_536))]
    state_mib: u64,
    /// Time for which the load is measured before the transfer, such as 10s or 500ms.
    #[arg(long, default_value = "10s", value_parser = duration)]
    duration: Duration,
    /// Send SIGKILL to one side when about half is there, and start it again.
    #[arg(long)]
    kill: Option<Side>,
    /// New or empty folder for the nodes' data, on a disk; it stays. Default: a temporary one.
    #[arg(long)]
    data_dir: Option<PathBuf>,
    /// File for the results as one JSON object.
    #[arg(long)]
    json: Option<PathBuf>,
}

impl Snapshot {
    fn plan(self) -> SnapshotPlan {
        SnapshotPlan {
            state_mib: self.state_mib,
            duration: self.duration,
            kill: self.kill,
            data_dir: self.data_dir,
            json: self.json,
        }
    }
}

impl Reads {
    fn plan(self) -> ReadsPlan {
        ReadsPlan {
            cluster: ClusterPlan {
                nodes: self.nodes,
                shards: self.shards,
                bridge_threads: 1,
                groups: self.groups,
                record_bytes: RECORD_BYTES_MIN,
                has_state_machines: true,
                spares: 0,
                lag_entries_max: None,
                backend: BackendChoice::Auto,
            },
            in_flight: self.in_flight,
            duration: self.duration,
            data_dir: self.data_dir,
            json: self.json,
        }
    }
}

impl Idle {
    fn plan(self) -> IdlePlan {
        IdlePlan {
            cluster: ClusterPlan {
                nodes: self.nodes,
                shards: self.shards,
                bridge_threads: 1,
                groups: self.groups,
                record_bytes: RECORD_BYTES_MIN,
                has_state_machines: false,
                spares: 0,
                lag_entries_max: None,
                backend: BackendChoice::Auto,
            },
            duration: self.duration,
            data_dir: self.data_dir,
            json: self.json,
        }
    }
}

impl Quick {
    fn plan(self) -> Result<QuickPlan, String> {
        if self.duration.is_zero() {
            return Err("--duration 0 measures nothing: give at least 1ms".into());
        }
        for Fault { signal, at, whom, .. } in &self.faults {
            let end = self.duration;
            if *at >= end {
                return Err(format!(
                    "--fault at {at:?} is after the end: it must be below --duration {end:?}"
                ));
            }
            if matches!(whom, Whom::Node(number) if *number > self.nodes) {
                return Err(format!("--fault to {whom:?}: there are {} nodes", self.nodes));
            }
            // Who stands still has no leader to lose; who is killed has.
            if self.nodes < 3 && *signal == Signal::Kill && *whom != Whom::All {
                return Err("--fault kill needs --nodes 3 or more: fewer have no quorum without one".into());
            }
        }
        if self.replace_nodes > 0 && self.nodes < 3 {
            return Err("--replace-nodes needs --nodes 3 or more: fewer have no quorum without one".into());
        }
        if self.replace_nodes > 0 && !self.faults.is_empty() {
            return Err("--replace-nodes and --fault exclude each other: run them one by one".into());
        }
        let spares = u16::try_from(self.replace_nodes).unwrap_or(u16::MAX);
        Ok(QuickPlan {
            cluster: ClusterPlan {
                nodes: self.nodes,
                shards: self.shards,
                bridge_threads: self.bridge_threads,
                groups: self.groups,
                record_bytes: self.record_bytes,
                has_state_machines: false,
                spares,
                lag_entries_max: None,
                backend: self.backend,
            },
            clients: self.clients,
            in_flight: self.in_flight,
            client_threads: self.client_threads,
            is_embedded: self.embedded,
            per_s: self.rate,
            repeat: self.repeat,
            duration: self.duration,
            warmup: self.warmup,
            data_dir: self.data_dir,
            json: self.json,
            files: Files { hdr_log: self.hdr_log, hgrm: self.hgrm, html: self.html },
            faults: self.faults,
            idle_timeout: self.idle_timeout,
            replacements: self.replace_nodes,
        })
    }
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("warn")))
        .with_writer(std::io::stderr)
        .init();
    match cli.command {
        Command::Node { config } => exit(node::run(&config)),
        Command::Idle(idle) => {
            let plan = idle.plan();
            run_until_interrupted(|stop| idle::run(&plan, stop))
        }
        Command::Reads(reads) => {
            let plan = reads.plan();
            run_until_interrupted(|stop| reads::run(&plan, stop))
        }
        Command::Snapshot(snapshot) => {
            let plan = snapshot.plan();
            run_until_interrupted(|stop| snapshot::run(&plan, stop))
        }
        Command::Quick(quick) => match quick.plan() {
            Ok(plan) => run_until_interrupted(|stop| quick::run(&plan, stop)),
            Err(problem) => refuse(&problem),
        },
        Command::Find(find) => match find.plan() {
            Ok(plan) => run_until_interrupted(|stop| find::run(&plan, stop)),
            Err(problem) => refuse(&problem),
        },
        Command::Sweep(sweep) => match sweep.plan() {
            Ok(plan) => run_until_interrupted(|stop| sweep::run(&plan, stop)),
            Err(problem) => refuse(&problem),
        },
        Command::Compare(Compare { a, b, tolerance, any_config, json }) => {
            match compare::run(&a, &b, f64::from(tolerance) / 100.0, (any_config, json)) {
                Ok(is_no_worse) => exit(is_no_worse),
                Err(error) => refuse(&error.to_string()),
            }
        }
    }
}

fn refuse(problem: &str) -> ExitCode {
    eprintln!("{problem}");
    ExitCode::from(2)
}

fn run_until_interrupted(run: impl FnOnce(&Arc<AtomicBool>) -> Result<bool, QuickError>) -> ExitCode {
    let stop = Arc::new(AtomicBool::new(false));
    if let Err(error) = watch_for_interrupt(stop.clone()) {
        eprintln!("Ctrl-C will not end this in order: {error}");
    }
    match run(&stop) {
        Ok(is_clean) => exit(is_clean),
        Err(error) => {
            eprintln!("{error}");
            match error {
                QuickError::Interrupted => ExitCode::from(EXIT_INTERRUPTED),
                _ => ExitCode::FAILURE,
            }
        }
    }
}

fn exit(is_good: bool) -> ExitCode {
    if is_good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Sets `stop` at the first Ctrl-C; the second ends the process at once (the nodes end with it).
fn watch_for_interrupt(stop: Arc<AtomicBool>) -> std::io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let watch = move || {
        runtime.block_on(async {
            while tokio::signal::ctrl_c().await.is_ok() {
                if stop.swap(true, Ordering::Relaxed) {
                    std::process::exit(EXIT_INTERRUPTED.into());
                }
                eprintln!("interrupted: ending the nodes");
            }
        });
    };
    std::thread::Builder::new().name("interrupt".into()).spawn(watch).map(drop)
}

fn record_bytes(text: &str) -> Result<usize, String> {
    let bytes: usize = text.parse().map_err(|_| format!("{text} is not a number of bytes"))?;
    if (RECORD_BYTES_MIN..=RECORD_BYTES_MAX).contains(&bytes) {
        return Ok(bytes);
    }
    Err(format!(
        "a record has {RECORD_BYTES_MIN} to {RECORD_BYTES_MAX} bytes: its first {RECORD_BYTES_MIN} say who sent it"
    ))
}

/// A duration such as `10s`, `1.5s`, `250ms` or `2m`.
fn duration(text: &str) -> Result<Duration, String> {
    let digits = text.trim_end_matches(|letter: char| letter.is_ascii_alphabetic());
    let seconds = match &text[digits.len()..] {
        "ms" => 1e-3,
        "s" => 1.0,
        "m" => 60.0,
        _ => return Err(format!("{text} is not a duration: write it as 10s, 500ms or 2m")),
    };
    let number: f64 = digits.parse().map_err(|_| format!("{digits} is not a number"))?;
    Duration::try_from_secs_f64(number * seconds).map_err(|_| format!("{text} is out of range"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(args: &[&str]) -> Result<QuickPlan, String> {
        let args = ["loadgen", "quick"].iter().chain(args);
        match Cli::try_parse_from(args).map_err(|error| error.to_string())?.command {
            Command::Quick(quick) => quick.plan(),
            _ => unreachable!("quick was asked for"),
        }
    }

    #[test]
    fn the_defaults_are_the_documented_ones() {
        let plan = plan(&[]).unwrap();
        assert_eq!((plan.cluster.nodes, plan.cluster.shards, plan.cluster.groups), (3, 1, 8));
        assert_eq!((plan.cluster.record_bytes, plan.clients, plan.in_flight), (64, 8, 256));
        assert_eq!((plan.duration, plan.warmup), (Duration::from_secs(10), Duration::from_secs(2)));
        assert!(plan.data_dir.is_none() && plan.json.is_none() && plan.faults.is_empty());
    }

    #[test]
    fn impossible_settings_are_refused_with_a_reason() {
        assert!(plan(&["--record-bytes", "15"]).unwrap_err().contains("16 to 1048576 bytes"));
        assert!(plan(&["--duration", "10"]).unwrap_err().contains("10s, 500ms or 2m"));
        assert!(plan(&["--duration", "0s"]).unwrap_err().contains("measures nothing"));
        assert!(plan(&["--fault", "stop@10s"]).unwrap_err().contains("after the end"));
        assert!(plan(&["--fault", "crash@1s"]).unwrap_err().contains("kill@5s"));
        assert!(plan(&["--fault", "kill@1s:4"]).unwrap_err().contains("there are 3 nodes"));
        assert!(plan(&["--fault", "kill@1s", "--nodes", "2"]).unwrap_err().contains("quorum"));
        assert!(plan(&["--replace-nodes", "1", "--nodes", "2"]).unwrap_err().contains("quorum"));
        assert!(plan(&["--replace-nodes", "1", "--fault", "kill@1s"]).unwrap_err().contains("exclude"));
        assert_eq!(plan(&["--fault", "kill@1s", "--fault", "stop@5s:all"]).unwrap().faults.len(), 2);
        assert!(plan(&["--nodes", "0"]).is_err());
    }

    #[test]
    fn durations_are_read_with_their_unit() {
        assert_eq!(duration("1.5s"), Ok(Duration::from_millis(1500)));
        assert_eq!(duration("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(duration("2m"), Ok(Duration::from_secs(120)));
        assert!(duration("-1s").is_err() && duration("s").is_err() && duration("1h").is_err());
    }
}

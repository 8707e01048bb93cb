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
//! `loadgen versus` (feature `rivals`) has other systems beside ours under the same load.
//!
//! It never looks into the engine while it measures: clients speak the client protocol, nodes are
//! processes.
#![forbid(unsafe_code)]

mod ack_log;
mod args;
mod arrivals;
mod audit;
mod clients;
mod cluster;
mod compare;
mod driver;
mod fault;
mod find;
mod follow;
mod followed;
mod hdr;
mod html;
mod idle;
mod lanes;
mod later;
mod ledger;
mod machine;
mod mix;
mod mixed;
mod node;
mod partition;
mod plot;
mod progress;
mod quick;
mod readback;
mod reading;
mod reads;
mod record;
mod recorder;
mod report;
#[cfg(feature = "rivals")]
mod rival;
mod running;
mod runs;
mod schedule;
mod sizes;
mod skew;
mod snapshot;
mod sweep;
mod target;
#[cfg(feature = "rivals")]
mod versus;
mod watch;
mod workload;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use iroh_raft::storage::BackendChoice;
use tracing_subscriber::EnvFilter;

use args::{Audit, Find, Quick, Run, SweepArgs};
use cluster::ClusterPlan;
use idle::IdlePlan;
use quick::QuickError;
use reads::ReadsPlan;
use record::RECORD_BYTES_MIN;
use snapshot::{Side, SnapshotPlan};

/// What a shell expects of a program that Ctrl-C ended.
const EXIT_INTERRUPTED: u8 = 130;

#[derive(Parser, Debug)]
#[command(
    name = "loadgen",
    version,
    about = "Load generator for iroh-raft, with an audit of every acknowledged record",
    // What a workload says comes first.
    args_override_self = true
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
    /// Drive a cluster that runs already, and read back what it acknowledged.
    Run(Run),
    /// Read back what an earlier run was told of (`--ack-log`), from the nodes that it left or from a cluster that runs.
    Audit(Audit),
    /// Compare two results of `quick --json`; ends with status 1 if the second is worse by more than chance and tolerance.
    Compare(Compare),
    /// Start nodes with many groups that nobody uses: what they cost, and how soon one answers.
    Idle(Idle),
    /// Start nodes with state machines and ask them, linearizably and by lease; no answer may be stale.
    Reads(Reads),
    /// Start nodes, fill a state machine, and bring it to a new node by a snapshot, under load.
    Snapshot(Snapshot),
    /// Measure ours and other systems, under the same load by the same clients' clock, in one table.
    #[cfg(feature = "rivals")]
    Versus(versus::VersusArgs),
    /// Be a rival's server; started by `versus`.
    #[cfg(feature = "rivals")]
    #[command(hide = true)]
    Server(rival::process::ServerArgs),
    /// Run one node; started by the others.
    #[command(hide = true)]
    Node {
        #[arg(long)]
        config: PathBuf,
    },
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
                has_hanging_disks: false,
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
                has_hanging_disks: false,
            },
            duration: self.duration,
            data_dir: self.data_dir,
            json: self.json,
        }
    }
}

fn main() -> ExitCode {
    let cli = match workload::expand(std::env::args_os().collect()) {
        Ok(args) => Cli::parse_from(args),
        Err(problem) => return refuse(&problem),
    };
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
        Command::Run(run) => match run.plan() {
            Ok(plan) => run_until_interrupted(|stop| running::run(&plan, stop)),
            Err(problem) => refuse(&problem),
        },
        Command::Audit(audit) => {
            let (acks, place) = audit.place();
            run_until_interrupted(|stop| later::run(&acks, &place, stop))
        }
        Command::Find(find) => match find.plan() {
            Ok(plan) => run_until_interrupted(|stop| find::run(&plan, stop)),
            Err(problem) => refuse(&problem),
        },
        Command::Sweep(sweep) => match sweep.plan() {
            Ok(plan) => run_until_interrupted(|stop| sweep::run(&plan, stop)),
            Err(problem) => refuse(&problem),
        },
        #[cfg(feature = "rivals")]
        Command::Versus(args) => match args.plan() {
            Ok(plan) => run_until_interrupted(|stop| versus::run(&plan, stop)),
            Err(problem) => refuse(&problem),
        },
        #[cfg(feature = "rivals")]
        Command::Server(server) => refuse(&format!("cannot become the server: {}", server.become_it())),
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
    use crate::mix::{Mix, ReadKind};
    use crate::quick::QuickPlan;

    fn plan(args: &[&str]) -> Result<QuickPlan, String> {
        let args = ["loadgen", "quick"].iter().chain(args);
        match Cli::try_parse_from(args).map_err(|error| error.to_string())?.command {
            Command::Quick(quick) => quick.plan(),
            _ => unreachable!("quick was asked for"),
        }
    }

    #[test]
    fn options_fit_together() {
        <Cli as clap::CommandFactory>::command().debug_assert();
    }

    #[test]
    fn the_defaults_are_the_documented_ones() {
        let plan = plan(&[]).unwrap();
        assert_eq!((plan.cluster.nodes, plan.cluster.shards, plan.cluster.groups), (3, 1, 8));
        assert_eq!((plan.cluster.record_bytes, plan.load.clients, plan.load.in_flight), (64, 8, 256));
        assert_eq!((plan.load.duration, plan.load.warmup), (Duration::from_secs(10), Duration::from_secs(2)));
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
        assert!(plan(&["--fault", "wipe@1s", "--fault", "kill@1s"]).unwrap_err().contains("exclude"));
        let overlapping = ["--fault", "partition@3s+1s", "--fault", "partition@2s"];
        assert!(plan(&overlapping).unwrap_err().contains("before another has ended"));
        assert_eq!(plan(&["--fault", "kill@1s", "--fault", "stop@5s:all"]).unwrap().faults.len(), 2);
        assert!(plan(&["--nodes", "0"]).is_err());
    }

    #[test]
    fn a_mix_is_read_and_what_is_impossible_is_refused() {
        let args = ["--reads", "0.25", "--read-kind", "local", "--tails", "3", "--sessions"];
        let mix = plan(&args).unwrap().load.mix;
        assert_eq!(mix, Mix { reads: 0.25, read_kind: ReadKind::Local, tails: 3, sessions: true });
        assert!(plan(&[]).unwrap().load.mix.is_plain());
        for (args, says) in [
            (&["--reads", "1.0"][..], "write 0 to 0.99"),
            (&["--reads=-0.1"], "write 0 to 0.99"),
            (&["--read-kind", "lease"], "`loadgen reads` measures"),
            (&["--read-kind", "newest"], "write leader"),
            (&["--tails", "4", "--groups", "4096"], "16384 followers, 8192 at most: lower --tails"),
            (&["--sessions", "--clients", "17"], "16 of one key, here 17: set --clients 16"),
            (&["--sessions", "--clients", "8", "--groups", "4096", "--in-flight", "4096"], "here 32768"),
            (&["--embedded", "--workload", "mixed", "--reads", "0.1"], "set --reads 0"),
            (&["--embedded", "--tails", "1"], "appends alone"),
            (&["--embedded", "--sessions"], "appends alone"),
        ] {
            let problem = plan(args).unwrap_err();
            assert!(problem.contains(says), "{args:?}: {problem}");
        }
        // With few in flight each client is in few groups, and each group has few of them.
        assert!(plan(&["--sessions", "--clients", "64", "--in-flight", "1", "--groups", "8"]).is_ok());
        assert!(plan(&["--sessions", "--clients", "16"]).is_ok());
    }

    #[test]
    fn durations_are_read_with_their_unit() {
        assert_eq!(duration("1.5s"), Ok(Duration::from_millis(1500)));
        assert_eq!(duration("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(duration("2m"), Ok(Duration::from_secs(120)));
        assert!(duration("-1s").is_err() && duration("s").is_err() && duration("1h").is_err());
    }
}

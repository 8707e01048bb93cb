//! The options of `quick`, `find` and `sweep`, and what they come to.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use iroh_raft::storage::BackendChoice;

use crate::arrivals::{Arrivals, TIMES_MAX};
use crate::clients::LoadPlan;
use crate::cluster::ClusterPlan;
use crate::duration;
use crate::fault::{self, Fault, Kind, Whom};
use crate::find::{FindPlan, Objective};
use crate::later::Place;
use crate::mix::Mix;
use crate::quick::{Files, QuickPlan};
use crate::running::{Access, RunPlan};
use crate::sizes::RecordSizes;
use crate::skew::Skew;
use crate::sweep::SweepPlan;

/// Records in flight that a skew is drawn for, eight bytes each and more.
const SLOTS_MAX: u64 = 4_000_000;

/// A load, whatever it meets.
#[derive(Args, Debug)]
pub(crate) struct Load {
    /// The options of a load in a TOML file (`in-flight = 512`), or under a name: small, large, mixed, latency, skew, many-groups.
    /// What is said here as well counts more.
    #[arg(long, value_name = "FILE|NAME")]
    workload: Option<String>,
    /// Bytes of a record, at least 16: client, group and sequence are in it. A size, or 64-1024 for sizes between two, or
    /// 64x9,1024x1 for sizes with their weights.
    #[arg(long, default_value = "64")]
    record_bytes: RecordSizes,
    /// How load is spread over the groups: uniform, zipf:1.0 (the n-th group gets one over n to that power), or hot:0.9 (the
    /// first one gets that part).
    #[arg(long, default_value = "uniform")]
    skew: Skew,
    /// Closed-loop clients.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    clients: u32,
    /// Requests each client keeps in flight, spread over the groups: records, but for the part that reads.
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    in_flight: u32,
    /// Threads for the clients; those of one thread share its connections.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=256))]
    client_threads: u32,
    /// Open loop: requests a second that are due, whatever became of those before; latency counts from when they were
    /// due. Without it a request is sent as another one is answered.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=100_000_000))]
    rate: Option<u32>,
    /// How requests arrive in the open loop: fixed, poisson (independent of each other), bursts:100 (so many at once), or
    /// ramp:100000 (from the rate to this one).
    #[arg(long, default_value = "fixed", value_name = "HOW")]
    arrivals: Arrivals,
    #[command(flatten)]
    mix: Mix,
    /// Of what is drawn: the same seed draws the same.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Measured time, such as 10s or 500ms.
    #[arg(long, default_value = "10s", value_parser = duration)]
    duration: Duration,
    /// Time before it that is not measured.
    #[arg(long, default_value = "2s", value_parser = duration)]
    warmup: Duration,
    /// How long a connection of the clients may be without a sign of life before it counts as lost, and what was under way on it
    /// as unknown. Default: the client's own, 600ms.
    #[arg(long, value_parser = duration)]
    idle_timeout: Option<Duration>,
    /// File for the results as one JSON object.
    #[arg(long)]
    json: Option<PathBuf>,
    /// File for the latencies, second by second, as an interval log of HdrHistogram.
    #[arg(long)]
    hdr_log: Option<PathBuf>,
    /// File for the latencies over percentiles, as HdrHistogram's tools draw them.
    #[arg(long)]
    hgrm: Option<PathBuf>,
    /// File for what clients were told of each record: `loadgen audit` looks for it at any later time.
    #[arg(long)]
    ack_log: Option<PathBuf>,
}

impl Load {
    fn plan(&self) -> Result<LoadPlan, String> {
        if self.duration.is_zero() {
            return Err("--duration 0 measures nothing: give at least 1ms".into());
        }
        match (self.rate, self.arrivals) {
            (None, arrivals) if arrivals != Arrivals::Fixed => {
                return Err(format!("--arrivals {arrivals} is of the open loop: give --rate, too"));
            }
            (Some(rate), Arrivals::Poisson)
                if f64::from(rate) * (self.warmup + self.duration).as_secs_f64() > TIMES_MAX =>
            {
                return Err(format!(
                    "--arrivals poisson keeps the time of each record, {TIMES_MAX:e} at most: lower --rate or --duration"
                ));
            }
            _ => {}
        }
        if self.skew != Skew::Uniform && u64::from(self.clients) * u64::from(self.in_flight) > SLOTS_MAX {
            return Err(format!(
                "--skew {} deals out each record in flight, {SLOTS_MAX} at most: lower --clients or --in-flight",
                self.skew
            ));
        }
        Ok(LoadPlan {
            clients: self.clients,
            in_flight: self.in_flight,
            client_threads: self.client_threads,
            per_s: self.rate,
            arrivals: self.arrivals,
            sizes: self.record_bytes.clone(),
            skew: self.skew,
            seed: self.seed,
            duration: self.duration,
            warmup: self.warmup,
            idle_timeout: self.idle_timeout,
            mix: self.mix,
        })
    }
}

#[derive(Args, Debug)]
pub(crate) struct Quick {
    #[command(flatten)]
    load: Load,
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
    /// Clients in the processes of the nodes, each for the groups that its node leads: no network between them. `--clients`
    /// and `--in-flight` are then those of each node.
    #[arg(long, conflicts_with_all = ["client_threads", "rate", "skew", "hdr_log", "faults", "replace_nodes"])]
    embedded: bool,
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
    /// File for a page with pictures, which needs nothing else.
    #[arg(long)]
    html: Option<PathBuf>,
    /// A fault on the way, as `KIND@TIME[+LENGTH][:WHOM]` from the start of the measured time: kill@5s (SIGKILL to the node that
    /// leads most groups, started again after two seconds), stop@2s+500ms:all (SIGSTOP), disk-stall@2s+1s:leader (nothing reaches
    /// the journal), partition@2s (nothing from and to other nodes), wipe@2s (SIGKILL, the disk removed, a new node in its place),
    /// kill@1s:3 (node 3). May be given several times.
    #[arg(long = "fault", value_name = "FAULT")]
    faults: Vec<Fault>,
    /// So many faults of all kinds but wipe, drawn with `--seed`, one after the other over the measured time.
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=1000), conflicts_with_all = ["faults", "replace_nodes", "embedded"])]
    random_faults: u32,
    /// How many nodes are replaced, in turn: SIGKILL, the disk removed, and a new node with a new key takes its place
    /// in every group. Begins with the measured time; the next one follows when the new one has caught up.
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=100))]
    replace_nodes: u32,
}

/// The way to a cluster that runs.
#[derive(Args, Debug)]
pub(crate) struct AccessArgs {
    /// The cluster file: its name and its nodes, as `iroh-raft init` writes it.
    #[arg(long, value_name = "FILE", default_value = "cluster")]
    cluster: PathBuf,
    /// The client's key, as `iroh-raft client-key` makes it; it needs the rights to append and to read.
    #[arg(long, value_name = "FILE", default_value = "client.key")]
    key: PathBuf,
}

impl AccessArgs {
    fn access(self) -> Access {
        Access { cluster_file: self.cluster, key: self.key }
    }
}

#[derive(Args, Debug)]
pub(crate) struct Run {
    #[command(flatten)]
    load: Load,
    #[command(flatten)]
    access: AccessArgs,
    /// Groups that are written to; default: all that there are.
    #[arg(long = "group", value_name = "GROUP", value_delimiter = ',')]
    groups: Vec<u64>,
    /// Reads nothing back.
    #[arg(long)]
    no_audit: bool,
}

impl Run {
    pub(crate) fn plan(self) -> Result<RunPlan, String> {
        Ok(RunPlan {
            load: self.load.plan()?,
            access: self.access.access(),
            groups: self.groups,
            is_audited: !self.no_audit,
            json: self.load.json,
            files: Files {
                hdr_log: self.load.hdr_log,
                hgrm: self.load.hgrm,
                html: None,
                ack_log: self.load.ack_log,
            },
        })
    }
}

#[derive(Args, Debug)]
pub(crate) struct Audit {
    /// What `--ack-log` has written.
    acks: PathBuf,
    /// The folder that `quick --data-dir` has left. Without it the cluster runs.
    #[arg(long, conflicts_with_all = ["cluster", "key"])]
    data_dir: Option<PathBuf>,
    #[command(flatten)]
    access: AccessArgs,
}

impl Audit {
    /// The log, and where its records are.
    pub(crate) fn place(self) -> (PathBuf, Place) {
        let place = match self.data_dir {
            Some(folder) => Place::Folder(folder),
            None => Place::Running(self.access.access()),
        };
        (self.acks, place)
    }
}

#[derive(Args, Debug)]
pub(crate) struct Find {
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
    pub(crate) fn plan(self) -> Result<FindPlan, String> {
        let (objective, from, precision) = (self.slo, self.from, f64::from(self.precision) / 100.0);
        let trial = self.trial;
        let files = [&self.load.load.hdr_log, &self.load.load.hgrm, &self.load.html, &self.load.load.ack_log];
        if files.into_iter().any(Option::is_some) {
            return Err("find writes --json alone: leave out --hdr-log, --hgrm, --html and --ack-log".into());
        }
        if self.load.load.rate.is_some()
            || self.load.embedded
            || self.load.repeat > 1
            || self.load.data_dir.is_some()
            || matches!(self.load.load.arrivals, Arrivals::Ramp(_))
        {
            return Err("find chooses the rate, on the network, in folders of its own: leave out --rate, a ramp, --embedded, --repeat and --data-dir".into());
        }
        let json = self.load.load.json.clone();
        let mut quick = self.load;
        quick.load.duration = trial;
        let load = quick.plan()?;
        Ok(FindPlan { load, objective, from, precision, json })
    }
}

#[derive(Args, Debug)]
pub(crate) struct SweepArgs {
    /// Rates, in records a second; default: parts of what the closed loop gives.
    #[arg(long, value_delimiter = ',', value_parser = clap::value_parser!(u32).range(1..=100_000_000))]
    rates: Vec<u32>,
    #[command(flatten)]
    load: Quick,
}

impl SweepArgs {
    pub(crate) fn plan(self) -> Result<SweepPlan, String> {
        if self.load.load.rate.is_some()
            || self.load.embedded
            || self.load.repeat > 1
            || self.load.data_dir.is_some()
            || matches!(self.load.load.arrivals, Arrivals::Ramp(_))
        {
            return Err("sweep chooses the rates, on the network, in folders of its own: leave out --rate, a ramp, --embedded, --repeat and --data-dir".into());
        }
        let files = [&self.load.load.hdr_log, &self.load.load.hgrm, &self.load.load.ack_log];
        if files.into_iter().any(Option::is_some) {
            return Err("sweep writes --json and --html: leave out --hdr-log, --hgrm and --ack-log".into());
        }
        let (json, html) = (self.load.load.json.clone(), self.load.html.clone());
        Ok(SweepPlan { load: self.load.plan()?, rates: self.rates, json, html })
    }
}

impl Quick {
    pub(crate) fn plan(self) -> Result<QuickPlan, String> {
        let load = self.load.plan()?;
        if self.embedded && !load.mix.is_plain() {
            return Err(
                "--embedded appends alone: set --reads 0 and --tails 0, and leave out --sessions".into()
            );
        }
        if !self.embedded {
            let groups: Vec<u32> = (1..=self.groups).collect();
            load.check_mix(&groups).map_err(|problem| problem.to_string())?;
        }
        if self.random_faults > 0 && self.nodes < 3 {
            return Err("--random-faults needs --nodes 3 or more: fewer have no quorum without one".into());
        }
        let faults = if self.random_faults > 0 {
            fault::random(self.random_faults, self.nodes, load.duration, load.seed)
        } else {
            self.faults
        };
        let has_hanging_disks = faults.iter().any(|fault| fault.kind == Kind::DiskStall);
        for Fault { kind, at, whom, .. } in &faults {
            let end = load.duration;
            if *at >= end {
                return Err(format!(
                    "--fault at {at:?} is after the end: it must be below --duration {end:?}"
                ));
            }
            if matches!(whom, Whom::Node(number) if *number > self.nodes) {
                return Err(format!("--fault to {whom:?}: there are {} nodes", self.nodes));
            }
            // Who stands still has no leader to lose; who is killed has.
            let takes_one_away = matches!(kind, Kind::Kill | Kind::Wipe) && *whom != Whom::All;
            if self.nodes < 3 && takes_one_away {
                return Err(
                    "--fault kill and wipe need --nodes 3 or more: fewer have no quorum without one".into()
                );
            }
        }
        if self.replace_nodes > 0 && self.nodes < 3 {
            return Err("--replace-nodes needs --nodes 3 or more: fewer have no quorum without one".into());
        }
        if self.replace_nodes > 0 && !faults.is_empty() {
            return Err("--replace-nodes and --fault exclude each other: run them one by one".into());
        }
        let wipes = faults.iter().filter(|fault| fault.kind == Kind::Wipe).count();
        if wipes > 0 && wipes < faults.len() {
            return Err("--fault wipe and other faults exclude each other: run them one by one".into());
        }
        let mut cuts: Vec<&Fault> = faults.iter().filter(|fault| fault.kind == Kind::Partition).collect();
        cuts.sort_by_key(|fault| fault.at);
        if cuts.windows(2).any(|pair| pair[1].at < pair[0].at + pair[0].lasting) {
            return Err(
                "--fault partition: one begins before another has ended; let them follow one another".into(),
            );
        }
        if self.load.ack_log.is_some() && self.data_dir.is_none() {
            return Err("--ack-log is of records that go with the nodes: keep them with --data-dir".into());
        }
        let spares = u16::try_from(self.replace_nodes as usize + wipes).unwrap_or(u16::MAX);
        Ok(QuickPlan {
            cluster: ClusterPlan {
                nodes: self.nodes,
                shards: self.shards,
                bridge_threads: self.bridge_threads,
                groups: self.groups,
                record_bytes: load.sizes.max(),
                has_state_machines: false,
                spares,
                lag_entries_max: None,
                backend: self.backend,
                has_hanging_disks,
            },
            load,
            is_embedded: self.embedded,
            repeat: self.repeat,
            data_dir: self.data_dir,
            json: self.load.json,
            files: Files {
                hdr_log: self.load.hdr_log,
                hgrm: self.load.hgrm,
                html: self.html,
                ack_log: self.load.ack_log,
            },
            faults,
            replacements: self.replace_nodes,
        })
    }
}

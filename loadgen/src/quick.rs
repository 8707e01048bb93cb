//! `loadgen quick`: a cluster, load, perhaps a fault, and the audit; in this order.

mod summary;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::RecvTimeoutError;
use std::time::{Duration, Instant, SystemTime};

use hdrhistogram::Histogram;
use iroh_raft::net::allow::PeerAddress;
use iroh_raft::net::client::{ClientConfig, ClientError};
use iroh_raft::net::cluster_file::ClusterFileError;
use iroh_raft::net::identity::IdentityError;
use iroh_raft::{GroupId, NodeId, cluster_id};

use crate::ack_log::{AckLog, AckLogError};
use crate::arrivals::Times;
use crate::audit::AuditCounts;
use crate::clients::{Clients, LoadPlan, Targets, finish, interruptible, runtime};
use crate::cluster::{Cluster, ClusterError, ClusterPlan, NodeUsage};
use crate::fault::{Fault, Faults, Kind};
use crate::hdr::{self, Stretch};
use crate::html;
use crate::ledger::Ledger;
use crate::machine::{self, Device};
use crate::mix::MixError;
use crate::mixed::Mixed;
use crate::node::{EmbeddedPlan, NodeSummary};
use crate::recorder::{Interval, Timeline};
use crate::report::{Killed, Replaced, Report, Slice};
use crate::runs::Runs;
use crate::watch::{NodeLook, Watch};
use crate::{plot, readback};

/// Time for a cluster to start and elect its leaders.
pub(crate) const LEADERS_DEADLINE: Duration = Duration::from_secs(30);
/// Time for all replicas to catch up before they are read back.
const CATCH_UP_DEADLINE: Duration = Duration::from_secs(60);
/// How often the orchestration looks around.
pub(crate) const LOOK: Duration = Duration::from_millis(20);
/// With more groups asking all nodes each second would be a load of its own.
const GROUPS_WATCHED_MAX: u64 = 1024;

/// What `loadgen quick` was asked for.
#[derive(Clone, Debug)]
pub(crate) struct QuickPlan {
    pub(crate) cluster: ClusterPlan,
    pub(crate) load: LoadPlan,
    /// Whether clients are in the processes of the nodes, each with the groups that its node leads; `clients` and
    /// `in_flight` are then those of each node.
    pub(crate) is_embedded: bool,
    pub(crate) data_dir: Option<PathBuf>,
    pub(crate) json: Option<PathBuf>,
    /// Other files of the result.
    pub(crate) files: Files,
    /// How often, each time on a cluster of its own.
    pub(crate) repeat: u32,
    pub(crate) faults: Vec<Fault>,
    /// Nodes that are killed with their disks and replaced, one after the other, from the start of the measured time.
    pub(crate) replacements: u32,
}

impl QuickPlan {
    /// The same at another rate, for who writes the results itself.
    pub(crate) fn at_rate(&self, per_s: Option<u32>) -> QuickPlan {
        let load = LoadPlan { per_s, ..self.load.clone() };
        QuickPlan { load, json: None, ..self.clone() }
    }
}

/// Files of a result, beside the JSON object.
#[derive(Clone, Default, Debug)]
pub(crate) struct Files {
    /// Interval log of HdrHistogram.
    pub(crate) hdr_log: Option<PathBuf>,
    /// Percentile distribution of HdrHistogram.
    pub(crate) hgrm: Option<PathBuf>,
    /// A page with pictures.
    pub(crate) html: Option<PathBuf>,
    /// What clients were told of their records.
    pub(crate) ack_log: Option<PathBuf>,
}

/// A run: what it gave, and its latencies in the measured window, and second by second.
pub(crate) struct Trial {
    pub(crate) report: Report,
    latencies: Histogram<u64>,
    stretches: Vec<Stretch>,
    began: SystemTime,
}

impl Trial {
    fn write(&self, files: &Files) -> Result<(), QuickError> {
        let write = |path: &Option<PathBuf>, write: &dyn Fn(&Path) -> io::Result<()>| match path {
            Some(path) => write(path).map_err(|source| QuickError::File { path: path.clone(), source }),
            None => Ok(()),
        };
        write(&files.hdr_log, &|path| hdr::write_log(path, self.began, &self.stretches))?;
        write(&files.hgrm, &|path| hdr::write_percentiles(path, &self.latencies))?;
        write(&files.html, &|path| fs::write(path, html::page(&self.report)))
    }
}

/// Why a run gave no report.
#[derive(Debug, thiserror::Error)]
pub(crate) enum QuickError {
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    #[error("the clients cannot go on: {0}")]
    Client(#[from] ClientError),
    #[error("no folder for data in {}: {source}; name one with --data-dir", path.display())]
    Folder { path: PathBuf, source: std::io::Error },
    #[error(transparent)]
    AckLog(#[from] AckLogError),
    #[error(transparent)]
    ClusterFile(#[from] ClusterFileError),
    #[error("{} is no key of a client ({source}): name the file that `iroh-raft client-key` made", path.display())]
    Key { path: PathBuf, source: IdentityError },
    #[error("no node of {} says which groups it has ({problem}): start the nodes, and give the client the right to read", path.display())]
    NoGroups { path: PathBuf, problem: String },
    #[error("{}", no_such_group(*group, there))]
    NoSuchGroup { group: u64, there: Vec<u64> },
    #[error(
        "group {group} has a number above {most}, up to which records are counted: name others with --group"
    )]
    GroupTooHigh { group: u64, most: u64 },
    #[error("{} is of the cluster {wanted}, and this is {found}: name the cluster that was written to", path.display())]
    OtherCluster { path: PathBuf, found: String, wanted: String },
    #[error("cannot write {}: {source}", path.display())]
    File { path: PathBuf, source: std::io::Error },
    #[error("{what} within {} s: see the nodes' logs in {}", deadline.as_secs(), folder.display())]
    Late { what: &'static str, deadline: Duration, folder: PathBuf },
    #[error("{what}: node {node}; see its log")]
    NotReplaced { what: &'static str, node: NodeId },
    #[error("group {group} has no leader")]
    NoLeader { group: GroupId },
    #[error(transparent)]
    Mix(#[from] MixError),
    #[error("cannot start a thread or runtime: {0}")]
    Thread(std::io::Error),
    #[error("a client thread died")]
    Panicked,
    #[error("interrupted")]
    Interrupted,
}

fn no_such_group(group: u64, there: &[u64]) -> String {
    const SHOWN: usize = 20;
    let shown = there.iter().take(SHOWN).map(u64::to_string).collect::<Vec<_>>().join(", ");
    let more = if there.len() > SHOWN { ", ..." } else { "" };
    match there {
        [] => "the cluster has no groups: make some with `iroh-raft group create`".to_owned(),
        _ => format!("the cluster has no group {group}; it has {shown}{more}"),
    }
}

/// Where the data is: a temporary folder, or one that was named and stays.
#[derive(Debug)]
pub(crate) enum Folder {
    Temporary(tempfile::TempDir),
    Named(PathBuf),
}

impl Folder {
    pub(crate) fn open(named: Option<&Path>) -> Result<Folder, QuickError> {
        if let Some(path) = named {
            return Ok(Folder::Named(path.to_path_buf()));
        }
        // A file system in memory would make every flush a lie.
        let system = std::env::temp_dir();
        let on_disk = PathBuf::from("/var/tmp");
        let parent = if machine::is_tmpfs(&system) && on_disk.is_dir() { on_disk } else { system };
        let made = tempfile::Builder::new().prefix("iroh-raft-loadgen-").tempdir_in(&parent);
        made.map(Folder::Temporary).map_err(|source| QuickError::Folder { path: parent, source })
    }

    pub(crate) fn path(&self) -> &Path {
        match self {
            Folder::Temporary(folder) => folder.path(),
            Folder::Named(path) => path,
        }
    }

    /// Keeps the data for whoever wants to know what went wrong.
    pub(crate) fn keep(self) {
        if let Folder::Temporary(folder) = self {
            eprintln!("the data and the nodes' logs are kept in {}", folder.keep().display());
        }
    }
}

/// What was read at the start and at the end of the measured window.
#[derive(Debug, Default)]
struct Sample {
    nodes: Vec<NodeUsage>,
    client_cpu: Duration,
    device_flushes: Option<u64>,
}

impl Sample {
    fn take(cluster: &mut Cluster, device: Option<&Device>) -> Result<Sample, QuickError> {
        Ok(Sample {
            nodes: cluster.usage()?,
            client_cpu: machine::cpu_time(std::process::id()).unwrap_or_default(),
            device_flushes: device.and_then(Device::flushes),
        })
    }

    fn sum(&self, of: impl Fn(&NodeUsage) -> u64) -> u64 {
        self.nodes.iter().map(of).sum()
    }

    fn node_cpu(&self) -> Duration {
        self.nodes.iter().map(|node| node.cpu).sum()
    }
}

/// What the load gave.
struct Load {
    began: SystemTime,
    slices: Vec<Slice>,
    /// The same with all latencies, if a log is wanted.
    stretches: Vec<Stretch>,
    measured: Interval,
    ledger: Ledger,
    timeline: Timeline,
    /// When records were due in an open loop, by thread.
    times: Vec<Times>,
    /// What reads and followers gave.
    mixed: Mixed,
    before: Sample,
    after: Sample,
    /// The nodes that were away, when, and the groups they led.
    killed: Vec<(Killed, Vec<u32>)>,
    replaced: Vec<Replaced>,
    leader_changes: u64,
    last_error: Option<String>,
}

/// Runs everything as often as asked for, and prints the reports. Returns whether all audits are clean.
///
/// # Errors
/// [`QuickError`] when there is nothing to report; processes are gone then, too.
pub(crate) fn run(plan: &QuickPlan, stop: &Arc<AtomicBool>) -> Result<bool, QuickError> {
    let mut runs = Vec::new();
    for _ in 0..plan.repeat {
        let trial = trial(plan, stop)?;
        println!("{}", plot::percentiles(&trial.latencies));
        print!("{}", trial.report.table());
        // Of several runs the last is the one that the other files are of.
        trial.write(&plan.files)?;
        runs.push(trial.report);
    }
    let json = match &runs[..] {
        [one] => serde_json::to_vec_pretty(one),
        several => {
            let runs = Runs::of(several);
            print!("{}", runs.table());
            serde_json::to_vec_pretty(&runs)
        }
    };
    if let Some(path) = &plan.json {
        let text = json.expect("a report serializes");
        fs::write(path, text).map_err(|source| QuickError::File { path: path.clone(), source })?;
    }
    Ok(runs.iter().all(Report::is_clean))
}

/// One run on a cluster of its own, with its audit.
///
/// # Errors
/// [`QuickError`] when there is nothing to report; processes are gone then, too.
pub(crate) fn trial(plan: &QuickPlan, stop: &Arc<AtomicBool>) -> Result<Trial, QuickError> {
    let folder = Folder::open(plan.data_dir.as_deref())?;
    let mut cluster = Cluster::create(&plan.cluster, folder.path())?;
    if machine::is_tmpfs(folder.path()) {
        eprintln!("WARNING: the data folder is in memory (tmpfs): an fsync means nothing there");
    }
    let result = measure(plan, &mut cluster, folder.path(), stop);
    drop(cluster);
    match result {
        Ok(trial) if trial.report.is_clean() => Ok(trial),
        Err(QuickError::Interrupted) => Err(QuickError::Interrupted),
        other => {
            folder.keep();
            other
        }
    }
}

fn measure(
    plan: &QuickPlan,
    cluster: &mut Cluster,
    folder: &Path,
    stop: &Arc<AtomicBool>,
) -> Result<Trial, QuickError> {
    eprintln!("starting {} nodes in {}", plan.cluster.nodes, folder.display());
    cluster.start()?;
    let no_leaders = late("not every group had a leader", LEADERS_DEADLINE, folder);
    wait_for(LEADERS_DEADLINE, LOOK, no_leaders, stop, || cluster.has_leaders())?;
    if plan.faults.iter().any(|fault| fault.kind == Kind::Partition) {
        // Cuts nobody off; but if that is forbidden here, it is known before the load begins.
        cluster.cut(&[])?;
        cluster.heal()?;
    }
    let mut load = if plan.is_embedded {
        load_embedded(plan, cluster, folder, stop)?
    } else {
        load(plan, cluster, folder, stop)?
    };

    eprintln!("audit: SIGKILL to all nodes, restart, read everything back");
    cluster.kill();
    cluster.start()?;
    let no_leaders = late("after the restart not every group had a leader", LEADERS_DEADLINE, folder);
    wait_for(LEADERS_DEADLINE, LOOK, no_leaders, stop, || cluster.has_leaders())?;
    let acks = AckLog::new(cluster.name(), &plan.load.sizes, std::mem::take(&mut load.ledger));
    let acks = acks.in_sessions(plan.load.mix.sessions);
    if let Some(path) = &plan.files.ack_log {
        acks.write(path)?;
    }
    let config = ClientConfig { nodes: cluster.addresses(), ..client_config(plan, cluster) };
    let audit = audit(cluster, folder, config, &acks, stop)?;

    let report = summary::report(plan, folder, &load, acks.ledger.totals(), audit);
    if let Some(error) = &load.last_error {
        eprintln!("last error: {error}");
    }
    Ok(Trial { report, latencies: load.measured.latencies, stretches: load.stretches, began: load.began })
}

/// Reads back what clients were told of, from the nodes of a cluster that has just started.
pub(crate) fn audit(
    cluster: &mut Cluster,
    folder: &Path,
    config: ClientConfig,
    acks: &AckLog,
    stop: &AtomicBool,
) -> Result<AuditCounts, QuickError> {
    // Replicas that stay behind are found by the audit, record by record.
    let behind = late("some replicas did not catch up", CATCH_UP_DEADLINE, folder);
    match wait_for(CATCH_UP_DEADLINE, LOOK, behind, stop, || has_caught_up(cluster, &acks.ledger)) {
        Err(error @ QuickError::Late { .. }) => eprintln!("{error}"),
        other => other?,
    }
    let runtime = runtime()?;
    let nodes: Vec<NodeId> = config.nodes.iter().map(|node| node.node).collect();
    let replicas = readback::everywhere(acks, &nodes);
    let (audit, unreadable) = interruptible(&runtime, readback::audit(config, acks, &replicas), stop)??;
    finish(&runtime);
    unreadable.iter().for_each(|replica| eprintln!("{replica}"));
    Ok(audit)
}

pub(crate) fn late(what: &'static str, deadline: Duration, folder: &Path) -> QuickError {
    QuickError::Late { what, deadline, folder: folder.to_path_buf() }
}

/// Looks until something is so; `late` is the error when it takes too long.
pub(crate) fn wait_for(
    deadline: Duration,
    look: Duration,
    late: QuickError,
    stop: &AtomicBool,
    mut is_so: impl FnMut() -> Result<bool, ClusterError>,
) -> Result<(), QuickError> {
    let until = Instant::now() + deadline;
    while !is_so()? {
        if stop.load(Ordering::Relaxed) {
            return Err(QuickError::Interrupted);
        }
        if Instant::now() >= until {
            return Err(late);
        }
        std::thread::sleep(look);
    }
    Ok(())
}

/// Whether every replica has committed all that was acknowledged, and all of a group equally much.
fn has_caught_up(cluster: &mut Cluster, ledger: &Ledger) -> Result<bool, ClusterError> {
    let statuses = cluster.statuses()?;
    Ok(ledger.groups().all(|(group, of_group)| {
        let mut ends = statuses.iter().map(|status| {
            let replicas = status.iter().flat_map(|status| &status.groups);
            replicas.clone().find(|replica| replica.group == u64::from(group)).map(|replica| replica.end)
        });
        let first = ends.next().flatten();
        first >= Some(of_group.end()) && ends.all(|end| end == first)
    }))
}

fn client_config(plan: &QuickPlan, cluster: &Cluster) -> ClientConfig {
    ClientConfig {
        cluster: cluster_id(cluster.name()),
        identity: cluster.client().clone(),
        nodes: cluster.all_addresses().to_vec(),
        bind: None,
        limits: plan.load.limits(),
    }
}

/// Asks the nodes how they stand, if somebody looks.
fn look_at(cluster: &mut Cluster, watch: &mut Watch) -> Result<(), QuickError> {
    if !watch.is_live() || cluster.groups() > GROUPS_WATCHED_MAX {
        return Ok(());
    }
    let (used, summaries) = (cluster.usage()?, cluster.summaries()?);
    let nodes = cluster.addresses().into_iter().zip(summaries).zip(&used);
    let look = |((address, summary), used): ((PeerAddress, Option<NodeSummary>), &NodeUsage)| {
        NodeLook::of(address.node.0, summary.map(|summary| summary.leading as usize), used)
    };
    watch.look(nodes.map(look).collect());
    Ok(())
}

/// Drives the cluster, samples it at both ends of the measured window, and kills a leader if asked.
fn load(
    plan: &QuickPlan,
    cluster: &mut Cluster,
    folder: &Path,
    stop: &Arc<AtomicBool>,
) -> Result<Load, QuickError> {
    let device = Device::under(folder);
    let led_before: u64 = cluster.usage()?.iter().map(|node| node.leaderships_gained).sum();
    let (groups, client) = (plan.cluster.groups, client_config(plan, cluster));
    let targets = Targets { groups: (1..=groups).collect(), first_client: 0, is_shared: false };
    let clients = Clients::start(&plan.load, targets, &client, stop)?;
    let (start, began) = (clients.start, SystemTime::now());
    let end = plan.load.end();
    let title = plan.load.title(groups as usize);
    let mut watch = Watch::new(clients.threads(), plan.files.hdr_log.is_some(), title, end);
    look_at(cluster, &mut watch)?;
    let mut before = None;
    let mut after = None;
    let mut faults = Faults::new(&plan.faults, plan.replacements, plan.load.warmup, client);
    while after.is_none() {
        if start.elapsed() < end && clients.has_ended() {
            // The error is told below.
            break;
        }
        if stop.load(Ordering::Relaxed) {
            return Err(QuickError::Interrupted);
        }
        let now = start.elapsed();
        if before.is_none() && now >= plan.load.warmup {
            before = Some(Sample::take(cluster, device.as_ref())?);
        }
        faults.drive(cluster, now, plan.load.warmup, &mut watch)?;
        if now >= end {
            after = Some(Sample::take(cluster, device.as_ref())?);
        }
        // The edges of the window are met as exactly as a thread can wake.
        let now = start.elapsed();
        let edges = [plan.load.warmup, end].into_iter().filter(|edge| *edge > now);
        let look = edges.map(|edge| edge - now).chain([LOOK]).min().unwrap_or(LOOK);
        match clients.progress.recv_timeout(look) {
            Ok(progress) => {
                if watch.handle(progress) {
                    look_at(cluster, &mut watch)?;
                }
            }
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {}
        }
    }
    let (known, progress) =
        clients.join(|| faults.drive(cluster, start.elapsed(), plan.load.warmup, &mut watch))?;
    progress.try_iter().for_each(|progress| _ = watch.handle(progress));
    while !faults.are_over() && !stop.load(Ordering::Relaxed) {
        faults.drive(cluster, start.elapsed(), plan.load.warmup, &mut watch)?;
        std::thread::sleep(LOOK);
    }
    if stop.load(Ordering::Relaxed) {
        return Err(QuickError::Interrupted);
    }
    let led_after: u64 = cluster.usage()?.iter().map(|node| node.leaderships_gained).sum();
    let (killed, replaced) = faults.into_done();
    Ok(Load {
        began,
        slices: watch.slices,
        stretches: watch.stretches,
        measured: watch.measured,
        ledger: known.ledger,
        timeline: known.timeline,
        times: known.times,
        mixed: known.mixed,
        before: before.unwrap_or_default(),
        after: after.unwrap_or_default(),
        killed,
        replaced,
        leader_changes: led_after.saturating_sub(led_before),
        last_error: known.last_error,
    })
}

/// As [`load`], with the clients in the nodes' processes.
fn load_embedded(
    plan: &QuickPlan,
    cluster: &mut Cluster,
    folder: &Path,
    stop: &Arc<AtomicBool>,
) -> Result<Load, QuickError> {
    let device = Device::under(folder);
    let clients_total = plan.load.clients * u32::from(plan.cluster.nodes);
    let led_before: u64 = cluster.usage()?.iter().map(|node| node.leaderships_gained).sum();
    let (start, began) = (Instant::now(), SystemTime::now());
    cluster.begin_load(&EmbeddedPlan {
        first_client: 0,
        clients: plan.load.clients,
        clients_total,
        groups: plan.cluster.groups,
        targets: Vec::new(),
        in_flight: plan.load.in_flight,
        sizes: plan.load.sizes.clone(),
        warmup: plan.load.warmup,
        duration: plan.load.duration,
    })?;
    let wait_until = |at: Duration| {
        while start.elapsed() < at {
            if stop.load(Ordering::Relaxed) {
                return Err(QuickError::Interrupted);
            }
            std::thread::sleep(LOOK.min(at.saturating_sub(start.elapsed())));
        }
        Ok(())
    };
    wait_until(plan.load.warmup)?;
    let before = Sample::take(cluster, device.as_ref())?;
    wait_until(plan.load.warmup + plan.load.duration)?;
    let after = Sample::take(cluster, device.as_ref())?;
    let mut load = Load {
        began,
        slices: Vec::new(),
        stretches: Vec::new(),
        measured: Interval::new(true),
        ledger: Ledger::new(plan.cluster.groups, clients_total),
        timeline: Timeline::new(plan.cluster.groups),
        times: Vec::new(),
        mixed: Mixed::default(),
        before,
        after,
        killed: Vec::new(),
        replaced: Vec::new(),
        leader_changes: 0,
        last_error: None,
    };
    for embedded in cluster.end_load()? {
        load.measured.merge_parts(&embedded.measured);
        load.ledger.merge(embedded.ledger);
        load.timeline.merge(embedded.timeline);
        load.last_error = load.last_error.or(embedded.last_error);
    }
    load.ledger.seal();
    let led_after: u64 = cluster.usage()?.iter().map(|node| node.leaderships_gained).sum();
    load.leader_changes = led_after.saturating_sub(led_before);
    if load.leader_changes > 0 {
        // Its clients stay where they are, and are refused there.
        eprintln!("WARNING: {} groups got another leader and no load from then on", load.leader_changes);
    }
    Ok(load)
}

//! A node as a process of its own: `loadgen node --config FILE`, started by `loadgen quick`.
//!
//! It speaks with its parent in lines of JSON, answers on stdout, requests on stdin. The end of stdin ends it.

use std::collections::BTreeMap;
use std::io::{BufRead, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::sync_channel;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use iroh_raft::kv::KeyValue;
use iroh_raft::net::allow::PeerAddress;
use iroh_raft::net::client::ClientError;
use iroh_raft::net::ring::Waits;
use iroh_raft::storage::{BackendChoice, Disk, HangingDisk, UnknownBackend};
use iroh_raft::{
    EndpointId, Engine, GroupStatus, LeaseReads, LogOnly, NodeId, Pinning, RaftCluster, RaftClusterBuilder,
    RequestError, Rights, Role,
};
use rustix::process::Signal;
use serde::{Deserialize, Serialize};

use crate::driver::{self, DriverPlan};
use crate::ledger::Ledger;
use crate::mix::Mix;
use crate::recorder::{Interval, IntervalParts, Timeline};
use crate::sizes::RecordSizes;
use crate::skew::Skew;

/// Pause before a shard that was too busy to say how its groups stand is asked again.
const BUSY_PAUSE: Duration = Duration::from_millis(10);
/// How long answers to the clients in this process are awaited once the load is over, and a little longer.
const DRAIN: Duration = Duration::from_secs(10);

/// What a node needs to know, written by the parent.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct NodeConfig {
    /// Name of the cluster.
    pub(crate) cluster: String,
    /// This node, from 1.
    pub(crate) node: u64,
    /// Its UDP address.
    pub(crate) bind: SocketAddr,
    /// Its data folder.
    pub(crate) data_dir: PathBuf,
    /// Its key.
    pub(crate) key_file: PathBuf,
    /// The other nodes.
    pub(crate) peers: Vec<Peer>,
    /// Keys of the clients.
    pub(crate) clients: Vec<String>,
    /// Number of groups.
    pub(crate) groups: u32,
    /// Number of shards.
    pub(crate) shards: u16,
    /// Threads of its bridge.
    pub(crate) bridge_threads: u16,
    /// Largest record in bytes.
    pub(crate) record_bytes_max: usize,
    /// Whether each group has a key-value store, read also by lease.
    pub(crate) has_state_machines: bool,
    /// Entries before a snapshot that a group keeps for those that lag; `None` for the default.
    pub(crate) lag_entries_max: Option<u64>,
    /// Name of how its files are written.
    pub(crate) backend: String,
    /// Whether its journals can be made to stand still.
    pub(crate) has_hanging_disk: bool,
}

/// Another node.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Peer {
    /// Its number.
    pub(crate) node: u64,
    /// Its key.
    pub(crate) endpoint: String,
    /// Its UDP address.
    pub(crate) address: SocketAddr,
}

impl From<&PeerAddress> for Peer {
    fn from(peer: &PeerAddress) -> Peer {
        Peer { node: peer.node.0, endpoint: peer.endpoint.to_string(), address: peer.addr }
    }
}

impl Peer {
    fn address(&self) -> Result<PeerAddress, NodeError> {
        let endpoint = endpoint(&self.endpoint)?;
        Ok(PeerAddress { node: NodeId(self.node), endpoint, addr: self.address })
    }
}

/// A line from the parent to a node.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum NodeRequest {
    /// How does each replica stand?
    Status,
    /// How many stand how?
    Summary,
    /// Another node comes in.
    Add(Peer),
    /// Another node is gone for good.
    Remove {
        /// Its number.
        node: u64,
    },
    /// Let nothing reach the journals, or let it again.
    HangDisk {
        /// Which.
        is_hung: bool,
    },
    /// Begin to append in this process.
    Load(EmbeddedPlan),
    /// What became of that? Asked once it is over.
    Loaded,
}

/// What the clients in a node's process do.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct EmbeddedPlan {
    /// Number of the first client.
    pub(crate) first_client: u32,
    /// Number of clients here.
    pub(crate) clients: u32,
    /// Number of all clients, of all nodes.
    pub(crate) clients_total: u32,
    /// Number of groups.
    pub(crate) groups: u32,
    /// Those that this node leads.
    pub(crate) targets: Vec<u32>,
    /// Records in flight of each client.
    pub(crate) in_flight: u32,
    /// Bytes of a record.
    pub(crate) sizes: RecordSizes,
    /// What is not measured.
    pub(crate) warmup: Duration,
    /// What is measured.
    pub(crate) duration: Duration,
}

/// What clients in a node's process have seen.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct Embedded {
    /// In the measured time.
    pub(crate) measured: IntervalParts,
    /// Every record sent.
    pub(crate) ledger: Ledger,
    /// When each group acknowledged.
    pub(crate) timeline: Timeline,
    /// The last error that a record met, if any did.
    pub(crate) last_error: Option<String>,
}

/// A line from a node to its parent.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum NodeLine {
    /// It takes requests.
    Ready,
    /// The answer to `status`.
    Status(NodeStatus),
    /// The answer to `summary`.
    Summary(NodeSummary),
    /// It did what it was asked to.
    Done,
    /// The answer to `loaded`.
    Loaded(Box<Embedded>),
    /// It could not start, or broke.
    Failed {
        /// Why.
        error: String,
    },
}

/// How a node stands.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub(crate) struct NodeStatus {
    /// Its replicas, by group.
    pub(crate) groups: Vec<ReplicaStatus>,
    /// Journal commits since start.
    pub(crate) flushes: u64,
    /// Microseconds spent in them.
    pub(crate) flush_us_total: u64,
    /// Bytes written by them.
    pub(crate) flush_bytes: u64,
    /// Turns of its shards since start.
    pub(crate) turns: u64,
    /// Times that a shard slept since start.
    pub(crate) sleeps: u64,
    /// Requests taken since start.
    pub(crate) requests: u64,
    /// Frames sent to other nodes since start.
    pub(crate) frames_sent: u64,
    /// Times a replica became leader since start.
    pub(crate) leaderships_gained: u64,
    /// Requests refused as busy since start.
    pub(crate) busy: u64,
    /// Frames for peers dropped because a ring was full, since start.
    pub(crate) frames_dropped: u64,
    /// Groups taken out after a broken invariant since start.
    pub(crate) groups_quarantined: u64,
    /// Messages of peers refused by the validator since start.
    pub(crate) messages_refused: u64,
    /// Snapshots taken of state machines since start.
    pub(crate) snapshots_taken: u64,
    /// Chunks of other nodes' snapshots taken since start.
    pub(crate) snapshot_chunks_received: u64,
    /// Bytes of frames sent to other nodes, and to clients, since start.
    pub(crate) sent_bytes: u64,
    /// CPU time of its threads since start, in microseconds, by their kind.
    pub(crate) thread_us: BTreeMap<String, u64>,
    /// How often items were how long in its rings since start, as [`Waits`] counts them, by the ring's name.
    pub(crate) waits: BTreeMap<String, Vec<u64>>,
}

/// How many replicas of a node stand how.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub(crate) struct NodeSummary {
    /// With a leader.
    pub(crate) led: u64,
    /// Leading.
    pub(crate) leading: u64,
    /// Quiet.
    pub(crate) quiet: u64,
}

/// How a replica stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct ReplicaStatus {
    /// Its group.
    pub(crate) group: u64,
    /// Whether it leads.
    pub(crate) is_leader: bool,
    /// The leader it knows.
    pub(crate) leader: Option<u64>,
    /// Offset after its last committed record.
    pub(crate) end: u64,
}

/// Why a node could not start.
#[derive(Debug, thiserror::Error)]
enum NodeError {
    #[error("cannot read {}: {source}", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{} is not a node's configuration: {source}", path.display())]
    Parse { path: PathBuf, source: serde_json::Error },
    #[error("{text} is not an endpoint id")]
    Endpoint { text: String },
    #[error("{line} is not a request: {source}")]
    Request { line: String, source: serde_json::Error },
    #[error("no load was begun, or its thread died")]
    NoLoad,
    #[error("the clients cannot go on: {0}")]
    Load(#[from] ClientError),
    #[error("the groups do not say how they stand: {0}")]
    Statuses(#[from] RequestError),
    #[error(transparent)]
    Backend(#[from] UnknownBackend),
    #[error(transparent)]
    Peers(#[from] iroh_raft::NodeError),
    #[error("cannot start a runtime: {0}")]
    Runtime(std::io::Error),
    #[error(transparent)]
    Engine(#[from] iroh_raft::EngineError),
}

/// Runs a node until stdin ends or it breaks. Returns whether it ended in order.
pub(crate) fn run(config: &Path) -> bool {
    // A node must not outlive a parent that was killed.
    let tied = rustix::process::set_parent_process_death_signal(Some(Signal::KILL));
    if let Err(error) = tied {
        tracing::warn!(%error, "this node will outlive a parent that is killed");
    }
    match serve(config) {
        Ok(()) => true,
        Err(error) => {
            say(&NodeLine::Failed { error: error.to_string() });
            false
        }
    }
}

fn serve(path: &Path) -> Result<(), NodeError> {
    let text = std::fs::read(path).map_err(|source| NodeError::Read { path: path.to_path_buf(), source })?;
    let config: NodeConfig = serde_json::from_slice(&text)
        .map_err(|source| NodeError::Parse { path: path.to_path_buf(), source })?;
    let runtime = runtime()?;
    let disk = HangingDisk::default();
    let builder = builder(&config, &disk)?;
    if !config.has_state_machines {
        return answer(&runtime, runtime.block_on(builder.build())?, &disk);
    }
    let builder = builder
        .tune(|engine| engine.core.lease_reads = Some(LeaseReads::default()))
        .state_machine(KeyValue::default);
    answer(&runtime, runtime.block_on(builder.build())?, &disk)
}

/// Answers the parent's questions until there are no more.
fn answer<S>(
    runtime: &tokio::runtime::Runtime,
    cluster: RaftCluster<S>,
    disk: &HangingDisk,
) -> Result<(), NodeError> {
    let engine = cluster.engine().clone();
    let watcher = runtime_thread(engine)?;
    let mut load = None;
    say(&NodeLine::Ready);
    for line in std::io::stdin().lock().lines() {
        let Ok(line) = line else { break };
        let engine = cluster.engine();
        let request = serde_json::from_str(&line).map_err(|source| NodeError::Request { line, source })?;
        say(&match request {
            NodeRequest::Status => NodeLine::Status(runtime.block_on(status(engine))?),
            NodeRequest::Summary => NodeLine::Summary(runtime.block_on(summary(engine))?),
            NodeRequest::Add(peer) => {
                engine.add_node(peer.address()?)?;
                NodeLine::Done
            }
            NodeRequest::Remove { node } => {
                engine.remove_node(NodeId(node))?;
                NodeLine::Done
            }
            NodeRequest::HangDisk { is_hung } => {
                disk.hang(is_hung);
                NodeLine::Done
            }
            NodeRequest::Load(plan) => {
                load = Some(start_load(engine.clone(), plan)?);
                NodeLine::Done
            }
            NodeRequest::Loaded => match load.take().map(JoinHandle::join) {
                Some(Ok(Ok(embedded))) => NodeLine::Loaded(Box::new(embedded)),
                Some(Ok(Err(error))) => return Err(error),
                None | Some(Err(_)) => return Err(NodeError::NoLoad),
            },
        });
    }
    runtime.block_on(cluster.shutdown())?;
    drop(watcher);
    Ok(())
}

/// Starts the clients of this process, on a thread of their own.
fn start_load(
    engine: Engine,
    plan: EmbeddedPlan,
) -> Result<JoinHandle<Result<Embedded, NodeError>>, NodeError> {
    let work = move || {
        let driver = DriverPlan {
            clients: plan.first_client..plan.first_client + plan.clients,
            clients_total: plan.clients_total,
            first_client: 0,
            groups: plan.groups,
            targets: plan.targets,
            in_flight: plan.in_flight,
            skew: Skew::Uniform,
            times: None,
            sizes: plan.sizes,
            mix: Mix::default(),
            seed: 0,
            followed: None,
            warmup: plan.warmup,
            duration: plan.duration,
        };
        let (sender, progress) = sync_channel(driver.window(Instant::now()).intervals_max());
        let never = AtomicBool::new(false);
        let drive = driver::drive_embedded(driver, engine, DRAIN, sender, &never);
        let done = runtime()?.block_on(drive)?;
        let mut measured = Interval::new(true);
        for progress in progress.try_iter().filter(|progress| progress.interval.is_measured) {
            measured.merge(&progress.interval);
        }
        Ok(Embedded {
            measured: measured.parts(),
            ledger: done.ledger,
            timeline: done.timeline,
            last_error: done.last_error.map(|error| error.to_string()),
        })
    };
    std::thread::Builder::new().name("clients".into()).spawn(work).map_err(NodeError::Runtime)
}

/// Ends the process as soon as the engine breaks: a node that acknowledges nothing is no node.
fn runtime_thread(engine: Engine) -> Result<std::thread::JoinHandle<()>, NodeError> {
    let runtime = runtime()?;
    let watch = move || {
        let error = runtime.block_on(engine.failed());
        say(&NodeLine::Failed { error: error.to_string() });
        std::process::exit(1);
    };
    std::thread::Builder::new().name("watcher".into()).spawn(watch).map_err(NodeError::Runtime)
}

fn runtime() -> Result<tokio::runtime::Runtime, NodeError> {
    tokio::runtime::Builder::new_current_thread().enable_time().build().map_err(NodeError::Runtime)
}

fn endpoint(text: &str) -> Result<EndpointId, NodeError> {
    text.parse().map_err(|_| NodeError::Endpoint { text: text.to_owned() })
}

fn builder(config: &NodeConfig, disk: &HangingDisk) -> Result<RaftClusterBuilder<LogOnly>, NodeError> {
    let backend: BackendChoice = config.backend.parse()?;
    let mut builder = RaftCluster::builder()
        .cluster(&config.cluster)
        .node_id(config.node)
        .bind_address(config.bind)
        .data_dir(&config.data_dir)
        .key_file(&config.key_file)
        .groups(config.groups.into())
        .shards(config.shards)
        // All nodes share the CPUs here; each pinning shard 0 to the same one would leave the rest idle.
        .pinning(Pinning::Unpinned)
        .tune(|engine| {
            engine.record_bytes_max = engine.record_bytes_max.max(config.record_bytes_max);
            engine.backend = backend;
            engine.bridge_threads = config.bridge_threads;
            engine.disk = config.has_hanging_disk.then(|| Arc::new(disk.clone()) as Arc<dyn Disk>);
            let snapshots = &mut engine.core.snapshots;
            snapshots.lag_entries_max = config.lag_entries_max.unwrap_or(snapshots.lag_entries_max);
        });
    for peer in &config.peers {
        builder = builder.peer(peer.node, endpoint(&peer.endpoint)?, peer.address);
    }
    for client in &config.clients {
        builder = builder.client(endpoint(client)?, Rights { append: true, read: true, manage: true });
    }
    Ok(builder)
}

/// All groups of the node; asked again while a shard is too busy for that.
async fn statuses(engine: &Engine) -> Result<Vec<GroupStatus>, RequestError> {
    loop {
        match engine.statuses().await {
            Err(RequestError::Busy { .. } | RequestError::Timeout) => tokio::time::sleep(BUSY_PAUSE).await,
            result => return result,
        }
    }
}

async fn status(engine: &Engine) -> Result<NodeStatus, RequestError> {
    let groups = statuses(engine).await?.into_iter().map(|status| ReplicaStatus {
        group: status.group.0,
        is_leader: status.role == Role::Leader,
        leader: status.leader.map(|node| node.0),
        end: status.end.0,
    });
    let mut sum = NodeStatus { groups: groups.collect(), ..NodeStatus::default() };
    let stats = engine.stats();
    sum.sent_bytes = stats.bridge.bytes_out.iter().sum::<u64>() + stats.bridge.client_bytes_out;
    for thread in engine.thread_costs() {
        let kind = thread.name.split('-').next().unwrap_or_default().to_owned();
        let us = u64::try_from(thread.cpu.as_micros()).unwrap_or(u64::MAX);
        *sum.thread_us.entry(kind).or_default() += us;
    }
    let mut waits = BTreeMap::<_, Waits>::new();
    engine.rings().iter().for_each(|ring| waits.entry(ring.name).or_default().add(&ring.waits));
    sum.waits = waits.iter().map(|(name, waits)| ((*name).to_owned(), waits.counts().to_vec())).collect();
    sum.busy = stats.bridge.requests_busy;
    for shard in stats.shards {
        sum.flushes += shard.flushes;
        sum.flush_us_total += shard.flush_us_total;
        sum.flush_bytes += shard.flush_bytes;
        sum.turns += shard.turns;
        sum.sleeps += shard.sleeps;
        sum.requests += shard.requests;
        sum.frames_sent += shard.frames_sent;
        sum.leaderships_gained += shard.leaderships_gained;
        sum.busy += shard.busy;
        sum.frames_dropped += shard.frames_dropped;
        sum.groups_quarantined += shard.groups_quarantined;
        sum.messages_refused += shard.messages_refused;
        sum.snapshots_taken += shard.snapshots_taken;
        sum.snapshot_chunks_received += shard.snapshot_chunks_received;
    }
    Ok(sum)
}

async fn summary(engine: &Engine) -> Result<NodeSummary, RequestError> {
    let mut summary = NodeSummary::default();
    for status in statuses(engine).await? {
        summary.led += u64::from(status.leader.is_some());
        summary.leading += u64::from(status.role == Role::Leader);
        summary.quiet += u64::from(status.is_quiet);
    }
    Ok(summary)
}

fn say(line: &NodeLine) {
    let text = serde_json::to_string(line).expect("a line serializes");
    let mut out = std::io::stdout().lock();
    // Without a parent to read it, nobody is left to tell.
    let _ = writeln!(out, "{text}").and_then(|()| out.flush());
}

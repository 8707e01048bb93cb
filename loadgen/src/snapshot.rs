//! `loadgen snapshot`: a large state machine is brought to a new learner by a snapshot, while clients go on writing to
//! other groups of the same shard. What that costs them, and either side's memory; and, if asked, SIGKILL of one
//! side in the middle of it.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use iroh_raft::kv::{KvAnswer, KvCommand, KvQuery};
use iroh_raft::net::client::{Client, ClientConfig, ClientError, StateComparison};
use iroh_raft::storage::BackendChoice;
use iroh_raft::{Consistency, GroupId, MemberChange, MemberRole, Message, NodeId, RequestError, cluster_id};
use serde::Serialize;
use tokio::task::JoinSet;

use crate::clients::{finish, interruptible, runtime};
use crate::cluster::{Cluster, ClusterPlan};
use crate::machine::{self, Machine};
use crate::quick::{Folder, LEADERS_DEADLINE, LOOK, QuickError, wait_for};
use crate::recorder::Interval;
use crate::report::{Latency, count, ratio};

/// The group with the large state. The load is on the others.
const LARGE: GroupId = GroupId(1);
/// Bytes of one value of the state.
const VALUE_BYTES: usize = 64 << 10;
/// Values written at a time.
const FILL_IN_FLIGHT: u64 = 16;
/// Time to write a mebibyte of state to all nodes, at most.
const FILL_DEADLINE_PER_MIB: Duration = Duration::from_millis(500);
/// Time for a mebibyte to get to the learner, at most.
const TRANSFER_DEADLINE_PER_MIB: Duration = Duration::from_millis(500);
const DEADLINE: Duration = Duration::from_secs(60);
/// Time without snapshots after which those of the fill are over.
const REST: Duration = Duration::from_secs(3);
/// Entries that a leader to be keeps before its snapshot, when the leader is killed: so few that it has to send the
/// snapshot as well, and not its log.
const LAG_ENTRIES: u64 = 16;
/// Writers of the load, each with one command at a time, of a group of its own.
const WRITERS: u64 = 8;

/// Which side is killed in the middle of the transfer, and started again.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Side {
    /// The new node.
    Learner,
    /// The node that sends.
    Leader,
}

/// What `loadgen snapshot` was asked for.
#[derive(Clone, Debug)]
pub(crate) struct SnapshotPlan {
    pub(crate) state_mib: u64,
    /// How long the load is measured without a transfer.
    pub(crate) duration: Duration,
    pub(crate) kill: Option<Side>,
    pub(crate) data_dir: Option<PathBuf>,
    pub(crate) json: Option<PathBuf>,
}

impl SnapshotPlan {
    fn cluster(&self) -> ClusterPlan {
        ClusterPlan {
            nodes: 3,
            shards: 1,
            bridge_threads: 1,
            groups: 1 + WRITERS as u32,
            record_bytes: 2 * VALUE_BYTES,
            has_state_machines: true,
            spares: 1,
            backend: BackendChoice::Auto,
            has_hanging_disks: false,
            lag_entries_max: (self.kill == Some(Side::Leader)).then_some(LAG_ENTRIES),
        }
    }

    fn deadline(&self, per_mib: Duration) -> Duration {
        DEADLINE + per_mib * u32::try_from(self.state_mib).unwrap_or(u32::MAX)
    }
}

#[derive(Clone, Debug, Serialize)]
struct SnapshotReport {
    state_bytes: u64,
    /// From when the learner came in until it had the whole state.
    transfer_s: f64,
    /// Chunks that the learner took, over all its processes, and those that its snapshot has.
    chunks_received: u64,
    chunks: u64,
    /// Which side was killed, and chunks that the learner had taken by then.
    killed: Option<(Side, u64)>,
    /// Replicas whose state was the same after the transfer, byte for byte by their digests, and those there are.
    replicas_equal: u64,
    replicas: u64,
    /// Most memory of the node that led as the transfer began, beyond what it had before.
    leader_growth_bytes: u64,
    /// Most memory of the learner.
    learner_peak_bytes: u64,
    /// Memory of the node that had no part in the transfer, as that was over: the same state, and what a node has beside
    /// it.
    follower_bytes: u64,
    /// What the learner had more than that.
    learner_growth_bytes: u64,
    /// Of the load, without the transfer and during it.
    calm: Latency,
    transfer: Latency,
    p99_ratio: f64,
    machine: Machine,
}

impl SnapshotReport {
    /// Whether all replicas have the same state, and whoever was to be killed was.
    fn is_success(&self, plan: &SnapshotPlan) -> bool {
        self.replicas_equal == self.replicas && self.killed.map(|(side, _)| side) == plan.kill
    }
}

/// Runs everything and prints the report. Returns whether the learner came to the same state as the others, as the replicas
/// themselves compare it, and the side that was to be killed was.
///
/// # Errors
/// [`QuickError`] when there is nothing to report; processes are gone then, too.
pub(crate) fn run(plan: &SnapshotPlan, stop: &Arc<AtomicBool>) -> Result<bool, QuickError> {
    let folder = Folder::open(plan.data_dir.as_deref())?;
    let mut cluster = Cluster::create(&plan.cluster(), folder.path())?;
    eprintln!("starting 3 nodes in {}", folder.path().display());
    cluster.start()?;
    let late = late("not every group had a leader", LEADERS_DEADLINE, folder.path());
    wait_for(LEADERS_DEADLINE, LOOK, late, stop, || cluster.has_leaders())?;
    let report = measure(plan, &mut cluster, folder.path(), stop)?;
    drop(cluster);
    print(&report);
    if let Some(path) = &plan.json {
        let text = serde_json::to_vec_pretty(&report).expect("a report serializes");
        fs::write(path, text).map_err(|source| QuickError::File { path: path.clone(), source })?;
    }
    Ok(report.is_success(plan))
}

fn late(what: &'static str, deadline: Duration, folder: &Path) -> QuickError {
    QuickError::Late { what, deadline, folder: folder.to_path_buf() }
}

fn measure(
    plan: &SnapshotPlan,
    cluster: &mut Cluster,
    folder: &Path,
    stop: &Arc<AtomicBool>,
) -> Result<SnapshotReport, QuickError> {
    let config = ClientConfig {
        cluster: cluster_id(cluster.name()),
        identity: cluster.client().clone(),
        nodes: cluster.all_addresses().to_vec(),
        bind: None,
        limits: Default::default(),
    };
    let runtime = runtime()?;
    let filler = ClientConfig { nodes: cluster.addresses(), ..config.clone() };
    let begin = Instant::now();
    let fill_deadline = plan.deadline(FILL_DEADLINE_PER_MIB);
    interruptible(&runtime, fill(filler, plan.state_mib, begin + fill_deadline), stop)??;
    finish(&runtime);
    eprintln!("wrote {} MiB in {:.1} s", plan.state_mib, begin.elapsed().as_secs_f64());
    let mut taken = (0, Instant::now());
    let no_rest = late("the nodes did not come to rest after the fill", fill_deadline, folder);
    wait_for(fill_deadline, LOOK, no_rest, stop, || {
        let statuses = cluster.statuses()?;
        let now: u64 = statuses.iter().flatten().map(|status| status.snapshots_taken).sum();
        if now != taken.0 {
            taken = (now, Instant::now());
        }
        Ok(taken.1.elapsed() >= REST)
    })?;

    let load = Load::start(config.clone())?;
    let until = Instant::now() + plan.duration;
    while Instant::now() < until && !stop.load(Ordering::Relaxed) {
        std::thread::sleep(LOOK);
    }
    let calm = load.take();

    let learner = cluster.add_node()?;
    let not_ready = late("the learner did not start", LEADERS_DEADLINE, folder);
    wait_for(LEADERS_DEADLINE, LOOK, not_ready, stop, || cluster.is_ready())?;
    cluster.introduce(learner)?;
    let leader = leader(cluster)?;
    let [mut of_leader, mut of_learner] = [leader, learner].map(|node| Growth::new(cluster, node));
    load.take();
    let begin = Instant::now();
    let changes = [MemberChange { node: learner, role: MemberRole::Learner }];
    interruptible(&runtime, change_members(config.clone(), changes), stop)??;
    let deadline = plan.deadline(TRANSFER_DEADLINE_PER_MIB);
    let wait = has_all(config.clone(), learner, plan.state_mib, begin + deadline);
    let arrival = std::thread::Builder::new()
        .name("arrival".into())
        .spawn(move || Ok::<_, QuickError>(self::runtime()?.block_on(wait)?));
    let arrival = arrival.map_err(QuickError::Thread)?;
    let no_end = late("the learner did not get all of it", deadline, folder);
    let chunks = plan.state_mib * 4;
    let (mut of_killed, mut last) = (0, 0);
    let (mut kill, mut killed) = (plan.kill, None);
    wait_for(deadline, LOOK, no_end, stop, || {
        of_leader.look(cluster);
        of_learner.look(cluster);
        // The two differ only by when they are asked; a node that starts says nothing.
        let Some(status) = cluster.status(learner)? else { return Ok(false) };
        last = status.snapshot_chunks_received;
        if last >= chunks / 4
            && let Some(side) = kill.take()
        {
            let node = if side == Side::Leader { leader } else { learner };
            eprintln!("killed node {node} after {last} of about {chunks} chunks, and start it again");
            cluster.restart_node(node)?;
            killed = Some((side, last));
            if side == Side::Learner {
                of_killed = std::mem::take(&mut last);
            }
        }
        Ok(arrival.is_finished())
    })?;
    arrival.join().map_err(|_| QuickError::Panicked)??;
    let transfer_s = begin.elapsed().as_secs_f64();
    let transfer = load.take();
    let mut bystander = cluster.addresses().into_iter().map(|peer| peer.node);
    let bystander = bystander.find(|node| ![leader, learner].contains(node));
    let follower_bytes =
        bystander.and_then(|node| cluster.pid(node)).and_then(machine::rss_bytes).unwrap_or(0);
    load.stop()?;
    let comparison = interruptible(&runtime, compare(config, Instant::now() + deadline), stop)??;
    let state_bytes = plan.state_mib << 20;
    let [calm, transfer] = [calm, transfer].map(|interval| Latency::of(&interval.latencies));
    Ok(SnapshotReport {
        state_bytes,
        transfer_s,
        chunks_received: of_killed + last,
        chunks,
        killed,
        replicas_equal: comparison
            .majority()
            .map_or(0, |of| comparison.digests().filter(|(_, digest)| *digest == of).count() as u64),
        replicas: comparison.members.len() as u64,
        leader_growth_bytes: of_leader.bytes(),
        learner_peak_bytes: of_learner.most,
        follower_bytes,
        learner_growth_bytes: of_learner.most.saturating_sub(follower_bytes),
        calm,
        transfer,
        p99_ratio: ratio(transfer.p99 as f64, calm.p99 as f64),
        machine: Machine::look(folder),
    })
}

fn print(report: &SnapshotReport) {
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    println!("state            {:.0} MiB", mib(report.state_bytes));
    println!(
        "transfer         {:.1} s, {} MB/s; {} chunks taken of about {}",
        report.transfer_s,
        count(report.state_bytes as f64 / 1e6 / report.transfer_s),
        report.chunks_received,
        report.chunks
    );
    if let Some((side, chunks)) = report.killed {
        println!("killed           the {side:?}, when {chunks} chunks had been taken");
    }
    println!(
        "compared         {} of {} replicas have the same state",
        report.replicas_equal, report.replicas
    );
    println!(
        "memory           leader {:.1} MiB more than before; learner {:.1} MiB at most, {:.1} MiB more than a follower's {:.1}",
        mib(report.leader_growth_bytes),
        mib(report.learner_peak_bytes),
        mib(report.learner_growth_bytes),
        mib(report.follower_bytes)
    );
    for (name, latency) in [("calm", report.calm), ("transfer", report.transfer)] {
        println!(
            "{name:<16} p50 {} us, p99 {} us, p99.9 {} us, max {} us",
            latency.p50, latency.p99, latency.p99_9, latency.max
        );
    }
    println!("p99              {:.2} times as long during the transfer", report.p99_ratio);
}

fn leader(cluster: &mut Cluster) -> Result<NodeId, QuickError> {
    let statuses = cluster.statuses()?;
    let replicas = statuses.iter().flatten().flat_map(|status| &status.groups);
    let mut leaders =
        replicas.filter(|replica| replica.group == LARGE.0).filter_map(|replica| replica.leader);
    leaders.next_back().map(NodeId).ok_or(QuickError::NoLeader { group: LARGE })
}

/// Memory of a node beyond what it had at first.
struct Growth {
    node: NodeId,
    before: u64,
    most: u64,
}

impl Growth {
    fn new(cluster: &Cluster, node: NodeId) -> Growth {
        let before = cluster.pid(node).and_then(machine::rss_bytes).unwrap_or(0);
        Growth { node, before, most: before }
    }

    fn look(&mut self, cluster: &Cluster) {
        let now = cluster.pid(self.node).and_then(machine::rss_bytes).unwrap_or(0);
        self.most = self.most.max(now);
    }

    fn bytes(&self) -> u64 {
        self.most - self.before
    }
}

/// Writes the large state.
async fn fill(config: ClientConfig, mib: u64, until: Instant) -> Result<(), ClientError> {
    let client = Client::connect(config).await?;
    let keys = keys(mib);
    // The last one is written when all others are there.
    let next = Arc::new(AtomicU64::new(0));
    let mut tasks = JoinSet::new();
    for _ in 0..FILL_IN_FLIGHT {
        let (client, next) = (client.clone(), next.clone());
        tasks.spawn(async move {
            loop {
                let key = next.fetch_add(1, Ordering::Relaxed);
                if key >= keys {
                    return Ok::<_, ClientError>(());
                }
                let put = KvCommand::Put { key: key.to_string(), value: value(key) };
                put_until(&client, LARGE, put, until).await?;
            }
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.map_err(|_| ClientError::Closed)??;
    }
    let put = KvCommand::Put { key: keys.to_string(), value: value(keys) };
    put_until(&client, LARGE, put, until).await?;
    client.close();
    client.closed().await;
    Ok(())
}

/// How many values the state is made of.
fn keys(mib: u64) -> u64 {
    (mib << 20) / VALUE_BYTES as u64
}

/// Not the same byte over and over: nothing is to be gained by pages that are alike.
fn value(key: u64) -> Vec<u8> {
    let mut draw = key.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        draw ^= draw << 13;
        draw ^= draw >> 7;
        draw ^= draw << 17;
        draw.to_le_bytes()
    };
    (0..VALUE_BYTES / 8).flat_map(|_| next()).collect()
}

/// Sets a key, again if that was refused or its outcome is unknown: twice is as good as once.
async fn put_until(
    client: &Client,
    group: GroupId,
    put: KvCommand,
    until: Instant,
) -> Result<(), ClientError> {
    let command = put.encode();
    loop {
        match client.propose(group, &command).await {
            Ok(_) => return Ok(()),
            Err(error) if Instant::now() >= until => return Err(error),
            Err(_) => tokio::time::sleep(LOOK).await,
        }
    }
}

async fn change_members(config: ClientConfig, changes: [MemberChange; 1]) -> Result<(), ClientError> {
    let client = Client::connect(config).await?;
    let until = Instant::now() + DEADLINE;
    while let Err(error) = client.change_members(LARGE, &changes).await {
        if Instant::now() >= until {
            return Err(error);
        }
        tokio::time::sleep(LOOK).await;
    }
    client.close();
    client.closed().await;
    Ok(())
}

/// Returns once a node's own replica has the state, the value that was written last included.
async fn has_all(config: ClientConfig, node: NodeId, mib: u64, until: Instant) -> Result<(), ClientError> {
    let client = Client::connect(config).await?;
    // Written when all others are there.
    let last = keys(mib);
    let question = KvQuery::Value { key: last.to_string() }.encode();
    loop {
        // Refused as long as the group is not there, or its state is not.
        let answer = client.query_at(node, LARGE, question.clone(), Consistency::Local).await;
        if let Ok(answer) = answer
            && KvAnswer::decode(&answer.bytes) == Ok(KvAnswer::Value(Some(value(last))))
        {
            break;
        }
        if Instant::now() >= until {
            return Err(ClientError::Request(RequestError::Timeout));
        }
        tokio::time::sleep(LOOK * 5).await;
    }
    client.close();
    client.closed().await;
    Ok(())
}

/// Has the replicas compare their state.
async fn compare(mut config: ClientConfig, until: Instant) -> Result<StateComparison, ClientError> {
    // Each reads all of it, a piece in a turn.
    config.limits.deadline = until.saturating_duration_since(Instant::now());
    let client = Client::connect(config).await?;
    let comparison = loop {
        match client.compare_state(LARGE).await {
            Err(error) if Instant::now() < until => {
                tracing::debug!(%error, "not compared yet");
                tokio::time::sleep(LOOK * 5).await;
            }
            result => break result?,
        }
    };
    client.close();
    client.closed().await;
    Ok(comparison)
}

/// Writers on a thread of their own, and the latencies that they see.
struct Load {
    stop: Arc<AtomicBool>,
    seen: Arc<std::sync::Mutex<Interval>>,
    thread: std::thread::JoinHandle<Result<(), QuickError>>,
}

impl Load {
    fn start(config: ClientConfig) -> Result<Load, QuickError> {
        let stop = Arc::new(AtomicBool::new(false));
        let seen = Arc::new(std::sync::Mutex::new(Interval::new(true)));
        let (ended, interval) = (stop.clone(), seen.clone());
        let run = move || {
            let runtime = runtime()?;
            let result = runtime.block_on(write_all(config, ended, interval));
            finish(&runtime);
            Ok(result?)
        };
        let thread = std::thread::Builder::new().name("load".into()).spawn(run);
        Ok(Load { stop, seen, thread: thread.map_err(QuickError::Thread)? })
    }

    /// What was seen since the last time.
    fn take(&self) -> Interval {
        let mut seen = self.seen.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        std::mem::replace(&mut *seen, Interval::new(true))
    }

    fn stop(self) -> Result<(), QuickError> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_| QuickError::Panicked)?
    }
}

async fn write_all(
    config: ClientConfig,
    stop: Arc<AtomicBool>,
    seen: Arc<std::sync::Mutex<Interval>>,
) -> Result<(), ClientError> {
    let client = Client::connect(config).await?;
    let mut tasks = JoinSet::new();
    for writer in 0..WRITERS {
        let (client, stop, seen) = (client.clone(), stop.clone(), seen.clone());
        tasks.spawn(async move {
            let group = GroupId(LARGE.0 + 1 + writer);
            let mut number = 0_u64;
            while !stop.load(Ordering::Relaxed) {
                number += 1;
                let key = format!("key-{}", number % 64);
                let put = KvCommand::Put { key, value: number.to_le_bytes().to_vec() };
                let begin = Instant::now();
                put_until(&client, group, put, begin + DEADLINE).await?;
                let mut seen = seen.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                seen.record(begin.elapsed(), 1);
            }
            Ok::<_, ClientError>(())
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.map_err(|_| ClientError::Closed)??;
    }
    client.close();
    client.closed().await;
    Ok(())
}

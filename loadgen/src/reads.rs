//! `loadgen reads`: networked clients ask state machines, linearizably and by lease, while a writer changes what they
//! ask for. An answer that is older than what was acknowledged before the question was sent is counted as stale.
//!
//! First many questions in flight, for the rate of each kind; then one at a time, the kinds taking turns, for what
//! a lone question waits.

use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use iroh_raft::kv::{KvAnswer, KvCommand, KvQuery};
use iroh_raft::net::client::{Client, ClientConfig, ClientError};
use iroh_raft::{Consistency, GroupId, Message, cluster_id};
use serde::Serialize;
use tokio::task::JoinSet;

use crate::clients::{finish, interruptible, runtime};
use crate::cluster::{Cluster, ClusterPlan};
use crate::machine::Machine;
use crate::quick::{Folder, LEADERS_DEADLINE, LOOK, QuickError, wait_for};
use crate::recorder::Interval;
use crate::report::{Latency, count, ratio};

/// What every group's writer changes and everybody asks for.
const KEY: &str = "register";
/// Pause of a writer after each acknowledged change: it is there to be missed, not to be measured.
const WRITE_PAUSE: Duration = Duration::from_millis(1);
/// How long a lone reader asks by one kind before it goes over to the other: what one leaves awake is not to help the
/// other.
const TURN: Duration = Duration::from_millis(250);
/// Bytes that a question in flight may take of the client's room.
const QUESTION_BYTES: usize = 256;

/// What `loadgen reads` was asked for.
#[derive(Clone, Debug)]
pub(crate) struct ReadsPlan {
    pub(crate) cluster: ClusterPlan,
    pub(crate) in_flight: u32,
    pub(crate) duration: Duration,
    pub(crate) data_dir: Option<PathBuf>,
    pub(crate) json: Option<PathBuf>,
}

/// What one kind of read gave.
#[derive(Clone, Debug, Serialize)]
struct KindReport {
    reads_per_s: f64,
    reads: u64,
    latency_us: Latency,
    stale: u64,
}

#[derive(Clone, Debug, Serialize)]
struct ReadsReport {
    groups: u32,
    nodes: u16,
    shards: u16,
    in_flight: u32,
    measured_s: f64,
    /// With `in_flight` questions under way.
    linearizable: KindReport,
    lease: KindReport,
    /// With one.
    linearizable_alone: KindReport,
    lease_alone: KindReport,
    /// Commands acknowledged meanwhile.
    writes: u64,
    machine: Machine,
}

/// What readers of one kind found.
struct Found {
    took: Duration,
    interval: Interval,
    stale: u64,
}

/// Readers share it: with a histogram for each, none would stay in a cache, and recording alone took 6 % of the machine.
#[derive(Clone)]
struct Shared(Arc<Mutex<Found>>);

impl Shared {
    fn new() -> Shared {
        let found = Found { took: Duration::ZERO, interval: Interval::new(true), stale: 0 };
        Shared(Arc::new(Mutex::new(found)))
    }

    fn lock(&self) -> MutexGuard<'_, Found> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Found {
    fn report(&self) -> KindReport {
        let reads = self.interval.acked();
        KindReport {
            reads_per_s: ratio(reads as f64, self.took.as_secs_f64()),
            reads,
            latency_us: Latency::of(&self.interval.latencies),
            stale: self.stale,
        }
    }
}

/// The registers, one a group, and what is known to be written to each.
#[derive(Clone)]
struct Registers {
    client: Client,
    acked: Arc<[AtomicU64]>,
    question: Bytes,
}

impl Registers {
    fn group(&self, number: usize) -> (GroupId, &AtomicU64) {
        let at = number % self.acked.len();
        (GroupId(at as u64 + 1), &self.acked[at])
    }

    async fn write(&self, number: usize) -> Result<(), ClientError> {
        let (group, acked) = self.group(number);
        let value = acked.load(Ordering::Relaxed) + 1;
        let put = KvCommand::Put { key: KEY.into(), value: value.to_le_bytes().to_vec() };
        self.client.propose(group, put.encode()).await?;
        acked.store(value, Ordering::Release);
        Ok(())
    }

    /// Asks once. Returns whether the answer is stale.
    async fn read(&self, number: usize, consistency: Consistency) -> Result<bool, ClientError> {
        let (group, acked) = self.group(number);
        let least = acked.load(Ordering::Acquire);
        let answer = self.client.query(group, self.question.clone(), consistency).await?;
        let value = match KvAnswer::decode(&answer.bytes) {
            Ok(KvAnswer::Value(Some(value))) => value.try_into().map_or(0, u64::from_le_bytes),
            _ => 0,
        };
        Ok(value < least)
    }

    async fn read_until(
        self,
        number: usize,
        consistency: Consistency,
        until: Instant,
        found: Shared,
    ) -> Result<(), ClientError> {
        let mut now = Instant::now();
        while now < until {
            let is_stale = self.read(number, consistency).await?;
            let end = Instant::now();
            let mut found = found.lock();
            found.stale += u64::from(is_stale);
            found.interval.record(end - now, 1);
            now = end;
        }
        Ok(())
    }

    /// So many readers at a time.
    async fn read_many(
        &self,
        readers: u32,
        consistency: Consistency,
        time: Duration,
    ) -> Result<Shared, ClientError> {
        let found = Shared::new();
        let begin = Instant::now();
        let mut tasks = JoinSet::new();
        for number in 0..readers as usize {
            let reader = self.clone();
            tasks.spawn(reader.read_until(number, consistency, begin + time, found.clone()));
        }
        while let Some(done) = tasks.join_next().await {
            done.map_err(|_| ClientError::Closed)??;
        }
        found.lock().took = begin.elapsed();
        Ok(found)
    }

    /// One reader, that asks by the one kind for a while and then by the other, in turn.
    async fn read_alone(&self, time: Duration) -> Result<[Shared; 2], ClientError> {
        let found = [Shared::new(), Shared::new()];
        let until = Instant::now() + time;
        while Instant::now() < until {
            for (found, kind) in found.iter().zip([Consistency::Linearizable, Consistency::Lease]) {
                let until_turn = Instant::now() + TURN;
                self.clone().read_until(0, kind, until_turn, found.clone()).await?;
                found.lock().took += TURN;
            }
        }
        Ok(found)
    }
}

/// Runs everything and prints the report. Returns whether no answer was stale.
///
/// # Errors
/// [`QuickError`] when there is nothing to report; processes are gone then, too.
pub(crate) fn run(plan: &ReadsPlan, stop: &Arc<AtomicBool>) -> Result<bool, QuickError> {
    let folder = Folder::open(plan.data_dir.as_deref())?;
    let mut cluster = Cluster::create(&plan.cluster, folder.path())?;
    eprintln!("starting {} nodes in {}", plan.cluster.nodes, folder.path().display());
    cluster.start()?;
    let what = "not every group had a leader";
    let late = QuickError::Late { what, deadline: LEADERS_DEADLINE, folder: folder.path().to_path_buf() };
    wait_for(LEADERS_DEADLINE, LOOK, late, stop, || cluster.has_leaders())?;
    let mut config = ClientConfig {
        cluster: cluster_id(cluster.name()),
        identity: cluster.client().clone(),
        nodes: cluster.addresses(),
        bind: None,
        limits: Default::default(),
    };
    let room = plan.in_flight as usize * QUESTION_BYTES;
    config.limits.in_flight_bytes_max = config.limits.in_flight_bytes_max.max(room);
    let runtime = runtime()?;
    let report = interruptible(&runtime, measure(plan, config, Machine::look(folder.path())), stop)??;
    finish(&runtime);
    drop(cluster);
    print(&report);
    if let Some(path) = &plan.json {
        let text = serde_json::to_vec_pretty(&report).expect("a report serializes");
        fs::write(path, text).map_err(|source| QuickError::File { path: path.clone(), source })?;
    }
    let kinds = [&report.linearizable, &report.lease, &report.linearizable_alone, &report.lease_alone];
    Ok(kinds.iter().all(|kind| kind.stale == 0))
}

async fn measure(
    plan: &ReadsPlan,
    config: ClientConfig,
    machine: Machine,
) -> Result<ReadsReport, ClientError> {
    let client = Client::connect(config).await?;
    let groups = plan.cluster.groups;
    let registers = Registers {
        client: client.clone(),
        acked: (0..groups).map(|_| AtomicU64::new(0)).collect(),
        question: KvQuery::Value { key: KEY.into() }.encode().into(),
    };
    for group in 0..groups as usize {
        registers.write(group).await?;
    }
    let mut writer = JoinSet::new();
    let writes = registers.clone();
    writer.spawn(async move {
        for group in 0.. {
            writes.write(group).await?;
            tokio::time::sleep(WRITE_PAUSE).await;
        }
        Ok::<_, ClientError>(())
    });
    let (many, time) = (plan.in_flight, plan.duration);
    let linearizable = registers.read_many(many, Consistency::Linearizable, time).await?;
    let lease = registers.read_many(many, Consistency::Lease, time).await?;
    let [linearizable_alone, lease_alone] = registers.read_alone(time).await?;
    if let Some(Ok(ended)) = writer.try_join_next() {
        ended?;
    }
    writer.shutdown().await;
    client.close();
    client.closed().await;
    Ok(ReadsReport {
        groups,
        nodes: plan.cluster.nodes,
        shards: plan.cluster.shards,
        in_flight: many,
        measured_s: time.as_secs_f64(),
        linearizable: linearizable.lock().report(),
        lease: lease.lock().report(),
        linearizable_alone: linearizable_alone.lock().report(),
        lease_alone: lease_alone.lock().report(),
        writes: registers.acked.iter().map(|acked| acked.load(Ordering::Relaxed)).sum(),
        machine,
    })
}

fn print(report: &ReadsReport) {
    let lines = [
        ("linearizable", report.in_flight, &report.linearizable),
        ("lease", report.in_flight, &report.lease),
        ("linearizable", 1, &report.linearizable_alone),
        ("lease", 1, &report.lease_alone),
    ];
    for (kind, in_flight, found) in lines {
        let Latency { p50, p99, p99_9, max, .. } = found.latency_us;
        println!(
            "{kind:<13} {in_flight:>6} in flight: {:>9} reads/s, p50 {p50} us, p99 {p99} us, p99.9 {p99_9} us, \
             max {max} us, {} stale",
            count(found.reads_per_s),
            found.stale
        );
    }
    println!("writes        {}", count(report.writes as f64));
}

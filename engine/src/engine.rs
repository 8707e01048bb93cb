//! A running node: its threads, and the handle through which a process uses it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_channel::oneshot;
use glommio::{ExecutorJoinHandle, LocalExecutorBuilder, Placement};
use iroh_raft_core::batch::{Batch, RecordBlock};
use iroh_raft_core::{
    AnswerOn, BootEpoch, BusyReason, ConfState, GroupId, GroupState, GroupStatus, HardState, Index, NodeId,
    Offset, RequestError, Shard, ShardId, Term, Timestamp, shard_of,
};
use iroh_raft_netbridge::bridge::{Bridge, BridgeConfig, BridgeStats, EpochRefusal, PeerEpochs};
use iroh_raft_netbridge::identity::{EndpointId, Identity};
use iroh_raft_netbridge::port::{ShardPort, port_pair};
use iroh_raft_netbridge::ring::{Doorbell, Producer, ring};
use iroh_raft_netbridge::wire::{ClientBody, ReplyBody};
use iroh_raft_storage::{DataFolder, FolderIdentity, OpenShard, ShardOptions};
use rand::rngs::SmallRng;
use rand::{RngCore, SeedableRng};

use crate::config::{EngineConfig, Pinning};
use crate::cpu::{self, CpuError};
use crate::driver::{Command, Driver};
use crate::error::EngineError;
use crate::reader_thread::{self, ReaderPort};
use crate::state_machine::MachineFactory;
use crate::stats::{ShardCounters, ShardStats};
use crate::{awake, membarrier, preflight, writer_thread};

/// Flushes a shard may have on their way to the disk; more wait in the shard, and proposals are
/// refused as busy until the disk has caught up.
const FLUSHES_IN_FLIGHT_MAX: usize = 4096;
/// Fetches a shard may have open at the reader.
const FETCHES_OPEN_MAX: usize = 1024;
/// Requests of this process that wait for a shard's next turn; more are refused as busy.
const COMMANDS_WAITING_MAX: usize = 8192;
/// Time that a dropped engine takes to stop in order.
const DROP_DEADLINE: Duration = Duration::from_secs(5);
/// When a caller that was told Busy should come again.
const BUSY_RETRY_MS: u32 = 5;

/// Where records went.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Appended {
    /// Offset of the first record; the others follow.
    pub first: Offset,
    /// Number of records.
    pub count: u32,
    /// Index of their entry.
    pub index: Index,
    /// Term of their entry.
    pub term: Term,
}

/// Records of a group's log, as one replica has them.
#[derive(Clone, Debug)]
pub struct Records {
    /// First record asked for.
    pub from: Offset,
    /// Offset after this replica's last committed record.
    pub end: Offset,
    batches: Vec<Bytes>,
}

impl Records {
    /// The records from `from` on, each with its offset, read in place.
    pub fn iter(&self) -> impl Iterator<Item = (Offset, &[u8])> {
        // Batches were checked when they entered the log.
        let batches = self.batches.iter().filter_map(|data| Batch::parse(data).ok());
        batches.flat_map(|batch| batch.records()).filter(|(offset, _)| *offset >= self.from)
    }
}

/// Counters of a node since start.
#[derive(Clone, Debug)]
pub struct EngineStats {
    /// Per shard.
    pub shards: Vec<ShardStats>,
    /// Of the bridge.
    pub bridge: BridgeStats,
}

/// A running node. Clones are handles to the same one; any thread and any async runtime may use it.
///
/// When the last handle is dropped, the node stops in order within 5 seconds.
#[derive(Clone, Debug)]
pub struct Engine {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct ShardHandle {
    commands: Producer<Command>,
    counters: Arc<ShardCounters>,
    is_closed: Arc<AtomicBool>,
}

struct Inner {
    node: NodeId,
    endpoint: EndpointId,
    address: SocketAddr,
    request_deadline: Duration,
    shards: Vec<ShardHandle>,
    bridge: Mutex<Option<Bridge>>,
    threads: Mutex<Option<Threads>>,
    failure: Arc<Failure>,
}

impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Inner")
            .field("node", &self.node)
            .field("address", &self.address)
            .finish_non_exhaustive()
    }
}

/// A shard's executor. Its channel closes when its loop has ended.
struct Executor {
    name: String,
    handle: ExecutorJoinHandle<()>,
    running: mpsc::Receiver<()>,
}

struct Threads {
    executors: Vec<Executor>,
    helpers: Vec<(String, JoinHandle<()>)>,
    stop: Arc<AtomicBool>,
    doorbells: Vec<Arc<Doorbell>>,
    /// Held until all threads are gone: it holds the data folder's lock.
    folder: DataFolder,
}

/// The first thing that broke, and who waits for it.
#[derive(Debug, Default)]
struct Failure {
    state: Mutex<(Option<Arc<EngineError>>, Vec<oneshot::Sender<()>>)>,
}

impl Failure {
    fn set(&self, error: EngineError) {
        tracing::error!(%error, "the node failed");
        let mut state = lock(&self.state);
        state.0.get_or_insert_with(|| Arc::new(error));
        for waiter in state.1.drain(..) {
            let _ = waiter.send(());
        }
    }
}

/// A poisoned lock guards plain data here: whoever panicked left it whole.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Epochs(iroh_raft_storage::PeerEpochs);

impl PeerEpochs for Epochs {
    fn observe(&mut self, node: NodeId, epoch: BootEpoch, boot_id: [u8; 16]) -> Result<(), EpochRefusal> {
        self.0.observe(node, epoch, boot_id).map_err(|error| match error {
            iroh_raft_storage::StorageError::PeerRolledBack { seen, .. } => EpochRefusal { seen },
            other => {
                // It could not be remembered durably: refusing keeps the promise, the peer dials again.
                tracing::error!(%node, error = %other, "a peer's boot epoch could not be stored");
                EpochRefusal { seen: epoch }
            }
        })
    }
}

impl Engine {
    /// Starts a node. Blocks for as long as recovery takes.
    ///
    /// # Errors
    /// [`EngineError`] for everything that is wrong with the settings, the machine or the data
    /// folder, before anything stored is changed.
    pub(crate) fn start(config: EngineConfig, machines: &Arc<MachineFactory>) -> Result<Engine, EngineError> {
        config.check()?;
        let placements = placements(&config)?;
        preflight::check_key(&config)?;
        preflight::check_machine()?;
        preflight::check_address(config.bind)?;
        membarrier::register();

        let identity = FolderIdentity { cluster: config.cluster, node: config.node, shards: config.shards };
        let mut folder = DataFolder::open(&config.data_dir, identity)?;
        let key = Identity::load_or_create(&config.key_file())?;
        let mut opened = Vec::new();
        for shard in 0..config.shards {
            let options = ShardOptions {
                cache_bytes: config.journal_cache_bytes,
                tail_bytes: config.core.window_bytes_max,
                ..ShardOptions::default()
            };
            opened.push(folder.open_shard(ShardId(shard), options)?);
        }

        let failure = Arc::new(Failure::default());
        let bridge_doorbell = Doorbell::new();
        let shard_doorbells: Vec<_> = opened.iter().map(|_| Doorbell::new()).collect();
        let (shard_ports, bridge_ports): (Vec<_>, Vec<_>) = (0..config.shards)
            .zip(&shard_doorbells)
            .map(|(shard, doorbell)| {
                port_pair(ShardId(shard), config.ring_items_max, doorbell, &bridge_doorbell)
            })
            .unzip();

        let boot = folder.boot();
        let bridge_config = BridgeConfig {
            cluster: config.cluster,
            node: config.node,
            bind: config.bind,
            identity: key,
            peers: config.peers.clone(),
            clients: config.clients.clone(),
            shards: config.shards,
            boot_epoch: boot.epoch,
            boot_id: boot.id,
            cpu: config.bridge_cpu,
            limits: config.limits.clone(),
        };
        let epochs = Box::new(Epochs(folder.take_peer_epochs()));
        let on_fatal = failure.clone();
        let bridge = Bridge::start(
            bridge_config,
            bridge_ports,
            bridge_doorbell,
            epochs,
            Box::new(move |error| on_fatal.set(EngineError::Bridge(error))),
        )?;
        let (endpoint, address) = (bridge.endpoint_id(), bridge.local_addr());

        let mut starting = Starting {
            config: &config,
            machines,
            failure: &failure,
            threads: Threads {
                executors: Vec::new(),
                helpers: Vec::new(),
                stop: Arc::default(),
                doorbells: Vec::new(),
                folder,
            },
            handles: Vec::new(),
            reader_ports: Vec::new(),
            reader_doorbell: Doorbell::new(),
        };
        let parts = opened.into_iter().zip(shard_ports).zip(&shard_doorbells).zip(&placements);
        let mut started = Ok(());
        for (((open, port), doorbell), placement) in parts {
            started = started.and_then(|()| starting.start_shard(open, port, doorbell, placement));
        }
        let started = started.and_then(|()| starting.start_reader());
        let Starting { threads, handles, .. } = starting;
        let inner = Inner {
            node: config.node,
            endpoint,
            address,
            request_deadline: config.request_deadline,
            shards: handles,
            bridge: Mutex::new(Some(bridge)),
            threads: Mutex::new(Some(threads)),
            failure,
        };
        let engine = Engine { inner: Arc::new(inner) };
        // On failure the handle goes, and with it the threads that did start.
        started.map(|()| engine)
    }

    /// This node.
    #[must_use]
    pub fn node(&self) -> NodeId {
        self.inner.node
    }

    /// This node's public key: what peers and clients know it by.
    #[must_use]
    pub fn endpoint_id(&self) -> EndpointId {
        self.inner.endpoint
    }

    /// The UDP address of this node's endpoint.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.inner.address
    }

    /// Appends records to a group, together and in order. Answered when a quorum has them on stable
    /// storage.
    ///
    /// # Errors
    /// [`RequestError`]; its `retry()` says whether sending again can put the records in twice.
    pub async fn append<R: AsRef<[u8]>>(
        &self,
        group: GroupId,
        records: &[R],
    ) -> Result<Appended, RequestError> {
        if records.is_empty() {
            return Err(RequestError::Invalid { what: "no records" });
        }
        let block = RecordBlock::from_records(records);
        match self.request(group, ClientBody::Append { block, answer: AnswerOn::Commit }).await? {
            ReplyBody::Appended { first, count, index, term } => Ok(Appended { first, count, index, term }),
            _ => Err(RequestError::Invalid { what: "the shard answered something else" }),
        }
    }

    /// Proposes one command, as bytes, and waits for the state machine's response.
    ///
    /// # Errors
    /// [`RequestError`], as for [`append`](Engine::append).
    pub async fn propose(&self, group: GroupId, command: &[u8]) -> Result<Bytes, RequestError> {
        let block = RecordBlock::from_records(&[command]);
        match self.request(group, ClientBody::Append { block, answer: AnswerOn::Apply }).await? {
            ReplyBody::Responses { responses, .. } => {
                let response = responses.records().next().unwrap_or_default();
                Ok(Bytes::copy_from_slice(response))
            }
            _ => Err(RequestError::Invalid { what: "the shard answered something else" }),
        }
    }

    /// Asks the state machine. Linearizable: the answer covers everything that was acknowledged
    /// anywhere before the call. Otherwise: what this replica has applied, however old.
    ///
    /// # Errors
    /// [`RequestError`]; asking again is always safe.
    pub async fn query(
        &self,
        group: GroupId,
        query: Bytes,
        is_linearizable: bool,
    ) -> Result<Bytes, RequestError> {
        match self.request(group, ClientBody::Query { is_linearizable, query }).await? {
            ReplyBody::Answer { answer, .. } => Ok(answer),
            _ => Err(RequestError::Invalid { what: "the shard answered something else" }),
        }
    }

    /// Reads committed records of this node's replica, about `bytes_max` bytes of them.
    ///
    /// # Errors
    /// [`RequestError::PastEnd`] beyond the end; others as everywhere.
    pub async fn read(&self, group: GroupId, from: Offset, bytes_max: u32) -> Result<Records, RequestError> {
        match self.request(group, ClientBody::ReadRecords { from, bytes_max }).await? {
            ReplyBody::Records { from, end, batches } => Ok(Records { from, end, batches }),
            _ => Err(RequestError::Invalid { what: "the shard answered something else" }),
        }
    }

    /// How the groups of this node stand, in order of group.
    pub async fn statuses(&self) -> Vec<GroupStatus> {
        let mut statuses = Vec::new();
        for shard in &self.inner.shards {
            let (reply, answer) = oneshot::channel();
            if shard.commands.push(Command::Statuses(reply)).is_ok()
                && !shard.is_closed.load(Ordering::SeqCst)
            {
                statuses.extend(answer.await.unwrap_or_default());
            }
        }
        statuses.sort_unstable_by_key(|status| status.group);
        statuses
    }

    /// Counters since start.
    #[must_use]
    pub fn stats(&self) -> EngineStats {
        EngineStats {
            shards: self.inner.shards.iter().map(|shard| shard.counters.snapshot()).collect(),
            bridge: lock(&self.inner.bridge).as_ref().map(Bridge::stats).unwrap_or_default(),
        }
    }

    /// What broke this node, if something did. It then acknowledges nothing more in the shard
    /// concerned and has to be restarted.
    #[must_use]
    pub fn failure(&self) -> Option<Arc<EngineError>> {
        lock(&self.inner.failure.state).0.clone()
    }

    /// Waits until something breaks this node, and says what.
    pub async fn failed(&self) -> Arc<EngineError> {
        loop {
            let waiter = {
                let mut state = lock(&self.inner.failure.state);
                if let Some(error) = &state.0 {
                    return error.clone();
                }
                let (sender, waiter) = oneshot::channel();
                state.1.push(sender);
                waiter
            };
            let _ = waiter.await;
        }
    }

    /// Stops the node in order: hands leadership over, answers what is open, flushes, closes the
    /// connections, joins every thread.
    ///
    /// # Errors
    /// [`EngineError::ShutdownTimeout`] when threads are still running after `deadline`,
    /// [`EngineError::Panicked`] when one had died.
    pub async fn shutdown(self, deadline: Duration) -> Result<(), EngineError> {
        let until = Instant::now() + deadline;
        self.hand_over(deadline / 4).await;
        let (sender, done) = oneshot::channel();
        let inner = self.inner.clone();
        let name = String::from("shutdown");
        // Joining blocks; the caller's runtime must not.
        std::thread::Builder::new()
            .name(name.clone())
            .spawn(move || {
                let _ = sender.send(inner.stop(until.saturating_duration_since(Instant::now())));
            })
            .map_err(|source| EngineError::Thread { name: name.clone(), source })?;
        done.await.unwrap_or(Err(EngineError::Panicked { name }))
    }

    /// Asks every shard to give its leaderships away and waits for it, within the deadline.
    async fn hand_over(&self, deadline: Duration) {
        let (timeout, timed_out) = oneshot::channel();
        let alone: Vec<_> = self
            .inner
            .shards
            .iter()
            .filter_map(|shard| {
                let (reply, answer) = oneshot::channel();
                shard.commands.push(Command::HandOver(reply)).is_ok().then_some(answer)
            })
            .collect();
        // No runtime to lean on: a thread keeps the time.
        let timer = std::thread::Builder::new().name("hand-over-timer".into()).spawn(move || {
            std::thread::park_timeout(deadline);
            let _ = timeout.send(());
        });
        if let Ok(timer) = timer {
            futures_util::future::select(futures_util::future::join_all(alone), timed_out).await;
            timer.thread().unpark();
        }
    }

    async fn request(&self, group: GroupId, body: ClientBody) -> Result<ReplyBody, RequestError> {
        let shard = shard_of(group, self.inner.shards.len() as u16);
        let Some(shard) = self.inner.shards.get(usize::from(shard.0)) else {
            return Err(RequestError::UnknownGroup);
        };
        let (reply, answer) = oneshot::channel();
        let command = Command::Request { group, deadline: self.inner.request_deadline, body, reply };
        if shard.commands.push(command).is_err() {
            return Err(RequestError::Busy { reason: BusyReason::Ring, retry_after_ms: BUSY_RETRY_MS });
        }
        // The shard sets it before it empties the ring for the last time.
        if shard.is_closed.load(Ordering::SeqCst) {
            return Err(RequestError::ShuttingDown);
        }
        match answer.await {
            Ok(ReplyBody::Failed(error)) => Err(error),
            Ok(body) => Ok(body),
            // The shard ended before it answered.
            Err(oneshot::Canceled) => Err(RequestError::OutcomeUnknown { leader: None }),
        }
    }
}

impl Inner {
    /// Stops every thread, in the order in which data flows. Does nothing the second time.
    fn stop(&self, deadline: Duration) -> Result<(), EngineError> {
        let Some(threads) = lock(&self.threads).take() else { return Ok(()) };
        let until = Instant::now() + deadline;
        let left = || until.saturating_duration_since(Instant::now());
        for shard in &self.shards {
            // A full ring is drained within a turn; a dead shard is joined below all the same.
            let mut command = Command::Stop;
            while let Err(back) = shard.commands.push(command) {
                if left().is_zero() {
                    break;
                }
                command = back;
                std::thread::yield_now();
            }
        }
        let Threads { executors, helpers, stop, doorbells, folder } = threads;
        let mut late = Vec::new();
        let mut panicked = None;
        for Executor { name, handle, running } in executors {
            if running.recv_timeout(left()) == Err(mpsc::RecvTimeoutError::Timeout) {
                late.push(name);
            } else if handle.join().is_err() {
                panicked = Some(name);
            }
        }
        let bridge = lock(&self.bridge).take();
        if let Some(bridge) = bridge
            && let Err(error) = bridge.shutdown(left().max(Duration::from_millis(100)))
        {
            tracing::warn!(%error, "the bridge did not stop in order");
            late.push("bridge".into());
        }
        stop.store(true, Ordering::Release);
        doorbells.iter().for_each(|doorbell| {
            doorbell.ring();
        });
        for (name, helper) in helpers {
            if !wait_until(left(), || helper.is_finished()) {
                late.push(name);
            } else if helper.join().is_err() {
                panicked = Some(name);
            }
        }
        drop(folder);
        match panicked {
            _ if !late.is_empty() => Err(EngineError::ShutdownTimeout { deadline, threads: late.join(", ") }),
            Some(name) => Err(EngineError::Panicked { name }),
            None => Ok(()),
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if let Err(error) = self.stop(DROP_DEADLINE) {
            tracing::warn!(%error, "a dropped node did not stop in order");
        }
    }
}

/// Threads cannot be joined with a deadline: look until it is so, a millisecond apart.
fn wait_until(deadline: Duration, mut is_so: impl FnMut() -> bool) -> bool {
    let until = Instant::now() + deadline;
    loop {
        if is_so() {
            return true;
        }
        if Instant::now() >= until {
            return false;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// The CPU of each shard, if it has one.
fn placements(config: &EngineConfig) -> Result<Vec<Placement>, EngineError> {
    // Read here, on the caller's thread, before anything is pinned.
    let fixed = match &config.pinning {
        Pinning::Unpinned => Vec::new(),
        Pinning::Auto => cpu::allowed()?,
        Pinning::Cpus(cpus) => {
            cpu::check(cpus)?;
            if cpus.len() < usize::from(config.shards) {
                return Err(CpuError::TooFew { shards: config.shards, cpus: cpus.len() }.into());
            }
            cpus.clone()
        }
    };
    if let Some(cpu) = config.bridge_cpu {
        cpu::check(&[cpu])?;
    }
    let placement = |shard: usize| match fixed.get(shard % fixed.len().max(1)) {
        Some(&cpu) => Placement::Fixed(cpu),
        None => Placement::Unbound,
    };
    Ok((0..usize::from(config.shards)).map(placement).collect())
}

/// A node on its way up.
struct Starting<'a> {
    config: &'a EngineConfig,
    machines: &'a Arc<MachineFactory>,
    failure: &'a Arc<Failure>,
    threads: Threads,
    handles: Vec<ShardHandle>,
    reader_ports: Vec<ReaderPort>,
    reader_doorbell: Arc<Doorbell>,
}

impl Starting<'_> {
    fn start_shard(
        &mut self,
        open: OpenShard,
        port: ShardPort,
        doorbell: &Arc<Doorbell>,
        placement: &Placement,
    ) -> Result<(), EngineError> {
        let shard_id = port.shard;
        let counters = Arc::new(ShardCounters::default());
        let writer_doorbell = Doorbell::new();
        let (appends, append_queue) = ring(FLUSHES_IN_FLIGHT_MAX, &writer_doorbell);
        // As many results as flushes: the writer always finds a place.
        let (written_results, written) =
            ring(FLUSHES_IN_FLIGHT_MAX + writer_thread::APPENDS_PER_COMMIT_MAX, doorbell);
        let (fetches, fetch_queue) = ring(FETCHES_OPEN_MAX, &self.reader_doorbell);
        let (answers, fetched) = ring(FETCHES_OPEN_MAX + 1, doorbell);
        let (commands, command_queue) = ring(COMMANDS_WAITING_MAX, doorbell);

        let is_closed = Arc::<AtomicBool>::default();
        self.handles.push(ShardHandle { commands, counters: counters.clone(), is_closed: is_closed.clone() });
        self.reader_ports.push(ReaderPort {
            shard: shard_id,
            reader: open.reader,
            fetches: fetch_queue,
            answers,
        });
        let writer = writer_thread::spawn(
            shard_id,
            open.writer,
            append_queue,
            writer_doorbell.clone(),
            written_results,
            self.threads.stop.clone(),
            counters.clone(),
        )?;
        self.threads.helpers.push((format!("writer-{shard_id}"), writer));
        self.threads.doorbells.push(writer_doorbell);

        let mut core = self.config.core.clone();
        core.node = self.config.node;
        core.seed = SmallRng::from_os_rng().next_u64();
        let groups = self.groups_of(shard_id, open.groups);
        let group_ids: Vec<GroupId> =
            groups.iter().filter(|group| group.has_state_machine).map(|group| group.group).collect();
        let shard = Shard::new(core, open.last_seq, groups, Timestamp(0))
            .map_err(|error| EngineError::Config { setting: "core", problem: error.to_string() })?;
        let failure = self.failure.clone();
        let machines = self.machines.clone();
        let (node, record_bytes_max) = (self.config.node, self.config.record_bytes_max);
        let block_bytes_max = self.config.core.pending_bytes_max;
        let doorbell = doorbell.clone();
        let (ready, running) = mpsc::channel();
        let name = format!("shard-{shard_id}");
        let executor = LocalExecutorBuilder::new(placement.clone())
            .name(&name)
            .io_memory(preflight::EXECUTOR_IO_BYTES)
            .preempt_timer(awake::PREEMPT_TIMER)
            .spawn(move || async move {
                let made = |group: GroupId| machines(group).map(|machine| (group, Some(machine)));
                let driver = Driver {
                    shard_id,
                    node,
                    shard,
                    origin: Instant::now(),
                    record_bytes_max,
                    block_bytes_max,
                    doorbell,
                    port,
                    commands: command_queue,
                    appends,
                    written,
                    fetches,
                    fetched,
                    machines: group_ids.into_iter().filter_map(made).collect::<BTreeMap<_, _>>(),
                    counters,
                    is_closed,
                    on_fenced: Box::new(move |shard, source| {
                        failure.set(EngineError::Fenced { shard, source })
                    }),
                };
                let _ = ready.send(());
                glommio::spawn_local(awake::keep_awake()).detach();
                driver.run().await;
                drop(ready);
            })
            .map_err(|error| EngineError::IoUring { problem: error.to_string() })?;
        if running.recv().is_err() {
            // The executor ended before it ran: its result says why.
            let problem =
                executor.join().err().map_or_else(|| "it ended at once".into(), |error| error.to_string());
            return Err(EngineError::IoUring { problem });
        }
        self.threads.executors.push(Executor { name, handle: executor, running });
        Ok(())
    }

    fn start_reader(&mut self) -> Result<(), EngineError> {
        let ports = std::mem::take(&mut self.reader_ports);
        let reader = reader_thread::spawn(ports, self.reader_doorbell.clone(), self.threads.stop.clone())?;
        self.threads.helpers.push(("reader".into(), reader));
        self.threads.doorbells.push(self.reader_doorbell.clone());
        Ok(())
    }

    /// The groups of a shard: those that its journal holds, and the configured ones that are new.
    fn groups_of(&self, shard: ShardId, stored: Vec<GroupState>) -> Vec<GroupState> {
        let mut voters: Vec<NodeId> = self.config.peers.iter().map(|peer| peer.node).collect();
        voters.push(self.config.node);
        voters.sort_unstable();
        let mut groups: BTreeMap<GroupId, GroupState> =
            stored.into_iter().map(|state| (state.group, state)).collect();
        for &group in self.config.groups.iter().filter(|group| shard_of(**group, self.config.shards) == shard)
        {
            groups.entry(group).or_insert_with(|| GroupState {
                group,
                hard_state: HardState::default(),
                conf_state: ConfState { voters: voters.clone(), ..ConfState::default() },
                is_durable: false,
                term_runs: Vec::new(),
                last: Index(0),
                next_offset: Offset(0),
                tail: Vec::new(),
                conf_changes: Vec::new(),
                has_state_machine: false,
            });
        }
        for state in groups.values_mut() {
            state.has_state_machine = (self.machines)(state.group).is_some();
        }
        groups.into_values().collect()
    }
}

//! How a node comes up: everything checked first, then folder, bridge, and the threads of each shard.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::rc::Rc;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use futures_util::FutureExt;
use glommio::{LocalExecutorBuilder, Placement as CpuPlacement};
use iroh_raft_core::{
    BootEpoch, ConfState, GroupId, GroupState, NodeId, Placement, Shard, ShardId, Timestamp,
};
use iroh_raft_driver::lines::{Closing, Command};
use iroh_raft_driver::recording::Origin;
use iroh_raft_driver::snapshots::{SnapshotWorker, Snapshots};
use iroh_raft_driver::{Driver, DriverParts, Observer};
use iroh_raft_netbridge::allow::PeerAddress;
use iroh_raft_netbridge::bridge::{Bridge, BridgeConfig, EpochRefusal, PeerEpochs};
use iroh_raft_netbridge::identity::{EndpointId, Identity};
use iroh_raft_netbridge::port::{ShardPort, port_pair};
use iroh_raft_netbridge::ring::{Doorbell, RingMeter, ring, weighed_ring};
use iroh_raft_storage::{DataFolder, FolderIdentity, KnownNode, KnownNodes, OpenShard, ShardOptions};
use rand::rngs::SmallRng;
use rand::{RngCore, SeedableRng};

use crate::config::{EngineConfig, Pinning};
use crate::cpu::{self, CpuError};
use crate::driver;
use crate::engine::{Engine, Executor, Inner, ShardHandle, Threads};
use crate::error::EngineError;
use crate::mover_thread::{MoverFailure, MoverLine, MoverPort, Scrub};
use crate::reader_thread::{self, ReaderPort};
use crate::snapshot_thread::{self, SnapshotPort};
use crate::spare_memory::NodeRest;
use crate::writer_thread::{Watch, WriterPort};
use crate::{awake, membarrier, mover_thread, preflight, record, writer_thread};
use iroh_raft_driver::state_machine::MachineFactory;
use iroh_raft_driver::stats::ShardCounters;

/// Flushes a shard may have on their way to the disk; more wait in the shard, and proposals are
/// refused as busy until the disk has caught up.
const FLUSHES_IN_FLIGHT_MAX: usize = 4096;
/// Fetches a shard may have open at the reader.
const FETCHES_OPEN_MAX: usize = 1024;
/// Findings of the scrub on their way to the shard; the scrub waits with more.
const FINDINGS_WAITING_MAX: usize = 256;
/// Requests of this process that wait for a shard's next turn; more are refused as busy.
const COMMANDS_WAITING_MAX: usize = 8192;
/// Jobs of a shard's snapshots at the snapshot thread, and answers; more wait in the shard, which has a few for each
/// transfer.
const SNAPSHOT_JOBS_MAX: usize = 256;

/// Starts a node. Blocks for as long as recovery takes.
///
/// # Errors
/// [`EngineError`] for everything that is wrong with the settings, the machine or the data
/// folder, before anything stored is changed.
pub(crate) fn start(config: EngineConfig, machines: &Arc<MachineFactory>) -> Result<Engine, EngineError> {
    config.check()?;
    let placement = config.placement()?;
    let cpus = cpus(&config)?;
    preflight::check_key(&config)?;
    preflight::check_machine()?;
    preflight::check_address(config.bind)?;
    membarrier::register();

    let identity =
        FolderIdentity { cluster: config.cluster, node: config.node, placement: placement.clone() };
    let mut folder = open_folder(&config, identity)?;
    let key = Identity::load_or_create(config.key_file())?;
    let mut opened = Vec::new();
    for shard in 0..config.shards {
        let options = ShardOptions { tail_bytes: config.core.window_bytes_max, ..config.storage.clone() };
        opened.push(folder.open_shard(ShardId(shard), options)?);
    }

    let watch = Watch::default();
    let bridge_doorbell = Doorbell::new();
    let shard_doorbells: Vec<_> = opened.iter().map(|_| Doorbell::new()).collect();
    let (shard_ports, bridge_ports): (Vec<_>, Vec<_>) = (0..config.shards)
        .zip(&shard_doorbells)
        .map(|(shard, doorbell)| {
            let (items_max, bytes_max) = (config.ring_items_max, config.ring_bytes_max);
            port_pair(ShardId(shard), items_max, bytes_max, doorbell, &bridge_doorbell)
        })
        .unzip();

    let boot = folder.boot();
    let nodes = folder.take_known_nodes();
    let (peers, removed) = known_peers(&config, &nodes)?;
    let bridge_config = BridgeConfig {
        cluster: config.cluster,
        node: config.node,
        bind: config.bind,
        identity: key,
        peers,
        removed,
        clients: config.clients.clone(),
        placement: placement.clone(),
        boot_epoch: boot.epoch,
        boot_id: boot.id,
        threads: config.bridge_threads,
        cpus: config.bridge_cpus.clone(),
        limits: config.limits.clone(),
    };
    let epochs = Box::new(Epochs(folder.take_peer_epochs()));
    let on_fatal = watch.failure.clone();
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
        placement: &placement,
        machines,
        watch: &watch,
        rings: Vec::new(),
        rest: config.tunes_allocator.then(|| NodeRest::new(config.shards)),
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
        mover_ports: Vec::new(),
        mover_doorbell: Doorbell::new(),
        snapshot_ports: Vec::new(),
        snapshot_doorbell: Doorbell::new(),
    };
    let parts = opened.into_iter().zip(shard_ports).zip(&shard_doorbells).zip(&cpus);
    let mut started = Ok(());
    for (((open, port), doorbell), cpu) in parts {
        started = started.and_then(|()| starting.start_shard(open, port, doorbell, cpu));
    }
    let started = started.and_then(|()| starting.start_reader());
    let started = started.and_then(|()| starting.start_mover()).and_then(|()| starting.start_snapshots());
    let Starting { threads, handles, rings, .. } = starting;
    let engine = Engine::new(Inner {
        node: config.node,
        placement,
        endpoint,
        address,
        request_deadline: config.request_deadline,
        has_peers: !config.peers.is_empty(),
        shards: handles,
        rings,
        book: watch.book,
        bridge: Mutex::new(Some(bridge)),
        nodes: Mutex::new(Some(nodes)),
        threads: Mutex::new(Some(threads)),
        failure: watch.failure,
    });
    // On failure the handle goes, and with it the threads that did start.
    started.map(|()| engine)
}

fn open_folder(config: &EngineConfig, identity: FolderIdentity) -> Result<DataFolder, EngineError> {
    if let Some(disk) = &config.disk {
        return Ok(DataFolder::open_on(&config.data_dir, identity, disk.clone())?);
    }
    let mut folder = DataFolder::open(&config.data_dir, identity)?;
    let (backend, calibration) = folder.choose_backend(config.backend)?;
    match calibration {
        Some(calibration) => tracing::info!(%backend, %calibration, "files are written by calibration"),
        None => tracing::info!(%backend, "files are written as set"),
    }
    Ok(folder)
}

/// CPU time of the calling thread.
fn thread_cpu_time() -> Duration {
    Duration::try_from(rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime)).unwrap_or_default()
}

type Removed = Vec<(NodeId, EndpointId)>;

/// The configured peers and those that were added since, without those that were removed.
fn known_peers(
    config: &EngineConfig,
    nodes: &KnownNodes,
) -> Result<(Vec<PeerAddress>, Removed), EngineError> {
    let mut peers = config.peers.clone();
    let mut removed = Removed::new();
    for (node, KnownNode { key, addr, is_removed }) in nodes.iter() {
        let endpoint = EndpointId::from_bytes(&key).map_err(|error| EngineError::Config {
            setting: "data_dir",
            problem: format!("the key stored for node {node} is none: {error}"),
        })?;
        if is_removed {
            peers.retain(|peer| {
                let is_it = peer.node == node || peer.endpoint == endpoint;
                if is_it {
                    tracing::warn!(%node, "a configured peer was removed for good: take it out of the settings");
                }
                !is_it
            });
            removed.push((node, endpoint));
        } else {
            // What was said last holds: the node may have another address now.
            peers.retain(|peer| peer.node != node);
            peers.push(PeerAddress { node, endpoint, addr });
        }
    }
    Ok((peers, removed))
}

struct Epochs(iroh_raft_storage::PeerEpochs);

impl PeerEpochs for Epochs {
    fn observe(&mut self, node: NodeId, epoch: BootEpoch, boot_id: [u8; 16]) -> Result<(), EpochRefusal> {
        self.0.observe(node, epoch, boot_id).map_err(|error| match error {
            iroh_raft_storage::StorageError::PeerRolledBack { seen, .. } => EpochRefusal::RolledBack { seen },
            other => {
                // It could not be remembered durably: refusing keeps the promise, the peer dials again.
                tracing::error!(%node, error = %other, "a peer's boot epoch could not be stored");
                EpochRefusal::NotStored
            }
        })
    }
}

/// The CPU of each shard, if it has one.
fn cpus(config: &EngineConfig) -> Result<Vec<CpuPlacement>, EngineError> {
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
    cpu::check(&config.bridge_cpus)?;
    let of_shard = |shard: usize| match fixed.get(shard % fixed.len().max(1)) {
        Some(&cpu) => CpuPlacement::Fixed(cpu),
        None => CpuPlacement::Unbound,
    };
    Ok((0..usize::from(config.shards)).map(of_shard).collect())
}

/// A node on its way up.
struct Starting<'a> {
    config: &'a EngineConfig,
    placement: &'a Placement,
    machines: &'a Arc<MachineFactory>,
    watch: &'a Watch,
    /// For its numbers.
    rings: Vec<(&'static str, ShardId, RingMeter)>,
    /// `None` where the allocator is left alone.
    rest: Option<Arc<NodeRest>>,
    threads: Threads,
    handles: Vec<ShardHandle>,
    reader_ports: Vec<ReaderPort>,
    reader_doorbell: Arc<Doorbell>,
    mover_ports: Vec<MoverPort>,
    mover_doorbell: Arc<Doorbell>,
    snapshot_ports: Vec<SnapshotPort>,
    snapshot_doorbell: Arc<Doorbell>,
}

impl Starting<'_> {
    fn start_shard(
        &mut self,
        open: OpenShard,
        port: ShardPort,
        doorbell: &Arc<Doorbell>,
        cpu: &CpuPlacement,
    ) -> Result<(), EngineError> {
        let shard_id = port.shard;
        let counters = Arc::new(ShardCounters::default());
        let writer_doorbell = Doorbell::new();
        let (appends, append_queue) = ring(FLUSHES_IN_FLIGHT_MAX, &writer_doorbell);
        // Two results a flush at most, and more than can be under way: the writer always finds a place.
        let (written_results, written) =
            ring(2 * (FLUSHES_IN_FLIGHT_MAX + writer_thread::APPENDS_PER_COMMIT_MAX), doorbell);
        let (fetches, fetch_queue) = ring(FETCHES_OPEN_MAX, &self.reader_doorbell);
        let (answers, fetched) = ring(FETCHES_OPEN_MAX, doorbell);
        let bytes_max = self.config.ring_bytes_max;
        let (commands, command_queue) =
            weighed_ring(COMMANDS_WAITING_MAX, bytes_max, Command::bytes, doorbell);
        self.rings.extend([
            ("bridge to shard", shard_id, port.from_bridge.meter()),
            ("shard to bridge", shard_id, port.to_bridge.meter()),
            ("process to shard", shard_id, command_queue.meter()),
            ("shard to writer", shard_id, append_queue.meter()),
            ("writer to shard", shard_id, written.meter()),
            ("shard to reader", shard_id, fetch_queue.meter()),
            ("reader to shard", shard_id, fetched.meter()),
        ]);

        let is_closed = Arc::<AtomicBool>::default();
        self.handles.push(ShardHandle { commands, counters: counters.clone(), is_closed: is_closed.clone() });
        self.reader_ports.push(ReaderPort { reader: open.reader, fetches: fetch_queue, answers });
        let (finding_sender, findings) = ring(FINDINGS_WAITING_MAX, doorbell);
        let (due, move_due) = ring(1, &self.mover_doorbell);
        let (jobs, job_queue) = ring(SNAPSHOT_JOBS_MAX, &self.snapshot_doorbell);
        let (snapshots_done, done) = ring(SNAPSHOT_JOBS_MAX, doorbell);
        let failure = Arc::<MoverFailure>::default();
        let snapshots = Snapshots::new(jobs, done);
        self.snapshot_ports.push(SnapshotPort {
            worker: SnapshotWorker::new(open.snapshots),
            jobs: job_queue,
            done: snapshots_done,
            writer: writer_doorbell.clone(),
            failure: failure.clone(),
        });
        self.mover_ports.push(MoverPort {
            shard: shard_id,
            mover: open.mover,
            due: move_due,
            writer: writer_doorbell.clone(),
            failure: failure.clone(),
            scrub: Scrub::new(shard_id, open.scrubber, self.config.scrub_period, finding_sender),
        });
        let port_of_writer = WriterPort {
            shard: shard_id,
            writer: open.writer,
            queue: append_queue,
            doorbell: writer_doorbell.clone(),
            results: written_results,
            mover: MoverLine { due, failure },
            counters: counters.clone(),
        };
        let writer = writer_thread::spawn(port_of_writer, self.threads.stop.clone(), self.watch)?;
        self.threads.helpers.push((format!("writer-{shard_id}"), writer));
        self.threads.doorbells.push(writer_doorbell);

        let mut core = self.config.core.clone();
        core.node = self.config.node;
        (core.shard, core.placement) = (shard_id, self.placement.clone());
        core.seed = SmallRng::from_os_rng().next_u64();
        let groups = self.groups_of(shard_id, open.groups);
        let epoch = self.threads.folder.boot().epoch;
        let (last_seq, now) = (open.last_seq, Timestamp(0));
        let recorder = self.config.recording.as_ref().map(|recording| {
            let origin = Origin { shard: shard_id, config: &core, last_seq, groups: &groups, now };
            record::start(recording, epoch, origin)
        });
        let recorder = recorder.transpose()?;
        let group_count = groups.len();
        let shard = Shard::new(core, last_seq, groups, now)
            .map_err(|error| EngineError::Config { setting: "core", problem: error.to_string() })?;
        let (failure, watch) = (self.watch.failure.clone(), self.watch.clone());
        let machines = self.machines.clone();
        let retention = self.config.retention.clone();
        let (node, record_bytes_max) = (self.config.node, self.config.record_bytes_max);
        let block_bytes_max = self.config.block_bytes_max();
        let (apply_budget, flush_bytes_max) = (self.config.apply_budget, self.config.flush_bytes_max);
        let (doorbell, rest) = (doorbell.clone(), self.rest.clone());
        let (ready, running) = mpsc::channel();
        let name = format!("shard-{shard_id}");
        let lost_name = name.clone();
        let executor = LocalExecutorBuilder::new(cpu.clone())
            .name(&name)
            .io_memory(preflight::EXECUTOR_IO_BYTES)
            .preempt_timer(awake::PREEMPT_TIMER)
            .spawn(move || async move {
                watch.book.enter(&lost_name);
                let driver = Driver::new(DriverParts {
                    shard_id,
                    node,
                    shard,
                    record_bytes_max,
                    block_bytes_max,
                    port,
                    commands: command_queue,
                    appends,
                    written,
                    fetches,
                    fetched,
                    findings,
                    snapshots,
                    machines,
                    apply_budget,
                    flush_bytes_max,
                    retention,
                    counters,
                    cpu_time: thread_cpu_time,
                    closing: Closing(is_closed),
                    on_fenced: Box::new(move |shard, source| {
                        failure.set(EngineError::Fenced { shard, source });
                    }),
                    observer: recorder.map(|recorder| Box::new(recorder) as Box<dyn Observer>),
                });
                let _ = ready.send(());
                let is_resting = Rc::<Cell<bool>>::default();
                glommio::spawn_local(awake::keep_awake(is_resting.clone())).detach();
                // A panic here is a bug of ours; the shard is lost, and the node says so.
                if AssertUnwindSafe(driver::run(driver, doorbell, is_resting, rest, group_count))
                    .catch_unwind()
                    .await
                    .is_err()
                {
                    watch.failure.set(EngineError::Panicked { name: lost_name });
                }
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
        let reader =
            reader_thread::spawn(ports, self.reader_doorbell.clone(), self.threads.stop.clone(), self.watch)?;
        self.threads.helpers.push(("reader".into(), reader));
        self.threads.doorbells.push(self.reader_doorbell.clone());
        Ok(())
    }

    fn start_mover(&mut self) -> Result<(), EngineError> {
        let ports = std::mem::take(&mut self.mover_ports);
        let mover =
            mover_thread::spawn(ports, self.mover_doorbell.clone(), self.threads.stop.clone(), self.watch)?;
        self.threads.helpers.push(("mover".into(), mover));
        self.threads.doorbells.push(self.mover_doorbell.clone());
        Ok(())
    }

    fn start_snapshots(&mut self) -> Result<(), EngineError> {
        let ports = std::mem::take(&mut self.snapshot_ports);
        let snapshots = snapshot_thread::spawn(
            ports,
            self.snapshot_doorbell.clone(),
            self.threads.stop.clone(),
            self.watch,
            self.config.tunes_allocator,
        )?;
        self.threads.helpers.push(("snapshots".into(), snapshots));
        self.threads.doorbells.push(self.snapshot_doorbell.clone());
        Ok(())
    }

    /// The groups of a shard: those that its journal holds, and the configured ones that are new.
    fn groups_of(&self, shard: ShardId, stored: Vec<GroupState>) -> Vec<GroupState> {
        let mut voters = self.config.voters.clone();
        if voters.is_empty() {
            voters.extend(self.config.peers.iter().map(|peer| peer.node));
            voters.push(self.config.node);
        }
        voters.sort_unstable();
        voters.dedup();
        let mut groups: BTreeMap<GroupId, GroupState> =
            stored.into_iter().map(|state| (state.group, state)).collect();
        // Whoever is to take part later is invited then.
        let new = self.config.groups.iter().filter(|_| voters.contains(&self.config.node));
        for &group in new.filter(|group| self.placement.shard_of(**group) == shard) {
            groups.entry(group).or_insert_with(|| {
                let conf_state = ConfState { voters: voters.clone(), ..ConfState::default() };
                GroupState::fresh(group, conf_state, false)
            });
        }
        for state in groups.values_mut() {
            state.has_state_machine = (self.machines)(state.group).is_some();
            let kept = self.config.retention.iter().find(|(group, _)| *group == state.group);
            state.retention = kept.map(|(_, retention)| *retention).unwrap_or_default();
        }
        groups.into_values().collect()
    }
}

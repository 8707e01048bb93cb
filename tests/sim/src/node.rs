//! The nodes: starting one on what its disk holds, killing it, cutting its power.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fs::File;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::Duration;

use iroh_raft_core::{
    ClusterId, FlushSeq, GroupId, GroupState, Input, NodeId, Outputs, Placement, Shard, ShardConfig, ShardId,
    Timestamp,
};
use iroh_raft_driver::lines::{Closing, Command};
use iroh_raft_driver::recording::{Origin, Recorder};
use iroh_raft_driver::snapshots::{SnapshotWorker, Snapshots};
use iroh_raft_driver::state_machine::{Machine, MachineFactory};
use iroh_raft_driver::stats::ShardCounters;
use iroh_raft_driver::{Driver, DriverParts, Observer};
use iroh_raft_netbridge::port::{ToShard, port_pair};
use iroh_raft_netbridge::ring::{Doorbell, Producer, ring};
use iroh_raft_storage::fault::FaultDisk;
use iroh_raft_storage::{DataFolder, OpenShard, StorageError};
use rand::Rng;

use crate::bank::{Audited, Books};
use crate::checkers::ensure;
use crate::clock::{NodeClock, sleep};
use crate::machine::Registers;
use crate::placing;
use crate::plan::Plan;
use crate::sim::{ByNode, Shared};
use crate::tasks;

/// Bytes that a ring between bridge and shard takes for each of its places: few enough that frames with many entries fill it.
const RING_ITEM_BYTES: usize = 64 << 10;
/// Bytes on their way to the disk from which on a shard takes nothing more: few enough that slow disks come to it.
const FLUSH_BYTES_MAX: usize = 256 << 10;
/// Time that a process takes to end after its shard has fenced itself, and to be started again.
const RESTART_AFTER: Duration = Duration::from_millis(300);
/// Bound of a recording: of the whole of any run there is.
const RECORDING_BYTES_MAX: u64 = 16 << 30;
/// Time in which a process that has ended closes its files.
const CLOSED_AFTER: Duration = Duration::from_millis(1);
pub(crate) const FOLDER: &str = "/data";
pub(crate) const CLUSTER: ClusterId = ClusterId([7; 16]);

/// A machine: its disk stays, its processes come and go.
struct OneNode {
    disk: FaultDisk,
    boots: u64,
    /// How its groups were placed at its last start.
    placement: Placement,
    process: Option<Process>,
    drift_ppm: i64,
    wall_offset_ms: Arc<AtomicI64>,
    /// Its process has ended, and its files are not closed yet.
    is_closing: bool,
    /// Its disk is damaged: it is not started again.
    is_halted: bool,
    /// It is lost for good, as far as anybody knows: nobody starts it.
    is_lost: bool,
}

struct Process {
    handle: madsim::runtime::NodeHandle,
    ports: Vec<Producer<ToShard>>,
    commands: Vec<Producer<Command>>,
    /// A shard has fenced itself: the process ends.
    is_fenced: Arc<AtomicBool>,
    /// The starts of the nodes whose placement its shards were told.
    told: ByNode<u64>,
}

pub(crate) struct Machines(ByNode<OneNode>);

impl Machines {
    pub(crate) fn new(plan: &Plan) -> Machines {
        let one = |id: NodeId| {
            let node = OneNode {
                disk: FaultDisk::lasting(plan.seed ^ id.0 << 32),
                boots: 0,
                placement: Placement::even(plan.shards).expect("a shard"),
                process: None,
                drift_ppm: if plan.slow.contains(&id) { -plan.drift_ppm } else { plan.drift_ppm },
                wall_offset_ms: Arc::default(),
                is_closing: false,
                is_halted: false,
                is_lost: false,
            };
            (id, node)
        };
        Machines(plan.node_ids().map(one).collect())
    }

    fn node(&self, id: NodeId) -> &OneNode {
        &self.0[&id]
    }

    fn process(&self, id: NodeId) -> Option<&Process> {
        self.node(id).process.as_ref()
    }

    pub(crate) fn boot_of(&self, id: NodeId) -> u64 {
        self.node(id).boots
    }

    /// How the groups of a node were placed at its last start.
    pub(crate) fn placement(&self, id: NodeId) -> &Placement {
        &self.node(id).placement
    }

    /// Which start of a node has told the process of another one how its groups are placed; 0 if none.
    pub(crate) fn told(&self, id: NodeId, by: NodeId) -> u64 {
        self.process(id).and_then(|process| process.told.get(&by)).copied().unwrap_or_default()
    }

    pub(crate) fn set_told(&mut self, id: NodeId, by: NodeId, boot: u64) {
        let node = self.0.get_mut(&id).expect("a node of the plan");
        node.process.as_mut().map(|process| process.told.insert(by, boot));
    }

    pub(crate) fn is_up(&self, id: NodeId) -> bool {
        self.process(id).is_some()
    }

    pub(crate) fn is_halted(&self, id: NodeId) -> bool {
        self.node(id).is_halted
    }

    pub(crate) fn disk(&self, id: NodeId) -> FaultDisk {
        self.node(id).disk.clone()
    }

    pub(crate) fn wall_offset_ms(&self, id: NodeId) -> Arc<AtomicI64> {
        self.node(id).wall_offset_ms.clone()
    }

    pub(crate) fn ports(&self, id: NodeId) -> &[Producer<ToShard>] {
        self.process(id).map_or(&[], |process| &process.ports)
    }

    pub(crate) fn commands(&self, id: NodeId) -> &[Producer<Command>] {
        self.process(id).map_or(&[], |process| &process.commands)
    }

    /// The shard of a node that a group is on.
    pub(crate) fn shard_of(&self, id: NodeId, group: GroupId) -> ShardId {
        self.placement(id).shard_of(group)
    }

    pub(crate) fn port(&self, id: NodeId, shard: ShardId) -> Option<&Producer<ToShard>> {
        self.ports(id).get(usize::from(shard.0))
    }

    /// The process of a node, for madsim.
    pub(crate) fn handle(&self, id: NodeId) -> Option<madsim::runtime::NodeHandle> {
        self.process(id).map(|process| process.handle.clone())
    }
}

/// Feeds the checkers of a run with what one shard takes and says.
struct Watch {
    sim: Shared,
    node: NodeId,
    shard: ShardId,
    recorder: Option<Recorder>,
    /// What its banks were seen to hold since it was asked last.
    books: Books,
}

impl Observer for Watch {
    fn input(&mut self, now: Timestamp, input: &Input) {
        if let Some(recorder) = &mut self.recorder {
            recorder.input(now, input);
        }
        let looks = std::mem::take(&mut *self.books.lock().expect("one thread"));
        let mut checks = self.sim.checks.borrow_mut();
        for look in looks {
            let is_void = checks.recoveries.is_void(self.node, look.group);
            let checked = checks.banks.stands(self.node, &look, is_void);
            checks.note(checked);
        }
        checks.input(self.node, self.shard, now, input);
    }

    fn turn(&mut self, now: Timestamp, shard: &Shard, outputs: &Outputs) {
        if let Some(recorder) = &mut self.recorder {
            recorder.turn(now, shard, outputs);
        }
        self.sim.checks.borrow_mut().turn(self.node, self.shard, now, shard, outputs);
    }
}

/// The recorder of a shard, if the run has one for it.
fn recorder(sim: &Shared, id: NodeId, boot: u64, origin: Origin<'_>) -> Option<Recorder> {
    let target = sim.recorded.as_ref().filter(|target| (target.node, target.shard) == (id, origin.shard))?;
    let mut path = target.file.clone().into_os_string();
    path.push(format!(".{boot}"));
    let file = File::create(&path).expect("a recording can be made");
    Some(Recorder::new(Box::new(file), RECORDING_BYTES_MAX, origin))
}

/// Starts a node on what its disk holds. One whose disk is damaged stays down for good.
pub(crate) fn boot(sim: &Shared, id: NodeId) {
    let (disk, clock, wanted) = {
        let mut nodes = sim.nodes.borrow_mut();
        let node = nodes.0.get_mut(&id).expect("a node of the plan");
        if node.is_halted || node.is_lost || node.is_closing || node.process.is_some() {
            return;
        }
        node.boots += 1;
        let wanted = placing::draw(&sim.plan, id, node.boots, &node.placement);
        let clock = NodeClock::new(node.drift_ppm, node.wall_offset_ms.clone());
        (node.disk.clone(), clock, wanted)
    };
    match open(sim, id, &disk, wanted) {
        Ok((folder, opened)) => start(sim, id, &disk, &clock, folder, opened),
        Err(_) if disk.is_dead() => {
            // Its power was cut meanwhile.
            cut_power(sim, id);
            boot(sim, id);
        }
        Err(error) if is_damage(&error) => {
            sim.tell(|| format!("node {id} stays down: {error}"));
            sim.mark("node halted by damage");
            let checked = ensure(sim.plan.liars.contains(&id), "damage has a cause", || {
                format!("node {id} does not start: {error}")
            });
            sim.checks.borrow_mut().note(checked);
            sim.nodes.borrow_mut().0.get_mut(&id).expect("a node of the plan").is_halted = true;
        }
        Err(error) => {
            sim.tell(|| format!("node {id} does not start: {error}"));
            sim.mark("boot failed: io");
        }
    }
}

fn is_damage(error: &StorageError) -> bool {
    matches!(
        error,
        StorageError::MissingManifest { .. }
            | StorageError::MissingBoot { .. }
            | StorageError::MissingJournal { .. }
            | StorageError::MissingFile { .. }
            | StorageError::DamagedFile { .. }
            | StorageError::ForeignJournal { .. }
            | StorageError::JournalRolledBack { .. }
            | StorageError::DamagedJournal { .. }
            | StorageError::Corrupt { .. }
            | StorageError::LogRolledBack { .. }
            | StorageError::JournalPanicked { .. }
    )
}

fn open(
    sim: &Shared,
    id: NodeId,
    disk: &FaultDisk,
    wanted: Placement,
) -> Result<(DataFolder, Vec<OpenShard>), StorageError> {
    let (mut folder, placement) = placing::open_folder(sim, id, disk, wanted)?;
    let opened = placement.shards().map(|shard| folder.open_shard(shard, sim.plan.storage.clone()));
    let opened = opened.collect::<Result<Vec<_>, _>>()?;
    sim.nodes.borrow_mut().0.get_mut(&id).expect("a node of the plan").placement = placement;
    Ok((folder, opened))
}

fn groups_of(sim: &Shared, id: NodeId, shard: ShardId, stored: Vec<GroupState>) -> Vec<GroupState> {
    let mut groups: BTreeMap<GroupId, GroupState> =
        stored.into_iter().map(|state| (state.group, state)).collect();
    let here = sim
        .plan
        .groups
        .iter()
        .filter(|group| group.voters.contains(&id) && group.begins_on.is_none_or(|node| node == id));
    let nodes = sim.nodes.borrow();
    for group in here.filter(|group| nodes.shard_of(id, group.id) == shard) {
        groups.entry(group.id).or_insert_with(|| group.fresh());
    }
    for state in groups.values_mut() {
        let plan = sim.plan.group(state.group);
        (state.has_state_machine, state.retention) = (plan.has_machine, plan.retention);
    }
    groups.into_values().collect()
}

/// What makes the state machines of a shard.
fn machines(plan: &Plan, books: &Books) -> Arc<MachineFactory> {
    let with_machine = plan.groups.iter().filter(|group| group.has_machine);
    let are_banks: BTreeMap<GroupId, bool> = with_machine.map(|group| (group.id, group.is_bank)).collect();
    let (filler_bytes, books) = (plan.filler_bytes, books.clone());
    Arc::new(move |group| {
        let machine: Box<dyn Machine> = match are_banks.get(&group)? {
            true => Box::new(Audited::new(group, books.clone())),
            false => Box::new(Registers::new(filler_bytes)),
        };
        Some(machine)
    })
}

fn start(
    sim: &Shared,
    id: NodeId,
    disk: &FaultDisk,
    clock: &NodeClock,
    folder: DataFolder,
    opened: Vec<OpenShard>,
) {
    let plan = &sim.plan;
    let placement = sim.nodes.borrow().placement(id).clone();
    sim.checks.borrow_mut().placed(id, &placement);
    let is_fenced = Arc::<AtomicBool>::default();
    let bridge_bell = Doorbell::new();
    let (mut ports, mut bridge_ports, mut running) = (Vec::new(), Vec::new(), Vec::new());
    let mut command_senders = Vec::new();
    for (shard_id, open) in placement.shards().zip(opened) {
        let last_seq: FlushSeq = open.last_seq;
        sim.checks.borrow_mut().booted(id, shard_id, last_seq, &open.groups);
        let bell = Doorbell::new();
        let writer_bell = Doorbell::new();
        let (port, bridge_port) =
            port_pair(shard_id, plan.ring, plan.ring * RING_ITEM_BYTES, &bell, &bridge_bell);
        ports.push(bridge_port.to_shard.clone());
        bridge_ports.push(bridge_port);
        let (appends, append_queue) = ring(plan.flushes, &writer_bell);
        let (results, written) = ring(2 * (plan.flushes + plan.commit), &bell);
        let (reader_bell, mover_bell) = (Doorbell::new(), Doorbell::new());
        let (fetches, fetch_queue) = ring(plan.fetches, &reader_bell);
        let (answers, fetched) = ring(plan.fetches, &bell);
        let (command_sender, commands) = ring(1, &bell);
        command_senders.push(command_sender);
        let snapshot_bell = Doorbell::new();
        let (jobs, job_queue) = ring(plan.fetches, &snapshot_bell);
        let (snapshots_done, done) = ring(plan.fetches, &bell);
        let (finding_sender, findings) = ring(1, &bell);
        let (due, move_due) = ring(1, &mover_bell);
        let groups = groups_of(sim, id, shard_id, open.groups);
        let books = Books::default();
        let machines = machines(plan, &books);
        let config = ShardConfig {
            node: id,
            shard: shard_id,
            placement: placement.clone(),
            seed: sim.random().random(),
            ..plan.core.clone()
        };
        let now = clock.now();
        let origin = Origin { shard: shard_id, config: &config, last_seq, groups: &groups, now };
        let recorder = recorder(sim, id, sim.nodes.borrow().boot_of(id), origin);
        let shard = Shard::new(config, last_seq, groups, now).expect("a sound configuration");
        let fenced = is_fenced.clone();
        let driver = Driver::new(DriverParts {
            shard_id,
            node: id,
            shard,
            record_bytes_max: plan.record_bytes_max.max(64),
            block_bytes_max: 4 << 20,
            port,
            closing: Closing(Arc::default()),
            commands,
            appends,
            flush_bytes_max: FLUSH_BYTES_MAX,
            written,
            fetches,
            fetched,
            findings,
            snapshots: Snapshots::new(jobs, done),
            machines,
            apply_budget: plan.apply_budget,
            retention: plan.groups.iter().map(|group| (group.id, group.retention)).collect(),
            counters: Arc::new(ShardCounters::default()),
            // What a turn costs is no matter of the simulated time.
            cpu_time: || Duration::ZERO,
            on_fenced: Box::new(move |_, _| fenced.store(true, Ordering::Relaxed)),
            observer: Some(Box::new(Watch { sim: sim.clone(), node: id, shard: shard_id, recorder, books })),
        });
        let (failure, moves) = (Rc::default(), Rc::default());
        running.push(tasks::ShardTasks {
            driver,
            bell,
            writer: tasks::WriterTask {
                writer: open.writer,
                queue: append_queue,
                bell: writer_bell.clone(),
                results,
                due,
                failure: Rc::clone(&failure),
                moves: Rc::clone(&moves),
            },
            mover: tasks::MoverTask {
                mover: open.mover,
                scrubber: open.scrubber,
                due: move_due,
                bell: mover_bell,
                writer: writer_bell.clone(),
                failure: Rc::clone(&failure),
                findings: finding_sender,
                moves,
            },
            reader: tasks::ReaderTask { reader: open.reader, queue: fetch_queue, bell: reader_bell, answers },
            snapshots: tasks::SnapshotsTask {
                worker: SnapshotWorker::new(open.snapshots),
                jobs: job_queue,
                bell: snapshot_bell,
                done: snapshots_done,
                writer: writer_bell,
                failure,
            },
        });
    }
    let bridge = tasks::BridgeTask { ports: bridge_ports, bell: bridge_bell };
    let process = tasks::process(sim.clone(), id, clock.clone(), disk.clone(), folder, running, bridge);
    FIRST_TASK.set(Some(Box::pin(process)));
    let runtime = madsim::runtime::Handle::current();
    let node = runtime.create_node().name(format!("node {id}"));
    let node = node.init(|| FIRST_TASK.take().expect("set just before"));
    let handle = node.build();
    sim.nodes.borrow_mut().0.get_mut(&id).expect("a node of the plan").process =
        Some(Process { handle, ports, commands: command_senders, is_fenced, told: ByNode::new() });
}

thread_local! {
    /// What a new madsim node runs: it asks for it by a function that may hold nothing of this thread.
    static FIRST_TASK: Cell<Option<Pin<Box<dyn Future<Output = ()>>>>> = const { Cell::new(None) };
}

/// Ends a node's process at once; what it wrote is still in the page cache.
pub(crate) fn kill(sim: &Shared, id: NodeId) {
    stop(sim, id, None);
}

/// Ends a node's process, and starts no other until somebody lets it go.
pub(crate) fn hold_down(sim: &Shared, id: NodeId) {
    kill(sim, id);
    sim.nodes.borrow_mut().0.get_mut(&id).expect("a node of the plan").is_lost = true;
}

/// A node that was taken for lost may be started again.
pub(crate) fn let_go(sim: &Shared, id: NodeId) {
    sim.nodes.borrow_mut().0.get_mut(&id).expect("a node of the plan").is_lost = false;
}

/// Ends a node's process, which closes its files in order.
pub(crate) async fn shut_down(sim: &Shared, id: NodeId) {
    let process = {
        let mut nodes = sim.nodes.borrow_mut();
        let node = nodes.0.get_mut(&id).expect("a node of the plan");
        let process = node.process.take();
        node.is_closing |= process.is_some();
        process
    };
    let Some(process) = process else { return };
    madsim::runtime::Handle::current().kill(process.handle.id());
    sim.checks.borrow_mut().stopped(id);
    sim.tell(|| format!("node {id} shuts down"));
    // What its tasks hold is dropped when they would go on.
    sleep(CLOSED_AFTER).await;
    let mut nodes = sim.nodes.borrow_mut();
    let node = nodes.0.get_mut(&id).expect("a node of the plan");
    node.disk = node.disk.restart(None);
    node.is_closing = false;
}

/// Takes a node's power: of what was not durable, any part may be left.
pub(crate) fn cut_power(sim: &Shared, id: NodeId) {
    let seed = sim.random().random();
    stop(sim, id, Some(seed));
}

fn stop(sim: &Shared, id: NodeId, power_cut: Option<u64>) {
    let process = {
        let mut nodes = sim.nodes.borrow_mut();
        let node = nodes.0.get_mut(&id).expect("a node of the plan");
        // With the power would go the mark of the newest commit, which may be damaged by a lie: both together are what the files do
        // not cover (FORMAT.md, What recovery trusts).
        let power_cut = power_cut.filter(|_| !node.disk.has_lied_lately());
        // First, so that nothing of what the tasks do when they are dropped reaches the disk.
        node.disk = node.disk.restart(power_cut);
        node.process.take()
    };
    if let Some(process) = process {
        madsim::runtime::Handle::current().kill(process.handle.id());
        sim.checks.borrow_mut().stopped(id);
        sim.tell(|| format!("node {id} stops{}", if power_cut.is_some() { " without power" } else { "" }));
    }
}

/// Does what an operator's supervisor does: restarts processes that have fenced themselves.
pub(crate) async fn supervise(sim: Shared) {
    loop {
        sleep(RESTART_AFTER).await;
        for id in sim.plan.node_ids() {
            let is_fenced = sim
                .nodes
                .borrow()
                .process(id)
                .is_some_and(|process| process.is_fenced.load(Ordering::Relaxed));
            if is_fenced {
                kill(&sim, id);
                boot(&sim, id);
            }
        }
    }
}

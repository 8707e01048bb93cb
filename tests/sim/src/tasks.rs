//! What runs on a node: a task for each thread of the real one, with the time that it would take.

use std::cell::{Cell, RefCell};
use std::future::pending;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use iroh_raft_core::{Append, NodeId};
use iroh_raft_driver::lines::{Finding, Found, Wanted, Written};
use iroh_raft_driver::snapshots::{SnapshotDone, SnapshotJob, SnapshotWorker};
use iroh_raft_driver::{Driver, Next};
use iroh_raft_netbridge::port::{BridgePort, ToBridge};
use iroh_raft_netbridge::ring::{Consumer, Doorbell, Producer};
use iroh_raft_netbridge::wire::{FrameLimits, PeerFrame};
use iroh_raft_storage::fault::FaultDisk;
use iroh_raft_storage::{DataFolder, JournalWriter, LogReader, Mover, Scrubber, StorageError};
use madsim::task::spawn_local;
use rand::rngs::SmallRng;

use crate::checkers::ensure;
use crate::clients;
use crate::clock::{NodeClock, sleep, wait};
use crate::network::{self, joined};
use crate::plan::within;
use crate::sim::Shared;

/// Time between two steps of the scrub, and what a step reads.
const SCRUB_EVERY: Duration = Duration::from_millis(500);
const SCRUB_BYTES: u64 = 256 << 10;
/// Time between two looks at how much room is left, while there is little.
const SPACE_LOOK_PAUSE: Duration = Duration::from_millis(200);
/// Time between two removals of what is left of old snapshots.
const COLLECT_EVERY: Duration = Duration::from_millis(100);

/// Turns without a pause after which a shard is known to have lost its rest.
const TURNS_MAX: u32 = 100_000;

/// A mover's failure, for its shard's writer.
pub(crate) type Failure = Rc<RefCell<Option<StorageError>>>;

pub(crate) struct ShardTasks {
    pub(crate) driver: Driver,
    pub(crate) bell: Arc<Doorbell>,
    pub(crate) writer: WriterTask,
    pub(crate) mover: MoverTask,
    pub(crate) reader: ReaderTask,
    pub(crate) snapshots: SnapshotsTask,
}

pub(crate) struct WriterTask {
    pub(crate) writer: JournalWriter,
    pub(crate) queue: Consumer<Append>,
    /// Rung by the shard and by the mover.
    pub(crate) bell: Arc<Doorbell>,
    pub(crate) results: Producer<Written>,
    pub(crate) due: Producer<()>,
    pub(crate) failure: Failure,
    pub(crate) moves: Rc<Cell<u64>>,
}

pub(crate) struct MoverTask {
    pub(crate) mover: Mover,
    pub(crate) scrubber: Scrubber,
    pub(crate) due: Consumer<()>,
    pub(crate) bell: Arc<Doorbell>,
    pub(crate) writer: Arc<Doorbell>,
    pub(crate) failure: Failure,
    pub(crate) findings: Producer<Finding>,
    /// How many there were.
    pub(crate) moves: Rc<Cell<u64>>,
}

pub(crate) struct ReaderTask {
    pub(crate) reader: LogReader,
    pub(crate) queue: Consumer<Wanted>,
    pub(crate) bell: Arc<Doorbell>,
    pub(crate) answers: Producer<Found>,
}

pub(crate) struct SnapshotsTask {
    pub(crate) worker: SnapshotWorker,
    pub(crate) jobs: Consumer<SnapshotJob>,
    pub(crate) bell: Arc<Doorbell>,
    pub(crate) done: Producer<SnapshotDone>,
    pub(crate) writer: Arc<Doorbell>,
    pub(crate) failure: Failure,
}

pub(crate) struct BridgeTask {
    pub(crate) ports: Vec<BridgePort>,
    pub(crate) bell: Arc<Doorbell>,
}

/// What the tasks of one process have in common.
#[derive(Clone)]
struct Place {
    sim: Shared,
    node: NodeId,
    disk: FaultDisk,
}

impl Place {
    /// A disk without power answers nobody: its machine is gone with it.
    async fn check_power(&self) {
        if self.disk.is_dead() {
            pending::<()>().await;
        }
    }

    /// Waits as long as the disk stalled in the call before which it had stalled for `before_us`.
    async fn stall(&self, before_us: u64) {
        let stalled_us = self.disk.stalled_us() - before_us;
        if stalled_us > 0 {
            self.sim.mark("disk stalled");
            sleep(Duration::from_micros(stalled_us)).await;
        }
    }
}

/// A node's process: runs until it is killed.
pub(crate) async fn process(
    sim: Shared,
    node: NodeId,
    clock: NodeClock,
    disk: FaultDisk,
    folder: DataFolder,
    shards: Vec<ShardTasks>,
    bridge: BridgeTask,
) {
    let place = Place { sim, node, disk };
    for ShardTasks { driver, bell, writer, mover, reader, snapshots } in shards {
        spawn_local(run_driver(place.clone(), driver, bell, clock.clone()));
        spawn_local(run_writer(place.clone(), writer));
        spawn_local(run_mover(place.clone(), mover));
        spawn_local(run_reader(place.clone(), reader));
        spawn_local(run_snapshots(place.clone(), snapshots));
    }
    spawn_local(run_bridge(place.clone(), bridge));
    let () = pending().await;
    drop(folder);
}

async fn run_driver(place: Place, mut driver: Driver, bell: Arc<Doorbell>, clock: NodeClock) {
    let mut random = place.sim.random();
    let turn = place.sim.plan.turn;
    let mut turns = 0;
    loop {
        // What a turn takes, it takes between its first look at the clock and the rings: so a pause strikes there, too.
        let began = Cell::new(Some(clock.now()));
        sleep(within(&mut random, turn)).await;
        let next = driver.turn(|| began.take().unwrap_or_else(|| clock.now()), clock.wall());
        let now = clock.now();
        turns += 1;
        match next {
            Next::Over => return,
            Next::Again => {}
            Next::Sleep(until) => {
                if until.is_none_or(|at| at > now) {
                    turns = 0;
                }
                let time = until.map(|at| clock.until(at));
                wait(&bell, time, || driver.has_input()).await;
            }
        }
        let checked = ensure(turns < TURNS_MAX, "shards come to rest", || {
            format!(
                "node {} has made {turns} turns without a rest, and wants {next:?}: {driver:?}",
                place.node
            )
        });
        place.sim.checks.borrow_mut().note(checked);
    }
}

async fn run_writer(place: Place, mut task: WriterTask) {
    let mut random = place.sim.random();
    let plan = &place.sim.plan;
    let mut is_space_low = false;
    let mut batch: Vec<Append> = Vec::new();
    loop {
        if let Some(error) = task.failure.take() {
            return fail(&place, &task, error).await;
        }
        if task.writer.is_full() {
            place.sim.mark("writer waited for the mover");
            // Full: it has been said.
            let _ = task.due.push(());
            // One move may not be enough: looked at, and asked for, anew after each.
            let moves = task.moves.get();
            wait(&task.bell, None, || task.moves.get() > moves || task.failure.borrow().is_some()).await;
            continue;
        }
        let pause = is_space_low.then_some(SPACE_LOOK_PAUSE);
        wait(&task.bell, pause, || !task.queue.is_empty() || task.failure.borrow().is_some()).await;
        sleep(within(&mut random, plan.flush) / 2).await;
        while batch.len() < plan.commit
            && let Some(append) = task.queue.pop()
        {
            batch.push(append);
        }
        let stalled_us = place.disk.stalled_us();
        let written = task.writer.run_once(&batch);
        place.check_power().await;
        place.stall(stalled_us).await;
        sleep(within(&mut random, plan.flush) / 2).await;
        match written {
            Ok(report) => {
                if report.is_space_low != is_space_low {
                    is_space_low = report.is_space_low;
                    push(&task, Written::SpaceLow(is_space_low));
                }
                if !batch.is_empty() {
                    push(&task, Written::Upto(report.last));
                }
                if report.is_move_due {
                    let _ = task.due.push(());
                }
            }
            Err(error) => return fail(&place, &task, error).await,
        }
        batch.clear();
    }
}

fn push(task: &WriterTask, written: Written) {
    assert!(task.results.push(written).is_ok(), "the ring of results has a place for each flush");
}

async fn fail(place: &Place, task: &WriterTask, error: StorageError) {
    place.check_power().await;
    place.sim.mark("flush failed");
    place.sim.tell(|| format!("node {}: {error}", place.node));
    push(task, Written::Failed(error));
}

async fn run_mover(place: Place, mut task: MoverTask) {
    let mut random = place.sim.random();
    let mut is_more = false;
    let mut findings: Vec<Finding> = Vec::new();
    loop {
        if !is_more {
            wait(&task.bell, Some(SCRUB_EVERY), || !task.due.is_empty()).await;
        }
        sleep(within(&mut random, place.sim.plan.flush)).await;
        if task.due.pop().is_none() && !is_more {
            scrub(&place, &mut task, &mut findings).await;
            continue;
        }
        let stalled_us = place.disk.stalled_us();
        let moved = task.mover.run_once();
        place.check_power().await;
        place.stall(stalled_us).await;
        sleep(within(&mut random, place.sim.plan.flush)).await;
        match moved {
            Ok(report) => {
                is_more = report.is_more;
                place.sim.checks.borrow_mut().marks.add("entries moved to the log file", report.entries);
            }
            Err(error) => {
                is_more = false;
                *task.failure.borrow_mut() = Some(error);
            }
        }
        task.moves.set(task.moves.get() + 1);
        task.writer.ring();
    }
}

async fn scrub(place: &Place, task: &mut MoverTask, findings: &mut Vec<Finding>) {
    if findings.is_empty() {
        let report = task.scrubber.step(SCRUB_BYTES);
        place.check_power().await;
        // Whoever needs what cannot be read meets the same error.
        let Ok(report) = report else { return };
        for damage in &report.damage {
            place.sim.mark("scrub found damage");
            place.sim.tell(|| format!("node {}: the scrub found {damage}", place.node));
            findings.extend(Finding::of(damage));
        }
    }
    while let Some(finding) = findings.pop() {
        if task.findings.push(finding).is_err() {
            return findings.push(finding);
        }
    }
}

async fn run_reader(place: Place, task: ReaderTask) {
    let mut random = place.sim.random();
    loop {
        wait(&task.bell, None, || !task.queue.is_empty()).await;
        let Some(wanted) = task.queue.pop() else { continue };
        sleep(within(&mut random, place.sim.plan.flush)).await;
        let mut answer = wanted.read(&task.reader);
        place.check_power().await;
        while let Err(back) = task.answers.push(answer) {
            answer = back;
            sleep(within(&mut random, place.sim.plan.turn)).await;
        }
    }
}

async fn run_snapshots(place: Place, mut task: SnapshotsTask) {
    let mut random = place.sim.random();
    let mut is_more = true;
    loop {
        let pause = is_more.then_some(COLLECT_EVERY);
        wait(&task.bell, pause, || !task.jobs.is_empty()).await;
        sleep(within(&mut random, place.sim.plan.flush)).await;
        let mut answers = Vec::new();
        let stalled_us = place.disk.stalled_us();
        if let Some(job) = task.jobs.pop() {
            task.worker.run_once(job, &mut |answer| answers.push(answer));
        }
        if task.jobs.is_empty() {
            is_more = task.worker.settle(&mut |answer| answers.push(answer));
        }
        place.check_power().await;
        place.stall(stalled_us).await;
        if let Some(error) = task.worker.take_failure() {
            *task.failure.borrow_mut() = Some(error);
            task.writer.ring();
        }
        for mut answer in answers {
            while let Err(back) = task.done.push(answer) {
                answer = back;
                sleep(within(&mut random, place.sim.plan.turn)).await;
            }
        }
    }
}

async fn run_bridge(place: Place, task: BridgeTask) {
    let mut random: SmallRng = place.sim.random();
    loop {
        wait(&task.bell, None, || task.ports.iter().any(|port| !port.from_shard.is_empty())).await;
        sleep(within(&mut random, place.sim.plan.turn)).await;
        for port in &task.ports {
            while let Some(item) = port.from_shard.pop() {
                match item {
                    ToBridge::Peer { to, lane, frame } => {
                        let bytes = joined(&frame);
                        let limits = FrameLimits::PEER;
                        let (header, body) = network::parse(&bytes, &limits).expect("whole").expect("sound");
                        let sent = PeerFrame::decode(&header, body, &limits).expect("a frame just made");
                        place.sim.checks.borrow_mut().sent(sent.messages());
                        network::send(&place.sim, place.node, to, lane, &frame);
                    }
                    ToBridge::Client { connection, frame } => {
                        clients::answer(&place.sim, place.node, connection, &frame);
                    }
                }
            }
        }
    }
}

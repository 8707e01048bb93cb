//! The node's snapshot thread: reads and writes snapshots, so that neither a shard nor its flushes nor its fetches
//! wait for them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use iroh_raft_driver::snapshots::{SnapshotDone, SnapshotJob, SnapshotWorker};
use iroh_raft_netbridge::ring::{Consumer, Doorbell, Producer};

use crate::error::EngineError;
use crate::mover_thread::MoverFailure;
use crate::spare_memory::LargeApart;
use crate::writer_thread::{Watch, park, spawn_helper, thread_waker};

/// Pause before a full answer ring is tried again.
const FULL_PAUSE: Duration = Duration::from_micros(100);
/// Pause between two removals of old chunks: what is in the way of nobody has time.
const COLLECT_PAUSE: Duration = Duration::from_millis(20);
/// Time without a job after which no snapshot is on its way.
const TRANSFER_PAUSE: Duration = Duration::from_secs(1);

/// One shard's snapshots, its jobs, and where the answers go.
#[derive(Debug)]
pub(crate) struct SnapshotPort {
    pub(crate) worker: SnapshotWorker,
    pub(crate) jobs: Consumer<SnapshotJob>,
    pub(crate) done: Producer<SnapshotDone>,
    /// The shard's writer, and what makes it fence the shard.
    pub(crate) writer: Arc<Doorbell>,
    pub(crate) failure: Arc<MoverFailure>,
}

/// Starts the snapshot thread of a node. It ends once `stop` is set.
pub(crate) fn spawn(
    ports: Vec<SnapshotPort>,
    doorbell: Arc<Doorbell>,
    stop: Arc<AtomicBool>,
    watch: &Watch,
    tunes_allocator: bool,
) -> Result<JoinHandle<()>, EngineError> {
    spawn_helper("snapshots".into(), watch, move || run(ports, &doorbell, &stop, tunes_allocator))
}

fn run(mut ports: Vec<SnapshotPort>, doorbell: &Doorbell, stop: &AtomicBool, tunes_allocator: bool) {
    let waker = thread_waker();
    let mut is_more = vec![true; ports.len()];
    let mut transfers: Option<(Option<LargeApart>, Instant)> = None;
    while !stop.load(Ordering::Acquire) {
        let mut is_idle = true;
        for (SnapshotPort { worker, jobs, done, writer, failure }, is_more) in
            ports.iter_mut().zip(&mut is_more)
        {
            let mut tell = |answer: SnapshotDone| {
                let mut answer = answer;
                // The shard empties this ring every turn; it can be full only within a turn.
                while let Err(back) = done.push(answer) {
                    if stop.load(Ordering::Acquire) {
                        return;
                    }
                    answer = back;
                    std::thread::sleep(FULL_PAUSE);
                }
            };
            // One job a shard and round, so that none of them waits for all of another's.
            if let Some(job) = jobs.pop() {
                (is_idle, *is_more) = (false, true);
                let apart = || tunes_allocator.then(LargeApart::hold);
                transfers.get_or_insert_with(|| (apart(), Instant::now())).1 = Instant::now();
                worker.run_once(job, &mut tell);
            }
            if jobs.is_empty() && *is_more {
                *is_more = worker.settle(&mut tell);
            }
            if let Some(error) = worker.take_failure() {
                failure.set(error);
                writer.ring();
            }
        }
        if is_idle {
            transfers.take_if(|(_, last_job)| last_job.elapsed() >= TRANSFER_PAUSE);
            let pause = if is_more.contains(&true) {
                Some(COLLECT_PAUSE)
            } else {
                transfers.is_some().then_some(TRANSFER_PAUSE)
            };
            doorbell.arm(&waker);
            if ports.iter().all(|port| port.jobs.is_empty()) && !stop.load(Ordering::Acquire) {
                park(pause);
            }
            doorbell.disarm();
        }
    }
}

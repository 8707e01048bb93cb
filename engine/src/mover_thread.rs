//! The node's mover: takes committed entries from the journals to the log files beside the writers,
//! and verifies what is stored whenever it has nothing to move.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use iroh_raft_core::ShardId;
use iroh_raft_driver::lines::Finding;
use iroh_raft_netbridge::ring::{Consumer, Doorbell, Producer};
use iroh_raft_storage::{Mover, Scrubber, StorageError};

use crate::error::EngineError;
use crate::writer_thread::{Watch, park, spawn_helper, thread_waker};

/// Bytes that are verified at a time: short enough for a move not to wait for it.
const SCRUB_STEP_BYTES: u64 = 1 << 20;
/// Shortest pause between two steps of a scrub: an almost empty shard is not read over and over.
const SCRUB_PAUSE_MIN: Duration = Duration::from_millis(100);

/// A failure of the log file, for its shard's writer: a journal that cannot be moved cannot go on.
#[derive(Debug, Default)]
pub(crate) struct MoverFailure(Mutex<Option<StorageError>>);

impl MoverFailure {
    pub(crate) fn set(&self, error: StorageError) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
    }

    pub(crate) fn is_set(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    pub(crate) fn take(&self) -> Option<StorageError> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// One shard's mover, and how its writer is heard and answered.
#[derive(Debug)]
pub(crate) struct MoverPort {
    pub(crate) shard: ShardId,
    pub(crate) mover: Mover,
    /// A move is due. Bound: one; a full ring says all there is to say.
    pub(crate) due: Consumer<()>,
    /// The writer's, which may wait for room in the journal.
    pub(crate) writer: Arc<Doorbell>,
    pub(crate) failure: Arc<MoverFailure>,
    pub(crate) scrub: Scrub,
}

/// A shard's scrub: one round in every period, evenly spread.
#[derive(Debug)]
pub(crate) struct Scrub {
    shard: ShardId,
    scrubber: Scrubber,
    period: Duration,
    /// When the next step is due; `None` after a failure to read at all.
    due: Option<Instant>,
    /// What the ring did not take yet. Bound: the findings of one step, no other is made before.
    waiting: Vec<Finding>,
    findings: Producer<Finding>,
}

impl Scrub {
    pub(crate) fn new(
        shard: ShardId,
        scrubber: Scrubber,
        period: Duration,
        findings: Producer<Finding>,
    ) -> Scrub {
        let mut scrub = Scrub { shard, scrubber, period, due: None, waiting: Vec::new(), findings };
        scrub.due = Some(Instant::now() + scrub.pause());
        scrub
    }

    /// So long between two steps that a round takes a period.
    fn pause(&self) -> Duration {
        let steps = self.scrubber.round_bytes().div_ceil(SCRUB_STEP_BYTES).max(1);
        let pause = self.period / u32::try_from(steps).unwrap_or(u32::MAX);
        pause.max(SCRUB_PAUSE_MIN)
    }

    /// Makes a step if one is due.
    fn run_if_due(&mut self, now: Instant) {
        if self.due.is_none_or(|due| due > now) {
            return;
        }
        if self.waiting.is_empty() {
            match self.scrubber.step(SCRUB_STEP_BYTES) {
                Ok(report) => {
                    let damage = report.damage.iter().inspect(|damage| {
                        tracing::error!(shard = %self.shard, %damage, "the scrub found damage");
                    });
                    self.waiting.extend(damage.flat_map(Finding::of));
                }
                Err(error) => {
                    // Whoever needs the bytes will meet the same error, and knows what to do.
                    tracing::error!(shard = %self.shard, %error, "the scrub cannot read; it stops until the next start");
                    self.due = None;
                    return;
                }
            }
        }
        while let Some(finding) = self.waiting.pop() {
            if self.findings.push(finding).is_err() {
                self.waiting.push(finding);
                break;
            }
        }
        self.due = Some(now + self.pause());
    }
}

/// The writer's side of a [`MoverPort`].
#[derive(Debug)]
pub(crate) struct MoverLine {
    pub(crate) due: Producer<()>,
    pub(crate) failure: Arc<MoverFailure>,
}

/// Starts the mover thread of a node. It ends once `stop` is set.
pub(crate) fn spawn(
    ports: Vec<MoverPort>,
    doorbell: Arc<Doorbell>,
    stop: Arc<AtomicBool>,
    watch: &Watch,
) -> Result<JoinHandle<()>, EngineError> {
    spawn_helper("mover".into(), watch, move || run(ports, &doorbell, &stop))
}

fn run(mut ports: Vec<MoverPort>, doorbell: &Doorbell, stop: &AtomicBool) {
    let waker = thread_waker();
    let mut is_more = vec![false; ports.len()];
    while !stop.load(Ordering::Acquire) {
        let mut is_idle = true;
        // One move a shard and round, so that none of them waits for all of another's.
        for (port, is_more) in ports.iter_mut().zip(&mut is_more) {
            // What was said to be due may have been moved since.
            let is_asked = port.due.pop().is_some() || *is_more;
            if !is_asked || !port.mover.is_due() {
                *is_more = false;
                continue;
            }
            is_idle = false;
            match port.mover.run_once() {
                Ok(report) => *is_more = report.is_more,
                Err(error) => {
                    tracing::error!(shard = %port.shard, %error, "moving to the log file failed");
                    *is_more = false;
                    port.failure.set(error);
                }
            }
            port.writer.ring();
        }
        if !is_idle {
            continue;
        }
        let now = Instant::now();
        ports.iter_mut().for_each(|port| port.scrub.run_if_due(now));
        let due = ports.iter().filter_map(|port| port.scrub.due).min();
        doorbell.arm(&waker);
        if ports.iter().all(|port| port.due.is_empty()) && !stop.load(Ordering::Acquire) {
            park(due.map(|due| due.saturating_duration_since(Instant::now())));
        }
        doorbell.disarm();
    }
}

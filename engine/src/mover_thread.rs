//! The node's mover: takes committed entries from the journals to the log files, beside the writers.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use iroh_raft_core::ShardId;
use iroh_raft_netbridge::ring::{Consumer, Doorbell, Producer};
use iroh_raft_storage::{Mover, StorageError};

use crate::error::EngineError;
use crate::writer_thread::thread_waker;

/// A mover's failure, for its shard's writer: a journal that cannot be moved cannot go on.
#[derive(Debug, Default)]
pub(crate) struct MoverFailure(Mutex<Option<StorageError>>);

impl MoverFailure {
    fn set(&self, error: StorageError) {
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
) -> Result<JoinHandle<()>, EngineError> {
    let name = String::from("mover");
    std::thread::Builder::new()
        .name(name.clone())
        .spawn(move || run(ports, &doorbell, &stop))
        .map_err(|source| EngineError::Thread { name, source })
}

fn run(mut ports: Vec<MoverPort>, doorbell: &Doorbell, stop: &AtomicBool) {
    let waker = thread_waker();
    let mut is_more = vec![false; ports.len()];
    while !stop.load(Ordering::Acquire) {
        let mut is_idle = true;
        // One move a shard and round, so that none of them waits for all of another's.
        for (port, is_more) in ports.iter_mut().zip(&mut is_more) {
            if port.due.pop().is_none() && !*is_more {
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
        if is_idle {
            doorbell.arm(&waker);
            if ports.iter().all(|port| port.due.is_empty()) && !stop.load(Ordering::Acquire) {
                std::thread::park();
            }
            doorbell.disarm();
        }
    }
}

//! The node's reader: fetches old entries from the journals, so that no shard waits for a disk.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use iroh_raft_driver::lines::{Found, Wanted};
use iroh_raft_netbridge::ring::{Consumer, Doorbell, Producer};
use iroh_raft_storage::LogReader;

use crate::error::EngineError;
use crate::writer_thread::{Watch, spawn_helper, thread_waker};

/// Pause before a full answer ring is tried again.
const FULL_PAUSE: Duration = Duration::from_micros(100);

/// One shard's fetches and where their answers go.
#[derive(Debug)]
pub(crate) struct ReaderPort {
    pub(crate) reader: LogReader,
    pub(crate) fetches: Consumer<Wanted>,
    pub(crate) answers: Producer<Found>,
}

/// Starts the reader thread of a node. It ends once `stop` is set.
pub(crate) fn spawn(
    ports: Vec<ReaderPort>,
    doorbell: Arc<Doorbell>,
    stop: Arc<AtomicBool>,
    watch: &Watch,
) -> Result<JoinHandle<()>, EngineError> {
    spawn_helper("reader".into(), watch, move || run(&ports, &doorbell, &stop))
}

fn run(ports: &[ReaderPort], doorbell: &Doorbell, stop: &AtomicBool) {
    let waker = thread_waker();
    while !stop.load(Ordering::Acquire) {
        let mut is_idle = true;
        for port in ports {
            // One fetch a shard and round, so that none of them waits for all of another's.
            let Some(wanted) = port.fetches.pop() else { continue };
            is_idle = false;
            let mut answer = wanted.read(&port.reader);
            // The shard empties this ring every turn; it can be full only within a turn.
            while let Err(back) = port.answers.push(answer) {
                if stop.load(Ordering::Acquire) {
                    return;
                }
                answer = back;
                std::thread::sleep(FULL_PAUSE);
            }
        }
        if is_idle {
            doorbell.arm(&waker);
            let is_empty = ports.iter().all(|port| port.fetches.is_empty());
            if is_empty && !stop.load(Ordering::Acquire) {
                std::thread::park();
            }
            doorbell.disarm();
        }
    }
}

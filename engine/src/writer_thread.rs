//! The thread around a shard's journal writer: group commit over everything that is queued.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Wake, Waker};
use std::thread::{JoinHandle, Thread};
use std::time::{Duration, Instant};

use iroh_raft_core::{Append, ShardId};
use iroh_raft_driver::lines::Written;
use iroh_raft_netbridge::ring::{Consumer, Doorbell, Producer};
use iroh_raft_storage::JournalWriter;

use crate::engine::Failure;
use crate::error::EngineError;
use crate::mover_thread::MoverLine;
use crate::thread_book::ThreadBook;
use iroh_raft_driver::stats::ShardCounters;

/// Pause between two looks at how much room is left, while there is little and nothing to write.
const SPACE_LOOK_PAUSE: Duration = Duration::from_secs(1);
/// Flushes that go into one transaction at most: bounds the memory of one commit.
pub(crate) const APPENDS_PER_COMMIT_MAX: usize = 1024;

/// Bytes of entries from which on a transaction takes no further flush. One flush alone is bounded
/// by what peers and clients may have under way.
const COMMIT_BYTES: usize = 16 << 20;

fn data_bytes(append: &Append) -> usize {
    append.groups.iter().flat_map(|part| &part.entries).map(|entry| entry.data.len()).sum()
}

struct ThreadWaker(Thread);

impl Wake for ThreadWaker {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// A waker of the calling thread.
pub(crate) fn thread_waker() -> Waker {
    Waker::from(Arc::new(ThreadWaker(std::thread::current())))
}

/// A shard's writer, and how its shard and its mover are heard and answered.
#[derive(Debug)]
pub(crate) struct WriterPort {
    pub(crate) shard: ShardId,
    pub(crate) writer: JournalWriter,
    pub(crate) queue: Consumer<Append>,
    /// Rung by the shard and by the mover.
    pub(crate) doorbell: Arc<Doorbell>,
    pub(crate) results: Producer<Written>,
    pub(crate) mover: MoverLine,
    pub(crate) counters: Arc<ShardCounters>,
}

/// Sleeps until the calling thread is woken, or for so long.
pub(crate) fn park(pause: Option<Duration>) {
    match pause {
        Some(pause) => std::thread::park_timeout(pause),
        None => std::thread::park(),
    }
}

/// Starts the writer thread of a shard. It ends once `stop` is set and its ring is empty.
pub(crate) fn spawn(
    port: WriterPort,
    stop: Arc<AtomicBool>,
    watch: &Watch,
) -> Result<JoinHandle<()>, EngineError> {
    spawn_helper(format!("writer-{}", port.shard), watch, move || run(port, &stop))
}

/// What a node knows of its threads.
#[derive(Clone, Debug, Default)]
pub(crate) struct Watch {
    pub(crate) failure: Arc<Failure>,
    pub(crate) book: Arc<ThreadBook>,
}

/// Starts a thread whose panic is the node's failure: others would wait for it for ever.
pub(crate) fn spawn_helper(
    name: String,
    watch: &Watch,
    body: impl FnOnce() + Send + 'static,
) -> Result<JoinHandle<()>, EngineError> {
    let lost = name.clone();
    let Watch { failure, book } = watch.clone();
    let guarded = move || {
        book.enter(&lost);
        if catch_unwind(AssertUnwindSafe(body)).is_err() {
            failure.set(EngineError::Panicked { name: lost });
        }
    };
    let spawned = std::thread::Builder::new().name(name.clone()).spawn(guarded);
    spawned.map_err(|source| EngineError::Thread { name, source })
}

fn run(port: WriterPort, stop: &AtomicBool) {
    let queue_us = metrics::histogram!("storage_queue_us", "shard" => port.shard.to_string());
    let WriterPort { shard: _, mut writer, queue, doorbell, results, mover, counters } = port;
    let waker = thread_waker();
    let mut batch = Vec::new();
    let mut is_space_low = false;
    loop {
        if let Some(error) = mover.failure.take() {
            // Never full: see below.
            let _ = results.push(Written::Failed(error));
            return;
        }
        if writer.is_full() {
            // The mover rings when it has made room, or has failed: no deadline helps here. What
            // waits is bounded by the ring of flushes, and the core answers Busy beyond that.
            let _ = mover.due.push(());
            doorbell.arm(&waker);
            if writer.is_full() && !mover.failure.is_set() && !stop.load(Ordering::Acquire) {
                std::thread::park();
            }
            doorbell.disarm();
            if !stop.load(Ordering::Acquire) {
                continue;
            }
        }
        let mut bytes = 0;
        while batch.len() < APPENDS_PER_COMMIT_MAX
            && bytes < COMMIT_BYTES
            && let Some((append, waited)) = queue.pop_waited()
        {
            bytes += data_bytes(&append);
            queue_us.record(waited.as_secs_f64() * 1e6);
            batch.push(append);
        }
        if batch.is_empty() {
            doorbell.arm(&waker);
            if queue.is_empty() {
                if stop.load(Ordering::Acquire) {
                    return;
                }
                if !mover.failure.is_set() {
                    park(is_space_low.then_some(SPACE_LOOK_PAUSE));
                }
            }
            doorbell.disarm();
            if !is_space_low || !queue.is_empty() {
                continue;
            }
        }
        let started = Instant::now();
        let written = match writer.run_once(&batch) {
            Ok(report) => {
                if report.is_space_low != is_space_low {
                    is_space_low = report.is_space_low;
                    // There is always room: see below.
                    let _ = results.push(Written::SpaceLow(is_space_low));
                }
                if batch.is_empty() {
                    continue;
                }
                ShardCounters::add(&counters.flushes, 1);
                ShardCounters::add(&counters.flush_bytes, report.bytes as u64);
                let us = u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX);
                ShardCounters::add(&counters.flush_us_total, us);
                if report.is_move_due {
                    let _ = mover.due.push(());
                }
                Written::Upto(report.last)
            }
            Err(error) => Written::Failed(error),
        };
        batch.clear();
        let is_failed = matches!(written, Written::Failed(_));
        // The shard has at most as many flushes outstanding as this ring has places.
        let pushed = results.push(written).is_ok();
        assert!(pushed, "the results ring is as large as the ring of flushes");
        if is_failed {
            return;
        }
    }
}

//! What crosses between a shard and the threads of its own node.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use futures_channel::oneshot;
use iroh_raft_core::{Append, FetchError, FetchId, FlushSeq, GroupId, GroupStatus, LogDamage, LogEntry};
use iroh_raft_netbridge::wire::{ClientBody, ReplyBody};
use iroh_raft_storage::StorageError;

/// A request of this process.
#[derive(Debug)]
pub enum Command {
    /// Like a client's request over the network, with every right.
    Request {
        /// The group asked.
        group: GroupId,
        /// How long the caller waits.
        deadline: Duration,
        /// What it asks.
        body: ClientBody,
        /// Where the answer goes.
        reply: oneshot::Sender<ReplyBody>,
    },
    /// How all groups of the shard stand.
    Statuses(oneshot::Sender<Vec<GroupStatus>>),
    /// Hand every leadership to another node; answered when none is left or nobody takes it.
    HandOver(oneshot::Sender<()>),
    /// Stop: answer what is open, flush what is queued, end.
    Stop,
}

/// A flush on its way to the writer.
#[derive(Debug)]
pub struct Queued {
    /// The flush.
    pub append: Append,
    /// When it was handed over.
    pub at: Instant,
}

/// What the writer tells its shard.
#[derive(Debug)]
pub enum Written {
    /// Durable up to and including this flush.
    Upto(FlushSeq),
    /// The medium has less room than it should, or enough again.
    SpaceLow(bool),
    /// A write failed; there will be no other message.
    Failed(StorageError),
}

/// An answered fetch.
#[derive(Debug)]
pub struct Fetched {
    /// The fetch.
    pub id: FetchId,
    /// Its group.
    pub group: GroupId,
    /// What was found.
    pub result: Result<Vec<LogEntry>, FetchError>,
}

/// Damage that a scrub found, for the group's shard.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Finding {
    /// The group.
    pub group: GroupId,
    /// Its damaged entries.
    pub damage: LogDamage,
}

/// Says that nobody takes commands any more. A caller that sees it after its push gives up; what was
/// pushed before is answered, or dropped with the ring.
#[derive(Debug)]
pub struct Closing(pub Arc<AtomicBool>);

impl Drop for Closing {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

//! What crosses between a shard and the threads of its own node.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_channel::{mpsc, oneshot};
use iroh_raft_core::{
    Fetch, FetchError, FetchId, FlushSeq, GroupId, GroupState, GroupStatus, LogDamage, LogEntry, NodeId,
    Offset, Reopen, RequestError, Retry, TransferError,
};
pub use iroh_raft_netbridge::wire::HandedOver;
use iroh_raft_netbridge::wire::{ClientBody, ReplyBody};
use iroh_raft_storage::{Damage, DamagePlace, LogReader, StorageError};

use crate::costs::GroupCost;

/// Why leadership was not given away.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum LeadershipError {
    /// The request was not taken up, or its shard ended.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// The transfer was refused, or did not come about.
    #[error(transparent)]
    Transfer(#[from] TransferError),
}

impl LeadershipError {
    /// Whether asking again can help. It is always safe.
    #[must_use]
    pub fn retry(&self) -> Retry {
        match self {
            // Whoever leads now, asking for it again does it once.
            LeadershipError::Request(RequestError::OutcomeUnknown { .. }) => Retry::Safe,
            LeadershipError::Request(error) => error.retry(),
            LeadershipError::Transfer(error) => error.retry(),
        }
    }
}

/// Where the outcome of a transfer goes.
pub type LeadershipReply = oneshot::Sender<Result<HandedOver, LeadershipError>>;

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
    /// Follow the records of a group. Granted and ended by requests like those of a client.
    Tail {
        /// The group.
        group: GroupId,
        /// How long it may be open.
        deadline: Duration,
        /// Its name, of no other tail of this process.
        tail: u64,
        /// First record.
        from: Offset,
        /// Bytes that may be sent until more is granted: the bound of what waits in `reply`, but for one entry.
        granted_bytes: u32,
        /// Where the records go.
        reply: mpsc::UnboundedSender<ReplyBody>,
    },
    /// How all groups of the shard stand.
    Statuses(oneshot::Sender<Vec<GroupStatus>>),
    /// What each group of the shard has cost.
    Costs(oneshot::Sender<Vec<(GroupId, GroupCost)>>),
    /// Hand leadership of a group to a node, or to the best one.
    TransferLeader {
        /// The group.
        group: GroupId,
        /// The successor, if it is to be a certain one.
        to: Option<NodeId>,
        /// Where the outcome goes.
        reply: LeadershipReply,
    },
    /// Stop leading a group, whether or not somebody can take over.
    StepDown {
        /// The group.
        group: GroupId,
        /// Where the outcome goes.
        reply: LeadershipReply,
    },
    /// Step down from every leadership; answered when none is left.
    HandOver(oneshot::Sender<()>),
    /// Stop: answer what is open, flush what is queued, end.
    Stop,
}

impl Command {
    /// Bytes that it holds, but for a few.
    #[must_use]
    pub fn bytes(&self) -> usize {
        match self {
            Command::Request {
                body: ClientBody::Append { block, .. } | ClientBody::TimedAppend { block },
                ..
            } => block.as_bytes().len(),
            Command::Request { body: ClientBody::Query { query, .. }, .. } => query.len(),
            _ => 0,
        }
    }
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

/// What a shard wants from its reader.
#[derive(Debug)]
pub enum Wanted {
    /// Entries of a group.
    Entries(Fetch),
    /// The state of a group that was taken out.
    State(Reopen),
}

impl Wanted {
    /// Reads it; blocks on the disk.
    #[must_use]
    pub fn read(&self, reader: &LogReader) -> Found {
        match self {
            Wanted::Entries(fetch) => {
                Found::Entries(Fetched { id: fetch.id, group: fetch.group, result: reader.read(fetch) })
            }
            Wanted::State(Reopen { group, damage }) => {
                Found::State(*group, reader.reopen(*group, *damage).map(Box::new))
            }
        }
    }
}

/// What a reader answers.
#[derive(Debug)]
pub enum Found {
    /// Entries.
    Entries(Fetched),
    /// A group's state.
    State(GroupId, Result<Box<GroupState>, FetchError>),
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
pub enum Finding {
    /// Entries of a group.
    Entries(GroupId, LogDamage),
    /// The snapshot of a group.
    Snapshot(GroupId),
}

impl Finding {
    /// What a shard has to know of what its scrub found.
    pub fn of(damage: &Damage) -> impl Iterator<Item = Finding> + '_ {
        let snapshot = match damage.place {
            DamagePlace::Snapshot { group } => Some(Finding::Snapshot(group)),
            _ => None,
        };
        let entries = damage
            .affected
            .iter()
            .map(|range| Finding::Entries(range.group, LogDamage { first: range.first, last: range.last }));
        entries.chain(snapshot)
    }
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

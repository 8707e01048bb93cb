//! Why a client's request failed, and whether trying again can help.

use std::time::Duration;

use crate::ids::{GroupId, NodeId, Offset, ShardId, Term};
use crate::members::MembersRefusal;
use crate::recovery::RecoveryRefusal;
use crate::sessions::SessionRefusal;

/// Whether a retry can help, and how.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Retry {
    /// Nothing was done: the same request may be sent again, after a pause or elsewhere.
    Safe,
    /// It may have been done: sent again, it may be done twice (unless a client session guards it).
    OutcomeUnknown,
    /// The same request will fail again.
    Never,
}

/// Shortest and longest hint of a queue that moves, in milliseconds. Longer ones would leave a disk idle that is back.
const RETRY_MS_MIN: u32 = 5;
const RETRY_MS_MAX: u32 = 250;

/// What ran full.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub enum BusyReason {
    /// The group holds as many uncommitted bytes as it may.
    #[error("too many uncommitted bytes in the group")]
    PendingBytes,
    /// The group holds its share of the uncommitted bytes that all groups of its shard may hold together.
    #[error("too many uncommitted bytes in the shard")]
    ShardPendingBytes,
    /// Too many reads wait for their turn.
    #[error("too many waiting reads")]
    Reads,
    /// A ring between two threads is full.
    #[error("a ring is full")]
    Ring,
    /// The log writer is behind by as much as it may be.
    #[error("the log writer is behind")]
    Writer,
    /// The disk has hardly any space left; what is under way still fits.
    #[error("the disk is nearly full: make room on it")]
    Space,
    /// Another change of the group's members is under way, or its leader is too new to begin one.
    #[error("a change of the group's members is under way")]
    Members,
    /// The group has as many commands to itself under way as it may.
    #[error("too many commands to the group are under way")]
    Commands,
    /// The shard has as many groups as it may.
    #[error("too many groups on the shard")]
    Groups,
    /// The group's state machine is behind its log by as much as it may be.
    #[error("the state machine is behind the log")]
    Applying,
    /// The shard is at work on the digest of another state.
    #[error("another comparison of replicas is under way")]
    Comparing,
    /// The client has more requests open than it was granted.
    #[error("more requests in flight than granted")]
    Credit,
    /// The group's replica is being opened, loaded, revived or restored from its snapshot, or what one before it has left is
    /// about to be gone.
    #[error("the replica is starting")]
    Starting,
    /// Too many groups of the shard wait to be recovered.
    #[error("too many recoveries are under way")]
    Recoveries,
}

/// Why a request failed.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub enum RequestError {
    /// This replica does not lead the group; nothing was done.
    #[error("not the leader of the group{}", leader.map(|node| format!("; node {node} is")).unwrap_or_default())]
    NotLeader {
        /// The leader, if this replica knows it.
        leader: Option<NodeId>,
    },
    /// A queue is full; nothing was done.
    #[error("busy: {reason}; try again in {retry_after_ms} ms")]
    Busy {
        /// What is full.
        reason: BusyReason,
        /// When trying again makes sense, in milliseconds.
        retry_after_ms: u32,
    },
    /// The replica lost leadership, or its time ran out, after it took the records: they may or may
    /// not be in the log.
    #[error("the outcome is unknown: leadership or time was lost before the records were committed")]
    OutcomeUnknown {
        /// The new leader, if known.
        leader: Option<NodeId>,
    },
    /// Time ran out before anything was done.
    #[error("deadline passed before the request was taken up")]
    Timeout,
    /// No such group here.
    #[error("no such group on this node")]
    UnknownGroup,
    /// There is such a group already, with other members.
    #[error("the group exists, with other members: choose a number that was never used")]
    GroupExists,
    /// The group was removed for good.
    #[error("the group was removed: choose a number that was never used")]
    GroupRemoved,
    /// A record, or a block of records, is larger than allowed.
    #[error("{bytes} bytes are over the limit of {bytes_max}: split it up")]
    TooLarge {
        /// Its size in bytes.
        bytes: u64,
        /// Largest size allowed, in bytes.
        bytes_max: u64,
    },
    /// The request is malformed.
    #[error("malformed request: {what}")]
    Invalid {
        /// What is wrong with it.
        what: &'static str,
    },
    /// The change of members is refused.
    #[error("the members stay as they are: {refusal}")]
    Members {
        /// Why.
        refusal: MembersRefusal,
    },
    /// The group is not recovered from this replica.
    #[error("the group stays as it is: {refusal}")]
    Recovery {
        /// Why.
        refusal: RecoveryRefusal,
    },
    /// Leadership is not handed over.
    #[error("leadership stays where it is: {refusal}")]
    Transfer {
        /// Why.
        refusal: TransferError,
    },
    /// The offset lies beyond the committed end of this replica's log.
    #[error("offset {from} is past the end {end} of this replica's log")]
    PastEnd {
        /// The offset asked for.
        from: Offset,
        /// Offset after the last committed record.
        end: Offset,
    },
    /// The record was removed from this replica's log, by retention or compaction.
    #[error("offset {from} was removed: this replica's log begins at {start}")]
    BeforeStart {
        /// The offset asked for.
        from: Offset,
        /// Offset of the first record that the log still has.
        start: Offset,
    },
    /// The group has as many cursors as it may.
    #[error("the group has {cursors_max} cursors already: drop those of consumers that are gone")]
    CursorsFull {
        /// Cursors that a group has at most.
        cursors_max: u32,
    },
    /// The request of a client session is refused.
    #[error("{refusal}")]
    Session {
        /// Why.
        refusal: SessionRefusal,
    },
    /// The replica was taken out after a broken invariant or damaged data.
    #[error("the replica is quarantined on this node: see its log")]
    Quarantined,
    /// The shard has fenced itself after a failed write: it takes no work until restart.
    #[error("the shard is fenced after a failed write: mend the disk and restart the node")]
    Fenced,
    /// The caller's rights do not allow it.
    #[error("not allowed for this client: add the right to its entry in the allow-list")]
    Denied,
    /// The node is shutting down.
    #[error("the node is shutting down")]
    ShuttingDown,
}

impl RequestError {
    /// A queue is full: when to come again follows from how long such a thing stays full.
    #[must_use]
    pub fn busy(reason: BusyReason) -> RequestError {
        let retry_after_ms = match reason {
            BusyReason::Space => 1000,
            BusyReason::Starting | BusyReason::Recoveries => 50,
            _ => RETRY_MS_MIN,
        };
        RequestError::Busy { reason, retry_after_ms }
    }

    /// As [`busy`](RequestError::busy), where it is known how long what is in the way has been there already. It goes bit by
    /// bit, so whoever comes again after a quarter of that time finds room, and the queue has not run dry meanwhile.
    #[must_use]
    pub(crate) fn busy_since(reason: BusyReason, oldest: Duration) -> RequestError {
        let quarter_ms = u32::try_from(oldest.as_millis() / 4).unwrap_or(u32::MAX);
        RequestError::Busy { reason, retry_after_ms: quarter_ms.clamp(RETRY_MS_MIN, RETRY_MS_MAX) }
    }

    /// Whether trying again can help.
    #[must_use]
    pub fn retry(&self) -> Retry {
        match self {
            RequestError::NotLeader { .. }
            | RequestError::Busy { .. }
            | RequestError::Timeout
            | RequestError::PastEnd { .. }
            | RequestError::Quarantined
            | RequestError::Fenced
            | RequestError::ShuttingDown => Retry::Safe,
            RequestError::OutcomeUnknown { .. } => Retry::OutcomeUnknown,
            RequestError::CursorsFull { .. } => Retry::Safe,
            RequestError::Members { refusal } => refusal.retry(),
            RequestError::Session { refusal } => refusal.retry(),
            RequestError::Recovery { refusal } => refusal.retry(),
            RequestError::Transfer { refusal } => refusal.retry(),
            RequestError::UnknownGroup
            | RequestError::GroupExists
            | RequestError::GroupRemoved
            | RequestError::TooLarge { .. }
            | RequestError::Invalid { .. }
            | RequestError::BeforeStart { .. }
            | RequestError::Denied => Retry::Never,
        }
    }
}

/// Why leadership was not handed over. The group is as it was, unless the reason says otherwise.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub enum TransferError {
    /// No replica of the group is there.
    #[error("node {to} has no replica of the group: name one of its voters")]
    UnknownTarget {
        /// The node named.
        to: NodeId,
    },
    /// A learner cannot lead.
    #[error("the replica on node {to} does not vote: promote it first")]
    NotVoter {
        /// The node named.
        to: NodeId,
    },
    /// The replica has not answered for three heartbeats.
    #[error("node {to} does not answer")]
    NotAlive {
        /// The node named.
        to: NodeId,
    },
    /// No other voter answers.
    #[error("no other voter of the group answers")]
    NobodyAlive,
    /// Another transfer of the group is not over yet.
    #[error("leadership is being handed to node {to}")]
    UnderWay {
        /// Where to.
        to: NodeId,
    },
    /// It took longer than it may: a lease while this replica led, and the longest election timeout after
    /// it. This replica leads on, or nobody is known to.
    #[error("node {to} did not take over in time")]
    TimedOut {
        /// Who should have.
        to: NodeId,
    },
    /// An election came in between.
    #[error("node {leader} won term {term} instead")]
    WonByAnother {
        /// The leader now.
        leader: NodeId,
        /// Its term.
        term: Term,
    },
}

impl TransferError {
    /// Whether trying again can help. It is always safe.
    #[must_use]
    pub fn retry(&self) -> Retry {
        match self {
            TransferError::UnknownTarget { .. } | TransferError::NotVoter { .. } => Retry::Never,
            TransferError::NotAlive { .. }
            | TransferError::NobodyAlive
            | TransferError::UnderWay { .. }
            | TransferError::TimedOut { .. }
            | TransferError::WonByAnother { .. } => Retry::Safe,
        }
    }
}

/// Why a shard cannot be built. Nothing was started; mend the configuration and try again.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ConfigError {
    /// A node's number is 0, which stands for nobody.
    #[error("the node's id is 0: choose another, unique in the cluster")]
    NodeZero,
    /// A group's number is 0, which is not a group.
    #[error("a group's id is 0: choose another, unique in the cluster")]
    GroupZero,
    /// Two states of one group were given.
    #[error("group {group} was given twice: each group lives in one place of one shard")]
    DuplicateGroup {
        /// The group.
        group: GroupId,
    },
    /// A group is placed on another shard of the node.
    #[error(
        "group {group} is placed on shard {shard}: open the folder with the placement that its groups have"
    )]
    Misplaced {
        /// The group.
        group: GroupId,
        /// Where it is placed.
        shard: ShardId,
    },
    /// The node has no shard of this number.
    #[error("shard {shard} is not one of the node's {shard_count}")]
    NoSuchShard {
        /// The number.
        shard: ShardId,
        /// Shards of the node.
        shard_count: u16,
    },
    /// The tick is too short or too long.
    #[error("the tick must be between 1 ms and 60 s")]
    Tick,
    /// Heartbeats must come several times within a lease.
    #[error("heartbeat_ticks {heartbeat_ticks} must be at least 1 and below lease_ticks {lease_ticks}")]
    HeartbeatTicks {
        /// The setting.
        heartbeat_ticks: u32,
        /// What it must be below.
        lease_ticks: u32,
    },
    /// Election timeouts must be longer than the lease.
    #[error(
        "election_ticks {shortest} to {longest} must rise and lie between lease_ticks {lease_ticks} and 1,000,000"
    )]
    ElectionTicks {
        /// Shortest timeout.
        shortest: u32,
        /// Longest timeout.
        longest: u32,
        /// What both must be above.
        lease_ticks: u32,
    },
    /// The clocks' drift is out of range, or leaves no lease that lasts from one heartbeat to the next.
    #[error(
        "lease_reads with drift_ppm_max {drift_ppm_max}: it must be between 1 and 500,000, and leave a lease of more than \
         heartbeat_ticks {heartbeat_ticks} out of lease_ticks {lease_ticks}"
    )]
    LeaseReads {
        /// Bound on the drift of the clocks' rate, in parts per million.
        drift_ppm_max: u32,
        /// Ticks between heartbeats.
        heartbeat_ticks: u32,
        /// Ticks of a promise.
        lease_ticks: u32,
    },
    /// A time is shorter than what it is made of.
    #[error("{setting} is {value:?}: it must be at least {value_min:?}")]
    TooShort {
        /// The setting.
        setting: &'static str,
        /// Its value.
        value: Duration,
        /// Shortest value allowed.
        value_min: Duration,
    },
    /// Leaders would be moved for ever.
    #[error("spread.band is 0: leaders cannot always be spread evenly; choose 1 or more")]
    Band,
    /// A limit is zero or too high.
    #[error("{setting} is {value}: it must be between 1 and {value_max}")]
    Limit {
        /// The setting.
        setting: &'static str,
        /// Its value.
        value: usize,
        /// Highest value allowed.
        value_max: usize,
    },
}

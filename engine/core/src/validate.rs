//! Which messages of a peer may reach Raft.
//!
//! raft-rs trusts its peers: many well-formed messages panic it, and some make it count a quorum
//! that is not there. The check here refuses them first. It is a pure function of the message and of
//! what the replica knows; a refused message changes nothing.
//!
//! What is *not* a reason to refuse: a sender outside of the known membership. A replica that slept
//! through a reconfiguration must still learn of a newer leader (Raft thesis 4.1).

mod snapshot;

use crate::batch::{Batch, BatchError};
use crate::group_command::{GroupCommandError, GroupCommands};
use crate::ids::{Index, LogPosition, NodeId, Offset, ShardId, Term, Timestamp};
use crate::io::{CONTEXT_BYTES_MAX, ConfState, EntryKind, LogEntry, MessageKind, PeerMessage, Role};
use crate::lease::{ROUND_BYTES, Stamp};
use crate::members::{self, decode_members};
use crate::tombstone::{REMOVED, are_first_members};

/// Highest term or index accepted from a peer, so that adding to one cannot overflow.
const NUMBER_MAX: u64 = 1 << 56;

/// Reads of peers that may wait for a round at once; more are refused, and asked again.
pub(crate) const FORWARDED_READS_MAX: usize = 1024;

/// Context of a vote request whose sender was told by the leader to campaign (thesis 3.10).
pub(crate) const CAMPAIGN_TRANSFER: &[u8] = b"CampaignTransfer";

/// Why a message was refused.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, thiserror::Error)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub enum Refusal {
    /// The sender is nobody, or this node itself.
    #[error("the sender {from} cannot be a peer of this node")]
    Sender {
        /// The sender named.
        from: NodeId,
    },
    /// It is meant for another node.
    #[error("it is for node {to}: check the sender's addresses")]
    Receiver {
        /// The receiver named.
        to: NodeId,
    },
    /// It is for a group, or a shard, that is elsewhere on this node: the sender has not heard yet how groups are placed
    /// here.
    #[error("it is for shard {shard} of this node")]
    Elsewhere {
        /// Where it belongs.
        shard: ShardId,
    },
    /// The term is zero where there must be one, or the other way round, or out of range.
    #[error("a {kind:?} cannot have term {term}")]
    Term {
        /// Kind of the message.
        kind: MessageKind,
        /// Its term.
        term: Term,
    },
    /// An index is out of range.
    #[error("index {index} is out of range")]
    IndexRange {
        /// The index.
        index: Index,
    },
    /// The term of a log position contradicts the position or the message's term.
    #[error("log position {index} cannot have term {log_term} in term {term}")]
    LogTerm {
        /// The position.
        index: Index,
        /// Its claimed term.
        log_term: Term,
        /// The message's term.
        term: Term,
    },
    /// The context is longer than allowed.
    #[error("a context of {bytes} bytes is over the limit of {CONTEXT_BYTES_MAX}")]
    Context {
        /// Its length in bytes.
        bytes: usize,
    },
    /// A vote request with a context that none has.
    #[error("a {kind:?} cannot have this context")]
    VoteContext {
        /// Kind of the message.
        kind: MessageKind,
    },
    /// Entries in a message of a kind that has none.
    #[error("a {kind:?} cannot have {count} entries")]
    Entries {
        /// Kind of the message.
        kind: MessageKind,
        /// Number of entries.
        count: usize,
    },
    /// Entries do not follow each other.
    #[error("entry {index} stands where {expected} belongs")]
    Gap {
        /// Index of the entry.
        index: Index,
        /// Index it should have.
        expected: Index,
    },
    /// Terms of entries fall, or exceed the leader's.
    #[error("entry {index} cannot have term {term}")]
    EntryTerm {
        /// Index of the entry.
        index: Index,
        /// Its term.
        term: Term,
    },
    /// A change of membership that cannot be read, or where none belongs.
    #[error("entry {index} changes the membership in a way that no leader would: update this node")]
    Membership {
        /// Index of the entry.
        index: Index,
    },
    /// The data of an entry is not a batch.
    #[error("entry {index} is not a batch: {error}")]
    Batch {
        /// Index of the entry.
        index: Index,
        /// What is wrong with it.
        error: BatchError,
    },
    /// The data of an entry is not commands to the group.
    #[error("entry {index} is not commands to the group: {error}")]
    GroupCommands {
        /// Index of the entry.
        index: Index,
        /// What is wrong with it.
        error: GroupCommandError,
    },
    /// A batch does not continue the log's offsets.
    #[error("the batch of entry {index} begins at offset {base}, the log before it ends at {expected}")]
    BaseOffset {
        /// Index of the entry.
        index: Index,
        /// Its base offset.
        base: Offset,
        /// The base offset that the log before it demands.
        expected: Offset,
    },
    /// An entry of the same term as ours holds other records, so one of two leaders lied.
    #[error("entry {index} of term {term} holds other records than ours")]
    SameTermOtherData {
        /// Index of the entry.
        index: Index,
        /// Its term.
        term: Term,
    },
    /// An entry differs from one that is committed here.
    #[error("entry {index} of term {term} contradicts the committed entry of term {ours}")]
    ConflictsWithCommitted {
        /// Index of the entry.
        index: Index,
        /// Its term.
        term: Term,
        /// Term of the committed entry.
        ours: Term,
    },
    /// Another node is known to lead this term.
    #[error("node {leader} leads term {term}, so {from} cannot")]
    SecondLeader {
        /// The sender.
        from: NodeId,
        /// The leader known.
        leader: NodeId,
        /// The term.
        term: Term,
    },
    /// A negative election priority: raft-rs would answer it without a term, and panic.
    #[error("an election priority of {priority} is out of range")]
    Priority {
        /// The priority.
        priority: i64,
    },
    /// A commit index beyond the end of the log.
    #[error("commit {commit} lies beyond the last index {last}")]
    CommitBeyondLast {
        /// The commit index.
        commit: Index,
        /// Last index of the log.
        last: Index,
    },
    /// An acknowledgement of entries that were never sent.
    #[error("it acknowledges index {index}, the log ends at {last}")]
    MatchBeyondLast {
        /// The index acknowledged.
        index: Index,
        /// Last index of the log.
        last: Index,
    },
    /// A commit index or its term contradicts the rest of a vote message.
    #[error("commit {commit} of term {commit_term} contradicts the rest of the message")]
    CommitInfo {
        /// The commit index.
        commit: Index,
        /// Its claimed term.
        commit_term: Term,
    },
    /// A vote that was not asked for, or before the request had left.
    #[error("a vote for term {term} that this replica has not asked for")]
    UnaskedVote {
        /// The term.
        term: Term,
    },
    /// Only the leader may ask for a campaign.
    #[error("only the leader of the current term may ask for a campaign")]
    CampaignNotFromLeader,
    /// A forwarded read whose context is not the sender's own.
    #[error("a forwarded read needs one entry with a context that begins with the sender's id")]
    ReadContext,
    /// A heartbeat that asks to go quiet with entries that are not committed.
    #[error("it asks to go quiet at {index} with commit {commit}")]
    Quiet {
        /// Last index, as it says.
        index: Index,
        /// Its commit index.
        commit: Index,
    },
    /// An answer to a heartbeat that was not sent yet.
    #[error("it answers a heartbeat of the future, sent at {sent} ns")]
    Stamp {
        /// When the heartbeat was sent, as it says, by this replica's clock.
        sent: Timestamp,
    },
    /// Too many reads of peers wait.
    #[error("{FORWARDED_READS_MAX} reads of peers wait already")]
    ReadsFull,
    /// An answer to a read that this replica cannot have forwarded.
    #[error("an answer to a read that this replica has not forwarded")]
    UnaskedRead,
    /// A beat with more than its two numbers, or of a group.
    #[error("a beat is of no group, and has two numbers")]
    Beat,
    /// An invitation that names no members, or such as no group begins with.
    #[error("the invitation to the group is malformed")]
    Invite,
    /// What it says of a snapshot cannot be.
    #[error("it says of a snapshot at index {index} what cannot be")]
    Snapshot {
        /// Last index that the snapshot covers.
        index: Index,
    },
    /// A chunk of a snapshot is not what its sender has read.
    #[error("chunk {chunk} of the snapshot at index {index} does not have its digest: it is sent again")]
    SnapshotDigest {
        /// Last index that the snapshot covers.
        index: Index,
        /// Number of the chunk.
        chunk: u32,
    },
    /// A request for a snapshot, which no replica makes.
    #[error("no replica asks for a snapshot in this way")]
    SnapshotRequest,
}

/// What the validator has to know of a replica's log.
pub(crate) trait LogView {
    /// Term of the entry at an index from the one before the log to the last.
    fn term_at(&self, index: Index) -> Term;
    /// Offset after the entry at an index from the commit index to the last.
    fn offset_after(&self, index: Index) -> Offset;
}

/// What the validator has to know of a replica.
pub(crate) struct GroupView<'a> {
    pub(crate) node: NodeId,
    pub(crate) now: Timestamp,
    pub(crate) term: Term,
    pub(crate) role: Role,
    pub(crate) leader: Option<NodeId>,
    /// The entry before the log: 0, or the last one that was compacted away.
    pub(crate) start: Index,
    pub(crate) commit: Index,
    pub(crate) last: Index,
    /// Whether our request for votes of this term and role was durable and has left.
    pub(crate) has_asked_for_votes: bool,
    /// Reads that wait for a round, of peers and our own.
    pub(crate) reads_waiting: usize,
    pub(crate) has_state_machine: bool,
    pub(crate) log: &'a dyn LogView,
}

/// Checks a peer's message against what the replica knows.
///
/// # Errors
/// The first thing that is wrong with it.
pub(crate) fn check(view: &GroupView<'_>, message: &PeerMessage) -> Result<(), Refusal> {
    check_envelope(view, message)?;
    match message.kind {
        MessageKind::Append => check_append(view, message),
        MessageKind::Heartbeat => check_heartbeat(view, message),
        MessageKind::AppendResponse => check_append_response(view, message),
        MessageKind::RequestVote | MessageKind::RequestPreVote => check_vote_request(message),
        MessageKind::RequestVoteResponse | MessageKind::RequestPreVoteResponse => {
            check_vote_response(view, message)
        }
        MessageKind::HeartbeatResponse => check_heartbeat_response(view, message),
        MessageKind::TimeoutNow => check_timeout_now(view, message),
        MessageKind::ReadIndex => check_read_index(view, message),
        MessageKind::ReadIndexResponse => check_read_index_response(view, message),
        MessageKind::Snapshot => snapshot::check_offer(view, message),
        MessageKind::SnapshotChunk => snapshot::check_chunk(view, message),
        MessageKind::SnapshotAck => snapshot::check_ack(message),
        MessageKind::Beat => Err(Refusal::Beat),
        MessageKind::Invite => first_members(message).map(|_| ()),
        MessageKind::Gone => check_gone(message),
        MessageKind::MayLeave => Ok(()),
        MessageKind::RepairQuestion => check_position(message.index, message.log_term, message.term),
        MessageKind::RepairBound => {
            check_leader(view, message)?;
            check_position(message.index, message.log_term, message.term)
        }
    }
}

/// The members that an invitation to a group names that is not here.
///
/// # Errors
/// The first thing that is wrong with it.
pub(crate) fn check_invite(node: NodeId, message: &PeerMessage) -> Result<ConfState, Refusal> {
    check_address(node, message)?;
    let members = first_members(message)?;
    let is_for_us = message.index > Index(0) || members.is_member(node);
    // An entry has a term.
    let has_both = (message.index == Index(0)) == (message.log_term == Term(0));
    let is_for_us = is_for_us && has_both && message.log_term.0 <= NUMBER_MAX;
    if is_for_us && message.group.0 != 0 { Ok(members) } else { Err(Refusal::Invite) }
}

/// The place is one of the sender's log, or stands for the removal of the group.
fn check_gone(message: &PeerMessage) -> Result<(), Refusal> {
    if (message.index, message.log_term.0) == (REMOVED, REMOVED.0) {
        return Ok(());
    }
    check_position(message.index, message.log_term, message.term)
}

fn first_members(message: &PeerMessage) -> Result<ConfState, Refusal> {
    let members = match &message.entries[..] {
        [entry] => decode_members(&entry.data).filter(are_first_members),
        _ => None,
    };
    members.ok_or(Refusal::Invite)
}

fn check_envelope(view: &GroupView<'_>, message: &PeerMessage) -> Result<(), Refusal> {
    check_address(view.node, message)?;
    if message.context.len() > CONTEXT_BYTES_MAX {
        return Err(Refusal::Context { bytes: message.context.len() });
    }
    let may_have_entries = matches!(
        message.kind,
        MessageKind::Append
            | MessageKind::ReadIndex
            | MessageKind::ReadIndexResponse
            | MessageKind::Snapshot
            | MessageKind::SnapshotChunk
            | MessageKind::Invite
    );
    if !message.entries.is_empty() && !may_have_entries {
        return Err(Refusal::Entries { kind: message.kind, count: message.entries.len() });
    }
    if message.request_snapshot.0 != 0 {
        return Err(Refusal::SnapshotRequest);
    }
    Ok(())
}

/// Who says it to whom, in which term, and of which places.
fn check_address(node: NodeId, message: &PeerMessage) -> Result<(), Refusal> {
    if message.from.0 == 0 || message.from == node {
        return Err(Refusal::Sender { from: message.from });
    }
    if message.to != node {
        return Err(Refusal::Receiver { to: message.to });
    }
    // Term 0 marks raft-rs' local messages, which skip its term check; of those for it only a forwarded read
    // has it.
    let has_term =
        !matches!(message.kind, MessageKind::ReadIndex | MessageKind::Invite | MessageKind::MayLeave);
    if (message.term.0 != 0) != has_term || message.term.0 > NUMBER_MAX {
        return Err(Refusal::Term { kind: message.kind, term: message.term });
    }
    let indexes = [message.index, message.commit, message.reject_hint];
    if let Some(index) = indexes.into_iter().find(|index| index.0 > NUMBER_MAX) {
        return Err(Refusal::IndexRange { index });
    }
    Ok(())
}

fn check_leader(view: &GroupView<'_>, message: &PeerMessage) -> Result<(), Refusal> {
    let leader = if view.role == Role::Leader { Some(view.node) } else { view.leader };
    match leader {
        Some(leader) if message.term == view.term && leader != message.from => {
            Err(Refusal::SecondLeader { from: message.from, leader, term: message.term })
        }
        _ => Ok(()),
    }
}

/// An index has a term exactly if it is not 0, and the term is not beyond `term`.
fn check_position(index: Index, log_term: Term, term: Term) -> Result<(), Refusal> {
    if (index.0 == 0) != (log_term.0 == 0) || log_term > term {
        return Err(Refusal::LogTerm { index, log_term, term });
    }
    Ok(())
}

fn check_append(view: &GroupView<'_>, message: &PeerMessage) -> Result<(), Refusal> {
    check_leader(view, message)?;
    // raft-rs answers term 0 for an index beyond its log: log_term 0 would then match there.
    check_position(message.index, message.log_term, message.term)?;
    let (mut index, mut term) = (message.index, message.log_term);
    for entry in &message.entries {
        let expected = index.next();
        if entry.index != expected {
            return Err(Refusal::Gap { index: entry.index, expected });
        }
        if entry.term < term || entry.term.0 == 0 || entry.term > message.term {
            return Err(Refusal::EntryTerm { index: entry.index, term: entry.term });
        }
        let is_readable = match entry.kind {
            EntryKind::Normal => true,
            EntryKind::ConfChange => false,
            EntryKind::ConfChangeV2 => members::parse(&entry.data).is_some(),
        };
        if !is_readable {
            return Err(Refusal::Membership { index: entry.index });
        }
        (index, term) = (entry.index, entry.term);
    }
    if index.0 > NUMBER_MAX {
        return Err(Refusal::IndexRange { index });
    }
    if message.term < view.term {
        return Ok(());
    }
    let position = LogPosition { index: message.index, term: message.log_term };
    let entries = message.entries.iter().map(|entry| LogPosition { index: entry.index, term: entry.term });
    // What was compacted away was committed: Raft does not look at it again.
    let known = std::iter::once(position).chain(entries).filter(|place| place.index >= view.start);
    for LogPosition { index, term } in known {
        if index > view.commit {
            break;
        }
        let ours = view.log.term_at(index);
        if ours != term {
            return Err(Refusal::ConflictsWithCommitted { index, term, ours });
        }
    }
    check_batches(view, message)
}

/// Offsets are a function of the log before: known only where the message continues our log.
fn check_batches(view: &GroupView<'_>, message: &PeerMessage) -> Result<(), Refusal> {
    let continues = (view.commit..=view.last).contains(&message.index)
        && view.log.term_at(message.index) == message.log_term;
    let mut expected = continues.then(|| view.log.offset_after(message.index));
    let mut is_ours = continues;
    for entry in &message.entries {
        if entry.batch().is_some() {
            expected = Some(end_of_batch(entry, expected)?);
        } else if let Some(data) = entry.group_commands() {
            GroupCommands::decode(data)
                .map_err(|error| Refusal::GroupCommands { index: entry.index, error })?;
        }
        // What we have already is kept, so what it says of offsets must be what ours says.
        is_ours = is_ours && entry.index <= view.last && view.log.term_at(entry.index) == entry.term;
        if is_ours && expected != Some(view.log.offset_after(entry.index)) {
            return Err(Refusal::SameTermOtherData { index: entry.index, term: entry.term });
        }
    }
    Ok(())
}

fn end_of_batch(entry: &LogEntry, expected: Option<Offset>) -> Result<Offset, Refusal> {
    let batch = Batch::parse(&entry.data).map_err(|error| Refusal::Batch { index: entry.index, error })?;
    let (index, base) = (entry.index, batch.base());
    let expected = expected.unwrap_or(base);
    let end = base.0.checked_add(u64::from(batch.count())).filter(|end| *end <= NUMBER_MAX);
    match end {
        Some(end) if base == expected => Ok(Offset(end)),
        _ => Err(Refusal::BaseOffset { index, base, expected }),
    }
}

fn check_heartbeat(view: &GroupView<'_>, message: &PeerMessage) -> Result<(), Refusal> {
    check_leader(view, message)?;
    if message.term >= view.term && message.commit > view.last {
        return Err(Refusal::CommitBeyondLast { commit: message.commit, last: view.last });
    }
    // Only a leader whose whole log is committed asks to go quiet.
    if message.index.0 != 0 && message.index != message.commit {
        return Err(Refusal::Quiet { index: message.index, commit: message.commit });
    }
    Ok(())
}

fn check_heartbeat_response(view: &GroupView<'_>, message: &PeerMessage) -> Result<(), Refusal> {
    // Stamps of this term are of this replica's clock since its start: only of a lost term may they be of another.
    let is_taken = view.role == Role::Leader && message.term == view.term;
    match Stamp::of(&message.context) {
        Some(Stamp { sent, .. }) if is_taken && sent > view.now => Err(Refusal::Stamp { sent }),
        _ if is_taken && message.index > view.last => {
            Err(Refusal::MatchBeyondLast { index: message.index, last: view.last })
        }
        _ => Ok(()),
    }
}

fn check_append_response(view: &GroupView<'_>, message: &PeerMessage) -> Result<(), Refusal> {
    // raft-rs takes any index as a match: one beyond the log would count towards a quorum of
    // entries that do not exist yet. A leader that has restarted may hear honest ones of before.
    let is_taken = view.role == Role::Leader && message.term == view.term;
    if is_taken && message.index > view.last {
        return Err(Refusal::MatchBeyondLast { index: message.index, last: view.last });
    }
    Ok(())
}

fn check_vote_request(message: &PeerMessage) -> Result<(), Refusal> {
    // The log of a candidate ends in a term before the one it campaigns for.
    check_position(message.index, message.log_term, Term(message.term.0 - 1))?;
    if !message.context.is_empty() && message.context != CAMPAIGN_TRANSFER {
        return Err(Refusal::VoteContext { kind: message.kind });
    }
    if message.priority < 0 {
        return Err(Refusal::Priority { priority: message.priority });
    }
    if message.commit > message.index || message.commit_term > message.log_term {
        return Err(Refusal::CommitInfo { commit: message.commit, commit_term: message.commit_term });
    }
    Ok(())
}

fn check_vote_response(view: &GroupView<'_>, message: &PeerMessage) -> Result<(), Refusal> {
    if message.commit_term > message.term {
        return Err(Refusal::CommitInfo { commit: message.commit, commit_term: message.commit_term });
    }
    if message.reject && message.term > view.term {
        return Ok(());
    }
    let (campaign_term, role) = match message.kind {
        // A granted pre-vote names the term after ours, a refused one the term of the voter.
        MessageKind::RequestPreVoteResponse if !message.reject => (Term(view.term.0 + 1), Role::PreCandidate),
        MessageKind::RequestPreVoteResponse => (view.term, Role::PreCandidate),
        _ => (view.term, Role::Candidate),
    };
    let is_counted = view.role == role && message.term >= view.term;
    if (is_counted && (message.term != campaign_term || !view.has_asked_for_votes))
        || message.term > campaign_term
    {
        return Err(Refusal::UnaskedVote { term: message.term });
    }
    Ok(())
}

fn check_timeout_now(view: &GroupView<'_>, message: &PeerMessage) -> Result<(), Refusal> {
    if message.term < view.term || (message.term == view.term && view.leader == Some(message.from)) {
        return Ok(());
    }
    Err(Refusal::CampaignNotFromLeader)
}

fn check_read_index(view: &GroupView<'_>, message: &PeerMessage) -> Result<(), Refusal> {
    // raft-rs merges reads of equal context: nobody may use another's.
    check_read_context(message, message.from, Refusal::ReadContext)?;
    if view.reads_waiting >= FORWARDED_READS_MAX {
        return Err(Refusal::ReadsFull);
    }
    Ok(())
}

fn check_read_index_response(view: &GroupView<'_>, message: &PeerMessage) -> Result<(), Refusal> {
    check_leader(view, message)?;
    check_read_context(message, view.node, Refusal::UnaskedRead)
}

/// Exactly one entry, whose data is the context of a read of `reader`.
fn check_read_context(message: &PeerMessage, reader: NodeId, refusal: Refusal) -> Result<(), Refusal> {
    let [entry] = message.entries.as_slice() else {
        return Err(Refusal::Entries { kind: message.kind, count: message.entries.len() });
    };
    let owner = entry.data.first_chunk().map(|id| NodeId(u64::from_le_bytes(*id)));
    if owner != Some(reader) || entry.data.len() != ROUND_BYTES {
        return Err(refusal);
    }
    if entry.kind != EntryKind::Normal {
        return Err(Refusal::Membership { index: entry.index });
    }
    Ok(())
}

#[cfg(test)]
mod tests;

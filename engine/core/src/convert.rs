//! Between raft-rs' types and the plain ones of the seam: raft-rs ends here.

use raft::StateRole;
use raft::eraftpb;
use raft::eraftpb::{EntryType, MessageType};

use crate::ids::{GroupId, Index, NodeId, Term};
use crate::io::{ConfState, EntryKind, HardState, LogEntry, MessageKind, PeerMessage, Role, SnapshotHead};

pub(crate) fn to_raft_entry(entry: &LogEntry) -> eraftpb::Entry {
    eraftpb::Entry {
        entry_type: match entry.kind {
            EntryKind::Normal => EntryType::EntryNormal,
            EntryKind::ConfChange => EntryType::EntryConfChange,
            EntryKind::ConfChangeV2 => EntryType::EntryConfChangeV2,
        },
        term: entry.term.0,
        index: entry.index.0,
        data: entry.data.clone(),
        ..Default::default()
    }
}

pub(crate) fn to_log_entry(entry: eraftpb::Entry) -> LogEntry {
    LogEntry {
        index: Index(entry.index),
        term: Term(entry.term),
        kind: match entry.entry_type {
            EntryType::EntryNormal => EntryKind::Normal,
            EntryType::EntryConfChange => EntryKind::ConfChange,
            EntryType::EntryConfChangeV2 => EntryKind::ConfChangeV2,
        },
        data: entry.data,
    }
}

pub(crate) fn to_raft_hard_state(state: &HardState) -> eraftpb::HardState {
    eraftpb::HardState {
        term: state.term.0,
        vote: state.vote.0,
        commit: state.commit.0,
        ..Default::default()
    }
}

pub(crate) fn to_hard_state(state: &eraftpb::HardState) -> HardState {
    HardState { term: Term(state.term), vote: NodeId(state.vote), commit: Index(state.commit) }
}

pub(crate) fn to_raft_conf_state(state: &ConfState) -> eraftpb::ConfState {
    let numbers = |nodes: &[NodeId]| nodes.iter().map(|node| node.0).collect();
    eraftpb::ConfState {
        voters: numbers(&state.voters),
        learners: numbers(&state.learners),
        voters_outgoing: numbers(&state.voters_outgoing),
        learners_next: numbers(&state.learners_next),
        auto_leave: state.auto_leave,
        ..Default::default()
    }
}

/// raft-rs' message that installs a snapshot. It refuses one whose members `node` is not among, which is so for a
/// learner that was added since: it is counted among them here.
pub(crate) fn to_raft_snapshot(head: &SnapshotHead, node: NodeId) -> eraftpb::Snapshot {
    let mut conf_state = to_raft_conf_state(&head.conf_state);
    if !head.conf_state.is_member(node) {
        conf_state.learners.push(node.0);
    }
    let metadata = eraftpb::SnapshotMetadata {
        conf_state: Some(conf_state).into(),
        index: head.index.0,
        term: head.term.0,
        ..Default::default()
    };
    eraftpb::Snapshot { metadata: Some(metadata).into(), ..Default::default() }
}

pub(crate) fn to_role(role: StateRole) -> Role {
    match role {
        StateRole::Follower => Role::Follower,
        StateRole::PreCandidate => Role::PreCandidate,
        StateRole::Candidate => Role::Candidate,
        StateRole::Leader => Role::Leader,
    }
}

/// `None` for node 0, which stands for "nobody" in Raft's fields.
pub(crate) fn to_node(id: u64) -> Option<NodeId> {
    (id != 0).then_some(NodeId(id))
}

/// A message of a peer for raft-rs; `None` for kinds that it does not know: how snapshots travel, how replicas
/// come and go, and how they are repaired.
pub(crate) fn to_raft_message(message: PeerMessage) -> Option<eraftpb::Message> {
    let entries: Vec<eraftpb::Entry> = message.entries.iter().map(to_raft_entry).collect();
    Some(eraftpb::Message {
        msg_type: match message.kind {
            MessageKind::Append => MessageType::MsgAppend,
            MessageKind::AppendResponse => MessageType::MsgAppendResponse,
            MessageKind::RequestVote => MessageType::MsgRequestVote,
            MessageKind::RequestVoteResponse => MessageType::MsgRequestVoteResponse,
            MessageKind::RequestPreVote => MessageType::MsgRequestPreVote,
            MessageKind::RequestPreVoteResponse => MessageType::MsgRequestPreVoteResponse,
            MessageKind::Heartbeat => MessageType::MsgHeartbeat,
            MessageKind::HeartbeatResponse => MessageType::MsgHeartbeatResponse,
            MessageKind::TimeoutNow => MessageType::MsgTimeoutNow,
            MessageKind::ReadIndex => MessageType::MsgReadIndex,
            MessageKind::ReadIndexResponse => MessageType::MsgReadIndexResp,
            MessageKind::Snapshot
            | MessageKind::SnapshotChunk
            | MessageKind::SnapshotAck
            | MessageKind::Invite
            | MessageKind::Gone
            | MessageKind::MayLeave
            | MessageKind::Beat
            | MessageKind::RepairQuestion
            | MessageKind::RepairBound => return None,
        },
        to: message.to.0,
        from: message.from.0,
        term: message.term.0,
        log_term: message.log_term.0,
        index: message.index.0,
        entries: entries.into(),
        commit: message.commit.0,
        commit_term: message.commit_term.0,
        request_snapshot: message.request_snapshot.0,
        reject: message.reject,
        reject_hint: message.reject_hint.0,
        context: message.context,
        priority: message.priority,
        ..Default::default()
    })
}

/// A message of raft-rs for a peer; `None` for kinds that never leave a node.
pub(crate) fn to_peer_message(group: GroupId, message: eraftpb::Message) -> Option<PeerMessage> {
    let kind = match message.msg_type {
        MessageType::MsgAppend => MessageKind::Append,
        MessageType::MsgAppendResponse => MessageKind::AppendResponse,
        MessageType::MsgRequestVote => MessageKind::RequestVote,
        MessageType::MsgRequestVoteResponse => MessageKind::RequestVoteResponse,
        MessageType::MsgRequestPreVote => MessageKind::RequestPreVote,
        MessageType::MsgRequestPreVoteResponse => MessageKind::RequestPreVoteResponse,
        MessageType::MsgHeartbeat => MessageKind::Heartbeat,
        MessageType::MsgHeartbeatResponse => MessageKind::HeartbeatResponse,
        MessageType::MsgTimeoutNow => MessageKind::TimeoutNow,
        MessageType::MsgReadIndex => MessageKind::ReadIndex,
        MessageType::MsgReadIndexResp => MessageKind::ReadIndexResponse,
        // It is offered by ourselves.
        MessageType::MsgSnapshot
        | MessageType::MsgHup
        | MessageType::MsgBeat
        | MessageType::MsgPropose
        | MessageType::MsgUnreachable
        | MessageType::MsgSnapStatus
        | MessageType::MsgCheckQuorum
        | MessageType::MsgTransferLeader => return None,
    };
    Some(PeerMessage {
        kind,
        group,
        from: NodeId(message.from),
        to: NodeId(message.to),
        term: Term(message.term),
        log_term: Term(message.log_term),
        index: Index(message.index),
        commit: Index(message.commit),
        commit_term: Term(message.commit_term),
        reject: message.reject,
        reject_hint: Index(message.reject_hint),
        request_snapshot: Index(message.request_snapshot),
        priority: message.priority,
        context: message.context,
        entries: message.entries.into_iter().map(to_log_entry).collect(),
    })
}

//! Messages that nobody honest sends: made up about a replica, or bent on their way.
//!
//! Each starts as one that the replica would take, so that a lie in a single field comes past the checks of
//! all the others.

use bytes::Bytes;
use iroh_raft_core::batch::{BATCH_HEADER_BYTES, BatchHeader, RecordBlock, encode_batch};
use iroh_raft_core::{
    ConfState, EntryKind, GroupId, GroupStatus, Index, LogEntry, MessageKind, NodeId, Offset, PeerMessage,
    Term, WallTime, encode_members,
};

use super::choices::Choices;
use crate::harness::disk::header;

const CAMPAIGN_TRANSFER: Bytes = Bytes::from_static(b"CampaignTransfer");
/// Nodes that a message can claim to come from: members, and a stranger.
const SENDERS: [u64; 7] = [1, 2, 3, 1, 2, 3, 4];

/// A replica to lie to: what it says of itself, and its durable log.
pub(crate) struct About<'a> {
    pub(crate) node: NodeId,
    pub(crate) status: GroupStatus,
    pub(crate) log: &'a [LogEntry],
}

impl About<'_> {
    /// Term of an entry, as far as it is durable; the replica's own for those behind.
    fn term_at(&self, index: u64) -> Term {
        match usize::try_from(index) {
            Ok(0) => Term(0),
            Ok(index) => self.log.get(index - 1).map_or(self.status.term, |entry| entry.term),
            Err(_) => self.status.term,
        }
    }

    /// Offset after an entry, as far as it is durable.
    fn offset_after(&self, index: u64) -> Offset {
        let upto = usize::try_from(index).map_or(self.log.len(), |index| index.min(self.log.len()));
        self.log[..upto].iter().rev().find_map(header).map_or(Offset(0), |header| header.end())
    }
}

/// A message about a group, made up.
pub(crate) fn forged(choices: &mut Choices<'_>, about: &About<'_>) -> PeerMessage {
    let kind = choices.one_of(&MessageKind::ALL);
    let status = &about.status;
    let others: Vec<u64> = SENDERS.into_iter().filter(|node| *node != about.node.0).collect();
    let from = NodeId(choices.one_of(&others));
    let ahead = u64::from(matches!(
        kind,
        MessageKind::RequestVote | MessageKind::RequestPreVote | MessageKind::RequestPreVoteResponse
    ));
    let term = match kind {
        MessageKind::ReadIndex | MessageKind::Invite | MessageKind::MayLeave | MessageKind::Beat => 0,
        _ => choices.number(status.term.0.max(1) + ahead),
    };
    let index = match kind {
        MessageKind::Append => {
            let near = choices.one_of(&[status.last.0, status.commit.0, 0]);
            choices.number(near)
        }
        MessageKind::AppendResponse | MessageKind::RequestVote | MessageKind::RequestPreVote => {
            choices.number(status.last.0)
        }
        _ => 0,
    };
    let (log_term, index) = (about.term_at(index), Index(index));
    let mut message = PeerMessage { index, log_term, ..bare(kind, about, from, Term(term)) };
    match kind {
        MessageKind::Append => {
            message.commit = Index(choices.number(status.commit.0));
            message.entries = entries(choices, about, &message);
        }
        MessageKind::Heartbeat | MessageKind::HeartbeatResponse => {
            message.commit = Index(choices.number(status.commit.0));
            // Sometimes it asks to go quiet, or agrees to.
            message.index = choices.one_of(&[Index(0), message.commit]);
        }
        MessageKind::AppendResponse => {
            message.reject = choices.below(4) == 0;
            if message.reject {
                message.reject_hint = Index(choices.number(status.last.0));
                message.log_term = about.term_at(message.reject_hint.0);
            }
        }
        MessageKind::RequestVote | MessageKind::RequestPreVote => {
            message.context = choices.one_of(&[Bytes::new(), Bytes::new(), CAMPAIGN_TRANSFER]);
            message.priority = choices.one_of(&[0, 0, 0, 0, 1, -1]);
            message.commit = Index(choices.one_of(&[0, status.commit.0]));
            message.commit_term = about.term_at(message.commit.0);
        }
        MessageKind::RequestVoteResponse | MessageKind::RequestPreVoteResponse => {
            message.reject = choices.below(3) == 0;
        }
        MessageKind::ReadIndex => {
            message.entries = vec![round(from, &choices.bytes(2))];
        }
        MessageKind::ReadIndexResponse => {
            message.index = status.commit;
            message.entries = vec![round(about.node, &[])];
        }
        MessageKind::RepairQuestion | MessageKind::RepairBound => {
            message.index = Index(choices.number(status.last.0));
            message.log_term = about.term_at(message.index.0);
            message.commit = Index(choices.number(8));
        }
        MessageKind::Beat => message.group = GroupId(choices.one_of(&[0, 0, 1])),
        MessageKind::Gone => {
            message.index = Index(choices.number(status.last.0));
            message.log_term = Term(choices.number(status.term.0));
            message.reject = choices.below(2) == 0;
        }
        MessageKind::Invite => {
            let voters = vec![NodeId(1), NodeId(2)];
            let members = ConfState { voters, ..ConfState::default() };
            let (index, term, kind) = (Index(0), Term(0), EntryKind::ConfChangeV2);
            message.entries = vec![LogEntry { index, term, kind, data: encode_members(&members).into() }];
        }
        MessageKind::TimeoutNow
        | MessageKind::Snapshot
        | MessageKind::SnapshotChunk
        | MessageKind::SnapshotAck
        | MessageKind::MayLeave => {}
    }
    for _ in 0..choices.one_of(&[0, 0, 0, 1, 1, 2]) {
        bend(choices, about, &mut message);
    }
    message
}

/// What a forwarded read carries: the name of a round, which begins with its reader.
fn round(reader: NodeId, name: &[u8]) -> LogEntry {
    let mut data = [&reader.0.to_le_bytes()[..], name].concat();
    data.resize(24, 0);
    LogEntry { index: Index(0), term: Term(0), kind: EntryKind::Normal, data: data.into() }
}

/// A leader's word to campaign.
pub(crate) fn campaign(about: &About<'_>, leader: NodeId) -> PeerMessage {
    bare(MessageKind::TimeoutNow, about, leader, about.status.term)
}

fn bare(kind: MessageKind, about: &About<'_>, from: NodeId, term: Term) -> PeerMessage {
    PeerMessage {
        kind,
        group: about.status.group,
        from,
        to: about.node,
        term,
        log_term: Term(0),
        index: Index(0),
        commit: Index(0),
        commit_term: Term(0),
        reject: false,
        reject_hint: Index(0),
        request_snapshot: Index(0),
        priority: 0,
        context: Bytes::new(),
        entries: Vec::new(),
    }
}

/// Entries that continue the log from the message's position.
fn entries(choices: &mut Choices<'_>, about: &About<'_>, message: &PeerMessage) -> Vec<LogEntry> {
    let mut base = about.offset_after(message.index.0);
    let mut term = message.log_term.max(Term(1));
    let count = choices.one_of(&[1, 0, 1, 2, 3]);
    let indexes = (1..=count).map(|ahead| Index(message.index.0.saturating_add(ahead)));
    let entries = indexes.map(|index| {
        term = choices.one_of(&[term, message.term, Term(term.0.saturating_add(1))]);
        let records = choices.one_of(&[1, 0, 2, 3]);
        let data = if records == 0 { Bytes::new() } else { batch(base, records) };
        base.0 = base.0.saturating_add(records as u64);
        LogEntry { index, term, kind: EntryKind::Normal, data }
    });
    entries.collect()
}

fn batch(base: Offset, records: usize) -> Bytes {
    encode_batch(base, WallTime(1), [RecordBlock::from_records(&vec![b"forged"; records])].iter())
}

/// Makes one field of a message a lie.
pub(crate) fn bend(choices: &mut Choices<'_>, about: &About<'_>, message: &mut PeerMessage) {
    let last = about.status.last.0;
    match choices.below(16) {
        0 => message.term = Term(choices.number(message.term.0)),
        1 => message.log_term = Term(choices.number(message.log_term.0)),
        2 => message.index = Index(choices.number(message.index.0)),
        3 => message.commit = Index(choices.number(last)),
        4 => message.commit_term = Term(choices.number(message.log_term.0)),
        5 => message.reject = !message.reject,
        6 => message.reject_hint = Index(choices.number(last)),
        7 => message.request_snapshot = Index(choices.number(last)),
        8 => message.priority = choices.one_of(&[-1, 1, i64::MIN, i64::MAX]),
        9 => {
            let count = choices.below(80);
            message.context = choices.bytes(count);
        }
        10 => message.kind = choices.one_of(&MessageKind::ALL),
        11 => message.from = NodeId(choices.number(about.node.0)),
        12 => message.to = NodeId(choices.number(about.node.0)),
        13 => message.entries = entries(choices, about, message),
        _ => bend_entry(choices, message),
    }
}

fn bend_entry(choices: &mut Choices<'_>, message: &mut PeerMessage) {
    let count = message.entries.len() as u64;
    if count == 0 {
        return;
    }
    let at = choices.below(count) as usize;
    match choices.below(8) {
        0 => drop(message.entries.remove(at)),
        1 => message.entries.insert(at, message.entries[at].clone()),
        2 => message.entries[at].index = Index(choices.number(message.entries[at].index.0)),
        3 => message.entries[at].term = Term(choices.number(message.entries[at].term.0)),
        4 => {
            let kinds = [EntryKind::Normal, EntryKind::ConfChange, EntryKind::ConfChangeV2];
            message.entries[at].kind = choices.one_of(&kinds);
        }
        5 => {
            let count = choices.below(80);
            message.entries[at].data = choices.bytes(count);
        }
        6 => {
            let base = BatchHeader::parse(&message.entries[at].data).map_or(0, |header| header.base.0);
            message.entries[at].data = batch(Offset(choices.number(base)), 1);
        }
        _ => {
            let mut data = message.entries[at].data.to_vec();
            let place = choices.below(BATCH_HEADER_BYTES as u64 + 8) as usize;
            if let Some(byte) = data.get_mut(place) {
                *byte = choices.byte();
            }
            message.entries[at].data = data.into();
        }
    }
}

//! The messages that carry a snapshot: what their contexts and entries mean. FORMAT.md has the bytes.
//!
//! Every one names the snapshot by its last index, that entry's term and the checksum of its body, so that no chunk
//! of one is ever taken for that of another.

use bytes::Bytes;

use crate::group_meta::GroupMeta;
use crate::ids::{Index, NodeId, Offset, Term};
use crate::io::{
    ConfState, EntryKind, LogEntry, MessageKind, PeerMessage, Snapshot, SnapshotBody, SnapshotHead,
};
use crate::members::MEMBERS_MAX;

const OFFER_BYTES: usize = 24;
const CHUNK_BYTES: usize = 12;
const ACK_BYTES: usize = 8;

/// A chunk on its way.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Chunk {
    pub(crate) number: u32,
    /// CRC-32C of its data, as the sender made it.
    pub(crate) crc: u32,
    /// Checksum of the whole body: which snapshot this is of.
    pub(crate) body_checksum: u32,
    pub(crate) data: Bytes,
}

/// What a receiver says of a snapshot.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Ack {
    /// Chunks that are durable.
    pub(crate) chunks: u32,
    pub(crate) body_checksum: u32,
}

/// Puts an offer into a message whose parties and term are set.
pub(crate) fn put_offer(message: &mut PeerMessage, snapshot: &Snapshot) {
    let Snapshot { head, body } = snapshot;
    (message.kind, message.index, message.log_term) = (MessageKind::Snapshot, head.index, head.term);
    let mut context = Vec::with_capacity(OFFER_BYTES);
    context.extend_from_slice(&head.offset.0.to_le_bytes());
    context.extend_from_slice(&body.bytes.to_le_bytes());
    context.extend_from_slice(&body.checksum.to_le_bytes());
    context.extend_from_slice(&[0; 4]);
    message.context = context.into();
    let ConfState { voters, learners, .. } = &head.conf_state;
    let mut data = Vec::with_capacity(4 + 8 * (voters.len() + learners.len()));
    for nodes in [voters, learners] {
        let count = u16::try_from(nodes.len()).expect("members are few");
        data.extend_from_slice(&count.to_le_bytes());
    }
    voters.iter().chain(learners).for_each(|node| data.extend_from_slice(&node.0.to_le_bytes()));
    data.extend_from_slice(&head.table);
    message.entries = vec![entry(head.index, head.term, data.into())];
}

/// The snapshot that an offer is of; `None` if it is not one.
pub(crate) fn parse_offer(message: &PeerMessage) -> Option<Snapshot> {
    let context: &[u8; OFFER_BYTES] = message.context[..].try_into().ok()?;
    let (offset, rest) = context.split_first_chunk()?;
    let (bytes, rest) = rest.split_first_chunk()?;
    let (checksum, zero) = rest.split_first_chunk()?;
    let body = SnapshotBody { bytes: u64::from_le_bytes(*bytes), checksum: u32::from_le_bytes(*checksum) };
    if zero != [0; 4] || body.bytes > SnapshotBody::BYTES_MAX {
        return None;
    }
    let all = data_of(message)?;
    let (voter_count, data) = all.split_first_chunk()?;
    let (learner_count, data) = data.split_first_chunk()?;
    let counts = [voter_count, learner_count].map(|count| usize::from(u16::from_le_bytes(*count)));
    if counts[0] == 0 || counts.iter().sum::<usize>() > MEMBERS_MAX {
        return None;
    }
    let (mut data, table) = data.split_at_checked(8 * (counts[0] + counts[1]))?;
    // A slice would keep the whole frame in memory.
    let table = Bytes::copy_from_slice(table);
    GroupMeta::decode(table.clone())?;
    let mut nodes = Vec::with_capacity(counts[0] + counts[1]);
    while let Some((node, rest)) = data.split_first_chunk() {
        nodes.push(NodeId(u64::from_le_bytes(*node)));
        data = rest;
    }
    let learners = nodes.split_off(counts[0]);
    let is_sound = |nodes: &[NodeId]| {
        nodes.iter().all(|node| *node != NodeId(0)) && nodes.windows(2).all(|pair| pair[0] < pair[1])
    };
    if !is_sound(&nodes) || !is_sound(&learners) || nodes.iter().any(|node| learners.contains(node)) {
        return None;
    }
    let conf_state = ConfState { voters: nodes, learners, ..ConfState::default() };
    let offset = Offset(u64::from_le_bytes(*offset));
    let head = SnapshotHead { index: message.index, term: message.log_term, offset, conf_state, table };
    Some(Snapshot { head, body })
}

/// Puts a chunk of a snapshot into a message whose parties and term are set.
pub(crate) fn put_chunk(message: &mut PeerMessage, snapshot: &Snapshot, number: u32, data: Bytes) {
    let SnapshotHead { index, term, .. } = snapshot.head;
    (message.kind, message.index, message.log_term) = (MessageKind::SnapshotChunk, index, term);
    let fields = [number, crc32c::crc32c(&data), snapshot.body.checksum];
    message.context = fields.iter().flat_map(|field| field.to_le_bytes()).collect();
    message.entries = vec![entry(index, term, data)];
}

/// The chunk that a message carries; `None` if it is none. Its data is not compared with its digest yet.
pub(crate) fn parse_chunk(message: &PeerMessage) -> Option<Chunk> {
    let context: &[u8; CHUNK_BYTES] = message.context[..].try_into().ok()?;
    let (number, rest) = context.split_first_chunk()?;
    let (crc, rest) = rest.split_first_chunk()?;
    let (body_checksum, _) = rest.split_first_chunk()?;
    let [number, crc, body_checksum] = [number, crc, body_checksum].map(|field| u32::from_le_bytes(*field));
    Some(Chunk { number, crc, body_checksum, data: data_of(message)?.clone() })
}

/// Puts a receiver's word on a snapshot into a message whose parties and term are set.
pub(crate) fn put_ack(message: &mut PeerMessage, (index, term): (Index, Term), ack: Ack) {
    (message.kind, message.index, message.log_term) = (MessageKind::SnapshotAck, index, term);
    let fields = [ack.chunks, ack.body_checksum];
    message.context = fields.iter().flat_map(|field| field.to_le_bytes()).collect();
}

/// What a message says of a snapshot; `None` if it does not.
pub(crate) fn parse_ack(message: &PeerMessage) -> Option<Ack> {
    let context: &[u8; ACK_BYTES] = message.context[..].try_into().ok()?;
    let (chunks, rest) = context.split_first_chunk()?;
    let (body_checksum, _) = rest.split_first_chunk()?;
    let [chunks, body_checksum] = [chunks, body_checksum].map(|field| u32::from_le_bytes(*field));
    Some(Ack { chunks, body_checksum })
}

fn entry(index: Index, term: Term, data: Bytes) -> LogEntry {
    LogEntry { index, term, kind: EntryKind::Normal, data }
}

/// The data of the one entry, which repeats the place of the snapshot.
fn data_of(message: &PeerMessage) -> Option<&Bytes> {
    let [entry] = message.entries.as_slice() else { return None };
    let is_sound =
        entry.kind == EntryKind::Normal && (entry.index, entry.term) == (message.index, message.log_term);
    is_sound.then_some(&entry.data)
}

//! Frames of messages between the replicas of two shards.

use bytes::Bytes;
use iroh_raft_core::{
    CONTEXT_BYTES_MAX, EntryKind, GroupId, Index, LogEntry, MessageKind, NodeId, PeerMessage, ShardId, Term,
};
use rkyv::{Archive, Serialize};

use super::payload::{PayloadBuilder, PayloadCursor};
use super::{FrameError, FrameHeader, FrameKind, FrameLimits, HEADER_BYTES, Lane, OutFrame, archive};

/// The descriptors of a frame. Every message of a frame goes from one node to one node.
///
/// What few messages use lies in a table of its own, so that a heartbeat takes 40 bytes; entries lie
/// in one table for all messages, so that a message without entries takes none for them.
#[derive(Archive, Serialize, Default, Debug)]
struct Descriptors {
    from: u64,
    to: u64,
    messages: Vec<MessageDescriptor>,
    details: Vec<DetailDescriptor>,
    entries: Vec<EntryDescriptor>,
}

#[derive(Archive, Serialize, Clone, Copy, Debug)]
struct MessageDescriptor {
    group: u64,
    term: u64,
    index: u64,
    commit: u64,
    entries: u32,
    kind: u8,
    flags: u8,
    context_bytes: u8,
    reserved: u8,
}

/// Present for messages with [`HAS_DETAIL`], in their order.
#[derive(Archive, Serialize, Clone, Copy, PartialEq, Default, Debug)]
struct DetailDescriptor {
    log_term: u64,
    commit_term: u64,
    reject_hint: u64,
    request_snapshot: u64,
    priority: i64,
}

#[derive(Archive, Serialize, Clone, Copy, Debug)]
struct EntryDescriptor {
    index: u64,
    term: u64,
    bytes: u32,
    kind: u8,
    reserved: [u8; 3],
}

const REJECT: u8 = 1;
const HAS_DETAIL: u8 = 2;

const ROOT_BYTES: usize = size_of::<ArchivedDescriptors>();
const MESSAGE_BYTES: usize = size_of::<ArchivedMessageDescriptor>();
const DETAIL_BYTES: usize = size_of::<ArchivedDetailDescriptor>();
const ENTRY_BYTES: usize = size_of::<ArchivedEntryDescriptor>();

const _: () = assert!(align_of::<ArchivedDescriptors>() == 1 && ROOT_BYTES == 40);
const _: () = assert!(align_of::<ArchivedMessageDescriptor>() == 1 && MESSAGE_BYTES == 40);
const _: () = assert!(align_of::<ArchivedDetailDescriptor>() == 1 && DETAIL_BYTES == 40);
const _: () = assert!(align_of::<ArchivedEntryDescriptor>() == 1 && ENTRY_BYTES == 24);
const _: () = assert!(CONTEXT_BYTES_MAX <= u8::MAX as usize);

/// The sizes above as one number, for the format's fingerprint.
pub(super) const FORMAT_BYTES: u64 =
    (ROOT_BYTES << 24 | MESSAGE_BYTES << 16 | DETAIL_BYTES << 8 | ENTRY_BYTES) as u64;

fn archive_bytes(messages: usize, details: usize, entries: usize) -> usize {
    ROOT_BYTES + messages * MESSAGE_BYTES + details * DETAIL_BYTES + entries * ENTRY_BYTES
}

/// A received frame of peer messages, validated.
///
/// Entries and contexts are slices of the one buffer the frame came in: each keeps all
/// [`bytes`](PeerFrame::bytes) of it alive.
#[derive(Clone, Debug)]
pub struct PeerFrame {
    lane: Lane,
    from: NodeId,
    to: NodeId,
    source_shard: ShardId,
    destination_shard: ShardId,
    messages: usize,
    archive: Bytes,
    payload: Bytes,
}

impl PeerFrame {
    /// Validates a frame whose header was parsed. `body` is exactly what follows the header.
    ///
    /// What the messages mean, and whether a peer may say so, is for the core's validator; that
    /// [`sender`](PeerFrame::sender) is the node whose key the connection has is for the bridge.
    ///
    /// # Errors
    /// [`FrameError`], for anything that would make a message unreadable or ambiguous.
    pub fn decode(header: &FrameHeader, body: Bytes, limits: &FrameLimits) -> Result<PeerFrame, FrameError> {
        let FrameKind::Peer(lane) = header.kind else {
            return Err(FrameError::UnexpectedKind { found: header.kind, expected: "peer" });
        };
        let (archive, payload) = archive::split_body(header, body, limits)?;
        let root = archive::access::<ArchivedDescriptors>(&archive)?;
        let expected = archive_bytes(root.messages.len(), root.details.len(), root.entries.len());
        archive::check_archive_bytes(&archive, expected)?;
        let mut walk = Walk::new(root);
        let mut named = 0_u64;
        while let Some(step) = walk.next_step()? {
            if Lane::of(step.kind) != lane {
                return Err(FrameError::WrongLane { kind: step.kind, lane });
            }
            named += u64::from(step.message.context_bytes);
            for entry in step.entries {
                check_entry(entry)?;
                named += u64::from(entry.bytes.to_native());
            }
        }
        walk.finish()?;
        archive::check_payload_bytes(&payload, named)?;
        Ok(PeerFrame {
            lane,
            from: NodeId(root.from.to_native()),
            to: NodeId(root.to.to_native()),
            source_shard: header.source_shard,
            destination_shard: header.destination_shard,
            messages: root.messages.len(),
            archive,
            payload,
        })
    }

    /// The lane it came on.
    #[must_use]
    pub fn lane(&self) -> Lane {
        self.lane
    }

    /// Sender of all its messages, as the frame claims.
    #[must_use]
    pub fn sender(&self) -> NodeId {
        self.from
    }

    /// Receiver of all its messages, as the frame claims.
    #[must_use]
    pub fn receiver(&self) -> NodeId {
        self.to
    }

    /// Shard that sent it.
    #[must_use]
    pub fn source_shard(&self) -> ShardId {
        self.source_shard
    }

    /// Shard that it was sent to.
    #[must_use]
    pub fn destination_shard(&self) -> ShardId {
        self.destination_shard
    }

    /// Number of messages.
    #[must_use]
    pub fn len(&self) -> usize {
        self.messages
    }

    /// Whether there is no message.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.messages == 0
    }

    /// Bytes of memory that the frame and any slice of it hold.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.archive.len() + self.payload.len()
    }

    /// Its messages, in the order they were pushed; payloads are slices of the frame.
    pub fn messages(&self) -> impl Iterator<Item = PeerMessage> + '_ {
        let root = archive::reaccess::<ArchivedDescriptors>(&self.archive);
        let mut walk = Walk::new(root);
        let mut payload = PayloadCursor::new(self.payload.clone());
        std::iter::from_fn(move || {
            let step = archive::checked(walk.next_step())?;
            Some(archive::checked(self.message(&step, &mut payload)))
        })
    }

    fn message(&self, step: &Step<'_>, payload: &mut PayloadCursor) -> Result<PeerMessage, FrameError> {
        let message = step.message;
        let detail = step.detail;
        let context = payload.take(message.context_bytes.into())?;
        let mut entries = Vec::with_capacity(step.entries.len());
        for entry in step.entries {
            entries.push(LogEntry {
                index: Index(entry.index.to_native()),
                term: Term(entry.term.to_native()),
                kind: check_entry(entry)?,
                data: payload.take(entry.bytes.to_native())?,
            });
        }
        Ok(PeerMessage {
            kind: step.kind,
            group: GroupId(message.group.to_native()),
            from: self.from,
            to: self.to,
            term: Term(message.term.to_native()),
            log_term: Term(detail.map_or(0, |detail| detail.log_term.to_native())),
            index: Index(message.index.to_native()),
            commit: Index(message.commit.to_native()),
            commit_term: Term(detail.map_or(0, |detail| detail.commit_term.to_native())),
            reject: message.flags & REJECT != 0,
            reject_hint: Index(detail.map_or(0, |detail| detail.reject_hint.to_native())),
            request_snapshot: Index(detail.map_or(0, |detail| detail.request_snapshot.to_native())),
            priority: detail.map_or(0, |detail| detail.priority.to_native()),
            context,
            entries,
        })
    }
}

/// Goes through the tables side by side.
struct Walk<'a> {
    messages: std::slice::Iter<'a, ArchivedMessageDescriptor>,
    details: std::slice::Iter<'a, ArchivedDetailDescriptor>,
    entries: &'a [ArchivedEntryDescriptor],
}

/// One message's rows.
struct Step<'a> {
    kind: MessageKind,
    message: &'a ArchivedMessageDescriptor,
    detail: Option<&'a ArchivedDetailDescriptor>,
    entries: &'a [ArchivedEntryDescriptor],
}

impl<'a> Walk<'a> {
    fn new(root: &'a ArchivedDescriptors) -> Walk<'a> {
        Walk { messages: root.messages.iter(), details: root.details.iter(), entries: &root.entries }
    }

    fn next_step(&mut self) -> Result<Option<Step<'a>>, FrameError> {
        let Some(message) = self.messages.next() else { return Ok(None) };
        let unknown = FrameError::UnknownNumber { what: "kind of message", number: message.kind };
        let kind = MessageKind::from_u8(message.kind).ok_or(unknown)?;
        if message.flags & !(REJECT | HAS_DETAIL) != 0 || message.reserved != 0 {
            return Err(FrameError::Reserved { what: "a message's reserved bits" });
        }
        if usize::from(message.context_bytes) > CONTEXT_BYTES_MAX {
            return Err(FrameError::TooLarge {
                what: "a context",
                bytes: message.context_bytes.into(),
                bytes_max: CONTEXT_BYTES_MAX as u32,
            });
        }
        let detail = if message.flags & HAS_DETAIL != 0 {
            Some(self.details.next().ok_or(FrameError::Count { what: "details" })?)
        } else {
            None
        };
        let count = message.entries.to_native() as usize;
        let split = self.entries.split_at_checked(count);
        let (entries, rest) = split.ok_or(FrameError::Count { what: "entries" })?;
        self.entries = rest;
        Ok(Some(Step { kind, message, detail, entries }))
    }

    fn finish(self) -> Result<(), FrameError> {
        if !self.entries.is_empty() {
            return Err(FrameError::Count { what: "entries" });
        }
        if self.details.len() != 0 {
            return Err(FrameError::Count { what: "details" });
        }
        Ok(())
    }
}

fn check_entry(entry: &ArchivedEntryDescriptor) -> Result<EntryKind, FrameError> {
    if entry.reserved != [0; 3] {
        return Err(FrameError::Reserved { what: "an entry's reserved bytes" });
    }
    EntryKind::from_u8(entry.kind)
        .ok_or(FrameError::UnknownNumber { what: "kind of entry", number: entry.kind })
}

/// Packs the messages of one turn for one shard of one peer, one lane and one persistence gate.
///
/// Pushed bytes of a kilobyte and more are referenced, smaller ones copied. The buffers stay from
/// frame to frame: a frame costs the allocations of its [`OutFrame`], a message none.
#[derive(Debug, Default)]
pub struct PeerFrameBuilder {
    descriptors: Descriptors,
    payload: PayloadBuilder,
}

impl PeerFrameBuilder {
    /// Adds a message. Its lane is that of the frame ([`Lane::of`]).
    ///
    /// # Panics
    /// If its sender or receiver is not that of the messages before it, or its context is longer
    /// than [`CONTEXT_BYTES_MAX`], or an entry reaches 4 GiB.
    pub fn push(&mut self, message: PeerMessage) {
        let table = &mut self.descriptors;
        if table.messages.is_empty() {
            (table.from, table.to) = (message.from.0, message.to.0);
        }
        assert_eq!(
            (table.from, table.to),
            (message.from.0, message.to.0),
            "a frame has one sender and receiver"
        );
        assert!(message.context.len() <= CONTEXT_BYTES_MAX, "a context is at most {CONTEXT_BYTES_MAX} bytes");
        let detail = DetailDescriptor {
            log_term: message.log_term.0,
            commit_term: message.commit_term.0,
            reject_hint: message.reject_hint.0,
            request_snapshot: message.request_snapshot.0,
            priority: message.priority,
        };
        let has_detail = detail != DetailDescriptor::default();
        if has_detail {
            table.details.push(detail);
        }
        table.messages.push(MessageDescriptor {
            group: message.group.0,
            term: message.term.0,
            index: message.index.0,
            commit: message.commit.0,
            entries: u32::try_from(message.entries.len()).expect("fewer than 2^32 entries"),
            kind: message.kind as u8,
            flags: if message.reject { REJECT } else { 0 } | if has_detail { HAS_DETAIL } else { 0 },
            context_bytes: message.context.len() as u8,
            reserved: 0,
        });
        self.payload.push(message.context);
        for entry in message.entries {
            table.entries.push(EntryDescriptor {
                index: entry.index.0,
                term: entry.term.0,
                bytes: self.payload.push(entry.data),
                kind: entry.kind as u8,
                reserved: [0; 3],
            });
        }
    }

    /// Whether there is no message.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.descriptors.messages.is_empty()
    }

    /// Number of messages so far.
    #[must_use]
    pub fn len(&self) -> usize {
        self.descriptors.messages.len()
    }

    /// Bytes of the frame so far, for splitting frames at the limit.
    #[must_use]
    pub fn bytes(&self) -> usize {
        HEADER_BYTES + self.archive_bytes() + self.payload.bytes()
    }

    fn archive_bytes(&self) -> usize {
        let table = &self.descriptors;
        archive_bytes(table.messages.len(), table.details.len(), table.entries.len())
    }

    /// The frame; the builder is empty again and keeps its buffers.
    ///
    /// # Panics
    /// If archive or payload reached 4 GiB.
    pub fn finish(&mut self, lane: Lane, from: ShardId, to: ShardId) -> OutFrame {
        let archive_bytes = self.archive_bytes();
        let frame = self.payload.finish(
            FrameKind::Peer(lane),
            from,
            to,
            self.len(),
            archive_bytes,
            &self.descriptors,
        );
        let table = &mut self.descriptors;
        table.messages.clear();
        table.details.clear();
        table.entries.clear();
        frame
    }
}

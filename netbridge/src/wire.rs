//! Frames: the units that travel on a lane, on a client's stream, and through a ring.
//!
//! FORMAT.md, "Wire", has the bytes. A frame is a fixed header, one archive of descriptors, and the
//! payload bytes as the sender had them: nothing is copied into the archive that is already a slice
//! somewhere, and the receiver slices it out again.
//!
//! Invariants: a header is checked whole before memory is taken for what it announces; a decoded
//! frame has been walked once from end to end, so that walking it again cannot fail; the layout of
//! the header and of the handshake never changes, everything else does so with [`FRAME_VERSION`].
#![deny(clippy::indexing_slicing, clippy::unwrap_used)]

use bytes::Bytes;
use iroh_raft_core::PlacementError;
use iroh_raft_core::batch::BatchError;
use iroh_raft_core::{GroupCommandError, MessageKind, ShardId};
use smallvec::SmallVec;

mod archive;
mod client;
mod digest;
mod failure;
pub mod handshake;
mod members;
mod payload;
mod peer;
mod reply;
mod stages;

pub use client::{ClientBody, ClientFrame, ClientRequest, GROUPS_LISTED_MAX, RequestFrameBuilder};
pub use peer::{PeerFrame, PeerFrameBuilder};
pub use reply::{Answer, ClientReply, HandedOver, ReplyBody, ReplyFrame, ReplyFrameBuilder};
pub use stages::Stages;

/// Bytes of the header of every frame.
pub const HEADER_BYTES: usize = 32;
/// Version of everything behind the header, the handshake excepted.
pub const FRAME_VERSION: u8 = 1;

const MAGIC: [u8; 4] = *b"IRFr";
/// The header's bytes that its checksum covers.
const SUMMED_BYTES: usize = HEADER_BYTES - 4;

/// Priority of a stream: a lower number goes first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u8)]
pub enum Lane {
    /// Votes, pre-votes, TimeoutNow.
    Election = 0,
    /// Heartbeats and ReadIndex.
    Heartbeat = 1,
    /// Entries and their answers.
    Append = 2,
    /// Snapshots.
    Snapshot = 3,
}

impl Lane {
    /// All lanes, in order of priority.
    pub const ALL: [Lane; 4] = [Lane::Election, Lane::Heartbeat, Lane::Append, Lane::Snapshot];

    /// The lane of a kind of message.
    #[must_use]
    pub fn of(kind: MessageKind) -> Lane {
        match kind {
            MessageKind::RequestVote
            | MessageKind::RequestVoteResponse
            | MessageKind::RequestPreVote
            | MessageKind::RequestPreVoteResponse
            | MessageKind::TimeoutNow => Lane::Election,
            MessageKind::Heartbeat
            | MessageKind::HeartbeatResponse
            | MessageKind::Beat
            | MessageKind::ReadIndex
            | MessageKind::ReadIndexResponse => Lane::Heartbeat,
            MessageKind::Append
            | MessageKind::AppendResponse
            | MessageKind::Invite
            | MessageKind::Gone
            | MessageKind::MayLeave
            | MessageKind::RepairQuestion
            | MessageKind::RepairBound => Lane::Append,
            MessageKind::Snapshot | MessageKind::SnapshotChunk | MessageKind::SnapshotAck => Lane::Snapshot,
        }
    }

    /// The lane with this number, if there is one.
    #[must_use]
    pub fn from_u8(number: u8) -> Option<Lane> {
        Lane::ALL.get(usize::from(number)).copied()
    }
}

/// What a frame holds.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum FrameKind {
    /// Messages between replicas, on this lane. Numbers 0 to 3.
    Peer(Lane),
    /// A client's requests. Number 16.
    Request,
    /// Answers to a client. Number 17.
    Reply,
    /// One handshake message ([`handshake`]). Number 32.
    Handshake,
}

impl FrameKind {
    /// The kind's number on the wire.
    #[must_use]
    pub fn number(self) -> u8 {
        match self {
            FrameKind::Peer(lane) => lane as u8,
            FrameKind::Request => 16,
            FrameKind::Reply => 17,
            FrameKind::Handshake => 32,
        }
    }

    /// The kind with this number, if there is one.
    #[must_use]
    pub fn from_u8(number: u8) -> Option<FrameKind> {
        match number {
            16 => Some(FrameKind::Request),
            17 => Some(FrameKind::Reply),
            32 => Some(FrameKind::Handshake),
            lane => Lane::from_u8(lane).map(FrameKind::Peer),
        }
    }
}

/// How large a frame may be for the one who receives it. What it announces beyond that is refused
/// before memory is taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FrameLimits {
    /// Bytes of the archive at most. Bounds the number of descriptors, 24 bytes or more each.
    pub archive_bytes_max: u32,
    /// Bytes of payload at most.
    pub payload_bytes_max: u32,
}

impl FrameLimits {
    /// For frames between nodes: 4 MiB and 16 MiB. An entry must fit with its batch header.
    pub const PEER: FrameLimits = FrameLimits { archive_bytes_max: 4 << 20, payload_bytes_max: 16 << 20 };
    /// For a client's requests: 1 MiB and 8 MiB, so that a block of one frame fits into an entry.
    pub const REQUEST: FrameLimits = FrameLimits { archive_bytes_max: 1 << 20, payload_bytes_max: 8 << 20 };
    /// For answers to a client: 4 MiB and 16 MiB. A batch must fit whole.
    pub const REPLY: FrameLimits = FrameLimits { archive_bytes_max: 4 << 20, payload_bytes_max: 16 << 20 };
}

const _: () = assert!(
    FrameLimits::REQUEST.payload_bytes_max as usize + iroh_raft_core::batch::BATCH_HEADER_BYTES
        <= FrameLimits::PEER.payload_bytes_max as usize,
    "a block that a client may send fits into an append frame"
);
const _: () = assert!(FrameLimits::REPLY.payload_bytes_max >= FrameLimits::PEER.payload_bytes_max);

/// Why bytes are not a frame. After any of these the rest of the stream means nothing: close it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum FrameError {
    /// The bytes are not the start of a frame.
    #[error("not a frame: it starts with {found:02x?}; the other side speaks another protocol")]
    Magic {
        /// The first four bytes.
        found: [u8; 4],
    },
    /// The header is damaged, or the stream is out of step.
    #[error("header checksum is {found:#010x}, expected {expected:#010x}; the stream is out of step")]
    Checksum {
        /// What the header says.
        found: u32,
        /// What its bytes give.
        expected: u32,
    },
    /// A frame of another version.
    #[error("frame version {found}, this build speaks {supported}: run the same release on both sides")]
    Version {
        /// Version of the frame.
        found: u8,
        /// Version of this build.
        supported: u8,
    },
    /// A kind of frame that this version does not have.
    #[error("frame kind {number} does not exist in version 1")]
    UnknownKind {
        /// Its number.
        number: u8,
    },
    /// A frame where another kind belongs.
    #[error("a {found:?} frame where a {expected} frame belongs")]
    UnexpectedKind {
        /// Kind of the frame.
        found: FrameKind,
        /// What belongs there.
        expected: &'static str,
    },
    /// Bytes or fields that must be zero are not.
    #[error("{what} must be zero")]
    Reserved {
        /// Which.
        what: &'static str,
    },
    /// Larger than allowed.
    #[error("{what} of {bytes} bytes is over the limit of {bytes_max}")]
    TooLarge {
        /// Which part.
        what: &'static str,
        /// Bytes announced.
        bytes: u32,
        /// Bytes allowed.
        bytes_max: u32,
    },
    /// The parts do not add up.
    #[error("{what} is {bytes} bytes, expected {expected}")]
    Length {
        /// Which part.
        what: &'static str,
        /// Bytes there are.
        bytes: u64,
        /// Bytes there should be.
        expected: u64,
    },
    /// The archive is not one.
    #[error("the archive does not validate")]
    Archive,
    /// The descriptors name more of something than there is, or less.
    #[error("the descriptors disagree about the number of {what}")]
    Count {
        /// What is counted.
        what: &'static str,
    },
    /// A number that stands for nothing.
    #[error("{number} is no {what}")]
    UnknownNumber {
        /// What it should be.
        what: &'static str,
        /// The number.
        number: u8,
    },
    /// A message on a lane that is not its own.
    #[error("a {kind:?} message on the {lane:?} lane")]
    WrongLane {
        /// Kind of the message.
        kind: MessageKind,
        /// The frame's lane.
        lane: Lane,
    },
    /// A block of records that is none.
    #[error("a block is malformed: {0}")]
    Block(#[from] BatchError),
    /// A command to a group, or a cursor's name, that is none.
    #[error("a command to a group is malformed: {0}")]
    GroupCommand(#[from] GroupCommandError),
    /// A placement of groups on shards that is none.
    #[error("an impossible placement: {0}")]
    Placement(#[from] PlacementError),
    /// Text that is not UTF-8.
    #[error("a text is not UTF-8")]
    Text,
}

/// The fixed start of every frame: 32 bytes whose layout never changes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FrameHeader {
    /// What the frame holds.
    pub kind: FrameKind,
    /// Shard that sent it; 0 from a client and in a handshake.
    pub source_shard: ShardId,
    /// Shard that it is for; 0 to a client and in a handshake.
    pub destination_shard: ShardId,
    /// Bytes of the archive, right behind the header.
    pub archive_bytes: u32,
    /// Bytes of payload, right behind the archive.
    pub payload_bytes: u32,
}

impl FrameHeader {
    /// Reads a header and checks everything about it, sizes included: take memory for
    /// [`body_bytes`](FrameHeader::body_bytes) only after this. Handshakes have a limit of their own
    /// ([`handshake::BODY_BYTES_MAX`]) and may come from any version.
    ///
    /// # Errors
    /// [`FrameError`]. A frame of another version gives [`FrameError::Version`], never a wrong read.
    pub fn parse(header: &[u8; HEADER_BYTES], limits: &FrameLimits) -> Result<FrameHeader, FrameError> {
        let [m0, m1, m2, m3, version, kind, g0, g1, f0, f1, t0, t1, rest @ ..] = *header;
        let [a0, a1, a2, a3, p0, p1, p2, p3, reserved @ .., c0, c1, c2, c3] = rest;
        let magic = [m0, m1, m2, m3];
        if magic != MAGIC {
            return Err(FrameError::Magic { found: magic });
        }
        let found = u32::from_le_bytes([c0, c1, c2, c3]);
        let expected = checksum(header);
        if found != expected {
            return Err(FrameError::Checksum { found, expected });
        }
        // Handshakes come from any version; that of other frames decides what their kinds mean.
        let kind = match FrameKind::from_u8(kind) {
            Some(FrameKind::Handshake) => FrameKind::Handshake,
            _ if version != FRAME_VERSION => {
                return Err(FrameError::Version { found: version, supported: FRAME_VERSION });
            }
            known => known.ok_or(FrameError::UnknownKind { number: kind })?,
        };
        if [g0, g1] != [0; 2] {
            return Err(FrameError::Reserved { what: "header flags" });
        }
        if reserved != [0; 8] {
            return Err(FrameError::Reserved { what: "the header's reserved bytes" });
        }
        let header = FrameHeader {
            kind,
            source_shard: ShardId(u16::from_le_bytes([f0, f1])),
            destination_shard: ShardId(u16::from_le_bytes([t0, t1])),
            archive_bytes: u32::from_le_bytes([a0, a1, a2, a3]),
            payload_bytes: u32::from_le_bytes([p0, p1, p2, p3]),
        };
        header.check_sizes(limits)?;
        Ok(header)
    }

    fn check_sizes(&self, limits: &FrameLimits) -> Result<(), FrameError> {
        let (archive_bytes_max, payload_bytes_max) = match self.kind {
            FrameKind::Handshake => (0, handshake::BODY_BYTES_MAX),
            _ => (limits.archive_bytes_max, limits.payload_bytes_max),
        };
        check_size("an archive", self.archive_bytes, archive_bytes_max)?;
        check_size("a payload", self.payload_bytes, payload_bytes_max)
    }

    /// The header's bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut header = [0; HEADER_BYTES];
        header[..4].copy_from_slice(&MAGIC);
        header[4] = FRAME_VERSION;
        header[5] = self.kind.number();
        header[8..10].copy_from_slice(&self.source_shard.0.to_le_bytes());
        header[10..12].copy_from_slice(&self.destination_shard.0.to_le_bytes());
        header[12..16].copy_from_slice(&self.archive_bytes.to_le_bytes());
        header[16..20].copy_from_slice(&self.payload_bytes.to_le_bytes());
        let sum = checksum(&header);
        header[SUMMED_BYTES..].copy_from_slice(&sum.to_le_bytes());
        header
    }

    /// Bytes of archive and payload together: what follows the header.
    #[must_use]
    pub fn body_bytes(&self) -> usize {
        self.archive_bytes as usize + self.payload_bytes as usize
    }
}

/// QUIC protects the bytes; this catches a reader that is out of step with the writer.
fn checksum(header: &[u8; HEADER_BYTES]) -> u32 {
    header.first_chunk::<SUMMED_BYTES>().map_or(0, |summed| crc32c::crc32c(summed))
}

fn check_size(what: &'static str, bytes: u32, bytes_max: u32) -> Result<(), FrameError> {
    if bytes > bytes_max { Err(FrameError::TooLarge { what, bytes, bytes_max }) } else { Ok(()) }
}

/// The pieces of a frame, in place while they are few: those of a frame with up to three large batches are.
pub type Chunks = SmallVec<[Bytes; 4]>;

/// A frame ready to be written: header and archive first, then payload slices.
#[derive(Clone, Debug, Default)]
pub struct OutFrame {
    /// To be written in this order.
    pub chunks: Chunks,
    /// Messages, requests or ended requests in it; a handshake counts as one.
    pub items: u32,
}

impl OutFrame {
    /// Bytes of the whole frame.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.chunks.iter().map(Bytes::len).sum()
    }
}

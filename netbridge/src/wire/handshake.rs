//! The first message in each direction of a connection: who is there, and of which make.
//!
//! Written by hand in fixed little-endian fields, because this part must be readable between any
//! two versions: fields never move, what is unknown behind them or in reserved bytes is ignored,
//! and only a reader that understands both sides' answers decides whether they can work together.
//! A node's placement is the first that came behind them.

use std::collections::BTreeMap;

use bytes::Bytes;
use iroh_raft_core::{BootEpoch, ClusterId, GroupId, MessageKind, NodeId, PLACED_MAX, Placement, ShardId};
use smallvec::smallvec;

use super::{FRAME_VERSION, FrameError, FrameHeader, FrameKind, HEADER_BYTES, OutFrame};

/// Bytes of a handshake's body at most.
pub const BODY_BYTES_MAX: u32 = 64 << 10;
/// Bytes of the text of a refusal at most.
pub const TEXT_BYTES_MAX: usize = 512;
/// Version of what nodes and clients say to each other after the handshake. Raised whenever either
/// the frames ([`FRAME_VERSION`]) or their meaning change.
pub const PROTOCOL_VERSION: u16 = 1;
/// Tells two builds apart whose frames differ although their versions are the same: a hash over the
/// wire's numbers and sizes. For finding a broken build, not for security.
pub const FORMAT_FINGERPRINT: u64 = fingerprint();

const INTRODUCTION_BYTES: usize = 64;
const PLACED_BYTES: usize = 10;
const REFUSAL_BYTES: usize = 24;
const HELLO: u8 = 1;
const WELCOME: u8 = 2;
const REFUSED: u8 = 3;

const _: () = assert!(
    INTRODUCTION_BYTES + PLACED_MAX * PLACED_BYTES <= BODY_BYTES_MAX as usize,
    "every placement fits into a handshake"
);

/// One handshake message.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Handshake {
    /// The dialing side introduces itself.
    Hello(Introduction),
    /// The accepting side takes it, and introduces itself.
    Welcome(Introduction),
    /// The accepting side does not.
    Refused {
        /// Why.
        reason: Refusal,
        /// More about it, for a log: at most [`TEXT_BYTES_MAX`] bytes, no control characters. May
        /// be empty.
        text: String,
    },
}

/// Who one side of a connection is. The key proves which node it may claim to be.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Introduction {
    /// Its [`PROTOCOL_VERSION`].
    pub protocol: u16,
    /// Its cluster, or the one that a client wants.
    pub cluster: ClusterId,
    /// The node; `NodeId(0)` for a client.
    pub node: NodeId,
    /// How often the node was started; 0 for a client.
    pub boot_epoch: BootEpoch,
    /// Random number of this start; zeros for a client.
    pub boot_id: [u8; 16],
    /// Its [`FORMAT_FINGERPRINT`].
    pub fingerprint: u64,
    /// Which shard of the node has which group; none for a client.
    pub placement: Option<Placement>,
}

/// Why a connection is refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Refusal {
    /// The node belongs to another cluster.
    #[error("the node belongs to cluster {cluster}: correct the cluster id or the address")]
    WrongCluster {
        /// Cluster of the accepting node.
        cluster: ClusterId,
    },
    /// No node with this id is known there.
    #[error("node {node} is not known there: add it to that node's peers")]
    UnknownNode {
        /// The id that was claimed.
        node: NodeId,
    },
    /// The key does not belong to this node id.
    #[error("the key used does not belong to node {node}: correct node id, key file or peer list")]
    WrongNode {
        /// The id that was claimed.
        node: NodeId,
    },
    /// Another version.
    #[error("protocol {offered} is not understood there, {supported} is: run the same release on both sides")]
    Version {
        /// Protocol of the dialing side.
        offered: u16,
        /// Protocol of the accepting side.
        supported: u16,
    },
    /// The same version with another format of frames.
    #[error(
        "same protocol, other frame format ({offered:#018x}, there {supported:#018x}): a build with other rkyv features"
    )]
    Fingerprint {
        /// Fingerprint of the dialing side.
        offered: u64,
        /// Fingerprint of the accepting side.
        supported: u64,
    },
    /// A data folder that was restored from an older copy.
    #[error(
        "boot epoch {offered} is older than {seen}, which was seen before: the data folder is an older copy"
    )]
    RolledBack {
        /// Highest epoch that the accepting node remembers of the dialing one.
        seen: BootEpoch,
        /// Epoch that was offered.
        offered: BootEpoch,
    },
    /// The key is not on the allow-list, or not for this protocol.
    #[error("the key is not on the allow-list there: add it")]
    NotAllowed,
    /// Too many connections.
    #[error("too many connections there: try again later")]
    Busy,
    /// The node is shutting down.
    #[error("the node is shutting down: try again later")]
    ShuttingDown,
    /// Another number of shards: the accepting side is of a build in which all nodes must have the same.
    #[error("{offered} shards here, {supported} there, whose build wants all nodes to have the same number")]
    Shards {
        /// Shards of the dialing side.
        offered: u16,
        /// Shards of the accepting side.
        supported: u16,
    },
    /// A reason of a newer version.
    #[error("refused with code {code}, which this version does not know")]
    Other {
        /// Its number.
        code: u8,
    },
}

impl Handshake {
    /// The message as one frame of one chunk. A refusal's text is cut at [`TEXT_BYTES_MAX`] bytes
    /// and loses its control characters.
    #[must_use]
    pub fn encode(&self) -> OutFrame {
        let mut body = Vec::with_capacity(INTRODUCTION_BYTES);
        match self {
            Handshake::Hello(introduction) => introduction.write(HELLO, &mut body),
            Handshake::Welcome(introduction) => introduction.write(WELCOME, &mut body),
            Handshake::Refused { reason, text } => reason.write(&printable(text), &mut body),
        }
        let header = FrameHeader {
            kind: FrameKind::Handshake,
            source_shard: ShardId(0),
            destination_shard: ShardId(0),
            archive_bytes: 0,
            payload_bytes: body.len() as u32,
        };
        OutFrame { chunks: smallvec![Bytes::from([&header.encode()[..], &body].concat())], items: 1 }
    }

    /// Reads the body behind a header of kind [`FrameKind::Handshake`].
    ///
    /// # Errors
    /// [`FrameError`] when the body is cut short or its type is unknown. Unknown reasons, reserved
    /// bytes and anything behind the known fields are no errors.
    pub fn decode(header: &FrameHeader, body: &[u8]) -> Result<Handshake, FrameError> {
        if header.kind != FrameKind::Handshake {
            return Err(FrameError::UnexpectedKind { found: header.kind, expected: "handshake" });
        }
        check_bytes(body, header.body_bytes() == body.len(), header.body_bytes())?;
        match body.first() {
            Some(&HELLO) => Introduction::read(body).map(Handshake::Hello),
            Some(&WELCOME) => Introduction::read(body).map(Handshake::Welcome),
            Some(&REFUSED) => Refusal::read(body).map(|(reason, text)| Handshake::Refused { reason, text }),
            Some(&number) => Err(FrameError::UnknownNumber { what: "handshake message", number }),
            None => Err(FrameError::Length { what: "a handshake", bytes: 0, expected: 1 }),
        }
    }
}

impl Introduction {
    fn write(&self, message: u8, to: &mut Vec<u8>) {
        to.extend_from_slice(&[message, 0]);
        to.extend_from_slice(&self.protocol.to_le_bytes());
        let shards = self.placement.as_ref().map_or(0, Placement::shard_count);
        let placed = self.placement.as_ref().map(Placement::placed);
        to.extend_from_slice(&shards.to_le_bytes());
        // At most PLACED_MAX.
        to.extend_from_slice(&(placed.map_or(0, BTreeMap::len) as u16).to_le_bytes());
        to.extend_from_slice(&self.node.0.to_le_bytes());
        to.extend_from_slice(&self.cluster.0);
        to.extend_from_slice(&self.boot_epoch.0.to_le_bytes());
        to.extend_from_slice(&self.boot_id);
        to.extend_from_slice(&self.fingerprint.to_le_bytes());
        for (group, shard) in placed.into_iter().flatten() {
            to.extend_from_slice(&group.0.to_le_bytes());
            to.extend_from_slice(&shard.0.to_le_bytes());
        }
    }

    fn read(body: &[u8]) -> Result<Introduction, FrameError> {
        let mut fields = Fields::new(body, INTRODUCTION_BYTES)?;
        let [_, _] = fields.take();
        let protocol = u16::from_le_bytes(fields.take());
        let shards = u16::from_le_bytes(fields.take());
        let placed = u16::from_le_bytes(fields.take());
        let node = NodeId(u64::from_le_bytes(fields.take()));
        let cluster = ClusterId(fields.take());
        let boot_epoch = BootEpoch(u64::from_le_bytes(fields.take()));
        let boot_id = fields.take();
        let fingerprint = u64::from_le_bytes(fields.take());
        let placement = match shards {
            0 => None,
            shards => Some(read_placement(shards, usize::from(placed), fields.rest)?),
        };
        Ok(Introduction { protocol, cluster, node, boot_epoch, boot_id, fingerprint, placement })
    }
}

/// Reads the groups that are placed by name, which are behind the fields.
fn read_placement(shards: u16, count: usize, body: &[u8]) -> Result<Placement, FrameError> {
    let out_of_order = FrameError::Count { what: "placed groups" };
    if count > PLACED_MAX {
        return Err(out_of_order);
    }
    let mut rows = Fields::new(body, count * PLACED_BYTES)?;
    let mut placed = BTreeMap::new();
    for _ in 0..count {
        let group = GroupId(u64::from_le_bytes(rows.take()));
        if placed.last_key_value().is_some_and(|(last, _)| *last >= group) {
            return Err(out_of_order);
        }
        placed.insert(group, ShardId(u16::from_le_bytes(rows.take())));
    }
    Ok(Placement::new(shards, placed)?)
}

impl Refusal {
    /// Code and the two numbers that go with it.
    fn parts(&self) -> (u8, [u8; 16]) {
        let two = |first: u64, second: u64| {
            let mut fields = [0; 16];
            fields[..8].copy_from_slice(&first.to_le_bytes());
            fields[8..].copy_from_slice(&second.to_le_bytes());
            fields
        };
        match *self {
            Refusal::WrongCluster { cluster } => (1, cluster.0),
            Refusal::UnknownNode { node } => (2, two(node.0, 0)),
            Refusal::WrongNode { node } => (3, two(node.0, 0)),
            Refusal::Version { offered, supported } => (4, two(offered.into(), supported.into())),
            Refusal::RolledBack { seen, offered } => (5, two(seen.0, offered.0)),
            Refusal::NotAllowed => (6, [0; 16]),
            Refusal::Busy => (7, [0; 16]),
            Refusal::ShuttingDown => (8, [0; 16]),
            Refusal::Fingerprint { offered, supported } => (9, two(offered, supported)),
            Refusal::Shards { offered, supported } => (10, two(offered.into(), supported.into())),
            Refusal::Other { code } => (code, [0; 16]),
        }
    }

    fn write(&self, text: &str, to: &mut Vec<u8>) {
        let (code, fields) = self.parts();
        to.extend_from_slice(&[REFUSED, code]);
        to.extend_from_slice(&(text.len() as u16).to_le_bytes());
        to.extend_from_slice(&[0; 4]);
        to.extend_from_slice(&fields);
        to.extend_from_slice(text.as_bytes());
    }

    fn read(body: &[u8]) -> Result<(Refusal, String), FrameError> {
        let mut fields = Fields::new(body, REFUSAL_BYTES)?;
        let [_, code] = fields.take();
        let text_bytes = usize::from(u16::from_le_bytes(fields.take()));
        let [_, _, _, _] = fields.take();
        let numbers: [u8; 16] = fields.take();
        let mut halves = Fields::new(&numbers, 16)?;
        let first = u64::from_le_bytes(halves.take());
        let second = u64::from_le_bytes(halves.take());
        let text = fields.rest.get(..text_bytes).ok_or(FrameError::Length {
            what: "a refusal's text",
            bytes: fields.rest.len() as u64,
            expected: text_bytes as u64,
        })?;
        let reason = match code {
            1 => Refusal::WrongCluster { cluster: ClusterId(numbers) },
            2 => Refusal::UnknownNode { node: NodeId(first) },
            3 => Refusal::WrongNode { node: NodeId(first) },
            4 => Refusal::Version { offered: first as u16, supported: second as u16 },
            5 => Refusal::RolledBack { seen: BootEpoch(first), offered: BootEpoch(second) },
            6 => Refusal::NotAllowed,
            7 => Refusal::Busy,
            8 => Refusal::ShuttingDown,
            9 => Refusal::Fingerprint { offered: first, supported: second },
            10 => Refusal::Shards { offered: first as u16, supported: second as u16 },
            code => Refusal::Other { code },
        };
        Ok((reason, printable(&String::from_utf8_lossy(text))))
    }
}

/// Text for a log, from someone who is not trusted.
fn printable(text: &str) -> String {
    let mut printable = String::new();
    for character in text.chars().filter(|character| !character.is_control()) {
        if printable.len() + character.len_utf8() > TEXT_BYTES_MAX {
            break;
        }
        printable.push(character);
    }
    printable
}

/// Fixed fields, one behind the other, of bytes whose length has been checked.
struct Fields<'a> {
    rest: &'a [u8],
}

impl<'a> Fields<'a> {
    fn new(body: &'a [u8], bytes_min: usize) -> Result<Fields<'a>, FrameError> {
        check_bytes(body, body.len() >= bytes_min, bytes_min)?;
        Ok(Fields { rest: body })
    }

    /// The next field. Zeros past the end, which `new` keeps from happening.
    fn take<const BYTES: usize>(&mut self) -> [u8; BYTES] {
        let Some((field, rest)) = self.rest.split_first_chunk() else { return [0; BYTES] };
        self.rest = rest;
        *field
    }
}

fn check_bytes(body: &[u8], is_right: bool, expected: usize) -> Result<(), FrameError> {
    if is_right {
        return Ok(());
    }
    let (bytes, expected) = (body.len() as u64, expected as u64);
    Err(FrameError::Length { what: "a handshake", bytes, expected })
}

/// FNV-1a over the numbers that make up the format.
#[expect(
    clippy::indexing_slicing,
    reason = "evaluated when this is compiled: no iterators there, and no panics later"
)]
const fn fingerprint() -> u64 {
    let sizes = [
        FRAME_VERSION as u64,
        HEADER_BYTES as u64,
        super::peer::FORMAT_BYTES,
        super::client::FORMAT_BYTES,
        super::reply::FORMAT_BYTES,
        iroh_raft_core::batch::BATCH_VERSION as u64,
        MessageKind::ALL.len() as u64,
        PLACED_BYTES as u64,
    ];
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    let mut position = 0;
    while position < sizes.len() {
        let bytes = sizes[position].to_le_bytes();
        let mut byte = 0;
        while byte < bytes.len() {
            hash = (hash ^ bytes[byte] as u64).wrapping_mul(0x0100_0000_01b3);
            byte += 1;
        }
        position += 1;
    }
    hash
}

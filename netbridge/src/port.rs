//! What crosses between the bridge thread and a shard: two rings per shard, and these items.

use std::sync::Arc;

use iroh_raft_core::{NodeId, Owner, Placement, ShardId};

use crate::ring::{Consumer, Doorbell, Producer, weighed_ring};
use crate::wire::{ClientFrame, Lane, OutFrame, PeerFrame};

/// What a client may do, from the allow-list.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Debug)]
pub struct Rights {
    /// Append records and propose commands.
    pub append: bool,
    /// Read records, query state machines, ask for status.
    pub read: bool,
    /// Change the members of groups.
    pub manage: bool,
}

/// Bridge to shard.
#[derive(Debug)]
pub enum ToShard {
    /// Messages of a peer's shard. Ring full: dropped and counted; Raft sends again.
    Peer {
        /// The node whose key the connection has.
        from: NodeId,
        /// Its messages.
        frame: PeerFrame,
    },
    /// Requests of a client. Ring full but for a quarter, which is for peers: every request of the frame is answered Busy by
    /// the bridge.
    Client {
        /// The connection, numbered from 1 by the bridge, never reused.
        connection: u64,
        /// What the client may do.
        rights: Rights,
        /// Whose its sessions are: of the key that the connection proved.
        owner: Owner,
        /// Its requests.
        frame: ClientFrame,
    },
    /// A client's connection is gone: its open requests need no answers. Ring full: dropped, the
    /// answers then go nowhere.
    ClientGone {
        /// The connection.
        connection: u64,
    },
    /// A node that is connected has said which of its shards has which group. Ring full: said again soon.
    Placement {
        /// The node.
        node: NodeId,
        /// What it said.
        placement: Placement,
    },
    /// The connection to a node is gone. Ring full: dropped; Raft notices by itself.
    Unreachable {
        /// The node.
        node: NodeId,
    },
}

impl ToShard {
    fn bytes(&self) -> usize {
        match self {
            ToShard::Peer { frame, .. } => frame.bytes(),
            ToShard::Client { frame, .. } => frame.bytes(),
            ToShard::ClientGone { .. } | ToShard::Placement { .. } | ToShard::Unreachable { .. } => 0,
        }
    }
}

/// Shard to bridge.
#[derive(Debug)]
pub enum ToBridge {
    /// Messages for one shard of a peer. Ring full: dropped, counted, and
    /// the shard is told the peer is unreachable.
    Peer {
        /// Where it goes.
        to: NodeId,
        /// On which lane.
        lane: Lane,
        /// The frame.
        frame: OutFrame,
    },
    /// Answers to a client. Ring full: the shard keeps them and tries again next turn.
    Client {
        /// The connection.
        connection: u64,
        /// The frame.
        frame: OutFrame,
    },
}

impl ToBridge {
    fn bytes(&self) -> usize {
        match self {
            ToBridge::Peer { frame, .. } | ToBridge::Client { frame, .. } => frame.bytes(),
        }
    }
}

/// The shard's side of its two rings.
#[derive(Debug)]
pub struct ShardPort {
    /// The shard.
    pub shard: ShardId,
    /// What the bridge sends.
    pub from_bridge: Consumer<ToShard>,
    /// What goes to the bridge. Its doorbell is the bridge's.
    pub to_bridge: Producer<ToBridge>,
}

/// The bridge's side of one shard's rings.
#[derive(Debug)]
pub struct BridgePort {
    /// The shard.
    pub shard: ShardId,
    /// What goes to the shard. Its doorbell is the shard's.
    pub to_shard: Producer<ToShard>,
    /// What the shard sends.
    pub from_shard: Consumer<ToBridge>,
}

/// The two rings of one shard, of at most `items_max` items and `bytes_max` bytes of frames each way.
#[must_use]
pub fn port_pair(
    shard: ShardId,
    items_max: usize,
    bytes_max: usize,
    shard_doorbell: &Arc<Doorbell>,
    bridge_doorbell: &Arc<Doorbell>,
) -> (ShardPort, BridgePort) {
    let (to_shard, from_bridge) = weighed_ring(items_max, bytes_max, ToShard::bytes, shard_doorbell);
    let (to_bridge, from_shard) = weighed_ring(items_max, bytes_max, ToBridge::bytes, bridge_doorbell);
    (ShardPort { shard, from_bridge, to_bridge }, BridgePort { shard, to_shard, from_shard })
}

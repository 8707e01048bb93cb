//! How a bridge is set up, and its bounds.

use std::net::SocketAddr;
use std::time::Duration;

use iroh_raft_core::{BootEpoch, ClusterId, NodeId, Placement};

use crate::allow::{ClientGrant, PeerAddress};
use crate::endpoint::{Behavior, STREAM_WINDOW_BYTES};
use crate::identity::{EndpointId, Identity};
use crate::wire::FrameLimits;

/// Threads of a bridge at most.
pub const BRIDGE_THREADS_MAX: u16 = 64;

/// What a bridge needs to know.
#[derive(Clone, Debug)]
pub struct BridgeConfig {
    /// The cluster. Connections of another one are refused.
    pub cluster: ClusterId,
    /// This node.
    pub node: NodeId,
    /// UDP address to listen at; port 0 takes a free one.
    pub bind: SocketAddr,
    /// The key of this node.
    pub identity: Identity,
    /// The other nodes. Their keys, and no others, may speak `iroh-raft/0`.
    pub peers: Vec<PeerAddress>,
    /// Nodes that were removed, with their keys: neither comes back, whatever `peers` says.
    pub removed: Vec<(NodeId, EndpointId)>,
    /// The clients. Their keys, and no others, may speak `iroh-raft-client/0`.
    pub clients: Vec<ClientGrant>,
    /// Which shards this node has, one port each, and which of them has which group.
    pub placement: Placement,
    /// How often this node has been started on its data.
    pub boot_epoch: BootEpoch,
    /// Random number of this start.
    pub boot_id: [u8; 16],
    /// Threads that serve the endpoint, 1 to [`BRIDGE_THREADS_MAX`].
    pub threads: u16,
    /// CPUs that these are pinned to, in turn; none named: not pinned.
    pub cpus: Vec<usize>,
    /// Bounds and times.
    pub limits: BridgeLimits,
}

/// Bounds and times of a bridge. The defaults suit nodes in one data centre.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BridgeLimits {
    /// Largest frame of a peer. Default [`FrameLimits::PEER`]. A peer can make the bridge hold one per
    /// lane.
    pub peer_frame: FrameLimits,
    /// Largest frame of a client. Default [`FrameLimits::REQUEST`].
    pub request_frame: FrameLimits,
    /// Frames that wait for one lane to one peer. Default 1,024. Full: the newest is dropped and
    /// counted, and the shards are told once that the node is unreachable.
    pub lane_frames_max: usize,
    /// Bytes that wait for one lane to one peer. Default 64 MiB. Full: as above.
    pub lane_bytes_max: usize,
    /// Items taken from one ring before the other rings and the sockets get their turn. Default 128.
    pub ring_budget: usize,
    /// Clients connected at a time. Default 1,024. Full: refused with "busy".
    pub client_connections_max: usize,
    /// Requests of one client that are open at a time. Default 65,536. Full: answered Busy (credit).
    pub client_requests_max: usize,
    /// Bytes of one client's request frames that are held at a time. Default 64 MiB. Full: answered
    /// Busy (credit).
    pub client_request_bytes_max: usize,
    /// Answers that wait for one client to read them, in bytes. Default 64 MiB. Full: the client is
    /// cut off.
    pub client_reply_bytes_max: usize,
    /// Connections in the middle of their handshake. Default 256. Full: new ones are refused.
    pub handshakes_max: usize,
    /// A connection without a sign of life for this long is gone. Default 1.5 s.
    pub idle_timeout: Duration,
    /// Signs of life on a quiet connection. Default 250 ms.
    pub keep_alive: Duration,
    /// Bytes of a lane, or of a client's stream, that may be on their way to this node ahead of its reader: 65,536 to
    /// 1,048,576. Default 262,144. Higher: more throughput over long ways (a lane has at most so much in a round trip:
    /// 26 MB/s over 10 ms by default); lower: votes and heartbeats wait less behind full lanes. Each connection may take six
    /// times as much memory each way: this node does not send more on one ahead of its receipts either.
    pub stream_window_bytes: u32,
    /// Pause after the first failed dial. Default 20 ms; doubles up to `dial_pause_max`, jittered.
    pub dial_pause_min: Duration,
    /// Longest pause between dials. Default 300 ms.
    pub dial_pause_max: Duration,
    /// Pause after a refusal that only an operator can mend (another cluster, an unknown key).
    /// Default 5 s.
    pub refused_pause: Duration,
    /// Time for one dial to reach the other side. Default 500 ms.
    pub dial_deadline: Duration,
    /// Time for a new connection to say who it is. Default 2 s.
    pub handshake_deadline: Duration,
}

impl BridgeLimits {
    pub(crate) fn behavior(&self) -> Behavior {
        Behavior {
            idle_timeout: self.idle_timeout,
            keep_alive: self.keep_alive,
            stream_window_bytes: self.stream_window_bytes,
        }
    }
}

impl Default for BridgeLimits {
    fn default() -> BridgeLimits {
        BridgeLimits {
            peer_frame: FrameLimits::PEER,
            request_frame: FrameLimits::REQUEST,
            lane_frames_max: 1024,
            lane_bytes_max: 64 << 20,
            ring_budget: 128,
            client_connections_max: 1024,
            client_requests_max: 65_536,
            client_request_bytes_max: 64 << 20,
            client_reply_bytes_max: 64 << 20,
            handshakes_max: 256,
            idle_timeout: Duration::from_millis(1500),
            keep_alive: Duration::from_millis(250),
            stream_window_bytes: STREAM_WINDOW_BYTES,
            dial_pause_min: Duration::from_millis(20),
            dial_pause_max: Duration::from_millis(300),
            refused_pause: Duration::from_secs(5),
            dial_deadline: Duration::from_millis(500),
            handshake_deadline: Duration::from_secs(2),
        }
    }
}

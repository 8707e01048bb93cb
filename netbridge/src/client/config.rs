//! How a client is set up, and its bounds.

use std::net::SocketAddr;
use std::time::Duration;

use iroh_raft_core::{ClusterId, NodeId};

use crate::allow::PeerAddress;
use crate::endpoint::{Behavior, STREAM_WINDOW_BYTES};
use crate::identity::Identity;
use crate::wire::FrameLimits;

/// What a client needs to know.
#[derive(Clone, Debug)]
pub struct ClientConfig {
    /// The cluster.
    pub cluster: ClusterId,
    /// The key of this client: the nodes must have it in their allow-lists.
    pub identity: Identity,
    /// The nodes, at least one.
    pub nodes: Vec<PeerAddress>,
    /// Local UDP address; `None`: a free port, on loopback if all nodes are there.
    pub bind: Option<SocketAddr>,
    /// Bounds and times.
    pub limits: ClientLimits,
}

/// Bounds and times of a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientLimits {
    /// How long a call waits before it gives up, counted from the call. Default 10 s.
    pub deadline: Duration,
    /// How long [`connect`](crate::client::Client::connect) tries to reach a first node. Default 10 s.
    pub connect_deadline: Duration,
    /// Bytes of calls that are waiting or under way (64 are added for each call). Default 64 MiB.
    /// Full: calls wait for room, those that must not wait fail with
    /// [`Full`](crate::client::ClientError::Full).
    pub in_flight_bytes_max: usize,
    /// Records that are sent together as one request of a group. Default 4,096.
    pub request_records_max: usize,
    /// Bytes of records that are sent together as one request of a group, if there are several
    /// records. Default 256 KiB.
    pub request_bytes_max: usize,
    /// Append requests of one group that are under way at a time. Default 4. While there are that
    /// many, further records of the group gather into the next request: more raises the cost
    /// per record under load, fewer raise its latency.
    pub requests_per_group_max: usize,
    /// Requests under way to one node at a time. Default 16,384; must not be above what the nodes
    /// grant a client.
    pub requests_per_node_max: usize,
    /// How often one call is sent anew where that is safe. Default 1,000: the deadline and the retry budget decide.
    pub attempts_max: u32,
    /// The retry budget of the whole client, in tokens: how many requests it may send anew beyond what others have earned since
    /// (`successes_per_retry`, `retries_per_s_min`). It begins full. Default 10,000, 1 to 1,000,000. A request takes a token
    /// each time that it is sent anew; a tenth while its group has no leader; none to a leader that a node names at the first attempt, or
    /// when it was never sent. What finds none left ends with [`RetriesSpent`](crate::client::ClientError::RetriesSpent), or as unknown if it
    /// was sent and may be done.
    ///
    /// The default carries some 2,000 requests that are under way (an append request has up to `request_records_max` records)
    /// over an election of 1.5 s, in which each is sent anew some 35 times. Higher: more get over a longer one, and a cluster in
    /// trouble gets so much more load from each client, once. Lower: calls fail in elections that others would get over.
    pub retry_tokens_max: u32,
    /// How many requests have to succeed at their first attempt to earn one retry. Default 10, 1 to 1,000: in the long run
    /// retries add a tenth to the load that goes well.
    pub successes_per_retry: u32,
    /// Retries that are earned in a second whatever fails, so that a client with few calls gets on. Default 10, 0 to 1,000: at a
    /// tenth of a token, three calls are sent anew without end while an election lasts. Hazard: a cluster that is down gets so
    /// many requests a second from each client.
    pub retries_per_s_min: u32,
    /// Pause before a call is sent anew. Default 5 ms; doubles up to `retry_pause_max`, jittered.
    pub retry_pause_min: Duration,
    /// Longest such pause. Default 50 ms.
    pub retry_pause_max: Duration,
    /// Largest frame of requests. Default [`FrameLimits::REQUEST`]; the nodes must accept it.
    pub request_frame: FrameLimits,
    /// Largest frame of answers. Default [`FrameLimits::REPLY`].
    pub reply_frame: FrameLimits,
    /// A connection without a sign of life for this long is gone. Default 600 ms: by then the groups
    /// that a dead node led have other leaders. Lower: sooner elsewhere, and sooner wrong about a
    /// node that is only slow, whose requests then end as unknown.
    pub idle_timeout: Duration,
    /// Signs of life on a quiet connection. Default 100 ms.
    pub keep_alive: Duration,
    /// Bytes of answers that a node may have on their way ahead of this client: 65,536 to 1,048,576. Default 262,144.
    /// Higher: more throughput over long ways, where a stream has at most so much in a round trip, and up to six times as
    /// much memory a node, each way.
    pub stream_window_bytes: u32,
    /// Time for one dial to reach a node. Default 500 ms.
    pub dial_deadline: Duration,
    /// Time for a node to welcome a new connection. Default 2 s.
    pub handshake_deadline: Duration,
    /// Pause after the first failed dial. Default 10 ms; doubles up to `dial_pause_max`, jittered.
    pub dial_pause_min: Duration,
    /// Longest pause between dials. Default 200 ms.
    pub dial_pause_max: Duration,
}

/// How a tail is to be read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TailOptions {
    /// Bytes that may wait for the consumer, 1 to 8 MiB; one entry of the log may exceed it. Default 1 MiB. Lower:
    /// less memory for a consumer that is slow; higher: fewer grants, and a fast one far away waits less.
    pub credit_bytes: u32,
    /// The node to read from. Default: the leader first, and whoever answers when it does not.
    pub node: Option<NodeId>,
}

impl Default for TailOptions {
    fn default() -> TailOptions {
        TailOptions { credit_bytes: 1 << 20, node: None }
    }
}

impl ClientLimits {
    /// Why no client can have these limits; `None`: one can.
    pub(super) fn problem(&self) -> Option<&'static str> {
        if self.requests_per_group_max == 0 || self.requests_per_node_max == 0 {
            return Some("requests_per_group_max and requests_per_node_max are at least 1");
        }
        if !(1..=1_000_000).contains(&self.retry_tokens_max) {
            return Some("retry_tokens_max is 1 to 1,000,000: for no retries at all set attempts_max to 0");
        }
        if !(1..=1000).contains(&self.successes_per_retry) {
            return Some("successes_per_retry is 1 to 1,000");
        }
        if self.retries_per_s_min > 1000 {
            return Some("retries_per_s_min is at most 1,000");
        }
        self.behavior().problem()
    }

    pub(super) fn behavior(&self) -> Behavior {
        Behavior {
            idle_timeout: self.idle_timeout,
            keep_alive: self.keep_alive,
            stream_window_bytes: self.stream_window_bytes,
        }
    }
}

impl Default for ClientLimits {
    fn default() -> ClientLimits {
        ClientLimits {
            deadline: Duration::from_secs(10),
            connect_deadline: Duration::from_secs(10),
            in_flight_bytes_max: 64 << 20,
            request_records_max: 4096,
            request_bytes_max: 256 << 10,
            requests_per_group_max: 4,
            requests_per_node_max: 16_384,
            attempts_max: 1000,
            retry_tokens_max: 10_000,
            successes_per_retry: 10,
            retries_per_s_min: 10,
            retry_pause_min: Duration::from_millis(5),
            retry_pause_max: Duration::from_millis(50),
            request_frame: FrameLimits::REQUEST,
            reply_frame: FrameLimits::REPLY,
            idle_timeout: Duration::from_millis(600),
            keep_alive: Duration::from_millis(100),
            stream_window_bytes: STREAM_WINDOW_BYTES,
            dial_deadline: Duration::from_millis(500),
            handshake_deadline: Duration::from_secs(2),
            dial_pause_min: Duration::from_millis(10),
            dial_pause_max: Duration::from_millis(200),
        }
    }
}

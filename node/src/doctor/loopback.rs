//! Two bridges on loopback, as two nodes have them: how long a message takes there and back, and how much goes over.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::task::{Wake, Waker};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use iroh_raft::core::{
    BootEpoch, EntryKind, Index, LogEntry, MessageKind, PeerMessage, Placement, ShardId, Term,
};
use iroh_raft::net::bridge::{Bridge, BridgeConfig, EpochRefusal, PeerAddress, PeerEpochs};
use iroh_raft::net::port::{ShardPort, ToBridge, ToShard, port_pair};
use iroh_raft::net::ring::Doorbell;
use iroh_raft::net::wire::{Lane, PeerFrameBuilder};
use iroh_raft::{GroupId, Identity, NodeId};

use super::Finding;
use crate::config::settings::NodeConfig;

const ROUND_TRIPS: usize = 1000;
/// On a busy machine there are fewer.
const ROUND_TRIPS_FOR: Duration = Duration::from_secs(2);
const SMALL_BYTES: usize = 64;
const LARGE_BYTES: usize = 64 << 10;
/// Large ones on their way at a time: 4 MiB.
const ON_THEIR_WAY: usize = 64;
const SENDING: Duration = Duration::from_secs(1);
/// For each of: connecting, a message, stopping.
const DEADLINE: Duration = Duration::from_secs(5);
const RING_ITEMS: usize = 1024;
const RING_BYTES: usize = 64 << 20;

pub(super) fn measure(config: &NodeConfig) -> [Finding; 2] {
    let (round_trip, throughput) = ("bench: bridge round trip", "bench: bridge throughput");
    let measured = Pair::start(config).and_then(|pair| {
        let measured = pair.round_trips().and_then(|times| Ok((times, pair.throughput()?)));
        pair.stop();
        measured
    });
    match measured {
        Ok((times, per_s)) => {
            let at = |part: usize| times[(times.len() - 1) * part / 100].as_micros();
            let found =
                format!("{} us at the median, {} us at 99 %, over QUIC on loopback and back", at(50), at(99));
            let threads = config.engine.bridge_threads;
            let sent = format!(
                "{:.0} MB/s in entries of 64 KiB, {threads} bridge threads on each side",
                per_s / 1e6
            );
            [Finding::good(round_trip, found), Finding::good(throughput, sent)]
        }
        Err(why) => [Finding::unknown(round_trip, why.clone()), Finding::unknown(throughput, why)],
    }
}

/// A bridge, and its only shard's side of it.
struct End {
    bridge: Bridge,
    port: ShardPort,
    doorbell: Arc<Doorbell>,
}

/// Both are served by this thread.
struct Pair {
    ends: [End; 2],
    waker: Waker,
}

/// Nobody starts again here.
struct AnyEpoch;

impl PeerEpochs for AnyEpoch {
    fn observe(&mut self, _: NodeId, _: BootEpoch, _: [u8; 16]) -> Result<(), EpochRefusal> {
        Ok(())
    }
}

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

impl Pair {
    fn start(config: &NodeConfig) -> Result<Pair, String> {
        let free = || {
            let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
            socket.local_addr().map(|addr| (addr, socket))
        };
        // Both at once, or they were the same one.
        let both = free().and_then(|one| Ok([one, free()?]));
        let addrs: [SocketAddr; 2] = both.map_err(|error| error.to_string())?.map(|(addr, _)| addr);
        let identities = [Identity::generate(), Identity::generate()];
        let start = |own: usize| {
            let other = 1 - own;
            let peer = PeerAddress {
                node: node(other),
                endpoint: identities[other].endpoint_id(),
                addr: addrs[other],
            };
            End::start(config, own, (addrs[own], &identities[own]), peer)
        };
        let ends = [start(0)?, start(1)?];
        let pair = Pair { ends, waker: Arc::new(Unpark(thread::current())).into() };
        let until = Instant::now() + DEADLINE;
        while pair.ends.iter().any(|end| end.bridge.stats().peers_connected == 0) {
            if Instant::now() >= until {
                return Err("two bridges on loopback did not connect".to_owned());
            }
            // Bridges tell nobody that they are connected.
            thread::park_timeout(Duration::from_millis(1));
        }
        Ok(pair)
    }

    /// Times there and back, sorted.
    fn round_trips(&self) -> Result<Vec<Duration>, String> {
        let start = Instant::now();
        let mut times = Vec::with_capacity(ROUND_TRIPS);
        while times.is_empty() || (times.len() < ROUND_TRIPS && start.elapsed() < ROUND_TRIPS_FOR) {
            let began = Instant::now();
            let until = began + DEADLINE;
            for (from, to) in [(0, 1), (1, 0)] {
                self.ends[from].send(from, SMALL_BYTES)?;
                while !self.ends[to].take() {
                    self.wait(until)?;
                }
            }
            times.push(began.elapsed());
        }
        times.sort_unstable();
        Ok(times)
    }

    /// Bytes a second. Each message is answered by a small one, and so many are on their way: nothing is dropped.
    fn throughput(&self) -> Result<f64, String> {
        let began = Instant::now();
        let (mut sent, mut answered) = (0, 0);
        while answered == 0 || began.elapsed() < SENDING {
            while sent - answered < ON_THEIR_WAY {
                self.ends[0].send(0, LARGE_BYTES)?;
                sent += 1;
            }
            while self.ends[1].take() {
                self.ends[1].send(1, SMALL_BYTES)?;
            }
            let before = answered;
            while self.ends[0].take() {
                answered += 1;
            }
            if answered == before {
                self.wait(Instant::now() + DEADLINE)?;
            }
        }
        Ok((answered * LARGE_BYTES) as f64 / began.elapsed().as_secs_f64())
    }

    /// Returns once there is something for either, at the latest at `until`, which is an error.
    fn wait(&self, until: Instant) -> Result<(), String> {
        for end in &self.ends {
            end.doorbell.arm(&self.waker);
        }
        let left = until.saturating_duration_since(Instant::now());
        if self.ends.iter().all(|end| end.port.from_bridge.is_empty()) {
            thread::park_timeout(left);
        }
        for end in &self.ends {
            end.doorbell.disarm();
        }
        if left.is_zero() {
            Err(format!("no message came over loopback within {} s", DEADLINE.as_secs()))
        } else {
            Ok(())
        }
    }

    fn stop(self) {
        for end in self.ends {
            // It was measured; how it ends changes nothing.
            let _ = end.bridge.shutdown(DEADLINE);
        }
    }
}

fn node(at: usize) -> NodeId {
    NodeId(at as u64 + 1)
}

impl End {
    fn start(
        config: &NodeConfig,
        own: usize,
        (bind, identity): (SocketAddr, &Identity),
        peer: PeerAddress,
    ) -> Result<End, String> {
        let engine = &config.engine;
        let (doorbell, of_bridge) = (Doorbell::new(), Doorbell::new());
        let (port, bridge_port) = port_pair(ShardId(0), RING_ITEMS, RING_BYTES, &doorbell, &of_bridge);
        let config = BridgeConfig {
            cluster: engine.cluster,
            node: node(own),
            bind,
            identity: identity.clone(),
            peers: vec![peer],
            removed: Vec::new(),
            clients: Vec::new(),
            placement: Placement::default(),
            boot_epoch: BootEpoch(1),
            boot_id: [1; 16],
            threads: engine.bridge_threads,
            // Two nodes on the CPUs of one would measure that.
            cpus: Vec::new(),
            limits: engine.limits.clone(),
        };
        let on_fatal = Box::new(|error| tracing::error!(%error, "a bridge of the measurement ended"));
        let bridge = Bridge::start(config, vec![bridge_port], of_bridge, Box::new(AnyEpoch), on_fatal);
        Ok(End { bridge: bridge.map_err(|error| error.to_string())?, port, doorbell })
    }

    fn send(&self, own: usize, bytes: usize) -> Result<(), String> {
        let to = node(1 - own);
        let mut builder = PeerFrameBuilder::default();
        builder.push(append(node(own), to, bytes));
        let (lane, shard) = (Lane::Append, ShardId(0));
        let item = ToBridge::Peer { to, lane, frame: builder.finish(lane, shard, shard) };
        self.port.to_bridge.push(item).map_err(|_| "the ring to a bridge is full".to_owned())
    }

    /// Takes a message, if there is one.
    fn take(&self) -> bool {
        while let Some(item) = self.port.from_bridge.pop() {
            if matches!(item, ToShard::Peer { .. }) {
                return true;
            }
        }
        false
    }
}

/// One entry on its way.
fn append(from: NodeId, to: NodeId, bytes: usize) -> PeerMessage {
    let entry =
        LogEntry { index: Index(8), term: Term(3), kind: EntryKind::Normal, data: vec![0x5a; bytes].into() };
    PeerMessage {
        kind: MessageKind::Append,
        group: GroupId(1),
        from,
        to,
        term: Term(3),
        log_term: Term(2),
        index: Index(7),
        commit: Index(5),
        commit_term: Term(0),
        reject: false,
        reject_hint: Index(0),
        request_snapshot: Index(0),
        priority: 0,
        context: Vec::new().into(),
        entries: vec![entry],
    }
}

//! Nodes on addresses of their own, shards played by hand, and waiting with a deadline.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::task::{Wake, Waker};
use std::thread::Thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use iroh_raft_core::{
    BootEpoch, ClusterId, EntryKind, GroupId, Index, LogEntry, MessageKind, NodeId, PeerMessage, Placement,
    ShardId, Term,
};
use iroh_raft_netbridge::bridge::{
    Bridge, BridgeConfig, BridgeError, BridgeLimits, BridgeStats, ClientGrant, EpochRefusal, PeerAddress,
    PeerEpochs, Rights,
};
use iroh_raft_netbridge::client::{Client, ClientConfig, ClientError, ClientLimits};
use iroh_raft_netbridge::identity::Identity;
use iroh_raft_netbridge::port::{ShardPort, ToBridge, ToShard, port_pair};
use iroh_raft_netbridge::ring::Doorbell;
use iroh_raft_netbridge::wire::{Lane, OutFrame, PeerFrameBuilder};

/// Far beyond what anything here takes; only a hang gets there.
pub(crate) const DEADLINE: Duration = Duration::from_secs(30);
/// More than any test has in a ring.
const RING_BYTES: usize = 1 << 30;
pub(crate) const CLUSTER: ClusterId = ClusterId(*b"a test's cluster");

/// A loopback address that no other test has, in this process or another.
pub(crate) fn fresh_addr() -> SocketAddr {
    static NEXT: AtomicU8 = AtomicU8::new(1);
    let [_, _, high, low] = std::process::id().to_be_bytes();
    let last = NEXT.fetch_add(1, Ordering::Relaxed);
    assert_ne!(last, 0, "more than 255 addresses in one test process");
    SocketAddr::new(IpAddr::V4(Ipv4Addr::new(127, high | 1, low, last)), 24_601)
}

/// Waits until `check` gives something; panics with `what` after the deadline.
pub(crate) fn until<T>(what: &str, mut check: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = check() {
            return found;
        }
        assert!(start.elapsed() < DEADLINE, "waited in vain: {what}");
        std::thread::park_timeout(Duration::from_millis(1));
    }
}

/// Who is who in a test.
#[derive(Clone)]
pub(crate) struct Member {
    pub(crate) node: NodeId,
    pub(crate) identity: Identity,
    pub(crate) addr: SocketAddr,
}

impl Member {
    pub(crate) fn new(node: u64) -> Member {
        Member { node: NodeId(node), identity: Identity::generate(), addr: fresh_addr() }
    }

    pub(crate) fn address(&self) -> PeerAddress {
        PeerAddress { node: self.node, endpoint: self.identity.endpoint_id(), addr: self.addr }
    }

    /// The same node at an address where nobody is: whoever knows it so waits to be dialed, and two
    /// dials never meet.
    pub(crate) fn elsewhere(&self) -> Member {
        Member { addr: fresh_addr(), ..self.clone() }
    }

    pub(crate) fn config(&self, peers: &[&Member]) -> BridgeConfig {
        BridgeConfig {
            cluster: CLUSTER,
            node: self.node,
            bind: self.addr,
            identity: self.identity.clone(),
            peers: peers.iter().map(|peer| peer.address()).collect(),
            removed: Vec::new(),
            clients: Vec::new(),
            placement: Placement::default(),
            boot_epoch: BootEpoch(1),
            boot_id: [1; 16],
            threads: 1,
            cpus: Vec::new(),
            limits: BridgeLimits::default(),
        }
    }
}

/// What a node remembers of the others' starts.
#[derive(Clone, Default)]
pub(crate) struct Epochs(pub(crate) Arc<Mutex<Starts>>);

type Starts = HashMap<NodeId, (BootEpoch, [u8; 16])>;

impl PeerEpochs for Epochs {
    fn observe(&mut self, node: NodeId, epoch: BootEpoch, boot_id: [u8; 16]) -> Result<(), EpochRefusal> {
        let mut seen = self.0.lock().unwrap();
        match seen.get(&node) {
            Some((newest, id)) if epoch < *newest || (epoch == *newest && boot_id != *id) => {
                Err(EpochRefusal::RolledBack { seen: *newest })
            }
            _ => {
                seen.insert(node, (epoch, boot_id));
                Ok(())
            }
        }
    }
}

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// A shard, played by the test.
pub(crate) struct Shard {
    pub(crate) port: ShardPort,
    doorbell: Arc<Doorbell>,
}

impl Shard {
    pub(crate) fn send(&self, to: NodeId, lane: Lane, frame: OutFrame) {
        self.port.to_bridge.push(ToBridge::Peer { to, lane, frame }).expect("room in the ring to the bridge");
    }

    /// Sends a message on its lane.
    pub(crate) fn send_message(&self, message: PeerMessage) {
        let (to, lane) = (message.to, Lane::of(message.kind));
        self.send(to, lane, frame_of([message]));
    }

    /// The next item from the bridge.
    pub(crate) fn next(&self) -> ToShard {
        let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
        let start = Instant::now();
        loop {
            if let Some(item) = self.port.from_bridge.pop() {
                return item;
            }
            self.doorbell.arm(&waker);
            if self.port.from_bridge.is_empty() {
                let left = DEADLINE.checked_sub(start.elapsed()).expect("nothing came from the bridge");
                std::thread::park_timeout(left);
            }
            self.doorbell.disarm();
        }
    }

    /// Has the bridge call this when it next puts something into the shard's ring.
    pub(crate) fn arm(&self, waker: &Waker) {
        self.doorbell.arm(waker);
    }

    /// The messages of the next peer frame; other items are passed over.
    pub(crate) fn next_messages(&self) -> (NodeId, Vec<PeerMessage>) {
        loop {
            if let ToShard::Peer { from, frame } = self.next() {
                return (from, frame.messages().collect());
            }
        }
    }

    /// Waits until the bridge says that a node is unreachable; other items are passed over.
    pub(crate) fn await_unreachable(&self, node: NodeId) {
        while !matches!(self.next(), ToShard::Unreachable { node: gone } if gone == node) {}
    }
}

/// A bridge with shards played by the test.
pub(crate) struct TestNode {
    pub(crate) bridge: Bridge,
    pub(crate) shards: Vec<Shard>,
    pub(crate) fatal: mpsc::Receiver<BridgeError>,
}

impl TestNode {
    pub(crate) fn start(config: BridgeConfig) -> TestNode {
        TestNode::start_with(config, Epochs::default(), 1024)
    }

    pub(crate) fn start_with(
        config: BridgeConfig,
        epochs: impl PeerEpochs + Send + 'static,
        ring_bound: usize,
    ) -> TestNode {
        TestNode::try_start(config, epochs, ring_bound).expect("the bridge starts")
    }

    pub(crate) fn try_start(
        config: BridgeConfig,
        epochs: impl PeerEpochs + Send + 'static,
        ring_bound: usize,
    ) -> Result<TestNode, BridgeError> {
        let bridge_doorbell = Doorbell::new();
        let (mut shards, mut ports) = (Vec::new(), Vec::new());
        for shard in 0..config.placement.shard_count() {
            let doorbell = Doorbell::new();
            let (port, bridge_port) =
                port_pair(ShardId(shard), ring_bound, RING_BYTES, &doorbell, &bridge_doorbell);
            shards.push(Shard { port, doorbell });
            ports.push(bridge_port);
        }
        let (sender, fatal) = mpsc::channel();
        let on_fatal = Box::new(move |error| {
            let _ = sender.send(error);
        });
        let bridge = Bridge::start(config, ports, bridge_doorbell, Box::new(epochs), on_fatal)?;
        Ok(TestNode { bridge, shards, fatal })
    }

    pub(crate) fn shard(&self) -> &Shard {
        &self.shards[0]
    }

    pub(crate) fn until_stats(&self, what: &str, check: impl Fn(&BridgeStats) -> bool) -> BridgeStats {
        until(what, || Some(self.bridge.stats()).filter(&check))
    }

    pub(crate) fn until_connected(&self) {
        self.until_stats("peers connected", |stats| stats.peers_connected > 0);
    }

    pub(crate) fn shutdown(self) {
        self.bridge.shutdown(DEADLINE).expect("the bridge stops");
    }
}

/// Two nodes that know each other, connected.
pub(crate) fn pair() -> (Member, Member, TestNode, TestNode) {
    let (one, two) = (Member::new(1), Member::new(2));
    let first = TestNode::start(one.config(&[&two]));
    let second = TestNode::start(two.config(&[&one.elsewhere()]));
    first.until_connected();
    second.until_connected();
    (one, two, first, second)
}

pub(crate) fn message(kind: MessageKind, from: u64, to: u64, group: u64) -> PeerMessage {
    PeerMessage {
        kind,
        group: GroupId(group),
        from: NodeId(from),
        to: NodeId(to),
        term: Term(3),
        log_term: Term(2),
        index: Index(7),
        commit: Index(5),
        commit_term: Term(0),
        reject: false,
        reject_hint: Index(0),
        request_snapshot: Index(0),
        priority: 0,
        context: Bytes::new(),
        entries: Vec::new(),
    }
}

/// An append with one entry of `bytes` bytes.
pub(crate) fn append(from: u64, to: u64, group: u64, bytes: usize) -> PeerMessage {
    let data = Bytes::from(vec![group as u8; bytes]);
    let entry = LogEntry { index: Index(8), term: Term(3), kind: EntryKind::Normal, data };
    PeerMessage { entries: vec![entry], ..message(MessageKind::Append, from, to, group) }
}

pub(crate) fn frame_of(messages: impl IntoIterator<Item = PeerMessage>) -> OutFrame {
    let mut builder = PeerFrameBuilder::default();
    let mut lane = Lane::Append;
    for message in messages {
        lane = Lane::of(message.kind);
        builder.push(message);
    }
    builder.finish(lane, ShardId(0), ShardId(0))
}

pub(crate) const ALL_RIGHTS: Rights = Rights { append: true, read: true, manage: false };

/// A node that takes one client, and that client's key.
pub(crate) fn node_for_client(
    member: &Member,
    identity: &Identity,
    limits: BridgeLimits,
    ring: usize,
) -> TestNode {
    let mut config = member.config(&[]);
    config.clients = vec![ClientGrant { endpoint: identity.endpoint_id(), rights: ALL_RIGHTS }];
    config.limits = limits;
    TestNode::start_with(config, Epochs::default(), ring)
}

pub(crate) fn client_config(identity: &Identity, nodes: &[&Member], limits: ClientLimits) -> ClientConfig {
    ClientConfig {
        cluster: CLUSTER,
        identity: identity.clone(),
        nodes: nodes.iter().map(|node| node.address()).collect(),
        bind: None,
        limits,
    }
}

/// A runtime of its own thread, as a client's host would have.
pub(crate) fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
}

pub(crate) fn connect(
    runtime: &tokio::runtime::Runtime,
    identity: &Identity,
    nodes: &[&Member],
    limits: ClientLimits,
) -> Result<Client, ClientError> {
    runtime.block_on(Client::connect(client_config(identity, nodes, limits)))
}

//! Two bridges that talk over loopback, with shards played by the caller; and two bare iroh endpoints, their limit.

use std::collections::VecDeque;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::task::{Wake, Waker};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use bytes::Bytes;
use iroh::endpoint::presets;
use iroh::{Endpoint, EndpointAddr, RelayMode};
use iroh_raft_core::{
    BootEpoch, ClusterId, EntryKind, GroupId, Index, LogEntry, MessageKind, NodeId, PeerMessage, Placement,
    ShardId, Term,
};
use iroh_raft_netbridge::bridge::{
    Bridge, BridgeConfig, BridgeError, BridgeLimits, EpochRefusal, PeerAddress, PeerEpochs,
};
use iroh_raft_netbridge::identity::Identity;
use iroh_raft_netbridge::port::{ShardPort, ToBridge, ToShard, port_pair};
use iroh_raft_netbridge::ring::Doorbell;
use iroh_raft_netbridge::wire::{Lane, PeerFrameBuilder};
use tokio::runtime::{Builder, Runtime};

/// Why there is no figure.
pub type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Bytes of a batch in the stream.
pub const BATCH_BYTES: usize = 64 << 10;
/// Batches on their way at most: as many as a follower's window has room for, and less than a lane.
const BATCHES_OPEN_MAX: usize = 64;
const RING_ITEMS: usize = 1024;
const RING_BYTES: usize = 64 << 20;
const NODES: [NodeId; 2] = [NodeId(1), NodeId(2)];
const SHARD: ShardId = ShardId(0);
/// Bytes of one write to a bare stream, and of one read from it, at most.
const BARE_BYTES: usize = 256 << 10;
const BARE_ALPN: &[u8] = b"bare/0";
const DEADLINE: Duration = Duration::from_secs(20);
/// How long a receiver sleeps before it looks whether it is over.
const LOOK: Duration = Duration::from_millis(20);

/// Believes every start.
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

/// The shard's side of one bridge.
struct End {
    port: ShardPort,
    doorbell: Arc<Doorbell>,
}

impl End {
    /// The next messages of the other side; none when nothing comes for a while.
    fn receive(&self, waker: &Waker) -> Vec<PeerMessage> {
        let item = self.port.from_bridge.pop().or_else(|| {
            self.doorbell.arm(waker);
            if self.port.from_bridge.is_empty() {
                thread::park_timeout(LOOK);
            }
            self.doorbell.disarm();
            self.port.from_bridge.pop()
        });
        match item {
            Some(ToShard::Peer { frame, .. }) => frame.messages().collect(),
            _ => Vec::new(),
        }
    }
}

/// Two bridges that are connected.
pub struct Pair {
    bridges: [Bridge; 2],
    ends: [End; 2],
    builder: PeerFrameBuilder,
    batch: Bytes,
}

impl Pair {
    /// Starts both and waits until they have met.
    ///
    /// # Errors
    /// [`BridgeError`], or that they did not meet in time.
    pub fn start() -> Result<Pair, Failure> {
        let identities = [(); 2].map(|()| Identity::generate());
        let addrs = [free_addr()?, free_addr()?];
        let one = |own: usize, other: usize| {
            let address = PeerAddress {
                node: NODES[other],
                endpoint: identities[other].endpoint_id(),
                addr: addrs[other],
            };
            let config = BridgeConfig {
                cluster: ClusterId(*b"a benchmark's ns"),
                node: NODES[own],
                bind: addrs[own],
                identity: identities[own].clone(),
                peers: vec![address],
                removed: Vec::new(),
                clients: Vec::new(),
                placement: Placement::default(),
                boot_epoch: BootEpoch(1),
                boot_id: [1; 16],
                threads: 1,
                cpus: Vec::new(),
                limits: BridgeLimits::default(),
            };
            let (doorbell, bridge_doorbell) = (Doorbell::new(), Doorbell::new());
            let (port, bridge_port) = port_pair(SHARD, RING_ITEMS, RING_BYTES, &doorbell, &bridge_doorbell);
            let on_fatal = Box::new(|error| eprintln!("a bridge failed: {error}"));
            let bridge =
                Bridge::start(config, vec![bridge_port], bridge_doorbell, Box::new(AnyEpoch), on_fatal)?;
            Ok::<_, BridgeError>((bridge, End { port, doorbell }))
        };
        let ((first, first_end), (second, second_end)) = (one(0, 1)?, one(1, 0)?);
        let pair = Pair {
            bridges: [first, second],
            ends: [first_end, second_end],
            builder: PeerFrameBuilder::default(),
            batch: Bytes::from(vec![7; BATCH_BYTES]),
        };
        let began = Instant::now();
        while pair.bridges.iter().any(|bridge| bridge.stats().peers_connected == 0) {
            if began.elapsed() > DEADLINE {
                return Err("the bridges did not meet".into());
            }
            thread::sleep(Duration::from_millis(1));
        }
        Ok(pair)
    }

    /// Sends so many batches as appends, each as soon as there is room; the time until all have come.
    ///
    /// # Errors
    /// What did not come in time.
    pub fn stream(&mut self, batches: usize) -> Result<Duration, Failure> {
        let Pair { ends: [from, to], builder, batch, .. } = self;
        let began = Instant::now();
        let (granted, credit) = std::sync::mpsc::sync_channel(BATCHES_OPEN_MAX);
        thread::scope(|scope| {
            let receiver = scope.spawn(move || {
                let waker = Waker::from(Arc::new(Unpark(thread::current())));
                let mut left = batches;
                while left > 0 && began.elapsed() < DEADLINE {
                    for message in to.receive(&waker) {
                        left -= message.entries.len();
                        // The sender is gone when it has sent all.
                        let _ = granted.send(());
                    }
                }
                left
            });
            for sent in 0..batches {
                if sent >= BATCHES_OPEN_MAX && credit.recv_timeout(DEADLINE).is_err() {
                    break;
                }
                push(from, builder, message(MessageKind::Append, sent as u64, Some(batch)));
            }
            drop(credit);
            match receiver.join() {
                Ok(0) => Ok(began.elapsed()),
                Ok(left) => Err(format!("{left} of {batches} batches did not come").into()),
                Err(_) => Err("the receiver panicked".into()),
            }
        })
    }

    /// Sends `count` messages of a kind, one every `pause`, and says how long each was on its way, with the append and the
    /// snapshot lane full meanwhile or not.
    ///
    /// # Errors
    /// What did not come in time.
    pub fn latencies(
        &mut self,
        kind: MessageKind,
        count: usize,
        pause: Duration,
        is_saturated: bool,
    ) -> Result<Vec<Duration>, Failure> {
        let Pair { ends: [from, to], builder, batch, .. } = self;
        let began = Instant::now();
        let (granted, credit) = std::sync::mpsc::sync_channel::<MessageKind>(4 * BATCHES_OPEN_MAX);
        thread::scope(|scope| {
            let receiver = scope.spawn(move || {
                let waker = Waker::from(Arc::new(Unpark(thread::current())));
                let mut found = Vec::with_capacity(count);
                while found.len() < count && began.elapsed() < DEADLINE {
                    for message in to.receive(&waker) {
                        if message.kind == kind {
                            found.push(began.elapsed().saturating_sub(Duration::from_nanos(message.index.0)));
                        } else {
                            let _ = granted.send(message.kind);
                        }
                    }
                }
                (found, to)
            });
            let bulk = [MessageKind::Append, MessageKind::SnapshotChunk];
            let mut due: VecDeque<MessageKind> = VecDeque::new();
            if is_saturated {
                due.extend((0..2 * BATCHES_OPEN_MAX).map(|at| bulk[at % 2]));
            }
            let mut bulk_open = 0;
            let (mut sent, mut next) = (0, began + Duration::from_millis(200));
            while sent < count && began.elapsed() < DEADLINE {
                if Instant::now() >= next {
                    let at = u64::try_from(began.elapsed().as_nanos()).unwrap_or(u64::MAX);
                    push(from, builder, message(kind, at, None));
                    (sent, next) = (sent + 1, next + pause);
                }
                if let Some(kind) = due.pop_front() {
                    push(from, builder, message(kind, 0, Some(batch)));
                    bulk_open += 1;
                } else if let Ok(kind) = credit.recv_timeout(next.saturating_duration_since(Instant::now())) {
                    due.push_back(kind);
                    bulk_open -= 1;
                }
            }
            let (found, to) = receiver.join().map_err(|_| "the receiver panicked")?;
            // The next measurement begins with nothing on its way.
            bulk_open -= credit.try_iter().count();
            let waker = Waker::from(Arc::new(Unpark(thread::current())));
            while bulk_open > 0 && began.elapsed() < DEADLINE {
                bulk_open -= to.receive(&waker).len();
            }
            if found.len() < count {
                return Err(format!("{} of {count} messages did not come", count - found.len()).into());
            }
            Ok(found)
        })
    }

    /// Ends both.
    ///
    /// # Errors
    /// [`BridgeError`] when that took too long.
    pub fn stop(self) -> Result<(), BridgeError> {
        self.bridges.into_iter().try_for_each(|bridge| bridge.shutdown(DEADLINE))
    }
}

fn free_addr() -> Result<SocketAddr, std::io::Error> {
    std::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()
}

fn push(from: &End, builder: &mut PeerFrameBuilder, message: PeerMessage) {
    let (to, lane) = (message.to, Lane::of(message.kind));
    builder.push(message);
    let frame = builder.finish(lane, SHARD, SHARD);
    assert!(
        from.port.to_bridge.push(ToBridge::Peer { to, lane, frame }).is_ok(),
        "credit is less than the ring"
    );
}

fn message(kind: MessageKind, number: u64, batch: Option<&Bytes>) -> PeerMessage {
    let entry = |data: &Bytes| LogEntry {
        index: Index(number + 1),
        term: Term(1),
        kind: EntryKind::Normal,
        data: data.clone(),
    };
    PeerMessage {
        log_term: Term(1),
        index: Index(number),
        entries: batch.map(entry).into_iter().collect(),
        ..PeerMessage::bare(kind, GroupId(1), (NODES[0], NODES[1]), Term(1))
    }
}

/// Two iroh endpoints, each on a thread of its own, and one stream between them.
pub struct Bare {
    sender: Runtime,
    receiver: Runtime,
    stream: iroh::endpoint::SendStream,
    incoming: Option<iroh::endpoint::RecvStream>,
    /// They end with their streams.
    _endpoints: [Endpoint; 2],
    _connections: [iroh::endpoint::Connection; 2],
}

impl Bare {
    /// Connects the two, with iroh's own settings.
    ///
    /// # Errors
    /// What iroh says.
    pub fn start() -> Result<Bare, Failure> {
        let runtime = || Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let (sender, receiver) = (runtime()?, runtime()?);
        let bind = |runtime: &Runtime| {
            let addr = free_addr()?;
            runtime.block_on(async {
                let builder = Endpoint::builder(presets::Minimal).relay_mode(RelayMode::Disabled);
                let builder = builder.alpns(vec![BARE_ALPN.to_vec()]).clear_ip_transports();
                Ok::<_, Failure>((builder.bind_addr(addr)?.bind().await?, addr))
            })
        };
        let ((from, _), (to, addr)) = (bind(&sender)?, bind(&receiver)?);
        let there = EndpointAddr::new(to.id()).with_ip_addr(addr);
        let listener = to.clone();
        let accepted = receiver.spawn(async move {
            let connection = listener.accept().await.ok_or("the endpoint is closed")?.await?;
            let mut incoming = connection.accept_uni().await?;
            // What made the stream known.
            incoming.read_exact(&mut [0]).await?;
            Ok::<_, Failure>((connection, incoming))
        });
        let (connection, stream) = sender.block_on(async {
            let connection = from.connect(there, BARE_ALPN).await?;
            let mut stream = connection.open_uni().await?;
            stream.write_all(&[0]).await?;
            Ok::<_, Failure>((connection, stream))
        })?;
        let (other, incoming) = receiver.block_on(accepted)??;
        let (_endpoints, _connections) = ([from, to], [connection, other]);
        Ok(Bare { sender, receiver, stream, incoming: Some(incoming), _endpoints, _connections })
    }

    /// Sends so many batches; the time until all of it was read.
    ///
    /// # Errors
    /// What iroh says.
    pub fn stream(&mut self, batches: usize) -> Result<Duration, Failure> {
        let mut incoming = self.incoming.take().ok_or("an earlier run failed")?;
        let batch = Bytes::from(vec![7; BATCH_BYTES]);
        let began = Instant::now();
        let reader = self.receiver.spawn(async move {
            let (mut left, mut buffer) = (batches * BATCH_BYTES, vec![0; BARE_BYTES]);
            while left > 0 {
                left -= incoming.read(&mut buffer).await?.ok_or("the stream ended")?;
            }
            Ok::<_, Failure>(incoming)
        });
        self.sender.block_on(async {
            let mut left = batches;
            while left > 0 {
                let count = left.min(BARE_BYTES / BATCH_BYTES);
                let mut chunks = vec![batch.clone(); count];
                self.stream.write_all_chunks(&mut chunks).await?;
                left -= count;
            }
            Ok::<_, Failure>(())
        })?;
        self.incoming = Some(self.receiver.block_on(reader)??);
        Ok(began.elapsed())
    }
}

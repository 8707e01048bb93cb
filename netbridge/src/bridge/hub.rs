//! What the tasks of the bridge share, its main loop, and its beginning and end.

use std::any::Any;
use std::collections::HashMap;
use std::future::{Future, poll_fn};
use std::net::SocketAddr;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;
use std::time::Duration;

use futures_util::FutureExt;
use iroh::Endpoint;
use iroh::endpoint::{Connection, Incoming, Side, VarInt};
use iroh_raft_core::{BootEpoch, NodeId, ShardId};
use rustix::thread::gettid;
use tokio::runtime::Runtime;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout, timeout_at};

use super::{BridgeConfig, BridgeError, Counters, EpochRefusal, Fatal, PeerEpochs, PeerList, Stop};
use crate::allow::{AllowList, PeerAddress};
use crate::client_server::{self, ClientLink};
use crate::close::{CloseCode, refusal_close};
use crate::endpoint::{self, ALPN_CLIENT, ALPN_PEER, Admission, BindFailure};
use crate::peer::{self, Peer};
use crate::port::{BridgePort, ToBridge, ToShard};
use crate::ring::{Consumer, Doorbell, Producer};
use crate::wire::handshake::{FORMAT_FINGERPRINT, Introduction, PROTOCOL_VERSION, Refusal};

/// CPUs that the kernel's mask has; core_affinity aborts the process beyond them.
const CPUS_MAX: usize = 1024;
/// Longest wait at the end for queued frames to leave, and for the other sides to hear the close.
const FLUSH_DEADLINE: Duration = Duration::from_millis(500);
const CLOSE_DEADLINE: Duration = Duration::from_secs(1);

/// The system's numbers of the bridge's threads.
pub(super) type ThreadIds = Arc<Mutex<Vec<i32>>>;

/// What the bridge thread starts from.
pub(super) struct Seed {
    pub(super) config: BridgeConfig,
    pub(super) ports: Vec<BridgePort>,
    pub(super) doorbell: Arc<Doorbell>,
    pub(super) epochs: Box<dyn PeerEpochs + Send>,
    pub(super) counters: Arc<Counters>,
    pub(super) stop: Arc<Stop>,
    pub(super) fatal: Arc<Fatal>,
    pub(super) threads: ThreadIds,
    pub(super) peers: Arc<PeerList>,
}

/// What the tasks of the bridge share. All of them run on the bridge's threads, of which there is mostly one: its
/// locks are hardly ever contended, and never held across an await.
pub(crate) struct Hub {
    pub(crate) config: BridgeConfig,
    list: Arc<PeerList>,
    pub(crate) endpoint: Endpoint,
    pub(crate) counters: Arc<Counters>,
    ports: Vec<Producer<ToShard>>,
    peers: Mutex<HashMap<NodeId, Arc<Peer>>>,
    clients: Mutex<HashMap<u64, Arc<ClientLink>>>,
    connection_last: AtomicU64,
    /// Waited for by tasks, one of which at a time has a thread to block on.
    epochs: Arc<tokio::sync::Mutex<Box<dyn PeerEpochs + Send>>>,
    handshakes: Arc<Semaphore>,
    stop: Arc<Stop>,
    fatal: Arc<Fatal>,
}

/// The body of the bridge thread. Tells through `started` where it listens, or why not.
pub(super) fn run_thread(seed: Seed, started: SyncSender<Result<SocketAddr, BridgeError>>) {
    let fatal = seed.fatal.clone();
    let runtime = match runtime(&seed.config, &seed.threads) {
        Ok(runtime) => runtime,
        Err(error) => {
            let _ = started.send(Err(error));
            return;
        }
    };
    // A task as the others are, so that this thread sleeps where the runtime has threads of its own.
    let main_loop = runtime.spawn(run(seed, started));
    if let Err(error) = runtime.block_on(main_loop)
        && let Ok(panic) = error.try_into_panic()
    {
        fatal.report(BridgeError::Panicked { part: "main loop", message: panic_message(panic.as_ref()) });
    }
    // A start of a peer that a disk which hangs is to remember must not hold up the end of the bridge.
    runtime.shutdown_timeout(CLOSE_DEADLINE);
}

/// A runtime whose threads are pinned to the CPUs in turn, as the calling thread is to the first.
fn runtime(config: &BridgeConfig, ids: &ThreadIds) -> Result<Runtime, BridgeError> {
    let BridgeConfig { threads, cpus, .. } = config;
    // Tried here, since a thread that cannot be pinned later has nobody to tell; the first one last, to stay there.
    if let Some(&cpu) = cpus.iter().rev().find(|cpu| !pin(**cpu)) {
        return Err(BridgeError::Cpu { cpu });
    }
    let mut builder = match *threads {
        1 => tokio::runtime::Builder::new_current_thread(),
        threads => {
            let mut builder = tokio::runtime::Builder::new_multi_thread();
            builder.worker_threads(usize::from(threads)).thread_name("bridge");
            builder
        }
    };
    let enter =
        |ids: &ThreadIds| ids.lock().unwrap_or_else(PoisonError::into_inner).push(gettid().as_raw_pid());
    enter(ids);
    let (cpus, begun) = (cpus.clone(), AtomicUsize::new(0));
    let (ids, ids_of_stopped) = (ids.clone(), ids.clone());
    builder.on_thread_start(move || {
        enter(&ids);
        if !cpus.is_empty() {
            pin(cpus[begun.fetch_add(1, Ordering::Relaxed) % cpus.len()]);
        }
    });
    // Its number may be another thread's tomorrow.
    builder.on_thread_stop(move || {
        let own = gettid().as_raw_pid();
        ids_of_stopped.lock().unwrap_or_else(PoisonError::into_inner).retain(|id| *id != own);
    });
    Ok(builder.enable_all().build()?)
}

fn pin(cpu: usize) -> bool {
    cpu < CPUS_MAX && core_affinity::set_for_current(core_affinity::CoreId { id: cpu })
}

async fn run(seed: Seed, started: SyncSender<Result<SocketAddr, BridgeError>>) {
    let (hub, consumers, doorbell) = match open(seed).await {
        Ok(opened) => opened,
        Err(error) => {
            let _ = started.send(Err(error));
            return;
        }
    };
    update_peers(&hub);
    let addr = hub.endpoint.bound_sockets().first().copied().unwrap_or(hub.config.bind);
    let _ = started.send(Ok(addr));
    tracing::info!(node = %hub.config.node, %addr, id = %hub.endpoint.id(), "bridge listens");
    hub.spawn("accept loop", accept(hub.clone()));
    hub.spawn("keeper of peers", keep_peers(hub.clone()));
    route(&hub, &consumers, &doorbell).await;
    close(&hub).await;
}

type Opened = (Arc<Hub>, Vec<Consumer<ToBridge>>, Arc<Doorbell>);

async fn open(seed: Seed) -> Result<Opened, BridgeError> {
    let Seed { config, ports, doorbell, epochs, counters, stop, fatal, threads: _, peers } = seed;
    let limits = &config.limits;
    let gate = Gate { list: peers.clone(), counters: counters.clone() };
    let alpns = [ALPN_PEER, ALPN_CLIENT];
    let endpoint = endpoint::bind(&config.identity, config.bind, &alpns, limits.behavior(), gate)
        .await
        .map_err(|failure| match failure {
            BindFailure::InUse => BridgeError::AddressInUse { addr: config.bind },
            BindFailure::Other(reason) => BridgeError::Bind { addr: config.bind, reason },
        })?;
    let handshakes = Arc::new(Semaphore::new(limits.handshakes_max));
    let (producers, consumers) = ports.into_iter().map(|port| (port.to_shard, port.from_shard)).unzip();
    let hub = Hub {
        config,
        list: peers,
        endpoint,
        counters,
        ports: producers,
        peers: Mutex::default(),
        clients: Mutex::default(),
        connection_last: AtomicU64::new(0),
        epochs: Arc::new(tokio::sync::Mutex::new(epochs)),
        handshakes,
        stop,
        fatal,
    };
    Ok((Arc::new(hub), consumers, doorbell))
}

async fn keep_peers(hub: Arc<Hub>) {
    loop {
        hub.list.changed().await;
        update_peers(&hub);
    }
}

/// Has a dialer for each peer in the allow-list, and none for anybody else.
fn update_peers(hub: &Arc<Hub>) {
    let wanted: HashMap<NodeId, PeerAddress> = hub.allow().peers().map(|peer| (peer.node, *peer)).collect();
    let is_wanted = |peer: &Peer| wanted.get(&peer.address().node) == Some(peer.address());
    for peer in hub.all_peers().into_iter().filter(|peer| !is_wanted(peer)) {
        let node = peer.address().node;
        hub.peers().remove(&node);
        peer.end();
        hub.tell_unreachable(node);
    }
    for address in wanted.values().filter(|address| hub.peer(address.node).is_none()) {
        let peer = Arc::new(Peer::new(*address, &hub.config));
        hub.peers().insert(address.node, peer.clone());
        hub.spawn("dialer", peer::keep_connected(hub.clone(), peer));
    }
}

/// The allow-list, asked right after the TLS handshake.
#[derive(Debug)]
struct Gate {
    list: Arc<PeerList>,
    counters: Arc<Counters>,
}

impl Admission for Gate {
    fn admit(&self, connection: &Connection) -> Result<(), (VarInt, Vec<u8>)> {
        if connection.side() == Side::Client {
            return Ok(());
        }
        let remote = connection.remote_id();
        let is_known = {
            let allow = self.list.allow();
            match connection.alpn() {
                ALPN_PEER => allow.peer(&remote).is_some(),
                ALPN_CLIENT => allow.client(&remote).is_some(),
                _ => false,
            }
        };
        if is_known {
            return Ok(());
        }
        self.counters.connections_refused.add(1);
        let alpn = String::from_utf8_lossy(connection.alpn()).into_owned();
        tracing::warn!(%remote, %alpn, "refused a connection: its key is not in the allow-list");
        Err(refusal_close(&Refusal::NotAllowed, ""))
    }
}

/// Takes connections until the endpoint closes.
async fn accept(hub: Arc<Hub>) {
    while let Some(incoming) = hub.endpoint.accept().await {
        match hub.handshakes.clone().try_acquire_owned() {
            Ok(permit) => hub.spawn("handshake", admit(hub.clone(), incoming, permit)),
            Err(_) => {
                hub.counters.connections_refused.add(1);
                incoming.refuse();
            }
        }
    }
}

/// One incoming connection, up to the end of its handshake. `permit` counts handshakes in progress.
async fn admit(hub: Arc<Hub>, incoming: Incoming, permit: OwnedSemaphorePermit) {
    let deadline = Instant::now() + hub.config.limits.handshake_deadline;
    let connection = match timeout_at(deadline, incoming).await {
        Ok(Ok(connection)) => connection,
        // Not our protocol, refused by the gate, or gone again.
        Ok(Err(error)) => return tracing::debug!(%error, "an incoming connection failed"),
        Err(_) => return tracing::debug!("an incoming connection did not finish its handshake in time"),
    };
    match connection.alpn() {
        ALPN_PEER => peer::accept(&hub, connection, deadline, permit).await,
        _ => client_server::accept(&hub, connection, deadline, permit).await,
    }
}

/// The main loop: what the shards hand out goes to its lane or client.
async fn route(hub: &Hub, consumers: &[Consumer<ToBridge>], doorbell: &Doorbell) {
    while !hub.stop.is_asked() {
        if drain(hub, consumers) {
            // There is more, but the sockets get their turn first.
            tokio::task::yield_now().await;
            continue;
        }
        tokio::select! {
            () = something_in(consumers, doorbell) => {}
            () = hub.stop.asked() => {}
        }
    }
    while drain(hub, consumers) {}
}

/// Takes up to the budget from each ring. Returns whether there is more.
fn drain(hub: &Hub, consumers: &[Consumer<ToBridge>]) -> bool {
    let mut is_more = false;
    for consumer in consumers {
        let mut budget = hub.config.limits.ring_budget;
        while budget > 0 {
            let Some(item) = consumer.pop() else { break };
            hub.route(item);
            budget -= 1;
        }
        is_more |= budget == 0;
    }
    is_more
}

/// Sleeps at the doorbell until a ring holds something.
async fn something_in(consumers: &[Consumer<ToBridge>], doorbell: &Doorbell) {
    poll_fn(|context| {
        doorbell.arm(context.waker());
        if consumers.iter().all(Consumer::is_empty) {
            return Poll::Pending;
        }
        doorbell.disarm();
        Poll::Ready(())
    })
    .await;
}

/// Lets queued answers leave, then says goodbye on every connection.
async fn close(hub: &Hub) {
    let deadline = Instant::now() + FLUSH_DEADLINE;
    let clients: Vec<_> = hub.clients().values().cloned().collect();
    for client in &clients {
        client.finish();
    }
    for client in &clients {
        // Past the deadline the rest is cut off below.
        let _ = timeout_at(deadline, client.connection().closed()).await;
        CloseCode::ShuttingDown.close(client.connection(), "the node shuts down");
    }
    for peer in hub.all_peers() {
        peer.close(CloseCode::ShuttingDown, "the node shuts down");
    }
    if timeout(CLOSE_DEADLINE, hub.endpoint.close()).await.is_err() {
        tracing::debug!("not every connection heard the close in time");
    }
}

impl Hub {
    /// Runs a task whose panic stops the whole bridge instead of vanishing.
    pub(crate) fn spawn(
        self: &Arc<Hub>,
        part: &'static str,
        task: impl Future<Output = ()> + Send + 'static,
    ) {
        let hub = self.clone();
        tokio::spawn(async move {
            if let Err(panic) = AssertUnwindSafe(task).catch_unwind().await {
                hub.fail(BridgeError::Panicked { part, message: panic_message(panic.as_ref()) });
            }
        });
    }

    /// Reports the error and stops the bridge.
    pub(crate) fn fail(&self, error: BridgeError) {
        self.fatal.report(error);
        self.stop.ask();
    }

    /// The ring to a shard, if this node has it.
    pub(crate) fn port(&self, shard: ShardId) -> Option<&Producer<ToShard>> {
        self.ports.get(usize::from(shard.0))
    }

    /// The rings to all shards.
    pub(crate) fn ports(&self) -> &[Producer<ToShard>] {
        &self.ports
    }

    /// Tells every shard that the connection to `node` is gone. Full ring: Raft notices by itself.
    pub(crate) fn tell_unreachable(&self, node: NodeId) {
        for port in &self.ports {
            let _ = port.push(ToShard::Unreachable { node });
        }
    }

    /// Tells every shard that a client is gone. Full ring: its answers go nowhere.
    pub(crate) fn tell_client_gone(&self, connection: u64) {
        for port in &self.ports {
            let _ = port.push(ToShard::ClientGone { connection });
        }
    }

    /// What this node says of itself at the start of a connection.
    pub(crate) fn introduction(&self) -> Introduction {
        Introduction {
            protocol: PROTOCOL_VERSION,
            cluster: self.config.cluster,
            node: self.config.node,
            boot_epoch: self.config.boot_epoch,
            boot_id: self.config.boot_id,
            fingerprint: FORMAT_FINGERPRINT,
            placement: Some(self.config.placement.clone()),
        }
    }

    /// Who may connect.
    pub(crate) fn allow(&self) -> MutexGuard<'_, AllowList> {
        self.list.allow()
    }

    fn peers(&self) -> MutexGuard<'_, HashMap<NodeId, Arc<Peer>>> {
        self.peers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn all_peers(&self) -> Vec<Arc<Peer>> {
        self.peers().values().cloned().collect()
    }

    pub(crate) fn peer(&self, node: NodeId) -> Option<Arc<Peer>> {
        self.peers().get(&node).cloned()
    }

    /// Remembers a peer's start, beside everything else: a disk that hangs holds up handshakes only.
    pub(crate) async fn observe(
        &self,
        node: NodeId,
        epoch: BootEpoch,
        boot_id: [u8; 16],
    ) -> Result<(), EpochRefusal> {
        let mut epochs = self.epochs.clone().lock_owned().await;
        let observed = tokio::task::spawn_blocking(move || epochs.observe(node, epoch, boot_id)).await;
        observed.unwrap_or_else(|error| match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // The bridge ends.
            Err(_) => Err(EpochRefusal::NotStored),
        })
    }

    pub(crate) fn clients(&self) -> MutexGuard<'_, HashMap<u64, Arc<ClientLink>>> {
        self.clients.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A number that no connection has had, from 1.
    pub(crate) fn next_connection(&self) -> u64 {
        self.connection_last.fetch_add(1, Ordering::Relaxed) + 1
    }

    fn route(&self, item: ToBridge) {
        match item {
            ToBridge::Peer { to, lane, frame } => match self.peer(to) {
                Some(peer) => peer.send(self, lane, frame),
                None => self.counters.dropped_unknown_node.add(1),
            },
            ToBridge::Client { connection, frame } => {
                let client = self.clients().get(&connection).cloned();
                match client {
                    Some(client) => client.send(self, frame),
                    None => self.counters.dropped_client_gone.add(1),
                }
            }
        }
    }
}

fn panic_message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no message".to_owned())
}

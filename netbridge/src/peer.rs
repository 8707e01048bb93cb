//! One other node: dialing it, being dialed by it, and the one connection that counts.
//!
//! Both sides dial while they have no connection, so whichever side comes back is connected at
//! once. If two connections of the same two starts meet, the one dialed by the node with the lower
//! id stays, which both sides decide alike. A connection of a newer start always takes over: the
//! older process is dead, whether or not its connection has timed out.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use iroh::endpoint::{ConnectError, ConnectingError, Connection, ConnectionError};
use iroh_raft_core::{BootEpoch, NodeId, Placement};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tokio::sync::{Notify, OwnedSemaphorePermit};
use tokio::time::{Instant, sleep, timeout, timeout_at};

use crate::allow::PeerAddress;
use crate::bridge::{BridgeConfig, BridgeError, EpochRefusal, Hub};
use crate::close::{CloseCode, refusal_of};
use crate::endpoint::{ALPN_PEER, address_of};
use crate::introduce::{self, HandshakeFailure, close_for, judge, refuse};
use crate::lane::{FrameQueue, ReadFailure, read_lane};
use crate::port::ToShard;
use crate::wire::handshake::{Introduction, Refusal};
use crate::wire::{Lane, OutFrame};

/// A connection that lived this long was a good one: the pause between dials starts over.
const SETTLED_AFTER: Duration = Duration::from_secs(1);
/// Pause before a shard whose ring was full is told again how the node places its groups.
const TELL_PAUSE: Duration = Duration::from_millis(10);

/// Another node.
#[derive(Debug)]
pub(crate) struct Peer {
    address: PeerAddress,
    /// Whether this node has the lower id of the two.
    is_own_lower: bool,
    state: Mutex<State>,
    lost: Notify,
}

#[derive(Debug, Default)]
struct State {
    link: Option<Arc<Link>>,
    /// The shards know already that the node is not connected.
    is_told: bool,
    /// It is no peer any more: it gets no connection.
    is_over: bool,
}

/// One connection to the node, past its handshake.
#[derive(Debug)]
struct Link {
    connection: Connection,
    boot: (BootEpoch, [u8; 16]),
    placement: Placement,
    is_dialed_by_lower: bool,
    since: Instant,
    queues: [FrameQueue; 4],
    /// Lanes of the other side that have their stream, one bit each.
    claimed: Mutex<u8>,
}

impl Link {
    /// Whether this is the lane's first stream.
    fn claim(&self, lane: Lane) -> bool {
        let mut claimed = self.claimed.lock().unwrap_or_else(PoisonError::into_inner);
        let bit = 1 << lane as u8;
        let is_first = *claimed & bit == 0;
        *claimed |= bit;
        is_first
    }
}

impl Peer {
    pub(crate) fn new(address: PeerAddress, config: &BridgeConfig) -> Peer {
        let is_own_lower = config.node < address.node;
        Peer { address, is_own_lower, state: Mutex::default(), lost: Notify::new() }
    }

    pub(crate) fn address(&self) -> &PeerAddress {
        &self.address
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues a frame on its lane. Not connected, or lane full: dropped and counted, and the shards
    /// are told once.
    pub(crate) fn send(&self, hub: &Hub, lane: Lane, frame: OutFrame) {
        let mut state = self.state();
        let must_tell = match &state.link {
            Some(link) => match link.queues[lane as usize].push(frame) {
                Ok(()) => return,
                Err(full) => {
                    hub.counters.dropped_lane_full.add(1);
                    full.is_first
                }
            },
            None => {
                hub.counters.dropped_not_connected.add(1);
                !std::mem::replace(&mut state.is_told, true)
            }
        };
        drop(state);
        if must_tell {
            hub.tell_unreachable(self.address.node);
        }
    }

    /// Closes the connection, if there is one.
    pub(crate) fn close(&self, code: CloseCode, reason: &str) {
        if let Some(link) = &self.state().link {
            code.close(&link.connection, reason);
        }
    }

    /// It is no peer any more: no connection stays, and none is made.
    pub(crate) fn end(&self) {
        self.state().is_over = true;
        self.close(CloseCode::Replaced, "the node was removed, or has another address");
        self.lost.notify_one();
    }

    fn is_over(&self) -> bool {
        self.state().is_over
    }

    fn is_connected(&self) -> bool {
        self.state().link.is_some()
    }

    fn is_present(&self, link: &Arc<Link>) -> bool {
        self.state().link.as_ref().is_some_and(|present| Arc::ptr_eq(present, link))
    }

    /// Makes `link` the connection to this node, unless the present one stays.
    fn adopt(&self, hub: &Hub, link: &Arc<Link>) -> bool {
        let mut state = self.state();
        if state.is_over {
            return false;
        }
        let replaced = match &state.link {
            Some(old) => {
                if old.boot.0 > link.boot.0 {
                    // A later start of the node was let in while this one was being remembered.
                    return false;
                }
                let is_same_start = old.boot == link.boot;
                let is_old_better = old.is_dialed_by_lower && !link.is_dialed_by_lower;
                if is_same_start && is_old_better && old.connection.close_reason().is_none() {
                    return false;
                }
                CloseCode::Replaced.close(&old.connection, "a newer connection has taken over");
                true
            }
            None => false,
        };
        state.link = Some(link.clone());
        state.is_told = false;
        drop(state);
        hub.counters.peer_connects.add(1);
        if replaced {
            // What was on its way over the old connection is lost.
            hub.tell_unreachable(self.address.node);
        } else {
            hub.counters.peers_connected.add(1);
        }
        true
    }

    /// The connection is gone. Returns whether it was the one that counts.
    fn drop_link(&self, hub: &Hub, link: &Arc<Link>) -> bool {
        let mut state = self.state();
        if !state.link.as_ref().is_some_and(|present| Arc::ptr_eq(present, link)) {
            return false;
        }
        state.link = None;
        state.is_told = true;
        drop(state);
        hub.counters.peers_connected.sub(1);
        hub.counters.peer_losses.add(1);
        hub.tell_unreachable(self.address.node);
        self.lost.notify_one();
        true
    }

    fn new_link(
        &self,
        hub: &Hub,
        connection: Connection,
        (boot, placement): ((BootEpoch, [u8; 16]), Placement),
        is_dialed_here: bool,
    ) -> Arc<Link> {
        let limits = &hub.config.limits;
        Arc::new(Link {
            connection,
            boot,
            placement,
            is_dialed_by_lower: is_dialed_here == self.is_own_lower,
            since: Instant::now(),
            queues: std::array::from_fn(|_| FrameQueue::new(limits.lane_frames_max, limits.lane_bytes_max)),
            claimed: Mutex::default(),
        })
    }
}

/// Dials the node whenever there is no connection to it.
pub(crate) async fn keep_connected(hub: Arc<Hub>, peer: Arc<Peer>) {
    let limits = hub.config.limits.clone();
    let mut rng = SmallRng::from_os_rng();
    let mut pause = limits.dial_pause_min;
    while !peer.is_over() {
        while peer.is_connected() {
            let since = peer.state().link.as_ref().map(|link| link.since);
            peer.lost.notified().await;
            if since.is_some_and(|since| since.elapsed() >= SETTLED_AFTER) {
                pause = limits.dial_pause_min;
            }
        }
        if peer.is_over() {
            return;
        }
        let failure = match dial(&hub, &peer).await {
            Ok(()) => continue,
            Err(failure) => failure,
        };
        if peer.is_connected() {
            continue;
        }
        let node = peer.address.node;
        let wait = match &failure {
            HandshakeFailure::Refused { reason: Refusal::Busy | Refusal::ShuttingDown, .. } => pause,
            HandshakeFailure::Refused { reason: Refusal::RolledBack { seen, offered }, .. } => {
                fail_rolled_back(&hub, node, *seen, *offered);
                limits.refused_pause
            }
            HandshakeFailure::Refused { .. } => {
                tracing::error!(%node, %failure, "the node refuses this one: mend its configuration or ours");
                limits.refused_pause
            }
            HandshakeFailure::Refusing(_) | HandshakeFailure::Frame(_) => {
                tracing::error!(%node, %failure, "no connection to the node: mend its configuration or ours");
                limits.refused_pause
            }
            HandshakeFailure::Duplicate | HandshakeFailure::Lost(_) | HandshakeFailure::Deadline => {
                tracing::debug!(%node, %failure, "dialing failed");
                pause
            }
        };
        // Woken early when a connection came the other way round and is lost again.
        let _ = timeout(wait.mul_f64(rng.random_range(0.5..1.0)), peer.lost.notified()).await;
        pause = (pause * 2).min(limits.dial_pause_max);
    }
}

/// One dial: connection, handshake, lanes.
async fn dial(hub: &Arc<Hub>, peer: &Arc<Peer>) -> Result<(), HandshakeFailure> {
    let limits = &hub.config.limits;
    let connect = hub.endpoint.connect(address_of(&peer.address), ALPN_PEER);
    let connection = timeout(limits.dial_deadline, connect)
        .await
        .map_err(|_| HandshakeFailure::Deadline)?
        .map_err(|error| connect_failure(&error))?;
    if peer.is_connected() {
        // The other side was faster. Without a hello it has not seen this connection yet.
        CloseCode::Duplicate.close(&connection, "there is a connection already");
        return Err(HandshakeFailure::Duplicate);
    }
    let own = hub.introduction();
    let exchange = async {
        let (other, _, _) = introduce::hello(&connection, own).await?;
        admit(hub, peer, &connection, other).await
    };
    let exchange = timeout(limits.handshake_deadline, exchange).await;
    let admitted = exchange.map_err(|_| deadline(&connection))??;
    let link = peer.new_link(hub, connection, admitted, true);
    if !peer.adopt(hub, &link) {
        CloseCode::Duplicate.close(&link.connection, "there is a connection already");
        return Err(HandshakeFailure::Duplicate);
    }
    serve(hub, peer, link);
    Ok(())
}

/// An incoming connection whose key is on the list of peers.
pub(crate) async fn accept(
    hub: &Arc<Hub>,
    connection: Connection,
    deadline_at: Instant,
    permit: OwnedSemaphorePermit,
) {
    let known = hub.allow().peer(&connection.remote_id());
    let Some(peer) = known.and_then(|node| hub.peer(node)) else {
        refuse(&connection, Refusal::NotAllowed, "");
        return;
    };
    let node = peer.address.node;
    let handshake = timeout_at(deadline_at, accept_handshake(hub, &peer, &connection)).await;
    drop(permit);
    match handshake.unwrap_or_else(|_| Err(deadline(&connection))) {
        Ok(link) => serve(hub, &peer, link),
        Err(HandshakeFailure::Refused { reason: Refusal::RolledBack { seen, offered }, .. }) => {
            fail_rolled_back(hub, node, seen, offered);
        }
        Err(HandshakeFailure::Duplicate) => {}
        Err(failure) => tracing::warn!(%node, %failure, "a connection from the node was not taken"),
    }
}

async fn accept_handshake(
    hub: &Hub,
    peer: &Arc<Peer>,
    connection: &Connection,
) -> Result<Arc<Link>, HandshakeFailure> {
    let (other, mut send, _recv) = introduce::await_hello(connection).await?;
    let admitted = admit(hub, peer, connection, other).await?;
    let link = peer.new_link(hub, connection.clone(), admitted, false);
    if !peer.adopt(hub, &link) {
        CloseCode::Duplicate.close(connection, "there is a connection already");
        return Err(HandshakeFailure::Duplicate);
    }
    // From here on the link counts: if the welcome cannot be written, the connection is gone, and
    // the task that watches it says so.
    if let Err(failure) = introduce::welcome(connection, &mut send, hub.introduction()).await {
        tracing::debug!(node = %peer.address.node, %failure, "lost while welcoming");
    }
    Ok(link)
}

/// Checks everything about the other node's introduction that its key does not prove. Returns which start of it that is,
/// and how it places its groups.
async fn admit(
    hub: &Hub,
    peer: &Peer,
    connection: &Connection,
    other: Introduction,
) -> Result<((BootEpoch, [u8; 16]), Placement), HandshakeFailure> {
    let node = peer.address.node;
    let refusal = judge(&hub.introduction(), &other)
        .or((other.node != node || other.placement.is_none())
            .then_some(Refusal::WrongNode { node: other.node }));
    let refusal = match refusal {
        Some(refusal) => Some(refusal),
        None => match hub.observe(node, other.boot_epoch, other.boot_id).await {
            Ok(()) => None,
            Err(EpochRefusal::RolledBack { seen }) => {
                Some(Refusal::RolledBack { seen, offered: other.boot_epoch })
            }
            Err(EpochRefusal::NotStored) => Some(Refusal::Busy),
        },
    };
    match (refusal, other.placement) {
        (None, Some(placement)) => Ok(((other.boot_epoch, other.boot_id), placement)),
        (refusal, _) => {
            hub.counters.connections_refused.add(1);
            let refusal = refusal.unwrap_or(Refusal::WrongNode { node: other.node });
            Err(refuse(connection, refusal, ""))
        }
    }
}

/// A peer remembers a later start of this node. It counts only if it speaks of the present start: an
/// old refusal may arrive late.
fn fail_rolled_back(hub: &Hub, peer: NodeId, seen: BootEpoch, offered: BootEpoch) {
    if offered == hub.config.boot_epoch && seen >= offered {
        hub.fail(BridgeError::RolledBack { peer, seen, offered });
    }
}

fn deadline(connection: &Connection) -> HandshakeFailure {
    CloseCode::HandshakeDeadline.close(connection, "the handshake took too long");
    HandshakeFailure::Deadline
}

/// The reason behind iroh's error, so that a refusal is recognized.
pub(crate) fn connect_failure(error: &ConnectError) -> HandshakeFailure {
    match error {
        ConnectError::Connecting { source: ConnectingError::ConnectionError { source, .. }, .. }
        | ConnectError::Connection { source, .. } => source.clone().into(),
        _ => HandshakeFailure::Lost(error.to_string()),
    }
}

/// Starts the tasks of a connection that counts.
fn serve(hub: &Arc<Hub>, peer: &Arc<Peer>, link: Arc<Link>) {
    let node = peer.address.node;
    tracing::info!(%node, boot_epoch = %link.boot.0, "connected");
    hub.spawn("teller of a placement", tell_placement(hub.clone(), peer.clone(), link.clone()));
    for lane in Lane::ALL {
        hub.spawn("lane writer", write(hub.clone(), link.clone(), lane));
    }
    hub.spawn("lane accept loop", take_lanes(hub.clone(), node, link.clone()));
    hub.spawn("connection watch", watch(hub.clone(), peer.clone(), link));
}

/// Tells the shards how the node places its groups: until each has taken it, or another connection has taken over.
async fn tell_placement(hub: Arc<Hub>, peer: Arc<Peer>, link: Arc<Link>) {
    let node = peer.address.node;
    let mut left: Vec<_> = hub.ports().iter().collect();
    while peer.is_present(&link) && !left.is_empty() {
        let placement = || link.placement.clone();
        left.retain(|port| port.push(ToShard::Placement { node, placement: placement() }).is_err());
        if !left.is_empty() {
            sleep(TELL_PAUSE).await;
        }
    }
}

/// Waits for the end of the connection.
async fn watch(hub: Arc<Hub>, peer: Arc<Peer>, link: Arc<Link>) {
    let reason = link.connection.closed().await;
    let node = peer.address.node;
    if let Some((Refusal::RolledBack { seen, offered }, _)) = refusal_of(&reason) {
        fail_rolled_back(&hub, node, seen, offered);
    }
    if peer.drop_link(&hub, &link) {
        log_loss(node, &reason);
    }
}

fn log_loss(node: NodeId, reason: &ConnectionError) {
    match (refusal_of(reason), CloseCode::of(reason)) {
        (Some((refusal, text)), _) => tracing::error!(%node, %refusal, text, "the node refuses this one"),
        (None, Some((CloseCode::FrameVersion, _))) => {
            tracing::error!(%node, "the node does not read this build's frames: run the same release on both");
        }
        _ => tracing::info!(%node, %reason, "connection lost"),
    }
}

async fn write(hub: Arc<Hub>, link: Arc<Link>, lane: Lane) {
    let Ok(mut stream) = link.connection.open_uni().await else { return };
    let at = lane as usize;
    // Higher first; an error means that the connection is gone, as does one of `write_to`.
    let _ = stream.set_priority(3 - at as i32);
    let written = |frames, bytes| {
        hub.counters.frames_out[at].add(frames);
        hub.counters.bytes_out[at].add(bytes);
    };
    if link.queues[at].write_to(&mut stream, written).await.is_err() {
        // Also when only the stream was stopped: a connection without one of its lanes is none.
        CloseCode::BadFrame.close(&link.connection, "a lane was stopped");
    }
}

/// Takes the other side's streams; a connection never has more than four.
async fn take_lanes(hub: Arc<Hub>, node: NodeId, link: Arc<Link>) {
    while let Ok(mut stream) = link.connection.accept_uni().await {
        let (task_hub, link) = (hub.clone(), link.clone());
        hub.spawn("lane reader", async move {
            match read_lane(&task_hub, node, &mut stream, |lane| link.claim(lane)).await {
                Err(ReadFailure::Frame(error)) => {
                    task_hub.counters.frames_refused.add(1);
                    tracing::error!(%node, %error, "refused a frame of the node, its connection is closed");
                    close_for(&link.connection, &error);
                }
                // The connection is gone; or the lane alone, without which it is none.
                Err(ReadFailure::Stream(_)) | Ok(()) => {
                    CloseCode::BadFrame.close(&link.connection, "a lane ended");
                }
            }
        });
    }
}

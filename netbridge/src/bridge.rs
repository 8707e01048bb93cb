//! The bridge: a tokio runtime of one thread, or of as many as are set, with the iroh endpoint, between the
//! rings of the shards and the network.
//!
//! It reads no message's meaning. Everything it holds is bounded ([`BridgeLimits`]); what does not
//! fit is dropped and counted ([`BridgeStats`]), never waited for, so that one slow peer, client or
//! shard costs the others nothing.

mod config;
mod error;
mod hub;
mod peer_list;
mod stats;

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use iroh_raft_core::{BootEpoch, NodeId};
use tokio::sync::Notify;

use crate::allow::AllowList;
use crate::identity::EndpointId;
use crate::port::BridgePort;
use crate::ring::Doorbell;

pub use crate::allow::{AllowError, ClientGrant, PeerAddress};
pub use crate::port::Rights;
pub use config::{BRIDGE_THREADS_MAX, BridgeConfig, BridgeLimits};
pub use error::BridgeError;
pub use peer_list::PeerList;
pub use stats::BridgeStats;

pub(crate) use hub::Hub;
pub(crate) use stats::Counters;

/// Why a peer's start is not accepted.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum EpochRefusal {
    /// It is older than one that was seen before. The peer must not run.
    #[error("a later start of the node was seen: {seen}")]
    RolledBack {
        /// The latest start that was seen.
        seen: BootEpoch,
    },
    /// It cannot be remembered now. The peer may try again.
    #[error("the start of the node cannot be remembered now")]
    NotStored,
}

/// Remembers the starts of the other nodes, durably: a node that comes back with an older start
/// runs on a restored copy of its data, and has forgotten votes and entries that it promised.
pub trait PeerEpochs {
    /// A node says that it runs its start `epoch`, whose random number is `boot_id`. Called once
    /// per new connection, one at a time, on a thread where it may block. A connection for which that takes longer than
    /// the deadline of its handshake does not come about.
    ///
    /// # Errors
    /// [`EpochRefusal`] when a later start was seen, or this start with another number; or when it
    /// could not be stored.
    fn observe(&mut self, node: NodeId, epoch: BootEpoch, boot_id: [u8; 16]) -> Result<(), EpochRefusal>;
}

/// A running bridge. Dropping it stops the thread without waiting for it.
#[derive(Debug)]
pub struct Bridge {
    endpoint_id: EndpointId,
    local_addr: SocketAddr,
    counters: Arc<Counters>,
    stop: Arc<Stop>,
    peers: Arc<PeerList>,
    threads: hub::ThreadIds,
    thread: Option<JoinHandle<()>>,
    ended: mpsc::Receiver<()>,
}

/// Asks the bridge thread to stop.
#[derive(Debug, Default)]
pub(crate) struct Stop {
    is_asked: AtomicBool,
    changed: Notify,
}

impl Stop {
    pub(crate) fn ask(&self) {
        self.is_asked.store(true, Ordering::Release);
        self.changed.notify_one();
    }

    pub(crate) fn is_asked(&self) -> bool {
        self.is_asked.load(Ordering::Acquire)
    }

    /// For the one task that stops the bridge.
    pub(crate) async fn asked(&self) {
        while !self.is_asked() {
            self.changed.notified().await;
        }
    }
}

type OnFatal = Box<dyn FnOnce(BridgeError) + Send>;

/// Tells the embedder, once, that the bridge cannot go on.
pub(crate) struct Fatal(Mutex<Option<OnFatal>>);

impl Fatal {
    pub(crate) fn report(&self, error: BridgeError) {
        tracing::error!(%error, "the bridge stops");
        let on_fatal = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(on_fatal) = on_fatal {
            on_fatal(error);
        }
    }
}

impl Bridge {
    /// Starts the bridge thread; returns once its socket is bound. Dialing the peers goes on behind
    /// the scenes.
    ///
    /// `ports` holds one port per shard, and `doorbell` is the one that the shards' producers ring.
    /// `on_fatal` is called at most once, on the bridge thread, when the bridge cannot go on; it
    /// must return at once and not call [`shutdown`](Bridge::shutdown) itself.
    ///
    /// # Errors
    /// [`BridgeError`]: settings that contradict themselves, the address in use, no such CPU.
    pub fn start(
        config: BridgeConfig,
        ports: Vec<BridgePort>,
        doorbell: Arc<Doorbell>,
        epochs: Box<dyn PeerEpochs + Send>,
        on_fatal: Box<dyn FnOnce(BridgeError) + Send>,
    ) -> Result<Bridge, BridgeError> {
        check(&config, &ports)?;
        let endpoint_id = config.identity.endpoint_id();
        let counters = Arc::new(Counters::default());
        let stop = Arc::new(Stop::default());
        let own = (config.node, endpoint_id);
        let mut allow = AllowList::new(own, &config.peers, &config.clients)?;
        config.removed.iter().for_each(|(node, endpoint)| allow.bury(*node, *endpoint));
        let peers = Arc::new(PeerList::new(allow));
        let threads = hub::ThreadIds::default();
        let (started_tx, started) = mpsc::sync_channel(1);
        let (ended_tx, ended) = mpsc::sync_channel(1);
        let seed = hub::Seed {
            config,
            ports,
            doorbell,
            epochs,
            counters: counters.clone(),
            stop: stop.clone(),
            fatal: Arc::new(Fatal(Mutex::new(Some(on_fatal)))),
            threads: threads.clone(),
            peers: peers.clone(),
        };
        let thread = std::thread::Builder::new().name("bridge".to_owned()).spawn(move || {
            hub::run_thread(seed, started_tx);
            // The receiver is gone if nobody waits for the end.
            let _ = ended_tx.send(());
        })?;
        let died = || BridgeError::Panicked { part: "start", message: "see the log".to_owned() };
        let local_addr = started.recv().map_err(|_| died())??;
        Ok(Bridge { endpoint_id, local_addr, counters, stop, peers, threads, thread: Some(thread), ended })
    }

    /// This node's identity.
    #[must_use]
    pub fn endpoint_id(&self) -> EndpointId {
        self.endpoint_id
    }

    /// Where the bridge listens.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// The counters as they stand now.
    #[must_use]
    pub fn stats(&self) -> BridgeStats {
        self.counters.snapshot()
    }

    /// The system's numbers of its threads so far.
    #[must_use]
    pub fn thread_ids(&self) -> Vec<i32> {
        self.threads.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The nodes that may connect, to be changed.
    #[must_use]
    pub fn peers(&self) -> Arc<PeerList> {
        self.peers.clone()
    }

    /// Writes what is queued, closes every connection with a code that says why, and joins the
    /// thread.
    ///
    /// # Errors
    /// [`BridgeError::Shutdown`] when that took longer than `deadline`; the thread is then left to
    /// itself.
    pub fn shutdown(mut self, deadline: Duration) -> Result<(), BridgeError> {
        self.stop.ask();
        match self.ended.recv_timeout(deadline) {
            Err(mpsc::RecvTimeoutError::Timeout) => Err(BridgeError::Shutdown { deadline }),
            Ok(()) | Err(mpsc::RecvTimeoutError::Disconnected) => {
                match self.thread.take().map(JoinHandle::join) {
                    Some(Err(_)) => {
                        Err(BridgeError::Panicked { part: "thread", message: "see the log".to_owned() })
                    }
                    Some(Ok(())) | None => Ok(()),
                }
            }
        }
    }
}

impl Drop for Bridge {
    fn drop(&mut self) {
        self.stop.ask();
    }
}

fn check(config: &BridgeConfig, ports: &[BridgePort]) -> Result<(), BridgeError> {
    let limits = &config.limits;
    let is_dense = ports.iter().enumerate().all(|(at, port)| usize::from(port.shard.0) == at);
    let what = if ports.len() != usize::from(config.placement.shard_count()) || !is_dense {
        "there must be one port for each shard, in order"
    } else if !(1..=BRIDGE_THREADS_MAX).contains(&config.threads) {
        "threads is from 1 to 64"
    } else if let Some(problem) = limits.behavior().problem() {
        problem
    } else if limits.dial_pause_min.is_zero() || limits.dial_pause_max < limits.dial_pause_min {
        "dial_pause_max is at least dial_pause_min, and neither is zero"
    } else if limits.ring_budget == 0 || limits.lane_frames_max == 0 || limits.handshakes_max == 0 {
        "ring_budget, lane_frames_max and handshakes_max are at least 1"
    } else {
        return Ok(());
    };
    Err(BridgeError::Config { what })
}

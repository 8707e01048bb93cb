//! What the tests of real parts share.
#![deny(unsafe_code)]

pub mod allocations;
pub mod load;
pub mod steady_load;

use std::future::Future;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use iroh_raft::net::allow::PeerAddress;
use iroh_raft::net::client::{Client, ClientConfig, ClientError, ClientLimits};
use iroh_raft::prelude::*;
use iroh_raft::{EngineConfig, LogOnly, RaftClusterBuilder, cluster_id};

/// Longest time a test waits for something that must come. Generous: two cores run everything.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Asks again and again until there is an answer, at most for [`PATIENCE`].
///
/// # Panics
/// When time is up, naming what was waited for.
pub async fn until<T, F: Future<Output = Option<T>>>(what: &str, mut ask: impl FnMut() -> F) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(answer) = ask().await {
            return answer;
        }
        assert!(Instant::now() < deadline, "waited in vain for: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Loopback addresses whose ports are free now.
///
/// # Panics
/// When loopback has no port left.
#[must_use]
pub fn free_addresses(count: usize) -> Vec<SocketAddr> {
    let bind = |_| UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("loopback has a free port");
    // All at once, so that no port is given twice.
    let sockets: Vec<UdpSocket> = (0..count).map(bind).collect();
    sockets.iter().map(|socket| socket.local_addr().expect("a bound socket has an address")).collect()
}

/// A cluster in one process: keys, addresses and folders of its nodes.
#[derive(Debug)]
pub struct Plan {
    /// Everything that is durable.
    pub folder: tempfile::TempDir,
    /// The nodes.
    pub peers: Vec<PeerAddress>,
    /// A client that may do everything.
    pub client: Identity,
    /// A client that may only read.
    pub reader: Identity,
}

impl Plan {
    /// A plan for nodes 1 to `nodes`.
    ///
    /// # Panics
    /// When the machine gives no folder or port.
    #[must_use]
    pub fn new(nodes: u64) -> Plan {
        let folder = tempfile::tempdir().unwrap();
        let addresses = free_addresses(nodes as usize);
        let peers = (1..=nodes)
            .zip(addresses)
            .map(|(node, addr)| {
                let key = Identity::load_or_create(folder.path().join(format!("key-{node}"))).unwrap();
                PeerAddress { node: NodeId(node), endpoint: key.endpoint_id(), addr }
            })
            .collect();
        Plan { folder, peers, client: Identity::generate(), reader: Identity::generate() }
    }

    /// Starts a node; again after it was stopped.
    ///
    /// # Panics
    /// When it does not start.
    pub async fn start(&self, node: u64) -> RaftCluster<KeyValue> {
        self.start_tuned(node, |_| {}).await
    }

    /// Starts a node with other settings.
    ///
    /// # Panics
    /// When it does not start.
    pub async fn start_tuned(
        &self,
        node: u64,
        change: impl FnOnce(&mut EngineConfig),
    ) -> RaftCluster<KeyValue> {
        self.start_machine(node, change, KeyValue::default).await
    }

    /// Starts a node with other settings and state machines.
    ///
    /// # Panics
    /// When it does not start.
    pub async fn start_machine<M: StateMachine>(
        &self,
        node: u64,
        change: impl FnOnce(&mut EngineConfig),
        make: fn() -> M,
    ) -> RaftCluster<M> {
        self.builder(node).tune(change).state_machine(make).build().await.unwrap()
    }

    /// Starts a node with other settings and without state machines.
    ///
    /// # Panics
    /// When it does not start.
    pub async fn start_log(&self, node: u64, change: impl FnOnce(&mut EngineConfig)) -> RaftCluster {
        self.builder(node).tune(change).build().await.unwrap()
    }

    /// A node's settings, without state machines.
    pub fn builder(&self, node: u64) -> RaftClusterBuilder<LogOnly> {
        let mut builder = RaftCluster::builder()
            .node_id(node)
            .cluster("tests")
            .preset(Preset::Testing)
            .groups(3)
            .data_dir(self.folder.path().join(format!("node-{node}")))
            .key_file(self.folder.path().join(format!("key-{node}")))
            .client(self.client.endpoint_id(), Rights { append: true, read: true, manage: true })
            .client(self.reader.endpoint_id(), Rights { append: false, read: true, manage: false });
        for peer in &self.peers {
            builder = if peer.node == NodeId(node) {
                builder.bind_address(peer.addr)
            } else {
                builder.peer(peer.node.0, peer.endpoint, peer.addr)
            };
        }
        builder
    }

    /// The client that may do everything, connected.
    ///
    /// # Panics
    /// When no node welcomes it.
    pub async fn client(&self) -> Client {
        self.connect(&self.client).await.unwrap()
    }

    /// Connects a client with this key.
    ///
    /// # Errors
    /// Why the nodes refuse it.
    pub async fn connect(&self, identity: &Identity) -> Result<Client, ClientError> {
        self.connect_within(identity, ClientLimits::default()).await
    }

    /// Connects a client with this key and other bounds.
    ///
    /// # Errors
    /// Why the nodes refuse it.
    pub async fn connect_within(
        &self,
        identity: &Identity,
        limits: ClientLimits,
    ) -> Result<Client, ClientError> {
        let config = ClientConfig {
            cluster: cluster_id("tests"),
            identity: identity.clone(),
            nodes: self.peers.clone(),
            bind: None,
            limits,
        };
        Client::connect(config).await
    }
}

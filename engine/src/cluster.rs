//! The small front door: a node with one kind of state machine, built in a few lines.

use std::marker::PhantomData;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_channel::oneshot;
use iroh_raft_core::{
    Consistency, Freshness, GroupId, GroupStatus, NodeId, RequestError, Retention, ShardId,
};
use iroh_raft_netbridge::allow::{ClientGrant, PeerAddress};
use iroh_raft_netbridge::identity::EndpointId;
use iroh_raft_netbridge::port::Rights;

use crate::config::{EngineConfig, Pinning, Preset};
use crate::engine::Engine;
use crate::error::EngineError;
use crate::name::cluster_id;
use crate::start::start;
use iroh_raft_driver::lines::{HandedOver, LeadershipError};
use iroh_raft_driver::state_machine::{DecodeError, Machine, MachineFactory, Message, StateMachine};

/// Time that [`RaftCluster::shutdown`] takes at most.
const SHUTDOWN_DEADLINE: Duration = Duration::from_secs(10);
/// Time that a node without peers has to become the leader of its groups.
const LONE_LEADER_DEADLINE: Duration = Duration::from_secs(2);

/// Why a proposal or a query failed.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ClusterError {
    /// The engine refused it or lost it; `retry()` of the inner error says what to do.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// The answer is not of the state machine's types.
    #[error(transparent)]
    Decode(#[from] DecodeError),
}

/// A group of a cluster that is only a log: no state machine, records are bytes.
#[derive(Clone, Copy, Debug)]
pub struct LogOnly;

/// One node of a cluster whose groups all run the state machine `S` (or [`LogOnly`]).
///
/// Clones are handles to the same node.
#[derive(Debug)]
pub struct RaftCluster<S = LogOnly> {
    engine: Engine,
    machine: PhantomData<fn() -> S>,
}

impl<S> Clone for RaftCluster<S> {
    fn clone(&self) -> Self {
        RaftCluster { engine: self.engine.clone(), machine: PhantomData }
    }
}

impl RaftCluster<LogOnly> {
    /// Settings of a node; [`state_machine`](RaftClusterBuilder::state_machine) gives it one.
    pub fn builder() -> RaftClusterBuilder<LogOnly> {
        RaftClusterBuilder {
            config: EngineConfig::new(Preset::default(), cluster_id("default"), NodeId(0), PathBuf::new()),
            machine: PhantomData,
            machines: Arc::new(|_| None),
        }
    }
}

impl<S> RaftCluster<S> {
    /// The engine underneath: several groups, records, status, counters.
    #[must_use]
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// Hands leadership of a group that this node leads to another node, or to the best one.
    ///
    /// # Errors
    /// As [`Engine::transfer_leader`].
    pub async fn transfer_leader(
        &self,
        group: GroupId,
        to: Option<NodeId>,
    ) -> Result<HandedOver, LeadershipError> {
        self.engine.transfer_leader(group, to).await
    }

    /// Stops leading a group.
    ///
    /// # Errors
    /// As [`Engine::step_down`].
    pub async fn step_down(&self, group: GroupId) -> Result<HandedOver, LeadershipError> {
        self.engine.step_down(group).await
    }

    /// Stops the node in order.
    ///
    /// # Errors
    /// As [`Engine::shutdown`], after 10 seconds.
    pub async fn shutdown(self) -> Result<(), EngineError> {
        self.engine.shutdown(SHUTDOWN_DEADLINE).await
    }
}

impl<S: StateMachine> RaftCluster<S> {
    /// Proposes a command to group 1. Ok means: durable on a quorum and applied here.
    ///
    /// # Errors
    /// [`ClusterError`]; `NotLeader` names the node to ask.
    pub async fn propose(&self, command: &S::Command) -> Result<S::Response, ClusterError> {
        self.propose_to(GroupId(1), command).await
    }

    /// Proposes a command to a group.
    ///
    /// # Errors
    /// As [`propose`](RaftCluster::propose).
    pub async fn propose_to(
        &self,
        group: GroupId,
        command: &S::Command,
    ) -> Result<S::Response, ClusterError> {
        let response = self.engine.propose(group, &command.encode()).await?;
        Ok(S::Response::decode(&response)?)
    }

    /// Asks group 1's state machine; the answer covers everything acknowledged before the call. Any node of the
    /// group may be asked: one that does not lead asks the leader how far it has to be.
    ///
    /// # Errors
    /// [`ClusterError`]; asking again is always safe.
    pub async fn query(&self, query: &S::Query) -> Result<S::Answer, ClusterError> {
        self.query_of(GroupId(1), query).await
    }

    /// Asks a group's state machine; linearizable.
    ///
    /// # Errors
    /// As [`query`](RaftCluster::query).
    pub async fn query_of(&self, group: GroupId, query: &S::Query) -> Result<S::Answer, ClusterError> {
        Ok(self.ask(group, query, Consistency::Linearizable).await?.0)
    }

    /// Asks a group's state machine; linearizable as long as the clocks drift no more than
    /// [`lease_reads`](crate::ShardConfig::lease_reads) says, and on the leader without asking anybody.
    ///
    /// # Errors
    /// As [`query`](RaftCluster::query).
    pub async fn query_by_lease(&self, group: GroupId, query: &S::Query) -> Result<S::Answer, ClusterError> {
        Ok(self.ask(group, query, Consistency::Lease).await?.0)
    }

    /// Asks this node's replica of a group at once, however far it is behind: the second part says how far.
    ///
    /// # Errors
    /// As [`query`](RaftCluster::query).
    pub async fn query_local(
        &self,
        group: GroupId,
        query: &S::Query,
    ) -> Result<(S::Answer, Freshness), ClusterError> {
        self.ask(group, query, Consistency::Local).await
    }

    async fn ask(
        &self,
        group: GroupId,
        query: &S::Query,
        consistency: Consistency,
    ) -> Result<(S::Answer, Freshness), ClusterError> {
        let answer = self.engine.query(group, query.encode().into(), consistency).await?;
        Ok((S::Answer::decode(&answer.bytes)?, answer.freshness))
    }
}

/// Settings of a [`RaftCluster`].
#[must_use]
pub struct RaftClusterBuilder<S> {
    config: EngineConfig,
    machine: PhantomData<fn() -> S>,
    machines: Arc<MachineFactory>,
}

impl<S> std::fmt::Debug for RaftClusterBuilder<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RaftClusterBuilder").field("config", &self.config).finish_non_exhaustive()
    }
}

impl<S> RaftClusterBuilder<S> {
    /// This node: 1 or higher, never used by another node of the cluster, past or present.
    pub fn node_id(mut self, node: u64) -> Self {
        self.config.node = NodeId(node);
        self.config.core.node = NodeId(node);
        self
    }

    /// The cluster's name; its id is made of it. Default: `default`.
    pub fn cluster(mut self, name: &str) -> Self {
        self.config.cluster = cluster_id(name);
        self
    }

    /// UDP address of this node. Default: loopback, a port chosen by the system.
    pub fn bind_address(mut self, address: SocketAddr) -> Self {
        self.config.bind = address;
        self
    }

    /// Folder for everything durable.
    pub fn data_dir(mut self, folder: impl Into<PathBuf>) -> Self {
        self.config.data_dir = folder.into();
        self
    }

    /// File with the node's secret key; created, for this user only, if absent. Default: `key` in
    /// the data folder.
    pub fn key_file(mut self, file: impl Into<PathBuf>) -> Self {
        self.config.key_file = Some(file.into());
        self
    }

    /// Adds another node of the cluster.
    pub fn peer(mut self, node: u64, endpoint: EndpointId, address: SocketAddr) -> Self {
        self.config.peers.push(PeerAddress { node: NodeId(node), endpoint, addr: address });
        self
    }

    /// Allows a client to connect.
    pub fn client(mut self, endpoint: EndpointId, rights: Rights) -> Self {
        self.config.clients.push(ClientGrant { endpoint, rights });
        self
    }

    /// Nodes that vote in new groups, the same on every node; the others wait to be made members
    /// ([`Engine::change_members`]). Default: all.
    pub fn voters(mut self, nodes: &[u64]) -> Self {
        self.config.voters = nodes.iter().copied().map(NodeId).collect();
        self
    }

    /// Number of groups, numbered from 1. Default 1.
    pub fn groups(mut self, count: u64) -> Self {
        self.config.groups = (1..=count).map(GroupId).collect();
        self
    }

    /// How long a group keeps its records, the same on every node. Default: for ever.
    pub fn retention(mut self, group: u64, retention: Retention) -> Self {
        self.config.retention.push((GroupId(group), retention));
        self
    }

    /// Number of shards. Default 1. Each node has its own, and may have another one at its next start:
    /// [`EngineConfig::shards`].
    pub fn shards(mut self, count: u16) -> Self {
        self.config.shards = count;
        self
    }

    /// Puts a group on a shard by name, counted from 0: [`EngineConfig::placed`].
    pub fn place(mut self, group: u64, shard: u16) -> Self {
        self.config.placed.insert(GroupId(group), ShardId(shard));
        self
    }

    /// Where shards run. Default: the preset's.
    pub fn pinning(mut self, pinning: Pinning) -> Self {
        self.config.pinning = pinning;
        self
    }

    /// Settings for a purpose; settings made before that the preset does not touch stay.
    pub fn preset(mut self, preset: Preset) -> Self {
        let fresh = EngineConfig::new(preset, self.config.cluster, self.config.node, PathBuf::new());
        self.config.core = fresh.core;
        self.config.pinning = fresh.pinning;
        self.config.storage = fresh.storage;
        self
    }

    /// Changes any setting, for what the methods here leave out.
    pub fn tune(mut self, change: impl FnOnce(&mut EngineConfig)) -> Self {
        change(&mut self.config);
        self
    }

    /// Gives every group a state machine, made by `make` at start.
    pub fn state_machine<M: StateMachine>(
        self,
        make: impl Fn() -> M + Send + Sync + 'static,
    ) -> RaftClusterBuilder<M> {
        RaftClusterBuilder {
            config: self.config,
            machine: PhantomData,
            machines: Arc::new(move |_| Some(Box::new(make()) as Box<dyn Machine>)),
        }
    }

    /// Starts the node. Without peers it returns as the leader of its groups; with peers it does not
    /// wait for them, and requests are refused as `NotLeader` until there is a leader.
    ///
    /// # Errors
    /// [`EngineError`], each with what to do about it.
    pub async fn build(self) -> Result<RaftCluster<S>, EngineError> {
        let (sender, started) = oneshot::channel();
        let name = String::from("start");
        let RaftClusterBuilder { config, machines, .. } = self;
        let is_alone = config.peers.is_empty();
        // Recovery reads the disk; the caller's runtime must not wait for it. The CPUs are read on a
        // thread that inherits the caller's mask.
        std::thread::Builder::new()
            .name(name.clone())
            .spawn(move || {
                let _ = sender.send(start(config, &machines));
            })
            .map_err(|source| EngineError::Thread { name: name.clone(), source })?;
        let engine = started.await.unwrap_or(Err(EngineError::Panicked { name }))?;
        // One flush: a lone voter needs only its own vote. A group that cannot lead, for it is
        // quarantined or was stored with other members, does not hold up the rest.
        let until = Instant::now() + LONE_LEADER_DEADLINE;
        while is_alone && Instant::now() < until {
            match engine.statuses().await {
                Ok(statuses) if !statuses.iter().any(is_leaderless) => break,
                // Something broke it: the handle says what.
                Err(RequestError::ShuttingDown) => break,
                _ => {}
            }
        }
        Ok(RaftCluster { engine, machine: PhantomData })
    }
}

fn is_leaderless(status: &GroupStatus) -> bool {
    status.leader.is_none() && !status.is_quarantined
}

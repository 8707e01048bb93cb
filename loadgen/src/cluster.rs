//! A cluster of nodes as child processes on loopback, with fresh keys and data folders.

use std::collections::VecDeque;
use std::fs;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::time::Duration;

use iroh_raft::net::allow::PeerAddress;
use iroh_raft::storage::BackendChoice;
use iroh_raft::{Identity, NodeId};
use rustix::process::{Pid, Signal};

use crate::node::{Embedded, EmbeddedPlan, NodeConfig, NodeLine, NodeRequest, NodeStatus, NodeSummary, Peer};
use crate::partition;

mod process;

use process::Node;
pub(crate) use process::NodeUsage;

/// Time for a node to say what its clients have seen: the last of their records may be answered late.
const LOADED_DEADLINE: Duration = Duration::from_secs(30);
/// Numbers of nodes in a folder go up to here: those of the start and those that took their place.
const NODES_MAX: u16 = 128;

/// Why a cluster could not be started or asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClusterError {
    /// A file or folder could not be made.
    #[error("cannot write {}: {source}", path.display())]
    Write {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The data folder holds something.
    #[error("{} is not empty: choose a new or empty folder for --data-dir", path.display())]
    NotEmpty {
        /// Which.
        path: PathBuf,
    },
    /// A folder holds no cluster.
    #[error("{}: {problem}; name a folder that `quick --data-dir` has left", path.display())]
    NoCluster {
        /// Which folder, or which file in it.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// A key could not be made.
    #[error(transparent)]
    Key(#[from] iroh_raft::net::identity::IdentityError),
    /// No process or port could be had.
    #[error("cannot {what}: {source}")]
    System {
        /// What was tried.
        what: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// There is no node left to take the place of another.
    #[error("there is no such node, or no spare one is left")]
    NoSpare,
    /// A node ended or broke.
    #[error("node {node} failed: {error}{log}")]
    Node {
        /// Which.
        node: u64,
        /// What it said.
        error: String,
        /// The end of its log, on lines of its own.
        log: String,
    },
    /// A node did not answer in time.
    #[error("node {node} did not {what} within {} s{log}", deadline.as_secs())]
    Late {
        /// Which.
        node: u64,
        /// What it should have done.
        what: &'static str,
        /// How long it had.
        deadline: Duration,
        /// The end of its log, on lines of its own.
        log: String,
    },
}

/// What a cluster is made of.
#[derive(Clone, Debug)]
pub(crate) struct ClusterPlan {
    /// Number of nodes.
    pub(crate) nodes: u16,
    /// Shards of each.
    pub(crate) shards: u16,
    /// Threads of each node's bridge.
    pub(crate) bridge_threads: u16,
    /// Number of groups, on all nodes.
    pub(crate) groups: u32,
    /// Largest record in bytes.
    pub(crate) record_bytes: usize,
    /// Whether each group has a key-value store, read also by lease.
    pub(crate) has_state_machines: bool,
    /// Nodes that may take the place of others later.
    pub(crate) spares: u16,
    /// Entries before a snapshot that a group keeps for those that lag; `None` for the default.
    pub(crate) lag_entries_max: Option<u64>,
    /// How the nodes' files are written.
    pub(crate) backend: BackendChoice,
    /// Whether the nodes' journals can be made to stand still; then files are written through the page cache.
    pub(crate) has_hanging_disks: bool,
}

/// The nodes. Dropping it kills every process.
#[derive(Debug)]
pub(crate) struct Cluster {
    nodes: Vec<Node>,
    /// In the order in which they come in; their keys and addresses are chosen already.
    spares: VecDeque<Node>,
    all_addresses: Vec<PeerAddress>,
    groups: u32,
    client: Identity,
    name: String,
}

impl Cluster {
    /// Makes keys, folders and configurations under `folder`, which is new or empty. Starts nothing.
    pub(crate) fn create(plan: &ClusterPlan, folder: &Path) -> Result<Cluster, ClusterError> {
        make_folder(folder)?;
        let is_empty = fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_none());
        if !is_empty {
            return Err(ClusterError::NotEmpty { path: folder.to_path_buf() });
        }
        let client = Identity::load_or_create(folder.join("client.key"))?;
        let mut addresses = Vec::new();
        let mut folders = Vec::new();
        for (node, addr) in (1..).zip(free_addresses(plan.nodes + plan.spares)?) {
            let folder = folder.join(format!("node-{node}"));
            make_folder(&folder)?;
            let identity = Identity::load_or_create(folder.join("key"))?;
            addresses.push(PeerAddress { node: NodeId(node), endpoint: identity.endpoint_id(), addr });
            folders.push(folder);
        }
        let name = format!("loadgen-{}", client.endpoint_id());
        let nodes = addresses.iter().zip(folders).map(|(own, folder)| {
            let is_first = |node: NodeId| node.0 <= u64::from(plan.nodes);
            let others = addresses.iter().filter(|other| other.node != own.node && is_first(other.node));
            let config = NodeConfig {
                cluster: name.clone(),
                node: own.node.0,
                bind: own.addr,
                data_dir: folder.join("data"),
                key_file: folder.join("key"),
                peers: others.map(Peer::from).collect(),
                clients: vec![client.endpoint_id().to_string()],
                groups: if is_first(own.node) { plan.groups } else { 0 },
                shards: plan.shards,
                bridge_threads: plan.bridge_threads,
                record_bytes_max: plan.record_bytes,
                has_state_machines: plan.has_state_machines,
                lag_entries_max: plan.lag_entries_max,
                backend: plan.backend.to_string(),
                has_hanging_disk: plan.has_hanging_disks,
            };
            Node {
                address: *own,
                config,
                folder,
                process: None,
                used: NodeUsage::default(),
                is_loaded: false,
            }
        });
        let mut nodes: Vec<Node> = nodes.collect();
        let spares = nodes.split_off(plan.nodes.into()).into();
        Ok(Cluster { nodes, spares, all_addresses: addresses, groups: plan.groups, client, name })
    }

    /// The nodes that an earlier run has left in a folder. Starts nothing.
    pub(crate) fn open(folder: &Path) -> Result<Cluster, ClusterError> {
        let client = folder.join("client.key");
        let read = |path: &Path| {
            let text = fs::read(path);
            text.map_err(|source| ClusterError::NoCluster {
                path: path.to_path_buf(),
                problem: source.to_string(),
            })
        };
        read(&client)?;
        let client = Identity::load(&client)?;
        let mut nodes = Vec::new();
        for number in 1..=u64::from(NODES_MAX) {
            let folder = folder.join(format!("node-{number}"));
            // A spare one that never came in has no configuration, and one that was replaced no data.
            if !folder.join("config.json").is_file() || !folder.join("data").is_dir() {
                continue;
            }
            let path = folder.join("config.json");
            let config: NodeConfig = serde_json::from_slice(&read(&path)?)
                .map_err(|error| ClusterError::NoCluster { path, problem: error.to_string() })?;
            // The folder may have another name by now.
            let config = NodeConfig { data_dir: folder.join("data"), key_file: folder.join("key"), ..config };
            let endpoint = Identity::load(&config.key_file)?.endpoint_id();
            let address = PeerAddress { node: NodeId(config.node), endpoint, addr: config.bind };
            nodes.push(Node {
                address,
                config,
                folder,
                process: None,
                used: NodeUsage::default(),
                is_loaded: false,
            });
        }
        let Some(first) = nodes.first() else {
            let problem = "there is no node in it".to_owned();
            return Err(ClusterError::NoCluster { path: folder.to_path_buf(), problem });
        };
        let (name, groups) =
            (first.config.cluster.clone(), nodes.iter().map(|node| node.config.groups).max());
        let all_addresses = nodes.iter().map(|node| node.address).collect();
        Ok(Cluster {
            nodes,
            spares: VecDeque::new(),
            all_addresses,
            groups: groups.unwrap_or(0),
            client,
            name,
        })
    }

    /// Where the nodes are.
    pub(crate) fn addresses(&self) -> Vec<PeerAddress> {
        self.nodes.iter().map(|node| node.address).collect()
    }

    /// Where all nodes are, with those that are gone and those to come.
    pub(crate) fn all_addresses(&self) -> &[PeerAddress] {
        &self.all_addresses
    }

    /// Number of nodes.
    pub(crate) fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Number of groups.
    pub(crate) fn groups(&self) -> u64 {
        self.groups.into()
    }

    /// The clients' key.
    pub(crate) fn client(&self) -> &Identity {
        &self.client
    }

    /// The cluster's name.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Starts every node that does not run.
    pub(crate) fn start(&mut self) -> Result<(), ClusterError> {
        (0..self.nodes.len()).try_for_each(|at| self.start_node(at))
    }

    /// Starts a node (counted from 0) unless it runs. Does not wait for it.
    pub(crate) fn start_node(&mut self, at: usize) -> Result<(), ClusterError> {
        self.nodes[at].start()
    }

    /// Whether all nodes run and take requests.
    pub(crate) fn is_ready(&mut self) -> Result<bool, ClusterError> {
        let mut is_ready = true;
        for node in &mut self.nodes {
            is_ready &= node.is_ready()?;
        }
        Ok(is_ready)
    }

    /// How each node stands; `None` for one that does not run or is not ready.
    pub(crate) fn statuses(&mut self) -> Result<Vec<Option<NodeStatus>>, ClusterError> {
        self.nodes.iter_mut().map(Node::status).collect()
    }

    /// How many replicas of each node stand how; `None` for one that does not run or is not ready.
    pub(crate) fn summaries(&mut self) -> Result<Vec<Option<NodeSummary>>, ClusterError> {
        self.nodes.iter_mut().map(Node::summary).collect()
    }

    /// The processes that run.
    pub(crate) fn pids(&self) -> impl Iterator<Item = u32> {
        self.nodes.iter().filter_map(|node| node.process.as_ref()).map(|process| process.child.id())
    }

    /// Whether every group has one leader that all nodes agree on.
    pub(crate) fn has_leaders(&mut self) -> Result<bool, ClusterError> {
        if !self.is_ready()? {
            return Ok(false);
        }
        let statuses = self.statuses()?;
        let first = statuses.first().and_then(|status| status.as_ref());
        let Some(first) = first else { return Ok(false) };
        let leaders = |status: &NodeStatus| -> Vec<_> {
            status.groups.iter().map(|replica| (replica.group, replica.leader)).collect()
        };
        let expected = leaders(first);
        let is_led = expected.iter().all(|(_, leader)| leader.is_some());
        let is_agreed = statuses.iter().flatten().all(|status| leaders(status) == expected);
        Ok(is_led && is_agreed && expected.len() == self.groups as usize)
    }

    /// Begins to append in the processes of all nodes, to the groups that each leads.
    pub(crate) fn begin_load(&mut self, plan: &EmbeddedPlan) -> Result<(), ClusterError> {
        let mut first_client = 0;
        for node in &mut self.nodes {
            let replicas = node.status()?.unwrap_or_default().groups;
            let led = replicas.iter().filter(|replica| replica.is_leader).map(|replica| replica.group as u32);
            let load = EmbeddedPlan { first_client, targets: led.collect(), ..plan.clone() };
            if load.targets.is_empty() {
                continue;
            }
            first_client += plan.clients;
            node.ask(&NodeRequest::Load(load))?;
            node.is_loaded = true;
        }
        Ok(())
    }

    /// What has become of that, once it is over.
    pub(crate) fn end_load(&mut self) -> Result<Vec<Embedded>, ClusterError> {
        let mut all = Vec::new();
        for node in self.nodes.iter_mut().filter(|node| node.is_loaded) {
            node.is_loaded = false;
            match node.ask_within(&NodeRequest::Loaded, LOADED_DEADLINE)? {
                Some(NodeLine::Loaded(embedded)) => all.push(*embedded),
                _ => return Err(node.failed("its clients do not say what they have seen".into())),
            }
        }
        Ok(all)
    }

    /// What each node has used so far, over all its processes.
    pub(crate) fn usage(&mut self) -> Result<Vec<NodeUsage>, ClusterError> {
        self.nodes.iter_mut().map(Node::usage).collect()
    }

    /// Sends SIGKILL to a node (counted from 0) and waits for its end. What it used is kept.
    pub(crate) fn kill_node(&mut self, at: usize) -> Result<(), ClusterError> {
        let node = &mut self.nodes[at];
        node.used = node.usage()?;
        node.kill();
        Ok(())
    }

    /// From now on nothing reaches the journals of a node (counted from 0), or all does again. Returns whether the node was
    /// there to be told.
    pub(crate) fn hang_disk(&mut self, at: usize, is_hung: bool) -> Result<bool, ClusterError> {
        self.nodes[at].ask(&NodeRequest::HangDisk { is_hung }).map(|answer| answer.is_some())
    }

    /// Sends SIGSTOP to a node (counted from 0): it stands for one that does not run until
    /// [`continue_node`](Cluster::continue_node).
    pub(crate) fn stop_node(&mut self, at: usize) -> Result<(), ClusterError> {
        let last = self.nodes[at].status()?.unwrap_or_default();
        self.nodes[at].signal(Signal::STOP, Some(last))
    }

    /// Sends SIGCONT to a node that was stopped.
    pub(crate) fn continue_node(&mut self, at: usize) -> Result<(), ClusterError> {
        self.nodes[at].signal(Signal::CONT, None)
    }

    /// Cuts the network between these nodes (counted from 0) and all others, and between one another. Clients reach them all.
    pub(crate) fn cut(&mut self, nodes: &[usize]) -> Result<(), ClusterError> {
        let processes = self.nodes.iter().enumerate().filter_map(|(at, node)| {
            let process = node.process.as_ref()?;
            Some((Pid::from_child(&process.child), nodes.contains(&at)))
        });
        let what = "cut the network between nodes (pidfd_getfd and a socket filter; a container may forbid the first)";
        let processes: Vec<(Pid, bool)> = processes.collect();
        partition::cut(&processes).map_err(|source| ClusterError::System { what, source })
    }

    /// Takes back every [`cut`](Cluster::cut).
    pub(crate) fn heal(&mut self) -> Result<(), ClusterError> {
        let processes = self.nodes.iter().filter_map(|node| node.process.as_ref());
        let processes: Vec<Pid> = processes.map(|process| Pid::from_child(&process.child)).collect();
        let what = "bring the network between nodes back";
        partition::heal(&processes).map_err(|source| ClusterError::System { what, source })
    }

    /// Sends SIGKILL to a node (counted from 0), removes its disk, and starts the next spare one in its place, which
    /// knows the others. Returns the old one and the new one.
    pub(crate) fn replace_node(&mut self, at: usize) -> Result<(NodeId, NodeId), ClusterError> {
        let mut new = self.spares.pop_front().ok_or(ClusterError::NoSpare)?;
        self.kill_node(at)?;
        new.used = self.nodes[at].used.clone();
        let folder = &self.nodes[at].config.data_dir;
        fs::remove_dir_all(folder).map_err(|source| ClusterError::Write { path: folder.clone(), source })?;
        let others = self.nodes.iter().enumerate().filter(|(other, _)| *other != at);
        new.config.peers = others.map(|(_, node)| Peer::from(&node.address)).collect();
        new.start()?;
        let new_id = new.address.node;
        let old = std::mem::replace(&mut self.nodes[at], new);
        Ok((old.address.node, new_id))
    }

    /// Starts the next spare node beside the others, which it knows.
    pub(crate) fn add_node(&mut self) -> Result<NodeId, ClusterError> {
        let mut new = self.spares.pop_front().ok_or(ClusterError::NoSpare)?;
        new.config.peers = self.nodes.iter().map(|node| Peer::from(&node.address)).collect();
        new.start()?;
        let id = new.address.node;
        self.nodes.push(new);
        Ok(id)
    }

    /// Sends SIGKILL to a node and starts it again. Does not wait for it.
    pub(crate) fn restart_node(&mut self, node: NodeId) -> Result<(), ClusterError> {
        let at = self.nodes.iter().position(|other| other.address.node == node);
        let at = at.ok_or(ClusterError::NoSpare)?;
        self.kill_node(at)?;
        self.start_node(at)
    }

    /// The process of a node, if it runs.
    pub(crate) fn pid(&self, node: NodeId) -> Option<u32> {
        let node = self.nodes.iter().find(|other| other.address.node == node)?;
        node.process.as_ref().map(|process| process.child.id())
    }

    /// Tells all other nodes of a new one.
    pub(crate) fn introduce(&mut self, new: NodeId) -> Result<(), ClusterError> {
        let address = self.nodes.iter().map(|node| node.address).find(|address| address.node == new);
        let peer = Peer::from(&address.ok_or(ClusterError::NoSpare)?);
        let mut others = self.nodes.iter_mut().filter(|node| node.address.node != new);
        others.try_for_each(|node| node.ask(&NodeRequest::Add(peer.clone())).map(drop))
    }

    /// Tells all nodes that one is gone for good.
    pub(crate) fn forget(&mut self, old: NodeId) -> Result<(), ClusterError> {
        let request = NodeRequest::Remove { node: old.0 };
        self.nodes.iter_mut().try_for_each(|node| node.ask(&request).map(drop))
    }

    /// How one node stands; `None` when it is not here, does not run or is not ready.
    pub(crate) fn status(&mut self, node: NodeId) -> Result<Option<NodeStatus>, ClusterError> {
        let node = self.nodes.iter_mut().find(|other| other.address.node == node);
        node.map_or(Ok(None), Node::status)
    }

    /// Sends SIGKILL to all nodes, then waits for their ends.
    pub(crate) fn kill(&mut self) {
        // All at once: nobody is left to take over while the others die.
        for process in self.nodes.iter_mut().filter_map(|node| node.process.as_mut()) {
            let _ = process.child.kill();
        }
        self.nodes.iter_mut().for_each(Node::kill);
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.kill();
    }
}

fn make_folder(path: &Path) -> Result<(), ClusterError> {
    fs::create_dir_all(path).map_err(|source| ClusterError::Write { path: path.to_path_buf(), source })
}

/// UDP addresses on loopback that are free now. All are held until the last is found, so that they
/// differ.
fn free_addresses(count: u16) -> Result<Vec<SocketAddr>, ClusterError> {
    let bind = || UdpSocket::bind((Ipv4Addr::LOCALHOST, 0));
    let sockets: io::Result<Vec<UdpSocket>> = (0..count).map(|_| bind()).collect();
    let addresses = sockets.and_then(|sockets| sockets.iter().map(UdpSocket::local_addr).collect());
    addresses.map_err(|source| ClusterError::System { what: "find a free UDP port", source })
}

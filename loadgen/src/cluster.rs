//! A cluster of nodes as child processes on loopback, with fresh keys and data folders.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError, sync_channel};
use std::time::{Duration, Instant};

use iroh_raft::net::allow::PeerAddress;
use iroh_raft::{Identity, NodeId};

use crate::machine;
use crate::node::{NodeConfig, NodeLine, NodeStatus, NodeSummary, Peer};

/// Lines of a node that wait for us. Full: the node waits; it says a line only when asked.
const LINES_WAITING_MAX: usize = 16;
/// Time for a node to answer `status`.
const STATUS_DEADLINE: Duration = Duration::from_secs(5);
/// Lines of a node's log that an error shows.
const LOG_LINES_SHOWN: usize = 12;

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
    /// Number of groups, on all nodes.
    pub(crate) groups: u32,
    /// Largest record in bytes.
    pub(crate) record_bytes: usize,
}

/// Counters of a node over all its processes.
#[derive(Clone, Default, Debug)]
pub(crate) struct NodeUsage {
    /// CPU time.
    pub(crate) cpu: Duration,
    /// Most memory resident at a time, in bytes.
    pub(crate) peak_rss_bytes: u64,
    /// Journal commits.
    pub(crate) flushes: u64,
    /// Microseconds spent in them.
    pub(crate) flush_us_total: u64,
    /// Times a replica became leader.
    pub(crate) leaderships_gained: u64,
}

/// One node: its place, and its process while it runs.
#[derive(Debug)]
struct Node {
    config: NodeConfig,
    folder: PathBuf,
    process: Option<Process>,
    /// Of processes that were killed.
    used: NodeUsage,
}

#[derive(Debug)]
struct Process {
    child: Child,
    stdin: ChildStdin,
    lines: Receiver<NodeLine>,
    is_ready: bool,
}

/// The nodes. Dropping it kills every process.
#[derive(Debug)]
pub(crate) struct Cluster {
    nodes: Vec<Node>,
    addresses: Vec<PeerAddress>,
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
        for (node, addr) in (1..).zip(free_addresses(plan.nodes)?) {
            let folder = folder.join(format!("node-{node}"));
            make_folder(&folder)?;
            let identity = Identity::load_or_create(folder.join("key"))?;
            addresses.push(PeerAddress { node: NodeId(node), endpoint: identity.endpoint_id(), addr });
            folders.push(folder);
        }
        let name = format!("loadgen-{}", client.endpoint_id());
        let nodes = addresses.iter().zip(folders).map(|(own, folder)| {
            let others = addresses.iter().filter(|other| other.node != own.node);
            let peer = |other: &PeerAddress| Peer {
                node: other.node.0,
                endpoint: other.endpoint.to_string(),
                address: other.addr,
            };
            let config = NodeConfig {
                cluster: name.clone(),
                node: own.node.0,
                bind: own.addr,
                data_dir: folder.join("data"),
                key_file: folder.join("key"),
                peers: others.map(peer).collect(),
                clients: vec![client.endpoint_id().to_string()],
                groups: plan.groups,
                shards: plan.shards,
                record_bytes_max: plan.record_bytes,
            };
            Node { config, folder, process: None, used: NodeUsage::default() }
        });
        let nodes = nodes.collect();
        Ok(Cluster { nodes, addresses, client, name })
    }

    /// Where the nodes are.
    pub(crate) fn addresses(&self) -> &[PeerAddress] {
        &self.addresses
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
        let count = self.nodes.first().map_or(0, |node| node.config.groups as usize);
        Ok(is_led && is_agreed && expected.len() == count)
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

impl Node {
    fn start(&mut self) -> Result<(), ClusterError> {
        if self.process.is_some() {
            return Ok(());
        }
        let system = |what| move |source| ClusterError::System { what, source };
        let path = self.folder.join("config.json");
        let text = serde_json::to_vec_pretty(&self.config).expect("a configuration serializes");
        fs::write(&path, text).map_err(|source| ClusterError::Write { path: path.clone(), source })?;
        let log = self.log_file();
        let log = File::options()
            .append(true)
            .create(true)
            .open(&log)
            .map_err(|source| ClusterError::Write { path: log.clone(), source })?;
        let program = std::env::current_exe().map_err(system("find this program"))?;
        let mut child = Command::new(program)
            .arg("node")
            .arg("--config")
            .arg(&path)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log)
            // Ctrl-C in the terminal is for the parent, who then ends its nodes.
            .process_group(0)
            .spawn()
            .map_err(system("start a node"))?;
        let (Some(stdin), Some(stdout)) = (child.stdin.take(), child.stdout.take()) else {
            unreachable!("both were asked for as pipes")
        };
        let (sender, lines) = sync_channel(LINES_WAITING_MAX);
        let read = move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                let line = serde_json::from_str(&line).unwrap_or(NodeLine::Failed { error: line });
                if sender.send(line).is_err() {
                    return;
                }
            }
        };
        std::thread::Builder::new()
            .name(format!("lines-{}", self.config.node))
            .spawn(read)
            .map_err(system("start a thread"))?;
        self.process = Some(Process { child, stdin, lines, is_ready: false });
        Ok(())
    }

    fn is_ready(&mut self) -> Result<bool, ClusterError> {
        let Some(process) = &mut self.process else { return Ok(false) };
        if process.is_ready {
            return Ok(true);
        }
        match process.lines.try_recv() {
            Ok(NodeLine::Ready) => process.is_ready = true,
            Ok(NodeLine::Failed { error }) => return Err(self.failed(error)),
            Ok(NodeLine::Status(_) | NodeLine::Summary(_)) | Err(TryRecvError::Empty) => {}
            Err(TryRecvError::Disconnected) => return Err(self.ended()),
        }
        Ok(self.process.as_ref().is_some_and(|process| process.is_ready))
    }

    fn status(&mut self) -> Result<Option<NodeStatus>, ClusterError> {
        match self.ask("status")? {
            Some(NodeLine::Status(status)) => Ok(Some(status)),
            _ => Ok(None),
        }
    }

    fn summary(&mut self) -> Result<Option<NodeSummary>, ClusterError> {
        match self.ask("summary")? {
            Some(NodeLine::Summary(summary)) => Ok(Some(summary)),
            _ => Ok(None),
        }
    }

    /// What the node answers; `None` when it does not run or is not ready.
    fn ask(&mut self, question: &str) -> Result<Option<NodeLine>, ClusterError> {
        if !self.is_ready()? {
            return Ok(None);
        }
        let Some(process) = &mut self.process else { return Ok(None) };
        if process.stdin.write_all(format!("{question}\n").as_bytes()).is_err() {
            return Err(self.ended());
        }
        let until = Instant::now() + STATUS_DEADLINE;
        loop {
            match process.lines.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(line @ (NodeLine::Status(_) | NodeLine::Summary(_))) => return Ok(Some(line)),
                Ok(NodeLine::Ready) => {}
                Ok(NodeLine::Failed { error }) => return Err(self.failed(error)),
                Err(RecvTimeoutError::Disconnected) => return Err(self.ended()),
                Err(RecvTimeoutError::Timeout) => {
                    let (node, log) = (self.config.node, self.log_end());
                    return Err(ClusterError::Late {
                        node,
                        what: "say its status",
                        deadline: STATUS_DEADLINE,
                        log,
                    });
                }
            }
        }
    }

    fn usage(&mut self) -> Result<NodeUsage, ClusterError> {
        let status = self.status()?.unwrap_or_default();
        let used = &self.used;
        let pid = self.process.as_ref().map(|process| process.child.id());
        let cpu = pid.and_then(machine::cpu_time).unwrap_or_default();
        let rss = pid.and_then(machine::peak_rss_bytes).unwrap_or_default();
        Ok(NodeUsage {
            cpu: used.cpu + cpu,
            peak_rss_bytes: used.peak_rss_bytes.max(rss),
            flushes: used.flushes + status.flushes,
            flush_us_total: used.flush_us_total + status.flush_us_total,
            leaderships_gained: used.leaderships_gained + status.leaderships_gained,
        })
    }

    fn kill(&mut self) {
        let Some(mut process) = self.process.take() else { return };
        let _ = process.child.kill();
        let _ = process.child.wait();
    }

    fn failed(&self, error: String) -> ClusterError {
        ClusterError::Node { node: self.config.node, error, log: self.log_end() }
    }

    fn ended(&mut self) -> ClusterError {
        let status = self.process.as_mut().and_then(|process| process.child.wait().ok());
        let how = status.map_or_else(|| "it ended".to_owned(), |status| format!("it ended: {status}"));
        self.failed(how)
    }

    fn log_file(&self) -> PathBuf {
        self.folder.join("log")
    }

    fn log_end(&self) -> String {
        let log = fs::read_to_string(self.log_file()).unwrap_or_default();
        let skipped = log.lines().count().saturating_sub(LOG_LINES_SHOWN);
        log.lines().skip(skipped).map(|line| format!("\n    {line}")).collect()
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

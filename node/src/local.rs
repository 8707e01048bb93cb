//! A cluster on this machine: its folder, and its nodes as processes.

use std::fs::File;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::cli::{Access, ClientKeyArgs, InitArgs};
use crate::init::{self, NODE_FILE};
use crate::say::Failure;

/// Time for a call of a client.
const DEADLINE: Duration = Duration::from_secs(10);
/// What a node says, where nobody looks.
const LOG_FILE: &str = "log";

/// The folder of a cluster: the cluster file, a client's key, and a folder for each node.
#[derive(Clone, Debug)]
pub(crate) struct Folder {
    path: PathBuf,
}

impl Folder {
    pub(crate) fn new(path: &Path) -> Folder {
        Folder { path: path.to_path_buf() }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn cluster_file(&self) -> PathBuf {
        self.path.join("cluster")
    }

    pub(crate) fn key(&self) -> PathBuf {
        self.path.join("client.key")
    }

    fn node(&self, node: u64) -> PathBuf {
        self.path.join(format!("node-{node}"))
    }

    /// Sets up the nodes that are not there yet, from number 1 on, and a client with all rights.
    pub(crate) fn set_up(
        &self,
        (cluster, preset): (&str, &str),
        addresses: &[SocketAddr],
        settings: &[(String, String)],
    ) -> Result<(), Failure> {
        std::fs::create_dir_all(&self.path)
            .map_err(Failure::io(format!("{} cannot be made", self.path.display())))?;
        for (node, address) in (1..).zip(addresses) {
            let dir = self.node(node);
            if dir.join(NODE_FILE).exists() {
                continue;
            }
            init::set_up(&InitArgs {
                node,
                dir,
                address: *address,
                cluster: Some(cluster.to_owned()),
                preset: preset.to_owned(),
                settings: settings.to_vec(),
                cluster_file: self.cluster_file(),
            })?;
        }
        if !self.key().exists() {
            let client = ClientKeyArgs { name: "operator".into(), rights: "append+read+manage".into() };
            let access = Access { cluster_file: self.cluster_file(), key: self.key(), deadline: DEADLINE };
            init::list_client(&client, &access)?;
        }
        Ok(())
    }

    /// Starts so many nodes. What they say goes to this terminal, or into a file in each one's folder.
    pub(crate) fn start(&self, nodes: u64, is_logged: bool) -> Result<Nodes, Failure> {
        let mut started = Nodes { nodes: Vec::new() };
        for node in 1..=nodes {
            let own = std::env::current_exe().map_err(Failure::io("this program's own file is not found"))?;
            let mut command = Command::new(own);
            command.arg("start").arg("--config").arg(self.node(node).join(NODE_FILE));
            if is_logged {
                let path = self.node(node).join(LOG_FILE);
                let log = File::create(&path)
                    .map_err(Failure::io(format!("{} cannot be written", path.display())))?;
                command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
            }
            let child = command.spawn().map_err(Failure::io("a node cannot be started"))?;
            started.nodes.push((node, child));
        }
        Ok(started)
    }

    /// The end of what a node said.
    pub(crate) fn log_end(&self, node: u64) -> String {
        let log = std::fs::read_to_string(self.node(node).join(LOG_FILE)).unwrap_or_default();
        log.lines().last().unwrap_or("it said nothing").to_owned()
    }
}

/// Nodes that run; they are killed with this.
#[derive(Debug)]
pub(crate) struct Nodes {
    nodes: Vec<(u64, Child)>,
}

impl Nodes {
    /// One that has ended by itself.
    pub(crate) fn ended(&mut self) -> Option<u64> {
        let has_ended = |child: &mut Child| !matches!(child.try_wait(), Ok(None));
        self.nodes.iter_mut().find_map(|(node, child)| has_ended(child).then_some(*node))
    }

    /// Tells all to end, and waits until they have handed over and closed.
    pub(crate) fn end(mut self) -> Result<Vec<(u64, ExitStatus)>, Failure> {
        for (_, child) in &mut self.nodes {
            // Ctrl-C has told them as well: once more does no harm.
            let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
            if let (Ok(None), Some(pid)) = (child.try_wait(), pid) {
                let _ = kill_process(pid, Signal::TERM);
            }
        }
        let wait = |(node, child): &mut (u64, Child)| {
            let status = child.wait().map_err(Failure::io(format!("node {node} is lost")))?;
            Ok((*node, status))
        };
        self.nodes.iter_mut().map(wait).collect()
    }
}

impl Drop for Nodes {
    fn drop(&mut self) {
        for (_, child) in &mut self.nodes {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

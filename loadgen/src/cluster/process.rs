//! One node of a cluster, as a process that is asked and signalled.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError, sync_channel};
use std::time::{Duration, Instant};

use iroh_raft::net::allow::PeerAddress;
use iroh_raft::net::ring::Waits;
use rustix::process::{Pid, Signal};

use super::ClusterError;
use crate::machine;
use crate::node::{NodeConfig, NodeLine, NodeRequest, NodeStatus, NodeSummary};

/// Lines of a node that wait for us. Full: the node waits; it says a line only when asked.
const LINES_WAITING_MAX: usize = 16;
/// Time for a node to answer its parent.
const STATUS_DEADLINE: Duration = Duration::from_secs(5);
/// Lines of a node's log that an error shows.
const LOG_LINES_SHOWN: usize = 12;

/// Counters of a node over all its processes, with those of the nodes whose place it took.
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
    /// Turns of shards.
    pub(crate) turns: u64,
    /// Times that a shard slept.
    pub(crate) sleeps: u64,
    /// Requests taken.
    pub(crate) requests: u64,
    /// Requests refused as busy.
    pub(crate) busy: u64,
    /// Frames sent to other nodes.
    pub(crate) frames_sent: u64,
    /// Bytes of journal blocks written.
    pub(crate) flush_bytes: u64,
    /// Bytes of frames sent.
    pub(crate) sent_bytes: u64,
    /// CPU time of threads in microseconds, by their kind.
    pub(crate) thread_us: BTreeMap<String, u64>,
    /// How long items were in rings, by the ring's name.
    pub(crate) waits: BTreeMap<String, Waits>,
    /// Times a replica became leader.
    pub(crate) leaderships_gained: u64,
}

/// One node: its place, and its process while it runs.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) address: PeerAddress,
    pub(super) config: NodeConfig,
    pub(super) folder: PathBuf,
    pub(super) process: Option<Process>,
    /// Of processes that were killed.
    pub(super) used: NodeUsage,
    /// Whether clients in its process append.
    pub(super) is_loaded: bool,
}

#[derive(Debug)]
pub(super) struct Process {
    pub(super) child: Child,
    stdin: ChildStdin,
    lines: Receiver<NodeLine>,
    is_ready: bool,
    /// While it is stopped: what it said last.
    stopped: Option<NodeStatus>,
}

impl Node {
    pub(super) fn start(&mut self) -> Result<(), ClusterError> {
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
        self.process = Some(Process { child, stdin, lines, is_ready: false, stopped: None });
        Ok(())
    }

    pub(super) fn is_ready(&mut self) -> Result<bool, ClusterError> {
        let Some(process) = self.process.as_mut().filter(|process| process.stopped.is_none()) else {
            return Ok(false);
        };
        if process.is_ready {
            return Ok(true);
        }
        match process.lines.try_recv() {
            Ok(NodeLine::Ready) => process.is_ready = true,
            Ok(NodeLine::Failed { error }) => return Err(self.failed(error)),
            Ok(_) | Err(TryRecvError::Empty) => {}
            Err(TryRecvError::Disconnected) => return Err(self.ended()),
        }
        Ok(self.process.as_ref().is_some_and(|process| process.is_ready))
    }

    pub(super) fn status(&mut self) -> Result<Option<NodeStatus>, ClusterError> {
        match self.ask(&NodeRequest::Status)? {
            Some(NodeLine::Status(status)) => Ok(Some(status)),
            _ => Ok(None),
        }
    }

    pub(super) fn summary(&mut self) -> Result<Option<NodeSummary>, ClusterError> {
        match self.ask(&NodeRequest::Summary)? {
            Some(NodeLine::Summary(summary)) => Ok(Some(summary)),
            _ => Ok(None),
        }
    }

    /// What the node answers; `None` when it does not run or is not ready.
    pub(super) fn ask(&mut self, request: &NodeRequest) -> Result<Option<NodeLine>, ClusterError> {
        self.ask_within(request, STATUS_DEADLINE)
    }

    pub(super) fn ask_within(
        &mut self,
        request: &NodeRequest,
        deadline: Duration,
    ) -> Result<Option<NodeLine>, ClusterError> {
        if !self.is_ready()? {
            return Ok(None);
        }
        let Some(process) = &mut self.process else { return Ok(None) };
        let mut request = serde_json::to_vec(request).expect("a request serializes");
        request.push(b'\n');
        if process.stdin.write_all(&request).is_err() {
            return Err(self.ended());
        }
        let until = Instant::now() + deadline;
        loop {
            match process.lines.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(NodeLine::Ready) => {}
                Ok(NodeLine::Failed { error }) => return Err(self.failed(error)),
                Ok(line) => return Ok(Some(line)),
                Err(RecvTimeoutError::Disconnected) => return Err(self.ended()),
                Err(RecvTimeoutError::Timeout) => {
                    let (node, log) = (self.config.node, self.log_end());
                    return Err(ClusterError::Late { node, what: "answer its parent", deadline, log });
                }
            }
        }
    }

    pub(super) fn usage(&mut self) -> Result<NodeUsage, ClusterError> {
        let status = self.status()?;
        let stopped = || self.process.as_ref().and_then(|process| process.stopped.clone());
        let status = status.or_else(stopped).unwrap_or_default();
        let used = &self.used;
        let pid = self.process.as_ref().map(|process| process.child.id());
        let cpu = pid.and_then(machine::cpu_time).unwrap_or_default();
        let rss = pid.and_then(machine::peak_rss_bytes).unwrap_or_default();
        let mut thread_us = used.thread_us.clone();
        for (kind, us) in status.thread_us {
            *thread_us.entry(kind).or_default() += us;
        }
        let mut waits = used.waits.clone();
        for (ring, counts) in status.waits {
            waits.entry(ring).or_default().add(&Waits::from_counts(counts));
        }
        Ok(NodeUsage {
            cpu: used.cpu + cpu,
            peak_rss_bytes: used.peak_rss_bytes.max(rss),
            flushes: used.flushes + status.flushes,
            flush_us_total: used.flush_us_total + status.flush_us_total,
            turns: used.turns + status.turns,
            sleeps: used.sleeps + status.sleeps,
            requests: used.requests + status.requests,
            busy: used.busy + status.busy,
            frames_sent: used.frames_sent + status.frames_sent,
            flush_bytes: used.flush_bytes + status.flush_bytes,
            sent_bytes: used.sent_bytes + status.sent_bytes,
            thread_us,
            waits,
            leaderships_gained: used.leaderships_gained + status.leaderships_gained,
        })
    }

    pub(super) fn signal(&mut self, signal: Signal, stopped: Option<NodeStatus>) -> Result<(), ClusterError> {
        let Some(process) = &mut self.process else { return Ok(()) };
        let sent = rustix::process::kill_process(Pid::from_child(&process.child), signal);
        sent.map_err(|error| ClusterError::System { what: "signal a node", source: error.into() })?;
        process.stopped = stopped;
        Ok(())
    }

    pub(super) fn kill(&mut self) {
        let Some(mut process) = self.process.take() else { return };
        let _ = process.child.kill();
        let _ = process.child.wait();
    }

    pub(super) fn failed(&self, error: String) -> ClusterError {
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

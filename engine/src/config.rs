//! Settings of an engine.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use iroh_raft_core::batch::{BATCH_HEADER_BYTES, RUN_BYTES};
use iroh_raft_core::{
    ClusterId, FlushSeq, GroupId, NodeId, Placement, Retention, Shard, ShardConfig, ShardId, Timestamp,
};
use iroh_raft_netbridge::allow::{ClientGrant, PeerAddress};
use iroh_raft_netbridge::bridge::{BRIDGE_THREADS_MAX, BridgeLimits};
use iroh_raft_netbridge::wire::FrameLimits;
use iroh_raft_storage::{BackendChoice, BackendKind, Disk, ShardOptions};

use crate::error::EngineError;
use iroh_raft_driver::recording::RECORDING_BYTES_MIN;
use iroh_raft_driver::{ApplyBudget, FRAME_BYTES_TARGET};

/// Bytes of an entry, and of the entries of a message, at most: a frame to a peer takes these beside a frame's worth of others.
const ENTRY_BYTES_LIMIT: usize = FrameLimits::PEER.payload_bytes_max as usize - FRAME_BYTES_TARGET;

/// A set of settings for a purpose.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Debug)]
pub enum Preset {
    /// For writing code: fast elections (about 0.2 s), small caches, shards not pinned.
    Development,
    /// For tests on busy machines: elections as in production, small caches, shards not pinned.
    Testing,
    /// For use: elections within about 1 s, larger caches, one CPU for each shard.
    #[default]
    Production,
}

/// Whether and where shards are pinned.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Pinning {
    /// Shard `i` on the `i`-th CPU of the process, round about.
    Auto,
    /// Shard `i` on the `i`-th CPU named here.
    Cpus(Vec<usize>),
    /// The kernel's scheduler decides.
    Unpinned,
}

/// Recordings of a node's shards, for [`crate::recording::replay`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RecordingConfig {
    /// Folder for them, created if absent, for this user only. Each start of the node adds a file
    /// `recording-<shard>-<boot epoch>` for each shard, with mode 0600; none is ever removed by the node.
    pub folder: PathBuf,
    /// Bytes of one recording at most; it then ends with a mark, and the shard goes on. At least 4,096;
    /// [`RecordingConfig::new`] takes 1 GiB. Higher: longer runs, and a disk that fills up sooner.
    pub bytes_max: u64,
}

impl RecordingConfig {
    /// Recordings of at most 1 GiB each in this folder.
    #[must_use]
    pub fn new(folder: impl Into<PathBuf>) -> RecordingConfig {
        RecordingConfig { folder: folder.into(), bytes_max: 1 << 30 }
    }
}

/// Settings of an engine: one node.
#[derive(Clone, Debug)]
pub struct EngineConfig {
    /// The cluster. A data folder belongs to one cluster for good.
    pub cluster: ClusterId,
    /// This node; never 0, never used by another node of the cluster, past or present.
    pub node: NodeId,
    /// Folder for everything durable. Created if absent.
    pub data_dir: PathBuf,
    /// File with this node's secret key. Created with mode 0600 on the folder's first start; an error
    /// if absent later, since a new key would be a stranger to the peers. Default: `key` in
    /// `data_dir`.
    pub key_file: Option<PathBuf>,
    /// UDP address of the endpoint. Default 127.0.0.1 with a port chosen by the system.
    pub bind: SocketAddr,
    /// The other nodes.
    pub peers: Vec<PeerAddress>,
    /// Clients that may connect, and what they may do. Default: none.
    pub clients: Vec<ClientGrant>,
    /// Shards of this node: executors, writers and journals. Default 1. Each group is on the shard of its number modulo
    /// this. Other nodes may have another number. It may be another one than at the last start: groups that
    /// get another shard are then moved before the node comes up, which takes as long as it takes to read and write them, and
    /// as much space again meanwhile. Higher: more cores at work, with more memory and an fsync for each.
    pub shards: u16,
    /// Groups that are on another shard than the one of their number, for a busy one to have a shard for itself; at most
    /// 1,024. Default: none. May change as `shards` may.
    pub placed: BTreeMap<GroupId, ShardId>,
    /// Groups that exist on this cluster from the start, with a replica on every node. Groups that the
    /// data folder already holds are opened whether they are listed or not.
    pub groups: Vec<GroupId>,
    /// How long groups keep their records; the same on all nodes, whose leaders trim by it. Default: none named,
    /// which means for ever.
    pub retention: Vec<(GroupId, Retention)>,
    /// Nodes that vote in groups that are new; the same on all nodes. The others hold a replica that
    /// takes no part until it is made a member. Default: none named, which means all.
    pub voters: Vec<NodeId>,
    /// Where shards run.
    pub pinning: Pinning,
    /// Threads of the bridge, which encrypts, sends and receives: 1 to 64. Default 1. Higher, where one
    /// core is not enough for that: connections are served side by side, and threads wake each other.
    pub bridge_threads: u16,
    /// CPUs of the bridge's threads, in turn. Default none: the scheduler decides.
    pub bridge_cpus: Vec<usize>,
    /// Largest record in bytes. Default 1 MiB. Higher: longer turns for the other groups.
    pub record_bytes_max: usize,
    /// What a turn of a shard gives to the state machines of its groups.
    pub apply_budget: ApplyBudget,
    /// Items in a ring between the bridge and a shard. Default 4,096. Higher: more memory and
    /// latency before a client is told Busy.
    pub ring_items_max: usize,
    /// Bytes of frames in such a ring, and of requests of this process that wait for a shard's next turn. Default 64 MiB; at
    /// least 1, and one item is always taken. A quarter of what comes from the bridge is for peers only. Higher: as above.
    pub ring_bytes_max: usize,
    /// Bytes of entries that a shard has on their way to its disk, from which on it takes no more: clients are refused as busy, and
    /// what leaders elsewhere send is dropped and comes again. Default 64 MiB; at least 1. Higher: more memory where this disk
    /// is slower than those of a quorum. Lower: what a disk lags behind by for a moment is sent twice.
    pub flush_bytes_max: usize,
    /// How long a request of this process waits at most. Default 10 s.
    pub request_deadline: Duration,
    /// How the shards' files are written. Default: what a calibration at the first start finds best
    /// (about a second, once); for tests and development through the page cache.
    pub backend: BackendChoice,
    /// Where everything durable but the key is, if not in the file system; `backend` then decides nothing. For
    /// tests of what a node does when its disk misbehaves. Default: none.
    pub disk: Option<Arc<dyn Disk>>,
    /// Everything stored is read and verified once in this time, evenly spread over it. Default 7 days;
    /// at least 1 s. Shorter: damage is found sooner, and the disk has more to read.
    pub scrub_period: Duration,
    /// The durable log of each shard: bounds and caches. Its `tail_bytes` is set by the engine.
    pub storage: ShardOptions,
    /// Timing and memory of the Raft core; its node and seed are set by the engine.
    pub core: ShardConfig,
    /// Whether the node has the allocator give memory back to the system that a storm needed, when all its shards have come to
    /// rest, and keep large buffers apart at a start and while snapshots are on their way: `malloc_trim(3)` and
    /// `mallopt(3)` of glibc. Default true. Hazard: both act on the whole process: other threads that allocate wait for
    /// a trim, and thresholds that the process has set itself are replaced. False: a node may keep some hundred
    /// MiB more than it needs.
    pub tunes_allocator: bool,
    /// Bounds of the bridge.
    pub limits: BridgeLimits,
    /// Records all that each shard takes from its start on, to have the run again elsewhere. Default:
    /// none. Costs a write to the page cache in every turn, by the shard itself, of all that came in, and a
    /// hash over all that went out. Hazard: the files hold users' records.
    pub recording: Option<RecordingConfig>,
}

impl EngineConfig {
    /// The settings of a preset for a node.
    #[must_use]
    pub fn new(
        preset: Preset,
        cluster: ClusterId,
        node: NodeId,
        data_dir: impl Into<PathBuf>,
    ) -> EngineConfig {
        let mut core = ShardConfig::new(node, 0);
        let mut pinning = Pinning::Unpinned;
        let mut backend = BackendChoice::Fixed(BackendKind::Buffered);
        let mut storage = ShardOptions {
            journal_bytes_max: 64 << 20,
            move_bytes: 8 << 20,
            journal_cache_bytes: 80 << 20,
            log_cache_bytes: 16 << 20,
            ..ShardOptions::default()
        };
        match preset {
            Preset::Development => {
                core.tick = Duration::from_millis(10);
                core.window_bytes_max = 16 << 20;
            }
            Preset::Testing => core.window_bytes_max = 16 << 20,
            Preset::Production => {
                pinning = Pinning::Auto;
                backend = BackendChoice::Auto;
                storage = ShardOptions::default();
            }
        }
        EngineConfig {
            cluster,
            node,
            data_dir: data_dir.into(),
            key_file: None,
            bind: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            peers: Vec::new(),
            clients: Vec::new(),
            shards: 1,
            placed: BTreeMap::new(),
            groups: vec![GroupId(1)],
            retention: Vec::new(),
            voters: Vec::new(),
            pinning,
            bridge_threads: 1,
            bridge_cpus: Vec::new(),
            record_bytes_max: 1 << 20,
            apply_budget: ApplyBudget::default(),
            ring_items_max: 4096,
            ring_bytes_max: 64 << 20,
            flush_bytes_max: 64 << 20,
            request_deadline: Duration::from_secs(10),
            backend,
            disk: None,
            scrub_period: Duration::from_secs(7 * 24 * 3600),
            storage,
            core,
            tunes_allocator: true,
            limits: BridgeLimits::default(),
            recording: None,
        }
    }

    /// The key file: the one named, or `key` in the data folder.
    #[must_use]
    pub fn key_file(&self) -> PathBuf {
        self.key_file.clone().unwrap_or_else(|| self.data_dir.join("key"))
    }

    /// Which shard has which group.
    ///
    /// # Errors
    /// [`EngineError::Config`] when a group is placed on a shard that there is not.
    pub fn placement(&self) -> Result<Placement, EngineError> {
        Placement::new(self.shards, self.placed.clone())
            .map_err(|error| EngineError::Config { setting: "placed", problem: error.to_string() })
    }

    /// Largest block of records: what may be pending, and what fits into a frame between nodes beside
    /// the other messages that it may carry.
    pub(crate) fn block_bytes_max(&self) -> usize {
        self.core.pending_bytes_max.min(ENTRY_BYTES_LIMIT - BATCH_HEADER_BYTES - RUN_BYTES)
    }

    /// Checks everything that can be checked without touching the machine.
    ///
    /// # Errors
    /// [`EngineError::Config`] for the first setting that is impossible.
    pub fn check(&self) -> Result<(), EngineError> {
        let refuse = |setting, problem: String| Err(EngineError::Config { setting, problem });
        if self.node == NodeId(0) {
            return refuse("node", "0 is not a node id: choose 1 or higher, unique in the cluster".into());
        }
        if self.shards == 0 {
            return refuse("shards", "a node has at least one shard".into());
        }
        if !(1..=BRIDGE_THREADS_MAX).contains(&self.bridge_threads) {
            let problem = format!("{} is outside of 1 to {BRIDGE_THREADS_MAX}", self.bridge_threads);
            return refuse("bridge_threads", problem);
        }
        self.placement()?;
        if self.groups.contains(&GroupId(0)) {
            return refuse("groups", "0 is not a group id: choose 1 or higher".into());
        }
        if let Some(peer) = self.peers.iter().find(|peer| peer.node == self.node) {
            return refuse("peers", format!("node {} is this node itself: list only the others", peer.node));
        }
        for (at, peer) in self.peers.iter().enumerate() {
            if let Some(other) = self.peers[..at]
                .iter()
                .find(|other| other.node == peer.node || other.endpoint == peer.endpoint)
            {
                return refuse(
                    "peers",
                    format!(
                        "nodes {} and {} share an id or a key: each node has its own",
                        other.node, peer.node
                    ),
                );
            }
        }
        let is_known = |node: &NodeId| *node == self.node || self.peers.iter().any(|peer| peer.node == *node);
        if let Some(stranger) = self.voters.iter().find(|node| !is_known(node)) {
            return refuse("voters", format!("node {stranger} is neither this node nor a peer"));
        }
        let block_bytes_max = self.block_bytes_max();
        if self.record_bytes_max == 0 || self.record_bytes_max > block_bytes_max {
            let problem = format!(
                "{} is outside of 1 to {block_bytes_max} (pending_bytes_max, and what a frame takes)",
                self.record_bytes_max
            );
            return refuse("record_bytes_max", problem);
        }
        if self.scrub_period < Duration::from_secs(1) {
            return refuse(
                "scrub_period",
                format!("{:?} is too short: choose 1 s or longer", self.scrub_period),
            );
        }
        if self.apply_budget.records_max == 0 || self.apply_budget.time.is_zero() {
            return refuse("apply_budget", "a turn applies at least one command, and has time for it".into());
        }
        if self.ring_items_max == 0 {
            return refuse("ring_items_max", "a ring holds at least one item".into());
        }
        let bytes = [("ring_bytes_max", self.ring_bytes_max), ("flush_bytes_max", self.flush_bytes_max)];
        if let Some((setting, _)) = bytes.into_iter().find(|(_, bytes_max)| *bytes_max == 0) {
            return refuse(setting, "0 takes nothing: choose 1 or more".into());
        }
        if let Some(RecordingConfig { bytes_max, .. }) = self.recording
            && bytes_max < RECORDING_BYTES_MIN
        {
            let problem = format!("bytes_max is {bytes_max}: choose {RECORDING_BYTES_MIN} or more");
            return refuse("recording", problem);
        }
        let bytes = [
            ("core.entry_bytes_max", self.core.entry_bytes_max),
            ("core.message_bytes_max", self.core.message_bytes_max),
        ];
        if let Some((setting, bytes)) = bytes.into_iter().find(|(_, bytes)| *bytes > ENTRY_BYTES_LIMIT) {
            // No follower would take it, and nothing that comes after it in the log would be committed.
            return refuse(
                setting,
                format!("{bytes} is more than the {ENTRY_BYTES_LIMIT} that a frame takes"),
            );
        }
        // The core checks its own settings; a shard without groups costs nothing.
        let mut core = self.core.clone();
        core.node = self.node;
        match Shard::new(core, FlushSeq(0), Vec::new(), Timestamp(0)) {
            Ok(_) => Ok(()),
            Err(error) => refuse("core", error.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_that_no_frame_takes_are_refused() {
        let good = || EngineConfig::new(Preset::Testing, ClusterId([1; 16]), NodeId(1), "data");
        assert!(good().check().is_ok());
        for tune in [
            |config: &mut EngineConfig| config.core.entry_bytes_max = ENTRY_BYTES_LIMIT + 1,
            |config: &mut EngineConfig| config.core.message_bytes_max = ENTRY_BYTES_LIMIT + 1,
        ] {
            let mut config = good();
            tune(&mut config);
            let error = config.check().expect_err("followers would refuse them");
            assert!(matches!(error, EngineError::Config { setting, .. } if setting.ends_with("_bytes_max")));
        }
        let mut config = good();
        config.core.pending_bytes_max = 1 << 30;
        assert!(config.block_bytes_max() + BATCH_HEADER_BYTES + RUN_BYTES <= ENTRY_BYTES_LIMIT);
    }
}

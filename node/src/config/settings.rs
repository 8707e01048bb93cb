//! Every setting of a node: its name, what it means, what it costs, where it goes. The one source of the configuration
//! file that `init` writes, of `config explain`, and of the reference page.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use iroh_raft::core::ShardId;
use iroh_raft::storage::BackendChoice;
use iroh_raft::{
    EngineConfig, GroupId, LeaseReads, NodeId, Pinning, Preset, Retention, SpreadConfig, cluster_id,
};

use super::shape::{Shape, items, list, show_bytes, show_time, show_time_or_never};

/// Everything that a node is told.
#[derive(Clone, Debug)]
pub(crate) struct NodeConfig {
    /// What the engine is told. Peers and clients come from the cluster file.
    pub(crate) engine: EngineConfig,
    /// Name of the cluster.
    pub(crate) cluster: String,
    /// The file that says who belongs to it.
    pub(crate) cluster_file: PathBuf,
    /// Which events are logged.
    pub(crate) log_filter: String,
    /// How they are written.
    pub(crate) log_format: &'static str,
    /// How long a node that is told to stop may take.
    pub(crate) stop_deadline: Duration,
    /// Where the page for Prometheus and the health page are, if anywhere.
    pub(crate) metrics_listen: Option<SocketAddr>,
}

/// A setting.
pub(crate) struct Setting {
    /// Its name in the file; in the environment `IROH_RAFT_` with capitals, and `_` for `.`.
    pub(crate) key: &'static str,
    /// What it means.
    pub(crate) meaning: &'static str,
    /// What more of it costs, or less; empty where it costs nothing.
    pub(crate) cost: &'static str,
    /// What can go wrong by it; empty where nothing can.
    pub(crate) hazard: &'static str,
    /// Where it goes.
    pub(crate) field: Field,
}

/// How a setting gets in and out of the configuration, as text.
pub(crate) struct Field {
    pub(crate) shape: Shape,
    pub(crate) read: fn(&NodeConfig) -> String,
    pub(crate) write: fn(&mut NodeConfig, &str) -> Result<(), String>,
}

const ANY: u64 = u64::MAX;
const TICK: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);

macro_rules! number {
    ($($field:ident).+, $min:expr, $max:expr) => {{
        const SHAPE: Shape = Shape::Number { min: $min, max: $max };
        Field {
            shape: SHAPE,
            read: |config| config.$($field).+.to_string(),
            write: |config, text| {
                let number = SHAPE.number(text)?;
                config.$($field).+ = number.try_into().map_err(|_| format!("too large: give {SHAPE}"))?;
                Ok(())
            },
        }
    }};
}

macro_rules! bytes {
    ($($field:ident).+, $min:expr, $max:expr) => {{
        const SHAPE: Shape = Shape::Bytes { min: $min, max: $max };
        Field {
            shape: SHAPE,
            read: |config| show_bytes(config.$($field).+ as u64),
            write: |config, text| {
                let bytes = SHAPE.bytes(text)?;
                config.$($field).+ = bytes.try_into().map_err(|_| format!("too many: give {SHAPE}"))?;
                Ok(())
            },
        }
    }};
}

macro_rules! time {
    ($($field:ident).+, $min:expr) => {{
        const SHAPE: Shape = Shape::Time { min: $min };
        Field {
            shape: SHAPE,
            read: |config| show_time(config.$($field).+),
            write: |config, text| {
                config.$($field).+ = SHAPE.time(text)?;
                Ok(())
            },
        }
    }};
}

macro_rules! path {
    ($($field:ident).+) => {
        Field {
            shape: Shape::Path,
            read: |config| config.$($field).+.display().to_string(),
            write: |config, text| {
                config.$($field).+ = PathBuf::from(Shape::Text.text(text)?);
                Ok(())
            },
        }
    };
}

/// The name of a preset.
pub(crate) const PRESETS: [(&str, Preset); 3] =
    [("production", Preset::Production), ("development", Preset::Development), ("testing", Preset::Testing)];
const LOG_FORMATS: Shape = Shape::Word(&["text", "json"]);
const FLAG: Shape = Shape::Flag;
const CPUS: Shape = Shape::List("the number of a CPU");
const PINNING: Shape = Shape::Other("auto, none, or a list of CPUs such as 1, 2, 3");
const LISTEN: Shape = Shape::Other("none, or an address of loopback with its port, such as 127.0.0.1:9464");
const PLACED: Shape = Shape::List("GROUP=SHARD, such as 7=3");
const NODES: Shape = Shape::List("the number of a node");
const PRIORITIES: Shape = Shape::List("NODE=PRIORITY, such as 1=10");
const RETENTION: Shape = Shape::List("GROUP=TIME, GROUP=BYTES or GROUP=TIME+BYTES, such as 7=30d+100GiB");
const QUIET: Shape = Shape::TimeOrNever { min: TICK };
const SPREAD: Shape = Shape::TimeOrNever { min: TICK };
const GROUPS: Shape = Shape::Number { min: 0, max: 1 << 20 };
const LEASE_DRIFT: Shape = Shape::Number { min: 0, max: 500_000 };
const NODE: Shape = Shape::Number { min: 1, max: ANY };
const ELECTION: Shape = Shape::Other("two numbers of ticks, the least and the most, such as 12-18");

/// All settings, in the order in which they are shown.
pub(crate) const SETTINGS: &[Setting] = &[
    Setting {
        key: "node.id",
        meaning: "Number of this node, of no other node of the cluster, past or present.",
        cost: "",
        hazard: "A number that another node had, with another data folder, is refused by the others.",
        field: Field {
            shape: NODE,
            read: |config| config.engine.node.to_string(),
            write: |config, text| {
                config.engine.node = NodeId(NODE.number(text)?);
                Ok(())
            },
        },
    },
    Setting {
        key: "node.cluster",
        meaning: "Name of the cluster. A data folder belongs to one cluster for good.",
        cost: "",
        hazard: "",
        field: Field {
            shape: Shape::Text,
            read: |config| config.cluster.clone(),
            write: |config, text| {
                config.cluster = Shape::Text.text(text)?;
                config.engine.cluster = cluster_id(&config.cluster);
                Ok(())
            },
        },
    },
    Setting {
        key: "node.cluster_file",
        meaning: "File that says which nodes and clients belong to the cluster. Read at the start, and at SIGHUP, when nodes that are new are made known.",
        cost: "",
        hazard: "",
        field: path!(cluster_file),
    },
    Setting {
        key: "node.data_dir",
        meaning: "Folder for everything durable; created at the first start.",
        cost: "",
        hazard: "On tmpfs nothing survives the machine.",
        field: path!(engine.data_dir),
    },
    Setting {
        key: "node.key_file",
        meaning: "File with this node's secret key; `key` in the data folder unless said otherwise.",
        cost: "",
        hazard: "Who has it is this node.",
        field: Field {
            shape: Shape::Path,
            read: |config| config.engine.key_file().display().to_string(),
            write: |config, text| {
                config.engine.key_file = Some(PathBuf::from(Shape::Text.text(text)?));
                Ok(())
            },
        },
    },
    Setting {
        key: "node.bind",
        meaning: "UDP address of this node. 0.0.0.0 listens everywhere.",
        cost: "",
        hazard: "",
        field: Field {
            shape: Shape::Address,
            read: |config| config.engine.bind.to_string(),
            write: |config, text| {
                config.engine.bind = Shape::Address.address(text)?;
                Ok(())
            },
        },
    },
    Setting {
        key: "node.log",
        meaning: "Which events are logged: a level, or directives such as iroh_raft=debug,warn.",
        cost: "debug and trace cost CPU time with every request.",
        hazard: "",
        field: Field {
            shape: Shape::Text,
            read: |config| config.log_filter.clone(),
            write: |config, text| {
                let filter = Shape::Text.text(text)?;
                tracing_subscriber::EnvFilter::try_new(&filter)
                    .map_err(|error| format!("{error}: give a level such as info, or directives"))?;
                config.log_filter = filter;
                Ok(())
            },
        },
    },
    Setting {
        key: "node.log_format",
        meaning: "How events are written to standard error: lines for people, or an object a line.",
        cost: "",
        hazard: "",
        field: Field {
            shape: LOG_FORMATS,
            read: |config| config.log_format.to_owned(),
            write: |config, text| {
                config.log_format = LOG_FORMATS.word(text)?;
                Ok(())
            },
        },
    },
    Setting {
        key: "node.stop_deadline",
        meaning: "How long the node may take to hand over, write and close after SIGTERM.",
        cost: "",
        hazard: "A supervisor that kills earlier costs a recovery, and no data.",
        field: time!(stop_deadline, SECOND),
    },
    Setting {
        key: "metrics.listen",
        meaning: "Address of loopback where GET /metrics answers with the page for Prometheus and GET /health with how the node is; none: nobody listens. In a program that was built with `--features metrics-page` only.",
        cost: "Each look asks the shards how their groups stand, once a second at most.",
        hazard: "Every user of the machine can read it: names of no records, but numbers of groups and nodes.",
        field: Field {
            shape: LISTEN,
            read: |config| config.metrics_listen.map_or_else(|| "none".to_owned(), |at| at.to_string()),
            write: |config, text| {
                config.metrics_listen = parse_listen(text, cfg!(feature = "metrics-page"))?;
                Ok(())
            },
        },
    },
    Setting {
        key: "groups.count",
        meaning: "Groups 1 to this number exist from the start, on all nodes that the cluster begins with. 0 for a node that comes in later.",
        cost: "",
        hazard: "A node that comes in later with another number than 0 begins these groups once more, by itself.",
        field: Field {
            shape: GROUPS,
            read: |config| config.engine.groups.len().to_string(),
            write: |config, text| {
                config.engine.groups = (1..=GROUPS.number(text)?).map(GroupId).collect();
                Ok(())
            },
        },
    },
    Setting {
        key: "groups.voters",
        meaning: "Nodes that vote in groups that are new; none: all of them. The same on all nodes.",
        cost: "Each voter more is another copy, and every second one a larger quorum.",
        hazard: "",
        field: Field {
            shape: NODES,
            read: |config| list(&config.engine.voters),
            write: |config, text| {
                let voters: Result<_, _> = items(text).map(|item| NODE.number(item).map(NodeId)).collect();
                config.engine.voters = voters?;
                Ok(())
            },
        },
    },
    Setting {
        key: "groups.retention",
        meaning: "How long groups keep their records; for ever where nothing is said. The same on all nodes.",
        cost: "",
        hazard: "Records that are let go of are gone. A leader whose clock is ahead lets go early.",
        field: Field {
            shape: RETENTION,
            read: |config| list(config.engine.retention.iter().map(show_retention)),
            write: |config, text| {
                config.engine.retention = items(text).map(parse_retention).collect::<Result<_, _>>()?;
                Ok(())
            },
        },
    },
    Setting {
        key: "groups.record_bytes_max",
        meaning: "Largest record.",
        cost: "Higher: longer turns for the other groups.",
        hazard: "",
        field: bytes!(engine.record_bytes_max, 1, 16 << 20),
    },
    Setting {
        key: "shards.count",
        meaning: "Shards of this node: executors, writers and journals. May change with a restart.",
        cost: "Higher: more cores at work, more memory, an fsync for each.",
        hazard: "After a change the node first writes what changes its shard anew: time and free space.",
        field: number!(engine.shards, 1, 1024),
    },
    Setting {
        key: "shards.pinning",
        meaning: "Where shards run: auto is shard i on the i-th CPU of the process.",
        cost: "Pinned shards keep their caches; on shared CPUs they wait for the others.",
        hazard: "",
        field: Field {
            shape: PINNING,
            read: |config| match &config.engine.pinning {
                Pinning::Auto => "auto".to_owned(),
                Pinning::Unpinned => "none".to_owned(),
                Pinning::Cpus(cpus) => list(cpus),
            },
            write: |config, text| {
                config.engine.pinning = match text {
                    "auto" => Pinning::Auto,
                    "none" => Pinning::Unpinned,
                    text => Pinning::Cpus(parse_cpus(text, PINNING)?),
                };
                Ok(())
            },
        },
    },
    Setting {
        key: "shards.placed",
        meaning: "Groups that are on another shard than the one of their number.",
        cost: "",
        hazard: "After a change the node first writes what changes its shard anew.",
        field: Field {
            shape: PLACED,
            read: |config| list(config.engine.placed.iter().map(|(group, shard)| format!("{group}={shard}"))),
            write: |config, text| {
                let pairs = items(text).map(|item| pair(item, PLACED));
                let placed = pairs.map(|pair| {
                    let (group, shard) = pair?;
                    let shard =
                        u16::try_from(shard).map_err(|_| format!("{shard} is no shard: give {PLACED}"))?;
                    Ok((GroupId(group), ShardId(shard)))
                });
                config.engine.placed = placed.collect::<Result<_, String>>()?;
                Ok(())
            },
        },
    },
    Setting {
        key: "shards.ring_items",
        meaning: "Items in a ring between the bridge and a shard.",
        cost: "Higher: more memory, and longer waits before a client is told Busy.",
        hazard: "",
        field: number!(engine.ring_items_max, 1, 1 << 24),
    },
    Setting {
        key: "shards.ring_bytes",
        meaning: "Bytes of frames in such a ring.",
        cost: "Higher: as above.",
        hazard: "",
        field: bytes!(engine.ring_bytes_max, 1, ANY),
    },
    Setting {
        key: "shards.apply_time",
        meaning: "Time of a turn after which no further commands of state machines are begun.",
        cost: "Higher: fewer turns; lower: appends wait less for state machines.",
        hazard: "",
        field: time!(engine.apply_budget.time, Duration::from_nanos(1)),
    },
    Setting {
        key: "shards.window_bytes",
        meaning: "Bytes of entries that a shard keeps in memory for followers and readers.",
        cost: "Lower: those who lag go to the disk sooner.",
        hazard: "",
        field: bytes!(engine.core.window_bytes_max, 4096, ANY),
    },
    Setting {
        key: "bridge.threads",
        meaning: "Threads that encrypt, send and receive.",
        cost: "Higher, where one core is not enough for that: threads wake each other.",
        hazard: "",
        field: number!(engine.bridge_threads, 1, 64),
    },
    Setting {
        key: "bridge.cpus",
        meaning: "CPUs of the bridge's threads, in turn; none: the scheduler decides.",
        cost: "",
        hazard: "",
        field: Field {
            shape: CPUS,
            read: |config| list(&config.engine.bridge_cpus),
            write: |config, text| {
                config.engine.bridge_cpus =
                    if text.trim().is_empty() { Vec::new() } else { parse_cpus(text, CPUS)? };
                Ok(())
            },
        },
    },
    Setting {
        key: "bridge.idle_timeout",
        meaning: "A connection without a sign of life for this long is gone.",
        cost: "Lower: failures are seen sooner, and slow machines are taken for dead.",
        hazard: "",
        field: time!(engine.limits.idle_timeout, Duration::from_millis(100)),
    },
    Setting {
        key: "bridge.stream_window",
        meaning: "Bytes of a lane, or of a client's stream, on their way to this node ahead of its reader.",
        cost: "Higher: more throughput over long ways; lower: votes and heartbeats wait less behind full lanes.",
        hazard: "",
        field: bytes!(engine.limits.stream_window_bytes, 65_536, 1 << 20),
    },
    Setting {
        key: "bridge.lane_bytes",
        meaning: "Bytes that wait for one lane to one peer; beyond that the newest frames are dropped, and come again.",
        cost: "Higher: more memory where a peer is slow.",
        hazard: "",
        field: bytes!(engine.limits.lane_bytes_max, 1 << 20, ANY),
    },
    Setting {
        key: "clients.connections",
        meaning: "Clients connected at a time; more are refused as busy.",
        cost: "",
        hazard: "",
        field: number!(engine.limits.client_connections_max, 1, 1 << 20),
    },
    Setting {
        key: "clients.requests",
        meaning: "Open requests of one client; more are answered Busy.",
        cost: "",
        hazard: "",
        field: number!(engine.limits.client_requests_max, 1, 1 << 24),
    },
    Setting {
        key: "clients.request_bytes",
        meaning: "Bytes of one client's requests that are held at a time; more are answered Busy.",
        cost: "Higher: more memory for each client.",
        hazard: "",
        field: bytes!(engine.limits.client_request_bytes_max, 1 << 20, ANY),
    },
    Setting {
        key: "clients.reply_bytes",
        meaning: "Bytes of answers that wait for one client to read them; a client with more is cut off.",
        cost: "Higher: more memory for each client.",
        hazard: "",
        field: bytes!(engine.limits.client_reply_bytes_max, 1 << 20, ANY),
    },
    Setting {
        key: "raft.tick",
        meaning: "Length of a tick. The same on all nodes.",
        cost: "Lower: faster elections, more wake-ups.",
        hazard: "",
        field: time!(engine.core.tick, TICK),
    },
    Setting {
        key: "raft.heartbeat_ticks",
        meaning: "Ticks between a leader's heartbeats.",
        cost: "",
        hazard: "",
        field: number!(engine.core.heartbeat_ticks, 1, 1000),
    },
    Setting {
        key: "raft.lease_ticks",
        meaning: "Ticks after a leader was heard for which votes for others are refused.",
        cost: "",
        hazard: "",
        field: number!(engine.core.lease_ticks, 1, 10_000),
    },
    Setting {
        key: "raft.election_ticks",
        meaning: "Least and most ticks without a leader before a replica campaigns; both above raft.lease_ticks.",
        cost: "Lower: a dead leader is replaced sooner; slow machines hold elections without need.",
        hazard: "",
        field: Field {
            shape: ELECTION,
            read: |config| {
                format!("{}-{}", config.engine.core.election_ticks.0, config.engine.core.election_ticks.1)
            },
            write: |config, text| {
                let ticks =
                    text.split_once('-').map(|(least, most)| (least.trim().parse(), most.trim().parse()));
                let Some((Ok(least), Ok(most))) = ticks else {
                    return Err(format!("not two numbers: give {ELECTION}"));
                };
                config.engine.core.election_ticks = (least, most);
                Ok(())
            },
        },
    },
    Setting {
        key: "raft.quiet_after",
        meaning: "Time with nothing to do after which a group goes quiet: no ticks, no heartbeats.",
        cost: "Lower: less work for groups in little use.",
        hazard: "",
        field: Field {
            shape: QUIET,
            read: |config| show_time_or_never(config.engine.core.quiet_after),
            write: |config, text| {
                config.engine.core.quiet_after = QUIET.time_or_never(text)?;
                Ok(())
            },
        },
    },
    Setting {
        key: "raft.pending_bytes",
        meaning: "Bytes of proposals of a group that wait for a quorum; more is refused as busy.",
        cost: "Higher: longer answers under overload.",
        hazard: "",
        field: bytes!(engine.core.pending_bytes_max, 4096, ANY),
    },
    Setting {
        key: "raft.shard_pending_bytes",
        meaning: "The same over all groups of a shard.",
        cost: "Higher: more memory under overload.",
        hazard: "",
        field: bytes!(engine.core.shard_pending_bytes_max, 4096, ANY),
    },
    Setting {
        key: "raft.lease_drift_ppm",
        meaning: "Reads by the leader's lease, trusting clocks to run true within so many millionths; 0: no such reads.",
        cost: "They cost no round.",
        hazard: "A machine that is suspended or moved while it runs may answer with what is no longer so.",
        field: Field {
            shape: LEASE_DRIFT,
            read: |config| config.engine.core.lease_reads.map_or(0, |lease| lease.drift_ppm_max).to_string(),
            write: |config, text| {
                let drift = LEASE_DRIFT.number(text)?;
                // It fits: the shape says so.
                let lease = (drift > 0).then_some(LeaseReads { drift_ppm_max: drift as u32 });
                config.engine.core.lease_reads = lease;
                Ok(())
            },
        },
    },
    Setting {
        key: "raft.spread_interval",
        meaning: "Time from a change of leaders until they are spread over the nodes again.",
        cost: "Lower: sooner even, more moves under changing faults.",
        hazard: "",
        field: Field {
            shape: SPREAD,
            read: |config| show_time_or_never(config.engine.core.spread.map(|spread| spread.interval)),
            write: |config, text| {
                let band = config.engine.core.spread.map_or(2, |spread| spread.band);
                let interval = SPREAD.time_or_never(text)?;
                config.engine.core.spread = interval.map(|interval| SpreadConfig { interval, band });
                Ok(())
            },
        },
    },
    Setting {
        key: "raft.priorities",
        meaning: "How much leaders are wanted on a node, 0 where nothing is said. The same on all nodes.",
        cost: "",
        hazard: "",
        field: Field {
            shape: PRIORITIES,
            read: |config| {
                list(
                    config.engine.core.priorities.iter().map(|(node, priority)| format!("{node}={priority}")),
                )
            },
            write: |config, text| {
                let pairs = items(text).map(|item| {
                    let (node, priority) = pair(item, PRIORITIES)?;
                    let priority =
                        u32::try_from(priority).map_err(|_| format!("too large: give {PRIORITIES}"))?;
                    Ok((NodeId(node), priority))
                });
                config.engine.core.priorities = pairs.collect::<Result<_, String>>()?;
                Ok(())
            },
        },
    },
    Setting {
        key: "storage.backend",
        meaning: "How files are written: through the page cache, past it, or as a calibration at the first start, or by `doctor --bench`, finds best.",
        cost: "The calibration takes about a second, once.",
        hazard: "",
        field: Field {
            shape: Shape::Word(&["auto", "buffered", "direct"]),
            read: |config| config.engine.backend.to_string(),
            write: |config, text| {
                let backend: Result<BackendChoice, _> = text.parse();
                config.engine.backend = backend.map_err(|error| error.to_string())?;
                Ok(())
            },
        },
    },
    Setting {
        key: "storage.journal_bytes",
        meaning: "Bytes of a shard's journal that are not yet in its log file; the writer waits there.",
        cost: "Higher: longer bursts at full speed, a longer recovery.",
        hazard: "",
        field: bytes!(engine.storage.journal_bytes_max, 1 << 20, ANY),
    },
    Setting {
        key: "storage.move_bytes",
        meaning: "Bytes moved to the log file at a time, for up to 128 groups.",
        cost: "Higher: fewer commits and a faster start, more memory and longer stretches of work.",
        hazard: "",
        field: bytes!(engine.storage.move_bytes, 65_536, ANY),
    },
    Setting {
        key: "storage.journal_cache_bytes",
        meaning: "Memory for the cache of a shard's journal.",
        cost: "With less than the journal's bound, moves read from the disk.",
        hazard: "",
        field: bytes!(engine.storage.journal_cache_bytes, 1 << 20, ANY),
    },
    Setting {
        key: "storage.log_cache_bytes",
        meaning: "Memory for the cache of a shard's log file.",
        cost: "Higher: old entries are read from memory more often.",
        hazard: "",
        field: bytes!(engine.storage.log_cache_bytes, 1 << 20, ANY),
    },
    Setting {
        key: "storage.free_bytes_min",
        meaning: "Free bytes of the disk below which new work is refused.",
        cost: "Higher: refused earlier.",
        hazard: "Lower than two journals: what was taken on may find no room.",
        field: bytes!(engine.storage.free_bytes_min, 0, ANY),
    },
    Setting {
        key: "storage.flush_bytes",
        meaning: "Bytes that a shard has on their way to its disk, from which on it takes no more.",
        cost: "Higher: more memory where this disk is slower than those of a quorum.",
        hazard: "",
        field: bytes!(engine.flush_bytes_max, 1, ANY),
    },
    Setting {
        key: "storage.flush_stuck_after",
        meaning: "Time that a flush may take before the disk counts as hung, and its leaders hand over.",
        cost: "Lower: a slow disk costs leaderships.",
        hazard: "",
        field: time!(engine.core.flush_stuck_after, TICK),
    },
    Setting {
        key: "storage.scrub_period",
        meaning: "Everything stored is read and verified once in this time.",
        cost: "Lower: damage is found sooner, and the disk has more to read.",
        hazard: "",
        field: time!(engine.scrub_period, SECOND),
    },
    Setting {
        key: "snapshots.entries",
        meaning: "Applied entries since a group's last snapshot after which it takes one.",
        cost: "Lower: shorter logs and starts, more writing.",
        hazard: "",
        field: number!(engine.core.snapshots.entries, 1, ANY),
    },
    Setting {
        key: "snapshots.bytes",
        meaning: "Bytes of applied entries since the last one after which it takes one.",
        cost: "Lower: as above.",
        hazard: "",
        field: bytes!(engine.core.snapshots.bytes, 1, ANY),
    },
    Setting {
        key: "snapshots.lag_entries",
        meaning: "Entries before the last snapshot that are kept for followers that lag.",
        cost: "Higher: longer logs, fewer transfers.",
        hazard: "",
        field: number!(engine.core.snapshots.lag_entries_max, 0, ANY),
    },
    Setting {
        key: "snapshots.send_bytes_per_second",
        meaning: "Bytes of snapshots sent in a second, over all transfers of a shard.",
        cost: "Higher: sooner there, and more in the way of appends.",
        hazard: "",
        field: bytes!(engine.core.snapshots.send_bytes_per_second, 1, ANY),
    },
    Setting {
        key: "memory.tunes_allocator",
        meaning: "Whether the node has the allocator give memory back when all its shards rest.",
        cost: "false: the node may keep some hundred MiB more than it needs.",
        hazard: "",
        field: Field {
            shape: FLAG,
            read: |config| config.engine.tunes_allocator.to_string(),
            write: |config, text| {
                config.engine.tunes_allocator = FLAG.flag(text)?;
                Ok(())
            },
        },
    },
];

impl NodeConfig {
    /// What a preset says, for a node that is not told anything else.
    pub(crate) fn new(preset: Preset) -> NodeConfig {
        let cluster = "default".to_owned();
        NodeConfig {
            engine: EngineConfig::new(preset, cluster_id(&cluster), NodeId(0), "data"),
            cluster,
            cluster_file: PathBuf::from("cluster"),
            log_filter: "info".to_owned(),
            log_format: "text",
            stop_deadline: Duration::from_secs(10),
            metrics_listen: None,
        }
    }
}

/// The setting of a name.
pub(crate) fn find(key: &str) -> Option<&'static Setting> {
    SETTINGS.iter().find(|setting| setting.key == key)
}

/// The setting whose name is most like one that there is not.
pub(crate) fn nearest(key: &str) -> &'static str {
    let last = |key: &str| key.rsplit('.').next().unwrap_or_default().to_owned();
    let distance = |setting: &&Setting| {
        let whole = strsim::damerau_levenshtein(setting.key, key);
        let name = strsim::damerau_levenshtein(&last(setting.key), &last(key));
        // The right name in the wrong section is as near as a slip of the pen.
        (whole.min(name + 1), whole)
    };
    SETTINGS.iter().min_by_key(distance).map_or("node.id", |setting| setting.key)
}

/// The name of a setting in the environment.
pub(crate) fn variable(key: &str) -> String {
    format!("IROH_RAFT_{}", key.replace('.', "_").to_uppercase())
}

/// Where the pages are. `has_page` is whether this program was built with them.
fn parse_listen(text: &str, has_page: bool) -> Result<Option<SocketAddr>, String> {
    if text == "none" {
        return Ok(None);
    }
    let address: SocketAddr = text.parse().map_err(|_| format!("not an address: give {LISTEN}"))?;
    if !address.ip().is_loopback() {
        return Err(format!(
            "not on loopback, and the page asks nobody who it is: give {LISTEN}, and put a proxy that asks before it"
        ));
    }
    if !has_page {
        return Err(
            "this program was built without the page: give none, or build it with `cargo build --release \
                    -p iroh-raft-node --features metrics-page`"
                .to_owned(),
        );
    }
    Ok(Some(address))
}

fn parse_cpus(text: &str, shape: Shape) -> Result<Vec<usize>, String> {
    let cpus: Result<Vec<usize>, _> = items(text).map(str::parse).collect();
    match cpus {
        Ok(cpus) if !cpus.is_empty() => Ok(cpus),
        _ => Err(format!("not known: give {shape}")),
    }
}

fn pair(item: &str, shape: Shape) -> Result<(u64, u64), String> {
    let numbers = item.split_once('=').map(|(left, right)| (left.trim().parse(), right.trim().parse()));
    match numbers {
        Some((Ok(left), Ok(right))) if left > 0 => Ok((left, right)),
        _ => Err(format!("{item:?} is none: give {shape}")),
    }
}

fn parse_retention(item: &str) -> Result<(GroupId, Retention), String> {
    let (group, kept) = item.split_once('=').ok_or_else(|| format!("{item:?} is none: give {RETENTION}"))?;
    let group = NODE.number(group.trim()).map_err(|_| format!("{group:?} is no group: give {RETENTION}"))?;
    let (bytes, age) = (Shape::Bytes { min: 1, max: ANY }, Shape::Time { min: SECOND });
    let mut retention = Retention::default();
    for bound in kept.split('+').map(str::trim) {
        if let Ok(bytes) = bytes.bytes(bound) {
            retention.bytes_max = Some(bytes);
        } else if let Ok(age) = age.time(bound) {
            retention.age_max = Some(age);
        } else {
            return Err(format!("{bound:?} is neither a time from 1s nor bytes: give {RETENTION}"));
        }
    }
    Ok((GroupId(group), retention))
}

fn show_retention((group, retention): &(GroupId, Retention)) -> String {
    let bounds = [retention.age_max.map(show_time), retention.bytes_max.map(show_bytes)];
    format!("{group}={}", bounds.into_iter().flatten().collect::<Vec<_>>().join("+"))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_default_is_read_again_and_stays() {
        for (name, preset) in PRESETS {
            let config = NodeConfig::new(preset);
            for Setting { key, field, .. } in SETTINGS.iter().filter(|setting| setting.key != "node.id") {
                let text = (field.read)(&config);
                let mut again = config.clone();
                (field.write)(&mut again, &text)
                    .unwrap_or_else(|problem| panic!("{name}: {key} = {text:?}: {problem}"));
                assert_eq!((field.read)(&again), text, "{name}: {key}");
            }
        }
    }

    #[test]
    fn names_are_unique_and_found_by_slips_of_the_pen() {
        let keys: BTreeSet<_> = SETTINGS.iter().map(|setting| setting.key).collect();
        assert_eq!(keys.len(), SETTINGS.len());
        for (slip, meant) in [
            ("storage.journal_byte", "storage.journal_bytes"),
            ("journal_bytes", "storage.journal_bytes"),
            ("raft.data_dir", "node.data_dir"),
            ("shard.count", "shards.count"),
        ] {
            assert_eq!(nearest(slip), meant, "{slip}");
        }
    }

    #[test]
    fn the_page_is_on_loopback_and_refused_where_there_is_none() {
        for address in ["127.0.0.1:9464", "[::1]:0", "127.9.9.9:1"] {
            assert_eq!(parse_listen(address, true), Ok(Some(address.parse().unwrap())));
            let refused = parse_listen(address, false).unwrap_err();
            assert!(refused.contains("--features metrics-page"), "{refused}");
        }
        for (address, says) in
            [("0.0.0.0:9464", "loopback"), ("10.0.0.1:1", "a proxy"), ("9464", "127.0.0.1:9464")]
        {
            let refused = parse_listen(address, true).unwrap_err();
            assert!(refused.contains(says), "{address}: {refused}");
        }
        assert_eq!((parse_listen("none", true), parse_listen("none", false)), (Ok(None), Ok(None)));
    }

    #[test]
    fn retention_and_pairs_are_read_and_shown() {
        let mut config = NodeConfig::new(Preset::Production);
        for (key, text) in [
            ("groups.retention", "7=30d+100GiB, 8=1h, 9=4096"),
            ("shards.placed", "7=0, 8=3"),
            ("raft.priorities", "1=10, 2=5"),
            ("raft.election_ticks", "20-30"),
            ("shards.pinning", "1, 2"),
            ("raft.quiet_after", "never"),
        ] {
            let field = &find(key).unwrap().field;
            (field.write)(&mut config, text).unwrap();
            let shown = (field.read)(&config);
            assert_eq!(
                shown,
                if text.ends_with("4096") { text.replace("4096", "4KiB") } else { text.to_owned() }
            );
        }
    }
}

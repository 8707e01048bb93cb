//! Every metric: its name, what it means, where it comes from. The one source of the page and of its reference, docs/metrics.md.
//!
//! The number of series does not depend on the number of groups: what is said of groups is said of all of a node together.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use iroh_raft::ThreadCost;
use iroh_raft::net::bridge::BridgeStats;
use iroh_raft::net::ring::RingStats;
use iroh_raft::net::wire::Lane;
use iroh_raft::stats::ShardStats;

use super::health::Part;
use super::sample::{Groups, Sample};

/// What a metric is to Prometheus.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    /// Only grows, from the start of the process.
    Counter,
    /// A level.
    Gauge,
    /// Counts of values up to bounds, since the start of the process.
    Histogram,
}

/// A metric.
#[derive(Debug)]
pub(super) struct Metric {
    /// With its unit last, but for `_total`.
    pub(super) name: &'static str,
    pub(super) kind: Kind,
    /// What is counted.
    pub(super) unit: &'static str,
    pub(super) meaning: &'static str,
    pub(super) source: Source,
}

/// Where a metric comes from, and with which labels.
#[derive(Clone, Copy, Debug)]
pub(super) enum Source {
    /// Recorded through the crate `metrics`, with these labels.
    Recorded(&'static [&'static str]),
    /// Who this is.
    About,
    /// One number, if it is known.
    One(fn(&Sample) -> Option<f64>),
    /// A number for each value of a label.
    Each(&'static str, fn(&Sample) -> Vec<(String, f64)>),
    /// A number for each shard.
    Shard(fn(&ShardStats) -> f64),
    /// A number for each ring of each shard.
    Ring(fn(&RingStats) -> f64),
    /// How long items were in each ring of each shard.
    RingWaits,
}

impl Source {
    fn labels(self) -> Vec<&'static str> {
        match self {
            Source::Recorded(labels) => labels.to_vec(),
            Source::About => vec!["node", "cluster", "version"],
            Source::One(_) => Vec::new(),
            Source::Each(label, _) => vec![label],
            Source::Shard(_) => vec!["shard"],
            Source::Ring(_) | Source::RingWaits => vec!["ring", "shard"],
        }
    }
}

/// A row: name, unit, meaning, source.
type Row = (&'static str, &'static str, &'static str, Source);

const fn counter((name, unit, meaning, source): Row) -> Metric {
    Metric { name, kind: Kind::Counter, unit, meaning, source }
}

const fn gauge((name, unit, meaning, source): Row) -> Metric {
    Metric { name, kind: Kind::Gauge, unit, meaning, source }
}

const fn histogram((name, unit, meaning, source): Row) -> Metric {
    Metric { name, kind: Kind::Histogram, unit, meaning, source }
}

/// A number of all groups together, while the shards tell.
macro_rules! groups {
    ($read:expr) => {
        Source::One(|sample| {
            let read: fn(&Groups) -> u64 = $read;
            sample.asked.groups.as_ref().ok().map(|groups| read(groups) as f64)
        })
    };
}

/// A counter of each shard.
macro_rules! shard {
    ($field:ident) => {
        Source::Shard(|shard| shard.$field as f64)
    };
}

/// A number of the bridge.
macro_rules! bridge {
    ($field:ident) => {
        Source::One(|sample| Some(sample.stats.bridge.$field as f64))
    };
}

/// A number of the bridge for each lane.
macro_rules! lanes {
    ($field:ident) => {
        Source::Each("lane", |sample| {
            let lanes = Lane::ALL.iter().zip(sample.stats.bridge.$field);
            lanes.map(|(lane, count)| (format!("{lane:?}").to_lowercase(), count as f64)).collect()
        })
    };
}

/// A number of the threads of each name together, where the system tells.
macro_rules! threads {
    ($read:expr) => {
        Source::Each("thread", |sample| {
            let read: fn(&ThreadCost) -> Option<f64> = $read;
            let mut sums = BTreeMap::<&str, f64>::new();
            for thread in &sample.threads {
                if let Some(cost) = read(thread) {
                    *sums.entry(&thread.name).or_default() += cost;
                }
            }
            sums.into_iter().map(|(name, cost)| (name.to_owned(), cost)).collect()
        })
    };
}

const STORAGE: Source = Source::Recorded(&["shard"]);
const STORAGE_FILE: Source = Source::Recorded(&["shard", "file"]);

/// All metrics, in the order in which they are shown.
pub(super) const METRICS: &[Metric] = &[
    gauge(("node_info", "1", "Who this is.", Source::About)),
    gauge((
        "node_is_healthy",
        "0 or 1",
        "Whether this part of the node is well, as /health says.",
        Source::Each("part", |sample| {
            let is_ok = |part| f64::from(u8::from(sample.health.is_part_ok(part)));
            Part::ALL.iter().map(|part| (part.name().to_owned(), is_ok(*part))).collect()
        }),
    )),
    gauge((
        "node_is_draining",
        "0 or 1",
        "Whether the node was told to stop.",
        Source::One(|sample| Some(f64::from(u8::from(sample.is_draining)))),
    )),
    gauge((
        "node_uptime_seconds",
        "s",
        "Time since the node came up.",
        Source::One(|sample| Some(sample.uptime.as_secs_f64())),
    )),
    // Requests and records.
    counter((
        "app_requests_total",
        "requests",
        "Requests taken from clients and from this process: appends, reads and all else.",
        shard!(requests),
    )),
    counter(("app_requests_busy_total", "requests", "Requests that a shard refused as busy.", shard!(busy))),
    counter((
        "raft_proposals_total",
        "records",
        "Records appended here as leader and acknowledged: durable on a quorum.",
        shard!(records_acked),
    )),
    gauge((
        "raft_pending_bytes",
        "bytes",
        "Proposals that wait or are not committed.",
        shard!(pending_bytes),
    )),
    gauge((
        "raft_pending_bytes_peak",
        "bytes",
        "The most that raft_pending_bytes has been.",
        shard!(pending_bytes_peak),
    )),
    gauge(("raft_unflushed_bytes", "bytes", "Entries on their way to the disk.", shard!(unflushed_bytes))),
    gauge((
        "raft_unflushed_bytes_peak",
        "bytes",
        "The most that raft_unflushed_bytes has been.",
        shard!(unflushed_bytes_peak),
    )),
    // Groups.
    gauge(("raft_groups", "groups", "Groups with a replica here.", groups!(|groups| groups.count))),
    gauge(("raft_groups_led", "groups", "Groups that this node leads.", groups!(|groups| groups.led))),
    gauge((
        "raft_groups_quiet",
        "groups",
        "Groups with nothing to do: no ticks, no heartbeats.",
        groups!(|groups| groups.quiet),
    )),
    gauge((
        "raft_groups_leaderless",
        "groups",
        "Groups without a leader that is known here.",
        groups!(|groups| groups.leaderless.count),
    )),
    gauge((
        "raft_groups_quarantined",
        "groups",
        "Groups out of service after a broken invariant.",
        groups!(|groups| groups.quarantined.count),
    )),
    gauge((
        "raft_groups_under_repair",
        "groups",
        "Groups whose replica here had lost entries and does not vote until they are back.",
        groups!(|groups| groups.under_repair.count),
    )),
    gauge(("raft_current_term", "term", "The highest term of a group.", groups!(|groups| groups.term_max))),
    gauge((
        "raft_uncommitted_entries",
        "entries",
        "Entries of all groups that are in the log here and not known to be committed.",
        groups!(|groups| groups.uncommitted_entries),
    )),
    gauge((
        "raft_unapplied_entries",
        "entries",
        "Entries of all groups that are committed and not applied here.",
        groups!(|groups| groups.unapplied_entries),
    )),
    gauge((
        "raft_kept_records",
        "records",
        "Committed records of all groups that are kept.",
        groups!(|groups| groups.kept_records),
    )),
    counter((
        "raft_leadership_changes_total",
        "times",
        "Times that a replica here became leader; over all nodes, the elections that somebody won.",
        shard!(leaderships_gained),
    )),
    counter((
        "raft_leaderships_given_total",
        "times",
        "Leaderships handed over or given up on request.",
        shard!(leaderships_given),
    )),
    counter((
        "raft_groups_quarantined_total",
        "times",
        "Times that a group was taken out of service.",
        shard!(groups_quarantined),
    )),
    counter((
        "raft_quorums_recovered_total",
        "times",
        "Groups that lost their quorum and were recovered from the replica here.",
        shard!(quorums_recovered),
    )),
    counter((
        "raft_repairs_begun_total",
        "times",
        "Repairs begun of replicas that had lost entries.",
        shard!(repairs_begun),
    )),
    counter((
        "raft_repairs_done_total",
        "times",
        "Repairs done: the replica has all entries again.",
        shard!(repairs_done),
    )),
    counter((
        "raft_states_differing_total",
        "times",
        "Times that the state of a replica here was found to differ from what the others have.",
        shard!(states_differing),
    )),
    counter((
        "raft_messages_refused_total",
        "messages",
        "Messages of peers that the validator refused.",
        shard!(messages_refused),
    )),
    counter((
        "raft_appends_dropped_total",
        "messages",
        "Messages with entries that were dropped because the disk is behind; their leaders send them again.",
        shard!(appends_dropped),
    )),
    counter((
        "raft_frames_sent_total",
        "frames",
        "Frames for peers that were handed to the bridge.",
        shard!(frames_sent),
    )),
    counter((
        "raft_frames_dropped_total",
        "frames",
        "Frames for peers that found the ring to the bridge full.",
        shard!(frames_dropped),
    )),
    // Snapshots.
    counter((
        "snapshots_taken_total",
        "snapshots",
        "Snapshots taken of state machines here.",
        shard!(snapshots_taken),
    )),
    counter((
        "snapshots_installed_total",
        "snapshots",
        "Snapshots of leaders that were installed.",
        shard!(snapshots_installed),
    )),
    counter((
        "snapshots_given_up_total",
        "times",
        "Transfers of snapshots, either way, that were given up for a while.",
        shard!(snapshots_given_up),
    )),
    counter((
        "snapshots_damaged_total",
        "snapshots",
        "Stored snapshots that were found damaged, and replaced.",
        shard!(snapshots_damaged),
    )),
    counter((
        "snapshots_chunks_sent_total",
        "chunks",
        "Chunks of snapshots handed to the bridge for followers.",
        shard!(snapshot_chunks_sent),
    )),
    counter((
        "snapshots_chunks_received_total",
        "chunks",
        "Chunks of snapshots of leaders handed to the disk.",
        shard!(snapshot_chunks_received),
    )),
    // Shards.
    counter(("shard_turns_total", "turns", "Turns of the executor's loop.", shard!(turns))),
    counter(("shard_sleeps_total", "times", "Times that the executor found nothing to do.", shard!(sleeps))),
    counter(("shard_flushes_total", "flushes", "Commits of the journal, one fsync each.", shard!(flushes))),
    counter((
        "shard_flush_bytes_total",
        "bytes",
        "Blocks written by commits of the journal.",
        shard!(flush_bytes),
    )),
    counter((
        "shard_flush_seconds_total",
        "s",
        "Time spent in commits of the journal.",
        Source::Shard(|shard| shard.flush_us_total as f64 / 1e6),
    )),
    counter((
        "shard_disk_hangs_total",
        "times",
        "Times that a flush took longer than storage.flush_stuck_after.",
        shard!(disk_hangs),
    )),
    // Rings.
    counter((
        "ring_pushed_total",
        "items",
        "Items put into the ring.",
        Source::Ring(|ring| ring.pushed as f64),
    )),
    counter((
        "ring_full_total",
        "items",
        "Items that found the ring full; who wanted to put them in has the rule for that.",
        Source::Ring(|ring| ring.full as f64),
    )),
    gauge(("ring_items", "items", "Items in the ring now.", Source::Ring(|ring| ring.length as f64))),
    gauge(("ring_items_max", "items", "Items in the ring at most.", Source::Ring(|ring| ring.bound as f64))),
    gauge((
        "ring_bytes",
        "bytes",
        "Bytes in the ring now; 0 where they are not weighed.",
        Source::Ring(|ring| ring.bytes as f64),
    )),
    histogram((
        "ring_wait_seconds",
        "s",
        "How long items were in the ring; the sum is right to an eighth.",
        Source::RingWaits,
    )),
    // The network.
    gauge((
        "network_peers_known",
        "nodes",
        "Other nodes that this one knows.",
        Source::One(|sample| Some(sample.peers_known as f64)),
    )),
    gauge((
        "network_peers_connected",
        "nodes",
        "Other nodes that are connected now.",
        bridge!(peers_connected),
    )),
    gauge(("network_clients_connected", "clients", "Clients connected now.", bridge!(clients_connected))),
    counter(("network_peer_connects_total", "connections", "Peer connections made.", bridge!(peer_connects))),
    counter(("network_peer_losses_total", "connections", "Peer connections lost.", bridge!(peer_losses))),
    counter(("network_frames_out_total", "frames", "Peer frames written.", lanes!(frames_out))),
    counter(("network_bytes_out_total", "bytes", "Bytes of peer frames written.", lanes!(bytes_out))),
    counter(("network_frames_in_total", "frames", "Peer frames received and decoded.", lanes!(frames_in))),
    counter(("network_bytes_in_total", "bytes", "Bytes of peer frames received.", lanes!(bytes_in))),
    counter((
        "network_client_frames_in_total",
        "frames",
        "Request frames received and decoded.",
        bridge!(client_frames_in),
    )),
    counter(("network_client_bytes_in_total", "bytes", "Bytes of request frames.", bridge!(client_bytes_in))),
    counter((
        "network_client_frames_out_total",
        "frames",
        "Answer frames written.",
        bridge!(client_frames_out),
    )),
    counter((
        "network_client_bytes_out_total",
        "bytes",
        "Bytes of answer frames.",
        bridge!(client_bytes_out),
    )),
    counter((
        "network_requests_busy_total",
        "requests",
        "Requests that the bridge answered Busy: a full ring, or credit used up.",
        bridge!(requests_busy),
    )),
    counter((
        "network_frames_dropped_total",
        "frames",
        "Frames that were dropped, each once, by the reason.",
        Source::Each("reason", |sample| dropped(&sample.stats.bridge)),
    )),
    counter((
        "network_frames_refused_total",
        "frames",
        "Received bytes that were not a frame; each cost its connection.",
        bridge!(frames_refused),
    )),
    counter((
        "network_connections_refused_total",
        "connections",
        "Connections refused: unknown key, wrong cluster, and so on.",
        bridge!(connections_refused),
    )),
    counter((
        "network_clients_cut_off_total",
        "clients",
        "Clients cut off because they did not read their answers.",
        bridge!(clients_cut_off),
    )),
    // Storage, which counts for itself.
    counter(("storage_flush_count", "flushes", "Commits of the journal.", STORAGE)),
    histogram(("storage_flush_us", "us", "Time of a commit of the journal.", STORAGE)),
    histogram(("storage_flush_records", "records", "Records in a commit of the journal.", STORAGE)),
    histogram(("storage_flush_bytes", "bytes", "Block of a commit of the journal.", STORAGE)),
    histogram(("storage_queue_us", "us", "How long what is to be written waited for the writer.", STORAGE)),
    gauge((
        "storage_journal_bytes",
        "bytes",
        "The journal, as far as it is not moved to the log file.",
        STORAGE,
    )),
    counter(("storage_move_count", "moves", "Commits of the log file.", STORAGE)),
    histogram(("storage_move_us", "us", "Time of a move to the log file.", STORAGE)),
    counter(("storage_move_bytes", "bytes", "Blocks moved to the log file.", STORAGE)),
    gauge(("storage_log_bytes", "bytes", "Blocks in the log file.", STORAGE)),
    counter(("storage_written_bytes", "bytes", "What redb wrote to a file.", STORAGE_FILE)),
    gauge((
        "storage_write_amplification",
        "ratio",
        "Bytes written to both files for each byte of a block flushed.",
        STORAGE,
    )),
    counter(("storage_cache_hit_count", "pages", "Pages found in redb's cache.", STORAGE_FILE)),
    counter(("storage_cache_miss_count", "pages", "Pages read from the file.", STORAGE_FILE)),
    counter(("storage_scrub_bytes", "bytes", "What the scrub verified.", STORAGE)),
    counter(("storage_damage_count", "blocks", "Damaged blocks that the scrub found.", STORAGE)),
    gauge(("storage_recovery_ms", "ms", "Time of the recovery at the start.", STORAGE)),
    counter(("storage_torn_count", "flushes", "Torn flushes that the recovery at the start cut.", STORAGE)),
    // The machine.
    counter((
        "thread_cpu_seconds_total",
        "s",
        "CPU time of a thread, or of all of the same name.",
        threads!(|thread| Some(thread.cpu.as_secs_f64())),
    )),
    counter((
        "thread_sleeps_total",
        "times",
        "Times that a thread gave up its CPU to wait.",
        threads!(|thread| Some(thread.sleeps as f64)),
    )),
    counter((
        "thread_read_calls_total",
        "calls",
        "System calls of the read family.",
        threads!(|thread| thread.read_calls.map(|calls| calls as f64)),
    )),
    counter((
        "thread_write_calls_total",
        "calls",
        "System calls of the write family: of a writer, pieces written; of a shard or a bridge, threads woken.",
        threads!(|thread| thread.write_calls.map(|calls| calls as f64)),
    )),
    gauge((
        "process_resident_memory_bytes",
        "bytes",
        "Memory of the process.",
        Source::One(|sample| Some(sample.asked.machine.resident_bytes? as f64)),
    )),
    gauge((
        "process_open_fds",
        "descriptors",
        "Open file descriptors of the process.",
        Source::One(|sample| Some(sample.asked.machine.open_fds? as f64)),
    )),
    gauge((
        "disk_free_bytes",
        "bytes",
        "Free space of the data folder's disk.",
        Source::One(|sample| Some(sample.asked.machine.disk?.free_bytes as f64)),
    )),
    gauge((
        "disk_free_bytes_min",
        "bytes",
        "Free space below which new work is refused.",
        Source::One(|sample| Some(sample.about.free_bytes_min as f64)),
    )),
    gauge((
        "disk_size_bytes",
        "bytes",
        "Size of the data folder's disk.",
        Source::One(|sample| Some(sample.asked.machine.disk?.size_bytes as f64)),
    )),
    gauge((
        "system_cpu_usage_percent",
        "%",
        "CPU time in use, of all CPUs of the machine and by all its processes, since the look before.",
        Source::One(|sample| sample.asked.machine.cpu_usage_percent),
    )),
];

fn dropped(bridge: &BridgeStats) -> Vec<(String, f64)> {
    let reasons = [
        ("not_connected", bridge.dropped_not_connected),
        ("unknown_node", bridge.dropped_unknown_node),
        ("lane_full", bridge.dropped_lane_full),
        ("ring_full", bridge.dropped_ring_full),
        ("wrong_sender", bridge.dropped_wrong_sender),
        ("no_shard", bridge.dropped_no_shard),
        ("client_gone", bridge.dropped_client_gone),
    ];
    reasons.map(|(reason, count)| (reason.to_owned(), count as f64)).to_vec()
}

const HEAD: &str = "\
# Metrics and health of a node

Made by `iroh-raft config metrics`. The program has the pages when it was built with `--features metrics-page`, and shows them when it is told where, on loopback
only, for nobody is asked who it is:

```toml
[metrics]
listen = \"127.0.0.1:9464\"
```

- `GET /metrics`: everything below, in the text format of Prometheus (0.0.4).
- `GET /health`: JSON; 200 with the status `ok`, or 503 with `failing` and the reasons. Red is: the node stops (from SIGTERM until it has); the node is broken or
  a flush hangs; a group has no leader that is known here, is out of service or under repair, or a shard does not say so within 2 seconds; so few other
  nodes are connected that together they are no majority; the disk has less free than `storage.free_bytes_min`. Noted, and not red: one of the other nodes is not connected; a disk that
  is nearly full. A node that is away is red on itself, not on all the others.
- `GET /`: names both. HEAD works, other methods are refused with 405, other paths with 404. At most 16 connections of 5 seconds and 8 KiB of head each; one more
  is closed at once. While a node recovers, connections wait until it is up.

[grafana.json](grafana.json) is a dashboard of these names: import it, choose the data source.

```yaml
scrape_configs:
  - job_name: iroh-raft
    scrape_interval: 5s
    static_configs: [{ targets: [\"127.0.0.1:9464\"] }]
```

What it costs: counters are read where they stand. How the groups stand is asked of the shards, once a second at most, however many look. There are about 330 series
for each shard and 90 for the node, as many for ten thousand groups as for one: of groups there are sums, the highest term, and in `/health` the numbers of the first eight
that are red; `iroh-raft status` has each.

A counter grows from the start of the process; a metric that is not known now is left out. Names and meanings:

| name | type | unit | labels | meaning |
|---|---|---|---|---|
";

/// The page of reference.
pub(crate) fn reference() -> String {
    let mut out = HEAD.to_owned();
    for Metric { name, kind, unit, meaning, source } in METRICS {
        let labels = source.labels().join(", ");
        _ = writeln!(out, "| `{name}` | {} | {unit} | {labels} | {meaning} |", kind.name());
    }
    out
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use super::*;

    #[test]
    fn names_are_unique_and_of_their_kind_and_texts_are_lines() {
        let names: BTreeSet<_> = METRICS.iter().map(|metric| metric.name).collect();
        assert_eq!(names.len(), METRICS.len());
        for Metric { name, kind, unit, meaning, source } in METRICS {
            assert!(name.bytes().all(|byte| byte == b'_' || byte.is_ascii_lowercase()), "{name}");
            let is_total = name.ends_with("_total");
            assert!(matches!(source, Source::Recorded(_)) || is_total == (*kind == Kind::Counter), "{name}");
            assert!(meaning.ends_with('.') && !unit.is_empty(), "{name}");
            // Neither the page nor the table would be what it is with these.
            assert!(!meaning.contains(['\n', '\\', '|']), "{name}");
        }
    }

    #[test]
    fn the_page_of_reference_is_the_one_that_is_kept() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/metrics.md");
        let kept = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(
            kept == reference(),
            "docs/metrics.md is another one: cargo run -p iroh-raft-node --features metrics-page -- config metrics > docs/metrics.md"
        );
    }
}

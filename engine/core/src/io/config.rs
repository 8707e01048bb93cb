//! Settings of a shard.

use std::time::Duration;

use super::snapshot::SNAPSHOT_CHUNK_BYTES;
use crate::ids::{NodeId, ShardId};
use crate::placement::Placement;

/// Reads from a leader's lease. Safe while no clock of the group's nodes runs faster or slower than true time
/// by more than the bound: see ARCHITECTURE.md for the argument.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct LeaseReads {
    /// Bound on the drift of a clock's rate, in parts per million: 1 to 500,000. Default 10,000 (1 %): an oscillator
    /// is off by 200 at most, and time synchronization bends the monotonic clock by 500 at most; the rest is
    /// margin, and costs 2 % of the lease. Hazard: a machine that is suspended, or moved while it runs,
    /// may lose more: then stale reads are possible.
    pub drift_ppm_max: u32,
}

impl Default for LeaseReads {
    fn default() -> LeaseReads {
        LeaseReads { drift_ppm_max: 10_000 }
    }
}

/// When state machines are snapshotted, what then goes from the log, and how snapshots travel. By entries or bytes, a
/// group takes one only when as much as half of its last one was applied since: a large state that changes little is
/// written less often, so that snapshots cost at most twice what the log does. All bounds are of
/// one shard. Groups without a state machine are never compacted by this: what they keep is for retention to say.
#[derive(Clone, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct SnapshotConfig {
    /// Applied entries since a group's last snapshot after which it takes one. Default 100,000. Lower: shorter
    /// logs and starts, more writing.
    pub entries: u64,
    /// Bytes of applied entries since the last one after which it takes one. Default 256 MiB. Lower: as above.
    pub bytes: u64,
    /// Time since the last one after which it takes one, if anything was applied. Default 1 h.
    pub age: Duration,
    /// Entries before the last snapshot that are kept for a live follower that still needs them, and by those
    /// that do not lead; one that is further behind gets the snapshot. Default 10,000. Higher: longer logs,
    /// fewer transfers.
    pub lag_entries_max: u64,
    /// Snapshots taken at once. Default 1; at least 1.
    pub taking_max: usize,
    /// Snapshots sent at once; more wait. Default 2; at least 1. Each takes up to 2 MiB of memory.
    pub sending_max: usize,
    /// Snapshots received at once; more are refused, and come again. Default 2; at least 1. Memory as above.
    pub receiving_max: usize,
    /// Bytes of chunks sent in a second, over all transfers. Default 64 MiB; at least 1. Higher: sooner
    /// there, and more in the way of appends.
    pub send_bytes_per_second: u64,
    /// Time without progress after which a transfer is given up; it goes on later from where it was.
    /// Default 10 s; at least the longest election timeout, and [`SnapshotConfig::pace`].
    pub stall_after: Duration,
}

impl SnapshotConfig {
    /// Time in which each of the transfers that may be under way moves on, whatever way they share the rate: two chunks
    /// of each.
    #[must_use]
    pub fn pace(&self) -> Duration {
        let bytes = 2 * SNAPSHOT_CHUNK_BYTES as u128 * self.sending_max as u128;
        let nanos = bytes * 1_000_000_000 / u128::from(self.send_bytes_per_second.max(1));
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }
}

impl Default for SnapshotConfig {
    fn default() -> SnapshotConfig {
        SnapshotConfig {
            entries: 100_000,
            bytes: 256 << 20,
            age: Duration::from_secs(3600),
            lag_entries_max: 10_000,
            taking_max: 1,
            sending_max: 2,
            receiving_max: 2,
            send_bytes_per_second: 64 << 20,
            stall_after: Duration::from_secs(10),
        }
    }
}

/// How long a group's records are kept, besides what is trimmed by command. The group's leader trims through
/// the log, so all replicas agree on where the records begin.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Retention {
    /// Bytes of the stored log that are kept at least; older blocks of it go, so up to one block more stays.
    /// Default: no bound.
    pub bytes_max: Option<u64>,
    /// How long a record is kept, by the leaders' wall clocks ([`crate::batch`]). Default: for ever. Hazard: a
    /// leader whose clock is ahead removes records early by as much.
    pub age_max: Option<Duration>,
}

/// Settings of a shard's core. All replicas of a group should agree on the timing ones.
#[derive(Clone, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct ShardConfig {
    /// This node.
    pub node: NodeId,
    /// The shard's number. Default 0.
    pub shard: ShardId,
    /// Which shards the node has, and which of them has which group. Default: one shard.
    pub placement: Placement,
    /// Seed of every random choice of the shard. Must be another one at every start: the contexts of reads are made of
    /// it, and the incarnation in beats. With one that comes again, a late answer to a read of the process before
    /// confirms one of this, and a restart goes unnoticed by those that rest on it.
    pub seed: u64,
    /// Length of a tick. Default 50 ms. Shorter: faster elections, more wake-ups.
    pub tick: Duration,
    /// Ticks between a leader's heartbeats. Default 2.
    pub heartbeat_ticks: u32,
    /// Ticks without a leader for which a replica still refuses votes for others (check-quorum
    /// lease, thesis 4.2.3). Default 10.
    pub lease_ticks: u32,
    /// Shortest and longest ticks (inclusive) without a leader before a replica campaigns; each
    /// wait is drawn from the seed. Both above `lease_ticks`, so that the others' leases have run
    /// out when it asks. Default 12 to 18.
    pub election_ticks: (u32, u32),
    /// Bytes of records packed into one entry at most; one larger block still gets an entry of its
    /// own. Default 480 KiB, which with its tables stays below 512 KiB: redb writes values in
    /// power-of-two sizes. Higher: longer turns and frames; above what a frame to a peer takes, a group would stand still.
    pub entry_bytes_max: usize,
    /// Records packed into one entry at most. Default 16,384.
    pub entry_records_max: usize,
    /// Bytes of uncommitted and waiting proposals of a group; more is refused as busy. A retry in a session that
    /// waits for the answer of its first attempt counts for some 100 bytes. Default 16 MiB.
    pub pending_bytes_max: usize,
    /// The same over all groups of the shard. A group that has something pending takes more only while it holds no
    /// more than what is left: so a group alone gets up to half, and however many are full, another one finds as much as each
    /// of them has. One that has nothing pending is taken while anything is left, with one block, which may go beyond. Default
    /// 64 MiB. Higher: more memory and longer answers when clients bring more than the disks take.
    pub shard_pending_bytes_max: usize,
    /// Bytes of entries in one append message, which a frame to a peer has to take. Default 1 MiB.
    pub message_bytes_max: usize,
    /// Append messages in flight to one follower. Default 128.
    pub inflight_messages_max: usize,
    /// Bytes of persisted entries that the shard keeps in memory, over all its groups. Default
    /// 64 MiB. Lower: slow followers and readers go to the disk sooner.
    pub window_bytes_max: usize,
    /// Bytes of entries handed to a state machine at a time. Default 1 MiB.
    pub apply_bytes_max: usize,
    /// Committed records of a group that its leader's state machine has not applied, from which on it takes no more:
    /// they are refused as busy. Default 262,144. Higher: more for a new leader to apply before it answers.
    pub apply_lag_records_max: usize,
    /// Reads of a group that may wait at once; more are refused as busy. Default 65,536.
    pub reads_waiting_max: usize,
    /// Tails that may follow one group on this node; more are refused as busy. Default 1,024. Each costs some
    /// 100 bytes, and what its consumer has granted and not taken.
    pub tails_max: usize,
    /// Longest time that a client session may ask to go unused, by the leaders' clocks, before it expires. Default one
    /// day; at least a tick. Longer: sessions of clients that are gone take their places for longer.
    pub session_ttl_max: Duration,
    /// Sessions of one group that a client may have open at once; more are refused. Default 16. A group has at most
    /// [`crate::SESSIONS_MAX`] of all its clients together. Each costs up to 2 KiB on every replica.
    pub sessions_per_owner_max: u32,
    /// How often a leader looks for records that its group's [`Retention`] lets go. Default 10 s; at least a tick.
    /// Shorter: space comes back sooner; each look may read from the disk.
    pub retention_interval: Duration,
    /// Whether leaders answer reads of [`Consistency::Lease`](crate::Consistency::Lease) from a lease, and voters keep the promise that it
    /// rests on: no vote against a leader for `lease_ticks` after they heard it, nor for so long after a start.
    /// Default: none. It may be switched on node by node: a leader has a lease once a quorum has it on, for
    /// `lease_ticks` as long as its own. To switch it off, or to shorten tick or `lease_ticks`, let each node stay
    /// down for the old lease: what it promised before it stopped must run out.
    pub lease_reads: Option<LeaseReads>,
    /// Time that a flush may take before the disk counts as hung: the shard's leaders then hand over, or step
    /// down, and none campaigns. Default 750 ms, so that another leader acknowledges within a second; at least a tick.
    /// Shorter: a slow disk costs leaderships; longer: a leader without a disk takes more into memory.
    pub flush_stuck_after: Duration,
    /// Time with nothing to do after which a group goes quiet: no ticks, no heartbeats. Default 1 s; at least
    /// the interval of heartbeats; none: never. Shorter: less work for groups in little use, and a few messages more
    /// each time. A local read of a quiet replica says that its leader was heard long ago, and wakes the group.
    /// Of nodes that differ, those that have none keep their groups awake.
    pub quiet_after: Option<Duration>,
    /// Replicas that tick at a time after a start, about: the others follow as these go quiet, though at least 64 with each
    /// tick, and each at once when it is spoken to. Default 8,192; at least 1. Higher: many groups are there sooner, if
    /// the processors can follow; too high: elections are late, and begin anew.
    pub waking_max: usize,
    /// Whether and how leaders are spread over the nodes by themselves. Default: 10 s after a change, band 2.
    pub spread: Option<SpreadConfig>,
    /// How much leaders are wanted on a node, 0 where it is not named; the higher wins. It chooses among
    /// replicas that can lead, and never keeps one from being elected. All nodes should agree. Default: none.
    pub priorities: Vec<(NodeId, u32)>,
    /// Snapshots and compaction.
    pub snapshots: SnapshotConfig,
}

/// How a shard gives leaderships away that it has too many of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct SpreadConfig {
    /// Shortest time from a change of leaders to the first round of moves, and from one that could move nothing to the next;
    /// the longest is twice that. At least the longest election timeout: that, up to twice, is the time between rounds, of at most
    /// 128 moves each, for so long after a start and while something moves. Shorter: sooner even after a node has come back, and
    /// more moves under changing faults.
    pub interval: Duration,
    /// Leaderships that a node may have beyond its share, which is the groups at home there, in each shard, before it
    /// gives one away; or a twentieth of the share, where that is more. At least 1: one too many cannot always be mended.
    /// Higher: fewer moves.
    pub band: u32,
}

impl ShardConfig {
    /// The defaults for a node.
    #[must_use]
    pub fn new(node: NodeId, seed: u64) -> ShardConfig {
        ShardConfig {
            node,
            shard: ShardId(0),
            placement: Placement::default(),
            seed,
            tick: Duration::from_millis(50),
            heartbeat_ticks: 2,
            lease_ticks: 10,
            election_ticks: (12, 18),
            entry_bytes_max: 480 << 10,
            entry_records_max: 16_384,
            pending_bytes_max: 16 << 20,
            shard_pending_bytes_max: 64 << 20,
            message_bytes_max: 1 << 20,
            inflight_messages_max: 128,
            window_bytes_max: 64 << 20,
            apply_bytes_max: 1 << 20,
            apply_lag_records_max: 1 << 18,
            reads_waiting_max: 65_536,
            tails_max: 1024,
            session_ttl_max: Duration::from_secs(86_400),
            sessions_per_owner_max: 16,
            retention_interval: Duration::from_secs(10),
            lease_reads: None,
            flush_stuck_after: Duration::from_millis(750),
            quiet_after: Some(Duration::from_secs(1)),
            waking_max: 8192,
            spread: Some(SpreadConfig { interval: Duration::from_secs(10), band: 2 }),
            priorities: Vec::new(),
            snapshots: SnapshotConfig::default(),
        }
    }

    /// How much leaders are wanted on a node.
    #[must_use]
    pub fn priority_of(&self, node: NodeId) -> u32 {
        self.priorities.iter().find(|(of, _)| *of == node).map_or(0, |(_, priority)| *priority)
    }
}

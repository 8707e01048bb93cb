//! Counters of a shard, written by its threads and read by anybody.

use std::sync::atomic::{AtomicU64, Ordering};

/// Counters of one shard since start. Relaxed: each is right, together they may be a turn apart.
#[derive(Debug, Default)]
#[expect(missing_docs, reason = "each is what the field of ShardStats with its name says")]
pub struct ShardCounters {
    pub turns: AtomicU64,
    pub sleeps: AtomicU64,
    pub requests: AtomicU64,
    pub records_acked: AtomicU64,
    pub busy: AtomicU64,
    pub pending_bytes: AtomicU64,
    pub pending_bytes_peak: AtomicU64,
    pub unflushed_bytes: AtomicU64,
    pub unflushed_bytes_peak: AtomicU64,
    pub flushes: AtomicU64,
    pub flush_bytes: AtomicU64,
    pub flush_us_total: AtomicU64,
    pub frames_sent: AtomicU64,
    pub frames_dropped: AtomicU64,
    pub appends_dropped: AtomicU64,
    pub leaderships_gained: AtomicU64,
    pub groups_quarantined: AtomicU64,
    pub quorums_recovered: AtomicU64,
    pub repairs_begun: AtomicU64,
    pub repairs_done: AtomicU64,
    pub states_differing: AtomicU64,
    pub messages_refused: AtomicU64,
    pub leaderships_given: AtomicU64,
    pub disk_hangs: AtomicU64,
    pub snapshots_taken: AtomicU64,
    pub snapshots_installed: AtomicU64,
    pub snapshots_given_up: AtomicU64,
    pub snapshots_damaged: AtomicU64,
    pub snapshot_chunks_sent: AtomicU64,
    pub snapshot_chunks_received: AtomicU64,
}

impl ShardCounters {
    /// Adds to a counter that only the calling thread writes.
    pub fn add(counter: &AtomicU64, by: u64) {
        // One thread writes each counter: a load and a store are enough, and cheaper than a lock prefix.
        counter.store(counter.load(Ordering::Relaxed).wrapping_add(by), Ordering::Relaxed);
    }

    /// Notes how high something stands that only the calling thread writes.
    pub fn note(level: &AtomicU64, peak: &AtomicU64, value: usize) {
        let value = value as u64;
        level.store(value, Ordering::Relaxed);
        if value > peak.load(Ordering::Relaxed) {
            peak.store(value, Ordering::Relaxed);
        }
    }

    /// What they say now.
    pub fn snapshot(&self) -> ShardStats {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        ShardStats {
            turns: read(&self.turns),
            sleeps: read(&self.sleeps),
            requests: read(&self.requests),
            records_acked: read(&self.records_acked),
            busy: read(&self.busy),
            pending_bytes: read(&self.pending_bytes),
            pending_bytes_peak: read(&self.pending_bytes_peak),
            unflushed_bytes: read(&self.unflushed_bytes),
            unflushed_bytes_peak: read(&self.unflushed_bytes_peak),
            flushes: read(&self.flushes),
            flush_bytes: read(&self.flush_bytes),
            flush_us_total: read(&self.flush_us_total),
            frames_sent: read(&self.frames_sent),
            frames_dropped: read(&self.frames_dropped),
            appends_dropped: read(&self.appends_dropped),
            leaderships_gained: read(&self.leaderships_gained),
            groups_quarantined: read(&self.groups_quarantined),
            quorums_recovered: read(&self.quorums_recovered),
            repairs_begun: read(&self.repairs_begun),
            repairs_done: read(&self.repairs_done),
            states_differing: read(&self.states_differing),
            messages_refused: read(&self.messages_refused),
            leaderships_given: read(&self.leaderships_given),
            disk_hangs: read(&self.disk_hangs),
            snapshots_taken: read(&self.snapshots_taken),
            snapshots_installed: read(&self.snapshots_installed),
            snapshots_given_up: read(&self.snapshots_given_up),
            snapshots_damaged: read(&self.snapshots_damaged),
            snapshot_chunks_sent: read(&self.snapshot_chunks_sent),
            snapshot_chunks_received: read(&self.snapshot_chunks_received),
        }
    }
}

/// What a shard has done since start.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct ShardStats {
    /// Turns of the executor's loop.
    pub turns: u64,
    /// Times it found nothing to do and slept.
    pub sleeps: u64,
    /// Requests taken from clients and from this process.
    pub requests: u64,
    /// Records acknowledged as durable on a quorum.
    pub records_acked: u64,
    /// Requests refused as busy.
    pub busy: u64,
    /// Bytes of proposals that wait or are not committed, at the end of the last turn.
    pub pending_bytes: u64,
    /// The most that it has been.
    pub pending_bytes_peak: u64,
    /// Bytes of entries on their way to the disk, at the end of the last turn: own proposals and what leaders elsewhere sent.
    pub unflushed_bytes: u64,
    /// The most that it has been.
    pub unflushed_bytes_peak: u64,
    /// Journal commits, each one fsync.
    pub flushes: u64,
    /// Bytes of journal blocks written.
    pub flush_bytes: u64,
    /// Microseconds spent in commits.
    pub flush_us_total: u64,
    /// Frames handed to the bridge for peers.
    pub frames_sent: u64,
    /// Frames dropped because the bridge's ring was full.
    pub frames_dropped: u64,
    /// Messages with entries that were dropped because the disk is behind by as much as it may be; their leaders send them again.
    pub appends_dropped: u64,
    /// Times a replica of this shard became leader.
    pub leaderships_gained: u64,
    /// Groups taken out after a broken invariant.
    pub groups_quarantined: u64,
    /// Groups that lost their quorum and were recovered from the replica here.
    pub quorums_recovered: u64,
    /// Replicas that had lost entries, or went on with the repair that an earlier process had begun.
    pub repairs_begun: u64,
    /// Replicas that have all again that they may have acknowledged.
    pub repairs_done: u64,
    /// Times that the state of a replica here was found to differ from what the others have.
    pub states_differing: u64,
    /// Messages of peers refused by the validator.
    pub messages_refused: u64,
    /// Leaderships handed over or given up on request, not counting those that the shard gave away by itself.
    pub leaderships_given: u64,
    /// Times that a flush took longer than `flush_stuck_after`.
    pub disk_hangs: u64,
    /// Snapshots taken of state machines here.
    pub snapshots_taken: u64,
    /// Snapshots of leaders installed.
    pub snapshots_installed: u64,
    /// Transfers of snapshots, either way, that were given up for a while.
    pub snapshots_given_up: u64,
    /// Stored snapshots that were found damaged, and replaced.
    pub snapshots_damaged: u64,
    /// Chunks of snapshots handed to the bridge for followers.
    pub snapshot_chunks_sent: u64,
    /// Chunks of snapshots of leaders handed to the disk.
    pub snapshot_chunks_received: u64,
}

//! What a run has reached: counted by name, so that a set of runs can tell what it never did.

use std::collections::BTreeMap;

/// Everything that a nightly set of runs must have reached at least once.
pub(crate) const DECLARED: &[&str] = &[
    "all groups quiet",
    "all replicas compared at the end",
    "answer of a history that was given up",
    "append answered",
    "append refused: busy",
    "append refused: not the leader",
    "append unknown",
    "balance of a session's account read",
    "boot failed: io",
    "chunk of a snapshot damaged",
    "clock jumped",
    "command answered",
    "cursor committed",
    "cursor fetched",
    "disk full",
    "disk hung",
    "disk lies: bit flipped",
    "disk lies: record damaged",
    "disk lies: rolled back",
    "disk lies: snapshot damaged",
    "disk lies: write lost",
    "disk lies: write misdirected",
    "disk of a leader hung at the end",
    "disk stalled",
    "entries fetched from the disk",
    "entries moved to the log file",
    "flush failed",
    "follower's suffix cut",
    "frame corrupted",
    "frame delivered late after a restart",
    "frame duplicated",
    "frame lost",
    "group damaged at start",
    "group opened again",
    "group quarantined",
    "group quiet",
    "group removed at the end",
    "groups moved to other shards",
    "groups not moved",
    "leader asked behind its back: answers slow",
    "leader asked behind its back: cut off",
    "leader asked behind its back: handed over",
    "leader asked behind its back: others restarted",
    "leader asked behind its back: paused",
    "leader asked behind its back: quiet",
    "leader cut off",
    "leader elected",
    "leader stepped down when told",
    "leader stepped down",
    "leaders came to rest",
    "leaders duel",
    "leadership handed over",
    "link cut one way",
    "link slowed",
    "log replaced by a snapshot",
    "lost replicas come back apart",
    "members added after a recovery",
    "members changed jointly",
    "members changed",
    "members in force",
    "members refused",
    "message refused by the validator",
    "node halted by damage",
    "node killed",
    "node paused",
    "partition",
    "power cut inside a commit",
    "power cut inside a move to other shards",
    "power cut of all nodes",
    "power cut",
    "query answered by a replica that does not lead",
    "query answered locally",
    "query answered",
    "quorum lost",
    "quorum recovered",
    "read answered by a lease",
    "record found by its time",
    "records read",
    "records removed",
    "records trimmed",
    "replica begins anew without its snapshot",
    "recovery refused",
    "replica left",
    "replica of a history that was given up",
    "replica repaired",
    "replica restarted in the place of one with a snapshot",
    "replica under repair",
    "replica under repair restarted",
    "ring full towards a shard",
    "scrub found damage",
    "session append answered after a retry",
    "session append answered again",
    "session append answered",
    "session append forgotten",
    "session append out of order",
    "session opened",
    "session outcome told",
    "session response gone",
    "session unknown",
    "snapshot installed",
    "snapshot not received",
    "snapshot not taken",
    "snapshot of several chunks",
    "snapshot received",
    "snapshot taken",
    "state of a replica compared",
    "state restored from a snapshot",
    "stored snapshot damaged",
    "tail ended",
    "tail sent records",
    "tail told of a trim",
    "torn flush dropped at start",
    "total of a bank read",
    "transfer between accounts answered",
    "transfer between accounts refused",
    "transfer failed",
    "transfer given up",
    "transfer goes on",
    "writer waited for the mover",
];

/// Counts by name.
#[derive(Clone, Default, Debug)]
pub(crate) struct Marks(BTreeMap<&'static str, u64>);

impl Marks {
    pub(crate) fn add(&mut self, mark: &'static str, count: u64) {
        debug_assert!(DECLARED.contains(&mark), "{mark:?} is not declared");
        if count > 0 {
            *self.0.entry(mark).or_default() += count;
        }
    }

    pub(crate) fn count(&self, mark: &str) -> u64 {
        self.0.get(mark).copied().unwrap_or(0)
    }

    pub(crate) fn merge(&mut self, other: &Marks) {
        for (mark, count) in &other.0 {
            *self.0.entry(mark).or_default() += count;
        }
    }

    pub(crate) fn missing(&self) -> Vec<&'static str> {
        DECLARED.iter().copied().filter(|mark| self.count(mark) == 0).collect()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        self.0.iter().map(|(mark, count)| (*mark, *count))
    }
}

//! The numbers of the system, each a type of its own so that none is taken for another.

use std::fmt;
use std::time::Duration;

macro_rules! number {
    ($(#[$doc:meta])* $name:ident, $inner:ty) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
        #[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

number!(
    /// One node: a process with one endpoint key. Chosen by the operator, never 0, unique in the
    /// cluster for all time: a wiped node comes back under a new id.
    NodeId, u64
);
number!(
    /// One Raft group. Unique in the cluster for all time; 0 is not a group.
    GroupId, u64
);
number!(
    /// One shard of a node: one core, its groups and its journal. Dense from 0.
    ShardId, u16
);
number!(
    /// Raft term. 0 before the first election.
    Term, u64
);
number!(
    /// Raft log index. The first entry has index 1; 0 means "before the log".
    Index, u64
);
number!(
    /// Dense number of a record within its group, starting at 0.
    Offset, u64
);
number!(
    /// Number of a flush of one shard, dense from 1 over the life of the shard's journal.
    FlushSeq, u64
);
number!(
    /// The core's own clock: nanoseconds from an origin that the driver chose. Monotonic.
    Timestamp, u64
);
number!(
    /// Wall-clock time: milliseconds since the Unix epoch. An input, never read here.
    WallTime, u64
);
number!(
    /// How often a node has been started on its data folder; persisted, strictly increasing.
    BootEpoch, u64
);

number!(
    /// Number of a record within its session, dense from 0: the client counts them.
    Sequence, u64
);
number!(
    /// Whose a session is: a hash of the key that a client's connection proved; 0 for the embedding process.
    Owner, u64
);

impl Timestamp {
    /// The moment `by` after this one, saturating at the end of time.
    #[must_use]
    pub fn after(self, by: Duration) -> Timestamp {
        Timestamp(self.0.saturating_add(u64::try_from(by.as_nanos()).unwrap_or(u64::MAX)))
    }

    /// Time that passed since `earlier`; zero if `earlier` is later.
    #[must_use]
    pub fn since(self, earlier: Timestamp) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

/// A place in the log: an entry by its term and index. One that is later belongs to a log that is more up to date (Raft
/// paper, 5.4.1); 0 of term 0 is before every log.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct LogPosition {
    /// The entry's term.
    pub term: Term,
    /// The entry's index.
    pub index: Index,
}

impl Index {
    /// The index after this one.
    #[must_use]
    pub fn next(self) -> Index {
        Index(self.0 + 1)
    }
}

/// Identity of a cluster: 16 random bytes, the same in every manifest and every handshake of it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct ClusterId(pub [u8; 16]);

impl fmt::Display for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ClusterId({self})")
    }
}

/// A client session of a group: 16 bytes that the client draws at random, for each session anew. An id that was used once
/// is not used again: what is late of its first use would count for its second.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct SessionId(pub [u8; 16]);

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SessionId({self})")
    }
}

//! What can be wrong with a data folder, a journal, or a call.

use std::fmt;
use std::io;
use std::path::PathBuf;

use iroh_raft_core::{
    BootEpoch, ClusterId, FetchError, FlushSeq, GroupId, Index, LogDamage, NodeId, Offset, ShardId,
};

use crate::block::BlockError;
use crate::scrub::Damage;
use crate::snapshot::SnapshotError;

/// Why a group cannot be copied to another shard.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Unmovable {
    /// Stored entries are damaged or gone.
    #[error("its log is damaged from index {} to {}", .0.first, .0.last)]
    Damaged(LogDamage),
    /// Stored entries cannot be read.
    #[error("{0}")]
    Unreadable(FetchError),
    /// Its snapshot cannot be read or written.
    #[error("{0}")]
    Snapshot(Box<SnapshotError>),
    /// What was read back is not what was written.
    #[error("the copy is not the same")]
    Differs,
    /// Entries or the snapshot were written to the new files, and are not there as they were written.
    #[error("in the copy, {0}")]
    DamagedCopy(Box<Damage>),
}

/// Why the durable log refuses. Nothing stored is changed by any of these, except that a failed
/// flush may or may not be found after the next start.
///
/// A retry of the same call helps for [`Io`](StorageError::Io), [`InUse`](StorageError::InUse) and
/// [`Random`](StorageError::Random) while opening, once the cause is gone; never on a writer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StorageError {
    /// The settings name an impossible node.
    #[error("impossible identity for a data folder: {what}; correct the settings")]
    Identity {
        /// What is impossible.
        what: &'static str,
    },
    /// The operating system refused.
    #[error("cannot {action} {}: {source}; mend the cause and start again", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// Its answer.
        source: io::Error,
    },
    /// The operating system gives no random bytes.
    #[error("the operating system gives no random bytes for a new identity; start again later")]
    Random,
    /// Another process holds the folder's lock.
    #[error("{} is in use by another process: stop that one, or name another folder", path.display())]
    InUse {
        /// The folder.
        path: PathBuf,
    },
    /// The folder has no manifest and holds something else.
    #[error("{} is not a data folder and not empty (it holds {name:?}): name another folder", path.display())]
    ForeignFiles {
        /// The folder.
        path: PathBuf,
        /// One of the files in it.
        name: String,
    },
    /// The folder has parts of a data folder and no manifest.
    #[error("{} has lost its manifest: restore the folder whole, or wipe it and join under a new node id", path.display())]
    MissingManifest {
        /// The folder.
        path: PathBuf,
    },
    /// The folder has no boot file.
    #[error("{} is missing: restore the folder whole, or wipe it and join under a new node id", path.display())]
    MissingBoot {
        /// The file.
        path: PathBuf,
    },
    /// A shard has no journal.
    #[error("the journal {} is missing: restore the folder whole, or wipe it and join under a new node id", path.display())]
    MissingJournal {
        /// The file.
        path: PathBuf,
    },
    /// Another file of the folder is gone.
    #[error("{} is missing: restore the folder whole, or wipe it and join under a new node id", path.display())]
    MissingFile {
        /// The file.
        path: PathBuf,
    },
    /// A file was written by a newer release.
    #[error("{} has format version {found}, this build reads up to {supported}: use a newer build", path.display())]
    NewerFormat {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u16,
        /// Newest version that this build reads.
        supported: u16,
    },
    /// A file does not hold what it should.
    #[error("{} is damaged ({damage}): restore the folder whole, or wipe it and join under a new node id", path.display())]
    DamagedFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        damage: FileDamage,
    },
    /// The folder belongs to another cluster.
    #[error("{} belongs to cluster {found}, not {expected}: name the folder or the cluster rightly", path.display())]
    WrongCluster {
        /// The folder.
        path: PathBuf,
        /// Cluster in the manifest.
        found: ClusterId,
        /// Cluster in the settings.
        expected: ClusterId,
    },
    /// The folder belongs to another node.
    #[error("{} belongs to node {found}, not {expected}: name the folder or the node rightly", path.display())]
    WrongNode {
        /// The folder.
        path: PathBuf,
        /// Node in the manifest.
        found: NodeId,
        /// Node in the settings.
        expected: NodeId,
    },
    /// A group cannot be copied to the shard that it is to have.
    #[error(
        "group {group} cannot move from shard {shard}: {cause}; nothing was changed: start with the shards that the \
         folder had, until the replica is repaired or removed"
    )]
    NotMoved {
        /// The group.
        group: GroupId,
        /// The shard that has it.
        shard: ShardId,
        /// Why.
        #[source]
        cause: Unmovable,
    },
    /// The new files of a shard that is to have other groups cannot be read back.
    #[error(
        "the groups that move to shard {shard} cannot be read back from its new files ({source}); nothing was changed: \
         mend the disk, or start with the shards that the folder had"
    )]
    CopyUnreadable {
        /// The shard.
        shard: ShardId,
        /// Why.
        source: Box<StorageError>,
    },
    /// The new files of a shard that is to have other groups are damaged, in what holds no entries of a group.
    #[error(
        "the new files of shard {shard}, to which groups move, are damaged ({damage}); nothing was changed: mend the disk, \
         or start with the shards that the folder had"
    )]
    CopyDamaged {
        /// The shard.
        shard: ShardId,
        /// What is wrong with them.
        damage: Box<Damage>,
    },
    /// There is no room for groups that are to move to other shards.
    #[error(
        "{} has {free_bytes} bytes free, and groups that move to other shards need {needed_bytes}: make room, or start with \
         the shards that the folder had",
        path.display()
    )]
    NoSpaceToMove {
        /// The folder.
        path: PathBuf,
        /// What the move takes, about.
        needed_bytes: u64,
        /// What there is.
        free_bytes: u64,
    },
    /// The folder has no such shard.
    #[error("there is no shard {shard} in a folder of {shards} shards (they count from 0)")]
    NoSuchShard {
        /// The shard asked for.
        shard: ShardId,
        /// Number of shards.
        shards: u16,
    },
    /// The shard is open.
    #[error("shard {shard} is open already: drop everything opened of it to open it again")]
    ShardTaken {
        /// The shard.
        shard: ShardId,
    },
    /// The journal belongs to another folder or shard.
    #[error("the journal {} belongs to another data folder or shard: put the right one back", path.display())]
    ForeignJournal {
        /// The file.
        path: PathBuf,
    },
    /// The journal ends before what was acknowledged, or holds something else there.
    #[error(
        "the journal of shard {shard} ends at flush {found}, flush {acknowledged} was acknowledged: \
         restore the newest copy, or wipe the folder and join under a new node id"
    )]
    JournalRolledBack {
        /// The shard.
        shard: ShardId,
        /// Newest flush that was acknowledged.
        acknowledged: FlushSeq,
        /// Newest flush of the acknowledged history that the journal holds.
        found: FlushSeq,
    },
    /// redb cannot open the journal.
    #[error(
        "the journal {} cannot be opened ({source}): restore the folder whole, or wipe it and join under a new node id",
        path.display()
    )]
    DamagedJournal {
        /// The file.
        path: PathBuf,
        /// What redb says.
        source: Box<redb::Error>,
    },
    /// Blocks of the journal are damaged or gone.
    #[error(
        "the journal of shard {shard} is damaged at flush {at} ({damage}), {}: restore the folder \
         whole, or wipe it and join under a new node id",
        Affected(affected)
    )]
    Corrupt {
        /// The shard.
        shard: ShardId,
        /// First flush that cannot be trusted.
        at: FlushSeq,
        /// What is wrong there.
        damage: BlockError,
        /// Whose entries are concerned, as far as can be told; empty if it cannot.
        affected: Vec<AffectedRange>,
    },
    /// A peer came back older than it was.
    #[error(
        "node {node} runs on an older copy of its data folder (boot epoch {offered}, seen {seen}): \
         wipe it and join it under a new node id"
    )]
    PeerRolledBack {
        /// The peer.
        node: NodeId,
        /// Highest epoch seen of it.
        seen: BootEpoch,
        /// Epoch it offers now.
        offered: BootEpoch,
    },
    /// More peers than are remembered.
    #[error("more than {max} peers have been seen: this release remembers no more")]
    PeersFull {
        /// Number remembered at most.
        max: usize,
    },
    /// The core asked for a flush that contradicts the log: nothing was written, the writer is fenced.
    #[error(
        "flush {seq} of shard {shard} contradicts its log in group {group} ({problem}): report this as a bug"
    )]
    InvalidAppend {
        /// The shard.
        shard: ShardId,
        /// The flush.
        seq: FlushSeq,
        /// The group; 0 if the flush as a whole is wrong.
        group: GroupId,
        /// What is wrong.
        problem: AppendProblem,
    },
    /// redb failed to write or to sync: the writer is fenced.
    #[error("writing the journal of shard {shard} failed ({source}): mend the disk and restart the node")]
    Journal {
        /// The shard.
        shard: ShardId,
        /// What redb says.
        source: Box<redb::Error>,
    },
    /// The medium is full: the writer is fenced.
    #[error(
        "no space is left for shard {shard}: it can be opened for reading; make room, then open it again"
    )]
    NoSpace {
        /// The shard.
        shard: ShardId,
    },
    /// The log file ends before what the journal presupposes.
    #[error(
        "the log file of shard {shard} holds the log up to flush {found}, the journal begins after flush {expected}: \
         restore the newest copy, or wipe the folder and join under a new node id"
    )]
    LogRolledBack {
        /// The shard.
        shard: ShardId,
        /// Where the journal begins.
        expected: FlushSeq,
        /// What was moved to the log file.
        found: FlushSeq,
    },
    /// A call panicked, in redb most likely: a writer is fenced.
    #[error("a panic at the journal of shard {shard}: check the disk and restart the node")]
    JournalPanicked {
        /// The shard.
        shard: ShardId,
    },
    /// An earlier call failed.
    #[error("the writer of shard {shard} is fenced after a failure: mend the disk and restart the node")]
    Fenced {
        /// The shard.
        shard: ShardId,
    },
}

/// Entries that a damaged journal cannot vouch for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AffectedRange {
    /// The group.
    pub group: GroupId,
    /// First index concerned (inclusive).
    pub first: Index,
    /// Last index concerned (inclusive).
    pub last: Index,
}

/// Why a small file of the data folder is not what it should be.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum FileDamage {
    /// Too short, or too long.
    #[error("{bytes} bytes long")]
    Length {
        /// Its length in bytes.
        bytes: u64,
    },
    /// It starts with something else.
    #[error("not a file of this kind")]
    Magic,
    /// Its checksum is wrong.
    #[error("checksum mismatch")]
    Checksum,
    /// A field has a value that is never written.
    #[error("impossible content")]
    Content,
}

/// How a flush contradicts the log.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum AppendProblem {
    /// Flush numbers are dense.
    #[error("flush {expected} was due")]
    Sequence {
        /// The number due.
        expected: FlushSeq,
    },
    /// Entries are contiguous with each other and with the log.
    #[error("entry {found} where {expected} at most was due")]
    Gap {
        /// Index found.
        found: Index,
        /// Highest index that could stand here.
        expected: Index,
    },
    /// Terms never fall.
    #[error("the term falls at entry {index}")]
    Term {
        /// Where.
        index: Index,
    },
    /// What is committed and moved, or compacted, stays.
    #[error("entry {index} would void the log up to {floor}, which is final")]
    Committed {
        /// First entry that would be void, or the place to start after.
        index: Index,
        /// Last index that is final.
        floor: Index,
    },
    /// What is final is cut by a repair only, at the end of a stored block or in the journal.
    #[error(
        "the log cannot be cut after entry {index}: no repair begins there, or no stored block ends there"
    )]
    Cut {
        /// The entry.
        index: Index,
    },
    /// Only committed entries are compacted.
    #[error("compaction up to entry {index}, but the log is committed up to {commit} only")]
    Compaction {
        /// The entry.
        index: Index,
        /// Last index that may be compacted.
        commit: Index,
    },
    /// Offsets are dense.
    #[error("entry {index} begins at offset {found}, {expected} was due")]
    Offset {
        /// The entry.
        index: Index,
        /// Its base offset.
        found: Offset,
        /// The offset due.
        expected: Offset,
    },
    /// A normal entry is empty or a batch.
    #[error("the data of entry {index} is not a batch")]
    NotABatch {
        /// The entry.
        index: Index,
    },
    /// A block has its limits.
    #[error("{bytes} bytes in one commit, {max} fit")]
    TooLarge {
        /// Bytes of the block.
        bytes: usize,
        /// Largest block.
        max: usize,
    },
}

struct Affected<'a>(&'a [AffectedRange]);

impl fmt::Display for Affected<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Affected([first, rest @ ..]) = self else { return write!(f, "which concerns any group") };
        write!(f, "which concerns group {} index {} to {}", first.group, first.first, first.last)?;
        if rest.is_empty() { Ok(()) } else { write!(f, " and {} more groups", rest.len()) }
    }
}

pub(crate) type Result<T, E = StorageError> = std::result::Result<T, E>;

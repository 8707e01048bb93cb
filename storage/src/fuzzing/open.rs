//! A shard whose files were damaged, opened and held against what was written.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use iroh_raft_core::batch::{RecordBlock, encode_batch};
use iroh_raft_core::{
    Append, ClusterId, ConfState, EntryKind, Fetch, FetchError, FetchFrom, FetchId, FlushSeq, GroupAppend,
    GroupId, HardState, Index, LogEntry, LogStart, NodeId, Offset, Placement, ShardId, Term, TermRun,
    WallTime,
};

use crate::fault::{FaultDisk, Files, SECTOR_BYTES};
use crate::{DataFolder, FolderIdentity, OpenShard, ShardOptions, SnapshotHead, SnapshotStore, StorageError};

const FOLDER: &str = "/node";
const OWNER: FolderIdentity =
    FolderIdentity { cluster: ClusterId([7; 16]), node: NodeId(3), placement: Placement::ONE_SHARD };
const GROUPS: u64 = 3;
const FLUSHES: u64 = 8;
/// The flush after which what is committed moves to the log file.
const MOVED_AFTER: u64 = 5;
/// The entry that is a membership change, and has no record.
const CONF_CHANGE: u64 = 4;
const SNAPSHOT_BYTES: usize = 5000;

/// What came of damage. Anything else panics.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Opened {
    /// The folder or the shard did not open.
    Refused,
    /// Something could not be read or went wrong later, and was said to be so.
    Noticed,
    /// Everything is as it was written.
    Sound,
}

/// What is known to be durable.
#[derive(Clone, Debug)]
struct Known {
    last_seq: u64,
    /// Last entry by group: the group's entries have the numbers of the flushes that brought them.
    lasts: BTreeMap<GroupId, u64>,
}

impl Known {
    fn new() -> Known {
        Known { last_seq: 0, lasts: BTreeMap::new() }
    }

    /// Takes the next flush, with an entry of each of these groups.
    fn flush(&mut self, groups: impl Iterator<Item = GroupId>) -> Append {
        self.last_seq += 1;
        let parts = groups.map(|group| {
            let last = self.lasts.entry(group).or_default();
            *last += 1;
            GroupAppend {
                group,
                change: None,
                hard_state: Some(hard_state(group, *last)),
                conf_state: Some(conf_state(group)),
                meta: Some(meta(group)),
                under_repair: None,
                joined_at: None,
                entries: vec![entry(group, *last)],
            }
        });
        Append { groups: parts.collect(), seq: FlushSeq(self.last_seq) }
    }

    /// Holds a shard against this. Returns the groups that are whole, and whether anything was said to
    /// be damaged.
    fn check(&self, shard: &OpenShard) -> (Vec<GroupId>, bool) {
        assert_eq!(shard.last_seq.0, self.last_seq, "an acknowledged flush is gone");
        assert!(shard.groups.iter().map(|state| state.group).eq(self.lasts.keys().copied()), "other groups");
        let mut whole = Vec::new();
        for state in &shard.groups {
            let (group, last) = (state.group, self.lasts[&state.group]);
            assert_eq!(state.hard_state, hard_state(group, last), "the vote of group {group}");
            assert_eq!(state.conf_state, conf_state(group), "the members of group {group}");
            assert_eq!(state.meta, meta(group), "the table of group {group}");
            if state.damage.is_some() {
                continue;
            }
            let ends = (state.start, state.last, state.next_offset);
            assert_eq!(ends, (LogStart::default(), Index(last), Offset(base(last + 1))), "group {group}");
            let runs = (1..=last).map(|seq| TermRun { first: Index(seq), term: Term(seq) });
            assert!(runs.eq(state.term_runs.iter().copied()), "terms of group {group}");
            assert_eq!(state.conf_changes, [Index(CONF_CHANGE)], "changes of group {group}");
            for found in &state.tail {
                assert_eq!(*found, entry(group, found.index.0), "tail of group {group}");
            }
            let is_read = (1..=last).fold(true, |is_read, index| {
                let (at, group) = (Index(index), state.group);
                let from = FetchFrom::Index(at);
                match shard.reader.read(&Fetch { id: FetchId(0), group, from, to: at, bytes_max: 0 }) {
                    Ok(read) => {
                        assert_eq!(read, [entry(group, index)], "group {group}");
                        is_read
                    }
                    // It would pass for compacted.
                    Err(FetchError::Missing) => panic!("entry {index} of group {group} is not missed"),
                    Err(_) => false,
                }
            });
            if is_read {
                whole.push(group);
            }
        }
        let is_snapshot_read = check_snapshot(&shard.snapshots);
        let is_noticed = whole.len() < self.lasts.len() || !is_snapshot_read;
        (whole, is_noticed)
    }
}

/// Number of records before an entry.
fn base(index: u64) -> u64 {
    index - 1 - u64::from(index > CONF_CHANGE)
}

fn entry(group: GroupId, index: u64) -> LogEntry {
    let (kind, data) = if index == CONF_CHANGE {
        (EntryKind::ConfChange, Bytes::from_static(b"change"))
    } else {
        let records = RecordBlock::from_records(&[vec![group.0 as u8; 10 * index as usize]]);
        (EntryKind::Normal, encode_batch(Offset(base(index)), WallTime(1), [records].iter()))
    };
    LogEntry { index: Index(index), term: Term(index), kind, data }
}

fn hard_state(group: GroupId, last: u64) -> HardState {
    HardState { term: Term(last), vote: NodeId(group.0), commit: Index(last - 1) }
}

fn meta(group: GroupId) -> Bytes {
    format!("table of group {group}").into()
}

fn conf_state(group: GroupId) -> ConfState {
    ConfState { voters: vec![NodeId(1), NodeId(2), NodeId(2 + group.0)], ..ConfState::default() }
}

fn snapshot_head() -> SnapshotHead {
    let conf_state = conf_state(GroupId(1));
    SnapshotHead { index: Index(3), term: Term(3), offset: Offset(3), conf_state, table: Default::default() }
}

/// Returns whether it could be read. One that is gone is tolerated: nothing stored says which groups have
/// one (FORMAT.md, "What recovery trusts").
fn check_snapshot(snapshots: &SnapshotStore) -> bool {
    let Ok(Some(meta)) = snapshots.latest(GroupId(1)) else { return false };
    assert_eq!(meta.head, snapshot_head());
    let mut body = Vec::new();
    if snapshots.reader(meta).read_to_end(&mut body).is_err() {
        return false;
    }
    assert!(body == [9; SNAPSHOT_BYTES], "another body");
    true
}

fn options() -> ShardOptions {
    ShardOptions {
        journal_cache_bytes: 1 << 20,
        log_cache_bytes: 1 << 20,
        // Less than there is: some entries are in memory, some are not.
        tail_bytes: 1 << 10,
        ..ShardOptions::default()
    }
}

fn open_on(disk: &FaultDisk) -> Result<(DataFolder, OpenShard), StorageError> {
    let mut folder = DataFolder::open_on(FOLDER, OWNER, Arc::new(disk.clone()))?;
    let shard = folder.open_shard(ShardId(0), options())?;
    Ok((folder, shard))
}

/// A shard with a bit of everything.
struct Sound {
    files: Files,
    /// Of each file that can be damaged, the sectors that hold something.
    targets: Vec<(PathBuf, Vec<usize>)>,
}

impl Sound {
    fn new(files: Files) -> Sound {
        let targets = ["journal.redb", "log.redb", "acked"].map(|name| {
            let path = Path::new(FOLDER).join("shard-0").join(name);
            let sectors = files[&path].chunks_exact(SECTOR_BYTES).enumerate();
            let used = sectors.filter(|(_, bytes)| bytes.iter().any(|byte| *byte != 0));
            let used = used.map(|(number, _)| number * SECTOR_BYTES).collect();
            (path, used)
        });
        Sound { files, targets: targets.into() }
    }

    /// Stopped in order, and killed: redb verifies its pages only after a crash. Made once.
    fn both() -> &'static [Sound; 2] {
        static SOUND: OnceLock<[Sound; 2]> = OnceLock::new();
        SOUND.get_or_init(|| {
            let disk = FaultDisk::default();
            let killed = make(&disk).expect("a shard on a disk without faults");
            [disk.files(), killed].map(Sound::new)
        })
    }
}

/// Returns the files as they are before the shard is closed.
fn make(disk: &FaultDisk) -> Result<Files, StorageError> {
    let (_folder, mut shard) = open_on(disk)?;
    let mut known = Known::new();
    for seq in 1..=FLUSHES {
        shard.writer.run_once(&[known.flush((1..=GROUPS).map(GroupId))])?;
        if seq == MOVED_AFTER {
            shard.mover.run_once()?;
        }
    }
    let mut snapshot = shard.snapshots.begin(GroupId(1), snapshot_head()).expect("a snapshot");
    snapshot.write(&[9; SNAPSHOT_BYTES]).expect("a body");
    snapshot.publish().expect("a snapshot");
    Ok(disk.files())
}

/// Damages the files of a shard and opens them. The first byte says which file of which shard; then
/// come changes: a position (4 bytes, round about) and a byte to flip bits with.
///
/// # Panics
/// If other content comes back than was written, and nobody says so.
pub fn open_damaged(data: &[u8]) -> Opened {
    let Some((which, changes)) = data.split_first() else { return Opened::Sound };
    let which = usize::from(*which);
    let sound = &Sound::both()[which / 3 % 2];
    let (path, used) = &sound.targets[which % 3];
    let mut files = sound.files.clone();
    let file = files.get_mut(path).expect("a file of the shard");
    for change in changes.chunks_exact(5) {
        let position = u32::from_le_bytes([change[0], change[1], change[2], change[3]]) as usize;
        let sector = used[position / SECTOR_BYTES % used.len()];
        file[sector + position % SECTOR_BYTES] ^= change[4];
    }
    let disk = FaultDisk::with(files, 0);
    let mut known = Known::new();
    (0..FLUSHES).for_each(|_| drop(known.flush((1..=GROUPS).map(GroupId))));
    let Ok((folder, mut shard)) = open_on(&disk) else { return Opened::Refused };
    let (whole, mut is_noticed) = known.check(&shard);
    // It goes on with what is whole, and nothing that was noticed is forgotten by that.
    is_noticed |= shard.scrubber.step(u64::MAX).map_or(true, |report| !report.damage.is_empty());
    let mut before = known.clone();
    let is_going = (0..2).all(|_| {
        before = known.clone();
        // In this order the flush makes void what was moved.
        shard.mover.run_once().is_ok() && shard.writer.run_once(&[known.flush(whole.iter().copied())]).is_ok()
    });
    drop((folder, shard));
    match open_on(&disk) {
        // A flush that failed, or never came, may be there or not.
        Ok((_folder, shard)) if !is_going && shard.last_seq.0 == before.last_seq => {
            is_noticed |= before.check(&shard).1;
        }
        Ok((_folder, shard)) => is_noticed |= known.check(&shard).1,
        Err(_) => is_noticed = true,
    }
    is_noticed |= !is_going;
    if is_noticed { Opened::Noticed } else { Opened::Sound }
}

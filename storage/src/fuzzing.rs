//! Entry points for fuzzing: any bytes are decoded, and any damage to the files is opened, without a
//! panic that leaves this crate.

use std::path::Path;
use std::sync::{Arc, OnceLock};

use iroh_raft_core::batch::{RecordBlock, encode_batch};
use iroh_raft_core::{
    Append, ClusterId, ConfState, EntryKind, Fetch, FetchFrom, FetchId, FlushSeq, GroupAppend, GroupId,
    HardState, Index, LogEntry, NodeId, Offset, ShardId, Term, WallTime,
};

use crate::block::{Block, BlockLengths, JournalIdentity, offset_after};
use crate::cold_block::{ColdBlock, GroupRow, IndexRow};
use crate::fault::{FaultDisk, Files};
use crate::group_log::ColdSpan;
use crate::snapshot::SnapshotHead;
use crate::{DataFolder, FolderIdentity, ShardOptions, StorageError};

const FOLDER: &str = "/node";
const IDENTITY: JournalIdentity = JournalIdentity { storage: [0x11; 16], shard: ShardId(0) };
const OWNER: FolderIdentity = FolderIdentity { cluster: ClusterId([7; 16]), node: NodeId(3), shards: 1 };

/// Decodes bytes as everything that is stored in rows.
pub fn decode(data: &[u8]) {
    if let Ok(lengths) = BlockLengths::peek(data)
        && let Some((directory, rest)) = data.split_at_checked(lengths.directory)
        && let Ok(block) = Block::parse(directory, IDENTITY)
    {
        for part in block.parts().map_while(Result::ok) {
            let range = part.data_range();
            let from = range.start.saturating_sub(directory.len());
            let Some(part_data) = rest.get(from..from.saturating_add(range.len())) else { continue };
            let mut at = part.base;
            for entry in part.entries(part_data) {
                at = offset_after(entry.kind, entry.data, at).unwrap_or(at);
            }
            let _ = (part.term_runs(), part.conf_changes().count());
        }
    }
    let group = GroupId(1);
    let _ = (IndexRow::parse(group, Index(1), data), GroupRow::parse(group, data));
    let checksum = data.get(60..64).and_then(|bytes| bytes.try_into().ok()).map_or(0, u32::from_le_bytes);
    let span = ColdSpan {
        first: Index(1),
        last: Index(2),
        base: Offset(0),
        bytes: u32::try_from(data.len()).unwrap_or(u32::MAX),
        checksum,
    };
    if let Ok(block) = ColdBlock::parse(data, IDENTITY, group, &span) {
        let _ = block.entries().count();
    }
}

/// The files of a shard with a bit of everything, made once.
fn sound_files() -> &'static Files {
    static FILES: OnceLock<Files> = OnceLock::new();
    FILES.get_or_init(|| {
        let disk = FaultDisk::default();
        make(&disk).expect("a shard on a disk without faults");
        disk.files()
    })
}

fn options() -> ShardOptions {
    ShardOptions {
        journal_cache_bytes: 1 << 20,
        log_cache_bytes: 1 << 20,
        tail_bytes: 1 << 20,
        ..ShardOptions::default()
    }
}

fn make(disk: &FaultDisk) -> Result<(), StorageError> {
    let mut folder = DataFolder::open_on(FOLDER, OWNER, Arc::new(disk.clone()))?;
    let mut shard = folder.open_shard(ShardId(0), options())?;
    for seq in 1..=8 {
        let part = |group| {
            let records = RecordBlock::from_records(&[vec![7; 10 * seq as usize]]);
            let data = encode_batch(Offset(seq - 1), WallTime(1), [records].iter());
            GroupAppend {
                group: GroupId(group),
                change: None,
                hard_state: Some(HardState { term: Term(seq), vote: NodeId(2), commit: Index(seq - 1) }),
                conf_state: Some(ConfState { voters: vec![NodeId(1), NodeId(2)], ..ConfState::default() }),
                entries: vec![LogEntry { index: Index(seq), term: Term(seq), kind: EntryKind::Normal, data }],
            }
        };
        shard.writer.run_once(&[Append { seq: FlushSeq(seq), groups: (1..=3).map(part).collect() }])?;
        if seq == 5 {
            shard.mover.run_once()?;
        }
    }
    let head =
        SnapshotHead { index: Index(3), term: Term(3), offset: Offset(3), conf_state: ConfState::default() };
    if let Ok(mut snapshot) = shard.snapshots.begin(GroupId(1), head)
        && snapshot.write(&[9; 5000]).is_ok()
    {
        let _ = snapshot.publish();
    }
    Ok(())
}

/// Damages the files of a shard and opens them. The first byte says which file; then come changes: a
/// position (4 bytes, round about) and a byte each.
pub fn open_damaged(data: &[u8]) {
    let Some((which, changes)) = data.split_first() else { return };
    let disk = FaultDisk::with(sound_files().clone(), 0);
    let name = ["journal.redb", "log.redb", "acked"][usize::from(which % 3)];
    let path = Path::new(FOLDER).join("shard-0").join(name);
    let bytes = sound_files()[&path].len();
    for change in changes.chunks_exact(5) {
        let position = u32::from_le_bytes([change[0], change[1], change[2], change[3]]) as usize % bytes;
        let old = disk.files()[&path][position];
        disk.flip(&path, position, old ^ change[4]);
    }
    // Anything but a panic will do.
    let Ok(mut folder) = DataFolder::open_on(FOLDER, OWNER, Arc::new(disk)) else { return };
    let Ok(mut shard) = folder.open_shard(ShardId(0), options()) else { return };
    for state in &shard.groups {
        let from = FetchFrom::Index(state.start.index.next());
        let fetch = Fetch { id: FetchId(0), group: state.group, from, to: state.last, bytes_max: 1 << 20 };
        let _ = shard.reader.read(&fetch);
        if let Ok(Some(meta)) = shard.snapshots.latest(state.group) {
            let _ = shard.snapshots.read_chunk(&meta, 0);
        }
    }
    let _ = (shard.scrubber.step(u64::MAX), shard.mover.run_once(), shard.writer.run_once(&[]));
}

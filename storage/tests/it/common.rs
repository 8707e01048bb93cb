//! What the tests of the durable log share: folders, flushes, and the model they are held against.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use iroh_raft_core::batch::{RecordBlock, encode_batch};
use iroh_raft_core::{
    Append, ClusterId, ConfState, EntryKind, Fetch, FetchFrom, FetchId, FlushSeq, GroupAppend, GroupId,
    GroupState, HardState, Index, LogChange, LogEntry, LogPosition, LogStart, NodeId, Offset, Placement,
    ShardId, Term, TermRun, WallTime,
};
use iroh_raft_storage::{
    DataFolder, Disk, FileDisk, FileKind, FolderIdentity, FolderLock, LogReader, OpenShard, ShardOptions,
    StorageError,
};
use redb::StorageBackend;

/// The rest of a `Disk` whose folders are those of the file system.
#[macro_export]
macro_rules! folder_of_files {
    () => {
        fn read(&self, path: &std::path::Path, bytes_max: usize) -> std::io::Result<Vec<u8>> {
            iroh_raft_storage::FileDisk.read(path, bytes_max)
        }

        fn replace(&self, path: &std::path::Path, bytes: &[u8]) -> std::io::Result<()> {
            iroh_raft_storage::FileDisk.replace(path, bytes)
        }

        fn remove(&self, path: &std::path::Path) -> std::io::Result<()> {
            iroh_raft_storage::FileDisk.remove(path)
        }

        fn remove_folder(&self, path: &std::path::Path) -> std::io::Result<()> {
            iroh_raft_storage::FileDisk.remove_folder(path)
        }

        fn names(&self, folder: &std::path::Path) -> std::io::Result<Vec<String>> {
            iroh_raft_storage::FileDisk.names(folder)
        }

        fn create_folder(&self, path: &std::path::Path) -> std::io::Result<()> {
            iroh_raft_storage::FileDisk.create_folder(path)
        }

        fn sync_folder(&self, path: &std::path::Path) -> std::io::Result<()> {
            iroh_raft_storage::FileDisk.sync_folder(path)
        }

        fn lock(&self, path: &std::path::Path) -> std::io::Result<iroh_raft_storage::FolderLock> {
            iroh_raft_storage::FileDisk.lock(path)
        }
    };
}

/// The file system, which says that a file of this name could not be replaced after it was, until it is mended.
#[derive(Debug)]
pub(crate) struct LateError {
    name: &'static str,
    is_mended: AtomicBool,
}

impl LateError {
    pub(crate) fn of(name: &'static str) -> LateError {
        LateError { name, is_mended: AtomicBool::new(false) }
    }

    pub(crate) fn mend(&self) {
        self.is_mended.store(true, Ordering::Relaxed);
    }
}

impl Disk for LateError {
    fn open(&self, path: &Path, kind: FileKind, is_new: bool) -> io::Result<Box<dyn StorageBackend>> {
        FileDisk.open(path, kind, is_new)
    }

    fn reserve(&self, path: &Path, bytes: u64) -> io::Result<()> {
        FileDisk.reserve(path, bytes)
    }

    fn free_bytes(&self, folder: &Path) -> io::Result<u64> {
        FileDisk.free_bytes(folder)
    }

    fn read(&self, path: &Path, bytes_max: usize) -> io::Result<Vec<u8>> {
        FileDisk.read(path, bytes_max)
    }

    fn replace(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        FileDisk.replace(path, bytes)?;
        let is_late = path.ends_with(self.name) && !self.is_mended.load(Ordering::Relaxed);
        if is_late { Err(io::Error::from_raw_os_error(5)) } else { Ok(()) }
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        FileDisk.remove(path)
    }

    fn remove_folder(&self, path: &Path) -> io::Result<()> {
        FileDisk.remove_folder(path)
    }

    fn names(&self, folder: &Path) -> io::Result<Vec<String>> {
        FileDisk.names(folder)
    }

    fn create_folder(&self, path: &Path) -> io::Result<()> {
        FileDisk.create_folder(path)
    }

    fn sync_folder(&self, path: &Path) -> io::Result<()> {
        FileDisk.sync_folder(path)
    }

    fn lock(&self, path: &Path) -> io::Result<FolderLock> {
        FileDisk.lock(path)
    }
}

pub(crate) const IDENTITY: FolderIdentity =
    FolderIdentity { cluster: ClusterId([7; 16]), node: NodeId(3), placement: Placement::ONE_SHARD };

pub(crate) const OPTIONS: ShardOptions = ShardOptions {
    journal_bytes_max: 1 << 20,
    move_bytes: 16 << 10,
    journal_cache_bytes: 1 << 20,
    log_cache_bytes: 1 << 20,
    free_bytes_min: 0,
    preallocate_bytes: 0,
    tail_bytes: 1 << 20,
};

/// Opens the folder and its first shard.
pub(crate) fn open(path: &Path) -> Result<(DataFolder, OpenShard), StorageError> {
    let mut folder = DataFolder::open(path, IDENTITY)?;
    let shard = folder.open_shard(ShardId(0), OPTIONS)?;
    Ok((folder, shard))
}

pub(crate) fn journal_of(path: &Path) -> PathBuf {
    path.join("shard-0/journal.redb")
}

pub(crate) fn mark_of(path: &Path) -> PathBuf {
    path.join("shard-0/acked")
}

/// Copies a folder as it stands: what another process would find after this one was killed.
pub(crate) fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_folder(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// Every file of a folder with its bytes.
pub(crate) fn bytes_of(path: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(path).unwrap().map(Result::unwrap) {
        if entry.file_type().unwrap().is_dir() {
            files.extend(bytes_of(&entry.path()));
        } else {
            files.insert(entry.path(), fs::read(entry.path()).unwrap());
        }
    }
    files
}

/// An entry with `records` records from offset `base` on; without any it is empty.
pub(crate) fn entry(index: u64, term: u64, base: u64, records: u64) -> LogEntry {
    let texts: Vec<_> = (0..records).map(|number| format!("record {}, term {term}", base + number)).collect();
    let data = if texts.is_empty() {
        Bytes::new()
    } else {
        let block = RecordBlock::from_records(&texts);
        encode_batch(Offset(base), WallTime(1), [block].iter())
    };
    LogEntry { index: Index(index), term: Term(term), kind: EntryKind::Normal, data }
}

/// An entry of term 1 with one record, of which the entries before have one each.
pub(crate) fn large_entry(index: u64, bytes: usize) -> LogEntry {
    let block = RecordBlock::from_records(&[vec![7; bytes]]);
    let data = encode_batch(Offset(index - 1), WallTime(1), [block].iter());
    LogEntry { index: Index(index), term: Term(1), kind: EntryKind::Normal, data }
}

/// A membership change. Storage does not look into its data.
pub(crate) fn conf_change(index: u64, term: u64) -> LogEntry {
    let data = Bytes::from_static(b"change");
    LogEntry { index: Index(index), term: Term(term), kind: EntryKind::ConfChange, data }
}

pub(crate) fn hard_state(term: u64, commit: u64) -> HardState {
    HardState { term: Term(term), vote: NodeId(2), commit: Index(commit) }
}

pub(crate) fn conf_state(voters: &[u64]) -> ConfState {
    let voters = voters.iter().copied().map(NodeId).collect();
    ConfState { voters, learners: vec![NodeId(9)], auto_leave: true, ..ConfState::default() }
}

pub(crate) fn entries_only(group: u64, entries: Vec<LogEntry>) -> GroupAppend {
    GroupAppend {
        group: GroupId(group),
        change: None,
        hard_state: None,
        conf_state: None,
        meta: None,
        under_repair: None,
        joined_at: None,
        entries,
    }
}

pub(crate) fn append(seq: u64, groups: Vec<GroupAppend>) -> Append {
    Append { seq: FlushSeq(seq), groups }
}

/// What the log must hold.
#[derive(Clone, Default, Debug, PartialEq)]
pub(crate) struct Model {
    pub(crate) last_seq: u64,
    pub(crate) groups: BTreeMap<GroupId, ModelGroup>,
}

#[derive(Clone, Default, Debug, PartialEq)]
pub(crate) struct ModelGroup {
    pub(crate) hard_state: HardState,
    pub(crate) conf_state: ConfState,
    pub(crate) meta: Bytes,
    pub(crate) is_under_repair: bool,
    pub(crate) joined_at: LogPosition,
    pub(crate) start: LogStart,
    /// The entries after the start.
    pub(crate) entries: Vec<LogEntry>,
    /// Offset after each of them.
    pub(crate) ends: Vec<u64>,
}

impl ModelGroup {
    pub(crate) fn last(&self) -> u64 {
        self.start.index.0 + self.entries.len() as u64
    }

    /// Whether this is what stays of a replica that left.
    pub(crate) fn has_left(&self) -> bool {
        self.conf_state == Default::default() && self.entries.is_empty()
    }

    /// Offset at which an entry begins.
    pub(crate) fn offset_at(&self, index: u64) -> u64 {
        match (index - 1).checked_sub(self.start.index.0 + 1) {
            None => self.start.offset.0,
            Some(before) => self.ends.get(before as usize).copied().unwrap_or_else(|| self.next_offset()),
        }
    }

    pub(crate) fn next_offset(&self) -> u64 {
        self.ends.last().copied().unwrap_or(self.start.offset.0)
    }

    /// The place after which an entry of the log comes.
    pub(crate) fn place_of(&self, index: u64) -> LogStart {
        let at = index.checked_sub(self.start.index.0 + 1);
        let term = at.map_or(self.start.term, |at| self.entries[at as usize].term);
        LogStart { index: Index(index), term, offset: Offset(self.offset_at(index + 1)) }
    }

    fn change(&mut self, change: LogChange) {
        match change {
            LogChange::CompactTo(start) if start.index <= self.start.index => {}
            LogChange::CompactTo(start) => {
                let count = (start.index.0 - self.start.index.0) as usize;
                self.entries.drain(..count);
                self.ends.drain(..count);
                self.start = start;
            }
            LogChange::StartAfter(start) => {
                self.entries.clear();
                self.ends.clear();
                self.start = start;
            }
            LogChange::CutAfter(place) => {
                let count = (place.index.0 - self.start.index.0) as usize;
                self.entries.truncate(count);
                self.ends.truncate(count);
            }
            LogChange::Remove => *self = ModelGroup::default(),
        }
    }

    fn take(&mut self, entry: &LogEntry) {
        let kept = (entry.index.0 - 1 - self.start.index.0) as usize;
        self.entries.truncate(kept);
        self.ends.truncate(kept);
        let records = match entry.kind {
            EntryKind::Normal if !entry.data.is_empty() => {
                u64::from(iroh_raft_core::batch::Batch::parse(&entry.data).unwrap().count())
            }
            _ => 0,
        };
        self.ends.push(self.next_offset() + records);
        self.entries.push(entry.clone());
    }

    fn term_runs(&self) -> Vec<TermRun> {
        let mut runs: Vec<TermRun> = Vec::new();
        for entry in &self.entries {
            if runs.last().is_none_or(|run| run.term != entry.term) {
                runs.push(TermRun { first: entry.index, term: entry.term });
            }
        }
        runs
    }
}

impl Model {
    pub(crate) fn take(&mut self, append: &Append) {
        self.last_seq = append.seq.0;
        for part in &append.groups {
            let group = self.groups.entry(part.group).or_default();
            if let Some(change) = part.change {
                group.change(change);
                let is_all = part.hard_state.is_none()
                    && part.conf_state.is_none()
                    && part.meta.is_none()
                    && part.under_repair.is_none()
                    && part.joined_at.is_none()
                    && part.entries.is_empty();
                if change == LogChange::Remove && is_all {
                    self.groups.remove(&part.group);
                    continue;
                }
            }
            group.is_under_repair = part.under_repair.unwrap_or(group.is_under_repair);
            group.joined_at = part.joined_at.unwrap_or(group.joined_at);
            part.entries.iter().for_each(|entry| group.take(entry));
            group.hard_state = part.hard_state.unwrap_or(group.hard_state);
            if let Some(conf_state) = &part.conf_state {
                group.conf_state.clone_from(conf_state);
            }
            if let Some(meta) = &part.meta {
                group.meta.clone_from(meta);
            }
        }
    }

    /// Holds what recovery found against the model.
    pub(crate) fn check(&self, shard: &OpenShard) {
        assert_eq!(shard.last_seq.0, self.last_seq, "last flush");
        assert_eq!(shard.groups.len(), self.groups.len(), "number of groups");
        for (state, (group, model)) in shard.groups.iter().zip(&self.groups) {
            self.check_group(state, *group, model);
            assert!(model.entries.ends_with(&state.tail), "tail of group {group}");
            self.check_reads(&shard.reader, *group);
        }
    }

    fn check_group(&self, state: &GroupState, group: GroupId, model: &ModelGroup) {
        assert_eq!(state.group, group);
        assert_eq!(state.hard_state, model.hard_state, "hard state of group {group}");
        assert_eq!(state.conf_state, model.conf_state, "conf state of group {group}");
        assert_eq!(state.meta, model.meta, "table of group {group}");
        assert_eq!(state.is_under_repair, model.is_under_repair, "repair of group {group}");
        assert_eq!(state.joined_at, model.joined_at, "entry that made it a member of group {group}");
        assert!(state.is_durable);
        assert_eq!(state.damage, None, "group {group}");
        assert_eq!(state.start, model.start, "start of group {group}");
        assert_eq!(state.last.0, model.last(), "last index of group {group}");
        assert_eq!(state.next_offset.0, model.next_offset(), "next offset of group {group}");
        assert_eq!(state.term_runs, model.term_runs(), "terms of group {group}");
        let changes = model.entries.iter().filter(|entry| entry.kind != EntryKind::Normal);
        assert_eq!(state.conf_changes, changes.map(|entry| entry.index).collect::<Vec<_>>());
    }

    /// Reads every entry by index and every record by offset, and the state of the whole group again.
    pub(crate) fn check_reads(&self, reader: &LogReader, group: GroupId) {
        let model = &self.groups[&group];
        self.check_group(&reader.reopen(group, None).unwrap(), group, model);
        let last = Index(model.last());
        for (at, entry) in model.entries.iter().enumerate() {
            let from = FetchFrom::Index(entry.index);
            assert_eq!(reader.read(&fetch(group, from, last, usize::MAX)).unwrap(), model.entries[at..]);
            // One entry comes in any case, and empty ones after it weigh nothing.
            let few = reader.read(&fetch(group, from, last, 0)).unwrap();
            assert!(!few.is_empty() && model.entries[at..].starts_with(&few));
            assert!(few[1..].iter().all(|entry| entry.data.is_empty()));
        }
        for record in model.start.offset.0..model.next_offset() {
            let at = model.ends.partition_point(|end| *end <= record);
            let read = reader.read(&fetch(group, FetchFrom::Offset(Offset(record)), last, usize::MAX));
            assert_eq!(read.unwrap(), model.entries[at..], "record {record} of group {group}");
        }
        let past = FetchFrom::Offset(Offset(model.next_offset()));
        assert!(reader.read(&fetch(group, past, Index(u64::MAX), 1)).is_err());
        let past = FetchFrom::Index(last.next());
        assert!(reader.read(&fetch(group, past, Index(u64::MAX), 1)).is_err());
    }
}

pub(crate) fn fetch(group: GroupId, from: FetchFrom, to: Index, bytes_max: usize) -> Fetch {
    Fetch { id: FetchId(1), group, from, to, bytes_max }
}

/// Positions in the journal file at which the block that ends with flush `seq` stands; stale copies
/// of its page count too.
pub(crate) fn blocks_in(journal: &[u8], seq: u64) -> (Vec<usize>, usize) {
    let mut found = Vec::new();
    let mut bytes = 0;
    for at in 0..journal.len().saturating_sub(64) {
        let header = &journal[at..at + 64];
        if header.starts_with(b"IRJB") && header[32..40] == seq.to_le_bytes() {
            let length = |at: usize| u32::from_le_bytes(header[at..at + 4].try_into().unwrap()) as usize;
            bytes = 64 + length(48) + length(52);
            found.push(at);
        }
    }
    assert!(!found.is_empty(), "the block of flush {seq} is in the file");
    (found, bytes)
}

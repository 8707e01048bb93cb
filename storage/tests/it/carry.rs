//! A flush that comes between the reading and the planning of a move beside it.

use std::io;
use std::ops::Bound;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use iroh_raft_core::{GroupAppend, GroupId, Index, ShardId};
use iroh_raft_storage::{DataFolder, Disk, FileDisk, FileKind, ShardOptions};
use redb::{BackendError, StorageBackend};

use crate::common::{IDENTITY, append, entry, fetch, hard_state};
use crate::folder_of_files;

const GROUP: GroupId = GroupId(7);
const DEADLINE: Duration = Duration::from_secs(60);

/// The file system, with reads of the journal that stop once, until they are told to go on.
#[derive(Debug)]
struct StoppingDisk(Arc<Stop>);

#[derive(Debug)]
struct Stop {
    is_armed: AtomicBool,
    stopped: Sender<()>,
    go_on: Mutex<Receiver<()>>,
}

#[derive(Debug)]
struct StoppingFile {
    file: Box<dyn StorageBackend>,
    stop: Option<Arc<Stop>>,
}

impl Disk for StoppingDisk {
    fn open(&self, path: &Path, kind: FileKind, is_new: bool) -> io::Result<Box<dyn StorageBackend>> {
        let file = FileDisk.open(path, kind, is_new)?;
        let stop = (kind == FileKind::Journal).then(|| self.0.clone());
        Ok(Box::new(StoppingFile { file, stop }))
    }

    fn free_bytes(&self, path: &Path) -> io::Result<u64> {
        FileDisk.free_bytes(path)
    }

    fn reserve(&self, path: &Path, bytes: u64) -> io::Result<()> {
        FileDisk.reserve(path, bytes)
    }

    folder_of_files!();
}

impl StorageBackend for StoppingFile {
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        if let Some(stop) = &self.stop
            && stop.is_armed.swap(false, Ordering::AcqRel)
        {
            stop.stopped.send(()).map_err(io::Error::other)?;
            let go_on = stop.go_on.lock().unwrap_or_else(PoisonError::into_inner);
            go_on.recv_timeout(DEADLINE).map_err(io::Error::other)?;
        }
        self.file.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.file.write(offset, data)
    }

    fn close(&self) -> io::Result<()> {
        self.file.close()
    }

    fn try_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.file.try_lock_range(start, end)
    }

    fn unlock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.file.unlock_range(start, end)
    }
}

/// One entry, each a record of its own.
fn one(index: u64, commit: u64) -> GroupAppend {
    GroupAppend {
        group: GROUP,
        change: None,
        hard_state: Some(hard_state(1, commit)),
        conf_state: None,
        meta: None,
        under_repair: None,
        joined_at: None,
        entries: vec![entry(index, 1, index - 1, 1)],
    }
}

#[test]
fn a_flush_that_carries_entries_on_while_the_next_move_reads_is_no_damage() {
    let folder = tempfile::tempdir().unwrap();
    let (stopped, is_stopped) = channel();
    let (go, go_on) = channel();
    let stop = Arc::new(Stop { is_armed: AtomicBool::new(false), stopped, go_on: Mutex::new(go_on) });
    let disk = Arc::new(StoppingDisk(stop.clone()));
    let mut data = DataFolder::open_on(folder.path(), IDENTITY, disk).unwrap();
    // One block a move, and none of them in redb's cache; a full journal waits for no commit.
    let options = ShardOptions {
        move_bytes: 1,
        journal_bytes_max: 1,
        journal_cache_bytes: 0,
        ..ShardOptions::default()
    };
    let mut shard = data.open_shard(ShardId(0), options).unwrap();
    for seq in 1..=3 {
        shard.writer.run_once(&[append(seq, vec![one(seq, 0)])]).unwrap();
    }
    let report = shard.mover.run_once().unwrap();
    assert_eq!((report.blocks, report.entries), (1, 0), "nothing is committed: the entry stays behind");

    stop.is_armed.store(true, Ordering::Release);
    let mut mover = shard.mover;
    let mover = std::thread::spawn(move || mover.run_once());
    is_stopped.recv_timeout(DEADLINE).expect("the move reads the journal");
    // Carries entry 1 into a block that the move does not see.
    shard.writer.run_once(&[append(4, vec![one(4, 4)])]).unwrap();
    go.send(()).unwrap();
    let report = mover.join().unwrap().expect("the journal is whole");
    assert_eq!((report.blocks, report.entries), (1, 2));

    let all: Vec<_> = (1..=4).map(|index| entry(index, 1, index - 1, 1)).collect();
    let from = iroh_raft_core::FetchFrom::Index(Index(1));
    assert_eq!(shard.reader.read(&fetch(GROUP, from, Index(4), usize::MAX)).unwrap(), all);
}

#[test]
fn a_move_that_is_due_waits_for_commits_and_leaves_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    let mut data = DataFolder::open_on(folder.path(), IDENTITY, Arc::new(FileDisk)).unwrap();
    let options = ShardOptions { move_bytes: 1, ..ShardOptions::default() };
    let mut shard = data.open_shard(ShardId(0), options).unwrap();
    for seq in 1..=2 {
        shard.writer.run_once(&[append(seq, vec![one(seq, 0)])]).unwrap();
    }
    let report = shard.mover.run_once().unwrap();
    assert_eq!((report.blocks, report.entries), (0, 0), "it would be written to the journal once more");
    assert!(!shard.mover.is_due(), "nor is it tried again with the same blocks");

    shard.writer.run_once(&[append(3, vec![one(3, 2)])]).unwrap();
    assert!(shard.mover.is_due());
    for _ in 0..2 {
        let report = shard.mover.run_once().unwrap();
        assert_eq!((report.blocks, report.entries), (1, 1));
    }
}

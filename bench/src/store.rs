//! Our storage as the engine runs it: the writer on the calling thread, the mover on another.

use std::ops::RangeInclusive;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{JoinHandle, Thread};
use std::time::{Duration, Instant};

use iroh_raft_core::{
    ClusterId, Fetch, FetchError, FetchFrom, FetchId, GroupId, Index, LogEntry, NodeId, Placement, ShardId,
};
use iroh_raft_storage::{
    DataFolder, Disk, FolderIdentity, JournalWriter, LogReader, Mover, RecoveryReport, ShardOptions,
    StorageError,
};

use crate::load::{Flush, Source};

/// A mover that makes no room for so long is broken.
const MOVER_DEADLINE: Duration = Duration::from_secs(120);
/// Bytes read at a time when a log is read back.
const READ_BYTES: usize = 256 << 10;

/// Why a benchmark cannot go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The storage failed.
    #[error("the storage failed: {0}")]
    Storage(#[from] StorageError),
    /// A read failed.
    #[error("reading group {group} at index {index} failed: {source}")]
    Read {
        /// The group.
        group: u64,
        /// First index of the read.
        index: u64,
        /// Why.
        source: FetchError,
    },
    /// Something else than what was written was read.
    #[error("group {group} has another entry at index {index} than was written")]
    Content {
        /// The group.
        group: u64,
        /// The index.
        index: u64,
    },
    /// The mover did not do in time what it was asked for.
    #[error("the mover did not answer within {} s: the journal cannot be emptied", MOVER_DEADLINE.as_secs())]
    MoverStuck,
    /// The mover's thread could not be started.
    #[error("cannot start the mover's thread: {0}")]
    Thread(std::io::Error),
}

/// What one flush took.
#[derive(Clone, Copy, Debug)]
pub struct Flushed {
    /// From the call until it was durable.
    pub duration: Duration,
    /// Before that: until the mover had made room in the journal.
    pub waited: Duration,
    /// Whether the mover worked at the beginning or the end of it.
    pub is_beside_move: bool,
}

/// One shard of a data folder, in use.
#[derive(Debug)]
pub struct Store {
    writer: JournalWriter,
    reader: LogReader,
    report: RecoveryReport,
    last_seq: u64,
    mover: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    _folder: DataFolder,
}

/// Between the writer and the mover's thread.
#[derive(Debug)]
struct Shared {
    writer: Thread,
    is_due: AtomicBool,
    /// Nothing is moved meanwhile.
    is_held: AtomicBool,
    is_stopping: AtomicBool,
    /// Everything is to be moved, whether due or not; reset when that is done.
    is_draining: AtomicBool,
    is_moving: AtomicBool,
    moves: AtomicU64,
    /// When the first move began.
    first_move: Mutex<Option<Instant>>,
    failure: Mutex<Option<StorageError>>,
}

impl Store {
    /// Opens the shard of a folder that has one; makes it if there is none.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn open(path: &Path, disk: Arc<dyn Disk>, options: ShardOptions) -> Result<Store, StoreError> {
        let identity =
            FolderIdentity { cluster: ClusterId([1; 16]), node: NodeId(1), placement: Placement::ONE_SHARD };
        let mut folder = DataFolder::open_on(path, identity, disk)?;
        let shard = folder.open_shard(ShardId(0), options)?;
        let mover = Arc::new(Shared {
            writer: std::thread::current(),
            is_due: AtomicBool::new(false),
            is_held: AtomicBool::new(false),
            is_stopping: AtomicBool::new(false),
            is_draining: AtomicBool::new(false),
            is_moving: AtomicBool::new(false),
            moves: AtomicU64::new(0),
            first_move: Mutex::new(None),
            failure: Mutex::new(None),
        });
        let thread = std::thread::Builder::new().name(String::from("mover")).spawn({
            let (mover, shared) = (shard.mover, mover.clone());
            move || shared.run(mover)
        });
        Ok(Store {
            writer: shard.writer,
            reader: shard.reader,
            report: shard.report,
            last_seq: shard.last_seq.0,
            mover,
            thread: Some(thread.map_err(StoreError::Thread)?),
            _folder: folder,
        })
    }

    /// What opening found.
    #[must_use]
    pub fn report(&self) -> &RecoveryReport {
        &self.report
    }

    /// Newest flush that opening found.
    #[must_use]
    pub fn last_seq(&self) -> u64 {
        self.last_seq
    }

    /// Moves made since it was opened.
    #[must_use]
    pub fn moves(&self) -> u64 {
        self.mover.moves.load(Ordering::Acquire)
    }

    /// When the first move began, if there was one.
    #[must_use]
    pub fn first_move(&self) -> Option<Instant> {
        *self.mover.first_move.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A reader for other threads.
    #[must_use]
    pub fn reader(&self) -> LogReader {
        self.reader.clone()
    }

    /// Stops the mover from beginning another move, or lets it again.
    pub fn hold_moves(&self, is_held: bool) {
        self.mover.is_held.store(is_held, Ordering::Release);
        self.wake_mover();
    }

    /// Makes a flush durable; before that, waits for room in the journal as the engine does.
    ///
    /// # Errors
    /// [`StoreError`]; also that of the mover.
    pub fn flush(&mut self, flush: Flush<'_>) -> Result<Flushed, StoreError> {
        let append = flush.to_append();
        let began = Instant::now();
        if self.writer.is_full() {
            self.mover.is_due.store(true, Ordering::Release);
            self.wait_for_mover(|store| !store.writer.is_full())?;
        }
        let is_beside_move = self.mover.is_moving.load(Ordering::Acquire);
        let waited = began.elapsed();
        let began = Instant::now();
        let report = self.writer.run_once(std::slice::from_ref(&append))?;
        let duration = began.elapsed();
        let is_beside_move = is_beside_move || self.mover.is_moving.load(Ordering::Acquire);
        if report.is_move_due && !self.mover.is_due.swap(true, Ordering::AcqRel) {
            self.wake_mover();
        }
        Ok(Flushed { duration, waited, is_beside_move })
    }

    /// Moves everything that can be moved, and waits for it.
    ///
    /// # Errors
    /// [`StoreError`]; also that of the mover.
    pub fn drain(&mut self) -> Result<(), StoreError> {
        self.mover.is_draining.store(true, Ordering::Release);
        self.wait_for_mover(|store| !store.mover.is_draining.load(Ordering::Acquire))
    }

    fn wait_for_mover(&mut self, is_done: impl Fn(&Store) -> bool) -> Result<(), StoreError> {
        self.wake_mover();
        let deadline = Instant::now() + MOVER_DEADLINE;
        while !is_done(self) {
            if let Some(error) = self.mover.failure.lock().unwrap_or_else(PoisonError::into_inner).take() {
                return Err(error.into());
            }
            let left = deadline.checked_duration_since(Instant::now()).ok_or(StoreError::MoverStuck)?;
            std::thread::park_timeout(left);
        }
        Ok(())
    }

    fn wake_mover(&self) {
        if let Some(thread) = &self.thread {
            thread.thread().unpark();
        }
    }

    /// Reads the entries of every group at these indexes back, compares them with what the source
    /// made, and returns their checksum.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn read_back(&self, source: &Source, indexes: RangeInclusive<u64>) -> Result<u32, StoreError> {
        let (first, last) = indexes.into_inner();
        let mut sum = 0;
        for group in 1..=source.load().groups {
            let mut index = first;
            while index <= last {
                for entry in read(&self.reader, group, index, last, READ_BYTES)? {
                    if entry.index != Index(index) || entry.data != source.entry_data(group, index) {
                        return Err(StoreError::Content { group, index });
                    }
                    sum = crc32c::crc32c_append(sum, &entry.data);
                    index += 1;
                }
            }
        }
        Ok(sum)
    }
}

/// Reads entries of a group, at least one.
///
/// # Errors
/// [`StoreError::Read`].
pub fn read(
    reader: &LogReader,
    group: u64,
    index: u64,
    to: u64,
    bytes_max: usize,
) -> Result<Vec<LogEntry>, StoreError> {
    let fetch = Fetch {
        id: FetchId(0),
        group: GroupId(group),
        from: FetchFrom::Index(Index(index)),
        to: Index(to),
        bytes_max,
    };
    reader.read(&fetch).map_err(|source| StoreError::Read { group, index, source })
}

impl Shared {
    fn run(&self, mut mover: Mover) {
        let mut is_more = false;
        while !self.is_stopping.load(Ordering::Acquire) {
            let is_draining = self.is_draining.load(Ordering::Acquire);
            let is_held = self.is_held.load(Ordering::Acquire) && !is_draining;
            if is_held || !(is_more || is_draining || self.is_due.swap(false, Ordering::AcqRel)) {
                std::thread::park();
                continue;
            }
            self.first_move.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_with(Instant::now);
            self.is_moving.store(true, Ordering::Release);
            let moved = mover.run_once();
            self.is_moving.store(false, Ordering::Release);
            match moved {
                Ok(report) => {
                    is_more = report.is_more;
                    self.moves.fetch_add(1, Ordering::AcqRel);
                    if is_draining && report.blocks == 0 {
                        self.is_draining.store(false, Ordering::Release);
                    }
                }
                Err(error) => {
                    *self.failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
                    self.writer.unpark();
                    return;
                }
            }
            self.writer.unpark();
        }
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        self.mover.is_stopping.store(true, Ordering::Release);
        self.wake_mover();
        if let Some(thread) = self.thread.take() {
            // A panic in it has been printed.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use iroh_raft_storage::FileDisk;

    use super::*;
    use crate::load::Load;

    #[test]
    fn what_was_flushed_is_moved_and_read_back() {
        let folder = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let options =
            ShardOptions { journal_bytes_max: 1 << 20, move_bytes: 128 << 10, ..ShardOptions::default() };
        let mut store = Store::open(folder.path(), Arc::new(FileDisk), options).unwrap();
        let mut source = Source::new(Load::new(4, 256, 64), 3);
        for _ in 0..200 {
            store.flush(source.next_flush()).unwrap();
        }
        store.drain().unwrap();
        assert!(store.moves() > 0 && store.first_move().is_some());
        assert_eq!(store.read_back(&source, 1..=200).unwrap(), source.checksum(1..=200));
        let wrong = Source::new(Load::new(4, 256, 64), 4);
        assert!(matches!(store.read_back(&wrong, 1..=1), Err(StoreError::Content { group: 1, index: 1 })));
    }
}

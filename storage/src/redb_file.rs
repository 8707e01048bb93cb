//! A redb file: the one place that talks to redb as a whole.
//!
//! Every call may fail and may panic (redb asserts what a damaged file breaks); both come out as
//! [`RedbFailure`]. No read transaction outlives a call: it would pin old pages.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use iroh_raft_core::ShardId;
use redb::{
    Builder, Database, Durability, ReadTransaction, ReadableDatabase, StorageBackend, WriteTransaction,
};

use crate::disk::{Disk, FileKind, HoldingBackend, ShardLock};
use crate::error::{FileDamage, Result, StorageError};
use crate::small_file::io_error;

/// Why a call into redb failed.
#[derive(Debug)]
pub(crate) enum RedbFailure {
    Redb(Box<redb::Error>),
    Panicked,
}

impl<E: Into<redb::Error>> From<E> for RedbFailure {
    fn from(error: E) -> RedbFailure {
        RedbFailure::Redb(Box::new(error.into()))
    }
}

impl RedbFailure {
    /// As the failure of a running shard.
    pub(crate) fn running(self, shard: ShardId) -> StorageError {
        match self {
            RedbFailure::Redb(source) if is_out_of_space(&source) => StorageError::NoSpace { shard },
            RedbFailure::Redb(source) => StorageError::Journal { shard, source },
            RedbFailure::Panicked => StorageError::JournalPanicked { shard },
        }
    }

    /// As the failure of opening a file.
    pub(crate) fn opening(self, path: &Path, shard: ShardId) -> StorageError {
        let path = path.to_owned();
        match self {
            RedbFailure::Redb(source) => match *source {
                // The medium's own; redb also says in this way what it makes of the content.
                redb::Error::Io(error) if error.raw_os_error().is_some() => io_error("open", &path)(error),
                // An earlier read of the same opening failed.
                redb::Error::PreviousIo => StorageError::Journal { shard, source },
                _ => StorageError::DamagedJournal { path, source },
            },
            RedbFailure::Panicked => StorageError::JournalPanicked { shard },
        }
    }

    /// Whether stored pages are damaged, as far as redb noticed.
    pub(crate) fn is_damage(&self) -> bool {
        match self {
            RedbFailure::Panicked => true,
            RedbFailure::Redb(error) => matches!(**error, redb::Error::Corrupted(_)),
        }
    }
}

fn is_out_of_space(error: &redb::Error) -> bool {
    let redb::Error::Io(error) = error else { return false };
    matches!(error.kind(), std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded)
}

fn guarded<T>(call: impl FnOnce() -> Result<T, RedbFailure>) -> Result<T, RedbFailure> {
    // What a panic left half done is inside redb, which poisons its own locks.
    catch_unwind(AssertUnwindSafe(call)).unwrap_or(Err(RedbFailure::Panicked))
}

/// What a commit costs and promises.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Commit {
    /// One sync. After a crash redb walks the file.
    Plain,
    /// Two syncs. After a crash the file opens at once.
    QuickRepair,
}

/// An open file. Reading and writing may happen at once, from different threads.
#[derive(Debug)]
pub(crate) struct RedbFile {
    /// Always there, except while it is closed or compacted.
    db: RwLock<Option<Database>>,
    pub(crate) path: PathBuf,
    backend: HoldingBackend,
    /// The shard is taken as long as any file of it is open.
    _lock: Arc<ShardLock>,
    /// Pages found in redb's cache and pages read from the file, as of the last write.
    cache_hits: AtomicU64,
    cache_misses: AtomicU64,
}

/// A file that was opened and not yet accepted: nothing was written to the disk so far.
#[derive(Debug)]
pub(crate) struct Candidate {
    pub(crate) file: RedbFile,
    /// Whether redb dropped its newest commit, whose bytes were not those it had written.
    pub(crate) has_fallen_back: bool,
}

impl RedbFile {
    fn new(
        db: RwLock<Option<Database>>,
        path: PathBuf,
        backend: HoldingBackend,
        lock: Arc<ShardLock>,
    ) -> RedbFile {
        let (cache_hits, cache_misses) = (AtomicU64::new(0), AtomicU64::new(0));
        RedbFile { db, path, backend, _lock: lock, cache_hits, cache_misses }
    }

    /// Creates a durable file with what `fill` puts into it.
    pub(crate) fn create(
        disk: &dyn Disk,
        path: &Path,
        kind: FileKind,
        shard: ShardId,
        lock: Arc<ShardLock>,
        fill: impl FnOnce(&WriteTransaction) -> Result<(), RedbFailure>,
    ) -> Result<()> {
        let backend = disk.open(path, kind, true).map_err(io_error("create", path))?;
        let holding = HoldingBackend::new(backend);
        holding.release().map_err(io_error("write", path))?;
        let made = guarded(|| {
            let db = Builder::new().set_cache_size(1 << 20).create_with_backend(holding.clone())?;
            let mut transaction = db.begin_write()?;
            transaction.set_durability(Durability::Immediate)?;
            fill(&transaction)?;
            transaction.commit()?;
            Ok(db)
        });
        let db = made.map_err(|error| error.opening(path, shard))?;
        let (db, path) = (RwLock::new(Some(db)), path.to_owned());
        drop(RedbFile::new(db, path, holding, lock));
        Ok(())
    }

    /// Opens a file that must exist. Nothing reaches the disk before [`Candidate::accept`].
    pub(crate) fn open(
        disk: &dyn Disk,
        path: &Path,
        kind: FileKind,
        shard: ShardId,
        cache_bytes: usize,
        lock: Arc<ShardLock>,
    ) -> Result<Candidate> {
        let backend = open_existing(disk, path, kind)?;
        let holding = HoldingBackend::new(backend);
        let fell_back = Arc::new(AtomicBool::new(false));
        let seen = fell_back.clone();
        let opened = guarded(|| {
            let mut builder = Builder::new();
            builder.set_cache_size(cache_bytes).set_repair_callback(move |session| {
                // redb reports 0.3 only when the newest commit failed its checksums; 0 and 0.6
                // belong to every repair.
                if session.progress() > 0.2 && session.progress() < 0.5 {
                    seen.store(true, Ordering::Relaxed);
                }
            });
            Ok(builder.create_with_backend(holding.clone())?)
        });
        let db = opened.map_err(|error| error.opening(path, shard))?;
        let (db, path) = (RwLock::new(Some(db)), path.to_owned());
        let file = RedbFile::new(db, path, holding, lock);
        Ok(Candidate { file, has_fallen_back: fell_back.load(Ordering::Relaxed) })
    }

    /// Bytes that redb wrote to the medium since the file was opened.
    pub(crate) fn written_bytes(&self) -> u64 {
        self.backend.written_bytes()
    }

    /// Pages found in redb's cache and pages read from the file, from opening to the last write.
    pub(crate) fn cache_hits(&self) -> (u64, u64) {
        (self.cache_hits.load(Ordering::Relaxed), self.cache_misses.load(Ordering::Relaxed))
    }

    fn db(&self) -> RwLockReadGuard<'_, Option<Database>> {
        self.db.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes a transaction durable, or leaves nothing of it.
    pub(crate) fn write<T>(
        &self,
        commit: Commit,
        change: impl FnOnce(&WriteTransaction) -> Result<T, RedbFailure>,
    ) -> Result<T, RedbFailure> {
        let db = self.db();
        guarded(|| {
            let db = db.as_ref().ok_or(redb::StorageError::DatabaseClosed)?;
            let mut transaction = db.begin_write()?;
            transaction.set_durability(Durability::Immediate)?;
            transaction.set_quick_repair(commit == Commit::QuickRepair);
            let made = change(&transaction)?;
            // Only while nobody else can write: redb counts a write's hit before the write, and
            // panics over the difference in between (4.4.0, in builds that check for overflow).
            let stats = db.cache_stats();
            self.cache_hits.store(stats.read_hits() + stats.write_hits(), Ordering::Relaxed);
            self.cache_misses.store(stats.read_misses() + stats.write_misses(), Ordering::Relaxed);
            transaction.commit()?;
            Ok(made)
        })
    }

    /// Looks at the file as of one moment.
    pub(crate) fn read<T>(
        &self,
        look: impl FnOnce(&ReadTransaction) -> Result<T, RedbFailure>,
    ) -> Result<T, RedbFailure> {
        let db = self.db();
        guarded(|| look(&db.as_ref().ok_or(redb::StorageError::DatabaseClosed)?.begin_read()?))
    }

    /// Moves what is stored to the front of the file and gives the rest back to the file system.
    /// Readers and writers wait meanwhile. Returns whether anything moved.
    pub(crate) fn compact(&self) -> Result<bool, RedbFailure> {
        let mut db = self.db.write().unwrap_or_else(PoisonError::into_inner);
        guarded(|| Ok(db.as_mut().ok_or(redb::StorageError::DatabaseClosed)?.compact()?))
    }
}

impl Drop for RedbFile {
    fn drop(&mut self) {
        let db = self.db.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        if catch_unwind(AssertUnwindSafe(move || drop(db))).is_err() {
            tracing::warn!(path = %self.path.display(), "redb panicked while closing a file; it is repaired at the next start");
        }
    }
}

impl Candidate {
    /// Lets redb write from now on.
    pub(crate) fn accept(self) -> Result<RedbFile> {
        self.file.backend.release().map_err(io_error("write", &self.file.path))?;
        Ok(self.file)
    }

    /// A file that is only going to be read: what redb writes when it opens and closes it stays in
    /// memory.
    pub(crate) fn keep(self) -> RedbFile {
        self.file
    }
}

/// Opens a file that must exist and hold something.
pub(crate) fn open_existing(disk: &dyn Disk, path: &Path, kind: FileKind) -> Result<Box<dyn StorageBackend>> {
    let backend = disk.open(path, kind, false).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => StorageError::MissingJournal { path: path.to_owned() },
        _ => io_error("open", path)(error),
    })?;
    // redb would make a new database of an empty file.
    match backend.len().map_err(io_error("read", path))? {
        0 => {
            Err(StorageError::DamagedFile { path: path.to_owned(), damage: FileDamage::Length { bytes: 0 } })
        }
        _ => Ok(backend),
    }
}

//! The redb file of a journal: the one place that talks to redb.
//!
//! Every call may fail and may panic (redb asserts what a damaged file breaks); both come out as
//! errors. No read transaction lives longer than a call: it would pin old pages.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use iroh_raft_core::{Append, FlushSeq, Offset};
use redb::{Builder, Database, Durability, ReadableDatabase, ReadableTable, StorageBackend, TableDefinition};

use crate::block::{self, ChainEnd, JournalIdentity};
use crate::disk::{Disk, FileKind, FolderLock, HoldingBackend};
use crate::error::{FileDamage, Result, StorageError};
use crate::mark::{seal_chain_end, unseal_chain_end};
use crate::small_file::{Kind, io_error};

/// Key: last flush of the block. Value: the block.
const JOURNAL: TableDefinition<'static, u64, &'static [u8]> = TableDefinition::new("journal");
/// Facts about the file, by name.
const META: TableDefinition<'static, &'static str, &'static [u8]> = TableDefinition::new("meta");
/// Name of the row that says whose journal this is and where its chain begins.
const ORIGIN: &str = "origin";
const ORIGIN_KIND: Kind = Kind { magic: *b"IRAFTJRN", version: 1 };

/// Why a call into redb failed.
#[derive(Debug)]
pub(crate) enum JournalError {
    Redb(Box<redb::Error>),
    Panicked,
}

impl JournalError {
    /// As the failure of a running journal.
    pub(crate) fn running(self, identity: JournalIdentity) -> StorageError {
        let shard = identity.shard;
        match self {
            JournalError::Redb(source) => StorageError::Journal { shard, source },
            JournalError::Panicked => StorageError::JournalPanicked { shard },
        }
    }

    /// As the failure of opening it.
    pub(crate) fn opening(self, path: &Path, identity: JournalIdentity) -> StorageError {
        let path = path.to_owned();
        match self {
            JournalError::Redb(source) => StorageError::DamagedJournal { path, source },
            JournalError::Panicked => StorageError::JournalPanicked { shard: identity.shard },
        }
    }
}

fn guarded<T>(call: impl FnOnce() -> Result<T, redb::Error>) -> Result<T, JournalError> {
    // What a panic left half done is inside redb, which poisons its own locks.
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(result) => result.map_err(|error| JournalError::Redb(Box::new(error))),
        Err(_) => Err(JournalError::Panicked),
    }
}

/// An open journal. Reading and writing may happen at once, from different threads.
#[derive(Debug)]
pub(crate) struct Journal {
    /// Always there; an option so that closing it can be guarded.
    db: Option<Database>,
    pub(crate) identity: JournalIdentity,
    /// The folder's lock is held as long as any journal is open.
    _lock: FolderLock,
}

/// A journal that was opened and not yet accepted: nothing was written to the disk so far.
#[derive(Debug)]
pub(crate) struct Candidate {
    pub(crate) journal: Journal,
    pub(crate) path: PathBuf,
    /// Where its chain begins.
    pub(crate) origin: ChainEnd,
    /// Whether redb dropped its newest commit, whose bytes were not those it had written.
    pub(crate) has_fallen_back: bool,
    holding: HoldingBackend,
}

impl Journal {
    /// Creates an empty, durable journal.
    pub(crate) fn create(
        disk: &dyn Disk,
        path: &Path,
        identity: JournalIdentity,
        lock: FolderLock,
    ) -> Result<()> {
        let backend = disk.open(path, FileKind::Journal, true).map_err(io_error("create", path))?;
        let holding = HoldingBackend::new(backend);
        holding.release().map_err(io_error("write", path))?;
        let made = guarded(|| {
            let db = Builder::new().set_cache_size(1 << 20).create_with_backend(holding)?;
            let mut transaction = db.begin_write()?;
            transaction.set_durability(Durability::Immediate)?;
            let origin = seal_chain_end(ORIGIN_KIND, identity, ChainEnd::default());
            transaction.open_table(META)?.insert(ORIGIN, origin.as_slice())?;
            transaction.open_table(JOURNAL)?;
            transaction.commit()?;
            Ok(db)
        });
        let db = made.map_err(|error| error.opening(path, identity))?;
        drop(Journal { db: Some(db), identity, _lock: lock });
        Ok(())
    }

    /// Opens a journal that must exist. Nothing reaches the disk before [`Candidate::accept`].
    pub(crate) fn open(
        disk: &dyn Disk,
        path: &Path,
        identity: JournalIdentity,
        cache_bytes: usize,
        lock: FolderLock,
    ) -> Result<Candidate> {
        let backend = open_existing(disk, path)?;
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
        let db = opened.map_err(|error| error.opening(path, identity))?;
        let journal = Journal { db: Some(db), identity, _lock: lock };
        let origin = guarded(|| {
            let table = journal.db().begin_read()?.open_table(META)?;
            Ok(table.get(ORIGIN)?.map(|row| unseal_chain_end(ORIGIN_KIND, row.value(), identity)))
        });
        let origin = match origin.map_err(|error| error.opening(path, identity))? {
            Some(origin) => origin.map_err(|error| error.at(path, ORIGIN_KIND))?,
            None => {
                let damage = FileDamage::Content;
                return Err(StorageError::DamagedFile { path: path.to_owned(), damage });
            }
        };
        let has_fallen_back = fell_back.load(Ordering::Relaxed);
        Ok(Candidate { journal, path: path.to_owned(), origin, has_fallen_back, holding })
    }

    fn db(&self) -> &Database {
        self.db.as_ref().expect("the database is there until drop")
    }

    /// Makes one block of these flushes durable, in one transaction. Returns the chain's new end.
    pub(crate) fn commit(
        &self,
        previous: ChainEnd,
        batch: &[Append],
        bases: &[Offset],
        bytes: usize,
    ) -> Result<ChainEnd, JournalError> {
        guarded(|| {
            let mut transaction = self.db().begin_write()?;
            transaction.set_durability(Durability::Immediate)?;
            let mut table = transaction.open_table(JOURNAL)?;
            let key = batch.last().map_or(0, |append| append.seq.0);
            let mut value = table.insert_reserve(key, bytes)?;
            let end = block::encode_block(value.as_mut(), self.identity, previous, batch, bases);
            drop(value);
            drop(table);
            transaction.commit()?;
            Ok(end)
        })
    }

    /// Removes a block that was never acknowledged.
    pub(crate) fn remove(&self, key: FlushSeq) -> Result<(), JournalError> {
        guarded(|| {
            let mut transaction = self.db().begin_write()?;
            transaction.set_durability(Durability::Immediate)?;
            transaction.open_table(JOURNAL)?.remove(key.0)?;
            transaction.commit()?;
            Ok(())
        })
    }

    /// Calls `look` with each of these blocks' bytes in turn (`None` for one that is not there),
    /// until it says false. All are seen as of one moment.
    pub(crate) fn look_at(
        &self,
        keys: impl Iterator<Item = FlushSeq>,
        mut look: impl FnMut(FlushSeq, Option<&[u8]>) -> bool,
    ) -> Result<(), JournalError> {
        guarded(|| {
            let table = self.db().begin_read()?.open_table(JOURNAL)?;
            for key in keys {
                let value = table.get(key.0)?;
                if !look(key, value.as_ref().map(redb::AccessGuard::value)) {
                    break;
                }
            }
            Ok(())
        })
    }

    /// Calls `look` with every block, oldest first or newest first, until it says false.
    pub(crate) fn look_at_all(
        &self,
        is_newest_first: bool,
        mut look: impl FnMut(FlushSeq, &[u8]) -> bool,
    ) -> Result<(), JournalError> {
        guarded(|| {
            let table = self.db().begin_read()?.open_table(JOURNAL)?;
            let mut rows = table.iter()?;
            while let Some(row) = if is_newest_first { rows.next_back() } else { rows.next() } {
                let (key, value) = row?;
                if !look(FlushSeq(key.value()), value.value()) {
                    break;
                }
            }
            Ok(())
        })
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        let db = self.db.take();
        if catch_unwind(AssertUnwindSafe(move || drop(db))).is_err() {
            tracing::warn!(shard = %self.identity.shard, "redb panicked while closing a journal; it is repaired at the next start");
        }
    }
}

impl Candidate {
    /// Lets redb write from now on.
    pub(crate) fn accept(self) -> Result<Journal> {
        self.holding.release().map_err(io_error("write", &self.path))?;
        Ok(self.journal)
    }
}

/// Opens a journal file that must exist and hold something.
pub(crate) fn open_existing(disk: &dyn Disk, path: &Path) -> Result<Box<dyn StorageBackend>> {
    let backend = disk.open(path, FileKind::Journal, false).map_err(|error| match error.kind() {
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

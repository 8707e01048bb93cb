//! The journal of a shard: a redb file with one block for each commit, cut into rows.

use std::path::Path;
use std::sync::Arc;

use iroh_raft_core::FlushSeq;
use redb::{ReadOnlyTable, ReadTransaction, TableDefinition};

use crate::block::{BlockError, BlockLengths, ChainEnd, JournalIdentity, NewBlock};
use crate::disk::{Disk, FileKind, ShardLock};
use crate::error::{FileDamage, Result, StorageError};
use crate::index::JournalBlock;
use crate::mark::{seal_chain_end, unseal_chain_end};
use crate::redb_file::{Candidate, Commit, RedbFailure, RedbFile};
use crate::rows::{self, Rows};
use crate::small_file::Kind;

/// Key: last flush of the block, number of the row. Value: a row of the block.
const BLOCKS: TableDefinition<'static, (u64, u16), &'static [u8]> = TableDefinition::new("blocks");
/// Facts about the file, by name.
const META: TableDefinition<'static, &'static str, &'static [u8]> = TableDefinition::new("meta");
/// Name of the row that says whose journal this is.
const ORIGIN: &str = "origin";
const ORIGIN_KIND: Kind = Kind { magic: *b"IRAFTJRN", version: 2 };

/// An open journal. Reading and writing may happen at once, from different threads.
#[derive(Debug)]
pub(crate) struct Journal {
    pub(crate) file: RedbFile,
    pub(crate) identity: JournalIdentity,
}

/// The blocks of a journal as of one moment.
pub(crate) struct Blocks(ReadOnlyTable<(u64, u16), &'static [u8]>);

/// A block as it stands in the file: nothing of it is checked.
pub(crate) struct RawBlock<'t> {
    pub(crate) lengths: BlockLengths,
    rows: Rows<'t>,
}

impl RawBlock<'_> {
    /// A copy of header and directory.
    pub(crate) fn directory(&self) -> Vec<u8> {
        self.rows.copy(0..self.lengths.directory).unwrap_or_default()
    }

    /// The pieces that hold a range of the block.
    pub(crate) fn pieces(&self, range: std::ops::Range<usize>) -> impl Iterator<Item = &[u8]> {
        self.rows.pieces(range)
    }

    /// The first bytes of a range, as many as `out` takes.
    pub(crate) fn head<'o>(&self, range: std::ops::Range<usize>, out: &'o mut [u8]) -> &'o [u8] {
        let wanted = range.len().min(out.len());
        let mut filled = 0;
        for piece in self.rows.pieces(range.start..range.start + wanted) {
            out[filled..filled + piece.len()].copy_from_slice(piece);
            filled += piece.len();
        }
        &out[..filled]
    }

    /// A copy of a range; `None` if it is not all there.
    pub(crate) fn copy(&self, range: std::ops::Range<usize>) -> Option<Vec<u8>> {
        self.rows.copy(range)
    }
}

impl Blocks {
    fn open(transaction: &ReadTransaction) -> Result<Blocks, RedbFailure> {
        Ok(Blocks(transaction.open_table(BLOCKS)?))
    }

    /// The block that ends with this flush.
    pub(crate) fn get(&self, last: FlushSeq) -> Result<Result<RawBlock<'_>, BlockError>, RedbFailure> {
        let Some(head) = self.0.get((last.0, 0))? else { return Ok(Err(BlockError::Chain)) };
        let lengths = match BlockLengths::peek(head.value()) {
            Ok(lengths) => lengths,
            Err(error) => return Ok(Err(error)),
        };
        let bytes = lengths.total();
        let rows = Rows::read(&self.0, bytes, |row| (last.0, row))?;
        Ok(rows.map(|rows| RawBlock { lengths, rows }).ok_or(BlockError::Length { bytes }))
    }

    /// Last flushes of all blocks from this one on, in order.
    pub(crate) fn keys_from(&self, from: FlushSeq) -> Result<Vec<FlushSeq>, RedbFailure> {
        let mut keys: Vec<FlushSeq> = Vec::new();
        for row in self.0.range((from.0, 0)..)? {
            let (last, _) = row?.0.value();
            if keys.last() != Some(&FlushSeq(last)) {
                keys.push(FlushSeq(last));
            }
        }
        Ok(keys)
    }
}

impl Journal {
    /// Creates an empty, durable journal.
    pub(crate) fn create(
        disk: &dyn Disk,
        path: &Path,
        identity: JournalIdentity,
        lock: Arc<ShardLock>,
    ) -> Result<()> {
        RedbFile::create(disk, path, FileKind::Journal, identity.shard, lock, |transaction| {
            let origin = seal_chain_end(ORIGIN_KIND, identity, ChainEnd::default());
            transaction.open_table(META)?.insert(ORIGIN, origin.as_slice())?;
            transaction.open_table(BLOCKS)?;
            Ok(())
        })
    }

    /// Checks whose journal a candidate is.
    pub(crate) fn check_origin(candidate: &Candidate, identity: JournalIdentity) -> Result<()> {
        let path = candidate.file.path.as_path();
        let origin = candidate.file.read(|transaction| {
            let table = transaction.open_table(META)?;
            let row = table.get(ORIGIN)?;
            Ok(row.map(|row| unseal_chain_end(ORIGIN_KIND, row.value(), identity)))
        });
        match origin.map_err(|error| error.opening(path, identity.shard))? {
            Some(origin) => origin.map(|_| ()).map_err(|error| error.at(path, ORIGIN_KIND)),
            None => {
                let damage = FileDamage::Content;
                Err(StorageError::DamagedFile { path: path.to_owned(), damage })
            }
        }
    }

    /// Looks at the blocks of a candidate.
    pub(crate) fn read_candidate<T>(
        candidate: &Candidate,
        look: impl FnOnce(&Blocks) -> Result<T, RedbFailure>,
    ) -> Result<T, RedbFailure> {
        candidate.file.read(|transaction| look(&Blocks::open(transaction)?))
    }

    /// Takes a candidate whose content was accepted, and removes blocks that are void.
    pub(crate) fn accept(
        candidate: Candidate,
        identity: JournalIdentity,
        void: &[FlushSeq],
    ) -> Result<Journal> {
        let journal = Journal { file: candidate.accept()?, identity };
        if !void.is_empty() {
            let removed = journal.file.write(Commit::Plain, |transaction| {
                let mut table = transaction.open_table(BLOCKS)?;
                for last in void {
                    let _ = table.extract_from_if((last.0, 0)..=(last.0, u16::MAX), |_, _| true)?.count();
                }
                Ok(())
            });
            removed.map_err(|error| error.opening(&journal.file.path, identity.shard))?;
        }
        Ok(journal)
    }

    /// Takes a candidate that is only going to be read.
    pub(crate) fn keep(candidate: Candidate, identity: JournalIdentity) -> Journal {
        Journal { file: candidate.keep(), identity }
    }

    /// Makes a block durable and removes void ones, in one transaction. `directory` is what
    /// [`NewBlock::encode_directory`] wrote.
    pub(crate) fn commit(
        &self,
        block: &NewBlock<'_>,
        directory: &[u8],
        void: &[JournalBlock],
    ) -> Result<(), RedbFailure> {
        self.file.write(Commit::Plain, |transaction| {
            let mut table = transaction.open_table(BLOCKS)?;
            let pieces = std::iter::once(directory).chain(block.data());
            let bytes = directory.len() + block.data_bytes();
            rows::insert(&mut table, bytes, |row| (block.last.0, row), pieces)?;
            for void in void {
                rows::remove(&mut table, void.bytes as usize, |row| (void.end.seq.0, row))?;
            }
            Ok(())
        })
    }

    /// Looks at the blocks as of one moment. Pages are pinned meanwhile.
    pub(crate) fn read<T>(
        &self,
        look: impl FnOnce(&Blocks) -> Result<T, RedbFailure>,
    ) -> Result<T, RedbFailure> {
        self.file.read(|transaction| look(&Blocks::open(transaction)?))
    }
}

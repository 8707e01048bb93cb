//! The acknowledged mark: a small file beside each journal that says how far it was acknowledged.
//!
//! redb falls back to an older commit without a word when the newest one is damaged. The mark is
//! written after each commit, without a sync of its own, and shows that. It may lag behind the
//! journal (after a crash between the two, or a power cut), never lead it.
//!
//! Two slots take turns, so that a torn write leaves the one before.

use std::path::{Path, PathBuf};

use iroh_raft_core::{FlushSeq, ShardId};
use redb::StorageBackend;

use crate::block::{ChainEnd, JournalIdentity};
use crate::cursor::{Cursor, Pen};
use crate::disk::{Disk, FileKind};
use crate::error::{FileDamage, Result, StorageError};
use crate::small_file::{self, Kind, UnsealError, io_error};

pub(crate) const KIND: Kind = Kind { magic: *b"IRAFTACK", version: 1 };
/// Distance of the slots: one sector each, which a disk writes whole.
const SLOT_BYTES: usize = 512;
const FILE_BYTES: u64 = 2 * SLOT_BYTES as u64;
const PAYLOAD_BYTES: usize = 32;
const SEALED_BYTES: usize = 16 + PAYLOAD_BYTES + 4;

/// The open file.
#[derive(Debug)]
pub(crate) struct Mark {
    file: Box<dyn StorageBackend>,
    path: PathBuf,
    identity: JournalIdentity,
    slot: u64,
    /// Reused by every write.
    sealed: Vec<u8>,
}

impl Mark {
    /// Writes the durable mark of an empty journal.
    pub(crate) fn create(disk: &dyn Disk, path: &Path, identity: JournalIdentity) -> Result<()> {
        let file = disk.open(path, FileKind::Mark, true).map_err(io_error("create", path))?;
        file.set_len(FILE_BYTES).map_err(io_error("write", path))?;
        let mut mark = Mark { file, path: path.to_owned(), identity, slot: 0, sealed: Vec::new() };
        mark.write(ChainEnd::default())?;
        mark.write(ChainEnd::default())?;
        mark.file.sync_data().map_err(io_error("sync", path))?;
        mark.file.close().map_err(io_error("close", path))
    }

    /// Opens it and reads how far the journal was acknowledged.
    pub(crate) fn open(disk: &dyn Disk, path: &Path, identity: JournalIdentity) -> Result<(Mark, ChainEnd)> {
        let file = disk.open(path, FileKind::Mark, false).map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => StorageError::MissingFile { path: path.to_owned() },
            _ => io_error("open", path)(error),
        })?;
        let bytes = file.len().map_err(io_error("read", path))?;
        if bytes != FILE_BYTES {
            let damage = FileDamage::Length { bytes };
            return Err(StorageError::DamagedFile { path: path.to_owned(), damage });
        }
        let mut slots = [0; 2 * SLOT_BYTES];
        file.read(0, &mut slots).map_err(io_error("read", path))?;
        let (first, second) = slots.split_at(SLOT_BYTES);
        let (end, slot) = match (read_slot(first, identity), read_slot(second, identity)) {
            (Ok(first), Ok(second)) if first.seq > second.seq => (first, 1),
            (_, Ok(second)) => (second, 0),
            (Ok(first), Err(_)) => (first, 1),
            (Err(error), Err(_)) => return Err(error.at(path, KIND)),
        };
        Ok((Mark { file, path: path.to_owned(), identity, slot, sealed: Vec::new() }, end))
    }

    /// Says that everything up to there is acknowledged from now on.
    pub(crate) fn write(&mut self, end: ChainEnd) -> Result<()> {
        let at = self.slot * SLOT_BYTES as u64;
        self.slot ^= 1;
        small_file::seal_into(KIND, &chain_end_payload(self.identity, end), &mut self.sealed);
        self.file.write(at, &self.sealed).map_err(io_error("write", &self.path))
    }
}

/// A chain's end as a sealed record: also how the journal itself says where its chain begins.
pub(crate) fn seal_chain_end(kind: Kind, identity: JournalIdentity, end: ChainEnd) -> Vec<u8> {
    small_file::seal(kind, &chain_end_payload(identity, end))
}

fn chain_end_payload(identity: JournalIdentity, end: ChainEnd) -> [u8; PAYLOAD_BYTES] {
    let mut payload = [0; PAYLOAD_BYTES];
    let mut pen = Pen::new(&mut payload);
    pen.put(&identity.storage);
    pen.u16(identity.shard.0);
    pen.u16(0);
    pen.u32(end.checksum);
    pen.u64(end.seq.0);
    payload
}

/// Why a sealed chain end is not the one of this journal.
#[derive(Clone, Copy, Debug)]
pub(crate) enum ChainEndError {
    Unseal(UnsealError),
    Foreign,
}

impl ChainEndError {
    pub(crate) fn at(self, path: &Path, kind: Kind) -> StorageError {
        match self {
            ChainEndError::Unseal(error) => small_file::unseal_error(path, kind, error),
            ChainEndError::Foreign => StorageError::ForeignJournal { path: path.to_owned() },
        }
    }
}

/// Reads a sealed chain end and checks that it belongs to this journal.
pub(crate) fn unseal_chain_end(
    kind: Kind,
    sealed: &[u8],
    identity: JournalIdentity,
) -> Result<ChainEnd, ChainEndError> {
    let payload = small_file::unseal(kind, sealed).map_err(ChainEndError::Unseal)?;
    let content = ChainEndError::Unseal(UnsealError::Damage(FileDamage::Content));
    let mut cursor = Cursor::new(payload);
    let storage = cursor.array().ok_or(content)?;
    let shard = ShardId(cursor.u16().ok_or(content)?);
    let reserved = cursor.u16().ok_or(content)?;
    let checksum = cursor.u32().ok_or(content)?;
    let seq = FlushSeq(cursor.u64().ok_or(content)?);
    if (JournalIdentity { storage, shard }) != identity {
        return Err(ChainEndError::Foreign);
    }
    if reserved == 0 && cursor.left() == 0 { Ok(ChainEnd { seq, checksum }) } else { Err(content) }
}

fn read_slot(slot: &[u8], identity: JournalIdentity) -> Result<ChainEnd, ChainEndError> {
    unseal_chain_end(KIND, slot.get(..SEALED_BYTES).unwrap_or_default(), identity)
}

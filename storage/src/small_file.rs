//! The small files of a data folder: one envelope for all, replaced as a whole.
//!
//! Envelope: magic (8), version (u16), zero (u16), payload length (u32), payload, CRC-32C of all
//! before it (u32). It stays the same in every version, so that a newer file is told from damage.

use std::io;
use std::path::Path;

use crate::cursor::Cursor;
use crate::disk::Disk;
use crate::error::{FileDamage, Result, StorageError};

const HEADER_BYTES: usize = 16;
const CHECKSUM_BYTES: usize = 4;
/// No small file is larger than this.
const FILE_BYTES_MAX: usize = 1 << 20;

/// A kind of small file.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Kind {
    pub(crate) magic: [u8; 8],
    /// Newest version of the payload. Older ones are read too, told apart by what they hold.
    pub(crate) version: u16,
}

pub(crate) fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StorageError {
    move |source| StorageError::Io { action, path: path.to_owned(), source }
}

/// The envelope around a payload.
pub(crate) fn seal(kind: Kind, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER_BYTES + payload.len() + CHECKSUM_BYTES);
    seal_into(kind, payload, &mut bytes);
    bytes
}

/// As [`seal`], in place of what is in `bytes`.
pub(crate) fn seal_into(kind: Kind, payload: &[u8], bytes: &mut Vec<u8>) {
    let length = u32::try_from(payload.len()).expect("payloads of small files are small");
    bytes.clear();
    bytes.extend_from_slice(&kind.magic);
    bytes.extend_from_slice(&kind.version.to_le_bytes());
    bytes.extend_from_slice(&[0; 2]);
    bytes.extend_from_slice(&length.to_le_bytes());
    bytes.extend_from_slice(payload);
    let checksum = crc32c::crc32c(bytes);
    bytes.extend_from_slice(&checksum.to_le_bytes());
}

/// Why an envelope cannot be opened.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum UnsealError {
    Damage(FileDamage),
    Newer(u16),
}

/// The payload in an envelope.
pub(crate) fn unseal(kind: Kind, bytes: &[u8]) -> Result<&[u8], UnsealError> {
    let length = UnsealError::Damage(FileDamage::Length { bytes: bytes.len() as u64 });
    let (body, checksum) = bytes.split_last_chunk::<CHECKSUM_BYTES>().ok_or(length)?;
    let mut cursor = Cursor::new(body);
    if cursor.array::<8>().ok_or(length)? != kind.magic {
        return Err(UnsealError::Damage(FileDamage::Magic));
    }
    let version = cursor.u16().ok_or(length)?;
    let reserved = cursor.u16().ok_or(length)?;
    let payload_bytes = cursor.u32().ok_or(length)?;
    if payload_bytes as usize != cursor.left() {
        return Err(length);
    }
    if crc32c::crc32c(body) != u32::from_le_bytes(*checksum) {
        return Err(UnsealError::Damage(FileDamage::Checksum));
    }
    if version > kind.version {
        return Err(UnsealError::Newer(version));
    }
    if version == 0 || reserved != 0 {
        return Err(UnsealError::Damage(FileDamage::Content));
    }
    cursor.bytes(cursor.left()).ok_or(length)
}

/// Names the file in an error.
pub(crate) fn unseal_error(path: &Path, kind: Kind, error: UnsealError) -> StorageError {
    let path = path.to_owned();
    match error {
        UnsealError::Damage(damage) => StorageError::DamagedFile { path, damage },
        UnsealError::Newer(found) => StorageError::NewerFormat { path, found, supported: kind.version },
    }
}

/// Reads a file's payload; `None` if there is no such file.
pub(crate) fn read(disk: &dyn Disk, path: &Path, kind: Kind) -> Result<Option<Vec<u8>>> {
    let bytes = match disk.read(path, FILE_BYTES_MAX + 1) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io_error("read", path)(error)),
    };
    if bytes.len() > FILE_BYTES_MAX {
        let damage = FileDamage::Length { bytes: bytes.len() as u64 };
        return Err(StorageError::DamagedFile { path: path.to_owned(), damage });
    }
    let payload = unseal(kind, &bytes).map_err(|error| unseal_error(path, kind, error))?;
    Ok(Some(payload.to_vec()))
}

/// Puts a file in place of the one there, if any: after a crash it is the old or the new one, and
/// once this returns it is the new one.
pub(crate) fn replace(disk: &dyn Disk, path: &Path, kind: Kind, payload: &[u8]) -> Result<()> {
    disk.replace(path, &seal(kind, payload)).map_err(io_error("replace", path))
}

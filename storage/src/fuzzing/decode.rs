//! Any bytes, taken for each thing that is stored.

use iroh_raft_core::{ConfState, GroupId, Index, Offset, ShardId, Term};

use crate::block::{Block, BlockLengths, JournalIdentity, offset_after};
use crate::cold_block::{ColdBlock, GroupRow, IndexRow, sealed};
use crate::cursor::Cursor;
use crate::folder::{BOOT_KIND, encode_boot, parse_boot};
use crate::group_log::ColdSpan;
use crate::manifest::{MANIFEST_KIND, Manifest};
use crate::mark::{self, seal_chain_end, unseal_chain_end};
use crate::small_file::{self, Kind};
use crate::snapshot::{SnapshotHead, SnapshotMeta, parse_chunk};
use crate::{nodes, peers};

const IDENTITY: JournalIdentity = JournalIdentity { storage: [0x11; 16], shard: ShardId(0) };
const GROUP: GroupId = GroupId(1);
/// Header of a block of either file, and of a chunk: its last field is the checksum of all the rest.
const BLOCK_HEADER_BYTES: usize = 64;
const SMALL_FILE_HEADER_BYTES: usize = 16;

/// A decoder: `Some` if it took the bytes for what it decodes.
type Decoder = fn(Vec<u8>) -> Option<()>;

const DECODERS: [(&str, Decoder); 11] = [
    ("journal-block", journal_block),
    ("log-block", log_block),
    ("group-row", group_row),
    ("index-row", index_row),
    ("snapshot-row", snapshot_row),
    ("snapshot-chunk", snapshot_chunk),
    ("mark", acknowledged_mark),
    ("manifest", manifest),
    ("boot", boot),
    ("peers", peer_epochs),
    ("nodes", known_nodes),
];

/// Decodes bytes as everything that is stored, and returns the names of what they were taken for.
///
/// Identity and checksums are made right first: changed bytes would get no further than these.
pub fn decode(data: &[u8]) -> Vec<&'static str> {
    let takes = |(name, decoder): (&'static str, Decoder)| decoder(data.to_vec()).map(|()| name);
    DECODERS.into_iter().filter_map(takes).collect()
}

/// Overwrites bytes, if there are so many.
fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    if let Some(place) = bytes.get_mut(at..at + value.len()) {
        place.copy_from_slice(value);
    }
}

fn put_block_identity(bytes: &mut [u8]) {
    put(bytes, 6, &IDENTITY.shard.0.to_le_bytes());
    put(bytes, 8, &IDENTITY.storage);
}

fn put_block_checksum(bytes: &mut [u8]) {
    if let Some((header, body)) = bytes.split_at_checked(BLOCK_HEADER_BYTES) {
        let checksum = crc32c::crc32c_append(crc32c::crc32c(&header[..BLOCK_HEADER_BYTES - 4]), body);
        put(bytes, BLOCK_HEADER_BYTES - 4, &checksum.to_le_bytes());
    }
}

fn journal_block(mut bytes: Vec<u8>) -> Option<()> {
    put_block_identity(&mut bytes);
    let lengths = BlockLengths::peek(&bytes).ok()?;
    let (directory, rest) = bytes.split_at_mut_checked(lengths.directory)?;
    put_block_checksum(directory);
    let block = Block::parse(directory, IDENTITY).ok()?;
    for part in block.parts() {
        let part = part.ok()?;
        let range = part.data_range();
        let data = rest.get(range.start - directory.len()..range.end - directory.len())?;
        assert_eq!(part.entries(data).count(), part.count as usize);
        part.entries(data).try_fold(part.base, |at, entry| offset_after(entry.kind, entry.data, at)).ok();
        assert!(part.term_runs().len() <= part.count as usize);
        assert!(part.conf_changes().all(|index| index >= part.first && index <= part.last()));
    }
    Some(())
}

fn log_block(mut bytes: Vec<u8>) -> Option<()> {
    put_block_identity(&mut bytes);
    put_block_checksum(&mut bytes);
    let mut cursor = Cursor::new(bytes.get(24..)?);
    let group = GroupId(cursor.u64()?);
    let first = Index(cursor.u64()?);
    let base = Offset(cursor.u64()?);
    let count = cursor.u32()?;
    let checksum = u32::from_le_bytes(*bytes.get(60..64)?.first_chunk()?);
    let last = Index(first.0.wrapping_add(u64::from(count)).wrapping_sub(1));
    let span = ColdSpan { first, last, base, bytes: u32::try_from(bytes.len()).ok()?, checksum };
    let block = ColdBlock::parse(&bytes, IDENTITY, group, &span).ok()?;
    assert_eq!(block.entries().count(), count as usize);
    block.entries().try_fold(base, |at, entry| offset_after(entry.kind, entry.data, at)).ok();
    Some(())
}

/// A row of the log file with the right checksum for its key.
fn resealed(key: &[u64], mut bytes: Vec<u8>) -> Option<Vec<u8>> {
    bytes.truncate(bytes.len().checked_sub(4)?);
    Some(sealed(key, bytes))
}

fn group_row(bytes: Vec<u8>) -> Option<()> {
    let bytes = resealed(&[GROUP.0], bytes)?;
    let row = GroupRow::parse(GROUP, &bytes)?;
    assert_eq!(row.encode(GROUP), bytes);
    Some(())
}

fn index_row(bytes: Vec<u8>) -> Option<()> {
    // The key has the first index; so has the first run of terms, behind the fixed fields.
    let first = Cursor::new(bytes.get(48..)?).u64()?;
    let bytes = resealed(&[GROUP.0, first], bytes)?;
    let row = IndexRow::parse(GROUP, Index(first), &bytes)?;
    assert_eq!(row.encode(GROUP), bytes);
    Some(())
}

fn snapshot_row(bytes: Vec<u8>) -> Option<()> {
    let bytes = resealed(&[GROUP.0], bytes)?;
    let meta = SnapshotMeta::parse(GROUP, &bytes)?;
    assert_eq!(meta.encode(), bytes);
    assert_eq!(meta.chunk_bytes(meta.chunks), None);
    Some(())
}

fn snapshot_chunk(mut bytes: Vec<u8>) -> Option<()> {
    put_block_identity(&mut bytes);
    put_block_checksum(&mut bytes);
    let mut cursor = Cursor::new(bytes.get(24..)?);
    let group = GroupId(cursor.u64()?);
    let number = cursor.u64()?;
    let index = Index(cursor.u64()?);
    let chunk = cursor.u32()?;
    let head = SnapshotHead {
        index,
        term: Term(0),
        offset: Offset(0),
        conf_state: ConfState::default(),
        table: Default::default(),
    };
    let meta = SnapshotMeta { group, head, number, body_bytes: 0, chunks: 0, checksum: 0 };
    parse_chunk(&bytes, IDENTITY, &meta, chunk).map(|_| ())
}

/// A small file that says the right length and has the right checksum.
fn put_envelope(bytes: &mut [u8]) {
    let Some(length) = bytes.len().checked_sub(SMALL_FILE_HEADER_BYTES + 4) else { return };
    put(bytes, 12, &(length as u32).to_le_bytes());
    let (body, checksum) = bytes.split_at_mut(SMALL_FILE_HEADER_BYTES + length);
    checksum.copy_from_slice(&crc32c::crc32c(body).to_le_bytes());
}

fn payload(kind: Kind, bytes: &mut [u8]) -> Option<&[u8]> {
    put_envelope(bytes);
    small_file::unseal(kind, bytes).ok()
}

fn acknowledged_mark(mut bytes: Vec<u8>) -> Option<()> {
    put(&mut bytes, SMALL_FILE_HEADER_BYTES, &IDENTITY.storage);
    put(&mut bytes, SMALL_FILE_HEADER_BYTES + 16, &IDENTITY.shard.0.to_le_bytes());
    put_envelope(&mut bytes);
    let end = unseal_chain_end(mark::KIND, &bytes, IDENTITY).ok()?;
    assert_eq!(seal_chain_end(mark::KIND, IDENTITY, end), bytes);
    Some(())
}

fn manifest(mut bytes: Vec<u8>) -> Option<()> {
    Manifest::parse(payload(MANIFEST_KIND, &mut bytes)?).map(|_| ())
}

fn boot(mut bytes: Vec<u8>) -> Option<()> {
    let payload = payload(BOOT_KIND, &mut bytes)?;
    assert_eq!(encode_boot(parse_boot(payload)?), payload);
    Some(())
}

fn peer_epochs(mut bytes: Vec<u8>) -> Option<()> {
    peers::parse(payload(peers::KIND, &mut bytes)?).map(|_| ())
}

fn known_nodes(mut bytes: Vec<u8>) -> Option<()> {
    nodes::parse(payload(nodes::KIND, &mut bytes)?).map(|_| ())
}

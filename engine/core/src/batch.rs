//! Records, packed: the block a client sends and the batch an entry holds.
//!
//! FORMAT.md, "Batch", has the bytes. A batch is written once by the leader and from then on only
//! sliced: the same bytes go to the journal, to every follower and to every reader.
//!
//! Invariants: a batch holds at least one record; its lengths add up to its payload; its base
//! offset is a function of the log before it, so every replica can check it; its runs lie within it, in order, apart.

use bytes::{BufMut, Bytes, BytesMut};

use crate::ids::{Offset, Sequence, SessionId, WallTime};

/// Version of the layout below.
pub const BATCH_VERSION: u8 = 1;
/// Bytes of the fixed header of a batch.
pub const BATCH_HEADER_BYTES: usize = 32;
/// Bytes of one row of the runs table.
pub const RUN_BYTES: usize = 32;
/// Runs in one batch at most.
pub const RUNS_MAX: usize = 1024;
const LENGTH_BYTES: usize = 4;

/// Why bytes are not a batch or a block.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, thiserror::Error)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub enum BatchError {
    /// Shorter than its header, its tables or its payload.
    #[error("cut short: {bytes} bytes where {expected} are needed")]
    Short {
        /// Bytes there are.
        bytes: usize,
        /// Bytes needed.
        expected: usize,
    },
    /// Of a version this build does not read.
    #[error("batch version {version} is not one this build reads (1)")]
    Version {
        /// The version found.
        version: u8,
    },
    /// Bits that must be zero are not.
    #[error("reserved bits are set")]
    Reserved,
    /// No records.
    #[error("no records")]
    Empty,
    /// Offsets beyond the last there is.
    #[error("{count} records from offset {base} are more than there are offsets")]
    Offsets {
        /// Offset of the first record.
        base: Offset,
        /// Number of records.
        count: u32,
    },
    /// More runs than there may be, or runs that overlap, lie outside of the batch, or count beyond the last sequence.
    #[error("its runs of client sessions do not fit it")]
    Runs,
    /// Lengths do not add up to the payload.
    #[error("record lengths add up to {sum} bytes, the payload has {payload}")]
    Lengths {
        /// Sum of the lengths.
        sum: u64,
        /// Bytes of payload.
        payload: u64,
    },
}

/// Records of one request: `count` lengths (u32, little-endian), then the records' bytes.
///
/// One slice of what arrived; nothing is copied until it goes into a batch.
#[derive(Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(into = "(u32, Bytes)", try_from = "(u32, Bytes)"))]
pub struct RecordBlock {
    count: u32,
    bytes: Bytes,
}

impl std::fmt::Debug for RecordBlock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RecordBlock").field("count", &self.count).field("bytes", &self.bytes.len()).finish()
    }
}

#[cfg(feature = "serde")]
impl From<RecordBlock> for (u32, Bytes) {
    fn from(block: RecordBlock) -> (u32, Bytes) {
        (block.count, block.bytes)
    }
}

/// What is read is checked like what a client sends.
#[cfg(feature = "serde")]
impl TryFrom<(u32, Bytes)> for RecordBlock {
    type Error = BatchError;

    fn try_from((count, bytes): (u32, Bytes)) -> Result<RecordBlock, BatchError> {
        RecordBlock::new(count, bytes)
    }
}

impl RecordBlock {
    /// Takes bytes that claim to be a block of `count` records, and checks the claim.
    ///
    /// # Errors
    /// [`BatchError`] when there is no record or the lengths do not add up.
    pub fn new(count: u32, bytes: Bytes) -> Result<RecordBlock, BatchError> {
        if count == 0 {
            return Err(BatchError::Empty);
        }
        let table = count as usize * LENGTH_BYTES;
        if bytes.len() < table {
            return Err(BatchError::Short { bytes: bytes.len(), expected: table });
        }
        check_lengths(&bytes[..table], bytes.len() - table)?;
        Ok(RecordBlock { count, bytes })
    }

    /// Packs records into a block. Copies them.
    ///
    /// # Panics
    /// If there is no record, or more than `u32::MAX`, or one of 4 GiB or more.
    #[must_use]
    pub fn from_records<R: AsRef<[u8]>>(records: &[R]) -> RecordBlock {
        let count = u32::try_from(records.len()).expect("fewer than 2^32 records");
        assert!(count > 0, "a block has at least one record");
        let payload: usize = records.iter().map(|record| record.as_ref().len()).sum();
        let mut bytes = BytesMut::with_capacity(records.len() * LENGTH_BYTES + payload);
        for record in records {
            bytes.put_u32_le(u32::try_from(record.as_ref().len()).expect("a record is below 4 GiB"));
        }
        for record in records {
            bytes.put_slice(record.as_ref());
        }
        RecordBlock { count, bytes: bytes.freeze() }
    }

    /// Number of records, at least 1.
    #[must_use]
    pub fn count(&self) -> u32 {
        self.count
    }

    /// Bytes of the records alone.
    #[must_use]
    pub fn payload_bytes(&self) -> usize {
        self.bytes.len() - self.count as usize * LENGTH_BYTES
    }

    /// Bytes of the block: lengths and records.
    #[must_use]
    pub fn as_bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// Size of the largest record, in bytes.
    #[must_use]
    pub fn largest(&self) -> usize {
        self.lengths().chunks_exact(LENGTH_BYTES).map(length).max().unwrap_or(0)
    }

    /// The records, in order.
    pub fn records(&self) -> impl Iterator<Item = &[u8]> {
        let mut payload = self.payload();
        self.lengths().chunks_exact(LENGTH_BYTES).map(move |bytes| {
            let (record, rest) = payload.split_at(length(bytes));
            payload = rest;
            record
        })
    }

    fn lengths(&self) -> &[u8] {
        &self.bytes[..self.count as usize * LENGTH_BYTES]
    }

    fn payload(&self) -> &[u8] {
        &self.bytes[self.count as usize * LENGTH_BYTES..]
    }
}

/// Records of a batch that a client appended together in its session.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Run {
    /// The session.
    pub session: SessionId,
    /// Sequence of the run's first record; the others follow.
    pub first: Sequence,
    /// Number of records, at least 1.
    pub count: u32,
    /// Place of the run's first record in its batch, from 0.
    pub place: u32,
}

impl Run {
    fn put(&self, data: &mut BytesMut) {
        data.put_slice(&self.session.0);
        data.put_u64_le(self.first.0);
        data.put_u32_le(self.count);
        data.put_u32_le(self.place);
    }

    fn parse(row: &[u8; RUN_BYTES]) -> Run {
        let [session @ .., f0, f1, f2, f3, f4, f5, f6, f7, c0, c1, c2, c3, p0, p1, p2, p3] = *row;
        Run {
            session: SessionId(session),
            first: Sequence(u64::from_le_bytes([f0, f1, f2, f3, f4, f5, f6, f7])),
            count: u32::from_le_bytes([c0, c1, c2, c3]),
            place: u32::from_le_bytes([p0, p1, p2, p3]),
        }
    }
}

/// Packs blocks into the data of one entry.
///
/// # Panics
/// If there is no block, or the batch would reach 4 GiB.
#[must_use]
pub fn encode_batch<'a>(
    base: Offset,
    at: WallTime,
    blocks: impl Iterator<Item = &'a RecordBlock> + Clone,
) -> Bytes {
    encode_batch_with_runs(base, at, blocks, &[])
}

/// As [`encode_batch`], with the runs of client sessions among the records, in order of place.
///
/// # Panics
/// As [`encode_batch`], or if the runs are more than [`RUNS_MAX`].
#[must_use]
pub fn encode_batch_with_runs<'a>(
    base: Offset,
    at: WallTime,
    blocks: impl Iterator<Item = &'a RecordBlock> + Clone,
    runs: &[Run],
) -> Bytes {
    // All are small: each has a buffer for itself.
    BatchBuffer::new(usize::MAX).encode(base, at, blocks, runs)
}

/// Where batches are packed. Large ones are cut one behind the other from a buffer for many, which is used again once all of
/// them are gone; a slice keeps all of it alive, so small ones have buffers for themselves.
#[derive(Debug)]
pub(crate) struct BatchBuffer {
    shared: BytesMut,
    /// Batches below this are small.
    bytes_min: usize,
}

/// Bytes of a buffer for many batches: no more than one frame of a peer may keep alive.
const SHARED_BYTES: usize = 1 << 20;

impl BatchBuffer {
    pub(crate) fn new(bytes_min: usize) -> BatchBuffer {
        BatchBuffer { shared: BytesMut::new(), bytes_min }
    }

    /// As [`encode_batch_with_runs`].
    pub(crate) fn encode<'a>(
        &mut self,
        base: Offset,
        at: WallTime,
        blocks: impl Iterator<Item = &'a RecordBlock> + Clone,
        runs: &[Run],
    ) -> Bytes {
        let records: usize = blocks.clone().map(|block| block.as_bytes().len()).sum();
        let bytes = BATCH_HEADER_BYTES + runs.len() * RUN_BYTES + records;
        if bytes < self.bytes_min {
            let mut own = BytesMut::with_capacity(bytes);
            put_batch(&mut own, base, at, blocks, runs);
            return own.freeze();
        }
        if !self.shared.try_reclaim(bytes) {
            self.shared = BytesMut::with_capacity(bytes.max(SHARED_BYTES));
        }
        put_batch(&mut self.shared, base, at, blocks, runs);
        self.shared.split().freeze()
    }
}

fn put_batch<'a>(
    data: &mut BytesMut,
    base: Offset,
    at: WallTime,
    blocks: impl Iterator<Item = &'a RecordBlock> + Clone,
    runs: &[Run],
) {
    assert!(runs.len() <= RUNS_MAX, "{} runs in a batch", runs.len());
    let count: u64 = blocks.clone().map(|block| u64::from(block.count)).sum();
    let payload: usize = blocks.clone().map(RecordBlock::payload_bytes).sum();
    assert!(count > 0, "a batch has at least one record");
    let count = u32::try_from(count).expect("fewer than 2^32 records");
    let payload_bytes = u32::try_from(payload).expect("a batch is below 4 GiB");
    data.put_u8(BATCH_VERSION);
    data.put_u8(0);
    data.put_u16_le(runs.len() as u16);
    data.put_u32_le(count);
    data.put_u64_le(base.0);
    data.put_u64_le(at.0);
    data.put_u32_le(payload_bytes);
    data.put_u32_le(0);
    runs.iter().for_each(|run| run.put(data));
    for block in blocks.clone() {
        data.put_slice(block.lengths());
    }
    for block in blocks {
        data.put_slice(block.payload());
    }
}

/// A batch, read in place.
#[derive(Clone, Debug)]
pub struct Batch<'a> {
    base: Offset,
    at: WallTime,
    count: u32,
    runs: &'a [u8],
    lengths: &'a [u8],
    payload: &'a [u8],
}

/// What the fixed header of a batch says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BatchHeader {
    /// Offset of the first record.
    pub base: Offset,
    /// Leader's wall clock when it packed the batch.
    pub at: WallTime,
    /// Number of records, at least 1.
    pub count: u32,
    runs: u16,
    payload_bytes: u32,
}

impl BatchHeader {
    /// Reads the fixed header alone.
    ///
    /// # Errors
    /// [`BatchError`] when it is cut short, of another version, or empty, or its offsets are out of range.
    pub fn parse(data: &[u8]) -> Result<BatchHeader, BatchError> {
        let short = BatchError::Short { bytes: data.len(), expected: BATCH_HEADER_BYTES };
        let header: &[u8; BATCH_HEADER_BYTES] = data.first_chunk().ok_or(short)?;
        let [version, flags, r0, r1, c0, c1, c2, c3, rest @ ..] = *header;
        let [b0, b1, b2, b3, b4, b5, b6, b7, rest @ ..] = rest;
        let [t0, t1, t2, t3, t4, t5, t6, t7, p0, p1, p2, p3, z0, z1, z2, z3] = rest;
        if version != BATCH_VERSION {
            return Err(BatchError::Version { version });
        }
        if flags != 0 || [z0, z1, z2, z3] != [0; 4] {
            return Err(BatchError::Reserved);
        }
        let count = u32::from_le_bytes([c0, c1, c2, c3]);
        if count == 0 {
            return Err(BatchError::Empty);
        }
        let base = Offset(u64::from_le_bytes([b0, b1, b2, b3, b4, b5, b6, b7]));
        if base.0.checked_add(u64::from(count)).is_none() {
            return Err(BatchError::Offsets { base, count });
        }
        Ok(BatchHeader {
            base,
            at: WallTime(u64::from_le_bytes([t0, t1, t2, t3, t4, t5, t6, t7])),
            count,
            runs: u16::from_le_bytes([r0, r1]),
            payload_bytes: u32::from_le_bytes([p0, p1, p2, p3]),
        })
    }

    /// Whether records of client sessions are in it.
    #[must_use]
    pub fn has_runs(&self) -> bool {
        self.runs > 0
    }

    /// Offset after the last record.
    #[must_use]
    pub fn end(&self) -> Offset {
        Offset(self.base.0 + u64::from(self.count))
    }
}

impl<'a> Batch<'a> {
    /// Reads a batch in place and checks everything about it that does not depend on the log.
    ///
    /// # Errors
    /// [`BatchError`], one for each thing that can be wrong.
    pub fn parse(data: &'a [u8]) -> Result<Batch<'a>, BatchError> {
        let header = BatchHeader::parse(data)?;
        let runs = usize::from(header.runs) * RUN_BYTES;
        let table = header.count as usize * LENGTH_BYTES;
        let expected = BATCH_HEADER_BYTES + runs + table + header.payload_bytes as usize;
        let short = BatchError::Short { bytes: data.len(), expected };
        if data.len() != expected {
            return Err(short);
        }
        let (_, rest) = data.split_at_checked(BATCH_HEADER_BYTES).ok_or(short)?;
        let (runs, rest) = rest.split_at_checked(runs).ok_or(short)?;
        check_runs(runs, header.count)?;
        let (lengths, payload) = rest.split_at_checked(table).ok_or(short)?;
        check_lengths(lengths, payload.len())?;
        Ok(Batch { base: header.base, at: header.at, count: header.count, runs, lengths, payload })
    }

    /// Offset of the first record.
    #[must_use]
    pub fn base(&self) -> Offset {
        self.base
    }

    /// Leader's wall clock when it packed the batch.
    #[must_use]
    pub fn at(&self) -> WallTime {
        self.at
    }

    /// Number of records, at least 1.
    #[must_use]
    pub fn count(&self) -> u32 {
        self.count
    }

    /// The runs of client sessions, in order of place.
    pub fn runs(&self) -> impl Iterator<Item = Run> + use<'a> {
        self.runs.as_chunks::<RUN_BYTES>().0.iter().map(Run::parse)
    }

    /// The records, each with its offset.
    pub fn records(&self) -> impl Iterator<Item = (Offset, &'a [u8])> + use<'a> {
        let mut payload = self.payload;
        let base = self.base.0;
        self.lengths.chunks_exact(LENGTH_BYTES).zip(base..).map(move |(bytes, offset)| {
            let (record, rest) = payload.split_at(length(bytes));
            payload = rest;
            (Offset(offset), record)
        })
    }
}

/// A record as a reader sees it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Record<'a> {
    /// Its number within its group.
    pub offset: Offset,
    /// Leader's wall clock when it packed the record's batch; never falls from one record to the next.
    pub at: WallTime,
    /// Its bytes.
    pub data: &'a [u8],
}

/// The records of batches that were checked before, in order.
pub fn records_of(batches: &[Bytes]) -> impl Iterator<Item = Record<'_>> {
    let batches = batches.iter().filter_map(|data| Batch::parse(data).ok());
    batches.flat_map(|batch| {
        let at = batch.at();
        batch.records().map(move |(offset, data)| Record { offset, at, data })
    })
}

fn length(bytes: &[u8]) -> usize {
    bytes.first_chunk().map_or(0, |bytes| u32::from_le_bytes(*bytes) as usize)
}

fn check_lengths(table: &[u8], payload: usize) -> Result<(), BatchError> {
    let sum: u64 = table.chunks_exact(LENGTH_BYTES).map(|bytes| length(bytes) as u64).sum();
    if sum == payload as u64 { Ok(()) } else { Err(BatchError::Lengths { sum, payload: payload as u64 }) }
}

fn check_runs(table: &[u8], count: u32) -> Result<(), BatchError> {
    let (rows, _) = table.as_chunks::<RUN_BYTES>();
    let mut end = 0;
    for run in rows.iter().map(Run::parse) {
        let is_apart = run.place >= end && run.count > 0;
        let is_counted = run.first.0.checked_add(run.count.into()).is_some();
        end = run.place.checked_add(run.count).filter(|end| *end <= count).ok_or(BatchError::Runs)?;
        if !is_apart || !is_counted {
            return Err(BatchError::Runs);
        }
    }
    if rows.len() <= RUNS_MAX { Ok(()) } else { Err(BatchError::Runs) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(place: u32, count: u32) -> Run {
        Run { session: SessionId([7; 16]), first: Sequence(3), count, place }
    }

    #[test]
    fn runs_lie_within_their_batch_in_order_and_apart() {
        let blocks =
            [RecordBlock::from_records(&[&b"a"[..], b"b", b"c"]), RecordBlock::from_records(&[b"d"])];
        let with = |runs: &[Run]| encode_batch_with_runs(Offset(0), WallTime(0), blocks.iter(), runs);
        let parse = |runs: &[Run]| Batch::parse(&with(runs)).map(|batch| batch.runs().collect::<Vec<_>>());
        for good in [vec![], vec![run(0, 4)], vec![run(0, 1), run(1, 2), run(3, 1)], vec![run(2, 1)]] {
            assert_eq!(parse(&good), Ok(good));
        }
        let beyond = Run { first: Sequence(u64::MAX), ..run(0, 1) };
        let bad = [vec![run(0, 0)], vec![run(0, 5)], vec![run(u32::MAX, 1)], vec![beyond]];
        for bad in bad.into_iter().chain([vec![run(0, 2), run(1, 1)], vec![run(3, 1), run(0, 1)]]) {
            assert_eq!(parse(&bad), Err(BatchError::Runs), "{bad:?}");
        }
        let data = with(&[run(0, 1), run(2, 2)]);
        for cut in 0..data.len() {
            assert!(Batch::parse(&data[..cut]).is_err(), "cut at {cut}");
        }
    }

    #[test]
    fn a_batch_gives_back_the_records_of_its_blocks_in_order() {
        let blocks = [RecordBlock::from_records(&[&b"one"[..], b""]), RecordBlock::from_records(&[b"three"])];
        let data = encode_batch(Offset(7), WallTime(99), blocks.iter());
        let batch = Batch::parse(&data).unwrap();
        let records: Vec<_> = batch.records().collect();
        assert_eq!(records, [(Offset(7), &b"one"[..]), (Offset(8), &b""[..]), (Offset(9), &b"three"[..])]);
        assert_eq!((batch.base(), batch.at(), batch.count()), (Offset(7), WallTime(99), 3));
        assert_eq!(BatchHeader::parse(&data).unwrap().end(), Offset(10));
    }

    #[test]
    fn every_cut_of_a_batch_is_an_error() {
        let data = encode_batch(Offset(0), WallTime(0), [RecordBlock::from_records(&[b"abc"])].iter());
        for cut in 0..data.len() {
            assert!(Batch::parse(&data[..cut]).is_err(), "cut at {cut}");
        }
    }

    /// Counting them would overflow.
    #[test]
    fn offsets_beyond_the_last_there_is_are_refused() {
        let block = RecordBlock::from_records(&[&b"abc"[..], b"de"]);
        let at = |base| encode_batch(Offset(base), WallTime(0), [&block].into_iter());
        let data = at(u64::MAX - 2);
        let offsets: Vec<_> = Batch::parse(&data).unwrap().records().map(|(offset, _)| offset.0).collect();
        assert_eq!(offsets, [u64::MAX - 2, u64::MAX - 1]);
        let base = Offset(u64::MAX - 1);
        let error = BatchError::Offsets { base, count: 2 };
        assert_eq!(BatchHeader::parse(&at(base.0)).unwrap_err(), error);
        assert_eq!(Batch::parse(&at(base.0)).unwrap_err(), error);
    }

    #[test]
    fn a_block_whose_lengths_lie_is_refused() {
        let good = RecordBlock::from_records(&[&b"abc"[..], b"de"]);
        let mut bytes = good.as_bytes().to_vec();
        assert!(RecordBlock::new(2, Bytes::copy_from_slice(&bytes)).is_ok());
        bytes[0] = 9;
        assert_eq!(RecordBlock::new(2, bytes.into()), Err(BatchError::Lengths { sum: 11, payload: 5 }));
        assert_eq!(RecordBlock::new(0, Bytes::new()), Err(BatchError::Empty));
        assert!(matches!(RecordBlock::new(u32::MAX, Bytes::new()), Err(BatchError::Short { .. })));
    }
}

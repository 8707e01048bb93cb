//! A journal block: everything that one commit makes durable, for all groups of a shard.
//!
//! FORMAT.md, "Block", has the bytes. A block is written once and never changed.
//!
//! Invariants: blocks form a chain (each names the flush after its predecessor's last, and its
//! predecessor's checksum); the checksum covers every byte; a part's entries are contiguous.

use iroh_raft_core::batch::BatchHeader;
use iroh_raft_core::{
    Append, ConfState, EntryKind, FlushSeq, GroupAppend, GroupId, HardState, Index, LogEntry, NodeId, Offset,
    ShardId, Term,
};

use crate::cursor::{Cursor, Pen};

/// Newest version of the layout, and so far the only one.
pub(crate) const BLOCK_VERSION: u16 = 1;
/// Largest block: positions within it fit 32 bits with room to spare.
pub(crate) const BLOCK_BYTES_MAX: usize = 1 << 30;
pub(crate) const BLOCK_HEADER_BYTES: usize = 64;
const CHECKSUM_AT: usize = BLOCK_HEADER_BYTES - 4;
const MAGIC: [u8; 4] = *b"IRJB";
const PART_HEADER_BYTES: usize = 40;
const HARD_STATE_BYTES: usize = 24;
const CONF_STATE_HEADER_BYTES: usize = 16;
const ENTRY_ROW_BYTES: usize = 16;
const FLAG_HARD_STATE: u16 = 1;
const FLAG_CONF_STATE: u16 = 2;

const _: () = assert!(BLOCK_BYTES_MAX <= u32::MAX as usize);

/// What is wrong with a block, or with its place in the chain.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BlockError {
    /// Shorter or longer than it says.
    #[error("a block of {bytes} bytes is cut short or overlong")]
    Length {
        /// Bytes there are.
        bytes: usize,
    },
    /// It starts with something else.
    #[error("not a block")]
    Magic,
    /// Of a version this build does not read.
    #[error("block version {version} is not one this build reads (1)")]
    Version {
        /// The version found.
        version: u16,
    },
    /// It was written for another folder or shard.
    #[error("a block of another data folder or shard")]
    Foreign,
    /// Its bytes are not those that were written.
    #[error("checksum mismatch")]
    Checksum,
    /// It does not follow the block before it.
    #[error("blocks are missing or out of order")]
    Chain,
    /// Its parts contradict themselves or the log before them.
    #[error("impossible content")]
    Content,
}

/// Which journal a block belongs to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct JournalIdentity {
    pub(crate) storage: [u8; 16],
    pub(crate) shard: ShardId,
}

/// Where a chain stands: what the next block has to follow.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(crate) struct ChainEnd {
    /// Last flush of the newest block; 0 before the first.
    pub(crate) seq: FlushSeq,
    /// Its checksum; 0 before the first.
    pub(crate) checksum: u32,
}

/// What a group's part says about its entries, beside the entries.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct PartPlace {
    /// Where the part begins in the block, in bytes.
    pub(crate) position: u32,
    /// Offset of the first record of its entries.
    pub(crate) base: Offset,
}

/// Bytes of the block of these flushes.
pub(crate) fn block_bytes(batch: &[Append]) -> usize {
    let parts = batch.iter().flat_map(|append| &append.groups);
    BLOCK_HEADER_BYTES + parts.map(part_bytes).sum::<usize>()
}

/// Bytes of one group's part.
pub(crate) fn part_bytes(part: &GroupAppend) -> usize {
    let entries: usize = part.entries.iter().map(|entry| ENTRY_ROW_BYTES + entry.data.len()).sum();
    let hard_state = part.hard_state.map_or(0, |_| HARD_STATE_BYTES);
    let conf_state = part.conf_state.as_ref().map_or(0, conf_state_bytes);
    PART_HEADER_BYTES + hard_state + conf_state + entries
}

fn conf_state_bytes(conf: &ConfState) -> usize {
    let nodes =
        conf.voters.len() + conf.learners.len() + conf.voters_outgoing.len() + conf.learners_next.len();
    CONF_STATE_HEADER_BYTES + nodes * 8
}

/// Writes the block of these flushes into `out`, which has [`block_bytes`] bytes; `bases` has the
/// base offset of every part, in order. Returns the end of the chain with this block.
///
/// # Panics
/// If the batch is empty, or `out` or `bases` do not fit it.
pub(crate) fn encode_block(
    out: &mut [u8],
    identity: JournalIdentity,
    previous: ChainEnd,
    batch: &[Append],
    bases: &[Offset],
) -> ChainEnd {
    let last = batch.last().expect("a block holds at least one flush").seq;
    let parts: usize = batch.iter().map(|append| append.groups.len()).sum();
    assert_eq!(parts, bases.len(), "one base offset for every part");
    let bytes = out.len() as u64;
    let mut pen = Pen::new(out);
    pen.put(&MAGIC);
    pen.u16(BLOCK_VERSION);
    pen.u16(identity.shard.0);
    pen.put(&identity.storage);
    pen.u64(previous.seq.0 + 1);
    pen.u64(last.0);
    pen.u64(bytes);
    pen.u32(u32::try_from(parts).expect("a block below 1 GiB has fewer than 2^32 parts"));
    pen.u32(0);
    pen.u32(previous.checksum);
    pen.u32(0);
    for (part, base) in batch.iter().flat_map(|append| &append.groups).zip(bases) {
        encode_part(&mut pen, part, *base);
    }
    assert!(pen.is_full(), "the size of a block is computed from its parts");
    let checksum = checksum_of(out);
    out[CHECKSUM_AT..BLOCK_HEADER_BYTES].copy_from_slice(&checksum.to_le_bytes());
    ChainEnd { seq: last, checksum }
}

fn encode_part(pen: &mut Pen<'_>, part: &GroupAppend, base: Offset) {
    let hard_flag = part.hard_state.map_or(0, |_| FLAG_HARD_STATE);
    let conf_flag = part.conf_state.as_ref().map_or(0, |_| FLAG_CONF_STATE);
    pen.u64(part.group.0);
    pen.u16(hard_flag | conf_flag);
    pen.u16(0);
    pen.u32(u32::try_from(part.entries.len()).expect("a block below 1 GiB has fewer than 2^32 entries"));
    pen.u64(part.entries.first().map_or(0, |entry| entry.index.0));
    pen.u64(base.0);
    pen.u64(part_bytes(part) as u64);
    if let Some(hard) = part.hard_state {
        pen.u64(hard.term.0);
        pen.u64(hard.vote.0);
        pen.u64(hard.commit.0);
    }
    if let Some(conf) = &part.conf_state {
        let lists = [&conf.voters, &conf.learners, &conf.voters_outgoing, &conf.learners_next];
        for list in lists {
            pen.u16(u16::try_from(list.len()).expect("a group has fewer than 65,536 members"));
        }
        pen.u64(u64::from(conf.auto_leave));
        for node in lists.into_iter().flatten() {
            pen.u64(node.0);
        }
    }
    for entry in &part.entries {
        pen.u64(entry.term.0);
        pen.u32(u32::try_from(entry.data.len()).expect("a block is below 1 GiB"));
        pen.put(&[entry.kind as u8, 0, 0, 0]);
    }
    for entry in &part.entries {
        pen.put(&entry.data);
    }
}

fn checksum_of(block: &[u8]) -> u32 {
    let (head, rest) = block.split_at(CHECKSUM_AT);
    let (_, body) = rest.split_at(BLOCK_HEADER_BYTES - CHECKSUM_AT);
    crc32c::crc32c_append(crc32c::crc32c(head), body)
}

/// A block, read in place.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Block<'a> {
    first: FlushSeq,
    last: FlushSeq,
    parts: u32,
    previous: u32,
    checksum: u32,
    bytes: &'a [u8],
}

impl<'a> Block<'a> {
    /// Reads the header and checks the checksum.
    ///
    /// # Errors
    /// [`BlockError`], by what is wrong.
    pub(crate) fn parse(bytes: &'a [u8], identity: JournalIdentity) -> Result<Block<'a>, BlockError> {
        let block = Block::parse_unchecked(bytes, identity)?;
        if checksum_of(bytes) == block.checksum { Ok(block) } else { Err(BlockError::Checksum) }
    }

    /// Reads the header and believes the rest: to say what a damaged block was about.
    pub(crate) fn parse_unchecked(
        bytes: &'a [u8],
        identity: JournalIdentity,
    ) -> Result<Block<'a>, BlockError> {
        let length = BlockError::Length { bytes: bytes.len() };
        let mut cursor = Cursor::new(bytes);
        if cursor.array() != Some(MAGIC) {
            return Err(BlockError::Magic);
        }
        let version = cursor.u16().ok_or(length)?;
        if version != BLOCK_VERSION {
            return Err(BlockError::Version { version });
        }
        let shard = ShardId(cursor.u16().ok_or(length)?);
        let storage = cursor.array().ok_or(length)?;
        let first = FlushSeq(cursor.u64().ok_or(length)?);
        let last = FlushSeq(cursor.u64().ok_or(length)?);
        let total = cursor.u64().ok_or(length)?;
        let parts = cursor.u32().ok_or(length)?;
        let reserved = cursor.u32().ok_or(length)?;
        let previous = cursor.u32().ok_or(length)?;
        let checksum = cursor.u32().ok_or(length)?;
        if total != bytes.len() as u64 {
            return Err(length);
        }
        if (JournalIdentity { storage, shard }) != identity {
            return Err(BlockError::Foreign);
        }
        if reserved != 0 || first.0 == 0 || last < first {
            return Err(BlockError::Content);
        }
        Ok(Block { first, last, parts, previous, checksum, bytes })
    }

    /// Whether the block continues a chain that ends there.
    pub(crate) fn is_after(&self, end: ChainEnd) -> bool {
        Some(self.first.0) == end.seq.0.checked_add(1) && self.previous == end.checksum
    }

    /// The end of the chain with this block.
    pub(crate) fn end(&self) -> ChainEnd {
        ChainEnd { seq: self.last, checksum: self.checksum }
    }

    /// The parts, in order, until the first one that makes no sense. Exactly as many as the header
    /// says, filling the block exactly, or the last item is an error.
    pub(crate) fn parts(&self) -> impl Iterator<Item = Result<Part<'a>, BlockError>> + use<'a> {
        let mut position = BLOCK_HEADER_BYTES;
        let mut left = self.parts;
        let bytes = self.bytes;
        std::iter::from_fn(move || {
            if left == 0 {
                if position == bytes.len() {
                    return None;
                }
                position = bytes.len();
                return Some(Err(BlockError::Content));
            }
            left -= 1;
            let part = Part::parse_at(bytes, position).ok_or(BlockError::Content);
            match &part {
                Ok(part) => position += part.bytes,
                Err(_) => (left, position) = (0, bytes.len()),
            }
            Some(part)
        })
    }

    /// The part that begins at `position`, as the index remembers it.
    pub(crate) fn part_at(&self, position: u32) -> Result<Part<'a>, BlockError> {
        Part::parse_at(self.bytes, position as usize).ok_or(BlockError::Content)
    }
}

/// One group's part of a block, read in place.
#[derive(Clone, Debug)]
pub(crate) struct Part<'a> {
    pub(crate) group: GroupId,
    pub(crate) place: PartPlace,
    pub(crate) hard_state: Option<HardState>,
    pub(crate) conf_state: Option<ConfState>,
    /// Index of the first entry; meaningless without entries.
    pub(crate) first: Index,
    /// Number of entries.
    pub(crate) count: u32,
    rows: &'a [u8],
    data: &'a [u8],
    bytes: usize,
}

/// One entry of a part, its data still in the block.
#[derive(Clone, Copy, Debug)]
pub(crate) struct EntryView<'a> {
    pub(crate) index: Index,
    pub(crate) term: Term,
    pub(crate) kind: EntryKind,
    pub(crate) data: &'a [u8],
}

impl<'a> Part<'a> {
    fn parse_at(block: &'a [u8], position: usize) -> Option<Part<'a>> {
        let mut header = Cursor::new(block.get(position..)?);
        let available = header.left();
        let group = GroupId(header.u64()?);
        let flags = header.u16()?;
        let reserved = header.u16()?;
        let count = header.u32()?;
        let first = Index(header.u64()?);
        let base = Offset(header.u64()?);
        let bytes = usize::try_from(header.u64()?).ok()?;
        let is_known = flags & !(FLAG_HARD_STATE | FLAG_CONF_STATE) == 0 && reserved == 0;
        let is_placed = if count == 0 { first.0 == 0 } else { first.0 > 0 };
        // The last index must be representable too.
        first.0.checked_add(u64::from(count))?;
        if !is_known || !is_placed || bytes > available {
            return None;
        }
        let mut body = Cursor::new(header.bytes(bytes.checked_sub(PART_HEADER_BYTES)?)?);
        let hard_state = if flags & FLAG_HARD_STATE == 0 { None } else { Some(parse_hard_state(&mut body)?) };
        let conf_state = if flags & FLAG_CONF_STATE == 0 { None } else { Some(parse_conf_state(&mut body)?) };
        let rows = body.bytes((count as usize).checked_mul(ENTRY_ROW_BYTES)?)?;
        let data = body.bytes(body.left())?;
        let place = PartPlace { position: u32::try_from(position).ok()?, base };
        let part = Part { group, place, hard_state, conf_state, first, count, rows, data, bytes };
        part.is_consistent().then_some(part)
    }

    /// Whether kinds are known, terms never fall and the data lengths add up.
    fn is_consistent(&self) -> bool {
        let mut total = 0_u64;
        let mut newest = Term(0);
        for (term, length, kind) in self.rows() {
            total += u64::from(length);
            if kind.is_none() || term < newest {
                return false;
            }
            newest = term;
        }
        total == self.data.len() as u64
    }

    fn rows(&self) -> impl Iterator<Item = (Term, u32, Option<EntryKind>)> + use<'a> {
        let mut cursor = Cursor::new(self.rows);
        std::iter::from_fn(move || {
            let (term, length, [kind, reserved @ ..]) = (cursor.u64()?, cursor.u32()?, cursor.array::<4>()?);
            let kind = if reserved == [0; 3] { EntryKind::from_u8(kind) } else { None };
            Some((Term(term), length, kind))
        })
    }

    /// The entries, in order.
    pub(crate) fn entries(&self) -> impl Iterator<Item = EntryView<'a>> + use<'a> {
        let mut data = Cursor::new(self.data);
        let first = self.first.0;
        self.rows().zip(first..).map_while(move |((term, length, kind), index)| {
            let data = data.bytes(length as usize)?;
            Some(EntryView { index: Index(index), term, kind: kind?, data })
        })
    }

    /// Index of the last entry; the one before `first` without entries.
    pub(crate) fn last(&self) -> Index {
        Index((self.first.0 + u64::from(self.count)).saturating_sub(1))
    }

    /// Bytes of the entries' data.
    pub(crate) fn data_bytes(&self) -> usize {
        self.data.len()
    }

    /// The bytes of this part's data from this entry on.
    pub(crate) fn data(&self) -> &'a [u8] {
        self.data
    }
}

fn parse_hard_state(cursor: &mut Cursor<'_>) -> Option<HardState> {
    Some(HardState { term: Term(cursor.u64()?), vote: NodeId(cursor.u64()?), commit: Index(cursor.u64()?) })
}

fn parse_conf_state(cursor: &mut Cursor<'_>) -> Option<ConfState> {
    let counts = [cursor.u16()?, cursor.u16()?, cursor.u16()?, cursor.u16()?];
    let auto_leave = match cursor.u64()? {
        0 => false,
        1 => true,
        _ => return None,
    };
    let mut list = |count: u16| -> Option<Vec<NodeId>> {
        let mut ids = Cursor::new(cursor.bytes(usize::from(count) * 8)?);
        Some(std::iter::from_fn(|| ids.u64().map(NodeId)).collect())
    };
    let [voters, learners, voters_outgoing, learners_next] = counts;
    Some(ConfState {
        voters: list(voters)?,
        learners: list(learners)?,
        voters_outgoing: list(voters_outgoing)?,
        learners_next: list(learners_next)?,
        auto_leave,
    })
}

/// Offset after the records of an entry that begins at `at`; `None` if its data is not what such an
/// entry holds there.
pub(crate) fn offset_after(kind: EntryKind, data: &[u8], at: Offset) -> Result<Offset, OffsetError> {
    if kind != EntryKind::Normal || data.is_empty() {
        return Ok(at);
    }
    let header = BatchHeader::parse(data).map_err(|_| OffsetError::NotABatch)?;
    let end = at.0.checked_add(u64::from(header.count)).ok_or(OffsetError::NotABatch)?;
    if header.base == at { Ok(Offset(end)) } else { Err(OffsetError::Base(header.base)) }
}

/// Why an entry cannot stand at an offset.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum OffsetError {
    NotABatch,
    Base(Offset),
}

impl EntryView<'_> {
    /// The entry with its data copied.
    pub(crate) fn to_entry(self) -> LogEntry {
        LogEntry {
            index: self.index,
            term: self.term,
            kind: self.kind,
            data: bytes::Bytes::copy_from_slice(self.data),
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use proptest::prelude::*;

    use super::*;

    const IDENTITY: JournalIdentity = JournalIdentity { storage: [9; 16], shard: ShardId(2) };
    const PREVIOUS: ChainEnd = ChainEnd { seq: FlushSeq(6), checksum: 77 };

    fn encode(batch: &[Append]) -> (Vec<u8>, ChainEnd) {
        let parts = batch.iter().map(|append| append.groups.len()).sum();
        let mut bytes = vec![0xee; block_bytes(batch)];
        let end = encode_block(&mut bytes, IDENTITY, PREVIOUS, batch, &vec![Offset(5); parts]);
        (bytes, end)
    }

    /// What the parts of a block say, in the form in which they went in.
    fn decode(bytes: &[u8]) -> Result<Vec<GroupAppend>, BlockError> {
        let block = Block::parse(bytes, IDENTITY)?;
        assert!(block.is_after(PREVIOUS));
        let part = |part: Result<Part<'_>, BlockError>| {
            let part = part?;
            assert_eq!(part.place.base, Offset(5));
            let again = block.part_at(part.place.position)?;
            assert_eq!((again.group, again.first, again.count), (part.group, part.first, part.count));
            Ok(GroupAppend {
                group: part.group,
                change: None,
                hard_state: part.hard_state,
                conf_state: part.conf_state.clone(),
                entries: part.entries().map(EntryView::to_entry).collect(),
            })
        };
        block.parts().map(part).collect()
    }

    fn nodes() -> impl Strategy<Value = Vec<NodeId>> {
        prop::collection::vec(any::<u64>().prop_map(NodeId), 0..4)
    }

    fn group_append() -> impl Strategy<Value = GroupAppend> {
        let hard_state = (any::<u64>(), any::<u64>(), any::<u64>()).prop_map(|(term, vote, commit)| {
            HardState { term: Term(term), vote: NodeId(vote), commit: Index(commit) }
        });
        let conf_state = (nodes(), nodes(), nodes(), nodes(), any::<bool>()).prop_map(
            |(voters, learners, voters_outgoing, learners_next, auto_leave)| ConfState {
                voters,
                learners,
                voters_outgoing,
                learners_next,
                auto_leave,
            },
        );
        let data = prop::collection::vec(any::<u8>(), 0..40).prop_map(Bytes::from);
        let entry = (0_u8..3, 0_u64..3, data);
        let entries = (1_u64..1 << 60, prop::collection::vec(entry, 0..5)).prop_map(|(first, entries)| {
            let mut term = 1;
            (first..)
                .zip(entries)
                .map(|(index, (kind, rise, data))| {
                    term += rise;
                    let kind = EntryKind::from_u8(kind).unwrap();
                    LogEntry { index: Index(index), term: Term(term), kind, data }
                })
                .collect()
        });
        let states = (prop::option::of(hard_state), prop::option::of(conf_state));
        (any::<u64>(), states, entries).prop_map(|(group, (hard_state, conf_state), entries)| GroupAppend {
            group: GroupId(group),
            change: None,
            hard_state,
            conf_state,
            entries,
        })
    }

    fn batch() -> impl Strategy<Value = Vec<Append>> {
        prop::collection::vec(prop::collection::vec(group_append(), 0..4), 1..4).prop_map(|flushes| {
            (7..).zip(flushes).map(|(seq, groups)| Append { seq: FlushSeq(seq), groups }).collect()
        })
    }

    proptest! {
        #[test]
        fn a_block_gives_back_what_went_in(batch in batch()) {
            let (bytes, end) = encode(&batch);
            let parts: Vec<_> = batch.iter().flat_map(|append| append.groups.clone()).collect();
            prop_assert_eq!(decode(&bytes).unwrap(), parts);
            prop_assert_eq!(Block::parse(&bytes, IDENTITY).unwrap().end(), end);
            prop_assert_eq!(end.seq, batch.last().unwrap().seq);
        }

        #[test]
        fn every_cut_and_every_changed_byte_is_an_error(batch in batch(), at in any::<prop::sample::Index>(), bit in 0..8) {
            let (mut bytes, _) = encode(&batch);
            let at = at.index(bytes.len());
            prop_assert!(Block::parse(&bytes[..at], IDENTITY).is_err());
            bytes[at] ^= 1_u8 << bit;
            prop_assert!(Block::parse(&bytes, IDENTITY).is_err());
        }

        /// The checksum is no proof against malice: content that makes no sense must not panic.
        #[test]
        fn sealed_nonsense_never_panics(batch in batch(), changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6)) {
            let (mut bytes, _) = encode(&batch);
            for (at, value) in changes {
                let at = at.index(bytes.len());
                bytes[at] = value;
            }
            let checksum = checksum_of(&bytes);
            bytes[CHECKSUM_AT..BLOCK_HEADER_BYTES].copy_from_slice(&checksum.to_le_bytes());
            if let Ok(block) = Block::parse(&bytes, IDENTITY) {
                let total: usize = block.parts().map_while(Result::ok).map(|part| part.entries().count()).sum();
                prop_assert!(total <= bytes.len());
            }
        }
    }

    #[test]
    fn a_block_of_another_journal_or_version_is_told_from_damage() {
        let (mut bytes, end) = encode(&[Append { seq: FlushSeq(7), groups: vec![] }]);
        let other = JournalIdentity { shard: ShardId(3), ..IDENTITY };
        assert_eq!(Block::parse(&bytes, other).unwrap_err(), BlockError::Foreign);
        let other = JournalIdentity { storage: [8; 16], ..IDENTITY };
        assert_eq!(Block::parse(&bytes, other).unwrap_err(), BlockError::Foreign);
        let block = Block::parse(&bytes, IDENTITY).unwrap();
        assert!(!block.is_after(ChainEnd { checksum: 78, ..PREVIOUS }));
        assert!(!block.is_after(ChainEnd { seq: FlushSeq(5), ..PREVIOUS }));
        assert!(!block.is_after(ChainEnd { seq: FlushSeq(u64::MAX), ..PREVIOUS }));
        assert_eq!(end.seq, FlushSeq(7));
        bytes[4] = 2;
        assert_eq!(Block::parse(&bytes, IDENTITY).unwrap_err(), BlockError::Version { version: 2 });
    }
}

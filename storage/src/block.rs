//! A journal block: everything that one commit makes durable, for all groups of a shard.
//!
//! FORMAT.md, "Block", has the bytes. A block is a header, a directory of parts, and the data of
//! their entries. It is written once and never changed.
//!
//! Invariants: blocks form a chain (each names the flush after its predecessor's last, and its
//! predecessor's checksum); the checksum covers header and directory, and the directory has a
//! checksum of every part's data, so that damaged data concerns one group alone; a part's entries
//! are contiguous.

use iroh_raft_core::batch::BatchHeader;
use iroh_raft_core::{
    ConfState, EntryKind, FlushSeq, GroupAppend, GroupId, HardState, Index, LogChange, LogPosition, LogStart,
    NodeId, Offset, ShardId, Term, TermRun, has_records,
};

use crate::cursor::{Cursor, Pen};

/// The layout's version. Version 1 belonged to builds before the first release.
pub(crate) const BLOCK_VERSION: u16 = 2;
/// Largest block: positions within it fit 32 bits with room to spare.
pub(crate) const BLOCK_BYTES_MAX: usize = 1 << 30;
pub(crate) const BLOCK_HEADER_BYTES: usize = 64;
const CHECKSUM_AT: usize = BLOCK_HEADER_BYTES - 4;
const MAGIC: [u8; 4] = *b"IRJB";
const PART_HEADER_BYTES: usize = 40;
const HARD_STATE_BYTES: usize = 24;
const CHANGE_BYTES: usize = 32;
const CONF_STATE_HEADER_BYTES: usize = 16;
const META_HEADER_BYTES: usize = 4;
pub(crate) const POSITION_BYTES: usize = 16;
pub(crate) const ENTRY_ROW_BYTES: usize = 16;
const FLAG_HARD_STATE: u16 = 1;
const FLAG_CONF_STATE: u16 = 2;
const FLAG_CHANGE: u16 = 4;
const FLAG_CARRIED: u16 = 8;
const FLAG_META: u16 = 16;
const FLAG_UNDER_REPAIR: u16 = 32;
const FLAG_REPAIRED: u16 = 64;
const FLAG_JOINED: u16 = 128;
const FLAGS: u16 = FLAG_HARD_STATE
    | FLAG_CONF_STATE
    | FLAG_CHANGE
    | FLAG_CARRIED
    | FLAG_META
    | FLAG_UNDER_REPAIR
    | FLAG_REPAIRED
    | FLAG_JOINED;

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
    #[error("block version {version} is not one this build reads (2)")]
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

/// Where a part stands in its block.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct PartPlace {
    /// Where the part begins in the block, in bytes.
    pub(crate) position: u32,
    /// Where its data begins in the block, in bytes.
    pub(crate) data_position: u32,
}

/// A part to be written.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NewPart<'a> {
    pub(crate) append: &'a GroupAppend,
    /// Offset of the first record of its entries, or the next one of the group.
    pub(crate) base: Offset,
    /// Whether its entries stood in blocks that this one voids.
    pub(crate) is_carried: bool,
}

/// A block to be written.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NewBlock<'a> {
    pub(crate) identity: JournalIdentity,
    pub(crate) previous: ChainEnd,
    pub(crate) last: FlushSeq,
    /// First flush that is still needed; blocks before it are void.
    pub(crate) oldest: FlushSeq,
    pub(crate) parts: &'a [NewPart<'a>],
}

impl NewBlock<'_> {
    /// Bytes of header and directory.
    pub(crate) fn directory_bytes(&self) -> usize {
        BLOCK_HEADER_BYTES + self.parts.iter().map(|part| part_bytes(part.append)).sum::<usize>()
    }

    /// Bytes of the data after them.
    pub(crate) fn data_bytes(&self) -> usize {
        self.parts.iter().map(|part| data_bytes(part.append)).sum()
    }

    /// Writes header and directory into `out`. Returns the end of the chain with this block.
    pub(crate) fn encode_directory(&self, out: &mut Vec<u8>) -> ChainEnd {
        let bytes = self.directory_bytes();
        out.clear();
        out.resize(bytes, 0);
        let mut pen = Pen::new(out);
        let small = |bytes: usize| u32::try_from(bytes).expect("a block is below 1 GiB");
        pen.put(&MAGIC);
        pen.u16(BLOCK_VERSION);
        pen.u16(self.identity.shard.0);
        pen.put(&self.identity.storage);
        pen.u64(self.previous.seq.0 + 1);
        pen.u64(self.last.0);
        pen.u64(self.oldest.0);
        pen.u32(small(bytes - BLOCK_HEADER_BYTES));
        pen.u32(small(self.data_bytes()));
        pen.u32(self.previous.checksum);
        pen.u32(0);
        for part in self.parts {
            encode_part(&mut pen, part);
        }
        assert!(pen.is_full(), "the size of a block is computed from its parts");
        let checksum = checksum_of(out);
        out[CHECKSUM_AT..BLOCK_HEADER_BYTES].copy_from_slice(&checksum.to_le_bytes());
        ChainEnd { seq: self.last, checksum }
    }

    /// The data, piece by piece.
    pub(crate) fn data(&self) -> impl Iterator<Item = &[u8]> {
        self.parts.iter().flat_map(|part| &part.append.entries).map(|entry| &entry.data[..])
    }
}

/// Bytes of one group's part in the directory.
pub(crate) fn part_bytes(part: &GroupAppend) -> usize {
    let change = part.change.map_or(0, |_| CHANGE_BYTES);
    let hard_state = part.hard_state.map_or(0, |_| HARD_STATE_BYTES);
    let conf_state = part.conf_state.as_ref().map_or(0, conf_state_bytes);
    let meta = part.meta.as_ref().map_or(0, |meta| META_HEADER_BYTES + meta.len());
    let joined_at = part.joined_at.map_or(0, |_| POSITION_BYTES);
    PART_HEADER_BYTES
        + change
        + hard_state
        + conf_state
        + meta
        + joined_at
        + part.entries.len() * ENTRY_ROW_BYTES
}

/// Bytes of the data of one group's entries.
pub(crate) fn data_bytes(part: &GroupAppend) -> usize {
    part.entries.iter().map(|entry| entry.data.len()).sum()
}

pub(crate) fn conf_state_bytes(conf: &ConfState) -> usize {
    let nodes =
        conf.voters.len() + conf.learners.len() + conf.voters_outgoing.len() + conf.learners_next.len();
    CONF_STATE_HEADER_BYTES + nodes * 8
}

fn encode_part(pen: &mut Pen<'_>, new: &NewPart<'_>) {
    let part = new.append;
    let flag = |is_set: bool, flag| if is_set { flag } else { 0 };
    let data_checksum =
        part.entries.iter().fold(0, |checksum, entry| crc32c::crc32c_append(checksum, &entry.data));
    pen.u64(part.group.0);
    pen.u16(
        flag(part.hard_state.is_some(), FLAG_HARD_STATE)
            | flag(part.conf_state.is_some(), FLAG_CONF_STATE)
            | flag(part.change.is_some(), FLAG_CHANGE)
            | flag(new.is_carried, FLAG_CARRIED)
            | flag(part.meta.is_some(), FLAG_META)
            | flag(part.under_repair == Some(true), FLAG_UNDER_REPAIR)
            | flag(part.under_repair == Some(false), FLAG_REPAIRED)
            | flag(part.joined_at.is_some(), FLAG_JOINED),
    );
    pen.u16(0);
    pen.u32(u32::try_from(part.entries.len()).expect("a block below 1 GiB has fewer than 2^32 entries"));
    pen.u64(part.entries.first().map_or(0, |entry| entry.index.0));
    pen.u64(new.base.0);
    pen.u32(u32::try_from(data_bytes(part)).expect("a block is below 1 GiB"));
    pen.u32(data_checksum);
    if let Some(change) = part.change {
        encode_change(pen, change);
    }
    if let Some(hard) = part.hard_state {
        encode_hard_state(pen, hard);
    }
    if let Some(conf) = &part.conf_state {
        encode_conf_state(pen, conf);
    }
    if let Some(meta) = &part.meta {
        pen.u32(u32::try_from(meta.len()).expect("a block is below 1 GiB"));
        pen.put(meta);
    }
    if let Some(joined_at) = part.joined_at {
        encode_position(pen, joined_at);
    }
    for entry in &part.entries {
        encode_entry_row(pen, entry.term, entry.data.len(), entry.kind);
    }
}

pub(crate) fn encode_entry_row(pen: &mut Pen<'_>, term: Term, bytes: usize, kind: EntryKind) {
    pen.u64(term.0);
    pen.u32(u32::try_from(bytes).expect("a block is below 1 GiB"));
    pen.put(&[kind as u8, 0, 0, 0]);
}

pub(crate) fn encode_position(pen: &mut Pen<'_>, position: LogPosition) {
    pen.u64(position.term.0);
    pen.u64(position.index.0);
}

pub(crate) fn parse_position(cursor: &mut Cursor<'_>) -> Option<LogPosition> {
    Some(LogPosition { term: Term(cursor.u64()?), index: Index(cursor.u64()?) })
}

fn encode_change(pen: &mut Pen<'_>, change: LogChange) {
    let (kind, place) = match change {
        LogChange::CompactTo(start) => (1, start),
        LogChange::StartAfter(start) => (2, start),
        LogChange::Remove => (3, LogStart::default()),
        LogChange::CutAfter(start) => (4, start),
    };
    pen.u64(kind);
    pen.u64(place.index.0);
    pen.u64(place.term.0);
    pen.u64(place.offset.0);
}

fn parse_change(cursor: &mut Cursor<'_>) -> Option<LogChange> {
    let kind = cursor.u64()?;
    let start =
        LogStart { index: Index(cursor.u64()?), term: Term(cursor.u64()?), offset: Offset(cursor.u64()?) };
    match kind {
        1 => Some(LogChange::CompactTo(start)),
        2 => Some(LogChange::StartAfter(start)),
        3 if start == LogStart::default() => Some(LogChange::Remove),
        4 => Some(LogChange::CutAfter(start)),
        _ => None,
    }
}

pub(crate) fn encode_hard_state(pen: &mut Pen<'_>, hard: HardState) {
    pen.u64(hard.term.0);
    pen.u64(hard.vote.0);
    pen.u64(hard.commit.0);
}

pub(crate) fn encode_conf_state(pen: &mut Pen<'_>, conf: &ConfState) {
    let lists = [&conf.voters, &conf.learners, &conf.voters_outgoing, &conf.learners_next];
    for list in lists {
        pen.u16(u16::try_from(list.len()).expect("a group has fewer than 65,536 members"));
    }
    pen.u64(u64::from(conf.auto_leave));
    for node in lists.into_iter().flatten() {
        pen.u64(node.0);
    }
}

/// Checksum of header and directory.
fn checksum_of(directory: &[u8]) -> u32 {
    let (head, rest) = directory.split_at(CHECKSUM_AT);
    let (_, body) = rest.split_at(BLOCK_HEADER_BYTES - CHECKSUM_AT);
    crc32c::crc32c_append(crc32c::crc32c(head), body)
}

/// How long a block is, by its header: to find the rest of it. Checked by nothing but limits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct BlockLengths {
    /// Header and directory.
    pub(crate) directory: usize,
    pub(crate) data: usize,
}

impl BlockLengths {
    /// Reads them from the beginning of a block.
    ///
    /// # Errors
    /// [`BlockError`], by what is wrong with the header.
    pub(crate) fn peek(head: &[u8]) -> Result<BlockLengths, BlockError> {
        let length = BlockError::Length { bytes: head.len() };
        let mut cursor = Cursor::new(head);
        if cursor.array() != Some(MAGIC) {
            return Err(BlockError::Magic);
        }
        let version = cursor.u16().ok_or(length)?;
        if version != BLOCK_VERSION {
            return Err(BlockError::Version { version });
        }
        cursor.bytes(42).ok_or(length)?;
        let directory = (cursor.u32().ok_or(length)? as usize).saturating_add(BLOCK_HEADER_BYTES);
        let data = cursor.u32().ok_or(length)? as usize;
        if directory.saturating_add(data) > BLOCK_BYTES_MAX {
            Err(length)
        } else {
            Ok(BlockLengths { directory, data })
        }
    }

    pub(crate) fn total(self) -> usize {
        self.directory + self.data
    }
}

/// Header and directory of a block, read in place.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Block<'a> {
    first: FlushSeq,
    last: FlushSeq,
    oldest: FlushSeq,
    previous: u32,
    checksum: u32,
    directory: &'a [u8],
    data_bytes: usize,
}

impl<'a> Block<'a> {
    /// Reads header and directory, and checks their checksum.
    ///
    /// # Errors
    /// [`BlockError`], by what is wrong.
    pub(crate) fn parse(directory: &'a [u8], identity: JournalIdentity) -> Result<Block<'a>, BlockError> {
        let lengths = BlockLengths::peek(directory)?;
        let length = BlockError::Length { bytes: directory.len() };
        if lengths.directory != directory.len() {
            return Err(length);
        }
        let mut cursor = Cursor::new(directory);
        cursor.bytes(6).ok_or(length)?;
        let shard = ShardId(cursor.u16().ok_or(length)?);
        let storage = cursor.array().ok_or(length)?;
        let first = FlushSeq(cursor.u64().ok_or(length)?);
        let last = FlushSeq(cursor.u64().ok_or(length)?);
        let oldest = FlushSeq(cursor.u64().ok_or(length)?);
        cursor.bytes(8).ok_or(length)?;
        let previous = cursor.u32().ok_or(length)?;
        let checksum = cursor.u32().ok_or(length)?;
        if (JournalIdentity { storage, shard }) != identity {
            return Err(BlockError::Foreign);
        }
        if checksum_of(directory) != checksum {
            return Err(BlockError::Checksum);
        }
        if first.0 == 0 || last < first || oldest.0 == 0 || oldest > first {
            return Err(BlockError::Content);
        }
        Ok(Block { first, last, oldest, previous, checksum, directory, data_bytes: lengths.data })
    }

    /// The end of the chain before this block.
    pub(crate) fn before(&self) -> ChainEnd {
        ChainEnd { seq: FlushSeq(self.first.0 - 1), checksum: self.previous }
    }

    /// The end of the chain with this block.
    pub(crate) fn end(&self) -> ChainEnd {
        ChainEnd { seq: self.last, checksum: self.checksum }
    }

    /// First flush that is still needed.
    pub(crate) fn oldest(&self) -> FlushSeq {
        self.oldest
    }

    /// The parts, in order, until the first one that makes no sense. They fill the directory and the
    /// data exactly, or the last item is an error.
    pub(crate) fn parts(&self) -> impl Iterator<Item = Result<Part<'a>, BlockError>> + use<'a> {
        let directory = self.directory;
        let end = directory.len() + self.data_bytes;
        let mut at = Some((BLOCK_HEADER_BYTES, directory.len()));
        std::iter::from_fn(move || {
            let (position, data_position) = at.take()?;
            if position == directory.len() {
                return (data_position != end).then_some(Err(BlockError::Content));
            }
            let part = Part::parse_at(directory, position, data_position)
                .filter(|part| data_position + part.data_bytes <= end);
            at = part.as_ref().map(|part| (position + part.bytes, data_position + part.data_bytes));
            Some(part.ok_or(BlockError::Content))
        })
    }

    /// The part that stands there, as the index remembers it.
    pub(crate) fn part_at(&self, place: PartPlace) -> Result<Part<'a>, BlockError> {
        Block::part_of(self.directory, place)
    }

    /// The part of a directory that was parsed before.
    pub(crate) fn part_of(directory: &'a [u8], place: PartPlace) -> Result<Part<'a>, BlockError> {
        let part = Part::parse_at(directory, place.position as usize, place.data_position as usize);
        part.ok_or(BlockError::Content)
    }
}

/// One group's part of a block, read in place; its data stands elsewhere.
#[derive(Clone, Debug)]
pub(crate) struct Part<'a> {
    pub(crate) group: GroupId,
    pub(crate) place: PartPlace,
    pub(crate) is_carried: bool,
    pub(crate) change: Option<LogChange>,
    pub(crate) hard_state: Option<HardState>,
    pub(crate) conf_state: Option<ConfState>,
    pub(crate) meta: Option<&'a [u8]>,
    pub(crate) under_repair: Option<bool>,
    pub(crate) joined_at: Option<LogPosition>,
    /// Index of the first entry; meaningless without entries.
    pub(crate) first: Index,
    /// Number of entries.
    pub(crate) count: u32,
    /// Offset of the first record of the entries.
    pub(crate) base: Offset,
    pub(crate) data_bytes: usize,
    data_checksum: u32,
    rows: &'a [u8],
    bytes: usize,
}

impl<'a> Part<'a> {
    fn parse_at(directory: &'a [u8], position: usize, data_position: usize) -> Option<Part<'a>> {
        let mut cursor = Cursor::new(directory.get(position..)?);
        let available = cursor.left();
        let group = GroupId(cursor.u64()?);
        let flags = cursor.u16()?;
        let reserved = cursor.u16()?;
        let count = cursor.u32()?;
        let first = Index(cursor.u64()?);
        let base = Offset(cursor.u64()?);
        let data_bytes = cursor.u32()? as usize;
        let data_checksum = cursor.u32()?;
        let is_placed = if count == 0 { first.0 == 0 && data_bytes == 0 } else { first.0 > 0 };
        // The last index must be representable too.
        first.0.checked_add(u64::from(count))?;
        if flags & !FLAGS != 0 || reserved != 0 || !is_placed {
            return None;
        }
        let has = |flag| flags & flag != 0;
        let under_repair = match (has(FLAG_UNDER_REPAIR), has(FLAG_REPAIRED)) {
            (false, false) => None,
            (true, true) => return None,
            (is_begun, _) => Some(is_begun),
        };
        let change = if has(FLAG_CHANGE) { Some(parse_change(&mut cursor)?) } else { None };
        let hard_state = if has(FLAG_HARD_STATE) { Some(parse_hard_state(&mut cursor)?) } else { None };
        let conf_state = if has(FLAG_CONF_STATE) { Some(parse_conf_state(&mut cursor)?) } else { None };
        let meta = if has(FLAG_META) { Some(parse_meta(&mut cursor)?) } else { None };
        let joined_at = if has(FLAG_JOINED) { Some(parse_position(&mut cursor)?) } else { None };
        let rows = cursor.bytes((count as usize).checked_mul(ENTRY_ROW_BYTES)?)?;
        let place = PartPlace {
            position: u32::try_from(position).ok()?,
            data_position: u32::try_from(data_position).ok()?,
        };
        let bytes = available - cursor.left();
        let is_carried = has(FLAG_CARRIED);
        let part = Part {
            group,
            place,
            is_carried,
            change,
            hard_state,
            conf_state,
            meta,
            under_repair,
            joined_at,
            first,
            count,
            base,
            data_bytes,
            data_checksum,
            rows,
            bytes,
        };
        is_consistent(part.rows(), data_bytes).then_some(part)
    }

    pub(crate) fn rows(&self) -> EntryRows<'a> {
        EntryRows(Cursor::new(self.rows))
    }

    /// The entries with their data, in order.
    pub(crate) fn entries<'d>(&self, data: &'d [u8]) -> impl Iterator<Item = EntryView<'d>> + use<'a, 'd> {
        entries(self.first, self.rows(), data)
    }

    /// Whether these bytes are the data that was written.
    pub(crate) fn is_data<'d>(&self, pieces: impl Iterator<Item = &'d [u8]>) -> bool {
        pieces.fold(0, crc32c::crc32c_append) == self.data_checksum
    }

    /// Index of the last entry; the one before `first` without entries.
    pub(crate) fn last(&self) -> Index {
        Index((self.first.0 + u64::from(self.count)).saturating_sub(1))
    }

    /// Where the data stands in the block.
    pub(crate) fn data_range(&self) -> std::ops::Range<usize> {
        let from = self.place.data_position as usize;
        from..from + self.data_bytes
    }

    /// Terms of the entries.
    pub(crate) fn term_runs(&self) -> Vec<TermRun> {
        let mut runs: Vec<TermRun> = Vec::new();
        for ((term, ..), index) in self.rows().zip(self.first.0..) {
            if runs.last().is_none_or(|run| run.term != term) {
                runs.push(TermRun { first: Index(index), term });
            }
        }
        runs
    }

    /// Indexes of the entries that are not normal.
    pub(crate) fn conf_changes(&self) -> impl Iterator<Item = Index> {
        self.rows()
            .zip(self.first.0..)
            .filter(|((.., kind), _)| *kind != Some(EntryKind::Normal))
            .map(|(_, index)| Index(index))
    }
}

/// Rows that say of each entry its term, the bytes of its data and its kind.
#[derive(Clone, Debug)]
pub(crate) struct EntryRows<'a>(pub(crate) Cursor<'a>);

impl Iterator for EntryRows<'_> {
    type Item = (Term, u32, Option<EntryKind>);

    fn next(&mut self) -> Option<Self::Item> {
        let Self(cursor) = self;
        let (term, length, [kind, reserved @ ..]) = (cursor.u64()?, cursor.u32()?, cursor.array::<4>()?);
        let kind = if reserved == [0; 3] { EntryKind::from_u8(kind) } else { None };
        Some((Term(term), length, kind))
    }
}

/// Whether kinds are known, terms never fall and the data lengths add up.
pub(crate) fn is_consistent(rows: EntryRows<'_>, data_bytes: usize) -> bool {
    let mut total = 0_u64;
    let mut newest = Term(0);
    for (term, length, kind) in rows {
        total += u64::from(length);
        if kind.is_none() || term < newest {
            return false;
        }
        newest = term;
    }
    total == data_bytes as u64
}

/// One entry, its data still in the block.
#[derive(Clone, Copy, Debug)]
pub(crate) struct EntryView<'a> {
    pub(crate) index: Index,
    pub(crate) term: Term,
    pub(crate) kind: EntryKind,
    pub(crate) data: &'a [u8],
}

/// Entries from their rows and their data.
pub(crate) fn entries<'a, 'd>(
    first: Index,
    rows: EntryRows<'a>,
    data: &'d [u8],
) -> impl Iterator<Item = EntryView<'d>> + use<'a, 'd> {
    let mut data = Cursor::new(data);
    rows.zip(first.0..).map_while(move |((term, length, kind), index)| {
        let data = data.bytes(length as usize)?;
        Some(EntryView { index: Index(index), term, kind: kind?, data })
    })
}

pub(crate) fn parse_hard_state(cursor: &mut Cursor<'_>) -> Option<HardState> {
    Some(HardState { term: Term(cursor.u64()?), vote: NodeId(cursor.u64()?), commit: Index(cursor.u64()?) })
}

pub(crate) fn parse_conf_state(cursor: &mut Cursor<'_>) -> Option<ConfState> {
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

fn parse_meta<'a>(cursor: &mut Cursor<'a>) -> Option<&'a [u8]> {
    let bytes = cursor.u32()? as usize;
    cursor.bytes(bytes)
}

/// Offset after the records of an entry that begins at `at`; `None` if its data is not what such an
/// entry holds there.
pub(crate) fn offset_after(kind: EntryKind, data: &[u8], at: Offset) -> Result<Offset, OffsetError> {
    if !has_records(kind, data) {
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

#[cfg(test)]
mod tests;

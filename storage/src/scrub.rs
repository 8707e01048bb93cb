//! Verifies everything stored, a little at a time: what nobody reads is damaged unseen otherwise, and
//! two copies damaged one after the other are worse than one.

use std::fmt;
use std::sync::Arc;

use iroh_raft_core::{FlushSeq, GroupId, Index};

use crate::block::{Block, BlockError, JournalIdentity, offset_after};
use crate::cold_block::ColdBlock;
use crate::error::{AffectedRange, Result};
use crate::group_log::{ColdSpan, Span};
use crate::index::SharedIndex;
use crate::journal::{Blocks, Journal};
use crate::log_file::LogFile;
use crate::numbers::ScrubNumbers;
use crate::redb_file::RedbFailure;
use crate::snapshot::{SnapshotError, SnapshotStore};
use crate::span_read::read_span;

/// Stored bytes that are not those that were written.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Damage {
    /// Where they stand.
    pub place: DamagePlace,
    /// Whose entries they were. Empty for a block of the journal that holds none that still count:
    /// the shard runs on, and would not open again before that block is void.
    pub affected: Vec<AffectedRange>,
}

/// Where damage was found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum DamagePlace {
    /// A block of the journal.
    Journal {
        /// Its last flush.
        seq: FlushSeq,
        /// What is wrong with it.
        problem: BlockError,
    },
    /// A block of the log file.
    Log,
    /// The published snapshot of a group.
    Snapshot {
        /// The group.
        group: GroupId,
    },
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.place {
            DamagePlace::Journal { seq, problem } => {
                write!(f, "the journal is damaged at flush {seq} ({problem})")?;
            }
            DamagePlace::Log => write!(f, "the log file is damaged")?,
            DamagePlace::Snapshot { group } => return write!(f, "the snapshot of group {group} is damaged"),
        }
        if self.affected.is_empty() {
            write!(f, ": no entries that still count")?;
        }
        for range in &self.affected {
            write!(f, "; group {} index {} to {}", range.group, range.first, range.last)?;
        }
        Ok(())
    }
}

/// What one step of a scrub did.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
#[non_exhaustive]
pub struct ScrubReport {
    /// Blocks that were verified.
    pub blocks: u64,
    /// Bytes that were read for that.
    pub bytes: u64,
    /// Everything that is wrong with them.
    pub damage: Vec<Damage>,
    /// Whether everything has been verified once more: the next step begins anew.
    pub is_round_done: bool,
}

/// Reads and verifies all blocks of a shard, round after round, beside everything else.
#[derive(Debug)]
pub struct Scrubber {
    journal: Arc<Journal>,
    log: Arc<LogFile>,
    index: Arc<SharedIndex>,
    snapshots: SnapshotStore,
    /// Bytes of the snapshots that the last whole round read, and that this one has read so far.
    snapshot_bytes: (u64, u64),
    identity: JournalIdentity,
    position: Position,
    numbers: ScrubNumbers,
}

#[derive(Debug)]
enum Position {
    Begin,
    /// The groups still to do, the next one last, and where to go on in that one.
    Log(Vec<GroupId>, Index),
    /// The same of those that have snapshots, once they are known, and the chunk to go on with.
    Snapshots(Option<Vec<GroupId>>, u32),
    /// Where to go on.
    Journal(FlushSeq),
}

impl Scrubber {
    pub(crate) fn new(
        journal: Arc<Journal>,
        log: Arc<LogFile>,
        index: Arc<SharedIndex>,
        snapshots: SnapshotStore,
    ) -> Scrubber {
        let identity = journal.identity;
        let numbers = ScrubNumbers::new(identity.shard);
        let (snapshot_bytes, position) = ((0, 0), Position::Begin);
        Scrubber { journal, log, index, snapshots, snapshot_bytes, identity, position, numbers }
    }

    /// Bytes that a whole round reads, as of now; a little less where some wait to be removed, and of snapshots as of the
    /// last round.
    #[must_use]
    pub fn round_bytes(&self) -> u64 {
        let index = self.index.lock();
        let journal: u64 = index.blocks.iter().map(|block| u64::from(block.bytes)).sum();
        journal + index.log_bytes + self.snapshot_bytes.0.max(self.snapshot_bytes.1)
    }

    /// Verifies the next blocks, about `bytes_max` bytes, at least one. Blocks on the disk.
    ///
    /// # Errors
    /// [`StorageError::Journal`](crate::StorageError::Journal) and
    /// [`StorageError::JournalPanicked`](crate::StorageError::JournalPanicked) when a file could not
    /// be read at all. The next call begins a new round.
    pub fn step(&mut self, bytes_max: u64) -> Result<ScrubReport> {
        let mut report = ScrubReport::default();
        let shard = self.identity.shard;
        while report.bytes < bytes_max && !report.is_round_done {
            let left = bytes_max - report.bytes;
            let stepped = match std::mem::replace(&mut self.position, Position::Begin) {
                Position::Begin => {
                    let mut groups: Vec<_> = self.index.lock().groups.keys().copied().collect();
                    groups.sort_unstable_by(|a, b| b.cmp(a));
                    Ok(Position::Log(groups, Index(0)))
                }
                Position::Log(groups, from) => self.step_log(groups, from, left, &mut report),
                Position::Snapshots(groups, chunk) => {
                    let groups = groups.map_or_else(|| self.snapshots.groups(), Ok)?;
                    self.position = self.step_snapshots(groups, chunk, left, &mut report)?;
                    continue;
                }
                Position::Journal(from) => self.step_journal(from, left, &mut report),
            };
            self.position = stepped.map_err(|error| error.running(shard))?;
        }
        self.numbers.stepped(report.bytes, report.damage.len());
        Ok(report)
    }

    fn step_log(
        &self,
        mut groups: Vec<GroupId>,
        from: Index,
        bytes_max: u64,
        report: &mut ScrubReport,
    ) -> Result<Position, RedbFailure> {
        let Some(&group) = groups.last() else { return Ok(Position::Snapshots(None, 0)) };
        let spans = self.cold_spans(group, from, bytes_max);
        let Some(last) = spans.last().map(|span| span.last) else {
            groups.pop();
            return Ok(Position::Log(groups, Index(0)));
        };
        let mut damaged: Vec<ColdSpan> = Vec::new();
        self.log.look_at(group, spans.iter(), |span, bytes| {
            report.blocks += 1;
            report.bytes += u64::from(span.bytes);
            let is_sound = bytes.is_some_and(|bytes| {
                ColdBlock::parse(&bytes, self.identity, group, span).is_ok_and(|block| {
                    block
                        .entries()
                        .try_fold(span.base, |at, entry| offset_after(entry.kind, entry.data, at).ok())
                        .is_some()
                })
            });
            if !is_sound {
                damaged.push(*span);
            }
            true
        })?;
        // What was removed meanwhile was there to be missed.
        let index = self.index.lock();
        let log = index.groups.get(&group);
        let still = damaged.iter().filter(|span| log.is_some_and(|log| log.cold().any(|cold| cold == *span)));
        report.damage.extend(still.map(|span| Damage {
            place: DamagePlace::Log,
            affected: vec![AffectedRange { group, first: span.first, last: span.last }],
        }));
        Ok(Position::Log(groups, last.next()))
    }

    fn cold_spans(&self, group: GroupId, from: Index, bytes_max: u64) -> Vec<ColdSpan> {
        let index = self.index.lock();
        let Some(log) = index.groups.get(&group) else { return Vec::new() };
        let mut bytes = 0;
        let is_wanted = |span: &&ColdSpan| {
            let is_room = bytes < bytes_max;
            bytes += u64::from(span.bytes);
            is_room
        };
        log.cold().skip_while(|span| span.first < from).take_while(is_wanted).copied().collect()
    }

    /// Reads chunks of the snapshot of the next group, about `bytes_max` bytes.
    fn step_snapshots(
        &mut self,
        mut groups: Vec<GroupId>,
        mut chunk: u32,
        bytes_max: u64,
        report: &mut ScrubReport,
    ) -> Result<Position> {
        let Some(&group) = groups.last() else {
            self.snapshot_bytes = (self.snapshot_bytes.1, 0);
            return Ok(Position::Journal(FlushSeq(0)));
        };
        let meta = self.snapshots.latest(group);
        let mut bytes = 0;
        let read = meta.map(|meta| meta.filter(|meta| chunk < meta.chunks)).and_then(|meta| {
            let Some(meta) = meta else { return Ok(true) };
            while chunk < meta.chunks && bytes < bytes_max {
                bytes += self.snapshots.read_chunk(&meta, chunk)?.len() as u64;
                (chunk, report.blocks) = (chunk + 1, report.blocks + 1);
            }
            Ok(chunk == meta.chunks)
        });
        report.bytes += bytes;
        self.snapshot_bytes.1 += bytes;
        match read {
            Ok(false) => return Ok(Position::Snapshots(Some(groups), chunk)),
            // What took its place meanwhile is looked at in the next round.
            Ok(true) | Err(SnapshotError::Replaced { .. }) => {}
            Err(SnapshotError::Storage(error)) => return Err(error),
            Err(_) => {
                let place = DamagePlace::Snapshot { group };
                report.damage.push(Damage { place, affected: Vec::new() });
            }
        }
        groups.pop();
        Ok(Position::Snapshots(Some(groups), 0))
    }

    fn step_journal(
        &self,
        from: FlushSeq,
        bytes_max: u64,
        report: &mut ScrubReport,
    ) -> Result<Position, RedbFailure> {
        let due: Vec<_> = {
            let index = self.index.lock();
            let mut bytes = 0;
            let blocks = index.blocks.iter().skip_while(|block| block.end.seq < from);
            let due = blocks.take_while(|block| {
                let is_room = bytes < bytes_max;
                bytes += u64::from(block.bytes);
                is_room
            });
            due.copied().collect()
        };
        let Some(last) = due.last().map(|block| block.end.seq) else {
            report.is_round_done = true;
            return Ok(Position::Begin);
        };
        for block in due {
            report.blocks += 1;
            report.bytes += u64::from(block.bytes);
            let seq = block.end.seq;
            let verified = self.journal.read(|blocks| {
                let Err(problem) = verify(blocks, self.identity, seq)? else { return Ok(None) };
                let mut affected = Vec::new();
                for (group, span) in self.spans_in(seq) {
                    affected
                        .extend(read_span(blocks, self.identity, group, &span)?.err().map(|e| e.affected));
                }
                Ok(Some(Damage { place: DamagePlace::Journal { seq, problem }, affected }))
            })?;
            let is_needed = self.index.lock().blocks.iter().any(|block| block.end.seq == seq);
            report.damage.extend(verified.filter(|_| is_needed));
        }
        Ok(Position::Journal(FlushSeq(last.0 + 1)))
    }

    fn spans_in(&self, seq: FlushSeq) -> Vec<(GroupId, Span)> {
        let index = self.index.lock();
        let logs = index.groups.iter();
        let spans = logs.flat_map(|(group, log)| log.hot().iter().map(move |span| (*group, *span)));
        spans.filter(|(_, span)| span.block == seq).collect()
    }
}

/// Whether a block of the journal is as it was written.
fn verify(
    blocks: &Blocks,
    identity: JournalIdentity,
    seq: FlushSeq,
) -> Result<Result<(), BlockError>, RedbFailure> {
    let raw = match blocks.get(seq)? {
        Ok(raw) => raw,
        Err(problem) => return Ok(Err(problem)),
    };
    let directory = raw.directory();
    Ok(Block::parse(&directory, identity).and_then(|block| {
        for part in block.parts() {
            let part = part?;
            if !part.is_data(raw.pieces(part.data_range())) {
                return Err(BlockError::Checksum);
            }
        }
        if block.end().seq == seq { Ok(()) } else { Err(BlockError::Chain) }
    }))
}

//! What writer, mover and readers of a shard share in memory: every group's log, and which blocks of
//! the journal are still needed.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

use iroh_raft_core::{FlushSeq, GroupId, LogChange};

use crate::block::ChainEnd;
use crate::group_log::{ColdSpan, GroupLog};

/// Groups of which each is looked at before a move.
const GROUPS_LOOKED_AT_MAX: usize = 4096;

/// A block of the journal.
#[derive(Clone, Copy, Debug)]
pub(crate) struct JournalBlock {
    pub(crate) end: ChainEnd,
    pub(crate) bytes: u32,
}

/// The log file's blocks of a group that began anew or was removed.
#[derive(Clone, Debug)]
pub(crate) struct Reset {
    /// The flush that says so: once it is moved, nothing else will.
    pub(crate) seq: FlushSeq,
    pub(crate) group: GroupId,
    pub(crate) is_removed: bool,
    /// Whether the log goes on before these blocks: entries were cut.
    pub(crate) is_cut: bool,
    pub(crate) blocks: Vec<ColdSpan>,
}

/// The index of a shard.
#[derive(Default, Debug)]
pub(crate) struct Index {
    pub(crate) groups: HashMap<GroupId, Box<GroupLog>>,
    /// Blocks of the journal that are needed, oldest first.
    pub(crate) blocks: VecDeque<JournalBlock>,
    /// Everything committed in blocks up to this one is in the log file.
    pub(crate) moved: ChainEnd,
    /// Groups with entries in moved blocks that were not committed then.
    pub(crate) left: Vec<GroupId>,
    /// Stored bytes of the blocks that are not moved.
    pub(crate) unmoved_bytes: u64,
    /// Bytes of the log file's blocks, those included that wait to be removed.
    pub(crate) log_bytes: u64,
    /// Bytes of all blocks flushed since the shard was opened.
    pub(crate) flushed_bytes: u64,
    /// Bytes from which on a move is worth a try again, after one that could not do much.
    pub(crate) move_after_bytes: u64,
    /// Blocks of the log file that were compacted away.
    pub(crate) compacted: VecDeque<(GroupId, ColdSpan)>,
    pub(crate) resets: Vec<Reset>,
    next_incarnation: u64,
}

impl Index {
    /// The log of a group, made if there is none.
    pub(crate) fn group(&mut self, group: GroupId) -> &mut GroupLog {
        self.groups.entry(group).or_insert_with(|| {
            self.next_incarnation += 1;
            Box::new(GroupLog::new(self.next_incarnation))
        })
    }

    /// Last flush of the oldest block that holds an entry which is not known to be committed. With very many groups it is
    /// not looked for: each has little in a move, and the lock is held for moments only.
    pub(crate) fn settled_before(&self) -> FlushSeq {
        let all = FlushSeq(u64::MAX);
        if self.groups.len() > GROUPS_LOOKED_AT_MAX {
            return all;
        }
        self.groups.values().filter_map(|log| log.first_unsettled()).min().unwrap_or(all)
    }

    /// Makes a durable change of a group's log, said by a block that ends with flush `seq`.
    pub(crate) fn change(&mut self, group: GroupId, change: LogChange, seq: FlushSeq) {
        let void = self.group(group).change(change);
        match change {
            LogChange::CutAfter(_) => {
                // A move that is under way has read what is void now.
                self.next_incarnation += 1;
                self.group(group).incarnation = self.next_incarnation;
                self.resets.push(Reset { seq, group, is_removed: false, is_cut: true, blocks: void });
            }
            LogChange::CompactTo(_) => self.compacted.extend(void.into_iter().map(|span| (group, span))),
            LogChange::StartAfter(_) => {
                self.resets.push(Reset { seq, group, is_removed: false, is_cut: false, blocks: void });
            }
            LogChange::Remove => {
                self.groups.remove(&group);
                let mut blocks = void;
                self.compacted.retain(|(of, span)| {
                    if *of == group {
                        blocks.push(*span);
                    }
                    *of != group
                });
                self.resets.push(Reset { seq, group, is_removed: true, is_cut: false, blocks });
            }
        }
    }

    /// Blocks were moved of a group that was removed, or of entries that were cut, meanwhile.
    pub(crate) fn add_to_reset(&mut self, group: GroupId, blocks: Vec<ColdSpan>) {
        let is_cause = |reset: &&mut Reset| reset.group == group && (reset.is_removed || reset.is_cut);
        let reset = self.resets.iter_mut().rev().find(is_cause);
        let reset = reset.expect("entries go by a reset, which waits for its flush to be moved");
        reset.blocks.extend(blocks);
    }

    /// A new block is durable; those before `oldest` are not needed any more. Returns them.
    pub(crate) fn add_block(
        &mut self,
        block: JournalBlock,
        oldest: FlushSeq,
    ) -> impl Iterator<Item = JournalBlock> {
        self.unmoved_bytes += crate::rows::stored_bytes(block.bytes as usize);
        self.blocks.push_back(block);
        let void = self.blocks.partition_point(|block| block.end.seq < oldest);
        self.blocks.drain(..void)
    }
}

/// The index, shared between threads. Held for moments only, never across I/O.
#[derive(Default, Debug)]
pub(crate) struct SharedIndex(Mutex<Index>);

impl SharedIndex {
    pub(crate) fn new(index: Index) -> SharedIndex {
        SharedIndex(Mutex::new(index))
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Index> {
        // A panic while it is held fences the writer; readers see what was there.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

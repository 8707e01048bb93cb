//! What a shard takes, and what it refuses because there is no room for it.

use iroh_raft_core::batch::RecordBlock;
use iroh_raft_core::{AnswerOn, BusyReason, GroupId, Input, PeerMessage, RequestError};

use super::Driver;
use crate::stats::ShardCounters;

impl Driver {
    /// Entries that the disk has no room for now are dropped, like a frame that was lost: their leader sends them again, from where
    /// this replica's log then ends. Its window bounds what it sends before of each group, but not of all of them together.
    pub(super) fn take_message(&mut self, message: PeerMessage) {
        if self.is_disk_behind() && !message.entries.is_empty() {
            return ShardCounters::add(&self.parts.counters.appends_dropped, 1);
        }
        self.step(Input::Message(message));
    }

    fn is_disk_behind(&self) -> bool {
        self.unflushed.bytes() >= self.parts.flush_bytes_max
    }

    /// Whether the shard can take more to be written.
    pub(super) fn check_writer(&self) -> Result<(), RequestError> {
        if self.is_fenced {
            return Err(RequestError::Fenced);
        }
        if !self.appends_waiting.is_empty() || self.is_disk_behind() {
            return Err(RequestError::busy(BusyReason::Writer));
        }
        if self.is_space_low {
            return Err(RequestError::busy(BusyReason::Space));
        }
        Ok(())
    }

    pub(super) fn check_block(
        &self,
        group: GroupId,
        block: &RecordBlock,
        answer: AnswerOn,
    ) -> Result<(), RequestError> {
        let too_large = |bytes: usize, bytes_max: usize| {
            Err(RequestError::TooLarge { bytes: bytes as u64, bytes_max: bytes_max as u64 })
        };
        self.check_writer()?;
        let largest = block.largest();
        if largest > self.parts.record_bytes_max {
            return too_large(largest, self.parts.record_bytes_max);
        }
        if block.as_bytes().len() > self.parts.block_bytes_max {
            return too_large(block.as_bytes().len(), self.parts.block_bytes_max);
        }
        // A group that is not here has no state machine either; the core says which it is.
        let is_unknown = answer == AnswerOn::Apply && self.parts.shard.status(group).is_none();
        if is_unknown { Ok(()) } else { self.machines.check(group, block, answer) }
    }

    pub(super) fn note_levels(&self) {
        let counters = &self.parts.counters;
        let (pending, unflushed) = (self.parts.shard.pending_bytes(), self.unflushed.bytes());
        ShardCounters::note(&counters.pending_bytes, &counters.pending_bytes_peak, pending);
        ShardCounters::note(&counters.unflushed_bytes, &counters.unflushed_bytes_peak, unflushed);
    }
}

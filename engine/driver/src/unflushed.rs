//! What is on its way to the disk, in bytes.
//!
//! Bounded by `flush_bytes_max`, and what one turn may bring: what a ring holds. A leader commits without its own disk, so
//! clients' bytes stop counting as pending while they still wait for it; and a follower's leaders bound what they send of
//! each group, not of all of them.

use std::collections::VecDeque;

use iroh_raft_core::{Append, FlushSeq};

/// Flushes that were handed over and are not known to be durable.
#[derive(Default, Debug)]
pub(crate) struct Unflushed {
    flushes: VecDeque<(FlushSeq, usize)>,
    bytes: usize,
}

impl Unflushed {
    pub(crate) fn push(&mut self, append: &Append) {
        let bytes = append.groups.iter().flat_map(|part| &part.entries).map(|entry| entry.data.len()).sum();
        self.flushes.push_back((append.seq, bytes));
        self.bytes += bytes;
    }

    pub(crate) fn handle_persisted(&mut self, seq: FlushSeq) {
        while let Some((_, bytes)) = self.flushes.pop_front_if(|(flush, _)| *flush <= seq) {
            self.bytes -= bytes;
        }
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }
}

//! Readers of a replica's log: reads, tails and searches by time, as they come and as they are served.

use super::serve::Purpose;
use super::{Index, Replica, RequestError, Token, Turn};
use crate::error::BusyReason;
use crate::find::{Find, Finds, PROBE_BYTES};
use crate::io::{FetchFrom, Reply};
use crate::records::{Committed, ReadKind, RecordRead, RecordReads};

impl Replica {
    /// A read of committed records, or a tail: queued for the end of the turn, or answered at once.
    pub(crate) fn handle_read_records(&mut self, turn: &mut Turn<'_>, read: RecordRead) {
        let (count, count_max) = match read.kind {
            ReadKind::Tail { .. } => (self.records.tails(), turn.config.tails_max),
            ReadKind::Once | ReadKind::Waiting => (self.records.reads(), turn.config.reads_waiting_max),
        };
        let error = if read.deadline <= turn.now {
            RequestError::Timeout
        } else if count >= count_max {
            RequestError::busy(BusyReason::Reads)
        } else {
            if let ReadKind::Tail { .. } = read.kind {
                // Its consumer learns that it is open, and where the log ends.
                let (group, from, end) = (self.group, read.from, self.commit_end);
                let (entries, is_last) = (Vec::new(), false);
                let opened = Reply::Records { token: read.token, group, from, entries, end, is_last };
                turn.out.replies.push(opened);
            }
            self.wake(turn);
            self.records.push(read);
            self.is_dirty = true;
            return;
        };
        turn.out.replies.push(Reply::Failed { token: read.token, group: self.group, error });
    }

    /// A consumer has granted its tail bytes, or wants no more of it. A tail that is over is not heard of again.
    pub(crate) fn handle_tail(&mut self, turn: &mut Turn<'_>, token: Token, granted_bytes: Option<u64>) {
        match granted_bytes {
            Some(bytes) => self.is_dirty |= self.records.grant(token, bytes),
            None => self.records.end_tail(token, self.commit_end, &mut turn.out.replies),
        }
    }

    /// A search for the first record of a time: queued for the end of the turn, or answered at once.
    pub(crate) fn handle_find(&mut self, turn: &mut Turn<'_>, token: Token, find: Find) {
        let error = if find.deadline <= turn.now {
            RequestError::Timeout
        } else if self.finds.count() >= turn.config.reads_waiting_max {
            RequestError::busy(BusyReason::Reads)
        } else {
            self.wake(turn);
            self.finds.push(find);
            self.is_dirty = true;
            return;
        };
        turn.out.replies.push(Reply::Failed { token, group: self.group, error });
    }

    /// What of this log may be handed out.
    pub(super) fn committed(&self) -> Committed<'_> {
        let (commit, end) = (self.commit, self.commit_end);
        Committed { window: self.raw.store(), commit, first: self.first_kept(), end }
    }

    pub(super) fn serve_finds(&mut self, turn: &mut Turn<'_>) {
        if self.finds.count() == 0 {
            return;
        }
        let mut finds = std::mem::replace(&mut self.finds, Finds::new(self.group));
        let retained = finds.serve(&self.committed(), &mut turn.out.replies);
        self.finds = finds;
        if let Some(before) = retained {
            self.trim(turn, before);
        }
        let is_open = self.fetches.values().any(|purpose| matches!(purpose, Purpose::Find { .. }));
        let is_busy = is_open || self.is_paused_by_missing;
        if let Some(probe) = self.finds.probe().filter(|_| !is_busy) {
            let to = self.last_fetched();
            self.fetch(turn, Purpose::Find { probe }, FetchFrom::Offset(probe), to, PROBE_BYTES);
        }
    }

    pub(super) fn serve_records(&mut self, turn: &mut Turn<'_>) {
        if self.records.reads() + self.records.tails() == 0 {
            return;
        }
        let mut records = std::mem::replace(&mut self.records, RecordReads::new(self.group));
        self.is_dirty |= records.serve(&self.committed(), &mut turn.out.replies);
        let is_open = self.fetches.values().any(|purpose| matches!(purpose, Purpose::Records { .. }));
        let is_busy = is_open || self.is_paused_by_missing;
        let wanted = records.wanted(&self.committed()).filter(|_| !is_busy);
        self.records = records;
        if let Some((from, bytes_max)) = wanted {
            let to = self.last_fetched();
            self.fetch(turn, Purpose::Records { from }, FetchFrom::Offset(from), to, bytes_max);
        }
    }

    /// Last entry that readers are given from the disk. What is in memory may not be durable yet: another suffix
    /// may still stand there in its place.
    fn last_fetched(&self) -> Index {
        Index(self.commit.0.min(self.raw.store().first().0 - 1))
    }
}

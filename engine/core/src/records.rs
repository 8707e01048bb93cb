//! Reads of committed records: from memory, or from the durable log by one fetch at a time.

use std::collections::VecDeque;

use crate::error::RequestError;
use crate::ids::{GroupId, Index, Offset, Timestamp};
use crate::io::{LogEntry, Reply, Token};
use crate::log_window::{LogWindow, header_of, limited};

#[derive(Clone, Copy, Debug)]
pub(crate) struct RecordRead {
    pub(crate) token: Token,
    pub(crate) from: Offset,
    pub(crate) bytes_max: usize,
    pub(crate) deadline: Timestamp,
}

/// Reads that wait for the end of the turn or for a fetch. Bounded by `reads_waiting_max`.
#[derive(Debug)]
pub(crate) struct RecordReads {
    group: GroupId,
    waiting: VecDeque<RecordRead>,
    deadline_min: Timestamp,
}

impl RecordReads {
    pub(crate) fn new(group: GroupId) -> RecordReads {
        RecordReads { group, waiting: VecDeque::new(), deadline_min: Timestamp(u64::MAX) }
    }

    /// Reads that are not answered yet.
    pub(crate) fn count(&self) -> usize {
        self.waiting.len()
    }

    pub(crate) fn push(&mut self, read: RecordRead) {
        self.deadline_min = self.deadline_min.min(read.deadline);
        self.waiting.push_back(read);
    }

    /// The read that needs a fetch next.
    pub(crate) fn front(&self) -> Option<&RecordRead> {
        self.waiting.front()
    }

    /// Answers every read that memory or the end of the log can answer.
    pub(crate) fn serve(&mut self, window: &LogWindow, commit: Index, end: Offset, replies: &mut Vec<Reply>) {
        let group = self.group;
        self.waiting.retain(|read| {
            let RecordRead { token, from, bytes_max, .. } = *read;
            if from > end {
                replies.push(Reply::Failed { token, group, error: RequestError::PastEnd { from, end } });
            } else if from == end {
                replies.push(Reply::Records { token, group, from, entries: Vec::new(), end });
            } else if from < window.base().offset {
                let error = RequestError::BeforeStart { from, start: window.base().offset };
                replies.push(Reply::Failed { token, group, error });
            } else if let Some(index) = window.index_of(from) {
                let mut entries = window.read(index, commit, bytes_max);
                entries.retain(|entry| entry.batch().is_some());
                replies.push(Reply::Records { token, group, from, entries, end });
            } else {
                return true;
            }
            false
        });
    }

    /// Answers every read that begins within fetched entries. Returns whether they hold the record that
    /// they were fetched for; whoever wanted it may be gone by now.
    pub(crate) fn handle_fetched(
        &mut self,
        mut entries: Vec<LogEntry>,
        wanted: Offset,
        end: Offset,
        replies: &mut Vec<Reply>,
    ) -> bool {
        entries.retain(|entry| entry.batch().is_some());
        let headers: Option<Vec<_>> = entries.iter().map(header_of).collect();
        let Some(headers) = headers else { return false };
        let position = |from| headers.iter().position(|header| header.base <= from && from < header.end());
        let group = self.group;
        self.waiting.retain(|read| {
            let Some(at) = position(read.from) else { return true };
            let found = limited(entries.iter().skip(at), read.bytes_max).cloned().collect();
            replies.push(Reply::Records { token: read.token, group, from: read.from, entries: found, end });
            false
        });
        position(wanted).is_some()
    }

    pub(crate) fn fail_all(&mut self, error: &RequestError, replies: &mut Vec<Reply>) {
        for read in std::mem::take(&mut self.waiting) {
            replies.push(Reply::Failed { token: read.token, group: self.group, error: error.clone() });
        }
    }

    /// Answers reads whose time has run out.
    pub(crate) fn handle_deadlines(&mut self, now: Timestamp, replies: &mut Vec<Reply>) {
        if now < self.deadline_min {
            return;
        }
        let group = self.group;
        self.waiting.retain(|read| {
            let is_late = read.deadline <= now;
            if is_late {
                replies.push(Reply::Failed { token: read.token, group, error: RequestError::Timeout });
            }
            !is_late
        });
        self.deadline_min =
            self.waiting.iter().map(|read| read.deadline).min().unwrap_or(Timestamp(u64::MAX));
    }
}

//! Reads of committed records, and tails: readers that follow the log as it grows.
//!
//! Records come from memory, or from the durable log by one fetch at a time. A tail has credit, granted by its
//! consumer: it is sent whole entries while credit is left, the last of which may exceed it, and then costs
//! nothing until it is granted more. One that fell behind memory is fed from the disk like any other read, and
//! takes its turn with them. A tail at the end of the log waits; nobody looks at it until the log grows.
//!
//! Invariants: nothing that is not committed is handed out, nor anything before the first record kept; a tail
//! gets each record once, in order. Bounded: reads by `reads_waiting_max`, tails by `tails_max`; what a tail
//! has under way by its credit and one entry.

use std::collections::VecDeque;

use crate::error::RequestError;
use crate::ids::{GroupId, Index, Offset, Timestamp};
use crate::io::{LogEntry, Reply, Token};
use crate::log_window::{LogWindow, header_of, limited};
use crate::mutants::{self, Mutant};

/// Bytes of one answer to a tail at most, if it has several entries: so that one that is far behind shares the turn.
const TAIL_ANSWER_BYTES_MAX: u64 = 1 << 20;

/// What of a log may be handed out.
pub(crate) struct Committed<'a> {
    pub(crate) window: &'a LogWindow,
    pub(crate) commit: Index,
    /// First record that is kept.
    pub(crate) first: Offset,
    /// Offset after the last committed record.
    pub(crate) end: Offset,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum ReadKind {
    /// Answered at once, also when there is nothing.
    Once,
    /// Waits for a record until its deadline, and is answered with none then.
    Waiting,
    /// Follows the log until its deadline. Bytes, counted from its beginning.
    Tail { granted: u64, sent: u64 },
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct RecordRead {
    pub(crate) token: Token,
    pub(crate) from: Offset,
    pub(crate) bytes_max: usize,
    pub(crate) records_max: u32,
    pub(crate) deadline: Timestamp,
    pub(crate) kind: ReadKind,
}

impl RecordRead {
    pub(crate) fn is_tail(&self) -> bool {
        matches!(self.kind, ReadKind::Tail { .. })
    }

    /// Bytes that it may be sent now; 0 for a tail without credit.
    fn bytes_now(&self) -> usize {
        match self.kind {
            ReadKind::Tail { granted, sent } => {
                usize::try_from(granted.saturating_sub(sent).min(TAIL_ANSWER_BYTES_MAX)).unwrap_or(usize::MAX)
            }
            ReadKind::Once | ReadKind::Waiting => self.bytes_max,
        }
    }

    fn wants(&self, log: &Committed<'_>) -> bool {
        (log.first..log.end).contains(&self.from) && (!self.is_tail() || self.bytes_now() > 0)
    }

    /// Cuts entries that begin with the record wanted down to what it may be sent, at least one.
    fn limited<'e>(&self, entries: impl Iterator<Item = &'e LogEntry>) -> Vec<LogEntry> {
        let mut left = u64::from(self.records_max);
        let within_count = move |entry: &&LogEntry| {
            let is_wanted = left > 0;
            let count = header_of(entry).map_or(0, |header| header.end().0 - header.base.max(self.from).0);
            left = left.saturating_sub(count);
            is_wanted
        };
        limited(entries, self.bytes_now()).take_while(within_count).cloned().collect()
    }

    /// Hands out entries that begin with the record wanted. Whether it wants more of them later.
    fn deliver(
        &mut self,
        group: GroupId,
        entries: Vec<LogEntry>,
        end: Offset,
        replies: &mut Vec<Reply>,
    ) -> bool {
        let (token, from) = (self.token, self.from);
        if let ReadKind::Tail { sent, .. } = &mut self.kind {
            *sent += entries.iter().map(|entry| entry.data.len() as u64).sum::<u64>();
            let last = entries.last().and_then(header_of).expect("a batch was looked for and found");
            self.from = last.end();
        }
        let is_last = !self.is_tail();
        replies.push(Reply::Records { token, group, from, entries, end, is_last });
        !is_last
    }

    /// The answer with nothing in it.
    fn empty(&self, group: GroupId, end: Offset) -> Reply {
        let (token, from) = (self.token, self.from);
        Reply::Records { token, group, from, entries: Vec::new(), end, is_last: true }
    }
}

/// Reads and tails that wait for the end of the turn, for a fetch or for the log to grow.
#[derive(Debug)]
pub(crate) struct RecordReads {
    group: GroupId,
    waiting: VecDeque<RecordRead>,
    tails: usize,
    deadline_min: Timestamp,
}

impl RecordReads {
    pub(crate) fn new(group: GroupId) -> RecordReads {
        RecordReads { group, waiting: VecDeque::new(), tails: 0, deadline_min: Timestamp(u64::MAX) }
    }

    /// Reads that are not answered yet, without tails.
    pub(crate) fn reads(&self) -> usize {
        self.waiting.len() - self.tails
    }

    pub(crate) fn tails(&self) -> usize {
        self.tails
    }

    pub(crate) fn push(&mut self, read: RecordRead) {
        self.deadline_min = self.deadline_min.min(read.deadline);
        self.tails += usize::from(read.is_tail());
        self.waiting.push_back(read);
    }

    fn retain(&mut self, keep: impl FnMut(&mut RecordRead) -> bool) {
        self.waiting.retain_mut(keep);
        self.tails = self.waiting.iter().filter(|read| read.is_tail()).count();
    }

    fn tail(&mut self, token: Token) -> Option<&mut RecordRead> {
        self.waiting.iter_mut().find(|read| read.is_tail() && read.token == token)
    }

    /// A consumer has granted its tail so many bytes in all; what is no more than before changes nothing. Whether
    /// there is such a tail.
    pub(crate) fn grant(&mut self, token: Token, bytes: u64) -> bool {
        let Some(tail) = self.tail(token) else { return false };
        if let ReadKind::Tail { granted, .. } = &mut tail.kind {
            *granted = bytes.max(*granted);
            if mutants::is(Mutant::GrantsAddUp) {
                *granted += bytes;
            }
        }
        true
    }

    /// A consumer wants no more.
    pub(crate) fn end_tail(&mut self, token: Token, end: Offset, replies: &mut Vec<Reply>) {
        let group = self.group;
        self.retain(|read| {
            let is_over = read.is_tail() && read.token == token;
            if is_over {
                replies.push(read.empty(group, end));
            }
            !is_over
        });
    }

    /// Where the next fetch starts, and its bytes at most, if somebody waits for what is not in memory.
    pub(crate) fn wanted(&self, log: &Committed<'_>) -> Option<(Offset, usize)> {
        let is_away = |read: &&RecordRead| read.wants(log) && log.window.index_of(read.from).is_none();
        self.waiting.iter().find(is_away).map(|read| (read.from, read.bytes_now()))
    }

    /// Answers everything that memory or the ends of the log can answer. Whether a tail can go on at once.
    pub(crate) fn serve(&mut self, log: &Committed<'_>, replies: &mut Vec<Reply>) -> bool {
        let (group, end) = (self.group, log.end);
        let mut has_more = false;
        let is_early = mutants::is(Mutant::TailUncommitted);
        self.retain(|read| {
            let from = read.from;
            let failed = |error| Reply::Failed { token: read.token, group, error };
            if from < log.first {
                replies.push(failed(RequestError::BeforeStart { from, start: log.first }));
                return false;
            }
            if from >= end && read.kind == ReadKind::Once {
                let is_past = from > end;
                let past = || failed(RequestError::PastEnd { from, end });
                replies.push(if is_past { past() } else { read.empty(group, end) });
                return false;
            }
            let is_early = is_early && read.is_tail() && read.bytes_now() > 0;
            if !(is_early || read.wants(log)) {
                return true;
            }
            let Some(index) = log.window.index_of(from) else { return true };
            let to = if is_early { Index(u64::MAX) } else { log.commit };
            let mut entries = log.window.read(index, to, read.bytes_now());
            entries.retain(|entry| entry.batch().is_some());
            let entries = read.limited(entries.iter());
            let is_kept = read.deliver(group, entries, end, replies);
            has_more |= is_kept && read.wants(log);
            is_kept
        });
        has_more
    }

    /// Answers every read that begins within fetched entries. Returns whether they hold the record that
    /// they were fetched for; whoever wanted it may be gone by now.
    pub(crate) fn handle_fetched(
        &mut self,
        mut entries: Vec<LogEntry>,
        wanted: Offset,
        log: &Committed<'_>,
        replies: &mut Vec<Reply>,
    ) -> bool {
        entries.retain(|entry| entry.batch().is_some());
        let headers: Option<Vec<_>> = entries.iter().map(header_of).collect();
        let Some(headers) = headers else { return false };
        let position = |from| headers.iter().position(|header| header.base <= from && from < header.end());
        let group = self.group;
        let mut served = Vec::new();
        self.retain(|read| {
            let Some(at) = position(read.from).filter(|_| read.wants(log)) else { return true };
            let found = read.limited(entries.iter().skip(at));
            if read.deliver(group, found, log.end, replies) {
                if mutants::is(Mutant::TailSkipsToMemory) {
                    read.from = log.window.end_at(Index(log.window.first().0 - 1)).min(log.end);
                }
                served.push(*read);
            }
            false
        });
        // Behind those that still wait for a fetch of theirs.
        served.into_iter().for_each(|tail| self.push(tail));
        position(wanted).is_some()
    }

    pub(crate) fn fail_all(&mut self, error: &RequestError, replies: &mut Vec<Reply>) {
        self.tails = 0;
        for read in std::mem::take(&mut self.waiting) {
            replies.push(Reply::Failed { token: read.token, group: self.group, error: error.clone() });
        }
    }

    /// Answers reads and ends tails whose time has run out.
    pub(crate) fn handle_deadlines(&mut self, now: Timestamp, end: Offset, replies: &mut Vec<Reply>) {
        if now < self.deadline_min {
            return;
        }
        let group = self.group;
        self.retain(|read| {
            let is_late = read.deadline <= now;
            if is_late && read.kind == ReadKind::Once {
                replies.push(Reply::Failed { token: read.token, group, error: RequestError::Timeout });
            } else if is_late {
                replies.push(read.empty(group, end));
            }
            !is_late
        });
        self.deadline_min =
            self.waiting.iter().map(|read| read.deadline).min().unwrap_or(Timestamp(u64::MAX));
    }
}

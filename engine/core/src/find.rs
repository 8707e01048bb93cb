//! Finds the first record of a time: a binary search, as times of batches never fall within a log.
//!
//! What is in memory is searched there. Otherwise the durable log is probed in the middle of what is left, by
//! one fetch at a time; what a probe gives back beyond its first entry narrows the search as well, so it
//! takes about one probe for each doubling of the log in blocks.

use std::collections::VecDeque;

use crate::error::RequestError;
use crate::ids::{GroupId, Offset, Timestamp, WallTime};
use crate::io::{LogEntry, Reply, Token};
use crate::log_window::header_of;
use crate::records::Committed;

/// Bytes of one probe.
pub(crate) const PROBE_BYTES: usize = 64 << 10;

/// Who wants to know.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Seeker {
    Client(Token),
    /// The leader, to trim what is older.
    Retention,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Find {
    pub(crate) seeker: Seeker,
    pub(crate) at: WallTime,
    pub(crate) deadline: Timestamp,
    /// The search, once it has begun.
    search: Option<Search>,
}

#[derive(Clone, Copy, Debug)]
struct Search {
    /// No record before it is late enough.
    from: Offset,
    /// The record here is, or it is the end.
    to: Offset,
    /// The end of the log as the search began: what came after that is not looked at.
    end: Offset,
}

impl Find {
    pub(crate) fn new(seeker: Seeker, at: WallTime, deadline: Timestamp) -> Find {
        Find { seeker, at, deadline, search: None }
    }

    /// What is left to search of a log that begins with its first record kept; begins the search.
    fn look(&mut self, log: &Committed<'_>) -> Search {
        let search = self.search.get_or_insert_with(|| {
            let (to, is_exact) = log.window.first_from(self.at, log.commit);
            Search { from: if is_exact { to } else { log.first }, to, end: log.end }
        });
        let Search { from, to, end } = search;
        (*from, *to, *end) = ((*from).max(log.first), (*to).max(log.first), (*end).max(log.first));
        *search
    }
}

/// Searches that are under way; the first has the next probe. Bounded by `reads_waiting_max`.
#[derive(Debug)]
pub(crate) struct Finds {
    group: GroupId,
    waiting: VecDeque<Find>,
}

impl Finds {
    pub(crate) fn new(group: GroupId) -> Finds {
        Finds { group, waiting: VecDeque::new() }
    }

    pub(crate) fn count(&self) -> usize {
        self.waiting.len()
    }

    pub(crate) fn push(&mut self, find: Find) {
        self.waiting.push_back(find);
    }

    pub(crate) fn is_retaining(&self) -> bool {
        self.waiting.iter().any(|find| find.seeker == Seeker::Retention)
    }

    /// Ends the searches that need no probe any more. Returns what retention found, if that was one of them.
    pub(crate) fn serve(&mut self, log: &Committed<'_>, replies: &mut Vec<Reply>) -> Option<Offset> {
        let group = self.group;
        let mut retained = None;
        self.waiting.retain_mut(|find| {
            let Search { from, to: offset, end } = find.look(log);
            if from < offset {
                return true;
            }
            match find.seeker {
                Seeker::Client(token) => replies.push(Reply::Found { token, group, offset, end }),
                Seeker::Retention => retained = Some(offset),
            }
            false
        });
        retained
    }

    /// The record to probe next.
    pub(crate) fn probe(&self) -> Option<Offset> {
        let Search { from, to, .. } = self.waiting.front()?.search?;
        Some(Offset(from.0 + (to.0 - from.0) / 2))
    }

    /// A probe of the first search came back. Whether it holds the record that was probed.
    pub(crate) fn handle_fetched(&mut self, entries: &[LogEntry], probed: Offset) -> bool {
        let headers: Vec<_> =
            entries.iter().filter(|entry| entry.batch().is_some()).filter_map(header_of).collect();
        let (Some(first), Some(last)) = (headers.first(), headers.last()) else { return false };
        if !(first.base..first.end()).contains(&probed) {
            return false;
        }
        // It may be another search by now, whose range has nothing to do with the probe.
        let Some(find) = self.waiting.front_mut() else { return true };
        let Some(Search { from, to, .. }) = &mut find.search else { return true };
        let late = headers.iter().find(|header| header.at >= find.at);
        if let Some(late) = late.filter(|late| late.base < *to) {
            *to = late.base;
        }
        match late {
            Some(late) if late.base == first.base => {}
            // What is right before it is too early.
            Some(late) => *from = late.base.max(*from),
            None => *from = last.end().max(*from),
        }
        // A probe may reach beyond the range.
        *from = (*from).min(*to);
        true
    }

    pub(crate) fn fail_all(&mut self, error: &RequestError, replies: &mut Vec<Reply>) {
        for find in std::mem::take(&mut self.waiting) {
            if let Seeker::Client(token) = find.seeker {
                replies.push(Reply::Failed { token, group: self.group, error: error.clone() });
            }
        }
    }

    /// Ends searches whose time has run out.
    pub(crate) fn handle_deadlines(&mut self, now: Timestamp, replies: &mut Vec<Reply>) {
        let group = self.group;
        self.waiting.retain(|find| {
            let is_late = find.deadline <= now;
            if let Seeker::Client(token) = find.seeker
                && is_late
            {
                replies.push(Reply::Failed { token, group, error: RequestError::Timeout });
            }
            !is_late
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::{RecordBlock, encode_batch};
    use crate::ids::{Index, Term};
    use crate::io::{ConfState, EntryKind, GroupState};
    use crate::log_window::LogWindow;

    /// Two records of a time.
    fn entry(index: u64, at: u64) -> LogEntry {
        let block = RecordBlock::from_records(&[b"record"; 2]);
        let data = encode_batch(Offset((index - 1) * 2), WallTime(at), [block].iter());
        LogEntry { index: Index(index), term: Term(1), kind: EntryKind::Normal, data }
    }

    #[test]
    fn a_probe_beyond_the_end_that_the_search_began_with_does_not_move_it() {
        let group = GroupId(1);
        let window =
            LogWindow::new(&GroupState::fresh(group, ConfState::default(), false), WallTime(0)).unwrap();
        let (first, end) = (Offset(0), Offset(4));
        let log = Committed { window: &window, commit: Index(2), first, end };
        let mut finds = Finds::new(group);
        finds.push(Find::new(Seeker::Client(Token { origin: 0, request: 1 }), WallTime(50), Timestamp(1)));
        finds.waiting[0].search = Some(Search { from: first, to: end, end });
        let mut replies = Vec::new();
        assert_eq!(finds.serve(&log, &mut replies), None);
        let probed = finds.probe().unwrap();
        assert!(finds.handle_fetched(&[entry(2, 20), entry(3, 30), entry(4, 40)], probed));
        finds.serve(&log, &mut replies);
        assert!(
            matches!(replies[..], [Reply::Found { offset: Offset(4), end: Offset(4), .. }]),
            "{replies:?}"
        );
    }
}

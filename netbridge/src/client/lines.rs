//! The work that waits for one node, and the requests that are open there.
//!
//! Appends of one group form a line: while enough requests of the group are under way, further
//! records gather in one piece of work instead of becoming requests of their own. So under load a
//! request carries many records, and without load none waits.
//!
//! Bounds: what waits is charged to the client's room for bytes in flight before it comes here;
//! open requests are at most `requests_per_node_max`.

use std::collections::{HashMap, VecDeque};
use std::mem;
use std::time::Duration;

use iroh_raft_core::{AnswerOn, GroupId, Placement, ShardId};
use tokio::time::Instant;

use super::call::{Ask, Sink, Work};
use super::config::ClientLimits;
use crate::wire::{ClientBody, ClientRequest};

/// Calls whose deadlines differ by less share a request; it has the earliest of them.
const DEADLINE_SPREAD: Duration = Duration::from_millis(50);

type LineKey = (GroupId, bool);

/// A call's records, on their way into a line.
pub(super) struct Arrival<'a, R> {
    pub(super) group: GroupId,
    pub(super) answer: AnswerOn,
    pub(super) records: &'a [R],
    pub(super) sink: Sink,
    pub(super) charge: usize,
    pub(super) deadline: Instant,
}

#[derive(Debug, Default)]
struct Line {
    filling: Option<Work>,
    /// Requests of the line under way.
    open: usize,
    is_listed: bool,
}

/// A request that was sent.
#[derive(Debug)]
struct Open {
    /// `None`: its calls have been told that time ran out; the answer is still awaited, so that
    /// its number is not given to another request meanwhile.
    work: Option<Work>,
    line: Option<LineKey>,
}

/// Work for one node.
#[derive(Debug)]
pub(super) struct Lines {
    requests_per_line_max: usize,
    requests_max: usize,
    records_max: usize,
    bytes_max: usize,
    lines: HashMap<LineKey, Line>,
    /// Lines that have something and may send it, each once.
    listed: VecDeque<LineKey>,
    /// Work that waits for nothing but its turn.
    ready: VecDeque<Work>,
    slots: Vec<Option<Open>>,
    free: Vec<usize>,
    /// No deadline of anything here is earlier.
    earliest: Option<Instant>,
}

impl Lines {
    pub(super) fn new(limits: &ClientLimits) -> Lines {
        Lines {
            requests_per_line_max: limits.requests_per_group_max,
            requests_max: limits.requests_per_node_max,
            records_max: limits.request_records_max,
            bytes_max: limits.request_bytes_max,
            lines: HashMap::new(),
            listed: VecDeque::new(),
            ready: VecDeque::new(),
            slots: Vec::new(),
            free: Vec::new(),
            earliest: None,
        }
    }

    /// Adds a call's records to their line. Returns whether its deadline is now the earliest.
    pub(super) fn fill<R: AsRef<[u8]>>(&mut self, arrival: Arrival<'_, R>) -> bool {
        let Arrival { group, answer, records, sink, charge, deadline } = arrival;
        let is_earliest = self.note(deadline);
        let key = (group, answer == AnswerOn::Apply);
        let (records_max, bytes_max) = (self.records_max, self.bytes_max);
        let line = self.lines.entry(key).or_default();
        let is_full = line.filling.as_ref().is_some_and(|work| {
            let (bytes, count) = work.size();
            let spread = work.deadline.max(deadline) - work.deadline.min(deadline);
            bytes + charge > bytes_max || count + records.len() > records_max || spread > DEADLINE_SPREAD
        });
        if is_full {
            self.ready.extend(line.filling.take());
        }
        let work = line.filling.get_or_insert_with(|| Work::filling(group, answer, deadline));
        work.deadline = work.deadline.min(deadline);
        work.fill(records, sink, charge);
        list(line, key, self.requests_per_line_max, &mut self.listed);
        is_earliest
    }

    /// Adds work as it is. Returns whether its deadline is now the earliest.
    pub(super) fn push(&mut self, work: Work) -> bool {
        let is_earliest = self.note(work.deadline);
        self.ready.push_back(work);
        is_earliest
    }

    fn note(&mut self, deadline: Instant) -> bool {
        let is_earliest = self.earliest.is_none_or(|earliest| deadline < earliest);
        if is_earliest {
            self.earliest = Some(deadline);
        }
        is_earliest
    }

    /// When to look for calls whose time has run out.
    pub(super) fn earliest(&self) -> Option<Instant> {
        self.earliest
    }

    /// Takes the next request to send, if the bounds allow one.
    pub(super) fn take_request(
        &mut self,
        now: Instant,
        placement: &Placement,
    ) -> Option<(ShardId, ClientRequest)> {
        if self.slots.len() - self.free.len() >= self.requests_max {
            return None;
        }
        let mut work = match self.ready.pop_front() {
            Some(work) => work,
            None => self.take_filling()?,
        };
        let key = line_of(&work);
        if let Some(key) = key {
            self.lines.entry(key).or_default().open += 1;
        }
        let remaining = work.deadline.saturating_duration_since(now).as_millis();
        let deadline_ms = u32::try_from(remaining).unwrap_or(u32::MAX).max(1);
        let (group, body) = (work.group, work.seal().clone());
        let at = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            self.slots.len() - 1
        });
        self.slots[at] = Some(Open { work: Some(work), line: key });
        Some((placement.shard_of(group), ClientRequest { request: at as u64, group, deadline_ms, body }))
    }

    fn take_filling(&mut self) -> Option<Work> {
        loop {
            let key = self.listed.pop_front()?;
            let Some(line) = self.lines.get_mut(&key) else { continue };
            line.is_listed = false;
            if line.open < self.requests_per_line_max
                && let Some(work) = line.filling.take()
            {
                return Some(work);
            }
        }
    }

    /// The request with this number is answered. `None`: its time had run out. `Err`: there is none.
    pub(super) fn answered(&mut self, request: u64) -> Result<Option<Work>, NoSuchRequest> {
        let at = usize::try_from(request).map_err(|_| NoSuchRequest)?;
        let open = self.slots.get_mut(at).and_then(Option::take).ok_or(NoSuchRequest)?;
        self.free.push(at);
        if let Some(key) = open.line {
            self.release(key);
        }
        Ok(open.work)
    }

    /// The work of a request that has more answers to come. `None`: its time had run out. `Err`: there is none.
    pub(super) fn streaming(&self, request: u64) -> Result<Option<&Work>, NoSuchRequest> {
        let at = usize::try_from(request).map_err(|_| NoSuchRequest)?;
        let open = self.slots.get(at).and_then(Option::as_ref).ok_or(NoSuchRequest)?;
        Ok(open.work.as_ref())
    }

    fn release(&mut self, key: LineKey) {
        let Some(line) = self.lines.get_mut(&key) else { return };
        line.open = line.open.saturating_sub(1);
        if line.filling.is_some() {
            list(line, key, self.requests_per_line_max, &mut self.listed);
        } else if line.open == 0 {
            self.lines.remove(&key);
        }
    }

    /// Takes the work whose time has run out: what was not sent, and what was.
    pub(super) fn take_expired(&mut self, now: Instant) -> (Vec<Work>, Vec<Work>) {
        let (mut unsent, mut sent) = (Vec::new(), Vec::new());
        let mut earliest: Option<Instant> = None;
        let mut is_over = |work: &Work| {
            if work.deadline <= now {
                return true;
            }
            earliest = Some(earliest.map_or(work.deadline, |earliest| earliest.min(work.deadline)));
            false
        };
        for line in self.lines.values_mut() {
            unsent.extend(line.filling.take_if(|work| is_over(work)));
        }
        for work in mem::take(&mut self.ready) {
            if is_over(&work) {
                unsent.push(work);
            } else {
                self.ready.push_back(work);
            }
        }
        for open in self.slots.iter_mut().flatten() {
            sent.extend(open.work.take_if(|work| is_over(work)));
        }
        self.lines.retain(|_, line| line.open > 0 || line.filling.is_some());
        self.earliest = earliest;
        (unsent, sent)
    }

    /// Takes everything that was not sent.
    pub(super) fn take_unsent(&mut self) -> Vec<Work> {
        let mut unsent: Vec<Work> = mem::take(&mut self.ready).into();
        unsent.extend(self.lines.values_mut().filter_map(|line| line.filling.take()));
        self.lines.retain(|_, line| line.open > 0);
        unsent
    }

    /// Takes everything that was sent and not answered: the connection is gone.
    pub(super) fn take_sent(&mut self) -> Vec<Work> {
        self.free.clear();
        for line in self.lines.values_mut() {
            line.open = 0;
        }
        let requests_max = self.requests_per_line_max;
        for (key, line) in &mut self.lines {
            list(line, *key, requests_max, &mut self.listed);
        }
        self.lines.retain(|_, line| line.filling.is_some());
        mem::take(&mut self.slots).into_iter().flatten().filter_map(|open| open.work).collect()
    }
}

/// An answer to a request that was not made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct NoSuchRequest;

fn list(line: &mut Line, key: LineKey, open_max: usize, listed: &mut VecDeque<LineKey>) {
    if line.filling.is_some() && line.open < open_max && !line.is_listed {
        line.is_listed = true;
        listed.push_back(key);
    }
}

fn line_of(work: &Work) -> Option<LineKey> {
    match &work.ask {
        Ask::Filling { answer, .. } | Ask::Sealed(ClientBody::Append { answer, .. }) => {
            Some((work.group, *answer == AnswerOn::Apply))
        }
        Ask::Sealed(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::client::call::{CompletionQueue, QueueUser, Target};

    fn lines(limits: &ClientLimits) -> Lines {
        Lines::new(limits)
    }

    fn arrive(lines: &mut Lines, group: u64, deadline: Instant) {
        let sink = Sink::Many { queue: QueueUser::new(Arc::new(CompletionQueue::default())), tag: 0 };
        let records = &[b"record"];
        let (group, answer) = (GroupId(group), AnswerOn::Commit);
        lines.fill(Arrival { group, answer, records, sink, charge: 70, deadline });
    }

    fn records_of_next(lines: &mut Lines) -> Option<u32> {
        let (_, request) = lines.take_request(Instant::now(), &Placement::ONE_SHARD)?;
        match request.body {
            ClientBody::Append { block, .. } => Some(block.count()),
            _ => None,
        }
    }

    #[test]
    fn records_gather_while_enough_requests_of_their_group_are_under_way() {
        let deadline = Instant::now() + Duration::from_secs(9);
        let mut lines = lines(&ClientLimits { requests_per_group_max: 2, ..ClientLimits::default() });
        for _ in 0..2 {
            arrive(&mut lines, 1, deadline);
            assert_eq!(records_of_next(&mut lines), Some(1));
        }
        for _ in 0..5 {
            arrive(&mut lines, 1, deadline);
        }
        arrive(&mut lines, 2, deadline);
        assert_eq!(records_of_next(&mut lines), Some(1), "another group does not wait");
        assert_eq!(records_of_next(&mut lines), None);
        assert!(lines.answered(0).unwrap().is_some());
        assert_eq!(records_of_next(&mut lines), Some(5));
        assert!(matches!(lines.answered(9), Err(NoSuchRequest)));
    }

    #[test]
    fn a_full_request_does_not_wait() {
        let deadline = Instant::now() + Duration::from_secs(9);
        let limits =
            ClientLimits { requests_per_group_max: 1, request_records_max: 3, ..ClientLimits::default() };
        let mut lines = lines(&limits);
        for _ in 0..8 {
            arrive(&mut lines, 1, deadline);
        }
        let counts: Vec<_> = std::iter::from_fn(|| records_of_next(&mut lines)).collect();
        assert_eq!(counts, [3, 3]);
        lines.answered(0).unwrap();
        lines.answered(1).unwrap();
        assert_eq!(records_of_next(&mut lines), Some(2));
    }

    #[test]
    fn what_expires_after_it_was_sent_keeps_its_number_until_it_is_answered() {
        let now = Instant::now();
        let soon = now + Duration::from_millis(5);
        let late = now + Duration::from_secs(9);
        let mut lines = lines(&ClientLimits::default());
        arrive(&mut lines, 1, soon);
        assert_eq!(records_of_next(&mut lines), Some(1));
        arrive(&mut lines, 1, soon);
        arrive(&mut lines, 2, late);
        assert_eq!(lines.earliest(), Some(soon));
        let (unsent, sent) = lines.take_expired(soon);
        assert_eq!((unsent.len(), sent.len()), (1, 1));
        assert_eq!(lines.earliest(), Some(late));
        let (_, request) = lines.take_request(now, &Placement::ONE_SHARD).unwrap();
        assert_eq!(request.request, 1, "0 is still awaited");
        assert!(lines.answered(0).unwrap().is_none());
    }

    #[test]
    fn a_lost_connection_gives_back_what_was_sent_and_lets_the_rest_go() {
        let deadline = Instant::now() + Duration::from_secs(9);
        let mut lines = lines(&ClientLimits { requests_per_group_max: 1, ..ClientLimits::default() });
        arrive(&mut lines, 1, deadline);
        assert_eq!(records_of_next(&mut lines), Some(1));
        arrive(&mut lines, 1, deadline);
        lines.push(Work::new(GroupId(3), Ask::Sealed(ClientBody::Status), deadline, Target::Node(0)));
        assert_eq!(lines.take_sent().len(), 1);
        assert!(lines.take_request(Instant::now(), &Placement::ONE_SHARD).is_some());
        assert_eq!(records_of_next(&mut lines), Some(1));
        assert_eq!(lines.take_unsent().len(), 0);
    }
}

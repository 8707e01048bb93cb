//! Proposals of clients, from their arrival to their answer.
//!
//! A proposal waits until the turn ends, then it is proposed (part of an entry of ours), then
//! committed; one that wants a state machine's response is then handed over with its entry. Each
//! is answered exactly once, or handed over once. One of a client session whose records are in the log already is not
//! proposed: it gets their answer, once they are committed.
//!
//! Bounded by `pending_bytes_max`, and with the shard's other groups by `shard_pending_bytes_max`: what waits, what is proposed
//! and not yet committed, and who waits for records that are in the log already. Full means `Busy`.
//! Who waits for such records counts for the group's bound, and may go beyond the shard's in the turn in which he comes.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;
use raft::eraftpb;

use crate::batch::{BatchBuffer, RUN_BYTES, RUNS_MAX, RecordBlock, Run};
use crate::error::{BusyReason, RequestError};
use crate::ids::{GroupId, Index, NodeId, Offset, Term, Timestamp, WallTime};
use crate::io::{AnswerOn, ClientRun, Propose, Reply, ShardConfig, Token, Waiter};
use crate::mutants::{self, Mutant};
use crate::sessions::{Place, SessionRefusal, Sessions, Verdict};

/// What a request counts whose records are in the log already: it keeps nothing but its place.
const REPEAT_BYTES: usize = size_of::<Proposed>();

#[derive(Debug)]
pub(crate) struct Pending {
    group: GroupId,
    waiting: VecDeque<Propose>,
    waiting_bytes: usize,
    /// What is being packed; empty between calls, kept for its memory.
    parts: Parts,
    /// In order of index, and of offset.
    proposed: VecDeque<Proposed>,
    /// Committed, wanting a response of the state machine; in order of offset.
    committed: VecDeque<Proposed>,
    /// Our own uncommitted entries: where they are, their sizes, and since when. Outlives the requests' deadlines.
    uncommitted: VecDeque<(Index, usize, Timestamp)>,
    uncommitted_bytes: usize,
    /// How many of those proposed and committed are repeats.
    repeats: usize,
    /// No deadline lies before this.
    deadline_min: Timestamp,
}

#[derive(Clone, Copy, Debug)]
struct Proposed {
    token: Token,
    first: Offset,
    count: u32,
    index: Index,
    term: Term,
    answer: AnswerOn,
    deadline: Timestamp,
    /// Whether its records were in the log when it came.
    is_repeat: bool,
}

/// Where the next batch goes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Position {
    pub(crate) index: Index,
    pub(crate) term: Term,
    pub(crate) base: Offset,
    pub(crate) at: WallTime,
    pub(crate) now: Timestamp,
}

impl Pending {
    pub(crate) fn new(group: GroupId) -> Pending {
        Pending {
            group,
            waiting: VecDeque::new(),
            waiting_bytes: 0,
            parts: Parts::default(),
            proposed: VecDeque::new(),
            committed: VecDeque::new(),
            uncommitted: VecDeque::new(),
            uncommitted_bytes: 0,
            repeats: 0,
            deadline_min: Timestamp(u64::MAX),
        }
    }

    /// Whether nobody waits for anything, and nothing is proposed.
    pub(crate) fn is_empty(&self) -> bool {
        let requests = [self.proposed.len(), self.committed.len(), self.waiting.len()];
        requests.iter().sum::<usize>() == 0 && self.uncommitted.is_empty()
    }

    /// Gives back memory that nothing stands in.
    pub(crate) fn shrink(&mut self) {
        self.waiting.shrink_to_fit();
        self.parts = Parts::default();
        self.proposed.shrink_to_fit();
        self.committed.shrink_to_fit();
        self.uncommitted.shrink_to_fit();
    }

    pub(crate) fn has_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Bytes that count against `pending_bytes_max`.
    pub(crate) fn bytes(&self) -> usize {
        self.waiting_bytes + self.uncommitted_bytes + self.repeats * REPEAT_BYTES
    }

    /// How long the oldest entry of ours has not been committed.
    pub(crate) fn oldest(&self, now: Timestamp) -> Duration {
        self.uncommitted.front().map_or(Duration::ZERO, |(_, _, since)| now.since(*since))
    }

    pub(crate) fn push(&mut self, propose: Propose) {
        self.waiting_bytes += block_bytes(&propose.block);
        self.deadline_min = self.deadline_min.min(propose.deadline);
        self.waiting.push_back(propose);
    }

    /// Packs what waits into as few batches as the limits allow, in order; the caller proposes them
    /// at once, from `position` on. `sessions` are those as of the end of the log; `known` is up to where it is
    /// committed, and up to where it is applied.
    pub(crate) fn pack(
        &mut self,
        config: &ShardConfig,
        mut position: Position,
        sessions: &mut Sessions,
        known: (Index, Index),
        buffer: &mut BatchBuffer,
        replies: &mut Vec<Reply>,
    ) -> Vec<eraftpb::Entry> {
        let mut batches = Vec::new();
        let entry = |data| eraftpb::Entry { data, ..Default::default() };
        while let Some(mut propose) = self.waiting.pop_front() {
            self.waiting_bytes -= block_bytes(&propose.block);
            if !self.judge(config, &mut propose, position.at, sessions, known, replies) {
                continue;
            }
            let (bytes, count) = (block_bytes(&propose.block), propose.block.count());
            if self.parts.is_full_for(config, bytes, count as usize) {
                batches.push(entry(self.seal(&mut position, buffer)));
            }
            let (index, term) = (position.index, position.term);
            let place = self.parts.records as u32;
            let first = Offset(position.base.0 + u64::from(place));
            if let Some(ClientRun { session, first: sequence, .. }) = propose.run {
                sessions.append(session, sequence, Place { first, count, index, term }, position.at);
                self.parts.runs.push(Run { session, first: sequence, count, place });
            }
            let Propose { token, answer, deadline, .. } = propose;
            let is_repeat = false;
            let proposed = Proposed { token, first, count, index, term, answer, deadline, is_repeat };
            self.proposed.push_back(proposed);
            self.parts.bytes += bytes;
            self.parts.records += count as usize;
            self.parts.blocks.push(propose.block);
        }
        if !self.parts.blocks.is_empty() {
            batches.push(entry(self.seal(&mut position, buffer)));
        }
        self.take_repeats(known.0);
        batches
    }

    /// Puts repeats where their records are.
    fn take_repeats(&mut self, commit: Index) {
        let repeats = std::mem::take(&mut self.parts.repeats).into_iter();
        let (committed, proposed): (Vec<_>, Vec<_>) = repeats.partition(|repeat| repeat.index <= commit);
        for (queue, repeats) in [(&mut self.committed, committed), (&mut self.proposed, proposed)] {
            if !repeats.is_empty() {
                queue.extend(repeats);
                // Once for all of a turn; what is in order already costs little.
                queue.make_contiguous().sort_by_key(|proposed| (proposed.index, proposed.first));
            }
        }
    }

    /// Makes a batch of what goes together, and a place for the next.
    fn seal(&mut self, position: &mut Position, buffer: &mut BatchBuffer) -> Bytes {
        let parts = &mut self.parts;
        self.uncommitted_bytes += parts.bytes;
        self.uncommitted.push_back((position.index, parts.bytes, position.now));
        let data = buffer.encode(position.base, position.at, parts.blocks.iter(), &parts.runs);
        position.base = Offset(position.base.0 + parts.records as u64);
        position.index = position.index.next();
        parts.blocks.clear();
        parts.runs.clear();
        (parts.bytes, parts.records) = (0, 0);
        data
    }

    /// Whether a request's records go into the log, as far as its session is concerned; if not, it has its answer or waits
    /// for it.
    fn judge(
        &mut self,
        config: &ShardConfig,
        propose: &mut Propose,
        at: WallTime,
        sessions: &Sessions,
        known: (Index, Index),
        replies: &mut Vec<Reply>,
    ) -> bool {
        let Some(ClientRun { session, first, owner }) = propose.run else { return true };
        match sessions.judge(session, Some(owner), first, propose.block.count(), at) {
            Verdict::New => return true,
            Verdict::Repeated(place) => self.repeat(config, propose, place, known, replies),
            Verdict::Refused(SessionRefusal::Unknown) if mutants::is(Mutant::ExpiryIgnored) => {
                propose.run = None;
                return true;
            }
            Verdict::Refused(refusal) => {
                replies.push(self.failed(propose.token, RequestError::Session { refusal }));
            }
        }
        false
    }

    /// The records are in the log: their answer is the request's, now or when they are committed or applied.
    fn repeat(
        &mut self,
        config: &ShardConfig,
        propose: &Propose,
        Place { first, count, index, term }: Place,
        (commit, applied): (Index, Index),
        replies: &mut Vec<Reply>,
    ) {
        let (token, group, answer, deadline) = (propose.token, self.group, propose.answer, propose.deadline);
        let is_done = index <= commit || mutants::is(Mutant::RepeatAnsweredEarly);
        match answer {
            AnswerOn::Commit if is_done => {
                replies.push(Reply::Appended { token, group, first, count, index, term });
            }
            AnswerOn::Apply if index <= applied => {
                replies.push(Reply::Repeated { token, group, first, count, index, term });
            }
            _ if self.bytes() + REPEAT_BYTES > config.pending_bytes_max => {
                replies.push(self.failed(token, RequestError::busy(BusyReason::PendingBytes)));
            }
            AnswerOn::Commit | AnswerOn::Apply => {
                self.repeats += 1;
                let is_repeat = true;
                self.parts.repeats.push(Proposed {
                    token,
                    first,
                    count,
                    index,
                    term,
                    answer,
                    deadline,
                    is_repeat,
                });
            }
        }
    }

    /// Answers what is committed up to `commit`. `is_ours` says whether the entry at an index is
    /// still the one that we proposed in a term: only then its records are in the log.
    pub(crate) fn handle_commit(
        &mut self,
        commit: Index,
        leader: Option<NodeId>,
        is_ours: impl Fn(Index, Term) -> bool,
        replies: &mut Vec<Reply>,
    ) {
        while self.uncommitted.front().is_some_and(|(index, ..)| *index <= commit) {
            let (_, bytes, _) = self.uncommitted.pop_front().expect("looked at just now");
            self.uncommitted_bytes -= bytes;
        }
        while self.proposed.front().is_some_and(|proposed| proposed.index <= commit) {
            let proposed = self.proposed.pop_front().expect("looked at just now");
            let is_ours = is_ours(proposed.index, proposed.term);
            let is_kept = is_ours && proposed.answer == AnswerOn::Apply;
            self.repeats -= usize::from(proposed.is_repeat && !is_kept);
            if !is_ours {
                replies.push(self.failed(proposed.token, RequestError::OutcomeUnknown { leader }));
            } else if is_kept {
                self.committed.push_back(proposed);
            } else {
                replies.push(Reply::Appended {
                    token: proposed.token,
                    group: self.group,
                    first: proposed.first,
                    count: proposed.count,
                    index: proposed.index,
                    term: proposed.term,
                });
            }
        }
    }

    /// Hands over the requests that wait for responses of the entries up to `index`.
    pub(crate) fn take_waiters(&mut self, index: Index) -> Vec<Waiter> {
        let count = self.committed.partition_point(|proposed| proposed.index <= index);
        self.repeats -= self.committed.range(..count).filter(|proposed| proposed.is_repeat).count();
        let waiters = self.committed.drain(..count);
        let waiter = |proposed: Proposed| Waiter {
            token: proposed.token,
            first: proposed.first,
            count: proposed.count,
            index: proposed.index,
            term: proposed.term,
        };
        waiters.map(waiter).collect()
    }

    /// Leadership is lost: nothing of ours commits any more with certainty. What is committed stays.
    pub(crate) fn handle_leadership_lost(&mut self, leader: Option<NodeId>, replies: &mut Vec<Reply>) {
        self.fail_proposed(leader, replies);
        self.fail_waiting(&RequestError::NotLeader { leader }, replies);
    }

    /// Nothing goes on here any more.
    pub(crate) fn fail_all(&mut self, error: &RequestError, replies: &mut Vec<Reply>) {
        for proposed in std::mem::take(&mut self.committed) {
            replies.push(self.failed(proposed.token, RequestError::OutcomeUnknown { leader: None }));
        }
        self.fail_proposed(None, replies);
        self.fail_waiting(error, replies);
    }

    fn fail_proposed(&mut self, leader: Option<NodeId>, replies: &mut Vec<Reply>) {
        self.uncommitted.clear();
        self.uncommitted_bytes = 0;
        for proposed in std::mem::take(&mut self.proposed) {
            replies.push(self.failed(proposed.token, RequestError::OutcomeUnknown { leader }));
        }
        self.count_repeats();
    }

    fn count_repeats(&mut self) {
        let all = self.committed.iter().chain(&self.proposed);
        self.repeats = all.filter(|proposed| proposed.is_repeat).count();
    }

    fn fail_waiting(&mut self, error: &RequestError, replies: &mut Vec<Reply>) {
        self.waiting_bytes = 0;
        for propose in std::mem::take(&mut self.waiting) {
            replies.push(self.failed(propose.token, error.clone()));
        }
    }

    /// Answers requests whose time has run out.
    pub(crate) fn handle_deadlines(
        &mut self,
        now: Timestamp,
        leader: Option<NodeId>,
        replies: &mut Vec<Reply>,
    ) {
        if now < self.deadline_min {
            return;
        }
        let group = self.group;
        let mut expire = |token, deadline, error: &dyn Fn() -> RequestError| {
            let is_late = deadline <= now;
            if is_late {
                replies.push(Reply::Failed { token, group, error: error() });
            }
            !is_late
        };
        let unknown = || RequestError::OutcomeUnknown { leader };
        self.committed.retain(|proposed| expire(proposed.token, proposed.deadline, &unknown));
        self.proposed.retain(|proposed| expire(proposed.token, proposed.deadline, &unknown));
        self.waiting.retain(|propose| expire(propose.token, propose.deadline, &|| RequestError::Timeout));
        self.waiting_bytes = self.waiting.iter().map(|propose| block_bytes(&propose.block)).sum();
        self.count_repeats();
        let proposed = self.committed.iter().chain(&self.proposed).map(|proposed| proposed.deadline);
        let deadlines = proposed.chain(self.waiting.iter().map(|propose| propose.deadline));
        self.deadline_min = deadlines.min().unwrap_or(Timestamp(u64::MAX));
    }

    fn failed(&self, token: Token, error: RequestError) -> Reply {
        Reply::Failed { token, group: self.group, error }
    }
}

/// What goes into one batch together.
#[derive(Default, Debug)]
struct Parts {
    blocks: Vec<RecordBlock>,
    /// Of all batches of a call.
    repeats: Vec<Proposed>,
    runs: Vec<Run>,
    bytes: usize,
    records: usize,
}

impl Parts {
    /// Whether there is something in it, and a further block would be too much.
    fn is_full_for(&self, config: &ShardConfig, bytes: usize, records: usize) -> bool {
        let bytes = self.bytes + self.runs.len() * RUN_BYTES + bytes;
        let is_over = bytes > config.entry_bytes_max || self.records + records > config.entry_records_max;
        !self.blocks.is_empty() && (is_over || self.runs.len() >= RUNS_MAX)
    }
}

/// Whether a group that has `own` bytes pending, in a shard of `total` with its own, takes a block of so many more.
///
/// The threshold moves with what is left (Choudhury and Hahne, "Dynamic queue length thresholds for shared-memory packet
/// switches", 1998): `n` groups that take all they get come to rest with 1/(n + 1) of the shard's room each, and as much is
/// free for the next one. Without that the first ones that come fill it, and a group with one small record finds no room.
pub(crate) fn check_room(
    config: &ShardConfig,
    own: usize,
    total: usize,
    bytes: usize,
) -> Result<(), BusyReason> {
    let left = config.shard_pending_bytes_max.saturating_sub(total);
    if own + bytes > config.pending_bytes_max {
        Err(BusyReason::PendingBytes)
    // A block may be larger than what very many full groups leave to each: of a group without any it is taken all the same.
    } else if left == 0 || (own > 0 && own + bytes > left) {
        Err(BusyReason::ShardPendingBytes)
    } else {
        Ok(())
    }
}

/// What a block counts against the limits.
pub(crate) fn block_bytes(block: &RecordBlock) -> usize {
    block.as_bytes().len()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::group_command::GroupCommand;
    use crate::ids::{Owner, Sequence, SessionId};

    fn propose(request: u64, records: usize, bytes: usize, deadline: u64) -> Propose {
        Propose {
            token: Token { origin: 1, request },
            group: GroupId(1),
            block: RecordBlock::from_records(&vec![vec![7_u8; bytes]; records]),
            run: None,
            answer: if request.is_multiple_of(2) { AnswerOn::Commit } else { AnswerOn::Apply },
            deadline: Timestamp(deadline),
        }
    }

    fn position(index: u64) -> Position {
        Position { index: Index(index), term: Term(3), base: Offset(10), at: WallTime(5), now: Timestamp(7) }
    }

    fn config(entry_bytes_max: usize, entry_records_max: usize) -> ShardConfig {
        ShardConfig { entry_bytes_max, entry_records_max, ..ShardConfig::new(NodeId(1), 0) }
    }

    fn pack(pending: &mut Pending, config: &ShardConfig, position: Position) -> Vec<Bytes> {
        let known = (Index(0), Index(0));
        let buffer = &mut BatchBuffer::new(usize::MAX);
        let entries =
            pending.pack(config, position, &mut Sessions::default(), known, buffer, &mut Vec::new());
        entries.into_iter().map(|entry| entry.data).collect()
    }

    #[test]
    fn what_waits_goes_into_one_batch_and_a_block_is_never_split() {
        let mut pending = Pending::new(GroupId(1));
        [(2, 8), (1, 8), (30, 8), (1, 100), (1, 8)].iter().enumerate().for_each(
            |(request, (records, bytes))| {
                pending.push(propose(request as u64, *records, *bytes, 99));
            },
        );
        let batches = pack(&mut pending, &config(100, 16), position(5));
        let headers: Vec<_> = batches
            .iter()
            .map(|data| crate::batch::BatchHeader::parse(data).unwrap())
            .map(|header| (header.base.0, header.count))
            .collect();
        assert_eq!(headers, [(10, 3), (13, 30), (43, 1), (44, 1)]);
        assert!(!pending.has_waiting());
        let indexes: Vec<_> =
            pending.proposed.iter().map(|proposed| (proposed.index.0, proposed.first.0)).collect();
        assert_eq!(indexes, [(5, 10), (5, 12), (6, 13), (7, 43), (8, 44)]);
    }

    #[test]
    fn bytes_are_held_until_commit_even_past_the_deadline() {
        let mut pending = Pending::new(GroupId(1));
        pending.push(propose(0, 1, 50, 10));
        assert_eq!(pending.bytes(), 54);
        pack(&mut pending, &config(100, 16), position(1));
        let mut replies = Vec::new();
        pending.handle_deadlines(Timestamp(10), None, &mut replies);
        assert!(matches!(&replies[..], [Reply::Failed { error: RequestError::OutcomeUnknown { .. }, .. }]));
        assert_eq!(pending.bytes(), 54);
        pending.handle_commit(Index(1), None, |_, _| true, &mut replies);
        assert_eq!((pending.bytes(), replies.len()), (0, 1));
    }

    #[test]
    fn deadlines_tell_what_was_not_tried_from_what_was() {
        let mut pending = Pending::new(GroupId(1));
        pending.push(propose(0, 1, 1, 10));
        pack(&mut pending, &config(100, 16), position(1));
        pending.push(propose(2, 1, 1, 10));
        pending.push(propose(4, 1, 1, 11));
        let mut replies = Vec::new();
        pending.handle_deadlines(Timestamp(9), None, &mut replies);
        assert!(replies.is_empty());
        pending.handle_deadlines(Timestamp(10), Some(NodeId(2)), &mut replies);
        let errors: Vec<_> = replies
            .iter()
            .map(|reply| match reply {
                Reply::Failed { token, error, .. } => (token.request, error.clone()),
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(
            errors,
            [(0, RequestError::OutcomeUnknown { leader: Some(NodeId(2)) }), (2, RequestError::Timeout)]
        );
        assert_eq!(pending.waiting.len(), 1);
    }

    #[test]
    fn waiters_go_with_the_entry_that_holds_their_records() {
        let mut pending = Pending::new(GroupId(1));
        [1, 3, 2, 5].iter().for_each(|request| pending.push(propose(*request, 1, 60, 99)));
        pack(&mut pending, &config(64, 16), position(1));
        let mut replies = Vec::new();
        pending.handle_commit(Index(3), None, |_, _| true, &mut replies);
        assert!(matches!(&replies[..], [Reply::Appended { token: Token { request: 2, .. }, .. }]));
        let tokens =
            |waiters: Vec<Waiter>| waiters.iter().map(|waiter| waiter.token.request).collect::<Vec<_>>();
        assert_eq!(tokens(pending.take_waiters(Index(1))), [1]);
        assert_eq!(tokens(pending.take_waiters(Index(4))), [3]);
        assert!(pending.bytes() > 0);
        pending.handle_leadership_lost(None, &mut replies);
        assert_eq!((replies.len(), pending.bytes()), (2, 0));
    }

    #[test]
    fn groups_that_take_all_they_get_leave_as_much_for_another() {
        let config = ShardConfig {
            pending_bytes_max: 500,
            shard_pending_bytes_max: 1000,
            ..ShardConfig::new(NodeId(1), 0)
        };
        for (greedy, share) in [(1, 500), (2, 330), (3, 250), (9, 100), (99, 10)] {
            let mut own = vec![0; greedy];
            for at in (0..greedy).cycle().take(greedy * 100) {
                let total = own.iter().sum();
                own[at] += if check_room(&config, own[at], total, 10).is_ok() { 10 } else { 0 };
            }
            let total: usize = own.iter().sum();
            assert!(1000 - total >= share, "{greedy} groups leave {}", 1000 - total);
            assert_eq!(check_room(&config, 0, total, 500), Ok(()), "a block of a group that has none");
            assert_eq!(check_room(&config, 0, total + 500, 1), Err(BusyReason::ShardPendingBytes));
            let full = if greedy == 1 { BusyReason::PendingBytes } else { BusyReason::ShardPendingBytes };
            assert_eq!(check_room(&config, own[0], total, 10), Err(full), "{own:?}");
        }
    }

    #[test]
    fn repeats_count_as_long_as_they_wait_and_are_bounded() {
        let (session, owner) = (SessionId([7; 16]), Owner(1));
        let mut sessions = Sessions::default();
        let open = GroupCommand::OpenSession { session, owner, ttl_ms: 60_000 };
        sessions.apply(&open, WallTime(5));
        let mut pending = Pending::new(GroupId(1));
        let run = |request: u64, first: u64| {
            let run = Some(ClientRun { session, first: Sequence(first), owner });
            Propose { run, ..propose(request, 1, 1, 10 + request) }
        };
        let bytes = block_bytes(&run(0, 0).block);
        let config = ShardConfig { pending_bytes_max: 3 * bytes + 3 * REPEAT_BYTES, ..config(1000, 16) };
        let mut replies = Vec::new();
        let mut pack = |pending: &mut Pending, index: u64, known: (u64, u64), replies: &mut Vec<Reply>| {
            let known = (Index(known.0), Index(known.1));
            let buffer = &mut BatchBuffer::new(usize::MAX);
            pending.pack(&config, position(index), &mut sessions, known, buffer, replies).len()
        };
        [run(0, 0), run(1, 1)].into_iter().for_each(|propose| pending.push(propose));
        assert_eq!(pack(&mut pending, 1, (0, 0), &mut replies), 1);
        assert_eq!(pending.bytes(), 2 * bytes);
        // The second one comes twice, the first one once: they wait where their records are. Then there is no room.
        for again in [run(3, 1), run(2, 0), run(5, 1), run(4, 0)] {
            pending.push(again);
        }
        assert_eq!(pack(&mut pending, 2, (0, 0), &mut replies), 0);
        assert_eq!(pending.bytes(), 2 * bytes + 3 * REPEAT_BYTES);
        let busy = RequestError::busy(BusyReason::PendingBytes);
        assert!(
            matches!(&replies[..], [Reply::Failed { token: Token { request: 4, .. }, error, .. }] if *error == busy),
            "{replies:?}"
        );
        let waiting: Vec<u64> = pending.proposed.iter().map(|proposed| proposed.token.request).collect();
        assert_eq!(waiting, [0, 2, 1, 3, 5]);
        // One is given up, one is answered, one waits for the state machine.
        pending.handle_deadlines(Timestamp(15), None, &mut replies);
        assert_eq!(pending.repeats, 0, "all but the last repeat are late");
        replies.clear();
        pending.push(Propose { deadline: Timestamp(99), ..run(6, 0) });
        pending.push(Propose { deadline: Timestamp(99), ..run(7, 1) });
        assert_eq!(pack(&mut pending, 2, (0, 0), &mut replies), 0);
        assert_eq!(pending.repeats, 2);
        pending.handle_commit(Index(1), None, |_, _| true, &mut replies);
        assert_eq!((pending.repeats, pending.bytes()), (1, REPEAT_BYTES));
        assert!(
            matches!(&replies[..], [Reply::Appended { token: Token { request: 6, .. }, .. }]),
            "{replies:?}"
        );
        assert_eq!(pending.take_waiters(Index(1)).len(), 1);
        assert_eq!(pending.bytes(), 0);
        // Of what is committed and not yet applied.
        pending.push(Propose { deadline: Timestamp(99), ..run(9, 1) });
        assert_eq!(pack(&mut pending, 2, (1, 0), &mut replies), 0);
        assert_eq!((pending.repeats, pending.committed.len()), (1, 1));
        pending.fail_all(&RequestError::Fenced, &mut replies);
        assert_eq!(pending.bytes(), 0);
    }
}

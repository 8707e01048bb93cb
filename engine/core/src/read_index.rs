//! Reads that wait for a round, and for what it confirms to be applied (Raft thesis 6.4).
//!
//! A read waits until the turn ends; all reads of a group that arrived in a turn share one round. On a leader
//! a round is one of heartbeats, on another replica a question to the leader (thesis 6.4, last paragraph).
//! A round that was answered confirms an index; its reads are answered once that index is applied here.
//!
//! raft-rs drops rounds silently: when leadership changes, before the first commit of a term, and with
//! every message that is lost. So reads go back to those that wait when leader or term change, and a leader
//! that does not answer is asked again; each ends with an answer, or with its deadline.

use std::collections::VecDeque;
use std::time::Duration;

use crate::error::RequestError;
use crate::ids::{GroupId, Index, NodeId, Term, Timestamp};
use crate::io::{Consistency, Freshness, Reply, Token};
use crate::mutants::{self, Mutant};

/// Rounds under way at once. Reads beyond them wait and share the next.
const ROUNDS_MAX: usize = 8;

#[derive(Clone, Copy, Debug)]
pub(crate) struct Read {
    pub(crate) token: Token,
    pub(crate) consistency: Consistency,
    /// Whether it stays when another replica leads.
    pub(crate) may_forward: bool,
    pub(crate) deadline: Timestamp,
}

#[derive(Debug)]
struct Round {
    context: Vec<u8>,
    reads: Vec<Read>,
    asked: Timestamp,
}

#[derive(Debug)]
pub(crate) struct Reads {
    group: GroupId,
    node: NodeId,
    salt: u64,
    rounds_started: u64,
    /// Whom the rounds under way were asked of, and in which term.
    asked_of: (Term, Option<NodeId>),
    waiting: Vec<Read>,
    rounds: VecDeque<Round>,
    /// In order of index.
    confirmed: VecDeque<(Index, Vec<Read>)>,
    count: usize,
    deadline_min: Timestamp,
}

impl Reads {
    pub(crate) fn new(group: GroupId, node: NodeId, salt: u64) -> Reads {
        Reads {
            group,
            node,
            salt,
            rounds_started: 0,
            asked_of: (Term(0), None),
            waiting: Vec::new(),
            rounds: VecDeque::new(),
            confirmed: VecDeque::new(),
            count: 0,
            deadline_min: Timestamp(u64::MAX),
        }
    }

    /// Reads that are not answered yet.
    pub(crate) fn count(&self) -> usize {
        self.count
    }

    pub(crate) fn push(&mut self, read: Read) {
        self.count += 1;
        self.deadline_min = self.deadline_min.min(read.deadline);
        self.waiting.push(read);
    }

    /// Whether reads wait for a round to begin or to be answered.
    pub(crate) fn is_asking(&self) -> bool {
        !self.waiting.is_empty() || !self.rounds.is_empty()
    }

    /// Whether reads wait that a lease would answer.
    pub(crate) fn wants_lease(&self) -> bool {
        self.waiting.iter().any(|read| read.consistency == Consistency::Lease)
    }

    pub(crate) fn can_start_round(&self) -> bool {
        !self.waiting.is_empty() && self.rounds.len() < ROUNDS_MAX
    }

    /// Puts all waiting reads into one round; the context it goes under is unique in the cluster.
    pub(crate) fn start_round(&mut self, now: Timestamp) -> Vec<u8> {
        self.rounds_started += 1;
        let words = [self.node.0, self.rounds_started, self.salt];
        let context: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        let reads = std::mem::take(&mut self.waiting);
        self.rounds.push_back(Round { context: context.clone(), reads, asked: now });
        context
    }

    /// Rounds that were asked `pause` ago or earlier: they are asked again, under the same context. An answer
    /// to either question came after the reads.
    pub(crate) fn take_overdue(&mut self, now: Timestamp, pause: Duration) -> Vec<Vec<u8>> {
        let overdue = self.rounds.iter_mut().filter(|round| now.since(round.asked) >= pause);
        let again = overdue.map(|round| {
            round.asked = now;
            round.context.clone()
        });
        again.collect()
    }

    /// A round was answered: what was committed by then is its reads' index.
    pub(crate) fn handle_confirmed(&mut self, context: &[u8], index: Index) {
        if let Some(at) = self.rounds.iter().position(|round| round.context == context) {
            let round = self.rounds.remove(at).expect("found just now");
            self.confirm(index, round.reads);
        }
    }

    /// We lead for certain: reads that trust our lease need no round.
    pub(crate) fn handle_lease(&mut self, committed: Index) {
        let trusts = |read: &mut Read| read.consistency == Consistency::Lease;
        let leased: Vec<Read> = self.waiting.extract_if(.., trusts).collect();
        if !leased.is_empty() {
            self.confirm(committed, leased);
        }
    }

    fn confirm(&mut self, index: Index, reads: Vec<Read>) {
        let at = self.confirmed.partition_point(|(other, _)| *other <= index);
        self.confirmed.insert(at, (index, reads));
    }

    /// Answers what is confirmed up to the applied index.
    pub(crate) fn handle_applied(&mut self, freshness: Freshness, replies: &mut Vec<Reply>) {
        let is_early = mutants::is(Mutant::ReadBeforeApplied);
        let is_due = |index: Index| index <= freshness.applied || is_early;
        while self.confirmed.front().is_some_and(|(index, _)| is_due(*index)) {
            let (_, reads) = self.confirmed.pop_front().expect("looked at just now");
            self.count -= reads.len();
            let group = self.group;
            let ready = |read: Read| Reply::ReadReady { token: read.token, group, freshness };
            replies.extend(reads.into_iter().map(ready));
        }
    }

    /// Another leader or another term: rounds under way are void, confirmed reads keep their index. Reads
    /// for the leader alone are sent there, the others wait to be asked of it.
    pub(crate) fn handle_leader(&mut self, (term, leader): (Term, Option<NodeId>), replies: &mut Vec<Reply>) {
        if self.asked_of == (term, leader) {
            return;
        }
        self.asked_of = (term, leader);
        let void = self.rounds.drain(..).flat_map(|round| round.reads);
        self.waiting.splice(0..0, void);
        if leader != Some(self.node) {
            let leaves = |read: &mut Read| !read.may_forward;
            let leaving: Vec<Read> = self.waiting.extract_if(.., leaves).collect();
            self.fail(leaving, &RequestError::NotLeader { leader }, replies);
        }
    }

    pub(crate) fn fail_all(&mut self, error: &RequestError, replies: &mut Vec<Reply>) {
        let confirmed = std::mem::take(&mut self.confirmed).into_iter().map(|(_, reads)| reads);
        let rounds = std::mem::take(&mut self.rounds).into_iter().map(|round| round.reads);
        let waiting = std::mem::take(&mut self.waiting);
        let reads = confirmed.chain(rounds).flatten().chain(waiting).collect();
        self.fail(reads, error, replies);
    }

    /// Answers reads that were taken out.
    fn fail(&mut self, reads: Vec<Read>, error: &RequestError, replies: &mut Vec<Reply>) {
        // Counted anew: also one that a panic has left in disorder can answer.
        let rounds = self.rounds.iter().map(|round| round.reads.len());
        let confirmed = self.confirmed.iter().map(|(_, reads)| reads.len());
        self.count = rounds.chain(confirmed).sum::<usize>() + self.waiting.len();
        let group = self.group;
        let failed = |read: Read| Reply::Failed { token: read.token, group, error: error.clone() };
        replies.extend(reads.into_iter().map(failed));
    }

    /// Answers reads whose time has run out.
    pub(crate) fn handle_deadlines(&mut self, now: Timestamp, replies: &mut Vec<Reply>) {
        if now < self.deadline_min {
            return;
        }
        let group = self.group;
        let mut deadline_min = Timestamp(u64::MAX);
        let mut count = 0;
        let lists = self.rounds.iter_mut().map(|round| &mut round.reads);
        let lists = lists.chain(self.confirmed.iter_mut().map(|(_, reads)| reads));
        for reads in lists.chain(std::iter::once(&mut self.waiting)) {
            reads.retain(|read| {
                let is_late = read.deadline <= now;
                if is_late {
                    replies.push(Reply::Failed { token: read.token, group, error: RequestError::Timeout });
                } else {
                    deadline_min = deadline_min.min(read.deadline);
                }
                !is_late
            });
            count += reads.len();
        }
        // Rounds that nobody waits for any more stay until they are answered: that bounds those that Raft knows.
        (self.count, self.deadline_min) = (count, deadline_min);
    }
}

#[cfg(test)]
impl Reads {
    /// A panic left it in disorder.
    pub(crate) fn plant_miscount(&mut self) {
        self.count = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: NodeId = NodeId(3);

    fn read(request: u64, deadline: u64) -> Read {
        let token = Token { origin: 0, request };
        let consistency = Consistency::Linearizable;
        Read { token, consistency, may_forward: false, deadline: Timestamp(deadline) }
    }

    fn reads() -> Reads {
        let mut reads = Reads::new(GroupId(1), HERE, 9);
        reads.handle_leader((Term(1), Some(HERE)), &mut Vec::new());
        reads
    }

    fn applied(index: u64) -> Freshness {
        Freshness { applied: Index(index), commit: Index(9), heard: None }
    }

    fn requests(replies: &[Reply]) -> Vec<u64> {
        let requests = replies.iter().map(|reply| match reply {
            Reply::ReadReady { token, .. } | Reply::Failed { token, .. } => token.request,
            other => panic!("{other:?}"),
        });
        requests.collect()
    }

    #[test]
    fn reads_of_a_turn_share_a_round_and_wait_for_its_index_to_be_applied() {
        let (mut reads, mut replies) = (reads(), Vec::new());
        [1, 2].iter().for_each(|request| reads.push(read(*request, 99)));
        let first = reads.start_round(Timestamp(0));
        reads.push(read(3, 99));
        let second = reads.start_round(Timestamp(0));
        assert_ne!(first, second);
        assert_eq!(first[..8], HERE.0.to_le_bytes());
        assert_eq!(first.len(), crate::lease::ROUND_BYTES);
        reads.handle_confirmed(&first, Index(5));
        reads.handle_confirmed(b"of another node", Index(9));
        reads.handle_applied(applied(4), &mut replies);
        assert!(replies.is_empty());
        reads.handle_applied(applied(6), &mut replies);
        let (group, freshness) = (GroupId(1), applied(6));
        let ready = |request| Reply::ReadReady { token: read(request, 0).token, group, freshness };
        assert_eq!(replies, [ready(1), ready(2)]);
        assert_eq!(reads.count(), 1);
    }

    #[test]
    fn another_leader_voids_rounds_but_not_what_is_confirmed() {
        let (mut reads, mut replies) = (reads(), Vec::new());
        reads.push(read(1, 99));
        let context = reads.start_round(Timestamp(0));
        reads.handle_confirmed(&context, Index(5));
        reads.push(read(2, 99));
        reads.push(Read { may_forward: true, ..read(3, 99) });
        let void = reads.start_round(Timestamp(0));
        reads.push(Read { may_forward: true, ..read(4, 99) });
        reads.handle_leader((Term(1), Some(HERE)), &mut replies);
        assert!(replies.is_empty());
        reads.handle_leader((Term(2), None), &mut replies);
        assert_eq!((requests(&replies), reads.count()), (vec![2], 3));
        reads.handle_leader((Term(2), Some(NodeId(1))), &mut replies);
        let context = reads.start_round(Timestamp(0));
        reads.handle_confirmed(&void, Index(3));
        reads.handle_confirmed(&context, Index(4));
        reads.handle_applied(applied(5), &mut replies);
        assert_eq!(requests(&replies), [2, 3, 4, 1]);
    }

    #[test]
    fn a_lease_answers_those_that_trust_it_and_order_is_that_of_indexes() {
        let (mut reads, mut replies) = (reads(), Vec::new());
        reads.push(read(1, 99));
        let context = reads.start_round(Timestamp(0));
        reads.push(Read { consistency: Consistency::Lease, ..read(2, 99) });
        reads.push(read(3, 99));
        assert!(reads.wants_lease());
        reads.handle_lease(Index(7));
        assert!(!reads.wants_lease() && reads.can_start_round());
        reads.handle_confirmed(&context, Index(6));
        reads.handle_applied(applied(6), &mut replies);
        reads.handle_applied(applied(7), &mut replies);
        assert_eq!((requests(&replies), reads.count()), (vec![1, 2], 1));
    }

    #[test]
    fn what_is_not_answered_is_asked_again_under_the_same_name() {
        let (mut reads, pause) = (reads(), Duration::from_nanos(10));
        reads.push(read(1, 99));
        let context = reads.start_round(Timestamp(5));
        assert!(reads.take_overdue(Timestamp(14), pause).is_empty());
        assert_eq!(reads.take_overdue(Timestamp(15), pause), [context]);
        assert!(reads.take_overdue(Timestamp(24), pause).is_empty());
        assert_eq!(reads.take_overdue(Timestamp(25), pause).len(), 1);
    }

    #[test]
    fn rounds_are_bounded_and_deadlines_hold_everywhere() {
        let (mut reads, mut replies) = (reads(), Vec::new());
        for request in 0..ROUNDS_MAX as u64 {
            reads.push(read(request, 10 + request % 2));
            assert!(reads.can_start_round());
            reads.start_round(Timestamp(0));
        }
        reads.push(read(100, 10));
        assert!(!reads.can_start_round());
        reads.handle_deadlines(Timestamp(10), &mut replies);
        assert_eq!((replies.len(), reads.count()), (ROUNDS_MAX / 2 + 1, ROUNDS_MAX / 2));
        reads.handle_deadlines(Timestamp(11), &mut replies);
        assert_eq!((replies.len(), reads.count()), (ROUNDS_MAX + 1, 0));
    }
}

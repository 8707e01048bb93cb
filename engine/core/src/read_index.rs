//! Linearizable reads by ReadIndex (Raft thesis 6.4).
//!
//! A read waits until the turn ends; all reads of a group that arrived in a turn share one round of
//! heartbeats. A round that a quorum answered confirms an index; the read is answered once that
//! index is applied. raft-rs drops rounds silently when leadership is lost, and refuses them before
//! the first commit of a term: then reads wait here, or are sent to the next leader.

use std::collections::VecDeque;

use crate::error::RequestError;
use crate::ids::{GroupId, Index, NodeId, Timestamp};
use crate::io::{Reply, Token};

/// Rounds under way at once. Reads beyond them wait and share the next.
const ROUNDS_MAX: usize = 8;

#[derive(Clone, Copy, Debug)]
pub(crate) struct Read {
    pub(crate) token: Token,
    pub(crate) deadline: Timestamp,
}

#[derive(Debug)]
pub(crate) struct Reads {
    group: GroupId,
    node: NodeId,
    salt: u64,
    rounds_started: u64,
    waiting: Vec<Read>,
    rounds: VecDeque<(Vec<u8>, Vec<Read>)>,
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

    pub(crate) fn can_start_round(&self) -> bool {
        !self.waiting.is_empty() && self.rounds.len() < ROUNDS_MAX
    }

    /// Puts all waiting reads into one round; the context it goes under is unique in the cluster.
    pub(crate) fn start_round(&mut self) -> Vec<u8> {
        self.rounds_started += 1;
        let words = [self.node.0, self.rounds_started, self.salt];
        let context: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        self.rounds.push_back((context.clone(), std::mem::take(&mut self.waiting)));
        context
    }

    /// A quorum answered a round: what was committed by then is the read's index.
    pub(crate) fn handle_confirmed(&mut self, context: &[u8], index: Index) {
        if let Some(at) = self.rounds.iter().position(|(of_round, _)| of_round == context) {
            let (_, reads) = self.rounds.remove(at).expect("found just now");
            self.confirmed.push_back((index, reads));
        }
    }

    /// Answers what is confirmed up to the applied index.
    pub(crate) fn handle_applied(&mut self, applied: Index, replies: &mut Vec<Reply>) {
        while self.confirmed.front().is_some_and(|(index, _)| *index <= applied) {
            let (_, reads) = self.confirmed.pop_front().expect("looked at just now");
            self.count -= reads.len();
            let group = self.group;
            replies.extend(reads.iter().map(|read| Reply::ReadReady {
                token: read.token,
                group,
                index: applied,
            }));
        }
    }

    /// Rounds under way are void; confirmed reads keep their index.
    pub(crate) fn handle_leadership_lost(&mut self, leader: Option<NodeId>, replies: &mut Vec<Reply>) {
        self.fail_unconfirmed(&RequestError::NotLeader { leader }, replies);
    }

    pub(crate) fn fail_all(&mut self, error: &RequestError, replies: &mut Vec<Reply>) {
        let confirmed = std::mem::take(&mut self.confirmed);
        confirmed.into_iter().for_each(|(_, reads)| self.fail(reads, error, replies));
        self.fail_unconfirmed(error, replies);
    }

    fn fail_unconfirmed(&mut self, error: &RequestError, replies: &mut Vec<Reply>) {
        let rounds = std::mem::take(&mut self.rounds);
        rounds.into_iter().for_each(|(_, reads)| self.fail(reads, error, replies));
        let waiting = std::mem::take(&mut self.waiting);
        self.fail(waiting, error, replies);
    }

    fn fail(&mut self, reads: Vec<Read>, error: &RequestError, replies: &mut Vec<Reply>) {
        self.count -= reads.len();
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
        let lists = self.rounds.iter_mut().map(|(_, reads)| reads);
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
        (self.count, self.deadline_min) = (count, deadline_min);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(request: u64, deadline: u64) -> Read {
        Read { token: Token { origin: 0, request }, deadline: Timestamp(deadline) }
    }

    fn reads() -> Reads {
        Reads::new(GroupId(1), NodeId(3), 9)
    }

    #[test]
    fn reads_of_a_turn_share_a_round_and_wait_for_its_index_to_be_applied() {
        let (mut reads, mut replies) = (reads(), Vec::new());
        [1, 2].iter().for_each(|request| reads.push(read(*request, 99)));
        let first = reads.start_round();
        reads.push(read(3, 99));
        let second = reads.start_round();
        assert_ne!(first, second);
        assert_eq!(first[..8], 3_u64.to_le_bytes());
        reads.handle_confirmed(&first, Index(5));
        reads.handle_confirmed(b"of another node", Index(9));
        reads.handle_applied(Index(4), &mut replies);
        assert!(replies.is_empty());
        reads.handle_applied(Index(6), &mut replies);
        let (group, index) = (GroupId(1), Index(6));
        let ready = |request| Reply::ReadReady { token: read(request, 0).token, group, index };
        assert_eq!(replies, [ready(1), ready(2)]);
        assert_eq!(reads.count(), 1);
    }

    #[test]
    fn a_lost_leadership_voids_rounds_but_not_what_is_confirmed() {
        let (mut reads, mut replies) = (reads(), Vec::new());
        reads.push(read(1, 99));
        let context = reads.start_round();
        reads.handle_confirmed(&context, Index(5));
        reads.push(read(2, 99));
        reads.start_round();
        reads.push(read(3, 99));
        reads.handle_leadership_lost(None, &mut replies);
        assert_eq!((replies.len(), reads.count()), (2, 1));
        reads.handle_applied(Index(5), &mut replies);
        assert!(matches!(replies[2], Reply::ReadReady { token: Token { request: 1, .. }, .. }));
    }

    #[test]
    fn rounds_are_bounded_and_deadlines_hold_everywhere() {
        let (mut reads, mut replies) = (reads(), Vec::new());
        for request in 0..ROUNDS_MAX as u64 {
            reads.push(read(request, 10 + request % 2));
            assert!(reads.can_start_round());
            reads.start_round();
        }
        reads.push(read(100, 10));
        assert!(!reads.can_start_round());
        reads.handle_deadlines(Timestamp(10), &mut replies);
        assert_eq!((replies.len(), reads.count()), (ROUNDS_MAX / 2 + 1, ROUNDS_MAX / 2));
        reads.handle_deadlines(Timestamp(11), &mut replies);
        assert_eq!((replies.len(), reads.count()), (ROUNDS_MAX + 1, 0));
    }
}

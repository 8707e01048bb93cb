//! Calls and the work they become: one request may carry the records of many calls.

use std::mem;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use iroh_raft_core::batch::RecordBlock;
use iroh_raft_core::{
    AnswerOn, ConfState, DigestState, GroupCommand, GroupId, GroupStatus, Index, NodeId, Offset, Recovered,
    Retry, RunOutcome, Term, WallTime,
};
use smallvec::SmallVec;
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

use super::error::ClientError;
use super::records::Records;
use super::stream::{BeyondCredit, StreamSender};
use crate::wire::{Answer, ClientBody, HandedOver, ReplyBody, Stages};

/// What a call costs beside its bytes, for the bound of what is in flight.
pub(super) const CALL_BYTES: usize = 64;
const LENGTH_BYTES: usize = 4;

/// Records are on stable storage of a quorum, for good.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Appended {
    /// Offset of the first record; the others of the call follow it.
    pub offset: Offset,
    /// Index of their entry.
    pub index: Index,
    /// Term of their entry.
    pub term: Term,
}

/// The end of one append of an [`Appender`](super::Appender).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Completion {
    /// The number that the caller gave it.
    pub tag: u64,
    /// How it went.
    pub result: Result<Appended, ClientError>,
}

/// Where the records of a time begin.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Found {
    /// First record of that time or later; `end` when there is none.
    pub offset: Offset,
    /// Offset after the replica's last committed record as the search began.
    pub end: Offset,
}

/// Some of the groups of one shard of a node.
#[derive(Debug)]
pub(super) struct GroupsOfShard {
    pub(super) groups: Vec<GroupId>,
    pub(super) is_more: bool,
    pub(super) shard_count: u16,
}

/// What a successful call gives.
#[derive(Debug)]
pub(super) enum Outcome {
    Appended(Appended),
    Timed(Appended, Stages),
    Response(Bytes),
    Answer(Answer),
    Records(Records),
    Status(GroupStatus),
    Members(Arc<ConfState>),
    Found(Found),
    /// Where a cursor stands, or where the kept records begin.
    Offset(Option<Offset>),
    /// A place to compare replicas at is marked by this entry.
    Marked(Index),
    Digest(DigestState),
    /// What became of a record of a session.
    Run(RunOutcome),
    Granted,
    Recovered(Recovered),
    Groups(GroupsOfShard),
    Clock(WallTime),
    HandedOver(HandedOver),
    Done,
}

/// Ends of appends, gathered until somebody takes them. Bounded by what may be in flight, as an
/// append gives back its room only when its end is taken.
#[derive(Debug, Default)]
pub(super) struct CompletionQueue {
    done: Mutex<Vec<(Completion, usize)>>,
    pub(super) changed: Notify,
    users: AtomicUsize,
}

/// Somebody because of whom ends may still come: an appender, or an append under way.
#[derive(Debug)]
pub(super) struct QueueUser(Arc<CompletionQueue>);

impl QueueUser {
    pub(super) fn new(queue: Arc<CompletionQueue>) -> QueueUser {
        queue.users.fetch_add(1, Ordering::Relaxed);
        QueueUser(queue)
    }
}

impl Clone for QueueUser {
    fn clone(&self) -> QueueUser {
        QueueUser::new(self.0.clone())
    }
}

impl Drop for QueueUser {
    fn drop(&mut self) {
        // Release: whoever sees that there is no user also sees what the last one pushed.
        if self.0.users.fetch_sub(1, Ordering::Release) == 1 {
            self.0.changed.notify_one();
        }
    }
}

impl CompletionQueue {
    fn done(&self) -> MutexGuard<'_, Vec<(Completion, usize)>> {
        self.done.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, completion: Completion, charge: usize) {
        let mut done = self.done();
        done.push((completion, charge));
        let is_first = done.len() == 1;
        drop(done);
        if is_first {
            self.changed.notify_one();
        }
    }

    /// Whether ends may still come that are not here yet.
    pub(super) fn is_used(&self) -> bool {
        self.users.load(Ordering::Acquire) > 0
    }

    /// Moves everything to `out`. Returns the bytes of room that are free again.
    pub(super) fn take(&self, out: &mut Vec<Completion>) -> usize {
        let mut freed = 0;
        out.extend(self.done().drain(..).map(|(completion, charge)| {
            freed += charge;
            completion
        }));
        freed
    }
}

/// Where the end of a call goes.
#[derive(Debug)]
pub(super) enum Sink {
    One(oneshot::Sender<Result<Outcome, ClientError>>),
    Many {
        queue: QueueUser,
        tag: u64,
    },
    /// Any number of answers, and then the end.
    Stream(StreamSender),
}

/// The share of one call in a request.
#[derive(Debug)]
pub(super) struct Part {
    pub(super) records: u32,
    /// Bytes of room that it holds.
    pub(super) charge: usize,
    pub(super) sink: Sink,
}

impl Part {
    /// Ends the call. Returns the bytes of room that are free again now.
    fn end(self, result: Result<Outcome, ClientError>, node: NodeId) -> usize {
        match self.sink {
            Sink::One(sender) => {
                // A caller that no longer waits does not want to know.
                let _ = sender.send(result);
                self.charge
            }
            Sink::Stream(sender) => {
                sender.end(result);
                self.charge
            }
            Sink::Many { queue, tag } => {
                let result = result.and_then(|outcome| match outcome {
                    Outcome::Appended(appended) => Ok(appended),
                    _ => Err(ClientError::Protocol { node }),
                });
                queue.0.push(Completion { tag, result }, self.charge);
                0
            }
        }
    }
}

/// Which node a piece of work is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Target {
    /// The leader of its group.
    Leader,
    /// This one, by its place in the configuration.
    Node(usize),
}

/// What is asked.
#[derive(Debug)]
pub(super) enum Ask {
    /// Records that still gather: lengths and bytes apart, as the block will have them.
    Filling { lengths: Vec<u8>, payload: Vec<u8>, answer: AnswerOn },
    /// A request as it goes out.
    Sealed(ClientBody),
}

/// One request, with the calls it carries.
#[derive(Debug)]
pub(super) struct Work {
    pub(super) group: GroupId,
    pub(super) ask: Ask,
    /// Mostly one.
    pub(super) parts: SmallVec<[Part; 1]>,
    pub(super) deadline: Instant,
    pub(super) target: Target,
    /// How often it came back.
    pub(super) attempts: u32,
    /// Nodes that do not know the group.
    pub(super) strangers: Vec<NodeId>,
    /// Why it came back last.
    pub(super) failure: Option<ClientError>,
    /// Whether an earlier attempt may have changed something, and nobody will say.
    is_in_doubt: bool,
}

impl Work {
    pub(super) fn filling(group: GroupId, answer: AnswerOn, deadline: Instant) -> Work {
        Work::new(
            group,
            Ask::Filling { lengths: Vec::new(), payload: Vec::new(), answer },
            deadline,
            Target::Leader,
        )
    }

    pub(super) fn new(group: GroupId, ask: Ask, deadline: Instant, target: Target) -> Work {
        Work {
            group,
            ask,
            parts: SmallVec::new(),
            deadline,
            target,
            attempts: 0,
            strangers: Vec::new(),
            failure: None,
            is_in_doubt: false,
        }
    }

    /// Bytes and records that have gathered.
    pub(super) fn size(&self) -> (usize, usize) {
        match &self.ask {
            Ask::Filling { lengths, payload, .. } => {
                (lengths.len() + payload.len(), lengths.len() / LENGTH_BYTES)
            }
            Ask::Sealed(ClientBody::Append { block, .. } | ClientBody::TimedAppend { block }) => {
                (block.as_bytes().len(), block.count() as usize)
            }
            Ask::Sealed(ClientBody::Query { query, .. }) => (query.len(), 0),
            Ask::Sealed(_) => (0, 0),
        }
    }

    /// Adds a call's records to those that gather.
    pub(super) fn fill<R: AsRef<[u8]>>(&mut self, records: &[R], sink: Sink, charge: usize) {
        let Ask::Filling { lengths, payload, .. } = &mut self.ask else {
            unreachable!("records are added only to what still gathers");
        };
        for record in records {
            let record = record.as_ref();
            lengths.extend_from_slice(&(record.len() as u32).to_le_bytes());
            payload.extend_from_slice(record);
        }
        self.parts.push(Part { records: records.len() as u32, charge, sink });
    }

    /// The request's body; what gathered is packed.
    pub(super) fn seal(&mut self) -> &ClientBody {
        if let Ask::Filling { lengths, payload, answer } = &mut self.ask {
            let count = (lengths.len() / LENGTH_BYTES) as u32;
            let mut bytes = BytesMut::with_capacity(lengths.len() + payload.len());
            bytes.put_slice(&mem::take(lengths));
            bytes.put_slice(&mem::take(payload));
            let block =
                RecordBlock::new(count, bytes.freeze()).expect("lengths were counted as records came");
            self.ask = Ask::Sealed(ClientBody::Append { block, answer: *answer, run: None });
        }
        match &self.ask {
            Ask::Sealed(body) => body,
            Ask::Filling { .. } => unreachable!("sealed above"),
        }
    }

    /// Whether something is not as before when it was done.
    fn is_change(&self) -> bool {
        match &self.ask {
            Ask::Filling { .. } => true,
            Ask::Sealed(body) => match body {
                ClientBody::Append { .. }
                | ClientBody::TimedAppend { .. }
                | ClientBody::CreateGroup { .. }
                | ClientBody::RemoveGroup
                | ClientBody::Revive
                | ClientBody::Recover { .. }
                | ClientBody::TransferLeader { .. }
                | ClientBody::ChangeMembers { .. } => true,
                // A mark in the log changes nothing of the group.
                ClientBody::Command(command) => *command != GroupCommand::Compare,
                ClientBody::Outcome { .. }
                | ClientBody::Query { .. }
                | ClientBody::ReadRecords { .. }
                | ClientBody::Tail { .. }
                | ClientBody::GrantTail { .. }
                | ClientBody::EndTail { .. }
                | ClientBody::Find { .. }
                | ClientBody::FetchCursor { .. }
                | ClientBody::Status
                | ClientBody::Clock
                | ClientBody::ListGroups { .. }
                | ClientBody::StateDigest { .. } => false,
            },
        }
    }

    /// Whether doing it twice is the same as doing it once: it may be sent anew whatever became of the last attempt.
    pub(super) fn is_repeatable(&self) -> bool {
        match &self.ask {
            Ask::Filling { .. } => false,
            Ask::Sealed(ClientBody::Append { run, .. }) => run.is_some(),
            Ask::Sealed(ClientBody::Command(command)) => command.is_repeatable(),
            Ask::Sealed(ClientBody::CreateGroup { .. } | ClientBody::Revive) => true,
            // It would not be of that time; and a node of a build that does not know it cuts off who asks.
            Ask::Sealed(ClientBody::Clock) => false,
            Ask::Sealed(_) => !self.is_change(),
        }
    }

    /// It was sent, and what became of it will not be said: if it is a change, nobody may say any more that nothing was done.
    pub(super) fn lose(&mut self) {
        self.is_in_doubt |= self.is_change();
    }

    /// Whether only a leader does it: who did it leads.
    pub(super) fn is_for_leader_alone(&self) -> bool {
        matches!(
            self.ask,
            Ask::Filling { .. }
                | Ask::Sealed(
                    ClientBody::Append { .. }
                        | ClientBody::TimedAppend { .. }
                        | ClientBody::Command(_)
                        | ClientBody::ChangeMembers { .. }
                        | ClientBody::TransferLeader { .. }
                        | ClientBody::RemoveGroup
                )
        )
    }

    /// Whether it has a stream of answers, of which some may have come: nobody else can go on with it.
    pub(super) fn is_stream(&self) -> bool {
        matches!(self.ask, Ask::Sealed(ClientBody::Tail { .. }))
    }

    /// Whether it tells a node about a tail that is open there.
    pub(super) fn is_about_tail(&self) -> bool {
        matches!(self.ask, Ask::Sealed(ClientBody::GrantTail { .. } | ClientBody::EndTail { .. }))
    }

    /// Hands out an answer that is not the last.
    pub(super) fn deliver(&self, reply: ReplyBody, node: NodeId) -> Result<(), BeyondCredit> {
        let protocol = || Err(ClientError::Protocol { node });
        let outcome = match reply {
            ReplyBody::Records { from, end, batches, .. } => Records::new(from, end, batches)
                .map_or_else(protocol, |records| Ok(Outcome::Records(records))),
            _ => protocol(),
        };
        match &self.parts[..] {
            [Part { sink: Sink::Stream(sender), .. }] => sender.send(outcome),
            // Nothing else has more than one answer: nobody takes this.
            _ => Ok(()),
        }
    }

    /// One piece of work per call, with the same fate as this one so far.
    pub(super) fn split(mut self) -> Vec<Work> {
        let ClientBody::Append { block, answer, run: None } = self.seal().clone() else { return vec![self] };
        let mut records = BlockRecords::of(&block);
        let parts = mem::take(&mut self.parts);
        parts
            .into_iter()
            .map(|part| {
                let own: Vec<Bytes> = records.by_ref().take(part.records as usize).collect();
                let body = ClientBody::Append { block: RecordBlock::from_records(&own), answer, run: None };
                let mut work = Work::new(self.group, Ask::Sealed(body), self.deadline, self.target);
                (work.attempts, work.strangers) = (self.attempts, self.strangers.clone());
                work.parts.push(part);
                work
            })
            .collect()
    }

    /// Ends every call alike: as unknown where an attempt may have done it, unless a node refuses it for good. Returns the
    /// bytes of room that are free again.
    pub(super) fn fail(self, error: &ClientError, node: NodeId) -> usize {
        let is_refusal = matches!(error, ClientError::Request(_)) && error.retry() == Retry::Never;
        let error = if self.is_in_doubt && !is_refusal { &ClientError::OutcomeUnknown } else { error };
        self.parts.into_iter().map(|part| part.end(Err(error.clone()), node)).sum()
    }

    /// Ends every call with its share of the answer. Returns the bytes of room that are free again.
    pub(super) fn succeed(self, reply: ReplyBody, node: NodeId) -> usize {
        let Some(mut shares) = self.shares(reply) else {
            return self.fail(&ClientError::Protocol { node }, node);
        };
        let mut freed = 0;
        for part in self.parts {
            let result = shares.next(part.records).ok_or(ClientError::Protocol { node });
            freed += part.end(result, node);
        }
        freed
    }

    /// `None`: the reply is no answer to what was asked.
    fn shares(&self, reply: ReplyBody) -> Option<Shares> {
        let Ask::Sealed(body) = &self.ask else { return None };
        let sent = || self.parts.iter().map(|part| part.records).sum::<u32>();
        let outcome = match (body, reply) {
            (
                ClientBody::Append { answer: AnswerOn::Commit, .. },
                ReplyBody::Appended { first, count, index, term },
            ) if count == sent() => {
                return Some(Shares::Appended(Appended { offset: first, index, term }));
            }
            (ClientBody::Append { answer: AnswerOn::Apply, .. }, ReplyBody::Responses { responses, .. })
                if responses.count() == sent() =>
            {
                return Some(Shares::Responses(BlockRecords::of(&responses)));
            }
            (
                ClientBody::TimedAppend { .. },
                ReplyBody::TimedAppended { first, count, index, term, stages },
            ) if count == sent() => Outcome::Timed(Appended { offset: first, index, term }, stages),
            (ClientBody::Outcome { .. }, ReplyBody::Outcome(outcome)) => Outcome::Run(outcome),
            (ClientBody::Query { .. }, ReplyBody::Answer(answer)) => Outcome::Answer(answer),
            (
                ClientBody::ReadRecords { from, .. },
                ReplyBody::Records { from: answered, end, batches, .. },
            ) if *from == answered => Outcome::Records(Records::new(answered, end, batches)?),
            (ClientBody::Tail { .. }, ReplyBody::Records { from, end, batches, .. }) => {
                Outcome::Records(Records::new(from, end, batches)?)
            }
            (ClientBody::Find { .. }, ReplyBody::Found { offset, end }) => {
                Outcome::Found(Found { offset, end })
            }
            (ClientBody::Command(GroupCommand::Compare), ReplyBody::CommandDone { index, .. }) => {
                Outcome::Marked(index)
            }
            (ClientBody::StateDigest { index: asked, .. }, ReplyBody::StateDigest { index, state })
                if *asked == index =>
            {
                Outcome::Digest(state)
            }
            (ClientBody::Command(_), ReplyBody::CommandDone { offset, .. })
            | (ClientBody::FetchCursor { .. }, ReplyBody::Cursor(offset)) => Outcome::Offset(offset),
            (ClientBody::GrantTail { .. } | ClientBody::EndTail { .. }, ReplyBody::Granted) => {
                Outcome::Granted
            }
            (ClientBody::ChangeMembers { .. }, ReplyBody::MembersChanged { members, .. }) => {
                Outcome::Members(members)
            }
            (
                ClientBody::CreateGroup { .. } | ClientBody::RemoveGroup | ClientBody::Revive,
                ReplyBody::Done,
            ) => Outcome::Done,
            (ClientBody::Recover { .. }, ReplyBody::Recovered(recovered)) => Outcome::Recovered(recovered),
            (ClientBody::ListGroups { .. }, ReplyBody::Groups { groups, is_more, shard_count }) => {
                Outcome::Groups(GroupsOfShard { groups, is_more, shard_count })
            }
            (ClientBody::Clock, ReplyBody::Clock(time)) => Outcome::Clock(time),
            (ClientBody::TransferLeader { .. }, ReplyBody::HandedOver(handed_over)) => {
                Outcome::HandedOver(handed_over)
            }
            (ClientBody::Status, ReplyBody::Status(status)) if status.group == self.group => {
                Outcome::Status(status)
            }
            _ => return None,
        };
        Some(Shares::Whole(Some(outcome)))
    }
}

/// What an answer has for each of a request's calls, in their order.
enum Shares {
    /// All of it is for the one call that there is.
    Whole(Option<Outcome>),
    /// The next call's records begin here.
    Appended(Appended),
    Responses(BlockRecords),
}

impl Shares {
    /// The share of the next call, which has so many records.
    fn next(&mut self, records: u32) -> Option<Outcome> {
        match self {
            Shares::Whole(outcome) => outcome.take(),
            Shares::Appended(next) => {
                let appended = *next;
                next.offset.0 = appended.offset.0.wrapping_add(records.into());
                Some(Outcome::Appended(appended))
            }
            Shares::Responses(responses) => responses.next().map(Outcome::Response),
        }
    }
}

/// The records of a block, as slices of it.
struct BlockRecords {
    lengths: Bytes,
    payload: Bytes,
}

impl BlockRecords {
    fn of(block: &RecordBlock) -> BlockRecords {
        let mut lengths = block.as_bytes().clone();
        let payload = lengths.split_off(block.count() as usize * LENGTH_BYTES);
        BlockRecords { lengths, payload }
    }
}

impl Iterator for BlockRecords {
    type Item = Bytes;

    fn next(&mut self) -> Option<Bytes> {
        let length = u32::from_le_bytes(*self.lengths.first_chunk()?);
        self.lengths.advance(LENGTH_BYTES);
        Some(self.payload.split_to(length as usize))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(work: &mut Work, records: &[&[u8]]) -> oneshot::Receiver<Result<Outcome, ClientError>> {
        let (sender, receiver) = oneshot::channel();
        work.fill(records, Sink::One(sender), 1);
        receiver
    }

    fn filling() -> Work {
        Work::filling(GroupId(1), AnswerOn::Commit, Instant::now())
    }

    #[test]
    fn each_call_gets_the_offset_of_its_own_first_record() {
        let mut work = filling();
        let mut calls = [part(&mut work, &[b"a"]), part(&mut work, &[b"b", b"c"]), part(&mut work, &[b""])];
        work.seal();
        let (index, term) = (Index(7), Term(2));
        let reply = ReplyBody::Appended { first: Offset(10), count: 4, index, term };
        assert_eq!(work.succeed(reply, NodeId(1)), 3);
        let offsets = calls.each_mut().map(|call| match call.try_recv() {
            Ok(Ok(Outcome::Appended(appended))) => appended.offset.0,
            other => panic!("{other:?}"),
        });
        assert_eq!(offsets, [10, 11, 13]);
    }

    #[test]
    fn an_answer_for_another_number_of_records_is_no_answer() {
        let mut work = filling();
        let mut call = part(&mut work, &[b"a", b"b"]);
        work.seal();
        let reply = ReplyBody::Appended { first: Offset(10), count: 3, index: Index(7), term: Term(2) };
        work.succeed(reply, NodeId(9));
        let result = call.try_recv().unwrap().map(|_| ());
        assert_eq!(result, Err(ClientError::Protocol { node: NodeId(9) }));
    }

    #[test]
    fn split_work_keeps_each_calls_records() {
        let mut work = filling();
        let _calls = [part(&mut work, &[b"a"]), part(&mut work, &[b"bb", b"c"])];
        let blocks: Vec<Vec<Bytes>> = work
            .split()
            .iter_mut()
            .map(|work| match work.seal() {
                ClientBody::Append { block, .. } => BlockRecords::of(block).collect(),
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(blocks, [vec![&b"a"[..]], vec![b"bb", b"c"]]);
    }
}

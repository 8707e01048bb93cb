//! Calls and the work they become: one request may carry the records of many calls.

use std::mem;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::{BufMut, Bytes, BytesMut};
use iroh_raft_core::batch::RecordBlock;
use iroh_raft_core::{
    AnswerOn, ConfState, DigestState, GroupCommand, GroupId, GroupStatus, Index, NodeId, Offset, Recovered,
    Retry, RunOutcome, Term,
};
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

use super::error::ClientError;
use super::records::Records;
use super::stream::{BeyondCredit, StreamSender};
use crate::wire::{Answer, ClientBody, ReplyBody};

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

/// What a successful call gives.
#[derive(Debug)]
pub(super) enum Outcome {
    Appended(Appended),
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
    pub(super) parts: Vec<Part>,
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
            parts: Vec::new(),
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
            Ask::Sealed(ClientBody::Append { block, .. }) => (block.as_bytes().len(), block.count() as usize),
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
                | ClientBody::CreateGroup { .. }
                | ClientBody::RemoveGroup
                | ClientBody::Revive
                | ClientBody::Recover { .. }
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
                        | ClientBody::Command(_)
                        | ClientBody::ChangeMembers { .. }
                        | ClientBody::RemoveGroup
                )
        )
    }

    /// Whether it has a stream of answers, of which some may have come: nobody else can go on with it.
    pub(super) fn is_stream(&self) -> bool {
        matches!(self.ask, Ask::Sealed(ClientBody::Tail { .. }))
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
        let mut records = records_of(&block);
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
    pub(super) fn succeed(mut self, reply: ReplyBody, node: NodeId) -> usize {
        let protocol = ClientError::Protocol { node };
        let Ask::Sealed(body) = &self.ask else { return self.fail(&protocol, node) };
        let sent: u32 = self.parts.iter().map(|part| part.records).sum();
        let mut outcomes: Box<dyn Iterator<Item = Outcome>> = match (body, reply) {
            (
                ClientBody::Append { answer: AnswerOn::Commit, .. },
                ReplyBody::Appended { first, count, index, term },
            ) if count == sent => {
                let starts: Vec<u64> = self
                    .parts
                    .iter()
                    .scan(first.0, |at, part| Some(mem::replace(at, at.wrapping_add(part.records.into()))))
                    .collect();
                Box::new(
                    starts
                        .into_iter()
                        .map(move |start| Outcome::Appended(Appended { offset: Offset(start), index, term })),
                )
            }
            (ClientBody::Append { answer: AnswerOn::Apply, .. }, ReplyBody::Responses { responses, .. })
                if responses.count() == sent =>
            {
                Box::new(records_of(&responses).map(Outcome::Response))
            }
            (ClientBody::Outcome { .. }, ReplyBody::Outcome(outcome)) => {
                Box::new([Outcome::Run(outcome)].into_iter())
            }
            (ClientBody::Query { .. }, ReplyBody::Answer(answer)) => {
                Box::new([Outcome::Answer(answer)].into_iter())
            }
            (
                ClientBody::ReadRecords { from, .. },
                ReplyBody::Records { from: answered, end, batches, .. },
            ) if *from == answered => match Records::new(answered, end, batches) {
                Some(records) => Box::new([Outcome::Records(records)].into_iter()),
                None => return self.fail(&protocol, node),
            },
            (ClientBody::Tail { .. }, ReplyBody::Records { from, end, batches, .. }) => {
                match Records::new(from, end, batches) {
                    Some(records) => Box::new([Outcome::Records(records)].into_iter()),
                    None => return self.fail(&protocol, node),
                }
            }
            (ClientBody::Find { .. }, ReplyBody::Found { offset, end }) => {
                Box::new([Outcome::Found(Found { offset, end })].into_iter())
            }
            (ClientBody::Command(GroupCommand::Compare), ReplyBody::CommandDone { index, .. }) => {
                Box::new([Outcome::Marked(index)].into_iter())
            }
            (ClientBody::StateDigest { index: asked, .. }, ReplyBody::StateDigest { index, state })
                if *asked == index =>
            {
                Box::new([Outcome::Digest(state)].into_iter())
            }
            (ClientBody::Command(_), ReplyBody::CommandDone { offset, .. })
            | (ClientBody::FetchCursor { .. }, ReplyBody::Cursor(offset)) => {
                Box::new([Outcome::Offset(offset)].into_iter())
            }
            (ClientBody::GrantTail { .. } | ClientBody::EndTail { .. }, ReplyBody::Granted) => {
                Box::new([Outcome::Granted].into_iter())
            }
            (ClientBody::ChangeMembers { .. }, ReplyBody::MembersChanged { members, .. }) => {
                Box::new([Outcome::Members(members)].into_iter())
            }
            (
                ClientBody::CreateGroup { .. } | ClientBody::RemoveGroup | ClientBody::Revive,
                ReplyBody::Done,
            ) => Box::new([Outcome::Done].into_iter()),
            (ClientBody::Recover { .. }, ReplyBody::Recovered(recovered)) => {
                Box::new([Outcome::Recovered(recovered)].into_iter())
            }
            (ClientBody::Status, ReplyBody::Status(status)) if status.group == self.group => {
                Box::new([Outcome::Status(status)].into_iter())
            }
            _ => return self.fail(&protocol, node),
        };
        let parts = mem::take(&mut self.parts);
        let mut freed = 0;
        for part in parts {
            let result = outcomes.next().ok_or(ClientError::Protocol { node });
            freed += part.end(result, node);
        }
        freed
    }
}

/// The records of a block, as slices of it.
fn records_of(block: &RecordBlock) -> impl Iterator<Item = Bytes> + use<> {
    let mut lengths = block.as_bytes().clone();
    let mut payload = lengths.split_off(block.count() as usize * LENGTH_BYTES);
    (0..block.count()).map(move |_| {
        let length = lengths.split_to(LENGTH_BYTES);
        let length = length.first_chunk().map_or(0, |bytes| u32::from_le_bytes(*bytes) as usize);
        payload.split_to(length)
    })
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
                ClientBody::Append { block, .. } => records_of(block).collect(),
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(blocks, [vec![&b"a"[..]], vec![b"bb", b"c"]]);
    }
}

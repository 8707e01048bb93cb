//! Committed entries on their way into the state machines: a share of each group's in every turn, so that a machine
//! that takes long holds up neither the shard's other groups nor their messages.
//!
//! The core hands out a group's next entries only after those before were applied, so there is one job a group. A
//! question that comes in the middle of one waits for its end: an answer is of the state after a whole entry.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use bytes::Bytes;
use iroh_raft_core::batch::{Batch, RecordBlock};
use iroh_raft_core::mutants::{self, Mutant};
use iroh_raft_core::{
    Apply, BusyReason, Freshness, GroupId, Index, Offset, RequestError, Timestamp, Token, Waiter,
};
use iroh_raft_netbridge::wire::ReplyBody;

use crate::machines::{Machines, freeze};
use crate::responses::Responses;
use crate::state_machine::{ApplyContext, Machine, SnapshotView};

/// Commands of one group applied before another group has its turn.
const SLICE_RECORDS: u32 = 64;
/// Commands between two looks at the clock.
const CLOCK_RECORDS: u32 = 8;
/// Questions that wait for one job. Full: the next one is refused as busy.
const QUESTIONS_MAX: usize = 16_384;
/// Largest block of responses: lengths in it have 32 bits.
const BLOCK_BYTES_MAX: usize = 1 << 30;
/// Bytes of the length in front of each response.
const LENGTH_BYTES: usize = 4;

/// What a turn of a shard gives its state machines, over all groups; what is left waits for the next turn.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ApplyBudget {
    /// Time after which no further commands are begun; looked at after every 8 of a group. Default 1 ms. Higher: fewer turns for the same work; lower:
    /// messages and appends wait less for slow state machines.
    pub time: Duration,
    /// Commands at most; at least 1. Default 65,536.
    pub records_max: u32,
}

impl Default for ApplyBudget {
    fn default() -> ApplyBudget {
        ApplyBudget { time: Duration::from_millis(1), records_max: 1 << 16 }
    }
}

/// What comes of applying.
pub(crate) enum Outcome {
    /// A request has its responses, or will never have them.
    Answered { waiter: Waiter, group: GroupId, body: ReplyBody },
    /// A question that waited may be asked now; its answer is of the state that this says.
    Ask { token: Token, group: GroupId, query: Bytes, freshness: Freshness },
    /// A question that waited will not be asked.
    Refused { token: Token, group: GroupId, error: RequestError },
    /// The state after an entry that is to be compared; none if the machine makes no snapshots.
    Frozen { group: GroupId, index: Index, view: Option<Box<dyn SnapshotView>> },
    /// All of it is applied.
    Applied { group: GroupId, index: Index },
    /// The machine panicked, and is gone.
    Panicked { group: GroupId },
}

pub(crate) struct Applying {
    budget: ApplyBudget,
    /// One a group; the first is next.
    jobs: VecDeque<Job>,
}

struct Job {
    apply: Apply,
    last: Index,
    /// The entry after which the state is to be frozen.
    frozen_after: Option<Index>,
    /// The command that is next: its entry, and its place in that.
    entry: usize,
    record: usize,
    /// The request whose command is next or follows it, and its responses so far.
    waiter: usize,
    responses: Vec<Vec<u8>>,
    /// The run of a client session whose command is next or follows it, in the entry, and its responses so far.
    run: usize,
    of_run: Vec<Vec<u8>>,
    questions: Vec<(Token, Bytes, Freshness)>,
}

impl Applying {
    pub(crate) fn new(budget: ApplyBudget) -> Applying {
        Applying { budget, jobs: VecDeque::new() }
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.jobs.is_empty()
    }

    /// `frozen_after` names an entry, of these or a later one, after which the state is to be handed out.
    pub(crate) fn push(&mut self, apply: Apply, frozen_after: Option<Index>) {
        let Some(last) = apply.entries.last().map(|entry| entry.index) else { return };
        let (responses, of_run, questions) = (Vec::new(), Vec::new(), Vec::new());
        let (entry, record, waiter, run) = (0, 0, 0, 0);
        self.jobs.push_back(Job {
            apply,
            last,
            frozen_after,
            entry,
            record,
            waiter,
            responses,
            run,
            of_run,
            questions,
        });
    }

    /// A question may look: it waits if its group is in the middle of a job. Otherwise, what comes of it at once.
    pub(crate) fn ask(
        &mut self,
        token: Token,
        group: GroupId,
        query: Bytes,
        freshness: Freshness,
    ) -> Option<Outcome> {
        let job = self.jobs.iter_mut().find(|job| job.apply.group == group);
        match job.filter(|_| !mutants::is(Mutant::AskedMidway)) {
            None => Some(Outcome::Ask { token, group, query, freshness }),
            Some(job) if job.questions.len() >= QUESTIONS_MAX => {
                Some(Outcome::Refused { token, group, error: RequestError::busy(BusyReason::Reads) })
            }
            Some(job) => {
                job.questions.push((token, query, freshness));
                None
            }
        }
    }

    /// The group's machine is gone, or begins anew from a snapshot: what was to be applied is not.
    pub(crate) fn cancel(&mut self, group: GroupId, outcomes: &mut Vec<Outcome>) {
        let Some(at) = self.jobs.iter().position(|job| job.apply.group == group) else { return };
        let Some(mut job) = self.jobs.remove(at) else { return };
        job.give_up(outcomes);
        for (token, ..) in job.questions {
            outcomes.push(Outcome::Refused { token, group, error: RequestError::busy(BusyReason::Starting) });
        }
    }

    /// Applies as much as a turn allows, the groups taking turns.
    pub(crate) fn turn(
        &mut self,
        machines: &mut Machines,
        clock: &impl Fn() -> Timestamp,
        outcomes: &mut Vec<Outcome>,
    ) {
        let Some(until) = (!self.is_idle()).then(|| clock().after(self.budget.time)) else { return };
        let mut left = self.budget.records_max;
        while let Some(mut job) = self.jobs.pop_front() {
            let is_late = || clock() >= until;
            left -= job.run(machines, left.min(SLICE_RECORDS), &is_late, outcomes);
            if job.is_over() {
                job.finish(outcomes);
            } else {
                self.jobs.push_back(job);
            }
            if left == 0 || is_late() {
                break;
            }
        }
    }
}

impl Job {
    fn is_over(&self) -> bool {
        self.entry == self.apply.entries.len()
    }

    /// Applies up to so many commands; returns how many it were.
    fn run(
        &mut self,
        machines: &mut Machines,
        records_max: u32,
        is_late: &impl Fn() -> bool,
        outcomes: &mut Vec<Outcome>,
    ) -> u32 {
        let group = self.apply.group;
        let Some((machine, kept)) = machines.get_mut(group) else {
            // The replica is about to be taken out.
            self.entry = self.apply.entries.len();
            return 0;
        };
        // What a panic left unfinished is not looked at again: the machine is dropped.
        let run = AssertUnwindSafe(|| self.run_on(machine, kept, records_max, is_late, outcomes));
        catch_unwind(run).unwrap_or_else(|_| {
            let (at, upto) = (self.apply.entries.get(self.entry).map(|entry| entry.index.0), self.last);
            tracing::error!(%group, ?at, %upto, "the state machine panicked: its replica is taken out on this node");
            machines.take_out(group);
            outcomes.push(Outcome::Panicked { group });
            self.entry = self.apply.entries.len();
            records_max
        })
    }

    fn run_on(
        &mut self,
        machine: &mut dyn Machine,
        kept: &mut Responses,
        records_max: u32,
        is_late: &impl Fn() -> bool,
        outcomes: &mut Vec<Outcome>,
    ) -> u32 {
        let mut count: u32 = 0;
        while let Some(entry) = self.apply.entries.get(self.entry) {
            // Conf changes carry no batch; batches were checked when they entered the log.
            let batch = entry.batch().and_then(|_| Batch::parse(&entry.data).ok());
            let index = entry.index;
            let mut runs = batch.iter().flat_map(Batch::runs).skip(self.run).peekable();
            for (offset, record) in batch.iter().flat_map(Batch::records).skip(self.record) {
                let is_looked_at = count > 0 && count.is_multiple_of(CLOCK_RECORDS);
                if count == records_max || (is_looked_at && is_late()) {
                    return count;
                }
                let at = batch.as_ref().map_or_else(Default::default, Batch::at);
                let context = ApplyContext { group: self.apply.group, index, offset, at };
                let response = machine.apply(context, record);
                if let Some(run) = runs.peek().filter(|run| run.place as usize <= self.record) {
                    self.of_run.push(response.clone());
                    if self.of_run.len() == run.count as usize {
                        kept.push(
                            Offset(offset.0 + 1 - u64::from(run.count)),
                            &std::mem::take(&mut self.of_run),
                        );
                        self.run += 1;
                        runs.next();
                    }
                }
                (self.record, count) = (self.record + 1, count + 1);
                if let Some(waiter) =
                    self.apply.waiters.get(self.waiter).filter(|waiter| waiter.first <= offset)
                {
                    self.responses.push(response);
                    if offset.0 + 1 == waiter.first.0 + u64::from(waiter.count) {
                        let responses = std::mem::take(&mut self.responses);
                        let (first, group) = (waiter.first, self.apply.group);
                        let body = answer(waiter, &responses);
                        // Several wait where commands of a session came again.
                        let waiters = self.apply.waiters.iter().skip(self.waiter);
                        for waiter in waiters.take_while(|waiter| waiter.first == first) {
                            outcomes.push(Outcome::Answered { waiter: *waiter, group, body: body.clone() });
                            self.waiter += 1;
                        }
                    }
                }
            }
            let frozen_after = self.frozen_after.filter(|_| !mutants::is(Mutant::FrozenWithLater));
            if frozen_after == Some(index) {
                outcomes.push(Outcome::Frozen { group: self.apply.group, index, view: freeze(machine) });
            }
            (self.entry, self.record, self.run) = (self.entry + 1, 0, 0);
        }
        if mutants::is(Mutant::FrozenWithLater)
            && let Some(index) = self.frozen_after.filter(|index| *index <= self.last)
        {
            outcomes.push(Outcome::Frozen { group: self.apply.group, index, view: freeze(machine) });
        }
        count
    }

    /// The requests that have no answer yet get none: the commands are in the log, so a retry would put them in twice.
    fn give_up(&mut self, outcomes: &mut Vec<Outcome>) {
        let group = self.apply.group;
        for waiter in self.apply.waiters.drain(..).skip(self.waiter) {
            let body = ReplyBody::Failed(RequestError::OutcomeUnknown { leader: None });
            outcomes.push(Outcome::Answered { waiter, group, body });
        }
    }

    fn finish(mut self, outcomes: &mut Vec<Outcome>) {
        self.give_up(outcomes);
        let (group, index) = (self.apply.group, self.last);
        for (token, query, freshness) in self.questions {
            let (applied, commit) = (index, freshness.commit.max(index));
            let freshness = Freshness { applied, commit, ..freshness };
            outcomes.push(Outcome::Ask { token, group, query, freshness });
        }
        outcomes.push(Outcome::Applied { group, index });
    }
}

fn answer(waiter: &Waiter, responses: &[Vec<u8>]) -> ReplyBody {
    let bytes: usize = responses.iter().map(|response| response.len() + LENGTH_BYTES).sum();
    if bytes > BLOCK_BYTES_MAX {
        // No answer is that long; the commands are applied.
        return ReplyBody::Failed(RequestError::OutcomeUnknown { leader: None });
    }
    ReplyBody::Responses {
        first: waiter.first,
        index: waiter.index,
        term: waiter.term,
        responses: RecordBlock::from_records(responses),
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::sync::Arc;

    use iroh_raft_core::batch::encode_batch;
    use iroh_raft_core::{EntryKind, LogEntry, Term, WallTime};

    use super::*;
    use crate::state_machine::{DecodeError, MachineFactory, Restore, RestoreError, SnapshotView};

    /// Counts its commands, and panics over one that says so.
    struct Counter(u64);

    impl Machine for Counter {
        fn is_command(&self, _: &[u8]) -> bool {
            true
        }

        fn apply(&mut self, _: ApplyContext, command: &[u8]) -> Vec<u8> {
            assert_ne!(command, b"panic");
            self.0 += 1;
            self.0.to_le_bytes().to_vec()
        }

        fn query(&self, _: &[u8]) -> Result<Vec<u8>, DecodeError> {
            Ok(self.0.to_le_bytes().to_vec())
        }

        fn snapshot(&self) -> Option<Box<dyn SnapshotView>> {
            None
        }

        fn restore(&mut self, _: Restore<'_>) -> Result<(), RestoreError> {
            Ok(())
        }
    }

    fn machines() -> Machines {
        let make: Box<MachineFactory> = Box::new(|_| Some(Box::new(Counter(0))));
        let mut machines = Machines::new(Arc::from(make));
        (1..=3).for_each(|group| machines.open(GroupId(group)));
        machines
    }

    fn apply(group: u64, records: &[&[u8]], waiters: &[(u64, u32)]) -> Apply {
        let data = encode_batch(Offset(0), WallTime(0), [&RecordBlock::from_records(records)].into_iter());
        let (index, term) = (Index(1), Term(1));
        let token = |first| Token { origin: 0, request: first };
        let waiter = |(first, count): &(u64, u32)| Waiter {
            token: token(*first),
            first: Offset(*first),
            count: *count,
            index,
            term,
        };
        Apply {
            group: GroupId(group),
            entries: vec![LogEntry { index, term, kind: EntryKind::Normal, data }],
            waiters: waiters.iter().map(waiter).collect(),
        }
    }

    /// A turn, told in words.
    fn turn(applying: &mut Applying, machines: &mut Machines, clock: &impl Fn() -> Timestamp) -> Vec<String> {
        let mut outcomes = Vec::new();
        applying.turn(machines, clock, &mut outcomes);
        outcomes.iter().map(tell).collect()
    }

    fn tell(outcome: &Outcome) -> String {
        match outcome {
            Outcome::Answered { waiter, group, body: ReplyBody::Responses { responses, .. } } => {
                format!("{group}: {} responses from {}", responses.count(), waiter.first)
            }
            Outcome::Answered { waiter, group, .. } => format!("{group}: nothing for {}", waiter.first),
            Outcome::Ask { group, freshness, .. } => format!("{group}: asked at {}", freshness.applied),
            Outcome::Refused { group, .. } => format!("{group}: refused"),
            Outcome::Frozen { group, index, .. } => format!("{group}: frozen after {index}"),
            Outcome::Applied { group, index } => format!("{group}: applied {index}"),
            Outcome::Panicked { group } => format!("{group}: panicked"),
        }
    }

    const OLD: Freshness = Freshness { applied: Index(0), commit: Index(0), heard: None };

    fn still() -> Timestamp {
        Timestamp(0)
    }

    #[test]
    fn groups_take_turns_and_a_question_waits_for_the_end() {
        let mut machines = machines();
        let mut applying = Applying::new(ApplyBudget { records_max: 100, ..ApplyBudget::default() });
        applying.push(apply(1, &[&b"x"[..]; 150], &[(0, 40), (40, 110)]), None);
        applying.push(apply(2, &[&b"x"[..]], &[(0, 1)]), None);
        let first = turn(&mut applying, &mut machines, &still);
        assert_eq!(first, ["1: 40 responses from 0", "2: 1 responses from 0", "2: applied 1"]);
        let (token, freshness) = (Token { origin: 0, request: 9 }, OLD);
        assert!(applying.ask(token, GroupId(1), Bytes::new(), freshness).is_none());
        let elsewhere = applying.ask(token, GroupId(2), Bytes::new(), freshness);
        assert!(matches!(elsewhere, Some(Outcome::Ask { .. })));
        let second = turn(&mut applying, &mut machines, &still);
        assert_eq!(second, ["1: 110 responses from 40", "1: asked at 1", "1: applied 1"]);
        assert!(applying.is_idle());
        assert_eq!(machines.query(GroupId(1), &[]).unwrap(), 150_u64.to_le_bytes());
    }

    #[test]
    fn a_slow_machine_ends_the_turn() {
        let (mut machines, now) = (machines(), Cell::new(0));
        let clock = || Timestamp(now.replace(now.get() + 700_000));
        let mut applying = Applying::new(ApplyBudget::default());
        applying.push(apply(1, &[&b"x"[..]; 20], &[]), None);
        applying.push(apply(2, &[&b"x"[..]], &[]), None);
        // Twice eight commands, of 0.7 ms each time, are more than a millisecond.
        assert_eq!(turn(&mut applying, &mut machines, &clock), [""; 0]);
        assert_eq!(machines.query(GroupId(1), &[]).unwrap(), 16_u64.to_le_bytes());
        assert_eq!(turn(&mut applying, &mut machines, &clock), ["2: applied 1", "1: applied 1"]);
    }

    #[test]
    fn a_machine_that_panics_takes_its_replica_out() {
        let mut machines = machines();
        let mut applying = Applying::new(ApplyBudget::default());
        applying.push(apply(1, &[&b"x"[..], &b"panic"[..], &b"x"[..]], &[(0, 1), (1, 2)]), None);
        let said = turn(&mut applying, &mut machines, &still);
        assert_eq!(said, ["1: 1 responses from 0", "1: panicked", "1: nothing for 1", "1: applied 1"]);
        assert_eq!(machines.query(GroupId(1), &[]), Err(RequestError::Quarantined));
        applying.push(apply(1, &[&b"x"[..]], &[(0, 1)]), None);
        assert_eq!(turn(&mut applying, &mut machines, &still), ["1: nothing for 0", "1: applied 1"]);
    }

    #[test]
    fn what_was_under_way_ends_with_its_state() {
        let mut machines = machines();
        let mut applying = Applying::new(ApplyBudget { records_max: 1, ..ApplyBudget::default() });
        applying.push(apply(1, &[&b"x"[..]; 3], &[(0, 1), (1, 2)]), None);
        turn(&mut applying, &mut machines, &still);
        let token = Token { origin: 0, request: 9 };
        assert!(applying.ask(token, GroupId(1), Bytes::new(), OLD).is_none());
        let mut outcomes = Vec::new();
        applying.cancel(GroupId(1), &mut outcomes);
        let said: Vec<String> = outcomes.iter().map(tell).collect();
        assert_eq!(said, ["1: nothing for 1", "1: refused"]);
        assert!(applying.is_idle());
    }
}

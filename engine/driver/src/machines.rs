//! The state machines of a shard's groups: what a panic in one of them does, and whom it answers.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use iroh_raft_core::batch::{Batch, RecordBlock};
use iroh_raft_core::{AnswerOn, Apply, GroupId, Offset, RequestError};
use iroh_raft_netbridge::wire::ReplyBody;

use crate::responses::Responses;
use crate::state_machine::{ApplyContext, Machine, MachineFactory, Restore, RestoreError, SnapshotView};

/// Largest block of responses: lengths in it have 32 bits.
const BLOCK_BYTES_MAX: usize = 1 << 30;
/// Bytes of the length in front of each response.
const LENGTH_BYTES: usize = 4;

/// Those of a shard, and what makes them.
pub(crate) struct Machines {
    factory: Arc<MachineFactory>,
    /// By group; `None` after a panic: what it would apply to is no longer known.
    machines: BTreeMap<GroupId, Option<Box<dyn Machine>>>,
    /// To commands of client sessions.
    responses: BTreeMap<GroupId, Responses>,
}

impl Machines {
    pub(crate) fn new(factory: Arc<MachineFactory>) -> Machines {
        Machines { factory, machines: BTreeMap::new(), responses: BTreeMap::new() }
    }

    /// Whether a group has a state machine.
    pub(crate) fn has_one(&self, group: GroupId) -> bool {
        (self.factory)(group).is_some()
    }

    /// A replica of the group is here: it has a machine in its first state, unless it has one already.
    pub(crate) fn open(&mut self, group: GroupId) {
        if !self.machines.contains_key(&group)
            && let Some(machine) = (self.factory)(group)
        {
            self.machines.insert(group, Some(machine));
        }
    }

    /// The group's replica is gone.
    pub(crate) fn close(&mut self, group: GroupId) {
        self.machines.remove(&group);
        self.responses.remove(&group);
    }

    /// The responses that commands of a client session had, if they are still kept.
    pub(crate) fn response_of(&self, group: GroupId, first: Offset, count: u32) -> Option<RecordBlock> {
        self.responses.get(&group)?.find(first, count)
    }

    /// Whether records may enter the log of a group of this shard.
    pub(crate) fn check(
        &self,
        group: GroupId,
        block: &RecordBlock,
        answer: AnswerOn,
    ) -> Result<(), RequestError> {
        let machine = match self.machines.get(&group) {
            Some(Some(machine)) => machine,
            Some(None) => return Err(RequestError::Quarantined),
            None if answer == AnswerOn::Apply => {
                return Err(RequestError::Invalid { what: "a command for a group without a state machine" });
            }
            None => return Ok(()),
        };
        if block.records().all(|record| machine.is_command(record)) {
            Ok(())
        } else {
            Err(RequestError::Invalid { what: "a record is not a command of the group's state machine" })
        }
    }

    /// Asks the state machine of a group of this shard.
    pub(crate) fn query(&self, group: GroupId, query: &[u8]) -> Result<Vec<u8>, RequestError> {
        let invalid = |what| Err(RequestError::Invalid { what });
        match self.machines.get(&group) {
            Some(Some(machine)) => match catch_unwind(AssertUnwindSafe(|| machine.query(query))) {
                Ok(Ok(answer)) => Ok(answer),
                Ok(Err(_)) => invalid("not a query of the state machine"),
                Err(_) => invalid("the state machine panicked over it"),
            },
            Some(None) => Err(RequestError::Quarantined),
            None => invalid("a query to a group without a state machine"),
        }
    }

    /// The frozen state of a group's machine; `None` if it makes none.
    pub(crate) fn freeze(&self, group: GroupId) -> Option<Box<dyn SnapshotView>> {
        let machine = self.machines.get(&group)?.as_ref()?;
        // Nothing of it has changed.
        catch_unwind(AssertUnwindSafe(|| machine.snapshot())).ok().flatten()
    }

    /// A step of putting a group's machine where a snapshot says.
    pub(crate) fn restore(&mut self, group: GroupId, step: Restore<'_>) -> Result<(), RestoreError> {
        let Some(Some(machine)) = self.machines.get_mut(&group) else {
            return Err(RestoreError { problem: "the state machine was taken out" });
        };
        catch_unwind(AssertUnwindSafe(|| machine.restore(step))).unwrap_or_else(|_| {
            self.machines.insert(group, None);
            Err(RestoreError { problem: "the state machine panicked over it" })
        })
    }

    /// Applies committed entries; returns the answers to those who wait, in their order.
    pub(crate) fn apply(&mut self, apply: &Apply) -> Vec<ReplyBody> {
        // The commands are in the log: a retry would put them in twice, so their outcome is unknown, not
        // refused.
        let unknown = || ReplyBody::Failed(RequestError::OutcomeUnknown { leader: None });
        let Some(Some(machine)) = self.machines.get_mut(&apply.group) else {
            return apply.waiters.iter().map(|_| unknown()).collect();
        };
        let machine = machine.as_mut();
        // What a panic left unfinished is not looked at again: the machine is dropped.
        let kept = self.responses.entry(apply.group).or_default();
        let Ok(responses) = catch_unwind(AssertUnwindSafe(|| responses_of(apply, machine, kept))) else {
            let upto = apply.entries.last().map(|entry| entry.index.0);
            tracing::error!(group = %apply.group, ?upto, "the state machine panicked: it is taken out on this node");
            self.machines.insert(apply.group, None);
            return apply.waiters.iter().map(|_| unknown()).collect();
        };
        let answer = |(responses, waiter): (&Vec<Vec<u8>>, &iroh_raft_core::Waiter)| {
            let bytes: usize = responses.iter().map(|response| response.len() + LENGTH_BYTES).sum();
            if bytes > BLOCK_BYTES_MAX {
                // No answer is that long; the commands are applied.
                return unknown();
            }
            ReplyBody::Responses {
                first: waiter.first,
                index: waiter.index,
                term: waiter.term,
                responses: RecordBlock::from_records(responses),
            }
        };
        responses.iter().zip(&apply.waiters).map(answer).collect()
    }
}

/// Applies the records of the entries and collects the responses that the waiters are for, and those to keep.
fn responses_of(apply: &Apply, machine: &mut dyn Machine, kept: &mut Responses) -> Vec<Vec<Vec<u8>>> {
    let waiters = &apply.waiters;
    let mut answered: Vec<Vec<Vec<u8>>> = waiters.iter().map(|_| Vec::new()).collect();
    let mut next = 0;
    for entry in apply.entries.iter().filter(|entry| entry.batch().is_some()) {
        // Conf changes carry no batch; batches were checked when they entered the log.
        let Ok(batch) = Batch::parse(&entry.data) else { continue };
        let mut runs = batch.runs().peekable();
        let mut of_run = Vec::new();
        for (place, (offset, record)) in (0..).zip(batch.records()) {
            let context = ApplyContext { group: apply.group, index: entry.index, offset, at: batch.at() };
            let response = machine.apply(context, record);
            if let Some(run) = runs.peek().filter(|run| run.place <= place) {
                of_run.push(response.clone());
                if of_run.len() == run.count as usize {
                    kept.push(Offset(batch.base().0 + u64::from(run.place)), &of_run);
                    of_run.clear();
                    runs.next();
                }
            }
            while waiters.get(next).is_some_and(|waiter| waiter.first.0 + u64::from(waiter.count) <= offset.0)
            {
                next += 1;
            }
            // Several wait where commands of a session came again.
            let has_begun = |waiter: &&iroh_raft_core::Waiter| waiter.first <= offset;
            let takers = waiters.iter().skip(next).take_while(has_begun).count();
            let mut takers = answered.iter_mut().skip(next).take(takers);
            if let Some(first) = takers.next() {
                takers.for_each(|responses| responses.push(response.clone()));
                first.push(response);
            }
        }
    }
    answered
}

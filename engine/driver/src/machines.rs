//! The state machines of a shard's groups, and what a panic in one of them does.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use iroh_raft_core::batch::RecordBlock;
use iroh_raft_core::{AnswerOn, GroupId, Offset, RequestError};

use crate::responses::Responses;
use crate::state_machine::{Machine, MachineFactory, Restore, RestoreError, SnapshotView};

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

    /// Whether the group's replica here has a state machine, or had one before it panicked.
    pub(crate) fn has(&self, group: GroupId) -> bool {
        self.machines.contains_key(&group)
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
        freeze(self.machines.get(&group)?.as_ref()?.as_ref())
    }

    /// A step of putting a group's machine where a snapshot says.
    pub(crate) fn restore(&mut self, group: GroupId, step: Restore<'_>) -> Result<(), RestoreError> {
        let Some(Some(machine)) = self.machines.get_mut(&group) else {
            return Err(RestoreError { problem: "the state machine was taken out" });
        };
        catch_unwind(AssertUnwindSafe(|| machine.restore(step))).unwrap_or_else(|_| {
            self.take_out(group);
            Err(RestoreError { problem: "the state machine panicked over it" })
        })
    }

    /// The machine of a group, unless there is none or it was taken out, and where its responses are kept.
    pub(crate) fn get_mut(&mut self, group: GroupId) -> Option<(&mut dyn Machine, &mut Responses)> {
        let machine = self.machines.get_mut(&group)?.as_mut()?.as_mut();
        Some((machine, self.responses.entry(group).or_default()))
    }

    /// A panic left a group's machine in a state that nobody knows.
    pub(crate) fn take_out(&mut self, group: GroupId) {
        self.machines.insert(group, None);
    }
}

/// The frozen state of a machine; `None` if it makes none, or panics over it: nothing of it has changed then.
pub(crate) fn freeze(machine: &dyn Machine) -> Option<Box<dyn SnapshotView>> {
    catch_unwind(AssertUnwindSafe(|| machine.snapshot())).ok().flatten()
}

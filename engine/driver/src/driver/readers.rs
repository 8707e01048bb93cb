//! Requests of those who read logs, and of groups themselves.

use iroh_raft_core::{DigestState, StateDigest};

use super::{
    Answer, BusyReason, ClientBody, Consistency, Driver, Freshness, GroupCommand, GroupId, Index, Input,
    Outcome, Owner, Question, READ_BYTES_MAX, ReplyBody, RequestError, ShardCounters, Timestamp, Token,
};

impl Driver {
    /// Takes a request of the kinds that are about reading; the others do not come here.
    pub(super) fn handle_reader(
        &mut self,
        token: Token,
        owner: Owner,
        group: GroupId,
        deadline: Timestamp,
        body: ClientBody,
    ) {
        match body {
            ClientBody::FetchCursor { name } => {
                self.ask_leader(token, group, deadline, Question::Cursor(name));
            }
            ClientBody::Outcome { session, sequence } => {
                self.ask_leader(token, group, deadline, Question::Outcome { session, owner, sequence });
            }
            ClientBody::ReadRecords { from, bytes_max, records_max, is_waiting } => {
                let bytes_max = (bytes_max as usize).min(READ_BYTES_MAX);
                self.step(Input::ReadRecords {
                    token,
                    group,
                    from,
                    bytes_max,
                    records_max,
                    is_waiting,
                    deadline,
                });
            }
            ClientBody::Tail { tail, from, granted_bytes } => {
                if !self.open.tails.insert(token, tail, group) {
                    return self.refuse_open(token, group);
                }
                let granted_bytes = u64::from(granted_bytes);
                self.step(Input::Tail { token, group, from, granted_bytes, deadline });
            }
            ClientBody::GrantTail { tail, granted_bytes } => {
                if let Some((token, group)) = self.open.tails.find(token.origin, tail) {
                    self.step(Input::GrantTail { token, group, granted_bytes });
                }
                self.answer(token, group, ReplyBody::Granted);
            }
            ClientBody::EndTail { tail } => {
                if let Some((token, group)) = self.open.tails.find(token.origin, tail) {
                    self.step(Input::EndTail { token, group });
                }
                self.answer(token, group, ReplyBody::Granted);
            }
            ClientBody::Find { at } => self.step(Input::Find { token, group, at, deadline }),
            ClientBody::Command(GroupCommand::Compare) if self.comparing.is_busy() => {
                let error = RequestError::busy(BusyReason::Comparing);
                self.answer(token, group, ReplyBody::Failed(error));
            }
            ClientBody::StateDigest { index, expected } => {
                let body = self.digest(group, index, expected);
                self.answer(token, group, body);
            }
            ClientBody::Command(command) => match self.check_writer() {
                Ok(()) => {
                    let command = command.owned_by(owner);
                    self.step(Input::Command { token, group, command, deadline });
                }
                Err(error) => self.answer(token, group, ReplyBody::Failed(error)),
            },
            ClientBody::Append { .. }
            | ClientBody::TimedAppend { .. }
            | ClientBody::Query { .. }
            | ClientBody::ChangeMembers { .. }
            | ClientBody::CreateGroup { .. }
            | ClientBody::RemoveGroup
            | ClientBody::Revive
            | ClientBody::Recover { .. }
            | ClientBody::Status
            | ClientBody::Clock
            | ClientBody::ListGroups { .. }
            | ClientBody::TransferLeader { .. } => unreachable!("these are taken where they come"),
        }
    }

    /// What the replica here came to at an index. One that differs from what others came to says so itself, too.
    fn digest(&self, group: GroupId, index: Index, expected: Option<StateDigest>) -> ReplyBody {
        let Some(status) = self.parts.shard.status(group) else {
            return ReplyBody::Failed(RequestError::UnknownGroup);
        };
        let state = self.comparing.state_of(group, index, status.commit >= index);
        if let (DigestState::Known(digest), Some(expected)) = (state, expected)
            && digest != expected
        {
            ShardCounters::add(&self.parts.counters.states_differing, 1);
            tracing::error!(
                %group, %index, ?digest, ?expected,
                "the state of this node's replica differs from what the others have: do not trust what it answers"
            );
        }
        ReplyBody::StateDigest { index, state }
    }

    /// What is asked of a replica that leads for certain.
    fn ask_leader(&mut self, token: Token, group: GroupId, deadline: Timestamp, question: Question) {
        if self.open.queries.contains_key(&token) {
            return self.refuse_open(token, group);
        }
        self.open.queries.insert(token, question);
        let (consistency, may_forward) = (Consistency::Linearizable, false);
        self.step(Input::Read { token, group, consistency, may_forward, deadline });
    }

    /// A read may look now.
    pub(super) fn handle_question(
        &mut self,
        token: Token,
        group: GroupId,
        question: Question,
        freshness: Freshness,
    ) {
        match question {
            Question::Machine(query) => {
                if let Some(outcome) = self.applying.ask(token, group, query, freshness) {
                    self.handle_outcome(outcome);
                }
            }
            Question::Cursor(name) => {
                let body = match self.parts.shard.meta(group) {
                    Some(meta) => ReplyBody::Cursor(meta.cursor(&name)),
                    None => ReplyBody::Failed(RequestError::Quarantined),
                };
                self.answer(token, group, body);
            }
            Question::Outcome { session, owner, sequence } => {
                let body = match self.parts.shard.session_outcome(group, session, owner, sequence) {
                    Ok(outcome) => ReplyBody::Outcome(outcome),
                    Err(error) => ReplyBody::Failed(error),
                };
                self.answer(token, group, body);
            }
        }
    }

    /// Does what came of applying.
    pub(super) fn handle_outcomes(&mut self) {
        let mut outcomes = std::mem::take(&mut self.outcomes);
        outcomes.drain(..).for_each(|outcome| self.handle_outcome(outcome));
        self.outcomes = outcomes;
    }

    fn handle_outcome(&mut self, outcome: Outcome) {
        match outcome {
            Outcome::Answered { waiter, group, body } => {
                if matches!(body, ReplyBody::Responses { .. }) {
                    ShardCounters::add(&self.parts.counters.records_acked, u64::from(waiter.count));
                    self.costs.acknowledged(group, waiter.count);
                }
                self.answer(waiter.token, group, body);
            }
            Outcome::Ask { token, group, query, freshness } => {
                let body = match self.machines.query(group, &query) {
                    Ok(answer) => ReplyBody::Answer(Answer { freshness, bytes: answer.into() }),
                    Err(error) => ReplyBody::Failed(error),
                };
                self.answer(token, group, body);
            }
            Outcome::Refused { token, group, error } => {
                self.answer(token, group, ReplyBody::Failed(error));
            }
            Outcome::Frozen { group, index, view } => self.comparing.frozen(group, index, view),
            Outcome::Applied { group, index } => {
                self.comparing.applied(group, index);
                self.loopback.push(Input::Applied { group, index });
            }
            Outcome::Panicked { group } => self.loopback.push(Input::MachinePanicked { group }),
        }
    }
}

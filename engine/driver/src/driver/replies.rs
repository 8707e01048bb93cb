//! What the core answers, on its way to whoever asked.

use super::{
    ANSWER_BYTES_MAX, BusyReason, Call, Driver, GroupId, HandedOver, Input, LeadershipError, Reply,
    ReplyBody, RequestError, SessionRefusal, ShardCounters, Token,
};

impl Driver {
    pub(super) fn handle_reply(&mut self, reply: Reply) {
        match reply {
            Reply::Appended { token, group, first, count, index, term } => {
                ShardCounters::add(&self.parts.counters.records_acked, u64::from(count));
                self.costs.acknowledged(group, count);
                let body = match self.open.timings.end(token, self.now) {
                    Some(stages) => ReplyBody::TimedAppended { first, count, index, term, stages },
                    None => ReplyBody::Appended { first, count, index, term },
                };
                self.answer(token, group, body);
            }
            Reply::Repeated { token, group, first, count, index, term } => {
                let body = match self.machines.response_of(group, first, count) {
                    Some(responses) => ReplyBody::Responses { first, index, term, responses },
                    None => {
                        let refusal = SessionRefusal::ResponseGone { first };
                        ReplyBody::Failed(RequestError::Session { refusal })
                    }
                };
                self.answer(token, group, body);
            }
            Reply::ReadReady { token, group, freshness } => {
                if let Some(question) = self.open.queries.remove(&token) {
                    self.handle_question(token, group, question, freshness);
                }
            }
            Reply::Records { token, group, from, entries, end, is_last } => {
                let batches = entries.into_iter().map(|entry| entry.data).collect();
                self.answer(token, group, ReplyBody::Records { from, end, batches, is_last });
            }
            Reply::Found { token, group, offset, end } => {
                self.answer(token, group, ReplyBody::Found { offset, end });
            }
            Reply::CommandDone { token, group, offset, index } => {
                self.answer(token, group, ReplyBody::CommandDone { offset, index });
            }
            Reply::LeadershipGiven { token, group, leader, term } => {
                ShardCounters::add(&self.parts.counters.leaderships_given, 1);
                tracing::info!(%group, ?leader, %term, "leadership given away on request");
                if token.origin == 0 {
                    self.answer_leadership(token, Ok(HandedOver { leader, term }));
                } else {
                    self.answer(token, group, ReplyBody::HandedOver(HandedOver { leader, term }));
                }
            }
            Reply::NotTransferred { token, group, error } => {
                if token.origin == 0 {
                    self.answer_leadership(token, Err(error.into()));
                } else {
                    let error = RequestError::Transfer { refusal: error };
                    self.answer(token, group, ReplyBody::Failed(error));
                }
            }
            Reply::Opened { token, group } | Reply::Removed { token, group } => {
                self.answer(token, group, ReplyBody::Done);
            }
            Reply::Recovered { token, group, recovered } => {
                self.answer(token, group, ReplyBody::Recovered(recovered));
            }
            Reply::MembersChanged { token, group, index, members } => {
                self.answer(token, group, ReplyBody::MembersChanged { index, members });
            }
            Reply::Failed { token, group, error } => {
                self.open.queries.remove(&token);
                self.open.timings.end(token, self.now);
                self.answer(token, group, ReplyBody::Failed(error));
            }
        }
    }

    pub(super) fn answer(&mut self, token: Token, group: GroupId, body: ReplyBody) {
        if body.is_last() {
            self.open.tails.remove(token);
        }
        if matches!(body, ReplyBody::Failed(RequestError::Busy { .. })) {
            ShardCounters::add(&self.parts.counters.busy, 1);
        }
        if token.origin != 0 {
            // What clients do not read must not pile up here; what was done stays done, and is said.
            let is_read = match &body {
                ReplyBody::Answer(_) => true,
                ReplyBody::Records { batches, is_last, .. } => *is_last && !batches.is_empty(),
                _ => false,
            };
            if is_read && self.outbox.is_heavy() {
                let busy = RequestError::busy(BusyReason::Reads);
                return self.answer(token, group, ReplyBody::Failed(busy));
            }
            let bytes = match &body {
                ReplyBody::Responses { responses, .. } => responses.as_bytes().len(),
                ReplyBody::Answer(answer) => answer.bytes.len(),
                _ => 0,
            };
            let body = match body {
                _ if bytes <= ANSWER_BYTES_MAX => body,
                // What was applied stays applied.
                ReplyBody::Responses { .. } => {
                    ReplyBody::Failed(RequestError::OutcomeUnknown { leader: None })
                }
                _ => {
                    let (bytes, bytes_max) = (bytes as u64, ANSWER_BYTES_MAX as u64);
                    ReplyBody::Failed(RequestError::TooLarge { bytes, bytes_max })
                }
            };
            self.outbox.push_reply(token, group, body);
            return;
        }
        let at = token.request as usize;
        if let Some(Call::Tail(call)) = self.open.calls.get(at)
            && !body.is_last()
        {
            // A consumer that is gone without having said so.
            if call.unbounded_send(body).is_err() {
                self.step(Input::EndTail { token, group });
            }
            return;
        }
        // The caller may have stopped waiting.
        match (self.open.calls.try_remove(at), body) {
            (Some(Call::Request(call)), body) => drop(call.send(body)),
            (Some(Call::Tail(call)), body) => drop(call.unbounded_send(body)),
            (Some(Call::Leadership(call)), ReplyBody::Failed(error)) => drop(call.send(Err(error.into()))),
            (Some(Call::Leadership(_)) | None, _) => {}
        }
    }

    fn answer_leadership(&mut self, token: Token, outcome: Result<HandedOver, LeadershipError>) {
        if let Some(Call::Leadership(call)) = self.open.calls.try_remove(token.request as usize) {
            // The caller may have stopped waiting.
            let _ = call.send(outcome);
        }
    }
}

//! Appends and proposals of this process that are done once, however often they are tried.

use std::time::Duration;

use bytes::Bytes;
use iroh_raft_core::batch::RecordBlock;
use iroh_raft_core::{
    AnswerOn, GroupCommand, GroupId, Owner, RequestError, Retry, RunOutcome, Sequence, SessionId,
    SessionRefusal,
};
use iroh_raft_netbridge::wire::{ClientBody, ReplyBody};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use crate::engine::{Appended, Engine};

/// How something of a session ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum SessionDone {
    /// Records are on stable storage of a quorum.
    Appended(Appended),
    /// A command is applied: its response.
    Response(Bytes),
}

#[derive(Clone, Debug)]
struct Unfinished {
    block: RecordBlock,
    answer: AnswerOn,
    /// They were refused for good.
    is_refused: bool,
}

/// A session of one group, of the embedding processes of all nodes: see [`Engine::open_session`].
///
/// As everywhere in an [`Engine`] only the leader does what is asked: an attempt is made here and now. What
/// it leaves as unknown is tried again by [`resume`](Session::resume), here or at another node, and done once.
#[derive(Debug)]
pub struct Session {
    engine: Engine,
    group: GroupId,
    id: SessionId,
    next: Sequence,
    unfinished: Option<Unfinished>,
}

impl Engine {
    /// Opens a session of a group that this node leads. It expires once it was not used for `ttl`, by the leaders' clocks.
    ///
    /// # Errors
    /// [`RequestError`]; after an unknown outcome open another one.
    pub async fn open_session(&self, group: GroupId, ttl: Duration) -> Result<Session, RequestError> {
        // Another one for each attempt: one that was lost must not come late and open what has expired.
        let mut session = SessionId::default();
        SmallRng::from_os_rng().fill(&mut session.0);
        let ttl_ms = u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX).max(1);
        self.command(group, GroupCommand::OpenSession { session, owner: Owner(0), ttl_ms }).await?;
        Ok(Session { engine: self.clone(), group, id: session, next: Sequence(0), unfinished: None })
    }
}

impl Session {
    /// Its id.
    #[must_use]
    pub fn id(&self) -> SessionId {
        self.id
    }

    /// Sequence of the next record, or of the first one that is unfinished.
    #[must_use]
    pub fn next(&self) -> Sequence {
        self.next
    }

    /// Goes on at another node: the one that leads now.
    pub fn move_to(&mut self, engine: &Engine) {
        self.engine = engine.clone();
    }

    /// Whether it takes nothing any more: its last records were refused for good, by a node that had them. Whether they are
    /// in the log is not known, if they were tried before. [`resume`](Session::resume) at another node may still find that they
    /// are, and then it goes on; otherwise open another session.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.unfinished.as_ref().is_some_and(|unfinished| unfinished.is_refused)
    }

    /// Appends records, in order and without a gap, all or none. Tried once, here and now.
    ///
    /// # Errors
    /// [`RequestError`]. Whatever it is, the records stay the session's next ones: nothing else is taken
    /// ([`RequestError::Invalid`]) until [`resume`](Session::resume) has had their end, or for ever when the session
    /// [is over](Session::is_over). Only without records nothing is begun.
    pub async fn append<R: AsRef<[u8]>>(&mut self, records: &[R]) -> Result<Appended, RequestError> {
        match self.begin(records, AnswerOn::Commit).await? {
            SessionDone::Appended(appended) => Ok(appended),
            SessionDone::Response(_) => unreachable!("an append ends as an append"),
        }
    }

    /// Proposes a command to the group's state machine, as bytes, and returns its response.
    ///
    /// # Errors
    /// As [`append`](Session::append); [`SessionRefusal::ResponseGone`] when it is applied and its response is not kept
    /// here.
    pub async fn propose(&mut self, command: impl AsRef<[u8]>) -> Result<Bytes, RequestError> {
        match self.begin(&[command], AnswerOn::Apply).await? {
            SessionDone::Response(response) => Ok(response),
            SessionDone::Appended(_) => unreachable!("a proposal ends as a proposal"),
        }
    }

    async fn begin<R: AsRef<[u8]>>(
        &mut self,
        records: &[R],
        answer: AnswerOn,
    ) -> Result<SessionDone, RequestError> {
        let invalid = |what| Err(RequestError::Invalid { what });
        match &self.unfinished {
            Some(Unfinished { is_refused: true, .. }) => return invalid("the session is over: open another"),
            Some(_) => return invalid("an earlier append of the session is unfinished"),
            None => {}
        }
        if records.is_empty() {
            return invalid("no records");
        }
        let block = RecordBlock::from_records(records);
        self.unfinished = Some(Unfinished { block, answer, is_refused: false });
        self.resume().await.map(|done| done.expect("there is something unfinished"))
    }

    /// Tries again what an earlier call left unfinished; `None` when there is nothing. Also when the session
    /// [is over](Session::is_over): another node may know more.
    ///
    /// # Errors
    /// As for that call.
    pub async fn resume(&mut self) -> Result<Option<SessionDone>, RequestError> {
        let Some(Unfinished { block, answer, .. }) = self.unfinished.clone() else { return Ok(None) };
        let count = block.count();
        let body = ClientBody::Append { block, answer, run: Some((self.id, self.next)) };
        let done = match self.engine.request(self.group, body).await {
            Ok(ReplyBody::Appended { first, count, index, term }) => {
                SessionDone::Appended(Appended { first, count, index, term })
            }
            Ok(ReplyBody::Responses { responses, .. }) => {
                let response = responses.records().next().unwrap_or_default();
                SessionDone::Response(Bytes::copy_from_slice(response))
            }
            Ok(_) => return Err(RequestError::Invalid { what: "the shard answered something else" }),
            Err(error) => self.settle(error, count, answer).await?,
        };
        self.advance(count);
        Ok(Some(done))
    }

    fn advance(&mut self, count: u32) {
        self.unfinished = None;
        self.next.0 += u64::from(count);
    }

    /// An attempt has failed. No error makes the session forget what was tried: its sequence would go to other records,
    /// and these would get the answer of the first.
    async fn settle(
        &mut self,
        error: RequestError,
        count: u32,
        answer: AnswerOn,
    ) -> Result<SessionDone, RequestError> {
        let is_final = match &error {
            RequestError::Session { refusal: SessionRefusal::ResponseGone { .. } } => {
                self.advance(count);
                false
            }
            // A leader that was deposed and has not noticed may be wrong about a session.
            RequestError::Session {
                refusal:
                    SessionRefusal::Unknown | SessionRefusal::OutOfOrder { .. } | SessionRefusal::Forgotten { .. },
            } => match self.outcome(self.next).await {
                Ok(RunOutcome::Committed { offset, index, term }) if answer == AnswerOn::Commit => {
                    return Ok(SessionDone::Appended(Appended { first: offset, count, index, term }));
                }
                Ok(outcome) => !outcome.is_open(self.next),
                Err(error) => matches!(error, RequestError::Session { .. }),
            },
            error => error.retry() == Retry::Never,
        };
        if let Some(unfinished) = &mut self.unfinished {
            unfinished.is_refused |= is_final;
        }
        Err(error)
    }

    /// What became of a record of this session, with all that was committed before. Only the leader says so.
    ///
    /// # Errors
    /// [`RequestError`]; asking changes nothing.
    pub async fn outcome(&self, sequence: Sequence) -> Result<RunOutcome, RequestError> {
        let body = ClientBody::Outcome { session: self.id, sequence };
        match self.engine.request(self.group, body).await? {
            ReplyBody::Outcome(outcome) => Ok(outcome),
            _ => Err(RequestError::Invalid { what: "the shard answered something else" }),
        }
    }

    /// Closes it, so that it takes no place any more. Only the leader does it.
    ///
    /// # Errors
    /// [`RequestError`]; it then expires by itself.
    pub async fn close(self) -> Result<(), RequestError> {
        let command = GroupCommand::CloseSession { session: self.id, owner: Owner(0) };
        self.engine.command(self.group, command).await.map(drop)
    }
}

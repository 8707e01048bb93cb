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

    /// Appends records, in order and without a gap, all or none.
    ///
    /// # Errors
    /// [`RequestError`]. What may still be had by [`resume`](Session::resume) is unfinished; before that nothing else
    /// is taken. Whatever will never be done is over.
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
        if self.unfinished.is_some() {
            return Err(RequestError::Invalid { what: "an earlier append of the session is unfinished" });
        }
        if records.is_empty() {
            return Err(RequestError::Invalid { what: "no records" });
        }
        self.unfinished = Some(Unfinished { block: RecordBlock::from_records(records), answer });
        self.resume().await.map(|done| done.expect("there is something unfinished"))
    }

    /// Tries again what an earlier call left unfinished; `None` when there is nothing.
    ///
    /// # Errors
    /// As for that call.
    pub async fn resume(&mut self) -> Result<Option<SessionDone>, RequestError> {
        let Some(Unfinished { block, answer }) = self.unfinished.clone() else { return Ok(None) };
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
            Err(error) => {
                self.handle_error(&error, count);
                return Err(error);
            }
        };
        self.unfinished = None;
        self.next.0 += u64::from(count);
        Ok(Some(done))
    }

    fn handle_error(&mut self, error: &RequestError, count: u32) {
        match error {
            RequestError::Session { refusal: SessionRefusal::ResponseGone { .. } } => {
                self.next.0 += u64::from(count);
                self.unfinished = None;
            }
            // A leader that was deposed and has not noticed may be wrong about a session.
            RequestError::Session { .. } => {}
            error if error.retry() == Retry::Never => self.unfinished = None,
            _ => {}
        }
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

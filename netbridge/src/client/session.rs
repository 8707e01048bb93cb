//! Appends and proposals that are done once, whatever happens on the way.
//!
//! A session counts its records, and the group remembers what it has of them: a retry, at whichever leader, gets the answer
//! of the first attempt. So a session retries what a [`Client`] by itself must leave as unknown.

use std::time::Duration;

use bytes::Bytes;
use iroh_raft_core::batch::RecordBlock;
use iroh_raft_core::{
    AnswerOn, GroupCommand, GroupId, Owner, RequestError, Retry, RunOutcome, Sequence, SessionId,
    SessionRefusal,
};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tokio::time::{Instant, sleep};

use super::call::{Appended, Outcome, Target};
use super::{Client, ClientError};
use crate::wire::ClientBody;

/// Pause after an attempt that the client's own retries gave up early.
const PAUSE: Duration = Duration::from_millis(20);

/// How something of a session ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum SessionDone {
    /// Records are on stable storage of a quorum.
    Appended(Appended),
    /// A command is applied: its response.
    Response(Bytes),
}

/// Records that were given to a session and whose end is not known.
///
/// Once a node may have had them no error makes the session forget them: their sequence would go to other records, and these
/// would get the answer of the first.
#[derive(Clone, Debug)]
struct Unfinished {
    block: RecordBlock,
    answer: AnswerOn,
    /// A node may have had them.
    is_handed_over: bool,
    /// They were refused for good since.
    is_refused: bool,
}

/// What a failed attempt comes to.
enum Settled {
    /// The records are there; their answer may be gone.
    Done(Result<SessionDone, SessionRefusal>),
    /// To be tried again.
    Open,
    /// Nobody will take them.
    Over(ClientError),
}

/// A client session of one group: see [`Client::open_session`]. One thing at a time: throughput comes from batches, and
/// from several sessions.
#[derive(Debug)]
pub struct Session {
    client: Client,
    group: GroupId,
    id: SessionId,
    next: Sequence,
    unfinished: Option<Unfinished>,
}

impl Client {
    /// Opens a session of a group. It expires once it was not used for `ttl`, by the leaders' clocks; what comes after that
    /// is refused. A group has a bounded number of sessions, and of each client: [`close`](Session::close) those
    /// that are not needed.
    ///
    /// # Errors
    /// [`ClientError`]; [`SessionRefusal`] says which bound is in the way.
    pub async fn open_session(&self, group: GroupId, ttl: Duration) -> Result<Session, ClientError> {
        let deadline = Instant::now() + self.deadline;
        let ttl_ms = u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX).max(1);
        loop {
            // Another one each time: an attempt that was lost must not come late and open what has expired.
            let mut session = SessionId::default();
            SmallRng::from_os_rng().fill(&mut session.0);
            // The node says whose it is.
            let command = GroupCommand::OpenSession { session, owner: Owner(0), ttl_ms };
            match self.until(deadline).command(group, command).await {
                Ok(_) => return Ok(Session::new(self.clone(), group, session)),
                Err(ClientError::OutcomeUnknown)
                    if Instant::now() < deadline && self.shared().pay_for_another() => {}
                Err(error) => return Err(error),
            }
        }
    }
}

impl Session {
    fn new(client: Client, group: GroupId, id: SessionId) -> Session {
        Session { client, group, id, next: Sequence(0), unfinished: None }
    }

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

    /// Whether it takes nothing any more: a node had its last records, and they were refused for good. Whether they are in the
    /// log is not known. [`resume`](Session::resume) may still find that they are, and then it goes on; otherwise open another
    /// session.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.unfinished.as_ref().is_some_and(|unfinished| unfinished.is_refused)
    }

    /// Appends records, in order and without a gap, all or none, once: it retries until the client's deadline, across
    /// leaders and lost connections, and returns the answer of the attempt that went through. Cancel safe, as far as that
    /// the end can still be had by [`resume`](Session::resume).
    ///
    /// # Errors
    /// [`ClientError::OutcomeUnknown`] when time is up, or the client's retries are spent: [`resume`](Session::resume) goes on. [`ClientError::Unfinished`]
    /// when that was not done. After any other error [`is_over`](Session::is_over) tells: if it is not over, nothing was done, and
    /// it takes other records; if it is, an attempt may have done it, and [`ClientError::Over`] is all that comes.
    pub async fn append<R: AsRef<[u8]>>(&mut self, records: &[R]) -> Result<Appended, ClientError> {
        match self.begin(records, AnswerOn::Commit).await? {
            SessionDone::Appended(appended) => Ok(appended),
            SessionDone::Response(_) => unreachable!("an append ends as an append"),
        }
    }

    /// Proposes a command to the group's state machine, once, and returns its response.
    ///
    /// # Errors
    /// As [`append`](Session::append); [`SessionRefusal::ResponseGone`] when it is applied and no node that was asked has
    /// kept its response.
    pub async fn propose(&mut self, command: impl AsRef<[u8]>) -> Result<Bytes, ClientError> {
        match self.begin(&[command], AnswerOn::Apply).await? {
            SessionDone::Response(response) => Ok(response),
            SessionDone::Appended(_) => unreachable!("a proposal ends as a proposal"),
        }
    }

    async fn begin<R: AsRef<[u8]>>(
        &mut self,
        records: &[R],
        answer: AnswerOn,
    ) -> Result<SessionDone, ClientError> {
        match &self.unfinished {
            Some(Unfinished { is_refused: true, .. }) => return Err(ClientError::Over),
            Some(_) => return Err(ClientError::Unfinished),
            None => {}
        }
        self.client.shared().charge(records)?;
        let block = RecordBlock::from_records(records);
        self.finish(Unfinished { block, answer, is_handed_over: false, is_refused: false }).await
    }

    /// Goes on with what an earlier call left unfinished; `None` when there is nothing.
    ///
    /// # Errors
    /// As for that call.
    pub async fn resume(&mut self) -> Result<Option<SessionDone>, ClientError> {
        match self.unfinished.clone() {
            Some(unfinished) => self.finish(unfinished).await.map(Some),
            None => Ok(None),
        }
    }

    async fn finish(&mut self, mut unfinished: Unfinished) -> Result<SessionDone, ClientError> {
        let deadline = Instant::now() + self.client.deadline;
        let count = unfinished.block.count();
        loop {
            let was_handed_over = unfinished.is_handed_over;
            // Before the attempt: whoever waits for it may go away in the middle.
            self.unfinished = Some(Unfinished { is_handed_over: true, ..unfinished.clone() });
            let client = self.client.until(deadline);
            let Unfinished { block, answer, .. } = unfinished.clone();
            let body = ClientBody::Append { block, answer, run: Some((self.id, self.next)) };
            let error = match client.ask(self.group, body, Target::Leader).await {
                Ok(Outcome::Appended(appended)) => {
                    return Ok(self.done(count, SessionDone::Appended(appended)));
                }
                Ok(Outcome::Response(response)) => {
                    return Ok(self.done(count, SessionDone::Response(response)));
                }
                Ok(_) => unreachable!("succeed() gives an append nothing else"),
                Err(error) => error,
            };
            unfinished.is_handed_over = was_handed_over || may_be_of_a_node(&error);
            self.unfinished = Some(unfinished.clone());
            let settled = match error {
                ClientError::Request(RequestError::Session { refusal }) => {
                    self.settle(refusal, &unfinished, deadline).await
                }
                // Nothing was done, and the session takes other records.
                error @ ClientError::RetriesSpent { .. } if !unfinished.is_handed_over => {
                    Settled::Over(error)
                }
                error if error.retry() == Retry::Never => Settled::Over(error),
                _ => Settled::Open,
            };
            match settled {
                Settled::Done(Ok(done)) => return Ok(self.done(count, done)),
                Settled::Done(Err(refusal)) => {
                    self.advance(count);
                    return Err(RequestError::Session { refusal }.into());
                }
                Settled::Over(error) => {
                    unfinished.is_refused = true;
                    self.unfinished = Some(unfinished).filter(|unfinished| unfinished.is_handed_over);
                    return Err(error);
                }
                Settled::Open => {}
            }
            if Instant::now() + PAUSE >= deadline {
                return Err(ClientError::OutcomeUnknown);
            }
            sleep(PAUSE).await;
            // Another attempt of the session's is one more of the client's. Whoever resumes at once has had the pause.
            if !self.client.shared().pay_for_another() {
                return Err(ClientError::OutcomeUnknown);
            }
        }
    }

    fn done(&mut self, count: u32, done: SessionDone) -> SessionDone {
        self.advance(count);
        done
    }

    fn advance(&mut self, count: u32) {
        self.unfinished = None;
        self.next.0 += u64::from(count);
    }

    /// A leader refuses the records. One that was deposed and has not noticed may be wrong about a session: whoever leads for
    /// certain is asked.
    async fn settle(&self, refusal: SessionRefusal, unfinished: &Unfinished, deadline: Instant) -> Settled {
        let over = |refusal| Settled::Over(RequestError::Session { refusal }.into());
        match refusal {
            SessionRefusal::ResponseGone { .. } => return Settled::Done(Err(refusal)),
            SessionRefusal::Unknown
            | SessionRefusal::OutOfOrder { .. }
            | SessionRefusal::Forgotten { .. } => {}
            _ => return over(refusal),
        }
        match self.client.until(deadline).outcome_of(self.group, self.id, self.next).await {
            Ok(RunOutcome::Committed { offset, index, term }) if unfinished.answer == AnswerOn::Commit => {
                Settled::Done(Ok(SessionDone::Appended(Appended { offset, index, term })))
            }
            Ok(outcome) if outcome.is_open(self.next) => Settled::Open,
            Ok(_) => over(refusal),
            Err(ClientError::Request(RequestError::Session { refusal })) => over(refusal),
            Err(_) => Settled::Open,
        }
    }

    /// What became of a record of this session, with all that was committed before. A record that is not there may still
    /// be on its way, if it was sent.
    ///
    /// # Errors
    /// [`ClientError`]; asking changes nothing.
    pub async fn outcome(&self, sequence: Sequence) -> Result<RunOutcome, ClientError> {
        self.client.outcome_of(self.group, self.id, sequence).await
    }

    /// Closes it, so that it takes no place any more.
    ///
    /// # Errors
    /// [`ClientError`]; it then expires by itself.
    pub async fn close(self) -> Result<(), ClientError> {
        let command = GroupCommand::CloseSession { session: self.id, owner: Owner(0) };
        self.client.command(self.group, command).await.map(drop)
    }
}

/// Whether a node may have had what failed so: nobody says any of the others of a request that was sent and not answered.
fn may_be_of_a_node(error: &ClientError) -> bool {
    matches!(error, ClientError::Request(_) | ClientError::OutcomeUnknown | ClientError::Protocol { .. })
}

impl Client {
    async fn outcome_of(
        &self,
        group: GroupId,
        session: SessionId,
        sequence: Sequence,
    ) -> Result<RunOutcome, ClientError> {
        match self.ask(group, ClientBody::Outcome { session, sequence }, Target::Leader).await? {
            Outcome::Run(outcome) => Ok(outcome),
            _ => unreachable!("succeed() gives an outcome nothing else"),
        }
    }
}

//! Client sessions: what a group remembers so that a retry is applied once (Raft thesis 6.3).
//!
//! A client opens a session and counts its records. What it appends together is a *run*; the runs of a session follow
//! each other without a gap. The group remembers the next sequence of each session and its last runs with the answers
//! that they got, so a run that comes again is answered and not appended again.
//!
//! The table is a function of the log: opened, closed and touched by its entries alone, with the times that leaders
//! stamped on these. Replicas keep it as of the commit index ([`crate::GroupMeta`]); a leader also as of the end of its log,
//! and judges by that one what may enter the log.
//!
//! Bounded: [`SESSIONS_MAX`] sessions, of [`SESSION_RUNS_MAX`] runs each.

use std::collections::{BTreeMap, VecDeque};

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::batch::Batch;
use crate::error::Retry;
use crate::group_command::GroupCommand;
use crate::ids::{Index, Offset, Owner, Sequence, SessionId, Term, WallTime};
use crate::mutants::{self, Mutant};

/// Sessions that a group has at most.
pub const SESSIONS_MAX: usize = 256;
/// Runs of a session that are remembered.
pub const SESSION_RUNS_MAX: usize = 64;

const TABLE_BYTES: usize = 8;
const SESSION_BYTES: usize = 56;
const RUN_BYTES: usize = 28;
/// Bytes of an encoded table at most.
pub(crate) const SESSIONS_BYTES_MAX: usize =
    TABLE_BYTES + SESSIONS_MAX * (SESSION_BYTES + SESSION_RUNS_MAX * RUN_BYTES);

/// Why a request of a session is refused. Nothing was done, unless it says so.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, thiserror::Error)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub enum SessionRefusal {
    /// It was never opened, is closed or expired, or is another client's. As the leader knows: one that was deposed and has
    /// not noticed says so of a session that was opened since. [`RunOutcome`] is asked of one that leads for certain.
    #[error("no such session: it has expired, was closed, or is another client's; open a new one")]
    Unknown,
    /// Records before these have not come yet.
    #[error("the session's next record is {expected}")]
    OutOfOrder {
        /// The next sequence of the session.
        expected: Sequence,
    },
    /// The records are in the log, and their answer is no longer remembered.
    #[error(
        "appended before, and too long ago to say where: the group remembers answers from record {oldest} on"
    )]
    Forgotten {
        /// The first record whose answer is remembered.
        oldest: Sequence,
    },
    /// Some of the records came before in another division. A run is sent again as it was, or not at all.
    #[error("record {first} and {} more were appended together: a retry has to be of just these", count - 1)]
    Overlap {
        /// First record of that run.
        first: Sequence,
        /// Its number of records.
        count: u32,
    },
    /// The group has as many sessions as it may.
    #[error("the group has {sessions_max} sessions already: wait until some expire")]
    Full {
        /// Sessions that a group has at most.
        sessions_max: u32,
    },
    /// The client has as many sessions as it may.
    #[error("the client has {sessions_max} sessions of the group already: close some")]
    OwnerFull {
        /// Sessions that a client may have.
        sessions_max: u32,
    },
    /// The session would live too long, or not at all.
    #[error("a session may go unused for 1 to {ttl_ms_max} ms")]
    Ttl {
        /// Longest time without use, in milliseconds.
        ttl_ms_max: u64,
    },
    /// The commands are applied, once; their responses are no longer kept on this node.
    #[error("applied at offset {first}, but the responses are no longer kept")]
    ResponseGone {
        /// Offset of the first command.
        first: Offset,
    },
}

impl SessionRefusal {
    /// Whether trying again can help, be it after what the refusal asks for.
    #[must_use]
    pub fn retry(&self) -> Retry {
        match self {
            SessionRefusal::Full { .. } | SessionRefusal::OwnerFull { .. } => Retry::Safe,
            // A client sends its runs one after the other: what is missing will not come.
            SessionRefusal::OutOfOrder { .. }
            | SessionRefusal::Unknown
            | SessionRefusal::Forgotten { .. }
            | SessionRefusal::Overlap { .. }
            | SessionRefusal::Ttl { .. }
            | SessionRefusal::ResponseGone { .. } => Retry::Never,
        }
    }
}

/// What became of a record of a session.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub enum RunOutcome {
    /// It is on stable storage of a quorum, for good.
    Committed {
        /// Its offset.
        offset: Offset,
        /// Index of its entry.
        index: Index,
        /// Term of its entry.
        term: Term,
    },
    /// It is in the leader's log and not committed yet.
    Pending,
    /// It is not in the leader's log. What is still on its way may yet come.
    NotThere {
        /// The next sequence of the session.
        expected: Sequence,
    },
    /// It is committed, too long ago to say where.
    Forgotten,
}

impl RunOutcome {
    /// Whether a run that begins with the record asked for may come again: it gets its answer, or goes into the log. Otherwise
    /// the session is over for whoever sends it.
    #[must_use]
    pub fn is_open(&self, first: Sequence) -> bool {
        match *self {
            RunOutcome::Committed { .. } | RunOutcome::Pending => true,
            RunOutcome::NotThere { expected } => expected == first,
            RunOutcome::Forgotten => false,
        }
    }
}

/// Where a run stands in the log: the answer that it got.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Place {
    pub(crate) first: Offset,
    pub(crate) count: u32,
    pub(crate) index: Index,
    pub(crate) term: Term,
}

/// What is to be done with a run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Verdict {
    /// It goes into the log.
    New,
    /// It is there.
    Repeated(Place),
    Refused(SessionRefusal),
}

#[derive(Clone, PartialEq, Eq, Debug)]
struct Session {
    owner: Owner,
    ttl_ms: u64,
    /// Time of the newest entry that has something of it.
    touched: WallTime,
    next: Sequence,
    /// Oldest first. They follow each other, and the last ends at `next`.
    runs: VecDeque<Place>,
}

/// What became of a command to open or close a session.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Opened {
    Done,
    Full,
    Unknown,
}

/// The sessions of a group. See the module's documentation.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub(crate) struct Sessions {
    sessions: BTreeMap<SessionId, Session>,
}

impl Session {
    fn is_expired(&self, at: WallTime) -> bool {
        self.touched.0.saturating_add(self.ttl_ms) < at.0
    }

    /// The remembered runs, newest first, each with its first sequence.
    fn runs(&self) -> impl Iterator<Item = (Sequence, Place)> {
        self.runs.iter().rev().scan(self.next.0, |end, run| {
            *end -= u64::from(run.count);
            Some((Sequence(*end), *run))
        })
    }

    /// The first sequence that is remembered.
    fn oldest(&self) -> Sequence {
        let counted: u64 = self.runs.iter().map(|run| u64::from(run.count)).sum();
        Sequence(self.next.0 - counted)
    }

    fn push(&mut self, run: Place, at: WallTime) {
        self.next.0 += u64::from(run.count);
        self.touched = self.touched.max(at);
        if self.runs.len() == SESSION_RUNS_MAX {
            self.runs.pop_front();
        }
        self.runs.push_back(run);
    }
}

impl Sessions {
    pub(crate) fn is_empty(&self) -> bool {
        self.sessions.is_empty()
    }

    /// Each with its next sequence.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (SessionId, Sequence)> {
        self.sessions.iter().map(|(id, session)| (*id, session.next))
    }

    /// Sessions that a client has at a time.
    pub(crate) fn count_of(&self, owner: Owner, at: WallTime) -> usize {
        let is_counted = |session: &&Session| session.owner == owner && !session.is_expired(at);
        self.sessions.values().filter(is_counted).count()
    }

    pub(crate) fn is_open(&self, session: SessionId, owner: Owner, at: WallTime) -> bool {
        self.find(session, Some(owner), at).is_some()
    }

    fn find(&self, session: SessionId, owner: Option<Owner>, at: WallTime) -> Option<&Session> {
        let found = self.sessions.get(&session).filter(|found| !found.is_expired(at));
        found.filter(|found| owner.is_none_or(|owner| owner == found.owner))
    }

    /// What is to be done with a run at a leader's time. `owner` is whoever asks for it; a run that stands in the log has been
    /// asked for by the right one.
    pub(crate) fn judge(
        &self,
        session: SessionId,
        owner: Option<Owner>,
        first: Sequence,
        count: u32,
        at: WallTime,
    ) -> Verdict {
        let Some(found) = self.find(session, owner, at) else {
            return Verdict::Refused(SessionRefusal::Unknown);
        };
        let expected = found.next;
        let Some(end) = first.0.checked_add(u64::from(count)) else {
            return Verdict::Refused(SessionRefusal::OutOfOrder { expected });
        };
        if first == expected {
            return Verdict::New;
        }
        if first > expected {
            return Verdict::Refused(SessionRefusal::OutOfOrder { expected });
        }
        if mutants::is(Mutant::WindowOffByOne)
            && found.runs.back().is_some_and(|last| first.0 + u64::from(last.count) == expected.0)
        {
            return Verdict::New;
        }
        let oldest = found.oldest();
        if first < oldest && end <= oldest.0 {
            return Verdict::Refused(SessionRefusal::Forgotten { oldest });
        }
        match found.runs().find(|(run, place)| run.0 < end && run.0 + u64::from(place.count) > first.0) {
            Some((run, place)) if (run, place.count) == (first, count) => Verdict::Repeated(place),
            Some((run, place)) => {
                Verdict::Refused(SessionRefusal::Overlap { first: run, count: place.count })
            }
            None => Verdict::Refused(SessionRefusal::Forgotten { oldest }),
        }
    }

    /// What became of a record, as far as the log goes that this table is of.
    pub(crate) fn outcome(
        &self,
        session: SessionId,
        owner: Owner,
        sequence: Sequence,
        (at, commit): (WallTime, Index),
    ) -> Result<RunOutcome, SessionRefusal> {
        let found = self.find(session, Some(owner), at).ok_or(SessionRefusal::Unknown)?;
        if sequence >= found.next {
            return Ok(RunOutcome::NotThere { expected: found.next });
        }
        let Some((first, place)) = found.runs().find(|(first, _)| *first <= sequence) else {
            return Ok(RunOutcome::Forgotten);
        };
        if place.index > commit {
            return Ok(RunOutcome::Pending);
        }
        let offset = Offset(place.first.0 + (sequence.0 - first.0));
        Ok(RunOutcome::Committed { offset, index: place.index, term: place.term })
    }

    /// A run is in the log. One that a leader should not have put there changes nothing, the same on all replicas.
    pub(crate) fn append(&mut self, session: SessionId, first: Sequence, run: Place, at: WallTime) {
        if self.judge(session, None, first, run.count, at) == Verdict::New
            && let Some(found) = self.sessions.get_mut(&session)
        {
            found.push(run, at);
        }
    }

    /// The runs of a batch are in the log.
    pub(crate) fn append_batch(&mut self, index: Index, term: Term, batch: &Batch<'_>) {
        for run in batch.runs() {
            let first = Offset(batch.base().0 + u64::from(run.place));
            self.append(run.session, run.first, Place { first, count: run.count, index, term }, batch.at());
        }
    }

    /// A command of the log that is about a session; others change nothing. What has expired by then makes room for
    /// what is opened.
    pub(crate) fn apply(&mut self, command: &GroupCommand, at: WallTime) -> Opened {
        match *command {
            GroupCommand::OpenSession { session, owner, ttl_ms } => {
                self.sessions.retain(|_, known| !known.is_expired(at));
                if let Some(known) = self.sessions.get_mut(&session) {
                    if known.owner != owner {
                        return Opened::Unknown;
                    }
                    (known.touched, known.ttl_ms) = (known.touched.max(at), ttl_ms);
                    return Opened::Done;
                }
                if self.sessions.len() >= SESSIONS_MAX {
                    return Opened::Full;
                }
                let runs = VecDeque::new();
                self.sessions
                    .insert(session, Session { owner, ttl_ms, touched: at, next: Sequence(0), runs });
                Opened::Done
            }
            GroupCommand::CloseSession { session, owner } => {
                if self.sessions.get(&session).is_some_and(|known| known.owner != owner) {
                    return Opened::Unknown;
                }
                self.sessions.remove(&session);
                Opened::Done
            }
            _ => Opened::Done,
        }
    }

    /// Bytes of the table as it is stored.
    pub(crate) fn encoded_bytes(&self) -> usize {
        let session = |session: &Session| SESSION_BYTES + session.runs.len() * RUN_BYTES;
        TABLE_BYTES + self.sessions.values().map(session).sum::<usize>()
    }

    pub(crate) fn encode(&self, data: &mut BytesMut) {
        data.put_u32_le(self.sessions.len() as u32);
        data.put_u32_le(0);
        for (id, session) in &self.sessions {
            data.put_slice(&id.0);
            data.put_u64_le(session.owner.0);
            data.put_u64_le(session.ttl_ms);
            data.put_u64_le(session.touched.0);
            data.put_u64_le(session.next.0);
            data.put_u32_le(session.runs.len() as u32);
            data.put_u32_le(0);
            for run in &session.runs {
                data.put_u32_le(run.count);
                data.put_u64_le(run.first.0);
                data.put_u64_le(run.index.0);
                data.put_u64_le(run.term.0);
            }
        }
    }

    /// Reads a table from the front of `data`; `None` when it is not what [`encode`](Sessions::encode) writes.
    pub(crate) fn decode(data: &mut Bytes) -> Option<Sessions> {
        let (count, zero) = (data.try_get_u32_le().ok()? as usize, data.try_get_u32_le().ok()?);
        if !(1..=SESSIONS_MAX).contains(&count) || zero != 0 {
            return None;
        }
        let mut sessions = BTreeMap::new();
        for _ in 0..count {
            let mut id = SessionId::default();
            data.try_copy_to_slice(&mut id.0).ok()?;
            // In order, each once: a table has one encoding.
            if sessions.last_key_value().is_some_and(|(before, _)| *before >= id) {
                return None;
            }
            sessions.insert(id, decode_session(data)?);
        }
        Some(Sessions { sessions })
    }
}

fn decode_session(data: &mut Bytes) -> Option<Session> {
    let (owner, ttl_ms) = (Owner(data.try_get_u64_le().ok()?), data.try_get_u64_le().ok()?);
    let (touched, next) = (WallTime(data.try_get_u64_le().ok()?), Sequence(data.try_get_u64_le().ok()?));
    let (count, zero) = (data.try_get_u32_le().ok()? as usize, data.try_get_u32_le().ok()?);
    if count > SESSION_RUNS_MAX || zero != 0 {
        return None;
    }
    let mut runs: VecDeque<Place> = VecDeque::with_capacity(count);
    let mut counted: u64 = 0;
    for _ in 0..count {
        let count = data.try_get_u32_le().ok()?;
        let first = Offset(data.try_get_u64_le().ok()?);
        let (index, term) = (Index(data.try_get_u64_le().ok()?), Term(data.try_get_u64_le().ok()?));
        counted += u64::from(count);
        let begins_at = runs.back().map_or(0, |last| last.first.0 + u64::from(last.count));
        if count == 0 || first.0 < begins_at || first.0.checked_add(u64::from(count)).is_none() {
            return None;
        }
        runs.push_back(Place { first, count, index, term });
    }
    (counted <= next.0).then_some(Session { owner, ttl_ms, touched, next, runs })
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: SessionId = SessionId([1; 16]);
    const OWNER: Owner = Owner(9);

    fn opened() -> Sessions {
        let mut sessions = Sessions::default();
        let open = GroupCommand::OpenSession { session: ID, owner: OWNER, ttl_ms: 100 };
        assert_eq!(sessions.apply(&open, WallTime(1_000)), Opened::Done);
        sessions
    }

    fn place(first: u64, count: u32) -> Place {
        Place { first: Offset(first), count, index: Index(first + 1), term: Term(2) }
    }

    fn append(sessions: &mut Sessions, first: u64, count: u32) {
        sessions.append(ID, Sequence(first), place(first * 10, count), WallTime(1_000));
    }

    fn judge(sessions: &Sessions, first: u64, count: u32) -> Verdict {
        sessions.judge(ID, Some(OWNER), Sequence(first), count, WallTime(1_050))
    }

    fn refused(sessions: &Sessions, first: u64, count: u32) -> SessionRefusal {
        match judge(sessions, first, count) {
            Verdict::Refused(refusal) => refusal,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_run_is_new_once() {
        let mut sessions = opened();
        assert_eq!(judge(&sessions, 0, 3), Verdict::New);
        append(&mut sessions, 0, 3);
        assert_eq!(judge(&sessions, 0, 3), Verdict::Repeated(place(0, 3)));
        assert_eq!(judge(&sessions, 3, 1), Verdict::New);
        append(&mut sessions, 3, 1);
        assert_eq!(judge(&sessions, 3, 1), Verdict::Repeated(place(30, 1)));
        assert_eq!(judge(&sessions, 0, 3), Verdict::Repeated(place(0, 3)));
        // What a leader should not have put into the log changes nothing.
        let before = sessions.clone();
        append(&mut sessions, 3, 1);
        append(&mut sessions, 9, 1);
        assert_eq!(sessions, before);
    }

    #[test]
    fn other_divisions_and_gaps_are_told() {
        let mut sessions = opened();
        append(&mut sessions, 0, 3);
        append(&mut sessions, 3, 2);
        let expected = Sequence(5);
        assert_eq!(refused(&sessions, 6, 1), SessionRefusal::OutOfOrder { expected });
        assert_eq!(refused(&sessions, u64::MAX, 9), SessionRefusal::OutOfOrder { expected });
        for (first, count) in [(0, 2), (1, 2), (2, 1), (1, 1)] {
            let run = SessionRefusal::Overlap { first: Sequence(0), count: 3 };
            assert_eq!(refused(&sessions, first, count), run, "{first} and {count}");
        }
        for (first, count) in [(3, 3), (2, 2), (4, 4), (0, 9)] {
            let run = SessionRefusal::Overlap { first: Sequence(3), count: 2 };
            assert_eq!(refused(&sessions, first, count), run, "{first} and {count}");
        }
    }

    #[test]
    fn what_is_older_than_the_window_is_forgotten() {
        let mut sessions = opened();
        let runs = SESSION_RUNS_MAX as u64;
        (0..runs).for_each(|sequence| append(&mut sessions, sequence, 1));
        assert_eq!(judge(&sessions, 0, 1), Verdict::Repeated(place(0, 1)));
        append(&mut sessions, runs, 1);
        let oldest = Sequence(1);
        assert_eq!(refused(&sessions, 0, 1), SessionRefusal::Forgotten { oldest });
        assert_eq!(judge(&sessions, 1, 1), Verdict::Repeated(place(10, 1)));
        let outcome = |sequence| {
            sessions.outcome(ID, OWNER, Sequence(sequence), (WallTime(1_050), Index(runs * 10))).unwrap()
        };
        assert_eq!(outcome(0), RunOutcome::Forgotten);
        assert_eq!(outcome(runs), RunOutcome::Pending);
        let (offset, index, term) = (Offset(10), Index(11), Term(2));
        assert_eq!(outcome(1), RunOutcome::Committed { offset, index, term });
        assert_eq!(outcome(runs + 1), RunOutcome::NotThere { expected: Sequence(runs + 1) });
    }

    #[test]
    fn it_lives_as_long_as_it_is_used_and_for_its_owner_alone() {
        let mut sessions = opened();
        let judge =
            |sessions: &Sessions, owner, at| sessions.judge(ID, Some(owner), Sequence(1), 1, WallTime(at));
        let unknown = Verdict::Refused(SessionRefusal::Unknown);
        append(&mut sessions, 0, 1);
        assert_eq!(judge(&sessions, OWNER, 1_100), Verdict::New);
        assert_eq!(judge(&sessions, OWNER, 1_101), unknown);
        assert_eq!(judge(&sessions, Owner(8), 1_000), unknown);
        sessions.append(ID, Sequence(1), place(10, 1), WallTime(1_090));
        assert_eq!(sessions.judge(ID, None, Sequence(2), 1, WallTime(1_190)), Verdict::New);
        let stranger = GroupCommand::CloseSession { session: ID, owner: Owner(8) };
        assert_eq!(sessions.apply(&stranger, WallTime(1_090)), Opened::Unknown);
        assert_eq!(
            (sessions.count_of(OWNER, WallTime(1_190)), sessions.count_of(OWNER, WallTime(1_191))),
            (1, 0)
        );
        let close = GroupCommand::CloseSession { session: ID, owner: OWNER };
        assert_eq!(sessions.apply(&close, WallTime(1_090)), Opened::Done);
        assert_eq!(judge(&sessions, OWNER, 1_090), unknown);
    }

    #[test]
    fn a_full_table_takes_another_session_once_one_has_expired() {
        let mut sessions = Sessions::default();
        let open = |number: usize, ttl_ms| {
            let mut session = SessionId::default();
            session.0[..8].copy_from_slice(&number.to_le_bytes());
            GroupCommand::OpenSession { session, owner: OWNER, ttl_ms }
        };
        for number in 0..SESSIONS_MAX {
            assert_eq!(
                sessions.apply(&open(number, if number == 7 { 10 } else { 99 }), WallTime(5)),
                Opened::Done
            );
        }
        assert_eq!(sessions.apply(&open(SESSIONS_MAX, 99), WallTime(15)), Opened::Full);
        assert_eq!(sessions.apply(&open(0, 99), WallTime(15)), Opened::Done);
        assert_eq!(sessions.apply(&open(SESSIONS_MAX, 99), WallTime(16)), Opened::Done);
    }

    #[test]
    fn a_table_is_read_as_it_was_written_and_no_cut_of_it() {
        let mut sessions = opened();
        (0..SESSION_RUNS_MAX as u64 + 3).for_each(|sequence| append(&mut sessions, sequence, 1));
        let other = GroupCommand::OpenSession { session: SessionId([3; 16]), owner: Owner(0), ttl_ms: 7 };
        sessions.apply(&other, WallTime(1_000));
        let mut data = BytesMut::new();
        sessions.encode(&mut data);
        let data = data.freeze();
        assert_eq!(data.len(), sessions.encoded_bytes());
        assert_eq!(Sessions::decode(&mut data.clone()), Some(sessions));
        for cut in 0..data.len() {
            assert_eq!(Sessions::decode(&mut data.slice(..cut)), None, "cut at {cut}");
        }
    }
}

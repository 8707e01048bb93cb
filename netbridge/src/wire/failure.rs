//! Why a request failed, as numbers.

use std::sync::Mutex;

use iroh_raft_core::{
    BusyReason, Index, MembersRefusal, NodeId, Offset, RecoveryRefusal, RequestError, Sequence,
    SessionRefusal, Term, TransferError,
};

use super::FrameError;

/// Bytes of the text of [`RequestError::Invalid`] on the wire at most.
pub(super) const TEXT_BYTES_MAX: usize = 120;

/// The fields of a [`RequestError`]; those that an error does not use are zero or empty.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(super) struct Failure<'a> {
    pub(super) code: u8,
    pub(super) detail: u8,
    pub(super) first: u64,
    pub(super) second: u64,
    pub(super) number: u32,
    pub(super) text: &'a str,
}

impl Failure<'static> {
    pub(super) fn of(error: &RequestError) -> Failure<'static> {
        let plain = |code| Failure { code, ..Failure::default() };
        let node = |leader: Option<NodeId>| leader.map_or(0, |node| node.0);
        match *error {
            RequestError::NotLeader { leader } => Failure { first: node(leader), ..plain(1) },
            RequestError::Busy { reason, retry_after_ms } => {
                Failure { detail: number_of(reason), number: retry_after_ms, ..plain(2) }
            }
            RequestError::OutcomeUnknown { leader } => Failure { first: node(leader), ..plain(3) },
            RequestError::Timeout => plain(4),
            RequestError::UnknownGroup => plain(5),
            RequestError::TooLarge { bytes, bytes_max } => {
                Failure { first: bytes, second: bytes_max, ..plain(6) }
            }
            RequestError::Invalid { what } => {
                let end = what.floor_char_boundary(TEXT_BYTES_MAX);
                Failure { text: what.split_at(end).0, ..plain(7) }
            }
            RequestError::PastEnd { from, end } => Failure { first: from.0, second: end.0, ..plain(8) },
            RequestError::Quarantined => plain(9),
            RequestError::Fenced => plain(10),
            RequestError::Denied => plain(11),
            RequestError::ShuttingDown => plain(12),
            RequestError::Members { refusal } => of_refusal(refusal),
            RequestError::GroupExists => plain(16),
            RequestError::GroupRemoved => plain(17),
            RequestError::BeforeStart { from, start } => {
                Failure { first: from.0, second: start.0, ..plain(14) }
            }
            RequestError::CursorsFull { cursors_max } => Failure { number: cursors_max, ..plain(15) },
            RequestError::Session { refusal } => of_session(refusal),
            RequestError::Recovery { refusal } => of_recovery(refusal),
            RequestError::Transfer { refusal } => of_transfer(refusal),
        }
    }
}

impl Failure<'_> {
    /// The error with these fields. Fields that it does not use must be zero or empty.
    pub(super) fn error(&self) -> Result<RequestError, FrameError> {
        let leader = Some(NodeId(self.first)).filter(|node| node.0 != 0);
        let error = match self.code {
            1 => RequestError::NotLeader { leader },
            2 => RequestError::Busy { reason: reason_of(self.detail)?, retry_after_ms: self.number },
            3 => RequestError::OutcomeUnknown { leader },
            4 => RequestError::Timeout,
            5 => RequestError::UnknownGroup,
            6 => RequestError::TooLarge { bytes: self.first, bytes_max: self.second },
            7 => RequestError::Invalid { what: kept(self.text)? },
            8 => RequestError::PastEnd { from: Offset(self.first), end: Offset(self.second) },
            9 => RequestError::Quarantined,
            10 => RequestError::Fenced,
            11 => RequestError::Denied,
            12 => RequestError::ShuttingDown,
            13 => RequestError::Members { refusal: self.refusal()? },
            14 => RequestError::BeforeStart { from: Offset(self.first), start: Offset(self.second) },
            15 => RequestError::CursorsFull { cursors_max: self.number },
            16 => RequestError::GroupExists,
            17 => RequestError::GroupRemoved,
            18 => RequestError::Session { refusal: self.session()? },
            19 => RequestError::Recovery { refusal: self.recovery()? },
            20 => RequestError::Transfer { refusal: self.transfer()? },
            number => return Err(FrameError::UnknownNumber { what: "reason of a failure", number }),
        };
        let used = Failure::of(&error);
        if (Failure { text: "", ..used }) != (Failure { text: "", ..*self })
            || used.text.is_empty() != self.text.is_empty()
        {
            return Err(FrameError::Reserved { what: "a field that its reason of failure does not use" });
        }
        Ok(error)
    }

    fn session(&self) -> Result<SessionRefusal, FrameError> {
        let sequence = Sequence(self.first);
        Ok(match self.detail {
            1 => SessionRefusal::Unknown,
            2 => SessionRefusal::OutOfOrder { expected: sequence },
            3 => SessionRefusal::Forgotten { oldest: sequence },
            4 => SessionRefusal::Overlap { first: sequence, count: self.number },
            5 => SessionRefusal::Full { sessions_max: self.number },
            6 => SessionRefusal::OwnerFull { sessions_max: self.number },
            7 => SessionRefusal::Ttl { ttl_ms_max: self.first },
            8 => SessionRefusal::ResponseGone { first: Offset(self.first) },
            number => return Err(FrameError::UnknownNumber { what: "reason to refuse a session", number }),
        })
    }

    fn recovery(&self) -> Result<RecoveryRefusal, FrameError> {
        let node = NodeId(self.first);
        Ok(match self.detail {
            1 => RecoveryRefusal::Malformed,
            2 => RecoveryRefusal::HasLeader { leader: Some(node).filter(|node| node.0 != 0) },
            3 => RecoveryRefusal::Changed { last: Index(self.first), term: Term(self.second) },
            4 => {
                // What does not fit is found by the comparison with what a sender writes.
                let left = u32::try_from(self.first).unwrap_or(u32::MAX);
                RecoveryRefusal::QuorumLeft { left, needed: self.number }
            }
            5 => RecoveryRefusal::Lives { node },
            6 => RecoveryRefusal::UnderRepair,
            7 => RecoveryRefusal::NotVoter { voter: node },
            8 => RecoveryRefusal::NoTerm { term: Term(self.first) },
            number => {
                return Err(FrameError::UnknownNumber { what: "reason to refuse a recovery", number });
            }
        })
    }

    fn transfer(&self) -> Result<TransferError, FrameError> {
        let to = NodeId(self.first);
        Ok(match self.detail {
            1 => TransferError::UnknownTarget { to },
            2 => TransferError::NotVoter { to },
            3 => TransferError::NotAlive { to },
            4 => TransferError::NobodyAlive,
            5 => TransferError::UnderWay { to },
            6 => TransferError::TimedOut { to },
            7 => TransferError::WonByAnother { leader: to, term: Term(self.second) },
            number => {
                return Err(FrameError::UnknownNumber { what: "reason not to hand over", number });
            }
        })
    }

    fn refusal(&self) -> Result<MembersRefusal, FrameError> {
        let node = NodeId(self.first);
        match self.detail {
            1 => Ok(MembersRefusal::Malformed),
            2 => Ok(MembersRefusal::NoVoters),
            3 => Ok(MembersRefusal::NotLearner { node }),
            4 => Ok(MembersRefusal::Lagging { node }),
            5 => {
                // What does not fit is found by the comparison with what a sender writes.
                let alive = u32::try_from(self.first).unwrap_or(u32::MAX);
                Ok(MembersRefusal::WouldLoseQuorum { alive, needed: self.number })
            }
            number => Err(FrameError::UnknownNumber { what: "reason to refuse members", number }),
        }
    }
}

fn of_refusal(refusal: MembersRefusal) -> Failure<'static> {
    let numbered = |detail| Failure { code: 13, detail, ..Failure::default() };
    match refusal {
        MembersRefusal::Malformed => numbered(1),
        MembersRefusal::NoVoters => numbered(2),
        MembersRefusal::NotLearner { node } => Failure { first: node.0, ..numbered(3) },
        MembersRefusal::Lagging { node } => Failure { first: node.0, ..numbered(4) },
        MembersRefusal::WouldLoseQuorum { alive, needed } => {
            Failure { first: u64::from(alive), number: needed, ..numbered(5) }
        }
    }
}

fn of_session(refusal: SessionRefusal) -> Failure<'static> {
    let numbered = |detail| Failure { code: 18, detail, ..Failure::default() };
    match refusal {
        SessionRefusal::Unknown => numbered(1),
        SessionRefusal::OutOfOrder { expected } => Failure { first: expected.0, ..numbered(2) },
        SessionRefusal::Forgotten { oldest } => Failure { first: oldest.0, ..numbered(3) },
        SessionRefusal::Overlap { first, count } => Failure { first: first.0, number: count, ..numbered(4) },
        SessionRefusal::Full { sessions_max } => Failure { number: sessions_max, ..numbered(5) },
        SessionRefusal::OwnerFull { sessions_max } => Failure { number: sessions_max, ..numbered(6) },
        SessionRefusal::Ttl { ttl_ms_max } => Failure { first: ttl_ms_max, ..numbered(7) },
        SessionRefusal::ResponseGone { first } => Failure { first: first.0, ..numbered(8) },
    }
}

fn of_recovery(refusal: RecoveryRefusal) -> Failure<'static> {
    let numbered = |detail| Failure { code: 19, detail, ..Failure::default() };
    match refusal {
        RecoveryRefusal::Malformed => numbered(1),
        RecoveryRefusal::HasLeader { leader } => {
            Failure { first: leader.map_or(0, |node| node.0), ..numbered(2) }
        }
        RecoveryRefusal::Changed { last, term } => Failure { first: last.0, second: term.0, ..numbered(3) },
        RecoveryRefusal::QuorumLeft { left, needed } => {
            Failure { first: u64::from(left), number: needed, ..numbered(4) }
        }
        RecoveryRefusal::Lives { node } => Failure { first: node.0, ..numbered(5) },
        RecoveryRefusal::UnderRepair => numbered(6),
        RecoveryRefusal::NotVoter { voter } => Failure { first: voter.0, ..numbered(7) },
        RecoveryRefusal::NoTerm { term } => Failure { first: term.0, ..numbered(8) },
    }
}

fn of_transfer(refusal: TransferError) -> Failure<'static> {
    let numbered = |detail| Failure { code: 20, detail, ..Failure::default() };
    match refusal {
        TransferError::UnknownTarget { to } => Failure { first: to.0, ..numbered(1) },
        TransferError::NotVoter { to } => Failure { first: to.0, ..numbered(2) },
        TransferError::NotAlive { to } => Failure { first: to.0, ..numbered(3) },
        TransferError::NobodyAlive => numbered(4),
        TransferError::UnderWay { to } => Failure { first: to.0, ..numbered(5) },
        TransferError::TimedOut { to } => Failure { first: to.0, ..numbered(6) },
        TransferError::WonByAnother { leader, term } => {
            Failure { first: leader.0, second: term.0, ..numbered(7) }
        }
    }
}

fn number_of(reason: BusyReason) -> u8 {
    match reason {
        BusyReason::PendingBytes => 1,
        BusyReason::Reads => 2,
        BusyReason::Ring => 3,
        BusyReason::Writer => 4,
        BusyReason::Credit => 5,
        BusyReason::Space => 6,
        BusyReason::Members => 7,
        BusyReason::Commands => 8,
        BusyReason::Groups => 9,
        BusyReason::Applying => 10,
        BusyReason::Comparing => 12,
        BusyReason::Starting => 13,
        BusyReason::Recoveries => 14,
        BusyReason::ShardPendingBytes => 15,
    }
}

fn reason_of(number: u8) -> Result<BusyReason, FrameError> {
    match number {
        1 => Ok(BusyReason::PendingBytes),
        2 => Ok(BusyReason::Reads),
        3 => Ok(BusyReason::Ring),
        4 => Ok(BusyReason::Writer),
        5 => Ok(BusyReason::Credit),
        6 => Ok(BusyReason::Space),
        7 => Ok(BusyReason::Members),
        8 => Ok(BusyReason::Commands),
        9 => Ok(BusyReason::Groups),
        10 => Ok(BusyReason::Applying),
        12 => Ok(BusyReason::Comparing),
        13 => Ok(BusyReason::Starting),
        14 => Ok(BusyReason::Recoveries),
        15 => Ok(BusyReason::ShardPendingBytes),
        number => Err(FrameError::UnknownNumber { what: "reason to be busy", number }),
    }
}

/// Different texts kept at most; every further one reads [`TEXT_NOT_KEPT`].
const TEXTS_MAX: usize = 64;
const TEXT_NOT_KEPT: &str = "the node says why in its log";

/// The error holds a text for the life of the process, as those made in this process do. A node has
/// a handful of them: each is kept once, and a node that makes them up gets no more memory than
/// the bound.
fn kept(text: &str) -> Result<&'static str, FrameError> {
    static TEXTS: Mutex<Vec<&'static str>> = Mutex::new(Vec::new());
    if text.len() > TEXT_BYTES_MAX {
        let (bytes, bytes_max) = (text.len() as u32, TEXT_BYTES_MAX as u32);
        return Err(FrameError::TooLarge { what: "a text", bytes, bytes_max });
    }
    if text.is_empty() {
        return Ok("");
    }
    if text.chars().any(char::is_control) {
        return Err(FrameError::Text);
    }
    let mut texts = TEXTS.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    if let Some(known) = texts.iter().find(|known| **known == text) {
        return Ok(known);
    }
    if texts.len() == TEXTS_MAX {
        return Ok(TEXT_NOT_KEPT);
    }
    let text: &'static str = Box::leak(Box::from(text));
    texts.push(text);
    Ok(text)
}

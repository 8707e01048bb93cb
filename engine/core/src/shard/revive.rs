//! Groups that are taken out, and how they come back while their shard runs.
//!
//! A group that is out says nothing. Once everything is durable that it had handed over, its state can be read from its
//! disk again, as a start would: at once when damaged entries took it out, for it comes back without them and is
//! repaired by its leader; after anything else when somebody asks for it.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::{Member, Shard, SnapshotsOpen, start, unknown_status};
use crate::error::{BusyReason, RequestError};
use crate::group::{Again, Replica};
use crate::ids::{FlushSeq, GroupId, Timestamp};
use crate::io::{
    Event, FetchError, GroupState, GroupStatus, LogDamage, Outputs, Reopen, Reply, Retention, Role, Token,
};
use crate::log_window::Inconsistent;
use crate::recovery::Recovered;

/// A group that was taken out.
pub(super) struct Quarantined {
    pub(super) status: GroupStatus,
    /// Why, until it has been told.
    reason: Option<String>,
    damage: Option<LogDamage>,
    /// Whether its snapshot is damaged: its state is read without it.
    has_lost_snapshot: bool,
    kept: Kept,
    /// The last flush with anything of it.
    after: FlushSeq,
    revival: Revival,
    /// Who waits for it to be back.
    waiting: Option<Token>,
    /// What is left of a group that begins again alone.
    recovered: Option<Recovered>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Revival {
    /// Nobody wants it.
    No,
    /// As soon as its flushes are durable.
    Due,
    /// Its state is being read.
    Asked,
}

/// What of a group its disk does not know.
#[derive(Clone, Copy)]
pub(super) struct Kept {
    pub(super) has_state_machine: bool,
    pub(super) retention: Retention,
}

impl Kept {
    pub(super) fn of(state: &GroupState) -> Kept {
        Kept { has_state_machine: state.has_state_machine, retention: state.retention }
    }
}

pub(super) fn taken_out(status: GroupStatus, reason: String, kept: Kept) -> Member {
    let status =
        GroupStatus { role: Role::Follower, leader: None, is_quarantined: true, is_quiet: false, ..status };
    Member::Out(Box::new(Quarantined {
        status,
        reason: Some(reason),
        damage: None,
        has_lost_snapshot: false,
        kept,
        after: FlushSeq(0),
        revival: Revival::No,
        waiting: None,
        recovered: None,
    }))
}

impl Quarantined {
    /// The turn ends: tells why, once, and asks for the state when it may.
    pub(super) fn handle_turn(&mut self, persisted: FlushSeq, out: &mut Outputs) {
        let group = self.status.group;
        out.events.extend(self.reason.take().map(|reason| Event::Quarantined { group, reason }));
        if self.revival == Revival::Due && self.after <= persisted {
            self.revival = Revival::Asked;
            out.reopens.push(Reopen { group, damage: self.damage });
        }
    }

    /// The shard is fenced: it will not be back.
    pub(super) fn handle_fence(&mut self, out: &mut Outputs) {
        let (group, error) = (self.status.group, not_back(self.recovered.is_some(), RequestError::Fenced));
        out.replies.extend(self.waiting.take().map(|token| Reply::Failed { token, group, error }));
    }
}

impl Shard {
    pub(super) fn handle_damaged(
        &mut self,
        now: Timestamp,
        group: GroupId,
        damage: LogDamage,
        out: &mut Outputs,
    ) {
        let Some(at) = self.position(group) else { return };
        let is_known = match &self.members[at] {
            Member::Live(replica) => replica.has_lost(damage.first),
            Member::Loading(loading) => loading.has_lost(damage.first),
            Member::Out(_) | Member::Left(_) => true,
        };
        if is_known {
            return;
        }
        self.discount(now, at);
        let LogDamage { first, last } = damage;
        self.quarantine(now, at, Inconsistent::Damaged { first, last }.to_string(), Some(damage), out);
    }

    /// A replica without its state machine could lead, and answer nobody.
    pub(super) fn handle_machine_panicked(&mut self, now: Timestamp, group: GroupId, out: &mut Outputs) {
        let Some(at) = self.position(group).filter(|at| self.members[*at].live().is_some()) else { return };
        self.discount(now, at);
        self.quarantine(now, at, "its state machine panicked".to_owned(), None, out);
    }

    /// A replica is about to go: it counts no more.
    pub(super) fn discount(&mut self, now: Timestamp, at: usize) {
        if let Some(replica) = self.members[at].live() {
            self.spread.handle_change(now, &self.config);
            self.snapshots_open =
                self.snapshots_open.after(replica.snapshots_open(), SnapshotsOpen::default());
            self.window_bytes -= replica.window_bytes();
            self.pending_bytes -= replica.pending_bytes();
        }
    }

    /// A replica has said in this turn how it begins again: from its disk, once that is durable.
    pub(super) fn begin_again(&mut self, now: Timestamp, at: usize, token: Token, recovered: Recovered) {
        self.discount(now, at);
        self.liveness.withdraw(now);
        let Member::Live(replica) = &self.members[at] else { return };
        let mut member = taken_out(replica.status(), String::new(), replica.kept());
        if let Member::Out(quarantined) = &mut member {
            // Nothing is wrong with it.
            quarantined.reason = None;
            quarantined.after = FlushSeq(self.last_seq.0 + 1);
            quarantined.revival = Revival::Due;
            (quarantined.waiting, quarantined.recovered) = (Some(token), Some(recovered));
        }
        self.members[at] = member;
        self.list(at);
    }

    /// Takes a group out: what was said stands.
    pub(super) fn quarantine(
        &mut self,
        now: Timestamp,
        at: usize,
        reason: String,
        damage: Option<LogDamage>,
        out: &mut Outputs,
    ) {
        let group = self.groups[at];
        self.spread.handle_change(now, &self.config);
        self.liveness.withdraw(now);
        // A replica that has just panicked may panic again.
        let status = catch_unwind(AssertUnwindSafe(|| self.members[at].status()));
        let status = status.ok().flatten().unwrap_or_else(|| unknown_status(group));
        let (kept, before) = match &self.members[at] {
            Member::Live(replica) => (replica.kept(), replica.lost()),
            Member::Loading(loading) => (Kept::of(loading.state()), loading.lost()),
            Member::Out(_) | Member::Left(_) => {
                (Kept::of(&GroupState::fresh(group, Default::default(), false)), None)
            }
        };
        let again = self.members[at].live().and_then(|replica| replica.begins_again());
        let mut member = taken_out(status, reason, kept);
        if let Member::Out(quarantined) = &mut member {
            quarantined.damage = union(damage, before);
            quarantined.after = self.last_flush_of(at, out);
            quarantined.has_lost_snapshot = again == Some(Again::WithoutSnapshot);
            if again == Some(Again::AsStored) {
                // Nothing is wrong with it.
                quarantined.reason = None;
            }
            if damage.is_some() || again.is_some() {
                quarantined.revival = Revival::Due;
            }
        }
        let member = std::mem::replace(&mut self.members[at], member);
        if let Member::Live(mut replica) = member {
            // What it says until it panics again stands, and nothing can be learned of the rest.
            let _ = catch_unwind(AssertUnwindSafe(|| {
                replica.fail_all(&RequestError::Quarantined, &mut out.replies);
                drop(replica);
            }));
        }
        self.list(at);
    }

    /// The last flush that has anything of a member; the one that this turn makes, if that does.
    fn last_flush_of(&self, at: usize, out: &Outputs) -> FlushSeq {
        let group = self.groups[at];
        let is_of = |part: &crate::io::GroupAppend| part.group == group;
        match &out.append {
            Some(append) if append.groups.iter().any(is_of) => append.seq,
            _ => {
                let last = self.flushes.iter().rev().find(|(_, members)| members.contains(&at));
                last.map_or(FlushSeq(0), |(seq, _)| *seq)
            }
        }
    }

    /// A flush of a member is durable: one that is out may be waiting for it.
    pub(super) fn list_if_out(&mut self, at: usize) {
        if matches!(self.members[at], Member::Out(_)) {
            self.list(at);
        }
    }

    /// Somebody wants a group back.
    pub(super) fn revive(&mut self, token: Token, group: GroupId, out: &mut Outputs) {
        let at = self.position(group);
        let error = match at.map(|at| (at, &mut self.members[at])) {
            Some((at, Member::Out(quarantined))) if quarantined.waiting.is_none() => {
                quarantined.waiting = Some(token);
                if quarantined.revival == Revival::No {
                    quarantined.revival = Revival::Due;
                }
                return self.list(at);
            }
            Some((_, Member::Out(_) | Member::Loading(_))) => RequestError::busy(BusyReason::Starting),
            Some((_, Member::Live(_))) => {
                RequestError::Invalid { what: "the replica on this node is in service" }
            }
            Some((_, Member::Left(_))) | None => RequestError::UnknownGroup,
        };
        out.replies.push(Reply::Failed { token, group, error });
    }

    /// The state of a group that is out was read again.
    pub(super) fn handle_reopened(
        &mut self,
        now: Timestamp,
        group: GroupId,
        result: Result<Box<GroupState>, FetchError>,
        out: &mut Outputs,
    ) {
        let Some(at) = self.position(group) else { return };
        let Member::Out(quarantined) = &mut self.members[at] else { return };
        if quarantined.revival != Revival::Asked {
            return;
        }
        quarantined.revival = Revival::No;
        let (waiting, recovered) = (quarantined.waiting.take(), quarantined.recovered.take());
        if let Ok(state) = result {
            let Kept { has_state_machine, retention } = quarantined.kept;
            let mut state = GroupState { has_state_machine, retention, ..*state };
            if quarantined.has_lost_snapshot {
                state.snapshot = None;
            }
            self.members[at] = start(&self.next_life(), state, now);
            if let Member::Live(replica) = &mut self.members[at] {
                replica.share_members(&mut self.common_members);
                self.window_bytes += replica.window_bytes();
            }
            self.have_members_changed = true;
            self.rouse(now, at);
            self.list(at);
        }
        let is_back = !matches!(self.members[at], Member::Out(_));
        out.replies.extend(waiting.map(|token| match recovered {
            recovered if !is_back => {
                let error = not_back(recovered.is_some(), RequestError::Quarantined);
                Reply::Failed { token, group, error }
            }
            Some(recovered) => Reply::Recovered { token, group, recovered },
            None => Reply::Opened { token, group },
        }));
    }
}

impl Replica {
    pub(super) fn kept(&self) -> Kept {
        let (has_state_machine, retention) = self.settings();
        Kept { has_state_machine, retention }
    }
}

/// What is said to whoever waits for a group that does not come back. A recovery was handed over, and is in force once
/// it is durable, whatever comes after that.
fn not_back(is_recovery: bool, error: RequestError) -> RequestError {
    if is_recovery { RequestError::OutcomeUnknown { leader: None } } else { error }
}

fn union(one: Option<LogDamage>, other: Option<LogDamage>) -> Option<LogDamage> {
    match (one, other) {
        (Some(one), Some(other)) => {
            Some(LogDamage { first: one.first.min(other.first), last: one.last.max(other.last) })
        }
        (one, other) => one.or(other),
    }
}

//! Repair of a replica that has lost entries: its disk damaged what it may have acknowledged.
//!
//! It keeps its term and its vote, which stand in other checksummed blocks (without those it could not come back at all),
//! and what stands before the damage. It follows its leader and takes entries and snapshots as any follower does, and what it
//! acknowledges from now on is true. But it gives no vote and no pre-vote and does not campaign, until its durable
//! log has the entry that its leader says was the leader's last one when it was asked (Alagappan et al., "Protocol-Aware
//! Recovery for Consensus-Based Storage", FAST 2018, 3.3.3).
//!
//! Why that is safe. Let an entry be committed in term T with the acknowledgement of a replica that has lost it since, and let C be a
//! candidate that wins a later term. The majority that elects C shares a voter with the majority that acknowledged the entry. If one of these
//! has not lost it, it has the entry as it votes, and so has C (leader completeness, Raft paper 5.4.3). All have lost it only if each
//! votes although it did: not while it is under repair. And once a repair is over its replica has the entry: the leader L that gave the bound, of a term
//! that is not below the replica's own, had it. For if L led in T it had sent the entry before the replica acknowledged it, and so before
//! it answered the question, which came after that; L's log never shrinks in its term. If L led later, it had all that was
//! committed in T, by this very argument. The replica's own term is durable, so it has acknowledged nothing of a later one. Its log
//! holds the entry at the bound, of the same term, and so the leader's whole log up to there (log matching, 5.3).
//!
//! The bound is the leader's last index and not its commit index: an acknowledgement of before the damage may still be on its way,
//! or already counted for an entry that another's answer is going to commit. The question has a number of its own, so that a bound of an
//! earlier repair is not taken for one of this.
//!
//! A replica whose snapshot is damaged, and whose log begins after that, has nobody here to tell it what its state was: to it all
//! is lost, and it begins anew with its term, its vote and the same argument.
//!
//! Nothing is cut before a leader has answered: when too many are damaged nobody is elected, nothing is lost that was left, and
//! every replica's status says how far it goes. A bound stays good in later terms, but the entry at it may never come then, so a new
//! leader is asked again.

use super::{Index, MessageKind, PeerMessage, Replica, Term, Turn};
use crate::convert::to_node;
use crate::ids::FlushSeq;
use crate::io::{ConfState, Event, GroupState, LogChange, LogDamage, LogStart, Send};
use crate::mutants::{self, Mutant};

#[derive(Debug)]
pub(super) struct Repair {
    damage: Option<LogDamage>,
    /// What was known to be committed.
    commit: Index,
    is_told: bool,
    /// Number of our questions: of a flush after all that was acknowledged before.
    question: Option<FlushSeq>,
    ticks: u32,
    bound: Option<Bound>,
    /// Whether the disk has been told, with the flush that ends the log before the damage.
    has_begun: bool,
    /// What that flush says, beside that a repair is under way.
    cut: Cut,
    /// The flush that says that it is over.
    end: Option<FlushSeq>,
}

/// What is void with the beginning of a repair.
#[derive(Debug)]
enum Cut {
    Nothing,
    /// What follows the end of our log.
    Rest,
    /// Everything: a snapshot covers more than what is sound.
    All(ConfState),
    /// Everything, where the log begins as well: the state that it begins after is lost.
    Anew(ConfState),
}

#[derive(Clone, Copy, Debug)]
struct Bound {
    index: Index,
    term: Term,
    /// The term of the leader that gave it.
    given_in: Term,
}

impl Repair {
    /// The repair that a replica starts with, if it does. `commit`: what it knew to be committed.
    pub(super) fn at_start(
        state: &GroupState,
        damage: Option<LogDamage>,
        is_adopted: bool,
        commit: Index,
    ) -> Option<Repair> {
        let cut = match damage {
            None if !state.is_under_repair || mutants::is(Mutant::RepairForgotten) => return None,
            None => Cut::Nothing,
            Some(_) if is_adopted && state.start.index == Index(0) => Cut::Anew(state.conf_state.clone()),
            Some(_) if is_adopted => Cut::All(state.conf_state.clone()),
            Some(_) => Cut::Rest,
        };
        Some(Repair {
            damage,
            commit,
            is_told: false,
            question: None,
            ticks: 0,
            bound: None,
            has_begun: damage.is_none(),
            cut,
            end: None,
        })
    }
}

impl Replica {
    pub(super) fn is_under_repair(&self) -> bool {
        self.repair.is_some()
    }

    /// Whether an entry is known to be lost already: the disk still has what is damaged of it.
    pub(crate) fn has_lost(&self, index: Index) -> bool {
        self.lost().is_some() && index.0 > self.raw.raft.raft_log.last_index()
    }

    /// What is damaged and still stands on the disk.
    pub(crate) fn lost(&self) -> Option<LogDamage> {
        self.repair.as_ref().filter(|repair| !repair.has_begun).and_then(|repair| repair.damage)
    }

    /// The leader may count on entries that are lost: what it says of commits waits until its appends say the same.
    pub(super) fn hold_back_commit(&self, message: &mut PeerMessage) {
        if self.is_under_repair() && message.kind == MessageKind::Heartbeat && message.commit > self.commit {
            (message.commit, message.index) = (self.commit, Index(0));
        }
    }

    /// Whether a message is not for a replica under repair.
    pub(super) fn is_kept_from(&self, message: &PeerMessage) -> bool {
        let Some(repair) = &self.repair else { return false };
        match message.kind {
            MessageKind::RequestVote | MessageKind::RequestPreVote => !mutants::is(Mutant::RepairVotes),
            // What follows the damage on the disk has to be void first.
            MessageKind::Append | MessageKind::Snapshot | MessageKind::SnapshotChunk => !repair.has_begun,
            _ => false,
        }
    }

    /// A tick of a replica that must not campaign has passed.
    pub(super) fn handle_repair_tick(&mut self, turn: &mut Turn<'_>) {
        let Some(repair) = &mut self.repair else { return };
        repair.ticks = repair.ticks.saturating_add(1);
        let is_due = repair.ticks.is_multiple_of(turn.config.heartbeat_ticks);
        let question = repair.question.get_or_insert(turn.seq).0;
        let leader = to_node(self.raw.raft.leader_id).filter(|_| is_due);
        // Also when there is a bound: the leader may still count on what is lost, and send nothing.
        if let Some(to) = leader {
            let last = Index(self.raw.raft.raft_log.last_index());
            let mut message = PeerMessage::bare(
                MessageKind::RepairQuestion,
                self.group,
                (self.node, to),
                Term(self.raw.raft.term),
            );
            (message.index, message.log_term) = (last, self.place_at(last).term);
            message.commit = Index(question);
            let after = self.term_flush(turn);
            turn.out.sends.push(Send { message, after });
        }
        self.handle_leaving_tick(turn, false);
    }

    /// A replica under repair asks. What it was known to have it has no more.
    pub(super) fn handle_repair_question(&mut self, turn: &mut Turn<'_>, message: &PeerMessage) {
        let (is_leader, raft) = (self.is_leader(), &mut self.raw.raft);
        if message.term.0 != raft.term || !is_leader {
            return;
        }
        let last = raft.raft_log.last_index();
        let Some(progress) = raft.mut_prs().get_mut(message.from.0) else { return };
        if progress.matched > message.index.0 && !mutants::is(Mutant::RepairUnheard) {
            progress.matched = 0;
            progress.become_probe();
            progress.next_idx = message.index.0.min(last) + 1;
        }
        let mut answer = PeerMessage::bare(
            MessageKind::RepairBound,
            self.group,
            (self.node, message.from),
            Term(self.raw.raft.term),
        );
        (answer.index, answer.log_term) = (Index(last), self.place_at(Index(last)).term);
        answer.commit = message.commit;
        let after = self.persistence.vote_flush(turn.persisted);
        turn.out.sends.push(Send { message: answer, after });
    }

    /// The leader says what has to be here before the repair is over.
    pub(super) fn handle_repair_bound(&mut self, message: &PeerMessage) {
        let (term, leader) = (self.raw.raft.term, to_node(self.raw.raft.leader_id));
        let Some(repair) = &mut self.repair else { return };
        let is_answer = repair.question == Some(FlushSeq(message.commit.0));
        if !is_answer || message.term.0 != term || leader != Some(message.from) {
            return;
        }
        // The first one of a term stays: the leader's log grows.
        if repair.bound.is_none_or(|bound| bound.given_in != message.term) {
            let (index, term) = (message.index, message.log_term);
            repair.bound = Some(Bound { index, term, given_in: message.term });
            self.is_dirty = true;
        }
    }

    /// Goes on, at the end of a turn.
    pub(super) fn advance_repair(&mut self, turn: &mut Turn<'_>) {
        let last = Index(self.raw.raft.raft_log.last_index());
        let (place, start, term) = (self.place_at(last), self.log_start(), Term(self.raw.raft.term));
        let group = self.group;
        let Some(repair) = &mut self.repair else { return };
        if !std::mem::replace(&mut repair.is_told, true) {
            let (damage, commit) = (repair.damage, repair.commit);
            turn.out.events.push(Event::RepairNeeded { group, damage, last, commit, term });
        }
        let Some(bound) = repair.bound else { return };
        if self.persistence.has_change() {
            // Goes first.
            self.is_dirty = true;
            return;
        }
        if !std::mem::replace(&mut repair.has_begun, true) {
            let (change, members) = match std::mem::replace(&mut repair.cut, Cut::Nothing) {
                _ if mutants::is(Mutant::RepairKeepsDamage) => (None, None),
                Cut::Nothing => (None, None),
                Cut::Rest => (Some(LogChange::CutAfter(place)), None),
                Cut::Anew(members) => return self.persistence.begin_repair_anew(members, self.joined_at),
                Cut::All(members) => (Some(LogChange::StartAfter(start)), Some(members)),
            };
            return self.persistence.begin_repair(change, members);
        }
        let is_early = mutants::is(Mutant::RepairEndsEarly);
        let has_all = self.has_durable(bound) || is_early;
        if let Some(repair) = self.repair.as_mut().filter(|repair| repair.end.is_none() && has_all) {
            repair.end = Some(turn.seq);
            self.persistence.end_repair();
        }
    }

    /// Whether the log holds the entry at a bound, or a snapshot covers it.
    fn has_durable(&self, bound: Bound) -> bool {
        let log = &self.raw.raft.raft_log;
        let is_here = bound.index.0 <= log.persisted && log.match_term(bound.index.0, bound.term.0);
        is_here || bound.index <= self.log_start().index
    }

    /// What is durable has grown.
    pub(super) fn end_repair(&mut self, turn: &mut Turn<'_>) {
        let is_over = |repair: &Repair| repair.end.is_some_and(|seq| seq <= turn.persisted);
        if let Some(repair) = self.repair.take_if(|repair| is_over(repair)) {
            let bound = repair.bound.map_or(Index(0), |bound| bound.index);
            turn.out.events.push(Event::Repaired { group: self.group, bound });
        }
    }

    /// What a mutated replica acknowledges.
    pub(super) fn mutated_acknowledgement(&self, index: Index) -> Index {
        let bound = self.repair.as_ref().and_then(|repair| repair.bound);
        bound
            .filter(|_| mutants::is(Mutant::RepairAcknowledgesBound))
            .map_or(index, |bound| bound.index.max(index))
    }

    /// An entry from the commit index to the last, as a place.
    fn place_at(&self, index: Index) -> LogStart {
        use crate::validate::LogView as _;
        LogStart { index, term: self.term_at(index), offset: self.offset_after(index) }
    }
}

//! A replica takes a snapshot of its leader: chunk by chunk to the disk, then the whole at once in place of its log
//! and its state.
//!
//! raft-rs hears of it only when it is published here: then it is installed in one step. What is durable of it
//! outlives the transfer, the leader and this process: the next offer of the same snapshot goes on from there.

use raft::eraftpb::{self, MessageType};

use super::snapshots::CHUNKS_IN_FLIGHT_MAX;
use super::{Index, NodeId, PeerMessage, Replica, Term, Timestamp, Turn};
use crate::convert::{to_node, to_raft_snapshot};
use crate::group_meta::GroupMeta;
use crate::io::{Event, LogChange, LogStart, Send, Snapshot, SnapshotStep};
use crate::mutants::{self, Mutant};
use crate::snapshot_wire::{Ack, parse_chunk, parse_offer, put_ack};

#[derive(Debug)]
pub(super) struct Incoming {
    from: NodeId,
    snapshot: Snapshot,
    /// Chunk that is to come next; not known before the disk has said what it has.
    next: Option<u32>,
    /// Chunks that are durable.
    staged: u32,
    is_publishing: bool,
    /// When `staged` last grew.
    moved_at: Timestamp,
}

impl Replica {
    /// The leader offers a snapshot.
    pub(super) fn handle_offer(&mut self, turn: &mut Turn<'_>, message: &PeerMessage) {
        let Some(snapshot) = parse_offer(message) else { return };
        let (from, raft) = (message.from, &self.raw.raft);
        // A leader that is new here makes itself known by a heartbeat first.
        if (message.term.0, Some(from)) != (raft.term, to_node(raft.leader_id)) || self.is_leader() {
            return;
        }
        let Snapshot { head, body } = &snapshot;
        // Nothing has to be received: raft-rs answers with what is here, or there is no state to wait for.
        if head.index <= self.commit || !self.has_state_machine {
            return self.install(turn, from, snapshot);
        }
        match &mut self.snapshots.incoming {
            Some(incoming) if incoming.snapshot == snapshot => incoming.from = from,
            incoming => {
                let others = turn.snapshots_open.receiving;
                if incoming.is_none() && others >= turn.config.snapshots.receiving_max {
                    let place = (head.index, head.term);
                    let ack = Ack { chunks: 0, body_checksum: body.checksum };
                    return self.send_ack(turn, from, place, ack, true);
                }
                let new = snapshot.clone();
                let (next, staged, is_publishing, moved_at) = (None, 0, false, turn.now);
                *incoming =
                    Some(Box::new(Incoming { from, snapshot: new, next, staged, is_publishing, moved_at }));
                self.ask(turn, SnapshotStep::Receive(snapshot));
            }
        }
        self.confirm(turn);
    }

    /// Tells the sender what is durable here.
    fn confirm(&self, turn: &mut Turn<'_>) {
        let Some(incoming) = &self.snapshots.incoming else { return };
        if incoming.next.is_none() {
            return;
        }
        let Snapshot { head, body } = &incoming.snapshot;
        let ack = Ack { chunks: incoming.staged, body_checksum: body.checksum };
        self.send_ack(turn, incoming.from, (head.index, head.term), ack, false);
    }

    fn send_ack(&self, turn: &mut Turn<'_>, to: NodeId, place: (Index, Term), ack: Ack, reject: bool) {
        let mut message = self.snapshot_message(to);
        put_ack(&mut message, place, ack);
        message.reject = reject;
        let after = self.term_flush(turn);
        turn.out.sends.push(Send { message, after });
    }

    /// A chunk came. One that is not the next is late, or after one that was lost.
    pub(super) fn handle_chunk(&mut self, turn: &mut Turn<'_>, message: &PeerMessage) {
        let Some(chunk) = parse_chunk(message) else { return };
        let Some(incoming) = &mut self.snapshots.incoming else { return };
        let Snapshot { head, body } = &incoming.snapshot;
        let is_of = incoming.from == message.from
            && (head.index, head.term, body.checksum)
                == (message.index, message.log_term, chunk.body_checksum);
        let number = chunk.number;
        let is_next = Some(number) == incoming.next
            && body.chunk_bytes(number) == Some(chunk.data.len())
            && number - incoming.staged < CHUNKS_IN_FLIGHT_MAX;
        if is_of && is_next && !incoming.is_publishing {
            incoming.next = Some(number + 1);
            let index = head.index;
            self.ask(turn, SnapshotStep::Write { index, chunk: number, data: chunk.data });
        }
    }

    /// So many chunks are durable.
    pub(super) fn handle_staged(&mut self, turn: &mut Turn<'_>, index: Index, chunks: u32) {
        let Some(incoming) = &mut self.snapshots.incoming else { return };
        if incoming.snapshot.head.index != index {
            return;
        }
        if incoming.next.is_none() || chunks > incoming.staged {
            (incoming.staged, incoming.moved_at) = (chunks, turn.now);
        }
        incoming.next = Some(incoming.next.unwrap_or(chunks).max(chunks));
        if chunks == incoming.snapshot.body.chunks() && !std::mem::replace(&mut incoming.is_publishing, true)
        {
            let snapshot = incoming.snapshot.clone();
            self.ask(turn, SnapshotStep::Publish(snapshot));
        }
        self.confirm(turn);
    }

    /// The snapshot is there as a whole.
    pub(super) fn handle_published(&mut self, turn: &mut Turn<'_>, index: Index) {
        let is_of = |incoming: &mut Box<Incoming>| incoming.snapshot.head.index == index;
        let Some(incoming) = self.snapshots.incoming.take_if(is_of) else { return };
        let raft = &self.raw.raft;
        // Another leader offers it, or its own, again. What is published here stays true.
        if to_node(raft.leader_id) == Some(incoming.from) && !self.is_leader() {
            self.install(turn, incoming.from, incoming.snapshot);
        }
    }

    pub(super) fn handle_receive_failed(&mut self, turn: &mut Turn<'_>, index: Index) {
        if self.snapshots.incoming.as_ref().is_some_and(|incoming| incoming.snapshot.head.index == index) {
            self.stop_receiving(turn);
        }
    }

    fn stop_receiving(&mut self, turn: &mut Turn<'_>) {
        let Some(incoming) = self.snapshots.incoming.take() else { return };
        let Incoming { from, snapshot, staged, .. } = *incoming;
        let (group, index) = (self.group, snapshot.head.index);
        turn.out.events.push(Event::SnapshotGivenUp { group, index, peer: from, chunks: staged });
    }

    pub(super) fn handle_receive_tick(&mut self, turn: &mut Turn<'_>) {
        let stall_after = turn.config.snapshots.stall_after;
        let Some(incoming) = &self.snapshots.incoming else { return };
        if turn.now.since(incoming.moved_at) >= stall_after {
            self.stop_receiving(turn);
        } else if !incoming.is_publishing && incoming.next == Some(incoming.staged) {
            // The last word may have been lost.
            self.confirm(turn);
        }
    }

    /// Puts a snapshot that is published here in place of log and state, unless the log has all of it already.
    fn install(&mut self, turn: &mut Turn<'_>, from: NodeId, snapshot: Snapshot) {
        let head = &snapshot.head;
        let message = eraftpb::Message {
            msg_type: MessageType::MsgSnapshot,
            from: from.0,
            to: self.node.0,
            term: self.raw.raft.term,
            snapshot: Some(to_raft_snapshot(head, self.node)).into(),
            ..Default::default()
        };
        self.is_dirty = true;
        // Its errors are those of stale messages, which change nothing.
        let _ = self.raw.step(message);
        if self.raw.raft.raft_log.unstable_snapshot().is_none() {
            // The log has the entry, and what it has may be committed by this.
            self.after_call(turn, false);
            let is_newer = self.snapshots.own.as_ref().is_none_or(|own| own.head.index < head.index);
            let is_committed = head.index.0 <= self.raw.raft.raft_log.committed;
            let was_received = self.has_state_machine && head.index > self.commit;
            if is_newer && is_committed && was_received {
                self.snapshots.own = Some(Box::new(snapshot));
                self.show_offer();
            }
            return;
        }
        self.begin_after(turn, snapshot);
    }

    /// The log is void and begins after the snapshot, for raft-rs and for whoever reads it; the state machine is to
    /// follow.
    fn begin_after(&mut self, turn: &mut Turn<'_>, snapshot: Snapshot) {
        let head = &snapshot.head;
        let place = LogStart { index: head.index, term: head.term, offset: head.offset };
        self.raw.mut_store().restart(place);
        let log = &mut self.raw.raft.raft_log;
        // It looks for changes of members from here on, should it campaign.
        log.applied = place.index.0;
        if !head.conf_state.is_member(self.node) {
            self.leave_members();
        }
        self.members.restart(&head.conf_state, place.index);
        self.voters = self.members.voters();
        (self.commit, self.commit_end) = (place.index, place.offset);
        (self.applied, self.applied_end, self.applying) = (place.index, place.offset, None);
        self.fetches.clear();
        let table = GroupMeta::decode(head.table.clone()).expect("an offer was checked before it came here");
        self.commands.install(table, place.index);
        if !mutants::is(Mutant::InstallKeepsLog) {
            self.persistence.change_log(LogChange::StartAfter(place), head.conf_state.clone());
        }
        let (group, index, bytes) = (self.group, place.index, snapshot.body.bytes);
        let members = self.members.now.clone();
        turn.out.events.push(Event::SnapshotInstalled { group, index, bytes });
        turn.out.events.push(Event::MembersChanged { group, index, members });
        self.snapshots.handle_installed(snapshot, self.has_state_machine, turn.now);
        self.show_offer();
        self.after_call(turn, false);
    }
}

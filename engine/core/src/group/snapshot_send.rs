//! A leader brings its snapshot to followers that need entries which are gone.
//!
//! It offers the snapshot until the follower says how much of it is durable there, then sends the chunks from
//! that on, a few ahead of what the follower has confirmed, as the disk gives them, and no faster than the shard's rate. What gets lost
//! is sent again from the last confirmed chunk; without any progress for long the transfer is given up, and
//! Raft asks for it anew, which goes on where the follower stands. The snapshot stays while it is sent.

use bytes::Bytes;
use raft::{ProgressState, SnapshotStatus};

use super::snapshots::{CHUNKS_IN_FLIGHT_MAX, Snapshots};
use super::{Index, MessageKind, NodeId, PeerMessage, Replica, Term, Timestamp, Turn};
use crate::io::{Event, Send, Snapshot, SnapshotStep};
use crate::snapshot_wire::{parse_ack, put_chunk, put_offer};

#[derive(Debug)]
pub(super) struct Outgoing {
    to: NodeId,
    snapshot: Snapshot,
    /// Chunks that are durable there, as it said; nothing before its first answer.
    confirmed: Option<u32>,
    /// Chunk to be read next.
    next: u32,
    /// When `confirmed` last grew.
    moved_at: Timestamp,
    /// When something was last sent that it answers.
    asked_at: Timestamp,
}

impl Replica {
    /// raft-rs has decided that a follower needs a snapshot.
    pub(super) fn begin_sending(&mut self, turn: &mut Turn<'_>, to: NodeId) {
        self.snapshots.outgoing.retain(|outgoing| outgoing.to != to);
        let others = turn.snapshots_open.sending;
        let has_slot = others + self.snapshots.outgoing.len() < turn.config.snapshots.sending_max;
        let Some(snapshot) = self.offer().filter(|_| has_slot) else {
            // It is asked for again with the answer to a heartbeat.
            self.raw.report_snapshot(to.0, SnapshotStatus::Failure);
            return self.after_call(turn, false);
        };
        self.send_offer(turn, to, &snapshot);
        let (moved_at, asked_at) = (turn.now, turn.now);
        self.snapshots.outgoing.push(Outgoing { to, snapshot, confirmed: None, next: 0, moved_at, asked_at });
    }

    fn send_offer(&self, turn: &mut Turn<'_>, to: NodeId, snapshot: &Snapshot) {
        let mut message = self.snapshot_message(to);
        put_offer(&mut message, snapshot);
        let after = self.term_flush(turn);
        turn.out.sends.push(Send { message, after });
    }

    /// A message about a snapshot, without what it says.
    pub(super) fn snapshot_message(&self, to: NodeId) -> PeerMessage {
        let term = Term(self.raw.raft.term);
        PeerMessage::bare(MessageKind::Snapshot, self.group, (self.node, to), term)
    }

    /// A follower says how much of a snapshot it has.
    pub(super) fn handle_ack(&mut self, turn: &mut Turn<'_>, message: &PeerMessage) {
        let Some(ack) = parse_ack(message).filter(|_| message.term.0 == self.raw.raft.term) else { return };
        let is_of = |outgoing: &&mut Outgoing| {
            let Snapshot { head, body } = &outgoing.snapshot;
            outgoing.to == message.from
                && (head.index, head.term, body.checksum)
                    == (message.index, message.log_term, ack.body_checksum)
        };
        let Some(outgoing) = self.snapshots.outgoing.iter_mut().find(is_of) else { return };
        if message.reject {
            return self.give_up(turn, message.from);
        }
        let chunks = ack.chunks.min(outgoing.snapshot.body.chunks());
        match outgoing.confirmed {
            // Where a transfer begins it may go on from an earlier one.
            None => outgoing.next = chunks,
            Some(before) if chunks <= before => return,
            Some(_) => outgoing.next = outgoing.next.max(chunks),
        }
        (outgoing.confirmed, outgoing.moved_at) = (Some(chunks), turn.now);
        self.is_dirty = true;
    }

    /// The end of a turn: reads the chunks that may follow now.
    pub(super) fn send_chunks(&mut self, turn: &mut Turn<'_>) {
        let group = self.group;
        let Snapshots { outgoing, reading, .. } = &mut self.snapshots;
        for outgoing in outgoing {
            let Some(confirmed) = outgoing.confirmed else { continue };
            let limit = (confirmed + CHUNKS_IN_FLIGHT_MAX).min(outgoing.snapshot.body.chunks());
            while outgoing.next < limit {
                let open = reading.iter().find(|(to, _)| *to == outgoing.to).map_or(0, |(_, count)| *count);
                if open >= CHUNKS_IN_FLIGHT_MAX {
                    // The disk does not keep up: the next chunk that comes goes on.
                    break;
                }
                let bytes = outgoing.snapshot.body.chunk_bytes(outgoing.next).unwrap_or_default();
                if !turn.send_budget.take(bytes) {
                    // The next tick brings more.
                    return;
                }
                let (index, chunk, to) = (outgoing.snapshot.head.index, outgoing.next, outgoing.to);
                match reading.iter_mut().find(|(of, _)| *of == to) {
                    Some((_, count)) => *count += 1,
                    None => reading.push((to, 1)),
                }
                let step = SnapshotStep::Read { index, chunk, to };
                turn.out.snapshots.push(crate::io::SnapshotTask { group, step });
                (outgoing.next, outgoing.asked_at) = (outgoing.next + 1, turn.now);
            }
        }
    }

    /// A chunk was read, or cannot be.
    pub(super) fn handle_chunk_read(
        &mut self,
        turn: &mut Turn<'_>,
        index: Index,
        chunk: u32,
        to: NodeId,
        data: Option<Bytes>,
    ) {
        if let Some((_, count)) = self.snapshots.reading.iter_mut().find(|(of, _)| *of == to) {
            *count -= 1;
            self.is_dirty = true;
        }
        self.snapshots.reading.retain(|(_, count)| *count > 0);
        let is_of = |outgoing: &&Outgoing| outgoing.to == to && outgoing.snapshot.head.index == index;
        let Some(outgoing) = self.snapshots.outgoing.iter().find(is_of) else { return };
        let Some(data) = data else {
            if self.snapshots.own.as_ref().is_some_and(|own| own.head.index == index) {
                self.note_unreadable(turn);
            }
            return self.give_up(turn, to);
        };
        let mut message = self.snapshot_message(to);
        put_chunk(&mut message, &outgoing.snapshot, chunk, data);
        let after = self.term_flush(turn);
        turn.out.sends.push(Send { message, after });
    }

    pub(super) fn handle_send_tick(&mut self, turn: &mut Turn<'_>) {
        if self.snapshots.outgoing.is_empty() {
            return;
        }
        let prs = self.raw.raft.prs();
        let is_wanted = |to: NodeId| prs.get(to.0).is_some_and(|at| at.state == ProgressState::Snapshot);
        let wanted: Vec<NodeId> =
            self.snapshots.outgoing.iter().map(|outgoing| outgoing.to).filter(|to| is_wanted(*to)).collect();
        // The others have it, or are no followers any more.
        self.snapshots.outgoing.retain(|outgoing| wanted.contains(&outgoing.to));
        let patience = turn.config.tick * turn.config.heartbeat_ticks;
        for to in wanted {
            let outgoing = self.snapshots.outgoing.iter_mut().find(|outgoing| outgoing.to == to);
            let outgoing = outgoing.expect("kept just now");
            if turn.now.since(outgoing.moved_at) >= turn.config.snapshots.stall_after {
                self.give_up(turn, to);
                continue;
            }
            self.is_dirty = true;
            // Chunks take longer to be confirmed than an offer to be answered.
            let chunks = outgoing.snapshot.body.chunks();
            let times = if outgoing.confirmed.is_some_and(|confirmed| confirmed < chunks) { 4 } else { 1 };
            if turn.now.since(outgoing.asked_at) < patience * times {
                continue;
            }
            outgoing.asked_at = turn.now;
            outgoing.next = outgoing.confirmed.unwrap_or(0);
            // Whatever it waits for, it answers an offer with what it has.
            let snapshot = outgoing.snapshot.clone();
            self.send_offer(turn, to, &snapshot);
        }
    }

    /// Ends a transfer; Raft asks for it again.
    fn give_up(&mut self, turn: &mut Turn<'_>, to: NodeId) {
        let Some(at) = self.snapshots.outgoing.iter().position(|outgoing| outgoing.to == to) else { return };
        let Outgoing { snapshot, confirmed, .. } = self.snapshots.outgoing.remove(at);
        let (group, index, chunks) = (self.group, snapshot.head.index, confirmed.unwrap_or(0));
        turn.out.events.push(Event::SnapshotGivenUp { group, index, peer: to, chunks });
        self.raw.report_snapshot(to.0, SnapshotStatus::Failure);
        self.is_dirty = true;
        self.after_call(turn, false);
    }
}

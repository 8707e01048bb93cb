//! What a shard sends: frames for peers, gated by persistence, and answers for clients.
//!
//! Messages of one turn for one shard of a peer, lane and gate leave as one frame. A gated frame waits here
//! until its flush is durable; there are at most as many as the core has messages outstanding.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use iroh_raft_core::{FlushSeq, GroupId, NodeId, PeerMessage, ShardId, Token};
use iroh_raft_netbridge::port::ToBridge;
use iroh_raft_netbridge::ring::Producer;
use iroh_raft_netbridge::wire::{
    ClientReply, Lane, OutFrame, PeerFrameBuilder, ReplyBody, ReplyFrameBuilder,
};

use crate::stats::ShardCounters;

/// A frame is closed when it holds this much: larger ones would hold up the lane and the receiver.
pub const FRAME_BYTES_TARGET: usize = 1 << 20;

/// Frames for peers that wait for a place in the bridge's ring at most; what comes then is dropped.
const PEER_FRAMES_WAITING_MAX: usize = 64;

/// Bytes of answers that wait for a place there, from which on reads are refused as busy.
const ANSWER_BYTES_WAITING_MAX: usize = 64 << 20;

/// Emptied builders of frames for peers that are kept, and messages that one has room for at most: when thousands
/// of groups speak in one turn, that is rare.
const SPARE_FRAMES_MAX: usize = 64;
const SPARE_MESSAGES_MAX: usize = 512;
/// Emptied builders of answers that are kept for the next turns.
const SPARE_REPLIES_MAX: usize = 64;

struct OpenFrame {
    to: NodeId,
    shard: ShardId,
    lane: Lane,
    gate: Option<FlushSeq>,
    builder: PeerFrameBuilder,
}

/// A generator of numbers that need not be good, only not in step with anything (Knuth's MMIX).
struct SmallDraw(u64);

impl SmallDraw {
    fn next(&mut self, below: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % below
    }
}

pub(super) struct Outbox {
    shard: ShardId,
    open: Vec<OpenFrame>,
    /// Builders with warm buffers.
    spare: Vec<PeerFrameBuilder>,
    gated: VecDeque<(FlushSeq, ToBridge)>,
    /// What may leave; the first `waiting` found the ring full in an earlier turn.
    ready: VecDeque<ToBridge>,
    waiting: usize,
    /// Bytes of the answers among them.
    answer_bytes: usize,
    /// Answers of this turn, by connection. A client has at most as many as it has requests open.
    replies: BTreeMap<u64, ReplyFrameBuilder>,
    /// Emptied, for the next ones.
    spare_replies: Vec<ReplyFrameBuilder>,
    /// Says who goes first when not all fit. Drawn anew each time: whatever takes turns may do so in step
    /// with the ticks, and then leave the same peer without heartbeats for ever.
    draw: SmallDraw,
}

impl Outbox {
    pub(super) fn new(shard: ShardId) -> Outbox {
        Outbox {
            shard,
            open: Vec::new(),
            spare: Vec::new(),
            gated: VecDeque::new(),
            ready: VecDeque::new(),
            waiting: 0,
            answer_bytes: 0,
            replies: BTreeMap::new(),
            spare_replies: Vec::new(),
            draw: SmallDraw(u64::from(shard.0)),
        }
    }

    /// Adds a message for a shard of its receiver, which may leave once `gate` is durable.
    pub(super) fn push(&mut self, message: PeerMessage, shard: ShardId, gate: Option<FlushSeq>) {
        let (to, lane) = (message.to, Lane::of(message.kind));
        let is_its =
            |frame: &OpenFrame| (frame.to, frame.shard, frame.lane, frame.gate) == (to, shard, lane, gate);
        let position = self.open.iter().position(is_its);
        let at = position.unwrap_or_else(|| {
            let builder = self.spare.pop().unwrap_or_default();
            self.open.push(OpenFrame { to, shard, lane, gate, builder });
            self.open.len() - 1
        });
        self.open[at].builder.push(message);
        if self.open[at].builder.bytes() >= FRAME_BYTES_TARGET {
            let frame = self.open.remove(at);
            self.close(frame);
        }
    }

    /// Adds an answer for a client.
    pub(super) fn push_reply(&mut self, token: Token, group: GroupId, body: ReplyBody) {
        let spare = &mut self.spare_replies;
        let builder = self.replies.entry(token.origin).or_insert_with(|| spare.pop().unwrap_or_default());
        builder.push(ClientReply { request: token.request, group, body });
        if builder.bytes() >= FRAME_BYTES_TARGET {
            let frame = builder.finish(self.shard);
            self.push_answers(token.origin, frame);
        }
    }

    fn push_answers(&mut self, connection: u64, frame: OutFrame) {
        self.answer_bytes += frame.bytes();
        self.ready.push_back(ToBridge::Client { connection, frame });
    }

    /// Whether so many bytes of answers wait for the bridge that nothing large should join them.
    pub(super) fn is_heavy(&self) -> bool {
        self.answer_bytes >= ANSWER_BYTES_WAITING_MAX
    }

    /// Drops the answers to a connection that is gone.
    pub(super) fn forget_client(&mut self, connection: u64) {
        self.replies.remove(&connection);
        let is_its =
            |item: &ToBridge| matches!(item, ToBridge::Client { connection: of, .. } if *of == connection);
        let waiting = self.ready.iter().take(self.waiting).filter(|item| is_its(item)).count();
        self.waiting -= waiting;
        self.answer_bytes -= self.ready.iter().filter(|item| is_its(item)).map(client_bytes).sum::<usize>();
        self.ready.retain(|item| !is_its(item));
    }

    /// Lets go of everything that waited for flushes up to `seq`.
    pub(super) fn release(&mut self, seq: FlushSeq) {
        for _ in 0..self.gated.len() {
            // Gates are almost sorted (a group may wait for an older flush than its neighbour), so
            // this pass looks at each and keeps the order of both halves.
            let Some((gate, item)) = self.gated.pop_front() else { return };
            if gate <= seq { self.ready.push_back(item) } else { self.gated.push_back((gate, item)) }
        }
    }

    /// Nothing that waits for a flush will ever leave: the writer failed.
    pub(super) fn drop_gated(&mut self) {
        self.gated.clear();
        self.open.retain(|frame| frame.gate.is_none());
    }

    /// Whether something waits for a flush.
    pub(super) fn is_gated(&self) -> bool {
        !self.gated.is_empty()
    }

    /// Whether the bridge's ring was full and something waits for a place.
    pub(super) fn is_blocked(&self) -> bool {
        !self.ready.is_empty()
    }

    /// Closes the turn's frames and pushes all that may leave, ringing once. Returns the nodes for
    /// which frames were dropped because the ring was full.
    pub(super) fn flush(&mut self, ring: &Producer<ToBridge>, counters: &ShardCounters) -> BTreeSet<NodeId> {
        let mut open = std::mem::take(&mut self.open);
        open.drain(..).for_each(|frame| self.close(frame));
        self.open = open;
        for (connection, mut builder) in std::mem::take(&mut self.replies) {
            if !builder.is_empty() {
                let frame = builder.finish(self.shard);
                self.push_answers(connection, frame);
            }
            if self.spare_replies.len() < SPARE_REPLIES_MAX {
                self.spare_replies.push(builder);
            }
        }
        let room = ring.places() + PEER_FRAMES_WAITING_MAX;
        // A ring that is full by its bytes has places left.
        if self.waiting > 0 || self.ready.len() > room {
            self.mix();
        }
        let mut lost = BTreeSet::new();
        let mut peers_waiting = 0;
        let (mut is_pushed, mut is_full) = (false, false);
        // What is kept goes behind the rest, and so in order to the front once all have been looked at. After the first that finds
        // no room nothing is pushed, also what is smaller: it may belong to the same client or follower, who take things in order.
        for _ in 0..self.ready.len() {
            let Some(item) = self.ready.pop_front() else { break };
            let is_peer = matches!(item, ToBridge::Peer { .. });
            let bytes = client_bytes(&item);
            match if is_full { Err(item) } else { ring.push_quietly(item) } {
                Ok(()) => {
                    is_pushed = true;
                    self.answer_bytes -= bytes;
                    ShardCounters::add(&counters.frames_sent, u64::from(is_peer));
                }
                Err(ToBridge::Peer { to, .. }) if peers_waiting == PEER_FRAMES_WAITING_MAX => {
                    ShardCounters::add(&counters.frames_dropped, 1);
                    lost.insert(to);
                }
                Err(item) => {
                    is_full = true;
                    peers_waiting += usize::from(is_peer);
                    self.ready.push_back(item);
                }
            }
        }
        self.waiting = self.ready.len();
        if is_pushed {
            ring.ring();
        }
        lost
    }

    /// Draws who goes first of what is new. Those that wait already stay in front, and what a client gets keeps its order:
    /// nothing of that is dropped.
    fn mix(&mut self) {
        let new = self.ready.split_off(self.waiting);
        let (mut peers, clients): (VecDeque<_>, VecDeque<_>) =
            new.into_iter().partition(|item| matches!(item, ToBridge::Peer { .. }));
        peers.rotate_left(self.draw.next(peers.len().max(1)));
        let (first, second) = if self.draw.next(2) == 0 { (peers, clients) } else { (clients, peers) };
        self.ready.extend(first.into_iter().chain(second));
    }

    fn close(&mut self, frame: OpenFrame) {
        let OpenFrame { to, shard, lane, gate, mut builder } = frame;
        let is_kept = builder.len() <= SPARE_MESSAGES_MAX && self.spare.len() < SPARE_FRAMES_MAX;
        let frame = builder.finish(lane, self.shard, shard);
        if is_kept {
            self.spare.push(builder);
        }
        let item = ToBridge::Peer { to, lane, frame };
        match gate {
            Some(gate) => self.gated.push_back((gate, item)),
            None => self.ready.push_back(item),
        }
    }
}

/// Bytes of an item that is for a client.
fn client_bytes(item: &ToBridge) -> usize {
    match item {
        ToBridge::Client { frame, .. } => frame.bytes(),
        ToBridge::Peer { .. } => 0,
    }
}

#[cfg(test)]
mod tests {
    use iroh_raft_netbridge::ring::{Doorbell, ring, weighed_ring};
    use iroh_raft_netbridge::wire::Chunks;

    use super::*;

    const CLIENT: u64 = 7;

    /// Frames to as many peers, and between them one after the other to one client; each is told apart by its bytes.
    fn fill(outbox: &mut Outbox, peers: u64) {
        for at in 0..peers {
            let frame = OutFrame { chunks: Chunks::new(), items: 1 };
            outbox.ready.push_back(ToBridge::Peer { to: NodeId(at + 2), lane: Lane::Heartbeat, frame });
            outbox.push_reply(Token { origin: CLIENT, request: at }, GroupId(1), ReplyBody::Done);
            let frame = outbox.replies.remove(&CLIENT).expect("it was pushed just now").finish(ShardId(0));
            outbox.push_answers(CLIENT, frame);
        }
    }

    #[test]
    fn a_client_gets_its_frames_in_order_and_all_of_them_when_the_ring_is_full() {
        let counters = ShardCounters::default();
        let (producer, consumer) = ring(8, &Doorbell::new());
        let mut outbox = Outbox::new(ShardId(0));
        fill(&mut outbox, 200);
        let expected: Vec<_> = outbox.ready.iter().filter_map(of_client).collect();
        let mut got = Vec::new();
        while outbox.is_blocked() {
            outbox.flush(&producer, &counters);
            while let Some(item) = consumer.pop() {
                got.extend(of_client(&item));
            }
        }
        assert!(expected.len() == 200 && got == expected);
    }

    #[test]
    fn what_is_small_does_not_overtake_what_finds_no_room() {
        let counters = ShardCounters::default();
        let (producer, consumer) = weighed_ring(1024, 4096, client_bytes, &Doorbell::new());
        let mut outbox = Outbox::new(ShardId(0));
        let mut sent = Vec::new();
        for bytes in [3000, 2000, 10, 3000, 20, 30, 4000, 40] {
            let chunks: Chunks = [bytes::Bytes::from(vec![7; bytes])].into_iter().collect();
            sent.push(bytes);
            outbox.push_answers(CLIENT, OutFrame { chunks, items: 1 });
        }
        let mut got = Vec::new();
        while outbox.is_blocked() {
            outbox.flush(&producer, &counters);
            while let Some(item) = consumer.pop() {
                got.push(client_bytes(&item));
            }
        }
        assert_eq!(got, sent);
        assert_eq!(outbox.answer_bytes, 0);
    }

    #[test]
    fn answers_of_a_client_that_is_gone_are_let_go() {
        let counters = ShardCounters::default();
        let (producer, consumer) = ring(8, &Doorbell::new());
        let mut outbox = Outbox::new(ShardId(0));
        fill(&mut outbox, 20);
        outbox.flush(&producer, &counters);
        assert!(outbox.answer_bytes > 0 && outbox.waiting > 0);
        outbox.forget_client(CLIENT);
        assert_eq!(outbox.answer_bytes, 0);
        while outbox.is_blocked() {
            while consumer.pop().is_some() {}
            outbox.flush(&producer, &counters);
        }
    }

    fn of_client(item: &ToBridge) -> Option<Vec<bytes::Bytes>> {
        match item {
            ToBridge::Client { frame, .. } => Some(frame.chunks.to_vec()),
            ToBridge::Peer { .. } => None,
        }
    }
}

//! The network between nodes, and between clients and nodes: real frames, late, lost, doubled, damaged or never.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;
use iroh_raft_core::{MessageKind, NodeId};
use iroh_raft_netbridge::port::ToShard;
use iroh_raft_netbridge::wire::{
    FrameError, FrameHeader, FrameLimits, HEADER_BYTES, Lane, OutFrame, PeerFrame,
};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use crate::checkers::ensure;
use crate::clock::{elapsed, sleep};
use crate::placing;
use crate::plan::{Plan, within};
use crate::sim::Shared;

const MILLION: u32 = 1_000_000;

#[derive(Debug)]
pub(crate) struct Network {
    random: SmallRng,
    /// Pairs that cannot reach each other, in this direction.
    cut: BTreeSet<(NodeId, NodeId)>,
    /// Factors on the delay, by direction.
    slow: BTreeMap<(NodeId, NodeId), u32>,
    /// Frames of the append lane that still get through, by direction; without an entry all do.
    appends_left: BTreeMap<(NodeId, NodeId), u32>,
    /// When the last frame of a lane arrives, if lanes keep their order.
    last: BTreeMap<(NodeId, NodeId, u8), Duration>,
    is_healed: bool,
}

impl Network {
    pub(crate) fn new(plan: &Plan) -> Network {
        Network {
            random: SmallRng::seed_from_u64(plan.seed ^ 0x6e65_7477),
            cut: BTreeSet::new(),
            slow: BTreeMap::new(),
            appends_left: BTreeMap::new(),
            last: BTreeMap::new(),
            is_healed: false,
        }
    }

    pub(crate) fn cut(&mut self, from: NodeId, to: NodeId) {
        self.cut.insert((from, to));
    }

    pub(crate) fn join(&mut self, from: NodeId, to: NodeId) {
        self.cut.remove(&(from, to));
    }

    pub(crate) fn slow(&mut self, from: NodeId, to: NodeId, factor: u32) {
        self.slow.insert((from, to), factor);
    }

    /// Lets so many frames with entries through and no more; `None` lets all through again.
    pub(crate) fn limit_appends(&mut self, from: NodeId, to: NodeId, frames: Option<u32>) {
        match frames {
            Some(frames) => self.appends_left.insert((from, to), frames),
            None => self.appends_left.remove(&(from, to)),
        };
    }

    pub(crate) fn has_limits(&self) -> bool {
        !self.appends_left.is_empty()
    }

    /// From now on nothing is lost, doubled or damaged.
    pub(crate) fn heal(&mut self) {
        self.cut.clear();
        self.slow.clear();
        self.appends_left.clear();
        self.is_healed = true;
    }

    /// Whether a limit keeps this frame back.
    fn is_held(&mut self, from: NodeId, to: NodeId, lane: Lane) -> bool {
        let left = self.appends_left.get_mut(&(from, to)).filter(|_| lane == Lane::Append);
        left.is_some_and(|left| {
            let is_held = *left == 0;
            *left = left.saturating_sub(1);
            is_held
        })
    }

    fn is_cut(&self, from: NodeId, to: NodeId) -> bool {
        self.cut.contains(&(from, to))
    }

    fn chance(&mut self, in_a_million: u32) -> bool {
        !self.is_healed && in_a_million > 0 && self.random.random_range(0..MILLION) < in_a_million
    }

    fn delay(&mut self, plan: &Plan, from: NodeId, to: NodeId) -> Duration {
        within(&mut self.random, plan.delay) * self.slow.get(&(from, to)).copied().unwrap_or(1)
    }
}

/// All bytes of a frame.
pub(crate) fn joined(frame: &OutFrame) -> Vec<u8> {
    frame.chunks.concat()
}

/// Header and body of a frame, as a stream's reader sees them.
pub(crate) fn parse(bytes: &[u8], limits: &FrameLimits) -> Option<Result<(FrameHeader, Bytes), FrameError>> {
    let (header, body) = bytes.split_first_chunk::<HEADER_BYTES>()?;
    match FrameHeader::parse(header, limits) {
        Ok(header) => {
            let body = body.get(..header.body_bytes())?;
            Some(Ok((header, Bytes::copy_from_slice(body))))
        }
        Err(error) => Some(Err(error)),
    }
}

/// Sends a frame from one node to another.
pub(crate) fn send(sim: &Shared, from: NodeId, to: NodeId, lane: Lane, frame: &OutFrame) {
    let boot = sim.nodes.borrow().boot_of(to);
    let mut network = sim.network.borrow_mut();
    let plan = &sim.plan;
    if network.is_cut(from, to) || network.is_held(from, to, lane) || network.chance(plan.loss) {
        drop(network);
        return sim.mark("frame lost");
    }
    let copies = if network.chance(plan.duplicates) { 2 } else { 1 };
    let mut bytes = joined(frame);
    let is_corrupted = network.chance(plan.corruption);
    if is_corrupted {
        let at = network.random.random_range(0..HEADER_BYTES);
        bytes[at] ^= 1 << network.random.random_range(0..8);
    }
    // Chunks are few among frames.
    if lane == Lane::Snapshot && network.chance(plan.corruption * 20) && damage_chunk(&mut bytes) {
        drop(network);
        sim.mark("chunk of a snapshot damaged");
        network = sim.network.borrow_mut();
    }
    let bytes = Bytes::from(bytes);
    for copy in 0..copies {
        let mut at = elapsed() + network.delay(plan, from, to);
        if !plan.is_reordering && copy == 0 {
            let last = network.last.entry((from, to, lane as u8)).or_default();
            at = at.max(*last);
            *last = at;
        }
        let (sim, bytes) = (sim.clone(), bytes.clone());
        madsim::task::spawn_local(async move {
            sleep(at.saturating_sub(elapsed())).await;
            deliver(&sim, from, to, &bytes, is_corrupted, boot);
        });
    }
    drop(network);
    sim.checks.borrow_mut().marks.add("frame duplicated", copies - 1);
    sim.checks.borrow_mut().marks.add("frame corrupted", u64::from(is_corrupted));
}

/// Damages the chunk of a snapshot that a frame ends with, if it does: its digest has to tell.
fn damage_chunk(bytes: &mut [u8]) -> bool {
    let Some(Ok((header, body))) = parse(bytes, &FrameLimits::PEER) else { return false };
    let Ok(frame) = PeerFrame::decode(&header, body, &FrameLimits::PEER) else { return false };
    let last = frame.messages().last().map(|message| message.kind);
    match bytes.last_mut() {
        Some(byte) if last == Some(MessageKind::SnapshotChunk) => *byte ^= 1,
        _ => return false,
    }
    true
}

fn deliver(sim: &Shared, from: NodeId, to: NodeId, bytes: &[u8], is_corrupted: bool, boot: u64) {
    if sim.network.borrow().is_cut(from, to) {
        return sim.mark("frame lost");
    }
    let limits = FrameLimits::PEER;
    let decoded = match parse(bytes, &limits) {
        Some(Ok((header, body))) => PeerFrame::decode(&header, body, &limits),
        Some(Err(error)) => Err(error),
        None => return,
    };
    let frame = match decoded {
        Ok(frame) => frame,
        Err(error) => {
            let checked =
                ensure(is_corrupted, "what is sent can be read", || format!("{from} to {to}: {error}"));
            sim.checks.borrow_mut().note(checked);
            // A connection on which something else than a frame arrives is closed by who reads it.
            unreachable(sim, from, to);
            return unreachable(sim, to, from);
        }
    };
    placing::connect(sim, from, to);
    let nodes = sim.nodes.borrow();
    let Some(port) = nodes.port(to, frame.destination_shard()) else { return };
    let is_late = nodes.boot_of(to) != boot;
    let is_full = port.push(ToShard::Peer { from, frame }).is_err();
    drop(nodes);
    let mut checks = sim.checks.borrow_mut();
    checks.marks.add("ring full towards a shard", u64::from(is_full));
    checks.marks.add("frame delivered late after a restart", u64::from(is_late));
}

/// Tells a node that another cannot be reached.
pub(crate) fn unreachable(sim: &Shared, node: NodeId, peer: NodeId) {
    for port in sim.nodes.borrow().ports(node) {
        // Full: the shard finds out by itself.
        let _ = port.push(ToShard::Unreachable { node: peer });
    }
}

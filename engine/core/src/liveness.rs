//! Whether the shards of other nodes live: what replicas of quiet groups rely on instead of heartbeats.
//!
//! Each shard sends one beat in a little less than half a lease to each shard of another node that it shares a group with,
//! however many groups that are: where all nodes place their groups alike, to the shard of its own number. A beat names
//! the two shards and the sender's incarnation, which changes with a restart,
//! and whenever the sender can no longer vouch for what its replicas agreed to (one was taken out). A shard is
//! *heard* while its last beat is less than a lease (`lease_ticks`) ago. It vouches for its own replicas alone, so
//! each of ours goes by the shard that has its group on the other node (`placement.rs`).
//!
//! The idea is CockroachDB's node liveness under quiescent ranges, and TiKV's store heartbeats under hibernated
//! regions; `group/quiet.rs` has the argument why it is enough.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;

use crate::ids::{GroupId, Index, NodeId, ShardId, Term, Timestamp};
use crate::io::{MessageKind, PeerMessage, ShardConfig};
use crate::jitter::mix;
use crate::mutants::{self, Mutant};
use crate::placement::PeerShard;
use crate::validate::Refusal;

/// One life of a shard, as far as its replicas stand by what they agreed to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Incarnation {
    /// Drawn at its start.
    boot: u64,
    /// How often it has taken back its word since.
    withdrawals: u64,
}

#[derive(Clone, Copy, Debug)]
struct Peer {
    incarnation: Incarnation,
    last_beat: Timestamp,
    is_heard: bool,
}

/// What became of a shard of another node, as far as quiet groups go.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Change {
    /// It is heard for the first time, again, or under another incarnation.
    Returned(PeerShard),
    /// It is not heard any more.
    Silent(PeerShard),
}

#[derive(Debug)]
pub(crate) struct Liveness {
    own: Incarnation,
    here: ShardId,
    /// Shards of other nodes that have replicas of this shard's groups.
    shards: BTreeSet<PeerShard>,
    peers: BTreeMap<PeerShard, Peer>,
    next_beat: Timestamp,
    /// The next beat is sent at once, for another node's has come shortly before.
    is_answering: bool,
    answer_within: Duration,
    /// Time without a beat after which a shard is not heard any more; none where groups never go quiet.
    silence: Option<Duration>,
}

impl Liveness {
    pub(crate) fn new(config: &ShardConfig, now: Timestamp) -> Liveness {
        Liveness {
            own: Incarnation { boot: mix(config.seed ^ 0x6c69_7665), withdrawals: 0 },
            here: config.shard,
            shards: BTreeSet::new(),
            peers: BTreeMap::new(),
            next_beat: now,
            is_answering: false,
            answer_within: interval(config) / 2,
            silence: config.quiet_after.map(|_| config.tick * config.lease_ticks),
        }
    }

    /// The shards that share groups with this one have changed.
    pub(crate) fn set_shards(&mut self, shards: BTreeSet<PeerShard>) {
        self.peers.retain(|peer, _| shards.contains(peer));
        self.shards = shards;
    }

    /// What was agreed with replicas of this shard holds no longer: everybody has to look anew.
    pub(crate) fn withdraw(&mut self, now: Timestamp) {
        self.own.withdrawals += 1;
        self.next_beat = now;
    }

    /// When the next beat is due, or a shard falls silent; `None` where there are no beats.
    pub(crate) fn next_wakeup(&self) -> Option<Timestamp> {
        let silence = self.silence?;
        let heard = self.peers.values().filter(|peer| peer.is_heard);
        heard.map(|peer| peer.last_beat.after(silence)).chain([self.next_beat]).min()
    }

    /// Whether beats are due by `until`, when the shard looks again at the latest; the next ones are then waited for.
    pub(crate) fn is_due(&mut self, now: Timestamp, until: Timestamp, config: &ShardConfig) -> bool {
        let is_due = self.silence.is_some() && (now >= self.next_beat || until > self.next_beat);
        if is_due {
            // Whoever answers waits a little longer, so that the same one goes first again: the others' beats then carry
            // what acknowledges it, and come together.
            let slack = if std::mem::take(&mut self.is_answering) { config.tick / 4 } else { Duration::ZERO };
            self.next_beat = now.after(interval(config) + slack);
        }
        is_due
    }

    /// One for each shard.
    pub(crate) fn beats(&self, from: NodeId) -> impl Iterator<Item = PeerMessage> + '_ {
        self.shards.iter().map(move |to| self.beat(from, *to))
    }

    fn beat(&self, from: NodeId, to: PeerShard) -> PeerMessage {
        PeerMessage {
            index: Index(self.own.boot),
            commit: Index(self.own.withdrawals),
            ..PeerMessage::bare(
                MessageKind::Beat,
                GroupId(0),
                (from, to.node),
                shards_in_term(self.here, to.shard),
            )
        }
    }

    /// A peer's beat. One of a shard that shares no group, as far as is known here, says nothing.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(crate) fn handle_beat(
        &mut self,
        now: Timestamp,
        node: NodeId,
        beat: &PeerMessage,
    ) -> Result<Option<Change>, Refusal> {
        check(node, self.here, beat)?;
        let from = PeerShard { node: beat.from, shard: shards_of(beat).0 };
        if self.silence.is_none() || !self.shards.contains(&from) {
            return Ok(None);
        }
        let incarnation = Incarnation { boot: beat.index.0, withdrawals: beat.commit.0 };
        let peer = Peer { incarnation, last_beat: now, is_heard: true };
        let before = self.peers.insert(from, peer);
        if self.next_beat.since(now) < self.answer_within {
            (self.next_beat, self.is_answering) = (now, true);
        }
        let is_same = before.is_some_and(|before| before.is_heard && before.incarnation == incarnation);
        Ok((!is_same).then_some(Change::Returned(from)))
    }

    /// The shard itself stood still for so long: that says nothing about the others.
    pub(crate) fn handle_pause(&mut self, now: Timestamp, pause: Duration) {
        // Of this turn, some were taken already.
        self.peers.values_mut().for_each(|peer| peer.last_beat = peer.last_beat.after(pause).min(now));
    }

    /// Shards that have fallen silent by now, each told once.
    pub(crate) fn take_silent(&mut self, now: Timestamp) -> Vec<Change> {
        let Some(silence) = self.silence else { return Vec::new() };
        let mut silent = Vec::new();
        for (shard, peer) in &mut self.peers {
            if peer.is_heard && peer.last_beat.after(silence) <= now {
                peer.is_heard = false;
                silent.push(Change::Silent(*shard));
            }
        }
        if mutants::is(Mutant::QuietAndDeaf) {
            silent.clear();
        }
        silent
    }

    /// When a shard that is heard last beat; `None` if it is not heard.
    pub(crate) fn heard(&self, shard: PeerShard) -> Option<Timestamp> {
        self.peers.get(&shard).filter(|peer| peer.is_heard).map(|peer| peer.last_beat)
    }
}

/// Half a lease, less half a tick: one beat may be lost before a shard counts as silent. One that is awake looks at every tick, and
/// sends a beat that is due before the next one. Each wakes a thread or two on both sides, which is nearly all that an idle
/// node does.
fn interval(config: &ShardConfig) -> Duration {
    let half = (config.tick * config.lease_ticks).saturating_sub(config.tick) / 2;
    half.max(config.tick * config.heartbeat_ticks)
}

/// A beat's term says which shard it is from, and which one it is for: it is of no group, which would say it.
fn shards_in_term(from: ShardId, to: ShardId) -> Term {
    Term(u64::from(from.0) << 16 | u64::from(to.0))
}

/// The shards of its sender and its receiver that a beat is between.
pub(crate) fn shards_of(beat: &PeerMessage) -> (ShardId, ShardId) {
    (ShardId((beat.term.0 >> 16) as u16), ShardId(beat.term.0 as u16))
}

fn check(node: NodeId, here: ShardId, beat: &PeerMessage) -> Result<(), Refusal> {
    if beat.from == NodeId(0) || beat.from == node {
        return Err(Refusal::Sender { from: beat.from });
    }
    if beat.to != node {
        return Err(Refusal::Receiver { to: beat.to });
    }
    let (from, to) = shards_of(beat);
    // A beat has its shards and its two numbers, and nothing else.
    let bare = PeerMessage {
        kind: MessageKind::Beat,
        group: GroupId(0),
        term: shards_in_term(from, to),
        log_term: Term(0),
        commit_term: Term(0),
        reject: false,
        reject_hint: Index(0),
        request_snapshot: Index(0),
        priority: 0,
        context: Bytes::new(),
        entries: Vec::new(),
        ..*beat
    };
    if *beat != bare {
        return Err(Refusal::Beat);
    }
    if to == here { Ok(()) } else { Err(Refusal::Elsewhere { shard: to }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;
    const ONE: PeerShard = shard(1, 0);
    const TWO: PeerShard = shard(2, 0);

    const fn shard(node: u64, shard: u16) -> PeerShard {
        PeerShard { node: NodeId(node), shard: ShardId(shard) }
    }

    fn at(ms: u64) -> Timestamp {
        Timestamp(ms * MS)
    }

    fn pair() -> (Liveness, Liveness) {
        let of = |node| {
            let mut liveness = Liveness::new(&ShardConfig::new(NodeId(node), node), at(0));
            liveness.set_shards([ONE, TWO].into_iter().filter(|shard| shard.node != NodeId(node)).collect());
            liveness
        };
        (of(1), of(2))
    }

    fn beat(from: &Liveness, to: &mut Liveness, ms: u64) -> Option<Change> {
        let beat = from.beats(NodeId(2)).next().expect("one for node 1");
        to.handle_beat(at(ms), NodeId(1), &beat).expect("a sound beat")
    }

    #[test]
    fn a_node_is_heard_for_a_lease_and_each_change_is_told_once() {
        let (mut here, there) = pair();
        assert_eq!(beat(&there, &mut here, 0), Some(Change::Returned(TWO)));
        assert_eq!(beat(&there, &mut here, 100), None);
        assert_eq!((here.take_silent(at(599)), here.heard(TWO)), (vec![], Some(at(100))));
        assert_eq!(here.take_silent(at(600)), [Change::Silent(TWO)]);
        assert_eq!((here.take_silent(at(700)), here.heard(TWO)), (vec![], None));
        assert_eq!(beat(&there, &mut here, 800), Some(Change::Returned(TWO)));
    }

    #[test]
    fn a_restart_and_a_word_taken_back_are_noticed() {
        let (mut here, mut there) = pair();
        beat(&there, &mut here, 0);
        there.withdraw(at(5));
        assert_eq!(beat(&there, &mut here, 10), Some(Change::Returned(TWO)));
        assert_eq!(beat(&there, &mut here, 20), None);
        let mut again = Liveness::new(&ShardConfig::new(NodeId(2), 77), at(0));
        again.set_shards([ONE].into());
        assert_eq!(beat(&again, &mut here, 30), Some(Change::Returned(TWO)));
    }

    #[test]
    fn a_pause_of_the_shard_is_no_silence_of_the_others() {
        let (mut here, there) = pair();
        beat(&there, &mut here, 0);
        here.handle_pause(at(30_000), Duration::from_secs(30));
        assert_eq!(here.take_silent(at(30_499)), []);
        assert_eq!(here.take_silent(at(30_500)), [Change::Silent(TWO)]);
    }

    #[test]
    fn strangers_and_forgeries_are_not_believed() {
        let (mut here, there) = pair();
        let sound = there.beats(NodeId(2)).next().expect("one for node 1");
        let stranger = PeerMessage { from: NodeId(9), ..sound.clone() };
        assert_eq!(here.handle_beat(at(0), NodeId(1), &stranger), Ok(None));
        let forged = PeerMessage { log_term: Term(3), ..sound.clone() };
        assert_eq!(here.handle_beat(at(0), NodeId(1), &forged), Err(Refusal::Beat));
        let elsewhere = PeerMessage { term: Term(3), ..sound.clone() };
        let refused = Err(Refusal::Elsewhere { shard: ShardId(3) });
        assert_eq!(here.handle_beat(at(0), NodeId(1), &elsewhere), refused);
        let of_another = PeerMessage { term: Term(1 << 16), ..sound.clone() };
        assert_eq!(here.handle_beat(at(0), NodeId(1), &of_another), Ok(None), "it shares no group");
        assert_eq!((here.heard(TWO), here.heard(shard(2, 1))), (None, None));
        let forged = PeerMessage { term: Term(1 << 32), ..sound.clone() };
        assert_eq!(here.handle_beat(at(0), NodeId(1), &forged), Err(Refusal::Beat));
        let own = PeerMessage { from: NodeId(1), ..sound };
        assert_eq!(here.handle_beat(at(0), NodeId(1), &own), Err(Refusal::Sender { from: NodeId(1) }));
        assert_eq!(here.heard(shard(9, 0)), None);
    }

    #[test]
    fn beats_are_due_once_an_interval() {
        let config = ShardConfig::new(NodeId(1), 0);
        let mut here = Liveness::new(&config, at(0));
        assert!(here.is_due(at(0), at(0), &config) && !here.is_due(at(224), at(224), &config));
        assert_eq!(here.next_wakeup(), Some(at(225)));
        assert!(here.is_due(at(230), at(230), &config));
        assert_eq!(here.next_wakeup(), Some(at(455)));
        assert!(!here.is_due(at(400), at(450), &config));
        assert!(here.is_due(at(410), at(460), &config), "before the next tick");
        assert_eq!(here.next_wakeup(), Some(at(635)));
        let never = ShardConfig { quiet_after: None, ..config };
        let mut never_quiet = Liveness::new(&never, at(0));
        assert!(!never_quiet.is_due(at(500), at(550), &never) && never_quiet.next_wakeup().is_none());
    }
}

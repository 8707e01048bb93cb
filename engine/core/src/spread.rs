//! Spreading leaders over nodes, without a coordinator: each shard looks at its own replicas alone.
//!
//! Every group has a home among its voters of the highest priority: a function of its number and of who they
//! are, that all of them compute alike and that spreads groups evenly. A node's fair share is the number of
//! groups that are at home there. A node that leads more than its share by more than the band, or a twentieth of
//! the share, gives groups that it leads, and that are not at home there, to their homes; a group that a node of
//! higher priority could lead goes there without counting.
//!
//! It comes to rest: with each move one group more is at home, or led with a higher priority, and no move goes
//! the other way. Comparing the numbers of leaders instead would not: where groups live on some of the nodes
//! only, no node knows all numbers, and groups were seen to go round for ever. What a node sees of them says which home
//! comes first: the one that lacks most. Otherwise one that has enough would get more, and give it away in turn.
//!
//! Moves are made in rounds, some in each: groups that are awake together cost little more than one. Rounds are drawn apart from
//! the seed, so that nodes rarely give to the same one at once. A round that moved something is followed by another within one to
//! two election timeouts, about a hundred moves a second from each shard: a cluster of some hundred groups is even within seconds
//! of its start or of a node's return, one of 100,000 within minutes; otherwise there is time for what is changing to come to an end. A node that took over none of them is not asked
//! again for a while. What a node that is down should lead, the others keep as it falls to them, and look every now and
//! then whether it is back. Where nothing could be moved to anybody, there is no round until somebody's leader or voters change.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::group::Seat;
use crate::ids::{GroupId, NodeId, Timestamp};
use crate::io::ShardConfig;
use crate::jitter::mix;
use crate::mutants::{self, Mutant};

/// What part of its share a node may have too much of: less is not worth that a group wakes for it.
const BAND_SHARE: usize = 20;
/// Intervals for which a node is left out that did not take over.
const AVOID_INTERVALS: u32 = 5;
/// Leaderships that are given away in a round, at most: the work for them is a few milliseconds, beside a look at all
/// replicas of the shard (70 ms with 100,000).
const MOVES_MAX: usize = 128;

#[derive(Debug)]
pub(crate) struct Spread {
    /// Rounds are close until then: groups find their first leaders, on whichever nodes came up first.
    started_until: Timestamp,
    next_at: Timestamp,
    rounds: u64,
    /// The moves of the last round: those have failed of which this node still leads the group in the next one.
    last: BTreeMap<GroupId, NodeId>,
    /// Nodes that did not take over, each with the time for which it is left out.
    avoided: BTreeMap<NodeId, Timestamp>,
    /// Nothing could be moved when this was last looked at, and nothing that it rests on has changed since.
    is_settled: bool,
}

impl Spread {
    pub(crate) fn new(config: &ShardConfig, now: Timestamp) -> Spread {
        let mut spread = Spread {
            started_until: now.after(interval(config)),
            next_at: now,
            rounds: 0,
            last: BTreeMap::new(),
            avoided: BTreeMap::new(),
            is_settled: false,
        };
        spread.put_off(config, now);
        spread
    }

    /// A group of the shard has another leader or other voters than before, or is gone.
    pub(crate) fn handle_change(&mut self, now: Timestamp, config: &ShardConfig) {
        if std::mem::take(&mut self.is_settled) {
            self.put_off(config, now);
        }
    }

    /// When the next round is, if there is something to look at.
    pub(crate) fn next_at(&self, config: &ShardConfig) -> Option<Timestamp> {
        (config.spread.is_some() && !self.is_settled).then_some(self.next_at)
    }

    /// After a round, and before the first: when the next one is.
    pub(crate) fn put_off(&mut self, config: &ShardConfig, now: Timestamp) {
        let is_soon = !self.last.is_empty() || now < self.started_until;
        // What was moved is then led from there, or will not be.
        let wait = if is_soon { config.tick * config.election_ticks.1 } else { interval(config) };
        let jitter_ns = mix(mix(config.seed) ^ self.rounds) % (wait.as_nanos() as u64).max(1);
        self.rounds += 1;
        self.next_at = now.after(wait + Duration::from_nanos(jitter_ns));
    }

    /// Moves of this round, the best first: it is for the caller to find those whose replicas can lead.
    pub(crate) fn candidates(&mut self, config: &ShardConfig, now: Timestamp, seats: &[Seat]) -> Candidates {
        let Some(settings) = config.spread else { return Candidates::default() };
        self.avoid(config, now, seats);
        let mut candidates = candidates(config, settings.band, seats);
        self.is_settled = candidates.moves.is_empty();
        let is_avoided = |(_, to): &(GroupId, NodeId)| self.avoided.contains_key(to);
        candidates.higher -= candidates.moves[..candidates.higher].iter().filter(|to| is_avoided(to)).count();
        candidates.moves.retain(|to| !is_avoided(to));
        candidates
    }

    /// Whom all moves of the last round to it have failed.
    fn avoid(&mut self, config: &ShardConfig, now: Timestamp, seats: &[Seat]) {
        let last = std::mem::take(&mut self.last);
        let is_led = |seat: &&Seat| seat.leader == Some(config.node) && last.contains_key(&seat.group);
        let failed: BTreeSet<GroupId> = seats.iter().filter(is_led).map(|seat| seat.group).collect();
        let (stayed, gone): (Vec<_>, Vec<_>) = last.iter().partition(|(group, _)| failed.contains(group));
        for (_, to) in stayed {
            if gone.iter().all(|(_, taken_by)| *taken_by != to) {
                self.avoided.insert(*to, now.after(interval(config) * AVOID_INTERVALS));
            }
        }
        self.avoided.retain(|_, until| *until > now);
    }

    pub(crate) fn handle_taken(&mut self, group: GroupId, to: NodeId) {
        self.last.insert(group, to);
    }
}

fn interval(config: &ShardConfig) -> Duration {
    config.spread.map_or(Duration::ZERO, |spread| spread.interval)
}

/// What a round may do.
#[derive(Default, Debug)]
pub(crate) struct Candidates {
    /// The best first. Those of a group that a node of higher priority could lead come before the others.
    pub(crate) moves: Vec<(GroupId, NodeId)>,
    /// How many of them go to a higher priority; the others go home.
    higher: usize,
    /// Groups that this node leads beyond its share and the band: so many may go home.
    over: usize,
}

impl Candidates {
    /// Makes the moves of a round: `is_taken` says whether a group's leadership goes there.
    pub(crate) fn make(self, mut is_taken: impl FnMut(GroupId, NodeId) -> bool) {
        let (mut given, mut over) = (BTreeSet::new(), self.over);
        for (at, (group, to)) in self.moves.into_iter().enumerate() {
            let is_homeward = at >= self.higher;
            if given.len() == MOVES_MAX || is_homeward && over == 0 {
                return;
            }
            if !given.contains(&group) && is_taken(group, to) {
                given.insert(group);
                over -= usize::from(is_homeward);
            }
        }
    }
}

fn candidates(config: &ShardConfig, band: u32, seats: &[Seat]) -> Candidates {
    let (here, ours) = (config.node, config.priority_of(config.node));
    // A replica that was removed and has not heard of it takes itself for a voter, but knows no leader.
    let seats = seats.iter().filter(|seat| seat.voters.contains(&here) && seat.leader.is_some());
    let homes: Vec<(&Seat, NodeId)> = seats.map(|seat| (seat, home(config, seat))).collect();
    let share = homes.iter().filter(|(_, home)| *home == here).count();
    // How many more groups than it leads are at home on each, of those that are seen here.
    let mut lacking: BTreeMap<NodeId, i64> = BTreeMap::new();
    for (seat, home) in &homes {
        *lacking.entry(*home).or_default() += 1;
        seat.leader.iter().for_each(|leader| *lacking.entry(*leader).or_default() -= 1);
    }
    let led = homes.iter().filter(|(seat, _)| seat.leader == Some(here));
    let led_count = led.clone().count();
    let mut over = led_count.saturating_sub(share + (band as usize).max(share / BAND_SHARE));
    let mut moves: Vec<(GroupId, NodeId, bool)> = Vec::new();
    for (seat, home) in led {
        let higher = seat.voters.iter().filter(|node| config.priority_of(**node) > ours);
        moves.extend(higher.map(|node| (seat.group, *node, node == home)));
        if over > 0 && *home != here && config.priority_of(*home) == ours {
            moves.push((seat.group, *home, true));
        }
        if mutants::is(Mutant::SpreadRestless) {
            let next = seat.voters.iter().find(|node| **node > here).unwrap_or(&seat.voters[0]);
            moves.push((seat.group, *next, true));
            over = led_count;
        }
    }
    // Which of its groups goes is drawn by a hash: those of a client may have numbers in a row.
    moves.sort_by_key(|(group, node, is_home)| {
        let lacks = lacking.get(node).copied().unwrap_or_default();
        Reverse((config.priority_of(*node), *is_home, lacks, mix(mix(group.0) ^ node.0)))
    });
    let higher = moves.iter().filter(|(_, node, _)| config.priority_of(*node) > ours).count();
    let moves = moves.into_iter().map(|(group, node, _)| (group, node)).collect();
    Candidates { moves, higher, over }
}

/// Fibonacci hashing (Knuth, volume 3, 6.4): numbers in a row fall evenly on the voters, and so do those of one
/// shard, which are so many apart as there are shards.
fn home(config: &ShardConfig, seat: &Seat) -> NodeId {
    let priority = |node: &NodeId| config.priority_of(*node);
    let highest = seat.voters.iter().map(priority).max().unwrap_or_default();
    let wanted: Vec<NodeId> = seat.voters.iter().filter(|node| priority(node) == highest).copied().collect();
    let point = u128::from(seat.group.0.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    wanted[usize::try_from((point * wanted.len() as u128) >> 64).expect("below the number of voters")]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::SpreadConfig;

    /// A cluster in which every transfer succeeds at once.
    struct Nodes {
        configs: Vec<ShardConfig>,
        spreads: Vec<Spread>,
        seats: Vec<Seat>,
    }

    impl Nodes {
        fn new(nodes: u64, groups: u64, voters: usize, band: u32, seed: u64) -> Nodes {
            let spread = Some(SpreadConfig { interval: Duration::from_secs(10), band });
            let config = |node| ShardConfig { spread, ..ShardConfig::new(NodeId(node), mix(seed ^ node)) };
            let configs: Vec<ShardConfig> = (1..=nodes).map(config).collect();
            let spreads = configs.iter().map(|config| Spread::new(config, Timestamp(0))).collect();
            let seat = |group: u64| {
                let mut all: Vec<NodeId> = (1..=nodes).map(NodeId).collect();
                all.sort_by_key(|node| mix(mix(seed ^ group) ^ node.0));
                all.truncate(voters);
                // All on few nodes, as after restarts.
                let leader = all.iter().copied().min();
                all.sort_unstable();
                Seat { group: GroupId(group), leader, voters: all }
            };
            let seats = (1..=groups).map(seat).collect();
            Nodes { configs, spreads, seats }
        }

        /// One round of every node whose time has come, in order of time; returns the moves.
        fn run(&mut self, until: Timestamp) -> u64 {
            let mut moved = 0;
            loop {
                let times = (0..self.spreads.len())
                    .filter_map(|at| Some((self.spreads[at].next_at(&self.configs[at])?, at)));
                let Some((now, next)) = times.min().filter(|(now, _)| *now < until) else { return moved };
                let (config, spread) = (&self.configs[next], &mut self.spreads[next]);
                let node = config.node;
                let seen: Vec<Seat> =
                    self.seats.iter().filter(|seat| seat.voters.contains(&node)).cloned().collect();
                let mut taken = Vec::new();
                spread.candidates(config, now, &seen).make(|group, to| {
                    let seat = self.seats.iter_mut().find(|seat| seat.group == group).unwrap();
                    assert!(seat.voters.contains(&to) && seat.leader == Some(node));
                    seat.leader = Some(to);
                    taken.push((group, to));
                    true
                });
                moved += taken.len() as u64;
                taken.iter().for_each(|(group, to)| self.spreads[next].handle_taken(*group, *to));
                self.spreads[next].put_off(&self.configs[next], now);
                if !taken.is_empty() {
                    let both = self.spreads.iter_mut().zip(&self.configs);
                    both.for_each(|(spread, config)| spread.handle_change(now, config));
                }
            }
        }

        fn led(&self, node: u64) -> usize {
            self.seats.iter().filter(|seat| seat.leader == Some(NodeId(node))).count()
        }
    }

    fn hours(hours: u64) -> Timestamp {
        Timestamp(hours * 3_600_000_000_000)
    }

    /// Until nothing moves any more, and how many nodes lead more than their share and the band.
    fn at_rest(cluster: &mut Nodes, band: usize, what: &str) {
        cluster.run(hours(1));
        assert_eq!(cluster.run(hours(2)), 0, "{what}: at rest");
        for config in &cluster.configs {
            let share = cluster.seats.iter().filter(|seat| home(config, seat) == config.node).count();
            let led = cluster.led(config.node.0);
            assert!(led <= share + band, "{what}: {led} led by {}, share {share}", config.node);
        }
    }

    #[test]
    fn leaders_come_to_rest_within_the_band_of_the_fair_share() {
        for seed in 0..40 {
            let (nodes, groups, band) = (3 + seed % 7, 1 + mix(seed) % 120, 1 + (seed % 3) as u32);
            for voters in [3, nodes as usize] {
                let mut cluster = Nodes::new(nodes, groups, voters, band, seed);
                let what = format!("seed {seed}: {nodes} nodes, {groups} groups on {voters}");
                at_rest(&mut cluster, band as usize, &what);
            }
        }
    }

    #[test]
    fn shares_are_even_also_in_each_shard() {
        for (shards, nodes) in [(1, 3), (2, 3), (3, 3), (4, 3), (8, 5), (16, 3), (3, 7)] {
            for shard in 0..shards {
                let voters: Vec<NodeId> = (1..=nodes).map(NodeId).collect();
                let groups = (1..=30 * nodes).map(|at| GroupId(at * shards + shard));
                let mut shares = BTreeMap::<NodeId, u64>::new();
                for group in groups {
                    let seat = Seat { group, leader: None, voters: voters.clone() };
                    *shares.entry(home(&ShardConfig::new(NodeId(1), 0), &seat)).or_default() += 1;
                }
                let within = shares.values().all(|share| (24..=36).contains(share));
                assert!(shares.len() as u64 == nodes && within, "{shards} shards, shard {shard}: {shares:?}");
            }
        }
    }

    #[test]
    fn a_higher_priority_gets_all_and_a_lower_one_nothing() {
        let mut cluster = Nodes::new(3, 12, 3, 1, 9);
        for config in &mut cluster.configs {
            config.priorities = vec![(NodeId(2), 5), (NodeId(3), 5)];
        }
        at_rest(&mut cluster, 1, "two of three");
        assert_eq!(cluster.led(1), 0);
    }

    #[test]
    fn it_looks_again_only_after_a_change() {
        let mut cluster = Nodes::new(3, 12, 3, 1, 9);
        at_rest(&mut cluster, 1, "three nodes");
        let (config, spread, seats) = (&cluster.configs[0], &mut cluster.spreads[0], &mut cluster.seats);
        assert_eq!(spread.next_at(config), None);
        seats.iter_mut().for_each(|seat| seat.leader = Some(config.node));
        spread.handle_change(hours(3), config);
        let (from, to) = (hours(3).after(interval(config)), hours(3).after(interval(config) * 2));
        let now = spread.next_at(config).unwrap();
        assert!((from..to).contains(&now), "there is time for more changes: {now:?}");
        let (group, home) = spread.candidates(config, now, seats).moves[0];
        spread.put_off(config, now);
        assert!(spread.next_at(config) >= Some(now.after(interval(config))), "nothing could be moved");
        spread.handle_taken(group, home);
        spread.put_off(config, now);
        assert!(spread.next_at(config) < Some(now.after(interval(config))), "until nothing is left to move");
    }

    #[test]
    fn a_start_is_even_within_seconds_and_no_group_moves_twice() {
        let mut cluster = Nodes::new(3, 600, 3, 2, 5);
        cluster.seats.iter_mut().for_each(|seat| seat.leader = Some(NodeId(seat.group.0.min(301) / 300 + 1)));
        let over: usize = (1..=3).map(|node| cluster.led(node).saturating_sub(210)).sum();
        let moved = cluster.run(Timestamp(10_000_000_000));
        assert!((over as u64 - 10..=over as u64 + 10).contains(&moved), "{moved} moves, {over} too many");
        assert_eq!(cluster.run(hours(1)), 0);
    }

    #[test]
    fn a_node_that_did_not_take_over_is_left_out_for_some_time() {
        let mut cluster = Nodes::new(3, 12, 3, 1, 9);
        let (config, spread, seats) = (&cluster.configs[0], &mut cluster.spreads[0], &cluster.seats);
        let now = hours(1);
        let (group, to) = spread.candidates(config, now, seats).moves[0];
        spread.handle_taken(group, to);
        let mut targets = |now| {
            let moves = spread.candidates(config, now, seats).moves;
            moves.into_iter().map(|(_, to)| to).collect::<Vec<_>>()
        };
        let interval = interval(config);
        for at in 0..AVOID_INTERVALS {
            assert!(!targets(now.after(interval * at)).contains(&to));
        }
        assert!(targets(now.after(interval * AVOID_INTERVALS)).contains(&to));
    }

    #[test]
    fn a_node_that_took_over_some_is_asked_again() {
        let mut cluster = Nodes::new(3, 12, 3, 1, 9);
        let (config, spread, seats) = (&cluster.configs[0], &mut cluster.spreads[0], &mut cluster.seats);
        let moves = spread.candidates(config, hours(1), seats).moves;
        let to = moves[0].1;
        let taken: Vec<GroupId> = moves.iter().filter(|(_, of)| *of == to).map(|(group, _)| *group).collect();
        assert!(taken.len() > 2);
        taken[..2].iter().for_each(|group| spread.handle_taken(*group, to));
        seats.iter_mut().find(|seat| seat.group == taken[0]).unwrap().leader = Some(to);
        let again = spread.candidates(config, hours(1), seats).moves;
        assert!(again.contains(&(taken[1], to)));
    }
}

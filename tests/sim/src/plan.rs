//! What a run is made of: everything drawn from its seed before it begins.

use std::time::Duration;

use iroh_raft_core::{
    ConfState, GroupId, GroupState, LeaseReads, NodeId, Retention, ShardConfig, SnapshotConfig, SpreadConfig,
};
use iroh_raft_driver::ApplyBudget;
use iroh_raft_storage::ShardOptions;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use crate::nemesis::FaultKind;

/// More than all other faults together.
const USURP_WEIGHT: u32 = 200;

/// A range in microseconds, both ends included.
pub(crate) type Micros = (u64, u64);

/// Flushes in one commit at most, where nothing else is drawn.
const COMMIT_MAX: usize = 64;

/// Nodes besides its first voters that a group may move to.
const SPARES_MAX: usize = 2;

/// Draws from a range.
pub(crate) fn within(random: &mut SmallRng, range: Micros) -> Duration {
    Duration::from_micros(random.random_range(range.0..=range.1))
}

#[derive(Clone, Debug)]
pub(crate) struct GroupPlan {
    pub(crate) id: GroupId,
    /// Voters at first.
    pub(crate) voters: Vec<NodeId>,
    /// Nodes that may hold a replica: the voters, and those that may become members.
    pub(crate) hosts: Vec<NodeId>,
    pub(crate) has_machine: bool,
    /// Whether that is the bank, not the registers.
    pub(crate) is_bank: bool,
    pub(crate) retention: Retention,
    /// The voter that is told of the group, if not all of them are.
    pub(crate) begins_on: Option<NodeId>,
}

impl GroupPlan {
    /// Its replica before the first start.
    pub(crate) fn fresh(&self) -> GroupState {
        GroupState::fresh(self.id, self.members(), self.has_machine)
    }

    pub(crate) fn members(&self) -> ConfState {
        ConfState { voters: self.voters.clone(), ..ConfState::default() }
    }
}

#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) seed: u64,
    pub(crate) nodes: u64,
    /// Shards of a node until it is told otherwise.
    pub(crate) shards: u16,
    /// Chance that a node's groups are placed otherwise at a start of it.
    pub(crate) moves: f64,
    pub(crate) groups: Vec<GroupPlan>,
    pub(crate) core: ShardConfig,
    pub(crate) storage: ShardOptions,
    /// Places of the ring between bridge and shard, and of that of flushes.
    pub(crate) ring: usize,
    pub(crate) flushes: usize,
    pub(crate) fetches: usize,
    /// Flushes in one commit at most.
    pub(crate) commit: usize,
    pub(crate) delay: Micros,
    /// Chances in a million, for each frame.
    pub(crate) loss: u32,
    pub(crate) duplicates: u32,
    pub(crate) corruption: u32,
    /// Whether frames of a lane overtake each other.
    pub(crate) is_reordering: bool,
    pub(crate) flush: Micros,
    pub(crate) turn: Micros,
    /// By how much clocks are slow or fast, and whose are slow.
    pub(crate) drift_ppm: i64,
    pub(crate) slow: Vec<NodeId>,
    pub(crate) writers: u64,
    /// Clients with sessions, and after which time these expire.
    pub(crate) sessions: u64,
    pub(crate) session_ttl: Duration,
    pub(crate) record_bytes_max: usize,
    pub(crate) think: Micros,
    /// What a turn gives to state machines. Time stands still in a turn here.
    pub(crate) apply_budget: ApplyBudget,
    /// Bytes of a snapshot besides what it is about.
    pub(crate) filler_bytes: usize,
    /// How long faults come, and how often.
    pub(crate) chaos: Duration,
    pub(crate) fault_every: Micros,
    pub(crate) faults: Vec<(FaultKind, u32)>,
    /// Whether consumers trim what they have done with.
    pub(crate) is_trimming: bool,
    /// Leaves a node cut off when the faults stop: to see that the end notices.
    pub(crate) leaves_cut: bool,
    /// Nodes whose disks may lie: so few that each group keeps a majority without them.
    pub(crate) liars: Vec<NodeId>,
}

impl Plan {
    pub(crate) fn draw(seed: u64) -> Plan {
        let random = &mut SmallRng::seed_from_u64(seed ^ 0x706c_616e);
        let nodes = *pick(random, &[3, 3, 3, 3, 4, 5, 5, 7]);
        let count = *pick(random, &[1, 1, 2, 3, 4, 8, 16, 32]);
        let groups = (1..=count).map(|id| draw_group(random, GroupId(id), nodes)).collect();
        let tick_ms = *pick(random, &[10, 20, 20, 50]);
        let base = *pick(random, &[50, 200, 1_000, 5_000]);
        let liars =
            if random.random_bool(0.3) { vec![NodeId(random.random_range(1..=nodes))] } else { vec![] };
        let mut plan = Plan {
            seed,
            nodes,
            shards: *pick(random, &[1, 1, 2, 3]),
            moves: 0.0,
            groups,
            core: draw_core(random, tick_ms),
            storage: draw_storage(random),
            // With less than a place for each peer a larger cluster loses too many heartbeats to keep leaders.
            ring: (*pick(random, &[1, 4, 64, 1024])).max(if nodes > 3 { nodes as usize - 1 } else { 1 }),
            flushes: *pick(random, &[1, 2, 16, 256]),
            fetches: *pick(random, &[1, 4, 64]),
            commit: *pick(random, &[1, 4, COMMIT_MAX]),
            delay: (base, base * random.random_range(2..=10)),
            loss: *pick(random, &[0, 0, 1_000, 50_000]),
            duplicates: *pick(random, &[0, 0, 1_000, 50_000]),
            corruption: *pick(random, &[0, 0, 500, 5_000]),
            is_reordering: random.random_bool(0.5),
            flush: *pick(random, &[(100, 500), (200, 2_000), (1_000, 20_000)]),
            turn: *pick(random, &[(1, 20), (10, 200), (10, 2_000)]),
            drift_ppm: *pick(random, &[0, 100, 10_000, 100_000]),
            slow: Vec::new(),
            writers: random.random_range(2..=6),
            sessions: 0,
            session_ttl: Duration::ZERO,
            record_bytes_max: *pick(random, &[64, 64, 64, 512, 512, 4_096, 32_768]),
            think: *pick(random, &[(1_000, 10_000), (1_000, 20_000), (5_000, 100_000)]),
            chaos: Duration::from_secs(random.random_range(10..=30)),
            fault_every: *pick(random, &[(100_000, 1_000_000), (300_000, 2_000_000), (1_000_000, 6_000_000)]),
            apply_budget: ApplyBudget {
                records_max: *pick(random, &[1, 2, 16, 1 << 16]),
                ..ApplyBudget::default()
            },
            filler_bytes: 0,
            faults: Vec::new(),
            is_trimming: false,
            leaves_cut: false,
            liars,
        };
        // Nobody is elected on a disk that cannot keep up with the election timeout (Raft paper, 5.6).
        let backlog = Duration::from_micros(plan.flush.1) * plan.flushes as u32 / plan.commit as u32;
        if backlog > plan.election() / 4 {
            plan.commit = COMMIT_MAX;
        }
        // Nor where many groups vote, and a flush has the votes of only as many as small rings let through.
        if Duration::from_micros(plan.flush.1) * plan.groups.len() as u32 > plan.election() / 2 {
            (plan.ring, plan.flushes, plan.commit) = (plan.ring.max(64), plan.flushes.max(16), COMMIT_MAX);
        }
        plan.draw_faults(random);
        plan.draw_clocks(random);
        plan.draw_leadership(&mut SmallRng::seed_from_u64(seed ^ 0x6c65_6164));
        plan.draw_snapshots(&mut SmallRng::seed_from_u64(seed ^ 0x736e_6170));
        plan.draw_reading(&mut SmallRng::seed_from_u64(seed ^ 0x7265_6164));
        plan.draw_sessions(&mut SmallRng::seed_from_u64(seed ^ 0x7365_7373));
        plan.draw_quiet(&mut SmallRng::seed_from_u64(seed ^ 0x7175_6965));
        plan.draw_placement(&mut SmallRng::seed_from_u64(seed ^ 0x706c_6163));
        plan.draw_banks(&mut SmallRng::seed_from_u64(seed ^ 0x6261_6e6b));
        plan
    }

    /// Clocks drift by as much as the bound allows, or by less. Worst for a lease is a leader whose clock is slow among
    /// others that are fast.
    fn draw_clocks(&mut self, random: &mut SmallRng) {
        let is_lone = random.random_bool(0.5);
        let lone = NodeId(random.random_range(1..=self.nodes));
        self.slow =
            self.node_ids().filter(|id| if is_lone { *id == lone } else { random.random() }).collect();
        if random.random_bool(0.3) {
            return;
        }
        if random.random_bool(0.3) {
            self.drift_ppm = 200_000;
        }
        let bound = *pick(random, &[1, 1, 1, 10_000, 100_000]);
        let drift = u32::try_from(self.drift_ppm).expect("a drift is not negative");
        self.core.lease_reads = Some(LeaseReads { drift_ppm_max: bound.max(drift) });
        if random.random_bool(0.7) {
            // Elections as soon as promises allow.
            let shortest = self.core.lease_ticks + 1;
            self.core.election_ticks = (shortest, shortest + 6);
        }
        if random.random_bool(0.5) {
            // Hardly anything but what leases get wrong, and in few groups, so that it meets them.
            self.groups.truncate(2);
            self.groups.iter_mut().for_each(|group| group.has_machine = true);
            // Turns that take so long are met by pauses.
            self.turn = (10, 2_000);
            self.faults.retain(|(kind, _)| *kind != FaultKind::Usurp);
            self.faults.push((FaultKind::Usurp, USURP_WEIGHT));
        }
    }

    fn draw_leadership(&mut self, random: &mut SmallRng) {
        let election = self.election();
        self.core.flush_stuck_after = Duration::from_millis(*pick(random, &[100, 300, 1_000]));
        let spread = SpreadConfig {
            interval: election * random.random_range(1..=3),
            band: random.random_range(1..=2),
        };
        self.core.spread = random.random_bool(0.5).then_some(spread);
        if random.random_bool(0.25) {
            self.core.priorities = self.node_ids().map(|node| (node, random.random_range(0..3))).collect();
        }
    }

    /// Nodes come back with other shards in a third of the runs.
    fn draw_placement(&mut self, random: &mut SmallRng) {
        self.moves = *pick(random, &[0.0, 0.0, 0.0, 0.0, 0.3, 0.7]);
    }

    /// Sessions that outlast every fault, or hardly a pause.
    fn draw_sessions(&mut self, random: &mut SmallRng) {
        self.sessions = *pick(random, &[0, 1, 2, 3, 3]);
        let ttls = [Duration::from_millis(800), Duration::from_secs(4), Duration::from_secs(600)];
        self.session_ttl = *pick(random, &[ttls[0], ttls[1], ttls[2], ttls[2]]);
        self.core.sessions_per_owner_max = *pick(random, &[2, 16, 300]);
    }

    /// Some state machines are banks; not where leases are the matter, of which registers tell more.
    fn draw_banks(&mut self, random: &mut SmallRng) {
        if !self.faults.contains(&(FaultKind::Usurp, USURP_WEIGHT)) {
            self.groups
                .iter_mut()
                .for_each(|group| group.is_bank = group.has_machine && random.random_bool(0.4));
        }
    }

    /// Groups go quiet after a heartbeat, or later, or never; in some runs clients leave them the time to.
    fn draw_quiet(&mut self, random: &mut SmallRng) {
        let ticks = *pick(random, &[self.core.heartbeat_ticks, 4, 10, 40]);
        self.core.quiet_after = random.random_bool(0.8).then_some(self.core.tick * ticks);
        if random.random_bool(0.3) {
            self.core.quiet_after = Some(self.core.tick * self.core.heartbeat_ticks);
            self.think = (200_000, 3_000_000);
        }
    }

    /// Snapshots after a few entries in most runs; of several chunks where there are few groups to send them.
    fn draw_snapshots(&mut self, random: &mut SmallRng) {
        self.core.snapshots = SnapshotConfig {
            entries: *pick(random, &[1, 5, 20, 20, 100, 100_000]),
            bytes: *pick(random, &[1 << 10, 64 << 10, 256 << 20]),
            age: *pick(random, &[Duration::from_millis(500), Duration::from_secs(3600)]),
            lag_entries_max: *pick(random, &[0, 0, 3, 20]),
            taking_max: random.random_range(1..=2),
            sending_max: random.random_range(1..=2),
            receiving_max: random.random_range(1..=2),
            send_bytes_per_second: *pick(random, &[256 << 10, 4 << 20, 64 << 20]),
            stall_after: self.election() * random.random_range(1..=4),
        };
        let snapshots = &mut self.core.snapshots;
        snapshots.stall_after = snapshots.stall_after.max(snapshots.pace());
        if self.groups.len() <= 4 {
            self.filler_bytes = *pick(random, &[0, 300_000, 600_000]);
        }
    }

    /// How long records are kept: for ever in half of the runs, where everything is read at the end.
    fn draw_reading(&mut self, random: &mut SmallRng) {
        self.core.tails_max = *pick(random, &[1, 2, 1024]);
        self.core.retention_interval = Duration::from_millis(*pick(random, &[200, 1_000, 3_000]));
        self.is_trimming = random.random_bool(0.4);
        if random.random_bool(0.7) {
            return;
        }
        for group in &mut self.groups {
            group.retention.bytes_max =
                random.random_bool(0.5).then(|| *pick(random, &[1 << 10, 32 << 10, 256 << 10]));
            let ages = [Duration::from_millis(500), Duration::from_secs(4)];
            group.retention.age_max = random.random_bool(0.5).then(|| *pick(random, &ages));
        }
    }

    /// Three kinds of runs: everything at times; one leader after the other loses touch, often before it has
    /// committed anything; leaders duel, and entries reach others one by one. In some of them one node's records are damaged again
    /// and again.
    fn draw_faults(&mut self, random: &mut SmallRng) {
        let (is_stormy, is_duel) =
            *pick(random, &[(false, false), (false, false), (true, false), (false, true)]);
        if is_stormy {
            self.fault_every = *pick(random, &[(20_000, 300_000), (50_000, 800_000)]);
        }
        if is_duel {
            self.fault_every = (100_000, 1_000_000);
            self.groups.truncate(2);
            self.core.message_bytes_max = 1;
        }
        // What the other lies do takes a node out for good, before it could be repaired often.
        let is_repaired = !self.liars.is_empty() && random.random_bool(0.6);
        let weight = |random: &mut SmallRng, kind: FaultKind| match kind {
            FaultKind::RecordsDamaged if is_repaired => 80,
            FaultKind::SnapshotsDamaged if is_repaired => 40,
            _ if is_repaired && kind.is_lie() => 0,
            FaultKind::LeaderCut if is_stormy => 200,
            FaultKind::Duel if is_duel => 1_000,
            _ if random.random_bool(0.2) => 0,
            _ => kind.weight(),
        };
        let kinds = FaultKind::ALL.into_iter().filter(|kind| !kind.is_lie() || !self.liars.is_empty());
        self.faults = kinds.map(|kind| (kind, weight(random, kind))).collect();
    }

    pub(crate) fn node_ids(&self) -> impl Iterator<Item = NodeId> + use<> {
        (1..=self.nodes).map(NodeId)
    }

    pub(crate) fn group(&self, id: GroupId) -> &GroupPlan {
        self.groups.iter().find(|group| group.id == id).expect("a group of the plan")
    }

    /// Longest time in which a group without a leader finds one, when nothing fails.
    pub(crate) fn election(&self) -> Duration {
        self.core.tick * self.core.election_ticks.1
    }
}

fn pick<'a, T>(random: &mut SmallRng, from: &'a [T]) -> &'a T {
    &from[random.random_range(0..from.len())]
}

fn draw_group(random: &mut SmallRng, id: GroupId, nodes: u64) -> GroupPlan {
    let count = if nodes >= 5 && random.random_bool(0.5) { 5 } else { 3 };
    let mut voters: Vec<NodeId> = (1..=nodes).map(NodeId).collect();
    while voters.len() > count {
        voters.remove(random.random_range(0..voters.len()));
    }
    let spares = (1..=nodes).map(NodeId).filter(|node| !voters.contains(node));
    let hosts = voters.iter().copied().chain(spares.take(SPARES_MAX)).collect();
    let begins_on = random.random_bool(0.3).then(|| *pick(random, &voters));
    let (has_machine, retention) = (random.random_bool(0.5), Retention::default());
    GroupPlan { id, voters, hosts, has_machine, is_bank: false, retention, begins_on }
}

fn draw_core(random: &mut SmallRng, tick_ms: u64) -> ShardConfig {
    // Small enough for groups to meet at the shard's bound.
    let defaults = ShardConfig { shard_pending_bytes_max: 256 << 10, ..ShardConfig::new(NodeId(1), 0) };
    ShardConfig {
        tick: Duration::from_millis(tick_ms),
        entry_bytes_max: *pick(random, &[1 << 10, 16 << 10, 480 << 10]),
        entry_records_max: *pick(random, &[1, 16, 16_384]),
        pending_bytes_max: *pick(random, &[128 << 10, 1 << 20, 16 << 20]),
        message_bytes_max: *pick(random, &[1, 1 << 10, 32 << 10, 1 << 20]),
        inflight_messages_max: *pick(random, &[1, 2, 16, 128]),
        window_bytes_max: *pick(random, &[1, 16 << 10, 256 << 10, 64 << 20]),
        apply_bytes_max: *pick(random, &[1, 4 << 10, 1 << 20]),
        waking_max: *pick(random, &[1, 1, 8192]),
        apply_lag_records_max: *pick(random, &[1, 16, 1 << 18]),
        reads_waiting_max: *pick(random, &[1, 64, 65_536]),
        ..defaults
    }
}

fn draw_storage(random: &mut SmallRng) -> ShardOptions {
    ShardOptions {
        journal_bytes_max: *pick(random, &[64 << 10, 512 << 10, 8 << 20]),
        move_bytes: *pick(random, &[8 << 10, 64 << 10, 1 << 20]),
        journal_cache_bytes: 2 << 20,
        log_cache_bytes: 1 << 20,
        free_bytes_min: 256 << 10,
        preallocate_bytes: 0,
        tail_bytes: *pick(random, &[0, 16 << 10, 64 << 20]),
    }
}

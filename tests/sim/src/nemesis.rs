//! The faults: which one, where and for how long is drawn from the seed.

use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_channel::oneshot;
use iroh_raft_core::{MemberChange, MemberRole, NodeId, RequestError, TransferError};
use iroh_raft_driver::lines::{Command, LeadershipError};
use iroh_raft_netbridge::wire::{ClientBody, ReplyBody};
use iroh_raft_storage::FileKind;
use iroh_raft_storage::fault::{Fault, Operation, Trouble};
use madsim::task::spawn_local;
use rand::Rng;
use rand::rngs::SmallRng;

use crate::checkers::ensure;
use crate::clients::{self, RECORD_FILLER};
use crate::clock::{elapsed, sleep};
use crate::node;
use crate::plan::{GroupPlan, within};
use crate::recover::lose_quorum;
use crate::sim::Shared;
use crate::usurp::usurp;

/// How long a power cut that waits for a write waits at most.
const CUT_WITHIN: Duration = Duration::from_secs(2);
/// Places looked at for a record to damage.
const FLIP_TRIES: usize = 256;
/// How a stored chunk of a snapshot begins, and where its data does (FORMAT.md, "Snapshots").
const CHUNK_MAGIC: &[u8] = b"IRSC";
const CHUNK_HEADER_BYTES: usize = 64;
/// Chunks of a file that are damaged at a time.
const CHUNKS_DAMAGED_MAX: usize = 8;
const LOOK_EVERY: Duration = Duration::from_millis(2);
/// Time that the others are given to elect another leader, in election timeouts.
const DUEL_ELECTIONS: u32 = 4;
const HOUR_MS: i64 = 3_600_000;
/// Longest time until a transfer is answered: pauses, stalls and turns of a slow node included.
const ANSWER_WITHIN: Duration = Duration::from_secs(30);

/// What can go wrong.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum FaultKind {
    Kill,
    PowerCut,
    PowerCutInCommit,
    PowerCutOfAll,
    Pause,
    Partition,
    LeaderCut,
    Duel,
    OneWay,
    SlowLink,
    ClockJump,
    DiskStall,
    LeaderDiskHung,
    DiskError,
    DiskFull,
    LostWrite,
    MisdirectedWrite,
    BitFlip,
    RollBack,
    RecordsDamaged,
    SnapshotsDamaged,
    HandOver,
    Transfer,
    Members,
    Usurp,
    QuorumLost,
}

impl std::str::FromStr for FaultKind {
    type Err = String;

    fn from_str(name: &str) -> Result<FaultKind, String> {
        let found = FaultKind::ALL.into_iter().find(|kind| format!("{kind:?}") == name);
        found.ok_or_else(|| format!("no such fault; there are {:?}", FaultKind::ALL))
    }
}

impl FaultKind {
    pub(crate) const ALL: [FaultKind; 26] = [
        FaultKind::Kill,
        FaultKind::PowerCut,
        FaultKind::PowerCutInCommit,
        FaultKind::PowerCutOfAll,
        FaultKind::Pause,
        FaultKind::Partition,
        FaultKind::LeaderCut,
        FaultKind::Duel,
        FaultKind::OneWay,
        FaultKind::SlowLink,
        FaultKind::ClockJump,
        FaultKind::DiskStall,
        FaultKind::LeaderDiskHung,
        FaultKind::DiskError,
        FaultKind::DiskFull,
        FaultKind::LostWrite,
        FaultKind::MisdirectedWrite,
        FaultKind::BitFlip,
        FaultKind::RollBack,
        FaultKind::RecordsDamaged,
        FaultKind::SnapshotsDamaged,
        FaultKind::HandOver,
        FaultKind::Transfer,
        FaultKind::Members,
        FaultKind::Usurp,
        FaultKind::QuorumLost,
    ];

    pub(crate) fn weight(self) -> u32 {
        match self {
            FaultKind::Partition | FaultKind::LeaderCut => 12,
            FaultKind::Kill | FaultKind::PowerCutInCommit | FaultKind::OneWay => 8,
            FaultKind::Duel => 3,
            FaultKind::LeaderDiskHung => 6,
            FaultKind::Transfer => 16,
            FaultKind::Members | FaultKind::RecordsDamaged | FaultKind::SnapshotsDamaged => 20,
            FaultKind::PowerCut | FaultKind::Pause | FaultKind::DiskError | FaultKind::HandOver => 5,
            FaultKind::SlowLink | FaultKind::DiskStall | FaultKind::ClockJump => 4,
            FaultKind::PowerCutOfAll | FaultKind::DiskFull => 2,
            FaultKind::BitFlip | FaultKind::Usurp | FaultKind::QuorumLost => 8,
            FaultKind::LostWrite | FaultKind::MisdirectedWrite | FaultKind::RollBack => 2,
        }
    }

    /// Whether the disk pretends: it may do so on few nodes only.
    pub(crate) fn is_lie(self) -> bool {
        matches!(
            self,
            Self::LostWrite
                | Self::MisdirectedWrite
                | Self::BitFlip
                | Self::RollBack
                | Self::RecordsDamaged
                | Self::SnapshotsDamaged
        )
    }
}

/// Lets faults come until their time is over.
pub(crate) async fn run(sim: &Shared) {
    let mut random = sim.random();
    loop {
        sleep(within(&mut random, sim.plan.fault_every)).await;
        if elapsed() >= sim.plan.chaos || sim.is_broken() {
            return;
        }
        let weights: u32 = sim.plan.faults.iter().map(|(_, weight)| weight).sum();
        if weights == 0 {
            continue;
        }
        let mut at = random.random_range(0..weights);
        let drawn = sim.plan.faults.iter().find(|(_, weight)| {
            let is_it = at < *weight;
            at = at.saturating_sub(*weight);
            is_it
        });
        let (kind, _) = drawn.expect("the weights add up");
        strike(sim, &mut random, *kind);
    }
}

fn any_node(sim: &Shared, random: &mut SmallRng) -> NodeId {
    NodeId(random.random_range(1..=sim.plan.nodes))
}

/// Starts what goes on after a fault struck; a run does not end before it has.
fn go_on(sim: &Shared, what: impl Future<Output = ()> + 'static) {
    let sim = sim.clone();
    sim.faults_open.set(sim.faults_open.get() + 1);
    spawn_local(async move {
        what.await;
        sim.faults_open.set(sim.faults_open.get() - 1);
    });
}

fn later(sim: &Shared, time: Duration, what: impl FnOnce(&Shared) + 'static) {
    let of = sim.clone();
    go_on(sim, async move {
        sleep(time).await;
        what(&of);
    });
}

fn strike(sim: &Shared, random: &mut SmallRng, kind: FaultKind) {
    let node = any_node(sim, random);
    sim.tell(|| format!("fault: {kind:?}"));
    let short = within(random, (10_000, 500_000));
    let long = within(random, (100_000, 5_000_000));
    let down = if random.random_bool(0.5) { short } else { long };
    match kind {
        FaultKind::Kill => {
            sim.mark("node killed");
            node::kill(sim, node);
            later(sim, down, move |sim| node::boot(sim, node));
        }
        FaultKind::PowerCut => {
            sim.mark("power cut");
            node::cut_power(sim, node);
            later(sim, down, move |sim| node::boot(sim, node));
        }
        FaultKind::PowerCutInCommit => {
            let after = random.random_range(0..60);
            let trouble = Trouble::Cut;
            let fault = Fault { kind: None, operation: Operation::Change, after, times: 1, trouble };
            sim.nodes.borrow().disk(node).plant(fault);
            let (of, deadline) = (sim.clone(), elapsed() + CUT_WITHIN);
            go_on(sim, async move {
                let sim = of;
                // A disk that was replaced meanwhile, by a kill or another cut, is dead too.
                let disk = sim.nodes.borrow().disk(node);
                while !disk.is_dead() && elapsed() < deadline {
                    sleep(LOOK_EVERY).await;
                }
                sim.mark(if disk.is_dead() { "power cut inside a commit" } else { "power cut" });
                node::cut_power(&sim, node);
                later(&sim, down, move |sim| node::boot(sim, node));
            });
        }
        FaultKind::PowerCutOfAll => {
            sim.mark("power cut of all nodes");
            for node in sim.plan.node_ids() {
                node::cut_power(sim, node);
                later(sim, within(random, (10_000, 2_000_000)), move |sim| node::boot(sim, node));
            }
        }
        FaultKind::Pause => {
            let Some(handle) = sim.nodes.borrow().handle(node) else { return };
            sim.mark("node paused");
            madsim::runtime::Handle::current().pause(handle.id());
            later(sim, down, move |_| madsim::runtime::Handle::current().resume(handle.id()));
        }
        FaultKind::Partition => partition(sim, random, down),
        FaultKind::LeaderCut => {
            // For about as long as the others need to elect another, and it to notice.
            let group = pick(random, &sim.plan.groups).id;
            let Some(leader) = sim.checks.borrow().leader_of(group) else { return };
            sim.mark("leader cut off");
            let election = sim.plan.core.tick * sim.plan.core.election_ticks.0;
            let time = election.mul_f64(random.random_range(0.2..2.5));
            let others: Vec<NodeId> = sim.plan.node_ids().filter(|node| *node != leader).collect();
            let pairs = others.iter().flat_map(|other| [(leader, *other), (*other, leader)]);
            cut(sim, pairs.collect(), time);
        }
        FaultKind::Duel => {
            let group = pick(random, &sim.plan.groups).clone();
            if !sim.network.borrow().has_limits() {
                go_on(sim, duel(sim.clone(), group, sim.random()));
            }
        }
        FaultKind::Usurp => {
            let group = pick(random, &sim.plan.groups).clone();
            let has_leases = sim.plan.core.lease_reads.is_some();
            if group.has_machine && !group.is_bank && has_leases && !sim.is_usurping.replace(true) {
                let (of, random) = (sim.clone(), sim.random());
                go_on(sim, async move {
                    usurp(of.clone(), group, random).await;
                    of.is_usurping.set(false);
                });
            }
        }
        FaultKind::QuorumLost => {
            let group = pick(random, &sim.plan.groups).clone();
            // A replica that a disk takes out, too, is no survivor, and nobody to make a member again.
            if sim.plan.liars.is_empty() && !sim.is_recovering.replace(true) {
                let (of, random) = (sim.clone(), sim.random());
                go_on(sim, async move {
                    lose_quorum(of.clone(), group, random).await;
                    of.is_recovering.set(false);
                });
            }
        }
        FaultKind::OneWay => {
            sim.mark("link cut one way");
            let is_deaf = random.random_bool(0.5);
            let only = random.random_bool(0.5).then(|| any_node(sim, random));
            let others =
                sim.plan.node_ids().filter(|other| *other != node && only.is_none_or(|only| only == *other));
            let pairs = others.map(|other| if is_deaf { (other, node) } else { (node, other) });
            cut(sim, pairs.collect(), down);
        }
        FaultKind::SlowLink => {
            sim.mark("link slowed");
            let (other, factor) = (any_node(sim, random), random.random_range(5..200));
            sim.network.borrow_mut().slow(node, other, factor);
            later(sim, down, move |sim| sim.network.borrow_mut().slow(node, other, 1));
        }
        FaultKind::ClockJump => {
            sim.mark("clock jumped");
            let by_ms = random.random_range(-HOUR_MS..=HOUR_MS);
            sim.nodes.borrow().wall_offset_ms(node).fetch_add(by_ms, Ordering::Relaxed);
        }
        FaultKind::DiskStall => {
            let us = random.random_range(50_000..3_000_000);
            plant(sim, node, random, &[Operation::Sync, Operation::Write], Trouble::Stall { us });
        }
        FaultKind::LeaderDiskHung => {
            // Also for much longer than it takes to be noticed.
            let group = pick(random, &sim.plan.groups).id;
            let Some(leader) = sim.checks.borrow().leader_of(group) else { return };
            let time = sim.plan.core.flush_stuck_after.mul_f64(random.random_range(0.5..6.0));
            let us = u64::try_from(time.as_micros()).expect("a few seconds");
            let (kind, operation) = (Some(FileKind::Journal), Operation::Sync);
            let fault = Fault { kind, operation, after: 0, times: 1, trouble: Trouble::Stall { us } };
            sim.nodes.borrow().disk(leader).plant(fault);
        }
        FaultKind::DiskError => {
            let trouble = *pick(random, &[Trouble::Eio, Trouble::Eio, Trouble::Short]);
            plant(sim, node, random, &[Operation::Write, Operation::Sync, Operation::Change], trouble);
        }
        FaultKind::DiskFull => {
            sim.mark("disk full");
            let disk = sim.nodes.borrow().disk(node);
            let used: u64 = disk.used_bytes();
            disk.set_capacity(Some(used + random.random_range(0..512 << 10)));
            // The medium outlives the process that met the end of it.
            later(sim, long, move |sim| sim.nodes.borrow().disk(node).set_capacity(None));
        }
        FaultKind::LostWrite | FaultKind::MisdirectedWrite => {
            let (mark, trouble) = match kind {
                FaultKind::LostWrite => ("disk lies: write lost", Trouble::Lost),
                _ => ("disk lies: write misdirected", Trouble::Misdirected),
            };
            sim.mark(mark);
            let node = *pick(random, &sim.plan.liars);
            plant(sim, node, random, &[Operation::Write], trouble);
        }
        FaultKind::BitFlip => flip(sim, random),
        FaultKind::RecordsDamaged => {
            // Its files are closed in order: redb looks at all pages of one that was not, and goes back to the commit
            // before, which is more than the damage of some records.
            let node = *pick(random, &sim.plan.liars);
            let (of, mut random) = (sim.clone(), sim.random());
            go_on(sim, async move {
                node::shut_down(&of, node).await;
                sleep(down).await;
                if !of.nodes.borrow().is_up(node) {
                    damage_records(&of, &mut random, node);
                }
                node::boot(&of, node);
                // While it is under repair, the others have to do without their leader.
                let leader = of.checks.borrow().leader_of(pick(&mut random, &of.plan.groups).id);
                if let Some(leader) = leader.filter(|leader| *leader != node && random.random_bool(0.5)) {
                    node::kill(&of, leader);
                    later(&of, short, move |sim| node::boot(sim, leader));
                }
            });
        }
        FaultKind::SnapshotsDamaged => {
            let node = *pick(random, &sim.plan.liars);
            let (of, mut random) = (sim.clone(), sim.random());
            let is_running = random.random_bool(0.5);
            go_on(sim, async move {
                if is_running {
                    // For the scrub to find, or whoever sends it.
                    damage_snapshots(&of, &mut random, node);
                    return;
                }
                node::shut_down(&of, node).await;
                sleep(down).await;
                if !of.nodes.borrow().is_up(node) {
                    damage_snapshots(&of, &mut random, node);
                }
                node::boot(&of, node);
            });
        }
        FaultKind::RollBack => {
            let node = *pick(random, &sim.plan.liars);
            let disk = sim.nodes.borrow().disk(node);
            let journals = disk.files().into_iter().filter(|(path, _)| path.ends_with("journal.redb"));
            let journals: Vec<_> = journals.collect();
            if journals.is_empty() {
                return;
            }
            let (path, bytes) = journals[random.random_range(0..journals.len())].clone();
            later(sim, down, move |sim| {
                sim.mark("disk lies: rolled back");
                node::kill(sim, node);
                sim.nodes.borrow().disk(node).put(&path, &bytes);
                node::boot(sim, node);
            });
        }
        FaultKind::Members => {
            let group = pick(random, &sim.plan.groups).clone();
            go_on(sim, change_members(sim.clone(), group, sim.random()));
        }
        FaultKind::HandOver => {
            let nodes = sim.nodes.borrow();
            for commands in nodes.commands(node) {
                let (sender, _) = oneshot::channel();
                // A full ring is an operator who is told that the node is busy.
                let _ = commands.push(Command::HandOver(sender));
            }
        }
        FaultKind::Transfer => transfer(sim, random),
    }
}

/// Somebody asks a leader, or who he takes for one, to hand over or to step down, and waits for the outcome.
fn transfer(sim: &Shared, random: &mut SmallRng) {
    let group = pick(random, &sim.plan.groups).id;
    let leader = sim.checks.borrow().leader_of(group).filter(|_| random.random_bool(0.9));
    let (asked, named) = (leader.unwrap_or(any_node(sim, random)), any_node(sim, random));
    let (reply, outcome) = oneshot::channel();
    let command = match random.random_range(0..4) {
        0 | 1 => Command::TransferLeader { group, to: Some(named), reply },
        2 => Command::TransferLeader { group, to: None, reply },
        _ => Command::StepDown { group, reply },
    };
    let to = if let Command::TransferLeader { to, .. } = &command { *to } else { None };
    let nodes = sim.nodes.borrow();
    let shard = nodes.shard_of(asked, group);
    let Some(commands) = nodes.commands(asked).get(usize::from(shard.0)) else { return };
    if commands.push(command).is_err() {
        return;
    }
    let of = sim.clone();
    go_on(sim, async move {
        let sim = of;
        // A node that is paused answers late, one that ends not at all.
        let answered = madsim::time::timeout(ANSWER_WITHIN, outcome).await;
        let checked = ensure(answered.is_ok(), "transfers are answered", || {
            format!("node {asked} does not say what became of a transfer of group {group} to {to:?}")
        });
        sim.checks.borrow_mut().note(checked);
        let Ok(Ok(outcome)) = answered else { return };
        let is_as_asked = match &outcome {
            Ok(over) => to.is_none() || over.leader == to,
            Err(LeadershipError::Transfer(TransferError::NobodyAlive)) => to.is_none(),
            Err(LeadershipError::Transfer(_)) => true,
            Err(LeadershipError::Request(error)) => matches!(
                error,
                RequestError::NotLeader { .. }
                    | RequestError::UnknownGroup
                    | RequestError::Busy { .. }
                    | RequestError::Quarantined
                    | RequestError::Fenced
            ),
        };
        let checked = ensure(is_as_asked, "transfers are answered as they were asked for", || {
            format!("node {asked} to hand group {group} to {to:?}: {outcome:?}")
        });
        sim.checks.borrow_mut().note(checked);
    });
}

fn pick<'a, T>(random: &mut SmallRng, from: &'a [T]) -> &'a T {
    &from[random.random_range(0..from.len())]
}

fn plant(sim: &Shared, node: NodeId, random: &mut SmallRng, on: &[Operation], trouble: Trouble) {
    let kind = *pick(random, &[None, Some(FileKind::Journal), Some(FileKind::Journal), Some(FileKind::Log)]);
    let (operation, after) = (*pick(random, on), random.random_range(0..30));
    sim.nodes.borrow().disk(node).plant(Fault { kind, operation, after, times: 1, trouble });
}

fn flip(sim: &Shared, random: &mut SmallRng) {
    let node = *pick(random, &sim.plan.liars);
    let disk = sim.nodes.borrow().disk(node);
    let files: Vec<_> = disk.files().into_iter().collect();
    let Some((path, bytes)) = files.get(random.random_range(0..files.len().max(1))) else { return };
    if bytes.is_empty() {
        return;
    }
    // Most of a file is not in use: now and then a record is looked for.
    let tries = *pick(random, &[1, FLIP_TRIES]);
    let any = |random: &mut SmallRng| random.random_range(0..bytes.len());
    let at = (0..tries).map(|_| any(random)).find(|at| bytes[*at] == RECORD_FILLER);
    let at = at.unwrap_or_else(|| any(random));
    sim.mark("disk lies: bit flipped");
    disk.flip(path, at, 1 << random.random_range(0..8));
    if random.random_bool(0.5) {
        node::kill(sim, node);
        later(sim, within(random, (10_000, 500_000)), move |sim| node::boot(sim, node));
    }
}

/// Damages some of the records that a node stores.
fn damage_records(sim: &Shared, random: &mut SmallRng, node: NodeId) {
    let disk = sim.nodes.borrow().disk(node);
    let files = disk.files().into_iter();
    let files: Vec<_> =
        files.filter(|(path, _)| path.extension().is_some_and(|name| name == "redb")).collect();
    if files.is_empty() {
        return;
    }
    let (path, bytes) = pick(random, &files);
    let is_record = |at: &usize| bytes[*at] == RECORD_FILLER;
    let looked_at: Vec<usize> =
        (0..FLIP_TRIES).map(|_| random.random_range(0..bytes.len().max(1))).filter(is_record).collect();
    let count = *pick(random, &[1, 4, 16, 64]);
    for at in looked_at.into_iter().take(count) {
        sim.mark("disk lies: record damaged");
        disk.flip(path, at, 1 << random.random_range(0..8));
    }
}

/// Damages chunks of the snapshots that a node stores; some of them are not needed any more.
fn damage_snapshots(sim: &Shared, random: &mut SmallRng, node: NodeId) {
    let disk = sim.nodes.borrow().disk(node);
    for (path, bytes) in disk.files() {
        let heads = bytes.windows(CHUNK_MAGIC.len()).enumerate().filter(|(_, found)| *found == CHUNK_MAGIC);
        let heads: Vec<usize> = heads.map(|(at, _)| at).collect();
        for _ in 0..heads.len().min(CHUNKS_DAMAGED_MAX) {
            let at = *pick(random, &heads) + CHUNK_HEADER_BYTES + random.random_range(0..8);
            if at < bytes.len() {
                sim.mark("disk lies: snapshot damaged");
                disk.flip(&path, at, 1 << random.random_range(0..8));
            }
        }
    }
}

fn partition(sim: &Shared, random: &mut SmallRng, time: Duration) {
    sim.mark("partition");
    let side: Vec<bool> = sim.plan.node_ids().map(|_| random.random_bool(0.5)).collect();
    let lone = any_node(sim, random);
    let is_lone = random.random_bool(0.4);
    let is_here = |node: NodeId| if is_lone { node == lone } else { side[node.0 as usize - 1] };
    let all = || sim.plan.node_ids();
    let pairs = all().flat_map(|one| all().map(move |other| (one, other)));
    cut(sim, pairs.filter(|(one, other)| is_here(*one) != is_here(*other)).collect(), time);
}

/// Asks for other members: one or several at a time, now and then what must be refused.
async fn change_members(sim: Shared, group: GroupPlan, mut random: SmallRng) {
    let Some(leader) = sim.checks.borrow().leader_of(group.id) else { return };
    let members = sim.checks.borrow().commits.members.latest(group.id).clone();
    let mut changes = Vec::new();
    let mut voters = members.voters.clone();
    for _ in 0..*pick(&mut random, &[1, 1, 1, 2, 3]) {
        let node = *pick(&mut random, &group.hosts);
        let is_odd = random.random_bool(0.05);
        let roles: &[MemberRole] = match () {
            () if is_odd => &[MemberRole::Voter, MemberRole::Learner, MemberRole::Gone],
            () if members.voters.contains(&node) => &[MemberRole::Learner, MemberRole::Gone],
            () if members.learners.contains(&node) => {
                &[MemberRole::Voter, MemberRole::Voter, MemberRole::Gone]
            }
            () => &[MemberRole::Learner],
        };
        let role = *pick(&mut random, roles);
        voters.retain(|voter| *voter != node);
        if role == MemberRole::Voter {
            voters.push(node);
        }
        changes.push(MemberChange { node, role });
    }
    // A disk that lies takes one voter: the others must do without it.
    let voters_min = if sim.plan.liars.is_empty() { 1 } else { 3 };
    if voters.len() < voters_min {
        return;
    }
    let is_joint = changes.len() > 1;
    if random.random_bool(0.5) {
        // While it is under way, the leader loses some of those who voted before.
        let before = within(&mut random, sim.plan.delay) * random.random_range(1..6);
        let lost: Vec<NodeId> = members.voters.iter().copied().filter(|node| *node != leader).collect();
        let lost = lost[..random.random_range(0..=lost.len())].to_vec();
        let election = sim.plan.core.tick * sim.plan.core.election_ticks.0;
        let time = election.mul_f64(random.random_range(0.2..2.0));
        later(&sim, before, move |sim| {
            let pairs = lost.iter().flat_map(|node| [(leader, *node), (*node, leader)]);
            cut(sim, pairs.collect(), time);
        });
    }
    let body = ClientBody::ChangeMembers { changes };
    match clients::call(&sim, &mut random, leader, group.id, body).await {
        Ok(ReplyBody::MembersChanged { .. }) => {
            sim.mark(if is_joint { "members changed jointly" } else { "members changed" });
        }
        Ok(_) | Err(_) => sim.mark("members refused"),
    }
}

/// Several leaders after another, each of which gets a few of its entries through to some, and is cut off then:
/// logs that branch, and branches that come back (Raft paper, figure 8).
async fn duel(sim: Shared, group: GroupPlan, mut random: SmallRng) {
    let election = sim.plan.core.tick * sim.plan.core.election_ticks.0;
    let pairs = group.voters.iter().flat_map(|from| group.voters.iter().map(|to| (*from, *to)));
    let pairs: Vec<(NodeId, NodeId)> = pairs.filter(|(from, to)| from != to).collect();
    for _ in 0..random.random_range(3..10) {
        let Some(leader) = sim.checks.borrow().leader_of(group.id) else { break };
        sim.mark("leaders duel");
        let others = || pairs.iter().copied().filter(|(from, to)| *from == leader || *to == leader);
        others().for_each(|(from, to)| sim.network.borrow_mut().cut(from, to));
        // For the next leader, from its first entry on.
        for (from, to) in &pairs {
            let frames = *pick(&mut random, &[0, 0, 0, 0, 1, 2, 2, 3, 3, 4, 5, 8]);
            sim.network.borrow_mut().limit_appends(*from, *to, Some(frames));
        }
        let deadline = elapsed() + election * DUEL_ELECTIONS;
        while sim.checks.borrow().leader_of(group.id) == Some(leader) && elapsed() < deadline {
            sleep(LOOK_EVERY).await;
        }
        others().for_each(|(from, to)| sim.network.borrow_mut().join(from, to));
        sleep(election.mul_f64(random.random_range(0.1..1.0))).await;
        if elapsed() >= sim.plan.chaos {
            break;
        }
    }
    pairs.iter().for_each(|(from, to)| sim.network.borrow_mut().limit_appends(*from, *to, None));
}

/// Cuts links for a time, in the directions given.
fn cut(sim: &Shared, pairs: Vec<(NodeId, NodeId)>, time: Duration) {
    pairs.iter().for_each(|(from, to)| sim.network.borrow_mut().cut(*from, *to));
    later(sim, time, move |sim| {
        pairs.iter().for_each(|(from, to)| sim.network.borrow_mut().join(*from, *to));
    });
}

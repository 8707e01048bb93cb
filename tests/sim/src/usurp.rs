//! Behind a leader's back: another is elected and takes writes while the old one hears nothing of it, and is asked to
//! read by its lease all the while. What leases are known to get wrong, each made likely.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use futures_channel::oneshot;
use iroh_raft_core::{Consistency, NodeId};
use iroh_raft_driver::lines::Command;
use madsim::task::spawn_local;
use rand::Rng;
use rand::rngs::SmallRng;

use crate::clients;
use crate::clock::sleep;
use crate::node;
use crate::plan::{GroupPlan, within};
use crate::sim::Shared;

/// Reads under way at the old leader: more would only wait for their deadlines.
const READS_MAX: u32 = 8;
const READ_EVERY: (u64, u64) = (500, 3_000);
const WRITE_EVERY: (u64, u64) = (500, 5_000);

/// How the old leader is kept from hearing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Way {
    /// Cut off from all.
    Cut,
    /// Cut off after its followers' answers took long.
    SlowAnswers,
    /// Deaf, and told to hand over.
    HandOver,
    /// Followed by some only, which are restarted as it is cut off.
    Restart,
    /// Stopped, and continued: it has requests from before and from meanwhile, and nothing from the others.
    Pause,
    /// Cut off while its group is quiet, and asked only once it has been for a lease.
    Quiet,
}

impl Way {
    fn mark(self) -> &'static str {
        match self {
            Way::Cut => "leader asked behind its back: cut off",
            Way::SlowAnswers => "leader asked behind its back: answers slow",
            Way::HandOver => "leader asked behind its back: handed over",
            Way::Restart => "leader asked behind its back: others restarted",
            Way::Pause => "leader asked behind its back: paused",
            Way::Quiet => "leader asked behind its back: quiet",
        }
    }
}

/// Who works at the moment.
#[derive(Clone, Copy, Default, Debug)]
struct Phase {
    is_over: bool,
    reads_rest: bool,
    writes_rest: bool,
}

/// Does it once, to one group.
pub(crate) async fn usurp(sim: Shared, group: GroupPlan, mut random: SmallRng) {
    let Some(leader) = sim.checks.borrow().leader_of(group.id) else { return };
    let ways = [
        Way::Cut,
        Way::Cut,
        Way::SlowAnswers,
        Way::HandOver,
        Way::Restart,
        Way::Pause,
        Way::Pause,
        Way::Quiet,
    ];
    let way = match ways[random.random_range(0..ways.len())] {
        Way::Quiet if sim.plan.core.quiet_after.is_none() => Way::Cut,
        way => way,
    };
    let others: Vec<NodeId> = group.voters.iter().copied().filter(|node| *node != leader).collect();
    let election = sim.plan.core.tick * sim.plan.core.election_ticks.0;
    let phase = Rc::new(Cell::new(Phase::default()));
    sim.mark(way.mark());
    sim.tell(|| format!("{way:?}: node {leader} of group {} is to be deposed", group.id));
    let register = clients::register(&mut random);
    let readers = spawn_local(read(sim.clone(), group.clone(), leader, register, phase.clone()));
    let writers = spawn_local(write(sim.clone(), group.clone(), others.clone(), register, phase.clone()));
    let from = |nodes: &[NodeId]| nodes.iter().map(|other| (*other, leader)).collect::<Vec<_>>();
    let to = |nodes: &[NodeId]| nodes.iter().map(|other| (leader, *other)).collect::<Vec<_>>();
    let mut links = Vec::new();
    match way {
        Way::Cut => links.extend(from(&others).into_iter().chain(to(&others))),
        Way::SlowAnswers => {
            let answer = sim.plan.core.tick * random.random_range(2..8);
            let usual = Duration::from_micros(sim.plan.delay.0.midpoint(sim.plan.delay.1));
            let factor = u32::try_from(answer.as_micros() / usual.as_micros().max(1)).expect("a short time");
            from(&others)
                .iter()
                .for_each(|(from, to)| sim.network.borrow_mut().slow(*from, *to, factor.max(1)));
            sleep(answer + election.mul_f64(random.random_range(0.2..1.0))).await;
            links.extend(to(&others));
        }
        Way::HandOver => {
            cut(&sim, &from(&others));
            links.extend(from(&others));
            let nodes = sim.nodes.borrow();
            let shard = usize::from(nodes.shard_of(leader, group.id).0);
            if let Some(commands) = nodes.commands(leader).get(shard) {
                // A ring that is full holds another order of the kind.
                let (reply, _) = oneshot::channel();
                let _ = commands.push(Command::TransferLeader { group: group.id, to: None, reply });
            }
        }
        Way::Restart => {
            // So few follow it that they are a majority with it, no more. The others must miss nothing but
            // heartbeats: else nobody would vote for them.
            let (followers, strangers) = others.split_at(group.voters.len() / 2);
            phase.set(Phase { writes_rest: true, ..Phase::default() });
            sim.clients.borrow_mut().is_resting = true;
            sleep(election.mul_f64(0.3) + Duration::from_micros(sim.plan.delay.1) * 4).await;
            links.extend(from(strangers).into_iter().chain(to(strangers)));
            cut(&sim, &links);
            sleep(election.mul_f64(random.random_range(0.7..1.1))).await;
            links.extend(from(followers).into_iter().chain(to(followers)));
            cut(&sim, &links);
            for follower in followers {
                node::kill(&sim, *follower);
                node::boot(&sim, *follower);
            }
            sim.clients.borrow_mut().is_resting = false;
            phase.set(Phase::default());
        }
        Way::Quiet => {
            phase.set(Phase { reads_rest: true, writes_rest: true, ..Phase::default() });
            sim.clients.borrow_mut().is_resting = true;
            let core = &sim.plan.core;
            sleep(core.quiet_after.unwrap_or_default() * 2 + core.tick * core.heartbeat_ticks * 4).await;
            links.extend(from(&others).into_iter().chain(to(&others)));
            cut(&sim, &links);
            sleep(core.tick * core.lease_ticks).await;
            sim.clients.borrow_mut().is_resting = false;
            phase.set(Phase::default());
        }
        // What others send would tell it as soon as it goes on.
        Way::Pause => links.extend(from(&others)),
    }
    cut(&sim, &links);
    let time = election.mul_f64(random.random_range(1.0..2.5));
    let handle = sim.nodes.borrow().handle(leader).filter(|_| way == Way::Pause);
    if let Some(handle) = handle {
        madsim::runtime::Handle::current().pause(handle.id());
        // What is asked early may be answered by what was true then.
        phase.set(Phase { reads_rest: true, ..Phase::default() });
        sleep(time + election / 2).await;
        phase.set(Phase::default());
        sleep(sim.plan.core.tick).await;
        madsim::runtime::Handle::current().resume(handle.id());
        sleep(sim.plan.core.tick).await;
    } else {
        sleep(time).await;
    }
    phase.set(Phase { is_over: true, ..Phase::default() });
    for (from, to) in from(&others) {
        sim.network.borrow_mut().slow(from, to, 1);
    }
    links.iter().for_each(|(from, to)| sim.network.borrow_mut().join(*from, *to));
    // They end within their requests' deadlines.
    let _ = (readers.await, writers.await);
}

fn cut(sim: &Shared, links: &[(NodeId, NodeId)]) {
    links.iter().for_each(|(from, to)| sim.network.borrow_mut().cut(*from, *to));
}

/// Reads from the old leader by its lease.
async fn read(sim: Shared, group: GroupPlan, leader: NodeId, register: u32, phase: Rc<Cell<Phase>>) {
    let mut random = sim.random();
    let open = Rc::new(Cell::new(0));
    while !phase.get().is_over || open.get() > 0 {
        sleep(within(&mut random, READ_EVERY)).await;
        let Phase { is_over, reads_rest, .. } = phase.get();
        if is_over || reads_rest || open.get() == READS_MAX {
            continue;
        }
        open.set(open.get() + 1);
        let (sim, group, open, mut random) = (sim.clone(), group.clone(), open.clone(), sim.random());
        spawn_local(async move {
            clients::read_register(&sim, &mut random, leader, &group, register, Consistency::Lease).await;
            open.set(open.get() - 1);
        });
    }
}

/// Writes at whoever of the others leads, one after the other.
async fn write(sim: Shared, group: GroupPlan, others: Vec<NodeId>, register: u32, phase: Rc<Cell<Phase>>) {
    let mut random = sim.random();
    let mut at = 0;
    while !phase.get().is_over {
        sleep(within(&mut random, WRITE_EVERY)).await;
        if phase.get().writes_rest {
            continue;
        }
        if !clients::write_register(&sim, &mut random, others[at % others.len()], &group, register).await {
            at += 1;
        }
    }
}

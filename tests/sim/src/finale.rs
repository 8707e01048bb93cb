//! When the faults have stopped: everything must come back to life, and say the same everywhere.

mod compare;
mod hung_disk;
mod quiescence;
mod removal;
mod spread;

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use iroh_raft_core::{Consistency, Index, NodeId, Offset, Role};
use iroh_raft_netbridge::wire::{ClientBody, ReplyBody};
use madsim::task::JoinHandle;
use rand::rngs::SmallRng;

use crate::bank;
use crate::checkers::members::is_quorum;
use crate::checkers::{Checked, ensure};
use crate::clients;
use crate::clock::{elapsed, sleep};
use crate::machine;
use crate::node;
use crate::plan::GroupPlan;
use crate::sim::Shared;

const ALIVE: &str = "alive after the faults";
const SAME: &str = "replicas are the same at the end";
/// Elections and restarts that a group may need to come back.
const ELECTIONS: u32 = 40;
/// How often a group that moves on is given its time anew: one that only elects leaders moves on for ever.
const MOVING_ON: u32 = 10;
/// What is left of stalls and late frames from before.
const PATIENCE: Duration = Duration::from_secs(30);
/// Time without elections at the end, in election timeouts.
const QUIET_ELECTIONS: u32 = 5;
const QUIET_RING_MIN: usize = 64;
const READ_BYTES: u32 = 4 << 20;
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Ends a run; returns the number of registers whose history could not be decided.
pub(crate) async fn run(sim: &Shared, clients: Vec<JoinHandle<()>>) -> u64 {
    if sim.is_broken() {
        return 0;
    }
    // Those that wait for their moment have theirs.
    while sim.faults_open.get() > 0 {
        sleep(LOOK_EVERY).await;
    }
    sim.tell(|| "the faults stop".into());
    sim.network.borrow_mut().heal();
    if sim.plan.leaves_cut {
        let node = NodeId(1);
        for other in sim.plan.node_ids().filter(|other| *other != node) {
            sim.network.borrow_mut().cut(node, other);
            sim.network.borrow_mut().cut(other, node);
        }
    }
    sim.clients.borrow_mut().is_over = true;
    for id in sim.plan.node_ids() {
        let nodes = sim.nodes.borrow();
        nodes.disk(id).heal();
        nodes.disk(id).set_capacity(None);
        if let Some(handle) = nodes.handle(id) {
            madsim::runtime::Handle::current().resume(handle.id());
        }
    }
    for client in clients {
        // They end within their deadlines.
        let _ = client.await;
    }
    let result = settle(sim).await;
    sim.checks.borrow_mut().note(result);
    if sim.is_broken() {
        return 0;
    }
    match sim.histories.borrow_mut().check() {
        Ok(undecided) => undecided,
        Err(violation) => {
            sim.checks.borrow_mut().note(Err(violation));
            0
        }
    }
}

async fn settle(sim: &Shared) -> Checked {
    // Some are on their way up still; nodes that are down come back.
    wait_until(sim, &sim.plan.groups[0], "nodes run", |sim| {
        let ids: Vec<NodeId> = sim.plan.node_ids().collect();
        ids.iter().for_each(|id| {
            sim.nodes.borrow().disk(*id).heal();
            node::boot(sim, *id);
        });
        ids.iter().all(|id| sim.nodes.borrow().is_up(*id) || sim.nodes.borrow().is_halted(*id))
    })
    .await?;
    for group in &sim.plan.groups {
        wait_until(sim, group, "what was given up is gone", |sim| is_given_up_gone(sim, group)).await?;
        wait_until(sim, group, "groups have leaders and converge", |sim| is_settled(sim, group)).await?;
        probe(sim, group).await?;
        wait_until(sim, group, "groups converge after a write", |sim| is_settled(sim, group)).await?;
        audit(sim, group).await?;
        compare::check(sim, group).await?;
    }
    let first = &sim.plan.groups[0];
    hung_disk::check(sim, first).await?;
    // Other groups had their leaders on that disk, too.
    for group in &sim.plan.groups {
        wait_until(sim, group, "groups converge after a disk hung", |sim| is_settled(sim, group)).await?;
    }
    spread::check(sim).await?;
    quiescence::check(sim).await?;
    // A node was down meanwhile.
    spread::check(sim).await?;
    quiet(sim).await?;
    removal::check(sim, first).await
}

/// Nobody campaigns against a leader who does its work.
async fn quiet(sim: &Shared) -> Checked {
    if sim.plan.ring < QUIET_RING_MIN || !sim.plan.liars.is_empty() {
        // Heartbeats are lost there even when nothing fails; what a disk did may come to light at any time.
        return Ok(());
    }
    // What is late from before may still arrive.
    sleep(sim.plan.election()).await;
    let before = sim.checks.borrow().campaigns;
    sleep(sim.plan.election() * QUIET_ELECTIONS).await;
    let more = sim.checks.borrow().campaigns - before;
    ensure(more == 0, "nobody campaigns when nothing fails", || format!("{more} requests for votes"))
}

fn patience(sim: &Shared) -> Duration {
    PATIENCE + sim.plan.election() * ELECTIONS
}

/// How far all replicas are, together.
fn committed_sum(sim: &Shared, group: &GroupPlan) -> u64 {
    let checks = sim.checks.borrow();
    let commit = |node: &NodeId| checks.status_of(*node, group.id).map_or(0, |status| status.commit.0);
    group.hosts.iter().map(commit).sum()
}

/// Waits as long as something moves on, and then for so long again.
async fn wait_until(
    sim: &Shared,
    group: &GroupPlan,
    what: &str,
    mut holds: impl FnMut(&Shared) -> bool,
) -> Checked {
    let latest = elapsed() + patience(sim) * MOVING_ON;
    let mut deadline = elapsed() + patience(sim);
    let mut seen = 0;
    while !holds(sim) && !sim.is_broken() {
        let now = committed_sum(sim, group);
        if now > seen {
            (seen, deadline) = (now, latest.min(elapsed() + patience(sim)));
        }
        ensure(elapsed() < deadline, ALIVE, || format!("never: {what}; {}", standing(sim, group)))?;
        sleep(LOOK_EVERY).await;
    }
    Ok(())
}

fn standing(sim: &Shared, group: &GroupPlan) -> String {
    let checks = sim.checks.borrow();
    let line = |node: &NodeId| {
        let is_up = sim.nodes.borrow().is_up(*node);
        format!("\n  node {node} (up: {is_up}): {:?}", checks.status_of(*node, group.id))
    };
    group.hosts.iter().map(line).collect()
}

/// The replicas that take part: members, on nodes that run, and not taken out.
fn healthy(sim: &Shared, group: &GroupPlan) -> Vec<NodeId> {
    let checks = sim.checks.borrow();
    let members = checks.commits.members.latest(group.id);
    let takes_part = |node: &NodeId| members.is_member(*node) && checks.status_of(*node, group.id).is_some();
    group.hosts.iter().copied().filter(takes_part).collect()
}

/// Whether nobody is left of a history that was given up, but for those that know no member there is.
fn is_given_up_gone(sim: &Shared, group: &GroupPlan) -> bool {
    let checks = sim.checks.borrow();
    let Some(term) = checks.recoveries.term_of(group.id) else { return true };
    let members = checks.commits.members.latest(group.id);
    let is_left = |node: NodeId| {
        let status =
            checks.status_of(node, group.id).filter(|status| status.term < term && status.last > Index(0));
        status.is_some_and(|status| status.members.voters.iter().any(|voter| members.is_member(*voter)))
    };
    !group.hosts.iter().any(|node| is_left(*node))
}

fn is_settled(sim: &Shared, group: &GroupPlan) -> bool {
    let nodes = healthy(sim, group);
    let checks = sim.checks.borrow();
    let statuses: Vec<_> = nodes.iter().filter_map(|node| checks.status_of(*node, group.id)).collect();
    let leaders = statuses.iter().filter(|status| status.role == Role::Leader).count();
    let first = statuses.first().map(|status| (status.term, status.commit, status.last));
    let are_same = statuses.iter().all(|status| Some((status.term, status.commit, status.last)) == first);
    let is_done = statuses.iter().all(|status| {
        !status.is_under_repair
            && status.commit == status.last
            && (!group.has_machine || status.applied == status.commit)
    });
    let is_whole = first.is_some_and(|(_, commit, _)| commit == checks.commits.last(group.id));
    let members = checks.commits.members.latest(group.id);
    let is_quorum = is_quorum(members, |node| nodes.contains(&node)) && !members.is_joint();
    // Where no disk lies, nobody is taken out: all members have a replica.
    let are_all_there = !sim.plan.liars.is_empty()
        || group.hosts.iter().all(|node| !members.is_member(*node) || nodes.contains(node));
    is_quorum && are_all_there && leaders == 1 && are_same && is_done && is_whole
}

/// A write succeeds.
async fn probe(sim: &Shared, group: &GroupPlan) -> Checked {
    let deadline = elapsed() + patience(sim);
    let mut random = sim.random();
    let before = sim.checks.borrow().acknowledged.count;
    while sim.checks.borrow().acknowledged.count == before && !sim.is_broken() {
        ensure(elapsed() < deadline, ALIVE, || {
            format!("no write to group {} succeeds; {}", group.id, standing(sim, group))
        })?;
        write(sim, &mut random, group).await;
    }
    Ok(())
}

/// Tries to write something; whoever wants it done looks at what was acknowledged.
async fn write(sim: &Shared, random: &mut SmallRng, group: &GroupPlan) {
    if group.is_bank {
        bank::transfer(sim, random, group).await;
    } else if group.has_machine {
        clients::change(sim, random, group).await;
    } else {
        let _ = clients::append(sim, random, group).await;
    }
}

/// Every replica has every committed record, and the same state.
async fn audit(sim: &Shared, group: &GroupPlan) -> Checked {
    let mut deadline = elapsed() + PATIENCE;
    let mut random = sim.random();
    let committed = Offset(sim.checks.borrow().commits.records(group.id).len() as u64);
    {
        let checks = sim.checks.borrow();
        checks.acknowledged.all_in(group.id, checks.commits.records(group.id))?;
    }
    let mut states: BTreeMap<Vec<u8>, NodeId> = BTreeMap::new();
    for node in healthy(sim, group) {
        let mut next = sim.checks.borrow().commits.reading.first(group.id);
        let tail = sim.clients.borrow().tails.get(&group.id).copied();
        // The consumer of the group goes on where it stood.
        if let Some(tail) = tail.filter(|_| states.is_empty()) {
            next = next.max(tail);
        }
        // A read may be what finds the damage that a lying disk did.
        let takes_part = || sim.checks.borrow().status_of(node, group.id).is_some();
        while next < committed && takes_part() && !sim.is_broken() {
            let what = || format!("node {node} does not hand out group {} from {next}", group.id);
            ensure(elapsed() < deadline, ALIVE, what)?;
            if let Ok(after) = clients::read(sim, &mut random, node, group.id, next, READ_BYTES).await {
                if after > next {
                    deadline = elapsed() + PATIENCE;
                }
                next = after;
            }
        }
        if !takes_part() {
            continue;
        }
        let state =
            if group.has_machine { state_of(sim, group, node, deadline).await? } else { Bytes::new() };
        states.insert(state.to_vec(), node);
    }
    ensure(states.len() <= 1, SAME, || {
        let nodes: Vec<_> = states.values().collect();
        format!("group {}: the state machines of {nodes:?} differ at {}", group.id, Index(committed.0))
    })
}

async fn state_of(
    sim: &Shared,
    group: &GroupPlan,
    node: NodeId,
    deadline: Duration,
) -> Result<Bytes, crate::checkers::Violation> {
    let mut random = sim.random();
    loop {
        let query = Bytes::from_static(machine::ALL);
        let body = ClientBody::Query { consistency: Consistency::Local, may_forward: false, query };
        if let Ok(ReplyBody::Answer(answer)) = clients::call(sim, &mut random, node, group.id, body).await {
            return Ok(answer.bytes);
        }
        ensure(elapsed() < deadline, ALIVE, || {
            format!("node {node} does not answer for group {}", group.id)
        })?;
    }
}

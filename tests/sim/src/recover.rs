//! A group loses its quorum for good, as far as anybody knows: an operator recovers it from a survivor. Then the lost come
//! back after all, together, now and then apart from the others, where they are a majority of the members that they
//! know; and the operator makes them members again.

use iroh_raft_core::{
    GroupStatus, Index, MemberChange, MemberRole, NodeId, RecoveryRefusal, RequestError, Role, Term,
};
use iroh_raft_netbridge::wire::{ClientBody, ReplyBody};
use rand::Rng;
use rand::rngs::SmallRng;
use rand::seq::SliceRandom;

use crate::checkers::ensure;
use crate::clients;
use crate::clock::{elapsed, sleep};
use crate::node;
use crate::plan::GroupPlan;
use crate::sim::Shared;

/// How long the operator tries, in election timeouts.
const PATIENCE_ELECTIONS: u32 = 30;

pub(crate) async fn lose_quorum(sim: Shared, group: GroupPlan, mut random: SmallRng) {
    ask_in_vain(&sim, &group, &mut random).await;
    let members = sim.checks.borrow().commits.members.latest(group.id).clone();
    let is_whole = |node: &NodeId| sim.checks.borrow().has_all(*node, group.id);
    let survivors: Vec<NodeId> = members.voters.iter().copied().filter(is_whole).collect();
    let count = members.voters.len();
    if members.is_joint() || count < 2 || survivors.is_empty() {
        return;
    }
    let survivor = survivors[random.random_range(0..survivors.len())];
    let mut lost: Vec<NodeId> = members.voters.iter().copied().filter(|node| *node != survivor).collect();
    lost.shuffle(&mut random);
    lost.truncate(random.random_range(count - count / 2..=lost.len()));
    sim.tell(|| format!("group {} loses {lost:?} for good", group.id));
    sim.mark("quorum lost");
    lost.iter().for_each(|node| node::hold_down(&sim, *node));
    let is_recovered = recover(&sim, &group, survivor, &lost, &mut random).await;
    come_back(&sim, &lost, &mut random).await;
    if is_recovered {
        add_back(&sim, &group, &lost, count, &mut random).await;
    }
}

/// A group that has a leader is not recovered. The end of the log that is named is none, so that it is not done either
/// where leadership is lost meanwhile.
async fn ask_in_vain(sim: &Shared, group: &GroupPlan, random: &mut SmallRng) {
    let Some(leader) = sim.checks.borrow().leader_of(group.id) else { return };
    let led = || -> Option<GroupStatus> {
        let status = sim.checks.borrow().status_of(leader, group.id).cloned();
        status.filter(|status| status.role == Role::Leader)
    };
    let Some(before) = led() else { return };
    let lost: Vec<NodeId> = group.hosts.iter().copied().filter(|node| *node != leader).collect();
    let (last, last_term) = (Index(before.last.0 + 1_000_000), Term(1));
    let body = ClientBody::Recover { lost, last, last_term };
    let answer = clients::call(sim, random, leader, group.id, body).await;
    let is_led = led().is_some_and(|after| after.term == before.term);
    let is_taken = match &answer {
        Ok(ReplyBody::Failed(RequestError::Recovery { refusal })) => {
            sim.mark("recovery refused");
            matches!(refusal, RecoveryRefusal::Changed { .. })
        }
        Ok(ReplyBody::Recovered(_)) => true,
        _ => false,
    };
    let checked = ensure(!is_led || !is_taken, "a group that has a leader is not recovered", || {
        format!("node {leader} leads group {}: {answer:?}", group.id)
    });
    sim.checks.borrow_mut().note(checked);
}

/// Asks the survivor for its log's end, and recovers the group from it; whether it is.
async fn recover(
    sim: &Shared,
    group: &GroupPlan,
    survivor: NodeId,
    lost: &[NodeId],
    random: &mut SmallRng,
) -> bool {
    let deadline = elapsed() + sim.plan.election() * PATIENCE_ELECTIONS;
    let before = sim.checks.borrow().recoveries.term_of(group.id);
    while elapsed() < deadline && !sim.is_broken() {
        sleep(sim.plan.election().mul_f64(random.random_range(0.3..1.5))).await;
        // Nothing that was acknowledged may be given up here.
        if !sim.checks.borrow().has_all(survivor, group.id) {
            continue;
        }
        let Ok(ReplyBody::Status(status)) =
            clients::call(sim, random, survivor, group.id, ClientBody::Status).await
        else {
            continue;
        };
        if !sim.checks.borrow().has_all(survivor, group.id) {
            continue;
        }
        let GroupStatus { last, last_term, .. } = status;
        let body = ClientBody::Recover { lost: lost.to_vec(), last, last_term };
        match clients::call(sim, random, survivor, group.id, body).await {
            Ok(ReplyBody::Recovered(_)) => sim.mark("quorum recovered"),
            Ok(ReplyBody::Failed(RequestError::Recovery { .. })) => sim.mark("recovery refused"),
            _ => {}
        }
        // The answer may be lost.
        if sim.checks.borrow().recoveries.term_of(group.id) != before {
            return true;
        }
    }
    false
}

/// The lost come back, at about the same time; whoever they are cut off from hears of them later.
async fn come_back(sim: &Shared, lost: &[NodeId], random: &mut SmallRng) {
    let is_apart = random.random_bool(0.5);
    let others = || sim.plan.node_ids().filter(|node| !lost.contains(node));
    let pairs = || lost.iter().flat_map(|one| others().flat_map(|other| [(*one, other), (other, *one)]));
    if is_apart {
        sim.mark("lost replicas come back apart");
        pairs().for_each(|(from, to)| sim.network.borrow_mut().cut(from, to));
    }
    for node in lost {
        sleep(sim.plan.election().mul_f64(random.random_range(0.0..0.5))).await;
        node::let_go(sim, *node);
        node::boot(sim, *node);
    }
    if is_apart {
        sleep(sim.plan.election().mul_f64(random.random_range(0.5..5.0))).await;
        pairs().for_each(|(from, to)| sim.network.borrow_mut().join(from, to));
    }
}

/// The group gets its size again.
async fn add_back(sim: &Shared, group: &GroupPlan, lost: &[NodeId], count: usize, random: &mut SmallRng) {
    let deadline = elapsed() + sim.plan.election() * PATIENCE_ELECTIONS;
    while elapsed() < deadline && !sim.is_broken() && !sim.clients.borrow().is_over {
        sleep(sim.plan.election().mul_f64(random.random_range(0.1..1.0))).await;
        let members = sim.checks.borrow().commits.members.latest(group.id).clone();
        if members.voters.len() >= count && !members.is_joint() {
            return sim.mark("members added after a recovery");
        }
        let Some(leader) = sim.checks.borrow().leader_of(group.id) else { continue };
        let Some(node) = lost.iter().copied().find(|node| !members.voters.contains(node)) else { return };
        let role = if members.is_member(node) { MemberRole::Voter } else { MemberRole::Learner };
        let body = ClientBody::ChangeMembers { changes: vec![MemberChange { node, role }] };
        // Refused or unknown: tried again.
        let answer = clients::call(sim, random, leader, group.id, body).await;
        if matches!(answer, Ok(ReplyBody::MembersChanged { .. })) && random.random_bool(0.5) {
            // Soon: it has none of its own snapshots yet, and must not find those of before.
            sleep(sim.plan.election().mul_f64(random.random_range(0.0..2.0))).await;
            node::kill(sim, node);
            node::boot(sim, node);
        }
    }
}

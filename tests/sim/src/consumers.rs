//! Consumers of logs: each follows a group as a tail with little credit, says how far it has come by its cursor,
//! asks for it, trims behind it, and goes on elsewhere whenever its tail ends.

use std::time::Duration;

use futures_util::StreamExt;
use iroh_raft_core::{CursorName, GroupCommand, GroupId, NodeId, Offset, RequestError, WallTime};
use iroh_raft_netbridge::wire::{ClientBody, ReplyBody};
use madsim::time::timeout;
use rand::Rng;
use rand::rngs::SmallRng;

use crate::checkers::ensure;
use crate::clients::{self, Trouble, ask, pick};
use crate::clock::sleep;
use crate::plan::{GroupPlan, within};
use crate::sim::Shared;

/// Longest wait for records before a consumer looks around.
const PATIENCE: Duration = Duration::from_millis(1_500);
/// Bytes that a consumer grants at a time at most.
const CREDIT_MAX: u64 = 8 << 10;
const CURSORS: &str = "a cursor does not go back, and is not forgotten";

/// Follows a group's records from the first to the last.
pub(crate) async fn run(sim: Shared, group: GroupId) {
    let mut random = sim.random();
    let plan = sim.plan.group(group).clone();
    sim.clients.borrow_mut().tails.insert(group, Offset(0));
    let mut consumer = Consumer { name: name(&format!("consumer of {group}")), acknowledged: Offset(0) };
    while !sim.clients.borrow().is_over {
        sleep(within(&mut random, sim.plan.think)).await;
        let node = *pick(&mut random, &plan.hosts);
        follow(&sim, &mut random, node, group).await;
        if random.random_bool(0.5) {
            consumer.tell(&sim, &mut random, &plan).await;
        }
    }
}

fn name(text: &str) -> CursorName {
    CursorName::new(text.to_owned()).expect("a short name")
}

/// Follows the group at one node, until the tail ends or something better is to be done.
async fn follow(sim: &Shared, random: &mut SmallRng, node: NodeId, group: GroupId) {
    let from = next(sim, group);
    let mut granted = random.random_range(1..=CREDIT_MAX);
    let first = u32::try_from(granted).expect("little credit");
    let Some((connection, mut answers)) = clients::open_tail(sim, random, node, group, from, first).await
    else {
        return;
    };
    let rounds = random.random_range(1..20);
    for _ in 0..rounds {
        let answer = timeout(within_patience(random), answers.next()).await;
        match answer {
            Ok(Some(ReplyBody::Records { from, batches, is_last, .. })) => {
                if !batches.is_empty() {
                    let due = next(sim, group);
                    let checked = ensure(from == due, "a tail goes on where it was", || {
                        format!("node {node} group {group}: from {from}, {due} is due")
                    });
                    sim.checks.borrow_mut().note(checked);
                    let Some(after) = clients::check_records(sim, group, from, &batches) else { return };
                    sim.clients.borrow_mut().tails.insert(group, after);
                    sim.mark("tail sent records");
                }
                if is_last {
                    sim.mark("tail ended");
                    return;
                }
            }
            Ok(Some(ReplyBody::Failed(RequestError::BeforeStart { start, .. }))) => {
                sim.mark("tail told of a trim");
                sim.clients.borrow_mut().tails.insert(group, start);
                return;
            }
            Ok(Some(ReplyBody::Failed(_)) | None) => return,
            Ok(Some(other)) => return drop(clients::wrong::<()>(sim, group, &other)),
            Err(_) => {}
        }
        // Now and then a grant comes late, and says less than one before.
        let grant =
            if random.random_bool(0.1) { granted / 2 } else { granted + random.random_range(0..=CREDIT_MAX) };
        granted = granted.max(grant);
        clients::tell_tail(sim, random, node, connection, group, Some(grant)).await;
    }
    if random.random_bool(0.5) {
        clients::tell_tail(sim, random, node, connection, group, None).await;
    }
    clients::leave(sim, node, connection, group);
}

fn within_patience(random: &mut SmallRng) -> Duration {
    PATIENCE.mul_f64(random.random_range(0.01..1.0))
}

fn next(sim: &Shared, group: GroupId) -> Offset {
    sim.clients.borrow().tails[&group]
}

struct Consumer {
    name: CursorName,
    /// Where its cursor was said to stand. It never sets it back.
    acknowledged: Offset,
}

impl Consumer {
    /// Commits its cursor, asks for it, or trims what it has done with.
    async fn tell(&mut self, sim: &Shared, random: &mut SmallRng, group: &GroupPlan) {
        let done = next(sim, group.id);
        let name = self.name.clone();
        match random.random_range(0..10) {
            0..5 => {
                // Some are late.
                let offset = if random.random_bool(0.2) { Offset(done.0 / 2) } else { done };
                let command = GroupCommand::CommitCursor { name, offset };
                if let Ok(Some(at)) = command_of(sim, random, group, command).await {
                    self.check(sim, group.id, at, offset);
                    self.acknowledged = at;
                    sim.mark("cursor committed");
                }
            }
            5..8 => {
                if let Ok((_, ReplyBody::Cursor(at))) =
                    ask(sim, random, group, ClientBody::FetchCursor { name }).await
                {
                    self.check(sim, group.id, at.unwrap_or_default(), Offset(0));
                    sim.mark("cursor fetched");
                }
            }
            8 if sim.plan.is_trimming => {
                let before = Offset(done.0 / 2);
                if let Ok(first) = command_of(sim, random, group, GroupCommand::Trim { before }).await {
                    let checked =
                        ensure(first >= Some(before), "a trim is in force when it is answered", || {
                            format!("group {}: {first:?} after a trim to {before}", group.id)
                        });
                    sim.checks.borrow_mut().note(checked);
                    sim.mark("records trimmed");
                }
            }
            _ => meddle(sim, random, group).await,
        }
    }

    fn check(&self, sim: &Shared, group: GroupId, at: Offset, at_least: Offset) {
        let due = self.acknowledged.max(at_least);
        let checked = ensure(at >= due, CURSORS, || {
            format!("group {group}: the cursor of {} stands at {at}, it was at {due}", self.name)
        });
        sim.checks.borrow_mut().note(checked);
    }
}

/// Sets and drops cursors that nobody owns, and searches by time.
pub(crate) async fn meddle(sim: &Shared, random: &mut SmallRng, group: &GroupPlan) {
    let end = sim.checks.borrow().commits.records(group.id).len() as u64;
    let offset = Offset(random.random_range(0..=end));
    let name = name(&format!("shared {}", random.random_range(0..4)));
    match random.random_range(0..4) {
        0 => drop(command_of(sim, random, group, GroupCommand::SetCursor { name, offset }).await),
        1 => drop(command_of(sim, random, group, GroupCommand::CommitCursor { name, offset }).await),
        2 => drop(command_of(sim, random, group, GroupCommand::DropCursor { name }).await),
        _ => {
            // Mostly a time that the log has: where it is right is checked where it is answered.
            let at = sim.checks.borrow().commits.reading.time_of(group.id, offset);
            let at = WallTime(at.0 + random.random_range(0..2));
            let node = *pick(random, &group.hosts);
            if let Ok(ReplyBody::Found { .. }) =
                clients::call(sim, random, node, group.id, ClientBody::Find { at }).await
            {
                sim.mark("record found by its time");
            }
        }
    }
}

async fn command_of(
    sim: &Shared,
    random: &mut SmallRng,
    group: &GroupPlan,
    command: GroupCommand,
) -> Result<Option<Offset>, Trouble> {
    match ask(sim, random, group, ClientBody::Command(command)).await? {
        (_, ReplyBody::CommandDone { offset, .. }) => Ok(offset),
        (_, other) => clients::wrong(sim, group.id, &other),
    }
}

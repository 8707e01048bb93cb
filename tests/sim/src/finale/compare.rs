//! Liveness of comparisons: when nothing fails, every replica that takes part has a digest of its state within a bound.

use super::{LOOK_EVERY, MOVING_ON, PATIENCE, healthy, standing};
use crate::checkers::{Checked, ensure};
use crate::clock::{elapsed, sleep};
use crate::operator;
use crate::plan::GroupPlan;
use crate::sim::Shared;

/// Marks places until all that take part have come to something at one of them: shards are at work on one state at a time.
pub(super) async fn check(sim: &Shared, group: &GroupPlan) -> Checked {
    let mut random = sim.random();
    // The marks themselves make logs grow: they alone must not go on for ever.
    let latest = elapsed() + PATIENCE * MOVING_ON;
    let (mut deadline, mut mended) = (elapsed() + PATIENCE, 0);
    while !sim.is_broken() {
        // A log that is repaired may come entry by entry, a round trip each: as long as it comes.
        let mended_now = entries_under_repair(sim, group);
        if mended_now > mended {
            deadline = latest.min(elapsed() + PATIENCE);
        }
        mended = mended_now;
        // Where hardly a host has a replica, asking one by chance may take longer than the patience.
        let leader = sim.checks.borrow().leader_of(group.id);
        sim.clients.borrow_mut().leaders.extend(leader.map(|leader| (group.id, leader)));
        if let Ok(index) = operator::mark(sim, &mut random, group).await {
            let mut is_complete = true;
            for node in healthy(sim, group) {
                is_complete &= operator::digest(sim, &mut random, group, node, index).await;
            }
            if is_complete {
                sim.mark("all replicas compared at the end");
                break;
            }
        }
        ensure(elapsed() < deadline, "replicas can be compared", || {
            format!("group {} not in time; {}", group.id, standing(sim, group))
        })?;
        sleep(LOOK_EVERY).await;
    }
    Ok(())
}

/// Entries that replicas under repair have by now.
fn entries_under_repair(sim: &Shared, group: &GroupPlan) -> u64 {
    let checks = sim.checks.borrow();
    let nodes = healthy(sim, group);
    let statuses = nodes.iter().filter_map(|node| checks.status_of(*node, group.id));
    statuses.filter(|status| status.is_under_repair).map(|status| status.last.0).sum()
}

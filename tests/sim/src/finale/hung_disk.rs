//! Liveness with a leader whose disk hangs: another one acknowledges within a bound, while it still hangs.
//! (Design: memory of a leader without a disk is bounded only by giving leadership away.)

use std::time::Duration;

use iroh_raft_storage::FileKind;
use iroh_raft_storage::fault::{Fault, Operation, Trouble};

use super::{LOOK_EVERY, healthy, write};
use crate::checkers::{Checked, ensure};
use crate::clock::{elapsed, sleep};
use crate::plan::GroupPlan;
use crate::sim::Shared;

const ALIVE: &str = "another leads when a leader's disk hangs";
/// Hand-over, or stepping down and an election, with votes split and frames late.
const ELECTIONS: u32 = 10;
/// What clients need to find the new leader, beside their pauses.
const SEARCH: Duration = Duration::from_secs(5);
/// Pauses of a client that has begun to look for the leader.
const PAUSES: u32 = 4;
/// Frames for peers that wait in a shard at most, for places in the ring to the bridge.
const FRAMES_WAITING: u32 = 64;
/// Slack for clocks that are slow, in parts.
const DRIFT: f64 = 1.2;

/// Lets the disk of a group's leader hang; nothing else is wrong.
pub(super) async fn check(sim: &Shared, group: &GroupPlan) -> Checked {
    let Some(old) = sim.checks.borrow().leader_of(group.id) else { return Ok(()) };
    let voters = sim.checks.borrow().commits.members.latest(group.id).voters.clone();
    let healthy = healthy(sim, group);
    // One that finds out meanwhile what its disk has done elects nobody before it is repaired.
    let is_sound = |voter| healthy.contains(voter) && !sim.plan.liars.contains(voter);
    if voters.len() < 3 || !voters.iter().all(is_sound) {
        return Ok(());
    }
    // Through a narrow ring, votes leave so late that nobody may win before the next one campaigns.
    let waiting = Duration::from_micros(sim.plan.turn.1) * FRAMES_WAITING / sim.plan.ring.max(1) as u32;
    if waiting > sim.plan.election() / 4 {
        return Ok(());
    }
    let core = &sim.plan.core;
    let network = Duration::from_micros(sim.plan.delay.1 + sim.plan.flush.1 + sim.plan.turn.1);
    let search = Duration::from_micros(sim.plan.think.1) * PAUSES + SEARCH;
    let bound =
        core.flush_stuck_after.mul_f64(DRIFT) + sim.plan.election() * ELECTIONS + network * 20 + search;
    let us = u64::try_from((bound * 2).as_micros()).expect("a bound of seconds");
    let trouble = Trouble::Stall { us };
    let kind = Some(FileKind::Journal);
    sim.tell(|| format!("the disk of node {old}, leader of group {}, hangs", group.id));
    sim.mark("disk of a leader hung at the end");
    let disk = sim.nodes.borrow().disk(old);
    // Each shard waits for its own sync, and any of them may come first.
    let times = u64::from(sim.nodes.borrow().placement(old).shard_count());
    disk.plant(Fault { kind, operation: Operation::Sync, after: 0, times, trouble });
    let stalled_us = disk.stalled_us();
    let mut random = sim.random();
    let mut deadline = None;
    loop {
        let new = sim.checks.borrow().leader_of(group.id).filter(|leader| *leader != old);
        // The client has heard of it; how long it would search is no matter of disks.
        if let Some(new) = new {
            sim.clients.borrow_mut().leaders.insert(group.id, new);
        }
        let is_moved = new.is_some();
        let before = sim.checks.borrow().acknowledged.count;
        write(sim, &mut random, group).await;
        if is_moved && sim.checks.borrow().acknowledged.count > before {
            break;
        }
        if deadline.is_none() && disk.stalled_us() > stalled_us {
            deadline = Some(elapsed() + bound);
        }
        if sim.is_broken() {
            return Ok(());
        }
        ensure(deadline.is_none_or(|deadline| elapsed() < deadline), ALIVE, || {
            let leader = sim.checks.borrow().leader_of(group.id);
            format!("group {}: {leader:?} leads {bound:?} after the disk of {old} hung", group.id)
        })?;
    }
    // The next part needs this disk: what stalls still does so to its end, one after the other.
    disk.heal();
    sleep(Duration::from_micros(us * times) + LOOK_EVERY).await;
    Ok(())
}

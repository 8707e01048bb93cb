//! The validator: whatever it lets pass, a replica in any state takes without a panic.
//!
//! A replica is brought into one of the states below and cut off. From then on all it hears is forged.

use std::collections::BTreeSet;
use std::time::Duration;

use iroh_raft_core::{AnswerOn, GroupId, Input, NodeId};

use super::choices::Choices;
use super::forged::{About, campaign, forged};
use super::shard_inputs::told;
use crate::harness::{Cluster, Group, Options};

const GROUP: GroupId = GroupId(1);
/// Messages and turns in one run at most.
const ACTS_MAX: usize = 100;

/// Tells a replica forged messages, and returns what it made of them.
pub(crate) fn validator(data: &[u8]) -> BTreeSet<String> {
    let mut choices = Choices::new(data);
    let (mut cluster, node) = victim(&mut choices);
    let mut seen = BTreeSet::new();
    cluster.isolate(node);
    for _ in 0..ACTS_MAX {
        // A liar among the members can make it leave; then there is nobody to lie to.
        if choices.is_over() || cluster.status(node, GROUP).is_none() {
            break;
        }
        match choices.below(8) {
            0 => (0..=choices.below(8)).for_each(|_| cluster.run_nth(0)),
            1 => cluster.run_for(Duration::from_millis(choices.below(256))),
            2 => drop(cluster.propose(node, GROUP, 1 + choices.below(3), AnswerOn::Commit)),
            3 if choices.below(4) == 0 => drop(cluster.read_any(node, GROUP)),
            _ => {
                let message = forged(&mut choices, &about(&cluster, node));
                seen.extend(told(&mut cluster, node, message));
            }
        }
    }
    // What was taken is also carried out.
    cluster.run_for(Duration::from_secs(2));
    seen
}

fn about(cluster: &Cluster, node: NodeId) -> About<'_> {
    let status = cluster.status(node, GROUP).expect("a replica that is up");
    About { node, status, log: cluster.stored(node, GROUP) }
}

/// A replica in one of the states that replicas come into.
fn victim(choices: &mut Choices<'_>) -> (Cluster, NodeId) {
    let state = choices.below(12);
    let mut options = Options::new(choices.below(4));
    options.has_liars = true;
    options.config.quiet_after = (options.seed % 2 == 1).then_some(Duration::from_millis(100));
    options.groups = match state {
        // The only voter, and nobody.
        0 => vec![Group::new(1, &[1])],
        1 => vec![Group { learners: vec![1], ..Group::new(1, &[2, 3]) }],
        _ => vec![Group::new(1, &[1, 2, 3])],
    };
    if choices.below(2) == 1 {
        options.config.window_bytes_max = 500;
        options.config.inflight_messages_max = 2;
        options.config.message_bytes_max = 128;
    }
    let mut cluster = Cluster::new(options);
    // One that has not spoken yet.
    if state == 2 {
        return (cluster, NodeId(1));
    }
    let leader = cluster.run_until_led(GROUP);
    let follower = NodeId(1 + leader.0 % 3);
    for _ in 0..3 {
        cluster.propose(leader, GROUP, 2, AnswerOn::Commit);
        cluster.run_for(Duration::from_millis(30));
    }
    match state {
        0 | 3 => return (cluster, leader),
        // Leaders: with entries that are on no disk, with some that nobody else has, handing over.
        4 => {
            cluster.stall(leader, true);
            cluster.propose(leader, GROUP, 2, AnswerOn::Commit);
            cluster.run_for(Duration::from_millis(1));
            return (cluster, leader);
        }
        5 => {
            cluster.isolate(leader);
            for _ in 0..3 {
                cluster.propose(leader, GROUP, 2, AnswerOn::Commit);
            }
            cluster.run_for(Duration::from_millis(20));
            return (cluster, leader);
        }
        6 => {
            cluster.isolate(follower);
            cluster.transfer(leader, GROUP, Some(follower));
            cluster.run_for(Duration::from_millis(1));
            return (cluster, leader);
        }
        // Followers: of a leader that is gone, campaigning, with entries on no disk, started again.
        7 => cluster.crash(leader),
        8 | 9 => {
            cluster.isolate(follower);
            if state == 9 {
                let message = campaign(&about(&cluster, follower), leader);
                cluster.feed(follower, Input::Message(message));
            }
            cluster.run_for(Duration::from_millis(if state == 9 { 20 } else { 1200 }));
        }
        10 => {
            cluster.stall(follower, true);
            cluster.propose(leader, GROUP, 2, AnswerOn::Commit);
            cluster.run_for(Duration::from_millis(5));
            if choices.below(2) == 1 {
                let message = campaign(&about(&cluster, follower), leader);
                cluster.feed(follower, Input::Message(message));
                cluster.run_for(Duration::from_millis(1));
            }
        }
        11 => {
            cluster.crash(follower);
            cluster.options.tail_max = 1;
            cluster.start(follower);
        }
        _ => {}
    }
    let node = if state == 1 { NodeId(1) } else { follower };
    (cluster, node)
}

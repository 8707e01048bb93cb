//! A whole cluster, run by bytes: they say what happens next, in which order messages and flushes come, who
//! crashes and who lies.
//!
//! Without liars everything that the harness knows of must hold, agreement at the end included. With liars
//! each replica must still be sound: no panic, no group taken out, nothing that runs backwards, nothing
//! counted that is not in the log, nothing durable contradicted.

use std::collections::BTreeSet;
use std::time::Duration;

use iroh_raft_core::{AnswerOn, Event, GroupId, Input, MessageKind, NodeId, PeerMessage, Role};

use super::choices::Choices;
use super::forged::{About, bend, forged};
use crate::harness::cluster::MILLIS;
use crate::harness::{Cluster, Group, Options};

/// Things that happen in one run at most: each takes a few bytes.
const ACTS_MAX: usize = 400;
/// Events of the cluster that one byte lets happen at most.
const EVENTS_MAX: u64 = 24;

/// Runs a cluster, and returns what was seen in it.
pub(crate) fn shard_inputs(data: &[u8]) -> BTreeSet<String> {
    let mut choices = Choices::new(data);
    let mut world = World::new(&mut choices);
    for _ in 0..ACTS_MAX {
        if choices.is_over() {
            break;
        }
        world.act(&mut choices);
    }
    if !world.cluster.options.has_liars {
        world.cluster.settle();
    }
    world.seen()
}

struct World {
    cluster: Cluster,
    seen: BTreeSet<String>,
}

impl World {
    fn new(choices: &mut Choices<'_>) -> World {
        let cluster = Cluster::new(options(choices));
        let mut world = World { cluster, seen: BTreeSet::new() };
        // Most of what can go wrong needs a leader.
        if choices.below(4) > 0 {
            let group = world.cluster.options.groups[0].id;
            let leader = world.cluster.run_until_led(group);
            for _ in 0..choices.below(4) {
                world.cluster.propose(leader, group, 2, AnswerOn::Commit);
            }
        }
        world
    }

    fn act(&mut self, choices: &mut Choices<'_>) {
        let node = NodeId(1 + choices.below(self.cluster.options.nodes));
        let groups = &self.cluster.options.groups;
        let Group { id: group, has_state_machine, .. } = groups[choices.below(groups.len() as u64) as usize];
        let cluster = &mut self.cluster;
        let leader = cluster.leader(group).unwrap_or(node);
        match choices.below(32) {
            0..=3 => (0..=choices.below(EVENTS_MAX)).for_each(|_| cluster.run_nth(0)),
            4..=7 => cluster.run_nth(choices.byte().into()),
            8 => drop(cluster.take_message(choices.byte().into())),
            9 => {
                if let Some(message) = cluster.take_message(choices.byte().into()) {
                    (0..2).for_each(|_| cluster.deliver(message.clone()));
                }
            }
            10 => cluster.run_for(Duration::from_millis(choices.below(256))),
            11..=13 if cluster.is_up(leader) => {
                let apply = has_state_machine && choices.below(2) == 0;
                let answer = if apply { AnswerOn::Apply } else { AnswerOn::Commit };
                cluster.propose(leader, group, 1 + choices.below(8), answer);
            }
            14 if cluster.is_up(node) => drop(cluster.propose(node, group, 1, AnswerOn::Commit)),
            15 if cluster.is_up(leader) => drop(cluster.read_any(leader, group)),
            16 if cluster.is_up(node) => {
                let end = cluster.status(node, group).map_or(0, |status| status.end.0);
                let (from, bytes_max) = (choices.number(end), choices.number(256));
                cluster.read_records(node, group, from, usize::try_from(bytes_max).unwrap_or(usize::MAX));
            }
            17 | 18 if cluster.is_up(node) => cluster.crash(node),
            17..=19 if !cluster.is_up(node) => {
                cluster.options.tail_max = choices.byte().into();
                cluster.start(node);
            }
            19 => cluster.stall(node, true),
            20 => cluster.stall(node, false),
            21 => cluster.isolate(node),
            22 => cluster.cut.clear(),
            23 if cluster.is_up(node) => cluster.pause(node, Duration::from_millis(4 * choices.below(256))),
            24 if cluster.is_up(leader) => {
                let to = Some(NodeId(choices.below(5))).filter(|node| node.0 != 0);
                if choices.below(4) == 0 {
                    cluster.step_down(leader, group);
                } else {
                    cluster.transfer(leader, group, to);
                }
            }
            25 if cluster.is_up(leader) => cluster.feed(leader, Input::Unreachable { node }),
            26 if cluster.is_up(node) && choices.below(4) == 0 => {
                cluster.fail_disk(node);
                cluster.run_for(Duration::from_millis(1));
                cluster.crash(node);
            }
            27..=31 if cluster.options.has_liars => self.lie(choices, node, group),
            _ => cluster.run_nth(0),
        }
    }

    fn lie(&mut self, choices: &mut Choices<'_>, node: NodeId, group: GroupId) {
        match choices.below(8) {
            0 if self.cluster.is_up(node) && choices.below(8) == 0 => self.cluster.damage(node, group),
            0..=3 => {
                let Some(message) = self.cluster.take_message(choices.byte().into()) else { return };
                self.tell(choices, message.to, message.group, |choices, about| {
                    let mut message = message;
                    (0..=choices.below(3)).for_each(|_| bend(choices, about, &mut message));
                    message
                });
            }
            _ => self.tell(choices, node, group, forged),
        }
    }

    /// Tells a replica a lie, and looks what it makes of it.
    fn tell(
        &mut self,
        choices: &mut Choices<'_>,
        node: NodeId,
        group: GroupId,
        lie: impl FnOnce(&mut Choices<'_>, &About<'_>) -> PeerMessage,
    ) {
        let Some(status) = self.cluster.status(node, group) else { return };
        let message = lie(choices, &About { node, status, log: self.cluster.stored(node, group) });
        self.seen.extend(told(&mut self.cluster, node, message));
    }

    fn seen(mut self) -> BTreeSet<String> {
        let counts = self.cluster.seen.iter().filter(|(_, count)| **count > 0);
        let often = |count: u64| if count > 3 { "often" } else { "seldom" };
        self.seen.extend(counts.map(|(what, count)| format!("{what} {}", often(*count))));
        self.seen
    }
}

/// Brings a lie to a replica, whoever it is addressed to. In words: what that was and what came of it.
pub(super) fn told(cluster: &mut Cluster, node: NodeId, message: PeerMessage) -> Option<String> {
    let kind = message.kind;
    let role = match kind {
        // It is of no group.
        MessageKind::Beat => Role::Follower,
        _ => cluster.status(node, message.group)?.role,
    };
    let events = cluster.events.len();
    cluster.feed(node, Input::Message(message));
    let Some((_, Event::MessageRefused { reason, .. })) = cluster.events.get(events) else {
        return Some(format!("{role:?} takes {kind:?}"));
    };
    let reason = format!("{reason:?}");
    let reason = reason.split(' ').next().unwrap_or_default();
    Some(format!("{kind:?} refused for {reason}"))
}

fn options(choices: &mut Choices<'_>) -> Options {
    let mut options = Options::new(choices.byte().into());
    let kind = choices.byte();
    options.has_liars = kind % 2 == 1;
    options.config.quiet_after = (options.seed % 2 == 1).then_some(Duration::from_millis(200));
    let machine = |group: Group| Group { has_state_machine: true, ..group };
    options.groups = match kind / 2 % 4 {
        0 => vec![Group::new(1, &[1, 2, 3])],
        1 => vec![machine(Group::new(1, &[1, 2, 3])), Group::new(2, &[2])],
        2 => vec![Group { learners: vec![3], ..Group::new(1, &[1]) }, Group::new(2, &[1, 2])],
        _ => vec![machine(Group::new(1, &[1, 2])), Group::new(2, &[2, 3, 1])],
    };
    // Limits that a few entries reach.
    if choices.below(2) == 1 {
        options.tail_max = choices.below(8) as usize;
        options.config.window_bytes_max = 500;
        options.config.entry_bytes_max = 64;
        options.config.entry_records_max = 3;
        options.config.message_bytes_max = 128;
        options.config.inflight_messages_max = 2;
        options.config.apply_bytes_max = 64;
        options.config.pending_bytes_max = 4096;
        options.config.reads_waiting_max = 3;
    }
    options.delay = 50_000..MILLIS;
    options
}

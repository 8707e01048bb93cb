//! Which members ticks are for, and the beats that stand in for heartbeats of the others.

use std::collections::BTreeSet;
use std::time::Duration;

use super::{Member, Shard};
use crate::group::Replica;
use crate::ids::{NodeId, Timestamp};
use crate::io::{Event, Outputs, PeerMessage, Send};
use crate::liveness::Change;
use crate::placement::Placement;

/// Replicas that get their first tick with each tick, however many are awake.
const WAKING_MIN: usize = 64;

impl Shard {
    /// Lets most replicas of a large shard wait: if all of them campaigned at once, none would be in time.
    pub(super) fn stagger(&mut self) {
        let is_live = |at: &usize| self.members[*at].live().is_some();
        let dormant = self.awake.iter().copied().filter(is_live).skip(self.config.waking_max);
        self.dormant = dormant.collect();
        self.awake.retain(|at| !self.dormant.contains(at));
        self.dormant.iter().for_each(|at| self.is_awake[*at] = false);
    }

    /// The next ones have their turn, in the order of their groups, which is that of other nodes as well: as many as went
    /// quiet.
    fn wake_dormant(&mut self, now: Timestamp) {
        let room = self.config.waking_max.saturating_sub(self.awake.len()).max(WAKING_MIN);
        for _ in 0..room {
            let Some(at) = self.dormant.pop_first() else { return };
            self.rouse(now, at);
        }
    }

    /// Whether ticks are for anybody.
    pub(super) fn has_ticks(&self) -> bool {
        !self.awake.is_empty() || !self.dormant.is_empty()
    }

    /// When time is the next input while all groups are quiet.
    pub(super) fn next_wakeup_when_quiet(&self) -> Option<Timestamp> {
        let spread = self.spread.next_at(&self.config);
        let disk = self.disk.next_wakeup(&self.config);
        let alarm = self.alarms.first().map(|(at, _)| *at);
        [self.liveness.next_wakeup(), spread, disk, alarm].into_iter().flatten().min()
    }

    /// Ticks are for this member from now on.
    pub(super) fn rouse(&mut self, now: Timestamp, at: usize) {
        if std::mem::replace(&mut self.is_awake[at], true) {
            return;
        }
        self.set_alarm(at, None);
        if !self.has_ticks() {
            // The ticks that have passed since the last turn were for nobody.
            let tick = u64::try_from(self.config.tick.as_nanos()).unwrap_or(u64::MAX);
            let passed = now.0.saturating_sub(self.ticked.0);
            self.ticked = Timestamp(self.ticked.0 + passed - passed % tick);
        }
        self.awake.push(at);
    }

    /// Ticks pass for all that are awake.
    pub(super) fn tick_awake(&mut self, now: Timestamp, ticks: u32, out: &mut Outputs) {
        // Some have nodded since the last tick.
        self.forget_quiet();
        self.wake_dormant(now);
        let awake = std::mem::take(&mut self.awake);
        for at in &awake {
            if let Member::Loading(_) = &self.members[*at] {
                self.list(*at);
            }
            self.call(now, *at, out, |replica, turn| replica.handle_ticks(turn, ticks));
        }
        // Nobody was roused meanwhile: only those that were awake have been called.
        self.awake = awake;
        self.forget_quiet();
    }

    fn forget_quiet(&mut self) {
        let mut awake = std::mem::take(&mut self.awake);
        awake.retain(|at| {
            self.is_awake[*at] = match &self.members[*at] {
                Member::Live(replica) => !replica.is_quiet(),
                Member::Loading(_) => true,
                Member::Out(_) | Member::Left(_) => false,
            };
            if !self.is_awake[*at] {
                let alarm = self.members[*at].live().and_then(|replica| replica.quiet_until(&self.config));
                self.set_alarm(*at, alarm);
            }
            self.is_awake[*at]
        });
        self.awake = awake;
    }

    fn set_alarm(&mut self, at: usize, alarm: Option<Timestamp>) {
        if let Some(before) = std::mem::replace(&mut self.alarm_of[at], alarm) {
            self.alarms.remove(&(before, at));
        }
        self.alarms.extend(alarm.map(|alarm| (alarm, at)));
    }

    /// Wakes members for what time alone gives them to do.
    pub(super) fn ring_alarms(&mut self, now: Timestamp, out: &mut Outputs) {
        while let Some((_, at)) = self.alarms.first().copied().filter(|(alarm, _)| *alarm <= now) {
            self.set_alarm(at, None);
            self.call(now, at, out, Replica::wake);
        }
    }

    /// Time for which the shard has stood still, if it was longer than it may take to get round to a turn.
    pub(super) fn pause_before(&self, now: Timestamp) -> Duration {
        let planned = match self.has_ticks() {
            true => self.ticked,
            false => self.next_wakeup_when_quiet().unwrap_or(now).max(self.ticked),
        };
        let late_max = self.config.tick * self.config.heartbeat_ticks;
        now.since(planned).saturating_sub(late_max)
    }

    /// A disk that hangs wakes what leads on it.
    pub(super) fn handle_disk_event(&mut self, now: Timestamp, event: Event, out: &mut Outputs) {
        let is_hung = matches!(event, Event::DiskHung { .. });
        out.events.push(event);
        for at in 0..self.members.len() {
            if is_hung {
                self.call(now, at, out, Replica::wake_leader);
            }
        }
    }

    pub(super) fn handle_beat(&mut self, now: Timestamp, beat: &PeerMessage, out: &mut Outputs) {
        self.tell_liveness();
        match self.liveness.handle_beat(now, self.config.node, beat) {
            Ok(change) => change.into_iter().for_each(|change| self.handle_change(now, change, out)),
            Err(reason) => {
                out.events.push(Event::MessageRefused { group: beat.group, from: beat.from, reason });
            }
        }
    }

    pub(super) fn handle_silence(&mut self, now: Timestamp, out: &mut Outputs) {
        for change in self.liveness.take_silent(now) {
            self.handle_change(now, change, out);
        }
    }

    fn handle_change(&mut self, now: Timestamp, change: Change, out: &mut Outputs) {
        for at in 0..self.members.len() {
            self.call(now, at, out, |replica, turn| replica.handle_liveness(turn, change));
        }
    }

    pub(super) fn send_beats(&mut self, now: Timestamp, out: &mut Outputs) {
        let until = if self.has_ticks() { now.after(self.config.tick) } else { now };
        if self.liveness.is_due(now, until, &self.config) {
            self.tell_liveness();
            let beats = self.liveness.beats(self.config.node);
            out.sends.extend(beats.map(|message| Send { message, after: None }));
        }
    }

    /// A node has said which of its shards has which group. What rests on another of its shards looks anew.
    pub(super) fn handle_placement(
        &mut self,
        now: Timestamp,
        node: NodeId,
        placement: Placement,
        out: &mut Outputs,
    ) {
        if !self.placements.set(node, placement) {
            return;
        }
        self.have_members_changed = true;
        for at in 0..self.members.len() {
            self.call(now, at, out, |replica, turn| replica.handle_moved(turn, node));
        }
    }

    /// Tells with which shards this one shares groups, if that may have changed.
    fn tell_liveness(&mut self) {
        if !std::mem::take(&mut self.have_members_changed) {
            return;
        }
        let mut shards = BTreeSet::new();
        for replica in self.members.iter().filter_map(Member::live) {
            let others = replica.members().filter(|node| *node != self.config.node);
            shards.extend(others.map(|node| self.placements.at(node, replica.group())));
        }
        self.liveness.set_shards(shards);
    }
}

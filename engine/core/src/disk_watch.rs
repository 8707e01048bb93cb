//! Whether the shard's disk keeps up: how long the oldest flush on its way has been there.
//!
//! A leader commits without its own disk (Raft thesis 10.2.1), so one whose disk hangs goes on: what it
//! leads is safe, but all that it takes stays in memory, and of its replicas none is ever made again
//! from its own disk. So a hang is told, and those that it concerns leave leadership to others.
//!
//! Against flapping: after a hang the shard's replicas do not lead before the disk has kept up for one
//! longest election timeout. That is as long as the others need to find a leader; longer would keep a
//! cluster whose disks all hung at once without one.

use std::collections::VecDeque;
use std::time::Duration;

use crate::ids::{FlushSeq, Timestamp};
use crate::io::{Event, ShardConfig};
use crate::mutants::{self, Mutant};

/// What a disk allows the replicas on it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum DiskHealth {
    /// Everything.
    Well,
    /// Nobody leads on it.
    Hung,
    /// It was hung just now: who leads goes on, nobody begins to.
    Recovering,
}

#[derive(Debug)]
pub(crate) struct DiskWatch {
    /// Flushes on their way, with the time since when each is. As many as the shard has open.
    open: VecDeque<(FlushSeq, Timestamp)>,
    hung_since: Option<Timestamp>,
    /// When a disk that has hung counts as well again.
    well_at: Timestamp,
}

impl DiskWatch {
    pub(crate) fn new() -> DiskWatch {
        DiskWatch { open: VecDeque::new(), hung_since: None, well_at: Timestamp(0) }
    }

    pub(crate) fn handle_handed_over(&mut self, now: Timestamp, seq: FlushSeq) {
        self.open.push_back((seq, now));
    }

    pub(crate) fn handle_persisted(&mut self, persisted: FlushSeq) {
        while self.open.front().is_some_and(|(seq, _)| *seq <= persisted) {
            self.open.pop_front();
        }
    }

    /// The shard itself stood still for so long: that says nothing about its disk.
    pub(crate) fn handle_pause(&mut self, pause: Duration) {
        self.open.iter_mut().for_each(|(_, since)| *since = since.after(pause));
    }

    /// Ticks are due: tells a hang that has begun or ended.
    pub(crate) fn handle_tick(&mut self, now: Timestamp, config: &ShardConfig) -> Option<Event> {
        let oldest = self.open.front().filter(|(_, since)| since.after(config.flush_stuck_after) <= now);
        match (oldest, self.hung_since) {
            (Some((seq, since)), None) => {
                self.hung_since = Some(*since);
                Some(Event::DiskHung { seq: *seq, waited: time_between(*since, now) })
            }
            (None, Some(since)) => {
                self.hung_since = None;
                self.well_at = now.after(config.tick * config.election_ticks.1);
                Some(Event::DiskRecovered { hung: time_between(since, now) })
            }
            _ => None,
        }
    }

    /// When a flush that is open now counts as hung, or at once if the disk is back and it was not told.
    pub(crate) fn next_wakeup(&self, config: &ShardConfig) -> Option<Timestamp> {
        match self.open.front() {
            Some((_, since)) => Some(since.after(config.flush_stuck_after)),
            None => self.hung_since,
        }
    }

    pub(crate) fn is_hung(&self) -> bool {
        self.hung_since.is_some()
    }

    pub(crate) fn health(&self, now: Timestamp) -> DiskHealth {
        match self.hung_since {
            Some(_) => DiskHealth::Hung,
            None if now < self.well_at && !mutants::is(Mutant::HungDiskCampaigns) => DiskHealth::Recovering,
            None => DiskHealth::Well,
        }
    }
}

fn time_between(from: Timestamp, to: Timestamp) -> Duration {
    Duration::from_nanos(to.0.saturating_sub(from.0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::NodeId;

    const MS: u64 = 1_000_000;

    fn at(ms: u64) -> Timestamp {
        Timestamp(ms * MS)
    }

    fn config() -> ShardConfig {
        ShardConfig { flush_stuck_after: Duration::from_secs(1), ..ShardConfig::new(NodeId(1), 0) }
    }

    #[test]
    fn the_oldest_flush_decides_and_each_change_is_told_once() {
        let mut watch = DiskWatch::new();
        watch.handle_handed_over(at(0), FlushSeq(1));
        watch.handle_handed_over(at(600), FlushSeq(2));
        assert_eq!(watch.handle_tick(at(999), &config()), None);
        let hung = Event::DiskHung { seq: FlushSeq(1), waited: Duration::from_millis(1000) };
        assert_eq!(watch.handle_tick(at(1000), &config()), Some(hung));
        assert_eq!(
            (watch.handle_tick(at(1050), &config()), watch.health(at(1050))),
            (None, DiskHealth::Hung)
        );
        watch.handle_persisted(FlushSeq(1));
        let recovered = Event::DiskRecovered { hung: Duration::from_millis(1100) };
        assert_eq!(watch.handle_tick(at(1100), &config()), Some(recovered));
        assert_eq!(watch.health(at(1100)), DiskHealth::Recovering);
        assert_eq!(watch.health(at(1100 + 899)), DiskHealth::Recovering);
        assert_eq!(watch.health(at(1100 + 900)), DiskHealth::Well);
        assert!(watch.handle_tick(at(1600), &config()).is_some(), "the second flush hangs as well");
    }

    #[test]
    fn a_pause_of_the_shard_is_not_one_of_its_disk() {
        let mut watch = DiskWatch::new();
        watch.handle_handed_over(at(0), FlushSeq(1));
        watch.handle_pause(Duration::from_secs(30));
        assert_eq!(watch.handle_tick(at(30_100), &config()), None);
        assert!(watch.handle_tick(at(31_000), &config()).is_some());
    }
}

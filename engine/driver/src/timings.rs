//! Where the time of an append goes, for those that ask.

use std::collections::HashMap;
use std::time::Duration;

use iroh_raft_core::{FlushSeq, Timestamp, Token};
use iroh_raft_netbridge::wire::Stages;

#[derive(Debug)]
struct Timing {
    ring: Duration,
    taken: Timestamp,
    /// When the turn ended that took it, and with which flush.
    handed: Option<(Timestamp, FlushSeq)>,
    /// When that flush was known durable.
    flushed: Option<Timestamp>,
}

/// The appends under way that are timed: mostly none.
#[derive(Debug, Default)]
pub(crate) struct Timings(HashMap<Token, Timing>);

impl Timings {
    /// One was taken that had been in its ring for so long.
    pub(crate) fn begin(&mut self, token: Token, ring: Duration, taken: Timestamp) {
        self.0.insert(token, Timing { ring, taken, handed: None, flushed: None });
    }

    /// A flush goes to the writer, with what was taken before.
    pub(crate) fn handed_over(&mut self, seq: FlushSeq, now: Timestamp) {
        for timing in self.0.values_mut() {
            timing.handed.get_or_insert((now, seq));
        }
    }

    /// It is durable here.
    pub(crate) fn flushed(&mut self, upto: FlushSeq, now: Timestamp) {
        for timing in self.0.values_mut() {
            if timing.handed.is_some_and(|(_, seq)| seq <= upto) {
                timing.flushed.get_or_insert(now);
            }
        }
    }

    /// It is answered; `None` when it was not timed.
    pub(crate) fn end(&mut self, token: Token, now: Timestamp) -> Option<Stages> {
        if self.0.is_empty() {
            return None;
        }
        let Timing { ring, taken, handed, flushed } = self.0.remove(&token)?;
        let handed = handed.map_or(now, |(at, _)| at);
        let us = |time: Duration| u32::try_from(time.as_micros()).unwrap_or(u32::MAX);
        Some(Stages {
            ring_us: us(ring),
            turn_us: us(handed.since(taken)),
            commit_us: us(now.since(handed)),
            flush_us: flushed.map(|at| us(at.since(handed))),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stages_follow_each_other_and_the_leaders_own_disk_may_be_late() {
        let mut timings = Timings::default();
        let at = |us: u64| Timestamp(us * 1000);
        let [first, second] = [1, 2].map(|request| Token { origin: 1, request });
        timings.begin(first, Duration::from_micros(5), at(10));
        timings.handed_over(FlushSeq(7), at(30));
        timings.begin(second, Duration::from_micros(6), at(40));
        timings.handed_over(FlushSeq(8), at(41));
        timings.flushed(FlushSeq(7), at(330));
        let stages =
            |ring_us, turn_us, commit_us, flush_us| Some(Stages { ring_us, turn_us, commit_us, flush_us });
        assert_eq!(timings.end(first, at(400)), stages(5, 20, 370, Some(300)));
        assert_eq!(timings.end(second, at(241)), stages(6, 1, 200, None));
        assert_eq!(timings.end(second, at(500)), None);
    }
}

//! What threads hand over while the load runs: an interval a second, cut at the edges of the warm-up and of the load.

use std::sync::mpsc::SyncSender;
use std::time::{Duration, Instant};

use crate::recorder::Interval;

/// What is printed and cut apart: one interval a second.
pub(crate) const INTERVAL: Duration = Duration::from_secs(1);

/// When the load begins and ends. All times count from its start.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Window {
    pub(crate) start: Instant,
    /// What is not measured.
    pub(crate) warmup: Duration,
    /// What is measured.
    pub(crate) duration: Duration,
}

impl Window {
    /// When the load ends.
    pub(crate) fn end(&self) -> Duration {
        self.warmup + self.duration
    }

    /// Intervals that a thread hands over at most.
    pub(crate) fn intervals_max(&self) -> usize {
        self.end().as_secs() as usize + 3
    }

    /// When an interval that begins at `from` ends: after a second, or with the warm-up or the load.
    fn cut_after(&self, from: Duration) -> Duration {
        let edges = [self.warmup, self.end()].into_iter().filter(|edge| *edge > from);
        edges.chain([from + INTERVAL]).min().unwrap_or(from + INTERVAL)
    }

    fn is_measured(&self, from: Duration) -> bool {
        from >= self.warmup && from < self.end()
    }
}

/// An interval of one thread, and when it ended.
#[derive(Debug)]
pub(crate) struct Progress {
    /// Its end, from the start of the load.
    pub(crate) until: Duration,
    /// What was seen.
    pub(crate) interval: Interval,
}

/// The intervals of one thread, one after the other.
#[derive(Debug)]
pub(crate) struct Intervals {
    window: Window,
    sender: SyncSender<Progress>,
    next_cut: Duration,
    /// The one that gathers.
    pub(crate) now: Interval,
}

impl Intervals {
    pub(crate) fn new(window: Window, sender: SyncSender<Progress>) -> Intervals {
        let now = Interval::new(window.is_measured(Duration::ZERO));
        Intervals { next_cut: window.cut_after(Duration::ZERO), window, sender, now }
    }

    /// When the next one begins.
    pub(crate) fn next_cut(&self) -> Instant {
        self.window.start + self.next_cut
    }

    /// Hands over those that have ended.
    pub(crate) fn cut(&mut self, now: Instant) {
        let now = now.saturating_duration_since(self.window.start);
        while now >= self.next_cut && self.next_cut <= self.window.end() {
            let until = self.next_cut;
            self.next_cut = self.window.cut_after(until);
            let next = Interval::new(self.window.is_measured(until));
            let interval = std::mem::replace(&mut self.now, next);
            // The channel holds all intervals of the run; a reader that is gone needs none.
            let _ = self.sender.try_send(Progress { until, interval });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_meet_at_the_edges_of_the_measured_window() {
        let window = Window {
            start: Instant::now(),
            warmup: Duration::from_millis(1500),
            duration: Duration::from_millis(2200),
        };
        let mut cuts = vec![Duration::ZERO];
        while *cuts.last().unwrap() < window.end() {
            cuts.push(window.cut_after(*cuts.last().unwrap()));
        }
        let ms: Vec<u128> = cuts.iter().map(Duration::as_millis).collect();
        assert_eq!(ms, [0, 1000, 1500, 2500, 3500, 3700]);
        let measured: Vec<bool> = cuts.iter().map(|from| window.is_measured(*from)).collect();
        assert_eq!(measured, [false, false, true, true, true, false]);
        assert!(cuts.len() <= window.intervals_max() + 1);
    }
}

//! What followers and the clients whose records they follow know together: when each record was sent, what was
//! acknowledged, and what was delivered.
//!
//! A record names who made it and which one it is; so who delivers it can ask here since when it was under way.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use crate::ledger::{AckRun, GroupLedger, Ledger};

/// Entries of records that are under way to followers, of each group. Full: the records that are sent then are delivered
/// without a latency, and counted.
const SENT_MAX: usize = 1 << 20;

/// Records of one client that were sent at one time, and how often followers are still to have them.
#[derive(Debug)]
struct Sent {
    at: Instant,
    count: u32,
    left: u64,
}

/// What was delivered of a group, and compared among its followers.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub(crate) struct Delivered {
    /// The first offset that followers were to have.
    from: u64,
    /// Offset after the last one that any of them had.
    end: u64,
    /// What stood there, in order. What is left out is somebody else's.
    runs: Vec<AckRun>,
}

impl Delivered {
    /// Takes records that a follower had. Returns how many of them others had been given otherwise.
    fn take(&mut self, run: AckRun) -> u64 {
        let known = self.end.saturating_sub(run.first).min(run.count.into()) as u32;
        let wrong = self.differing(AckRun { count: known, ..run });
        if known < run.count {
            let new = AckRun {
                first: run.first + u64::from(known),
                client: run.client,
                count: run.count - known,
                sequence: run.sequence + u64::from(known),
            };
            self.end = new.end();
            match self.runs.last_mut() {
                Some(last)
                    if last.client == new.client
                        && last.end() == new.first
                        && last.sequence + u64::from(last.count) == new.sequence
                        && last.count.checked_add(new.count).is_some() =>
                {
                    last.count += new.count;
                }
                _ => self.runs.push(new),
            }
        }
        wrong
    }

    /// How many of these records are others than were delivered at their offsets.
    fn differing(&self, run: AckRun) -> u64 {
        let (mut at, mut wrong) = (run.first, 0);
        while at < run.end() {
            let known = self.runs.get(self.runs.partition_point(|known| known.end() <= at));
            match known {
                Some(known) if known.first <= at => {
                    let to = known.end().min(run.end());
                    let is_it = known.client == run.client
                        && known.sequence + (at - known.first) == run.sequence + (at - run.first);
                    wrong += if is_it { 0 } else { to - at };
                    at = to;
                }
                other => {
                    let to = other.map_or(run.end(), |other| other.first.min(run.end()));
                    wrong += to - at;
                    at = to;
                }
            }
        }
        wrong
    }

    /// How many records were acknowledged at offsets that were delivered, and are not what was delivered there.
    fn wrong(&self, ledger: &GroupLedger) -> u64 {
        let within = |run: &AckRun| {
            let first = run.first.max(self.from);
            let end = run.end().min(self.end);
            (first < end).then(|| AckRun {
                first,
                client: run.client,
                count: (end - first) as u32,
                sequence: run.sequence + (first - run.first),
            })
        };
        ledger.acked().iter().filter_map(within).map(|run| self.differing(run)).sum()
    }
}

#[derive(Debug, Default)]
struct Group {
    /// By client and first sequence.
    sent: BTreeMap<(u32, u64), Sent>,
    /// Offset after the highest one acknowledged.
    acked_end: u64,
    delivered: Delivered,
}

impl Group {
    /// Since when records are under way: each time with how many were sent then. Returns of how many nobody knows.
    fn take_times(&mut self, run: AckRun, mut each: impl FnMut(Instant, u64)) -> u64 {
        let (mut sequence, end) = (run.sequence, run.sequence + u64::from(run.count));
        let mut untimed = 0;
        while sequence < end {
            let before = self.sent.range_mut(..=(run.client, sequence)).next_back();
            let entry = before.filter(|((client, first), sent)| {
                *client == run.client && sequence < first + u64::from(sent.count)
            });
            let Some((&key, sent)) = entry else {
                untimed += 1;
                sequence += 1;
                continue;
            };
            let count = (key.1 + u64::from(sent.count)).min(end) - sequence;
            each(sent.at, count);
            sequence += count;
            sent.left = sent.left.saturating_sub(count);
            if sent.left == 0 {
                self.sent.remove(&key);
            }
        }
        untimed
    }
}

/// Records that a follower was given without a break.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct Taken {
    /// Those that others were given otherwise.
    pub(crate) wrong: u64,
    /// Those of which nobody knows when they were sent.
    pub(crate) untimed: u64,
}

/// All groups that are followed.
#[derive(Debug)]
pub(crate) struct Followed {
    /// Followers of each.
    pub(crate) tails: u32,
    groups: BTreeMap<u32, Mutex<Group>>,
}

impl Followed {
    pub(crate) fn new(groups: &[u32], tails: u32) -> Followed {
        let groups = groups.iter().map(|group| (*group, Mutex::default())).collect();
        Followed { tails, groups }
    }

    fn group(&self, group: u32) -> MutexGuard<'_, Group> {
        self.groups[&group].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where a group's followers begin.
    pub(crate) fn begin(&self, group: u32, from: u64) {
        self.group(group).delivered = Delivered { from, end: from, runs: Vec::new() };
    }

    /// Notes records that are about to be sent, from `sequence` on, at their times.
    pub(crate) fn note_sent(
        &self,
        group: u32,
        client: u32,
        sequence: u64,
        times: impl Iterator<Item = (Instant, u32)>,
    ) {
        let (mut group, mut first) = (self.group(group), sequence);
        let mut times = times.peekable();
        while let Some((at, mut count)) = times.next() {
            while let Some((_, more)) = times.next_if(|(next, _)| *next == at) {
                count += more;
            }
            if group.sent.len() < SENT_MAX {
                let left = u64::from(count) * u64::from(self.tails);
                group.sent.insert((client, first), Sent { at, count, left });
            }
            first += u64::from(count);
        }
    }

    /// Notes records that will not come.
    pub(crate) fn note_refused(&self, group: u32, client: u32, sequence: u64, count: u32) {
        let (mut group, end) = (self.group(group), sequence + u64::from(count));
        let keys: Vec<_> = group.sent.range((client, sequence)..(client, end)).map(|(key, _)| *key).collect();
        for key in keys {
            group.sent.remove(&key);
        }
    }

    /// Notes that all up to an offset is acknowledged, or some of it.
    pub(crate) fn note_acked(&self, group: u32, end: u64) {
        let mut group = self.group(group);
        group.acked_end = group.acked_end.max(end);
    }

    /// Offset after the highest one acknowledged.
    pub(crate) fn acked_end(&self, group: u32) -> u64 {
        self.group(group).acked_end
    }

    /// Takes what a follower had, in order. `each`: since when so many of them were under way.
    pub(crate) fn deliver(&self, group: u32, runs: &[AckRun], mut each: impl FnMut(Instant, u64)) -> Taken {
        let mut group = self.group(group);
        let mut taken = Taken::default();
        for run in runs {
            taken.wrong += group.delivered.take(*run);
            taken.untimed += group.take_times(*run, &mut each);
        }
        taken
    }

    /// How many records were delivered otherwise than they were acknowledged. `ledger`: sealed.
    pub(crate) fn wrong(&self, ledger: &Ledger) -> u64 {
        let groups = ledger.groups().filter(|(group, _)| self.groups.contains_key(group));
        groups.map(|(group, of_group)| self.group(group).delivered.wrong(of_group)).sum()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn run(first: u64, client: u32, sequence: u64, count: u32) -> AckRun {
        AckRun { first, client, count, sequence }
    }

    #[test]
    fn a_delivery_is_timed_by_its_record_and_once_for_each_follower() {
        let followed = Followed::new(&[3], 2);
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        followed.note_sent(3, 1, 10, [(at(5), 2), (at(5), 1), (at(9), 1)].into_iter());
        followed.note_sent(3, 2, 0, [(at(7), 4)].into_iter());
        for _ in 0..2 {
            let mut seen = Vec::new();
            // In another order than they were sent.
            let runs = [run(0, 2, 0, 4), run(4, 1, 11, 3)];
            let taken = followed.deliver(3, &runs, |at, count| seen.push((at, count)));
            assert_eq!(seen, [(at(7), 4), (at(5), 2), (at(9), 1)]);
            assert_eq!((taken.wrong, taken.untimed), (0, 0));
        }
        // Two have had these; the one that nobody had is still to come, twice.
        for untimed in [0, 0, 1] {
            let taken = followed.deliver(3, &[run(7, 1, 10, 1)], |since, _| assert_eq!(since, at(5)));
            assert_eq!((taken.wrong, taken.untimed), (0, untimed));
        }
        followed.note_sent(3, 1, 20, [(at(9), 3)].into_iter());
        followed.note_refused(3, 1, 20, 3);
        assert_eq!(followed.group(3).sent.len(), 0);
    }

    #[test]
    fn followers_that_differ_from_each_other_or_from_what_was_acknowledged_are_told() {
        let followed = Followed::new(&[1], 2);
        followed.begin(1, 0);
        let wrong = |runs: &[AckRun]| followed.deliver(1, runs, |_, _| {}).wrong;
        assert_eq!(wrong(&[run(0, 0, 0, 5), run(5, 1, 0, 5)]), 0);
        assert_eq!(wrong(&[run(0, 0, 0, 5), run(5, 1, 0, 5), run(10, 0, 5, 2)]), 0, "one that is ahead");
        assert_eq!(wrong(&[run(0, 0, 0, 4), run(4, 1, 0, 1), run(5, 1, 1, 4)]), 5, "another order");
        assert_eq!(followed.group(1).delivered.runs.len(), 3);

        let acked = |runs: &[AckRun]| {
            let mut ledger = Ledger::new(1, 2);
            runs.iter().for_each(|run| ledger.acked(1, *run, 0));
            ledger.seal();
            followed.wrong(&ledger)
        };
        // What is not delivered yet is not wrong.
        assert_eq!(acked(&[run(0, 0, 0, 5), run(6, 1, 1, 2), run(10, 0, 5, 9)]), 0);
        assert_eq!(acked(&[run(0, 0, 1, 5)]), 5);
        assert_eq!(acked(&[run(4, 1, 0, 1), run(5, 1, 0, 5)]), 1);
    }
}

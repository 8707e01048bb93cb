//! What was sent, what was acknowledged where, and what is unknown: small enough to keep for every
//! record, because a record's content follows from its identity.
//!
//! Invariant: of every record sent, exactly one of acknowledged, refused and unknown is noted.

use serde::{Deserialize, Serialize};

/// Consecutive acknowledged records of one client at consecutive offsets.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct AckRun {
    /// Offset of the first record.
    pub(crate) first: u64,
    /// Who sent them.
    pub(crate) client: u32,
    /// Number of records, at least 1.
    pub(crate) count: u32,
    /// Sequence of the first.
    pub(crate) sequence: u64,
}

impl AckRun {
    /// Offset after the last record.
    pub(crate) fn end(&self) -> u64 {
        self.first + u64::from(self.count)
    }
}

/// Consecutive sequences of one client (`count` of them).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub(crate) struct SentRun {
    pub(crate) client: u32,
    pub(crate) sequence: u64,
    pub(crate) count: u32,
}

/// What is known of one group.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub(crate) struct GroupLedger {
    /// Acknowledged, in order of arrival until [`Ledger::seal`] sorts them by offset.
    acked: Vec<AckRun>,
    /// Sent, and certainly not done.
    refused: Vec<SentRun>,
    /// Next sequence of each client: everything below was sent.
    sent: Vec<u64>,
    /// Acknowledged records whose offset another acknowledgement names too.
    contested: u64,
    /// Acknowledged below an offset that had been acknowledged before they were sent.
    out_of_order: u64,
    records_acked: u64,
    records_refused: u64,
    records_unknown: u64,
}

impl GroupLedger {
    /// Acknowledged runs, by offset, without overlap.
    pub(crate) fn acked(&self) -> &[AckRun] {
        &self.acked
    }

    /// Offset after the last acknowledged record.
    pub(crate) fn end(&self) -> u64 {
        self.acked.last().map_or(0, AckRun::end)
    }

    /// Acknowledged records, contested ones included.
    pub(crate) fn records_acked(&self) -> u64 {
        self.records_acked
    }

    /// Number of clients that may have sent to the group.
    pub(crate) fn clients(&self) -> usize {
        self.sent.len()
    }

    /// How many records a client has sent.
    pub(crate) fn sent(&self, client: u32) -> u64 {
        self.sent.get(client as usize).copied().unwrap_or(0)
    }

    /// Whether a record was sent and certainly not done.
    pub(crate) fn is_refused(&self, client: u32, sequence: u64) -> bool {
        let after = self.refused.partition_point(|run| (run.client, run.sequence) <= (client, sequence));
        let run = after.checked_sub(1).and_then(|at| self.refused.get(at));
        run.is_some_and(|run| run.client == client && sequence - run.sequence < u64::from(run.count))
    }

    /// Acknowledged records that cannot be where they were said to be: another one was there first.
    pub(crate) fn contested(&self) -> u64 {
        self.contested
    }

    /// Records acknowledged in an order that contradicts the order in which they were sent.
    pub(crate) fn out_of_order(&self) -> u64 {
        self.out_of_order
    }
}

/// Sums over all groups.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(crate) struct LedgerTotals {
    /// Acknowledged records.
    pub(crate) acked: u64,
    /// Records that certainly were not done.
    pub(crate) refused: u64,
    /// Records that may have been done.
    pub(crate) unknown: u64,
}

/// What is known of every record sent. Groups are numbered from 1.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub(crate) struct Ledger {
    groups: Vec<GroupLedger>,
}

impl Ledger {
    /// An empty one.
    pub(crate) fn new(groups: u32, clients: u32) -> Ledger {
        let group = GroupLedger { sent: vec![0; clients as usize], ..GroupLedger::default() };
        Ledger { groups: vec![group; groups as usize] }
    }

    /// The groups with their numbers.
    pub(crate) fn groups(&self) -> impl Iterator<Item = (u32, &GroupLedger)> {
        (1..).zip(&self.groups)
    }

    fn group(&mut self, group: u32) -> &mut GroupLedger {
        &mut self.groups[group as usize - 1]
    }

    /// Takes the next `count` sequences of a client in a group; returns the first.
    pub(crate) fn send(&mut self, group: u32, client: u32, count: u32) -> u64 {
        let next = &mut self.group(group).sent[client as usize];
        let first = *next;
        *next += u64::from(count);
        first
    }

    /// Notes an acknowledgement. `floor` is the offset after the highest one that had been
    /// acknowledged to the client when it sent the records.
    pub(crate) fn acked(&mut self, group: u32, run: AckRun, floor: u64) {
        let group = self.group(group);
        group.records_acked += u64::from(run.count);
        if run.first < floor {
            group.out_of_order += u64::from(run.count);
        }
        if let Some(last) = group.acked.last_mut()
            && last.client == run.client
            && last.end() == run.first
            && last.sequence + u64::from(last.count) == run.sequence
            && let Some(count) = last.count.checked_add(run.count)
        {
            last.count = count;
            return;
        }
        group.acked.push(run);
    }

    /// Notes records that were certainly not done.
    pub(crate) fn refused(&mut self, group: u32, run: SentRun) {
        let group = self.group(group);
        group.records_refused += u64::from(run.count);
        group.refused.push(run);
    }

    /// Notes records that may have been done.
    pub(crate) fn unknown(&mut self, group: u32, run: SentRun) {
        self.group(group).records_unknown += u64::from(run.count);
    }

    /// Adds what another thread noted. A client belongs to one thread.
    pub(crate) fn merge(&mut self, other: Ledger) {
        for (into, from) in self.groups.iter_mut().zip(other.groups) {
            into.acked.extend(from.acked);
            into.refused.extend(from.refused);
            for (mine, theirs) in into.sent.iter_mut().zip(from.sent) {
                *mine = (*mine).max(theirs);
            }
            into.out_of_order += from.out_of_order;
            into.records_acked += from.records_acked;
            into.records_refused += from.records_refused;
            into.records_unknown += from.records_unknown;
        }
    }

    /// Sorts everything for the audit. An offset acknowledged twice keeps its first claim; the rest
    /// is counted as contested.
    pub(crate) fn seal(&mut self) {
        for group in &mut self.groups {
            group.acked.sort_unstable_by_key(|run| (run.first, run.client, run.sequence));
            group.refused.sort_unstable();
            let mut end = 0;
            let mut contested = 0;
            group.acked.retain_mut(|run| {
                let overlap = end.max(run.first) - run.first;
                let overlap = u32::try_from(overlap).unwrap_or(u32::MAX).min(run.count);
                contested += u64::from(overlap);
                run.first += u64::from(overlap);
                run.sequence += u64::from(overlap);
                run.count -= overlap;
                end = end.max(run.end());
                run.count > 0
            });
            group.contested += contested;
        }
    }

    /// Sums over all groups.
    pub(crate) fn totals(&self) -> LedgerTotals {
        self.groups.iter().fold(LedgerTotals::default(), |sum, group| LedgerTotals {
            acked: sum.acked + group.records_acked,
            refused: sum.refused + group.records_refused,
            unknown: sum.unknown + group.records_unknown,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(first: u64, client: u32, sequence: u64, count: u32) -> AckRun {
        AckRun { first, client, count, sequence }
    }

    #[test]
    fn neighbours_merge_and_the_rest_is_sorted() {
        let mut ledger = Ledger::new(1, 2);
        assert_eq!(ledger.send(1, 0, 4), 0);
        assert_eq!(ledger.send(1, 0, 4), 4);
        assert_eq!(ledger.send(1, 1, 2), 0);
        ledger.acked(1, run(10, 0, 0, 4), 0);
        ledger.acked(1, run(14, 0, 4, 4), 0);
        ledger.acked(1, run(5, 1, 0, 2), 0);
        ledger.seal();
        assert_eq!(ledger.groups[0].acked(), [run(5, 1, 0, 2), run(10, 0, 0, 8)]);
        assert_eq!((ledger.groups[0].end(), ledger.totals().acked), (18, 10));
    }

    #[test]
    fn an_offset_acknowledged_twice_is_contested() {
        let mut ledger = Ledger::new(1, 2);
        ledger.acked(1, run(0, 0, 0, 10), 0);
        ledger.acked(1, run(8, 1, 0, 4), 0);
        ledger.acked(1, run(3, 1, 4, 2), 0);
        ledger.seal();
        assert_eq!(ledger.groups[0].acked(), [run(0, 0, 0, 10), run(10, 1, 2, 2)]);
        assert_eq!(ledger.groups[0].contested(), 4);
        assert_eq!(ledger.totals().acked, 16);
    }

    #[test]
    fn an_acknowledgement_below_what_was_acknowledged_before_is_out_of_order() {
        let mut ledger = Ledger::new(1, 1);
        ledger.acked(1, run(7, 0, 0, 1), 0);
        ledger.acked(1, run(3, 0, 1, 2), 8);
        assert_eq!(ledger.groups[0].out_of_order(), 2);
    }

    #[test]
    fn refused_records_are_found_again() {
        let mut ledger = Ledger::new(2, 3);
        ledger.refused(2, SentRun { client: 1, sequence: 10, count: 5 });
        ledger.refused(2, SentRun { client: 1, sequence: 2, count: 1 });
        ledger.unknown(2, SentRun { client: 2, sequence: 0, count: 7 });
        ledger.seal();
        let group = &ledger.groups[1];
        let refused: Vec<u64> = (0..20).filter(|&sequence| group.is_refused(1, sequence)).collect();
        assert_eq!(refused, [2, 10, 11, 12, 13, 14]);
        assert!(!group.is_refused(0, 10) && !group.is_refused(2, 2));
        assert_eq!(ledger.totals(), LedgerTotals { acked: 0, refused: 6, unknown: 7 });
    }

    #[test]
    fn what_two_threads_noted_adds_up() {
        let mut one = Ledger::new(1, 2);
        let mut two = one.clone();
        one.send(1, 0, 3);
        two.send(1, 1, 5);
        one.acked(1, run(4, 0, 0, 3), 0);
        two.acked(1, run(0, 1, 0, 4), 0);
        one.merge(two);
        one.seal();
        assert_eq!(one.groups[0].acked(), [run(0, 1, 0, 4), run(4, 0, 0, 3)]);
        assert_eq!((one.groups[0].sent(0), one.groups[0].sent(1), one.groups[0].clients()), (3, 5, 2));
    }
}

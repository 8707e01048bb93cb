//! The audit of one replica's log of one group against the ledger, record by record.
//!
//! Acknowledged at an offset means: this very record, every byte of it, is at that offset of every
//! replica, and nowhere else.

use std::collections::BTreeSet;
use std::ops::{AddAssign, Range};

use serde::Serialize;

use crate::ack_log::AckLog;
use crate::ledger::{AckRun, GroupLedger};
use crate::record::{RecordId, mix};

/// Offsets that share one content hash when replicas are compared.
pub(crate) const RANGE_OFFSETS: u64 = 256;

/// What the audit found. Clean when all but `checked` are 0.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize)]
pub(crate) struct AuditCounts {
    /// Acknowledged records looked up, on every replica.
    pub(crate) checked: u64,
    /// Acknowledged records that a replica does not have.
    pub(crate) lost: u64,
    /// Records that stand in a replica's log more than once (each further one counts).
    pub(crate) duplicated: u64,
    /// Acknowledged records that stand at another offset than was acknowledged, and records
    /// acknowledged below something that was acknowledged before they were sent; with sessions also records of a client
    /// that stand behind later ones of it.
    pub(crate) reordered: u64,
    /// Ranges of 256 offsets in which two replicas differ.
    pub(crate) diverged: u64,
    /// Records that were never sent, or were refused as not done, and yet stand in a log.
    pub(crate) phantom: u64,
}

impl AuditCounts {
    /// Whether nothing is wrong.
    pub(crate) fn is_clean(&self) -> bool {
        AuditCounts { checked: 0, ..*self } == AuditCounts::default()
    }

    /// Whether as many acknowledged records were looked up as had to be, over all replicas, and nothing is wrong.
    pub(crate) fn is_clean_of(&self, expected: u64) -> bool {
        self.is_clean() && self.checked == expected
    }

    /// The counts in words, and what was made of them.
    pub(crate) fn verdict(&self, is_clean: bool) -> String {
        let AuditCounts { checked, lost, duplicated, reordered, diverged, phantom } = self;
        format!(
            "{}: {checked} checked, {lost} lost, {duplicated} duplicated, {reordered} reordered, {diverged} diverged, {phantom} phantom",
            if is_clean { "CLEAN" } else { "FAILED" }
        )
    }
}

impl AddAssign for AuditCounts {
    fn add_assign(&mut self, other: AuditCounts) {
        self.checked += other.checked;
        self.lost += other.lost;
        self.duplicated += other.duplicated;
        self.reordered += other.reordered;
        self.diverged += other.diverged;
        self.phantom += other.phantom;
    }
}

/// Reads one replica's log of one group, in order of offset.
#[derive(Debug)]
pub(crate) struct ReplicaAudit<'a> {
    acks: &'a AckLog,
    ledger: &'a GroupLedger,
    group: u32,
    /// Acknowledged runs that are not fully compared yet.
    runs: &'a [AckRun],
    /// Next offset expected.
    next: u64,
    /// One bit for each record that clients have sent.
    seen: Vec<Vec<u64>>,
    /// After the highest sequence of each client that stands in the log so far.
    ends: Vec<u64>,
    /// Acknowledged records that were not at their offset: lost, unless they turn up elsewhere.
    misplaced: BTreeSet<(u32, u64)>,
    counts: AuditCounts,
    range_hash: u64,
    hashes: Vec<u64>,
}

impl<'a> ReplicaAudit<'a> {
    /// An audit that has seen nothing yet, of a group of the ledger.
    pub(crate) fn new(acks: &'a AckLog, group: u32, ledger: &'a GroupLedger) -> ReplicaAudit<'a> {
        let clients = u32::try_from(ledger.clients()).unwrap_or(u32::MAX);
        let words = |client| usize::try_from(ledger.sent(client).div_ceil(64)).unwrap_or(usize::MAX);
        ReplicaAudit {
            acks,
            ledger,
            group,
            runs: ledger.acked(),
            next: span(acks, ledger).start,
            seen: (0..clients).map(|client| vec![0; words(client)]).collect(),
            ends: vec![0; clients as usize],
            misplaced: BTreeSet::new(),
            counts: AuditCounts::default(),
            range_hash: 0,
            hashes: Vec::new(),
        }
    }

    /// Next offset wanted.
    pub(crate) fn next(&self) -> u64 {
        self.next
    }

    /// Takes the record at an offset. Offsets that are left out are absent from the replica.
    pub(crate) fn handle_record(&mut self, offset: u64, record: &[u8]) {
        if offset < self.next {
            // The replica says the same offset twice: the second is one record too many.
            self.counts.duplicated += 1;
            return;
        }
        while self.next < offset {
            self.compare(None);
            self.hash(0);
        }
        let id = RecordId::read(record, &self.acks.sizes).filter(|id| id.group == self.group);
        // Its client as the ledger counts them.
        let id =
            id.and_then(|id| Some(RecordId { client: id.client.checked_sub(self.acks.first_client)?, ..id }));
        self.compare(id);
        self.hash(content_hash(record));
        match id {
            Some(id) if !self.acks.is_shared || (id.client as usize) < self.ledger.clients() => self.note(id),
            _ => self.counts.phantom += u64::from(!self.acks.is_shared),
        }
    }

    /// What was found, and the content hash of each range of offsets.
    pub(crate) fn finish(mut self) -> (AuditCounts, Vec<u64>) {
        let (from, read_to) = (span(self.acks, self.ledger).start, self.next);
        while self.next < self.ledger.end() {
            self.compare(None);
            self.next += 1;
        }
        if read_to > from && !read_to.is_multiple_of(RANGE_OFFSETS) {
            self.hashes.push(self.range_hash);
        }
        for &(client, sequence) in &self.misplaced {
            if is_set(&self.seen, client, sequence) {
                self.counts.reordered += 1;
            } else {
                self.counts.lost += 1;
            }
        }
        // These offsets were given away twice: whoever comes second is not there.
        self.counts.checked += self.ledger.contested();
        self.counts.lost += self.ledger.contested();
        (self.counts, self.hashes)
    }

    /// Compares what is at offset `next` with what was acknowledged there.
    fn compare(&mut self, found: Option<RecordId>) {
        while let Some((run, later)) = self.runs.split_first()
            && run.end() <= self.next
        {
            self.runs = later;
        }
        let Some(run) = self.runs.first().filter(|run| run.first <= self.next) else { return };
        let sequence = run.sequence + (self.next - run.first);
        self.counts.checked += 1;
        if found.is_none_or(|id| (id.client, id.sequence) != (run.client, sequence)) {
            self.misplaced.insert((run.client, sequence));
        }
    }

    /// Notes that a record stands in the log.
    fn note(&mut self, id: RecordId) {
        let is_sent = id.sequence < self.ledger.sent(id.client);
        if !is_sent || self.ledger.is_refused(id.client, id.sequence) {
            self.counts.phantom += 1;
        }
        if !is_sent {
            return;
        }
        let end = &mut self.ends[id.client as usize];
        let is_late = id.sequence < *end;
        *end = (*end).max(id.sequence + 1);
        if is_set(&self.seen, id.client, id.sequence) {
            self.counts.duplicated += 1;
            return;
        }
        // A session's appends follow each other, whatever is retried.
        self.counts.reordered += u64::from(is_late && self.acks.is_in_sessions);
        if let Some(word) = self
            .seen
            .get_mut(id.client as usize)
            .and_then(|words| words.get_mut(usize::try_from(id.sequence / 64).unwrap_or(usize::MAX)))
        {
            *word |= 1 << (id.sequence % 64);
        }
    }

    fn hash(&mut self, content: u64) {
        self.range_hash = mix(self.range_hash.rotate_left(5) ^ content);
        self.next += 1;
        if self.next.is_multiple_of(RANGE_OFFSETS) {
            self.hashes.push(self.range_hash);
            self.range_hash = 0;
        }
    }
}

/// The offsets that are looked at: where others write as well, from the first to the last one that was acknowledged.
pub(crate) fn span(acks: &AckLog, ledger: &GroupLedger) -> Range<u64> {
    match ledger.acked().first() {
        Some(first) if acks.is_shared => first.first..ledger.end(),
        None if acks.is_shared => 0..0,
        _ => 0..u64::MAX,
    }
}

fn is_set(seen: &[Vec<u64>], client: u32, sequence: u64) -> bool {
    let word = usize::try_from(sequence / 64).ok().and_then(|at| seen.get(client as usize)?.get(at).copied());
    word.is_some_and(|word| word & (1 << (sequence % 64)) != 0)
}

fn content_hash(record: &[u8]) -> u64 {
    let mut hash = mix(record.len() as u64 + 1);
    for chunk in record.chunks(8) {
        let mut word = [0; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        hash = mix(hash.rotate_left(7) ^ u64::from_le_bytes(word));
    }
    hash
}

/// How many ranges of offsets are not the same on all replicas.
pub(crate) fn diverged(replicas: &[Vec<u64>]) -> u64 {
    let ranges = replicas.iter().map(Vec::len).max().unwrap_or(0);
    let differs = |at: &usize| {
        let first = replicas.first().and_then(|hashes| hashes.get(*at));
        replicas.iter().any(|hashes| hashes.get(*at) != first)
    };
    (0..ranges).filter(differs).count() as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::{Ledger, SentRun};
    use crate::sizes::RecordSizes;

    const BYTES: usize = 40;

    fn record(client: u32, sequence: u64) -> Vec<u8> {
        let mut bytes = Vec::new();
        RecordId { client, group: 1, sequence }.write(BYTES, &mut bytes);
        bytes
    }

    /// Two clients: client 0 acknowledged at offsets 0 to 999, client 1 at 1000 to 1499.
    fn ledger() -> Ledger {
        let mut ledger = Ledger::new(1, 2);
        ledger.send(1, 0, 1010);
        ledger.send(1, 1, 500);
        ledger.acked(1, AckRun { first: 0, client: 0, count: 1000, sequence: 0 }, 0);
        ledger.acked(1, AckRun { first: 1000, client: 1, count: 500, sequence: 0 }, 0);
        ledger.refused(1, SentRun { client: 0, sequence: 1000, count: 5 });
        ledger.unknown(1, SentRun { client: 0, sequence: 1005, count: 5 });
        ledger.seal();
        ledger
    }

    fn log() -> Vec<Vec<u8>> {
        (0..1000).map(|sequence| record(0, sequence)).chain((0..500).map(|at| record(1, at))).collect()
    }

    fn audit(log: &[Vec<u8>]) -> (AuditCounts, Vec<u64>) {
        let ledger = ledger();
        let acks = AckLog::new("test", &RecordSizes::Fixed(BYTES), ledger);
        let (_, group) = acks.ledger.groups().next().unwrap();
        let mut audit = ReplicaAudit::new(&acks, 1, group);
        (0..).zip(log).for_each(|(offset, record)| audit.handle_record(offset, record));
        audit.finish()
    }

    const CLEAN: AuditCounts =
        AuditCounts { checked: 1500, lost: 0, duplicated: 0, reordered: 0, diverged: 0, phantom: 0 };

    #[test]
    fn a_log_as_acknowledged_is_clean() {
        assert_eq!(audit(&log()).0, CLEAN);
        assert!(CLEAN.is_clean());
    }

    #[test]
    fn an_unknown_record_may_be_there_or_not() {
        let mut there = log();
        there.push(record(0, 1007));
        assert_eq!(audit(&there).0, CLEAN);
    }

    #[test]
    fn a_replica_that_ends_early_has_lost_the_rest() {
        assert_eq!(audit(&log()[..1400]).0, AuditCounts { lost: 100, ..CLEAN });
        assert_eq!(audit(&[]).0, AuditCounts { lost: 1500, ..CLEAN });
    }

    #[test]
    fn a_changed_byte_is_a_lost_record_and_a_phantom() {
        let mut log = log();
        log[77][BYTES - 1] ^= 1;
        assert_eq!(audit(&log).0, AuditCounts { lost: 1, phantom: 1, ..CLEAN });
    }

    #[test]
    fn a_record_put_in_twice_is_duplicated() {
        let mut log = log();
        log.push(record(1, 3));
        assert_eq!(audit(&log).0, AuditCounts { duplicated: 1, ..CLEAN });
        // In the middle it also moves everything behind it.
        log.pop();
        log.insert(1490, record(0, 5));
        assert_eq!(audit(&log).0, AuditCounts { duplicated: 1, reordered: 10, ..CLEAN });
    }

    #[test]
    fn an_offset_acknowledged_to_two_clients_has_lost_one_of_them() {
        let mut ledger = ledger();
        ledger.acked(1, AckRun { first: 990, client: 1, count: 5, sequence: 500 }, 0);
        ledger.seal();
        let acks = AckLog::new("test", &RecordSizes::Fixed(BYTES), ledger);
        let (_, group) = acks.ledger.groups().next().unwrap();
        let mut audit = ReplicaAudit::new(&acks, 1, group);
        (0..).zip(&log()).for_each(|(offset, record)| audit.handle_record(offset, record));
        assert_eq!(audit.finish().0, AuditCounts { checked: 1505, lost: 5, ..CLEAN });
    }

    #[test]
    fn records_that_changed_places_are_reordered() {
        let mut log = log();
        log.swap(10, 1200);
        assert_eq!(audit(&log).0, AuditCounts { reordered: 2, ..CLEAN });
    }

    #[test]
    fn sessions_keep_the_order_of_their_records_and_do_none_twice() {
        let audit = |log: &[Vec<u8>], is_in_sessions| {
            let mut ledger = Ledger::new(1, 2);
            ledger.send(1, 0, 10);
            ledger.send(1, 1, 10);
            ledger.unknown(1, SentRun { client: 0, sequence: 0, count: 10 });
            ledger.unknown(1, SentRun { client: 1, sequence: 0, count: 10 });
            ledger.seal();
            let acks = AckLog::new("test", &RecordSizes::Fixed(BYTES), ledger).in_sessions(is_in_sessions);
            let (_, group) = acks.ledger.groups().next().unwrap();
            let mut audit = ReplicaAudit::new(&acks, 1, group);
            (0..).zip(log).for_each(|(offset, record)| audit.handle_record(offset, record));
            audit.finish().0
        };
        // Nobody was told where these are: without sessions any order will do.
        let log = [record(0, 0), record(1, 0), record(0, 2), record(0, 1), record(1, 3)];
        assert_eq!(audit(&log, false), AuditCounts::default());
        assert_eq!(audit(&log, true), AuditCounts { reordered: 1, ..AuditCounts::default() });
        let twice = [record(0, 0), record(0, 1), record(0, 0)];
        assert_eq!(audit(&twice, true), AuditCounts { duplicated: 1, ..AuditCounts::default() });
    }

    #[test]
    fn records_nobody_sent_and_refused_ones_are_phantoms() {
        let mut log = log();
        log.push(record(0, 1010));
        log.push(record(9, 0));
        log.push(record(0, 1002));
        log.push(b"not ours".to_vec());
        assert_eq!(audit(&log).0, AuditCounts { phantom: 4, ..CLEAN });
    }

    #[test]
    fn offsets_left_out_are_lost() {
        let ledger = ledger();
        let acks = AckLog::new("test", &RecordSizes::Fixed(BYTES), ledger);
        let (_, group) = acks.ledger.groups().next().unwrap();
        let mut audit = ReplicaAudit::new(&acks, 1, group);
        for (offset, record) in (0..).zip(&log()).filter(|(offset, _)| !(300..310).contains(offset)) {
            audit.handle_record(offset, record);
        }
        assert_eq!(audit.finish().0, AuditCounts { lost: 10, ..CLEAN });
    }

    #[test]
    fn replicas_that_differ_are_told_range_by_range() {
        let (_, good) = audit(&log());
        assert_eq!(good.len() as u64, 1500_u64.div_ceil(RANGE_OFFSETS));
        let mut other = log();
        other[600][20] ^= 1;
        other.pop();
        let (_, other) = audit(&other);
        assert_eq!(diverged(&[good.clone(), good.clone(), other]), 2);
        assert_eq!(diverged(&[good.clone(), good.clone(), Vec::new()]), good.len() as u64);
        assert_eq!(diverged(&[good.clone(), good]), 0);
    }
}

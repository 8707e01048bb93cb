//! What must hold in every run, checked as it goes and once more at the end.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use iroh_raft_core::batch::Batch;
use iroh_raft_core::{
    GroupId, GroupStatus, Index, LogEntry, MessageKind, NodeId, Offset, Outputs, PeerMessage, Role, Term,
    Token,
};

use super::disk::{Disk, StoredGroup};

#[derive(Default)]
pub(crate) struct Checker {
    /// Whether some replicas may have been lied to: then they need not agree.
    has_liars: bool,
    leaders: BTreeMap<(GroupId, Term), NodeId>,
    /// How far each replica of this boot of its node has been seen.
    reached: BTreeMap<(NodeId, GroupId), GroupStatus>,
    /// Every entry that some replica has committed; with liars, each replica by itself.
    committed: BTreeMap<(NodeId, GroupId), Vec<(Term, bytes::Bytes)>>,
    /// Open requests with the records they carry.
    open: BTreeMap<Token, (GroupId, Vec<Vec<u8>>)>,
    answered: BTreeSet<Token>,
    /// Acknowledged: group, first offset, records.
    pub(crate) acked: Vec<(GroupId, Offset, Vec<Vec<u8>>)>,
    pub(crate) trace: Trace,
}

/// A digest of everything that shards said.
pub(crate) struct Trace {
    digest: [u64; 2],
    pub(crate) bytes: u64,
}

impl Default for Trace {
    fn default() -> Trace {
        Trace { digest: [0xcbf2_9ce4_8422_2325, 0x9e37_79b9_7f4a_7c15], bytes: 0 }
    }
}

impl Trace {
    pub(crate) fn result(&self) -> ([u64; 2], u64) {
        (self.digest, self.bytes)
    }
}

impl Write for Trace {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        for byte in text.bytes() {
            self.digest[0] = (self.digest[0] ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
        self.digest[1] = self.digest[1].rotate_left(5) ^ self.digest[0];
        self.bytes += text.len() as u64;
        Ok(())
    }
}

impl Checker {
    pub(crate) fn new(has_liars: bool) -> Checker {
        Checker { has_liars, ..Checker::default() }
    }

    pub(crate) fn record(&mut self, now: u64, node: NodeId, out: &Outputs) {
        if !out.is_empty() {
            writeln!(self.trace, "{now} {node} {out:?}").unwrap();
        }
    }

    /// Nothing runs backwards; election safety (Raft paper 5.2).
    pub(crate) fn check_status(&mut self, node: NodeId, status: &GroupStatus, is_damaged: bool) {
        assert!(!status.is_quarantined || is_damaged, "node {node} quarantined {status:?}");
        assert!(status.applied <= status.commit && status.commit <= status.last, "{status:?}");
        if let Some(before) = self.reached.insert((node, status.group), status.clone()) {
            let is_back = |before: &GroupStatus| {
                before.term > status.term || before.commit > status.commit || before.applied > status.applied
            };
            assert!(!is_back(&before), "node {node} went back from {before:?} to {status:?}");
            let leaders = (before.leader, status.leader);
            let has_two =
                before.term == status.term && matches!(leaders, (Some(old), Some(new)) if old != new);
            assert!(!has_two, "node {node} follows two in a term: {before:?}, then {status:?}");
        }
        if status.role == Role::Leader && !self.has_liars {
            let leader = *self.leaders.entry((status.group, status.term)).or_insert(node);
            assert_eq!(leader, node, "two leaders of {:?} in {:?}", status.group, status.term);
        }
    }

    /// A message may only say what its sender's disk would say again after a crash.
    pub(crate) fn check_durable(&self, disk: &Disk, message: &PeerMessage) {
        let nothing = StoredGroup::default();
        let stored = disk.groups.get(&message.group).unwrap_or(&nothing);
        let PeerMessage { from, to, term, index, .. } = *message;
        let is_pre_vote = matches!(message.kind, MessageKind::RequestPreVote)
            || (message.kind == MessageKind::RequestPreVoteResponse && !message.reject);
        if !is_pre_vote && message.kind != MessageKind::ReadIndex {
            assert!(stored.hard_state.term >= term, "{message:?} leaves before its term is durable");
        }
        let voted_for = match message.kind {
            MessageKind::RequestVote => Some(from),
            MessageKind::RequestVoteResponse if !message.reject => Some(to),
            _ => None,
        };
        if let Some(candidate) = voted_for.filter(|_| stored.hard_state.term == term) {
            assert_eq!(stored.hard_state.vote, candidate, "{message:?} leaves before its vote is durable");
        }
        // A leader that lies can have entries replaced within its term.
        let is_acknowledgement =
            message.kind == MessageKind::AppendResponse && !message.reject && !self.has_liars;
        if is_acknowledgement && stored.hard_state.term == term {
            assert!(
                stored.entries.len() as u64 >= index.0,
                "{message:?} leaves before its entries are durable"
            );
        }
    }

    /// State-machine safety (Raft paper 5.4): what one replica committed, no other has otherwise.
    pub(crate) fn check_committed(
        &mut self,
        node: NodeId,
        group: GroupId,
        entries: &[LogEntry],
        commit: Index,
    ) {
        let witness = if self.has_liars { node } else { NodeId(0) };
        let all = self.committed.entry((witness, group)).or_default();
        for entry in entries.iter().take_while(|entry| entry.index <= commit) {
            let at = usize::try_from(entry.index.0 - 1).unwrap();
            match all.get(at) {
                Some((term, data)) => {
                    assert_eq!(
                        (term, data),
                        (&entry.term, &entry.data),
                        "{group:?} diverged at {}",
                        entry.index
                    );
                }
                None => {
                    assert_eq!(all.len(), at, "commits of {group:?} are seen in order");
                    all.push((entry.term, entry.data.clone()));
                }
            }
        }
    }

    /// Entries of the group that some replica is known to have committed.
    pub(crate) fn committed_len(&self, group: GroupId) -> usize {
        self.committed.get(&(NodeId(0), group)).map_or(0, Vec::len)
    }

    pub(crate) fn open(&mut self, token: Token, group: GroupId, records: Vec<Vec<u8>>) {
        self.open.insert(token, (group, records));
    }

    /// A request is answered: at most once.
    pub(crate) fn answer(&mut self, token: Token) -> (GroupId, Vec<Vec<u8>>) {
        assert!(self.answered.insert(token), "{token:?} is answered twice");
        self.open.remove(&token).unwrap_or_else(|| panic!("{token:?} was never asked"))
    }

    pub(crate) fn acknowledge(&mut self, token: Token, first: Offset, count: u32) {
        let (group, records) = self.answer(token);
        assert_eq!(records.len(), count as usize);
        self.acked.push((group, first, records));
    }

    /// The process that a request was given to is gone, and with it the answer.
    pub(crate) fn forget(&mut self, origin: u64) {
        self.open.retain(|token, _| token.origin != origin);
    }

    /// A node forgets what it had not stored. Where peers lie, what it had committed beyond that may become
    /// something else.
    pub(crate) fn forget_node(&mut self, node: NodeId, disk: &Disk) {
        self.reached.retain(|(of, _), _| *of != node);
        for ((_, group), committed) in self.committed.iter_mut().filter(|((of, _), _)| *of == node) {
            let stored = disk.groups.get(group).map_or(0, |stored| stored.hard_state.commit.0);
            committed.truncate(usize::try_from(stored).unwrap());
        }
    }

    pub(crate) fn check_all_answered(&self) {
        assert!(self.open.is_empty(), "never answered: {:?}", self.open.keys().collect::<Vec<_>>());
    }

    /// Every acknowledged record stands at its offset, none stands twice, offsets are dense.
    pub(crate) fn check_log(&self, group: GroupId, entries: &[LogEntry]) {
        let mut records: Vec<&[u8]> = Vec::new();
        for entry in entries.iter().filter(|entry| entry.batch().is_some()) {
            let batch = Batch::parse(&entry.data).unwrap();
            assert_eq!(batch.base(), Offset(records.len() as u64), "offsets are dense");
            records.extend(batch.records().map(|(_, record)| record));
        }
        let distinct: BTreeSet<_> = records.iter().collect();
        assert_eq!(distinct.len(), records.len(), "a record stands twice in {group:?}");
        for (_, first, acked) in self.acked.iter().filter(|(of, ..)| *of == group) {
            let at = usize::try_from(first.0).unwrap();
            assert_eq!(
                records.get(at..at + acked.len()),
                Some(&acked.iter().map(Vec::as_slice).collect::<Vec<_>>()[..])
            );
        }
    }
}

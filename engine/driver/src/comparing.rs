//! Digests of states at marked places of the log, for whoever compares replicas.
//!
//! The state machine is frozen right after the entry that marks the place, between two commands of one turn, as for a
//! snapshot; then one piece of it is digested in each turn. A shard is at work on one state at a time, since a frozen one may cost as
//! much memory again as is written meanwhile: what comes due in between is missed, and said to be. Digests stay in memory, the
//! last few of each group.

use std::collections::{BTreeMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};

use iroh_raft_core::{Compare, DigestState, GroupId, Index, SnapshotBody, StateDigest};

use crate::state_machine::{SNAPSHOT_PIECE_BYTES_MAX, SnapshotView};

/// Digests of a group that are kept; an older one is forgotten.
const KEPT_MAX: usize = 4;

/// A state that is being digested.
struct Work {
    group: GroupId,
    index: Index,
    table: u32,
    view: Box<dyn SnapshotView>,
    body: SnapshotBody,
}

/// The digests of a shard's groups.
#[derive(Default)]
pub(crate) struct Comparing {
    /// What a machine has still to get to: of a group one, the newest.
    due: BTreeMap<GroupId, Compare>,
    work: Option<Work>,
    /// `None` for one that was missed.
    kept: BTreeMap<GroupId, VecDeque<(Index, Option<StateDigest>)>>,
}

impl Comparing {
    /// Whether another state cannot be digested now.
    pub(crate) fn is_busy(&self) -> bool {
        self.work.is_some()
    }

    /// Whether something can go on at once.
    pub(crate) fn has_work(&self) -> bool {
        self.is_busy()
    }

    /// A place is marked. In a group without a state machine the table is all there is.
    pub(crate) fn begin(&mut self, compare: Compare, has_machine: bool) {
        let Compare { group, index, table } = compare;
        if !has_machine {
            return self.keep(group, index, Some(StateDigest { machine: None, table }));
        }
        if let Some(before) = self.due.insert(group, compare) {
            self.keep(group, before.index, None);
        }
    }

    /// The entry after which a group's machine is to be frozen.
    pub(crate) fn due(&self, group: GroupId) -> Option<Index> {
        self.due.get(&group).map(|compare| compare.index)
    }

    /// The machine is frozen after an entry; `None` if it makes no snapshots.
    pub(crate) fn frozen(&mut self, group: GroupId, index: Index, view: Option<Box<dyn SnapshotView>>) {
        let Some(Compare { table, .. }) = self.take_due(group, index) else { return };
        match view {
            None => self.keep(group, index, Some(StateDigest { machine: None, table })),
            Some(_) if self.is_busy() => self.keep(group, index, None),
            Some(view) => {
                self.work = Some(Work { group, index, table, view, body: SnapshotBody::default() });
            }
        }
    }

    fn take_due(&mut self, group: GroupId, index: Index) -> Option<Compare> {
        let is_it = self.due(group) == Some(index);
        if is_it { self.due.remove(&group) } else { None }
    }

    /// All entries up to one are applied: a machine that was to be frozen before, and was not, is out.
    pub(crate) fn applied(&mut self, group: GroupId, index: Index) {
        if let Some(due) = self.due(group).filter(|due| *due <= index) {
            self.due.remove(&group);
            self.keep(group, due, None);
        }
    }

    /// Digests the next piece.
    pub(crate) fn turn(&mut self) {
        let Some(mut work) = self.work.take() else { return };
        let Work { group, index, table, body, .. } = work;
        match catch_unwind(AssertUnwindSafe(|| work.view.next_piece())) {
            Ok(Some(piece)) if piece.len() <= SNAPSHOT_PIECE_BYTES_MAX => {
                work.body.bytes += piece.len() as u64;
                work.body.checksum = crc32c::crc32c_append(work.body.checksum, &piece);
                self.work = Some(work);
            }
            Ok(None) => self.keep(group, index, Some(StateDigest { machine: Some(body), table })),
            Ok(Some(_)) | Err(_) => {
                tracing::error!(%group, %index, "the state machine cannot be read: it is not compared");
                self.keep(group, index, None);
            }
        }
    }

    fn keep(&mut self, group: GroupId, index: Index, digest: Option<StateDigest>) {
        let kept = self.kept.entry(group).or_default();
        if kept.len() == KEPT_MAX {
            kept.pop_front();
        }
        kept.push_back((index, digest));
    }

    /// What is known of a group at an index that its replica has `reached`, or has still to reach.
    pub(crate) fn state_of(&self, group: GroupId, index: Index, has_reached: bool) -> DigestState {
        let mut kept = self.kept.get(&group).into_iter().flatten();
        if let Some((_, digest)) = kept.find(|(of, _)| *of == index) {
            return digest.map_or(DigestState::Missed, DigestState::Known);
        }
        let is_at_work = self.work.as_ref().is_some_and(|work| (work.group, work.index) == (group, index));
        if is_at_work || self.due(group) == Some(index) || !has_reached {
            DigestState::Pending
        } else {
            DigestState::Unknown
        }
    }

    /// The group's replica is gone, or begins anew.
    pub(crate) fn forget(&mut self, group: GroupId) {
        self.due.remove(&group);
        self.kept.remove(&group);
        self.work.take_if(|work| work.group == group);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Pieces(Vec<Vec<u8>>);

    impl SnapshotView for Pieces {
        fn next_piece(&mut self) -> Option<Vec<u8>> {
            self.0.pop()
        }
    }

    const GROUP: GroupId = GroupId(1);

    fn view(pieces: &[&[u8]]) -> Option<Box<dyn SnapshotView>> {
        Some(Box::new(Pieces(pieces.iter().rev().map(|piece| piece.to_vec()).collect())))
    }

    fn compare(group: GroupId, index: u64) -> Compare {
        Compare { group, index: Index(index), table: 9 }
    }

    fn digest_of(pieces: &[&[u8]]) -> DigestState {
        let mut comparing = Comparing::default();
        comparing.begin(compare(GROUP, 5), true);
        assert_eq!(comparing.state_of(GROUP, Index(5), true), DigestState::Pending);
        comparing.frozen(GROUP, Index(5), view(pieces));
        while comparing.has_work() {
            assert_eq!(comparing.state_of(GROUP, Index(5), true), DigestState::Pending);
            comparing.turn();
        }
        comparing.state_of(GROUP, Index(5), true)
    }

    #[test]
    fn a_digest_is_of_the_bytes_however_they_are_cut() {
        let whole = digest_of(&[b"abcd"]);
        assert!(
            matches!(whole, DigestState::Known(StateDigest { machine: Some(body), table: 9 }) if body.bytes == 4)
        );
        assert_eq!(digest_of(&[b"a", b"bc", b"d"]), whole);
        assert_ne!(digest_of(&[b"abce"]), whole);
    }

    #[test]
    fn a_shard_is_at_work_on_one_state_and_the_others_are_missed() {
        let mut comparing = Comparing::default();
        comparing.begin(compare(GROUP, 5), true);
        comparing.begin(compare(GroupId(2), 7), true);
        comparing.frozen(GROUP, Index(5), view(&[b"a"]));
        comparing.frozen(GroupId(2), Index(7), view(&[b"a"]));
        assert_eq!(comparing.state_of(GroupId(2), Index(7), true), DigestState::Missed);
        // A machine that was taken out is never frozen.
        comparing.begin(compare(GroupId(2), 8), true);
        comparing.applied(GroupId(2), Index(7));
        assert_eq!(comparing.state_of(GroupId(2), Index(8), true), DigestState::Pending);
        comparing.applied(GroupId(2), Index(9));
        assert_eq!(comparing.state_of(GroupId(2), Index(8), true), DigestState::Missed);
    }

    #[test]
    fn a_few_digests_are_kept_and_end_with_the_replica() {
        let mut comparing = Comparing::default();
        (1..=5).for_each(|index| comparing.begin(compare(GROUP, index), false));
        let known = DigestState::Known(StateDigest { machine: None, table: 9 });
        let states: Vec<_> = (1..=5).map(|index| comparing.state_of(GROUP, Index(index), true)).collect();
        assert_eq!(states, [DigestState::Unknown, known, known, known, known]);
        assert_eq!(comparing.state_of(GROUP, Index(6), false), DigestState::Pending);
        comparing.forget(GROUP);
        assert_eq!(comparing.state_of(GROUP, Index(5), true), DigestState::Unknown);
    }
}

use super::*;
use crate::batch::{RecordBlock, encode_batch};
use crate::ids::GroupId;
use crate::io::{ConfState, EntryKind, HardState};

fn entry(index: u64, term: u64, base: u64, records: usize) -> LogEntry {
    let block = (records > 0).then(|| RecordBlock::from_records(&vec![b"record"; records]));
    let data = block.map(|block| encode_batch(Offset(base), WallTime(index), [block].iter()));
    LogEntry {
        index: Index(index),
        term: Term(term),
        kind: EntryKind::Normal,
        data: data.unwrap_or_default(),
    }
}

/// Terms 1 1 3 3 3; an empty entry opens each term; records 0-1, 2, 3-5.
fn entries() -> Vec<LogEntry> {
    vec![entry(1, 1, 0, 0), entry(2, 1, 0, 2), entry(3, 3, 0, 0), entry(4, 3, 2, 1), entry(5, 3, 3, 3)]
}

fn state(tail: usize) -> GroupState {
    let entries = entries();
    GroupState {
        group: GroupId(1),
        hard_state: HardState { term: Term(3), commit: Index(2), ..HardState::default() },
        conf_state: ConfState::default(),
        meta: Bytes::new(),
        retention: Default::default(),
        is_durable: true,
        start: Default::default(),
        snapshot: None,
        damage: None,
        is_under_repair: false,
        joined_at: Default::default(),
        term_runs: vec![
            TermRun { first: Index(1), term: Term(1) },
            TermRun { first: Index(3), term: Term(3) },
        ],
        last: Index(5),
        next_offset: Offset(6),
        tail: entries[5 - tail..].to_vec(),
        conf_changes: Vec::new(),
        has_state_machine: false,
    }
}

fn wants(window: &LogWindow) -> Vec<(u64, u64)> {
    window.take_wanted().iter().map(|wanted| (wanted.from.0, wanted.to.0)).collect()
}

fn sent(window: &LogWindow, low: u64, high: u64, bytes_max: u64) -> Result<Vec<u64>, raft::Error> {
    let entries = window.entries(low, high, bytes_max, GetEntriesContext::empty(true))?;
    Ok(entries.iter().map(|entry| entry.index).collect())
}

#[test]
fn terms_of_the_whole_log_are_known_from_any_tail() {
    for tail in 0..=5 {
        let window = LogWindow::new(&state(tail), WallTime(0)).unwrap();
        let terms: Vec<u64> = (0..=5).map(|index| window.term(index).unwrap()).collect();
        assert_eq!(terms, [0, 1, 1, 3, 3, 3]);
        assert!(window.term(6).is_err());
        assert_eq!(window.first(), Index(6 - tail as u64));
    }
}

#[test]
fn offsets_follow_from_the_end_backwards() {
    let window = LogWindow::new(&state(5), WallTime(0)).unwrap();
    let ends: Vec<u64> = (0..=5).map(|index| window.end_at(Index(index)).0).collect();
    assert_eq!(ends, [0, 0, 2, 2, 3, 6]);
    let holders: Vec<_> = (0..7).map(|offset| window.index_of(Offset(offset)).map(|index| index.0)).collect();
    assert_eq!(holders, [Some(2), Some(2), Some(4), Some(5), Some(5), Some(5), None]);
    let window = LogWindow::new(&state(2), WallTime(0)).unwrap();
    assert_eq!((window.index_of(Offset(1)), window.index_of(Offset(2))), (None, Some(Index(4))));
}

#[test]
fn a_conflicting_suffix_is_cut_with_its_terms_and_offsets() {
    let mut window = LogWindow::new(&state(5), WallTime(0)).unwrap();
    window.append(&[entry(4, 4, 0, 0), entry(5, 4, 2, 4), entry(6, 4, 6, 1)]);
    let terms: Vec<u64> = (1..=6).map(|index| window.term(index).unwrap()).collect();
    assert_eq!(terms, [1, 1, 3, 4, 4, 4]);
    assert_eq!((window.end_at(Index(3)), window.end_at(Index(6))), (Offset(2), Offset(7)));
    window.append(&[entry(2, 5, 0, 1)]);
    assert_eq!(
        (window.last_index().unwrap(), window.term(2).unwrap(), window.end_at(Index(2))),
        (2, 5, Offset(1))
    );
    let expected: usize = [entry(1, 1, 0, 0), entry(2, 5, 0, 1)].iter().map(entry_bytes).sum();
    assert_eq!(window.bytes(), expected);
}

#[test]
#[should_panic(expected = "is not in")]
fn a_cut_into_what_left_memory_panics() {
    LogWindow::new(&state(2), WallTime(0)).unwrap().append(&[entry(2, 5, 0, 1)]);
}

#[test]
fn eviction_keeps_what_must_stay_and_the_offsets() {
    let mut window = LogWindow::new(&state(5), WallTime(0)).unwrap();
    window.evict(Index(2), 0);
    assert_eq!((window.first(), window.end_at(Index(2))), (Index(3), Offset(2)));
    let bytes = window.bytes();
    window.evict(Index(5), bytes - 1);
    assert_eq!(window.first(), Index(4));
    assert!(window.bytes() < bytes);
}

#[test]
fn what_left_memory_is_wanted_once_for_each_position() {
    let mut window = LogWindow::new(&state(2), WallTime(0)).unwrap();
    assert_eq!(sent(&window, 4, 6, 1 << 20).unwrap(), [4, 5]);
    assert_eq!(sent(&window, 4, 6, 1).unwrap(), [4], "one entry even if it is too large");
    let unavailable = raft::Error::Store(StorageError::LogTemporarilyUnavailable);
    for low in [2, 1, 2] {
        assert_eq!(
            sent(&window, low, 4, 1 << 20),
            Err(raft::Error::Store(StorageError::LogTemporarilyUnavailable))
        );
    }
    assert_eq!(wants(&window), [(2, 3), (1, 3)]);
    assert_eq!(wants(&window), []);
    window.lend(entries()[1..3].to_vec());
    assert_eq!(sent(&window, 2, 6, 1 << 20).unwrap(), [2, 3]);
    assert_eq!(sent(&window, 1, 6, 1 << 20), Err(unavailable));
    window.lend(Vec::new());
    assert!(sent(&window, 2, 6, 1 << 20).is_err());
}

#[test]
fn applying_and_campaigning_never_wait_for_a_fetch() {
    let window = LogWindow::new(&state(0), WallTime(0)).unwrap();
    let stubs = window.entries(1, 6, Some(u64::MAX), GetEntriesContext::empty(false)).unwrap();
    let terms: Vec<_> = stubs.iter().map(|stub| (stub.index, stub.term, stub.data.len())).collect();
    assert_eq!(terms, [(1, 1, 0), (2, 1, 0), (3, 3, 0), (4, 3, 0), (5, 3, 0)]);
    let all = window.entries(1, 6, None, GetEntriesContext::empty(false)).unwrap();
    assert_eq!(all.len(), 5);
    assert_eq!(wants(&window), []);
}

#[test]
fn campaigning_sees_changes_of_membership_in_memory() {
    let mut state = state(2);
    state.tail[1] = LogEntry { kind: EntryKind::ConfChangeV2, data: Bytes::new(), ..state.tail[1].clone() };
    state.next_offset = header_of(&state.tail[0]).unwrap().end();
    let window = LogWindow::new(&state, WallTime(0)).unwrap();
    let all = window.entries(4, 6, None, GetEntriesContext::empty(false)).unwrap();
    let kinds: Vec<_> = all.iter().map(|stub| stub.entry_type).collect();
    assert_eq!(kinds, [eraftpb::EntryType::EntryNormal, eraftpb::EntryType::EntryConfChangeV2]);
}

#[test]
fn a_recovered_state_that_contradicts_itself_is_refused() {
    let broken = |change: &dyn Fn(&mut GroupState)| {
        let mut state = state(5);
        change(&mut state);
        LogWindow::new(&state, WallTime(0)).unwrap_err()
    };
    let at = |index| Index(index);
    assert_eq!(broken(&|state| state.term_runs[1].first = at(1)), Inconsistent::TermRuns { index: at(1) });
    assert_eq!(broken(&|state| state.term_runs[1].term = Term(1)), Inconsistent::TermRuns { index: at(3) });
    assert_eq!(broken(&|state| state.term_runs[0].first = at(2)), Inconsistent::TermRuns { index: at(2) });
    assert_eq!(broken(&|state| state.term_runs.clear()), Inconsistent::Last { last: at(5) });
    assert_eq!(broken(&|state| state.last = at(4)), Inconsistent::Last { last: at(4) });
    let gap = Inconsistent::Gap { index: at(1), expected: at(2) };
    assert_eq!(broken(&|state| state.last = at(6)), gap);
    let term = Inconsistent::Term { index: at(4), found: Term(2), expected: Term(3) };
    assert_eq!(broken(&|state| state.tail[3].term = Term(2)), term);
    assert_eq!(broken(&|state| state.next_offset = Offset(7)), Inconsistent::Offsets { index: at(5) });
    assert_eq!(broken(&|state| state.tail[1] = entry(2, 1, 0, 1)), Inconsistent::Offsets { index: at(2) });
    let commit = Inconsistent::Commit { commit: at(6), last: at(5) };
    assert_eq!(broken(&|state| state.hard_state.commit = at(6)), commit);
    let old = Inconsistent::OldTerm { term: Term(2), last_term: Term(3) };
    assert_eq!(broken(&|state| state.hard_state.term = Term(2)), old);
}

#[test]
fn a_compacted_log_is_the_one_that_recovery_would_find() {
    let offsets = [0, 0, 2, 2, 3, 6];
    for tail in 0..=5 {
        for to in 1..=5 {
            let mut window = LogWindow::new(&state(tail), WallTime(0)).unwrap();
            let place = LogStart {
                index: Index(to),
                term: window.term_at(Index(to)),
                offset: Offset(offsets[to as usize]),
            };
            window.compact_to(place);
            assert_eq!(window.first_index().unwrap(), to + 1);
            assert_eq!(window.term(to).unwrap(), place.term.0);
            assert!(window.term(to - 1).is_err());
            let mut state = state(tail.min(5 - to as usize));
            (state.start, state.hard_state.commit) = (place, Index(5));
            state.term_runs = window.runs.to_vec();
            let found = LogWindow::new(&state, WallTime(0)).unwrap();
            assert_eq!(
                (found.base(), found.first(), found.bytes()),
                (place, window.first(), window.bytes()),
                "{tail} {to}"
            );
            assert_eq!(found.end_at(Index(5)), Offset(6));
        }
    }
}

#[test]
fn a_state_that_contradicts_the_start_of_its_log_is_refused() {
    let mut sound = state(2);
    sound.start = LogStart { index: Index(2), term: Term(1), offset: Offset(2) };
    sound.term_runs = vec![TermRun { first: Index(3), term: Term(3) }];
    assert!(LogWindow::new(&sound, WallTime(0)).is_ok());
    let refused = |change: &dyn Fn(&mut GroupState)| {
        let mut state = sound.clone();
        change(&mut state);
        LogWindow::new(&state, WallTime(0)).unwrap_err()
    };
    assert!(matches!(refused(&|state| state.start.index = Index(6)), Inconsistent::Last { .. }));
    assert!(matches!(refused(&|state| state.start.index = Index(1)), Inconsistent::TermRuns { .. }));
    assert!(matches!(refused(&|state| state.start.term = Term(4)), Inconsistent::TermRuns { .. }));
    assert!(matches!(refused(&|state| state.hard_state.commit = Index(1)), Inconsistent::Start { .. }));
    let tail = entries()[2..].to_vec();
    let whole = |state: &mut GroupState| (state.tail, state.start.offset) = (tail.clone(), Offset(1));
    assert!(matches!(refused(&whole), Inconsistent::Offsets { .. }));
}

#[test]
fn a_log_that_rests_keeps_no_buffer_that_it_shares() {
    let record = vec![7; COPY_BYTES_MAX];
    let block = RecordBlock::from_records(&[record]);
    let batch = encode_batch(Offset(6), WallTime(6), [block].iter());
    let (frame, kept) = (std::sync::Arc::new([batch.to_vec(), vec![0; 1 << 20]].concat()), batch.len());
    let is_kept = std::sync::Arc::downgrade(&frame);
    struct Owner(std::sync::Arc<Vec<u8>>);
    impl AsRef<[u8]> for Owner {
        fn as_ref(&self) -> &[u8] {
            &self.0
        }
    }
    let mut state = state(5);
    let data = Bytes::from_owner(Owner(frame)).slice(..kept);
    state.tail.push(LogEntry { index: Index(6), term: Term(3), kind: EntryKind::Normal, data });
    (state.last, state.next_offset) = (Index(6), Offset(7));
    let mut window = LogWindow::new(&state, WallTime(0)).unwrap();
    drop(state);
    assert!(is_kept.upgrade().is_some());
    window.shrink();
    assert!(is_kept.upgrade().is_none());
    let entries = window.entries(6, 7, u64::MAX, GetEntriesContext::empty(true)).unwrap();
    assert_eq!(entries[0].data, batch);
}

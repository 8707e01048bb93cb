//! What was flushed is found again, whatever way the process ended.

use crate::common::*;
use iroh_raft_core::{Append, FetchError, FetchFrom, FlushSeq, GroupId, Index, Offset, ShardId};
use iroh_raft_storage::{AppendProblem, DataFolder, ShardOptions, StorageError};

/// A small history with everything in it: several groups, hard and conf states, empty entries, a
/// conf change, suffixes that void others within a batch, within a block, and across blocks.
fn history() -> Vec<Vec<Append>> {
    let mut first = entries_only(1, vec![entry(1, 1, 0, 0), entry(2, 1, 0, 3), entry(3, 1, 3, 1)]);
    first.hard_state = Some(hard_state(1, 0));
    first.conf_state = Some(conf_state(&[1, 2, 3]));
    let mut second = entries_only(2, vec![conf_change(1, 1), entry(2, 1, 0, 2)]);
    second.hard_state = Some(hard_state(1, 1));
    let mut states_only = entries_only(3, vec![]);
    states_only.hard_state = Some(hard_state(8, 0));
    states_only.conf_state = Some(conf_state(&[4]));
    vec![
        vec![append(1, vec![first, second]), append(2, vec![states_only])],
        // Voids the middle of a stored part, with nothing that names an offset.
        vec![append(3, vec![entries_only(1, vec![entry(3, 2, 3, 0)])])],
        vec![append(4, vec![entries_only(1, vec![entry(4, 2, 3, 2), conf_change(5, 2)])])],
        // Voids a part of the same batch, and a stored conf change.
        vec![
            append(5, vec![entries_only(2, vec![entry(3, 2, 2, 1), entry(4, 2, 3, 4), entry(5, 2, 7, 1)])]),
            append(
                6,
                vec![entries_only(2, vec![entry(4, 3, 3, 0)]), entries_only(1, vec![entry(5, 3, 5, 1)])],
            ),
            append(7, vec![entries_only(2, vec![entry(5, 3, 3, 1)])]),
        ],
        vec![append(8, vec![])],
        // The whole log.
        vec![append(9, vec![entries_only(2, vec![entry(1, 4, 0, 1)])])],
    ]
}

#[test]
fn every_step_is_found_after_a_kill_and_after_a_clean_stop() {
    let temporary = tempfile::tempdir().unwrap();
    let path = temporary.path().join("node");
    let mut model = Model::default();
    let mut opened = open(&path).unwrap();
    for (step, batch) in history().iter().enumerate() {
        let report = opened.1.writer.run_once(batch).unwrap();
        batch.iter().for_each(|append| model.take(append));
        assert_eq!(report.last.0, model.last_seq);
        for group in model.groups.keys() {
            model.check_reads(&opened.1.reader, *group);
        }

        let killed = temporary.path().join(format!("killed-{step}"));
        copy_folder(&path, &killed);
        model.check(&open(&killed).unwrap().1);

        drop(opened);
        opened = open(&path).unwrap();
        model.check(&opened.1);
    }
    assert_eq!(opened.1.report.blocks, 6);
    assert_eq!(opened.1.report.torn, 0);
}

#[test]
fn an_old_hard_state_outlives_many_newer_blocks() {
    let folder = tempfile::tempdir().unwrap();
    let (_folder, mut shard) = open(folder.path()).unwrap();
    let mut first = entries_only(1, vec![]);
    first.hard_state = Some(hard_state(7, 0));
    shard.writer.run_once(&[append(1, vec![first])]).unwrap();
    for seq in 2..60 {
        let part = entries_only(2, vec![entry(seq - 1, 1, seq - 2, 1)]);
        shard.writer.run_once(&[append(seq, vec![part])]).unwrap();
    }
    drop((_folder, shard));
    let (_folder, shard) = open(folder.path()).unwrap();
    assert_eq!(shard.groups[0].hard_state, hard_state(7, 0));
    assert_eq!(shard.groups[1].next_offset, Offset(58));
}

#[test]
fn the_tail_has_the_newest_entries_and_ends_at_the_last() {
    let temporary = tempfile::tempdir().unwrap();
    let (folder, mut shard) = open(temporary.path()).unwrap();
    for seq in 1..=20 {
        let parts = vec![
            entries_only(1, vec![entry(seq, 1, seq - 1, 1)]),
            entries_only(2, vec![entry(2 * seq - 1, 1, 0, 0), entry(2 * seq, 1, 0, 0)]),
        ];
        shard.writer.run_once(&[append(seq, parts)]).unwrap();
    }
    drop((folder, shard));
    for tail_bytes in [0, 100, 1000, 2000] {
        let mut folder = DataFolder::open(temporary.path(), IDENTITY).unwrap();
        let shard = folder.open_shard(ShardId(0), ShardOptions { tail_bytes, ..OPTIONS }).unwrap();
        let mut bytes = 0;
        for state in &shard.groups {
            let first = state.last.0 + 1 - state.tail.len() as u64;
            let indexes: Vec<_> = state.tail.iter().map(|entry| entry.index.0).collect();
            assert_eq!(indexes, (first..=state.last.0).collect::<Vec<_>>());
            bytes += state.tail.iter().map(|entry| entry.data.len()).sum::<usize>();
        }
        assert!(bytes <= tail_bytes);
        assert_eq!(tail_bytes > 100, shard.groups.iter().all(|state| !state.tail.is_empty()));
    }
}

#[test]
fn a_fetch_stops_at_its_limits() {
    let temporary = tempfile::tempdir().unwrap();
    let (_folder, mut shard) = open(temporary.path()).unwrap();
    for seq in 1..=4 {
        let entries = vec![entry(2 * seq - 1, 1, 2 * seq - 2, 1), entry(2 * seq, 1, 2 * seq - 1, 1)];
        shard.writer.run_once(&[append(seq, vec![entries_only(1, entries)])]).unwrap();
    }
    let size = entry(1, 1, 0, 1).data.len();
    let indexes = |from, to, bytes_max| {
        let read = shard.reader.read(&fetch(GroupId(1), from, Index(to), bytes_max));
        read.map(|entries| entries.iter().map(|entry| entry.index.0).collect::<Vec<_>>())
    };
    assert_eq!(indexes(FetchFrom::Index(Index(2)), 5, usize::MAX), Ok(vec![2, 3, 4, 5]));
    assert_eq!(indexes(FetchFrom::Index(Index(2)), 8, 3 * size), Ok(vec![2, 3, 4]));
    assert_eq!(indexes(FetchFrom::Index(Index(2)), 8, 3 * size - 1), Ok(vec![2, 3]));
    assert_eq!(indexes(FetchFrom::Offset(Offset(3)), 8, 0), Ok(vec![4]));
    assert_eq!(indexes(FetchFrom::Index(Index(5)), 4, usize::MAX), Err(FetchError::Missing));
    assert_eq!(indexes(FetchFrom::Offset(Offset(5)), 4, usize::MAX), Err(FetchError::Missing));
    assert_eq!(indexes(FetchFrom::Index(Index(9)), 9, usize::MAX), Err(FetchError::Missing));
    assert_eq!(indexes(FetchFrom::Index(Index(0)), 9, usize::MAX), Err(FetchError::Missing));
}

#[test]
fn a_flush_that_contradicts_the_log_fences_the_writer_and_writes_nothing() {
    let cases = [
        (append(3, vec![]), AppendProblem::Sequence { expected: FlushSeq(2) }),
        (
            append(2, vec![entries_only(1, vec![entry(3, 1, 1, 1)])]),
            AppendProblem::Gap { found: Index(3), expected: Index(2) },
        ),
        (
            append(2, vec![entries_only(1, vec![entry(2, 1, 1, 1), entry(4, 1, 2, 1)])]),
            AppendProblem::Gap { found: Index(4), expected: Index(3) },
        ),
        (
            append(2, vec![entries_only(1, vec![entry(2, 2, 1, 1), entry(3, 1, 2, 1)])]),
            AppendProblem::Term { index: Index(3) },
        ),
        (
            append(2, vec![entries_only(1, vec![entry(2, 1, 5, 1)])]),
            AppendProblem::Offset { index: Index(2), found: Offset(5), expected: Offset(1) },
        ),
        (
            append(2, vec![entries_only(1, vec![entry(0, 1, 0, 1)])]),
            AppendProblem::Gap { found: Index(0), expected: Index(2) },
        ),
    ];
    for (wrong, expected) in cases {
        let temporary = tempfile::tempdir().unwrap();
        let (folder, mut shard) = open(temporary.path()).unwrap();
        let good = append(1, vec![entries_only(1, vec![entry(1, 1, 0, 1)])]);
        shard.writer.run_once(std::slice::from_ref(&good)).unwrap();
        let before = std::fs::read(journal_of(temporary.path())).unwrap();
        let error = shard.writer.run_once(std::slice::from_ref(&wrong)).unwrap_err();
        assert!(
            matches!(error, StorageError::InvalidAppend { problem, .. } if problem == expected),
            "{error} for {wrong:?}"
        );
        assert_eq!(before, std::fs::read(journal_of(temporary.path())).unwrap());
        let next = append(2, vec![]);
        let fenced = shard.writer.run_once(&[next]).unwrap_err();
        assert!(matches!(fenced, StorageError::Fenced { shard: ShardId(0) }));
        // Reading goes on, and so does the next start.
        let mut model = Model::default();
        model.take(&good);
        model.check_reads(&shard.reader, GroupId(1));
        drop((folder, shard));
        model.check(&open(temporary.path()).unwrap().1);
    }
}

#[test]
fn the_reader_reads_while_the_writer_commits() {
    let temporary = tempfile::tempdir().unwrap();
    let (_folder, mut shard) = open(temporary.path()).unwrap();
    let part = |index: u64| entries_only(1, vec![entry(index, 1, index - 1, 1)]);
    shard.writer.run_once(&[append(1, vec![part(1)])]).unwrap();
    let reader = shard.reader.clone();
    std::thread::scope(|scope| {
        let reading = scope.spawn(move || {
            // Each read sees a log that only grows; the last one sees all of it.
            let mut seen = 0;
            while seen < 100 {
                let all = fetch(GroupId(1), FetchFrom::Index(Index(1)), Index(u64::MAX), usize::MAX);
                let entries = reader.read(&all).unwrap();
                assert!(entries.len() >= seen, "the log shrank");
                seen = entries.len();
                assert_eq!(entries[seen - 1], entry(seen as u64, 1, seen as u64 - 1, 1));
            }
        });
        for seq in 2..=100 {
            shard.writer.run_once(&[append(seq, vec![part(seq)])]).unwrap();
        }
        reading.join().unwrap();
    });
}

#[test]
fn a_shard_is_opened_once_and_must_exist() {
    let temporary = tempfile::tempdir().unwrap();
    let (mut folder, _shard) = open(temporary.path()).unwrap();
    let taken = folder.open_shard(ShardId(0), OPTIONS).unwrap_err();
    assert!(matches!(taken, StorageError::ShardTaken { shard: ShardId(0) }));
    let absent = folder.open_shard(ShardId(1), OPTIONS).unwrap_err();
    assert!(matches!(absent, StorageError::NoSuchShard { shards: 1, .. }));
}

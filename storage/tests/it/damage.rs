//! Damaged, rolled back and mixed-up journals: an error that says so, and nothing written.

use std::fs;
use std::path::Path;

use iroh_raft_core::{FetchError, FetchFrom, FlushSeq, GroupId, Index, LogDamage, ShardId};
use iroh_raft_storage::{AffectedRange, BlockError, DataFolder, StorageError};
use redb::{Database, ReadableDatabase, TableDefinition};

use crate::common::*;

type GroupRows<'t> = redb::Table<'t, u64, &'static [u8]>;

/// Small blocks have one row, number 0.
const JOURNAL: TableDefinition<'static, (u64, u16), &'static [u8]> = TableDefinition::new("blocks");

/// A folder with flushes 1 to `flushes`, each one entry of group 1 and one of group 2; stopped in
/// order, with the marks as they were before each flush.
fn make(path: &Path, flushes: u64) -> (Model, Vec<Vec<u8>>) {
    let mut model = Model::default();
    let mut marks = Vec::new();
    let (_folder, mut shard) = open(path).unwrap();
    for seq in 1..=flushes {
        marks.push(fs::read(mark_of(path)).unwrap());
        let parts = vec![
            entries_only(1, vec![entry(seq, 1, seq - 1, 1)]),
            entries_only(2, vec![entry(seq, 1, 0, 0)]),
        ];
        let append = append(seq, parts);
        shard.writer.run_once(std::slice::from_ref(&append)).unwrap();
        model.take(&append);
    }
    (model, marks)
}

/// The model without its last flush.
fn shortened(model: &Model) -> Model {
    let mut shorter = Model { last_seq: model.last_seq - 1, ..Model::default() };
    for (group, state) in &model.groups {
        let mut state = state.clone();
        state.entries.pop();
        state.ends.pop();
        shorter.groups.insert(*group, state);
    }
    shorter
}

fn edit(path: &Path, change: impl FnOnce(&mut redb::Table<'_, (u64, u16), &'static [u8]>)) {
    let db = Database::open(journal_of(path)).unwrap();
    let transaction = db.begin_write().unwrap();
    change(&mut transaction.open_table(JOURNAL).unwrap());
    transaction.commit().unwrap();
}

fn block(path: &Path, seq: u64) -> Vec<u8> {
    let db = Database::open(journal_of(path)).unwrap();
    let table = db.begin_read().unwrap().open_table(JOURNAL).unwrap();
    table.get((seq, 0)).unwrap().unwrap().value().to_vec()
}

/// Bytes of a block's header and directory.
fn directory_bytes(block: &[u8]) -> usize {
    64 + u32::from_le_bytes(block[48..52].try_into().unwrap()) as usize
}

/// Opens a folder that must be refused, and checks that the shard's files stay as they are.
fn refused(path: &Path) -> StorageError {
    let shard = path.join("shard-0");
    let before = bytes_of(&shard);
    let error = open(path).unwrap_err();
    assert!(before == bytes_of(&shard), "files were changed: {error}");
    let line = error.to_string();
    assert!(!line.contains('\n') && line.contains(": "), "{line}");
    error
}

#[test]
fn each_flipped_byte_of_the_last_block_is_an_error_once_it_was_acknowledged() {
    let temporary = tempfile::tempdir().unwrap();
    let path = temporary.path().join("node");
    make(&path, 3);
    let whole = block(&path, 3);
    for at in 0..whole.len() {
        let mut damaged = whole.clone();
        damaged[at] ^= 0x10;
        edit(&path, |table| drop(table.insert((3, 0), damaged.as_slice()).unwrap()));
        if at < directory_bytes(&whole) {
            match refused(&path) {
                StorageError::Corrupt { at: FlushSeq(3), .. } => {}
                other => panic!("byte {at}: {other}"),
            }
            continue;
        }
        // Damaged data takes its group out, and no other. Group 2's entry has none.
        let (_folder, shard) = open(&path).unwrap();
        let damage = LogDamage { first: Index(3), last: Index(3) };
        assert_eq!(shard.groups[0].damage, Some(damage), "byte {at}");
        assert_eq!(shard.groups[1].damage, None, "byte {at}");
        assert_eq!(shard.report.torn, 0);
    }
}

#[test]
fn each_flipped_byte_of_the_last_block_is_cut_if_it_was_never_acknowledged() {
    let temporary = tempfile::tempdir().unwrap();
    let path = temporary.path().join("node");
    let (model, marks) = make(&path, 3);
    let whole = block(&path, 3);
    let shorter = shortened(&model);
    for at in 0..whole.len() {
        fs::write(mark_of(&path), &marks[2]).unwrap();
        let mut damaged = whole.clone();
        damaged[at] ^= 0x10;
        edit(&path, |table| drop(table.insert((3, 0), damaged.as_slice()).unwrap()));
        let (folder, shard) = open(&path).unwrap();
        assert_eq!(shard.report.torn, 1, "byte {at}");
        shorter.check(&shard);
        drop((folder, shard));
        // Cut for good: the next start finds a sound journal, and the number is used again.
        assert_eq!(open(&path).unwrap().1.report.torn, 0);
    }
    let (folder, mut shard) = open(&path).unwrap();
    let again = append(3, vec![entries_only(1, vec![entry(3, 9, 2, 1)])]);
    shard.writer.run_once(&[again]).unwrap();
    drop((folder, shard));
    assert_eq!(open(&path).unwrap().1.last_seq, FlushSeq(3));
}

/// redb verifies no page when it reads: a key that is not the one written must be noticed by its row.
#[test]
fn a_row_under_another_key_is_never_taken_for_that_ones() {
    let temporary = tempfile::tempdir().unwrap();
    let path = temporary.path().join("node");
    let (folder, mut shard) = open(&path).unwrap();
    for seq in 1..=3 {
        let parts = [1, 2].map(|group| iroh_raft_core::GroupAppend {
            hard_state: Some(hard_state(4, seq)),
            ..entries_only(group, vec![entry(seq, 1, seq - 1, 1)])
        });
        shard.writer.run_once(&[append(seq, parts.to_vec())]).unwrap();
    }
    // A third group that has voted, and nothing else.
    let part =
        iroh_raft_core::GroupAppend { hard_state: Some(hard_state(7, 0)), ..entries_only(3, Vec::new()) };
    shard.writer.run_once(&[append(4, vec![part])]).unwrap();
    while shard.mover.run_once().unwrap().blocks > 0 {}
    drop((folder, shard));
    let log = path.join("shard-0/log.redb");
    let whole = fs::read(&log).unwrap();
    let groups: TableDefinition<'static, u64, &'static [u8]> = TableDefinition::new("group");
    let index: TableDefinition<'static, (u64, u64), &'static [u8]> = TableDefinition::new("index");
    for (group, other) in [(1, 5), (2, 4), (3, 6), (3, 11)] {
        fs::write(&log, &whole).unwrap();
        let db = Database::open(&log).unwrap();
        let transaction = db.begin_write().unwrap();
        {
            let mut table = transaction.open_table(groups).unwrap();
            let row = table.remove(group).unwrap().unwrap().value().to_vec();
            table.insert(other, row.as_slice()).unwrap();
        }
        transaction.commit().unwrap();
        drop(db);
        assert!(matches!(refused(&path), StorageError::DamagedFile { .. }));
    }
    for (key, other) in [((1, 1), (1, 2)), ((2, 1), (3, 1)), ((2, 1), (9, 1))] {
        fs::write(&log, &whole).unwrap();
        let db = Database::open(&log).unwrap();
        let transaction = db.begin_write().unwrap();
        {
            let mut table = transaction.open_table(index).unwrap();
            let row = table.remove(key).unwrap().unwrap().value().to_vec();
            table.insert(other, row.as_slice()).unwrap();
        }
        transaction.commit().unwrap();
        drop(db);
        // Of a group that is there it takes that group out; of none, everything.
        if other.0 == 9 {
            assert!(matches!(refused(&path), StorageError::DamagedFile { .. }));
        } else {
            let (_folder, shard) = open(&path).unwrap();
            let damaged = shard.groups.iter().find(|state| state.group == GroupId(key.0)).unwrap();
            assert_eq!(damaged.damage, Some(LogDamage { first: Index(1), last: Index(3) }));
        }
    }
}

/// A lost write leaves what stood there before: a sound row, of an older vote.
#[test]
fn an_older_row_of_a_group_is_not_taken_for_the_newest() {
    let temporary = tempfile::tempdir().unwrap();
    let path = temporary.path().join("node");
    let groups: TableDefinition<'static, u64, &'static [u8]> = TableDefinition::new("group");
    let log = path.join("shard-0/log.redb");
    let rows = |change: &dyn Fn(&mut GroupRows<'_>)| {
        let db = Database::open(&log).unwrap();
        let transaction = db.begin_write().unwrap();
        change(&mut transaction.open_table(groups).unwrap());
        transaction.commit().unwrap();
    };
    let mut old = Vec::new();
    for term in 1..=2 {
        let (_folder, mut shard) = open(&path).unwrap();
        let vote = |group| iroh_raft_core::GroupAppend {
            hard_state: Some(hard_state(term, 0)),
            ..entries_only(group, Vec::new())
        };
        shard.writer.run_once(&[append(term, vec![vote(1), vote(2)])]).unwrap();
        while shard.mover.run_once().unwrap().blocks > 0 {}
        drop((_folder, shard));
        if term == 1 {
            let db = Database::open(&log).unwrap();
            let table = db.begin_read().unwrap().open_table(groups).unwrap();
            old = table.get(1).unwrap().unwrap().value().to_vec();
        }
    }
    let whole = fs::read(&log).unwrap();
    rows(&|table| drop(table.insert(1, old.as_slice()).unwrap()));
    assert!(matches!(refused(&path), StorageError::DamagedFile { .. }));
    fs::write(&log, &whole).unwrap();
    rows(&|table| drop(table.remove(2).unwrap()));
    assert!(matches!(refused(&path), StorageError::DamagedFile { .. }));
    fs::write(&log, &whole).unwrap();
    assert!(open(&path).unwrap().1.groups.iter().all(|group| group.hard_state.term.0 == 2));
}

/// The mover goes on around a damaged group and the journal is voided behind it: what was lost must not
/// look like the end of the log then.
#[test]
fn a_damaged_group_is_damaged_at_every_start() {
    let flush = |seq, groups: &[u64]| {
        let part = |group: &u64| iroh_raft_core::GroupAppend {
            hard_state: Some(hard_state(1, seq - 1)),
            ..entries_only(*group, vec![entry(seq, 1, seq - 1, 1)])
        };
        append(seq, groups.iter().map(part).collect())
    };
    // Damaged are entries whose block is not moved yet; or the one that a move left behind, not committed,
    // whose block the very next flush makes void.
    for (is_left, lost) in [(false, 3), (true, 4)] {
        let temporary = tempfile::tempdir().unwrap();
        let path = temporary.path().join("node");
        let (folder, mut shard) = open(&path).unwrap();
        for seq in 1..=4 {
            shard.writer.run_once(&[flush(seq, &[1, 2])]).unwrap();
        }
        while is_left && shard.mover.run_once().unwrap().blocks > 0 {}
        drop((folder, shard));
        let whole = block(&path, lost);
        let mut damaged = whole.clone();
        damaged[directory_bytes(&whole)] ^= 1;
        edit(&path, |table| drop(table.insert((lost, 0), damaged.as_slice()).unwrap()));
        for seq in 5..=8 {
            let (_folder, mut shard) = open(&path).unwrap();
            let damage = shard.groups[0].damage.unwrap_or_else(|| panic!("forgotten before flush {seq}"));
            assert_eq!(damage.first, Index(lost), "before flush {seq}");
            assert_eq!((shard.groups[0].hard_state, shard.groups[1].damage), (hard_state(1, 3), None));
            while !is_left && shard.mover.run_once().unwrap().blocks > 0 {}
            shard.writer.run_once(&[flush(seq, &[2])]).unwrap();
        }
    }
}

/// Bytes that come back sound after all are no damage any more, at this start and at later ones.
#[test]
fn a_group_whose_entries_are_back_is_whole_again() {
    let temporary = tempfile::tempdir().unwrap();
    let path = temporary.path().join("node");
    let (mut model, _) = make(&path, 3);
    let whole = block(&path, 3);
    let mut damaged = whole.clone();
    damaged[directory_bytes(&whole)] ^= 1;
    edit(&path, |table| drop(table.insert((3, 0), damaged.as_slice()).unwrap()));
    assert!(open(&path).unwrap().1.groups[0].damage.is_some());
    edit(&path, |table| drop(table.insert((3, 0), whole.as_slice()).unwrap()));
    for seq in 4..=6 {
        let (_folder, mut shard) = open(&path).unwrap();
        model.check(&shard);
        // A shorter suffix: what was lost and came back is void now.
        let append = append(seq, vec![entries_only(1, vec![entry(2, seq, 1, 1)])]);
        shard.writer.run_once(std::slice::from_ref(&append)).unwrap();
        model.take(&append);
    }
}

#[test]
fn bits_that_rot_in_the_file_after_a_kill_never_shorten_what_was_acknowledged() {
    let temporary = tempfile::tempdir().unwrap();
    let path = temporary.path().join("node");
    let (_folder, mut shard) = open(&path).unwrap();
    for seq in 1..=8 {
        let part = entries_only(1, vec![entry(seq, 1, seq - 1, 1)]);
        shard.writer.run_once(&[append(seq, vec![part])]).unwrap();
    }
    let killed = temporary.path().join("killed");
    copy_folder(&path, &killed);
    let journal = fs::read(journal_of(&killed)).unwrap();
    let (places, bytes) = blocks_in(&journal, 8);
    for at in 0..bytes {
        let mut damaged = journal.clone();
        places.iter().for_each(|place| damaged[place + at] ^= 1);
        fs::write(journal_of(&killed), damaged).unwrap();
        match refused(&killed) {
            // redb notices, takes the commit before, and says nothing.
            StorageError::JournalRolledBack { acknowledged: FlushSeq(8), found: FlushSeq(7), .. } => {}
            other => panic!("byte {at}: {other}"),
        }
    }
}

#[test]
fn redb_falling_back_over_an_unacknowledged_commit_is_counted() {
    let temporary = tempfile::tempdir().unwrap();
    let path = temporary.path().join("node");
    let (_folder, mut shard) = open(&path).unwrap();
    let mut model = Model::default();
    let mut mark = Vec::new();
    for seq in 1..=8 {
        mark = fs::read(mark_of(&path)).unwrap();
        let append = append(seq, vec![entries_only(1, vec![entry(seq, 1, seq - 1, 1)])]);
        shard.writer.run_once(std::slice::from_ref(&append)).unwrap();
        if seq < 8 {
            model.take(&append);
        }
    }
    let killed = temporary.path().join("killed");
    copy_folder(&path, &killed);
    fs::write(mark_of(&killed), mark).unwrap();
    let mut journal = fs::read(journal_of(&killed)).unwrap();
    let (places, _) = blocks_in(&journal, 8);
    places.iter().for_each(|place| journal[place + 20] ^= 1);
    fs::write(journal_of(&killed), journal).unwrap();
    let (_folder, shard) = open(&killed).unwrap();
    assert_eq!(shard.report.torn, 1);
    model.check(&shard);
}

#[test]
fn damage_in_the_middle_names_groups_and_indexes() {
    let temporary = tempfile::tempdir().unwrap();
    let path = temporary.path().join("node");
    let (_, marks) = make(&path, 5);
    let group =
        |group, index| AffectedRange { group: GroupId(group), first: Index(index), last: Index(index) };

    let whole = block(&path, 3);
    let mut damaged = whole.clone();
    damaged[directory_bytes(&whole) - 1] ^= 1;
    edit(&path, |table| drop(table.insert((3, 0), damaged.as_slice()).unwrap()));
    let error = refused(&path);
    assert!(error.to_string().contains("group 1 index 3 to 3 and 1 more groups"), "{error}");
    match error {
        StorageError::Corrupt { at: FlushSeq(3), damage: BlockError::Checksum, affected, .. } => {
            assert_eq!(affected, [group(1, 3), group(2, 3)]);
        }
        other => panic!("{other}"),
    }

    // A mark that was lost makes it no better: a torn block has no successors.
    let mark = fs::read(mark_of(&path)).unwrap();
    fs::write(mark_of(&path), &marks[2]).unwrap();
    assert!(matches!(refused(&path), StorageError::Corrupt { at: FlushSeq(3), .. }));
    fs::write(mark_of(&path), mark).unwrap();

    edit(&path, |table| drop(table.remove((3, 0)).unwrap()));
    match refused(&path) {
        StorageError::Corrupt { at: FlushSeq(3), damage: BlockError::Chain, affected, .. } => {
            assert_eq!(affected, [group(1, 3), group(2, 3)]);
        }
        other => panic!("{other}"),
    }

    edit(&path, |table| drop(table.insert((3, 0), whole.as_slice()).unwrap()));
    open(&path).unwrap();
}

#[test]
fn a_block_in_another_ones_place_is_a_broken_chain() {
    let temporary = tempfile::tempdir().unwrap();
    let path = temporary.path().join("node");
    make(&path, 4);
    let third = block(&path, 3);
    edit(&path, |table| drop(table.insert((4, 0), third.as_slice()).unwrap()));
    assert!(matches!(refused(&path), StorageError::Corrupt { damage: BlockError::Chain, .. }));
}

#[test]
fn a_journal_older_than_its_mark_is_refused() {
    let temporary = tempfile::tempdir().unwrap();
    let path = temporary.path().join("node");
    make(&path, 2);
    let old = fs::read(journal_of(&path)).unwrap();
    let (folder, mut shard) = open(&path).unwrap();
    shard.writer.run_once(&[append(3, vec![])]).unwrap();
    drop((folder, shard));
    fs::write(journal_of(&path), old).unwrap();
    match refused(&path) {
        StorageError::JournalRolledBack { shard, acknowledged, found } => {
            assert_eq!((shard, acknowledged, found), (ShardId(0), FlushSeq(3), FlushSeq(2)));
        }
        other => panic!("{other}"),
    }
}

#[test]
fn another_history_of_the_same_length_is_refused() {
    let temporary = tempfile::tempdir().unwrap();
    let path = temporary.path().join("node");
    make(&path, 2);
    let other = temporary.path().join("other");
    copy_folder(&path, &other);
    for (folder, term) in [(&path, 1), (&other, 2)] {
        let (_folder, mut shard) = open(folder).unwrap();
        shard.writer.run_once(&[append(3, vec![entries_only(1, vec![entry(3, term, 2, 1)])])]).unwrap();
    }
    fs::copy(journal_of(&other), journal_of(&path)).unwrap();
    match refused(&path) {
        StorageError::JournalRolledBack { found: FlushSeq(2), .. } => {}
        other => panic!("{other}"),
    }
}

#[test]
fn a_journal_or_a_mark_of_another_folder_is_refused() {
    let temporary = tempfile::tempdir().unwrap();
    let (path, other) = (temporary.path().join("node"), temporary.path().join("other"));
    make(&path, 2);
    make(&other, 2);
    let own = fs::read(journal_of(&path)).unwrap();
    fs::copy(journal_of(&other), journal_of(&path)).unwrap();
    assert!(matches!(refused(&path), StorageError::ForeignJournal { .. }));
    fs::write(journal_of(&path), own).unwrap();
    fs::copy(mark_of(&other), mark_of(&path)).unwrap();
    assert!(matches!(refused(&path), StorageError::ForeignJournal { .. }));
}

#[test]
fn an_empty_cut_or_foreign_journal_is_refused() {
    let temporary = tempfile::tempdir().unwrap();
    let path = temporary.path().join("node");
    make(&path, 2);
    let whole = fs::read(journal_of(&path)).unwrap();
    fs::write(journal_of(&path), b"").unwrap();
    assert!(matches!(refused(&path), StorageError::DamagedFile { .. }));
    for length in [1, 100, 4096, 20_000, whole.len() / 2, whole.len() - 4096] {
        fs::write(journal_of(&path), &whole[..length]).unwrap();
        refused(&path);
    }
    fs::write(journal_of(&path), vec![0xa5; whole.len()]).unwrap();
    assert!(matches!(refused(&path), StorageError::DamagedJournal { .. }));
    // Somebody else's redb file.
    fs::remove_file(journal_of(&path)).unwrap();
    drop(Database::create(journal_of(&path)).unwrap());
    assert!(matches!(refused(&path), StorageError::DamagedJournal { .. }));
    fs::write(journal_of(&path), whole).unwrap();
    open(&path).unwrap();
}

#[test]
fn one_torn_slot_of_the_mark_is_tolerated_and_two_are_not() {
    let temporary = tempfile::tempdir().unwrap();
    let path = temporary.path().join("node");
    let (model, _) = make(&path, 3);
    let whole = fs::read(mark_of(&path)).unwrap();
    for slot in [0, 512] {
        let mut torn = whole.clone();
        torn[slot + 40] ^= 1;
        fs::write(mark_of(&path), &torn).unwrap();
        model.check(&open(&path).unwrap().1);
    }
    let mut damaged = whole.clone();
    damaged[40] ^= 1;
    damaged[512 + 40] ^= 1;
    fs::write(mark_of(&path), &damaged).unwrap();
    assert!(matches!(refused(&path), StorageError::DamagedFile { .. }));
    fs::write(mark_of(&path), &whole[..700]).unwrap();
    assert!(matches!(refused(&path), StorageError::DamagedFile { .. }));
    fs::remove_file(mark_of(&path)).unwrap();
    assert!(matches!(refused(&path), StorageError::MissingFile { .. }));
}

#[test]
fn damage_under_a_running_node_is_reported_by_the_read() {
    let temporary = tempfile::tempdir().unwrap();
    let path = temporary.path().join("node");
    make(&path, 3);
    let mut folder = DataFolder::open(&path, IDENTITY).unwrap();
    let options = iroh_raft_storage::ShardOptions { journal_cache_bytes: 0, ..OPTIONS };
    let shard = folder.open_shard(ShardId(0), options).unwrap();
    let mut journal = fs::read(journal_of(&path)).unwrap();
    let (places, bytes) = blocks_in(&journal, 2);
    places.iter().for_each(|place| journal[place + bytes - 1] ^= 1);
    std::os::unix::fs::FileExt::write_all_at(
        &fs::OpenOptions::new().write(true).open(journal_of(&path)).unwrap(),
        &journal,
        0,
    )
    .unwrap();
    let all = fetch(GroupId(1), FetchFrom::Index(Index(1)), Index(3), usize::MAX);
    let corrupt = FetchError::Corrupt { first: Index(2), last: Index(2) };
    assert_eq!(shard.reader.read(&all), Err(corrupt));
}

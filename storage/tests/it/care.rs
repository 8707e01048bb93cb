//! Scrub, check and dump; and a medium that runs out of space.

use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use iroh_raft_core::{FetchError, FetchFrom, FlushSeq, GroupAppend, GroupId, Index, LogDamage, ShardId};
use iroh_raft_storage::fault::FaultDisk;
use iroh_raft_storage::{
    AffectedRange, BlockError, DamagePlace, DataFolder, Disk, FileDisk, FileKind, OfflineFolder, OpenShard,
    ScrubReport, Scrubber, StorageError, check, dump,
};
use redb::{Database, ReadableTable, StorageBackend, TableDefinition};

use crate::common::*;
use crate::folder_of_files;

const LOG: TableDefinition<'static, (u64, u64, u16), &'static [u8]> = TableDefinition::new("log");
const JOURNAL: TableDefinition<'static, (u64, u16), &'static [u8]> = TableDefinition::new("blocks");

fn committed(group: u64, index: u64) -> GroupAppend {
    let hard_state = Some(hard_state(1, index));
    GroupAppend { hard_state, ..entries_only(group, vec![entry(index, 1, index - 1, 1)]) }
}

/// Flushes 1 to `moved` of groups 1 and 2 moved to the log file, those to `last` in the journal.
fn fill(shard: &mut OpenShard, moved: u64, last: u64) {
    for seq in 1..=last {
        shard.writer.run_once(&[append(seq, vec![committed(1, seq), committed(2, seq)])]).unwrap();
        if seq == moved {
            while shard.mover.run_once().unwrap().blocks > 0 {}
        }
    }
}

fn make(path: &Path) {
    let (_folder, mut shard) = open(path).unwrap();
    fill(&mut shard, 3, 5);
}

/// A whole round in steps of one block.
fn round(scrubber: &mut Scrubber) -> ScrubReport {
    let mut whole = ScrubReport::default();
    for _ in 0..1000 {
        let step = scrubber.step(1).unwrap();
        assert!(step.blocks <= 1);
        whole.blocks += step.blocks;
        whole.bytes += step.bytes;
        whole.damage.extend(step.damage);
        if step.is_round_done {
            return whole;
        }
    }
    panic!("a round ends");
}

fn flip_in_log(path: &Path, group: u64, first: u64) {
    let db = Database::open(path.join("shard-0/log.redb")).unwrap();
    let transaction = db.begin_write().unwrap();
    {
        let mut table = transaction.open_table(LOG).unwrap();
        let mut row = table.get((group, first, 0)).unwrap().unwrap().value().to_vec();
        *row.last_mut().unwrap() ^= 1;
        table.insert((group, first, 0), row.as_slice()).unwrap();
    }
    transaction.commit().unwrap();
}

/// Flips a byte of a block's data; it belongs to the last part.
fn flip_in_journal(path: &Path, seq: u64) {
    let db = Database::open(journal_of(path)).unwrap();
    let transaction = db.begin_write().unwrap();
    {
        let mut table = transaction.open_table(JOURNAL).unwrap();
        let mut row = table.get((seq, 0)).unwrap().unwrap().value().to_vec();
        *row.last_mut().unwrap() ^= 1;
        table.insert((seq, 0), row.as_slice()).unwrap();
    }
    transaction.commit().unwrap();
}

#[test]
fn a_scrub_reads_everything_once_a_round() {
    let temporary = tempfile::tempdir().unwrap();
    let path = temporary.path().join("node");
    let (_folder, mut shard) = open(&path).unwrap();
    fill(&mut shard, 3, 5);
    // A cold block of each group, and the five blocks of the journal, of which three wait to be void.
    for _ in 0..2 {
        let bytes = shard.scrubber.round_bytes();
        let whole = round(&mut shard.scrubber);
        assert_eq!((whole.blocks, whole.bytes, whole.damage), (2 + 2, bytes, Vec::new()));
    }
    let at_once = shard.scrubber.step(u64::MAX).unwrap();
    assert!(at_once.is_round_done && at_once.blocks == 4);
    // What is moved or compacted between two steps is no damage.
    shard.scrubber.step(1).unwrap();
    while shard.mover.run_once().unwrap().blocks > 0 {}
    assert_eq!(round(&mut shard.scrubber).damage, []);
}

#[test]
fn a_scrub_finds_what_opening_does_not_look_at() {
    let temporary = tempfile::tempdir().unwrap();
    let path = temporary.path().join("node");
    make(&path);
    flip_in_log(&path, 2, 1);
    let (_folder, mut shard) = open(&path).unwrap();
    assert!(shard.groups.iter().all(|group| group.damage.is_none()));
    let found = round(&mut shard.scrubber).damage;
    let affected = vec![AffectedRange { group: GroupId(2), first: Index(1), last: Index(3) }];
    assert_eq!(found.len(), 1);
    assert_eq!((found[0].place, &found[0].affected), (DamagePlace::Log, &affected));
    let read = shard.reader.read(&fetch(GroupId(2), FetchFrom::Index(Index(1)), Index(5), usize::MAX));
    assert_eq!(read.unwrap_err(), FetchError::Corrupt { first: Index(1), last: Index(3) });
}

#[test]
fn a_scrub_finds_damage_in_the_journal() {
    let temporary = tempfile::tempdir().unwrap();
    let path = temporary.path().join("node");
    make(&path);
    flip_in_journal(&path, 5);
    let folder = OfflineFolder::open(&path).unwrap();
    let mut shard = folder.open_shard(ShardId(0)).unwrap();
    let found = round(&mut shard.scrubber).damage;
    assert_eq!(found.len(), 1);
    let place = DamagePlace::Journal { seq: FlushSeq(5), problem: BlockError::Checksum };
    // Its data were damaged when it was opened, so that nothing refers to them.
    assert_eq!((found[0].place, found[0].affected.len()), (place, 0));
    assert_eq!(shard.groups[1].damage, Some(LogDamage { first: Index(5), last: Index(5) }));
}

#[test]
fn check_says_in_words_what_is_wrong_and_changes_nothing() {
    let temporary = tempfile::tempdir().unwrap();
    let path = temporary.path().join("node");
    make(&path);
    let before = bytes_of(&path);
    let report = check(&path).unwrap();
    let text = report.to_string();
    assert!(report.is_sound() && text.ends_with("everything that is stored was read and is sound"), "{text}");
    assert!(text.contains("2 groups with 10 entries") && !text.contains("PROBLEM"), "{text}");
    assert_eq!(bytes_of(&path), before);

    fs::write(path.join("nodes"), b"nonsense").unwrap();
    let report = check(&path).unwrap();
    assert!(!report.is_sound() && report.to_string().contains("nodes is damaged"), "{report}");
    fs::remove_file(path.join("nodes")).unwrap();

    flip_in_log(&path, 2, 1);
    flip_in_journal(&path, 5);
    let before = bytes_of(&path);
    let report = check(&path).unwrap();
    let text = report.to_string();
    assert!(!report.is_sound());
    for said in [
        "PROBLEM: group 2 lacks index 5 to 5",
        "PROBLEM: the log file is damaged; group 2 index 1 to 3",
        "PROBLEM: the journal is damaged at flush 5",
    ] {
        assert!(text.contains(said), "{said}: {text}");
    }
    assert_eq!(bytes_of(&path), before);

    fs::write(path.join("boot"), b"nonsense").unwrap();
    fs::remove_file(path.join("shard-0/log.redb")).unwrap();
    let text = check(&path).unwrap().to_string();
    assert!(text.contains("boot is damaged") && text.contains("PROBLEM in shard 0: "), "{text}");
}

#[test]
fn a_folder_in_use_or_none_at_all_is_not_checked() {
    let temporary = tempfile::tempdir().unwrap();
    let path = temporary.path().join("node");
    let node = open(&path).unwrap();
    assert!(matches!(check(&path).unwrap_err(), StorageError::InUse { .. }));
    drop(node);
    check(&path).unwrap();
    assert!(matches!(check(temporary.path().join("none")).unwrap_err(), StorageError::Io { .. }));
    let empty = tempfile::tempdir().unwrap();
    assert!(matches!(check(empty.path()).unwrap_err(), StorageError::MissingManifest { .. }));
    assert_eq!(fs::read_dir(empty.path()).unwrap().count(), 0);
}

#[test]
fn dump_prints_entries_and_records() {
    let temporary = tempfile::tempdir().unwrap();
    let path = temporary.path().join("node");
    make(&path);
    let folder = OfflineFolder::open(&path).unwrap();
    let shard = folder.open_shard(ShardId(0)).unwrap();
    let mut out = Vec::new();
    dump(&shard, GroupId(2), Index(3), Index(u64::MAX), &mut out).unwrap();
    let expected = "\
group 2: term 1, vote 2, commit 5; starts after index 0 (term 0), next offset 5, last index 5; voters
index 3 term 1 batch of 1 at 1 ms
  offset 2 bytes 16 \"record 2, term 1\"
index 4 term 1 batch of 1 at 1 ms
  offset 3 bytes 16 \"record 3, term 1\"
index 5 term 1 batch of 1 at 1 ms
  offset 4 bytes 16 \"record 4, term 1\"
";
    assert_eq!(String::from_utf8(out).unwrap(), expected);
    let error = dump(&shard, GroupId(7), Index(1), Index(9), &mut Vec::new()).unwrap_err();
    assert!(error.to_string().contains("group 7 is not in this shard"));
}

/// The file system, with as much room as it is told.
#[derive(Debug)]
struct Narrow(AtomicU64);

impl Disk for Narrow {
    fn open(&self, path: &Path, kind: FileKind, is_new: bool) -> io::Result<Box<dyn StorageBackend>> {
        FileDisk.open(path, kind, is_new)
    }

    fn reserve(&self, path: &Path, bytes: u64) -> io::Result<()> {
        FileDisk.reserve(path, bytes)
    }

    fn free_bytes(&self, _: &Path) -> io::Result<u64> {
        Ok(self.0.load(Ordering::Relaxed))
    }

    folder_of_files!();
}

#[test]
fn little_room_is_said_while_there_is_still_some() {
    let temporary = tempfile::tempdir().unwrap();
    assert!(FileDisk.free_bytes(temporary.path()).unwrap() > 0);
    let disk = Arc::new(Narrow(AtomicU64::new(1 << 20)));
    let mut folder = DataFolder::open_on(temporary.path(), IDENTITY, disk.clone()).unwrap();
    let options = iroh_raft_storage::ShardOptions { free_bytes_min: 1 << 20, ..OPTIONS };
    let mut shard = folder.open_shard(ShardId(0), options).unwrap();
    let mut seq = 0;
    let mut flush = |bytes: usize| {
        seq += 1;
        let entry = large_entry(seq, bytes);
        shard.writer.run_once(&[append(seq, vec![entries_only(1, vec![entry])])]).unwrap().is_space_low
    };
    assert!(!flush(1));
    disk.0.store((1 << 20) - 1, Ordering::Relaxed);
    assert!(!flush(1), "asked only once in a while");
    assert!(flush(2 << 20));
    assert!(flush(1));
    disk.0.store(1 << 20, Ordering::Relaxed);
    assert!(!flush(1), "and at every flush as long as there is little");
}

#[test]
fn a_full_medium_leaves_a_shard_that_reads_and_one_that_writes_again_when_told() {
    let large = |seq: u64| GroupAppend {
        hard_state: Some(hard_state(1, seq)),
        ..entries_only(1, vec![large_entry(seq, 100_000)])
    };
    let disk = FaultDisk::default();
    let mut folder = DataFolder::open_on("/node", IDENTITY, Arc::new(disk.clone())).unwrap();
    let mut shard = folder.open_shard(ShardId(0), OPTIONS).unwrap();
    let mut model = Model::default();
    for seq in 1..=2 {
        let append = append(seq, vec![large(seq)]);
        shard.writer.run_once(std::slice::from_ref(&append)).unwrap();
        model.take(&append);
    }
    // No byte more than there are: the next time that the file grows it fails.
    let files = disk.files();
    disk.set_capacity(Some(files.values().map(|file| file.len() as u64).sum()));
    let mut seq = 3;
    let error = loop {
        let append = append(seq, vec![large(seq)]);
        match shard.writer.run_once(std::slice::from_ref(&append)) {
            Ok(_) => model.take(&append),
            Err(error) => break error,
        }
        seq += 1;
    };
    assert!(matches!(error, StorageError::NoSpace { .. }), "{error}");
    // Nothing of it is open twice.
    let taken = folder.open_shard_for_reading(ShardId(0)).unwrap_err();
    assert!(matches!(taken, StorageError::ShardTaken { .. }), "{taken}");
    drop(shard);

    // There is still no room: reading needs none.
    let files = disk.files();
    let mut reading = folder.open_shard_for_reading(ShardId(0)).unwrap();
    assert_eq!(reading.last_seq, FlushSeq(seq - 1));
    assert_eq!(reading.groups[0].last, Index(seq - 1));
    let read = fetch(GroupId(1), FetchFrom::Index(Index(1)), Index(1), usize::MAX);
    assert_eq!(reading.reader.read(&read).unwrap(), model.groups[&GroupId(1)].entries[..1]);
    assert_eq!(round(&mut reading.scrubber).damage, []);
    drop(reading);
    assert!(disk.files() == files);

    // There is room again, and somebody says so.
    disk.set_capacity(None);
    let mut shard = folder.open_shard(ShardId(0), OPTIONS).unwrap();
    model.check(&shard);
    let next = append(seq, vec![large(seq)]);
    shard.writer.run_once(std::slice::from_ref(&next)).unwrap();
    model.take(&next);
    drop(shard);
    model.check(&folder.open_shard(ShardId(0), OPTIONS).unwrap());
}

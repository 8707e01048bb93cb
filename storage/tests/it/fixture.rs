//! A data folder written by each format version since the first release opens for good, with the content it had.
//!
//! `STORAGE_FIXTURE=write` in the environment writes it anew: only when a version is added, never
//! to make this test pass.

use std::io::Read;
use std::path::Path;

use iroh_raft_core::{Append, BootEpoch, GroupId, Index, Offset, Term};
use iroh_raft_storage::SnapshotHead;
use redb::{Database, ReadableDatabase, TableDefinition};

use crate::common::*;

/// The content of the fixture, by commit.
fn content() -> Vec<Vec<Append>> {
    let mut first = entries_only(1, vec![entry(1, 1, 0, 0), entry(2, 1, 0, 2), conf_change(3, 1)]);
    first.hard_state = Some(hard_state(1, 1));
    first.conf_state = Some(conf_state(&[1, 2, 3]));
    let mut second = entries_only(2, vec![entry(1, 2, 0, 1)]);
    second.hard_state = Some(hard_state(2, 0));
    let mut third = entries_only(1, vec![entry(3, 2, 2, 1), entry(4, 2, 3, 3)]);
    third.hard_state = Some(hard_state(2, 3));
    vec![
        vec![append(1, vec![first]), append(2, vec![second])],
        vec![append(3, vec![third])],
        vec![append(4, vec![entries_only(2, vec![entry(2, 2, 1, 2)])])],
    ]
}

fn head() -> SnapshotHead {
    SnapshotHead {
        index: Index(1),
        term: Term(2),
        offset: Offset(1),
        conf_state: conf_state(&[1, 2]),
        table: Default::default(),
    }
}

/// Two chunks.
fn body() -> Vec<u8> {
    (0..300_000_u32).map(|number| (number % 251) as u8).collect()
}

fn write(folder: &Path) {
    let (_folder, mut shard) = open(folder).unwrap();
    for (number, batch) in content().iter().enumerate() {
        shard.writer.run_once(batch).unwrap();
        if number == 1 {
            // Committed entries go to the log file; the last one of group 1 and all of group 2 stay.
            while shard.mover.run_once().unwrap().blocks > 0 {}
        }
    }
    let mut snapshot = shard.snapshots.begin(GroupId(2), head()).unwrap();
    snapshot.write(&body()).unwrap();
    snapshot.publish().unwrap();
}

#[test]
fn a_folder_of_version_2_opens_with_its_content() {
    let stored = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/v2");
    if std::env::var("STORAGE_FIXTURE").is_ok_and(|what| what == "write") {
        write(&stored);
    }
    let temporary = tempfile::tempdir().unwrap();
    copy_folder(&stored, temporary.path());
    let mut model = Model::default();
    content().iter().flatten().for_each(|append| model.take(append));
    let (folder, shard) = open(temporary.path()).unwrap();
    assert_eq!(folder.boot().epoch, BootEpoch(2));
    assert!(!folder.is_new());
    model.check(&shard);
    assert_eq!((shard.report.blocks, shard.report.acknowledged.0), (1, 4));
    let snapshot = shard.snapshots.latest(GroupId(2)).unwrap().unwrap();
    assert_eq!(snapshot.head, head());
    let mut read = Vec::new();
    shard.snapshots.reader(snapshot).read_to_end(&mut read).unwrap();
    assert!(read == body());
}

type Row = ((u64, u64, u16), Vec<u8>);

fn rows<K: redb::Key + 'static>(
    file: &Path,
    table: TableDefinition<'static, K, &'static [u8]>,
    key_of: impl Fn(K::SelfType<'_>) -> (u64, u64, u16),
) -> Vec<Row> {
    let copy = tempfile::tempdir().unwrap();
    let copied = copy.path().join("file.redb");
    std::fs::copy(file, &copied).unwrap();
    let table = Database::open(copied).unwrap().begin_read().unwrap().open_table(table).unwrap();
    let rows = redb::ReadableTable::iter(&table).unwrap().map(Result::unwrap);
    rows.map(|(key, value)| (key_of(key.value()), value.value().to_vec())).collect()
}

/// The same content gives the same blocks to the byte, apart from what belongs to the folder: its
/// storage id, and the checksums that cover it.
#[test]
fn blocks_are_still_written_as_in_version_2() {
    const JOURNAL: TableDefinition<'static, (u64, u16), &'static [u8]> = TableDefinition::new("blocks");
    const LOG: TableDefinition<'static, (u64, u64, u16), &'static [u8]> = TableDefinition::new("log");
    const CHUNKS: TableDefinition<'static, (u64, u32, u16), &'static [u8]> =
        TableDefinition::new("snapshot_chunk");
    let blocks = |folder: &Path| {
        let journal = rows(&journal_of(folder), JOURNAL, |key| (key.0, 0, key.1));
        let log = folder.join("shard-0/log.redb");
        let chunks = rows(&log, CHUNKS, |key| (key.0, u64::from(key.1), key.2));
        [journal, rows(&log, LOG, |key| key), chunks].concat()
    };
    let temporary = tempfile::tempdir().unwrap();
    write(temporary.path());
    let stored = blocks(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/v2"));
    let written = blocks(temporary.path());
    assert_eq!(stored.len(), written.len());
    for ((key, mut old), (new_key, mut new)) in stored.into_iter().zip(written) {
        assert_eq!(key, new_key);
        for block in [&mut old, &mut new] {
            block[8..24].fill(0);
            block[56..64].fill(0);
        }
        assert_eq!(old, new);
    }
}

//! The fuzz targets `block` and `open`, over their stored corpus and seeded changes of it (fuzz/corpus.rs).
//!
//! `FUZZ_CORPUS=write` writes the corpus of `block` anew, from a folder: only when a format version is added.

#[path = "../../../fuzz/corpus.rs"]
mod corpus;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use iroh_raft_core::{BootEpoch, GroupAppend, Index, LogChange, LogStart, NodeId, Offset, Term};
use iroh_raft_storage::SnapshotHead;
use iroh_raft_storage::fuzzing::{Opened, decode, open_damaged};
use redb::{Database, Key, ReadableDatabase, ReadableTable, TableDefinition};

use crate::common::*;

#[test]
fn any_bytes_are_decoded() {
    const SEEDS: u64 = 20_000;
    if corpus::is_written() {
        write_corpus();
    }
    let names: Vec<String> = corpus::read("block")
        .into_iter()
        .map(|(name, data)| {
            let taken = decode(&data);
            assert!(taken.contains(&&*name), "{name} is taken for {taken:?}");
            name
        })
        .collect();
    let mut counts: BTreeMap<&str, u64> = BTreeMap::new();
    let is_all = corpus::run("block", SEEDS, |data| {
        for name in decode(data) {
            *counts.entry(name).or_default() += 1;
        }
    });
    println!("taken after changes: {counts:?}");
    for name in names.iter().filter(|_| is_all) {
        // Changes that no decoder lets through test little more than its first lines.
        let share = SEEDS / names.len() as u64 / 20;
        assert!(counts.get(&**name).is_some_and(|count| *count > share), "{name}: {counts:?}");
    }
}

#[test]
fn no_block_ends_with_the_last_possible_index() {
    let (_, mut block) = corpus::read("block").into_iter().find(|(name, _)| name == "log-block").unwrap();
    let count = u64::from(u32::from_le_bytes(block[48..52].try_into().unwrap()));
    block[32..40].copy_from_slice(&(u64::MAX - count + 1).to_le_bytes());
    assert_eq!(decode(&block), Vec::<&str>::new());
}

#[test]
fn any_damage_is_opened() {
    let mut outcomes: BTreeMap<Opened, u64> = BTreeMap::new();
    let is_all = corpus::run("open", 1500, |data| *outcomes.entry(open_damaged(data)).or_default() += 1);
    println!("{outcomes:?}");
    assert!(!is_all || outcomes.len() == 3, "some damage is noticed early, some late: {outcomes:?}");
}

/// The rows of a table, whole.
fn rows<K: Key + 'static>(file: &Path, table: TableDefinition<'static, K, &'static [u8]>) -> Vec<Vec<u8>> {
    let table = Database::open(file).unwrap().begin_read().unwrap().open_table(table).unwrap();
    table.iter().unwrap().map(|row| row.unwrap().1.value().to_vec()).collect()
}

/// One of each thing that is stored, with all its optional parts.
fn write_corpus() {
    let temporary = tempfile::tempdir().unwrap();
    let path = temporary.path().join("node");
    let (mut folder, mut shard) = open(&path).unwrap();
    folder.take_peer_epochs().observe(NodeId(5), BootEpoch(6), [7; 16]).unwrap();
    let first = GroupAppend {
        hard_state: Some(hard_state(2, 2)),
        conf_state: Some(conf_state(&[1, 2])),
        ..entries_only(1, vec![entry(1, 1, 0, 2), conf_change(2, 2), entry(3, 2, 2, 1)])
    };
    shard.writer.run_once(&[append(1, vec![first])]).unwrap();
    while shard.mover.run_once().unwrap().blocks > 0 {}
    let place = |index, offset| LogStart { index: Index(index), term: Term(2), offset: Offset(offset) };
    let with = |change, part| GroupAppend { change: Some(change), ..part };
    let parts = vec![
        with(LogChange::CompactTo(place(1, 2)), entries_only(1, vec![entry(4, 2, 3, 1), conf_change(5, 2)])),
        with(LogChange::StartAfter(place(9, 9)), entries_only(2, vec![entry(10, 3, 9, 0)])),
        with(LogChange::Remove, entries_only(3, Vec::new())),
    ];
    shard.writer.run_once(&[append(2, parts)]).unwrap();
    let head = SnapshotHead {
        index: Index(2),
        term: Term(2),
        offset: Offset(2),
        conf_state: conf_state(&[1, 2]),
        table: Default::default(),
    };
    let mut snapshot = shard.snapshots.begin(iroh_raft_core::GroupId(1), head).unwrap();
    snapshot.write(&[9; 100]).unwrap();
    snapshot.publish().unwrap();
    drop((folder, shard));
    let (journal, log) = (journal_of(&path), path.join("shard-0/log.redb"));
    let blocks: TableDefinition<'static, (u64, u16), &'static [u8]> = TableDefinition::new("blocks");
    let cold: TableDefinition<'static, (u64, u64, u16), &'static [u8]> = TableDefinition::new("log");
    let index: TableDefinition<'static, (u64, u64), &'static [u8]> = TableDefinition::new("index");
    let chunks: TableDefinition<'static, (u64, u32, u16), &'static [u8]> =
        TableDefinition::new("snapshot_chunk");
    let files = [
        ("journal-block", rows(&journal, blocks).pop().unwrap()),
        ("log-block", rows(&log, cold).remove(0)),
        ("index-row", rows(&log, index).remove(0)),
        ("group-row", rows(&log, TableDefinition::<u64, &[u8]>::new("group")).remove(0)),
        ("snapshot-row", rows(&log, TableDefinition::<u64, &[u8]>::new("snapshot")).remove(0)),
        ("snapshot-chunk", rows(&log, chunks).remove(0)),
        // The first slot without the zeros after it.
        ("mark", fs::read(mark_of(&path)).unwrap()[..52].to_vec()),
        ("manifest", fs::read(path.join("manifest")).unwrap()),
        ("boot", fs::read(path.join("boot")).unwrap()),
        ("peers", fs::read(path.join("peers")).unwrap()),
        ("nodes", fs::read(path.join("nodes")).unwrap()),
    ];
    for (name, bytes) in files {
        corpus::write("block", name, &bytes);
    }
}

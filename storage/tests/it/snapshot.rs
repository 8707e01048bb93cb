//! Snapshots: whole or not at all, gone on with after any interruption, verified, collected.

use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use iroh_raft_core::{ConfState, GroupAppend, GroupId, Index, LogChange, Offset, ShardId, Term};
use iroh_raft_storage::fault::{FaultDisk, Files};
use iroh_raft_storage::snapshot::SNAPSHOT_CHUNK_BYTES;
use iroh_raft_storage::{
    Damage, DamagePlace, DataFolder, OpenShard, SnapshotError, SnapshotHead, SnapshotMeta, SnapshotStore,
};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use redb::{Database, ReadableTable, TableDefinition};

use crate::common::*;

const GROUP: GroupId = GroupId(7);
const CHUNKS: TableDefinition<'static, (u64, u32, u16), &'static [u8]> =
    TableDefinition::new("snapshot_chunk");
const PUBLISHED: TableDefinition<'static, u64, &'static [u8]> = TableDefinition::new("snapshot");

fn head(index: u64) -> SnapshotHead {
    let conf_state = conf_state(&[1, 2, 3]);
    SnapshotHead {
        index: Index(index),
        term: Term(2),
        offset: Offset(10 * index),
        conf_state,
        table: Default::default(),
    }
}

fn body(seed: u64, bytes: usize) -> Vec<u8> {
    let mut random = SmallRng::seed_from_u64(seed);
    (0..bytes).map(|_| random.random()).collect()
}

fn write(store: &SnapshotStore, group: GroupId, index: u64, body: &[u8]) -> SnapshotMeta {
    let mut writer = store.begin(group, head(index)).unwrap();
    writer.write(&body[writer.position() as usize..]).unwrap();
    writer.publish().unwrap()
}

fn read(store: &SnapshotStore, meta: &SnapshotMeta) -> Vec<u8> {
    let mut out = Vec::new();
    store.reader(meta.clone()).read_to_end(&mut out).unwrap();
    out
}

/// The rows of chunks that are stored.
fn stored_rows(path: &Path) -> usize {
    let db = Database::open(path.join("shard-0/log.redb")).unwrap();
    let transaction = db.begin_write().unwrap();
    let table = transaction.open_table(CHUNKS).unwrap();
    table.iter().unwrap().count()
}

#[test]
fn a_body_of_any_size_comes_back() {
    let temporary = tempfile::tempdir().unwrap();
    let path = temporary.path().join("node");
    let chunk = SNAPSHOT_CHUNK_BYTES;
    let sizes = [0, 1, chunk - 1, chunk, chunk + 1, 16 * chunk, 16 * chunk + 1, 35 * chunk + 77];
    let (_folder, shard) = open(&path).unwrap();
    let mut metas = Vec::new();
    for (number, bytes) in sizes.into_iter().enumerate() {
        let group = GroupId(number as u64 + 1);
        assert_eq!(shard.snapshots.latest(group).unwrap(), None);
        let body = body(number as u64, bytes);
        // In pieces that fit nothing.
        let mut writer = shard.snapshots.begin(group, head(5)).unwrap();
        body.chunks(100_003).for_each(|piece| writer.write(piece).unwrap());
        assert_eq!(writer.position(), bytes as u64);
        let meta = writer.publish().unwrap();
        assert_eq!((meta.body_bytes, u64::from(meta.chunks)), (bytes as u64, bytes.div_ceil(chunk) as u64));
        assert_eq!(shard.snapshots.latest(group).unwrap().as_ref(), Some(&meta));
        metas.push((meta, body));
    }
    drop((_folder, shard));
    let (_folder, shard) = open(&path).unwrap();
    for (meta, body) in metas {
        assert_eq!(shard.snapshots.latest(meta.group).unwrap().as_ref(), Some(&meta));
        assert!(read(&shard.snapshots, &meta) == body);
        let past = shard.snapshots.read_chunk(&meta, meta.chunks).unwrap_err();
        assert!(matches!(past, SnapshotError::NoSuchChunk { .. }), "{past}");
    }
}

#[test]
fn an_interrupted_one_goes_on_where_it_stopped() {
    let temporary = tempfile::tempdir().unwrap();
    let path = temporary.path().join("node");
    let body = body(1, 20 * SNAPSHOT_CHUNK_BYTES + 5);
    let mut position = 0;
    for stop in 0..=20 {
        let (_folder, shard) = open(&path).unwrap();
        let mut writer = shard.snapshots.begin(GROUP, head(9)).unwrap();
        assert_eq!(writer.position(), position);
        assert_eq!(u64::from(writer.next_chunk()), stop);
        let to = (position as usize + SNAPSHOT_CHUNK_BYTES + 3).min(body.len());
        writer.write(&body[position as usize..to]).unwrap();
        if stop == 20 {
            writer.publish().unwrap();
        } else {
            writer.flush().unwrap();
            assert_eq!(shard.snapshots.latest(GROUP).unwrap(), None);
            // What was not flushed is gone.
            position += SNAPSHOT_CHUNK_BYTES as u64;
        }
    }
    let (_folder, shard) = open(&path).unwrap();
    let meta = shard.snapshots.latest(GROUP).unwrap().unwrap();
    assert!(read(&shard.snapshots, &meta) == body);
    assert_eq!(shard.snapshots.staged(GROUP).unwrap(), None);
}

#[test]
fn another_head_begins_anew_and_the_older_writer_is_told() {
    let temporary = tempfile::tempdir().unwrap();
    let (_folder, shard) = open(&temporary.path().join("node")).unwrap();
    let store = &shard.snapshots;
    let old = write(store, GROUP, 1, &body(1, 300_000));
    let mut slow = store.begin(GROUP, head(2)).unwrap();
    slow.write(&body(2, 600_000)).unwrap();
    slow.flush().unwrap();
    let mut quick = store.begin(GROUP, head(3)).unwrap();
    assert_eq!(quick.position(), 0);
    slow.write(&body(2, 600_000)).unwrap();
    let late = slow.flush().unwrap_err();
    assert!(matches!(late, SnapshotError::Replaced { group: GROUP, index: Index(2) }), "{late}");
    assert!(matches!(slow.publish().unwrap_err(), SnapshotError::Replaced { .. }));
    let newest = body(3, 400_000);
    quick.write(&newest).unwrap();
    // The one before is there until the moment of publishing.
    let mut reader = store.reader(old);
    let mut first = [0; 1000];
    reader.read_exact(&mut first).unwrap();
    let meta = quick.publish().unwrap();
    let mut rest = Vec::new();
    let error = reader.read_to_end(&mut rest).unwrap_err();
    let error = error.get_ref().unwrap().downcast_ref().unwrap();
    assert!(matches!(error, SnapshotError::Replaced { group: GROUP, index: Index(1) }), "{error}");
    assert!(read(store, &meta) == newest);
    // Dropped, and gone.
    let mut writer = store.begin(GROUP, head(4)).unwrap();
    writer.write(&body(4, 300_000)).unwrap();
    writer.abort().unwrap();
    assert_eq!(store.staged(GROUP).unwrap(), None);
    assert_eq!(store.latest(GROUP).unwrap(), Some(meta));
    store.remove(GROUP, true).unwrap();
    assert_eq!(store.latest(GROUP).unwrap(), None);
}

#[test]
fn what_nobody_needs_is_collected_also_after_a_crash() {
    let temporary = tempfile::tempdir().unwrap();
    let path = temporary.path().join("node");
    let kept = body(3, 3 * SNAPSHOT_CHUNK_BYTES);
    let (folder, shard) = open(&path).unwrap();
    write(&shard.snapshots, GROUP, 1, &body(1, 4 * SNAPSHOT_CHUNK_BYTES));
    write(&shard.snapshots, GROUP, 2, &body(2, 5 * SNAPSHOT_CHUNK_BYTES));
    let first = shard.snapshots.collect(1).unwrap();
    assert_eq!((first.rows, first.is_more), (1, true));
    let mut dropped = shard.snapshots.begin(GROUP, head(3)).unwrap();
    dropped.write(&body(9, 2 * SNAPSHOT_CHUNK_BYTES)).unwrap();
    dropped.flush().unwrap();
    write(&shard.snapshots, GROUP, 4, &kept);
    drop((folder, shard, dropped));
    assert_eq!(stored_rows(&path), 3 + 5 + 2 + 3);
    let (folder, shard) = open(&path).unwrap();
    let mut rows = 0;
    loop {
        let report = shard.snapshots.collect(600_000).unwrap();
        assert!(report.rows <= 3);
        rows += report.rows;
        if !report.is_more {
            break;
        }
    }
    assert_eq!(rows, 10);
    let meta = shard.snapshots.latest(GROUP).unwrap().unwrap();
    assert!(read(&shard.snapshots, &meta) == kept);
    drop((folder, shard));
    assert_eq!(stored_rows(&path), 3);
}

#[test]
fn damage_is_named() {
    let temporary = tempfile::tempdir().unwrap();
    let path = temporary.path().join("node");
    let whole = body(1, 3 * SNAPSHOT_CHUNK_BYTES);
    let (folder, shard) = open(&path).unwrap();
    let meta = write(&shard.snapshots, GROUP, 6, &whole);
    drop((folder, shard));
    let edit = |change: &dyn Fn(&redb::WriteTransaction)| {
        let db = Database::open(path.join("shard-0/log.redb")).unwrap();
        let transaction = db.begin_write().unwrap();
        change(&transaction);
        transaction.commit().unwrap();
    };
    let key = (meta.number, 1, 0);
    let original = std::cell::RefCell::new(Vec::new());
    edit(&|transaction| {
        let table = transaction.open_table(CHUNKS).unwrap();
        original.replace(table.get(key).unwrap().unwrap().value().to_vec());
    });
    for at in (0..64).chain([64, 5000, original.borrow().len() - 1]) {
        edit(&|transaction| {
            let mut row = original.borrow().clone();
            row[at] ^= 4;
            transaction.open_table(CHUNKS).unwrap().insert(key, row.as_slice()).unwrap();
        });
        let (_folder, mut shard) = open(&path).unwrap();
        let scrubbed = shard.scrubber.step(u64::MAX).unwrap();
        let is_it = |damage: &Damage| damage.place == DamagePlace::Snapshot { group: GROUP };
        assert!(scrubbed.is_round_done && scrubbed.damage.iter().all(is_it) && scrubbed.damage.len() == 1);
        assert!(shard.snapshots.read_chunk(&meta, 0).is_ok());
        let error = shard.snapshots.read_chunk(&meta, 1).unwrap_err();
        let is_named = matches!(error, SnapshotError::Damaged { group: GROUP, index: Index(6), chunk: 1 });
        assert!(is_named, "byte {at}: {error}");
    }
    // A chunk of another place is not taken for this one.
    edit(&|transaction| {
        let mut table = transaction.open_table(CHUNKS).unwrap();
        let other = table.get((meta.number, 2, 0)).unwrap().unwrap().value().to_vec();
        table.insert(key, other.as_slice()).unwrap();
    });
    assert!(open(&path).unwrap().1.snapshots.read_chunk(&meta, 1).is_err());
    edit(&|transaction| drop(transaction.open_table(CHUNKS).unwrap().remove(key).unwrap()));
    assert!(open(&path).unwrap().1.snapshots.read_chunk(&meta, 1).is_err());
    edit(&|transaction| {
        let mut table = transaction.open_table(PUBLISHED).unwrap();
        let mut row = table.get(GROUP.0).unwrap().unwrap().value().to_vec();
        row[20] ^= 1;
        table.insert(GROUP.0, row.as_slice()).unwrap();
    });
    let (_folder, shard) = open(&path).unwrap();
    let error = shard.snapshots.latest(GROUP).unwrap_err();
    assert!(matches!(error, SnapshotError::DamagedHead { group: GROUP }), "{error}");
    // A new one mends it.
    write(&shard.snapshots, GROUP, 7, &whole);
    assert_eq!(shard.snapshots.latest(GROUP).unwrap().unwrap().head.index, Index(7));
}

/// The process ended after a replica had left, and before its snapshots were gone.
#[test]
fn a_start_drops_what_is_left_of_a_replica_that_left() {
    let temporary = tempfile::tempdir().unwrap();
    let path = temporary.path().join("node");
    let other = GroupId(8);
    let (folder, mut shard) = open(&path).unwrap();
    let here = |group: u64| GroupAppend {
        conf_state: Some(conf_state(&[1, 2, 3])),
        hard_state: Some(hard_state(2, 0)),
        ..entries_only(group, vec![])
    };
    shard.writer.run_once(&[append(1, vec![here(GROUP.0), here(other.0)])]).unwrap();
    for group in [GROUP, other] {
        write(&shard.snapshots, group, 5, &body(1, 2 * SNAPSHOT_CHUNK_BYTES));
        shard.snapshots.begin(group, head(6)).unwrap();
    }
    let left = GroupAppend {
        change: Some(LogChange::Remove),
        conf_state: Some(ConfState::default()),
        hard_state: Some(hard_state(3, 0)),
        ..entries_only(GROUP.0, vec![])
    };
    shard.writer.run_once(&[append(2, vec![left])]).unwrap();
    drop((folder, shard));
    let (folder, shard) = open(&path).unwrap();
    let found: Vec<(GroupId, bool, bool)> =
        shard.groups.iter().map(|state| (state.group, state.has_left(), state.snapshot.is_some())).collect();
    assert_eq!(found, [(GROUP, true, false), (other, false, true)]);
    assert_eq!(shard.snapshots.latest(GROUP).unwrap(), None);
    assert_eq!(shard.snapshots.staged(GROUP).unwrap(), None);
    assert!(
        shard.snapshots.latest(other).unwrap().is_some() && shard.snapshots.staged(other).unwrap().is_some()
    );
    while shard.snapshots.collect(u64::MAX).unwrap().is_more {}
    drop((folder, shard));
    assert_eq!(stored_rows(&path), 2, "the chunks of the other one");
}

/// Killed at every write and every sync while one snapshot takes another's place.
#[test]
fn a_crash_at_any_point_leaves_the_one_before_or_the_new_one() {
    let path = Path::new("/node");
    let disk = FaultDisk::default();
    let mut folder = DataFolder::open_on(path, IDENTITY, Arc::new(disk.clone())).unwrap();
    let shard = folder.open_shard(ShardId(0), OPTIONS).unwrap();
    let bodies = [body(1, 300_000), body(2, 18 * SNAPSHOT_CHUNK_BYTES + 9)];
    write(&shard.snapshots, GROUP, 1, &bodies[0]);
    let start = disk.files();
    drop(disk.take_events());
    write(&shard.snapshots, GROUP, 2, &bodies[1]);
    while shard.snapshots.collect(1 << 20).unwrap().is_more {}
    drop((folder, shard));
    let events = disk.take_events();
    let mut files: Files = start;
    let (mut seen, mut resumed) = (Vec::new(), 0);
    for at in 0..=events.len() {
        let mut folder =
            DataFolder::open_on(path, IDENTITY, Arc::new(FaultDisk::with(files.clone(), 0))).unwrap();
        let shard: OpenShard = folder.open_shard(ShardId(0), OPTIONS).unwrap();
        let meta = shard.snapshots.latest(GROUP).unwrap().unwrap();
        let index = meta.head.index.0;
        assert!(read(&shard.snapshots, &meta) == bodies[index as usize - 1], "after {at} changes");
        assert!(seen.last().is_none_or(|last| *last <= index));
        seen.push(index);
        if index == 1 {
            // What is staged is sound as far as it goes: the rest makes it whole.
            let mut writer = shard.snapshots.begin(GROUP, head(2)).unwrap();
            resumed += usize::from(writer.position() > 0);
            writer.write(&bodies[1][writer.position() as usize..]).unwrap();
            let meta = writer.publish().unwrap();
            assert!(read(&shard.snapshots, &meta) == bodies[1], "gone on with after {at} changes");
        }
        while shard.snapshots.collect(u64::MAX).unwrap().is_more {}
        if let Some(event) = events.get(at) {
            event.apply(&mut files);
        }
    }
    assert!(seen.contains(&1) && seen.contains(&2) && resumed > 0);
}

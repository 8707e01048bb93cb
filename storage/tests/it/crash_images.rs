//! Crashes: every write and every sync of random workloads is recorded, and what a disk may hold after
//! a kill or a power cut at each of those points is opened again and held against what was
//! acknowledged. Some images go on with new flushes and are cut off once more.
//!
//! Fault budget: writes of a file before its last sync are all there; of those after it any part, in
//! any order, torn between sectors. `CRASH_WORKLOADS=n` runs so many; `CRASH_SEED=n` one of them alone.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use iroh_raft_core::{GroupId, Index, Offset, ShardId, Term};
use iroh_raft_storage::fault::{Event, FaultDisk, Files, after_power_cut};
use iroh_raft_storage::snapshot::SNAPSHOT_CHUNK_BYTES;
use iroh_raft_storage::{DataFolder, OpenShard, SnapshotHead};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use crate::common::*;
use crate::model::{ChangePlan, PartPlan, make_batch};

const FOLDER: &str = "/node";
const WORKLOADS: u64 = 20;
/// Marks among the events: a batch was begun, acknowledged; a snapshot was begun, published.
const BEGUN: u64 = 1 << 32;
const ACKNOWLEDGED: u64 = 2 << 32;
const SNAPSHOT_BEGUN: u64 = 3 << 32;
const SNAPSHOT_PUBLISHED: u64 = 4 << 32;

/// Snapshots of longer workloads have numbers from here on, and three chunks.
const LARGE_SNAPSHOTS: u64 = 100;
/// One workload in so many is longer: more void blocks than are removed together, large snapshots.
const LONG_EVERY: u64 = 8;
/// Void blocks that the writer removes together.
const VOID_BLOCKS: usize = 64;
/// Of a longer workload, one event in so many gets its images.
const LONG_SHARE: u32 = 8;
/// One image in so many goes on and is cut off once more.
const GO_ON_SHARE: u32 = 3;

struct Recording {
    before: Files,
    events: Vec<Event>,
    /// By number of the last flush.
    models: BTreeMap<u64, Model>,
}

fn open_on(disk: &FaultDisk) -> (DataFolder, OpenShard) {
    let mut folder = DataFolder::open_on(FOLDER, IDENTITY, Arc::new(disk.clone())).unwrap();
    let shard = folder.open_shard(ShardId(0), OPTIONS).unwrap();
    (folder, shard)
}

/// Void blocks wait for each other only if they are small.
fn plan(random: &mut SmallRng, is_small: bool) -> PartPlan {
    let entries = (0..random.random_range(0..4)).map(|_| match random.random_range(0..12) {
        0 => None,
        1 if !is_small => Some(200),
        _ => Some(random.random_range(0..4)),
    });
    let entries = entries.collect();
    let change = match random.random_range(0..30) {
        0..4 => Some(ChangePlan::Compact(random.random_range(0..6))),
        4 => Some(ChangePlan::StartAfter(random.random_range(1..5))),
        5 => Some(ChangePlan::Remove),
        _ => None,
    };
    PartPlan {
        group: random.random_range(1..4),
        back: if random.random_bool(0.4) { random.random_range(1..8) } else { 0 },
        entries,
        commit: random.random_bool(0.6).then(|| random.random_range(0..6)),
        has_conf_state: random.random_bool(0.1),
        has_meta: random.random_bool(0.3),
        change,
    }
}

/// Random flushes that continue the newest model, acknowledged.
fn flush(
    disk: &FaultDisk,
    shard: &mut OpenShard,
    models: &mut BTreeMap<u64, Model>,
    random: &mut SmallRng,
    is_small: bool,
) {
    let mut model = models.last_key_value().unwrap().1.clone();
    let flushes: Vec<Vec<_>> = (0..random.random_range(1..3))
        .map(|_| (0..random.random_range(0..4)).map(|_| plan(random, is_small)).collect())
        .collect();
    let mut batch = Vec::new();
    for flush in flushes {
        batch.extend(make_batch(&mut model, &[flush]));
        models.insert(model.last_seq, model.clone());
    }
    disk.note(BEGUN + model.last_seq);
    shard.writer.run_once(&batch).unwrap();
    disk.note(ACKNOWLEDGED + model.last_seq);
}

fn record(random: &mut SmallRng, is_long: bool) -> Recording {
    let disk = FaultDisk::default();
    let (mut folder, mut shard) = open_on(&disk);
    drop(disk.take_events());
    let before = disk.files();
    let mut models = BTreeMap::from([(0, Model::default())]);
    let mut snapshot = if is_long { LARGE_SNAPSHOTS } else { 0 };
    let mut moved = 0;
    let steps = if is_long { 170 } else { random.random_range(3..12) };
    for _ in 0..steps {
        match random.random_range(0..20) {
            // A stop in order shrinks the file; what is torn after the next start must not need the rest.
            // It also makes the writer forget its void blocks.
            0..2 if !is_long => {
                drop((folder, shard));
                (folder, shard) = open_on(&disk);
            }
            2..8 => moved += shard.mover.run_once().unwrap().blocks,
            8 => drop(shard.mover.compact().unwrap()),
            9 if !is_long || random.random_bool(0.2) => {
                snapshot += 1;
                disk.note(SNAPSHOT_BEGUN + snapshot);
                write_snapshot(&shard, snapshot);
                disk.note(SNAPSHOT_PUBLISHED + snapshot);
                shard.snapshots.collect(1).unwrap();
            }
            _ => flush(&disk, &mut shard, &mut models, random, is_long),
        }
    }
    assert!(!is_long || moved > VOID_BLOCKS, "a longer workload makes more than {moved} blocks void");
    drop((folder, shard));
    Recording { before, events: disk.take_events(), models }
}

fn snapshot_head(number: u64) -> SnapshotHead {
    SnapshotHead {
        index: Index(number),
        term: Term(1),
        offset: Offset(number),
        conf_state: conf_state(&[number]),
        table: Default::default(),
    }
}

fn snapshot_body(number: u64) -> Vec<u8> {
    let large = if number > LARGE_SNAPSHOTS { 2 * SNAPSHOT_CHUNK_BYTES } else { 0 };
    (0..large + 3000 + number as usize).map(|at| (at as u64 / 1000 + number) as u8).collect()
}

fn write_snapshot(shard: &OpenShard, number: u64) {
    let mut writer = shard.snapshots.begin(GroupId(1), snapshot_head(number)).unwrap();
    writer.write(&snapshot_body(number)).unwrap();
    writer.publish().unwrap();
}

fn last_note(events: &[Event], kind: u64) -> u64 {
    let note = |event: &Event| match event {
        Event::Note(note) if *note & !u64::from(u32::MAX) == kind => Some(note - kind),
        _ => None,
    };
    events.iter().rev().find_map(note).unwrap_or(0)
}

/// An image that was opened.
struct Reopened {
    disk: FaultDisk,
    folder: DataFolder,
    shard: OpenShard,
    /// Its newest flush and snapshot.
    found: u64,
    snapshot: u64,
}

/// Opens an image and holds it against the models that are possible at that point.
fn reopen(image: Files, recording: &Recording, end: usize, at: &str) -> Reopened {
    let events = &recording.events[..end];
    let (acknowledged, begun) = (last_note(events, ACKNOWLEDGED), last_note(events, BEGUN));
    let disk = FaultDisk::with(image, 0);
    let mut folder = DataFolder::open_on(FOLDER, IDENTITY, Arc::new(disk.clone())).unwrap();
    let shard = folder.open_shard(ShardId(0), OPTIONS);
    let shard = shard.unwrap_or_else(|error| panic!("{at}: {error}"));
    let found = shard.last_seq.0;
    // A commit is found whole or not at all: nothing between the acknowledged and the begun one.
    assert!(found == acknowledged || found == begun, "{at}: {found} of {acknowledged}..{begun}");
    // Shown if anything below fails.
    println!("{at}");
    recording.models[&found].check(&shard);
    let (published, staged) = (last_note(events, SNAPSHOT_PUBLISHED), last_note(events, SNAPSHOT_BEGUN));
    let meta = shard.snapshots.latest(GroupId(1)).unwrap();
    let snapshot = meta.as_ref().map_or(0, |meta| meta.head.index.0);
    // A start drops those of a replica that has left: the one that the recording began with, or this one.
    let starts = [recording.models.values().next(), recording.models.get(&found)];
    let mut groups = starts.into_iter().flatten().filter_map(|model| model.groups.get(&GroupId(1)));
    let is_dropped = snapshot == 0 && groups.any(ModelGroup::has_left);
    assert!(
        snapshot == published || snapshot == staged || is_dropped,
        "{at}: snapshot {snapshot} of {published}..{staged}"
    );
    if let Some(meta) = meta {
        assert_eq!(&meta.head, &snapshot_head(snapshot));
        let mut read = Vec::new();
        shard.snapshots.reader(meta).read_to_end(&mut read).unwrap();
        assert!(read == snapshot_body(snapshot), "{at}: body of snapshot {snapshot}");
    }
    Reopened { disk, folder, shard, found, snapshot }
}

/// Everything moves, and nothing of it is damaged.
fn move_and_scrub(shard: &mut OpenShard, model: &Model, at: &str) {
    while shard.mover.run_once().unwrap().blocks > 0 {}
    let scrubbed = shard.scrubber.step(u64::MAX).unwrap();
    assert!(scrubbed.damage.is_empty() && scrubbed.is_round_done, "{at}: {scrubbed:?}");
    model.check(shard);
}

/// Opens an image, and some of them goes on from there and cuts the power once more. Returns the number of
/// images.
fn check(image: Files, recording: &Recording, end: usize, at: &str, random: &mut SmallRng) -> u64 {
    if !random.random_ratio(1, GO_ON_SHARE) {
        let Reopened { mut shard, found, folder: _folder, .. } = reopen(image, recording, end, at);
        move_and_scrub(&mut shard, &recording.models[&found], at);
        return 1;
    }
    let opened = reopen(image.clone(), recording, end, at);
    let Reopened { disk, folder, mut shard, found, snapshot } = opened;
    let mut models = BTreeMap::from([(found, recording.models[&found].clone())]);
    let is_moved_first = random.random_bool(0.5);
    if is_moved_first {
        move_and_scrub(&mut shard, &models[&found], at);
    }
    for _ in 0..random.random_range(1..3) {
        flush(&disk, &mut shard, &mut models, random, false);
        check_running(&shard, &models);
    }
    if !is_moved_first {
        while shard.mover.run_once().unwrap().blocks > 0 {}
        check_running(&shard, &models);
    }
    drop((folder, shard));
    // What is known from before stands before everything.
    let known =
        [ACKNOWLEDGED + found, BEGUN + found, SNAPSHOT_PUBLISHED + snapshot, SNAPSHOT_BEGUN + snapshot];
    let mut events: Vec<_> = known.map(Event::Note).into();
    let known = events.len();
    events.extend(disk.take_events());
    let again = Recording { before: image, events, models };
    let end = random.random_range(known..=again.events.len());
    let image = after_power_cut(&again.before, &again.events[..end], random.random());
    let at = format!("{at}; power cut again after event {}", end - known);
    let Reopened { mut shard, found, folder: _folder, .. } = reopen(image, &again, end, &at);
    move_and_scrub(&mut shard, &again.models[&found], &at);
    2
}

/// Holds what is read while the shard runs against the newest model.
fn check_running(shard: &OpenShard, models: &BTreeMap<u64, Model>) {
    let (last, model) = models.last_key_value().unwrap();
    assert_eq!(shard.writer.last_seq().0, *last);
    model.groups.keys().for_each(|group| model.check_reads(&shard.reader, *group));
}

/// Returns the number of images.
fn run_workload(seed: u64) -> u64 {
    let mut random = SmallRng::seed_from_u64(seed);
    let is_long = seed % LONG_EVERY == LONG_EVERY - 1;
    let recording = record(&mut random, is_long);
    let mut killed = recording.before.clone();
    let count = recording.events.len();
    let mut images = 0;
    for end in 0..=count {
        let done = &recording.events[..end];
        if let Some(event) = done.last() {
            event.apply(&mut killed);
            // A mark of ours changes nothing.
            if matches!(event, Event::Note(_)) {
                continue;
            }
        }
        if is_long && !random.random_ratio(1, LONG_SHARE) {
            continue;
        }
        let at = format!("CRASH_SEED={seed}, killed after event {end} of {count}");
        images += check(killed.clone(), &recording, end, &at, &mut random);
        let image = after_power_cut(&recording.before, done, random.random());
        let at = format!("CRASH_SEED={seed}, power cut after event {end} of {count}");
        images += check(image, &recording, end, &at, &mut random);
    }
    images
}

#[test]
fn no_crash_loses_what_was_acknowledged() {
    assert!(Path::new(FOLDER).is_absolute());
    if let Ok(seed) = std::env::var("CRASH_SEED") {
        run_workload(seed.parse().expect("CRASH_SEED is a number"));
        return;
    }
    let workloads = std::env::var("CRASH_WORKLOADS")
        .map_or(WORKLOADS, |count| count.parse().expect("CRASH_WORKLOADS is a number"));
    let (next, images) = (AtomicU64::new(0), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while let Some(seed) =
                    Some(next.fetch_add(1, Ordering::Relaxed)).filter(|seed| *seed < workloads)
                {
                    images.fetch_add(run_workload(seed), Ordering::Relaxed);
                }
            });
        }
    });
    eprintln!("{workloads} workloads, {} crash images, 0 violations", images.into_inner());
}

//! Crashes: every write and every sync of random workloads is recorded, and what a disk may hold after
//! a kill or a power cut at each of those points is opened again and held against what was
//! acknowledged.
//!
//! Fault budget: writes of a file before its last sync are all there; of those after it any part, in
//! any order, torn between sectors. `CRASH_WORKLOADS=n` runs so many; `CRASH_SEED=n` one of them alone.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use iroh_raft_core::{GroupId, Index, Offset, ShardId, Term};
use iroh_raft_storage::fault::{Event, FaultDisk, Files, after_power_cut};
use iroh_raft_storage::{DataFolder, OpenShard, SnapshotHead};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use crate::common::*;
use crate::model::{ChangePlan, PartPlan, make_batch};

const FOLDER: &str = "/node";
const WORKLOADS: u64 = 60;
/// Marks among the events: a batch was begun, acknowledged; a snapshot was begun, published.
const BEGUN: u64 = 1 << 32;
const ACKNOWLEDGED: u64 = 2 << 32;
const SNAPSHOT_BEGUN: u64 = 3 << 32;
const SNAPSHOT_PUBLISHED: u64 = 4 << 32;

struct Recording {
    before: Files,
    events: Vec<Event>,
    /// By number of the last flush.
    models: Vec<Model>,
}

fn open_on(disk: &FaultDisk) -> (DataFolder, OpenShard) {
    let mut folder = DataFolder::open_on(FOLDER, IDENTITY, Arc::new(disk.clone())).unwrap();
    let shard = folder.open_shard(ShardId(0), OPTIONS).unwrap();
    (folder, shard)
}

fn plan(random: &mut SmallRng) -> PartPlan {
    let entries = (0..random.random_range(0..4)).map(|_| match random.random_range(0..12) {
        0 => None,
        1 => Some(200),
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
        change,
    }
}

fn record(random: &mut SmallRng) -> Recording {
    let disk = FaultDisk::default();
    let (mut folder, mut shard) = open_on(&disk);
    drop(disk.take_events());
    let before = disk.files();
    let mut models = vec![Model::default()];
    let mut snapshot = 0;
    for _ in 0..random.random_range(3..12) {
        match random.random_range(0..20) {
            // A stop in order shrinks the file; what is torn after the next start must not need the rest.
            0..2 => {
                drop((folder, shard));
                (folder, shard) = open_on(&disk);
            }
            2..8 => drop(shard.mover.run_once().unwrap()),
            8 => drop(shard.mover.compact().unwrap()),
            9 => {
                snapshot += 1;
                disk.note(SNAPSHOT_BEGUN + snapshot);
                write_snapshot(&shard, snapshot);
                disk.note(SNAPSHOT_PUBLISHED + snapshot);
                shard.snapshots.collect(1).unwrap();
            }
            _ => {
                let mut model = models.last().unwrap().clone();
                let flushes: Vec<Vec<_>> = (0..random.random_range(1..3))
                    .map(|_| (0..random.random_range(0..4)).map(|_| plan(random)).collect())
                    .collect();
                let mut batch = Vec::new();
                for flush in flushes {
                    batch.extend(make_batch(&mut model, &[flush]));
                    models.push(model.clone());
                }
                disk.note(BEGUN + model.last_seq);
                shard.writer.run_once(&batch).unwrap();
                disk.note(ACKNOWLEDGED + model.last_seq);
            }
        }
    }
    drop((folder, shard));
    Recording { before, events: disk.take_events(), models }
}

fn snapshot_head(number: u64) -> SnapshotHead {
    SnapshotHead {
        index: Index(number),
        term: Term(1),
        offset: Offset(number),
        conf_state: conf_state(&[number]),
    }
}

fn snapshot_body(number: u64) -> Vec<u8> {
    vec![number as u8; 3000 + number as usize]
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

/// Opens an image and holds it against the models that are possible at that point.
fn check(image: Files, recording: &Recording, end: usize, at: &str) {
    let events = &recording.events[..end];
    let (acknowledged, begun) = (last_note(events, ACKNOWLEDGED), last_note(events, BEGUN));
    let disk = FaultDisk::with(image, 0);
    let mut folder = DataFolder::open_on(FOLDER, IDENTITY, Arc::new(disk)).unwrap();
    let shard = folder.open_shard(ShardId(0), OPTIONS);
    let mut shard = shard.unwrap_or_else(|error| panic!("{at}: {error}"));
    let found = shard.last_seq.0;
    // A commit is found whole or not at all: nothing between the acknowledged and the begun one.
    assert!(found == acknowledged || found == begun, "{at}: {found} of {acknowledged}..{begun}");
    // Shown if anything below fails.
    println!("{at}");
    recording.models[found as usize].check(&shard);
    let (published, staged) = (last_note(events, SNAPSHOT_PUBLISHED), last_note(events, SNAPSHOT_BEGUN));
    let snapshot = shard.snapshots.latest(GroupId(1)).unwrap();
    let number = snapshot.as_ref().map_or(0, |meta| meta.head.index.0);
    assert!(number == published || number == staged, "{at}: snapshot {number} of {published}..{staged}");
    if let Some(meta) = snapshot {
        assert_eq!(&meta.head, &snapshot_head(number));
        let read = shard.snapshots.read_chunk(&meta, 0).unwrap();
        assert!(read[..] == snapshot_body(number), "{at}: body of snapshot {number}");
    }
    // It goes on from there: everything moves, and nothing of it is damaged.
    while shard.mover.run_once().unwrap().blocks > 0 {}
    let scrubbed = shard.scrubber.step(u64::MAX).unwrap();
    assert!(scrubbed.damage.is_empty() && scrubbed.is_round_done, "{at}: {scrubbed:?}");
    recording.models[found as usize].check(&shard);
}

/// Returns the number of images.
fn run_workload(seed: u64) -> u64 {
    let mut random = SmallRng::seed_from_u64(seed);
    let recording = record(&mut random);
    let mut killed = recording.before.clone();
    let count = recording.events.len();
    for end in 0..=count {
        let done = &recording.events[..end];
        if let Some(event) = done.last() {
            event.apply(&mut killed);
            // A mark of ours changes nothing.
            if matches!(event, Event::Note(_)) {
                continue;
            }
        }
        check(
            killed.clone(),
            &recording,
            end,
            &format!("CRASH_SEED={seed}, killed after event {end} of {count}"),
        );
        let image = after_power_cut(&recording.before, done, random.random());
        check(image, &recording, end, &format!("CRASH_SEED={seed}, power cut after event {end} of {count}"));
    }
    2 * count as u64
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

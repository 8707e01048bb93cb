//! Power cuts: every write and every sync of a workload is recorded, and what a disk may hold after
//! a cut at each of those points is opened again and held against what was acknowledged.
//!
//! Zone and fault budget: writes of a file before its last sync are all there; of those after it any
//! subset, any of them torn between sectors. Seeds: `CRASH_SEED=n` runs one workload alone.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use iroh_raft_core::ShardId;
use iroh_raft_storage::DataFolder;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use crate::common::*;
use crate::memory_disk::{Event, Files, MemoryDisk, apply};

const SECTOR_BYTES: usize = 512;
const WORKLOADS: u64 = 12;

/// Models by the number of flushes that were handed to the writer.
type Models = Vec<Model>;

/// Runs some commits and a stop in order; returns what the disk held before, what was done to it,
/// and what the log must hold after each flush.
fn record(path: &Path, rng: &mut SmallRng) -> (Files, Vec<Event>, Models) {
    let disk = MemoryDisk::default();
    let mut folder = DataFolder::open_on(path, IDENTITY, Arc::new(disk.clone())).unwrap();
    let mut shard = folder.open_shard(ShardId(0), OPTIONS).unwrap();
    let before = {
        let mut state = disk.state();
        state.events.clear();
        state.files.clone()
    };
    let mut models = vec![Model::default()];
    for _ in 0..rng.random_range(2..8) {
        // A stop in order shrinks the file; what is torn after the next start must not need the rest.
        if rng.random_bool(0.3) {
            drop((folder, shard));
            folder = DataFolder::open_on(path, IDENTITY, Arc::new(disk.clone())).unwrap();
            shard = folder.open_shard(ShardId(0), OPTIONS).unwrap();
        }
        let mut model = models.last().unwrap().clone();
        let batch: Vec<_> = (0..rng.random_range(1..3))
            .map(|_| {
                let append = random_append(&model, rng);
                model.take(&append);
                models.push(model.clone());
                append
            })
            .collect();
        disk.record(Event::Begun(model.last_seq));
        shard.writer.run_once(&batch).unwrap();
        disk.record(Event::Acknowledged(model.last_seq));
    }
    drop((folder, shard));
    let events = std::mem::take(&mut disk.state().events);
    (before, events, models)
}

fn random_append(model: &Model, rng: &mut SmallRng) -> iroh_raft_core::Append {
    let seq = model.last_seq + 1;
    let parts = (1..=rng.random_range(1..4_u64)).map(|group| {
        let id = iroh_raft_core::GroupId(group);
        let known = model.groups.get(&id).cloned().unwrap_or_default();
        let kept = known.last().saturating_sub(rng.random_range(0..4_u64).saturating_sub(1));
        let mut offset = known.offset_at(kept + 1);
        let entries = (kept + 1..kept + 1 + rng.random_range(0..4)).map(|index| {
            let records = rng.random_range(0..40);
            let entry = entry(index, seq, offset, records);
            offset += records;
            entry
        });
        let mut part = entries_only(group, entries.collect());
        part.hard_state = rng.random_bool(0.5).then(|| hard_state(seq, kept));
        part
    });
    append(seq, parts.collect())
}

/// A disk after a power cut: what was synced, and some of what was not.
fn cut(before: &Files, events: &[Event], rng: &mut SmallRng) -> Files {
    let mut files = before.clone();
    let synced = |path: &Path| {
        events.iter().rposition(|event| matches!(event, Event::Sync(of) if of == path)).unwrap_or(0)
    };
    let ends: BTreeMap<_, _> = before.keys().map(|path| (path.clone(), synced(path))).collect();
    for (at, event) in events.iter().enumerate() {
        match event {
            Event::Write(path, ..) | Event::SetLen(path, _) if at < ends[path] => apply(&mut files, event),
            Event::Write(path, offset, data) if rng.random_bool(0.5) => {
                let from = rng.random_range(0..=data.len() / SECTOR_BYTES) * SECTOR_BYTES;
                let is_torn = rng.random_bool(0.3) && data.len() > SECTOR_BYTES;
                let part = if is_torn { &data[..from] } else { &data[..] };
                apply(&mut files, &Event::Write(path.clone(), *offset, part.to_vec()));
            }
            // A file that shrank or grew without a sync may have either length.
            Event::SetLen(..) if rng.random_bool(0.5) => apply(&mut files, event),
            _ => {}
        }
    }
    files
}

/// Opens an image and holds it against the models that are possible at that point.
fn check(path: &Path, image: Files, events: &[Event], models: &Models, at: &str) {
    let acknowledged = events.iter().rev().find_map(|event| match event {
        Event::Acknowledged(seq) => Some(*seq),
        _ => None,
    });
    let begun = events.iter().rev().find_map(|event| match event {
        Event::Begun(seq) => Some(*seq),
        _ => None,
    });
    let (acknowledged, begun) = (acknowledged.unwrap_or(0), begun.unwrap_or(0));
    let disk = Arc::new(MemoryDisk::with(image));
    let mut folder = DataFolder::open_on(path, IDENTITY, disk).unwrap();
    let shard = folder.open_shard(ShardId(0), OPTIONS);
    let shard = shard.unwrap_or_else(|error| panic!("{at}: {error}"));
    let found = shard.last_seq.0;
    // A commit is found whole or not at all: nothing between the acknowledged and the begun one.
    assert!(found == acknowledged || found == begun, "{at}: {found} of {acknowledged}..{begun}");
    models[found as usize].check(&shard);
}

fn run_workload(seed: u64) {
    let mut rng = SmallRng::seed_from_u64(seed);
    let temporary = tempfile::tempdir().unwrap();
    let path = temporary.path().join("node");
    let (before, events, models) = record(&path, &mut rng);
    let mut killed = before.clone();
    for end in 0..=events.len() {
        let done = &events[..end];
        if let Some(event) = done.last() {
            apply(&mut killed, event);
        }
        let at = format!("seed {seed}, killed after event {end} of {}", events.len());
        check(&path, killed.clone(), done, &models, &at);
        let at = format!("seed {seed}, power cut after event {end} of {}", events.len());
        check(&path, cut(&before, done, &mut rng), done, &models, &at);
    }
}

#[test]
fn no_crash_loses_what_was_acknowledged() {
    match std::env::var("CRASH_SEED") {
        Ok(seed) => run_workload(seed.parse().expect("CRASH_SEED is a number")),
        Err(_) => (0..WORKLOADS).for_each(run_workload),
    }
}

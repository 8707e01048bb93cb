//! Opening a shard again: with everything in the journal, and with everything but its end moved to
//! the log file; beside reading the journal's bytes from the page cache.
//!
//! The process is the same and the page cache warm; bench/compare measures a killed one and a cold
//! cache. Everything is read back after a first opening: its checksum is the hash at the end.

use std::fs;
use std::hint::black_box;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::{Criterion, SamplingMode, Throughput, criterion_group, criterion_main};
use iroh_raft_bench::load::{Load, Source};
use iroh_raft_bench::store::Store;
use iroh_raft_storage::{FileDisk, ShardOptions};
use tempfile::TempDir;

const LOAD: Load = Load::new(64, 1024, 64);
const FLUSHES: u64 = 400;

fn open(path: &Path) -> Store {
    Store::open(path, Arc::new(FileDisk), ShardOptions::default()).expect("a shard")
}

/// A log that was closed and opened once more, and found whole.
fn make(is_moved: bool, hash: &mut u32) -> TempDir {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder for the log");
    let mut source = Source::new(LOAD, 1);
    let mut store = open(folder.path());
    store.hold_moves(true);
    for _ in 0..FLUSHES {
        store.flush(source.next_flush()).expect("a flush");
    }
    if is_moved {
        store.drain().expect("moves");
    }
    drop(store);
    let sum = open(folder.path()).read_back(&source, 1..=FLUSHES).expect("what was written");
    *hash = crc32c::crc32c_append(*hash, &sum.to_le_bytes());
    folder
}

fn recovery(criterion: &mut Criterion) {
    let mut hash = 0;
    let mut group = criterion.benchmark_group("recovery");
    group
        .sampling_mode(SamplingMode::Flat)
        .sample_size(10)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(2));
    group.throughput(Throughput::Bytes(FLUSHES * LOAD.payload_bytes()));
    for (name, is_moved) in [("journal", false), ("moved", true)] {
        // Made by the first call: a run that picks one benchmark makes nothing for the others.
        let mut made = None;
        group.bench_function(name, |bencher| {
            let folder = made.get_or_insert_with(|| make(is_moved, &mut hash));
            bencher.iter_custom(|count| {
                let mut time = Duration::ZERO;
                for _ in 0..count {
                    let began = Instant::now();
                    let store = black_box(open(folder.path()));
                    time += began.elapsed();
                    assert_eq!(store.last_seq(), FLUSHES, "what was flushed is found");
                }
                time
            });
        });
    }
    let mut made = None;
    group.bench_function("journal_bare_read", |bencher| {
        let journal = made.get_or_insert_with(|| make(false, &mut hash)).path().join("shard-0/journal.redb");
        bencher.iter(|| black_box(fs::read(&journal).expect("the journal")));
    });
    group.finish();
    // Not on the standard output, where test runners expect the list of benchmarks.
    eprintln!("hash {hash:08x}");
}

criterion_group!(benches, recovery);
criterion_main!(benches);

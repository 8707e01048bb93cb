//! Reading 256 KiB of a group's entries, one stretch after the other: from the journal and from the
//! log file, beside reading as many bytes of a file. All from the page cache.
//!
//! Everything is read back and compared before: its checksum is the hash at the end.

use std::fs::{self, File};
use std::hint::black_box;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::Duration;

use criterion::{Criterion, SamplingMode, Throughput, criterion_group, criterion_main};
use iroh_raft_bench::load::{Load, Source};
use iroh_raft_bench::store::{Store, read};
use iroh_raft_storage::{FileDisk, ShardOptions};
use tempfile::TempDir;

const LOAD: Load = Load::new(8, 1024, 64);
const FLUSHES: u64 = 400;
const READ_BYTES: usize = 256 << 10;

fn folder() -> TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder")
}

fn make(is_moved: bool, hash: &mut u32) -> (Store, TempDir) {
    let folder = folder();
    let options = ShardOptions::default();
    let mut store = Store::open(folder.path(), Arc::new(FileDisk), options).expect("a shard");
    let mut source = Source::new(LOAD, 1);
    store.hold_moves(true);
    for _ in 0..FLUSHES {
        store.flush(source.next_flush()).expect("a flush");
    }
    if is_moved {
        store.drain().expect("moves");
    }
    let sum = store.read_back(&source, 1..=FLUSHES).expect("what was written");
    *hash = crc32c::crc32c_append(*hash, &sum.to_le_bytes());
    (store, folder)
}

fn reading(criterion: &mut Criterion) {
    let mut hash = 0;
    let mut group = criterion.benchmark_group("reading");
    group
        .sampling_mode(SamplingMode::Flat)
        .sample_size(10)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(2));
    group.throughput(Throughput::Bytes(READ_BYTES as u64));
    for (name, is_moved) in [("journal", false), ("log_file", true)] {
        // Made by the first call: a run that picks one benchmark makes nothing for the others.
        let mut made = None;
        let (mut at_group, mut at_index) = (1, 1);
        group.bench_function(name, |bencher| {
            let (store, _) = made.get_or_insert_with(|| make(is_moved, &mut hash));
            let reader = store.reader();
            bencher.iter(|| {
                let entries = read(&reader, at_group, at_index, FLUSHES, READ_BYTES).expect("entries");
                at_index += entries.len() as u64;
                if at_index > FLUSHES {
                    (at_group, at_index) = (at_group % LOAD.groups + 1, 1);
                }
                black_box(entries)
            });
        });
    }
    let mut made = None;
    let mut at = 0;
    group.bench_function("bare", |bencher| {
        let (file, _) = made.get_or_insert_with(|| {
            let folder = folder();
            let path = folder.path().join("bare");
            fs::write(&path, vec![0x5a; (FLUSHES * LOAD.payload_bytes()) as usize]).expect("a file");
            (File::open(&path).expect("the file"), folder)
        });
        bencher.iter(|| {
            let mut bytes = vec![0; READ_BYTES];
            file.read_exact_at(&mut bytes, at).expect("bytes of the file");
            at = (at + 2 * READ_BYTES as u64) % (FLUSHES * LOAD.payload_bytes() - READ_BYTES as u64);
            black_box(bytes)
        });
    });
    group.finish();
    // Not on the standard output, where test runners expect the list of benchmarks.
    eprintln!("hash {hash:08x}");
}

criterion_group!(benches, reading);
criterion_main!(benches);

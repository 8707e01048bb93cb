//! One flush: one record in each of 1 to 512 groups, beside a bare append of the same bytes with
//! fdatasync. The mover runs beside it, as in the engine.
//!
//! Before each measurement two flushes are written and read back; their checksums make the hash that
//! is printed at the end, the same for every run.

use std::sync::Arc;
use std::time::Duration;

use criterion::{Criterion, SamplingMode, Throughput, criterion_group, criterion_main};
use iroh_raft_bench::bare::{Bare, BareKind};
use iroh_raft_bench::load::{Load, Source};
use iroh_raft_bench::store::Store;
use iroh_raft_storage::{FileDisk, ShardOptions};
use tempfile::TempDir;

const SEED: u64 = 1;
/// What is older is compacted away, so that a long run does not fill the disk.
const RETENTION_BYTES: u64 = 256 << 20;

fn folder() -> TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder")
}

fn open(load: Load, hash: &mut u32) -> (Store, Source, TempDir) {
    let folder = folder();
    let options = ShardOptions::default();
    let mut store = Store::open(folder.path(), Arc::new(FileDisk), options).expect("a shard");
    let mut source = Source::new(load, SEED).with_retention(RETENTION_BYTES);
    for _ in 0..2 {
        store.flush(source.next_flush()).expect("a flush");
    }
    let sum = store.read_back(&source, 1..=2).expect("what was written");
    *hash = crc32c::crc32c_append(*hash, &sum.to_le_bytes());
    (store, source, folder)
}

fn flush(criterion: &mut Criterion) {
    let mut hash = 0;
    for (size, record_bytes) in [("64b", 64), ("1k", 1 << 10), ("64k", 64 << 10)] {
        let mut group = criterion.benchmark_group(format!("flush_{size}"));
        group
            .sampling_mode(SamplingMode::Flat)
            .sample_size(10)
            .warm_up_time(Duration::from_millis(300))
            .measurement_time(Duration::from_secs(1));
        for groups in [1, 8, 64, 512] {
            let load = Load::new(groups, groups, record_bytes);
            group.throughput(Throughput::Bytes(load.payload_bytes()));
            // Made by the first call: a run that picks one benchmark makes nothing for the others.
            let mut ours = None;
            group.bench_function(format!("{groups}_groups"), |bencher| {
                let (store, source, _) = ours.get_or_insert_with(|| open(load, &mut hash));
                bencher.iter_custom(|count| {
                    let flush = |_| {
                        let flushed = store.flush(source.next_flush()).expect("a flush");
                        flushed.waited + flushed.duration
                    };
                    (0..count).map(flush).sum()
                });
            });
            drop(ours);
            let mut bare = None;
            group.bench_function(format!("{groups}_groups_bare"), |bencher| {
                let (bare, _) = bare.get_or_insert_with(|| {
                    let folder = folder();
                    let bytes = load.entry_bytes() as usize;
                    let bare = Bare::create(&folder.path().join("bare"), BareKind::Append, bytes);
                    (bare.expect("a file"), folder)
                });
                bencher.iter_custom(|count| (0..count).map(|_| bare.flush().expect("a flush")).sum());
            });
        }
        group.finish();
    }
    // Not on the standard output, where test runners expect the list of benchmarks.
    eprintln!("hash {hash:08x}");
}

criterion_group!(benches, flush);
criterion_main!(benches);

//! What a flush costs, beside what the disk alone costs in the same run.
//!
//! `depth1`: one 64 B record a flush, against a bare append of 4 KiB with fdatasync. `burst`: 8,192
//! records of 64 B a flush, in one group and over 64. Compare within a run, never between runs.

use std::fs::File;
use std::hint::black_box;
use std::io::Write;
use std::time::{Duration, Instant};

use criterion::measurement::WallTime as Wall;
use criterion::{BenchmarkGroup, Criterion, SamplingMode, Throughput, criterion_group, criterion_main};
use iroh_raft_core::batch::{RecordBlock, encode_batch};
use iroh_raft_core::{
    Append, ClusterId, EntryKind, FlushSeq, GroupAppend, GroupId, Index, LogEntry, NodeId, Offset, ShardId,
    Term, WallTime,
};
use iroh_raft_storage::{DataFolder, FolderIdentity, ShardOptions};

const RECORD: [u8; 64] = [0x5a; 64];

/// One flush: an entry of `records` records in each of `groups` groups.
fn flush(seq: u64, groups: u64, records: u64) -> Append {
    let block = RecordBlock::from_records(&vec![RECORD; records as usize]);
    let part = |group| {
        let base = Offset((seq - 1) * records);
        let data = encode_batch(base, WallTime(0), std::iter::once(&block));
        let entry = LogEntry { index: Index(seq), term: Term(1), kind: EntryKind::Normal, data };
        GroupAppend {
            group: GroupId(group),
            change: None,
            hard_state: None,
            conf_state: None,
            entries: vec![entry],
        }
    };
    Append { seq: FlushSeq(seq), groups: (1..=groups).map(part).collect() }
}

/// Time of `count` flushes into a fresh journal, without the making of their entries.
fn journal(count: u64, groups: u64, records: u64) -> Duration {
    let temporary = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder for the journal");
    let identity = FolderIdentity { cluster: ClusterId([1; 16]), node: NodeId(1), shards: 1 };
    let mut folder = DataFolder::open(temporary.path(), identity).expect("a data folder");
    let mut shard = folder.open_shard(ShardId(0), ShardOptions::default()).expect("a shard");
    let mut total = Duration::ZERO;
    for seq in 1..=count {
        let append = flush(seq, groups, records / groups);
        let began = Instant::now();
        black_box(shard.writer.run_once(std::slice::from_ref(&append)).expect("a flush"));
        total += began.elapsed();
    }
    total
}

/// Time of `count` appends of `bytes` with fdatasync to a fresh file.
fn bare(count: u64, bytes: usize) -> Duration {
    let temporary = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder for the file");
    let mut file = File::create(temporary.path().join("bare")).expect("a file");
    let data = vec![0x5a; bytes];
    let began = Instant::now();
    for _ in 0..count {
        file.write_all(&data).expect("a write");
        file.sync_data().expect("a sync");
    }
    began.elapsed()
}

fn settings(group: &mut BenchmarkGroup<'_, Wall>) {
    group
        .sampling_mode(SamplingMode::Flat)
        .sample_size(20)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(3));
}

fn depth1(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("depth1");
    settings(&mut group);
    group.bench_function("bare_4k", |bencher| bencher.iter_custom(|count| bare(count, 4096)));
    group.bench_function("journal_64b", |bencher| bencher.iter_custom(|count| journal(count, 1, 1)));
    group.bench_function("journal_64b_64_groups", |bencher| {
        bencher.iter_custom(|count| journal(count, 64, 64));
    });
    group.finish();
}

fn burst(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("burst");
    settings(&mut group);
    group.throughput(Throughput::Elements(8192));
    group.bench_function("bare_512k", |bencher| bencher.iter_custom(|count| bare(count, 512 << 10)));
    group.bench_function("journal_8192x64b", |bencher| bencher.iter_custom(|count| journal(count, 1, 8192)));
    group.bench_function("journal_8192x64b_64_groups", |bencher| {
        bencher.iter_custom(|count| journal(count, 64, 8192));
    });
    group.finish();
}

criterion_group!(benches, depth1, burst);
criterion_main!(benches);

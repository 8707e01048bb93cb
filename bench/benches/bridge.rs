//! The bridge: replication of 64 KiB batches beside a bare iroh stream of the same bytes, in the same run; and how soon
//! small messages come while the bulk lanes are full.

use std::time::Duration;

use criterion::{Criterion, SamplingMode, Throughput, criterion_group, criterion_main};
use iroh_raft_bench::bridges::{BATCH_BYTES, Bare, Pair};
use iroh_raft_core::MessageKind;

const BATCHES: usize = 64;

fn stream(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("stream");
    group
        .sampling_mode(SamplingMode::Flat)
        .sample_size(10)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(2))
        .throughput(Throughput::Bytes((BATCHES * BATCH_BYTES) as u64));
    let mut pair = Pair::start().expect("two bridges");
    group.bench_function("bridges", |bencher| {
        bencher.iter_custom(|count| pair.stream(count as usize * BATCHES).expect("all of it"));
    });
    pair.stop().expect("the end of both");
    let mut bare = Bare::start().expect("two endpoints");
    group.bench_function("bare", |bencher| {
        bencher.iter_custom(|count| bare.stream(count as usize * BATCHES).expect("all of it"));
    });
    group.finish();
}

fn small(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("small");
    group.sampling_mode(SamplingMode::Flat).sample_size(10).warm_up_time(Duration::from_millis(300));
    group.measurement_time(Duration::from_secs(2));
    let mut pair = Pair::start().expect("two bridges");
    for (name, kind) in [("vote", MessageKind::RequestVote), ("heartbeat", MessageKind::Heartbeat)] {
        for (load, is_saturated) in [("idle", false), ("saturated", true)] {
            group.bench_function(format!("{name}_{load}"), |bencher| {
                bencher.iter_custom(|count| {
                    let pause = Duration::from_millis(1);
                    let found = pair.latencies(kind, count as usize, pause, is_saturated);
                    found.expect("all of them").iter().sum()
                });
            });
        }
    }
    pair.stop().expect("the end of both");
    group.finish();
}

criterion_group!(benches, stream, small);
criterion_main!(benches);

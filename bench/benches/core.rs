//! The core alone: three replicas in memory, every client with one empty record in flight. `bench/compare` has openraft
//! at the same work in the same run.

use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use iroh_raft_bench::memory::Memory;

fn core(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("core");
    group.sample_size(10).warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(1));
    for clients in [1, 64, 4096] {
        let mut memory = Memory::new(clients).expect("a sound configuration");
        group.throughput(Throughput::Elements(clients));
        group.bench_function(format!("{clients}_clients"), |bencher| {
            bencher.iter_custom(|count| {
                let began = Instant::now();
                memory.run(count * clients);
                began.elapsed()
            });
        });
    }
    group.finish();
}

criterion_group!(benches, core);
criterion_main!(benches);

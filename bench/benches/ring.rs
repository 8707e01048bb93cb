//! The rings between the bridge and a shard: an item that nobody has to be woken for, and one whose receiver sleeps. Beside them
//! the bare queue inside, and a channel of the standard library.
//!
//! A receiver here sleeps as a thread does (`park`). That of a shard sleeps in its io_uring, which takes longer to wake.

use std::sync::Arc;
use std::sync::mpsc::sync_channel;
use std::task::{Wake, Waker};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, SamplingMode, Throughput, criterion_group, criterion_main};
use crossbeam::queue::ArrayQueue;
use iroh_raft_core::ShardId;
use iroh_raft_netbridge::port::{BridgePort, ShardPort, ToBridge, ToShard, port_pair};
use iroh_raft_netbridge::ring::{Consumer, Doorbell};
use iroh_raft_netbridge::wire::OutFrame;

const RING_ITEMS: usize = 4096;
/// Bytes in a ring at most: more than fits.
const RING_BYTES: usize = 64 << 20;
/// One measurement never takes so long, unless an item or a wake got lost.
const DEADLINE: Duration = Duration::from_secs(60);

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

fn waker() -> Waker {
    Waker::from(Arc::new(Unpark(thread::current())))
}

/// Both sides of one shard's rings.
struct Ends {
    shard: ShardPort,
    bridge: BridgePort,
    /// Where the shard sleeps, and where the bridge does.
    doorbells: [Arc<Doorbell>; 2],
}

impl Ends {
    fn new() -> Ends {
        let doorbells = [Doorbell::new(), Doorbell::new()];
        let (shard, bridge) = port_pair(ShardId(0), RING_ITEMS, RING_BYTES, &doorbells[0], &doorbells[1]);
        Ends { shard, bridge, doorbells }
    }
}

/// Items that own nothing: an allocation would be measured along.
fn to_shard() -> ToShard {
    ToShard::ClientGone { connection: 1 }
}

fn to_bridge() -> ToBridge {
    ToBridge::Client { connection: 1, frame: OutFrame::default() }
}

/// The next item, without sleep: its sender is at work on another core.
fn spin<T>(mut take: impl FnMut() -> Option<T>, began: Instant) -> T {
    loop {
        if let Some(item) = take() {
            return item;
        }
        assert!(began.elapsed() < DEADLINE, "an item got lost");
        std::hint::spin_loop();
    }
}

/// The next item, as consumers in the engine wait for it.
fn sleep<T>(ring: &Consumer<T>, doorbell: &Doorbell, waker: &Waker, began: Instant) -> T {
    loop {
        if let Some(item) = ring.pop() {
            return item;
        }
        doorbell.arm(waker);
        if ring.is_empty() {
            thread::park_timeout(DEADLINE);
        }
        doorbell.disarm();
        assert!(began.elapsed() < DEADLINE, "a wake got lost");
    }
}

fn settings(group: &mut BenchmarkGroup<'_, WallTime>) {
    group
        .sampling_mode(SamplingMode::Flat)
        .sample_size(10)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_millis(500))
        .throughput(Throughput::Elements(1));
}

/// In and out again on one thread: what the operations themselves take.
fn same_thread(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("ring_same_thread");
    settings(&mut group);
    let ends = Ends::new();
    group.bench_function("ring", |bencher| {
        bencher.iter(|| {
            assert!(ends.bridge.to_shard.push(to_shard()).is_ok(), "the ring is empty");
            ends.shard.from_bridge.pop()
        });
    });
    let queue = ArrayQueue::new(RING_ITEMS);
    group.bench_function("array_queue", |bencher| {
        bencher.iter(|| {
            assert!(queue.push(to_shard()).is_ok(), "the queue is empty");
            queue.pop()
        });
    });
    group.finish();
}

/// One item after the other to a thread that is awake.
fn awake(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("ring_awake");
    settings(&mut group);
    let mut ends = Ends::new();
    group.bench_function("ring", |bencher| {
        bencher.iter_custom(|count| {
            let (to, from) = (&ends.bridge.to_shard, &mut ends.shard.from_bridge);
            one_way(count, || to.push(to_shard()).is_ok(), || from.pop())
        });
    });
    let queue = ArrayQueue::new(RING_ITEMS);
    group.bench_function("array_queue", |bencher| {
        bencher.iter_custom(|count| one_way(count, || queue.push(to_shard()).is_ok(), || queue.pop()));
    });
    let (sender, receiver) = sync_channel(RING_ITEMS);
    group.bench_function("std_channel", |bencher| {
        let from = &receiver;
        bencher.iter_custom(|count| {
            // The receiver cannot be shared: the sender goes to the other thread instead.
            let sender = sender.clone();
            thread::scope(|scope| {
                let began = Instant::now();
                scope.spawn(move || (0..count).for_each(|_| sender.send(to_shard()).expect("a receiver")));
                (0..count).for_each(|_| drop(spin(|| from.try_recv().ok(), began)));
                began.elapsed()
            })
        });
    });
    group.finish();
}

/// Has so many items cross from another thread to this one.
fn one_way<T>(count: u64, push: impl Fn() -> bool + Send, mut pop: impl FnMut() -> Option<T>) -> Duration {
    thread::scope(|scope| {
        let began = Instant::now();
        scope.spawn(move || (0..count).for_each(|_| spin(|| push().then_some(()), began)));
        (0..count).for_each(|_| drop(spin(&mut pop, began)));
        began.elapsed()
    })
}

/// There and back between two threads that sleep: two hops, two wakes.
fn asleep(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("ring_there_and_back_asleep");
    settings(&mut group);
    group.throughput(Throughput::Elements(2));
    let mut ends = Ends::new();
    group.bench_function("ring", |bencher| {
        bencher.iter_custom(|count| {
            let Ends { shard, bridge, doorbells: [shard_bell, bridge_bell] } = &mut ends;
            thread::scope(|scope| {
                let began = Instant::now();
                scope.spawn(move || {
                    let waker = waker();
                    for _ in 0..count {
                        drop(sleep(&shard.from_bridge, shard_bell, &waker, began));
                        assert!(shard.to_bridge.push(to_bridge()).is_ok(), "the ring is empty");
                    }
                });
                let waker = waker();
                for _ in 0..count {
                    assert!(bridge.to_shard.push(to_shard()).is_ok(), "the ring is empty");
                    drop(sleep(&bridge.from_shard, bridge_bell, &waker, began));
                }
                began.elapsed()
            })
        });
    });
    group.bench_function("std_channel", |bencher| {
        bencher.iter_custom(|count| {
            let ((there, at_shard), (back, at_bridge)) = (sync_channel(RING_ITEMS), sync_channel(RING_ITEMS));
            thread::scope(|scope| {
                let began = Instant::now();
                scope.spawn(move || {
                    for _ in 0..count {
                        drop::<ToShard>(at_shard.recv_timeout(DEADLINE).expect("an item"));
                        back.send(to_bridge()).expect("a receiver");
                    }
                });
                for _ in 0..count {
                    there.send(to_shard()).expect("a receiver");
                    drop::<ToBridge>(at_bridge.recv_timeout(DEADLINE).expect("an item"));
                }
                began.elapsed()
            })
        });
    });
    group.finish();
}

criterion_group!(benches, same_thread, awake, asleep);
criterion_main!(benches);

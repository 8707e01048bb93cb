//! What was measured of peers that the command cannot run: three nodes on loopback and the load on the same two cores,
//! of the machine that bench/README.md describes. Points of another machine say nothing beside these.

use crate::drawing::{Point, Series};

/// A peer, its version and the promise of its answers; and in flight of all clients, writes/s, p50 and p99 in
/// microseconds, of writes of 64 B.
struct Peer {
    name: &'static str,
    promise: &'static str,
    points: &'static [(u64, f64, f64, f64)],
}

/// Source: runs of each before this engine was written, on 2 cores of a virtual machine with ext4 and a write-back cache. NATS JetStream with a sync
/// before each answer was not measured.
const PEERS: [Peer; 2] = [
    Peer {
        name: "etcd 3.4.23",
        promise: "three processes, fsync before each answer",
        points: &[
            (1, 1_619.0, 590.0, 1_100.0),
            (3, 2_453.0, 1_100.0, 3_000.0),
            (120, 14_166.0, 7_600.0, 24_000.0),
            (960, 17_804.0, 49_000.0, 149_000.0),
        ],
    },
    Peer {
        name: "NATS JetStream 2.9.10",
        promise: "three processes, files with 3 replicas, NO fsync before an answer",
        points: &[
            (1, 4_077.0, 230.0, 540.0),
            (8, 8_256.0, 800.0, 3_700.0),
            (512, 87_891.0, 4_900.0, 21_000.0),
            (8_192, 120_599.0, 61_000.0, 188_000.0),
        ],
    },
];

/// The peers' curves.
pub(crate) fn series() -> impl Iterator<Item = Series> {
    PEERS.iter().map(|peer| Series {
        name: peer.name.to_owned(),
        promise: peer.promise.to_owned(),
        points: peer.points.iter().map(point).collect(),
        is_labelled: false,
    })
}

fn point(&(in_flight, records_per_s, p50_us, p99_us): &(u64, f64, f64, f64)) -> Point {
    Point { in_flight, records_per_s, p50_us, p99_us: Some(p99_us) }
}

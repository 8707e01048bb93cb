//! What a record costs in allocations and allocated bytes, in a cluster under load: three replicas on real disks, over
//! QUIC, and the client in the leader's process.
//!
//! Our own code allocates nothing for a record. What it allocates for a batch, a frame, a flush or a move is listed below, with
//! the reason; raft-rs, redb, the QUIC stack and glommio are counted apart. redb allocates some hundred times for each commit, so
//! that the sum for a record depends on the records in a flush: it is printed beside it.

use std::collections::BTreeMap;

use iroh_raft_tests::allocations::{self, Allocated, Counting, Owner, Site};
use iroh_raft_tests::steady_load::{Cluster, REPLICAS, Work};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Rounds of the load before it is measured: memory is full of entries by then, and moves have begun.
const WARM_UP: usize = 5;
const MEASURED: usize = 8;
const RECORD_BYTES: usize = 64;
/// Allocations of everything, for a record and replica, and for a flush: redb's. With 40,000 records a flush that is 0.05 a record.
const RECORD_MAX: f64 = 0.03;
const FLUSH_MAX: f64 = 800.0;
/// Records of a flush at least: with fewer the bound above would be no bound.
const FLUSH_RECORDS_MIN: f64 = 5_000.0;
/// A record in a batch: its bytes and its length.
const PACKED_BYTES: f64 = (RECORD_BYTES + 4) as f64;

/// What one of our packages may allocate for each batch of 1,024 records, frame between nodes and flush of a journal.
struct Bound {
    folder: &'static str,
    batch: f64,
    frame: f64,
    flush: f64,
    reason: &'static str,
}

const BOUNDS: [Bound; 5] = [
    Bound {
        folder: "engine/src",
        batch: 1.0,
        frame: 0.0,
        flush: 0.1,
        reason: "a request of this process has a channel for its answer",
    },
    Bound {
        folder: "engine/core",
        batch: 0.2,
        frame: 0.5,
        flush: 8.0,
        reason: "raft-rs takes and gives entries as lists; a flush's lists go to another thread; a buffer of 1 MiB for many batches",
    },
    Bound {
        folder: "engine/driver",
        batch: 0.02,
        frame: 0.02,
        flush: 0.1,
        reason: "queues that have not yet been as long as they get",
    },
    Bound {
        folder: "netbridge",
        batch: 0.5,
        frame: 2.0,
        flush: 0.0,
        reason: "a frame with many batches lists them; a buffer of 1 MiB for what is received; a message lists its entries",
    },
    Bound {
        folder: "storage",
        batch: 4.5,
        frame: 0.0,
        flush: 2.0,
        reason: "the mover's lists: some for each move, two for each of its blocks of 256 KiB",
    },
];

fn sum<'a>(sites: impl Iterator<Item = &'a Site>) -> Allocated {
    sites.fold(Allocated::default(), |sum, site| Allocated {
        count: sum.count + site.allocated.count,
        bytes: sum.bytes + site.allocated.bytes,
    })
}

fn print(sites: &[Site], work: &Work) {
    let (records, blocks) = (work.records() as f64, work.blocks as f64);
    let mut owners: BTreeMap<Owner, Vec<&Site>> = BTreeMap::new();
    sites.iter().for_each(|site| owners.entry(site.owner).or_default().push(site));
    println!("{work:?}");
    println!("{:10} {:>16} {:>12} {:>14}", "owner", "a record", "a batch", "bytes a record");
    for (owner, sites) in &owners {
        let Allocated { count, bytes } = sum(sites.iter().copied());
        let (count, bytes) = (count as f64, bytes as f64 / records);
        println!("{:10} {:16.5} {:12.2} {bytes:14.1}", format!("{owner:?}"), count / records, count / blocks);
    }
    for site in owners.get(&Owner::Ours).into_iter().flatten().take(5) {
        println!("ours: {:.2} a batch at {}", site.allocated.count as f64 / blocks, site.place);
    }
}

#[tokio::test]
async fn a_record_costs_no_allocation_and_its_bytes_are_where_they_should_be() {
    let cluster = Cluster::start(RECORD_BYTES).await;
    cluster.append(WARM_UP).await;
    allocations::begin(false);
    let work = cluster.append(MEASURED).await;
    let total = allocations::end();
    allocations::begin(true);
    let traced = cluster.append(MEASURED).await;
    let _ = allocations::end();
    cluster.stop().await;

    let sites = allocations::sites();
    print(&sites, &traced);
    let a_record = total.count as f64 / work.records() as f64;
    let bytes_a_record = total.bytes as f64 / work.records() as f64;
    println!(
        "all: {a_record:.4} a record, {:.4} of each replica; {bytes_a_record:.0} bytes; {} records a flush",
        a_record / REPLICAS as f64,
        work.records() * REPLICAS / work.flushes
    );

    let of = |owner: Owner| sum(sites.iter().filter(|site| site.owner == owner));
    for Bound { folder, batch, frame, flush, reason } in BOUNDS {
        let is_its = |site: &&Site| site.owner == Owner::Ours && site.place.starts_with(folder);
        let found = sum(sites.iter().filter(is_its)).count as f64;
        let (blocks, frames, flushes) = (traced.blocks as f64, traced.frames as f64, traced.flushes as f64);
        let most = batch * blocks + frame * frames + flush * flushes;
        println!("{folder}: {:.2} a batch, at most {:.2}: {reason}", found / blocks, most / blocks);
        assert!(found <= most, "{folder} allocates {found} times, at most {most} is expected: {reason}");
    }
    let ours = of(Owner::Ours);
    let ours_a_record = ours.count as f64 / traced.records() as f64;
    assert!(ours_a_record <= 0.02, "our own code allocates {ours_a_record} times a record");
    // The batch, and what each follower receives. The rest is the mover's, and what the buffers of 1 MiB have left at their ends.
    let ours_bytes = ours.bytes as f64 / traced.records() as f64;
    let copies = ours_bytes / PACKED_BYTES;
    println!("ours: {copies:.2} times the bytes of a batch");
    assert!(
        copies <= 3.9,
        "our own code takes {ours_bytes} bytes a record, that is {copies} times its bytes in a batch"
    );
    assert_eq!(of(Owner::Other).count, 0, "somebody allocates who is not known here");
    let replica = a_record / REPLICAS as f64;
    let flush_records = (work.records() * REPLICAS) as f64 / work.flushes as f64;
    assert!(
        flush_records >= FLUSH_RECORDS_MIN,
        "{flush_records} records a flush: batches are not what they were"
    );
    let most = RECORD_MAX + FLUSH_MAX / flush_records;
    assert!(replica <= most, "{replica} allocations a record and replica, at most {most} are expected");
}

//! Measures what a record costs in allocations, in a cluster under load in this process, and writes it as one JSON object.
//!
//! `allocations FILE`
#![forbid(unsafe_code)]

use std::error::Error;

use iroh_raft_tests::allocations::{self, Counting};
use iroh_raft_tests::steady_load::{Cluster, REPLICAS};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Rounds of the load before it is measured, and measured.
const WARM_UP: usize = 20;
const MEASURED: usize = 80;
const RECORD_BYTES: usize = 64;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let file = std::env::args_os().nth(1).ok_or("usage: allocations FILE")?;
    let cluster = Cluster::start(RECORD_BYTES).await;
    cluster.append(WARM_UP).await;
    allocations::begin(false);
    let work = cluster.append(MEASURED).await;
    let total = allocations::end();
    cluster.stop().await;
    // What one replica allocates: the leader's with its client, and the followers', are alike.
    let records = (work.records() * REPLICAS) as f64;
    let figures = format!(
        "{{\"allocations_per_record\": {:.5}, \"allocated_bytes_per_record\": {:.1}, \"records_per_flush\": {:.0}}}\n",
        total.count as f64 / records,
        total.bytes as f64 / records,
        records / work.flushes as f64,
    );
    std::fs::write(file, figures)?;
    Ok(())
}

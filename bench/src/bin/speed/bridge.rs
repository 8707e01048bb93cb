//! The bridge beside a bare stream, and small messages beside full lanes.

use std::path::Path;
use std::time::Duration;

use iroh_raft_bench::bridges::{Bare, Failure, Pair};
use iroh_raft_bench::reports::median;
use iroh_raft_core::MessageKind;
use serde_json::json;

use crate::{Args, Figures};

/// Batches of one measurement of the stream: 256 MiB.
const STREAM_BATCHES: usize = 4096;
/// Rounds of the stream, ours and bare in turns.
const STREAM_ROUNDS: usize = 5;
/// Small messages of one measurement, and the pause between two.
const SMALL: usize = 2000;
const SMALL_PAUSE: Duration = Duration::from_millis(1);

const RATIO: &str = "bridge_vs_bare_iroh";
/// Small messages: the key, their kind, and whether the bulk lanes are full.
const LATENCIES: [(&str, MessageKind, bool); 4] = [
    ("vote_p99_us", MessageKind::RequestVote, false),
    ("heartbeat_p99_us", MessageKind::Heartbeat, false),
    ("heartbeat_p99_us_under_load", MessageKind::Heartbeat, true),
    ("vote_p99_us_under_load", MessageKind::RequestVote, true),
];

pub(crate) fn keys() -> Vec<&'static str> {
    LATENCIES.iter().map(|(key, ..)| *key).chain([RATIO]).collect()
}

pub(crate) fn measure(_: &Args, _: &Path) -> Result<Figures, Failure> {
    let mut figures = Figures::new();
    let (mut pair, mut bare) = (Pair::start()?, Bare::start()?);
    let mut ratios = Vec::new();
    for _ in 0..STREAM_ROUNDS {
        let (ours, limit) = (pair.stream(STREAM_BATCHES)?, bare.stream(STREAM_BATCHES)?);
        ratios.push(limit.as_secs_f64() / ours.as_secs_f64());
    }
    drop(bare);
    println!("bridge beside a bare stream: {ratios:.2?}");
    figures.insert(RATIO.to_owned(), json!(median(ratios)));
    for (key, kind, is_saturated) in LATENCIES {
        let mut found = pair.latencies(kind, SMALL, SMALL_PAUSE, is_saturated)?;
        found.sort_unstable();
        let us = |percent: usize| found[found.len() * percent / 100].as_secs_f64() * 1e6;
        println!("{key}: {:.0}, p50 {:.0}", us(99), us(50));
        let p99_us = us(99);
        figures.insert(key.to_owned(), json!(p99_us));
    }
    pair.stop()?;
    Ok(figures)
}

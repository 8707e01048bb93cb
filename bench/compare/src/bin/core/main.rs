//! Our core and openraft in memory, at the same work, in turns: how many times as fast ours is.
//!
//! Figures are medians over the rounds, ratios medians over the ratios of each round.
#![forbid(unsafe_code)]

mod openraft;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
use iroh_raft_bench::memory::Memory;
use serde_json::{Map, Value, json};

use crate::openraft::{Failure, Openraft};

/// Compares iroh-raft's core in memory with openraft.
#[derive(Parser, Debug)]
struct Args {
    /// Rounds of each, in turns: an odd number has a median.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..))]
    rounds: u16,
    /// Milliseconds of a round, about.
    #[arg(long, default_value_t = 1000)]
    round_ms: u64,
    /// File to write the figures to, as one JSON object.
    #[arg(long)]
    json: Option<PathBuf>,
}

/// What one of them did in a round.
#[derive(Clone, Copy)]
struct Round {
    per_s: f64,
    /// Records in an entry, where it is known.
    batch: f64,
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<(), Failure> {
    let time = Duration::from_millis(args.round_ms);
    let mut figures = Map::new();
    for clients in [1, 64, 4096] {
        let mut rounds = Vec::new();
        for _ in 0..args.rounds {
            rounds.push((ours(clients, time)?, peer(clients, time)?));
        }
        let of = |figure: fn(&(Round, Round)) -> f64| median(rounds.iter().map(figure).collect());
        let (ours, peer) = (of(|(ours, _)| ours.per_s), of(|(_, peer)| peer.per_s));
        let ratio = of(|(ours, peer)| ours.per_s / peer.per_s);
        let batch = of(|(ours, _)| ours.batch);
        println!(
            "{clients:>5} clients: {ours:>10.0}/s, {batch:.0} an entry; openraft {peer:>9.0}/s, 1 an entry; {ratio:.1}x"
        );
        let line = json!({ "ours_per_s": ours, "ours_batch": batch, "openraft_per_s": peer, "ratio": ratio });
        figures.insert(clients.to_string(), line);
    }
    if let Some(path) = &args.json {
        std::fs::write(path, format!("{:#}\n", Value::Object(figures)))?;
    }
    Ok(())
}

/// Runs until the time is over, in pieces that are short beside it.
fn ours(clients: u64, time: Duration) -> Result<Round, Failure> {
    let mut memory = Memory::new(clients)?;
    let (began, mut records, mut entries) = (Instant::now(), 0, 0);
    while began.elapsed() < time {
        let work = memory.run(clients * 100);
        records += work.records;
        entries += work.entries;
    }
    Ok(Round {
        per_s: records as f64 / began.elapsed().as_secs_f64(),
        batch: records as f64 / entries as f64,
    })
}

fn peer(clients: u64, time: Duration) -> Result<Round, Failure> {
    let cluster = Openraft::start()?;
    let (mut took, mut records) = (Duration::ZERO, 0);
    // Each piece starts its clients anew: long enough for that not to be seen.
    let mut count = clients * 200;
    while took < time {
        took += cluster.run(clients, count)?;
        records += count;
        count *= 2;
    }
    cluster.stop()?;
    Ok(Round { per_s: records as f64 / took.as_secs_f64(), batch: 1.0 })
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

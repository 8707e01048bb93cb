//! Everything moved and retained: measured from the first move on until the last one is done.

use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use iroh_raft_bench::bare::{Bare, BareKind};
use iroh_raft_bench::load::Load;

use super::Run;
use crate::error::Result;
use crate::report::Report;
use crate::subject::{Subject, median, record, times};

/// One run of one subject.
struct Sustained {
    /// Flushes a second of wall time.
    per_s: f64,
    /// From the call to durable.
    flushes: Histogram<u64>,
    /// The same with the wait for room in the journal before it.
    with_waits: Histogram<u64>,
}

impl Sustained {
    fn print(&self, name: &str, load: Load) {
        let us = |times: &Histogram<u64>, percentile| times.value_at_percentile(percentile) as f64 / 1e3;
        println!(
            "  {name:24} {:>6.2} M records/s  {:>8.1} MB/s   flush p50 {:>9.1} us  p99 {:>9.1} us  \
             p99.9 {:>9.1} us   with waits p99.9 {:>9.1} us",
            self.per_s * load.records() as f64 / 1e6,
            self.per_s * load.payload_bytes() as f64 / 1e6,
            us(&self.flushes, 50.0),
            us(&self.flushes, 99.0),
            us(&self.flushes, 99.9),
            us(&self.with_waits, 99.9),
        );
    }
}

/// 64 B and 64 KiB records.
pub fn sustained(run: &Run, report: &mut Report) -> Result<()> {
    for (name, figure, load) in [
        ("sustained_64b", "records_64b_per_s", Load::new(64, 8192, 64)),
        ("sustained_64k", "bytes_64k_per_s", Load::new(16, 16, 64 << 10)),
    ] {
        println!(
            "{name}: {} records of {} B a flush over {} groups, everything moved, {} MiB retained, at least \
             {} s from the first move on ({} form)",
            load.records(),
            load.record_bytes,
            load.groups,
            run.sizes.retention_bytes >> 20,
            run.sizes.sustained_time.as_secs(),
            run.sizes.name,
        );
        let (mut all_ours, mut all_theirs) = (Vec::new(), Vec::new());
        for _ in 0..run.sizes.sustained_rounds {
            let result = ours(run, load)?;
            result.print("ours", load);
            all_ours.push(result);
            let result = theirs(run, load)?;
            result.print("raft-engine", load);
            all_theirs.push(result);
            bare(run, load)?.print("bare append", load);
        }
        let unit = if load.record_bytes == 64 { load.records() } else { load.payload_bytes() };
        report.figure(figure, median(all_ours.iter().map(|result| result.per_s)) * unit as f64);
        let p99_9 = |result: &Sustained| result.flushes.value_at_percentile(99.9) as f64 / 1e3;
        report.figure(&format!("{name}_p99_9_us"), median(all_ours.iter().map(p99_9)));
        let ratios = all_ours.iter().zip(&all_theirs).map(|(ours, theirs)| ours.per_s / theirs.per_s);
        report.vs_raft_engine(name, median(ratios));
        let ratios = all_ours.iter().zip(&all_theirs).map(|(ours, theirs)| p99_9(theirs) / p99_9(ours));
        report.vs_raft_engine(&format!("{name}_p99_9"), median(ratios));
    }
    Ok(())
}

/// Whether a run is long enough.
fn is_enough(run: &Run, load: Load, began: Instant, flushes: u64) -> bool {
    began.elapsed() >= run.sizes.sustained_time && flushes * load.payload_bytes() >= run.sizes.retention_bytes
}

fn ours(run: &Run, load: Load) -> Result<Sustained> {
    let folder = run.scratch()?;
    let options = iroh_raft_storage::ShardOptions {
        journal_bytes_max: run.sizes.journal_bytes_max,
        ..run.sizes.options()
    };
    let mut ours = run.ours(folder.path(), load, options)?;
    ours.source = ours.source.with_retention(run.sizes.retention_bytes);
    let (mut flushes, mut with_waits) = (times(), times());
    let mut before = 0;
    loop {
        let flushed = ours.store.flush(ours.source.next_flush())?;
        let Some(first_move) = ours.store.first_move() else {
            before += 1;
            continue;
        };
        record(&mut flushes, flushed.duration)?;
        record(&mut with_waits, flushed.waited + flushed.duration)?;
        if is_enough(run, load, first_move, flushes.len()) {
            break;
        }
    }
    // What was flushed before the first move is moved as well, in the measured time.
    ours.store.drain()?;
    let began = ours.store.first_move().expect("the loop ends after it");
    let time = began.elapsed();
    let count = ours.source.seq() - before;
    check(&ours, ours.source.seq(), run)?;
    Ok(Sustained { per_s: count as f64 / time.as_secs_f64(), flushes, with_waits })
}

fn theirs(run: &Run, load: Load) -> Result<Sustained> {
    let folder = run.scratch()?;
    let mut theirs = run.theirs(folder.path(), load)?;
    theirs.source = theirs.source.with_retention(run.sizes.retention_bytes);
    let mut flushes = times();
    // What ours writes before its first move.
    theirs.flush(run.sizes.move_bytes.div_ceil(load.payload_bytes()), &mut times())?;
    let began = Instant::now();
    while !is_enough(run, load, began, flushes.len()) {
        theirs.flush(1, &mut flushes)?;
    }
    let time = began.elapsed();
    check(&theirs, theirs.source.seq(), run)?;
    Ok(sustained_of(flushes, time))
}

fn bare(run: &Run, load: Load) -> Result<Sustained> {
    let folder = run.scratch()?;
    let bytes = load.entry_bytes() as usize;
    let mut bare = Bare::create(&folder.path().join("bare"), BareKind::Append, bytes)?;
    let mut flushes = times();
    let began = Instant::now();
    while !is_enough(run, load, began, flushes.len()) {
        Subject::flush(&mut bare, 1, &mut flushes)?;
    }
    let time = began.elapsed();
    Ok(sustained_of(flushes, time))
}

/// Reads the newest flushes back and compares them. How many there were differs from run to run, so
/// they are not in the checksum of the run; the oldest may be compacted away.
fn check(subject: &dyn Subject, last: u64, run: &Run) -> Result<()> {
    subject.read_back(last.saturating_sub(run.sizes.checked_flushes).max(1)..=last)?;
    Ok(())
}

fn sustained_of(flushes: Histogram<u64>, time: Duration) -> Sustained {
    let with_waits = flushes.clone();
    Sustained { per_s: flushes.len() as f64 / time.as_secs_f64(), flushes, with_waits }
}

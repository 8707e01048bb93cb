//! What reading does to the flushes beside it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use hdrhistogram::Histogram;
use iroh_raft_bench::load::Load;
use iroh_raft_bench::store;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::Run;
use crate::error::Result;
use crate::report::Report;
use crate::sizes::Sizes;
use crate::subject::{Ours, Subject, Theirs, median, times};

/// Bytes of entries in one read.
const READ_BYTES: usize = 256 << 10;

/// Flushes of one subject, alone and beside a reader, in turns.
struct Both {
    alone: Vec<Histogram<u64>>,
    reading: Vec<Histogram<u64>>,
    read_bytes_per_s: f64,
}

/// Reads everywhere in the log, one after the other, until told to stop.
type Read = Box<dyn FnMut(u64, u64) -> Result<usize> + Send>;

/// Ours and raft-engine.
pub fn reading(run: &Run, report: &mut Report) -> Result<()> {
    let load = Load::new(64, 1024, 64);
    println!(
        "reading: 1,024 records of 64 B a flush over 64 groups, alone and beside a reader of 256 KiB at a time"
    );
    let folder = run.scratch()?;
    let mut ours = run.ours(&folder.path().join("ours"), load, run.sizes.options())?;
    let mut theirs = run.theirs(&folder.path().join("theirs"), load)?;
    let flushes = Sizes::flushes(run.sizes.moving_bytes, load.payload_bytes());
    ours.flush(flushes, &mut times())?;
    theirs.flush(flushes, &mut times())?;
    let our_result = both(run, &mut ours, load, |ours: &mut Ours| {
        let reader = ours.store.reader();
        let read = move |group, index| {
            let entries = store::read(&reader, group, index, index + 1000, READ_BYTES)?;
            Ok(entries.iter().map(|entry| entry.data.len()).sum())
        };
        (ours.source.seq(), Box::new(read) as Read)
    })?;
    let their_result = both(run, &mut theirs, load, |theirs: &mut Theirs| {
        let reader = theirs.peer.reader();
        let last = theirs.source.seq();
        let read = move |group, index: u64| {
            let entries = reader.read(group, index, last.min(index + 1000), READ_BYTES)?;
            Ok(entries.iter().map(|entry| entry.data.len()).sum())
        };
        (last, Box::new(read) as Read)
    })?;
    for (name, both) in [("ours", &our_result), ("raft-engine", &their_result)] {
        println!(
            "  {name:24} mean alone {:>9.1} us   beside {:>9.1} us   slowed by {:.3}   read {:.1} MB/s",
            median(both.alone.iter().map(Histogram::mean)) / 1e3,
            median(both.reading.iter().map(Histogram::mean)) / 1e3,
            both.slowed(),
            both.read_bytes_per_s / 1e6
        );
    }
    report.add_hash(ours.store.read_back(&ours.source, 1..=run.sizes.checked_flushes)?);
    report.figure("reading_vs_alone", our_result.slowed());
    report.figure("reading_bytes_per_s", our_result.read_bytes_per_s);
    let beside = |both: &Both| median(both.reading.iter().map(Histogram::mean));
    report.vs_raft_engine("reading_flushes", beside(&their_result) / beside(&our_result));
    report.vs_raft_engine("reading_bytes", our_result.read_bytes_per_s / their_result.read_bytes_per_s);
    Ok(())
}

impl Both {
    fn slowed(&self) -> f64 {
        median(self.alone.iter().zip(&self.reading).map(|(alone, reading)| reading.mean() / alone.mean()))
    }
}

/// Rounds in turns: alone, beside a reader on its own thread.
fn both<S: Subject>(
    run: &Run,
    subject: &mut S,
    load: Load,
    reader: impl Fn(&mut S) -> (u64, Read),
) -> Result<Both> {
    let flushes = Sizes::flushes(run.sizes.moving_bytes / 2, load.payload_bytes());
    let mut both = Both { alone: Vec::new(), reading: Vec::new(), read_bytes_per_s: 0.0 };
    let mut rates = Vec::new();
    for round in 0..=run.sizes.moving_rounds {
        let mut alone = times();
        subject.flush(flushes, &mut alone)?;
        subject.rest()?;
        let (last, mut read) = reader(subject);
        let is_stopping = Arc::new(AtomicBool::new(false));
        let bytes = Arc::new(AtomicU64::new(0));
        let mut random = SmallRng::seed_from_u64(run.seed + round as u64);
        let thread = std::thread::Builder::new().name(String::from("reader")).spawn({
            let (is_stopping, bytes) = (is_stopping.clone(), bytes.clone());
            move || -> Result<()> {
                while !is_stopping.load(Ordering::Acquire) {
                    let group = random.random_range(1..=load.groups);
                    let found = read(group, random.random_range(1..=last))?;
                    bytes.fetch_add(found as u64, Ordering::Relaxed);
                }
                Ok(())
            }
        })?;
        let mut reading = times();
        let began = std::time::Instant::now();
        let flushed = subject.flush(flushes, &mut reading);
        let time = began.elapsed();
        is_stopping.store(true, Ordering::Release);
        thread.join().expect("the reader does not panic")?;
        flushed?;
        subject.rest()?;
        if round > 0 {
            both.alone.push(alone);
            both.reading.push(reading);
            rates.push(bytes.load(Ordering::Relaxed) as f64 / time.as_secs_f64());
        }
    }
    both.read_bytes_per_s = median(rates.into_iter());
    Ok(both)
}

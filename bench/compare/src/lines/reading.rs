//! What reading does to the flushes beside it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

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
/// Entries in one read at most: the bytes end it before that.
const READ_ENTRIES: u64 = 1000;

/// How much is read beside the flushes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Pace {
    Nothing,
    /// As many bytes as are written: every record is read once, by somebody far behind.
    AsWritten,
    /// One read after the other, on a core of its own.
    FlatOut,
}

const PACES: [Pace; 3] = [Pace::Nothing, Pace::AsWritten, Pace::FlatOut];

/// Flushes of one subject beside each pace of reading, in turns.
#[derive(Default)]
struct Paced {
    flushes: [Vec<Histogram<u64>>; PACES.len()],
    flat_out_bytes_per_s: Vec<f64>,
}

/// Reads once from a group and index on; returns the bytes.
type Read = Box<dyn FnMut(u64, u64) -> Result<usize> + Send>;

/// Ours and raft-engine.
pub fn reading(run: &Run, report: &mut Report) -> Result<()> {
    let load = Load::new(64, 1024, 64);
    println!(
        "reading: 1,024 records of 64 B a flush over 64 groups, beside a reader of 256 KiB at a time anywhere"
    );
    let folder = run.scratch()?;
    let mut ours = run.ours(&folder.path().join("ours"), load, run.sizes.options())?;
    let mut theirs = run.theirs(&folder.path().join("theirs"), load)?;
    let flushes = Sizes::flushes(run.sizes.moving_bytes, load.payload_bytes());
    ours.flush(flushes, &mut times())?;
    theirs.flush(flushes, &mut times())?;
    let our_result = paced(run, &mut ours, load, |ours: &mut Ours| {
        let reader = ours.store.reader();
        let last = ours.source.seq();
        let read = move |group, index: u64| {
            let entries = store::read(&reader, group, index, last.min(index + READ_ENTRIES), READ_BYTES)?;
            Ok(entries.iter().map(|entry| entry.data.len()).sum())
        };
        (last, Box::new(read) as Read)
    })?;
    let their_result = paced(run, &mut theirs, load, |theirs: &mut Theirs| {
        let reader = theirs.peer.reader();
        let last = theirs.source.seq();
        let read = move |group, index: u64| {
            let entries = reader.read(group, index, last.min(index + READ_ENTRIES), READ_BYTES)?;
            Ok(entries.iter().map(|entry| entry.data.len()).sum())
        };
        (last, Box::new(read) as Read)
    })?;
    our_result.print("ours");
    their_result.print("raft-engine");
    report.add_hash(ours.store.read_back(&ours.source, 1..=run.sizes.checked_flushes)?);
    report.figure("reading_vs_alone", our_result.vs_alone(Pace::AsWritten));
    report.figure("reading_flat_out_vs_alone", our_result.vs_alone(Pace::FlatOut));
    report.figure("reading_bytes_per_s", our_result.read_bytes_per_s());
    let beside = |paced: &Paced| paced.mean_us(Pace::AsWritten);
    report.vs_raft_engine("reading_flushes", beside(&their_result) / beside(&our_result));
    let rates = our_result.read_bytes_per_s() / their_result.read_bytes_per_s();
    report.vs_raft_engine("reading_bytes", rates);
    Ok(())
}

impl Paced {
    fn mean_us(&self, pace: Pace) -> f64 {
        median(self.flushes[pace as usize].iter().map(Histogram::mean)) / 1e3
    }

    /// How many times as long the mean flush took as alone in the same round.
    fn vs_alone(&self, pace: Pace) -> f64 {
        let [alone, ..] = &self.flushes;
        let pairs = alone.iter().zip(&self.flushes[pace as usize]);
        median(pairs.map(|(alone, reading)| reading.mean() / alone.mean()))
    }

    fn read_bytes_per_s(&self) -> f64 {
        median(self.flat_out_bytes_per_s.iter().copied())
    }

    fn print(&self, name: &str) {
        println!(
            "  {name:24} mean alone {:>9.1} us   reading as much as is written {:>9.1} us   flat out {:>9.1} us \
             at {:.1} MB/s",
            self.mean_us(Pace::Nothing),
            self.mean_us(Pace::AsWritten),
            self.mean_us(Pace::FlatOut),
            self.read_bytes_per_s() / 1e6
        );
    }
}

fn paced<S: Subject>(
    run: &Run,
    subject: &mut S,
    load: Load,
    reader: impl Fn(&mut S) -> (u64, Read),
) -> Result<Paced> {
    let mut paced = Paced::default();
    for round in 0..=run.sizes.moving_rounds {
        for pace in PACES {
            let (last, read) = reader(subject);
            let seed = run.seed + round as u64;
            let (times, bytes_per_s) = beside(run, subject, load, pace, (last, read, seed))?;
            subject.rest()?;
            if round == 0 {
                continue;
            }
            paced.flushes[pace as usize].push(times);
            if pace == Pace::FlatOut {
                paced.flat_out_bytes_per_s.push(bytes_per_s);
            }
        }
    }
    Ok(paced)
}

/// What the reading thread may do, and has done.
#[derive(Default)]
struct Reading {
    is_stopping: AtomicBool,
    bytes_allowed: AtomicU64,
    bytes: AtomicU64,
}

/// One stretch of flushes beside a reader; their times, and bytes read in a second.
fn beside<S: Subject>(
    run: &Run,
    subject: &mut S,
    load: Load,
    pace: Pace,
    (last, mut read, seed): (u64, Read, u64),
) -> Result<(Histogram<u64>, f64)> {
    let flushes = Sizes::flushes(run.sizes.moving_bytes / 2, load.payload_bytes());
    // As many as one read has bytes.
    let step = (READ_BYTES as u64).div_ceil(load.payload_bytes());
    let shared = Arc::new(Reading::default());
    if pace == Pace::FlatOut {
        shared.bytes_allowed.store(u64::MAX, Ordering::Release);
    }
    let mut random = SmallRng::seed_from_u64(seed);
    let thread = std::thread::Builder::new().name(String::from("reader")).spawn({
        let shared = shared.clone();
        move || -> Result<()> {
            while !shared.is_stopping.load(Ordering::Acquire) {
                if shared.bytes.load(Ordering::Relaxed) >= shared.bytes_allowed.load(Ordering::Acquire) {
                    std::thread::park();
                    continue;
                }
                let found = read(random.random_range(1..=load.groups), random.random_range(1..=last))?;
                shared.bytes.fetch_add(found as u64, Ordering::Relaxed);
            }
            Ok(())
        }
    })?;
    let mut times = times();
    let began = Instant::now();
    let mut flushed = Ok(());
    for _ in 0..flushes.div_ceil(step) {
        flushed = subject.flush(step, &mut times);
        if flushed.is_err() {
            break;
        }
        if pace == Pace::AsWritten {
            shared.bytes_allowed.fetch_add(step * load.payload_bytes(), Ordering::AcqRel);
            thread.thread().unpark();
        }
    }
    let time = began.elapsed();
    shared.is_stopping.store(true, Ordering::Release);
    thread.thread().unpark();
    thread.join().expect("the reader does not panic")?;
    flushed?;
    Ok((times, shared.bytes.load(Ordering::Relaxed) as f64 / time.as_secs_f64()))
}

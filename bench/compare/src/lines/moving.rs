//! What the mover does to the flushes beside it.

use hdrhistogram::Histogram;
use iroh_raft_bench::load::Load;

use super::Run;
use crate::error::Result;
use crate::report::Report;
use crate::sizes::Sizes;
use crate::subject::{median, record, times};

/// Flush times of the same load on the same files, with the mover held and with it working off what
/// was flushed meanwhile.
pub fn moving(run: &Run, report: &mut Report) -> Result<()> {
    let load = Load::new(64, 1024, 64);
    println!(
        "moving: {} records of 64 B a flush over {} groups, beside moves and without",
        1024, load.groups
    );
    let folder = run.scratch()?;
    let mut ours = run.ours(folder.path(), load, run.sizes.options())?;
    let (mut quiet, mut moving) = (times(), times());
    let mut ratios = Vec::new();
    let flushes = Sizes::flushes(run.sizes.moving_bytes, load.payload_bytes());
    for round in 0..=run.sizes.moving_rounds {
        let (mut quiet_now, mut moving_now) = (times(), times());
        ours.store.hold_moves(true);
        for _ in 0..flushes {
            let flushed = ours.store.flush(ours.source.next_flush())?;
            record(&mut quiet_now, flushed.duration)?;
        }
        ours.store.hold_moves(false);
        for _ in 0..flushes {
            let flushed = ours.store.flush(ours.source.next_flush())?;
            if flushed.is_beside_move {
                record(&mut moving_now, flushed.duration)?;
            }
        }
        ours.store.drain()?;
        // In the first round the files grow.
        if round > 0 {
            ratios.push(p99_9_us(&moving_now) / p99_9_us(&quiet_now));
            quiet.add(quiet_now).expect("histograms of the same shape");
            moving.add(moving_now).expect("histograms of the same shape");
        }
    }
    for (name, times) in [("quiet", &quiet), ("beside moves", &moving)] {
        let us = |percentile| times.value_at_percentile(percentile) as f64 / 1e3;
        println!(
            "  {name:24} p50 {:>9.1} us   p99 {:>9.1} us   p99.9 {:>9.1} us   {} flushes",
            us(50.0),
            us(99.0),
            us(99.9),
            times.len()
        );
    }
    report.add_hash(ours.store.read_back(&ours.source, 1..=run.sizes.checked_flushes)?);
    report.figure("moving_p99_9_vs_quiet", p99_9_us(&moving) / p99_9_us(&quiet));
    // Says more than the pooled one where others use the disk now and then.
    report.figure("moving_p99_9_vs_quiet_median_of_rounds", median(ratios.into_iter()));
    report.figure("moving_p99_9_us", p99_9_us(&moving));
    report.figure("quiet_p99_9_us", p99_9_us(&quiet));
    Ok(())
}

fn p99_9_us(times: &Histogram<u64>) -> f64 {
    times.value_at_percentile(99.9) as f64 / 1e3
}

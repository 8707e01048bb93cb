//! What the mover does to the flushes beside it.

use iroh_raft_bench::load::Load;

use super::Run;
use crate::error::Result;
use crate::report::Report;
use crate::sizes::Sizes;
use crate::subject::{record, times};

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
    let flushes = Sizes::flushes(run.sizes.moving_bytes, load.payload_bytes());
    for round in 0..=run.sizes.moving_rounds {
        ours.store.hold_moves(true);
        for _ in 0..flushes {
            let flushed = ours.store.flush(ours.source.next_flush())?;
            if round > 0 {
                record(&mut quiet, flushed.duration)?;
            }
        }
        ours.store.hold_moves(false);
        for _ in 0..flushes {
            let flushed = ours.store.flush(ours.source.next_flush())?;
            // In the first round the files grow.
            if round > 0 && flushed.is_beside_move {
                record(&mut moving, flushed.duration)?;
            }
        }
        ours.store.drain()?;
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
    let (quiet, moving) = (quiet.value_at_percentile(99.9) as f64, moving.value_at_percentile(99.9) as f64);
    report.figure("moving_p99_9_vs_quiet", if quiet > 0.0 { moving / quiet } else { 0.0 });
    report.figure("moving_p99_9_us", moving / 1e3);
    report.figure("quiet_p99_9_us", quiet / 1e3);
    Ok(())
}

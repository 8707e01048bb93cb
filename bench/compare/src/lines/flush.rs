//! Flushes within the journal's bound: alone, spread over groups, and large.

use iroh_raft_bench::load::Load;

use super::Run;
use crate::error::Result;
use crate::report::Report;
use crate::sizes::Sizes;
use crate::subject::{check, in_turns};

/// Records a flush where flushes are spread over groups.
const SPREAD_RECORDS: u64 = 512;

/// One record a flush, the next one after it is durable.
pub fn depth1(run: &Run, report: &mut Report) -> Result<()> {
    println!("depth1: one record of 64 B a flush");
    let mut line = run.line()?;
    line.add_both("", Load::new(1, 1, 64), false)?;
    line.add_bare(4096)?;
    let rounds = in_turns(&mut line.subjects, run.sizes.rounds, run.sizes.small_flushes)?;
    report.add_hash(check(&line.subjects, run.sizes.checked_flushes)?);
    rounds.iter().for_each(|rounds| rounds.print());
    let [ours, theirs, append, direct] = &rounds[..] else { unreachable!("four subjects were added") };
    report.figure("depth1_vs_bare", ours.p50_vs(append));
    report.figure("depth1_vs_direct", ours.p50_vs(direct));
    report.figure("depth1_us", ours.us(50.0));
    report.vs_raft_engine("depth1", theirs.p50_vs(ours));
    Ok(())
}

/// The same bytes a flush, spread over more and more groups.
pub fn groups(run: &Run, report: &mut Report) -> Result<()> {
    println!("groups: {SPREAD_RECORDS} records of 64 B a flush, spread over groups");
    let mut line = run.line()?;
    let counts = [1, 8, 64, 512];
    for count in counts {
        let load = Load::new(count, SPREAD_RECORDS, 64);
        line.add_both(&format!(", {count} groups"), load, false)?;
    }
    line.add_bare(SPREAD_RECORDS as usize * 68)?;
    let rounds = in_turns(&mut line.subjects, run.sizes.rounds, run.sizes.small_flushes)?;
    report.add_hash(check(&line.subjects, run.sizes.checked_flushes)?);
    rounds.iter().for_each(|rounds| rounds.print());
    for (position, count) in counts.into_iter().enumerate() {
        let (ours, theirs) = (&rounds[2 * position], &rounds[2 * position + 1]);
        if count > 1 {
            report.figure(&format!("groups{count}_vs_1"), ours.p50_vs(&rounds[0]));
        }
        report.vs_raft_engine(&format!("groups_{count}"), theirs.p50_vs(ours));
    }
    Ok(())
}

/// Large flushes into the journal, nothing moved meanwhile.
pub fn burst(run: &Run, report: &mut Report) -> Result<()> {
    for (name, figure, load) in [
        ("burst_64b", "burst_records_64b_per_s", Load::new(64, 8192, 64)),
        ("burst_64b_1_group", "burst_records_64b_1_group_per_s", Load::new(1, 8192, 64)),
        ("burst_64k", "burst_bytes_64k_per_s", Load::new(16, 16, 64 << 10)),
    ] {
        println!(
            "{name}: {} records of {} B a flush over {} groups, within the journal's bound",
            load.records(),
            load.record_bytes,
            load.groups
        );
        let mut line = run.line()?;
        line.add_both("", load, true)?;
        line.add_bare(load.entry_bytes() as usize)?;
        let flushes = Sizes::flushes(run.sizes.burst_bytes, load.payload_bytes());
        let rounds = in_turns(&mut line.subjects, run.sizes.rounds, flushes)?;
        report.add_hash(check(&line.subjects, run.sizes.checked_flushes)?);
        rounds.iter().for_each(|rounds| rounds.print());
        let unit = if load.record_bytes == 64 { load.records() } else { load.payload_bytes() };
        report.figure(figure, rounds[0].per_s() * unit as f64);
        report.vs_raft_engine(name, rounds[1].mean_vs(&rounds[0]));
    }
    Ok(())
}

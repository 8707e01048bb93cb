//! Bytes to the device for each byte of a record, both files together, moves included.

use iroh_raft_bench::load::Load;
use serde_json::{Map, Value, json};

use super::Run;
use crate::device::Written;
use crate::error::Result;
use crate::report::{Report, rounded};
use crate::sizes::Sizes;
use crate::subject::{Subject, times};

/// The workload with a figure of its own.
const HEADLINE: &str = "1k_128";

/// Per workload.
pub fn amplification(run: &Run, report: &mut Report) -> Result<()> {
    println!("write amplification: bytes to the device per byte of a record, everything moved and synced");
    println!("  process: what this process made the kernel write; device: what the device was given, by all");
    let mut all = Map::new();
    let mut headline = 0.0;
    for (name, load, share) in [
        (HEADLINE, Load::new(64, 128, 1024), 1),
        ("1k_128_1_group", Load::new(1, 128, 1024), 1),
        ("64b_8192", Load::new(64, 8192, 64), 1),
        ("64k_16", Load::new(16, 16, 64 << 10), 1),
        // Small flushes cost pages and times: fewer of them.
        ("64b_64", Load::new(64, 64, 64), 32),
        ("64b_1", Load::new(1, 1, 64), 8192),
    ] {
        let flushes = Sizes::flushes(run.sizes.amplified_bytes / share, load.payload_bytes());
        let payload = (flushes * load.payload_bytes()) as f64;
        // The device's count has the file system's journal in it, and whatever else runs, which only
        // ever adds: of several counts the least is the best. The one others rely on is made thrice.
        let tries = if name == HEADLINE { 3 } else { 1 };
        let mut counts = Vec::new();
        for _ in 0..tries {
            let (written, sum) = ours(run, load, flushes)?;
            report.add_hash(sum);
            counts.push(written);
        }
        let process = counts.iter().map(|written| written.process).min().unwrap_or(0);
        let ours = Written { process, device: counts.iter().filter_map(|written| written.device).min() };
        let theirs = theirs(run, load, flushes)?;
        let mut figures = Map::new();
        for (who, written) in [("ours", ours), ("raft_engine", theirs)] {
            let process = written.process as f64 / payload;
            let device = written.device.map(|bytes| bytes as f64 / payload);
            let shown = device.map_or_else(|| String::from("unknown"), |device| format!("{device:.2}"));
            println!("  {name:16} {who:12} process {process:>8.2}   device {shown:>8}");
            figures.insert(
                who.to_owned(),
                json!({ "process": rounded(process), "device": device.map(rounded) }),
            );
        }
        if name == HEADLINE {
            headline = ours.device.unwrap_or(ours.process) as f64 / payload;
        }
        all.insert(name.to_owned(), Value::Object(figures));
    }
    report.value("write_amplification", Value::Object(all));
    report.figure("write_amplification_1k_128", headline);
    Ok(())
}

fn ours(run: &Run, load: Load, flushes: u64) -> Result<(Written, u32)> {
    let folder = run.scratch()?;
    let mut ours = run.ours(folder.path(), load, run.sizes.options())?;
    let before = Written::now(folder.path())?;
    ours.flush(flushes, &mut times())?;
    ours.store.drain()?;
    let written = Written::now(folder.path())?.since(before);
    Ok((written, ours.store.read_back(&ours.source, 1..=run.sizes.checked_flushes.min(flushes))?))
}

fn theirs(run: &Run, load: Load, flushes: u64) -> Result<Written> {
    let folder = run.scratch()?;
    let mut theirs = run.theirs(folder.path(), load)?;
    let before = Written::now(folder.path())?;
    theirs.flush(flushes, &mut times())?;
    Ok(Written::now(folder.path())?.since(before))
}

//! From the start of a process to its first flush, on a log that another one left when it was killed.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use iroh_raft_bench::load::{Load, Source};
use iroh_raft_bench::store::Store;
use rustix::fs::Advice;

use super::Run;
use crate::error::{BenchError, Result};
use crate::peer::Peer;
use crate::report::Report;
use crate::sizes::REOPEN_BYTES;

/// Records of each entry, 64 B each.
const ENTRY_RECORDS: u64 = 64;
/// What a child says when the log is as large as it should be.
const FILLED: &str = "filled";
/// What a child says after its first flush.
const FLUSHED: &str = "flushed";

/// Whose log.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub enum Who {
    /// Ours.
    Ours,
    /// raft-engine's.
    RaftEngine,
}

/// What a child process does.
#[derive(Clone, Debug, clap::Args)]
pub struct ChildArgs {
    /// Whose log.
    #[arg(long)]
    pub who: Who,
    /// Where it is.
    #[arg(long)]
    pub path: std::path::PathBuf,
    /// Groups in it.
    #[arg(long)]
    pub groups: u64,
    /// Payload bytes to fill it with; none: reopen it.
    #[arg(long)]
    pub fill_bytes: Option<u64>,
}

/// Both subjects.
pub fn reopen(run: &Run, report: &mut Report) -> Result<()> {
    println!(
        "reopen: {} MB retained in {} groups, killed while it wrote, page cache dropped",
        run.sizes.reopen_bytes / 1_000_000,
        run.sizes.reopen_groups
    );
    let ours = one(run, Who::Ours)?;
    let theirs = one(run, Who::RaftEngine)?;
    let name = match run.sizes.reopen_bytes {
        REOPEN_BYTES => String::from("reopen_10gb_ms"),
        bytes => format!("reopen_{}mb_ms", bytes / 1_000_000),
    };
    report.figure(&name, ours.as_secs_f64() * 1e3);
    report.vs_raft_engine("reopen", theirs.as_secs_f64() / ours.as_secs_f64());
    Ok(())
}

fn one(run: &Run, who: Who) -> Result<Duration> {
    let folder = run.scratch()?;
    let path = folder.path().join("log");
    let began = Instant::now();
    let (mut child, mut lines) = spawn(run, who, &path, Some(run.sizes.reopen_bytes))?;
    let filled = expect(&mut lines, FILLED);
    // While it writes: what is in its journal then has to be read again.
    child.kill()?;
    child.wait()?;
    filled?;
    let (files, bytes) = drop_from_cache(folder.path())?;
    println!(
        "  {who:?}: filled in {:.1} s: {files} files, {:.2} GB",
        began.elapsed().as_secs_f64(),
        bytes as f64 / 1e9
    );
    let began = Instant::now();
    let (mut child, mut lines) = spawn(run, who, &path, None)?;
    let found = expect(&mut lines, FLUSHED);
    let time = began.elapsed();
    // It reads everything once more, and ends by itself.
    let status = child.wait()?;
    let found = found?;
    if !status.success() {
        return Err(BenchError::Child { what: format!("ended with {status}") });
    }
    println!("  {who:?}: first flush after {:.1} ms ({found})", time.as_secs_f64() * 1e3);
    Ok(time)
}

fn spawn(
    run: &Run,
    who: Who,
    path: &Path,
    fill_bytes: Option<u64>,
) -> Result<(Child, BufReader<ChildStdout>)> {
    let who = if who == Who::Ours { "ours" } else { "raft-engine" };
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["--backend", &run.backend, "--seed", &run.seed.to_string()]);
    command.args(["child", "--who", who, "--groups", &run.sizes.reopen_groups.to_string(), "--path"]);
    command.arg(path);
    if let Some(bytes) = fill_bytes {
        command.args(["--fill-bytes", &bytes.to_string()]);
    }
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
    let output = child.stdout.take().ok_or_else(|| BenchError::Child { what: "has no output".into() })?;
    Ok((child, BufReader::new(output)))
}

/// Waits for a child to say something; returns what it says after that.
fn expect(lines: &mut BufReader<ChildStdout>, word: &str) -> Result<String> {
    let mut line = String::new();
    lines.read_line(&mut line)?;
    match line.trim_end().strip_prefix(word) {
        Some(rest) => Ok(rest.trim_start().to_owned()),
        None => Err(BenchError::Child { what: format!("said {line:?} instead of {word:?}") }),
    }
}

/// Takes the pages of all files in a folder out of the page cache.
fn drop_from_cache(folder: &Path) -> Result<(u64, u64)> {
    rustix::fs::syncfs(File::open(folder)?).map_err(std::io::Error::from)?;
    let (mut files, mut bytes) = (0, 0);
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                folders.push(entry.path());
                continue;
            }
            let file = File::open(entry.path())?;
            rustix::fs::fadvise(&file, 0, None, Advice::DontNeed).map_err(std::io::Error::from)?;
            files += 1;
            bytes += file.metadata()?.len();
        }
    }
    // Metadata of the file system as well, where that is allowed; elsewhere the files have to do.
    let _ = fs::write("/proc/sys/vm/drop_caches", "3");
    Ok((files, bytes))
}

/// What a child process does.
pub fn child(run: &Run, args: &ChildArgs) -> Result<()> {
    let load = Load::new(args.groups, args.groups * ENTRY_RECORDS, 64);
    match (args.who, args.fill_bytes) {
        (Who::Ours, Some(bytes)) => {
            let mut store = Store::open(&args.path, run.disk.clone(), run.sizes.options())?;
            fill(load, run.seed, bytes, |flush| Ok(store.flush(flush).map(drop)?))
        }
        (Who::RaftEngine, Some(bytes)) => {
            let mut peer = Peer::open(&args.path, 2 * bytes)?;
            fill(load, run.seed, bytes, |flush| peer.flush(flush).map(drop))
        }
        (Who::Ours, None) => {
            let mut source = Source::new(load, run.seed);
            let mut store = Store::open(&args.path, run.disk.clone(), run.sizes.options())?;
            source.skip_to(store.last_seq());
            store.flush(source.next_flush())?;
            let report = store.report();
            println!(
                "{FLUSHED} of which recovery {:.1} ms, {} blocks, {:.1} MB of journal",
                report.duration.as_secs_f64() * 1e3,
                report.blocks,
                report.bytes as f64 / 1e6
            );
            Ok(())
        }
        (Who::RaftEngine, None) => {
            let mut source = Source::new(load, run.seed);
            let mut peer = Peer::open(&args.path, u64::MAX / 4)?;
            source.skip_to(peer.last_seq());
            peer.flush(source.next_flush())?;
            println!("{FLUSHED}");
            Ok(())
        }
    }
}

/// Flushes for ever; says when `bytes` of payload are durable.
fn fill(
    load: Load,
    seed: u64,
    bytes: u64,
    mut flush: impl FnMut(iroh_raft_bench::load::Flush<'_>) -> Result<()>,
) -> Result<()> {
    let mut source = Source::new(load, seed);
    // Bound: whoever started this kills it long before.
    while source.seq() * load.payload_bytes() < 2 * bytes {
        flush(source.next_flush())?;
        if source.seq() == bytes.div_ceil(load.payload_bytes()) {
            println!("{FILLED}");
        }
    }
    Ok(())
}

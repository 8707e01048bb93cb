//! The same work on our storage, on raft-engine and on a bare file, in the same run.
//!
//! Subjects take turns in short rounds; figures are medians over the rounds, ratios medians over the
//! ratios of each round. Work that a subject does in the background is done in measured time, or
//! the line says otherwise. Making the entries is in nobody's time.
#![forbid(unsafe_code)]

mod device;
mod error;
mod lines;
mod peer;
mod report;
mod sizes;
mod subject;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use clap::{Parser, Subcommand};
use iroh_raft_bench::store::StoreError;
use iroh_raft_core::{ClusterId, NodeId, Placement};
use iroh_raft_storage::{BackendChoice, BackendKind, DataFolder, DirectDisk, Disk, FileDisk, FolderIdentity};
use serde_json::{Value, json};

use crate::error::{BenchError, Result};
use crate::lines::reopen::ChildArgs;
use crate::lines::{Run, amplification, flush, moving, reading, reopen, sustained};
use crate::report::Report;
use crate::sizes::Sizes;

/// Compares iroh-raft's storage with raft-engine and bare files.
#[derive(Parser, Debug)]
struct Args {
    /// Run every line as small as it can be: its figures say nothing.
    #[arg(long, conflicts_with = "long")]
    smoke: bool,
    /// Run long enough for figures to be quoted.
    #[arg(long)]
    long: bool,
    /// File to write the figures to, as one JSON object.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Folder on the device to be measured; a folder in it is made and removed.
    #[arg(long, default_value = ".")]
    folder: PathBuf,
    /// Lines to run; all of them if not given.
    #[arg(long = "line")]
    lines: Vec<String>,
    /// Bytes retained when reopening is measured.
    #[arg(long)]
    reopen_bytes: Option<u64>,
    /// Bytes of the journal that our storage moves at a time; its default if not given.
    #[arg(long)]
    move_bytes: Option<u64>,
    /// Seed of the records.
    #[arg(long, default_value_t = 20_240_229)]
    seed: u64,
    /// How our storage writes its files: auto (what it chooses itself, here), buffered or direct.
    #[arg(long, default_value = "auto")]
    backend: BackendChoice,
    #[command(subcommand)]
    command: Option<Inner>,
}

#[derive(Subcommand, Debug)]
enum Inner {
    /// What a child process of the reopen line does.
    #[command(hide = true)]
    Child(ChildArgs),
}

type Line = fn(&Run, &mut Report) -> Result<()>;

/// The lines, in order.
const LINES: [(&str, Line); 8] = [
    ("depth1", flush::depth1),
    ("groups", flush::groups),
    ("burst", flush::burst),
    ("sustained", sustained::sustained),
    ("moving", moving::moving),
    ("amplification", amplification::amplification),
    ("reading", reading::reading),
    ("reopen", reopen::reopen),
];

fn main() -> ExitCode {
    match run(Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("storage comparison: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: Args) -> Result<()> {
    let mut sizes = match (args.smoke, args.long) {
        (true, _) => Sizes::smoke(),
        (_, true) => Sizes::long(),
        _ => Sizes::short(),
    };
    sizes.reopen_bytes = args.reopen_bytes.unwrap_or(sizes.reopen_bytes);
    sizes.move_bytes = args.move_bytes.unwrap_or(sizes.move_bytes);
    if let Some(Inner::Child(child)) = &args.command {
        let (disk, backend) = backend(args.backend, &child.path)?;
        let run = Run { folder: child.path.clone(), sizes, disk, backend, seed: args.seed };
        return reopen::child(&run, child);
    }
    if let Some(name) = args.lines.iter().find(|name| LINES.iter().all(|(known, _)| known != name)) {
        let known = LINES.map(|(name, _)| name).join(", ");
        return Err(BenchError::NoSuchLine { name: name.clone(), known });
    }
    std::fs::create_dir_all(&args.folder)?;
    let folder = tempfile::Builder::new().prefix("bench-").tempdir_in(&args.folder)?;
    let (disk, backend) = backend(args.backend, &folder.path().join("calibration"))?;
    let run = Run { folder: folder.path().to_owned(), sizes, disk, backend, seed: args.seed };
    let mut report = Report::default();
    println!("{} form, {} backend, seed {}", run.sizes.name, run.backend, run.seed);
    for (name, line) in LINES {
        if args.lines.is_empty() || args.lines.iter().any(|wanted| wanted == name) {
            line(&run, &mut report)?;
        }
    }
    println!("hash {:08x}", report.hash());
    report.value("form", json!(run.sizes.name));
    report.value("backend", json!(run.backend));
    report.value("machine", machine());
    report.value("versions", versions());
    if let Some(path) = &args.json {
        std::fs::write(path, format!("{:#}\n", report.into_json()))?;
    }
    Ok(())
}

/// The disk for a choice, and its name. Measured in `folder` if it is not fixed.
fn backend(choice: BackendChoice, folder: &Path) -> Result<(Arc<dyn Disk>, String)> {
    let kind = match choice {
        BackendChoice::Fixed(kind) => kind,
        BackendChoice::Auto => {
            let identity = FolderIdentity {
                cluster: ClusterId([1; 16]),
                node: NodeId(1),
                placement: Placement::ONE_SHARD,
            };
            let mut folder = DataFolder::open(folder, identity).map_err(StoreError::from)?;
            let (kind, calibration) = folder.choose_backend(choice).map_err(StoreError::from)?;
            if let Some(calibration) = calibration {
                println!("calibration: {calibration:?}");
            }
            kind
        }
    };
    let disk: Arc<dyn Disk> = match kind {
        BackendKind::Buffered => Arc::new(FileDisk),
        BackendKind::Direct => Arc::new(DirectDisk),
    };
    Ok((disk, kind.to_string()))
}

/// What it ran on.
fn machine() -> Value {
    let read = |path| std::fs::read_to_string(path).unwrap_or_default();
    let cpu = read("/proc/cpuinfo");
    let cpu = cpu.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    json!({
        "cpu": cpu.map_or("unknown", |(_, name)| name),
        "cpus": std::thread::available_parallelism().map_or(0, usize::from),
        "kernel": read("/proc/sys/kernel/osrelease").trim(),
    })
}

fn versions() -> Value {
    let lock = include_str!("../Cargo.lock");
    let version = |name: &str| {
        let (_, rest) = lock.split_once(&format!("name = \"{name}\"\nversion = \""))?;
        Some(rest.split_once('"')?.0)
    };
    json!({
        "iroh-raft-storage": version("iroh-raft-storage"),
        "redb": version("redb"),
        "raft-engine": version("raft-engine"),
        "raft": version("raft"),
    })
}

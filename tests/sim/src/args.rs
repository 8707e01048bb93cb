//! The command line: which seeds, and what is said about them.

use std::fs::File;
use std::io::BufReader;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use clap::Parser;
use iroh_raft_core::{NodeId, Outputs, ShardId};
use iroh_raft_driver::recording::{self, Recording, Report, Step, StepKind, Words};

use crate::marks::Marks;
use crate::plan::Plan;
use crate::shrink::{self, Less};
use crate::sim::{self, Outcome};

/// Lines told of the end of a run that broke a rule.
const LAST_TOLD: usize = 30;

/// Simulates clusters with faults, one run for each seed.
#[derive(Parser, Debug)]
struct Args {
    /// Number of seeds.
    #[arg(long, default_value_t = 100)]
    seeds: u64,
    /// First seed.
    #[arg(long, default_value_t = 1)]
    from: u64,
    /// Stop after so many minutes, whatever number of seeds has run.
    #[arg(long)]
    minutes: Option<f64>,
    /// Run this seed alone, and tell what happened.
    #[arg(long)]
    seed: Option<u64>,
    #[command(flatten)]
    less: Less,
    /// With `--seed`: take away what the violation does not need.
    #[arg(long, requires = "seed")]
    shrink: bool,
    /// Run each seed twice and compare what the cores took and said.
    #[arg(long)]
    twice: bool,
    /// Fail when something that the runs should have reached was not.
    #[arg(long)]
    marks: bool,
    /// Switch this bug on, and run until it is found. Needs a build with `--cfg mutants`.
    #[arg(long)]
    mutant: Option<String>,
    /// With `--seed`: records a shard, each of its processes in a file of its own, `FILE.<number of the start>`.
    #[arg(long, value_name = "FILE", requires = "seed")]
    record: Option<PathBuf>,
    /// Node to record.
    #[arg(long, default_value_t = 1, requires = "record")]
    node: u64,
    /// Shard of the node to record.
    #[arg(long, default_value_t = 0, requires = "record")]
    shard: u16,
    /// Replays a recording, of a simulated shard or a real one, and compares all that it says.
    #[arg(long, value_name = "FILE", conflicts_with = "seed")]
    replay: Option<PathBuf>,
    /// With `--replay`: tells these steps, from 1, both included.
    #[arg(long, value_name = "FROM..TO", requires = "replay", value_parser = step_range)]
    step: Option<RangeInclusive<u64>>,
    /// Runs at a time.
    #[arg(long, default_value_t = 2)]
    threads: usize,
}

fn step_range(text: &str) -> Result<RangeInclusive<u64>, String> {
    let range = text.split_once("..").and_then(|(from, to)| Some(from.parse().ok()?..=to.parse().ok()?));
    range.ok_or_else(|| format!("{text:?} is not of the form 10..20"))
}

#[derive(Default)]
struct Totals {
    runs: u64,
    violations: u64,
    marks: Marks,
    elections: u64,
    faults: u64,
    disk_faults: u64,
    power_cuts: u64,
    partitions: u64,
    acknowledged: u64,
    operations: u64,
    undecided: u64,
    simulated: Duration,
}

impl Totals {
    fn add(&mut self, outcome: &Outcome) {
        self.runs += 1;
        self.violations += u64::from(outcome.violation.is_some());
        self.marks.merge(&outcome.marks);
        self.elections += outcome.elections;
        self.faults += outcome.faults;
        self.disk_faults += outcome.disk_faults;
        self.power_cuts += outcome.power_cuts;
        self.partitions += outcome.partitions;
        self.acknowledged += outcome.acknowledged;
        self.operations += outcome.operations;
        self.undecided += outcome.undecided;
        self.simulated += outcome.simulated;
    }
}

pub(crate) fn run() -> ExitCode {
    let args = Args::parse();
    if let Some(name) = &args.mutant
        && let Err(problem) = mutate(name)
    {
        eprintln!("{problem}");
        return ExitCode::from(2);
    }
    if let Some(seed) = args.seed {
        let target = |file| sim::Target { file, node: NodeId(args.node), shard: ShardId(args.shard) };
        if args.shrink {
            return run_smaller(seed, &args.less);
        }
        return run_one(seed, &args.less, args.record.map(target));
    }
    if let Some(file) = &args.replay {
        return replay(file, args.step.as_ref());
    }
    // Panics inside redb are part of the storage's work with damaged files; others end a run as violations.
    std::panic::set_hook(Box::new(|_| {}));
    let started = Instant::now();
    let limit = args.minutes.map(|minutes| Duration::from_secs_f64(minutes * 60.0));
    let next = AtomicU64::new(args.from);
    let end = args.from.saturating_add(args.seeds);
    let is_over = AtomicBool::new(false);
    let totals = Mutex::new(Totals::default());
    std::thread::scope(|scope| {
        for _ in 0..args.threads.max(1) {
            scope.spawn(|| {
                while !is_over.load(Ordering::Relaxed) && limit.is_none_or(|limit| started.elapsed() < limit)
                {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= end {
                        return;
                    }
                    let plan = Plan::draw(seed);
                    let outcome = sim::run(&plan, false, None);
                    let mut is_same = true;
                    if args.twice {
                        let again = sim::run(&plan, false, None);
                        is_same = again.digest == outcome.digest;
                    }
                    let mut totals = totals.lock().expect("no run panics");
                    totals.add(&outcome);
                    if !is_same {
                        totals.violations += 1;
                        println!("seed {seed}: two runs differ");
                    }
                    if let Some(violation) = &outcome.violation {
                        println!("seed {seed}: {}: {}", violation.invariant, violation.what);
                        tell_last(&plan);
                        println!("  at commit {}; replay: cargo xtask sim --seed {seed}", commit());
                        is_over.store(true, Ordering::Relaxed);
                    }
                }
            });
        }
    });
    let totals = totals.into_inner().expect("no run panics");
    report(&totals, started.elapsed(), &args)
}

/// Runs a plan once more, to tell what happened last.
fn tell_last(plan: &Plan) {
    let told = sim::run(plan, true, None).told;
    let end = told.iter().position(|line| line.contains("VIOLATION")).unwrap_or(told.len());
    told[end.saturating_sub(LAST_TOLD)..end].iter().for_each(|line| println!("  {line}"));
}

/// What is checked out here, if git knows.
fn commit() -> String {
    let described = std::process::Command::new("git").args(["describe", "--always", "--dirty"]).output();
    let described = described.ok().filter(|output| output.status.success());
    described
        .map_or_else(|| "unknown".into(), |output| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// Switches a bug on.
#[cfg(mutants)]
fn mutate(name: &str) -> Result<(), String> {
    use iroh_raft_core::mutants::{Mutant, choose};
    if name == "list" {
        Mutant::ALL.iter().for_each(|mutant| println!("{mutant:?} {}", mutant.describe()));
        return Err(format!("{} mutants", Mutant::ALL.len()));
    }
    let mutant = Mutant::ALL.iter().find(|mutant| format!("{mutant:?}") == name);
    mutant.map(|mutant| choose(*mutant)).ok_or_else(|| format!("no mutant {name:?}: `--mutant list` has all"))
}

#[cfg(not(mutants))]
fn mutate(_: &str) -> Result<(), String> {
    Err("this build has no mutants: run `cargo xtask mutants`".into())
}

fn report(totals: &Totals, took: Duration, args: &Args) -> ExitCode {
    for (mark, count) in totals.marks.iter() {
        println!("  {count:>10} {mark}");
    }
    let missing = totals.marks.missing();
    if !missing.is_empty() {
        println!("never reached: {}", missing.join(", "));
    }
    let hours = totals.simulated.as_secs_f64() / 3600.0;
    println!(
        "{} seeds, {} violations, {} elections, {} faults ({} partitions, {} power cuts, {} of disks), \
         {} acknowledged records, {} operations ({} registers undecided), {hours:.2} simulated hours in {:.1} minutes, {:.0} hours an hour",
        totals.runs,
        totals.violations,
        totals.elections,
        totals.faults,
        totals.partitions,
        totals.power_cuts,
        totals.disk_faults,
        totals.acknowledged,
        totals.operations,
        totals.undecided,
        took.as_secs_f64() / 60.0,
        hours / (took.as_secs_f64() / 3600.0),
    );
    let is_good = totals.violations == 0 && (!args.marks || missing.is_empty());
    if is_good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn replay(file: &Path, steps: Option<&RangeInclusive<u64>>) -> ExitCode {
    let opened = File::open(file).map_err(|error| error.to_string());
    let recording =
        opened.and_then(|file| Recording::open(BufReader::new(file)).map_err(|error| error.to_string()));
    let replayed = recording.and_then(|recording| {
        let Recording { config, shard, groups, last_seq, .. } = &recording;
        println!("node {} shard {shard}, {} groups, flush {last_seq}", config.node, groups.len());
        let told = |step: &Step, outputs: &Outputs| {
            if steps.is_some_and(|steps| steps.contains(&step.number)) {
                match step.kind {
                    StepKind::Input(_) => println!("{step}"),
                    StepKind::Turn { .. } => println!("{step}: {}", Words(outputs)),
                }
            }
        };
        recording::replay(recording, told).map_err(|error| error.to_string())
    });
    match replayed {
        Ok(Report { inputs, turns, ending }) => {
            println!("{inputs} inputs, {turns} turns with the same outputs, ending: {ending:?}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            println!("{}: {error}", file.display());
            ExitCode::FAILURE
        }
    }
}

fn run_smaller(seed: u64, less: &Less) -> ExitCode {
    std::panic::set_hook(Box::new(|_| {}));
    match shrink::shrink(seed, less.clone()) {
        Some(less) => {
            println!("  replay: cargo xtask sim --seed {seed}{less}");
            ExitCode::FAILURE
        }
        None => {
            println!("seed {seed}: no violation");
            ExitCode::SUCCESS
        }
    }
}

fn run_one(seed: u64, less: &Less, recorded: Option<sim::Target>) -> ExitCode {
    let plan = less.plan(seed);
    println!("{plan:#?}");
    let outcome = sim::run(&plan, true, recorded);
    outcome.told.iter().for_each(|line| println!("{line}"));
    for (mark, count) in outcome.marks.iter() {
        println!("  {count:>10} {mark}");
    }
    println!("digest {:016x}, {:.1} simulated seconds", outcome.digest, outcome.simulated.as_secs_f64());
    match &outcome.violation {
        Some(violation) => {
            println!("seed {seed}: {}: {}", violation.invariant, violation.what);
            ExitCode::FAILURE
        }
        None => {
            println!("seed {seed}: no violation");
            ExitCode::SUCCESS
        }
    }
}

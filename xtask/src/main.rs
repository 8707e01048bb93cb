//! The project's own commands: `cargo xtask test [--quick]`, `cargo xtask lint`, `cargo xtask bench`,
//! `cargo xtask sim` and `cargo xtask mutants`.
//!
//! Each runs every step even after one has failed, says at the end what failed, and exits 0 only
//! when nothing did.
#![forbid(unsafe_code)]

mod bench;
mod deps;
mod elsewhere;
mod lint;
mod sim;
mod step;
mod test;

use std::process::ExitCode;

const USAGE: &str =
    "usage: cargo xtask test [--quick] | cargo xtask lint | cargo xtask bench storage --json FILE [--long]
       cargo xtask bench core --json FILE | cargo xtask bench speed --json FILE [--runs N] [--only PART]...
       cargo xtask bench picture --svg FILE [--runs N]
       cargo xtask sim [OPTIONS] | cargo xtask mutants

  test           all tests, doc tests and what others read of ours included; the last line says how many passed and failed
  test --quick   unit tests only, with few cases for each property test
  lint           formatting, clippy, rustdoc, dependency rules, licences; warnings are errors
  bench storage  our storage, raft-engine and bare files in the same run; writes the figures to FILE.
                 The short form takes 3 minutes and 30 GB of disk, --long half an hour
  bench core     our core and openraft in memory, in turns; half a minute
  bench speed    the whole engine: loads of clusters (medians of five runs, audited), one to thousands of groups, the
                 bridge beside a bare iroh stream, the core beside openraft; half an hour. --only: loads, embedded,
                 groups, bridge, core or allocations
  bench picture  throughput against latency, ours and the peers', drawn into FILE: medians of three runs; 15 minutes
  sim            simulated clusters with faults: --seeds N [--from S] [--minutes M] [--twice], or --seed S to be
                 told what happened; the last line has the totals, any violation is a failure
  mutants        switches known bugs on, one after the other, and counts the seeds until each is found";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let is_good = match args.as_slice() {
        ["test"] => test::run(false),
        ["test", "--quick"] => test::run(true),
        ["lint"] => lint::run(),
        ["bench", "storage", "--json", json] => bench::storage(json, false),
        ["bench", "storage", "--long", "--json", json] | ["bench", "storage", "--json", json, "--long"] => {
            bench::storage(json, true)
        }
        ["bench", "core", "--json", json] => bench::core(json),
        ["bench", "speed", args @ ..] if !args.is_empty() => bench::speed(args),
        ["bench", "picture", args @ ..] if !args.is_empty() => bench::picture(args),
        ["sim", rest @ ..] => sim::run(rest),
        ["mutants"] => sim::mutants(),
        ["help" | "--help" | "-h"] => {
            println!("{USAGE}");
            true
        }
        _ => {
            eprintln!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    if is_good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

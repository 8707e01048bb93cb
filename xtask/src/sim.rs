//! `cargo xtask sim` and `cargo xtask mutants`: the simulation, built apart because madsim replaces the clock and
//! the randomness of everything it is built with.

use std::path::PathBuf;
use std::process::Command;

use crate::step;

/// Seeds that are run twice in `cargo xtask test`: about two minutes on two cores.
const TEST_SEEDS: &str = "100";
/// Seeds within which each mutant must be found.
const MUTANT_SEEDS: &str = "300";

/// Builds the simulation; `None` if that fails.
fn build(folder: &str, flags: &str) -> Option<PathBuf> {
    let target = step::target_folder().join(folder);
    let mut command = step::cargo(&["build", "--locked", "--profile", "sim", "-p", "iroh-raft-sim"]);
    command.env("RUSTFLAGS", flags).env("CARGO_TARGET_DIR", &target);
    step::run("build of the simulation", &mut command).then(|| target.join("sim/sim"))
}

/// Clippy of the simulation: other builds see an empty program there.
pub(crate) fn lint() -> bool {
    let mut command = step::cargo(&["clippy", "--locked", "--profile", "sim", "-p", "iroh-raft-sim"]);
    let target = step::target_folder().join("sim");
    command.args(["--", "-D", "warnings"]).env("RUSTFLAGS", "--cfg madsim").env("CARGO_TARGET_DIR", target);
    step::run("clippy, simulation", &mut command)
}

/// Runs the simulation with these arguments. Returns whether it found nothing.
pub(crate) fn run(args: &[&str]) -> bool {
    let Some(program) = build("sim", "--cfg madsim") else { return false };
    step::run("simulation", Command::new(program).args(args))
}

/// The simulation as a test: how many passed and failed.
pub(crate) fn test() -> (u64, u64) {
    if run(&["--seeds", TEST_SEEDS, "--twice"]) { (1, 0) } else { (0, 1) }
}

/// Switches each mutant on and counts the seeds until it is found. Returns whether all were.
pub(crate) fn mutants() -> bool {
    let Some(program) = build("mutants", "--cfg madsim --cfg mutants") else { return false };
    let listed = Command::new(&program).args(["--mutant", "list"]).output();
    let listed =
        listed.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    let mut missed = Vec::new();
    println!("| mutant | seeds until found | what was seen |\n|---|---|---|");
    for (name, text) in listed.lines().filter_map(|line| line.split_once(' ')) {
        let found = Command::new(&program).args(["--mutant", name, "--seeds", MUTANT_SEEDS]).output();
        let found =
            found.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
        let seen = found.lines().find_map(|line| line.strip_prefix("seed ")?.split(": ").nth(1));
        let seeds = found.lines().find_map(|line| line.split_once(" seeds, ")).map(|(seeds, _)| seeds);
        match (seeds, seen) {
            (Some(seeds), Some(seen)) => println!("| `{name}`: {text} | {seeds} | {seen} |"),
            _ => {
                println!("| `{name}`: {text} | **not found** | |");
                missed.push(name);
            }
        }
    }
    println!("{} not found {}", missed.len(), missed.join(", "));
    missed.is_empty() && !listed.is_empty()
}

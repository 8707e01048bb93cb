//! `cargo xtask lint`: what the code must look like, and what it may depend on.

use std::fs;

use crate::{deps, sim, step};

/// Calls and types that the core's own clippy.toml has to name: without it a clock or a seed from
/// the system would go unseen.
const CORE_DISALLOWED: [&str; 6] = [
    "std::time::Instant::now",
    "std::time::SystemTime::now",
    "std::thread::spawn",
    "std::collections::HashMap",
    "std::fs",
    "std::net",
];

/// Runs every check. Returns whether all are clean.
pub(crate) fn run() -> bool {
    let mut failed = Vec::new();
    let mut check = |name: &'static str, is_good: bool| {
        if !is_good {
            failed.push(name);
        }
    };
    check("format", step::run("format", &mut step::cargo(&["fmt", "--all", "--check"])));
    check("dependency rules", deps::run());
    check("purity of the core", purity());
    check("licences", licences());
    check("clippy", clippy(&["--workspace", "--all-targets"], "clippy"));
    let with_features = [["--workspace", "--all-targets"], step::ALL_FEATURES].concat();
    check("clippy, all features", clippy(&with_features, "clippy, with what is off by default"));
    check("clippy, no network", clippy(&NO_NETWORK, "clippy, rings and frames without the endpoint"));
    check("clippy, the client alone", clippy(&CLIENT_ALONE, "clippy, the client without the engine"));
    check("clippy, simulation", sim::lint());
    check("documentation", documentation());
    check("comparison", comparison());
    check("fuzz targets", fuzz());
    if failed.is_empty() {
        println!("lint: clean");
        return true;
    }
    println!("lint: FAILED: {}", failed.join(", "));
    false
}

/// The part of the network that the simulation runs: it must build without iroh and tokio.
const NO_NETWORK: [&str; 4] = ["-p", "iroh-raft-netbridge", "--no-default-features", "--all-targets"];

/// What a program gets that only uses a cluster.
const CLIENT_ALONE: [&str; 4] = ["-p", "iroh-raft", "--no-default-features", "--lib"];

fn clippy(packages: &[&str], name: &str) -> bool {
    let mut command = step::cargo(&["clippy", "--locked"]);
    command.args(packages).args(["--", "-D", "warnings"]);
    step::run(name, &mut command)
}

fn documentation() -> bool {
    let mut command = step::cargo(&["doc", "--locked", "--workspace", "--no-deps"]);
    command.args(step::ALL_FEATURES);
    step::run("documentation", command.env("RUSTDOCFLAGS", "-D warnings"))
}

/// Format and clippy of bench/compare, which is no part of the workspace.
fn comparison() -> bool {
    let manifest = "bench/compare/Cargo.toml";
    let mut format = step::cargo(&["fmt", "--manifest-path", manifest, "--check"]);
    let mut clippy = step::comparison(&["clippy", "--all-targets"]);
    step::run("format, comparison", &mut format)
        & step::run("clippy, comparison", clippy.args(["--", "-D", "warnings"]))
}

/// Format and clippy of the fuzz targets, which are no part of the workspace; without libFuzzer, which wants a
/// C++ compiler.
fn fuzz() -> bool {
    let manifest = "fuzz/Cargo.toml";
    let mut format = step::cargo(&["fmt", "--manifest-path", manifest, "--check"]);
    let mut clippy =
        step::cargo(&["clippy", "--locked", "--manifest-path", manifest, "--no-default-features"]);
    clippy.arg("--target-dir").arg(step::target_folder()).args(["--", "-D", "warnings"]);
    step::run("format, fuzz targets", &mut format) & step::run("clippy, fuzz targets", &mut clippy)
}

/// Licences, sources and banned crates, by cargo-deny.
fn licences() -> bool {
    if !step::has_cargo_command("deny") {
        eprintln!("==> licences: SKIPPED, NOTHING WAS CHECKED: cargo-deny is not installed");
        eprintln!("    cargo install cargo-deny --locked --debug --no-default-features");
        return true;
    }
    let mut command = step::cargo(&["deny", "--locked", "--log-level", "error"]);
    step::run("licences", command.args(["check", "bans", "licenses", "sources"]))
}

/// Whether the core's clippy.toml still forbids what makes a shard differ from run to run. The
/// clippy step enforces it.
fn purity() -> bool {
    let path = "engine/core/clippy.toml";
    let text = fs::read_to_string(step::root().join(path)).unwrap_or_default();
    // Comments do not forbid anything.
    let rules: String = text.lines().filter(|line| !line.trim_start().starts_with('#')).collect();
    let missing: Vec<_> = CORE_DISALLOWED.iter().filter(|name| !rules.contains(**name)).collect();
    for name in &missing {
        eprintln!("{path} does not disallow {name}: add it with its reason");
    }
    missing.is_empty()
}

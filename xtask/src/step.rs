//! Running a command: said before it starts, its output shown as it comes.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Instant;

/// The workspace's folder.
pub(crate) fn root() -> PathBuf {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    package.parent().unwrap_or(package).to_path_buf()
}

/// What is off by default and is built, looked at and tested all the same. It changes the features of no other package, so
/// that builds with and without it share all but the package itself.
pub(crate) const ALL_FEATURES: [&str; 2] = ["--features", "iroh-raft-node/metrics-page"];

/// A `cargo` command in the workspace's folder.
pub(crate) fn cargo(args: &[&str]) -> Command {
    // Cargo names itself here, so that the same toolchain runs the steps.
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root()).args(args).stdin(Stdio::null());
    command
}

/// A `cargo` command for bench/compare, which is no part of the workspace, in the same target folder.
pub(crate) fn comparison(args: &[&str]) -> Command {
    let mut command = cargo(args);
    command.args(["--manifest-path", "bench/compare/Cargo.toml", "--target-dir"]);
    command.arg(target_folder());
    command
}

/// Where cargo builds the workspace.
pub(crate) fn target_folder() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), |folder| root().join(folder))
}

/// Whether `cargo <name>` is installed.
pub(crate) fn has_cargo_command(name: &str) -> bool {
    let asked = cargo(&[name, "--version"]).stdout(Stdio::null()).stderr(Stdio::null()).status();
    asked.is_ok_and(|status| status.success())
}

/// Runs a step with its output on ours. Returns whether it succeeded.
pub(crate) fn run(name: &str, command: &mut Command) -> bool {
    let started = announce(name);
    let is_good = match command.status() {
        Ok(status) => status.success(),
        Err(error) => {
            eprintln!("cannot start {}: {error}", command.get_program().display());
            false
        }
    };
    conclude(name, is_good, started);
    is_good
}

/// Runs a step, shows its output and also returns it: whether it succeeded, and all its lines.
pub(crate) fn run_and_read(name: &str, command: &mut Command) -> (bool, Vec<String>) {
    let started = announce(name);
    let child = match command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn() {
        Ok(child) => child,
        Err(error) => {
            eprintln!("cannot start {}: {error}", command.get_program().display());
            return (false, Vec::new());
        }
    };
    let mut child = child;
    let errors = child.stderr.take().map(|pipe| thread::spawn(move || copy(pipe, std::io::stderr())));
    let mut lines = child.stdout.take().map_or_else(Vec::new, |pipe| copy(pipe, std::io::stdout()));
    lines.extend(errors.and_then(|reader| reader.join().ok()).unwrap_or_default());
    let is_good = child.wait().is_ok_and(|status| status.success());
    conclude(name, is_good, started);
    (is_good, lines)
}

fn announce(name: &str) -> Instant {
    println!("==> {name}");
    Instant::now()
}

fn conclude(name: &str, is_good: bool, started: Instant) {
    let result = if is_good { "ok" } else { "FAILED" };
    println!("==> {name}: {result} in {:.1} s", started.elapsed().as_secs_f64());
}

fn copy(from: impl std::io::Read, mut to: impl Write) -> Vec<String> {
    let mut lines = Vec::new();
    let mut reader = BufReader::new(from);
    let mut bytes = Vec::new();
    while reader.read_until(b'\n', &mut bytes).is_ok_and(|count| count > 0) {
        // A closed terminal must not stop the child by a full pipe.
        let _ = to.write_all(&bytes);
        lines.push(String::from_utf8_lossy(&bytes).trim_end().to_owned());
        bytes.clear();
    }
    lines
}

//! `cargo xtask bench`: the comparisons of bench/compare, built for release and run.

use std::ffi::OsStr;
use std::process::Command;

use crate::step;

/// Runs the storage comparison and has its figures written to `json`. Returns whether it succeeded.
pub(crate) fn storage(json: &str, is_long: bool) -> bool {
    let Some(mut compare) = comparison("storage") else { return false };
    let target = step::target_folder();
    // Beside the build: a temporary folder may be in memory, where a sync costs nothing.
    compare.arg("--folder").arg(target.join("bench-data")).arg("--json").arg(json);
    if is_long {
        compare.arg("--long");
    }
    step::run("storage comparison", &mut compare)
}

/// Runs the core beside openraft and has the figures written to `json`. Returns whether it succeeded.
pub(crate) fn core(json: &str) -> bool {
    let Some(mut compare) = comparison("core") else { return false };
    step::run("core comparison", compare.arg("--json").arg(json))
}

/// Measures the whole engine; `args` go to it as they are. Returns whether it succeeded.
pub(crate) fn speed(args: &[&str]) -> bool {
    let build = ["build", "--locked", "--release", "-p", "iroh-raft-tests", "--bin", "allocations"];
    let count = step::target_folder().join("release").join("allocations");
    step::run("build of the count of allocations", &mut step::cargo(&build))
        && whole_engine("speed", &[OsStr::new("--allocations"), count.as_os_str()], args)
}

/// Measures throughput against latency and draws it. Returns whether it succeeded.
pub(crate) fn picture(args: &[&str]) -> bool {
    whole_engine("picture", &[], args)
}

/// Runs a program of bench that needs the load generator and the comparison of cores.
fn whole_engine(name: &str, programs: &[&OsStr], args: &[&str]) -> bool {
    let release = step::target_folder().join("release");
    let mut load =
        step::cargo(&["build", "--locked", "--release", "-p", "iroh-raft-loadgen", "--bin", "loadgen"]);
    let mut own = step::cargo(&["build", "--locked", "--release", "-p", "iroh-raft-bench", "--bin", name]);
    if !step::run("build of the load generator", &mut load) || !step::run("build of the bench", &mut own) {
        return false;
    }
    let Some(core) = comparison("core") else { return false };
    let mut own = Command::new(release.join(name));
    own.arg("--loadgen").arg(release.join("loadgen")).arg("--core").arg(core.get_program());
    step::run(name, own.args(programs).args(args))
}

fn comparison(name: &str) -> Option<Command> {
    let mut build = step::comparison(&["build", "--release", "--bin", name]);
    let is_built = step::run("build of the comparison", &mut build);
    is_built.then(|| Command::new(step::target_folder().join("release").join(name)))
}

//! `cargo xtask bench`: the comparisons of bench/compare, built for release and run.

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

/// Measures the whole engine and has the figures written to `json`. Returns whether it succeeded.
pub(crate) fn speed(json: &str) -> bool {
    let release = step::target_folder().join("release");
    let mut load =
        step::cargo(&["build", "--locked", "--release", "-p", "iroh-raft-loadgen", "--bin", "loadgen"]);
    let mut speed =
        step::cargo(&["build", "--locked", "--release", "-p", "iroh-raft-bench", "--bin", "speed"]);
    if !step::run("build of the load generator", &mut load) || !step::run("build of the bench", &mut speed) {
        return false;
    }
    let Some(core) = comparison("core") else { return false };
    let mut speed = Command::new(release.join("speed"));
    speed.arg("--loadgen").arg(release.join("loadgen")).arg("--core").arg(core.get_program());
    step::run("the whole engine", speed.arg("--json").arg(json))
}

fn comparison(name: &str) -> Option<Command> {
    let mut build = step::comparison(&["build", "--release", "--bin", name]);
    let is_built = step::run("build of the comparison", &mut build);
    is_built.then(|| Command::new(step::target_folder().join("release").join(name)))
}

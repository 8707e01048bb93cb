//! `cargo xtask bench storage`: the comparison of bench/compare, built for release and run.

use std::process::Command;

use crate::step;

/// Runs the storage comparison and has its figures written to `json`. Returns whether it succeeded.
pub(crate) fn storage(json: &str, is_long: bool) -> bool {
    let mut build = step::comparison(&["build", "--release", "--bin", "storage"]);
    if !step::run("build of the comparison", &mut build) {
        return false;
    }
    let target = step::target_folder();
    let mut compare = Command::new(target.join("release/storage"));
    // Beside the build: a temporary folder may be in memory, where a sync costs nothing.
    compare.arg("--folder").arg(target.join("bench-data")).arg("--json").arg(json);
    if is_long {
        compare.arg("--long");
    }
    step::run("storage comparison", &mut compare)
}

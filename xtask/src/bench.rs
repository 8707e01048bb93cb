//! `cargo xtask bench storage`: the comparison of bench/compare, built for release and run.

use std::path::Path;
use std::process::Command;

use crate::step;

/// Runs the storage comparison and has its figures written to `json`. Returns whether it succeeded.
pub(crate) fn storage(json: &str, is_long: bool) -> bool {
    let root = step::root();
    let target = target_folder(&root);
    let manifest = root.join("bench/compare/Cargo.toml");
    let mut build = step::cargo(&["build", "--release", "--locked", "--bin", "storage"]);
    build.arg("--manifest-path").arg(&manifest).arg("--target-dir").arg(&target);
    if !step::run("build the comparison", &mut build) {
        return false;
    }
    // On the device of the build: a temporary folder may be in memory, where a sync costs nothing.
    let mut compare = Command::new(target.join("release/storage"));
    compare.arg("--folder").arg(target.join("bench-data")).arg("--json").arg(json);
    if is_long {
        compare.arg("--long");
    }
    step::run("storage comparison", &mut compare)
}

/// Where cargo builds the workspace.
fn target_folder(root: &Path) -> std::path::PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), |folder| root.join(folder))
}

//! What we write, read by somebody else's program: the interval log of `loadgen` by the Python implementation of
//! HdrHistogram.

use std::path::Path;
use std::process::Command;

use crate::step;

/// The other implementation.
const PACKAGE: &str = "hdrhistogram==0.10.3";

/// Writes a log and has it read. Returns how many checks passed and failed; none of both if the other implementation
/// cannot be had here, which is said loudly.
pub(crate) fn hdr_log() -> (u64, u64) {
    let target = step::target_folder();
    let folder = target.join("elsewhere");
    let python = folder.join("python/bin/python");
    if !has_package(&python) && !install(&folder, &python) {
        eprintln!("==> {PACKAGE} of Python could not be installed: nobody else has read the HDR log");
        return (0, 0);
    }
    let (log, report) = (folder.join("latency.hlog"), folder.join("report.json"));
    // The tests have built it.
    let mut load = Command::new(target.join("debug/loadgen"));
    load.args(["quick", "--groups", "2", "--warmup", "200ms", "--duration", "2500ms", "--in-flight", "32"]);
    load.arg("--hdr-log").arg(&log).arg("--json").arg(&report);
    let mut read = Command::new(&python);
    read.arg(step::root().join("loadgen/tests/hdr_log.py")).arg(&log).arg(&report);
    let is_good = step::run("load with an HDR log", &mut load) && step::run("HDR log elsewhere", &mut read);
    (is_good.into(), (!is_good).into())
}

fn has_package(python: &Path) -> bool {
    let asked = Command::new(python).args(["-c", "import hdrh.log"]).output();
    asked.is_ok_and(|output| output.status.success())
}

fn install(folder: &Path, python: &Path) -> bool {
    let environment = folder.join("python");
    step::run("Python environment", Command::new("python3").args(["-m", "venv"]).arg(environment))
        && step::run(
            "HdrHistogram for Python",
            Command::new(python).args(["-m", "pip", "install", "--quiet", PACKAGE]),
        )
}

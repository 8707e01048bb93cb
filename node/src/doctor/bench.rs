//! `doctor --bench`: what this machine's disk and loopback give, measured for some seconds. What decides how the node writes its files is
//! kept in its data folder, where its starts find it.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use iroh_raft::storage::{BackendChoice, Calibration, DataFolder};

use super::{Finding, disk, loopback};
use crate::config::settings::NodeConfig;
use crate::config::shape::show_bytes;
use crate::say::Failure;

const BLOCK: usize = 1 << 20;
const BLOCKS_MAX: u64 = 128;
/// On a slow disk there are fewer blocks.
const WRITING_MAX: Duration = Duration::from_secs(2);

/// Measures, and keeps the calibration.
///
/// # Errors
/// When a node runs on the data folder, or it cannot be written to.
pub(super) fn run(config: &NodeConfig) -> Result<Vec<Finding>, Failure> {
    let folder = &config.engine.data_dir;
    // First: it is what finds out that a node runs.
    let calibration = DataFolder::calibrate(folder)?;
    let mut findings = vec![backend(config.engine.backend, calibration)];
    for (name, bytes) in [("bench: flush of 4 KiB", 4 << 10), ("bench: flush of 64 KiB", 64 << 10)] {
        findings.push(finding(name, in_file(folder, |file| flushes(file, bytes))));
    }
    findings.push(finding("bench: writing", in_file(folder, throughput)));
    findings.extend(loopback::measure(config));
    Ok(findings)
}

fn finding(name: &'static str, measured: std::io::Result<String>) -> Finding {
    match measured {
        Ok(found) => Finding::good(name, found),
        Err(error) => Finding::unknown(name, error.to_string()),
    }
}

/// What was measured, and what the node will do.
fn backend(choice: BackendChoice, calibration: Calibration) -> Finding {
    let use_of_it = match choice {
        BackendChoice::Auto => "kept: the node uses it from its next start on".to_owned(),
        BackendChoice::Fixed(kind) => {
            format!("kept, but not used: storage.backend is {kind}, which is what the node uses")
        }
    };
    Finding::good("bench: backend", format!("{calibration}; {use_of_it}"))
}

/// In a file without a name: whatever ends this, nothing stays.
fn in_file(folder: &Path, measure: impl FnOnce(&File) -> std::io::Result<String>) -> std::io::Result<String> {
    measure(&tempfile::tempfile_in(folder)?)
}

fn flushes(file: &File, bytes: usize) -> std::io::Result<String> {
    let times = disk::flush_times(file, bytes)?;
    let at = |part: usize| times[(times.len() - 1) * part / 100].as_micros();
    Ok(format!("{} us at the median, {} us at 95 %, appended and fdatasync", at(50), at(95)))
}

fn throughput(file: &File) -> std::io::Result<String> {
    let block = vec![0x5a; BLOCK];
    let began = Instant::now();
    let mut written = 0;
    while written < BLOCKS_MAX * BLOCK as u64 && (written == 0 || began.elapsed() < WRITING_MAX) {
        file.write_all_at(&block, written)?;
        file.sync_data()?;
        written += BLOCK as u64;
    }
    let per_s = written as f64 / began.elapsed().as_secs_f64() / 1e6;
    Ok(format!("{per_s:.0} MB/s, {} in flushes of {}", show_bytes(written), show_bytes(BLOCK as u64)))
}

#[cfg(test)]
mod tests {
    use iroh_raft::Preset;
    use iroh_raft::storage::BackendKind;

    use super::*;

    #[test]
    fn what_is_measured_is_what_starts_find() {
        let folder = tempfile::tempdir().unwrap();
        let first = DataFolder::calibrate(folder.path()).unwrap();
        let found = backend(BackendChoice::Auto, first).found;
        assert!(found.contains(&first.to_string()) && found.contains("next start"), "{found}");
        let found = backend(BackendChoice::Fixed(BackendKind::Direct), first).found;
        assert!(found.contains("not used: storage.backend is direct"), "{found}");
    }

    #[test]
    fn disk_and_loopback_are_measured_and_nothing_else_stays() {
        let folder = tempfile::tempdir().unwrap();
        let mut config = NodeConfig::new(Preset::Testing);
        config.engine.data_dir = folder.path().join("data");
        let findings = run(&config).unwrap();
        assert_eq!(findings.len(), 6);
        for finding in &findings {
            assert_eq!(finding.level, super::super::Level::Good, "{finding:?}");
        }
        let mut names: Vec<_> = std::fs::read_dir(&config.engine.data_dir)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        assert_eq!(names, ["backend", "lock"]);
    }
}

//! What the kernel knows: CPU time, memory, the device's own count of flushes, and what this
//! machine is.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;

/// What is on tmpfs is gone with the power, fsync or not.
const TMPFS_MAGIC: u64 = 0x0102_1994;

/// What the numbers were measured on.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Machine {
    /// CPU model.
    pub(crate) cpu: String,
    /// CPUs that this process may use.
    pub(crate) cores: usize,
    /// Memory in bytes.
    pub(crate) memory_bytes: u64,
    /// Kernel release.
    pub(crate) kernel: String,
    /// Magic number of the data folder's file system, in hexadecimal.
    file_system: String,
    /// Whether that is memory only: an fsync then means nothing.
    pub(crate) is_tmpfs: bool,
    /// Block device under the data folder, if it has one.
    device: Option<String>,
}

impl Machine {
    /// Looks at the machine, and at what is under `data_dir`.
    pub(crate) fn look(data_dir: &Path) -> Machine {
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let kib = field(&meminfo, "MemTotal").and_then(|value| value.split_whitespace().next()?.parse().ok());
        Machine {
            cpu: field(&cpuinfo, "model name").unwrap_or("unknown").to_owned(),
            cores: std::thread::available_parallelism().map_or(1, Into::into),
            memory_bytes: kib.unwrap_or(0_u64) * 1024,
            kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
            file_system: format!("{:x}", file_system(data_dir)),
            is_tmpfs: is_tmpfs(data_dir),
            device: Device::under(data_dir).map(|device| device.name),
        }
    }
}

/// Whether a folder is in memory only.
pub(crate) fn is_tmpfs(folder: &Path) -> bool {
    file_system(folder) == TMPFS_MAGIC
}

fn file_system(folder: &Path) -> u64 {
    rustix::fs::statfs(folder).map_or(0, |stat| stat.f_type as u64)
}

/// The value of `name: value` in a file of such lines.
fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        (key.trim() == name).then_some(value.trim())
    })
}

/// A block device.
#[derive(Clone, Debug)]
pub(crate) struct Device {
    name: String,
    stat: PathBuf,
}

impl Device {
    /// The device under a folder; `None` when there is none (overlay, network, memory).
    pub(crate) fn under(folder: &Path) -> Option<Device> {
        let device = fs::metadata(folder).ok()?.dev();
        let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
        let mut path = fs::canonicalize(format!("/sys/dev/block/{major}:{minor}")).ok()?;
        if path.join("partition").exists() {
            // Flushes are counted for the whole device.
            path.pop();
        }
        let name = path.file_name()?.to_string_lossy().into_owned();
        Some(Device { name, stat: path.join("stat") })
    }

    /// Flushes that the kernel has sent to the device since boot.
    pub(crate) fn flushes(&self) -> Option<u64> {
        flushes(&fs::read_to_string(&self.stat).ok()?)
    }
}

/// The count of flushes in a block device's `stat` (Linux, Documentation/block/stat.rst).
fn flushes(stat: &str) -> Option<u64> {
    stat.split_whitespace().nth(15)?.parse().ok()
}

/// CPU time that a process has used, all threads, in user and kernel.
pub(crate) fn cpu_time(pid: u32) -> Option<Duration> {
    let ticks = cpu_ticks(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)?;
    let per_second = rustix::param::clock_ticks_per_second();
    Some(Duration::from_secs_f64(ticks as f64 / per_second as f64))
}

fn cpu_ticks(stat: &str) -> Option<u64> {
    // The name, in parentheses, may hold anything; what follows it is numbers.
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some(user + system)
}

/// Most memory that a process has had resident, in bytes.
pub(crate) fn peak_rss_bytes(pid: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let kib: u64 = field(&status, "VmHWM")?.split_whitespace().next()?.parse().ok()?;
    Some(kib * 1024)
}

/// Memory that a process has resident, in bytes.
pub(crate) fn rss_bytes(pid: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let kib: u64 = field(&status, "VmRSS")?.split_whitespace().next()?.parse().ok()?;
    Some(kib * 1024)
}

/// Versions of what was measured, from the lock file of this build.
pub(crate) fn versions() -> BTreeMap<&'static str, &'static str> {
    const NAMES: [&str; 6] = ["glommio", "iroh", "raft", "redb", "rkyv", "tokio"];
    let mut versions = locked_versions(include_str!("../../Cargo.lock"), &NAMES);
    versions.insert("loadgen", env!("CARGO_PKG_VERSION"));
    versions
}

fn locked_versions<'a>(lock: &'a str, names: &[&str]) -> BTreeMap<&'a str, &'a str> {
    let packages = lock.split("[[package]]").filter_map(|package| {
        let value = |key: &str| {
            let line = package.lines().find_map(|line| line.strip_prefix(key))?;
            line.strip_prefix(" = \"")?.strip_suffix('"')
        };
        Some((value("name")?, value("version")?))
    });
    packages.filter(|(name, _)| names.contains(name)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_files_are_read_as_documented() {
        let stat = "42171 10441 7149202 52354 7450 53268 7247576 21170 0 7500 74111 5944 48 230544 579 202 7";
        assert_eq!(flushes(stat), Some(202));
        assert_eq!(flushes("1 2 3"), None);
        let stat = "77 (a) b) S 1 77 77 0 -1 4194560 100 0 0 0 250 50 0 0 20 0 4 0";
        assert_eq!(cpu_ticks(stat), Some(300));
        assert_eq!(field("VmPeak:\t 12 kB\nVmHWM:\t  345 kB\n", "VmHWM"), Some("345 kB"));
    }

    #[test]
    fn this_process_has_used_time_and_memory() {
        let pid = std::process::id();
        assert!(cpu_time(pid).is_some());
        assert!(peak_rss_bytes(pid).unwrap() > 100_000);
        assert!(cpu_time(u32::MAX).is_none());
    }

    #[test]
    fn versions_come_from_the_lock_file() {
        let versions = versions();
        assert_eq!(versions["redb"], "4.4.0");
        assert_eq!(versions.len(), 7);
    }
}

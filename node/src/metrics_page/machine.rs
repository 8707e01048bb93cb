//! What the system says of this process and its disk.

use std::fs;
use std::path::Path;

/// What was found; nothing where the system does not tell.
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct Machine {
    /// CPU time that was used, of all there was, over all CPUs since the look before.
    pub(super) cpu_usage_percent: Option<f64>,
    pub(super) resident_bytes: Option<u64>,
    pub(super) open_fds: Option<u64>,
    pub(super) disk: Option<Disk>,
    ticks: Option<Ticks>,
}

/// The disk of the data folder.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Disk {
    /// For this process.
    pub(super) free_bytes: u64,
    pub(super) size_bytes: u64,
}

/// CPU time of the machine since it started, in its own unit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Ticks {
    used: u64,
    all: u64,
}

impl Machine {
    /// How things are now. `before` is the look before.
    pub(super) fn look(data_dir: &Path, before: &Machine) -> Machine {
        let ticks = fs::read_to_string("/proc/stat").ok().and_then(|text| ticks(&text));
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        let disk = rustix::fs::statvfs(data_dir).ok().map(|stat| Disk {
            free_bytes: stat.f_bavail.saturating_mul(stat.f_frsize),
            size_bytes: stat.f_blocks.saturating_mul(stat.f_frsize),
        });
        Machine {
            cpu_usage_percent: before.ticks.zip(ticks).and_then(|(before, now)| usage_percent(before, now)),
            resident_bytes: resident_bytes(&status),
            open_fds: fs::read_dir("/proc/self/fd").ok().map(|files| files.count() as u64),
            disk,
            ticks,
        }
    }
}

/// `VmRSS` of `/proc/self/status`, which is in KiB.
fn resident_bytes(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib << 10)
}

/// The first line of `/proc/stat`: user, nice, system, idle, iowait, irq, softirq, steal; what guests use is in user.
fn ticks(stat: &str) -> Option<Ticks> {
    let numbers = stat.lines().next()?.strip_prefix("cpu ")?.split_whitespace().take(8);
    let numbers: Vec<u64> = numbers.map(str::parse).collect::<Result<_, _>>().ok()?;
    let idle = numbers.get(3)? + numbers.get(4)?;
    let all: u64 = numbers.iter().sum();
    Some(Ticks { used: all - idle, all })
}

fn usage_percent(before: Ticks, now: Ticks) -> Option<f64> {
    let all = now.all.checked_sub(before.all).filter(|all| *all > 0)?;
    Some(100.0 * now.used.saturating_sub(before.used) as f64 / all as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usage_is_of_the_time_between_two_looks() {
        let before = ticks("cpu  100 10 50 800 40 0 0 0 7 0\ncpu0 1 2 3\n").unwrap();
        let after = ticks("cpu  150 10 60 830 50 0 0 0 7 0\n").unwrap();
        assert_eq!(before, Ticks { used: 160, all: 1000 });
        assert_eq!(usage_percent(before, after), Some(60.0));
        assert_eq!(usage_percent(before, before), None);
        assert_eq!(ticks("intr 5"), None);
        assert_eq!(resident_bytes("Name:\tx\nVmRSS:\t    12 kB\n"), Some(12 << 10));
    }

    #[test]
    fn this_machine_tells() {
        let first = Machine::look(Path::new("/"), &Machine::default());
        assert!(first.resident_bytes > Some(1 << 20) && first.open_fds >= Some(3), "{first:?}");
        assert!(first.disk.is_some_and(|disk| disk.size_bytes > 0), "{first:?}");
        assert_eq!(first.cpu_usage_percent, None);
    }
}

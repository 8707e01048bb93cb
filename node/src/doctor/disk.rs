//! The disk under the data folder: its file system, room, device, and how long a flush takes.

use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use iroh_raft::storage::ShardOptions;

use super::{Finding, Host, Level, Remedy};
use crate::config::settings::NodeConfig;
use crate::config::shape::show_bytes;

/// Numbers of file systems (`linux/magic.h`), with what they mean for a log.
const FILE_SYSTEMS: [(i64, &str, Level); 9] = [
    (0xef53, "ext4", Level::Good),
    (0x5846_5342, "xfs", Level::Good),
    (0x9123_683e, "btrfs", Level::Note),
    (0x2fc1_2fc1, "zfs", Level::Note),
    (0x0102_1994, "tmpfs", Level::Bad),
    (0x8584_58f6, "ramfs", Level::Bad),
    (0x794c_7630, "overlayfs", Level::Note),
    (0x6969, "nfs", Level::Bad),
    (0x6573_5546, "fuse", Level::Note),
];
const FLUSHES: usize = 40;
/// No medium is as fast as that: what answers so soon has written nothing.
const FLUSH_MIN: Duration = Duration::from_micros(15);
/// A disk that turns cannot be sooner.
const TURN_MIN: Duration = Duration::from_millis(1);
const FLUSH_SLOW: Duration = Duration::from_millis(10);
const PAGE: usize = 4096;
/// `O_DIRECT` of this architecture.
const O_DIRECT: i32 = rustix::fs::OFlags::DIRECT.bits().cast_signed();

pub(super) fn look(host: &Host, config: &NodeConfig) -> Vec<Finding> {
    let folder = existing(&config.engine.data_dir);
    let mut findings = vec![file_system(&folder), free_space(&folder, config)];
    let (measured, median) = flushes(&folder);
    findings.extend(device(host, &folder, median));
    findings.extend(measured);
    findings
}

/// The folder, or what there is of the way to it.
fn existing(folder: &Path) -> PathBuf {
    let folder = std::path::absolute(folder).unwrap_or_else(|_| folder.to_path_buf());
    let there = folder.ancestors().find(|folder| folder.is_dir());
    there.unwrap_or(Path::new("/")).to_path_buf()
}

fn file_system(folder: &Path) -> Finding {
    const NAME: &str = "file system";
    let magic = match rustix::fs::statfs(folder) {
        Ok(stat) => stat.f_type,
        Err(error) => return Finding::unknown(NAME, format!("{}: {error}", folder.display())),
    };
    let known = FILE_SYSTEMS.iter().find(|(number, ..)| *number == magic);
    let Some((_, name, level)) = known else {
        return Finding::unknown(NAME, format!("{} is on one with the number {magic:#x}", folder.display()));
    };
    let cost = match (*level, *name) {
        (Level::Good, _) => return Finding::good(NAME, *name),
        (_, "tmpfs" | "ramfs") => {
            "nothing that is acknowledged survives the machine: an fsync means nothing there"
        }
        (_, "nfs") => "locks and flushes of a network file system are not what a log needs",
        (_, "overlayfs") => "files are copied when they are first changed; put the data on a volume",
        _ => "each flush writes metadata of the file system as well",
    };
    let mend = "put node.data_dir on ext4 or xfs on a disk of this machine".to_owned();
    Finding::of(
        NAME,
        *level,
        format!("{} is on {name}", folder.display()),
        Remedy { right: "ext4 or xfs", cost, mend },
    )
}

fn free_space(folder: &Path, config: &NodeConfig) -> Finding {
    const NAME: &str = "free space";
    let free = match rustix::fs::statvfs(folder) {
        Ok(stat) => stat.f_bavail.saturating_mul(stat.f_frsize),
        Err(error) => return Finding::unknown(NAME, format!("{}: {error}", folder.display())),
    };
    let ShardOptions { free_bytes_min, journal_bytes_max, .. } = config.engine.storage;
    let needed =
        free_bytes_min.saturating_add(journal_bytes_max.saturating_mul(u64::from(config.engine.shards)));
    let found = format!("{} GiB", free >> 30);
    if free >= needed {
        return Finding::good(NAME, found);
    }
    let mend = format!(
        "free some, or lower storage.free_bytes_min ({}) and storage.journal_bytes",
        show_bytes(free_bytes_min)
    );
    let right = "more than storage.free_bytes_min and a journal for each shard";
    Finding::of(
        NAME,
        Level::Bad,
        format!("{found}, {} MiB needed", needed >> 20),
        Remedy { right, cost: "appends are refused for want of space", mend },
    )
}

/// `flush`: how long one takes there, if that could be measured.
fn device(host: &Host, folder: &Path, flush: Option<Duration>) -> Vec<Finding> {
    const NAME: &str = "block device";
    let Ok(device) = std::fs::metadata(folder).map(|metadata| metadata.dev()) else { return Vec::new() };
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    let Ok(mut path) = std::fs::canonicalize(format!("/sys/dev/block/{major}:{minor}")) else {
        return vec![Finding::unknown(NAME, "the file system has none of its own")];
    };
    if path.join("partition").exists() {
        path.pop();
    }
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    queue(host, &name, flush)
}

/// What the queue of a device is set to.
fn queue(host: &Host, name: &str, flush: Option<Duration>) -> Vec<Finding> {
    let read = |file: &str| host.read(format!("sys/block/{name}/queue/{file}"));
    let mut findings = Vec::new();
    let scheduler = read("scheduler").unwrap_or_default();
    let chosen = scheduler.split('[').nth(1).and_then(|rest| rest.split(']').next()).unwrap_or("none");
    findings.push(if matches!(chosen, "none" | "mq-deadline" | "kyber") {
        Finding::good("I/O scheduler", format!("{name}: {chosen}"))
    } else {
        let mend = format!("echo none > /sys/block/{name}/queue/scheduler");
        let remedy =
            Remedy { right: "none, or mq-deadline", cost: "flushes wait for fairness among processes", mend };
        Finding::of("I/O scheduler", Level::Note, format!("{name}: {chosen}"), remedy)
    });
    // Virtual disks often say so, whatever they are on.
    let is_turning = flush.is_none_or(|flush| flush >= TURN_MIN);
    findings.push(if read("rotational").as_deref() == Some("1") && is_turning {
        let mend =
            "put node.data_dir on flash; or lengthen raft.tick, since a flush takes several milliseconds"
                .to_owned();
        let remedy =
            Remedy { right: "flash", cost: "a flush waits for the disk to turn: 100 a second", mend };
        Finding::of("kind of disk", Level::Note, format!("{name} says that it turns"), remedy)
    } else {
        Finding::good("kind of disk", format!("{name} does not turn"))
    });
    let (cache, fua) = (read("write_cache").unwrap_or_default(), read("fua").unwrap_or_default());
    findings.push(match (cache.as_str(), fua.as_str()) {
        ("write back", "1") => {
            Finding::good("write cache", format!("{name}: write back, with forced writes"))
        }
        ("write back", _) => {
            Finding::good("write cache", format!("{name}: write back; each flush empties it"))
        }
        ("write through", _) => Finding::good("write cache", format!("{name}: write through")),
        _ => Finding::unknown("write cache", format!("{name} does not say")),
    });
    findings
}

/// Writes pages and flushes them, in a file without a name.
fn flushes(folder: &Path) -> (Vec<Finding>, Option<Duration>) {
    const NAME: &str = "flush";
    let file = match tempfile::tempfile_in(folder) {
        Ok(file) => file,
        Err(error) => {
            let mend = format!("let this user write to {}", folder.display());
            let remedy =
                Remedy { right: "a folder that can be written to", cost: "the node does not start", mend };
            return (vec![Finding::of("data folder", Level::Bad, error.to_string(), remedy)], None);
        }
    };
    let times = match flush_times(&file, PAGE) {
        Ok(times) => times,
        Err(error) => return (vec![Finding::unknown(NAME, error.to_string())], None),
    };
    (
        vec![judge_flushes(&times), direct(&PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd())))],
        Some(times[times.len() / 2]),
    )
}

/// Sorted, one at least.
pub(super) fn flush_times(file: &File, bytes: usize) -> std::io::Result<Vec<Duration>> {
    let block = vec![0x5a; bytes];
    let mut times = Vec::with_capacity(FLUSHES);
    for at in 0..FLUSHES {
        let began = Instant::now();
        file.write_all_at(&block, (at * bytes) as u64)?;
        file.sync_data()?;
        times.push(began.elapsed());
    }
    times.sort_unstable();
    Ok(times)
}

/// `times` are sorted.
fn judge_flushes(times: &[Duration]) -> Finding {
    const NAME: &str = "flush";
    let (median, most) = (times[times.len() / 2], times[times.len() - 1]);
    let found = format!(
        "{} us at the median of {}, {} us at most",
        median.as_micros(),
        times.len(),
        most.as_micros()
    );
    if median < FLUSH_MIN {
        return Finding::of(
            NAME,
            Level::Note,
            format!("{found}: too fast to be true, unverifiable"),
            Remedy {
                right: "a device that says what it has done",
                cost: "if it lies, a power cut loses what was acknowledged",
                mend: "pull the plug once under load and run `iroh-raft check`; or use a disk with protected memory".to_owned(),
            },
        );
    }
    if median < FLUSH_SLOW {
        return Finding::good(NAME, found);
    }
    let mend =
        "another disk; raft.tick and storage.flush_stuck_after longer, or leaders step down".to_owned();
    let remedy = Remedy {
        right: "below 10 ms",
        cost: "each acknowledgement waits for one of these on a quorum",
        mend,
    };
    Finding::of(NAME, Level::Note, found, remedy)
}

/// Whether files can be written past the page cache.
fn direct(path: &Path) -> Finding {
    const NAME: &str = "direct I/O";
    match OpenOptions::new().read(true).custom_flags(O_DIRECT).open(path) {
        Ok(_) => Finding::good(NAME, "allowed"),
        Err(error) => Finding::of(
            NAME,
            Level::Note,
            error.to_string(),
            Remedy {
                right: "allowed",
                cost: "storage.backend = \"direct\" is no choice here",
                mend: "storage.backend = \"buffered\", or another file system".to_owned(),
            },
        ),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    #[test]
    fn a_flush_too_fast_to_be_true_is_not_praised() {
        let times = |us| vec![Duration::from_micros(us); FLUSHES];
        assert!(judge_flushes(&times(3)).found.contains("unverifiable"));
        assert_eq!(judge_flushes(&times(200)).level, Level::Good);
        assert_eq!(judge_flushes(&times(20_000)).level, Level::Note);
    }

    #[test]
    fn what_a_queue_is_set_to_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let queue_of = folder.path().join("sys/block/sda/queue");
        std::fs::create_dir_all(&queue_of).unwrap();
        for (file, text) in [
            ("scheduler", "none mq-deadline [bfq]\n"),
            ("rotational", "1\n"),
            ("write_cache", "write back\n"),
        ] {
            std::fs::write(queue_of.join(file), text).unwrap();
        }
        let host = Host::new(folder.path().to_path_buf());
        let findings = queue(&host, "sda", Some(Duration::from_millis(8)));
        let notes: Vec<_> = findings
            .iter()
            .filter(|finding| finding.level == Level::Note)
            .map(|finding| finding.name)
            .collect();
        assert_eq!(notes, ["I/O scheduler", "kind of disk"]);
        let fast = queue(&host, "sda", Some(Duration::from_micros(200)));
        assert!(fast.iter().any(|finding| finding.name == "kind of disk" && finding.level == Level::Good));
    }
}

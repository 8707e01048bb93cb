//! Memory: how much there may be, huge pages, swap.

use super::{Finding, Host, Level, Remedy};
use crate::config::settings::NodeConfig;
use crate::config::shape::show_bytes;

/// Of a node beside its shards.
const NODE_BYTES: u64 = 64 << 20;

pub(super) fn look(host: &Host, config: &NodeConfig) -> Vec<Finding> {
    vec![room(host, config), huge_pages(host), swap(host)]
}

/// What a node may take by its bounds.
fn needed(config: &NodeConfig) -> u64 {
    let engine = &config.engine;
    let bounds = [
        engine.storage.journal_cache_bytes,
        engine.storage.log_cache_bytes,
        engine.core.window_bytes_max,
        engine.core.shard_pending_bytes_max,
        engine.flush_bytes_max,
        engine.ring_bytes_max.saturating_mul(2),
    ];
    let shard = bounds.iter().fold(0_u64, |sum, bytes| sum.saturating_add(*bytes as u64));
    NODE_BYTES.saturating_add(shard.saturating_mul(u64::from(engine.shards)))
}

fn room(host: &Host, config: &NodeConfig) -> Finding {
    const NAME: &str = "memory";
    let meminfo = host.read("proc/meminfo").unwrap_or_default();
    let kib = |name: &str| {
        let line = meminfo.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        line.split_whitespace().next()?.parse::<u64>().ok()
    };
    let own = host.read("proc/self/cgroup").unwrap_or_default();
    let group = own.lines().find_map(|line| line.strip_prefix("0::/")).unwrap_or_default();
    let limit = host.number(std::path::Path::new("sys/fs/cgroup").join(group).join("memory.max"));
    let Some(there) = kib("MemTotal").map(|kib| kib << 10).into_iter().chain(limit).min() else {
        return Finding::unknown(NAME, "proc/meminfo does not say");
    };
    let needed = needed(config);
    let found =
        format!("{} MiB, of which the bounds of the configuration allow {} MiB", there >> 20, needed >> 20);
    if needed <= there {
        return Finding::good(NAME, found);
    }
    let mend = format!(
        "lower shards.count, storage.journal_cache_bytes ({}), storage.flush_bytes or shards.ring_bytes, or raise the limit (MemoryMax=, --memory)",
        show_bytes(config.engine.storage.journal_cache_bytes as u64)
    );
    let right = "room for what the bounds allow";
    Finding::of(
        NAME,
        Level::Bad,
        found,
        Remedy { right, cost: "under overload the kernel kills the node", mend },
    )
}

fn huge_pages(host: &Host) -> Finding {
    const NAME: &str = "transparent huge pages";
    match host.read("sys/kernel/mm/transparent_hugepage/enabled") {
        Some(modes) if modes.contains("[always]") => Finding::of(
            NAME,
            Level::Note,
            "always",
            Remedy {
                right: "madvise",
                cost: "memory comes and goes 2 MiB at a time: more of it resident, and pauses while the kernel looks for them",
                mend: "echo madvise > /sys/kernel/mm/transparent_hugepage/enabled".to_owned(),
            },
        ),
        Some(modes) => Finding::good(NAME, modes),
        None => Finding::good(NAME, "not built in"),
    }
}

fn swap(host: &Host) -> Finding {
    const NAME: &str = "swap";
    let swaps = host.read("proc/swaps").unwrap_or_default();
    let (areas, swappiness) =
        (swaps.lines().skip(1).count(), host.number("proc/sys/vm/swappiness").unwrap_or(60));
    if areas == 0 {
        return Finding::good(NAME, "none");
    }
    let found = format!("{areas} areas, vm.swappiness = {swappiness}");
    if swappiness <= 1 {
        return Finding::good(NAME, found);
    }
    let mend = "swapoff -a, sysctl -w vm.swappiness=1, or MemorySwapMax=0 in the systemd unit".to_owned();
    let right = "none, or vm.swappiness of 1";
    Finding::of(
        NAME,
        Level::Note,
        found,
        Remedy {
            right,
            cost: "a shard that waits for its memory from a disk looks dead to the others",
            mend,
        },
    )
}

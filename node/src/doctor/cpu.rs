//! The CPUs: which are ours, how much of them, and what they do to latency.

use std::collections::BTreeSet;

use iroh_raft::{Pinning, cpu};

use super::{Finding, Host, Level, Remedy};
use crate::config::settings::NodeConfig;

/// Sources that are read without a system call.
const FAST_CLOCKS: [&str; 5] = ["tsc", "kvm-clock", "arch_sys_counter", "hyperv_clocksource_tsc_page", "xen"];
/// Part of its time that a machine may lose to others.
const STEAL_MAX: f64 = 0.02;

pub(super) fn look(host: &Host, config: &NodeConfig) -> Vec<Finding> {
    let allowed = cpu::allowed().unwrap_or_default();
    let pinned = pinned(config, &allowed);
    vec![
        cpus(config, &allowed),
        pins(config, &allowed),
        quota(host, allowed.len()),
        siblings(host, &pinned),
        governor(host, &allowed),
        clock_source(host),
        steal(host),
    ]
}

/// The CPUs that shards are pinned to.
fn pinned(config: &NodeConfig, allowed: &[usize]) -> Vec<usize> {
    let shards = usize::from(config.engine.shards);
    match &config.engine.pinning {
        Pinning::Unpinned => Vec::new(),
        Pinning::Auto if allowed.is_empty() => Vec::new(),
        Pinning::Auto => allowed.iter().copied().cycle().take(shards).collect(),
        Pinning::Cpus(cpus) => cpus.iter().copied().take(shards).collect(),
    }
}

fn cpus(config: &NodeConfig, allowed: &[usize]) -> Finding {
    const NAME: &str = "CPUs";
    let (shards, threads) = (usize::from(config.engine.shards), usize::from(config.engine.bridge_threads));
    if allowed.is_empty() {
        return Finding::unknown(NAME, "the CPUs of this process cannot be read");
    }
    let found = format!("{} for {shards} shards and {threads} bridge threads", allowed.len());
    if allowed.len() < shards {
        let mend = format!(
            "shards.count = {}, or give the process more CPUs (taskset, AllowedCPUs=, --cpuset-cpus)",
            allowed.len().max(2) - 1
        );
        let right = "a CPU for each shard, and one for the bridge";
        return Finding::of(
            NAME,
            Level::Bad,
            found,
            Remedy { right, cost: "shards wait for each other, with an fsync each for nothing", mend },
        );
    }
    Finding::good(NAME, found)
}

fn pins(config: &NodeConfig, allowed: &[usize]) -> Finding {
    const NAME: &str = "pinning";
    let named = match &config.engine.pinning {
        Pinning::Cpus(cpus) => cpus.as_slice(),
        _ => &[],
    };
    let strangers: BTreeSet<usize> = named
        .iter()
        .chain(&config.engine.bridge_cpus)
        .copied()
        .filter(|cpu| !allowed.contains(cpu))
        .collect();
    let remedy = |right, cost, mend| Remedy { right, cost, mend };
    if !strangers.is_empty() {
        let mend = format!("name some of {allowed:?} in shards.pinning and bridge.cpus");
        let remedy = remedy("CPUs of this process", "the node does not start", mend);
        return Finding::of(NAME, Level::Bad, format!("CPUs {strangers:?} are not this process's"), remedy);
    }
    if !named.is_empty() && named.len() < usize::from(config.engine.shards) {
        let mend = "name one CPU for each shard in shards.pinning".to_owned();
        let found = format!("{} CPUs named for {} shards", named.len(), config.engine.shards);
        return Finding::of(
            NAME,
            Level::Bad,
            found,
            remedy("one for each shard", "the node does not start", mend),
        );
    }
    Finding::good(
        NAME,
        if named.is_empty() { "no CPU is named".to_owned() } else { format!("CPUs {named:?}") },
    )
}

/// The least quota of the control groups that this process is in (version 2).
fn quota(host: &Host, allowed: usize) -> Finding {
    const NAME: &str = "CPU quota";
    let own = host.read("proc/self/cgroup").unwrap_or_default();
    let Some(path) = own.lines().find_map(|line| line.strip_prefix("0::/")) else {
        return Finding::unknown(NAME, "not in a control group of version 2");
    };
    let mut least: Option<f64> = None;
    let mut path = Some(std::path::Path::new(path));
    while let Some(group) = path {
        let max =
            host.read(std::path::Path::new("sys/fs/cgroup").join(group).join("cpu.max")).unwrap_or_default();
        if let Some((quota, period)) = max.split_once(' ')
            && let (Ok(quota), Ok(period)) = (quota.parse::<f64>(), period.parse::<f64>())
        {
            least = Some(least.map_or(quota / period, |least| least.min(quota / period)));
        }
        path = group.parent();
    }
    match least {
        Some(cpus) if cpus < allowed as f64 => Finding::of(
            NAME,
            Level::Note,
            format!("{cpus:.1} of {allowed} CPUs"),
            Remedy {
                right: "no quota",
                cost: "once it is used up all threads stand still for the rest of the period, up to 100 ms: elections, high percentiles",
                mend: "give CPUs (AllowedCPUs=, --cpuset-cpus) instead of a quota (CPUQuota=, --cpus)"
                    .to_owned(),
            },
        ),
        Some(cpus) => Finding::good(NAME, format!("{cpus:.1} CPUs")),
        None => Finding::good(NAME, "none"),
    }
}

fn siblings(host: &Host, pinned: &[usize]) -> Finding {
    const NAME: &str = "hyper-threads";
    let cores: Vec<String> = pinned
        .iter()
        .filter_map(|cpu| host.read(format!("sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")))
        .collect();
    let different: BTreeSet<&String> = cores.iter().collect();
    if different.len() < cores.len() {
        let mend =
            "name one CPU of each core in shards.pinning (lscpu -e shows which belong together)".to_owned();
        let right = "a core for each shard";
        let found = format!("{} shards on {} cores", cores.len(), different.len());
        return Finding::of(
            NAME,
            Level::Note,
            found,
            Remedy { right, cost: "two shards share one core's caches and units", mend },
        );
    }
    Finding::good(NAME, "no two shards are pinned to one core")
}

fn governor(host: &Host, allowed: &[usize]) -> Finding {
    const NAME: &str = "governor";
    let read = |cpu: &usize| host.read(format!("sys/devices/system/cpu/cpu{cpu}/cpufreq/scaling_governor"));
    let governors: BTreeSet<String> = allowed.iter().filter_map(read).collect();
    match governors.iter().find(|governor| governor.as_str() != "performance") {
        Some(governor) => Finding::of(
            NAME,
            Level::Note,
            governor.clone(),
            Remedy {
                right: "performance",
                cost: "a CPU that was idle is slow at first: latency at low load",
                mend: "cpupower frequency-set -g performance".to_owned(),
            },
        ),
        None if governors.is_empty() => {
            Finding::good(NAME, "none here: the hypervisor or the hardware decides")
        }
        None => Finding::good(NAME, "performance"),
    }
}

fn clock_source(host: &Host) -> Finding {
    const NAME: &str = "clock source";
    match host.read("sys/devices/system/clocksource/clocksource0/current_clocksource") {
        Some(clock) if FAST_CLOCKS.contains(&clock.as_str()) => Finding::good(NAME, clock),
        Some(clock) => Finding::of(
            NAME,
            Level::Bad,
            clock,
            Remedy {
                right: "tsc, or the clock of the hypervisor",
                cost: "each look at the clock is a system call of a microsecond or more, and each message takes some",
                mend: "boot with tsc=reliable, or give the virtual machine a clock of its own".to_owned(),
            },
        ),
        None => Finding::unknown(NAME, "the kernel does not say"),
    }
}

fn steal(host: &Host) -> Finding {
    const NAME: &str = "steal";
    let stat = host.read("proc/stat").unwrap_or_default();
    let line = stat.lines().next().unwrap_or_default();
    let ticks: Vec<u64> = line.split_whitespace().skip(1).filter_map(|tick| tick.parse().ok()).collect();
    let (Some(stolen), all) = (ticks.get(7), ticks.iter().take(8).sum::<u64>()) else {
        return Finding::unknown(NAME, "proc/stat does not say");
    };
    let part = *stolen as f64 / all.max(1) as f64;
    let found = format!("{:.1} % of the time since the boot", 100.0 * part);
    if part <= STEAL_MAX {
        return Finding::good(NAME, found);
    }
    let mend = "ask for dedicated CPUs, or another host".to_owned();
    let right = "below 2 %";
    Finding::of(
        NAME,
        Level::Note,
        found,
        Remedy {
            right,
            cost: "threads stand still while others have the CPU: high percentiles, elections",
            mend,
        },
    )
}

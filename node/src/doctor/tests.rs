use std::path::Path;

use super::*;
use iroh_raft::Preset;

/// What a sound machine's files say.
fn sound() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (path, text) in [
        ("proc/sys/kernel/osrelease", "6.12.1-generic"),
        ("proc/sys/kernel/io_uring_disabled", "0"),
        ("proc/self/status", "Name:\tx\nSeccomp:\t0\n"),
        ("proc/self/cgroup", "0::/a/b"),
        ("proc/meminfo", "MemTotal:       64000000 kB\n"),
        ("proc/stat", "cpu  1000 0 1000 10000 0 0 0 0 0 0\n"),
        ("proc/swaps", "Filename Type Size Used Priority\n"),
        ("proc/sys/vm/swappiness", "60"),
        ("proc/sys/net/core/rmem_default", "212992"),
        ("proc/sys/net/core/wmem_default", "212992"),
        ("sys/kernel/mm/transparent_hugepage/enabled", "always [madvise] never"),
        ("sys/devices/system/clocksource/clocksource0/current_clocksource", "tsc"),
        ("sys/class/net/eth0/mtu", "1500"),
        ("sys/class/net/eth0/operstate", "up"),
    ] {
        plant(folder.path(), path, text);
    }
    folder
}

fn plant(root: &Path, path: &str, text: &str) {
    let path = root.join(path);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, format!("{text}\n")).unwrap();
}

/// What is not as it should be, of what files say.
fn complaints(root: &Path, config: &NodeConfig) -> Vec<(&'static str, Level)> {
    let host = Host::new(root.to_path_buf());
    let findings = [
        kernel::look(&host, config),
        cpu::look(&host, config),
        memory::look(&host, config),
        network::look(&host, config),
    ];
    let bad = findings.into_iter().flatten().filter(|finding| finding.level > Level::Good);
    bad.map(|finding| {
        assert!(!finding.found.is_empty(), "{finding:?}");
        if finding.level > Level::Unknown {
            assert!(
                !finding.right.is_empty() && !finding.cost.is_empty() && !finding.mend.is_empty(),
                "{finding:?}"
            );
        }
        (finding.name, finding.level)
    })
    .collect()
}

fn one_shard() -> NodeConfig {
    let mut config = NodeConfig::new(Preset::Production);
    config.engine.shards = 1;
    config
}

#[test]
fn a_sound_machine_has_nothing_to_complain_of() {
    assert_eq!(complaints(sound().path(), &one_shard()), []);
}

#[test]
fn each_condition_is_found_and_nothing_else() {
    for (path, text, name, level) in [
        ("proc/sys/kernel/osrelease", "5.4.0-150-generic", "kernel", Level::Bad),
        ("proc/sys/kernel/osrelease", "5.15.0", "kernel", Level::Note),
        ("proc/sys/kernel/io_uring_disabled", "2", "io_uring", Level::Bad),
        ("proc/sys/kernel/io_uring_disabled", "1", "io_uring", Level::Note),
        ("sys/fs/cgroup/a/cpu.max", "50000 100000", "CPU quota", Level::Note),
        ("sys/fs/cgroup/a/b/memory.max", "104857600", "memory", Level::Bad),
        ("proc/meminfo", "MemTotal:       100000 kB", "memory", Level::Bad),
        ("sys/devices/system/cpu/cpu0/cpufreq/scaling_governor", "powersave", "governor", Level::Note),
        (
            "sys/devices/system/clocksource/clocksource0/current_clocksource",
            "hpet",
            "clock source",
            Level::Bad,
        ),
        ("proc/stat", "cpu  1000 0 1000 10000 0 0 0 900 0 0", "steal", Level::Note),
        (
            "sys/kernel/mm/transparent_hugepage/enabled",
            "[always] madvise never",
            "transparent huge pages",
            Level::Note,
        ),
        ("proc/swaps", "Filename Type Size Used Priority\n/dev/sda2 partition 1 0 -2", "swap", Level::Note),
        ("proc/sys/net/core/rmem_default", "65536", "UDP receive buffer", Level::Note),
        ("proc/sys/net/core/wmem_default", "65536", "UDP send buffer", Level::Note),
        ("sys/class/net/eth0/mtu", "1280", "packet size", Level::Note),
    ] {
        let folder = sound();
        plant(folder.path(), path, text);
        assert_eq!(complaints(folder.path(), &one_shard()), [(name, level)], "{path} = {text}");
    }
}

#[test]
fn what_the_configuration_asks_for_and_the_machine_has_not_is_found() {
    let folder = sound();
    let with = |change: fn(&mut NodeConfig)| {
        let mut config = one_shard();
        change(&mut config);
        complaints(folder.path(), &config)
    };
    assert_eq!(with(|config| config.engine.bridge_cpus = vec![4095]), [("pinning", Level::Bad)]);
    assert_eq!(with(|config| config.engine.storage.journal_cache_bytes = 1 << 40), [("memory", Level::Bad)]);
    let many = with(|config| {
        config.engine.shards = 1000;
        config.engine.pinning = iroh_raft::Pinning::Unpinned;
        config.engine.storage.journal_cache_bytes = 1;
        config.engine.storage.log_cache_bytes = 1;
    });
    assert!(many.contains(&("CPUs", Level::Bad)), "{many:?}");
    // Two shards on one core.
    plant(folder.path(), "sys/devices/system/cpu/cpu0/topology/thread_siblings_list", "0-1");
    plant(folder.path(), "sys/devices/system/cpu/cpu1/topology/thread_siblings_list", "0-1");
    let siblings = with(|config| {
        config.engine.shards = 2;
        config.engine.pinning = iroh_raft::Pinning::Cpus(vec![0, 1]);
    });
    assert!(siblings.contains(&("hyper-threads", Level::Note)), "{siblings:?}");
}

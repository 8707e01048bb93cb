//! The kernel: its version, io_uring, and the limits of this process.

use rustix::process::{Resource, getrlimit};

use super::{Finding, Host, Level, Remedy};
use crate::config::settings::NodeConfig;

/// What an executor locks; a shard has one, and so has the probe.
const MEMLOCK_BYTES: u64 = 512 << 10;
/// Files of a shard: redb's, rings, doorbells; and of a node beside them.
const FILES_A_SHARD: u64 = 32;
const FILES_OF_A_NODE: u64 = 128;

pub(super) fn look(host: &Host, config: &NodeConfig) -> Vec<Finding> {
    vec![version(host), io_uring(host), seccomp(host), memlock(), files(config)]
}

fn version(host: &Host) -> Finding {
    const NAME: &str = "kernel";
    let Some(release) = host.read("proc/sys/kernel/osrelease") else {
        return Finding::unknown(NAME, "proc/sys/kernel/osrelease cannot be read");
    };
    let mut numbers = release.split(['.', '-']).map(|part| part.parse::<u32>().unwrap_or(0));
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    let remedy = |mend: &str| Remedy {
        right: "5.11 or newer; 6.1 or newer has the better io_uring",
        cost: "older ones lack what the executors need",
        mend: mend.to_owned(),
    };
    match version {
        (0..=4, _) | (5, 0..=10) => Finding::of(NAME, Level::Bad, release, remedy("run a newer kernel")),
        (5, _) | (6, 0) => Finding::of(NAME, Level::Note, release, remedy("run a newer kernel when you can")),
        _ => Finding::good(NAME, release),
    }
}

fn io_uring(host: &Host) -> Finding {
    const NAME: &str = "io_uring";
    let remedy = |mend: &str| Remedy { right: "allowed", cost: "no node can run", mend: mend.to_owned() };
    match host.number("proc/sys/kernel/io_uring_disabled") {
        Some(2) => {
            return Finding::of(
                NAME,
                Level::Bad,
                "disabled (kernel.io_uring_disabled = 2)",
                remedy("sysctl -w kernel.io_uring_disabled=0"),
            );
        }
        Some(1) if iroh_raft::check_machine().is_ok() => {
            let mend = "sysctl -w kernel.io_uring_disabled=0, or put the node's user into the group of kernel.io_uring_group";
            return Finding::of(
                NAME,
                Level::Note,
                "for privileged users only (kernel.io_uring_disabled = 1)",
                remedy(mend),
            );
        }
        _ => {}
    }
    match iroh_raft::check_machine() {
        Ok(()) => Finding::good(NAME, "an executor starts"),
        // That has a finding of its own.
        Err(iroh_raft::EngineError::Memlock { .. }) => {
            Finding::unknown(NAME, "not tried: too little lockable memory")
        }
        Err(error) => Finding::of(
            NAME,
            Level::Bad,
            error.to_string(),
            remedy(
                "allow io_uring_setup, io_uring_enter and io_uring_register in the container's seccomp profile",
            ),
        ),
    }
}

fn seccomp(host: &Host) -> Finding {
    const NAME: &str = "seccomp";
    let status = host.read("proc/self/status").unwrap_or_default();
    let mode = status.lines().find_map(|line| line.strip_prefix("Seccomp:")).map(str::trim);
    match mode {
        Some("0") => Finding::good(NAME, "no filter"),
        Some("2") => Finding::good(NAME, "a filter; what the finding on io_uring says counts"),
        Some(mode) => Finding::unknown(NAME, format!("mode {mode}")),
        None => Finding::unknown(NAME, "proc/self/status does not say"),
    }
}

fn memlock() -> Finding {
    const NAME: &str = "lockable memory";
    match getrlimit(Resource::Memlock).current {
        Some(bytes) if bytes < MEMLOCK_BYTES => Finding::of(
            NAME,
            Level::Bad,
            format!("{} KiB", bytes >> 10),
            Remedy {
                right: "512 KiB or more",
                cost: "no node can run: executors lock their rings",
                mend: "ulimit -l 1024, LimitMEMLOCK=infinity in the systemd unit, or --ulimit memlock=-1 of the container".to_owned(),
            },
        ),
        Some(bytes) => Finding::good(NAME, format!("{} KiB", bytes >> 10)),
        None => Finding::good(NAME, "without a limit"),
    }
}

fn files(config: &NodeConfig) -> Finding {
    const NAME: &str = "open files";
    let needed = FILES_OF_A_NODE + FILES_A_SHARD * u64::from(config.engine.shards);
    match getrlimit(Resource::Nofile).current {
        Some(files) if files < needed => Finding::of(
            NAME,
            Level::Bad,
            format!("{files} allowed, about {needed} needed"),
            Remedy {
                right: "65,536",
                cost: "a node that has none left stops",
                mend: "ulimit -n 65536, or LimitNOFILE=65536 in the systemd unit".to_owned(),
            },
        ),
        Some(files) => Finding::good(NAME, format!("{files} allowed, about {needed} needed")),
        None => Finding::good(NAME, "without a limit"),
    }
}

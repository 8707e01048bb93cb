//! Why an engine could not start, or stopped.

use std::path::PathBuf;
use std::time::Duration;

use iroh_raft_core::{Retry, ShardId};
use iroh_raft_netbridge::allow::AllowError;
use iroh_raft_netbridge::bridge::BridgeError;
use iroh_raft_netbridge::identity::IdentityError;
use iroh_raft_storage::StorageError;

use crate::cpu::CpuError;

/// Why an engine could not start, or stopped. Each text says what to do.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// A setting is missing or impossible.
    #[error("{setting}: {problem}")]
    Config {
        /// The setting's name.
        setting: &'static str,
        /// What is wrong with it and what would be right.
        problem: String,
    },
    /// A CPU is not ours.
    #[error(transparent)]
    Cpu(#[from] CpuError),
    /// The data folder was refused.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// The key file was refused.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The network endpoint failed.
    #[error(transparent)]
    Bridge(#[from] BridgeError),
    /// io_uring cannot be used.
    #[error(
        "io_uring cannot be used: {problem}; allow it (sysctl kernel.io_uring_disabled=0, and the io_uring \
         system calls in the container's seccomp profile)"
    )]
    IoUring {
        /// What the kernel said.
        problem: String,
    },
    /// The limit of locked memory is too low.
    #[error(
        "the limit of locked memory is {bytes} bytes, {bytes_needed} are needed: raise it (ulimit -l {kib_needed}, \
         or LimitMEMLOCK= in the systemd unit)", kib_needed = bytes_needed / 1024
    )]
    Memlock {
        /// Bytes allowed now.
        bytes: u64,
        /// Bytes needed.
        bytes_needed: u64,
    },
    /// A recording that was asked for cannot be made.
    #[error("{path} cannot be made for a recording ({source}): mend the folder, or switch recordings off")]
    Recording {
        /// The file or its folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A thread could not be started.
    #[error("thread {name} could not be started: {source}")]
    Thread {
        /// The thread's name.
        name: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// A thread of the engine ended by a panic.
    #[error("thread {name} panicked: restart the node, and report the text above as a bug")]
    Panicked {
        /// The thread's name.
        name: String,
    },
    /// A shard fenced itself after a failed write: it acknowledges nothing until restart.
    #[error("shard {shard} is fenced after a failed write ({source}): mend the disk and restart the node")]
    Fenced {
        /// The shard.
        shard: ShardId,
        /// What failed.
        source: StorageError,
    },
    /// Threads were still running when time was up.
    #[error("shutdown took longer than {deadline:?}; threads left behind: {threads}")]
    ShutdownTimeout {
        /// Time that was given.
        deadline: Duration,
        /// Names of the threads.
        threads: String,
    },
}

/// Why another node was not made known, or not removed. Nothing has changed.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// Its number or its key cannot be taken.
    #[error(transparent)]
    Refused(#[from] AllowError),
    /// It could not be remembered.
    #[error("the node could not be remembered: {0}")]
    Storage(#[from] StorageError),
    /// This node stops, or has stopped.
    #[error("this node stops")]
    Stopped,
}

impl NodeError {
    /// Whether trying again can help.
    #[must_use]
    pub fn retry(&self) -> Retry {
        match self {
            NodeError::Storage(StorageError::Io { .. }) => Retry::Safe,
            NodeError::Refused(_) | NodeError::Storage(_) | NodeError::Stopped => Retry::Never,
        }
    }
}

//! Why a bridge cannot start, or cannot go on.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use iroh_raft_core::{BootEpoch, NodeId};

use crate::allow::AllowError;

/// Why a bridge cannot start, or cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum BridgeError {
    /// The allow-list contradicts itself.
    #[error("the allow-list cannot be used: {0}")]
    Allow(#[from] AllowError),
    /// Not one port per shard, or a number out of its range.
    #[error("the bridge's settings cannot be used: {what}")]
    Config {
        /// What is wrong.
        what: &'static str,
    },
    /// Another process listens there.
    #[error("UDP address {addr} is in use: stop the process that has it, or bind another")]
    AddressInUse {
        /// The address.
        addr: SocketAddr,
    },
    /// The socket cannot be bound.
    #[error("cannot listen at UDP address {addr}: {reason}")]
    Bind {
        /// The address.
        addr: SocketAddr,
        /// Why.
        reason: String,
    },
    /// The thread or its runtime cannot be started.
    #[error("cannot start the bridge thread: {0}")]
    Thread(#[from] io::Error),
    /// The CPU is not there, or not ours.
    #[error("cannot pin the bridge thread to CPU {cpu}: choose one of this process's CPUs")]
    Cpu {
        /// The CPU.
        cpu: usize,
    },
    /// A peer has seen a later start of this node.
    #[error(
        "node {peer} has seen start {seen} of this node, this is start {offered}: the data folder was restored \
         from an older copy and must not take part; wipe it and join under a new node id"
    )]
    RolledBack {
        /// The peer that refused.
        peer: NodeId,
        /// The latest start it has seen.
        seen: BootEpoch,
        /// The start this node told it.
        offered: BootEpoch,
    },
    /// A bug: a part of the bridge panicked.
    #[error("the bridge's {part} panicked ({message}): this is a bug; restart the node")]
    Panicked {
        /// Which part.
        part: &'static str,
        /// What it said.
        message: String,
    },
    /// It did not stop in time.
    #[error("the bridge thread did not stop within {deadline:?}")]
    Shutdown {
        /// The time it had.
        deadline: Duration,
    },
}

//! iroh-raft: a thread-per-core, sharded multi-Raft engine for replicated logs on Linux.
//!
//! Groups are pinned to shards; a shard is one glommio executor with one journal; one bridge
//! thread runs the QUIC endpoint. [`RaftCluster`] is the small front door, [`Engine`] the large
//! one. ARCHITECTURE.md follows one record through the threads.
//!
//! Invariants: the way in and out of a shard is a bounded ring; no shard ever blocks; nothing is
//! acknowledged before a quorum has it on stable storage.
//!
//! It never decides anything about consensus: that is `iroh-raft-core`, which these threads drive.
#![deny(unsafe_code)]

mod awake;
pub mod cluster;
mod compare;
pub mod config;
pub mod cpu;
mod driver;
pub mod engine;
pub mod error;
mod membarrier;
mod mover_thread;
mod preflight;
mod reader_thread;
mod record;
mod session;
mod snapshot_thread;
mod spare_memory;
mod start;
mod tail;
mod thread_book;
mod writer_thread;

pub use cluster::{ClusterError, LogOnly, RaftCluster, RaftClusterBuilder, cluster_id};
pub use config::{EngineConfig, Pinning, Preset, RecordingConfig};
pub use engine::{Appended, Engine, EngineStats, Records, RingReport};
pub use error::{EngineError, NodeError};
pub use iroh_raft_core as core;
pub use iroh_raft_core::batch::{Record, RecordBlock};
pub use iroh_raft_core::{
    ConfState, Consistency, CursorName, Freshness, GroupCommand, GroupId, GroupStatus, LeaseReads,
    MemberChange, MemberRole, MembersRefusal, NodeId, Offset, Placement, Recovered, RecoveryRefusal,
    RequestError, Retention, Retry, Role, RunOutcome, Sequence, SessionId, SessionRefusal, ShardConfig,
    ShardId, SnapshotConfig, SpreadConfig, TransferError, WallTime,
};
pub use iroh_raft_driver::costs::GroupCost;
pub use iroh_raft_driver::lines::{HandedOver, LeadershipError};
pub use iroh_raft_driver::recording;
pub use iroh_raft_driver::state_machine::{
    self, ApplyContext, Message, Restore, RestoreError, SnapshotView, StateMachine,
};
pub use iroh_raft_driver::stats;
pub use iroh_raft_driver::{ApplyBudget, bank, kv};
pub use iroh_raft_netbridge as net;
pub use iroh_raft_netbridge::identity::{EndpointId, Identity};
pub use iroh_raft_netbridge::port::Rights;
pub use iroh_raft_netbridge::wire::{Answer, Stages};
pub use iroh_raft_storage as storage;
pub use session::{Session, SessionDone};
pub use tail::Tail;
pub use thread_book::ThreadCost;

/// Everything a first program needs.
pub mod prelude {
    pub use crate::kv::{KeyValue, KvAnswer, KvCommand, KvQuery, KvResponse};
    pub use crate::{
        Consistency, Engine, GroupId, Identity, NodeId, Offset, Preset, RaftCluster, Rights, StateMachine,
    };
}

/// The README's example runs as a doc test.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
pub struct Readme;

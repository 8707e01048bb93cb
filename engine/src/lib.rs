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
//!
//! A program that only uses a cluster needs the [`client`] alone: with `default-features = false` this crate has nothing else, and
//! depends neither on glommio nor on redb.
#![deny(unsafe_code)]

#[cfg(feature = "engine")]
mod awake;
pub mod client;
#[cfg(feature = "engine")]
pub mod cluster;
#[cfg(feature = "engine")]
mod compare;
#[cfg(feature = "engine")]
pub mod config;
#[cfg(feature = "engine")]
pub mod cpu;
#[cfg(feature = "engine")]
mod driver;
#[cfg(feature = "engine")]
pub mod engine;
#[cfg(feature = "engine")]
pub mod error;
#[cfg(feature = "engine")]
mod membarrier;
#[cfg(feature = "engine")]
mod mover_thread;
mod name;
#[cfg(feature = "engine")]
mod preflight;
#[cfg(feature = "engine")]
mod reader_thread;
#[cfg(feature = "engine")]
mod record;
#[cfg(feature = "engine")]
mod session;
#[cfg(feature = "engine")]
mod snapshot_thread;
#[cfg(feature = "engine")]
mod spare_memory;
#[cfg(feature = "engine")]
mod start;
#[cfg(feature = "engine")]
mod tail;
#[cfg(feature = "engine")]
mod thread_book;
#[cfg(feature = "engine")]
mod writer_thread;

#[cfg(feature = "engine")]
pub use cluster::{ClusterError, LogOnly, RaftCluster, RaftClusterBuilder};
#[cfg(feature = "engine")]
pub use config::{EngineConfig, Pinning, Preset, RecordingConfig};
#[cfg(feature = "engine")]
pub use engine::{Appended, Engine, EngineStats, Records, RingReport};
#[cfg(feature = "engine")]
pub use error::{EngineError, NodeError};
pub use iroh_raft_core as core;
pub use iroh_raft_core::batch::{Record, RecordBlock};
pub use iroh_raft_core::{
    ConfState, Consistency, CursorName, Freshness, GroupCommand, GroupId, GroupStatus, LeaseReads,
    MemberChange, MemberRole, MembersRefusal, NodeId, Offset, Placement, Recovered, RecoveryRefusal,
    RequestError, Retention, Retry, Role, RunOutcome, Sequence, SessionId, SessionRefusal, ShardConfig,
    ShardId, SnapshotConfig, SpreadConfig, TransferError, WallTime,
};
#[cfg(feature = "engine")]
pub use iroh_raft_driver::costs::GroupCost;
#[cfg(feature = "engine")]
pub use iroh_raft_driver::lines::{HandedOver, LeadershipError};
#[cfg(feature = "engine")]
pub use iroh_raft_driver::recording;
#[cfg(feature = "engine")]
pub use iroh_raft_driver::state_machine::{
    self, ApplyContext, Message, Restore, RestoreError, SnapshotView, StateMachine,
};
#[cfg(feature = "engine")]
pub use iroh_raft_driver::stats;
#[cfg(feature = "engine")]
pub use iroh_raft_driver::{ApplyBudget, bank, kv};
pub use iroh_raft_netbridge as net;
pub use iroh_raft_netbridge::identity::{EndpointId, Identity};
pub use iroh_raft_netbridge::port::Rights;
pub use iroh_raft_netbridge::wire::{Answer, Stages};
#[cfg(feature = "engine")]
pub use iroh_raft_storage as storage;
pub use name::cluster_id;
#[cfg(feature = "engine")]
pub use preflight::check_machine;
#[cfg(feature = "engine")]
pub use session::{Session, SessionDone};
#[cfg(feature = "engine")]
pub use tail::Tail;
#[cfg(feature = "engine")]
pub use thread_book::ThreadCost;

/// Everything a first program needs.
#[cfg(feature = "engine")]
pub mod prelude {
    pub use crate::kv::{KeyValue, KvAnswer, KvCommand, KvQuery, KvResponse};
    pub use crate::{
        Consistency, Engine, GroupId, Identity, NodeId, Offset, Preset, RaftCluster, Rights, StateMachine,
    };
}

/// The README's example runs as a doc test.
#[cfg(all(doctest, feature = "engine"))]
#[doc = include_str!("../../README.md")]
pub struct Readme;

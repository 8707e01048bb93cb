//! The durable log of a node: a journal and a log file per shard, both on redb, and the folder around them.
//!
//! There are no threads here. A [`JournalWriter`] is called by whoever owns it and makes everything
//! it is given durable in one commit with one sync; a [`Mover`] takes what is committed from there to
//! the log file; a [`LogReader`] reads old entries beside both; a [`Scrubber`] verifies what is stored.
//!
//! Invariants: what [`JournalWriter::run_once`] reported is found at every later start, or the start
//! fails and says why, or the group whose entries are damaged is named and nothing of it is served;
//! entries and hard states of one flush are found together or not at all; no folder is mistaken for an
//! empty one, another one or an older one; nothing read is used before its checksum held.
//!
//! It never retries a failed write, never repairs by guessing, and never writes to a folder that it
//! refuses.
#![deny(unsafe_code)]

mod block;
mod calibrate;
mod check;
mod cold_block;
mod cursor;
mod direct;
mod disk;
mod error;
pub mod fault;
mod folder;
#[doc(hidden)]
pub mod fuzzing;
mod group_log;
mod hanging_disk;
mod index;
mod journal;
mod log_file;
mod manifest;
mod mark;
mod mover;
mod nodes;
mod numbers;
mod pages;
mod peers;
mod reader;
mod recovery;
mod redb_file;
mod relocate;
mod reopen;
mod rows;
mod scrub;
mod shard;
mod small_file;
pub mod snapshot;
mod space;
mod span_read;
mod writer;

pub use block::BlockError;
pub use calibrate::{BackendChoice, BackendKind, Calibration, CommitTimes, UnknownBackend};
pub use check::{CheckReport, DumpError, ShardCheck, check, dump};
pub use direct::DirectDisk;
pub use disk::{Disk, FileDisk, FileKind, FolderLock};
pub use error::{AffectedRange, AppendProblem, FileDamage, StorageError, Unmovable};
pub use folder::{Boot, DataFolder, OfflineFolder};
pub use hanging_disk::HangingDisk;
pub use manifest::FolderIdentity;
pub use mover::{MoveReport, Mover};
pub use nodes::{KnownNode, KnownNodes};
pub use peers::PeerEpochs;
pub use reader::LogReader;
pub use recovery::RecoveryReport;
pub use scrub::{Damage, DamagePlace, ScrubReport, Scrubber};
pub use shard::{OpenShard, ReadShard, ShardOptions};
pub use snapshot::{SnapshotError, SnapshotHead, SnapshotMeta, SnapshotStore};
pub use writer::{FlushReport, JournalWriter};

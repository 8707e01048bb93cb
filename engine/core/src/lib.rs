//! The shard of iroh-raft as a deterministic state machine.
//!
//! One type, [`Shard`], two calls: `step` takes an [`Input`] and says in [`Outputs`] what has to be
//! done; `next_wakeup` says when time itself is the next input. Many Raft groups live in a shard.
//!
//! Invariants: same configuration and same inputs give equal outputs, to the byte; *persist before
//! send* is data ([`Send::after`]), never control flow; for every replica
//! compacted <= snapshot <= applied <= commit <= last and persisted <= last.
//!
//! The way of a record: `pending` packs what arrived in a turn into one entry, `group` proposes it,
//! `group::ready` says what must be durable and what may leave, `log_window` keeps the entry until
//! nobody near needs it, `pending` answers once it is committed, `group::serve` hands it to state
//! machines and readers; `group::snapshots` takes snapshots, lets go of what they cover, and brings them to
//! followers that need it; `group::leadership` gives leadership away when it is told to, or `spread` or
//! `disk_watch` say so; `group::quiet` lets it rest, and `liveness` says when not to, shard by shard, as `placement` has them; `records` and `find` serve those who read the log, `group::commands` keeps their cursors,
//! `group::retention` lets go of what is old. `shard` routes, keeps time and contains panics; `validate` stands between
//! peers and Raft; raft-rs itself is seen by `group`, `members`, `log_window` and `convert`
//! alone.
//!
//! It never awaits, blocks, starts a thread, opens a file or a socket, reads a clock or draws
//! ambient randomness.
#![forbid(unsafe_code)]

pub mod batch;
mod convert;
mod disk_watch;
pub mod error;
mod find;
mod group;
pub mod group_command;
pub mod group_meta;
pub mod ids;
pub mod io;
mod jitter;
mod lease;
mod liveness;
mod loading;
mod log_window;
pub mod members;
pub mod mutants;
mod pending;
mod placement;
mod read_index;
mod records;
pub mod recovery;
mod sessions;
mod shard;
mod snapshot_wire;
mod spread;
mod tombstone;
pub mod validate;

pub use error::{BusyReason, ConfigError, RequestError, Retry, TransferError};
pub use group_command::{CURSOR_NAME_BYTES_MAX, CursorName, GroupCommand, GroupCommandError};
pub use group_meta::{CURSORS_MAX, GroupMeta, GroupOutcome};
pub use ids::*;
pub use io::*;
pub use members::{
    MEMBER_CHANGES_MAX, MEMBERS_MAX, MembersRefusal, decode_change, decode_members, decode_recovery,
    encode_members,
};
pub use placement::{PLACED_MAX, Placement, PlacementError};
pub use recovery::{Recovered, RecoveryRefusal};
pub use sessions::{RunOutcome, SESSION_RUNS_MAX, SESSIONS_MAX, SessionRefusal};
pub use shard::Shard;

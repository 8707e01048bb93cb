//! The turn of a shard: what stands between its core and its rings, whatever runtime calls it.
//!
//! glommio drives it in production, madsim in simulation, with the same rings, frames and state machines.
//! A runtime's part is small: call [`Driver::turn`] with the time, then call it again or sleep, as it says.
//!
//! Invariants: `Persisted` reaches the core before peer messages of the same turn; a frame leaves
//! only when the flush it waits for is durable; every request gets exactly one last answer, and but for tails
//! no other.
//!
//! It never blocks, sleeps or starts a thread, and reads no clock but those that say how long something was in a ring and
//! what a turn cost: nothing depends on them.
#![forbid(unsafe_code)]

mod applying;
pub mod bank;
mod comparing;
pub mod costs;
mod driver;
pub mod kv;
pub mod lines;
mod machines;
mod outbox;
pub mod recording;
mod responses;
pub mod snapshots;
pub mod state_machine;
pub mod stats;
mod tails;
mod timings;
mod unflushed;

pub use applying::ApplyBudget;
pub use driver::{Driver, DriverParts, Next, Observer};
pub use outbox::FRAME_BYTES_TARGET;

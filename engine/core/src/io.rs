//! What goes into a shard and what comes out: the seam between the core and its drivers.
//!
//! Everything here is data. A driver feeds [`Input`]s as they arrive and ends each turn with
//! [`Input::EndTurn`]; the shard then says in [`Outputs`] what the world has to do. Neither side
//! calls back into the other.

mod compare;
mod config;
mod input;
mod log;
mod message;
mod output;
mod snapshot;
mod status;

pub use compare::*;
pub use config::*;
pub use input::*;
pub use log::*;
pub use message::*;
pub use output::*;
pub use snapshot::*;
pub use status::*;

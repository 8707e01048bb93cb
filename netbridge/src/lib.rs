//! The network of iroh-raft: rings between threads, frames on lanes, and the bridge thread.
//!
//! Invariants: every ring and queue is bounded and says what "full" means; a frame's length is
//! checked before memory is taken for it; its archive is validated before it is read; the sender of
//! every message is the node whose key the connection has.
//!
//! It never looks into a group: what a message means is the core's business.

pub mod port;
pub mod ring;
pub mod wire;

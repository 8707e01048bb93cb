//! The network of iroh-raft: rings between threads, frames on lanes, and the bridge thread.
//!
//! Invariants: every ring and queue is bounded and says what "full" means; a frame's length is
//! checked before memory is taken for it; its archive is validated before it is read; the sender of
//! every message is the node whose key the connection has.
//!
//! It never looks into a group: what a message means is the core's business.
//!
//! Rings, ports and frames build without iroh and tokio; the feature `endpoint` holds the rest.

pub mod port;
pub mod ring;
pub mod wire;

#[cfg(feature = "endpoint")]
pub mod allow;
#[cfg(feature = "endpoint")]
pub mod bridge;
#[cfg(feature = "endpoint")]
pub mod client;
#[cfg(feature = "endpoint")]
mod client_server;
#[cfg(feature = "endpoint")]
mod close;
#[cfg(feature = "endpoint")]
pub mod cluster_file;
#[cfg(feature = "endpoint")]
pub mod endpoint;
#[cfg(feature = "endpoint")]
pub mod identity;
#[cfg(feature = "endpoint")]
mod introduce;
#[cfg(feature = "endpoint")]
mod lane;
#[cfg(feature = "endpoint")]
mod peer;

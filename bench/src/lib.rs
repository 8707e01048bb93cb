//! What the benchmarks share: the work, the storage as the engine runs it, and its limit, the bare
//! file.
//!
//! The work is the same for every subject: [`load::Source`] makes entries from a fixed seed, with
//! hard states whose commit index is that of the flush before. Making entries is never in a measured
//! time: in the engine another thread does it.
#![forbid(unsafe_code)]

pub mod bare;
#[cfg(feature = "network")]
pub mod bridges;
pub mod load;
pub mod memory;
#[cfg(feature = "network")]
pub mod reports;
pub mod store;

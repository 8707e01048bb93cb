//! Fuzz targets: bytes become a run of shards, or a batch. What must hold is the harness' to check.
//!
//! `choices` reads bytes as choices, `forged` makes messages of them. `fuzz/fuzz_targets` of the repository
//! includes this folder and the harness by their paths.

pub(crate) mod batch;
mod choices;
mod forged;
pub(crate) mod shard_inputs;
pub(crate) mod validator;

#[cfg(test)]
mod stored;

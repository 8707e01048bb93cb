//! A cluster in memory: several shards, a network and disks that misbehave by a seed, clients, and
//! a checker that watches every step.
//!
//! Everything that happens comes from one generator and one queue of events, so a seed replays.
//! The parts: `rng` (the generator), `disk` (what survives a crash), `checker` (what must always
//! hold), `cluster` (the events).

pub(crate) mod checker;
pub(crate) mod cluster;
pub(crate) mod disk;
pub(crate) mod rng;

pub(crate) use cluster::{Cluster, Group, Options};
#[allow(unused_imports, reason = "the fuzz targets draw from their input")]
pub(crate) use rng::Rng;

//! The shard as its drivers see it: whole clusters of shards in memory, by seed.

mod harness;

mod chaos;
mod copies;
mod fuzz;
mod hostile;
mod passages;
mod scripts;

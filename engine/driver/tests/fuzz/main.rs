//! Fuzz targets: recordings, and the messages of state machines. `fuzz/fuzz_targets` of the repository
//! includes the targets by their paths.

mod message;
mod recording;

mod stored;

//! The fuzz target of the frames: all that peers and clients send. `fuzz/fuzz_targets` of the repository
//! includes this folder and the samples by their paths.

pub(crate) mod frame;

#[cfg(test)]
mod stored;

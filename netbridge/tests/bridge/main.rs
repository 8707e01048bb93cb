//! The bridge and the client over real endpoints on loopback. The test plays the shards.
#![cfg(feature = "endpoint")]

mod client;
mod doubt;
mod harness;
mod peers;
mod refusals;
mod retries;

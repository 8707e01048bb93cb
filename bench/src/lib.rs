//! Benchmarks of iroh-raft live in `benches`; each stands beside its limit or its peer.

//! Passages of Raft, one test each.

//! Gives memory back to the system that a storm needed: thousands of groups that start, elect leaders or move leave holes
//! between what stays. Done when a shard comes to rest, so that nobody waits for it.
#![allow(unsafe_code)]

use std::time::{Duration, Instant};

/// Time between two times at least: it walks through all that is free.
const PAUSE: Duration = Duration::from_secs(60);

#[derive(Default)]
pub(crate) struct SpareMemory {
    given_back: Option<Instant>,
}

impl SpareMemory {
    /// The shard rests from now on.
    pub(crate) fn handle_rest(&mut self) {
        if self.given_back.is_none_or(|at| at.elapsed() >= PAUSE) {
            self.given_back = Some(Instant::now());
            give_back();
        }
    }
}

#[cfg(target_env = "gnu")]
fn give_back() {
    // SAFETY: it takes a number and touches only memory that the allocator holds as free; it may be called from any
    // thread at any time (malloc_trim(3)). Where another allocator serves this process it finds nothing to do.
    let _was_anything_given = unsafe { libc::malloc_trim(0) };
}

#[cfg(not(target_env = "gnu"))]
fn give_back() {}

//! Gives memory back to the system that a storm needed: thousands of groups that start, elect leaders or move leave holes
//! between what stays. Done when a shard comes to rest, so that nobody waits for it. And keeps those holes from coming
//! about while large buffers come and go between small things that stay: at a start, and while snapshots are on their way.
#![allow(unsafe_code)]

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Time between two times at least: it walks through all that is free.
const PAUSE: Duration = Duration::from_secs(60);
/// A shard that has not come to rest by then has started all the same.
const START_TIME: Duration = Duration::from_secs(10);

pub(crate) struct SpareMemory {
    started: Instant,
    starting: Option<LargeApart>,
    given_back: Option<Instant>,
}

impl SpareMemory {
    /// The shard starts.
    pub(crate) fn new() -> SpareMemory {
        SpareMemory { started: Instant::now(), starting: Some(LargeApart::hold()), given_back: None }
    }

    /// The shard sleeps, and rests from now on perhaps.
    pub(crate) fn handle_sleep(&mut self, is_rest: bool) {
        if self.starting.is_some() && (is_rest || self.started.elapsed() >= START_TIME) {
            self.starting = None;
        }
        if is_rest && self.given_back.is_none_or(|at| at.elapsed() >= PAUSE) {
            self.given_back = Some(Instant::now());
            give_back();
        }
    }
}

/// While one of these lives, large buffers are mapped from the system one by one, as the allocator does at first; on its
/// own it goes over to cutting them from the heap, where each freed one leaves a hole between what stays. The leader of
/// a 2 GiB state machine grew by 80 to 300 MiB that way while it sent a snapshot, and by 10 MiB like this.
/// Not kept all the time: mapping the buffers of requests cost 5 % of the throughput (705 against 667 thousand records/s).
#[derive(Debug)]
pub(crate) struct LargeApart(());

static HOLDERS: Mutex<usize> = Mutex::new(0);

impl LargeApart {
    pub(crate) fn hold() -> LargeApart {
        let mut holders = HOLDERS.lock().unwrap_or_else(PoisonError::into_inner);
        *holders += 1;
        if *holders == 1 {
            keep_large_apart(true);
        }
        LargeApart(())
    }
}

impl Drop for LargeApart {
    fn drop(&mut self) {
        let mut holders = HOLDERS.lock().unwrap_or_else(PoisonError::into_inner);
        *holders -= 1;
        if *holders == 0 {
            keep_large_apart(false);
        }
    }
}

#[cfg(target_env = "gnu")]
fn keep_large_apart(is_apart: bool) {
    // What the allocator begins with, and what it would come to by itself (mallopt(3)).
    let (mapped_from, trimmed_from) = if is_apart { (128 << 10, 128 << 10) } else { (32 << 20, 64 << 20) };
    // SAFETY: it takes two numbers and may be called at any time. Where another allocator serves this process it changes
    // nothing.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, mapped_from);
        libc::mallopt(libc::M_TRIM_THRESHOLD, trimmed_from);
    }
}

#[cfg(not(target_env = "gnu"))]
fn keep_large_apart(_is_apart: bool) {}

#[cfg(target_env = "gnu")]
fn give_back() {
    // SAFETY: it takes a number and touches only memory that the allocator holds as free; it may be called from any
    // thread at any time (malloc_trim(3)). Where another allocator serves this process it finds nothing to do.
    let _was_anything_given = unsafe { libc::malloc_trim(0) };
}

#[cfg(not(target_env = "gnu"))]
fn give_back() {}

//! Gives memory back to the system that a storm needed: thousands of groups that start, elect leaders or move leave holes
//! between what stays. Done when all shards of the node have come to rest, so that none of them waits for it: it takes the lock of
//! every arena in turn. And keeps those holes from coming
//! about while large buffers come and go between small things that stay: at a start, and while snapshots are on their way.
//!
//! All of this acts on the whole process, and can be switched off ([`crate::EngineConfig::tunes_allocator`]).
#![allow(unsafe_code)]

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Time between two times at least: it walks through all that is free.
const PAUSE: Duration = Duration::from_secs(60);
/// A shard that has not come to rest after this, and [`START_TIME_OF_GROUP`] for each group, has started all the same.
const START_TIME: Duration = Duration::from_secs(1);
const START_TIME_OF_GROUP: Duration = Duration::from_millis(1);
/// However many groups it has.
const START_TIME_MAX: Duration = Duration::from_secs(10);

/// How many shards of a node rest, and when memory was given back last.
#[derive(Debug)]
pub(crate) struct NodeRest(Mutex<RestState>);

#[derive(Debug)]
struct RestState {
    /// Shards that have not ended.
    running: usize,
    resting: usize,
    given_back: Option<Instant>,
}

impl NodeRest {
    /// Of a node whose shards are all at work.
    pub(crate) fn new(shards: u16) -> Arc<NodeRest> {
        Arc::new(NodeRest(Mutex::new(RestState { running: shards.into(), resting: 0, given_back: None })))
    }

    /// A shard that did or did not rest does or does not from now on. Returns whether memory is to be given back now.
    fn change(&self, did_rest: bool, does_rest: bool, now: Instant) -> bool {
        let mut state = self.state();
        state.resting = state.resting + usize::from(does_rest) - usize::from(did_rest);
        let is_due = state.given_back.is_none_or(|at| now.saturating_duration_since(at) >= PAUSE);
        let is_now = does_rest && state.resting == state.running && is_due;
        if is_now {
            state.given_back = Some(now);
        }
        is_now
    }

    /// A shard has ended: the others need not wait for it.
    fn leave(&self, did_rest: bool) {
        let mut state = self.state();
        state.resting -= usize::from(did_rest);
        state.running -= 1;
    }

    fn state(&self) -> MutexGuard<'_, RestState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A shard's part in it.
pub(crate) struct SpareMemory {
    started: Instant,
    start_time: Duration,
    starting: Option<LargeApart>,
    /// `None` where the allocator is left alone.
    node: Option<Arc<NodeRest>>,
    is_resting: bool,
}

impl SpareMemory {
    /// A shard of so many groups starts.
    pub(crate) fn new(node: Option<Arc<NodeRest>>, groups: usize) -> SpareMemory {
        let starting = node.as_ref().map(|_| LargeApart::hold());
        let of_groups = START_TIME_OF_GROUP.saturating_mul(u32::try_from(groups).unwrap_or(u32::MAX));
        let start_time = (START_TIME + of_groups).min(START_TIME_MAX);
        SpareMemory { started: Instant::now(), start_time, starting, node, is_resting: false }
    }

    /// The shard sleeps, and rests from now on perhaps.
    pub(crate) fn handle_sleep(&mut self, is_rest: bool) {
        if self.starting.is_some() && (is_rest || self.started.elapsed() >= self.start_time) {
            self.starting = None;
        }
        if is_rest && self.set(true) {
            give_back();
        }
    }

    /// The shard is at work again.
    pub(crate) fn handle_wake(&mut self) {
        if self.is_resting {
            self.set(false);
        }
    }

    fn set(&mut self, is_resting: bool) -> bool {
        let Some(node) = &self.node else { return false };
        let was_resting = std::mem::replace(&mut self.is_resting, is_resting);
        node.change(was_resting, is_resting, Instant::now())
    }
}

impl Drop for SpareMemory {
    fn drop(&mut self) {
        if let Some(node) = &self.node {
            node.leave(self.is_resting);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_given_back_once_in_a_while_and_when_all_shards_rest() {
        let node = NodeRest::new(2);
        let now = Instant::now();
        assert!(!node.change(false, true, now), "the other one is at work");
        assert!(!node.change(true, true, now));
        assert!(node.change(false, true, now));
        assert!(!node.change(true, true, now + PAUSE / 2), "a while ago only");
        assert!(!node.change(true, false, now + PAUSE));
        assert!(!node.change(true, true, now + PAUSE), "the other one is at work again");
        assert!(node.change(false, true, now + PAUSE));
    }

    #[test]
    fn a_shard_that_has_ended_holds_nothing_up() {
        let node = NodeRest::new(2);
        let mut shards = [(), ()].map(|()| SpareMemory::new(Some(node.clone()), 1));
        shards[0].handle_sleep(true);
        shards[0].handle_wake();
        let [one, other] = shards;
        drop(other);
        let was_given_back = || node.state().given_back.is_some();
        assert!(!was_given_back());
        let mut one = one;
        one.handle_sleep(true);
        assert!(was_given_back());
    }
}

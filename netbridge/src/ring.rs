//! Bounded rings between threads, and the doorbell that wakes a sleeping consumer.
//!
//! A consumer that finds all its rings empty arms its doorbell, looks once more, and only then
//! sleeps. A producer rings after it pushed; that costs a fence and one load unless the consumer
//! really sleeps. So a busy consumer is never woken, and glommio's 16-bit waker counts see at most
//! one wake per sleep.
//!
//! Invariant: an item pushed before `ring()` is seen either by the consumer's look after `arm()` or
//! by the wake. Full is the producer's business: `push` hands the item back.

use std::sync::Arc;
use std::task::Waker;

use crossbeam::queue::ArrayQueue;

use sync::{AtomicBool, AtomicWaker, Ordering, fence};

#[cfg(not(loom))]
mod sync {
    pub(super) use atomic_waker::AtomicWaker;
    pub(super) use std::sync::atomic::{AtomicBool, Ordering, fence};
}

/// Wakes one consumer, only when it sleeps.
#[derive(Debug, Default)]
pub struct Doorbell {
    armed: AtomicBool,
    waker: AtomicWaker,
}

impl Doorbell {
    /// A doorbell that nobody waits at.
    #[must_use]
    pub fn new() -> Arc<Doorbell> {
        Arc::new(Doorbell::default())
    }

    /// Consumer: from now on a producer wakes `waker`. Look into every ring once more after this,
    /// and [`disarm`](Doorbell::disarm) if something is there.
    pub fn arm(&self, waker: &Waker) {
        self.waker.register(waker);
        self.armed.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }

    /// Consumer: awake, wakes are not needed.
    pub fn disarm(&self) {
        self.armed.store(false, Ordering::Relaxed);
    }

    /// Producer: something was pushed. Returns whether a sleeping consumer was woken.
    pub fn ring(&self) -> bool {
        fence(Ordering::SeqCst);
        if self.armed.load(Ordering::Relaxed) && self.armed.swap(false, Ordering::AcqRel) {
            self.waker.wake();
            return true;
        }
        false
    }
}

/// The sending end of a ring. Clones push into the same ring.
#[derive(Debug)]
pub struct Producer<T> {
    queue: Arc<ArrayQueue<T>>,
    doorbell: Arc<Doorbell>,
}

impl<T> Clone for Producer<T> {
    fn clone(&self) -> Self {
        Producer { queue: self.queue.clone(), doorbell: self.doorbell.clone() }
    }
}

impl<T> Producer<T> {
    /// Pushes and rings.
    ///
    /// # Errors
    /// Hands the item back when the ring is full; the caller has the rule for that.
    pub fn push(&self, item: T) -> Result<(), T> {
        self.push_quietly(item)?;
        self.ring();
        Ok(())
    }

    /// Pushes without ringing: for several items, followed by one [`ring`](Producer::ring).
    ///
    /// # Errors
    /// Hands the item back when the ring is full.
    pub fn push_quietly(&self, item: T) -> Result<(), T> {
        self.queue.push(item)
    }

    /// Wakes the consumer if it sleeps.
    pub fn ring(&self) -> bool {
        self.doorbell.ring()
    }

    /// Items in the ring now.
    #[must_use]
    pub fn len(&self) -> usize {
        self.queue.len()
    }

    /// Whether the ring is empty now.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }
}

/// The receiving end of a ring.
#[derive(Debug)]
pub struct Consumer<T> {
    queue: Arc<ArrayQueue<T>>,
}

impl<T> Consumer<T> {
    /// The oldest item, if there is one.
    #[must_use]
    pub fn pop(&self) -> Option<T> {
        self.queue.pop()
    }

    /// Whether the ring is empty now.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// Items in the ring now.
    #[must_use]
    pub fn len(&self) -> usize {
        self.queue.len()
    }
}

/// A ring of at most `bound` items whose consumer waits at `doorbell`.
///
/// # Panics
/// If `bound` is 0.
#[must_use]
pub fn ring<T>(bound: usize, doorbell: &Arc<Doorbell>) -> (Producer<T>, Consumer<T>) {
    let queue = Arc::new(ArrayQueue::new(bound));
    (Producer { queue: queue.clone(), doorbell: doorbell.clone() }, Consumer { queue })
}

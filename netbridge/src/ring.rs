//! Bounded rings between threads, and the doorbell that wakes a sleeping consumer.
//!
//! A consumer that finds all its rings empty arms its doorbell, looks once more, and only then
//! sleeps. A producer rings after it pushed; that costs a fence and one load unless the consumer
//! really sleeps. So a busy consumer is never woken, and glommio's 16-bit waker counts see at most
//! one wake per sleep.
//!
//! Invariant: an item pushed before `ring()` is seen either by the consumer's look after `arm()` or
//! by the wake (`ring/loom_tests.rs` tries every order of both). Full is the producer's business:
//! `push` hands the item back.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize};
use std::task::Waker;
use std::time::{Duration, Instant};

use crossbeam::utils::CachePadded;

use sync::{ArrayQueue, AtomicBool, AtomicWaker, Ordering, fence};

#[cfg(all(test, loom))]
mod loom_tests;
mod waits;

pub use waits::Waits;

#[cfg(not(all(test, loom)))]
mod sync {
    pub(super) use atomic_waker::AtomicWaker;
    pub(super) use crossbeam::queue::ArrayQueue;
    pub(super) use std::sync::atomic::{AtomicBool, Ordering, fence};
}
#[cfg(all(test, loom))]
use loom_tests::sync;

/// Wakes one consumer, only when it sleeps.
#[derive(Debug)]
pub struct Doorbell {
    armed: AtomicBool,
    waker: AtomicWaker,
    wakes: AtomicU64,
}

impl Default for Doorbell {
    fn default() -> Doorbell {
        Doorbell { armed: AtomicBool::new(false), waker: AtomicWaker::new(), wakes: AtomicU64::new(0) }
    }
}

impl Doorbell {
    /// A doorbell that nobody waits at.
    #[must_use]
    pub fn new() -> Arc<Doorbell> {
        Arc::new(Doorbell::default())
    }

    /// Consumer: from now on a producer wakes `waker`. Look into every ring once more after this,
    /// and [`disarm`](Doorbell::disarm) if something is there.
    ///
    /// One consumer at a time; a wake that was already under way may reach it late, as a spurious one.
    pub fn arm(&self, waker: &Waker) {
        self.waker.register(waker);
        // Release: who sees the flag also sees the waker, and does not wake the one before it.
        self.armed.store(true, Ordering::Release);
        // Either the look that follows sees the item, or its producer sees the flag: of two fences
        // one is first, and what was written before it is seen after the other.
        fence(Ordering::SeqCst);
    }

    /// Consumer: awake, wakes are not needed.
    pub fn disarm(&self) {
        self.armed.store(false, Ordering::Relaxed);
    }

    /// Producer: something was pushed. Returns whether a sleeping consumer was woken.
    pub fn ring(&self) -> bool {
        fence(Ordering::SeqCst);
        // The load keeps the flag's cache line shared while nobody sleeps; the swap picks the one
        // producer that wakes.
        if self.armed.load(Ordering::Relaxed) && self.armed.swap(false, Ordering::Acquire) {
            self.wakes.fetch_add(1, Ordering::Relaxed);
            self.waker.wake();
            return true;
        }
        false
    }

    /// Wakes so far.
    #[must_use]
    pub fn wakes(&self) -> u64 {
        self.wakes.load(Ordering::Relaxed)
    }
}

/// What a ring has seen since it was made.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct RingStats {
    /// Items pushed.
    pub pushed: u64,
    /// Items handed back because the ring was full.
    pub full: u64,
    /// Items in it now.
    pub length: usize,
    /// Items in it at most.
    pub bound: usize,
    /// Bytes in it now, as they are weighed; 0 where nothing is.
    pub bytes: usize,
}

/// Bytes that a ring holds at most, and what an item counts.
struct Scale<T> {
    bytes_max: usize,
    weigh: fn(&T) -> usize,
    bytes: AtomicUsize,
}

impl<T> fmt::Debug for Scale<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Scale").field("bytes_max", &self.bytes_max).field("bytes", &self.bytes).finish()
    }
}

impl<T> Scale<T> {
    /// Takes room for an item; one always fits where nothing is.
    fn take(&self, item: &T) -> bool {
        let bytes = (self.weigh)(item);
        let with = |before: usize| {
            let after = before.saturating_add(bytes);
            (before == 0 || after <= self.bytes_max).then_some(after)
        };
        self.bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, with).is_ok()
    }

    fn give(&self, item: &T) {
        self.bytes.fetch_sub((self.weigh)(item), Ordering::Relaxed);
    }
}

#[derive(Debug)]
struct Shared<T> {
    /// Each with when it was pushed.
    queue: ArrayQueue<(Instant, T)>,
    scale: Option<Scale<T>>,
    /// Written by producers only, off the line that the consumer reads.
    counters: CachePadded<Counters>,
    /// Written by the consumer only.
    waits: CachePadded<waits::Counts>,
}

#[derive(Debug, Default)]
struct Counters {
    pushed: AtomicU64,
    full: AtomicU64,
}

impl<T> Shared<T> {
    fn stats(&self) -> RingStats {
        RingStats {
            pushed: self.counters.pushed.load(Ordering::Relaxed),
            full: self.counters.full.load(Ordering::Relaxed),
            length: self.queue.len(),
            bound: self.queue.capacity(),
            bytes: self.scale.as_ref().map_or(0, |scale| scale.bytes.load(Ordering::Relaxed)),
        }
    }

    fn push(&self, item: T) -> Result<(), T> {
        let push = |item| self.queue.push((Instant::now(), item)).map_err(|(_, item)| item);
        let Some(scale) = &self.scale else { return push(item) };
        if !scale.take(&item) {
            return Err(item);
        }
        push(item).inspect_err(|item| scale.give(item))
    }
}

/// The sending end of a ring. Clones push into the same ring.
#[derive(Debug)]
pub struct Producer<T> {
    shared: Arc<Shared<T>>,
    doorbell: Arc<Doorbell>,
}

impl<T> Clone for Producer<T> {
    fn clone(&self) -> Self {
        Producer { shared: self.shared.clone(), doorbell: self.doorbell.clone() }
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
    /// Hands the item back when the ring is full. What was pushed before still needs its ring.
    pub fn push_quietly(&self, item: T) -> Result<(), T> {
        let pushed = self.shared.push(item);
        let counters = &self.shared.counters;
        let counter = if pushed.is_ok() { &counters.pushed } else { &counters.full };
        counter.fetch_add(1, Ordering::Relaxed);
        pushed
    }

    /// Wakes the consumer if it sleeps. Returns whether it did.
    pub fn ring(&self) -> bool {
        self.doorbell.ring()
    }

    /// Items in the ring now.
    #[must_use]
    pub fn len(&self) -> usize {
        self.shared.queue.len()
    }

    /// Items that the ring takes before it is full, unless its consumer makes more room.
    #[must_use]
    pub fn places(&self) -> usize {
        self.shared.queue.capacity() - self.shared.queue.len()
    }

    /// Whether less than a quarter of the ring is free, of its items or its bytes.
    #[must_use]
    pub fn is_nearly_full(&self) -> bool {
        let is_heavy =
            |scale: &Scale<T>| scale.bytes.load(Ordering::Relaxed) > scale.bytes_max - scale.bytes_max / 4;
        4 * self.places() < self.shared.queue.capacity() || self.shared.scale.as_ref().is_some_and(is_heavy)
    }

    /// Whether the ring is empty now.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.shared.queue.is_empty()
    }

    /// What the ring has seen.
    #[must_use]
    pub fn stats(&self) -> RingStats {
        self.shared.stats()
    }

    /// What can be asked of the ring from elsewhere.
    #[must_use]
    pub fn meter(&self) -> RingMeter
    where
        T: Send + fmt::Debug + 'static,
    {
        RingMeter(self.shared.clone())
    }
}

trait Meter: fmt::Debug + Send + Sync {
    fn stats(&self) -> RingStats;
    fn waits(&self) -> Waits;
}

impl<T: Send + fmt::Debug> Meter for Shared<T> {
    fn stats(&self) -> RingStats {
        Shared::stats(self)
    }

    fn waits(&self) -> Waits {
        self.waits.snapshot()
    }
}

/// What can be asked of a ring, whatever goes through it.
#[derive(Clone, Debug)]
pub struct RingMeter(Arc<dyn Meter>);

impl RingMeter {
    /// What the ring has seen.
    #[must_use]
    pub fn stats(&self) -> RingStats {
        self.0.stats()
    }

    /// How long items were in it.
    #[must_use]
    pub fn waits(&self) -> Waits {
        self.0.waits()
    }
}

/// The receiving end of a ring.
#[derive(Debug)]
pub struct Consumer<T> {
    shared: Arc<Shared<T>>,
}

/// What nobody will take any more goes with its consumer: whoever waits on an item learns of it.
impl<T> Drop for Consumer<T> {
    fn drop(&mut self) {
        while self.shared.queue.pop().is_some() {}
    }
}

impl<T> Consumer<T> {
    /// What can be asked of the ring from elsewhere.
    #[must_use]
    pub fn meter(&self) -> RingMeter
    where
        T: Send + fmt::Debug + 'static,
    {
        RingMeter(self.shared.clone())
    }

    /// The oldest item, if there is one.
    #[must_use]
    pub fn pop(&self) -> Option<T> {
        Some(self.pop_waited()?.0)
    }

    /// The oldest item and how long it was here, if there is one.
    #[must_use]
    pub fn pop_waited(&self) -> Option<(T, Duration)> {
        let (pushed, item) = self.shared.queue.pop()?;
        if let Some(scale) = &self.shared.scale {
            scale.give(&item);
        }
        let waited = pushed.elapsed();
        self.shared.waits.record(waited);
        Some((item, waited))
    }

    /// Whether the ring is empty now.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.shared.queue.is_empty()
    }

    /// Items in the ring now.
    #[must_use]
    pub fn len(&self) -> usize {
        self.shared.queue.len()
    }

    /// What the ring has seen.
    #[must_use]
    pub fn stats(&self) -> RingStats {
        self.shared.stats()
    }
}

/// A ring of at most `bound` items whose consumer waits at `doorbell`.
///
/// # Panics
/// If `bound` is 0.
#[must_use]
pub fn ring<T>(bound: usize, doorbell: &Arc<Doorbell>) -> (Producer<T>, Consumer<T>) {
    with_scale(bound, None, doorbell)
}

/// As [`ring`], of at most `bytes_max` bytes as well, where an item counts what `weigh` says: the same each time that it
/// is asked. An item always fits into an empty ring.
///
/// # Panics
/// If `bound` is 0.
#[must_use]
pub fn weighed_ring<T>(
    bound: usize,
    bytes_max: usize,
    weigh: fn(&T) -> usize,
    doorbell: &Arc<Doorbell>,
) -> (Producer<T>, Consumer<T>) {
    with_scale(bound, Some(Scale { bytes_max, weigh, bytes: AtomicUsize::new(0) }), doorbell)
}

fn with_scale<T>(
    bound: usize,
    scale: Option<Scale<T>>,
    doorbell: &Arc<Doorbell>,
) -> (Producer<T>, Consumer<T>) {
    let shared = Arc::new(Shared {
        queue: ArrayQueue::new(bound),
        scale,
        counters: CachePadded::default(),
        waits: CachePadded::default(),
    });
    (Producer { shared: shared.clone(), doorbell: doorbell.clone() }, Consumer { shared })
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::sync::atomic::AtomicUsize;
    use std::task::Wake;
    use std::thread::{self, Thread};

    use super::*;

    #[derive(Default)]
    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    #[test]
    fn items_come_out_in_order_and_a_full_ring_hands_them_back() {
        let (producer, consumer) = ring(2, &Doorbell::new());
        assert_eq!((producer.push(1), producer.push(2), producer.push(3)), (Ok(()), Ok(()), Err(3)));
        assert_eq!(producer.stats(), RingStats { pushed: 2, full: 1, length: 2, bound: 2, bytes: 0 });
        assert_eq!((consumer.pop(), consumer.len()), (Some(1), 1));
        let another = producer.clone();
        assert_eq!(another.push(4), Ok(()));
        assert_eq!((consumer.pop(), consumer.pop(), consumer.pop()), (Some(2), Some(4), None));
        assert_eq!(consumer.stats(), RingStats { pushed: 3, full: 1, length: 0, bound: 2, bytes: 0 });
        assert!(consumer.is_empty() && producer.is_empty() && another.is_empty());
    }

    #[test]
    fn a_weighed_ring_is_full_by_bytes_too_and_one_item_always_fits() {
        let (producer, consumer) = weighed_ring(3, 100, Vec::len, &Doorbell::new());
        let item = |bytes| vec![0_u8; bytes];
        assert_eq!((producer.push(item(500)), producer.push(item(1))), (Ok(()), Err(item(1))));
        assert_eq!((consumer.pop(), producer.stats().bytes), (Some(item(500)), 0));
        assert_eq!((producer.push(item(60)), producer.push(item(40))), (Ok(()), Ok(())));
        assert_eq!((producer.push(item(1)), producer.stats().bytes), (Err(item(1)), 100));
        assert_eq!((consumer.pop(), producer.push(item(60))), (Some(item(60)), Ok(())));
        assert_eq!((producer.push(item(0)), producer.push(item(0))), (Ok(()), Err(item(0))), "three items");
        assert_eq!((consumer.stats().bytes, consumer.stats().full), (100, 3));
    }

    #[test]
    fn only_an_armed_consumer_is_woken_and_only_once() {
        let (doorbell, count) = (Doorbell::new(), Arc::new(Count::default()));
        let (producer, _consumer) = ring(8, &doorbell);
        let waker = Waker::from(count.clone());
        assert!(!producer.ring());
        doorbell.arm(&waker);
        producer.push_quietly(1).unwrap();
        assert_eq!(count.0.load(Ordering::SeqCst), 0);
        assert!(producer.ring());
        assert!(!producer.ring());
        doorbell.arm(&waker);
        doorbell.disarm();
        producer.push(2).unwrap();
        assert_eq!((count.0.load(Ordering::SeqCst), doorbell.wakes()), (1, 1));
    }

    struct Unpark(Thread);

    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }

    /// Hangs when a wake is lost: the consumer sleeps without a time limit.
    #[test]
    fn a_sleeping_consumer_gets_every_item_of_several_producers() {
        const ITEMS: u64 = 20_000;
        let doorbell = Doorbell::new();
        let (producer, consumer) = ring(4, &doorbell);
        let waiting = thread::spawn(move || {
            let waker = Waker::from(Arc::new(Unpark(thread::current())));
            let (mut sum, mut count) = (0, 0);
            while count < 2 * ITEMS {
                doorbell.arm(&waker);
                if consumer.is_empty() {
                    thread::park();
                }
                doorbell.disarm();
                while let Some(item) = consumer.pop() {
                    sum += item;
                    count += 1;
                }
            }
            (sum, consumer.pop())
        });
        let producers = [(); 2].map(|()| {
            let producer = producer.clone();
            thread::spawn(move || {
                for item in 0..ITEMS {
                    while producer.push(item).is_err() {
                        thread::yield_now();
                    }
                }
            })
        });
        producers.into_iter().for_each(|producer| producer.join().unwrap());
        assert_eq!(waiting.join().unwrap(), (ITEMS * (ITEMS - 1), None));
    }
}

//! Every order of arming and looking against pushing and ringing.
//!
//! ```text
//! RUSTFLAGS="--cfg loom" LOOM_MAX_PREEMPTIONS=3 cargo test -p iroh-raft-netbridge \
//!     --no-default-features --lib --target-dir target/loom ring::loom_tests
//! ```
//!
//! These fail when either fence of the doorbell is taken away, when the flag is set before the waker,
//! or when it is set without `Release`.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Wake, Waker};

use loom::thread;

use super::{Doorbell, ring};

/// What `ring.rs` uses under loom. crossbeam and atomic-waker do not know loom, so their places
/// are taken by the weakest things that do their work.
pub(super) mod sync {
    use std::task::Waker;

    use loom::sync::Mutex;
    pub(in super::super) use loom::sync::atomic::{AtomicBool, Ordering, fence};

    /// Orders nothing by itself: a wake may miss a waker that was not handed over by the flag.
    #[derive(Debug)]
    pub(in super::super) struct AtomicWaker {
        is_set: AtomicBool,
        waker: Mutex<Option<Waker>>,
    }

    impl AtomicWaker {
        pub(in super::super) fn new() -> AtomicWaker {
            AtomicWaker { is_set: AtomicBool::new(false), waker: Mutex::new(None) }
        }

        pub(in super::super) fn register(&self, waker: &Waker) {
            *self.waker.lock().unwrap() = Some(waker.clone());
            self.is_set.store(true, Ordering::Relaxed);
        }

        pub(in super::super) fn wake(&self) {
            if self.is_set.load(Ordering::Relaxed) {
                let waker = self.waker.lock().unwrap().take();
                waker.into_iter().for_each(Waker::wake);
            }
        }
    }

    /// A bag: a slot's item is ordered with its flag, and nothing else is ordered at all.
    #[derive(Debug)]
    pub(in super::super) struct ArrayQueue<T>(Vec<Slot<T>>);

    #[derive(Debug)]
    struct Slot<T> {
        is_taken: AtomicBool,
        is_full: AtomicBool,
        item: Mutex<Option<T>>,
    }

    impl<T> ArrayQueue<T> {
        pub(in super::super) fn new(bound: usize) -> ArrayQueue<T> {
            assert!(bound > 0);
            let slot = |_| Slot {
                is_taken: AtomicBool::new(false),
                is_full: AtomicBool::new(false),
                item: Mutex::new(None),
            };
            ArrayQueue((0..bound).map(slot).collect())
        }

        pub(in super::super) fn push(&self, item: T) -> Result<(), T> {
            for slot in &self.0 {
                if !slot.is_taken.swap(true, Ordering::Relaxed) {
                    *slot.item.lock().unwrap() = Some(item);
                    slot.is_full.store(true, Ordering::Release);
                    return Ok(());
                }
            }
            Err(item)
        }

        /// Slots are used once.
        pub(in super::super) fn pop(&self) -> Option<T> {
            let full = self.0.iter().find(|slot| slot.is_full.load(Ordering::Acquire))?;
            full.is_full.store(false, Ordering::Relaxed);
            full.item.lock().unwrap().take()
        }

        pub(in super::super) fn len(&self) -> usize {
            self.0.iter().filter(|slot| slot.is_full.load(Ordering::Relaxed)).count()
        }

        pub(in super::super) fn is_empty(&self) -> bool {
            self.len() == 0
        }

        pub(in super::super) fn capacity(&self) -> usize {
            self.0.len()
        }
    }
}

/// Counts wakes, and marks none in loom's eyes: only the doorbell may order anything.
#[derive(Default)]
struct Count(AtomicUsize);

impl Wake for Count {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// The consumer goes to sleep once while `producers` push one item each. Afterwards everything must
/// have been seen by its look, or it must have been woken.
fn sleep_against(producers: usize) {
    loom::model(move || {
        let doorbell = Doorbell::new();
        let (producer, consumer) = ring(producers, &doorbell);
        let threads: Vec<_> = (0..producers)
            .map(|item| {
                let producer = producer.clone();
                thread::spawn(move || producer.push(item).unwrap())
            })
            .collect();
        let count = Arc::new(Count::default());
        doorbell.arm(&Waker::from(count.clone()));
        let mut seen = 0;
        while consumer.pop().is_some() {
            seen += 1;
        }
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        let wakes = count.0.load(Ordering::Relaxed);
        assert!(seen == producers || wakes == 1, "{seen} of {producers} items seen, {wakes} wakes");
    });
}

#[test]
fn one_item_is_seen_or_wakes() {
    sleep_against(1);
}

#[test]
fn two_producers_wake_once_for_what_was_not_seen() {
    sleep_against(2);
}

/// A second sleep with another waker: the wake reaches the one that sleeps now.
#[test]
fn a_wake_reaches_the_waker_of_the_newest_sleep() {
    loom::model(|| {
        let doorbell = Doorbell::new();
        let (producer, consumer) = ring(1, &doorbell);
        doorbell.arm(&Waker::from(Arc::new(Count::default())));
        doorbell.disarm();
        let thread = thread::spawn(move || producer.push(()).unwrap());
        let count = Arc::new(Count::default());
        doorbell.arm(&Waker::from(count.clone()));
        let seen = consumer.pop().is_some();
        thread.join().unwrap();
        assert!(seen || count.0.load(Ordering::Relaxed) == 1, "neither seen nor woken");
    });
}

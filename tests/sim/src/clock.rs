//! A node's clocks: one that drifts and never runs back, and one that jumps.

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use iroh_raft_core::{Timestamp, WallTime};
use iroh_raft_netbridge::ring::Doorbell;

/// Wall-clock time at which every run begins, in milliseconds.
const EPOCH_MS: u64 = 1_700_000_000_000;
const MILLION: u128 = 1_000_000;

/// Simulated time since the run began.
pub(crate) fn elapsed() -> Duration {
    madsim::time::TimeHandle::current().elapsed()
}

/// The clocks of one boot of a node.
#[derive(Clone, Debug)]
pub(crate) struct NodeClock {
    started: Duration,
    /// Parts per million of its second in ours.
    rate: u128,
    wall_offset_ms: Arc<AtomicI64>,
}

impl NodeClock {
    pub(crate) fn new(drift_ppm: i64, wall_offset_ms: Arc<AtomicI64>) -> NodeClock {
        let rate = u128::try_from(1_000_000 + drift_ppm).expect("a drift of less than a second a second");
        NodeClock { started: elapsed(), rate, wall_offset_ms }
    }

    pub(crate) fn now(&self) -> Timestamp {
        let real = (elapsed() - self.started).as_nanos();
        Timestamp(u64::try_from(real * self.rate / MILLION).expect("a run is short"))
    }

    /// How long it really takes until this clock shows `at`.
    pub(crate) fn until(&self, at: Timestamp) -> Duration {
        let left = u128::from(at.0.saturating_sub(self.now().0));
        Duration::from_nanos(u64::try_from(left * MILLION / self.rate + 1).unwrap_or(u64::MAX))
    }

    pub(crate) fn wall(&self) -> WallTime {
        let real = EPOCH_MS + u64::try_from(elapsed().as_millis()).expect("a run is short");
        WallTime(real.saturating_add_signed(self.wall_offset_ms.load(Ordering::Relaxed)))
    }
}

/// Sleeps exactly so long; madsim's own sleep takes a millisecond at least, which brings tasks into step.
pub(crate) fn sleep(time: Duration) -> Pin<Box<madsim::time::Sleep>> {
    let mut sleep = Box::pin(madsim::time::sleep(time));
    sleep.as_mut().reset(madsim::time::Instant::now() + time);
    sleep
}

/// Sleeps until the doorbell rings, the time is over, or `is_ready` holds.
pub(crate) async fn wait(doorbell: &Doorbell, time: Option<Duration>, is_ready: impl Fn() -> bool) {
    let mut timer = time.map(sleep);
    let is_woken = Cell::new(false);
    poll_fn(|context: &mut Context<'_>| {
        doorbell.arm(context.waker());
        let is_due = timer.as_mut().is_some_and(|timer| Pin::new(timer).poll(context).is_ready());
        is_woken.set(is_due || is_ready());
        if is_woken.get() { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
    doorbell.disarm();
}

//! glommio's part of a shard: the time, and sleeping until something comes.

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use glommio::timer::Timer;
use iroh_raft_core::{Timestamp, WallTime};
use iroh_raft_driver::{Driver, Next};
use iroh_raft_netbridge::ring::Doorbell;

use crate::awake;
use crate::spare_memory::{NodeRest, SpareMemory};

/// Runs a shard until it is told to stop.
pub(crate) async fn run(
    mut driver: Driver,
    doorbell: Arc<Doorbell>,
    is_resting: Rc<Cell<bool>>,
    rest: Option<Arc<NodeRest>>,
    group_count: usize,
) {
    let origin = Instant::now();
    let now = || Timestamp(u64::try_from(origin.elapsed().as_nanos()).unwrap_or(u64::MAX));
    let mut spare_memory = SpareMemory::new(rest, group_count);
    loop {
        match driver.turn(now, wall_clock()) {
            Next::Over => return,
            Next::Again => glommio::executor().yield_if_needed().await,
            Next::Sleep(until) => {
                let now = now();
                is_resting.set(until.is_none_or(|at| awake::is_rest(at.since(now))));
                spare_memory.handle_sleep(is_resting.get());
                sleep(&driver, &doorbell, until, now).await;
                spare_memory.handle_wake();
            }
        }
    }
}

fn wall_clock() -> WallTime {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    WallTime(u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX))
}

async fn sleep(driver: &Driver, doorbell: &Doorbell, until: Option<Timestamp>, now: Timestamp) {
    let mut timer = until.map(|at| Timer::new(at.since(now)));
    let is_woken = Cell::new(false);
    poll_fn(|context: &mut Context<'_>| {
        doorbell.arm(context.waker());
        let is_due = timer.as_mut().is_some_and(|timer| Pin::new(timer).poll(context).is_ready());
        is_woken.set(is_due || driver.has_input());
        if is_woken.get() { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
    doorbell.disarm();
}

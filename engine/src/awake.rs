//! Keeps an executor from sleeping on work.
//!
//! glommio 0.9 goes to sleep with runnable tasks in its queues when the preemption timer fires (or a
//! stale event of its eventfd arrives) after it last looked at its rings and before it runs the
//! queues: `run_task_queues` then says "nothing ran", which its caller takes for "nothing to run". A
//! task that is runnable has no timer and no armed doorbell, so nothing would ever wake the thread.
//!
//! A shard whose groups are all quiet wakes a few times a second only; the ladder then begins at [`RESTING`]. What came then
//! may wait for so long, if it met the bug.
//!
//! Two measures: the executor runs one task only, so it needs no preemption and has its timer set far
//! away ([`PREEMPT_TIMER`]), which leaves the rare stale event; and a timer that is always pending
//! bounds the sleep that one causes.

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use glommio::timer::Timer;

/// The first bounds the sleep. It, too, may have fired when the thread goes to sleep on work; each
/// later one is still pending unless the thread had been stopped for as long as it lasts.
const LADDER: [Duration; 3] = [Duration::from_millis(50), Duration::from_millis(500), Duration::from_secs(5)];
/// In place of the first one while a shard rests.
const RESTING: Duration = Duration::from_millis(250);
/// Whether a shard that sleeps until then rests: no tick is due soon.
pub(crate) fn is_rest(sleep: Duration) -> bool {
    sleep > LADDER[0]
}

/// Nothing else runs on a shard's executor that would want its turn.
pub(crate) const PREEMPT_TIMER: Duration = Duration::from_secs(3600);

/// Never ends: to be spawned on the executor beside what it runs.
pub(crate) async fn keep_awake(is_resting: Rc<Cell<bool>>) {
    loop {
        let [first, second, third] = LADDER;
        let first = if is_resting.get() { RESTING } else { first };
        let mut timers = [first, second, third].map(Timer::new);
        // None is due when first polled, so all are registered before one can end the wait.
        poll_fn(|context| {
            let is_due = timers.iter_mut().any(|timer| Pin::new(timer).poll(context).is_ready());
            if is_due { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }
}

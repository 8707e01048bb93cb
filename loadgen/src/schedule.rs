//! The open loop: when each record is due, whatever became of those before it.
//!
//! Latency counts from there. A generator that waits for answers before it sends again sends little while the cluster
//! stands still, and so hardly sees it (coordinated omission).

use std::io;
use std::time::Duration;

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};
use tokio::net::unix::pipe::Receiver;

use crate::arrivals::Times;

/// How often records that are due are sent: more often would cost more than the records.
const PACE: Duration = Duration::from_micros(250);

/// Records that are due, dealt out to the slots of lanes in turn: each lane has one or several.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Schedule {
    /// When records are due.
    pub(crate) times: Times,
    /// Number of slots of all lanes, at least 1.
    pub(crate) slots: u64,
}

impl Schedule {
    /// When a lane's record is due, from the start of the load; numbers begin with 0. `own`: the lane's slots, in order.
    pub(crate) fn due_at(&self, own: &[u64], number: u64) -> Duration {
        let count = own.len() as u64;
        self.times.at(number / count * self.slots + own[(number % count) as usize])
    }

    /// How many records of a lane are due by then.
    pub(crate) fn due(&self, own: &[u64], elapsed: Duration) -> u64 {
        let all = self.times.by(elapsed);
        let of_this_round = own.partition_point(|slot| *slot < all % self.slots);
        all / self.slots * own.len() as u64 + of_this_round as u64
    }
}

/// Wakes a task at short intervals: tokio's own timers are too coarse, a millisecond each. The kernel's timer is read like
/// a pipe, which tokio knows without unsafe code.
#[derive(Debug)]
pub(crate) struct Pacer(Receiver);

impl Pacer {
    /// Begins. Within a runtime.
    pub(crate) fn start() -> io::Result<Pacer> {
        let timer =
            timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC)?;
        let pace = Timespec { tv_sec: 0, tv_nsec: PACE.subsec_nanos().into() };
        timerfd_settime(
            &timer,
            TimerfdTimerFlags::empty(),
            &Itimerspec { it_interval: pace, it_value: pace },
        )?;
        Ok(Pacer(Receiver::from_owned_fd_unchecked(timer)?))
    }

    /// The next time.
    pub(crate) async fn tick(&self) {
        // It fails only at the end of the runtime, which ends this task as well.
        while self.0.readable().await.is_ok() {
            // How many times have passed is seen by the clock.
            match self.0.try_read(&mut [0; 8]) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                _ => return,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_record_is_due_once_and_in_time() {
        for (per_s, lanes) in [(1.0, 1), (50_000.0, 64), (333.3, 7), (3.0, 8)] {
            let schedule = Schedule { times: Times::Fixed { per_s }, slots: lanes };
            for ms in [0, 1, 250, 1000, 60_000] {
                let elapsed = Duration::from_millis(ms);
                let due: Vec<u64> = (0..lanes).map(|lane| schedule.due(&[lane], elapsed)).collect();
                let all: u64 = due.iter().sum();
                assert_eq!(all, (elapsed.as_secs_f64() * per_s) as u64 + 1, "{schedule:?} after {ms} ms");
                for (lane, due) in (0..).zip(due) {
                    let early = Duration::from_nanos(1);
                    assert!(due == 0 || schedule.due_at(&[lane], due - 1) <= elapsed + early);
                    assert!(schedule.due_at(&[lane], due) + early > elapsed);
                }
            }
        }
    }

    #[test]
    fn lanes_with_more_slots_get_more() {
        let lanes: [&[u64]; 3] = [&[0, 2, 3, 5], &[1], &[4, 6]];
        let schedule = Schedule { times: Times::Bursts { per_s: 100.0, of: 3 }, slots: 7 };
        for ms in [0, 10, 29, 30, 500, 7000] {
            let elapsed = Duration::from_millis(ms);
            let due = lanes.map(|own| schedule.due(own, elapsed));
            assert_eq!(due.iter().sum::<u64>(), schedule.times.by(elapsed), "{due:?} after {ms} ms");
            for (own, due) in lanes.into_iter().zip(due) {
                assert!(due == 0 || schedule.due_at(own, due - 1) <= elapsed);
                assert!(schedule.due_at(own, due) > elapsed);
            }
        }
        assert_eq!(lanes.map(|own| schedule.due(own, Duration::from_millis(6970))), [400, 100, 199]);
    }
}

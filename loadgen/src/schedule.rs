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

/// How often records that are due are sent: more often would cost more than the records.
const PACE: Duration = Duration::from_micros(250);

/// Records at a fixed rate, dealt out to lanes in turn.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) struct Schedule {
    /// Records a second, above 0.
    pub(crate) per_s: f64,
    /// Number of lanes, at least 1.
    pub(crate) lanes: u64,
}

impl Schedule {
    /// When a lane's record is due, from the start of the load; numbers begin with 0.
    pub(crate) fn due_at(&self, lane: u64, number: u64) -> Duration {
        Duration::from_secs_f64((number * self.lanes + lane) as f64 / self.per_s)
    }

    /// How many records of a lane are due by then.
    pub(crate) fn due(&self, lane: u64, elapsed: Duration) -> u64 {
        let all = (elapsed.as_secs_f64() * self.per_s) as u64 + 1;
        (all + self.lanes - 1 - lane) / self.lanes
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
            let schedule = Schedule { per_s, lanes };
            for ms in [0, 1, 250, 1000, 60_000] {
                let elapsed = Duration::from_millis(ms);
                let due: Vec<u64> = (0..lanes).map(|lane| schedule.due(lane, elapsed)).collect();
                let all: u64 = due.iter().sum();
                assert_eq!(all, (elapsed.as_secs_f64() * per_s) as u64 + 1, "{schedule:?} after {ms} ms");
                for (lane, due) in (0..).zip(due) {
                    let early = Duration::from_nanos(1);
                    assert!(due == 0 || schedule.due_at(lane, due - 1) <= elapsed + early);
                    assert!(schedule.due_at(lane, due) + early > elapsed);
                }
            }
        }
    }
}

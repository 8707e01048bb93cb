//! What can only be tried: how long it takes to wake a thread, how late timers are, and whether packets go in batches.

use std::io;
use std::net::{Ipv4Addr, UdpSocket};
use std::sync::mpsc::sync_channel;
use std::thread;
use std::time::{Duration, Instant};

use noq_udp::UdpSocketState;

use super::{Finding, Level, Remedy};
use crate::config::settings::NodeConfig;

const WAKES: usize = 200;
const SLEEPS: usize = 50;
/// Long enough for the CPU to have gone to sleep.
const PAUSE: Duration = Duration::from_micros(500);
const WAKE_SLOW: Duration = Duration::from_micros(150);
const TIMER_LATE: Duration = Duration::from_millis(1);

pub(super) fn look(_config: &NodeConfig) -> Vec<Finding> {
    vec![judge_wakes(&wakes()), judge_timers(&timers()), judge_offload(offload())]
}

/// Times from the ring of a doorbell to the first step of the thread that waits for it, sorted.
fn wakes() -> Vec<Duration> {
    let (sender, receiver) = sync_channel::<Instant>(1);
    let waiter = thread::spawn(move || receiver.into_iter().map(|rung| rung.elapsed()).collect::<Vec<_>>());
    for _ in 0..WAKES {
        thread::sleep(PAUSE);
        if sender.send(Instant::now()).is_err() {
            break;
        }
    }
    drop(sender);
    let mut times = waiter.join().unwrap_or_default();
    times.sort_unstable();
    times
}

/// How much later than asked for sleeps end, sorted.
fn timers() -> Vec<Duration> {
    let late = |_| {
        let began = Instant::now();
        thread::sleep(PAUSE);
        began.elapsed().saturating_sub(PAUSE)
    };
    let mut times: Vec<Duration> = (0..SLEEPS).map(late).collect();
    times.sort_unstable();
    times
}

/// Packets that one call sends at most, and that one receives.
fn offload() -> io::Result<(usize, usize)> {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    // As the bridge's own socket finds it out.
    let state = UdpSocketState::new((&socket).into())?;
    Ok((state.max_gso_segments().get(), state.gro_segments().get()))
}

fn judge_offload(found: io::Result<(usize, usize)>) -> Finding {
    const NAME: &str = "UDP offload";
    let (send, receive) = match found {
        Ok(segments) => segments,
        Err(error) => return Finding::unknown(NAME, format!("no UDP socket to try it with: {error}")),
    };
    let found = format!("{send} packets a call sent (GSO), {receive} received (GRO)");
    if send > 1 && receive > 1 {
        return Finding::good(NAME, found);
    }
    let remedy = Remedy {
        right: "both above 1",
        cost: "a system call for each packet: the bridge needs several times the CPU for the same bytes",
        mend:
            "Linux 5.0 or newer, outside of a sandbox that hides the socket options UDP_SEGMENT and UDP_GRO"
                .to_owned(),
    };
    Finding::of(NAME, Level::Note, found, remedy)
}

fn percentiles(times: &[Duration]) -> Option<(Duration, Duration)> {
    Some((*times.get(times.len() / 2)?, *times.get(times.len() * 99 / 100)?))
}

fn judge_wakes(times: &[Duration]) -> Finding {
    const NAME: &str = "waking a thread";
    let Some((median, high)) = percentiles(times) else { return Finding::unknown(NAME, "not measured") };
    let found = format!("{} us at the median, {} us at 99 %", median.as_micros(), high.as_micros());
    if median < WAKE_SLOW {
        return Finding::good(NAME, found);
    }
    let remedy = Remedy {
        right: "below 150 us, and some 5 us on hardware of its own",
        cost: "a lone append wakes a dozen threads, one after the other",
        mend: "keep CPUs from deep sleep: idle=poll or a shallow limit (cpupower idle-set -D 10); on a virtual machine haltpoll, or dedicated CPUs".to_owned(),
    };
    Finding::of(NAME, Level::Note, found, remedy)
}

fn judge_timers(times: &[Duration]) -> Finding {
    const NAME: &str = "timers";
    let Some((median, high)) = percentiles(times) else { return Finding::unknown(NAME, "not measured") };
    let found = format!("{} us late at the median, {} us at 99 %", median.as_micros(), high.as_micros());
    if median < TIMER_LATE {
        return Finding::good(NAME, found);
    }
    let remedy = Remedy {
        right: "below 1 ms",
        cost: "ticks are late: elections and heartbeats with them",
        mend: "a kernel with high-resolution timers (highres=on), and fewer processes than CPUs".to_owned(),
    };
    Finding::of(NAME, Level::Note, found, remedy)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slow_machines_are_told_so() {
        let times = |us| vec![Duration::from_micros(us); 10];
        assert_eq!(judge_wakes(&times(10)).level, Level::Good);
        assert_eq!(judge_wakes(&times(400)).level, Level::Note);
        assert_eq!(judge_timers(&times(90)).level, Level::Good);
        assert_eq!(judge_timers(&times(4000)).level, Level::Note);
        assert_eq!(judge_wakes(&[]).level, Level::Unknown);
    }

    #[test]
    fn packets_one_by_one_are_told_of() {
        assert_eq!(judge_offload(Ok((64, 64))).level, Level::Good);
        assert_eq!(judge_offload(Ok((1, 64))).level, Level::Note);
        assert_eq!(judge_offload(Ok((64, 1))).level, Level::Note);
        assert_eq!(judge_offload(Err(io::ErrorKind::AddrNotAvailable.into())).level, Level::Unknown);
        // This kernel has both, as every one has that io_uring needs.
        assert_eq!(judge_offload(offload()).level, Level::Good);
    }
}

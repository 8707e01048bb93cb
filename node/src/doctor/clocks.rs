//! How far the clocks of the cluster's nodes are apart, as NTP finds it out: each node is asked for its time of day several times, and was
//! halfway between question and answer when it looked, give or take half the round trip. The shortest one tells most.

use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use futures_util::future::join_all;
use iroh_raft::NodeId;
use iroh_raft::net::client::Client;

use super::{Finding, Level, Remedy};
use crate::cli::Access;
use crate::cluster::{Connected, with};
use crate::config::settings::NodeConfig;
use crate::say::Failure;
use crate::status::NODE_DEADLINE;

const NAME: &str = "clock skew";
/// How often each node is asked.
const ASKED: usize = 8;
/// Clocks that are kept by NTP, be it over the internet, are closer together than this.
const APART_NOTE_US: i64 = 100_000;
/// A call waits so long by default: by more, a session that was used at the beginning of a call may be expired for another leader
/// at its end, whatever room its user left for calls.
const APART_BAD_US: i64 = 10_000_000;
/// Nodes tell their time in whole milliseconds, cut off.
const GRAIN_US: i64 = 1000;

/// A node that was asked what time it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Sample {
    /// When it was asked, by the clock here, in microseconds since 1970.
    asked_us: i64,
    /// Until the answer came.
    round_trip: Duration,
    /// What it said, in milliseconds since 1970.
    said_ms: u64,
}

/// How far a clock is ahead of the one here, in microseconds, and how far off that may be.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
struct Offset {
    ahead_us: i64,
    error_us: i64,
}

/// What is known of a node's clock, or why nothing is.
struct Clock {
    node: NodeId,
    offset: Result<Offset, String>,
}

/// Asks the nodes of the cluster that runs, if it does.
pub(super) fn look(config: &NodeConfig, is_configured: bool, access: &Access) -> Vec<Finding> {
    let cluster_file = if is_configured { config.cluster_file.clone() } else { access.cluster_file.clone() };
    vec![match ask(access, cluster_file) {
        Ok(clocks) => judge(&clocks),
        Err(why) => Finding::unknown(NAME, why),
    }]
}

fn ask(access: &Access, cluster_file: PathBuf) -> Result<Vec<Clock>, String> {
    for (file, remedy) in
        [(&cluster_file, "name it with --cluster-file"), (&access.key, "name a client's with --key")]
    {
        if !file.exists() {
            return Err(format!("no node was asked: there is no {} ({remedy})", file.display()));
        }
    }
    let deadline = access.deadline.min(NODE_DEADLINE);
    let access = Access { cluster_file, key: access.key.clone(), deadline };
    let asked = with(&access, async |cluster| Ok(ask_all(cluster).await));
    asked.map_err(|failure: Failure| format!("no node answers: {failure}"))
}

async fn ask_all(cluster: &Connected) -> Vec<Clock> {
    join_all(cluster.file.nodes.iter().map(|address| async {
        let offset = offset_of(&cluster.client, address.node).await;
        Clock { node: address.node, offset }
    }))
    .await
}

async fn offset_of(client: &Client, node: NodeId) -> Result<Offset, String> {
    let mut samples = Vec::with_capacity(ASKED);
    for _ in 0..ASKED {
        let (asked, began) = (SystemTime::now(), Instant::now());
        let said = client.clock(node).await.map_err(|error| error.to_string())?;
        let round_trip = began.elapsed();
        let asked = asked.duration_since(UNIX_EPOCH).unwrap_or_default();
        samples.push(Sample { asked_us: micros(asked), round_trip, said_ms: said.0 });
    }
    estimate(&samples).ok_or_else(|| "it was not asked".to_owned())
}

fn micros(time: Duration) -> i64 {
    i64::try_from(time.as_micros()).unwrap_or(i64::MAX)
}

/// `None` without samples.
fn estimate(samples: &[Sample]) -> Option<Offset> {
    let best = samples.iter().min_by_key(|sample| sample.round_trip)?;
    let half_us = micros(best.round_trip) / 2;
    let here_us = best.asked_us.saturating_add(half_us);
    let said_us = i64::try_from(best.said_ms).unwrap_or(i64::MAX).saturating_mul(GRAIN_US);
    // It was some time in that millisecond.
    let there_us = said_us.saturating_add(GRAIN_US / 2);
    Some(Offset { ahead_us: there_us.saturating_sub(here_us), error_us: half_us + GRAIN_US / 2 })
}

/// This machine's own clock is one of them: a node that does not run yet will have it.
fn judge(clocks: &[Clock]) -> Finding {
    let offsets: Vec<Offset> =
        clocks.iter().filter_map(|clock| clock.offset.as_ref().ok()).copied().collect();
    let said: Vec<String> = clocks.iter().map(say_of).collect();
    let found = said.join("; ");
    if offsets.is_empty() {
        return Finding::unknown(NAME, found);
    }
    // Ours is at 0, without an error.
    let edge = |of: &dyn Fn(&Offset) -> i64| {
        let all = || offsets.iter().map(of).chain([0]);
        (all().min().unwrap_or(0), all().max().unwrap_or(0))
    };
    let width = |least: i64, most: i64| most.saturating_sub(least).max(0);
    let (first, last) = edge(&|offset| offset.ahead_us);
    let (earliest, highest_low) = edge(&|offset| offset.ahead_us.saturating_sub(offset.error_us));
    let (lowest_high, latest) = edge(&|offset| offset.ahead_us.saturating_add(offset.error_us));
    let (at_least_us, at_most_us) = (width(lowest_high, highest_low), width(earliest, latest));
    let apart_us = width(first, last);
    let error_us = (at_most_us - apart_us).max(apart_us - at_least_us);
    let found = format!("{} apart, give or take {}: {found}", show(apart_us), show(error_us));
    let level = match at_least_us {
        APART_BAD_US.. => Level::Bad,
        APART_NOTE_US.. => Level::Note,
        _ if at_most_us > 2 * APART_NOTE_US => {
            return Finding::unknown(NAME, format!("{found}; round trips are too long to tell"));
        }
        _ => return Finding::good(NAME, found),
    };
    let remedy = Remedy {
        right: "below 100 ms, which NTP holds; leases count a clock's rate, not its time, and elections neither",
        cost: "records bear the time of their leader: searches by time miss by as much, and after a change of leader time stands still for as long; sessions that are idle expire, and records with an age_max go, as much too early",
        mend: "run chrony or systemd-timesyncd on every node, and look at `chronyc tracking`".to_owned(),
    };
    Finding::of(NAME, level, found, remedy)
}

fn say_of(clock: &Clock) -> String {
    match &clock.offset {
        Ok(Offset { ahead_us, .. }) => {
            let way = if *ahead_us < 0 { "behind" } else { "ahead of" };
            format!("node {} {} {way} this machine", clock.node, show(ahead_us.saturating_abs()))
        }
        Err(why) => format!("node {} does not answer ({why})", clock.node),
    }
}

/// Milliseconds, with a tenth.
fn show(us: i64) -> String {
    format!("{:.1} ms", us as f64 / 1e3)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW_US: i64 = 1_795_387_081_123_456;

    /// A node whose clock is ahead by so much is asked, and the answer takes `back` after a way of `there`.
    fn sample(ahead_us: i64, there_us: i64, back_us: i64) -> Sample {
        let said_us = NOW_US + there_us + ahead_us;
        let round_trip = Duration::from_micros((there_us + back_us) as u64);
        Sample { asked_us: NOW_US, round_trip, said_ms: (said_us / 1000) as u64 }
    }

    #[test]
    fn a_planted_skew_is_found_within_the_error_that_is_named() {
        for ahead_us in [0, 1, -1, 700, -35_000, 120_000, -9_999_999, 86_400_000_000] {
            for (there_us, back_us) in [(50, 50), (0, 4000), (4000, 0), (30_000, 10_000)] {
                let offset = estimate(&[sample(ahead_us, there_us, back_us)]).unwrap();
                let off = (offset.ahead_us - ahead_us).abs();
                assert!(off <= offset.error_us, "{ahead_us} {there_us} {back_us}: {offset:?}");
                assert_eq!(offset.error_us, (there_us + back_us) / 2 + 500);
            }
        }
        assert_eq!(estimate(&[]), None);
    }

    #[test]
    fn the_shortest_round_trip_counts() {
        // The long ones were long on one way alone: by them the clock would be half a second off.
        let samples = [sample(2000, 1_000_000, 0), sample(2000, 300, 300), sample(2000, 0, 1_000_000)];
        let offset = estimate(&samples).unwrap();
        assert_eq!(offset.error_us, 800);
        assert!((offset.ahead_us - 2000).abs() <= 800, "{offset:?}");
    }

    fn clocks(offsets: &[(i64, i64)]) -> Vec<Clock> {
        let clock = |(node, (ahead_us, error_us)): (u64, &(i64, i64))| {
            let offset = Ok(Offset { ahead_us: *ahead_us, error_us: *error_us });
            Clock { node: NodeId(node), offset }
        };
        (1..).zip(offsets).map(clock).collect()
    }

    #[test]
    fn clocks_are_judged_by_how_far_they_are_apart_for_certain() {
        let level = |offsets: &[(i64, i64)]| judge(&clocks(offsets)).level;
        assert_eq!(level(&[(100, 600), (-700, 600), (0, 600)]), Level::Good);
        assert_eq!(level(&[(100, 600), (103_000, 600), (0, 600)]), Level::Note);
        // Each of them close to this machine, but not to each other.
        assert_eq!(level(&[(-60_000, 600), (60_000, 600)]), Level::Note);
        assert_eq!(level(&[(-11_000_000, 600), (0, 600)]), Level::Bad);
        assert_eq!(level(&[(100, 600), (120_000, 50_000)]), Level::Good);
        assert_eq!(level(&[(100, 600), (120_000, 400_000)]), Level::Unknown);
        // One that is hard to tell takes nothing from what others tell.
        assert_eq!(level(&[(110_000, 600), (120_000, 400_000)]), Level::Note);
        assert_eq!(level(&[(11_000_000, 600), (11_100_000, 1_200_000)]), Level::Bad);
    }

    #[test]
    fn nodes_that_do_not_answer_are_named() {
        let mut clocks = clocks(&[(1500, 600)]);
        clocks.push(Clock { node: NodeId(7), offset: Err("gone".to_owned()) });
        let finding = judge(&clocks);
        assert_eq!(finding.level, Level::Good);
        assert!(finding.found.contains("node 1 1.5 ms ahead"), "{finding:?}");
        assert!(finding.found.contains("node 7 does not answer (gone)"), "{finding:?}");
        assert_eq!(judge(&clocks[1..]).level, Level::Unknown);
    }
}

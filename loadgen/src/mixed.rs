//! What reads of records, followers and sessions gave.

use std::time::Duration;

use serde::Serialize;

use crate::follow::TailTotals;
use crate::mix::Mix;
use crate::plot;
use crate::reading::ReadResult;
use crate::recorder::Interval;
use crate::report::{Latency, count, percentiles, ratio};

/// How reads ended, over the whole run.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(crate) struct ReadTotals {
    /// With the right record.
    pub(crate) right: u64,
    /// Without an answer in time, or not begun when the load had ended.
    pub(crate) failed: u64,
    /// With the answer of all replicas that they do not have the record.
    pub(crate) missing: u64,
    /// Of records that were let go of meanwhile.
    pub(crate) trimmed: u64,
    /// With another record.
    pub(crate) wrong: u64,
}

impl ReadTotals {
    pub(crate) fn note(&mut self, result: &ReadResult) {
        match result {
            ReadResult::Right { .. } => self.right += 1,
            ReadResult::Failed(_) | ReadResult::Refused(_) => self.failed += 1,
            ReadResult::Missing => self.missing += 1,
            ReadResult::Trimmed => self.trimmed += 1,
            ReadResult::Wrong => self.wrong += 1,
        }
    }

    pub(crate) fn merge(&mut self, other: &ReadTotals) {
        self.right += other.right;
        self.failed += other.failed;
        self.missing += other.missing;
        self.trimmed += other.trimmed;
        self.wrong += other.wrong;
    }
}

/// What clients know of it in the end.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct Mixed {
    pub(crate) reads: ReadTotals,
    /// `None` without followers.
    pub(crate) tails: Option<TailTotals>,
    /// How many were opened.
    pub(crate) sessions: u64,
}

/// What reads of records gave in the measured window; how they ended over the whole run.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct ReadsReport {
    pub(crate) reads_per_s: f64,
    pub(crate) measured_reads: u64,
    /// From when they were sent, or due in the open loop.
    pub(crate) latency_us: Latency,
    pub(crate) percentiles_us: Vec<(f64, u64)>,
    /// In the open loop, from when they were sent.
    pub(crate) service_us: Option<Latency>,
    /// Bytes of an answer, on average: the batch that has the record.
    pub(crate) answer_bytes_mean: f64,
    /// Reads with the right record.
    pub(crate) right: u64,
    /// Reads without an answer in time, or not begun when the load had ended.
    pub(crate) failed: u64,
    /// Acknowledged records that all replicas said they do not have.
    pub(crate) missing: u64,
    /// Acknowledged records that were let go of meanwhile.
    pub(crate) trimmed: u64,
    /// Answers with another record.
    pub(crate) wrong: u64,
}

impl ReadsReport {
    fn is_clean(&self) -> bool {
        self.missing == 0 && self.wrong == 0
    }
}

/// What followers were given in the measured window; what was wrong over the whole run.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct TailsReport {
    /// Of all groups.
    pub(crate) followers: u64,
    /// Records, each as often as a follower had it.
    pub(crate) delivered_per_s: f64,
    pub(crate) measured_delivered: u64,
    /// From when a record was sent, or due in the open loop, to when a follower had it.
    pub(crate) latency_us: Latency,
    pub(crate) percentiles_us: Vec<(f64, u64)>,
    /// Of those delivered: of which nobody knew any more when they were sent.
    pub(crate) untimed: u64,
    pub(crate) delivered: u64,
    /// Records acknowledged and not delivered when the load ended, over all followers.
    pub(crate) behind_at_end: u64,
    /// Those of the follower that was furthest behind.
    pub(crate) behind_at_end_max: u64,
    /// How long after that none was missing, in milliseconds; null if one was when time was up.
    pub(crate) caught_up_ms: Option<u64>,
    /// Offsets that were left out.
    pub(crate) gaps: u64,
    /// Records at offsets that had been delivered before.
    pub(crate) out_of_order: u64,
    /// Records that nobody sent, that differ between followers, or from what was acknowledged.
    pub(crate) wrong: u64,
    /// Acknowledged records that a follower had not had when time was up.
    pub(crate) undelivered: u64,
}

impl TailsReport {
    fn is_clean(&self) -> bool {
        self.gaps == 0 && self.out_of_order == 0 && self.wrong == 0 && self.undelivered == 0
    }
}

/// What a mix gave.
#[derive(Clone, Default, Debug, Serialize)]
pub(crate) struct MixReport {
    /// Null without reads.
    pub(crate) reads: Option<ReadsReport>,
    /// Null without followers.
    pub(crate) tails: Option<TailsReport>,
    /// How many were opened.
    pub(crate) sessions: u64,
}

impl MixReport {
    /// `is_open`: of the open loop.
    pub(crate) fn of(
        mix: &Mix,
        mixed: &Mixed,
        measured: &Interval,
        (time, is_open): (Duration, bool),
    ) -> MixReport {
        let per_s = |number: u64| ratio(number as f64, time.as_secs_f64());
        let ends = mixed.reads;
        let reads = (mix.reads > 0.0).then(|| ReadsReport {
            reads_per_s: per_s(measured.reads.len()),
            measured_reads: measured.reads.len(),
            latency_us: Latency::of(&measured.reads),
            percentiles_us: percentiles(&measured.reads),
            service_us: is_open.then(|| Latency::of(&measured.read_services)),
            answer_bytes_mean: ratio(measured.read_bytes as f64, measured.reads.len() as f64),
            right: ends.right,
            failed: ends.failed,
            missing: ends.missing,
            trimmed: ends.trimmed,
            wrong: ends.wrong,
        });
        let tails = mixed.tails.map(|totals| TailsReport {
            followers: totals.followers,
            delivered_per_s: per_s(measured.delivered()),
            measured_delivered: measured.delivered(),
            latency_us: Latency::of(&measured.deliveries),
            percentiles_us: percentiles(&measured.deliveries),
            untimed: measured.untimed,
            delivered: totals.delivered,
            behind_at_end: totals.behind,
            behind_at_end_max: totals.behind_max,
            caught_up_ms: totals.caught_up_ms,
            gaps: totals.gaps,
            out_of_order: totals.out_of_order,
            wrong: totals.wrong,
            undelivered: totals.undelivered,
        });
        MixReport { reads, tails, sessions: mixed.sessions }
    }

    /// Whether every read brought what was appended, and every follower got everything once and in order.
    pub(crate) fn is_clean(&self) -> bool {
        self.reads.as_ref().is_none_or(ReadsReport::is_clean)
            && self.tails.as_ref().is_none_or(TailsReport::is_clean)
    }

    /// Reads that had no answer in time.
    pub(crate) fn failed_reads(&self) -> u64 {
        self.reads.as_ref().map_or(0, |reads| reads.failed)
    }

    /// What a person wants to know, line by line.
    pub(crate) fn rows(&self) -> Vec<(&'static str, String)> {
        let mut rows = Vec::new();
        let verdict = |is_clean: bool| if is_clean { "CLEAN" } else { "FAILED" };
        if let Some(reads) = &self.reads {
            let service = reads.service_us.map(|service| {
                let (p50, p99) = (plot::duration(service.p50 as f64), plot::duration(service.p99 as f64));
                format!("; from when they were sent: p50 {p50}, p99 {p99}")
            });
            let text = format!("{}/s, {}", count(reads.reads_per_s), line(&reads.latency_us));
            rows.push(("reads", text + &service.unwrap_or_default()));
            let text = format!(
                "{}: {} right, {} wrong, {} missing, {} let go of; {} failed; {} bytes an answer",
                verdict(reads.is_clean()),
                reads.right,
                reads.wrong,
                reads.missing,
                reads.trimmed,
                reads.failed,
                count(reads.answer_bytes_mean)
            );
            rows.push(("", text));
        }
        if let Some(tails) = &self.tails {
            let untimed = match tails.untimed {
                0 => String::new(),
                untimed => format!("; {untimed} more without a time"),
            };
            let text = format!(
                "{} records/s to {} followers, {}{untimed}",
                count(tails.delivered_per_s),
                tails.followers,
                line(&tails.latency_us)
            );
            rows.push(("tails", text));
            let caught_up = match tails.caught_up_ms {
                Some(ms) => format!("none {ms} ms later"),
                None => "not all came in time".to_owned(),
            };
            let text = format!(
                "{}: {} delivered, {} left out, {} out of order, {} wrong, {} undelivered; {} behind at the end ({} at most), {caught_up}",
                verdict(tails.is_clean()),
                tails.delivered,
                tails.gaps,
                tails.out_of_order,
                tails.wrong,
                tails.undelivered,
                tails.behind_at_end,
                tails.behind_at_end_max
            );
            rows.push(("", text));
        }
        if self.sessions > 0 {
            rows.push(("sessions", format!("{}, each with one append under way at a time", self.sessions)));
        }
        rows
    }
}

fn line(latency: &Latency) -> String {
    let time = |us: u64| plot::duration(us as f64);
    format!(
        "p50 {}, p99 {}, p99.9 {}, max {}",
        time(latency.p50),
        time(latency.p99),
        time(latency.p99_9),
        time(latency.max)
    )
}

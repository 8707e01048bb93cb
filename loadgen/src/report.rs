//! What a run gives: one JSON object for programs, a table for people.
//!
//! Keys of the object are only ever added, never renamed.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Duration;

use hdrhistogram::Histogram;
use iroh_raft::net::ring::Waits;
use serde::Serialize;

use crate::audit::AuditCounts;
use crate::fault::Kind;
use crate::machine::Machine;
use crate::mix::MixConfig;
use crate::mixed::MixReport;
use crate::plot;
use crate::recorder::Interval;
use crate::sizes::RecordSizes;

/// The settings of a run.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Config {
    pub(crate) nodes: u16,
    pub(crate) shards: u16,
    pub(crate) bridge_threads: u16,
    pub(crate) groups: u32,
    /// On average.
    pub(crate) record_bytes: usize,
    pub(crate) record_sizes: RecordSizes,
    /// How load is spread over the groups.
    pub(crate) skew: String,
    /// How records arrive in the open loop.
    pub(crate) arrivals: Option<String>,
    pub(crate) seed: u64,
    pub(crate) clients: u32,
    pub(crate) in_flight: u32,
    pub(crate) client_threads: u32,
    /// Whether clients are in the processes of the nodes; `clients` and `in_flight` are then those of each node.
    pub(crate) is_embedded: bool,
    pub(crate) duration_s: f64,
    pub(crate) warmup_s: f64,
    /// Records that are due in a second, in the open loop.
    pub(crate) rate_per_s: Option<u32>,
    /// As they were asked for.
    pub(crate) faults: Vec<String>,
    pub(crate) replacements: u32,
    pub(crate) loop_kind: &'static str,
    /// What of the load is more than appends.
    pub(crate) mix: MixConfig,
}

/// Latencies of acknowledged records in the measured window, in microseconds.
#[derive(Clone, Copy, Default, Debug, Serialize)]
pub(crate) struct Latency {
    pub(crate) p50: u64,
    pub(crate) p90: u64,
    pub(crate) p99: u64,
    pub(crate) p99_9: u64,
    pub(crate) p99_99: u64,
    pub(crate) max: u64,
    pub(crate) min: u64,
    pub(crate) mean: f64,
}

impl Latency {
    /// The percentiles of a histogram; all 0 when it is empty.
    pub(crate) fn of(latencies: &Histogram<u64>) -> Latency {
        if latencies.is_empty() {
            return Latency::default();
        }
        Latency {
            p50: latencies.value_at_quantile(0.5),
            p90: latencies.value_at_quantile(0.9),
            p99: latencies.value_at_quantile(0.99),
            p99_9: latencies.value_at_quantile(0.999),
            p99_99: latencies.value_at_quantile(0.9999),
            max: latencies.max(),
            min: latencies.min(),
            mean: latencies.mean(),
        }
    }
}

/// What the open loop says beside its latencies, which count from when requests were due.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct OpenLoop {
    /// Requests a second that were due; with a ramp at its beginning.
    pub(crate) rate_per_s: u32,
    /// Latencies of records from when they were sent.
    pub(crate) service_us: Latency,
    /// Answered requests that were sent more than 10 ms after they were due.
    pub(crate) late_records: u64,
    /// Whether as many requests were answered as were due, but for one in a thousand, and sent in time for the load to be what
    /// was asked for, but for one in a hundred.
    pub(crate) is_schedule_kept: bool,
}

impl OpenLoop {
    /// `due`: requests that were due in the measured time.
    pub(crate) fn of(rate_per_s: u32, due: u64, measured: &Interval) -> OpenLoop {
        let due = due as f64;
        let answered = (measured.acked() + measured.reads.len()) as f64;
        OpenLoop {
            rate_per_s,
            service_us: Latency::of(&measured.services),
            late_records: measured.late,
            is_schedule_kept: answered >= 0.999 * due && measured.late as f64 <= 0.01 * due,
        }
    }
}

/// A second of a run, or what was left of one.
#[derive(Clone, Copy, Default, Debug, Serialize)]
pub(crate) struct Slice {
    /// Its end, in seconds from the start of the load.
    pub(crate) until_s: f64,
    pub(crate) is_measured: bool,
    pub(crate) records_per_s: f64,
    pub(crate) p50_us: u64,
    pub(crate) p99_us: u64,
    pub(crate) max_us: u64,
    pub(crate) failed: u64,
    pub(crate) unknown: u64,
    pub(crate) reads_per_s: f64,
    pub(crate) read_p50_us: u64,
    pub(crate) read_p99_us: u64,
    pub(crate) failed_reads: u64,
    /// Records, each as often as a follower had it.
    pub(crate) delivered_per_s: f64,
    pub(crate) delivery_p50_us: u64,
    pub(crate) delivery_p99_us: u64,
}

/// A histogram as a curve: quantiles, from step to step nearer to one, and their values.
pub(crate) fn percentiles(latencies: &Histogram<u64>) -> Vec<(f64, u64)> {
    let steps = latencies.iter_quantiles(4);
    let mut curve: Vec<(f64, u64)> =
        steps.map(|at| (at.quantile_iterated_to(), at.value_iterated_to())).collect();
    // The last is the whole, which no logarithm can show.
    curve.retain(|(quantile, _)| *quantile < 1.0);
    curve
}

/// How long items were in a ring, right to an eighth.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Ring {
    pub(crate) items: u64,
    pub(crate) p50_us: f64,
    pub(crate) p99_us: f64,
    pub(crate) p99_9_us: f64,
    pub(crate) max_us: f64,
}

impl Ring {
    pub(crate) fn of(waits: &Waits) -> Ring {
        let us = |time: Duration| time.as_secs_f64() * 1e6;
        Ring {
            items: waits.count(),
            p50_us: us(waits.percentile(50.0)),
            p99_us: us(waits.percentile(99.0)),
            p99_9_us: us(waits.percentile(99.9)),
            max_us: us(waits.max()),
        }
    }
}

/// Everything that a run has measured.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Report {
    /// Records acknowledged in the measured window, per second of it.
    pub(crate) throughput_records_per_s: f64,
    /// All records acknowledged, warm-up included: what the audit checks.
    pub(crate) acked_records: u64,
    /// Records acknowledged in the measured window.
    pub(crate) measured_records: u64,
    /// Length of that window in seconds.
    pub(crate) measured_s: f64,
    /// Records that certainly were not done.
    pub(crate) failed_records: u64,
    /// Records that may have been done: their answer never came.
    pub(crate) unknown_records: u64,
    pub(crate) latency_us: Latency,
    /// The same as a curve: quantile and microseconds.
    pub(crate) percentiles_us: Vec<(f64, u64)>,
    /// Second by second, warm-up included; empty with clients in the nodes' processes.
    pub(crate) slices: Vec<Slice>,
    /// Of an open loop; null otherwise.
    pub(crate) open_loop: Option<OpenLoop>,
    /// Journal commits of all nodes in the measured window, each one fsync.
    pub(crate) flushes: u64,
    /// Records that one commit of one node made durable, on average.
    pub(crate) records_per_flush: f64,
    /// Mean time of a commit in microseconds.
    pub(crate) flush_us_mean: f64,
    /// Turns of the shards of all nodes in the measured window.
    pub(crate) turns: u64,
    /// Times that a shard slept, and was woken.
    pub(crate) wake_ups: u64,
    /// Requests that the nodes took from clients.
    pub(crate) requests: u64,
    /// Requests that nodes refused as busy; clients on the network have sent them again, later.
    pub(crate) busy_requests: u64,
    /// Frames that nodes sent each other.
    pub(crate) peer_frames: u64,
    /// Bytes of frames that nodes sent to each other and to clients, per acknowledged record.
    pub(crate) sent_bytes_per_record: f64,
    /// Bytes of journal blocks that all nodes wrote, per acknowledged record.
    pub(crate) flushed_bytes_per_record: f64,
    /// CPU time of the nodes' threads in microseconds per acknowledged record, by their kind.
    pub(crate) core_us_by_thread: BTreeMap<String, f64>,
    /// How long items were in the rings between the nodes' threads.
    pub(crate) rings: BTreeMap<String, Ring>,
    /// CPU time of all nodes and of this client, in microseconds, per acknowledged record.
    pub(crate) core_us_per_record: f64,
    /// The client's part of it; null where the clients are in the processes of the nodes.
    pub(crate) client_core_us_per_record: Option<f64>,
    /// Most memory resident at a time, in bytes, of each node.
    pub(crate) peak_rss_bytes: Vec<u64>,
    /// Flushes that the kernel sent to the block device meanwhile, for any process; null where the
    /// data folder is on no block device. The kernel joins flushes that wait together.
    pub(crate) device_flushes: Option<u64>,
    /// Leaders elected under load.
    pub(crate) leader_changes: u64,
    /// What reads and followers gave.
    pub(crate) mix: MixReport,
    pub(crate) audit: AuditCounts,
    /// With a killed or stopped leader: longest time without an acknowledgement in a group that it led, in
    /// milliseconds.
    pub(crate) unavailable_ms: Option<u64>,
    /// With a killed or stopped leader: which node it was, and how many groups it led.
    pub(crate) killed: Option<Killed>,
    /// Each fault, in the order in which they were asked for.
    pub(crate) faults: Vec<FaultSeen>,
    /// By group, from 1: longest time without an acknowledgement in the measured window, in milliseconds.
    pub(crate) longest_gap_ms: Vec<u64>,
    /// Nodes that were replaced, in order.
    pub(crate) replaced: Vec<Replaced>,
    pub(crate) config: Config,
    pub(crate) machine: Machine,
    pub(crate) versions: BTreeMap<&'static str, &'static str>,
}

/// A fault, and what came of it.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct FaultSeen {
    #[serde(flatten)]
    pub(crate) fault: Killed,
    /// Longest time without an acknowledgement in a group that these nodes led, from the fault to the end, in milliseconds.
    pub(crate) unavailable_ms: Option<u64>,
}

impl FaultSeen {
    pub(crate) fn new(fault: &Killed, unavailable_ms: Option<u64>) -> FaultSeen {
        FaultSeen { fault: fault.clone(), unavailable_ms }
    }
}

/// The nodes that a fault met.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Killed {
    /// The first of them.
    pub(crate) node: u64,
    pub(crate) nodes: Vec<u64>,
    pub(crate) kind: Kind,
    pub(crate) groups_led: usize,
    /// When, in seconds from the start of the measured window.
    pub(crate) at_s: f64,
    /// For how long, in seconds.
    pub(crate) lasting_s: f64,
}

/// A node that was killed with its disk, and its successor.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Replaced {
    pub(crate) old: u64,
    pub(crate) new: u64,
    /// When, in seconds from the start of the measured window.
    pub(crate) at_s: f64,
    /// From then until the new one was a voter of all groups.
    pub(crate) members_s: f64,
    /// From then until it had all that was acknowledged before it became one.
    pub(crate) caught_up_s: f64,
}

impl Report {
    /// Whether the audit found nothing, and looked at everything.
    fn is_audit_clean(&self) -> bool {
        self.audit.is_clean_of(self.acked_records * u64::from(self.config.nodes))
    }

    /// Whether that is so, and reads and followers got what was acknowledged.
    pub(crate) fn is_clean(&self) -> bool {
        self.is_audit_clean() && self.mix.is_clean()
    }

    /// What a person wants to know, line by line.
    pub(crate) fn rows(&self) -> Vec<(&'static str, String)> {
        let latency = &self.latency_us;
        let time = |us: u64| plot::duration(us as f64);
        let config = &self.config;
        let mut rows: Vec<(&'static str, String)> = vec![
            (
                "load",
                format!(
                    "{} clients{} x {} in flight, {} groups{}, {} nodes x {} shards, {} B records",
                    config.clients,
                    if config.is_embedded { " in each node" } else { "" },
                    config.in_flight,
                    config.groups,
                    if config.skew == "uniform" { String::new() } else { format!(" ({})", config.skew) },
                    config.nodes,
                    config.shards,
                    config.record_sizes
                ),
            ),
            (
                "throughput",
                format!("{} records/s over {:.1} s", count(self.throughput_records_per_s), self.measured_s),
            ),
            ("latency p50", time(latency.p50)),
            ("        p90", time(latency.p90)),
            ("        p99", time(latency.p99)),
            ("        p99.9", time(latency.p99_9)),
            ("        p99.99", time(latency.p99_99)),
            ("        max", time(latency.max)),
            (
                "records",
                format!(
                    "{} acknowledged, {} failed, {} unknown",
                    self.acked_records, self.failed_records, self.unknown_records
                ),
            ),
            (
                "flushes",
                format!(
                    "{} ({:.1} records each on a node, {} each); the device saw {}",
                    self.flushes,
                    self.records_per_flush,
                    plot::duration(self.flush_us_mean),
                    self.device_flushes.map_or_else(|| "?".to_owned(), |flushes| flushes.to_string())
                ),
            ),
            (
                "work",
                format!(
                    "{} turns, {} wake-ups, {} requests ({} refused as busy), {} frames between nodes",
                    self.turns, self.wake_ups, self.requests, self.busy_requests, self.peer_frames
                ),
            ),
            (
                "CPU",
                match self.client_core_us_per_record {
                    Some(client) => {
                        format!(
                            "{:.2} core-us a record, {client:.2} of it this client",
                            self.core_us_per_record
                        )
                    }
                    None => format!("{:.2} core-us a record", self.core_us_per_record),
                },
            ),
            (
                "  by thread",
                self.core_us_by_thread
                    .iter()
                    .filter(|(_, us)| **us >= 0.005)
                    .map(|(kind, us)| format!("{kind} {us:.2}"))
                    .collect::<Vec<_>>()
                    .join(", "),
            ),
            (
                "bytes a record",
                format!(
                    "{:.0} sent, {:.0} flushed, of all nodes",
                    self.sent_bytes_per_record, self.flushed_bytes_per_record
                ),
            ),
            (
                "in rings",
                self.rings
                    .iter()
                    .map(|(name, ring)| {
                        format!(
                            "{name} p50 {}, p99 {}",
                            plot::duration(ring.p50_us),
                            plot::duration(ring.p99_us)
                        )
                    })
                    .collect::<Vec<_>>()
                    .join("; "),
            ),
            (
                "peak memory",
                self.peak_rss_bytes
                    .iter()
                    .map(|bytes| format!("{} MiB", bytes >> 20))
                    .collect::<Vec<_>>()
                    .join(", "),
            ),
            ("leader changes", self.leader_changes.to_string()),
        ];
        if let Some(open) = &self.open_loop {
            let verdict =
                if open.is_schedule_kept { "kept" } else { "NOT KEPT: these latencies are of another load" };
            let text = format!(
                "{} requests/s ({}), {verdict}; {} sent late; records from when they were sent: p50 {}, p99 {}, p99.9 {}",
                count(open.rate_per_s.into()),
                config.arrivals.as_deref().unwrap_or("fixed"),
                open.late_records,
                time(open.service_us.p50),
                time(open.service_us.p99),
                time(open.service_us.p99_9)
            );
            rows.push(("schedule", text));
        }
        rows.extend(self.mix.rows());
        for FaultSeen { fault, unavailable_ms } in &self.faults {
            let text = format!(
                "{:?} to nodes {:?} at {:.1} s for {:.1} s, which led {} groups; longest gap {} ms",
                fault.kind,
                fault.nodes,
                fault.at_s,
                fault.lasting_s,
                fault.groups_led,
                unavailable_ms.map_or_else(|| "0".to_owned(), |ms| ms.to_string())
            );
            rows.push(("fault", text));
        }
        if let (Some(last), Some(gap_ms)) = (self.replaced.last(), self.longest_gap_ms.iter().max()) {
            let slowest_s = self.replaced.iter().map(|replaced| replaced.caught_up_s).fold(0.0, f64::max);
            let text = format!(
                "{} nodes until {:.1} s, each within {slowest_s:.1} s; longest gap of a group {gap_ms} ms",
                self.replaced.len(),
                last.at_s + last.caught_up_s
            );
            rows.push(("replaced", text));
        }
        rows.push(("audit", self.audit.verdict(self.is_audit_clean())));
        rows
    }

    /// The table for the terminal.
    pub(crate) fn table(&self) -> String {
        self.rows().iter().fold(String::new(), |mut table, (name, value)| {
            let _ = writeln!(table, "{name:<16} {value}");
            table
        })
    }
}

/// A count with three or four digits and its best unit.
pub(crate) fn count(value: f64) -> String {
    match value {
        value if value >= 1e6 => format!("{:.2} M", value / 1e6),
        value if value >= 1e4 => format!("{:.1} k", value / 1e3),
        value => format!("{value:.0}"),
    }
}

/// Microseconds of CPU per record; 0 when there was none.
pub(crate) fn core_us(cpu: Duration, records: u64) -> f64 {
    ratio(cpu.as_secs_f64() * 1e6, records as f64)
}

/// A quotient; 0 when there is nothing to divide by.
pub(crate) fn ratio(of: f64, by: f64) -> f64 {
    if by > 0.0 { of / by } else { 0.0 }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::machine;
    use crate::mix::Mix;
    use crate::recorder::latencies;

    pub(crate) fn report() -> Report {
        let mut histogram = latencies();
        histogram.record_n(1000, 99).unwrap();
        histogram.record(9000).unwrap();
        Report {
            throughput_records_per_s: 123_456.0,
            acked_records: 100,
            measured_records: 100,
            measured_s: 1.0,
            failed_records: 0,
            unknown_records: 0,
            latency_us: Latency::of(&histogram),
            percentiles_us: percentiles(&histogram),
            slices: Vec::new(),
            open_loop: None,
            flushes: 30,
            records_per_flush: 10.0,
            flush_us_mean: 200.0,
            turns: 90,
            wake_ups: 60,
            requests: 20,
            busy_requests: 3,
            peer_frames: 120,
            sent_bytes_per_record: 150.0,
            flushed_bytes_per_record: 210.0,
            core_us_by_thread: [("bridge".to_owned(), 0.5)].into(),
            rings: [("bridge to shard".to_owned(), Ring::of(&Waits::default()))].into(),
            core_us_per_record: 1.0,
            client_core_us_per_record: Some(0.1),
            peak_rss_bytes: vec![1 << 20; 3],
            device_flushes: Some(31),
            leader_changes: 0,
            mix: MixReport::default(),
            audit: AuditCounts { checked: 300, ..AuditCounts::default() },
            unavailable_ms: None,
            killed: None,
            faults: Vec::new(),
            longest_gap_ms: vec![12; 8],
            replaced: Vec::new(),
            config: Config {
                nodes: 3,
                shards: 1,
                bridge_threads: 1,
                groups: 8,
                record_bytes: 64,
                record_sizes: RecordSizes::Fixed(64),
                skew: "uniform".into(),
                arrivals: None,
                seed: 1,
                clients: 8,
                in_flight: 256,
                client_threads: 1,
                is_embedded: false,
                duration_s: 1.0,
                warmup_s: 0.0,
                rate_per_s: None,
                faults: Vec::new(),
                replacements: 0,
                loop_kind: "closed",
                mix: MixConfig::of(&Mix::default()),
            },
            machine: Machine::look(&std::env::temp_dir()),
            versions: machine::versions(),
        }
    }

    #[test]
    fn the_object_has_every_key_that_programs_rely_on() {
        let object = serde_json::to_value(report()).unwrap();
        for key in [
            "throughput_records_per_s",
            "acked_records",
            "failed_records",
            "unknown_records",
            "latency_us",
            "open_loop",
            "flushes",
            "records_per_flush",
            "turns",
            "wake_ups",
            "requests",
            "busy_requests",
            "peer_frames",
            "core_us_per_record",
            "core_us_by_thread",
            "sent_bytes_per_record",
            "flushed_bytes_per_record",
            "rings",
            "peak_rss_bytes",
            "device_flushes",
            "leader_changes",
            "mix",
            "audit",
            "unavailable_ms",
            "longest_gap_ms",
            "replaced",
            "config",
            "machine",
            "versions",
        ] {
            assert!(object.get(key).is_some(), "{key}");
        }
        for key in ["p50", "p90", "p99", "p99_9", "p99_99", "max"] {
            assert!(object["latency_us"][key].is_u64(), "{key}");
        }
        for key in ["checked", "lost", "duplicated", "reordered", "diverged"] {
            assert!(object["audit"][key].is_u64(), "{key}");
        }
    }

    #[test]
    fn a_schedule_is_kept_when_what_was_due_was_answered_and_sent_in_time() {
        let of = |answered, late| {
            let mut measured = Interval::new(true);
            measured.record(Duration::from_millis(2), answered);
            measured.serve(Duration::from_millis(1), answered);
            measured.late = late;
            OpenLoop::of(1000, 10_000, &measured)
        };
        let kept = of(9_995, 50);
        assert!(kept.is_schedule_kept && kept.service_us.p50.abs_diff(1000) < 10);
        assert!(!of(9_900, 50).is_schedule_kept && !of(10_000, 200).is_schedule_kept);
    }

    #[test]
    fn a_run_is_clean_only_when_everything_was_checked() {
        let mut report = report();
        assert!(report.is_clean());
        report.audit.checked = 299;
        assert!(!report.is_clean());
        report.audit = AuditCounts { checked: 300, diverged: 1, ..AuditCounts::default() };
        assert!(!report.is_clean());
        assert!(report.table().contains("FAILED"));
    }
}

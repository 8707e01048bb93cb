//! What a run has measured, put together.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use iroh_raft::net::ring::Waits;

use super::{Load, QuickPlan, Sample};
use crate::audit::AuditCounts;
use crate::cluster::NodeUsage;
use crate::ledger::LedgerTotals;
use crate::machine::{self, Machine};
use crate::mix::MixConfig;
use crate::mixed::MixReport;
use crate::report::{Config, FaultSeen, Killed, Latency, Report, Ring, core_us, percentiles, ratio};

/// What the threads of the nodes used between two samples, for each record.
fn core_us_by_thread(before: &Sample, after: &Sample, records: u64) -> BTreeMap<String, f64> {
    let sum = |sample: &Sample, kind: &str| sample.sum(|node| node.thread_us.get(kind).copied().unwrap_or(0));
    let kinds: BTreeSet<&String> = after.nodes.iter().flat_map(|node| node.thread_us.keys()).collect();
    let more = |kind: &String| sum(after, kind).saturating_sub(sum(before, kind));
    kinds.into_iter().map(|kind| (kind.clone(), ratio(more(kind) as f64, records as f64))).collect()
}

/// How long items were in the rings of all nodes between two samples.
fn rings(before: &Sample, after: &Sample) -> BTreeMap<String, Ring> {
    let sum = |sample: &Sample| {
        let mut sum = BTreeMap::<String, Waits>::new();
        for (ring, waits) in sample.nodes.iter().flat_map(|node| &node.waits) {
            sum.entry(ring.clone()).or_default().add(waits);
        }
        sum
    };
    let earlier = sum(before);
    let since = |(ring, waits): (String, Waits)| {
        let waits = earlier.get(&ring).map_or_else(|| waits.clone(), |earlier| waits.since(earlier));
        (ring, Ring::of(&waits))
    };
    sum(after).into_iter().map(since).filter(|(_, ring)| ring.items > 0).collect()
}

/// Everything that a run has measured.
pub(super) fn report(
    plan: &QuickPlan,
    folder: &Path,
    load: &Load,
    totals: LedgerTotals,
    audit: AuditCounts,
) -> Report {
    let measured_records = load.measured.acked();
    let (before, after) = (&load.before, &load.after);
    let more = |of: fn(&NodeUsage) -> u64| after.sum(of).saturating_sub(before.sum(of));
    let (flushes, flush_us) = (more(|node| node.flushes), more(|node| node.flush_us_total));
    let client_cpu = after.client_cpu.saturating_sub(before.client_cpu);
    let cpu = after.node_cpu().saturating_sub(before.node_cpu()) + client_cpu;
    let device_flushes = after.device_flushes.zip(before.device_flushes);
    let end = plan.load.warmup + plan.load.duration;
    // What a fault did is seen until the next one comes.
    let gap_after = |killed: &Killed, groups: &[u32]| {
        let at = |killed: &Killed| plan.load.warmup + Duration::from_secs_f64(killed.at_s);
        let later = load.killed.iter().map(|(other, _)| at(other)).filter(|other| *other > at(killed));
        let to = later.chain([end]).min().unwrap_or(end);
        groups.iter().map(|&group| load.timeline.longest_gap_ms(group, at(killed), to)).max()
    };
    let unavailable_ms = load.killed.first().and_then(|(killed, groups)| gap_after(killed, groups));
    let gap_ms = |group| load.timeline.longest_gap_ms(group, plan.load.warmup, end);
    Report {
        throughput_records_per_s: ratio(measured_records as f64, plan.load.duration.as_secs_f64()),
        acked_records: totals.acked,
        measured_records,
        measured_s: plan.load.duration.as_secs_f64(),
        failed_records: totals.refused,
        unknown_records: totals.unknown,
        latency_us: Latency::of(&load.measured.latencies),
        percentiles_us: percentiles(&load.measured.latencies),
        slices: load.slices.clone(),
        open_loop: plan.load.open_loop(&load.times, &load.measured),
        flushes,
        records_per_flush: ratio(measured_records as f64 * f64::from(plan.cluster.nodes), flushes as f64),
        flush_us_mean: ratio(flush_us as f64, flushes as f64),
        turns: more(|node| node.turns),
        wake_ups: more(|node| node.sleeps),
        requests: more(|node| node.requests),
        busy_requests: more(|node| node.busy),
        peer_frames: more(|node| node.frames_sent),
        sent_bytes_per_record: ratio(more(|node| node.sent_bytes) as f64, measured_records as f64),
        flushed_bytes_per_record: ratio(more(|node| node.flush_bytes) as f64, measured_records as f64),
        core_us_by_thread: core_us_by_thread(before, after, measured_records),
        rings: rings(before, after),
        core_us_per_record: core_us(cpu, measured_records),
        client_core_us_per_record: (!plan.is_embedded).then(|| core_us(client_cpu, measured_records)),
        peak_rss_bytes: after.nodes.iter().map(|node| node.peak_rss_bytes).collect(),
        device_flushes: device_flushes.map(|(after, before)| after.saturating_sub(before)),
        leader_changes: load.leader_changes,
        mix: MixReport::of(
            &plan.load.mix,
            &load.mixed,
            &load.measured,
            (plan.load.duration, plan.load.per_s.is_some()),
        ),
        audit,
        unavailable_ms,
        longest_gap_ms: (1..=plan.cluster.groups).map(gap_ms).collect(),
        replaced: load.replaced.clone(),
        killed: load.killed.first().map(|(killed, _)| killed.clone()),
        faults: load
            .killed
            .iter()
            .map(|(killed, groups)| FaultSeen::new(killed, gap_after(killed, groups)))
            .collect(),
        config: Config {
            nodes: plan.cluster.nodes,
            shards: plan.cluster.shards,
            bridge_threads: plan.cluster.bridge_threads,
            groups: plan.cluster.groups,
            record_bytes: plan.load.sizes.mean() as usize,
            record_sizes: plan.load.sizes.clone(),
            skew: plan.load.skew.to_string(),
            arrivals: plan.load.per_s.map(|_| plan.load.arrivals.to_string()),
            seed: plan.load.seed,
            clients: plan.load.clients,
            in_flight: plan.load.in_flight,
            client_threads: plan.load.client_threads.min(plan.load.clients),
            is_embedded: plan.is_embedded,
            duration_s: plan.load.duration.as_secs_f64(),
            warmup_s: plan.load.warmup.as_secs_f64(),
            replacements: plan.replacements,
            rate_per_s: plan.load.per_s,
            faults: plan.faults.iter().map(ToString::to_string).collect(),
            mix: MixConfig::of(&plan.load.mix),
            loop_kind: if plan.load.per_s.is_some() { "open" } else { "closed" },
        },
        machine: Machine::look(folder),
        versions: machine::versions(),
    }
}

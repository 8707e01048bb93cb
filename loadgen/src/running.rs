//! A cluster that somebody else runs: `loadgen run` drives it, and `loadgen audit` reads back what it has acknowledged.
//!
//! Others may write to its groups meanwhile. Clients have numbers here that nobody else is likely to have drawn, and the
//! audit looks at their records alone.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::RecvTimeoutError;
use std::time::{Duration, Instant, SystemTime};

use iroh_raft::net::client::{Client, ClientConfig, ClientLimits};
use iroh_raft::net::cluster_file::ClusterFile;
use iroh_raft::{GroupId, Identity, NodeId, cluster_id};
use serde::Serialize;

use crate::ack_log::AckLog;
use crate::audit::AuditCounts;
use crate::clients::{Clients, LoadPlan, Targets, finish, interruptible, runtime};
use crate::hdr;
use crate::ledger::{GroupLedger, Ledger};
use crate::mix::MixConfig;
use crate::mixed::MixReport;
use crate::quick::{Files, LOOK, QuickError};
use crate::readback::{self, Replicas};
use crate::record::mix;
use crate::report::{Latency, OpenLoop, Slice, count, percentiles, ratio};
use crate::watch::Watch;
use crate::{machine, plot};

/// Time for all replicas to catch up before they are read back.
const CATCH_UP_DEADLINE: Duration = Duration::from_secs(60);
/// How long a node may take to say how a group stands.
const STATUS_DEADLINE: Duration = Duration::from_secs(2);
/// Pause before they are asked again.
const CATCH_UP_PAUSE: Duration = Duration::from_millis(200);
/// Highest number of a group: all up to there have a place in the ledger.
const GROUP_MAX: u64 = 1 << 20;

/// The way to a cluster that runs.
#[derive(Clone, Debug)]
pub(crate) struct Access {
    pub(crate) cluster_file: PathBuf,
    pub(crate) key: PathBuf,
}

impl Access {
    /// The cluster's name, and how its clients connect.
    pub(crate) fn open(&self, limits: ClientLimits) -> Result<(String, ClientConfig), QuickError> {
        let file = ClusterFile::read(&self.cluster_file)?;
        let name = file.name(&self.cluster_file)?.to_owned();
        let identity =
            Identity::load(&self.key).map_err(|source| QuickError::Key { path: self.key.clone(), source })?;
        let cluster = cluster_id(&name);
        Ok((name, ClientConfig { cluster, identity, nodes: file.nodes, bind: None, limits }))
    }
}

/// What `loadgen run` was asked for.
#[derive(Clone, Debug)]
pub(crate) struct RunPlan {
    pub(crate) access: Access,
    /// Groups that are written to; none: all that there are.
    pub(crate) groups: Vec<u64>,
    pub(crate) load: LoadPlan,
    pub(crate) is_audited: bool,
    pub(crate) json: Option<PathBuf>,
    pub(crate) files: Files,
}

/// What was measured. What the nodes used for it is theirs to say.
#[derive(Clone, Debug, Serialize)]
struct RunReport {
    throughput_records_per_s: f64,
    /// All records acknowledged, warm-up included.
    acked_records: u64,
    measured_records: u64,
    measured_s: f64,
    failed_records: u64,
    unknown_records: u64,
    latency_us: Latency,
    percentiles_us: Vec<(f64, u64)>,
    slices: Vec<Slice>,
    open_loop: Option<OpenLoop>,
    client_core_us_per_record: f64,
    /// What reads and followers gave.
    mix: MixReport,
    /// Null if it was not asked for.
    audit: Option<AuditCounts>,
    /// Records that it had to look up, over all replicas.
    audit_expected: u64,
    config: RunConfig,
}

#[derive(Clone, Debug, Serialize)]
struct RunConfig {
    cluster: String,
    nodes: usize,
    groups: usize,
    record_sizes: String,
    skew: String,
    /// Records that are due in a second, in the open loop, and how they arrive.
    rate_per_s: Option<u32>,
    arrivals: Option<String>,
    seed: u64,
    clients: u32,
    in_flight: u32,
    client_threads: u32,
    duration_s: f64,
    warmup_s: f64,
    /// What of the load is more than appends.
    mix: MixConfig,
}

/// Drives the cluster, and audits it if asked. Returns whether the audit is clean.
///
/// # Errors
/// [`QuickError`] when there is nothing to report.
pub(crate) fn run(plan: &RunPlan, stop: &Arc<AtomicBool>) -> Result<bool, QuickError> {
    let (name, client) = plan.access.open(plan.load.limits())?;
    let targets = targets(plan, &client, stop)?;
    eprintln!("{} groups of the cluster {name}", targets.len());
    let (groups, first_client) = (targets.len(), first_client());
    let targets = Targets { groups: targets, first_client, is_shared: true };
    let cpu_before = machine::cpu_time(std::process::id()).unwrap_or_default();
    let clients = Clients::start(&plan.load, targets, &client, stop)?;
    let (start, began) = (clients.start, SystemTime::now());
    let title = plan.load.title(groups);
    let mut watch = Watch::new(clients.threads(), plan.files.hdr_log.is_some(), title, plan.load.end());
    while start.elapsed() < plan.load.end() && !clients.has_ended() && !stop.load(Ordering::Relaxed) {
        match clients.progress.recv_timeout(LOOK) {
            Ok(progress) => _ = watch.handle(progress),
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {}
        }
    }
    let (known, progress) = clients.join(|| Ok(()))?;
    progress.try_iter().for_each(|progress| _ = watch.handle(progress));
    let cpu = machine::cpu_time(std::process::id()).unwrap_or_default().saturating_sub(cpu_before);
    let totals = known.ledger.totals();
    let acks = AckLog::new(&name, &plan.load.sizes, known.ledger).shared(first_client);
    let acks = acks.in_sessions(plan.load.mix.sessions);
    if let Some(path) = &plan.files.ack_log {
        acks.write(path)?;
    }
    // The records stand in somebody's cluster: what was told of them is kept also when this ends early.
    if stop.load(Ordering::Relaxed) {
        return Err(QuickError::Interrupted);
    }
    if let Some(error) = &known.last_error {
        eprintln!("last error: {error}");
    }
    let (audit, failure) = match plan.is_audited.then(|| audit(client.clone(), &acks, stop)) {
        Some(Err(error)) => (None, Some(error)),
        Some(Ok(audit)) => (Some(audit), None),
        None => (None, None),
    };
    let measured = &watch.measured;
    let report = RunReport {
        throughput_records_per_s: ratio(measured.acked() as f64, plan.load.duration.as_secs_f64()),
        acked_records: totals.acked,
        measured_records: measured.acked(),
        measured_s: plan.load.duration.as_secs_f64(),
        failed_records: totals.refused,
        unknown_records: totals.unknown,
        latency_us: Latency::of(&measured.latencies),
        percentiles_us: percentiles(&measured.latencies),
        slices: watch.slices.clone(),
        open_loop: plan.load.open_loop(&known.times, measured),
        client_core_us_per_record: ratio(cpu.as_secs_f64() * 1e6, totals.acked as f64),
        mix: MixReport::of(
            &plan.load.mix,
            &known.mixed,
            measured,
            (plan.load.duration, plan.load.per_s.is_some()),
        ),
        audit: audit.map(|(counts, _)| counts),
        audit_expected: audit.map_or(0, |(_, expected)| expected),
        config: RunConfig {
            cluster: name,
            nodes: client.nodes.len(),
            groups,
            record_sizes: plan.load.sizes.to_string(),
            skew: plan.load.skew.to_string(),
            rate_per_s: plan.load.per_s,
            arrivals: plan.load.per_s.map(|_| plan.load.arrivals.to_string()),
            seed: plan.load.seed,
            clients: plan.load.clients,
            in_flight: plan.load.in_flight,
            client_threads: plan.load.client_threads.min(plan.load.clients),
            duration_s: plan.load.duration.as_secs_f64(),
            warmup_s: plan.load.warmup.as_secs_f64(),
            mix: MixConfig::of(&plan.load.mix),
        },
    };
    println!("{}", plot::percentiles(&measured.latencies));
    print!("{}", report.table());
    write(plan, &report, &watch, began)?;
    match failure {
        Some(error) => Err(error),
        None => Ok(report.is_clean()),
    }
}

fn write(plan: &RunPlan, report: &RunReport, watch: &Watch, began: SystemTime) -> Result<(), QuickError> {
    let failed = |path: &Path| {
        let path = path.to_path_buf();
        |source| QuickError::File { path, source }
    };
    if let Some(path) = &plan.json {
        let text = serde_json::to_vec_pretty(report).expect("a report serializes");
        std::fs::write(path, text).map_err(failed(path))?;
    }
    if let Some(path) = &plan.files.hdr_log {
        hdr::write_log(path, began, &watch.stretches).map_err(failed(path))?;
    }
    if let Some(path) = &plan.files.hgrm {
        hdr::write_percentiles(path, &watch.measured.latencies).map_err(failed(path))?;
    }
    Ok(())
}

impl RunReport {
    fn is_audit_clean(&self) -> bool {
        self.audit.is_none_or(|audit| audit.is_clean_of(self.audit_expected))
    }

    fn is_clean(&self) -> bool {
        self.is_audit_clean() && self.mix.is_clean()
    }

    fn table(&self) -> String {
        let time = |us: u64| plot::duration(us as f64);
        let (latency, config) = (&self.latency_us, &self.config);
        let mut rows = vec![
            (
                "load",
                format!(
                    "{} clients x {} in flight, {} groups of {} on {} nodes, {} B records",
                    config.clients,
                    config.in_flight,
                    config.groups,
                    config.cluster,
                    config.nodes,
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
            ("        max", time(latency.max)),
            (
                "records",
                format!(
                    "{} acknowledged, {} failed, {} unknown",
                    self.acked_records, self.failed_records, self.unknown_records
                ),
            ),
            ("CPU", format!("{:.2} core-us a record in this client", self.client_core_us_per_record)),
        ];
        if let Some(open) = &self.open_loop {
            let verdict =
                if open.is_schedule_kept { "kept" } else { "NOT KEPT: these latencies are of another load" };
            let arrivals = config.arrivals.as_deref().unwrap_or("fixed");
            rows.push((
                "schedule",
                format!("{} requests/s ({arrivals}), {verdict}", count(open.rate_per_s.into())),
            ));
        }
        rows.extend(self.mix.rows());
        let audit = self.audit.map(|audit| audit.verdict(self.is_audit_clean()));
        rows.push(("audit", audit.unwrap_or_else(|| "not asked for".to_owned())));
        rows.iter().map(|(name, value)| format!("{name:<16} {value}\n")).collect()
    }
}

/// A number for the first client that nobody else has, most likely; clients up to 65,536 count on from it.
fn first_client() -> u32 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let drawn = mix(now.as_nanos() as u64 ^ (u64::from(std::process::id()) << 40));
    ((drawn >> 33) as u32) & !0xffff
}

/// The groups that are written to.
fn targets(plan: &RunPlan, client: &ClientConfig, stop: &AtomicBool) -> Result<Vec<u32>, QuickError> {
    let runtime = runtime()?;
    let asked = interruptible(&runtime, groups_of(client), stop)??;
    finish(&runtime);
    let there: Vec<u64> = asked
        .map_err(|problem| QuickError::NoGroups { path: plan.access.cluster_file.clone(), problem })?
        .iter()
        .map(|group| group.0)
        .collect();
    let wanted = if plan.groups.is_empty() { there.clone() } else { plan.groups.clone() };
    if let Some(group) = wanted.iter().copied().find(|group| !there.contains(group)) {
        return Err(QuickError::NoSuchGroup { group, there });
    }
    match wanted.iter().max() {
        None => Err(QuickError::NoSuchGroup { group: 0, there }),
        Some(most) if *most > GROUP_MAX => Err(QuickError::GroupTooHigh { group: *most, most: GROUP_MAX }),
        Some(_) => Ok(wanted.into_iter().map(|group| group as u32).collect()),
    }
}

/// The groups of all nodes that answer, or why none does.
async fn groups_of(config: &ClientConfig) -> Result<Result<Vec<GroupId>, String>, QuickError> {
    let client = Client::connect(config.clone()).await?.with_deadline(STATUS_DEADLINE);
    let mut found: Result<Vec<GroupId>, String> = Err("it has no nodes".to_owned());
    for node in &config.nodes {
        match (client.groups(node.node).await, &mut found) {
            (Ok(groups), Ok(all)) => all.extend(groups),
            (Ok(groups), Err(_)) => found = Ok(groups),
            (Err(error), Err(problem)) => *problem = error.to_string(),
            (Err(_), Ok(_)) => {}
        }
    }
    client.close();
    Ok(found.map(|mut groups| {
        groups.sort_unstable();
        groups.dedup();
        groups
    }))
}

/// Reads back what was acknowledged, from every node that has it, as soon as all do. Also returns how many records that
/// had to be.
///
/// # Errors
/// [`QuickError`] when no node can be reached.
pub(crate) fn audit(
    config: ClientConfig,
    acks: &AckLog,
    stop: &AtomicBool,
) -> Result<(AuditCounts, u64), QuickError> {
    eprintln!("audit: read everything back from every replica");
    let runtime = runtime()?;
    let replicas = interruptible(&runtime, replicas_of(config.clone(), &acks.ledger), stop)??;
    interruptible(&runtime, wait_until_caught_up(config.clone(), &replicas, &acks.ledger), stop)??;
    let (counts, unreadable) = interruptible(&runtime, readback::audit(config, acks, &replicas), stop)??;
    finish(&runtime);
    unreadable.iter().for_each(|replica| eprintln!("{replica}"));
    let of_group = |(group, ledger): (u32, &GroupLedger)| {
        ledger.records_acked() * replicas.get(&group).map_or(0, |nodes| nodes.len() as u64)
    };
    Ok((counts, acks.ledger.groups().map(of_group).sum()))
}

/// The members of each group with acknowledged records, as the first of the nodes says that has it; all nodes where none
/// does, for then its records are lost.
async fn replicas_of(config: ClientConfig, ledger: &Ledger) -> Result<Replicas, QuickError> {
    let nodes: Vec<NodeId> = config.nodes.iter().map(|node| node.node).collect();
    let client = Client::connect(config).await?.with_deadline(STATUS_DEADLINE);
    let mut replicas = Replicas::new();
    for (group, _) in ledger.groups().filter(|(_, of_group)| of_group.end() > 0) {
        let mut members = nodes.clone();
        for &node in &nodes {
            if let Ok(status) = client.status(node, GroupId(group.into())).await {
                members = status.members.voters.iter().chain(&status.members.learners).copied().collect();
                break;
            }
        }
        replicas.insert(group, members);
    }
    client.close();
    Ok(replicas)
}

/// Those that stay behind are found by the audit, record by record.
async fn wait_until_caught_up(
    config: ClientConfig,
    replicas: &Replicas,
    ledger: &Ledger,
) -> Result<(), QuickError> {
    let client = Client::connect(config).await?.with_deadline(STATUS_DEADLINE);
    let until = Instant::now() + CATCH_UP_DEADLINE;
    for (group, of_group) in ledger.groups() {
        for &node in replicas.get(&group).into_iter().flatten() {
            let has_all = async || {
                let status = client.status(node, GroupId(group.into())).await;
                status.is_ok_and(|status| status.end.0 >= of_group.end())
            };
            while Instant::now() < until && !has_all().await {
                tokio::time::sleep(CATCH_UP_PAUSE).await;
            }
        }
    }
    client.close();
    Ok(())
}

//! `loadgen idle`: what many groups cost that nobody uses, and how soon one of them answers.
//!
//! First a cluster of one group, for what a node takes by itself; then the one of many. Once all of its groups
//! have leaders that stay, and are quiet, it is left alone: no question is asked of the nodes while CPU time is measured.
//! Then records are appended to groups at random, one at a time, each of which wakes its group.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use iroh_raft::net::client::{Client, ClientError};
use iroh_raft::{GroupId, cluster_id};
use serde::Serialize;

use crate::clients::{finish, interruptible, runtime};
use crate::cluster::{Cluster, ClusterPlan};
use crate::machine::{self, Machine};
use crate::node::NodeSummary;
use crate::quick::{Folder, QuickError, wait_for};

/// Time for all groups to be led and quiet, beside what is allowed for each.
const START_DEADLINE: Duration = Duration::from_secs(60);
/// Time for each group to start.
const START_DEADLINE_PER_GROUP: Duration = Duration::from_millis(2);
/// How often the nodes are asked how far they are.
const LOOK: Duration = Duration::from_millis(200);
/// Time for what was freed at the start to be given back to the kernel, and for ticks to end; and longer than from one round
/// of moves to the next while leaders are spread.
const REST: Duration = Duration::from_secs(3);
/// Appends measured.
const APPENDS: usize = 500;
/// Pause between them: those that go before must not keep the cluster busy.
const APPEND_PAUSE: Duration = Duration::from_millis(5);
const RECORD: [u8; 64] = [7; 64];

/// What `loadgen idle` was asked for.
#[derive(Clone, Debug)]
pub(crate) struct IdlePlan {
    pub(crate) cluster: ClusterPlan,
    pub(crate) duration: Duration,
    pub(crate) data_dir: Option<PathBuf>,
    pub(crate) json: Option<PathBuf>,
}

/// What it found. Means over the nodes.
#[derive(Clone, Debug, Serialize)]
struct IdleReport {
    groups: u32,
    nodes: u16,
    shards: u16,
    /// Until every group had a leader, from the start of the processes.
    started_s: f64,
    /// Until every replica was quiet.
    quiet_s: f64,
    /// Until leaders moved no more, and all were quiet again.
    spread_s: f64,
    measured_s: f64,
    core_percent_per_node: f64,
    /// Of a cluster with one group, to compare.
    core_percent_per_node_of_one_group: f64,
    /// Resident memory beyond that of a node with one group, for each of the others.
    bytes_per_replica: f64,
    rss_bytes: Vec<u64>,
    rss_bytes_of_one_group: Vec<u64>,
    leaders: Vec<u64>,
    append_p50_us: u64,
    append_p99_us: u64,
    appends: usize,
    machine: Machine,
}

/// What a cluster that is left alone takes.
struct Rest {
    started: Duration,
    quiet: Duration,
    spread: Duration,
    core_percent: f64,
    rss_bytes: Vec<u64>,
    /// Of each node, once all were quiet.
    leaders: Vec<u64>,
}

/// Runs everything and prints the report. Returns true: there is nothing to audit.
///
/// # Errors
/// [`QuickError`] when there is nothing to report; processes are gone then, too.
pub(crate) fn run(plan: &IdlePlan, stop: &Arc<AtomicBool>) -> Result<bool, QuickError> {
    let folder = Folder::open(plan.data_dir.as_deref())?;
    let one = ClusterPlan { groups: 1, ..plan.cluster.clone() };
    let alone = {
        let mut cluster = Cluster::create(&one, &folder.path().join("one"))?;
        rest(plan, &one, &mut cluster, folder.path(), stop)?
    };
    let mut cluster = Cluster::create(&plan.cluster, &folder.path().join("many"))?;
    let many = rest(plan, &plan.cluster, &mut cluster, folder.path(), stop)?;
    let mut latencies_us = append(plan, &cluster, stop)?;
    drop(cluster);
    latencies_us.sort_unstable();
    let quantile = |part: usize| latencies_us[(latencies_us.len() - 1) * part / 100];
    let mean = |bytes: &[u64]| bytes.iter().sum::<u64>() as f64 / bytes.len().max(1) as f64;
    let more = f64::from(plan.cluster.groups.saturating_sub(1).max(1));
    let report = IdleReport {
        groups: plan.cluster.groups,
        nodes: plan.cluster.nodes,
        shards: plan.cluster.shards,
        started_s: many.started.as_secs_f64(),
        quiet_s: many.quiet.as_secs_f64(),
        spread_s: many.spread.as_secs_f64(),
        measured_s: plan.duration.as_secs_f64(),
        core_percent_per_node: many.core_percent,
        core_percent_per_node_of_one_group: alone.core_percent,
        bytes_per_replica: (mean(&many.rss_bytes) - mean(&alone.rss_bytes)) / more,
        rss_bytes: many.rss_bytes,
        rss_bytes_of_one_group: alone.rss_bytes,
        leaders: many.leaders,
        append_p50_us: quantile(50),
        append_p99_us: quantile(99),
        appends: latencies_us.len(),
        machine: Machine::look(folder.path()),
    };
    println!("groups           {} on {} nodes", report.groups, report.nodes);
    let (started, quiet, spread) = (report.started_s, report.quiet_s, report.spread_s);
    println!(
        "started          {started:.1} s; all quiet after {quiet:.1} s, leaders spread after {spread:.1} s"
    );
    let leaders: Vec<String> = report.leaders.iter().map(u64::to_string).collect();
    println!("leaders          {} on the nodes", leaders.join(", "));
    println!(
        "idle             {:.2} % of a core per node; with one group {:.2} %",
        report.core_percent_per_node, report.core_percent_per_node_of_one_group
    );
    println!("memory           {:.0} bytes per replica", report.bytes_per_replica);
    println!("append           p50 {} us, p99 {} us", report.append_p50_us, report.append_p99_us);
    if let Some(path) = &plan.json {
        let text = serde_json::to_vec_pretty(&report).expect("a report serializes");
        fs::write(path, text).map_err(|source| QuickError::File { path: path.clone(), source })?;
    }
    Ok(true)
}

fn rest(
    plan: &IdlePlan,
    of: &ClusterPlan,
    cluster: &mut Cluster,
    folder: &Path,
    stop: &AtomicBool,
) -> Result<Rest, QuickError> {
    let groups = u64::from(of.groups);
    eprintln!("starting {} nodes with {groups} groups", of.nodes);
    let deadline = START_DEADLINE + START_DEADLINE_PER_GROUP * of.groups;
    let late = |what| QuickError::Late { what, deadline, folder: folder.to_path_buf() };
    let all = |cluster: &mut Cluster, count: fn(&NodeSummary) -> u64| {
        let summaries = cluster.summaries()?;
        Ok(summaries.iter().all(|node| node.as_ref().is_some_and(|node| count(node) == groups)))
    };
    let begin = Instant::now();
    cluster.start()?;
    wait_for(deadline, LOOK, late("not every group had a leader"), stop, || all(cluster, |node| node.led))?;
    let started = begin.elapsed();
    let are_quiet = |cluster: &mut Cluster| {
        wait_for(deadline, LOOK, late("not every group went quiet"), stop, || all(cluster, |node| node.quiet))
    };
    are_quiet(cluster)?;
    let quiet = begin.elapsed();
    eprintln!("led after {:.1} s, quiet after {:.1} s", started.as_secs_f64(), quiet.as_secs_f64());
    let leading = |cluster: &mut Cluster| -> Result<Vec<u64>, QuickError> {
        Ok(cluster.summaries()?.iter().flatten().map(|node| node.leading).collect())
    };
    let (mut leaders, mut spread) = (Vec::new(), quiet);
    loop {
        let seen = leading(cluster)?;
        if seen != leaders {
            if begin.elapsed() > deadline {
                return Err(late("leaders did not come to rest"));
            }
            are_quiet(cluster)?;
            (leaders, spread) = (seen, begin.elapsed());
            pause(REST, stop)?;
            continue;
        }
        eprintln!("leaders spread after {:.1} s: {leaders:?}", spread.as_secs_f64());
        let cpu = |cluster: &Cluster| -> Duration { cluster.pids().filter_map(machine::cpu_time).sum() };
        let (from, before) = (Instant::now(), cpu(cluster));
        pause(plan.duration, stop)?;
        let used = cpu(cluster).saturating_sub(before);
        let core_percent = used.as_secs_f64() / from.elapsed().as_secs_f64() / f64::from(of.nodes) * 100.0;
        let rss_bytes = cluster.pids().filter_map(machine::rss_bytes).collect();
        // Rounds may be further apart than that rest: what was measured with one in it is no rest.
        if leading(cluster)? == leaders {
            return Ok(Rest { started, quiet, spread, core_percent, rss_bytes, leaders });
        }
        eprintln!("leaders moved once more: measuring again");
    }
}

fn pause(time: Duration, stop: &AtomicBool) -> Result<(), QuickError> {
    let until = Instant::now() + time;
    while Instant::now() < until {
        if stop.load(Ordering::Relaxed) {
            return Err(QuickError::Interrupted);
        }
        std::thread::sleep(LOOK.min(until.saturating_duration_since(Instant::now())));
    }
    Ok(())
}

/// Appends to groups at random, one at a time; returns how long each took, in microseconds.
fn append(plan: &IdlePlan, cluster: &Cluster, stop: &AtomicBool) -> Result<Vec<u64>, QuickError> {
    let config = iroh_raft::net::client::ClientConfig {
        cluster: cluster_id(cluster.name()),
        identity: cluster.client().clone(),
        nodes: cluster.addresses(),
        bind: None,
        limits: Default::default(),
    };
    let groups = u64::from(plan.cluster.groups);
    let work = async move {
        let client = Client::connect(config).await?;
        let mut latencies_us = Vec::with_capacity(APPENDS);
        let mut draw = 0x9e37_79b9_7f4a_7c15_u64;
        // Connections to all nodes, before anything is measured.
        for group in 1..=groups.min(16) {
            client.append(GroupId(group), RECORD).await?;
        }
        for _ in 0..APPENDS {
            tokio::time::sleep(APPEND_PAUSE).await;
            draw = draw.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let group = GroupId(1 + (draw >> 33) % groups);
            let begin = Instant::now();
            client.append(group, RECORD).await?;
            latencies_us.push(u64::try_from(begin.elapsed().as_micros()).unwrap_or(u64::MAX));
        }
        client.close();
        client.closed().await;
        Ok::<_, ClientError>(latencies_us)
    };
    let runtime = runtime()?;
    let latencies_us = interruptible(&runtime, work, stop)??;
    finish(&runtime);
    Ok(latencies_us)
}

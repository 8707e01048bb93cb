//! Random runs: safety while everything goes wrong, then agreement once it stops, and the same
//! outputs for the same seed.

use std::collections::BTreeMap;
use std::time::Duration;

use iroh_raft_core::{AnswerOn, GroupId, Input, LeaseReads, NodeId};

use crate::harness::{Cluster, Group, Options, Rng};

/// Replays one seed: `IROH_RAFT_SEED=17 cargo test -p iroh-raft-core --test core -- chaos`.
fn seeds(count: u64) -> Vec<u64> {
    match replayed_seed() {
        Some(seed) => vec![seed],
        None => (0..count).collect(),
    }
}

#[expect(clippy::disallowed_methods, reason = "the one thing a test takes from outside: what to replay")]
fn replayed_seed() -> Option<u64> {
    let seed = std::env::var("IROH_RAFT_SEED").ok()?;
    Some(seed.parse().expect("IROH_RAFT_SEED is a number"))
}

fn options(seed: u64) -> Options {
    let mut rng = Rng::new(seed ^ 0xabcd);
    let mut options = Options::new(seed);
    let machine = |group: Group| Group { has_state_machine: true, ..group };
    options.groups = match rng.within(0..4) {
        0 => vec![Group::new(1, &[1, 2, 3])],
        1 => vec![machine(Group::new(1, &[1, 2, 3])), Group::new(2, &[1, 2, 3]), Group::new(3, &[2])],
        2 => vec![machine(Group::new(7, &[1, 2, 3]))],
        _ => vec![Group { learners: vec![3], ..Group::new(5, &[1]) }, Group::new(6, &[1, 2])],
    };
    options.loss = rng.within(0..3) * rng.within(0..60);
    options.duplicates = rng.within(0..100);
    options.delay = 20_000..rng.within(100_000..30_000_000);
    options.flush_delay = 50_000..rng.within(100_000..20_000_000);
    options.patience = 5..rng.within(50..3_000);
    options.tail_max = rng.within(0..20) as usize;
    options.config.window_bytes_max = if rng.chance(500) { 2_000 } else { 1 << 20 };
    options.config.entry_bytes_max = 1 << rng.within(5..12);
    options.config.entry_records_max = rng.within(1..40) as usize;
    options.config.message_bytes_max = 1 << rng.within(6..14);
    options.config.inflight_messages_max = rng.within(1..20) as usize;
    options.config.apply_bytes_max = 1 << rng.within(4..12);
    options.config.apply_lag_records_max = rng.within(1..200) as usize;
    options.config.pending_bytes_max = 1 << rng.within(11..16);
    options.config.lease_reads = rng.chance(500).then(LeaseReads::default);
    options.config.quiet_after = rng.chance(700).then(|| Duration::from_millis(rng.within(100..400)));
    options
}

fn run(seed: u64) -> Cluster {
    let mut cluster = Cluster::new(options(seed));
    while cluster.now < 2_500_000_000 {
        cluster.run_for(Duration::from_micros(cluster.rng.clone().within(200..30_000)));
        act(&mut cluster);
    }
    cluster.settle();
    cluster
}

fn act(cluster: &mut Cluster) {
    let node = NodeId(cluster.rng.within(1..cluster.options.nodes + 1));
    let at = cluster.rng.within(0..cluster.options.groups.len() as u64) as usize;
    let group = cluster.options.groups[at].id;
    let has_state_machine = cluster.options.groups[at].has_state_machine;
    let choice = cluster.rng.within(0..1000);
    let target = cluster.leader(group).filter(|_| !choice.is_multiple_of(10)).unwrap_or(node);
    match choice {
        0..=24 if cluster.is_up(node) => cluster.crash(node),
        0..=119 if !cluster.is_up(node) => cluster.start(node),
        25..=34 if cluster.is_up(node) => {
            cluster.fail_disk(node);
            cluster.run_for(Duration::from_millis(1));
            cluster.crash(node);
        }
        35..=54 => cluster.isolate(node),
        55..=94 => cluster.cut.clear(),
        95..=119 if cluster.is_up(target) => drop(cluster.transfer(target, group, None)),
        120..=139 if cluster.is_up(target) => cluster.feed(target, Input::Unreachable { node }),
        140..=239 if cluster.is_up(target) => drop(cluster.read_any(target, group)),
        240..=339 if cluster.is_up(node) => read_some(cluster, node, group),
        340.. if cluster.is_up(target) => {
            for _ in 0..cluster.rng.within(1..6) {
                let records = cluster.rng.within(1..20);
                let wants_response = has_state_machine && cluster.rng.chance(500);
                let answer = if wants_response { AnswerOn::Apply } else { AnswerOn::Commit };
                cluster.propose(target, group, records, answer);
            }
        }
        _ => {}
    }
}

fn read_some(cluster: &mut Cluster, node: NodeId, group: GroupId) {
    let end = cluster.status(node, group).map_or(0, |status| status.end.0);
    let from = cluster.rng.within(0..end + 2);
    cluster.read_records(node, group, from, 256);
}

#[test]
fn a_thousand_seeds_are_safe_and_each_gives_the_same_bytes_twice() {
    let mut seen: BTreeMap<&str, u64> = BTreeMap::new();
    let mut bytes = 0;
    for seed in seeds(1000) {
        let outcome = std::panic::catch_unwind(|| {
            let first = run(seed);
            let second = run(seed);
            assert_eq!(first.checker.trace.result(), second.checker.trace.result());
            (first.seen, first.checker.trace.bytes)
        });
        let (counts, size) = outcome.unwrap_or_else(|panic| {
            println!("seed {seed} failed; replay with IROH_RAFT_SEED={seed}");
            std::panic::resume_unwind(panic)
        });
        counts.into_iter().for_each(|(what, count)| *seen.entry(what).or_default() += count);
        bytes += size;
    }
    println!("{bytes} bytes of outputs compared; seen {seen:?}");
    if replayed_seed().is_none() {
        let rare = [
            "appended",
            "cut",
            "fetch",
            "records",
            "read ready",
            "unknown",
            "not leader",
            "busy",
            "timeout",
            "past end",
            "fenced",
        ];
        rare.iter()
            .for_each(|what| assert!(seen.get(what).is_some_and(|count| *count > 50), "hardly any {what}"));
    }
}

//! How a node is at one moment: what the pages are made of.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use iroh_raft::storage::ShardOptions;
use iroh_raft::{Engine, EngineStats, GroupStatus, RingReport, Role, ThreadCost};
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::health::{Facts, Health};
use super::machine::Machine;
use crate::config::settings::NodeConfig;

/// How long what the shards said holds: whoever looks more often gets the same again.
const ASK_PAUSE: Duration = Duration::from_secs(1);
/// How long the shards may take to say it; less than a connection may take.
const ASK_DEADLINE: Duration = Duration::from_secs(2);
/// Groups that are named; of the others the number is told.
const NAMED_MAX: usize = 8;

/// What does not change while a node runs.
#[derive(Clone, Debug)]
pub(super) struct About {
    pub(super) node: u64,
    pub(super) cluster: String,
    pub(super) free_bytes_min: u64,
    free_bytes_wanted: u64,
    data_dir: PathBuf,
}

impl About {
    pub(super) fn of(config: &NodeConfig) -> About {
        let engine = &config.engine;
        let ShardOptions { free_bytes_min, journal_bytes_max, .. } = engine.storage;
        About {
            node: engine.node.0,
            cluster: config.cluster.clone(),
            free_bytes_min,
            free_bytes_wanted: free_bytes_min
                .saturating_add(journal_bytes_max.saturating_mul(u64::from(engine.shards))),
            data_dir: engine.data_dir.clone(),
        }
    }
}

/// How a node is.
#[derive(Debug)]
pub(super) struct Sample {
    pub(super) about: Arc<About>,
    pub(super) uptime: Duration,
    pub(super) is_draining: bool,
    pub(super) stats: EngineStats,
    pub(super) rings: Vec<RingReport>,
    pub(super) threads: Vec<ThreadCost>,
    pub(super) peers_known: u64,
    pub(super) asked: Asked,
    pub(super) health: Health,
}

/// What is not looked at more often than once in [`ASK_PAUSE`].
#[derive(Clone, Debug)]
pub(super) struct Asked {
    at: Instant,
    /// How the groups stand, or why that is not known.
    pub(super) groups: Result<Groups, String>,
    pub(super) machine: Machine,
}

/// How all groups of a node stand, together: as many numbers for ten thousand as for one.
#[derive(Clone, Default, Debug)]
pub(super) struct Groups {
    pub(super) count: u64,
    pub(super) led: u64,
    pub(super) quiet: u64,
    pub(super) term_max: u64,
    /// Entries that are here and not committed.
    pub(super) uncommitted_entries: u64,
    /// Entries that are committed and not applied.
    pub(super) unapplied_entries: u64,
    pub(super) kept_records: u64,
    pub(super) is_disk_hung: bool,
    /// A group is in one of these at most.
    pub(super) quarantined: Some8,
    pub(super) under_repair: Some8,
    pub(super) leaderless: Some8,
}

/// Groups: how many, and the first of them.
#[derive(Clone, Default, Debug)]
pub(super) struct Some8 {
    pub(super) count: u64,
    first: Vec<u64>,
}

impl Some8 {
    pub(super) fn add(&mut self, group: u64) {
        self.count += 1;
        if self.first.len() < NAMED_MAX {
            self.first.push(group);
        }
    }
}

impl fmt::Display for Some8 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let named: Vec<_> = self.first.iter().map(u64::to_string).collect();
        let more = if self.count > self.first.len() as u64 { ", ..." } else { "" };
        write!(f, "{} groups ({}{more})", self.count, named.join(", "))
    }
}

impl Groups {
    fn of(statuses: &[GroupStatus]) -> Groups {
        let mut groups = Groups::default();
        for status in statuses {
            groups.count += 1;
            groups.led += u64::from(status.role == Role::Leader);
            groups.quiet += u64::from(status.is_quiet);
            groups.term_max = groups.term_max.max(status.term.0);
            groups.uncommitted_entries += status.last.0.saturating_sub(status.commit.0);
            groups.unapplied_entries += status.commit.0.saturating_sub(status.applied.0);
            groups.kept_records += status.end.0.saturating_sub(status.first.0);
            groups.is_disk_hung |= status.is_disk_hung;
            if status.is_quarantined {
                groups.quarantined.add(status.group.0);
            } else if status.is_under_repair {
                groups.under_repair.add(status.group.0);
            } else if status.leader.is_none() {
                groups.leaderless.add(status.group.0);
            }
        }
        groups
    }
}

/// Looks at a node.
#[derive(Debug)]
pub(super) struct Sampler {
    engine: Engine,
    about: Arc<About>,
    began: Instant,
    is_draining: AtomicBool,
    /// As the node came up.
    first: Machine,
    /// Held while the shards are asked: who comes meanwhile waits for the same answer.
    asked: Mutex<Option<Asked>>,
}

impl Sampler {
    pub(super) fn new(engine: Engine, about: About) -> Sampler {
        Sampler {
            engine,
            first: Machine::look(&about.data_dir, &Machine::default()),
            about: Arc::new(about),
            began: Instant::now(),
            is_draining: AtomicBool::new(false),
            asked: Mutex::new(None),
        }
    }

    /// The node stops from now on.
    pub(super) fn drain(&self) {
        self.is_draining.store(true, Ordering::Relaxed);
    }

    /// How the node is now; what the shards were asked may be [`ASK_PAUSE`] old.
    pub(super) async fn take(&self) -> Sample {
        let asked = self.ask().await;
        let (stats, peers_known) = (self.engine.stats(), self.engine.peers_known() as u64);
        let is_draining = self.is_draining.load(Ordering::Relaxed);
        let facts = Facts {
            is_draining,
            failure: self.engine.failure().map(|failure| failure.to_string()),
            groups: &asked.groups,
            peers_known,
            peers_connected: stats.bridge.peers_connected,
            disk: asked.machine.disk,
            free_bytes_min: self.about.free_bytes_min,
            free_bytes_wanted: self.about.free_bytes_wanted,
        };
        let health = Health::of(self.about.node, &facts);
        Sample {
            about: self.about.clone(),
            uptime: self.began.elapsed(),
            is_draining,
            stats,
            rings: self.engine.rings(),
            threads: self.engine.thread_costs(),
            peers_known,
            health,
            asked,
        }
    }

    async fn ask(&self) -> Asked {
        let mut last = self.asked.lock().await;
        let now = Instant::now();
        if let Some(asked) = last.as_ref().filter(|asked| now - asked.at < ASK_PAUSE) {
            return asked.clone();
        }
        let statuses = tokio::time::timeout(ASK_DEADLINE, self.engine.statuses()).await;
        let groups = match statuses {
            Ok(Ok(statuses)) => Ok(Groups::of(&statuses)),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err(format!("no answer within {} s", ASK_DEADLINE.as_secs())),
        };
        let before = last.as_ref().map_or(self.first, |asked| asked.machine);
        let machine = Machine::look(&self.about.data_dir, &before);
        last.insert(Asked { at: Instant::now(), groups, machine }).clone()
    }
}

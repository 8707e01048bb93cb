//! Says in words what is in a data folder, and whether it is sound, while no node runs on it.

use std::fmt::{self, Write as _};
use std::path::Path;

use iroh_raft_core::batch::Batch;
use iroh_raft_core::group_command::GroupCommands;
use iroh_raft_core::{
    EntryKind, Fetch, FetchError, FetchFrom, FetchId, FlushSeq, GroupId, GroupState, Index, LogDamage,
    LogEntry, NodeId, ShardId, decode_recovery,
};

use crate::error::{Result, StorageError};
use crate::folder::OfflineFolder;
use crate::manifest::FolderIdentity;
use crate::recovery::RecoveryReport;
use crate::scrub::Damage;
use crate::shard::ReadShard;

/// Bytes that are verified, or read to be dumped, at a time.
const STEP_BYTES: usize = 4 << 20;
/// Bytes of a record that a dump shows.
const SHOWN_BYTES: usize = 32;

/// What a check of a data folder found.
#[derive(Debug)]
#[non_exhaustive]
pub struct CheckReport {
    /// Whose folder it is.
    pub identity: FolderIdentity,
    /// Damaged or missing small files.
    pub problems: Vec<StorageError>,
    /// Every shard: what is in it, or why it cannot be opened.
    pub shards: Vec<(ShardId, Result<ShardCheck>)>,
}

/// What a check of a shard found.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
#[non_exhaustive]
pub struct ShardCheck {
    /// Newest durable flush.
    pub last_seq: FlushSeq,
    /// What recovery would find.
    pub report: RecoveryReport,
    /// Number of groups.
    pub groups: u64,
    /// Entries in their logs.
    pub entries: u64,
    /// Blocks that were verified, of both files.
    pub blocks: u64,
    /// Bytes of these.
    pub bytes: u64,
    /// Groups whose log has holes or damage that opening notices.
    pub damaged_groups: Vec<(GroupId, LogDamage)>,
    /// Groups whose repair from their peers had begun and was not done, with the last entry that they have.
    pub groups_under_repair: Vec<(GroupId, Index)>,
    /// Damage that only reading notices.
    pub damage: Vec<Damage>,
}

impl ShardCheck {
    /// Whether nothing is wrong.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        self.damaged_groups.is_empty() && self.damage.is_empty()
    }
}

impl CheckReport {
    /// Whether nothing is wrong.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        let is_sound =
            |shard: &(ShardId, Result<ShardCheck>)| shard.1.as_ref().is_ok_and(ShardCheck::is_sound);
        self.problems.is_empty() && self.shards.iter().all(is_sound)
    }
}

/// Reads and verifies everything in a data folder that no node runs on. Changes nothing.
///
/// # Errors
/// [`StorageError`] when the folder itself cannot be looked at. What is wrong inside is in the report.
pub fn check(path: impl AsRef<Path>) -> Result<CheckReport> {
    let folder = OfflineFolder::open(path)?;
    let problems = [folder.boot_epoch().err(), folder.peers().err(), folder.known_nodes().err()];
    let problems = problems.into_iter().flatten().collect();
    let identity = folder.identity().clone();
    let shards = identity.placement.shards();
    let shards = shards.map(|shard| (shard, folder.open_shard(shard).and_then(check_shard))).collect();
    Ok(CheckReport { identity, problems, shards })
}

fn check_shard(mut shard: ReadShard) -> Result<ShardCheck> {
    let mut check = ShardCheck {
        last_seq: shard.last_seq,
        groups: shard.groups.len() as u64,
        entries: shard.groups.iter().map(|group| group.last.0 - group.start.index.0).sum(),
        damaged_groups: shard.groups.iter().filter_map(|group| Some((group.group, group.damage?))).collect(),
        groups_under_repair: (shard.groups.iter())
            .filter(|group| group.is_under_repair && group.damage.is_none())
            .map(|group| (group.group, group.last))
            .collect(),
        ..ShardCheck::default()
    };
    loop {
        let step = shard.scrubber.step(STEP_BYTES as u64)?;
        check.blocks += step.blocks;
        check.bytes += step.bytes;
        check.damage.extend(step.damage);
        if step.is_round_done {
            break;
        }
    }
    check.report = shard.report;
    Ok(check)
}

impl fmt::Display for CheckReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let FolderIdentity { cluster, node, placement } = &self.identity;
        writeln!(
            f,
            "data folder of node {node} in cluster {cluster}, shards: {}, groups placed by name: {}",
            placement.shard_count(),
            placement.placed().len()
        )?;
        for problem in &self.problems {
            writeln!(f, "PROBLEM: {problem}")?;
        }
        for (shard, check) in &self.shards {
            match check {
                Ok(check) => write!(f, "shard {shard}: {check}")?,
                Err(error) => writeln!(f, "PROBLEM in shard {shard}: {error}")?,
            }
        }
        if self.is_sound() {
            write!(f, "everything that is stored was read and is sound")
        } else {
            write!(f, "this folder is damaged: the lines with PROBLEM say where")
        }
    }
}

impl fmt::Display for ShardCheck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{} groups with {} entries; {} blocks of {} bytes verified; last flush {}, of which {} was acknowledged",
            self.groups, self.entries, self.blocks, self.bytes, self.last_seq, self.report.acknowledged
        )?;
        if self.report.torn > 0 {
            writeln!(
                f,
                "  a torn flush at the end, never acknowledged, will be cut at the next start: harmless"
            )?;
        }
        for (group, LogDamage { first, last }) in &self.damaged_groups {
            writeln!(
                f,
                "PROBLEM: group {group} lacks index {first} to {last}: its replica will not vote until its leader \
                 has given it these entries again"
            )?;
        }
        for (group, last) in &self.groups_under_repair {
            writeln!(
                f,
                "  group {group} is under repair, and has entries up to {last}: it will go on at the next start"
            )?;
        }
        for damage in &self.damage {
            writeln!(f, "PROBLEM: {damage}")?;
        }
        Ok(())
    }
}

/// Writes a group's log as text, a line for each entry and one for each of its records, for the
/// entries `from` to `to` (inclusive) that are there.
///
/// # Errors
/// [`DumpError`]: the group is not there, its log cannot be read, or `out` fails.
pub fn dump(
    shard: &ReadShard,
    group: GroupId,
    from: Index,
    to: Index,
    out: &mut impl std::io::Write,
) -> Result<(), DumpError> {
    let state = shard.groups.iter().find(|state| state.group == group);
    let state = state.ok_or(DumpError::NoSuchGroup { group })?;
    writeln!(out, "{}", describe(state))?;
    let (mut next, to) = (from.max(state.start.index.next()), to.min(state.last));
    while next <= to {
        let fetch = Fetch { id: FetchId(0), group, from: FetchFrom::Index(next), to, bytes_max: STEP_BYTES };
        let entries = shard.reader.read(&fetch).map_err(|error| DumpError::Read { index: next, error })?;
        for entry in &entries {
            out.write_all(describe_entry(entry).as_bytes())?;
            next = entry.index.next();
        }
    }
    Ok(())
}

/// Why a dump ended early.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DumpError {
    /// The shard has no such group.
    #[error("group {group} is not in this shard: name another group or shard")]
    NoSuchGroup {
        /// The group.
        group: GroupId,
    },
    /// The log cannot be read from here on.
    #[error("the log cannot be read from index {index} on ({error}): go on behind it")]
    Read {
        /// First index wanted.
        index: Index,
        /// Why it cannot be read.
        error: FetchError,
    },
    /// The output failed.
    #[error("cannot write the dump: {0}")]
    Write(#[from] std::io::Error),
}

fn describe(state: &GroupState) -> String {
    let GroupState { group, hard_state, start, last, next_offset, .. } = state;
    let mut text = format!(
        "group {group}: term {}, vote {}, commit {}; starts after index {} (term {}), next offset {next_offset}, last index {last}; voters",
        hard_state.term,
        match hard_state.vote {
            NodeId(0) => "none".to_owned(),
            node => node.to_string(),
        },
        hard_state.commit,
        start.index,
        start.term,
    );
    for voter in &state.conf_state.voters {
        let _ = write!(text, " {voter}");
    }
    text
}

fn describe_entry(entry: &LogEntry) -> String {
    let LogEntry { index, term, kind, data } = entry;
    let mut text = format!("index {index} term {term} ");
    let _ = match kind {
        EntryKind::Normal if data.is_empty() => writeln!(text, "empty"),
        EntryKind::Normal if entry.group_commands().is_some() => match GroupCommands::decode(data) {
            Ok(GroupCommands { at, commands }) => writeln!(text, "commands at {} ms {commands:?}", at.0),
            Err(error) => writeln!(text, "bytes {} that are no commands: {error}", data.len()),
        },
        EntryKind::Normal => match Batch::parse(data) {
            Ok(batch) => {
                let _ = writeln!(text, "batch of {} at {} ms", batch.count(), batch.at().0);
                batch.records().try_for_each(|(offset, record)| {
                    let shown = record.get(..SHOWN_BYTES).unwrap_or(record).escape_ascii();
                    let rest = if record.len() > SHOWN_BYTES { "..." } else { "" };
                    writeln!(text, "  offset {offset} bytes {} \"{shown}\"{rest}", record.len())
                })
            }
            Err(error) => writeln!(text, "bytes {} that are no batch: {error}", data.len()),
        },
        EntryKind::ConfChangeV2 if let Some(survivor) = decode_recovery(data) => {
            writeln!(text, "RECOVERY of the lost quorum: node {survivor} is the only member")
        }
        _ => writeln!(text, "configuration change, bytes {}", data.len()),
    };
    text
}

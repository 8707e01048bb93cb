//! Every fault of the fault disk, the rule for it, and the test that shows the rule.
//!
//! | fault | rule | test |
//! |---|---|---|
//! | EIO, ENOSPC, short write or panic on a write, a change of length or a sync | the writer is fenced for good, nothing is acknowledged by it; never retried | `fence::a_fault_at_each_change_of_a_commit_fences_the_writer` |
//! | the same under the mover | the mover is fenced for good; flushes go on; nothing is lost | `a_fault_at_each_change_of_a_move_fences_the_mover_and_loses_nothing` |
//! | EIO or a panic on a read | an error that says so, never other content | `a_read_that_fails_is_an_error` |
//! | disk full | refused before (`is_space_low`); then fenced for writing, open for reading, writing again when told | `care::little_room_is_said_while_there_is_still_some`, `care::a_full_medium_leaves_a_shard_that_reads_and_one_that_writes_again_when_told` |
//! | power cut: unsynced writes lost, torn, reordered | everything acknowledged is there; a torn end is cut and counted | `crash_images::no_crash_loses_what_was_acknowledged`, `damage::each_flipped_byte_of_the_last_block_is_cut_if_it_was_never_acknowledged` |
//! | redb falls back over an acknowledged commit | noticed by the mark | `damage::bits_that_rot_in_the_file_after_a_kill_never_shorten_what_was_acknowledged` |
//! | bit flips at rest, writes lost or misdirected | noticed at start, by the scrub or by the read; never served, no vote forgotten | `no_lying_disk_makes_a_log_lie` |
//! | power cut in the middle of any write of a commit | the flush is there whole or not at all, and the shard goes on | `a_cut_at_each_change_of_a_commit_leaves_the_flush_whole_or_gone` |
//! | a sync fails, and the kernel takes what it could not write for written | a restart reads from the medium, not from memory | `what_a_failed_sync_left_in_memory_is_not_believed` |
//! | stall | it takes longer; nothing else | `a_stall_takes_time_and_nothing_else` |

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use iroh_raft_core::{Append, FetchError, FetchFrom, GroupAppend, GroupId, Index, ShardId};
use iroh_raft_storage::fault::{Fault, FaultDisk, Files, Operation, Trouble, after_power_cut};
use iroh_raft_storage::{DataFolder, FileKind, OpenShard, ShardOptions, StorageError};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use crate::common::*;

const FOLDER: &str = "/node";
const SEEDS: u64 = 600;
/// Nothing is read from redb's memory.
const UNCACHED: ShardOptions = ShardOptions { journal_cache_bytes: 0, log_cache_bytes: 0, ..OPTIONS };

fn open_on(disk: &FaultDisk) -> Result<(DataFolder, OpenShard), StorageError> {
    open_with(disk, OPTIONS)
}

fn open_with(disk: &FaultDisk, options: ShardOptions) -> Result<(DataFolder, OpenShard), StorageError> {
    let mut folder = DataFolder::open_on(FOLDER, IDENTITY, Arc::new(disk.clone()))?;
    let shard = folder.open_shard(ShardId(0), options)?;
    Ok((folder, shard))
}

/// Each flush has an entry of three groups, and commits those before.
fn flush(seq: u64) -> Append {
    let part = |group| GroupAppend {
        hard_state: Some(hard_state(seq, seq - 1)),
        ..entries_only(group, vec![entry(seq, seq, 3 * (seq - 1), 3)])
    };
    append(seq, (1..=3).map(part).collect())
}

#[test]
fn a_fault_at_each_change_of_a_move_fences_the_mover_and_loses_nothing() {
    for trouble in [Trouble::Eio, Trouble::NoSpace, Trouble::Panic, Trouble::Short] {
        let mut after = 0;
        loop {
            let disk = FaultDisk::default();
            let (folder, mut shard) = open_on(&disk).unwrap();
            let mut model = Model::default();
            for seq in 1..=5 {
                shard.writer.run_once(&[flush(seq)]).unwrap();
                model.take(&flush(seq));
            }
            disk.plant(Fault {
                kind: Some(FileKind::Log),
                operation: Operation::Change,
                after,
                times: 1,
                trouble,
            });
            let moved = shard.mover.run_once();
            disk.heal();
            let has_struck = disk.struck() > 0;
            assert_eq!(moved.is_err(), has_struck, "{trouble:?} at change {after}");
            if let Err(error) = moved {
                match (trouble, &error) {
                    (Trouble::NoSpace, StorageError::NoSpace { .. }) => {}
                    (Trouble::Panic, StorageError::JournalPanicked { .. }) => {}
                    (Trouble::Eio | Trouble::Short, StorageError::Journal { .. }) => {}
                    _ => panic!("{trouble:?} at change {after}: {error}"),
                }
                let again = shard.mover.run_once().unwrap_err();
                assert!(matches!(again, StorageError::Fenced { .. }), "{again}");
            }
            shard.writer.run_once(&[flush(6)]).unwrap();
            model.take(&flush(6));
            for group in 1..=3 {
                model.check_reads(&shard.reader, GroupId(group));
            }
            drop((folder, shard));
            model.check(&open_on(&disk).unwrap().1);
            if !has_struck {
                break;
            }
            after += 1;
        }
        assert!(after > 5, "a move writes pages, headers and syncs: {after}");
    }
}

/// A lasting disk with a shard that holds one flush, and that shard.
fn after_one_flush() -> (FaultDisk, DataFolder, OpenShard, Model) {
    let disk = FaultDisk::lasting(7);
    let (folder, mut shard) = open_on(&disk).unwrap();
    let mut model = Model::default();
    shard.writer.run_once(&[flush(1)]).unwrap();
    model.take(&flush(1));
    (disk, folder, shard, model)
}

#[test]
fn a_cut_at_each_change_of_a_commit_leaves_the_flush_whole_or_gone() {
    let (mut whole, mut gone) = (0, 0);
    for after in 0.. {
        let (disk, folder, mut shard, mut model) = after_one_flush();
        let trouble = Trouble::Cut;
        disk.plant(Fault { kind: None, operation: Operation::Change, after, times: 1, trouble });
        let flushed = shard.writer.run_once(&[flush(2)]);
        assert_eq!(flushed.is_err(), disk.is_dead(), "a cut at change {after}");
        if !disk.is_dead() {
            break;
        }
        drop((folder, shard));
        let disk = disk.restart(Some(after));
        let (folder, mut shard) = open_on(&disk).unwrap();
        let is_whole = shard.last_seq.0 == 2;
        *if is_whole { &mut whole } else { &mut gone } += 1;
        if is_whole {
            model.take(&flush(2));
        }
        model.check(&shard);
        let next = flush(shard.last_seq.0 + 1);
        shard.writer.run_once(std::slice::from_ref(&next)).unwrap();
        model.take(&next);
        drop((folder, shard));
        model.check(&open_on(&disk.restart(Some(after))).unwrap().1);
    }
    assert!(gone > 3 && whole + gone > 5, "a commit writes pages and a header, then syncs: {whole}, {gone}");
}

#[test]
fn what_a_failed_sync_left_in_memory_is_not_believed() {
    let (disk, folder, mut shard, mut model) = after_one_flush();
    let (kind, trouble) = (Some(FileKind::Journal), Trouble::Eio);
    disk.plant(Fault { kind, operation: Operation::Sync, after: 0, times: 1, trouble });
    shard.writer.run_once(&[flush(2)]).unwrap_err();
    drop((folder, shard));
    // The process ends, the machine does not: in memory all of the flush is there.
    let disk = disk.restart(None);
    let (folder, mut shard) = open_on(&disk).unwrap();
    model.check(&shard);
    shard.writer.run_once(&[flush(2)]).unwrap();
    model.take(&flush(2));
    drop((folder, shard));
    model.check(&open_on(&disk.restart(Some(3))).unwrap().1);
}

#[test]
fn a_read_that_fails_is_an_error() {
    for (trouble, kind) in [
        (Trouble::Eio, FileKind::Log),
        (Trouble::Eio, FileKind::Journal),
        (Trouble::Panic, FileKind::Log),
        (Trouble::Panic, FileKind::Journal),
    ] {
        let disk = FaultDisk::default();
        let (folder, mut shard) = open_on(&disk).unwrap();
        for seq in 1..=400 {
            shard.writer.run_once(&[flush(seq)]).unwrap();
        }
        if kind == FileKind::Log {
            while shard.mover.run_once().unwrap().blocks > 0 {}
        }
        drop((folder, shard));
        // Recovery reads the journal through: nothing of it may stay in redb's cache.
        let (_folder, shard) = open_with(&disk, UNCACHED).unwrap();
        let read =
            || shard.reader.read(&fetch(GroupId(1), FetchFrom::Index(Index(1)), Index(300), usize::MAX));
        assert_eq!(read().unwrap().len(), 300);
        disk.plant(Fault {
            kind: Some(kind),
            operation: Operation::Read,
            after: 0,
            times: u64::MAX,
            trouble,
        });
        let error = read().unwrap_err();
        assert!(disk.struck() > 0, "{trouble:?} of {kind:?}: {error}");
        let is_told = match trouble {
            Trouble::Panic => matches!(error, FetchError::Corrupt { .. }),
            _ => error == FetchError::Io,
        };
        assert!(is_told, "{trouble:?} of {kind:?}: {error}");
    }
}

#[test]
fn a_stall_takes_time_and_nothing_else() {
    let disk = FaultDisk::default();
    let (_folder, mut shard) = open_on(&disk).unwrap();
    let trouble = Trouble::Stall { us: 250 };
    disk.plant(Fault { kind: None, operation: Operation::Sync, after: 1, times: 2, trouble });
    for seq in 1..=5 {
        assert_eq!(shard.writer.run_once(&[flush(seq)]).unwrap().last.0, seq);
    }
    assert_eq!((disk.struck(), disk.stalled_us()), (2, 500));
}

/// What a disk can do behind everybody's back.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Lie {
    /// A write is not made.
    Lost,
    /// A write lands on another page.
    Misdirected,
    /// A file does not get the length it should.
    Length,
    /// No sync is made any more, and then the power fails.
    Syncs,
    /// Bits flip at rest.
    Flip,
}

/// Where a lie strikes.
#[derive(Clone, Copy, Debug)]
struct Target {
    lie: Lie,
    kind: FileKind,
}

impl Target {
    fn choose(random: &mut SmallRng) -> Target {
        let lies = [Lie::Lost, Lie::Misdirected, Lie::Length, Lie::Syncs, Lie::Flip];
        let lie = lies[random.random_range(0..lies.len())];
        let kinds: &[FileKind] = match lie {
            // The mark gets its length when it is made, and is never synced after that.
            Lie::Length | Lie::Syncs => &[FileKind::Journal, FileKind::Log],
            _ => &[FileKind::Journal, FileKind::Log, FileKind::Mark],
        };
        Target { lie, kind: kinds[random.random_range(0..kinds.len())] }
    }

    fn path(self) -> PathBuf {
        let name = match self.kind {
            FileKind::Journal => "journal.redb",
            FileKind::Log => "log.redb",
            FileKind::Mark => "acked",
        };
        Path::new(FOLDER).join("shard-0").join(name)
    }

    fn plant(self, disk: &FaultDisk, random: &mut SmallRng) {
        let (operation, trouble, times, after) = match self.lie {
            Lie::Lost => (Operation::Write, Trouble::Lost, 1, random.random_range(0..12)),
            Lie::Misdirected => (Operation::Write, Trouble::Misdirected, 1, random.random_range(0..12)),
            Lie::Length => (Operation::SetLen, Trouble::Lost, 1, 0),
            Lie::Syncs => (Operation::Sync, Trouble::Lost, u64::MAX, random.random_range(0..4)),
            Lie::Flip => return,
        };
        disk.plant(Fault { kind: Some(self.kind), operation, after, times, trouble });
    }

    /// Flips bits where something is.
    fn flip(self, disk: &FaultDisk, random: &mut SmallRng) {
        let path = self.path();
        let files = disk.files();
        let used: Vec<_> =
            files[&path].iter().enumerate().filter(|(_, byte)| **byte != 0).map(|(at, _)| at).collect();
        for _ in 0..random.random_range(1..4) {
            disk.flip(&path, used[random.random_range(0..used.len())], 1 << random.random_range(0..8));
        }
    }
}

/// A log on a disk that lies, and what has to be in it.
struct Liar {
    disk: FaultDisk,
    options: ShardOptions,
    /// What was acknowledged.
    model: Model,
    /// With the flush that failed, which may be there or not.
    failed: Option<Model>,
    is_noticed: bool,
    /// Flushes from one move to the next.
    moves: u64,
    /// Records of each third entry.
    records: u64,
}

impl Liar {
    /// Flushes what is whole, and moves now and then, until something is noticed.
    fn work(&mut self, shard: &mut OpenShard, groups: &[GroupId], flushes: u64) {
        for _ in 0..flushes {
            let append = self.next_flush(groups);
            let mut after = self.model.clone();
            after.take(&append);
            if shard.writer.run_once(&[append]).is_err() {
                self.is_noticed = true;
                self.failed = Some(after);
                return;
            }
            self.model = after;
            if self.model.last_seq.is_multiple_of(self.moves) && shard.mover.run_once().is_err() {
                self.is_noticed = true;
                return;
            }
        }
    }

    /// The next entry of each group, which commits those before.
    fn next_flush(&self, groups: &[GroupId]) -> Append {
        let seq = self.model.last_seq + 1;
        let part = |group: &GroupId| {
            let known = self.model.groups.get(group).cloned().unwrap_or_default();
            let records = if seq.is_multiple_of(3) { self.records } else { 3 };
            GroupAppend {
                hard_state: Some(hard_state(seq, known.last())),
                ..entries_only(group.0, vec![entry(known.last() + 1, seq, known.next_offset(), records)])
            }
        };
        append(seq, groups.iter().map(part).collect())
    }

    /// Opens the disk and holds it against the model. Returns the shard and the groups of which nothing is
    /// damaged; `None` if it does not open.
    fn reopen(&mut self) -> Option<(DataFolder, OpenShard, Vec<GroupId>)> {
        let Ok((folder, mut shard)) = open_with(&self.disk, self.options.clone()) else {
            self.is_noticed = true;
            return None;
        };
        if let Some(failed) = self.failed.take().filter(|failed| failed.last_seq == shard.last_seq.0) {
            self.model = failed;
        }
        let model = &self.model;
        assert_eq!(shard.last_seq.0, model.last_seq, "an acknowledged flush is gone");
        assert_eq!(shard.groups.len(), model.groups.len(), "number of groups");
        let mut whole = Vec::new();
        for (group, known) in &model.groups {
            let state = shard.groups.iter().find(|state| state.group == *group);
            let state = state.unwrap_or_else(|| panic!("group {group} was forgotten"));
            assert_eq!(state.hard_state, known.hard_state, "the vote of group {group}");
            if state.damage.is_some() {
                continue;
            }
            assert_eq!((state.last.0, state.next_offset.0), (known.last(), known.next_offset()));
            let is_read = known.entries.iter().fold(true, |is_read, entry| {
                let one = fetch(*group, FetchFrom::Index(entry.index), entry.index, usize::MAX);
                match shard.reader.read(&one) {
                    Ok(read) => {
                        assert_eq!(read, std::slice::from_ref(entry), "group {group}");
                        is_read
                    }
                    Err(FetchError::Missing) => {
                        panic!("entry {} of group {group} is not missed", entry.index)
                    }
                    Err(_) => false,
                }
            });
            if is_read {
                whole.push(*group);
            }
        }
        let is_scrubbed = shard.scrubber.step(u64::MAX).is_ok_and(|report| report.damage.is_empty());
        self.is_noticed |= whole.len() < model.groups.len() || !is_scrubbed;
        Some((folder, shard, whole))
    }
}

/// Runs a workload over which the disk lies once. Returns what was told and what came of it.
///
/// About one seed in some thousands ends the process: over pages that are not those it wrote, redb panics
/// in a destructor while it unwinds, or recurses without end, and neither can be caught. Nothing is served
/// or acknowledged by that.
fn lie(seed: u64) -> (Lie, &'static str) {
    let mut random = SmallRng::seed_from_u64(seed);
    let target = Target::choose(&mut random);
    let disk = FaultDisk::with(Files::new(), seed);
    // A cache hides lies from the mover.
    let log_cache_bytes = if random.random_bool(0.5) { 0 } else { OPTIONS.log_cache_bytes };
    let options = ShardOptions { log_cache_bytes, ..OPTIONS };
    let (folder, mut shard) = open_with(&disk, options.clone()).unwrap();
    let groups: Vec<_> = (1..=3).map(GroupId).collect();
    let mut liar = Liar {
        disk: disk.clone(),
        model: Model::default(),
        failed: None,
        options,
        is_noticed: false,
        moves: random.random_range(2..8),
        records: 100,
    };
    liar.work(&mut shard, &groups, random.random_range(1..20));
    drop(disk.take_events());
    let before = disk.files();
    if target.lie == Lie::Length {
        // The files have to grow.
        liar.records = 10_000;
    }
    target.plant(&disk, &mut random);
    liar.work(&mut shard, &groups, random.random_range(4..14));
    liar.records = 100;
    let is_early = liar.is_noticed;
    if target.lie == Lie::Syncs {
        // The other files are whole: above all the mark, without which nobody could know.
        let cut = after_power_cut(&before, &disk.take_events(), random.random());
        let mut files = disk.files();
        files.insert(target.path(), cut[&target.path()].clone());
        liar.disk = FaultDisk::with(files, seed);
        drop((folder, shard));
    } else if random.random_bool(0.5) {
        drop((folder, shard));
    } else {
        // Killed: what redb had written is there, and it is repaired at the next start.
        liar.disk = FaultDisk::with(disk.files(), seed);
        drop((folder, shard));
    }
    liar.disk.heal();
    if target.lie == Lie::Flip {
        target.flip(&liar.disk, &mut random);
    } else if disk.struck() == 0 {
        return (target.lie, "never struck");
    }
    let Some((folder, mut shard, whole)) = liar.reopen() else {
        return (
            target.lie,
            if is_early { "noticed while writing and at start" } else { "noticed at start" },
        );
    };
    let is_found = liar.is_noticed;
    // It goes on with what is whole: nothing that was noticed is forgotten by that.
    liar.work(&mut shard, &whole, 10);
    drop((folder, shard));
    drop(liar.reopen());
    let outcome = match (is_early, is_found, liar.is_noticed) {
        (true, ..) => "noticed while writing",
        (_, true, _) => "noticed group by group or by the scrub",
        (.., true) => "noticed later",
        _ => "of no consequence",
    };
    (target.lie, outcome)
}

#[test]
fn no_lying_disk_makes_a_log_lie() {
    if let Ok(seed) = std::env::var("FAULT_SEED") {
        println!("{:?}", lie(seed.parse().expect("FAULT_SEED is a number")));
        return;
    }
    let mut outcomes = BTreeMap::new();
    let seeds = std::env::var("FAULT_SEEDS").map_or(SEEDS, |count| count.parse().expect("a number"));
    for seed in 0..seeds {
        println!("FAULT_SEED={seed}");
        let (lie, outcome) = lie(seed);
        *outcomes.entry(outcome).or_insert_with(BTreeMap::new).entry(format!("{lie:?}")).or_insert(0_u64) +=
            1;
    }
    println!("{outcomes:#?}");
    let count = |outcome| outcomes.get(outcome).map_or(0, |lies| lies.values().sum());
    assert!(outcomes.len() > 3, "the lies are of different kinds: {outcomes:?}");
    assert!(count("never struck") * 10 < seeds, "most lies are told: {outcomes:?}");
    assert!(count("of no consequence") * 4 < seeds * 3, "some lies matter: {outcomes:?}");
}

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
//! | stall | it takes longer; nothing else | `a_stall_takes_time_and_nothing_else` |

use std::path::Path;
use std::sync::Arc;

use iroh_raft_core::{Append, FetchError, FetchFrom, GroupAppend, GroupId, Index, ShardId};
use iroh_raft_storage::fault::{Fault, FaultDisk, Operation, Trouble};
use iroh_raft_storage::{DataFolder, FileKind, OpenShard, StorageError};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use crate::common::*;

const FOLDER: &str = "/node";
const SEEDS: u64 = 400;

fn open_on(disk: &FaultDisk) -> Result<(DataFolder, OpenShard), StorageError> {
    let mut folder = DataFolder::open_on(FOLDER, IDENTITY, Arc::new(disk.clone()))?;
    let shard = folder.open_shard(ShardId(0), OPTIONS)?;
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

#[test]
fn a_read_that_fails_is_an_error() {
    for (trouble, kind) in
        [(Trouble::Eio, FileKind::Log), (Trouble::Eio, FileKind::Journal), (Trouble::Panic, FileKind::Log)]
    {
        let disk = FaultDisk::default();
        let (folder, mut shard) = open_on(&disk).unwrap();
        for seq in 1..=400 {
            shard.writer.run_once(&[flush(seq)]).unwrap();
        }
        if kind == FileKind::Log {
            while shard.mover.run_once().unwrap().blocks > 0 {}
        }
        drop((folder, shard));
        // Opened with nothing in redb's cache.
        let (_folder, shard) = open_on(&disk).unwrap();
        disk.plant(Fault {
            kind: Some(kind),
            operation: Operation::Read,
            after: 0,
            times: u64::MAX,
            trouble,
        });
        let read =
            || shard.reader.read(&fetch(GroupId(1), FetchFrom::Index(Index(1)), Index(300), usize::MAX));
        let first = read();
        if disk.struck() > 0 {
            let error = first.unwrap_err();
            let is_told = match trouble {
                Trouble::Panic => matches!(error, FetchError::Corrupt { .. }),
                _ => error == FetchError::Io,
            };
            assert!(is_told, "{trouble:?}: {error}");
        } else {
            assert_eq!(first.unwrap().len(), 300);
        }
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
#[derive(Clone, Copy, Debug)]
enum Lie {
    Lost,
    Misdirected,
    Flip,
}

/// Runs a workload over which the disk lies once. Returns what came of it.
fn lie(seed: u64) -> &'static str {
    let mut random = SmallRng::seed_from_u64(seed);
    let lie = [Lie::Lost, Lie::Misdirected, Lie::Flip][random.random_range(0..3)];
    let disk = FaultDisk::with(Default::default(), seed);
    let (folder, mut shard) = open_on(&disk).unwrap();
    let mut model = Model::default();
    let strikes_at = random.random_range(1..30);
    let kind = if random.random_bool(0.5) { FileKind::Journal } else { FileKind::Log };
    for seq in 1..=30 {
        if seq == strikes_at {
            let trouble = match lie {
                Lie::Lost => Some(Trouble::Lost),
                Lie::Misdirected => Some(Trouble::Misdirected),
                Lie::Flip => None,
            };
            if let Some(trouble) = trouble {
                let after = random.random_range(0..12);
                disk.plant(Fault { kind: Some(kind), operation: Operation::Write, after, times: 1, trouble });
            }
        }
        if shard.writer.run_once(&[flush(seq)]).is_err() {
            return "noticed while writing";
        }
        model.take(&flush(seq));
        if seq % 7 == 0 && shard.mover.run_once().is_err() {
            break;
        }
    }
    if random.random_bool(0.5) {
        drop((folder, shard));
    } else {
        // Killed: what redb had written is there, and it is repaired at the next start.
        let files = disk.files();
        drop((folder, shard));
        return reopen(&FaultDisk::with(files, seed), &model, lie, kind, &mut random);
    }
    reopen(&disk, &model, lie, kind, &mut random)
}

fn reopen(disk: &FaultDisk, model: &Model, lie: Lie, kind: FileKind, random: &mut SmallRng) -> &'static str {
    if let Lie::Flip = lie {
        let name = if kind == FileKind::Journal { "journal.redb" } else { "log.redb" };
        let path = Path::new(FOLDER).join("shard-0").join(name);
        let bytes = disk.files()[&path].len();
        for _ in 0..random.random_range(1..4) {
            disk.flip(&path, random.random_range(0..bytes), 1 << random.random_range(0..8));
        }
    }
    let (_folder, mut shard) = match open_on(disk) {
        Ok(opened) => opened,
        Err(_) => return "noticed at start",
    };
    assert_eq!(shard.last_seq.0, model.last_seq, "an acknowledged flush is gone");
    let mut is_noticed = false;
    for (group, known) in &model.groups {
        let state = shard.groups.iter().find(|state| state.group == *group);
        let state = state.unwrap_or_else(|| panic!("group {group} was forgotten"));
        assert_eq!(state.hard_state, known.hard_state, "the vote of group {group}");
        if state.damage.is_some() {
            is_noticed = true;
            continue;
        }
        assert_eq!((state.last.0, state.next_offset.0), (known.last(), known.next_offset()));
        for entry in &known.entries {
            let one = fetch(*group, FetchFrom::Index(entry.index), entry.index, usize::MAX);
            match shard.reader.read(&one) {
                Ok(read) => assert_eq!(read, std::slice::from_ref(entry), "group {group}"),
                Err(_) => is_noticed = true,
            }
        }
    }
    let is_scrubbed = shard.scrubber.step(u64::MAX).is_ok_and(|report| report.damage.is_empty());
    match (is_noticed, is_scrubbed) {
        (true, false) => "noticed by reading, and by the scrub",
        (true, true) => "noticed by reading or at start, group by group",
        (false, false) => "noticed by the scrub",
        (false, true) => "of no consequence",
    }
}

#[test]
fn no_lying_disk_makes_a_log_lie() {
    if let Ok(seed) = std::env::var("FAULT_SEED") {
        println!("{}", lie(seed.parse().expect("FAULT_SEED is a number")));
        return;
    }
    let mut outcomes = std::collections::BTreeMap::new();
    let seeds = std::env::var("FAULT_SEEDS").map_or(SEEDS, |count| count.parse().expect("a number"));
    for seed in 0..seeds {
        println!("FAULT_SEED={seed}");
        *outcomes.entry(lie(seed)).or_insert(0) += 1;
    }
    println!("{outcomes:?}");
    assert!(outcomes.len() > 3, "the lies are of different kinds: {outcomes:?}");
}

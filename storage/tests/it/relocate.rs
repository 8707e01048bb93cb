//! Groups that get other shards: nothing of them changes, whatever happens meanwhile.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use iroh_raft_core::{FetchFrom, GroupAppend, GroupId, GroupState, LogEntry, Placement, ShardId, Snapshot};
use iroh_raft_storage::fault::{Event, Fault, FaultDisk, Files, Operation, Trouble, after_power_cut};
use iroh_raft_storage::snapshot::SNAPSHOT_CHUNK_BYTES;
use iroh_raft_storage::{DataFolder, FileKind, FolderIdentity, SnapshotHead, StorageError, Unmovable};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use crate::common::*;
use crate::model::{ChangePlan, PartPlan, make_batch};

const FOLDER: &str = "/node";
/// Random folders that move; `RELOCATE_SEEDS=n` for more.
const SEEDS: u64 = 40;
/// Groups have the numbers up to this one.
const GROUPS: u64 = 7;

/// All that a folder has of a group.
#[derive(Clone, PartialEq, Debug)]
struct Content {
    state: GroupState,
    entries: Vec<LogEntry>,
    snapshot: Option<(Snapshot, Vec<u8>)>,
}

type Contents = BTreeMap<GroupId, Content>;

fn placed(shards: u16, placed: &[(u64, u16)]) -> Placement {
    let placed = placed.iter().map(|(group, shard)| (GroupId(*group), ShardId(*shard))).collect();
    Placement::new(shards, placed).unwrap()
}

fn even(shards: u16) -> Placement {
    placed(shards, &[])
}

fn open_as(disk: &FaultDisk, placement: &Placement) -> Result<DataFolder, StorageError> {
    let identity = FolderIdentity { placement: placement.clone(), ..IDENTITY };
    DataFolder::open_on(FOLDER, identity, Arc::new(disk.clone()))
}

/// What a folder has, after every group was found on the shard where it is placed.
fn contents(disk: &FaultDisk, placement: &Placement) -> Result<Contents, StorageError> {
    let mut folder = open_as(disk, placement)?;
    let mut contents = Contents::new();
    for shard in placement.shards() {
        let stored = folder.open_shard_for_reading(shard)?;
        for state in &stored.groups {
            let group = state.group;
            assert_eq!(placement.shard_of(group), shard, "group {group}");
            let entries = match state.last > state.start.index {
                true => {
                    let from = FetchFrom::Index(state.start.index.next());
                    stored.reader.read(&fetch(group, from, state.last, usize::MAX)).unwrap()
                }
                false => Vec::new(),
            };
            let snapshot = stored.snapshots.latest(group).unwrap().map(|meta| {
                let mut body = Vec::new();
                stored.snapshots.reader(meta.clone()).read_to_end(&mut body).unwrap();
                (meta.snapshot(), body)
            });
            contents.insert(group, Content { state: state.clone(), entries, snapshot });
        }
    }
    Ok(contents)
}

fn plan(random: &mut SmallRng, group: u64) -> PartPlan {
    let entries = (0..random.random_range(0..5)).map(|_| match random.random_range(0..10) {
        0 => None,
        1 => Some(200),
        _ => Some(random.random_range(0..4)),
    });
    let entries = entries.collect();
    let change = match random.random_range(0..30) {
        0..4 => Some(ChangePlan::Compact(random.random_range(0..6))),
        4 => Some(ChangePlan::StartAfter(random.random_range(1..5))),
        5 => Some(ChangePlan::Remove),
        _ => None,
    };
    PartPlan {
        group,
        back: if random.random_bool(0.4) { random.random_range(1..8) } else { 0 },
        entries,
        commit: random.random_bool(0.6).then(|| random.random_range(0..6)),
        has_conf_state: random.random_bool(0.1),
        has_meta: random.random_bool(0.3),
        change,
    }
}

fn snapshot_head(random: &mut SmallRng) -> SnapshotHead {
    SnapshotHead {
        index: iroh_raft_core::Index(random.random_range(1..9)),
        term: iroh_raft_core::Term(2),
        offset: iroh_raft_core::Offset(1),
        conf_state: conf_state(&[1, 2]),
        table: Default::default(),
    }
}

/// A folder with this placement after some work: entries in journals and in log files, cut, compacted, removed; snapshots.
fn worked_on(disk: &FaultDisk, placement: &Placement, seed: u64) {
    let random = &mut SmallRng::seed_from_u64(seed);
    let mut folder = open_as(disk, placement).unwrap();
    for shard in placement.shards() {
        let groups: Vec<u64> =
            (1..=GROUPS).filter(|group| placement.shard_of(GroupId(*group)) == shard).collect();
        let mut open = folder.open_shard(shard, OPTIONS).unwrap();
        let mut model = Model::default();
        for _ in 0..random.random_range(3..15) {
            let parts = groups.iter().filter(|_| random.random_bool(0.6)).copied().collect::<Vec<_>>();
            let parts = parts.into_iter().map(|group| plan(random, group)).collect();
            open.writer.run_once(&make_batch(&mut model, &[parts])).unwrap();
            if random.random_bool(0.3) {
                open.mover.run_once().unwrap();
            }
        }
        for group in groups.into_iter().filter(|_| random.random_bool(0.3)).collect::<Vec<_>>() {
            if !model.groups.contains_key(&GroupId(group)) {
                continue;
            }
            let mut writer = open.snapshots.begin(GroupId(group), snapshot_head(random)).unwrap();
            let bytes = *[0, 10, SNAPSHOT_CHUNK_BYTES + 1].get(random.random_range(0..3)).unwrap();
            let body: Vec<u8> = (0..bytes).map(|at| (at % 251) as u8).collect();
            writer.write(&body).unwrap();
            writer.publish().unwrap();
        }
    }
}

fn draw_placement(random: &mut SmallRng) -> Placement {
    let shards = random.random_range(1..=4);
    let named: Vec<u64> = (1..=GROUPS).filter(|_| random.random_bool(0.15)).collect();
    let names: Vec<(u64, u16)> =
        named.into_iter().map(|group| (group, random.random_range(0..shards))).collect();
    placed(shards, &names)
}

#[test]
fn groups_are_the_same_on_whatever_shard() {
    let seeds = std::env::var("RELOCATE_SEEDS").map_or(SEEDS, |seeds| seeds.parse().unwrap());
    let mut moved = 0;
    for seed in 0..seeds {
        let random = &mut SmallRng::seed_from_u64(seed);
        let first = draw_placement(random);
        let disk = FaultDisk::lasting(seed);
        worked_on(&disk, &first, seed);
        let before = contents(&disk, &first).unwrap();
        moved += before.len();
        for placement in [draw_placement(random), draw_placement(random), first] {
            assert_eq!(contents(&disk, &placement).unwrap(), before, "seed {seed}, {placement:?}");
            assert_eq!(contents(&disk, &placement).unwrap(), before, "seed {seed}, {placement:?} again");
        }
        // They go on from there.
        let mut folder = open_as(&disk, &even(1)).unwrap();
        let mut shard = folder.open_shard(ShardId(0), OPTIONS).unwrap();
        let last = shard.last_seq.0;
        shard.writer.run_once(&[append(last + 1, vec![entries_only(99, vec![entry(1, 1, 0, 1)])])]).unwrap();
        while shard.mover.run_once().unwrap().blocks > 0 {}
    }
    assert!(moved as u64 > 4 * seeds, "there was something to move: {moved} groups");
}

/// Every image that a crash in the middle of a move may leave opens with the old placement and the new one.
#[test]
fn no_crash_in_a_move_changes_a_group() {
    for seed in 0..3 {
        let random = &mut SmallRng::seed_from_u64(100 + seed);
        let (first, second) =
            [(even(2), even(3)), (even(1), placed(2, &[(1, 0)])), (even(3), even(1))][seed as usize].clone();
        let disk = FaultDisk::with(Files::new(), seed);
        worked_on(&disk, &first, seed);
        let before = contents(&disk, &first).unwrap();
        drop(disk.take_events());
        let files = disk.files();
        drop(open_as(&disk, &second).unwrap());
        let events = disk.take_events();
        assert!(events.len() > 50, "a move is many changes: {}", events.len());
        for at in 0..=events.len() {
            // All of them around each change of a small file and each sync, some of the others.
            let is_close = events[at.saturating_sub(1)..(at + 1).min(events.len())]
                .iter()
                .any(|event| !matches!(event, Event::Write { .. } | Event::SetLen { .. }));
            if !is_close && !random.random_bool(0.2) {
                continue;
            }
            let image = after_power_cut(&files, &events[..at], random.random());
            for placement in [&first, &second] {
                let disk = FaultDisk::with(image.clone(), 0);
                let found = contents(&disk, placement);
                let found = found.unwrap_or_else(|error| panic!("seed {seed}, change {at}: {error}"));
                assert!(found == before, "seed {seed}, change {at} of {}, {placement:?}", events.len());
                let folders: BTreeSet<_> =
                    disk.files().into_keys().filter_map(|path| Some(path.parent()?.to_owned())).collect();
                let shards = usize::from(placement.shard_count());
                assert_eq!(folders.len(), shards + 1, "seed {seed}, change {at}: nothing is left over");
            }
        }
    }
}

#[test]
fn a_failing_or_full_disk_leaves_the_folder_as_it_was() {
    let (first, second) = (even(2), even(3));
    for trouble in [Trouble::Eio, Trouble::NoSpace, Trouble::Short] {
        let (mut after, mut failed) = (0, 0);
        loop {
            let disk = FaultDisk::lasting(5);
            worked_on(&disk, &first, 5);
            let before = contents(&disk, &first).unwrap();
            disk.plant(Fault { kind: None, operation: Operation::Change, after, times: 1, trouble });
            let moved = open_as(&disk, &second);
            let has_struck = disk.struck() > 0;
            disk.heal();
            // What fails as a new file is closed does not matter: it was read again after that.
            let placement = if moved.is_ok() { &second } else { &first };
            assert!(has_struck || moved.is_ok(), "{:?}", moved.err());
            drop(moved);
            assert_eq!(contents(&disk, placement).unwrap(), before, "{trouble:?} at change {after}");
            if !has_struck {
                break;
            }
            failed += u64::from(placement == &first);
            after += 1 + after / 8;
        }
        assert!(failed > 10, "{trouble:?} struck until change {after}, and {failed} moves failed");
    }
}

/// A folder of one shard and two groups, whose entries and snapshots are most of its bytes.
fn filled(disk: &FaultDisk) {
    let mut folder = open_as(disk, &even(1)).unwrap();
    let mut shard = folder.open_shard(ShardId(0), OPTIONS).unwrap();
    for (seq, first) in (1..).zip([1, 11, 21, 31]) {
        let last = first + 9;
        let part = |group| GroupAppend {
            hard_state: Some(hard_state(1, last)),
            ..entries_only(group, (first..=last).map(|index| large_entry(index, 3000)).collect())
        };
        shard.writer.run_once(&[append(seq, vec![part(1), part(2)])]).unwrap();
    }
    for group in [1, 2] {
        let head = snapshot_head(&mut SmallRng::seed_from_u64(group));
        let mut writer = shard.snapshots.begin(GroupId(group), head).unwrap();
        writer.write(&vec![group as u8; SNAPSHOT_CHUNK_BYTES + 1000]).unwrap();
        writer.publish().unwrap();
    }
}

/// What the disk says it wrote, and did not, or not like that, is noticed before the originals go.
#[test]
fn a_copy_that_did_not_reach_the_medium_leaves_the_folder_as_it_was() {
    let (first, second) = (even(1), even(2));
    let original = FaultDisk::with(Files::new(), 5);
    filled(&original);
    let before = contents(&original, &first).unwrap();
    let files = original.files();
    let (mut moved, mut damaged, mut refused) = (0, 0, 0);
    for kind in [FileKind::Log, FileKind::Journal] {
        for (trouble, step) in [(Trouble::Lost, 3), (Trouble::Misdirected, 3), (Trouble::Flipped, 1)] {
            for after in (0..).step_by(step) {
                let disk = FaultDisk::with(files.clone(), after);
                let operation = Operation::Write;
                disk.plant(Fault { kind: Some(kind), operation, after, times: 1, trouble });
                let opened = open_as(&disk, &second).map(drop);
                let has_struck = disk.struck() > 0;
                disk.heal();
                let placement = match opened {
                    Ok(()) => &second,
                    Err(error) => {
                        let is_of_copy =
                            matches!(error, StorageError::NotMoved { cause: Unmovable::DamagedCopy(_), .. });
                        damaged += u64::from(is_of_copy);
                        refused += u64::from(!is_of_copy);
                        &first
                    }
                };
                moved += u64::from(placement == &second);
                let at = format!("{kind:?} {trouble:?} at write {after}");
                let found = contents(&disk, placement).unwrap_or_else(|error| panic!("{at}: {error}"));
                assert!(found == before, "{at}");
                if !has_struck {
                    break;
                }
            }
        }
    }
    assert!(moved > 4 && damaged > 4 && refused > 4, "{moved} {damaged} {refused}");
}

/// A start that was killed may have put the manifest there without its name being durable; the next one removes the files
/// that it does not name, and then the power goes.
#[test]
fn the_old_files_stay_until_the_manifest_is_durable() {
    let (first, second) = (even(2), even(3));
    let disk = FaultDisk::with(Files::new(), 10);
    worked_on(&disk, &first, 10);
    let before = contents(&disk, &first).unwrap();
    drop(disk.take_events());
    let files = disk.files();
    drop(open_as(&disk, &second).unwrap());
    let mut events = disk.take_events();
    let is_manifest =
        |event: &Event| matches!(event, Event::Replace { path, .. } if path.ends_with("manifest"));
    events.truncate(events.iter().position(is_manifest).unwrap() + 1);
    let mut killed = files.clone();
    events.iter().for_each(|event| event.apply(&mut killed));
    let disk = FaultDisk::with(killed, 0);
    drop(open_as(&disk, &second).unwrap());
    let known = events.len();
    events.extend(disk.take_events());
    assert!(events[known..].iter().any(|event| matches!(event, Event::Remove { .. })));
    for end in known..=events.len() {
        for seed in 0..8 {
            let image = after_power_cut(&files, &events[..end], seed);
            for placement in [&first, &second] {
                let found = contents(&FaultDisk::with(image.clone(), 0), placement);
                let found = found.unwrap_or_else(|error| panic!("change {end}, seed {seed}: {error}"));
                assert!(found == before, "change {end}, seed {seed}");
            }
        }
    }
}

#[test]
fn a_move_for_which_there_is_plainly_no_room_is_not_begun() {
    let disk = FaultDisk::lasting(6);
    worked_on(&disk, &even(1), 6);
    let before = contents(&disk, &even(1)).unwrap();
    disk.set_capacity(Some(disk.used_bytes() + (64 << 10)));
    let files = disk.files();
    let error = open_as(&disk, &even(2)).unwrap_err();
    let StorageError::NoSpaceToMove { needed_bytes, free_bytes, .. } = error else { panic!("{error}") };
    assert!(free_bytes == 64 << 10 && needed_bytes > free_bytes);
    assert_eq!(disk.files(), files);
    assert_eq!(contents(&disk, &even(1)).unwrap(), before);
    disk.set_capacity(None);
    assert_eq!(contents(&disk, &even(2)).unwrap(), before);
}

#[test]
fn damage_is_named_and_stops_a_move_before_anything_changes() {
    let disk = FaultDisk::lasting(7);
    let mut folder = open_as(&disk, &even(1)).unwrap();
    let mut shard = folder.open_shard(ShardId(0), OPTIONS).unwrap();
    let part = |group| entries_only(group, vec![entry(1, 1, 0, 40)]);
    shard.writer.run_once(&[append(1, vec![part(1), part(2)])]).unwrap();
    drop((folder, shard));
    let journal = Path::new(FOLDER).join("shard-0/journal.redb");
    let bytes = disk.files()[&journal].clone();
    let record = b"record 17, term 1";
    let at = bytes.windows(record.len()).rposition(|bytes| bytes == record).unwrap();
    disk.flip(&journal, at, 1);
    let error = open_as(&disk, &even(2)).unwrap_err();
    let StorageError::NotMoved { group: GroupId(2), shard: ShardId(0), cause: Unmovable::Damaged(_) } = error
    else {
        panic!("{error}")
    };
    assert!(error.to_string().contains("start with the shards that the folder had"));
    let mut folder = open_as(&disk, &even(1)).unwrap();
    let shard = folder.open_shard(ShardId(0), OPTIONS).unwrap();
    assert_eq!(shard.groups.iter().filter(|state| state.damage.is_some()).count(), 1);
}

#[test]
fn shards_that_keep_their_groups_keep_their_files() {
    let disk = FaultDisk::lasting(8);
    worked_on(&disk, &even(3), 8);
    let before = contents(&disk, &even(3)).unwrap();
    let files = |disk: &FaultDisk| -> Vec<String> {
        let names = disk.lengths().into_iter().map(|(path, _)| path.to_string_lossy().into_owned());
        names.filter(|name| name.ends_with("journal.redb")).collect()
    };
    let group = before.keys().find(|group| group.0 % 3 == 1).expect("shard 1 has a group").0;
    let hot = placed(3, &[(group, 2)]);
    assert_eq!(contents(&disk, &hot).unwrap(), before);
    let names =
        ["/node/shard-0/journal.redb", "/node/shard-1.1/journal.redb", "/node/shard-2.1/journal.redb"];
    assert_eq!(files(&disk), names);
    // A group that nobody has moves nothing.
    assert_eq!(contents(&disk, &placed(3, &[(group, 2), (1000, 0)])).unwrap(), before);
    assert_eq!(files(&disk), names);
}

/// The old files of a shard in the place of its new ones would be an older state of it.
#[test]
fn files_of_an_older_generation_are_foreign() {
    let disk = FaultDisk::lasting(9);
    worked_on(&disk, &even(1), 9);
    let old = disk.files();
    drop(open_as(&disk, &even(2)).unwrap());
    drop(open_as(&disk, &even(1)).unwrap());
    for name in ["journal.redb", "log.redb", "acked"] {
        let bytes = &old[&Path::new(FOLDER).join("shard-0").join(name)];
        disk.put(&Path::new(FOLDER).join("shard-0.2").join(name), bytes);
    }
    let error = open_as(&disk, &even(1)).unwrap().open_shard(ShardId(0), OPTIONS).unwrap_err();
    assert!(matches!(error, StorageError::ForeignJournal { .. }), "{error}");
}

/// Whether a manifest counts whose replacement failed is for the next start to see: until then both sets of files stay.
#[test]
fn a_manifest_that_failed_late_leaves_what_it_names() {
    let temporary = tempfile::tempdir().unwrap();
    let (folder, mut shard) = open(temporary.path()).unwrap();
    shard.writer.run_once(&[append(1, vec![entries_only(1, vec![entry(1, 1, 0, 2)])])]).unwrap();
    drop((folder, shard));
    let identity = FolderIdentity { placement: even(2), ..IDENTITY };
    let error = DataFolder::open_on(temporary.path(), identity.clone(), Arc::new(LateError::of("manifest")))
        .unwrap_err();
    assert!(matches!(error, StorageError::Io { .. }), "{error}");
    let mut folder = DataFolder::open(temporary.path(), identity).unwrap();
    let shard = folder.open_shard(ShardId(1), OPTIONS).unwrap();
    assert_eq!((shard.groups.len(), shard.groups[0].last.0), (1, 1));
}

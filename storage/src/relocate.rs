//! Groups get other places: a node starts with another number of shards, or a group has one for itself.
//!
//! The groups of each shard that loses or gains one are written anew, by the parts that always write, into files of a new
//! generation beside the old ones; shards that keep their groups keep their files. When all of it is durable, was read
//! through from the medium and found sound, and says the same of every group, the manifest is replaced and names the new files. So a crash, damage or a full disk
//! before that moment changes nothing, and the folder opens with its old placement, or the move begins anew; after it the old
//! files are nobody's, and go. The price is to write shards that are concerned once more, whole: for that
//! no state in between exists, on the disk or in the mind.
//!
//! Not copied: snapshots that are not published, which are made or sent anew, and what was compacted away.
//! Memory: one flush, and what recovery holds of each shard.

use std::path::Path;
use std::sync::Arc;

use iroh_raft_core::mutants::{self, Mutant};
use iroh_raft_core::{
    Append, Fetch, FetchError, FetchFrom, FetchId, FlushSeq, GroupAppend, GroupId, GroupState, LogChange,
    NodeId, Placement, ShardId,
};

use crate::disk::{Disk, FileKind, FolderLock, ShardLock};
use crate::error::{Result, StorageError, Unmovable};
use crate::manifest::{FolderIdentity, Manifest};
use crate::redb_file::open_existing;
use crate::scrub::{Damage, DamagePlace};
use crate::shard::{self, JOURNAL, LOG, OpenShard, ReadShard, ShardOptions};
use crate::small_file::io_error;
use crate::snapshot::{SnapshotError, SnapshotMeta};

/// Bytes of entries that are read at a time, and flushed together.
const FLUSH_BYTES: usize = 4 << 20;
/// What an entry or a group counts for beside its data.
const DIRECTORY_BYTES: usize = 64;
/// Caches are of little use: everything is read and written once.
const OPTIONS: ShardOptions = ShardOptions {
    journal_bytes_max: 64 << 20,
    move_bytes: 8 << 20,
    journal_cache_bytes: 8 << 20,
    log_cache_bytes: 8 << 20,
    free_bytes_min: 0,
    preallocate_bytes: 0,
    tail_bytes: 0,
};

/// Gives the groups of a folder their places according to `placement`; returns the manifest that is in force then.
/// Blocks for as long as that takes.
pub(crate) fn relocate(
    disk: &Arc<dyn Disk>,
    path: &Path,
    before: &Manifest,
    placement: &Placement,
    lock: &FolderLock,
) -> Result<Manifest> {
    let sources = before.shards().map(|shard| open_source(disk.as_ref(), path, before, shard, lock));
    let sources = sources.collect::<Result<Vec<_>>>()?;
    let rebuilt: Vec<ShardId> =
        placement.shards().filter(|shard| is_concerned(&sources, placement, *shard)).collect();
    let after = next(before, placement, &rebuilt);
    if mutants::is(Mutant::PlacedBeforeMoved) {
        after.write(disk.as_ref(), path)?;
    }
    check_space(disk.as_ref(), path, before, &sources, &rebuilt, placement)?;
    tracing::info!(
        shards_before = before.identity.placement.shard_count(),
        shards = placement.shard_count(),
        written_anew = rebuilt.len(),
        "groups move to other shards"
    );
    let built = rebuilt.iter().try_for_each(|shard| {
        build(disk, path, &after, *shard, &sources, lock)?;
        verify(disk.as_ref(), path, &after, *shard, &sources, lock)?;
        tracing::info!(%shard, "the groups of this shard are in their new place");
        Ok(())
    });
    drop(sources);
    if built.is_err() {
        // What is there of the new files takes space. If it cannot be removed now, the next start does it.
        let _ = remove_strays(disk.as_ref(), path, before);
    }
    built?;
    // Once this was tried, only the manifest says which files count: nothing goes before it is read again or known to be there.
    disk.sync_folder(path).map_err(io_error("sync", path))?;
    after.write(disk.as_ref(), path)?;
    remove_strays(disk.as_ref(), path, &after)?;
    Ok(after)
}

/// Removes folders of shards that the manifest does not name: what a crash left of a move, before it or after it.
pub(crate) fn remove_strays(disk: &dyn Disk, path: &Path, manifest: &Manifest) -> Result<()> {
    for name in disk.names(path).map_err(io_error("list", path))? {
        if manifest.is_stray(&name) {
            let folder = path.join(&name);
            disk.remove_folder(&folder).map_err(io_error("remove", &folder))?;
        }
    }
    Ok(())
}

/// A shard as it was, with its groups in order.
struct Source {
    shard: ShardId,
    stored: ReadShard,
}

impl Source {
    /// Those of its groups that go to this shard.
    fn groups_for<'a>(
        &'a self,
        placement: &'a Placement,
        shard: ShardId,
    ) -> impl Iterator<Item = &'a GroupState> {
        self.stored.groups.iter().filter(move |state| placement.shard_of(state.group) == shard)
    }

    fn unmovable(&self, group: GroupId, cause: Unmovable) -> StorageError {
        StorageError::NotMoved { group, shard: self.shard, cause }
    }

    fn snapshot_failed(&self, group: GroupId, error: SnapshotError) -> StorageError {
        match error {
            SnapshotError::Storage(error) => error,
            error => self.unmovable(group, Unmovable::Snapshot(Box::new(error))),
        }
    }

    /// The published snapshot of a group.
    fn snapshot(&self, group: GroupId) -> Result<Option<SnapshotMeta>> {
        if mutants::is(Mutant::MoveForgetsSnapshot) {
            return Ok(None);
        }
        self.stored.snapshots.latest(group).map_err(|error| self.snapshot_failed(group, error))
    }
}

fn open_source(
    disk: &dyn Disk,
    path: &Path,
    manifest: &Manifest,
    shard: ShardId,
    lock: &FolderLock,
) -> Result<Source> {
    let (folder, identity) = manifest.shard(path, shard).expect("one of its shards");
    let lock = Arc::new(ShardLock(lock.clone()));
    let mut stored = shard::open_for_reading(disk, &folder, identity, &OPTIONS, &lock)?;
    if mutants::is(Mutant::MoveForgetsVote) {
        stored.groups.iter_mut().for_each(|state| state.hard_state.vote = NodeId(0));
    }
    Ok(Source { shard, stored })
}

/// Whether a shard has other groups from now on than it had.
fn is_concerned(sources: &[Source], placement: &Placement, shard: ShardId) -> bool {
    let is_its = |state: &GroupState| placement.shard_of(state.group) == shard;
    let is_new = !sources.iter().any(|source| source.shard == shard);
    is_new
        || sources.iter().any(|source| {
            let is_here = source.shard == shard;
            source.stored.groups.iter().any(|state| is_its(state) != is_here)
        })
}

fn next(before: &Manifest, placement: &Placement, rebuilt: &[ShardId]) -> Manifest {
    let generation = before.generation + u32::from(!rebuilt.is_empty());
    let of = |shard: ShardId| match rebuilt.contains(&shard) {
        true => generation,
        false => before.generations[usize::from(shard.0)],
    };
    let identity = FolderIdentity { placement: placement.clone(), ..before.identity.clone() };
    Manifest {
        identity,
        generation,
        generations: placement.shards().map(of).collect(),
        storage: before.storage,
        created: before.created,
    }
}

/// Refuses to begin where it plainly cannot end: new files take about what the old ones do.
fn check_space(
    disk: &dyn Disk,
    path: &Path,
    before: &Manifest,
    sources: &[Source],
    rebuilt: &[ShardId],
    placement: &Placement,
) -> Result<()> {
    let mut needed_bytes = 0;
    for source in sources {
        let gives = |shard: &&ShardId| source.groups_for(placement, **shard).next().is_some();
        if rebuilt.iter().find(gives).is_none() {
            continue;
        }
        let (folder, _) = before.shard(path, source.shard).expect("one of its shards");
        for (name, kind) in [(JOURNAL, FileKind::Journal), (LOG, FileKind::Log)] {
            let file = folder.join(name);
            let backend = open_existing(disk, &file, kind)?;
            needed_bytes += backend.len().map_err(io_error("read", &file))?;
            backend.close().map_err(io_error("close", &file))?;
        }
    }
    let free_bytes = disk.free_bytes(path).map_err(io_error("look at the space of", path))?;
    if free_bytes < needed_bytes {
        return Err(StorageError::NoSpaceToMove { path: path.to_owned(), needed_bytes, free_bytes });
    }
    Ok(())
}

/// Writes the files of a shard, with all the groups that it is to have.
fn build(
    disk: &Arc<dyn Disk>,
    path: &Path,
    manifest: &Manifest,
    shard: ShardId,
    sources: &[Source],
    lock: &FolderLock,
) -> Result<()> {
    let (folder, identity) = manifest.shard(path, shard).expect("one of its shards");
    let lock = Arc::new(ShardLock(lock.clone()));
    disk.create_folder(&folder).map_err(io_error("create", &folder))?;
    shard::create(disk.as_ref(), &folder, identity, &lock)?;
    disk.sync_folder(&folder).map_err(io_error("sync", &folder))?;
    let mut copier = Copier {
        target: shard::open(disk, &folder, identity, &OPTIONS, &lock).map_err(unreadable(shard))?,
        batch: Vec::new(),
        bytes: 0,
    };
    let placement = &manifest.identity.placement;
    for source in sources {
        for state in source.groups_for(placement, shard) {
            copier.copy(source, state)?;
        }
    }
    copier.finish()
}

/// What is written to one new shard.
struct Copier {
    target: OpenShard,
    /// Flushes that go into the next commit together.
    batch: Vec<Append>,
    bytes: usize,
}

impl Copier {
    fn copy(&mut self, source: &Source, state: &GroupState) -> Result<()> {
        let group = state.group;
        if let Some(damage) = state.damage {
            return Err(source.unmovable(group, Unmovable::Damaged(damage)));
        }
        self.push(first_part(state))?;
        let mut next = state.start.index.next();
        let last = state.last;
        while next <= last {
            let from = FetchFrom::Index(next);
            let fetch = Fetch { id: FetchId(0), group, from, to: last, bytes_max: FLUSH_BYTES };
            let entries = source.stored.reader.read(&fetch);
            let entries = entries.map_err(|error| source.unmovable(group, Unmovable::Unreadable(error)))?;
            // A read gives one entry at least: to go on without would leave a hole.
            let read = entries.last().ok_or(FetchError::Missing);
            next = read.map_err(|error| source.unmovable(group, Unmovable::Unreadable(error)))?.index.next();
            self.push(GroupAppend { entries, ..nothing_of(group) })?;
        }
        self.copy_snapshot(source, group)
    }

    fn copy_snapshot(&mut self, source: &Source, group: GroupId) -> Result<()> {
        let Some(meta) = source.snapshot(group)? else { return Ok(()) };
        let failed = |error| source.snapshot_failed(group, error);
        let mut writer = self.target.snapshots.begin(group, meta.head.clone()).map_err(failed)?;
        for chunk in 0..meta.chunks {
            let chunk = source.stored.snapshots.read_chunk(&meta, chunk).map_err(failed)?;
            writer.write(&chunk).map_err(failed)?;
        }
        writer.publish().map(drop).map_err(failed)
    }

    /// Adds what one flush says of a group.
    fn push(&mut self, part: GroupAppend) -> Result<()> {
        let rows = part.entries.len() + 1;
        self.bytes += rows * DIRECTORY_BYTES;
        self.bytes += part.entries.iter().map(|entry| entry.data.len()).sum::<usize>();
        self.bytes += part.meta.as_ref().map_or(0, |meta| meta.len());
        let seq = FlushSeq(self.target.writer.last_seq().0 + self.batch.len() as u64 + 1);
        self.batch.push(Append { seq, groups: vec![part] });
        if self.bytes >= FLUSH_BYTES { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> Result<()> {
        let report = self.target.writer.run_once(&self.batch)?;
        self.batch.clear();
        self.bytes = 0;
        let mut is_move_due = report.is_move_due;
        while is_move_due {
            is_move_due = self.target.mover.run_once()?.is_more;
        }
        Ok(())
    }

    /// Makes the rest durable. What is committed goes to the log file: the next start then finds a short journal.
    fn finish(mut self) -> Result<()> {
        self.flush()?;
        while self.target.mover.run_once()?.blocks > 0 {}
        Ok(())
    }
}

fn nothing_of(group: GroupId) -> GroupAppend {
    GroupAppend {
        group,
        change: None,
        hard_state: None,
        conf_state: None,
        meta: None,
        under_repair: None,
        joined_at: None,
        entries: Vec::new(),
    }
}

/// All that is known of a group besides its entries, and where these begin.
fn first_part(state: &GroupState) -> GroupAppend {
    GroupAppend {
        change: (state.start != Default::default()).then_some(LogChange::StartAfter(state.start)),
        hard_state: Some(state.hard_state),
        conf_state: Some(state.conf_state.clone()),
        meta: (!state.meta.is_empty()).then(|| state.meta.clone()),
        under_repair: state.is_under_repair.then_some(true),
        joined_at: (state.joined_at != Default::default()).then_some(state.joined_at),
        ..nothing_of(state.group)
    }
}

/// Reads a new shard as a start does, compares its groups with those that were there, and reads all that they have: an
/// index may be right whose entries or snapshots never reached the medium, and the originals are about to go.
fn verify(
    disk: &dyn Disk,
    path: &Path,
    manifest: &Manifest,
    shard: ShardId,
    sources: &[Source],
    lock: &FolderLock,
) -> Result<()> {
    let placement = &manifest.identity.placement;
    let mut copy = open_source(disk, path, manifest, shard, lock).map_err(unreadable(shard))?;
    for source in sources {
        for state in source.groups_for(placement, shard) {
            let group = state.group;
            let groups = &copy.stored.groups;
            let found = groups.binary_search_by_key(&group, |found| found.group).map(|at| &groups[at]).ok();
            let snapshot = |source: &Source| Ok(source.snapshot(group)?.map(|meta| meta.snapshot()));
            if found != Some(state) || snapshot(&copy)? != snapshot(source)? {
                return Err(source.unmovable(group, Unmovable::Differs));
            }
        }
    }
    loop {
        let step = copy.stored.scrubber.step(FLUSH_BYTES as u64).map_err(unreadable(shard))?;
        if let Some(damage) = step.damage.into_iter().next() {
            return Err(damaged_copy(damage, shard, sources));
        }
        if step.is_round_done {
            return Ok(());
        }
    }
}

/// New files that cannot be read are no reason to give up the folder: its old ones are as they were.
fn unreadable(shard: ShardId) -> impl Fn(StorageError) -> StorageError {
    move |source| StorageError::CopyUnreadable { shard, source: Box::new(source) }
}

/// Damage to a new shard, as that of the group which it concerns.
fn damaged_copy(damage: Damage, shard: ShardId, sources: &[Source]) -> StorageError {
    let group = match damage.place {
        DamagePlace::Snapshot { group } => Some(group),
        DamagePlace::Journal { .. } | DamagePlace::Log => damage.affected.first().map(|range| range.group),
    };
    let has_it = |source: &&Source| source.stored.groups.iter().any(|state| Some(state.group) == group);
    match (group, sources.iter().find(has_it)) {
        (Some(group), Some(source)) => source.unmovable(group, Unmovable::DamagedCopy(Box::new(damage))),
        _ => StorageError::CopyDamaged { shard, damage: Box::new(damage) },
    }
}

//! The manifest: whose folder it is, which shards it has, and which of their folders count.
//!
//! Groups that get other places go to new files, in folders of a new *generation* (`relocate.rs`); replacing the manifest
//! makes these the shards. A folder that the manifest does not name is what a crash left, and nobody's.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use iroh_raft_core::{ClusterId, GroupId, NodeId, Placement, ShardId};

use crate::block::JournalIdentity;
use crate::cursor::Cursor;
use crate::disk::Disk;
use crate::error::{FileDamage, Result, StorageError};
use crate::small_file::{self, Kind};

pub(crate) const MANIFEST: &str = "manifest";
/// Version 1 had neither generations nor groups placed by name.
pub(crate) const MANIFEST_KIND: Kind = Kind { magic: *b"IRAFTMAN", version: 2 };

/// Whose folder it is, and how its groups are placed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FolderIdentity {
    /// The cluster.
    pub cluster: ClusterId,
    /// The node; not 0.
    pub node: NodeId,
    /// Which shard has which group. A start may come with another one than the start before: then groups are moved first.
    pub placement: Placement,
}

/// What the manifest of a folder says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Manifest {
    pub(crate) identity: FolderIdentity,
    /// Random identity of the folder.
    pub(crate) storage: [u8; 16],
    /// When it was made, in ms since 1970.
    pub(crate) created: u64,
    /// The newest generation that any shard's folder has had: 0 as the folder was made.
    pub(crate) generation: u32,
    /// That of each shard's folder.
    pub(crate) generations: Vec<u32>,
}

impl Manifest {
    /// Of a folder that is made now.
    pub(crate) fn new(identity: FolderIdentity, storage: [u8; 16], created: u64) -> Manifest {
        let generations = vec![0; usize::from(identity.placement.shard_count())];
        Manifest { identity, storage, created, generation: 0, generations }
    }

    pub(crate) fn read(disk: &dyn Disk, path: &Path) -> Result<Manifest> {
        let file = path.join(MANIFEST);
        let payload = small_file::read(disk, &file, MANIFEST_KIND)?
            .ok_or_else(|| StorageError::MissingManifest { path: path.to_owned() })?;
        let damage = FileDamage::Content;
        Manifest::parse(&payload).ok_or(StorageError::DamagedFile { path: file, damage })
    }

    pub(crate) fn write(&self, disk: &dyn Disk, path: &Path) -> Result<()> {
        small_file::replace(disk, &path.join(MANIFEST), MANIFEST_KIND, &self.encode())
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let FolderIdentity { cluster, node, placement } = &self.identity;
        let placed = placement.placed();
        let mut payload = Vec::with_capacity(56 + 4 * self.generations.len() + 10 * placed.len());
        payload.extend_from_slice(&cluster.0);
        payload.extend_from_slice(&self.storage);
        payload.extend_from_slice(&node.0.to_le_bytes());
        payload.extend_from_slice(&self.created.to_le_bytes());
        payload.extend_from_slice(&placement.shard_count().to_le_bytes());
        // At most PLACED_MAX.
        payload.extend_from_slice(&(placed.len() as u16).to_le_bytes());
        payload.extend_from_slice(&self.generation.to_le_bytes());
        self.generations.iter().for_each(|generation| payload.extend_from_slice(&generation.to_le_bytes()));
        for (group, shard) in placed {
            payload.extend_from_slice(&group.0.to_le_bytes());
            payload.extend_from_slice(&shard.0.to_le_bytes());
        }
        payload
    }

    pub(crate) fn parse(payload: &[u8]) -> Option<Manifest> {
        let mut cursor = Cursor::new(payload);
        let cluster = ClusterId(cursor.array()?);
        let storage = cursor.array()?;
        let node = NodeId(cursor.u64()?);
        let created = cursor.u64()?;
        let shards = cursor.u16()?;
        let count = cursor.u16()?;
        let generation = cursor.u32()?;
        let is_version_1 = cursor.left() == 0;
        let mut generations = vec![0; usize::from(shards)];
        let mut placed = BTreeMap::new();
        if !is_version_1 {
            for of_shard in &mut generations {
                *of_shard = cursor.u32().filter(|of_shard| *of_shard <= generation)?;
            }
            for _ in 0..count {
                placed.insert(GroupId(cursor.u64()?), ShardId(cursor.u16()?));
            }
        }
        let placement = Placement::new(shards, placed).ok()?;
        let is_possible = cursor.left() == 0
            && node != NodeId(0)
            && placement.placed().len() == usize::from(count)
            && (!is_version_1 || generation == 0);
        let identity = FolderIdentity { cluster, node, placement };
        is_possible.then_some(Manifest { identity, storage, created, generation, generations })
    }

    /// All shards.
    pub(crate) fn shards(&self) -> impl Iterator<Item = ShardId> + use<> {
        self.identity.placement.shards()
    }

    /// Where a shard's files are, and what they have to say that they are; `None` without such a shard.
    pub(crate) fn shard(&self, path: &Path, shard: ShardId) -> Option<(PathBuf, JournalIdentity)> {
        let generation = *self.generations.get(usize::from(shard.0))?;
        Some((path.join(folder_name(shard, generation)), files_identity(self.storage, shard, generation)))
    }

    /// Whether a name is that of a shard's folder which is none of these: of an older generation, or of one that a move
    /// began with. What somebody else put there is not.
    pub(crate) fn is_stray(&self, name: &str) -> bool {
        let Some((shard, generation)) = parse_folder_name(name) else { return false };
        let is_ours = generation <= self.generation.saturating_add(1);
        is_ours && self.generations.get(usize::from(shard.0)) != Some(&generation)
    }
}

fn parse_folder_name(name: &str) -> Option<(ShardId, u32)> {
    let numbers = name.strip_prefix("shard-")?;
    let (shard, generation) = numbers.split_once('.').unwrap_or((numbers, "0"));
    let (shard, generation) = (ShardId(shard.parse().ok()?), generation.parse().ok()?);
    (folder_name(shard, generation) == name).then_some((shard, generation))
}

fn folder_name(shard: ShardId, generation: u32) -> String {
    match generation {
        0 => format!("shard-{shard}"),
        _ => format!("shard-{shard}.{generation}"),
    }
}

/// The files of a shard carry its generation with the folder's identity: those of an older one are foreign to it.
fn files_identity(mut storage: [u8; 16], shard: ShardId, generation: u32) -> JournalIdentity {
    storage.iter_mut().zip(generation.to_le_bytes()).for_each(|(byte, of_generation)| *byte ^= of_generation);
    JournalIdentity { storage, shard }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest() -> Manifest {
        let placed = BTreeMap::from([(GroupId(7), ShardId(0)), (GroupId(8), ShardId(1))]);
        let placement = Placement::new(2, placed).expect("possible");
        let identity = FolderIdentity { cluster: ClusterId([7; 16]), node: NodeId(3), placement };
        Manifest { generation: 5, generations: vec![0, 5], ..Manifest::new(identity, [9; 16], 77) }
    }

    #[test]
    fn it_comes_back_as_it_was_and_nothing_else_does() {
        let payload = manifest().encode();
        assert_eq!(Manifest::parse(&payload), Some(manifest()));
        for cut in 0..payload.len() {
            assert_eq!(Manifest::parse(&payload[..cut]), None, "cut to {cut}");
        }
        assert_eq!(Manifest::parse(&[&payload[..], &[0]].concat()), None);
        let newest_is_older = Manifest { generation: 4, ..manifest() };
        assert_eq!(Manifest::parse(&newest_is_older.encode()), None);
    }

    #[test]
    fn version_1_is_of_the_first_generation() {
        let identity = FolderIdentity { placement: Placement::ONE_SHARD, ..manifest().identity };
        let new = Manifest::new(identity, [9; 16], 77);
        assert_eq!(Manifest::parse(&new.encode()[..56]), Some(new));
    }

    #[test]
    fn each_generation_has_a_folder_and_an_identity_of_its_own() {
        let manifest = manifest();
        let (folder, files) = manifest.shard(Path::new("/data"), ShardId(1)).expect("it has two");
        assert_eq!(folder, Path::new("/data/shard-1.5"));
        assert_ne!(files, files_identity(manifest.storage, ShardId(1), 0));
        for stray in ["shard-0.5", "shard-1", "shard-1.4", "shard-1.6", "shard-2", "shard-2.6"] {
            assert!(manifest.is_stray(stray), "{stray}");
        }
        for other in
            ["shard-0", "shard-1.5", "shard-1.7", "shard-1.bak", "shard-01", "shard-1.05", "shard-", "key"]
        {
            assert!(!manifest.is_stray(other), "{other}");
        }
        assert!(manifest.shard(Path::new("/data"), ShardId(2)).is_none());
    }
}

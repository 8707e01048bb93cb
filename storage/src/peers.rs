//! What this node has seen of its peers' boot epochs.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use iroh_raft_core::{BootEpoch, NodeId};

use crate::cursor::Cursor;
use crate::disk::{Disk, FolderLock};
use crate::error::{FileDamage, Result, StorageError};
use crate::small_file::{self, Kind};

/// Peers remembered at most. One more is refused with [`StorageError::PeersFull`].
pub(crate) const PEERS_MAX: usize = 4096;
pub(crate) const KIND: Kind = Kind { magic: *b"IRAFTPEE", version: 1 };

/// Remembers the highest boot epoch of every peer, and refuses a peer that comes back older.
///
/// A node's boot epoch grows by one with each start, and each start draws a boot id. A folder that
/// was restored from an old copy repeats an epoch with another id, or offers a lower one.
#[derive(Debug)]
pub struct PeerEpochs {
    disk: Arc<dyn Disk>,
    path: PathBuf,
    seen: BTreeMap<NodeId, (BootEpoch, [u8; 16])>,
    _lock: FolderLock,
}

impl PeerEpochs {
    pub(crate) fn load(disk: Arc<dyn Disk>, path: PathBuf, lock: FolderLock) -> Result<PeerEpochs> {
        let payload = small_file::read(disk.as_ref(), &path, KIND)?
            .ok_or_else(|| StorageError::MissingFile { path: path.clone() })?;
        let damaged = || StorageError::DamagedFile { path: path.clone(), damage: FileDamage::Content };
        let seen = parse(&payload).ok_or_else(damaged)?;
        Ok(PeerEpochs { disk, path, seen, _lock: lock })
    }

    /// Writes the file of a node that has seen nobody.
    pub(crate) fn create(disk: &dyn Disk, path: &std::path::Path) -> Result<()> {
        small_file::replace(disk, path, KIND, &encode(&BTreeMap::new()))
    }

    /// Number of peers that were ever seen.
    pub(crate) fn count(&self) -> usize {
        self.seen.len()
    }

    /// Takes note of a peer's boot. What is new is on stable storage when this returns.
    ///
    /// # Errors
    /// [`StorageError::PeerRolledBack`] for an epoch below the highest seen, or the same one with
    /// another boot id; [`StorageError::PeersFull`]; [`StorageError::Io`], after which the boot
    /// counts as not seen.
    pub fn observe(&mut self, node: NodeId, epoch: BootEpoch, boot_id: [u8; 16]) -> Result<()> {
        if let Some(&(seen, seen_id)) = self.seen.get(&node) {
            if epoch < seen || (epoch == seen && boot_id != seen_id) {
                return Err(StorageError::PeerRolledBack { node, seen, offered: epoch });
            }
            if epoch == seen {
                return Ok(());
            }
        } else if self.seen.len() >= PEERS_MAX {
            return Err(StorageError::PeersFull { max: PEERS_MAX });
        }
        let before = self.seen.insert(node, (epoch, boot_id));
        small_file::replace(self.disk.as_ref(), &self.path, KIND, &encode(&self.seen)).inspect_err(|_| {
            match before {
                Some(before) => self.seen.insert(node, before),
                None => self.seen.remove(&node),
            };
        })
    }
}

fn encode(seen: &BTreeMap<NodeId, (BootEpoch, [u8; 16])>) -> Vec<u8> {
    let mut payload = Vec::with_capacity(8 + seen.len() * 32);
    payload.extend_from_slice(&(seen.len() as u64).to_le_bytes());
    for (node, (epoch, id)) in seen {
        payload.extend_from_slice(&node.0.to_le_bytes());
        payload.extend_from_slice(&epoch.0.to_le_bytes());
        payload.extend_from_slice(id);
    }
    payload
}

pub(crate) fn parse(payload: &[u8]) -> Option<BTreeMap<NodeId, (BootEpoch, [u8; 16])>> {
    let mut cursor = Cursor::new(payload);
    let count = usize::try_from(cursor.u64()?).ok()?;
    if count > PEERS_MAX || cursor.left() != count * 32 {
        return None;
    }
    let mut seen = BTreeMap::new();
    for _ in 0..count {
        seen.insert(NodeId(cursor.u64()?), (BootEpoch(cursor.u64()?), cursor.array()?));
    }
    (seen.len() == count).then_some(seen)
}

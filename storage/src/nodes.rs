//! The nodes that were made known while this one ran, and those that are gone for good.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

use iroh_raft_core::NodeId;

use crate::cursor::Cursor;
use crate::disk::{Disk, FolderLock};
use crate::error::{FileDamage, Result, StorageError};
use crate::small_file::{self, Kind};

/// Nodes remembered at most, those that are gone included. One more is refused with
/// [`StorageError::PeersFull`].
const NODES_MAX: usize = 4096;
const NODE_BYTES: usize = 8 + 32 + 16 + 2 + 1 + 5;
pub(crate) const KIND: Kind = Kind { magic: *b"IRAFTNOD", version: 1 };

/// A node of the cluster, or one that was.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct KnownNode {
    /// Its public key.
    pub key: [u8; 32],
    /// Where its bridge listens.
    pub addr: SocketAddr,
    /// Whether it is gone: neither its number nor its key comes back.
    pub is_removed: bool,
}

/// Nodes by number, durable.
#[derive(Debug)]
pub struct KnownNodes {
    disk: Arc<dyn Disk>,
    path: PathBuf,
    nodes: BTreeMap<NodeId, KnownNode>,
    /// Whether the file may say something else: a change failed, and may be there after all.
    is_in_doubt: bool,
    _lock: FolderLock,
}

impl KnownNodes {
    pub(crate) fn load(disk: Arc<dyn Disk>, path: PathBuf, lock: FolderLock) -> Result<KnownNodes> {
        let damaged = || StorageError::DamagedFile { path: path.clone(), damage: FileDamage::Content };
        let nodes = match small_file::read(disk.as_ref(), &path, KIND)? {
            Some(payload) => parse(&payload).ok_or_else(damaged)?,
            // Made when the first is to be remembered.
            None => BTreeMap::new(),
        };
        Ok(KnownNodes { disk, path, nodes, is_in_doubt: false, _lock: lock })
    }

    /// All of them, in order of their numbers.
    pub fn iter(&self) -> impl Iterator<Item = (NodeId, KnownNode)> {
        self.nodes.iter().map(|(id, node)| (*id, *node))
    }

    /// Remembers a node, in place of what was known of it. It is on stable storage when this returns.
    ///
    /// # Errors
    /// [`StorageError::PeersFull`]; [`StorageError::Io`], after which all is as before until the next start, which may find
    /// it as it was to be. The same call may be repeated, and [`settle`](KnownNodes::settle) takes it back.
    pub fn set(&mut self, id: NodeId, node: KnownNode) -> Result<()> {
        if self.nodes.len() >= NODES_MAX && !self.nodes.contains_key(&id) {
            return Err(StorageError::PeersFull { max: NODES_MAX });
        }
        let before = self.nodes.insert(id, node);
        self.write().inspect_err(|_| {
            match before {
                Some(before) => self.nodes.insert(id, before),
                None => self.nodes.remove(&id),
            };
        })
    }

    /// Takes back on the disk what a [`set`](KnownNodes::set) that failed may have left there. Does nothing if none has.
    ///
    /// # Errors
    /// [`StorageError::Io`]: it may still be there.
    pub fn settle(&mut self) -> Result<()> {
        if self.is_in_doubt { self.write() } else { Ok(()) }
    }

    fn write(&mut self) -> Result<()> {
        let written = small_file::replace(self.disk.as_ref(), &self.path, KIND, &encode(&self.nodes));
        self.is_in_doubt = written.is_err();
        written
    }
}

fn encode(nodes: &BTreeMap<NodeId, KnownNode>) -> Vec<u8> {
    let mut payload = Vec::with_capacity(8 + nodes.len() * NODE_BYTES);
    payload.extend_from_slice(&(nodes.len() as u64).to_le_bytes());
    for (id, node) in nodes {
        let ip = match node.addr.ip() {
            IpAddr::V4(ip) => ip.to_ipv6_mapped(),
            IpAddr::V6(ip) => ip,
        };
        payload.extend_from_slice(&id.0.to_le_bytes());
        payload.extend_from_slice(&node.key);
        payload.extend_from_slice(&ip.octets());
        payload.extend_from_slice(&node.addr.port().to_le_bytes());
        payload.push(u8::from(node.is_removed));
        payload.extend_from_slice(&[0; 5]);
    }
    payload
}

pub(crate) fn parse(payload: &[u8]) -> Option<BTreeMap<NodeId, KnownNode>> {
    let mut cursor = Cursor::new(payload);
    let count = usize::try_from(cursor.u64()?).ok()?;
    if count > NODES_MAX || cursor.left() != count * NODE_BYTES {
        return None;
    }
    let mut nodes = BTreeMap::new();
    for _ in 0..count {
        let (id, key) = (NodeId(cursor.u64()?), cursor.array()?);
        let ip = Ipv6Addr::from(cursor.array::<16>()?).to_canonical();
        let port = u16::from_le_bytes(cursor.array()?);
        let [is_removed, reserved @ ..] = cursor.array::<6>()?;
        if is_removed > 1 || reserved != [0; 5] {
            return None;
        }
        nodes.insert(id, KnownNode { key, addr: SocketAddr::new(ip, port), is_removed: is_removed == 1 });
    }
    (nodes.len() == count).then_some(nodes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_are_read_as_they_were_written() {
        let four = KnownNode { key: [4; 32], addr: ([127, 0, 0, 1], 9).into(), is_removed: false };
        let six = KnownNode { key: [6; 32], addr: "[::1]:80".parse().unwrap(), is_removed: true };
        let nodes = BTreeMap::from([(NodeId(1), four), (NodeId(7), six)]);
        let bytes = encode(&nodes);
        assert_eq!(parse(&bytes), Some(nodes));
        assert_eq!(parse(&encode(&BTreeMap::new())), Some(BTreeMap::new()));
        for cut in 0..bytes.len() {
            assert_eq!(parse(&bytes[..cut]), None, "cut at {cut}");
        }
        let mut odd = bytes;
        *odd.last_mut().unwrap() = 1;
        assert_eq!(parse(&odd), None, "reserved bytes");
    }
}

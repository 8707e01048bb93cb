//! Who may connect: nodes and clients by endpoint id. Nobody else.
//!
//! Invariant: a key stands for at most one node, a node for exactly one key.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;

use iroh::EndpointId;
use iroh_raft_core::NodeId;

use crate::port::Rights;

/// A node and how to reach it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PeerAddress {
    /// The node.
    pub node: NodeId,
    /// Its key.
    pub endpoint: EndpointId,
    /// Where its bridge listens (UDP).
    pub addr: SocketAddr,
}

/// A client and what it may do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ClientGrant {
    /// Its key.
    pub endpoint: EndpointId,
    /// What it may do.
    pub rights: Rights,
}

/// Why an allow-list is not one.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum AllowError {
    /// Node 0 is no node.
    #[error("node id 0 is not a node: number nodes from 1")]
    NodeZero,
    /// The same node twice, or this node among its peers.
    #[error("node {node} is listed twice: give every node one line")]
    NodeTwice {
        /// The node.
        node: NodeId,
    },
    /// One key for two nodes.
    #[error("nodes {first} and {second} have the same key: every node needs its own key file")]
    KeyTwice {
        /// One node.
        first: NodeId,
        /// The other.
        second: NodeId,
    },
    /// The node was removed: neither its number nor its key comes back.
    #[error("node {node} was removed for good: give the machine a new number and a new key")]
    Removed {
        /// The node.
        node: NodeId,
    },
    /// One key for two clients.
    #[error("client {endpoint} is listed twice: give every client one line")]
    ClientTwice {
        /// The client's key.
        endpoint: EndpointId,
    },
}

/// Keys of the peers and of the clients. The default is nobody.
#[derive(Debug, Default)]
pub(crate) struct AllowList {
    /// Every node and every key that was ever given, this node's included. Those of nodes that are gone stay.
    nodes: HashMap<NodeId, EndpointId>,
    peers: HashMap<EndpointId, PeerAddress>,
    removed: HashSet<EndpointId>,
    clients: HashMap<EndpointId, Rights>,
}

impl AllowList {
    pub(crate) fn new(
        own: (NodeId, EndpointId),
        peers: &[PeerAddress],
        clients: &[ClientGrant],
    ) -> Result<AllowList, AllowError> {
        let mut list = AllowList::default();
        if own.0 == NodeId(0) {
            return Err(AllowError::NodeZero);
        }
        list.nodes.insert(own.0, own.1);
        for peer in peers {
            if list.nodes.contains_key(&peer.node) {
                return Err(AllowError::NodeTwice { node: peer.node });
            }
            list.check(peer)?;
            list.add(peer);
        }
        for client in clients {
            if list.clients.insert(client.endpoint, client.rights).is_some() {
                return Err(AllowError::ClientTwice { endpoint: client.endpoint });
            }
        }
        Ok(list)
    }

    /// Whether a node can be added, or is there already with this key.
    pub(crate) fn check(&self, peer: &PeerAddress) -> Result<(), AllowError> {
        let PeerAddress { node, endpoint, .. } = *peer;
        if node == NodeId(0) {
            return Err(AllowError::NodeZero);
        }
        let known = self.nodes.iter().find(|(id, key)| **id == node || **key == endpoint);
        match known {
            Some(_) if self.removed.contains(&endpoint) => Err(AllowError::Removed { node }),
            Some((id, key)) if self.removed.contains(key) => Err(AllowError::Removed { node: *id }),
            Some((id, key)) if (*id, *key) == (node, endpoint) => Ok(()),
            Some((id, _)) if *id == node => Err(AllowError::NodeTwice { node }),
            Some((id, _)) => Err(AllowError::KeyTwice { first: *id, second: node }),
            None => Ok(()),
        }
    }

    /// Lets a node in that was [checked](AllowList::check).
    pub(crate) fn add(&mut self, peer: &PeerAddress) {
        self.nodes.insert(peer.node, peer.endpoint);
        self.peers.insert(peer.endpoint, *peer);
    }

    /// The key of a peer.
    pub(crate) fn key_of_peer(&self, node: NodeId) -> Option<EndpointId> {
        self.nodes.get(&node).copied().filter(|key| self.peers.contains_key(key))
    }

    /// Keeps a peer out for good.
    pub(crate) fn remove(&mut self, node: NodeId) {
        if let Some(key) = self.key_of_peer(node) {
            self.bury(node, key);
        }
    }

    /// Keeps out a node that was removed before this start.
    pub(crate) fn bury(&mut self, node: NodeId, endpoint: EndpointId) {
        self.nodes.insert(node, endpoint);
        self.peers.remove(&endpoint);
        self.removed.insert(endpoint);
    }

    /// The nodes that may connect, and where they are.
    pub(crate) fn peers(&self) -> impl Iterator<Item = &PeerAddress> {
        self.peers.values()
    }

    /// The node whose key this is.
    pub(crate) fn peer(&self, endpoint: &EndpointId) -> Option<NodeId> {
        self.peers.get(endpoint).map(|peer| peer.node)
    }

    /// What the client with this key may do.
    pub(crate) fn client(&self, endpoint: &EndpointId) -> Option<Rights> {
        self.clients.get(endpoint).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::Identity;

    fn key() -> EndpointId {
        Identity::generate().endpoint_id()
    }

    fn peer(node: u64, endpoint: EndpointId) -> PeerAddress {
        PeerAddress { node: NodeId(node), endpoint, addr: ([127, 0, 0, 1], 1).into() }
    }

    #[test]
    fn only_listed_keys_are_known_each_in_its_role() {
        let (node, client) = (key(), key());
        let rights = Rights { append: true, read: false, manage: false };
        let grant = ClientGrant { endpoint: client, rights };
        let list = AllowList::new((NodeId(1), key()), &[peer(2, node)], &[grant]).unwrap();
        assert_eq!((list.peer(&node), list.client(&node)), (Some(NodeId(2)), None));
        assert_eq!((list.peer(&client), list.client(&client)), (None, Some(rights)));
        assert_eq!((list.peer(&key()), list.client(&key())), (None, None));
    }

    #[test]
    fn a_node_that_was_removed_stays_out_with_its_key() {
        let (two, three) = (key(), key());
        let mut list = AllowList::new((NodeId(1), key()), &[peer(2, two)], &[]).unwrap();
        assert_eq!(list.check(&peer(2, two)), Ok(()));
        assert_eq!(list.check(&peer(2, three)), Err(AllowError::NodeTwice { node: NodeId(2) }));
        let twice = AllowError::KeyTwice { first: NodeId(2), second: NodeId(3) };
        assert_eq!(list.check(&peer(3, two)), Err(twice));
        assert_eq!(list.key_of_peer(NodeId(2)), Some(two));
        list.remove(NodeId(2));
        assert_eq!(list.key_of_peer(NodeId(2)), None);
        assert_eq!(list.peer(&two), None);
        let removed = Err(AllowError::Removed { node: NodeId(2) });
        assert_eq!((list.check(&peer(2, two)), list.check(&peer(2, three))), (removed, removed));
        assert_eq!(list.check(&peer(3, two)), Err(AllowError::Removed { node: NodeId(3) }));
        assert_eq!(list.check(&peer(3, three)), Ok(()));
        list.bury(NodeId(4), three);
        assert_eq!(list.check(&peer(5, three)), Err(AllowError::Removed { node: NodeId(5) }));
    }

    #[test]
    fn a_list_that_names_a_node_or_a_key_twice_is_refused() {
        let (own, other) = (key(), key());
        let new = |peers: &[PeerAddress], clients: &[ClientGrant]| {
            AllowList::new((NodeId(1), own), peers, clients).unwrap_err()
        };
        assert_eq!(new(&[peer(0, other)], &[]), AllowError::NodeZero);
        assert_eq!(new(&[peer(1, other)], &[]), AllowError::NodeTwice { node: NodeId(1) });
        let twice = AllowError::KeyTwice { first: NodeId(1), second: NodeId(2) };
        assert_eq!(new(&[peer(2, own)], &[]), twice);
        let grant = ClientGrant { endpoint: other, rights: Rights::default() };
        assert_eq!(new(&[], &[grant, grant]), AllowError::ClientTwice { endpoint: other });
    }
}

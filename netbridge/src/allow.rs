//! Who may connect: nodes and clients by endpoint id. Nobody else.
//!
//! Invariant: a key stands for at most one node, a node for exactly one key.

use std::collections::HashMap;
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
    /// One key for two clients.
    #[error("client {endpoint} is listed twice: give every client one line")]
    ClientTwice {
        /// The client's key.
        endpoint: EndpointId,
    },
}

/// Keys of the peers and of the clients. The default is nobody.
#[derive(Clone, Debug, Default)]
pub(crate) struct AllowList {
    peers: HashMap<EndpointId, NodeId>,
    clients: HashMap<EndpointId, Rights>,
}

impl AllowList {
    pub(crate) fn new(
        own: (NodeId, EndpointId),
        peers: &[PeerAddress],
        clients: &[ClientGrant],
    ) -> Result<AllowList, AllowError> {
        let mut list = AllowList::default();
        let mut nodes = HashMap::from([own]);
        let mut keys = HashMap::from([(own.1, own.0)]);
        if own.0 == NodeId(0) {
            return Err(AllowError::NodeZero);
        }
        for peer in peers {
            if peer.node == NodeId(0) {
                return Err(AllowError::NodeZero);
            }
            if nodes.insert(peer.node, peer.endpoint).is_some() {
                return Err(AllowError::NodeTwice { node: peer.node });
            }
            if let Some(first) = keys.insert(peer.endpoint, peer.node) {
                return Err(AllowError::KeyTwice { first, second: peer.node });
            }
            list.peers.insert(peer.endpoint, peer.node);
        }
        for client in clients {
            if list.clients.insert(client.endpoint, client.rights).is_some() {
                return Err(AllowError::ClientTwice { endpoint: client.endpoint });
            }
        }
        Ok(list)
    }

    /// The node whose key this is.
    pub(crate) fn peer(&self, endpoint: &EndpointId) -> Option<NodeId> {
        self.peers.get(endpoint).copied()
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

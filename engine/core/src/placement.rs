//! Which shard of a node has which group.
//!
//! A group is on the shard of its number modulo the number of shards, unless it is placed by name. That is a node's own
//! affair: nodes of one cluster may differ, so that they can be given another number of shards one after the other, or a
//! single busy group a shard for itself. Each tells the others in the handshake of a connection, and has one
//! placement from its start to its end.

use std::collections::BTreeMap;

use crate::ids::{GroupId, NodeId, ShardId};
use crate::io::{MessageKind, PeerMessage, ShardConfig};
use crate::liveness::shards_of;
use crate::mutants::{self, Mutant};
use crate::validate::Refusal;

/// Groups that are placed by name at most: a handshake carries them all.
pub const PLACED_MAX: usize = 1024;

/// The placement of one node.
#[derive(Clone, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Placement {
    shard_count: u16,
    /// Only groups that would be elsewhere by their number: equal placements compare equal.
    placed: BTreeMap<GroupId, ShardId>,
}

/// Why a placement is impossible. Trying again does not help.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum PlacementError {
    /// A node has at least one shard.
    #[error("a node has at least one shard")]
    NoShards,
    /// Group 0 is none.
    #[error("0 is not a group: choose 1 or higher")]
    GroupZero,
    /// More groups are placed by name than may be.
    #[error("{count} groups are placed by name, {PLACED_MAX} may be")]
    TooMany {
        /// How many.
        count: usize,
    },
    /// A group is placed on a shard that the node does not have.
    #[error("group {group} is placed on shard {shard}, and the last one is {}", shard_count - 1)]
    NoSuchShard {
        /// The group.
        group: GroupId,
        /// The shard named for it.
        shard: ShardId,
        /// Shards of the node.
        shard_count: u16,
    },
}

impl Placement {
    /// One shard, which has all groups.
    pub const ONE_SHARD: Placement = Placement { shard_count: 1, placed: BTreeMap::new() };

    /// All groups by their numbers.
    ///
    /// # Errors
    /// [`PlacementError::NoShards`].
    pub fn even(shard_count: u16) -> Result<Placement, PlacementError> {
        Placement::new(shard_count, BTreeMap::new())
    }

    /// Some groups by name, the others by their numbers.
    ///
    /// # Errors
    /// [`PlacementError`].
    pub fn new(shard_count: u16, placed: BTreeMap<GroupId, ShardId>) -> Result<Placement, PlacementError> {
        if shard_count == 0 {
            return Err(PlacementError::NoShards);
        }
        if placed.len() > PLACED_MAX {
            return Err(PlacementError::TooMany { count: placed.len() });
        }
        if placed.contains_key(&GroupId(0)) {
            return Err(PlacementError::GroupZero);
        }
        if let Some((&group, &shard)) = placed.iter().find(|(_, shard)| shard.0 >= shard_count) {
            return Err(PlacementError::NoSuchShard { group, shard, shard_count });
        }
        let mut placement = Placement { shard_count, placed };
        placement.placed.retain(|group, shard| by_number(*group, shard_count) != *shard);
        Ok(placement)
    }

    /// Shards of the node, at least 1.
    #[must_use]
    pub fn shard_count(&self) -> u16 {
        self.shard_count
    }

    /// All shards of the node.
    pub fn shards(&self) -> impl Iterator<Item = ShardId> + use<> {
        (0..self.shard_count).map(ShardId)
    }

    /// Groups that are not on the shard of their number.
    #[must_use]
    pub fn placed(&self) -> &BTreeMap<GroupId, ShardId> {
        &self.placed
    }

    /// The shard that has, or would have, this group.
    #[must_use]
    pub fn shard_of(&self, group: GroupId) -> ShardId {
        self.placed.get(&group).copied().unwrap_or_else(|| by_number(group, self.shard_count))
    }
}

impl Default for Placement {
    fn default() -> Placement {
        Placement::ONE_SHARD
    }
}

fn by_number(group: GroupId, shard_count: u16) -> ShardId {
    ShardId((group.0 % u64::from(shard_count)) as u16)
}

/// A shard of another node.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct PeerShard {
    pub(crate) node: NodeId,
    pub(crate) shard: ShardId,
}

/// What a shard knows of where groups are: on its own node, and on the others.
#[derive(Debug)]
pub(crate) struct Placements {
    here: ShardId,
    own: Placement,
    /// Those that are not like the own one. Bounded by the nodes that may connect.
    peers: BTreeMap<NodeId, Placement>,
}

impl Placements {
    pub(crate) fn new(config: &ShardConfig) -> Placements {
        Placements { here: config.shard, own: config.placement.clone(), peers: BTreeMap::new() }
    }

    /// A node has said how its groups are placed. Returns whether that is news.
    pub(crate) fn set(&mut self, node: NodeId, placement: Placement) -> bool {
        if *self.of(node) == placement {
            return false;
        }
        if mutants::is(Mutant::PlacementKept) && self.peers.contains_key(&node) {
            return false;
        }
        if placement == self.own {
            self.peers.remove(&node);
        } else {
            self.peers.insert(node, placement);
        }
        true
    }

    /// As a node said; as long as it has said nothing, like the own one.
    fn of(&self, node: NodeId) -> &Placement {
        self.peers.get(&node).unwrap_or(&self.own)
    }

    /// Why nothing of a group is for this shard, if the group belongs to another one.
    pub(crate) fn elsewhere(&self, group: GroupId) -> Option<Refusal> {
        let shard = self.own.shard_of(group);
        (shard != self.here).then_some(Refusal::Elsewhere { shard })
    }

    /// Where another node has its replica of a group.
    pub(crate) fn at(&self, node: NodeId, group: GroupId) -> PeerShard {
        let shard = match mutants::is(Mutant::LivenessByNumber) {
            true => self.here,
            false => self.of(node).shard_of(group),
        };
        PeerShard { node, shard }
    }

    /// The shard of its receiver that a message is for.
    pub(crate) fn destination(&self, message: &PeerMessage) -> ShardId {
        match message.kind {
            MessageKind::Beat => shards_of(message).1,
            _ if mutants::is(Mutant::PlacementIgnored) => self.here,
            _ => self.of(message.to).shard_of(message.group),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn placed(pairs: &[(u64, u16)]) -> BTreeMap<GroupId, ShardId> {
        pairs.iter().map(|(group, shard)| (GroupId(*group), ShardId(*shard))).collect()
    }

    #[test]
    fn groups_are_where_their_number_says_or_their_name() {
        let placement = Placement::new(3, placed(&[(4, 0), (5, 2)])).expect("possible");
        let shards: Vec<u16> = (1..=6).map(|group| placement.shard_of(GroupId(group)).0).collect();
        assert_eq!(shards, [1, 2, 0, 0, 2, 0]);
        assert_eq!(placement.placed().len(), 1, "group 5 is on shard 2 by its number");
        assert_eq!(Placement::new(3, placed(&[(5, 2)])), Placement::even(3));
    }

    #[test]
    fn impossible_ones_are_refused() {
        assert_eq!(Placement::even(0), Err(PlacementError::NoShards));
        assert_eq!(Placement::new(2, placed(&[(0, 1)])), Err(PlacementError::GroupZero));
        let error = PlacementError::NoSuchShard { group: GroupId(7), shard: ShardId(2), shard_count: 2 };
        assert_eq!(Placement::new(2, placed(&[(7, 2)])), Err(error));
        let many: Vec<(u64, u16)> = (1..=PLACED_MAX as u64 + 1).map(|group| (group, 0)).collect();
        assert_eq!(Placement::new(2, placed(&many)), Err(PlacementError::TooMany { count: PLACED_MAX + 1 }));
    }

    #[test]
    fn a_node_is_taken_to_be_like_this_one_until_it_says_otherwise() {
        let own = Placement::even(2).expect("possible");
        let config =
            ShardConfig { shard: ShardId(1), placement: own.clone(), ..ShardConfig::new(NodeId(1), 0) };
        let mut placements = Placements::new(&config);
        let at = |placements: &Placements| placements.at(NodeId(2), GroupId(3)).shard;
        assert_eq!(placements.elsewhere(GroupId(3)), None);
        assert_eq!(placements.elsewhere(GroupId(4)), Some(Refusal::Elsewhere { shard: ShardId(0) }));
        assert!(at(&placements) == ShardId(1) && !placements.set(NodeId(2), own.clone()));
        assert!(placements.set(NodeId(2), Placement::default()) && at(&placements) == ShardId(0));
        assert!(!placements.set(NodeId(2), Placement::default()), "that is no news");
        assert!(placements.set(NodeId(2), own) && at(&placements) == ShardId(1));
    }
}

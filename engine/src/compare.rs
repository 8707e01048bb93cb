//! Comparing the replica of this node with those of others.

use iroh_raft_core::{DigestState, GroupCommand, GroupId, Index, RequestError, StateDigest};
use iroh_raft_netbridge::wire::{ClientBody, ReplyBody};

use crate::engine::Engine;

impl Engine {
    /// Marks a place in the log of a group that this node leads: every replica digests its state right after it, what the
    /// group keeps of cursors and sessions included. Returns the place, once it is committed; then each node can be asked for
    /// its [`state_digest`](Engine::state_digest). A client of the cluster does all of it at once:
    /// [`Client::compare_state`](crate::net::client::Client::compare_state).
    ///
    /// # Errors
    /// [`Comparing`](iroh_raft_core::BusyReason::Comparing) while this shard is at work on another state; others as everywhere.
    pub async fn begin_comparison(&self, group: GroupId) -> Result<Index, RequestError> {
        match self.request(group, ClientBody::Command(GroupCommand::Compare)).await? {
            ReplyBody::CommandDone { index, .. } => Ok(index),
            _ => Err(RequestError::Invalid { what: "the shard answered something else" }),
        }
    }

    /// What this node's replica of a group came to at a marked place. `expected` is what others came to: if it differs, this
    /// node says so in its log and counts it ([`states_differing`](crate::stats::ShardStats::states_differing)).
    ///
    /// # Errors
    /// [`RequestError`].
    pub async fn state_digest(
        &self,
        group: GroupId,
        index: Index,
        expected: Option<StateDigest>,
    ) -> Result<DigestState, RequestError> {
        match self.request(group, ClientBody::StateDigest { index, expected }).await? {
            ReplyBody::StateDigest { state, .. } => Ok(state),
            _ => Err(RequestError::Invalid { what: "the shard answered something else" }),
        }
    }
}

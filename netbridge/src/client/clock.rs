//! What time it is at a node.

use iroh_raft_core::{GroupId, NodeId, WallTime};

use super::call::Outcome;
use super::{Client, ClientError};
use crate::wire::ClientBody;

impl Client {
    /// What time it is at this node, to a millisecond, by the clock that stamps records there.
    ///
    /// # Errors
    /// [`ClientError`]; a lost connection is one at once. A node of an older build closes the connection.
    pub async fn clock(&self, node: NodeId) -> Result<WallTime, ClientError> {
        let target = self.shared().node_at(node)?;
        // Of no group: any will do.
        match self.ask(GroupId(1), ClientBody::Clock, target).await? {
            Outcome::Clock(time) => Ok(time),
            _ => unreachable!("succeed() gives a clock nothing else"),
        }
    }
}

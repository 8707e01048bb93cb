//! Who may connect, and changes of the nodes among them while the bridge runs.

use std::sync::{Mutex, MutexGuard, PoisonError};

use iroh_raft_core::NodeId;
use tokio::sync::Notify;

use crate::allow::{AllowError, AllowList, PeerAddress};
use crate::identity::EndpointId;

/// The nodes that may connect to a bridge. Changes of it wait for each other, and nobody else waits for them.
#[derive(Debug)]
pub struct PeerList {
    allow: Mutex<AllowList>,
    /// Held while a change is remembered, which takes as long as a disk does. Locked before `allow`.
    changes: Mutex<()>,
    /// Rung when the peers have changed.
    changed: Notify,
}

impl PeerList {
    pub(super) fn new(allow: AllowList) -> PeerList {
        PeerList { allow: Mutex::new(allow), changes: Mutex::new(()), changed: Notify::new() }
    }

    /// Lets a node in from now on, and dials it. One that is known with this key may get another address.
    /// `remember` is called before that takes effect, unless the node is refused: what it returns stands. It may block,
    /// and must not change this list.
    ///
    /// # Errors
    /// [`AllowError`] as `E` when its number or key is another node's, or was removed; what `remember` says.
    pub fn add<E: From<AllowError>>(
        &self,
        peer: PeerAddress,
        remember: impl FnOnce() -> Result<(), E>,
    ) -> Result<(), E> {
        let _alone = self.changes();
        self.allow().check(&peer)?;
        remember()?;
        self.allow().add(&peer);
        self.changed.notify_one();
        Ok(())
    }

    /// Keeps a node out for good: its connection ends, and neither its number nor its key comes back. `remember` is
    /// called with its key before that takes effect; it may block, and must not change this list. Whether it was a peer.
    ///
    /// # Errors
    /// What `remember` says.
    pub fn remove<E>(
        &self,
        node: NodeId,
        remember: impl FnOnce(EndpointId) -> Result<(), E>,
    ) -> Result<bool, E> {
        let _alone = self.changes();
        let Some(key) = self.allow().key_of_peer(node) else { return Ok(false) };
        remember(key)?;
        self.allow().remove(node);
        self.changed.notify_one();
        Ok(true)
    }

    /// Nodes that may connect, connected or not.
    #[must_use]
    pub fn count(&self) -> usize {
        self.allow().peers().count()
    }

    /// Who may connect. Locked by the bridge thread for every connection: never held while something is waited for.
    pub(crate) fn allow(&self) -> MutexGuard<'_, AllowList> {
        self.allow.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a change; for the one task that keeps the peers.
    pub(super) async fn changed(&self) {
        self.changed.notified().await;
    }

    fn changes(&self) -> MutexGuard<'_, ()> {
        self.changes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

//! The way of a command to a cluster.

use std::path::PathBuf;
use std::time::Duration;

use iroh_raft::net::client::{Client, ClientConfig, ClientError, ClientLimits};
use iroh_raft::net::identity::IdentityError;
use iroh_raft::{Identity, cluster_id};

use crate::cli::Access;
use crate::say::Failure;
use iroh_raft::net::cluster_file::ClusterFile;

/// Why a command cannot get at the cluster.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AccessError {
    #[error("{} is no key of a client ({source}): make one with `iroh-raft client-key`, and start the nodes again", path.display())]
    Key { path: PathBuf, source: IdentityError },
    #[error("{} names no nodes: `iroh-raft init` adds them", path.display())]
    NoNodes { path: PathBuf },
    #[error("{error}; the nodes of {} are {nodes}", path.display())]
    Connect { path: PathBuf, nodes: String, error: ClientError },
}

/// A client, with who belongs to its cluster.
pub(crate) struct Connected {
    pub(crate) client: Client,
    pub(crate) file: ClusterFile,
}

/// Connects, does something, and says good-bye.
pub(crate) fn with<T>(
    access: &Access,
    work: impl AsyncFnOnce(&Connected) -> Result<T, Failure>,
) -> Result<T, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(Failure::io("cannot start a runtime"))?.block_on(async {
        let connected = connect(access).await?;
        let result = work(&connected).await;
        connected.client.close();
        // The nodes hear that it is gone; not at any price.
        let _ = tokio::time::timeout(Duration::from_secs(1), connected.client.closed()).await;
        result
    })
}

async fn connect(access: &Access) -> Result<Connected, Failure> {
    let file = ClusterFile::read(&access.cluster_file)?;
    let name = file.name(&access.cluster_file)?;
    if file.nodes.is_empty() {
        return Err(AccessError::NoNodes { path: access.cluster_file.clone() }.into());
    }
    let identity = Identity::load(&access.key)
        .map_err(|source| AccessError::Key { path: access.key.clone(), source })?;
    let config = ClientConfig {
        cluster: cluster_id(name),
        identity,
        nodes: file.nodes.clone(),
        bind: None,
        limits: ClientLimits {
            deadline: access.deadline,
            connect_deadline: access.deadline,
            ..ClientLimits::default()
        },
    };
    match Client::connect(config).await {
        Ok(client) => Ok(Connected { client, file }),
        Err(error) => {
            let nodes = file.nodes.iter().map(|node| format!("{} at {}", node.node, node.addr));
            let nodes = nodes.collect::<Vec<_>>().join(", ");
            Err(AccessError::Connect { path: access.cluster_file.clone(), nodes, error }.into())
        }
    }
}

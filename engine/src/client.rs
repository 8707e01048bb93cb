//! The client: a program that uses a cluster and is no node of it.
//!
//! It is all of this crate that is left with `default-features = false`:
//!
//! ```toml
//! iroh-raft = { version = "0.1", default-features = false }
//! ```
//!
//! # Connecting
//!
//! A client is known by its key, which the nodes must have in their lists; it knows the nodes by theirs. It needs a tokio runtime.
//!
//! ```
//! # use std::time::Duration;
//! # use iroh_raft::client::{Client, ClientConfig, ClientLimits, PeerAddress};
//! # use iroh_raft::{GroupId, Identity, NodeId, Offset, Rights, cluster_id};
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let folder = tempfile::tempdir()?;
//! # let identity = Identity::generate();
//! # let cluster = iroh_raft::RaftCluster::builder()
//! #     .node_id(1)
//! #     .cluster("orders")
//! #     .preset(iroh_raft::Preset::Development)
//! #     .data_dir(folder.path().join("node"))
//! #     .client(identity.endpoint_id(), Rights { append: true, read: true, manage: true })
//! #     .build()
//! #     .await?;
//! # let (endpoint, addr) = (cluster.engine().endpoint_id(), cluster.engine().local_addr());
//! # let nodes = vec![PeerAddress { node: NodeId(1), endpoint, addr }];
//! let config = ClientConfig {
//!     cluster: cluster_id("orders"),
//!     // The key from a file: `Identity::load_or_create("client.key")?`.
//!     identity,
//!     // Number, public key and address of each node.
//!     nodes,
//!     bind: None,
//!     // Each call waits so long at most, whatever it tries meanwhile; `with_deadline` gives single calls another time.
//!     limits: ClientLimits { deadline: Duration::from_secs(5), ..ClientLimits::default() },
//! };
//! let client = Client::connect(config).await?;
//! let appended = client.append(GroupId(1), "first").await?;
//! assert_eq!(appended.offset, Offset(0));
//! # client.close();
//! # cluster.shutdown().await?;
//! # Ok(())
//! # }
//! ```
//!
//! # Appending and reading
//!
//! A batch is acknowledged as one, once a quorum has it on its disks. What has no answer is *unknown*: it may be in the log or not, and
//! the client never sends it again by itself. A [`Session`] does, and has it done once.
//!
//! ```
//! # use std::time::Duration;
//! # use iroh_raft::client::{Client, ClientConfig, ClientLimits, PeerAddress};
//! # use iroh_raft::{GroupId, Identity, NodeId, Offset, Rights, cluster_id};
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let folder = tempfile::tempdir()?;
//! # let identity = Identity::generate();
//! # let cluster = iroh_raft::RaftCluster::builder()
//! #     .node_id(1)
//! #     .cluster("orders")
//! #     .preset(iroh_raft::Preset::Development)
//! #     .data_dir(folder.path().join("node"))
//! #     .client(identity.endpoint_id(), Rights { append: true, read: true, manage: true })
//! #     .build()
//! #     .await?;
//! # let (endpoint, addr) = (cluster.engine().endpoint_id(), cluster.engine().local_addr());
//! # let nodes = vec![PeerAddress { node: NodeId(1), endpoint, addr }];
//! # let config = ClientConfig {
//! #     cluster: cluster_id("orders"), identity, nodes, bind: None, limits: ClientLimits::default(),
//! # };
//! # let client = Client::connect(config).await?;
//! let group = GroupId(1);
//! let batch = client.append_batch(group, &["a", "b", "c"]).await?;
//! let records = client.read(NodeId(1), group, batch.offset, 1 << 20).await?;
//! let data: Vec<&[u8]> = records.iter().map(|record| record.data).collect();
//! assert_eq!(data, [b"a", b"b", b"c"]);
//!
//! let mut session = client.open_session(group, Duration::from_secs(3600)).await?;
//! session.append(&["once, however often it is sent"]).await?;
//! session.close().await?;
//! # client.close();
//! # cluster.shutdown().await?;
//! # Ok(())
//! # }
//! ```
//!
//! # Following
//!
//! A [`Tail`] gives each committed record once, in order, across leaders that change and connections that break.
//!
//! ```
//! # use std::time::Duration;
//! # use iroh_raft::client::{Client, ClientConfig, ClientLimits, PeerAddress};
//! # use iroh_raft::{GroupId, Identity, NodeId, Offset, Rights, cluster_id};
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let folder = tempfile::tempdir()?;
//! # let identity = Identity::generate();
//! # let cluster = iroh_raft::RaftCluster::builder()
//! #     .node_id(1)
//! #     .cluster("orders")
//! #     .preset(iroh_raft::Preset::Development)
//! #     .data_dir(folder.path().join("node"))
//! #     .client(identity.endpoint_id(), Rights { append: true, read: true, manage: true })
//! #     .build()
//! #     .await?;
//! # let (endpoint, addr) = (cluster.engine().endpoint_id(), cluster.engine().local_addr());
//! # let nodes = vec![PeerAddress { node: NodeId(1), endpoint, addr }];
//! # let config = ClientConfig {
//! #     cluster: cluster_id("orders"), identity, nodes, bind: None, limits: ClientLimits::default(),
//! # };
//! # let client = Client::connect(config).await?;
//! # use iroh_raft::client::TailOptions;
//! let group = GroupId(1);
//! client.append_batch(group, &["a", "b"]).await?;
//! let mut tail = client.tail(group, Offset(0), TailOptions::default())?;
//! let records = tail.next().await?;
//! assert_eq!(records.iter().next().map(|record| record.data), Some(&b"a"[..]));
//! # client.close();
//! # cluster.shutdown().await?;
//! # Ok(())
//! # }
//! ```
//!
//! # When something fails
//!
//! [`ClientError::retry`] says whether asking again can help: `Safe` when nothing was done, `OutcomeUnknown` when it may have been. What is safe the
//! client has already asked again by itself, at the leader it was told of, with pauses that grow
//! ([`ClientLimits::retry_pause_min`]), up to [`ClientLimits::attempts_max`] times and within the deadline. `Busy` says when to come again.
//! All calls of a client together have a budget for that ([`ClientLimits::retry_tokens_max`]): with a cluster in which everything fails they end with
//! [`ClientError::RetriesSpent`], or as unknown where they may be done, and do not multiply its load. Whoever asks again then does so after a pause.
//!
//! ```
//! # use std::time::Duration;
//! # use iroh_raft::client::{Client, ClientConfig, ClientLimits, PeerAddress};
//! # use iroh_raft::{GroupId, Identity, NodeId, Offset, Rights, cluster_id};
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let folder = tempfile::tempdir()?;
//! # let identity = Identity::generate();
//! # let cluster = iroh_raft::RaftCluster::builder()
//! #     .node_id(1)
//! #     .cluster("orders")
//! #     .preset(iroh_raft::Preset::Development)
//! #     .data_dir(folder.path().join("node"))
//! #     .client(identity.endpoint_id(), Rights { append: true, read: true, manage: true })
//! #     .build()
//! #     .await?;
//! # let (endpoint, addr) = (cluster.engine().endpoint_id(), cluster.engine().local_addr());
//! # let nodes = vec![PeerAddress { node: NodeId(1), endpoint, addr }];
//! # let config = ClientConfig {
//! #     cluster: cluster_id("orders"), identity, nodes, bind: None, limits: ClientLimits::default(),
//! # };
//! # let client = Client::connect(config).await?;
//! # use iroh_raft::client::ClientError;
//! # use iroh_raft::{RequestError, Retry};
//! let error = client.with_deadline(Duration::from_millis(200)).append(GroupId(99), "x").await.unwrap_err();
//! assert_eq!(error, ClientError::Request(RequestError::UnknownGroup));
//! assert_eq!(error.retry(), Retry::Never);
//! # client.close();
//! # cluster.shutdown().await?;
//! # Ok(())
//! # }
//! ```

pub use iroh_raft_netbridge::client::*;

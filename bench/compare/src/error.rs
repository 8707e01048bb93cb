//! Why a benchmark cannot go on.

use iroh_raft_bench::store::StoreError;

pub type Result<T, E = BenchError> = std::result::Result<T, E>;

/// Why a benchmark cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// Our storage.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// raft-engine.
    #[error("raft-engine failed: {0}")]
    Peer(#[from] raft_engine::Error),
    /// The file system.
    #[error("the file system failed: {0}")]
    Io(#[from] std::io::Error),
    /// raft-engine gave back something else than was written.
    #[error("raft-engine has another entry of group {group} at index {index} than was written")]
    PeerContent {
        /// The group.
        group: u64,
        /// The index.
        index: u64,
    },
    /// A child process of the reopen line.
    #[error("the child process {what}")]
    Child {
        /// What it did.
        what: String,
    },
    /// A histogram's value.
    #[error("a time does not fit its histogram: {0}")]
    Histogram(#[from] hdrhistogram::RecordError),
    /// A line that does not exist.
    #[error("there is no line {name:?}; there are: {known}")]
    NoSuchLine {
        /// What was asked for.
        name: String,
        /// All there are.
        known: String,
    },
}

//! Why a call of a client failed.

use std::sync::Arc;

use iroh_raft_core::{NodeId, RequestError, Retry};

/// Why a call failed. [`retry`](ClientError::retry) says whether to try again.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ClientError {
    /// The node refused the request, and the client could not mend that within the deadline.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// It was sent, and the answer will never come: it may have been done or not.
    #[error("the outcome is unknown: the connection or the time was lost after the request was sent")]
    OutcomeUnknown,
    /// Time ran out before it was sent, or nothing was done.
    #[error("deadline passed before the request was done; nothing was changed")]
    Deadline,
    /// No connection to the node or nodes, for as long as the call could wait.
    #[error("no node could be reached: {reason}")]
    Unreachable {
        /// What the last attempt met.
        reason: Arc<str>,
    },
    /// Nothing was done, and the client may send nothing anew at present: its retry budget
    /// ([`ClientLimits::retry_tokens_max`](super::ClientLimits::retry_tokens_max)) is spent. Try again later: whoever does so at
    /// once puts the load on the cluster that the budget keeps from it.
    #[error(
        "the client's retries are spent, try again later; nothing was changed, and the last attempt ended so: {last}"
    )]
    RetriesSpent {
        /// How the last attempt ended.
        last: Arc<ClientError>,
    },
    /// A node refuses this client.
    #[error("node {node} refuses this client: {reason}")]
    Refused {
        /// The node.
        node: NodeId,
        /// Why, and what to do.
        reason: Arc<str>,
    },
    /// Too much is under way already: wait for completions.
    #[error("too many bytes of calls are under way: wait for completions, or raise in_flight_bytes_max")]
    Full,
    /// The session has something unfinished: its sequence is taken.
    #[error("an earlier append of the session is unfinished: resume it first")]
    Unfinished,
    /// The session is over ([`Session::is_over`](super::Session::is_over)).
    #[error(
        "the session is over: what was refused last may be in the log, by an earlier attempt; open another session"
    )]
    Over,
    /// No record was given.
    #[error("no records: give at least one")]
    Empty,
    /// A call is larger than a frame may be.
    #[error("{bytes} bytes are over the limit of {bytes_max}: split it up")]
    TooLarge {
        /// Its size.
        bytes: u64,
        /// Largest size.
        bytes_max: u64,
    },
    /// The node is not one of the configured ones.
    #[error("node {node} is not in this client's list of nodes")]
    UnknownNode {
        /// The node.
        node: NodeId,
    },
    /// The node answered something else than it was asked.
    #[error("node {node} sent an answer that does not fit the request: it runs another build, or is broken")]
    Protocol {
        /// The node.
        node: NodeId,
    },
    /// The local endpoint could not be set up.
    #[error("the client's endpoint cannot be set up: {reason}")]
    Endpoint {
        /// Why.
        reason: Arc<str>,
    },
    /// The client was closed.
    #[error("the client is closed")]
    Closed,
}

impl ClientError {
    /// Whether trying again can help.
    #[must_use]
    pub fn retry(&self) -> Retry {
        match self {
            ClientError::Request(error) => error.retry(),
            ClientError::OutcomeUnknown => Retry::OutcomeUnknown,
            ClientError::Deadline
            | ClientError::Unreachable { .. }
            | ClientError::RetriesSpent { .. }
            | ClientError::Full => Retry::Safe,
            ClientError::Refused { .. }
            | ClientError::Unfinished
            | ClientError::Over
            | ClientError::Empty
            | ClientError::TooLarge { .. }
            | ClientError::UnknownNode { .. }
            | ClientError::Protocol { .. }
            | ClientError::Endpoint { .. }
            | ClientError::Closed => Retry::Never,
        }
    }
}

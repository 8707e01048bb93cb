//! What users write: a state machine, and the messages it speaks.
//!
//! Invariant: `apply` is a function of the state and of its arguments alone. Every replica applies
//! the same commands in the same order and must come to the same state and the same responses.

use iroh_raft_core::{GroupId, Index, Offset, WallTime};
use rkyv::api::high::{HighDeserializer, HighSerializer, HighValidator};
use rkyv::bytecheck::CheckBytes;
use rkyv::rancor;
use rkyv::ser::allocator::ArenaHandle;
use rkyv::util::AlignedVec;

/// Bytes that are not the message they should be.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{bytes} bytes that are not a valid {name}: the sender's types differ from this build's")]
pub struct DecodeError {
    /// How many bytes there were.
    pub bytes: usize,
    /// The Rust type they should have been.
    pub name: &'static str,
}

/// Something that crosses the log or the network as bytes and is read in place.
///
/// Every type that derives rkyv's `Archive`, `Serialize` and `Deserialize` has it.
pub trait Message: Sized + Send + 'static {
    /// How the message looks in place, without a copy.
    type View<'a>: Copy;

    /// The message's bytes.
    fn encode(&self) -> Vec<u8>;

    /// Validates bytes and reads them in place.
    ///
    /// # Errors
    /// [`DecodeError`] when they are not a message of this type.
    fn view(bytes: &[u8]) -> Result<Self::View<'_>, DecodeError>;

    /// Validates bytes and makes an owned message of them.
    ///
    /// # Errors
    /// [`DecodeError`] when they are not a message of this type.
    fn decode(bytes: &[u8]) -> Result<Self, DecodeError>;
}

impl<T> Message for T
where
    T: rkyv::Archive
        + for<'a> rkyv::Serialize<HighSerializer<AlignedVec, ArenaHandle<'a>, rancor::Error>>
        + Send
        + 'static,
    T::Archived: for<'a> CheckBytes<HighValidator<'a, rancor::Error>>
        + rkyv::Deserialize<T, HighDeserializer<rancor::Error>>
        + 'static,
{
    type View<'a> = &'a T::Archived;

    fn encode(&self) -> Vec<u8> {
        // Serializing to memory fails only for types whose own Serialize fails.
        rkyv::to_bytes::<rancor::Error>(self).expect("the message serializes").to_vec()
    }

    fn view(bytes: &[u8]) -> Result<Self::View<'_>, DecodeError> {
        rkyv::access::<T::Archived, rancor::Error>(bytes).map_err(|_| refused::<T>(bytes))
    }

    fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        rkyv::from_bytes::<T, rancor::Error>(bytes).map_err(|_| refused::<T>(bytes))
    }
}

fn refused<T>(bytes: &[u8]) -> DecodeError {
    DecodeError { bytes: bytes.len(), name: std::any::type_name::<T>() }
}

/// Where a command stands in its group's log.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ApplyContext {
    /// The group.
    pub group: GroupId,
    /// Index of the entry that holds the command.
    pub index: Index,
    /// Offset of the command within the group.
    pub offset: Offset,
    /// The leader's wall clock when it took the command; never runs backwards within a group.
    pub at: WallTime,
}

/// A deterministic state machine, replicated by a group.
///
/// It lives on the shard that owns its group: it must not block, and it needs no locks.
pub trait StateMachine: Send + 'static {
    /// What changes it.
    type Command: Message;
    /// What a change answers.
    type Response: Message;
    /// What can be asked without changing it.
    type Query: Message;
    /// What a question answers.
    type Answer: Message;

    /// Applies one committed command.
    ///
    /// A panic takes the group's replica on this node out of service, until somebody revives it.
    fn apply(
        &mut self,
        context: ApplyContext,
        command: <Self::Command as Message>::View<'_>,
    ) -> Self::Response;

    /// Answers a question from the present state.
    fn query(&self, query: <Self::Query as Message>::View<'_>) -> Self::Answer;

    /// The present state, frozen: it does not change while commands are applied, and is read a little in each of
    /// the shard's turns. Freezing itself happens within a turn, so it has to be cheap: share what is there and copy
    /// what is written to afterwards.
    ///
    /// Equal states must give equal bytes on all replicas, however they came about: in an order of their own (sorted, not
    /// that of a hash map with a random seed), without what is a node's own (clocks, addresses, when it started), and however
    /// the pieces are cut. Replicas are compared by these bytes; where they depend on more than the applied commands, sound replicas are
    /// reported as different.
    ///
    /// Default: `None`, the machine makes no snapshots. Its group's log is then never compacted, and a start
    /// applies all of it again.
    fn snapshot(&self) -> Option<Box<dyn SnapshotView>> {
        None
    }

    /// Takes over the state of a snapshot, step by step; [`Restore`] says which. Between the first step and
    /// the last nothing is applied or asked.
    ///
    /// # Errors
    /// [`RestoreError`] when the bytes are not those of a snapshot of this machine.
    fn restore(&mut self, step: Restore<'_>) -> Result<(), RestoreError> {
        let _ = step;
        Err(RestoreError { problem: "the state machine takes no snapshots" })
    }
}

/// Bytes of one piece of a snapshot at most.
pub const SNAPSHOT_PIECE_BYTES_MAX: usize = 256 << 10;

/// A state that is frozen, as bytes.
pub trait SnapshotView: Send {
    /// The next piece, of 1 to [`SNAPSHOT_PIECE_BYTES_MAX`] bytes; `None` when all is said. Each is made within
    /// a turn of the shard.
    fn next_piece(&mut self) -> Option<Vec<u8>>;
}

/// A step of taking over a snapshot.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Restore<'a> {
    /// Forget everything: the state is that before the first command.
    Begin,
    /// The next bytes of the snapshot. They are cut anywhere, not where the view cut them.
    Bytes(&'a [u8]),
    /// There are no more: the state is that of the snapshot.
    End,
}

/// Why a state machine cannot take over a snapshot.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("not a snapshot of this state machine: {problem}")]
pub struct RestoreError {
    /// What is wrong.
    pub problem: &'static str,
}

/// A state machine behind bytes, as the shard holds it.
pub trait Machine: Send {
    /// Whether bytes are a command: checked before they enter the log.
    fn is_command(&self, command: &[u8]) -> bool;
    /// Applies a command and returns the response's bytes; empty when `command` is not one.
    fn apply(&mut self, context: ApplyContext, command: &[u8]) -> Vec<u8>;
    /// Answers a question.
    fn query(&self, query: &[u8]) -> Result<Vec<u8>, DecodeError>;
    /// See [`StateMachine::snapshot`].
    fn snapshot(&self) -> Option<Box<dyn SnapshotView>>;
    /// See [`StateMachine::restore`].
    fn restore(&mut self, step: Restore<'_>) -> Result<(), RestoreError>;
}

impl<S: StateMachine> Machine for S {
    fn is_command(&self, command: &[u8]) -> bool {
        S::Command::view(command).is_ok()
    }

    fn apply(&mut self, context: ApplyContext, command: &[u8]) -> Vec<u8> {
        // The leader checked it. A build that reads it otherwise would be a bug of the types'
        // evolution; skipping it keeps the replicas that agree about it in step.
        match S::Command::view(command) {
            Ok(view) => StateMachine::apply(self, context, view).encode(),
            Err(error) => {
                tracing::error!(group = %context.group, offset = %context.offset, %error, "skipped a command");
                Vec::new()
            }
        }
    }

    fn query(&self, query: &[u8]) -> Result<Vec<u8>, DecodeError> {
        Ok(StateMachine::query(self, S::Query::view(query)?).encode())
    }

    fn snapshot(&self) -> Option<Box<dyn SnapshotView>> {
        StateMachine::snapshot(self)
    }

    fn restore(&mut self, step: Restore<'_>) -> Result<(), RestoreError> {
        StateMachine::restore(self, step)
    }
}

/// Makes the state machine of a group; `None` for a group that is only a log.
pub type MachineFactory = dyn Fn(GroupId) -> Option<Box<dyn Machine>> + Send + Sync;

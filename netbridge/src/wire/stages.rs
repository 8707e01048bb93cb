//! Where the time of an append went.

use super::FrameError;

/// Where the time of an append went at the node that led its group, as that node's shard saw it. What is left of the time that
/// its caller waited went to the network, the bridge and the caller's own threads.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Debug)]
pub struct Stages {
    /// Microseconds in the ring to the shard.
    pub ring_us: u32,
    /// Microseconds from there to the end of the shard's turn, when the records went to the writer and to the followers.
    pub turn_us: u32,
    /// Microseconds from there until a quorum had them on stable storage, and the shard knew.
    pub commit_us: u32,
    /// Microseconds, of these, until this node's own disk had them; `None` when a quorum of others had them before.
    pub flush_us: Option<u32>,
}

/// The flush was not done.
const NOT_YET: u32 = u32::MAX;

impl Stages {
    pub(super) fn encode(self) -> [u8; 16] {
        // A flush of 71 minutes and one that is not done are the same to the reader.
        let fields = [self.ring_us, self.turn_us, self.commit_us, self.flush_us.unwrap_or(NOT_YET)];
        let mut bytes = [0; 16];
        bytes
            .chunks_exact_mut(4)
            .zip(fields)
            .for_each(|(to, field)| to.copy_from_slice(&field.to_le_bytes()));
        bytes
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Stages, FrameError> {
        let (fields, rest) = bytes.as_chunks::<4>();
        let ([ring_us, turn_us, commit_us, flush_us], []) = (fields, rest) else {
            return Err(FrameError::Count { what: "bytes of the stages of an append" });
        };
        let [ring_us, turn_us, commit_us, flush_us] =
            [ring_us, turn_us, commit_us, flush_us].map(|field| u32::from_le_bytes(*field));
        let flush_us = (flush_us != NOT_YET).then_some(flush_us);
        Ok(Stages { ring_us, turn_us, commit_us, flush_us })
    }
}

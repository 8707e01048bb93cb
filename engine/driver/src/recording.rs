//! Recordings: all that a shard took from its start on, and a digest of all that it said.
//!
//! The core is a function of its inputs, so a recording is a run that can be had again: [`replay`] makes
//! the shard anew, feeds it what was recorded and compares every turn.
//!
//! A recording is the 8 bytes `IRAFTREC`, its version (u32, little-endian, now 1), then frames: length of the
//! payload, CRC-32C of the payload, CRC-32C of these 8 bytes (each u32, little-endian), payload. The check of
//! the length tells a recording that was cut off, which replays up to there, from a damaged one, which does
//! not. A payload is one `Frame` in postcard's encoding: the start, each group's state, then inputs and
//! turns, and at the end a mark that says why it ends. Types of the core are written as they are, so a
//! recording is read by the build that wrote it, or one with the same types and the same core.
//!
//! Invariants: a recording never exceeds its bound; a turn is written before anything that it says leaves the
//! shard; a write that fails ends the recording, never the shard.
//!
//! It holds users' records: whoever makes the file keeps others from reading it.

mod reading;
mod words;

use std::io::Write;

use iroh_raft_core::{FlushSeq, GroupState, Input, Outputs, Shard, ShardConfig, ShardId, Timestamp};
use serde::{Deserialize, Serialize};

use crate::driver::Observer;
pub use reading::{
    Divergence, Ending, Recording, RecordingError, ReplayError, Report, Step, StepKind, replay,
};
pub use words::Words;

/// Smallest bound of a recording, in bytes.
pub const RECORDING_BYTES_MIN: u64 = 4096;

const MAGIC: [u8; 8] = *b"IRAFTREC";
const VERSION: u32 = 1;
/// Bytes before the first frame.
const PREFIX_BYTES: usize = 12;
/// Bytes before a frame's payload.
const FRAME_HEADER_BYTES: usize = 12;
/// Longest payload. One group's state with the tail of its log is the largest there is; a recording whose
/// shard has a larger one ends there, as at its bound.
const FRAME_BYTES_MAX: usize = 1 << 30;
/// Room kept for the mark at the end: its header, the frame's number and the reason.
const END_BYTES: u64 = FRAME_HEADER_BYTES as u64 + 2;
/// Bytes collected within a turn before they are written; also what the buffers keep between turns.
const BUFFER_BYTES: usize = 1 << 20;

const _: () = assert!(RECORDING_BYTES_MIN > PREFIX_BYTES as u64 + END_BYTES);

/// One frame. The order of the variants is the format's.
#[derive(Serialize, Deserialize)]
enum Frame<C, G, I> {
    Start { shard: ShardId, config: C, last_seq: FlushSeq, now: Timestamp, groups: u32 },
    Group(G),
    Input { now: Timestamp, input: I },
    Turn { digest: u64 },
    End { is_full: bool },
}

type FrameRef<'a> = Frame<&'a ShardConfig, &'a GroupState, &'a Input>;
type FrameOwned = Frame<ShardConfig, GroupState, Input>;

/// What a shard is made of: the arguments of [`Shard::new`], and its number.
#[derive(Clone, Copy, Debug)]
pub struct Origin<'a> {
    /// Number of the shard.
    pub shard: ShardId,
    /// Its settings, with node and seed.
    pub config: &'a ShardConfig,
    /// Newest flush of its journal.
    pub last_seq: FlushSeq,
    /// Its groups, as recovery found them.
    pub groups: &'a [GroupState],
    /// Its first moment.
    pub now: Timestamp,
}

/// Writes down what a shard takes and says. One write a turn, or one for each MiB of it; the shard waits
/// for nothing else.
///
/// Dropped, it marks the recording as closed.
pub struct Recorder {
    /// `None` when the recording is over.
    out: Option<Box<dyn Write + Send>>,
    shard: ShardId,
    /// Frames of this turn.
    buffer: Vec<u8>,
    /// For the encoding of outputs, of which only the digest is kept.
    scratch: Vec<u8>,
    /// Bytes written before those in `buffer`.
    written_bytes: u64,
    bytes_max: u64,
}

impl Recorder {
    /// Begins a recording of at most `bytes_max` bytes with the state from which the shard starts.
    ///
    /// # Panics
    /// If `bytes_max` is below [`RECORDING_BYTES_MIN`].
    #[must_use]
    pub fn new(out: Box<dyn Write + Send>, bytes_max: u64, origin: Origin<'_>) -> Recorder {
        assert!(bytes_max >= RECORDING_BYTES_MIN, "a recording has room for its mark");
        let Origin { shard, config, last_seq, groups, now } = origin;
        let buffer = Vec::with_capacity(BUFFER_BYTES);
        let mut recorder =
            Recorder { out: Some(out), shard, buffer, scratch: Vec::new(), written_bytes: 0, bytes_max };
        recorder.buffer.extend_from_slice(&MAGIC);
        recorder.buffer.extend_from_slice(&VERSION.to_le_bytes());
        let count = u32::try_from(groups.len()).expect("fewer than 2^32 groups");
        recorder.record(&Frame::Start { shard, config, last_seq, now, groups: count });
        groups.iter().for_each(|group| recorder.record(&Frame::Group(group)));
        recorder.write();
        recorder
    }

    /// Adds a frame, or ends the recording when there is no room for it and the mark after it.
    fn record(&mut self, frame: &FrameRef<'_>) {
        if self.out.is_none() {
            return;
        }
        let at = self.buffer.len();
        push(&mut self.buffer, frame);
        let is_too_long = self.buffer.len() - at > FRAME_HEADER_BYTES + FRAME_BYTES_MAX;
        if is_too_long || self.written_bytes + self.buffer.len() as u64 + END_BYTES > self.bytes_max {
            self.buffer.truncate(at);
            push(&mut self.buffer, &Frame::End { is_full: true });
            self.write();
            self.out = None;
            self.buffer = Vec::new();
            self.scratch = Vec::new();
            tracing::warn!(shard = %self.shard, bytes_max = self.bytes_max, "the recording is full and ends here");
        } else if self.buffer.len() >= BUFFER_BYTES {
            self.write();
        }
    }

    fn write(&mut self) {
        let Some(out) = &mut self.out else { return };
        if let Err(error) = out.write_all(&self.buffer).and_then(|()| out.flush()) {
            tracing::warn!(shard = %self.shard, %error, "the recording could not be written and ends here");
            self.out = None;
        }
        self.written_bytes += self.buffer.len() as u64;
        self.buffer.clear();
        self.buffer.shrink_to(BUFFER_BYTES);
    }
}

impl Observer for Recorder {
    fn input(&mut self, now: Timestamp, input: &Input) {
        self.record(&Frame::Input { now, input });
    }

    fn turn(&mut self, _now: Timestamp, _shard: &Shard, outputs: &Outputs) {
        if self.out.is_some() {
            let digest = digest(outputs, &mut self.scratch);
            self.record(&Frame::Turn { digest });
            self.write();
        }
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        if self.out.is_some() {
            push(&mut self.buffer, &Frame::End { is_full: false });
            self.write();
        }
    }
}

impl std::fmt::Debug for Recorder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Recorder")
            .field("shard", &self.shard)
            .field("written_bytes", &self.written_bytes)
            .field("bytes_max", &self.bytes_max)
            .field("is_over", &self.out.is_none())
            .finish_non_exhaustive()
    }
}

fn push(buffer: &mut Vec<u8>, frame: &FrameRef<'_>) {
    let at = buffer.len();
    buffer.resize(at + FRAME_HEADER_BYTES, 0);
    encode(frame, buffer);
    let (header, payload) = buffer[at..].split_at_mut(FRAME_HEADER_BYTES);
    // One that is too long for its length is too long for a recording: it is taken back.
    let length = u32::try_from(payload.len()).unwrap_or(u32::MAX);
    header[..4].copy_from_slice(&length.to_le_bytes());
    header[4..8].copy_from_slice(&crc32c::crc32c(payload).to_le_bytes());
    let check = crc32c::crc32c(&header[..8]);
    header[8..].copy_from_slice(&check.to_le_bytes());
}

fn encode<T: Serialize>(value: &T, buffer: &mut Vec<u8>) {
    // Memory takes everything, and none of our types refuses to be written.
    postcard::to_io(value, buffer).expect("the types of the seam are encoded");
}

/// A hash of all that a shard said in a turn. Part of the format: eight bytes at a time, the last ones filled
/// up with zeros, the length first. It tells accidents apart, not forgeries.
fn digest(outputs: &Outputs, scratch: &mut Vec<u8>) -> u64 {
    scratch.clear();
    encode(outputs, scratch);
    let hash = scratch.chunks(8).fold(scratch.len() as u64, |hash, chunk| {
        let mut word = [0; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        (hash.rotate_left(23) ^ u64::from_le_bytes(word)).wrapping_mul(0x9e37_79b9_7f4a_7c15)
    });
    scratch.shrink_to(BUFFER_BYTES);
    hash
}

#[cfg(test)]
mod tests;

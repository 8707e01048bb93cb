//! One lane of one connection: a bounded queue and the task that writes it, and the task that reads
//! the other side's.
//!
//! Invariant: a lane never waits for a shard. What finds the shard's ring full is dropped and
//! counted; Raft sends again.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::{Bytes, BytesMut};
use iroh::endpoint::{ReadExactError, RecvStream, SendStream, WriteError};
use iroh_raft_core::NodeId;
use tokio::sync::Notify;

use crate::bridge::Hub;
use crate::port::ToShard;
use crate::wire::{FrameError, FrameHeader, FrameKind, FrameLimits, HEADER_BYTES, Lane, OutFrame, PeerFrame};

/// Bytes handed to the stream at a time, at least; the rest of the queue keeps its order.
const WRITE_BYTES: usize = 256 << 10;
/// Chunks handed to the stream at a time, about.
const WRITE_CHUNKS: usize = 256;
/// Bodies of the append lane's frames are read one behind the other into buffers of this. A slice keeps all of one in memory: what
/// stays for long is copied out of it (`COPY_BYTES_MAX`, `REST_BYTES_MAX` in the core).
const APPEND_BUFFER_BYTES: usize = 1 << 20;
/// Of the lanes whose frames are small.
const SMALL_BUFFER_BYTES: usize = 16 << 10;

/// Frames that wait to be written, bounded in number and bytes.
#[derive(Debug)]
pub(crate) struct FrameQueue {
    frames_max: usize,
    bytes_max: usize,
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    frames: VecDeque<OutFrame>,
    bytes: usize,
    is_overfull: bool,
    is_finished: bool,
}

/// The queue is full; the frame was dropped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct QueueFull {
    /// It was not full when the frame before came.
    pub(crate) is_first: bool,
}

impl FrameQueue {
    pub(crate) fn new(frames_max: usize, bytes_max: usize) -> FrameQueue {
        FrameQueue { frames_max, bytes_max, state: Mutex::default(), changed: Notify::new() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Full: the newest frame, this one, is dropped. A frame always fits into an empty queue.
    pub(crate) fn push(&self, frame: OutFrame) -> Result<(), QueueFull> {
        let bytes = frame.bytes();
        let mut state = self.state();
        let is_full = state.frames.len() >= self.frames_max
            || (!state.frames.is_empty() && state.bytes.saturating_add(bytes) > self.bytes_max);
        if is_full {
            let is_first = !state.is_overfull;
            state.is_overfull = true;
            return Err(QueueFull { is_first });
        }
        state.bytes += bytes;
        state.frames.push_back(frame);
        let is_first = state.frames.len() == 1;
        drop(state);
        if is_first {
            self.changed.notify_one();
        }
        Ok(())
    }

    /// Nothing more will come: the writer ends once it has written the rest.
    pub(crate) fn finish(&self) {
        self.state().is_finished = true;
        self.changed.notify_one();
    }

    /// Moves the chunks of the oldest frames into `chunks`. Returns how many frames and bytes, or
    /// `None` after the last one of a finished queue.
    async fn take(&self, chunks: &mut Vec<Bytes>) -> Option<(u64, u64)> {
        loop {
            {
                let mut state = self.state();
                let (mut frames, mut bytes) = (0, 0);
                while bytes < WRITE_BYTES && chunks.len() < WRITE_CHUNKS {
                    let Some(frame) = state.frames.pop_front() else { break };
                    frames += 1;
                    bytes += frame.bytes();
                    chunks.extend(frame.chunks);
                }
                if frames > 0 {
                    state.bytes -= bytes;
                    if state.frames.is_empty() {
                        state.is_overfull = false;
                    }
                    return Some((frames, bytes as u64));
                }
                if state.is_finished {
                    return None;
                }
            }
            self.changed.notified().await;
        }
    }

    /// Writes what comes, until the stream fails or the queue is finished and empty.
    pub(crate) async fn write_to(
        &self,
        stream: &mut SendStream,
        written: impl Fn(u64, u64),
    ) -> Result<(), WriteError> {
        let mut chunks = Vec::new();
        while let Some((frames, bytes)) = self.take(&mut chunks).await {
            stream.write_all_chunks(&mut chunks).await?;
            chunks.clear();
            written(frames, bytes);
        }
        Ok(())
    }
}

/// Why reading frames from a stream ended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReadFailure {
    /// The stream or its connection ended.
    #[error("the stream ended: {0}")]
    Stream(#[from] ReadExactError),
    /// What came is not a frame.
    #[error(transparent)]
    Frame(#[from] FrameError),
}

async fn read_header(stream: &mut RecvStream, limits: &FrameLimits) -> Result<FrameHeader, ReadFailure> {
    let mut header = [0; HEADER_BYTES];
    stream.read_exact(&mut header).await?;
    Ok(FrameHeader::parse(&header, limits)?)
}

/// Reads one frame: the header is checked before memory is taken for the body.
pub(crate) async fn read_frame(
    stream: &mut RecvStream,
    limits: &FrameLimits,
) -> Result<(FrameHeader, Vec<u8>), ReadFailure> {
    let header = read_header(stream, limits).await?;
    let mut body = vec![0; header.body_bytes()];
    stream.read_exact(&mut body).await?;
    Ok((header, body))
}

/// Reads a body into what is free of a buffer, or into another one.
async fn read_body(
    stream: &mut RecvStream,
    header: &FrameHeader,
    buffer: &mut BytesMut,
) -> Result<Bytes, ReadFailure> {
    let bytes = header.body_bytes();
    if !buffer.try_reclaim(bytes) {
        let is_append = header.kind == FrameKind::Peer(Lane::Append);
        let most = if is_append { APPEND_BUFFER_BYTES } else { SMALL_BUFFER_BYTES };
        *buffer = BytesMut::with_capacity(bytes.max(most));
    }
    buffer.resize(bytes, 0);
    stream.read_exact(buffer).await?;
    Ok(buffer.split().freeze())
}

/// Reads the peer's lane until it ends. A frame that is not one ends it with an error; the caller
/// closes the connection.
pub(crate) async fn read_lane(
    hub: &Hub,
    peer: NodeId,
    stream: &mut RecvStream,
    claim: impl FnOnce(Lane) -> bool,
) -> Result<(), ReadFailure> {
    let limits = hub.config.limits.peer_frame;
    let mut claim = Some(claim);
    let mut lane = None;
    let mut buffer = BytesMut::new();
    loop {
        let header = read_header(stream, &limits).await?;
        let body = read_body(stream, &header, &mut buffer).await?;
        let FrameKind::Peer(found) = header.kind else {
            return Err(FrameError::UnexpectedKind { found: header.kind, expected: "peer" }.into());
        };
        if let Some(claim) = claim.take() {
            // The first frame says which lane the stream is; a lane has one stream.
            lane = claim(found).then_some(found);
        }
        if lane != Some(found) {
            return Err(FrameError::UnexpectedKind { found: header.kind, expected: "lane's own" }.into());
        }
        let at = found as usize;
        let bytes = (HEADER_BYTES + body.len()) as u64;
        let frame = PeerFrame::decode(&header, body, &limits)?;
        hub.counters.frames_in[at].add(1);
        hub.counters.bytes_in[at].add(bytes);
        if (frame.sender(), frame.receiver()) != (peer, hub.config.node) {
            hub.counters.dropped_wrong_sender.add(1);
            continue;
        }
        match hub.port(header.destination_shard) {
            None => hub.counters.dropped_no_shard.add(1),
            Some(port) => {
                if port.push(ToShard::Peer { from: peer, frame }).is_err() {
                    hub.counters.dropped_ring_full.add(1);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(bytes: usize) -> OutFrame {
        OutFrame { chunks: smallvec::smallvec![Bytes::from(vec![0; bytes])], items: 1 }
    }

    fn take(queue: &FrameQueue) -> Option<(u64, u64)> {
        futures_util::FutureExt::now_or_never(queue.take(&mut Vec::new())).expect("nothing to wait for")
    }

    #[test]
    fn a_full_queue_refuses_the_newest_and_says_once_that_it_is_full() {
        let queue = FrameQueue::new(2, 100);
        assert_eq!((queue.push(frame(10)), queue.push(frame(10))), (Ok(()), Ok(())));
        assert_eq!(queue.push(frame(10)), Err(QueueFull { is_first: true }));
        assert_eq!(queue.push(frame(10)), Err(QueueFull { is_first: false }));
        assert_eq!(take(&queue), Some((2, 20)));
        assert_eq!((queue.push(frame(10)), queue.push(frame(10))), (Ok(()), Ok(())));
        assert_eq!(queue.push(frame(10)), Err(QueueFull { is_first: true }), "it was empty in between");
    }

    #[test]
    fn bytes_are_bounded_too_but_one_frame_always_fits() {
        let queue = FrameQueue::new(10, 100);
        assert_eq!(queue.push(frame(500)), Ok(()));
        assert_eq!(queue.push(frame(1)), Err(QueueFull { is_first: true }));
        assert_eq!(take(&queue), Some((1, 500)));
        assert_eq!((queue.push(frame(60)), queue.push(frame(40))), (Ok(()), Ok(())));
        assert_eq!(queue.push(frame(1)), Err(QueueFull { is_first: true }));
    }

    #[test]
    fn a_finished_queue_ends_after_its_last_frame() {
        let queue = FrameQueue::new(10, 100);
        queue.push(frame(7)).unwrap();
        queue.finish();
        assert_eq!((take(&queue), take(&queue)), (Some((1, 7)), None));
    }
}

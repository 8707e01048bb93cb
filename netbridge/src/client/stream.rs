//! Answers that wait for the consumer of a tail.
//!
//! A node sends no more than it was granted, so what waits is bounded by the tail's credit and the one answer that may exceed
//! it. One that does not keep to that must not fill the memory here: each side counts, and the sender refuses what is beyond.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::mpsc;

use super::call::{CALL_BYTES, Outcome};
use super::error::ClientError;

type Item = Result<Outcome, ClientError>;

/// More waits than was granted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct BeyondCredit;

/// The side of the connection.
#[derive(Debug)]
pub(super) struct StreamSender {
    sender: mpsc::UnboundedSender<Item>,
    waiting_bytes: Arc<AtomicUsize>,
    bytes_max: usize,
}

/// The side of the consumer.
#[derive(Debug)]
pub(super) struct StreamReceiver {
    receiver: mpsc::UnboundedReceiver<Item>,
    waiting_bytes: Arc<AtomicUsize>,
}

/// A way for answers of which at most `bytes_max` bytes wait.
pub(super) fn stream(bytes_max: usize) -> (StreamSender, StreamReceiver) {
    let (sender, receiver) = mpsc::unbounded_channel();
    let waiting_bytes = Arc::default();
    let other = Arc::clone(&waiting_bytes);
    (StreamSender { sender, waiting_bytes, bytes_max }, StreamReceiver { receiver, waiting_bytes: other })
}

/// What an answer takes; one without records takes room, too.
fn bytes_of(item: &Item) -> usize {
    match item {
        Ok(Outcome::Records(records)) => records.bytes().max(CALL_BYTES),
        _ => CALL_BYTES,
    }
}

impl StreamSender {
    /// Hands over an answer that is not the last.
    pub(super) fn send(&self, item: Item) -> Result<(), BeyondCredit> {
        let bytes = bytes_of(&item);
        if self.waiting_bytes.load(Ordering::Relaxed) + bytes > self.bytes_max {
            return Err(BeyondCredit);
        }
        self.push(item, bytes);
        Ok(())
    }

    /// Hands over the last answer: there is room for one.
    pub(super) fn end(self, item: Item) {
        let bytes = bytes_of(&item);
        self.push(item, bytes);
    }

    fn push(&self, item: Item, bytes: usize) {
        // Before it can be received: the count never falls below what waits. The only one that adds is this side.
        self.waiting_bytes.fetch_add(bytes, Ordering::Relaxed);
        // A consumer that is gone has said so to the node.
        let _ = self.sender.send(item);
    }
}

impl StreamReceiver {
    /// The next answer; `None` after the last one. Cancel safe.
    pub(super) async fn recv(&mut self) -> Option<Item> {
        let item = self.receiver.recv().await?;
        self.waiting_bytes.fetch_sub(bytes_of(&item), Ordering::Relaxed);
        Some(item)
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use iroh_raft_core::batch::{RecordBlock, encode_batch};
    use iroh_raft_core::{NodeId, Offset, WallTime};

    use super::super::records::Records;
    use super::*;

    fn records(batches: Vec<Bytes>) -> Item {
        let end = Offset(u64::from(!batches.is_empty()));
        Ok(Outcome::Records(Records::new(Offset(0), end, batches).unwrap()))
    }

    fn batch() -> Bytes {
        encode_batch(Offset(0), WallTime(0), [RecordBlock::from_records(&[[7; 1000]])].iter())
    }

    #[tokio::test]
    async fn what_is_beyond_the_credit_is_refused_until_some_was_taken() {
        let one = batch().len();
        let (sender, mut receiver) = stream(2 * one);
        assert_eq!(sender.send(records(vec![batch()])), Ok(()));
        assert_eq!(sender.send(records(vec![batch()])), Ok(()));
        assert_eq!(sender.send(records(vec![batch()])), Err(BeyondCredit));
        assert!(receiver.recv().await.is_some());
        assert_eq!(sender.send(records(vec![batch()])), Ok(()));
        // The last one always has a place: why it ended is said.
        sender.end(Err(ClientError::Protocol { node: NodeId(1) }));
        assert!(matches!(receiver.recv().await, Some(Ok(_))));
        assert!(matches!(receiver.recv().await, Some(Ok(_))));
        assert!(matches!(receiver.recv().await, Some(Err(ClientError::Protocol { .. }))));
        assert!(receiver.recv().await.is_none());
    }

    #[tokio::test]
    async fn answers_without_records_are_not_for_nothing() {
        let (sender, _receiver) = stream(10 * CALL_BYTES);
        let sent = (0..).take_while(|_| sender.send(records(Vec::new())).is_ok()).count();
        assert_eq!(sent, 10);
    }
}

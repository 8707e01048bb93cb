//! The server side of `iroh-raft-client/0`: one connection per client, one stream on it.
//!
//! Requests go to the shard that the client names, answers come back in any order. What a client
//! can make this node hold is bounded: open requests, bytes of request frames (charged to the
//! buffer until its last slice is gone) and bytes of answers it has not read.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use iroh::endpoint::{Connection, RecvStream, SendStream};
use iroh_raft_core::{BusyReason, NodeId, Owner, RequestError, ShardId};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, timeout, timeout_at};

use crate::bridge::Hub;
use crate::close::CloseCode;
use crate::identity::EndpointId;
use crate::introduce::{self, HandshakeFailure, close_for, judge, refuse};
use crate::lane::{FrameQueue, ReadFailure, read_frame};
use crate::port::{Rights, ToShard};
use crate::wire::handshake::Refusal;
use crate::wire::{ClientFrame, ClientReply, HEADER_BYTES, OutFrame, ReplyBody, ReplyFrameBuilder};

/// Time for a client to take the last answers when the node shuts down.
const LAST_ANSWERS_DEADLINE: Duration = Duration::from_millis(200);

/// One client's connection, past its handshake.
#[derive(Debug)]
pub(crate) struct ClientLink {
    number: u64,
    connection: Connection,
    rights: Rights,
    owner: Owner,
    replies: FrameQueue,
    requests: OpenRequests,
    request_bytes: Arc<AtomicUsize>,
}

/// Requests of a client that are not answered. What comes in and what goes out may be on two threads: each only adds, or takes
/// away.
#[derive(Debug, Default)]
struct OpenRequests(AtomicUsize);

impl OpenRequests {
    fn count(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }

    fn open(&self, count: usize) {
        self.0.fetch_add(count, Ordering::Relaxed);
    }

    fn close(&self, count: usize) {
        // Never below nothing, whatever a shard counts: a client would be refused for good.
        let less = |open: usize| Some(open.saturating_sub(count));
        let _ = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
    }
}

impl ClientLink {
    pub(crate) fn connection(&self) -> &Connection {
        &self.connection
    }

    /// Queues answers of a shard. Full: the client does not read them, and is cut off.
    pub(crate) fn send(&self, hub: &Hub, frame: OutFrame) {
        let answered = frame.items as usize;
        self.requests.close(answered);
        self.queue(hub, frame);
    }

    fn queue(&self, hub: &Hub, frame: OutFrame) {
        if self.replies.push(frame).is_err() {
            hub.counters.clients_cut_off.add(1);
            CloseCode::SlowReader
                .close(&self.connection, "answers were not read: read faster or ask for less");
        }
    }

    /// No more answers: the client gets what is queued and then the end of the stream.
    pub(crate) fn finish(&self) {
        self.replies.finish();
    }

    /// Answers every request of the frame with an error of the bridge's own.
    fn fail(&self, hub: &Hub, frame: &ClientFrame, to: ShardId, error: &RequestError) {
        if matches!(error, RequestError::Busy { .. }) {
            hub.counters.requests_busy.add(frame.len() as u64);
        }
        let mut builder = ReplyFrameBuilder::default();
        for request in frame.requests() {
            let body = ReplyBody::Failed(error.clone());
            builder.push(ClientReply { request: request.request, group: request.group, body });
        }
        self.queue(hub, builder.finish(to));
    }
}

/// An incoming connection whose key is on the list of clients.
pub(crate) async fn accept(
    hub: &Arc<Hub>,
    connection: Connection,
    deadline: Instant,
    permit: OwnedSemaphorePermit,
) {
    let remote = connection.remote_id();
    let rights = hub.allow().client(&remote);
    let Some(rights) = rights else {
        refuse(&connection, Refusal::NotAllowed, "");
        return;
    };
    let handshake = timeout_at(deadline, accept_handshake(hub, &connection)).await;
    drop(permit);
    let (send, recv) = match handshake {
        Ok(Ok(streams)) => streams,
        Ok(Err(failure)) => return tracing::warn!(%remote, %failure, "a client was not taken"),
        Err(_) => return CloseCode::HandshakeDeadline.close(&connection, "the handshake took too long"),
    };
    let link = Arc::new(ClientLink {
        number: hub.next_connection(),
        connection,
        rights,
        owner: owner_of(&remote),
        replies: FrameQueue::new(usize::MAX, hub.config.limits.client_reply_bytes_max),
        requests: OpenRequests::default(),
        request_bytes: Arc::default(),
    });
    hub.clients().insert(link.number, link.clone());
    hub.counters.clients_connected.add(1);
    tracing::info!(client = link.number, %remote, "client connected");
    hub.spawn("client writer", write(hub.clone(), link.clone(), send));
    hub.spawn("client reader", read(hub.clone(), link.clone(), recv));
    hub.spawn("client watch", watch(hub.clone(), link));
}

/// Whose a key's sessions are, on every node alike: FNV-1a of the key. Only keys of the allow-list come here, so nobody
/// looks for one that meets another's. 0 is the embedding process.
fn owner_of(key: &EndpointId) -> Owner {
    let hash = key.as_bytes().iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    });
    Owner(hash.max(1))
}

async fn accept_handshake(
    hub: &Hub,
    connection: &Connection,
) -> Result<(SendStream, RecvStream), HandshakeFailure> {
    let (other, mut send, recv) = introduce::await_hello(connection).await?;
    let own = hub.introduction();
    let is_full = hub.clients().len() >= hub.config.limits.client_connections_max;
    let refusal = judge(&own, &other)
        .or((other.node != NodeId(0)).then_some(Refusal::WrongNode { node: other.node }))
        .or(is_full.then_some(Refusal::Busy));
    if let Some(refusal) = refusal {
        hub.counters.connections_refused.add(1);
        return Err(refuse(connection, refusal, ""));
    }
    introduce::welcome(connection, &mut send, own).await?;
    Ok((send, recv))
}

async fn watch(hub: Arc<Hub>, link: Arc<ClientLink>) {
    let reason = link.connection.closed().await;
    hub.clients().remove(&link.number);
    hub.counters.clients_connected.sub(1);
    hub.tell_client_gone(link.number);
    tracing::info!(client = link.number, %reason, "client gone");
}

async fn write(hub: Arc<Hub>, link: Arc<ClientLink>, mut stream: SendStream) {
    let written = |frames, bytes| {
        hub.counters.client_frames_out.add(frames);
        hub.counters.client_bytes_out.add(bytes);
    };
    // An error: the client is gone, or wants no answers, which is the same.
    if link.replies.write_to(&mut stream, written).await.is_ok() && stream.finish().is_ok() {
        let _ = timeout(LAST_ANSWERS_DEADLINE, stream.stopped()).await;
        CloseCode::ShuttingDown.close(&link.connection, "the node shuts down");
    } else {
        CloseCode::BadFrame.close(&link.connection, "the answer stream was stopped");
    }
}

async fn read(hub: Arc<Hub>, link: Arc<ClientLink>, mut stream: RecvStream) {
    match read_requests(&hub, &link, &mut stream).await {
        Err(ReadFailure::Frame(error)) => {
            hub.counters.frames_refused.add(1);
            tracing::warn!(client = link.number, %error, "refused a client's frame, its connection is closed");
            close_for(&link.connection, &error);
        }
        // It has gone, or has ended its side, which is its way of going.
        Err(ReadFailure::Stream(_)) | Ok(()) => {
            CloseCode::ShuttingDown.close(&link.connection, "the request stream ended");
        }
    }
}

async fn read_requests(hub: &Hub, link: &ClientLink, stream: &mut RecvStream) -> Result<(), ReadFailure> {
    let limits = &hub.config.limits;
    loop {
        let (header, body) = read_frame(stream, &limits.request_frame).await?;
        hub.counters.client_frames_in.add(1);
        hub.counters.client_bytes_in.add((HEADER_BYTES + body.len()) as u64);
        let body = Charged::new(body, &link.request_bytes);
        let frame = ClientFrame::decode(&header, body, &limits.request_frame)?;
        let count = frame.len();
        let open = link.requests.count() + count;
        let bytes = link.request_bytes.load(Ordering::Relaxed);
        if open > limits.client_requests_max || bytes > limits.client_request_bytes_max {
            link.fail(hub, &frame, header.destination_shard, &RequestError::busy(BusyReason::Credit));
            continue;
        }
        let Some(port) = hub.port(header.destination_shard) else {
            link.fail(hub, &frame, header.destination_shard, &RequestError::UnknownGroup);
            continue;
        };
        if port.is_nearly_full() {
            // The rest is for peers: a node that clients flood must not lose its place among the others.
            link.fail(hub, &frame, header.destination_shard, &RequestError::busy(BusyReason::Ring));
            continue;
        }
        // Before they can be answered.
        link.requests.open(count);
        let item = ToShard::Client { connection: link.number, rights: link.rights, owner: link.owner, frame };
        if let Err(ToShard::Client { frame, .. }) = port.push(item) {
            link.requests.close(count);
            link.fail(hub, &frame, header.destination_shard, &RequestError::busy(BusyReason::Ring));
        }
    }
}

/// A request frame's buffer, charged to its client until the last slice of it is gone, wherever
/// that is.
struct Charged {
    body: Vec<u8>,
    charged: Arc<AtomicUsize>,
}

impl Charged {
    #[expect(clippy::new_ret_no_self, reason = "the owner is only ever seen as Bytes")]
    fn new(body: Vec<u8>, account: &Arc<AtomicUsize>) -> Bytes {
        account.fetch_add(body.len(), Ordering::Relaxed);
        Bytes::from_owner(Charged { body, charged: account.clone() })
    }
}

impl AsRef<[u8]> for Charged {
    fn as_ref(&self) -> &[u8] {
        &self.body
    }
}

impl Drop for Charged {
    fn drop(&mut self) {
        self.charged.fetch_sub(self.body.len(), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_that_two_threads_open_and_close_are_each_counted_once() {
        const ROUNDS: usize = 200_000;
        let requests = OpenRequests::default();
        requests.open(ROUNDS);
        std::thread::scope(|scope| {
            scope.spawn(|| (0..ROUNDS).for_each(|_| requests.open(1)));
            scope.spawn(|| (0..ROUNDS).for_each(|_| requests.close(1)));
        });
        assert_eq!(requests.count(), ROUNDS);
        requests.close(2 * ROUNDS);
        assert_eq!(requests.count(), 0);
    }
}

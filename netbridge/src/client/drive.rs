//! The task of one node: it connects, writes requests, reads answers, and starts over.

use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use iroh::endpoint::{Connection, RecvStream, SendStream};
use iroh_raft_core::{BootEpoch, NodeId, Placement, ShardId};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tokio::time::{Instant, sleep, timeout};

use super::error::ClientError;
use super::lines::NoSuchRequest;
use super::route::{Shared, Standing};
use super::stream::BeyondCredit;
use crate::close::CloseCode;
use crate::endpoint::{ALPN_CLIENT, address_of};
use crate::introduce::{self, HandshakeFailure, close_for, judge, refuse};
use crate::lane::{ReadFailure, read_frame};
use crate::peer::connect_failure;
use crate::wire::handshake::{FORMAT_FINGERPRINT, Introduction, PROTOCOL_VERSION, Refusal};
use crate::wire::{ClientBody, ClientRequest, ReplyFrame, RequestFrameBuilder};

/// A connection that lived this long was a good one: the pause between dials starts over.
const SETTLED_AFTER: Duration = Duration::from_secs(1);
/// Bytes of requests that are packed at a time; what comes meanwhile gathers.
const WRITE_BYTES: usize = 1 << 20;
/// What a request takes in a frame's archive, at most.
const DESCRIPTOR_BYTES: usize = 64;
const UNASKED: &str = "an answer to a request that is not open";
const BEYOND: &str = "more records than the tail was granted";

/// Runs a task of the client; if it panics, the client closes instead of hanging.
pub(super) fn spawn(shared: &Arc<Shared>, task: impl Future<Output = ()> + Send + 'static) {
    let shared = shared.clone();
    tokio::spawn(async move {
        if AssertUnwindSafe(task).catch_unwind().await.is_err() {
            tracing::error!("a task of the client panicked: this is a bug; the client closes");
            shared.close();
        }
    });
}

/// A welcomed connection.
struct Session {
    connection: Connection,
    send: SendStream,
    recv: RecvStream,
    placement: Placement,
}

/// Keeps a connection to the node at `at`, until the client closes.
pub(super) async fn drive(shared: Arc<Shared>, at: usize) {
    tokio::select! {
        () = shared.closed() => {}
        () = keep_connected(&shared, at) => {}
    }
}

async fn keep_connected(shared: &Arc<Shared>, at: usize) {
    let limits = &shared.limits;
    let node = shared.nodes[at].address.node;
    let mut rng = SmallRng::from_os_rng();
    let mut pause = limits.dial_pause_min;
    loop {
        let standing = match connect(shared, at).await {
            Ok(session) => {
                let since = Instant::now();
                tracing::debug!(%node, "connected");
                shared.stand(at, Standing::Connected);
                let reason = run(shared, at, session).await;
                tracing::debug!(%node, reason, "connection lost");
                if since.elapsed() >= SETTLED_AFTER {
                    pause = limits.dial_pause_min;
                }
                Standing::Failed(reason.into())
            }
            Err(failure) => {
                tracing::debug!(%node, %failure, "dialing failed");
                standing_of(node, &failure)
            }
        };
        shared.handle_loss(at, standing);
        sleep(pause.mul_f64(rng.random_range(0.5..1.0))).await;
        pause = (pause * 2).min(limits.dial_pause_max);
    }
}

fn standing_of(node: NodeId, failure: &HandshakeFailure) -> Standing {
    match failure {
        HandshakeFailure::Refused { reason: Refusal::Busy | Refusal::ShuttingDown, .. } => {
            Standing::Failed(failure.to_string().into())
        }
        HandshakeFailure::Refused { reason, text } => {
            let text = if text.is_empty() { String::new() } else { format!(" ({text})") };
            Standing::Refused(ClientError::Refused { node, reason: format!("{reason}{text}").into() })
        }
        HandshakeFailure::Refusing(_) | HandshakeFailure::Frame(_) => {
            Standing::Refused(ClientError::Refused { node, reason: failure.to_string().into() })
        }
        HandshakeFailure::Duplicate | HandshakeFailure::Lost(_) | HandshakeFailure::Deadline => {
            Standing::Failed(failure.to_string().into())
        }
    }
}

async fn connect(shared: &Shared, at: usize) -> Result<Session, HandshakeFailure> {
    let limits = &shared.limits;
    let address = &shared.nodes[at].address;
    let connect = shared.endpoint.connect(address_of(address), ALPN_CLIENT);
    let connection = timeout(limits.dial_deadline, connect)
        .await
        .map_err(|_| HandshakeFailure::Deadline)?
        .map_err(|error| connect_failure(&error))?;
    let own = Introduction {
        protocol: PROTOCOL_VERSION,
        cluster: shared.cluster,
        node: NodeId(0),
        boot_epoch: BootEpoch(0),
        boot_id: [0; 16],
        fingerprint: FORMAT_FINGERPRINT,
        placement: None,
    };
    let exchange = timeout(limits.handshake_deadline, introduce::hello(&connection, own.clone())).await;
    let (other, send, recv) = exchange.map_err(|_| {
        CloseCode::HandshakeDeadline.close(&connection, "the handshake took too long");
        HandshakeFailure::Deadline
    })??;
    let refusal = judge(&own, &other)
        .or((other.node != address.node).then_some(Refusal::WrongNode { node: other.node }));
    match (refusal, other.placement) {
        (None, Some(placement)) => Ok(Session { connection, send, recv, placement }),
        (refusal, _) => {
            let refusal = refusal.unwrap_or(Refusal::WrongNode { node: other.node });
            Err(refuse(&connection, refusal, ""))
        }
    }
}

/// Serves a connection until it is lost; says why.
async fn run(shared: &Arc<Shared>, at: usize, session: Session) -> String {
    let Session { connection, mut send, mut recv, placement } = session;
    // Also when this task is dropped: the node shall know at once.
    let guard = CloseOnDrop(connection);
    let connection = &guard.0;
    tokio::select! {
        reason = write(shared, at, &mut send, &placement) => reason,
        reason = read(shared, at, connection, &mut recv) => reason,
        error = connection.closed() => error.to_string(),
    }
}

struct CloseOnDrop(Connection);

impl Drop for CloseOnDrop {
    fn drop(&mut self) {
        CloseCode::ShuttingDown.close(&self.0, "the client goes");
    }
}

async fn write(shared: &Arc<Shared>, at: usize, stream: &mut SendStream, placement: &Placement) -> String {
    let node = &shared.nodes[at];
    let mut packer =
        Packer::new(placement.shard_count(), shared.limits.request_frame.payload_bytes_max as usize);
    loop {
        {
            let now = Instant::now();
            let mut lines = node.lines();
            while packer.bytes < WRITE_BYTES
                && let Some((shard, request)) = lines.take_request(now, placement)
            {
                packer.push(shard, &request);
            }
        }
        let mut chunks = packer.finish();
        if chunks.is_empty() {
            node.changed.notified().await;
        } else if let Err(error) = stream.write_all_chunks(&mut chunks).await {
            return error.to_string();
        }
    }
}

/// Packs requests into one frame per shard, or more where a frame would grow too large.
struct Packer {
    builders: Vec<RequestFrameBuilder>,
    frame_bytes_max: usize,
    chunks: Vec<Bytes>,
    bytes: usize,
}

impl Packer {
    fn new(shards: u16, frame_bytes_max: usize) -> Packer {
        let builders = (0..shards).map(|_| RequestFrameBuilder::default()).collect();
        Packer { builders, frame_bytes_max, chunks: Vec::new(), bytes: 0 }
    }

    fn push(&mut self, shard: ShardId, request: &ClientRequest) {
        let builder = &mut self.builders[usize::from(shard.0)];
        let bytes = DESCRIPTOR_BYTES
            + match &request.body {
                ClientBody::Append { block, .. } | ClientBody::TimedAppend { block } => {
                    block.as_bytes().len()
                }
                ClientBody::Query { query, .. } => query.len(),
                _ => 0,
            };
        if !builder.is_empty() && builder.bytes() + bytes > self.frame_bytes_max {
            self.chunks.extend(builder.finish(shard).chunks);
        }
        builder.push(request);
        self.bytes += bytes;
    }

    fn finish(&mut self) -> Vec<Bytes> {
        for (shard, builder) in (0..).zip(&mut self.builders) {
            if !builder.is_empty() {
                self.chunks.extend(builder.finish(ShardId(shard)).chunks);
            }
        }
        self.bytes = 0;
        std::mem::take(&mut self.chunks)
    }
}

async fn read(shared: &Arc<Shared>, at: usize, connection: &Connection, stream: &mut RecvStream) -> String {
    let node = &shared.nodes[at];
    let limits = &shared.limits.reply_frame;
    loop {
        let frame = match read_frame(stream, limits).await {
            Ok((header, body)) => ReplyFrame::decode(&header, Bytes::from(body), limits),
            Err(ReadFailure::Frame(error)) => Err(error),
            Err(ReadFailure::Stream(error)) => return error.to_string(),
        };
        let frame = match frame {
            Ok(frame) => frame,
            Err(error) => {
                tracing::error!(node = %node.address.node, %error, "refused a frame of the node");
                close_for(connection, &error);
                return error.to_string();
            }
        };
        let taken = take_answers(shared, at, &frame);
        // Lines may send what gathered behind the answered requests.
        node.changed.notify_one();
        if let Err(reason) = taken {
            tracing::error!(node = %node.address.node, reason, "the node breaks the protocol");
            CloseCode::BadFrame.close(connection, reason);
            return reason.to_owned();
        }
    }
}

/// Hands out what a node answered. `Err` says why the rest of the frame was not taken.
fn take_answers(shared: &Shared, at: usize, frame: &ReplyFrame) -> Result<(), &'static str> {
    let node = &shared.nodes[at];
    let id = node.address.node;
    let mut freed = 0;
    let mut taken = Ok(());
    for reply in frame.replies() {
        // Not held while calls end: one that fails may be put in line again.
        let mut lines = node.lines();
        let request = reply.request;
        if reply.body.is_last() {
            let work = lines.answered(request);
            drop(lines);
            match work {
                Ok(Some(work)) => freed += shared.handle_reply(at, work, reply),
                Ok(None) => {}
                Err(NoSuchRequest) => taken = Err(UNASKED),
            }
        } else {
            match lines.streaming(request).map(|work| work.map(|work| work.deliver(reply.body, id))) {
                Ok(Some(Err(BeyondCredit))) => {
                    let work = lines.answered(request);
                    drop(lines);
                    if let Ok(Some(work)) = work {
                        freed += work.fail(&ClientError::Protocol { node: id }, id);
                    }
                    taken = Err(BEYOND);
                }
                Ok(_) => {}
                Err(NoSuchRequest) => taken = Err(UNASKED),
            }
        }
        if taken.is_err() {
            break;
        }
    }
    shared.give_room(freed);
    taken
}

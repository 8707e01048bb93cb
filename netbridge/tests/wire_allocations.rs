//! What a frame costs in allocations, once the builder's buffers have grown.
//!
//! Building: none for a small frame, whose header, archive and small payload are cut from a buffer for many; one for a large
//! one; one for a list of more than four chunks. Decoding: one, the count of the body that
//! archive and payload share if there is a payload. A message: none, except for the list of its entries if it has some.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use bytes::{Bytes, BytesMut};
use iroh_raft_core::batch::RecordBlock;
use iroh_raft_core::{
    AnswerOn, EntryKind, GroupId, Index, LogEntry, MessageKind, NodeId, Offset, PeerMessage, ShardId, Term,
};
use iroh_raft_netbridge::wire::{
    ClientBody, ClientFrame, ClientReply, ClientRequest, FrameHeader, FrameLimits, HEADER_BYTES, Lane,
    OutFrame, PeerFrame, PeerFrameBuilder, ReplyBody, ReplyFrame, ReplyFrameBuilder, RequestFrameBuilder,
};

struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: hands every call through to the system's allocator as it is.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps the contract of `dealloc`.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, new_bytes: usize) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: the caller keeps the contract of `realloc`.
        unsafe { System.realloc(pointer, layout, new_bytes) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Allocations of this thread while `work` runs, and what it gave.
fn counted<R>(work: impl FnOnce() -> R) -> (u64, R) {
    let before = ALLOCATIONS.get();
    let result = work();
    (ALLOCATIONS.get() - before, result)
}

/// Header and body as a lane receives them.
fn received(frame: &OutFrame) -> (FrameHeader, Bytes) {
    let frame = frame.chunks.concat();
    let (header, body) = frame.split_first_chunk::<HEADER_BYTES>().unwrap();
    let header = FrameHeader::parse(header, &FrameLimits::PEER).unwrap();
    let mut buffer = BytesMut::with_capacity(body.len());
    buffer.extend_from_slice(body);
    (header, buffer.freeze())
}

fn message(kind: MessageKind, group: u64, data: &[Bytes]) -> PeerMessage {
    let entries = data.iter().zip(1..).map(|(data, index)| LogEntry {
        index: Index(index),
        term: Term(1),
        kind: EntryKind::Normal,
        data: data.clone(),
    });
    PeerMessage {
        kind,
        group: GroupId(group),
        from: NodeId(1),
        to: NodeId(2),
        term: Term(3),
        log_term: Term(0),
        index: Index(0),
        commit: Index(4),
        commit_term: Term(0),
        reject: false,
        reject_hint: Index(0),
        request_snapshot: Index(0),
        priority: 0,
        context: Bytes::from_static(b"context"),
        entries: entries.collect(),
    }
}

/// Allocations of building, decoding and walking a frame, the second time round.
fn peer_frame(lane: Lane, messages: &[PeerMessage]) -> [u64; 3] {
    let mut builder = PeerFrameBuilder::default();
    let mut build = |messages: Vec<PeerMessage>| {
        counted(|| {
            messages.into_iter().for_each(|message| builder.push(message));
            builder.finish(lane, ShardId(0), ShardId(0))
        })
    };
    build(messages.to_vec());
    let (building, frame) = build(messages.to_vec());
    let (header, body) = received(&frame);
    let (decoding, frame) = counted(|| PeerFrame::decode(&header, body, &FrameLimits::PEER).unwrap());
    let (walking, count) = counted(|| frame.messages().count());
    assert_eq!(count, messages.len());
    [building, decoding, walking]
}

#[test]
fn ten_thousand_heartbeats_cost_as_much_as_one() {
    let heartbeats: Vec<_> = (1..=10_000).map(|group| message(MessageKind::Heartbeat, group, &[])).collect();
    assert_eq!(peer_frame(Lane::Heartbeat, &heartbeats), [1, 1, 0]);
    assert_eq!(peer_frame(Lane::Heartbeat, &heartbeats[..1]), [0, 1, 0]);
}

#[test]
fn an_append_costs_its_list_of_entries() {
    let large = Bytes::from(vec![7; 100_000]);
    assert_eq!(peer_frame(Lane::Append, &[message(MessageKind::Append, 1, &[large])]), [0, 1, 1]);
    let small = Bytes::from_static(b"a small batch");
    let appends: Vec<_> =
        (1..=64).map(|group| message(MessageKind::Append, group, &[small.clone(), small.clone()])).collect();
    assert_eq!(peer_frame(Lane::Append, &appends), [1, 1, 64]);
}

#[test]
fn small_pieces_between_large_ones_share_a_buffer() {
    let (large, small) = (Bytes::from(vec![7; 100_000]), Bytes::from_static(b"small"));
    let pieces = [large.clone(), small.clone(), large.clone(), small.clone(), large, small];
    assert_eq!(peer_frame(Lane::Append, &[message(MessageKind::Append, 1, &pieces)]), [1, 1, 1]);
}

#[test]
fn a_batch_is_sent_and_received_where_it_is() {
    let batch = Bytes::from(vec![7; 100_000]);
    let mut builder = PeerFrameBuilder::default();
    for _follower in 0..2 {
        builder.push(message(MessageKind::Append, 1, std::slice::from_ref(&batch)));
        let frame = builder.finish(Lane::Append, ShardId(0), ShardId(0));
        let is_batch = |chunk: &&Bytes| chunk.as_ptr_range() == batch.as_ptr_range();
        assert_eq!(frame.chunks.iter().filter(is_batch).count(), 1, "every follower gets the same bytes");
        let (header, body) = received(&frame);
        let buffer = body.as_ptr_range();
        let frame = PeerFrame::decode(&header, body, &FrameLimits::PEER).unwrap();
        let entries: Vec<LogEntry> = frame.messages().flat_map(|message| message.entries).collect();
        let entry = entries[0].data.as_ptr_range();
        assert!(buffer.start <= entry.start && entry.end <= buffer.end, "a slice of what arrived");
        assert_eq!(entries[0].data, batch);
    }
}

#[test]
fn requests_and_replies_cost_nothing_each() {
    let block = RecordBlock::from_records(&[b"a record"; 1000]);
    let requests: Vec<_> = (0..100)
        .map(|request| ClientRequest {
            request,
            group: GroupId(1),
            deadline_ms: 1000,
            body: ClientBody::Append { block: block.clone(), answer: AnswerOn::Commit, run: None },
        })
        .collect();
    let mut builder = RequestFrameBuilder::default();
    let mut build = || {
        counted(|| {
            requests.iter().for_each(|request| builder.push(request));
            builder.finish(ShardId(0))
        })
    };
    build();
    let (building, frame) = build();
    let (header, body) = received(&frame);
    let (decoding, frame) = counted(|| ClientFrame::decode(&header, body, &FrameLimits::REQUEST).unwrap());
    let (walking, count) = counted(|| frame.requests().count());
    assert_eq!((building, decoding, walking, count), (2, 1, 0, 100));

    let mut builder = ReplyFrameBuilder::default();
    let mut build = || {
        counted(|| {
            for request in 0..100 {
                let body = ReplyBody::Appended { first: Offset(1), count: 2, index: Index(3), term: Term(4) };
                builder.push(ClientReply { request, group: GroupId(1), body });
            }
            builder.finish(ShardId(0))
        })
    };
    build();
    let (building, frame) = build();
    let (header, body) = received(&frame);
    let (decoding, frame) = counted(|| ReplyFrame::decode(&header, body, &FrameLimits::REPLY).unwrap());
    let (walking, count) = counted(|| frame.replies().count());
    assert_eq!((building, decoding, walking, count), (1, 0, 0, 100));
}

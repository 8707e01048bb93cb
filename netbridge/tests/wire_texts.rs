//! The texts of failures that a client keeps. A process of its own: they stay for the life of it.

use bytes::Bytes;
use iroh_raft_core::{GroupId, RequestError, ShardId};
use iroh_raft_netbridge::wire::{
    ClientReply, FrameHeader, FrameLimits, HEADER_BYTES, ReplyBody, ReplyFrame, ReplyFrameBuilder,
};

/// Sends a failure with this text over the wire.
fn sent(what: &'static str) -> &'static str {
    let body = ReplyBody::Failed(RequestError::Invalid { what });
    let mut builder = ReplyFrameBuilder::default();
    builder.push(ClientReply { request: 1, group: GroupId(1), body });
    let frame = builder.finish(ShardId(0)).chunks.concat();
    let (header, body) = frame.split_first_chunk::<HEADER_BYTES>().unwrap();
    let header = FrameHeader::parse(header, &FrameLimits::REPLY).unwrap();
    let frame = ReplyFrame::decode(&header, Bytes::copy_from_slice(body), &FrameLimits::REPLY).unwrap();
    match frame.replies().next() {
        Some(ClientReply { body: ReplyBody::Failed(RequestError::Invalid { what }), .. }) => what,
        other => panic!("a failure comes back as one, not as {other:?}"),
    }
}

#[test]
fn texts_are_kept_once_and_up_to_a_bound() {
    let first = sent("not a query");
    assert_eq!(first, "not a query");
    assert_eq!(sent("ä".repeat(600).leak()), "ä".repeat(60));
    let made_up = (0..1000).map(|number| -> &'static str { format!("made up {number}").leak() });
    let kept = made_up.filter(|text| sent(text) == *text).count();
    assert_eq!(kept, 62);
    assert!(std::ptr::eq(first, sent("not a query")));
    assert_eq!(sent("one more"), "the node says why in its log");
}

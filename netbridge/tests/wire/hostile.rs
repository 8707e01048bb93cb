//! Bytes that nobody honest sends: an error, or in-range data; never a panic.

use bytes::Bytes;
use iroh_raft_core::batch::BatchError;
use iroh_raft_core::{EntryKind, GroupCommandError, MessageKind};
use iroh_raft_netbridge::wire::handshake::{BODY_BYTES_MAX, Handshake};
use iroh_raft_netbridge::wire::{
    ClientFrame, FrameError, FrameHeader, FrameKind, FrameLimits, HEADER_BYTES, Lane, PeerFrame, ReplyFrame,
};
use proptest::prelude::*;

use crate::round_trip::content;
use crate::samples::{
    Content, decode, decode_body, encode, entry as entry_of, heartbeat, joined, message, samples,
};

/// The frame with a header whose checksum is right again.
fn sealed(mut frame: Vec<u8>) -> Vec<u8> {
    let sum = crc32c::crc32c(&frame[..28]);
    frame[28..32].copy_from_slice(&sum.to_le_bytes());
    frame
}

/// The frame with some bytes of it replaced, and a header whose checksum is right again.
fn with(frame: &[u8], at: usize, bytes: &[u8]) -> Vec<u8> {
    let mut frame = frame.to_vec();
    frame[at..at + bytes.len()].copy_from_slice(bytes);
    sealed(frame)
}

fn header_of(frame: &[u8]) -> FrameHeader {
    FrameHeader::parse(frame.first_chunk().unwrap(), &FrameLimits::PEER).unwrap()
}

fn header(kind: FrameKind, archive_bytes: u32, payload_bytes: u32) -> FrameHeader {
    let [source_shard, destination_shard] = Default::default();
    FrameHeader { kind, source_shard, destination_shard, archive_bytes, payload_bytes }
}

fn is_handshake(content: &Content) -> bool {
    matches!(content, Content::Handshake(_))
}

fn heartbeats() -> Vec<u8> {
    joined(&encode(&Content::Peer(Lane::Heartbeat, vec![heartbeat(1), heartbeat(2)])))
}

#[test]
fn every_cut_is_an_error() {
    for (name, content) in samples() {
        let frame = joined(&encode(&content));
        for cut in 0..frame.len() {
            assert!(decode(&frame[..cut]).is_err(), "{name} cut at {cut}");
        }
    }
}

#[test]
fn every_cut_of_archive_or_payload_is_an_error_even_if_the_header_agrees() {
    for (name, content) in samples() {
        let frame = joined(&encode(&content));
        let header = header_of(&frame);
        let (archive, payload) = frame[HEADER_BYTES..].split_at(header.archive_bytes as usize);
        for cut in 0..archive.len() {
            for archive in [&archive[..cut], &archive[archive.len() - cut..]] {
                let header = FrameHeader { archive_bytes: cut as u32, ..header };
                let body = [archive, payload].concat();
                assert!(decode_body(&header, body.into()).is_err(), "{name}, archive cut to {cut}");
            }
        }
        for cut in 0..payload.len() {
            let header = FrameHeader { payload_bytes: cut as u32, ..header };
            let body = [archive, &payload[..cut]].concat();
            assert!(decode_body(&header, body.into()).is_err(), "{name}, payload cut to {cut}");
        }
    }
}

#[test]
fn no_flipped_bit_goes_unnoticed() {
    for (name, content) in samples() {
        let frame = joined(&encode(&content));
        for position in 0..frame.len() {
            for bit in 0..8 {
                let mut frame = frame.clone();
                frame[position] ^= 1 << bit;
                let decoded = decode(&frame);
                assert!(position >= HEADER_BYTES || decoded.is_err(), "{name}: bit {bit} of {position}");
                // A handshake ignores what it does not know.
                if !is_handshake(&content) {
                    assert_ne!(decoded, Ok(content.clone()), "{name}: bit {bit} of {position}");
                }
            }
        }
    }
}

#[test]
fn every_byte_set_to_its_extremes_is_an_error_or_in_range() {
    for (_, content) in samples() {
        let frame = joined(&encode(&content));
        for position in HEADER_BYTES..frame.len() {
            for value in [0, 1, 0x7f, 0x80, 0xff] {
                let mut frame = frame.clone();
                frame[position] = value;
                // `decode` checks the ranges.
                let _ = decode(&frame);
            }
        }
    }
}

proptest! {
    #[test]
    fn any_bytes_are_an_error_or_in_range(
        kind in prop::sample::select(vec![0, 1, 2, 3, 16, 17, 32_u8]),
        body in prop::collection::vec(any::<u8>(), 0..400),
        archive_share in 0.0..=1.0,
    ) {
        let archive_bytes = (body.len() as f64 * archive_share) as u32;
        let payload_bytes = body.len() as u32 - archive_bytes;
        let header = header(FrameKind::from_u8(kind).unwrap(), archive_bytes, payload_bytes);
        let _ = decode_body(&header, body.into());
    }

    #[test]
    fn a_damaged_frame_is_an_error_or_in_range(
        content in content(),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
    ) {
        let mut frame = joined(&encode(&content));
        for (position, value) in damage {
            let position = HEADER_BYTES + position.index((frame.len() - HEADER_BYTES).max(1));
            if let Some(byte) = frame.get_mut(position) {
                *byte = value;
            }
        }
        let _ = decode(&frame);
    }
}

#[test]
fn each_field_of_the_header_is_checked() {
    let frame = heartbeats();
    let parse = |frame: Vec<u8>| FrameHeader::parse(frame.first_chunk().unwrap(), &FrameLimits::PEER);
    assert_eq!(parse(with(&frame, 0, b"HTTP")), Err(FrameError::Magic { found: *b"HTTP" }));
    assert_eq!(parse(with(&frame, 4, &[2])), Err(FrameError::Version { found: 2, supported: 1 }));
    assert_eq!(parse(with(&frame, 5, &[4])), Err(FrameError::UnknownKind { number: 4 }));
    assert_eq!(parse(with(&frame, 6, &[1])), Err(FrameError::Reserved { what: "header flags" }));
    for reserved in 20..28 {
        assert!(matches!(parse(with(&frame, reserved, &[1])), Err(FrameError::Reserved { .. })));
    }
    let mut unsealed = frame;
    unsealed[8] ^= 1;
    assert!(matches!(parse(unsealed), Err(FrameError::Checksum { .. })));
}

#[test]
fn sizes_are_checked_against_the_limits_before_anything_is_read() {
    let limits = FrameLimits { archive_bytes_max: 100, payload_bytes_max: 200 };
    let parse = |kind, archive_bytes, payload_bytes| {
        let header = header(kind, archive_bytes, payload_bytes);
        FrameHeader::parse(&header.encode(), &limits).map(|_| ())
    };
    let too_large = |what, bytes, bytes_max| Err(FrameError::TooLarge { what, bytes, bytes_max });
    assert_eq!(parse(FrameKind::Peer(Lane::Append), 100, 200), Ok(()));
    assert_eq!(parse(FrameKind::Peer(Lane::Append), 101, 0), too_large("an archive", 101, 100));
    assert_eq!(parse(FrameKind::Reply, 0, u32::MAX), too_large("a payload", u32::MAX, 200));
    assert_eq!(parse(FrameKind::Handshake, 0, BODY_BYTES_MAX), Ok(()));
    let over = BODY_BYTES_MAX + 1;
    assert_eq!(parse(FrameKind::Handshake, 0, over), too_large("a payload", over, BODY_BYTES_MAX));
    assert_eq!(parse(FrameKind::Handshake, 1, 0), too_large("an archive", 1, 0));
    // A header that did not come through `parse` is no way around the limits.
    let header = header(FrameKind::Peer(Lane::Append), 101, 0);
    let decoded = PeerFrame::decode(&header, vec![0; 101].into(), &limits).map(|_| ());
    assert_eq!(decoded, too_large("an archive", 101, 100));
}

#[test]
fn bytes_that_no_descriptor_names_are_refused() {
    for (name, content) in samples().into_iter().filter(|(_, content)| !is_handshake(content)) {
        let frame = joined(&encode(&content));
        let header = header_of(&frame);
        let (archive, payload) = frame[HEADER_BYTES..].split_at(header.archive_bytes as usize);
        let longer = FrameHeader { archive_bytes: header.archive_bytes + 1, ..header };
        let in_archive = decode_body(&longer, [&[0], archive, payload].concat().into());
        assert!(matches!(in_archive, Err(FrameError::Length { what: "an archive", .. })), "{name}");
        let longer = FrameHeader { payload_bytes: header.payload_bytes + 1, ..header };
        let in_payload = decode_body(&longer, [archive, payload, &[0]].concat().into());
        assert!(matches!(in_payload, Err(FrameError::Length { .. })), "{name}");
    }
}

#[test]
fn a_frame_of_another_kind_is_refused_by_name() {
    let frame = heartbeats();
    let header = header_of(&frame);
    let body = Bytes::copy_from_slice(&frame[HEADER_BYTES..]);
    let refused = |expected| Err(FrameError::UnexpectedKind { found: header.kind, expected });
    let request = ClientFrame::decode(&header, body.clone(), &FrameLimits::REQUEST).map(|_| ());
    let reply = ReplyFrame::decode(&header, body.clone(), &FrameLimits::REPLY).map(|_| ());
    let handshake = Handshake::decode(&header, &body).map(|_| ());
    assert_eq!((request, reply, handshake), (refused("request"), refused("reply"), refused("handshake")));
    let header = FrameHeader { kind: FrameKind::Request, ..header };
    let peer = PeerFrame::decode(&header, body, &FrameLimits::PEER).map(|_| ());
    assert_eq!(peer, Err(FrameError::UnexpectedKind { found: FrameKind::Request, expected: "peer" }));
}

#[test]
fn a_message_on_another_lane_is_refused() {
    let kind = MessageKind::Heartbeat;
    let frame = joined(&encode(&Content::Peer(Lane::Election, vec![message(kind, 1)])));
    assert_eq!(decode(&frame), Err(FrameError::WrongLane { kind, lane: Lane::Election }));
}

/// The bytes of FORMAT.md, at the places it gives them.
#[test]
fn each_field_of_a_descriptor_is_checked() {
    const MESSAGE: usize = HEADER_BYTES;
    let frame = heartbeats();
    let unknown = |what, number| Err(FrameError::UnknownNumber { what, number });
    assert_eq!(decode(&with(&frame, MESSAGE + 36, &[21])), unknown("kind of message", 21));
    assert!(matches!(decode(&with(&frame, MESSAGE + 37, &[4])), Err(FrameError::Reserved { .. })));
    assert!(matches!(decode(&with(&frame, MESSAGE + 39, &[1])), Err(FrameError::Reserved { .. })));
    assert_eq!(decode(&with(&frame, MESSAGE + 37, &[2])), Err(FrameError::Count { what: "details" }));
    assert_eq!(decode(&with(&frame, MESSAGE + 32, &[1])), Err(FrameError::Count { what: "entries" }));
    assert!(matches!(
        decode(&with(&frame, MESSAGE + 38, &[65])),
        Err(FrameError::TooLarge { bytes: 65, .. })
    ));
    let length = decode(&with(&frame, MESSAGE + 38, &[1]));
    assert_eq!(length, Err(FrameError::Length { what: "a payload", bytes: 0, expected: 1 }));

    let all = samples();
    let sample = |wanted| &all.iter().find(|(name, _)| *name == wanted).unwrap().1;
    let append = joined(&encode(sample("peer-append")));
    // Rows that no message takes.
    assert_eq!(decode(&with(&append, MESSAGE + 37, &[0])), Err(FrameError::Count { what: "details" }));
    let entry = HEADER_BYTES + 3 * 40 + 3 * 40;
    let mut empty_entry = message(MessageKind::Append, 1);
    empty_entry.entries = vec![entry_of(1, EntryKind::Normal, Bytes::new())];
    let without_data = joined(&encode(&Content::Peer(Lane::Append, vec![empty_entry])));
    let none = decode(&with(&without_data, MESSAGE + 32, &[0]));
    assert_eq!(none, Err(FrameError::Count { what: "entries" }));
    assert_eq!(decode(&with(&append, entry + 20, &[3])), unknown("kind of entry", 3));
    assert!(matches!(decode(&with(&append, entry + 21, &[1])), Err(FrameError::Reserved { .. })));
    assert!(matches!(decode(&with(&append, entry + 16, &[0])), Err(FrameError::Length { .. })));
    assert!(matches!(decode(&with(&append, entry + 16, &[0xff; 4])), Err(FrameError::Length { .. })));

    let request = joined(&encode(sample("request")));
    assert_eq!(decode(&with(&request, HEADER_BYTES + 36, &[99])), unknown("kind of request", 99));
    assert_eq!(decode(&with(&request, HEADER_BYTES + 37, &[2])), unknown("option of a request", 2));
    // Of a query: no such consistency, and a local one that is to be forwarded.
    let query = joined(&encode(sample("request-reads")));
    for option in [3, 4, 7, 8] {
        assert_eq!(
            decode(&with(&query, HEADER_BYTES + 37, &[option])),
            unknown("option of a request", option)
        );
    }
    assert!(matches!(decode(&with(&request, HEADER_BYTES + 38, &[1])), Err(FrameError::Reserved { .. })));
    let no_records = decode(&with(&request, HEADER_BYTES + 28, &[0]));
    assert_eq!(no_records, Err(FrameError::Block(BatchError::Empty)));
    let payload = HEADER_BYTES + header_of(&request).archive_bytes as usize;
    let lie = decode(&with(&request, payload, &[99]));
    assert!(matches!(lie, Err(FrameError::Block(BatchError::Lengths { .. }))));

    // Of those that read the log: a read of no bound said otherwise, a tail's name, a command, a cursor's name.
    let log = joined(&encode(sample("request-log")));
    let field =
        |row: usize, at: usize, bytes: &[u8]| decode(&with(&log, HEADER_BYTES + 40 * row + at, bytes));
    assert!(matches!(field(0, 32, &[0xff; 4]), Err(FrameError::Reserved { .. })));
    assert_eq!(field(0, 37, &[2]), unknown("option of a request", 2));
    assert_eq!(field(1, 32, &[7]), Err(FrameError::Count { what: "bytes of a tail's name" }));
    assert!(matches!(field(3, 28, &[1]), Err(FrameError::Reserved { .. })));
    assert!(matches!(field(5, 32, &[15]), Err(FrameError::GroupCommand(GroupCommandError::Length { .. }))));
    assert!(matches!(field(7, 32, &[0]), Err(FrameError::GroupCommand(GroupCommandError::Name { .. }))));

    let timed = joined(&encode(sample("request-timed")));
    assert_eq!(decode(&with(&timed, HEADER_BYTES + 28, &[0])), Err(FrameError::Block(BatchError::Empty)));
    assert!(matches!(decode(&with(&timed, HEADER_BYTES + 37, &[1])), Err(FrameError::Reserved { .. })));
    let timed = joined(&encode(sample("reply-timed")));
    let short = decode(&with(&timed, HEADER_BYTES + 44, &[15]));
    assert_eq!(short, Err(FrameError::Count { what: "bytes of the stages of an append" }));

    // A list without a bound; groups out of order, a node without shards, a group cut short.
    let node = joined(&encode(sample("request-node")));
    assert_eq!(
        decode(&with(&node, HEADER_BYTES + 28, &[0; 4])),
        Err(FrameError::Count { what: "groups to be listed" })
    );
    let node = joined(&encode(sample("reply-node")));
    let payload = HEADER_BYTES + header_of(&node).archive_bytes as usize;
    assert!(matches!(decode(&with(&node, payload, &[9])), Err(FrameError::Reserved { .. })));
    assert!(matches!(decode(&with(&node, HEADER_BYTES + 40, &[0])), Err(FrameError::Reserved { .. })));

    let reply = joined(&encode(sample("reply")));
    assert_eq!(decode(&with(&reply, HEADER_BYTES + 48, &[99])), unknown("kind of answer", 99));
    assert!(matches!(decode(&with(&reply, HEADER_BYTES + 49, &[1])), Err(FrameError::Reserved { .. })));
    assert!(matches!(decode(&with(&reply, HEADER_BYTES + 55, &[1])), Err(FrameError::Reserved { .. })));
}

#[test]
fn handshakes_of_other_versions_are_understood() {
    for (name, content) in samples().into_iter().filter(|(_, content)| is_handshake(content)) {
        let mut frame = joined(&encode(&content));
        // A later version, its own bytes in the reserved places, and more behind.
        frame[4] = 9;
        match name {
            "handshake-refused" => frame[HEADER_BYTES + 4..HEADER_BYTES + 8].fill(0xee),
            _ => frame[HEADER_BYTES + 1] = 0xee,
        }
        frame.extend_from_slice(b"something new");
        let bytes = (frame.len() - HEADER_BYTES) as u32;
        frame[16..20].copy_from_slice(&bytes.to_le_bytes());
        assert_eq!(decode(&sealed(frame)), Ok(content), "{name}");
    }
}

//! Any bytes as a frame of each kind: an error, or content that is sent again as it came.

use bytes::Bytes;
use iroh_raft_core::ShardId;
use iroh_raft_netbridge::wire::{FrameError, FrameHeader, FrameKind, FrameLimits, HEADER_BYTES};

use crate::samples::{decode_body, encode, joined, limits};

/// Bytes of payload that are put right at most.
const MENDED_BYTES_MAX: u64 = 4096;

/// Decodes bytes as a frame, and returns its kind if it is one.
///
/// First with a header whose checksum is right, then also with lengths that are: changed bytes would get no
/// further than these.
pub(crate) fn frame(data: &[u8]) -> Option<FrameKind> {
    let (header, body) = data.split_first_chunk::<HEADER_BYTES>()?;
    let mut summed = *header;
    summed[..5].copy_from_slice(b"IRFr\x01");
    let sum = crc32c::crc32c(&summed[..HEADER_BYTES - 4]);
    summed[HEADER_BYTES - 4..].copy_from_slice(&sum.to_le_bytes());
    let header = &summed;
    if let Ok(parsed) = FrameHeader::parse(header, &FrameLimits::PEER) {
        let FrameLimits { archive_bytes_max, payload_bytes_max } = FrameLimits::PEER;
        assert!(parsed.body_bytes() <= archive_bytes_max as usize + payload_bytes_max as usize);
        // Handshakes may come from any version.
        assert!(
            parsed.kind == FrameKind::Handshake || parsed.encode() == *header,
            "a header is written in one way"
        );
        check(&parsed, body).ok();
    }
    let mut body = body.to_vec();
    loop {
        let header = sealed(header, body.len())?;
        match check(&header, &body) {
            Ok(()) => return Some(header.kind),
            Err(FrameError::Length { what, bytes, expected }) if what.contains("payload") => {
                // What the descriptors name decides; each time round one piece more is there.
                if expected.abs_diff(bytes) > MENDED_BYTES_MAX || body.len() as u64 > 4 * MENDED_BYTES_MAX {
                    return None;
                }
                body.resize(body.len() + expected as usize - bytes as usize, 0);
            }
            Err(_) => return None,
        }
    }
}

/// A header that announces this body, with what else the bytes of one say.
fn sealed(header: &[u8; HEADER_BYTES], body_bytes: usize) -> Option<FrameHeader> {
    let [_, _, _, _, _, kind, _, _, f0, f1, t0, t1, a0, a1, a2, a3, ..] = *header;
    let body_bytes = u32::try_from(body_bytes).ok()?;
    let kind = FrameKind::from_u8(kind)?;
    let archive_bytes = match kind {
        FrameKind::Handshake => 0,
        _ => u32::from_le_bytes([a0, a1, a2, a3]).min(body_bytes),
    };
    let header = FrameHeader {
        kind,
        source_shard: ShardId(u16::from_le_bytes([f0, f1])),
        destination_shard: ShardId(u16::from_le_bytes([t0, t1])),
        archive_bytes,
        payload_bytes: body_bytes - archive_bytes,
    };
    let parsed = FrameHeader::parse(&header.encode(), &limits(kind)).ok()?;
    assert_eq!(parsed, header, "a header is read as it was written");
    Some(header)
}

fn check(header: &FrameHeader, body: &[u8]) -> Result<(), FrameError> {
    let content = decode_body(header, Bytes::copy_from_slice(body))?;
    let again = joined(&encode(&content));
    let (first, rest) = again.split_first_chunk().expect("a frame has a header");
    let parsed = FrameHeader::parse(first, &limits(header.kind)).expect("a header that was written here");
    let decoded = decode_body(&parsed, Bytes::copy_from_slice(rest));
    assert_eq!(decoded, Ok(content), "what was taken is sent as it came");
    Ok(())
}

//! Digests of states, as payload.

use iroh_raft_core::{DigestState, SnapshotBody, StateDigest};

use super::FrameError;

/// Bytes of a digest: the machine's length and checksum, the table's checksum, whether there is a machine, zeros.
const DIGEST_BYTES: usize = 20;

const KNOWN: u8 = 0;
const PENDING: u8 = 1;
const MISSED: u8 = 2;
const UNKNOWN: u8 = 3;

fn encode(digest: StateDigest) -> [u8; DIGEST_BYTES] {
    let body = digest.machine.unwrap_or_default();
    let mut bytes = [0; DIGEST_BYTES];
    bytes[..8].copy_from_slice(&body.bytes.to_le_bytes());
    bytes[8..12].copy_from_slice(&body.checksum.to_le_bytes());
    bytes[12..16].copy_from_slice(&digest.table.to_le_bytes());
    bytes[16] = digest.machine.is_some().into();
    bytes
}

fn decode(payload: &[u8]) -> Result<StateDigest, FrameError> {
    let count = FrameError::Count { what: "bytes of a digest" };
    let (bytes, rest) = payload.split_first_chunk().ok_or(count)?;
    let (checksum, rest) = rest.split_first_chunk().ok_or(count)?;
    let (table, rest) = rest.split_first_chunk().ok_or(count)?;
    let body = SnapshotBody { bytes: u64::from_le_bytes(*bytes), checksum: u32::from_le_bytes(*checksum) };
    let machine = match rest {
        [0, 0, 0, 0] if body == SnapshotBody::default() => None,
        [1, 0, 0, 0] => Some(body),
        [_, _, _, _] => return Err(FrameError::Reserved { what: "bytes of a digest" }),
        _ => return Err(count),
    };
    Ok(StateDigest { machine, table: u32::from_le_bytes(*table) })
}

/// Empty, or a digest.
pub(super) fn encode_expected(expected: Option<StateDigest>) -> Vec<u8> {
    expected.map_or_else(Vec::new, |digest| encode(digest).to_vec())
}

pub(super) fn decode_expected(payload: &[u8]) -> Result<Option<StateDigest>, FrameError> {
    if payload.is_empty() { Ok(None) } else { decode(payload).map(Some) }
}

/// Which state, and the digest of a known one.
pub(super) fn encode_state(state: DigestState) -> (u8, Vec<u8>) {
    match state {
        DigestState::Known(digest) => (KNOWN, encode(digest).to_vec()),
        DigestState::Pending => (PENDING, Vec::new()),
        DigestState::Missed => (MISSED, Vec::new()),
        DigestState::Unknown => (UNKNOWN, Vec::new()),
    }
}

pub(super) fn decode_state(which: u8, payload: &[u8]) -> Result<DigestState, FrameError> {
    match which {
        KNOWN => decode(payload).map(DigestState::Known),
        _ if !payload.is_empty() => Err(FrameError::Count { what: "bytes of a digest" }),
        PENDING => Ok(DigestState::Pending),
        MISSED => Ok(DigestState::Missed),
        UNKNOWN => Ok(DigestState::Unknown),
        number => Err(FrameError::UnknownNumber { what: "state of a digest", number }),
    }
}

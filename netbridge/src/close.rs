//! Why a connection is closed: the QUIC application codes, and the refusal that travels with one.
//!
//! A refusal is the encoded handshake frame in the reason bytes of the close, so it reaches the
//! other side at any point of the handshake, on either side, without another stream.

use iroh::endpoint::{Connection, ConnectionError, VarInt};

use crate::wire::handshake::{Handshake, Refusal};
use crate::wire::{FrameHeader, FrameLimits, HEADER_BYTES};

/// Application close codes. The numbers are the wire's and never change.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub(crate) enum CloseCode {
    /// The node or client goes away in an orderly way.
    ShuttingDown = 1,
    /// Refused; the reason bytes are the encoded refusal.
    Refused = 2,
    /// There is already a connection between the two, which stays.
    Duplicate = 3,
    /// A newer connection between the two has taken over.
    Replaced = 4,
    /// Bytes that are not a legal frame.
    BadFrame = 5,
    /// A frame of a version that this build does not read.
    FrameVersion = 6,
    /// Answers were not read in time.
    SlowReader = 7,
    /// The handshake took too long.
    HandshakeDeadline = 8,
}

impl CloseCode {
    fn from_var_int(code: VarInt) -> Option<CloseCode> {
        Some(match code.into_inner() {
            1 => CloseCode::ShuttingDown,
            2 => CloseCode::Refused,
            3 => CloseCode::Duplicate,
            4 => CloseCode::Replaced,
            5 => CloseCode::BadFrame,
            6 => CloseCode::FrameVersion,
            7 => CloseCode::SlowReader,
            8 => CloseCode::HandshakeDeadline,
            _ => return None,
        })
    }

    pub(crate) fn var_int(self) -> VarInt {
        VarInt::from_u32(self as u32)
    }

    /// Closes `connection`; of several closes the first counts.
    pub(crate) fn close(self, connection: &Connection, reason: &str) {
        connection.close(self.var_int(), reason.as_bytes());
    }

    /// The code with which the other side closed, if it did.
    pub(crate) fn of(error: &ConnectionError) -> Option<(CloseCode, &[u8])> {
        match error {
            ConnectionError::ApplicationClosed(close) => {
                Some((CloseCode::from_var_int(close.error_code)?, &close.reason))
            }
            _ => None,
        }
    }
}

/// Code and reason bytes that carry a refusal.
pub(crate) fn refusal_close(reason: &Refusal, text: &str) -> (VarInt, Vec<u8>) {
    let frame = Handshake::Refused { reason: *reason, text: text.to_owned() }.encode();
    (CloseCode::Refused.var_int(), frame.chunks.concat())
}

/// The refusal that closed a connection, if that is what closed it.
pub(crate) fn refusal_of(error: &ConnectionError) -> Option<(Refusal, String)> {
    let (CloseCode::Refused, bytes) = CloseCode::of(error)? else { return None };
    let (header, body) = bytes.split_first_chunk::<HEADER_BYTES>()?;
    let header = FrameHeader::parse(header, &FrameLimits::PEER).ok()?;
    match Handshake::decode(&header, body).ok()? {
        Handshake::Refused { reason, text } => Some((reason, text)),
        Handshake::Hello(_) | Handshake::Welcome(_) => None,
    }
}

//! The handshake: both sides say who they are, and each decides whether to go on.
//!
//! The dialing side opens the connection's bidirectional stream and sends Hello, the accepting side
//! answers Welcome. Whoever does not want the other closes the connection with a refusal
//! ([`crate::close`]). Every wait has a deadline, set by the caller.

use iroh::endpoint::{Connection, ConnectionError, RecvStream, SendStream};

use crate::close::{CloseCode, refusal_close, refusal_of};
use crate::lane::{ReadFailure, read_frame};
use crate::wire::handshake::{Handshake, Introduction, Refusal};
use crate::wire::{FrameError, FrameLimits};

/// Before the handshake nothing else may come: no memory is taken for it.
const HANDSHAKES_ONLY: FrameLimits = FrameLimits { archive_bytes_max: 0, payload_bytes_max: 0 };

/// Why a handshake did not come about.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum HandshakeFailure {
    /// The other side refused.
    #[error("refused: {reason}{}", if text.is_empty() { String::new() } else { format!(" ({text})") })]
    Refused {
        /// Why.
        reason: Refusal,
        /// What it added.
        text: String,
    },
    /// This side refused.
    #[error("refused by this side: {0}")]
    Refusing(Refusal),
    /// There is a connection already.
    #[error("there is a connection already")]
    Duplicate,
    /// It did not speak the protocol.
    #[error("it does not speak this protocol: {0}")]
    Frame(#[from] FrameError),
    /// The connection was lost.
    #[error("{0}")]
    Lost(String),
    /// It took too long.
    #[error("no answer in time")]
    Deadline,
}

impl From<ConnectionError> for HandshakeFailure {
    fn from(error: ConnectionError) -> HandshakeFailure {
        if let Some((reason, text)) = refusal_of(&error) {
            return HandshakeFailure::Refused { reason, text };
        }
        match CloseCode::of(&error) {
            Some((CloseCode::Duplicate | CloseCode::Replaced, _)) => HandshakeFailure::Duplicate,
            _ => HandshakeFailure::Lost(error.to_string()),
        }
    }
}

/// Why the other side cannot be worked with, if so. Its key has been checked already.
pub(crate) fn judge(own: &Introduction, other: &Introduction) -> Option<Refusal> {
    if other.protocol != own.protocol {
        return Some(Refusal::Version { offered: other.protocol, supported: own.protocol });
    }
    if other.fingerprint != own.fingerprint {
        return Some(Refusal::Fingerprint { offered: other.fingerprint, supported: own.fingerprint });
    }
    if other.cluster != own.cluster {
        return Some(Refusal::WrongCluster { cluster: own.cluster });
    }
    None
}

/// Closes with a refusal.
pub(crate) fn refuse(connection: &Connection, refusal: Refusal, text: &str) -> HandshakeFailure {
    let (code, reason) = refusal_close(&refusal, text);
    connection.close(code, &reason);
    HandshakeFailure::Refusing(refusal)
}

/// Dialing side: says hello, and returns the welcome.
pub(crate) async fn hello(
    connection: &Connection,
    own: Introduction,
) -> Result<(Introduction, SendStream, RecvStream), HandshakeFailure> {
    let (mut send, mut recv) = connection.open_bi().await?;
    write(connection, &mut send, &Handshake::Hello(own)).await?;
    match read(connection, &mut recv).await? {
        Handshake::Welcome(other) => Ok((other, send, recv)),
        Handshake::Refused { reason, text } => Err(HandshakeFailure::Refused { reason, text }),
        Handshake::Hello(_) => Err(out_of_turn(connection)),
    }
}

/// Accepting side: waits for the hello. [`welcome`] or [`refuse`] answers it.
pub(crate) async fn await_hello(
    connection: &Connection,
) -> Result<(Introduction, SendStream, RecvStream), HandshakeFailure> {
    let (send, mut recv) = connection.accept_bi().await?;
    match read(connection, &mut recv).await? {
        Handshake::Hello(other) => Ok((other, send, recv)),
        Handshake::Welcome(_) | Handshake::Refused { .. } => Err(out_of_turn(connection)),
    }
}

/// Accepting side: answers the hello.
pub(crate) async fn welcome(
    connection: &Connection,
    send: &mut SendStream,
    own: Introduction,
) -> Result<(), HandshakeFailure> {
    write(connection, send, &Handshake::Welcome(own)).await
}

fn out_of_turn(connection: &Connection) -> HandshakeFailure {
    CloseCode::BadFrame.close(connection, "a handshake message out of turn");
    HandshakeFailure::Lost("a handshake message out of turn".to_owned())
}

async fn write(
    connection: &Connection,
    send: &mut SendStream,
    message: &Handshake,
) -> Result<(), HandshakeFailure> {
    let mut chunks = message.encode().chunks;
    match send.write_all_chunks(&mut chunks).await {
        Ok(()) => Ok(()),
        Err(error) => Err(lost(connection, &error)),
    }
}

async fn read(connection: &Connection, recv: &mut RecvStream) -> Result<Handshake, HandshakeFailure> {
    match read_frame(recv, &HANDSHAKES_ONLY).await {
        Ok((header, body)) => Handshake::decode(&header, &body).map_err(|error| bad_frame(connection, error)),
        Err(ReadFailure::Frame(error)) => Err(bad_frame(connection, error)),
        Err(ReadFailure::Stream(error)) => Err(lost(connection, &error)),
    }
}

fn lost(connection: &Connection, error: &dyn std::error::Error) -> HandshakeFailure {
    match connection.close_reason() {
        Some(reason) => reason.into(),
        None => HandshakeFailure::Lost(error.to_string()),
    }
}

/// Closes because of bytes that are no legal frame; the code tells another version apart.
pub(crate) fn bad_frame(connection: &Connection, error: FrameError) -> HandshakeFailure {
    close_for(connection, &error);
    HandshakeFailure::Frame(error)
}

pub(crate) fn close_for(connection: &Connection, error: &FrameError) {
    let code = match error {
        FrameError::Version { .. } => CloseCode::FrameVersion,
        _ => CloseCode::BadFrame,
    };
    code.close(connection, &error.to_string());
}

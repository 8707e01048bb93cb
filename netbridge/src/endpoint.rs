//! The iroh endpoint as this system uses it: explicit addresses, no relay, no discovery, finite
//! windows, and an allow-list asked right after the TLS handshake.
//!
//! Nothing arrives from an unfinished handshake (0-RTT): connections are handed on only once the
//! other side has proved its key, so an attacker's replay of early data is never read.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use iroh::endpoint::{
    AfterHandshakeOutcome, BindError, Connection, EndpointHooks, IdleTimeout, QuicTransportConfig, VarInt,
    presets,
};
use iroh::{Endpoint, EndpointAddr, RelayMode};

use crate::allow::PeerAddress;
use crate::identity::Identity;

/// Protocol between nodes.
pub const ALPN_PEER: &[u8] = b"iroh-raft/0";
/// Protocol between clients and nodes.
pub const ALPN_CLIENT: &[u8] = b"iroh-raft-client/0";

/// Least bytes that a stream may be allowed to send ahead of its reader.
pub(crate) const STREAM_WINDOW_BYTES_MIN: u32 = 64 << 10;
/// Most of them. A stream reassembles at most 1,024 pieces of about 1.2 KB: more than 1.25 MB would let reordering
/// kill the connection.
pub(crate) const STREAM_WINDOW_BYTES_MAX: u32 = 1 << 20;
/// What a stream may send ahead by default. What is on its way waits in front of votes and heartbeats, which share its
/// sockets: with both bulk lanes full and 1 MiB each, a vote took 2.1 ms (p50) between two bridges on loopback, with
/// 256 KiB 0.8 ms; the throughput was the same.
pub(crate) const STREAM_WINDOW_BYTES: u32 = 256 << 10;
/// What all streams of a connection may send ahead, in windows of one: more than the four lanes and the handshake
/// stream together, so that a lane whose reader stalls never holds up another.
const WINDOWS: u32 = 6;
const _: () = assert!(WINDOWS > LANES as u32 + 1);
const LANES: u8 = 4;
/// Assumed round trip before the first measurement: sets how soon an unanswered dial is repeated
/// (three of these, doubling). QUIC's default would wait a whole second.
const INITIAL_RTT: Duration = Duration::from_millis(10);

/// Why an endpoint is not bound.
#[derive(Debug)]
pub(crate) enum BindFailure {
    InUse,
    Other(String),
}

/// Asked once the key of the other side is known.
pub(crate) trait Admission: fmt::Debug + Send + Sync + 'static {
    /// `Err`: close code and reason with which the connection is refused.
    fn admit(&self, connection: &Connection) -> Result<(), (VarInt, Vec<u8>)>;
}

#[derive(Debug)]
struct Hook<A>(A);

impl<A: Admission> EndpointHooks for Hook<A> {
    async fn after_handshake<'a>(&'a self, connection: &'a Connection) -> AfterHandshakeOutcome {
        match self.0.admit(connection) {
            Ok(()) => AfterHandshakeOutcome::Accept,
            Err((error_code, reason)) => AfterHandshakeOutcome::Reject { error_code, reason },
        }
    }
}

/// How a connection behaves.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Behavior {
    pub(crate) idle_timeout: Duration,
    pub(crate) keep_alive: Duration,
    pub(crate) stream_window_bytes: u32,
}

impl Behavior {
    /// Says what is wrong with it, if anything is.
    pub(crate) fn problem(&self) -> Option<&'static str> {
        if self.keep_alive.is_zero() || self.idle_timeout < self.keep_alive * 2 {
            return Some("idle_timeout is at least twice keep_alive, and neither is zero");
        }
        let possible = STREAM_WINDOW_BYTES_MIN..=STREAM_WINDOW_BYTES_MAX;
        let is_possible = possible.contains(&self.stream_window_bytes);
        (!is_possible).then_some("stream_window_bytes is 65,536 to 1,048,576")
    }
}

fn transport(behavior: Behavior) -> QuicTransportConfig {
    let Behavior { idle_timeout, keep_alive, stream_window_bytes } = behavior;
    let connection_window_bytes = WINDOWS * stream_window_bytes;
    let idle = IdleTimeout::try_from(idle_timeout).unwrap_or(IdleTimeout::from(VarInt::from_u32(u32::MAX)));
    QuicTransportConfig::builder()
        .max_idle_timeout(Some(idle))
        .keep_alive_interval(keep_alive)
        .default_path_max_idle_timeout(idle_timeout)
        .default_path_keep_alive_interval(keep_alive)
        .initial_rtt(INITIAL_RTT)
        .max_concurrent_uni_streams(VarInt::from_u32(u32::from(LANES)))
        .max_concurrent_bidi_streams(VarInt::from_u32(1))
        .stream_receive_window(VarInt::from_u32(stream_window_bytes))
        .receive_window(VarInt::from_u32(connection_window_bytes))
        .send_window(u64::from(connection_window_bytes))
        .datagram_receive_buffer_size(None)
        .build()
}

/// Binds an endpoint at `addr`. `alpns` empty: it accepts nothing.
pub(crate) async fn bind(
    identity: &Identity,
    addr: SocketAddr,
    alpns: &[&[u8]],
    behavior: Behavior,
    admission: impl Admission,
) -> Result<Endpoint, BindFailure> {
    let builder = Endpoint::builder(presets::Minimal)
        .secret_key(identity.secret().clone())
        .relay_mode(RelayMode::Disabled)
        .alpns(alpns.iter().map(|alpn| alpn.to_vec()).collect())
        .transport_config(transport(behavior))
        .hooks(Hook(admission))
        .clear_ip_transports()
        .bind_addr(addr)
        .map_err(|error| BindFailure::Other(error.to_string()))?;
    builder.bind().await.map_err(|error| match &error {
        BindError::Sockets { source, .. } | BindError::CreateQuicEndpoint { source, .. } => {
            match source.kind() {
                io::ErrorKind::AddrInUse => BindFailure::InUse,
                _ => BindFailure::Other(source.to_string()),
            }
        }
        _ => BindFailure::Other(error.to_string()),
    })
}

/// Where iroh finds a node: exactly there, nobody is asked.
pub(crate) fn address_of(node: &PeerAddress) -> EndpointAddr {
    EndpointAddr::new(node.endpoint).with_ip_addr(node.addr)
}

/// Admits everybody that was dialed: the dialer has named the key it wants.
#[derive(Debug)]
pub(crate) struct DialedOnly;

impl Admission for DialedOnly {
    fn admit(&self, _: &Connection) -> Result<(), (VarInt, Vec<u8>)> {
        Ok(())
    }
}

/// A shared admission is an admission.
impl<A: Admission> Admission for Arc<A> {
    fn admit(&self, connection: &Connection) -> Result<(), (VarInt, Vec<u8>)> {
        A::admit(self, connection)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_that_would_break_connections_or_starve_them_is_refused() {
        let of = |stream_window_bytes| Behavior {
            idle_timeout: Duration::from_secs(1),
            keep_alive: Duration::from_millis(250),
            stream_window_bytes,
        };
        assert_eq!(of(STREAM_WINDOW_BYTES).problem(), None);
        assert_eq!(of(STREAM_WINDOW_BYTES_MIN).problem(), None);
        assert!(of(STREAM_WINDOW_BYTES_MIN - 1).problem().is_some());
        assert!(of(STREAM_WINDOW_BYTES_MAX + 1).problem().is_some());
        let silent = Behavior { keep_alive: Duration::from_millis(501), ..of(STREAM_WINDOW_BYTES) };
        assert!(silent.problem().is_some_and(|problem| problem.contains("twice keep_alive")));
    }
}

//! What the tests of real parts share.
#![forbid(unsafe_code)]

use std::future::Future;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

/// Longest time a test waits for something that must come. Generous: two cores run everything.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Asks again and again until there is an answer, at most for [`PATIENCE`].
///
/// # Panics
/// When time is up, naming what was waited for.
pub async fn until<T, F: Future<Output = Option<T>>>(what: &str, mut ask: impl FnMut() -> F) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(answer) = ask().await {
            return answer;
        }
        assert!(Instant::now() < deadline, "waited in vain for: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Loopback addresses whose ports are free now.
///
/// # Panics
/// When loopback has no port left.
#[must_use]
pub fn free_addresses(count: usize) -> Vec<SocketAddr> {
    let bind = |_| UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("loopback has a free port");
    // All at once, so that no port is given twice.
    let sockets: Vec<UdpSocket> = (0..count).map(bind).collect();
    sockets.iter().map(|socket| socket.local_addr().expect("a bound socket has an address")).collect()
}

//! What the bridge counts.

use std::sync::atomic::{AtomicU64, Ordering};

/// A counter that any thread may read.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add(&self, amount: u64) {
        self.0.fetch_add(amount, Ordering::Relaxed);
    }

    pub(crate) fn sub(&self, amount: u64) {
        self.0.fetch_sub(amount, Ordering::Relaxed);
    }

    pub(crate) fn value(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident: $help:literal,)*) => {
        /// The counters of a bridge, as they stood at one moment.
        ///
        /// Dropped frames are counted in the first place that drops them, each once.
        #[derive(Clone, Debug, Default, PartialEq, Eq)]
        pub struct BridgeStats {
            /// Peer frames written, per lane in order of priority.
            pub frames_out: [u64; 4],
            /// Bytes of them.
            pub bytes_out: [u64; 4],
            /// Peer frames received and decoded, per lane.
            pub frames_in: [u64; 4],
            /// Bytes of them.
            pub bytes_in: [u64; 4],
            $(#[doc = $help] pub $name: u64,)*
        }

        #[derive(Debug, Default)]
        pub(crate) struct Counters {
            pub(crate) frames_out: [Counter; 4],
            pub(crate) bytes_out: [Counter; 4],
            pub(crate) frames_in: [Counter; 4],
            pub(crate) bytes_in: [Counter; 4],
            $(pub(crate) $name: Counter,)*
        }

        impl Counters {
            pub(crate) fn snapshot(&self) -> BridgeStats {
                let lanes = |counters: &[Counter; 4]| counters.each_ref().map(Counter::value);
                BridgeStats {
                    frames_out: lanes(&self.frames_out),
                    bytes_out: lanes(&self.bytes_out),
                    frames_in: lanes(&self.frames_in),
                    bytes_in: lanes(&self.bytes_in),
                    $($name: self.$name.value(),)*
                }
            }
        }
    };
}

counters! {
    peers_connected: "Peers connected now.",
    clients_connected: "Clients connected now.",
    peer_connects: "Peer connections made since the start.",
    peer_losses: "Peer connections lost since the start.",
    client_frames_in: "Request frames received and decoded.",
    client_bytes_in: "Bytes of them.",
    client_frames_out: "Answer frames written.",
    client_bytes_out: "Bytes of them.",
    requests_busy: "Requests answered Busy by the bridge: a full ring, or credit used up.",
    dropped_not_connected: "Frames for a peer that is not connected.",
    dropped_unknown_node: "Frames for a node that is not a peer.",
    dropped_lane_full: "Frames that found their lane's queue full.",
    dropped_ring_full: "Received frames that found the shard's ring full.",
    dropped_wrong_sender: "Received frames whose messages claim another sender or receiver.",
    dropped_no_shard: "Received frames for a shard that this node does not have.",
    dropped_client_gone: "Answers for a client that is gone.",
    frames_refused: "Received bytes that were not a frame; each cost its connection.",
    connections_refused: "Connections refused: unknown key, wrong cluster, and so on.",
    clients_cut_off: "Clients cut off because they did not read their answers.",
}

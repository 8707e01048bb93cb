//! Everything that is not let in, and what the other side hears about it.

use std::time::Duration;

use iroh::endpoint::{Connection, ConnectionError, RecvStream, SendStream, presets};
use iroh::{Endpoint, EndpointAddr, RelayMode};
use iroh_raft_core::{BootEpoch, ClusterId, MessageKind, NodeId, Placement, ShardId};
use iroh_raft_netbridge::bridge::{BridgeError, BridgeLimits, ClientGrant};
use iroh_raft_netbridge::client::{ClientError, ClientLimits};
use iroh_raft_netbridge::endpoint::{ALPN_CLIENT, ALPN_PEER};
use iroh_raft_netbridge::identity::Identity;
use iroh_raft_netbridge::wire::handshake::{
    FORMAT_FINGERPRINT, Handshake, Introduction, PROTOCOL_VERSION, Refusal,
};
use iroh_raft_netbridge::wire::{FrameHeader, FrameKind, FrameLimits, HEADER_BYTES, Lane};

use crate::harness::{
    ALL_RIGHTS, CLUSTER, DEADLINE, Epochs, Member, TestNode, connect, frame_of, message, runtime,
};

const REFUSED: u64 = 2;
const BAD_FRAME: u64 = 5;
const FRAME_VERSION: u64 = 6;
const HANDSHAKE_DEADLINE: u64 = 8;

/// The other side of a connection, played by the test down to its bytes.
struct Raw {
    connection: Connection,
    // Dropping it would close the connection.
    _endpoint: Endpoint,
}

impl Raw {
    async fn dial(key_file: &Identity, secret: [u8; 32], to: &Member, alpn: &[u8]) -> Result<Raw, String> {
        let endpoint = Endpoint::builder(presets::Minimal)
            .secret_key(iroh::SecretKey::from_bytes(&secret))
            .relay_mode(RelayMode::Disabled)
            .clear_ip_transports()
            .bind_addr("127.0.0.1:0")
            .unwrap()
            .bind()
            .await
            .unwrap();
        assert_eq!(endpoint.id(), key_file.endpoint_id());
        let addr = EndpointAddr::new(to.identity.endpoint_id()).with_ip_addr(to.addr);
        match endpoint.connect(addr, alpn).await {
            Ok(connection) => Ok(Raw { connection, _endpoint: endpoint }),
            Err(error) => Err(format!("{error:?}")),
        }
    }

    /// Sends a hello, and returns the answer or why the connection was closed.
    async fn hello(&self, hello: Introduction) -> Result<Introduction, (u64, Vec<u8>)> {
        let (mut send, mut recv) = match self.connection.open_bi().await {
            Ok(streams) => streams,
            Err(error) => return Err(close_of(&error)),
        };
        let bytes = Handshake::Hello(hello).encode().chunks.concat();
        let _ = send.write_all(&bytes).await;
        let answer = read_handshake(&mut recv).await;
        // The streams stay open, as a node's would.
        std::mem::forget((send, recv));
        match answer {
            Some(Handshake::Welcome(welcome)) => Ok(welcome),
            Some(other) => panic!("{other:?}"),
            None => Err(self.closed().await),
        }
    }

    async fn closed(&self) -> (u64, Vec<u8>) {
        let closed = tokio::time::timeout(DEADLINE, self.connection.closed());
        close_of(&closed.await.expect("the connection is closed"))
    }

    async fn lane(&self) -> SendStream {
        self.connection.open_uni().await.unwrap()
    }
}

async fn read_handshake(recv: &mut RecvStream) -> Option<Handshake> {
    let mut header = [0; HEADER_BYTES];
    recv.read_exact(&mut header).await.ok()?;
    let header = FrameHeader::parse(&header, &FrameLimits::PEER).unwrap();
    let mut body = vec![0; header.body_bytes()];
    recv.read_exact(&mut body).await.ok()?;
    Some(Handshake::decode(&header, &body).unwrap())
}

fn close_of(error: &ConnectionError) -> (u64, Vec<u8>) {
    match error {
        ConnectionError::ApplicationClosed(close) => (close.error_code.into_inner(), close.reason.to_vec()),
        other => panic!("closed by something else: {other:?}"),
    }
}

fn refusal_of((code, reason): (u64, Vec<u8>)) -> Refusal {
    assert_eq!(code, REFUSED, "{}", String::from_utf8_lossy(&reason));
    let (header, body) = reason.split_first_chunk::<HEADER_BYTES>().unwrap();
    let header = FrameHeader::parse(header, &FrameLimits::PEER).unwrap();
    match Handshake::decode(&header, body).unwrap() {
        Handshake::Refused { reason, .. } => reason,
        other => panic!("{other:?}"),
    }
}

/// A key whose secret the test knows.
fn known_key(secret: [u8; 32]) -> Identity {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("key");
    Identity::load_or_create(&path).unwrap();
    let digits: String = secret.iter().map(|byte| format!("{byte:02x}")).collect();
    // The file exists with the right mode; only its content changes.
    std::fs::write(&path, format!("iroh-raft-key 1 {digits}\n")).unwrap();
    Identity::load_or_create(&path).unwrap()
}

const SECRET: [u8; 32] = [42; 32];

/// Node 1 as it runs, and node 2 as the test plays it.
fn node_and_imposter() -> (Member, TestNode, Identity) {
    let (one, mut two) = (Member::new(1), Member::new(2));
    two.identity = known_key(SECRET);
    let mut config = one.config(&[&two]);
    config.clients = vec![ClientGrant { endpoint: two.identity.endpoint_id(), rights: ALL_RIGHTS }];
    (one, TestNode::start(config), two.identity)
}

fn introduction(node: u64) -> Introduction {
    Introduction {
        protocol: PROTOCOL_VERSION,
        cluster: CLUSTER,
        node: NodeId(node),
        boot_epoch: BootEpoch(1),
        boot_id: [1; 16],
        fingerprint: FORMAT_FINGERPRINT,
        placement: Some(Placement::default()),
    }
}

/// Runs the hello through the right key and returns how it ends.
fn hello(alpn: &[u8], hello: Introduction) -> Result<Introduction, Refusal> {
    let (one, node, key) = node_and_imposter();
    let result = runtime().block_on(async {
        let raw = Raw::dial(&key, SECRET, &one, alpn).await.unwrap();
        raw.hello(hello).await
    });
    node.shutdown();
    result.map_err(refusal_of)
}

#[test]
fn a_fitting_hello_is_welcomed() {
    assert_eq!(hello(ALPN_PEER, introduction(2)), Ok(introduction(1)));
    let client = Introduction { placement: None, ..introduction(0) };
    assert_eq!(hello(ALPN_CLIENT, client), Ok(introduction(1)));
}

#[test]
fn whoever_does_not_fit_hears_why() {
    let other_cluster = ClusterId(*b"another cluster!");
    for (alpn, offered, expected) in [
        (
            ALPN_PEER,
            Introduction { cluster: other_cluster, ..introduction(2) },
            Refusal::WrongCluster { cluster: CLUSTER },
        ),
        (
            ALPN_CLIENT,
            Introduction { cluster: other_cluster, ..introduction(0) },
            Refusal::WrongCluster { cluster: CLUSTER },
        ),
        (ALPN_PEER, introduction(3), Refusal::WrongNode { node: NodeId(3) }),
        (ALPN_PEER, introduction(1), Refusal::WrongNode { node: NodeId(1) }),
        (ALPN_CLIENT, introduction(2), Refusal::WrongNode { node: NodeId(2) }),
        (
            ALPN_PEER,
            Introduction { protocol: 9, ..introduction(2) },
            Refusal::Version { offered: 9, supported: PROTOCOL_VERSION },
        ),
        (
            ALPN_PEER,
            Introduction { fingerprint: 9, ..introduction(2) },
            Refusal::Fingerprint { offered: 9, supported: FORMAT_FINGERPRINT },
        ),
        (
            ALPN_PEER,
            Introduction { placement: None, ..introduction(2) },
            Refusal::WrongNode { node: NodeId(2) },
        ),
    ] {
        assert_eq!(hello(alpn, offered), Err(expected));
    }
}

#[test]
fn an_unknown_key_is_refused_for_every_protocol() {
    let (one, node, _) = node_and_imposter();
    let stranger = known_key([7; 32]);
    runtime().block_on(async {
        for alpn in [ALPN_PEER, ALPN_CLIENT] {
            match Raw::dial(&stranger, [7; 32], &one, alpn).await {
                Ok(raw) => assert_eq!(refusal_of(raw.closed().await), Refusal::NotAllowed),
                Err(error) => assert!(error.contains("ApplicationClose"), "{error}"),
            }
        }
    });
    node.until_stats("two refusals", |stats| stats.connections_refused == 2);
    assert_eq!(node.bridge.stats().clients_connected, 0);
    node.shutdown();
}

#[test]
fn a_peers_key_is_not_a_clients_key_and_the_other_way_round() {
    let (one, two, client) = (Member::new(1), Member::new(2), Member::new(3));
    let mut config = one.config(&[&two]);
    config.clients = vec![ClientGrant { endpoint: client.identity.endpoint_id(), rights: ALL_RIGHTS }];
    let node = TestNode::start(config);
    let runtime = runtime();
    let refused = connect(&runtime, &two.identity, &[&one], ClientLimits::default()).unwrap_err();
    assert!(matches!(refused, ClientError::Refused { node: NodeId(1), .. }), "{refused}");
    assert!(refused.to_string().contains("allow-list"), "{refused}");
    // The client's key as a node's.
    let mut config = client.config(&[&one]);
    config.limits.refused_pause = DEADLINE;
    let imposter = TestNode::start(config);
    node.until_stats("both refused", |stats| stats.connections_refused >= 2);
    assert_eq!(node.bridge.stats().peers_connected, 0);
    imposter.shutdown();
    node.shutdown();
}

#[test]
fn an_unknown_protocol_is_refused() {
    let (one, node, key) = node_and_imposter();
    runtime().block_on(async {
        let error = Raw::dial(&key, SECRET, &one, b"iroh-raft/99").await.err().expect("refused");
        assert!(error.contains("known protocol"), "{error}");
    });
    node.shutdown();
}

#[test]
fn who_says_nothing_is_cut_off() {
    let (one, mut two) = (Member::new(1), Member::new(2));
    two.identity = known_key(SECRET);
    let mut config = one.config(&[&two]);
    config.limits.handshake_deadline = Duration::from_millis(100);
    // Nobody answers there; this node does not dial while the test plays the other one.
    let node = TestNode::start(config);
    let (code, _) = runtime().block_on(async {
        let raw = Raw::dial(&two.identity, SECRET, &one, ALPN_PEER).await.unwrap();
        raw.closed().await
    });
    assert_eq!(code, HANDSHAKE_DEADLINE);
    node.shutdown();
}

/// Connects as node 2, sends these bytes on a lane, and returns the code of the close.
fn send_on_lane(bytes: &[u8]) -> (u64, String) {
    let (one, node, key) = node_and_imposter();
    let (code, reason) = runtime().block_on(async {
        let raw = Raw::dial(&key, SECRET, &one, ALPN_PEER).await.unwrap();
        raw.hello(introduction(2)).await.unwrap();
        let mut lane = raw.lane().await;
        lane.write_all(bytes).await.unwrap();
        let closed = raw.closed().await;
        drop(lane);
        closed
    });
    node.until_stats("the frame refused", |stats| stats.frames_refused == 1);
    node.shutdown();
    (code, String::from_utf8(reason).unwrap())
}

#[test]
fn a_frame_of_another_version_closes_the_connection_with_a_code_of_its_own() {
    let mut bytes = frame_of([message(MessageKind::Heartbeat, 2, 1, 1)]).chunks.concat();
    bytes[4] = 9;
    let sum = crc32c::crc32c(&bytes[..HEADER_BYTES - 4]);
    bytes[HEADER_BYTES - 4..HEADER_BYTES].copy_from_slice(&sum.to_le_bytes());
    let (code, reason) = send_on_lane(&bytes);
    assert_eq!(code, FRAME_VERSION, "{reason}");
    assert!(reason.contains("version 9"), "{reason}");
}

#[test]
fn a_frame_over_the_limit_is_refused_by_its_header_alone() {
    let header = FrameHeader {
        kind: FrameKind::Peer(Lane::Append),
        source_shard: ShardId(0),
        destination_shard: ShardId(0),
        archive_bytes: 100,
        payload_bytes: u32::MAX,
    };
    let (code, reason) = send_on_lane(&header.encode());
    assert_eq!(code, BAD_FRAME, "{reason}");
    assert!(reason.contains("limit"), "{reason}");
}

/// Whoever has only a key makes nobody take memory for what it announces.
#[test]
fn before_the_handshake_any_other_frame_is_refused_by_its_header_alone() {
    for kind in [FrameKind::Peer(Lane::Append), FrameKind::Request, FrameKind::Reply] {
        for alpn in [ALPN_PEER, ALPN_CLIENT] {
            let (archive_bytes, payload_bytes) = (1 << 20, 1 << 20);
            let (source_shard, destination_shard) = (ShardId(0), ShardId(0));
            let header =
                FrameHeader { kind, source_shard, destination_shard, archive_bytes, payload_bytes }.encode();
            let (one, node, key) = node_and_imposter();
            let (code, reason) = runtime().block_on(async {
                let raw = Raw::dial(&key, SECRET, &one, alpn).await.unwrap();
                let (mut send, recv) = raw.connection.open_bi().await.unwrap();
                send.write_all(&header).await.unwrap();
                let closed = raw.closed().await;
                drop((send, recv));
                closed
            });
            let reason = String::from_utf8(reason).unwrap();
            assert_eq!(code, BAD_FRAME, "{kind:?}: {reason}");
            assert!(reason.contains("limit"), "{kind:?}: {reason}");
            node.shutdown();
        }
    }
}

#[test]
fn bytes_that_are_no_frame_or_no_lanes_frame_close_the_connection() {
    assert_eq!(send_on_lane(&[0; HEADER_BYTES]).0, BAD_FRAME);
    let handshake = Handshake::Hello(introduction(2)).encode().chunks.concat();
    assert_eq!(send_on_lane(&handshake).0, BAD_FRAME);
    let mut two_lanes = frame_of([message(MessageKind::Heartbeat, 2, 1, 1)]).chunks.concat();
    two_lanes.extend(frame_of([message(MessageKind::RequestVote, 2, 1, 1)]).chunks.concat());
    assert_eq!(send_on_lane(&two_lanes).0, BAD_FRAME);
}

#[test]
fn a_rolled_back_node_stops_whoever_dials() {
    for (rolled_back, other) in [(1, 2), (2, 1)] {
        let (member, peer) = (Member::new(rolled_back), Member::new(other));
        let epochs = Epochs::default();
        epochs.0.lock().unwrap().insert(member.node, (BootEpoch(5), [5; 16]));
        let remembering = TestNode::start_with(peer.config(&[&member]), epochs, 64);
        let mut config = member.config(&[&peer]);
        config.boot_epoch = BootEpoch(3);
        let node = TestNode::start(config);
        let fatal = node.fatal.recv_timeout(DEADLINE).expect("a fatal error");
        let expected = (NodeId(other), BootEpoch(5), BootEpoch(3));
        match &fatal {
            BridgeError::RolledBack { peer, seen, offered } => assert_eq!((*peer, *seen, *offered), expected),
            other => panic!("{other}"),
        }
        assert!(fatal.to_string().contains("older copy"), "{fatal}");
        assert_eq!(remembering.bridge.stats().peers_connected, 0);
        assert!(remembering.fatal.try_recv().is_err());
        node.shutdown();
        remembering.shutdown();
    }
}

#[test]
fn a_port_in_use_is_an_error_that_says_so() {
    let (one, two) = (Member::new(1), Member::new(2));
    let node = TestNode::start(one.config(&[]));
    let mut config = two.config(&[]);
    config.bind = one.addr;
    let error = TestNode::try_start(config, Epochs::default(), 64).err().expect("in use");
    assert!(matches!(error, BridgeError::AddressInUse { addr } if addr == one.addr), "{error}");
    node.shutdown();
}

#[test]
fn settings_that_cannot_work_are_refused() {
    let (one, two) = (Member::new(1), Member::new(2));
    let refuse = |config| TestNode::try_start(config, Epochs::default(), 64).err().expect("refused");
    let mut config = one.config(&[]);
    config.cpus = vec![0, 100_000];
    assert!(matches!(refuse(config), BridgeError::Cpu { cpu: 100_000 }));
    let mut config = one.config(&[]);
    config.threads = 0;
    assert!(matches!(refuse(config), BridgeError::Config { what } if what.starts_with("threads")));
    let config = one.config(&[&two, &two]);
    assert!(matches!(refuse(config), BridgeError::Allow(_)));
    let mut config = one.config(&[]);
    config.limits = BridgeLimits { ring_budget: 0, ..BridgeLimits::default() };
    assert!(matches!(refuse(config), BridgeError::Config { .. }));
}

//! Frames between nodes, and connections that are lost and made again.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, mpsc};
use std::task::{Wake, Waker};
use std::time::Instant;

use iroh_raft_core::{BootEpoch, MessageKind, NodeId, Placement, ShardId};
use iroh_raft_netbridge::bridge::{
    AllowError, BridgeConfig, BridgeError, BridgeLimits, BridgeStats, ClientGrant, EpochRefusal, PeerAddress,
    PeerEpochs,
};
use iroh_raft_netbridge::client::ClientLimits;
use iroh_raft_netbridge::port::ToShard;
use iroh_raft_netbridge::wire::{Lane, PeerFrameBuilder};

use crate::harness::{
    ALL_RIGHTS, DEADLINE, Epochs, Member, TestNode, append, connect, frame_of, fresh_addr, message, pair,
    runtime,
};

/// One kind of message for each lane.
const KINDS: [MessageKind; 4] =
    [MessageKind::RequestVote, MessageKind::Heartbeat, MessageKind::AppendResponse, MessageKind::Snapshot];

#[test]
fn frames_arrive_on_every_lane_in_both_directions() {
    let (_, _, one, two) = pair();
    for (sender, receiver, from, to) in [(&one, &two, 1, 2), (&two, &one, 2, 1)] {
        let mut sent = BTreeMap::new();
        for kind in KINDS {
            let message = message(kind, from, to, kind as u64);
            sent.insert(kind as u8, message.clone());
            sender.shard().send_message(message);
        }
        for _ in KINDS {
            let (sender, messages) = receiver.shard().next_messages();
            assert_eq!(sender, NodeId(from));
            for message in messages {
                assert_eq!(sent.remove(&(message.kind as u8)), Some(message));
            }
        }
        assert!(sent.is_empty(), "still missing {sent:?}");
    }
    let stats = two.bridge.stats();
    assert_eq!((stats.frames_in, stats.frames_out), ([1; 4], [1; 4]));
    one.shutdown();
    two.shutdown();
}

#[test]
fn a_lane_keeps_the_order_of_its_frames_and_large_ones_whole() {
    let (_, _, one, two) = pair();
    for group in 1..=40 {
        one.shard().send_message(append(1, 2, group, if group % 4 == 0 { 700_000 } else { 100 }));
    }
    for group in 1..=40 {
        let (_, messages) = two.shard().next_messages();
        assert_eq!(messages, [append(1, 2, group, if group % 4 == 0 { 700_000 } else { 100 })]);
    }
    one.shutdown();
    two.shutdown();
}

#[test]
fn several_threads_keep_the_order_of_a_lane_and_run_where_they_are_told() {
    let cpu = core_affinity::get_core_ids().expect("the CPUs of this process")[0].id;
    let (member_one, member_two) = (Member::new(1), Member::new(2));
    let configs = [member_one.config(&[&member_two]), member_two.config(&[&member_one.elsewhere()])];
    let [one, two] =
        configs.map(|config| TestNode::start(BridgeConfig { threads: 3, cpus: vec![cpu], ..config }));
    one.until_connected();
    for group in 1..=200 {
        one.shard().send_message(append(1, 2, group, if group % 4 == 0 { 70_000 } else { 100 }));
    }
    let mut groups = Vec::new();
    while groups.len() < 200 {
        let (_, messages) = two.shard().next_messages();
        groups.extend(messages.iter().map(|message| message.group.0));
    }
    assert!(groups.is_sorted(), "{groups:?}");
    let threads = std::fs::read_dir("/proc/self/task").expect("the threads of this process");
    let is_there = |status: &String| {
        let says = |line: &str| status.lines().any(|found| found == line);
        says("Name:\tbridge") && says(&format!("Cpus_allowed_list:\t{cpu}"))
    };
    let read = threads.flatten().flat_map(|thread| std::fs::read_to_string(thread.path().join("status")));
    // Each bridge has three, and the one that waits for their end; others may have come and not yet gone again.
    assert!(read.filter(is_there).count() >= 8);
    one.shutdown();
    two.shutdown();
}

#[test]
fn many_shards_get_each_their_own_frames() {
    let (member_one, member_two) = (Member::new(1), Member::new(2));
    let configs = [member_one.config(&[&member_two]), member_two.config(&[&member_one.elsewhere()])];
    let [one, two] = configs
        .map(|config| TestNode::start(BridgeConfig { placement: Placement::even(3).unwrap(), ..config }));
    one.until_connected();
    for shard in 0..3 {
        let mut builder = PeerFrameBuilder::default();
        builder.push(message(MessageKind::Heartbeat, 1, 2, u64::from(shard)));
        let frame = builder.finish(Lane::Heartbeat, ShardId(shard), ShardId(shard));
        one.shards[usize::from(shard)].send(NodeId(2), Lane::Heartbeat, frame);
    }
    for shard in 0..3_u64 {
        let (_, messages) = two.shards[shard as usize].next_messages();
        assert_eq!(messages[0].group.0, shard);
    }
    one.shutdown();
    two.shutdown();
}

#[test]
fn a_message_that_claims_another_sender_is_dropped_and_counted() {
    let (_, _, one, two) = pair();
    one.shard().send(NodeId(2), Lane::Heartbeat, frame_of([message(MessageKind::Heartbeat, 3, 2, 1)]));
    one.shard().send(NodeId(2), Lane::Heartbeat, frame_of([message(MessageKind::Heartbeat, 1, 3, 2)]));
    one.shard().send_message(message(MessageKind::Heartbeat, 1, 2, 3));
    let (_, messages) = two.shard().next_messages();
    assert_eq!(messages[0].group.0, 3, "neither of the two before it arrives");
    assert_eq!(two.bridge.stats().dropped_wrong_sender, 2);
    assert_eq!(two.bridge.stats().peers_connected, 1);
    one.shutdown();
    two.shutdown();
}

#[test]
fn a_frame_for_a_shard_or_node_that_is_not_there_is_dropped_and_counted() {
    let (_, _, one, two) = pair();
    let mut builder = PeerFrameBuilder::default();
    builder.push(message(MessageKind::Heartbeat, 1, 2, 1));
    one.shard().send(NodeId(2), Lane::Heartbeat, builder.finish(Lane::Heartbeat, ShardId(0), ShardId(9)));
    one.shard().send_message(message(MessageKind::Heartbeat, 1, 7, 1));
    two.until_stats("a frame for no shard", |stats| stats.dropped_no_shard == 1);
    one.until_stats("a frame for no node", |stats| stats.dropped_unknown_node == 1);
    one.shutdown();
    two.shutdown();
}

#[test]
fn a_full_ring_drops_and_counts_and_never_stops_the_lane() {
    let (member_one, member_two) = (Member::new(1), Member::new(2));
    let one = TestNode::start(member_one.config(&[&member_two]));
    // One place more: the placement of the other node comes first.
    let two = TestNode::start_with(member_two.config(&[&member_one.elsewhere()]), Epochs::default(), 5);
    one.until_connected();
    for group in 1..=20 {
        one.shard().send_message(append(1, 2, group, 10));
    }
    let stats = two.until_stats("all frames received", |stats| stats.frames_in[2] == 20);
    assert!(stats.dropped_ring_full <= 16);
    two.until_stats("16 frames dropped", |stats| stats.dropped_ring_full == 16);
    for group in 1..=4 {
        assert_eq!(two.shard().next_messages().1[0].group.0, group, "the oldest are kept");
    }
    one.shard().send_message(append(1, 2, 99, 10));
    assert_eq!(two.shard().next_messages().1[0].group.0, 99);
    one.shutdown();
    two.shutdown();
}

#[test]
fn a_full_lane_drops_the_newest_and_tells_the_shards_once() {
    let (member_one, member_two) = (Member::new(1), Member::new(2));
    let mut config = member_one.config(&[&member_two]);
    config.limits = BridgeLimits { lane_frames_max: 2, ring_budget: 64, ..BridgeLimits::default() };
    let one = TestNode::start(config);
    let two = TestNode::start(member_two.config(&[&member_one.elsewhere()]));
    one.until_connected();
    two.until_connected();
    // Pushed quietly and rung once, so that the bridge finds all of them in one turn.
    for group in 1..=10 {
        let frame = frame_of([append(1, 2, group, 10)]);
        let item = iroh_raft_netbridge::port::ToBridge::Peer { to: NodeId(2), lane: Lane::Append, frame };
        one.shard().port.to_bridge.push_quietly(item).unwrap();
    }
    one.shard().port.to_bridge.ring();
    let stats = one.until_stats("all routed", |stats| stats.dropped_lane_full + stats.frames_out[2] >= 10);
    assert!(stats.dropped_lane_full > 0, "{stats:?}");
    assert_eq!(two.shard().next_messages().1[0].group.0, 1, "the oldest is not the one dropped");
    let mut told = 0;
    while let Some(item) = one.shard().port.from_bridge.pop() {
        told += usize::from(matches!(item, ToShard::Unreachable { node: NodeId(2) }));
    }
    assert!((1..stats.dropped_lane_full as usize).contains(&told), "told {told} times: {stats:?}");
    one.shutdown();
    two.shutdown();
}

#[test]
fn without_a_connection_frames_are_dropped_and_the_shards_told_once() {
    let (member_one, member_two) = (Member::new(1), Member::new(2));
    let one = TestNode::start(member_one.config(&[&member_two]));
    for _ in 0..5 {
        one.shard().send_message(append(1, 2, 1, 10));
    }
    one.shard().await_unreachable(NodeId(2));
    one.until_stats("five frames dropped", |stats| stats.dropped_not_connected == 5);
    assert!(one.shard().port.from_bridge.is_empty(), "told once");
    one.shutdown();
}

#[test]
fn an_orderly_stop_is_noticed_at_once_and_the_node_welcomed_back() {
    let (member_one, member_two, one, two) = pair();
    two.shutdown();
    one.shard().await_unreachable(NodeId(2));
    assert_eq!(one.bridge.stats().peers_connected, 0);
    let mut config = member_two.config(&[&member_one]);
    config.boot_epoch = BootEpoch(2);
    let two = TestNode::start(config);
    two.until_connected();
    one.until_connected();
    one.shard().send_message(append(1, 2, 5, 10));
    assert_eq!(two.shard().next_messages().1[0].group.0, 5);
    one.shutdown();
    two.shutdown();
}

/// Blocks until the test lets it go, and says that it does.
struct Hanging {
    begun: mpsc::Sender<NodeId>,
    go_on: mpsc::Receiver<()>,
}

impl PeerEpochs for Hanging {
    fn observe(&mut self, node: NodeId, _: BootEpoch, _: [u8; 16]) -> Result<(), EpochRefusal> {
        let _ = self.begun.send(node);
        // The test has ended, or lets it go.
        let _ = self.go_on.recv();
        Ok(())
    }
}

#[test]
fn a_start_that_is_being_remembered_holds_up_no_other_connection() {
    let (one, two, client) = (Member::new(1), Member::new(2), Member::new(3));
    let mut config = one.config(&[&two.elsewhere()]);
    config.clients = vec![ClientGrant { endpoint: client.identity.endpoint_id(), rights: ALL_RIGHTS }];
    config.limits.handshake_deadline = DEADLINE;
    let ((begun_sender, begun), (go_on, go_on_receiver)) = (mpsc::channel(), mpsc::channel());
    let node = TestNode::start_with(config, Hanging { begun: begun_sender, go_on: go_on_receiver }, 64);
    let mut config = two.config(&[&one]);
    config.limits.handshake_deadline = DEADLINE;
    let peer = TestNode::start(config);
    assert_eq!(begun.recv_timeout(DEADLINE), Ok(NodeId(2)));
    let runtime = runtime();
    let connected = connect(&runtime, &client.identity, &[&one], ClientLimits::default()).unwrap();
    assert_eq!(node.bridge.stats().peers_connected, 0);
    // This one, and those of dials that a busy machine may have made necessary.
    drop(go_on);
    node.until_connected();
    connected.close();
    peer.shutdown();
    node.shutdown();
}

#[test]
fn a_bridge_ends_while_a_start_is_being_remembered() {
    let (one, two) = (Member::new(1), Member::new(2));
    let ((begun_sender, begun), (go_on, go_on_receiver)) = (mpsc::channel(), mpsc::channel());
    let hanging = Hanging { begun: begun_sender, go_on: go_on_receiver };
    let node = TestNode::start_with(one.config(&[&two.elsewhere()]), hanging, 64);
    let peer = TestNode::start(two.config(&[&one]));
    assert_eq!(begun.recv_timeout(DEADLINE), Ok(NodeId(2)));
    node.shutdown();
    drop(go_on);
    peer.shutdown();
}

#[test]
fn a_change_of_the_peers_that_is_being_remembered_holds_up_no_connection() {
    let (one, two, client) = (Member::new(1), Member::new(2), Member::new(3));
    let mut config = one.config(&[&two.elsewhere()]);
    config.clients = vec![ClientGrant { endpoint: client.identity.endpoint_id(), rights: ALL_RIGHTS }];
    let node = TestNode::start(config);
    let peers = node.bridge.peers();
    let ((begun_sender, begun), (go_on, go_on_receiver)) = (mpsc::channel(), mpsc::channel::<()>());
    let four = Member::new(4).address();
    let change = std::thread::spawn(move || {
        peers.add::<AllowError>(four, || {
            begun_sender.send(()).unwrap();
            go_on_receiver.recv().unwrap();
            Ok(())
        })
    });
    begun.recv_timeout(DEADLINE).unwrap();
    let peer = TestNode::start(two.config(&[&one]));
    node.until_connected();
    let runtime = runtime();
    let connected = connect(&runtime, &client.identity, &[&one], ClientLimits::default()).unwrap();
    go_on.send(()).unwrap();
    assert_eq!(change.join().unwrap(), Ok(()));
    let same_key = PeerAddress { node: NodeId(5), ..four };
    let refused = node.bridge.peers().add(same_key, || Ok::<_, AllowError>(()));
    assert_eq!(refused, Err(AllowError::KeyTwice { first: NodeId(4), second: NodeId(5) }));
    connected.close();
    peer.shutdown();
    node.shutdown();
}

#[test]
fn a_newer_start_takes_over_and_the_older_process_is_told_to_stop() {
    let (member_one, member_two, one, old) = pair();
    let mut config = member_two.config(&[&member_one]);
    // The older process hangs and still has its address.
    config.bind = fresh_addr();
    config.boot_epoch = BootEpoch(2);
    config.boot_id = [2; 16];
    let new = TestNode::start(config);
    new.until_connected();
    let fatal = old.fatal.recv_timeout(DEADLINE).expect("the older process is told");
    assert!(
        matches!(
            fatal,
            BridgeError::RolledBack { peer: NodeId(1), seen: BootEpoch(2), offered: BootEpoch(1) }
        ),
        "{fatal}"
    );
    one.until_connected();
    new.shard().send_message(append(2, 1, 5, 10));
    assert_eq!(one.shard().next_messages().1[0].group.0, 5);
    one.shutdown();
    new.shutdown();
    old.shutdown();
}

/// Hangs on the bridge thread when that rings at a shard, until released: to everybody else the node is then as silent as
/// a dead one.
struct HangingWake {
    hanging: mpsc::Sender<()>,
    release: Mutex<mpsc::Receiver<()>>,
}

impl Wake for HangingWake {
    fn wake(self: Arc<Self>) {
        let _ = self.hanging.send(());
        let _ = self.release.lock().unwrap().recv_timeout(DEADLINE);
    }
}

#[test]
fn a_peer_that_falls_silent_is_noticed_and_taken_back() {
    let (_, _, one, two) = pair();
    let ((hanging, hangs), (let_go, release)) = (mpsc::channel(), mpsc::channel());
    // What comes with a connection.
    while !matches!(two.shard().next(), ToShard::Placement { .. }) {}
    let wake = HangingWake { hanging, release: Mutex::new(release) };
    two.shard().arm(&Waker::from(Arc::new(wake)));
    one.shard().send_message(message(MessageKind::Heartbeat, 1, 2, 4));
    hangs.recv_timeout(DEADLINE).expect("the frame arrives");
    one.shard().await_unreachable(NodeId(2));
    assert_eq!(one.bridge.stats().peers_connected, 0);
    drop(let_go);
    assert_eq!(two.shard().next_messages().1[0].group.0, 4);
    one.until_connected();
    // What is written to a connection that is just being replaced is lost: again until one arrives.
    let is_arrived = || two.bridge.stats().frames_in[2] > 0;
    let start = Instant::now();
    while !is_arrived() {
        assert!(start.elapsed() < DEADLINE, "no frame arrives");
        let handled = |stats: &BridgeStats| stats.frames_out[2] + stats.dropped_not_connected;
        let before = handled(&one.bridge.stats());
        one.shard().send_message(append(1, 2, 5, 10));
        one.until_stats("the frame sent or dropped", |stats| handled(stats) > before);
    }
    assert_eq!(two.shard().next_messages().1[0].group.0, 5);
    one.shutdown();
    two.shutdown();
}

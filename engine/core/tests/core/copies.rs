//! A record's bytes stay where the leader packed them: its flush, both followers, its memory and its readers have slices of
//! one buffer; a follower's flush has slices of what it received.

use std::ops::Range;
use std::time::Duration;

use bytes::Bytes;
use iroh_raft_core::batch::RecordBlock;
use iroh_raft_core::{
    AnswerOn, ConfState, FlushSeq, GroupId, GroupState, Input, LogEntry, NodeId, Offset, Outputs, Propose,
    Reply, Role, Send, Shard, ShardConfig, Timestamp, Token,
};

const GROUP: GroupId = GroupId(1);
const TICK: Duration = Duration::from_millis(50);

struct Cluster {
    shards: Vec<Shard>,
    now: Timestamp,
}

impl Cluster {
    /// Three replicas, one of which leads.
    fn led() -> (Cluster, usize) {
        let voters: Vec<NodeId> = (1..=3).map(NodeId).collect();
        let shard = |node: &NodeId| {
            let conf_state = ConfState { voters: voters.clone(), ..ConfState::default() };
            let state = GroupState::fresh(GROUP, conf_state, false);
            let config = ShardConfig::new(*node, node.0);
            Shard::new(config, FlushSeq(0), vec![state], Timestamp(0)).expect("default settings work")
        };
        let mut cluster = Cluster { shards: voters.iter().map(shard).collect(), now: Timestamp(0) };
        for _ in 0..200 {
            cluster.now = cluster.now.after(TICK);
            for at in 0..3 {
                let out = cluster.turn(at);
                cluster.deliver(out.sends);
            }
            let is_leader = |shard: &Shard| {
                shard.status(GROUP).is_some_and(|status| status.role == Role::Leader && status.commit.0 > 0)
            };
            if let Some(leader) = cluster.shards.iter().position(is_leader) {
                return (cluster, leader);
            }
        }
        panic!("nobody leads");
    }

    fn step(&mut self, at: usize, input: Input) -> Outputs {
        let mut out = Outputs::default();
        self.shards[at].step(self.now, input, &mut out);
        out
    }

    /// Ends a turn; its flush is durable at once.
    fn turn(&mut self, at: usize) -> Outputs {
        let mut out = Outputs::default();
        self.shards[at].step(self.now, Input::EndTurn, &mut out);
        if let Some(append) = &out.append {
            let seq = append.seq;
            self.shards[at].step(self.now, Input::Persisted { seq }, &mut out);
        }
        out
    }

    fn deliver(&mut self, sends: Vec<Send>) {
        for Send { message, .. } in sends {
            let to = message.to.0 as usize - 1;
            self.step(to, Input::Message(message));
        }
    }
}

fn place(data: &Bytes) -> Range<*const u8> {
    data.as_ptr_range()
}

fn flushed(out: &Outputs) -> Vec<&LogEntry> {
    let groups = out.append.iter().flat_map(|append| &append.groups);
    groups.flat_map(|part| &part.entries).collect()
}

#[test]
fn a_batch_is_one_buffer_from_the_leaders_turn_to_its_readers() {
    let (mut cluster, leader) = Cluster::led();
    let token = Token { origin: 0, request: 1 };
    let block = RecordBlock::from_records(&[[7_u8; 64]; 1024]);
    let deadline = cluster.now.after(Duration::from_secs(1));
    let (answer, run) = (AnswerOn::Commit, None);
    cluster.step(leader, Input::Propose(Propose { token, group: GROUP, block, run, answer, deadline }));
    let out = cluster.turn(leader);
    let entries = flushed(&out);
    assert_eq!(entries.len(), 1, "one batch");
    let batch = entries[0].data.clone();
    assert!(batch.len() > 1024 * 64);
    let sent: Vec<&LogEntry> = out.sends.iter().flat_map(|send| &send.message.entries).collect();
    assert_eq!(sent.len(), 2, "both followers get it");
    assert!(sent.iter().all(|entry| place(&entry.data) == place(&batch)), "they get the leader's bytes");

    // As a bridge receives it: in the middle of a larger buffer.
    let mut sends = out.sends;
    let frames: Vec<Bytes> = sends.iter_mut().map(received).collect();
    let followers: Vec<usize> = sends.iter().map(|send| send.message.to.0 as usize - 1).collect();
    cluster.deliver(sends);
    for (follower, frame) in followers.into_iter().zip(frames) {
        let out = cluster.turn(follower);
        let entries = flushed(&out);
        let received = place(&frame);
        assert_eq!(entries.len(), 1);
        let entry = place(&entries[0].data);
        assert!(received.start <= entry.start && entry.end <= received.end, "a slice of what arrived");
        cluster.deliver(out.sends);
    }
    cluster.turn(leader);

    let (from, bytes_max, records_max, is_waiting) = (Offset(0), usize::MAX, u32::MAX, false);
    let read = Input::ReadRecords { token, group: GROUP, from, bytes_max, records_max, is_waiting, deadline };
    let mut out = cluster.step(leader, read);
    out.replies.extend(cluster.turn(leader).replies);
    let read = out.replies.into_iter().find_map(|reply| match reply {
        Reply::Records { entries, .. } => Some(entries),
        _ => None,
    });
    let read = read.expect("the records are committed and in memory");
    assert!(read.iter().any(|entry| place(&entry.data) == place(&batch)), "readers get the leader's bytes");
}

/// Puts a message's entries into the middle of a buffer, which it returns.
fn received(send: &mut Send) -> Bytes {
    let mut frame = vec![0; 100];
    send.message.entries.iter().for_each(|entry| frame.extend_from_slice(&entry.data));
    let frame = Bytes::from(frame);
    let mut at = 100;
    for entry in &mut send.message.entries {
        let from = at;
        at += entry.data.len();
        entry.data = frame.slice(from..at);
    }
    frame
}

//! Three replicas of one group in memory: what the core costs without network, disk and other threads.
//!
//! Every client has one record without bytes in flight, as in openraft's minimal benchmark. A disk that takes no time
//! makes every flush durable before its turn ends; everything else is as in the engine: what has arrived goes into one
//! turn, messages wait for the flush that they name, and an answer comes when a quorum has the entry.

use std::time::Instant;

use bytes::Bytes;
use iroh_raft_core::batch::RecordBlock;
use iroh_raft_core::{
    AnswerOn, ConfState, ConfigError, FlushSeq, GroupId, GroupState, Input, NodeId, Outputs, PeerMessage,
    Propose, Reply, Role, Shard, ShardConfig, Timestamp, Token,
};

const GROUP: GroupId = GroupId(1);
const NODES: u64 = 3;

struct Node {
    id: NodeId,
    shard: Shard,
    inbox: Vec<PeerMessage>,
    persisted: FlushSeq,
    /// Whether a flush became durable since the last turn.
    has_persisted: bool,
}

/// What a run did.
#[derive(Clone, Copy, Default, Debug)]
pub struct Work {
    /// Records answered.
    pub records: u64,
    /// Entries that hold them.
    pub entries: u64,
    /// Turns of all three replicas.
    pub turns: u64,
}

/// Three replicas that take turns on the calling thread.
pub struct Memory {
    nodes: Vec<Node>,
    outputs: Outputs,
    began: Instant,
    block: RecordBlock,
    /// Clients whose record was answered.
    ready: Vec<u64>,
    work: Work,
}

impl Memory {
    /// A cluster with a leader, and `clients` that have nothing in flight yet.
    ///
    /// # Errors
    /// [`ConfigError`]: never, with the settings here.
    pub fn new(clients: u64) -> Result<Memory, ConfigError> {
        let voters: Vec<NodeId> = (1..=NODES).map(NodeId).collect();
        let members = ConfState { voters: voters.clone(), ..ConfState::default() };
        let node = |id| {
            let config = ShardConfig { quiet_after: None, spread: None, ..ShardConfig::new(id, id.0) };
            let state = GroupState::fresh(GROUP, members.clone(), false);
            let shard = Shard::new(config, FlushSeq(0), vec![state], Timestamp(0))?;
            Ok(Node { id, shard, inbox: Vec::new(), persisted: FlushSeq(0), has_persisted: false })
        };
        let mut memory = Memory {
            nodes: voters.into_iter().map(node).collect::<Result<_, ConfigError>>()?,
            outputs: Outputs::default(),
            began: Instant::now(),
            block: RecordBlock::from_records(&[Bytes::new()]),
            ready: (0..clients).collect(),
            work: Work::default(),
        };
        let leader = loop {
            (0..memory.nodes.len()).for_each(|at| memory.turn(at));
            let leads =
                |node: &Node| node.shard.status(GROUP).is_some_and(|status| status.role == Role::Leader);
            if let Some(leader) = memory.nodes.iter().position(leads) {
                break leader;
            }
        };
        memory.nodes.swap(0, leader);
        Ok(memory)
    }

    /// Has at least so many records answered.
    pub fn run(&mut self, records: u64) -> Work {
        let before = self.work;
        while self.work.records - before.records < records {
            self.propose();
            (0..self.nodes.len()).for_each(|at| self.turn(at));
        }
        Work {
            records: self.work.records - before.records,
            entries: self.work.entries - before.entries,
            turns: self.work.turns - before.turns,
        }
    }

    fn now(&self) -> Timestamp {
        Timestamp(u64::try_from(self.began.elapsed().as_nanos()).unwrap_or(u64::MAX))
    }

    fn propose(&mut self) {
        let now = self.now();
        let leader = &mut self.nodes[0].shard;
        for client in self.ready.drain(..) {
            let propose = Propose {
                token: Token { origin: 1, request: client },
                group: GROUP,
                block: self.block.clone(),
                run: None,
                answer: AnswerOn::Commit,
                deadline: Timestamp(u64::MAX),
            };
            leader.step(now, Input::Propose(propose), &mut self.outputs);
        }
    }

    fn turn(&mut self, at: usize) {
        let now = self.now();
        let Memory { nodes, outputs, ready, work, .. } = self;
        let node = &mut nodes[at];
        if std::mem::take(&mut node.has_persisted) {
            node.shard.step(now, Input::Persisted { seq: node.persisted }, outputs);
        }
        for message in node.inbox.drain(..) {
            node.shard.step(now, Input::Message(message), outputs);
        }
        node.shard.step(now, Input::EndTurn, outputs);
        work.turns += 1;
        if let Some(append) = outputs.append.take() {
            (node.persisted, node.has_persisted) = (append.seq, true);
            if at == 0 {
                work.entries += append.groups.iter().map(|part| part.entries.len() as u64).sum::<u64>();
            }
        }
        for reply in outputs.replies.drain(..) {
            match reply {
                Reply::Appended { token, count, .. } => {
                    work.records += u64::from(count);
                    ready.push(token.request);
                }
                other => unreachable!("no client asks for anything else: {other:?}"),
            }
        }
        // All that they may wait for is durable: no flush is under way at the end of a turn.
        for send in outputs.sends.drain(..) {
            let receiver = nodes.iter_mut().find(|node| node.id == send.message.to);
            receiver.expect("a node of the cluster").inbox.push(send.message);
        }
        outputs.clear();
    }
}

//! The events of a cluster: turns, deliveries, flushes, fetches, applies, crashes.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use iroh_raft_core::batch::RecordBlock;
use iroh_raft_core::validate::Refusal;
use iroh_raft_core::{
    AnswerOn, Append, Apply, ConfState, Consistency, Event, Fetch, FlushSeq, GroupId, GroupState,
    GroupStatus, Index, Input, Invite, LogDamage, LogEntry, MessageKind, NodeId, Offset, Open, Outputs,
    PeerMessage, Propose, Reply, RequestError, Role, Send, Shard, ShardConfig, Timestamp, Token, WallTime,
};

use super::checker::Checker;
use super::disk::Disk;
use super::rng::Rng;

pub(crate) const MILLIS: u64 = 1_000_000;

/// A group of the cluster and who is in it.
#[derive(Clone, Debug)]
pub(crate) struct Group {
    pub(crate) id: GroupId,
    pub(crate) voters: Vec<u64>,
    pub(crate) learners: Vec<u64>,
    /// Nodes that hold a replica, and are not members at first.
    pub(crate) spares: Vec<u64>,
    pub(crate) has_state_machine: bool,
}

impl Group {
    pub(crate) fn new(id: u64, voters: &[u64]) -> Group {
        Group {
            id: GroupId(id),
            voters: voters.to_vec(),
            learners: Vec::new(),
            spares: Vec::new(),
            has_state_machine: false,
        }
    }

    pub(crate) fn is_on(&self, node: NodeId) -> bool {
        [&self.voters, &self.learners, &self.spares].into_iter().any(|nodes| nodes.contains(&node.0))
    }

    pub(crate) fn fresh(&self) -> GroupState {
        let nodes = |ids: &[u64]| ids.iter().copied().map(NodeId).collect();
        let (voters, learners) = (nodes(&self.voters), nodes(&self.learners));
        GroupState::fresh(
            self.id,
            ConfState { voters, learners, ..ConfState::default() },
            self.has_state_machine,
        )
    }
}

/// How the cluster behaves. Delays in nanoseconds, chances per thousand.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    pub(crate) seed: u64,
    pub(crate) nodes: u64,
    pub(crate) groups: Vec<Group>,
    pub(crate) loss: u64,
    pub(crate) duplicates: u64,
    pub(crate) delay: std::ops::Range<u64>,
    pub(crate) flush_delay: std::ops::Range<u64>,
    /// How long clients wait, in milliseconds.
    pub(crate) patience: std::ops::Range<u64>,
    /// Entries of each group that recovery hands over.
    pub(crate) tail_max: usize,
    /// Whether peers may lie. What replicas then agree on is nobody's fault; each must still be sound.
    pub(crate) has_liars: bool,
    pub(crate) config: ShardConfig,
}

impl Options {
    pub(crate) fn new(seed: u64) -> Options {
        Options {
            seed,
            nodes: 3,
            groups: vec![Group::new(1, &[1, 2, 3])],
            loss: 0,
            duplicates: 0,
            delay: 50_000..MILLIS,
            flush_delay: 100_000..2 * MILLIS,
            patience: 3_000..3_001,
            tail_max: usize::MAX,
            has_liars: false,
            config: ShardConfig { quiet_after: None, ..ShardConfig::new(NodeId(1), seed) },
        }
    }
}

#[derive(Debug)]
enum Step {
    Turn { node: NodeId, boot: u64 },
    Deliver(PeerMessage),
    Flushed { node: NodeId, boot: u64 },
    Fetched { node: NodeId, boot: u64, fetch: Fetch },
    Applied { node: NodeId, boot: u64, group: GroupId, index: Index },
}

pub(crate) struct Node {
    boot: u64,
    shard: Option<Shard>,
    pub(crate) disk: Disk,
    /// Handed out and not yet durable, in order; the first `flushing` are being written.
    writing: VecDeque<Append>,
    flushing: usize,
    gated: Vec<Send>,
    /// While set, no flush of this node begins.
    is_stalled: bool,
    turn_at: u64,
    /// What the state machines of this boot have applied.
    pub(crate) applied: BTreeMap<GroupId, Vec<LogEntry>>,
}

pub(crate) struct Cluster {
    pub(crate) options: Options,
    pub(crate) rng: Rng,
    pub(crate) now: u64,
    pub(crate) nodes: BTreeMap<NodeId, Node>,
    pub(crate) checker: Checker,
    /// Replicas whose disk was said to be damaged, in the present boot of their node.
    damaged: BTreeSet<(NodeId, GroupId)>,
    /// Pairs that cannot reach each other, in the direction given.
    pub(crate) cut: BTreeSet<(NodeId, NodeId)>,
    /// Answers other than acknowledgements, for tests that look at them.
    pub(crate) replies: BTreeMap<Token, Reply>,
    pub(crate) events: Vec<(NodeId, Event)>,
    /// What happened how often, so that a test can tell that it happened at all.
    pub(crate) seen: BTreeMap<&'static str, u64>,
    queue: BTreeMap<(u64, u64), Step>,
    order: u64,
    requests: u64,
    wall: u64,
}

impl Cluster {
    pub(crate) fn new(options: Options) -> Cluster {
        let mut cluster = Cluster {
            rng: Rng::new(options.seed),
            now: 0,
            nodes: BTreeMap::new(),
            checker: Checker::new(options.has_liars),
            damaged: BTreeSet::new(),
            cut: BTreeSet::new(),
            replies: BTreeMap::new(),
            events: Vec::new(),
            seen: BTreeMap::new(),
            queue: BTreeMap::new(),
            order: 0,
            requests: 0,
            wall: 1_700_000_000_000,
            options,
        };
        for id in 1..=cluster.options.nodes {
            let node = Node {
                boot: 0,
                shard: None,
                disk: Disk::default(),
                writing: VecDeque::new(),
                flushing: 0,
                gated: Vec::new(),
                is_stalled: false,
                turn_at: u64::MAX,
                applied: BTreeMap::new(),
            };
            cluster.nodes.insert(NodeId(id), node);
            cluster.start(NodeId(id));
        }
        cluster
    }

    // Nodes

    pub(crate) fn node(&mut self, node: NodeId) -> &mut Node {
        self.nodes.get_mut(&node).expect("a node of the cluster")
    }

    pub(crate) fn is_up(&self, node: NodeId) -> bool {
        self.nodes.get(&node).is_some_and(|node| node.shard.is_some())
    }

    /// Starts a node on what its disk holds.
    pub(crate) fn start(&mut self, id: NodeId) {
        let options = self.options.clone();
        let node = self.node(id);
        assert!(node.shard.is_none());
        node.boot += 1;
        let config =
            ShardConfig { node: id, seed: options.seed ^ (id.0 << 32) ^ node.boot, ..options.config };
        let groups = options.groups.iter().filter(|group| group.is_on(id));
        let states = groups.map(|group| node.disk.recover(&group.fresh(), options.tail_max)).collect();
        let last_seq = node.disk.last_seq;
        let shard = Shard::new(config, last_seq, states, Timestamp(self.now)).expect("a sound configuration");
        let node = self.node(id);
        node.shard = Some(shard);
        node.turn_at = u64::MAX;
        self.schedule_turn(id, self.now);
    }

    /// Kills a node. Flushes under way are lost, or done without anybody hearing of it.
    pub(crate) fn crash(&mut self, id: NodeId) {
        let lucky = if self.rng.chance(500) { self.rng.within(0..4) as usize } else { 0 };
        let node = self.node(id);
        node.shard = None;
        let (writing, flushing) = (std::mem::take(&mut node.writing), std::mem::take(&mut node.flushing));
        writing.iter().take(flushing.min(lucky)).for_each(|append| node.disk.write(append));
        node.gated.clear();
        node.applied.clear();
        let origin = origin(id, node.boot);
        self.checker.forget(origin);
        self.checker.forget_node(id, &self.nodes[&id].disk);
        self.damaged.retain(|(node, _)| *node != id);
    }

    /// A write of this node fails, now.
    pub(crate) fn fail_disk(&mut self, id: NodeId) {
        let node = self.node(id);
        node.writing.clear();
        node.flushing = 0;
        node.gated.clear();
        node.boot += 1 << 16;
        self.feed(id, Input::PersistFailed);
    }

    /// Says to a shard that entries of one of its groups are damaged.
    pub(crate) fn damage(&mut self, id: NodeId, group: GroupId) {
        self.damaged.insert((id, group));
        let damage = LogDamage { first: Index(1), last: Index(1) };
        self.feed(id, Input::Damaged { group, damage });
    }

    /// Stops a node's disk, or lets it go on.
    pub(crate) fn stall(&mut self, id: NodeId, is_stalled: bool) {
        self.node(id).is_stalled = is_stalled;
        self.start_flush(id);
    }

    /// Lets time jump for one node and ends its turn, before anything else of that time arrives.
    pub(crate) fn pause(&mut self, id: NodeId, time: Duration) {
        let now = self.now;
        self.now += time.as_nanos() as u64;
        self.turn(id);
        self.now = now;
    }

    pub(crate) fn isolate(&mut self, node: NodeId) {
        let others: Vec<NodeId> = self.nodes.keys().copied().filter(|other| *other != node).collect();
        self.cut.extend(others.iter().flat_map(|other| [(node, *other), (*other, node)]));
    }

    pub(crate) fn status(&self, node: NodeId, group: GroupId) -> Option<GroupStatus> {
        self.nodes.get(&node)?.shard.as_ref()?.status(group)
    }

    /// The leader of the newest term that is up.
    pub(crate) fn leader(&self, group: GroupId) -> Option<NodeId> {
        let statuses = self.nodes.keys().filter_map(|node| Some((*node, self.status(*node, group)?)));
        let leaders = statuses.filter(|(_, status)| status.role == Role::Leader);
        leaders.max_by_key(|(_, status)| status.term).map(|(node, _)| node)
    }

    // Clients

    fn token(&mut self, node: NodeId) -> Token {
        self.requests += 1;
        Token { origin: origin(node, self.nodes[&node].boot), request: self.requests }
    }

    fn deadline(&mut self) -> Timestamp {
        Timestamp(self.now + self.rng.within(self.options.patience.clone()) * MILLIS)
    }

    pub(crate) fn propose(&mut self, node: NodeId, group: GroupId, records: u64, answer: AnswerOn) -> Token {
        let token = self.token(node);
        let padding = self.rng.within(0..64) as usize;
        let record = |at| format!("{}.{at}{}", token.request, "-".repeat(padding)).into_bytes();
        let records: Vec<Vec<u8>> = (0..records).map(record).collect();
        let block = RecordBlock::from_records(&records);
        self.checker.open(token, group, records);
        let deadline = self.deadline();
        self.feed(node, Input::Propose(Propose { token, group, block, run: None, answer, deadline }));
        token
    }

    /// A linearizable read, for the leader alone.
    pub(crate) fn read(&mut self, node: NodeId, group: GroupId) -> Token {
        self.read_as(node, group, Consistency::Linearizable, false)
    }

    /// A read of any kind.
    pub(crate) fn read_any(&mut self, node: NodeId, group: GroupId) -> Token {
        let kinds = [Consistency::Local, Consistency::Lease, Consistency::Linearizable];
        let consistency = kinds[self.rng.within(0..3) as usize];
        let may_forward = consistency != Consistency::Local && self.rng.chance(500);
        self.read_as(node, group, consistency, may_forward)
    }

    pub(crate) fn read_as(
        &mut self,
        node: NodeId,
        group: GroupId,
        consistency: Consistency,
        may_forward: bool,
    ) -> Token {
        let token = self.token(node);
        self.checker.open(token, group, Vec::new());
        let deadline = self.deadline();
        self.feed(node, Input::Read { token, group, consistency, may_forward, deadline });
        token
    }

    pub(crate) fn transfer(&mut self, node: NodeId, group: GroupId, to: Option<NodeId>) -> Token {
        let token = self.token(node);
        self.checker.open(token, group, Vec::new());
        self.feed(node, Input::TransferLeader { token, group, to });
        token
    }

    pub(crate) fn step_down(&mut self, node: NodeId, group: GroupId) -> Token {
        let token = self.token(node);
        self.checker.open(token, group, Vec::new());
        self.feed(node, Input::StepDown { token, group });
        token
    }

    pub(crate) fn read_records(
        &mut self,
        node: NodeId,
        group: GroupId,
        from: u64,
        bytes_max: usize,
    ) -> Token {
        let token = self.token(node);
        self.checker.open(token, group, Vec::new());
        let deadline = self.deadline();
        self.feed(
            node,
            Input::ReadRecords {
                token,
                group,
                from: Offset(from),
                bytes_max,
                records_max: u32::MAX,
                is_waiting: false,
                deadline,
            },
        );
        token
    }

    // Time

    pub(crate) fn run_for(&mut self, time: Duration) {
        let end = self.now + time.as_nanos() as u64;
        while self.queue.first_key_value().is_some_and(|((at, _), _)| *at <= end) {
            self.run_one();
        }
        self.now = end;
    }

    /// Runs until something holds.
    pub(crate) fn run_until(&mut self, what: &str, mut holds: impl FnMut(&mut Cluster) -> bool) {
        let end = self.now + 60_000 * MILLIS;
        while !holds(self) {
            assert!(self.now < end && !self.queue.is_empty(), "seed {}: never: {what}", self.options.seed);
            self.run_one();
        }
    }

    /// Runs until a group has a leader that could commit in its own term.
    pub(crate) fn run_until_led(&mut self, group: GroupId) -> NodeId {
        let mut found = None;
        self.run_until("a leader", |cluster| {
            found = cluster.leader(group).filter(|leader| {
                let status = cluster.status(*leader, group).expect("it leads");
                let others = cluster.nodes.keys().filter_map(|node| cluster.status(*node, group));
                let highest = others.map(|status| status.term).max();
                status.commit == status.last && Some(status.term) == highest
            });
            found.is_some()
        });
        found.expect("waited for it")
    }

    fn run_one(&mut self) {
        assert!(!self.queue.is_empty(), "something is always to come");
        self.run_nth(0);
    }

    /// Lets happen what is to come as the `nth` from now, before all that should come earlier. Nothing is
    /// when all nodes are down.
    pub(crate) fn run_nth(&mut self, nth: usize) {
        let Some(key) = self.queue.keys().nth(nth % self.queue.len().max(1)).copied() else { return };
        let step = self.queue.remove(&key).expect("found just now");
        self.now = self.now.max(key.0);
        match step {
            Step::Turn { node, boot } => {
                if self.is_current(node, boot) && self.nodes[&node].turn_at <= self.now {
                    self.turn(node);
                }
            }
            Step::Deliver(message) => self.deliver(message),
            Step::Flushed { node, boot } if self.is_current(node, boot) => self.flushed(node),
            Step::Fetched { node, boot, fetch } if self.is_current(node, boot) => {
                let result = self.nodes[&node].disk.read(&fetch);
                self.feed(node, Input::Fetched { id: fetch.id, group: fetch.group, result });
            }
            Step::Applied { node, boot, group, index } if self.is_current(node, boot) => {
                self.feed(node, Input::Applied { group, index });
            }
            Step::Flushed { .. } | Step::Fetched { .. } | Step::Applied { .. } => {}
        }
    }

    /// Takes the `nth` message out of the network.
    pub(crate) fn take_message(&mut self, nth: usize) -> Option<PeerMessage> {
        let is_message = |(_, step): &(&(u64, u64), &Step)| matches!(step, Step::Deliver(_));
        let count = self.queue.iter().filter(is_message).count();
        let key = *self.queue.iter().filter(is_message).nth(nth % count.max(1))?.0;
        match self.queue.remove(&key) {
            Some(Step::Deliver(message)) => Some(message),
            _ => None,
        }
    }

    /// Brings a message to its receiver, now.
    pub(crate) fn deliver(&mut self, message: PeerMessage) {
        if self.is_up(message.to) {
            self.feed(message.to, Input::Message(message));
        }
    }

    fn is_current(&self, node: NodeId, boot: u64) -> bool {
        self.is_up(node) && self.nodes[&node].boot == boot
    }

    fn count(&mut self, what: &'static str) {
        *self.seen.entry(what).or_default() += 1;
    }

    pub(crate) fn seen(&self, what: &str) -> u64 {
        self.seen.get(what).copied().unwrap_or(0)
    }

    fn schedule(&mut self, at: u64, step: Step) {
        self.order += 1;
        self.queue.insert((at, self.order), step);
    }

    fn schedule_turn(&mut self, id: NodeId, at: u64) {
        let node = self.node(id);
        if at < node.turn_at {
            node.turn_at = at;
            let boot = node.boot;
            self.schedule(at, Step::Turn { node: id, boot });
        }
    }

    /// Gives a shard an input; its turn ends a little later, so that several may share it.
    pub(crate) fn feed(&mut self, id: NodeId, input: Input) {
        self.step(id, input);
        let soon = self.now + self.rng.within(0..200_000);
        self.schedule_turn(id, soon);
    }

    fn turn(&mut self, id: NodeId) {
        self.wall = (self.wall + self.rng.within(0..5)).saturating_sub(2);
        self.step(id, Input::Wall(WallTime(self.wall)));
        self.step(id, Input::EndTurn);
        let node = self.node(id);
        node.turn_at = u64::MAX;
        if let Some(at) = node.shard.as_ref().and_then(Shard::next_wakeup) {
            self.schedule_turn(id, at.0.max(self.now));
        }
    }

    fn step(&mut self, id: NodeId, input: Input) {
        let now = self.now;
        let mut out = Outputs::default();
        let shard = self.node(id).shard.as_mut().expect("an input for a node that is up");
        let group = match &input {
            Input::Message(message) => message.group,
            _ => GroupId(0),
        };
        let before = shard.status(group);
        shard.step(Timestamp(now), input, &mut out);
        let is_refused = matches!(out.events.last(), Some(Event::MessageRefused { .. }));
        assert!(!is_refused || shard.status(group) == before, "a refused message changes nothing: {out:?}");
        let statuses: Vec<GroupStatus> = shard.statuses().collect();
        for status in &statuses {
            let mut matched = shard.matched(status.group).into_iter();
            let beyond = matched.find(|(_, index)| *index > status.last);
            assert_eq!(beyond, None, "node {id} counts what is not in its log: {status:?}");
        }
        for event in &out.events {
            assert!(self.is_expected(id, event), "seed {}: node {id}: {event:?}", self.options.seed);
        }
        for status in &statuses {
            self.checker.check_status(id, status, self.damaged.contains(&(id, status.group)));
        }
        self.checker.record(now, id, &out);
        self.carry_out(id, out);
    }

    /// Honest peers are refused only for what was true when they said it: the receiver has forgotten its
    /// leader or campaigns anew.
    fn is_expected(&self, node: NodeId, event: &Event) -> bool {
        match event {
            Event::LeaderChanged { .. }
            | Event::MembersChanged { .. }
            | Event::ReplicaLeft { .. }
            | Event::Fenced
            | Event::DiskHung { .. }
            | Event::SnapshotTaken { .. }
            | Event::SnapshotInstalled { .. }
            | Event::SnapshotDamaged { .. }
            | Event::SnapshotGivenUp { .. }
            | Event::RepairNeeded { .. }
            | Event::Repaired { .. }
            | Event::DiskRecovered { .. } => true,
            Event::MessageRefused { reason, .. } => {
                let is_honest =
                    matches!(reason, Refusal::CampaignNotFromLeader | Refusal::UnaskedVote { .. });
                is_honest || self.options.has_liars
            }
            Event::Quarantined { group, .. } => self.damaged.contains(&(node, *group)),
        }
    }

    // What shards say

    fn carry_out(&mut self, id: NodeId, out: Outputs) {
        for event in &out.events {
            if let Event::ReplicaLeft { group, .. } = event {
                self.node(id).applied.remove(group);
            }
        }
        self.events.extend(out.events.into_iter().map(|event| (id, event)));
        if let Some(append) = out.append {
            self.count_cuts(id, &append);
            self.node(id).writing.push_back(append);
            self.start_flush(id);
        }
        for send in out.sends {
            let is_durable = send.after.is_none_or(|seq| seq <= self.nodes[&id].disk.last_seq);
            if is_durable { self.transmit(id, send.message) } else { self.node(id).gated.push(send) }
        }
        let boot = self.nodes[&id].boot;
        // Nobody reads the state of a group that is out: it stays out.
        for fetch in out.fetches {
            self.count("fetch");
            let at = self.now + self.rng.within(0..5 * MILLIS);
            self.schedule(at, Step::Fetched { node: id, boot, fetch });
        }
        out.applies.into_iter().for_each(|apply| self.apply(id, apply));
        out.replies.into_iter().for_each(|reply| self.reply(reply));
        for Invite { group, members, since } in out.invites {
            let Some(known) = self.options.groups.iter().find(|known| known.id == group) else { continue };
            let token = Token { origin: 0, request: u64::MAX };
            let has_state_machine = known.has_state_machine;
            self.feed(
                id,
                Input::Open(Open {
                    token,
                    group,
                    members,
                    since,
                    has_state_machine,
                    retention: Default::default(),
                }),
            );
        }
    }

    fn count_cuts(&mut self, id: NodeId, append: &Append) {
        let node = &self.nodes[&id];
        let last =
            |group: &GroupId| node.disk.groups.get(group).map_or(0, |stored| stored.entries.len() as u64);
        let cuts = append.groups.iter().filter(|change| {
            change.entries.first().is_some_and(|first| first.index.0 <= last(&change.group))
        });
        let cuts = cuts.count() as u64;
        *self.seen.entry("cut").or_default() += cuts;
    }

    fn apply(&mut self, id: NodeId, apply: Apply) {
        let last = apply.entries.last().expect("an apply has entries").index;
        self.checker.check_committed(id, apply.group, &apply.entries, last);
        let boot = self.nodes[&id].boot;
        let applied = self.node(id).applied.entry(apply.group).or_default();
        assert_eq!(apply.entries[0].index.0, applied.len() as u64 + 1, "applies follow each other");
        applied.extend(apply.entries);
        for waiter in &apply.waiters {
            assert!(waiter.index <= last);
            self.checker.acknowledge(waiter.token, waiter.first, waiter.count);
        }
        let at = self.now + self.rng.within(0..3 * MILLIS);
        self.schedule(at, Step::Applied { node: id, boot, group: apply.group, index: last });
    }

    fn reply(&mut self, reply: Reply) {
        match &reply {
            Reply::Appended { token, first, count, .. } => {
                self.count("appended");
                self.checker.acknowledge(*token, *first, *count);
                self.replies.insert(*token, reply);
            }
            Reply::ReadReady { token, .. }
            | Reply::Repeated { token, .. }
            | Reply::Records { token, .. }
            | Reply::Found { token, .. }
            | Reply::CommandDone { token, .. }
            | Reply::LeadershipGiven { token, .. }
            | Reply::NotTransferred { token, .. }
            | Reply::MembersChanged { token, .. }
            | Reply::Opened { token, .. }
            | Reply::Removed { token, .. }
            | Reply::Failed { token, .. } => {
                self.count(name_of(&reply));
                self.checker.answer(*token);
                self.replies.insert(*token, reply);
            }
        }
    }

    /// Every entry of a group that a node has on its disk.
    pub(crate) fn stored(&self, node: NodeId, group: GroupId) -> &[LogEntry] {
        self.nodes[&node].disk.groups.get(&group).map_or(&[], |stored| &stored.entries)
    }

    pub(crate) fn error_of(&self, token: Token) -> Option<&RequestError> {
        match self.replies.get(&token)? {
            Reply::Failed { error, .. } => Some(error),
            _ => None,
        }
    }

    fn start_flush(&mut self, id: NodeId) {
        let delay = self.options.flush_delay.clone();
        let at = self.now + self.rng.within(delay);
        let node = self.node(id);
        if node.flushing == 0 && !node.writing.is_empty() && !node.is_stalled {
            node.flushing = node.writing.len();
            let boot = node.boot;
            self.schedule(at, Step::Flushed { node: id, boot });
        }
    }

    fn flushed(&mut self, id: NodeId) {
        let node = self.node(id);
        for _ in 0..std::mem::take(&mut node.flushing) {
            let append = node.writing.pop_front().expect("being written");
            node.disk.write(&append);
        }
        let seq: FlushSeq = node.disk.last_seq;
        let committed: Vec<_> =
            node.disk.groups.iter().map(|(group, stored)| (*group, stored.clone())).collect();
        for (group, stored) in committed {
            self.checker.check_committed(id, group, &stored.entries, stored.hard_state.commit);
        }
        self.feed(id, Input::Persisted { seq });
        let gated = std::mem::take(&mut self.node(id).gated);
        let (free, gated) = gated.into_iter().partition(|send| send.after.is_none_or(|after| after <= seq));
        self.node(id).gated = gated;
        let free: Vec<Send> = free;
        free.into_iter().for_each(|send| self.transmit(id, send.message));
        self.start_flush(id);
    }

    fn transmit(&mut self, id: NodeId, message: PeerMessage) {
        assert_eq!(message.from, id);
        self.checker.check_durable(&self.nodes[&id].disk, &message);
        self.count(if message.kind == MessageKind::MayLeave { "question" } else { "send" });
        let copies = if self.rng.chance(self.options.duplicates) { 2 } else { 1 };
        for _ in 0..copies {
            let is_lost = self.rng.chance(self.options.loss) || self.cut.contains(&(id, message.to));
            let at = self.now + self.rng.within(self.options.delay.clone());
            if !is_lost {
                self.schedule(at, Step::Deliver(message.clone()));
            }
        }
    }

    // Endings

    /// Ends all faults and runs until every group is led and its replicas agree; then checks all.
    pub(crate) fn settle(&mut self) {
        self.cut.clear();
        (self.options.loss, self.options.duplicates) = (0, 0);
        self.nodes.keys().copied().collect::<Vec<_>>().into_iter().for_each(|node| self.stall(node, false));
        let down: Vec<NodeId> = self.nodes.keys().copied().filter(|node| !self.is_up(*node)).collect();
        down.into_iter().for_each(|node| self.start(node));
        for group in self.options.groups.clone() {
            self.run_until("agreement", |cluster| cluster.is_settled(&group));
        }
        self.run_for(Duration::from_secs(5));
        self.checker.check_all_answered();
        for group in self.options.groups.clone() {
            self.check_replicas(&group);
        }
    }

    fn is_settled(&self, group: &Group) -> bool {
        let replicas = group.voters.iter().chain(&group.learners);
        let statuses: Vec<GroupStatus> =
            replicas.filter_map(|node| self.status(NodeId(*node), group.id)).collect();
        let first = &statuses[0];
        let is_same = |status: &GroupStatus| {
            (status.term, status.leader, status.commit, status.applied, status.last, status.end)
                == (first.term, first.leader, first.last, first.last, first.last, first.end)
        };
        first.leader.is_some() && statuses.iter().all(is_same)
    }

    fn check_replicas(&mut self, group: &Group) {
        for id in group.voters.iter().chain(&group.learners).copied().map(NodeId) {
            let status = self.status(id, group.id).expect("a replica");
            let stored = self.nodes[&id].disk.groups[&group.id].clone();
            assert_eq!(stored.entries.len() as u64, status.last.0, "everything is durable");
            assert_eq!(stored.next_offset(), status.end);
            self.checker.check_committed(id, group.id, &stored.entries, status.commit);
            self.checker.check_log(group.id, &stored.entries);
            assert!(self.checker.committed_len(group.id) as u64 <= status.commit.0);
            if group.has_state_machine {
                assert_eq!(self.nodes[&id].applied[&group.id], stored.entries);
            }
        }
    }
}

fn name_of(reply: &Reply) -> &'static str {
    match reply {
        Reply::Appended { .. } => "appended",
        Reply::Repeated { .. } => "repeated",
        Reply::ReadReady { .. } => "read ready",
        Reply::Records { .. } => "records",
        Reply::Found { .. } => "found",
        Reply::CommandDone { .. } => "command done",
        Reply::LeadershipGiven { .. } => "leadership given",
        Reply::NotTransferred { .. } => "not transferred",
        Reply::MembersChanged { .. } => "members changed",
        Reply::Opened { .. } => "opened",
        Reply::Removed { .. } => "removed",
        Reply::Failed { error, .. } => match error {
            RequestError::NotLeader { .. } => "not leader",
            RequestError::Busy { .. } => "busy",
            RequestError::OutcomeUnknown { .. } => "unknown",
            RequestError::Timeout => "timeout",
            RequestError::PastEnd { .. } => "past end",
            RequestError::BeforeStart { .. } => "before start",
            RequestError::Fenced => "fenced",
            _ => "failed otherwise",
        },
    }
}

/// Requests of one boot of a node share an origin: they die with it.
fn origin(node: NodeId, boot: u64) -> u64 {
    (node.0 << 32) | (boot & 0xffff)
}

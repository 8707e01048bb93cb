//! Nodes, wires and disks that do nothing by themselves.
//!
//! Each node has a clock of its own. What a node sends stays on the wire, what it wants durable
//! stays unwritten, what it fetches or applies stays open, until a command says otherwise.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use iroh_raft_core::batch::RecordBlock;
use iroh_raft_core::{
    AnswerOn, Append, ClientRun, ConfState, Consistency, Fetch, FetchError, GroupId, GroupState, GroupStatus,
    Index, Input, Invite, LogDamage, LogPosition, MessageKind, NodeId, Offset, Open, Outputs, Owner,
    PeerMessage, Propose, Recover, Reopen, Retention, Role, RunOutcome, Send, Sequence, SessionId, Shard,
    ShardConfig, SnapshotTask, Term, Timestamp, Token, WallTime,
};

use super::message::{parse_change, parse_command, parse_number, print_message, print_record};
use super::snapshots::Store;
use super::trace::{self, Detail, Trace, who};
use crate::harness::Group;
use crate::harness::disk::Disk;

/// Steps of one `settle`: a cluster that needs more does not come to rest.
const STEPS_MAX: u32 = 10_000;
/// Longer than any election timeout.
const CAMPAIGN_TICKS_MAX: u32 = 100;

/// One direction between two nodes.
pub(super) type Link = (NodeId, NodeId);
/// Links by their ends; none stands for every node.
pub(super) type Links = (Option<NodeId>, Option<NodeId>);

#[derive(Default)]
struct Node {
    boot: u64,
    clock: u64,
    shard: Option<Shard>,
    disk: Disk,
    /// Handed out and not yet durable, in order.
    unwritten: VecDeque<Append>,
    /// Messages that wait for a flush.
    gated: Vec<Send>,
    fetches: VecDeque<Fetch>,
    /// Groups that are out and whose state is wanted again.
    reopens: VecDeque<Reopen>,
    applies: VecDeque<(GroupId, Index)>,
    /// Asked for about snapshots, in order.
    tasks: VecDeque<SnapshotTask>,
    snapshots: Store,
}

pub(super) struct World {
    pub(super) seed: u64,
    pub(super) config: ShardConfig,
    /// Entries of each group that recovery hands over.
    pub(super) tail_max: usize,
    /// Chunks of the snapshots that are taken.
    pub(super) body_chunks: usize,
    pub(super) groups: Vec<Group>,
    pub(super) trace: Trace,
    nodes: BTreeMap<NodeId, Node>,
    /// Sent and not yet delivered, in the order sent.
    wire: Vec<PeerMessage>,
    /// Links that lose everything sent over them.
    pub(super) cut: BTreeSet<Link>,
    /// Links that `settle` does not deliver on.
    pub(super) held_links: BTreeSet<Link>,
    /// Disks that `settle` does not write to.
    pub(super) held_disks: BTreeSet<NodeId>,
    /// Wall clock of all nodes, in milliseconds.
    pub(super) wall: u64,
    /// What all groups keep.
    pub(super) retention: Retention,
    requests: u64,
    tails: BTreeMap<String, Token>,
    /// Requests for votes that each replica has made.
    campaigns: BTreeMap<(NodeId, GroupId), u64>,
}

/// Which of the messages on a link.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Which {
    All,
    First,
    Last,
}

impl World {
    pub(super) fn new() -> World {
        World {
            seed: 1,
            // Scripts go quiet when they say so.
            config: ShardConfig { quiet_after: None, ..ShardConfig::new(NodeId(1), 0) },
            tail_max: usize::MAX,
            body_chunks: 1,
            groups: Vec::new(),
            trace: Trace::new(),
            nodes: BTreeMap::new(),
            wire: Vec::new(),
            cut: BTreeSet::new(),
            held_links: BTreeSet::new(),
            held_disks: BTreeSet::new(),
            wall: 0,
            retention: Retention::default(),
            requests: 0,
            tails: BTreeMap::new(),
            campaigns: BTreeMap::new(),
        }
    }

    pub(super) fn add_node(&mut self, id: NodeId) {
        self.nodes.insert(id, Node::default());
    }

    pub(super) fn node_ids(&self) -> Vec<NodeId> {
        self.nodes.keys().copied().collect()
    }

    fn up(&self) -> Vec<NodeId> {
        self.nodes.iter().filter(|(_, node)| node.shard.is_some()).map(|(id, _)| *id).collect()
    }

    fn node(&mut self, id: NodeId) -> Result<&mut Node, String> {
        self.nodes.get_mut(&id).ok_or_else(|| format!("there is no node {id}"))
    }

    // Lives

    /// Starts a node on what its disk holds.
    pub(super) fn start(&mut self, id: NodeId) -> Result<(), String> {
        let (seed, config, tail_max) = (self.seed, self.config.clone(), self.tail_max);
        let (groups, retention) = (self.groups.clone(), self.retention);
        let fresh = |group: &Group| GroupState { retention, ..group.fresh() };
        let node = self.node(id)?;
        if node.shard.is_some() {
            return Err(format!("node {id} is up"));
        }
        node.boot += 1;
        let config = ShardConfig { node: id, seed: seed ^ (id.0 << 32) ^ node.boot, ..config };
        let states = groups.iter().filter(|group| group.is_on(id));
        let snapshot = |group: GroupId| node.snapshots.published.get(&group).cloned();
        let recover = |group: &Group| node.disk.recover(&fresh(group), tail_max);
        let mut states: Vec<GroupState> =
            states.map(|group| GroupState { snapshot: snapshot(group.id), ..recover(group) }).collect();
        // Those that began while the node ran.
        for id in node.disk.groups.keys() {
            if states.iter().all(|state| state.group != *id) {
                let has_machine = groups.iter().any(|group| group.id == *id && group.has_state_machine);
                let fresh = GroupState::fresh(*id, ConfState::default(), has_machine);
                let recovered = node.disk.recover(&fresh, tail_max);
                states.push(GroupState { snapshot: snapshot(*id), ..recovered });
            }
        }
        let shard = Shard::new(config, node.disk.last_seq, states, Timestamp(node.clock));
        node.shard = Some(shard.map_err(|error| error.to_string())?);
        self.turn(id, Vec::new())
    }

    /// Ends a node. What is not durable is lost; what it has sent is still on the wire.
    pub(super) fn crash(&mut self, id: NodeId) -> Result<(), String> {
        let node = self.node(id)?;
        node.shard.take().ok_or_else(|| format!("node {id} is down"))?;
        node.unwritten.clear();
        node.gated.clear();
        node.fetches.clear();
        node.reopens.clear();
        node.applies.clear();
        node.tasks.clear();
        Ok(())
    }

    // Turns

    /// Gives a node inputs and ends its turn.
    fn turn(&mut self, id: NodeId, inputs: Vec<Input>) -> Result<(), String> {
        let wall = Input::Wall(WallTime(self.wall));
        let node = self.node(id)?;
        let Some(shard) = &mut node.shard else { return Err(format!("node {id} is down")) };
        let now = Timestamp(node.clock);
        let mut out = Outputs::default();
        for input in inputs.into_iter().chain([wall, Input::EndTurn]) {
            shard.step(now, input, &mut out);
        }
        let invites = std::mem::take(&mut out.invites);
        self.carry_out(id, out);
        if !invites.is_empty() {
            let open = |invite: Invite| {
                let (token, _) = self.request(id, "invited".to_owned(), None)?;
                Ok(Input::Open(self.open(token, invite.group, invite.members, invite.since)))
            };
            let opens = invites.into_iter().map(open).collect::<Result<Vec<_>, String>>()?;
            self.turn(id, opens)?;
        }
        let is_asking = |shard: &Shard| shard.next_wakeup().is_some_and(|at| at <= now);
        match self.nodes[&id].shard.as_ref().is_some_and(is_asking) {
            true => self.turn(id, Vec::new()),
            false => Ok(()),
        }
    }

    pub(super) fn feed(&mut self, id: NodeId, input: Input) -> Result<(), String> {
        self.turn(id, vec![input])
    }

    fn carry_out(&mut self, id: NodeId, out: Outputs) {
        let trace = &mut self.trace;
        let node = self.nodes.get_mut(&id).expect("a node that has spoken");
        if let Some(append) = out.append {
            trace.append(id, &append);
            node.unwritten.push_back(append);
        }
        for send in out.sends {
            trace.send(id, &send);
            if matches!(send.message.kind, MessageKind::RequestVote | MessageKind::RequestPreVote) {
                *self.campaigns.entry((id, send.message.group)).or_default() += 1;
            }
            if send.after.is_some_and(|seq| seq > node.disk.last_seq) {
                node.gated.push(send);
            } else if !self.cut.contains(&(id, send.message.to)) {
                self.wire.push(send.message);
            }
        }
        for apply in out.applies {
            trace.apply(id, &apply);
            let last = apply.entries.last().expect("an apply has entries").index;
            node.applies.push_back((apply.group, last));
        }
        for fetch in out.fetches {
            trace.fetch(id, &fetch);
            node.fetches.push_back(fetch);
        }
        for reopen in out.reopens {
            trace.reopen(id, &reopen);
            node.reopens.push_back(reopen);
        }
        for task in out.snapshots {
            trace.snapshot(id, &task);
            node.tasks.push_back(task);
        }
        out.compares.iter().for_each(|compare| trace.compare(id, compare));
        out.replies.iter().for_each(|reply| trace.reply(id, reply));
        out.events.iter().for_each(|event| trace.event(id, event));
    }

    // Time

    /// Lets ticks pass on a node's clock, each with a turn.
    pub(super) fn tick(&mut self, id: NodeId, ticks: u32) -> Result<(), String> {
        let tick = self.config.tick;
        (0..ticks).try_for_each(|_| self.jump(id, tick))
    }

    /// Lets time pass on a node's clock within one turn.
    pub(super) fn jump(&mut self, id: NodeId, time: Duration) -> Result<(), String> {
        self.node(id)?.clock += u64::try_from(time.as_nanos()).expect("a time of a script");
        self.turn(id, Vec::new())
    }

    /// Lets ticks pass on a node's clock until it campaigns in a group. What it says until then is
    /// not printed.
    pub(super) fn campaign(&mut self, id: NodeId, group: GroupId) -> Result<(), String> {
        let campaigns = |world: &World| world.campaigns.get(&(id, group)).copied();
        let (before, campaigns_before) = (self.trace.take_lines(), campaigns(self));
        for _ in 0..CAMPAIGN_TICKS_MAX {
            self.trace.take_lines();
            self.tick(id, 1)?;
            let leads = self.status(id, group).is_some_and(|status| status.role == Role::Leader);
            if campaigns(self) > campaigns_before || leads {
                self.trace.put_before(before);
                return Ok(());
            }
        }
        Err(format!("node {id} does not campaign"))
    }

    /// Lets ticks pass on all clocks, and all come to rest after each.
    pub(super) fn run(&mut self, ticks: u32) -> Result<(), String> {
        for _ in 0..ticks {
            self.up().into_iter().try_for_each(|id| self.tick(id, 1))?;
            self.settle()?;
        }
        Ok(())
    }

    /// Delivers, writes, fetches and applies until nothing is left that is not held.
    pub(super) fn settle(&mut self) -> Result<(), String> {
        for _ in 0..STEPS_MAX {
            if !self.settle_once()? {
                return Ok(());
            }
        }
        Err("does not come to rest".to_owned())
    }

    fn settle_once(&mut self) -> Result<bool, String> {
        let is_held = |message: &PeerMessage| self.held_links.contains(&(message.from, message.to));
        if let Some(at) = self.wire.iter().position(|message| !is_held(message)) {
            let message = self.wire.remove(at);
            self.receive(message)?;
            return Ok(true);
        }
        for id in self.up() {
            let node = &self.nodes[&id];
            if !node.unwritten.is_empty() && !self.held_disks.contains(&id) {
                self.persist(id, usize::MAX)?;
            } else if !node.fetches.is_empty() {
                self.fetch(id, None)?;
            } else if !node.reopens.is_empty() {
                self.reopen(id)?;
            } else if !node.tasks.is_empty() {
                self.snapshot(id)?;
            } else if !node.applies.is_empty() {
                self.apply(id)?;
            } else {
                continue;
            }
            return Ok(true);
        }
        Ok(false)
    }

    // Wires

    fn positions(&self, (from, to): Links, which: Which) -> Vec<usize> {
        let is_here = |message: &PeerMessage| {
            from.is_none_or(|from| from == message.from) && to.is_none_or(|to| to == message.to)
        };
        let all: Vec<usize> = (0..self.wire.len()).filter(|at| is_here(&self.wire[*at])).collect();
        match which {
            Which::All => all,
            Which::First => all.first().copied().into_iter().collect(),
            Which::Last => all.last().copied().into_iter().collect(),
        }
    }

    fn take(&mut self, link: Links, which: Which) -> Vec<PeerMessage> {
        let positions = self.positions(link, which);
        let mut taken: Vec<PeerMessage> =
            positions.into_iter().rev().map(|at| self.wire.remove(at)).collect();
        taken.reverse();
        taken
    }

    /// Delivers what is on the wire now; answers to it stay there.
    pub(super) fn deliver(&mut self, link: Links, which: Which) -> Result<(), String> {
        self.take(link, which).into_iter().try_for_each(|message| self.receive(message))
    }

    pub(super) fn drop_messages(&mut self, link: Links, which: Which) {
        for message in self.take(link, which) {
            self.trace.detail(format!("lost {}", line(&message)));
        }
    }

    /// Puts copies behind all else on the wire.
    pub(super) fn duplicate(&mut self, link: Links, which: Which) {
        let copies: Vec<PeerMessage> =
            self.positions(link, which).into_iter().map(|at| self.wire[at].clone()).collect();
        self.wire.extend(copies);
    }

    pub(super) fn receive(&mut self, message: PeerMessage) -> Result<(), String> {
        let to = message.to;
        if self.node(to)?.shard.is_none() {
            self.trace.detail(format!("lost {}", line(&message)));
            return Ok(());
        }
        self.trace.detail(line(&message));
        self.feed(to, Input::Message(message))
    }

    pub(super) fn print_wire(&mut self) {
        let lines: Vec<String> = self.wire.iter().map(line).collect();
        lines.into_iter().for_each(|line| self.trace.answer(line));
    }

    // Disks

    /// Makes the oldest flushes durable, and lets go what waited for them.
    pub(super) fn persist(&mut self, id: NodeId, count: usize) -> Result<(), String> {
        let node = self.node(id)?;
        let count = count.min(node.unwritten.len());
        node.unwritten.drain(..count).for_each(|append| node.disk.write(&append));
        let seq = node.disk.last_seq;
        let gated = std::mem::take(&mut node.gated);
        let (free, gated): (Vec<Send>, Vec<Send>) =
            gated.into_iter().partition(|send| send.after.is_none_or(|after| after <= seq));
        node.gated = gated;
        let free = free.into_iter().map(|send| send.message);
        self.wire.extend(free.filter(|message| !self.cut.contains(&(id, message.to))));
        self.feed(id, Input::Persisted { seq })
    }

    /// A write fails: what is not durable never will be.
    pub(super) fn fail_disk(&mut self, id: NodeId) -> Result<(), String> {
        let node = self.node(id)?;
        node.unwritten.clear();
        node.gated.clear();
        self.feed(id, Input::PersistFailed)
    }

    /// Answers the oldest fetch from the disk, or with an error.
    pub(super) fn fetch(&mut self, id: NodeId, error: Option<FetchError>) -> Result<(), String> {
        let node = self.node(id)?;
        let fetch = node.fetches.pop_front().ok_or_else(|| format!("node {id} fetches nothing"))?;
        let result = error.map_or_else(|| node.disk.read(&fetch), Err);
        self.feed(id, Input::Fetched { id: fetch.id, group: fetch.group, result })
    }

    /// Hands a group that is out what the disk has of it.
    pub(super) fn reopen(&mut self, id: NodeId) -> Result<(), String> {
        let groups = self.groups.clone();
        let node = self.node(id)?;
        let asked = node.reopens.pop_front().ok_or_else(|| format!("node {id} opens nothing again"))?;
        let Reopen { group, damage } = asked;
        if let Some(damage) = damage {
            node.disk.spoil(group, damage);
        }
        let known = groups.iter().find(|known| known.id == group).ok_or("no such group")?;
        let snapshot = node.snapshots.published.get(&group).cloned();
        let state = GroupState { snapshot, ..node.disk.recover(&known.fresh(), 0) };
        // Its state machine begins anew, too.
        node.applies.retain(|(of, _)| *of != group);
        self.feed(id, Input::Reopened { group, result: Ok(Box::new(state)) })
    }

    /// Entries on the disk of a node that is down are damaged.
    pub(super) fn spoil(&mut self, id: NodeId, group: GroupId, damage: LogDamage) -> Result<(), String> {
        let node = self.node(id)?;
        if node.shard.is_some() {
            return Err(format!("node {id} is up"));
        }
        node.disk.spoil(group, damage);
        Ok(())
    }

    /// The state machine is done with the oldest apply.
    pub(super) fn apply(&mut self, id: NodeId) -> Result<(), String> {
        let apply = self.node(id)?.applies.pop_front();
        let (group, index) = apply.ok_or_else(|| format!("node {id} applies nothing"))?;
        self.feed(id, Input::Applied { group, index })
    }

    /// What was asked for first about snapshots is done.
    pub(super) fn snapshot(&mut self, id: NodeId) -> Result<(), String> {
        let chunks = self.body_chunks;
        let node = self.node(id)?;
        let task = node.tasks.pop_front().ok_or_else(|| format!("node {id} wants no snapshot"))?;
        let event = node.snapshots.run(task.group, task.step, chunks);
        self.feed(id, Input::Snapshot { group: task.group, event })
    }

    /// A node loses the published snapshot of a group.
    pub(super) fn lose_snapshot(&mut self, id: NodeId, group: GroupId) -> Result<(), String> {
        let lost = self.node(id)?.snapshots.published.remove(&group);
        lost.map(|_| ()).ok_or_else(|| format!("node {id} has no snapshot"))
    }

    // Clients

    fn request(
        &mut self,
        id: NodeId,
        name: String,
        patience: Option<Duration>,
    ) -> Result<(Token, Timestamp), String> {
        self.requests += 1;
        let token = Token { origin: 0, request: self.requests };
        self.trace.name(token, name);
        let now = Timestamp(self.node(id)?.clock);
        Ok((token, patience.map_or(Timestamp(u64::MAX), |patience| now.after(patience))))
    }

    /// Requests of one turn, each with its records.
    pub(super) fn propose(
        &mut self,
        id: NodeId,
        group: GroupId,
        requests: Vec<(Option<ClientRun>, Vec<Vec<u8>>)>,
        answer: AnswerOn,
        patience: Option<Duration>,
    ) -> Result<(), String> {
        let mut inputs = Vec::new();
        for (run, records) in requests {
            let name: Vec<String> = records.iter().map(|record| print_record(record)).collect();
            let (token, deadline) = self.request(id, name.join(","), patience)?;
            let block = RecordBlock::from_records(&records);
            inputs.push(Input::Propose(Propose { token, group, block, run, answer, deadline }));
        }
        self.turn(id, inputs)
    }

    /// Reads of one turn.
    pub(super) fn read(
        &mut self,
        id: NodeId,
        group: GroupId,
        names: &[&str],
        (consistency, may_forward): (Consistency, bool),
        patience: Option<Duration>,
    ) -> Result<(), String> {
        let mut inputs = Vec::new();
        for name in names {
            let (token, deadline) = self.request(id, (*name).to_owned(), patience)?;
            inputs.push(Input::Read { token, group, consistency, may_forward, deadline });
        }
        self.turn(id, inputs)
    }

    pub(super) fn change_members(
        &mut self,
        id: NodeId,
        group: GroupId,
        words: &[&str],
        patience: Option<Duration>,
    ) -> Result<(), String> {
        let (token, deadline) = self.request(id, format!("members {}", words.join(" ")), patience)?;
        let changes = words.iter().map(|word| parse_change(word)).collect::<Result<_, _>>()?;
        self.feed(id, Input::ChangeMembers { token, group, changes, deadline })
    }

    pub(super) fn create(&mut self, id: NodeId, group: GroupId, voters: Vec<NodeId>) -> Result<(), String> {
        let (token, _) = self.request(id, "create".to_owned(), None)?;
        let members = ConfState { voters, ..ConfState::default() };
        self.feed(id, Input::Open(self.open(token, group, members, LogPosition::default())))
    }

    fn open(&self, token: Token, group: GroupId, members: ConfState, since: LogPosition) -> Open {
        let has_state_machine = self.groups.iter().any(|known| known.id == group && known.has_state_machine);
        let retention = self.retention;
        Open { token, group, members, since, has_state_machine, retention }
    }

    pub(super) fn remove(
        &mut self,
        id: NodeId,
        group: GroupId,
        patience: Option<Duration>,
    ) -> Result<(), String> {
        let (token, deadline) = self.request(id, "remove".to_owned(), patience)?;
        self.feed(id, Input::RemoveGroup { token, group, deadline })
    }

    pub(super) fn recover(
        &mut self,
        id: NodeId,
        group: GroupId,
        lost: Vec<NodeId>,
        last: &str,
        patience: Option<Duration>,
    ) -> Result<(), String> {
        let (token, deadline) = self.request(id, "recover".to_owned(), patience)?;
        let (last, last_term) = last.split_once('/').ok_or("the last entry as index/term")?;
        let (last, last_term) = (Index(parse_number(last)?), Term(parse_number(last_term)?));
        self.feed(id, Input::Recover(Recover { token, group, lost, last, last_term, deadline }))
    }

    pub(super) fn read_records(
        &mut self,
        id: NodeId,
        group: GroupId,
        from: u64,
        limits: (usize, u32),
        waiting: Option<Duration>,
    ) -> Result<(), String> {
        let (token, deadline) = self.request(id, format!("records from {from}"), waiting)?;
        let (from, (bytes_max, records_max), is_waiting) = (Offset(from), limits, waiting.is_some());
        let read = Input::ReadRecords { token, group, from, bytes_max, records_max, is_waiting, deadline };
        self.feed(id, read)
    }

    pub(super) fn tail(
        &mut self,
        id: NodeId,
        group: GroupId,
        name: &str,
        (from, granted_bytes): (u64, u64),
        patience: Option<Duration>,
    ) -> Result<(), String> {
        let (token, deadline) = self.request(id, name.to_owned(), patience)?;
        self.tails.insert(name.to_owned(), token);
        self.feed(id, Input::Tail { token, group, from: Offset(from), granted_bytes, deadline })
    }

    /// Grants a tail bytes in all, or ends it.
    pub(super) fn grant(
        &mut self,
        id: NodeId,
        group: GroupId,
        name: &str,
        granted_bytes: Option<u64>,
    ) -> Result<(), String> {
        let token = *self.tails.get(name).ok_or_else(|| format!("there is no tail {name}"))?;
        let grant = granted_bytes.map(|granted_bytes| Input::GrantTail { token, group, granted_bytes });
        self.feed(id, grant.unwrap_or(Input::EndTail { token, group }))
    }

    pub(super) fn find(&mut self, id: NodeId, group: GroupId, at: u64) -> Result<(), String> {
        let (token, deadline) = self.request(id, format!("from time {at}"), None)?;
        self.feed(id, Input::Find { token, group, at: WallTime(at), deadline })
    }

    pub(super) fn command(
        &mut self,
        id: NodeId,
        group: GroupId,
        words: &[&str],
        patience: Option<Duration>,
    ) -> Result<(), String> {
        let (token, deadline) = self.request(id, words.join(" "), patience)?;
        let command = parse_command(words)?;
        self.feed(id, Input::Command { token, group, command, deadline })
    }

    pub(super) fn print_outcome(
        &mut self,
        id: NodeId,
        group: GroupId,
        session: SessionId,
        sequence: Sequence,
    ) -> Result<(), String> {
        let shard = self.node(id)?.shard.as_ref().ok_or("the node is down")?;
        let line = match shard.session_outcome(group, session, Owner(0), sequence) {
            Ok(RunOutcome::Committed { offset, index, term }) => {
                format!("committed at offset {offset}, entry {index}/{term}")
            }
            Ok(RunOutcome::Pending) => "pending".to_owned(),
            Ok(RunOutcome::NotThere { expected }) => format!("not there, {expected} is next"),
            Ok(RunOutcome::Forgotten) => "forgotten".to_owned(),
            Err(error) => error.to_string(),
        };
        self.trace.answer(format!("{} outcome of {sequence}: {line}", who(id, group)));
        Ok(())
    }

    pub(super) fn print_cursors(&mut self, ids: &[NodeId], group: GroupId) {
        for id in ids {
            let shard = self.nodes.get(id).and_then(|node| node.shard.as_ref());
            let Some(meta) = shard.and_then(|shard| shard.meta(group)) else { continue };
            let cursors: String = meta.cursors().map(|(name, offset)| format!(" {name}={offset}")).collect();
            let line = format!("{} first={}{cursors}", who(*id, group), meta.first());
            self.trace.answer(line);
        }
    }

    pub(super) fn transfer(&mut self, id: NodeId, group: GroupId, to: Option<NodeId>) -> Result<(), String> {
        let name = to.map_or("transfer".to_owned(), |to| format!("transfer to {to}"));
        let (token, _) = self.request(id, name, None)?;
        self.feed(id, Input::TransferLeader { token, group, to })
    }

    pub(super) fn step_down(&mut self, id: NodeId, group: GroupId) -> Result<(), String> {
        let (token, _) = self.request(id, "step-down".to_owned(), None)?;
        self.feed(id, Input::StepDown { token, group })
    }

    // Looks

    fn status(&self, id: NodeId, group: GroupId) -> Option<GroupStatus> {
        self.nodes.get(&id)?.shard.as_ref()?.status(group)
    }

    pub(super) fn print_status(&mut self, ids: &[NodeId]) {
        for id in ids {
            match self.nodes.get(id).and_then(|node| node.shard.as_ref()) {
                Some(shard) => {
                    let lines: Vec<String> =
                        shard.statuses().map(|status| trace::status(*id, &status)).collect();
                    lines.into_iter().for_each(|line| self.trace.answer(line));
                }
                None => self.trace.answer(format!("{id} down")),
            }
        }
    }

    pub(super) fn print_stored(&mut self, ids: &[NodeId]) {
        for id in ids {
            let groups = self.nodes.get(id).map(|node| &node.disk.groups).into_iter().flatten();
            let lines: Vec<String> =
                groups.map(|(group, stored)| trace::stored(*id, *group, stored)).collect();
            lines.into_iter().for_each(|line| self.trace.answer(line));
        }
    }

    /// Runs something with less printed.
    pub(super) fn with_detail(
        &mut self,
        detail: Detail,
        run: impl FnOnce(&mut World) -> Result<(), String>,
    ) -> Result<(), String> {
        let before = self.trace.detail;
        self.trace.detail = if before == Detail::Nothing { before } else { detail };
        let result = run(self);
        self.trace.detail = before;
        result
    }
}

fn line(message: &PeerMessage) -> String {
    format!("{}->{}: {}", who(message.from, message.group), message.to, print_message(message))
}

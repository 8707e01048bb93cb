//! The turn: feeds the core with what the rings hold, and carries out what it says.

mod readers;
mod replies;
mod report;
mod room;

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use futures_channel::{mpsc, oneshot};
use iroh_raft_core::mutants::{self, Mutant};
use iroh_raft_core::{
    AnswerOn, Append, BusyReason, ClientRun, ConfState, Consistency, CursorName, Event, FlushSeq, Freshness,
    GroupCommand, GroupId, Index, Input, Invite, LogPosition, MessageKind, NodeId, Open as OpenGroup,
    Outputs, Owner, Propose, Recover, Reply, RequestError, Retention, Role, Sequence, SessionId,
    SessionRefusal, Shard, ShardId, SnapshotEvent, SnapshotStep, Timestamp, Token, WallTime,
};
use iroh_raft_netbridge::port::{Rights, ShardPort, ToShard};
use iroh_raft_netbridge::ring::{Consumer, Producer};
use iroh_raft_netbridge::wire::{Answer, ClientBody, ClientRequest, FrameLimits, ReplyBody};
use iroh_raft_storage::StorageError;

use crate::applying::{ApplyBudget, Applying, Outcome};
use crate::comparing::Comparing;
use crate::costs::Costs;
use crate::lines::{
    Closing, Command, Fetched, Finding, Found, HandedOver, LeadershipError, LeadershipReply, Wanted, Written,
};
use crate::machines::Machines;
use crate::outbox::{FRAME_BYTES_TARGET, Outbox};
use crate::snapshots::Snapshots;
use crate::state_machine::MachineFactory;
use crate::stats::ShardCounters;
use crate::tails::Tails;
use crate::timings::Timings;
use crate::unflushed::Unflushed;

/// Items taken from the bridge in a turn, so that a turn stays short.
const BRIDGE_ITEMS_PER_TURN: usize = 256;
/// Commands of this process taken in a turn.
const COMMANDS_PER_TURN: usize = 4096;
/// Largest answer to a client: what a frame takes beside the other answers that it may carry.
const ANSWER_BYTES_MAX: usize = FrameLimits::REPLY.payload_bytes_max as usize - FRAME_BYTES_TARGET;
/// Bytes of one answer to a read of records; the reader asks again from where it ends.
const READ_BYTES_MAX: usize = 4 << 20;
/// Pause before a full ring towards the bridge is looked at again.
const BLOCKED_PAUSE: Duration = Duration::from_millis(1);
/// Longest deadline a client can ask for.
const DEADLINE_MAX: Duration = Duration::from_secs(3600);

/// Sees everything that goes into the core and comes out of it: a recorder, or a checker.
pub trait Observer {
    /// The core is about to take this.
    fn input(&mut self, now: Timestamp, input: &Input);
    /// A turn has ended with this to do.
    fn turn(&mut self, now: Timestamp, shard: &Shard, outputs: &Outputs);
}

/// Everything a shard's turn works with.
pub struct DriverParts {
    /// Number of the shard.
    pub shard_id: ShardId,
    /// Its node.
    pub node: NodeId,
    /// Its core.
    pub shard: Shard,
    /// Bytes of one record at most.
    pub record_bytes_max: usize,
    /// Bytes of the records of one request at most.
    pub block_bytes_max: usize,
    /// The rings to and from the bridge.
    pub port: ShardPort,
    /// Before `commands`: dropped first, also by a panic, so that no caller waits for a dead shard.
    pub closing: Closing,
    /// Requests of this process.
    pub commands: Consumer<Command>,
    /// Flushes, to the writer.
    pub appends: Producer<Append>,
    /// Bytes of entries on their way to the disk from which on no more are taken: proposals are refused as busy, those of peers
    /// dropped.
    pub flush_bytes_max: usize,
    /// What the writer says; it has a place for each flush that can be under way.
    pub written: Consumer<Written>,
    /// Fetches, to the reader.
    pub fetches: Producer<Wanted>,
    /// Their answers.
    pub fetched: Consumer<Found>,
    /// What a scrub found.
    pub findings: Consumer<Finding>,
    /// Its snapshots.
    pub snapshots: Snapshots,
    /// Makes the state machines.
    pub machines: Arc<MachineFactory>,
    /// What a turn gives them.
    pub apply_budget: ApplyBudget,
    /// How long records are kept in groups that begin here; for ever in those that are not named.
    pub retention: Vec<(GroupId, Retention)>,
    /// What is counted.
    pub counters: Arc<ShardCounters>,
    /// CPU time that the calling thread has used.
    pub cpu_time: fn() -> Duration,
    /// Called once when a write has failed.
    pub on_fenced: Box<dyn Fn(ShardId, StorageError) + Send>,
    /// Who watches, if anybody does.
    pub observer: Option<Box<dyn Observer>>,
}

/// What a runtime does after a turn.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Next {
    /// Nothing: it was told to stop, and has.
    Over,
    /// Another turn, soon.
    Again,
    /// Sleep until the doorbell rings or this time comes. Arm the doorbell and ask
    /// [`Driver::has_input`] once more before.
    Sleep(Option<Timestamp>),
}

/// A caller of this process that waits.
enum Call {
    Request(oneshot::Sender<ReplyBody>),
    Tail(mpsc::UnboundedSender<ReplyBody>),
    Leadership(LeadershipReply),
}

/// Token of what the driver itself asks for: nobody waits for the answer.
const NOBODY: Token = Token { origin: 0, request: u64::MAX };
/// Whose the sessions of the embedding process are; those of all nodes share them.
const EMBEDDED: Owner = Owner(0);

#[derive(Default)]
struct Open {
    calls: slab::Slab<Call>,
    queries: HashMap<Token, Question>,
    tails: Tails,
    timings: Timings,
}

/// What is looked up once a read may look.
enum Question {
    Machine(Bytes),
    Cursor(CursorName),
    Outcome { session: SessionId, owner: Owner, sequence: Sequence },
}

/// A shard with its rings. See the crate's documentation.
pub struct Driver {
    parts: DriverParts,
    machines: Machines,
    applying: Applying,
    comparing: Comparing,
    /// What came of applying, emptied by whoever fills it.
    outcomes: Vec<Outcome>,
    now: Timestamp,
    outputs: Outputs,
    outbox: Outbox,
    open: Open,
    /// Flushes that found the writer's ring full, in order. While there is one, proposals are
    /// refused as busy; what peers send stays bounded by their windows.
    appends_waiting: VecDeque<Append>,
    unflushed: Unflushed,
    /// Newest flush that is known to be durable.
    persisted: FlushSeq,
    /// Newest flush that the core asked for.
    handed_over: FlushSeq,
    /// What found the reader's ring full; bounded by the groups' open fetches, and one state for each that is out.
    fetches_waiting: VecDeque<Wanted>,
    /// Inputs that the driver itself makes: applied indexes.
    loopback: Vec<Input>,
    /// Replicas that others want here, for the next turn.
    invites: Vec<Invite>,
    costs: Costs,
    wall: WallTime,
    hand_over: Option<oneshot::Sender<()>>,
    is_stopping: bool,
    is_fenced: bool,
    is_space_low: bool,
}

impl Driver {
    /// A driver before its first turn.
    #[must_use]
    pub fn new(parts: DriverParts) -> Driver {
        let mut machines = Machines::new(parts.machines.clone());
        parts.shard.statuses().for_each(|status| machines.open(status.group));
        Driver {
            machines,
            applying: Applying::new(parts.apply_budget),
            comparing: Comparing::default(),
            outcomes: Vec::new(),
            now: Timestamp(0),
            outputs: Outputs::default(),
            outbox: Outbox::new(parts.shard_id),
            open: Open::default(),
            appends_waiting: VecDeque::new(),
            unflushed: Unflushed::default(),
            persisted: FlushSeq(0),
            handed_over: FlushSeq(0),
            fetches_waiting: VecDeque::new(),
            loopback: Vec::new(),
            invites: Vec::new(),
            costs: Costs::new(parts.cpu_time),
            wall: WallTime(0),
            hand_over: None,
            is_stopping: false,
            is_fenced: false,
            is_space_low: false,
            parts,
        }
    }

    /// One turn: takes what has arrived, lets the core work, and carries out what it says. `clock` must not
    /// run backwards; `wall` may.
    ///
    /// The clock is read after each frame was taken from its ring, and before the turn ends: the process may have
    /// been stopped for a while since the turn began. A promise to a leader must not run from before the
    /// leader's word came, nor a lease be held at a time before the read that it answers.
    pub fn turn(&mut self, clock: impl Fn() -> Timestamp, wall: WallTime) -> Next {
        ShardCounters::add(&self.parts.counters.turns, 1);
        self.now = clock();
        if wall != self.wall {
            self.wall = wall;
            self.step(Input::Wall(wall));
        }
        self.take_written();
        self.take_fetched();
        self.take_findings();
        self.go_on_with_snapshots();
        let mut loopback = std::mem::take(&mut self.loopback);
        loopback.drain(..).for_each(|input| self.step(input));
        self.loopback = loopback;
        for Invite { group, members, since } in std::mem::take(&mut self.invites) {
            self.open_group(NOBODY, group, members, since);
        }
        self.take_from_bridge(&clock);
        self.take_commands(&clock);
        self.look(&clock);
        self.step(Input::EndTurn);
        let now = self.now;
        if let Some(observer) = &mut self.parts.observer {
            observer.turn(now, &self.parts.shard, &self.outputs);
        }
        self.carry_out(&clock);
        self.costs.end_turn(|group| self.parts.shard.status(group).is_some());
        self.note_levels();
        if self.is_stopping && self.is_drained() {
            self.finish(&clock);
            return Next::Over;
        }
        if self.has_input() {
            return Next::Again;
        }
        ShardCounters::add(&self.parts.counters.sleeps, 1);
        // A full ring towards the bridge is looked at again soon: its consumer does not ring back.
        let retry = self.outbox.is_blocked().then(|| now.after(BLOCKED_PAUSE));
        Next::Sleep([self.parts.shard.next_wakeup(), retry].into_iter().flatten().min())
    }

    fn look(&mut self, clock: &impl Fn() -> Timestamp) {
        if !mutants::is(Mutant::ClockBeforeRing) {
            self.now = clock();
        }
    }

    fn step(&mut self, input: Input) {
        if let Some(observer) = &mut self.parts.observer {
            observer.input(self.now, &input);
        }
        match &input {
            Input::Message(message) => self.costs.input(message.group),
            Input::Propose(propose) => self.costs.input(propose.group),
            Input::Read { group, .. } | Input::ReadRecords { group, .. } | Input::Applied { group, .. } => {
                self.costs.input(*group);
            }
            // Rare, or of no group.
            _ => {}
        }
        self.parts.shard.step(self.now, input, &mut self.outputs);
    }

    fn take_written(&mut self) {
        while let Some(written) = self.parts.written.pop() {
            match written {
                Written::Upto(seq) => {
                    self.persisted = seq;
                    self.unflushed.handle_persisted(seq);
                    self.step(Input::Persisted { seq });
                    self.parts.snapshots.handle_persisted(seq);
                    self.outbox.release(seq);
                    self.open.timings.flushed(seq, self.now);
                }
                Written::SpaceLow(is_low) => {
                    self.is_space_low = is_low;
                    tracing::warn!(shard = %self.parts.shard_id, is_low, "space on the disk");
                }
                Written::Failed(error) => {
                    self.is_fenced = true;
                    self.outbox.drop_gated();
                    self.appends_waiting.clear();
                    self.unflushed = Unflushed::default();
                    self.step(Input::PersistFailed);
                    (self.parts.on_fenced)(self.parts.shard_id, error);
                }
            }
        }
        while let Some(append) = self.appends_waiting.pop_front() {
            if let Err(append) = self.parts.appends.push(append) {
                self.appends_waiting.push_front(append);
                break;
            }
        }
    }

    fn take_fetched(&mut self) {
        while let Some(found) = self.parts.fetched.pop() {
            match found {
                Found::Entries(Fetched { id, group, result }) => {
                    self.step(Input::Fetched { id, group, result });
                }
                Found::State(group, result) => {
                    // What it had applied goes with it: it begins where its snapshot is.
                    self.machines.close(group);
                    self.machines.open(group);
                    self.parts.snapshots.forget(group);
                    self.comparing.forget(group);
                    self.step(Input::Reopened { group, result });
                }
            }
        }
        while let Some(fetch) = self.fetches_waiting.pop_front() {
            if let Err(fetch) = self.parts.fetches.push(fetch) {
                self.fetches_waiting.push_front(fetch);
                break;
            }
        }
    }

    fn take_findings(&mut self) {
        while let Some(finding) = self.parts.findings.pop() {
            self.step(match finding {
                Finding::Entries(group, damage) => Input::Damaged { group, damage },
                Finding::Snapshot(group) => Input::Snapshot { group, event: SnapshotEvent::Damaged },
            });
        }
    }

    fn go_on_with_snapshots(&mut self) {
        let mut events = Vec::new();
        self.parts.snapshots.turn(&mut self.machines, |group, event| events.push((group, event)));
        self.comparing.turn();
        events.into_iter().for_each(|(group, event)| self.step(Input::Snapshot { group, event }));
    }

    fn take_from_bridge(&mut self, clock: &impl Fn() -> Timestamp) {
        for _ in 0..BRIDGE_ITEMS_PER_TURN {
            let Some((item, waited)) = self.parts.port.from_bridge.pop_waited() else { break };
            self.look(clock);
            match item {
                // What comes now would be flushed and answered without end; to the peers this node is gone.
                ToShard::Peer { .. } if self.is_stopping => {}
                ToShard::Peer { frame, .. } => {
                    for message in frame.messages() {
                        self.take_message(message);
                    }
                }
                ToShard::Client { connection, rights, owner, frame } => {
                    for request in frame.requests() {
                        self.handle_client(connection, rights, owner, request, waited);
                    }
                }
                ToShard::ClientGone { connection } => {
                    for (token, group) in self.open.tails.take_all(connection) {
                        self.step(Input::EndTail { token, group });
                    }
                    self.outbox.forget_client(connection);
                }
                ToShard::Placement { node, placement } => self.step(Input::Placement { node, placement }),
                ToShard::Unreachable { node } => self.step(Input::Unreachable { node }),
            }
        }
    }

    fn take_commands(&mut self, clock: &impl Fn() -> Timestamp) {
        for _ in 0..COMMANDS_PER_TURN {
            let Some((command, waited)) = self.parts.commands.pop_waited() else { break };
            self.look(clock);
            match command {
                Command::Request { group, deadline, body, reply } => {
                    let token = self.open_call(Call::Request(reply));
                    self.handle_request(token, EMBEDDED, group, deadline, body, waited);
                }
                Command::Tail { group, deadline, tail, from, granted_bytes, reply } => {
                    let token = self.open_call(Call::Tail(reply));
                    let body = ClientBody::Tail { tail, from, granted_bytes };
                    self.handle_request(token, EMBEDDED, group, deadline, body, waited);
                }
                Command::Statuses(reply) => {
                    // The asker may be gone: then nobody waits for it.
                    let _ = reply.send(self.parts.shard.statuses().collect());
                }
                Command::Costs(reply) => {
                    // As above.
                    let _ = reply.send(self.costs.snapshot());
                }
                Command::TransferLeader { group, to, reply } => {
                    let token = self.open_call(Call::Leadership(reply));
                    self.step(Input::TransferLeader { token, group, to });
                }
                Command::StepDown { group, reply } => {
                    let token = self.open_call(Call::Leadership(reply));
                    self.step(Input::StepDown { token, group });
                }
                Command::HandOver(reply) => {
                    let led: Vec<GroupId> = self.led_groups().collect();
                    for group in led {
                        self.step(Input::StepDown { token: NOBODY, group });
                    }
                    self.hand_over = Some(reply);
                }
                Command::Stop => self.is_stopping = true,
            }
        }
    }

    fn open_call(&mut self, call: Call) -> Token {
        Token { origin: 0, request: self.open.calls.insert(call) as u64 }
    }

    fn led_groups(&self) -> impl Iterator<Item = GroupId> {
        let led = self.parts.shard.statuses().filter(|status| status.role == Role::Leader);
        led.map(|status| status.group)
    }

    fn handle_client(
        &mut self,
        connection: u64,
        rights: Rights,
        owner: Owner,
        request: ClientRequest,
        waited: Duration,
    ) {
        let token = Token { origin: connection, request: request.request };
        let is_allowed = match request.body {
            ClientBody::Append { .. }
            | ClientBody::TimedAppend { .. }
            | ClientBody::Outcome { .. }
            | ClientBody::Command(GroupCommand::OpenSession { .. } | GroupCommand::CloseSession { .. }) => {
                rights.append
            }
            ClientBody::Command(GroupCommand::Trim { .. } | GroupCommand::Compare)
            | ClientBody::StateDigest { .. }
            | ClientBody::ChangeMembers { .. }
            | ClientBody::CreateGroup { .. }
            | ClientBody::RemoveGroup
            | ClientBody::Revive
            | ClientBody::TransferLeader { .. }
            | ClientBody::Recover { .. } => rights.manage,
            // A consumer that may read may say how far it has read.
            ClientBody::Command(_)
            | ClientBody::Query { .. }
            | ClientBody::ReadRecords { .. }
            | ClientBody::Tail { .. }
            | ClientBody::GrantTail { .. }
            | ClientBody::EndTail { .. }
            | ClientBody::Find { .. }
            | ClientBody::FetchCursor { .. }
            | ClientBody::Status
            | ClientBody::Clock
            | ClientBody::ListGroups { .. } => rights.read,
        };
        if is_allowed {
            let deadline = Duration::from_millis(u64::from(request.deadline_ms));
            self.handle_request(token, owner, request.group, deadline, request.body, waited);
        } else {
            self.answer(token, request.group, ReplyBody::Failed(RequestError::Denied));
        }
    }

    fn handle_request(
        &mut self,
        token: Token,
        owner: Owner,
        group: GroupId,
        deadline: Duration,
        body: ClientBody,
        waited: Duration,
    ) {
        ShardCounters::add(&self.parts.counters.requests, 1);
        if self.is_stopping {
            return self.answer(token, group, ReplyBody::Failed(RequestError::ShuttingDown));
        }
        let deadline = self.now.after(deadline.min(DEADLINE_MAX));
        match body {
            ClientBody::Append { block, answer, run } => {
                let run = run.map(|(session, first)| ClientRun { session, first, owner });
                self.propose(Propose { token, group, block, run, answer, deadline });
            }
            ClientBody::TimedAppend { block } => {
                self.open.timings.begin(token, waited, self.now);
                let answer = AnswerOn::Commit;
                self.propose(Propose { token, group, block, run: None, answer, deadline });
            }
            ClientBody::Query { consistency, may_forward, query } => {
                if self.open.queries.contains_key(&token) {
                    return self.refuse_open(token, group);
                }
                self.open.queries.insert(token, Question::Machine(query));
                self.step(Input::Read { token, group, consistency, may_forward, deadline });
            }
            ClientBody::CreateGroup { voters } => {
                let members = ConfState { voters, ..ConfState::default() };
                self.open_group(token, group, members, LogPosition::default());
            }
            ClientBody::RemoveGroup => self.step(Input::RemoveGroup { token, group, deadline }),
            ClientBody::Revive => self.step(Input::Revive { token, group }),
            ClientBody::Recover { lost, last, last_term } => {
                self.step(Input::Recover(Recover { token, group, lost, last, last_term, deadline }));
            }
            ClientBody::ChangeMembers { changes } => {
                self.step(Input::ChangeMembers { token, group, changes, deadline });
            }
            ClientBody::Status => {
                let body = match self.parts.shard.status(group) {
                    Some(status) => ReplyBody::Status(status),
                    None => ReplyBody::Failed(RequestError::UnknownGroup),
                };
                self.answer(token, group, body);
            }
            ClientBody::Clock => self.answer(token, group, ReplyBody::Clock(self.wall)),
            ClientBody::ListGroups { after, groups_max } => {
                let body = self.list_groups(after, groups_max as usize);
                self.answer(token, group, body);
            }
            ClientBody::TransferLeader { to } => self.step(Input::TransferLeader { token, group, to }),
            body => self.handle_reader(token, owner, group, deadline, body),
        }
    }

    fn list_groups(&self, after: GroupId, groups_max: usize) -> ReplyBody {
        let groups = self.parts.shard.statuses().map(|status| status.group);
        let mut groups: Vec<GroupId> = groups.filter(|group| *group > after).collect();
        groups.sort_unstable();
        let is_more = groups.len() > groups_max;
        groups.truncate(groups_max);
        ReplyBody::Groups { groups, is_more, shard_count: self.parts.shard.shard_count() }
    }

    fn propose(&mut self, propose: Propose) {
        match self.check_block(propose.group, &propose.block, propose.answer) {
            Ok(()) => self.step(Input::Propose(propose)),
            Err(error) => {
                self.open.timings.end(propose.token, self.now);
                self.answer(propose.token, propose.group, ReplyBody::Failed(error));
            }
        }
    }

    /// A replica is to begin here: its state machine is there before anything can be applied, and nothing that one
    /// before it has left.
    fn open_group(&mut self, token: Token, group: GroupId, members: ConfState, since: LogPosition) {
        if self.parts.snapshots.is_leaving(group) && !self.is_fenced {
            let busy = RequestError::busy(BusyReason::Starting);
            return self.answer(token, group, ReplyBody::Failed(busy));
        }
        let has_state_machine = self.machines.has_one(group);
        let mut kept = self.parts.retention.iter().filter(|(of, _)| *of == group);
        let retention = kept.next().map(|(_, retention)| *retention).unwrap_or_default();
        self.step(Input::Open(OpenGroup { token, group, members, since, has_state_machine, retention }));
        if self.parts.shard.status(group).is_some() {
            self.machines.open(group);
        }
    }

    fn refuse_open(&mut self, token: Token, group: GroupId) {
        let what = "a request number that is still open";
        self.answer(token, group, ReplyBody::Failed(RequestError::Invalid { what }));
    }

    /// Says everything that the core wants done to whoever does it.
    fn carry_out(&mut self, clock: &impl Fn() -> Timestamp) {
        let mut outputs = std::mem::take(&mut self.outputs);
        let append = outputs.append.take();
        let is_flush_due = append.is_some();
        if let Some(append) = append {
            self.hand_to_writer(append);
        }
        for send in outputs.sends.drain(..) {
            let is_chunk = send.message.kind == MessageKind::SnapshotChunk;
            ShardCounters::add(&self.parts.counters.snapshot_chunks_sent, u64::from(is_chunk));
            let after = send.after.filter(|seq| *seq > self.persisted);
            let gate = after.filter(|_| !mutants::is(Mutant::DriverIgnoresGates));
            let shard = self.parts.shard.destination(&send.message);
            self.costs.send(&send.message);
            self.outbox.push(send.message, shard, gate);
        }
        // Before state machines take their time, and before the writer: the way over the other nodes is the longer one,
        // and waking a thread takes the shard's time.
        let mut lost = self.outbox.flush(&self.parts.port.to_bridge, &self.parts.counters);
        if is_flush_due {
            self.parts.appends.ring();
        }
        self.invites.append(&mut outputs.invites);
        let entries = outputs.fetches.drain(..).map(Wanted::Entries);
        for wanted in entries.chain(outputs.reopens.drain(..).map(Wanted::State)) {
            if let Err(wanted) = self.parts.fetches.push(wanted) {
                self.fetches_waiting.push_back(wanted);
            }
        }
        for compare in outputs.compares.drain(..) {
            self.comparing.begin(compare, self.machines.has(compare.group));
        }
        if mutants::is(Mutant::SnapshotFrozenLate) {
            self.apply(&mut outputs, clock);
        }
        for task in outputs.snapshots.drain(..) {
            let group = task.group;
            let is_chunk = matches!(task.step, SnapshotStep::Write { .. });
            if matches!(task.step, SnapshotStep::Restore(_)) {
                self.applying.cancel(group, &mut self.outcomes);
            }
            ShardCounters::add(&self.parts.counters.snapshot_chunks_received, u64::from(is_chunk));
            let event = self.parts.snapshots.begin(task, &self.machines, self.is_space_low);
            self.loopback.extend(event.map(|event| Input::Snapshot { group, event }));
        }
        // Before the next entries are applied: an answer is of the state that the core says it is of.
        for reply in outputs.replies.drain(..) {
            self.handle_reply(reply);
        }
        self.apply(&mut outputs, clock);
        self.handle_outcomes();
        for event in outputs.events.drain(..) {
            self.report(event);
        }
        outputs.clear();
        self.outputs = outputs;
        lost.append(&mut self.outbox.flush(&self.parts.port.to_bridge, &self.parts.counters));
        for node in lost {
            self.step(Input::Unreachable { node });
        }
        if self.hand_over.is_some()
            && self.led_groups().next().is_none()
            && let Some(reply) = self.hand_over.take()
        {
            let _ = reply.send(());
        }
    }

    fn apply(&mut self, outputs: &mut Outputs, clock: &impl Fn() -> Timestamp) {
        for apply in outputs.applies.drain(..) {
            let frozen_after = self.comparing.due(apply.group);
            self.applying.push(apply, frozen_after);
        }
        self.applying.turn(&mut self.machines, clock, &mut self.outcomes);
    }

    fn hand_to_writer(&mut self, append: Append) {
        self.handed_over = append.seq;
        if self.is_fenced {
            return;
        }
        if mutants::is(Mutant::PersistedEarly) {
            self.loopback.push(Input::Persisted { seq: append.seq });
        }
        self.costs.append(&append);
        self.open.timings.handed_over(append.seq, self.now);
        self.unflushed.push(&append);
        if !self.appends_waiting.is_empty() {
            self.appends_waiting.push_back(append);
        } else if let Err(append) = self.parts.appends.push_quietly(append) {
            self.appends_waiting.push_back(append);
        }
    }

    /// Whether something waits for a turn.
    #[must_use]
    pub fn has_input(&self) -> bool {
        !self.loopback.is_empty()
            || !self.applying.is_idle()
            || !self.outcomes.is_empty()
            || !self.invites.is_empty()
            || !self.outputs.is_empty()
            || !self.parts.written.is_empty()
            || !self.parts.fetched.is_empty()
            || !self.parts.findings.is_empty()
            || self.parts.snapshots.has_work()
            || self.comparing.has_work()
            || !self.parts.port.from_bridge.is_empty()
            || !self.parts.commands.is_empty()
    }

    /// Whether nothing is on its way to the disk and nobody waits for an answer to be sent.
    fn is_drained(&self) -> bool {
        let is_flushed = self.appends_waiting.is_empty() && self.parts.appends.is_empty();
        self.is_fenced || (is_flushed && !self.outbox.is_gated() && self.applying.is_idle())
    }

    /// Answers what is still open.
    fn finish(&mut self, clock: &impl Fn() -> Timestamp) {
        self.parts.closing.0.store(true, Ordering::SeqCst);
        self.take_written();
        self.take_commands(clock);
        self.carry_out(clock);
        let error = || RequestError::OutcomeUnknown { leader: None };
        for (_, call) in std::mem::take(&mut self.open.calls) {
            match call {
                Call::Request(call) => drop(call.send(ReplyBody::Failed(error()))),
                Call::Tail(call) => {
                    drop(call.unbounded_send(ReplyBody::Failed(RequestError::ShuttingDown)));
                }
                Call::Leadership(call) => drop(call.send(Err(error().into()))),
            }
        }
    }
}

impl fmt::Debug for Driver {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Driver")
            .field("node", &self.parts.node)
            .field("shard", &self.parts.shard_id)
            .field("now", &self.now)
            .field("next_wakeup", &self.parts.shard.next_wakeup())
            .field("appends_waiting", &self.appends_waiting.len())
            .field("fetches_waiting", &self.fetches_waiting.len())
            .field("is_fenced", &self.is_fenced)
            .finish_non_exhaustive()
    }
}

//! The loop of a shard: feeds the core with what the rings hold, and carries out what it says.
//!
//! Invariants: `Persisted` reaches the core before peer messages of the same turn; a frame leaves
//! only when the flush it waits for is durable; every request gets exactly one answer.
//! It never blocks: the disk is behind two rings, the network behind two more.

pub(crate) mod outbox;

use std::cell::Cell;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use futures_channel::oneshot;
use glommio::timer::Timer;
use iroh_raft_core::batch::{Batch, RecordBlock};
use iroh_raft_core::{
    AnswerOn, Append, Apply, BusyReason, Event, Fetch, FlushSeq, GroupId, GroupStatus, Index, Input, NodeId,
    Outputs, Propose, Reply, RequestError, Shard, ShardId, Timestamp, Token, WallTime,
};
use iroh_raft_netbridge::port::{Rights, ShardPort, ToShard};
use iroh_raft_netbridge::ring::{Consumer, Doorbell, Producer};
use iroh_raft_netbridge::wire::{ClientBody, ClientRequest, FrameLimits, ReplyBody};

use crate::mover_thread::Finding;
use crate::reader_thread::Fetched;
use crate::state_machine::{ApplyContext, Machine};
use crate::stats::ShardCounters;
use crate::writer_thread::{Queued, Written};
use outbox::{FRAME_BYTES_TARGET, Outbox};

/// Items taken from the bridge in a turn, so that a turn stays short.
const BRIDGE_ITEMS_PER_TURN: usize = 256;
/// Commands of this process taken in a turn.
const COMMANDS_PER_TURN: usize = 4096;
/// Largest answer to a client: what a frame takes beside the other answers that it may carry.
const ANSWER_BYTES_MAX: usize = FrameLimits::REPLY.payload_bytes_max as usize - FRAME_BYTES_TARGET;
/// Largest block of responses: lengths in it have 32 bits.
const BLOCK_BYTES_MAX: usize = 1 << 30;
/// Bytes of the length in front of each response.
const LENGTH_BYTES: usize = 4;
/// Bytes of one answer to a read of records; the reader asks again from where it ends.
const READ_BYTES_MAX: usize = 4 << 20;
/// Longest deadline a client can ask for.
const DEADLINE_MAX: Duration = Duration::from_secs(3600);

/// A request of this process.
#[derive(Debug)]
pub(crate) enum Command {
    /// Like a client's request over the network, with every right.
    Request { group: GroupId, deadline: Duration, body: ClientBody, reply: oneshot::Sender<ReplyBody> },
    /// How all groups of the shard stand.
    Statuses(oneshot::Sender<Vec<GroupStatus>>),
    /// Hand every leadership to another node; answered when none is left or nobody takes it.
    HandOver(oneshot::Sender<()>),
    /// Stop: answer what is open, flush what is queued, end.
    Stop,
}

/// Says that nobody takes commands any more. A caller that sees it after its push gives up; what was
/// pushed before is answered, or dropped with the ring.
pub(crate) struct Closing(pub(crate) Arc<AtomicBool>);

impl Drop for Closing {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// Everything a shard's loop holds.
pub(crate) struct Driver {
    pub(crate) shard_id: ShardId,
    pub(crate) node: NodeId,
    pub(crate) shard: Shard,
    pub(crate) origin: Instant,
    pub(crate) record_bytes_max: usize,
    pub(crate) block_bytes_max: usize,
    pub(crate) doorbell: Arc<Doorbell>,
    pub(crate) port: ShardPort,
    /// Before `commands`: dropped first, also by a panic, so that no caller waits for a dead shard.
    pub(crate) closing: Closing,
    pub(crate) commands: Consumer<Command>,
    pub(crate) appends: Producer<Queued>,
    pub(crate) written: Consumer<Written>,
    pub(crate) fetches: Producer<Fetch>,
    pub(crate) fetched: Consumer<Fetched>,
    pub(crate) findings: Consumer<Finding>,
    pub(crate) machines: BTreeMap<GroupId, Option<Box<dyn Machine>>>,
    pub(crate) counters: Arc<ShardCounters>,
    pub(crate) on_fenced: Box<dyn Fn(ShardId, iroh_raft_storage::StorageError)>,
}

struct Open {
    calls: slab::Slab<oneshot::Sender<ReplyBody>>,
    queries: HashMap<Token, Bytes>,
}

struct Loop {
    driver: Driver,
    now: Timestamp,
    outputs: Outputs,
    outbox: Outbox,
    open: Open,
    /// Flushes that found the writer's ring full, in order. While there is one, proposals are
    /// refused as busy; what peers send stays bounded by their windows.
    appends_waiting: VecDeque<Queued>,
    /// Flushes handed to the writer and not yet known durable; at most the ring's bound.
    persisted: FlushSeq,
    /// Fetches that found the reader's ring full; bounded by the groups' open fetches.
    fetches_waiting: VecDeque<Fetch>,
    /// Inputs that the driver itself makes: applied indexes.
    loopback: Vec<Input>,
    wall: WallTime,
    hand_over: Option<oneshot::Sender<()>>,
    is_stopping: bool,
    is_fenced: bool,
    is_space_low: bool,
}

impl Driver {
    /// Runs until told to stop.
    pub(crate) async fn run(self) {
        let outbox = Outbox::new(self.shard_id);
        let mut this = Loop {
            now: Timestamp(0),
            outputs: Outputs::default(),
            outbox,
            open: Open { calls: slab::Slab::new(), queries: HashMap::new() },
            appends_waiting: VecDeque::new(),
            persisted: FlushSeq(0),
            fetches_waiting: VecDeque::new(),
            loopback: Vec::new(),
            wall: WallTime(0),
            hand_over: None,
            is_stopping: false,
            is_fenced: false,
            is_space_low: false,
            driver: self,
        };
        loop {
            this.turn();
            if this.is_stopping && this.is_drained() {
                this.finish();
                return;
            }
            if this.has_input() {
                glommio::executor().yield_if_needed().await;
            } else {
                this.sleep().await;
            }
        }
    }
}

impl Loop {
    fn turn(&mut self) {
        ShardCounters::add(&self.driver.counters.turns, 1);
        self.now = Timestamp(u64::try_from(self.driver.origin.elapsed().as_nanos()).unwrap_or(u64::MAX));
        self.take_wall_clock();
        self.take_written();
        self.take_fetched();
        self.take_findings();
        let mut loopback = std::mem::take(&mut self.loopback);
        loopback.drain(..).for_each(|input| self.step(input));
        self.loopback = loopback;
        self.take_from_bridge();
        self.take_commands();
        self.step(Input::EndTurn);
        self.carry_out();
    }

    fn step(&mut self, input: Input) {
        self.driver.shard.step(self.now, input, &mut self.outputs);
    }

    fn take_wall_clock(&mut self) {
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let wall = WallTime(u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX));
        if wall != self.wall {
            self.wall = wall;
            self.step(Input::Wall(wall));
        }
    }

    fn take_written(&mut self) {
        while let Some(written) = self.driver.written.pop() {
            match written {
                Written::Upto(seq) => {
                    self.persisted = seq;
                    self.step(Input::Persisted { seq });
                    self.outbox.release(seq);
                }
                Written::SpaceLow(is_low) => {
                    self.is_space_low = is_low;
                    tracing::warn!(shard = %self.driver.shard_id, is_low, "space on the disk");
                }
                Written::Failed(error) => {
                    self.is_fenced = true;
                    self.outbox.drop_gated();
                    self.appends_waiting.clear();
                    self.step(Input::PersistFailed);
                    (self.driver.on_fenced)(self.driver.shard_id, error);
                }
            }
        }
        while let Some(queued) = self.appends_waiting.pop_front() {
            if let Err(queued) = self.driver.appends.push(queued) {
                self.appends_waiting.push_front(queued);
                break;
            }
        }
    }

    fn take_fetched(&mut self) {
        while let Some(Fetched { id, group, result }) = self.driver.fetched.pop() {
            self.step(Input::Fetched { id, group, result });
        }
        while let Some(fetch) = self.fetches_waiting.pop_front() {
            if let Err(fetch) = self.driver.fetches.push(fetch) {
                self.fetches_waiting.push_front(fetch);
                break;
            }
        }
    }

    fn take_findings(&mut self) {
        while let Some(Finding { group, damage }) = self.driver.findings.pop() {
            self.step(Input::Damaged { group, damage });
        }
    }

    fn take_from_bridge(&mut self) {
        for _ in 0..BRIDGE_ITEMS_PER_TURN {
            let Some(item) = self.driver.port.from_bridge.pop() else { break };
            match item {
                // What comes now would be flushed and answered without end; to the peers this node is gone.
                ToShard::Peer { .. } if self.is_stopping => {}
                ToShard::Peer { frame, .. } => {
                    for message in frame.messages() {
                        self.step(Input::Message(message));
                    }
                }
                ToShard::Client { connection, rights, frame } => {
                    for request in frame.requests() {
                        self.handle_client(connection, rights, request);
                    }
                }
                ToShard::ClientGone { connection } => self.outbox.forget_client(connection),
                ToShard::Unreachable { node } => self.step(Input::Unreachable { node }),
            }
        }
    }

    fn take_commands(&mut self) {
        for _ in 0..COMMANDS_PER_TURN {
            let Some(command) = self.driver.commands.pop() else { break };
            match command {
                Command::Request { group, deadline, body, reply } => {
                    let request = self.open.calls.insert(reply) as u64;
                    self.handle_request(Token { origin: 0, request }, group, deadline, body);
                }
                Command::Statuses(reply) => {
                    // The asker may be gone: then nobody waits for it.
                    let _ = reply.send(self.driver.shard.statuses().collect());
                }
                Command::HandOver(reply) => {
                    let led: Vec<GroupId> = self.led_groups().collect();
                    for group in led {
                        self.step(Input::TransferLeader { group, to: None });
                    }
                    self.hand_over = Some(reply);
                }
                Command::Stop => self.is_stopping = true,
            }
        }
    }

    fn led_groups(&self) -> impl Iterator<Item = GroupId> {
        let led = self.driver.shard.statuses().filter(|status| status.role == iroh_raft_core::Role::Leader);
        led.map(|status| status.group)
    }

    fn handle_client(&mut self, connection: u64, rights: Rights, request: ClientRequest) {
        let token = Token { origin: connection, request: request.request };
        let is_allowed = match request.body {
            ClientBody::Append { .. } => rights.append,
            ClientBody::Query { .. } | ClientBody::ReadRecords { .. } | ClientBody::Status => rights.read,
        };
        if is_allowed {
            let deadline = Duration::from_millis(u64::from(request.deadline_ms));
            self.handle_request(token, request.group, deadline, request.body);
        } else {
            self.answer(token, request.group, ReplyBody::Failed(RequestError::Denied));
        }
    }

    fn handle_request(&mut self, token: Token, group: GroupId, deadline: Duration, body: ClientBody) {
        ShardCounters::add(&self.driver.counters.requests, 1);
        if self.is_stopping {
            return self.answer(token, group, ReplyBody::Failed(RequestError::ShuttingDown));
        }
        let deadline = self.now.after(deadline.min(DEADLINE_MAX));
        match body {
            ClientBody::Append { block, answer } => match self.check_block(group, &block, answer) {
                Ok(()) => self.step(Input::Propose(Propose { token, group, block, answer, deadline })),
                Err(error) => self.answer(token, group, ReplyBody::Failed(error)),
            },
            ClientBody::Query { is_linearizable: false, query } => {
                self.answer_query(token, group, None, &query);
            }
            ClientBody::Query { is_linearizable: true, query } => {
                if self.open.queries.contains_key(&token) {
                    let what = "a request number that is still open";
                    return self.answer(token, group, ReplyBody::Failed(RequestError::Invalid { what }));
                }
                self.open.queries.insert(token, query);
                self.step(Input::Read { token, group, deadline });
            }
            ClientBody::ReadRecords { from, bytes_max } => {
                let bytes_max = (bytes_max as usize).min(READ_BYTES_MAX);
                self.step(Input::ReadRecords { token, group, from, bytes_max, deadline });
            }
            ClientBody::Status => {
                let body = match self.driver.shard.status(group) {
                    Some(status) => ReplyBody::Status(status),
                    None => ReplyBody::Failed(RequestError::UnknownGroup),
                };
                self.answer(token, group, body);
            }
        }
    }

    fn check_block(&self, group: GroupId, block: &RecordBlock, answer: AnswerOn) -> Result<(), RequestError> {
        let too_large = |bytes: usize, bytes_max: usize| {
            Err(RequestError::TooLarge { bytes: bytes as u64, bytes_max: bytes_max as u64 })
        };
        if self.is_fenced {
            return Err(RequestError::Fenced);
        }
        if !self.appends_waiting.is_empty() {
            return Err(RequestError::busy(BusyReason::Writer));
        }
        if self.is_space_low {
            return Err(RequestError::busy(BusyReason::Space));
        }
        let largest = block.largest();
        if largest > self.driver.record_bytes_max {
            return too_large(largest, self.driver.record_bytes_max);
        }
        if block.as_bytes().len() > self.driver.block_bytes_max {
            return too_large(block.as_bytes().len(), self.driver.block_bytes_max);
        }
        let machine = match self.driver.machines.get(&group) {
            Some(Some(machine)) => machine,
            // Its state machine panicked: what it would apply to is no longer known.
            Some(None) => return Err(RequestError::Quarantined),
            None if answer == AnswerOn::Apply && self.driver.shard.status(group).is_some() => {
                return Err(RequestError::Invalid { what: "a command for a group without a state machine" });
            }
            None => return Ok(()),
        };
        if block.records().all(|record| machine.is_command(record)) {
            Ok(())
        } else {
            Err(RequestError::Invalid { what: "a record is not a command of the group's state machine" })
        }
    }

    /// Says everything that the core wants done to whoever does it.
    fn carry_out(&mut self) {
        let mut outputs = std::mem::take(&mut self.outputs);
        if let Some(append) = outputs.append.take() {
            self.hand_to_writer(append);
        }
        for send in outputs.sends.drain(..) {
            self.outbox.push(send.message, send.after.filter(|seq| *seq > self.persisted));
        }
        for fetch in outputs.fetches.drain(..) {
            if let Err(fetch) = self.driver.fetches.push(fetch) {
                self.fetches_waiting.push_back(fetch);
            }
        }
        for apply in outputs.applies.drain(..) {
            self.apply(apply);
        }
        for reply in outputs.replies.drain(..) {
            self.handle_reply(reply);
        }
        for event in outputs.events.drain(..) {
            self.report(event);
        }
        outputs.clear();
        self.outputs = outputs;
        let lost = self.outbox.flush(&self.driver.port.to_bridge, &self.driver.counters);
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

    fn hand_to_writer(&mut self, append: Append) {
        if self.is_fenced {
            return;
        }
        let queued = Queued { append, at: Instant::now() };
        if !self.appends_waiting.is_empty() {
            self.appends_waiting.push_back(queued);
        } else if let Err(queued) = self.driver.appends.push(queued) {
            self.appends_waiting.push_back(queued);
        }
    }

    fn handle_reply(&mut self, reply: Reply) {
        match reply {
            Reply::Appended { token, group, first, count, index, term } => {
                ShardCounters::add(&self.driver.counters.records_acked, u64::from(count));
                self.answer(token, group, ReplyBody::Appended { first, count, index, term });
            }
            Reply::ReadReady { token, group, index } => {
                if let Some(query) = self.open.queries.remove(&token) {
                    self.answer_query(token, group, Some(index), &query);
                }
            }
            Reply::Records { token, group, from, entries, end } => {
                let batches = entries.into_iter().map(|entry| entry.data).collect();
                self.answer(token, group, ReplyBody::Records { from, end, batches });
            }
            Reply::Failed { token, group, error } => {
                self.open.queries.remove(&token);
                if matches!(error, RequestError::Busy { .. }) {
                    ShardCounters::add(&self.driver.counters.busy, 1);
                }
                self.answer(token, group, ReplyBody::Failed(error));
            }
        }
    }

    fn answer_query(&mut self, token: Token, group: GroupId, index: Option<Index>, query: &[u8]) {
        let body = match self.driver.machines.get(&group) {
            Some(Some(machine)) => match catch_unwind(AssertUnwindSafe(|| machine.query(query))) {
                Ok(Ok(answer)) => {
                    let applied = || self.driver.shard.status(group).map(|status| status.applied);
                    let index = index.or_else(applied).unwrap_or_default();
                    ReplyBody::Answer { index, answer: answer.into() }
                }
                Ok(Err(_)) => {
                    ReplyBody::Failed(RequestError::Invalid { what: "not a query of the state machine" })
                }
                Err(_) => {
                    ReplyBody::Failed(RequestError::Invalid { what: "the state machine panicked over it" })
                }
            },
            Some(None) => ReplyBody::Failed(RequestError::Quarantined),
            None if self.driver.shard.status(group).is_some() => ReplyBody::Failed(RequestError::Invalid {
                what: "a query to a group without a state machine",
            }),
            None => ReplyBody::Failed(RequestError::UnknownGroup),
        };
        self.answer(token, group, body);
    }

    fn answer(&mut self, token: Token, group: GroupId, body: ReplyBody) {
        if token.origin != 0 {
            let bytes = match &body {
                ReplyBody::Responses { responses, .. } => responses.as_bytes().len(),
                ReplyBody::Answer { answer, .. } => answer.len(),
                _ => 0,
            };
            let body = match body {
                _ if bytes <= ANSWER_BYTES_MAX => body,
                // What was applied stays applied.
                ReplyBody::Responses { .. } => {
                    ReplyBody::Failed(RequestError::OutcomeUnknown { leader: None })
                }
                _ => {
                    let (bytes, bytes_max) = (bytes as u64, ANSWER_BYTES_MAX as u64);
                    ReplyBody::Failed(RequestError::TooLarge { bytes, bytes_max })
                }
            };
            self.outbox.push_reply(token, group, body);
        } else if let Some(call) = self.open.calls.try_remove(token.request as usize) {
            // The caller may have stopped waiting.
            let _ = call.send(body);
        }
    }

    fn apply(&mut self, apply: Apply) {
        let Apply { group, entries, waiters } = apply;
        let Some(last) = entries.last().map(|entry| entry.index) else { return };
        let Some(Some(machine)) = self.driver.machines.get_mut(&group) else {
            // Its state machine panicked; the log goes on. The commands are in it: a retry would put
            // them in twice, so their outcome is unknown, not refused.
            for waiter in waiters {
                self.answer(
                    waiter.token,
                    group,
                    ReplyBody::Failed(RequestError::OutcomeUnknown { leader: None }),
                );
            }
            self.loopback.push(Input::Applied { group, index: last });
            return;
        };
        let machine = machine.as_mut();
        // What a panic left unfinished is not looked at again: the machine is dropped.
        let responses = catch_unwind(AssertUnwindSafe(|| responses_of(group, &entries, &waiters, machine)));
        match responses {
            Ok(responses) => {
                for (responses, waiter) in responses.iter().zip(&waiters) {
                    if responses.iter().map(|response| response.len() + LENGTH_BYTES).sum::<usize>()
                        > BLOCK_BYTES_MAX
                    {
                        // No answer is that long; the commands are applied.
                        let error = RequestError::OutcomeUnknown { leader: None };
                        self.answer(waiter.token, group, ReplyBody::Failed(error));
                        continue;
                    }
                    let body = ReplyBody::Responses {
                        first: waiter.first,
                        index: waiter.index,
                        term: waiter.term,
                        responses: RecordBlock::from_records(responses),
                    };
                    ShardCounters::add(&self.driver.counters.records_acked, u64::from(waiter.count));
                    self.answer(waiter.token, group, body);
                }
            }
            Err(_) => {
                tracing::error!(%group, upto = %last, "the state machine panicked: it is taken out on this node");
                self.driver.machines.insert(group, None);
                for waiter in waiters {
                    self.answer(
                        waiter.token,
                        group,
                        ReplyBody::Failed(RequestError::OutcomeUnknown { leader: None }),
                    );
                }
            }
        }
        self.loopback.push(Input::Applied { group, index: last });
    }

    fn report(&mut self, event: Event) {
        let counters = &self.driver.counters;
        match event {
            Event::LeaderChanged { group, term, leader } => {
                if leader == Some(self.driver.node) {
                    ShardCounters::add(&counters.leaderships_gained, 1);
                }
                tracing::debug!(%group, %term, ?leader, "leader changed");
            }
            Event::Quarantined { group, reason } => {
                ShardCounters::add(&counters.groups_quarantined, 1);
                tracing::error!(%group, reason, "group quarantined on this node; the others go on");
            }
            Event::MessageRefused { group, from, reason } => {
                ShardCounters::add(&counters.messages_refused, 1);
                tracing::warn!(%group, %from, ?reason, "message of a peer refused");
            }
            Event::Fenced => {
                tracing::error!(shard = %self.driver.shard_id, "shard fenced after a failed write");
            }
        }
    }

    fn has_input(&self) -> bool {
        !self.loopback.is_empty()
            || !self.outputs.is_empty()
            || !self.driver.written.is_empty()
            || !self.driver.fetched.is_empty()
            || !self.driver.findings.is_empty()
            || !self.driver.port.from_bridge.is_empty()
            || !self.driver.commands.is_empty()
    }

    /// Whether nothing is on its way to the disk and nobody waits for an answer to be sent.
    fn is_drained(&self) -> bool {
        let is_flushed = self.appends_waiting.is_empty() && self.driver.appends.is_empty();
        self.is_fenced || (is_flushed && !self.outbox.is_gated())
    }

    /// Answers what is still open.
    fn finish(&mut self) {
        self.driver.closing.0.store(true, Ordering::SeqCst);
        self.take_written();
        self.take_commands();
        self.carry_out();
        for call in std::mem::take(&mut self.open.calls) {
            let _ = call.1.send(ReplyBody::Failed(RequestError::OutcomeUnknown { leader: None }));
        }
    }

    async fn sleep(&mut self) {
        ShardCounters::add(&self.driver.counters.sleeps, 1);
        let elapsed = Timestamp(u64::try_from(self.driver.origin.elapsed().as_nanos()).unwrap_or(u64::MAX));
        // A full ring towards the bridge is looked at again soon: its consumer does not ring back.
        let retry = self.outbox.is_blocked().then(|| self.now.after(Duration::from_millis(1)));
        let wake = [self.driver.shard.next_wakeup(), retry].into_iter().flatten().min();
        let mut timer = wake.map(|at| Timer::new(at.since(elapsed)));
        let is_woken = Cell::new(false);
        poll_fn(|context: &mut Context<'_>| {
            self.driver.doorbell.arm(context.waker());
            let is_due = timer.as_mut().is_some_and(|timer| Pin::new(timer).poll(context).is_ready());
            is_woken.set(is_due || self.has_input());
            if is_woken.get() { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
        self.driver.doorbell.disarm();
    }
}

/// Applies the records of `entries` and collects the responses that `waiters` are for.
fn responses_of(
    group: GroupId,
    entries: &[iroh_raft_core::LogEntry],
    waiters: &[iroh_raft_core::Waiter],
    machine: &mut dyn Machine,
) -> Vec<Vec<Vec<u8>>> {
    let mut answered: Vec<Vec<Vec<u8>>> = waiters.iter().map(|_| Vec::new()).collect();
    let mut next = 0;
    for entry in entries.iter().filter(|entry| !entry.data.is_empty()) {
        // Conf changes carry no batch; batches were checked when they entered the log.
        let Ok(batch) = Batch::parse(&entry.data) else { continue };
        for (offset, record) in batch.records() {
            let context = ApplyContext { group, index: entry.index, offset, at: batch.at() };
            let response = machine.apply(context, record);
            while waiters.get(next).is_some_and(|waiter| waiter.first.0 + u64::from(waiter.count) <= offset.0)
            {
                next += 1;
            }
            if let (Some(waiter), Some(responses)) = (waiters.get(next), answered.get_mut(next))
                && waiter.first <= offset
            {
                responses.push(response);
            }
        }
    }
    answered
}

//! The clients: appends, commands, linearizable reads, reads of records, over the real frames, and what consumers
//! need of them. A timeout is unknown, never failure.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use futures_channel::{mpsc, oneshot};
use iroh_raft_core::batch::{Batch, RecordBlock};
use iroh_raft_core::{
    AnswerOn, BusyReason, Consistency, GroupId, NodeId, Offset, Owner, RequestError, Retry,
};
use iroh_raft_netbridge::port::{Rights, ToShard};
use iroh_raft_netbridge::wire::{
    ClientBody, ClientFrame, ClientRequest, FrameLimits, OutFrame, ReplyBody, ReplyFrame, RequestFrameBuilder,
};
use madsim::task::{JoinHandle, spawn_local};
use madsim::time::timeout;
use rand::Rng;
use rand::rngs::SmallRng;

use crate::bank;
use crate::checkers::linear::{Action, Operation};
use crate::checkers::{acknowledged_read, ensure, record_hash};
use crate::clock::{elapsed, sleep};
use crate::consumers;
use crate::machine::{self, Change};
use crate::network::{joined, parse};
use crate::operator;
use crate::plan::{GroupPlan, within};
use crate::sessions;
use crate::sim::Shared;

/// How long a client asks a node to work on a request, and how much longer it listens.
const DEADLINE: Duration = Duration::from_secs(3);
const SLACK: Duration = Duration::from_secs(1);
/// Requests that a client has under way at most.
const IN_FLIGHT_MAX: u32 = 8;
/// Nodes that are asked before a client gives up on a request.
const ATTEMPTS: u32 = 4;
/// Registers in use at a time, and for how long: histories of one stay short.
const REGISTERS: u32 = 3;
const REGISTERS_FOR: Duration = Duration::from_secs(3);
/// Bytes of one read at most.
const READ_BYTES_MAX: u32 = 64 << 10;
/// Records above this come in twos at most.
const LARGE_BYTES: usize = 1 << 10;
/// What records are filled up with.
pub(crate) const RECORD_FILLER: u8 = b'.';
/// Groups that have a consumer following them.
const TAILED_MAX: usize = 4;

#[derive(Default, Debug)]
pub(crate) struct Clients {
    open: BTreeMap<u64, oneshot::Sender<ReplyBody>>,
    /// Tails, by their connections: what comes on one stays in order.
    tailing: BTreeMap<u64, mpsc::UnboundedSender<ReplyBody>>,
    /// Registers asked for, by request.
    asked: BTreeMap<u64, u32>,
    requests: u64,
    values: u64,
    pub(crate) leaders: BTreeMap<GroupId, NodeId>,
    /// Accounts of each bank that are known to all.
    pub(crate) accounts: BTreeMap<GroupId, Vec<u64>>,
    /// Next record of each consumer.
    pub(crate) tails: BTreeMap<GroupId, Offset>,
    pub(crate) operations: u64,
    pub(crate) is_over: bool,
    /// Nothing new is begun for a while.
    pub(crate) is_resting: bool,
}

impl Clients {
    fn forget(&mut self, request: u64) {
        self.open.remove(&request);
        self.asked.remove(&request);
    }
}

/// No answer that says anything.
#[derive(Clone, Debug)]
pub(crate) enum Trouble {
    /// It was not done, for certain.
    Refused,
    /// Nobody knows.
    Unknown,
}

pub(crate) fn spawn(sim: &Shared) -> Vec<JoinHandle<()>> {
    let writers = (0..sim.plan.writers).map(|_| spawn_local(run_writer(sim.clone())));
    let followed = sim.plan.groups.iter().take(TAILED_MAX);
    let consumers = followed.map(|group| spawn_local(consumers::run(sim.clone(), group.id)));
    let sessions = (0..sim.plan.sessions).map(|_| spawn_local(sessions::run(sim.clone())));
    let operator = std::iter::once(spawn_local(operator::run(sim.clone())));
    writers.chain(consumers).chain(sessions).chain(operator).collect()
}

async fn run_writer(sim: Shared) {
    let mut random = sim.random();
    let in_flight = Rc::new(Cell::new(0u32));
    loop {
        sleep(within(&mut random, sim.plan.think)).await;
        if sim.clients.borrow().is_over && in_flight.get() == 0 {
            return;
        }
        let is_idle = sim.clients.borrow().is_over || sim.clients.borrow().is_resting;
        if is_idle || in_flight.get() == IN_FLIGHT_MAX {
            continue;
        }
        in_flight.set(in_flight.get() + 1);
        sim.clients.borrow_mut().operations += 1;
        let (sim, in_flight, random) = (sim.clone(), in_flight.clone(), sim.random());
        spawn_local(async move {
            operate(&sim, random).await;
            in_flight.set(in_flight.get() - 1);
        });
    }
}

async fn operate(sim: &Shared, mut random: SmallRng) {
    // The first groups are asked more often.
    let count = sim.plan.groups.len();
    let at = random.random_range(0..count).min(random.random_range(0..count));
    let group = sim.plan.groups[at].clone();
    let dice = random.random_range(0..100);
    match (group.has_machine, dice) {
        (true, 0..90) if group.is_bank => bank::operate(sim, &mut random, &group).await,
        (true, 0..40) => change(sim, &mut random, &group).await,
        (true, 40..90) => query(sim, &mut random, &group).await,
        (false, 0..80) => drop(append(sim, &mut random, &group).await),
        (false, 80..85) => consumers::meddle(sim, &mut random, &group).await,
        _ => {
            let end = sim.checks.borrow().commits.records(group.id).len() as u64;
            let from = Offset(random.random_range(0..=end));
            let node = *pick(&mut random, &group.hosts);
            let bytes_max = random.random_range(1..=READ_BYTES_MAX);
            let _ = read(sim, &mut random, node, group.id, from, bytes_max).await;
        }
    }
}

pub(crate) fn pick<'a, T>(random: &mut SmallRng, from: &'a [T]) -> &'a T {
    &from[random.random_range(0..from.len())]
}

/// Asks one node.
pub(crate) async fn call(
    sim: &Shared,
    random: &mut SmallRng,
    node: NodeId,
    group: GroupId,
    body: ClientBody,
) -> Result<ReplyBody, Trouble> {
    let (sender, receiver) = oneshot::channel();
    let request = {
        let mut clients = sim.clients.borrow_mut();
        clients.requests += 1;
        let request = clients.requests;
        clients.open.insert(request, sender);
        if let ClientBody::Query { query, .. } = &body
            && let Ok(register) = <[u8; 4]>::try_from(&query[..])
        {
            clients.asked.insert(request, u32::from_le_bytes(register));
        }
        request
    };
    if !send(sim, random, node, request, ClientRequest { request, group, deadline_ms: deadline_ms(), body })
        .await
    {
        // Nobody listens, or the server answers that its ring is full.
        sim.clients.borrow_mut().forget(request);
        return Err(Trouble::Refused);
    }
    let answer = timeout(DEADLINE + SLACK, receiver).await;
    sim.clients.borrow_mut().forget(request);
    match answer {
        Ok(Ok(body)) => Ok(body),
        _ => Err(Trouble::Unknown),
    }
}

fn deadline_ms() -> u32 {
    u32::try_from(DEADLINE.as_millis()).expect("a short deadline")
}

/// Hands a request to a node; not, when nobody listens there or its ring is full.
async fn send(
    sim: &Shared,
    random: &mut SmallRng,
    node: NodeId,
    connection: u64,
    request: ClientRequest,
) -> bool {
    sleep(within(random, sim.plan.delay)).await;
    let nodes = sim.nodes.borrow();
    // It knows from the connection, which ends with the process.
    let shard = nodes.shard_of(node, request.group);
    let mut builder = RequestFrameBuilder::default();
    builder.push(&request);
    let bytes = joined(&builder.finish(shard));
    let Some(port) = nodes.port(node, shard) else { return false };
    let (header, body) = parse(&bytes, &FrameLimits::REQUEST).expect("whole").expect("sound");
    let frame = ClientFrame::decode(&header, body, &FrameLimits::REQUEST).expect("just made");
    let (rights, owner) = (Rights { append: true, read: true, manage: true }, Owner(1));
    port.push(ToShard::Client { connection, rights, owner, frame }).is_ok()
}

/// Opens a tail on a connection of its own, whose number is its name as well.
pub(crate) async fn open_tail(
    sim: &Shared,
    random: &mut SmallRng,
    node: NodeId,
    group: GroupId,
    from: Offset,
    granted_bytes: u32,
) -> Option<(u64, mpsc::UnboundedReceiver<ReplyBody>)> {
    let (sender, receiver) = mpsc::unbounded();
    let connection = next_request(sim);
    sim.clients.borrow_mut().tailing.insert(connection, sender);
    let body = ClientBody::Tail { tail: connection, from, granted_bytes };
    let request = ClientRequest { request: connection, group, deadline_ms: deadline_ms(), body };
    let is_sent = send(sim, random, node, connection, request).await;
    if !is_sent {
        sim.clients.borrow_mut().tailing.remove(&connection);
    }
    is_sent.then_some((connection, receiver))
}

/// Grants a tail bytes in all, or ends it. It may get lost.
pub(crate) async fn tell_tail(
    sim: &Shared,
    random: &mut SmallRng,
    node: NodeId,
    connection: u64,
    group: GroupId,
    granted_bytes: Option<u64>,
) {
    let tail = connection;
    let grant = granted_bytes.map(|granted_bytes| ClientBody::GrantTail { tail, granted_bytes });
    let body = grant.unwrap_or(ClientBody::EndTail { tail });
    let request = ClientRequest { request: next_request(sim), group, deadline_ms: deadline_ms(), body };
    send(sim, random, node, connection, request).await;
}

/// The connection of a tail is gone.
pub(crate) fn leave(sim: &Shared, node: NodeId, connection: u64, group: GroupId) {
    sim.clients.borrow_mut().tailing.remove(&connection);
    let nodes = sim.nodes.borrow();
    if let Some(port) = nodes.port(node, nodes.shard_of(node, group)) {
        // Lost, the tail ends with its deadline.
        let _ = port.push(ToShard::ClientGone { connection });
    }
}

fn next_request(sim: &Shared) -> u64 {
    let mut clients = sim.clients.borrow_mut();
    clients.requests += 1;
    clients.requests
}

/// A node answers.
pub(crate) fn answer(sim: &Shared, node: NodeId, connection: u64, frame: &OutFrame) {
    let bytes = joined(frame);
    let (header, body) = parse(&bytes, &FrameLimits::REPLY).expect("whole").expect("sound");
    let replies = ReplyFrame::decode(&header, body, &FrameLimits::REPLY).expect("just made");
    for reply in replies.replies() {
        // Who asked hears nothing, and must take it for unknown.
        if sim.checks.borrow().recoveries.is_void(node, reply.group) {
            sim.mark("answer of a history that was given up");
            continue;
        }
        let tail = sim.clients.borrow().tailing.get(&connection).cloned();
        if let Some(tail) = tail {
            // Its consumer may be leaving; what is told to a tail is answered on its connection, too.
            if reply.body != ReplyBody::Granted {
                let _ = tail.unbounded_send(reply.body);
            }
            continue;
        }
        let checked = ensure(
            reply.request == connection || reply.body == ReplyBody::Granted,
            "answers go to who asked",
            || format!("node {node} answers {} on connection {connection}", reply.request),
        );
        sim.checks.borrow_mut().note(checked);
        let asked = sim.clients.borrow().asked.get(&reply.request).copied();
        if let (Some(register), ReplyBody::Answer(answer)) = (asked, &reply.body)
            && let Some(value) = machine::value_of(&answer.bytes)
        {
            let mut checks = sim.checks.borrow_mut();
            let checked = checks.answers.answered(node, reply.group, register, &answer.freshness, value);
            checks.note(checked);
        }
        let sim = sim.clone();
        spawn_local(async move {
            let mut random = sim.random();
            sleep(within(&mut random, sim.plan.delay)).await;
            let waiting = sim.clients.borrow_mut().open.remove(&reply.request);
            if let Some(waiting) = waiting {
                // It may have stopped waiting at this very moment.
                let _ = waiting.send(reply.body);
            }
        });
    }
}

/// Asks for something that the leader has to do, wherever that is.
pub(crate) async fn ask(
    sim: &Shared,
    random: &mut SmallRng,
    group: &GroupPlan,
    body: ClientBody,
) -> Result<(Duration, ReplyBody), Trouble> {
    // Now and then somebody asks without having heard of the last election.
    let hint = sim.clients.borrow().leaders.get(&group.id).copied();
    let mut node = hint.filter(|_| random.random_bool(0.75));
    for _ in 0..ATTEMPTS {
        let asked = node.unwrap_or_else(|| *pick(random, &group.hosts));
        let called = elapsed();
        let error = match call(sim, random, asked, group.id, body.clone()).await {
            Ok(ReplyBody::Failed(error)) => error,
            Ok(body) => {
                sim.clients.borrow_mut().leaders.insert(group.id, asked);
                return Ok((called, body));
            }
            Err(Trouble::Unknown) => {
                sim.clients.borrow_mut().leaders.remove(&group.id);
                return Err(Trouble::Unknown);
            }
            Err(Trouble::Refused) => RequestError::busy(BusyReason::Ring),
        };
        if error.retry() == Retry::OutcomeUnknown {
            sim.mark("append unknown");
            return Err(Trouble::Unknown);
        }
        node = match error {
            RequestError::NotLeader { leader } => {
                sim.mark("append refused: not the leader");
                leader
            }
            RequestError::Busy { .. } => {
                sim.mark("append refused: busy");
                None
            }
            _ => None,
        };
        sim.clients.borrow_mut().leaders.remove(&group.id);
        sleep(within(random, sim.plan.think)).await;
    }
    Err(Trouble::Refused)
}

/// A record that nobody else appends.
pub(crate) fn record(sim: &Shared, random: &mut SmallRng) -> Vec<u8> {
    let mut record = unique(sim).to_le_bytes().to_vec();
    record.resize(random.random_range(8..=sim.plan.record_bytes_max.max(8)), RECORD_FILLER);
    record
}

/// Appends some records of its own.
pub(crate) async fn append(sim: &Shared, random: &mut SmallRng, group: &GroupPlan) -> Result<(), Trouble> {
    let count = random.random_range(1..=if sim.plan.record_bytes_max > LARGE_BYTES { 2 } else { 8 });
    let records: Vec<Vec<u8>> = (0..count).map(|_| record(sim, random)).collect();
    let block = RecordBlock::from_records(&records);
    let body = ClientBody::Append { block, answer: AnswerOn::Commit, run: None };
    match ask(sim, random, group, body).await? {
        (_, ReplyBody::Appended { first, count, .. }) => {
            let hashes: Vec<u64> = records.iter().map(|record| record_hash(record)).collect();
            acknowledge(sim, group.id, first, count, &hashes);
            sim.mark("append answered");
            Ok(())
        }
        (_, other) => wrong(sim, group.id, &other),
    }
}

pub(crate) fn acknowledge(sim: &Shared, group: GroupId, first: Offset, count: u32, hashes: &[u64]) {
    let mut checks = sim.checks.borrow_mut();
    let checks = &mut *checks;
    let checked = ensure(count as usize == hashes.len(), "all records of a request or none", || {
        format!("group {group}: {count} of {} records at {first}", hashes.len())
    });
    let checked = checked.and_then(|()| checks.acknowledged.appended(group, first, hashes, &checks.commits));
    checks.note(checked);
}

pub(crate) fn wrong<T>(sim: &Shared, group: GroupId, body: &ReplyBody) -> Result<T, Trouble> {
    let checked = ensure(false, "answers fit their requests", || format!("group {group}: {body:?}"));
    sim.checks.borrow_mut().note(checked);
    Err(Trouble::Refused)
}

pub(crate) fn unique(sim: &Shared) -> u64 {
    let mut clients = sim.clients.borrow_mut();
    clients.values += 1;
    clients.values
}

pub(crate) fn register(random: &mut SmallRng) -> u32 {
    let age = elapsed().as_millis() / REGISTERS_FOR.as_millis();
    u32::try_from(age).expect("a short run") * REGISTERS + random.random_range(0..REGISTERS)
}

/// Writes or swaps a register.
pub(crate) async fn change(sim: &Shared, random: &mut SmallRng, group: &GroupPlan) {
    let register = register(random);
    let value = unique(sim);
    let change = if random.random_bool(0.5) {
        Change::Write { value }
    } else {
        Change::Swap { expected: random.random_range(value.saturating_sub(20)..value), value }
    };
    let body = command(register, change);
    let called = elapsed();
    let (called, outcome) = match ask(sim, random, group, body).await {
        Ok((called, body)) => (called, Ok(body)),
        Err(trouble) => (called, Err(trouble)),
    };
    changed(sim, group, register, change, called, outcome);
}

/// Writes a register at this very node; whether it was done.
pub(crate) async fn write_register(
    sim: &Shared,
    random: &mut SmallRng,
    node: NodeId,
    group: &GroupPlan,
    register: u32,
) -> bool {
    let change = Change::Write { value: unique(sim) };
    let called = elapsed();
    let outcome = match call(sim, random, node, group.id, command(register, change)).await {
        Ok(ReplyBody::Failed(error)) if error.retry() == Retry::OutcomeUnknown => Err(Trouble::Unknown),
        Ok(ReplyBody::Failed(_)) => Err(Trouble::Refused),
        outcome => outcome,
    };
    let is_done = outcome.is_ok();
    changed(sim, group, register, change, called, outcome);
    is_done
}

fn command(register: u32, change: Change) -> ClientBody {
    let block = RecordBlock::from_records(&[machine::encode(register, change)]);
    ClientBody::Append { block, answer: AnswerOn::Apply, run: None }
}

/// Puts what came of a change into the history of its register.
fn changed(
    sim: &Shared,
    group: &GroupPlan,
    register: u32,
    change: Change,
    called: Duration,
    outcome: Result<ReplyBody, Trouble>,
) {
    if let Ok(ReplyBody::Responses { first, responses, .. }) = &outcome {
        let hash = record_hash(&machine::encode(register, change));
        acknowledge(sim, group.id, *first, responses.count(), &[hash]);
    }
    into_history(sim, group, register, change, called, outcome);
}

/// As above, for one that is acknowledged already.
pub(crate) fn into_history(
    sim: &Shared,
    group: &GroupPlan,
    register: u32,
    change: Change,
    called: Duration,
    outcome: Result<ReplyBody, Trouble>,
) {
    let (before, returned) = match outcome {
        Ok(ReplyBody::Responses { responses, .. }) => {
            sim.mark("command answered");
            (responses.records().next().and_then(machine::value_of), Some(elapsed()))
        }
        Ok(other) => return drop(wrong::<()>(sim, group.id, &other)),
        Err(Trouble::Refused) => return,
        Err(Trouble::Unknown) => (None, None),
    };
    let operation = Operation { called, returned, action: Action::Change { change, before } };
    sim.histories.borrow_mut().record(group.id, register, operation);
}

/// Reads a register: of the leader, of any replica on its behalf, or of any replica at once.
async fn query(sim: &Shared, random: &mut SmallRng, group: &GroupPlan) {
    let register = register(random);
    let consistency = *pick(random, &[Consistency::Linearizable, Consistency::Lease]);
    match random.random_range(0..100) {
        0..50 => {
            let body = body_of(register, consistency, false);
            let Ok((called, answer)) = ask(sim, random, group, body).await else { return };
            if observed(sim, group, register, called, &answer) {
                sim.mark("query answered");
            }
        }
        50..75 => {
            let node = *pick(random, &group.voters);
            if read_register(sim, random, node, group, register, consistency).await {
                sim.mark("query answered by a replica that does not lead");
            }
        }
        _ => {
            // What it says is checked where it is said; it tells nothing of what others have seen.
            let node = *pick(random, &group.voters);
            let body = body_of(register, Consistency::Local, false);
            if let Ok(ReplyBody::Answer(_)) = call(sim, random, node, group.id, body).await {
                sim.mark("query answered locally");
            }
        }
    }
}

fn body_of(register: u32, consistency: Consistency, may_forward: bool) -> ClientBody {
    let query = Bytes::copy_from_slice(&register.to_le_bytes());
    ClientBody::Query { consistency, may_forward, query }
}

/// Reads a register of this very node, which may ask the leader; whether it answers, not being the leader.
pub(crate) async fn read_register(
    sim: &Shared,
    random: &mut SmallRng,
    node: NodeId,
    group: &GroupPlan,
    register: u32,
    consistency: Consistency,
) -> bool {
    let called = elapsed();
    let body = body_of(register, consistency, true);
    match call(sim, random, node, group.id, body).await {
        Ok(ReplyBody::Failed(_)) | Err(_) => false,
        Ok(answer) => {
            let leads = sim.checks.borrow().leader_of(group.id) == Some(node);
            observed(sim, group, register, called, &answer) && !leads
        }
    }
}

/// Puts an answer that must be linearizable into the history of its register.
fn observed(sim: &Shared, group: &GroupPlan, register: u32, called: Duration, answer: &ReplyBody) -> bool {
    let ReplyBody::Answer(answer) = answer else {
        return wrong::<bool>(sim, group.id, answer).is_ok();
    };
    let Some(value) = machine::value_of(&answer.bytes) else { return false };
    let operation = Operation { called, returned: Some(elapsed()), action: Action::Read { value } };
    sim.histories.borrow_mut().record(group.id, register, operation);
    true
}

/// Reads records of one replica; returns the offset after them.
pub(crate) async fn read(
    sim: &Shared,
    random: &mut SmallRng,
    node: NodeId,
    group: GroupId,
    from: Offset,
    bytes_max: u32,
) -> Result<Offset, Trouble> {
    let records_max = *pick(random, &[1, 5, u32::MAX]);
    let is_waiting = random.random_bool(0.2);
    let body = ClientBody::ReadRecords { from, bytes_max, records_max, is_waiting };
    let batches = match call(sim, random, node, group, body).await? {
        ReplyBody::Records { batches, .. } => batches,
        // It says where to go on.
        ReplyBody::Failed(RequestError::BeforeStart { start, .. }) => {
            sim.mark("records removed");
            let mut checks = sim.checks.borrow_mut();
            let end = Offset(checks.commits.records(group).len() as u64);
            let is_right = start > from && start <= end;
            checks.note(ensure(is_right, "only what a snapshot covers or was trimmed is removed", || {
                format!("node {node} group {group}: nothing from {from} to {start}, committed is up to {end}")
            }));
            return Ok(start);
        }
        ReplyBody::Failed(error) => {
            sim.tell(|| format!("node {node} does not hand out records of group {group}: {error}"));
            return Err(Trouble::Refused);
        }
        other => return wrong(sim, group, &other),
    };
    sim.mark("records read");
    sim.tell(|| format!("node {node} hands out {} batches of group {group} from {from}", batches.len()));
    check_records(sim, group, from, &batches).ok_or(Trouble::Refused)
}

/// Holds the records of batches, from one on, against what is committed; returns the offset after them.
pub(crate) fn check_records(sim: &Shared, group: GroupId, from: Offset, batches: &[Bytes]) -> Option<Offset> {
    let mut checks = sim.checks.borrow_mut();
    let mut next = from;
    for batch in batches {
        let batch = match Batch::parse(batch) {
            Ok(batch) => batch,
            Err(error) => {
                checks.note(ensure(false, "records can be read", || format!("group {group}: {error}")));
                return None;
            }
        };
        for (offset, record) in batch.records() {
            if offset < from {
                continue;
            }
            let checked = ensure(offset == next, "records are read in order", || {
                format!("group {group}: offset {offset} where {next} was due")
            });
            let checked =
                checked.and_then(|()| acknowledged_read(group, offset, record_hash(record), &checks.commits));
            checks.note(checked);
            next = Offset(offset.0 + 1);
        }
    }
    Some(next)
}

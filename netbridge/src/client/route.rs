//! What the tasks of a client share: where work goes, what happens when it comes back, and when
//! its time has run out.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use iroh::Endpoint;
use iroh_raft_core::{ClusterId, GroupId, NodeId, RequestError};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tokio::sync::{Notify, Semaphore, watch};
use tokio::time::{Instant, sleep_until, timeout, timeout_at};

use super::budget::{Price, RetryBudget};
use super::call::{CALL_BYTES, Target, Work};
use super::config::{ClientConfig, ClientLimits};
use super::drive;
use super::error::ClientError;
use super::lines::{Arrival, Lines};
use crate::allow::PeerAddress;
use crate::wire::{ClientReply, ReplyBody};

/// Time for the nodes to hear that the client goes.
const CLOSE_DEADLINE: Duration = Duration::from_secs(1);
const LENGTH_BYTES: usize = 4;
/// Of a request beside its records: header, archive.
const REQUEST_OVERHEAD_BYTES: usize = 1024;

/// How the client stands with a node.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Standing {
    Untried,
    Connected,
    Failed(Arc<str>),
    Refused(ClientError),
}

/// One node.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) address: PeerAddress,
    lines: Mutex<Lines>,
    /// There is something to send.
    pub(super) changed: Notify,
    is_connected: AtomicBool,
}

impl Node {
    pub(super) fn lines(&self) -> MutexGuard<'_, Lines> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_connected(&self) -> bool {
        self.is_connected.load(Ordering::Acquire)
    }
}

/// Work that waits for its next attempt; the earliest first.
#[derive(Debug)]
struct Later {
    at: Instant,
    number: u64,
    work: Work,
}

impl PartialEq for Later {
    fn eq(&self, other: &Later) -> bool {
        (self.at, self.number) == (other.at, other.number)
    }
}

impl Eq for Later {}

impl PartialOrd for Later {
    fn partial_cmp(&self, other: &Later) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Later {
    fn cmp(&self, other: &Later) -> std::cmp::Ordering {
        (self.at, self.number).cmp(&(other.at, other.number))
    }
}

/// What the tasks of a client share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) cluster: ClusterId,
    pub(super) limits: ClientLimits,
    pub(super) endpoint: Endpoint,
    pub(super) nodes: Vec<Node>,
    leaders: RwLock<HashMap<GroupId, usize>>,
    /// Bytes that calls may still take.
    room: Semaphore,
    /// What calls may be sent anew for.
    budget: RetryBudget,
    later: Mutex<BinaryHeap<Reverse<Later>>>,
    later_number: AtomicU64,
    /// Tails that were opened.
    tails: AtomicU64,
    /// A deadline or a retry comes earlier than the timer knows.
    timer: Notify,
    standings: watch::Sender<Vec<Standing>>,
    closing: watch::Sender<bool>,
}

impl Shared {
    /// Starts the tasks.
    pub(super) fn start(config: ClientConfig, endpoint: Endpoint) -> Arc<Shared> {
        let ClientConfig { cluster, nodes, limits, .. } = config;
        let nodes: Vec<Node> = nodes
            .into_iter()
            .map(|address| Node {
                address,
                lines: Mutex::new(Lines::new(&limits)),
                changed: Notify::new(),
                is_connected: AtomicBool::new(false),
            })
            .collect();
        let shared = Arc::new(Shared {
            cluster,
            endpoint,
            leaders: RwLock::default(),
            budget: RetryBudget::new(&limits, Instant::now()),
            room: Semaphore::new(limits.in_flight_bytes_max.min(Semaphore::MAX_PERMITS)),
            later: Mutex::default(),
            later_number: AtomicU64::new(0),
            tails: AtomicU64::new(0),
            timer: Notify::new(),
            standings: watch::Sender::new(vec![Standing::Untried; nodes.len()]),
            closing: watch::Sender::new(false),
            limits,
            nodes,
        });
        for at in 0..shared.nodes.len() {
            drive::spawn(&shared, drive::drive(shared.clone(), at));
        }
        drive::spawn(&shared, run_timer(shared.clone()));
        shared
    }

    /// Returns once a node has welcomed the client, or none ever will.
    pub(super) async fn first_welcome(&self) -> Result<(), ClientError> {
        let mut standings = self.standings.subscribe();
        let is_decided = |standings: &Vec<Standing>| {
            standings.contains(&Standing::Connected)
                || (standings.iter().any(|standing| matches!(standing, Standing::Refused(_)))
                    && !standings.contains(&Standing::Untried))
        };
        let Ok(decided) = standings.wait_for(is_decided).await else { return Err(ClientError::Closed) };
        let refused = decided.iter().find_map(|standing| match standing {
            Standing::Refused(error) => Some(error.clone()),
            _ => None,
        });
        match refused {
            Some(error) if !decided.contains(&Standing::Connected) => Err(error),
            _ => Ok(()),
        }
    }

    /// What the last failed dial met.
    pub(super) fn last_failure(&self) -> Arc<str> {
        let standings = self.standings.borrow();
        let failed = standings.iter().find_map(|standing| match standing {
            Standing::Failed(reason) => Some(reason.clone()),
            _ => None,
        });
        failed.unwrap_or_else(|| "no node answered".into())
    }

    pub(super) fn stand(&self, at: usize, standing: Standing) {
        self.nodes[at].is_connected.store(standing == Standing::Connected, Ordering::Release);
        self.standings.send_modify(|standings| standings[at] = standing);
    }

    pub(super) fn connected(&self) -> Vec<NodeId> {
        let connected = self.nodes.iter().filter(|node| node.is_connected());
        connected.map(|node| node.address.node).collect()
    }

    pub(super) fn node_at(&self, node: NodeId) -> Result<Target, ClientError> {
        self.position(node).map(Target::Node).ok_or(ClientError::UnknownNode { node })
    }

    fn position(&self, node: NodeId) -> Option<usize> {
        self.nodes.iter().position(|known| known.address.node == node)
    }

    pub(super) fn place_of(&self, node: NodeId) -> Result<usize, ClientError> {
        self.position(node).ok_or(ClientError::UnknownNode { node })
    }

    /// Where a tail is opened that has failed so often: the leader first, then the nodes after it.
    pub(super) fn tail_at(&self, group: GroupId, failures: usize) -> usize {
        let count = self.nodes.len();
        let first = self.leader_at(group);
        (0..count)
            .map(|step| (first + failures + step) % count)
            .find(|at| self.nodes[*at].is_connected())
            .unwrap_or(first)
    }

    /// A name that no other tail of this client has.
    pub(super) fn next_tail(&self) -> u64 {
        self.tails.fetch_add(1, Ordering::Relaxed)
    }

    pub(super) fn leader_hint(&self, group: GroupId) -> Option<NodeId> {
        let at = *self.leaders.read().unwrap_or_else(PoisonError::into_inner).get(&group)?;
        Some(self.nodes[at].address.node)
    }

    /// Where work for the leader goes: to the node that should lead if it is connected, else to the
    /// next one that is.
    fn leader_at(&self, group: GroupId) -> usize {
        let count = self.nodes.len();
        let hint = self.leaders.read().unwrap_or_else(PoisonError::into_inner).get(&group).copied();
        let first = hint.unwrap_or((group.0 % count as u64) as usize);
        (0..count)
            .map(|step| (first + step) % count)
            .find(|at| self.nodes[*at].is_connected())
            .unwrap_or(first)
    }

    pub(super) fn learn_leader(&self, group: GroupId, at: usize) {
        let known = self.leaders.read().unwrap_or_else(PoisonError::into_inner).get(&group).copied();
        if known != Some(at) {
            self.leaders.write().unwrap_or_else(PoisonError::into_inner).insert(group, at);
        }
    }

    /// `at` does not lead the group: whoever believed so, or believed in a node that is gone, tries
    /// `next`.
    fn unlearn_leader(&self, group: GroupId, at: usize, next: usize) {
        let mut leaders = self.leaders.write().unwrap_or_else(PoisonError::into_inner);
        let known = leaders.get(&group).copied();
        if known.is_none_or(|known| known == at || !self.nodes[known].is_connected()) {
            leaders.insert(group, next);
        }
    }

    /// Room that records take; checks their size.
    pub(super) fn charge<R: AsRef<[u8]>>(&self, records: &[R]) -> Result<usize, ClientError> {
        if records.is_empty() {
            return Err(ClientError::Empty);
        }
        let bytes = records.iter().map(|record| record.as_ref().len() + LENGTH_BYTES).sum();
        self.check_size(bytes)?;
        Ok(bytes + CALL_BYTES)
    }

    pub(super) fn check_size(&self, bytes: usize) -> Result<(), ClientError> {
        let frame = self.limits.request_frame.payload_bytes_max as usize;
        let bytes_max = frame.min(self.limits.in_flight_bytes_max).saturating_sub(REQUEST_OVERHEAD_BYTES);
        if bytes > bytes_max {
            return Err(ClientError::TooLarge { bytes: bytes as u64, bytes_max: bytes_max as u64 });
        }
        Ok(())
    }

    pub(super) async fn take_room(&self, charge: usize, deadline: Instant) -> Result<(), ClientError> {
        // With room, which is the rule, no timer is made. It passes nobody: who waits is served first.
        match self.try_take_room(charge) {
            Err(ClientError::Full) => {}
            end => return end,
        }
        let permits = u32::try_from(charge).unwrap_or(u32::MAX);
        match timeout_at(deadline, self.room.acquire_many(permits)).await {
            Ok(Ok(room)) => {
                room.forget();
                Ok(())
            }
            Ok(Err(_)) => Err(ClientError::Closed),
            Err(_) => Err(ClientError::Full),
        }
    }

    pub(super) fn try_take_room(&self, charge: usize) -> Result<(), ClientError> {
        match self.room.try_acquire_many(u32::try_from(charge).unwrap_or(u32::MAX)) {
            Ok(room) => {
                room.forget();
                Ok(())
            }
            Err(tokio::sync::TryAcquireError::NoPermits) => Err(ClientError::Full),
            Err(tokio::sync::TryAcquireError::Closed) => Err(ClientError::Closed),
        }
    }

    pub(super) fn give_room(&self, bytes: usize) {
        if bytes > 0 {
            self.room.add_permits(bytes);
        }
    }

    /// Puts a call's records in line for the leader of their group.
    pub(super) fn append<R: AsRef<[u8]>>(&self, arrival: Arrival<'_, R>) {
        let node = &self.nodes[self.leader_at(arrival.group)];
        let is_earliest = node.lines().fill(arrival);
        self.put_in_line(node, is_earliest);
    }

    /// Puts work in line where it belongs.
    pub(super) fn dispatch(&self, work: Work) {
        let node = match work.target {
            Target::Leader => &self.nodes[self.leader_at(work.group)],
            Target::Node(at) => &self.nodes[at],
        };
        let is_earliest = node.lines().push(work);
        self.put_in_line(node, is_earliest);
    }

    fn put_in_line(&self, node: &Node, is_earliest: bool) {
        node.changed.notify_one();
        if is_earliest {
            self.timer.notify_one();
        }
        // After it was put there: either this sees that the client closes, or the closing sees it.
        if *self.closing.borrow() {
            self.clear(node);
        }
    }

    /// The answer of the node `at` to `work`. Returns the bytes of room that are free again.
    pub(super) fn handle_reply(&self, at: usize, work: Work, reply: ClientReply) -> usize {
        let node = self.nodes[at].address.node;
        if reply.group != work.group {
            return work.fail(&ClientError::Protocol { node }, node);
        }
        match reply.body {
            ReplyBody::Failed(error) => self.handle_failure(at, work, error),
            body => {
                if work.attempts == 0 {
                    self.budget.earn();
                }
                if work.is_for_leader_alone() {
                    self.learn_leader(work.group, at);
                }
                work.succeed(body, node)
            }
        }
    }

    fn handle_failure(&self, at: usize, mut work: Work, error: RequestError) -> usize {
        let node = self.nodes[at].address.node;
        let next = (at + 1) % self.nodes.len();
        let is_for_leader = work.target == Target::Leader;
        if work.is_stream() {
            return work.fail(&error.into(), node);
        }
        match error {
            RequestError::NotLeader { leader } if is_for_leader => {
                let leader = leader.and_then(|node| self.position(node)).filter(|leader| *leader != at);
                self.unlearn_leader(work.group, at, leader.unwrap_or(next));
                let is_first = work.attempts == 0;
                let is_there = leader.is_some_and(|leader| self.nodes[leader].is_connected());
                if is_first && is_there {
                    self.retry(work, error.into(), None, Price::Nothing)
                } else {
                    self.retry(work, error.into(), Some(Duration::ZERO), Price::Election)
                }
            }
            RequestError::UnknownGroup if is_for_leader => {
                let is_known = work.strangers.contains(&node);
                if !is_known {
                    work.strangers.push(node);
                }
                if work.strangers.len() >= self.nodes.len() {
                    return work.fail(&error.into(), node);
                }
                self.unlearn_leader(work.group, at, next);
                let price = if is_known { Price::Whole } else { Price::Nothing };
                self.retry(work, error.into(), None, price)
            }
            RequestError::Quarantined | RequestError::Fenced | RequestError::ShuttingDown
                if is_for_leader =>
            {
                self.unlearn_leader(work.group, at, next);
                self.retry(work, error.into(), Some(Duration::ZERO), Price::Whole)
            }
            RequestError::Busy { retry_after_ms, .. } => {
                let pause = Duration::from_millis(retry_after_ms.into());
                self.retry(work, error.into(), Some(pause), Price::Whole)
            }
            RequestError::OutcomeUnknown { .. } => {
                work.lose();
                if work.is_repeatable() {
                    self.retry(work, error.into(), Some(Duration::ZERO), Price::Whole)
                } else {
                    work.fail(&error.into(), node)
                }
            }
            RequestError::Timeout => self.retry(work, error.into(), Some(Duration::ZERO), Price::Whole),
            // One call's records are too large, perhaps not all of them.
            RequestError::TooLarge { .. } if work.parts.len() > 1 => {
                work.split().into_iter().for_each(|work| self.dispatch(work));
                0
            }
            _ => work.fail(&error.into(), node),
        }
    }

    /// Sends work anew that has changed nothing, or may be repeated: at once, or after a pause of at least `pause`.
    /// Returns the bytes of room that are free again.
    fn retry(&self, mut work: Work, error: ClientError, pause: Option<Duration>, price: Price) -> usize {
        let limits = &self.limits;
        work.attempts += 1;
        if work.attempts > limits.attempts_max {
            return work.fail(&error, NodeId(0));
        }
        let now = Instant::now();
        let Some(pause) = pause else {
            if !self.pay_for(&work, price, now) {
                return work.fail(&spent(error), NodeId(0));
            }
            work.failure = Some(error);
            self.dispatch(work);
            return 0;
        };
        let doubled = limits.retry_pause_min * (1 << work.attempts.min(16).saturating_sub(1));
        let jitter =
            SmallRng::seed_from_u64(self.later_number.fetch_add(1, Ordering::Relaxed)).random_range(0.5..1.0);
        // All who were refused together got the same hint: they do not come again together.
        let pause = pause.mul_f64(2.0 * jitter).max(doubled.min(limits.retry_pause_max).mul_f64(jitter));
        let at = now + pause;
        if at >= work.deadline {
            return work.fail(&error, NodeId(0));
        }
        if !self.pay_for(&work, price, now) {
            return work.fail(&spent(error), NodeId(0));
        }
        work.failure = Some(error);
        let number = self.later_number.fetch_add(1, Ordering::Relaxed);
        self.later().push(Reverse(Later { at, number, work }));
        self.timer.notify_one();
        if *self.closing.borrow() {
            self.clear_later();
        }
        0
    }

    /// Whether this may be sent anew. What tells a node of a tail always may: a grant that is lost would leave its tail waiting for
    /// ever, and there is one at a time.
    fn pay_for(&self, work: &Work, price: Price, now: Instant) -> bool {
        work.is_about_tail() || self.budget.pay(price, now)
    }

    /// Whether a call may do what comes to the same as sending a request anew, and pays for it.
    pub(super) fn pay_for_another(&self) -> bool {
        self.budget.pay(Price::Whole, Instant::now())
    }

    fn later(&self) -> MutexGuard<'_, BinaryHeap<Reverse<Later>>> {
        self.later.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The connection to `at` is gone, or was not had: what was sent is lost, the rest goes elsewhere.
    pub(super) fn handle_loss(&self, at: usize, standing: Standing) {
        let node = &self.nodes[at];
        let error = match &standing {
            Standing::Refused(error) => error.clone(),
            Standing::Failed(reason) => ClientError::Unreachable { reason: reason.clone() },
            Standing::Untried | Standing::Connected => ClientError::Unreachable { reason: "".into() },
        };
        let is_refused = matches!(standing, Standing::Refused(_));
        self.stand(at, standing);
        let (sent, unsent) = {
            let mut lines = node.lines();
            (lines.take_sent(), lines.take_unsent())
        };
        let mut freed = 0;
        for mut work in sent {
            work.lose();
            freed += if work.is_repeatable() {
                work.failure = Some(error.clone());
                self.move_on(work, is_refused, &error, Price::Whole)
            } else {
                work.fail(&error, node.address.node)
            };
        }
        for work in unsent {
            freed += self.move_on(work, is_refused, &error, Price::Nothing);
        }
        self.give_room(freed);
    }

    /// Work that is not at a node now. What only this node can do waits for it until its time is up.
    fn move_on(&self, mut work: Work, is_refused: bool, error: &ClientError, price: Price) -> usize {
        match work.target {
            _ if work.is_stream() => work.fail(error, NodeId(0)),
            Target::Leader => self.retry(work, error.clone(), Some(Duration::ZERO), price),
            Target::Node(_) if is_refused => work.fail(error, NodeId(0)),
            Target::Node(_) if !self.pay_for(&work, price, Instant::now()) => {
                work.fail(&spent(error.clone()), NodeId(0))
            }
            Target::Node(_) => {
                work.failure = Some(error.clone());
                self.dispatch(work);
                0
            }
        }
    }

    /// Ends calls whose time has run out, and sends anew what has paused long enough. Returns when to
    /// look again.
    fn handle_time(&self, now: Instant) -> Option<Instant> {
        let mut freed = 0;
        let mut next: Option<Instant> = None;
        for node in &self.nodes {
            let mut lines = node.lines();
            if lines.earliest().is_some_and(|earliest| earliest <= now) {
                let (unsent, sent) = lines.take_expired(now);
                let earliest = lines.earliest();
                drop(lines);
                next = earlier(next, earliest);
                for work in unsent {
                    let error = work.failure.clone().unwrap_or(ClientError::Deadline);
                    freed += work.fail(&error, node.address.node);
                }
                for mut work in sent {
                    work.lose();
                    freed += work.fail(&ClientError::Deadline, node.address.node);
                }
            } else {
                next = earlier(next, lines.earliest());
            }
        }
        loop {
            let mut later = self.later();
            match later.peek() {
                Some(Reverse(first)) if first.at <= now => {
                    let due = later.pop();
                    drop(later);
                    if let Some(Reverse(due)) = due {
                        self.dispatch(due.work);
                    }
                }
                first => {
                    next = earlier(next, first.map(|Reverse(first)| first.at));
                    break;
                }
            }
        }
        self.give_room(freed);
        next
    }

    /// Ends every call. Idempotent.
    pub(super) fn close(&self) {
        self.closing.send_replace(true);
        self.room.close();
        self.nodes.iter().for_each(|node| self.clear(node));
        self.clear_later();
    }

    fn clear(&self, node: &Node) {
        let (sent, unsent) = {
            let mut lines = node.lines();
            (lines.take_sent(), lines.take_unsent())
        };
        for mut work in sent {
            work.lose();
            work.fail(&ClientError::Closed, node.address.node);
        }
        for work in unsent {
            work.fail(&ClientError::Closed, node.address.node);
        }
    }

    fn clear_later(&self) {
        let later = std::mem::take(&mut *self.later());
        for Reverse(later) in later {
            later.work.fail(&ClientError::Closed, NodeId(0));
        }
    }

    /// The drivers close their connections themselves; this lets the nodes hear it. Idempotent.
    pub(super) async fn end_endpoint(&self) {
        let _ = timeout(CLOSE_DEADLINE, self.endpoint.close()).await;
    }

    /// Returns once the client closes.
    pub(super) async fn closed(&self) {
        // An error is impossible: the sender lives as long as `self`.
        let _ = self.closing.subscribe().wait_for(|is_closing| *is_closing).await;
    }
}

/// How a call ends that may not be sent anew.
pub(super) fn spent(error: ClientError) -> ClientError {
    ClientError::RetriesSpent { last: Arc::new(error) }
}

fn earlier(one: Option<Instant>, other: Option<Instant>) -> Option<Instant> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, other) => one.or(other),
    }
}

async fn run_timer(shared: Arc<Shared>) {
    let closed = shared.closed();
    tokio::pin!(closed);
    loop {
        let next = shared.handle_time(Instant::now());
        let sleep = async {
            match next {
                Some(at) => sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = sleep => {}
            () = shared.timer.notified() => {}
            () = &mut closed => break,
        }
    }
    shared.end_endpoint().await;
}

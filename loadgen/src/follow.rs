//! Followers: tails of every group, by clients of their own on a thread of its own, while the load runs.
//!
//! Each checks that it gets every offset once and in order, with a record that proves itself; what followers of one group
//! got is compared among them, and in the end with what was acknowledged.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use iroh_raft::net::client::{Client, ClientConfig, ClientError, Records, Tail, TailOptions};
use iroh_raft::{GroupId, NodeId, Offset, RequestError, Retry};
use tokio::task::JoinSet;

use crate::clients::Gate;
use crate::followed::Followed;
use crate::ledger::AckRun;
use crate::progress::{Intervals, Progress, Window};
use crate::record::RecordId;
use crate::sizes::RecordSizes;

/// How often the thread looks around.
const LOOK: Duration = Duration::from_millis(20);
/// How long after the last client ended followers may take to have all that was acknowledged.
const CATCH_UP_DEADLINE: Duration = Duration::from_secs(30);
/// Pause after an answer that cannot be.
const PAUSE: Duration = Duration::from_millis(100);

/// What a thread of followers does.
#[derive(Clone, Debug)]
pub(crate) struct FollowPlan {
    pub(crate) followed: Arc<Followed>,
    /// The groups that are followed.
    pub(crate) groups: Vec<u32>,
    /// Number of the first client in the records, and of how many there are.
    pub(crate) first_client: u32,
    pub(crate) clients: u32,
    /// Whether others write to the groups, too: followers begin with what comes from now on, and skip what is not ours.
    pub(crate) is_shared: bool,
    pub(crate) sizes: RecordSizes,
    pub(crate) warmup: Duration,
    pub(crate) duration: Duration,
}

/// What followers were given, over the whole run.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(crate) struct TailTotals {
    /// Of all groups.
    pub(crate) followers: u64,
    /// Records of this load, each as often as a follower had it.
    pub(crate) delivered: u64,
    /// Offsets that were left out.
    pub(crate) gaps: u64,
    /// Records at offsets that had been delivered before.
    pub(crate) out_of_order: u64,
    /// Records that nobody sent, that differ between followers, or from what was acknowledged.
    pub(crate) wrong: u64,
    /// Acknowledged records that a follower had not had when time was up.
    pub(crate) undelivered: u64,
    /// Records that were acknowledged and not delivered when the load ended, over all followers, and of the one that
    /// was furthest behind.
    pub(crate) behind: u64,
    pub(crate) behind_max: u64,
    /// How long after the end of the load all of them had all that was acknowledged, in milliseconds.
    pub(crate) caught_up_ms: Option<u64>,
}

struct Tally {
    intervals: Intervals,
    totals: TailTotals,
}

/// What the followers of a thread share.
struct Shared {
    plan: FollowPlan,
    tally: Mutex<Tally>,
}

impl Shared {
    fn tally(&self) -> MutexGuard<'_, Tally> {
        self.tally.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A follower as the others see it.
struct Position {
    group: u32,
    /// The next offset that is due.
    next: Arc<AtomicU64>,
}

impl Position {
    fn behind(&self, followed: &Followed) -> u64 {
        followed.acked_end(self.group).saturating_sub(self.next.load(Ordering::Relaxed))
    }
}

/// Follows until the clients have ended (`are_done`) and all that was acknowledged is delivered, or `stop` is set.
///
/// # Errors
/// [`ClientError`] that no other try would escape.
pub(crate) async fn follow(
    plan: FollowPlan,
    client: ClientConfig,
    progress: SyncSender<Progress>,
    gate: Gate,
    are_done: &AtomicBool,
    stop: &AtomicBool,
) -> Result<TailTotals, ClientError> {
    let nodes: Vec<NodeId> = client.nodes.iter().map(|node| node.node).collect();
    let client = Client::connect(client).await?;
    let mut tails = Vec::new();
    for &group in &plan.groups {
        let id = GroupId(group.into());
        let from = if plan.is_shared { end_of(&client, &nodes, id).await? } else { Offset(0) };
        plan.followed.begin(group, from.0);
        for _ in 0..plan.followed.tails {
            tails.push((group, client.tail(id, from, TailOptions::default())?));
        }
    }
    let start = gate.pass().await?;
    let window = Window { start, warmup: plan.warmup, duration: plan.duration };
    let totals = TailTotals { followers: tails.len() as u64, ..TailTotals::default() };
    let tally = Mutex::new(Tally { intervals: Intervals::new(window, progress), totals });
    let shared = Arc::new(Shared { plan, tally });
    let (mut tasks, mut positions) = (JoinSet::new(), Vec::new());
    for (group, tail) in tails {
        let next = Arc::new(AtomicU64::new(tail.offset().0));
        positions.push(Position { group, next: next.clone() });
        let shared = shared.clone();
        tasks.spawn(async move { Follower { group, next, shared }.run(tail).await });
    }
    let watched = watch(&shared, &positions, &mut tasks, (start + window.end(), are_done, stop)).await;
    tasks.shutdown().await;
    client.close();
    client.closed().await;
    watched?;
    let mut totals = shared.tally().totals;
    totals.undelivered = positions.iter().map(|position| position.behind(&shared.plan.followed)).sum();
    Ok(totals)
}

/// Where a group's log ends, as the first of the nodes says that has it: those that are there already first, for the others may
/// be away.
async fn end_of(client: &Client, nodes: &[NodeId], group: GroupId) -> Result<Offset, ClientError> {
    let connected = client.connected();
    let (there, others): (Vec<NodeId>, Vec<NodeId>) = nodes.iter().partition(|node| connected.contains(node));
    let mut problem = ClientError::Deadline;
    for node in there.into_iter().chain(others) {
        match client.status(node, group).await {
            Ok(status) => return Ok(status.end),
            Err(error) => problem = error,
        }
    }
    Err(problem)
}

/// Cuts intervals, and returns when it is time to end.
async fn watch(
    shared: &Shared,
    positions: &[Position],
    tasks: &mut JoinSet<Result<(), ClientError>>,
    (end, are_done, stop): (Instant, &AtomicBool, &AtomicBool),
) -> Result<(), ClientError> {
    let followed = &shared.plan.followed;
    let (mut is_past_end, mut give_up_at) = (false, None);
    loop {
        let next_cut = shared.tally().intervals.next_cut();
        let wake = next_cut.min(Instant::now() + LOOK);
        tokio::select! {
            () = tokio::time::sleep_until(wake.into()) => {}
            Some(ended) = tasks.join_next() => ended.unwrap_or(Err(ClientError::Closed))?,
        }
        let now = Instant::now();
        let mut tally = shared.tally();
        tally.intervals.cut(now);
        if stop.load(Ordering::Relaxed) {
            return Ok(());
        }
        if now < end {
            continue;
        }
        if !is_past_end {
            is_past_end = true;
            let behind = || positions.iter().map(|position| position.behind(followed));
            (tally.totals.behind, tally.totals.behind_max) = (behind().sum(), behind().max().unwrap_or(0));
        }
        if are_done.load(Ordering::Acquire) {
            let give_up_at = *give_up_at.get_or_insert(now + CATCH_UP_DEADLINE);
            if positions.iter().all(|position| position.behind(followed) == 0) {
                tally.totals.caught_up_ms = u64::try_from((now - end).as_millis()).ok();
                return Ok(());
            }
            if now >= give_up_at {
                return Ok(());
            }
        }
    }
}

/// One follower of one group.
struct Follower {
    group: u32,
    next: Arc<AtomicU64>,
    shared: Arc<Shared>,
}

impl Follower {
    async fn run(self, mut tail: Tail) -> Result<(), ClientError> {
        loop {
            match tail.next().await {
                Ok(records) => self.take(&records, Instant::now()),
                // It was trimmed before it could be delivered.
                Err(ClientError::Request(RequestError::BeforeStart { start, .. })) => {
                    self.expect(start.0);
                    tail.seek(start);
                }
                // What was sent does not begin where it should, or has holes.
                Err(ClientError::Protocol { .. }) => {
                    self.shared.tally().totals.wrong += 1;
                    tokio::time::sleep(PAUSE).await;
                }
                Err(error) if error.retry() == Retry::Never => return Err(error),
                // Nobody has answered for long: the tail goes on where it was.
                Err(_) => {}
            }
        }
    }

    /// The next record is at `offset`. Counts those left out; returns whether it comes in order.
    fn expect(&self, offset: u64) -> bool {
        let due = self.next.load(Ordering::Relaxed);
        if offset > due {
            self.shared.tally().totals.gaps += offset - due;
        }
        self.next.store(due.max(offset), Ordering::Relaxed);
        offset >= due
    }

    fn take(&self, records: &Records, now: Instant) {
        let plan = &self.shared.plan;
        let (mut runs, mut wrong, mut out_of_order) = (Vec::<AckRun>::new(), 0, 0);
        for record in records.iter() {
            let offset = record.offset.0;
            if !self.expect(offset) {
                out_of_order += 1;
                continue;
            }
            let ours = RecordId::read(record.data, &plan.sizes).filter(|id| id.group == self.group);
            let ours = ours.and_then(|id| Some((id.client.checked_sub(plan.first_client)?, id.sequence)));
            match (ours.filter(|(client, _)| *client < plan.clients), runs.last_mut()) {
                (None, _) => wrong += u64::from(!plan.is_shared),
                (Some((client, sequence)), Some(last))
                    if last.client == client
                        && last.end() == offset
                        && last.sequence + u64::from(last.count) == sequence =>
                {
                    last.count += 1;
                }
                (Some((client, sequence)), _) => {
                    runs.push(AckRun { first: offset, client, count: 1, sequence });
                }
            }
            self.next.store(offset + 1, Ordering::Relaxed);
        }
        let mut tally = self.shared.tally();
        tally.intervals.cut(now);
        let interval = &mut tally.intervals.now;
        let taken = plan.followed.deliver(self.group, &runs, |at, count| {
            interval.deliver(now.saturating_duration_since(at), count);
        });
        interval.untimed += taken.untimed;
        tally.totals.delivered += runs.iter().map(|run| u64::from(run.count)).sum::<u64>();
        tally.totals.wrong += wrong + taken.wrong;
        tally.totals.out_of_order += out_of_order;
    }
}

//! Clients, on the network or in the process of a node: one thread drives many of them.
//!
//! A client's records in flight are spread evenly over the groups; the share of one client in one
//! group is a *lane*. In the closed loop what is free in a lane goes out as one append, as soon as records before it are
//! answered. In the open loop (`schedule.rs`) it is what is due in the lane, while there is room for it; latency counts from when it was due.

use std::collections::VecDeque;
use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::SyncSender;
use std::time::{Duration, Instant};

use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use iroh_raft::net::client::{self, Appender, Client, ClientConfig, ClientError, Completion, Completions};
use iroh_raft::{Appended, Engine, GroupId, RecordBlock, Retry};

use crate::arrivals::Times;
use crate::ledger::{AckRun, Ledger, SentRun};
use crate::record::RecordId;
use crate::recorder::{Interval, Timeline};
use crate::schedule::{Pacer, Schedule};
use crate::sizes::RecordSizes;
use crate::skew::Skew;

/// How long a lane rests after the client has given up on its records: long enough not to spin.
const REST: Duration = Duration::from_millis(10);
/// What is printed and cut apart: one interval a second.
const INTERVAL: Duration = Duration::from_secs(1);
/// A record that leaves later than this after it was due did not keep to its schedule.
const LATE: Duration = Duration::from_millis(10);
/// How much longer than its deadline an answer is waited for.
const SLACK: Duration = Duration::from_secs(2);

/// What a thread of clients does.
#[derive(Clone, Debug)]
pub(crate) struct DriverPlan {
    /// Numbers of the clients.
    pub(crate) clients: Range<u32>,
    /// Number of all clients, of all threads.
    pub(crate) clients_total: u32,
    /// Number of the first of them in the records.
    pub(crate) first_client: u32,
    /// Highest number of a group.
    pub(crate) groups: u32,
    /// Those that these clients send to.
    pub(crate) targets: Vec<u32>,
    /// Records in flight of each client.
    pub(crate) in_flight: u32,
    /// How these are spread over them.
    pub(crate) skew: Skew,
    /// When records are due, in the open loop; `None` for the closed one.
    pub(crate) times: Option<Times>,
    /// Bytes of a record.
    pub(crate) sizes: RecordSizes,
    /// When the load begins; all times count from here.
    pub(crate) start: Instant,
    /// What is not measured.
    pub(crate) warmup: Duration,
    /// What is measured.
    pub(crate) duration: Duration,
}

impl DriverPlan {
    /// Intervals that a thread hands over at most.
    pub(crate) fn intervals_max(&self) -> usize {
        (self.warmup + self.duration).as_secs() as usize + 3
    }

    pub(crate) fn end(&self) -> Duration {
        self.warmup + self.duration
    }

    /// When an interval that begins at `from` ends: after a second, or with the warm-up or the load.
    fn cut_after(&self, from: Duration) -> Duration {
        let edges = [self.warmup, self.end()].into_iter().filter(|edge| *edge > from);
        edges.chain([from + INTERVAL]).min().unwrap_or(from + INTERVAL)
    }

    fn is_measured(&self, from: Duration) -> bool {
        from >= self.warmup && from < self.end()
    }
}

/// An interval of one thread, and when it ended.
#[derive(Debug)]
pub(crate) struct Progress {
    /// Its end, from the start of the load.
    pub(crate) until: Duration,
    /// What was seen.
    pub(crate) interval: Interval,
}

/// What a thread knows in the end.
#[derive(Debug)]
pub(crate) struct DriverResult {
    /// Every record it sent.
    pub(crate) ledger: Ledger,
    /// When each group acknowledged.
    pub(crate) timeline: Timeline,
    /// When records were due, in the open loop.
    pub(crate) times: Option<Times>,
    /// The last error that a record met, if any did.
    pub(crate) last_error: Option<ClientError>,
}

/// Where records go, and where their ends come from.
pub(crate) trait Target {
    /// Records of one append at most: more are due as several.
    fn append_records_max(&self) -> u32 {
        u32::MAX
    }

    /// Puts records in line that are appended all or none.
    fn try_append(&mut self, group: GroupId, records: &[&[u8]], tag: u64) -> Result<(), ClientError>;

    /// Waits for ends and adds all there are to `out`. Cancel safe.
    async fn recv(&mut self, out: &mut Vec<Completion>);
}

/// Clients on the network.
struct Networked {
    appender: Appender,
    ends: Completions,
}

impl Target for Networked {
    fn try_append(&mut self, group: GroupId, records: &[&[u8]], tag: u64) -> Result<(), ClientError> {
        self.appender.try_append_batch(group, records, tag)
    }

    async fn recv(&mut self, out: &mut Vec<Completion>) {
        self.ends.recv(out).await;
    }
}

/// Appends that are futures, each in a box of its own.
pub(crate) type OpenAppends = FuturesUnordered<Pin<Box<dyn Future<Output = Completion> + Send>>>;

/// Waits until one of them has ended, and adds all that have to `out`. Cancel safe.
pub(crate) async fn recv_ended(open: &mut OpenAppends, out: &mut Vec<Completion>) {
    // Tokio gives a task a budget, and tells its futures that they are not ready once that is spent. Thousands of them
    // in one task would starve each other: with JetStream's client that cost three quarters of the rate.
    tokio::task::unconstrained(async {
        match open.next().await {
            Some(end) => out.push(end),
            None => std::future::pending().await,
        }
        while let Some(Some(end)) = open.next().now_or_never() {
            out.push(end);
        }
    })
    .await;
}

/// Clients in the process of a node.
struct Embedded {
    engine: Engine,
    open: OpenAppends,
}

impl Target for Embedded {
    fn try_append(&mut self, group: GroupId, records: &[&[u8]], tag: u64) -> Result<(), ClientError> {
        let (engine, block) = (self.engine.clone(), RecordBlock::from_records(records));
        self.open.push(Box::pin(async move {
            let appended = engine.append_block(group, block).await;
            let result = appended
                .map(|Appended { first, index, term, .. }| client::Appended { offset: first, index, term })
                .map_err(ClientError::Request);
            Completion { tag, result }
        }));
        Ok(())
    }

    async fn recv(&mut self, out: &mut Vec<Completion>) {
        recv_ended(&mut self.open, out).await;
    }
}

/// Runs clients in the process of a node to the end, or until `stop` is set. `drain`: how long answers are awaited after it.
///
/// # Errors
/// [`ClientError`] that no other record would escape.
pub(crate) async fn drive_embedded(
    plan: DriverPlan,
    engine: Engine,
    drain: Duration,
    progress: SyncSender<Progress>,
    stop: &AtomicBool,
) -> Result<DriverResult, ClientError> {
    let target = Embedded { engine, open: OpenAppends::new() };
    drive_target(plan, None, target, drain, progress, stop).await
}

/// Runs clients of any target to the end, or until `stop` is set. `drain`: how long answers are awaited after it.
///
/// # Errors
/// [`ClientError`] that no other record would escape.
pub(crate) async fn drive_target(
    plan: DriverPlan,
    pacer: Option<&Pacer>,
    target: impl Target,
    drain: Duration,
    progress: SyncSender<Progress>,
    stop: &AtomicBool,
) -> Result<DriverResult, ClientError> {
    let mut driver = Driver::new(plan, target, progress);
    driver.run(pacer, drain + SLACK, stop).await?;
    Ok(driver.into_result())
}

/// Runs a thread's clients to the end, or until `stop` is set.
///
/// # Errors
/// [`ClientError`] that no other record would escape: refused by the cluster, too large.
pub(crate) async fn drive(
    plan: DriverPlan,
    pacer: Option<Pacer>,
    client: ClientConfig,
    progress: SyncSender<Progress>,
    stop: Arc<AtomicBool>,
) -> Result<DriverResult, ClientError> {
    let drain = client.limits.deadline + SLACK;
    let client = Client::connect(client).await?;
    let (appender, ends) = client.appender();
    let mut driver = Driver::new(plan, Networked { appender, ends }, progress);
    let result = driver.run(pacer.as_ref(), drain, &stop).await;
    client.close();
    client.closed().await;
    result.map(|()| driver.into_result())
}

/// The share of one client in one group.
#[derive(Debug)]
struct Lane {
    client: u32,
    group: u32,
    /// Where records that are due are dealt to it.
    slots: Vec<u64>,
    /// Records that may be in flight.
    window: u32,
    in_flight: u32,
    /// Records sent.
    sent: u64,
    /// Offset after the highest one acknowledged to this client.
    floor: u64,
    /// Whether it waits in `ready` or rests.
    is_queued: bool,
}

/// One append in flight.
#[derive(Clone, Copy, Debug)]
struct Flight {
    lane: usize,
    run: SentRun,
    /// Which of its lane's records is its first.
    number: u64,
    floor: u64,
    sent: Instant,
}

struct Driver<T> {
    plan: DriverPlan,
    schedule: Option<Schedule>,
    target: T,
    progress: SyncSender<Progress>,
    lanes: Vec<Lane>,
    /// Lanes with room.
    ready: Vec<usize>,
    /// Lanes that rest, and until when; in order of time.
    resting: VecDeque<(Instant, usize)>,
    /// By tag. `None`: the tag is free.
    flights: Vec<Option<Flight>>,
    free_tags: Vec<usize>,
    interval: Interval,
    next_cut: Duration,
    ledger: Ledger,
    timeline: Timeline,
    last_error: Option<ClientError>,
    /// Reused: the bytes of the records of one append.
    bytes: Vec<u8>,
    /// Reused: where each of them ends.
    ends: Vec<usize>,
}

impl<T: Target> Driver<T> {
    fn new(plan: DriverPlan, target: T, progress: SyncSender<Progress>) -> Driver<T> {
        let lanes = lanes(&plan);
        let slots = lanes.iter().map(|lane| lane.slots.len() as u64).sum();
        let schedule = plan.times.clone().map(|times| Schedule { times, slots });
        Driver {
            schedule,
            target,
            progress,
            ready: (0..lanes.len()).collect(),
            lanes,
            resting: VecDeque::new(),
            flights: Vec::new(),
            free_tags: Vec::new(),
            interval: Interval::new(plan.is_measured(Duration::ZERO)),
            next_cut: plan.cut_after(Duration::ZERO),
            ledger: Ledger::new(plan.groups, plan.clients_total),
            timeline: Timeline::new(plan.groups),
            last_error: None,
            bytes: Vec::new(),
            ends: Vec::new(),
            plan,
        }
    }

    async fn run(
        &mut self,
        pacer: Option<&Pacer>,
        drain: Duration,
        stop: &AtomicBool,
    ) -> Result<(), ClientError> {
        let mut completions = Vec::new();
        let end = self.plan.start + self.plan.end();
        loop {
            let now = Instant::now();
            self.cut(now);
            let is_ended = now >= end || stop.load(Ordering::Relaxed);
            if is_ended && (self.is_idle() || now >= end + drain) {
                break;
            }
            if !is_ended {
                self.wake(now);
                self.fill(now)?;
            }
            let wake = self.next_wake(now, end, drain);
            // A timeout is no error here: something else is due.
            let answers = tokio::time::timeout_at(wake.into(), self.target.recv(&mut completions));
            match pacer.filter(|_| !is_ended) {
                None => drop(answers.await),
                Some(pacer) => tokio::select! {
                    _ = answers => {}
                    () = pacer.tick() => {}
                },
            }
            self.take(&mut completions)?;
        }
        // What is still open now will never be answered.
        for flight in std::mem::take(&mut self.flights).into_iter().flatten() {
            self.ledger.unknown(self.lanes[flight.lane].group, flight.run);
        }
        Ok(())
    }

    fn into_result(self) -> DriverResult {
        let times = self.schedule.map(|schedule| schedule.times);
        DriverResult { ledger: self.ledger, timeline: self.timeline, times, last_error: self.last_error }
    }

    fn is_idle(&self) -> bool {
        self.free_tags.len() == self.flights.len()
    }

    fn next_wake(&self, now: Instant, end: Instant, drain: Duration) -> Instant {
        let cut = self.plan.start + self.next_cut;
        let rested = self.resting.front().map_or(cut, |(at, _)| *at);
        let edge = if now < end { end } else { end + drain };
        // Ctrl-C is looked for at least as often as intervals are cut.
        cut.min(rested).min(edge).max(now + Duration::from_micros(100)).min(now + INTERVAL)
    }

    /// Hands intervals over that have ended.
    fn cut(&mut self, now: Instant) {
        let now = now.saturating_duration_since(self.plan.start);
        while now >= self.next_cut && self.next_cut <= self.plan.end() {
            let until = self.next_cut;
            self.next_cut = self.plan.cut_after(until);
            let next = Interval::new(self.plan.is_measured(until));
            let interval = std::mem::replace(&mut self.interval, next);
            // The channel holds all intervals of the run; a reader that is gone needs none.
            let _ = self.progress.try_send(Progress { until, interval });
        }
    }

    fn wake(&mut self, now: Instant) {
        while let Some(&(at, lane)) = self.resting.front()
            && at <= now
        {
            self.resting.pop_front();
            self.ready.push(lane);
        }
    }

    /// Sends what lanes have room for.
    fn fill(&mut self, now: Instant) -> Result<(), ClientError> {
        for at in std::mem::take(&mut self.ready) {
            let lane = &mut self.lanes[at];
            let room = lane.window - lane.in_flight;
            let mut count = match &self.schedule {
                None => {
                    lane.is_queued = false;
                    room
                }
                // Each lane is looked at every time.
                Some(schedule) => {
                    self.ready.push(at);
                    let due = schedule.due(&lane.slots, now.saturating_duration_since(self.plan.start));
                    u32::try_from(due - lane.sent).unwrap_or(u32::MAX).min(room)
                }
            };
            while count > 0 {
                let append = count.min(self.target.append_records_max());
                self.send(at, append, now)?;
                count -= append;
            }
        }
        Ok(())
    }

    /// Sends the next records of a lane as one append.
    fn send(&mut self, at: usize, count: u32, now: Instant) -> Result<(), ClientError> {
        let lane = &mut self.lanes[at];
        let (client, group) = (lane.client, lane.group);
        let sequence = self.ledger.send(group, client, count);
        self.bytes.clear();
        self.ends.clear();
        for sequence in sequence..sequence + u64::from(count) {
            let id = RecordId { client: self.plan.first_client + client, group, sequence };
            id.write(self.plan.sizes.of(id), &mut self.bytes);
            self.ends.push(self.bytes.len());
        }
        lane.in_flight += count;
        let run = SentRun { client, sequence, count };
        let flight = Flight { lane: at, run, number: lane.sent, floor: lane.floor, sent: now };
        lane.sent += u64::from(count);
        let tag = self.free_tags.pop().unwrap_or(self.flights.len());
        if tag == self.flights.len() {
            self.flights.push(None);
        }
        self.flights[tag] = Some(flight);
        let starts = [0].into_iter().chain(self.ends.iter().copied());
        let records: Vec<&[u8]> = starts.zip(&self.ends).map(|(from, to)| &self.bytes[from..*to]).collect();
        match self.target.try_append(GroupId(group.into()), &records, tag as u64) {
            Ok(()) => Ok(()),
            Err(error) => self.complete(Completion { tag: tag as u64, result: Err(error) }, now),
        }
    }

    fn take(&mut self, completions: &mut Vec<Completion>) -> Result<(), ClientError> {
        if completions.is_empty() {
            return Ok(());
        }
        let now = Instant::now();
        self.cut(now);
        completions.drain(..).try_for_each(|completion| self.complete(completion, now))
    }

    fn complete(&mut self, completion: Completion, now: Instant) -> Result<(), ClientError> {
        let tag = completion.tag as usize;
        let flight = self.flights.get_mut(tag).and_then(Option::take);
        let flight = flight.expect("the client answers each append once, by its tag");
        self.free_tags.push(tag);
        let lane = &mut self.lanes[flight.lane];
        lane.in_flight -= flight.run.count;
        let (group, run) = (lane.group, flight.run);
        match completion.result {
            Ok(appended) => {
                let first = appended.offset.0;
                lane.floor = lane.floor.max(first + u64::from(run.count));
                let ack = AckRun { first, client: run.client, count: run.count, sequence: run.sequence };
                self.ledger.acked(group, ack, flight.floor);
                match &self.schedule {
                    None => self.interval.record(now - flight.sent, run.count.into()),
                    Some(schedule) => {
                        self.interval.serve(now - flight.sent, run.count.into());
                        for number in flight.number..flight.number + u64::from(run.count) {
                            let due = self.plan.start + schedule.due_at(&lane.slots, number);
                            self.interval.record(now.saturating_duration_since(due), 1);
                            let is_late = flight.sent.saturating_duration_since(due) > LATE;
                            self.interval.late += u64::from(is_late);
                        }
                    }
                }
                self.timeline.note(group, now.saturating_duration_since(self.plan.start));
                if !lane.is_queued {
                    lane.is_queued = true;
                    self.ready.push(flight.lane);
                }
                return Ok(());
            }
            Err(error) => {
                match error.retry() {
                    Retry::OutcomeUnknown => {
                        self.ledger.unknown(group, run);
                        self.interval.unknown += u64::from(run.count);
                    }
                    Retry::Safe => {
                        self.ledger.refused(group, run);
                        self.interval.refused += u64::from(run.count);
                    }
                    Retry::Never => return Err(error),
                }
                self.last_error = Some(error);
            }
        }
        if !lane.is_queued {
            lane.is_queued = true;
            self.resting.push_back((now + REST, flight.lane));
        }
        Ok(())
    }
}

fn lane(client: u32, group: u32, slots: Vec<u64>, window: u32) -> Lane {
    Lane { client, group, slots, window, in_flight: 0, sent: 0, floor: 0, is_queued: true }
}

/// Spreads the records in flight over the targets.
fn lanes(plan: &DriverPlan) -> Vec<Lane> {
    if plan.skew == Skew::Uniform { even_lanes(plan) } else { skewed_lanes(plan) }
}

/// Where all slots of all clients are dealt out, a lane has those of its client and group.
fn skewed_lanes(plan: &DriverPlan) -> Vec<Lane> {
    let in_flight = u64::from(plan.in_flight);
    let dealt = plan.skew.deal(u64::from(plan.clients_total) * in_flight, plan.targets.len());
    let (count, mut lanes) = (plan.clients.len() as u64, Vec::new());
    for (at, client) in (0..).zip(plan.clients.clone()) {
        let mut slots = vec![Vec::new(); plan.targets.len()];
        for slot in 0..in_flight {
            // Records that follow each other belong to different clients.
            let target = dealt[(u64::from(client) * in_flight + slot) as usize];
            slots[target].push(slot * count + at);
        }
        let used = plan.targets.iter().zip(slots).filter(|(_, slots)| !slots.is_empty());
        lanes.extend(used.map(|(group, slots)| {
            let window = slots.len() as u32;
            lane(client, *group, slots, window)
        }));
    }
    lanes
}

/// Record `i` of all belongs to target `i` modulo their number.
fn even_lanes(plan: &DriverPlan) -> Vec<Lane> {
    let mut lanes = Vec::new();
    for client in plan.clients.clone() {
        let first = u64::from(client) * u64::from(plan.in_flight);
        let targets = plan.targets.len() as u64;
        let groups = (plan.targets.len() as u32).min(plan.in_flight);
        for share in 0..groups {
            let group = plan.targets[((first + u64::from(share)) % targets) as usize];
            let window = plan.in_flight / groups + u32::from(share < plan.in_flight % groups);
            lanes.push(lane(client, group, vec![lanes.len() as u64], window));
        }
    }
    lanes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(clients: u32, in_flight: u32, groups: u32) -> DriverPlan {
        DriverPlan {
            clients: 0..clients,
            clients_total: clients,
            first_client: 0,
            groups,
            targets: (1..=groups).collect(),
            in_flight,
            skew: Skew::Uniform,
            times: None,
            sizes: RecordSizes::Fixed(64),
            start: Instant::now(),
            warmup: Duration::from_millis(1500),
            duration: Duration::from_millis(2200),
        }
    }

    #[test]
    fn records_in_flight_are_spread_evenly_over_the_groups() {
        for (clients, in_flight, groups) in [(8, 256, 8), (1, 1, 8), (3, 5, 4), (7, 1, 3), (2, 10, 64)] {
            let plan = plan(clients, in_flight, groups);
            let lanes = lanes(&plan);
            for client in 0..clients {
                let own = lanes.iter().filter(|lane| lane.client == client);
                assert_eq!(own.map(|lane| lane.window).sum::<u32>(), in_flight);
            }
            let of_group =
                |group| lanes.iter().filter(|lane| lane.group == group).map(|lane| lane.window).sum::<u32>();
            let loads: Vec<u32> = (1..=groups).map(of_group).collect();
            let (least, most) = (loads.iter().min().unwrap(), loads.iter().max().unwrap());
            assert!(most - least <= clients, "{loads:?}");
            let mut pairs: Vec<_> = lanes.iter().map(|lane| (lane.client, lane.group)).collect();
            pairs.sort_unstable();
            pairs.dedup();
            assert_eq!(pairs.len(), lanes.len(), "a client has one lane in a group");
        }
    }

    /// Takes three records an append, and answers at once.
    #[derive(Default)]
    struct Threes {
        appends: Vec<usize>,
        ends: Vec<Completion>,
    }

    impl Target for Threes {
        fn append_records_max(&self) -> u32 {
            3
        }

        fn try_append(&mut self, _: GroupId, records: &[&[u8]], tag: u64) -> Result<(), ClientError> {
            self.appends.push(records.len());
            self.ends.push(Completion { tag, result: Err(ClientError::OutcomeUnknown) });
            Ok(())
        }

        async fn recv(&mut self, out: &mut Vec<Completion>) {
            out.append(&mut self.ends);
        }
    }

    #[test]
    fn a_target_gets_no_longer_appends_than_it_takes() {
        let (progress, _seen) = std::sync::mpsc::sync_channel(8);
        let mut driver = Driver::new(plan(1, 16, 2), Threes::default(), progress);
        let now = Instant::now();
        driver.fill(now).unwrap();
        assert_eq!(driver.target.appends, [3, 3, 2, 3, 3, 2], "the eight of each of two groups");
        assert!(driver.lanes.iter().all(|lane| (lane.in_flight, lane.sent) == (8, 8)));
        let mut ends = std::mem::take(&mut driver.target.ends);
        driver.take(&mut ends).unwrap();
        assert!(driver.is_idle() && driver.ledger.totals().unknown == 16);
    }

    #[test]
    fn skewed_lanes_keep_what_each_client_has_in_flight() {
        let plan = DriverPlan { skew: Skew::Zipf(1.0), ..plan(4, 100, 8) };
        let lanes = lanes(&plan);
        for client in 0..4 {
            let own = lanes.iter().filter(|lane| lane.client == client);
            assert_eq!(own.map(|lane| lane.window).sum::<u32>(), 100);
        }
        let mut slots: Vec<u64> = lanes.iter().flat_map(|lane| lane.slots.clone()).collect();
        slots.sort_unstable();
        assert!(slots.into_iter().eq(0..400), "each slot belongs to one lane");
        let of_group =
            |group| lanes.iter().filter(|lane| lane.group == group).map(|lane| lane.window).sum::<u32>();
        assert!(of_group(1) > 6 * of_group(8), "{} and {}", of_group(1), of_group(8));
    }

    #[test]
    fn intervals_meet_at_the_edges_of_the_measured_window() {
        let plan = plan(1, 1, 1);
        let mut cuts = vec![Duration::ZERO];
        while *cuts.last().unwrap() < plan.end() {
            cuts.push(plan.cut_after(*cuts.last().unwrap()));
        }
        let ms: Vec<u128> = cuts.iter().map(Duration::as_millis).collect();
        assert_eq!(ms, [0, 1000, 1500, 2500, 3500, 3700]);
        let measured: Vec<bool> = cuts.iter().map(|from| plan.is_measured(*from)).collect();
        assert_eq!(measured, [false, false, true, true, true, false]);
        assert!(cuts.len() <= plan.intervals_max() + 1);
    }
}

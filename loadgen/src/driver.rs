//! Clients, on the network or in the process of a node: one thread drives many of them.
//!
//! A client's requests in flight are spread evenly over the groups (`lanes.rs`); the share of one client in one
//! group is a *lane*. A request is a record to be appended, or, in a mixed load, a read of one. In the closed loop what is free in
//! a lane goes out, its records as one append, as soon as requests before it are
//! answered. In the open loop (`schedule.rs`) it is what is due in the lane, while there is room for it; latency counts from when it was due.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::SyncSender;
use std::time::{Duration, Instant};

use iroh_raft::net::client::{Client, ClientConfig, ClientError, Completion};
use iroh_raft::{Engine, GroupId, Retry};

use crate::arrivals::Times;
use crate::clients::Gate;
use crate::followed::Followed;
use crate::lanes::{Deal, Lane};
use crate::ledger::{AckRun, Ledger, SentRun};
use crate::mix::Mix;
use crate::mixed::ReadTotals;
use crate::progress::{INTERVAL, Intervals, Progress, Window};
use crate::reading::{ReadEnd, ReadResult, Reader, ReaderPlan};
use crate::record::RecordId;
use crate::recorder::Timeline;
use crate::schedule::{Pacer, Schedule};
use crate::sizes::RecordSizes;
use crate::skew::Skew;
use crate::target::{Embedded, InSessions, Networked, Target};

/// How long a lane rests after the client has given up on its records: long enough not to spin.
const REST: Duration = Duration::from_millis(10);
/// A request that leaves later than this after it was due did not keep to its schedule.
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
    /// Requests in flight of each client.
    pub(crate) in_flight: u32,
    /// How these are spread over them.
    pub(crate) skew: Skew,
    /// When requests are due, in the open loop; `None` for the closed one.
    pub(crate) times: Option<Times>,
    /// Bytes of a record.
    pub(crate) sizes: RecordSizes,
    /// What requests are.
    pub(crate) mix: Mix,
    /// Of what is drawn for it.
    pub(crate) seed: u64,
    /// What is known together with followers, if there are any.
    pub(crate) followed: Option<Arc<Followed>>,
    /// What is not measured.
    pub(crate) warmup: Duration,
    /// What is measured.
    pub(crate) duration: Duration,
}

impl DriverPlan {
    fn deal(&self) -> Deal<'_> {
        Deal {
            clients: self.clients.clone(),
            clients_total: self.clients_total,
            in_flight: self.in_flight,
            skew: self.skew,
            targets: &self.targets,
        }
    }

    /// When all of it happens that begins at `start`.
    pub(crate) fn window(&self, start: Instant) -> Window {
        Window { start, warmup: self.warmup, duration: self.duration }
    }
}

/// What a thread knows in the end.
#[derive(Debug)]
pub(crate) struct DriverResult {
    /// Every record it sent.
    pub(crate) ledger: Ledger,
    /// When each group acknowledged.
    pub(crate) timeline: Timeline,
    /// When requests were due, in the open loop.
    pub(crate) times: Option<Times>,
    /// How its reads ended.
    pub(crate) reads: ReadTotals,
    /// The last error that a request met, if any did.
    pub(crate) last_error: Option<ClientError>,
}

/// Runs clients in the process of a node from now to the end, or until `stop` is set. `drain`: how long answers are awaited
/// after it.
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
    let window = plan.window(Instant::now());
    drive_target(plan, window, None, Embedded::new(engine), (drain, progress, stop)).await
}

/// Runs clients of any target, which append and nothing else, to the end, or until `stop` is set. `drain`: how long answers are
/// awaited after it.
///
/// # Errors
/// [`ClientError`] that no other record would escape.
pub(crate) async fn drive_target(
    plan: DriverPlan,
    window: Window,
    pacer: Option<&Pacer>,
    target: impl Target,
    (drain, progress, stop): (Duration, SyncSender<Progress>, &AtomicBool),
) -> Result<DriverResult, ClientError> {
    let mut driver = Driver::new(plan, window, target, None, progress);
    driver.run(pacer, drain + SLACK, stop).await?;
    Ok(driver.into_result())
}

/// Runs a thread's clients to the end, or until `stop` is set. They connect first, and wait at the gate for each other.
///
/// # Errors
/// [`ClientError`] that no other record would escape: refused by the cluster, too large.
pub(crate) async fn drive(
    plan: DriverPlan,
    pacer: Option<Pacer>,
    client: ClientConfig,
    progress: SyncSender<Progress>,
    (gate, stop): (Gate, Arc<AtomicBool>),
) -> Result<DriverResult, ClientError> {
    let deadline = client.limits.deadline;
    let nodes = client.nodes.iter().map(|node| node.node).collect();
    let client = Client::connect(client).await?;
    let reader = (plan.mix.reads > 0.0).then(|| {
        let plan = ReaderPlan {
            nodes,
            kind: plan.mix.read_kind,
            share: plan.mix.reads,
            deadline,
            sizes: &plan.sizes,
            first_client: plan.first_client,
            groups: plan.groups,
            seed: plan.seed ^ (u64::from(plan.clients.start) << 32),
        };
        Reader::new(client.clone(), plan)
    });
    let drain = deadline + SLACK;
    let result = if plan.mix.sessions {
        let ttl = Mix::session_ttl(plan.warmup + plan.duration);
        let places: Vec<(u32, u32)> =
            plan.deal().lanes().iter().map(|lane| (lane.client, lane.group)).collect();
        let target = InSessions::open(&client, places.into_iter(), &plan.sizes, ttl).await?;
        let window = plan.window(gate.pass().await?);
        let mut driver = Driver::new(plan, window, target, reader, progress);
        let result = driver.run(pacer.as_ref(), drain, &stop).await;
        let (target, known) = driver.into_parts();
        target.close().await;
        result.map(|()| known)
    } else {
        let window = plan.window(gate.pass().await?);
        let mut driver = Driver::new(plan, window, Networked::new(&client), reader, progress);
        let result = driver.run(pacer.as_ref(), drain, &stop).await;
        result.map(|()| driver.into_result())
    };
    client.close();
    client.closed().await;
    result
}

/// One append in flight.
#[derive(Clone, Copy, Debug)]
struct Flight {
    lane: usize,
    run: SentRun,
    /// Which of its lane's requests is its first.
    number: u64,
    floor: u64,
    sent: Instant,
}

/// What the requests of a lane are, by their numbers.
#[derive(Clone, Copy)]
struct Order<'a> {
    lane: &'a Lane,
    reader: Option<&'a Reader>,
    schedule: Option<&'a Schedule>,
    start: Instant,
}

impl<'a> Order<'a> {
    fn is_read(self, number: u64) -> bool {
        let Lane { client, group, reads_from, .. } = *self.lane;
        reads_from.is_some_and(|from| number >= from)
            && self.reader.is_some_and(|reader| reader.is_read(client, group, number))
    }

    /// When a request is due, in the open loop.
    fn due_at(self, number: u64) -> Option<Instant> {
        self.schedule.map(|schedule| self.start + schedule.due_at(&self.lane.slots, number))
    }

    /// When those are due that append, from this one on.
    fn due(self, number: u64) -> impl Iterator<Item = Instant> + use<'a> {
        let appends = (number..).filter(move |number| !self.is_read(*number));
        appends.map_while(move |number| self.due_at(number))
    }
}

struct Driver<T> {
    plan: DriverPlan,
    window: Window,
    schedule: Option<Schedule>,
    target: T,
    reader: Option<Reader>,
    lanes: Vec<Lane>,
    /// Lanes with room.
    ready: Vec<usize>,
    /// Lanes that rest, and until when; in order of time.
    resting: VecDeque<(Instant, usize)>,
    /// By tag. `None`: the tag is free.
    flights: Vec<Option<Flight>>,
    free_tags: Vec<usize>,
    intervals: Intervals,
    ledger: Ledger,
    timeline: Timeline,
    reads: ReadTotals,
    last_error: Option<ClientError>,
    /// Reused: the bytes of the records of one append.
    bytes: Vec<u8>,
    /// Reused: where each of them ends.
    ends: Vec<usize>,
}

impl<T: Target> Driver<T> {
    fn new(
        plan: DriverPlan,
        window: Window,
        target: T,
        reader: Option<Reader>,
        progress: SyncSender<Progress>,
    ) -> Driver<T> {
        let lanes = plan.deal().lanes();
        let slots = lanes.iter().map(|lane| lane.slots.len() as u64).sum();
        let schedule = plan.times.clone().map(|times| Schedule { times, slots });
        Driver {
            schedule,
            target,
            reader,
            ready: (0..lanes.len()).collect(),
            lanes,
            resting: VecDeque::new(),
            flights: Vec::new(),
            free_tags: Vec::new(),
            intervals: Intervals::new(window, progress),
            ledger: Ledger::new(plan.groups, plan.clients_total),
            timeline: Timeline::new(plan.groups),
            reads: ReadTotals::default(),
            last_error: None,
            bytes: Vec::new(),
            ends: Vec::new(),
            plan,
            window,
        }
    }

    async fn run(
        &mut self,
        pacer: Option<&Pacer>,
        drain: Duration,
        stop: &AtomicBool,
    ) -> Result<(), ClientError> {
        let (mut completions, mut reads) = (Vec::new(), Vec::new());
        let end = self.window.start + self.window.end();
        loop {
            let now = Instant::now();
            self.intervals.cut(now);
            let is_ended = now >= end || stop.load(Ordering::Relaxed);
            if is_ended && (self.is_idle() || now >= end + drain) {
                break;
            }
            if !is_ended {
                self.wake(now);
                self.fill(now)?;
            }
            let wake = self.next_wake(now, end, drain);
            let (target, reader) = (&mut self.target, &mut self.reader);
            let answers = async {
                match reader {
                    None => target.recv(&mut completions).await,
                    Some(reader) => tokio::select! {
                        () = target.recv(&mut completions) => {}
                        () = reader.recv(&mut reads) => {}
                    },
                }
            };
            // A timeout is no error here: something else is due.
            let answers = tokio::time::timeout_at(wake.into(), answers);
            match pacer.filter(|_| !is_ended) {
                None => drop(answers.await),
                Some(pacer) => tokio::select! {
                    _ = answers => {}
                    () = pacer.tick() => {}
                },
            }
            self.take(&mut completions, &mut reads)?;
        }
        // What is still open now will never be answered.
        for flight in std::mem::take(&mut self.flights).into_iter().flatten() {
            self.ledger.unknown(self.lanes[flight.lane].group, flight.run);
        }
        self.reads.failed += self.reader.as_ref().map_or(0, Reader::open);
        Ok(())
    }

    fn into_result(self) -> DriverResult {
        self.into_parts().1
    }

    fn into_parts(self) -> (T, DriverResult) {
        let times = self.schedule.map(|schedule| schedule.times);
        let Driver { target, ledger, timeline, reads, last_error, .. } = self;
        (target, DriverResult { ledger, timeline, times, reads, last_error })
    }

    fn is_idle(&self) -> bool {
        self.free_tags.len() == self.flights.len() && self.reader.as_ref().is_none_or(Reader::is_idle)
    }

    fn next_wake(&self, now: Instant, end: Instant, drain: Duration) -> Instant {
        let cut = self.intervals.next_cut();
        let rested = self.resting.front().map_or(cut, |(at, _)| *at);
        let edge = if now < end { end } else { end + drain };
        // Ctrl-C is looked for at least as often as intervals are cut.
        cut.min(rested).min(edge).max(now + Duration::from_micros(100)).min(now + INTERVAL)
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
            let count = match &self.schedule {
                None => {
                    lane.is_queued = false;
                    room
                }
                // Each lane is looked at every time.
                Some(schedule) => {
                    self.ready.push(at);
                    let due = schedule.due(&lane.slots, now.saturating_duration_since(self.window.start));
                    u32::try_from(due - lane.sent).unwrap_or(u32::MAX).min(room)
                }
            };
            self.fill_lane(at, count, now)?;
        }
        Ok(())
    }

    /// Sends the next requests of a lane, so many at most: those that append as one append, or as few as can be.
    fn fill_lane(&mut self, at: usize, count: u32, now: Instant) -> Result<(), ClientError> {
        let (lane, records_max) = (&mut self.lanes[at], self.target.append_records_max());
        if let Some(reader) = &self.reader
            && lane.reads_from.is_none()
            && reader.has_some(lane.group)
        {
            lane.reads_from = Some(lane.sent);
        }
        let (mut first, mut appends) = (lane.sent, 0);
        for number in lane.sent..lane.sent + u64::from(count) {
            if self.order(at).is_read(number) {
                self.read(at, number, now);
                continue;
            }
            if appends == 0 {
                if self.target.is_one_at_a_time() && self.lanes[at].appends > 0 {
                    // The requests after it wait, too: they keep their order.
                    return Ok(());
                }
                first = number;
            }
            appends += 1;
            let lane = &mut self.lanes[at];
            (lane.sent, lane.in_flight) = (lane.sent + 1, lane.in_flight + 1);
            if appends == records_max {
                self.send(at, first, std::mem::take(&mut appends), now)?;
            }
        }
        if appends > 0 { self.send(at, first, appends, now) } else { Ok(()) }
    }

    /// What the requests of a lane are.
    fn order(&self, at: usize) -> Order<'_> {
        let (reader, schedule) = (self.reader.as_ref(), self.schedule.as_ref());
        Order { lane: &self.lanes[at], reader, schedule, start: self.window.start }
    }

    /// Sends the next request of a lane, which reads.
    fn read(&mut self, at: usize, number: u64, now: Instant) {
        let lane = &mut self.lanes[at];
        (lane.sent, lane.in_flight) = (lane.sent + 1, lane.in_flight + 1);
        let reader = self.reader.as_mut().expect("only a reader makes a request a read");
        reader.begin(at, lane.group, number, now);
    }

    /// Sends requests of a lane that append as one append; `number`: the first of them.
    fn send(&mut self, at: usize, number: u64, count: u32, now: Instant) -> Result<(), ClientError> {
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
        lane.appends += 1;
        let run = SentRun { client, sequence, count };
        let flight = Flight { lane: at, run, number, floor: lane.floor, sent: now };
        if let Some(followed) = &self.plan.followed {
            match &self.schedule {
                None => followed.note_sent(group, client, sequence, [(now, count)].into_iter()),
                Some(_) => {
                    let order = self.order(at);
                    let due = order.due(number).take(count as usize).map(|due| (due, 1));
                    followed.note_sent(group, client, sequence, due);
                }
            }
        }
        let tag = self.free_tags.pop().unwrap_or(self.flights.len());
        if tag == self.flights.len() {
            self.flights.push(None);
        }
        self.flights[tag] = Some(flight);
        let starts = [0].into_iter().chain(self.ends.iter().copied());
        let records: Vec<&[u8]> = starts.zip(&self.ends).map(|(from, to)| &self.bytes[from..*to]).collect();
        match self.target.try_append(client, GroupId(group.into()), &records, tag as u64) {
            Ok(()) => Ok(()),
            Err(error) => self.complete(Completion { tag: tag as u64, result: Err(error) }, now),
        }
    }

    fn take(
        &mut self,
        completions: &mut Vec<Completion>,
        reads: &mut Vec<ReadEnd>,
    ) -> Result<(), ClientError> {
        if completions.is_empty() && reads.is_empty() {
            return Ok(());
        }
        let now = Instant::now();
        self.intervals.cut(now);
        completions.drain(..).try_for_each(|completion| self.complete(completion, now))?;
        reads.drain(..).try_for_each(|end| self.end_read(end, now))
    }

    fn complete(&mut self, completion: Completion, now: Instant) -> Result<(), ClientError> {
        let tag = completion.tag as usize;
        let flight = self.flights.get_mut(tag).and_then(Option::take);
        let flight = flight.expect("the client answers each append once, by its tag");
        self.free_tags.push(tag);
        let lane = &mut self.lanes[flight.lane];
        lane.in_flight -= flight.run.count;
        lane.appends -= 1;
        let (group, run) = (lane.group, flight.run);
        match completion.result {
            Ok(appended) => {
                let first = appended.offset.0;
                lane.floor = lane.floor.max(first + u64::from(run.count));
                let ack = AckRun { first, client: run.client, count: run.count, sequence: run.sequence };
                self.ledger.acked(group, ack, flight.floor);
                if let Some(reader) = &mut self.reader {
                    reader.note(group, ack);
                }
                if let Some(followed) = &self.plan.followed {
                    followed.note_acked(group, ack.end());
                }
                self.record(&flight, now);
                self.timeline.note(group, now.saturating_duration_since(self.window.start));
                self.queue(flight.lane);
            }
            Err(error) => {
                match error.retry() {
                    Retry::OutcomeUnknown => {
                        self.ledger.unknown(group, run);
                        self.intervals.now.unknown += u64::from(run.count);
                    }
                    Retry::Safe => {
                        self.ledger.refused(group, run);
                        self.intervals.now.refused += u64::from(run.count);
                        if let Some(followed) = &self.plan.followed {
                            followed.note_refused(group, run.client, run.sequence, run.count);
                        }
                    }
                    Retry::Never => return Err(error),
                }
                self.last_error = Some(error);
                self.rest(flight.lane, now);
            }
        }
        Ok(())
    }

    /// Records how long an append took.
    fn record(&mut self, flight: &Flight, now: Instant) {
        let count = flight.run.count;
        if self.schedule.is_none() {
            self.intervals.now.record(now - flight.sent, count.into());
            return;
        }
        self.intervals.now.serve(now - flight.sent, count.into());
        let order = Order {
            lane: &self.lanes[flight.lane],
            reader: self.reader.as_ref(),
            schedule: self.schedule.as_ref(),
            start: self.window.start,
        };
        for due in order.due(flight.number).take(count as usize) {
            self.intervals.now.record(now.saturating_duration_since(due), 1);
            let is_late = flight.sent.saturating_duration_since(due) > LATE;
            self.intervals.now.late += u64::from(is_late);
        }
    }

    fn end_read(&mut self, end: ReadEnd, now: Instant) -> Result<(), ClientError> {
        self.reads.note(&end.result);
        self.lanes[end.lane].in_flight -= 1;
        let due = self.order(end.lane).due_at(end.number);
        let interval = &mut self.intervals.now;
        match end.result {
            ReadResult::Right { answer_bytes } => {
                if let Some(due) = due {
                    interval.serve_read(now - end.sent);
                    interval.late += u64::from(end.sent.saturating_duration_since(due) > LATE);
                }
                interval.read(now.saturating_duration_since(due.unwrap_or(end.sent)), answer_bytes);
                self.queue(end.lane);
                return Ok(());
            }
            ReadResult::Refused(error) => return Err(error),
            ReadResult::Failed(error) => self.last_error = Some(error),
            ReadResult::Wrong | ReadResult::Missing | ReadResult::Trimmed => {}
        }
        interval.failed_reads += 1;
        self.rest(end.lane, now);
        Ok(())
    }

    /// A lane has room.
    fn queue(&mut self, at: usize) {
        if !std::mem::replace(&mut self.lanes[at].is_queued, true) {
            self.ready.push(at);
        }
    }

    /// A lane has room, and waits a little before it goes on.
    fn rest(&mut self, at: usize, now: Instant) {
        if !std::mem::replace(&mut self.lanes[at].is_queued, true) {
            self.resting.push_back((now + REST, at));
        }
    }
}

#[cfg(test)]
mod tests {
    use iroh_raft::Offset;
    use iroh_raft::core::{Index, Term};
    use iroh_raft::net::client::Appended;

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
            mix: Mix::default(),
            seed: 1,
            followed: None,
            warmup: Duration::from_millis(1500),
            duration: Duration::from_millis(2200),
        }
    }

    /// Takes three records an append, and answers at once.
    #[derive(Default)]
    struct Threes {
        is_one_at_a_time: bool,
        appends: Vec<usize>,
        ends: Vec<Completion>,
    }

    impl Target for Threes {
        fn append_records_max(&self) -> u32 {
            3
        }

        fn is_one_at_a_time(&self) -> bool {
            self.is_one_at_a_time
        }

        fn try_append(&mut self, _: u32, _: GroupId, records: &[&[u8]], tag: u64) -> Result<(), ClientError> {
            self.appends.push(records.len());
            self.ends.push(Completion { tag, result: Err(ClientError::OutcomeUnknown) });
            Ok(())
        }

        async fn recv(&mut self, out: &mut Vec<Completion>) {
            out.append(&mut self.ends);
        }
    }

    fn driver(is_one_at_a_time: bool) -> Driver<Threes> {
        let (progress, _seen) = std::sync::mpsc::sync_channel(8);
        let plan = plan(1, 16, 2);
        let window = plan.window(Instant::now());
        Driver::new(plan, window, Threes { is_one_at_a_time, ..Threes::default() }, None, progress)
    }

    #[test]
    fn a_target_gets_no_longer_appends_than_it_takes() {
        let mut driver = driver(false);
        driver.fill(Instant::now()).unwrap();
        assert_eq!(driver.target.appends, [3, 3, 2, 3, 3, 2], "the eight of each of two groups");
        assert!(driver.lanes.iter().all(|lane| (lane.in_flight, lane.sent) == (8, 8)));
        let mut ends = std::mem::take(&mut driver.target.ends);
        driver.take(&mut ends, &mut Vec::new()).unwrap();
        assert!(driver.is_idle() && driver.ledger.totals().unknown == 16);
    }

    #[test]
    fn a_session_gets_its_next_append_once_the_one_before_is_answered() {
        let mut driver = driver(true);
        for round in 1..=3 {
            driver.fill(Instant::now()).unwrap();
            assert_eq!(driver.target.appends, vec![3; 2 * round]);
            assert!(driver.lanes.iter().all(|lane| (lane.in_flight, lane.appends) == (3, 1)));
            driver.fill(Instant::now()).unwrap();
            assert_eq!(driver.target.appends.len(), 2 * round, "each has one under way");
            for end in &mut driver.target.ends {
                end.result = Ok(Appended { offset: Offset(0), index: Index(0), term: Term(0) });
            }
            let mut ends = std::mem::take(&mut driver.target.ends);
            driver.take(&mut ends, &mut Vec::new()).unwrap();
        }
    }
}

//! Load for tests of flow control: requests that can be told apart, and what became of each.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use iroh_raft::net::client::{Client, ClientError, ClientLimits, Completion};
use iroh_raft::prelude::*;
use iroh_raft::{RequestError, Retry};
use tokio::task::JoinSet;

/// Records of a request.
pub const RECORDS: usize = 8;
/// Bytes of a record.
pub const RECORD_BYTES: usize = 124;
/// Bytes that a request counts as pending: its records with their lengths.
pub const REQUEST_BYTES: usize = RECORDS * (RECORD_BYTES + 4);
/// How often an open loop looks at what is due.
const PACE: Duration = Duration::from_millis(2);
/// Requests of one embedded open loop that wait for their answers at most; more are not made.
pub const EMBEDDED_OPEN_MAX: usize = 1024;

type Request = [[u8; RECORD_BYTES]; RECORDS];

/// Numbers of requests, each used once.
#[derive(Clone, Default, Debug)]
pub struct Numbers(Arc<AtomicU64>);

impl Numbers {
    fn next(&self) -> u64 {
        self.0.fetch_add(1, Ordering::Relaxed)
    }
}

fn request(number: u64) -> Request {
    let mut records = [[0; RECORD_BYTES]; RECORDS];
    for (at, record) in (0_u64..).zip(&mut records) {
        record[..8].copy_from_slice(&number.to_le_bytes());
        record[8..16].copy_from_slice(&at.to_le_bytes());
    }
    records
}

/// A request that was acknowledged.
#[derive(Clone, Copy, Debug)]
struct Acked {
    group: GroupId,
    first: Offset,
    number: u64,
}

/// What became of requests.
#[derive(Default, Debug)]
pub struct Seen {
    acked: Vec<Acked>,
    /// Of those acknowledged, from the call to the answer.
    latencies: Vec<Duration>,
    /// Requests that nodes refused as busy, by what was full.
    pub busy: BTreeMap<String, u64>,
    /// Hints of these, in milliseconds: the lowest and the highest.
    pub hints_ms: Option<(u32, u32)>,
    /// Requests that the client did not send, because it has no room for more.
    pub unsent: u64,
    /// Requests that met a change of leaders, or whose time or connection was lost.
    pub lost: u64,
    /// Requests that were made.
    pub offered: u64,
}

impl Seen {
    /// Requests that were acknowledged.
    #[must_use]
    pub fn acked(&self) -> u64 {
        self.acked.len() as u64
    }

    /// Requests that were refused as busy.
    #[must_use]
    pub fn refused(&self) -> u64 {
        self.busy.values().sum()
    }

    /// The time within which so many of the acknowledged requests were answered.
    ///
    /// # Panics
    /// When there is none.
    #[must_use]
    pub fn quantile(&self, quantile: f64) -> Duration {
        let mut sorted = self.latencies.clone();
        sorted.sort_unstable();
        sorted[((sorted.len() as f64 * quantile) as usize).min(sorted.len() - 1)]
    }

    /// Adds what others have seen.
    pub fn merge(&mut self, other: Seen) {
        self.acked.extend(other.acked);
        self.latencies.extend(other.latencies);
        for (reason, count) in other.busy {
            *self.busy.entry(reason).or_default() += count;
        }
        if let Some((low, high)) = other.hints_ms {
            self.note_hint(low);
            self.note_hint(high);
        }
        self.unsent += other.unsent;
        self.lost += other.lost;
        self.offered += other.offered;
    }

    fn note_hint(&mut self, ms: u32) {
        let (low, high) = self.hints_ms.unwrap_or((ms, ms));
        self.hints_ms = Some((low.min(ms), high.max(ms)));
    }

    /// # Panics
    /// When the end is one that no flow control gives.
    fn note(&mut self, group: GroupId, number: u64, took: Duration, result: Result<Offset, ClientError>) {
        match result {
            Ok(first) => {
                self.acked.push(Acked { group, first, number });
                self.latencies.push(took);
            }
            Err(ClientError::Full) => self.unsent += 1,
            Err(error) => self.note_error(&error),
        }
    }

    fn note_error(&mut self, error: &ClientError) {
        match error {
            ClientError::Request(RequestError::Busy { reason, retry_after_ms }) => {
                assert_eq!(error.retry(), Retry::Safe);
                assert!(*retry_after_ms > 0, "{error}");
                self.note_hint(*retry_after_ms);
                *self.busy.entry(format!("{reason:?}")).or_default() += 1;
            }
            ClientError::Request(
                RequestError::NotLeader { .. } | RequestError::OutcomeUnknown { .. } | RequestError::Timeout,
            )
            | ClientError::OutcomeUnknown
            | ClientError::Deadline
            | ClientError::Unreachable { .. } => self.lost += 1,
            error => panic!("{error}"),
        }
    }

    /// Checks that all that was acknowledged is in the logs, where it was said to be.
    ///
    /// # Panics
    /// When something is not.
    pub async fn audit(&mut self, node: &Engine) {
        self.acked.sort_unstable_by_key(|acked| (acked.group, acked.first));
        let mut log = (GroupId(0), BTreeMap::new());
        for Acked { group, first, number } in &self.acked {
            if log.0 != *group {
                log = (*group, read_all(node, *group).await);
            }
            for (at, record) in (first.0..).zip(request(*number)) {
                assert_eq!(log.1.get(&at).map(Vec::as_slice), Some(&record[..]), "record {at} of {group}");
            }
        }
    }
}

async fn read_all(node: &Engine, group: GroupId) -> BTreeMap<u64, Vec<u8>> {
    let mut all = BTreeMap::new();
    let mut from = Offset(0);
    loop {
        let records = node.read(group, from, 1 << 20).await.unwrap();
        if records.is_empty() {
            return all;
        }
        all.extend(records.iter().map(|record| (record.offset.0, record.data.to_vec())));
        from = records.next();
    }
}

/// Bounds of a client that hands everything on as it comes: it gathers nothing, and tries nothing again by itself.
#[must_use]
pub fn raw(in_flight_bytes_max: usize) -> ClientLimits {
    ClientLimits {
        attempts_max: 0,
        requests_per_group_max: usize::MAX,
        request_records_max: RECORDS,
        in_flight_bytes_max,
        // Longer than a busy machine keeps its threads waiting: a node that is slow is no reason to go elsewhere here.
        idle_timeout: Duration::from_secs(10),
        ..ClientLimits::default()
    }
}

/// Closed loop over the network: in each of the groups so many requests are under way at a time, until so many are
/// acknowledged in it. Returns how long that took.
///
/// # Panics
/// When a request fails for good.
pub async fn closed(
    clients: &[Client],
    groups: &[GroupId],
    in_flight: usize,
    requests: u64,
    numbers: &Numbers,
) -> (Seen, Duration) {
    let started = Instant::now();
    let mut workers = JoinSet::new();
    for &group in groups {
        let left = Arc::new(AtomicU64::new(requests));
        for client in clients.iter().cycle().take(in_flight) {
            let (client, numbers, left) = (client.clone(), numbers.clone(), left.clone());
            workers.spawn(async move {
                let mut seen = Seen::default();
                while left
                    .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1))
                    .is_ok()
                {
                    let (number, before) = (numbers.next(), seen.acked());
                    let sent = Instant::now();
                    let appended = client.append_batch(group, &request(number)).await;
                    seen.offered += 1;
                    seen.note(group, number, sent.elapsed(), appended.map(|appended| appended.offset));
                    if seen.acked() == before {
                        left.fetch_add(1, Ordering::Relaxed);
                        tokio::time::sleep(PACE).await;
                    }
                }
                seen
            });
        }
    }
    let mut all = Seen::default();
    while let Some(seen) = workers.join_next().await {
        all.merge(seen.unwrap());
    }
    (all, started.elapsed())
}

/// Open loop over the network: so many requests a second for so long, to the groups in turn, whatever becomes of them.
///
/// # Panics
/// When a request fails for good.
pub async fn open(
    client: Client,
    groups: Vec<GroupId>,
    per_s: f64,
    duration: Duration,
    numbers: Numbers,
) -> Seen {
    let (appender, mut completions) = client.appender();
    let mut seen = Seen::default();
    let mut sent: Vec<(GroupId, u64, Instant)> = Vec::new();
    let (mut ends, mut ended) = (Vec::new(), 0);
    let started = Instant::now();
    while started.elapsed() < duration {
        let due = (started.elapsed().min(duration).as_secs_f64() * per_s) as u64;
        while seen.offered < due {
            let group = groups[seen.offered as usize % groups.len()];
            let number = numbers.next();
            seen.offered += 1;
            match appender.try_append_batch(group, &request(number), sent.len() as u64) {
                Ok(()) => sent.push((group, number, Instant::now())),
                Err(error) => seen.note(group, number, Duration::ZERO, Err(error)),
            }
        }
        // A timeout is no error: something else is due.
        let _ = tokio::time::timeout(PACE, completions.recv(&mut ends)).await;
        ended += note_ends(&mut seen, &sent, &mut ends);
    }
    while ended < sent.len() {
        completions.recv(&mut ends).await;
        ended += note_ends(&mut seen, &sent, &mut ends);
    }
    seen
}

fn note_ends(seen: &mut Seen, sent: &[(GroupId, u64, Instant)], ends: &mut Vec<Completion>) -> usize {
    let count = ends.len();
    for Completion { tag, result } in ends.drain(..) {
        let (group, number, at) = sent[tag as usize];
        seen.note(group, number, at.elapsed(), result.map(|appended| appended.offset));
    }
    count
}

/// Open loop in the process of the node that leads the group.
///
/// # Panics
/// When a request fails for good.
pub async fn open_embedded(
    engine: Engine,
    group: GroupId,
    per_s: f64,
    duration: Duration,
    numbers: Numbers,
) -> Seen {
    let mut seen = Seen::default();
    let mut calls = JoinSet::new();
    let started = Instant::now();
    while started.elapsed() < duration {
        let due = (started.elapsed().min(duration).as_secs_f64() * per_s) as u64;
        while seen.offered < due {
            seen.offered += 1;
            if calls.len() >= EMBEDDED_OPEN_MAX {
                seen.unsent += 1;
                continue;
            }
            let (engine, number) = (engine.clone(), numbers.next());
            calls.spawn(async move {
                let sent = Instant::now();
                let appended = engine.append(group, &request(number)).await;
                (number, sent.elapsed(), appended.map(|appended| appended.first))
            });
        }
        tokio::time::sleep(PACE).await;
        while let Some(call) = calls.try_join_next() {
            let (number, took, result) = call.unwrap();
            seen.note(group, number, took, result.map_err(ClientError::Request));
        }
    }
    while let Some(call) = calls.join_next().await {
        let (number, took, result) = call.unwrap();
        seen.note(group, number, took, result.map_err(ClientError::Request));
    }
    seen
}

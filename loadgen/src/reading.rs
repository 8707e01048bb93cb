//! Reads of records that this load has had acknowledged, each compared with what was appended.
//!
//! Each thread reads what its own clients were told of. Of that all records of a group are equally likely to be read, also those
//! that only the disk still has. A record is read from one replica; one that lags has it not, and then others are asked.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use iroh_raft::net::client::{Client, ClientError};
use iroh_raft::{GroupId, NodeId, Offset, RequestError, Retry};
use tokio::sync::Semaphore;

use crate::ledger::AckRun;
use crate::mix::ReadKind;
use crate::record::{RecordId, mix};
use crate::sizes::RecordSizes;
use crate::target::{Open, recv_ended};

/// How long one replica is waited for before another one is asked, and how long one that had no such group is not asked again: it may be
/// a new node that is to have it.
const WAIT: Duration = Duration::from_secs(1);
/// Pause before another one is asked.
const PAUSE: Duration = Duration::from_millis(5);

/// Reads that are under way at a time; others wait in line, which their latency has in it. An answer is a whole batch, of up to
/// 480 KiB, and a node cuts a client off for which more than 64 MiB of answers wait.
const UNDER_WAY_MAX: usize = 128;

/// How a read has ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum ReadResult {
    /// The record is as it was appended, in an answer of so many bytes.
    Right { answer_bytes: u64 },
    /// Another record, or something that is none, stands in its place.
    Wrong,
    /// All replicas say that they do not have it.
    Missing,
    /// It was let go of, by age, by size or by command.
    Trimmed,
    /// No answer in time.
    Failed(ClientError),
    /// No other read would fare better.
    Refused(ClientError),
}

/// A read that has ended.
#[derive(Debug)]
pub(crate) struct ReadEnd {
    /// Whose request it was, and which of its requests.
    pub(crate) lane: usize,
    pub(crate) number: u64,
    pub(crate) sent: Instant,
    pub(crate) result: ReadResult,
}

/// Nodes that said that they have no group of this number, and when.
type Strangers = Arc<Mutex<BTreeMap<(GroupId, NodeId), Instant>>>;

/// Reads, for the clients of one thread.
pub(crate) struct Reader {
    client: Client,
    /// All that may have replicas.
    nodes: Arc<[NodeId]>,
    kind: ReadKind,
    /// Time for a read.
    deadline: Duration,
    sizes: RecordSizes,
    /// Number of the first client in the records.
    first_client: u32,
    /// Part of the requests that read.
    share: f64,
    seed: u64,
    /// By group, from 1.
    groups: Vec<Acked>,
    open: Open<ReadEnd>,
    /// Reads begun.
    begun: u64,
    strangers: Strangers,
    line: Arc<Semaphore>,
}

/// What a reader is for.
pub(crate) struct ReaderPlan<'a> {
    pub(crate) nodes: Arc<[NodeId]>,
    pub(crate) kind: ReadKind,
    pub(crate) share: f64,
    pub(crate) deadline: Duration,
    pub(crate) sizes: &'a RecordSizes,
    pub(crate) first_client: u32,
    pub(crate) groups: u32,
    pub(crate) seed: u64,
}

impl Reader {
    pub(crate) fn new(client: Client, plan: ReaderPlan<'_>) -> Reader {
        let ReaderPlan { nodes, kind, share, deadline, sizes, first_client, groups, seed } = plan;
        Reader {
            client,
            nodes,
            kind,
            deadline,
            sizes: sizes.clone(),
            first_client,
            share,
            seed,
            groups: vec![Acked::default(); groups as usize],
            open: Open::new(),
            begun: 0,
            strangers: Strangers::default(),
            line: Arc::new(Semaphore::new(UNDER_WAY_MAX)),
        }
    }

    /// Whether none is under way.
    pub(crate) fn is_idle(&self) -> bool {
        self.open.is_empty()
    }

    /// Reads under way.
    pub(crate) fn open(&self) -> u64 {
        self.open.len() as u64
    }

    /// Notes records that may be read from now on.
    pub(crate) fn note(&mut self, group: u32, run: AckRun) {
        self.groups[group as usize - 1].note(run);
    }

    /// Whether a group has records that may be read.
    pub(crate) fn has_some(&self, group: u32) -> bool {
        self.groups[group as usize - 1].records > 0
    }

    /// Whether a request of a client in a group is a read: the same each time it is asked.
    pub(crate) fn is_read(&self, client: u32, group: u32, number: u64) -> bool {
        is_drawn(self.share, mix((u64::from(client) << 32 | u64::from(group)) ^ mix(self.seed)), number)
    }

    /// Begins a read of a group, which has records to be read.
    pub(crate) fn begin(&mut self, lane: usize, group: u32, number: u64, sent: Instant) {
        let turn = self.begun;
        self.begun += 1;
        let drawn = mix(self.seed ^ mix(turn ^ 0x72ea_d5e1_ec7e_d000));
        let (offset, client, sequence) = self.groups[group as usize - 1].pick(drawn);
        let id = RecordId { client: self.first_client + client, group, sequence };
        let read = Read {
            client: self.client.clone(),
            nodes: self.nodes.clone(),
            kind: self.kind,
            deadline: self.deadline,
            group: GroupId(group.into()),
            offset: Offset(offset),
            id,
            sizes: self.sizes.clone(),
            turn: turn as usize,
            strangers: self.strangers.clone(),
        };
        let line = self.line.clone();
        self.open.push(Box::pin(async move {
            // It is never closed.
            let _place = line.acquire().await;
            let result = read.run().await;
            ReadEnd { lane, number, sent, result }
        }));
    }

    /// Waits for ends and adds all there are to `out`. Cancel safe.
    pub(crate) async fn recv(&mut self, out: &mut Vec<ReadEnd>) {
        recv_ended(&mut self.open, out).await;
    }
}

/// Whether a number of a series is in this share of all numbers.
fn is_drawn(share: f64, series: u64, number: u64) -> bool {
    let drawn = mix(series.wrapping_add(number.wrapping_mul(0x9e37_79b9_7f4a_7c15)));
    ((drawn >> 11) as f64) < share * (1_u64 << 53) as f64
}

/// Acknowledged records of a group, and how many there are up to each run of them.
#[derive(Clone, Default, Debug)]
struct Acked {
    runs: Vec<(u64, AckRun)>,
    records: u64,
}

impl Acked {
    fn note(&mut self, run: AckRun) {
        self.records += u64::from(run.count);
        if let Some((end, last)) = self.runs.last_mut()
            && last.client == run.client
            && last.end() == run.first
            && last.sequence + u64::from(last.count) == run.sequence
            && let Some(count) = last.count.checked_add(run.count)
        {
            (last.count, *end) = (count, self.records);
            return;
        }
        self.runs.push((self.records, run));
    }

    /// One of them, of which there is at least one: offset, client and sequence.
    fn pick(&self, drawn: u64) -> (u64, u32, u64) {
        let record = drawn % self.records;
        let at = self.runs.partition_point(|(end, _)| *end <= record);
        let (end, run) = self.runs[at];
        let within = u64::from(run.count) - (end - record);
        (run.first + within, run.client, run.sequence + within)
    }
}

/// One read.
struct Read {
    client: Client,
    nodes: Arc<[NodeId]>,
    kind: ReadKind,
    /// Once it has left the line.
    deadline: Duration,
    group: GroupId,
    offset: Offset,
    id: RecordId,
    sizes: RecordSizes,
    turn: usize,
    strangers: Strangers,
}

/// What came of asking one replica.
enum Asked {
    Ended(ReadResult),
    /// It has come so far only, or knows of no more yet that is committed.
    Lacks,
    /// Another one may do better.
    Failed(ClientError),
}

impl Read {
    async fn run(self) -> ReadResult {
        let until = Instant::now() + self.deadline;
        let mut failure = ClientError::Deadline;
        // Those who said so last.
        let mut lacking = BTreeSet::new();
        for attempt in 0.. {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            if let Some(node) = self.node(attempt) {
                match self.ask(node, left.min(WAIT)).await {
                    Asked::Ended(result) => return result,
                    Asked::Lacks => _ = lacking.insert(node),
                    Asked::Failed(error) => {
                        lacking.remove(&node);
                        failure = error;
                    }
                }
            }
            tokio::time::sleep(PAUSE).await;
        }
        let strangers = self.strangers();
        let may_have_it = |node: &&NodeId| !strangers.contains_key(&(self.group, **node));
        // Whoever is away may be the one that has it, and one that lags may not know yet.
        match is_lost(self.nodes.iter().filter(may_have_it), &lacking) {
            true => ReadResult::Missing,
            false => ReadResult::Failed(failure),
        }
    }

    fn strangers(&self) -> MutexGuard<'_, BTreeMap<(GroupId, NodeId), Instant>> {
        self.strangers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Who is asked. The leader may have changed: when it does not answer, others may.
    fn node(&self, attempt: usize) -> Option<NodeId> {
        if self.kind == ReadKind::Leader
            && attempt.is_multiple_of(2)
            && let Some(leader) = self.client.leader_hint(self.group)
        {
            return Some(leader);
        }
        let mut nodes = self.client.connected();
        let strangers = self.strangers();
        let is_stranger = |node| strangers.get(&(self.group, node)).is_some_and(|at| at.elapsed() < WAIT);
        nodes.retain(|node| !is_stranger(*node));
        (!nodes.is_empty()).then(|| nodes[(self.turn + attempt) % nodes.len()])
    }

    async fn ask(&self, node: NodeId, wait: Duration) -> Asked {
        let client = self.client.with_deadline(wait);
        let error = match client.read(node, self.group, self.offset, 1).await {
            Ok(records) => {
                self.strangers().remove(&(self.group, node));
                let Some(record) = records.iter().next() else { return Asked::Lacks };
                let is_right =
                    record.offset == self.offset && RecordId::read(record.data, &self.sizes) == Some(self.id);
                return Asked::Ended(match is_right {
                    true => ReadResult::Right { answer_bytes: records.bytes() as u64 },
                    false => ReadResult::Wrong,
                });
            }
            Err(error) => error,
        };
        match error {
            // What it answers does not begin with the record, or has holes.
            ClientError::Protocol { .. } => Asked::Ended(ReadResult::Wrong),
            ClientError::Request(RequestError::BeforeStart { .. }) => Asked::Ended(ReadResult::Trimmed),
            ClientError::Request(RequestError::PastEnd { .. }) => Asked::Lacks,
            ClientError::Request(RequestError::UnknownGroup) => {
                self.strangers().insert((self.group, node), Instant::now());
                Asked::Failed(error)
            }
            error if error.retry() == Retry::Never => Asked::Ended(ReadResult::Refused(error)),
            error => Asked::Failed(error),
        }
    }
}

/// Whether none of these replicas has a record: they all have said so.
fn is_lost<'a>(mut replicas: impl Iterator<Item = &'a NodeId>, lacking: &BTreeSet<NodeId>) -> bool {
    !lacking.is_empty() && replicas.all(|node| lacking.contains(node))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_lost_when_all_replicas_say_so() {
        let nodes = [1, 2, 3].map(NodeId);
        let lacking = |of: &[u64]| of.iter().copied().map(NodeId).collect::<BTreeSet<_>>();
        assert!(is_lost(nodes.iter(), &lacking(&[1, 2, 3])));
        assert!(!is_lost(nodes.iter(), &lacking(&[1, 3])));
        assert!(!is_lost([].iter(), &lacking(&[])));
    }

    #[test]
    fn so_many_requests_read_as_were_asked_for() {
        for share in [0.0, 0.05, 0.5, 0.99] {
            for series in 0..4 {
                let reads = (0..100_000).filter(|number| is_drawn(share, series, *number)).count();
                assert!((reads as f64 - 1e5 * share).abs() < 1000.0, "{share}, series {series}: {reads}");
            }
        }
    }

    #[test]
    fn every_acknowledged_record_is_as_likely_as_any_other() {
        let mut acked = Acked::default();
        acked.note(AckRun { first: 10, client: 0, count: 3, sequence: 0 });
        acked.note(AckRun { first: 13, client: 0, count: 1, sequence: 3 });
        acked.note(AckRun { first: 0, client: 1, count: 2, sequence: 7 });
        assert_eq!((acked.runs.len(), acked.records), (2, 6));
        let picked: Vec<_> = (0..6).map(|drawn| acked.pick(drawn)).collect();
        assert_eq!(picked, [(10, 0, 0), (11, 0, 1), (12, 0, 2), (13, 0, 3), (0, 1, 7), (1, 1, 8)]);
    }
}

//! Reads every replica's whole log of every group back over the network, into the audit.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::time::Duration;

use iroh_raft::net::client::{Client, ClientConfig, ClientError, Records};
use iroh_raft::{GroupId, NodeId, Offset, RequestError, Retry};
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::ack_log::AckLog;
use crate::audit::{AuditCounts, ReplicaAudit, diverged, span};
use crate::ledger::GroupLedger;

/// Bytes of one read.
const READ_BYTES: u32 = 4 << 20;
/// Answers read ahead of the audit. Full: the reader waits.
const ANSWERS_AHEAD_MAX: usize = 2;
/// How long one read is tried before what is left counts as absent.
const READ_DEADLINE: Duration = Duration::from_secs(30);
/// Pause before a read that failed is tried again.
const RETRY_PAUSE: Duration = Duration::from_millis(50);

/// A replica that could not be read to its end.
#[derive(Debug)]
pub(crate) struct Unreadable {
    pub(crate) node: NodeId,
    pub(crate) group: u32,
    pub(crate) from: u64,
    pub(crate) error: ClientError,
}

impl fmt::Display for Unreadable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Unreadable { node, group, from, error } = self;
        write!(f, "node {node}, group {group}: unreadable from offset {from}: {error}")
    }
}

/// The nodes that have a group.
pub(crate) type Replicas = BTreeMap<u32, Vec<NodeId>>;

/// All groups of a log, on all of these nodes.
pub(crate) fn everywhere(acks: &AckLog, nodes: &[NodeId]) -> Replicas {
    acks.ledger.groups().map(|(group, _)| (group, nodes.to_vec())).collect()
}

/// Audits every group on every node that has it. Also returns what could not be read: its records count as
/// lost.
///
/// # Errors
/// [`ClientError`] when no node can be reached at all.
pub(crate) async fn audit(
    config: ClientConfig,
    acks: &AckLog,
    replicas: &Replicas,
) -> Result<(AuditCounts, Vec<Unreadable>), ClientError> {
    let client = Client::connect(config).await?;
    let mut counts = AuditCounts::default();
    let mut unreadable = Vec::new();
    for (group, of_group) in acks.ledger.groups() {
        let mut hashes = Vec::new();
        for &node in replicas.get(&group).into_iter().flatten() {
            let (found, ranges, failure) = replica(&client, node, acks, group, of_group).await;
            counts += found;
            hashes.push(ranges);
            unreadable.extend(failure);
        }
        counts.diverged += diverged(&hashes);
        counts.reordered += of_group.out_of_order();
    }
    client.close();
    client.closed().await;
    Ok((counts, unreadable))
}

async fn replica(
    client: &Client,
    node: NodeId,
    acks: &AckLog,
    group: u32,
    ledger: &GroupLedger,
) -> (AuditCounts, Vec<u64>, Option<Unreadable>) {
    let mut audit = ReplicaAudit::new(acks, group, ledger);
    let span = span(acks, ledger);
    if span.is_empty() {
        let (counts, hashes) = audit.finish();
        return (counts, hashes, None);
    }
    let (sender, mut answers) = mpsc::channel(ANSWERS_AHEAD_MAX);
    let reader = tokio::spawn(read_all(client.clone(), node, group, span.clone(), sender));
    while let Some(records) = answers.recv().await {
        for record in records.iter().filter(|record| span.contains(&record.offset.0)) {
            audit.handle_record(record.offset.0, record.data);
        }
    }
    let from = audit.next();
    let failure = match reader.await {
        Ok(Ok(())) => None,
        Ok(Err(error)) => Some(Unreadable { node, group, from, error }),
        Err(_) => Some(Unreadable { node, group, from, error: ClientError::Closed }),
    };
    let (counts, hashes) = audit.finish();
    (counts, hashes, failure)
}

/// Reads a replica's log to its end, ahead of whoever takes the answers.
async fn read_all(
    client: Client,
    node: NodeId,
    group: u32,
    span: Range<u64>,
    answers: mpsc::Sender<Records>,
) -> Result<(), ClientError> {
    let mut from = Offset(span.start);
    loop {
        let records = read(&client, node, group, from).await?;
        let is_end = records.is_empty() || records.next() >= records.end() || records.next().0 >= span.end;
        from = records.next();
        if answers.send(records).await.is_err() || is_end {
            return Ok(());
        }
    }
}

async fn read(client: &Client, node: NodeId, group: u32, from: Offset) -> Result<Records, ClientError> {
    let until = Instant::now() + READ_DEADLINE;
    loop {
        let error = match client.read(node, GroupId(group.into()), from, READ_BYTES).await {
            Ok(records) => return Ok(records),
            Err(error) => error,
        };
        // A read changes nothing: also an unknown outcome may be asked for again.
        let can_retry = error.retry() != Retry::Never
            && !matches!(error, ClientError::Request(RequestError::PastEnd { .. }));
        if !can_retry || Instant::now() >= until {
            return Err(error);
        }
        tokio::time::sleep(RETRY_PAUSE).await;
    }
}

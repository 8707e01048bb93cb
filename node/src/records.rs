//! Records: appended, read, followed.

use std::io::BufRead;
use std::process::ExitCode;

use futures_util::future::join_all;
use iroh_raft::net::client::{Client, ClientError, Record, TailOptions};
use iroh_raft::{GroupId, NodeId, Offset, RequestError};
use serde::Serialize;
use tokio::sync::mpsc;

use crate::cli::{Access, AppendArgs, ReadArgs, TailArgs};
use crate::cluster::{Connected, with};
use crate::say::{Failure, say};
use crate::status::NODE_DEADLINE;

/// Lines of the standard input that are appended together.
const LINES_MAX: usize = 1024;
/// Bytes of them, about.
const LINES_BYTES_MAX: usize = 1 << 20;
/// Bytes of records that are read at a time.
const READ_BYTES: u32 = 1 << 20;

#[derive(Serialize)]
struct Appended {
    group: u64,
    first: u64,
    records: usize,
}

/// A record as it is printed.
#[derive(Serialize)]
struct Printed {
    offset: u64,
    /// The leader's clock when it was appended.
    unix_ms: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<String>,
    /// Of one that is no text.
    #[serde(skip_serializing_if = "Option::is_none")]
    hex: Option<String>,
}

impl Printed {
    fn of(record: &Record<'_>) -> Printed {
        let text = std::str::from_utf8(record.data).ok().map(str::to_owned);
        let hex = || record.data.iter().map(|byte| format!("{byte:02x}")).collect();
        Printed { offset: record.offset.0, unix_ms: record.at.0, hex: text.is_none().then(hex), text }
    }

    fn line(&self) -> String {
        let data = self.text.as_deref().or(self.hex.as_deref()).unwrap_or_default();
        format!("{}\t{data}", self.offset)
    }
}

/// `iroh-raft append`.
pub(crate) fn append(access: &Access, args: &AppendArgs, json: bool) -> Result<ExitCode, Failure> {
    let group = GroupId(args.group);
    with(access, async |cluster| {
        if !args.records.is_empty() {
            return append_batch(&cluster.client, group, &args.records, json).await;
        }
        let mut lines = lines();
        let mut batch = Vec::new();
        while let Some(line) = lines.recv().await {
            let mut bytes = 0;
            let mut next = Ok(line);
            // As many as have come: a line of a person at once, a file in large batches.
            while let Ok(line) = next {
                let line = line.map_err(Failure::io("cannot read the standard input"))?;
                bytes += line.len();
                batch.push(line);
                if batch.len() == LINES_MAX || bytes >= LINES_BYTES_MAX {
                    break;
                }
                next = lines.try_recv();
            }
            append_batch(&cluster.client, group, &batch, json).await?;
            batch.clear();
        }
        Ok(())
    })?;
    Ok(ExitCode::SUCCESS)
}

/// The lines of the standard input, read by a thread: the connection lives while nobody types.
fn lines() -> mpsc::Receiver<std::io::Result<String>> {
    let (sender, receiver) = mpsc::channel(LINES_MAX);
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines() {
            if sender.blocking_send(line).is_err() {
                break;
            }
        }
    });
    receiver
}

async fn append_batch(
    client: &Client,
    group: GroupId,
    records: &[String],
    json: bool,
) -> Result<(), Failure> {
    let appended = client.append_batch(group, records).await?;
    let appended = Appended { group: group.0, first: appended.offset.0, records: records.len() };
    say(json, &appended, |appended| match appended.records {
        1 => format!("offset {}", appended.first),
        records => format!("offsets {} to {}", appended.first, appended.first + records as u64 - 1),
    });
    Ok(())
}

/// `iroh-raft read`.
pub(crate) fn read(access: &Access, args: &ReadArgs, json: bool) -> Result<ExitCode, Failure> {
    let group = GroupId(args.group);
    with(access, async |cluster| {
        let node = match args.node {
            Some(node) => NodeId(node),
            None => leader(cluster, group).await?,
        };
        let (mut from, mut left) = (Offset(args.from), args.count);
        while left > 0 {
            let records = cluster.client.read(node, group, from, READ_BYTES).await?;
            if records.is_empty() {
                break;
            }
            for record in records.iter().take(usize::try_from(left).unwrap_or(usize::MAX)) {
                say(json, &Printed::of(&record), Printed::line);
                left -= 1;
            }
            from = records.next();
        }
        Ok(ExitCode::SUCCESS)
    })
}

/// Who leads a group, as the members say.
async fn leader(cluster: &Connected, group: GroupId) -> Result<NodeId, Failure> {
    let client = cluster.client.with_deadline(NODE_DEADLINE);
    let asked = cluster.file.nodes.iter().map(|address| client.status(address.node, group));
    let answers = join_all(asked).await;
    let known =
        answers.iter().flatten().filter(|status| status.leader.is_some()).max_by_key(|status| status.term);
    if let Some(leader) = known.and_then(|status| status.leader) {
        return Ok(leader);
    }
    // Who has a replica and no leader says more than who has none, or is away.
    let has_replica = answers.iter().any(Result::is_ok);
    let first = answers.into_iter().find_map(Result::err).filter(|_| !has_replica);
    Err(first.unwrap_or(ClientError::Request(RequestError::NotLeader { leader: None })).into())
}

/// `iroh-raft tail`.
pub(crate) fn tail(access: &Access, args: &TailArgs, json: bool) -> Result<ExitCode, Failure> {
    let group = GroupId(args.group);
    with(access, async |cluster| {
        let from = match args.from {
            Some(from) => Offset(from),
            None => cluster.client.status(leader(cluster, group).await?, group).await?.end,
        };
        let mut tail = cluster.client.tail(group, from, TailOptions::default())?;
        let mut left = args.count.unwrap_or(u64::MAX);
        while left > 0 {
            let records = tokio::select! {
                records = tail.next() => records,
                _ = tokio::signal::ctrl_c() => break,
            };
            for record in records?.iter().take(usize::try_from(left).unwrap_or(usize::MAX)) {
                say(json, &Printed::of(&record), Printed::line);
                left -= 1;
            }
        }
        Ok(ExitCode::SUCCESS)
    })
}

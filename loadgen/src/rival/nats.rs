//! NATS JetStream: a group is a stream with one subject, in files, on three servers; a record is a message, published
//! and acknowledged by itself. Many are under way at a time: publishing does not wait for the answers of others.
//!
//! A group's records go to the server that leads its stream: an answer then takes no way through another.
//!
//! An acknowledged message is in the log of a majority. Whether it is on their disks depends on the version: servers
//! started here sync each write if they take that setting (`sync_interval: always`; the default is every two minutes).
//! 2.9 has no such setting, and writes to the page cache: what is acknowledged is lost when a majority loses power.

use std::ffi::OsString;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use async_nats::jetstream::context::{Context, ContextBuilder};
use async_nats::jetstream::stream::{Config, StorageType};
use async_nats::{ConnectOptions, Subject};
use bytes::Bytes;
use iroh_raft::GroupId;
use iroh_raft::net::client::{ClientError, Completion};

use super::process::{self, Processes};
use super::{
    APPEND_DEADLINE, ASK_DEADLINE, ASK_PAUSE, Connected, FirstError, READY_DEADLINE, RivalError, SERVERS,
    Servers, completion,
};
use crate::target::{OpenAppends, Target, recv_ended};

/// What an acknowledgement promises where servers sync each write, and where they cannot.
const PROMISE_SYNCED: &str = "at 2 of 3, each write synced (sync_interval: always)";
const PROMISE_UNSYNCED: &str = "page cache of 2 of 3; NO fsync before (every 2 min)";

/// Starts a cluster. Its servers sync each write if their version knows how.
pub(super) fn start(program: &Path, folder: &Path) -> Result<Servers, RivalError> {
    let ports = process::free_ports(2 * SERVERS)?;
    let (clients, routes) = ports.split_at(SERVERS);
    let folders = process::folders(folder, SERVERS)?;
    let files: Vec<_> = (1..=SERVERS).map(|number| folder.join(format!("server-{number}.conf"))).collect();
    let write = |is_synced: bool| {
        files.iter().enumerate().try_for_each(|(at, path)| {
            let text = configuration(at, &folders[at], clients, routes, is_synced);
            fs::write(path, text).map_err(|source| RivalError::Write { path: path.clone(), source })
        })
    };
    write(true)?;
    let test: [OsString; 3] = ["-t".into(), "-c".into(), files[0].clone().into()];
    let is_synced = process::succeeds(program, &test, ASK_DEADLINE)?;
    if !is_synced {
        write(false)?;
    }
    let args: Vec<Vec<OsString>> = files.iter().map(|path| vec!["-c".into(), path.into()]).collect();
    Ok(Servers {
        urls: clients.iter().map(|port| format!("nats://127.0.0.1:{port}")).collect(),
        processes: Some(Processes::start(program, &args, folder)?),
        promise: if is_synced { PROMISE_SYNCED } else { PROMISE_UNSYNCED },
    })
}

fn configuration(at: usize, folder: &Path, clients: &[u16], routes: &[u16], is_synced: bool) -> String {
    let others: Vec<String> =
        routes.iter().map(|port| format!("\"nats-route://127.0.0.1:{port}\"")).collect();
    format!(
        "server_name: server-{}\nlisten: \"127.0.0.1:{}\"\n\
         jetstream {{\n  store_dir: {:?}\n{}}}\n\
         cluster {{\n  name: loadgen\n  listen: \"127.0.0.1:{}\"\n  routes: [{}]\n}}\n",
        at + 1,
        clients[at],
        folder.display().to_string(),
        if is_synced { "  sync_interval: always\n" } else { "" },
        routes[at],
        others.join(", ")
    )
}

/// Connects to each server, and makes the groups' streams anew.
pub(super) async fn connect(
    urls: Vec<String>,
    groups: u32,
    in_flight: usize,
) -> Result<Connected<Nats>, RivalError> {
    let until = Instant::now() + READY_DEADLINE;
    let mut servers = Vec::new();
    for url in &urls {
        let client = until_ready(until, || connection(url, in_flight)).await?;
        let name = client.server_info().server_name;
        let context =
            ContextBuilder::new().timeout(APPEND_DEADLINE).max_ack_inflight(in_flight).build(client);
        servers.push((name, Arc::new(context)));
    }
    let version = servers.first().map(|(_, context)| context.client().server_info().version);
    let mut streams = Vec::new();
    for group in 1..=groups {
        // Its leader by name, if it is one of the addresses; any other server passes messages on.
        let leader = until_ready(until, || stream(&servers[0].1, group)).await?;
        let by_name = servers.iter().find(|(name, _)| *name == leader);
        let (_, context) = by_name.unwrap_or(&servers[group as usize % servers.len()]);
        streams.push((context.clone(), Subject::from(subject(group))));
    }
    let first_error = FirstError::default();
    let target = Nats { streams, open: OpenAppends::new(), first_error: first_error.clone() };
    Ok(Connected { target, version: version.unwrap_or_default(), first_error })
}

/// Asks until there is an answer.
async fn until_ready<T>(
    until: Instant,
    mut ask: impl AsyncFnMut() -> Result<T, async_nats::Error>,
) -> Result<T, RivalError> {
    loop {
        let reason = match tokio::time::timeout(ASK_DEADLINE, ask()).await {
            Ok(Ok(answer)) => return Ok(answer),
            Ok(Err(error)) => error.to_string(),
            Err(late) => late.to_string(),
        };
        if Instant::now() >= until {
            return Err(RivalError::Late { deadline: READY_DEADLINE, reason });
        }
        tokio::time::sleep(ASK_PAUSE).await;
    }
}

async fn connection(url: &str, in_flight: usize) -> Result<async_nats::Client, async_nats::Error> {
    let options = ConnectOptions::new()
        .name("loadgen")
        .ignore_discovered_servers()
        .client_capacity(in_flight.max(1))
        .request_timeout(Some(ASK_DEADLINE));
    Ok(options.connect(url).await?)
}

fn subject(group: u32) -> String {
    format!("loadgen.{group}")
}

/// Makes a group's stream, without what an earlier load has left; returns the name of its leader.
async fn stream(context: &Context, group: u32) -> Result<String, async_nats::Error> {
    let name = format!("loadgen-{group}");
    // Fails if there is none.
    let _ = context.delete_stream(&name).await;
    let config = Config {
        name,
        subjects: vec![subject(group)],
        storage: StorageType::File,
        num_replicas: SERVERS,
        ..Config::default()
    };
    let stream = context.create_stream(config).await?;
    let info = stream.get_info().await?;
    let leader = info.cluster.and_then(|cluster| cluster.leader);
    leader.ok_or_else(|| format!("the stream of group {group} has no leader").into())
}

/// Clients of JetStream.
pub(crate) struct Nats {
    /// Of each group: the connection to its leader, and its subject.
    streams: Vec<(Arc<Context>, Subject)>,
    open: OpenAppends,
    first_error: FirstError,
}

impl Target for Nats {
    fn append_records_max(&self) -> u32 {
        1
    }

    fn try_append(
        &mut self,
        _client: u32,
        group: GroupId,
        records: &[&[u8]],
        tag: u64,
    ) -> Result<(), ClientError> {
        let [record] = records else { unreachable!("an append is one record here") };
        let (context, subject) = self.streams[group.0 as usize - 1].clone();
        let (record, first_error) = (Bytes::copy_from_slice(record), self.first_error.clone());
        self.open.push(Box::pin(async move {
            let acked = match context.publish(subject, record).await {
                Ok(ack) => ack.await,
                Err(error) => Err(error),
            };
            completion(tag, acked.map(|ack| ack.sequence), &first_error)
        }));
        Ok(())
    }

    async fn recv(&mut self, out: &mut Vec<Completion>) {
        recv_ended(&mut self.open, out).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_are_one_cluster_and_sync_if_they_can() {
        let folder = Path::new("/data \"1\"");
        let text = configuration(1, folder, &[1, 2, 3], &[11, 12, 13], true);
        assert!(text.contains("server_name: server-2\nlisten: \"127.0.0.1:2\""), "{text}");
        assert!(text.contains("store_dir: \"/data \\\"1\\\"\"\n  sync_interval: always"), "{text}");
        assert!(text.contains("listen: \"127.0.0.1:12\"") && text.matches("nats-route://").count() == 3);
        assert!(!configuration(1, folder, &[1, 2, 3], &[11, 12, 13], false).contains("sync"));
    }
}

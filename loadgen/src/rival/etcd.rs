//! etcd: an append is one transaction that puts each of its records under a key of its own.
//!
//! That is what an append is here, too: all records or none, with one answer. It is what suits etcd best: a transaction
//! is one entry of its Raft log, whatever it puts, while records put one by one are an entry and an answer each, and gave about
//! half the rate. It takes 128 operations of a transaction and 1.5 MiB by default; an append of more records becomes several.
//!
//! The clients have several connections, all of them to the leader: an answer then takes no way through another member.
//!
//! An acknowledged write is in the log of a majority, synced there (`--unsafe-no-fsync` is not given); the database behind
//! the log is synced later, and made anew from it.

use std::ffi::OsString;
use std::path::Path;
use std::time::{Duration, Instant};

use etcd_client::{Client, ConnectOptions, Error, KvClient, Txn, TxnOp};
use iroh_raft::GroupId;
use iroh_raft::net::client::{ClientError, Completion};

use super::process::{self, Processes};
use super::{
    APPEND_DEADLINE, ASK_DEADLINE, ASK_PAUSE, Connected, FirstError, READY_DEADLINE, RivalError, SERVERS,
    Servers, completion,
};
use crate::record::RecordId;
use crate::target::{OpenAppends, Target, recv_ended};

/// What an acknowledgement promises.
const PROMISE: &str = "on disk (fsync) at 2 of 3";
/// Operations of a transaction at most (`--max-txn-ops`).
const TXN_OPERATIONS_MAX: usize = 128;
/// Bytes of records in a transaction: below `--max-request-bytes` with room for keys.
const TXN_BYTES_MAX: usize = 1 << 20;
/// Connections at most; a client has one of its own below that.
const CONNECTIONS_MAX: u32 = 8;
/// Size at which a server takes no more: the largest that is recommended. The default, 2 GiB, would end a long load.
const QUOTA_BYTES: u64 = 8 << 30;

/// Starts a cluster with the server's defaults.
pub(super) fn start(program: &Path, folder: &Path) -> Result<Servers, RivalError> {
    let ports = process::free_ports(2 * SERVERS)?;
    let (clients, peers) = ports.split_at(SERVERS);
    let folders = process::folders(folder, SERVERS)?;
    let folders: Vec<&Path> = folders.iter().map(AsRef::as_ref).collect();
    let processes = Processes::start(program, &arguments(&folders, clients, peers), folder)?;
    Ok(Servers {
        urls: clients.iter().map(|port| url(*port)).collect(),
        processes: Some(processes),
        promise: PROMISE,
    })
}

fn url(port: u16) -> String {
    format!("http://127.0.0.1:{port}")
}

fn arguments(folders: &[&Path], clients: &[u16], peers: &[u16]) -> Vec<Vec<OsString>> {
    let name = |at: usize| format!("server-{}", at + 1);
    let cluster: Vec<String> =
        peers.iter().enumerate().map(|(at, port)| format!("{}={}", name(at), url(*port))).collect();
    let of = |(at, folder): (usize, &&Path)| {
        let mut args: Vec<OsString> = vec!["--data-dir".into(), folder.into()];
        let mut add = |key: &str, value: String| args.extend([key.into(), value.into()]);
        add("--name", name(at));
        add("--listen-client-urls", url(clients[at]));
        add("--advertise-client-urls", url(clients[at]));
        add("--listen-peer-urls", url(peers[at]));
        add("--initial-advertise-peer-urls", url(peers[at]));
        add("--initial-cluster", cluster.join(","));
        add("--initial-cluster-state", "new".into());
        add("--quota-backend-bytes", QUOTA_BYTES.to_string());
        args
    };
    folders.iter().enumerate().map(of).collect()
}

/// Connects to the leader, once there is one.
pub(super) async fn connect(
    urls: Vec<String>,
    clients: u32,
    record_bytes_max: usize,
) -> Result<Connected<Etcd>, RivalError> {
    let until = Instant::now() + READY_DEADLINE;
    let (url, version) = loop {
        match leader(&urls).await {
            Ok(leader) => break leader,
            Err(error) if Instant::now() >= until => {
                return Err(RivalError::Late { deadline: READY_DEADLINE, reason: error.to_string() });
            }
            Err(_) => tokio::time::sleep(ASK_PAUSE).await,
        }
    };
    let mut connections = Vec::new();
    for _ in 0..clients.min(CONNECTIONS_MAX) {
        let late = |error: Error| RivalError::Late { deadline: READY_DEADLINE, reason: error.to_string() };
        let client = Client::connect([&url], Some(options(APPEND_DEADLINE))).await.map_err(late)?;
        connections.push(client.kv_client());
    }
    let first_error = FirstError::default();
    let target = Etcd {
        connections,
        next: 0,
        append_records_max: (TXN_BYTES_MAX / record_bytes_max).clamp(1, TXN_OPERATIONS_MAX) as u32,
        open: OpenAppends::new(),
        first_error: first_error.clone(),
    };
    Ok(Connected { target, version, first_error })
}

fn options(deadline: Duration) -> ConnectOptions {
    ConnectOptions::new().with_connect_timeout(ASK_DEADLINE).with_timeout(deadline)
}

/// The address of the leader and its version; of any member, if the leader is not among the addresses.
async fn leader(urls: &[String]) -> Result<(String, String), Error> {
    let mut found = Err(Error::InvalidArgs("no server has a leader yet".to_owned()));
    for url in urls {
        let ask = async || Client::connect([url], Some(options(ASK_DEADLINE))).await?.status().await;
        let status = match ask().await {
            Ok(status) if status.leader() != 0 => status,
            Ok(_) => continue,
            // Another one may be there.
            Err(error) => {
                found = found.or(Err(error));
                continue;
            }
        };
        let member = status.header().map(|header| header.member_id());
        let version = status.version().to_owned();
        if member == Some(status.leader()) {
            return Ok((url.clone(), version));
        }
        found = Ok((url.clone(), version));
    }
    found
}

/// Clients of etcd.
pub(crate) struct Etcd {
    connections: Vec<KvClient>,
    /// Whose turn it is.
    next: usize,
    append_records_max: u32,
    open: OpenAppends,
    first_error: FirstError,
}

impl Target for Etcd {
    fn append_records_max(&self) -> u32 {
        self.append_records_max
    }

    fn try_append(
        &mut self,
        _client: u32,
        _group: GroupId,
        records: &[&[u8]],
        tag: u64,
    ) -> Result<(), ClientError> {
        let mut connection = self.connections[self.next].clone();
        self.next = (self.next + 1) % self.connections.len();
        let first_error = self.first_error.clone();
        let mut puts: Vec<(String, Vec<u8>)> =
            records.iter().map(|record| (key(record), record.to_vec())).collect();
        self.open.push(Box::pin(async move {
            let header = if puts.len() == 1 {
                let (key, value) = puts.swap_remove(0);
                connection.put(key, value, None).await.map(|mut done| done.take_header())
            } else {
                let operations: Vec<TxnOp> =
                    puts.into_iter().map(|(key, value)| TxnOp::put(key, value, None)).collect();
                connection.txn(Txn::new().and_then(operations)).await.map(|mut done| done.take_header())
            };
            let revision = header.map(|header| header.map_or(0, |header| header.revision().unsigned_abs()));
            completion(tag, revision, &first_error)
        }));
        Ok(())
    }

    async fn recv(&mut self, out: &mut Vec<Completion>) {
        recv_ended(&mut self.open, out).await;
    }
}

/// The key of a record: its group, its client and its number, so that no two are the same.
fn key(record: &[u8]) -> String {
    let (id, _) = RecordId::claim(record).expect("every record is long enough to name itself");
    format!("loadgen/{}/{}/{}", id.group, id.client, id.sequence)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_record_has_a_key_of_its_own() {
        let mut record = Vec::new();
        RecordId { client: 3, group: 8, sequence: 41 }.write(64, &mut record);
        assert_eq!(key(&record), "loadgen/8/3/41");
    }

    #[test]
    fn servers_know_each_other_and_sync_as_they_do_by_default() {
        let folders = ["/a", "/b", "/c"].map(Path::new);
        let all = arguments(&folders, &[1, 2, 3], &[11, 12, 13]);
        let cluster =
            "server-1=http://127.0.0.1:11,server-2=http://127.0.0.1:12,server-3=http://127.0.0.1:13";
        assert_eq!(all.len(), 3);
        for (args, folder) in all.iter().zip(folders) {
            let value = |key: &str| {
                let at = args.iter().position(|arg| arg == key).unwrap();
                args[at + 1].to_str().unwrap()
            };
            assert_eq!(Path::new(value("--data-dir")), folder);
            assert_eq!(value("--initial-cluster"), cluster);
            assert!(cluster.contains(&format!("{}={}", value("--name"), value("--listen-peer-urls"))));
            assert!(!args.iter().any(|arg| arg.to_str().unwrap().contains("fsync")));
        }
    }
}

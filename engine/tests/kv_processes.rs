//! The key-value example as three processes: it survives SIGKILL of any one, and so do the sessions of its clients.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use iroh_raft::net::allow::PeerAddress;
use iroh_raft::net::client::{Client, ClientConfig, ClientLimits};
use iroh_raft::prelude::*;
use iroh_raft::{Message, cluster_id};

/// The example's program, which cargo builds beside the tests.
fn kv() -> Command {
    let test = std::env::current_exe().unwrap();
    let profile = test.parent().and_then(|deps| deps.parent()).unwrap();
    let program = profile.join("examples/kv");
    assert!(program.exists(), "{} is missing: cargo build -p iroh-raft --example kv", program.display());
    Command::new(program)
}

fn run(arguments: &[&str], members: &[String]) -> Result<String, String> {
    let output = kv().args(arguments).args(members).output().unwrap();
    let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    if output.status.success() { Ok(said(&output.stdout)) } else { Err(said(&output.stderr)) }
}

struct Node {
    number: usize,
    address: SocketAddr,
    folder: PathBuf,
    key: PathBuf,
    process: Option<Child>,
}

impl Node {
    fn start(&mut self, members: &[String]) {
        let child = kv()
            .arg("serve")
            .args([self.number.to_string(), self.address.to_string()])
            .args([&self.folder, &self.key])
            .args(members)
            // It ends with this pipe, so it does not outlive the test.
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        self.process = Some(child);
    }

    fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            // SIGKILL: nothing is flushed or handed over.
            process.kill().unwrap();
            process.wait().unwrap();
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Three of them, and their client.
struct Cluster {
    folder: tempfile::TempDir,
    nodes: Vec<Node>,
    members: Vec<String>,
    client_key: String,
}

impl Cluster {
    fn start() -> Cluster {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: String| folder.path().join(name);
        let client_key = path("client".into()).to_str().unwrap().to_owned();
        // All bound at once, so that no port is given twice.
        let sockets: Vec<UdpSocket> =
            (0..3).map(|_| UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap()).collect();
        let mut nodes: Vec<Node> = sockets
            .iter()
            .zip(1..)
            .map(|(socket, number)| Node {
                number,
                address: socket.local_addr().unwrap(),
                folder: path(format!("node-{number}")),
                key: path(format!("key-{number}")),
                process: None,
            })
            .collect();
        drop(sockets);
        let mut members: Vec<String> = nodes
            .iter()
            .map(|node| {
                let key = run(&["key", node.key.to_str().unwrap()], &[]).unwrap();
                format!("{}={key}@{}", node.number, node.address)
            })
            .collect();
        members.push(format!("client={}", run(&["key", &client_key], &[]).unwrap()));
        for node in &mut nodes {
            node.start(&members);
        }
        Cluster { folder, nodes, members, client_key }
    }

    async fn client(&self) -> Client {
        let peer = |node: &Node| PeerAddress {
            node: NodeId(node.number as u64),
            endpoint: Identity::load_or_create(&node.key).unwrap().endpoint_id(),
            addr: node.address,
        };
        let config = ClientConfig {
            cluster: cluster_id("kv-example"),
            identity: Identity::load_or_create(self.folder.path().join("client")).unwrap(),
            nodes: self.nodes.iter().map(peer).collect(),
            bind: None,
            limits: ClientLimits::default(),
        };
        Client::connect(config).await.unwrap()
    }
}

#[test]
fn three_processes_survive_the_kill_of_each_in_turn() {
    let Cluster { folder: _folder, mut nodes, members, client_key } = Cluster::start();
    let put = |key: &str, value: &str| run(&["put", &client_key, key, value], &members);
    let get = |key: &str| run(&["get", &client_key, key], &members);
    put("before", "all run").unwrap();
    for (at, node) in nodes.iter_mut().enumerate() {
        node.kill();
        let key = format!("while-{at}-is-down");
        // The client waits for the next leader within its deadline. A put may have reached the killed
        // node's successor and lost its answer: then its outcome is read back, not guessed.
        if let Err(error) = put(&key, "kept") {
            assert!(error.contains("OutcomeUnknown"), "{error}");
            put(&key, "kept").unwrap();
        }
        assert_eq!(get(&key).unwrap(), "kept");
        assert_eq!(get("before").unwrap(), "all run");
        node.start(&members);
    }
    for at in 0..3 {
        assert_eq!(get(&format!("while-{at}-is-down")).unwrap(), "kept");
    }
}

/// One writer appends in a session without a pause; the leader is killed under it, again and again. Each record is in the
/// log once, where its answer said, and the answer is of the attempt that went through.
#[tokio::test]
async fn a_session_appends_once_while_its_leaders_are_killed() {
    const GROUP: GroupId = GroupId(1);
    const KILLS: usize = 6;
    let mut cluster = Cluster::start();
    let client = cluster.client().await;
    let mut session = client.open_session(GROUP, Duration::from_secs(600)).await.unwrap();
    let (stop, mut stopped) = tokio::sync::oneshot::channel();
    let (count, mut counted) = tokio::sync::watch::channel(0);
    let writer = tokio::spawn(async move {
        let mut answered = Vec::new();
        while stopped.try_recv().is_err() {
            let number = answered.len();
            let put = KvCommand::Put { key: format!("key-{number}"), value: vec![number as u8] };
            let record = Message::encode(&put);
            answered.push((session.append(&[&record]).await.unwrap().offset, record));
            count.send_replace(answered.len());
        }
        (session, answered)
    });
    for _ in 0..KILLS {
        let before = client.leader_hint(GROUP).map_or(0, |leader| leader.0 as usize - 1);
        cluster.nodes[before].kill();
        let command = KvCommand::Put { key: "probe".into(), value: Vec::new() };
        // It may be done twice: it is there to see that another one leads.
        while client.propose(GROUP, Message::encode(&command)).await.is_err() {}
        // The writer's attempt may wait to be made again: without this the next kill could come before it.
        let killed_at = *counted.borrow();
        counted.wait_for(|count| *count > killed_at).await.unwrap();
        cluster.nodes[before].start(&cluster.members);
    }
    stop.send(()).unwrap();
    let (session, answered) = writer.await.unwrap();
    assert!(answered.len() >= KILLS, "{} appends", answered.len());
    let last = session.outcome(iroh_raft::Sequence(answered.len() as u64 - 1)).await.unwrap();
    let offset = answered.last().unwrap().0;
    assert!(
        matches!(last, iroh_raft::RunOutcome::Committed { offset: of, .. } if of == offset),
        "{last:?}, not {offset}"
    );
    let mut found = Vec::new();
    let mut from = Offset(0);
    while from <= offset {
        let node = client.leader_hint(GROUP).unwrap();
        let Ok(records) = client.read(node, GROUP, from, 1 << 20).await else { continue };
        from = records.next();
        found.extend(records.iter().map(|record| (record.offset, record.data.to_vec())));
    }
    let probe = |record: &[u8]| {
        let put: KvCommand = Message::decode(record).unwrap();
        matches!(put, KvCommand::Put { key, .. } if key == "probe")
    };
    found.retain(|(_, record)| !probe(record));
    assert_eq!(found, answered, "each once, where its answer said");
    session.close().await.unwrap();
    client.close();
}

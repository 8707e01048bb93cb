//! The key-value example as three processes: it survives SIGKILL of any one.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

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

#[test]
fn three_processes_survive_the_kill_of_each_in_turn() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: String| folder.path().join(name);
    let client_key = path("client".into());
    let client_key = client_key.to_str().unwrap();
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
    members.push(format!("client={}", run(&["key", client_key], &[]).unwrap()));
    for node in &mut nodes {
        node.start(&members);
    }

    let put = |key: &str, value: &str| run(&["put", client_key, key, value], &members);
    let get = |key: &str| run(&["get", client_key, key], &members);
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

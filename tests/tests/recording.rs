//! Recordings of real nodes, replayed.

use std::fs::{self, File};
use std::io::BufReader;
use std::os::unix::fs::PermissionsExt;

use iroh_raft::prelude::*;
use iroh_raft::recording::{Ending, Recording, Report, replay};
use iroh_raft::{EngineConfig, EngineError, Message, RecordingConfig, Role};
use iroh_raft_tests::{Plan, until};

const GROUP: GroupId = GroupId(1);

async fn leads(node: &RaftCluster<KeyValue>) -> bool {
    let statuses = node.engine().statuses().await.unwrap();
    statuses.iter().any(|status| status.group == GROUP && status.role == Role::Leader)
}

#[tokio::test]
async fn recordings_of_three_real_nodes_replay_to_the_same_outputs() {
    let plan = Plan::new(3);
    let folder = |node: u64| plan.folder.path().join(format!("recordings-{node}"));
    let start = async |node: u64| {
        let record = |config: &mut EngineConfig| config.recording = Some(RecordingConfig::new(folder(node)));
        plan.start_tuned(node, record).await
    };
    let mut nodes = vec![start(1).await, start(2).await, start(3).await];
    let client = plan.client().await;
    let put = |number: u32| {
        Message::encode(&KvCommand::Put { key: format!("key-{}", number % 7), value: vec![7; 100] })
    };
    for number in 0..100 {
        client.propose(GROUP, &put(number)).await.unwrap();
        client.append(GroupId(2), put(number)).await.unwrap();
    }
    // The leader goes, another one takes over, and the old one comes back on what is durable.
    let leader = until("a leader", async || {
        for (at, node) in nodes.iter().enumerate() {
            if leads(node).await {
                return Some(at);
            }
        }
        None
    })
    .await;
    let gone = nodes.remove(leader);
    let restarted = gone.engine().node();
    gone.shutdown().await.unwrap();
    for number in 0..50 {
        client.propose(GROUP, &put(number)).await.unwrap();
    }
    nodes.push(start(restarted.0).await);
    until("the restarted node's replica", async || {
        let read = |node: usize| nodes[node].engine().read(GROUP, Offset(0), 1);
        (read(2).await.ok()?.end == read(0).await.ok()?.end).then_some(())
    })
    .await;
    client.close();
    for node in nodes {
        node.shutdown().await.unwrap();
    }

    for node in 1..=3 {
        let boots = if node == restarted.0 { 2 } else { 1 };
        assert_eq!(fs::read_dir(folder(node)).unwrap().count(), boots);
        for boot in 1..=boots {
            let path = folder(node).join(format!("recording-0-{boot}"));
            let file = File::open(&path).unwrap();
            assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600);
            let recording = Recording::open(BufReader::new(file)).unwrap();
            assert_eq!(recording.config.node, NodeId(node));
            let is_restarted = recording.groups.iter().any(|group| !group.tail.is_empty());
            assert_eq!(is_restarted, boot == 2, "a restart begins with durable entries");
            let report = replay(recording, |_, _| {}).unwrap();
            println!("{}: {report:?}", path.display());
            let Report { inputs, turns, ending } = report;
            assert_eq!(ending, Ending::Closed);
            assert!(turns > 10 && inputs > turns, "{inputs} inputs in {turns} turns");
        }
    }
}

#[tokio::test]
async fn a_recording_is_off_by_default_has_a_bound_and_never_replaces_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("n");
    let node = RaftCluster::builder().node_id(1).preset(Preset::Development).data_dir(&data);
    node.build().await.unwrap().shutdown().await.unwrap();
    assert!(!walk(folder.path()).iter().any(|name| name.contains("recording")));

    let small = RecordingConfig { bytes_max: 10, ..RecordingConfig::new("r") };
    let node = RaftCluster::builder().node_id(1).tune(|config| config.recording = Some(small));
    let error = node.build().await.expect_err("no room for anything");
    assert!(matches!(error, EngineError::Config { setting: "recording", .. }), "{error}");

    let recordings = folder.path().join("r");
    fs::create_dir(&recordings).unwrap();
    fs::write(recordings.join("recording-0-2"), "precious").unwrap();
    let node = RaftCluster::builder().node_id(1).preset(Preset::Development).data_dir(&data);
    let node = node.tune(|config| config.recording = Some(RecordingConfig::new(&recordings)));
    let error = node.build().await.expect_err("the file is there");
    assert!(matches!(error, EngineError::Recording { .. }), "{error}");
    assert_eq!(fs::read(recordings.join("recording-0-2")).unwrap(), b"precious");
}

fn walk(folder: &std::path::Path) -> Vec<String> {
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        names.push(path.display().to_string());
        if path.is_dir() {
            names.extend(walk(&path));
        }
    }
    names
}

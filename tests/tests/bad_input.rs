//! What a node says, in one line, to everything that is wrong with how it is started or used; and
//! that it leaves stored data alone.
//!
//! | bad input | tests |
//! |---|---|
//! | folder of another node, cluster, shard count | here; `storage/tests/it/folder.rs` |
//! | damaged or newer format, missing file | here; `storage/tests/it/{folder,damage}.rs` |
//! | CPU that does not exist, port in use, impossible settings | here; `netbridge/tests/bridge/refusals.rs` |
//! | missing or readable key | here; `netbridge/src/identity.rs` |
//! | io_uring forbidden, memlock too low | here |
//! | record over the limit, unknown group | here; `tests/tests/cluster.rs`, `netbridge/tests/bridge/client.rs` |
//! | peer or client that is not allowed | here; `netbridge/tests/bridge/refusals.rs` |
//! | second process on the folder | here; `storage/tests/it/folder.rs` |
//! | folder restored from an older copy | here; `storage/tests/it/folder.rs`, `netbridge/tests/bridge/refusals.rs` |
//! | frame of another version | `netbridge/tests/bridge/refusals.rs` |

use std::collections::BTreeMap;
use std::net::UdpSocket;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use iroh_raft::net::client::ClientError;
use iroh_raft::prelude::*;
use iroh_raft::{EngineError, LogOnly, Message, Pinning, RaftClusterBuilder, RequestError};
use iroh_raft_tests::{PATIENCE, Plan, until};

fn builder(folder: &Path) -> RaftClusterBuilder<LogOnly> {
    RaftCluster::builder().node_id(1).cluster("bad-input").preset(Preset::Testing).data_dir(folder)
}

/// A data folder with one acknowledged record.
async fn used_folder(folder: &Path) {
    let node = builder(folder).build().await.unwrap();
    node.engine().append(GroupId(1), &["kept"]).await.unwrap();
    node.shutdown().await.unwrap();
}

fn contents(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut files = BTreeMap::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(contents(&path));
        } else {
            files.insert(path.clone(), std::fs::read(&path).unwrap());
        }
    }
    files
}

/// The start fails with one line that holds `words`, and changes nothing.
async fn refused(folder: &Path, builder: RaftClusterBuilder<LogOnly>, words: &str) -> EngineError {
    let before = contents(folder);
    let error = builder.build().await.expect_err(words);
    let text = error.to_string();
    assert!(text.contains(words), "{text:?} does not say {words:?}");
    assert!(!text.contains('\n'), "{text:?}");
    assert!(before == contents(folder), "stored data was touched: {text}");
    error
}

#[tokio::test]
async fn a_folder_of_another_node_or_cluster_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    used_folder(folder.path()).await;
    refused(folder.path(), builder(folder.path()).node_id(2), "node").await;
    refused(folder.path(), builder(folder.path()).cluster("other"), "cluster").await;
    let node = builder(folder.path()).build().await.expect("and it still opens as what it is");
    node.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_second_process_on_the_folder_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let node = builder(folder.path()).build().await.unwrap();
    let error = builder(folder.path()).build().await.unwrap_err();
    assert!(error.to_string().contains("use"), "{error}");
    node.engine().append(GroupId(1), &["still works"]).await.unwrap();
    node.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_damaged_manifest_and_a_missing_journal_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    used_folder(folder.path()).await;
    let manifest = folder.path().join("manifest");
    let good = std::fs::read(&manifest).unwrap();
    let mut bad = good.clone();
    *bad.last_mut().unwrap() ^= 1;
    std::fs::write(&manifest, &bad).unwrap();
    refused(folder.path(), builder(folder.path()), "manifest").await;
    std::fs::write(&manifest, &good).unwrap();
    let journal = folder.path().join("shard-0/journal.redb");
    let away = folder.path().join("shard-0/away");
    std::fs::rename(&journal, &away).unwrap();
    let error = builder(folder.path()).build().await.unwrap_err();
    assert!(error.to_string().contains("journal"), "{error}");
    assert!(!journal.exists(), "a missing journal is never taken for an empty one");
}

#[tokio::test]
async fn cpus_ports_and_settings_are_checked_before_anything_is_written() {
    let folder = tempfile::tempdir().unwrap();
    used_folder(folder.path()).await;
    let cpu = builder(folder.path()).pinning(Pinning::Cpus(vec![4096]));
    refused(folder.path(), cpu, "CPU 4096 is not available").await;
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let taken = builder(folder.path()).bind_address(socket.local_addr().unwrap());
    refused(folder.path(), taken, "cannot be bound").await;
    refused(folder.path(), builder(folder.path()).node_id(0), "0 is not a node id").await;
    refused(folder.path(), builder(folder.path()).shards(0), "at least one shard").await;
    refused(folder.path(), builder(folder.path()).shards(2).place(1, 2), "the last one is 1").await;
    let ticks = builder(folder.path()).tune(|config| config.core.heartbeat_ticks = 99);
    refused(folder.path(), ticks, "heartbeat_ticks").await;
}

#[tokio::test]
async fn a_key_that_others_can_read_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    used_folder(folder.path()).await;
    let key = folder.path().join("key");
    assert_eq!(std::fs::metadata(&key).unwrap().permissions().mode() & 0o777, 0o600);
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o644)).unwrap();
    refused(folder.path(), builder(folder.path()), "600").await;
    std::fs::remove_file(&key).unwrap();
    refused(folder.path(), builder(folder.path()), "key").await;
}

fn limited(limit: &str) -> String {
    let folder = tempfile::tempdir().unwrap();
    let target = folder.path().join("node");
    let output = Command::new(env!("CARGO_BIN_EXE_limited_node")).arg(limit).arg(&target).output().unwrap();
    assert!(!target.exists(), "nothing is written on a machine that cannot run it");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn too_little_locked_memory_is_named_with_the_remedy() {
    let said = limited("memlock");
    assert!(said.contains("65536 bytes") && said.contains("ulimit -l"), "{said}");
    assert_eq!(said.trim().lines().count(), 1, "{said}");
}

#[test]
fn forbidden_io_uring_is_named_with_the_remedy() {
    let said = limited("io-uring");
    assert!(said.contains("io_uring cannot be used") && said.contains("io_uring_disabled"), "{said}");
    assert_eq!(said.trim().lines().count(), 1, "{said}");
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

#[tokio::test]
async fn a_folder_restored_from_an_older_copy_is_refused_by_the_peers() {
    let plan = Plan::new(3);
    let folder = plan.folder.path().join("node-1");
    let old = plan.folder.path().join("copy");
    plan.start(1).await.shutdown().await.unwrap();
    copy(&folder, &old);

    let (second, third) = (plan.start(2).await, plan.start(3).await);
    let first = plan.start(1).await;
    let client = plan.client().await;
    let put = KvCommand::Put { key: "k".into(), value: b"v".to_vec() }.encode();
    // With one of the others stopped, the first node is part of every quorum: it has been seen.
    second.shutdown().await.unwrap();
    client.append(GroupId(1), &put).await.unwrap();
    client.close();
    client.closed().await;
    first.shutdown().await.unwrap();

    std::fs::remove_dir_all(&folder).unwrap();
    copy(&old, &folder);
    let rolled_back = plan.start(1).await;
    let engine = rolled_back.engine().clone();
    let failure = tokio::time::timeout(PATIENCE, engine.failed()).await.expect("the peers refuse it");
    let text = failure.to_string();
    assert!(text.contains("older copy"), "{text}");
    assert!(!text.contains('\n'), "{text}");
    rolled_back.shutdown().await.unwrap();
    third.shutdown().await.unwrap();
}

#[tokio::test]
async fn clients_are_held_to_their_rights_and_limits() {
    let plan = Plan::new(1);
    let node = plan.start(1).await;
    let stranger = plan.connect(&Identity::generate()).await.expect_err("nobody knows this key");
    assert!(stranger.to_string().contains("allow"), "{stranger}");

    let put = KvCommand::Put { key: "k".into(), value: b"v".to_vec() }.encode();
    let reader = plan.connect(&plan.reader).await.unwrap();
    let denied = reader.append(GroupId(1), &put).await.unwrap_err();
    assert_eq!(denied, ClientError::Request(RequestError::Denied));
    until("a status", async || reader.status(NodeId(1), GroupId(1)).await.ok()).await;

    let client = plan.client().await;
    client.append(GroupId(1), &put).await.unwrap();
    let unknown = client.append(GroupId(99), &put).await.unwrap_err();
    assert_eq!(unknown, ClientError::Request(RequestError::UnknownGroup));
    let large = client.append(GroupId(1), vec![0; (1 << 20) + 1]).await.unwrap_err();
    let expected = RequestError::TooLarge { bytes: (1 << 20) + 1, bytes_max: 1 << 20 };
    assert_eq!(large, ClientError::Request(expected));
    let garbage = client.propose(GroupId(1), b"garbage").await.unwrap_err();
    assert!(matches!(garbage, ClientError::Request(RequestError::Invalid { .. })), "{garbage}");
    client.close();
    client.closed().await;
    node.shutdown().await.unwrap();
}

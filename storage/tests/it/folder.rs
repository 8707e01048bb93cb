//! What is wrong with a folder is said in one line, and the folder stays as it was.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use iroh_raft_core::{BootEpoch, ClusterId, NodeId, Placement, ShardId};
use iroh_raft_storage::{BackendChoice, DataFolder, FolderIdentity, KnownNode, StorageError};

use crate::common::*;

/// Opens a folder that must be refused, and checks that it stays as it is.
fn refused(path: &Path, identity: FolderIdentity) -> StorageError {
    let before = bytes_of(path);
    let error = DataFolder::open(path, identity).unwrap_err();
    assert_eq!(before, bytes_of(path), "{error}");
    let line = error.to_string();
    assert!(!line.contains('\n') && line.contains(": "), "{line}");
    error
}

/// Repairs the checksum of a small file after an edit.
fn reseal(bytes: &mut [u8]) {
    let body = bytes.len() - 4;
    let checksum = crc32c::crc32c(&bytes[..body]);
    bytes[body..].copy_from_slice(&checksum.to_le_bytes());
}

#[test]
fn each_start_has_a_higher_epoch_and_an_id_of_its_own() {
    let temporary = tempfile::tempdir().unwrap();
    let path = temporary.path().join("deep/down/node");
    let mut ids = Vec::new();
    for start in 1..=3 {
        let folder = DataFolder::open(&path, IDENTITY).unwrap();
        assert_eq!(folder.boot().epoch, BootEpoch(start));
        assert_eq!(folder.is_new(), start == 1);
        assert!(!ids.contains(&folder.boot().id));
        ids.push(folder.boot().id);
    }
}

#[test]
fn a_second_process_is_refused_until_everything_of_the_first_is_gone() {
    let temporary = tempfile::tempdir().unwrap();
    let (folder, shard) = open(temporary.path()).unwrap();
    // flock belongs to the open file, so a second open in this process is as good as another one.
    assert!(matches!(refused(temporary.path(), IDENTITY), StorageError::InUse { .. }));
    drop(folder);
    assert!(matches!(refused(temporary.path(), IDENTITY), StorageError::InUse { .. }));
    let reader = shard.reader.clone();
    drop(shard);
    assert!(matches!(refused(temporary.path(), IDENTITY), StorageError::InUse { .. }));
    drop(reader);
    let mut folder = DataFolder::open(temporary.path(), IDENTITY).unwrap();
    let peers = folder.take_peer_epochs();
    drop(folder);
    assert!(matches!(refused(temporary.path(), IDENTITY), StorageError::InUse { .. }));
    drop(peers);
    open(temporary.path()).unwrap();
}

#[test]
fn a_folder_of_another_cluster_or_node_is_refused() {
    let temporary = tempfile::tempdir().unwrap();
    drop(open(temporary.path()).unwrap());
    let path = temporary.path();
    let other = FolderIdentity { cluster: ClusterId([8; 16]), ..IDENTITY };
    assert!(matches!(refused(path, other), StorageError::WrongCluster { .. }));
    let other = FolderIdentity { node: NodeId(4), ..IDENTITY };
    assert!(matches!(refused(path, other), StorageError::WrongNode { found: NodeId(3), .. }));
    let impossible = FolderIdentity { node: NodeId(0), ..IDENTITY };
    assert!(matches!(refused(path, impossible), StorageError::Identity { .. }));
}

#[test]
fn each_missing_file_has_its_own_error() {
    let temporary = tempfile::tempdir().unwrap();
    let path = temporary.path().join("node");
    drop(open(&path).unwrap());
    let without = |name: &str| {
        let file = path.join(name);
        let content = fs::read(&file).unwrap();
        fs::remove_file(&file).unwrap();
        let error = refused(&path, IDENTITY);
        fs::write(&file, content).unwrap();
        error
    };
    assert!(matches!(without("manifest"), StorageError::MissingManifest { .. }));
    assert!(matches!(without("boot"), StorageError::MissingBoot { .. }));
    assert!(matches!(without("peers"), StorageError::MissingFile { .. }));
    assert!(matches!(without("shard-0/journal.redb"), StorageError::MissingJournal { .. }));
    let moved = temporary.path().join("moved");
    fs::rename(path.join("shard-0"), &moved).unwrap();
    assert!(matches!(refused(&path, IDENTITY), StorageError::MissingJournal { .. }));
    fs::rename(moved, path.join("shard-0")).unwrap();
    open(&path).unwrap();
}

#[test]
fn each_flipped_byte_and_each_cut_of_a_small_file_is_refused() {
    let temporary = tempfile::tempdir().unwrap();
    let known = KnownNode { key: [4; 32], addr: ([127, 0, 0, 1], 4).into(), is_removed: false };
    let (mut folder, shard) = open(temporary.path()).unwrap();
    folder.take_known_nodes().set(NodeId(4), known).unwrap();
    drop((folder, shard));
    for name in ["manifest", "boot", "peers", "nodes"] {
        let file = temporary.path().join(name);
        let whole = fs::read(&file).unwrap();
        for at in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[at] ^= 4;
            fs::write(&file, &damaged).unwrap();
            assert!(matches!(refused(temporary.path(), IDENTITY), StorageError::DamagedFile { .. }));
            fs::write(&file, &whole[..at]).unwrap();
            assert!(matches!(refused(temporary.path(), IDENTITY), StorageError::DamagedFile { .. }));
        }
        fs::write(&file, [&whole[..], b"!"].concat()).unwrap();
        assert!(matches!(refused(temporary.path(), IDENTITY), StorageError::DamagedFile { .. }));
        fs::write(&file, vec![0; 2 << 20]).unwrap();
        assert!(matches!(refused(temporary.path(), IDENTITY), StorageError::DamagedFile { .. }));
        fs::write(&file, &whole).unwrap();
    }
    open(temporary.path()).unwrap();
}

#[test]
fn a_known_node_whose_change_failed_is_as_it_was_once_that_is_settled() {
    let temporary = tempfile::tempdir().unwrap();
    let four = KnownNode { key: [4; 32], addr: ([127, 0, 0, 1], 4).into(), is_removed: false };
    let known = |is_to_settle: bool| {
        let disk = Arc::new(LateError::of("nodes"));
        let mut folder = DataFolder::open_on(temporary.path(), IDENTITY, disk.clone()).unwrap();
        let mut nodes = folder.take_known_nodes();
        let before: Vec<_> = nodes.iter().collect();
        let moved = KnownNode { addr: ([127, 0, 0, 1], 5).into(), ..four };
        assert!(matches!(nodes.set(NodeId(4), moved).unwrap_err(), StorageError::Io { .. }));
        assert_eq!(nodes.iter().collect::<Vec<_>>(), before);
        if is_to_settle {
            assert!(nodes.settle().is_err());
            disk.mend();
            nodes.settle().unwrap();
        }
        drop((folder, nodes));
        let mut folder = DataFolder::open(temporary.path(), IDENTITY).unwrap();
        (before, folder.take_known_nodes().iter().collect::<Vec<_>>())
    };
    let (before, after) = known(true);
    assert_eq!(before, after);
    let (before, after) = known(false);
    assert_ne!(before, after, "it was there after all");
    // It may be repeated.
    let mut folder = DataFolder::open(temporary.path(), IDENTITY).unwrap();
    let mut nodes = folder.take_known_nodes();
    nodes.set(NodeId(4), four).unwrap();
    drop((folder, nodes));
    let mut folder = DataFolder::open(temporary.path(), IDENTITY).unwrap();
    assert_eq!(folder.take_known_nodes().iter().collect::<Vec<_>>(), [(NodeId(4), four)]);
}

#[test]
fn a_newer_format_is_told_from_damage() {
    let temporary = tempfile::tempdir().unwrap();
    let known = KnownNode { key: [4; 32], addr: ([127, 0, 0, 1], 4).into(), is_removed: false };
    let (mut folder, shard) = open(temporary.path()).unwrap();
    folder.take_known_nodes().set(NodeId(4), known).unwrap();
    drop((folder, shard));
    for (name, newest) in [("manifest", 2), ("boot", 1), ("peers", 1), ("nodes", 1)] {
        let file = temporary.path().join(name);
        let whole = fs::read(&file).unwrap();
        let mut newer = whole.clone();
        newer[8] = newest + 1;
        reseal(&mut newer);
        fs::write(&file, newer).unwrap();
        let error = refused(temporary.path(), IDENTITY);
        let StorageError::NewerFormat { found, supported, .. } = error else { panic!("{error}") };
        assert_eq!((found, supported), (u16::from(newest) + 1, u16::from(newest)));
        fs::write(&file, &whole).unwrap();
    }
}

#[test]
fn foreign_files_are_left_alone() {
    let temporary = tempfile::tempdir().unwrap();
    fs::write(temporary.path().join("thesis.tex"), "twenty years").unwrap();
    match refused(temporary.path(), IDENTITY) {
        StorageError::ForeignFiles { name, .. } => assert_eq!(name, "thesis.tex"),
        other => panic!("{other}"),
    }
    let file = temporary.path().join("thesis.tex");
    let error = DataFolder::open(&file, IDENTITY).unwrap_err();
    assert!(matches!(error, StorageError::Io { .. }), "{error}");
}

#[test]
fn a_key_file_alone_does_not_make_a_folder_foreign() {
    let temporary = tempfile::tempdir().unwrap();
    fs::write(temporary.path().join("key"), "secret").unwrap();
    assert!(DataFolder::open(temporary.path(), IDENTITY).unwrap().is_new());
}

#[test]
fn a_crash_at_any_point_of_creation_is_finished_by_the_next_start() {
    let temporary = tempfile::tempdir().unwrap();
    let whole = temporary.path().join("whole");
    drop(open(&whole).unwrap());
    let creating = {
        let mut bytes = b"IRAFTNEW\x01\0\0\0\0\0\0\0....".to_vec();
        reseal(&mut bytes);
        bytes
    };
    // What creation makes, in its order: a crash leaves any number of the first of them.
    let made = ["shard-0/journal.redb", "shard-0/log.redb", "shard-0/acked", "peers", "boot", "manifest"];
    for count in 0..=made.len() {
        let path = temporary.path().join(format!("crashed-{count}"));
        fs::create_dir_all(path.join("shard-0")).unwrap();
        fs::write(path.join("lock"), b"").unwrap();
        fs::write(path.join("creating"), &creating).unwrap();
        fs::write(path.join("manifest.tmp"), b"half").unwrap();
        for name in &made[..count] {
            fs::copy(whole.join(name), path.join(name)).unwrap();
        }
        let (folder, shard) = open(&path).unwrap();
        assert_eq!(folder.is_new(), count < made.len());
        assert_eq!(shard.last_seq.0, 0);
        assert!(!path.join("creating").exists());
        drop((folder, shard));
        let (folder, _shard) = open(&path).unwrap();
        assert!(!folder.is_new());
    }
    // Only the temporary file of the first step.
    let path = temporary.path().join("crashed-first");
    fs::create_dir_all(&path).unwrap();
    fs::write(path.join("creating.tmp"), b"IRAF").unwrap();
    assert!(DataFolder::open(&path, IDENTITY).unwrap().is_new());
}

#[test]
fn a_peer_that_comes_back_older_is_refused_even_after_a_restart() {
    let temporary = tempfile::tempdir().unwrap();
    let mut folder = DataFolder::open(temporary.path(), IDENTITY).unwrap();
    let mut peers = folder.take_peer_epochs();
    let (node, other) = (NodeId(5), NodeId(6));
    peers.observe(node, BootEpoch(4), [1; 16]).unwrap();
    peers.observe(node, BootEpoch(4), [1; 16]).unwrap();
    peers.observe(other, BootEpoch(1), [1; 16]).unwrap();
    peers.observe(node, BootEpoch(9), [2; 16]).unwrap();
    for start in 0..2 {
        let older = peers.observe(node, BootEpoch(4), [1; 16]).unwrap_err();
        assert!(matches!(
            older,
            StorageError::PeerRolledBack { node: NodeId(5), seen: BootEpoch(9), offered: BootEpoch(4) }
        ));
        let twin = peers.observe(node, BootEpoch(9), [3; 16]).unwrap_err();
        assert!(matches!(twin, StorageError::PeerRolledBack { seen: BootEpoch(9), .. }), "start {start}");
        peers.observe(other, BootEpoch(1), [1; 16]).unwrap();
        drop((folder, peers));
        folder = DataFolder::open(temporary.path(), IDENTITY).unwrap();
        peers = folder.take_peer_epochs();
    }
}

#[test]
fn several_shards_have_journals_of_their_own() {
    let temporary = tempfile::tempdir().unwrap();
    let identity = FolderIdentity { placement: Placement::even(3).unwrap(), ..IDENTITY };
    let mut folder = DataFolder::open(temporary.path(), identity.clone()).unwrap();
    for shard in 0..3_u16 {
        let mut open = folder.open_shard(ShardId(shard), OPTIONS).unwrap();
        for seq in 1..=u64::from(shard) {
            open.writer.run_once(&[append(seq, vec![])]).unwrap();
        }
    }
    drop(folder);
    let mut folder = DataFolder::open(temporary.path(), identity.clone()).unwrap();
    for shard in 0..3_u16 {
        assert_eq!(folder.open_shard(ShardId(shard), OPTIONS).unwrap().last_seq.0, u64::from(shard));
    }
    drop(folder);
    // Journals that changed places.
    let journal = |shard: u16| temporary.path().join(format!("shard-{shard}/journal.redb"));
    fs::rename(journal(1), temporary.path().join("aside")).unwrap();
    fs::rename(journal(2), journal(1)).unwrap();
    fs::rename(temporary.path().join("aside"), journal(2)).unwrap();
    let mut folder = DataFolder::open(temporary.path(), identity).unwrap();
    let swapped = folder.open_shard(ShardId(1), OPTIONS).unwrap_err();
    assert!(matches!(swapped, StorageError::ForeignJournal { .. }));
}

#[test]
fn a_folder_is_calibrated_before_its_first_start_and_after_but_not_under_a_node() {
    let temporary = tempfile::tempdir().unwrap();
    let path = temporary.path().join("node");
    let measured = |folder: &mut DataFolder| folder.choose_backend(BackendChoice::Auto).unwrap().1;
    let before = DataFolder::calibrate(&path).unwrap();
    let mut folder = DataFolder::open(&path, IDENTITY).unwrap();
    assert!(folder.is_new());
    assert_eq!(measured(&mut folder), Some(before));
    assert!(matches!(DataFolder::calibrate(&path), Err(StorageError::InUse { .. })));
    drop(folder);
    let after = DataFolder::calibrate(&path).unwrap();
    assert_ne!(after, before, "it is measured anew, to the nanosecond");
    assert_eq!(measured(&mut DataFolder::open(&path, IDENTITY).unwrap()), Some(after));

    let foreign = temporary.path().join("foreign");
    fs::create_dir(&foreign).unwrap();
    fs::write(foreign.join("letter"), "dear").unwrap();
    assert!(matches!(DataFolder::calibrate(&foreign), Err(StorageError::ForeignFiles { .. })));
    assert_eq!(fs::read_dir(&foreign).unwrap().count(), 1);
}

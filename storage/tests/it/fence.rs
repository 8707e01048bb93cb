//! A write that fails, at whatever point of a commit, ends the writer for good and acknowledges
//! nothing; what had been acknowledged is there at the next start.

use std::sync::Arc;

use iroh_raft_core::ShardId;
use iroh_raft_storage::fault::{Fault, FaultDisk, Operation, Trouble};
use iroh_raft_storage::{DataFolder, StorageError};

use crate::common::*;

/// Commits two flushes, lets the third fail at its `changes`-th change of a file, and starts again.
/// Returns whether the fault struck.
fn run(trouble: Trouble, changes: u64) -> bool {
    let path = std::path::Path::new("/node");
    let disk = FaultDisk::default();
    let mut folder = DataFolder::open_on(path, IDENTITY, Arc::new(disk.clone())).unwrap();
    let mut shard = folder.open_shard(ShardId(0), OPTIONS).unwrap();
    let mut model = Model::default();
    let part = |seq| entries_only(1, vec![entry(seq, 1, seq - 1, 1)]);
    for seq in 1..=2 {
        let append = append(seq, vec![part(seq)]);
        shard.writer.run_once(std::slice::from_ref(&append)).unwrap();
        model.take(&append);
    }
    disk.plant(Fault { kind: None, operation: Operation::Change, after: changes, times: 1, trouble });
    let third = append(3, vec![part(3)]);
    let result = shard.writer.run_once(std::slice::from_ref(&third));
    disk.heal();
    let struck = result.is_err();
    if let Err(error) = result {
        match (trouble, &error) {
            (Trouble::Panic, StorageError::JournalPanicked { .. }) => {}
            // The last write of a commit is the mark's, and not redb's.
            (Trouble::NoSpace, StorageError::NoSpace { .. } | StorageError::Io { .. }) => {}
            (Trouble::Eio | Trouble::Short, StorageError::Journal { .. } | StorageError::Io { .. }) => {}
            _ => panic!("{trouble:?} at change {changes}: {error}"),
        }
        assert_eq!(shard.writer.last_seq().0, 2);
        // The disk is well again, and the writer stays fenced.
        let again = shard.writer.run_once(std::slice::from_ref(&third)).unwrap_err();
        assert!(matches!(again, StorageError::Fenced { .. }), "{again}");
        let empty = shard.writer.run_once(&[]).unwrap_err();
        assert!(matches!(empty, StorageError::Fenced { .. }), "{empty}");
    }
    drop((folder, shard));
    let mut folder = DataFolder::open_on(path, IDENTITY, Arc::new(disk)).unwrap();
    let shard = folder.open_shard(ShardId(0), OPTIONS).unwrap();
    // The failed flush may have reached the disk, and is then found whole.
    if shard.last_seq.0 == 3 {
        model.take(&third);
    }
    assert!(struck || shard.last_seq.0 == 3);
    model.check(&shard);
    struck
}

#[test]
fn a_fault_at_each_change_of_a_commit_fences_the_writer() {
    for trouble in [Trouble::Eio, Trouble::NoSpace, Trouble::Panic, Trouble::Short] {
        let mut changes = 0;
        while run(trouble, changes) {
            changes += 1;
        }
        assert!(changes > 3, "a commit writes its page, its header, a sync and the mark");
    }
}

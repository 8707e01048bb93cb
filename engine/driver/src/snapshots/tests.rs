use std::path::Path;
use std::sync::Arc;

use iroh_raft_core::{ClusterId, NodeId, Placement, ShardId, SnapshotHead, Term};
use iroh_raft_netbridge::ring::{Doorbell, ring};
use iroh_raft_storage::fault::FaultDisk;
use iroh_raft_storage::{DataFolder, FolderIdentity, ShardOptions, SnapshotStore};

use super::*;

const GROUP: GroupId = GroupId(3);

/// A shard's snapshots with their worker, which works when it is told to.
struct Fixture {
    _folder: DataFolder,
    store: SnapshotStore,
    snapshots: Snapshots,
    worker: SnapshotWorker,
    jobs: Consumer<SnapshotJob>,
    done: Producer<SnapshotDone>,
    machines: Machines,
}

impl Fixture {
    fn new() -> Fixture {
        let identity =
            FolderIdentity { cluster: ClusterId([7; 16]), node: NodeId(1), placement: Placement::ONE_SHARD };
        let disk = Arc::new(FaultDisk::default());
        let mut folder = DataFolder::open_on(Path::new("/node"), identity, disk).unwrap();
        let options = ShardOptions { free_bytes_min: 0, ..ShardOptions::default() };
        let store = folder.open_shard(ShardId(0), options).unwrap().snapshots;
        let (to_worker, jobs) = ring(8, &Doorbell::new());
        let (done, from_worker) = ring(8, &Doorbell::new());
        Fixture {
            _folder: folder,
            snapshots: Snapshots::new(to_worker, from_worker),
            worker: SnapshotWorker::new(store.clone()),
            store,
            jobs,
            done,
            machines: Machines::new(Arc::new(|_| None)),
        }
    }

    /// The worker does all that it was told, and a turn takes what came of it.
    fn work(&mut self) -> Vec<SnapshotEvent> {
        while let Some(job) = self.jobs.pop() {
            self.worker
                .run_once(job, &mut |answer| assert!(self.done.push(answer).is_ok(), "a place for it"));
        }
        let mut events = Vec::new();
        self.snapshots.turn(&mut self.machines, |_, event| events.push(event));
        events
    }

    fn publish(&mut self) -> Snapshot {
        let head = SnapshotHead {
            index: Index(9),
            term: Term(2),
            offset: iroh_raft_core::Offset(4),
            conf_state: iroh_raft_core::ConfState { voters: vec![NodeId(1)], ..Default::default() },
            table: Bytes::new(),
        };
        self.snapshots.push(GROUP, Work::Begin(head));
        self.snapshots.push(GROUP, Work::Append(vec![1; 1000]));
        self.snapshots.push(GROUP, Work::Finish);
        let events = self.work();
        let [SnapshotEvent::Taken(snapshot)] = &events[..] else { panic!("{events:?}") };
        snapshot.clone()
    }
}

#[test]
fn snapshots_go_with_their_replica_once_it_is_durable_that_it_left() {
    let mut fixture = Fixture::new();
    fixture.publish();
    fixture.snapshots.handle_left(GROUP, FlushSeq(7));
    fixture.snapshots.handle_persisted(FlushSeq(6));
    fixture.work();
    // Had the process ended here, the replica would be there again.
    assert!(fixture.snapshots.is_leaving(GROUP) && fixture.store.latest(GROUP).unwrap().is_some());
    fixture.snapshots.handle_persisted(FlushSeq(7));
    assert!(fixture.snapshots.is_leaving(GROUP), "another must not begin yet");
    fixture.work();
    assert!(!fixture.snapshots.is_leaving(GROUP));
    assert_eq!(fixture.store.latest(GROUP).unwrap(), None);
}

#[test]
fn what_was_under_way_ends_with_its_replica() {
    let mut fixture = Fixture::new();
    let snapshot = fixture.publish();
    // One is about to be restored, and the next one is complete but for the worker.
    let restore = SnapshotTask { group: GROUP, step: SnapshotStep::Restore(snapshot.clone()) };
    assert_eq!(fixture.snapshots.begin(restore, &fixture.machines, false), None);
    let head = SnapshotHead { index: Index(20), ..snapshot.head };
    fixture.snapshots.push(GROUP, Work::Begin(head));
    fixture.snapshots.push(GROUP, Work::Append(vec![2; 1000]));
    fixture.snapshots.push(GROUP, Work::Finish);
    fixture.snapshots.handle_left(GROUP, FlushSeq(1));
    assert!(!fixture.snapshots.has_work(), "nothing is restored for the next replica");
    fixture.snapshots.handle_persisted(FlushSeq(1));
    fixture.work();
    assert!(!fixture.snapshots.is_leaving(GROUP));
    assert_eq!((fixture.store.latest(GROUP).unwrap(), fixture.store.staged(GROUP).unwrap()), (None, None));
}

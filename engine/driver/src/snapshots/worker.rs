//! The part that blocks: reads and writes of a shard's snapshots on its disk.

use std::collections::BTreeMap;

use bytes::Bytes;
use iroh_raft_core::mutants::{self, Mutant};
use iroh_raft_core::{GroupId, Index, Snapshot, SnapshotEvent};
use iroh_raft_storage::snapshot::SnapshotWriter;
use iroh_raft_storage::{SnapshotError, SnapshotStore, StorageError};

use super::{Done, Reader, SnapshotDone, SnapshotJob, Unreadable, Work};

/// Bytes of chunks that nobody needs, removed at a time.
const COLLECT_BYTES: u64 = 4 << 20;

/// Does a shard's snapshot jobs. Passive: a thread calls it in production, a task in simulation.
#[derive(Debug)]
pub struct SnapshotWorker {
    store: SnapshotStore,
    taking: BTreeMap<GroupId, SnapshotWriter>,
    receiving: BTreeMap<GroupId, Receiving>,
    is_garbage_left: bool,
    failure: Option<StorageError>,
}

#[derive(Debug)]
struct Receiving {
    writer: SnapshotWriter,
    snapshot: Snapshot,
    /// Something was written that was not confirmed yet.
    is_unconfirmed: bool,
}

impl SnapshotWorker {
    /// A worker on the snapshots of a shard.
    #[must_use]
    pub fn new(store: SnapshotStore) -> SnapshotWorker {
        let (taking, receiving) = Default::default();
        SnapshotWorker { store, taking, receiving, is_garbage_left: true, failure: None }
    }

    /// The failure of the log file, once: it fails for the shard's mover, too, and the shard has to be fenced.
    pub fn take_failure(&mut self) -> Option<StorageError> {
        self.failure.take()
    }

    /// Tells what failed, and keeps what fences the shard. Returns whether the log file has failed.
    fn note(&mut self, group: GroupId, error: SnapshotError) -> bool {
        tracing::error!(%group, %error, "work on a snapshot failed");
        match error {
            SnapshotError::Storage(error) => {
                self.failure = Some(error);
                true
            }
            _ => false,
        }
    }

    fn not_taken(&mut self, group: GroupId, error: SnapshotError) -> SnapshotEvent {
        self.note(group, error);
        SnapshotEvent::NotTaken { may_retry: true }
    }

    fn failed(&mut self, group: GroupId, index: Index, error: SnapshotError) -> SnapshotEvent {
        self.note(group, error);
        SnapshotEvent::Failed { index }
    }

    /// Does one job; blocks on the disk. Call [`settle`](SnapshotWorker::settle) when no other waits.
    pub fn run_once(&mut self, job: SnapshotJob, tell: &mut impl FnMut(SnapshotDone)) {
        let SnapshotJob { group, work } = job;
        let mut tell = |what: Done| tell(SnapshotDone { group, what });
        let event = match work {
            Work::Begin(head) => {
                self.receiving.remove(&group);
                // What is staged may be of another state at the same index: of another replica.
                let begun = self.store.remove(group, false).and_then(|()| self.store.begin(group, head));
                return self.note_taking(group, begun, &mut tell);
            }
            Work::Append(piece) => {
                tell(Done::Appended);
                let Some(mut writer) = self.taking.remove(&group) else { return };
                let written = writer.write(&piece).map(|()| writer);
                return self.note_taking(group, written, &mut tell);
            }
            Work::Finish => {
                let Some(writer) = self.taking.remove(&group) else { return };
                self.is_garbage_left = true;
                match writer.publish() {
                    Ok(meta) => SnapshotEvent::Taken(meta.snapshot()),
                    Err(error) => self.not_taken(group, error),
                }
            }
            Work::Abort => {
                self.is_garbage_left = true;
                let aborted = self.taking.remove(&group).map_or(Ok(()), SnapshotWriter::abort);
                if let Err(error) = aborted {
                    self.note(group, error);
                }
                return;
            }
            Work::Remove => {
                self.taking.remove(&group);
                self.receiving.remove(&group);
                self.is_garbage_left = true;
                match self.store.remove(group, true) {
                    Ok(()) => tell(Done::Removed),
                    // Nobody begins in its place, then: the shard is fenced.
                    Err(error) => drop(self.note(group, error)),
                }
                return;
            }
            Work::Drop { index } => {
                self.is_garbage_left = true;
                if let Err(error) = self.drop_damaged(group, index) {
                    self.note(group, error);
                }
                return;
            }
            Work::Receive(snapshot) => {
                // One that was being taken here is given up.
                if self.taking.remove(&group).is_some() {
                    tell(Done::Event(SnapshotEvent::NotTaken { may_retry: true }));
                }
                let index = snapshot.head.index;
                match self.receive(group, snapshot) {
                    Ok(event) => event,
                    Err(error) => self.failed(group, index, error),
                }
            }
            Work::Write { index, chunk, data } => match self.write(group, index, chunk, &data) {
                Ok(()) => return,
                Err(error) => {
                    self.receiving.remove(&group);
                    self.failed(group, index, error)
                }
            },
            Work::Publish(snapshot) => self.publish(group, &snapshot),
            Work::Read { index, chunk, whose } => {
                let data = self.read(group, index, chunk);
                return tell(match whose {
                    Reader::Restore => Done::ToRestore { index, chunk, data },
                    Reader::Peer(to) => {
                        let data = data.ok();
                        Done::Event(SnapshotEvent::Chunk { index, chunk, to, data })
                    }
                });
            }
        };
        tell(Done::Event(event));
    }

    /// Makes durable what was written, says so, and removes a little of what nobody needs. Returns whether there
    /// is more to remove: call it again when there is time.
    pub fn settle(&mut self, tell: &mut impl FnMut(SnapshotDone)) -> bool {
        let unconfirmed = self.receiving.iter().filter(|(_, receiving)| receiving.is_unconfirmed);
        let unconfirmed: Vec<GroupId> = unconfirmed.map(|(group, _)| *group).collect();
        for group in unconfirmed {
            let Some(mut receiving) = self.receiving.remove(&group) else { continue };
            receiving.is_unconfirmed = false;
            let event = match receiving.writer.flush() {
                Ok(()) => {
                    let staged = receiving.staged();
                    self.receiving.insert(group, receiving);
                    staged
                }
                Err(error) => self.failed(group, receiving.snapshot.head.index, error),
            };
            tell(SnapshotDone { group, what: Done::Event(event) });
        }
        if std::mem::take(&mut self.is_garbage_left) {
            match self.store.collect(COLLECT_BYTES) {
                Ok(report) => self.is_garbage_left = report.is_more,
                Err(error) => {
                    self.note(GroupId(0), error);
                }
            }
        }
        self.is_garbage_left
    }

    fn note_taking(
        &mut self,
        group: GroupId,
        writer: Result<SnapshotWriter, SnapshotError>,
        tell: &mut impl FnMut(Done),
    ) {
        match writer {
            Ok(writer) => drop(self.taking.insert(group, writer)),
            Err(error) => tell(Done::Event(self.not_taken(group, error))),
        }
    }

    fn drop_damaged(&mut self, group: GroupId, index: Index) -> Result<(), SnapshotError> {
        match self.store.latest(group) {
            Ok(Some(meta)) if meta.head.index == index => {}
            Err(SnapshotError::DamagedHead { .. }) => {}
            other => return other.map(drop),
        }
        self.taking.remove(&group);
        self.receiving.remove(&group);
        self.store.remove(group, true)
    }

    fn receive(&mut self, group: GroupId, snapshot: Snapshot) -> Result<SnapshotEvent, SnapshotError> {
        self.receiving.remove(&group);
        let index = snapshot.head.index;
        match self.store.latest(group) {
            Ok(Some(latest)) if latest.snapshot() == snapshot => {
                return Ok(SnapshotEvent::Published { index });
            }
            // Nobody can use it any more, and it must not be in the way of the one that comes.
            Err(SnapshotError::DamagedHead { .. }) => self.store.remove(group, true)?,
            latest => drop(latest?),
        }
        let mut writer = self.store.begin(group, snapshot.head.clone())?;
        if writer.position() >= snapshot.body.bytes && writer.position() > 0 {
            // Of another body: what is there cannot be its beginning.
            writer.abort()?;
            writer = self.store.begin(group, snapshot.head.clone())?;
        }
        if mutants::is(Mutant::ResumeLosesChunks) && writer.position() > 0 {
            let lost = vec![0; usize::try_from(writer.position()).unwrap_or_default()];
            writer.abort()?;
            writer = self.store.begin(group, snapshot.head.clone())?;
            writer.write(&lost)?;
        }
        let receiving = Receiving { writer, snapshot, is_unconfirmed: false };
        let staged = receiving.staged();
        self.receiving.insert(group, receiving);
        Ok(staged)
    }

    fn write(&mut self, group: GroupId, index: Index, chunk: u32, data: &[u8]) -> Result<(), SnapshotError> {
        let is_of = |receiving: &&mut Receiving| receiving.snapshot.head.index == index;
        let Some(receiving) = self.receiving.get_mut(&group).filter(is_of) else { return Ok(()) };
        if receiving.writer.next_chunk() == chunk {
            receiving.writer.write(data)?;
        }
        receiving.is_unconfirmed = true;
        Ok(())
    }

    fn publish(&mut self, group: GroupId, snapshot: &Snapshot) -> SnapshotEvent {
        let index = snapshot.head.index;
        let Some(Receiving { writer, .. }) = self.receiving.remove(&group) else {
            return SnapshotEvent::Failed { index };
        };
        self.is_garbage_left = true;
        let is_unchecked = mutants::is(Mutant::DigestUnchecked) || mutants::is(Mutant::ResumeLosesChunks);
        if !writer.is_complete(snapshot.body) && !is_unchecked {
            tracing::error!(%group, %index, "a received snapshot does not have its digest: it is received again");
            if let Err(error) = writer.abort() {
                self.note(group, error);
            }
            return SnapshotEvent::Failed { index };
        }
        match writer.publish() {
            Ok(_) => SnapshotEvent::Published { index },
            Err(error) => self.failed(group, index, error),
        }
    }

    fn read(&mut self, group: GroupId, index: Index, chunk: u32) -> Result<Bytes, Unreadable> {
        let read = match self.store.latest(group) {
            Ok(Some(meta)) if meta.head.index == index => self.store.read_chunk(&meta, chunk),
            Ok(Some(_)) => return Err(Unreadable::Replaced),
            Ok(None) => return Err(Unreadable::Gone),
            Err(error) => Err(error),
        };
        read.map_err(|error| match error {
            SnapshotError::Replaced { .. } => Unreadable::Replaced,
            error => match self.note(group, error) {
                true => Unreadable::Io,
                false => Unreadable::Gone,
            },
        })
    }
}

impl Receiving {
    /// How much of it is there. The end of a body that does not fill its chunk becomes durable as it is published.
    fn staged(&self) -> SnapshotEvent {
        let is_all = self.writer.position() == self.snapshot.body.bytes;
        let chunks = if is_all { self.snapshot.body.chunks() } else { self.writer.next_chunk() };
        SnapshotEvent::Staged { index: self.snapshot.head.index, chunks }
    }
}

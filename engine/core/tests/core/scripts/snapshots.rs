//! A node's snapshots: bodies that are a function of their index, so that no state machine is needed.

use std::collections::BTreeMap;

use bytes::Bytes;
use iroh_raft_core::{
    GroupId, Index, RestoreProblem, SNAPSHOT_CHUNK_BYTES, Snapshot, SnapshotBody, SnapshotEvent, SnapshotStep,
};

/// Bytes of a body's last chunk.
const LAST_BYTES: usize = 10;

/// What is published and staged; outlives the process.
#[derive(Default)]
pub(super) struct Store {
    pub(super) published: BTreeMap<GroupId, Snapshot>,
    staged: BTreeMap<GroupId, Staged>,
}

struct Staged {
    snapshot: Snapshot,
    chunks: u32,
    checksum: u32,
}

fn body(index: Index, chunks: usize) -> Bytes {
    let bytes = (chunks.max(1) - 1) * SNAPSHOT_CHUNK_BYTES + LAST_BYTES;
    vec![index.0 as u8; bytes].into()
}

fn chunk_of(snapshot: &Snapshot, chunk: u32) -> Option<Bytes> {
    let body = body(snapshot.head.index, snapshot.body.chunks() as usize);
    let from = chunk as usize * SNAPSHOT_CHUNK_BYTES;
    Some(body.slice(from..from + snapshot.body.chunk_bytes(chunk)?))
}

impl Store {
    /// Does what a shard asks for. `chunks`: of the bodies of snapshots that are taken.
    pub(super) fn run(&mut self, group: GroupId, step: SnapshotStep, chunks: usize) -> SnapshotEvent {
        match step {
            SnapshotStep::Take(head) => {
                let body = body(head.index, chunks);
                let body = SnapshotBody { bytes: body.len() as u64, checksum: crc32c::crc32c(&body) };
                let snapshot = Snapshot { head, body };
                self.published.insert(group, snapshot.clone());
                SnapshotEvent::Taken(snapshot)
            }
            SnapshotStep::Restore(snapshot) => {
                let index = snapshot.head.index;
                match self.published.get(&group) == Some(&snapshot) {
                    true => SnapshotEvent::Restored { index },
                    false => SnapshotEvent::NotRestored { index, problem: RestoreProblem::Damaged },
                }
            }
            SnapshotStep::Receive(snapshot) => {
                let index = snapshot.head.index;
                if self.published.get(&group) == Some(&snapshot) {
                    return SnapshotEvent::Published { index };
                }
                let staged = self.staged.remove(&group).filter(|staged| staged.snapshot == snapshot);
                let staged = staged.unwrap_or(Staged { snapshot, chunks: 0, checksum: 0 });
                let chunks = staged.chunks;
                self.staged.insert(group, staged);
                SnapshotEvent::Staged { index, chunks }
            }
            SnapshotStep::Write { index, chunk, data } => {
                let Some(staged) = self.staged.get_mut(&group) else {
                    return SnapshotEvent::Failed { index };
                };
                if staged.chunks == chunk {
                    staged.chunks += 1;
                    staged.checksum = crc32c::crc32c_append(staged.checksum, &data);
                }
                SnapshotEvent::Staged { index, chunks: staged.chunks }
            }
            SnapshotStep::Publish(snapshot) => {
                let index = snapshot.head.index;
                let staged = self.staged.remove(&group);
                if staged.is_none_or(|staged| staged.checksum != snapshot.body.checksum) {
                    return SnapshotEvent::Failed { index };
                }
                self.published.insert(group, snapshot);
                SnapshotEvent::Published { index }
            }
            SnapshotStep::Read { index, chunk, to } => {
                let published = self.published.get(&group).filter(|snapshot| snapshot.head.index == index);
                let data = published.and_then(|snapshot| chunk_of(snapshot, chunk));
                SnapshotEvent::Chunk { index, chunk, to, data }
            }
        }
    }
}

/// What is asked for, in a few words.
pub(super) fn print_step(step: &SnapshotStep) -> String {
    match step {
        SnapshotStep::Take(head) => format!("take at {}/{}, offset {}", head.index, head.term, head.offset),
        SnapshotStep::Restore(snapshot) => format!("restore from {}", snapshot.head.index),
        SnapshotStep::Receive(snapshot) => format!("receive that at {}", snapshot.head.index),
        SnapshotStep::Write { index, chunk, .. } => format!("write chunk {chunk} of that at {index}"),
        SnapshotStep::Publish(snapshot) => format!("publish that at {}", snapshot.head.index),
        SnapshotStep::Read { index, chunk, to } => format!("read chunk {chunk} of that at {index} for {to}"),
    }
}

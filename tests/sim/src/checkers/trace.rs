//! A digest of everything that goes into the cores and comes out of them: two runs of a seed must have the same.

use std::hash::{DefaultHasher, Hash, Hasher};

use iroh_raft_core::{
    FlushSeq, Freshness, GroupState, Input, LogEntry, NodeId, Outputs, PeerMessage, Reply, ShardId,
    SnapshotEvent, Timestamp,
};

#[derive(Default)]
pub(crate) struct Trace(DefaultHasher);

impl Trace {
    pub(crate) fn digest(&self) -> u64 {
        self.0.finish()
    }

    pub(super) fn booted(&mut self, node: NodeId, shard: ShardId, last_seq: FlushSeq, found: &[GroupState]) {
        (node, shard, last_seq).hash(&mut self.0);
        for state in found {
            (state.group, state.last, state.next_offset, state.damage.is_some()).hash(&mut self.0);
        }
    }

    pub(super) fn input(&mut self, node: NodeId, shard: ShardId, now: Timestamp, input: &Input) {
        (node, shard, now, std::mem::discriminant(input)).hash(&mut self.0);
        match input {
            Input::Wall(at) => at.hash(&mut self.0),
            Input::Message(message) => self.message(message),
            Input::Propose(propose) => {
                (propose.token, propose.group, propose.deadline).hash(&mut self.0);
                crc32c::crc32c(propose.block.as_bytes()).hash(&mut self.0);
            }
            Input::Read { token, group, consistency, may_forward, deadline } => {
                (token, group, consistency, may_forward, deadline).hash(&mut self.0);
            }
            Input::ReadRecords { token, group, from, .. } => (token, group, from).hash(&mut self.0),
            Input::Tail { token, group, from, granted_bytes, deadline } => {
                (token, group, from, granted_bytes, deadline).hash(&mut self.0);
            }
            Input::GrantTail { token, granted_bytes, .. } => (token, granted_bytes).hash(&mut self.0),
            Input::EndTail { token, .. } => token.hash(&mut self.0),
            Input::Find { token, group, at, deadline } => (token, group, at, deadline).hash(&mut self.0),
            Input::Command { token, group, deadline, .. } => (token, group, deadline).hash(&mut self.0),
            Input::Persisted { seq } => seq.hash(&mut self.0),
            Input::MachinePanicked { group } => group.hash(&mut self.0),
            Input::Damaged { group, damage } => (group, damage.first, damage.last).hash(&mut self.0),
            Input::Fetched { id, group, result } => {
                (id, group, result.is_ok()).hash(&mut self.0);
                result.iter().flatten().for_each(|entry| self.entry(entry));
            }
            Input::Revive { token, group } => (token, group).hash(&mut self.0),
            Input::Recover(recover) => {
                (recover.token, recover.group, &recover.lost, recover.last, recover.last_term)
                    .hash(&mut self.0);
            }
            Input::Reopened { group, result } => {
                let state =
                    result.as_ref().ok().map(|state| (state.hard_state.term, state.last, state.next_offset));
                (group, state).hash(&mut self.0);
            }
            Input::Applied { group, index } => (group, index).hash(&mut self.0),
            Input::Unreachable { node } => node.hash(&mut self.0),
            Input::Placement { node, placement } => {
                (node, placement.shard_count(), placement.placed()).hash(&mut self.0);
            }
            Input::ChangeMembers { token, group, changes, deadline } => {
                (token, group, changes.len(), deadline).hash(&mut self.0);
            }
            Input::TransferLeader { token, group, to } => (token, group, to).hash(&mut self.0),
            Input::Open(open) => (open.token, open.group, open.since).hash(&mut self.0),
            Input::RemoveGroup { token, group, deadline } => (token, group, deadline).hash(&mut self.0),
            Input::StepDown { token, group } => (token, group).hash(&mut self.0),
            Input::Snapshot { group, event } => {
                (group, std::mem::discriminant(event)).hash(&mut self.0);
                if let SnapshotEvent::Staged { index, chunks } = event {
                    (index, chunks).hash(&mut self.0);
                }
            }
            Input::EndTurn | Input::PersistFailed => {}
        }
    }

    pub(super) fn outputs(&mut self, node: NodeId, shard: ShardId, now: Timestamp, outputs: &Outputs) {
        (node, shard, now).hash(&mut self.0);
        if let Some(append) = &outputs.append {
            append.seq.hash(&mut self.0);
            for part in &append.groups {
                let hard_state = part.hard_state.map(|state| (state.term, state.vote, state.commit));
                (part.group, hard_state, part.meta.as_deref().map(crc32c::crc32c)).hash(&mut self.0);
                part.entries.iter().for_each(|entry| self.entry(entry));
            }
        }
        for send in &outputs.sends {
            send.after.hash(&mut self.0);
            self.message(&send.message);
        }
        for apply in &outputs.applies {
            (apply.group, apply.entries.len(), apply.waiters.len()).hash(&mut self.0);
        }
        for fetch in &outputs.fetches {
            (fetch.id, fetch.group, fetch.to).hash(&mut self.0);
        }
        for reply in &outputs.replies {
            std::mem::discriminant(reply).hash(&mut self.0);
            match reply {
                Reply::Appended { token, first, index, term, .. } => {
                    (token, first, index, term).hash(&mut self.0);
                }
                Reply::Repeated { token, first, index, term, .. } => {
                    (token, first, index, term).hash(&mut self.0);
                }
                Reply::ReadReady { token, freshness: Freshness { applied, commit, heard }, .. } => {
                    (token, applied, commit, heard).hash(&mut self.0);
                }
                Reply::Records { token, from, end, is_last, .. } => {
                    (token, from, end, is_last).hash(&mut self.0);
                }
                Reply::Found { token, offset, end, .. } => (token, offset, end).hash(&mut self.0),
                Reply::CommandDone { token, offset, index, .. } => (token, offset, index).hash(&mut self.0),
                Reply::LeadershipGiven { token, leader, term, .. } => (token, leader, term).hash(&mut self.0),
                Reply::NotTransferred { token, error, .. } => {
                    (token, std::mem::discriminant(error)).hash(&mut self.0);
                }
                Reply::Opened { token, group } | Reply::Removed { token, group } => {
                    (token, group).hash(&mut self.0);
                }
                Reply::Recovered { token, recovered, .. } => {
                    (token, recovered.index, recovered.term, recovered.end).hash(&mut self.0);
                }
                Reply::MembersChanged { token, index, .. } => (token, index).hash(&mut self.0),
                Reply::Failed { token, error, .. } => {
                    (token, std::mem::discriminant(error)).hash(&mut self.0);
                }
            }
        }
        outputs.invites.iter().for_each(|invite| (invite.group, invite.since).hash(&mut self.0));
        outputs.compares.iter().for_each(|compare| (compare.index, compare.table).hash(&mut self.0));
        outputs.events.len().hash(&mut self.0);
    }

    fn message(&mut self, message: &PeerMessage) {
        let PeerMessage { kind, group, from, to, term, log_term, index, commit, reject, .. } = message;
        (kind, group, from, to, term, log_term, index, commit, reject).hash(&mut self.0);
        (&message.context[..], message.reject_hint, message.entries.len()).hash(&mut self.0);
        message.entries.iter().for_each(|entry| self.entry(entry));
    }

    fn entry(&mut self, entry: &LogEntry) {
        (entry.index, entry.term, entry.kind, crc32c::crc32c(&entry.data)).hash(&mut self.0);
    }
}

//! What the core tells operators: into the log, and counted.

use super::{ConfState, Driver, Event, ShardCounters};

impl Driver {
    pub(super) fn report(&mut self, event: Event) {
        let counters = &self.parts.counters;
        match event {
            Event::LeaderChanged { group, term, leader } => {
                if leader == Some(self.parts.node) {
                    ShardCounters::add(&counters.leaderships_gained, 1);
                }
                tracing::debug!(%group, %term, ?leader, "leader changed");
            }
            Event::MembersChanged { group, index, members } => {
                let ConfState { voters, learners, voters_outgoing, .. } = &*members;
                tracing::info!(%group, %index, ?voters, ?learners, ?voters_outgoing, "members changed");
            }
            Event::ReplicaLeft { group, since } => {
                self.machines.close(group);
                self.applying.cancel(group, &mut self.outcomes);
                self.comparing.forget(group);
                self.costs.forget(group);
                self.parts.snapshots.handle_left(group, self.handed_over);
                tracing::info!(%group, %since, "the replica on this node is gone, with what it stored");
            }
            Event::Quarantined { group, reason } => {
                // It comes back, if it does, with a machine that begins anew.
                self.applying.cancel(group, &mut self.outcomes);
                ShardCounters::add(&counters.groups_quarantined, 1);
                tracing::error!(%group, reason, "group quarantined on this node; the others go on");
            }
            Event::QuorumRecovered { group, lost, last, term } => {
                // It begins again, with a machine that begins anew.
                self.applying.cancel(group, &mut self.outcomes);
                ShardCounters::add(&counters.quorums_recovered, 1);
                tracing::error!(
                    %group, ?lost, %last, %term,
                    "QUORUM RECOVERED on request: the replica on this node is the only member now, and what the lost \
                     nodes had beyond its last entry is given up; they must not be started again"
                );
            }
            Event::RepairNeeded { group, damage, last, commit, term } => {
                ShardCounters::add(&counters.repairs_begun, 1);
                tracing::error!(
                    %group, ?damage, %last, %commit, %term,
                    "entries are damaged: the replica does not vote until its leader has given them again"
                );
            }
            Event::Repaired { group, bound } => {
                ShardCounters::add(&counters.repairs_done, 1);
                tracing::info!(%group, %bound, "the replica has all again: it is repaired");
            }
            Event::MessageRefused { group, from, reason } => {
                ShardCounters::add(&counters.messages_refused, 1);
                tracing::warn!(%group, %from, ?reason, "message of a peer refused");
            }
            Event::SnapshotTaken { group, index, bytes } => {
                ShardCounters::add(&counters.snapshots_taken, 1);
                tracing::info!(%group, %index, bytes, "snapshot taken");
            }
            Event::SnapshotInstalled { group, index, bytes } => {
                ShardCounters::add(&counters.snapshots_installed, 1);
                tracing::info!(%group, %index, bytes, "snapshot of the leader installed");
            }
            Event::SnapshotDamaged { group, index } => {
                ShardCounters::add(&counters.snapshots_damaged, 1);
                tracing::error!(%group, %index, "the stored snapshot is damaged: another takes its place");
            }
            Event::SnapshotGivenUp { group, index, peer, chunks } => {
                ShardCounters::add(&counters.snapshots_given_up, 1);
                tracing::warn!(%group, %index, %peer, chunks, "transfer of a snapshot given up for now");
            }
            Event::DiskHung { seq, waited } => {
                ShardCounters::add(&counters.disk_hangs, 1);
                tracing::error!(shard = %self.parts.shard_id, %seq, ?waited, "the disk hangs: leaderships are given away");
            }
            Event::DiskRecovered { hung } => {
                tracing::warn!(shard = %self.parts.shard_id, ?hung, "the disk is back");
            }
            Event::Fenced => {
                tracing::error!(shard = %self.parts.shard_id, "shard fenced after a failed write");
            }
        }
    }
}

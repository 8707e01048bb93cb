//! Where a group's log begins.

use super::{Index, Offset, Replica};
use crate::io::{LogChange, LogStart};

impl Replica {
    /// Where the log begins.
    pub(crate) fn log_start(&self) -> LogStart {
        self.raw.store().base()
    }

    /// Entries up to an index (inclusive) are no longer wanted here: the log begins after it at once for whoever
    /// reads it, and on the disk with this replica's next flush, along with the members as of there. The
    /// only way in which the beginning of a log moves, but for the installation of a snapshot.
    ///
    /// `offset` is that of the first record after the index. Returns whether the log begins there now. If not,
    /// nothing was done: it begins there or later already; or what is to go is not committed, not durable, or
    /// ends within a joint configuration, in which no log begins (try an earlier index, or later).
    ///
    /// # Panics
    /// If the entry is in memory and ends at another offset.
    pub(crate) fn compact_to(&mut self, index: Index, offset: Offset) -> bool {
        let log = &self.raw.raft.raft_log;
        let last = Index(self.commit.0.min(log.persisted).min(log.applied));
        let is_possible = index > self.log_start().index && index <= last;
        if !is_possible || self.members.at(index).is_joint() {
            return false;
        }
        let place = LogStart { index, term: self.raw.store().term_at(index), offset };
        self.raw.mut_store().compact_to(place);
        self.members.compact_to(index);
        let members = (**self.members.at(index)).clone();
        self.persistence.change_log(LogChange::CompactTo(place), members);
        self.commands.handle_compacted();
        self.show_offer();
        self.is_dirty = true;
        true
    }
}

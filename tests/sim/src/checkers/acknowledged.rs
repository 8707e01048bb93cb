//! What clients were told: every acknowledged record stands at its offset for good, exactly once, and readers see
//! committed records only, all of them, in order (this project's promises).

use std::collections::BTreeMap;

use iroh_raft_core::{GroupId, Offset};

use super::commits::Commits;
use super::{Checked, ensure};

#[derive(Default, Debug)]
pub(crate) struct Acknowledged {
    /// Record by offset, as its client was told.
    records: BTreeMap<(GroupId, Offset), u64>,
    pub(crate) count: u64,
}

impl Acknowledged {
    /// A client was told where its records are.
    pub(crate) fn appended(
        &mut self,
        group: GroupId,
        first: Offset,
        hashes: &[u64],
        commits: &Commits,
    ) -> Checked {
        for (at, hash) in (first.0..).zip(hashes) {
            self.count += 1;
            let before = self.records.insert((group, Offset(at)), *hash);
            ensure(before.is_none(), "an offset is given once", || {
                format!("group {group}: offset {at} twice")
            })?;
            read(group, Offset(at), *hash, commits)?;
        }
        Ok(())
    }

    /// Everything acknowledged stands in the records of a replica, by offset.
    pub(crate) fn all_in(&self, group: GroupId, records: &[u64]) -> Checked {
        let of_group = self.records.range((group, Offset(0))..=(group, Offset(u64::MAX)));
        for ((_, offset), hash) in of_group {
            let at = usize::try_from(offset.0).expect("a short log");
            ensure(records.get(at) == Some(hash), "acknowledged records are kept", || {
                format!("group {group}: offset {offset} is not the acknowledged record")
            })?;
        }
        Ok(())
    }
}

/// A reader was given a record.
pub(crate) fn read(group: GroupId, offset: Offset, hash: u64, commits: &Commits) -> Checked {
    let at = usize::try_from(offset.0).expect("a short log");
    let committed = commits.records(group).get(at);
    ensure(committed == Some(&hash), "readers see what is committed", || {
        let end = commits.records(group).len();
        format!(
            "group {group}: offset {offset} is read as {hash:x}, committed is {committed:x?} (up to {end}, entry {})",
            commits.last(group)
        )
    })
}

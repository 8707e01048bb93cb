//! The data folder of a node that does not run.

use std::io::{BufWriter, Write};
use std::path::Path;
use std::process::ExitCode;

use iroh_raft::GroupId;
use iroh_raft::core::Index;
use iroh_raft::storage::{self, OfflineFolder};

use crate::say::Failure;

/// Verifies everything.
pub(crate) fn check(folder: &Path) -> Result<ExitCode, Failure> {
    let report = storage::check(folder)?;
    out!("{report}");
    Ok(if report.is_sound() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Prints a group's log.
pub(crate) fn dump(folder: &Path, group: u64, from: u64, to: Option<u64>) -> Result<ExitCode, Failure> {
    let folder = OfflineFolder::open(folder)?;
    let group = GroupId(group);
    let shard = folder.open_shard(folder.identity().placement.shard_of(group))?;
    let mut out = BufWriter::new(std::io::stdout().lock());
    storage::dump(&shard, group, Index(from), Index(to.unwrap_or(u64::MAX)), &mut out)
        .map_err(|error| Failure::Refused(error.to_string()))?;
    out.flush().map_err(Failure::io("cannot write to the standard output"))?;
    Ok(ExitCode::SUCCESS)
}

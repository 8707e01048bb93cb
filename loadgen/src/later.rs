//! `loadgen audit`: reads back what an earlier run was told of, from the nodes that it left or from a cluster that runs.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use iroh_raft::cluster_id;
use iroh_raft::net::client::{ClientConfig, ClientLimits};

use crate::ack_log::AckLog;
use crate::cluster::Cluster;
use crate::quick::{self, LEADERS_DEADLINE, LOOK, QuickError, late, wait_for};
use crate::running::{self, Access};

/// Where the records are.
#[derive(Clone, Debug)]
pub(crate) enum Place {
    /// In a folder that `quick --data-dir` has left.
    Folder(PathBuf),
    /// In a cluster that runs.
    Running(Access),
}

/// Audits what a log of acknowledgements says. Returns whether all of it is there.
///
/// # Errors
/// [`QuickError`] when it cannot be looked for.
pub(crate) fn run(acks: &Path, place: &Place, stop: &Arc<AtomicBool>) -> Result<bool, QuickError> {
    let log = AckLog::read(acks)?;
    let is_of = |found: &str| {
        if found == log.cluster {
            return Ok(());
        }
        let (found, wanted) = (found.to_owned(), log.cluster.clone());
        Err(QuickError::OtherCluster { path: acks.to_path_buf(), found, wanted })
    };
    let (counts, expected) = match place {
        Place::Running(access) => {
            let (name, client) = access.open(ClientLimits::default())?;
            is_of(&name)?;
            running::audit(client, &log, stop)?
        }
        Place::Folder(folder) => {
            let mut cluster = Cluster::open(folder)?;
            is_of(cluster.name())?;
            cluster.start()?;
            let no_leaders = late("not every group had a leader", LEADERS_DEADLINE, folder);
            wait_for(LEADERS_DEADLINE, LOOK, no_leaders, stop, || cluster.has_leaders())?;
            let client = ClientConfig {
                cluster: cluster_id(cluster.name()),
                identity: cluster.client().clone(),
                nodes: cluster.addresses(),
                bind: None,
                limits: ClientLimits::default(),
            };
            let expected = log.ledger.totals().acked * cluster.len() as u64;
            (quick::audit(&mut cluster, folder, client, &log, stop)?, expected)
        }
    };
    let is_clean = counts.is_clean_of(expected);
    println!("{}", counts.verdict(is_clean));
    Ok(is_clean)
}

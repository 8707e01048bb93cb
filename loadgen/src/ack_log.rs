//! What a run was told of its records, in a file: with it they can be audited at any later time.

use std::fs::File;
use std::io::{self, BufWriter, Write as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::ledger::Ledger;
use crate::sizes::RecordSizes;

/// Version of the file.
const FORMAT: u32 = 1;

/// Records that clients have sent, and what they were told of them.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct AckLog {
    format: u32,
    /// The cluster's name.
    pub(crate) cluster: String,
    /// Whether others may have written to the groups, too: what is not ours there is not looked at.
    pub(crate) is_shared: bool,
    /// Number of the first client in its records.
    pub(crate) first_client: u32,
    /// Whether they were appended in sessions: then they stand in the order in which each client sent them.
    #[serde(default)]
    pub(crate) is_in_sessions: bool,
    /// How large records are.
    pub(crate) sizes: RecordSizes,
    /// The records.
    pub(crate) ledger: Ledger,
}

#[derive(Deserialize)]
struct Format {
    format: u32,
}

/// Why a file is no log of acknowledgements.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AckLogError {
    #[error("cannot write {}: {source}", path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error("cannot read {}: {source}; name a file that `quick --ack-log` or `run --ack-log` has written", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{} is no log of acknowledgements: {source}", path.display())]
    Content { path: PathBuf, source: serde_json::Error },
    #[error("{} has format {found}, and this program knows {FORMAT}: use the one that wrote it", path.display())]
    Format { path: PathBuf, found: u32 },
}

impl AckLog {
    /// `ledger`: sealed.
    pub(crate) fn new(cluster: &str, sizes: &RecordSizes, ledger: Ledger) -> AckLog {
        AckLog {
            format: FORMAT,
            cluster: cluster.to_owned(),
            is_shared: false,
            first_client: 0,
            is_in_sessions: false,
            sizes: sizes.clone(),
            ledger,
        }
    }

    /// The same of records that were appended in sessions, or not.
    pub(crate) fn in_sessions(self, is_in_sessions: bool) -> AckLog {
        AckLog { is_in_sessions, ..self }
    }

    /// The same of a cluster that others write to.
    pub(crate) fn shared(self, first_client: u32) -> AckLog {
        AckLog { is_shared: true, first_client, ..self }
    }

    pub(crate) fn write(&self, path: &Path) -> Result<(), AckLogError> {
        let failed = |source| AckLogError::Write { path: path.to_path_buf(), source };
        let mut file = BufWriter::new(File::create(path).map_err(failed)?);
        serde_json::to_writer(&mut file, self).map_err(|error| failed(error.into()))?;
        file.flush().map_err(failed)
    }

    pub(crate) fn read(path: &Path) -> Result<AckLog, AckLogError> {
        let failed = |source| AckLogError::Read { path: path.to_path_buf(), source };
        let text = std::fs::read(path).map_err(failed)?;
        let content = |source| AckLogError::Content { path: path.to_path_buf(), source };
        // First, for another format may have other things in it.
        let Format { format: found } = serde_json::from_slice(&text).map_err(content)?;
        if found != FORMAT {
            return Err(AckLogError::Format { path: path.to_path_buf(), found });
        }
        serde_json::from_slice(&text).map_err(content)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::AckRun;

    #[test]
    fn what_is_written_is_read_again_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("acks");
        let mut ledger = Ledger::new(2, 1);
        ledger.send(2, 0, 3);
        ledger.acked(2, AckRun { first: 4, client: 0, count: 3, sequence: 0 }, 0);
        ledger.seal();
        let log = AckLog::new("orders", &RecordSizes::Uniform(64, 128), ledger).shared(9).in_sessions(true);
        log.write(&path).unwrap();
        assert_eq!(AckLog::read(&path).unwrap(), log);
        // One that knows of no sessions had none.
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, text.replace("\"is_in_sessions\":true,", "")).unwrap();
        assert_eq!(AckLog::read(&path).unwrap(), log.in_sessions(false));
        std::fs::write(&path, "{ \"format\": 2, \"acks\": [] }").unwrap();
        assert!(matches!(AckLog::read(&path), Err(AckLogError::Format { found: 2, .. })));
        std::fs::write(&path, "acks").unwrap();
        assert!(AckLog::read(&path).unwrap_err().to_string().contains("no log of acknowledgements"));
        let missing = AckLog::read(&folder.path().join("none")).unwrap_err();
        assert!(missing.to_string().contains("quick --ack-log"), "{missing}");
    }
}

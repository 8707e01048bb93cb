//! The files of recordings.

use std::fs::{DirBuilder, OpenOptions};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};

use iroh_raft_core::BootEpoch;
use iroh_raft_driver::recording::{Origin, Recorder};

use crate::config::RecordingConfig;
use crate::error::EngineError;

/// Begins the recording of a shard in a file of its own, which nobody else can read.
///
/// # Errors
/// [`EngineError::Recording`] when the file cannot be made, or is there already.
pub(crate) fn start(
    config: &RecordingConfig,
    epoch: BootEpoch,
    origin: Origin<'_>,
) -> Result<Recorder, EngineError> {
    let RecordingConfig { folder, bytes_max } = config;
    let refuse = |path, source| EngineError::Recording { path, source };
    let made = DirBuilder::new().recursive(true).mode(0o700).create(folder);
    made.map_err(|source| refuse(folder.clone(), source))?;
    let path = folder.join(format!("recording-{}-{epoch}", origin.shard));
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
    let file = file.map_err(|source| refuse(path.clone(), source))?;
    tracing::warn!(
        shard = %origin.shard,
        path = %path.display(),
        bytes_max,
        "all that this shard takes is recorded: the file holds users' records"
    );
    Ok(Recorder::new(Box::new(file), *bytes_max, origin))
}

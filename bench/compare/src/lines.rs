//! The lines of the comparison, each with its subjects and figures.

pub mod amplification;
pub mod flush;
pub mod moving;
pub mod reading;
pub mod reopen;
pub mod sustained;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use iroh_raft_bench::bare::{Bare, BareKind};
use iroh_raft_bench::load::{Load, Source};
use iroh_raft_bench::store::Store;
use iroh_raft_storage::{Disk, ShardOptions};

use crate::error::Result;
use crate::peer::Peer;
use crate::sizes::Sizes;
use crate::subject::{Ours, Subject, Theirs};

/// Where and how a run works.
#[derive(Debug)]
pub struct Run {
    /// Folder of the run, on the device to be measured.
    pub folder: PathBuf,
    pub sizes: Sizes,
    /// The medium of our storage.
    pub disk: Arc<dyn Disk>,
    /// Its name, for child processes.
    pub backend: String,
    pub seed: u64,
}

/// Subjects of one line, in a folder that is removed with them.
struct Line<'r> {
    run: &'r Run,
    folder: tempfile::TempDir,
    subjects: Vec<(String, Box<dyn Subject>)>,
}

impl Run {
    /// A folder for one line.
    fn scratch(&self) -> Result<tempfile::TempDir> {
        Ok(tempfile::tempdir_in(&self.folder)?)
    }

    fn ours(&self, path: &Path, load: Load, options: ShardOptions) -> Result<Ours> {
        let store = Store::open(path, self.disk.clone(), options)?;
        Ok(Ours { store, source: Source::new(load, self.seed) })
    }

    fn theirs(&self, path: &Path, load: Load) -> Result<Theirs> {
        let peer = Peer::open(path, self.sizes.retention_bytes)?;
        Ok(Theirs { peer, source: Source::new(load, self.seed) })
    }

    fn line(&self) -> Result<Line<'_>> {
        Ok(Line { run: self, folder: self.scratch()?, subjects: Vec::new() })
    }
}

impl Line<'_> {
    fn path(&self) -> PathBuf {
        self.folder.path().join(self.subjects.len().to_string())
    }

    /// Adds ours and raft-engine with the same work.
    fn add_both(&mut self, name: &str, load: Load, is_without_moves: bool) -> Result<()> {
        let ours = self.run.ours(&self.path(), load, self.run.sizes.options())?;
        ours.store.hold_moves(is_without_moves);
        self.subjects.push((format!("ours{name}"), Box::new(ours)));
        let theirs = self.run.theirs(&self.path(), load)?;
        self.subjects.push((format!("raft-engine{name}"), Box::new(theirs)));
        Ok(())
    }

    /// Adds a bare file of so many bytes a flush, in both kinds.
    fn add_bare(&mut self, bytes: usize) -> Result<()> {
        let pages = bytes.div_ceil(4096) * 4;
        for (name, kind) in [("append", BareKind::Append), ("direct overwrite", BareKind::DirectOverwrite)] {
            let bare = Bare::create(&self.path(), kind, bytes)?;
            self.subjects.push((format!("bare {name} {pages} KiB"), Box::new(bare)));
        }
        Ok(())
    }
}

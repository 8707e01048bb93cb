//! How much room is left on the medium, looked at now and then.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::disk::Disk;

/// Bytes that are written between two looks: asking costs a few microseconds.
const LOOK_EVERY_BYTES: u64 = 4 << 20;

/// Watches the free space of a shard's medium.
#[derive(Debug)]
pub(crate) struct Space {
    disk: Arc<dyn Disk>,
    folder: PathBuf,
    free_bytes_min: u64,
    written: u64,
    is_low: bool,
}

impl Space {
    pub(crate) fn new(disk: Arc<dyn Disk>, folder: &Path, free_bytes_min: u64) -> Space {
        let mut space = Space { disk, folder: folder.to_owned(), free_bytes_min, written: 0, is_low: false };
        space.look();
        space
    }

    /// Counts what was written; returns whether space is low, looked at often enough.
    pub(crate) fn after_write(&mut self, bytes: u64) -> bool {
        self.written += bytes;
        if self.is_low || self.written >= LOOK_EVERY_BYTES {
            self.look();
        }
        self.is_low
    }

    /// Looks now.
    pub(crate) fn look(&mut self) -> bool {
        self.written = 0;
        // A medium that cannot say how much is left is not refused work for that; if it has none, it
        // says so soon enough.
        let free = self.disk.free_bytes(&self.folder);
        self.is_low = free.is_ok_and(|bytes| bytes < self.free_bytes_min);
        self.is_low
    }
}

//! The file system, with journals or small files that stop writing when they are told to: nothing fails, nothing returns. And
//! with journals that are as slow as they are told to be.

use std::io;
use std::ops::Bound;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use redb::{BackendError, StorageBackend};

use crate::disk::{Disk, FileDisk, FileKind, FolderLock};

/// What a sync takes on a slow disk whatever it writes.
const SEEK: Duration = Duration::from_millis(2);

/// A disk that hangs and comes back. Clones are handles to the same one.
///
/// A node on it cannot be shut down while its journals hang.
#[derive(Clone, Default, Debug)]
pub struct HangingDisk {
    journals: Arc<Gate>,
    small_files: Arc<Gate>,
    /// How many bytes a sync writes in a second; 0: it is real.
    bytes_per_s: Arc<AtomicU64>,
}

#[derive(Default, Debug)]
struct Gate {
    state: Mutex<GateState>,
    changed: Condvar,
}

#[derive(Default, Debug)]
struct GateState {
    is_hung: bool,
    waiting: usize,
}

impl Gate {
    /// A poisoned lock guards plain data here, which is always whole.
    fn lock(&self) -> MutexGuard<'_, GateState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn hang(&self, is_hung: bool) {
        self.lock().is_hung = is_hung;
        self.changed.notify_all();
    }

    fn pass(&self) {
        let mut state = self.lock();
        state.waiting += 1;
        while state.is_hung {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.waiting -= 1;
    }
}

impl HangingDisk {
    /// From now on no write to a journal and no sync of one returns, until told otherwise.
    pub fn hang(&self, is_hung: bool) {
        self.journals.hang(is_hung);
    }

    /// From now on a sync of a journal takes as long as a disk of this speed takes for what was written since the one before, and
    /// does nothing else: how fast the machine's own disk is, and what else it has to do, is no part of what is measured. 0:
    /// syncs are real again.
    pub fn slow_down(&self, bytes_per_s: u64) {
        self.bytes_per_s.store(bytes_per_s, Ordering::Relaxed);
    }

    /// From now on no replacement of a small file returns, until told otherwise.
    pub fn hang_small_files(&self, is_hung: bool) {
        self.small_files.hang(is_hung);
    }

    /// Replacements of small files that wait.
    #[must_use]
    pub fn small_files_waiting(&self) -> usize {
        self.small_files.lock().waiting
    }
}

impl Disk for HangingDisk {
    fn open(&self, path: &Path, kind: FileKind, is_new: bool) -> io::Result<Box<dyn StorageBackend>> {
        let file = FileDisk.open(path, kind, is_new)?;
        Ok(match kind {
            FileKind::Journal => Box::new(HangingFile {
                file,
                gate: self.journals.clone(),
                bytes_per_s: self.bytes_per_s.clone(),
                unsynced_bytes: AtomicU64::new(0),
            }),
            FileKind::Log | FileKind::Mark => file,
        })
    }

    fn reserve(&self, path: &Path, bytes: u64) -> io::Result<()> {
        FileDisk.reserve(path, bytes)
    }

    fn free_bytes(&self, folder: &Path) -> io::Result<u64> {
        FileDisk.free_bytes(folder)
    }

    fn read(&self, path: &Path, bytes_max: usize) -> io::Result<Vec<u8>> {
        FileDisk.read(path, bytes_max)
    }

    fn replace(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        self.small_files.pass();
        FileDisk.replace(path, bytes)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        FileDisk.remove(path)
    }

    fn remove_folder(&self, path: &Path) -> io::Result<()> {
        FileDisk.remove_folder(path)
    }

    fn names(&self, folder: &Path) -> io::Result<Vec<String>> {
        FileDisk.names(folder)
    }

    fn create_folder(&self, path: &Path) -> io::Result<()> {
        FileDisk.create_folder(path)
    }

    fn sync_folder(&self, path: &Path) -> io::Result<()> {
        FileDisk.sync_folder(path)
    }

    fn lock(&self, path: &Path) -> io::Result<FolderLock> {
        FileDisk.lock(path)
    }
}

#[derive(Debug)]
struct HangingFile {
    file: Box<dyn StorageBackend>,
    gate: Arc<Gate>,
    bytes_per_s: Arc<AtomicU64>,
    unsynced_bytes: AtomicU64,
}

impl StorageBackend for HangingFile {
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.file.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.gate.pass();
        self.file.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.gate.pass();
        let bytes = self.unsynced_bytes.swap(0, Ordering::Relaxed);
        match self.bytes_per_s.load(Ordering::Relaxed) {
            0 => self.file.sync_data(),
            bytes_per_s => {
                std::thread::sleep(SEEK + Duration::from_micros(bytes * 1_000_000 / bytes_per_s));
                Ok(())
            }
        }
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.gate.pass();
        self.unsynced_bytes.fetch_add(data.len() as u64, Ordering::Relaxed);
        self.file.write(offset, data)
    }

    fn close(&self) -> io::Result<()> {
        self.file.close()
    }

    fn try_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.file.try_lock_range(start, end)
    }

    fn try_lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.file.try_lock_shared_range(start, end)
    }

    fn lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.file.lock_range(start, end)
    }

    fn lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.file.lock_shared_range(start, end)
    }

    fn unlock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.file.unlock_range(start, end)
    }

    fn query_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.file.query_lock_range(start, end)
    }
}

//! Where the journal's bytes live: the real file, or whatever a test or the simulation puts there.

use std::any::Any;
use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::ops::Bound;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use iroh_raft_core::mutants::{self, Mutant};
use rand::TryRngCore;
use redb::backends::FileBackend;
use redb::{BackendError, StorageBackend};
use rustix::fs::{FallocateFlags, FlockOperation, flock};

/// Holds a folder's exclusive lock while any clone lives.
pub type FolderLock = Arc<dyn Any + Send + Sync>;

/// Held by every open file of a shard: while any clone lives, the shard is open, and the folder locked.
#[derive(Debug)]
pub(crate) struct ShardLock(#[expect(dead_code, reason = "held, not looked at")] pub(crate) FolderLock);

/// What a file of a shard is for: a medium may treat them differently.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum FileKind {
    /// The journal: small, written and synced by every flush.
    Journal,
    /// The cold log: large, written by the mover in few big commits, read beside that.
    Log,
    /// The acknowledged mark: a kibibyte, written after every flush, never synced.
    Mark,
}

/// A medium with folders and files: everything that a data folder needs of one.
///
/// The files of a shard are opened and written in place. Small files (manifest, boot, peers) are read
/// and replaced as a whole.
pub trait Disk: fmt::Debug + Send + Sync {
    /// Opens a file for reading and writing. With `is_new` it must not exist yet, and is empty.
    ///
    /// # Errors
    /// As the medium says; `NotFound` and `AlreadyExists` mean what they say.
    fn open(&self, path: &Path, kind: FileKind, is_new: bool) -> io::Result<Box<dyn StorageBackend>>;

    /// Reserves space for a file to grow to `bytes`, if the medium can do that.
    ///
    /// # Errors
    /// As the medium says, above all when there is no such space.
    fn reserve(&self, path: &Path, bytes: u64) -> io::Result<()>;

    /// Bytes that the medium of a folder still takes.
    ///
    /// # Errors
    /// As the medium says.
    fn free_bytes(&self, folder: &Path) -> io::Result<u64>;

    /// The first bytes of a file, at most `bytes_max`.
    ///
    /// # Errors
    /// As the medium says; `NotFound` means what it says.
    fn read(&self, path: &Path, bytes_max: usize) -> io::Result<Vec<u8>>;

    /// Puts a small file in place of the one there, if any. After a crash it is the old or the new one;
    /// once this returns it is the new one, also after a power cut.
    ///
    /// # Errors
    /// As the medium says.
    fn replace(&self, path: &Path, bytes: &[u8]) -> io::Result<()>;

    /// Removes a file, for good once this returns.
    ///
    /// # Errors
    /// As the medium says; `NotFound` means what it says.
    fn remove(&self, path: &Path) -> io::Result<()>;

    /// Removes a folder and the files in it, for good once this returns. A crash may leave some of them.
    ///
    /// # Errors
    /// As the medium says; `NotFound` means what it says.
    fn remove_folder(&self, path: &Path) -> io::Result<()>;

    /// The names in a folder, in any order.
    ///
    /// # Errors
    /// As the medium says; `NotFound` means what it says.
    fn names(&self, folder: &Path) -> io::Result<Vec<String>>;

    /// Makes a folder, and those above it, so that they outlast a power cut. One that exists is fine.
    ///
    /// # Errors
    /// As the medium says.
    fn create_folder(&self, path: &Path) -> io::Result<()>;

    /// Makes the names in a folder outlast a power cut.
    ///
    /// # Errors
    /// As the medium says.
    fn sync_folder(&self, path: &Path) -> io::Result<()>;

    /// Takes the exclusive lock of a folder, with a file of that name in it. Held as long as any clone
    /// of what is returned lives.
    ///
    /// # Errors
    /// As the medium says; `WouldBlock` if it is held.
    fn lock(&self, path: &Path) -> io::Result<FolderLock>;

    /// Sixteen bytes that nobody else draws.
    ///
    /// # Errors
    /// As the system says.
    fn random_id(&self) -> io::Result<[u8; 16]> {
        let mut id = [0; 16];
        rand::rngs::OsRng.try_fill_bytes(&mut id).map_err(io::Error::other)?;
        Ok(id)
    }
}

/// The file system, through the page cache, synced with `fdatasync`.
#[derive(Clone, Copy, Default, Debug)]
pub struct FileDisk;

impl Disk for FileDisk {
    fn open(&self, path: &Path, _: FileKind, is_new: bool) -> io::Result<Box<dyn StorageBackend>> {
        let file = OpenOptions::new().read(true).write(true).create_new(is_new).open(path)?;
        if !is_new {
            // After a write that failed, the page cache may hold what the medium never got, and take it for
            // written: what recovery reads must come from the medium.
            file.sync_data()?;
            rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed)?;
        }
        let backend = FileBackend::new(file).map_err(|error| match error {
            redb::DatabaseError::Storage(redb::StorageError::Io(error)) => error,
            other => io::Error::other(other),
        })?;
        Ok(Box::new(backend))
    }

    fn reserve(&self, path: &Path, bytes: u64) -> io::Result<()> {
        let file = OpenOptions::new().write(true).open(path)?;
        match rustix::fs::fallocate(&file, FallocateFlags::KEEP_SIZE, 0, bytes) {
            Err(rustix::io::Errno::OPNOTSUPP) => Ok(()),
            result => Ok(result?),
        }
    }

    fn free_bytes(&self, folder: &Path) -> io::Result<u64> {
        let stat = rustix::fs::statvfs(folder)?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }

    fn read(&self, path: &Path, bytes_max: usize) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        File::open(path)?.take(bytes_max as u64).read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    fn replace(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let temporary = path.with_extension("tmp");
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).open(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        self.sync_folder(parent(path))
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)?;
        self.sync_folder(parent(path))
    }

    fn remove_folder(&self, path: &Path) -> io::Result<()> {
        fs::remove_dir_all(path)?;
        self.sync_folder(parent(path))
    }

    fn names(&self, folder: &Path) -> io::Result<Vec<String>> {
        let name = |entry: io::Result<fs::DirEntry>| Ok(entry?.file_name().to_string_lossy().into_owned());
        fs::read_dir(folder)?.map(name).collect()
    }

    fn create_folder(&self, path: &Path) -> io::Result<()> {
        if path.is_dir() || path.as_os_str().is_empty() {
            // Whoever made it may have been stopped before this; if it was somebody else, perhaps so that we
            // may not look there, it is theirs to care for.
            return match self.sync_folder(parent(path)) {
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(()),
                result => result,
            };
        }
        self.create_folder(parent(path))?;
        match fs::create_dir(path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
            _ => self.sync_folder(parent(path)),
        }
    }

    fn sync_folder(&self, path: &Path) -> io::Result<()> {
        File::open(path)?.sync_all()
    }

    fn lock(&self, path: &Path) -> io::Result<FolderLock> {
        let file = OpenOptions::new().write(true).create(true).truncate(false).open(path)?;
        flock(&file, FlockOperation::NonBlockingLockExclusive)?;
        Ok(Arc::new(file))
    }
}

/// The folder that a name stands in.
fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

#[derive(Debug)]
enum Change {
    Write(u64, Vec<u8>),
    SetLen(u64),
    Sync,
}

#[derive(Default, Debug)]
struct Held {
    changes: Vec<Change>,
    len: Option<u64>,
}

#[derive(Debug)]
struct HoldingInner {
    disk: Box<dyn StorageBackend>,
    is_holding: AtomicBool,
    held: Mutex<Held>,
    written: AtomicU64,
}

/// A backend that holds changes back in memory until it is told to let them go.
///
/// redb writes to a file as soon as it opens it (and repairs it after a crash). A journal that
/// turns out to be the wrong one, rolled back or damaged must stay as it was found, so nothing
/// reaches the disk before recovery has accepted the content.
#[derive(Clone, Debug)]
pub(crate) struct HoldingBackend(Arc<HoldingInner>);

impl HoldingBackend {
    pub(crate) fn new(disk: Box<dyn StorageBackend>) -> HoldingBackend {
        HoldingBackend(Arc::new(HoldingInner {
            disk,
            is_holding: AtomicBool::new(true),
            held: Mutex::default(),
            written: AtomicU64::new(0),
        }))
    }

    /// Makes what was held back, in its order and with its syncs; from now on nothing is held.
    ///
    /// # Errors
    /// As the medium says. Nothing may be written after that.
    pub(crate) fn release(&self) -> io::Result<()> {
        let mut held = self.held();
        for change in std::mem::take(&mut held.changes) {
            match change {
                Change::Write(offset, data) => self.0.disk.write(offset, &data)?,
                Change::SetLen(len) => self.0.disk.set_len(len)?,
                Change::Sync => self.0.disk.sync_data()?,
            }
        }
        self.0.is_holding.store(false, Ordering::Release);
        Ok(())
    }

    /// Bytes written to the medium since nothing is held back.
    pub(crate) fn written_bytes(&self) -> u64 {
        self.0.written.load(Ordering::Relaxed)
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        // A panic between two pushes leaves a shorter list, and a panicked open is never released.
        self.0.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads what there is; beyond the end of the file there are zeros.
    fn read_upto_end(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let left = self.0.disk.len()?.saturating_sub(offset);
        let stored = usize::try_from(left).unwrap_or(usize::MAX).min(out.len());
        let (there, beyond) = out.split_at_mut(stored);
        beyond.fill(0);
        if there.is_empty() { Ok(()) } else { self.0.disk.read(offset, there) }
    }

    fn is_holding(&self) -> bool {
        self.0.is_holding.load(Ordering::Acquire)
    }
}

/// Copies the part of `data`, which stands at `offset`, that overlaps `out`, which stands at `at`.
pub(crate) fn overlay(at: u64, out: &mut [u8], offset: u64, data: &[u8]) {
    let start = at.max(offset);
    let end = (at + out.len() as u64).min(offset + data.len() as u64);
    if start < end {
        let count = (end - start) as usize;
        let (to, from) = ((start - at) as usize, (start - offset) as usize);
        out[to..to + count].copy_from_slice(&data[from..from + count]);
    }
}

impl StorageBackend for HoldingBackend {
    fn len(&self) -> io::Result<u64> {
        if self.is_holding()
            && let Some(len) = self.held().len
        {
            return Ok(len);
        }
        self.0.disk.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        if !self.is_holding() {
            return match self.0.disk.read(offset, out) {
                // Only a damaged page points there. redb latches on an error of a read, and everything else
                // in the file would be out of reach too; what is no page it finds out by itself.
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => self.read_upto_end(offset, out),
                result => result,
            };
        }
        let held = self.held();
        let disk_len = self.0.disk.len()?;
        let stored = usize::try_from(disk_len.saturating_sub(offset)).unwrap_or(usize::MAX).min(out.len());
        let (on_disk, beyond) = out.split_at_mut(stored);
        beyond.fill(0);
        if !on_disk.is_empty() {
            self.0.disk.read(offset, on_disk)?;
        }
        for change in &held.changes {
            match change {
                Change::Write(at, data) => overlay(offset, out, *at, data),
                // What was cut off and grown again reads as zeros.
                Change::SetLen(len) => {
                    let kept = usize::try_from(len.saturating_sub(offset)).unwrap_or(usize::MAX);
                    out.iter_mut().skip(kept).for_each(|byte| *byte = 0);
                }
                Change::Sync => {}
            }
        }
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        if !self.is_holding() {
            return self.0.disk.set_len(len);
        }
        let mut held = self.held();
        held.len = Some(len);
        held.changes.push(Change::SetLen(len));
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        if mutants::is(Mutant::SyncSkipped) {
            return Ok(());
        }
        if !self.is_holding() {
            let synced = self.0.disk.sync_data();
            return if mutants::is(Mutant::SyncFailureIgnored) { Ok(()) } else { synced };
        }
        self.held().changes.push(Change::Sync);
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        if !self.is_holding() {
            self.0.written.fetch_add(data.len() as u64, Ordering::Relaxed);
            return self.0.disk.write(offset, data);
        }
        self.held().changes.push(Change::Write(offset, data.to_vec()));
        Ok(())
    }

    fn close(&self) -> io::Result<()> {
        self.0.disk.close()
    }

    fn try_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.0.disk.try_lock_range(start, end)
    }

    fn try_lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.0.disk.try_lock_shared_range(start, end)
    }

    fn lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.0.disk.lock_range(start, end)
    }

    fn lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.0.disk.lock_shared_range(start, end)
    }

    fn unlock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.0.disk.unlock_range(start, end)
    }

    fn query_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.0.disk.query_lock_range(start, end)
    }
}

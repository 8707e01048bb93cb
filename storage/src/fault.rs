//! A disk in memory that remembers what was done to it, shows what is left of it after a crash, and
//! fails as it is told: for tests and simulations.
//!
//! No threads, no clocks; all chance comes from seeds. What it can do: lose unsynced writes on a power cut,
//! torn between sectors and in any order; fail reads, writes and syncs once or always; run full; stop in
//! the middle of a write; lose a write it said it made, or put it elsewhere; flip bits at rest; stall; panic.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use redb::StorageBackend;

use crate::disk::{Disk, FileKind, FolderLock};

/// A sector is written whole or not.
pub const SECTOR_BYTES: usize = 512;
const PAGE_BYTES: u64 = 4096;
const EIO: i32 = 5;
const ENOSPC: i32 = 28;

/// Files by path.
pub type Files = BTreeMap<PathBuf, Vec<u8>>;

/// Something that was done to the disk, in order.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Event {
    /// Bytes were written at an offset.
    Write {
        /// The file.
        path: PathBuf,
        /// Where, in bytes.
        offset: u64,
        /// The bytes.
        data: Vec<u8>,
    },
    /// A file got another length.
    SetLen {
        /// The file.
        path: PathBuf,
        /// Its length, in bytes.
        len: u64,
    },
    /// Everything written to a file before is durable.
    Sync {
        /// The file.
        path: PathBuf,
    },
    /// A file was replaced as a whole, or made; durable at once.
    Replace {
        /// The file.
        path: PathBuf,
        /// What it holds now.
        bytes: Vec<u8>,
    },
    /// A file was removed; durable at once.
    Remove {
        /// The file.
        path: PathBuf,
    },
    /// A mark of the test's, of no meaning here.
    Note(u64),
}

impl Event {
    /// Does it to files.
    pub fn apply(&self, files: &mut Files) {
        match self {
            Event::Write { path, offset, data } => {
                let file = files.entry(path.clone()).or_default();
                let (start, end) = (*offset as usize, *offset as usize + data.len());
                if file.len() < end {
                    file.resize(end, 0);
                }
                file[start..end].copy_from_slice(data);
            }
            Event::SetLen { path, len } => files.entry(path.clone()).or_default().resize(*len as usize, 0),
            Event::Replace { path, bytes } => drop(files.insert(path.clone(), bytes.clone())),
            Event::Remove { path } => drop(files.remove(path)),
            Event::Sync { .. } | Event::Note(_) => {}
        }
    }
}

/// What a disk may hold after a power cut that came when these events had happened: everything that was
/// synced, and of the rest any part, in any order, torn between sectors.
#[must_use]
pub fn after_power_cut(before: &Files, events: &[Event], seed: u64) -> Files {
    let mut random = SmallRng::seed_from_u64(seed);
    let mut files = before.clone();
    let mut synced: BTreeMap<&Path, usize> = BTreeMap::new();
    for (at, event) in events.iter().enumerate() {
        if let Event::Sync { path } = event {
            synced.insert(path, at);
        }
    }
    let is_synced = |path: &PathBuf, at| synced.get(path.as_path()).is_some_and(|sync| at < *sync);
    let mut loose = Vec::new();
    for (at, event) in events.iter().enumerate() {
        match event {
            Event::Write { path, .. } | Event::SetLen { path, .. } if !is_synced(path, at) => {
                loose.push(event);
            }
            _ => event.apply(&mut files),
        }
    }
    // The disk may have taken them in another order; lengths are the file system's, and kept in order.
    let is_reordered = random.random_bool(0.3);
    if is_reordered {
        for at in (1..loose.len()).rev() {
            let other = random.random_range(0..=at);
            let are_writes = [at, other].iter().all(|at| matches!(loose[*at], Event::Write { .. }));
            if are_writes {
                loose.swap(at, other);
            }
        }
    }
    let kept = random.random_range(0.0..1.0);
    for event in loose {
        if !random.random_bool(kept) {
            continue;
        }
        match event {
            Event::Write { path, offset, data } if random.random_bool(0.3) && data.len() > SECTOR_BYTES => {
                let sectors = data.len() / SECTOR_BYTES;
                let (from, to) = (random.random_range(0..=sectors), random.random_range(0..=sectors));
                let range = from.min(to) * SECTOR_BYTES..from.max(to) * SECTOR_BYTES;
                let (offset, data) = (offset + range.start as u64, data[range].to_vec());
                Event::Write { path: path.clone(), offset, data }.apply(&mut files);
            }
            _ => event.apply(&mut files),
        }
    }
    files
}

/// What a fault strikes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Operation {
    /// Reading from an open file.
    Read,
    /// Writing to an open file.
    Write,
    /// Syncing an open file.
    Sync,
    /// Changing the length of an open file.
    SetLen,
    /// Any change of an open file.
    Change,
}

/// What happens instead.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Trouble {
    /// EIO; nothing is done.
    Eio,
    /// ENOSPC; nothing is done.
    NoSpace,
    /// A panic; nothing is done.
    Panic,
    /// Half of a write is done, then EIO; of anything else nothing.
    Short,
    /// It says it is done, and is not.
    Lost,
    /// A write lands on another page of the file.
    Misdirected,
    /// It is done, after so many microseconds; they are only counted.
    Stall {
        /// Microseconds.
        us: u64,
    },
}

/// A fault to come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Fault {
    /// On files of this kind; `None`: of any.
    pub kind: Option<FileKind>,
    /// On this operation.
    pub operation: Operation,
    /// After so many that go well.
    pub after: u64,
    /// So many times; `u64::MAX`: always.
    pub times: u64,
    /// What happens.
    pub trouble: Trouble,
}

#[derive(Debug)]
struct State {
    files: Files,
    kinds: BTreeMap<PathBuf, FileKind>,
    folders: BTreeSet<PathBuf>,
    locks: BTreeMap<PathBuf, Weak<dyn std::any::Any + Send + Sync>>,
    events: Vec<Event>,
    faults: Vec<Fault>,
    capacity: Option<u64>,
    stalled_us: u64,
    struck: u64,
    random: SmallRng,
}

/// The disk. Clones are the same one.
#[derive(Clone, Debug)]
pub struct FaultDisk(Arc<Mutex<State>>);

#[derive(Debug)]
struct FaultFile {
    disk: FaultDisk,
    path: PathBuf,
    kind: FileKind,
}

impl Default for FaultDisk {
    fn default() -> FaultDisk {
        FaultDisk::with(Files::new(), 0)
    }
}

impl FaultDisk {
    /// A disk that holds these files; `seed` decides where writes are misdirected to.
    #[must_use]
    pub fn with(files: Files, seed: u64) -> FaultDisk {
        let folders = files.keys().flat_map(|path| path.ancestors().skip(1)).map(Path::to_owned).collect();
        FaultDisk(Arc::new(Mutex::new(State {
            files,
            kinds: BTreeMap::new(),
            folders,
            locks: BTreeMap::new(),
            events: Vec::new(),
            faults: Vec::new(),
            capacity: None,
            stalled_us: 0,
            struck: 0,
            random: SmallRng::seed_from_u64(seed),
        })))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A fault that panics leaves everything whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What it holds now.
    #[must_use]
    pub fn files(&self) -> Files {
        self.state().files.clone()
    }

    /// What was done since this was last asked.
    #[must_use]
    pub fn take_events(&self) -> Vec<Event> {
        std::mem::take(&mut self.state().events)
    }

    /// Puts a mark among the events.
    pub fn note(&self, number: u64) {
        self.state().events.push(Event::Note(number));
    }

    /// Adds a fault to come.
    pub fn plant(&self, fault: Fault) {
        self.state().faults.push(fault);
    }

    /// No fault any more.
    pub fn heal(&self) {
        self.state().faults.clear();
    }

    /// How often a fault struck.
    #[must_use]
    pub fn struck(&self) -> u64 {
        self.state().struck
    }

    /// Microseconds that stalls took: to be added to a simulated clock.
    #[must_use]
    pub fn stalled_us(&self) -> u64 {
        self.state().stalled_us
    }

    /// How many bytes all files together may have; `None` for any number.
    pub fn set_capacity(&self, bytes: Option<u64>) {
        self.state().capacity = bytes;
    }

    /// Flips bits of a byte at rest.
    ///
    /// # Panics
    /// If there is no such byte.
    pub fn flip(&self, path: &Path, offset: usize, mask: u8) {
        self.state().files.get_mut(path).expect("a file to be damaged")[offset] ^= mask;
    }
}

impl State {
    /// The fault that strikes this operation, if one does.
    fn trouble(&mut self, kind: FileKind, operation: Operation) -> Option<Trouble> {
        let mut trouble = None;
        for fault in &mut self.faults {
            let is_change = fault.operation == Operation::Change && operation != Operation::Read;
            let is_meant =
                fault.kind.is_none_or(|of| of == kind) && (fault.operation == operation || is_change);
            if !is_meant {
                continue;
            }
            if fault.after > 0 {
                fault.after -= 1;
            } else if fault.times > 0 && trouble.is_none() {
                fault.times = if fault.times == u64::MAX { u64::MAX } else { fault.times - 1 };
                trouble = Some(fault.trouble);
            }
        }
        self.struck += u64::from(trouble.is_some());
        trouble
    }

    fn used(&self) -> u64 {
        self.files.values().map(|file| file.len() as u64).sum()
    }

    fn check_space(&self, path: &Path, len: u64) -> io::Result<()> {
        let old = self.files.get(path).map_or(0, |file| file.len() as u64);
        let used = self.used() - old + len;
        match self.capacity {
            Some(capacity) if len > old && used > capacity => Err(io::Error::from_raw_os_error(ENOSPC)),
            _ => Ok(()),
        }
    }

    fn done(&mut self, event: Event) {
        event.apply(&mut self.files);
        self.events.push(event);
    }

    /// Makes a change of an open file, or what a fault makes of it.
    fn change(&mut self, kind: FileKind, operation: Operation, event: Event) -> io::Result<()> {
        let trouble = self.trouble(kind, operation);
        match (trouble, event) {
            (Some(Trouble::Eio), _) => Err(io::Error::from_raw_os_error(EIO)),
            (Some(Trouble::NoSpace), _) => Err(io::Error::from_raw_os_error(ENOSPC)),
            (Some(Trouble::Panic), _) => panic!("a fault of the test's disk"),
            (Some(Trouble::Lost), _) => Ok(()),
            (Some(Trouble::Short), Event::Write { path, offset, mut data }) => {
                data.truncate(data.len() / 2);
                self.done(Event::Write { path, offset, data });
                Err(io::Error::from_raw_os_error(EIO))
            }
            (Some(Trouble::Short), _) => Err(io::Error::from_raw_os_error(EIO)),
            (Some(Trouble::Misdirected), Event::Write { path, offset, data }) => {
                let len = self.files[&path].len() as u64;
                let pages = (len.saturating_sub(data.len() as u64) / PAGE_BYTES).max(1);
                let page = self.random.random_range(0..pages);
                let other = if page == offset / PAGE_BYTES { (page + 1) % pages } else { page };
                self.done(Event::Write { path, offset: other * PAGE_BYTES, data });
                Ok(())
            }
            (trouble, event) => {
                if let Some(Trouble::Stall { us }) = trouble {
                    self.stalled_us += us;
                }
                if let Event::SetLen { path, len } = &event {
                    self.check_space(path, *len)?;
                }
                self.done(event);
                Ok(())
            }
        }
    }
}

impl Disk for FaultDisk {
    fn open(&self, path: &Path, kind: FileKind, is_new: bool) -> io::Result<Box<dyn StorageBackend>> {
        let mut state = self.state();
        match (state.files.contains_key(path), is_new) {
            (true, true) => return Err(io::ErrorKind::AlreadyExists.into()),
            (false, false) => return Err(io::ErrorKind::NotFound.into()),
            (false, true) => state.done(Event::Replace { path: path.to_owned(), bytes: Vec::new() }),
            (true, false) => {}
        }
        state.kinds.insert(path.to_owned(), kind);
        Ok(Box::new(FaultFile { disk: self.clone(), path: path.to_owned(), kind }))
    }

    fn reserve(&self, path: &Path, bytes: u64) -> io::Result<()> {
        self.state().check_space(path, bytes)
    }

    fn free_bytes(&self, _: &Path) -> io::Result<u64> {
        let state = self.state();
        Ok(state.capacity.map_or(u64::MAX, |capacity| capacity.saturating_sub(state.used())))
    }

    fn read(&self, path: &Path, bytes_max: usize) -> io::Result<Vec<u8>> {
        let state = self.state();
        let bytes = state.files.get(path).ok_or(io::ErrorKind::NotFound)?;
        Ok(bytes.get(..bytes_max).unwrap_or(bytes).to_vec())
    }

    fn replace(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let mut state = self.state();
        state.check_space(path, bytes.len() as u64)?;
        state.done(Event::Replace { path: path.to_owned(), bytes: bytes.to_vec() });
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut state = self.state();
        if !state.files.contains_key(path) {
            return Err(io::ErrorKind::NotFound.into());
        }
        state.done(Event::Remove { path: path.to_owned() });
        Ok(())
    }

    fn names(&self, folder: &Path) -> io::Result<Vec<String>> {
        let state = self.state();
        if !state.folders.contains(folder) {
            return Err(io::ErrorKind::NotFound.into());
        }
        let inside = state.files.keys().chain(&state.folders).filter(|path| path.parent() == Some(folder));
        let name = |path: &PathBuf| path.file_name().map(|name| name.to_string_lossy().into_owned());
        Ok(inside.filter_map(name).collect())
    }

    fn create_folder(&self, path: &Path) -> io::Result<()> {
        self.state().folders.extend(path.ancestors().map(Path::to_owned));
        Ok(())
    }

    fn sync_folder(&self, _: &Path) -> io::Result<()> {
        Ok(())
    }

    fn lock(&self, path: &Path) -> io::Result<FolderLock> {
        let mut state = self.state();
        if state.locks.get(path).is_some_and(|held| held.strong_count() > 0) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let lock: FolderLock = Arc::new(());
        state.locks.insert(path.to_owned(), Arc::downgrade(&lock));
        Ok(lock)
    }
}

impl FaultFile {
    fn change(&self, operation: Operation, event: Event) -> io::Result<()> {
        self.disk.state().change(self.kind, operation, event)
    }
}

impl StorageBackend for FaultFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.disk.state().files[&self.path].len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let mut state = self.disk.state();
        match state.trouble(self.kind, Operation::Read) {
            None => {}
            Some(Trouble::Stall { us }) => state.stalled_us += us,
            Some(Trouble::Panic) => panic!("a fault of the test's disk"),
            Some(_) => return Err(io::Error::from_raw_os_error(EIO)),
        }
        let from = usize::try_from(offset).unwrap_or(usize::MAX);
        let to = from.saturating_add(out.len());
        let stored = state.files[&self.path].get(from..to);
        out.copy_from_slice(stored.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.change(Operation::SetLen, Event::SetLen { path: self.path.clone(), len })
    }

    fn sync_data(&self) -> io::Result<()> {
        self.change(Operation::Sync, Event::Sync { path: self.path.clone() })
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let event = Event::Write { path: self.path.clone(), offset, data: data.to_vec() };
        self.change(Operation::Write, event)
    }
}

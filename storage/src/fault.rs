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
    /// A file was replaced as a whole, or made. What it holds is durable, its name with the next [`Event::SyncFolder`].
    Replace {
        /// The file.
        path: PathBuf,
        /// What it holds now.
        bytes: Vec<u8>,
    },
    /// A file was removed; durably with the next [`Event::SyncFolder`].
    Remove {
        /// The file.
        path: PathBuf,
    },
    /// The names in a folder are durable as they are now, and what is in folders that were removed from it is gone.
    SyncFolder {
        /// The folder.
        path: PathBuf,
    },
    /// A mark of the test's, of no meaning here.
    Note(u64),
}

impl Event {
    /// Does it to files.
    pub fn apply(&self, files: &mut Files) {
        match self {
            Event::Write { path, .. } | Event::SetLen { path, .. } => {
                change_bytes(files.entry(path.clone()).or_default(), self);
            }
            Event::Replace { path, bytes } => drop(files.insert(path.clone(), bytes.clone())),
            Event::Remove { path } => drop(files.remove(path)),
            Event::Sync { .. } | Event::SyncFolder { .. } | Event::Note(_) => {}
        }
    }

    /// The file that gets another content or name by it.
    fn changed(&self) -> Option<&Path> {
        match self {
            Event::Write { path, .. }
            | Event::SetLen { path, .. }
            | Event::Replace { path, .. }
            | Event::Remove { path } => Some(path),
            Event::Sync { .. } | Event::SyncFolder { .. } | Event::Note(_) => None,
        }
    }
}

/// What a disk may hold after a power cut that came when these events had happened: everything that was
/// synced, and of the rest any part, in any order, torn between sectors. Files that were made, replaced or removed since
/// their folder was synced may be as before, each for itself.
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
    let undone = undone_names(events, &mut random);
    let is_undone = |event: &Event, at| {
        let from = event.changed().and_then(|path| undone.get(path));
        from.is_some_and(|from| at >= *from)
    };
    let mut loose = Vec::new();
    for (at, event) in events.iter().enumerate() {
        match event {
            _ if is_undone(event, at) => {}
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

/// Draws what a power cut undoes of files that were made, replaced or removed: by file, the event from which on all that was
/// done to it never happened.
fn undone_names<'a>(events: &'a [Event], random: &mut SmallRng) -> BTreeMap<&'a Path, usize> {
    let mut open: BTreeMap<&Path, Vec<usize>> = BTreeMap::new();
    for (at, event) in events.iter().enumerate() {
        match event {
            Event::Replace { path, .. } | Event::Remove { path } => {
                open.entry(path).or_default().push(at);
            }
            Event::SyncFolder { path: folder } => open.retain(|path, of_file| {
                let is_inside = path.parent() == Some(folder.as_path());
                if !is_inside {
                    // What lies deeper stays as loose as it was, unless it went with its folder.
                    let is_removed =
                        |at: &usize| path.starts_with(folder) && matches!(events[*at], Event::Remove { .. });
                    let durable = of_file.iter().rposition(is_removed).map_or(0, |last| last + 1);
                    of_file.drain(..durable);
                }
                !is_inside && !of_file.is_empty()
            }),
            _ => {}
        }
    }
    let mut undone = BTreeMap::new();
    for (path, of_file) in open {
        let kept = random.random_range(0..=of_file.len());
        undone.extend(of_file.get(kept).map(|at| (path, *at)));
    }
    undone
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
    /// A write is done, with a bit in its middle turned over.
    Flipped,
    /// The power goes in the middle of it: it may be done, in part or not at all, and nothing is ever done
    /// or answered after it. See [`FaultDisk::restart`].
    Cut,
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

/// Changes of a lasting disk's file that wait for a sync at most; beyond, the oldest go to the medium without one.
const LOOSE_MAX: usize = 16_384;
/// Those of the commit which a lie was about, and of the next one: two each at most.
const LIED_SYNCS: u8 = 4;

/// A file, as whoever has it open sees it, and what of it a power cut cannot take.
#[derive(Default, Debug)]
struct Stored {
    path: PathBuf,
    bytes: Vec<u8>,
    /// Pages that the medium has given out; a longer file has holes.
    pages: BTreeSet<u64>,
    /// On a lasting disk: what is on the medium for good, and the changes that are not.
    durable: Vec<u8>,
    loose: Vec<Event>,
    /// Syncs until no lie concerns the newest commit any more.
    lied_syncs: u8,
}

impl Stored {
    fn apply(&mut self, event: &Event) {
        change_bytes(&mut self.bytes, event);
        if let Event::SetLen { len, .. } = event {
            self.pages.split_off(&len.div_ceil(PAGE_BYTES));
        }
    }

    fn make_durable(&mut self) {
        self.make_durable_upto(self.loose.len());
    }

    fn make_durable_upto(&mut self, count: usize) {
        self.loose.drain(..count).for_each(|event| change_bytes(&mut self.durable, &event));
    }
}

/// Writes to a file, or changes its length.
fn change_bytes(file: &mut Vec<u8>, event: &Event) {
    match event {
        Event::Write { offset, data, .. } => {
            let (start, end) = (*offset as usize, *offset as usize + data.len());
            if file.len() < end {
                file.resize(end, 0);
            }
            file[start..end].copy_from_slice(data);
        }
        Event::SetLen { len, .. } => file.resize(*len as usize, 0),
        _ => {}
    }
}

fn pages_of(offset: u64, len: u64) -> std::ops::Range<u64> {
    offset / PAGE_BYTES..(offset + len).div_ceil(PAGE_BYTES)
}

#[derive(Debug)]
struct State {
    files: Vec<Stored>,
    by_path: BTreeMap<PathBuf, usize>,
    folders: BTreeSet<PathBuf>,
    locks: BTreeMap<PathBuf, Weak<dyn std::any::Any + Send + Sync>>,
    events: Vec<Event>,
    faults: Vec<Fault>,
    capacity: Option<u64>,
    stalled_us: u64,
    struck: u64,
    random: SmallRng,
    /// It keeps what is durable and what is not, instead of everything that was done.
    is_lasting: bool,
    is_dead: bool,
}

/// The disk. Clones are the same one.
#[derive(Clone, Debug)]
pub struct FaultDisk(Arc<Mutex<State>>);

#[derive(Debug)]
struct FaultFile {
    disk: FaultDisk,
    at: usize,
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
        let by_path = files.keys().cloned().zip(0..).collect();
        let stored = |(path, bytes): (PathBuf, Vec<u8>)| {
            let pages = pages_of(0, bytes.len() as u64).collect();
            Stored { path, durable: bytes.clone(), bytes, pages, loose: Vec::new(), lied_syncs: 0 }
        };
        FaultDisk(Arc::new(Mutex::new(State {
            files: files.into_iter().map(stored).collect(),
            by_path,
            folders,
            locks: BTreeMap::new(),
            events: Vec::new(),
            faults: Vec::new(),
            capacity: None,
            stalled_us: 0,
            struck: 0,
            random: SmallRng::seed_from_u64(seed),
            is_lasting: false,
            is_dead: false,
        })))
    }

    /// An empty disk for a long run, which can be restarted.
    #[must_use]
    pub fn lasting(seed: u64) -> FaultDisk {
        let disk = FaultDisk::with(Files::new(), seed);
        disk.state().is_lasting = true;
        disk
    }

    /// Whether it does nothing any more.
    #[must_use]
    pub fn is_dead(&self) -> bool {
        self.state().is_dead
    }

    /// Whether a write was lost or went elsewhere that may belong to the newest commit of a journal or log file. Of a
    /// [`lasting`](FaultDisk::lasting) disk.
    #[must_use]
    pub fn has_lied_lately(&self) -> bool {
        self.state().files.iter().any(|file| file.lied_syncs > 0)
    }

    /// The same medium after its machine stopped; faults are gone, and this handle is dead. `power_cut`
    /// draws what is left of what was not durable; without it, only the process is gone and all is there.
    ///
    /// # Panics
    /// On a disk that is not [`lasting`](FaultDisk::lasting).
    #[must_use]
    pub fn restart(&self, power_cut: Option<u64>) -> FaultDisk {
        let mut state = self.state();
        assert!(state.is_lasting, "a disk made to last");
        state.is_dead = true;
        let disk = FaultDisk::lasting(state.random.random());
        let mut restarted = disk.state();
        restarted.by_path = state.by_path.clone();
        restarted.folders = state.folders.clone();
        restarted.capacity = state.capacity;
        for (at, file) in (0..).zip(&mut state.files) {
            let mut file = std::mem::take(file);
            if let Some(seed) = power_cut {
                let before = Files::from([(file.path.clone(), file.durable)]);
                let after = after_power_cut(&before, &file.loose, seed.wrapping_add(at));
                file.durable = after.into_values().next().unwrap_or_default();
                file.bytes.clone_from(&file.durable);
                file.pages.extend(pages_of(0, file.bytes.len() as u64));
                file.loose.clear();
            }
            restarted.files.push(file);
        }
        drop(restarted);
        disk
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A fault that panics leaves everything whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What it holds now.
    #[must_use]
    pub fn files(&self) -> Files {
        let state = self.state();
        let bytes = |(path, at): (&PathBuf, &usize)| (path.clone(), state.files[*at].bytes.clone());
        state.by_path.iter().map(bytes).collect()
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

    /// How many bytes of pages all files together may take; `None` for any number.
    pub fn set_capacity(&self, bytes: Option<u64>) {
        self.state().capacity = bytes;
    }

    /// Bytes of the pages that all files take.
    #[must_use]
    pub fn used_bytes(&self) -> u64 {
        self.state().used()
    }

    /// Every file with its length in bytes.
    #[must_use]
    pub fn lengths(&self) -> Vec<(PathBuf, usize)> {
        let state = self.state();
        let length = |(path, at): (&PathBuf, &usize)| (path.clone(), state.files[*at].bytes.len());
        state.by_path.iter().map(length).collect()
    }

    /// Puts other bytes in place of a file, durably, as somebody who restores an old copy does. Its
    /// capacity does not matter: they make room.
    ///
    /// # Panics
    /// If the disk is dead.
    pub fn put(&self, path: &Path, bytes: &[u8]) {
        let mut state = self.state();
        state.check_alive().expect("a disk that works");
        let capacity = state.capacity.take();
        state.replace(path, bytes).expect("room without a limit");
        state.sync_folder_of(path);
        state.capacity = capacity;
    }

    /// Flips bits of a byte at rest.
    ///
    /// # Panics
    /// If there is no such byte.
    pub fn flip(&self, path: &Path, offset: usize, mask: u8) {
        let mut state = self.state();
        let at = state.by_path[path];
        let file = &mut state.files[at];
        file.bytes[offset] ^= mask;
        // What was read last time is what is on the medium, as far as it got there.
        if let Some(byte) = file.durable.get_mut(offset) {
            *byte ^= mask;
        }
    }
}

impl State {
    fn check_alive(&self) -> io::Result<()> {
        if self.is_dead { Err(io::Error::from_raw_os_error(EIO)) } else { Ok(()) }
    }

    /// The fault that strikes this operation, if one does.
    fn trouble(&mut self, kind: FileKind, operation: Operation) -> Option<Trouble> {
        if self.is_dead {
            return Some(Trouble::Eio);
        }
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
        self.files.iter().map(|file| file.pages.len() as u64 * PAGE_BYTES).sum()
    }

    /// Gives a file the pages that it has not got yet, if there are so many.
    fn allocate(&mut self, at: usize, pages: std::ops::Range<u64>) -> io::Result<()> {
        if let Some(capacity) = self.capacity {
            let new = pages.clone().filter(|page| !self.files[at].pages.contains(page)).count() as u64;
            if new > 0 && self.used() + new * PAGE_BYTES > capacity {
                return Err(io::Error::from_raw_os_error(ENOSPC));
            }
        }
        self.files[at].pages.extend(pages);
        Ok(())
    }

    /// Does something to an open file.
    fn done(&mut self, at: usize, event: Event) {
        let file = &mut self.files[at];
        file.apply(&event);
        match (self.is_lasting, &event) {
            (false, _) => self.events.push(event),
            (true, Event::Sync { .. }) => {
                file.make_durable();
                file.lied_syncs = file.lied_syncs.saturating_sub(1);
            }
            (true, _) => {
                file.loose.push(event);
                // Systems do not wait for a sync for ever either.
                if file.loose.len() > LOOSE_MAX {
                    file.make_durable_upto(LOOSE_MAX / 2);
                }
            }
        }
    }

    /// Files that are not synced with each commit would be told to lie for ever.
    fn note_lie(&mut self, at: usize, kind: FileKind) {
        if matches!(kind, FileKind::Journal | FileKind::Log) {
            self.files[at].lied_syncs = LIED_SYNCS;
        }
    }

    /// Makes a change of an open file, or what a fault makes of it.
    fn change(&mut self, at: usize, kind: FileKind, operation: Operation, event: Event) -> io::Result<()> {
        let trouble = self.trouble(kind, operation);
        match (trouble, event) {
            (Some(Trouble::Eio | Trouble::Short), Event::Sync { .. }) => {
                // What the kernel could not write it takes for written: no later sync tries it again.
                self.files[at].loose.clear();
                Err(io::Error::from_raw_os_error(EIO))
            }
            (Some(Trouble::Eio), _) => Err(io::Error::from_raw_os_error(EIO)),
            (Some(Trouble::NoSpace), _) => Err(io::Error::from_raw_os_error(ENOSPC)),
            (Some(Trouble::Panic), _) => panic!("a fault of the test's disk"),
            (Some(Trouble::Lost), _) => {
                self.note_lie(at, kind);
                Ok(())
            }
            (Some(Trouble::Cut), event) => {
                if self.is_lasting && !matches!(event, Event::Sync { .. }) {
                    self.files[at].loose.push(event);
                }
                self.is_dead = true;
                Err(io::Error::from_raw_os_error(EIO))
            }
            (Some(Trouble::Short), Event::Write { path, offset, mut data }) => {
                data.truncate(data.len() / 2);
                self.done(at, Event::Write { path, offset, data });
                Err(io::Error::from_raw_os_error(EIO))
            }
            (Some(Trouble::Short), _) => Err(io::Error::from_raw_os_error(EIO)),
            (Some(Trouble::Flipped), Event::Write { path, offset, mut data }) if !data.is_empty() => {
                let middle = data.len() / 2;
                data[middle] ^= 1;
                self.done(at, Event::Write { path, offset, data });
                Ok(())
            }
            (Some(Trouble::Misdirected), Event::Write { path, offset, data }) => {
                self.note_lie(at, kind);
                let len = self.files[at].bytes.len() as u64;
                let pages = (len.saturating_sub(data.len() as u64) / PAGE_BYTES).max(1);
                let page = self.random.random_range(0..pages);
                let other = if page == offset / PAGE_BYTES { (page + 1) % pages } else { page };
                self.done(at, Event::Write { path, offset: other * PAGE_BYTES, data });
                Ok(())
            }
            (trouble, event) => {
                if let Some(Trouble::Stall { us }) = trouble {
                    self.stalled_us += us;
                }
                if let Event::Write { offset, data, .. } = &event {
                    self.allocate(at, pages_of(*offset, data.len() as u64))?;
                }
                self.done(at, event);
                Ok(())
            }
        }
    }

    /// Puts a file there, whole and durable.
    fn replace(&mut self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let at = self.by_path.get(path).copied().unwrap_or(self.files.len());
        if at == self.files.len() {
            self.files.push(Stored { path: path.to_owned(), ..Stored::default() });
        }
        self.allocate(at, pages_of(0, bytes.len() as u64))?;
        self.by_path.insert(path.to_owned(), at);
        let file = &mut self.files[at];
        file.bytes = bytes.to_vec();
        file.durable = bytes.to_vec();
        file.loose.clear();
        self.tell(Event::Replace { path: path.to_owned(), bytes: bytes.to_vec() });
        Ok(())
    }

    /// Adds what was done to names. On a lasting disk that is durable at once.
    fn tell(&mut self, event: Event) {
        if !self.is_lasting {
            self.events.push(event);
        }
    }

    fn sync_folder(&mut self, path: &Path) {
        self.tell(Event::SyncFolder { path: path.to_owned() });
    }

    fn sync_folder_of(&mut self, path: &Path) {
        self.sync_folder(path.parent().unwrap_or(Path::new("/")));
    }

    fn remove(&mut self, path: &Path) -> io::Result<()> {
        let at = self.by_path.remove(path).ok_or(io::ErrorKind::NotFound)?;
        self.files[at] = Stored::default();
        self.tell(Event::Remove { path: path.to_owned() });
        Ok(())
    }
}

impl Disk for FaultDisk {
    fn open(&self, path: &Path, kind: FileKind, is_new: bool) -> io::Result<Box<dyn StorageBackend>> {
        let mut state = self.state();
        state.check_alive()?;
        match (state.by_path.get(path), is_new) {
            (Some(_), true) => return Err(io::ErrorKind::AlreadyExists.into()),
            (None, false) => return Err(io::ErrorKind::NotFound.into()),
            (None, true) => state.replace(path, &[])?,
            (Some(&at), false) if state.is_lasting => {
                // As the file system does it: synced, then read anew from the medium.
                let file = &mut state.files[at];
                file.make_durable();
                file.bytes.clone_from(&file.durable);
            }
            (Some(_), false) => state.tell(Event::Sync { path: path.to_owned() }),
        }
        let at = state.by_path[path];
        Ok(Box::new(FaultFile { disk: self.clone(), at, kind }))
    }

    fn reserve(&self, path: &Path, bytes: u64) -> io::Result<()> {
        let mut state = self.state();
        state.check_alive()?;
        let at = *state.by_path.get(path).ok_or(io::ErrorKind::NotFound)?;
        state.allocate(at, pages_of(0, bytes))
    }

    fn free_bytes(&self, _: &Path) -> io::Result<u64> {
        let state = self.state();
        Ok(state.capacity.map_or(u64::MAX, |capacity| capacity.saturating_sub(state.used())))
    }

    fn read(&self, path: &Path, bytes_max: usize) -> io::Result<Vec<u8>> {
        let state = self.state();
        state.check_alive()?;
        let bytes = &state.files[*state.by_path.get(path).ok_or(io::ErrorKind::NotFound)?].bytes;
        Ok(bytes.get(..bytes_max).unwrap_or(bytes).to_vec())
    }

    fn replace(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let mut state = self.state();
        state.check_alive()?;
        state.replace(path, bytes)?;
        state.sync_folder_of(path);
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut state = self.state();
        state.check_alive()?;
        state.remove(path)?;
        state.sync_folder_of(path);
        Ok(())
    }

    fn remove_folder(&self, path: &Path) -> io::Result<()> {
        if !self.state().folders.contains(path) {
            return Err(io::ErrorKind::NotFound.into());
        }
        let names = self.names(path)?;
        let mut state = self.state();
        state.check_alive()?;
        names.iter().try_for_each(|name| state.remove(&path.join(name)))?;
        state.folders.remove(path);
        state.sync_folder_of(path);
        Ok(())
    }

    fn names(&self, folder: &Path) -> io::Result<Vec<String>> {
        let state = self.state();
        if !state.folders.contains(folder) {
            return Err(io::ErrorKind::NotFound.into());
        }
        let inside = state.by_path.keys().chain(&state.folders).filter(|path| path.parent() == Some(folder));
        let name = |path: &PathBuf| path.file_name().map(|name| name.to_string_lossy().into_owned());
        Ok(inside.filter_map(name).collect())
    }

    fn create_folder(&self, path: &Path) -> io::Result<()> {
        self.state().folders.extend(path.ancestors().map(Path::to_owned));
        Ok(())
    }

    fn sync_folder(&self, path: &Path) -> io::Result<()> {
        let mut state = self.state();
        state.check_alive()?;
        state.sync_folder(path);
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

    fn random_id(&self) -> io::Result<[u8; 16]> {
        Ok(self.state().random.random())
    }
}

impl FaultFile {
    fn change(&self, operation: Operation, event: impl FnOnce(PathBuf) -> Event) -> io::Result<()> {
        let mut state = self.disk.state();
        let event = event(state.files[self.at].path.clone());
        state.change(self.at, self.kind, operation, event)
    }
}

impl StorageBackend for FaultFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.disk.state().files[self.at].bytes.len() as u64)
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
        let stored = state.files[self.at].bytes.get(from..to);
        out.copy_from_slice(stored.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.change(Operation::SetLen, |path| Event::SetLen { path, len })
    }

    fn sync_data(&self) -> io::Result<()> {
        self.change(Operation::Sync, |path| Event::Sync { path })
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.change(Operation::Write, |path| Event::Write { path, offset, data: data.to_vec() })
    }
}

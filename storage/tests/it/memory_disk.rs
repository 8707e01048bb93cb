//! Files in memory that remember everything that was done to them, and fail on demand.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use iroh_raft_storage::{Disk, FileKind};
use redb::StorageBackend;

#[derive(Clone, Debug)]
pub(crate) enum Event {
    Write(PathBuf, u64, Vec<u8>),
    SetLen(PathBuf, u64),
    Sync(PathBuf),
    /// The workload handed this flush to the writer.
    Begun(u64),
    /// The writer reported it.
    Acknowledged(u64),
}

pub(crate) type Files = BTreeMap<PathBuf, Vec<u8>>;

/// What happens instead of a change.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) enum Fault {
    Eio,
    Enospc,
    Panic,
}

#[derive(Default, Debug)]
pub(crate) struct State {
    pub(crate) files: Files,
    pub(crate) events: Vec<Event>,
    /// Which fault strikes, and after how many more changes.
    pub(crate) fault: Option<(Fault, usize)>,
}

/// The disk. Clones are the same one.
#[derive(Clone, Default, Debug)]
pub(crate) struct MemoryDisk(Arc<Mutex<State>>);

#[derive(Debug)]
struct MemoryFile {
    disk: MemoryDisk,
    path: PathBuf,
}

pub(crate) fn apply(files: &mut Files, event: &Event) {
    match event {
        Event::Write(path, offset, data) => {
            let file = files.entry(path.clone()).or_default();
            let (start, end) = (*offset as usize, *offset as usize + data.len());
            if file.len() < end {
                file.resize(end, 0);
            }
            file[start..end].copy_from_slice(data);
        }
        Event::SetLen(path, len) => files.entry(path.clone()).or_default().resize(*len as usize, 0),
        Event::Sync(_) | Event::Begun(_) | Event::Acknowledged(_) => {}
    }
}

impl MemoryDisk {
    pub(crate) fn with(files: Files) -> MemoryDisk {
        MemoryDisk(Arc::new(Mutex::new(State { files, ..State::default() })))
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes something that is not a change of a file.
    pub(crate) fn record(&self, event: Event) {
        self.state().events.push(event);
    }

    /// Makes a change, or fails at it.
    fn change(&self, event: Event) -> io::Result<()> {
        let mut state = self.state();
        match &mut state.fault {
            Some((fault, 0)) => match fault {
                Fault::Eio => return Err(io::Error::from_raw_os_error(5)),
                Fault::Enospc => return Err(io::Error::from_raw_os_error(28)),
                Fault::Panic => panic!("a fault of the test's disk"),
            },
            Some((_, left)) => *left -= 1,
            None => {}
        }
        apply(&mut state.files, &event);
        state.events.push(event);
        Ok(())
    }
}

impl Disk for MemoryDisk {
    fn open(&self, path: &Path, _: FileKind, is_new: bool) -> io::Result<Box<dyn StorageBackend>> {
        let mut state = self.state();
        match (state.files.contains_key(path), is_new) {
            (true, true) => return Err(io::ErrorKind::AlreadyExists.into()),
            (false, false) => return Err(io::ErrorKind::NotFound.into()),
            (false, true) => drop(state.files.insert(path.to_owned(), Vec::new())),
            (true, false) => {}
        }
        Ok(Box::new(MemoryFile { disk: self.clone(), path: path.to_owned() }))
    }

    fn free_bytes(&self, _: &Path) -> io::Result<u64> {
        Ok(u64::MAX)
    }

    fn reserve(&self, _path: &Path, _bytes: u64) -> io::Result<()> {
        Ok(())
    }
}

impl StorageBackend for MemoryFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.disk.state().files[&self.path].len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let state = self.disk.state();
        let from = offset as usize;
        let stored = state.files[&self.path].get(from..from + out.len());
        out.copy_from_slice(stored.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.disk.change(Event::SetLen(self.path.clone(), len))
    }

    fn sync_data(&self) -> io::Result<()> {
        self.disk.change(Event::Sync(self.path.clone()))
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.disk.change(Event::Write(self.path.clone(), offset, data.to_vec()))
    }
}

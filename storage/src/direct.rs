//! Files past the page cache: O_DIRECT, with all page writes of a commit handed to the kernel at once
//! through an io_uring.
//!
//! redb writes a commit as a handful of scattered pages, then syncs. Here these pages are copied into
//! an aligned arena and go to the device together, in parallel, when redb syncs (or when the arena is
//! full: that also bounds how much of a long commit is at the device at a time, so that the flushes of
//! another file do not wait behind all of it).
//!
//! Invariants: the kernel never holds a buffer that is written to or freed; what was written and not
//! yet submitted is what readers see; after any failure nothing is written any more.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use io_uring::{IoUring, opcode, types};
use redb::StorageBackend;
use rustix::fs::{FallocateFlags, OFlags, SeekFrom};

use crate::disk::{Disk, FileDisk, FileKind, FolderLock, overlay};
use crate::pages::{PAGE_BYTES, Pages};

/// Pages of a journal's arena: a large commit goes in one piece.
const JOURNAL_ARENA_PAGES: usize = 1024;
/// Pages of a log file's arena: what a move has at the device at a time.
const LOG_ARENA_PAGES: usize = 256;
/// Writes that are submitted together at most.
const RING_ENTRIES: u32 = 256;
/// Space behind the newest page of a journal that is written with zeros ahead of use: the first write
/// to space that is only reserved costs the file system a commit of its own.
const AHEAD_PAGES: usize = 256;
/// A commit above this pays for its space itself: writing it twice would cost more.
const AHEAD_COMMIT_PAGES: usize = 16;
/// Readings of a page beside writes, before the reader holds them up.
const READ_TRIES: u32 = 4;

/// The file system, past the page cache. Small files and marks go through it.
#[derive(Clone, Copy, Default, Debug)]
pub struct DirectDisk;

impl Disk for DirectDisk {
    fn open(&self, path: &Path, kind: FileKind, is_new: bool) -> io::Result<Box<dyn StorageBackend>> {
        let arena_pages = match kind {
            FileKind::Mark => return FileDisk.open(path, kind, is_new),
            FileKind::Journal => JOURNAL_ARENA_PAGES,
            FileKind::Log => LOG_ARENA_PAGES,
        };
        let ahead = if kind == FileKind::Journal { Some(Pages::new(AHEAD_PAGES)) } else { None };
        Ok(Box::new(DirectFile::open(path, is_new, arena_pages, ahead)?))
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

/// Pages that are to be written together.
#[derive(Clone, Copy, Debug)]
struct Piece {
    /// Where in the file, in bytes.
    offset: u64,
    /// Where in the arena.
    page: usize,
    pages: usize,
}

impl Piece {
    fn end(&self) -> u64 {
        self.offset + (self.pages * PAGE_BYTES) as u64
    }
}

/// What was written and not yet submitted.
struct Pending {
    arena: Pages,
    used_pages: usize,
    pieces: Vec<Piece>,
    /// How often it was emptied.
    emptied: u64,
    len: u64,
}

/// What only one writer at a time may touch. Locked before [`Pending`].
struct Submitter {
    ring: IoUring,
    /// Zeros to be written ahead of use; `None` where that does not pay.
    ahead: Option<Pages>,
    /// Nothing from here on was ever written.
    written: u64,
    /// The page that was written last in part, as it is now.
    partial: Option<(u64, Pages)>,
    /// Set for good by the first failure.
    failure: Option<(io::ErrorKind, Option<i32>)>,
    /// Writes that the kernel still had when that happened.
    is_abandoned: bool,
}

struct DirectFile {
    file: File,
    submitter: Mutex<Submitter>,
    pending: RwLock<Pending>,
}

impl fmt::Debug for DirectFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DirectFile").field("file", &self.file).finish_non_exhaustive()
    }
}

fn floor(offset: u64) -> u64 {
    offset - offset % PAGE_BYTES as u64
}

impl DirectFile {
    fn open(path: &Path, is_new: bool, arena_pages: usize, ahead: Option<Pages>) -> io::Result<DirectFile> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create_new(is_new).custom_flags(OFlags::DIRECT.bits() as i32);
        let file = options.open(path).map_err(|error| match error.kind() {
            io::ErrorKind::InvalidInput => {
                let text = "this file system has no O_DIRECT: choose the buffered backend";
                io::Error::new(io::ErrorKind::Unsupported, text)
            }
            _ => error,
        })?;
        let len = file.metadata()?.len();
        let written = data_end(&file).unwrap_or(len).next_multiple_of(PAGE_BYTES as u64);
        let pending =
            Pending { arena: Pages::new(arena_pages), used_pages: 0, pieces: Vec::new(), emptied: 0, len };
        let submitter = Submitter {
            ring: IoUring::new(RING_ENTRIES)?,
            ahead,
            written,
            partial: None,
            failure: None,
            is_abandoned: false,
        };
        Ok(DirectFile { file, submitter: Mutex::new(submitter), pending: RwLock::new(pending) })
    }

    fn submitter(&self) -> MutexGuard<'_, Submitter> {
        self.submitter.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn pending(&self) -> RwLockReadGuard<'_, Pending> {
        self.pending.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn pending_mut(&self) -> RwLockWriteGuard<'_, Pending> {
        self.pending.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes a change of the file that no other may follow if it fails.
    fn change<T>(&self, change: impl FnOnce(&mut Submitter) -> io::Result<T>) -> io::Result<T> {
        let mut submitter = self.submitter();
        if let Some((kind, code)) = submitter.failure {
            return Err(code.map_or_else(|| kind.into(), io::Error::from_raw_os_error));
        }
        // Set for good by a panic as well.
        submitter.failure = Some((io::ErrorKind::Other, None));
        let changed = change(&mut submitter);
        submitter.failure = changed.as_ref().err().map(|error| (error.kind(), error.raw_os_error()));
        changed
    }

    /// Copies whole pages into the arena.
    fn take_pages(&self, submitter: &mut Submitter, mut offset: u64, mut data: &[u8]) -> io::Result<()> {
        while !data.is_empty() {
            if !self.pending().has_room_for(offset, data.len()) {
                self.submit(submitter)?;
            }
            let taken = self.pending_mut().take(offset, data);
            (offset, data) = (offset + taken as u64, &data[taken..]);
        }
        Ok(())
    }

    /// Writes a part of a page: the whole page, as it is with that part.
    fn take_partial(&self, submitter: &mut Submitter, offset: u64, data: &[u8]) -> io::Result<()> {
        let at = floor(offset);
        let mut page = match submitter.partial.take() {
            Some((of, page)) if of == at => page,
            _ => {
                let mut page = Pages::new(1);
                self.read_page(at, &mut page)?;
                page
            }
        };
        let within = (offset - at) as usize;
        page.bytes_mut()[within..within + data.len()].copy_from_slice(data);
        self.take_pages(submitter, at, page.bytes())?;
        submitter.partial = Some((at, page));
        Ok(())
    }

    /// A page as it is with everything written to it; zeros beyond the end of the file.
    fn read_page(&self, at: u64, page: &mut Pages) -> io::Result<()> {
        read_pages(&self.file, at, page)?;
        self.pending().overlay(at, page.bytes_mut());
        Ok(())
    }

    /// Hands everything that is pending to the kernel and waits until it is written.
    fn submit(&self, submitter: &mut Submitter) -> io::Result<()> {
        let pending = self.pending();
        let is_small = pending.used_pages <= AHEAD_COMMIT_PAGES;
        let end = pending.pieces.iter().map(Piece::end).max().unwrap_or(0);
        let mut writes: Vec<Write> = pending
            .pieces
            .iter()
            .map(|piece| Write { offset: piece.offset, bytes: pending.arena.range(piece.page, piece.pages) })
            .collect();
        let mut written = end;
        if let Some(zeros) = submitter.ahead.as_ref().filter(|_| is_small && end > submitter.written) {
            let room = pending.len.saturating_sub(end) / PAGE_BYTES as u64;
            let pages = zeros.count().min(usize::try_from(room).unwrap_or(usize::MAX));
            if pages > 0 {
                writes.push(Write { offset: end, bytes: zeros.range(0, pages) });
                written += (pages * PAGE_BYTES) as u64;
            }
        }
        let result = write_all(&mut submitter.ring, &self.file, &writes);
        if let Err(Unwritten { is_at_kernel: true, .. }) = &result {
            submitter.is_abandoned = true;
        }
        result.map_err(|unwritten| unwritten.error)?;
        submitter.written = submitter.written.max(written);
        drop(pending);
        self.pending_mut().empty();
        Ok(())
    }
}

impl StorageBackend for DirectFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.pending().len)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let end = offset.checked_add(out.len() as u64);
        if end.is_none_or(|end| end > self.pending().len) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let at = floor(offset);
        let skipped = (offset - at) as usize;
        let mut pages = Pages::new((skipped + out.len()).div_ceil(PAGE_BYTES));
        for _ in 0..READ_TRIES {
            let emptied = self.pending().emptied;
            read_pages(&self.file, at, &mut pages)?;
            let pending = self.pending();
            // What was pending before may have reached the disk behind what was read.
            if pending.emptied == emptied {
                pending.overlay(at, pages.bytes_mut());
                out.copy_from_slice(&pages.bytes()[skipped..skipped + out.len()]);
                return Ok(());
            }
        }
        let pending = self.pending();
        read_pages(&self.file, at, &mut pages)?;
        pending.overlay(at, pages.bytes_mut());
        out.copy_from_slice(&pages.bytes()[skipped..skipped + out.len()]);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.change(|submitter| {
            self.submit(submitter)?;
            let before = self.pending().len;
            if len > before {
                // Reserved at once: that there is no space is said here, and not in the middle of a commit.
                match rustix::fs::fallocate(&self.file, FallocateFlags::empty(), before, len - before) {
                    Err(rustix::io::Errno::OPNOTSUPP) => self.file.set_len(len)?,
                    result => result?,
                }
            } else {
                self.file.set_len(len)?;
                submitter.partial = None;
                submitter.written = submitter.written.min(floor(len));
            }
            self.pending_mut().len = len;
            Ok(())
        })
    }

    fn sync_data(&self) -> io::Result<()> {
        self.change(|submitter| {
            self.submit(submitter)?;
            self.file.sync_data()
        })
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.change(|submitter| {
            let page_bytes = PAGE_BYTES as u64;
            let end = offset.checked_add(data.len() as u64).ok_or(io::ErrorKind::InvalidInput)?;
            if end > self.pending().len {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let head = ((page_bytes - offset % page_bytes) % page_bytes).min(data.len() as u64) as usize;
            let (head, rest) = data.split_at(head);
            let (whole, tail) = rest.split_at(rest.len() - rest.len() % PAGE_BYTES);
            if !head.is_empty() {
                self.take_partial(submitter, offset, head)?;
            }
            let at = offset + head.len() as u64;
            let after = at + whole.len() as u64;
            if submitter.partial.as_ref().is_some_and(|(of, _)| (at..after).contains(of)) {
                submitter.partial = None;
            }
            self.take_pages(submitter, at, whole)?;
            if !tail.is_empty() {
                self.take_partial(submitter, after, tail)?;
            }
            Ok(())
        })
    }
}

impl Drop for DirectFile {
    fn drop(&mut self) {
        let submitter = self.submitter.get_mut().unwrap_or_else(PoisonError::into_inner);
        if submitter.is_abandoned {
            // The kernel may read these yet.
            let pending = self.pending.get_mut().unwrap_or_else(PoisonError::into_inner);
            std::mem::forget(std::mem::replace(&mut pending.arena, Pages::new(0)));
            std::mem::forget(submitter.ahead.take());
        }
    }
}

impl Pending {
    /// Whether the next pages of a write can be taken without emptying the arena before.
    fn has_room_for(&self, offset: u64, bytes: usize) -> bool {
        let end = offset + bytes as u64;
        let overlapping = self.pieces.iter().filter(|piece| piece.offset < end && offset < piece.end());
        let mut overlapping = overlapping.peekable();
        match overlapping.next() {
            Some(piece) => piece.offset <= offset && end <= piece.end() && overlapping.peek().is_none(),
            None => self.used_pages < self.arena.count(),
        }
    }

    /// Takes as many whole pages as there is room for; returns their bytes.
    fn take(&mut self, offset: u64, data: &[u8]) -> usize {
        let end = offset + data.len() as u64;
        let holder = self.pieces.iter().find(|piece| piece.offset <= offset && end <= piece.end()).copied();
        if let Some(piece) = holder {
            let at = piece.page * PAGE_BYTES + (offset - piece.offset) as usize;
            self.arena.bytes_mut()[at..at + data.len()].copy_from_slice(data);
            return data.len();
        }
        let page = self.used_pages;
        let pages = (data.len() / PAGE_BYTES).min(self.arena.count() - page);
        let (at, bytes) = (page * PAGE_BYTES, pages * PAGE_BYTES);
        self.arena.bytes_mut()[at..at + bytes].copy_from_slice(&data[..bytes]);
        self.used_pages += pages;
        match self.pieces.last_mut() {
            Some(last) if last.end() == offset => last.pages += pages,
            _ => self.pieces.push(Piece { offset, page, pages }),
        }
        bytes
    }

    fn empty(&mut self) {
        self.used_pages = 0;
        self.pieces.clear();
        self.emptied += 1;
    }

    /// Puts what is pending over bytes that were read from the file.
    fn overlay(&self, at: u64, out: &mut [u8]) {
        for piece in &self.pieces {
            let from = piece.page * PAGE_BYTES;
            overlay(at, out, piece.offset, &self.arena.bytes()[from..from + piece.pages * PAGE_BYTES]);
        }
    }
}

/// Where the last written byte ends. Reserved space that was never written counts as a hole.
fn data_end(file: &File) -> Result<u64, rustix::io::Errno> {
    let mut end = 0;
    loop {
        end = rustix::fs::seek(file, SeekFrom::Hole(end))?;
        match rustix::fs::seek(file, SeekFrom::Data(end)) {
            Ok(data) => end = data,
            Err(rustix::io::Errno::NXIO) => return Ok(end),
            Err(error) => return Err(error),
        }
    }
}

/// Reads whole pages; zeros beyond the end of the file.
fn read_pages(file: &File, at: u64, pages: &mut Pages) -> io::Result<()> {
    let bytes = pages.bytes_mut();
    let mut filled = 0;
    while filled < bytes.len() {
        match file.read_at(&mut bytes[filled..], at + filled as u64) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
        if !filled.is_multiple_of(PAGE_BYTES) {
            // The end of a file that does not end with a page.
            break;
        }
    }
    bytes[filled..].fill(0);
    Ok(())
}

/// Bytes to be written at a place.
#[derive(Clone, Copy)]
struct Write<'a> {
    offset: u64,
    bytes: &'a [u8],
}

struct Unwritten {
    error: io::Error,
    /// Whether the kernel may still read the bytes.
    is_at_kernel: bool,
}

/// Writes everything, in parallel, and waits for it.
fn write_all(ring: &mut IoUring, file: &File, writes: &[Write<'_>]) -> Result<(), Unwritten> {
    let mut failed = None;
    for chunk in writes.chunks(RING_ENTRIES as usize) {
        let results = write_chunk(ring, file, chunk)?;
        for (write, result) in chunk.iter().zip(results) {
            let written = match result {
                count @ 0.. => count as usize,
                code => {
                    failed = failed.or(Some(io::Error::from_raw_os_error(-code)));
                    continue;
                }
            };
            // A short write is no failure yet: the rest says why.
            let rest = file.write_all_at(&write.bytes[written..], write.offset + written as u64);
            failed = failed.or(rest.err());
        }
    }
    failed.map_or(Ok(()), |error| Err(Unwritten { error, is_at_kernel: false }))
}

/// Submits writes, no more than the ring has entries, and waits for all of them. Returns what the
/// kernel says of each.
#[expect(unsafe_code, reason = "the kernel is given pointers")]
fn write_chunk(ring: &mut IoUring, file: &File, writes: &[Write<'_>]) -> Result<Vec<i32>, Unwritten> {
    let fd = types::Fd(file.as_raw_fd());
    for (number, write) in writes.iter().enumerate() {
        let bytes = u32::try_from(write.bytes.len()).expect("an arena is far below 4 GiB");
        let entry = opcode::Write::new(fd, write.bytes.as_ptr(), bytes)
            .offset(write.offset)
            .build()
            .user_data(number as u64);
        // SAFETY: the bytes belong to an arena that is not written to, moved or freed before this
        // function has seen every completion; if it cannot, it says so and the arena is given up for
        // good. The descriptor is open as long as the file, which outlives this call.
        let pushed = unsafe { ring.submission().push(&entry) };
        pushed.expect("the ring is empty and takes as many writes as it has entries");
    }
    let mut results = vec![0; writes.len()];
    let mut left = writes.len();
    while left > 0 {
        match ring.submit_and_wait(left) {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(Unwritten { error, is_at_kernel: true }),
        }
        for completion in ring.completion() {
            results[completion.user_data() as usize] = completion.result();
            left -= 1;
        }
    }
    Ok(results)
}

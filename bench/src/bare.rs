//! The limit: a file, written and synced by hand.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

use rand::rngs::SmallRng;
use rand::{RngCore, SeedableRng};
use rustix::fs::{FallocateFlags, OFlags, fallocate};

/// What O_DIRECT wants addresses, sizes and positions to be multiples of.
const PAGE_BYTES: usize = 4096;
/// File that is overwritten in turns.
const OVERWRITTEN_BYTES: u64 = 128 << 20;

/// How a bare file is written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BareKind {
    /// Appended to through the page cache.
    Append,
    /// Overwritten in turns, around the page cache; its blocks are written before.
    DirectOverwrite,
}

/// A file that is written and synced, `bytes` at a time.
#[derive(Debug)]
pub struct Bare {
    file: File,
    kind: BareKind,
    /// Longer than `bytes` by up to a page, so that an aligned stretch is in it.
    buffer: Vec<u8>,
    begin: usize,
    bytes: usize,
    position: u64,
    end: u64,
}

impl Bare {
    /// Makes a file. Sizes are rounded up to pages.
    ///
    /// # Errors
    /// As the file system says: not every one can do O_DIRECT.
    pub fn create(path: &Path, kind: BareKind, bytes: usize) -> io::Result<Bare> {
        let bytes = bytes.next_multiple_of(PAGE_BYTES);
        let mut buffer = vec![0; bytes + PAGE_BYTES];
        SmallRng::seed_from_u64(1).fill_bytes(&mut buffer);
        let begin = buffer.as_ptr().align_offset(PAGE_BYTES).min(PAGE_BYTES);
        let mut options = OpenOptions::new();
        options.write(true).create_new(true);
        if kind == BareKind::DirectOverwrite {
            options.custom_flags(OFlags::DIRECT.bits() as i32);
        }
        let file = options.open(path)?;
        let mut bare = Bare { file, kind, buffer, begin, bytes, position: 0, end: u64::MAX };
        if kind == BareKind::DirectOverwrite {
            bare.end = OVERWRITTEN_BYTES.max(8 * bytes as u64) / bytes as u64 * bytes as u64;
            fallocate(&bare.file, FallocateFlags::empty(), 0, bare.end)?;
            // Blocks that were only reserved cost a change of the file's map at their first write.
            while bare.position < bare.end {
                bare.write()?;
            }
            bare.file.sync_all()?;
        }
        Ok(bare)
    }

    /// How it is written.
    #[must_use]
    pub fn kind(&self) -> BareKind {
        self.kind
    }

    /// Writes once and syncs the data: how long both took.
    ///
    /// # Errors
    /// As the file system says.
    pub fn flush(&mut self) -> io::Result<Duration> {
        let began = Instant::now();
        self.write()?;
        self.file.sync_data()?;
        Ok(began.elapsed())
    }

    fn write(&mut self) -> io::Result<()> {
        if self.position >= self.end {
            self.position = 0;
        }
        let data = &self.buffer[self.begin..self.begin + self.bytes];
        self.file.write_all_at(data, self.position)?;
        self.position += self.bytes as u64;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_kinds_write_whole_pages_and_the_overwritten_file_does_not_grow() {
        let folder = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let mut appended = Bare::create(&folder.path().join("append"), BareKind::Append, 5000).unwrap();
        appended.flush().unwrap();
        appended.flush().unwrap();
        assert_eq!(appended.file.metadata().unwrap().len(), 4 * PAGE_BYTES as u64);
        let path = folder.path().join("overwrite");
        let mut overwritten = Bare::create(&path, BareKind::DirectOverwrite, 16 << 20).unwrap();
        for _ in 0..9 {
            overwritten.flush().unwrap();
        }
        assert_eq!(overwritten.file.metadata().unwrap().len(), OVERWRITTEN_BYTES);
    }
}

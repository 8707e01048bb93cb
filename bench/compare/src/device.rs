//! Bytes that reached the device.

use std::fs::{self, File};
use std::path::Path;

use crate::error::Result;

const SECTOR_BYTES: u64 = 512;

/// Bytes written so far, by two counts.
#[derive(Clone, Copy, Debug)]
pub struct Written {
    /// By this process: pages of files that it made dirty, and what it wrote around the page cache.
    /// Without the file system's own journal.
    pub process: u64,
    /// To the device, by everybody; `None` where the folder's file system has no device of its own.
    pub device: Option<u64>,
}

impl Written {
    /// Counts, once everything written is on the device.
    pub fn now(folder: &Path) -> Result<Written> {
        rustix::fs::syncfs(File::open(folder)?).map_err(std::io::Error::from)?;
        let io = fs::read_to_string("/proc/self/io")?;
        let process = io.lines().find_map(|line| line.strip_prefix("write_bytes: ")?.parse().ok());
        let device = rustix::fs::stat(folder).map_err(std::io::Error::from)?.st_dev;
        let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
        let stat = fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/stat")).ok();
        let sectors = stat.and_then(|stat| stat.split_whitespace().nth(6)?.parse::<u64>().ok());
        Ok(Written { process: process.unwrap_or(0), device: sectors.map(|sectors| sectors * SECTOR_BYTES) })
    }

    /// Bytes written since an earlier count.
    pub fn since(self, earlier: Written) -> Written {
        let device = self.device.zip(earlier.device).map(|(now, earlier)| now.saturating_sub(earlier));
        Written { process: self.process.saturating_sub(earlier.process), device }
    }
}

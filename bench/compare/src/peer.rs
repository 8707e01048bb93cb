//! raft-engine, run with the same work: one log batch a flush, synced; purged from a second thread.

use std::ops::RangeInclusive;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use iroh_raft_bench::load::{Flush, Source, TERM};
use raft::eraftpb::Entry;
use raft_engine::{Config, Engine, LogBatch, MessageExt, ReadableSize};

use crate::error::{BenchError, Result};

/// How often expired files are looked for. TiKV does it every 10 s.
const PURGE_EVERY: Duration = Duration::from_secs(1);
/// Key of a group's hard state.
const STATE_KEY: &[u8] = b"state";
/// Bytes read at a time when a log is read back.
const READ_BYTES: usize = 256 << 10;

/// Entries of raft-rs, as TiKV stores them.
#[derive(Clone, Copy, Debug)]
struct RaftEntry;

impl MessageExt for RaftEntry {
    type Entry = Entry;

    fn index(entry: &Entry) -> u64 {
        entry.index
    }
}

/// An open engine.
pub struct Peer {
    engine: Arc<Engine>,
    purge: Arc<Purge>,
    thread: Option<JoinHandle<()>>,
}

/// For the purging thread.
struct Purge {
    is_stopping: AtomicBool,
    groups: AtomicU64,
    /// What every group may be compacted to.
    compact_to: AtomicU64,
}

impl Peer {
    /// Opens an engine, and makes it if there is none. It keeps `retention_bytes` of log files
    /// before it looks for expired ones.
    pub fn open(path: &Path, retention_bytes: u64) -> Result<Peer> {
        let config = Config {
            dir: path.display().to_string(),
            // The records do not compress: trying would only cost it time.
            batch_compression_threshold: ReadableSize(0),
            // At least one log file, as it demands.
            purge_threshold: ReadableSize(retention_bytes.max(256 << 20)),
            ..Config::default()
        };
        let engine = Arc::new(Engine::open(config)?);
        let purge = Arc::new(Purge {
            is_stopping: AtomicBool::new(false),
            groups: AtomicU64::new(0),
            compact_to: AtomicU64::new(0),
        });
        let thread = std::thread::Builder::new().name(String::from("purge")).spawn({
            let (engine, purge) = (engine.clone(), purge.clone());
            move || purge.run(&engine)
        })?;
        Ok(Peer { engine, purge, thread: Some(thread) })
    }

    /// Number of the newest flush there is.
    pub fn last_seq(&self) -> u64 {
        self.engine.last_index(1).unwrap_or(0)
    }

    /// The engine itself, for readers on other threads.
    pub fn reader(&self) -> PeerReader {
        PeerReader(self.engine.clone())
    }

    /// Makes a flush durable. Building the batch belongs to it: ours is encoded there as well.
    pub fn flush(&mut self, flush: Flush<'_>) -> Result<Duration> {
        self.purge.groups.store(flush.batches.len() as u64, Ordering::Release);
        if let Some(index) = flush.compact_to {
            self.purge.compact_to.store(index, Ordering::Release);
        }
        let entries: Vec<Entry> = flush
            .batches
            .iter()
            .map(|data| Entry { index: flush.seq, term: TERM.0, data: data.clone(), ..Entry::default() })
            .collect();
        let began = Instant::now();
        let mut batch = LogBatch::with_capacity(2 * entries.len());
        let commit = flush.commit().to_le_bytes();
        for (group, entry) in (1..).zip(&entries) {
            // Term, vote and commit: what a hard state is.
            let state = [TERM.0.to_le_bytes(), 1_u64.to_le_bytes(), commit].concat();
            batch.add_entries::<RaftEntry>(group, std::slice::from_ref(entry))?;
            batch.put(group, STATE_KEY.to_vec(), state)?;
        }
        self.engine.write(&mut batch, true)?;
        Ok(began.elapsed())
    }

    /// Reads the entries of every group at these indexes back, compares them with what the source
    /// made, and returns their checksum.
    pub fn read_back(&self, source: &Source, indexes: RangeInclusive<u64>) -> Result<u32> {
        let (first, last) = indexes.into_inner();
        let mut sum = 0;
        for group in 1..=source.load().groups {
            let mut index = first;
            while index <= last {
                for entry in self.reader().read(group, index, last, READ_BYTES)? {
                    if entry.index != index || entry.data != source.entry_data(group, index) {
                        return Err(BenchError::PeerContent { group, index });
                    }
                    sum = crc32c::crc32c_append(sum, &entry.data);
                    index += 1;
                }
            }
        }
        Ok(sum)
    }
}

/// Reads from an engine beside its writer.
pub struct PeerReader(Arc<Engine>);

impl PeerReader {
    /// Reads entries of a group, at least one.
    pub fn read(&self, group: u64, index: u64, to: u64, bytes_max: usize) -> Result<Vec<Entry>> {
        let mut entries = Vec::new();
        self.0.fetch_entries_to::<RaftEntry>(group, index, to + 1, Some(bytes_max), &mut entries)?;
        if entries.is_empty() { Err(BenchError::PeerContent { group, index }) } else { Ok(entries) }
    }
}

impl Purge {
    fn run(&self, engine: &Engine) {
        let mut compacted = 0;
        while !self.is_stopping.load(Ordering::Acquire) {
            let compact_to = self.compact_to.load(Ordering::Acquire);
            if compact_to > compacted {
                compacted = compact_to;
                for group in 1..=self.groups.load(Ordering::Acquire) {
                    // Its first index, where ours is its last compacted one.
                    engine.compact_to(group, compact_to + 1);
                }
            }
            if let Err(error) = engine.purge_expired_files() {
                eprintln!("raft-engine cannot purge: {error}");
            }
            std::thread::park_timeout(PURGE_EVERY);
        }
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.purge.is_stopping.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            // A panic in it has been printed.
            let _ = thread.join();
        }
    }
}

//! Which backend serves a disk better: measured once, on the disk itself, with redb's own commits.

use std::fmt;
use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use redb::{Builder, Database, Durability, TableDefinition};

use crate::cursor::Cursor;
use crate::direct::DirectDisk;
use crate::disk::{Disk, FileDisk, FileKind, HoldingBackend};
use crate::error::{FileDamage, Result, StorageError};
use crate::redb_file::RedbFailure;
use crate::small_file::{self, Kind, io_error};

pub(crate) const FILE: &str = "backend";
const KIND: Kind = Kind { magic: *b"IRAFTBCK", version: 1 };
/// A scratch file of a calibration; one that a crash left is overwritten by the next.
pub(crate) const SCRATCH: &str = "calibrating.tmp";
const TABLE: TableDefinition<'static, u64, &'static [u8]> = TableDefinition::new("scratch");
/// Bytes of a small and of a large commit.
const SMALL_BYTES: usize = 150;
const LARGE_BYTES: usize = 512 << 10;
/// Commits that are measured at a time before the other backend has its turn.
const COMMITS_PER_TURN: usize = 10;
const TURNS: usize = 10;
/// Turns end early on a disk that is slow.
const TIME_MAX: Duration = Duration::from_millis(1500);

/// How a shard's files are written.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum BackendKind {
    /// Through the page cache.
    Buffered,
    /// Past it, with an io_uring.
    Direct,
}

/// How a shard's files are to be written.
#[derive(Clone, Copy, PartialEq, Eq, Default, Hash, Debug)]
pub enum BackendChoice {
    /// As a calibration at the first start found best.
    #[default]
    Auto,
    /// In this way.
    Fixed(BackendKind),
}

impl fmt::Display for BackendKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            BackendKind::Buffered => "buffered",
            BackendKind::Direct => "direct",
        })
    }
}

impl fmt::Display for BackendChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BackendChoice::Auto => f.write_str("auto"),
            BackendChoice::Fixed(kind) => kind.fmt(f),
        }
    }
}

impl FromStr for BackendChoice {
    type Err = UnknownBackend;

    fn from_str(name: &str) -> Result<BackendChoice, UnknownBackend> {
        match name {
            "auto" => Ok(BackendChoice::Auto),
            "buffered" => Ok(BackendChoice::Fixed(BackendKind::Buffered)),
            "direct" => Ok(BackendChoice::Fixed(BackendKind::Direct)),
            _ => Err(UnknownBackend { name: name.to_owned() }),
        }
    }
}

/// A name that no backend has.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{name:?} is no backend: choose auto, buffered or direct")]
pub struct UnknownBackend {
    /// The name.
    pub name: String,
}

/// What a calibration measured: medians.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct Calibration {
    /// The backend that is used by it.
    pub chosen: BackendKind,
    /// Each backend's times; those of `Direct` are `None` where the file system has no O_DIRECT.
    pub buffered: CommitTimes,
    /// See `buffered`.
    pub direct: Option<CommitTimes>,
}

/// Median times of a commit.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct CommitTimes {
    /// Of one small value.
    pub small: Duration,
    /// Of 512 KiB.
    pub large: Duration,
}

impl fmt::Display for Calibration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} backend; a small commit and one of 512 KiB take {} buffered",
            self.chosen, self.buffered
        )?;
        match self.direct {
            Some(direct) => write!(f, ", {direct} direct"),
            None => write!(f, ", and the file system has no O_DIRECT"),
        }
    }
}

impl fmt::Display for CommitTimes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} us and {} us", self.small.as_micros(), self.large.as_micros())
    }
}

/// The disk of a backend.
pub(crate) fn disk_of(kind: BackendKind) -> Arc<dyn Disk> {
    match kind {
        BackendKind::Buffered => Arc::new(FileDisk),
        BackendKind::Direct => Arc::new(DirectDisk),
    }
}

/// The backend for a folder, with the calibration that chose it, if one did. Calibrates if the choice
/// is left to it and it was not done yet: about a second.
pub(crate) fn choose(choice: BackendChoice, folder: &Path) -> Result<(BackendKind, Option<Calibration>)> {
    if let BackendChoice::Fixed(kind) = choice {
        return Ok((kind, None));
    }
    let calibration = match load(folder) {
        Ok(Some(calibration)) => calibration,
        // It is a measurement, and can be taken again.
        Ok(None) | Err(StorageError::DamagedFile { .. }) => {
            let calibration = renew(folder)?;
            tracing::info!(folder = %folder.display(), %calibration, "calibrated");
            calibration
        }
        Err(error) => return Err(error),
    };
    Ok((calibration.chosen, Some(calibration)))
}

/// Measures, and stores what was found for the starts to come.
pub(crate) fn renew(folder: &Path) -> Result<Calibration> {
    let calibration = calibrate(folder)?;
    small_file::replace(&FileDisk, &folder.join(FILE), KIND, &encode(calibration))?;
    Ok(calibration)
}

fn load(folder: &Path) -> Result<Option<Calibration>> {
    let path = folder.join(FILE);
    let Some(payload) = small_file::read(&FileDisk, &path, KIND)? else { return Ok(None) };
    let damage = FileDamage::Content;
    parse(&payload).map(Some).ok_or(StorageError::DamagedFile { path, damage })
}

fn encode(calibration: Calibration) -> Vec<u8> {
    let direct = calibration.direct.unwrap_or_default();
    let nanos = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
    let numbers = [
        u64::from(calibration.chosen == BackendKind::Direct),
        nanos(calibration.buffered.small),
        nanos(calibration.buffered.large),
        nanos(direct.small),
        nanos(direct.large),
    ];
    numbers.into_iter().flat_map(u64::to_le_bytes).collect()
}

fn parse(payload: &[u8]) -> Option<Calibration> {
    let mut cursor = Cursor::new(payload);
    let chosen = match cursor.u64()? {
        0 => BackendKind::Buffered,
        1 => BackendKind::Direct,
        _ => return None,
    };
    let mut times = || {
        let (small, large) = (cursor.u64()?, cursor.u64()?);
        Some(CommitTimes { small: Duration::from_nanos(small), large: Duration::from_nanos(large) })
    };
    let (buffered, direct) = (times()?, times()?);
    let direct = (direct != CommitTimes::default()).then_some(direct);
    let is_possible = cursor.left() == 0 && (direct.is_some() || chosen == BackendKind::Buffered);
    is_possible.then_some(Calibration { chosen, buffered, direct })
}

/// Measures both backends in a folder, in turns.
fn calibrate(folder: &Path) -> Result<Calibration> {
    let path = folder.join(SCRATCH);
    let result = measure(&path);
    let removed = std::fs::remove_file(&path);
    let calibration = result?;
    removed.map_err(io_error("remove", &path))?;
    Ok(calibration)
}

fn measure(path: &Path) -> Result<Calibration> {
    let began = Instant::now();
    let disks: [Arc<dyn Disk>; 2] = [disk_of(BackendKind::Buffered), disk_of(BackendKind::Direct)];
    let mut times: [[Vec<Duration>; 2]; 2] = Default::default();
    let mut is_supported = true;
    for turn in 0..TURNS {
        for (disk, times) in disks.iter().zip(&mut times) {
            match run(disk.as_ref(), path, times) {
                Ok(()) => {}
                Err(Failure::Unsupported) => is_supported = false,
                Err(Failure::Storage(error)) => return Err(error),
            }
        }
        if turn > 0 && began.elapsed() > TIME_MAX {
            break;
        }
    }
    let median = |times: &mut Vec<Duration>| {
        times.sort_unstable();
        times[times.len() / 2]
    };
    let [mut buffered, mut direct] = times;
    let of =
        |[small, large]: &mut [Vec<Duration>; 2]| CommitTimes { small: median(small), large: median(large) };
    let buffered = of(&mut buffered);
    let direct = is_supported.then(|| of(&mut direct));
    Ok(Calibration { chosen: better(buffered, direct), buffered, direct })
}

/// Direct if it is clearly better at one size and not clearly worse at the other: a tie goes to the
/// page cache, which also serves reads.
fn better(buffered: CommitTimes, direct: Option<CommitTimes>) -> BackendKind {
    let Some(direct) = direct else { return BackendKind::Buffered };
    let is_clearly_less = |a: Duration, b: Duration| a * 10 < b * 9;
    let is_better =
        is_clearly_less(direct.small, buffered.small) || is_clearly_less(direct.large, buffered.large);
    let is_worse =
        is_clearly_less(buffered.small, direct.small) || is_clearly_less(buffered.large, direct.large);
    if is_better && !is_worse { BackendKind::Direct } else { BackendKind::Buffered }
}

enum Failure {
    Unsupported,
    Storage(StorageError),
}

/// One turn of a backend: small commits, then a large one, on a new file.
fn run(disk: &dyn Disk, path: &Path, times: &mut [Vec<Duration>; 2]) -> Result<(), Failure> {
    let storage = |action: &'static str| move |error| Failure::Storage(io_error(action, path)(error));
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(storage("remove")(error)),
        _ => {}
    }
    let backend = disk.open(path, FileKind::Journal, true).map_err(|error| match error.kind() {
        std::io::ErrorKind::Unsupported => Failure::Unsupported,
        _ => storage("create")(error),
    })?;
    let backend = HoldingBackend::new(backend);
    backend.release().map_err(storage("write"))?;
    let made = (|| {
        let db = Builder::new().set_cache_size(4 << 20).create_with_backend(backend)?;
        // The first commits make the file grow.
        commit(&db, 0, LARGE_BYTES)?;
        commit(&db, 1, LARGE_BYTES)?;
        let [small, large] = times;
        for key in 2..2 + COMMITS_PER_TURN as u64 {
            small.push(commit(&db, key, SMALL_BYTES)?);
        }
        large.push(commit(&db, 1000, LARGE_BYTES)?);
        Ok(())
    })();
    made.map_err(|error: RedbFailure| Failure::Storage(error.opening(path, iroh_raft_core::ShardId(0))))
}

/// A commit as a flush makes it: one value, and an older one removed.
fn commit(db: &Database, key: u64, bytes: usize) -> Result<Duration, RedbFailure> {
    let value = vec![0x5a; bytes];
    let began = Instant::now();
    let mut transaction = db.begin_write()?;
    transaction.set_durability(Durability::Immediate)?;
    {
        let mut table = transaction.open_table(TABLE)?;
        table.insert(key, value.as_slice())?;
        if let Some(old) = key.checked_sub(2) {
            table.remove(old)?;
        }
    }
    transaction.commit()?;
    Ok(began.elapsed())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn times(small: u64, large: u64) -> CommitTimes {
        CommitTimes { small: Duration::from_micros(small), large: Duration::from_micros(large) }
    }

    #[test]
    fn the_better_one_is_chosen() {
        let buffered = times(100, 1000);
        assert_eq!(better(buffered, None), BackendKind::Buffered);
        assert_eq!(better(buffered, Some(times(95, 950))), BackendKind::Buffered);
        assert_eq!(better(buffered, Some(times(105, 500))), BackendKind::Direct);
        assert_eq!(better(buffered, Some(times(80, 1050))), BackendKind::Direct);
        assert_eq!(better(buffered, Some(times(80, 1200))), BackendKind::Buffered);
    }

    #[test]
    fn it_is_measured_once_and_stored() {
        let folder = tempfile::tempdir().unwrap();
        let (kind, measured) = choose(BackendChoice::Auto, folder.path()).unwrap();
        let measured = measured.unwrap();
        assert_eq!(kind, measured.chosen);
        assert!(measured.buffered.small > Duration::ZERO && measured.buffered.large > Duration::ZERO);
        let names: Vec<_> =
            std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names, [FILE]);
        // Exactly the same again: it was not measured anew.
        assert_eq!(choose(BackendChoice::Auto, folder.path()).unwrap(), (kind, Some(measured)));
        std::fs::write(folder.path().join(FILE), b"damaged").unwrap();
        assert!(choose(BackendChoice::Auto, folder.path()).unwrap().1.is_some());
        assert!(load(folder.path()).unwrap().is_some());
        let fixed = BackendChoice::Fixed(BackendKind::Direct);
        assert_eq!(choose(fixed, folder.path()).unwrap(), (BackendKind::Direct, None));
    }

    #[test]
    fn backends_have_names() {
        assert_eq!("auto".parse(), Ok(BackendChoice::Auto));
        for kind in [BackendKind::Buffered, BackendKind::Direct] {
            assert_eq!(kind.to_string().parse(), Ok(BackendChoice::Fixed(kind)));
        }
        let error = "fast".parse::<BackendChoice>().unwrap_err();
        assert_eq!(error.to_string(), "\"fast\" is no backend: choose auto, buffered or direct");
    }
}

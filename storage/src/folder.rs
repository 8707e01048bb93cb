//! The data folder of a node: who it belongs to, how often it was started, its shards.
//!
//! FORMAT.md, "Folder", has the files. A folder is either complete (it has a manifest), or
//! still being made (it has the file `creating`, and nothing in it was ever acknowledged), or not
//! ours. The manifest is written last and `creating` is removed after it, so no crash makes one look
//! like another.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::{SystemTime, UNIX_EPOCH};

use iroh_raft_core::{BootEpoch, NodeId, Placement, ShardId};

use crate::block::JournalIdentity;
use crate::calibrate::{self, BackendChoice, BackendKind, Calibration};
use crate::cursor::Cursor;
use crate::disk::{Disk, FileDisk, FileKind, FolderLock, ShardLock};
use crate::error::{FileDamage, Result, StorageError};
use crate::manifest::{FolderIdentity, MANIFEST, Manifest};
use crate::nodes::KnownNodes;
use crate::peers::PeerEpochs;
use crate::redb_file::open_existing;
use crate::relocate::{relocate, remove_strays};
use crate::shard::{self, JOURNAL, LOG, MARK, OpenShard, ReadShard, ShardOptions};
use crate::small_file::{self, Kind, io_error};

const LOCK: &str = "lock";
const CREATING: &str = "creating";
const BOOT: &str = "boot";
const PEERS: &str = "peers";
const NODES: &str = "nodes";
/// Files that a folder may hold before it is a data folder: the node's key, which belongs to the
/// bridge, what a fresh file system has, and what a calibration leaves.
const TOLERATED: [&str; 7] =
    [LOCK, "creating.tmp", "key", "lost+found", calibrate::FILE, "backend.tmp", calibrate::SCRATCH];

const CREATING_KIND: Kind = Kind { magic: *b"IRAFTNEW", version: 1 };
pub(crate) const BOOT_KIND: Kind = Kind { magic: *b"IRAFTBOO", version: 1 };

/// One start of a node on its folder.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Boot {
    /// How often the folder was started, this time included.
    pub epoch: BootEpoch,
    /// Drawn anew at every start.
    pub id: [u8; 16],
}

/// A node's data folder, locked for this process until it and everything opened from it is dropped.
#[derive(Debug)]
pub struct DataFolder {
    path: PathBuf,
    disk: Arc<dyn Disk>,
    manifest: Manifest,
    boot: Boot,
    is_new: bool,
    peers: Option<PeerEpochs>,
    nodes: Option<KnownNodes>,
    /// By shard: held by everything that was opened of it.
    taken: Vec<Weak<ShardLock>>,
    lock: FolderLock,
}

/// A data folder that is looked at while no node runs on it. Nothing in it changes.
#[derive(Debug)]
pub struct OfflineFolder {
    path: PathBuf,
    disk: Arc<dyn Disk>,
    manifest: Manifest,
    lock: FolderLock,
}

impl OfflineFolder {
    /// Locks a folder that must be complete.
    ///
    /// # Errors
    /// [`StorageError`], one variant for each thing that can be wrong with a folder.
    pub fn open(path: impl AsRef<Path>) -> Result<OfflineFolder> {
        let path = path.as_ref().to_owned();
        let disk = Arc::new(FileDisk);
        if look(disk.as_ref(), &path)? != FolderState::Complete {
            return Err(StorageError::MissingManifest { path });
        }
        let lock = lock_folder(disk.as_ref(), &path)?;
        let manifest = Manifest::read(disk.as_ref(), &path)?;
        Ok(OfflineFolder { path, disk, manifest, lock })
    }

    /// Whose folder it is.
    #[must_use]
    pub fn identity(&self) -> &FolderIdentity {
        &self.manifest.identity
    }

    /// How often a node was started on it.
    ///
    /// # Errors
    /// [`StorageError`] when the file that says so is gone or damaged.
    pub fn boot_epoch(&self) -> Result<BootEpoch> {
        Ok(read_boot(self.disk.as_ref(), &self.path.join(BOOT))?.epoch)
    }

    /// Number of peers whose boots are remembered.
    ///
    /// # Errors
    /// [`StorageError`] when the file that says so is gone or damaged.
    pub fn peers(&self) -> Result<usize> {
        Ok(PeerEpochs::load(self.disk.clone(), self.path.join(PEERS), self.lock.clone())?.count())
    }

    /// Number of nodes that were made known while a node ran on it, those that are gone included.
    ///
    /// # Errors
    /// [`StorageError`] when the file that says so is damaged.
    pub fn known_nodes(&self) -> Result<usize> {
        Ok(KnownNodes::load(self.disk.clone(), self.path.join(NODES), self.lock.clone())?.iter().count())
    }

    /// Opens a shard to read it.
    ///
    /// # Errors
    /// As [`DataFolder::open_shard`].
    pub fn open_shard(&self, shard: ShardId) -> Result<ReadShard> {
        let (folder, identity) = shard_of(&self.manifest, &self.path, shard)?;
        let lock = Arc::new(ShardLock(self.lock.clone()));
        let options = ShardOptions { tail_bytes: 0, ..ShardOptions::default() };
        shard::open_for_reading(self.disk.as_ref(), &folder, identity, &options, &lock)
    }
}

impl DataFolder {
    /// Whether a folder has been a data folder before: then its node's key must be there as well.
    #[must_use]
    pub fn is_used(path: impl AsRef<Path>) -> bool {
        path.as_ref().join(MANIFEST).exists()
    }

    /// The placement that the groups of a folder have; `None` if it is no data folder so far. Changes nothing. For the
    /// simulation, which looks before a move.
    ///
    /// # Errors
    /// [`StorageError`] when the folder is not readable, or not a data folder.
    #[doc(hidden)]
    pub fn stored_placement(path: impl AsRef<Path>, disk: &dyn Disk) -> Result<Option<Placement>> {
        let path = path.as_ref();
        match disk.names(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(io_error("list", path)(error)),
            Ok(_) => {}
        }
        match look(disk, path)? {
            FolderState::Complete => Ok(Some(Manifest::read(disk, path)?.identity.placement)),
            FolderState::Empty | FolderState::HalfMade => Ok(None),
        }
    }

    /// Opens a node's folder, or makes one if there is none or an empty one. When it returns, this
    /// start's boot epoch is on stable storage.
    ///
    /// # Errors
    /// [`StorageError`], one variant for each thing that can be wrong with a folder. Stored data is
    /// as it was.
    pub fn open(path: impl AsRef<Path>, identity: FolderIdentity) -> Result<DataFolder> {
        DataFolder::open_on(path, identity, Arc::new(FileDisk))
    }

    /// Chooses how the shards' files are written from now on, whatever wrote them before; returns the
    /// backend, and what was measured if that decided it. The first automatic choice in a folder
    /// measures for about a second, and is kept.
    ///
    /// # Errors
    /// [`StorageError`] when it cannot be measured or stored. That a file system cannot do what was
    /// chosen is said when a shard is opened.
    pub fn choose_backend(&mut self, choice: BackendChoice) -> Result<(BackendKind, Option<Calibration>)> {
        let (kind, calibration) = calibrate::choose(choice, &self.path)?;
        self.disk = calibrate::disk_of(kind);
        Ok((kind, calibration))
    }

    /// Measures anew which backend serves the disk of a folder better, and keeps that for the node's starts from now on, as
    /// [`choose_backend`](DataFolder::choose_backend) does it at the first one: about a second. The folder may be one that no
    /// node was started on yet; it is made if there is none.
    ///
    /// # Errors
    /// [`StorageError::InUse`] while a node runs on it, [`StorageError::ForeignFiles`] when it is something else, and when it
    /// cannot be measured or stored.
    pub fn calibrate(path: impl AsRef<Path>) -> Result<Calibration> {
        let path = path.as_ref();
        FileDisk.create_folder(path).map_err(io_error("create", path))?;
        look(&FileDisk, path)?;
        let _lock = lock_folder(&FileDisk, path)?;
        calibrate::renew(path)
    }

    /// As [`open`](DataFolder::open), with the journals on another disk.
    ///
    /// # Errors
    /// As [`open`](DataFolder::open).
    pub fn open_on(
        path: impl AsRef<Path>,
        identity: FolderIdentity,
        disk: Arc<dyn Disk>,
    ) -> Result<DataFolder> {
        let path = path.as_ref().to_owned();
        check_identity(&identity)?;
        disk.create_folder(&path).map_err(io_error("create", &path))?;
        // Before the lock file is made: a foreign folder stays as it was.
        let state = look(disk.as_ref(), &path)?;
        let lock = lock_folder(disk.as_ref(), &path)?;
        let state = if state == FolderState::Complete { state } else { look(disk.as_ref(), &path)? };
        if state != FolderState::Complete {
            create(disk.as_ref(), &path, &identity, &lock)?;
        }
        let mut manifest = check_manifest(disk.as_ref(), &path, &identity)?;
        // Whoever put it there may have been killed before its name was durable. What it makes needless goes next.
        disk.sync_folder(&path).map_err(io_error("sync", &path))?;
        finish_creation(disk.as_ref(), &path)?;
        check_files(disk.as_ref(), &path, &manifest)?;
        remove_strays(disk.as_ref(), &path, &manifest)?;
        if manifest.identity.placement != identity.placement {
            manifest = relocate(&disk, &path, &manifest, &identity.placement, &lock)?;
        }
        let peers = PeerEpochs::load(disk.clone(), path.join(PEERS), lock.clone())?;
        let nodes = KnownNodes::load(disk.clone(), path.join(NODES), lock.clone())?;
        let boot = next_boot(disk.as_ref(), &path)?;
        let taken = manifest.shards().map(|_| Weak::new()).collect();
        let is_new = state != FolderState::Complete;
        Ok(DataFolder {
            path,
            disk,
            manifest,
            boot,
            is_new,
            peers: Some(peers),
            nodes: Some(nodes),
            taken,
            lock,
        })
    }

    /// This start.
    #[must_use]
    pub fn boot(&self) -> Boot {
        self.boot
    }

    /// Whether the folder was made by this start.
    #[must_use]
    pub fn is_new(&self) -> bool {
        self.is_new
    }

    /// Random identity of the folder, drawn when it was made.
    #[must_use]
    pub fn storage_id(&self) -> [u8; 16] {
        self.manifest.storage
    }

    /// What is known of the peers' boot epochs; for the bridge, on its thread.
    ///
    /// # Panics
    /// When taken twice: two would overwrite each other's knowledge.
    pub fn take_peer_epochs(&mut self) -> PeerEpochs {
        self.peers.take().expect("the peer epochs are taken once")
    }

    /// The nodes that were made known at run time.
    ///
    /// # Panics
    /// When taken twice: two would overwrite each other's knowledge.
    pub fn take_known_nodes(&mut self) -> KnownNodes {
        self.nodes.take().expect("the known nodes are taken once")
    }

    /// Opens a shard and recovers its groups. Blocks for as long as reading its journal takes.
    ///
    /// # Errors
    /// [`StorageError`]: damage and rollback by name, before anything is written.
    pub fn open_shard(&mut self, shard: ShardId, options: ShardOptions) -> Result<OpenShard> {
        let (identity, folder, lock) = self.take(shard)?;
        shard::open(&self.disk, &folder, identity, &options, &lock)
    }

    /// Opens a shard to read it only: its files stay as they are, whatever state they are in. That
    /// works where there is no space left.
    ///
    /// # Errors
    /// As [`open_shard`](DataFolder::open_shard).
    pub fn open_shard_for_reading(&mut self, shard: ShardId) -> Result<ReadShard> {
        let (identity, folder, lock) = self.take(shard)?;
        let options = ShardOptions { tail_bytes: 0, ..ShardOptions::default() };
        shard::open_for_reading(self.disk.as_ref(), &folder, identity, &options, &lock)
    }

    fn take(&mut self, shard: ShardId) -> Result<(JournalIdentity, PathBuf, Arc<ShardLock>)> {
        let (folder, identity) = shard_of(&self.manifest, &self.path, shard)?;
        let taken = &mut self.taken[usize::from(shard.0)];
        if taken.strong_count() > 0 {
            return Err(StorageError::ShardTaken { shard });
        }
        let lock = Arc::new(ShardLock(self.lock.clone()));
        *taken = Arc::downgrade(&lock);
        Ok((identity, folder, lock))
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum FolderState {
    /// Nothing of anybody's is in it.
    Empty,
    /// A crash ended its creation; nothing in it was ever acknowledged.
    HalfMade,
    /// It has a manifest.
    Complete,
}

fn check_identity(identity: &FolderIdentity) -> Result<()> {
    if identity.node == NodeId(0) {
        return Err(StorageError::Identity { what: "node 0 is no node" });
    }
    Ok(())
}

fn shard_of(manifest: &Manifest, path: &Path, shard: ShardId) -> Result<(PathBuf, JournalIdentity)> {
    let shards = manifest.identity.placement.shard_count();
    manifest.shard(path, shard).ok_or(StorageError::NoSuchShard { shard, shards })
}

/// Tells what a folder is, from the names in it.
fn look(disk: &dyn Disk, path: &Path) -> Result<FolderState> {
    let mut is_half_made = false;
    let mut foreign = None;
    let mut has_parts = false;
    for name in disk.names(path).map_err(io_error("list", path))? {
        match name.as_str() {
            MANIFEST => return Ok(FolderState::Complete),
            CREATING => is_half_made = true,
            BOOT | PEERS => has_parts = true,
            name if name.starts_with("shard-") => has_parts = true,
            name if TOLERATED.contains(&name) => {}
            _ => foreign = Some(name),
        }
    }
    if is_half_made {
        return Ok(FolderState::HalfMade);
    }
    match foreign {
        _ if has_parts => Err(StorageError::MissingManifest { path: path.to_owned() }),
        Some(name) => Err(StorageError::ForeignFiles { path: path.to_owned(), name }),
        None => Ok(FolderState::Empty),
    }
}

fn lock_folder(disk: &dyn Disk, path: &Path) -> Result<FolderLock> {
    let name = path.join(LOCK);
    disk.lock(&name).map_err(|error| match error.kind() {
        io::ErrorKind::WouldBlock => StorageError::InUse { path: path.to_owned() },
        _ => io_error("lock", &name)(error),
    })
}

/// Makes a folder, or makes it again after a crash. The manifest comes last.
fn create(disk: &dyn Disk, path: &Path, identity: &FolderIdentity, lock: &FolderLock) -> Result<()> {
    small_file::replace(disk, &path.join(CREATING), CREATING_KIND, &[])?;
    clear_half_made(disk, path)?;
    let created = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let created = u64::try_from(created.as_millis()).unwrap_or(u64::MAX);
    let manifest = Manifest::new(identity.clone(), random_id(disk)?, created);
    for shard in manifest.shards() {
        let (folder, journal) = shard_of(&manifest, path, shard)?;
        disk.create_folder(&folder).map_err(io_error("create", &folder))?;
        shard::create(disk, &folder, journal, &Arc::new(ShardLock(lock.clone())))?;
        disk.sync_folder(&folder).map_err(io_error("sync", &folder))?;
    }
    PeerEpochs::create(disk, &path.join(PEERS))?;
    small_file::replace(
        disk,
        &path.join(BOOT),
        BOOT_KIND,
        &encode_boot(Boot { epoch: BootEpoch(0), id: [0; 16] }),
    )?;
    manifest.write(disk, path)
}

/// Removes what an interrupted creation left. Only names that creation makes.
fn clear_half_made(disk: &dyn Disk, path: &Path) -> Result<()> {
    let mut left = vec![path.join(PEERS), path.join(BOOT)];
    for name in disk.names(path).map_err(io_error("list", path))? {
        if name.starts_with("shard-") {
            left.extend([JOURNAL, LOG, MARK].map(|file| path.join(&name).join(file)));
        }
    }
    left.iter().try_for_each(|file| remove_if_there(disk, file))
}

/// The manifest is in place: the folder is complete.
fn finish_creation(disk: &dyn Disk, path: &Path) -> Result<()> {
    remove_if_there(disk, &path.join(CREATING))
}

fn remove_if_there(disk: &dyn Disk, file: &Path) -> Result<()> {
    match disk.remove(file) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(io_error("remove", file)(error)),
        _ => Ok(()),
    }
}

/// Compares the manifest with who we are; returns it.
fn check_manifest(disk: &dyn Disk, path: &Path, expected: &FolderIdentity) -> Result<Manifest> {
    let manifest = Manifest::read(disk, path)?;
    let (found, path) = (&manifest.identity, path.to_owned());
    if found.cluster != expected.cluster {
        return Err(StorageError::WrongCluster { path, found: found.cluster, expected: expected.cluster });
    }
    if found.node != expected.node {
        return Err(StorageError::WrongNode { path, found: found.node, expected: expected.node });
    }
    Ok(manifest)
}

/// Looks whether every shard's files are there, before anything is written.
fn check_files(disk: &dyn Disk, path: &Path, manifest: &Manifest) -> Result<()> {
    for shard in manifest.shards() {
        let (folder, _) = shard_of(manifest, path, shard)?;
        for (name, kind) in [(JOURNAL, FileKind::Journal), (LOG, FileKind::Log)] {
            let file = folder.join(name);
            open_existing(disk, &file, kind)?.close().map_err(io_error("close", &file))?;
        }
    }
    Ok(())
}

/// Counts this start, durably.
fn next_boot(disk: &dyn Disk, path: &Path) -> Result<Boot> {
    let file = path.join(BOOT);
    let epoch = read_boot(disk, &file)?.epoch.0.checked_add(1);
    let epoch =
        epoch.ok_or_else(|| StorageError::DamagedFile { path: file.clone(), damage: FileDamage::Content })?;
    let boot = Boot { epoch: BootEpoch(epoch), id: random_id(disk)? };
    small_file::replace(disk, &file, BOOT_KIND, &encode_boot(boot))?;
    Ok(boot)
}

fn read_boot(disk: &dyn Disk, file: &Path) -> Result<Boot> {
    let payload = small_file::read(disk, file, BOOT_KIND)?
        .ok_or_else(|| StorageError::MissingBoot { path: file.to_owned() })?;
    let damage = FileDamage::Content;
    parse_boot(&payload).ok_or_else(|| StorageError::DamagedFile { path: file.to_owned(), damage })
}

pub(crate) fn encode_boot(boot: Boot) -> Vec<u8> {
    [&boot.epoch.0.to_le_bytes()[..], &boot.id].concat()
}

pub(crate) fn parse_boot(payload: &[u8]) -> Option<Boot> {
    let mut cursor = Cursor::new(payload);
    let boot = Boot { epoch: BootEpoch(cursor.u64()?), id: cursor.array()? };
    (cursor.left() == 0).then_some(boot)
}

fn random_id(disk: &dyn Disk) -> Result<[u8; 16]> {
    disk.random_id().map_err(|_| StorageError::Random)
}

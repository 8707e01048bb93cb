//! The key of an endpoint: who a node or a client is.
//!
//! The file holds one line, `iroh-raft-key 1 <64 hexadecimal digits>`. It appears under its name
//! only once it is complete and on stable storage, with mode 0600.
//!
//! Invariant: a key that others could have read is never used.

use std::fmt;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use iroh::SecretKey;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

pub use iroh::EndpointId;

const WORD: &str = "iroh-raft-key";
const VERSION: u32 = 1;
/// Longer than any version of the line will be; what is longer is not a key file.
const FILE_BYTES_MAX: u64 = 4096;

/// Why a key file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The file system refused.
    #[error("cannot {action} the key file {}: {source}", path.display())]
    Io {
        /// The key file.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// Group or others may read or write it.
    #[error(
        "the key file {} has mode {mode:03o}, so others may use the key: run chmod 600 on it, \
         and make a new key if somebody may have read it", path.display()
    )]
    Exposed {
        /// The key file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// It is not a complete key line.
    #[error("the key file {} is damaged: restore it from a copy, or move it away to get a new identity", path.display())]
    Damaged {
        /// The key file.
        path: PathBuf,
    },
    /// It was written by a newer build.
    #[error("the key file {} has version {version}, this build reads 1: use a newer build", path.display())]
    Version {
        /// The key file.
        path: PathBuf,
        /// The version found.
        version: u32,
    },
}

/// The secret key of an endpoint. Its public half, [`EndpointId`], is the identity.
#[derive(Clone)]
pub struct Identity {
    secret: SecretKey,
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Identity({})", self.endpoint_id())
    }
}

impl Identity {
    /// A fresh key that is stored nowhere.
    #[must_use]
    pub fn generate() -> Identity {
        Identity { secret: SecretKey::generate() }
    }

    /// The key in the file at `path`; a fresh one, stored there with mode 0600, if there is no file.
    ///
    /// # Errors
    /// [`IdentityError`]. An existing file is never changed.
    pub fn load_or_create(path: impl AsRef<Path>) -> Result<Identity, IdentityError> {
        let path = path.as_ref();
        match Identity::load(path) {
            Err(IdentityError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                let fresh = Identity::generate();
                match fresh.store(path) {
                    // Another process was first: its key is the one.
                    Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Identity::load(path),
                    Err(source) => Err(IdentityError::Io { path: path.to_owned(), action: "create", source }),
                    Ok(()) => Ok(fresh),
                }
            }
            other => other,
        }
    }

    /// The key in the file at `path`.
    ///
    /// # Errors
    /// [`IdentityError`].
    pub fn load(path: impl AsRef<Path>) -> Result<Identity, IdentityError> {
        let path = path.as_ref();
        let io = |action| move |source| IdentityError::Io { path: path.to_owned(), action, source };
        let file = File::open(path).map_err(io("open"))?;
        let metadata = file.metadata().map_err(io("examine"))?;
        let mode = metadata.permissions().mode() & 0o777;
        if mode & 0o077 != 0 {
            return Err(IdentityError::Exposed { path: path.to_owned(), mode });
        }
        let mut bytes = Vec::new();
        file.take(FILE_BYTES_MAX).read_to_end(&mut bytes).map_err(io("read"))?;
        let damaged = || IdentityError::Damaged { path: path.to_owned() };
        let text = str::from_utf8(&bytes).map_err(|_| damaged())?;
        let line = text.strip_suffix('\n').ok_or_else(damaged)?;
        let mut words = line.split(' ');
        let (Some(WORD), Some(version), Some(digits), None) =
            (words.next(), words.next(), words.next(), words.next())
        else {
            return Err(damaged());
        };
        let version: u32 = version.parse().map_err(|_| damaged())?;
        if version != VERSION {
            return Err(IdentityError::Version { path: path.to_owned(), version });
        }
        let secret = from_hex(digits).ok_or_else(damaged)?;
        Ok(Identity { secret: SecretKey::from_bytes(&secret) })
    }

    /// Who this is: the public half of the key.
    #[must_use]
    pub fn endpoint_id(&self) -> EndpointId {
        self.secret.public()
    }

    pub(crate) fn secret(&self) -> &SecretKey {
        &self.secret
    }

    /// Writes a temporary file and links it to its name: the name never shows half a key, and an
    /// existing key is never replaced.
    fn store(&self, path: &Path) -> io::Result<()> {
        let folder = match path.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            _ => Path::new("."),
        };
        let mut name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?.to_owned();
        name.push(format!(".{:016x}.tmp", SmallRng::from_os_rng().random::<u64>()));
        let temporary = folder.join(name);
        let result = self.write_new(&temporary).and_then(|()| fs::hard_link(&temporary, path));
        let cleared = fs::remove_file(&temporary);
        result?;
        cleared?;
        File::open(folder)?.sync_all()
    }

    fn write_new(&self, path: &Path) -> io::Result<()> {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
        // The umask may have taken bits away; nothing may have been added.
        file.set_permissions(Permissions::from_mode(0o600))?;
        let digits: String = self.secret.to_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
        file.write_all(format!("{WORD} {VERSION} {digits}\n").as_bytes())?;
        file.sync_all()
    }
}

fn from_hex(digits: &str) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    let (pairs, rest) = digits.as_bytes().as_chunks::<2>();
    if pairs.len() != bytes.len() || !rest.is_empty() {
        return None;
    }
    for (byte, [high, low]) in bytes.iter_mut().zip(pairs) {
        *byte = nibble(*high)? << 4 | nibble(*low)?;
    }
    Some(bytes)
}

fn nibble(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder() -> tempfile::TempDir {
        tempfile::tempdir().unwrap()
    }

    #[test]
    fn a_key_is_made_once_private_and_found_again() {
        let folder = folder();
        let path = folder.path().join("key");
        let made = Identity::load_or_create(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let found = Identity::load_or_create(&path).unwrap();
        assert_eq!(made.endpoint_id(), found.endpoint_id());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "no temporary file is left");
        let text = made.endpoint_id().to_string();
        assert_eq!(text.parse::<EndpointId>().unwrap(), made.endpoint_id());
    }

    #[test]
    fn a_key_that_others_can_read_is_refused() {
        let folder = folder();
        let path = folder.path().join("key");
        Identity::load_or_create(&path).unwrap();
        for mode in [0o640, 0o604, 0o620, 0o602, 0o644] {
            fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
            let error = Identity::load_or_create(&path).unwrap_err();
            assert!(matches!(error, IdentityError::Exposed { mode: found, .. } if found == mode), "{error}");
            assert!(error.to_string().contains("chmod 600"), "{error}");
        }
        fs::set_permissions(&path, Permissions::from_mode(0o400)).unwrap();
        Identity::load_or_create(&path).unwrap();
    }

    #[test]
    fn a_damaged_or_newer_key_is_refused_and_left_alone() {
        let folder = folder();
        let path = folder.path().join("key");
        Identity::load_or_create(&path).unwrap();
        let good = fs::read_to_string(&path).unwrap();
        for cut in 0..good.len() {
            fs::write(&path, &good[..cut]).unwrap();
            let error = Identity::load_or_create(&path).unwrap_err();
            assert!(matches!(error, IdentityError::Damaged { .. }), "cut at {cut}: {error}");
            assert_eq!(fs::read_to_string(&path).unwrap(), good[..cut]);
        }
        fs::write(&path, good.replace(" 1 ", " 2 ")).unwrap();
        let error = Identity::load_or_create(&path).unwrap_err();
        assert!(matches!(error, IdentityError::Version { version: 2, .. }), "{error}");
    }

    #[test]
    fn the_secret_is_not_shown() {
        let identity = Identity::generate();
        let digits: String = identity.secret.to_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
        assert!(!format!("{identity:?}").contains(&digits));
    }
}

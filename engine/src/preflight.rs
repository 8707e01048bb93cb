//! What the machine must allow, checked before anything durable is touched.

use std::net::{SocketAddr, UdpSocket};

use glommio::{LocalExecutorBuilder, Placement};
use iroh_raft_netbridge::identity::Identity;
use iroh_raft_storage::DataFolder;
use rustix::process::{Resource, getrlimit};

use crate::config::EngineConfig;
use crate::error::EngineError;

/// Locked memory of one executor: glommio refuses to start with less.
const MEMLOCK_BYTES_NEEDED: u64 = 512 << 10;
/// Locked memory a shard's executor takes for its own I/O buffers: it does no file I/O itself.
pub(crate) const EXECUTOR_IO_BYTES: usize = 64 << 10;

/// Checks locked memory and io_uring by what the engine will really do.
///
/// # Errors
/// [`EngineError::Memlock`], [`EngineError::IoUring`], or [`EngineError::Thread`].
pub fn check_machine() -> Result<(), EngineError> {
    if let Some(bytes) = getrlimit(Resource::Memlock).current
        && bytes < MEMLOCK_BYTES_NEEDED
    {
        return Err(EngineError::Memlock { bytes, bytes_needed: MEMLOCK_BYTES_NEEDED });
    }
    // In a thread of its own: an executor leaves thread-locals behind, and glommio panics where the
    // kernel refuses its probe.
    let probe = std::thread::Builder::new().name("io-uring-probe".into()).spawn(|| {
        let executor =
            LocalExecutorBuilder::new(Placement::Unbound).io_memory(EXECUTOR_IO_BYTES).ring_depth(8);
        executor.make().map(drop).map_err(|error| error.to_string())
    });
    let probe = probe.map_err(|source| EngineError::Thread { name: "io-uring-probe".into(), source })?;
    match probe.join() {
        Ok(Ok(())) => Ok(()),
        Ok(Err(problem)) => Err(EngineError::IoUring { problem }),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().cloned();
            let problem = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
            Err(EngineError::IoUring { problem: problem.unwrap_or_else(|| "the kernel refused it".into()) })
        }
    }
}

/// Checks that the node's key is there and good, or that this is its first start.
pub(crate) fn check_key(config: &EngineConfig) -> Result<(), EngineError> {
    let file = config.key_file();
    if file.exists() {
        Identity::load(&file)?;
    } else if DataFolder::is_used(&config.data_dir) {
        return Err(EngineError::Config {
            setting: "key_file",
            problem: format!(
                "{} is missing and the data folder is not new: put the node's key back, its peers know no other",
                file.display()
            ),
        });
    }
    Ok(())
}

/// Checks that the address can be bound. Somebody may still take it before the endpoint does; that
/// is then the endpoint's error.
pub(crate) fn check_address(bind: SocketAddr) -> Result<(), EngineError> {
    match UdpSocket::bind(bind) {
        Ok(_) => Ok(()),
        Err(error) => Err(EngineError::Config {
            setting: "bind",
            problem: format!(
                "{bind} cannot be bound ({error}): stop what uses it, or choose another address"
            ),
        }),
    }
}

//! Which CPUs are ours, read once before anything is pinned.

/// A CPU that was asked for and is not ours.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum CpuError {
    /// The process may not run there, or the machine has no such CPU.
    #[error("CPU {cpu} is not available to this process; choose among {allowed:?}")]
    NotOurs {
        /// The CPU asked for.
        cpu: usize,
        /// The CPUs there are.
        allowed: Vec<usize>,
    },
    /// The list of CPUs could not be read.
    #[error("the CPUs of this process could not be read; leave the CPU list out to run unpinned")]
    Unreadable,
    /// More shards than CPUs were named.
    #[error("{shards} shards need {shards} CPUs, {cpus} were named: name one CPU for each shard")]
    TooFew {
        /// Shards configured.
        shards: u16,
        /// CPUs named.
        cpus: usize,
    },
}

/// The CPUs that the calling thread may run on, in order.
///
/// To be read before any thread is pinned: a pinned thread, and every thread it starts, sees only
/// its own CPU.
///
/// # Errors
/// [`CpuError::Unreadable`] where the system does not tell.
pub fn allowed() -> Result<Vec<usize>, CpuError> {
    let mut cpus: Vec<usize> =
        core_affinity::get_core_ids().ok_or(CpuError::Unreadable)?.into_iter().map(|core| core.id).collect();
    cpus.sort_unstable();
    if cpus.is_empty() { Err(CpuError::Unreadable) } else { Ok(cpus) }
}

/// Checks CPUs that a configuration names.
///
/// # Errors
/// [`CpuError::NotOurs`] for the first that is not allowed.
pub fn check(named: &[usize]) -> Result<(), CpuError> {
    if named.is_empty() {
        return Ok(());
    }
    let allowed = allowed()?;
    match named.iter().find(|cpu| !allowed.contains(cpu)) {
        Some(&cpu) => Err(CpuError::NotOurs { cpu, allowed }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cpu_that_does_not_exist_is_refused_by_name() {
        let allowed = allowed().unwrap();
        assert_eq!(check(&allowed), Ok(()));
        let error = check(&[4096]).unwrap_err();
        assert_eq!(error, CpuError::NotOurs { cpu: 4096, allowed });
    }
}

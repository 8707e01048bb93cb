//! Registers the process for expedited memory barriers.
//!
//! glommio issues one each time an executor goes to sleep; unregistered, the first of them can
//! stall for tens of milliseconds while the kernel registers the process under load.
#![allow(unsafe_code)]

/// Registers; does nothing where the kernel has no membarrier (glommio then falls back as well).
pub(crate) fn register() {
    // SAFETY: the call takes two integers and touches no memory of ours.
    let _unsupported_is_fine = unsafe {
        libc::syscall(libc::SYS_membarrier, libc::MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED, 0_i32)
    };
}

//! The largest piece of memory that decoding asks for: a length that is believed before it is checked shows
//! here long before memory is short.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

/// The allocator of a test binary that wants to know.
pub(crate) struct Watched;

thread_local! {
    static LARGEST: Cell<usize> = const { Cell::new(0) };
}

fn note(bytes: usize) {
    LARGEST.set(LARGEST.get().max(bytes));
}

// SAFETY: hands every call through to the system's allocator as it is.
unsafe impl GlobalAlloc for Watched {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        note(layout.size());
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        note(layout.size());
        // SAFETY: the caller keeps the contract of `alloc_zeroed`.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps the contract of `dealloc`.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, new_bytes: usize) -> *mut u8 {
        note(new_bytes);
        // SAFETY: the caller keeps the contract of `realloc`.
        unsafe { System.realloc(pointer, layout, new_bytes) }
    }
}

/// Bytes of the largest allocation that this thread asked for while `work` ran, and what it gave.
pub(crate) fn largest<R>(work: impl FnOnce() -> R) -> (usize, R) {
    LARGEST.set(0);
    let result = work();
    (LARGEST.get(), result)
}

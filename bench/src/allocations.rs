//! Counts allocations for `pick`. Only in a build made for it, since every other benchmark
//! would pay for being counted.

#![expect(unsafe_code, reason = "an allocator is unsafe to implement; this one passes all on")]

use std::{
    alloc::{GlobalAlloc, Layout, System},
    sync::atomic::{AtomicU64, Ordering},
};

static COUNT: AtomicU64 = AtomicU64::new(0);

#[global_allocator]
static COUNTING: Counting = Counting;

struct Counting;

/// Allocations of this process until now, those that grew counted again.
pub(crate) fn so_far() -> u64 {
    COUNT.load(Ordering::Relaxed)
}

// SAFETY: whatever is asked goes to the system's allocator as it came, and its answer back.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        COUNT.fetch_add(1, Ordering::Relaxed);
        // SAFETY: as the caller has promised us.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: as the caller has promised us.
        unsafe { System.dealloc(memory, layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        COUNT.fetch_add(1, Ordering::Relaxed);
        // SAFETY: as the caller has promised us.
        unsafe { System.realloc(memory, layout, size) }
    }
}

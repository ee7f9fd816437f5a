//! A global allocator that counts, so that the ledger can be held against the heap, and that maps
//! large blocks itself.

mod large;
mod meter;

pub use meter::{Measured, Metered, measured, metered, unmetered};

pub use large::large_bytes;

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};

static LIVE_BYTES: AtomicU64 = AtomicU64::new(0);
static PEAK_BYTES: AtomicU64 = AtomicU64::new(0);

/// Live bytes beyond which the process ends, and its status then.
static LIMIT_BYTES: AtomicU64 = AtomicU64::new(u64::MAX);
static LIMIT_STATUS: AtomicI32 = AtomicI32::new(1);

/// The system allocator, counting live bytes. A binary installs it with `#[global_allocator]`.
pub struct CountingAllocator;

/// Bytes that what is allocated and not yet freed takes of the heap; 0 where the binary did not
/// install [`CountingAllocator`].
pub fn live_bytes() -> u64 {
    LIVE_BYTES.load(Ordering::Relaxed)
}

/// Largest [`live_bytes`] since [`reset_peak`].
pub fn peak_bytes() -> u64 {
    PEAK_BYTES.load(Ordering::Relaxed)
}

/// Begins a new measurement of the peak.
pub fn reset_peak() {
    PEAK_BYTES.store(live_bytes(), Ordering::Relaxed);
}

/// Ends the process with `status`, at once and without a word, when it asks for memory that makes
/// its live bytes more than `bytes`.
pub fn exit_beyond(bytes: u64, status: i32) {
    LIMIT_STATUS.store(status, Ordering::Relaxed);
    LIMIT_BYTES.store(bytes, Ordering::Relaxed);
}

/// Lets large blocks that are freed be kept for the next of their size, as long as they and all that
/// is in use come to no more than what is in use now and `more_bytes`.
pub fn keep_within(more_bytes: u64) {
    large::keep_within(more_bytes);
}

/// Bytes of large blocks that are kept.
pub fn kept_bytes() -> u64 {
    large::kept_bytes()
}

/// Gives what the allocator keeps for itself back to the system.
pub fn trim() {
    large::keep_within(0);
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim has no preconditions and is thread-safe (malloc_trim(3)).
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Keeps the allocator's own overhead small: few arenas, so that memory freed by one thread
/// serves another. Call it before the first thread starts.
pub fn limit_arenas() {
    #[cfg(target_env = "gnu")]
    // SAFETY: mallopt with a valid parameter has no preconditions (mallopt(3)).
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 2);
    }
}

/// Ends the process where `bytes` more are too many.
fn check_limit(bytes: usize) {
    if live_bytes().saturating_add(bytes as u64) > LIMIT_BYTES.load(Ordering::Relaxed) {
        // SAFETY: _exit(2) takes any status, and runs nothing of this process any more.
        unsafe { libc::_exit(LIMIT_STATUS.load(Ordering::Relaxed)) };
    }
}

/// What an allocation takes: the C library keeps a word beside each, in steps of two words, four
/// at least. A graph, a vocabulary is made of some hundred thousand small ones, which take half as
/// much again as was asked for.
fn taken_bytes(layout: Layout) -> usize {
    const WORD: usize = size_of::<usize>();
    match large::is_large(layout) {
        true => large::class(layout.size()),
        false => (layout.size() + WORD).next_multiple_of(2 * WORD).max(4 * WORD),
    }
}

fn grew(layout: Layout) {
    let bytes = taken_bytes(layout);
    meter::grew(bytes);
    let live = LIVE_BYTES.fetch_add(bytes as u64, Ordering::Relaxed) + bytes as u64;
    if live > PEAK_BYTES.load(Ordering::Relaxed) {
        PEAK_BYTES.fetch_max(live, Ordering::Relaxed);
    }
    large::make_room(live);
}

fn shrank(layout: Layout) {
    let bytes = taken_bytes(layout);
    meter::shrank(bytes);
    LIVE_BYTES.fetch_sub(bytes as u64, Ordering::Relaxed);
}

// SAFETY: every call is passed on to `System` unchanged, whose contract is the caller's, or where
// it is large to `large`, which a block's layout tells at its end as at its beginning; the counters
// do not touch the memory.
unsafe impl GlobalAlloc for CountingAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        check_limit(layout.size());
        let block = match large::is_large(layout) {
            true => large::alloc(layout.size()).0,
            // SAFETY: the caller upholds GlobalAlloc's contract.
            false => unsafe { System.alloc(layout) },
        };
        if !block.is_null() {
            grew(layout);
        }
        block
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        check_limit(layout.size());
        let block = match large::is_large(layout) {
            true => match large::alloc(layout.size()) {
                (block, is_zero) if is_zero || block.is_null() => block,
                (block, _) => {
                    // SAFETY: the block is new and of this size.
                    unsafe { block.write_bytes(0, layout.size()) };
                    block
                }
            },
            // SAFETY: as above.
            false => unsafe { System.alloc_zeroed(layout) },
        };
        if !block.is_null() {
            grew(layout);
        }
        block
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        match large::is_large(layout) {
            // SAFETY: as above.
            true => unsafe { large::free(block, layout.size()) },
            // SAFETY: as above.
            false => unsafe { System.dealloc(block, layout) },
        }
        shrank(layout);
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        check_limit(bytes.saturating_sub(layout.size()));
        // SAFETY: the caller guarantees that the new size makes a layout.
        let new = unsafe { Layout::from_size_align_unchecked(bytes, layout.align()) };
        let moved = match (large::is_large(layout), large::is_large(new)) {
            // SAFETY: as above.
            (true, true) => unsafe { large::grow(block, layout.size(), bytes) },
            // SAFETY: as above.
            (false, false) => unsafe { System.realloc(block, layout, bytes) },
            _ => {
                // SAFETY: as above; the blocks are two, and each as long as what is copied.
                unsafe {
                    let moved = self.alloc(new);
                    if !moved.is_null() {
                        moved.copy_from_nonoverlapping(block, bytes.min(layout.size()));
                        self.dealloc(block, layout);
                    }
                    return moved;
                }
            }
        };
        if !moved.is_null() {
            grew(new);
            shrank(layout);
        }
        moved
    }
}

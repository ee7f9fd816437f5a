//! Large allocations: mappings of their own, a few of which are kept for the next of their size.
//!
//! A pass frees and takes tensors of the same few sizes over and over. From the C library's heap
//! they leave holes that other sizes do not fit: a pass of BERT-Large that never held more than 13
//! MiB at once left 27 MiB resident; one of 32 short texts, whose tensors have less than 128 KiB each,
//! left 7 beside 5. Here a block is either in use, kept for its size, or gone, and
//! what is in use and kept together never exceeds the room that the engine has had granted. Small
//! allocations count as what is in use: tensors of short requests are small.

use super::super::page::page_size;
use super::live_bytes;
use std::alloc::Layout;
use std::ptr::{NonNull, null_mut};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Pages from which an allocation is large: of fewer, whole pages would waste more than an eighth.
const LARGE_PAGES: usize = 8;

/// Blocks that can be kept.
const SLOTS: usize = 256;

/// Bytes of blocks that are kept.
static KEPT_BYTES: AtomicU64 = AtomicU64::new(0);

/// Bytes that these and all that is in use, large or small, may come to.
static ROOM_BYTES: AtomicU64 = AtomicU64::new(0);

static SHELF: Mutex<Shelf> = Mutex::new(Shelf { kept: [None; SLOTS] });

/// The kept blocks.
struct Shelf {
    kept: [Option<Kept>; SLOTS],
}

#[derive(Clone, Copy)]
struct Kept {
    block: NonNull<u8>,
    bytes: usize,
}

// SAFETY: a kept block is nobody's but the shelf's.
unsafe impl Send for Shelf {}

impl Shelf {
    /// Lets blocks go until they fit the room beside so many bytes in use, or none is left.
    fn make_room(&mut self, used_bytes: u64) {
        for slot in &mut self.kept {
            if fits(used_bytes) {
                return;
            }
            if let Some(kept) = slot.take() {
                KEPT_BYTES.fetch_sub(kept.bytes as u64, Ordering::Relaxed);
                unmap(kept);
            }
        }
    }
}

/// Whether what is kept fits the room beside so many bytes in use.
fn fits(used_bytes: u64) -> bool {
    used_bytes + kept_bytes() <= ROOM_BYTES.load(Ordering::Relaxed)
}

/// Lets go of blocks that have no room any more beside so many bytes in use.
pub fn make_room(used_bytes: u64) {
    if kept_bytes() > 0 && !fits(used_bytes) {
        shelf().make_room(used_bytes);
    }
}

/// Bytes from which an allocation is large.
pub fn large_bytes() -> usize {
    LARGE_PAGES * page_size()
}

/// Whether an allocation is large.
pub fn is_large(layout: Layout) -> bool {
    layout.size() >= large_bytes() && layout.align() <= page_size()
}

/// Bytes that are mapped for an allocation of `bytes`: in steps of an eighth of its power of two,
/// so that sizes that differ little can take each other's blocks.
pub fn class(bytes: usize) -> usize {
    let step = (1 << bytes.ilog2()) / 8;
    bytes.next_multiple_of(step).next_multiple_of(page_size())
}

/// A block for `bytes`, null where the system has none, and whether it is known to be zero.
pub fn alloc(bytes: usize) -> (*mut u8, bool) {
    let bytes = class(bytes);
    let mut shelf = shelf();
    let suits = |kept: &&mut Option<Kept>| kept.is_some_and(|kept| kept.bytes == bytes);
    if let Some(kept) = shelf.kept.iter_mut().find(suits).and_then(Option::take) {
        KEPT_BYTES.fetch_sub(bytes as u64, Ordering::Relaxed);
        return (kept.block.as_ptr(), false);
    }
    shelf.make_room(live_bytes() + bytes as u64);
    drop(shelf);
    // SAFETY: an anonymous mapping at an address of the kernel's choice touches nothing of ours.
    let block = unsafe {
        libc::mmap(
            null_mut(),
            bytes,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
            -1,
            0,
        )
    };
    if block == libc::MAP_FAILED {
        return (null_mut(), false);
    }
    (block.cast(), true)
}

/// Takes back a block.
///
/// # Safety
///
/// `block` is from [`alloc`] or [`grow`] for the same `bytes` and no longer used.
pub unsafe fn free(block: *mut u8, bytes: usize) {
    let bytes = class(bytes);
    let Some(block) = NonNull::new(block) else { return };
    // It counts as in use until it is freed.
    if fits(live_bytes()) {
        let mut shelf = shelf();
        if let Some(slot) = shelf.kept.iter_mut().find(|slot| slot.is_none()) {
            *slot = Some(Kept { block, bytes });
            KEPT_BYTES.fetch_add(bytes as u64, Ordering::Relaxed);
            return;
        }
    }
    unmap(Kept { block, bytes });
}

/// Resizes a block, moving it where it must; null where the system has none, and the old one stays.
///
/// # Safety
///
/// `block` is from [`alloc`] or [`grow`] for `old_bytes`; it is no longer used unless null comes
/// back.
pub unsafe fn grow(block: *mut u8, old_bytes: usize, new_bytes: usize) -> *mut u8 {
    let (old, new) = (class(old_bytes), class(new_bytes));
    if old == new {
        return block;
    }
    // SAFETY: the caller hands over a whole mapping of `old` bytes.
    let moved = unsafe { libc::mremap(block.cast(), old, new, libc::MREMAP_MAYMOVE) };
    if moved == libc::MAP_FAILED {
        return null_mut();
    }
    moved.cast()
}

/// Has blocks kept from now on while they and all that is in use are within what is in use now and
/// `more_bytes`; lets go of those that are too many.
pub fn keep_within(more_bytes: u64) {
    let mut shelf = shelf();
    let used_bytes = live_bytes();
    ROOM_BYTES.store(used_bytes + more_bytes, Ordering::Relaxed);
    shelf.make_room(used_bytes);
}

/// Bytes that are kept.
pub fn kept_bytes() -> u64 {
    KEPT_BYTES.load(Ordering::Relaxed)
}

fn unmap(Kept { block, bytes }: Kept) {
    // SAFETY: a whole mapping of ours that nobody uses. It can fail only where the kernel cannot
    // split a larger mapping; the block is then lost, not reused.
    unsafe { libc::munmap(block.as_ptr().cast(), bytes) };
}

fn shelf() -> MutexGuard<'static, Shelf> {
    SHELF.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_waste_an_eighth_at_most() {
        for bytes in (large_bytes()..64 << 20).step_by(77_777) {
            let class = class(bytes);
            assert!(class >= bytes && class.is_multiple_of(page_size()));
            assert!(class <= bytes + bytes / 8 + page_size(), "{bytes}: {class}");
            assert_eq!(super::class(class), class);
        }
    }

    /// The one test of the shelf: it is the process's.
    #[test]
    fn blocks_are_kept_within_the_room_and_found_by_size() {
        let bytes = 300 << 10;
        keep_within(2 * class(bytes) as u64);
        let (first, is_zero) = alloc(bytes);
        assert!(!first.is_null() && is_zero);
        // SAFETY: the block is ours for `bytes`.
        unsafe {
            first.write_bytes(7, bytes);
            free(first, bytes);
        }
        let (again, is_zero) = alloc(bytes - 1000);
        assert_eq!((again, is_zero), (first, false), "the same block");
        // SAFETY: the block is ours for `bytes - 1000`, then for 3 MiB, then given back.
        unsafe {
            let grown = grow(again, bytes - 1000, 3 << 20);
            assert_eq!(grown.add(bytes - 1).read(), 7, "what was written is still there");
            free(grown, 3 << 20);
        }
        assert!(kept_bytes() > 0);
        make_room(2 * class(bytes) as u64);
        assert_eq!(kept_bytes(), 0, "what is in use comes first");
        keep_within(0);
    }
}

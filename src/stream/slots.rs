//! Memory for blocks that are read: what one block leaves, the next of its size takes.

use crate::sys::direct::PageBuffer;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The slots of an engine, which its models share as they share the window. What is lent, what is
/// mapped and what waits for the next block never come to more than the room, the window's bytes, as
/// long as the window holds: nothing is kept beyond what the ledger has granted for it.
#[derive(Default)]
pub struct Slots(Mutex<State>);

#[derive(Default)]
struct State {
    room_bytes: usize,
    /// Bytes of slots that the window's blocks are in.
    lent_bytes: usize,
    /// Bytes of the window's blocks that are in no slot, but mapped.
    mapped_bytes: usize,
    /// Bytes of slots that pinned blocks are in: these are never lent again.
    pinned_bytes: usize,
    free: Vec<PageBuffer>,
}

impl State {
    fn free_bytes(&self) -> usize {
        self.free.iter().map(PageBuffer::len).sum()
    }

    /// Bytes that count against the room.
    fn counted_bytes(&self) -> usize {
        self.lent_bytes + self.mapped_bytes + self.free_bytes()
    }

    /// Takes free slots out until all fit the room; the caller drops them.
    fn shrink(&mut self) -> Vec<PageBuffer> {
        let mut too_many = vec![];
        while self.counted_bytes() > self.room_bytes
            && let Some(slot) = self.free.pop()
        {
            too_many.push(slot);
        }
        too_many
    }
}

impl Slots {
    /// Changes the room; free slots beyond it go at once. 0 when the window is idle.
    pub fn keep_within(&self, room_bytes: u64) {
        let mut state = self.lock();
        state.room_bytes = usize::try_from(room_bytes).unwrap_or(usize::MAX);
        let too_many = state.shrink();
        drop(state);
        drop(too_many);
    }

    /// Bytes of all slots, lent or free, pinned blocks' too.
    pub fn bytes(&self) -> u64 {
        let state = self.lock();
        (state.lent_bytes + state.pinned_bytes + state.free_bytes()) as u64
    }

    /// Lends a slot of `bytes`, which is rounded up to whole pages.
    pub(super) fn lend(self: &Arc<Slots>, bytes: usize) -> io::Result<Slot> {
        let bytes = PageBuffer::rounded(bytes);
        let mut state = self.lock();
        state.lent_bytes += bytes;
        let fits = state.free.iter().position(|slot| slot.len() == bytes);
        let free = fits.map(|index| state.free.swap_remove(index));
        let too_many = state.shrink();
        drop(state);
        drop(too_many);
        let buffer = free.map_or_else(|| PageBuffer::new(bytes), Ok);
        let buffer = buffer.inspect_err(|_| self.lock().lent_bytes -= bytes)?;
        let slots = Arc::clone(self);
        Ok(Slot { slots, buffer: Some(buffer), is_pinned: AtomicBool::new(false) })
    }

    /// Counts a block of the window that is mapped, until what comes back is dropped: free slots,
    /// as other ways of reading leave them, make room for it.
    pub(super) fn count_mapped(self: &Arc<Slots>, bytes: usize) -> Mapped {
        let bytes = PageBuffer::rounded(bytes);
        let mut state = self.lock();
        state.mapped_bytes += bytes;
        let too_many = state.shrink();
        drop(state);
        drop(too_many);
        Mapped { slots: Arc::clone(self), bytes }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A block of the window that is in no slot.
pub(super) struct Mapped {
    slots: Arc<Slots>,
    bytes: usize,
}

impl Drop for Mapped {
    fn drop(&mut self) {
        self.slots.lock().mapped_bytes -= self.bytes;
    }
}

/// A slot that is lent; dropping it gives it back.
pub(super) struct Slot {
    slots: Arc<Slots>,
    buffer: Option<PageBuffer>,
    is_pinned: AtomicBool,
}

/// Why a slot has its buffer.
const UNTIL_DROPPED: &str = "held until the slot is dropped";

impl Slot {
    pub(super) fn buffer(&self) -> &PageBuffer {
        self.buffer.as_ref().expect(UNTIL_DROPPED)
    }

    pub(super) fn buffer_mut(&mut self) -> &mut PageBuffer {
        self.buffer.as_mut().expect(UNTIL_DROPPED)
    }

    /// Its block is pinned: it is no longer the window's, and goes with the block.
    pub(super) fn pin(&self) {
        let mut state = self.slots.lock();
        if !self.is_pinned.swap(true, Ordering::Relaxed) {
            state.lent_bytes -= self.buffer().len();
            state.pinned_bytes += self.buffer().len();
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let buffer = self.buffer.take().expect(UNTIL_DROPPED);
        let mut state = self.slots.lock();
        if *self.is_pinned.get_mut() {
            state.pinned_bytes -= buffer.len();
            return;
        }
        state.lent_bytes -= buffer.len();
        if state.counted_bytes() + buffer.len() <= state.room_bytes {
            state.free.push(buffer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BYTES: usize = 1 << 20;

    fn slots(room: usize) -> Arc<Slots> {
        let slots = Arc::<Slots>::default();
        slots.keep_within((room * BYTES) as u64);
        slots
    }

    #[test]
    fn a_slot_serves_block_after_block_of_its_size() {
        let slots = slots(2);
        let mut seen = std::collections::BTreeSet::new();
        let mut held = vec![];
        for _ in 0..50 {
            let slot = slots.lend(BYTES).unwrap();
            seen.insert(slot.buffer().as_ref().as_ptr());
            held.push(slot);
            if held.len() == 2 {
                held.remove(0);
            }
        }
        assert_eq!(seen.len(), 2);
        assert_eq!(slots.bytes(), 2 * BYTES as u64);
        held.push(slots.lend(BYTES).unwrap());
        drop(slots.lend(BYTES).unwrap());
        assert_eq!(slots.bytes(), 2 * BYTES as u64, "a third does not stay");
        held.clear();
        assert_eq!(slots.bytes(), 2 * BYTES as u64, "they wait for the next pass");
        let other = slots.lend(BYTES / 2).unwrap();
        assert_eq!(slots.bytes(), (BYTES + BYTES / 2) as u64, "one has made room");
        slots.keep_within(0);
        assert_eq!(slots.bytes(), (BYTES / 2) as u64);
        drop(other);
        assert_eq!(slots.bytes(), 0);
    }

    /// Passes of one plan read into slots, those of another map: together they have one window.
    #[test]
    fn mapped_blocks_take_the_room_of_free_slots() {
        let slots = slots(3);
        drop([(); 3].map(|()| slots.lend(BYTES).unwrap()));
        assert_eq!(slots.bytes(), 3 * BYTES as u64);
        let mapped = [(); 2].map(|()| slots.count_mapped(BYTES));
        assert_eq!(slots.bytes(), BYTES as u64);
        let lent = [(); 2].map(|()| slots.lend(BYTES).unwrap());
        drop(lent);
        assert_eq!(slots.bytes(), BYTES as u64, "the second does not stay");
        drop(mapped);
        drop([(); 3].map(|()| slots.lend(BYTES).unwrap()));
        assert_eq!(slots.bytes(), 3 * BYTES as u64);
    }

    #[test]
    fn pinned_slots_are_not_the_windows() {
        let slots = slots(1);
        let pinned = slots.lend(BYTES).unwrap();
        pinned.pin();
        pinned.pin();
        drop(slots.lend(BYTES).unwrap());
        assert_eq!(slots.bytes(), 2 * BYTES as u64, "one pinned, one free");
        drop(pinned);
        assert_eq!(slots.bytes(), BYTES as u64, "what was pinned is not kept");
    }
}

//! The blocks of a model that stay in memory between passes.
//!
//! Pins cost no reading of their own: a pass keeps the blocks that are to be pinned instead of
//! letting them go. They are the first thing to give way when memory is needed.

use super::error::EngineError;
use crate::plan::{PinPlace, pinned_units};
use crate::stream::{BlockMemory, Category, Grant, Keep, Ledger};
use crate::sys::lock::lock;
use std::sync::{Arc, Mutex, MutexGuard};

/// Share of the budget that pins leave free, for requests and for what models need to load.
pub(super) const UNPINNED_SHARE: u64 = 4;

/// A model's pins, as far as the ledger grants them.
pub struct Pins(Mutex<State>);

struct State {
    /// Bytes of memory that each block of the tape takes.
    sizes: Vec<u64>,
    /// By index on the tape; each carries the grant of its bytes.
    blocks: Vec<Option<Arc<BlockMemory>>>,
    /// Bytes granted for blocks that the running pass is to keep.
    coming: Grant,
    /// Those blocks.
    keep: Keep,
}

impl State {
    fn bytes(&self) -> u64 {
        let pinned = self.sizes.iter().zip(&self.blocks).filter(|(_, block)| block.is_some());
        pinned.map(|(bytes, _)| bytes).sum()
    }
}

impl Pins {
    /// Nothing pinned of a tape whose blocks take so many bytes of memory each.
    pub fn none(sizes: Vec<u64>, ledger: &Arc<Ledger>) -> Result<Pins, EngineError> {
        let coming = ledger.try_grant(Category::Pins, 0)?;
        let blocks = vec![None; sizes.len()];
        Ok(Pins(Mutex::new(State { sizes, blocks, coming, keep: Keep::default() })))
    }

    /// The pinned blocks, by index on the tape.
    pub fn blocks(&self) -> Vec<Option<Arc<BlockMemory>>> {
        self.lock().blocks.clone()
    }

    /// Bytes pinned.
    pub fn bytes(&self) -> u64 {
        self.lock().bytes()
    }

    /// Has up to `more_bytes` granted for further blocks. Returns which blocks the coming pass is
    /// to keep when they pass; none where somebody else was faster to take the bytes.
    pub fn plan(&self, more_bytes: u64, place: PinPlace) -> Keep {
        let mut state = self.lock();
        let wanted = pinned_units(&state.sizes, state.bytes() + more_bytes, place);
        let mut bytes = 0;
        let keep: Vec<bool> = (wanted.iter().zip(&state.blocks).zip(&state.sizes))
            .map(|((wanted, pinned), held)| {
                let comes = *wanted && pinned.is_none() && bytes + held <= more_bytes;
                bytes += if comes { *held } else { 0 };
                comes
            })
            .collect();
        state.keep = match state.coming.resize(bytes) {
            Ok(()) => Keep::new(keep),
            Err(_) => Keep::default(),
        };
        state.keep.clone()
    }

    /// Whether the blocks take so many bytes of memory each.
    pub fn is_of(&self, sizes: &[u64]) -> bool {
        self.lock().sizes == sizes
    }

    /// Bytes granted for blocks that the coming pass is to keep.
    pub fn coming_bytes(&self) -> u64 {
        self.lock().coming.bytes()
    }

    /// Takes the blocks that the pass has kept, and gives back what was granted for others.
    pub fn take(&self, kept: Vec<(usize, Arc<BlockMemory>)>) {
        let mut state = self.lock();
        for (index, loaded) in kept {
            let bytes = state.sizes[index];
            if state.blocks[index].is_none() && state.coming.bytes() >= bytes {
                let grant = state.coming.split(bytes);
                state.blocks[index] = Some(Arc::new(BlockMemory::granted(loaded, grant)));
            }
        }
        // Shrinking is always granted.
        let _ = state.coming.resize(0);
    }

    /// Lets all pins go; what a running pass has yet to use goes once it is used. Returns whether
    /// there were any.
    pub fn release(&self) -> bool {
        self.clear().iter().any(Option::is_some)
    }

    fn clear(&self) -> Vec<Option<Arc<BlockMemory>>> {
        let mut state = self.lock();
        state.keep.revoke();
        let count = state.blocks.len();
        std::mem::replace(&mut state.blocks, vec![None; count])
    }

    /// Takes the pins of `others` for a tape of which block `index` is the others' block
    /// `same(index)`, as long as they come to `most_bytes` at most; the rest of them go.
    pub fn take_over(&self, others: &Pins, same: impl Fn(usize) -> Option<usize>, most_bytes: u64) {
        let sizes = others.lock().sizes.clone();
        let mut blocks = others.clear();
        let mut state = self.lock();
        let mut left = most_bytes.saturating_sub(state.bytes());
        for index in 0..state.sizes.len() {
            let bytes = state.sizes[index];
            let other = same(index).filter(|other| sizes[*other] == bytes && bytes <= left);
            // One that the tape has twice goes to the first.
            if let Some(block) = other.and_then(|other| blocks[other].take()) {
                state.blocks[index] = Some(block);
                left -= bytes;
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.0)
    }
}

//! The window: which block is loaded next, and when. A pure state machine: no I/O, no clock, no
//! thread.

/// What a loader should do now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claim {
    /// Load this block.
    Load(usize),
    /// The window is full: wait for a release.
    Full,
    /// Every block has been claimed.
    Finished,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Stays in memory: never claimed, always ready.
    Pinned,
    Waiting,
    Loading,
    Ready,
    Released,
}

/// The blocks of one traversal of a tape, of which at most `capacity_bytes` are held at once,
/// pinned blocks not counted.
#[derive(Clone, Debug)]
pub struct Window {
    capacity_bytes: u64,
    held_bytes: u64,
    sizes: Vec<u64>,
    states: Vec<State>,
    next: usize,
}

impl Window {
    /// A window over blocks of the given sizes; `pinned` says which of them stay.
    ///
    /// # Panics
    /// If a block that is not pinned is larger than the window: such a traversal could not end.
    pub fn new(capacity_bytes: u64, blocks: impl IntoIterator<Item = (u64, bool)>) -> Window {
        let (sizes, states): (Vec<u64>, Vec<State>) = blocks
            .into_iter()
            .map(|(size, pinned)| (size, if pinned { State::Pinned } else { State::Waiting }))
            .unzip();
        let fits =
            |(size, state): (&u64, &State)| *state == State::Pinned || *size <= capacity_bytes;
        assert!(sizes.iter().zip(&states).all(fits), "a block is larger than the window");
        Window { capacity_bytes, held_bytes: 0, sizes, states, next: 0 }
    }

    /// Claims the next block in order if the window has room for it.
    pub fn claim(&mut self) -> Claim {
        while self.states.get(self.next) == Some(&State::Pinned) {
            self.next += 1;
        }
        let Some(size) = self.sizes.get(self.next) else {
            return Claim::Finished;
        };
        if self.held_bytes + size > self.capacity_bytes {
            return Claim::Full;
        }
        self.held_bytes += size;
        self.states[self.next] = State::Loading;
        self.next += 1;
        Claim::Load(self.next - 1)
    }

    /// A claimed block has arrived.
    pub fn loaded(&mut self, block: usize) {
        assert_eq!(self.states[block], State::Loading, "block {block} was not being loaded");
        self.states[block] = State::Ready;
    }

    /// Whether compute may take `block`.
    pub fn is_ready(&self, block: usize) -> bool {
        matches!(self.states[block], State::Ready | State::Pinned)
    }

    /// Whether `block` stays in memory.
    pub fn is_pinned(&self, block: usize) -> bool {
        self.states[block] == State::Pinned
    }

    /// The memory of a block that had arrived is free again.
    pub fn released(&mut self, block: usize) {
        assert_eq!(self.states[block], State::Ready, "block {block} was not held");
        self.states[block] = State::Released;
        self.held_bytes -= self.sizes[block];
    }

    /// A block that had arrived stays in memory from now on: it is no longer the window's.
    pub fn kept(&mut self, block: usize) {
        self.released(block);
        self.states[block] = State::Pinned;
    }

    /// Bytes claimed and not yet released.
    pub fn held_bytes(&self) -> u64 {
        self.held_bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn blocks_are_claimed_in_order_while_they_fit() {
        let mut window = Window::new(20, [(10, false), (5, true), (10, false), (1, false)]);
        assert!(window.is_ready(1), "pinned blocks are ready from the start");
        assert_eq!(window.claim(), Claim::Load(0));
        assert_eq!(window.claim(), Claim::Load(2));
        assert_eq!(window.claim(), Claim::Full);
        assert!(!window.is_ready(0));
        window.loaded(0);
        assert!(window.is_ready(0));
        window.released(0);
        assert_eq!(window.claim(), Claim::Load(3));
        assert_eq!(window.claim(), Claim::Finished);
        assert_eq!(window.held_bytes(), 11);
        window.loaded(2);
        window.kept(2);
        assert!(window.is_ready(2) && window.is_pinned(2), "a kept block stays");
        assert_eq!(window.held_bytes(), 1);
    }

    #[test]
    #[should_panic(expected = "larger than the window")]
    fn a_block_larger_than_the_window_is_refused() {
        Window::new(4, [(5, false)]);
    }

    proptest! {
        /// Whatever the sizes and the interleaving of loaders and compute, every block is
        /// loaded once and in order, the window holds, and the traversal ends.
        #[test]
        fn every_traversal_ends_within_the_window(
            sizes in prop::collection::vec((1u64..50, any::<bool>()), 0..40),
            slack in 0u64..100,
            choices in prop::collection::vec(0usize..3, 0..400),
        ) {
            let capacity = sizes.iter().map(|(size, _)| *size).max().unwrap_or(1) + slack;
            let mut window = Window::new(capacity, sizes.clone());
            let (mut loading, mut claimed, mut next_use) = (vec![], vec![], 0);
            let mut choices = choices.into_iter().chain(std::iter::repeat_n(0, 400));
            while next_use < sizes.len() {
                let choice = choices.next().unwrap_or(0);
                if choice == 0 && !loading.is_empty() {
                    window.loaded(loading.pop().unwrap());
                } else if choice < 2 && window.is_ready(next_use) {
                    if !sizes[next_use].1 {
                        window.released(next_use);
                    }
                    next_use += 1;
                } else if let Claim::Load(block) = window.claim() {
                    claimed.push(block);
                    loading.push(block);
                } else if let Some(block) = loading.pop() {
                    window.loaded(block);
                }
                prop_assert!(window.held_bytes() <= capacity);
            }
            let expected: Vec<usize> = (0..sizes.len()).filter(|i| !sizes[*i].1).collect();
            prop_assert_eq!(claimed, expected);
            prop_assert_eq!(window.held_bytes(), 0);
        }
    }
}

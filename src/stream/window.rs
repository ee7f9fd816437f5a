//! The window: which unit is loaded next, and when. A pure state machine: no I/O, no clock, no
//! thread.
//!
//! A unit is what is loaded, waited for and released as one: a block, a layer, whatever a pass is
//! cut into.

/// What a loader should do now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claim {
    /// Load this unit.
    Load(usize),
    /// The window is full: wait for a release.
    Full,
    /// Every unit has been claimed.
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

/// The units of one traversal of a tape, of which at most `capacity_bytes` are held at once,
/// pinned units not counted.
#[derive(Clone, Debug)]
pub struct Window {
    capacity_bytes: u64,
    held_bytes: u64,
    peak_bytes: u64,
    sizes: Vec<u64>,
    states: Vec<State>,
    /// The first unit that may be waiting: none before it is.
    next: usize,
    /// The first unit that may be held or waiting: those before it are pinned or released.
    oldest: usize,
}

impl Window {
    /// A window over units of the given sizes; `pinned` says which of them stay.
    ///
    /// # Panics
    /// If a unit that is not pinned is larger than the window: such a traversal could not end.
    pub fn new(capacity_bytes: u64, units: impl IntoIterator<Item = (u64, bool)>) -> Window {
        let (sizes, states): (Vec<u64>, Vec<State>) = units
            .into_iter()
            .map(|(size, pinned)| (size, if pinned { State::Pinned } else { State::Waiting }))
            .unzip();
        let fits =
            |(size, state): (&u64, &State)| *state == State::Pinned || *size <= capacity_bytes;
        assert!(sizes.iter().zip(&states).all(fits), "a unit is larger than the window");
        Window { capacity_bytes, held_bytes: 0, peak_bytes: 0, sizes, states, next: 0, oldest: 0 }
    }

    /// Claims the next unit in order if the window has room for it.
    pub fn claim(&mut self) -> Claim {
        self.claim_of(0, 1)
    }

    /// Claims the next unit of the loader `agent` among `agents`, which are units `agent`,
    /// `agent + agents` and so on. There is room for a unit if all that may come to be held before
    /// it fits the window with it: so a loader that is ahead leaves the others theirs.
    ///
    /// # Panics
    /// If `agents` is 0.
    pub fn claim_of(&mut self, agent: usize, agents: usize) -> Claim {
        self.next = self.first_from(self.next, |state| state == State::Waiting);
        let may_hold = |state| !matches!(state, State::Pinned | State::Released);
        self.oldest = self.first_from(self.oldest, may_hold);
        let turn = |unit: &usize| unit % agents == agent && self.states[*unit] == State::Waiting;
        let Some(unit) = (self.next..self.states.len()).find(turn) else {
            return Claim::Finished;
        };
        let counts = |unit: &usize| may_hold(self.states[*unit]);
        let span: u64 = (self.oldest..=unit).filter(counts).map(|unit| self.sizes[unit]).sum();
        if span > self.capacity_bytes {
            return Claim::Full;
        }
        self.states[unit] = State::Loading;
        self.held_bytes += self.sizes[unit];
        self.peak_bytes = self.peak_bytes.max(self.held_bytes);
        Claim::Load(unit)
    }

    fn first_from(&self, start: usize, is_it: impl Fn(State) -> bool) -> usize {
        let found = self.states[start..].iter().position(|state| is_it(*state));
        found.map_or(self.states.len(), |index| start + index)
    }

    /// A claimed unit has arrived.
    pub fn loaded(&mut self, unit: usize) {
        assert_eq!(self.states[unit], State::Loading, "unit {unit} was not being loaded");
        self.states[unit] = State::Ready;
    }

    /// Whether compute may take `unit`.
    pub fn is_ready(&self, unit: usize) -> bool {
        matches!(self.states[unit], State::Ready | State::Pinned)
    }

    /// Whether `unit` stays in memory.
    pub fn is_pinned(&self, unit: usize) -> bool {
        self.states[unit] == State::Pinned
    }

    /// The memory of a unit that had arrived is free again.
    pub fn released(&mut self, unit: usize) {
        assert_eq!(self.states[unit], State::Ready, "unit {unit} was not held");
        self.states[unit] = State::Released;
        self.held_bytes -= self.sizes[unit];
    }

    /// A unit that had arrived stays in memory from now on: it is no longer the window's.
    pub fn kept(&mut self, unit: usize) {
        self.released(unit);
        self.states[unit] = State::Pinned;
    }

    /// Bytes claimed and not yet released.
    pub fn held_bytes(&self) -> u64 {
        self.held_bytes
    }

    /// The most there were of them.
    pub fn peak_bytes(&self) -> u64 {
        self.peak_bytes
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
    fn a_loader_that_is_ahead_leaves_the_others_theirs() {
        let mut window = Window::new(30, [(10, false); 6]);
        assert_eq!(window.claim_of(1, 2), Claim::Load(1));
        assert_eq!(window.claim_of(1, 2), Claim::Full, "units 0 to 3 have 40 bytes");
        assert_eq!(window.claim_of(0, 2), Claim::Load(0));
        assert_eq!(window.claim_of(0, 2), Claim::Load(2));
        (0..3).for_each(|unit| window.loaded(unit));
        window.released(0);
        assert_eq!(window.claim_of(0, 2), Claim::Full);
        assert_eq!(window.claim_of(1, 2), Claim::Load(3));
        assert_eq!(window.peak_bytes(), 30);
    }

    #[test]
    #[should_panic(expected = "larger than the window")]
    fn a_block_larger_than_the_window_is_refused() {
        Window::new(4, [(5, false)]);
    }

    proptest! {
        /// Whatever the sizes, the number of loaders and the interleaving of loaders and compute,
        /// every unit is loaded once and in its loader's order, the window holds, and the
        /// traversal ends.
        #[test]
        fn every_traversal_ends_within_the_window(
            agents in 1usize..5,
            sizes in prop::collection::vec((1u64..50, any::<bool>()), 0..40),
            slack in 0u64..100,
            choices in prop::collection::vec(0usize..3, 0..400),
        ) {
            let capacity = sizes.iter().map(|(size, _)| *size).max().unwrap_or(1) + slack;
            let mut window = Window::new(capacity, sizes.clone());
            let (mut loading, mut claimed, mut next_use) = (vec![], vec![], 0);
            let mut choices = choices.into_iter().chain(std::iter::repeat_n(0, 4000)).enumerate();
            while next_use < sizes.len() {
                let (step, choice) = choices.next().expect("it ends");
                if choice == 0 && !loading.is_empty() {
                    window.loaded(loading.pop().unwrap());
                } else if choice < 2 && window.is_ready(next_use) {
                    if !sizes[next_use].1 {
                        window.released(next_use);
                    }
                    next_use += 1;
                } else if let Claim::Load(unit) = window.claim_of(step % agents, agents) {
                    claimed.push(unit);
                    loading.push(unit);
                } else if let Some(unit) = loading.pop() {
                    window.loaded(unit);
                }
                prop_assert!(window.held_bytes() <= capacity);
            }
            for agent in 0..agents {
                let own = claimed.iter().filter(|unit| *unit % agents == agent);
                prop_assert!(own.is_sorted());
            }
            claimed.sort_unstable();
            let expected: Vec<usize> = (0..sizes.len()).filter(|i| !sizes[*i].1).collect();
            prop_assert_eq!(claimed, expected);
            prop_assert_eq!(window.held_bytes(), 0);
        }
    }
}

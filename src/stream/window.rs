//! The window: which unit is loaded next, and when. A pure state machine: no I/O, no clock, no
//! thread.
//!
//! A unit is what is loaded, waited for and released as one: a block, a layer, whatever a pass is
//! cut into.

/// The order in which a tape's units are read: nobody else knows it. A *place* is a step of that
/// order; each unit has one in every lap.
///
/// A mixture of experts would read by an order that grows as its routers decide.
#[derive(Clone, Debug)]
struct Order {
    units: u64,
    /// Places in all.
    end: u64,
}

impl Order {
    fn new(units: usize, laps: u64) -> Order {
        let units = units as u64;
        Order { units, end: units.saturating_mul(laps) }
    }

    /// Places from `start` on, each with its unit.
    fn from(&self, start: u64) -> impl Iterator<Item = (u64, usize)> + use<> {
        let (units, end) = (self.units, self.end);
        let mut unit = if units == 0 { 0 } else { start % units };
        (start..end).map(move |place| {
            let here = unit;
            unit = if unit + 1 == units { 0 } else { unit + 1 };
            (place, here as usize)
        })
    }

    /// Where the unit of `place` is read again.
    fn again(&self, place: u64) -> Option<u64> {
        Some(place + self.units).filter(|place| *place < self.end)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Stays in memory: not claimed, always ready.
    Pinned,
    Waiting,
    Loading,
    Ready,
    /// Was read for the last time.
    Passed,
}

#[derive(Clone, Copy, Debug)]
struct Unit {
    /// What loading it takes.
    bytes: u64,
    state: State,
    /// Where it is read now, or next.
    place: u64,
}

/// The units of one traversal of a tape, of which at most `capacity_bytes` are held at once,
/// pinned units not counted.
#[derive(Clone, Debug)]
pub(super) struct Window {
    capacity_bytes: u64,
    held_bytes: u64,
    peak_bytes: u64,
    units: Vec<Unit>,
    order: Order,
    /// Nothing waits at places before it.
    next: u64,
    /// Nothing was claimed from this place on.
    unclaimed: u64,
    /// Units that were read for the last time.
    passed: usize,
}

impl Window {
    /// A window over units of the given sizes, played `laps` times; `pinned` says which of them
    /// stay.
    ///
    /// # Panics
    /// If a unit that is not pinned is larger than the window: such a traversal could not end.
    pub fn new(
        capacity_bytes: u64,
        laps: u64,
        units: impl IntoIterator<Item = (u64, bool)>,
    ) -> Window {
        let units: Vec<Unit> = (0..)
            .zip(units)
            .map(|(place, (bytes, pinned))| {
                assert!(pinned || bytes <= capacity_bytes, "a unit is larger than the window");
                Unit { bytes, state: if pinned { State::Pinned } else { State::Waiting }, place }
            })
            .collect();
        let order = Order::new(units.len(), laps);
        Window {
            capacity_bytes,
            held_bytes: 0,
            peak_bytes: 0,
            units,
            order,
            next: 0,
            unclaimed: 0,
            passed: 0,
        }
    }

    /// Claims the next unit of the loader `agent` among `agents`, whose are the places `agent`,
    /// `agent + agents` and so on; the next of all is agent 0's of 1. There is room for a unit if
    /// all that may come to be held before it fits the window with it: so a loader that is ahead
    /// leaves the others theirs.
    pub fn claim(&mut self, agent: usize, agents: usize) -> Option<usize> {
        let (agent, agents) = (agent as u64, agents as u64);
        let mut others_bytes = 0;
        for (place, index) in self.order.from(self.next) {
            let unit = self.units[index];
            if unit.place < place {
                // It is still in the lap before; what follows waits for it.
                return None;
            }
            if unit.place > place || unit.state != State::Waiting {
                if place == self.next {
                    self.next += 1;
                }
                continue;
            }
            if agents > 1 && place % agents != agent {
                others_bytes += unit.bytes;
                continue;
            }
            // Who claimed what lies behind has left room for it.
            let is_left_room = place < self.unclaimed;
            let fits = self.held_bytes + others_bytes + unit.bytes <= self.capacity_bytes;
            if !is_left_room && !fits {
                return None;
            }
            self.units[index].state = State::Loading;
            self.unclaimed = self.unclaimed.max(place + 1);
            self.held_bytes += unit.bytes;
            self.peak_bytes = self.peak_bytes.max(self.held_bytes);
            return Some(index);
        }
        None
    }

    /// A claimed unit has arrived.
    pub fn loaded(&mut self, unit: usize) {
        assert_eq!(self.units[unit].state, State::Loading, "unit {unit} was not being loaded");
        self.units[unit].state = State::Ready;
    }

    /// Whether compute may take `unit`.
    ///
    /// # Panics
    /// If it was read for the last time: it will never be.
    pub fn is_ready(&self, unit: usize) -> bool {
        let state = self.units[unit].state;
        assert_ne!(state, State::Passed, "unit {unit} was used for the last time");
        matches!(state, State::Ready | State::Pinned)
    }

    /// Whether `unit` is read again after this lap.
    pub fn comes_again(&self, unit: usize) -> bool {
        self.order.again(self.units[unit].place).is_some()
    }

    /// A unit was read, and what does not stay of it has gone: it is no longer the window's.
    /// Reading it again takes `missing_bytes`; nothing where all of it stays. Returns whether
    /// something can be claimed that could not before.
    pub fn passed(&mut self, index: usize, missing_bytes: Option<u64>) -> bool {
        let unit = &mut self.units[index];
        let was_held = unit.state == State::Ready;
        assert!(was_held || unit.state == State::Pinned, "unit {index} was not there");
        self.held_bytes -= if was_held { unit.bytes } else { 0 };
        unit.bytes = missing_bytes.unwrap_or(0);
        unit.state = match (self.order.again(unit.place), missing_bytes) {
            (None, _) => {
                self.passed += 1;
                State::Passed
            }
            (Some(place), missing) => {
                unit.place = place;
                if missing.is_some() { State::Waiting } else { State::Pinned }
            }
        };
        // In the next lap, what lies behind it may have waited for it alone.
        was_held || unit.state != State::Passed
    }

    /// Whether every unit was read for the last time, and has gone where it was to.
    pub fn is_through(&self) -> bool {
        self.passed == self.units.len()
    }

    /// Whether a unit that was read once, and stays at least in part, may go before it is read
    /// again. What loaders have read past may not: there may be no room to load it any more.
    pub fn may_go(&self, unit: usize) -> bool {
        let Unit { state, place, .. } = self.units[unit];
        match state {
            State::Passed => true,
            State::Pinned | State::Waiting => place >= self.order.units.max(self.unclaimed),
            State::Loading | State::Ready => false,
        }
    }

    /// What stayed of a unit that may go has gone.
    pub fn gone(&mut self, unit: usize, missing_bytes: u64) {
        let unit = &mut self.units[unit];
        unit.bytes = missing_bytes;
        if unit.state != State::Passed {
            unit.state = State::Waiting;
            self.next = self.next.min(unit.place);
        }
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
        let mut window = Window::new(20, 1, [(10, false), (5, true), (10, false), (1, false)]);
        assert!(window.is_ready(1), "pinned blocks are ready from the start");
        assert_eq!(window.claim(0, 1), Some(0));
        assert_eq!(window.claim(0, 1), Some(2));
        assert_eq!(window.claim(0, 1), None);
        assert!(!window.is_ready(0));
        window.loaded(0);
        assert!(window.is_ready(0));
        window.passed(0, Some(10));
        assert_eq!(window.claim(0, 1), Some(3));
        assert_eq!(window.claim(0, 1), None);
        assert_eq!(window.held_bytes(), 11);
    }

    #[test]
    fn a_loader_that_is_ahead_leaves_the_others_theirs() {
        let mut window = Window::new(30, 1, [(10, false); 6]);
        assert_eq!(window.claim(1, 2), Some(1));
        assert_eq!(window.claim(1, 2), None, "units 0 to 3 have 40 bytes");
        assert_eq!(window.claim(0, 2), Some(0));
        assert_eq!(window.claim(0, 2), Some(2));
        (0..3).for_each(|unit| window.loaded(unit));
        window.passed(0, Some(10));
        assert_eq!(window.claim(0, 2), None);
        assert_eq!(window.claim(1, 2), Some(3));
        assert_eq!(window.peak_bytes(), 30);
    }

    #[test]
    fn the_next_lap_is_read_before_this_one_ends() {
        let mut window = Window::new(20, 2, [(10, false), (10, false), (5, true)]);
        assert_eq!([window.claim(0, 1), window.claim(0, 1)], [Some(0), Some(1)]);
        assert_eq!(window.claim(0, 1), None, "unit 0 is still in the lap before");
        window.loaded(0);
        window.passed(0, Some(10));
        assert_eq!(window.claim(0, 1), Some(0));
        window.loaded(1);
        // What stays is not loaded again.
        window.passed(1, None);
        window.passed(2, None);
        assert!(window.is_ready(1) && window.is_ready(2));
        assert_eq!((window.claim(0, 1), window.held_bytes()), (None, 10));
        assert!(!window.is_through());
    }

    /// A unit that loaders have read past would be loaded into a window that is full of what comes
    /// after it.
    #[test]
    fn what_was_read_past_stays_until_it_is_used() {
        let mut window = Window::new(10, 2, [(5, true), (10, false)]);
        window.passed(0, None);
        assert!(window.may_go(0), "nothing behind it is loaded yet");
        assert_eq!(window.claim(0, 1), Some(1));
        window.loaded(1);
        window.passed(1, Some(10));
        assert_eq!(window.claim(0, 1), Some(1), "past unit 0, which is there");
        assert!(!window.may_go(0));
        window.passed(0, Some(5));
        assert!(window.may_go(0), "it is not read again");
    }

    #[test]
    #[should_panic(expected = "larger than the window")]
    fn a_block_larger_than_the_window_is_refused() {
        Window::new(4, 1, [(5, false)]);
    }

    /// Takes one of them out.
    fn any_of(units: &mut Vec<usize>, pick: usize) -> Option<usize> {
        (!units.is_empty()).then(|| units.swap_remove(pick % units.len()))
    }

    proptest! {
        /// Whatever the sizes, the number of loaders and of threads, and the interleaving of them,
        /// every unit is loaded once a lap and in its loader's order, the window holds, and the
        /// traversal ends. Threads take units in their order, each of them a part of one at a time; a
        /// unit is passed with its last part, which may be long after the next one.
        #[test]
        fn every_traversal_ends_within_the_window(
            agents in 1usize..5,
            threads in 1usize..5,
            laps in 1usize..4,
            sizes in prop::collection::vec((1u64..50, any::<bool>()), 0..40),
            slack in 0u64..100,
            choices in prop::collection::vec((0usize..4, any::<usize>()), 0..600),
        ) {
            let capacity = sizes.iter().map(|(size, _)| *size).max().unwrap_or(1) + slack;
            let mut window = Window::new(capacity, laps as u64, sizes.clone());
            let (mut loading, mut in_use, mut claimed) = (vec![], vec![], vec![]);
            let (mut taken, mut passed, mut held_bytes) = (0, 0, 0);
            let mut ways =
                choices.into_iter().chain((0..40_000).map(|step| (step % 4, step / 4)));
            while passed < laps * sizes.len() {
                let (way, pick) = ways.next().expect("it ends");
                match way {
                    0 => any_of(&mut loading, pick).into_iter().for_each(|unit| window.loaded(unit)),
                    1 => {
                        let unit = taken % sizes.len();
                        let is_there = taken < laps * sizes.len() && !in_use.contains(&unit);
                        if is_there && in_use.len() < threads && window.is_ready(unit) {
                            in_use.push(unit);
                            taken += 1;
                        }
                    }
                    2 => {
                        if let Some(unit) = any_of(&mut in_use, pick) {
                            let (bytes, is_pinned) = sizes[unit];
                            held_bytes -= if is_pinned { 0 } else { bytes };
                            window.passed(unit, (!is_pinned).then_some(bytes));
                            passed += 1;
                        }
                    }
                    _ => {
                        if let Some(unit) = window.claim(pick % agents, agents) {
                            // Places are counted lap after lap.
                            let earlier = claimed.iter().filter(|of| *of % sizes.len() == unit);
                            claimed.push(earlier.count() * sizes.len() + unit);
                            held_bytes += sizes[unit].0;
                            loading.push(unit);
                        }
                    }
                }
                prop_assert_eq!(window.held_bytes(), held_bytes);
                prop_assert!(held_bytes <= capacity);
            }
            for agent in 0..agents {
                let own = claimed.iter().filter(|place| *place % agents == agent);
                prop_assert!(own.is_sorted());
            }
            claimed.sort_unstable();
            let places = 0..laps * sizes.len();
            let expected: Vec<usize> = places.filter(|i| !sizes[*i % sizes.len()].1).collect();
            prop_assert_eq!(claimed, expected);
            prop_assert_eq!(held_bytes, 0);
            prop_assert!(window.is_through());
        }
    }
}

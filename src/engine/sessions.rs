//! The sessions that are there: how many, who is the next to be opened, and who is about to ask for
//! its next step.

use crate::sys::lock::lock;
use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Sessions at once, those that wait for room among them.
pub const SESSION_LIMIT: usize = 128;

/// Of a pass's time, the part that the next one waits for sessions that took part: they decide what
/// comes next, and would else each have a pass of their own.
const GATHERING_SHARE: u64 = 8;

/// The longest such wait.
const GATHERING_US: u64 = 20_000;

/// Sessions, by number.
#[derive(Default)]
pub(super) struct Sessions {
    state: Mutex<State>,
    changed: Condvar,
    /// Time the last pass took in which any took part.
    pass_us: AtomicU64,
}

#[derive(Default)]
struct State {
    begun: u64,
    live: usize,
    /// Those that wait to be opened, the next one first.
    door: VecDeque<u64>,
    /// Those that decide, of which model and since when.
    deciding: BTreeMap<u64, (String, Instant)>,
}

/// A session's place among them, until it is dropped.
pub(super) struct Place {
    sessions: Arc<Sessions>,
    pub number: u64,
}

impl Sessions {
    /// A place for one more; none where there are as many as there may be.
    pub fn enter(self: &Arc<Sessions>) -> Option<Place> {
        let mut state = lock(&self.state);
        if state.live >= SESSION_LIMIT {
            return None;
        }
        state.live += 1;
        state.begun += 1;
        let number = state.begun;
        state.door.push_back(number);
        Some(Place { sessions: Arc::clone(self), number })
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        lock(&self.state).live
    }

    /// What came of a step is told to a session of `model`, which decides from now on.
    pub fn decides(&self, number: u64, model: &str) {
        lock(&self.state).deciding.insert(number, (model.to_string(), Instant::now()));
    }

    /// Notes what a pass took.
    pub fn note_pass(&self, latency_us: u64) {
        self.pass_us.store(latency_us, Ordering::Relaxed);
    }

    /// Waits for sessions of `model` that decide, each for a small part of a pass's time from when it
    /// began to: who is slow holds up nobody.
    pub fn gather(&self, model: &str) {
        let pass_us = self.pass_us.load(Ordering::Relaxed);
        let patience = Duration::from_micros((pass_us / GATHERING_SHARE).min(GATHERING_US));
        let mut state = lock(&self.state);
        loop {
            let of_model = state.deciding.values().filter(|(of, _)| of == model);
            let until = of_model.map(|(_, since)| *since + patience).max();
            let left = until.map(|until| until.saturating_duration_since(Instant::now()));
            let Some(left) = left.filter(|left| !left.is_zero()) else { return };
            let waited = self.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Waits until all have ended, for so long at most.
    pub fn wait_for_end(&self, patience: Duration) {
        let is_live = |state: &mut State| state.live > 0;
        // Whoever is left is held up by somebody else's code, and does nothing more here.
        let waited = self.changed.wait_timeout_while(lock(&self.state), patience, is_live);
        drop(waited.unwrap_or_else(PoisonError::into_inner));
    }
}

impl Place {
    /// Whether it is the next to be opened of those that wait for it.
    pub fn is_next(&self) -> bool {
        lock(&self.sessions.state).door.front() == Some(&self.number)
    }

    /// It is opened, or will not be.
    pub fn leave_door(&self) {
        lock(&self.sessions.state).door.retain(|number| *number != self.number);
        self.sessions.changed.notify_all();
    }

    /// Its next step has been asked for.
    pub fn has_decided(&self) {
        if lock(&self.sessions.state).deciding.remove(&self.number).is_some() {
            self.sessions.changed.notify_all();
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut state = lock(&self.sessions.state);
        state.live -= 1;
        state.door.retain(|number| *number != self.number);
        state.deciding.remove(&self.number);
        drop(state);
        self.sessions.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_enter_as_there_may_be_and_are_opened_in_their_order() {
        let sessions = Arc::<Sessions>::default();
        let mut places: Vec<Place> =
            (0..SESSION_LIMIT).map(|_| sessions.enter().unwrap()).collect();
        assert!(sessions.enter().is_none());
        assert!(places[0].is_next() && !places[1].is_next());
        places[0].leave_door();
        drop(places.remove(1));
        assert!(places[1].is_next(), "who leaves holds up nobody");
        assert_eq!(sessions.count(), SESSION_LIMIT - 1);
        drop(places);
        sessions.wait_for_end(Duration::from_secs(60));
        assert_eq!(sessions.count(), 0);
    }

    #[test]
    fn a_pass_waits_for_those_that_decide_and_for_nobody_who_is_slow() {
        let sessions = Arc::<Sessions>::default();
        let [one, other] = [(); 2].map(|()| sessions.enter().unwrap());
        sessions.note_pass(u64::MAX);
        sessions.decides(other.number, "other model");
        sessions.gather("model");
        sessions.decides(one.number, "model");
        std::thread::scope(|scope| {
            scope.spawn(|| one.has_decided());
            sessions.gather("model");
        });
        // One that never asks again is waited for no longer than a part of the pass.
        sessions.decides(one.number, "model");
        sessions.gather("model");
        sessions.gather("model");
        assert_eq!(lock(&sessions.state).deciding.len(), 2);
        drop((one, other));
        assert!(lock(&sessions.state).deciding.is_empty());
    }
}

//! Where the engine's thread finds what it is to do: a lock round its turns.

use super::command::Command;
use super::error::EngineError;
use super::model::Model;
use super::request::{Answer, Cancel, Line, Waiting};
use super::turns::{Left, Turn, Turns};
use crate::sys::lock::lock;
use std::collections::BTreeSet;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Instant;

/// What waits, and whoever waits for it.
#[derive(Default)]
pub struct Inbox {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    turns: Turns,
    closed: bool,
    /// Closed because the engine's thread is gone.
    broken: bool,
    /// Ends what is done while nothing waits.
    leisure: Option<Cancel>,
}

impl State {
    /// What is told to whoever comes once it is closed.
    fn closed_error(&self) -> EngineError {
        if self.broken { EngineError::Broken } else { EngineError::Cancelled }
    }

    /// Something waits from now on.
    fn end_leisure(&mut self) {
        if let Some(leisure) = self.leisure.take() {
            leisure.cancel();
        }
    }
}

impl Inbox {
    /// Requests that wait.
    pub fn len(&self) -> usize {
        lock(&self.state).turns.waiting()
    }

    /// Has a request wait. Returns those that do not, and why: the one that finds the queue full,
    /// or cancelled ones that made room for it.
    pub fn submit(&self, waiting: Waiting) -> Vec<(Waiting, EngineError)> {
        let mut state = lock(&self.state);
        if state.closed {
            return vec![(waiting, state.closed_error())];
        }
        state.end_leisure();
        self.changed.notify_one();
        state.turns.submit(waiting)
    }

    /// Has something done between passes, or refuses it.
    pub fn command(&self, command: Command) {
        let mut state = lock(&self.state);
        // Who asks about plans can wait for a trial's end.
        let can_wait = matches!(command, Command::Recall(..));
        let refused = match state.closed {
            true => Some((command, state.closed_error())),
            false => state.turns.command(command),
        };
        if !can_wait {
            state.end_leisure();
        }
        drop(state);
        match refused {
            None => self.changed.notify_one(),
            Some((command, error)) => command.refuse(error),
        }
    }

    /// Models that requests wait for.
    pub fn models(&self) -> BTreeSet<String> {
        lock(&self.state).turns.models()
    }

    /// Takes out who waits for a load of `model` too, up to where it is to be unloaded: one load
    /// answers them all.
    pub fn take_loads(&self, model: &str) -> Vec<Answer<Arc<Model>>> {
        lock(&self.state).turns.take_loads(model)
    }

    /// Whether requests wait although the engine is idle.
    pub fn hold(&self, is_held: bool) {
        lock(&self.state).turns.hold(is_held);
        self.changed.notify_one();
    }

    /// The requests of a line wait for a plan, until they are woken.
    pub fn park(&self, line: &Line) {
        lock(&self.state).turns.park(line);
    }

    /// Those of a line wait for a pass again.
    pub fn wake(&self, line: &Line) {
        lock(&self.state).turns.wake(line);
    }

    /// Those of all lines do: a plan is there.
    pub fn wake_all(&self) {
        lock(&self.state).turns.wake_all();
        self.changed.notify_one();
    }

    /// Ends what is done while nothing waits.
    pub fn end_leisure(&self) {
        lock(&self.state).end_leisure();
    }

    /// No more is taken in; what waits is for [`Inbox::refuse_all`].
    pub fn close(&self) {
        let mut state = lock(&self.state);
        state.closed = true;
        state.end_leisure();
        self.changed.notify_one();
    }

    /// As [`Inbox::close`], since there is nobody any more who would take anything out: whatever
    /// waits is told, and whoever comes.
    pub fn break_off(&self) {
        lock(&self.state).broken = true;
        self.close();
        self.refuse_all();
    }

    /// Whether anything is taken in.
    pub fn is_open(&self) -> bool {
        !lock(&self.state).closed
    }

    /// Tells everybody who waits, once closed.
    pub fn refuse_all(&self) {
        let (broken, (commands, waiting)) = {
            let mut state = lock(&self.state);
            (state.broken, state.turns.drain())
        };
        let error = || if broken { EngineError::Broken } else { EngineError::Cancelled };
        commands.into_iter().for_each(|command| command.refuse(error()));
        waiting.into_iter().for_each(|waiting| waiting.refuse(error()));
    }

    /// Waits for what is to be done next; `None` once closed.
    pub fn next(&self) -> Option<Turn> {
        let mut state = lock(&self.state);
        while !state.closed {
            let now = Instant::now();
            if let Some(turn) = state.turns.next(now) {
                return Some(turn);
            }
            state = match state.turns.idle_at() {
                None => self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
                Some(at) => {
                    let waited =
                        self.changed.wait_timeout(state, at.saturating_duration_since(now));
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
            }
        }
        None
    }

    /// The turn that was given last has been taken.
    pub fn done(&self, left: Left) {
        lock(&self.state).turns.done(Instant::now(), left);
    }

    /// What ends as soon as something waits, for what is done meanwhile. It has ended already
    /// where something does.
    pub fn leisure(&self) -> Cancel {
        let mut state = lock(&self.state);
        let leisure = Cancel::new();
        if state.closed || state.turns.is_busy() {
            leisure.cancel();
        } else {
            state.leisure = Some(leisure.clone());
        }
        leisure
    }

    /// The next request of a line.
    pub fn pop(&self, line: &Line) -> Option<Waiting> {
        lock(&self.state).turns.pop(line)
    }

    /// Whether anybody waits in a line.
    pub fn has(&self, line: &Line) -> bool {
        lock(&self.state).turns.has(line)
    }

    /// Takes out every request for which `is_gone` holds.
    pub fn remove(&self, is_gone: impl Fn(&Waiting) -> bool) -> Vec<Waiting> {
        lock(&self.state).turns.remove(is_gone)
    }

    /// Puts a request back where it came from.
    pub fn put_back(&self, waiting: Waiting) {
        lock(&self.state).turns.put_back(waiting);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// When the engine's thread was gone, whoever waited or came later waited for ever.
    #[test]
    fn nobody_waits_for_an_engine_that_is_gone() {
        let inbox = Inbox::default();
        let (sender, results) = std::sync::mpsc::channel();
        let unload = || {
            let sender = sender.clone();
            let answer = Answer::new(move |result: Result<(), _>| sender.send(result).unwrap());
            Command::Unload("model".to_string(), answer)
        };
        inbox.command(unload());
        assert!(inbox.is_open() && results.try_recv().is_err());
        inbox.break_off();
        assert!(!inbox.is_open());
        inbox.command(unload());
        drop(unload());
        let told: Vec<EngineError> = results.try_iter().map(Result::unwrap_err).collect();
        assert!(
            matches!(
                &told[..],
                [EngineError::Broken, EngineError::Broken, EngineError::Internal(_)]
            ),
            "{told:?}"
        );
    }

    /// A pass of measuring holds as much as plans may pin: under memory pressure it went on to its
    /// end, on a slow board for a minute.
    #[test]
    fn leisure_ends_when_it_is_told_to() {
        let inbox = Inbox::default();
        let trial = inbox.leisure();
        assert!(!trial.is_cancelled());
        inbox.end_leisure();
        assert!(trial.is_cancelled());
        let next = inbox.leisure();
        assert!(!next.is_cancelled(), "each has an end of its own");
        inbox.command(Command::Replan);
        assert!(next.is_cancelled());
        assert!(inbox.leisure().is_cancelled(), "something waits");
    }
}

//! What waits for the engine's thread.

use super::error::EngineError;
use super::known::Known;
use super::model::Model;
use super::queue::Queue;
use super::request::{Answer, Cancel, PassStats, Reply, Request};
use crate::plan::Profile;
use crate::sys::lock::lock;
use std::collections::{BTreeSet, VecDeque};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Requests that may wait, for all models together.
pub const QUEUE_LIMIT: usize = 256;

/// Other things that may wait to be done.
const CONTROL_LIMIT: usize = 256;

/// A request that waits for its pass.
pub struct Waiting {
    pub request: Request,
    pub answer: Answer<Reply>,
    pub since: Instant,
}

impl Waiting {
    /// A request that waits from now on.
    pub fn new(request: Request, answer: Answer<Reply>) -> Waiting {
        Waiting { request, answer, since: Instant::now() }
    }
}

/// What is done between passes.
pub enum Control {
    /// Loads a model, anew where it is loaded.
    Load(String, Answer<Arc<Model>>),
    /// Loads a model where it is not loaded.
    Ready(String, Answer<Arc<Model>>),
    Unload(String, Answer<()>),
    Play(String, Answer<PassStats>),
    Profile(String, Answer<Arc<Profile>>),
    Recall(String, Answer<Known>),
    /// The budget has changed.
    Replan,
}

impl Control {
    /// Answers it with an error.
    pub fn refuse(self, error: EngineError) {
        match self {
            Control::Load(_, answer) | Control::Ready(_, answer) => answer.give(Err(error)),
            Control::Unload(_, answer) => answer.give(Err(error)),
            Control::Play(_, answer) => answer.give(Err(error)),
            Control::Profile(_, answer) => answer.give(Err(error)),
            Control::Recall(_, answer) => answer.give(Err(error)),
            Control::Replan => {}
        }
    }
}

/// What the engine's thread does next.
pub enum Turn {
    Control(Control),
    /// A pass for the requests of this model.
    Pass(String),
    /// Nothing, for a while.
    Idle,
}

/// Where requests wait, in the order in which they are served.
pub struct Inbox {
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    control: VecDeque<Control>,
    queue: Queue<Waiting>,
    held: bool,
    closed: bool,
    /// Whether a pass that waits comes before what else is to be done: after each of those.
    is_pass_next: bool,
    /// Closed because the engine's thread is gone.
    broken: bool,
    /// Ends what is done while nothing waits.
    leisure: Option<Cancel>,
}

impl State {
    /// What is to be done next: commands and passes by turns, so that neither puts off the other
    /// for ever. A new budget comes before all: nothing is begun under the old one.
    fn next_turn(&mut self) -> Option<Turn> {
        let is_pass_due = match self.control.front() {
            None => true,
            Some(Control::Replan) => false,
            Some(_) => self.is_pass_next,
        };
        if is_pass_due
            && !self.held
            && let Some(model) = self.queue.next_model()
        {
            self.is_pass_next = false;
            return Some(Turn::Pass(model));
        }
        let control = self.control.pop_front()?;
        self.is_pass_next = true;
        Some(Turn::Control(control))
    }

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

impl Default for Inbox {
    fn default() -> Inbox {
        let queue = Queue::new(QUEUE_LIMIT);
        let state = State {
            control: VecDeque::new(),
            queue,
            held: false,
            closed: false,
            is_pass_next: false,
            broken: false,
            leisure: None,
        };
        Inbox { state: Mutex::new(state), changed: Condvar::new() }
    }
}

impl Inbox {
    /// Requests that wait.
    pub fn len(&self) -> usize {
        lock(&self.state).queue.len()
    }

    /// Has a request wait. Returns those that do not, and why: the one that finds the queue full,
    /// or cancelled ones that made room for it.
    pub fn submit(&self, waiting: Waiting) -> Vec<(Waiting, EngineError)> {
        let mut state = lock(&self.state);
        if state.closed {
            return vec![(waiting, state.closed_error())];
        }
        state.end_leisure();
        let model = waiting.request.model.clone();
        let Err(waiting) = state.queue.push(&model, waiting) else {
            self.changed.notify_one();
            return vec![];
        };
        let gone = state.queue.remove(|waiting| waiting.request.cancel.is_cancelled());
        let mut answers: Vec<_> = gone.into_iter().map(|w| (w, EngineError::Cancelled)).collect();
        match state.queue.push(&model, waiting) {
            Ok(()) => self.changed.notify_one(),
            Err(waiting) => answers.push((waiting, EngineError::Busy { limit: QUEUE_LIMIT })),
        }
        answers
    }

    /// Has something done between passes, or refuses it.
    pub fn control(&self, control: Control) {
        let mut state = lock(&self.state);
        let has_room = state.control.len() < CONTROL_LIMIT || matches!(control, Control::Replan);
        if state.closed || !has_room {
            let error = match state.closed {
                true => state.closed_error(),
                false => EngineError::Busy { limit: CONTROL_LIMIT },
            };
            drop(state);
            return control.refuse(error);
        }
        // Who asks about plans can wait for a trial's end.
        if !matches!(control, Control::Recall(..)) {
            state.end_leisure();
        }
        match control {
            Control::Replan => state.control.push_front(control),
            control => state.control.push_back(control),
        }
        self.changed.notify_one();
    }

    /// The model whose requests are next, where any may be served now.
    pub fn next_model(&self) -> Option<String> {
        let mut state = lock(&self.state);
        let may_serve = !state.closed && !state.held;
        may_serve.then(|| state.queue.next_model()).flatten()
    }

    /// Models that requests wait for.
    pub fn models(&self) -> BTreeSet<String> {
        lock(&self.state).queue.models().cloned().collect()
    }

    /// Takes out who waits for a load of `model` too, up to where it is to be unloaded: one load
    /// answers them all.
    pub fn take_loads(&self, model: &str) -> Vec<Answer<Arc<Model>>> {
        let mut state = lock(&self.state);
        let is_unload = |c: &Control| matches!(c, Control::Unload(of, _) if of == model);
        let end = state.control.iter().position(is_unload).unwrap_or(state.control.len());
        let later = state.control.split_off(end);
        let mut answers = vec![];
        for control in std::mem::take(&mut state.control) {
            match control {
                Control::Load(of, answer) if of == model => answers.push(answer),
                other => state.control.push_back(other),
            }
        }
        state.control.extend(later);
        answers
    }

    /// Whether requests wait although the engine is idle.
    pub fn hold(&self, held: bool) {
        lock(&self.state).held = held;
        self.changed.notify_one();
    }

    /// Ends what is done while nothing waits.
    pub fn end_leisure(&self) {
        lock(&self.state).end_leisure();
    }

    /// No more is taken in; what waits is for [`Inbox::drain`].
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
        let (control, waiting) = self.drain();
        control.into_iter().for_each(|control| control.refuse(EngineError::Broken));
        waiting.into_iter().for_each(|waiting| waiting.answer.give(Err(EngineError::Broken)));
    }

    /// Whether anything is taken in.
    pub fn is_open(&self) -> bool {
        !lock(&self.state).closed
    }

    /// Waits for what is to be done next, which is [`Turn::Idle`] where there was nothing for as
    /// long as `patience`; `None` once closed.
    pub fn next(&self, patience: Option<Duration>) -> Option<Turn> {
        let mut state = lock(&self.state);
        loop {
            if state.closed {
                return None;
            }
            if let Some(turn) = state.next_turn() {
                return Some(turn);
            }
            state = match patience {
                None => self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
                Some(patience) => {
                    let waited = self.changed.wait_timeout(state, patience);
                    let (state, waited) = waited.unwrap_or_else(PoisonError::into_inner);
                    if waited.timed_out() {
                        return Some(Turn::Idle);
                    }
                    state
                }
            }
        }
    }

    /// What ends as soon as something waits, for what is done meanwhile. It has ended already
    /// where something does.
    pub fn leisure(&self) -> Cancel {
        let mut state = lock(&self.state);
        let leisure = Cancel::new();
        let waits = state.queue.len() > 0 && !state.held;
        if state.closed || waits || !state.control.is_empty() {
            leisure.cancel();
        } else {
            state.leisure = Some(leisure.clone());
        }
        leisure
    }

    /// The next request for `model`.
    pub fn pop(&self, model: &str) -> Option<Waiting> {
        lock(&self.state).queue.pop(model)
    }

    /// Puts a request back where it came from.
    pub fn put_back(&self, waiting: Waiting) {
        let model = waiting.request.model.clone();
        lock(&self.state).queue.put_back(&model, waiting);
    }

    /// Everything that waits, once closed.
    pub fn drain(&self) -> (Vec<Control>, Vec<Waiting>) {
        let mut state = lock(&self.state);
        let control = state.control.drain(..).collect();
        (control, state.queue.remove(|_| true))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Commands came before passes, all of them: who asked for loads again and again kept everybody
    /// else from being served.
    #[test]
    fn commands_and_passes_take_turns() {
        let inbox = Inbox::default();
        let request = || Request {
            model: "m".to_string(),
            inputs: vec![],
            outputs: vec![],
            cancel: Cancel::new(),
            trace: None,
        };
        let submit =
            || assert!(inbox.submit(Waiting::new(request(), Answer::new(drop))).is_empty());
        let unload = || inbox.control(Control::Unload("m".to_string(), Answer::new(drop)));
        let next = |expected: &str| {
            let turn = match inbox.next(Some(Duration::ZERO)).unwrap() {
                Turn::Control(Control::Replan) => "replan",
                Turn::Control(_) => "command",
                Turn::Pass(_) => inbox.pop("m").map_or("no request", |_| "pass"),
                Turn::Idle => "idle",
            };
            assert_eq!(turn, expected);
        };
        (0..3).for_each(|_| unload());
        (0..3).for_each(|_| submit());
        ["command", "pass", "command", "pass"].into_iter().for_each(next);
        // A new budget does not wait.
        inbox.control(Control::Replan);
        ["replan", "pass", "command", "idle"].into_iter().for_each(next);
        unload();
        submit();
        inbox.hold(true);
        ["command", "idle"].into_iter().for_each(next);
        inbox.hold(false);
        ["pass", "idle"].into_iter().for_each(next);
    }

    /// Sixty explicit loads of one model loaded it sixty times.
    #[test]
    fn loads_that_wait_together_are_taken_together() {
        let inbox = Inbox::default();
        let load = |model: &str| Control::Load(model.to_string(), Answer::new(drop));
        for control in [load("m"), load("other"), load("m"), load("m")] {
            inbox.control(control);
        }
        inbox.control(Control::Unload("m".to_string(), Answer::new(drop)));
        inbox.control(load("m"));
        assert_eq!(inbox.take_loads("m").len(), 3);
        let mut left = vec![];
        while let Some(Turn::Control(control)) = inbox.next(Some(Duration::ZERO)) {
            left.push(match control {
                Control::Load(of, _) => format!("load {of}"),
                Control::Unload(of, _) => format!("unload {of}"),
                _ => "another".to_string(),
            });
        }
        assert_eq!(left, ["load other", "unload m", "load m"]);
    }

    /// When the engine's thread was gone, whoever waited or came later waited for ever.
    #[test]
    fn nobody_waits_for_an_engine_that_is_gone() {
        let inbox = Inbox::default();
        let (sender, results) = std::sync::mpsc::channel();
        let unload = || {
            let sender = sender.clone();
            let answer = Answer::new(move |result: Result<(), _>| sender.send(result).unwrap());
            Control::Unload("model".to_string(), answer)
        };
        inbox.control(unload());
        assert!(inbox.is_open() && results.try_recv().is_err());
        inbox.break_off();
        assert!(!inbox.is_open());
        inbox.control(unload());
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
        inbox.control(Control::Replan);
        assert!(next.is_cancelled());
        assert!(inbox.leisure().is_cancelled(), "something waits");
    }
}

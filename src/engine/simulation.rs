//! Turns and memory, by chance: requests, loads, unloads, budgets, pressure and cancels come while
//! passes are under way, and somebody who does as the engine's thread takes turns. Everybody is
//! answered once and in order, lines take turns, and what is granted fits the budget.
//!
//! `HERMES_SEED` and `HERMES_SEEDS` are those of `tests/simulate.rs`.

use super::choice::Choice;
use super::command::Command;
use super::error::EngineError;
use super::request::{Answer, Asked, Cancel, Class, Line, PassStats, Reply, Request, Waiting};
use super::turns::{Left, Turn, Turns};
use crate::plan::Target;
use crate::stream::{Category, Grant, Ledger};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

const SEEDS: u64 = 1000;

const MODELS: usize = 4;

/// Lines of requests: for each model two, of those with a target and of those without.
const LINES: usize = 4 * MODELS;

/// Requests that share a pass.
const SEATS: usize = 5;

#[test]
fn everybody_is_answered_once_and_in_order_within_the_budget() {
    let number = |name: &str| std::env::var(name).ok().map(|value| value.parse::<u64>().unwrap());
    let seeds = match number("HERMES_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("HERMES_SEEDS").unwrap_or(SEEDS),
    };
    let mut answered = [0; 2];
    for seed in seeds {
        let play = || Simulation::new(seed).play();
        let [right, refused] = std::panic::catch_unwind(play).unwrap_or_else(|panic| {
            eprintln!("HERMES_SEED={seed} fails as this did");
            std::panic::resume_unwind(panic)
        });
        answered = [answered[0] + right, answered[1] + refused];
    }
    println!("{} answered, {} refused", answered[0], answered[1]);
    assert!(answered[0] > 0, "nobody was served");
}

/// What each request, and each command, was told.
type Told = Arc<Mutex<Vec<Vec<How>>>>;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum How {
    Answered,
    Refused,
    /// Dropped without an answer.
    BrokenOff,
}

struct Simulation {
    random: u64,
    now: Instant,
    turns: Turns,
    ledger: Arc<Ledger>,
    held_bytes: u64,
    told: Told,
    /// The number and line of each that waits or is served, and its way to be cancelled.
    requests: Vec<(usize, usize, Cancel)>,
    /// What each needs.
    needs: BTreeMap<usize, u64>,
    /// Loaded models, with when they were used.
    models: BTreeMap<usize, (u64, Grant)>,
    graph_bytes: [u64; MODELS],
    /// Requests of the pass under way with their line; it ends after some steps.
    pass: Vec<(usize, Waiting, Grant)>,
    steps_left: u64,
    replies: Vec<Reply>,
    received: Arc<Mutex<Vec<Reply>>>,
    /// By line: the request that waits longest, and passes of others since it does.
    since: [(Option<usize>, usize); LINES],
    last: [usize; LINES],
    is_held: bool,
    /// Trials that are left, and who waits for them.
    trials: u64,
    measured: Option<Command>,
    uses: u64,
}

impl Simulation {
    fn new(seed: u64) -> Simulation {
        let mut simulation = Simulation {
            random: seed,
            now: Instant::now(),
            turns: Turns::default(),
            ledger: Ledger::new(0),
            held_bytes: 0,
            told: Told::default(),
            requests: vec![],
            needs: BTreeMap::new(),
            models: BTreeMap::new(),
            graph_bytes: [0; MODELS],
            pass: vec![],
            steps_left: 0,
            replies: vec![],
            received: Arc::default(),
            since: [(None, 0); LINES],
            last: [0; LINES],
            is_held: false,
            trials: 0,
            measured: None,
            uses: 0,
        };
        simulation.ledger = Ledger::new(50 + simulation.below(200));
        simulation.graph_bytes = [(); MODELS].map(|()| 1 + simulation.below(80));
        simulation
    }

    fn below(&mut self, end: u64) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.random ^ (self.random >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % end
    }

    /// How many were answered, and refused.
    fn play(mut self) -> [usize; 2] {
        let steps = self.below(300);
        let calm = 1 + self.below(6);
        for _ in 0..steps {
            for _ in 0..self.below(3) {
                self.come(calm);
            }
            self.step();
        }
        self.turns.hold(false);
        self.is_held = false;
        match self.below(2) {
            // The engine ends.
            0 => {
                let (commands, waiting) = self.turns.drain();
                commands.into_iter().for_each(|command| command.refuse(EngineError::Cancelled));
                let cancelled = waiting.into_iter();
                cancelled.for_each(|waiting| waiting.refuse(EngineError::Cancelled));
                self.turns.done(self.now, Left::Nothing);
                self.finish_pass();
            }
            // Nobody comes any more.
            _ => {
                let mut left = 10_000;
                while self.turns.is_busy() || !self.pass.is_empty() {
                    self.step();
                    left -= 1;
                    assert!(left > 0, "somebody waits for ever");
                }
            }
        }
        self.end_measuring();
        assert!(!self.turns.is_busy());
        let told = self.told.lock().unwrap().clone();
        let is_told = |told: &Vec<How>| matches!(told[..], [How::Answered | How::Refused]);
        assert!(told.iter().all(is_told), "each is answered once: {told:?}");
        self.models.clear();
        self.replies.clear();
        self.received.lock().unwrap().clear();
        assert_eq!(self.ledger.held_in_all_bytes(), 0);
        let right = told.iter().filter(|told| told[0] == How::Answered).count();
        [right, told.len() - right]
    }

    /// Somebody who is told whether it went well.
    fn answer<T>(&mut self) -> (usize, Answer<T>) {
        let mut all = self.told.lock().unwrap();
        all.push(vec![]);
        let (number, told) = (all.len() - 1, Arc::clone(&self.told));
        let tell = move |result| {
            told.lock().unwrap()[number].push(match result {
                Ok(_) => How::Answered,
                Err(EngineError::Internal(_)) => How::BrokenOff,
                Err(_) => How::Refused,
            });
        };
        (number, Answer::new(tell))
    }

    /// Something comes from outside.
    fn come(&mut self, calm: u64) {
        let model = self.below(MODELS as u64) as usize;
        match self.below(8 + calm) {
            0 => {
                let (_, answer) = self.answer();
                self.command(Command::Load(model.to_string(), answer));
            }
            1 => {
                let (_, answer) = self.answer();
                self.command(Command::Unload(model.to_string(), answer));
            }
            2 => {
                let (_, answer) = self.answer();
                self.command(Command::Profile(model.to_string(), answer));
            }
            3 => {
                let bytes = 20 + self.below(250);
                self.ledger.set_budget(bytes);
                self.command(Command::Replan);
            }
            4 => {
                self.is_held = self.below(2) == 0;
                self.turns.hold(self.is_held);
            }
            5 if !self.requests.is_empty() => {
                let which = self.below(self.requests.len() as u64) as usize;
                self.requests[which].2.cancel();
            }
            6 => self.replies.clear(),
            // More than may wait.
            7 if self.below(100) == 0 => (0..300).for_each(|_| self.submit(4 * model)),
            _ => {
                let line = self.below(4) as usize;
                self.submit(4 * model + line);
            }
        }
    }

    fn command(&mut self, command: Command) {
        if let Some((command, error)) = self.turns.command(command) {
            command.refuse(error);
        }
    }

    /// The number of a line.
    fn number_of(line: &Line) -> usize {
        let model: usize = line.model.parse().unwrap();
        4 * model + 2 * usize::from(line.target.is_some()) + usize::from(line.class == Class::Bulk)
    }

    fn submit(&mut self, line: usize) {
        let cancel = Cancel::new();
        let received = Arc::clone(&self.received);
        let (number, told) = self.answer::<()>();
        let answer = Answer::new(move |result: Result<Reply, EngineError>| {
            let result = result.map(|reply| received.lock().unwrap().push(reply));
            told.give(result);
        });
        let bytes = 1 + self.below(60);
        self.needs.insert(number, bytes);
        let request = Request {
            model: (line / 4).to_string(),
            inputs: vec![],
            // Whose it is, for those who look at it.
            outputs: vec![number.to_string()],
            cancel: cancel.clone(),
            target: (line % 4 > 1).then(Target::default),
            trace: None,
        };
        self.requests.push((number, line, cancel));
        let class = if line.is_multiple_of(2) { Class::Interactive } else { Class::Bulk };
        for (waiting, error) in self.turns.submit(Waiting::new(request, class, answer)) {
            self.refuse(waiting, error);
        }
    }

    fn refuse(&mut self, waiting: Waiting, error: EngineError) {
        let number = number(&waiting);
        self.requests.retain(|(other, ..)| *other != number);
        waiting.refuse(error);
    }

    /// The engine's thread goes on.
    fn step(&mut self) {
        let passes = Duration::from_millis(self.below(80));
        self.now += passes;
        if !self.pass.is_empty() {
            self.steps_left = self.steps_left.saturating_sub(1);
            if self.steps_left == 0 {
                self.finish_pass();
            }
            return self.check();
        }
        let was_busy = self.turns.is_busy();
        let idle_at = self.turns.idle_at();
        let Some(turn) = self.turns.next(self.now) else {
            assert!(!was_busy, "there is something to do");
            assert!(idle_at.is_none_or(|at| at > self.now), "it is time to rest");
            return self.check();
        };
        match turn {
            Turn::Command(Command::Load(model, answer)) => {
                let others = self.turns.take_loads(&model);
                let model = model.parse().unwrap();
                self.models.remove(&model);
                self.load(model);
                // There is no model here that could be given.
                let all = std::iter::once(answer).chain(others);
                all.for_each(|answer| answer.give(Err(EngineError::Cancelled)));
            }
            Turn::Command(Command::Unload(model, answer)) => {
                self.models.remove(&model.parse().unwrap());
                answer.give(Ok(()));
            }
            Turn::Command(command @ Command::Profile(..)) => {
                assert!(self.trials == 0, "one model is measured after the other");
                self.trials = 1 + self.below(5);
                self.measured = Some(command);
            }
            Turn::Command(_) => {}
            Turn::Pass(line) => {
                assert!(!self.is_held, "requests are held");
                self.begin_pass(&line);
            }
            Turn::Trial => {
                self.trials -= 1;
                if self.trials == 0 {
                    self.end_measuring();
                }
            }
            Turn::Idle => {
                assert!(!was_busy && idle_at.is_some_and(|at| at <= self.now), "not yet");
            }
        }
        let left = if self.trials > 0 { Left::Trials } else { Left::Nothing };
        self.turns.done(self.now, left);
        self.check();
    }

    /// There is no profile here that could be told.
    fn end_measuring(&mut self) {
        self.measured.take().into_iter().for_each(|command| command.refuse(EngineError::Cancelled));
    }

    /// Grants what it can once all others that are idle have gone; whether it could.
    fn grant(&mut self, category: Category, bytes: u64, model: usize) -> Option<Grant> {
        loop {
            if let Ok(grant) = self.ledger.try_grant(category, bytes) {
                return Some(grant);
            }
            let others = self.models.iter().filter(|(other, _)| **other != model);
            let oldest = *others.min_by_key(|(_, (used, _))| *used)?.0;
            self.models.remove(&oldest);
        }
    }

    /// Loads a model if there is room; whether it is there.
    fn load(&mut self, model: usize) -> bool {
        let grant = self.grant(Category::Graph, self.graph_bytes[model], model);
        self.uses += 1;
        let uses = self.uses;
        grant.map(|grant| self.models.insert(model, (uses, grant))).is_some()
    }

    fn begin_pass(&mut self, line: &Line) {
        let model = line.model.parse().unwrap();
        let at = Simulation::number_of(line);
        for (other, since) in self.since.iter_mut().enumerate() {
            let mut waiting = self.requests.iter().filter(|(_, of, _)| *of == other);
            let first = waiting.next().map(|(number, ..)| *number);
            let waits = other != at && first.is_some() && since.0 == first;
            *since = (first, if waits { since.1 + 1 } else { 0 });
            assert!(since.1 < LINES, "line {other} waits while others have their passes");
        }
        if !self.models.contains_key(&model) && !self.load(model) {
            let waiting = self.turns.pop(line).expect("a turn has a request");
            return self.refuse(waiting, EngineError::Cancelled);
        }
        while self.pass.len() < SEATS
            && let Some(waiting) = self.turns.pop(line)
        {
            if waiting.request.cancel.is_cancelled() {
                self.refuse(waiting, EngineError::Cancelled);
                continue;
            }
            let bytes = self.needs[&number(&waiting)];
            let granted = match self.pass.is_empty() {
                true => self.grant(Category::Activations, bytes, model),
                false => self.ledger.try_grant(Category::Activations, bytes).ok(),
            };
            match granted {
                Some(grant) => self.pass.push((at, waiting, grant)),
                None if self.pass.is_empty() => self.refuse(waiting, EngineError::Cancelled),
                None => {
                    self.turns.put_back(waiting);
                    break;
                }
            }
        }
        self.steps_left = self.below(6);
        if self.steps_left == 0 {
            self.finish_pass();
        }
    }

    fn finish_pass(&mut self) {
        for (line, waiting, mut grant) in std::mem::take(&mut self.pass) {
            let number = number(&waiting);
            self.requests.retain(|(other, ..)| *other != number);
            assert!(self.last[line] <= number, "requests keep their order");
            self.last[line] = number;
            let mut held = grant.split(grant.bytes() / 3);
            held.turn_into(Category::Request);
            let Asked::Reply(answer) = waiting.asked else { unreachable!("no session is there") };
            answer.give(Ok(Reply {
                version: String::new(),
                choice: Choice::of(std::iter::empty(), None),
                outputs: vec![],
                stats: PassStats::default(),
                held: Arc::new(held),
            }));
        }
        self.replies.append(&mut self.received.lock().unwrap());
    }

    fn check(&mut self) {
        let graphs: u64 = self.models.values().map(|(_, grant)| grant.bytes()).sum();
        let pass: u64 = self.pass.iter().map(|(_, _, grant)| grant.bytes()).sum();
        let replies: u64 = self.replies.iter().map(|reply| reply.held.bytes()).sum();
        let held = self.ledger.held_in_all_bytes();
        assert_eq!(held, graphs + pass + replies);
        // Above a budget that has become smaller nothing is granted.
        assert!(held <= self.ledger.budget_bytes().max(self.held_bytes), "{held} bytes are held");
        self.held_bytes = held;
        let waiting = self.requests.len() - self.pass.len();
        assert_eq!(self.turns.waiting(), waiting, "nobody is lost");
    }
}

/// Whose request it is.
fn number(waiting: &Waiting) -> usize {
    waiting.request.outputs[0].parse().unwrap()
}

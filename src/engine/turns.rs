//! What the engine does next. Pure: no lock, no clock, no thread.

use super::command::Command;
use super::error::EngineError;
use super::model::Model;
use super::queue::Queue;
use super::request::{Answer, Class, Line, Waiting};
use super::sessions::SESSION_LIMIT;
use std::collections::{BTreeSet, VecDeque};
use std::mem::discriminant;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Requests that may wait, for all models together, those that are one of many aside.
pub const QUEUE_LIMIT: usize = 256;

/// Of requests that are one of many, those that may wait.
pub const BULK_LIMIT: usize = 128;

/// Commands that may wait.
const COMMAND_LIMIT: usize = 256;

/// Time without work after which the engine rests, and measures what was not measured yet.
const QUIET: Duration = Duration::from_millis(100);

/// What is done next.
pub enum Turn {
    Command(Command),
    /// A pass for the requests of this line.
    Pass(Line),
    /// A trial of a model that somebody waits for to be measured.
    Trial,
    /// What there is time for while nothing waits.
    Idle,
}

/// What a turn has left to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Left {
    Nothing,
    /// Trials that nobody waits for: they go on as long as nothing else is to be done.
    Leisure,
    /// Trials that somebody waits for: they take turns with all else.
    Trials,
}

/// Those who take turns, in a circle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lane {
    Command,
    Pass,
    Trial,
}

impl Lane {
    fn next(self) -> Lane {
        match self {
            Lane::Command => Lane::Pass,
            Lane::Pass => Lane::Trial,
            Lane::Trial => Lane::Command,
        }
    }
}

/// Commands, requests and trials that wait. Each of the three comes by turns, so that none puts off
/// another for ever; lines of requests take turns among themselves.
pub struct Turns {
    commands: VecDeque<Command>,
    queue: Queue<Line, Waiting>,
    /// Lines whose requests wait for a plan, which is being made.
    parked: Vec<Line>,
    /// Whether requests wait although the engine is idle.
    is_held: bool,
    is_measuring: bool,
    last: Lane,
    /// Whether the turn that was given last was work.
    is_work: bool,
    /// When it is time for what nobody waits for.
    idle_at: Option<Instant>,
}

impl Default for Turns {
    fn default() -> Turns {
        Turns {
            commands: VecDeque::new(),
            queue: Queue::default(),
            parked: vec![],
            is_held: false,
            is_measuring: false,
            last: Lane::Trial,
            is_work: false,
            idle_at: None,
        }
    }
}

impl Turns {
    /// Requests that wait.
    pub fn waiting(&self) -> usize {
        self.queue.len()
    }

    /// Models that requests wait for.
    pub fn models(&self) -> BTreeSet<String> {
        self.queue.lines().map(|(line, _)| line.model.clone()).collect()
    }

    /// Whether anything is to be done that somebody waits for.
    pub fn is_busy(&self) -> bool {
        !self.commands.is_empty() || self.is_measuring || self.has_passes()
    }

    /// Whether a pass is to be computed. Sessions go on while requests are held.
    fn has_passes(&self) -> bool {
        self.queue.lines().any(|(line, _)| is_served(line, self.is_held))
    }

    /// Has a request wait. Returns those that do not, and why: the one that finds the queue full,
    /// or cancelled ones that made room for it.
    pub fn submit(&mut self, waiting: Waiting) -> Vec<(Waiting, EngineError)> {
        let (class, mut told) = (waiting.class, vec![]);
        if self.is_full(class) {
            let gone = self.queue.remove(|waiting| waiting.request.cancel.is_cancelled());
            told.extend(gone.into_iter().map(|waiting| (waiting, EngineError::Cancelled)));
        }
        match self.is_full(class) {
            true => told.push((waiting, EngineError::Busy { limit: limit_of(class) })),
            false => self.queue.push(waiting.line(), waiting),
        }
        told
    }

    fn is_full(&self, class: Class) -> bool {
        let waiting = self.queue.lines().filter(|(line, _)| line.class == class);
        waiting.map(|(_, count)| count).sum::<usize>() >= limit_of(class)
    }

    /// Has a command wait. Returns one that cannot, and why.
    pub fn command(&mut self, command: Command) -> Option<(Command, EngineError)> {
        match command {
            // Nothing is begun under an old budget.
            Command::Replan => self.commands.push_front(command),
            // One does for all that came.
            Command::Retarget | Command::Narrow => {
                let came = discriminant(&command);
                self.commands.retain(|command| discriminant(command) != came);
                self.commands.push_back(command);
            }
            command if self.commands.len() >= COMMAND_LIMIT => {
                return Some((command, EngineError::Busy { limit: COMMAND_LIMIT }));
            }
            command => self.commands.push_back(command),
        }
        None
    }

    /// Takes out who waits for a load of `model` too, up to where it is to be unloaded: one load
    /// answers them all.
    pub fn take_loads(&mut self, model: &str) -> Vec<Answer<Arc<Model>>> {
        let is_unload = |c: &Command| matches!(c, Command::Unload(of, _) if of == model);
        let end = self.commands.iter().position(is_unload).unwrap_or(self.commands.len());
        let later = self.commands.split_off(end);
        let mut answers = vec![];
        for command in std::mem::take(&mut self.commands) {
            match command {
                Command::Load(of, answer) if of == model => answers.push(answer),
                other => self.commands.push_back(other),
            }
        }
        self.commands.extend(later);
        answers
    }

    /// Whether requests wait although the engine is idle.
    pub fn hold(&mut self, is_held: bool) {
        self.is_held = is_held;
    }

    /// A line has no turn until [`Turns::wake`] or [`Turns::wake_all`].
    pub fn park(&mut self, line: &Line) {
        if !self.parked.contains(line) {
            self.parked.push(line.clone());
        }
    }

    /// A line has its turns again.
    pub fn wake(&mut self, line: &Line) {
        self.parked.retain(|parked| parked != line);
    }

    /// All lines have their turns again.
    pub fn wake_all(&mut self) {
        self.parked.clear();
    }

    /// What is to be done now, if anything is. While a plan is made for requests that wait, nothing is
    /// measured: both would take longer.
    pub fn next(&mut self, now: Instant) -> Option<Turn> {
        if let Some(Command::Replan) = self.commands.front() {
            self.is_work = true;
            return self.commands.pop_front().map(Turn::Command);
        }
        let mut lane = self.last;
        for _ in 0..3 {
            lane = lane.next();
            let Some(turn) = self.of(lane) else { continue };
            self.last = lane;
            // Whoever asks about plans again and again puts off nothing.
            self.is_work = !matches!(turn, Turn::Command(Command::Recall(..)));
            return Some(turn);
        }
        self.is_work = false;
        if !self.parked.is_empty() {
            return None;
        }
        self.idle_at.take_if(|at| *at <= now).map(|_| Turn::Idle)
    }

    fn of(&mut self, lane: Lane) -> Option<Turn> {
        match lane {
            Lane::Command => {
                // One model is measured after the other.
                let waits = |c: &Command| self.is_measuring && matches!(c, Command::Profile(..));
                let at = self.commands.iter().position(|command| !waits(command))?;
                self.commands.remove(at).map(Turn::Command)
            }
            Lane::Pass => {
                let Turns { queue, parked, is_held, .. } = self;
                let has_turn = |line: &Line| is_served(line, *is_held) && !parked.contains(line);
                queue.next_line(has_turn).map(Turn::Pass)
            }
            Lane::Trial => (self.is_measuring && self.parked.is_empty()).then_some(Turn::Trial),
        }
    }

    /// The turn that was given last has been taken.
    pub fn done(&mut self, now: Instant, left: Left) {
        self.is_measuring = left == Left::Trials;
        match left {
            Left::Leisure => self.idle_at = Some(now),
            _ if self.is_work => self.idle_at = Some(now + QUIET),
            _ => {}
        }
    }

    /// When there is something to do even if nothing comes before.
    pub fn idle_at(&self) -> Option<Instant> {
        self.idle_at.filter(|_| self.parked.is_empty())
    }

    /// The next request of a line.
    pub fn pop(&mut self, line: &Line) -> Option<Waiting> {
        self.queue.pop(line)
    }

    /// Puts a request back where it came from.
    pub fn put_back(&mut self, waiting: Waiting) {
        self.queue.put_back(waiting.line(), waiting);
    }

    /// Whether anybody waits in a line.
    pub fn has(&self, line: &Line) -> bool {
        self.queue.lines().any(|(other, _)| other == line)
    }

    /// Takes out every request for which `is_gone` holds.
    pub fn remove(&mut self, is_gone: impl Fn(&Waiting) -> bool) -> Vec<Waiting> {
        self.queue.remove(is_gone)
    }

    /// Everything that waits.
    pub fn drain(&mut self) -> (Vec<Command>, Vec<Waiting>) {
        self.wake_all();
        (self.commands.drain(..).collect(), self.queue.remove(|_| true))
    }
}

/// Whether a line is served while requests are held.
fn is_served(line: &Line, is_held: bool) -> bool {
    !is_held || line.class == Class::Session
}

/// Requests of a class that may wait.
fn limit_of(class: Class) -> usize {
    match class {
        Class::Interactive => QUEUE_LIMIT,
        Class::Bulk => BULK_LIMIT,
        // Each has one step at a time.
        Class::Session => SESSION_LIMIT,
    }
}

#[cfg(test)]
mod tests {
    use super::super::request::{Cancel, Request};
    use super::*;
    use proptest::prelude::*;

    fn request(model: &str) -> Waiting {
        of_class(model, Class::Interactive)
    }

    fn of_class(model: &str, class: Class) -> Waiting {
        let request = Request {
            model: model.to_string(),
            inputs: vec![],
            outputs: vec![],
            cancel: Cancel::new(),
            target: None,
            trace: None,
        };
        Waiting::new(request, class, Answer::new(drop))
    }

    fn unload() -> Command {
        Command::Unload("m".to_string(), Answer::new(drop))
    }

    fn profile() -> Command {
        Command::Profile("m".to_string(), Answer::new(drop))
    }

    /// Takes the next turn as the engine does; what it was.
    fn take(turns: &mut Turns, now: Instant, left: Left) -> &'static str {
        let what = match turns.next(now) {
            None => return "nothing",
            Some(Turn::Command(Command::Replan)) => "replan",
            Some(Turn::Command(Command::Profile(..))) => "profile",
            Some(Turn::Command(Command::Recall(..))) => "recall",
            Some(Turn::Command(_)) => "command",
            Some(Turn::Pass(line)) => match turns.pop(&line).map(|waiting| waiting.class) {
                Some(Class::Interactive) => "pass",
                Some(Class::Bulk) => "bulk",
                Some(Class::Session) => "step",
                None => "no request",
            },
            Some(Turn::Trial) => "trial",
            Some(Turn::Idle) => "idle",
        };
        turns.done(now, left);
        what
    }

    fn check(turns: &mut Turns, now: Instant, left: Left, expected: &[&str]) {
        let found: Vec<_> = expected.iter().map(|_| take(turns, now, left)).collect();
        assert_eq!(found, expected);
    }

    /// Commands came before passes, all of them: who asked for loads again and again kept everybody
    /// else from being served.
    #[test]
    fn commands_and_passes_take_turns() {
        let (mut turns, now) = (Turns::default(), Instant::now());
        (0..3).for_each(|_| assert!(turns.command(unload()).is_none()));
        (0..3).for_each(|_| assert!(turns.submit(request("m")).is_empty()));
        check(&mut turns, now, Left::Nothing, &["command", "pass", "command", "pass"]);
        // A new budget does not wait.
        assert!(turns.command(Command::Replan).is_none());
        check(&mut turns, now, Left::Nothing, &["replan", "command", "pass", "nothing"]);
        assert!(turns.command(unload()).is_none());
        assert!(turns.submit(request("m")).is_empty());
        turns.hold(true);
        assert!(turns.is_busy());
        check(&mut turns, now, Left::Nothing, &["command", "nothing"]);
        assert!(!turns.is_busy(), "requests are held");
        turns.hold(false);
        check(&mut turns, now, Left::Nothing, &["pass", "nothing"]);
    }

    /// Who asked about one text waited behind the thousand of somebody else.
    #[test]
    fn one_of_many_lets_others_go_in_between() {
        let (mut turns, now) = (Turns::default(), Instant::now());
        let come = |turns: &mut Turns, class| {
            assert!(turns.submit(of_class("m", class)).is_empty());
        };
        (0..4).for_each(|_| come(&mut turns, Class::Bulk));
        check(&mut turns, now, Left::Nothing, &["bulk"]);
        come(&mut turns, Class::Interactive);
        come(&mut turns, Class::Interactive);
        check(&mut turns, now, Left::Nothing, &["bulk", "pass", "bulk", "pass", "bulk"]);
        assert_eq!(turns.models().len(), 0);
        // Each has places of its own.
        (0..BULK_LIMIT).for_each(|_| come(&mut turns, Class::Bulk));
        let refused = turns.submit(of_class("n", Class::Bulk));
        assert!(matches!(refused[..], [(_, EngineError::Busy { limit: BULK_LIMIT })]));
        (0..QUEUE_LIMIT).for_each(|_| come(&mut turns, Class::Interactive));
        assert_eq!(turns.submit(request("m")).len(), 1);
    }

    /// While a model was measured, a smaller budget, an unload, a load and a plan waited for the
    /// whole profile.
    #[test]
    fn trials_take_turns_with_commands_and_passes() {
        let (mut turns, now) = (Turns::default(), Instant::now());
        (0..2).for_each(|_| assert!(turns.command(profile()).is_none()));
        check(&mut turns, now, Left::Trials, &["profile", "trial", "trial"]);
        (0..2).for_each(|_| assert!(turns.command(unload()).is_none()));
        (0..2).for_each(|_| assert!(turns.submit(request("m")).is_empty()));
        let expected = ["command", "pass", "trial", "command", "pass", "trial", "trial"];
        check(&mut turns, now, Left::Trials, &expected);
        assert!(turns.command(Command::Replan).is_none());
        check(&mut turns, now, Left::Trials, &["replan"]);
        // The second model is measured when the first one is.
        check(&mut turns, now, Left::Nothing, &["trial", "profile", "nothing"]);
    }

    #[test]
    fn sessions_go_on_while_requests_are_held() {
        let (mut turns, now) = (Turns::default(), Instant::now());
        assert!(turns.submit(request("m")).is_empty());
        turns.hold(true);
        assert!(!turns.is_busy());
        check(&mut turns, now, Left::Nothing, &["nothing"]);
        assert!(turns.submit(of_class("m", Class::Session)).is_empty());
        assert!(turns.is_busy());
        check(&mut turns, now, Left::Nothing, &["step", "nothing"]);
        turns.hold(false);
        check(&mut turns, now, Left::Nothing, &["pass", "nothing"]);
    }

    #[test]
    fn nothing_is_measured_while_a_plan_is_made() {
        let (mut turns, now) = (Turns::default(), Instant::now());
        assert!(turns.command(profile()).is_none());
        check(&mut turns, now, Left::Trials, &["profile", "trial"]);
        assert!(turns.submit(request("m")).is_empty());
        assert!(turns.submit(request("n")).is_empty());
        let parked = request("m").line();
        turns.park(&parked);
        turns.park(&parked);
        check(&mut turns, now, Left::Trials, &["pass", "nothing"]);
        assert!(turns.is_busy() && turns.waiting() == 1);
        turns.wake(&parked);
        check(&mut turns, now, Left::Trials, &["trial", "pass", "trial"]);
        // Nor what there is leisure for.
        check(&mut turns, now, Left::Nothing, &["trial", "nothing"]);
        turns.park(&parked);
        check(&mut turns, now + QUIET, Left::Nothing, &["nothing"]);
        assert_eq!(turns.idle_at(), None);
        turns.wake_all();
        check(&mut turns, now + QUIET, Left::Nothing, &["idle"]);
    }

    /// Sixty explicit loads of one model loaded it sixty times.
    #[test]
    fn loads_that_wait_together_are_taken_together() {
        let mut turns = Turns::default();
        let load = |model: &str| Command::Load(model.to_string(), Answer::new(drop));
        for command in [load("m"), load("other"), load("m"), load("m"), unload(), load("m")] {
            assert!(turns.command(command).is_none());
        }
        assert_eq!(turns.take_loads("m").len(), 3);
        let left = turns.drain().0.into_iter().map(|command| match command {
            Command::Load(of, _) => format!("load {of}"),
            Command::Unload(of, _) => format!("unload {of}"),
            _ => "another".to_string(),
        });
        assert_eq!(left.collect::<Vec<_>>(), ["load other", "unload m", "load m"]);
    }

    #[test]
    fn the_engine_rests_once_when_it_was_quiet_and_goes_on_while_trials_are_left() {
        let (mut turns, start) = (Turns::default(), Instant::now());
        assert_eq!(turns.idle_at(), None);
        check(&mut turns, start, Left::Nothing, &["nothing"]);
        assert!(turns.command(unload()).is_none());
        check(&mut turns, start, Left::Nothing, &["command", "nothing"]);
        let quiet = turns.idle_at().unwrap();
        assert_eq!(quiet, start + QUIET);
        // Whoever asks about plans puts off nothing.
        let recall = Command::Recall("m".to_string(), Answer::new(drop));
        assert!(turns.command(recall).is_none());
        check(&mut turns, start + QUIET / 2, Left::Nothing, &["recall", "nothing"]);
        assert_eq!(turns.idle_at(), Some(quiet));
        check(&mut turns, quiet, Left::Leisure, &["idle", "idle", "idle"]);
        assert!(turns.submit(request("m")).is_empty());
        check(&mut turns, quiet, Left::Nothing, &["pass", "nothing"]);
        check(&mut turns, quiet + QUIET, Left::Nothing, &["idle", "nothing"]);
        assert_eq!(turns.idle_at(), None);
    }

    #[test]
    fn what_does_not_fit_is_told_and_a_new_budget_always_fits() {
        let mut turns = Turns::default();
        for _ in 0..COMMAND_LIMIT {
            assert!(turns.command(unload()).is_none());
        }
        let refused = turns.command(unload()).map(|(_, error)| error);
        assert!(matches!(refused, Some(EngineError::Busy { limit: COMMAND_LIMIT })));
        assert!(turns.command(Command::Replan).is_none());
        let cancelled = request("m");
        cancelled.request.cancel.cancel();
        assert!(turns.submit(cancelled).is_empty());
        (1..QUEUE_LIMIT).for_each(|_| assert!(turns.submit(request("m")).is_empty()));
        let told = |turns: &mut Turns| -> Vec<EngineError> {
            turns.submit(request("m")).into_iter().map(|(_, error)| error).collect()
        };
        assert!(matches!(told(&mut turns)[..], [EngineError::Cancelled]));
        assert!(matches!(told(&mut turns)[..], [EngineError::Busy { limit: QUEUE_LIMIT }]));
        let (commands, waiting) = turns.drain();
        assert_eq!((commands.len(), waiting.len()), (COMMAND_LIMIT + 1, QUEUE_LIMIT));
        assert!(!turns.is_busy());
    }

    proptest! {
        /// Whatever comes, whoever waits has a turn within three of them, but for new budgets.
        #[test]
        fn nobody_is_put_off(comes in prop::collection::vec(0u8..4, 0..80)) {
            let (mut turns, now) = (Turns::default(), Instant::now());
            let mut since = [0; 2];
            for what in comes {
                match what {
                    0 => prop_assert!(turns.command(unload()).is_none()),
                    1 => prop_assert!(turns.submit(request("m")).is_empty()),
                    _ => {}
                }
                let waits = [!turns.commands.is_empty(), turns.waiting() > 0];
                let taken = take(&mut turns, now, Left::Trials);
                for (lane, name) in ["command", "pass"].into_iter().enumerate() {
                    since[lane] = if waits[lane] && taken != name { since[lane] + 1 } else { 0 };
                    prop_assert!(since[lane] < 3, "{} waits while {} is done", name, taken);
                }
            }
        }
    }
}

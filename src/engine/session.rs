//! A session: a thread that has a text read by passes, token after token, and lets somebody decide
//! in between. It holds keys and values, no model and no turn of the engine.

use super::ahead::Ahead;
use super::command::Command;
use super::error::EngineError;
use super::generation::{Decide, Ended, Generated, Next, Prompt, SessionStats};
use super::opening::{Opened, Opening};
use super::past::Past;
use super::pressure::Pressure;
use super::request::{Answer, Cancel, Request, Waiting};
use super::room::{Room, TICK};
use super::sessions::{Place, SESSION_LIMIT};
use super::stats::{CounterSet, Counters};
use super::step::{Step, Stepped, Tenancy, Tenant};
use super::targets::TargetKey;
use super::texts::Text;
use crate::plan::Target;
use crate::stream::Grant;
use crate::sys::panics;
use crossbeam_channel::{Receiver, RecvTimeoutError, bounded};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Stack of a session's thread, on which whoever decides runs.
const STACK_BYTES: usize = 512 << 10;

/// Share of the budget that texts may be kept in: half of what pins leave to others.
const KEPT_SHARE: u64 = 8;

/// Longest wait for sessions to end when the engine does.
pub const LEAVE: Duration = Duration::from_secs(1);

/// Has a text generated, on a thread of its own; `answer` is given from there.
pub fn begin(
    room: &Arc<Room>,
    counters: &Arc<CounterSet>,
    prompt: Prompt,
    answer: Answer<Generated>,
) {
    let Some(place) = room.sessions.enter() else {
        if let Some(counters) = counters.known(&prompt.model) {
            Counters::add(&counters.refused, 1);
        }
        return answer.give(Err(EngineError::Busy { limit: SESSION_LIMIT }));
    };
    let (sender, receiver) = bounded(1);
    let (room, counters) = (Arc::clone(room), Arc::clone(counters));
    let spawned = std::thread::Builder::new()
        .name(format!("session-{}", place.number))
        .stack_size(STACK_BYTES)
        .spawn(move || {
            let Ok((place, prompt, answer)) = receiver.recv() else { return };
            let (generated, model) = generate(&room, &counters, place, prompt);
            count(&counters, &model, &generated);
            let answer: Answer<Generated> = answer;
            answer.give(generated);
        });
    match spawned {
        // It lives until it has been told this.
        Ok(_) => drop(sender.send((place, prompt, answer))),
        Err(error) => answer.give(Err(EngineError::Thread(error))),
    }
}

/// Lives a session's life; nothing that it held is left when this returns.
fn generate(
    room: &Arc<Room>,
    counters: &CounterSet,
    place: Place,
    prompt: Prompt,
) -> (Result<Generated, EngineError>, String) {
    let Prompt { model, version, ids, max_tokens, context, target, decide, .. } = prompt;
    let Prompt { is_usual, own_bytes, cancel, deadline, .. } = prompt;
    let ids: Arc<[u32]> = ids.into();
    let opening = Opening {
        model: model.clone(),
        version,
        ids: Arc::clone(&ids),
        target: target.as_ref().map(TargetKey::of),
        max_tokens,
        is_usual,
        context,
        own_bytes,
    };
    let session = Session { room, place, model, target, cancel, deadline };
    let generated = session.open(&opening).and_then(|opened| {
        let counters = counters.of(&session.model);
        Counters::add(&counters.sessions, 1);
        Counters::add(&counters.prompt_tokens, ids.len() as u64);
        Counters::add(&counters.prefix_hits, u64::from(opened.cached_tokens > 0));
        Counters::add(&counters.cached_tokens, opened.cached_tokens as u64);
        let generated = session.live(opened, &ids, decide);
        if let Ok(Generated { ids, stats, .. }) = &generated {
            Counters::add(&counters.generated_tokens, ids.len() as u64);
            Counters::add(&counters.proposed_tokens, stats.proposed_tokens as u64);
            Counters::add(&counters.accepted_tokens, stats.accepted_tokens as u64);
        }
        generated
    });
    (generated, session.model)
}

/// Counts it as a request, where its model is known.
fn count(counters: &CounterSet, model: &str, generated: &Result<Generated, EngineError>) {
    let Some(counters) = counters.known(model) else { return };
    let counter = match generated {
        Err(EngineError::Cancelled) => &counters.cancelled,
        Err(_) => &counters.failed,
        Ok(generated) => match generated.ended {
            Ended::Decided | Ended::Length => &counters.answered,
            Ended::Cancelled | Ended::Deadline => &counters.cancelled,
            Ended::Unloaded | Ended::Replaced | Ended::Failed(_) => &counters.failed,
        },
    };
    Counters::add(counter, 1);
}

/// What a session is, but for what it has read.
struct Session<'a> {
    room: &'a Arc<Room>,
    place: Place,
    model: String,
    target: Option<Target>,
    cancel: Cancel,
    deadline: Option<Instant>,
}

impl Session<'_> {
    /// Has all granted that it will hold. What does not fit now waits for what others give back, as
    /// long as somebody waits for it, in the order in which sessions came.
    fn open(&self, opening: &Opening) -> Result<Opened, EngineError> {
        let since = Instant::now();
        loop {
            if self.is_over() {
                self.place.leave_door();
                return Err(EngineError::Cancelled);
            }
            let returns = self.room.ledger.returns();
            if self.place.is_next() && self.room.pressure.get() < Pressure::Hold {
                match self.ask(|answer| Command::Open(opening.clone(), answer)) {
                    Err(EngineError::OverBudget(refused)) if refused.can_fit() => {}
                    opened => {
                        self.place.leave_door();
                        let queue_us = since.elapsed().as_micros() as u64;
                        return opened.map(|opened| Opened { queue_us, ..opened });
                    }
                }
            }
            self.room.ledger.wait_for_return(returns, TICK);
        }
    }

    /// Reads the prompt, and generates until there is a reason to end.
    ///
    /// # Errors
    /// Why there is nothing to be decided on.
    fn live(
        &self,
        opened: Opened,
        prompt: &[u32],
        mut decide: Box<dyn Decide>,
    ) -> Result<Generated, EngineError> {
        let Opened { version, tenancy, past, cached_tokens, max_tokens, chunk, needs, .. } = opened;
        let (mut grant, queue_us, most_rows) = (opened.grant, opened.queue_us, opened.most_rows);
        let began = Instant::now();
        let mut stats = SessionStats {
            prompt_tokens: prompt.len(),
            cached_tokens,
            queue_us,
            held_bytes: grant.bytes(),
            ..SessionStats::default()
        };
        let mut read = |ids: &[u32], rows: usize, past: Past, work_bytes: u64| {
            let (tenancy, ids) = (tenancy.clone(), ids.to_vec());
            let step = Step { session: self.place.number, tenancy, ids, rows, past, work_bytes };
            let stepped = self.step(step)?;
            stats.passes += 1;
            stats.bytes_read += stepped.bytes_read;
            Ok::<Stepped, EngineError>(stepped)
        };
        let past = past.with_room(cached_tokens, prompt.len() + max_tokens);
        let mut past = past.map_err(|error| EngineError::Internal(format!("{error:#}")))?;
        // The next token follows the last one: what is before it needs no logits.
        let mut left = &prompt[cached_tokens..];
        while left.len() > chunk {
            let (ids, rest) = left.split_at(chunk);
            past = read(ids, 0, past, needs.prefill_bytes)?.past;
            left = rest;
        }
        let stepped = read(left, 1, past, needs.prefill_bytes)?;
        let prefill_us = began.elapsed().as_micros() as u64;
        // Shrinking is always granted.
        let _ = grant.resize(needs.lasting_bytes());
        let choice = stepped.choice;
        let mut ahead = Ahead::of(prompt, stepped, most_rows);
        let ended = loop {
            let left = max_tokens - (ahead.text.len() - prompt.len());
            if left == 0 {
                break Ended::Length;
            }
            if self.is_over() {
                break Ended::Cancelled;
            }
            match panics::caught(|| decide.next(ahead.logits())) {
                Ok(Next::Token(id)) if ahead.goes_on(id) || left == 1 => continue,
                Ok(Next::Token(_)) => {}
                Ok(Next::End) => break Ended::Decided,
                Err(text) => break Ended::Failed(EngineError::Internal(text)),
            }
            let (ids, past) = match ahead.next_step(left - 2) {
                Ok(step) => step,
                Err(error) => break Ended::Failed(EngineError::Internal(format!("{error:#}"))),
            };
            let since = Instant::now();
            match read(&ids, ids.len(), past, needs.step_bytes) {
                Ok(stepped) => ahead.was_read(stepped, since.elapsed()),
                Err(error) => break Ended::by(error),
            }
        };
        let ended = match ended {
            Ended::Cancelled if self.is_late() => Ended::Deadline,
            ended => ended,
        };
        stats.prefill_us = prefill_us;
        stats.proposed_tokens = ahead.proposed_tokens;
        stats.accepted_tokens = ahead.accepted_tokens;
        let ids = ahead.text[prompt.len()..].to_vec();
        if let Some((text, past)) = ahead.finish() {
            self.keep(&tenancy, text, past, grant);
        }
        stats.decode_us = (began.elapsed().as_micros() as u64).saturating_sub(prefill_us);
        Ok(Generated { version, choice, ids, ended, stats })
    }

    /// Keeps the text for those that begin as it does, if memory suffices.
    fn keep(&self, tenancy: &Tenancy, mut ids: Vec<u32>, past: Past, mut grant: Grant) {
        let room = self.room;
        if room.pressure.get() > Pressure::None || room.ledger.is_exceeded() {
            return;
        }
        // What it had room for beyond goes.
        let tokens = past.tokens;
        let Ok(past) = past.with_room(tokens, tokens) else { return };
        ids.shrink_to_fit();
        // Shrinking is always granted.
        let bytes = past.bytes() + (ids.len() * size_of::<u32>()) as u64;
        if grant.resize(bytes).is_err() {
            return;
        }
        let (model, target) = (self.model.clone(), self.target.as_ref().map(TargetKey::of));
        let text = Text { model, tenant: tenancy.tenant(), target, ids, past, grant };
        let is_loaded = |tenant: &Tenant| {
            let loaded = room.residents.get(&self.model);
            loaded.is_some_and(|loaded| loaded.tenancy.tenant() == *tenant)
        };
        room.texts.keep(text, room.ledger.budget_bytes() / KEPT_SHARE, is_loaded);
    }

    /// Has tokens read by the next pass.
    fn step(&self, step: Step) -> Result<Stepped, EngineError> {
        let (sender, receiver) = bounded(1);
        // Who waits for it is this thread.
        let answer = Answer::new(move |stepped| drop(sender.send(stepped)));
        let request = Request {
            model: self.model.clone(),
            inputs: vec![],
            outputs: vec![],
            target: self.target,
            cancel: self.cancel.clone(),
            trace: None,
        };
        let waiting = Waiting::of_step(request, Box::new(step), answer);
        let refused = self.room.inbox.submit(waiting);
        self.place.has_decided();
        refused.into_iter().for_each(|(waiting, error)| waiting.refuse(error));
        self.wait(&receiver)
    }

    /// Has something done by the engine.
    fn ask<T: Send + 'static>(
        &self,
        command: impl FnOnce(Answer<T>) -> Command,
    ) -> Result<T, EngineError> {
        let (sender, receiver) = bounded(1);
        let answer = Answer::new(move |result| drop(sender.send(result)));
        self.room.inbox.command(command(answer));
        self.wait(&receiver)
    }

    /// Waits for an answer, which comes in any case; what is late is cancelled.
    fn wait<T>(&self, receiver: &Receiver<Result<T, EngineError>>) -> Result<T, EngineError> {
        let Some(deadline) = self.deadline else {
            return receiver.recv().unwrap_or(Err(EngineError::Cancelled));
        };
        match receiver.recv_deadline(deadline) {
            Ok(result) => result,
            Err(RecvTimeoutError::Disconnected) => Err(EngineError::Cancelled),
            Err(RecvTimeoutError::Timeout) => {
                self.cancel.cancel();
                receiver.recv().unwrap_or(Err(EngineError::Cancelled))
            }
        }
    }

    fn is_late(&self) -> bool {
        self.deadline.is_some_and(|deadline| Instant::now() >= deadline)
    }

    /// Whether nobody waits for it any more.
    fn is_over(&self) -> bool {
        self.cancel.is_cancelled() || self.is_late() || self.room.pulse.stopping.is_cancelled()
    }
}

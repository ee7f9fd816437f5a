//! Admits requests to passes, and answers them.

use super::error::EngineError;
use super::library::Library;
use super::model::Model;
use super::needs::{REQUEST_BYTES, needed_bytes};
use super::pass::{Outputs, Pass, Seat, Wanted};
use super::past::Past;
use super::planning::Performed;
use super::pressure::Pressure;
use super::request::{Asked, Class, Line, PassStats, Reply, Waiting};
use super::room::gone;
use super::signature::longest_open;
use super::stage::Stage;
use super::stats::{CounterSet, Counters};
use super::step::{Step, Stepped};
use crate::stream::{Category, FlowCounters, Grant};
use crate::sys::heap;
use crate::wire::Array;
use std::sync::Arc;
use std::time::Instant;

/// Most requests that share a pass: more gain little, and delay the first of them.
const MAX_SEATS: usize = 32;

/// What admits requests, and has their passes performed.
pub(super) struct Admission<'a> {
    pub stage: &'a mut Stage,
    pub counters: &'a CounterSet,
    pub library: &'a Library,
    /// Before the store was asked which version is served.
    pub asked: Instant,
}

/// A request that was admitted to a pass.
struct Admitted {
    waiting: Waiting,
    /// How long it is.
    tokens: u64,
    /// One for each row of its batch.
    seats: Vec<Seat>,
    /// Bytes they hold once they share the pass.
    together_bytes: u64,
    grant: Grant,
    /// What was granted for its passes before.
    own_bytes: u64,
}

impl Admitted {
    /// What it may hold in the pass.
    fn granted_bytes(&self) -> u64 {
        self.grant.bytes() + self.own_bytes
    }
}

/// Why a request that waits is not admitted.
enum Refusal {
    /// It never can be.
    Error(EngineError),
    /// Not to this pass: it would not fit beside the others.
    Later,
}

impl Admission<'_> {
    /// One pass for the requests that wait in a model's line, as many as fit. What is returned is to
    /// be compared with what was forecast.
    pub fn pass(&mut self, model: &Arc<Model>, line: &Line) -> Option<Performed> {
        let mut seats = vec![];
        self.admit(model, line, &mut seats);
        let first = seats.first()?;
        let trace = first.waiting.request.trace.clone();
        let began = Instant::now();
        let reel = model.reel();
        let flow = match self.stage.begin_pass(model, &reel, trace.clone()) {
            Ok(flow) => flow,
            Err(error) => {
                // In their order, the first in front: it is told, the others find out themselves.
                let inbox = &self.stage.room().inbox;
                seats.into_iter().rev().for_each(|seat| inbox.put_back(seat.waiting));
                self.fail_next(line, error);
                return None;
            }
        };
        if line.class == Class::Session {
            self.stage.room().sessions.gather(model.name());
        }
        // Until the first block is there, others may join: they cost no waiting.
        if !reel.blocks().is_empty() && flow.wait_for(0).is_ok() {
            self.admit(model, line, &mut seats);
        }
        let granted_bytes: u64 = seats.iter().map(Admitted::granted_bytes).sum();
        let spare = self.stage.hold.keep_freed(granted_bytes);
        let pass = self.stage.pass(model, &reel, flow, trace);
        let performed = self.run(&pass, began, seats);
        drop(pass);
        drop(spare);
        self.stage.room().shelve(granted_bytes);
        self.stage.hold.settle_losses();
        performed
    }

    /// Admits requests of a line in their order; those that cannot be served are answered.
    fn admit(&mut self, model: &Arc<Model>, line: &Line, seats: &mut Vec<Admitted>) {
        let counters = self.counters.of(model.name());
        let traced = |waiting: &Waiting| waiting.request.trace.is_some();
        while count(seats) < MAX_SEATS
            && !seats.first().is_some_and(|first| traced(&first.waiting))
            && let Some(mut waiting) = self.stage.room().inbox.pop(line)
        {
            let tokens = match waiting.step() {
                Some(step) => step.ids.len() as u64,
                None => model.signature.longest_open(&waiting.request.inputs),
            };
            let is_over = line.class == Class::Bulk
                && !seats.is_empty()
                && tokens_of(seats).saturating_add(tokens) > model.pace.tokens();
            if is_over {
                return self.stage.room().inbox.put_back(waiting);
            }
            // A trace is of a pass of its own.
            if traced(&waiting) && !seats.is_empty() {
                return self.stage.room().inbox.put_back(waiting);
            }
            if waiting.request.cancel.is_cancelled() {
                // A session counts itself.
                if waiting.step().is_none() {
                    Counters::add(&counters.cancelled, 1);
                }
                waiting.refuse(EngineError::Cancelled);
                continue;
            }
            if waiting.step().is_some() {
                match self.seat_step(model, &mut waiting) {
                    Ok((seat, grant)) => {
                        let own_bytes = waiting.step().map_or(0, |step| step.work_bytes);
                        let (together_bytes, taken) = (0, vec![seat]);
                        seats.push(Admitted {
                            waiting,
                            tokens,
                            seats: taken,
                            together_bytes,
                            grant,
                            own_bytes,
                        });
                    }
                    Err(error) => waiting.refuse(error),
                }
                continue;
            }
            // Who comes once a version is removed or replaced is not answered by it any more.
            if waiting.since > self.asked && !self.is_served(model) {
                return self.stage.room().inbox.put_back(waiting);
            }
            match self.seat(model, &waiting, seats) {
                Ok((taken, together_bytes, grant)) => seats.push(Admitted {
                    waiting,
                    tokens,
                    seats: taken,
                    together_bytes,
                    grant,
                    own_bytes: 0,
                }),
                Err(Refusal::Later) => return self.stage.room().inbox.put_back(waiting),
                Err(Refusal::Error(error)) => {
                    Counters::add(&counters.failed, 1);
                    waiting.refuse(error);
                }
            }
        }
    }

    /// A session's seat: all that it will hold was granted when it was opened.
    fn seat_step(
        &self,
        model: &Arc<Model>,
        waiting: &mut Waiting,
    ) -> Result<(Seat, Grant), EngineError> {
        model.check_service()?;
        let cancel = waiting.request.cancel.clone();
        let Asked::Step(step, _) = &mut waiting.asked else {
            return Err(EngineError::Internal("a request is no step".to_string()));
        };
        if !model.tenancy.is(&step.tenancy) {
            return Err(gone(model.name(), Some(model)));
        }
        let rows = step.rows;
        let inputs = step.take_inputs(&model.decoding()?.decoder, &model.dir.manifest.inputs);
        let inputs = inputs.map_err(|error| EngineError::Internal(format!("{error:#}")))?;
        let grant = self.stage.room().ledger.try_grant(Category::Activations, 0)?;
        Ok((Seat { inputs, wanted: Wanted::Values { rows }, cancel }, grant))
    }

    /// Whether the store still serves a model as it is loaded, asked for whoever has come since.
    fn is_served(&mut self, model: &Model) -> bool {
        self.asked = Instant::now();
        self.library.serving(model.name()).ok().as_ref() == Some(&model.serving)
    }

    fn seat(
        &mut self,
        model: &Arc<Model>,
        waiting: &Waiting,
        seats: &mut [Admitted],
    ) -> Result<(Vec<Seat>, u64, Grant), Refusal> {
        let request = &waiting.request;
        model.check_service().map_err(Refusal::Error)?;
        let given = model.signature.check_inputs(&request.inputs).map_err(Refusal::Error)?;
        if !seats.is_empty() && count(seats) + given.rows > MAX_SEATS {
            return Err(Refusal::Later);
        }
        let outputs = model.signature.pick_outputs(&request.outputs).map_err(Refusal::Error)?;
        let footprint = model.footprint(&given.row_shapes());
        let shared_bytes = if seats.is_empty() { model.decoding_bytes() } else { 0 };
        let together_bytes =
            footprint.together_bytes.saturating_mul(given.rows as u64).saturating_add(shared_bytes);
        let grant = match seats {
            [] => {
                let inputs_bytes: u64 =
                    request.inputs.iter().map(|(_, a)| a.bytes.len() as u64).sum();
                let own_bytes = model.graph_bytes() + inputs_bytes + REQUEST_BYTES;
                let bytes = if given.rows > 1 { together_bytes } else { footprint.alone_bytes };
                self.stage
                    .hold
                    .grant_alone(model, bytes, own_bytes, &request.cancel)
                    .map_err(Refusal::Error)?
            }
            seats => {
                // Whoever waits for room has waited for the last pass already.
                if together_bytes > self.stage.room().ledger.unclaimed_bytes() {
                    return Err(Refusal::Later);
                }
                for seat in &mut *seats {
                    let together_bytes = seat.together_bytes;
                    seat.grant.resize(together_bytes).map_err(|_| Refusal::Later)?;
                }
                let grant =
                    self.stage.room().ledger.try_grant(Category::Activations, together_bytes);
                grant.map_err(|_| Refusal::Later)?
            }
        };
        let rows = given.arrange().map_err(Refusal::Error)?;
        let seat = |inputs| Seat {
            inputs,
            wanted: Wanted::Arrays(outputs.clone()),
            cancel: request.cancel.clone(),
        };
        Ok((rows.into_iter().map(seat).collect(), together_bytes, grant))
    }

    /// Runs the pass that began loading at `began`, and answers everybody in it.
    fn run(&self, pass: &Pass, began: Instant, admitted: Vec<Admitted>) -> Option<Performed> {
        let Pass { model, reel, flow, .. } = pass;
        let room = self.stage.room();
        let counters = self.counters.of(model.name());
        let all_tokens = tokens_of(&admitted);
        let mut asked = vec![];
        let mut seats = vec![];
        // Of one that has the pass to itself.
        let tokens = match &admitted[..] {
            [Admitted { seats, .. }] if seats.len() == 1 => model.tokens_of(&seats[0].inputs),
            _ => None,
        };
        let granted_bytes: u64 = admitted.iter().map(Admitted::granted_bytes).sum();
        for Admitted { waiting, seats: taken, grant, .. } in admitted {
            asked.push((waiting, taken[0].wanted.clone(), taken.len(), grant));
            seats.extend(taken);
        }
        let rows = seats.len();
        let held_bytes = heap::live_bytes();
        heap::reset_peak();
        let ran = self.stage.perform(pass, seats);
        let latency_us = began.elapsed().as_micros() as u64;
        let peak_bytes = heap::peak_bytes().saturating_sub(held_bytes);
        log::debug!("a pass held {peak_bytes} bytes at its peak, {granted_bytes} were granted");
        let failure = flow.failure();
        reel.pins.take(flow.end());
        // The level may have risen, or the budget fallen, since the pass was told what to keep.
        if room.pressure.get() > Pressure::None || room.ledger.is_exceeded() {
            reel.pins.release();
        }
        let counted = flow.counters();
        count_pass(&counters, latency_us, asked.len(), counted);
        if asked.first().is_some_and(|(waiting, ..)| waiting.class == Class::Bulk) {
            let loading_us = counted.stall_us.max(counted.loader_cpu_us);
            model.pace.learn(all_tokens, latency_us, loading_us);
        }
        if asked.first().is_some_and(|(waiting, ..)| waiting.class == Class::Session) {
            room.sessions.note_pass(latency_us);
        }
        if let Some(failure) = failure.filter(|_| !room.pulse.stopping.is_cancelled()) {
            model.fail(&failure);
        }
        let results: Vec<Result<Outputs, EngineError>> = ran.unwrap_or_else(|text| {
            log::error!("a pass of model {} failed within: {text}", model.name());
            (0..rows).map(|_| Err(EngineError::Internal(text.clone()))).collect()
        });
        let lacks_room = |result: &Result<_, _>| match result {
            Err(EngineError::Decided { refused, .. }) => refused.can_fit(),
            _ => false,
        };
        // Whoever comes again may find it.
        if results.iter().any(lacks_room) {
            room.make_room(model.name());
        }
        let seats = asked.len();
        let judged = tokens.filter(|_| matches!(&results[..], [Ok(_)]));
        let mut results = results.into_iter();
        for (waiting, wanted, rows, grant) in asked {
            let Waiting { request, asked, since, .. } = waiting;
            let rows: Vec<_> = results.by_ref().take(rows).collect();
            let queue_us = began.saturating_duration_since(since).as_micros() as u64;
            Counters::add(&counters.queue_us, queue_us);
            let stats = PassStats {
                queue_us,
                seats,
                latency_us,
                stall_us: counted.stall_us,
                bytes_read: counted.bytes_read,
                window_peak_bytes: counted.window_peak_bytes,
                loader_cpu_us: counted.loader_cpu_us,
                activation_bytes: grant.bytes(),
            };
            match (asked, wanted) {
                (Asked::Reply(answer), Wanted::Arrays(outputs)) => {
                    let reply = self.reply(pass, rows, &outputs, stats, grant);
                    answer.give(reply);
                }
                (Asked::Step(step, answer), _) => {
                    drop(grant);
                    let stepped = stepped(pass, &step, rows, counted.bytes_read);
                    room.sessions.decides(step.session, &request.model);
                    answer.give(stepped);
                }
                (Asked::Reply(answer), Wanted::Values { .. }) => drop(answer),
            }
        }
        judged.map(|tokens| Performed { tokens, latency_us, counted })
    }

    /// What is answered to a request of so many rows.
    fn reply(
        &self,
        pass: &Pass,
        rows: Vec<Result<Outputs, EngineError>>,
        outputs: &[usize],
        stats: PassStats,
        mut grant: Grant,
    ) -> Result<Reply, EngineError> {
        let Pass { model, reel, .. } = pass;
        let arrays = |row| match row {
            Ok(Outputs::Arrays(arrays)) => Ok(arrays),
            Ok(Outputs::Values(_)) => Ok(vec![]),
            Err(error) => Err(error),
        };
        let rows: Result<Vec<Vec<Array>>, EngineError> = rows.into_iter().map(arrays).collect();
        // What was granted with the seat holds the outputs until they are taken; those whose
        // sizes values decided may be more.
        let result =
            rows.and_then(|rows| model.signature.join_rows(rows, outputs)).and_then(|all| {
                grant.resize(all.iter().map(|array: &Array| array.bytes.len() as u64).sum())?;
                Ok(all)
            });
        if result.is_err() {
            let _ = grant.resize(0);
        }
        grant.turn_into(Category::Request);
        let counters = self.counters.of(model.name());
        let counter = match &result {
            Ok(_) => &counters.answered,
            Err(EngineError::Cancelled) => &counters.cancelled,
            Err(_) => &counters.failed,
        };
        Counters::add(counter, 1);
        let names = outputs.iter().map(|output| model.signature.output_name(*output).to_string());
        let (choice, held) = (reel.cut.choice, Arc::new(grant));
        let version = model.dir.manifest.version.clone();
        let outputs = names.zip(result?).collect();
        Ok(Reply { version, choice, outputs, stats, held })
    }

    /// Tells the next request for a model that cannot be loaded. The others that wait find out for
    /// themselves: it may be another cause by then. A budget that is named is one in which the
    /// request is answered, too.
    pub fn fail_unloaded(&self, line: &Line, error: EngineError) {
        let EngineError::OverBudget(refused) = error else { return self.fail_next(line, error) };
        let inbox = &self.stage.room().inbox;
        let Some(waiting) = inbox.pop(line) else { return };
        let inputs = &waiting.request.inputs;
        let least_bytes = self.library.least_budget_bytes(&line.model, |demand| {
            let inputs_bytes = inputs.iter().map(|(_, array)| array.bytes.len() as u64).sum();
            needed_bytes(demand, inputs_bytes, longest_open(&demand.inputs, inputs))
        });
        inbox.put_back(waiting);
        self.fail_next(line, refused.at_least(least_bytes).into());
    }

    /// Tells the next request of a line; the others that wait find out for themselves.
    pub fn fail_next(&self, line: &Line, error: EngineError) {
        let Some(waiting) = self.stage.room().inbox.pop(line) else { return };
        if let Some(counters) =
            self.counters.known(&line.model).filter(|_| waiting.step().is_none())
        {
            Counters::add(&counters.failed, 1);
        }
        waiting.refuse(error);
    }
}

/// What is told to a session whose step it was.
fn stepped(
    pass: &Pass,
    step: &Step,
    rows: Vec<Result<Outputs, EngineError>>,
    bytes_read: u64,
) -> Result<Stepped, EngineError> {
    let values = match rows.into_iter().next() {
        Some(Ok(Outputs::Values(values))) => values,
        Some(Err(error)) => return Err(error),
        _ => return Err(EngineError::Internal("a step came to nothing".to_string())),
    };
    let tokens = step.past.tokens + step.ids.len();
    let (past, logits) = Past::of_outputs(pass.model.decoding()?, tokens, step.rows, values)
        .map_err(|error| EngineError::Invalid(format!("the model goes on wrongly: {error:#}")))?;
    Ok(Stepped { past, logits, choice: pass.reel.cut.choice, bytes_read })
}

/// Tokens of the requests in a pass.
fn tokens_of(admitted: &[Admitted]) -> u64 {
    admitted.iter().fold(0, |sum, admitted| sum.saturating_add(admitted.tokens))
}

/// Seats of the requests in a pass.
fn count(admitted: &[Admitted]) -> usize {
    admitted.iter().map(|admitted| admitted.seats.len()).sum()
}

fn count_pass(counters: &Counters, latency_us: u64, seats: usize, flow: FlowCounters) {
    Counters::add(&counters.passes, 1);
    Counters::add(&counters.seats, seats as u64);
    Counters::add(&counters.pass_us, latency_us);
    Counters::add(&counters.stall_us, flow.stall_us);
    Counters::add(&counters.bytes_read, flow.bytes_read);
    Counters::add(&counters.blocks_released, flow.released);
}

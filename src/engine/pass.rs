//! One pass: the plan evaluated node by node, its weights leased from the flow.

use super::error::EngineError;
use super::model::Model;
use super::reel::Reel;
use super::request::Cancel;
use super::tape::{Stretch, Table};
use crate::codec::Codec;
use crate::graph::{
    AtNode, Feed, IndexOutOfRange, Kernels, Lease, Outcomes, TapeFeed, Visit, array_of,
};
use crate::store::layer_file::open_row;
use crate::stream::{
    Category, Flow, Grant, Ledger, Node, OverBudget, OwnedFlow, StreamError, Trace,
};
use crate::sys::lock::lock;
use crate::wire::Array;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use tract_core::internal::*;

/// Bytes of table rows that one read may take.
const TABLE_READ_BYTES: u64 = 256 << 10;

/// The streamed ops' view of a pass.
struct PassFeed {
    reel: Arc<Reel>,
    /// What the model holds.
    graph_bytes: u64,
    flow: Arc<Flow>,
    kernels: Arc<Kernels>,
    cancels: Vec<Cancel>,
    stopping: Cancel,
    ledger: Arc<Ledger>,
    /// What was asked for on the way.
    grown: Mutex<Vec<Grant>>,
}

impl PassFeed {
    fn stretch(&self, slot: usize) -> &Stretch {
        &self.reel.cut.tape.stretches[slot]
    }
}

impl Feed for PassFeed {
    fn codec(&self, slot: usize) -> Option<&'static dyn Codec> {
        match self.stretch(slot) {
            Stretch::Blocks { codec, .. } => *codec,
            Stretch::Table(table) => table.codec,
        }
    }

    fn block_count(&self, slot: usize) -> usize {
        match self.stretch(slot) {
            Stretch::Blocks { rows, .. } => rows.len(),
            Stretch::Table(_) => 0,
        }
    }

    fn lease(&self, slot: usize, block: usize) -> TractResult<Lease> {
        self.go_on()?;
        let Stretch::Blocks { first, rows, .. } = self.stretch(slot) else {
            bail!("slot {slot} is a table");
        };
        let lease = self.flow.lease(first + block)?;
        Ok(Lease { rows: rows[block].clone(), bytes: Box::new(lease) })
    }

    fn read_rows(
        &self,
        slot: usize,
        rows: &[usize],
        sink: &mut dyn FnMut(usize, &[u8]) -> TractResult<()>,
    ) -> TractResult<()> {
        self.go_on()?;
        let Stretch::Table(table) = self.stretch(slot) else { bail!("slot {slot} is no table") };
        let runs = runs_of(table, rows);
        let ranges: Vec<Range<u64>> = runs.iter().map(|(_, range)| range.clone()).collect();
        let mut result = Ok(());
        let mut damaged = None;
        let stride = table.stride as usize;
        let read = self.reel.cut.sources.tables().read(table.file, &ranges, &mut |run, bytes| {
            let (positions, range) = &runs[run];
            let first = rows[positions.start];
            for position in positions.clone() {
                let at = (rows[position] - first) * stride;
                match open_row(&bytes[at..at + stride]) {
                    Some(row) if result.is_ok() => result = sink(position, row),
                    Some(_) => {}
                    None => damaged = Some(range.start + at as u64),
                }
            }
        });
        let failure = read.err().or(damaged.map(|offset| StreamError::DamagedRow {
            path: self.reel.cut.sources.tables().path(table.file),
            offset,
        }));
        if let Some(failure) = failure {
            self.flow.fail(failure.clone());
            return Err(failure.into());
        }
        result
    }

    fn kernels(&self) -> &Kernels {
        &self.kernels
    }

    fn grow(&self, bytes: u64) -> TractResult<()> {
        let grant = self.ledger.try_grant(Category::Activations, bytes);
        // Who has the pass to itself needs this beside all that it computes with.
        let own_bytes = match &*self.cancels {
            [_] => self.graph_bytes + self.ledger.held_bytes(Category::Activations),
            _ => 0,
        };
        lock(&self.grown).push(grant.map_err(|refused| refused.beside(own_bytes))?);
        Ok(())
    }

    fn go_on(&self) -> TractResult<()> {
        if self.stopping.is_cancelled() || self.cancels.iter().all(Cancel::is_cancelled) {
            return Err(StreamError::Cancelled.into());
        }
        Ok(())
    }
}

/// Cuts `rows` into runs of equal or following rows of one block, each to be read at once: the
/// run's positions in `rows` and its range of the file.
fn runs_of(table: &Table, rows: &[usize]) -> Vec<(Range<usize>, Range<u64>)> {
    let mut runs: Vec<(Range<usize>, Range<u64>)> = vec![];
    for (position, row) in rows.iter().enumerate() {
        let start = table.offset(*row as u64);
        let range = start..start + table.stride;
        if let Some((positions, whole)) = runs.last_mut() {
            let follows = range.start == whole.end || range.end == whole.end;
            if follows && range.end - whole.start <= TABLE_READ_BYTES.max(table.stride) {
                positions.end = position + 1;
                whole.end = range.end;
                continue;
            }
        }
        runs.push((position..position + 1, range));
    }
    runs
}

/// One request's part in a pass.
pub struct Seat {
    /// In the plan's order.
    pub inputs: TVec<TValue>,
    pub wanted: Wanted,
    pub cancel: Cancel,
}

/// What a seat wants of its outputs.
#[derive(Clone)]
pub enum Wanted {
    /// Those of these indices, to leave the engine.
    Arrays(Vec<usize>),
    /// All of them, as they are, with the logits of so many of the last tokens.
    Values { rows: usize },
}

/// What a seat gets.
pub enum Outputs {
    Arrays(Vec<Array>),
    Values(TVec<TValue>),
}

/// What the requests of a pass have in common.
pub struct Pass {
    pub model: Arc<Model>,
    pub reel: Arc<Reel>,
    pub flow: OwnedFlow,
    pub kernels: Arc<Kernels>,
    pub ledger: Arc<Ledger>,
    /// Ends the whole pass.
    pub stopping: Cancel,
    pub trace: Option<Arc<Trace>>,
    pub beats: Arc<AtomicU64>,
}

impl Pass {
    /// Evaluates the plan once for all of `seats`, on the calling thread, which must be one of
    /// the compute pool's. Every seat gets its outputs or its own error.
    pub fn run(&self, seats: Vec<Seat>) -> Vec<Result<Outputs, EngineError>> {
        let cancels: Vec<Cancel> = seats.iter().map(|seat| seat.cancel.clone()).collect();
        let empty: Vec<Option<String>> =
            seats.iter().map(|seat| self.model.signature.empty_axis(&seat.inputs)).collect();
        let (inputs, wanted): (Vec<_>, Vec<_>) =
            seats.into_iter().map(|seat| (seat.inputs, seat.wanted)).unzip();
        // What was asked for on the way is held until all outputs are copied.
        let feed = self.feed(&cancels);
        let outcomes = self.evaluate(&feed, inputs, &wanted, &cancels);
        // Nothing is told of what was computed with bytes that were lost or changed meanwhile.
        match self.flow.confirm().map_err(TractError::from).and(outcomes) {
            Ok(outcomes) => outcomes
                .into_iter()
                .zip(wanted.iter().zip(cancels.iter().zip(&empty)))
                .map(|(outcome, (wanted, (cancel, empty)))| {
                    outcome
                        .and_then(|values| match wanted {
                            Wanted::Arrays(outputs) => arrays(values, outputs).map(Outputs::Arrays),
                            Wanted::Values { .. } => Ok(Outputs::Values(values)),
                        })
                        .map_err(|error| self.explain(cancel, empty.as_deref(), &error))
                })
                .collect(),
            Err(error) => {
                cancels.iter().map(|cancel| Err(self.explain(cancel, None, &error))).collect()
            }
        }
    }

    fn feed(&self, cancels: &[Cancel]) -> TapeFeed {
        TapeFeed(Arc::new(PassFeed {
            reel: Arc::clone(&self.reel),
            graph_bytes: self.model.graph_bytes(),
            flow: Arc::clone(&self.flow),
            kernels: Arc::clone(&self.kernels),
            cancels: cancels.to_vec(),
            stopping: self.stopping.clone(),
            ledger: Arc::clone(&self.ledger),
            grown: Mutex::default(),
        }))
    }

    fn evaluate(
        &self,
        feed: &TapeFeed,
        inputs: Vec<TVec<TValue>>,
        wanted: &[Wanted],
        cancels: &[Cancel],
    ) -> TractResult<Outcomes> {
        let plan = &self.model.plan;
        let mut walk = plan.begin(inputs);
        for (seat, wanted) in wanted.iter().enumerate() {
            if let Wanted::Values { rows } = wanted {
                plan.want_rows(&mut walk, seat, *rows);
            }
        }
        let watch = |seat: usize| match cancels[seat].is_cancelled() {
            true => Err(StreamError::Cancelled.into()),
            false => Ok(()),
        };
        let enter = |visit: &Visit| {
            self.beats.fetch_add(1, Ordering::Relaxed);
            self.trace.as_ref().map(|trace| {
                trace.node(Node {
                    name: visit.name().to_owned(),
                    op: visit.op(),
                    multiplications: visit.multiplications(),
                    ..Node::default()
                })
            })
        };
        plan.complete(walk, feed, &watch, &enter)
    }

    /// Tells a broken disk from a cancelled request from a request the model cannot compute; `empty`
    /// is what the request has of length 0.
    fn explain(&self, cancel: &Cancel, empty: Option<&str>, error: &TractError) -> EngineError {
        if cancel.is_cancelled() || self.stopping.is_cancelled() {
            return EngineError::Cancelled;
        }
        if let Some(failure) = self.flow.failure() {
            return failure.into();
        }
        let node = error.downcast_ref::<AtNode>();
        if let (Some(refused), Some(node)) = (error.downcast_ref::<OverBudget>(), node) {
            return EngineError::Decided { node: node.clone(), refused: *refused };
        }
        EngineError::Invalid(match (error.downcast_ref(), node) {
            (Some(index @ IndexOutOfRange { .. }), Some(node)) => {
                format!("{node}: {index}: a token id or the length is too large")
            }
            _ => match empty {
                Some(empty) => format!("{empty}, with which the model cannot compute: {error:#}"),
                None => format!("the model cannot compute this request: {error:#}"),
            },
        })
    }
}

/// The outputs wanted as arrays. Each value goes once it is copied for the last time.
fn arrays(values: TVec<TValue>, outputs: &[usize]) -> TractResult<Vec<Array>> {
    let mut values: Vec<Option<TValue>> = values.into_iter().map(Some).collect();
    for (index, value) in values.iter_mut().enumerate() {
        if !outputs.contains(&index) {
            *value = None;
        }
    }
    let copy = |(place, index): (usize, &usize)| {
        let value = match outputs[place + 1..].contains(index) {
            true => values[*index].clone(),
            false => values[*index].take(),
        };
        let value = value.context("an output is taken once")?;
        array_of(&value)
    };
    outputs.iter().enumerate().map(copy).collect()
}

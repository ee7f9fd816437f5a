//! One pass: the plan evaluated node by node, its weights leased from the flow.

use super::array::Array;
use super::error::EngineError;
use super::model::Model;
use super::progress::Beats;
use super::tape::{Stretch, Table};
use crate::codec::Codec;
use crate::graph::{Feed, IndexOutOfRange, Kernels, Lease, TapeFeed};
use crate::store::layer_file::open_row;
use crate::stream::{Flow, StreamError};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;
use tract_core::internal::*;

/// A request's way to end early. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Cancel(Arc<AtomicBool>);

impl Cancel {
    /// Not cancelled.
    pub fn new() -> Cancel {
        Cancel::default()
    }

    /// Ends the request at the next node or block.
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether it was cancelled.
    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// What a pass cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PassStats {
    /// From the first node to the last.
    pub latency_us: u64,
    /// Time compute waited for blocks.
    pub stall_us: u64,
    /// Bytes of tape read.
    pub bytes_read: u64,
    /// Bytes the ledger granted for activations.
    pub activation_bytes: u64,
}

/// Bytes of table rows that one read may take.
const TABLE_READ_BYTES: u64 = 256 << 10;

/// The streamed ops' view of a pass.
struct PassFeed {
    model: Arc<Model>,
    flow: Arc<Flow>,
    kernels: Arc<Kernels>,
    cancel: Cancel,
    beats: Beats,
}

impl PassFeed {
    fn stretch(&self, slot: usize) -> &Stretch {
        &self.model.tape.stretches[slot]
    }

    fn check_cancelled(&self) -> TractResult<()> {
        if self.cancel.is_cancelled() {
            return Err(StreamError::Cancelled.into());
        }
        Ok(())
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
        self.check_cancelled()?;
        let Stretch::Blocks { first, rows, .. } = self.stretch(slot) else {
            bail!("slot {slot} is a table");
        };
        let lease = self.flow.lease(first + block)?;
        self.beats.beat();
        Ok(Lease { rows: rows[block].clone(), bytes: Box::new(lease) })
    }

    fn read_rows(
        &self,
        slot: usize,
        rows: &[usize],
        sink: &mut dyn FnMut(usize, &[u8]) -> TractResult<()>,
    ) -> TractResult<()> {
        self.check_cancelled()?;
        let Stretch::Table(table) = self.stretch(slot) else { bail!("slot {slot} is no table") };
        let runs = runs_of(table, rows);
        let ranges: Vec<Range<u64>> = runs.iter().map(|(_, range)| range.clone()).collect();
        let mut result = Ok(());
        let mut damaged = None;
        let stride = table.stride as usize;
        let read = self.model.source.read(table.file, &ranges, &mut |run, bytes| {
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
            path: self.model.source.path(table.file),
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

/// Runs one pass on the calling thread, which must be one of the compute pool's, until it is
/// cancelled; each node and block beats.
pub fn run(
    model: &Arc<Model>,
    flow: &Arc<Flow>,
    kernels: &Arc<Kernels>,
    inputs: TVec<TValue>,
    outputs: &[usize],
    (cancel, beats): (&Cancel, &Beats),
) -> Result<(Vec<Array>, PassStats), EngineError> {
    let feed = PassFeed {
        model: Arc::clone(model),
        flow: Arc::clone(flow),
        kernels: Arc::clone(kernels),
        cancel: cancel.clone(),
        beats: beats.clone(),
    };
    let started = Instant::now();
    let computed = evaluate(model, TapeFeed(Arc::new(feed)), inputs, outputs, (cancel, beats));
    let latency_us = started.elapsed().as_micros() as u64;
    let arrays = computed.map_err(|error| explain(flow, cancel, error))?;
    let counters = flow.counters();
    let stats = PassStats {
        latency_us,
        stall_us: counters.stall_us,
        bytes_read: counters.bytes_read,
        activation_bytes: 0,
    };
    Ok((arrays, stats))
}

fn evaluate(
    model: &Model,
    feed: TapeFeed,
    inputs: TVec<TValue>,
    outputs: &[usize],
    (cancel, beats): (&Cancel, &Beats),
) -> TractResult<Vec<Array>> {
    let mut state = model.plan.spawn()?;
    state.turn_state.shared.insert(feed);
    let values = state.run_plan_with_eval(inputs, |context, op_state, node, inputs| {
        if cancel.is_cancelled() {
            return Err(StreamError::Cancelled.into());
        }
        beats.beat();
        tract_core::plan::eval(context, op_state, node, inputs)
    })?;
    outputs.iter().map(|index| Array::from_tensor(&values[*index])).collect()
}

/// Tells a broken disk from a cancelled request from a request the model cannot compute.
fn explain(flow: &Flow, cancel: &Cancel, error: TractError) -> EngineError {
    if cancel.is_cancelled() {
        return EngineError::Cancelled;
    }
    if let Some(failure) = flow.failure() {
        return failure.into();
    }
    if let Some(index) = error.chain().find_map(|cause| cause.downcast_ref::<IndexOutOfRange>()) {
        return EngineError::Invalid(format!("{index}: a token id or the length is too large"));
    }
    EngineError::Invalid(format!("the model cannot compute this request: {error:#}"))
}

//! A pass to try a plan with before any weight is written: big weights of floats are noise.
//!
//! What tract accepts it may still not be able to compute; whoever shards a model should hear of it,
//! not whoever asks it.

use super::datum::{array_of, tensor_of};
use super::error::GraphError;
use super::import::Imported;
use super::kernel::{Kernels, READ_AHEAD_BYTES};
use super::lockstep::{Lockstep, Visit};
use super::ops::{Feed, TapeFeed};
use super::position::IndexOutOfRange;
use super::product::Lease;
use super::progress::STAGES;
use super::uses::UseKind;
use crate::codec::{self, Codec, PANEL_ROWS};
use crate::store::Dtype;
use crate::store::manifest::Weight;
use crate::sys::{child, panics};
use crate::wire::Array;
use std::cell::RefCell;
use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tract_core::internal::*;

/// How a trial ended that found no fault.
#[derive(Debug)]
pub enum Tried {
    /// With these outputs.
    Computed(Vec<Array>),
    /// It says nothing: it took too long, or the inputs' values were of no use.
    Unknown(String),
    /// The same, since a table has fewer rows than an index means.
    Outside(IndexOutOfRange),
}

/// Reads bytes of a weight from where it lies.
pub type ReadWeight = dyn Fn(usize, Range<u64>) -> io::Result<Vec<u8>> + Send + Sync;

/// A plan with stand-ins for its weights.
pub struct Trial {
    plan: Lockstep,
    model: Arc<TypedSimplePlan>,
    feed: TapeFeed,
}

/// Bytes of a block of noise, and of a larger one's only panel.
const BLOCK_BYTES: usize = 256 << 10;

/// How many rows of a table differ.
const ROW_STARTS: usize = 1009;

/// How long a trial may take; the node under way is computed to its end.
const PATIENCE: Duration = Duration::from_secs(20);

/// Largest integers that are read; larger ones are zeros.
const READ_BYTES: u64 = 16 << 20;

/// Why a trial is broken off.
#[derive(Debug)]
struct OutOfPatience;

impl std::fmt::Display for OutOfPatience {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "it takes more than {} s", PATIENCE.as_secs())
    }
}

impl std::error::Error for OutOfPatience {}

/// Bytes of a value whose size the made-up inputs decide, at most.
const GROWN_BYTES: u64 = 1 << 30;

/// What made-up inputs ask for.
#[derive(Debug)]
struct TooLarge {
    bytes: u64,
}

impl std::fmt::Display for TooLarge {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "it takes {} bytes by the values of made-up inputs", self.bytes)
    }
}

impl std::error::Error for TooLarge {}

impl Trial {
    /// Prepares a plan; weights that are not of floats come through `read`.
    pub fn new(imported: &Imported, weights: &[Weight], read: Arc<ReadWeight>) -> Trial {
        let mut slots = vec![Slot::default(); imported.uses.len()];
        for used in &imported.uses {
            if let Some(slot) = slots.get_mut(used.slot) {
                *slot = Slot::of(used.kind, used.weight, &weights[used.weight]);
            }
        }
        let largest = slots.iter().map(Slot::block_bytes).max().unwrap_or(0);
        let feed = TapeFeed(Arc::new(StandIn {
            slots,
            noise: noise(largest + ROW_STARTS * size_of::<f32>() + READ_AHEAD_BYTES).into(),
            kernels: Kernels::native(),
            read,
        }));
        let model = Arc::clone(&imported.plan);
        Trial { plan: Lockstep::new(Arc::clone(&model)), model, feed }
    }

    /// Computes with `inputs`, in the order of the plan.
    ///
    /// # Errors
    ///
    /// [`GraphError::Trial`] with the node that cannot be computed.
    pub fn run(&self, inputs: &[Array]) -> Result<Tried, GraphError> {
        child::begin_step();
        let node = RefCell::new(String::new());
        let began = Instant::now();
        let watch = |_| match began.elapsed() > PATIENCE {
            true => Err(TractError::new(OutOfPatience)),
            false => Ok(()),
        };
        let enter = |visit: &Visit| {
            let name = visit.name();
            log::trace!(target: STAGES, "node {name}, in a pass over made-up inputs");
            node.replace(name.to_string())
        };
        let pass = || -> TractResult<Vec<Array>> {
            let values = inputs.iter().map(tensor).collect::<TractResult<_>>()?;
            let outcomes = self.plan.run(&self.feed, vec![values], &watch, &enter)?;
            let outputs = outcomes.into_iter().next().context("a request has an outcome")??;
            outputs.iter().map(|value| array_of(value)).collect()
        };
        let ended = panics::caught(pass);
        let why = match ended {
            Ok(Ok(outputs)) => return Ok(Tried::Computed(outputs)),
            Ok(Err(error)) if is_no_fault(&error) => {
                return Ok(match error.downcast_ref::<IndexOutOfRange>() {
                    Some(outside) => Tried::Outside(outside.clone()),
                    None => Tried::Unknown(error.root_cause().to_string()),
                });
            }
            Ok(Err(error)) => format!("{error:#}"),
            Err(panic) => format!("tract gave up: {panic}"),
        };
        let node = node.into_inner();
        let op = self.model.model().nodes.iter().find(|n| n.name == node).map(|n| n.op.name());
        let op = op.map_or_else(|| "?".to_string(), |op| op.into_owned());
        let shapes: Vec<String> =
            inputs.iter().map(|array| format!("{} {:?}", array.dtype, array.shape)).collect();
        Err(GraphError::Trial { node, op, shapes: shapes.join(", "), why })
    }
}

/// Whether an error tells of the made-up inputs rather than of the graph.
fn is_no_fault(error: &TractError) -> bool {
    error.is::<IndexOutOfRange>() || error.is::<OutOfPatience>() || error.is::<TooLarge>()
}

fn tensor(array: &Array) -> TractResult<TValue> {
    let tensor = tensor_of(array);
    Ok(tensor.with_context(|| format!("{} cannot be computed with", array.dtype))??.into_tvalue())
}

/// Small floats of both signs, none of them 0.
fn noise(bytes: usize) -> Vec<u8> {
    let value = |i: usize| {
        let mixed = (i as u32).wrapping_mul(2_654_435_761).wrapping_add(12_345) >> 8;
        (mixed as f32 / (1 << 24) as f32 - 0.5) * 0.1 + 1e-4
    };
    (0..bytes.div_ceil(size_of::<f32>())).flat_map(|i| value(i).to_le_bytes()).collect()
}

/// What stands in for the weight of a streamed op.
#[derive(Clone, Debug, Default)]
struct Slot {
    weight: usize,
    /// Rows of blocks and of a table, elements of a constant.
    rows: usize,
    /// Values of a row, or of one output.
    depth: usize,
    is_panels: bool,
    /// Of floats a codec is asked for, and noise is given.
    is_float: bool,
    value_bytes: usize,
}

impl Slot {
    fn of(kind: UseKind, weight: usize, described: &Weight) -> Slot {
        let shape: Vec<usize> = described.shape.iter().map(|dim| *dim as usize).collect();
        let elements: usize = shape.iter().product();
        let (rows, depth) = match kind {
            UseKind::Linear { transposed: true } => (shape[0], shape[1]),
            UseKind::Linear { transposed: false } => (shape[1], shape[0]),
            UseKind::Gather => (shape[0], elements / shape[0].max(1)),
            UseKind::Constant => (elements, 1),
        };
        let floats = [Dtype::Fp32, Dtype::Fp16, Dtype::Bf16];
        let is_float = floats.contains(&described.dtype);
        Slot {
            weight,
            rows,
            depth,
            is_panels: matches!(kind, UseKind::Linear { .. }),
            is_float,
            value_bytes: if is_float { size_of::<f32>() } else { described.dtype.size() },
        }
    }

    fn lanes(&self) -> usize {
        if self.is_panels { PANEL_ROWS } else { 1 }
    }

    /// Rows of each block but the last.
    fn block_rows(&self) -> usize {
        let run_bytes = self.depth * self.value_bytes * self.lanes();
        (BLOCK_BYTES / run_bytes.max(1)).max(1) * self.lanes()
    }

    fn block_bytes(&self) -> usize {
        self.block_rows() * self.depth * self.value_bytes
    }
}

/// Feeds noise.
struct StandIn {
    slots: Vec<Slot>,
    noise: Arc<[u8]>,
    kernels: Kernels,
    read: Arc<ReadWeight>,
}

/// Some bytes of the noise.
struct Noise(Arc<[u8]>, usize);

impl AsRef<[u8]> for Noise {
    fn as_ref(&self) -> &[u8] {
        &self.0[..self.1]
    }
}

impl StandIn {
    /// Elements of a weight that is not of floats, as they are where they are few.
    fn elements(&self, slot: &Slot, elements: Range<usize>) -> TractResult<Vec<u8>> {
        let range =
            (elements.start * slot.value_bytes) as u64..(elements.end * slot.value_bytes) as u64;
        match (slot.rows * slot.depth * slot.value_bytes) as u64 > READ_BYTES {
            true => Ok(vec![0; (range.end - range.start) as usize]),
            false => Ok((self.read)(slot.weight, range)?),
        }
    }
}

impl Feed for StandIn {
    fn codec(&self, slot: usize) -> Option<&'static dyn Codec> {
        self.slots[slot].is_float.then(|| codec::by_name("f32")).flatten()
    }

    fn block_count(&self, slot: usize) -> usize {
        let slot = &self.slots[slot];
        slot.rows.div_ceil(slot.block_rows())
    }

    fn lease(&self, slot: usize, block: usize) -> TractResult<Lease> {
        let slot = &self.slots[slot];
        let start = block * slot.block_rows();
        let rows = start..(start + slot.block_rows()).min(slot.rows);
        if !slot.is_float {
            let bytes = self.elements(slot, rows.clone())?;
            return Ok(Lease { rows, bytes: Box::new(bytes) });
        }
        let stored = rows.len().next_multiple_of(slot.lanes()) * slot.depth * slot.value_bytes;
        Ok(Lease { rows, bytes: Box::new(Noise(Arc::clone(&self.noise), stored)) })
    }

    fn read_rows(
        &self,
        slot: usize,
        rows: &[usize],
        sink: &mut dyn FnMut(usize, &[u8]) -> TractResult<()>,
    ) -> TractResult<()> {
        let slot = &self.slots[slot];
        let row_bytes = slot.depth * slot.value_bytes;
        for (position, row) in rows.iter().enumerate() {
            match slot.is_float {
                true => {
                    // Rows differ, so that it shows where one request's are taken for another's.
                    let start = (row * 7 % ROW_STARTS) * slot.value_bytes;
                    sink(position, &self.noise[start..start + row_bytes])?;
                }
                false => {
                    let elements = row * slot.depth..(row + 1) * slot.depth;
                    sink(position, &self.elements(slot, elements)?)?;
                }
            }
        }
        Ok(())
    }

    fn kernels(&self) -> &Kernels {
        &self.kernels
    }

    fn grow(&self, bytes: u64) -> TractResult<()> {
        match bytes > GROWN_BYTES {
            true => Err(TractError::new(TooLarge { bytes })),
            false => Ok(()),
        }
    }
}

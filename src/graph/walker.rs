//! Passes for whoever looks at a model rather than serves it: over weights that somebody else reads,
//! left on the way and gone on with from there, each linear's input seen.

use super::datum::{array_of, tensor_of};
use super::import::Imported;
use super::kernel::{Kernels, READ_AHEAD_BYTES};
use super::lockstep::{AtNode, Lockstep, Visit, Walk};
use super::ops::{Feed, TapeFeed};
use super::product::Lease;
use crate::codec::Codec;
use crate::store::StoreError;
use crate::sys::aligned::AlignedBuffer;
use crate::sys::lock::lock;
use crate::sys::{affinity, panics};
use crate::wire::Array;
use std::collections::HashMap;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use thiserror::Error;
use tract_core::internal::*;
use tract_linalg::multithread::{Executor, multithread_tract_scope};

/// Reads weights for a pass; `slot` is the number of a streamed op.
pub trait Weights: Send + Sync {
    /// The codec of the op's weight, `None` for elements stored as they are.
    fn codec(&self, slot: usize) -> Option<&'static dyn Codec>;

    /// Number of blocks of the op's weight.
    fn block_count(&self, slot: usize) -> usize;

    /// Stored bytes of a block of the op's weight.
    fn block_bytes(&self, slot: usize, block: usize) -> usize;

    /// Rows of a block; its stored bytes are put into `bytes`, which is as long.
    ///
    /// # Errors
    /// What cannot be read, or is not what was written.
    fn read_block(
        &self,
        slot: usize,
        block: usize,
        bytes: &mut [u8],
    ) -> Result<Range<usize>, StoreError>;

    /// Puts the stored bytes of a table's row into `bytes`.
    ///
    /// # Errors
    /// As [`Weights::read_block`].
    fn read_row(&self, slot: usize, row: usize, bytes: &mut Vec<u8>) -> Result<(), StoreError>;

    /// Sees what a linear multiplies its weight with: columns of `depth` values, one after the other.
    fn observe(&self, _slot: usize, _columns: &[f32], _depth: usize) {}
}

/// Why a pass came to nothing.
#[derive(Debug, Error)]
pub enum WalkError {
    /// A weight cannot be read.
    #[error(transparent)]
    Weight(#[from] StoreError),
    /// An input's values, or the model, are such that it cannot be computed.
    #[error("the model cannot be computed with these inputs: {0}")]
    Inputs(String),
    /// Who looks on wants it to end.
    #[error("interrupted")]
    Interrupted,
}

/// Bytes of values whose sizes other values decide, at most.
const GROWN_BYTES: u64 = 1 << 30;

/// Why a request is ended that nothing is wrong with.
#[derive(Debug, Error)]
#[error("interrupted")]
struct Interrupted;

/// A plan, and the threads that evaluate it.
pub struct Walker {
    plan: Lockstep,
    executor: Executor,
    kernels: Arc<Kernels>,
    /// The first step that needs each slot.
    steps: HashMap<usize, usize>,
}

impl Walker {
    /// Prepares a plan for all cores.
    ///
    /// # Errors
    /// The system's, where it has no threads for us.
    pub fn new(imported: &Imported) -> std::io::Result<Walker> {
        let threads = affinity::allowed_cores().len();
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .start_handler(|_| panics::passed_on())
            .build()
            .map_err(std::io::Error::other)?;
        let plan = Lockstep::new(Arc::clone(&imported.plan));
        let mut steps = HashMap::new();
        for (step, slot) in plan.streamed_steps() {
            steps.entry(slot).or_insert(step);
        }
        let executor = Executor::MultiThread(Arc::new(pool));
        Ok(Walker { plan, executor, kernels: Arc::new(Kernels::native()), steps })
    }

    /// The step at which a slot's weight is first needed.
    pub fn step_of(&self, slot: usize) -> Option<usize> {
        self.steps.get(&slot).copied()
    }

    /// What the plan's passes over inputs of these shapes hold together, besides weights.
    pub fn held_bytes(&self, shapes: &[Vec<usize>]) -> u64 {
        self.plan.footprint(shapes).together_bytes
    }

    /// Seats requests, each given as its inputs in the plan's order, before the first step.
    ///
    /// # Errors
    /// [`WalkError::Inputs`] where one does not fit the model.
    pub fn begin(&self, requests: &[Vec<Array>]) -> Result<Walk, WalkError> {
        let value = |array: &Array| -> TractResult<TValue> {
            let tensor = tensor_of(array);
            let tensor = tensor.with_context(|| format!("{} is not computed with", array.dtype))?;
            Ok(tensor?.into_tvalue())
        };
        let values = requests.iter().map(|inputs| inputs.iter().map(value).collect());
        let values: TractResult<Vec<TVec<TValue>>> = values.collect();
        let walk = self.plan.begin(values.map_err(|error| told(&error))?);
        walk.ended().map_or(Ok(()), |error| Err(told(error)))?;
        Ok(walk)
    }

    /// Goes on to `step`, without it; `goes_on` is asked before each.
    ///
    /// # Errors
    /// What no request can be computed without, or what one of them makes fail.
    pub fn go(
        &self,
        walk: &mut Walk,
        step: usize,
        weights: &Arc<dyn Weights>,
        goes_on: &dyn Fn() -> bool,
    ) -> Result<(), WalkError> {
        let reading = Arc::new(Reading {
            weights: Arc::clone(weights),
            kernels: Arc::clone(&self.kernels),
            failure: Mutex::default(),
        });
        let feed = TapeFeed(Arc::clone(&reading) as _);
        let is_over = AtomicBool::new(false);
        let enter = |_: &Visit| is_over.store(!goes_on(), Ordering::Relaxed);
        let watch = |_| match is_over.load(Ordering::Relaxed) {
            true => Err(TractError::new(Interrupted)),
            false => Ok(()),
        };
        let walked = multithread_tract_scope(self.executor.clone(), || {
            panics::caught(|| self.plan.go(walk, step, &feed, &watch, &enter))
        });
        if let Some(failure) = lock(&reading.failure).take() {
            return Err(failure.into());
        }
        walked.map_err(WalkError::Inputs)?.map_err(|error| told(&error))?;
        walk.ended().map_or(Ok(()), |error| Err(told(error)))
    }

    /// Goes on to the end: each request's outputs, in the plan's order.
    ///
    /// # Errors
    /// As [`Walker::go`].
    pub fn finish(
        &self,
        mut walk: Walk,
        weights: &Arc<dyn Weights>,
        goes_on: &dyn Fn() -> bool,
    ) -> Result<Vec<Vec<Array>>, WalkError> {
        self.go(&mut walk, self.plan.steps(), weights, goes_on)?;
        let outputs = |outcome: TractResult<TVec<TValue>>| {
            let arrays = outcome.and_then(|values| values.iter().map(|v| array_of(v)).collect());
            arrays.map_err(|error| told(&error))
        };
        self.plan.finish(walk).into_iter().map(outputs).collect()
    }
}

/// What a request's error says, where it is not that the pass is over.
fn told(error: &TractError) -> WalkError {
    match error.downcast_ref::<AtNode>() {
        _ if error.is::<Interrupted>() => WalkError::Interrupted,
        Some(node) => WalkError::Inputs(format!("{node}: {}", error.root_cause())),
        None => WalkError::Inputs(format!("{error:#}")),
    }
}

/// The streamed ops' view of [`Weights`].
struct Reading {
    weights: Arc<dyn Weights>,
    kernels: Arc<Kernels>,
    /// The first weight that could not be read.
    failure: Mutex<Option<StoreError>>,
}

impl Reading {
    /// Notes what made reading fail: tract only hands on what it says.
    fn noted<T>(&self, read: Result<T, StoreError>) -> TractResult<T> {
        read.map_err(|error| {
            let text = error.to_string();
            lock(&self.failure).get_or_insert(error);
            format_err!(text)
        })
    }
}

/// A block's bytes, which a kernel may use where they lie, and behind which it may read on.
struct Block {
    bytes: AlignedBuffer,
    length: usize,
}

impl AsRef<[u8]> for Block {
    fn as_ref(&self) -> &[u8] {
        &self.bytes.as_ref()[..self.length]
    }
}

impl Feed for Reading {
    fn codec(&self, slot: usize) -> Option<&'static dyn Codec> {
        self.weights.codec(slot)
    }

    fn block_count(&self, slot: usize) -> usize {
        self.weights.block_count(slot)
    }

    fn lease(&self, slot: usize, block: usize) -> TractResult<Lease> {
        let length = self.weights.block_bytes(slot, block);
        let mut bytes = AlignedBuffer::zeroed(length + READ_AHEAD_BYTES);
        let read = self.weights.read_block(slot, block, &mut bytes.as_mut()[..length]);
        let rows = self.noted(read)?;
        Ok(Lease { rows, bytes: Box::new(Block { bytes, length }) })
    }

    fn read_rows(
        &self,
        slot: usize,
        rows: &[usize],
        sink: &mut dyn FnMut(usize, &[u8]) -> TractResult<()>,
    ) -> TractResult<()> {
        let mut bytes = vec![];
        for (position, row) in rows.iter().enumerate() {
            self.noted(self.weights.read_row(slot, *row, &mut bytes))?;
            sink(position, &bytes)?;
        }
        Ok(())
    }

    fn kernels(&self) -> &Kernels {
        &self.kernels
    }

    fn grow(&self, bytes: u64) -> TractResult<()> {
        ensure!(bytes <= GROWN_BYTES, "it takes {bytes} bytes by the inputs' values");
        Ok(())
    }

    fn observe(&self, slot: usize, columns: &Tensor) -> TractResult<()> {
        let depth = columns.shape().last().copied().unwrap_or(0);
        let plain = columns.try_as_plain_ram()?;
        self.weights.observe(slot, plain.as_slice::<f32>()?, depth);
        Ok(())
    }
}

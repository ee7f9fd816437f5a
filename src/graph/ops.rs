//! The three streamed ops: linear, gather, constant.

use super::kernel::{Kernels, Packed};
use super::position::position;
use super::product::{Lease, Product};
use crate::codec::Codec;
use std::ops::Range;
use std::sync::Arc;
use tract_core::internal::*;

/// What streamed ops ask of the pass that evaluates them. `slot` is the op's own number, given
/// by the importer.
pub trait Feed: Send + Sync {
    /// The codec of the op's weight, `None` for elements stored as they are.
    fn codec(&self, slot: usize) -> Option<&'static dyn Codec>;

    /// Number of blocks of the op's weight.
    fn block_count(&self, slot: usize) -> usize;

    /// Waits for the op's next block in order and borrows it, on whichever compute thread needs it;
    /// the one before may still be in use.
    fn lease(&self, slot: usize, block: usize) -> TractResult<Lease>;

    /// Hands the stored bytes of each of `rows` to `sink`, with its position in `rows`.
    fn read_rows(
        &self,
        slot: usize,
        rows: &[usize],
        sink: &mut dyn FnMut(usize, &[u8]) -> TractResult<()>,
    ) -> TractResult<()>;

    /// The kernels of this processor.
    fn kernels(&self) -> &Kernels;

    /// Asks for so many bytes more than the requests' shapes told, for values whose sizes other
    /// values decide: before they are allocated, and until the pass ends. An error ends the request
    /// that asks.
    fn grow(&self, bytes: u64) -> TractResult<()>;

    /// Ends an op that takes long where nobody wants its value any more.
    fn go_on(&self) -> TractResult<()> {
        Ok(())
    }

    /// Sees what a linear multiplies its weight with, f32 `[.., depth]`, before it does. A pass that
    /// serves somebody looks at nothing.
    fn observe(&self, _slot: usize, _columns: &Tensor) -> TractResult<()> {
        Ok(())
    }
}

/// The pass, as it is handed to the ops through tract's shared turn resources.
#[derive(Clone)]
pub struct TapeFeed(pub Arc<dyn Feed>);

/// The pass that evaluates an op.
pub(super) fn feed<'a>(context: &'a EvalContext) -> TractResult<&'a dyn Feed> {
    let shared = context.shared.context("a streamed op needs a pass around it")?;
    Ok(&*shared.get::<TapeFeed>().context("the pass brought no tape")?.0)
}

/// `y[.., m] = x[.., k] * w`, with the weight's panels taken from the tape block by block.
///
/// Bytes moved: each weight byte once from the window; bound by the f32 kernels from a few
/// tokens on, by the window's bandwidth at a few columns, or by decoding.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Linear {
    pub slot: usize,
    pub outputs: usize,
    pub depth: usize,
    pub dtype: DatumType,
}

impl Op for Linear {
    fn name(&self) -> StaticName {
        "StreamedLinear".into()
    }

    fn info(&self) -> TractResult<Vec<String>> {
        Ok(vec![format!("slot {}, {} -> {}", self.slot, self.depth, self.outputs)])
    }

    op_as_typed_op!();
}

impl EvalOp for Linear {
    not_out_of_plan!();

    fn eval(&self, context: &EvalContext, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        let mut outputs = self.eval_together(feed(context)?, vec![args_1!(inputs)])?;
        Ok(tvec!(outputs.remove(0).into_tvalue()))
    }
}

impl Linear {
    /// Whether one request's input can be multiplied.
    pub fn check(&self, input: &Tensor) -> TractResult<()> {
        let (depth, dtype) = (self.depth, input.datum_type());
        ensure!(input.shape().last() == Some(&depth), "a linear of depth {depth} got {input:?}");
        ensure!(dtype.is_float(), "a linear got {input:?}");
        Ok(())
    }

    /// The outputs of several requests, whose columns stand side by side in one product: each
    /// block is leased once for all. The inputs are gone before there are outputs.
    pub fn eval_together(&self, feed: &dyn Feed, inputs: Vec<TValue>) -> TractResult<Vec<Tensor>> {
        let mut shapes: Vec<TVec<usize>> = inputs.iter().map(|x| x.shape().into()).collect();
        inputs.iter().try_for_each(|input| self.check(input))?;
        let columns: Vec<usize> =
            shapes.iter().map(|shape| shape[..shape.len() - 1].iter().product()).collect();
        let packed = match &*inputs {
            [input] => self.pack(feed, &*input.cast_to::<f32>()?)?,
            _ => self.pack(feed, &side_by_side(&inputs, self.depth)?)?,
        };
        drop(inputs);
        let y = packed.multiply(&Product {
            outputs: self.outputs,
            depth: self.depth,
            codec: feed.codec(self.slot).context("a linear's weight has a codec")?,
            blocks: feed.block_count(self.slot),
            lease: &|block| feed.lease(self.slot, block),
        })?;
        shapes.iter_mut().for_each(|s| *s.last_mut().expect("checked above") = self.outputs);
        if let [shape] = &*shapes {
            return Ok(vec![cast(y.into_shape(shape)?, self.dtype)?]);
        }
        let mut start = 0;
        let parts = columns.iter().zip(shapes).map(|(columns, shape)| {
            let part = match columns {
                0 => Tensor::zero::<f32>(&shape)?,
                _ => y.slice(0, start, start + columns)?.into_shape(&shape)?,
            };
            start += columns;
            cast(part, self.dtype)
        });
        parts.collect()
    }

    fn pack<'a>(&self, feed: &'a dyn Feed, columns: &Tensor) -> TractResult<Packed<'a>> {
        feed.observe(self.slot, columns)?;
        feed.kernels().pack(columns, self.depth)
    }
}

/// The columns of several inputs as one f32 matrix `[columns, depth]`.
fn side_by_side(inputs: &[TValue], depth: usize) -> TractResult<Tensor> {
    let flat = |input: &TValue| -> TractResult<Tensor> {
        let columns = input.len() / depth.max(1);
        input.cast_to::<f32>()?.into_owned().into_shape(&[columns, depth])
    };
    let parts: Vec<Tensor> = inputs.iter().map(flat).collect::<TractResult<_>>()?;
    Tensor::stack_tensors(0, &parts)
}

impl TypedOp for Linear {
    fn output_facts(&self, inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        let mut shape = inputs[0].shape.to_tvec();
        *shape.last_mut().context("a linear's input has an axis")? = self.outputs.to_dim();
        Ok(tvec!(self.dtype.fact(shape)))
    }

    as_op!();
}

/// Rows of a table, picked by index: `out[i.., ..] = table[index[i..], ..]`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Gather {
    pub slot: usize,
    pub rows: usize,
    pub tail: TVec<usize>,
    pub dtype: DatumType,
}

impl Op for Gather {
    fn name(&self) -> StaticName {
        "StreamedGather".into()
    }

    op_as_typed_op!();
}

impl EvalOp for Gather {
    not_out_of_plan!();

    fn eval(&self, context: &EvalContext, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        let feed = feed(context)?;
        let indices = args_1!(inputs);
        let rows = self.resolve(&indices)?;
        let depth: usize = self.tail.iter().product();
        let mut table = Destination::new(feed.codec(self.slot), self.dtype, rows.len() * depth)?;
        feed.read_rows(self.slot, &rows, &mut |position, stored| {
            table.decode(position * depth..(position + 1) * depth, stored)
        })?;
        let shape: TVec<usize> = indices.shape().iter().chain(&self.tail).copied().collect();
        let gathered = table.tensor.into_shape(&shape)?;
        Ok(tvec!(cast(gathered, self.dtype)?.into_tvalue()))
    }
}

impl Gather {
    /// Row numbers of the indices, negative ones counted from the end as ONNX has it.
    fn resolve(&self, indices: &Tensor) -> TractResult<Vec<usize>> {
        let indices = indices.cast_to::<i64>()?;
        let indices = indices.to_plain_array_view::<i64>()?;
        indices.iter().map(|index| Ok(position(*index, self.rows)?)).collect()
    }
}

impl TypedOp for Gather {
    fn output_facts(&self, inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        let mut shape = inputs[0].shape.to_tvec();
        shape.extend(self.tail.iter().map(|dim| dim.to_dim()));
        Ok(tvec!(self.dtype.fact(shape)))
    }

    as_op!();
}

/// A whole weight, copied into a tensor for as long as its consumers run.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Constant {
    pub slot: usize,
    pub shape: TVec<usize>,
    pub dtype: DatumType,
}

impl Op for Constant {
    fn name(&self) -> StaticName {
        "StreamedConstant".into()
    }

    op_as_typed_op!();
}

impl EvalOp for Constant {
    not_out_of_plan!();

    fn eval(&self, context: &EvalContext, _inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        Ok(tvec!(self.assemble(feed(context)?)?.into_tvalue()))
    }
}

impl Constant {
    /// The whole weight, for as many requests as share it.
    pub fn assemble(&self, feed: &dyn Feed) -> TractResult<Tensor> {
        let elements = self.shape.iter().product();
        let mut whole = Destination::new(feed.codec(self.slot), self.dtype, elements)?;
        for block in 0..feed.block_count(self.slot) {
            let lease = feed.lease(self.slot, block)?;
            whole.decode(lease.rows.clone(), (*lease.bytes).as_ref())?;
        }
        cast(whole.tensor.into_shape(&self.shape)?, self.dtype)
    }
}

impl TypedOp for Constant {
    fn output_facts(&self, _inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        Ok(tvec!(self.dtype.fact(&self.shape)))
    }

    as_op!();
}

/// A flat tensor that stored runs are decoded into.
struct Destination {
    codec: Option<&'static dyn Codec>,
    tensor: Tensor,
}

impl Destination {
    /// Elements of f32 where a codec decodes them, of `dtype` where they are stored as they are.
    fn new(
        codec: Option<&'static dyn Codec>,
        dtype: DatumType,
        elements: usize,
    ) -> TractResult<Destination> {
        let dtype = if codec.is_some() { f32::datum_type() } else { dtype };
        Ok(Destination { codec, tensor: Tensor::zero_dt(dtype, &[elements])? })
    }

    fn decode(&mut self, elements: Range<usize>, stored: &[u8]) -> TractResult<()> {
        let Destination { codec, tensor } = self;
        ensure!(elements.end <= tensor.len(), "elements {elements:?} of {tensor:?}");
        if let Some(codec) = codec {
            let mut plain = tensor.try_as_plain_ram_mut()?;
            let values = &mut plain.as_slice_mut::<f32>()?[elements];
            ensure!(stored.len() == codec.stored_bytes(values.len(), 1), "stored run's length");
            codec.decode(stored, 1, values);
        } else {
            let (size, is_bool) =
                (tensor.datum_type().size_of(), tensor.datum_type() == bool::datum_type());
            let bytes = tensor.as_bytes_mut();
            let bytes = &mut bytes[elements.start * size..elements.end * size];
            ensure!(stored.len() == bytes.len(), "stored elements' length");
            bytes.copy_from_slice(stored);
            if is_bool {
                // Any other byte than 0 and 1 is no bool, and a file may have it.
                bytes.iter_mut().for_each(|byte| *byte = u8::from(*byte != 0));
            }
        }
        Ok(())
    }
}

/// `tensor` in `dtype`, without a copy where it is already.
fn cast(tensor: Tensor, dtype: DatumType) -> TractResult<Tensor> {
    if tensor.datum_type() == dtype {
        return Ok(tensor);
    }
    Ok(tensor.cast_to_dt(dtype)?.into_owned())
}

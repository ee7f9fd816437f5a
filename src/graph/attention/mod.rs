//! Attention of a decoder, as graphs that are drawn here ask for it: over what is past and what is
//! new, each token seeing itself and those before it, in one operator. Neither scores nor masks of a
//! whole text exist, and keys that heads of queries share are copied for none.
//!
//! A past that a session keeps ([`KeptPast`]) is appended to where it lies. One that comes as an array
//! is copied, so that who asks for a pass by itself gets arrays back.

mod heads;
mod kept;
mod loops;

pub use kept::{Keeping, KeptPast, MOST_NEW, keeping_of};

use super::ops::feed;
use super::repair::attribute;
use heads::{BLOCK, Layout, TILE_ROWS, attend};
use tract_core::internal::*;
use tract_linalg::multithread::{Executor, current_tract_executor};
use tract_onnx::model::ParsingContext;
use tract_onnx::pb::NodeProto;
use tract_onnx::tract_hir::infer::{InferenceOp, InferenceResult, Solver, TensorProxy};
use tract_onnx::tract_hir::ops::expandable::{Expansion, expand};

/// Domain of the operators that graphs drawn here have for themselves.
pub const DOMAIN: &str = "hermes";

/// The operator's name in a graph.
pub const OPERATOR: &str = "CachedAttention";

/// Most threads that share an evaluation, so that what it works with has a bound.
const MOST_THREADS: usize = 8;

/// The operator: `mixed[1, S, H * W], keys[1, K, P + S, W], values[1, K, P + S, W]` of queries
/// `[1, H, S, W]`, new keys and values `[1, K, S, W]` and those of what is past, `[1, K, P, W]`, all
/// f32. It is wired as two [`Append`] and a [`Mix`].
#[derive(Clone, Debug)]
struct CachedAttention {
    scale: f32,
    window: Option<usize>,
}

/// Keys or values of what is past and new, `[1, K, P + S, W]`, of the new ones and those of what is past.
///
/// Bytes moved: what is new, where the past is kept; all of it where it is an array.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Append {
    /// How many tokens each one sees, itself among them; none for all before it.
    pub(super) window: Option<usize>,
}

/// `mixed[1, S, H * W]` of queries `[1, H, S, W]` and keys and values of what is past and new.
///
/// Bytes moved: keys and values once for each tile of rows; bound by them for few new tokens, by the
/// products for many.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Mix {
    /// Bits of the f32 that scores are multiplied by.
    scale_bits: u32,
    window: Option<usize>,
}

/// Reads the operator of a graph.
pub fn parse(
    _context: &ParsingContext,
    node: &NodeProto,
) -> TractResult<(Box<dyn InferenceOp>, Vec<String>)> {
    let scale = attribute(node, "scale").context("CachedAttention has a scale")?.f;
    let window = attribute(node, "window").map(|window| usize::try_from(window.i));
    let window = window.transpose()?;
    ensure!(window != Some(0), "a window of no token");
    let op = CachedAttention { scale, window };
    Ok((expand(op), vec![]))
}

impl Expansion for CachedAttention {
    fn name(&self) -> StaticName {
        OPERATOR.into()
    }

    fn nboutputs(&self) -> TractResult<usize> {
        Ok(3)
    }

    fn rules<'r, 'p: 'r, 's: 'r>(
        &'s self,
        s: &mut Solver<'r>,
        inputs: &'p [TensorProxy],
        outputs: &'p [TensorProxy],
    ) -> InferenceResult {
        ensure!(inputs.len() == 5 && outputs.len() == 3, "CachedAttention takes 5 and gives 3");
        for port in inputs.iter().chain(outputs) {
            s.equals(&port.datum_type, f32::datum_type())?;
        }
        for input in inputs {
            s.equals(&input.rank, 4)?;
        }
        let [query, key, value, past_key, past_value] = inputs else {
            unreachable!("counted above")
        };
        for (new, past, present) in [(key, past_key, &outputs[1]), (value, past_value, &outputs[2])]
        {
            s.given_2(&new.shape, &past.shape, move |s, new, past| {
                let mut shape = past.clone();
                shape[2] = past[2].clone() + &new[2];
                s.equals(&present.shape, shape)
            })?;
        }
        s.given(&query.shape, move |s, query| {
            let [_, heads, new, width] = &query[..] else { bail!("queries have four axes") };
            s.equals(&outputs[0].shape, tvec![1.to_dim(), new.clone(), heads.clone() * width])
        })
    }

    fn wire(
        &self,
        prefix: &str,
        model: &mut TypedModel,
        inputs: &[OutletId],
    ) -> TractResult<TVec<OutletId>> {
        let &[query, key, value, past_key, past_value] = inputs else {
            bail!("CachedAttention takes 5 inputs")
        };
        let window = self.window;
        let keys =
            model.wire_node(format!("{prefix}.keys"), Append { window }, &[key, past_key])?;
        let parts = [value, past_value];
        let values = model.wire_node(format!("{prefix}.values"), Append { window }, &parts)?;
        let mix = Mix { scale_bits: self.scale.to_bits(), window };
        let mixed = model.wire_node(prefix, mix, &[query, keys[0], values[0]])?;
        Ok(tvec!(mixed[0], keys[0], values[0]))
    }
}

impl Op for Append {
    fn name(&self) -> StaticName {
        "Append".into()
    }

    op_as_typed_op!();
}

impl TypedOp for Append {
    fn output_facts(&self, inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        let [new, past] = inputs else { bail!("Append takes 2 inputs") };
        check_fact(new)?;
        check_fact(past)?;
        let is_alike = [1, 3].iter().all(|axis| new.shape[*axis] == past.shape[*axis]);
        ensure!(is_alike && new.shape[3].as_i64().is_some(), "{new:?} behind {past:?}");
        let mut shape = past.shape.to_tvec();
        shape[2] = past.shape[2].clone() + &new.shape[2];
        Ok(tvec!(f32::fact(shape)))
    }

    as_op!();
}

impl EvalOp for Append {
    not_out_of_plan!();

    fn eval(&self, context: &EvalContext, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        let (new, past) = args_2!(inputs);
        let present = match past.storage_as::<KeptPast>() {
            Some(kept) => kept.appended(past.shape(), &new)?,
            None => {
                feed(context)?.grow((past.len() * size_of::<f32>()) as u64)?;
                Tensor::stack_tensors(2, &[past, new])?
            }
        };
        Ok(tvec!(present.into_tvalue()))
    }
}

impl Op for Mix {
    fn name(&self) -> StaticName {
        OPERATOR.into()
    }

    op_as_typed_op!();
}

impl TypedOp for Mix {
    fn output_facts(&self, inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        let [query, keys, values] = inputs else { bail!("CachedAttention mixes 3 inputs") };
        inputs.iter().try_for_each(|input| check_fact(input))?;
        let sizes = |fact: &TypedFact, axis: usize| fact.shape[axis].as_i64().unwrap_or(0);
        let [heads, shared] = [query, keys].map(|fact| sizes(fact, 1));
        ensure!(shared > 0 && heads % shared == 0, "{heads} heads of queries, {shared} of keys");
        ensure!(sizes(query, 3) > 0, "the width of heads is open");
        ensure!(keys.shape == values.shape, "{keys:?} and {values:?}");
        ensure!(keys.shape[3] == query.shape[3], "{keys:?} for {query:?}");
        let joined = query.shape[1].clone() * &query.shape[3];
        Ok(tvec!(f32::fact([1.to_dim(), query.shape[2].clone(), joined])))
    }

    as_op!();
}

fn check_fact(fact: &TypedFact) -> TractResult<()> {
    ensure!(fact.datum_type == f32::datum_type() && fact.rank() == 4, "{fact:?}");
    ensure!(fact.shape[0].is_one(), "more than one text: {fact:?}");
    Ok(())
}

impl EvalOp for Mix {
    not_out_of_plan!();

    fn eval(&self, _context: &EvalContext, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        let (query, keys, values) = args_3!(inputs);
        let layout = self.layout(&query, &keys)?;
        let query = query.try_as_plain_ram()?;
        let query = query.as_slice::<f32>()?;
        let kept = [&keys, &values].map(|past| past.storage_as::<KeptPast>());
        let mixed = if let [Some(keys), Some(values)] = kept {
            let (keys, values) = (keys.open(), values.open());
            let layout = Layout { capacity: keys.capacity(), ..layout };
            self.mix(&layout, query, keys.values(), values.values())?
        } else {
            let (keys, values) = (keys.try_as_plain_ram()?, values.try_as_plain_ram()?);
            self.mix(&layout, query, keys.as_slice::<f32>()?, values.as_slice::<f32>()?)?
        };
        Ok(tvec!(mixed))
    }
}

impl Mix {
    /// Sizes of an evaluation whose keys lie one after the other.
    fn layout(&self, query: &Tensor, keys: &Tensor) -> TractResult<Layout> {
        let [_, queries, new, width] = *query.shape() else { bail!("queries have four axes") };
        let [_, keys, seen, _] = *keys.shape() else { bail!("keys have four axes") };
        let past = seen.checked_sub(new).context("more new tokens than all")?;
        Ok(Layout {
            queries,
            keys,
            width,
            new,
            past,
            capacity: seen,
            window: self.window.unwrap_or(usize::MAX),
            scale: f32::from_bits(self.scale_bits),
        })
    }

    fn mix(
        &self,
        layout: &Layout,
        query: &[f32],
        keys: &[f32],
        values: &[f32],
    ) -> TractResult<TValue> {
        let work = || attend(layout, query, keys, values, rayon::current_num_threads());
        let mixed = match current_tract_executor() {
            Executor::MultiThread(pool) => pool.install(work),
            _ => attend(layout, query, keys, values, 1),
        };
        let shape = [1, layout.new, layout.queries * layout.width];
        Ok(Tensor::from_shape(&shape, &mixed)?.into_tvalue())
    }

    /// Bytes that an evaluation works with besides its inputs, its outputs and as much again as what
    /// comes of its queries.
    pub fn work_bytes(inputs: &[&TypedFact]) -> u64 {
        let width = inputs.first().and_then(|query| query.shape.get(3)?.as_i64());
        let width = usize::try_from(width.unwrap_or(0)).unwrap_or(0);
        let tile = TILE_ROWS * (BLOCK + 4 * width) + 2 * BLOCK * width;
        (MOST_THREADS * tile * size_of::<f32>()) as u64
    }
}

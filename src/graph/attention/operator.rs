//! The operators as graphs have them. Both are wired as two [`Append`] and a [`Mix`].

use super::{Append, Mix, OLD_OPERATOR, OPERATOR};
use crate::checkpoint::Rotation;
use crate::graph::repair::attribute;
use tract_core::internal::*;
use tract_onnx::model::ParsingContext;
use tract_onnx::pb::NodeProto;
use tract_onnx::tract_hir::infer::{InferenceOp, InferenceResult, Solver, TensorProxy};
use tract_onnx::tract_hir::ops::expandable::{Expansion, expand};

/// Attention over what is past and new: `mixed[1, S, H * W], keys[1, K, P + S, W], values[1, K, P +
/// S, W]` of queries `[1, S, H * W]`, new keys and values `[1, S, K * W]` and those of what is
/// past,
/// `[1, K, P, W]`, all f32. Queries and keys that are turned come with cosines and sines, `[S, pairs]`.
#[derive(Clone, Debug)]
struct Attention {
    scale: f32,
    window: Option<usize>,
    rotation: Option<Rotation>,
    /// Whether heads come first: `[1, H, S, W]` of queries, `[1, K, S, W]` of what is new.
    by_head: bool,
}

impl Attention {
    fn read(node: &NodeProto) -> TractResult<Attention> {
        let scale = attribute(node, "scale").context("attention has a scale")?.f;
        let window = attribute(node, "window").map(|window| usize::try_from(window.i));
        let window = window.transpose()?;
        ensure!(window != Some(0), "a window of no token");
        Ok(Attention { scale, window, rotation: None, by_head: false })
    }

    fn input_count(&self) -> usize {
        if self.rotation.is_some() { 7 } else { 5 }
    }
}

/// What a parser of tract's gives back: an operator, and names it closes on.
type Parsed = TractResult<(Box<dyn InferenceOp>, Vec<String>)>;

/// Reads the operator of a graph.
pub fn parse(_context: &ParsingContext, node: &NodeProto) -> Parsed {
    let rotation = attribute(node, "interleaved").map(|interleaved| match interleaved.i {
        0 => Ok(Rotation::Halves),
        1 => Ok(Rotation::Interleaved),
        other => bail!("interleaved is {other}"),
    });
    Ok((expand(Attention { rotation: rotation.transpose()?, ..Attention::read(node)? }), vec![]))
}

/// Reads that of before, whose heads come first and are turned by nodes in front of it.
pub fn parse_old(_context: &ParsingContext, node: &NodeProto) -> Parsed {
    Ok((expand(Attention { by_head: true, ..Attention::read(node)? }), vec![]))
}

impl Expansion for Attention {
    fn name(&self) -> StaticName {
        if self.by_head { OLD_OPERATOR.into() } else { OPERATOR.into() }
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
        let count = self.input_count();
        let is_whole = inputs.len() == count && outputs.len() == 3;
        ensure!(is_whole, "{} takes {count} and gives 3", self.name());
        for port in inputs.iter().chain(outputs) {
            s.equals(&port.datum_type, f32::datum_type())?;
        }
        let [query, key, value, past_key, past_value, ..] = inputs else {
            unreachable!("counted above")
        };
        let tokens = if self.by_head { 2 } else { 1 };
        for (new, past, present) in [(key, past_key, &outputs[1]), (value, past_value, &outputs[2])]
        {
            s.equals(&past.rank, 4)?;
            s.given_2(&new.shape, &past.shape, move |s, new, past| {
                let new = new.get(tokens).context("new keys and values have an axis of tokens")?;
                let mut shape = past.clone();
                shape[2] = past[2].clone() + new;
                s.equals(&present.shape, shape)
            })?;
        }
        s.given(&query.shape, move |s, query| {
            let new = query.get(tokens).context("queries have an axis of tokens")?;
            let others = query.iter().enumerate().skip(1).filter(|(axis, _)| *axis != tokens);
            let joined = others.map(|(_, dim)| dim.clone()).product::<TDim>();
            s.equals(&outputs[0].shape, tvec![1.to_dim(), new.clone(), joined])
        })
    }

    fn wire(
        &self,
        prefix: &str,
        model: &mut TypedModel,
        inputs: &[OutletId],
    ) -> TractResult<TVec<OutletId>> {
        let &[query, key, value, past_key, past_value, ..] = inputs else {
            bail!("{} takes {} inputs", self.name(), self.input_count())
        };
        let mut by_token = |name: &str, new: OutletId| match self.by_head {
            true => {
                let name = format!("{prefix}.{name}_by_token");
                model.wire_node(name, AxisOp::Move(1, 2), &[new]).map(|outlets| outlets[0])
            }
            false => Ok(new),
        };
        let query = by_token("queries", query)?;
        let [key, value] = [by_token("new_keys", key)?, by_token("new_values", value)?];
        let (window, rotation, angles) = (self.window, self.rotation, &inputs[5..]);
        let mut append = |name: &str, new: OutletId, past: OutletId, rotation, angles: &[_]| {
            let inputs = [&[new, past], angles].concat();
            model.wire_node(format!("{prefix}.{name}"), Append { window, rotation }, &inputs)
        };
        let keys = append("keys", key, past_key, rotation, angles)?;
        let values = append("values", value, past_value, None, &[])?;
        let mix = Mix { scale_bits: self.scale.to_bits(), window, rotation };
        let inputs = [&[query, keys[0], values[0]], angles].concat();
        let mixed = model.wire_node(prefix, mix, &inputs)?;
        Ok(tvec!(mixed[0], keys[0], values[0]))
    }
}

//! Rewrites of tract's typed graph, before its own passes.
//!
//! They stand in for ops of tract 0.23.9 whose evaluation or declutter is wrong: a chain from
//! dequantization to quantization is made into a table of single values even where it has a
//! softmax; squares of integers go through f32; the smaller and the larger of a NaN and a number
//! is the number; beside a NaN the extreme is found anywhere; the largest of nothing is the smallest
//! finite number; shifts by as many bits as there are overflow; nothing times a NaN or infinity is
//! nothing; sums of integers are taken in 32 bits; steps of a slice are moved before the axis that
//! they go along; states of a loop that begin as one value are changed together.

use super::super::ordered::place;
use super::extremes::Extreme;
use super::numbers::{
    AtLeast, AtMost, Larger, ShiftedDown, ShiftedUp, Smaller, Times, WholeSquare,
};
use super::sums::{WholeSum, is_wide};
use tract_core::internal::*;
use tract_core::ops::array::StridedSlice;
use tract_core::ops::binary::{BinMiniOp, TypedBinOp};
use tract_core::ops::cast::cast;
use tract_core::ops::downsample::Downsample;
use tract_core::ops::element_wise::{ElementWiseMiniOp, ElementWiseOp};
use tract_core::ops::logic::IfThenElse;
use tract_core::ops::math::{self, Max, Min, Mul, Pow, ShiftLeft, ShiftRight, Square};
use tract_core::ops::nn::{Reduce, Reducer};
use tract_core::ops::quant::DequantizeLinearF32;
use tract_core::ops::scan::{InputMapping, Scan};

/// Replaces what would be computed wrongly, in bodies too; fails at what can be neither replaced
/// nor trusted.
pub fn repair(model: &mut TypedModel) -> TractResult<()> {
    for node in &mut model.nodes {
        if let Some(scan) = node.op.downcast_mut::<Scan>() {
            repair(&mut scan.body)?;
        } else if let Some(branches) = node.op.downcast_mut::<IfThenElse>() {
            repair(&mut branches.then_body)?;
            repair(&mut branches.else_body)?;
        }
    }
    for id in model.eval_order()? {
        if let Some(patch) = repaired(model, model.node(id))? {
            patch.apply(model)?;
        }
    }
    Ok(())
}

fn repaired(model: &TypedModel, node: &TypedNode) -> TractResult<Option<TypedModelPatch>> {
    if let Some(op) = node.op_as::<DequantizeLinearF32>() {
        return dequantized(model, node, op).map(Some);
    }
    if let Some(op) = node.op_as::<TypedBinOp>() {
        return binary(model, node, &*op.0);
    }
    if let Some(op) = node.op_as::<ElementWiseOp>() {
        let integers = model.outlet_fact(node.inputs[0])?.datum_type.is_integer();
        return if op.0.is::<Square>() && integers {
            unary(model, node, node.inputs[0], Box::new(WholeSquare {})).map(Some)
        } else {
            Ok(None)
        };
    }
    if let Some(op) = node.op_as::<Reduce>() {
        return reduced(model, node, op);
    }
    if let Some(op) = node.op_as::<StridedSlice>() {
        if one_by_one(model, node, op)? {
            return Ok(None);
        }
        check_steps(model, node)?;
        return stepped(model, node).map(Some);
    }
    if let Some(scan) = node.op_as::<Scan>() {
        return apart(model, node, scan);
    }
    match node.op_is::<Downsample>() {
        true => stepped(model, node).map(Some),
        false => Ok(None),
    }
}

/// Steps where they are: tract moves them before what changes axes, and fails where that made their
/// own.
fn stepped(model: &TypedModel, node: &TypedNode) -> TractResult<TypedModelPatch> {
    let mut patch = TypedModelPatch::default();
    let inputs = node.inputs.iter().map(|input| patch.tap_model(model, *input));
    let mut inputs = inputs.collect::<TractResult<TVec<_>>>()?;
    let fixed = Fixed { folds: true };
    inputs[0] = patch.wire_node(format!("{}.whole", node.name), fixed, &inputs[..1])?[0];
    let wire = patch.wire_node(&node.name, node.op.clone(), &inputs)?;
    patch.shunt_outside(model, node.id.into(), wire[0])?;
    Ok(patch)
}

/// A loop's states that begin as the same: tract changes the axes of one, and with them those of
/// the value that all begin with.
fn apart(
    model: &TypedModel,
    node: &TypedNode,
    scan: &Scan,
) -> TractResult<Option<TypedModelPatch>> {
    let facts = model.node_input_facts(node.id)?;
    let is_state = |at: &usize| matches!(scan.input_mapping[*at], InputMapping::State);
    let same = |a: usize, b: usize| {
        let equal = facts[a].konst.is_some() && facts[a].konst == facts[b].konst;
        node.inputs[a] == node.inputs[b] || equal
    };
    let states: Vec<usize> = (0..node.inputs.len()).filter(is_state).collect();
    let shared = |(at, state): &(usize, &usize)| states[..*at].iter().any(|s| same(*s, **state));
    let shared: Vec<usize> = states.iter().enumerate().filter(shared).map(|(_, s)| *s).collect();
    if shared.is_empty() {
        return Ok(None);
    }
    let mut patch = TypedModelPatch::default();
    let inputs = node.inputs.iter().map(|input| patch.tap_model(model, *input));
    let mut inputs = inputs.collect::<TractResult<TVec<_>>>()?;
    for state in shared {
        let (name, fixed) = (format!("{}.state.{state}", node.name), Fixed { folds: false });
        inputs[state] = patch.wire_node(name, fixed, &[inputs[state]])?[0];
    }
    let wires = patch.wire_node(&node.name, node.op.clone(), &inputs)?;
    for (slot, wire) in wires.into_iter().enumerate() {
        patch.shunt_outside(model, OutletId::new(node.id, slot), wire)?;
    }
    Ok(Some(patch))
}

/// Its input, over which tract moves nothing.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Fixed {
    /// Whether what is made of a constant is one.
    folds: bool,
}

impl Op for Fixed {
    fn name(&self) -> StaticName {
        "Fixed".into()
    }

    op_as_typed_op!();
}

impl EvalOp for Fixed {
    fn eval_out_of_plan(&self, inputs: TVec<TValue>) -> TractResult<Option<TVec<TValue>>> {
        Ok(self.folds.then_some(inputs))
    }

    fn eval(&self, _: &EvalContext, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        Ok(inputs)
    }
}

impl TypedOp for Fixed {
    fn output_facts(&self, inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        Ok(tvec![inputs[0].without_value()])
    }

    as_op!();
}

/// (x - zero point) * scale, in ops that no pass takes for a table.
fn dequantized(
    model: &TypedModel,
    node: &TypedNode,
    op: &DequantizeLinearF32,
) -> TractResult<TypedModelPatch> {
    let rank = model.outlet_fact(node.inputs[0])?.rank();
    let (name, mut patch) = (&node.name, TypedModelPatch::default());
    let mut wire = tvec![patch.tap_model(model, node.inputs[0])?];
    wire = patch.wire_node(format!("{name}.float"), cast(f32::datum_type()), &wire)?;
    let terms =
        [("zero_point", op.zero_point as f32, math::sub()), ("scale", op.scale, math::mul())];
    for (term, value, op) in terms {
        let value = tensor0(value).broadcast_into_rank(rank)?;
        let value = patch.add_const(format!("{name}.{term}"), value)?;
        wire = patch.wire_node(format!("{name}.by_{term}"), op, &[wire[0], value])?;
    }
    patch.shunt_outside(model, node.id.into(), wire[0])?;
    Ok(patch)
}

fn binary(
    model: &TypedModel,
    node: &TypedNode,
    op: &dyn BinMiniOp,
) -> TractResult<Option<TypedModelPatch>> {
    let facts = model.node_input_facts(node.id)?;
    let kind = facts[0].datum_type;
    if kind != facts[1].datum_type || kind.is_quantized() {
        return Ok(None);
    }
    let replaced = |op: Box<dyn BinMiniOp>| {
        let op = TypedBinOp(op, None);
        TypedModelPatch::replace_single_op(model, node, &node.inputs, op).map(Some)
    };
    if kind.is_float() && (op.is::<Max>() || op.is::<Min>()) {
        if let Some((other, bound)) = bounded(node, &facts)? {
            let bounded: Box<dyn ElementWiseMiniOp> = if op.is::<Max>() {
                Box::new(AtLeast { bound })
            } else {
                Box::new(AtMost { bound })
            };
            return unary(model, node, other, bounded).map(Some);
        }
        return replaced(if op.is::<Max>() { Box::new(Larger) } else { Box::new(Smaller) });
    }
    if kind.is_float() && op.is::<Mul>() {
        let nothing = by_nothing(node, &facts)?;
        let by = |(other, factor)| unary(model, node, other, Box::new(Times { factor }));
        return nothing.map(by).transpose();
    }
    if !kind.is_integer() {
        return Ok(None);
    }
    let squared =
        op.is::<Mul>() && node.inputs[0] == node.inputs[1] || op.is::<Pow>() && is_two(facts[1])?;
    if squared {
        return unary(model, node, node.inputs[0], Box::new(WholeSquare {})).map(Some);
    }
    match () {
        () if op.is::<ShiftLeft>() => replaced(Box::new(ShiftedUp)),
        () if op.is::<ShiftRight>() => replaced(Box::new(ShiftedDown)),
        () => Ok(None),
    }
}

/// The operand that is not a single known number, where the other is one of the same rank.
fn bounded(node: &TypedNode, facts: &[&TypedFact]) -> TractResult<Option<(OutletId, f64)>> {
    for (at, other) in [(1, 0), (0, 1)] {
        let is_one = facts[at].shape.iter().all(|dim| dim.is_one());
        if let Some(value) = facts[at].konst.as_ref().filter(|_| is_one)
            && facts[other].konst.is_none()
        {
            return Ok(Some((node.inputs[other], value.cast_to_scalar::<f64>()?)));
        }
    }
    Ok(None)
}

/// The operand that is multiplied with zeros only, and the zero, whose sign counts.
fn by_nothing(node: &TypedNode, facts: &[&TypedFact]) -> TractResult<Option<(OutletId, f64)>> {
    for (at, other) in [(0, 1), (1, 0)] {
        let Some(value) = &facts[at].uniform else { continue };
        let mut sizes = facts[at].shape.iter().zip(facts[other].shape.iter());
        if value.cast_to_scalar::<f64>()? == 0.0 && sizes.all(|(a, b)| a.is_one() || a == b) {
            return Ok(Some((node.inputs[other], value.cast_to_scalar()?)));
        }
    }
    Ok(None)
}

fn is_two(fact: &TypedFact) -> TractResult<bool> {
    match &fact.uniform {
        Some(value) => Ok(value.cast_to_scalar::<i64>()? == 2),
        None => Ok(false),
    }
}

fn unary(
    model: &TypedModel,
    node: &TypedNode,
    input: OutletId,
    op: Box<dyn ElementWiseMiniOp>,
) -> TractResult<TypedModelPatch> {
    TypedModelPatch::replace_single_op(model, node, &[input], ElementWiseOp(op, None))
}

/// The largest or smallest of floats, of which tract begins with the largest finite one, and of
/// booleans; sums of wide integers.
fn reduced(
    model: &TypedModel,
    node: &TypedNode,
    op: &Reduce,
) -> TractResult<Option<TypedModelPatch>> {
    let kind = model.outlet_fact(node.inputs[0])?.datum_type;
    let largest = match op.reducer {
        Reducer::Max => true,
        Reducer::Min => false,
        Reducer::Sum if is_wide(kind) => {
            let op = WholeSum { axes: op.axes.clone() };
            return TypedModelPatch::replace_single_op(model, node, &node.inputs, op).map(Some);
        }
        Reducer::ArgMax(last) | Reducer::ArgMin(last) if kind.is_float() => {
            return place_of_extreme(model, node, op, last).map(Some);
        }
        _ => return Ok(None),
    };
    if kind.is_float() {
        let op = Extreme { axes: op.axes.clone(), largest };
        return TypedModelPatch::replace_single_op(model, node, &node.inputs, op).map(Some);
    }
    if kind != DatumType::Bool {
        return Ok(None);
    }
    let mut patch = TypedModelPatch::default();
    let mut wire = tvec![patch.tap_model(model, node.inputs[0])?];
    wire = patch.wire_node(format!("{}.number", node.name), cast(u8::datum_type()), &wire)?;
    wire = patch.wire_node(format!("{}.reduced", node.name), op.clone(), &wire)?;
    wire = patch.wire_node(&node.name, cast(bool::datum_type()), &wire)?;
    patch.shunt_outside(model, node.id.into(), wire[0])?;
    Ok(Some(patch))
}

/// Where the first or last extreme lies, by integers of the floats' order, in which NaN is one either
/// way: the place of the least is that of the greatest of what is negated.
fn place_of_extreme(
    model: &TypedModel,
    node: &TypedNode,
    op: &Reduce,
    last: bool,
) -> TractResult<TypedModelPatch> {
    let (name, mut patch) = (&node.name, TypedModelPatch::default());
    let mut wire = tvec![patch.tap_model(model, node.inputs[0])?];
    if matches!(op.reducer, Reducer::ArgMin(_)) {
        wire = patch.wire_node(format!("{name}.negated"), math::neg(), &wire)?;
    }
    wire = patch.wire_node(format!("{name}.place"), place(), &wire)?;
    let op = Reduce { reducer: Reducer::ArgMax(last), ..op.clone() };
    wire = patch.wire_node(name, op, &wire)?;
    patch.shunt_outside(model, node.id.into(), wire[0])?;
    Ok(patch)
}

/// Tract leaves an axis whole where it has a step and bounds that are computed.
fn check_steps(model: &TypedModel, node: &TypedNode) -> TractResult<()> {
    for at in [1, 2] {
        let is_known = model.outlet_fact(node.inputs[at])?.konst.is_some();
        ensure!(is_known, "node {}: a slice with steps between computed bounds", node.name);
    }
    Ok(())
}

/// Whether all steps of a slice are 1.
fn one_by_one(model: &TypedModel, node: &TypedNode, op: &StridedSlice) -> TractResult<bool> {
    let Some(at) = op.optional_steps_input else { return Ok(true) };
    let Some(steps) = &model.outlet_fact(node.inputs[at])?.konst else { return Ok(false) };
    let steps = steps.cast_to::<i64>()?;
    Ok(steps.try_as_plain_ram()?.as_slice::<i64>()?.iter().all(|step| *step == 1))
}

//! Operators that are built otherwise than by tract, which cannot do with open sizes there.

use super::attention;
use super::half;
use super::of_sizes::{self, as_sizes, least, to_numbers};
use super::quantize::{to_i8, to_u8};
use super::repair::attribute;
use super::squeeze::Squeeze;
use std::sync::LazyLock;
use tract_core::internal::*;
use tract_core::ops::array::{Slice, TypedConcat};
use tract_core::ops::cast::wire_cast;
use tract_core::ops::change_axes::wire_with_rank_broadcast;
use tract_core::ops::downsample::Downsample;
use tract_core::ops::identity::Identity;
use tract_core::ops::logic::Iff;
use tract_core::ops::nn::{Softmax, SoftmaxKind};
use tract_onnx::Onnx;
use tract_onnx::model::ParsingContext;
use tract_onnx::pb::{NodeProto, TensorProto};
use tract_onnx::tract_hir::infer::{InferenceOp, InferenceResult, Solver, TensorProxy};
use tract_onnx::tract_hir::internal::IntoExp;
use tract_onnx::tract_hir::ops::expandable::{Expansion, expand};

/// What tract builds, by itself.
static TRACT: LazyLock<Onnx> = LazyLock::new(tract_onnx::onnx);

/// The register of operators.
pub fn onnx() -> Onnx {
    let mut onnx = TRACT.clone().with_ignore_value_info(true);
    let register = &mut onnx.op_register;
    register.insert("Attention", |context, node| rewired(context, node, masked));
    register.insert(attention::OPERATOR, attention::parse);
    register.insert(attention::OLD_OPERATOR, attention::parse_old);
    register.insert("Concat", concat);
    register.insert("CumSum", |context, node| rewired(context, node, of_numbers));
    register.insert("Div", |context, node| rewired(context, node, of_sizes::quotient));
    register.insert("Equal", |context, node| rewired(context, node, of_sizes::equal));
    register.insert("LogSoftmax", |context, node| rewired(context, node, log_softmax));
    register.insert("Mod", |context, node| rewired(context, node, of_sizes::remainder));
    register.insert("QuantizeLinear", |context, node| rewired(context, node, quantized));
    register.insert("Slice", slice);
    register.insert("Squeeze", squeeze);
    for name in half::SUMS {
        register.insert(name, |context, node| rewired(context, node, half::in_floats));
    }
    onnx
}

/// What a builder gives back: an operator, and names it closes on.
type Built = TractResult<(Box<dyn InferenceOp>, Vec<String>)>;

fn by_tract(context: &ParsingContext, node: &NodeProto) -> Built {
    let builder = TRACT.op_register.0.get(&node.op_type).context("an operator of tract's")?;
    builder(context, node)
}

/// Arrays side by side. What tract wants equal in the other axes may differ in form, `2*((h+3)/4)`
/// and `(h+1)/2`, and be equal for the sizes that are asked for: that is checked in each pass.
#[derive(Clone, Debug)]
struct Concat {
    axis: i64,
}

fn concat(_context: &ParsingContext, node: &NodeProto) -> Built {
    let axis = attribute(node, "axis").context("a Concat has an axis")?.i;
    Ok((expand(Concat { axis }), vec![]))
}

impl Concat {
    fn axis(&self, rank: usize) -> TractResult<usize> {
        let axis = if self.axis < 0 { self.axis + rank as i64 } else { self.axis };
        usize::try_from(axis)
            .ok()
            .filter(|axis| *axis < rank)
            .with_context(|| format!("axis {} of {rank}", self.axis))
    }
}

/// Whether two sizes may turn out equal, although nobody can say so beforehand. A symbol of the
/// inputs is none of them: it is made what it is beside.
fn may_be_equal(a: &TDim, b: &TDim) -> bool {
    let is_bare = |dim: &TDim| matches!(dim, TDim::Sym(_) | TDim::Val(_));
    a != b && !(is_bare(a) && is_bare(b))
}

impl Expansion for Concat {
    fn name(&self) -> StaticName {
        "Concat".into()
    }

    fn rules<'r, 'p: 'r, 's: 'r>(
        &'s self,
        s: &mut Solver<'r>,
        inputs: &'p [TensorProxy],
        outputs: &'p [TensorProxy],
    ) -> InferenceResult {
        ensure!(!inputs.is_empty() && outputs.len() == 1, "a Concat of nothing");
        s.equals(&outputs[0].rank, &inputs[0].rank)?;
        s.equals_all(inputs.iter().map(|input| (&input.rank).bex()).collect())?;
        s.given_all(inputs.iter().map(|input| (&input.datum_type).bex()), move |s, types| {
            let common = DatumType::super_type_for(&types);
            let common = common.with_context(|| format!("no type has all of {types:?}"))?;
            s.equals(&outputs[0].datum_type, common)
        })?;
        s.given(&inputs[0].rank, move |s, rank| {
            let along = self.axis(rank as usize)?;
            let lengths = inputs.iter().map(|input| (&input.shape[along]).bex());
            s.given_all(lengths, move |s, lengths| {
                s.equals(&outputs[0].shape[along], lengths.into_iter().sum::<TDim>())
            })?;
            for axis in (0..rank as usize).filter(|axis| *axis != along) {
                s.equals(&outputs[0].shape[axis], &inputs[0].shape[axis])?;
                for input in &inputs[1..] {
                    let (first, other) = (&inputs[0].shape[axis], &input.shape[axis]);
                    s.given_2(first, other, move |s, a, b| match may_be_equal(&a, &b) {
                        true => Ok(()),
                        false => s.equals(first, other),
                    })?;
                }
            }
            Ok(())
        })
    }

    fn wire(
        &self,
        prefix: &str,
        model: &mut TypedModel,
        inputs: &[OutletId],
    ) -> TractResult<TVec<OutletId>> {
        let fact = |input: &OutletId| model.outlet_fact(*input).cloned();
        let facts = inputs.iter().map(fact).collect::<TractResult<Vec<_>>>()?;
        let common = DatumType::super_type_for(facts.iter().map(|fact| fact.datum_type));
        let common = common.context("no type has all of the inputs")?;
        let axis = self.axis(facts[0].rank())?;
        let mut wires = wire_cast(prefix, model, inputs, common)?;
        for (index, (wire, fact)) in wires.iter_mut().zip(&facts).enumerate() {
            let mut shape = facts[0].shape.to_tvec();
            shape[axis] = fact.shape[axis].clone();
            if shape[..] != fact.shape.to_tvec()[..] {
                let name = format!("{prefix}.same.{index}");
                *wire = model.wire_node(name, SameShape { shape }, &[*wire])?[0];
            }
        }
        model.wire_node(prefix, TypedConcat::new(axis), &wires)
    }
}

/// Its input, whose shape is another expression of the same numbers.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct SameShape {
    shape: TVec<TDim>,
}

impl Op for SameShape {
    fn name(&self) -> StaticName {
        "SameShape".into()
    }

    op_as_typed_op!();
}

impl EvalOp for SameShape {
    op_out_of_plan!();

    fn eval(&self, context: &EvalContext, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        let sizes = self.shape.iter().map(|dim| Ok(dim.eval(context.symbols).to_usize()?));
        let wanted = sizes.collect::<TractResult<TVec<usize>>>()?;
        let found = inputs[0].shape();
        ensure!(
            *wanted == *found,
            "sizes that have to be the same come to {wanted:?} and {found:?}: other sizes of the inputs may do"
        );
        Ok(inputs)
    }
}

impl TypedOp for SameShape {
    fn output_facts(&self, inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        Ok(tvec!(inputs[0].datum_type.fact(&self.shape)))
    }

    as_op!();
}

/// A slice whose bounds are constants, and may lie beyond the ends of an open axis.
#[derive(Clone, Debug)]
struct ConstantSlice {
    /// Axis, start, end and step of each.
    cuts: Vec<[i64; 4]>,
}

fn slice(context: &ParsingContext, node: &NodeProto) -> Built {
    match ConstantSlice::of(context, node) {
        Some(slice) => Ok((expand(slice), vec![])),
        None => by_tract(context, node),
    }
}

fn squeeze(context: &ParsingContext, node: &NodeProto) -> Built {
    let axes = match node.input.get(1).filter(|name| !name.is_empty()) {
        Some(name) => match constant(context, name) {
            Some(axes) => Some(axes),
            None => return by_tract(context, node),
        },
        None => attribute(node, "axes").map(|axes| axes.ints.clone()),
    };
    Ok((expand(Squeeze { axes }), vec![]))
}

/// The integers of a constant, where the graph has it as one.
fn constant(context: &ParsingContext, name: &str) -> Option<Vec<i64>> {
    let load = |tensor: &TensorProto| -> Option<Vec<i64>> {
        let tensor = context.load_tensor(tensor).ok()?;
        let values = tensor.cast_to::<i64>().ok()?;
        Some(values.try_as_plain_ram().ok()?.as_slice::<i64>().ok()?.to_vec())
    };
    let graph = context.parent_graphs.last()?;
    if let Some(tensor) = graph.initializer.iter().find(|tensor| tensor.name == name) {
        return load(tensor);
    }
    let makes = |node: &&NodeProto| node.output.first().is_some_and(|output| output == name);
    let node = graph.node.iter().find(makes).filter(|node| node.op_type == "Constant")?;
    match attribute(node, "value") {
        Some(value) => load(value.t.as_ref()?),
        None => Some(attribute(node, "value_ints")?.ints.clone()),
    }
}

impl ConstantSlice {
    fn of(context: &ParsingContext, node: &NodeProto) -> Option<ConstantSlice> {
        let parts: [Option<Vec<i64>>; 4] = match context.onnx_operator_set_version < 10 {
            true => ["starts", "ends", "axes", "steps"]
                .map(|name| attribute(node, name).map(|attribute| attribute.ints.clone())),
            false => {
                let input = |index: usize| node.input.get(index).filter(|name| !name.is_empty());
                if (1..5).any(|i| input(i).is_some_and(|name| constant(context, name).is_none())) {
                    return None;
                }
                [1, 2, 3, 4].map(|index| constant(context, input(index)?))
            }
        };
        let [starts, ends, axes, steps] = parts;
        let (starts, ends) = (starts?, ends?);
        let axes = axes.unwrap_or_else(|| (0..starts.len() as i64).collect());
        let steps = steps.unwrap_or_else(|| vec![1; starts.len()]);
        let all_alike = [&ends, &axes, &steps].iter().all(|part| part.len() == starts.len());
        if !all_alike || steps.iter().any(|step| [0, i64::MIN].contains(step)) {
            return None;
        }
        let cuts = (0..starts.len()).map(|i| [axes[i], starts[i], ends[i], steps[i]]).collect();
        Some(ConstantSlice { cuts })
    }

    /// Axis, first, end and step of each cut that takes anything away; one with a negative step
    /// begins before its end.
    fn resolve(&self, shape: &[TDim]) -> TractResult<Vec<(usize, TDim, TDim, i64)>> {
        let mut found = vec![];
        for [axis, start, end, step] in &self.cuts {
            let axis = if *axis < 0 { axis + shape.len() as i64 } else { *axis } as usize;
            let dim = shape.get(axis).with_context(|| format!("axis {axis} of {}", shape.len()))?;
            let (start, end) = match *step > 0 {
                true => (bound(dim, *start), bound(dim, *end)),
                false => (behind(dim, *end), last(dim, *start)),
            };
            let end = not_before(&start, end, dim);
            if start != 0.to_dim() || end != *dim || *step != 1 {
                found.push((axis, start, end, *step));
            }
        }
        Ok(found)
    }
}

/// The end of a slice that may be said to lie before its start: then it holds nothing.
fn not_before(start: &TDim, end: TDim, dim: &TDim) -> TDim {
    // As plain as can be, for sizes are compared by what they read; an open axis is taken to have
    // two elements at least.
    let is_behind = *start == 0.to_dim()
        || end == *dim
        || least(&(end.clone() - start), 2).is_some_and(|length| length >= 0);
    if is_behind { end } else { end.maxi(start.clone()) }
}

/// Behind the element where a slice ends that goes backwards.
fn behind(dim: &TDim, at: i64) -> TDim {
    if at == -1 { dim.clone() } else { bound(dim, at.saturating_add(1)) }
}

/// Behind the element where such a one starts, which is the first where that lies before it.
fn last(dim: &TDim, at: i64) -> TDim {
    let behind = behind(dim, at);
    if at < -1 { behind.maxi(1.to_dim()).mini(dim.clone()) } else { behind }
}

/// A bound of a slice within an axis. An open axis is taken to have an element at least.
fn bound(dim: &TDim, at: i64) -> TDim {
    let unlimited = at >= i64::from(i32::MAX);
    match dim.as_i64() {
        Some(size) if at < 0 => (at.saturating_add(size)).max(0).to_dim(),
        Some(size) => at.min(size).to_dim(),
        None if unlimited => dim.clone(),
        None if at == 0 || at == 1 => at.to_dim(),
        None if at > 0 => dim.clone().mini(at.to_dim()),
        None if at == -1 => dim.clone() - 1,
        None if at < -i64::from(i32::MAX) => 0.to_dim(),
        None => (dim.clone() + at).maxi(0.to_dim()),
    }
}

impl Expansion for ConstantSlice {
    fn name(&self) -> StaticName {
        "Slice".into()
    }

    fn rules<'r, 'p: 'r, 's: 'r>(
        &'s self,
        s: &mut Solver<'r>,
        inputs: &'p [TensorProxy],
        outputs: &'p [TensorProxy],
    ) -> InferenceResult {
        s.equals(&inputs[0].datum_type, &outputs[0].datum_type)?;
        s.equals(&inputs[0].rank, &outputs[0].rank)?;
        s.given(&inputs[0].shape, move |s, shape| {
            let mut cut = shape.clone();
            for (axis, start, end, step) in self.resolve(&shape)? {
                cut[axis] = (end - start).divceil(step.unsigned_abs() as usize);
            }
            s.equals(&outputs[0].shape, cut)
        })
    }

    fn wire(
        &self,
        prefix: &str,
        model: &mut TypedModel,
        inputs: &[OutletId],
    ) -> TractResult<TVec<OutletId>> {
        let shape = model.outlet_fact(inputs[0])?.shape.to_tvec();
        let mut wire = inputs[0];
        for (index, (axis, start, end, step)) in self.resolve(&shape)?.into_iter().enumerate() {
            let name = format!("{prefix}.cut.{index}");
            let is_open = start.as_i64().is_none();
            wire = model.wire_node(&name, Slice::new(axis, start, end), &[wire])?[0];
            if step != 1 {
                if is_open {
                    // tract would put the steps before the slice, whose start it has to know then.
                    let shape = model.outlet_fact(wire)?.shape.to_tvec();
                    let name = format!("{name}.first");
                    wire = model.wire_node(name, SameShape { shape }, &[wire])?[0];
                }
                let every = Downsample::new(axis, step as isize, 0);
                wire = model.wire_node(format!("{name}.every"), every, &[wire])?[0];
            }
        }
        // A node of its name: one that takes nothing away would give its input another.
        model.wire_node(prefix, Identity, &[wire])
    }
}

/// Puts an operator of tract's into a graph, from its inputs to its outputs.
type Wiring = fn(&dyn Expansion, &str, &mut TypedModel, &[OutletId]) -> TractResult<TVec<OutletId>>;

/// An operator of tract's but for how it is put into the graph.
#[derive(Clone, Debug)]
struct Rewired {
    operator: Box<dyn Expansion>,
    wiring: Wiring,
}

fn rewired(context: &ParsingContext, node: &NodeProto, wiring: Wiring) -> Built {
    let (op, closed) = by_tract(context, node)?;
    match op.as_op().downcast_ref::<Box<dyn Expansion>>() {
        Some(operator) => {
            let operator = dyn_clone::clone_box(&**operator);
            Ok((expand(Rewired { operator, wiring }), closed))
        }
        None => Ok((op, closed)),
    }
}

impl Expansion for Rewired {
    fn name(&self) -> StaticName {
        Expansion::name(&*self.operator)
    }

    fn nboutputs(&self) -> TractResult<usize> {
        Expansion::nboutputs(&*self.operator)
    }

    fn rules<'r, 'p: 'r, 's: 'r>(
        &'s self,
        s: &mut Solver<'r>,
        inputs: &'p [TensorProxy],
        outputs: &'p [TensorProxy],
    ) -> InferenceResult {
        Expansion::rules(&*self.operator, s, inputs, outputs)
    }

    fn wire(
        &self,
        prefix: &str,
        model: &mut TypedModel,
        inputs: &[OutletId],
    ) -> TractResult<TVec<OutletId>> {
        (self.wiring)(&*self.operator, prefix, model, inputs)
    }
}

/// Of numbers, and sizes again where what follows was typed for those.
fn of_numbers(
    operator: &dyn Expansion,
    prefix: &str,
    model: &mut TypedModel,
    inputs: &[OutletId],
) -> TractResult<TVec<OutletId>> {
    let was_size = model.outlet_fact(inputs[0])?.datum_type.is_tdim();
    let numbers = to_numbers(prefix, model, inputs)?;
    let wires = half::in_floats(operator, prefix, model, &numbers)?;
    if was_size { as_sizes(prefix, model, &wires) } else { Ok(wires) }
}

/// Where an attention has its mask.
const MASK: usize = 3;

/// With a mask that may be of booleans: what may not be seen counts minus infinity.
fn masked(
    operator: &dyn Expansion,
    prefix: &str,
    model: &mut TypedModel,
    inputs: &[OutletId],
) -> TractResult<TVec<OutletId>> {
    let mut inputs: TVec<OutletId> = inputs.into();
    let mask = inputs.get(MASK).map(|mask| model.outlet_fact(*mask)).transpose()?;
    if mask.is_some_and(|mask| mask.datum_type == bool::datum_type()) {
        let datum = model.outlet_fact(inputs[0])?.datum_type;
        let value = |value: f32| tensor0(value).cast_to_dt(datum).map(|t| t.into_owned());
        let seen = model.add_const(format!("{prefix}.seen"), value(0.0)?)?;
        let unseen = model.add_const(format!("{prefix}.unseen"), value(f32::NEG_INFINITY)?)?;
        let choice = [inputs[MASK], seen, unseen];
        inputs[MASK] = wire_with_rank_broadcast(format!("{prefix}.mask"), model, Iff, &choice)?[0];
    }
    Expansion::wire(operator, prefix, model, &inputs)
}

/// In one op: of a softmax that is 0, or has lost its digits, tract takes the logarithm.
fn log_softmax(
    operator: &dyn Expansion,
    prefix: &str,
    model: &mut TypedModel,
    inputs: &[OutletId],
) -> TractResult<TVec<OutletId>> {
    let wires = Expansion::wire(operator, prefix, model, inputs)?;
    let [softmax] = *model.node(wires[0].node).inputs else { bail!("a logarithm of one input") };
    let softmax = model.node_mut(softmax.node).op_as_mut::<Softmax>();
    softmax.context("a logarithm of a softmax")?.kind = SoftmaxKind::LogSoftmax;
    model.node_mut(wires[0].node).op = Box::new(Identity);
    Ok(wires)
}

/// By one scale, with one zero point.
fn quantized(
    operator: &dyn Expansion,
    prefix: &str,
    model: &mut TypedModel,
    inputs: &[OutletId],
) -> TractResult<TVec<OutletId>> {
    let known = |at: usize| match inputs.get(at) {
        Some(input) => Ok(model.outlet_fact(*input)?.konst.clone()),
        None => TractResult::Ok(Some(tensor0(0u8).into_arc_tensor())),
    };
    if let (Some(scale), Some(zero_point)) = (known(1)?, known(2)?)
        && scale.len() == 1
        && zero_point.len() == 1
    {
        let (scale, zero) = (scale.cast_to_scalar()?, zero_point.cast_to_scalar()?);
        match zero_point.datum_type() {
            DatumType::U8 => return model.wire_node(prefix, to_u8(scale, zero), &inputs[..1]),
            DatumType::I8 => return model.wire_node(prefix, to_i8(scale, zero), &inputs[..1]),
            _ => {}
        }
    }
    Expansion::wire(operator, prefix, model, inputs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_lie_within_their_axis() {
        let symbols = SymbolScope::default();
        let open = symbols.sym("s").to_dim();
        let check = |at: i64, size: i64, expected: i64| {
            let values = SymbolValues::default().with(&symbols.sym("s"), size);
            assert_eq!(bound(&open, at).eval(&values).as_i64(), Some(expected), "{at} of {size}");
            assert_eq!(bound(&size.to_dim(), at).as_i64(), Some(expected), "{at} of {size}");
        };
        for (at, size, expected) in [
            (0, 5, 0),
            (1, 5, 1),
            (3, 5, 3),
            (512, 5, 5),
            (i64::MAX, 5, 5),
            (-1, 5, 4),
            (-3, 5, 2),
            (-512, 5, 0),
            (i64::MIN, 5, 0),
        ] {
            check(at, size, expected);
        }
    }

    /// An end before the start was refused at each request, and so were steps back of open axes;
    /// those from 2^31 on had another length.
    #[test]
    fn slices_hold_what_lies_between_their_bounds() {
        let symbols = SymbolScope::default();
        let check = |[start, end, step]: [i64; 3], size: i64, expected: &[i64]| {
            let slice = ConstantSlice { cuts: vec![[0, start, end, step]] };
            let values = SymbolValues::default().with(&symbols.sym("s"), size);
            for dim in [symbols.sym("s").to_dim(), size.to_dim()] {
                let cuts = slice.resolve(std::slice::from_ref(&dim)).unwrap();
                let range = match &cuts[..] {
                    [] => 0..size,
                    [(_, start, end, _), ..] => {
                        start.eval_to_i64(&values).unwrap()..end.eval_to_i64(&values).unwrap()
                    }
                };
                let mut found: Vec<i64> = range.collect();
                if step < 0 {
                    found.reverse();
                }
                let found: Vec<i64> =
                    found.into_iter().step_by(step.unsigned_abs() as usize).collect();
                assert_eq!(found, expected, "{start}..{end} by {step} of {dim} = {size}");
            }
        };
        check([5, 1, 1], 7, &[]);
        check([5, 1, 1], 3, &[]);
        check([-1, 0, 1], 4, &[]);
        check([1, -1, 1], 4, &[1, 2]);
        check([3, i64::MAX, 2], 8, &[3, 5, 7]);
        check([-1, i64::MIN, -1], 3, &[2, 1, 0]);
        check([1 << 31, -(1 << 31) - 5, -1], 3, &[2, 1, 0]);
        check([i64::MAX - 1, 1, -2], 6, &[5, 3]);
        check([-1, -100, -2], 5, &[4, 2, 0]);
        check([-2, -4, -1], 5, &[3, 2]);
        check([0, 3, -1], 5, &[]);
        check([-9, i64::MIN, -1], 5, &[0]);
        check([-1, i64::MIN, -1], 0, &[]);
    }
}

//! How a graph uses its big weights: each use is recognized and replaced by a streamed op.

use super::datum::datum_of;
use super::ops::{Constant, Gather, Linear};
use super::view::WeightView;
use crate::store::Dtype;
use crate::store::layer_file::Layout;
use crate::store::manifest::Weight;
use serde::{Deserialize, Serialize};
use std::collections::{HashMap, HashSet};
use tract_core::internal::*;
use tract_core::ops::array::Gather as TractGather;
use tract_core::ops::cast::cast;
use tract_core::ops::change_axes::perm_to_ops;
use tract_core::ops::einsum::EinSum;

/// How a streamed op consumes its weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum UseKind {
    /// A matrix product: the stored tensor is `[outputs, depth]` where `transposed`, else
    /// `[depth, outputs]`.
    Linear { transposed: bool },
    /// Rows picked from a table by index.
    Gather,
    /// Anything else: the whole tensor, for as long as its consumers run.
    Constant,
}

impl UseKind {
    /// Rows and depth of a weight of `shape` as it is stored for the use; none for a shape that
    /// cannot be used so.
    pub fn extent(self, shape: &[u64]) -> Option<(u64, u64)> {
        let product = |dims: &[u64]| dims.iter().try_fold(1u64, |all, dim| all.checked_mul(*dim));
        match (self, shape) {
            (UseKind::Linear { transposed: true }, [rows, depth]) => Some((*rows, *depth)),
            (UseKind::Linear { transposed: false }, [depth, rows]) => Some((*rows, *depth)),
            (UseKind::Linear { .. }, _) => None,
            (UseKind::Gather, [rows, tail @ ..]) => Some((*rows, product(tail)?)),
            (UseKind::Gather, []) => None,
            (UseKind::Constant, dims) => Some((product(dims)?, 1)),
        }
    }
}

/// One streamed op of the plan.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WeightUse {
    /// Number of the streamed op, by which it asks its [`super::Feed`].
    pub slot: usize,
    /// Index into the weights that the import was given.
    pub weight: usize,
    pub kind: UseKind,
    /// How the weight is stored for it.
    pub layout: Layout,
    /// Name of the ONNX node that consumes the weight.
    pub node: String,
}

#[derive(Debug)]
pub(super) struct MissingWeight(pub String);

impl std::fmt::Display for MissingWeight {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for MissingWeight {}

/// An open axis that is multiplied with a weight, and has the weight's depth or none.
#[derive(Debug)]
pub(super) struct OnlySize {
    pub symbol: String,
    pub size: u64,
}

impl std::fmt::Display for OnlySize {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} can only be {}", self.symbol, self.size)
    }
}

impl std::error::Error for OnlySize {}

/// The graph's type of a weight: tract has no bf16, whose values are all f32's too.
fn datum_in_graph(dtype: Dtype) -> DatumType {
    datum_of(dtype).unwrap_or(f32::datum_type())
}

/// Replaces every consumer of a weight and drops the weights from the model's inputs.
pub(super) fn stream_weights(
    model: &mut TypedModel,
    weights: &[Weight],
) -> TractResult<Vec<WeightUse>> {
    let names: HashMap<&str, usize> =
        weights.iter().enumerate().map(|(i, w)| (w.name.as_str(), i)).collect();
    let sources: HashMap<usize, usize> = model
        .inputs
        .iter()
        .filter_map(|input| names.get(&*model.node(input.node).name).map(|w| (input.node, *w)))
        .collect();
    for (index, weight) in weights.iter().enumerate() {
        let Some((node, _)) = sources.iter().find(|(_, w)| **w == index) else {
            bail!(MissingWeight(format!("weight \"{}\"", weight.name)));
        };
        let shape: TVec<TDim> = weight.shape.iter().map(|dim| dim.to_dim()).collect();
        let fact = model.outlet_fact(OutletId::new(*node, 0))?;
        if fact.datum_type != datum_in_graph(weight.dtype) || *fact.shape != *shape {
            bail!(MissingWeight(format!("the type or shape of weight \"{}\"", weight.name)));
        }
    }
    let weight_of = |node: usize| sources.get(&node).copied();
    let mut uses = vec![];
    for id in model.eval_order()? {
        let node = model.node(id);
        let replaced = if node.op_is::<EinSum>() {
            replace_linear(model, id, &weight_of, uses.len())?
        } else if node.op_is::<TractGather>() {
            replace_gather(model, id, &weight_of, uses.len())?
        } else {
            None
        };
        uses.extend(replaced);
    }
    let kept: Vec<OutletId> =
        model.inputs.iter().copied().filter(|input| weight_of(input.node).is_none()).collect();
    let remaining: Vec<(usize, usize)> =
        model.inputs.iter().filter_map(|i| weight_of(i.node).map(|w| (i.node, w))).collect();
    model.set_input_outlets(&kept)?;
    for (node, weight) in remaining {
        uses.extend(replace_constant(model, node, weight, &weights[weight], uses.len())?);
    }
    Ok(uses)
}

/// Turns a product of an activation with one weight matrix into a streamed linear.
fn replace_linear(
    model: &mut TypedModel,
    id: usize,
    weight_of: &impl Fn(usize) -> Option<usize>,
    slot: usize,
) -> TractResult<Option<WeightUse>> {
    let Some(product) = Product::recognize(model, id, weight_of) else {
        return Ok(None);
    };
    let node = model.node(id);
    let name = node.name.clone();
    let out_fact = model.outlet_fact(id.into())?.clone();
    let mut patch = TypedModelPatch::default();
    let mut wire = tvec![patch.tap_model(model, product.activation)?];
    for (step, change) in product.before.iter().enumerate() {
        wire = patch.wire_node(format!("{name}.before.{step}"), change.clone(), &wire)?;
    }
    if let Some(TDim::Sym(symbol)) = patch.outlet_fact(wire[0])?.shape.last()
        && is_of_inputs(model, symbol)?
    {
        bail!(OnlySize { symbol: symbol.to_string(), size: product.depth as u64 });
    }
    let linear =
        Linear { slot, outputs: product.outputs, depth: product.depth, dtype: out_fact.datum_type };
    wire = patch.wire_node(&name, linear, &wire)?;
    for (step, change) in product.after.iter().enumerate() {
        wire = patch.wire_node(format!("{name}.after.{step}"), change.clone(), &wire)?;
    }
    patch.shunt_outside(model, id.into(), wire[0])?;
    patch.apply(model)?;
    let kind = UseKind::Linear { transposed: product.transposed };
    Ok(Some(WeightUse { slot, weight: product.weight, kind, layout: Layout::Panels, node: name }))
}

fn is_of_inputs(model: &TypedModel, symbol: &Symbol) -> TractResult<bool> {
    let size = symbol.to_dim();
    let facts = model.inputs.iter().map(|input| model.outlet_fact(*input));
    let facts = facts.collect::<TractResult<Vec<_>>>()?;
    Ok(facts.iter().any(|fact| fact.shape.contains(&size)))
}

/// A product of an activation with one weight matrix, and the axis changes around it.
struct Product {
    weight: usize,
    activation: OutletId,
    transposed: bool,
    outputs: usize,
    depth: usize,
    before: TVec<AxisOp>,
    after: TVec<AxisOp>,
}

impl Product {
    fn recognize(
        model: &TypedModel,
        id: usize,
        weight_of: &impl Fn(usize) -> Option<usize>,
    ) -> Option<Product> {
        let node = model.node(id);
        let einsum = node.op_as::<EinSum>()?;
        if node.inputs.len() != 2 || einsum.q_params.is_some() {
            return None;
        }
        let views: Vec<Option<WeightView>> =
            node.inputs.iter().map(|i| WeightView::trace(model, *i, weight_of)).collect();
        let side = match (&views[0], &views[1]) {
            (None, Some(_)) => 1,
            (Some(_), None) => 0,
            _ => return None,
        };
        let view = views[side].clone()?;
        if !view.casts.is_empty() || view.source_rank != 2 {
            return None;
        }
        let activation = node.inputs[1 - side];
        let float = [f32::datum_type(), f16::datum_type()];
        let typed = [
            model.outlet_fact(activation).ok()?.datum_type,
            model.outlet_fact(node.inputs[side]).ok()?.datum_type,
            model.outlet_fact(id.into()).ok()?.datum_type,
        ];
        if !typed.iter().all(|dt| float.contains(dt)) {
            return None;
        }
        Product::from_axes(model, einsum, side, &view, activation, node.inputs[side])
    }

    fn from_axes(
        model: &TypedModel,
        einsum: &EinSum,
        side: usize,
        view: &WeightView,
        activation: OutletId,
        weight_outlet: OutletId,
    ) -> Option<Product> {
        let (w, x) = (InOut::In(side), InOut::In(1 - side));
        let labels = |io: InOut| -> Option<Vec<char>> {
            (0..einsum.axes.rank(io))
                .map(|axis| einsum.axes.axis((io, axis)).ok().map(|a| a.repr))
                .collect()
        };
        let (weight_labels, mut rest) = (labels(w)?, labels(x)?);
        let out_labels = labels(InOut::Out(0))?;
        let shape = model.outlet_fact(weight_outlet).ok()?.shape.as_concrete()?.to_vec();
        let source_rank = view.axes.iter().flatten().count();
        let (mut k, mut m) = (None, None);
        for (axis, label) in weight_labels.iter().enumerate() {
            if shape[axis] == 1 && view.axes[axis].is_none() {
                continue;
            }
            match (rest.contains(label), out_labels.contains(label)) {
                (true, false) if k.is_none() => k = Some((axis, *label)),
                (false, true) if m.is_none() => m = Some((axis, *label)),
                _ => return None,
            }
        }
        let ((k_axis, k_label), (m_axis, m_label)) = (k?, m?);
        if source_rank != 2 {
            return None;
        }
        // Axes that only the weight has, of size 1, appear in the output as inserted axes.
        let x_fact = model.outlet_fact(activation).ok()?;
        if x_fact.rank() != rest.len() {
            return None;
        }
        let squeezed: Vec<usize> = (0..rest.len())
            .rev()
            .filter(|axis| {
                rest[*axis] != k_label
                    && !out_labels.contains(&rest[*axis])
                    && x_fact.shape[*axis].is_one()
            })
            .collect();
        let mut before: TVec<AxisOp> = squeezed.iter().map(|axis| AxisOp::Rm(*axis)).collect();
        for axis in squeezed {
            rest.remove(axis);
        }
        let mut wanted: Vec<char> =
            out_labels.iter().copied().filter(|label| rest.contains(label)).collect();
        if wanted.len() + 1 != rest.len() {
            return None;
        }
        wanted.push(k_label);
        let order: Option<Vec<usize>> =
            wanted.iter().map(|label| rest.iter().position(|l| l == label)).collect();
        before.extend(perm_to_ops(&order?));
        *wanted.last_mut()? = m_label;
        let mut after = tvec![];
        let m_rank =
            out_labels.iter().filter(|l| wanted.contains(l)).position(|l| *l == m_label)?;
        if m_rank + 1 != wanted.len() {
            after.push(AxisOp::Move(wanted.len() - 1, m_rank));
        }
        for (axis, label) in out_labels.iter().enumerate() {
            if !wanted.contains(label) {
                after.push(AxisOp::Add(axis));
            }
        }
        Some(Product {
            weight: view.weight,
            activation,
            transposed: view.axes[m_axis]? < view.axes[k_axis]?,
            outputs: shape[m_axis],
            depth: shape[k_axis],
            before,
            after,
        })
    }
}

/// Turns a gather along the first axis of a weight into a streamed gather.
fn replace_gather(
    model: &mut TypedModel,
    id: usize,
    weight_of: &impl Fn(usize) -> Option<usize>,
    slot: usize,
) -> TractResult<Option<WeightUse>> {
    let node = model.node(id);
    let gather = node.op_as::<TractGather>().context("the caller saw a gather")?;
    let view = WeightView::trace(model, node.inputs[0], weight_of);
    let Some(view) = view.filter(|v| v.is_identity() && !v.axes.is_empty()) else {
        return Ok(None);
    };
    let gathered = view.casts.last().copied().unwrap_or(view.dtype);
    if model.outlet_fact(id.into())?.datum_type != gathered {
        return Ok(None);
    }
    let data = model.outlet_fact(node.inputs[0])?;
    let indices = model.outlet_fact(node.inputs[1])?;
    let readable = [i64::datum_type(), i32::datum_type(), TDim::datum_type()];
    let Some(shape) = data.shape.as_concrete() else {
        return Ok(None);
    };
    if gather.axis != 0 || !readable.contains(&indices.datum_type) {
        return Ok(None);
    }
    let op = Gather { slot, rows: shape[0], tail: shape[1..].into(), dtype: view.dtype };
    let name = node.name.clone();
    let indices = node.inputs[1];
    let mut patch = TypedModelPatch::default();
    let tap = patch.tap_model(model, indices)?;
    let mut wire = patch.wire_node(&name, op, &[tap])?;
    // A cast of the table changes each element by itself: it may as well follow the gather.
    for (step, to) in view.casts.iter().enumerate() {
        wire = patch.wire_node(format!("{name}.cast.{step}"), cast(*to), &wire)?;
    }
    patch.shunt_outside(model, id.into(), wire[0])?;
    patch.apply(model)?;
    let (kind, layout) = (UseKind::Gather, Layout::Rows);
    Ok(Some(WeightUse { slot, weight: view.weight, kind, layout, node: name }))
}

/// Turns a weight that still has consumers into a streamed constant.
fn replace_constant(
    model: &mut TypedModel,
    node: usize,
    weight: usize,
    described: &Weight,
    slot: usize,
) -> TractResult<Option<WeightUse>> {
    let mut successors = &model.node(node).outputs[0].successors;
    // Axis changes whose own consumers were all replaced keep no one waiting.
    let mut name = described.name.clone();
    if let Some(first) = successors.first() {
        name = model.node(first.node).name.clone();
    }
    let live = live_nodes(model)?;
    successors = &model.node(node).outputs[0].successors;
    if !successors.iter().any(|s| live.contains(&s.node)) && !model.outputs.contains(&node.into()) {
        return Ok(None);
    }
    if let Some(consumer) = successors.iter().find(|s| live.contains(&s.node)) {
        name = model.node(consumer.node).name.clone();
    }
    let fact = model.outlet_fact(node.into())?.clone();
    let shape = fact.shape.as_concrete().context("a weight's shape is concrete")?.into();
    let op = Constant { slot, shape, dtype: fact.datum_type };
    model.node_mut(node).op = Box::new(op);
    let (kind, layout) = (UseKind::Constant, Layout::Flat);
    Ok(Some(WeightUse { slot, weight, kind, layout, node: name }))
}

/// Nodes that some output depends on.
fn live_nodes(model: &TypedModel) -> TractResult<HashSet<usize>> {
    Ok(model.eval_order()?.into_iter().collect())
}

/// The streamed ops' uses in the order of the plan, each with its layout: where products use a
/// weight both as it is and as its transpose, it is stored both ways.
pub(super) fn tape_order(plan: &TypedSimplePlan, uses: &[WeightUse]) -> Vec<WeightUse> {
    let slots = streamed_slots(plan);
    let mut ordered: Vec<WeightUse> =
        slots.into_iter().map(|(_, slot)| uses[slot].clone()).collect();
    let by_rows: HashSet<usize> = ordered
        .iter()
        .filter(|used| used.kind == UseKind::Linear { transposed: true })
        .map(|used| used.weight)
        .collect();
    for used in &mut ordered {
        let is_by_columns = used.kind == UseKind::Linear { transposed: false };
        if is_by_columns && by_rows.contains(&used.weight) {
            used.layout = Layout::ColumnPanels;
        }
    }
    ordered
}

/// Slots of the streamed ops, with their node ids, in the order of evaluation.
pub fn streamed_slots(plan: &TypedSimplePlan) -> Vec<(usize, usize)> {
    plan.order_without_consts()
        .iter()
        .filter_map(|id| {
            let op = &plan.model().node(*id).op;
            let slot = (op.downcast_ref::<Linear>().map(|o| o.slot))
                .or_else(|| op.downcast_ref::<Gather>().map(|o| o.slot))
                .or_else(|| op.downcast_ref::<Constant>().map(|o| o.slot));
            slot.map(|slot| (*id, slot))
        })
        .collect()
}

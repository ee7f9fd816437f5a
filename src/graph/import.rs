//! The importer: skeleton in, plan with streamed ops and the order of the tape out.

use super::check::check;
use super::error::GraphError;
use super::ops::{Constant, Gather, Linear};
use super::view::WeightView;
use crate::store::Dtype;
use crate::store::manifest::{Dim, Port, Weight};
use prost::Message;
use std::any::Any;
use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use tract_core::internal::*;
use tract_core::ops::array::Gather as TractGather;
use tract_core::ops::change_axes::perm_to_ops;
use tract_core::ops::einsum::EinSum;
use tract_core::optim::Optimizer;
use tract_onnx::pb;
use tract_onnx::prelude::{Framework, InferenceModel, InferenceModelExt};

/// How a streamed op consumes its weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum UseKind {
    /// A matrix product: the stored tensor is `[outputs, depth]` where `transposed`, else
    /// `[depth, outputs]`.
    Linear { transposed: bool },
    /// Rows picked from a table by index.
    Gather,
    /// Anything else: the whole tensor, for as long as its consumers run.
    Constant,
}

/// One streamed op of the plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WeightUse {
    /// Number of the streamed op, by which it asks its [`super::Feed`].
    pub slot: usize,
    /// Index into the weights given to [`import`].
    pub weight: usize,
    pub kind: UseKind,
    /// Name of the ONNX node that consumes the weight.
    pub node: String,
}

/// A model ready to be evaluated but for its big weights.
pub struct Imported {
    /// The optimized plan. Streamed ops find their blocks through [`super::TapeFeed`].
    pub plan: Arc<TypedSimplePlan>,
    /// The streamed ops in the order in which the plan evaluates them: the tape.
    pub uses: Vec<WeightUse>,
    pub inputs: Vec<Port>,
    pub outputs: Vec<Port>,
}

/// Parses, types and optimizes the skeleton, replacing every consumer of a weight by a streamed
/// op. No weight is read.
///
/// `weights` are inputs of the skeleton's graph; the remaining inputs are the model's own. Each
/// form of the graph goes when the next is there: a skeleton that is handed over goes first.
pub fn import(skeleton: impl AsRef<[u8]>, weights: &[Weight]) -> Result<Imported, GraphError> {
    let proto = pb::ModelProto::decode(skeleton.as_ref());
    let mut proto = proto.map_err(|e| GraphError::NotOnnx(e.to_string()))?;
    drop(skeleton);
    let Some(graph) = &proto.graph else {
        return Err(GraphError::NotOnnx("it holds no graph".to_string()));
    };
    check(graph)?;
    let labels: Vec<String> = graph.output.iter().map(|output| output.name.clone()).collect();
    let onnx = tract_onnx::onnx().with_ignore_value_info(true);
    let inference = guarded(|| onnx.model_for_proto_model(&proto));
    let nodes = proto.graph.take().map(|graph| graph.node).unwrap_or_default();
    let nodes: Vec<OnnxNode> = nodes.into_iter().map(OnnxNode::of).collect();
    drop(proto);
    let planned = inference.and_then(|model| guarded(|| type_and_plan(model, weights, &labels)));
    planned.map_err(|fault| match fault {
        Fault::Error(error) => blame(&nodes, error),
        Fault::Panic(text) => GraphError::Refused(format!("tract gave up: {text}")),
    })
}

/// What is left of an ONNX node to name in an error.
struct OnnxNode {
    name: String,
    op_type: String,
}

impl OnnxNode {
    fn of(node: pb::NodeProto) -> OnnxNode {
        OnnxNode { name: node.name, op_type: node.op_type }
    }
}

/// How tract ends that does not succeed.
enum Fault {
    Error(TractError),
    Panic(String),
}

/// Some graphs that make no sense make tract panic; it is handed nothing that outlives that.
fn guarded<T>(work: impl FnOnce() -> TractResult<T>) -> Result<T, Fault> {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(done) => done.map_err(Fault::Error),
        Err(panic) => Err(Fault::Panic(panic_text(&*panic).to_string())),
    }
}

/// What a panic said.
fn panic_text(panic: &dyn Any) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("it did not say why")
}

/// Names the ONNX node that a tract error speaks of, where it speaks of one.
fn blame(nodes: &[OnnxNode], error: TractError) -> GraphError {
    if let Some(mismatch) = error.downcast_ref::<MissingWeight>() {
        return GraphError::Mismatch { what: mismatch.0.clone() };
    }
    let text = format!("{error:#}");
    if let Some(pinned) = pinned_dimension(&text) {
        return pinned;
    }
    let named = nodes
        .iter()
        .filter(|node| !node.name.is_empty() && text.contains(&node.name))
        .max_by_key(|node| node.name.len());
    match named {
        Some(node) => {
            GraphError::Unsupported { node: node.name.clone(), op: node.op_type.clone(), why: text }
        }
        None => GraphError::Refused(text),
    }
}

/// Reads tract's "Impossible to unify Sym(channels) with Val(3)", either way round.
fn pinned_dimension(text: &str) -> Option<GraphError> {
    let (_, clash) = text.split_once("Impossible to unify ")?;
    let (left, right) = clash.split_once(" with ")?;
    let inside = |part: &str, kind: &str| {
        let (_, rest) = part.split_once(kind)?;
        rest.split_once(')').map(|(name, _)| name.to_string())
    };
    let symbol = inside(left, "Sym(").or_else(|| inside(right, "Sym("))?;
    let size = inside(left, "Val(").or_else(|| inside(right, "Val("))?.parse().ok()?;
    Some(GraphError::Pinned { symbol, size })
}

#[derive(Debug)]
struct MissingWeight(String);

impl std::fmt::Display for MissingWeight {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for MissingWeight {}

fn type_and_plan(
    inference: InferenceModel,
    weights: &[Weight],
    labels: &[String],
) -> TractResult<Imported> {
    let mut model = inference.into_typed()?;
    let uses = stream_weights(&mut model, weights)?;
    let (inputs, outputs) = (ports(&model, &model.inputs)?, ports(&model, &model.outputs)?);
    let outputs = outputs
        .into_iter()
        .zip(labels)
        .map(|(port, label)| Port { name: label.clone(), ..port })
        .collect();
    optimize(&mut model)?;
    let plan = TypedSimplePlan::new(model)?;
    let uses = tape_order(&plan, &uses);
    Ok(Imported { plan, uses, inputs, outputs })
}

/// Declutters and lowers the model, without the pass that folds comparisons of coordinates: in
/// tract 0.23.9 it takes the causal mask of a symbolic length for a constant, and gives wrong
/// answers from two tokens on.
fn optimize(model: &mut TypedModel) -> TractResult<()> {
    let mut declutter = Optimizer::declutter();
    declutter.passes.retain(|pass| !format!("{pass:?}").starts_with("FoldUniformMask"));
    declutter.optimize(model)?;
    Optimizer::codegen().optimize(model)
}

/// Replaces every consumer of a weight and drops the weights from the model's inputs.
fn stream_weights(model: &mut TypedModel, weights: &[Weight]) -> TractResult<Vec<WeightUse>> {
    let names: HashMap<&str, usize> =
        weights.iter().enumerate().map(|(i, w)| (w.name.as_str(), i)).collect();
    let sources: HashMap<usize, usize> = model
        .inputs
        .iter()
        .filter_map(|input| names.get(&*model.node(input.node).name).map(|w| (input.node, *w)))
        .collect();
    for (index, weight) in weights.iter().enumerate() {
        if !sources.values().any(|w| *w == index) {
            bail!(MissingWeight(format!("weight \"{}\"", weight.name)));
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
    let linear =
        Linear { slot, outputs: product.outputs, depth: product.depth, dtype: out_fact.datum_type };
    wire = patch.wire_node(&name, linear, &wire)?;
    for (step, change) in product.after.iter().enumerate() {
        wire = patch.wire_node(format!("{name}.after.{step}"), change.clone(), &wire)?;
    }
    patch.shunt_outside(model, id.into(), wire[0])?;
    patch.apply(model)?;
    let kind = UseKind::Linear { transposed: product.transposed };
    Ok(Some(WeightUse { slot, weight: product.weight, kind, node: name }))
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
    let data = model.outlet_fact(node.inputs[0])?;
    let indices = model.outlet_fact(node.inputs[1])?;
    let readable = [i64::datum_type(), i32::datum_type(), TDim::datum_type()];
    let Some(shape) = data.shape.as_concrete() else {
        return Ok(None);
    };
    if gather.axis != 0 || !readable.contains(&indices.datum_type) {
        return Ok(None);
    }
    let op = Gather {
        slot,
        rows: shape[0],
        tail: shape[1..].into(),
        dtype: model.outlet_fact(id.into())?.datum_type,
    };
    let name = node.name.clone();
    let indices = node.inputs[1];
    let mut patch = TypedModelPatch::default();
    let tap = patch.tap_model(model, indices)?;
    let wire = patch.wire_node(&name, op, &[tap])?;
    patch.shunt_outside(model, id.into(), wire[0])?;
    patch.apply(model)?;
    Ok(Some(WeightUse { slot, weight: view.weight, kind: UseKind::Gather, node: name }))
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
    Ok(Some(WeightUse { slot, weight, kind: UseKind::Constant, node: name }))
}

/// Nodes that some output depends on.
fn live_nodes(model: &TypedModel) -> TractResult<std::collections::HashSet<usize>> {
    Ok(model.eval_order()?.into_iter().collect())
}

/// The streamed ops' uses in the order of the plan.
fn tape_order(plan: &TypedSimplePlan, uses: &[WeightUse]) -> Vec<WeightUse> {
    streamed_slots(plan).into_iter().map(|(_, slot)| uses[slot].clone()).collect()
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

fn ports(model: &TypedModel, outlets: &[OutletId]) -> TractResult<Vec<Port>> {
    outlets
        .iter()
        .map(|outlet| {
            let fact = model.outlet_fact(*outlet)?;
            let dtype = dtype_of(fact.datum_type)
                .with_context(|| format!("{:?} cannot cross the API", fact.datum_type))?;
            let shape = fact.shape.iter().map(dim_of).collect();
            Ok(Port { name: model.node(outlet.node).name.clone(), dtype, shape })
        })
        .collect()
}

fn dim_of(dim: &TDim) -> Dim {
    match dim.to_i64().ok().and_then(|size| u64::try_from(size).ok()) {
        Some(size) => Dim::Fixed(size),
        None => Dim::Symbol(dim.to_string()),
    }
}

/// The element type of the API that stands for one of tract's; symbolic dimensions leave as
/// 64-bit integers.
pub fn dtype_of(dtype: DatumType) -> Option<Dtype> {
    Some(match dtype {
        DatumType::Bool => Dtype::Bool,
        DatumType::U8 => Dtype::Uint8,
        DatumType::U16 => Dtype::Uint16,
        DatumType::U32 => Dtype::Uint32,
        DatumType::U64 => Dtype::Uint64,
        DatumType::I8 => Dtype::Int8,
        DatumType::I16 => Dtype::Int16,
        DatumType::I32 => Dtype::Int32,
        DatumType::I64 | DatumType::TDim => Dtype::Int64,
        DatumType::F16 => Dtype::Fp16,
        DatumType::F32 => Dtype::Fp32,
        DatumType::F64 => Dtype::Fp64,
        _ => return None,
    })
}

/// Tract's element type for one of the API; `None` for bf16, which tract does not have.
pub fn datum_of(dtype: Dtype) -> Option<DatumType> {
    Some(match dtype {
        Dtype::Bool => DatumType::Bool,
        Dtype::Uint8 => DatumType::U8,
        Dtype::Uint16 => DatumType::U16,
        Dtype::Uint32 => DatumType::U32,
        Dtype::Uint64 => DatumType::U64,
        Dtype::Int8 => DatumType::I8,
        Dtype::Int16 => DatumType::I16,
        Dtype::Int32 => DatumType::I32,
        Dtype::Int64 => DatumType::I64,
        Dtype::Fp16 => DatumType::F16,
        Dtype::Fp32 => DatumType::F32,
        Dtype::Fp64 => DatumType::F64,
        Dtype::Bf16 => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clashes_name_the_dimension_and_its_size() {
        let check = |text: &str, expected: Option<(&str, u64)>| {
            let found = pinned_dimension(text).map(|error| match error {
                GraphError::Pinned { symbol, size } => (symbol, size),
                other => panic!("{other}"),
            });
            assert_eq!(found, expected.map(|(name, size)| (name.to_string(), size)), "{text}");
        };
        check("x: Impossible to unify Sym(channels) with Val(3).", Some(("channels", 3)));
        check("Impossible to unify Val(224) with Sym(height)", Some(("height", 224)));
        check("Impossible to unify Val(224) with Val(3)", None);
        check("something else", None);
    }
}

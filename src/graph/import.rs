//! The importer: skeleton in, plan with streamed ops and the order of the tape out.

use super::check::check;
use super::checked::{check_ops, crop_pads};
use super::error::GraphError;
use super::progress::STAGES;
use super::repair;
use super::uses::{MissingWeight, WeightUse, stream_weights, tape_order};
use super::vet::vet;
use crate::store::Dtype;
use crate::store::manifest::{Dim, Port, Weight};
use crate::sys::panics;
use prost::Message;
use std::sync::Arc;
use tract_core::internal::*;
use tract_core::optim::Optimizer;
use tract_onnx::pb;
use tract_onnx::prelude::{Framework, InferenceModel, InferenceModelExt};

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
    vet(&proto)?;
    repair::repair(&mut proto)?;
    let onnx = tract_onnx::onnx().with_ignore_value_info(true);
    let inference = guarded(|| onnx.model_for_proto_model(&proto));
    let nodes = proto.graph.take().map(|graph| graph.node).unwrap_or_default();
    let nodes: Vec<OnnxNode> = nodes.into_iter().map(OnnxNode::of).collect();
    drop(proto);
    let planned = inference.and_then(|model| guarded(|| type_and_plan(model, weights, &labels)));
    planned.map_err(|fault| match fault {
        Fault::Error(error) => blame(&nodes, error),
        Fault::Panic(text) => GraphError::Panicked(text),
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
    match panics::caught(work) {
        Ok(done) => done.map_err(Fault::Error),
        Err(text) => Err(Fault::Panic(text)),
    }
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

fn type_and_plan(
    inference: InferenceModel,
    weights: &[Weight],
    labels: &[String],
) -> TractResult<Imported> {
    let mut model = inference.into_typed()?;
    log::trace!(target: STAGES, "the products with weights");
    let uses = stream_weights(&mut model, weights)?;
    let (inputs, outputs) = (ports(&model, &model.inputs)?, ports(&model, &model.outputs)?);
    let outputs = outputs
        .into_iter()
        .zip(labels)
        .map(|(port, label)| Port { name: label.clone(), ..port })
        .collect();
    log::trace!(target: STAGES, "optimizing");
    optimize(&mut model)?;
    let plan = TypedSimplePlan::new(model)?;
    let uses = tape_order(&plan, &uses);
    Ok(Imported { plan, uses, inputs, outputs })
}

/// Declutters and lowers the model, without the pass that folds comparisons of coordinates: in
/// tract 0.23.9 it takes the causal mask of a symbolic length for a constant, and gives wrong
/// answers from two tokens on.
fn optimize(model: &mut TypedModel) -> TractResult<()> {
    crop_pads(model)?;
    repair::typed::repair(model)?;
    let mut declutter = Optimizer::declutter();
    declutter.passes.retain(|pass| !format!("{pass:?}").starts_with("FoldUniformMask"));
    declutter.optimize(model)?;
    check_ops(model);
    Optimizer::codegen().optimize(model)
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

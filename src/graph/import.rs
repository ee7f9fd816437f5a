//! The importer: skeleton in, plan with streamed ops and the order of the tape out.

use super::builders::onnx;
use super::check::check;
use super::checked::crop_pads;
use super::error::GraphError;
use super::integers::replace_products;
use super::lockstep::check_ops;
use super::logits;
use super::ports::{input_names, make_outputs, ports, restore_names};
use super::progress::STAGES;
use super::repair;
use super::uses::{MissingWeight, OnlySize, WeightUse, stream_weights, tape_order};
use super::vet::vet;
use crate::store::manifest::{Port, Weight};
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
    let names = input_names(graph);
    let labels: Vec<String> = graph.output.iter().map(|output| output.name.clone()).collect();
    vet(&proto)?;
    repair::repair(&mut proto)?;
    proto.graph.iter_mut().for_each(make_outputs);
    let inference = guarded(|| onnx().model_for_proto_model(&proto));
    let nodes = proto.graph.take().map(|graph| graph.node).unwrap_or_default();
    let nodes: Vec<OnnxNode> = nodes.into_iter().map(OnnxNode::of).collect();
    drop(proto);
    let planned =
        inference.and_then(|model| guarded(|| type_and_plan(model, weights, names, &labels)));
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
    if let Some(OnlySize { symbol, size }) = error.downcast_ref() {
        return GraphError::Pinned { symbol: symbol.clone(), size: *size };
    }
    let text = format!("{error:#}");
    if let Some(clash) = clash(&text) {
        return clash;
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

/// Reads tract's "Impossible to unify Sym(channels) with Val(3)", either way round. A symbol against
/// a size leaves that size only, and two symbols are one; of anything else only the symbols are
/// known.
fn clash(text: &str) -> Option<GraphError> {
    let (_, clash) = text.split_once("Impossible to unify ")?;
    let clash = clash.split_once(". ").map_or(clash, |(first, _)| first).trim_end_matches('.');
    let (left, right) = clash.split_once(" with ")?;
    let bare = |part: &str, kind: &str| {
        let inside = part.strip_prefix(kind)?.strip_suffix(')')?;
        let is_plain = inside.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
        is_plain.then(|| inside.to_string())
    };
    let sides = [(left, right), (right, left)];
    let pinned = sides.iter().find_map(|(one, other)| {
        let (symbol, size) = (bare(one, "Sym(")?, bare(other, "Val(")?);
        Some(GraphError::Pinned { symbol, size: size.parse().ok()? })
    });
    if pinned.is_some() {
        return pinned;
    }
    if let (Some(symbol), Some(other)) = (bare(left, "Sym("), bare(right, "Sym(")) {
        return Some(GraphError::Same { symbol, other });
    }
    let mut symbols: Vec<String> = clash
        .split("Sym(")
        .skip(1)
        .filter_map(|rest| rest.split_once(')').map(|(name, _)| name.to_string()))
        .collect();
    symbols.sort();
    symbols.dedup();
    (!symbols.is_empty()).then(|| GraphError::Unequal { symbols, why: text.to_string() })
}

fn type_and_plan(
    inference: InferenceModel,
    weights: &[Weight],
    names: Vec<String>,
    labels: &[String],
) -> TractResult<Imported> {
    let mut model = inference.into_typed()?;
    restore_names(&mut model, names);
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
    logits::open(model)?;
    let mut declutter = Optimizer::declutter();
    declutter.passes.retain(|pass| !format!("{pass:?}").starts_with("FoldUniformMask"));
    declutter.optimize(model)?;
    replace_products(model);
    check_ops(model)?;
    Optimizer::codegen().optimize(model)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Any symbol beside any number was taken for a dimension of that size: height was fixed at 31
    /// where `(height+31)/32` was in the way.
    #[test]
    fn only_a_bare_symbol_against_a_bare_size_pins() {
        let check = |text: &str, expected: Option<&str>| {
            let found = clash(text).map(|error| match error {
                GraphError::Pinned { symbol, size } => format!("{symbol} is {size}"),
                GraphError::Same { symbol, other } => format!("{symbol} is {other}"),
                GraphError::Unequal { symbols, .. } => symbols.join(" and "),
                other => panic!("{other}"),
            });
            assert_eq!(found.as_deref(), expected, "{text}");
        };
        check("x: Impossible to unify Sym(channels) with Val(3).", Some("channels is 3"));
        check("Impossible to unify Val(224) with Sym(height)", Some("height is 224"));
        check("Impossible to unify Sym(a) with Sym(b_2).", Some("a is b_2"));
        check(
            "Impossible to unify Div(Add([Val(31), Sym(height)]), 32) with MulInt(2, Sym(width)).",
            Some("height and width"),
        );
        check("Impossible to unify Add([Val(1), Sym(h)]) with Val(31).", Some("h"));
        check("Impossible to unify Val(224) with Val(3)", None);
        check("something else", None);
    }

    /// A product with a weight that streams was made whatever the inputs' axis came to, which a trial
    /// of its own length then found wrong.
    #[test]
    fn an_open_axis_that_meets_a_weight_has_its_depth() {
        use pb::tensor_shape_proto::{Dimension, dimension::Value::*};
        use pb::type_proto::{Tensor, Value::TensorType};
        let input = |name: &str, dims: [pb::tensor_shape_proto::dimension::Value; 2]| {
            let dim = |value| Dimension { value: Some(value), ..Default::default() };
            let shape = Some(pb::TensorShapeProto { dim: dims.map(dim).to_vec() });
            let value = Some(TensorType(Tensor { elem_type: 1, shape }));
            let r#type = Some(pb::TypeProto { value, ..Default::default() });
            pb::ValueInfoProto { name: name.to_string(), r#type, ..Default::default() }
        };
        let open = |name: &str| DimParam(name.to_string());
        let node = pb::NodeProto {
            op_type: "MatMul".to_string(),
            input: vec!["x".to_string(), "w".to_string()],
            output: vec!["y".to_string()],
            ..Default::default()
        };
        let output = pb::ValueInfoProto { name: "y".to_string(), ..Default::default() };
        let graph = pb::GraphProto {
            node: vec![node],
            input: vec![
                input("x", [open("rows"), open("features")]),
                input("w", [DimValue(40), DimValue(3)]),
            ],
            output: vec![output],
            ..Default::default()
        };
        let opset = pb::OperatorSetIdProto { version: 17, ..Default::default() };
        let model = pb::ModelProto {
            ir_version: 8,
            opset_import: vec![opset],
            graph: Some(graph),
            ..Default::default()
        };
        let dtype = crate::store::Dtype::Fp32;
        let weight = Weight { name: "w".to_string(), dtype, shape: vec![40, 3] };
        match import(model.encode_to_vec(), &[weight]).err() {
            Some(GraphError::Pinned { symbol, size }) => {
                assert_eq!((symbol.as_str(), size), ("features", 40));
            }
            other => panic!("{other:?}"),
        }
    }
}

//! Takes the big weights out of an ONNX file without loading them.
//!
//! The file is walked as protobuf wire format by small reads: big tensors are noted by path,
//! offset and length and left where they are; everything else becomes the skeleton, an ONNX
//! model in which each big weight is an input of the graph.

mod assemble;
mod dequantize;
mod elements;
mod functions;
mod names;
mod narrow;
mod plain;
mod skeleton;
mod tensor;
mod wire;

pub use assemble::assemble;
pub use elements::{Elements, Location, OnnxWeight, Stored};
use std::ops::Range;
use std::path::{Path, PathBuf};
use tensor::{Files, TensorFields};
use thiserror::Error;
use tract_onnx::pb::NodeProto;
use wire::{Field, Value, WireFile};

/// What is left of a model when its big weights are out.
#[derive(Clone, Debug)]
pub struct Skim {
    /// A `ModelProto` that is complete but for the weights, which it declares as inputs.
    pub skeleton: Vec<u8>,
    pub weights: Vec<OnnxWeight>,
    /// Exporter, as the file names it.
    pub producer: String,
    /// Version of the default operator set.
    pub opset: i64,
    /// Bytes of the model, external data included.
    pub source_bytes: u64,
}

/// Why a file cannot be skimmed.
#[derive(Debug, Error)]
pub enum SkimError {
    #[error("{path}: {error}", path = path.display())]
    Io { path: PathBuf, error: std::io::Error },
    #[error(
        "{path}: not an ONNX model: {what} at offset {offset}\n\
         export the model again, or copy it again if it was cut short",
        path = path.display()
    )]
    Malformed { path: PathBuf, offset: u64, what: String },
    #[error(
        "{path}: tensor \"{tensor}\": {what}\n\
         export the model again, or copy all of its files again",
        path = path.display()
    )]
    Tensor { path: PathBuf, tensor: String, what: String },
    #[error(
        "{path}: node \"{node}\" ({op}) cannot be run: {what}\n\
         export the model without it",
        path = path.display()
    )]
    Node { path: PathBuf, node: String, op: String, what: String },
    #[error(
        "{path}: the graph without its big weights takes more than {limit} bytes\n\
         lower --threshold, so that more tensors count as weights",
        path = path.display()
    )]
    SkeletonTooLarge { path: PathBuf, limit: u64 },
}

/// Bytes from which a tensor counts as a weight, by default: below it a block's alignment would
/// cost more than the tensor.
pub const THRESHOLD_BYTES: u64 = 64 << 10;

/// Largest skeleton: it is parsed in memory.
const SKELETON_LIMIT_BYTES: u64 = 64 << 20;

/// Field numbers of onnx.proto3.
mod field {
    pub const MODEL_GRAPH: u64 = 7;
    pub const MODEL_FUNCTIONS: u64 = 25;
    pub const GRAPH_NODE: u64 = 1;
    pub const GRAPH_INITIALIZER: u64 = 5;
    pub const GRAPH_VALUE_INFO: u64 = 13;
    pub const NODE_OUTPUT: u64 = 2;
    pub const NODE_OP_TYPE: u64 = 4;
    pub const NODE_ATTRIBUTE: u64 = 5;
    pub const NODE_DOMAIN: u64 = 7;
    pub const ATTRIBUTE_TENSOR: u64 = 5;
    pub const TENSOR_DIMS: u64 = 1;
    pub const TENSOR_DATA_TYPE: u64 = 2;
    pub const TENSOR_FLOAT_DATA: u64 = 4;
    pub const TENSOR_INT32_DATA: u64 = 5;
    pub const TENSOR_INT64_DATA: u64 = 7;
    pub const TENSOR_NAME: u64 = 8;
    pub const TENSOR_RAW_DATA: u64 = 9;
    pub const TENSOR_DOUBLE_DATA: u64 = 10;
    pub const TENSOR_UINT64_DATA: u64 = 11;
    pub const TENSOR_EXTERNAL_DATA: u64 = 13;
    pub const TENSOR_DATA_LOCATION: u64 = 14;
    pub const ENTRY_KEY: u64 = 1;
    pub const ENTRY_VALUE: u64 = 2;
}

/// Skims the model at `path`: tensors of at least `threshold_bytes` become weights.
pub fn skim(path: &Path, threshold_bytes: u64) -> Result<Skim, SkimError> {
    let mut walk = Walk::open(path, threshold_bytes)?;
    walk.model()?;
    let Walk { wire, mut files, model, functions, graph, mut weights, threshold_bytes } = walk;
    let malformed = |what| wire.malformed(0, what);
    let mut proto = skeleton::join(model, &graph).map_err(malformed)?;
    drop(graph);
    functions::inline(&mut proto, &functions, &files)?;
    drop(functions);
    let narrow = narrow::names(&proto);
    plain::settle(&mut proto, &mut weights, &mut files, threshold_bytes)?;
    dequantize::rewrite(&mut proto, &mut weights, &files, threshold_bytes)?;
    narrow::check(&proto, &weights, narrow, &files)?;
    if let Some(graph) = &mut proto.graph {
        names::tell_apart(graph, &weights);
    }
    let finished = skeleton::finish(proto, &weights).map_err(malformed)?;
    Ok(Skim {
        skeleton: finished.bytes,
        weights,
        producer: finished.producer,
        opset: finished.opset,
        source_bytes: files.total_bytes(),
    })
}

/// The walk over the file, and what it has gathered.
struct Walk {
    wire: WireFile,
    files: Files,
    threshold_bytes: u64,
    /// Encoded fields of the model but for its graph and its functions.
    model: Vec<u8>,
    functions: Vec<u8>,
    /// Encoded fields of the graph that stay.
    graph: Vec<u8>,
    weights: Vec<OnnxWeight>,
}

impl Walk {
    fn open(path: &Path, threshold_bytes: u64) -> Result<Walk, SkimError> {
        Ok(Walk {
            wire: WireFile::open(path)?,
            files: Files::of(path),
            threshold_bytes: threshold_bytes.max(1),
            model: vec![],
            functions: vec![],
            graph: vec![],
            weights: vec![],
        })
    }

    fn model(&mut self) -> Result<(), SkimError> {
        let mut graphs = vec![];
        for field in self.wire.fields(0..self.wire.len())? {
            match field {
                Field { number: field::MODEL_GRAPH, value: Value::Bytes(range), .. } => {
                    graphs.push(range);
                }
                field if field.number == field::MODEL_FUNCTIONS => {
                    self.keep(&field, Part::Functions)?;
                }
                field => self.keep(&field, Part::Model)?,
            }
        }
        let graph = match &graphs[..] {
            [graph] => graph,
            [] if self.wire.len() == 0 => return Err(self.malformed("the file is empty")),
            [] => return Err(self.malformed("it holds no graph")),
            _ => return Err(self.malformed("it holds more than one graph")),
        };
        for field in self.wire.fields(graph.clone())? {
            match field {
                Field { number: field::GRAPH_VALUE_INFO, .. } => {}
                Field {
                    number: field::GRAPH_INITIALIZER, value: Value::Bytes(ref range), ..
                } => {
                    let tensor = TensorFields::read(&self.wire, range.clone())?;
                    self.initializer(&field, tensor)?;
                }
                Field { number: field::GRAPH_NODE, value: Value::Bytes(ref range), .. }
                    if range.end - range.start >= self.threshold_bytes =>
                {
                    self.large_node(&field, range.clone())?;
                }
                field => self.keep(&field, Part::Graph)?,
            }
        }
        Ok(())
    }

    fn initializer(&mut self, field: &Field, tensor: TensorFields) -> Result<(), SkimError> {
        let bytes = self.files.data_bytes(&tensor)?;
        match self.files.locate(&self.wire, &tensor, bytes)? {
            Some(elements) if bytes >= self.threshold_bytes => {
                self.weights.push(weight(tensor, elements));
                Ok(())
            }
            _ => self.keep(field, Part::Graph),
        }
    }

    /// A node that carries much: a `Constant` whose tensor is a weight, or anything else, kept.
    fn large_node(&mut self, field: &Field, range: Range<u64>) -> Result<(), SkimError> {
        let (mut op, mut domain) = (String::new(), String::new());
        let (mut output, mut tensor) = (None, None);
        for part in self.wire.fields(range)? {
            match part {
                Field { number: field::NODE_OP_TYPE, value: Value::Bytes(range), .. } => {
                    op = self.wire.text(range)?;
                }
                Field { number: field::NODE_DOMAIN, value: Value::Bytes(range), .. } => {
                    domain = self.wire.text(range)?;
                }
                Field { number: field::NODE_OUTPUT, value: Value::Bytes(range), .. } => {
                    output = Some(self.wire.text(range)?);
                }
                Field { number: field::NODE_ATTRIBUTE, value: Value::Bytes(range), .. } => {
                    for part in self.wire.fields(range)? {
                        if let (field::ATTRIBUTE_TENSOR, Value::Bytes(range)) =
                            (part.number, part.value)
                        {
                            tensor = Some(TensorFields::read(&self.wire, range)?);
                        }
                    }
                }
                _ => {}
            }
        }
        let is_constant = op == "Constant" && matches!(&*domain, "" | "ai.onnx");
        let (Some(name), Some(tensor), true) = (output, tensor, is_constant) else {
            return self.keep(field, Part::Graph);
        };
        let bytes = self.files.data_bytes(&tensor)?;
        match self.files.locate(&self.wire, &tensor, bytes)? {
            Some(elements) if bytes >= self.threshold_bytes => {
                self.weights.push(weight(tensor.called(name), elements));
                Ok(())
            }
            _ => self.keep(field, Part::Graph),
        }
    }

    fn keep(&mut self, field: &Field, part: Part) -> Result<(), SkimError> {
        let gathered = self.model.len() + self.functions.len() + self.graph.len();
        if gathered as u64 + (field.whole.end - field.whole.start) > SKELETON_LIMIT_BYTES {
            return Err(self.too_large());
        }
        let bytes = self.wire.bytes(field.whole.clone())?;
        match part {
            Part::Model => self.model.extend(bytes),
            Part::Functions => self.functions.extend(bytes),
            Part::Graph => self.graph.extend(bytes),
        }
        Ok(())
    }

    /// An error of the file as a whole.
    fn malformed(&self, what: &str) -> SkimError {
        self.wire.malformed(0, what.to_string())
    }

    fn too_large(&self) -> SkimError {
        too_large(&self.files)
    }
}

/// The graph is too large to be parsed.
fn too_large(files: &Files) -> SkimError {
    SkimError::SkeletonTooLarge { path: files.path.clone(), limit: SKELETON_LIMIT_BYTES }
}

/// A node that cannot be run.
fn node_error(files: &Files, node: &NodeProto, what: String) -> SkimError {
    let name = match (node.name.is_empty(), node.output.first()) {
        (true, Some(output)) => output,
        _ => &node.name,
    };
    let (path, op) = (files.path.clone(), node.op_type.clone());
    SkimError::Node { path, node: name.clone(), op, what }
}

/// A tensor as a weight.
fn weight(tensor: TensorFields, elements: Elements) -> OnnxWeight {
    let dtype = tensor::ElementType::of(tensor.data_type).map(|element| element.dtype);
    let dtype = dtype.expect("its elements were found by their type");
    OnnxWeight { name: tensor.name, dtype, shape: tensor.dims, elements }
}

#[derive(Clone, Copy)]
enum Part {
    Model,
    Functions,
    Graph,
}

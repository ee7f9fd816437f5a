//! Takes the big weights out of an ONNX file without loading them.
//!
//! The file is walked as protobuf wire format by small reads: big tensors are noted by path,
//! offset and length and left where they are; everything else becomes the skeleton, an ONNX
//! model in which each big weight is an input of the graph.

mod skeleton;
mod wire;

use crate::store::Dtype;
pub use skeleton::{fix_dims, open_dims};
use std::collections::HashSet;
use std::fs::File;
use std::ops::Range;
use std::path::{Component, Path, PathBuf};
use thiserror::Error;
use wire::{Field, Value, WireFile};

/// What is left of a model when its big weights are out.
#[derive(Clone, Debug)]
pub struct Skim {
    /// A `ModelProto` that is complete but for the weights, which it declares as inputs.
    pub skeleton: Vec<u8>,
    pub weights: Vec<WeightSource>,
    /// Exporter, as the file names it.
    pub producer: String,
    /// Version of the default operator set.
    pub opset: i64,
    /// Bytes of the model, external data included.
    pub source_bytes: u64,
}

/// A big weight where it lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WeightSource {
    pub name: String,
    pub dtype: Dtype,
    pub shape: Vec<u64>,
    pub location: Location,
}

/// Bytes of a file: little-endian elements in row-major order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Location {
    pub path: PathBuf,
    pub offset: u64,
    pub bytes: u64,
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

/// Largest nesting and counts the walk accepts of a tensor's small fields.
const DIMS_LIMIT: usize = 64;

/// Field numbers of onnx.proto3.
mod field {
    pub const MODEL_GRAPH: u64 = 7;
    pub const GRAPH_NODE: u64 = 1;
    pub const GRAPH_INITIALIZER: u64 = 5;
    pub const GRAPH_VALUE_INFO: u64 = 13;
    pub const NODE_OUTPUT: u64 = 2;
    pub const NODE_OP_TYPE: u64 = 4;
    pub const NODE_ATTRIBUTE: u64 = 5;
    pub const ATTRIBUTE_TENSOR: u64 = 5;
    pub const TENSOR_DIMS: u64 = 1;
    pub const TENSOR_DATA_TYPE: u64 = 2;
    pub const TENSOR_FLOAT_DATA: u64 = 4;
    pub const TENSOR_NAME: u64 = 8;
    pub const TENSOR_RAW_DATA: u64 = 9;
    pub const TENSOR_EXTERNAL_DATA: u64 = 13;
    pub const TENSOR_DATA_LOCATION: u64 = 14;
    pub const ENTRY_KEY: u64 = 1;
    pub const ENTRY_VALUE: u64 = 2;
}

/// Skims the model at `path`: tensors of at least `threshold_bytes` become weights.
pub fn skim(path: &Path, threshold_bytes: u64) -> Result<Skim, SkimError> {
    let mut walk = Walk::open(path, threshold_bytes)?;
    walk.model()?;
    let Walk { wire, model, graph, weights, external_files, .. } = walk;
    let finished =
        skeleton::finish(model, &graph, &weights).map_err(|what| wire.malformed(0, what))?;
    let mut source_bytes = wire.len();
    for file in &external_files {
        source_bytes += std::fs::metadata(file).map(|m| m.len()).unwrap_or(0);
    }
    Ok(Skim {
        skeleton: finished.bytes,
        weights,
        producer: finished.producer,
        opset: finished.opset,
        source_bytes,
    })
}

/// The walk over the file, and what it has gathered.
struct Walk {
    wire: WireFile,
    folder: PathBuf,
    threshold_bytes: u64,
    /// Encoded fields of the model but for its graph.
    model: Vec<u8>,
    /// Encoded fields of the graph that stay.
    graph: Vec<u8>,
    weights: Vec<WeightSource>,
    external_files: HashSet<PathBuf>,
}

/// A tensor's fields, as far as they decide where its elements lie.
#[derive(Default)]
struct TensorFields {
    name: String,
    dims: Vec<u64>,
    data_type: u64,
    raw: Option<Range<u64>>,
    floats: Option<Range<u64>>,
    external: Vec<(String, String)>,
    is_external: bool,
}

impl Walk {
    fn open(path: &Path, threshold_bytes: u64) -> Result<Walk, SkimError> {
        let folder = path.parent().map(Path::to_path_buf).unwrap_or_default();
        Ok(Walk {
            wire: WireFile::open(path)?,
            folder,
            threshold_bytes: threshold_bytes.max(1),
            model: vec![],
            graph: vec![],
            weights: vec![],
            external_files: HashSet::new(),
        })
    }

    fn model(&mut self) -> Result<(), SkimError> {
        let mut graphs = vec![];
        for field in self.wire.fields(0..self.wire.len())? {
            match field {
                Field { number: field::MODEL_GRAPH, value: Value::Bytes(range), .. } => {
                    graphs.push(range);
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
                    let tensor = self.tensor(range.clone())?;
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
        let bytes = self.data_bytes(&tensor)?;
        match self.locate(&tensor, bytes)? {
            Some(location) if bytes >= self.threshold_bytes => self.take(tensor, location),
            Some(location) if tensor.is_external => self.inline(&tensor, &location),
            _ => self.keep(field, Part::Graph),
        }
    }

    /// A node that carries much: a `Constant` whose tensor is a weight, or anything else, kept.
    fn large_node(&mut self, field: &Field, range: Range<u64>) -> Result<(), SkimError> {
        let (mut op, mut output, mut tensor) = (String::new(), None, None);
        for part in self.wire.fields(range)? {
            match part {
                Field { number: field::NODE_OP_TYPE, value: Value::Bytes(range), .. } => {
                    op = self.wire.text(range)?;
                }
                Field { number: field::NODE_OUTPUT, value: Value::Bytes(range), .. } => {
                    output = Some(self.wire.text(range)?);
                }
                Field { number: field::NODE_ATTRIBUTE, value: Value::Bytes(range), .. } => {
                    for part in self.wire.fields(range)? {
                        if let (field::ATTRIBUTE_TENSOR, Value::Bytes(range)) =
                            (part.number, part.value)
                        {
                            tensor = Some(self.tensor(range)?);
                        }
                    }
                }
                _ => {}
            }
        }
        let (Some(name), Some(tensor)) = (output, tensor) else {
            return self.keep(field, Part::Graph);
        };
        let bytes = self.data_bytes(&tensor)?;
        match self.locate(&tensor, bytes)? {
            Some(location) if op == "Constant" && bytes >= self.threshold_bytes => {
                self.take(TensorFields { name, ..tensor }, location)
            }
            _ => self.keep(field, Part::Graph),
        }
    }

    fn tensor(&self, range: Range<u64>) -> Result<TensorFields, SkimError> {
        let mut tensor = TensorFields::default();
        let start = range.start;
        for part in self.wire.fields(range)? {
            match (part.number, part.value) {
                (field::TENSOR_DIMS, Value::Number(dim)) => tensor.dims.push(dim),
                (field::TENSOR_DIMS, Value::Bytes(range)) => {
                    tensor.dims.extend(self.wire.packed_numbers(range, DIMS_LIMIT)?);
                }
                (field::TENSOR_DATA_TYPE, Value::Number(code)) => tensor.data_type = code,
                (field::TENSOR_NAME, Value::Bytes(range)) => tensor.name = self.wire.text(range)?,
                (field::TENSOR_RAW_DATA, Value::Bytes(range)) => tensor.raw = Some(range),
                (field::TENSOR_FLOAT_DATA, Value::Bytes(range)) => tensor.floats = Some(range),
                (field::TENSOR_DATA_LOCATION, Value::Number(place)) => {
                    tensor.is_external = place == 1;
                }
                (field::TENSOR_EXTERNAL_DATA, Value::Bytes(range)) => {
                    tensor.external.push(self.entry(range)?);
                }
                _ => {}
            }
            if tensor.dims.len() > DIMS_LIMIT || tensor.external.len() > DIMS_LIMIT {
                return Err(self.wire.malformed(start, "a tensor of absurd rank".to_string()));
            }
        }
        Ok(tensor)
    }

    fn entry(&self, range: Range<u64>) -> Result<(String, String), SkimError> {
        let mut entry = (String::new(), String::new());
        for part in self.wire.fields(range)? {
            match (part.number, part.value) {
                (field::ENTRY_KEY, Value::Bytes(range)) => entry.0 = self.wire.text(range)?,
                (field::ENTRY_VALUE, Value::Bytes(range)) => entry.1 = self.wire.text(range)?,
                _ => {}
            }
        }
        Ok(entry)
    }

    /// Bytes of the tensor's elements; 0 for an element type that stays inline.
    fn data_bytes(&self, tensor: &TensorFields) -> Result<u64, SkimError> {
        let Some(dtype) = dtype_of_onnx(tensor.data_type) else { return Ok(0) };
        tensor
            .dims
            .iter()
            .try_fold(dtype.size() as u64, |bytes, dim| bytes.checked_mul(*dim))
            .filter(|bytes| *bytes <= i64::MAX as u64)
            .ok_or_else(|| {
                let shape: Vec<i64> = tensor.dims.iter().map(|dim| dim.cast_signed()).collect();
                self.tensor_error(tensor, format!("shape {shape:?} is absurd"))
            })
    }

    /// Where the elements lie, `None` where they are in fields that only a parser can read.
    fn locate(&self, tensor: &TensorFields, bytes: u64) -> Result<Option<Location>, SkimError> {
        if tensor.is_external {
            return self.locate_external(tensor, bytes).map(Some);
        }
        let packed = tensor.floats.clone().filter(|_| tensor.data_type == 1);
        let Some(range) = tensor.raw.clone().or(packed) else { return Ok(None) };
        let found = range.end - range.start;
        if found != bytes {
            let what = format!("shape {:?} takes {bytes} bytes, the file has {found}", tensor.dims);
            return Err(self.tensor_error(tensor, what));
        }
        let path = self.wire.path().to_path_buf();
        Ok(Some(Location { path, offset: range.start, bytes }))
    }

    fn locate_external(&self, tensor: &TensorFields, bytes: u64) -> Result<Location, SkimError> {
        let value = |key: &str| tensor.external.iter().find(|(k, _)| k == key).map(|(_, v)| v);
        let number = |key: &str| match value(key) {
            None => Ok(None),
            Some(text) => text.parse::<u64>().map(Some).map_err(|_| {
                self.tensor_error(tensor, format!("external {key} \"{text}\" is not a number"))
            }),
        };
        let name = value("location")
            .ok_or_else(|| self.tensor_error(tensor, "external data has no location".into()))?;
        let inside = Path::new(name).components().all(|part| matches!(part, Component::Normal(_)));
        if !inside || name.is_empty() {
            let what = format!("external data \"{name}\" lies outside the model's folder");
            return Err(self.tensor_error(tensor, what));
        }
        let path = self.folder.join(name);
        let (offset, found) = (number("offset")?.unwrap_or(0), number("length")?.unwrap_or(bytes));
        if found != bytes {
            let what = format!(
                "shape {:?} takes {bytes} bytes, its external data has {found}",
                tensor.dims
            );
            return Err(self.tensor_error(tensor, what));
        }
        let length = match std::fs::metadata(&path) {
            Ok(metadata) if metadata.is_file() => metadata.len(),
            Ok(_) => {
                let what = format!("external data \"{name}\" is not a file");
                return Err(self.tensor_error(tensor, what));
            }
            Err(error) => {
                let what = format!("external data \"{name}\": {error}");
                return Err(self.tensor_error(tensor, what));
            }
        };
        if offset.checked_add(bytes).is_none_or(|end| end > length) {
            let what = format!(
                "it takes {bytes} bytes at offset {offset} of \"{name}\", which has {length}"
            );
            return Err(self.tensor_error(tensor, what));
        }
        Ok(Location { path, offset, bytes })
    }

    fn take(&mut self, tensor: TensorFields, location: Location) -> Result<(), SkimError> {
        let Some(dtype) = dtype_of_onnx(tensor.data_type) else {
            return Err(self.tensor_error(&tensor, "its type cannot be stored".to_string()));
        };
        if location.path != self.wire.path() {
            self.external_files.insert(location.path.clone());
        }
        let TensorFields { name, dims: shape, .. } = tensor;
        self.weights.push(WeightSource { name, dtype, shape, location });
        Ok(())
    }

    /// Puts a small external tensor into the skeleton, which must stand alone.
    fn inline(&mut self, tensor: &TensorFields, location: &Location) -> Result<(), SkimError> {
        use std::os::unix::fs::FileExt;
        if location.bytes > SKELETON_LIMIT_BYTES {
            return Err(self.too_large());
        }
        let mut data = vec![0; location.bytes as usize];
        File::open(&location.path)
            .and_then(|file| file.read_exact_at(&mut data, location.offset))
            .map_err(|error| SkimError::Io { path: location.path.clone(), error })?;
        self.external_files.insert(location.path.clone());
        skeleton::append_tensor(
            &mut self.graph,
            &tensor.name,
            tensor.data_type,
            &tensor.dims,
            data,
        );
        self.check_size()
    }

    fn keep(&mut self, field: &Field, part: Part) -> Result<(), SkimError> {
        let gathered = self.model.len() + self.graph.len();
        if gathered as u64 + (field.whole.end - field.whole.start) > SKELETON_LIMIT_BYTES {
            return Err(self.too_large());
        }
        let bytes = self.wire.bytes(field.whole.clone())?;
        match part {
            Part::Model => self.model.extend(bytes),
            Part::Graph => self.graph.extend(bytes),
        }
        Ok(())
    }

    fn check_size(&self) -> Result<(), SkimError> {
        let gathered = (self.model.len() + self.graph.len()) as u64;
        if gathered > SKELETON_LIMIT_BYTES { Err(self.too_large()) } else { Ok(()) }
    }

    /// An error of the file as a whole.
    fn malformed(&self, what: &str) -> SkimError {
        self.wire.malformed(0, what.to_string())
    }

    fn too_large(&self) -> SkimError {
        let path = self.wire.path().to_path_buf();
        SkimError::SkeletonTooLarge { path, limit: SKELETON_LIMIT_BYTES }
    }

    fn tensor_error(&self, tensor: &TensorFields, what: String) -> SkimError {
        let path = self.wire.path().to_path_buf();
        SkimError::Tensor { path, tensor: tensor.name.clone(), what }
    }
}

#[derive(Clone, Copy)]
enum Part {
    Model,
    Graph,
}

/// Element types of onnx.proto3's TensorProto.DataType that a layer file can hold.
fn dtype_of_onnx(code: u64) -> Option<Dtype> {
    Some(match code {
        1 => Dtype::Fp32,
        2 => Dtype::Uint8,
        3 => Dtype::Int8,
        4 => Dtype::Uint16,
        5 => Dtype::Int16,
        6 => Dtype::Int32,
        7 => Dtype::Int64,
        9 => Dtype::Bool,
        10 => Dtype::Fp16,
        11 => Dtype::Fp64,
        12 => Dtype::Uint32,
        13 => Dtype::Uint64,
        _ => return None,
    })
}

/// The code of an element type in onnx.proto3's TensorProto.DataType.
fn onnx_of_dtype(dtype: Dtype) -> i32 {
    let codes = 1..=13;
    codes
        .into_iter()
        .find(|code| dtype_of_onnx(*code) == Some(dtype))
        .map_or(16, |code| code as i32)
}

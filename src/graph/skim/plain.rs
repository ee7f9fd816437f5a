//! Small tensors of the skeleton as tract reads them: in `raw_data`, of a type that it has, none in
//! another file. A constant in another file that is not small becomes a weight.

use super::tensor::{ElementType, Files, TensorFields, onnx_of_dtype};
use super::{Elements, OnnxWeight, SKELETON_LIMIT_BYTES, SkimError, too_large, weight};
use crate::store::Dtype;
use half::bf16;
use tract_onnx::pb::{AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto};

/// Settles the tensors of a model. Types that are held in others are not to be seen afterwards.
pub fn settle(
    proto: &mut ModelProto,
    weights: &mut Vec<OnnxWeight>,
    files: &mut Files,
    threshold_bytes: u64,
) -> Result<(), SkimError> {
    let Some(graph) = &mut proto.graph else { return Ok(()) };
    let mut kept = Vec::with_capacity(graph.node.len());
    for node in std::mem::take(&mut graph.node) {
        match external_constant(&node, files, threshold_bytes)? {
            Some(constant) => weights.push(constant),
            None => kept.push(node),
        }
    }
    graph.node = kept;
    let mut settler = Settler { files, inlined_bytes: 0 };
    settler.graph(graph)
}

/// The weight that a `Constant` node in another file is.
fn external_constant(
    node: &NodeProto,
    files: &mut Files,
    threshold_bytes: u64,
) -> Result<Option<OnnxWeight>, SkimError> {
    let tensor = node.attribute.iter().find_map(|attribute| attribute.t.as_ref());
    let ("Constant", Some(name), Some(tensor)) =
        (node.op_type.as_str(), node.output.first(), tensor)
    else {
        return Ok(None);
    };
    let is_known = ElementType::of(u64::from(tensor.data_type.cast_unsigned())).is_some();
    if tensor.data_location != Some(1) || !is_known {
        return Ok(None);
    }
    let fields = TensorFields::of_external(tensor).called(name.clone());
    let bytes = files.data_bytes(&fields)?;
    if bytes < threshold_bytes {
        return Ok(None);
    }
    let elements = files.locate_external(&fields, bytes)?;
    Ok(Some(weight(fields, elements)))
}

struct Settler<'a> {
    files: &'a mut Files,
    inlined_bytes: u64,
}

impl Settler<'_> {
    fn graph(&mut self, graph: &mut GraphProto) -> Result<(), SkimError> {
        graph.initializer.iter_mut().try_for_each(|tensor| self.tensor(tensor))?;
        let attributes = graph.node.iter_mut().flat_map(|node| &mut node.attribute);
        attributes.into_iter().try_for_each(|attribute| self.attribute(attribute))
    }

    fn attribute(&mut self, attribute: &mut AttributeProto) -> Result<(), SkimError> {
        let tensors = attribute.t.iter_mut().chain(&mut attribute.tensors);
        tensors.into_iter().try_for_each(|tensor| self.tensor(tensor))?;
        let graphs = attribute.g.iter_mut().chain(&mut attribute.graphs);
        graphs.into_iter().try_for_each(|graph| self.graph(graph))
    }

    fn tensor(&mut self, tensor: &mut TensorProto) -> Result<(), SkimError> {
        if tensor.data_location == Some(1) {
            self.bring_in(tensor)?;
        }
        let Some(element) = ElementType::of(u64::from(tensor.data_type.cast_unsigned())) else {
            return Ok(());
        };
        let fields = TensorFields::of_external(tensor);
        let bytes = self.files.data_bytes(&fields)?;
        if tensor.raw_data.is_empty() && bytes > 0 {
            tensor.raw_data = typed(tensor, element);
            *tensor = TensorProto {
                float_data: vec![],
                int32_data: vec![],
                int64_data: vec![],
                double_data: vec![],
                uint64_data: vec![],
                ..std::mem::take(tensor)
            };
        }
        if tensor.raw_data.len() as u64 != bytes {
            let (dims, found) = (&tensor.dims, tensor.raw_data.len());
            let what = format!("shape {dims:?} takes {bytes} bytes, the file has {found}");
            return Err(self.files.error(&fields, what));
        }
        if element.bits < 8 {
            let held = element.unpacked(Elements::Held(std::mem::take(&mut tensor.raw_data)));
            let count = fields.dims.iter().product();
            tensor.raw_data = self.files.read(&held, element.dtype, count)?;
        }
        if element.dtype == Dtype::Bf16 {
            tensor.raw_data = widened(&tensor.raw_data);
        }
        tensor.data_type = onnx_of_dtype(element.dtype);
        Ok(())
    }

    /// Puts an external tensor into the skeleton, which must stand alone.
    fn bring_in(&mut self, tensor: &mut TensorProto) -> Result<(), SkimError> {
        let fields = TensorFields::of_external(tensor);
        let bytes = self.files.data_bytes(&fields)?;
        self.inlined_bytes = self.inlined_bytes.saturating_add(bytes);
        if self.inlined_bytes > SKELETON_LIMIT_BYTES {
            return Err(too_large(self.files));
        }
        let stored = match self.files.locate_external(&fields, bytes)? {
            Elements::Packed { bytes, .. } => *bytes,
            plain => plain,
        };
        tensor.raw_data = self.files.read(&stored, Dtype::Uint8, bytes)?;
        tensor.external_data.clear();
        tensor.data_location = None;
        Ok(())
    }
}

/// Elements that have a field of their own each, as bytes.
fn typed(tensor: &TensorProto, element: ElementType) -> Vec<u8> {
    let size = element.dtype.size();
    let narrow = |number: u64| number.to_le_bytes().into_iter().take(size);
    match element.dtype {
        Dtype::Fp32 => tensor.float_data.iter().flat_map(|value| value.to_le_bytes()).collect(),
        Dtype::Fp64 => tensor.double_data.iter().flat_map(|value| value.to_le_bytes()).collect(),
        Dtype::Int64 => tensor.int64_data.iter().flat_map(|value| value.to_le_bytes()).collect(),
        Dtype::Uint32 | Dtype::Uint64 => {
            tensor.uint64_data.iter().flat_map(|value| narrow(*value)).collect()
        }
        Dtype::Bool => tensor.int32_data.iter().map(|value| u8::from(*value != 0)).collect(),
        _ => {
            let numbers = tensor.int32_data.iter();
            numbers.flat_map(|value| narrow(i64::from(*value).cast_unsigned())).collect()
        }
    }
}

/// Values of bf16 as f32.
pub fn widened(bytes: &[u8]) -> Vec<u8> {
    let words = bytes.as_chunks::<2>().0.iter();
    words.flat_map(|word| bf16::from_le_bytes(*word).to_f32().to_le_bytes()).collect()
}

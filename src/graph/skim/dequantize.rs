//! Quantized weights as the float weights that they stand for, where scales and zeros are constants:
//! of `DequantizeLinear`, and of `MatMulNBits` (com.microsoft), which becomes a plain product. They
//! are decoded strip by strip when the model is sharded, so that a pass streams them as any other.

use super::super::constants::constants;
use super::super::repair;
use super::elements::{OnnxWeight, Operand, Quantized};
use super::tensor::{Files, onnx_of_dtype};
use super::{Elements, SkimError, node_error};
use crate::store::Dtype;
use std::collections::{HashMap, HashSet};
use tract_onnx::pb::{
    AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, attribute_proto::AttributeType,
};

/// Rewrites the nodes of the graph that do nothing but dequantize constants. What is less than
/// `threshold_bytes` then stays in the graph.
pub fn rewrite(
    proto: &mut ModelProto,
    weights: &mut Vec<OnnxWeight>,
    files: &Files,
    threshold_bytes: u64,
) -> Result<(), SkimError> {
    let Some(graph) = &mut proto.graph else { return Ok(()) };
    if !graph.node.iter().any(is_candidate) {
        return Ok(());
    }
    let constants = Constants::of(graph, weights);
    let (mut made, mut nodes, mut used) = (vec![], vec![], HashSet::new());
    for node in &graph.node {
        let found = match node.op_type.as_str() {
            "DequantizeLinear" if is_candidate(node) => linear(node, &constants),
            "MatMulNBits" if is_candidate(node) => product(node, &constants),
            _ => Ok(None),
        };
        match found.map_err(|what| node_error(files, node, what))? {
            None => nodes.push(None),
            Some(Rewritten { weight, instead }) => {
                used.extend(node.input.iter().cloned());
                made.push(weight);
                nodes.push(Some(instead));
            }
        }
    }
    drop(constants);
    let old = std::mem::take(&mut graph.node).into_iter().zip(nodes);
    graph.node = old.flat_map(|(node, instead)| instead.unwrap_or_else(|| vec![node])).collect();
    forget(graph, weights, &used);
    for weight in made {
        if weight.bytes() >= threshold_bytes {
            weights.push(weight);
        } else {
            graph.initializer.push(held(&weight, files)?);
        }
    }
    Ok(())
}

fn is_candidate(node: &NodeProto) -> bool {
    match node.op_type.as_str() {
        "DequantizeLinear" => matches!(&*node.domain, "" | "ai.onnx" | "com.microsoft"),
        "MatMulNBits" => node.domain == "com.microsoft",
        _ => false,
    }
}

/// What a node becomes: a weight, and the nodes that use it in its place.
struct Rewritten {
    weight: OnnxWeight,
    instead: Vec<NodeProto>,
}

/// Constants of the graph by name.
struct Constants<'a> {
    weights: HashMap<&'a str, &'a OnnxWeight>,
    tensors: HashMap<&'a str, &'a TensorProto>,
}

/// A constant: its shape and its elements.
struct Constant {
    shape: Vec<u64>,
    operand: Operand,
}

impl Constant {
    fn count(&self) -> u64 {
        self.shape.iter().product()
    }
}

impl<'a> Constants<'a> {
    fn of(graph: &'a GraphProto, weights: &'a [OnnxWeight]) -> Constants<'a> {
        let weights = weights.iter().map(|weight| (weight.name.as_str(), weight)).collect();
        Constants { weights, tensors: constants(graph) }
    }

    /// The constant that a node has for input `index`; none where there is something else.
    fn input(&self, node: &NodeProto, index: usize) -> Option<Constant> {
        let name = node.input.get(index)?.as_str();
        if let Some(weight) = self.weights.get(name) {
            let operand = Operand { dtype: weight.dtype, elements: weight.elements.clone() };
            return Some(Constant { shape: weight.shape.clone(), operand });
        }
        let tensor = self.tensors.get(name)?;
        let code = u64::from(tensor.data_type.cast_unsigned());
        let dtype = super::tensor::ElementType::of(code)?.dtype;
        let shape: Vec<u64> =
            tensor.dims.iter().map(|dim| u64::try_from(*dim).ok()).collect::<Option<_>>()?;
        let count = shape.iter().try_fold(1u64, |count, dim| count.checked_mul(*dim))?;
        // A shape that the file does not fill is refused where the graph is imported.
        if count.checked_mul(dtype.size() as u64) != u64::try_from(tensor.raw_data.len()).ok() {
            return None;
        }
        let elements = Elements::Held(tensor.raw_data.clone());
        Some(Constant { shape, operand: Operand { dtype, elements } })
    }
}

/// Whether a node has something for input `index`.
fn has_input(node: &NodeProto, index: usize) -> bool {
    node.input.get(index).is_some_and(|name| !name.is_empty())
}

fn int(node: &NodeProto, name: &str) -> Option<i64> {
    repair::attribute(node, name).map(|attribute| attribute.i)
}

const CODES: [Dtype; 5] = [Dtype::Int8, Dtype::Uint8, Dtype::Int16, Dtype::Uint16, Dtype::Int32];

/// `DequantizeLinear` of constants; none where it is of anything else, or of types that are not
/// ours to decode.
fn linear(node: &NodeProto, constants: &Constants) -> Result<Option<Rewritten>, String> {
    let (Some(codes), Some(scales)) = (constants.input(node, 0), constants.input(node, 1)) else {
        return Ok(None);
    };
    let zeros = constants.input(node, 2);
    let has_odd_type = !CODES.contains(&codes.operand.dtype) || !scales.operand.dtype.is_float();
    // Of nothing there is nothing to decode, and its other sizes may be any.
    if has_odd_type
        || codes.count() == 0
        || (has_input(node, 2) && zeros.is_none())
        || int(node, "output_dtype").is_some()
    {
        return Ok(None);
    }
    let Some(name) = node.output.first() else { return Ok(None) };
    let shape = &codes.shape;
    let [rows, length, inner, block, rounds] = grid(node, shape, &scales.shape)?;
    let dtype = scales.operand.dtype;
    let quantized = Quantized {
        codes: codes.operand,
        scales: scales.operand,
        zeros: None,
        default_zero: 0,
        rows,
        length,
        inner,
        block,
        rounds,
        spare_codes: 0,
        spare_zeros: 0,
    };
    if let Some(zeros) = &zeros
        && zeros.count() != quantized.scale_count()
    {
        return Err(format!(
            "it has {} zero points for {} scales",
            zeros.count(),
            quantized.scale_count()
        ));
    }
    let quantized = Quantized { zeros: zeros.map(|zeros| zeros.operand), ..quantized };
    let elements = Elements::Quantized(Box::new(quantized));
    let weight = OnnxWeight { name: name.clone(), dtype, shape: codes.shape, elements };
    Ok(Some(Rewritten { weight, instead: vec![] }))
}

/// Rows, length, inner, block and rounds of a tensor's scales: one for all, one for each place of
/// an axis, or one for each block of places.
fn grid(node: &NodeProto, shape: &[u64], scales: &[u64]) -> Result<[u64; 5], String> {
    let count = shape.iter().product();
    let block = int(node, "block_size").unwrap_or(0);
    if scales.iter().product::<u64>() == 1 && block == 0 {
        return Ok([1, count, 1, count, 1]);
    }
    let rank = shape.len() as i64;
    let axis = int(node, "axis").unwrap_or(1);
    let at = usize::try_from(if axis < 0 { axis + rank } else { axis }).ok();
    let Some(at) = at.filter(|at| *at < shape.len()) else {
        return Err(format!("axis {axis} is none of the {rank} of its input"));
    };
    let (rows, length) = (shape[..at].iter().product::<u64>(), shape[at]);
    let inner: u64 = shape[at + 1..].iter().product();
    let unlike = || format!("scales of shape {scales:?} do not suit an input of {shape:?}");
    if block == 0 {
        return match scales {
            [of_axis] if *of_axis != length => Err(unlike()),
            [_] if inner == 1 => Ok([1, rows, length, rows, 1]),
            [_] => Ok([rows * length, inner, 1, inner, rows]),
            _ => Err(unlike()),
        };
    }
    let block = u64::try_from(block).map_err(|_| format!("block_size {block} is below 0"))?;
    let mut expected = shape.to_vec();
    expected[at] = length.div_ceil(block);
    if expected != scales { Err(unlike()) } else { Ok([rows, length, inner, block, 1]) }
}

/// `MatMulNBits` with constant weights; none where it has an order of its own (`g_idx`), which is
/// refused by name when the graph is imported.
fn product(node: &NodeProto, constants: &Constants) -> Result<Option<Rewritten>, String> {
    let (Some(codes), Some(scales)) = (constants.input(node, 1), constants.input(node, 2)) else {
        return Ok(None);
    };
    let zeros = constants.input(node, 3);
    let bits = int(node, "bits").unwrap_or(4);
    let bits = [2u32, 4, 8].into_iter().find(|known| i64::from(*known) == bits);
    let size = |name: &str| int(node, name).and_then(|size| u64::try_from(size).ok());
    let (Some(bits), Some(depth), Some(outputs), Some(block)) =
        (bits, size("K"), size("N"), size("block_size").filter(|block| *block > 0))
    else {
        return Ok(None);
    };
    let is_odd = codes.operand.dtype != Dtype::Uint8 || !scales.operand.dtype.is_float();
    if is_odd || has_input(node, 4) || (has_input(node, 3) && zeros.is_none()) {
        return Ok(None);
    }
    let Some(result) = node.output.first() else { return Ok(None) };
    let codes_a_byte = u64::from(8 / bits);
    if depth == 0 || outputs == 0 || !block.is_multiple_of(codes_a_byte) {
        return Ok(None);
    }
    let (blocks, block_bytes) = (depth.div_ceil(block), block / codes_a_byte);
    check_count("weights", codes.count(), [outputs, blocks, block_bytes])?;
    check_count("scales", scales.count(), [outputs, blocks, 1])?;
    let packed = |operand: Operand| match bits {
        8 => operand,
        _ => Operand {
            dtype: Dtype::Uint8,
            elements: Elements::Packed {
                bytes: Box::new(operand.elements),
                bits,
                is_signed: false,
            },
        },
    };
    let mut spare_zeros = 0;
    let zeros = match zeros {
        Some(zeros) if zeros.operand.dtype == Dtype::Uint8 => {
            let row_bytes = blocks.div_ceil(codes_a_byte);
            check_count("zero points", zeros.count(), [outputs, row_bytes, 1])?;
            spare_zeros = row_bytes * codes_a_byte - blocks;
            Some(packed(zeros.operand))
        }
        Some(zeros) if zeros.operand.dtype.is_float() => {
            check_count("zero points", zeros.count(), [outputs, blocks, 1])?;
            Some(zeros.operand)
        }
        Some(_) => return Ok(None),
        None => None,
    };
    let activation = scales.operand.dtype;
    let quantized = Quantized {
        codes: packed(codes.operand),
        scales: scales.operand,
        zeros,
        default_zero: 1 << (bits - 1),
        rows: outputs,
        length: depth,
        inner: 1,
        block,
        rounds: 1,
        spare_codes: blocks * block - depth,
        spare_zeros,
    };
    let weight = OnnxWeight {
        name: format!("{result}/weight"),
        dtype: Dtype::Fp32,
        shape: vec![outputs, depth],
        elements: Elements::Quantized(Box::new(quantized)),
    };
    let instead = plain_product(node, result, activation);
    Ok(Some(Rewritten { weight, instead }))
}

fn check_count(what: &str, found: u64, sizes: [u64; 3]) -> Result<(), String> {
    let expected = sizes.iter().try_fold(1u64, |all, size| all.checked_mul(*size));
    match expected == Some(found) {
        true => Ok(()),
        false => Err(format!("it has {found} {what}, K, N, bits and block_size ask for {sizes:?}")),
    }
}

/// The product of `node` with the float weight in its place. It is of f32, between casts where
/// activations are not: such weights are no values of f16.
fn plain_product(node: &NodeProto, result: &str, activation: Dtype) -> Vec<NodeProto> {
    let inner = |name: &str| format!("{result}/{name}");
    let is_cast = activation != Dtype::Fp32;
    let bias = node.input.get(5).filter(|name| !name.is_empty());
    let mut nodes = vec![];
    let mut put = |op: &str, inputs: Vec<String>, output: String, attribute| {
        let name = if op == "MatMul" && !node.name.is_empty() { &node.name } else { &output };
        nodes.push(NodeProto {
            op_type: op.to_string(),
            name: name.clone(),
            input: inputs,
            output: vec![output],
            attribute,
            ..NodeProto::default()
        });
    };
    let cast = |dtype| {
        let to = onnx_of_dtype(dtype).into();
        vec![AttributeProto { i: to, ..attribute("to", AttributeType::Int) }]
    };
    let mut x = node.input.first().cloned().unwrap_or_default();
    if is_cast {
        put("Cast", vec![x], inner("float"), cast(Dtype::Fp32));
        x = inner("float");
    }
    let turned = AttributeProto { ints: vec![1, 0], ..attribute("perm", AttributeType::Ints) };
    put("Transpose", vec![inner("weight")], inner("transposed"), vec![turned]);
    let product = match (is_cast, bias) {
        (false, None) => result.to_string(),
        _ => inner("product"),
    };
    put("MatMul", vec![x, inner("transposed")], product.clone(), vec![]);
    let mut last = product;
    if let Some(bias) = bias {
        let mut addend = bias.clone();
        if is_cast {
            put("Cast", vec![addend], inner("bias"), cast(Dtype::Fp32));
            addend = inner("bias");
        }
        let sum = if is_cast { inner("sum") } else { result.to_string() };
        put("Add", vec![last, addend], sum.clone(), vec![]);
        last = sum;
    }
    if is_cast {
        put("Cast", vec![last], result.to_string(), cast(activation));
    }
    nodes
}

fn attribute(name: &str, kind: AttributeType) -> AttributeProto {
    AttributeProto { name: name.to_string(), r#type: kind as i32, ..AttributeProto::default() }
}

/// Takes out those of `names` that nobody uses any more.
fn forget(graph: &mut GraphProto, weights: &mut Vec<OnnxWeight>, names: &HashSet<String>) {
    let mut used = HashSet::new();
    note_uses(graph, &mut used);
    let is_kept = |name: &String| !names.contains(name) || used.contains(name);
    weights.retain(|weight| is_kept(&weight.name));
    graph.initializer.retain(|tensor| is_kept(&tensor.name));
    graph.input.retain(|input| is_kept(&input.name));
    graph.node.retain(|node| node.op_type != "Constant" || node.output.iter().all(is_kept));
}

fn note_uses(graph: &GraphProto, used: &mut HashSet<String>) {
    used.extend(graph.output.iter().map(|output| output.name.clone()));
    for node in &graph.node {
        used.extend(node.input.iter().cloned());
        let attributes = node.attribute.iter();
        attributes.flat_map(|a| a.g.iter().chain(&a.graphs)).for_each(|g| note_uses(g, used));
    }
}

/// A weight that is few bytes, as an initializer.
fn held(weight: &OnnxWeight, files: &Files) -> Result<TensorProto, SkimError> {
    let bytes = weight.bytes();
    let data = files.read(&weight.elements, weight.dtype, bytes)?;
    let data = match weight.dtype {
        Dtype::Bf16 => super::plain::widened(&data),
        _ => data,
    };
    Ok(TensorProto {
        name: weight.name.clone(),
        data_type: onnx_of_dtype(weight.dtype),
        dims: weight.shape.iter().map(|dim| dim.cast_signed()).collect(),
        raw_data: data,
        ..TensorProto::default()
    })
}

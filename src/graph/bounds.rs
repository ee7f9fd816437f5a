//! Sizes that no model has, seen before tract computes with them: it computes what is constant
//! while it imports, whatever that takes.

use super::constants::constants;
use std::collections::HashMap;
use tract_onnx::pb::{GraphProto, NodeProto, TensorProto};

/// Elements of the largest tensor that constants may ask for.
const MAX_ELEMENTS: u128 = 1 << 30;

/// The widest border, the longest stride, the largest kernel along an axis.
const MAX_STEP: i64 = 1 << 20;

/// How much larger an axis may become.
const MAX_SCALE: f32 = 4096.0;

/// Numbers of a shape, of pads or of scales, at most.
const MAX_NUMBERS: usize = 128;

/// Attributes that are steps along axes.
const STEPS: [&str; 6] =
    ["pads", "strides", "dilations", "kernel_shape", "output_padding", "output_shape"];

/// The first node that asks for what no model needs, and what that is.
pub fn find(graph: &GraphProto) -> Option<(&NodeProto, String)> {
    let constants = Constants(constants(graph));
    graph.node.iter().find_map(|node| Some((node, what_is_odd(node, &constants)?)))
}

fn what_is_odd(node: &NodeProto, constants: &Constants<'_>) -> Option<String> {
    for attribute in &node.attribute {
        let ints = &attribute.ints;
        let too_far = ints.iter().find(|step| step.unsigned_abs() > MAX_STEP.unsigned_abs());
        match (attribute.name.as_str(), too_far) {
            (name, Some(step)) if STEPS.contains(&name) => {
                return Some(format!("{name} has {step}, beyond {MAX_STEP}"));
            }
            ("perm", _) if node.op_type == "Transpose" && !is_permutation(ints) => {
                return Some(format!("perm {} is no order of axes", shown(ints)));
            }
            ("shape", _) if ints.len() > 1 && elements(ints) > MAX_ELEMENTS => {
                return Some(format!("it makes a tensor of shape {}", shown(ints)));
            }
            _ => {}
        }
    }
    let ints = |input: usize| constants.ints(node.input.get(input)?);
    match node.op_type.as_str() {
        "ConstantOfShape" => too_large(&ints(0)?),
        "Expand" | "Tile" => too_large(&ints(1)?),
        "Pad" => {
            let pads = ints(1)?;
            let step = pads.iter().find(|step| step.unsigned_abs() > MAX_STEP.unsigned_abs())?;
            Some(format!("pads has {step}, beyond {MAX_STEP}"))
        }
        "Resize" | "Upsample" => {
            let named = node.attribute.iter().find(|attribute| attribute.name == "scales");
            let given = [1, 2].into_iter().filter_map(|at| constants.floats(node.input.get(at)?));
            let scales = given.chain(named.map(|attribute| attribute.floats.clone()));
            let scale = scales.flatten().find(|scale| scale.is_nan() || scale.abs() > MAX_SCALE);
            match scale {
                Some(scale) => Some(format!("a scale of {scale} is beyond {MAX_SCALE}")),
                None => too_large(&ints(3)?),
            }
        }
        "Range" => {
            let number = |at: usize| ints(at)?.first().copied();
            let (start, end, step) = (number(0)?, number(1)?, number(2)?);
            let steps = i128::from(end).abs_diff(i128::from(start));
            let count = steps / u128::from(step.unsigned_abs().max(1));
            (count > MAX_ELEMENTS).then(|| format!("it counts {count} numbers"))
        }
        "OneHot" => {
            let depth = *ints(1)?.first()?;
            (depth > MAX_STEP).then(|| format!("a depth of {depth} is beyond {MAX_STEP}"))
        }
        _ => None,
    }
}

fn too_large(shape: &[i64]) -> Option<String> {
    let is_too_large = elements(shape) > MAX_ELEMENTS;
    is_too_large.then(|| format!("it makes a tensor of shape {}", shown(shape)))
}

fn elements(shape: &[i64]) -> u128 {
    let sizes = shape.iter().map(|size| u128::from(size.unsigned_abs()));
    sizes.fold(1, |product: u128, size| product.saturating_mul(size))
}

fn is_permutation(axes: &[i64]) -> bool {
    let mut sorted = axes.to_vec();
    sorted.sort_unstable();
    sorted.iter().copied().eq(0..axes.len() as i64)
}

fn shown(numbers: &[i64]) -> String {
    const SHOWN: usize = 8;
    let more = if numbers.len() > SHOWN { ".." } else { "" };
    format!("{:?}{more}", &numbers[..numbers.len().min(SHOWN)])
}

/// The numbers of constants, as far as sizes can be made of them.
struct Constants<'a>(HashMap<&'a str, &'a TensorProto>);

impl Constants<'_> {
    fn ints(&self, name: &str) -> Option<Vec<i64>> {
        let tensor = self.0.get(name)?;
        let (data_type, raw) = (tensor.data_type, &tensor.raw_data);
        let numbers: Vec<i64> = match data_type {
            7 if raw.is_empty() => tensor.int64_data.iter().copied().take(MAX_NUMBERS).collect(),
            7 => {
                raw.as_chunks().0.iter().take(MAX_NUMBERS).map(|b| i64::from_le_bytes(*b)).collect()
            }
            6 if raw.is_empty() => {
                tensor.int32_data.iter().take(MAX_NUMBERS).map(|v| i64::from(*v)).collect()
            }
            6 => raw
                .as_chunks()
                .0
                .iter()
                .take(MAX_NUMBERS)
                .map(|b| i64::from(i32::from_le_bytes(*b)))
                .collect(),
            _ => return None,
        };
        Some(numbers)
    }

    fn floats(&self, name: &str) -> Option<Vec<f32>> {
        let tensor = self.0.get(name).filter(|tensor| tensor.data_type == 1)?;
        let raw = tensor.raw_data.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b));
        Some(raw.chain(tensor.float_data.iter().copied()).take(MAX_NUMBERS).collect())
    }
}

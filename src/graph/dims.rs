//! The open dimensions of a skeleton's inputs, and what is made of them before tract sees them.

use prost::Message;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use tract_onnx::pb;
use tract_onnx::pb::tensor_shape_proto::{Dimension, dimension};
use tract_onnx::pb::type_proto;

/// What is made of an open dimension.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DimSize {
    /// Of one size from here on.
    Is(u64),
    /// The same as another one.
    As(String),
}

/// The shape of an input, as far as it is open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenShape {
    /// Name of the input.
    pub input: String,
    /// By axis the dimension's name; none where the size is fixed.
    pub dims: Vec<Option<String>>,
}

impl OpenShape {
    /// Names that it has more than once.
    pub fn repeated(&self) -> impl Iterator<Item = &String> {
        let later =
            self.dims.iter().enumerate().filter_map(|(axis, dim)| Some((axis, dim.as_ref()?)));
        later
            .filter(|(axis, name)| self.dims[..*axis].iter().flatten().any(|dim| dim == *name))
            .map(|(_, name)| name)
    }
}

/// Shapes of a skeleton's inputs that are open somewhere.
///
/// Errors where the skeleton is not one that [`super::skim::skim`] made.
pub fn open_shapes(skeleton: &[u8]) -> Result<Vec<OpenShape>, String> {
    let mut proto = pb::ModelProto::decode(skeleton).map_err(|error| error.to_string())?;
    let graph = proto.graph.as_mut().ok_or("it holds no graph")?;
    let name = |dim: &Dimension| match &dim.value {
        Some(dimension::Value::DimParam(name)) => Some(name.clone()),
        _ => None,
    };
    let shapes = graph.input.iter_mut().filter_map(|input| {
        let dims = dims_of(input)?.iter().map(name).collect();
        Some(OpenShape { input: input.name.clone(), dims })
    });
    Ok(shapes.filter(|shape| shape.dims.iter().any(Option::is_some)).collect())
}

/// The skeleton with those dimensions as `sizes` has them, in every input.
///
/// Errors where the skeleton is not one that [`super::skim::skim`] made.
pub fn settle(skeleton: &[u8], sizes: &BTreeMap<String, DimSize>) -> Result<Vec<u8>, String> {
    let mut proto = pb::ModelProto::decode(skeleton).map_err(|error| error.to_string())?;
    let graph = proto.graph.as_mut().ok_or("it holds no graph")?;
    for dim in graph.input.iter_mut().filter_map(dims_of).flatten() {
        if let Some(dimension::Value::DimParam(name)) = &dim.value {
            dim.value = Some(settled(name, sizes));
        }
    }
    Ok(proto.encode_to_vec())
}

/// What a dimension comes to.
fn settled(name: &str, sizes: &BTreeMap<String, DimSize>) -> dimension::Value {
    let mut name = name;
    // Each step leads to another name, or a circle would be followed for ever.
    for _ in 0..=sizes.len() {
        match sizes.get(name) {
            None => break,
            Some(DimSize::Is(size)) => return dimension::Value::DimValue(size.cast_signed()),
            Some(DimSize::As(other)) => name = other,
        }
    }
    dimension::Value::DimParam(name.to_string())
}

/// Dimensions that their name says to be the batch's, where the shapes do not speak against it: no
/// input has two axes of it.
pub fn named_batch(shapes: &[OpenShape]) -> BTreeSet<String> {
    let is_batch = |name: &str| {
        let name = name.to_ascii_lowercase();
        name.contains("batch") || ["b", "bs", "bsz"].contains(&name.as_str())
    };
    let names = shapes.iter().flat_map(|shape| shape.dims.iter().flatten());
    let mut batch: BTreeSet<String> = names.filter(|name| is_batch(name)).cloned().collect();
    for name in shapes.iter().flat_map(OpenShape::repeated) {
        batch.remove(name);
    }
    batch
}

/// Dimensions that are the first of two or more wherever they are, as a batch usually is.
pub fn leading(shapes: &[OpenShape]) -> BTreeSet<String> {
    let mut leading: BTreeSet<String> =
        shapes.iter().filter_map(|shape| shape.dims.first()?.clone()).collect();
    for shape in shapes {
        let others = if shape.dims.len() > 1 { &shape.dims[1..] } else { &shape.dims };
        for name in others.iter().flatten() {
            leading.remove(name);
        }
    }
    leading
}

/// The axis of an input that is one of `names`.
pub fn axis_of(shapes: &[OpenShape], input: &str, names: &BTreeSet<String>) -> Option<usize> {
    let shape = shapes.iter().find(|shape| shape.input == input)?;
    shape.dims.iter().position(|dim| dim.as_ref().is_some_and(|name| names.contains(name)))
}

/// A name as a symbol: letters, digits and underscores.
pub fn identifier(name: &str) -> String {
    let mut text: String =
        name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
    if !text.starts_with(|c: char| c.is_ascii_alphabetic()) {
        text.insert_str(0, "dim_");
    }
    text
}

/// Gives each open dimension a symbol that no other one has. Dimensions of one name are one; those
/// without a name, which some exporters call "?", are all different.
pub(super) fn name_dims(inputs: &mut [pb::ValueInfoProto]) {
    let mut named: BTreeMap<String, String> = BTreeMap::new();
    // How often each was wanted, so that finding the next that is free takes no search.
    let mut taken: BTreeMap<String, usize> = BTreeMap::new();
    let mut unique = |wanted: String| {
        let mut name = wanted.clone();
        while let Some(count) = taken.get_mut(&name) {
            *count += 1;
            name = format!("{wanted}_{count}");
        }
        taken.insert(name.clone(), 1);
        name
    };
    // Names come first: one that is made up must not take theirs.
    for dim in inputs.iter_mut().filter_map(dims_of).flatten() {
        if let Some(dimension::Value::DimParam(name)) = &dim.value
            && !is_nameless(name)
            && !named.contains_key(name)
        {
            named.insert(name.clone(), unique(identifier(name)));
        }
    }
    for input in inputs {
        let label = identifier(&input.name);
        for (axis, dim) in dims_of(input).into_iter().flatten().enumerate() {
            dim.value = Some(match dim.value.take() {
                Some(dimension::Value::DimValue(size)) if size > 0 => {
                    dimension::Value::DimValue(size)
                }
                Some(dimension::Value::DimParam(name)) if named.contains_key(&name) => {
                    dimension::Value::DimParam(named[&name].clone())
                }
                _ => dimension::Value::DimParam(unique(format!("{label}_{axis}"))),
            });
        }
    }
}

/// Whether a name says no more than that there is none.
fn is_nameless(name: &str) -> bool {
    !name.contains(|c: char| c.is_alphabetic()) || name == "None"
}

fn dims_of(info: &mut pb::ValueInfoProto) -> Option<&mut Vec<Dimension>> {
    let type_proto::Value::TensorType(tensor) = info.r#type.as_mut()?.value.as_mut()?;
    Some(&mut tensor.shape.as_mut()?.dim)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn input(name: &str, dims: &[&str]) -> pb::ValueInfoProto {
        let value = |text: &&str| match text.parse() {
            Ok(size) => dimension::Value::DimValue(size),
            Err(_) => dimension::Value::DimParam((*text).to_string()),
        };
        let dim = |text| Dimension { value: Some(value(text)), ..Dimension::default() };
        let shape = pb::TensorShapeProto { dim: dims.iter().map(dim).collect() };
        let tensor = type_proto::Tensor { elem_type: 1, shape: Some(shape) };
        pb::ValueInfoProto {
            name: name.to_string(),
            r#type: Some(pb::TypeProto {
                value: Some(type_proto::Value::TensorType(tensor)),
                ..pb::TypeProto::default()
            }),
            ..pb::ValueInfoProto::default()
        }
    }

    fn skeleton(inputs: &[(&str, &[&str])]) -> Vec<u8> {
        let mut inputs: Vec<_> = inputs.iter().map(|(name, dims)| input(name, dims)).collect();
        name_dims(&mut inputs);
        let graph = pb::GraphProto { input: inputs, ..pb::GraphProto::default() };
        pb::ModelProto { graph: Some(graph), ..pb::ModelProto::default() }.encode_to_vec()
    }

    fn names(skeleton: &[u8]) -> Vec<Vec<String>> {
        let name = |dim: &Option<String>| dim.clone().unwrap_or_default();
        let shapes = open_shapes(skeleton).unwrap();
        shapes.iter().map(|shape| shape.dims.iter().map(name).collect()).collect()
    }

    /// Two "?" became one symbol, so that only squares were taken.
    #[test]
    fn dimensions_without_a_name_are_all_different() {
        let made = skeleton(&[("x", &["?", "?", "3"]), ("y", &["", "", "seq"])]);
        assert_eq!(names(&made), [["x_0", "x_1", ""], ["y_0", "y_1", "seq"]]);
        // One that is named so keeps its name.
        let made = skeleton(&[("x", &["?", "4"]), ("y", &["x_0", "x.0"])]);
        assert_eq!(names(&made), [["x_0_3", ""], ["x_0", "x_0_2"]]);
    }

    #[test]
    fn a_batch_is_named_so_and_in_no_input_twice() {
        let check = |inputs: &[(&str, &[&str])], batch: &[&str], lead: &[&str]| {
            let shapes = open_shapes(&skeleton(inputs)).unwrap();
            assert_eq!(named_batch(&shapes).into_iter().collect::<Vec<_>>(), batch, "{inputs:?}");
            assert_eq!(leading(&shapes).into_iter().collect::<Vec<_>>(), lead, "{inputs:?}");
        };
        check(&[("ids", &["batch_size", "seq"])], &["batch_size"], &["batch_size"]);
        check(&[("ids", &["batch", "seq"]), ("mask", &["seq", "seq"])], &["batch"], &["batch"]);
        check(&[("x", &["seq", "batch", "32"])], &["batch"], &["seq"]);
        check(&[("x", &["batch", "batch"])], &[], &[]);
        check(&[("x", &["num_boxes", "32"])], &[], &["num_boxes"]);
        check(&[("x", &["time"])], &[], &[]);
        check(&[("x", &["N", "3", "H", "W"])], &[], &["N"]);
    }

    #[test]
    fn what_is_made_of_a_dimension_holds_in_every_input() {
        let made = skeleton(&[("x", &["n", "h", "m"]), ("y", &["h", "n"])]);
        let sizes =
            [("n".to_string(), DimSize::Is(7)), ("m".to_string(), DimSize::As("h".to_string()))];
        let settled = settle(&made, &sizes.into()).unwrap();
        let expected: [&[&str]; 2] = [&["", "h", "h"], &["h", ""]];
        assert_eq!(names(&settled), expected);
        let circle =
            [("n", "h"), ("h", "n")].map(|(a, b)| (a.to_string(), DimSize::As(b.to_string())));
        assert!(settle(&made, &circle.into()).is_ok());
    }
}

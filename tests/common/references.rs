//! Real models, their inputs, and what ONNX Runtime (f32, one thread) answers.
//!
//! Each folder of `tests/refs` holds those of a model: `in.<input>.npy` and `out.<output>.npy`, or
//! `in.<case>.<input>.npy` and so on for several cases.

use hermes::engine::Array;
use hermes::store::Dtype;
use npyz::{DType, NpyFile, TypeChar};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

/// What goes in and what must come out.
#[derive(Clone, Default)]
pub struct Case {
    pub inputs: BTreeMap<String, Array>,
    pub outputs: BTreeMap<String, Array>,
}

/// The model's file, or an end that says how to get it.
pub fn model_file(model: &str) -> PathBuf {
    let default = || Path::new(env!("CARGO_MANIFEST_DIR")).join("models");
    let folder = std::env::var_os("HERMES_MODELS").map_or_else(default, PathBuf::from);
    let file = folder.join(model);
    assert!(
        file.is_file(),
        "{} is missing; fetch it with tools/fetch_models.sh {}",
        file.display(),
        folder.display()
    );
    file
}

/// Every case of a model's references, each with a batch of one.
pub fn cases(reference: &str) -> Vec<Case> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/refs").join(reference);
    let mut cases: BTreeMap<u64, Case> = BTreeMap::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let (side, rest) = path.file_stem().unwrap().to_str().unwrap().split_once('.').unwrap();
        let numbered = rest.split_once('.').and_then(|(n, name)| Some((n.parse().ok()?, name)));
        let (number, name) = numbered.unwrap_or((0, rest));
        let array = read_array(NpyFile::new(File::open(&path).unwrap()).unwrap());
        let case = cases.entry(number).or_default();
        let ports = if side == "in" { &mut case.inputs } else { &mut case.outputs };
        ports.insert(name.to_string(), array);
    }
    cases.into_values().flat_map(|case| batch_of_one(&case)).collect()
}

/// A request is one element of a batch: a case with more becomes several.
fn batch_of_one(case: &Case) -> Vec<Case> {
    let batch = case.inputs.values().map(|array| array.shape[0]).min().unwrap();
    let pick = |ports: &BTreeMap<String, Array>, i: usize| {
        ports.iter().map(|(name, array)| (name.clone(), element(array, batch, i))).collect()
    };
    (0..batch)
        .map(|i| Case { inputs: pick(&case.inputs, i), outputs: pick(&case.outputs, i) })
        .collect()
}

/// Part `index` of `count` along the first axis; all of it where `count` is 1.
fn element(array: &Array, count: usize, index: usize) -> Array {
    let mut shape = array.shape.clone();
    assert_eq!(shape[0] % count, 0);
    shape[0] /= count;
    let bytes = array.bytes.len() / count;
    let bytes = array.bytes[index * bytes..(index + 1) * bytes].to_vec();
    Array::new(array.dtype, shape, bytes).unwrap()
}

fn read_array(file: NpyFile<impl std::io::Read>) -> Array {
    let shape = file.shape().iter().map(|dim| usize::try_from(*dim).unwrap()).collect();
    let DType::Plain(dtype) = file.dtype() else { panic!("a reference holds records") };
    let (dtype, bytes) = match (dtype.type_char(), dtype.size_field()) {
        (TypeChar::Float, 4) => (Dtype::Fp32, bytes_of(file.into_vec().unwrap(), f32::to_le_bytes)),
        (TypeChar::Int, 8) => (Dtype::Int64, bytes_of(file.into_vec().unwrap(), i64::to_le_bytes)),
        (TypeChar::Int, 4) => (Dtype::Int32, bytes_of(file.into_vec().unwrap(), i32::to_le_bytes)),
        other => panic!("a reference holds {other:?}"),
    };
    Array::new(dtype, shape, bytes).unwrap()
}

fn bytes_of<T, const N: usize>(values: Vec<T>, to_bytes: fn(T) -> [u8; N]) -> Vec<u8> {
    values.into_iter().flat_map(to_bytes).collect()
}

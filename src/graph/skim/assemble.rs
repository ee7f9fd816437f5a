//! A skim of a graph that was written here, over weights that lie in files of any kind.

use super::{OnnxWeight, SKELETON_LIMIT_BYTES, Skim, SkimError, Stored, names, plain, skeleton};
use crate::graph::writer::{Graph, Weight};
use crate::store::Dtype;
use half::{bf16, f16};
use std::collections::BTreeSet;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use tract_onnx::pb::TensorProto;

/// Makes a skim of a graph by the operators of version `opset`: tensors of at least
/// `threshold_bytes` are its weights, the others are read into the skeleton. `producer` is who made
/// it, for whoever asks.
///
/// # Errors
/// Small tensors that cannot be read or hold what is no number, and too many of them.
pub fn assemble(
    mut graph: Graph<Stored>,
    producer: &str,
    opset: i64,
    threshold_bytes: u64,
) -> Result<Skim, SkimError> {
    let declared = std::mem::take(&mut graph.weights);
    let mut proto = graph.proto(producer, opset);
    drop(graph);
    let (mut weights, mut small, mut held_bytes) = (vec![], vec![], 0);
    let mut files = BTreeSet::new();
    for Weight { name, dims: shape, content: Stored { dtype, elements } } in declared {
        files.extend(elements.locations().into_iter().map(|location| location.path.clone()));
        let weight = OnnxWeight { name, dtype, shape, elements };
        if weight.bytes() >= threshold_bytes {
            weights.push(weight);
            continue;
        }
        held_bytes += weight.bytes();
        if held_bytes > SKELETON_LIMIT_BYTES {
            let (path, limit) = (path_of(&weight), SKELETON_LIMIT_BYTES);
            return Err(SkimError::SkeletonTooLarge { path, limit });
        }
        small.push(read(&weight)?);
    }
    if let Some(graph) = &mut proto.graph {
        graph.initializer = small;
        names::tell_apart(graph, &weights);
    }
    let finished = skeleton::finish(proto, &weights).map_err(|what| {
        let path = files.first().cloned().unwrap_or_default();
        SkimError::Malformed { path, offset: 0, what }
    })?;
    let bytes = |path: &PathBuf| fs::metadata(path).map_or(0, |metadata| metadata.len());
    Ok(Skim {
        skeleton: finished.bytes,
        weights,
        producer: finished.producer,
        opset: finished.opset,
        source_bytes: files.iter().map(bytes).sum(),
    })
}

/// The file that a weight is in.
fn path_of(weight: &OnnxWeight) -> PathBuf {
    let locations = weight.elements.locations();
    locations.first().map_or_else(PathBuf::new, |location| Path::to_path_buf(&location.path))
}

/// An initializer with its elements.
fn read(weight: &OnnxWeight) -> Result<TensorProto, SkimError> {
    let mut bytes = vec![];
    weight
        .read()
        .and_then(|mut elements| elements.read_to_end(&mut bytes))
        .map_err(|error| SkimError::Io { path: path_of(weight), error })?;
    let wrong = |what: String| {
        let (path, tensor) = (path_of(weight), weight.name.clone());
        Err(SkimError::Tensor { path, tensor, what })
    };
    if bytes.len() as u64 != weight.bytes() {
        return wrong(format!("{} bytes of it are missing", weight.bytes() - bytes.len() as u64));
    }
    if let Some(at) = first_odd(&bytes, weight.dtype) {
        return wrong(format!("its value {at} is infinite or not a number (NaN)"));
    }
    let (raw_data, dtype) = match weight.dtype {
        Dtype::Bf16 => (plain::widened(&bytes), Dtype::Fp32),
        dtype => (bytes, dtype),
    };
    Ok(TensorProto {
        name: weight.name.clone(),
        dims: weight.shape.iter().map(|size| size.cast_signed()).collect(),
        data_type: super::tensor::onnx_of_dtype(dtype),
        raw_data,
        ..TensorProto::default()
    })
}

/// The first of some floats that is infinite or no number.
fn first_odd(bytes: &[u8], dtype: Dtype) -> Option<usize> {
    match dtype {
        Dtype::Fp32 => {
            let mut words = bytes.as_chunks::<4>().0.iter();
            words.position(|word| !f32::from_le_bytes(*word).is_finite())
        }
        Dtype::Fp16 => {
            let mut words = bytes.as_chunks::<2>().0.iter();
            words.position(|word| !f16::from_le_bytes(*word).is_finite())
        }
        Dtype::Bf16 => {
            let mut words = bytes.as_chunks::<2>().0.iter();
            words.position(|word| !bf16::from_le_bytes(*word).is_finite())
        }
        _ => None,
    }
}

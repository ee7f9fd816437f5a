//! From tokens to a model's inputs, and from its output to one unit vector.

use super::error::ApiError;
use crate::engine::{Array, Cancel, Reply, Request};
use crate::store::Dtype;
use crate::store::manifest::{Manifest, Pooling, Task};
use half::{bf16, f16};

/// How a model makes a vector of tokens.
#[derive(Clone, Debug)]
pub struct Embedding {
    model: String,
    inputs: Vec<(String, Dtype, Role)>,
    output: String,
    pooling: Pooling,
}

/// What an input is fed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    Tokens,
    /// Ones: a text is never padded.
    Mask,
    /// Zeros: a text is one segment.
    Segment,
    Positions,
}

impl Embedding {
    /// Reads from the manifest what the model needs.
    ///
    /// # Errors
    ///
    /// 400 for a model that is not for embeddings, or has an input that text cannot fill.
    pub fn new(manifest: &Manifest) -> Result<Embedding, ApiError> {
        let refuse = |what: String| {
            ApiError::invalid(format!("model {:?} {what}", manifest.model)).about("model")
        };
        let Some(Task::Embedding { output, pooling }) = &manifest.task else {
            return Err(refuse("is not an embedding model: use /v2/models/../infer".to_owned()));
        };
        let mut inputs = Vec::new();
        for port in &manifest.inputs {
            let role = match port.name.as_str() {
                "input_ids" => Role::Tokens,
                "attention_mask" => Role::Mask,
                "token_type_ids" => Role::Segment,
                "position_ids" => Role::Positions,
                name => {
                    return Err(refuse(format!("has an input {name:?} that text cannot fill")));
                }
            };
            if !matches!(port.dtype, Dtype::Int64 | Dtype::Int32) {
                return Err(refuse(format!("takes {} for {:?}", port.dtype, port.name)));
            }
            inputs.push((port.name.clone(), port.dtype, role));
        }
        let (model, output) = (manifest.model.clone(), output.clone());
        Ok(Embedding { model, inputs, output, pooling: *pooling })
    }

    /// The request for one text.
    pub fn request(&self, tokens: &[u32]) -> Result<Request, ApiError> {
        let mut inputs = Vec::with_capacity(self.inputs.len());
        for (name, dtype, role) in &self.inputs {
            let mut bytes = Vec::with_capacity(tokens.len() * dtype.size());
            for (position, token) in tokens.iter().enumerate() {
                let value = match role {
                    Role::Tokens => u64::from(*token),
                    Role::Mask => 1,
                    Role::Segment => 0,
                    Role::Positions => position as u64,
                };
                // No value reaches the sign bit: little-endian, the low bytes are the narrow one.
                bytes.extend_from_slice(&value.to_le_bytes()[..dtype.size()]);
            }
            let array = Array::new(*dtype, vec![1, tokens.len()], bytes)
                .map_err(|error| ApiError::internal(error.to_string()))?;
            inputs.push((name.clone(), array));
        }
        let (model, outputs) = (self.model.clone(), vec![self.output.clone()]);
        Ok(Request { model, inputs, outputs, cancel: Cancel::new(), trace: None })
    }

    /// The unit vector of a reply to a text of `token_count` tokens.
    ///
    /// # Errors
    ///
    /// 500 where the output is not what the manifest promises, or is not finite.
    pub fn vector(&self, reply: &Reply, token_count: usize) -> Result<Vec<f32>, ApiError> {
        let wrong = |what: String| {
            ApiError::internal(format!("model {:?}, output {:?}: {what}", self.model, self.output))
        };
        let (_, array) = reply
            .outputs
            .iter()
            .find(|(name, _)| *name == self.output)
            .ok_or_else(|| wrong("the engine did not return it".to_owned()))?;
        let pooled = pool(array, self.pooling, token_count).map_err(wrong)?;
        normalize(pooled).ok_or_else(|| wrong("a value is not finite".to_owned()))
    }
}

fn pool(array: &Array, pooling: Pooling, token_count: usize) -> Result<Vec<f32>, String> {
    let values = floats(array)?;
    let shape = &array.shape;
    let outer = &shape[..shape.len().saturating_sub(1)];
    let is_rows =
        outer.iter().product::<usize>() == token_count && outer.last() == Some(&token_count);
    let is_one = outer.iter().all(|dim| *dim == 1);
    let width = shape.last().copied().unwrap_or(0);
    match pooling {
        Pooling::None if is_one && width > 0 => Ok(values),
        Pooling::Cls if is_rows && width > 0 => Ok(values[..width].to_vec()),
        Pooling::Mean if is_rows && width > 0 => {
            let mut sums = vec![0f32; width];
            for row in values.chunks_exact(width) {
                sums.iter_mut().zip(row).for_each(|(sum, value)| *sum += value);
            }
            sums.iter_mut().for_each(|sum| *sum /= token_count as f32);
            Ok(sums)
        }
        _ => Err(format!(
            "shape {shape:?} does not suit pooling {pooling:?} of {token_count} tokens"
        )),
    }
}

fn floats(array: &Array) -> Result<Vec<f32>, String> {
    let bytes = &array.bytes;
    Ok(match array.dtype {
        Dtype::Fp32 => bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
        Dtype::Fp16 => {
            bytes.as_chunks().0.iter().map(|b| f16::from_le_bytes(*b).to_f32()).collect()
        }
        Dtype::Bf16 => {
            bytes.as_chunks().0.iter().map(|b| bf16::from_le_bytes(*b).to_f32()).collect()
        }
        dtype => return Err(format!("{dtype} is no vector")),
    })
}

/// Scales to length one, as OpenAI's vectors are; `None` for what is not finite.
fn normalize(mut vector: Vec<f32>) -> Option<Vec<f32>> {
    let square: f64 = vector.iter().map(|v| f64::from(*v) * f64::from(*v)).sum();
    if !square.is_finite() {
        return None;
    }
    if square > 0.0 {
        let scale = 1.0 / square.sqrt();
        vector.iter_mut().for_each(|v| *v = (f64::from(*v) * scale) as f32);
    }
    Some(vector)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn array(shape: &[usize], values: &[f32]) -> Array {
        let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        Array::new(Dtype::Fp32, shape.to_vec(), bytes).unwrap()
    }

    #[test]
    fn pooling_follows_the_manifest() {
        let rows = array(&[1, 2, 3], &[1.0, 2.0, 3.0, 5.0, 6.0, 7.0]);
        assert_eq!(pool(&rows, Pooling::Mean, 2).unwrap(), [3.0, 4.0, 5.0]);
        assert_eq!(pool(&rows, Pooling::Cls, 2).unwrap(), [1.0, 2.0, 3.0]);
        assert!(pool(&rows, Pooling::None, 2).is_err());
        assert!(pool(&rows, Pooling::Mean, 3).is_err());
        let one = array(&[1, 3], &[1.0, 2.0, 3.0]);
        assert_eq!(pool(&one, Pooling::None, 5).unwrap(), [1.0, 2.0, 3.0]);
        assert!(pool(&one, Pooling::Mean, 5).is_err());
        assert!(pool(&array(&[], &[1.0]), Pooling::None, 1).is_err());
    }

    #[test]
    fn vectors_have_length_one() {
        assert_eq!(normalize(vec![3.0, 4.0]).unwrap(), [0.6, 0.8]);
        assert_eq!(normalize(vec![0.0, 0.0]).unwrap(), [0.0, 0.0]);
        assert_eq!(normalize(vec![f32::MAX, 0.0]).unwrap(), [1.0, 0.0]);
        assert!(normalize(vec![f32::NAN]).is_none());
    }
}

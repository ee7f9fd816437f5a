//! From tokens to a model's inputs, and from its output to one vector.

use super::error::ApiError;
use crate::engine::{Array, Cancel, Choice, Reply, Request};
use crate::plan::Target;
use crate::store::Dtype;
use crate::store::manifest::{Dim, Manifest, Pooling, Task};
use crate::wire::pooling::{Measure, pool};

/// How a model makes a vector of tokens.
#[derive(Clone, Debug)]
pub struct Embedding {
    model: String,
    /// The version whose tokens it takes.
    version: String,
    inputs: Vec<(String, Dtype, InputRole)>,
    output: String,
    pooling: Pooling,
    /// Whether vectors are scaled to length one.
    normalizes: bool,
    /// Values of the output's vectors, where its shape says.
    width: Option<usize>,
    /// Within which time a text's pass is to be computed, and how accurately.
    target: Option<Target>,
}

/// What an input is fed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum InputRole {
    Tokens,
    /// Ones: a text is never padded.
    Mask,
    /// Zeros, but where a tokenizer tells its special tokens by their segment.
    Segment,
    Positions,
}

impl Embedding {
    /// Reads from the manifest what the model needs. Whether vectors are scaled to length one is as
    /// its makers say where nobody else does.
    ///
    /// # Errors
    ///
    /// 400 for a model that is not for embeddings, or has an input that text cannot fill.
    pub fn new(manifest: &Manifest, normalize: Option<bool>) -> Result<Embedding, ApiError> {
        let refuse = |what: String| {
            ApiError::invalid(format!("model {:?} {what}", manifest.model)).about("model")
        };
        let Some(Task::Embedding { output, pooling }) = &manifest.task else {
            let sources = manifest.text.iter().flat_map(|text| &text.sources);
            let why = sources.filter_map(|line| line.strip_prefix("no embeddings: ")).next_back();
            let why = why.map_or_else(String::new, |why| format!(" ({why})"));
            return Err(refuse(format!("is not an embedding model{why}: use /v2/models/../infer")));
        };
        let mut inputs = Vec::new();
        for port in &manifest.inputs {
            let role = match port.name.as_str() {
                "input_ids" => InputRole::Tokens,
                "attention_mask" => InputRole::Mask,
                "token_type_ids" => InputRole::Segment,
                "position_ids" => InputRole::Positions,
                name => {
                    return Err(refuse(format!("has an input {name:?} that text cannot fill")));
                }
            };
            if !matches!(port.dtype, Dtype::Int64 | Dtype::Int32) {
                return Err(refuse(format!("takes {} for {:?}", port.dtype, port.name)));
            }
            inputs.push((port.name.clone(), port.dtype, role));
        }
        let port = manifest.outputs.iter().find(|port| port.name == *output);
        let width = port.and_then(|port| match port.shape.last()? {
            Dim::Fixed(width) => usize::try_from(*width).ok(),
            Dim::Symbol(_) => None,
        });
        let (model, version) = (manifest.model.clone(), manifest.version.clone());
        let output = output.clone();
        let keeps_length = manifest.text.as_ref().is_some_and(|text| text.keeps_length);
        let normalizes = normalize.unwrap_or(!keeps_length);
        let (pooling, target) = (*pooling, None);
        Ok(Embedding { model, version, inputs, output, pooling, normalizes, width, target })
    }

    /// The same within a time, and as accurate as is asked.
    pub fn within(self, target: Option<Target>) -> Embedding {
        Embedding { target, ..self }
    }

    /// Refuses more dimensions than the vectors have, where that is known before.
    ///
    /// # Errors
    ///
    /// 400, with both numbers.
    pub fn check_dimensions(&self, dimensions: Option<usize>) -> Result<(), ApiError> {
        match (dimensions, self.width) {
            (Some(wanted), Some(width)) if wanted > width => Err(too_many(wanted, width)),
            _ => Ok(()),
        }
    }

    /// What a text of so many tokens holds until it is answered, and its vector.
    pub fn request_bytes(&self, tokens: usize) -> usize {
        let inputs = self.inputs.iter().map(|(_, dtype, _)| dtype.size()).sum::<usize>();
        tokens * inputs + self.width.unwrap_or(0) * size_of::<f32>()
    }

    /// The request for one text; `segments` has that of each token, or nothing.
    pub fn request(&self, tokens: &[u32], segments: &[u32]) -> Result<Request, ApiError> {
        let mut inputs = Vec::with_capacity(self.inputs.len());
        for (name, dtype, role) in &self.inputs {
            let mut bytes = Vec::with_capacity(tokens.len() * dtype.size());
            for (position, token) in tokens.iter().enumerate() {
                let value = match role {
                    InputRole::Tokens => u64::from(*token),
                    InputRole::Mask => 1,
                    InputRole::Segment => segments.get(position).map_or(0, |s| u64::from(*s)),
                    InputRole::Positions => position as u64,
                };
                // No value reaches the sign bit: little-endian, the low bytes are the narrow one.
                bytes.extend_from_slice(&value.to_le_bytes()[..dtype.size()]);
            }
            let array = Array::new(*dtype, vec![1, tokens.len()], bytes)
                .map_err(|error| ApiError::internal(error.to_string()))?;
            inputs.push((name.clone(), array));
        }
        let (model, outputs) = (self.model.clone(), vec![self.output.clone()]);
        let (cancel, target) = (Cancel::new(), self.target);
        Ok(Request { model, inputs, outputs, cancel, target, trace: None })
    }

    /// The vector of a reply to `text`, cut to so many dimensions.
    ///
    /// # Errors
    ///
    /// 500 where the output is not what the manifest promises, or is not finite; 400 for more
    /// dimensions than it has; 503 from another version, to which the tokens may mean other words.
    pub fn vector(
        &self,
        reply: &Reply,
        text: Measure,
        dimensions: Option<usize>,
    ) -> Result<Vec<f32>, ApiError> {
        let wrong = |what: String| {
            ApiError::internal(format!("model {:?}, output {:?}: {what}", self.model, self.output))
        };
        if reply.version != self.version {
            let Embedding { model, version, .. } = self;
            let message = format!("version {version} of model {model:?} was replaced: try again");
            return Err(ApiError::unavailable(message));
        }
        let (_, array) = reply
            .outputs
            .iter()
            .find(|(name, _)| *name == self.output)
            .ok_or_else(|| wrong("the engine did not return it".to_owned()))?;
        let mut pooled = pool(array, self.pooling, text).map_err(wrong)?;
        if let Some(wanted) = dimensions {
            if wanted > pooled.len() {
                return Err(too_many(wanted, pooled.len()));
            }
            pooled.truncate(wanted);
        }
        let scaled = if self.normalizes { normalize(pooled) } else { finite(pooled) };
        scaled.ok_or_else(|| wrong("a value is not finite".to_owned()))
    }
}

fn too_many(wanted: usize, width: usize) -> ApiError {
    let message = format!("{wanted} dimensions are wanted; the model's vectors have {width}");
    ApiError::invalid(message).about("dimensions")
}

/// The vectors of several texts, beside each other.
#[derive(Debug, Default)]
pub struct Vectors {
    values: Vec<f32>,
    width: usize,
    /// The precisions of the passes that they are from, each once.
    choices: Vec<Choice>,
}

impl Vectors {
    /// So many, each of so many values, to be put.
    pub fn new(count: usize, width: usize) -> Vectors {
        Vectors { values: vec![0.0; count * width], width, choices: vec![] }
    }

    /// Bytes that they hold.
    pub fn bytes_of(count: usize, width: usize) -> u64 {
        (count * width * size_of::<f32>()) as u64
    }

    /// Bytes that these hold.
    pub fn held_bytes(&self) -> u64 {
        (self.values.capacity() * size_of::<f32>()) as u64
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    /// Puts the one of number `index`.
    ///
    /// # Errors
    ///
    /// 500 for one of another length than the others.
    pub fn put(&mut self, index: usize, vector: &[f32]) -> Result<(), ApiError> {
        if vector.len() != self.width {
            let message = format!("vectors of {} and of {} values", self.width, vector.len());
            return Err(ApiError::internal(message));
        }
        self.values[index * self.width..][..self.width].copy_from_slice(vector);
        Ok(())
    }

    /// Notes the precisions of a pass that gave some of them.
    pub fn note(&mut self, choice: Choice) {
        if !self.choices.contains(&choice) {
            self.choices.push(choice);
        }
    }

    /// The precisions of the passes that they are from, each once.
    pub fn choices(&self) -> &[Choice] {
        &self.choices
    }

    /// The one of number `index`, where there is one.
    pub fn get(&self, index: usize) -> Option<&[f32]> {
        self.values.chunks_exact(self.width.max(1)).nth(index)
    }
}

/// `None` for what is not finite.
fn finite(vector: Vec<f32>) -> Option<Vec<f32>> {
    vector.iter().all(|value| value.is_finite()).then_some(vector)
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

    #[test]
    fn vectors_have_length_one() {
        assert_eq!(normalize(vec![3.0, 4.0]).unwrap(), [0.6, 0.8]);
        assert_eq!(normalize(vec![0.0, 0.0]).unwrap(), [0.0, 0.0]);
        assert_eq!(normalize(vec![f32::MAX, 0.0]).unwrap(), [1.0, 0.0]);
        assert!(normalize(vec![f32::NAN]).is_none());
    }
}

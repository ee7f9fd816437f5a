//! How far a model's answers are from those of its best variant: what of them is compared, and how.

use crate::shard::error::{ShardError, unfit};
use crate::store::Measure;
use crate::store::manifest::{Dim, Manifest, Pooling, Port, Task};
use crate::wire::Array;
use crate::wire::pooling::{self, pool};
use rayon::prelude::*;

/// Values of the last axis of logits from which they may be a vocabulary's, where no table says so.
const LEAST_VOCABULARY: u64 = 256;

/// What of a request's answers is compared.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Compared {
    /// The vector of a text.
    Vector { output: usize, pooling: Pooling },
    /// The probabilities of the next token.
    Tokens { output: usize },
    /// All that is float.
    Floats(Vec<usize>),
}

/// Compares answers of one model.
#[derive(Clone, Debug)]
pub struct Judge {
    compared: Compared,
    names: Vec<String>,
    /// Index of the input that says which positions are none.
    mask: Option<usize>,
}

/// What of a request's answer is compared.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// A vector, or the logarithms of probabilities, those of a token after the other.
    values: Vec<f32>,
    width: usize,
}

impl Answer {
    /// How much it counts: as one request, or as its tokens.
    pub fn weight(&self) -> f64 {
        (self.values.len() / self.width) as f64
    }

    /// Bytes that it holds.
    pub fn held_bytes(&self) -> u64 {
        (self.values.len() * size_of::<f32>()) as u64
    }
}

impl Judge {
    /// Decides what is compared of a model's answers; `tables` are the rows of those that it picks
    /// from by index, of which one is its vocabulary.
    ///
    /// # Errors
    /// A model that answers no floats.
    pub fn of(manifest: &Manifest, tables: &[u64]) -> Result<Judge, ShardError> {
        let outputs = &manifest.outputs;
        let place = |name: &str| outputs.iter().position(|port| port.name == name);
        let takes_ids = manifest.inputs.iter().any(|port| port.name == "input_ids");
        let tokens = outputs.iter().position(|port| takes_ids && is_vocabulary(port, tables));
        let compared = match &manifest.task {
            Some(Task::Embedding { output, pooling }) => {
                let output =
                    place(output).ok_or_else(|| unfit!("there is no output {output:?}"))?;
                Compared::Vector { output, pooling: *pooling }
            }
            None => match tokens {
                Some(output) => Compared::Tokens { output },
                None => {
                    let floats = outputs.iter().enumerate().filter(|(_, p)| p.dtype.is_float());
                    Compared::Floats(floats.map(|(index, _)| index).collect())
                }
            },
        };
        if compared == Compared::Floats(vec![]) {
            return Err(unfit!("the model answers no floats: how far they are off tells nothing"));
        }
        Ok(Judge {
            compared,
            names: outputs.iter().map(|port| port.name.clone()).collect(),
            mask: manifest.inputs.iter().position(|port| port.name == "attention_mask"),
        })
    }

    /// How it measures.
    pub fn measure(&self) -> Measure {
        match self.compared {
            Compared::Tokens { .. } => Measure::Kl,
            Compared::Vector { .. } | Compared::Floats(_) => Measure::Cosine,
        }
    }

    /// What is compared, in words.
    pub fn told(&self) -> String {
        let name = |output: &usize| format!("{:?}", self.names[*output]);
        match &self.compared {
            Compared::Vector { output, pooling } => {
                format!("1 - cosine of output {}, pooling {}", name(output), pooling.name())
            }
            Compared::Tokens { output } => {
                format!("divergence of the next token's probabilities by output {}", name(output))
            }
            Compared::Floats(outputs) => {
                let names: Vec<String> = outputs.iter().map(name).collect();
                format!("1 - cosine of output {}", names.join(", "))
            }
        }
    }

    /// What is compared of the answer to `inputs`.
    ///
    /// # Errors
    /// Values that say nothing, in words: not a number, or zero throughout.
    pub fn answer(&self, inputs: &[Array], outputs: &[Array]) -> Result<Answer, String> {
        let of_output =
            |output: usize, what: String| format!("output {:?} {what}", self.names[output]);
        let floats = |output: usize| {
            let values = outputs[output].floats();
            values.ok_or_else(|| of_output(output, format!("is {}", outputs[output].dtype)))
        };
        let answer = match &self.compared {
            Compared::Vector { output, pooling } => {
                let rows = self.kept_rows(inputs, &outputs[*output]);
                let rows = rows.map_err(|what| of_output(*output, what))?;
                let tokens = rows.shape[rows.shape.len() - 2];
                let pooled = pool(&rows, *pooling, pooling::Measure { tokens, skipped: 0 });
                let values = pooled.map_err(|what| of_output(*output, what))?;
                Answer { width: values.len(), values }
            }
            Compared::Tokens { output } => {
                let rows = self.kept_rows(inputs, &outputs[*output]);
                let rows = rows.map_err(|what| of_output(*output, what))?;
                let width = rows.shape[rows.shape.len() - 1];
                let mut values = rows.floats().ok_or_else(|| format!("is {}", rows.dtype))?;
                values.par_chunks_mut(width).try_for_each(|logits| {
                    to_log_probabilities(logits).map_err(|what| of_output(*output, what))
                })?;
                return Ok(Answer { values, width });
            }
            Compared::Floats(all) => {
                let mut values = vec![];
                for output in all {
                    values.extend(floats(*output)?);
                }
                Answer { width: values.len(), values }
            }
        };
        let names = match &self.compared {
            Compared::Floats(all) if all.len() > 1 => "the outputs".to_owned(),
            Compared::Floats(all) => format!("output {:?}", self.names[all[0]]),
            Compared::Vector { output, .. } | Compared::Tokens { output } => {
                format!("output {:?}", self.names[*output])
            }
        };
        match &answer.values {
            values if values.iter().any(|value| !value.is_finite()) => {
                Err(format!("{names} has a value that is infinite or not a number"))
            }
            values if values.iter().all(|value| *value == 0.0) => {
                Err(format!("{names} is zero throughout, of which there is no cosine"))
            }
            _ => Ok(answer),
        }
    }

    /// How far `other` is off, times [`Answer::weight`]: never below zero.
    pub fn divergence(&self, best: &Answer, other: &Answer) -> f64 {
        match self.measure() {
            Measure::Cosine => (1.0 - cosine(&best.values, &other.values)).max(0.0),
            Measure::Kl => {
                let rows = best.values.par_chunks(best.width);
                rows.zip(other.values.par_chunks(best.width)).map(|(p, q)| divergence(p, q)).sum()
            }
        }
    }

    /// How far `other` agrees, times [`Answer::weight`]: the share of tokens whose likeliest next one
    /// is the same, or of vectors the cosine.
    pub fn agreement(&self, best: &Answer, other: &Answer) -> f64 {
        match self.measure() {
            Measure::Cosine => cosine(&best.values, &other.values),
            Measure::Kl => {
                let rows = best.values.chunks(best.width).zip(other.values.chunks(best.width));
                rows.filter(|(p, q)| likeliest(p) == likeliest(q)).count() as f64
            }
        }
    }

    /// The rows of an output `[.., rows, width]` that the mask keeps, where it is of as many.
    fn kept_rows(&self, inputs: &[Array], output: &Array) -> Result<Array, String> {
        let shape = &output.shape;
        let [.., width] = shape[..] else { return Err("has no axis".to_owned()) };
        let rows: usize = shape[..shape.len() - 1].iter().product();
        let row_bytes = width * output.dtype.size();
        let mask = self.mask.and_then(|index| kept(&inputs[index])).filter(|m| m.len() == rows);
        let mask = mask.unwrap_or_else(|| vec![true; rows]);
        let kept: Vec<usize> = (0..rows).filter(|row| mask[*row]).collect();
        if kept.is_empty() || width == 0 {
            return Err("has no token that counts".to_owned());
        }
        let bytes = kept.iter().flat_map(|row| &output.bytes[row * row_bytes..][..row_bytes]);
        let shape = vec![1, kept.len(), width];
        Ok(Array { dtype: output.dtype, shape, bytes: bytes.copied().collect() })
    }
}

/// Whether an output is a value for each word of a vocabulary.
fn is_vocabulary(port: &Port, tables: &[u64]) -> bool {
    let Some(Dim::Fixed(words)) = port.shape.last() else { return false };
    let is_of_table = port.shape.len() > 1 && *words > 1 && tables.contains(words);
    let is_called_so = port.name == "logits" && port.shape.len() == 3 && *words >= LEAST_VOCABULARY;
    port.dtype.is_float() && (is_of_table || is_called_so)
}

/// Which positions a mask keeps; none for what is no mask.
fn kept(mask: &Array) -> Option<Vec<bool>> {
    let size = mask.dtype.size();
    let is_set = |bytes: &[u8]| bytes.iter().any(|byte| *byte != 0);
    (!mask.bytes.is_empty()).then(|| mask.bytes.chunks_exact(size).map(is_set).collect())
}

/// Logits as logarithms of probabilities. Minus infinity, a word that cannot come, stays that.
fn to_log_probabilities(logits: &mut [f32]) -> Result<(), String> {
    let most = logits.iter().fold(f32::NEG_INFINITY, |most, logit| most.max(*logit));
    if !most.is_finite() || logits.iter().any(|logit| logit.is_nan()) {
        return Err("has a value that is infinite or not a number".to_owned());
    }
    let sum: f64 = logits.iter().map(|logit| f64::from(logit - most).exp()).sum();
    let scale = sum.ln() as f32 + most;
    logits.iter_mut().for_each(|logit| *logit -= scale);
    Ok(())
}

/// Kullback-Leibler divergence of probabilities from their logarithms, in nats.
fn divergence(best: &[f32], other: &[f32]) -> f64 {
    let pairs = best.iter().zip(other).filter(|(p, _)| p.is_finite());
    let terms = pairs.map(|(p, q)| f64::from(*p).exp() * (f64::from(*p) - f64::from(*q)));
    terms.sum::<f64>().max(0.0)
}

fn likeliest(probabilities: &[f32]) -> Option<usize> {
    (0..probabilities.len()).max_by(|a, b| probabilities[*a].total_cmp(&probabilities[*b]))
}

fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let product = |a: &[f32], b: &[f32]| -> f64 {
        a.iter().zip(b).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum()
    };
    product(a, b) / (product(a, a) * product(b, b)).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judge(compared: Compared, mask: Option<usize>) -> Judge {
        Judge { compared, names: vec!["y".to_owned(), "z".to_owned()], mask }
    }

    fn array(shape: &[usize], values: &[f32]) -> Array {
        Array::from_f32(shape.to_vec(), values).unwrap()
    }

    fn compare(judge: &Judge, best: &Array, other: &Array) -> f64 {
        let answer = |array: &Array| judge.answer(&[], std::slice::from_ref(array)).unwrap();
        judge.divergence(&answer(best), &answer(other))
    }

    #[test]
    fn vectors_are_compared_by_their_cosine() {
        let floats = judge(Compared::Floats(vec![0]), None);
        let x = array(&[1, 2], &[3.0, 4.0]);
        assert_eq!(compare(&floats, &x, &x), 0.0);
        assert_eq!(compare(&floats, &x, &array(&[1, 2], &[6.0, 8.0])), 0.0);
        assert_eq!(compare(&floats, &x, &array(&[1, 2], &[-4.0, 3.0])), 1.0);
        let both = judge(Compared::Floats(vec![0, 1]), None);
        let answer = both.answer(&[], &[x.clone(), array(&[1], &[1.0])]).unwrap();
        assert_eq!((answer.values.len(), answer.weight()), (3, 1.0));
    }

    #[test]
    fn a_text_s_vector_is_of_the_tokens_that_count() {
        let pooled = judge(Compared::Vector { output: 0, pooling: Pooling::Mean }, Some(0));
        let rows = array(&[1, 3, 2], &[1.0, 2.0, 3.0, 4.0, 100.0, 100.0]);
        let mask = Array::from_i64(vec![1, 3], &[1, 1, 0]).unwrap();
        let answer = pooled.answer(&[mask], &[rows]).unwrap();
        assert_eq!(answer.values, [2.0, 3.0]);
    }

    #[test]
    fn the_next_token_s_probabilities_are_compared_by_their_divergence() {
        let tokens = judge(Compared::Tokens { output: 0 }, None);
        // Logits say nothing of their sum.
        let best = array(&[1, 2, 2], &[0.0, 0.0, 5.0, 5.0]);
        let other = array(&[1, 2, 2], &[3f32.ln(), 0.0, 0.0, 0.0]);
        let expected = 0.5 * (0.5f64 / 0.75).ln() + 0.5 * (0.5f64 / 0.25).ln();
        assert!((compare(&tokens, &best, &other) - expected).abs() < 1e-6);
        let answer = tokens.answer(&[], std::slice::from_ref(&best)).unwrap();
        assert_eq!(answer.weight(), 2.0);
        let sharp = array(&[1, 2, 2], &[1.0, 0.0, 0.0, f32::NEG_INFINITY]);
        let flat = array(&[1, 2, 2], &[0.0, 1.0, 0.0, 0.0]);
        assert!(compare(&tokens, &sharp, &flat).is_finite());
        let [sharp, flat] = [sharp, flat].map(|array| tokens.answer(&[], &[array]).unwrap());
        assert_eq!(tokens.agreement(&sharp, &flat), 0.0);
        assert_eq!(tokens.agreement(&sharp, &sharp), 2.0);
    }

    #[test]
    fn values_that_say_nothing_are_refused() {
        let check = |compared: Compared, values: &[f32], words: &str| {
            let rows = array(&[1, values.len() / 2, 2], values);
            let error = judge(compared, None).answer(&[], &[rows]).unwrap_err();
            assert!(error.contains("\"y\"") && error.contains(words), "{error}");
        };
        let vector = || Compared::Vector { output: 0, pooling: Pooling::Mean };
        check(Compared::Floats(vec![0]), &[0.0, f32::NAN], "not a number");
        check(Compared::Floats(vec![0]), &[0.0, 0.0], "zero throughout");
        check(vector(), &[1.0, 2.0, -1.0, -2.0], "zero throughout");
        check(vector(), &[1.0, f32::INFINITY], "infinite");
        check(Compared::Tokens { output: 0 }, &[f32::NAN, 0.0], "not a number");
        check(Compared::Tokens { output: 0 }, &[f32::INFINITY, 0.0], "infinite");
    }

    #[test]
    fn a_vocabulary_is_told_from_classes() {
        let check = |name: &str, shape: &[u64], is_one: bool| {
            let shape = shape.iter().map(|size| Dim::Fixed(*size)).collect();
            let port = Port { name: name.to_owned(), dtype: crate::store::Dtype::Fp32, shape };
            assert_eq!(is_vocabulary(&port, &[512, 1024]), is_one, "{port:?}");
        };
        check("logits", &[1, 7, 512], true);
        check("y", &[1, 1024], true);
        check("logits", &[1, 7, 600], true);
        check("logits", &[1, 600], false);
        check("logits", &[1, 7, 9], false);
        check("y", &[512], false);
    }
}

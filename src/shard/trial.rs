//! Trial passes over made-up inputs, before any weight is written: what fails there would fail at
//! each request.

use crate::graph::skim::Skim;
use crate::graph::{
    Choice, GraphError, Imported, ReadWeight, Sizes, Trial, Tried, sample_of_shapes,
};
use crate::store::Dtype;
use crate::store::manifest::{Batch, Port, Weight};
use crate::wire::Array;
use std::io::{self, Read};
use std::ops::Range;
use std::sync::Arc;

/// Rows of a batch to be: more than two, which a graph may cut off by itself.
pub const ROWS: u64 = 3;

/// Lengths of open dimensions, two at a time: one alone may fit by chance. Longer ones are for those
/// that cannot be short, such as an image's height.
const LENGTHS: [[usize; 2]; 4] = [[3, 5], [16, 24], [64, 96], [224, 320]];

/// Most elements of an input that are made up.
const MAX_ELEMENTS: u64 = 16 << 20;

/// How far the values of one row may be off in the company of another, by the largest of them: sums
/// may be taken in another order.
const TOLERANCE: f64 = 1e-3;

/// The same of half floats, which are coarse.
const HALF_TOLERANCE: f64 = 2e-2;

/// Ways to choose lengths that are tried: which depend on each other is not always known.
const CHOICES: usize = 4;

/// What a trial was computed with; none where it was left out, or told nothing.
pub type Lengths = Option<(Choice, usize)>;

/// How models are tried.
pub struct Trials {
    read: Arc<ReadWeight>,
    is_wanted: bool,
}

impl Trials {
    pub fn new(skim: &Skim, is_wanted: bool) -> Trials {
        let weights = skim.weights.clone();
        let read = move |weight: usize, range: Range<u64>| {
            let mut bytes = vec![0; (range.end - range.start) as usize];
            let mut elements = weights[weight].read()?;
            io::copy(&mut elements.by_ref().take(range.start), &mut io::sink())?;
            elements.read_exact(&mut bytes)?;
            Ok(bytes)
        };
        Trials { read: Arc::new(read), is_wanted }
    }

    /// Computes with two lengths of the open dimensions, longer ones where short ones fail.
    pub fn run(
        &self,
        imported: &Imported,
        weights: &[Weight],
        notes: &mut Vec<String>,
    ) -> Result<Lengths, GraphError> {
        if !self.is_wanted {
            return Ok(None);
        }
        let trial = Trial::new(imported, weights, Arc::clone(&self.read));
        let sizes = Sizes::of(&imported.plan);
        let choices = sizes.choices(CHOICES);
        let mut refused: Option<GraphError> = None;
        for lengths in LENGTHS {
            for choice in &choices {
                let made_up = |length| made_up(&imported.inputs, &sizes, choice, length);
                let [Some(short), Some(long)] = lengths.map(made_up) else { continue };
                let both = [short, long].iter().try_fold(true, |tried, inputs| {
                    Ok(computed(&trial, inputs, notes)?.is_some() && tried)
                });
                match both {
                    Ok(tried) => {
                        if let Some(refused) = refused {
                            let why = refused.to_string();
                            let why = why.lines().next().unwrap_or_default();
                            notes.push(format!("not every length can be computed with: {why}"));
                        }
                        return Ok(tried.then(|| (choice.clone(), lengths[0])));
                    }
                    Err(error) => refused = refused.or(Some(error)),
                }
            }
        }
        refused.map_or(Ok(None), Err)
    }

    /// Whether the rows of a batch come to what each comes to by itself.
    pub fn compare(
        &self,
        one: &Imported,
        several: &Imported,
        weights: &[Weight],
        batch: &Batch,
        lengths: &Lengths,
    ) -> Result<(), String> {
        let Some((choice, length)) = lengths else { return Ok(()) };
        let text = |error: GraphError| error.to_string();
        let sizes = Sizes::of(&several.plan);
        let Some(inputs) = made_up(&several.inputs, &sizes, choice, *length) else { return Ok(()) };
        let trial = Trial::new(several, weights, Arc::clone(&self.read));
        let Tried::Computed(both) = trial.run(&inputs).map_err(text)? else {
            return Ok(());
        };
        drop(trial);
        let trial = Trial::new(one, weights, Arc::clone(&self.read));
        for row in 0..ROWS as usize {
            let inputs = inputs.iter().zip(&batch.inputs).map(|(input, axis)| match axis {
                Some(axis) => input.row(*axis as usize, row),
                None => input.clone(),
            });
            let Tried::Computed(alone) = trial.run(&inputs.collect::<Vec<_>>()).map_err(text)?
            else {
                return Ok(());
            };
            for (index, (both, alone)) in both.iter().zip(alone).enumerate() {
                let both = both.row(batch.outputs[index] as usize, row);
                if !agree(&both, &alone) {
                    let name = &one.outputs[index].name;
                    return Err(format!("a row of output \"{name}\" depends on the others"));
                }
            }
        }
        Ok(())
    }
}

/// A pass over made-up inputs; none where it told nothing.
fn computed(
    trial: &Trial,
    inputs: &[Array],
    notes: &mut Vec<String>,
) -> Result<Option<Vec<Array>>, GraphError> {
    match trial.run(inputs)? {
        Tried::Computed(outputs) => Ok(Some(outputs)),
        Tried::Unknown(why) => {
            notes.push(format!("it was not tried to the end: {why}"));
            Ok(None)
        }
    }
}

/// Inputs of one length, where they are not too large.
fn made_up(ports: &[Port], sizes: &Sizes, choice: &Choice, length: usize) -> Option<Vec<Array>> {
    let shapes = sizes.shapes(choice, length)?;
    let elements = |shape: &Vec<usize>| shape.iter().fold(1u64, |n, d| n.saturating_mul(*d as u64));
    if shapes.iter().any(|shape| elements(shape) > MAX_ELEMENTS) {
        return None;
    }
    let arrays = sample_of_shapes(ports, shapes).ok()?;
    Some(arrays.into_iter().map(|(_, array)| array).collect())
}

/// Whether values are the same but for the order of sums.
fn agree(a: &Array, b: &Array) -> bool {
    if a.shape != b.shape || a.dtype != b.dtype {
        return false;
    }
    let floats = |array: &Array| -> Option<Vec<f64>> {
        if array.dtype == Dtype::Fp64 {
            let (values, _) = array.bytes.as_chunks::<8>();
            return Some(values.iter().map(|bytes| f64::from_le_bytes(*bytes)).collect());
        }
        Some(array.floats()?.into_iter().map(f64::from).collect())
    };
    // Whole numbers come of floats that may be rounded either way.
    let (Some(x), Some(y)) = (floats(a), floats(b)) else { return a.bytes == b.bytes };
    let tolerance = match a.dtype {
        Dtype::Fp16 | Dtype::Bf16 => HALF_TOLERANCE,
        _ => TOLERANCE,
    };
    let largest = x.iter().chain(&y).filter(|v| v.is_finite()).fold(0.0f64, |m, v| m.max(v.abs()));
    let near = |(x, y): (&f64, &f64)| {
        x == y || (x.is_nan() && y.is_nan()) || (x - y).abs() <= tolerance * largest
    };
    x.iter().zip(&y).all(near)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Half floats were the same whatever they were, so that every guess of a batch was right.
    #[test]
    fn half_floats_are_compared() {
        let array = |values: [f32; 2]| {
            let bytes = values.iter().flat_map(|v| half::f16::from_f32(*v).to_le_bytes());
            Array::new(Dtype::Fp16, vec![1, 2], bytes.collect()).unwrap()
        };
        let one = array([1.0, 0.5]);
        assert!(agree(&one, &array([1.001, 0.51])));
        assert!(!agree(&one, &array([1.0, 0.45])));
    }
}

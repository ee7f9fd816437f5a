//! Trial passes over made-up inputs, before any weight is written: what fails there would fail at
//! each request.

use super::uneven::{ROWS, Row, WAYS, uneven};
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

/// Lengths of open dimensions, two at a time: one alone may fit by chance. Longer ones are for those
/// that cannot be short, such as an image's height.
const LENGTHS: [[usize; 2]; 4] = [[3, 5], [16, 24], [64, 96], [224, 320]];

/// Most elements of an input that are made up.
const MAX_ELEMENTS: u64 = 16 << 20;

/// How far the values of one row may be off in the company of others, by the largest of them: sums
/// may be taken in another order.
const TOLERANCE: f64 = 1e-4;

/// The same of half floats, which are coarse.
const HALF_TOLERANCE: f64 = 2e-2;

/// How many times as far those of a large row may be off.
const LARGE_TIMES: f64 = 50.0;

/// Made-up indices are smaller than this, or than a table that turns out to be smaller.
const IDS: u64 = 1000;

/// Ways to choose lengths that are tried: which depend on each other is not always known.
const CHOICES: usize = 4;

/// What a trial was computed with.
#[derive(Clone)]
pub struct Computable {
    choice: Choice,
    length: usize,
    /// Indices are smaller.
    ids: u64,
}

/// The same; none where it was left out, or told nothing.
pub type Lengths = Option<Computable>;

/// Why a batch is none.
pub enum Doubt {
    /// A row comes to something else beside others, or they to nothing.
    Depends(String),
    /// Nobody knows.
    Untried(String),
}

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
                match both(&trial, &imported.inputs, &sizes, choice, lengths) {
                    None => {}
                    Some(Ok(tried)) => {
                        if let Some(refused) = refused {
                            let why = refused.to_string();
                            let why = why.lines().next().unwrap_or_default();
                            notes.push(format!("not every length can be computed with: {why}"));
                        }
                        return Ok(tried
                            .map_err(|why| {
                                notes.push(format!("it was not tried to the end: {why}"))
                            })
                            .ok());
                    }
                    Some(Err(error)) => refused = refused.or(Some(error)),
                }
            }
        }
        refused.map_or(Ok(None), Err)
    }

    /// Whether the rows of a batch come to what each comes to by itself.
    ///
    /// # Errors
    /// Where one does not, or where that could not be tried.
    pub fn compare(
        &self,
        one: &Imported,
        several: &Imported,
        weights: &[Weight],
        batch: &Batch,
        lengths: &Lengths,
    ) -> Result<(), Doubt> {
        let untried = |why: &str| {
            Doubt::Untried(format!("its rows were not compared over made-up inputs: {why}"))
        };
        let no_pass = || untried("no pass over such was computed to its end");
        let computable = lengths.as_ref().ok_or_else(no_pass)?;
        let sizes = Sizes::of(&several.plan);
        let plain = made_up(&several.inputs, &sizes, computable);
        let plain = plain.ok_or_else(|| untried("they are too large"))?;
        let together = Trial::new(several, weights, Arc::clone(&self.read));
        let alone = Trial::new(one, weights, Arc::clone(&self.read));
        let pair = Pair { together: &together, alone: &alone, batch, outputs: &one.outputs };
        let mut last: Option<Vec<Array>> = None;
        let mut unknown = None;
        let mut is_compared = false;
        for rows in &WAYS {
            let inputs = several.inputs.iter().zip(&plain).zip(&batch.inputs);
            let inputs: Vec<Array> = inputs
                .map(|((port, plain), axis)| match axis {
                    Some(axis) => uneven(port, plain, *axis as usize, rows, computable.ids),
                    None => plain.clone(),
                })
                .collect();
            // Integers are the same both ways.
            if last.as_ref() == Some(&inputs) {
                continue;
            }
            match pair.compare(&inputs, Some(rows)) {
                Ok(()) => is_compared = true,
                Err(Doubt::Untried(why)) => unknown = Some(why),
                Err(depends) => return Err(depends),
            }
            last = Some(inputs);
        }
        // Values that are usual, where no other can be computed with.
        match unknown {
            Some(_) if !is_compared => pair.compare(&plain, None).map_err(|doubt| match doubt {
                Doubt::Untried(why) => untried(&why),
                depends => depends,
            }),
            _ => Ok(()),
        }
    }
}

/// Computes with both lengths, and with smaller indices where a table is small; none where the
/// inputs would be too large, and why where it told nothing.
fn both(
    trial: &Trial,
    ports: &[Port],
    sizes: &Sizes,
    choice: &Choice,
    lengths: [usize; 2],
) -> Option<Result<Result<Computable, String>, GraphError>> {
    let mut ids = IDS;
    loop {
        let made_up =
            |length| made_up(ports, sizes, &Computable { choice: choice.clone(), length, ids });
        let [Some(short), Some(long)] = lengths.map(made_up) else { return None };
        let mut outcome = Ok(());
        for inputs in [short, long] {
            match trial.run(&inputs) {
                Ok(Tried::Computed(_)) => {}
                Ok(other) => outcome = Err(other),
                Err(error) => return Some(Err(error)),
            }
        }
        let why = match outcome {
            Ok(()) => {
                let choice = choice.clone();
                return Some(Ok(Ok(Computable { choice, length: lengths[0], ids })));
            }
            Err(Tried::Outside(outside)) => match (ids / 2).min(outside.rows as u64) {
                // Indices that are all the same would say nothing of rows.
                0 | 1 => outside.to_string(),
                fewer => {
                    ids = fewer;
                    continue;
                }
            },
            Err(other) => why_untold(other),
        };
        return Some(Ok(Err(why)));
    }
}

/// A graph of several rows, and the same of one.
struct Pair<'a> {
    together: &'a Trial,
    alone: &'a Trial,
    batch: &'a Batch,
    outputs: &'a [Port],
}

impl Pair<'_> {
    fn compare(&self, inputs: &[Array], rows: Option<&[Row]>) -> Result<(), Doubt> {
        let run = |trial: &Trial, inputs: &[Array]| match trial.run(inputs) {
            Ok(Tried::Computed(outputs)) => Ok(outputs),
            Ok(other) => Err(Doubt::Untried(why_untold(other))),
            Err(error) if rows.is_some() => Err(Doubt::Untried(error.to_string())),
            Err(error) => Err(Doubt::Depends(error.to_string())),
        };
        let together = run(self.together, inputs)?;
        for row in 0..ROWS as usize {
            let inputs = inputs.iter().zip(&self.batch.inputs).map(|(input, axis)| match axis {
                Some(axis) => input.row(*axis as usize, row),
                None => input.clone(),
            });
            let alone = run(self.alone, &inputs.collect::<Vec<_>>())?;
            let is_large = rows.is_some_and(|rows| rows[row].is_large());
            for (index, (together, alone)) in together.iter().zip(alone).enumerate() {
                let together = together.row(self.batch.outputs[index] as usize, row);
                if !agree(&together, &alone, if is_large { LARGE_TIMES } else { 1.0 }) {
                    let name = &self.outputs[index].name;
                    return Err(Doubt::Depends(format!(
                        "a row of output \"{name}\" depends on the others"
                    )));
                }
            }
        }
        Ok(())
    }
}

fn why_untold(tried: Tried) -> String {
    match tried {
        Tried::Computed(_) => String::new(),
        Tried::Unknown(why) => why,
        Tried::Outside(outside) => outside.to_string(),
    }
}

/// Inputs of one length, where they are not too large.
fn made_up(ports: &[Port], sizes: &Sizes, with: &Computable) -> Option<Vec<Array>> {
    let shapes = sizes.shapes(&with.choice, with.length)?;
    let elements = |shape: &Vec<usize>| shape.iter().fold(1u64, |n, d| n.saturating_mul(*d as u64));
    if shapes.iter().any(|shape| elements(shape) > MAX_ELEMENTS) {
        return None;
    }
    let arrays = sample_of_shapes(ports, shapes, &[]).ok()?;
    Some(arrays.into_iter().map(|(_, array)| below(array, with.ids)).collect())
}

/// The same with integers that are smaller than `ids`.
fn below(mut array: Array, ids: u64) -> Array {
    match array.dtype {
        Dtype::Int64 => array.bytes.as_chunks_mut().0.iter_mut().for_each(|bytes| {
            *bytes = (i64::from_le_bytes(*bytes) % ids.cast_signed()).to_le_bytes();
        }),
        Dtype::Int32 => array.bytes.as_chunks_mut().0.iter_mut().for_each(|bytes| {
            *bytes = (i32::from_le_bytes(*bytes) % ids as i32).to_le_bytes();
        }),
        _ => {}
    }
    array
}

/// Whether values are the same but for the order of sums, `times` as far off as a plain row may be.
fn agree(a: &Array, b: &Array, times: f64) -> bool {
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
    let tolerance = times
        * match a.dtype {
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
        assert!(agree(&one, &array([1.001, 0.51]), 1.0));
        assert!(!agree(&one, &array([1.0, 0.45]), 1.0));
        let float = |values: &[f32]| Array::from_f32(vec![1, 2], values).unwrap();
        assert!(agree(&float(&[1.0, f32::NAN]), &float(&[1.00005, f32::NAN]), 1.0));
        assert!(!agree(&float(&[1.0, 0.5]), &float(&[1.0005, 0.5]), 1.0));
        assert!(agree(&float(&[1.0, 0.5]), &float(&[1.0005, 0.5]), LARGE_TIMES));
    }
}

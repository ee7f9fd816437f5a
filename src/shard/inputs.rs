//! Inputs that passes are computed with to learn about a model.

use super::error::{ShardError, ensure, unfit};
use crate::store::manifest::{Dim, Port};
use crate::wire::Array;
use std::collections::HashMap;
use xxhash_rust::xxh3::Xxh3;

/// Requests to a model, and where they are from.
#[derive(Clone, Debug, PartialEq)]
pub struct Inputs {
    /// In words: `docs.txt, 64 texts`; `64 rows of random token ids`.
    pub source: String,
    /// Whether the program made them up.
    pub is_made_up: bool,
    /// Of each request the arrays, in the order of the model's inputs.
    pub requests: Vec<Vec<Array>>,
}

impl Inputs {
    /// Refuses what a model with these inputs cannot be computed with.
    ///
    /// # Errors
    /// [`ShardError::Unfit`] with the request and the input that does not fit; none at all.
    pub fn check(&self, ports: &[Port]) -> Result<(), ShardError> {
        let source = &self.source;
        ensure!(!self.requests.is_empty(), "{source}: there is no input in it");
        for (index, arrays) in self.requests.iter().enumerate() {
            let (found, wanted) = (arrays.len(), ports.len());
            ensure!(
                found == wanted,
                "{source}, input {index}: it has {found} arrays, the model takes {wanted}"
            );
            let mut sizes = HashMap::new();
            for (port, array) in ports.iter().zip(arrays) {
                let name = &port.name;
                if let Some(what) = fault(port, array, &mut sizes) {
                    return Err(unfit!("{source}, input {index}: \"{name}\" {what}"));
                }
            }
        }
        Ok(())
    }

    /// The longest open dimension of each request, 1 where there is none.
    pub fn lengths(&self, ports: &[Port]) -> Vec<usize> {
        let length = |arrays: &Vec<Array>| {
            let sizes = ports.iter().zip(arrays).flat_map(|(port, array)| {
                let open = port.shape.iter().zip(&array.shape);
                open.filter(|(dim, _)| matches!(dim, Dim::Symbol(_))).map(|(_, size)| *size)
            });
            sizes.max().unwrap_or(1)
        };
        self.requests.iter().map(length).collect()
    }

    /// The same for the same values.
    pub fn digest(&self) -> u64 {
        digest(self.requests.iter().flatten())
    }
}

/// The same for arrays of the same values.
pub(super) fn digest<'a>(arrays: impl IntoIterator<Item = &'a Array>) -> u64 {
    let mut hash = Xxh3::new();
    for array in arrays {
        hash.update(array.dtype.name().as_bytes());
        for size in &array.shape {
            hash.update(&(*size as u64).to_le_bytes());
        }
        hash.update(&array.bytes);
    }
    hash.digest()
}

/// What is wrong with an input, if anything; `sizes` are those of open dimensions so far.
fn fault<'a>(port: &'a Port, array: &Array, sizes: &mut HashMap<&'a str, usize>) -> Option<String> {
    let Array { dtype, shape, .. } = array;
    if *dtype != port.dtype {
        return Some(format!("is {dtype}, the model takes {}", port.dtype));
    }
    let mut fits = |(dim, size): (&'a Dim, &usize)| match dim {
        Dim::Fixed(fixed) => *fixed == *size as u64,
        Dim::Symbol(symbol) => *size > 0 && *sizes.entry(symbol).or_insert(*size) == *size,
    };
    if shape.len() != port.shape.len() || !port.shape.iter().zip(shape).all(&mut fits) {
        let wanted = serde_json::to_string(&port.shape).unwrap_or_default();
        return Some(format!("has shape {shape:?}, the model takes {wanted}"));
    }
    let odd = array.floats()?.iter().position(|value| !value.is_finite())?;
    Some(format!("has a value that is infinite or not a number, at {odd}"))
}

/// `kept` of `count` numbers, evenly spread, or all where there are no more.
pub(super) fn spread(count: usize, kept: usize) -> Vec<usize> {
    match kept >= count {
        true => (0..count).collect(),
        false => (0..kept).map(|index| index * count / kept).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Dtype;

    fn ports() -> Vec<Port> {
        let port = |name: &str, dtype, shape| Port { name: name.to_string(), dtype, shape };
        let open = || Dim::Symbol("seq".to_string());
        vec![
            port("ids", Dtype::Int64, vec![Dim::Fixed(1), open()]),
            port("x", Dtype::Fp32, vec![open(), Dim::Fixed(2)]),
        ]
    }

    fn inputs(ids: &[i64], x: &[f32]) -> Inputs {
        let ids = Array::from_i64(vec![1, ids.len()], ids).unwrap();
        let x = Array::from_f32(vec![x.len() / 2, 2], x).unwrap();
        Inputs { source: "here".to_string(), is_made_up: false, requests: vec![vec![ids, x]] }
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let fit = inputs(&[1, 2], &[0.0; 4]);
        fit.check(&ports()).unwrap();
        assert_eq!(fit.lengths(&ports()), [2]);
        let check = |inputs: &Inputs, words: &str| {
            let error = inputs.check(&ports()).unwrap_err().to_string();
            assert!(error.starts_with("here") && error.contains(words), "{error}");
        };
        check(&inputs(&[1, 2], &[0.0; 6]), "\"x\" has shape [3, 2]");
        check(&inputs(&[], &[]), "\"ids\" has shape [1, 0]");
        check(&inputs(&[1], &[0.0, f32::NAN]), "not a number, at 1");
        check(&Inputs { requests: vec![], ..fit.clone() }, "no input");
        let mut few = fit.clone();
        few.requests[0].pop();
        check(&few, "it has 1 arrays, the model takes 2");
        let mut other = fit.clone();
        other.requests[0].reverse();
        check(&other, "\"ids\" is FP32, the model takes INT64");
    }

    #[test]
    fn a_digest_tells_one_value_from_another() {
        let one = inputs(&[1, 2], &[0.0; 4]);
        assert_eq!(one.digest(), one.clone().digest());
        assert_ne!(one.digest(), inputs(&[1, 3], &[0.0; 4]).digest());
        assert_ne!(one.digest(), inputs(&[1], &[0.0, 0.5]).digest());
    }

    #[test]
    fn numbers_are_spread_evenly() {
        assert_eq!(spread(3, 5), [0, 1, 2]);
        assert_eq!(spread(10, 4), [0, 2, 5, 7]);
        assert_eq!(spread(0, 4), [0; 0]);
    }
}

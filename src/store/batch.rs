//! The batch of a model: an axis along which a request brings rows that have nothing to do with
//! each other.

use super::field::{Dim, ManifestError, Port};
use serde::{Deserialize, Serialize};

/// Rows that one request may bring.
pub const MAX_ROWS: usize = 256;

/// Which axes are the batch's. The graph has them fixed at 1: each row is computed as a request of
/// its own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Batch {
    /// The dimension as metadata show it.
    pub name: String,
    /// For each input its axis; none where all rows share the input.
    pub inputs: Vec<Option<u32>>,
    /// For each output its axis.
    pub outputs: Vec<u32>,
}

impl Batch {
    /// An input as requests give it, with the batch as an open dimension.
    pub fn given(&self, index: usize, port: Port) -> Port {
        self.opened(port, self.inputs.get(index).copied().flatten())
    }

    /// An output as replies give it, with the batch as an open dimension.
    pub fn answered(&self, index: usize, port: Port) -> Port {
        self.opened(port, self.outputs.get(index).copied())
    }

    fn opened(&self, mut port: Port, axis: Option<u32>) -> Port {
        if let Some(dim) = axis.and_then(|axis| port.shape.get_mut(axis as usize)) {
            *dim = Dim::Symbol(self.name.clone());
        }
        port
    }

    /// Checks that it speaks of these inputs and outputs.
    ///
    /// # Errors
    /// The field that does not.
    pub(super) fn check(&self, inputs: &[Port], outputs: &[Port]) -> Result<(), ManifestError> {
        let invalid = |field: &str, what: &str| {
            Err(ManifestError::Field { field: format!("batch.{field}"), what: what.to_owned() })
        };
        let is_one = |port: &Port, axis: u32| {
            port.shape.get(axis as usize).is_some_and(|dim| *dim == Dim::Fixed(1))
        };
        if self.name.is_empty() {
            return invalid("name", "is empty");
        }
        if self.inputs.len() != inputs.len() || self.inputs.iter().all(Option::is_none) {
            return invalid("inputs", "must have an axis or null for each input, and one at least");
        }
        if self.outputs.len() != outputs.len() {
            return invalid("outputs", "must have an axis for each output");
        }
        let given = inputs.iter().zip(&self.inputs);
        if !given.filter_map(|(port, axis)| Some((port, (*axis)?))).all(|(p, a)| is_one(p, a)) {
            return invalid("inputs", "names an axis that is not of length 1");
        }
        if !outputs.iter().zip(&self.outputs).all(|(port, axis)| is_one(port, *axis)) {
            return invalid("outputs", "names an axis that is not of length 1");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Dtype;

    #[test]
    fn a_batch_is_of_axes_of_length_1() {
        let port = |shape: &[Dim]| Port {
            name: "x".to_owned(),
            dtype: Dtype::Fp32,
            shape: shape.to_vec(),
        };
        let (one, two) = (Dim::Fixed(1), Dim::Fixed(2));
        let inputs = [port(&[one.clone(), two.clone()]), port(std::slice::from_ref(&two))];
        let outputs = [port(&[two.clone(), one.clone()])];
        let batch = |inputs: &[Option<u32>], outputs: &[u32]| Batch {
            name: "batch".to_owned(),
            inputs: inputs.to_vec(),
            outputs: outputs.to_vec(),
        };
        let good = batch(&[Some(0), None], &[1]);
        good.check(&inputs, &outputs).unwrap();
        let open = Dim::Symbol("batch".to_owned());
        assert_eq!(good.given(0, inputs[0].clone()).shape, [open.clone(), two.clone()]);
        assert_eq!(good.given(1, inputs[1].clone()), inputs[1]);
        assert_eq!(good.answered(0, outputs[0].clone()).shape, [two, open]);
        let bad = [
            batch(&[Some(0)], &[1]),
            batch(&[None, None], &[1]),
            batch(&[Some(1), None], &[1]),
            batch(&[Some(9), None], &[1]),
            batch(&[Some(0), None], &[0]),
            batch(&[Some(0), None], &[]),
        ];
        for batch in bad {
            assert!(batch.check(&inputs, &outputs).is_err(), "{batch:?}");
        }
    }
}

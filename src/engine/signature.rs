//! What a model takes and gives, and whether a request fits that. Pure.

use super::error::EngineError;
use super::rows;
use crate::graph::tensor_of;
use crate::store::manifest::{Batch, Dim, MAX_ROWS, Port};
use crate::wire::Array;
use std::collections::HashMap;
use tract_core::internal::*;

/// Inputs and outputs as requests name them.
pub(super) struct Signature {
    inputs: Vec<Port>,
    outputs: Vec<Port>,
    batch: Option<Batch>,
}

/// A request's inputs in the plan's order, checked.
pub(super) struct Given<'a> {
    inputs: Vec<(&'a Port, &'a Array)>,
    batch: Option<&'a Batch>,
    /// Rows of its batch: one where the model has none.
    pub rows: usize,
}

impl Given<'_> {
    /// The axis that is cut into rows.
    fn cut_axis(&self, input: usize) -> Option<usize> {
        let batch = self.batch.filter(|_| self.rows > 1)?;
        batch.inputs[input].map(|axis| axis as usize)
    }

    /// The shapes of one row's inputs.
    pub fn row_shapes(&self) -> Vec<Vec<usize>> {
        let shape = |(input, (_, array)): (usize, &(&Port, &Array))| {
            let mut shape = array.shape.clone();
            if let Some(axis) = self.cut_axis(input) {
                shape[axis] = 1;
            }
            shape
        };
        self.inputs.iter().enumerate().map(shape).collect()
    }

    /// Each row's tensors: copies, to be made once they are granted.
    pub fn arrange(self) -> Result<Vec<TVec<TValue>>, EngineError> {
        let mut arranged = vec![tvec![]; self.rows];
        for (input, (port, array)) in self.inputs.iter().enumerate() {
            match self.cut_axis(input) {
                Some(axis) => {
                    for (row, values) in arranged.iter_mut().enumerate() {
                        values.push(value(port, &array.row(axis, row))?);
                    }
                }
                None => {
                    let shared = value(port, array)?;
                    arranged.iter_mut().for_each(|values| values.push(shared.clone()));
                }
            }
        }
        Ok(arranged)
    }
}

/// The longest size that an input's open dimensions are given.
pub(super) fn longest_open(ports: &[Port], inputs: &[(String, Array)]) -> u64 {
    let sizes = ports.iter().flat_map(|port| {
        let given = inputs.iter().find(|(name, _)| *name == port.name);
        let shape = given.map_or(&[][..], |(_, array)| &array.shape);
        port.shape.iter().zip(shape).filter(|(dim, _)| matches!(dim, Dim::Symbol(_)))
    });
    sizes.map(|(_, size)| *size as u64).max().unwrap_or(1)
}

impl Signature {
    /// Of a model with a batch that requests may cut into rows, or without.
    pub fn new(inputs: Vec<Port>, outputs: Vec<Port>, batch: Option<Batch>) -> Signature {
        Signature { inputs, outputs, batch }
    }

    /// The longest size that inputs of the model give an open dimension, 1 where there is none.
    pub fn longest_open(&self, inputs: &[(String, Array)]) -> u64 {
        longest_open(&self.inputs, inputs)
    }

    /// Checks a request against the model's inputs.
    pub fn check_inputs<'a>(
        &'a self,
        inputs: &'a [(String, Array)],
    ) -> Result<Given<'a>, EngineError> {
        let invalid = |text: String| Err(EngineError::Invalid(text));
        for (index, (name, _)) in inputs.iter().enumerate() {
            if !self.inputs.iter().any(|port| port.name == *name) {
                let known = describe_names(&self.inputs);
                return invalid(format!("input \"{name}\" is unknown: the model takes {known}"));
            }
            if inputs[..index].iter().any(|(earlier, _)| earlier == name) {
                return invalid(format!("input \"{name}\" is given twice"));
            }
        }
        let mut bound = HashMap::new();
        let mut given = vec![];
        for port in &self.inputs {
            let Some((_, array)) = inputs.iter().find(|(name, _)| *name == port.name) else {
                let Port { name, dtype, shape } = port;
                let shape = describe_shape(shape);
                return invalid(format!("input \"{name}\" is missing: expected {dtype} {shape}"));
            };
            check_input(port, array, &mut bound)?;
            given.push((port, array));
        }
        let batch = self.batch.as_ref();
        let Some(batch) = batch else { return Ok(Given { inputs: given, batch, rows: 1 }) };
        let rows = bound.get(batch.name.as_str()).map_or(1, |(rows, _)| *rows);
        if !(1..=MAX_ROWS).contains(&rows) {
            return invalid(format!(
                "{} is {rows}: a request has 1 to {MAX_ROWS} rows in its batch",
                batch.name
            ));
        }
        Ok(Given { inputs: given, batch: Some(batch), rows })
    }

    /// What the rows of a request came to, as one answer; `outputs` are those it asked for.
    pub fn join_rows(
        &self,
        rows: Vec<Vec<Array>>,
        outputs: &[usize],
    ) -> Result<Vec<Array>, EngineError> {
        let Some(batch) = self.batch.as_ref().filter(|_| rows.len() > 1) else {
            return Ok(rows.into_iter().next().unwrap_or_default());
        };
        let mut rows: Vec<_> = rows.into_iter().map(Vec::into_iter).collect();
        let join = |output: &usize| {
            let parts = rows.iter_mut().filter_map(Iterator::next).collect();
            rows::join(self.output_name(*output), batch.outputs[*output] as usize, parts)
        };
        outputs.iter().map(join).collect()
    }

    /// Names the first axis of length 0 of a pass's inputs, which few models can do with.
    pub fn empty_axis(&self, inputs: &TVec<TValue>) -> Option<String> {
        self.inputs.iter().zip(inputs).find_map(|(port, input)| {
            let axis = input.shape().iter().position(|size| *size == 0)?;
            Some(format!("input \"{}\" has length 0 in axis {axis}", port.name))
        })
    }

    /// Indices of the outputs that a request names, all of them where it names none.
    pub fn pick_outputs(&self, names: &[String]) -> Result<Vec<usize>, EngineError> {
        if names.is_empty() {
            return Ok((0..self.outputs.len()).collect());
        }
        let find = |name: &String| {
            self.outputs.iter().position(|port| port.name == *name).ok_or_else(|| {
                let known = describe_names(&self.outputs);
                EngineError::Invalid(format!("output \"{name}\" is unknown: the model has {known}"))
            })
        };
        let twice = names.iter().enumerate().find(|(at, name)| names[..*at].contains(name));
        if let Some((_, name)) = twice {
            return Err(EngineError::Invalid(format!("output \"{name}\" is wanted twice")));
        }
        names.iter().map(find).collect()
    }

    /// Name of output `index`.
    pub fn output_name(&self, index: usize) -> &str {
        &self.outputs[index].name
    }
}

/// Limit of an axis of an input.
const MOST_LENGTH: usize = i32::MAX as usize;

/// Checks one input's type and shape; `bound` holds the sizes that symbols have so far.
fn check_input<'a>(
    port: &'a Port,
    array: &Array,
    bound: &mut HashMap<&'a str, (usize, &'a str)>,
) -> Result<(), EngineError> {
    let Port { name, dtype, shape } = port;
    let expected = format!("expected {dtype} {}", describe_shape(shape));
    let invalid =
        |what: String| Err(EngineError::Invalid(format!("input \"{name}\" {what}: {expected}")));
    if array.dtype != *dtype {
        return invalid(format!("is {}", array.dtype));
    }
    // Beside an axis of length 0 any other costs its sender nothing, and would overflow a size.
    if array.shape.len() != shape.len() || array.shape.iter().any(|size| *size > MOST_LENGTH) {
        return invalid(format!("has shape {:?}", array.shape));
    }
    for (axis, (size, dim)) in array.shape.iter().zip(shape).enumerate() {
        match dim {
            Dim::Fixed(fixed) if *fixed != *size as u64 => {
                return invalid(format!("has shape {:?}", array.shape));
            }
            Dim::Fixed(_) => {}
            Dim::Symbol(symbol) => {
                let (earlier, input) = *bound.entry(symbol).or_insert((*size, name));
                if earlier != *size {
                    return invalid(format!(
                        "has {symbol} = {size} in axis {axis} where input \"{input}\" has {earlier}"
                    ));
                }
            }
        }
    }
    Ok(())
}

/// The tensor of an input.
fn value(port: &Port, array: &Array) -> Result<TValue, EngineError> {
    match tensor_of(array) {
        Some(Ok(tensor)) => Ok(tensor.into_tvalue()),
        Some(Err(error)) => Err(EngineError::Internal(format!("{error:#}"))),
        None => Err(EngineError::Invalid(format!(
            "input \"{}\": {} cannot be computed with",
            port.name, array.dtype
        ))),
    }
}

fn describe_names(ports: &[Port]) -> String {
    let names: Vec<String> = ports.iter().map(|port| format!("\"{}\"", port.name)).collect();
    names.join(", ")
}

fn describe_shape(shape: &[Dim]) -> String {
    let dims: Vec<String> = shape
        .iter()
        .map(|dim| match dim {
            Dim::Fixed(size) => size.to_string(),
            Dim::Symbol(symbol) => symbol.clone(),
        })
        .collect();
    format!("[{}]", dims.join(", "))
}

//! A session's part in a pass: what it reads, and what comes of it.

use super::choice::Choice;
use crate::graph::{Footprint, datum_of};
use crate::store::manifest::Port;
use crate::store::{Cache, Decoder, Dtype};
use std::sync::{Arc, Weak};
use tract_core::internal::*;

/// Tells a loaded model from any other, and whether sessions use it.
#[derive(Clone, Debug, Default)]
pub struct Tenancy(Arc<()>);

impl Tenancy {
    /// Whether sessions are there.
    pub fn is_used(&self) -> bool {
        Arc::strong_count(&self.0) > 1
    }

    /// Whether both are of one model.
    pub fn is(&self, other: &Tenancy) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// Tells the same of somebody who does not use it.
    pub fn tenant(&self) -> Tenant {
        Tenant(Arc::downgrade(&self.0))
    }
}

/// Of which loaded model something is.
#[derive(Clone, Debug)]
pub struct Tenant(Weak<()>);

impl PartialEq for Tenant {
    fn eq(&self, other: &Tenant) -> bool {
        Weak::ptr_eq(&self.0, &other.0)
    }
}

/// Keys and values of the tokens that were read, in the order of the decoder's caches.
#[derive(Clone, Default)]
pub struct Past {
    pub tokens: usize,
    values: Vec<TValue>,
    /// Where the tokens are in each.
    axes: Arc<[usize]>,
}

/// Tokens to be read.
pub struct Step {
    /// Of which session.
    pub session: u64,
    /// Of the model that the past is of.
    pub tenancy: Tenancy,
    pub ids: Vec<u32>,
    pub past: Past,
    /// What the session was granted to compute it with.
    pub work_bytes: u64,
}

/// What reading tokens came to.
pub struct Stepped {
    pub past: Past,
    /// Of the last token.
    pub logits: Vec<f32>,
    pub choice: Choice,
    /// Bytes of tape that the pass read.
    pub bytes_read: u64,
}

impl Past {
    /// Of no tokens.
    pub fn none(decoder: &Decoder) -> TractResult<Past> {
        let values = decoder.caches.iter().map(|cache| {
            let empty = Tensor::zero_dt(datum(cache.dtype)?, &cache.shape_of(0))?;
            Ok(empty.into_tvalue())
        });
        let axes = decoder.caches.iter().map(|cache| cache.axis).collect();
        Ok(Past { tokens: 0, values: values.collect::<TractResult<_>>()?, axes })
    }

    /// The past of the first so many tokens.
    pub fn cut(self, tokens: usize) -> TractResult<Past> {
        if tokens >= self.tokens {
            return Ok(self);
        }
        let values = self.values.iter().zip(&*self.axes);
        let cut =
            |(value, axis): (&TValue, &usize)| Ok(value.slice(*axis, 0, tokens)?.into_tvalue());
        let values = values.map(cut).collect::<TractResult<_>>()?;
        Ok(Past { tokens, values, axes: self.axes })
    }

    /// Bytes that it is counted with.
    pub fn bytes(&self) -> u64 {
        let bytes = |value: &TValue| (value.len() * value.datum_type().size_of()) as u64;
        self.values.iter().map(|value| Footprint::taken_bytes(bytes(value))).sum()
    }

    /// Takes the past of so many tokens, and the last position's logits, from a pass's outputs.
    pub fn of_outputs(
        decoder: &Decoder,
        tokens: usize,
        outputs: TVec<TValue>,
    ) -> TractResult<(Past, Vec<f32>)> {
        let mut outputs: Vec<Option<TValue>> = outputs.into_iter().map(Some).collect();
        let mut take = |index: usize| -> TractResult<TValue> {
            outputs[index].take().context("an output is taken once")
        };
        let logits = take(decoder.logits)?;
        let logits = last_row(&logits, decoder.vocabulary)?;
        let present = |cache: &Cache| {
            let value = take(cache.present)?;
            let (expected, dtype) = (cache.shape_of(tokens), datum(cache.dtype)?);
            ensure!(
                value.shape() == expected && value.datum_type() == dtype,
                "the present of {tokens} tokens is {:?} of shape {:?}, not {expected:?}",
                value.datum_type(),
                value.shape()
            );
            Ok(value)
        };
        let values = decoder.caches.iter().map(present).collect::<TractResult<_>>()?;
        let axes = decoder.caches.iter().map(|cache| cache.axis).collect();
        Ok((Past { tokens, values, axes }, logits))
    }
}

impl Step {
    /// The inputs of its pass, to which its past goes over.
    pub fn take_inputs(&mut self, decoder: &Decoder, ports: &[Port]) -> TractResult<TVec<TValue>> {
        let (past, new) = (self.past.tokens, self.ids.len());
        let shapes = decoder.shapes(past, new);
        let mut inputs: Vec<Option<TValue>> = vec![None; ports.len()];
        let values = std::mem::take(&mut self.past.values);
        for (cache, value) in decoder.caches.iter().zip(values) {
            inputs[cache.past] = Some(value);
        }
        let mut put = |input: usize, numbers: Vec<i64>| -> TractResult<()> {
            let numbers = tensor1(&numbers).into_shape(&shapes[input])?;
            let numbers = numbers.cast_to_dt(datum(ports[input].dtype)?)?.into_owned();
            inputs[input] = Some(numbers.into_tvalue());
            Ok(())
        };
        put(decoder.ids, self.ids.iter().map(|id| i64::from(*id)).collect())?;
        if let Some(input) = decoder.mask {
            put(input, vec![1; past + new])?;
        }
        if let Some(input) = decoder.positions {
            put(input, (past as i64..).take(new).collect())?;
        }
        if let Some(input) = decoder.kept {
            put(input, vec![1])?;
        }
        inputs.into_iter().map(|input| input.context("an input is not known")).collect()
    }
}

/// The last position's logits of `[1, positions, vocabulary]`.
fn last_row(logits: &Tensor, vocabulary: usize) -> TractResult<Vec<f32>> {
    ensure!(
        logits.rank() == 3 && logits.shape()[1] > 0 && logits.shape()[2] == vocabulary,
        "logits have shape {:?}",
        logits.shape()
    );
    let last = logits.slice(1, logits.shape()[1] - 1, logits.shape()[1])?;
    let last = last.cast_to::<f32>()?;
    Ok(last.try_as_plain_ram()?.as_slice::<f32>()?.to_vec())
}

fn datum(dtype: Dtype) -> TractResult<DatumType> {
    datum_of(dtype).with_context(|| format!("{dtype} is not computed with"))
}

//! Keys and values of the tokens that a session has read: how a model's are kept, and what is kept.

use crate::graph::{Footprint, Keeping, KeptPast, Lockstep, datum_of};
use crate::store::{Cache, Decoder, Dtype};
use std::sync::Arc;
use tract_core::internal::*;

/// How a model generates text.
#[derive(Clone, Debug)]
pub struct Decoding {
    pub decoder: Decoder,
    /// By cache, how it is kept where what is new is appended; the graph gives others as arrays.
    keeping: Arc<[Option<Keeping>]>,
    /// Of how many new tokens at most a pass gives the logits of each.
    pub most_rows: usize,
}

/// New tokens at most whose logits are looked at.
const MOST_ROWS: usize = 8;

impl Decoding {
    /// Of a decoder by that plan.
    pub fn new(decoder: Decoder, plan: &Lockstep) -> Decoding {
        let inputs = plan.keeping();
        let keeping = |cache: &Cache| {
            let keeping = inputs.get(cache.past).copied().flatten();
            keeping.filter(|keeping| keeping.present == cache.present && cache.axis == 2)
        };
        let keeping: Arc<[_]> = decoder.caches.iter().map(keeping).collect();
        let gives = |new: &usize| {
            let shapes = decoder.shapes(0, *new);
            plan.output_size(decoder.logits, 1, &shapes) == Some(*new)
        };
        // A token that is looked at beside others has to come to what it comes to alone.
        let is_alike = plan.keeps_bits() && keeping.iter().all(Option::is_some);
        let most_rows = (2..=MOST_ROWS).rev().find(|new| is_alike && gives(new)).unwrap_or(1);
        Decoding { decoder, keeping, most_rows }
    }

    /// Bytes that keys and values of a text of so many tokens are counted with.
    pub fn kept_bytes(&self, tokens: usize) -> u64 {
        let caches = self.decoder.caches.iter().zip(&*self.keeping);
        let taken = |(cache, keeping): (&Cache, &Option<Keeping>)| {
            let slots = keeping.map_or(tokens, |keeping| keeping.slots(tokens));
            Footprint::taken_bytes(cache.bytes_of(slots))
        };
        caches.map(taken).sum()
    }
}

/// Keys and values of the tokens that were read, in the order of the decoder's caches.
#[derive(Clone, Default)]
pub struct Past {
    pub tokens: usize,
    values: Vec<TValue>,
    /// Where the tokens are in each.
    axes: Arc<[usize]>,
    keeping: Arc<[Option<Keeping>]>,
}

impl Past {
    /// Of no tokens, without room for any.
    pub fn none(decoding: &Decoding) -> TractResult<Past> {
        let caches = decoding.decoder.caches.iter();
        let values = caches.clone().zip(&*decoding.keeping).map(|(cache, keeping)| {
            let shape = cache.shape_of(0);
            let empty = match keeping {
                Some(keeping) => KeptPast::none(keeping, shape[1], shape[3]),
                None => Tensor::zero_dt(datum(cache.dtype)?, &shape)?,
            };
            Ok(empty.into_tvalue())
        });
        let values = values.collect::<TractResult<_>>()?;
        let axes = caches.map(|cache| cache.axis).collect();
        Ok(Past { tokens: 0, values, axes, keeping: Arc::clone(&decoding.keeping) })
    }

    /// The past of the first `tokens` in a place of its own, with room for a text of `room` of them.
    pub fn with_room(self, tokens: usize, room: usize) -> TractResult<Past> {
        let Past { values, axes, keeping, .. } = self;
        let kinds = axes.iter().zip(&*keeping);
        // Each goes before the next one is copied.
        let moved = values.into_iter().zip(kinds).map(|(value, (axis, keeping))| {
            let moved = match keeping {
                Some(keeping) => KeptPast::copied(&value, keeping, tokens, room)?,
                None if value.shape()[*axis] == tokens => return Ok(value),
                None => value.slice(*axis, 0, tokens)?,
            };
            Ok(moved.into_tvalue())
        });
        let values = moved.collect::<TractResult<_>>()?;
        Ok(Past { tokens, values, axes, keeping })
    }

    /// The past of the first `tokens`, in the same place.
    pub fn cut(self, tokens: usize) -> TractResult<Past> {
        if tokens >= self.tokens {
            return Ok(self);
        }
        let Past { values, axes, keeping, .. } = self;
        let kinds = axes.iter().zip(&*keeping);
        let cut = values.iter().zip(kinds).map(|(value, (axis, keeping))| {
            let cut = match keeping {
                Some(_) => KeptPast::cut(value, tokens)?,
                None => value.slice(*axis, 0, tokens)?,
            };
            Ok(cut.into_tvalue())
        });
        let values = cut.collect::<TractResult<_>>()?;
        Ok(Past { tokens, values, axes, keeping })
    }

    /// Whether a text can go on from the first `tokens`.
    pub fn can_cut(&self, tokens: usize) -> bool {
        self.values.iter().all(|value| KeptPast::can_cut(value, tokens))
    }

    /// Bytes that it is counted with.
    pub fn bytes(&self) -> u64 {
        let of_array = |value: &TValue| (value.len() * value.datum_type().size_of()) as u64;
        let bytes = |value: &TValue| KeptPast::bytes_of(value).unwrap_or_else(|| of_array(value));
        self.values.iter().map(|value| Footprint::taken_bytes(bytes(value))).sum()
    }

    /// The values, which a pass takes over.
    pub fn take_values(&mut self) -> Vec<TValue> {
        std::mem::take(&mut self.values)
    }

    /// Takes the past of so many tokens, and the logits of the last `rows` of them, from a pass's
    /// outputs.
    pub fn of_outputs(
        decoding: &Decoding,
        tokens: usize,
        rows: usize,
        outputs: TVec<TValue>,
    ) -> TractResult<(Past, Vec<f32>)> {
        let Decoding { decoder, keeping, .. } = decoding;
        let mut outputs: Vec<Option<TValue>> = outputs.into_iter().map(Some).collect();
        let mut take = |index: usize| -> TractResult<TValue> {
            outputs[index].take().context("an output is taken once")
        };
        let logits = take(decoder.logits)?;
        let logits = last_rows(&logits, rows, decoder.vocabulary)?;
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
        Ok((Past { tokens, values, axes, keeping: Arc::clone(keeping) }, logits))
    }
}

/// The last positions' logits of `[1, positions, vocabulary]`.
fn last_rows(logits: &Tensor, rows: usize, vocabulary: usize) -> TractResult<Vec<f32>> {
    if rows == 0 {
        return Ok(vec![]);
    }
    let shape = logits.shape();
    ensure!(
        logits.rank() == 3 && shape[1] >= rows && shape[2] == vocabulary,
        "logits have shape {shape:?}"
    );
    let last = logits.slice(1, shape[1] - rows, shape[1])?;
    let last = last.cast_to::<f32>()?;
    Ok(last.try_as_plain_ram()?.as_slice::<f32>()?.to_vec())
}

/// The type of values that tract computes with.
pub fn datum(dtype: Dtype) -> TractResult<DatumType> {
    datum_of(dtype).with_context(|| format!("{dtype} is not computed with"))
}

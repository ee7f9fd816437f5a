//! Attention of a decoder, as graphs that are drawn here ask for it: over what is past and what is
//! new, each token seeing itself and those before it, in one operator. Neither scores nor masks of a
//! whole text exist, and keys that heads of queries share are copied for none.
//!
//! A past that a session keeps ([`KeptPast`]) is appended to where it lies. One that comes as an array
//! is copied, so that who asks for a pass by itself gets arrays back.

mod heads;
mod kept;
mod loops;
mod new;
mod operator;
#[cfg(test)]
mod tests;

pub use kept::{Keeping, KeptPast, MOST_NEW, keeping_of};
pub use operator::{parse, parse_old};

use super::ops::feed;
use crate::checkpoint::Rotation;
use heads::{BLOCK, Layout, TILE_ROWS, attend};
use new::NewHeads;
use tract_core::internal::*;
use tract_linalg::multithread::{Executor, current_tract_executor};

/// Domain of the operators that graphs drawn here have for themselves.
pub const DOMAIN: &str = "hermes";

/// The version of that domain that graphs are drawn by.
pub const DOMAIN_VERSION: i64 = 2;

/// The operator's name in a graph.
pub const OPERATOR: &str = "RotaryAttention";

/// That of graphs that were drawn by the first version of the domain.
pub const OLD_OPERATOR: &str = "CachedAttention";

/// Most threads that share an evaluation, so that what it works with has a bound.
const MOST_THREADS: usize = 8;

/// Keys or values of what is past and new, `[1, K, P + S, W]`: of the new ones, `[1, S, K * W]` or
/// `[1, S, K, W]`, those of what is past, `[1, K, P, W]`, and where new ones are turned, cosines and
/// sines, `[S, pairs]`.
///
/// Bytes moved: what is new, where the past is kept; all of it where it is an array.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Append {
    /// How many tokens each one sees, itself among them; none for all before it.
    pub(super) window: Option<usize>,
    pub(super) rotation: Option<Rotation>,
}

/// `mixed[1, S, H * W]` of queries `[1, S, H * W]` or `[1, S, H, W]`, keys and values of what is past
/// and new, and where queries are turned, cosines and sines.
///
/// Bytes moved: keys and values once for each tile of rows; bound by them for few new tokens, by the
/// products for many.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Mix {
    /// Bits of the f32 that scores are multiplied by.
    scale_bits: u32,
    window: Option<usize>,
    rotation: Option<Rotation>,
}

impl Op for Append {
    fn name(&self) -> StaticName {
        "Append".into()
    }

    op_as_typed_op!();
}

impl TypedOp for Append {
    fn output_facts(&self, inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        let [new, past, angles @ ..] = inputs else { bail!("Append takes 2 inputs or 4") };
        check_past(past)?;
        let joined = check_new(new, self.rotation, angles)?;
        let kept = past.shape[1].clone() * &past.shape[3];
        ensure!(kept == joined.to_dim() && joined > 0, "{new:?} behind {past:?}");
        let mut shape = past.shape.to_tvec();
        shape[2] = past.shape[2].clone() + &new.shape[1];
        Ok(tvec!(f32::fact(shape)))
    }

    as_op!();
}

impl EvalOp for Append {
    not_out_of_plan!();

    fn eval(&self, context: &EvalContext, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        let [new, past, angles @ ..] = &inputs[..] else { bail!("Append takes 2 inputs or 4") };
        let &[_, heads, tokens, width] = past.shape() else { bail!("a past of {past:?}") };
        let new = NewHeads::of(new, width, self.rotation, angles)?;
        ensure!(new.heads == heads, "{} heads behind {heads}", new.heads);
        let present = match past.storage_as::<KeptPast>() {
            Some(kept) => kept.appended(past.shape(), &new)?,
            None => {
                feed(context)?.grow((past.len() * size_of::<f32>()) as u64)?;
                let past = past.try_as_plain_ram()?;
                joined(past.as_slice::<f32>()?, tokens, &new)?
            }
        };
        Ok(tvec!(present.into_tvalue()))
    }
}

/// `[1, heads, tokens + new, width]` of those `[heads, tokens, width]` of the past and what is new.
fn joined(past: &[f32], tokens: usize, new: &NewHeads) -> TractResult<Tensor> {
    let NewHeads { heads, width, .. } = *new;
    let seen = tokens + new.tokens;
    let mut joined = Tensor::zero::<f32>(&[1, heads, seen, width])?;
    let mut plain = joined.try_as_plain_ram_mut()?;
    for (index, row) in plain.as_slice_mut::<f32>()?.chunks_exact_mut(width).enumerate() {
        let (head, token) = (index / seen, index % seen);
        match token.checked_sub(tokens) {
            Some(token) => new.put(head, token, row),
            None => row.copy_from_slice(&past[(head * tokens + token) * width..][..width]),
        }
    }
    Ok(joined)
}

impl Op for Mix {
    fn name(&self) -> StaticName {
        OPERATOR.into()
    }

    op_as_typed_op!();
}

impl TypedOp for Mix {
    fn output_facts(&self, inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        let [query, keys, values, angles @ ..] = inputs else { bail!("{OPERATOR} mixes 3 or 5") };
        [keys, values].into_iter().try_for_each(|past| check_past(past))?;
        let joined = check_new(query, self.rotation, angles)?;
        ensure!(keys.shape == values.shape, "{keys:?} and {values:?}");
        let sizes = [1, 3].map(|axis| usize::try_from(keys.shape[axis].as_i64().unwrap_or(0)));
        let [heads, width] = [sizes[0].unwrap_or(0), sizes[1].unwrap_or(0)];
        let is_shared = heads * width > 0 && joined > 0 && joined.is_multiple_of(heads * width);
        ensure!(is_shared, "{joined} values of queries, {heads} heads of {width} of keys");
        Ok(tvec!(f32::fact([1.to_dim(), query.shape[1].clone(), joined.to_dim()])))
    }

    as_op!();
}

fn check_past(fact: &TypedFact) -> TractResult<()> {
    ensure!(fact.datum_type == f32::datum_type() && fact.rank() == 4, "{fact:?}");
    ensure!(fact.shape[0].is_one(), "more than one text: {fact:?}");
    Ok(())
}

/// How many values a new token has, in all heads.
fn check_new(
    fact: &TypedFact,
    rotation: Option<Rotation>,
    angles: &[&TypedFact],
) -> TractResult<usize> {
    let is_new = fact.datum_type == f32::datum_type() && [3, 4].contains(&fact.rank());
    ensure!(is_new && fact.shape[0].is_one(), "new tokens of one text are no {fact:?}");
    let are_angles = |fact: &&TypedFact| fact.datum_type == f32::datum_type() && fact.rank() == 2;
    let count = if rotation.is_some() { 2 } else { 0 };
    ensure!(angles.len() == count && angles.iter().all(are_angles), "angles are {angles:?}");
    let sizes: Result<usize, _> = fact.shape.iter().skip(2).map(|dim| dim.to_usize()).product();
    sizes.with_context(|| format!("open sizes of heads: {fact:?}"))
}

impl EvalOp for Mix {
    not_out_of_plan!();

    fn eval(&self, _context: &EvalContext, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        let [query, keys, values, angles @ ..] = &inputs[..] else {
            bail!("{OPERATOR} mixes 3 or 5")
        };
        let &[_, heads, seen, width] = keys.shape() else { bail!("keys have four axes") };
        let query = NewHeads::of(query, width, self.rotation, angles)?;
        let layout = Layout {
            queries: query.heads,
            keys: heads,
            width,
            new: query.tokens,
            past: seen.checked_sub(query.tokens).context("more new tokens than all")?,
            capacity: seen,
            window: self.window.unwrap_or(usize::MAX),
            scale: f32::from_bits(self.scale_bits),
        };
        let kept = [keys, values].map(|past| past.storage_as::<KeptPast>());
        let mixed = if let [Some(keys), Some(values)] = kept {
            let (keys, values) = (keys.open(), values.open());
            let layout = Layout { capacity: keys.capacity(), ..layout };
            mix(&layout, &query, keys.values(), values.values())?
        } else {
            let (keys, values) = (keys.try_as_plain_ram()?, values.try_as_plain_ram()?);
            mix(&layout, &query, keys.as_slice::<f32>()?, values.as_slice::<f32>()?)?
        };
        Ok(tvec!(mixed))
    }
}

fn mix(layout: &Layout, query: &NewHeads, keys: &[f32], values: &[f32]) -> TractResult<TValue> {
    let work = || attend(layout, query, keys, values, rayon::current_num_threads());
    let mixed = match current_tract_executor() {
        Executor::MultiThread(pool) => pool.install(work),
        _ => attend(layout, query, keys, values, 1),
    };
    let shape = [1, layout.new, layout.queries * layout.width];
    Ok(Tensor::from_shape(&shape, &mixed)?.into_tvalue())
}

impl Mix {
    /// Bytes that an evaluation works with besides its inputs, its outputs and as much again as what
    /// comes of its queries.
    pub fn work_bytes(inputs: &[&TypedFact]) -> u64 {
        let width = inputs.get(1).and_then(|keys| keys.shape.get(3)?.as_i64());
        let width = usize::try_from(width.unwrap_or(0)).unwrap_or(0);
        let tile = TILE_ROWS * (BLOCK + 4 * width) + 2 * BLOCK * width;
        (MOST_THREADS * tile * size_of::<f32>()) as u64
    }
}

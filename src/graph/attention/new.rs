//! Queries, keys or values of new tokens, as products give them: token by token, heads side by side.
//! They are turned by their places as they are taken, so no copy is made for that.

use crate::checkpoint::Rotation;
use tract_core::internal::*;

/// Heads of the new tokens.
pub struct NewHeads<'a> {
    pub tokens: usize,
    pub heads: usize,
    /// Values of a head.
    pub width: usize,
    values: &'a [f32],
    turn: Option<Turn<'a>>,
}

/// By how much heads are turned.
struct Turn<'a> {
    rotation: Rotation,
    /// Pairs of a head that are turned, its first values; the rest of it stays.
    pairs: usize,
    /// By token and pair.
    cosines: &'a [f32],
    sines: &'a [f32],
}

impl<'a> NewHeads<'a> {
    /// Heads of so many values each in a tensor `[1, S, heads * width]` or `[1, S, heads, width]`.
    /// `angles` are cosines and sines `[S, pairs]`, where heads are turned.
    ///
    /// # Errors
    /// Shapes that do not go together.
    pub fn of(
        new: &'a Tensor,
        width: usize,
        rotation: Option<Rotation>,
        angles: &'a [TValue],
    ) -> TractResult<NewHeads<'a>> {
        let values = new.try_as_plain_ram()?.as_slice::<f32>()?;
        let &[1, tokens, ..] = new.shape() else { bail!("new tokens are {new:?}") };
        let joined: usize = new.shape()[2..].iter().product();
        ensure!(width > 0 && joined.is_multiple_of(width), "{new:?} as heads of {width}");
        let turn = match (rotation, angles) {
            (Some(rotation), [cosines, sines]) => {
                let &[_, pairs] = cosines.shape() else { bail!("cosines are {cosines:?}") };
                let is_right = cosines.shape() == [tokens, pairs] && 2 * pairs <= width;
                ensure!(is_right && sines.shape() == cosines.shape(), "{cosines:?} for {new:?}");
                let [cosines, sines] = [cosines, sines].map(|part| part.try_as_plain_ram());
                let (cosines, sines) = (cosines?.as_slice::<f32>()?, sines?.as_slice::<f32>()?);
                Some(Turn { rotation, pairs, cosines, sines })
            }
            (None, []) => None,
            _ => bail!("{} tables of angles", angles.len()),
        };
        Ok(NewHeads { tokens, heads: joined / width, width, values, turn })
    }

    /// Puts a token's head into `to`, turned.
    pub fn put(&self, head: usize, token: usize, to: &mut [f32]) {
        let at = (token * self.heads + head) * self.width;
        let from = &self.values[at..at + self.width];
        match &self.turn {
            Some(turn) => turn.put(from, token, to),
            None => to.copy_from_slice(from),
        }
    }
}

impl Turn<'_> {
    /// Each product is rounded before the sum, as where a graph has nodes for them.
    fn put(&self, from: &[f32], token: usize, to: &mut [f32]) {
        let pairs = self.pairs;
        let at = token * pairs..(token + 1) * pairs;
        let angles = self.cosines[at.clone()].iter().zip(&self.sines[at]);
        let turned = |(one, other): (f32, f32), (cosine, sine): (&f32, &f32)| {
            (one * cosine - other * sine, other * cosine + one * sine)
        };
        let (first, rest) = from.split_at(2 * pairs);
        let (into, behind) = to.split_at_mut(2 * pairs);
        behind.copy_from_slice(rest);
        match self.rotation {
            Rotation::Halves => {
                let (ones, others) = first.split_at(pairs);
                let (left, right) = into.split_at_mut(pairs);
                let of_pairs = ones.iter().zip(others).zip(angles);
                for (((one, other), angle), into) in of_pairs.zip(left.iter_mut().zip(right)) {
                    (*into.0, *into.1) = turned((*one, *other), angle);
                }
            }
            Rotation::Interleaved => {
                let (of_pairs, into) = (first.as_chunks::<2>().0, into.as_chunks_mut::<2>().0);
                for ((pair, angle), into) in of_pairs.iter().zip(angles).zip(into) {
                    (into[0], into[1]) = turned((pair[0], pair[1]), angle);
                }
            }
        }
    }
}

//! From the vectors of a text's tokens to one.

use super::Array;
use crate::store::manifest::Pooling;

/// How long a text is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Measure {
    /// Its tokens, those of the prompt before it and special ones included.
    pub tokens: usize,
    /// Tokens at its beginning that are not pooled.
    pub skipped: usize,
}

/// One vector of the tokens' vectors, as sentence-transformers computes it.
///
/// # Errors
/// A shape that is not of so many tokens, in words.
pub fn pool(array: &Array, pooling: Pooling, text: Measure) -> Result<Vec<f32>, String> {
    let values = array.floats().ok_or_else(|| format!("{} is no vector", array.dtype))?;
    let shape = &array.shape;
    let outer = &shape[..shape.len().saturating_sub(1)];
    let is_rows =
        outer.iter().product::<usize>() == text.tokens && outer.last() == Some(&text.tokens);
    let is_one = outer.iter().all(|dim| *dim == 1);
    let width = shape.last().copied().unwrap_or(0);
    let rows = || values.chunks_exact(width).enumerate().skip(text.skipped);
    let count = text.tokens.saturating_sub(text.skipped);
    // Weights are of the positions in the text, whatever is skipped of it.
    let weights = (text.skipped + 1..=text.tokens).sum::<usize>();
    let sum = |weight: fn(usize) -> f64, divisor: f64| {
        let mut sums = vec![0f64; width];
        for (position, row) in rows() {
            let weight = weight(position);
            sums.iter_mut().zip(row).for_each(|(sum, value)| *sum += weight * f64::from(*value));
        }
        sums.into_iter().map(|sum| (sum / divisor) as f32).collect()
    };
    match pooling {
        Pooling::None if is_one && width > 0 => Ok(values),
        Pooling::None => Err(unsuited(shape, pooling, text)),
        _ if !is_rows || width == 0 || count == 0 => Err(unsuited(shape, pooling, text)),
        // The first that is pooled at all.
        Pooling::Cls => Ok(values[text.skipped * width..][..width].to_vec()),
        Pooling::LastToken => Ok(values[values.len() - width..].to_vec()),
        Pooling::Max => {
            let mut largest = vec![f32::NEG_INFINITY; width];
            for (_, row) in rows() {
                // What is not a number stays one, so that it is refused.
                let larger = |a: f32, b: f32| if a > b || a.is_nan() { a } else { b };
                largest.iter_mut().zip(row).for_each(|(most, value)| *most = larger(*most, *value));
            }
            Ok(largest)
        }
        Pooling::Mean => Ok(sum(|_| 1.0, count as f64)),
        Pooling::MeanSqrtLen => Ok(sum(|_| 1.0, (count as f64).sqrt())),
        Pooling::WeightedMean => Ok(sum(|position| (position + 1) as f64, weights as f64)),
    }
}

fn unsuited(shape: &[usize], pooling: Pooling, text: Measure) -> String {
    let (name, Measure { tokens, skipped }) = (pooling.name(), text);
    format!("shape {shape:?} does not suit pooling {name} of {tokens} tokens without {skipped}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Dtype;
    use proptest::prelude::*;

    fn array(shape: &[usize], values: &[f32]) -> Array {
        let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        Array::new(Dtype::Fp32, shape.to_vec(), bytes).unwrap()
    }

    fn whole(tokens: usize) -> Measure {
        Measure { tokens, skipped: 0 }
    }

    #[test]
    fn pooling_follows_the_manifest() {
        let rows = array(&[1, 2, 3], &[1.0, 2.0, 3.0, 5.0, 6.0, 7.0]);
        assert_eq!(pool(&rows, Pooling::Mean, whole(2)).unwrap(), [3.0, 4.0, 5.0]);
        assert_eq!(pool(&rows, Pooling::Cls, whole(2)).unwrap(), [1.0, 2.0, 3.0]);
        assert!(pool(&rows, Pooling::None, whole(2)).is_err());
        assert!(pool(&rows, Pooling::Mean, whole(3)).is_err());
        assert!(pool(&rows, Pooling::Mean, Measure { tokens: 2, skipped: 2 }).is_err());
        let one = array(&[1, 3], &[1.0, 2.0, 3.0]);
        assert_eq!(pool(&one, Pooling::None, whole(5)).unwrap(), [1.0, 2.0, 3.0]);
        assert!(pool(&one, Pooling::Mean, whole(5)).is_err());
        assert!(pool(&array(&[], &[1.0]), Pooling::None, whole(1)).is_err());
        let nan = array(&[2, 1], &[f32::NAN, 1.0]);
        assert!(pool(&nan, Pooling::Max, whole(2)).unwrap()[0].is_nan());
    }

    proptest! {
        /// Each against the sentence that defines it: with a mask, as sentence-transformers has it.
        #[test]
        fn poolings_are_what_they_are_called(
            (tokens, skipped) in (1usize..20).prop_flat_map(|n| (Just(n), 0..n)),
            seed in prop::collection::vec(-9.0f32..9.0, 60),
        ) {
            let value = |row: usize, column: usize| f64::from(seed[row * 3 + column]);
            let mask = |row: usize| f64::from(u8::from(row >= skipped));
            let kept: f64 = (0..tokens).map(mask).sum();
            let weigh = |row: usize| mask(row) * (row + 1) as f64;
            let weights: f64 = (0..tokens).map(weigh).sum();
            let sum = |column, factor: &dyn Fn(usize) -> f64| -> f64 {
                (0..tokens).map(|row| factor(row) * value(row, column)).sum()
            };
            let rows = array(&[1, tokens, 3], &seed[..tokens * 3]);
            for pooling in Pooling::ALL.into_iter().filter(|pooling| *pooling != Pooling::None) {
                let pooled = pool(&rows, pooling, Measure { tokens, skipped }).unwrap();
                for (column, found) in pooled.iter().enumerate() {
                    let expected = match pooling {
                        Pooling::Mean => sum(column, &mask) / kept,
                        Pooling::MeanSqrtLen => sum(column, &mask) / kept.sqrt(),
                        Pooling::WeightedMean => sum(column, &weigh) / weights,
                        Pooling::Cls => value(skipped, column),
                        Pooling::LastToken => value(tokens - 1, column),
                        _ => (skipped..tokens).map(|row| value(row, column)).fold(f64::MIN, f64::max),
                    };
                    let error = (f64::from(*found) - expected).abs();
                    prop_assert!(error <= 1e-6 * expected.abs().max(1.0), "{pooling:?} {error}");
                }
            }
        }
    }
}

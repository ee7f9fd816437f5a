//! Normal-like random numbers, the same on every machine and fast enough for any disk.

use super::modules::Fill;

/// Generators side by side; a plain loop over them becomes vector instructions.
const LANES: usize = 8;

/// Standard deviation of the sum of four uniform 16-bit numbers, `65536 / sqrt(3)`.
const SUM_DEVIATION: f32 = 37_837.227;

/// Mean of that sum.
const SUM_MEAN: i32 = 2 * 65_535;

/// Fill `bytes` with little-endian float32 numbers that depend on `key` and `fill` alone.
///
/// A number is the sum of four uniform ones, which is normal for all that a product can tell and
/// never further than 3.5 deviations out. Writes 4 bytes a number and reads none.
pub fn fill(bytes: &mut [u8], key: u64, fill: Fill) {
    let mut lanes = Lanes::new(key);
    let scale = fill.deviation / SUM_DEVIATION;
    for chunk in bytes.chunks_mut(4 * LANES) {
        let (a, b) = (lanes.next(), lanes.next());
        let mut block = [[0u8; 4]; LANES];
        for i in 0..LANES {
            let sum = (a[i] & 0xffff) + (a[i] >> 16) + (b[i] & 0xffff) + (b[i] >> 16);
            let value = fill.mean + (sum as i32 - SUM_MEAN) as f32 * scale;
            block[i] = value.to_le_bytes();
        }
        let block = block.as_flattened();
        chunk.copy_from_slice(&block[..chunk.len()]);
    }
}

/// Eight xoshiro128+ generators.
struct Lanes {
    state: [[u32; LANES]; 4],
}

impl Lanes {
    fn new(key: u64) -> Lanes {
        let mut seed = key;
        let mut state = [[0; LANES]; 4];
        for word in state.as_flattened_mut() {
            *word = (split_mix(&mut seed) >> 32) as u32;
        }
        Lanes { state }
    }

    fn next(&mut self) -> [u32; LANES] {
        let [s0, s1, s2, s3] = &mut self.state;
        let mut out = [0; LANES];
        for i in 0..LANES {
            out[i] = s0[i].wrapping_add(s3[i]);
            let shifted = s1[i] << 9;
            s2[i] ^= s0[i];
            s3[i] ^= s1[i];
            s1[i] ^= s2[i];
            s0[i] ^= s3[i];
            s2[i] ^= shifted;
            s3[i] = s3[i].rotate_left(11);
        }
        out
    }
}

/// SplitMix64: turns any seed, 0 included, into well mixed words.
pub fn split_mix(seed: &mut u64) -> u64 {
    *seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *seed;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(count: usize, key: u64, with: Fill) -> Vec<f32> {
        let mut bytes = vec![0; 4 * count];
        fill(&mut bytes, key, with);
        bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
    }

    #[test]
    fn mean_and_deviation_are_as_asked() {
        let with = Fill { mean: 1.0, deviation: 0.02 };
        let values = numbers(1 << 20, 7, with);
        let mean = values.iter().map(|v| f64::from(*v)).sum::<f64>() / values.len() as f64;
        let square = values.iter().map(|v| (f64::from(*v) - mean).powi(2)).sum::<f64>();
        let deviation = (square / values.len() as f64).sqrt();
        assert!((mean - 1.0).abs() < 1e-4, "{mean}");
        assert!((deviation - 0.02).abs() < 1e-4, "{deviation}");
    }

    #[test]
    fn a_key_gives_its_own_numbers_again() {
        let first = numbers(1003, 1, Fill::WEIGHT);
        assert_eq!(first, numbers(1003, 1, Fill::WEIGHT));
        assert_eq!(first[..100], numbers(100, 1, Fill::WEIGHT));
        assert_ne!(first, numbers(1003, 2, Fill::WEIGHT));
    }
}

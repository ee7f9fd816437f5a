//! Chance by number: the draw of a position hangs on the seed and on the position alone.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};

/// A seed that nobody knows before.
pub fn any_seed() -> u64 {
    RandomState::new().build_hasher().finish()
}

/// A number of [0, 1) for one position of one text. So the same seed gives the same text whatever
/// is computed beside it, also where positions are tried more than once.
pub fn draw(seed: u64, position: u64) -> f64 {
    let mixed = mix(mix(seed).wrapping_add(mix(position.wrapping_add(1))));
    // The 53 bits that an f64 has: exact.
    (mixed >> 11) as f64 / (1_u64 << 53) as f64
}

/// SplitMix64's step: each bit of the result hangs on each bit of the number.
fn mix(number: u64) -> u64 {
    let number = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_are_spread_and_repeatable() {
        for seed in [0, 1, 42, u64::MAX] {
            let draws: Vec<f64> = (0..4000).map(|position| draw(seed, position)).collect();
            assert!(draws.iter().all(|draw| (0.0..1.0).contains(draw)));
            for tenth in 0..10 {
                let low = f64::from(tenth) / 10.0;
                let inside = draws.iter().filter(|draw| (low..low + 0.1).contains(*draw)).count();
                assert!((300..500).contains(&inside), "{inside} of 4000 in the tenth {tenth}");
            }
            assert_eq!(draws[7], draw(seed, 7));
        }
        assert_ne!(draw(1, 0), draw(2, 0));
    }
}

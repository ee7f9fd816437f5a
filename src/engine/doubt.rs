//! Whether passes still take what was forecast. Where they do not, the board is no longer the one
//! that was measured: another disk, a slower clock, a neighbour that stays. Pure.

/// How many times its forecast a slow pass takes, and how much longer it is at least: less is a
/// hiccup of the scheduler.
const SLOW_FACTOR: f64 = 2.0;
const SLOW_US: f64 = 20e3;

/// Slow passes in a row after which a profile is not believed; twice as many each time that
/// measuring anew was in vain.
const SLOW_PASSES: u32 = 3;

/// A model's passes against their forecasts.
#[derive(Debug)]
pub(super) struct Doubt {
    slow_passes: u32,
    limit: u32,
}

impl Default for Doubt {
    fn default() -> Doubt {
        Doubt { slow_passes: 0, limit: SLOW_PASSES }
    }
}

impl Doubt {
    /// Notes a pass; whether the profile is not to be believed from now on.
    pub fn note(&mut self, took_us: f64, expected_us: f64) -> bool {
        let is_slow = took_us > SLOW_FACTOR * expected_us && took_us - expected_us > SLOW_US;
        self.slow_passes = if is_slow { self.slow_passes + 1 } else { 0 };
        if self.slow_passes < self.limit {
            return false;
        }
        *self = Doubt { slow_passes: 0, limit: self.limit.saturating_mul(2) };
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn some_slow_passes_in_a_row_are_doubted_and_twice_as_many_the_next_time() {
        let mut doubt = Doubt::default();
        let mut slow = |times: usize| {
            let found: Vec<bool> = (0..times).map(|_| doubt.note(210e3, 100e3)).collect();
            found.iter().position(|doubted| *doubted)
        };
        assert_eq!(slow(4), Some(2));
        // One is left of before.
        assert_eq!(slow(5), Some(4));
        assert_eq!(slow(11), None);
        assert!(!doubt.note(190e3, 100e3), "not twice as long");
        assert!((0..11).all(|_| !doubt.note(210e3, 100e3)), "it begins anew");
        assert!(doubt.note(210e3, 100e3));
        let mut doubt = Doubt::default();
        assert!((0..99).all(|_| !doubt.note(19e3, 0.1e3)), "hiccups");
    }
}

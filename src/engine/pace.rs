//! How much of what many requests bring is computed in one pass: enough that it costs no time to read
//! the tape for it, and no more than others can wait for.

use std::sync::atomic::{AtomicU64, Ordering};

/// Tokens of the first such pass.
const FIRST_TOKENS: u64 = 512;

/// Fewer would not be worth reading the tape for, nor be texts enough for all threads, however slowly
/// they are computed.
const LEAST_TOKENS: u64 = 512;

const MOST_TOKENS: u64 = 16 << 10;

/// What such a pass may take where compute decides: who comes meanwhile waits for its end.
const PASS_US: u64 = 250_000;

/// Of a pass in which bringing the tape in costs more than one in so many, more tokens cost less.
const DEAR_SHARE: u64 = 4;

/// Where it costs less than one in so many, a pass is as long as its compute.
const CHEAP_SHARE: u64 = 8;

/// What passes so far have shown.
#[derive(Debug)]
pub(super) struct Pace(AtomicU64);

impl Default for Pace {
    fn default() -> Pace {
        Pace(AtomicU64::new(FIRST_TOKENS))
    }
}

impl Pace {
    /// Tokens that may share a pass.
    pub fn tokens(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    /// Learns from a pass of so many tokens, for which bringing the tape in cost so much, as time that
    /// compute waited or that loaders took of the processor.
    pub fn learn(&self, tokens: u64, latency_us: u64, loading_us: u64) {
        self.0.store(next(self.tokens(), tokens, latency_us, loading_us), Ordering::Relaxed);
    }
}

/// The pace after a pass, where it was `pace` before. One of few tokens, the last of many or all
/// that memory has room for, says nothing.
fn next(pace: u64, tokens: u64, latency_us: u64, loading_us: u64) -> u64 {
    let is_full = tokens >= pace / 2;
    let fitting = match latency_us {
        _ if !is_full => pace,
        _ if loading_us.saturating_mul(DEAR_SHARE) >= latency_us => 2 * pace,
        _ if loading_us.saturating_mul(CHEAP_SHARE) < latency_us => {
            tokens.saturating_mul(PASS_US) / latency_us
        }
        _ => pace,
    };
    fitting.clamp(pace / 2, 2 * pace).clamp(LEAST_TOKENS, MOST_TOKENS)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the pace comes to, where the tape takes `read_us` to read and a token `token_us` to
    /// compute, both at once.
    fn settled(read_us: u64, token_us: u64) -> u64 {
        let pace = Pace::default();
        for _ in 0..20 {
            let compute_us = pace.tokens() * token_us;
            let latency_us = compute_us.max(read_us);
            pace.learn(pace.tokens(), latency_us, latency_us - compute_us);
        }
        pace.tokens()
    }

    #[test]
    fn a_pass_takes_as_long_as_its_reading_or_as_others_can_wait() {
        // Resident, or read faster than it is computed.
        assert_eq!(settled(0, 250), 1000);
        assert_eq!(settled(20_000, 400), 625);
        // Computed so slowly that others wait longer all the same.
        assert_eq!(settled(0, 100_000), LEAST_TOKENS);
        // A slow disk: most of the tape's time is used, however long that is.
        let tokens = settled(10_000_000, 2_000);
        assert!((3_750..=10_000).contains(&tokens), "{tokens}");
        assert_eq!(settled(60_000_000, 1), MOST_TOKENS);
    }

    #[test]
    fn what_was_not_full_says_nothing() {
        assert_eq!(next(1000, 400, 1, 0), 1000);
        assert_eq!(next(1000, 400, 1_000_000, 900_000), 1000);
        assert_eq!(next(2000, 1200, 1_200_000, 0), 1000);
        assert_eq!(next(1000, 1000, 0, 0), 2000);
    }
}

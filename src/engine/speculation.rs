//! Tokens that are proposed without a second model: what stood behind the same last tokens before.
//! One pass looks at all of them. How many, and whether any, follows from what was accepted and from
//! what passes took. Pure.

use std::time::Duration;

/// Tokens at the end of a text that have to have stood before, at most and at least.
const ALIKE: [usize; 2] = [3, 2];

/// How much the newest figure counts.
const NEWEST: f64 = 0.25;

/// What proposing has to gain to go on, by which measured times may be wrong.
const GAIN: f64 = 1.05;

/// Steps without proposals, after the first time that they did not pay, and at most.
const FIRST_REST: u32 = 16;
const LONGEST_REST: u32 = 256;

/// What followed, the last time before, what `text` ends with: so many tokens at most.
pub fn proposed(text: &[u32], most: usize) -> &[u32] {
    let follows = |alike: usize| {
        let last = &text[text.len().checked_sub(alike)?..];
        let before = &text[..text.len() - 1];
        let at = before.windows(alike).rposition(|tokens| tokens == last)? + alike;
        Some(&text[at..text.len().min(at + most)])
    };
    let found = (ALIKE[1]..=ALIKE[0]).rev().find_map(follows);
    found.unwrap_or_default()
}

/// Whether proposing pays, by what was seen of one text.
pub struct Speculation {
    /// Most tokens of a pass that can be looked at.
    rows: usize,
    /// Time of passes over one token, in microseconds, and of those with proposals.
    one_us: Option<f64>,
    several_us: Option<f64>,
    /// Proposals that a pass found right.
    accepted: f64,
    /// Steps left without proposals, and how many there are the next time that they do not pay.
    rest: u32,
    next_rest: u32,
}

impl Speculation {
    /// For a model of which a pass gives the logits of its last `rows` tokens.
    pub fn new(rows: usize) -> Speculation {
        Speculation {
            rows,
            one_us: None,
            several_us: None,
            accepted: 1.0,
            rest: 0,
            next_rest: FIRST_REST,
        }
    }

    /// How many tokens the next step may propose.
    pub fn most(&self) -> usize {
        match self.one_us {
            Some(_) if self.rest == 0 => {
                // Twice what was right of late: more is seldom right, and fewer never find out.
                let wanted = 2 + (2.0 * self.accepted) as usize;
                wanted.min(self.rows.saturating_sub(1))
            }
            _ => 0,
        }
    }

    /// Notes a step: how many tokens it proposed, how many of them were right, what it took.
    pub fn note(&mut self, proposed: usize, accepted: usize, took: Duration) {
        let took_us = took.as_micros() as f64;
        let mean =
            |mean: Option<f64>| mean.map_or(took_us, |mean| mean + NEWEST * (took_us - mean));
        if proposed == 0 {
            self.one_us = Some(mean(self.one_us));
            self.rest = self.rest.saturating_sub(1);
            return;
        }
        let several_us = mean(self.several_us);
        self.several_us = Some(several_us);
        self.accepted += NEWEST * (accepted as f64 - self.accepted);
        let one_us = self.one_us.unwrap_or(several_us);
        if (1.0 + self.accepted) * one_us >= GAIN * several_us {
            self.next_rest = FIRST_REST;
        } else {
            self.rest = self.next_rest;
            self.next_rest = (2 * self.next_rest).min(LONGEST_REST);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_followed_the_same_tokens_is_proposed() {
        let check = |text: &[u32], most, expected: &[u32]| {
            assert_eq!(proposed(text, most), expected, "{text:?}");
        };
        check(&[], 4, &[]);
        check(&[1, 2], 4, &[]);
        check(&[1, 2, 3, 4, 5, 1, 2], 4, &[3, 4, 5, 1]);
        check(&[1, 2, 3, 4, 5, 1, 2], 2, &[3, 4]);
        check(&[1, 2, 3, 4, 5, 1, 2], 0, &[]);
        // More that is alike is likelier, the last time likelier than one before.
        check(&[9, 1, 2, 7, 1, 2, 8, 9, 1, 2], 1, &[7]);
        check(&[1, 2, 7, 1, 2, 8, 6, 1, 2], 1, &[8]);
        // A loop goes on.
        check(&[5, 5, 5, 5], 3, &[5]);
        check(&[4, 5, 4, 5, 4], 3, &[5, 4]);
    }

    /// Plays steps whose proposals are right as often as said; the time that all take, and how much
    /// they would have taken one by one.
    fn play(accepted: usize, several_us: u64) -> (f64, f64) {
        let mut speculation = Speculation::new(8);
        let (mut took, mut tokens) = (0, 0);
        for _ in 0..2000 {
            let proposed = speculation.most();
            let accepted = accepted.min(proposed);
            let step_us = if proposed == 0 { 1000 } else { several_us };
            speculation.note(proposed, accepted, Duration::from_micros(step_us));
            took += step_us;
            tokens += 1 + accepted;
        }
        (took as f64, 1000.0 * tokens as f64)
    }

    #[test]
    fn it_goes_on_where_it_pays_and_costs_little_where_not() {
        let gain = |accepted, several_us| {
            let (took, plain) = play(accepted, several_us);
            plain / took
        };
        // The disk is the bound.
        assert!(gain(7, 1000) > 7.5, "{}", gain(7, 1000));
        assert!(gain(2, 1000) > 2.9, "{}", gain(2, 1000));
        assert!(gain(0, 1000) >= 1.0);
        // Compute is.
        assert!(gain(7, 3000) > 2.5, "{}", gain(7, 3000));
        assert!(gain(0, 3000) > 0.97, "{}", gain(0, 3000));
        assert!(gain(1, 4000) > 0.97, "{}", gain(1, 4000));
    }
}

//! Tokens by their weights, in order as far as somebody asks: a draw looks at few of a vocabulary.

use std::cmp::Ordering;

/// How many tokens are ranked at first, and how many times as many then.
const RANKED: usize = 64;
const FURTHER: usize = 8;

/// Tokens with their scores, then weights, by id; from the front on they are brought in order, best
/// first, equal ones by id, as far as somebody asks for them. Its memory is kept for the next token.
#[derive(Clone, Debug, Default)]
pub struct Ranking {
    pub list: Vec<(u32, f64)>,
    /// How many are in order.
    pub ranked: usize,
}

impl Ranking {
    /// Takes logits for scores, by id.
    pub fn fill(&mut self, logits: &[f32]) {
        self.ranked = 0;
        self.list.clear();
        self.list.extend((0..).zip(logits.iter().map(|logit| f64::from(*logit))));
    }

    /// Makes scores weights, of which the best is 1; what is never drawn goes.
    pub fn weigh(&mut self, temperature: f64) {
        self.list.retain(|(_, score)| *score > f64::NEG_INFINITY);
        let most = self.list.iter().map(|(_, score)| *score).fold(f64::NEG_INFINITY, f64::max);
        for (_, score) in &mut self.list {
            *score = ((*score - most) / temperature).exp();
        }
    }

    /// Brings the best `count` in order.
    pub fn reach(&mut self, count: usize) {
        if count <= self.ranked {
            return;
        }
        let further = (self.ranked * FURTHER).clamp(RANKED, self.list.len().max(RANKED));
        let all = count.max(further).min(self.list.len());
        let rest = &mut self.list[self.ranked..];
        let wanted = all - self.ranked;
        if 0 < wanted && wanted < rest.len() {
            rest.select_nth_unstable_by(wanted - 1, better);
        }
        rest[..wanted].sort_unstable_by(better);
        self.ranked = all;
    }

    /// The weight of the token that stands there.
    pub fn weight(&mut self, at: usize) -> f64 {
        self.reach(at + 1);
        self.list[at].1
    }

    /// The token that `left` of the whole comes to, from the best one on.
    pub fn at(&mut self, mut left: f64, Left { count, whole }: Left) -> u32 {
        let mut at = 0;
        loop {
            left -= self.weight(at) / whole;
            // Rounding may leave a little behind the last one.
            if left < 0.0 || at + 1 >= count {
                return self.list[at].0;
            }
            at += 1;
        }
    }
}

/// How many of the best tokens may be drawn, and what they weigh together.
pub struct Left {
    pub count: usize,
    pub whole: f64,
}

/// What tokens weigh together, in their order.
pub fn sum(weights: &[(u32, f64)]) -> f64 {
    weights.iter().map(|(_, weight)| weight).sum()
}

/// The order of tokens: best first, equal ones by id.
pub fn better(a: &(u32, f64), b: &(u32, f64)) -> Ordering {
    b.1.total_cmp(&a.1).then(a.0.cmp(&b.0))
}

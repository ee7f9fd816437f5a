//! Logits become a token: bias, penalties, temperature, top_k, top_p, min_p, in this order.

use super::random;
use crate::store::SamplingDefaults;
use std::collections::{HashMap, HashSet};
use std::ops::RangeInclusive;
use thiserror::Error;

/// Temperatures below it are taken for 0: the best token.
const LEAST_TEMPERATURE: f64 = 1e-5;

/// How tokens are drawn.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampling {
    /// What logits are divided by; 0 takes the best token.
    pub temperature: f64,
    /// How many of the best tokens are left; 0 and -1 leave all.
    pub top_k: i64,
    /// The fewest best tokens are left whose probabilities reach it.
    pub top_p: f64,
    /// Tokens are left whose probability is at least so much of the best one's.
    pub min_p: f64,
    /// What logits of tokens in prompt and output are divided by, or multiplied where negative.
    pub repetition_penalty: f64,
    /// Taken off for each time that a token is in the output.
    pub frequency_penalty: f64,
    /// Taken off once for tokens in the output.
    pub presence_penalty: f64,
    /// Added to the logits of tokens.
    pub logit_bias: Vec<(u32, f64)>,
}

impl Default for Sampling {
    fn default() -> Sampling {
        Sampling {
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            frequency_penalty: 0.0,
            presence_penalty: 0.0,
            logit_bias: vec![],
        }
    }
}

/// A parameter that is out of its range.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{param} {what}")]
pub struct WrongParameter {
    pub param: &'static str,
    /// What it is and what it may be.
    pub what: String,
}

/// Why no token can be drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum SampleError {
    #[error("the model computed logits that are no numbers")]
    NoNumbers,
    #[error("no token is left to be drawn: every logit is minus infinity")]
    NoToken,
}

impl Sampling {
    /// As the makers would have it.
    pub fn of(defaults: &SamplingDefaults) -> Sampling {
        let plain = Sampling::default();
        Sampling {
            temperature: defaults.temperature.unwrap_or(plain.temperature),
            top_k: defaults.top_k.unwrap_or(plain.top_k),
            top_p: defaults.top_p.unwrap_or(plain.top_p),
            min_p: defaults.min_p.unwrap_or(plain.min_p),
            repetition_penalty: defaults.repetition_penalty.unwrap_or(plain.repetition_penalty),
            ..plain
        }
    }

    /// Refuses what is out of range.
    ///
    /// # Errors
    /// The first such parameter.
    pub fn check(&self) -> Result<(), WrongParameter> {
        let wrong = |param, what: String| Err(WrongParameter { param, what });
        let within = |param, value: f64, range: RangeInclusive<f64>| match range.contains(&value) {
            true => Ok(()),
            false => {
                wrong(param, format!("is {value}: it may be {} to {}", range.start(), range.end()))
            }
        };
        if !self.temperature.is_finite() || self.temperature < 0.0 {
            return wrong("temperature", format!("is {}: it may be 0 to 2", self.temperature));
        }
        if self.top_k < -1 {
            return wrong("top_k", format!("is {}: it may be 1 or more, or 0 for all", self.top_k));
        }
        within("top_p", self.top_p, 0.0..=1.0)?;
        within("min_p", self.min_p, 0.0..=1.0)?;
        within("frequency_penalty", self.frequency_penalty, -2.0..=2.0)?;
        within("presence_penalty", self.presence_penalty, -2.0..=2.0)?;
        if !self.repetition_penalty.is_finite() || self.repetition_penalty <= 0.0 {
            let what = format!("is {}: it must be above 0", self.repetition_penalty);
            return wrong("repetition_penalty", what);
        }
        Ok(())
    }

    /// One entry of a request's `logit_bias`, for a model of so many tokens.
    ///
    /// # Errors
    /// What makes it none.
    pub fn bias(key: &str, value: f64, vocabulary: usize) -> Result<(u32, f64), WrongParameter> {
        let wrong = |what: String| Err(WrongParameter { param: "logit_bias", what });
        let id = key.parse::<u32>().ok().filter(|id| (*id as usize) < vocabulary);
        let Some(id) = id else {
            let key: String = key.chars().take(40).collect();
            return wrong(format!("has {key:?}, which is no token: ids are below {vocabulary}"));
        };
        match (-100.0..=100.0).contains(&value) {
            true => Ok((id, value)),
            false => wrong(format!("has {value} for token {id}: it may be -100 to 100")),
        }
    }

    fn is_greedy(&self) -> bool {
        self.temperature < LEAST_TEMPERATURE
    }

    /// The tokens that may be drawn with their probabilities, best first, equal ones by id.
    ///
    /// # Errors
    /// Logits that leave none.
    pub fn candidates(&self, logits: &[f32], said: &Said) -> Result<Vec<(u32, f64)>, SampleError> {
        let mut scores = self.scores(logits, said)?;
        if self.is_greedy() {
            return Ok(best(&scores).map(|id| (id, 1.0)).into_iter().collect());
        }
        scores.retain(|(_, score)| *score > f64::NEG_INFINITY);
        scores.sort_unstable_by(better);
        Ok(self.cut(scores))
    }

    /// Logits with biases and penalties.
    fn scores(&self, logits: &[f32], said: &Said) -> Result<Vec<(u32, f64)>, SampleError> {
        if logits.iter().any(|logit| logit.is_nan() || *logit == f32::INFINITY) {
            return Err(SampleError::NoNumbers);
        }
        if logits.iter().all(|logit| *logit == f32::NEG_INFINITY) {
            return Err(SampleError::NoToken);
        }
        let mut scores: Vec<(u32, f64)> =
            (0..).zip(logits.iter().map(|logit| f64::from(*logit))).collect();
        let mut change = |id: u32, with: &dyn Fn(f64) -> f64| {
            if let Some((_, score)) = scores.get_mut(id as usize) {
                *score = with(*score);
            }
        };
        for (id, bias) in &self.logit_bias {
            change(*id, &|score| score + bias);
        }
        let penalty = self.repetition_penalty;
        if penalty != 1.0 {
            let output = said.output.keys().filter(|id| !said.prompt.contains(id));
            for id in said.prompt.iter().chain(output) {
                change(*id, &|score| if score > 0.0 { score / penalty } else { score * penalty });
            }
        }
        if self.frequency_penalty != 0.0 || self.presence_penalty != 0.0 {
            for (id, count) in &said.output {
                let off = f64::from(*count) * self.frequency_penalty + self.presence_penalty;
                change(*id, &|score| score - off);
            }
        }
        Ok(scores)
    }

    /// Of scores, best first, the tokens that are left with their probabilities.
    fn cut(&self, mut scores: Vec<(u32, f64)>) -> Vec<(u32, f64)> {
        let most = scores.first().map_or(0.0, |(_, score)| *score);
        for (_, score) in &mut scores {
            *score = ((*score - most) / self.temperature).exp();
        }
        if let Ok(count @ 1..) = usize::try_from(self.top_k) {
            scores.truncate(count);
        }
        if self.top_p < 1.0 {
            let enough = self.top_p * sum(&scores);
            let mut reached = 0.0;
            let within = scores.iter().take_while(|(_, weight)| {
                let goes_on = reached < enough;
                reached += weight;
                goes_on
            });
            let count = within.count().max(1);
            scores.truncate(count);
        }
        if self.min_p > 0.0 {
            // The best one weighs 1.
            scores.retain(|(_, weight)| *weight >= self.min_p);
        }
        let whole = sum(&scores);
        scores.iter_mut().for_each(|(_, weight)| *weight /= whole);
        scores
    }
}

fn sum(weights: &[(u32, f64)]) -> f64 {
    weights.iter().map(|(_, weight)| weight).sum()
}

fn better(a: &(u32, f64), b: &(u32, f64)) -> std::cmp::Ordering {
    b.1.total_cmp(&a.1).then(a.0.cmp(&b.0))
}

fn best(scores: &[(u32, f64)]) -> Option<u32> {
    scores.iter().min_by(|a, b| better(a, b)).map(|(id, _)| *id)
}

/// The `count` likeliest tokens by the model's own logits, with the logarithms of their
/// probabilities; `id` is one that is wanted whether it is among them or not.
pub fn logprobs(logits: &[f32], id: Option<u32>, count: usize) -> (Option<f64>, Vec<(u32, f64)>) {
    let wide = |logit: &f32| f64::from(*logit);
    let most = logits.iter().map(wide).fold(f64::NEG_INFINITY, f64::max);
    let whole = logits.iter().map(|logit| (wide(logit) - most).exp()).sum::<f64>().ln();
    let of = |logit: &f32| wide(logit) - most - whole;
    let mut all: Vec<(u32, f64)> = (0..).zip(logits.iter().map(of)).collect();
    let wanted = id.and_then(|id| all.get(id as usize)).map(|(_, logprob)| *logprob);
    let count = count.min(all.len());
    if count > 0 && count < all.len() {
        all.select_nth_unstable_by(count - 1, better);
    }
    all.truncate(count);
    all.sort_unstable_by(better);
    (wanted, all)
}

/// The tokens that a text has so far.
#[derive(Clone, Debug, Default)]
pub struct Said {
    prompt: HashSet<u32>,
    /// How often each is in the output.
    output: HashMap<u32, u32>,
    /// Tokens of the output.
    count: u64,
}

impl Said {
    /// Nothing yet after a prompt.
    pub fn after(prompt: &[u32]) -> Said {
        Said { prompt: prompt.iter().copied().collect(), ..Said::default() }
    }

    /// Adds a token to the output.
    pub fn push(&mut self, id: u32) {
        *self.output.entry(id).or_default() += 1;
        self.count += 1;
    }

    /// Tokens of the output.
    pub fn count(&self) -> u64 {
        self.count
    }
}

/// Draws one token after the other.
#[derive(Clone, Debug)]
pub struct Sampler {
    sampling: Sampling,
    seed: u64,
    said: Said,
}

impl Sampler {
    /// Draws after `prompt`; without a seed nobody knows what.
    pub fn new(sampling: Sampling, seed: Option<u64>, prompt: &[u32]) -> Sampler {
        Sampler { sampling, seed: seed.unwrap_or_else(random::any_seed), said: Said::after(prompt) }
    }

    /// The next token of the text.
    ///
    /// # Errors
    /// Logits that leave none.
    pub fn next(&mut self, logits: &[f32]) -> Result<u32, SampleError> {
        let id = if self.sampling.is_greedy() {
            let scores = self.sampling.scores(logits, &self.said)?;
            best(&scores).ok_or(SampleError::NoToken)?
        } else {
            let candidates = self.sampling.candidates(logits, &self.said)?;
            let mut left = random::draw(self.seed, self.said.count());
            let drawn = candidates.iter().find(|(_, probability)| {
                left -= probability;
                left < 0.0
            });
            // Rounding may leave a little behind the last one.
            drawn.or(candidates.last()).map(|(id, _)| *id).ok_or(SampleError::NoToken)?
        };
        self.said.push(id);
        Ok(id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_drawn_as_often_as_they_are_likely() {
        let logits = [2.0, 1.0, 0.0, f32::NEG_INFINITY];
        let sampling = Sampling { min_p: 0.2, ..Sampling::default() };
        let right = sampling.candidates(&logits, &Said::default()).unwrap();
        let ids: Vec<u32> = right.iter().map(|(id, _)| *id).collect();
        assert_eq!(ids, [0, 1]);
        let mut sampler = Sampler::new(sampling.clone(), Some(7), &[]);
        let drawn: Vec<u32> = (0..4000).map(|_| sampler.next(&logits).unwrap()).collect();
        for (id, probability) in right {
            let count = drawn.iter().filter(|drawn| **drawn == id).count();
            assert!((count as f64 / 4000.0 - probability).abs() < 0.03, "token {id}");
        }
        let again = |seed| {
            let mut sampler = Sampler::new(sampling.clone(), Some(seed), &[]);
            (0..100).map(|_| sampler.next(&logits).unwrap()).collect::<Vec<u32>>()
        };
        assert_eq!(again(7), drawn[..100]);
        assert_ne!(again(8), drawn[..100]);
    }
}

//! Logits become a token: bias, penalties, temperature, top_k, top_p, min_p, in this order.

use super::random;
use super::ranking::{Left, Ranking, better, sum};
use crate::store::SamplingDefaults;
use std::collections::{HashMap, HashSet};
use std::ops::RangeInclusive;
use thiserror::Error;

/// Temperatures below it are taken for 0: the best token.
const LEAST_TEMPERATURE: f64 = 1e-5;

/// Repetition penalties below it are taken for it, and those that many times 1 the other way.
const LEAST_PENALTY: f64 = 1e-250;

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
        // One name an id: of "65" and "065" neither should count twice.
        let named = key.parse::<u32>().ok().filter(|id| id.to_string() == key);
        let id = named.filter(|id| (*id as usize) < vocabulary);
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

    fn is_plain(&self) -> bool {
        let is_penalized = self.frequency_penalty != 0.0 || self.presence_penalty != 0.0;
        self.logit_bias.is_empty() && self.repetition_penalty == 1.0 && !is_penalized
    }

    /// The tokens that may be drawn with their probabilities, best first, equal ones by id.
    ///
    /// # Errors
    /// Logits that leave none.
    pub fn candidates(&self, logits: &[f32], said: &Said) -> Result<Vec<(u32, f64)>, SampleError> {
        let mut ranking = Ranking::default();
        if self.is_greedy() {
            return Ok(vec![(self.best(logits, said, &mut ranking)?, 1.0)]);
        }
        let Left { count, whole } = self.cut(logits, said, &mut ranking)?;
        ranking.reach(count);
        let left = ranking.list[..count].iter();
        Ok(left.map(|(id, weight)| (*id, weight / whole)).collect())
    }

    /// The token of the greatest score, of equal ones the first.
    fn best(&self, logits: &[f32], said: &Said, ranking: &mut Ranking) -> Result<u32, SampleError> {
        check(logits)?;
        let best = if self.is_plain() {
            let scores = (0..).zip(logits.iter().map(|logit| f64::from(*logit)));
            scores.min_by(better)
        } else {
            self.score(logits, said, ranking);
            ranking.list.iter().copied().min_by(better)
        };
        best.map(|(id, _)| id).ok_or(SampleError::NoToken)
    }

    /// Logits with biases and penalties, by id.
    fn score(&self, logits: &[f32], said: &Said, ranking: &mut Ranking) {
        ranking.fill(logits);
        let scores = &mut ranking.list;
        let mut change = |id: u32, with: &dyn Fn(f64) -> f64| {
            if let Some((_, score)) = scores.get_mut(id as usize) {
                *score = with(*score);
            }
        };
        for (id, bias) in &self.logit_bias {
            change(*id, &|score| score + bias);
        }
        // Within these bounds no logit, a number of 32 bits, becomes infinite.
        let penalty = self.repetition_penalty.clamp(LEAST_PENALTY, LEAST_PENALTY.recip());
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
    }

    /// Ranks the tokens by their weights, as far as it takes to know which are left. Sums go by id
    /// where nothing has been ranked, else from the best one on.
    fn cut(&self, logits: &[f32], said: &Said, ranking: &mut Ranking) -> Result<Left, SampleError> {
        check(logits)?;
        self.score(logits, said, ranking);
        ranking.weigh(self.temperature);
        let mut count = ranking.list.len();
        if let Ok(most @ 1..) = usize::try_from(self.top_k)
            && most < count
        {
            ranking.reach(most);
            count = most;
        }
        if self.top_p < 1.0 {
            let enough = self.top_p * sum(&ranking.list[..count]);
            let (mut reached, mut within) = (0.0, 0);
            while within < count && reached < enough {
                reached += ranking.weight(within);
                within += 1;
            }
            ranking.reach(1);
            count = within.max(1).min(count);
        }
        if self.min_p > 0.0 {
            // The best one weighs 1.
            match ranking.ranked {
                0 => {
                    ranking.list.retain(|(_, weight)| *weight >= self.min_p);
                    count = ranking.list.len();
                }
                _ => {
                    ranking.reach(count);
                    let left = &ranking.list[..count];
                    count = left.partition_point(|(_, weight)| *weight >= self.min_p);
                }
            }
        }
        match count {
            0 => Err(SampleError::NoToken),
            _ => Ok(Left { count, whole: sum(&ranking.list[..count]) }),
        }
    }
}

fn check(logits: &[f32]) -> Result<(), SampleError> {
    if logits.iter().any(|logit| logit.is_nan() || *logit == f32::INFINITY) {
        return Err(SampleError::NoNumbers);
    }
    match logits.iter().all(|logit| *logit == f32::NEG_INFINITY) {
        true => Err(SampleError::NoToken),
        false => Ok(()),
    }
}

/// The `count` likeliest tokens by the model's own logits, with the logarithms of their
/// probabilities; `id` is one that is wanted whether it is among them or not.
pub fn logprobs(logits: &[f32], id: Option<u32>, count: usize) -> (Option<f64>, Vec<(u32, f64)>) {
    let wide = |logit: &f32| f64::from(*logit);
    let most = logits.iter().map(wide).fold(f64::NEG_INFINITY, f64::max);
    let whole = logits.iter().map(|logit| (wide(logit) - most).exp()).sum::<f64>().ln();
    let of = |logit: &f32| wide(logit) - most - whole;
    let wanted = id.and_then(|id| logits.get(id as usize)).map(of);
    let count = count.min(logits.len());
    let mut top: Vec<(u32, f64)> = Vec::with_capacity(count + 1);
    for told in (0..).zip(logits.iter().map(of)) {
        let is_among =
            top.len() < count || top.last().is_some_and(|last| better(&told, last).is_lt());
        if is_among && count > 0 {
            let at = top.partition_point(|before| better(before, &told).is_lt());
            top.insert(at, told);
            top.truncate(count);
        }
    }
    (wanted, top)
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
    ranking: Ranking,
}

impl Sampler {
    /// Draws after `prompt`; without a seed nobody knows what.
    pub fn new(sampling: Sampling, seed: Option<u64>, prompt: &[u32]) -> Sampler {
        let seed = seed.unwrap_or_else(random::any_seed);
        Sampler { sampling, seed, said: Said::after(prompt), ranking: Ranking::default() }
    }

    /// The next token of the text.
    ///
    /// # Errors
    /// Logits that leave none.
    pub fn next(&mut self, logits: &[f32]) -> Result<u32, SampleError> {
        let Sampler { sampling, said, ranking, .. } = self;
        let id = if sampling.is_greedy() {
            sampling.best(logits, said, ranking)?
        } else {
            let left = sampling.cut(logits, said, ranking)?;
            ranking.at(random::draw(self.seed, said.count()), left)
        };
        self.said.push(id);
        Ok(id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// What is left, by sorting all of them.
    fn sorted(sampling: &Sampling, logits: &[f32], said: &Said) -> Vec<(u32, f64)> {
        let mut ranking = Ranking::default();
        sampling.score(logits, said, &mut ranking);
        ranking.weigh(sampling.temperature);
        let mut list = ranking.list;
        let by_id = sum(&list);
        list.sort_by(better);
        let all = list.len();
        let is_cut = usize::try_from(sampling.top_k).is_ok_and(|most| (1..all).contains(&most));
        if is_cut {
            list.truncate(sampling.top_k as usize);
        }
        let whole = if is_cut { sum(&list) } else { by_id };
        let mut is_ranked = is_cut;
        if sampling.top_p < 1.0 {
            let mut reached = 0.0;
            let within = list.iter().take_while(|(_, weight)| {
                let goes_on = reached < sampling.top_p * whole;
                reached += weight;
                goes_on
            });
            let count = within.count().max(1);
            list.truncate(count);
            is_ranked = true;
        }
        if sampling.min_p > 0.0 {
            list.retain(|(_, weight)| *weight >= sampling.min_p);
        }
        let mut summed = list.clone();
        if !is_ranked {
            summed.sort_by_key(|(id, _)| *id);
        }
        let whole = sum(&summed);
        list.iter().map(|(id, weight)| (*id, weight / whole)).collect()
    }

    /// Logits of which many are equal, so that ids decide, too.
    fn logits() -> impl Strategy<Value = Vec<f32>> {
        let one = prop_oneof![
            4 => -8.0_f32..8.0,
            4 => (-4_i8..4).prop_map(f32::from),
            1 => Just(f32::NEG_INFINITY),
            1 => Just(-0.0),
        ];
        let all = prop::collection::vec(one, 1..700);
        all.prop_filter("some are drawn", |all| all.iter().any(|logit| *logit > -100.0))
    }

    proptest! {
        /// Ranking only as many as a draw needs leaves each token and each bit of its probability
        /// what they are where all are sorted.
        #[test]
        fn few_are_ranked_as_all_are_sorted(
            logits in logits(),
            temperature in prop_oneof![Just(0.0), Just(1.0), 0.01..4.0_f64],
            top_k in prop_oneof![Just(0_i64), -1..900_i64],
            top_p in prop_oneof![Just(1.0), Just(0.0), 0.0..1.0_f64],
            min_p in prop_oneof![Just(0.0), 0.0..1.0_f64],
            bias in prop::collection::vec((0..700_u32, -9.0..9.0_f64), 0..3),
            penalty in prop_oneof![Just(1.0), 0.5..2.0_f64],
            seed: u64,
        ) {
            let sampling = Sampling {
                temperature, top_k, top_p, min_p, logit_bias: bias, repetition_penalty: penalty,
                frequency_penalty: penalty - 1.0, presence_penalty: 0.0,
            };
            let mut sampler = Sampler::new(sampling.clone(), Some(seed), &[1, 5]);
            for position in 0..20 {
                let said = sampler.said.clone();
                let id = sampler.next(&logits).unwrap();
                if sampling.is_greedy() {
                    let mut ranking = Ranking::default();
                    sampling.score(&logits, &said, &mut ranking);
                    ranking.list.sort_by(better);
                    prop_assert_eq!(id, ranking.list[0].0);
                    continue;
                }
                let right = sorted(&sampling, &logits, &said);
                prop_assert_eq!(&sampling.candidates(&logits, &said).unwrap(), &right);
                let mut left = random::draw(seed, position);
                let drawn = right.iter().find(|(_, probability)| {
                    left -= probability;
                    left < 0.0
                });
                prop_assert_eq!(id, drawn.or(right.last()).unwrap().0);
            }
        }

        #[test]
        fn the_likeliest_are_those_of_all_sorted(logits in logits(), count in 0..30_usize) {
            let (told, top) = logprobs(&logits, Some(0), count);
            let (_, mut all) = logprobs(&logits, None, logits.len());
            let first = all.iter().find(|(id, _)| *id == 0).map(|(_, logprob)| *logprob);
            prop_assert_eq!(told, first);
            all.sort_by(better);
            all.truncate(count);
            prop_assert_eq!(top, all);
        }
    }

    /// A penalty of 1e-308 made logits infinite, and their differences no numbers.
    #[test]
    fn any_penalty_leaves_numbers() {
        let logits = [3.0, f32::MAX, 5.0, -2.0, f32::MIN, f32::NEG_INFINITY];
        for (temperature, min_p) in [(1.0, 0.0), (2.0, 0.5), (0.0, 0.0)] {
            let best = |repetition_penalty| {
                let plain = Sampling::default();
                let sampling = Sampling { repetition_penalty, temperature, min_p, ..plain };
                let all = sampling.candidates(&logits, &Said::after(&[0, 1, 2, 3, 4, 5])).unwrap();
                assert!(all.iter().all(|(_, share)| (0.0..=1.0).contains(share)), "{all:?}");
                all[0].0
            };
            assert_eq!([5e-324, 1e-308, 1e-10].map(best), [1; 3]);
            assert!([1e10, f64::MAX].map(best).iter().all(|id| *id < 3));
        }
    }

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

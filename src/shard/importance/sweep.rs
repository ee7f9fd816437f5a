//! Passes that differ from one in one tensor each. What comes before the tensor is computed once.

use super::judge::{Answer, Judge};
use super::unfinished::{Off, Unfinished};
use crate::shard::error::{ShardError, unfit};
use crate::shard::player::{Choice, Player};
use crate::shard::watch::Watch;
use crate::wire::Array;
use std::ops::Range;

/// How one answer is held against the best one: its distance or its agreement, times its weight.
pub type Compare = fn(&Judge, &Answer, &Answer) -> f64;

/// Plays requests with one tensor at a time in another variant.
pub struct Sweep<'a> {
    pub player: &'a Player,
    pub judge: &'a Judge,
    pub requests: &'a [Vec<Array>],
    /// All tensors but one.
    pub base: &'a Choice,
    /// That one.
    pub variant: &'a str,
    /// Whose answers are right.
    pub best: &'a Choice,
    pub compare: Compare,
    pub watch: &'a dyn Watch,
}

impl Sweep<'_> {
    /// For each of `tensors`, in the order of a pass, what comes of it alone in the variant.
    /// `unfinished` has what was measured before, and gets the rest.
    ///
    /// # Errors
    /// What cannot be read or computed, by the tensor; [`ShardError::Interrupted`].
    pub fn run(
        &self,
        tensors: &[usize],
        unfinished: &mut Unfinished,
    ) -> Result<Vec<Off>, ShardError> {
        let groups = self.player.groups(self.requests);
        let bytes = |tensors: &[usize]| tensors.iter().map(|t| self.bytes_from(*t)).sum::<u64>();
        self.watch.expect(groups.len() as u64 * bytes(tensors));
        for (number, group) in groups.iter().enumerate() {
            let first = number * tensors.len();
            let done = unfinished.measured().len().saturating_sub(first).min(tensors.len());
            self.watch.advance(bytes(&tensors[..done]));
            let swept = self.sweep_group(group.clone(), &tensors[done..], unfinished);
            swept.or_else(|error| unfinished.write().and(Err(error)))?;
        }
        let mut all = vec![Off::default(); tensors.len()];
        for (index, off) in unfinished.measured().iter().enumerate() {
            let sum = &mut all[index % tensors.len()];
            *sum = sum.plus(*off);
        }
        Ok(all)
    }

    /// For each of some variants what comes of all tensors in it.
    ///
    /// # Errors
    /// What cannot be read or computed, by the variant; [`ShardError::Interrupted`].
    pub fn together(&self, variants: &[&str]) -> Result<Vec<Off>, ShardError> {
        let Sweep { player, watch, .. } = *self;
        let count = player.tensors().len();
        let mut all = vec![Off::default(); variants.len()];
        for group in player.groups(self.requests) {
            let requests = &self.requests[group];
            let best = self.best_answers(requests)?;
            for (sum, variant) in all.iter_mut().zip(variants) {
                watch.layer(&format!("all in {variant}"));
                let choice = player.choose(&vec![variant; count])?;
                let answers = self.answers(player.pass(&choice, requests, watch)?, requests);
                let answers = answers.map_err(|what| unfit!("with all in {variant}, {what}"))?;
                *sum = sum.plus(self.off(&best, &answers));
            }
        }
        Ok(all)
    }

    fn sweep_group(
        &self,
        group: Range<usize>,
        tensors: &[usize],
        unfinished: &mut Unfinished,
    ) -> Result<(), ShardError> {
        if tensors.is_empty() {
            return Ok(());
        }
        let Sweep { player, base, variant, watch, .. } = *self;
        let requests = &self.requests[group];
        let best = self.best_answers(requests)?;
        let mut walk = player.begin(requests)?;
        let manifest = &player.dir().manifest;
        for tensor in tensors {
            let streamed = &player.tensors()[*tensor];
            watch.layer(&manifest.layers[streamed.layer].name);
            let choice = player.with(base, *tensor, variant)?;
            if let Some(step) = player.step_of(*tensor) {
                player.go(&mut walk, step, base, watch)?;
            }
            let outputs = player.finish(walk.fork(), &choice, watch)?;
            let name = &manifest.weights[streamed.weight].name;
            let answers = self.answers(outputs, requests);
            let answers = answers.map_err(|what| unfit!("with \"{name}\" in {variant}, {what}"))?;
            unfinished.add(self.off(&best, &answers))?;
            watch.advance(self.bytes_from(*tensor));
        }
        Ok(())
    }

    fn best_answers(&self, requests: &[Vec<Array>]) -> Result<Vec<Answer>, ShardError> {
        let best = self.answers(self.player.pass(self.best, requests, self.watch)?, requests);
        best.map_err(|what| unfit!("in its best variant {what}"))
    }

    /// How far answers are off, or agree.
    fn off(&self, best: &[Answer], others: &[Answer]) -> Off {
        let pairs = best.iter().zip(others);
        Off {
            sum: pairs.map(|(best, other)| (self.compare)(self.judge, best, other)).sum(),
            weight: best.iter().map(Answer::weight).sum(),
        }
    }

    /// What is compared of the outputs of some requests.
    fn answers(
        &self,
        outputs: Vec<Vec<Array>>,
        requests: &[Vec<Array>],
    ) -> Result<Vec<Answer>, String> {
        let pairs = requests.iter().zip(&outputs);
        pairs.map(|(inputs, outputs)| self.judge.answer(inputs, outputs)).collect()
    }

    /// Bytes of the tensors that are read when one is changed: of it and all behind it.
    fn bytes_from(&self, tensor: usize) -> u64 {
        let step = self.player.step_of(tensor);
        let behind = (0..self.player.tensors().len()).filter(|t| self.player.step_of(*t) >= step);
        behind.map(|other| self.player.tensor_bytes(self.base, other)).sum()
    }
}

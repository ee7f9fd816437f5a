//! How close answers by any choice of variants come to the best ones.

use super::judge::{Answer, Judge};
use super::precision_of;
use crate::shard::error::{ShardError, unfit};
use crate::shard::inputs::Inputs;
use crate::shard::player::{Choice, Player};
use crate::shard::watch::Watch;
use crate::store::Precision;

/// A version, inputs, and the answers to them in the best variants.
pub struct Accuracy {
    player: Player,
    judge: Judge,
    inputs: Inputs,
    best: Vec<Answer>,
    precision: Precision,
}

impl Accuracy {
    /// Plays the best variants.
    ///
    /// # Errors
    /// A version of one precision, or of which importance was not measured; inputs that do not fit
    /// it, or whose answers say nothing; what cannot be read.
    pub fn new(player: Player, inputs: Inputs, watch: &dyn Watch) -> Result<Accuracy, ShardError> {
        let manifest = &player.dir().manifest;
        inputs.check(&manifest.inputs)?;
        let precision = precision_of(&player)?;
        let judge = Judge::of(manifest, &player.table_rows())?;
        let mut accuracy = Accuracy { player, judge, inputs, best: vec![], precision };
        accuracy.best = accuracy.answers(&accuracy.player.best()?, watch)?;
        Ok(accuracy)
    }

    /// What is compared, in words.
    pub fn told(&self) -> String {
        format!("{}: {}", self.inputs.source, self.judge.told())
    }

    /// How close answers by a choice come: 1 where they are the best ones. Of language models one
    /// less the divergence of probabilities, and not below 0.
    ///
    /// # Errors
    /// A variant that a tensor lacks, what cannot be read; [`ShardError::Interrupted`].
    pub fn measure(&self, variants: &[String], watch: &dyn Watch) -> Result<f64, ShardError> {
        let answers = self.answers(&self.player.choose(variants)?, watch)?;
        let (mut off, mut weight) = (0.0, 0.0);
        for (best, answer) in self.best.iter().zip(&answers) {
            off += self.judge.divergence(best, answer);
            weight += best.weight();
        }
        Ok((1.0 - off / weight).max(0.0))
    }

    /// The same as it is expected by the importance of tensors, and the bits that a weight takes in
    /// the mean.
    ///
    /// # Errors
    /// A variant that a tensor lacks, or of which it was not measured what it does.
    pub fn expect(&self, variants: &[String]) -> Result<(f64, f64), ShardError> {
        let choice = self.player.choose(variants)?;
        let probe = self.precision.probe.as_ref();
        let probe = probe.ok_or_else(|| unfit!("the importance of tensors was not measured"))?;
        let (mut off, mut elements) = (0.0, 0);
        for (tensor, variant) in self.precision.tensors.iter().zip(variants) {
            off += tensor.divergence_in(variant, probe).ok_or_else(|| {
                unfit!("it was not measured what {variant} does to \"{}\"", tensor.weight)
            })?;
            elements += tensor.elements;
        }
        let bits = 8.0 * self.player.stored_bytes(&choice) as f64 / elements.max(1) as f64;
        Ok(((1.0 - off).max(0.0), bits))
    }

    fn answers(&self, choice: &Choice, watch: &dyn Watch) -> Result<Vec<Answer>, ShardError> {
        let requests = &self.inputs.requests;
        let mut answers = Vec::with_capacity(requests.len());
        for group in self.player.groups(requests) {
            let outputs = self.player.pass(choice, &requests[group.clone()], watch)?;
            for (inputs, outputs) in requests[group].iter().zip(&outputs) {
                answers.push(self.judge.answer(inputs, outputs).map_err(|what| unfit!("{what}"))?);
            }
        }
        Ok(answers)
    }
}

//! The precisions in which a model's tensors lie on the disk, and what a choice among them comes to.

use super::profile::BlockRun;
use std::collections::HashSet;
use thiserror::Error;
use xxhash_rust::xxh3::Xxh3;

/// What may be chosen for each tensor of a model, and how a pass consumes them.
///
/// A *choice* is the index of one rung for each tensor, in the order of `tensors`.
#[derive(Clone, Debug, PartialEq)]
pub struct Ladder {
    /// In the order of the choice.
    pub tensors: Vec<LadderTensor>,
    /// By the profile's layers, what a pass consumes in its order: a tensor as often as it is used.
    pub tape: Vec<Vec<Part>>,
}

/// A tensor that is streamed by blocks, in several precisions.
#[derive(Clone, Debug, PartialEq)]
pub struct LadderTensor {
    /// No other tensor has it.
    pub name: String,
    /// The first node that uses it, for those who read; empty where that is not known.
    pub node: String,
    /// Index of its layer in the manifest.
    pub layer: usize,
    pub elements: u64,
    /// From the best to the least; one at least.
    pub rungs: Vec<Rung>,
}

/// A tensor in one precision.
#[derive(Clone, Debug, PartialEq)]
pub struct Rung {
    pub variant: String,
    /// How its weights are stored, by the codec's name, as in the profile's rates.
    pub codec: String,
    /// Its blocks, in the order of the tape.
    pub blocks: Vec<BlockRun>,
    /// How far answers are off with this tensor alone so; 0 where nothing is lost.
    pub divergence: f64,
}

/// A stretch of the tape.
#[derive(Clone, Debug, PartialEq)]
pub enum Part {
    /// The blocks of a tensor, by its index.
    Tensor(usize),
    /// Blocks of what has no other precision and is not chosen.
    Fixed(Vec<BlockRun>),
}

/// Why a ladder or a choice cannot be reckoned with.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum LadderError {
    #[error("the ladder's tensor {tensor}: {what}")]
    Tensor { tensor: String, what: &'static str },
    #[error("the ladder's tape has {found} layers and the profile's {expected}, or other tensors")]
    Tape { found: usize, expected: usize },
    #[error("a choice of {found} tensors, or of rungs that they lack, for {expected} tensors")]
    Choice { found: usize, expected: usize },
    #[error("tensor {tensor} has no variant {variant}: there are {}", .known.join(", "))]
    Variant { tensor: String, variant: String, known: Vec<String> },
    #[error("the profile of {variant} is of another tape than the ladder\nprofile the model again")]
    Foreign { variant: String },
    #[error("how fast {codec} is decoded was not measured\nprofile the model again")]
    Rate { codec: String },
}

impl Ladder {
    /// Whether all of it can be reckoned with.
    ///
    /// # Errors
    /// The first tensor that has no rung, or a rung without blocks or with a divergence that is no
    /// figure; a tape of tensors that are not there.
    pub fn check(&self) -> Result<(), LadderError> {
        let mut names = HashSet::new();
        for tensor in &self.tensors {
            let wrong = |what| Err(LadderError::Tensor { tensor: tensor.name.clone(), what });
            if !names.insert(&tensor.name) {
                return wrong("is there twice");
            }
            if tensor.rungs.is_empty() || tensor.elements == 0 {
                return wrong("has no rung, or no elements");
            }
            for rung in &tensor.rungs {
                if !(rung.divergence.is_finite() && rung.divergence >= 0.0) {
                    return wrong("a divergence is no figure of zero or more");
                }
                if rung.bytes() == 0 || rung.blocks.iter().any(|run| run.bytes == 0) {
                    return wrong("has blocks of no bytes");
                }
            }
        }
        let count = self.tensors.len();
        let used = self.tape.iter().flatten();
        match used.clone().all(|part| !matches!(part, Part::Tensor(index) if *index >= count)) {
            true => Ok(()),
            false => Err(LadderError::Tape { found: self.tape.len(), expected: self.tape.len() }),
        }
    }

    /// The choice of the rungs in which least is lost.
    pub fn best(&self) -> Vec<usize> {
        let least = |tensor: &LadderTensor| {
            let rungs = tensor.rungs.iter().enumerate();
            rungs.min_by(|a, b| a.1.divergence.total_cmp(&b.1.divergence)).map_or(0, |(at, _)| at)
        };
        self.tensors.iter().map(least).collect()
    }

    /// The choice that has these variants, one for each tensor.
    ///
    /// # Errors
    /// Another number of variants than of tensors; a variant that a tensor lacks.
    pub fn choice_of(&self, variants: &[String]) -> Result<Vec<usize>, LadderError> {
        let (found, expected) = (variants.len(), self.tensors.len());
        if found != expected {
            return Err(LadderError::Choice { found, expected });
        }
        self.tensors.iter().zip(variants).map(|(tensor, variant)| tensor.rung_of(variant)).collect()
    }

    /// The variant of each tensor by a choice.
    pub fn variants(&self, choice: &[usize]) -> Vec<String> {
        self.chosen(choice).map(|(_, rung)| rung.variant.clone()).collect()
    }

    /// How close answers are to the best variants': one less the sum of what each tensor's rung does
    /// to them, and not below 0.
    pub fn accuracy(&self, choice: &[usize]) -> f64 {
        (1.0 - self.divergence(choice)).max(0.0)
    }

    /// The sum of what each tensor's rung does to answers.
    pub fn divergence(&self, choice: &[usize]) -> f64 {
        self.chosen(choice).map(|(_, rung)| rung.divergence).fold(0.0, |sum, of| sum + of)
    }

    /// Bytes of the tape by a choice.
    pub fn bytes(&self, choice: &[usize]) -> u64 {
        let part = |part: &Part| match part {
            Part::Tensor(index) => self.tensors[*index].rungs[choice[*index]].bytes(),
            Part::Fixed(blocks) => run_bytes(blocks),
        };
        self.tape.iter().flatten().map(part).sum()
    }

    /// Bits that a weight takes in the mean, of all that is chosen.
    pub fn bits(&self, choice: &[usize]) -> f64 {
        let bytes: u64 = self.chosen(choice).map(|(_, rung)| rung.bytes()).sum();
        let elements: u64 = self.tensors.iter().map(|tensor| tensor.elements).sum();
        8.0 * bytes as f64 / elements.max(1) as f64
    }

    /// What names a choice: 16 hexadecimal digits, the XXH3 of each tensor's name, a zero byte, its
    /// variant and a line break. It depends on nothing else, so that the same choice has it on every
    /// board and after every start.
    pub fn digest(&self, choice: &[usize]) -> String {
        let mut hash = Xxh3::new();
        for (tensor, rung) in self.chosen(choice) {
            for text in [tensor.name.as_str(), "\0", &rung.variant, "\n"] {
                hash.update(text.as_bytes());
            }
        }
        format!("{:016x}", hash.digest())
    }

    /// Whether a choice has a rung of each tensor.
    pub(super) fn check_choice(&self, choice: &[usize]) -> Result<(), LadderError> {
        let (found, expected) = (choice.len(), self.tensors.len());
        let has = |(tensor, rung): (&LadderTensor, &usize)| *rung < tensor.rungs.len();
        match found == expected && self.tensors.iter().zip(choice).all(has) {
            true => Ok(()),
            false => Err(LadderError::Choice { found, expected }),
        }
    }

    /// Each tensor with its rung.
    fn chosen(&self, choice: &[usize]) -> impl Iterator<Item = (&LadderTensor, &Rung)> {
        self.tensors.iter().zip(choice).map(|(tensor, rung)| (tensor, &tensor.rungs[*rung]))
    }
}

impl LadderTensor {
    /// Index of the rung of a variant.
    pub(super) fn rung_of(&self, variant: &str) -> Result<usize, LadderError> {
        let found = self.rungs.iter().position(|rung| rung.variant == variant);
        found.ok_or_else(|| LadderError::Variant {
            tensor: self.name.clone(),
            variant: variant.to_owned(),
            known: self.rungs.iter().map(|rung| rung.variant.clone()).collect(),
        })
    }
}

impl Rung {
    /// Bytes of its blocks on the disk.
    pub fn bytes(&self) -> u64 {
        run_bytes(&self.blocks)
    }
}

fn run_bytes(runs: &[BlockRun]) -> u64 {
    runs.iter().map(|run| run.count as u64 * run.bytes).sum()
}

#[cfg(test)]
mod tests {
    use super::super::fixture;
    use super::*;

    #[test]
    fn a_choice_is_summed_up() {
        let ladder = fixture::ladder();
        ladder.check().unwrap();
        let best = ladder.best();
        assert_eq!(best, vec![0; ladder.tensors.len()]);
        assert_eq!(ladder.accuracy(&best), 1.0);
        assert_eq!(ladder.bytes(&best), fixture::profile().tape_bytes());
        assert_eq!(ladder.bits(&best), 32.0);
        let variants = vec!["a4".to_owned(); best.len()];
        let choice = ladder.choice_of(&variants).unwrap();
        assert_eq!(ladder.variants(&choice), variants);
        assert!((ladder.bits(&choice) - 4.5).abs() < 1e-9);
        assert!((0.9..1.0).contains(&ladder.accuracy(&choice)));
        assert!((ladder.accuracy(&choice) + ladder.divergence(&choice) - 1.0).abs() < 1e-12);
    }

    #[test]
    fn a_digest_is_of_names_and_variants_alone() {
        let ladder = fixture::ladder();
        let best = ladder.best();
        let digest = ladder.digest(&best);
        // It is stored in clients' logs: another way to reckon it is a change that they see.
        assert_eq!(digest, "8b8f8d1a61481339");
        let mut moved = ladder.clone();
        moved.tensors.iter_mut().for_each(|tensor| tensor.elements *= 2);
        assert_eq!(moved.digest(&best), digest);
        let mut other = best.clone();
        other[7] += 1;
        assert_ne!(ladder.digest(&other), digest);
        assert_eq!(digest.len(), 16);
    }

    #[test]
    fn what_cannot_be_reckoned_with_is_named() {
        let check = |spoil: &dyn Fn(&mut Ladder), words: &str| {
            let mut ladder = fixture::ladder();
            spoil(&mut ladder);
            let error = ladder.check().unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        };
        check(&|ladder| ladder.tensors[3].name = ladder.tensors[2].name.clone(), "there twice");
        check(&|ladder| ladder.tensors[3].rungs.clear(), "layer.0.o: has no rung");
        check(&|ladder| ladder.tensors[3].rungs[1].divergence = f64::NAN, "no figure");
        check(&|ladder| ladder.tensors[3].rungs[1].divergence = -1.0, "no figure");
        check(&|ladder| ladder.tensors[3].rungs[1].blocks.clear(), "no bytes");
        check(&|ladder| ladder.tape[0].push(Part::Tensor(999)), "tape");
        let ladder = fixture::ladder();
        let mut variants = ladder.variants(&ladder.best());
        variants[1] = "q5".into();
        let error = ladder.choice_of(&variants).unwrap_err().to_string();
        assert!(error.contains("layer.0.k has no variant q5: there are f32, a6"), "{error}");
        assert!(ladder.choice_of(&[]).unwrap_err().to_string().contains("144 tensors"));
        assert!(ladder.check_choice(&vec![99; 144]).is_err());
    }
}

//! Writes layer files by encoders that know what weights are used for.
//!
//! Passes over some inputs, side by side, go from product to product. What each multiplies its weight
//! with is learnt, used for all variants of it, and forgotten: one tensor's statistics are held at a
//! time, and one pass is enough for all.
//!
//! Whether errors are fed forward is decided twice, by inputs that nothing was learnt from: for each
//! tensor and variant by the loss of its product, and for each variant as a whole by the model's
//! answers, since what every product gains by it a language model as a whole may lose.

use super::encode::{FED, learns};
use super::error::ShardError;
use super::importance::Judge;
use super::inputs::{digest, spread};
use super::player::{Observer, Player};
use super::statistics::{Columns, Statistics};
use super::tensor::Sources;
use super::watch::Watch;
use super::write::{self, Layers, Writing, Written};
use crate::store::layer_file::Layout;
use crate::store::manifest::{Checksum, Manifest};
use crate::sys::lock::lock;
use crate::wire::Array;
use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::sync::{Arc, Mutex};

/// Activations of all passes together, at most, unless two take more.
const TOGETHER_BYTES: u64 = 48 << 20;

/// One input of so many is not learnt from.
const HELD_OUT: usize = 4;

/// What is needed to write layer files of a version that has those of its best variant.
pub(super) struct Learning<'a> {
    pub layers: &'a Layers<'a>,
    /// The folder that it is built in.
    pub folder: &'a Path,
    /// What is to be written.
    pub variants: &'a [String],
    pub watch: &'a dyn Watch,
}

/// Layers that were written, and what was learnt for them.
pub(super) struct Learnt {
    pub written: Vec<Written>,
    /// Inputs that were used, and columns that the widest product had in all of them.
    pub inputs: usize,
    pub columns: usize,
    /// Digests of the inputs that were learnt from.
    pub learnt: Vec<Checksum>,
}

impl Learning<'_> {
    /// Writes the layers; `player` plays the best variant with as many of the requests as fit.
    ///
    /// # Errors
    /// What cannot be read, computed or written; [`ShardError::Interrupted`].
    pub fn write(
        &self,
        player: &mut Player,
        requests: Vec<Vec<Array>>,
    ) -> Result<Learnt, ShardError> {
        write::make_folder(self.folder)?;
        let requests = within(requests, |request| player.held_bytes(request));
        let learnt = requests.len() - (requests.len() / HELD_OUT).max(1);
        let mut sweep = Sweep::new(self, player, &requests, learnt);
        let answers = sweep.run(player, &requests)?;
        let columns = lock(&sweep.seen).most;
        let mut written = sweep.finish()?;
        let held_out = Questions { requests: &requests[learnt..], answers: &answers[learnt..] };
        self.settle(player, &mut written, held_out)?;
        let learnt = requests[..learnt].iter().map(|request| Checksum(digest(request))).collect();
        Ok(Learnt { written, inputs: requests.len(), columns, learnt })
    }

    /// Variants, each followed by itself with errors fed forward, where it learns.
    fn with_fed(&self) -> Vec<String> {
        let both = self.variants.iter().flat_map(|variant| {
            [Some(variant.clone()), learns(variant).then(|| format!("{variant}{FED}"))]
        });
        both.flatten().collect()
    }

    /// Keeps of each variant the files with errors fed forward, or those without.
    fn settle(
        &self,
        player: &mut Player,
        written: &mut [Written],
        held_out: Questions,
    ) -> Result<(), ShardError> {
        let mut manifest = Manifest::clone(&player.dir().manifest);
        for (layer, written) in manifest.layers.iter_mut().zip(&*written) {
            layer.files.extend(written.layer.files.clone());
        }
        player.set_manifest(manifest);
        // A model whose answers cannot be compared keeps what its products gain.
        let judge = Judge::of(&player.dir().manifest, &player.table_rows()).ok();
        for variant in self.variants.iter().filter(|variant| learns(variant)) {
            let fed = format!("{variant}{FED}");
            let is_fed = |written: &Written| written.losses[&fed].iter().any(|loss| loss.is_fed);
            let is_better = written.iter().any(is_fed) && {
                let [plain, fed] = [variant, &fed].map(|variant| {
                    let choice = player.choose(&vec![variant; player.tensors().len()])?;
                    let answers = player.pass(&choice, held_out.requests, self.watch)?;
                    let judge = judge.as_ref();
                    let divergence = judge.and_then(|judge| held_out.divergence(judge, &answers));
                    Ok::<Option<f64>, ShardError>(divergence)
                });
                let (plain, fed) = (plain?, fed?);
                log::info!("{variant}: divergence {plain:?} without feedback, {fed:?} with it");
                plain.is_none_or(|plain| fed.is_some_and(|fed| fed < plain))
            };
            for written in &mut *written {
                self.keep(written, variant, &fed, is_better)?;
            }
        }
        Ok(())
    }

    /// Makes the files of `fed` those of `variant`, or removes them.
    fn keep(
        &self,
        written: &mut Written,
        variant: &str,
        fed: &str,
        is_better: bool,
    ) -> Result<(), ShardError> {
        let (files, losses) = (&mut written.layer.files, &mut written.losses);
        let (Some(mut file), Some(loss)) = (files.remove(fed), losses.remove(fed)) else {
            return Ok(());
        };
        let from = self.folder.join(&file.path);
        if !is_better {
            return fs::remove_file(&from)
                .map_err(ShardError::io(format!("remove {}", from.display())));
        }
        file.path.clone_from(&files[variant].path);
        fs::rename(&from, self.folder.join(&file.path))
            .map_err(ShardError::io(format!("rename {}", from.display())))?;
        files.insert(variant.to_owned(), file);
        losses.insert(variant.to_owned(), loss);
        Ok(())
    }
}

/// As many of the requests, spread over all, as take no more than [`TOGETHER_BYTES`]; two at least.
fn within(mut requests: Vec<Vec<Array>>, cost: impl Fn(&[Array]) -> u64) -> Vec<Vec<Array>> {
    let all: u64 = requests.iter().map(|request| cost(request)).sum();
    let share = TOGETHER_BYTES as f64 / all.max(1) as f64;
    let kept = (share.min(1.0) * requests.len() as f64) as usize;
    let chosen = spread(requests.len(), kept.max(2));
    chosen.into_iter().map(|index| std::mem::take(&mut requests[index])).collect()
}

/// Inputs that nothing is learnt from, and what the best variant answers.
#[derive(Clone, Copy)]
struct Questions<'a> {
    requests: &'a [Vec<Array>],
    answers: &'a [Vec<Array>],
}

impl Questions<'_> {
    /// How far other answers are off, as importance is measured; none where they say nothing.
    fn divergence(&self, judge: &Judge, answers: &[Vec<Array>]) -> Option<f64> {
        let (mut off, mut weight) = (0.0, 0.0);
        for (request, (best, other)) in self.requests.iter().zip(self.answers.iter().zip(answers)) {
            let best = judge.answer(request, best).ok()?;
            off += judge.divergence(&best, &judge.answer(request, other).ok()?);
            weight += best.weight();
        }
        (weight > 0.0).then(|| off / weight)
    }
}

/// What products multiplied tensors with, by the tensors' places in a choice.
struct Seen {
    columns: Vec<Columns>,
    /// How many products each tensor has.
    uses: Vec<usize>,
    /// Which part of the columns is not learnt from.
    share: f64,
    /// Columns of the widest product.
    most: usize,
}

/// Passes on their way, and layers whose files are being written.
struct Sweep<'a> {
    learning: &'a Learning<'a>,
    variants: Vec<String>,
    /// Layer and number of each tensor of a choice.
    places: Vec<(usize, usize)>,
    seen: Arc<Mutex<Seen>>,
    sources: Sources,
    open: HashMap<usize, Writing<'a>>,
    written: Vec<Option<Written>>,
    /// What was learnt last: products that follow each other may share their input.
    last: Option<(u64, Statistics)>,
}

impl<'a> Sweep<'a> {
    fn new(
        learning: &'a Learning<'a>,
        player: &Player,
        requests: &[Vec<Array>],
        learnt: usize,
    ) -> Sweep<'a> {
        let layers = learning.layers;
        let numbers = (0..layers.count())
            .flat_map(|layer| layers.of(layer).iter().enumerate().map(move |t| (layer, t)));
        let places: HashMap<(usize, Layout), (usize, usize)> = numbers
            .map(|(layer, (number, tensor))| ((tensor.weight, tensor.layout), (layer, number)))
            .collect();
        let tensors = player.tensors();
        let mut uses = vec![0; tensors.len()];
        player.uses().iter().for_each(|(_, tensor)| uses[*tensor] += 1);
        let size = |requests: &[Vec<Array>]| -> usize {
            let largest = |request: &Vec<Array>| request.iter().map(|a| a.bytes.len()).max();
            requests.iter().filter_map(largest).sum()
        };
        let share = size(&requests[learnt..]) as f64 / size(requests).max(1) as f64;
        let columns = vec![Columns::default(); tensors.len()];
        Sweep {
            learning,
            variants: learning.with_fed(),
            places: tensors.iter().map(|t| places[&(t.weight, t.layout)]).collect(),
            seen: Arc::new(Mutex::new(Seen { columns, uses, share, most: 0 })),
            sources: write::sources(learning.folder),
            open: HashMap::new(),
            written: (0..layers.count()).map(|_| None).collect(),
            last: None,
        }
    }

    /// Writes every tensor once its last product was seen; the answers of the requests.
    fn run(
        &mut self,
        player: &Player,
        requests: &[Vec<Array>],
    ) -> Result<Vec<Vec<Array>>, ShardError> {
        let watch = self.learning.watch;
        let best = player.best()?;
        let seen = Arc::clone(&self.seen);
        let observer: Arc<Observer> = Arc::new(move |tensor, columns, depth| {
            let mut seen = lock(&seen);
            let (share, uses) = (seen.share, seen.uses[tensor]);
            seen.columns[tensor].take(columns, depth, share, uses);
            seen.most = seen.most.max(columns.len() / depth.max(1));
        });
        let mut left = lock(&self.seen).uses.clone();
        let mut walk = player.begin(requests)?;
        for (step, tensor) in player.uses() {
            player.go_seen(&mut walk, step + 1, &best, Arc::clone(&observer), watch)?;
            left[tensor] -= 1;
            if left[tensor] == 0 {
                let columns = std::mem::take(&mut lock(&self.seen).columns[tensor]);
                self.encode(tensor, columns)?;
            }
        }
        player.finish(walk, &best, watch)
    }

    fn encode(&mut self, tensor: usize, columns: Columns) -> Result<(), ShardError> {
        let (layer, number) = self.places[tensor];
        let depth = self.learning.layers.of(layer)[number].depth;
        let digest = columns.digest();
        let is_known = self.last.as_ref().is_some_and(|(known, _)| *known == digest);
        if columns.are_enough() && !is_known {
            // What was learnt for others goes before there is more.
            self.last = None;
            self.last = Some((digest, Statistics::of(columns, depth)));
        }
        let last = self.last.take();
        let statistics = last.as_ref().filter(|(known, _)| *known == digest);
        self.write(layer, number, statistics.map(|(_, statistics)| statistics))?;
        self.last = last;
        Ok(())
    }

    fn write(
        &mut self,
        layer: usize,
        number: usize,
        statistics: Option<&Statistics>,
    ) -> Result<(), ShardError> {
        let Learning { layers, folder, watch, .. } = *self.learning;
        let sources = &mut self.sources;
        if !self.open.contains_key(&layer) {
            let begun = Writing::begin(layers, folder, layer, &self.variants, sources, watch)?;
            self.open.insert(layer, begun);
        }
        let writing = self.open.get_mut(&layer).expect("it was begun");
        writing.write(number, statistics, sources, watch)?;
        if writing.is_done() {
            let done = self.open.remove(&layer).map(|writing| writing.finish(watch));
            self.written[layer] = done.transpose()?;
        }
        Ok(())
    }

    /// Writes what is in no product: tables, and what the plan needs no more.
    fn finish(mut self) -> Result<Vec<Written>, ShardError> {
        self.last = None;
        for layer in 0..self.learning.layers.count() {
            for number in 0..self.learning.layers.of(layer).len() {
                if self.written[layer].is_none() {
                    self.write(layer, number, None)?;
                }
            }
        }
        self.sources.finish()?;
        Ok(self.written.into_iter().map(|written| written.expect("each is done")).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_that_fit_are_spread_over_all() {
        let request = |value: f32| vec![Array::from_f32(vec![1], &[value]).unwrap()];
        let requests: Vec<_> = (0..10).map(|index| request(index as f32)).collect();
        assert_eq!(within(requests.clone(), |_| 10), requests);
        let few = within(requests.clone(), |_| TOGETHER_BYTES * 10 / 45);
        assert_eq!(few, [0, 2, 5, 7].map(|index| requests[index].clone()));
        assert_eq!(within(requests, |_| TOGETHER_BYTES).len(), 2);
    }
}

//! Which variants are written when: those that need nothing but the weights from one reading of them;
//! where some encoders learn what weights are used for, the best one first, which then is played.

use super::encode::learns;
use super::error::ShardError;
use super::files::{entry, write_file};
use super::inputs::Inputs;
use super::learned::{Learning, Learnt};
use super::order::Order;
use super::player::Player;
use super::watch::Watch;
use super::write::{Layers, Written};
use crate::store::ModelDir;
use crate::store::layer_file::Layout;
use crate::store::manifest::Manifest;
use crate::store::{Calibration, PRECISION_FORMAT, PRECISION_NAME, Precision, TensorPrecision};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;

/// The variant of the source's own precision, which is played.
const BEST: &str = "f32";

/// What is said where encoders are told nothing, before why.
pub(super) const UNTOLD: &str =
    "weights are encoded with nothing known of what they are used for, which loses more: ";

/// Layers on their way into a version.
pub(super) struct Building<'a> {
    pub layers: &'a Layers<'a>,
    pub order: &'a Order,
    pub watch: &'a dyn Watch,
}

impl Building<'_> {
    /// Bytes that layer files take, from above, those among them that do not stay.
    pub fn needed_bytes(&self) -> u64 {
        let Order { variants, .. } = self.order;
        let mut written = variants.clone();
        if self.order.learns() {
            // Those with errors fed forward lie beside the others until one of both is kept.
            written.extend(variants.iter().filter(|variant| learns(variant)).cloned());
            if !self.keeps_best() {
                written.push(BEST.to_owned());
            }
        }
        self.layers.stored_bytes(&written)
    }

    fn keeps_best(&self) -> bool {
        self.order.variants.iter().any(|variant| variant == BEST)
    }

    /// Writes the layer files into `folder`, where the graph is, and what they lose; notes both in
    /// the manifest.
    ///
    /// # Errors
    /// What cannot be read, computed or written.
    pub fn write(
        &self,
        folder: &Path,
        manifest: &mut Manifest,
        inputs: Option<Inputs>,
    ) -> Result<(), ShardError> {
        let variants = &self.order.variants;
        let source_bytes = self.layers.source_bytes();
        let (written, calibration) = match inputs {
            None => {
                self.watch.expect(source_bytes);
                (self.layers.write(folder, variants, self.watch)?, None)
            }
            Some(inputs) => {
                self.watch.expect(2 * source_bytes);
                self.learn(folder, manifest, inputs)?
            }
        };
        let is_told = variants.len() > 1 || self.order.learns();
        let tensors = is_told.then(|| self.tensors(&written));
        manifest.layers = written.into_iter().map(|written| written.layer).collect();
        if let Some(tensors) = tensors {
            let format = PRECISION_FORMAT;
            let json = Precision { format, calibration, probe: None, tensors }.to_json();
            write_file(folder, PRECISION_NAME, &json)?;
            manifest.precision = Some(entry(PRECISION_NAME, &json));
        }
        Ok(())
    }

    fn learn(
        &self,
        folder: &Path,
        manifest: &Manifest,
        inputs: Inputs,
    ) -> Result<(Vec<Written>, Option<Calibration>), ShardError> {
        let best = [BEST.to_owned()];
        let mut written = self.layers.write(folder, &best, self.watch)?;
        let others: Vec<String> =
            self.order.variants.iter().filter(|variant| *variant != BEST).cloned().collect();
        let played = Manifest {
            layers: written.iter().map(|written| written.layer.clone()).collect(),
            variants: best.to_vec(),
            ..manifest.clone()
        };
        let dir = ModelDir { path: folder.to_owned(), manifest: Arc::new(played) };
        let mut player = Player::open(dir)?;
        let learning =
            Learning { layers: self.layers, folder, variants: &others, watch: self.watch };
        let (more, calibration) = match self.can_be_played(&player, &inputs)? {
            false => (self.layers.write(folder, &others, self.watch)?, None),
            true => {
                let Learnt { written, inputs: count, columns, learnt } =
                    learning.write(&mut player, inputs.requests)?;
                let calibration = Calibration {
                    source: inputs.source,
                    is_made_up: inputs.is_made_up,
                    inputs: count as u64,
                    columns: columns as u64,
                    learnt,
                };
                (written, Some(calibration))
            }
        };
        drop(player);
        for (written, more) in written.iter_mut().zip(more) {
            written.layer.files.extend(more.layer.files);
            written.losses.extend(more.losses);
            if !self.keeps_best()
                && let Some(file) = written.layer.files.remove(BEST)
            {
                let path = folder.join(&file.path);
                fs::remove_file(&path)
                    .map_err(ShardError::io(format!("remove {}", path.display())))?;
                written.losses.remove(BEST);
            }
        }
        Ok((written, calibration))
    }

    /// Whether the model can be computed with inputs that were made up; with a user's it has to be.
    fn can_be_played(&self, player: &Player, inputs: &Inputs) -> Result<bool, ShardError> {
        let played = player
            .best()
            .and_then(|best| player.pass(&best, &inputs.requests[..1], self.watch).map(drop));
        match played {
            Ok(()) => Ok(true),
            Err(ShardError::Unfit(why)) if inputs.is_made_up => {
                self.watch.tell(&format!("{UNTOLD}{why}"));
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    /// What each tensor that a choice has a variant for loses in all of them.
    fn tensors(&self, written: &[Written]) -> Vec<TensorPrecision> {
        let mut tensors = vec![];
        for (layer, written) in written.iter().enumerate() {
            for (number, tensor) in self.layers.of(layer).iter().enumerate() {
                let weight = self.layers.weight(tensor);
                if tensor.layout == Layout::Rows || !weight.dtype.is_float() {
                    continue;
                }
                let losses = written.losses.iter();
                let losses = losses.map(|(variant, losses)| (variant.clone(), losses[number]));
                let losses: BTreeMap<_, _> = losses.collect();
                tensors.push(TensorPrecision {
                    weight: weight.name.clone(),
                    layout: tensor.layout,
                    layer,
                    node: tensor.node.clone(),
                    elements: (tensor.rows * tensor.depth) as u64,
                    fed: losses.iter().filter(|(_, l)| l.is_fed).map(|(v, _)| v.clone()).collect(),
                    errors: losses.into_iter().map(|(v, loss)| (v, loss.error)).collect(),
                    divergence: None,
                });
            }
        }
        tensors
    }
}

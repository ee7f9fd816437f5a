//! The ladder of a version: in which precisions each of its tensors lies on the disk, and what each
//! does to answers.

use super::choice::name_of;
use super::error::EngineError;
use crate::codec;
use crate::graph::{READ_AHEAD_BYTES, WeightUse};
use crate::plan::{BlockRun, Ladder, LadderTensor, Part, Rung};
use crate::store::layer_file::{LayerFile, LayerIndex, Layout, TensorEntry};
use crate::store::{ModelDir, Precision, Probe, TensorPrecision};
use crate::stream::slot_bytes;
use std::collections::HashMap;

/// What is known of a version's tensors by weight and layout.
type Measured<'a> = HashMap<(&'a str, Layout), &'a TensorPrecision>;

/// The ladder of a version whose plan uses its weights in this order; that of its layer files where
/// the plan is not there. A tensor that is stored alike in several variants has one rung of them:
/// that of `base`, the variant that was measured, where it is among them. A layer file that cannot be
/// used is left out, with its tensors' rungs, and said.
///
/// # Errors
/// [`EngineError::NoChoice`] where the version does not tell what its precisions do to answers; the
/// store's, where a layer has no file at all that can be used.
pub(super) fn ladder(
    dir: &ModelDir,
    base: &str,
    uses: Option<&[WeightUse]>,
) -> Result<Ladder, EngineError> {
    let no_choice = |why: &str, advice: String| EngineError::NoChoice {
        model: dir.manifest.model.clone(),
        why: why.to_owned(),
        advice,
    };
    let Some(Precision { probe, tensors, .. }) = dir.precision()? else {
        let advice = "shard it again with hermes-shard build --variants auto".to_owned();
        return Err(no_choice("its version does not tell what its precisions lose", advice));
    };
    let importance = || format!("measure it with hermes-shard importance {}", dir.manifest.model);
    let Some(probe) = probe else {
        return Err(no_choice("the importance of its tensors was not measured", importance()));
    };
    let measured: Measured = tensors.iter().map(|t| ((t.weight.as_str(), t.layout), t)).collect();
    let mut building = Building { base, probe: &probe, measured, tensors: vec![], parts: vec![] };
    for layer in 0..dir.manifest.layers.len() {
        let files = layer_files(dir, layer)?;
        building.add(layer, &files).map_err(|tensor| {
            no_choice(&format!("the importance of {tensor} was not measured"), importance())
        })?;
    }
    let Building { tensors, parts, .. } = building;
    let places = parts.iter().map(|(key, layer, part)| ((key.0.as_str(), key.1), (*layer, part)));
    let in_order: Vec<(usize, &Part)> = match uses {
        Some(uses) => {
            let places: HashMap<_, _> = places.collect();
            let name = |used: &WeightUse| dir.manifest.weights[used.weight].name.as_str();
            uses.iter().filter_map(|used| places.get(&(name(used), used.layout)).copied()).collect()
        }
        None => places.map(|(_, place)| place).collect(),
    };
    // As a tape counts its layers: runs of blocks.
    let runs = in_order.chunk_by(|a, b| a.0 == b.0);
    let tape = runs.map(|run| run.iter().map(|(_, part)| (*part).clone()).collect()).collect();
    Ok(Ladder { tensors, tape })
}

/// The files of a layer that can be used, with their variants, the best first.
fn layer_files(dir: &ModelDir, layer: usize) -> Result<Vec<(&str, LayerFile)>, EngineError> {
    let (mut files, mut refused) = (vec![], None);
    for variant in &dir.manifest.variants {
        match dir.open_layer(layer, variant) {
            Ok(file) => files.push((variant.as_str(), file)),
            Err(error) => {
                let text = error.to_string().replace('\n', ": ");
                log::warn!("{text}: what is played in variant {variant} there has another");
                refused = refused.or(Some(error));
            }
        }
    }
    match refused {
        Some(error) if files.is_empty() => Err(error.into()),
        _ => Ok(files),
    }
}

/// A ladder being built.
struct Building<'a> {
    base: &'a str,
    probe: &'a Probe,
    measured: Measured<'a>,
    tensors: Vec<LadderTensor>,
    /// What is streamed by blocks, in the order of the files, with its layer.
    parts: Vec<((String, Layout), usize, Part)>,
}

impl Building<'_> {
    /// Adds the tensors of a layer; the name of one that was not measured.
    fn add(&mut self, layer: usize, files: &[(&str, LayerFile)]) -> Result<(), String> {
        let Some((_, best)) = files.first() else { return Ok(()) };
        for (index, tensor) in best.index.tensors.iter().enumerate() {
            let key = (tensor.name.clone(), tensor.layout);
            if tensor.layout == Layout::Rows {
                continue;
            }
            if !tensor.is_chosen() {
                self.parts.push((key, layer, Part::Fixed(runs(&best.index, tensor))));
                continue;
            }
            let name = name_of(tensor);
            let rungs = self.rungs(index, tensor, files);
            if rungs.is_empty() {
                return Err(name);
            }
            self.parts.push((key, layer, Part::Tensor(self.tensors.len())));
            let elements = tensor.rows * tensor.depth;
            let measured = self.measured.get(&(tensor.name.as_str(), tensor.layout));
            let node = measured.map_or_else(String::new, |measured| measured.node.clone());
            self.tensors.push(LadderTensor { name, node, layer, elements, rungs });
        }
        Ok(())
    }

    /// The rungs of the tensor that is `index` in each of its layer's files, as far as it is known
    /// what they do to answers.
    fn rungs(&self, index: usize, tensor: &TensorEntry, files: &[(&str, LayerFile)]) -> Vec<Rung> {
        let Some(measured) = self.measured.get(&(tensor.name.as_str(), tensor.layout)) else {
            return vec![];
        };
        let mut rungs: Vec<Rung> = vec![];
        for (variant, LayerFile { index: of, .. }) in files {
            let is_same = |t: &&TensorEntry| (&t.name, t.layout) == (&tensor.name, tensor.layout);
            let Some(entry) = of.tensors.get(index).filter(is_same) else { continue };
            let Some(divergence) = measured.divergence_in(variant, self.probe) else { continue };
            let codec = codec::by_code(entry.codec).map_or("raw", |codec| codec.name()).to_owned();
            match rungs.iter_mut().find(|rung| rung.codec == codec) {
                Some(rung) if *variant == self.base => rung.variant = (*variant).to_owned(),
                Some(_) => {}
                None => {
                    let (variant, blocks) = ((*variant).to_owned(), runs(of, entry));
                    rungs.push(Rung { variant, codec, blocks, divergence });
                }
            }
        }
        rungs
    }
}

/// The blocks of a tensor.
fn runs(index: &LayerIndex, tensor: &TensorEntry) -> Vec<BlockRun> {
    BlockRun::joined(index.blocks[tensor.blocks()].iter().map(|block| {
        let held_bytes = slot_bytes(block.bytes, READ_AHEAD_BYTES);
        BlockRun {
            count: 1,
            bytes: block.bytes,
            mapped_bytes: held_bytes,
            direct_bytes: held_bytes,
            elements: block.row_count * block.depth_count,
        }
    }))
}

//! How fast weights are multiplied with, by how they are stored.

use super::error::EngineError;
use super::model::Model;
use super::request::Cancel;
use super::sources::Sources;
use super::stage::Stage;
use super::trials::{Run, on_own_thread};
use crate::codec::{self, Codec};
use crate::graph::{Kernels, Lease, Product};
use crate::plan::{CodecRate, Way};
use crate::store::ModelDir;
use crate::store::layer_file::{BlockEntry, LayerFile};
use crate::stream::{Block, BlockMemory, load_to_stay_verified};
use crate::sys::affinity;
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;
use tract_core::internal::*;

/// How often a thing is timed, the shortest time counting.
const ROUNDS: usize = 5;

/// A tensor that is stored by a codec.
struct Sample {
    layer: usize,
    variant: String,
    /// Index of the tensor in its layer file.
    tensor: usize,
    /// Whether it is in panels, and its elements.
    size: (bool, u64),
}

impl Stage {
    /// Time of one core for a weight in a product with one column, for each codec by which the
    /// version's tensors are stored in any variant: of the largest tensor of each, as much as a
    /// window holds, so that it comes from memory as in passes. What only lies flat is decoded.
    pub(super) fn rate_trial(
        &mut self,
        model: &Model,
        cancel: &Cancel,
    ) -> Result<Vec<CodecRate>, EngineError> {
        let mut rates = vec![];
        for (name, sample) in samples(&model.dir) {
            if cancel.is_cancelled() {
                return Err(EngineError::Cancelled);
            }
            let Some(codec) = codec::by_name(name) else { continue };
            let ns_per_weight = self.time_sample(model, codec, &sample)?;
            rates.push(CodecRate { codec: name.to_owned(), ns_per_weight });
        }
        Ok(rates)
    }

    fn time_sample(
        &mut self,
        model: &Model,
        codec: &'static dyn Codec,
        sample: &Sample,
    ) -> Result<f64, EngineError> {
        let LayerFile { file, path, index, .. } =
            model.dir.open_layer(sample.layer, &sample.variant)?;
        let tensor = &index.tensors[sample.tensor];
        let files = vec![(path, file)];
        let sources = Sources::open(files, model.disk(), &self.hold.slots)?;
        let source = sources.by(Way::Mapped);
        let most_bytes = self.hold.window_bytes();
        let (mut wanted, mut held_bytes) = (vec![], 0);
        for BlockEntry { row_start, row_count, offset, bytes, checksum, .. } in
            &index.blocks[tensor.blocks()]
        {
            let rows = *row_start as usize..(row_start + row_count) as usize;
            let block = Block { file: 0, offset: *offset, bytes: *bytes, checksum: *checksum };
            let more_bytes = source.held_bytes(&block);
            if !wanted.is_empty() && held_bytes + more_bytes > most_bytes {
                break;
            }
            held_bytes += more_bytes;
            wanted.push((rows, block));
        }
        let _held = self.hold.hold_for_reading(held_bytes)?;
        let load = |(rows, block): (Range<usize>, Block)| {
            Ok((rows, Arc::new(load_to_stay_verified(&**source, &block)?)))
        };
        let blocks: Vec<_> = wanted.into_iter().map(load).collect::<Result<_, EngineError>>()?;
        let (kernels, core, depth) = (&self.kernels, self.cores[0], tensor.depth as usize);
        let timed = on_own_thread(|| {
            affinity::pin_current_thread(core);
            match tensor.layout.is_panels() {
                true => product_ns(kernels, codec, depth, &blocks),
                false => Ok(decoding_ns(codec, &blocks)),
            }
        })?;
        let ns = timed.map_err(|error| EngineError::Internal(format!("{error:#}")))?;
        let weights = blocks.last().map_or(0, |(rows, _)| rows.end) * depth;
        Ok(ns / weights.max(1) as f64)
    }
}

/// Time of a product with one column over blocks of panels, in nanoseconds.
fn product_ns(
    kernels: &Kernels,
    codec: &'static dyn Codec,
    depth: usize,
    blocks: &[(Range<usize>, Arc<BlockMemory>)],
) -> TractResult<f64> {
    let packed = kernels.pack(&Tensor::zero::<f32>(&[1, depth])?, depth)?;
    let lease = |index: usize| {
        let (rows, block) = &blocks[index];
        Ok(Lease { rows: rows.clone(), bytes: Box::new(Shared(Arc::clone(block))) })
    };
    let outputs = blocks.last().map_or(0, |(rows, _)| rows.end);
    let product = Product { outputs, depth, codec, blocks: blocks.len(), lease: &lease };
    let mut least_ns = f64::INFINITY;
    for _ in 0..ROUNDS {
        let began = Instant::now();
        std::hint::black_box(packed.multiply(&product)?);
        least_ns = least_ns.min(began.elapsed().as_nanos() as f64);
    }
    Ok(least_ns)
}

/// A block that is used more than once.
struct Shared(Arc<BlockMemory>);

impl AsRef<[u8]> for Shared {
    fn as_ref(&self) -> &[u8] {
        (*self.0).as_ref()
    }
}

/// Time of decoding flat blocks, in nanoseconds.
fn decoding_ns(codec: &dyn Codec, blocks: &[(Range<usize>, Arc<BlockMemory>)]) -> f64 {
    let time = |(rows, block): &(Range<usize>, Arc<BlockMemory>)| {
        let block: &BlockMemory = block;
        Run::of(codec, rows.len(), block.as_ref().len()).decode_us(codec, block.as_ref()) * 1e3
    };
    blocks.iter().map(time).sum()
}

/// The largest tensor of each codec, one in panels if there is any. Files that cannot be used are
/// left out.
fn samples(dir: &ModelDir) -> BTreeMap<&'static str, Sample> {
    let mut samples: BTreeMap<&'static str, Sample> = BTreeMap::new();
    for layer in 0..dir.manifest.layers.len() {
        for variant in &dir.manifest.variants {
            let Ok(file) = dir.open_layer(layer, variant) else { continue };
            let tensors = file.index.tensors.iter().enumerate();
            for (tensor, entry) in tensors.filter(|(_, entry)| entry.is_chosen()) {
                let Some(codec) = codec::by_code(entry.codec) else { continue };
                let size = (entry.layout.is_panels(), entry.rows * entry.depth);
                if samples.get(codec.name()).is_none_or(|known| known.size < size) {
                    let sample = Sample { layer, variant: variant.clone(), tensor, size };
                    samples.insert(codec.name(), sample);
                }
            }
        }
    }
    samples
}

//! Writes the layer files: which tensors go into which layer, and each of them into every variant.

use super::encode::{self, Target, codec_of};
use super::error::ShardError;
use super::layers;
use super::tensor::{Matrix, Sources};
use super::watch::Watch;
use crate::codec;
use crate::graph::skim::{OnnxWeight, Skim};
use crate::graph::{UseKind, WeightUse};
use crate::store::layer_file::{LayerWriter, Layout, TensorPlan};
use crate::store::manifest::{Layer, LayerEntry};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// Name of the file that decoded weights are put into while a version is built.
const SPOOL_NAME: &str = "spool";

/// Which tensors go into which layer, in tape order.
pub(super) struct Layers<'a> {
    skim: &'a Skim,
    layers: Vec<(String, Vec<Tensor>)>,
}

/// A weight in one layout.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Tensor {
    weight: usize,
    layout: Layout,
    rows: usize,
    depth: usize,
    rows_contiguous: bool,
}

impl Tensor {
    fn new(skim: &Skim, used: &WeightUse) -> Tensor {
        let WeightUse { weight, kind, layout, .. } = *used;
        let extent = kind.extent(&skim.weights[weight].shape);
        let (rows, depth) = extent.expect("the importer looks at the shapes of weights");
        let rows_contiguous = kind != UseKind::Linear { transposed: false };
        Tensor { weight, layout, rows: rows as usize, depth: depth as usize, rows_contiguous }
    }

    fn matrix<'a>(&self, source: &'a OnnxWeight) -> Matrix<'a> {
        let Tensor { rows, depth, rows_contiguous, .. } = *self;
        Matrix { source, rows, depth, rows_contiguous }
    }

    fn plan(&self, skim: &Skim, variant: &str) -> TensorPlan {
        let source = &skim.weights[self.weight];
        TensorPlan {
            name: source.name.clone(),
            layout: self.layout,
            codec: codec_of(variant, self.layout, source.dtype),
            dtype: source.dtype,
            dims: source.shape.clone(),
            rows: self.rows as u64,
            depth: self.depth as u64,
        }
    }
}

impl<'a> Layers<'a> {
    pub fn new(skim: &'a Skim, uses: &[WeightUse]) -> Layers<'a> {
        let nodes: Vec<&str> = uses.iter().map(|used| used.node.as_str()).collect();
        let mut layers: Vec<(String, Vec<Tensor>)> = vec![];
        let mut placed = vec![];
        for (used, layer) in uses.iter().zip(layers::assign(&nodes)) {
            let tensor = Tensor::new(skim, used);
            if placed.contains(&(tensor.weight, tensor.layout)) {
                continue;
            }
            placed.push((tensor.weight, tensor.layout));
            match layers.iter_mut().find(|(name, _)| *name == layer) {
                Some((_, tensors)) => tensors.push(tensor),
                None => layers.push((layer, vec![tensor])),
            }
        }
        Layers { skim, layers }
    }

    fn tensors(&self) -> impl Iterator<Item = &Tensor> {
        self.layers.iter().flat_map(|(_, tensors)| tensors)
    }

    pub fn source_bytes(&self) -> u64 {
        self.tensors().map(|tensor| self.skim.weights[tensor.weight].bytes()).sum()
    }

    /// Bytes the layer files will take, from above.
    pub fn stored_bytes(&self, variants: &[String]) -> u64 {
        let sizes = variants.iter().flat_map(|variant| {
            self.tensors().map(move |tensor| {
                let source = &self.skim.weights[tensor.weight];
                let stored = match codec::by_code(codec_of(variant, tensor.layout, source.dtype)) {
                    Some(codec) => codec.stored_bytes(tensor.depth, 1) * tensor.rows,
                    None => source.bytes() as usize,
                };
                // Alignment, row checksums, padding of the last panel.
                stored as u64 + stored as u64 / 12 + (192 << 10)
            })
        });
        let decoded = self.tensors().map(|tensor| &self.skim.weights[tensor.weight]);
        let decoded = decoded.filter(|source| source.location().is_none());
        // The spool has one decoded weight at a time.
        sizes.sum::<u64>() + decoded.map(OnnxWeight::bytes).max().unwrap_or(0)
    }

    pub fn write(
        &self,
        folder: &Path,
        variants: &[String],
        watch: &dyn Watch,
    ) -> Result<Vec<Layer>, ShardError> {
        fs::create_dir(folder.join("layers"))
            .map_err(ShardError::io("make the folder of layers"))?;
        let mut sources = Sources::new(folder.join(SPOOL_NAME));
        let layers = self.layers.iter().enumerate();
        let layers: Result<Vec<Layer>, ShardError> = layers
            .map(|(index, (name, tensors))| {
                watch.layer(name);
                let next = self.layers.get(index + 1).map_or(&[][..], |(_, tensors)| tensors);
                for tensor in next {
                    sources.prefetch(&self.skim.weights[tensor.weight])?;
                }
                let layer =
                    self.write_layer(folder, index, name, tensors, variants, &mut sources, watch)?;
                watch.layer_done(name);
                Ok(layer)
            })
            .collect();
        sources.finish()?;
        layers
    }

    #[allow(clippy::too_many_arguments)]
    fn write_layer(
        &self,
        folder: &Path,
        index: usize,
        name: &str,
        tensors: &[Tensor],
        variants: &[String],
        sources: &mut Sources,
        watch: &dyn Watch,
    ) -> Result<Layer, ShardError> {
        let path_of = |variant: &str| {
            format!("layers/{index:03}-{}.{variant}.layer", layers::file_stem(name))
        };
        let mut targets: Vec<Target> = variants
            .iter()
            .map(|variant| {
                let plans = tensors.iter().map(|t| t.plan(self.skim, variant)).collect();
                let writer = LayerWriter::create(&folder.join(path_of(variant)), plans)?;
                Ok(Target { variant: variant.clone(), writer, errors: Default::default() })
            })
            .collect::<Result<_, ShardError>>()?;
        for (number, tensor) in tensors.iter().enumerate() {
            if !watch.goes_on() {
                return Err(ShardError::Interrupted);
            }
            let source = sources.spread(&self.skim.weights[tensor.weight])?;
            let matrix = tensor.matrix(&source);
            let heard = |bytes| watch.advance(bytes);
            encode::write(&matrix, tensor.layout, number, &mut targets, sources, &heard)?;
            sources.forget(&source)?;
            sources.forget(&self.skim.weights[tensor.weight])?;
        }
        let mut files = BTreeMap::new();
        for target in targets {
            let summary = target.writer.finish()?;
            let entry = LayerEntry {
                path: path_of(&target.variant),
                bytes: summary.bytes,
                index_checksum: summary.index_checksum,
                relative_error: target.errors.relative(),
                max_error: target.errors.max(),
            };
            files.insert(target.variant, entry);
        }
        Ok(Layer { name: name.to_string(), files })
    }
}

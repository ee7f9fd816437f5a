//! Writes the layer files: which tensors go into which layer, and each of them into every variant.

use super::encode::{self, Loss, Target, codec_of};
use super::error::ShardError;
use super::layers;
use super::statistics::Statistics;
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
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Tensor {
    pub weight: usize,
    pub layout: Layout,
    pub rows: usize,
    pub depth: usize,
    /// The first node that uses it.
    pub node: String,
    rows_contiguous: bool,
}

impl Tensor {
    fn new(skim: &Skim, used: &WeightUse) -> Tensor {
        let WeightUse { weight, kind, layout, ref node, .. } = *used;
        let extent = kind.extent(&skim.weights[weight].shape);
        let (rows, depth) = extent.expect("the importer looks at the shapes of weights");
        let rows_contiguous = kind != UseKind::Linear { transposed: false };
        let (rows, depth, node) = (rows as usize, depth as usize, node.clone());
        Tensor { weight, layout, rows, depth, node, rows_contiguous }
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

    /// How many layers there are.
    pub fn count(&self) -> usize {
        self.layers.len()
    }

    /// The tensors of a layer, in the order of its files.
    pub fn of(&self, layer: usize) -> &[Tensor] {
        &self.layers[layer].1
    }

    /// The weight that a tensor is of.
    pub fn weight(&self, tensor: &Tensor) -> &OnnxWeight {
        &self.skim.weights[tensor.weight]
    }

    pub fn source_bytes(&self) -> u64 {
        self.tensors().map(|tensor| self.skim.weights[tensor.weight].bytes()).sum()
    }

    /// Bytes that the layer files of a variant take but for what lies between blocks.
    pub fn encoded_bytes(&self, variant: &str) -> u64 {
        let sizes = self.tensors().map(|tensor| {
            let source = self.weight(tensor);
            match codec::by_code(codec_of(variant, tensor.layout, source.dtype)) {
                Some(codec) => (codec.stored_bytes(tensor.depth, 1) * tensor.rows) as u64,
                None => source.bytes(),
            }
        });
        sizes.sum()
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

    /// Writes all layers, each weight into every variant from one reading of it.
    pub fn write(
        &self,
        folder: &Path,
        variants: &[String],
        watch: &dyn Watch,
    ) -> Result<Vec<Written>, ShardError> {
        make_folder(folder)?;
        let mut sources = Sources::new(folder.join(SPOOL_NAME));
        let layers = (0..self.layers.len()).map(|layer| {
            let mut writing = Writing::begin(self, folder, layer, variants, &mut sources, watch)?;
            for number in 0..self.of(layer).len() {
                writing.write(number, None, &mut sources, watch)?;
            }
            writing.finish(watch)
        });
        let layers = layers.collect();
        sources.finish()?;
        layers
    }
}

/// Makes the folder that layer files are in, unless it is there.
pub(super) fn make_folder(folder: &Path) -> Result<(), ShardError> {
    fs::create_dir_all(folder.join("layers")).map_err(ShardError::io("make the folder of layers"))
}

/// What weights are read by, while a version is built in `folder`.
pub(super) fn sources(folder: &Path) -> Sources {
    Sources::new(folder.join(SPOOL_NAME))
}

/// The file of a layer in a variant, in the folder of a version.
pub(super) fn layer_path(layer: usize, name: &str, variant: &str) -> String {
    format!("layers/{layer:03}-{}.{variant}.layer", layers::file_stem(name))
}

/// A layer that is written, and what its tensors lose, by variant, in the order of its files.
pub(super) struct Written {
    pub layer: Layer,
    pub losses: BTreeMap<String, Vec<Loss>>,
}

/// A layer whose files are being written.
pub(super) struct Writing<'a> {
    layers: &'a Layers<'a>,
    layer: usize,
    targets: Vec<Target>,
    is_written: Vec<bool>,
}

impl<'a> Writing<'a> {
    /// Begins the files of a layer.
    pub fn begin(
        layers: &'a Layers,
        folder: &Path,
        layer: usize,
        variants: &[String],
        sources: &mut Sources,
        watch: &dyn Watch,
    ) -> Result<Writing<'a>, ShardError> {
        let (name, tensors) = &layers.layers[layer];
        watch.layer(name);
        let next = layers.layers.get(layer + 1).map_or(&[][..], |(_, tensors)| tensors);
        for tensor in next {
            sources.prefetch(layers.weight(tensor))?;
        }
        let targets = variants.iter().map(|variant| {
            let plans = tensors.iter().map(|tensor| tensor.plan(layers.skim, variant)).collect();
            let path = folder.join(layer_path(layer, name, variant));
            Ok(Target::new(variant, LayerWriter::create(&path, plans)?))
        });
        let targets = targets.collect::<Result<_, ShardError>>()?;
        Ok(Writing { layers, layer, targets, is_written: vec![false; tensors.len()] })
    }

    /// Writes a tensor into every file, unless that was done.
    pub fn write(
        &mut self,
        number: usize,
        statistics: Option<&Statistics>,
        sources: &mut Sources,
        watch: &dyn Watch,
    ) -> Result<(), ShardError> {
        if std::mem::replace(&mut self.is_written[number], true) {
            return Ok(());
        }
        if !watch.goes_on() {
            return Err(ShardError::Interrupted);
        }
        let tensor = &self.layers.of(self.layer)[number];
        let weight = self.layers.weight(tensor);
        let source = sources.spread(weight)?;
        let (matrix, place) = (tensor.matrix(&source), (tensor.layout, number));
        let heard = |bytes| watch.advance(bytes);
        let are_numbers = |targets: &[Target]| targets.iter().all(|to| to.errors.is_finite());
        let were_numbers = are_numbers(&self.targets);
        encode::write(&matrix, place, statistics, &mut self.targets, sources, &heard)?;
        if were_numbers && !are_numbers(&self.targets) {
            let name = &weight.name;
            watch.tell(&format!("weight \"{name}\" has infinities, or what is not a number (NaN)"));
        }
        sources.forget(&source)?;
        sources.forget(weight)
    }

    /// Whether every tensor is written.
    pub fn is_done(&self) -> bool {
        self.is_written.iter().all(|is_written| *is_written)
    }

    /// Closes the files.
    pub fn finish(self, watch: &dyn Watch) -> Result<Written, ShardError> {
        let (name, _) = &self.layers.layers[self.layer];
        let (mut files, mut losses) = (BTreeMap::new(), BTreeMap::new());
        for target in self.targets {
            let summary = target.writer.finish()?;
            let entry = LayerEntry {
                path: layer_path(self.layer, name, &target.variant),
                bytes: summary.bytes,
                index_checksum: summary.index_checksum,
                relative_error: target.errors.relative(),
                max_error: target.errors.max(),
            };
            files.insert(target.variant.clone(), entry);
            losses.insert(target.variant, target.losses);
        }
        watch.layer_done(name);
        Ok(Written { layer: Layer { name: name.clone(), files }, losses })
    }
}

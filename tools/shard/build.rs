//! `hermes-shard build`: from an ONNX file to an installed version.

use super::dims::{self, Settled};
use super::embedder::{self, Named, Wish};
use super::encode::{self, Target, codec_of};
use super::interrupt;
use super::layers;
use super::makers::Makers;
use super::place::Place;
use super::rehearsal;
use super::report::Progress;
use super::tensor::{Matrix, Sources};
use anyhow::{Context, Result, bail, ensure};
use clap::{Args, value_parser};
use hermes::codec;
use hermes::graph::skim::{self, Skim, THRESHOLD_BYTES, WeightSource};
use hermes::graph::{Imported, Lockstep, UseKind, WeightUse};
use hermes::store::layer_file::{LayerWriter, Layout, TensorPlan};
use hermes::store::manifest::{
    self, Checksum, FileEntry, Layer, LayerEntry, Manifest, Needs, PassNeeds, Provenance, Task,
    TextRules, Weight,
};
use hermes::store::{self, Rehearsal, StoreError};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// Arguments of `hermes-shard build`.
#[derive(Args)]
pub struct Options {
    /// The ONNX model, or the folder of a repository with one; external data is looked for beside
    /// it, the tokenizer and the configs there or above `onnx`
    model: PathBuf,
    /// Folder of the store, made where it is missing
    #[arg(long)]
    store: PathBuf,
    /// Name of the model; by default the file's, or its repository's where the file is `model.onnx`
    #[arg(long)]
    name: Option<String>,
    /// Name of this version
    #[arg(long, default_value = "1")]
    version: String,
    /// Precisions to store, best first; f32 keeps the source's own
    #[arg(long, value_delimiter = ',', default_value = "f32")]
    variants: Vec<String>,
    /// Bytes from which a tensor is streamed; smaller ones stay in the graph, as axes and shapes
    /// must
    #[arg(long, default_value_t = THRESHOLD_BYTES, value_parser = value_parser!(u64).range(1024..))]
    threshold: u64,
    /// tokenizer.json of a text model; by default the one beside the model
    #[arg(long)]
    tokenizer: Option<PathBuf>,
    /// Output that is the embedding of a text, and how its tokens are pooled: OUTPUT[:POOLING]; by
    /// default as the files beside the model say
    #[arg(long)]
    embedding: Option<String>,
    /// How the vectors of a text's tokens become one: mean, cls, max, lasttoken, mean_sqrt_len or
    /// weightedmean; by default as 1_Pooling/config.json says
    #[arg(long)]
    pooling: Option<Named>,
    /// Size of an open dimension of the inputs, as NAME=SIZE; may be given several times
    #[arg(long = "dim", value_parser = parse_dim)]
    pub dims: Vec<(String, u64)>,
    /// Dimension of the inputs along which a request brings rows that are computed each by itself,
    /// or none; by default one that is called so and proves to be one
    #[arg(long, value_name = "NAME|none")]
    pub batch_axis: Option<String>,
    /// Compute nothing with made-up inputs: for models that only real inputs suit
    #[arg(long)]
    pub no_trial: bool,
    /// Replace the version where it is there already
    #[arg(long)]
    force: bool,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

/// Name of the graph's file in a version.
const GRAPH_NAME: &str = "graph.onnx";

/// Name of the tokenizer's file, in a version and beside a model.
const TOKENIZER_NAME: &str = "tokenizer.json";

/// Name of the file that decoded weights are put into while a version is built.
const SPOOL_NAME: &str = "spool";

/// What a build makes of its files before it writes anything.
pub struct Begun {
    place: Place,
    name: String,
    skim: Skim,
    weights: Vec<Weight>,
    settled: Settled,
    tokenizer: Option<Vec<u8>>,
    task: Option<Task>,
    text: Option<TextRules>,
}

/// Reads, checks and imports what `options` name.
pub fn begin(options: &Options) -> Result<Begun> {
    let place = Place::of(&options.model)?;
    let name = checked_name(options, &place)?;
    let mut skim = skim::skim(&place.model, options.threshold)?;
    let weights: Vec<Weight> = skim.weights.iter().map(describe).collect();
    let mut settled = dims::settle(&skim, &weights, options)?;
    skim.skeleton = std::mem::take(&mut settled.skeleton);
    let tokenizer = read_tokenizer(options, &place)?;
    let (task, text) = read_makers(options, &place, &settled.imported, tokenizer.as_deref())?;
    Ok(Begun { place, name, skim, weights, settled, tokenizer, task, text })
}

/// The model's name, once the store can take a version of it.
fn checked_name(options: &Options, place: &Place) -> Result<String> {
    let name = match &options.name {
        Some(name) => name.clone(),
        None => place.name()?,
    };
    for name in [&name, &options.version] {
        ensure!(manifest::is_name(name), StoreError::Name { name: name.clone() });
    }
    check_variants(&options.variants)?;
    let target = options.store.join(&name).join(&options.version);
    if target.exists() && !options.force {
        bail!(
            "version {} of {name} is in the store already\n\
             give another --version, or --force to replace it",
            options.version
        );
    }
    Ok(name)
}

/// Runs the command.
pub fn run(options: &Options) -> Result<ExitCode> {
    let started = Instant::now();
    interrupt::begin()?;
    checked_name(options, &Place::of(&options.model)?)?;
    let place_at_hand = rehearsal::of_build()?;
    let Begun { place, name, skim, weights, settled, tokenizer, task, text } =
        begin(options).map_err(|error| rehearsal::placed(error, place_at_hand))?;
    let Settled { imported, loading_bytes, graph_bytes, batch, notes, .. } = settled;
    notes.iter().filter(|_| !options.json).for_each(|note| hermes::tell!("{note}"));
    let needs = needs(&imported, graph_bytes);
    let plan = Plan::new(&skim, &imported);
    let needed = plan.stored_bytes(&options.variants)
        + skim.skeleton.len() as u64
        + tokenizer.as_ref().map_or(0, |bytes| bytes.len() as u64);
    interrupt::writing();
    let staging = store::staging(&options.store)?;
    store::check_room(&options.store, needed)?;
    let tokenizer = match tokenizer {
        Some(bytes) => Some(write_file(staging.path(), TOKENIZER_NAME, &bytes)?),
        None => None,
    };
    let graph = write_file(staging.path(), GRAPH_NAME, &skim.skeleton)?;
    let progress = Progress::new(plan.source_bytes(), options.json);
    let layers = plan.write(staging.path(), &options.variants, &progress)?;
    progress.finish();
    let manifest = Manifest {
        format: manifest::FORMAT,
        model: name.clone(),
        version: options.version.clone(),
        inputs: imported.inputs,
        outputs: imported.outputs,
        batch,
        graph,
        weights,
        layers,
        variants: options.variants.clone(),
        tokenizer,
        task,
        text,
        loading_bytes: Some(loading_bytes),
        needs: Some(needs),
        provenance: provenance(&place, &skim),
    };
    let json = serde_json::to_vec_pretty(&manifest)?;
    write_file(staging.path(), manifest::MANIFEST_NAME, &json)?;
    Rehearsal::Done { peak_bytes: loading_bytes }.write(staging.path(), manifest.graph.checksum)?;
    interrupt::check()?;
    let installed =
        store::install(&options.store, staging.path(), &name, &options.version, options.force)?;
    super::report::built(&installed, started.elapsed(), options.json)
}

fn parse_dim(text: &str) -> Result<(String, u64), String> {
    let parsed = text.split_once('=').and_then(|(name, size)| Some((name, size.parse().ok()?)));
    match parsed {
        Some((name, size)) if !name.is_empty() && size > 0 => Ok((name.to_string(), size)),
        _ => Err("expected NAME=SIZE, such as height=224".to_string()),
    }
}

/// What serving takes: the graph as a daemon holds it, and what passes of some lengths do.
fn needs(imported: &Imported, graph_bytes: u64) -> Needs {
    const LENGTHS: [u64; 10] = [1, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096];
    let lockstep = Lockstep::new(Arc::clone(&imported.plan));
    let pass = |length| PassNeeds { length, bytes: lockstep.footprint_at(length).alone_bytes };
    // In the order of the lengths, though a size may shrink with them.
    let mut most = 0;
    let passes = LENGTHS.map(pass).map(|pass| {
        most = pass.bytes.max(most);
        PassNeeds { bytes: most, ..pass }
    });
    Needs { graph_bytes, passes: passes.to_vec() }
}

fn check_variants(variants: &[String]) -> Result<()> {
    let known: Vec<&str> =
        codec::ALL.iter().map(|codec| codec.name()).filter(|name| *name != "bf16").collect();
    for (index, variant) in variants.iter().enumerate() {
        ensure!(
            known.contains(&variant.as_str()),
            "variant \"{variant}\" is unknown\nthere are {}",
            known.join(", ")
        );
        ensure!(!variants[..index].contains(variant), "variant {variant} is given twice");
    }
    ensure!(!variants.is_empty(), "no variant is given");
    Ok(())
}

fn describe(source: &skim::WeightSource) -> Weight {
    Weight { name: source.name.clone(), dtype: source.dtype, shape: source.shape.clone() }
}

/// Which tensors go into which layer, in tape order.
struct Plan<'a> {
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

    fn matrix<'a>(&self, source: &'a WeightSource) -> Matrix<'a> {
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

impl<'a> Plan<'a> {
    fn new(skim: &'a Skim, imported: &Imported) -> Plan<'a> {
        let nodes: Vec<&str> = imported.uses.iter().map(|used| used.node.as_str()).collect();
        let mut layers: Vec<(String, Vec<Tensor>)> = vec![];
        let mut placed = vec![];
        for (used, layer) in imported.uses.iter().zip(layers::assign(&nodes)) {
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
        Plan { skim, layers }
    }

    fn tensors(&self) -> impl Iterator<Item = &Tensor> {
        self.layers.iter().flat_map(|(_, tensors)| tensors)
    }

    fn source_bytes(&self) -> u64 {
        self.tensors().map(|tensor| self.skim.weights[tensor.weight].bytes()).sum()
    }

    /// Bytes the layer files will take, from above.
    fn stored_bytes(&self, variants: &[String]) -> u64 {
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
        sizes.sum::<u64>() + decoded.map(WeightSource::bytes).max().unwrap_or(0)
    }

    fn write(&self, folder: &Path, variants: &[String], progress: &Progress) -> Result<Vec<Layer>> {
        fs::create_dir(folder.join("layers"))?;
        let mut sources = Sources::new(folder.join(SPOOL_NAME));
        let layers = self.layers.iter().enumerate();
        let layers: Result<Vec<Layer>> = layers
            .map(|(index, (name, tensors))| {
                progress.layer(name);
                let next = self.layers.get(index + 1).map_or(&[][..], |(_, tensors)| tensors);
                for tensor in next {
                    sources.prefetch(&self.skim.weights[tensor.weight])?;
                }
                let layer = self.write_layer(
                    folder,
                    index,
                    name,
                    tensors,
                    variants,
                    &mut sources,
                    progress,
                )?;
                progress.layer_done(name);
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
        progress: &Progress,
    ) -> Result<Layer> {
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
            .collect::<Result<_>>()?;
        for (number, tensor) in tensors.iter().enumerate() {
            interrupt::check()?;
            let source = sources.spread(&self.skim.weights[tensor.weight])?;
            let matrix = tensor.matrix(&source);
            let heard = |bytes| progress.advance(bytes);
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

fn write_file(folder: &Path, name: &str, bytes: &[u8]) -> Result<FileEntry> {
    let path = folder.join(name);
    fs::write(&path, bytes).with_context(|| format!("cannot write {}", path.display()))?;
    let checksum = Checksum(xxhash_rust::xxh3::xxh3_64(bytes));
    Ok(FileEntry { path: name.to_string(), bytes: bytes.len() as u64, checksum })
}

/// Reads the tokenizer, where there is one, and tries that it is one.
fn read_tokenizer(options: &Options, place: &Place) -> Result<Option<Vec<u8>>> {
    let beside = place.folder.join(TOKENIZER_NAME);
    let path = match &options.tokenizer {
        Some(path) => path,
        None if beside.is_file() => &beside,
        None => return Ok(None),
    };
    let bytes =
        fs::read(path).with_context(|| format!("cannot read tokenizer {}", path.display()))?;
    if let Err(error) = tokenizers::Tokenizer::from_bytes(&bytes) {
        bail!(
            "{} is no tokenizer.json: {error}\n\
             give the one that belongs to the model with --tokenizer FILE",
            path.display()
        );
    }
    Ok(Some(bytes))
}

/// What the model makes of a text, and by which rules; neither where it has no tokenizer.
fn read_makers(
    options: &Options,
    place: &Place,
    imported: &Imported,
    tokenizer: Option<&[u8]>,
) -> Result<(Option<Task>, Option<TextRules>)> {
    let wish = Wish {
        embedding: options.embedding.as_deref(),
        pooling: options.pooling.map(|Named(pooling)| pooling),
    };
    let Some(tokenizer) = tokenizer else {
        let is_wished = wish.embedding.is_some() || wish.pooling.is_some();
        ensure!(!is_wished, "--embedding needs a tokenizer: give --tokenizer FILE");
        return Ok((None, None));
    };
    let makers = Makers::read(&place.folder, tokenizer)?;
    let (task, rules) = embedder::decide(wish, makers, imported)?;
    Ok((task, Some(rules)))
}

fn provenance(place: &Place, skim: &Skim) -> Provenance {
    let source = place.model.file_name().map(|name| name.to_string_lossy().into_owned());
    let created = SystemTime::now().duration_since(UNIX_EPOCH);
    Provenance {
        source: source.unwrap_or_default(),
        source_bytes: skim.source_bytes,
        producer: skim.producer.clone(),
        tool: format!("hermes-shard {}", env!("CARGO_PKG_VERSION")),
        created_s: created.map(|since| since.as_secs()).unwrap_or(0),
    }
}

//! From an order to an installed version.

use super::dims::{self, Settled};
use super::embedder::{self, Wish};
use super::makers::Makers;
use super::order::Order;
use super::place::Place;
use super::watch::Watch;
use super::write::Layers;
use crate::graph::skim::{self, Skim};
use crate::graph::{Imported, Lockstep};
use crate::store::manifest::{
    self, Checksum, FileEntry, Manifest, Needs, PassNeeds, Provenance, Task, TextRules, Weight,
};
use crate::store::{self, ModelDir, Rehearsal};
use anyhow::{Context, Result, bail, ensure};
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

/// Name of the graph's file in a version.
const GRAPH_NAME: &str = "graph.onnx";

/// Name of the tokenizer's file, in a version and beside a model.
const TOKENIZER_NAME: &str = "tokenizer.json";

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

/// Reads, checks and imports what `order` names.
///
/// # Errors
/// What cannot be read, or not be served.
pub fn begin(order: &Order) -> Result<Begun> {
    let place = Place::of(&order.model)?;
    let name = order.check_at(&place)?;
    let mut skim = skim::skim(&place.model, order.threshold_bytes)?;
    let weights: Vec<Weight> = skim.weights.iter().map(describe).collect();
    let mut settled = dims::settle(&skim, &weights, order)?;
    skim.skeleton = std::mem::take(&mut settled.skeleton);
    let tokenizer = read_tokenizer(order, &place)?;
    let (task, text) = read_makers(order, &place, &settled.imported, tokenizer.as_deref())?;
    Ok(Begun { place, name, skim, weights, settled, tokenizer, task, text })
}

impl Begun {
    /// What was decided, line by line.
    pub fn notes(&self) -> &[String] {
        &self.settled.notes
    }

    /// Writes the version and installs it.
    ///
    /// # Errors
    /// What cannot be read or written; nothing is left of it then.
    pub fn write(self, order: &Order, watch: &dyn Watch) -> Result<ModelDir> {
        let Begun { place, name, skim, weights, settled, tokenizer, task, text } = self;
        let Settled { imported, loading_bytes, graph_bytes, batch, .. } = settled;
        let needs = needs(&imported, graph_bytes);
        let layers = Layers::new(&skim, &imported.uses);
        let needed = layers.stored_bytes(&order.variants)
            + skim.skeleton.len() as u64
            + tokenizer.as_ref().map_or(0, |bytes| bytes.len() as u64);
        let staging = store::staging(&order.store)?;
        store::check_room(&order.store, needed)?;
        let tokenizer = match tokenizer {
            Some(bytes) => Some(write_file(staging.path(), TOKENIZER_NAME, &bytes)?),
            None => None,
        };
        let graph = write_file(staging.path(), GRAPH_NAME, &skim.skeleton)?;
        watch.expect(layers.source_bytes());
        let layers = layers.write(staging.path(), &order.variants, watch)?;
        let manifest = Manifest {
            format: manifest::FORMAT,
            model: name.clone(),
            version: order.version.clone(),
            inputs: imported.inputs,
            outputs: imported.outputs,
            batch,
            graph,
            weights,
            layers,
            variants: order.variants.clone(),
            tokenizer,
            task,
            text,
            loading_bytes: Some(loading_bytes),
            needs: Some(needs),
            provenance: provenance(&place, &skim),
        };
        let json = serde_json::to_vec_pretty(&manifest)?;
        write_file(staging.path(), manifest::MANIFEST_NAME, &json)?;
        let rehearsal = Rehearsal::Done { peak_bytes: loading_bytes };
        rehearsal.write(staging.path(), manifest.graph.checksum)?;
        watch.check()?;
        Ok(store::install(&order.store, staging.path(), &name, &order.version, order.force)?)
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

fn describe(source: &skim::WeightSource) -> Weight {
    Weight { name: source.name.clone(), dtype: source.dtype, shape: source.shape.clone() }
}

fn write_file(folder: &Path, name: &str, bytes: &[u8]) -> Result<FileEntry> {
    let path = folder.join(name);
    fs::write(&path, bytes).with_context(|| format!("cannot write {}", path.display()))?;
    let checksum = Checksum(xxhash_rust::xxh3::xxh3_64(bytes));
    Ok(FileEntry { path: name.to_string(), bytes: bytes.len() as u64, checksum })
}

/// Reads the tokenizer, where there is one, and tries that it is one.
fn read_tokenizer(order: &Order, place: &Place) -> Result<Option<Vec<u8>>> {
    let beside = place.folder.join(TOKENIZER_NAME);
    let path = match &order.tokenizer {
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
    order: &Order,
    place: &Place,
    imported: &Imported,
    tokenizer: Option<&[u8]>,
) -> Result<(Option<Task>, Option<TextRules>)> {
    let wish = Wish { embedding: order.embedding.as_deref(), pooling: order.pooling };
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

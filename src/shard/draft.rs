//! A version before anything of it is written, and after.

use super::building::{Building, UNTOLD};
use super::calibrate::{self, Sketch};
use super::configs::Files;
use super::dims::{self, Settled, Sizes};
use super::embedder::{self, Wish};
use super::error::{ShardError, ensure, unfit};
use super::files::{entry, write_file};
use super::generation;
use super::inputs::Inputs;
use super::makers::Makers;
use super::order::Order;
use super::source::{Source, TOKENIZER_NAME, TokenizerFile};
use super::watch::Watch;
use super::write::Layers;
use crate::graph::{Imported, Lockstep, WeightUse};
use crate::store::manifest::{
    self, FileEntry, Manifest, Needs, PassNeeds, Provenance, Task, TextRules, TokenizerNeeds,
    Weight,
};
use crate::store::{self, Cache, Decoder, GENERATION_NAME, Generation, ModelDir, Rehearsal};
use crate::text::vocabulary::Survey;
use crate::tokens::Assembled;
use serde::{Deserialize, Serialize};
use std::cmp::Ordering;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

/// Name of the graph's file in a version.
const GRAPH_NAME: &str = "graph.onnx";

/// What is found out about a model before anything is written. Finding it out is all that tract is
/// needed for, so a process of its own can do it, and tell it as a text.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Draft {
    /// The manifest, but for the layers.
    pub manifest: Manifest,
    /// What was decided, line by line.
    pub notes: Vec<String>,
    generation: Option<Generation>,
    sizes: Sizes,
    uses: Vec<WeightUse>,
    sketch: Sketch,
}

impl Draft {
    /// Imports and tries the model of `source`, and reads what its makers say.
    ///
    /// # Errors
    /// What makes it a model that cannot be served, or not as `order` wants it.
    pub fn of(order: &Order, source: &Source) -> Result<Draft, ShardError> {
        let skim = &source.skim;
        let describe = |weight: &crate::graph::skim::OnnxWeight| Weight {
            name: weight.name.clone(),
            dtype: weight.dtype,
            shape: weight.shape.clone(),
        };
        let weights: Vec<Weight> = skim.weights.iter().map(describe).collect();
        let settled = dims::settle(skim, &weights, order)?;
        let Said { task, text, tokens, survey } = read_makers(order, source, &settled.imported)?;
        let Settled { skeleton, imported, sizes, loading_bytes, graph_bytes, batch, notes } =
            settled;
        let generation = generation::read(source, &imported)?;
        let told = generation.iter().flat_map(|generation| generation.sources.iter().cloned());
        let unequal = tokens.zip(source.vocabulary).and_then(unequal);
        let found = source.notes.iter().cloned().chain(unequal);
        let notes = found.chain(notes).chain(told).collect();
        let sketch = Sketch::of(&imported);
        let manifest = Manifest {
            format: manifest::FORMAT,
            model: source.name.clone(),
            version: order.version.clone(),
            needs: graph_bytes.map(|bytes| Needs {
                tokenizer: survey.map(|survey| TokenizerNeeds {
                    loading_bytes: survey.loading_bytes(survey.kind, generation.is_some()),
                    held_bytes: survey.held_bytes(generation.is_some()),
                }),
                ..needs(&imported, bytes)
            }),
            inputs: imported.inputs,
            outputs: imported.outputs,
            batch,
            graph: entry(GRAPH_NAME, &skeleton),
            weights,
            layers: vec![],
            variants: order.variants.clone(),
            tokenizer: source.tokenizer.as_ref().map(entry_of),
            task,
            text,
            precision: None,
            generation: generation.as_ref().map(|told| entry(GENERATION_NAME, &told.to_json())),
            loading_bytes,
            provenance: provenance(source),
        };
        Ok(Draft { manifest, notes, generation, sizes, uses: imported.uses, sketch })
    }

    /// Reads what [`Draft::to_text`] wrote.
    ///
    /// # Errors
    /// A text that is none of a draft.
    pub fn parse(text: &str) -> Result<Draft, ShardError> {
        serde_json::from_str(text)
            .map_err(|error| unfit!("what was found out is no draft: {error}"))
    }

    /// All of it in one line.
    pub fn to_text(&self) -> String {
        serde_json::to_string(self).expect("its maps have names for keys")
    }

    /// Each variant with about the bytes that its layer files will have.
    pub fn variant_bytes(&self, source: &Source) -> Vec<(String, u64)> {
        let layers = Layers::new(&source.skim, &self.uses);
        let variants = self.manifest.variants.iter();
        variants.map(|variant| (variant.clone(), layers.encoded_bytes(variant))).collect()
    }

    /// Inputs that the order names, or made-up ones.
    ///
    /// # Errors
    /// Those that do not fit the model, or cannot be made up for it.
    fn inputs(&self, order: &Order, source: &Source) -> Result<Inputs, ShardError> {
        match &order.calibrate {
            Some(file) => {
                let tokenizer = source.tokenizer.as_ref();
                calibrate::read(file, &self.manifest, tokenizer, calibrate::MOST_INPUTS)
            }
            None => self.sketch.inputs(&self.manifest.inputs),
        }
    }

    /// The same, told of where they are made up; none where that cannot be done.
    fn learnt_from(
        &self,
        order: &Order,
        source: &Source,
        watch: &dyn Watch,
    ) -> Result<Option<Inputs>, ShardError> {
        match self.inputs(order, source) {
            Ok(inputs) if inputs.is_made_up => {
                let source = &inputs.source;
                watch.tell(&format!(
                    "weights are encoded for {source}: real inputs gain about a tenth more \
                     (--calibrate FILE)"
                ));
                Ok(Some(inputs))
            }
            Err(error) if order.calibrate.is_none() => {
                watch.tell(&format!("{UNTOLD}{error}"));
                Ok(None)
            }
            found => found.map(Some),
        }
    }

    /// Writes the version and installs it. `source` is what the draft is of. No tract is run, but
    /// for variants whose encoders learn what weights are used for.
    ///
    /// # Errors
    /// What cannot be read or written, or has changed; inputs that do not fit the model. Nothing is
    /// left of it then.
    pub fn write(
        self,
        order: &Order,
        source: Source,
        watch: &dyn Watch,
    ) -> Result<ModelDir, ShardError> {
        let inputs = if order.learns() { self.learnt_from(order, &source, watch)? } else { None };
        let Draft { mut manifest, generation, sizes, uses, .. } = self;
        let Source { mut skim, tokenizer, .. } = source;
        let skeleton = std::mem::take(&mut skim.skeleton);
        let skeleton =
            crate::graph::dims::settle(skeleton.as_slice(), &sizes).map_err(ShardError::Unfit)?;
        let is_same = manifest.graph == entry(GRAPH_NAME, &skeleton)
            && manifest.tokenizer == tokenizer.as_ref().map(entry_of);
        ensure!(is_same, "the model's files changed while they were read\nbuild it again");
        let layers = Layers::new(&skim, &uses);
        let building = Building { layers: &layers, order, watch };
        let small_bytes = skeleton.len() + tokenizer.as_ref().map_or(0, |file| file.bytes.len());
        let staging = store::staging(&order.store)?;
        store::check_room(&order.store, building.needed_bytes() + small_bytes as u64)?;
        if let Some(file) = tokenizer {
            write_file(staging.path(), TOKENIZER_NAME, &file.bytes)?;
        }
        if let Some(generation) = generation {
            write_file(staging.path(), GENERATION_NAME, &generation.to_json())?;
        }
        write_file(staging.path(), GRAPH_NAME, &skeleton)?;
        drop(skeleton);
        building.write(staging.path(), &mut manifest, inputs)?;
        let json = serde_json::to_vec_pretty(&manifest).expect("its maps have names for keys");
        write_file(staging.path(), manifest::MANIFEST_NAME, &json)?;
        if let Some(peak_bytes) = manifest.loading_bytes {
            Rehearsal::Done { peak_bytes }.write(staging.path(), manifest.graph.checksum)?;
        }
        if !watch.goes_on() {
            return Err(ShardError::Interrupted);
        }
        let Manifest { model, version, .. } = &manifest;
        Ok(store::install(&order.store, staging.path(), model, version, order.force)?)
    }
}

fn entry_of(file: &TokenizerFile) -> FileEntry {
    entry(TOKENIZER_NAME, &file.bytes)
}

/// What serving takes: the graph as a daemon holds it, and what passes of some lengths do.
fn needs(imported: &Imported, graph_bytes: u64) -> Needs {
    const LENGTHS: [usize; 10] = [1, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096];
    let plan = Lockstep::new(Arc::clone(&imported.plan));
    let footprints = plan.footprints_at(LENGTHS);
    let keeping = plan.keeping();
    let is_kept = |cache: &Cache| keeping.get(cache.past).is_some_and(Option::is_some);
    let decoder = Decoder::of(&imported.inputs, &imported.outputs);
    let appends = decoder.is_ok_and(|decoder| decoder.caches.iter().all(is_kept));
    // In the order of the lengths, though a size may shrink with them.
    let mut most = 0;
    let passes = LENGTHS.iter().zip(footprints).map(|(length, footprint)| {
        most = footprint.alone_bytes.max(most);
        PassNeeds { length: *length as u64, bytes: most }
    });
    Needs { graph_bytes, passes: passes.collect(), tokenizer: None, appends }
}

/// What is said of a model of texts; nothing of one without a tokenizer.
#[derive(Default)]
struct Said {
    /// What it makes of a text.
    task: Option<Task>,
    /// By which rules.
    text: Option<TextRules>,
    /// How many tokens there are.
    tokens: Option<u64>,
    /// What is in the tokenizer.
    survey: Option<Survey>,
}

/// What is to be said of a tokenizer that has another number of tokens than a table has rows.
fn unequal((tokens, rows): (u64, u64)) -> Option<String> {
    let what = match tokens.cmp(&rows) {
        Ordering::Equal => return None,
        Ordering::Less => "the last rows are no tokens",
        Ordering::Greater => "texts with the last tokens are refused",
    };
    Some(format!("the tokenizer has {tokens} tokens, the table of words {rows} rows: {what}"))
}

/// What the files beside a model say of texts.
fn read_makers(order: &Order, source: &Source, imported: &Imported) -> Result<Said, ShardError> {
    let wish = Wish { embedding: order.embedding.as_deref(), pooling: order.pooling };
    let Some(tokenizer) = &source.tokenizer else {
        let is_wished = wish.embedding.is_some() || wish.pooling.is_some();
        ensure!(!is_wished, "--embedding needs a tokenizer: give --tokenizer FILE");
        return Ok(Said::default());
    };
    let Assembled { tokenizer: parsed, survey, .. } = tokenizer.parse()?;
    let files = match &source.checkpoint {
        // A GGUF file has no folder of its own, and says the same in itself.
        Some(checkpoint) if !source.folder.is_dir() => Files::Made(&checkpoint.files),
        _ => Files::of(&source.folder),
    };
    let makers = Makers::read(&files, &tokenizer.bytes, &parsed)?;
    let (task, rules) = embedder::decide(wish, makers, imported)?;
    let tokens = Some(parsed.get_vocab_size(true) as u64);
    Ok(Said { task, text: Some(rules), tokens, survey: Some(survey) })
}

fn provenance(source: &Source) -> Provenance {
    let created = SystemTime::now().duration_since(UNIX_EPOCH);
    Provenance {
        source: source.file.clone(),
        source_bytes: source.skim.source_bytes,
        producer: source.skim.producer.clone(),
        tool: format!("hermes-shard {}", env!("CARGO_PKG_VERSION")),
        created_s: created.map(|since| since.as_secs()).unwrap_or(0),
    }
}

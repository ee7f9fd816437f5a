//! Plays a version by itself, with no engine: passes over given inputs, in any choice of variants.

use super::calibrate::{MOST_PROBED, Sketch, read};
use super::error::{ShardError, ensure, unfit};
use super::inputs::Inputs;
use super::source::TokenizerFile;
use super::watch::Watch;
use crate::codec::{self, Codec};
use crate::graph::{self, Imported, Walk, Walker, WeightUse, Weights};
use crate::store::layer_file::{LayerFile, Layout, TensorEntry, open_row};
use crate::store::manifest::Manifest;
use crate::store::{ModelDir, StoreError};
use crate::sys::lock::lock;
use crate::wire::Array;
use std::collections::HashMap;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Arc, Mutex};

/// Activations of the requests that are played together, at most, unless one takes more.
const TOGETHER_BYTES: u64 = 96 << 20;

/// A tensor that a choice has a variant for: one that is streamed by blocks, of floats.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Streamed {
    /// Index of its weight in the manifest, and how it is stored.
    pub weight: usize,
    pub layout: Layout,
    /// Index of its layer.
    pub layer: usize,
    /// Rows of its matrix (elements of a flat tensor), and elements of a row.
    pub rows: u64,
    pub depth: u64,
    /// Name of the ONNX node that uses it first; none where none does.
    pub node: String,
}

/// Sees what each product multiplies a tensor with: the tensor's place in the choice, and columns of
/// so many values, one after the other.
pub type Observer = dyn Fn(usize, &[f32], usize) + Send + Sync;

/// A variant for each tensor, its files open.
#[derive(Clone)]
pub struct Choice {
    variants: Vec<String>,
    stored: Vec<Stored>,
}

impl Choice {
    /// The variants, in the order of [`Player::tensors`].
    pub fn variants(&self) -> &[String] {
        &self.variants
    }
}

/// A version, and what plays it.
pub struct Player {
    dir: ModelDir,
    walker: Walker,
    sketch: Sketch,
    tensors: Vec<Streamed>,
    /// What each slot of the plan plays; none that the plan needs no more.
    parts: Vec<Option<Part>>,
    /// By layer and variant.
    files: Mutex<HashMap<(usize, String), Arc<LayerFile>>>,
}

/// What a slot plays.
#[derive(Clone)]
enum Part {
    /// The tensor of this place in the choice.
    Chosen(usize),
    /// What has no variants, or few rows of which are read: the best there is.
    Fixed(Stored),
}

/// A tensor in a layer file.
#[derive(Clone)]
struct Stored {
    file: Arc<LayerFile>,
    tensor: usize,
}

impl Stored {
    fn entry(&self) -> &TensorEntry {
        &self.file.index.tensors[self.tensor]
    }
}

impl Player {
    /// Prepares a version, in a store or where it is built; layer files are opened when a choice
    /// asks for them.
    ///
    /// # Errors
    /// A graph that cannot be imported, or that is not of the manifest or the layer files.
    pub fn open(dir: ModelDir) -> Result<Player, ShardError> {
        let manifest = &dir.manifest;
        let imported = graph::import(dir.read_file(&manifest.graph)?, &manifest.weights)?;
        ensure!(
            imported.inputs == manifest.inputs && imported.outputs == manifest.outputs,
            "graph and manifest disagree about the model's inputs or outputs\nshard the model again"
        );
        let walker = Walker::new(&imported).map_err(ShardError::io("start threads"))?;
        let slots = imported.uses.iter().map(|used| used.slot + 1).max().unwrap_or(0);
        let mut player = Player {
            dir,
            walker,
            sketch: Sketch::of(&imported),
            tensors: vec![],
            parts: vec![None; slots],
            files: Mutex::default(),
        };
        player.assign(&imported)?;
        Ok(player)
    }

    /// The version.
    pub fn dir(&self) -> &ModelDir {
        &self.dir
    }

    /// Inputs of a user's file, read with the version's own tokenizer, or made up.
    ///
    /// # Errors
    /// What does not fit the model, is empty or no number, with its place; where none can be made up.
    pub fn inputs(&self, file: Option<&Path>) -> Result<Inputs, ShardError> {
        let Some(file) = file else { return self.made_up_inputs() };
        let dir = &self.dir;
        let tokenizer = dir.manifest.tokenizer.as_ref().map(|entry| {
            let (path, bytes) = (dir.file_path(&entry.path)?, dir.read_file(entry)?);
            Ok::<_, StoreError>(TokenizerFile { path, bytes })
        });
        read(file, &dir.manifest, tokenizer.transpose()?.as_ref(), MOST_PROBED)
    }

    /// Inputs that the model takes, whatever they mean.
    ///
    /// # Errors
    /// Where none can be made up.
    pub fn made_up_inputs(&self) -> Result<Inputs, ShardError> {
        self.sketch.inputs(&self.dir.manifest.inputs)
    }

    /// The tensors that a choice has a variant for, in its order.
    pub fn tensors(&self) -> &[Streamed] {
        &self.tensors
    }

    /// The step of a pass at which a tensor is first needed; none where it is not needed at all.
    pub fn step_of(&self, tensor: usize) -> Option<usize> {
        let parts = self.parts.iter().enumerate();
        let slots = parts.filter(|(_, part)| matches!(part, Some(Part::Chosen(t)) if *t == tensor));
        slots.filter_map(|(slot, _)| self.walker.step_of(slot)).min()
    }

    /// Every product of a pass with one of the tensors, as its step and the tensor, in order.
    pub fn uses(&self) -> Vec<(usize, usize)> {
        let parts = self.parts.iter().enumerate();
        let uses = parts.filter_map(|(slot, part)| match part {
            Some(Part::Chosen(tensor)) => Some((self.walker.step_of(slot)?, *tensor)),
            _ => None,
        });
        let mut uses: Vec<_> = uses.collect();
        uses.sort_unstable();
        uses
    }

    /// Tells of files that have come since: `manifest` is the same but for its layers' files.
    pub fn set_manifest(&mut self, manifest: Manifest) {
        self.dir.manifest = Arc::new(manifest);
    }

    /// What a request holds beside others, weights left out.
    pub fn held_bytes(&self, request: &[Array]) -> u64 {
        let shapes: Vec<_> = request.iter().map(|array| array.shape.clone()).collect();
        self.walker.held_bytes(&shapes)
    }

    /// The best variant of every tensor.
    ///
    /// # Errors
    /// As [`Player::choose`].
    pub fn best(&self) -> Result<Choice, ShardError> {
        self.choose(&vec![self.dir.manifest.variants[0].as_str(); self.tensors.len()])
    }

    /// A variant for each tensor, in the order of [`Player::tensors`].
    ///
    /// # Errors
    /// A variant that is not there, or whose file is not what the manifest says.
    pub fn choose(&self, variants: &[impl AsRef<str>]) -> Result<Choice, ShardError> {
        let (count, found) = (self.tensors.len(), variants.len());
        ensure!(count == found, "a choice of {found} variants for {count} tensors");
        let variants = variants.iter().map(|variant| variant.as_ref().to_string()).collect();
        let mut choice = Choice { variants, stored: Vec::with_capacity(count) };
        for tensor in 0..count {
            let stored = self.stored(tensor, &choice.variants[tensor])?;
            choice.stored.push(stored);
        }
        Ok(choice)
    }

    /// `choice` with one tensor in another variant.
    ///
    /// # Errors
    /// As [`Player::choose`].
    pub fn with(
        &self,
        choice: &Choice,
        tensor: usize,
        variant: &str,
    ) -> Result<Choice, ShardError> {
        let mut choice = choice.clone();
        choice.stored[tensor] = self.stored(tensor, variant)?;
        choice.variants[tensor] = variant.to_string();
        Ok(choice)
    }

    /// Stored bytes of a choice, tables left out.
    pub fn stored_bytes(&self, choice: &Choice) -> u64 {
        (0..choice.stored.len()).map(|tensor| self.tensor_bytes(choice, tensor)).sum()
    }

    /// Stored bytes of one tensor of a choice.
    pub fn tensor_bytes(&self, choice: &Choice, tensor: usize) -> u64 {
        let Stored { file, .. } = &choice.stored[tensor];
        let blocks = &file.index.blocks[choice.stored[tensor].entry().blocks()];
        blocks.iter().map(|block| block.bytes).sum()
    }

    /// Rows of each table that the model picks from by index.
    pub fn table_rows(&self) -> Vec<u64> {
        let fixed = self.parts.iter().filter_map(|part| match part {
            Some(Part::Fixed(stored)) => Some(stored.entry()),
            _ => None,
        });
        fixed.filter(|entry| entry.layout == Layout::Rows).map(|entry| entry.rows).collect()
    }

    /// Runs of requests whose activations fit in memory together.
    pub fn groups(&self, requests: &[Vec<Array>]) -> Vec<Range<usize>> {
        let mut groups: Vec<Range<usize>> = vec![];
        let mut held_bytes = 0;
        for (index, request) in requests.iter().enumerate() {
            let bytes = self.held_bytes(request);
            match groups.last_mut() {
                Some(group) if held_bytes + bytes <= TOGETHER_BYTES => {
                    held_bytes += bytes;
                    group.end = index + 1;
                }
                _ => {
                    held_bytes = bytes;
                    groups.push(index..index + 1);
                }
            }
        }
        groups
    }

    /// The outputs of each request, in the order of the model's.
    ///
    /// # Errors
    /// What cannot be read or computed; [`ShardError::Interrupted`].
    pub fn pass(
        &self,
        choice: &Choice,
        requests: &[Vec<Array>],
        watch: &dyn Watch,
    ) -> Result<Vec<Vec<Array>>, ShardError> {
        self.finish(self.begin(requests)?, choice, watch)
    }

    /// The same; `observer` sees what products multiply the tensors with.
    ///
    /// # Errors
    /// As [`Player::pass`].
    pub fn observe(
        &self,
        choice: &Choice,
        requests: &[Vec<Array>],
        observer: Arc<Observer>,
        watch: &dyn Watch,
    ) -> Result<Vec<Vec<Array>>, ShardError> {
        let weights: Arc<dyn Weights> =
            Arc::new(Playing { observer: Some(observer), ..self.playing(choice) });
        let walk = self.walker.begin(requests)?;
        Ok(self.walker.finish(walk, &weights, &|| watch.goes_on())?)
    }

    /// Seats requests before the first step; [`Walk::fork`] lets them be gone on with twice.
    ///
    /// # Errors
    /// One that does not fit the model.
    pub fn begin(&self, requests: &[Vec<Array>]) -> Result<Walk, ShardError> {
        Ok(self.walker.begin(requests)?)
    }

    /// Goes on to `step`, without it.
    ///
    /// # Errors
    /// As [`Player::pass`].
    pub fn go(
        &self,
        walk: &mut Walk,
        step: usize,
        choice: &Choice,
        watch: &dyn Watch,
    ) -> Result<(), ShardError> {
        let weights: Arc<dyn Weights> = Arc::new(self.playing(choice));
        Ok(self.walker.go(walk, step, &weights, &|| watch.goes_on())?)
    }

    /// The same; `observer` sees what products on the way multiply the tensors with.
    ///
    /// # Errors
    /// As [`Player::pass`].
    pub fn go_seen(
        &self,
        walk: &mut Walk,
        step: usize,
        choice: &Choice,
        observer: Arc<Observer>,
        watch: &dyn Watch,
    ) -> Result<(), ShardError> {
        let weights: Arc<dyn Weights> =
            Arc::new(Playing { observer: Some(observer), ..self.playing(choice) });
        Ok(self.walker.go(walk, step, &weights, &|| watch.goes_on())?)
    }

    /// Goes on to the end: the outputs of each request.
    ///
    /// # Errors
    /// As [`Player::pass`].
    pub fn finish(
        &self,
        walk: Walk,
        choice: &Choice,
        watch: &dyn Watch,
    ) -> Result<Vec<Vec<Array>>, ShardError> {
        let weights: Arc<dyn Weights> = Arc::new(self.playing(choice));
        Ok(self.walker.finish(walk, &weights, &|| watch.goes_on())?)
    }

    /// Lists the tensors, and says what each slot plays.
    fn assign(&mut self, imported: &Imported) -> Result<(), ShardError> {
        let manifest = Arc::clone(&self.dir.manifest);
        let weights: HashMap<&str, usize> =
            manifest.weights.iter().enumerate().map(|(i, w)| (w.name.as_str(), i)).collect();
        let mut places = HashMap::new();
        for layer in 0..manifest.layers.len() {
            let file = self.file(layer, &manifest.variants[0])?;
            for (tensor, entry) in file.index.tensors.iter().enumerate() {
                let TensorEntry { layout, rows, depth, .. } = *entry;
                let weight = weights[entry.name.as_str()];
                let part = match entry.is_chosen() {
                    true => {
                        let node = String::new();
                        self.tensors.push(Streamed { weight, layout, layer, rows, depth, node });
                        Part::Chosen(self.tensors.len() - 1)
                    }
                    false => Part::Fixed(Stored { file: Arc::clone(&file), tensor }),
                };
                places.insert((weight, layout), (part, (rows, depth)));
            }
        }
        for WeightUse { slot, weight, kind, layout, node } in &imported.uses {
            let (name, shape) = (&manifest.weights[*weight].name, &manifest.weights[*weight].shape);
            let place = places.get(&(*weight, *layout));
            let place = place.filter(|(_, extent)| kind.extent(shape) == Some(*extent));
            let (part, _) = place.ok_or_else(|| {
                unfit!("no layer file has weight \"{name}\" as {layout:?}\nshard the model again")
            })?;
            self.parts[*slot] = Some(part.clone());
            if let Part::Chosen(tensor) = part
                && self.tensors[*tensor].node.is_empty()
            {
                self.tensors[*tensor].node.clone_from(node);
            }
        }
        Ok(())
    }

    /// A tensor in a variant, which has to be the same tensor there.
    fn stored(&self, tensor: usize, variant: &str) -> Result<Stored, ShardError> {
        let Streamed { weight, layout, layer, rows, depth, .. } = self.tensors[tensor];
        let file = self.file(layer, variant)?;
        let name = &self.dir.manifest.weights[weight].name;
        let found = file.index.tensor(name, layout);
        match found.filter(|(_, entry)| (entry.rows, entry.depth) == (rows, depth)) {
            Some((tensor, _)) => Ok(Stored { tensor, file: Arc::clone(&file) }),
            None => Err(unfit!("{} has no tensor \"{name}\" as that", file.path.display())),
        }
    }

    fn file(&self, layer: usize, variant: &str) -> Result<Arc<LayerFile>, StoreError> {
        let mut files = lock(&self.files);
        if let Some(file) = files.get(&(layer, variant.to_string())) {
            return Ok(Arc::clone(file));
        }
        let file = Arc::new(self.dir.open_layer(layer, variant)?);
        files.insert((layer, variant.to_string()), Arc::clone(&file));
        Ok(file)
    }

    fn playing(&self, choice: &Choice) -> Playing {
        let slot = |part: &Option<Part>| {
            Some(match part.as_ref()? {
                Part::Chosen(tensor) => (choice.stored[*tensor].clone(), Some(*tensor)),
                Part::Fixed(stored) => (stored.clone(), None),
            })
        };
        Playing { slots: self.parts.iter().map(slot).collect(), observer: None }
    }
}

/// The weights of a pass, by slot, with the tensor's place in the choice.
struct Playing {
    slots: Vec<Option<(Stored, Option<usize>)>>,
    observer: Option<Arc<Observer>>,
}

impl Playing {
    fn stored(&self, slot: usize) -> &Stored {
        let (stored, _) = self.slots[slot].as_ref().expect("the plan evaluates it");
        stored
    }
}

impl Weights for Playing {
    fn codec(&self, slot: usize) -> Option<&'static dyn Codec> {
        codec::by_code(self.stored(slot).entry().codec)
    }

    fn block_count(&self, slot: usize) -> usize {
        self.stored(slot).entry().block_count
    }

    fn block_bytes(&self, slot: usize, block: usize) -> usize {
        let stored = self.stored(slot);
        stored.file.block_bytes(stored.entry().first_block + block)
    }

    fn read_block(
        &self,
        slot: usize,
        block: usize,
        bytes: &mut [u8],
    ) -> Result<Range<usize>, StoreError> {
        let Stored { file, .. } = self.stored(slot);
        let block = self.stored(slot).entry().first_block + block;
        file.read_block_into(block, bytes)?;
        let block = &file.index.blocks[block];
        Ok(block.row_start as usize..(block.row_start + block.row_count) as usize)
    }

    fn read_row(&self, slot: usize, row: usize, bytes: &mut Vec<u8>) -> Result<(), StoreError> {
        let stored = self.stored(slot);
        let (file, entry) = (&stored.file, stored.entry());
        let blocks = &file.index.blocks[entry.blocks()];
        let block = &blocks[blocks.partition_point(|block| block.row_start <= row as u64) - 1];
        let stride = entry.row_stride();
        let offset = block.offset + (row as u64 - block.row_start) * stride as u64;
        bytes.resize(stride, 0);
        let io = |source| StoreError::Io { action: "read", path: file.path.clone(), source };
        file.file.read_exact_at(bytes, offset).map_err(io)?;
        let length = open_row(bytes).map(<[u8]>::len).ok_or_else(|| StoreError::Corrupt {
            path: file.path.clone(),
            what: format!("wrong checksum of row {row} of {:?}", entry.name),
        })?;
        bytes.truncate(length);
        Ok(())
    }

    fn observe(&self, slot: usize, columns: &[f32], depth: usize) {
        if let (Some(observer), Some((_, Some(tensor)))) = (&self.observer, &self.slots[slot]) {
            observer(*tensor, columns, depth);
        }
    }
}

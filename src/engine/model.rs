//! A loaded model: its graph in memory, its tape on disk.

use super::config::{DiskKind, Policy};
use super::doubt::Doubt;
use super::error::EngineError;
use super::needs::loading_bytes;
use super::pins::Pins;
use super::policy::largest_unit_bytes;
use super::rows;
use super::sources::Sources;
use super::tape::{Stretch, Tape};
use crate::graph::{self, Array, Footprint, GraphError, Imported, Lockstep};
use crate::plan::{Plan, Profile, Release};
use crate::store::manifest::{Batch, Dim, MAX_ROWS, Manifest, Port};
use crate::store::{ModelDir, Serving, layer_file::LayerFile};
use crate::stream::{Block, Category, Grant, Ledger, Slots, StreamError, WeightSource};
use crate::sys::heap;
use crate::sys::lock::lock;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use tract_core::internal::*;

/// A model ready for passes.
pub struct Model {
    pub dir: ModelDir,
    /// What tells its version from another.
    pub(super) serving: Serving,
    /// The variant its passes use.
    pub variant: String,
    pub(super) plan: Lockstep,
    pub(super) tape: Tape,
    pub(super) blocks: Arc<[Block]>,
    pub(super) pins: Pins,
    sources: Sources,
    playing: Mutex<Arc<Playing>>,
    profile: Mutex<Option<Arc<Profile>>>,
    doubt: Mutex<Doubt>,
    /// Why it was tried in vain to measure it, if it was.
    given_up: Mutex<Option<String>>,
    /// As requests give them.
    inputs: Vec<Port>,
    outputs: Vec<Port>,
    failure: OnceLock<String>,
    /// When it was used last.
    used: AtomicU64,
    /// Of the graph's bytes, those that lie between what is used of the heap.
    pub(super) holes_bytes: u64,
    graph: Grant,
}

/// What models of an engine are loaded with.
pub(super) struct Terms<'a> {
    /// The manifest's first where it is none.
    pub variant: Option<&'a str>,
    pub disk: DiskKind,
    pub policy: &'a Policy,
    /// The plan where nothing was measured, which the policy may change.
    pub base: Plan,
    pub slots: &'a Arc<Slots>,
    /// Granted for something that is idle while a model loads, the window: loading may use them.
    pub idle_bytes: u64,
    /// What importing its graph took when it was tried.
    pub rehearsed_bytes: Option<u64>,
    /// Heap that its manifest holds.
    pub manifest_bytes: u64,
    pub ledger: &'a Arc<Ledger>,
}

/// What a plan means for a model's tape.
pub(super) struct Playing {
    pub plan: Plan,
    pub source: Arc<dyn WeightSource>,
    /// How many blocks each unit has; nothing where each block is one.
    pub units: Vec<usize>,
    /// Bytes of memory of the largest unit, or of all where nothing is released before the end: the
    /// smallest window.
    pub largest_unit_bytes: u64,
}

impl Playing {
    fn of(plan: Plan, tape: &Tape, sources: &Sources) -> Playing {
        let source = Arc::clone(sources.by(plan.source));
        let units = tape.units(&plan.grouping);
        let held: Vec<u64> = tape.blocks.iter().map(|block| source.held_bytes(block)).collect();
        let largest_unit_bytes = match plan.release {
            Release::AfterUse => largest_unit_bytes(&units, &held),
            Release::AtEnd => held.iter().sum(),
        };
        Playing { plan, source, units, largest_unit_bytes }
    }

    /// Bytes of the window where memory is short.
    pub fn smallest_window_bytes(&self) -> u64 {
        (SMALLEST_WINDOW_UNITS * self.largest_unit_bytes).min(self.plan.window_bytes)
    }
}

/// Units of the window under pressure: one that compute uses, one that is loaded.
const SMALLEST_WINDOW_UNITS: u64 = 2;

/// A request's inputs in the plan's order, checked.
pub(super) struct Given<'a> {
    inputs: Vec<(&'a Port, &'a Array)>,
    batch: Option<&'a Batch>,
    /// Rows of its batch: one where the model has none.
    pub rows: usize,
}

impl Given<'_> {
    /// The axis that is cut into rows.
    fn cut_axis(&self, input: usize) -> Option<usize> {
        let batch = self.batch.filter(|_| self.rows > 1)?;
        batch.inputs[input].map(|axis| axis as usize)
    }

    /// The shapes of one row's inputs.
    pub fn row_shapes(&self) -> Vec<Vec<usize>> {
        let shape = |(input, (_, array)): (usize, &(&Port, &Array))| {
            let mut shape = array.shape.clone();
            if let Some(axis) = self.cut_axis(input) {
                shape[axis] = 1;
            }
            shape
        };
        self.inputs.iter().enumerate().map(shape).collect()
    }

    /// Each row's tensors: copies, to be made once they are granted.
    pub fn arrange(self) -> Result<Vec<TVec<TValue>>, EngineError> {
        let mut arranged = vec![tvec![]; self.rows];
        for (input, (port, array)) in self.inputs.iter().enumerate() {
            match self.cut_axis(input) {
                Some(axis) => {
                    for (row, values) in arranged.iter_mut().enumerate() {
                        values.push(value(port, &array.row(axis, row))?);
                    }
                }
                None => {
                    let shared = value(port, array)?;
                    arranged.iter_mut().for_each(|values| values.push(shared.clone()));
                }
            }
        }
        Ok(arranged)
    }
}

/// The longest size that an input's open dimensions are given.
pub(super) fn longest_open(ports: &[Port], inputs: &[(String, Array)]) -> u64 {
    let sizes = ports.iter().flat_map(|port| {
        let given = inputs.iter().find(|(name, _)| *name == port.name);
        let shape = given.map_or(&[][..], |(_, array)| &array.shape);
        port.shape.iter().zip(shape).filter(|(dim, _)| matches!(dim, Dim::Symbol(_)))
    });
    sizes.map(|(_, size)| *size as u64).max().unwrap_or(1)
}

impl Model {
    /// Loads the graph of `dir`. No weight is read: what is to be pinned stays as it passes.
    /// `plan` is asked how its tape, whose blocks take so many bytes each, is to be played.
    pub(super) fn load(
        dir: ModelDir,
        serving: Serving,
        terms: &Terms,
    ) -> Result<Model, EngineError> {
        let Terms { variant, disk, policy, ref base, slots, idle_bytes, ledger, .. } = *terms;
        let manifest = &dir.manifest;
        let variant = pick_variant(manifest, variant)?;
        let measured_bytes = manifest.loading_bytes.max(terms.rehearsed_bytes);
        let expected = loading_bytes(manifest.graph.bytes, measured_bytes);
        let mut grant = ledger.try_grant(Category::Graph, expected.saturating_sub(idle_bytes))?;
        let (read, took) = heap::measured(|| {
            let Imported { plan, uses, outputs, .. } = import_checked(&dir)?;
            let layers = 0..manifest.layers.len();
            let files: Vec<LayerFile> =
                layers.map(|layer| dir.open_layer(layer, &variant)).collect::<Result<_, _>>()?;
            let tape = Tape::build(manifest, &files, &uses)?;
            let files = files.into_iter().map(|layer| (layer.path, layer.file)).collect();
            let sources = Sources::open(files, disk, slots)?;
            Ok::<_, EngineError>((Lockstep::new(plan), tape, sources, outputs))
        });
        let (lockstep, tape, sources, outputs) = read?;
        let peak_bytes = took.heap.peak_bytes;
        log::debug!("loading held {peak_bytes} bytes at its peak, {expected} were expected");
        // Nothing is measured where the program does not count.
        if took.heap.held_bytes > 0 {
            grant.resize(took.resident_bytes() + terms.manifest_bytes)?;
        }
        let source = sources.by(base.source);
        let held: Vec<u64> = tape.blocks.iter().map(|block| source.held_bytes(block)).collect();
        let playing = Playing::of(policy.plan(&tape, &held, base.clone()), &tape, &sources);
        let held = tape.blocks.iter().map(|block| playing.source.held_bytes(block)).collect();
        let pins = Pins::none(held, ledger)?;
        Ok(Model {
            blocks: tape.blocks.clone().into(),
            serving,
            variant,
            plan: lockstep,
            tape,
            pins,
            sources,
            playing: Mutex::new(Arc::new(playing)),
            profile: Mutex::default(),
            doubt: Mutex::default(),
            given_up: Mutex::default(),
            inputs: manifest.given_inputs().collect(),
            outputs,
            failure: OnceLock::new(),
            used: AtomicU64::default(),
            holes_bytes: took.holes_bytes,
            graph: grant,
            dir,
        })
    }

    /// When it was used last, by the engine's count.
    pub(super) fn last_use(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    pub(super) fn note_use(&self, now: u64) {
        self.used.store(now, Ordering::Relaxed);
    }

    /// Name of the model.
    pub fn name(&self) -> &str {
        &self.dir.manifest.model
    }

    /// Bytes the graph holds.
    pub fn graph_bytes(&self) -> u64 {
        self.graph.bytes()
    }

    /// Bytes of the tape that stay in memory.
    pub fn pinned_bytes(&self) -> u64 {
        self.pins.bytes()
    }

    /// Bytes of the tape.
    pub fn tape_bytes(&self) -> u64 {
        self.tape.bytes()
    }

    /// The plan that its passes follow.
    pub fn plan(&self) -> Plan {
        self.playing().plan.clone()
    }

    /// How its passes are played.
    pub(super) fn playing(&self) -> Arc<Playing> {
        Arc::clone(&lock(&self.playing))
    }

    /// What was measured of it on this board.
    pub(super) fn profile(&self) -> Option<Arc<Profile>> {
        lock(&self.profile).clone()
    }

    /// Whether nothing is known of it on these cores, and could be.
    pub(super) fn is_to_be_measured(&self, cores: &[usize]) -> bool {
        let is_known = |profile: &Arc<Profile>| {
            profile.board.cores.iter().map(|core| core.id).eq(cores.iter().copied())
        };
        !self.blocks.is_empty()
            && self.given_up().is_none()
            && !self.profile().as_ref().is_some_and(is_known)
    }

    /// It is measured no more by itself.
    pub(super) fn give_up_measuring(&self, why: String) {
        *lock(&self.given_up) = Some(why);
    }

    /// Why it is measured no more, if it is not.
    pub(super) fn given_up(&self) -> Option<String> {
        lock(&self.given_up).clone()
    }

    pub(super) fn set_profile(&self, profile: Arc<Profile>) {
        *lock(&self.given_up) = None;
        *lock(&self.profile) = Some(profile);
    }

    /// Nothing is known of it from now on; it is played as before.
    pub(super) fn drop_profile(&self) {
        *lock(&self.profile) = None;
    }

    /// Its passes against their forecasts.
    pub(super) fn doubt(&self) -> MutexGuard<'_, Doubt> {
        lock(&self.doubt)
    }

    /// The length that all open dimensions of a pass's inputs have, in the plan's order: 1 where
    /// there are none, none where they differ.
    pub(super) fn tokens_of(&self, inputs: &TVec<TValue>) -> Option<u64> {
        let shapes = self.dir.manifest.inputs.iter().zip(inputs);
        let sizes = shapes.flat_map(|(port, input)| port.shape.iter().zip(input.shape()));
        let mut open = sizes.filter(|(dim, _)| matches!(dim, Dim::Symbol(_))).map(|(_, size)| size);
        let first = open.next().copied().unwrap_or(1);
        open.all(|size| *size == first).then_some(first as u64)
    }

    /// What a plan means for it.
    pub(super) fn playing_by(&self, plan: Plan) -> Playing {
        Playing::of(plan, &self.tape, &self.sources)
    }

    /// Its passes are played by `plan` from now on.
    pub(super) fn play_by(&self, plan: Plan) {
        let playing = self.playing_by(plan);
        let held = self.blocks.iter().map(|block| playing.source.held_bytes(block));
        self.pins.resize(held.collect());
        *lock(&self.playing) = Arc::new(playing);
    }

    /// Where its blocks come from.
    pub(super) fn sources(&self) -> &Sources {
        &self.sources
    }

    /// What brings its blocks in: "mapped", "read" or "direct".
    pub fn source_name(&self) -> &'static str {
        self.playing().source.name()
    }

    /// Name of the layer that is file `index`.
    pub(super) fn layer_name(&self, index: usize) -> String {
        self.dir.manifest.layers[index].name.clone()
    }

    /// Takes the model out of service.
    pub(super) fn fail(&self, cause: &StreamError) {
        let cause = cause.to_string().lines().next().unwrap_or_default().to_string();
        log::error!("model {} is out of service: {cause}", self.name());
        self.failure.get_or_init(|| cause);
    }

    /// An error where the model is out of service.
    pub(super) fn check_service(&self) -> Result<(), EngineError> {
        match self.failure.get() {
            None => Ok(()),
            Some(cause) => Err(EngineError::OutOfService {
                model: self.name().to_string(),
                cause: cause.clone(),
            }),
        }
    }

    /// Checks a request against the model's inputs.
    pub(super) fn check_inputs<'a>(
        &'a self,
        inputs: &'a [(String, Array)],
    ) -> Result<Given<'a>, EngineError> {
        let invalid = |text: String| Err(EngineError::Invalid(text));
        for (index, (name, _)) in inputs.iter().enumerate() {
            if !self.inputs.iter().any(|port| port.name == *name) {
                let known = describe_names(&self.inputs);
                return invalid(format!("input \"{name}\" is unknown: the model takes {known}"));
            }
            if inputs[..index].iter().any(|(earlier, _)| earlier == name) {
                return invalid(format!("input \"{name}\" is given twice"));
            }
        }
        let mut bound = HashMap::new();
        let mut given = vec![];
        for port in &self.inputs {
            let Some((_, array)) = inputs.iter().find(|(name, _)| *name == port.name) else {
                let Port { name, dtype, shape } = port;
                let shape = describe_shape(shape);
                return invalid(format!("input \"{name}\" is missing: expected {dtype} {shape}"));
            };
            check_input(port, array, &mut bound)?;
            given.push((port, array));
        }
        let batch = self.dir.manifest.batch.as_ref();
        let Some(batch) = batch else { return Ok(Given { inputs: given, batch, rows: 1 }) };
        let rows = bound.get(batch.name.as_str()).map_or(1, |(rows, _)| *rows);
        if !(1..=MAX_ROWS).contains(&rows) {
            return invalid(format!(
                "{} is {rows}: a request has 1 to {MAX_ROWS} rows in its batch",
                batch.name
            ));
        }
        Ok(Given { inputs: given, batch: Some(batch), rows })
    }

    /// What the rows of a request came to, as one answer; `outputs` are those it asked for.
    pub(super) fn join_rows(
        &self,
        rows: Vec<Vec<Array>>,
        outputs: &[usize],
    ) -> Result<Vec<Array>, EngineError> {
        let Some(batch) = self.dir.manifest.batch.as_ref().filter(|_| rows.len() > 1) else {
            return Ok(rows.into_iter().next().unwrap_or_default());
        };
        let mut rows: Vec<_> = rows.into_iter().map(Vec::into_iter).collect();
        let join = |output: &usize| {
            let parts = rows.iter_mut().filter_map(Iterator::next).collect();
            rows::join(self.output_name(*output), batch.outputs[*output] as usize, parts)
        };
        outputs.iter().map(join).collect()
    }

    /// Names the first axis of length 0 of a pass's inputs, which few models can do with.
    pub(super) fn empty_axis(&self, inputs: &TVec<TValue>) -> Option<String> {
        self.inputs.iter().zip(inputs).find_map(|(port, input)| {
            let axis = input.shape().iter().position(|size| *size == 0)?;
            Some(format!("input \"{}\" has length 0 in axis {axis}", port.name))
        })
    }

    /// Indices of the outputs that a request names, all of them where it names none.
    pub(super) fn pick_outputs(&self, names: &[String]) -> Result<Vec<usize>, EngineError> {
        if names.is_empty() {
            return Ok((0..self.outputs.len()).collect());
        }
        let find = |name: &String| {
            self.outputs.iter().position(|port| port.name == *name).ok_or_else(|| {
                let known = describe_names(&self.outputs);
                EngineError::Invalid(format!("output \"{name}\" is unknown: the model has {known}"))
            })
        };
        let twice = names.iter().enumerate().find(|(at, name)| names[..*at].contains(name));
        if let Some((_, name)) = twice {
            return Err(EngineError::Invalid(format!("output \"{name}\" is wanted twice")));
        }
        names.iter().map(find).collect()
    }

    /// Name of output `index`.
    pub(super) fn output_name(&self, index: usize) -> &str {
        &self.outputs[index].name
    }

    /// What a pass over inputs of these shapes, in the plan's order, will hold besides weights.
    pub(super) fn footprint(&self, shapes: &[Vec<usize>]) -> Footprint {
        let footprint = self.plan.footprint(shapes);
        Footprint { alone_bytes: footprint.alone_bytes + self.decoding_bytes(), ..footprint }
    }

    /// What the compute threads decode blocks into; once a pass.
    pub(super) fn decoding_bytes(&self) -> u64 {
        let decodes = |stretch: &Stretch| match stretch {
            Stretch::Blocks { codec, .. } => codec.is_some_and(|codec| !codec.is_plain_f32()),
            Stretch::Table(_) => false,
        };
        match self.tape.stretches.iter().any(decodes) {
            true => self.playing().plan.threads as u64 * self.plan.panel_bytes(),
            false => 0,
        }
    }
}

pub(super) fn pick_variant(
    manifest: &Manifest,
    wanted: Option<&str>,
) -> Result<String, EngineError> {
    let variant = wanted.or(manifest.variants.first().map(String::as_str)).unwrap_or("f32");
    if manifest.variants.iter().any(|known| known == variant) {
        return Ok(variant.to_string());
    }
    Err(EngineError::UnknownVariant {
        model: manifest.model.clone(),
        variant: variant.to_string(),
        known: manifest.variants.clone(),
    })
}

/// Reads and imports the graph, which has to have the manifest's inputs and outputs.
fn import_checked(dir: &ModelDir) -> Result<Imported, EngineError> {
    let manifest = &dir.manifest;
    let imported = graph::import(dir.read_file(&manifest.graph)?, &manifest.weights)?;
    if manifest.inputs == imported.inputs && manifest.outputs == imported.outputs {
        return Ok(imported);
    }
    let what = "the model's inputs or outputs".to_string();
    Err(GraphError::Mismatch { what }.into())
}

/// Limit of an axis of an input.
const MOST_LENGTH: usize = i32::MAX as usize;

/// Checks one input's type and shape; `bound` holds the sizes that symbols have so far.
fn check_input<'a>(
    port: &'a Port,
    array: &Array,
    bound: &mut HashMap<&'a str, (usize, &'a str)>,
) -> Result<(), EngineError> {
    let Port { name, dtype, shape } = port;
    let expected = format!("expected {dtype} {}", describe_shape(shape));
    let invalid =
        |what: String| Err(EngineError::Invalid(format!("input \"{name}\" {what}: {expected}")));
    if array.dtype != *dtype {
        return invalid(format!("is {}", array.dtype));
    }
    // Beside an axis of length 0 any other costs its sender nothing, and would overflow a size.
    if array.shape.len() != shape.len() || array.shape.iter().any(|size| *size > MOST_LENGTH) {
        return invalid(format!("has shape {:?}", array.shape));
    }
    for (axis, (size, dim)) in array.shape.iter().zip(shape).enumerate() {
        match dim {
            Dim::Fixed(fixed) if *fixed != *size as u64 => {
                return invalid(format!("has shape {:?}", array.shape));
            }
            Dim::Fixed(_) => {}
            Dim::Symbol(symbol) => {
                let (earlier, input) = *bound.entry(symbol).or_insert((*size, name));
                if earlier != *size {
                    return invalid(format!(
                        "has {symbol} = {size} in axis {axis} where input \"{input}\" has {earlier}"
                    ));
                }
            }
        }
    }
    Ok(())
}

/// The tensor of an input.
fn value(port: &Port, array: &Array) -> Result<TValue, EngineError> {
    match array.to_tensor() {
        Some(Ok(tensor)) => Ok(tensor.into_tvalue()),
        Some(Err(error)) => Err(EngineError::Internal(format!("{error:#}"))),
        None => Err(EngineError::Invalid(format!(
            "input \"{}\": {} cannot be computed with",
            port.name, array.dtype
        ))),
    }
}

fn describe_names(ports: &[Port]) -> String {
    let names: Vec<String> = ports.iter().map(|port| format!("\"{}\"", port.name)).collect();
    names.join(", ")
}

fn describe_shape(shape: &[Dim]) -> String {
    let dims: Vec<String> = shape
        .iter()
        .map(|dim| match dim {
            Dim::Fixed(size) => size.to_string(),
            Dim::Symbol(symbol) => symbol.clone(),
        })
        .collect();
    format!("[{}]", dims.join(", "))
}

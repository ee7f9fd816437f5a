//! How a model is played: swapped as a whole when its plan changes.

use super::config::DiskKind;
use super::error::EngineError;
use super::pins::Pins;
use super::sources::Sources;
use super::tape::{Stretch, Tape};
use crate::graph::WeightUse;
use crate::plan::{Plan, Release, largest_unit_bytes};
use crate::store::ModelDir;
use crate::store::layer_file::LayerFile;
use crate::stream::{Block, Ledger, Slots, WeightSource};
use std::ops::Range;
use std::sync::Arc;

/// A model's tape with one variant of each layer, and the files that it lies in.
pub(super) struct Cut {
    variants: Vec<String>,
    pub tape: Tape,
    pub sources: Sources,
}

impl Cut {
    /// Opens the files of these variants; no weight is read. `uses` are in the order of the plan.
    pub fn open(
        dir: &ModelDir,
        variants: Vec<String>,
        uses: &[WeightUse],
        disk: DiskKind,
        slots: &Arc<Slots>,
    ) -> Result<Cut, EngineError> {
        let layers = variants.iter().enumerate();
        let files: Vec<LayerFile> = layers
            .map(|(layer, variant)| dir.open_layer(layer, variant))
            .collect::<Result<_, _>>()?;
        let tape = Tape::build(&dir.manifest, &files, uses)?;
        let files = files.into_iter().map(|layer| (layer.path, layer.file)).collect();
        Ok(Cut { variants, tape, sources: Sources::open(files, disk, slots)? })
    }

    /// Whether it has these variants.
    pub fn is_of(&self, variants: &[String]) -> bool {
        self.variants == variants
    }

    /// Bytes of memory that each block takes where it comes from `source`.
    pub fn held_bytes(&self, source: &dyn WeightSource) -> Vec<u64> {
        self.tape.blocks.iter().map(|block| source.held_bytes(block)).collect()
    }
}

/// What a plan means for a model.
pub(super) struct Reel {
    pub plan: Plan,
    pub cut: Arc<Cut>,
    pub source: Arc<dyn WeightSource>,
    /// How many blocks each unit has.
    pub units: Vec<usize>,
    /// Bytes of memory of the largest unit, or of all where nothing is released before the end: the
    /// smallest window.
    pub largest_unit_bytes: u64,
    /// Those that stay; the next reel has them too where its blocks are the same.
    pub pins: Arc<Pins>,
}

/// Units of the window under pressure: one that compute uses, one that is loaded.
const SMALLEST_WINDOW_UNITS: u64 = 2;

impl Reel {
    /// How `plan` plays a cut, after `last` where there was one.
    pub fn new(
        plan: Plan,
        cut: &Arc<Cut>,
        last: Option<&Reel>,
        ledger: &Arc<Ledger>,
    ) -> Result<Reel, EngineError> {
        let source = Arc::clone(cut.sources.by(plan.source));
        let units = cut.tape.units(&plan.grouping);
        let held_bytes = cut.held_bytes(&*source);
        let largest_unit_bytes = match plan.release {
            Release::AfterUse => largest_unit_bytes(&units, &held_bytes),
            Release::AtEnd => held_bytes.iter().sum(),
        };
        let is_same = |last: &&Reel| Arc::ptr_eq(&last.cut, cut) && last.pins.is_of(&held_bytes);
        let pins = match last.filter(is_same) {
            Some(last) => Arc::clone(&last.pins),
            None => Arc::new(Pins::none(held_bytes, ledger)?),
        };
        let units = units.iter().map(Range::len).collect();
        Ok(Reel { plan, cut: Arc::clone(cut), source, units, largest_unit_bytes, pins })
    }

    /// The tape's blocks.
    pub fn blocks(&self) -> &Arc<[Block]> {
        &self.cut.tape.blocks
    }

    /// Bytes of the window where memory is short.
    pub fn smallest_window_bytes(&self) -> u64 {
        (SMALLEST_WINDOW_UNITS * self.largest_unit_bytes).min(self.plan.window_bytes)
    }

    /// Whether kernels have to decode any of the tape.
    pub fn decodes(&self) -> bool {
        self.cut.tape.stretches.iter().any(|stretch| match stretch {
            Stretch::Blocks { codec, .. } => codec.is_some_and(|codec| !codec.is_plain_f32()),
            Stretch::Table(_) => false,
        })
    }
}

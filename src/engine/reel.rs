//! How a model is played: swapped as a whole when its plan changes.

use super::choice::{Choice, Variants};
use super::config::DiskKind;
use super::error::EngineError;
use super::files::{LayerFiles, Part};
use super::needs::TAPE_BYTES;
use super::pins::Pins;
use super::sources::Sources;
use super::tape::{Stretch, Tape};
use crate::graph::WeightUse;
use crate::plan::{Plan, Release, largest_unit_bytes};
use crate::store::ModelDir;
use crate::stream::{Block, Category, Grant, Ledger, Slots, WeightSource};
use crate::sys::heap;
use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

/// A model's tape with one variant of each tensor, and the files that it lies in.
pub(super) struct Cut {
    variants: Variants,
    /// What tells its variants from others.
    pub choice: Choice,
    pub tape: Tape,
    pub sources: Sources,
    /// By file: which it is of the version's.
    parts: Box<[Part]>,
    /// What it holds of the heap, where that is not part of what its model holds.
    held: Option<Grant>,
}

impl Cut {
    /// Opens the files of these variants; no weight is read. `uses` are in the order of the plan.
    pub fn open(
        dir: &ModelDir,
        variants: Variants,
        uses: &[WeightUse],
        disk: DiskKind,
        slots: &Arc<Slots>,
    ) -> Result<Cut, EngineError> {
        let opened = LayerFiles::open(dir, &variants)?;
        let tape = Tape::build(&dir.manifest, &opened, uses)?;
        let LayerFiles { files, parts, choice, .. } = opened;
        let files = files.into_iter().map(|layer| (layer.path, layer.file)).collect();
        let sources = Sources::open(files, disk, slots)?;
        Ok(Cut { variants, choice, tape, sources, parts: parts.into(), held: None })
    }

    /// As [`Cut::open`], beside a model that is loaded: what it holds is granted.
    pub fn open_beside(
        dir: &ModelDir,
        variants: Variants,
        uses: &[WeightUse],
        (disk, slots): (DiskKind, &Arc<Slots>),
        ledger: &Arc<Ledger>,
    ) -> Result<Cut, EngineError> {
        let mut grant = ledger.try_grant(Category::Graph, TAPE_BYTES)?;
        let (cut, took) = heap::metered(|| Cut::open(dir, variants, uses, disk, slots));
        // Nothing is measured where the program does not count.
        if took.held_bytes > 0 {
            grant.resize(took.held_bytes)?;
        }
        Ok(Cut { held: Some(grant), ..cut? })
    }

    /// Whether it has these variants.
    pub fn is_of(&self, variants: &Variants) -> bool {
        self.variants == *variants
    }

    /// Where a block of it lies in the version, whichever tensors have which variant.
    pub fn place(&self, block: &Block) -> (&Part, u64) {
        (&self.parts[block.file], block.offset)
    }

    /// Bytes that it holds of the heap beside what its model does.
    pub fn held_beside_bytes(&self) -> u64 {
        self.held.as_ref().map_or(0, Grant::bytes)
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

    /// Has the pins of the reel that was played before it, as far as they are blocks of its own and
    /// within its plan; the others go.
    pub fn take_over(&self, last: &Reel) {
        if Arc::ptr_eq(&self.pins, &last.pins) {
            return;
        }
        let last_places = last.blocks().iter().enumerate();
        // The first where the tape has one twice.
        let places: HashMap<_, usize> =
            last_places.rev().map(|(index, block)| (last.cut.place(block), index)).collect();
        let same = |index: usize| places.get(&self.cut.place(&self.blocks()[index])).copied();
        self.pins.take_over(&last.pins, same, self.plan.pin_bytes);
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

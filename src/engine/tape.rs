//! Where a model's streamed ops find their weights: stretches of the tape, and tables.

use super::error::EngineError;
use super::files::LayerFiles;
use crate::codec::{self, Codec};
use crate::graph::{GraphError, WeightUse};
use crate::plan::Grouping;
use crate::store::layer_file::{LayerFile, Layout};
use crate::store::manifest::Manifest;
use crate::stream::Block;
use std::ops::Range;
use std::sync::Arc;

/// Where one streamed op's weight lies.
pub enum Stretch {
    /// Consecutive blocks of the tape.
    Blocks {
        /// Index of the first on the tape.
        first: usize,
        /// Rows of each.
        rows: Vec<Range<usize>>,
        codec: Option<&'static dyn Codec>,
    },
    /// A table whose rows are read as they are asked for.
    Table(Table),
}

impl Stretch {
    fn empty() -> Stretch {
        Stretch::Blocks { first: 0, rows: vec![], codec: None }
    }
}

/// A table of rows in a layer file.
pub struct Table {
    /// Index of its file in the source.
    pub file: usize,
    pub codec: Option<&'static dyn Codec>,
    /// Bytes from one row to the next.
    pub stride: u64,
    /// First row and offset of each block, ascending.
    blocks: Vec<(u64, u64)>,
}

impl Table {
    /// Offset of a row in its file.
    pub fn offset(&self, row: u64) -> u64 {
        let block = self.blocks.partition_point(|(start, _)| *start <= row) - 1;
        let (start, offset) = self.blocks[block];
        offset + (row - start) * self.stride
    }
}

/// A model's tape and what its ops find where.
pub struct Tape {
    pub blocks: Arc<[Block]>,
    /// By the streamed ops' slots.
    pub stretches: Vec<Stretch>,
    /// Index of each file's layer: tensors of a layer may lie in several.
    layers: Box<[usize]>,
}

impl Tape {
    /// Lays the uses, given in the order of the plan, end to end.
    pub fn build(
        manifest: &Manifest,
        layer_files: &LayerFiles,
        uses: &[WeightUse],
    ) -> Result<Tape, EngineError> {
        let files = &layer_files.files;
        let (mut blocks, mut stretches) = (vec![], vec![]);
        // Ops that the plan needs no more have slots too.
        let slots = uses.iter().map(|used| used.slot + 1).max().unwrap_or(0);
        stretches.resize_with(slots, Stretch::empty);
        for used in uses {
            let (weight, layout) = (&manifest.weights[used.weight], used.layout);
            let (file, tensor) = layer_files.place(&weight.name, layout).ok_or_else(|| {
                let what = format!("weight \"{}\" as {layout:?}, in no layer file", weight.name);
                GraphError::Mismatch { what }
            })?;
            let entry = &files[file].index.tensors[tensor];
            if (entry.dtype, &entry.dims) != (weight.dtype, &weight.shape) {
                let what = format!("the type or shape of weight \"{}\"", weight.name);
                return Err(GraphError::Mismatch { what }.into());
            }
            if used.kind.extent(&weight.shape) != Some((entry.rows, entry.depth)) {
                let what = format!("the rows of weight \"{}\" as {layout:?}", weight.name);
                return Err(GraphError::Mismatch { what }.into());
            }
            stretches[used.slot] = stretch(file, &files[file], tensor, &mut blocks);
        }
        let layers = layer_files.parts.iter().map(|part| part.layer).collect();
        Ok(Tape { blocks: blocks.into(), stretches, layers })
    }

    /// Bytes a pass reads from the tape, nothing pinned.
    pub fn bytes(&self) -> u64 {
        self.blocks.iter().map(|block| block.bytes).sum()
    }

    /// Index of a block's layer.
    pub fn layer_of(&self, block: &Block) -> usize {
        self.layers[block.file]
    }

    /// How many blocks each layer has.
    pub fn layers(&self) -> Vec<usize> {
        let layers = self.blocks.chunk_by(|a, b| self.layer_of(a) == self.layer_of(b));
        layers.map(<[Block]>::len).collect()
    }

    /// The blocks of each unit of a grouping: layers, where its runs are not those of this tape.
    pub fn units(&self, grouping: &Grouping) -> Vec<Range<usize>> {
        let layers = self.layers();
        let units = grouping.units(&layers).or_else(|| Grouping::Layers.units(&layers));
        units.unwrap_or_default()
    }
}

/// Where a tensor of a layer file lies; its blocks are appended to the tape's.
fn stretch(file: usize, layer: &LayerFile, tensor: usize, tape: &mut Vec<Block>) -> Stretch {
    let entry = &layer.index.tensors[tensor];
    let blocks = &layer.index.blocks[entry.blocks()];
    let codec = codec::by_code(entry.codec);
    if entry.layout == Layout::Rows {
        let stride = entry.row_stride() as u64;
        let blocks = blocks.iter().map(|block| (block.row_start, block.offset)).collect();
        return Stretch::Table(Table { file, codec, stride, blocks });
    }
    let first = tape.len();
    tape.extend(blocks.iter().map(|block| Block {
        file,
        offset: block.offset,
        bytes: block.bytes,
        checksum: block.checksum,
    }));
    let rows = blocks
        .iter()
        .map(|block| block.row_start as usize..(block.row_start + block.row_count) as usize)
        .collect();
    Stretch::Blocks { first, rows, codec }
}

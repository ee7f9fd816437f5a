//! Encodes one weight into every variant's layer file from one reading of it.

use super::error::{ShardError, unfit};
use super::tensor::{Matrix, Sources, Strip};
use crate::codec::{self, Codec, PANEL_ROWS};
use crate::store::Dtype;
use crate::store::layer_file::{BlockEntry, LayerWriter, Layout, seal_row};
use rayon::prelude::*;
use std::ops::Range;

/// How far a variant's weights are from the source's.
#[derive(Clone, Copy, Debug, Default)]
pub struct ErrorSums {
    squared_error: f64,
    squared: f64,
    max_error: f64,
}

impl ErrorSums {
    fn add(&mut self, other: ErrorSums) {
        self.squared_error += other.squared_error;
        self.squared += other.squared;
        self.max_error = self.max_error.max(other.max_error);
    }

    fn of(source: &[f32], decoded: &[f32]) -> ErrorSums {
        let mut sums = ErrorSums::default();
        for (x, y) in source.iter().zip(decoded) {
            let error = f64::from(x - y);
            sums.squared_error += error * error;
            sums.squared += f64::from(*x) * f64::from(*x);
            sums.max_error = sums.max_error.max(error.abs());
        }
        sums
    }

    /// Root of the mean squared error over the root mean square of the source.
    pub fn relative(&self) -> f64 {
        if self.squared > 0.0 { (self.squared_error / self.squared).sqrt() } else { 0.0 }
    }

    /// Largest absolute error.
    pub fn max(&self) -> f64 {
        self.max_error
    }
}

/// One variant's file of the layer that is being written.
pub struct Target {
    pub variant: String,
    pub writer: LayerWriter,
    pub errors: ErrorSums,
}

/// The codec code that stores `dtype` in `variant`: the source's own precision in `f32`, raw
/// where there is nothing to lower. Tables and constants are never lowered below q8: a pass
/// reads few rows of a table, and a convolution's kernels are few, but their errors reach
/// every layer behind them.
pub fn codec_of(variant: &str, layout: Layout, dtype: Dtype) -> u64 {
    let name = match (variant, dtype) {
        ("f32", Dtype::Fp16) => "f16",
        ("f32", Dtype::Bf16) => "bf16",
        ("a2" | "a3" | "a4" | "a5" | "a6", dtype) if dtype.is_float() && !layout.is_panels() => {
            "q8"
        }
        (name, dtype) if dtype.is_float() => name,
        _ => codec::RAW_NAME,
    };
    codec::by_name(name).map_or(codec::RAW, |codec| codec.code())
}

/// Whether decoding `codec` gives back the source's very values.
fn is_exact(codec: u64, dtype: Dtype) -> bool {
    codec == codec_of("f32", Layout::Panels, dtype)
}

/// Writes tensor `tensor` of every target from `matrix`; `progress` hears of source bytes.
pub fn write(
    matrix: &Matrix,
    layout: Layout,
    tensor: usize,
    targets: &mut [Target],
    sources: &mut Sources,
    progress: &dyn Fn(u64),
) -> Result<(), ShardError> {
    match layout {
        Layout::Flat => write_flat(matrix, tensor, targets, sources, progress),
        Layout::Panels | Layout::ColumnPanels | Layout::Rows => {
            write_rows(matrix, layout, tensor, targets, sources, progress)
        }
    }
}

/// The block that a target is filling.
struct Filling {
    block: usize,
    bytes: Vec<u8>,
    rows: u64,
}

fn write_rows(
    matrix: &Matrix,
    layout: Layout,
    tensor: usize,
    targets: &mut [Target],
    sources: &mut Sources,
    progress: &dyn Fn(u64),
) -> Result<(), ShardError> {
    let mut filling: Vec<Filling> = targets
        .iter()
        .map(|target| {
            let block = target.writer.tensors()[tensor].first_block;
            Filling { block, bytes: vec![], rows: 0 }
        })
        .collect();
    let step = matrix.strip_rows();
    let mut start = 0;
    while start < matrix.rows {
        let rows = start..(start + step).min(matrix.rows);
        start = rows.end;
        let strip = matrix.read(sources, rows.clone())?;
        for (target, filling) in targets.iter_mut().zip(&mut filling) {
            let code = target.writer.tensors()[tensor].codec;
            let unit_rows = if layout.is_panels() { PANEL_ROWS } else { 1 };
            let count = rows.len().div_ceil(unit_rows);
            for batch in (0..count).step_by(BATCH_UNITS) {
                let batch = batch..(batch + BATCH_UNITS).min(count);
                let units = encode_units(&strip, layout, code, matrix, batch.clone())?;
                for (index, unit) in batch.zip(units) {
                    target.errors.add(unit.errors);
                    filling.bytes.extend(unit.stored);
                    filling.rows += unit_rows.min(rows.len() - index * unit_rows) as u64;
                    flush(target, filling)?;
                }
            }
        }
        progress((rows.len() * matrix.depth * matrix.source.dtype.size()) as u64);
    }
    Ok(())
}

/// Writes the block out when all of its rows are there.
fn flush(target: &Target, filling: &mut Filling) -> Result<(), ShardError> {
    let block = &target.writer.blocks()[filling.block];
    if filling.rows == block.row_count {
        target.writer.write_block(filling.block, &filling.bytes)?;
        filling.bytes.clear();
        filling.rows = 0;
        // The last block of the last tensor is followed by none; nothing asks for it then.
        filling.block = (filling.block + 1).min(target.writer.blocks().len() - 1);
    }
    Ok(())
}

/// A panel or row, encoded.
struct Unit {
    stored: Vec<u8>,
    errors: ErrorSums,
}

/// Panels or rows that are encoded at once, by all threads together.
const BATCH_UNITS: usize = 64;

fn encode_units(
    strip: &Strip,
    layout: Layout,
    code: u64,
    matrix: &Matrix,
    units: Range<usize>,
) -> Result<Vec<Unit>, ShardError> {
    let exact = is_exact(code, matrix.source.dtype);
    let encode = |buffers: &mut (Vec<f32>, Vec<f32>), index: usize| {
        let (values, decoded) = buffers;
        let mut stored = vec![];
        let mut errors = ErrorSums::default();
        let lanes = if layout.is_panels() { PANEL_ROWS } else { 1 };
        match codec::by_code(code) {
            None => stored.extend(strip.row_bytes(index)),
            Some(codec) => {
                if layout.is_panels() {
                    strip.panel(index, values);
                } else {
                    strip.row(index, values);
                }
                errors = encode_run(codec, values, lanes, exact, decoded, &mut stored)
                    .map_err(|at| refuse(matrix, strip.rows.start + index * lanes + at % lanes))?;
            }
        }
        if layout == Layout::Rows {
            seal_row(&mut stored, 0);
        }
        Ok(Unit { stored, errors })
    };
    units.into_par_iter().with_min_len(4).map_init(Default::default, encode).collect()
}

fn refuse(matrix: &Matrix, row: usize) -> ShardError {
    unfit!(
        "weight \"{}\", row {row}, is infinite, not a number, or too large for the variant\n\
         give only --variants f32 for this model",
        matrix.source.name
    )
}

/// Encodes one run and measures its error; an error is the index of a value the codec cannot
/// hold.
fn encode_run(
    codec: &dyn Codec,
    values: &[f32],
    lanes: usize,
    exact: bool,
    decoded: &mut Vec<f32>,
    stored: &mut Vec<u8>,
) -> Result<ErrorSums, usize> {
    if exact {
        codec.encode(values, lanes, stored);
        let squared = values.iter().map(|x| f64::from(*x) * f64::from(*x)).sum();
        return Ok(ErrorSums { squared, ..ErrorSums::default() });
    }
    if let Some(index) = codec::first_non_finite(values) {
        return Err(index);
    }
    codec.encode(values, lanes, stored);
    decoded.resize(values.len(), 0.0);
    codec.decode(stored, lanes, decoded);
    match codec::first_non_finite(decoded) {
        Some(index) => Err(index),
        None => Ok(ErrorSums::of(values, decoded)),
    }
}

/// A flat tensor, block by block of each target.
fn write_flat(
    matrix: &Matrix,
    tensor: usize,
    targets: &mut [Target],
    sources: &mut Sources,
    progress: &dyn Fn(u64),
) -> Result<(), ShardError> {
    for target in targets.iter_mut() {
        let entry = &target.writer.tensors()[tensor];
        let (code, blocks) = (entry.codec, entry.blocks());
        let exact = is_exact(code, matrix.source.dtype);
        for block in blocks {
            let BlockEntry { row_start, row_count, .. } = target.writer.blocks()[block];
            let rows = usize::try_from(row_start).ok().zip(usize::try_from(row_count).ok());
            let (start, count) = rows.expect("a block is smaller than the memory");
            let run = Matrix { rows: matrix.rows, depth: 1, rows_contiguous: true, ..*matrix };
            let strip = run.read(sources, start..start + count)?;
            let mut stored = vec![];
            match codec::by_code(code) {
                None => stored.extend(strip.bytes()),
                Some(codec) => {
                    let mut values = vec![];
                    strip.run(&mut values);
                    let errors = encode_run(codec, &values, 1, exact, &mut vec![], &mut stored);
                    match errors {
                        Ok(errors) => target.errors.add(errors),
                        Err(at) => return Err(refuse(matrix, start + at)),
                    }
                }
            }
            target.writer.write_block(block, &stored)?;
        }
    }
    progress(matrix.source.bytes());
    Ok(())
}

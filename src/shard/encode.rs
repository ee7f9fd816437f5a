//! Encodes one weight into every variant's layer file from one reading of it.

use super::error::{ShardError, unfit};
use super::inputs::spread;
use super::statistics::Statistics;
use super::tensor::{Matrix, Sources, Strip};
use crate::codec::{self, Codec, PANEL_ROWS};
use crate::store::Dtype;
use crate::store::layer_file::{BlockEntry, LayerWriter, Layout, seal_row};
use rayon::prelude::*;

/// How far a variant's weights are from the source's.
#[derive(Clone, Copy, Debug, Default)]
pub struct ErrorSums {
    squared_error: f64,
    squared: f64,
    max_error: f64,
}

impl ErrorSums {
    /// Whether every value was a number.
    pub fn is_finite(&self) -> bool {
        self.squared.is_finite()
    }

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
    /// Whether errors are fed forward, where that lowers a tensor's loss.
    feeds: bool,
    /// Of each tensor, once it is written.
    pub losses: Vec<Loss>,
}

impl Target {
    /// A file that is begun.
    pub fn new(variant: &str, writer: LayerWriter) -> Target {
        let losses = vec![Loss::default(); writer.tensors().len()];
        let feeds = variant.ends_with(FED);
        Target { variant: variant.to_owned(), writer, errors: Default::default(), feeds, losses }
    }
}

/// What is put behind the name of a variant for files whose errors are fed forward, until it is
/// known whether these become the variant.
pub const FED: &str = ".fed";

/// What a tensor loses in a variant.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Loss {
    /// Mean square of what its product is off, summed over rows; of the weights themselves where
    /// nothing is known of what they are multiplied with.
    pub error: f64,
    /// Whether its errors were fed forward.
    pub is_fed: bool,
}

/// The codec code that stores `dtype` in `variant`: the source's own precision in `f32`, raw
/// where there is nothing to lower. Tables and constants are never lowered below q8: a pass
/// reads few rows of a table, and a convolution's kernels are few, but their errors reach
/// every layer behind them.
pub fn codec_of(variant: &str, layout: Layout, dtype: Dtype) -> u64 {
    let name = match (variant.strip_suffix(FED).unwrap_or(variant), dtype) {
        ("f32", Dtype::Fp16) => "f16",
        ("f32", Dtype::Bf16) => "bf16",
        (name, dtype) if dtype.is_float() && !layout.is_panels() && learns(name) => "q8",
        (name, dtype) if dtype.is_float() => name,
        _ => codec::RAW_NAME,
    };
    codec::by_name(name).map_or(codec::RAW, |codec| codec.code())
}

/// Whether a variant's encoder asks what weights are used for.
pub fn learns(variant: &str) -> bool {
    ["a2", "a3", "a4", "a5", "a6"].contains(&variant)
}

/// Whether decoding `codec` gives back the source's very values.
fn is_exact(codec: u64, dtype: Dtype) -> bool {
    codec == codec_of("f32", Layout::Panels, dtype)
}

/// What an encoder is told besides the weights.
#[derive(Clone, Copy)]
enum Knowing<'a> {
    Nothing,
    /// How much each step counts.
    Uses(&'a Statistics),
    /// That, and what later steps can make good of an error.
    Feedback(&'a Statistics),
}

impl<'a> Knowing<'a> {
    fn statistics(self) -> Option<&'a Statistics> {
        match self {
            Knowing::Nothing => None,
            Knowing::Uses(statistics) | Knowing::Feedback(statistics) => Some(statistics),
        }
    }
}

/// Writes tensor `tensor` of every target from `matrix`, with what is known of the inputs of its
/// products; `progress` hears of source bytes.
pub fn write(
    matrix: &Matrix,
    (layout, tensor): (Layout, usize),
    statistics: Option<&Statistics>,
    targets: &mut [Target],
    sources: &mut Sources,
    progress: &dyn Fn(u64),
) -> Result<(), ShardError> {
    match layout {
        Layout::Flat => write_flat(matrix, tensor, targets, sources, progress),
        Layout::Panels | Layout::ColumnPanels | Layout::Rows => {
            write_rows(matrix, (layout, tensor), statistics, targets, sources, progress)
        }
    }
}

/// The block that a target is filling.
struct Filling<'a> {
    block: usize,
    bytes: Vec<u8>,
    rows: u64,
    knowing: Knowing<'a>,
}

impl Filling<'_> {
    fn feeds(&self) -> bool {
        matches!(self.knowing, Knowing::Feedback(_))
    }
}

fn write_rows(
    matrix: &Matrix,
    (layout, tensor): (Layout, usize),
    statistics: Option<&Statistics>,
    targets: &mut [Target],
    sources: &mut Sources,
    progress: &dyn Fn(u64),
) -> Result<(), ShardError> {
    let knowing = statistics.map_or(Knowing::Nothing, Knowing::Uses);
    let mut filling: Vec<Filling> = targets
        .iter()
        .map(|target| {
            let block = target.writer.tensors()[tensor].first_block;
            Filling { block, bytes: vec![], rows: 0, knowing }
        })
        .collect();
    let step = matrix.strip_rows();
    let mut start = 0;
    while start < matrix.rows {
        let rows = start..(start + step).min(matrix.rows);
        let is_first = start == 0;
        start = rows.end;
        let strip = matrix.read(sources, rows.clone())?;
        let unit_rows = if layout.is_panels() { PANEL_ROWS } else { 1 };
        let count = rows.len().div_ceil(unit_rows);
        let units_of = |target: &Target| {
            let code = target.writer.tensors()[tensor].codec;
            Units { strip: &strip, layout, code, matrix }
        };
        for (target, filling) in targets.iter_mut().zip(&mut filling) {
            if is_first && target.feeds {
                filling.knowing = units_of(target).best(statistics, count)?;
                target.losses[tensor].is_fed = filling.feeds();
            }
        }
        for batch in (0..count).step_by(BATCH_UNITS) {
            let batch: Vec<usize> = (batch..(batch + BATCH_UNITS).min(count)).collect();
            let mut before: Option<(u64, Vec<Unit>)> = None;
            for (target, filling) in targets.iter_mut().zip(&mut filling) {
                let units = units_of(target);
                let encoded = match before.take() {
                    // Nothing is fed forward: it is what the same variant is without.
                    Some((code, same)) if code == units.code && !filling.feeds() => same,
                    _ => units.encode(&batch, filling.knowing)?,
                };
                for (index, unit) in batch.iter().zip(&encoded) {
                    target.errors.add(unit.errors);
                    target.losses[tensor].error += unit.loss;
                    filling.bytes.extend(&unit.stored);
                    filling.rows += unit_rows.min(rows.len() - index * unit_rows) as u64;
                    flush(target, filling)?;
                }
                before = (!filling.feeds()).then_some((units.code, encoded));
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
    loss: f64,
}

/// Panels or rows that are encoded at once, by all threads together.
const BATCH_UNITS: usize = 64;

/// Panels that tell whether feeding errors forward helps a tensor.
const SAMPLED_UNITS: usize = 8;

/// The panels or rows of a strip.
struct Units<'a> {
    strip: &'a Strip,
    layout: Layout,
    code: u64,
    matrix: &'a Matrix<'a>,
}

impl Units<'_> {
    /// Feeds errors forward where that lowers the loss of some of the `count` panels, by columns
    /// that nothing was learnt from.
    fn best<'a>(
        &self,
        statistics: Option<&'a Statistics>,
        count: usize,
    ) -> Result<Knowing<'a>, ShardError> {
        let Some(statistics) = statistics else { return Ok(Knowing::Nothing) };
        if !statistics.has_feedback() {
            return Ok(Knowing::Uses(statistics));
        }
        let sample = spread(count, SAMPLED_UNITS);
        let loss = |knowing| -> Result<f64, ShardError> {
            Ok(self.encode(&sample, knowing)?.iter().map(|unit| unit.loss).sum())
        };
        let (plain, fed) = (Knowing::Uses(statistics), Knowing::Feedback(statistics));
        Ok(if loss(fed)? < loss(plain)? { fed } else { plain })
    }

    fn encode(&self, units: &[usize], knowing: Knowing) -> Result<Vec<Unit>, ShardError> {
        let Units { strip, layout, code, matrix } = *self;
        let exact = is_exact(code, matrix.source.dtype);
        let encode = |buffers: &mut (Vec<f32>, Vec<f32>), index: &usize| {
            let (values, decoded) = buffers;
            let mut unit = Unit { stored: vec![], errors: ErrorSums::default(), loss: 0.0 };
            let lanes = if layout.is_panels() { PANEL_ROWS } else { 1 };
            match codec::by_code(code) {
                None => unit.stored.extend(strip.row_bytes(*index)),
                Some(codec) => {
                    if layout.is_panels() {
                        strip.panel(*index, values);
                    } else {
                        strip.row(*index, values);
                    }
                    encode_run(codec, values, lanes, exact, knowing, decoded, &mut unit).map_err(
                        |at| refuse(matrix, strip.rows.start + index * lanes + at % lanes),
                    )?;
                }
            }
            if layout == Layout::Rows {
                seal_row(&mut unit.stored, 0);
            }
            Ok(unit)
        };
        units.par_iter().with_min_len(4).map_init(Default::default, encode).collect()
    }
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
    knowing: Knowing,
    decoded: &mut Vec<f32>,
    unit: &mut Unit,
) -> Result<(), usize> {
    if exact {
        codec.encode(values, lanes, &mut unit.stored);
        unit.errors.squared = values.iter().map(|x| f64::from(*x) * f64::from(*x)).sum();
        return Ok(());
    }
    if let Some(index) = codec::first_non_finite(values) {
        return Err(index);
    }
    match knowing {
        Knowing::Nothing => codec.encode(values, lanes, &mut unit.stored),
        Knowing::Uses(statistics) => {
            codec.encode_weighted(values, lanes, statistics.weights(), &mut unit.stored);
        }
        Knowing::Feedback(statistics) => {
            statistics.encode_fed(codec, values, lanes, &mut unit.stored)
        }
    }
    decoded.resize(values.len(), 0.0);
    codec.decode(&unit.stored, lanes, decoded);
    if let Some(index) = codec::first_non_finite(decoded) {
        return Err(index);
    }
    unit.errors = ErrorSums::of(values, decoded);
    unit.loss = match knowing.statistics() {
        None => unit.errors.squared_error,
        Some(statistics) => {
            decoded.iter_mut().zip(values).for_each(|(decoded, value)| *decoded -= value);
            statistics.loss(decoded, lanes)
        }
    };
    Ok(())
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
            let mut unit = Unit { stored: vec![], errors: ErrorSums::default(), loss: 0.0 };
            match codec::by_code(code) {
                None => unit.stored.extend(strip.bytes()),
                Some(codec) => {
                    let (mut values, knowing) = (vec![], Knowing::Nothing);
                    strip.run(&mut values);
                    encode_run(codec, &values, 1, exact, knowing, &mut vec![], &mut unit)
                        .map_err(|at| refuse(matrix, start + at))?;
                    target.errors.add(unit.errors);
                    target.losses[tensor].error += unit.loss;
                }
            }
            target.writer.write_block(block, &unit.stored)?;
        }
    }
    progress(matrix.source.bytes());
    Ok(())
}

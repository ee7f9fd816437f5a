//! Inputs where there are none: random token ids and 1/f noise. Their statistics are near enough
//! those of real texts and images that the encoder keeps about nine tenths of what it gains by
//! them; those of white noise are not.

use super::MOST_INPUTS;
use crate::graph::{Imported, Sizes, indexed_rows, sample_of_shapes};
use crate::shard::error::{ShardError, unfit};
use crate::shard::inputs::Inputs;
use crate::store::Dtype;
use crate::store::manifest::Port;
use crate::wire::Array;
use serde::{Deserialize, Serialize};

/// Tokens of a pass, one after the other: 32 in the mean.
const LENGTHS: [usize; 8] = [32, 16, 48, 8, 64, 24, 40, 24];

/// Noise images that are made: each has many columns.
const IMAGES: usize = 24;

/// Fewest inputs that tell something.
const FEWEST: usize = 4;

/// Most bytes of one request, and of all: of larger images there are fewer.
const MOST_BYTES: usize = 64 << 20;
const ALL_BYTES: usize = 32 << 20;

/// What making inputs up needs to know of a graph.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sketch {
    /// For each input the rows of the table that it picks from.
    rows: Vec<Option<usize>>,
    /// Shapes of all inputs, of several lengths; none where no sizes are known to go together.
    shapes: Vec<Vec<Vec<usize>>>,
}

impl Sketch {
    /// Looks at a graph.
    pub fn of(imported: &Imported) -> Sketch {
        let sizes = Sizes::of(&imported.plan);
        let choice = sizes.choices(1).into_iter().next();
        let shapes = |length| sizes.shapes(choice.as_ref()?, length);
        let shapes = LENGTHS.into_iter().map_while(shapes).collect();
        Sketch { rows: indexed_rows(&imported.plan), shapes }
    }

    /// Inputs for a model with these.
    ///
    /// # Errors
    /// Where no sizes are known to go together, or they are too large.
    pub fn inputs(&self, ports: &[Port]) -> Result<Inputs, ShardError> {
        let advice = "give some of its inputs: --calibrate FILE.npz";
        let fillings: Vec<Filling> =
            ports.iter().zip(&self.rows).map(|(port, rows)| Filling::of(port, *rows)).collect();
        let has_ids = fillings.iter().any(|filling| matches!(filling, Filling::Ids(_)));
        let (count, what) = match (has_ids, fillings.contains(&Filling::Image)) {
            (true, _) => (MOST_INPUTS, "rows of random token ids"),
            (false, true) => (IMAGES, "images of 1/f noise"),
            (false, false) => (MOST_INPUTS, "made-up inputs"),
        };
        if self.shapes.is_empty() {
            return Err(unfit!("no sizes of the open dimensions are known to fit\n{advice}"));
        }
        let largest = self.shapes.iter().map(|shapes| bytes_of(ports, shapes)).max();
        let largest = largest
            .filter(|bytes| *bytes <= MOST_BYTES)
            .ok_or_else(|| unfit!("the model's inputs are too large to be made up\n{advice}"))?;
        let count = count.min(ALL_BYTES / largest.max(1)).max(FEWEST);
        let request = |number: usize| {
            let shapes = &self.shapes[number % self.shapes.len()];
            let sample = sample_of_shapes(ports, shapes.clone(), &self.rows);
            let sample = sample.map_err(|error| unfit!("no inputs can be made up: {error}"))?;
            let arrays = sample.into_iter().zip(&fillings).enumerate();
            let arrays = arrays.map(|(index, ((_, array), filling))| {
                let mut random = Random::new(((number as u64) << 16) + index as u64);
                filled(array, *filling, &mut random)
            });
            Ok(arrays.collect())
        };
        let requests = (0..count).map(request).collect::<Result<_, ShardError>>()?;
        Ok(Inputs { source: format!("{count} {what}"), is_made_up: true, requests })
    }
}

/// Bytes of inputs of these shapes.
fn bytes_of(ports: &[Port], shapes: &[Vec<usize>]) -> usize {
    let sizes = ports.iter().zip(shapes).map(|(port, shape)| {
        shape.iter().fold(port.dtype.size(), |all, dim| all.saturating_mul(*dim))
    });
    sizes.fold(0, usize::saturating_add)
}

/// What an input is filled with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Filling {
    /// Ids below this number.
    Ids(usize),
    /// 1/f noise over the last two axes.
    Image,
    /// The same over the last axis.
    Series,
    /// As every sample has it.
    Sample,
}

impl Filling {
    fn of(port: &Port, rows: Option<usize>) -> Filling {
        let is_told = ["mask", "type", "position"].iter().any(|word| port.name.contains(word));
        match (port.dtype, rows) {
            (Dtype::Int64 | Dtype::Int32, Some(rows)) if !is_told => Filling::Ids(rows),
            (Dtype::Fp32, _) if port.shape.len() == 4 => Filling::Image,
            (Dtype::Fp32, _) if !is_told => Filling::Series,
            _ => Filling::Sample,
        }
    }
}

fn filled(array: Array, filling: Filling, random: &mut Random) -> Array {
    let count: usize = array.shape.iter().product();
    let bytes: Vec<u8> = match filling {
        Filling::Sample => return array,
        Filling::Ids(rows) => {
            let size = array.dtype.size();
            let ids = (0..count).map(|_| random.below(rows as u64));
            ids.flat_map(|id| id.to_le_bytes()[..size].to_vec()).collect()
        }
        Filling::Image | Filling::Series => {
            let axes = if filling == Filling::Image { 2 } else { 1 };
            let plane = array.shape.len().saturating_sub(axes);
            let (planes, sizes) = array.shape.split_at(plane);
            let (height, width) = match sizes {
                [height, width] => (*height, *width),
                sizes => (1, sizes.iter().product()),
            };
            let planes = (0..planes.iter().product()).map(|_| noise(height, width, random));
            planes.flatten().flat_map(f32::to_le_bytes).collect()
        }
    };
    Array { bytes, ..array }
}

/// 1/f noise of mean 0 and variance 1: octaves of smooth noise, each of the same variance.
fn noise(height: usize, width: usize, random: &mut Random) -> Vec<f32> {
    let mut values = vec![0f32; height * width];
    let mut cells = 2;
    while cells <= height.max(width).max(2) {
        let (rows, columns) = (cells.min(height), cells.min(width));
        let grid: Vec<f32> = (0..(rows + 1) * (columns + 1)).map(|_| random.normal()).collect();
        for y in 0..height {
            let (row, down) = place(y, height, rows);
            for x in 0..width {
                let (column, right) = place(x, width, columns);
                let at = |row: usize, column: usize| grid[row * (columns + 1) + column];
                let above = at(row, column) * (1.0 - right) + at(row, column + 1) * right;
                let below = at(row + 1, column) * (1.0 - right) + at(row + 1, column + 1) * right;
                values[y * width + x] += above * (1.0 - down) + below * down;
            }
        }
        cells *= 2;
    }
    standardize(&mut values);
    values
}

/// The cell of `cells` over `length` positions in which `position` is, and how far in it.
fn place(position: usize, length: usize, cells: usize) -> (usize, f32) {
    let along = position as f32 * cells as f32 / length as f32;
    let cell = (along as usize).min(cells - 1);
    (cell, along - cell as f32)
}

fn standardize(values: &mut [f32]) {
    let count = values.len().max(1) as f32;
    let mean = values.iter().sum::<f32>() / count;
    values.iter_mut().for_each(|value| *value -= mean);
    let variance = values.iter().map(|value| value * value).sum::<f32>() / count;
    let scale = if variance > 0.0 { 1.0 / variance.sqrt() } else { 0.0 };
    values.iter_mut().for_each(|value| *value *= scale);
}

/// Numbers that are the same in every build (splitmix64).
struct Random(u64);

impl Random {
    fn new(seed: u64) -> Random {
        Random(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end.max(1)
    }

    /// Near enough a normal distribution: four uniform numbers.
    fn normal(&mut self) -> f32 {
        let uniform = |bits: u64| (bits & 0xffff) as f32 / 65536.0 - 0.5;
        let bits = self.next();
        (0..4).map(|part| uniform(bits >> (16 * part))).sum::<f32>() * 3f32.sqrt()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The mean square of the differences of neighbours, of values of variance 1.
    fn roughness(values: &[f32]) -> f32 {
        let steps = values.windows(2).map(|pair| (pair[1] - pair[0]).powi(2));
        steps.sum::<f32>() / (values.len() - 1) as f32
    }

    #[test]
    fn noise_is_of_all_octaves() {
        for (height, width) in [(1, 1), (1, 64), (32, 32), (48, 80)] {
            let values = noise(height, width, &mut Random::new(7));
            assert_eq!(values, noise(height, width, &mut Random::new(7)));
            let variance = values.iter().map(|value| value * value).sum::<f32>();
            let count = (height * width) as f32;
            assert!(count < 2.0 || (variance / count - 1.0).abs() < 1e-3, "{height} x {width}");
        }
        // White noise has 2, a ramp of a few steps next to nothing.
        let image = noise(64, 64, &mut Random::new(3));
        let rough = roughness(&image[..64]);
        assert!((0.01..1.0).contains(&rough), "{rough}");
    }

    #[test]
    fn inputs_are_filled_by_what_they_are_for() {
        let check = |name: &str, dtype, rank, rows, expected| {
            let shape = vec![crate::store::manifest::Dim::Fixed(1); rank];
            let port = Port { name: name.to_owned(), dtype, shape };
            assert_eq!(Filling::of(&port, rows), expected, "{name}");
        };
        check("input_ids", Dtype::Int64, 2, Some(100), Filling::Ids(100));
        check("ids", Dtype::Int32, 2, Some(9), Filling::Ids(9));
        check("token_type_ids", Dtype::Int64, 2, Some(2), Filling::Sample);
        check("position_ids", Dtype::Int64, 2, Some(512), Filling::Sample);
        check("attention_mask", Dtype::Int64, 2, None, Filling::Sample);
        check("attention_mask", Dtype::Fp32, 2, None, Filling::Sample);
        check("pixel_values", Dtype::Fp32, 4, None, Filling::Image);
        check("frames", Dtype::Fp32, 3, None, Filling::Series);
        check("flag", Dtype::Bool, 1, None, Filling::Sample);
    }
}

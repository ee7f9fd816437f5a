//! Inputs of a batch whose rows are as different as can be: of very different sizes and signs, so that
//! what one row lends another shows, be it little or only beyond a threshold.

use crate::store::Dtype;
use crate::store::manifest::Port;
use crate::wire::Array;
use half::{bf16, f16};

/// Rows of a batch to be: more than two, which a graph may cut off by itself.
pub const ROWS: u64 = 3;

/// How the floats of a row are made from noise between -1 and 1.
#[derive(Clone, Copy)]
pub struct Row {
    scale: f64,
    /// All of the sign of the scale.
    is_of_one_sign: bool,
}

/// Ways to make the rows of a batch. Some lie beyond what others have, some are of one sign, so that
/// "any" and "all" are answered otherwise with others than alone.
pub const WAYS: [[Row; ROWS as usize]; 2] = [
    [
        Row { scale: 1.0, is_of_one_sign: true },
        Row { scale: 100.0, is_of_one_sign: false },
        Row { scale: -0.1, is_of_one_sign: true },
    ],
    [
        Row { scale: 1.0, is_of_one_sign: false },
        Row { scale: 10_000.0, is_of_one_sign: true },
        Row { scale: -10_000.0, is_of_one_sign: true },
    ],
];

impl Row {
    /// Whether what is rounded grows in it, as in the argument of an exponential.
    pub fn is_large(self) -> bool {
        self.scale.abs() > 1.0
    }

    fn float(self, noise: f64) -> f64 {
        if self.is_of_one_sign { noise.abs() * self.scale } else { noise * self.scale }
    }
}

/// `plain` with other values along `axis`, where it has the batch: indices stay below `ids`.
pub fn uneven(port: &Port, plain: &Array, axis: usize, rows: &[Row], ids: u64) -> Array {
    let inner: usize = plain.shape[axis + 1..].iter().product();
    let last = plain.shape.last().copied().unwrap_or(1).max(1);
    let is_mask = port.name.contains("mask");
    let keeps = port.name.contains("type") || port.name.contains("position");
    let of_float = |place: Place| rows[place.row].float(noise(place.index));
    // A mask covers less of each row; other integers are indices, as far as anybody knows.
    let integer = |place: Place, limit: u64| match is_mask {
        true => u64::from(place.index % last < last.saturating_sub(place.row).max(1)),
        false => (mixed(place.column) + place.row as u64 * 101) % ids.min(limit),
    };
    let places = (0..plain.shape.iter().product()).map(|index| {
        let row = index / inner.max(1) % plain.shape[axis].max(1) % rows.len();
        Place { index, row, column: index - row * inner }
    });
    let dtype = plain.dtype;
    let bytes: Vec<u8> = match dtype {
        Dtype::Fp16 => places.flat_map(|p| f16::from_f64(of_float(p)).to_le_bytes()).collect(),
        Dtype::Bf16 => places.flat_map(|p| bf16::from_f64(of_float(p)).to_le_bytes()).collect(),
        Dtype::Fp32 => places.flat_map(|p| (of_float(p) as f32).to_le_bytes()).collect(),
        Dtype::Fp64 => places.flat_map(|p| of_float(p).to_le_bytes()).collect(),
        _ if keeps => return plain.clone(),
        Dtype::Bool if is_mask => places.map(|p| integer(p, 2) as u8).collect(),
        Dtype::Bool => places.map(|p| u8::from(of_float(p) > 0.0)).collect(),
        _ => {
            let limit = if dtype.size() == 1 { 128 } else { u64::MAX };
            let little = |p| integer(p, limit).to_le_bytes().into_iter().take(dtype.size());
            places.flat_map(little).collect()
        }
    };
    let shape = plain.shape.clone();
    Array { dtype, shape, bytes }
}

/// An element: where it is, in which row, and where it would be in the first row.
#[derive(Clone, Copy)]
struct Place {
    index: usize,
    row: usize,
    column: usize,
}

fn mixed(index: usize) -> u64 {
    u64::from((index as u32).wrapping_mul(2_654_435_761).wrapping_add(12_345) >> 8)
}

/// Of either sign, between a quarter and 1.
fn noise(index: usize) -> f64 {
    let noise = mixed(index) as f64 / f64::from(1 << 23) - 1.0;
    0.25f64.mul_add(noise.signum(), noise * 0.75)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::manifest::Dim;

    fn made(dtype: Dtype, name: &str, way: usize) -> Vec<Array> {
        let shape = [2, ROWS, 4];
        let dims = shape.map(Dim::Fixed).to_vec();
        let port = Port { name: name.to_owned(), dtype, shape: dims };
        let shape = shape.map(|size| size as usize).to_vec();
        let plain = Array::new(dtype, shape, vec![0; 24 * dtype.size()]).unwrap();
        let array = uneven(&port, &plain, 1, &WAYS[way], 5);
        (0..ROWS as usize).map(|row| array.row(1, row)).collect()
    }

    /// Rows of one size hid what a hundredth of their mean does, and rows of f16 were all zeros.
    #[test]
    fn rows_differ_in_size_and_sign() {
        for dtype in [Dtype::Fp16, Dtype::Bf16, Dtype::Fp32] {
            let [a, b, c] = <[Array; 3]>::try_from(made(dtype, "x", 0)).unwrap();
            let [a, b, c] = [a, b, c].map(|row| row.floats().unwrap());
            assert!(a.iter().all(|v| (0.0..=1.0).contains(v)), "{a:?}");
            assert!(b.iter().any(|v| *v > 20.0) && b.iter().any(|v| *v < -20.0), "{b:?}");
            assert!(c.iter().all(|v| (-0.11..0.0).contains(v)), "{c:?}");
        }
        for dtype in [Dtype::Int64, Dtype::Uint8] {
            let rows = made(dtype, "ids", 0);
            assert!(rows[0] != rows[1] && rows[1] != rows[2] && rows[0] != rows[2]);
            assert!(rows.iter().flat_map(|row| &row.bytes).all(|byte| *byte < 5));
        }
        let ones = |row: &Array| row.bytes.iter().filter(|byte| **byte == 1).count();
        let masks = made(Dtype::Bool, "mask", 0);
        assert_eq!(masks.iter().map(ones).collect::<Vec<_>>(), [8, 6, 4]);
    }
}

//! What the asymmetric codecs share: the frame of a run and how integers are packed.
//!
//! A value is `scale * integer + minimum`, both of a group of a lane's steps. A run has a header, a
//! few bf16 a lane, which says what scales are in units of; then its groups. A group has a byte or
//! two a lane for scale and minimum (`scales`), then the packed integers. All that a lane has lies
//! in planes of one byte a lane, so that a panel is decoded by whole vectors, and a run of one lane
//! is one lane's bytes of a panel. The last group of a run is padded with zeros.
//!
//! Integers are packed in one or two planes of bits. In a plane of `b` bits over `v` bytes, step
//! `j` has the bits from `j / v * b` of byte `j % v`: what one vector holds are steps far apart, and
//! each of them is one shift and one mask for all lanes.
//!
//! Every product of the decoder is exact in f32, so one rounding is all there is, whatever the
//! instructions.

mod fed;
mod fit;
pub(super) mod scales;
#[cfg(test)]
mod tests;

use super::{
    Codec, Feedback, PANEL_ROWS, Sums,
    columns::{self, Columns},
    first_non_finite,
    simd::{self, lanes::Lanes},
    steps::{self, Steps},
};
use fit::{Encoded, Fitting, Grid, Normal};
use scales::Scales;
use std::{array, fmt, marker::PhantomData};

/// Rows with no larger magnitude than this (2^-90) are stored as zeros: what stands in their header
/// would leave bf16's normal range.
const FLUSH: f32 = 8.077_936e-28;

/// Larger magnitudes are stored as this one (just below 2^126), so that no product overflows.
const LARGEST: f32 = 8.507_058e37;

/// Bytes of one lane's value in a header.
const HEAD_BYTES: usize = 2;

/// How one codec packs its integers and scales; [`Framed`] makes it a [`Codec`].
pub(super) trait Affine: Send + Sync + fmt::Debug + 'static {
    /// The name users write.
    const NAME: &'static str;
    /// The code that stands for it in a layer file.
    const CODE: u64;
    /// Steps of a group.
    const DEPTH: usize;
    /// Bits of the plane of an integer's low bits: 2 or 4.
    const LOW_BITS: usize;
    /// Bits of the plane of its high bits: 0, 1 or 2.
    const HIGH_BITS: usize;
    /// The largest part of a group's range that the encoder tries to give up at an end, so that the
    /// other values lie closer.
    const CLIP: f32;
    /// What scales and minima are stored as.
    type Scales: Scales;
}

/// Bytes of a plane of `bits` in a group of `depth` steps of one lane.
const fn plane_bytes(depth: usize, bits: usize) -> usize {
    depth * bits / 8
}

/// Bytes of a lane's group.
const fn group_bytes<A: Affine>() -> usize {
    A::Scales::CODES + plane_bytes(A::DEPTH, A::LOW_BITS) + plane_bytes(A::DEPTH, A::HIGH_BITS)
}

/// Bytes of a lane's header.
const fn header_bytes<A: Affine>() -> usize {
    A::Scales::HEADS * HEAD_BYTES
}

const fn levels<A: Affine>() -> f32 {
    ((1 << (A::LOW_BITS + A::HIGH_BITS)) - 1) as f32
}

/// The codec that packs as `A` says.
#[derive(Debug)]
pub(super) struct Framed<A>(pub A);

impl<A: Affine> Codec for Framed<A> {
    fn name(&self) -> &'static str {
        A::NAME
    }

    fn code(&self) -> u64 {
        A::CODE
    }

    fn stored_bytes(&self, depth: usize, lanes: usize) -> usize {
        lanes * (header_bytes::<A>() + depth.div_ceil(A::DEPTH) * group_bytes::<A>())
    }

    fn encode(&self, values: &[f32], lanes: usize, stored: &mut Vec<u8>) {
        encode::<A>(values, lanes, &Wish::Plain, stored);
    }

    fn encode_weighted(&self, values: &[f32], lanes: usize, weights: &[f32], stored: &mut Vec<u8>) {
        encode::<A>(values, lanes, &Wish::Weighted(weights), stored);
    }

    fn encode_fed(
        &self,
        values: &[f32],
        lanes: usize,
        weights: &[f32],
        feedback: &Feedback,
        stored: &mut Vec<u8>,
    ) {
        encode::<A>(values, lanes, &Wish::Fed(weights, feedback), stored);
    }

    fn decode(&self, stored: &[u8], lanes: usize, values: &mut [f32]) {
        match lanes {
            1 => decode_line::<A>(stored, values),
            PANEL_ROWS => steps::decode::<Framed<A>>(stored, values),
            _ => panic!("a run has 1 or {PANEL_ROWS} lanes, not {lanes}"),
        }
    }

    fn multiply(&self, stored: &[u8], columns: &Columns, sums: &mut Sums) {
        columns::multiply::<Framed<A>>(stored, columns, sums);
    }

    fn error_bound(&self, group_max: f32, run_max: f32) -> f32 {
        const ROUNDING: f32 = 1.0 + 1e-5;
        let excess = (run_max - LARGEST).max(0.0).next_up();
        let limit = Grid::of::<A>().limit(group_max.min(LARGEST), run_max.min(LARGEST));
        limit * ROUNDING + (FLUSH + excess)
    }
}

/// Decodes a run of one lane.
fn decode_line<A: Affine>(stored: &[u8], values: &mut [f32]) {
    let bytes = header_bytes::<A>() + values.len().div_ceil(A::DEPTH) * group_bytes::<A>();
    assert_eq!(stored.len(), bytes, "stored bytes of a run in {}", A::NAME);
    let (header, groups) = stored.split_at(header_bytes::<A>());
    let mut heads = [0.0; 2];
    for (head, bytes) in heads.iter_mut().zip(header.as_chunks::<HEAD_BYTES>().0) {
        *head = f32::from_bits(u32::from(u16::from_le_bytes(*bytes)) << 16);
    }
    for (values, stored) in values.chunks_mut(A::DEPTH).zip(groups.chunks_exact(group_bytes::<A>()))
    {
        let (codes, planes) = stored.split_at(A::Scales::CODES);
        let (scale, minimum) = A::Scales::read(&heads, codes);
        let (low, high) = planes.split_at(plane_bytes(A::DEPTH, A::LOW_BITS));
        let field = |plane: &[u8], bits: usize, step: usize| {
            plane[step % plane.len()] >> (step / plane.len() * bits) & ((1 << bits) - 1)
        };
        for (step, value) in values.iter_mut().enumerate() {
            let mut integer = field(low, A::LOW_BITS, step);
            if A::HIGH_BITS > 0 {
                integer |= field(high, A::HIGH_BITS, step) << A::LOW_BITS;
            }
            *value = f32::from(integer) * scale + minimum;
        }
    }
}

/// A group of a panel.
pub(super) struct Group<'a, L> {
    scales: L,
    minima: L,
    /// The planes of low and high bits.
    planes: [&'a [[u8; PANEL_ROWS]]; 2],
}

impl<A: Affine> Steps for Framed<A> {
    const DEPTH: usize = A::DEPTH;
    const BYTES: usize = PANEL_ROWS * group_bytes::<A>();
    type Head<L: Lanes> = [L; 2];
    type Group<'a, L: Lanes> = Group<'a, L>;

    #[inline(always)]
    fn open<L: Lanes>(stored: &[u8]) -> ([L; 2], &[u8]) {
        let (header, groups) = stored.split_at(PANEL_ROWS * header_bytes::<A>());
        let heads = header.as_chunks().0;
        let first = L::uppers(&heads[0]);
        ([first, if A::Scales::HEADS > 1 { L::uppers(&heads[1]) } else { first }], groups)
    }

    #[inline(always)]
    fn group<'a, L: Lanes>(heads: &[L; 2], stored: &'a [u8]) -> Group<'a, L> {
        let (codes, planes) = stored.as_chunks().0.split_at(A::Scales::CODES);
        let (scales, minima) = A::Scales::lanes(heads, codes);
        let (low, high) = planes.split_at(plane_bytes(A::DEPTH, A::LOW_BITS));
        Group { scales, minima, planes: [low, high] }
    }

    #[inline(always)]
    fn step<L: Lanes>(group: &Group<'_, L>, index: usize) -> L {
        let [low, high] = group.planes;
        let mut integers = field::<L>(low, A::LOW_BITS, index);
        if A::HIGH_BITS > 0 {
            integers = L::join(integers, field::<L>(high, A::HIGH_BITS, index), A::LOW_BITS);
        }
        L::unsigned(integers).exactly_times_plus(group.scales, group.minima)
    }
}

/// What a plane has of one step.
#[inline(always)]
fn field<L: Lanes>(plane: &[[u8; PANEL_ROWS]], bits: usize, step: usize) -> L::Bytes {
    let (part, vector) = (step / plane.len(), step % plane.len());
    L::field(L::bytes(&plane[vector]), part * bits, (1 << bits) - 1)
}

/// What the encoder goes by.
enum Wish<'a> {
    /// The squared error of the weights, no value's beyond the bound.
    Plain,
    /// The squared error, each step's by what its inputs are.
    Weighted(&'a [f32]),
    /// The same, with each step's error fed forward.
    Fed(&'a [f32], &'a Feedback),
}

fn encode<A: Affine>(values: &[f32], lanes: usize, wish: &Wish, stored: &mut Vec<u8>) {
    let bad = first_non_finite(values);
    assert_eq!(bad, None, "{} cannot store infinities or NaN", A::NAME);
    match lanes {
        1 => encode_run::<A, 1>(values, wish, stored),
        PANEL_ROWS => encode_run::<A, PANEL_ROWS>(values, wish, stored),
        _ => panic!("a run has 1 or {PANEL_ROWS} lanes, not {lanes}"),
    }
}

fn encode_run<A: Affine, const LANES: usize>(values: &[f32], wish: &Wish, stored: &mut Vec<u8>) {
    let (steps, rest) = values.as_chunks::<LANES>();
    assert!(rest.is_empty(), "a panel run has whole steps of {PANEL_ROWS} values");
    let mut grid = Grid::of::<A>();
    let weights = match wish {
        Wish::Plain => None,
        Wish::Weighted(weights) | Wish::Fed(weights, _) => {
            assert_eq!(weights.len(), steps.len(), "one weight for each step");
            grid.is_bounded = false;
            Some(*weights)
        }
    };
    let normal = Normal::new(steps, weights, A::DEPTH);
    let mut encoded = Encoded::default();
    let scales = PhantomData::<A::Scales>;
    match wish {
        Wish::Fed(_, feedback) => {
            assert_eq!(feedback.depth(), steps.len(), "feedback of each step");
            simd::run(fed::Feeding {
                normal: &normal,
                grid,
                feedback,
                scales,
                encoded: &mut encoded,
            });
        }
        _ => simd::run(Fitting { normal: &normal, grid, scales, encoded: &mut encoded }),
    }
    for head in &encoded.heads[..A::Scales::HEADS] {
        let bits = |lane: usize| ((head[lane] * normal.up[lane]).to_bits() >> 16) as u16;
        stored.extend((0..LANES).flat_map(|lane| bits(lane).to_le_bytes()));
    }
    for (codes, integers) in encoded.codes.iter().zip(encoded.integers.chunks(A::DEPTH)) {
        stored.extend_from_slice(codes[..A::Scales::CODES].as_flattened());
        pack(integers, 0, A::LOW_BITS, stored);
        pack(integers, A::LOW_BITS, A::HIGH_BITS, stored);
    }
}

/// Appends the plane of the integers' `bits` bits from `first`.
fn pack<const LANES: usize>(
    integers: &[[u8; LANES]],
    first: usize,
    bits: usize,
    stored: &mut Vec<u8>,
) {
    let bytes = plane_bytes(integers.len(), bits);
    for byte in 0..bytes {
        let steps = integers.iter().skip(byte).step_by(bytes).enumerate();
        let packed = steps.fold([0u8; LANES], |packed, (part, step)| {
            array::from_fn(|i| packed[i] | (step[i] >> first & ((1 << bits) - 1)) << (part * bits))
        });
        stored.extend_from_slice(&packed);
    }
}
